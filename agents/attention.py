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

from .packing import Pack

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


@dataclass(slots=True)
class TreeLayout:
    """Tokens of one pack; optionally keeps each layer's keys and values, which is what a prefill is for."""

    pack: Pack
    kept: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None

    def attend(
        self, layer: int, q_THD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        if self.kept is not None:
            self.kept[layer] = (k_TGD, v_TGD)
        return TreeAttention.apply(q_THD, k_TGD, v_TGD, self.pack, options)


class TreeAttention(torch.autograd.Function):
    """Exact attention over the blocks of a pack.

    Keeps only the log-normaliser of each query, not its scores, and computes these again in the backward pass (as in
    FlashAttention, Dao et al. 2022), so memory is linear in the tokens.
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
        out_THD = torch.empty_like(q_THD)
        lse_TH = torch.empty(q_THD.shape[:2], dtype=_wide(q_THD.dtype), device=q_THD.device)
        for index, block in enumerate(pack.blocks):
            q, k, v = _gather(q_THD, k_TGD, v_TGD, block.queries_BN, block.keys_BK)
            scores = _scores(q, k, pack.bias_BNK(index, lse_TH.dtype, options.window), options)
            lse = scores.logsumexp(-1, keepdim=True)
            out = torch.matmul((scores - lse).exp_().to(v.dtype), v)
            real = block.queries_BN >= 0
            nodes = block.queries_BN[real]
            out_THD[nodes] = _ungroup(out, *block.queries_BN.shape)[real]
            lse_TH[nodes] = _ungroup(lse, *block.queries_BN.shape)[real].squeeze(-1)
        ctx.save_for_backward(q_THD, k_TGD, v_TGD, out_THD, lse_TH)
        ctx.pack, ctx.options = pack, options
        return out_THD

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_THD,) = grads
        q_THD, k_TGD, v_TGD, out_THD, lse_TH = ctx.saved_tensors  # type: ignore[attr-defined]
        pack, options = ctx.pack, ctx.options  # type: ignore[attr-defined]
        wide = lse_TH.dtype
        delta_TH = (grad_THD.to(wide) * out_THD.to(wide)).sum(-1)
        dq_THD = torch.empty_like(q_THD)
        dk_TGD, dv_TGD = torch.zeros_like(k_TGD, dtype=wide), torch.zeros_like(v_TGD, dtype=wide)
        groups = k_TGD.shape[1]
        for index, block in enumerate(pack.blocks):
            (B, N), K = block.queries_BN.shape, block.keys_BK.shape[1]
            q, k, v = _gather(q_THD, k_TGD, v_TGD, block.queries_BN, block.keys_BK)
            real = block.queries_BN >= 0
            grad = _group(grad_THD, block.queries_BN, groups)
            lse = _group(lse_TH[..., None], block.queries_BN, groups)
            delta = _group(delta_TH[..., None], block.queries_BN, groups)
            scores = _scores(q, k, pack.bias_BNK(index, wide, options.window), options)
            p = (scores - lse).exp_().masked_fill_(_padded_rows(real, q, groups), 0.0)
            dv = torch.matmul(p.to(grad.dtype).transpose(1, 2), grad)
            ds = p.mul_(torch.matmul(grad, v.transpose(1, 2)).to(wide) - delta)
            if options.softcap:
                ds.mul_(1 - (scores.nan_to_num(neginf=0.0) / options.softcap) ** 2)
            ds_narrow = ds.mul_(options.scale).to(q.dtype)
            dq_THD[block.queries_BN[real]] = _ungroup(torch.matmul(ds_narrow, k), B, N)[real]
            seen = block.keys_BK >= 0
            keys = block.keys_BK[seen]
            for total, part in ((dk_TGD, torch.matmul(ds_narrow.transpose(1, 2), q)), (dv_TGD, dv)):
                part_BKGD = part.view(B, groups, K, -1).transpose(1, 2)
                total.index_add_(0, keys, part_BKGD[seen].to(wide))
        return dq_THD, dk_TGD.to(k_TGD.dtype), dv_TGD.to(v_TGD.dtype), None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which scores are normalised."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _group(x_THX: torch.Tensor, nodes_BN: torch.Tensor, groups: int) -> torch.Tensor:
    """Rows of `x` by key-value head: `(B * G, N * R, X)`; padding takes row 0."""
    (B, N), (_, H, X) = nodes_BN.shape, x_THX.shape
    x = x_THX.index_select(0, nodes_BN.clamp(min=0).flatten()).view(B, N, groups, H // groups, X)
    return x.transpose(1, 2).reshape(B * groups, N * (H // groups), X)


def _ungroup(x: torch.Tensor, B: int, N: int) -> torch.Tensor:
    """Inverse of `_group`: `(B, N, H, X)`."""
    G = x.shape[0] // B
    return x.view(B, G, N, -1, x.shape[-1]).transpose(1, 2).reshape(B, N, -1, x.shape[-1])


def _padded_rows(real_BN: torch.Tensor, like: torch.Tensor, groups: int) -> torch.Tensor:
    """True for padded queries, in the shape of `_group`."""
    padded = ~real_BN[:, None, :, None].expand(-1, groups, -1, like.shape[1] // real_BN.shape[1])
    return padded.reshape(like.shape[0], like.shape[1], 1)


def _gather(
    q_THD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor, queries_BN: torch.Tensor, keys_BK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    groups = k_TGD.shape[1]
    return _group(q_THD, queries_BN, groups), _group(k_TGD, keys_BK, groups), _group(v_TGD, keys_BK, groups)


def _scores(q: torch.Tensor, k: torch.Tensor, bias_BNK: torch.Tensor, options: AttentionOptions) -> torch.Tensor:
    """Scaled, capped and masked scores `(B * G, N * R, K)` in the type of the bias."""
    scores = torch.matmul(q, k.transpose(1, 2)).to(bias_BNK.dtype).mul_(options.scale)
    if options.softcap:
        scores = torch.tanh(scores / options.softcap).mul_(options.softcap)
    B, N, K = bias_BNK.shape
    scores.view(B, -1, N, scores.shape[1] // N, K).add_(bias_BNK[:, None, :, None, :])
    return scores


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
