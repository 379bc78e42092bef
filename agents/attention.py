"""Attention over a prefix tree, plugged into any transformers model as the attention implementation `loragym`.

transformers computes projections and rotary positions; the `layout` that travels with the forward call says who sees
whom. `TreeLayout` serves training and prefill; the sampler brings a layout of its own for decoding.

Suffixes: `T` tokens, `H` query heads, `G` key-value heads, `R` query heads per key-value head, `D` head size; `B`, `N`,
`K` as in `packing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.autograd.function import FunctionCtx
from transformers import AttentionInterface

from . import kernels
from .packing import BlockBatch, Pack

IMPLEMENTATION = "loragym"
"""The name under which transformers finds this attention."""


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """What a layer asks of its attention: score scale, tanh soft cap, sliding window in tokens."""

    scale: float
    softcap: float | None = None
    window: int | None = None


class Layout(Protocol):
    """Who sees whom in one forward call."""

    def attend(
        self, layer: int, q_THD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        """Returns the attention output, `(T, H, D)`."""
        ...


class Past(Protocol):
    """Where the keys and values of those nodes of a pack are that are not computed."""

    def fill(self, layer: int, k_TGD: torch.Tensor, v_TGD: torch.Tensor) -> None:
        """Writes them into their places."""
        ...


@dataclass(slots=True)
class TreeLayout:
    """The nodes of one pack that are computed; optionally keeps each layer's keys and values, as a prefill needs.

    The kept ones are of all nodes, `past` giving those that are not computed.
    """

    pack: Pack
    kept: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None
    past: Past | None = None

    def attend(
        self, layer: int, q_THD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        if self.pack.fresh_T is not None:
            assert self.past is not None
            new = (k_TGD, v_TGD)
            k_TGD, v_TGD = (x.new_empty(self.pack.num_nodes, *x.shape[1:]) for x in new)
            self.past.fill(layer, k_TGD, v_TGD)
            for whole, part in zip((k_TGD, v_TGD), new, strict=True):
                whole.index_copy_(0, self.pack.fresh_T, part)
        if self.kept is not None:
            self.kept[layer] = (k_TGD, v_TGD)
        return attend_tree(q_THD, k_TGD, v_TGD, self.pack, options)


def attend_tree(
    q_THD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor, pack: Pack, options: AttentionOptions
) -> torch.Tensor:
    """Exact attention over a pack, `(T, H, D)`; compiled where there are kernels for it."""
    whole = q_THD.shape[2] % kernels.LANES == 0
    compiled = whole and kernels.can_pack(q_THD.dtype) and kernels.usable(q_THD, k_TGD, v_TGD)
    return (CompiledTreeAttention if compiled else TreeAttention).apply(q_THD, k_TGD, v_TGD, pack, options)


class CompiledTreeAttention(torch.autograd.Function):
    """`TreeAttention` by `attention.cpp`, in pieces that fit the processor's cache."""

    @staticmethod
    def forward(
        ctx: Any,
        q_THD: torch.Tensor,
        k_TGD: torch.Tensor,
        v_TGD: torch.Tensor,
        pack: Pack,
        options: AttentionOptions,
    ) -> torch.Tensor:
        out_THD, normalizers_TH = kernels.attend_tree(q_THD, k_TGD, v_TGD, pack.tree, options)
        ctx.save_for_backward(q_THD, k_TGD, v_TGD, out_THD, normalizers_TH)
        ctx.tree, ctx.options = pack.tree, options
        return out_THD

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, normalizers = ctx.saved_tensors
        found = kernels.attend_tree_backward(grads[0], q, k, v, out, normalizers, ctx.tree, ctx.options)
        return *found, None, None


class TreeAttention(torch.autograd.Function):
    """Exact attention over the blocks of a pack.

    Keeps no scores but computes them again in the backward pass (as in FlashAttention, Dao et al. 2022), so memory is
    linear in the tokens.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_THD: torch.Tensor,
        k_TGD: torch.Tensor,
        v_TGD: torch.Tensor,
        pack: Pack,
        options: AttentionOptions,
    ) -> torch.Tensor:
        # One row more than there are tokens, for what padding gives.
        out = q_THD.new_empty(len(q_THD) + 1, *q_THD.shape[1:])
        for index, block in enumerate(pack.blocks):
            q, k, v = _gather(q_THD, k_TGD, v_TGD, block)
            p, _ = _probabilities(q, k, pack.bias_BNK(index, q.dtype, options.window), options)
            out.index_copy_(0, block.to_queries, _ungroup(torch.bmm(p, v), *block.queries_BN.shape))
        ctx.save_for_backward(q_THD, k_TGD, v_TGD)
        ctx.pack, ctx.options = pack, options
        return out[:-1]

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_THD,) = grads
        q_THD, k_TGD, v_TGD = ctx.saved_tensors  # type: ignore[attr-defined]
        pack, options = ctx.pack, ctx.options  # type: ignore[attr-defined]
        wide = torch.promote_types(q_THD.dtype, torch.float32)
        dq = q_THD.new_empty(len(q_THD) + 1, *q_THD.shape[1:])
        dk_TGD, dv_TGD = torch.zeros_like(k_TGD, dtype=wide), torch.zeros_like(v_TGD, dtype=wide)
        groups = k_TGD.shape[1]
        for index, block in enumerate(pack.blocks):
            B, N = block.queries_BN.shape
            q, k, v = _gather(q_THD, k_TGD, v_TGD, block)
            grad = _group(grad_THD, block.from_queries, B, groups)
            if block.real_BN is not None:
                grad.view(B, groups, N, -1).mul_(block.real_BN[:, None, :, None].to(grad.dtype))
            p, capped = _probabilities(q, k, pack.bias_BNK(index, q.dtype, options.window), options)
            dv = torch.bmm(p.transpose(1, 2), grad)
            dp = torch.bmm(grad, v.transpose(1, 2))
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            if capped is not None:
                ds.mul_(1 - (capped / options.softcap).square_())
            dq.index_copy_(0, block.to_queries, _ungroup(scaled_product(ds, k, options.scale), B, N))
            dk = scaled_product(ds.transpose(1, 2), q, options.scale)
            # Padded keys have probability 0, and with it no gradient: what they add to the first token is 0.
            for total, part in ((dk_TGD, dk), (dv_TGD, dv)):
                total.index_add_(0, block.from_keys, _ungroup(part, B, len(block.from_keys) // B).to(wide))
        return dq[:-1], dk_TGD.to(k_TGD.dtype), dv_TGD.to(v_TGD.dtype), None, None


def _group(x_THX: torch.Tensor, nodes: torch.Tensor, B: int, groups: int) -> torch.Tensor:
    """Rows of `x` by key-value head: `(B * G, N * R, X)`, of flat node indices `(B * N,)`."""
    (_, H, X), N = x_THX.shape, len(nodes) // B
    x = x_THX.index_select(0, nodes).view(B, N, groups, H // groups, X)
    return x.transpose(1, 2).reshape(B * groups, N * (H // groups), X)


def _ungroup(x: torch.Tensor, B: int, N: int) -> torch.Tensor:
    """Inverse of `_group`: `(B * N, H, X)`."""
    G = x.shape[0] // B
    return x.view(B, G, N, -1, x.shape[-1]).transpose(1, 2).reshape(B * N, -1, x.shape[-1])


def _gather(
    q_THD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor, block: BlockBatch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    groups, B = k_TGD.shape[1], len(block.queries_BN)
    return (
        _group(q_THD, block.from_queries, B, groups),
        _group(k_TGD, block.from_keys, B, groups),
        _group(v_TGD, block.from_keys, B, groups),
    )


def scaled_product(a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """`scale * a @ b` of batched matrices, scaled before it is rounded."""
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale)


def _probabilities(
    q: torch.Tensor, k: torch.Tensor, bias_BNK: torch.Tensor, options: AttentionOptions
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention's probabilities `(B * G, N * R, K)`, and the capped scores if there is a cap."""
    scores = scaled_product(q, k.transpose(1, 2), options.scale)
    capped = None
    if options.softcap:
        capped = torch.tanh(scores / options.softcap).mul_(options.softcap)
        scores = capped.clone()
    B, N, K = bias_BNK.shape
    scores.view(B, -1, N, scores.shape[1] // N, K).add_(bias_BNK[:, None, :, None, :])
    return torch.softmax(scores, -1), capped


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    layout: Layout | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: `(1, heads, T, D)` in, `(1, T, H, D)` out."""
    if layout is None:
        raise NotImplementedError(
            f"{type(module).__name__} did not pass the layout on to its attention: this architecture does not forward "
            "keyword arguments to its attention layers and cannot run on loragym's engine"
        )
    if s_aux is not None:
        raise NotImplementedError(f"{type(module).__name__} uses attention sinks, which loragym's engine does not have")
    options = AttentionOptions(
        scale=scaling if scaling is not None else query.shape[-1] ** -0.5,
        softcap=softcap,
        window=sliding_window,
    )
    q_THD, k_TGD, v_TGD = (x[0].transpose(0, 1) for x in (query, key, value))
    out_THD = layout.attend(module.layer_idx, q_THD, k_TGD, v_TGD, options)  # type: ignore[arg-type]
    return out_THD[None], None


AttentionInterface.register(IMPLEMENTATION, _attention)
