"""Linear layers that read the same input, as one product, with their adapters: compiled (`linear.cpp`, `products.h`).

Only where the library multiplies packed weights of the base's type (`kernels.can_pack`), and for layers whose sizes are
multiples of `kernels.LANES`.

Suffixes: `T` tokens, `K` inputs, `N` outputs, `r` ranks of all adapters.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import addressof, c_double, c_int64, c_void_p
from dataclasses import dataclass
from itertools import accumulate

import torch

from . import kernels
from .kernels import LANES

MOST_PARTS = 3
"""Layers that read the same input side by side: queries, keys and values."""
Pair = tuple[torch.Tensor, torch.Tensor]
"""A layer's A `(rank, K)` and B `(its outputs, rank)`."""


class ProjectionPlan(ctypes.Structure):
    """Where a projection's weight and its bias are; the weight is packed, or row by row."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p), *((n, c_int64) for n in ("outputs", "inputs", "packed")))

    @classmethod
    def of(
        cls, weight: torch.Tensor, bias_N: torch.Tensor | None, outputs: int, inputs: int, *, packed: bool
    ) -> ProjectionPlan:
        return cls(weight.data_ptr(), None if bias_N is None else bias_N.data_ptr(), outputs, inputs, packed)


class UpdatePlan(ctypes.Structure):
    """Where an adapter's packed tensors for a projection are."""

    _fields_ = (
        ("a", c_void_p),
        ("b", c_void_p),
        ("parts", c_int64),
        ("ranks", c_int64 * (MOST_PARTS + 1)),
        ("outputs", c_int64 * (MOST_PARTS + 1)),
    )


class AdaptersPlan(ctypes.Structure):
    """Where adapters in training are."""

    _fields_ = (
        ("a", c_void_p * MOST_PARTS),
        ("b", c_void_p * MOST_PARTS),
        ("parts", c_int64),
        ("own", c_int64 * MOST_PARTS),
        ("ranks", c_int64 * (MOST_PARTS + 1)),
        ("outputs", c_int64 * (MOST_PARTS + 1)),
        ("scale", c_double),
    )


@dataclass(frozen=True, slots=True)
class Update:
    """A snapshot's adapter on layers side by side, packed; `plan` points into `tensors`."""

    plan: UpdatePlan
    tensors: tuple[torch.Tensor, ...]

    @classmethod
    def of(
        cls,
        pairs: Sequence[Pair | None],
        sizes: Sequence[int],
        scale: float,
        dtype: torch.dtype,
    ) -> Update:
        """Packs the A `(rank, inputs)` and B `(size, rank)` of each layer; None for one without an adapter."""
        plan = UpdatePlan(None, None, len(pairs))
        plan.outputs[: len(sizes) + 1] = [*accumulate(sizes, initial=0)]
        if not any(pairs):
            return cls(plan, ())
        ranks = [0 if pair is None else -(-len(pair[0]) // LANES) * LANES for pair in pairs]
        inputs = next(pair[0].shape[1] for pair in pairs if pair is not None)
        plan.ranks[: len(pairs) + 1] = [*accumulate(ranks, initial=0)]
        a = torch.empty(sum(ranks) * inputs, dtype=dtype)
        b = torch.empty(sum(size * rank for size, rank in zip(sizes, ranks, strict=True)), dtype=dtype)
        plan.a, plan.b = to_a, to_b = a.data_ptr(), b.data_ptr()
        for pair, size, rank in zip(pairs, sizes, ranks, strict=True):
            if pair is not None:
                a_rK, b_Nr = pair[0].detach(), pair[1].detach()
                kernels.pack_into(to_a, a_rK.to(dtype), inputs)
                kernels.pack_into(to_b, (b_Nr if scale == 1.0 else b_Nr * scale).to(dtype), rank)
                to_a += rank * inputs * a.element_size()
                to_b += size * rank * b.element_size()
        return cls(plan, (a, b))


def project(
    x: torch.Tensor, plan: ProjectionPlan, update: Update | None, residual: torch.Tensor | None
) -> torch.Tensor:
    """`x W^T + bias + residual` and the adapter's update, rounded once; `(T, K)` to `(T, N)`."""
    x, residual = x.contiguous(), None if residual is None else residual.contiguous()
    rows = x.shape[0]
    y = torch.empty(rows, plan.outputs, dtype=x.dtype)
    kernels.call(
        "project",
        x.dtype,
        x.data_ptr(),
        rows,
        addressof(plan),
        None if update is None else addressof(update.plan),
        None if residual is None else residual.data_ptr(),
        y.data_ptr(),
    )
    return y


@dataclass(frozen=True, slots=True)
class TrainedAdapters:
    """Adapters as they are in a step of training; in the products their ranks are filled up to whole blocks.

    Attributes:
        pairs: float32 and contiguous; None for a layer without.
        plan: points into these.
    """

    pairs: tuple[Pair | None, ...]
    plan: AdaptersPlan

    @classmethod
    def of(cls, pairs: Sequence[Pair | None], sizes: Sequence[int], scale: float) -> TrainedAdapters:
        plan = AdaptersPlan(parts=len(pairs), scale=scale)
        rank = output = 0
        for part, (pair, size) in enumerate(zip(pairs, sizes, strict=True)):
            if pair is not None:
                assert pair[0].dtype == pair[1].dtype == torch.float32
                assert pair[0].is_contiguous()
                assert pair[1].is_contiguous()
                own = pair[0].shape[0]
                plan.a[part], plan.b[part], plan.own[part] = pair[0].data_ptr(), pair[1].data_ptr(), own
                rank += -(-own // LANES) * LANES
            output += size
            plan.ranks[part + 1], plan.outputs[part + 1] = rank, output
        return cls(tuple(pairs), plan)

    @property
    def ranks(self) -> int:
        """All of them, filled up."""
        return self.plan.ranks[len(self.pairs)]


def lora_forward(
    x_TK: torch.Tensor, plan: ProjectionPlan, residual_TN: torch.Tensor | None, adapters: TrainedAdapters
) -> tuple[torch.Tensor, torch.Tensor]:
    """`project` in training, to the same bits: the output `(T, N)`, and `x A^T` `(T, r)`, which the way back needs."""
    residual_TN = None if residual_TN is None else residual_TN.contiguous()
    rows = x_TK.shape[0]
    y_TN = x_TK.new_empty(rows, plan.outputs)
    inner_Tr = x_TK.new_empty(rows, adapters.ranks)
    residual = None if residual_TN is None else residual_TN.data_ptr()
    places = addressof(plan), addressof(adapters.plan), residual, inner_Tr.data_ptr(), y_TN.data_ptr()
    kernels.call("lora_forward", x_TK.dtype, x_TK.data_ptr(), rows, *places)
    return y_TN, inner_Tr


def lora_backward(
    grad_TN: torch.Tensor,
    x_TK: torch.Tensor,
    inner_Tr: torch.Tensor,
    weight_NK: torch.Tensor,
    adapters: TrainedAdapters,
    *,
    with_input: bool,
) -> tuple[torch.Tensor | None, list[Pair | None]]:
    """The gradient of the input, if it is wanted, and of each layer's A and scaled B, in float32."""
    grad_TN = grad_TN.contiguous()
    x_grad = torch.empty_like(x_TK) if with_input else None
    a_grad = torch.empty(adapters.ranks, x_TK.shape[1])
    # The other way round, as they come: (ranks, outputs).
    b_grads = [
        None if pair is None else torch.empty(adapters.plan.ranks[part + 1] - adapters.plan.ranks[part], len(pair[1]))
        for part, pair in enumerate(adapters.pairs)
    ]
    pointers = (c_void_p * MOST_PARTS)(*(None if grad is None else grad.data_ptr() for grad in b_grads))
    kernels.call(
        "lora_backward",
        x_TK.dtype,
        grad_TN.data_ptr(),
        x_TK.data_ptr(),
        inner_Tr.data_ptr(),
        x_TK.shape[0],
        weight_NK.data_ptr(),
        *weight_NK.shape,
        addressof(adapters.plan),
        None if x_grad is None else x_grad.data_ptr(),
        a_grad.data_ptr(),
        addressof(pointers),
    )
    found: list[Pair | None] = []
    for part, grad in enumerate(b_grads):
        first, own = adapters.plan.ranks[part], adapters.plan.own[part]
        found.append(None if grad is None else (a_grad[first : first + own], grad[:own].T))
    return x_grad, found
