"""Norms, rotary positions and gated activations of a decoder, with backward passes that keep little.

On a CPU by the compiled `kernels` where there are some, else by torch's operators.

Suffixes: `T` tokens, `D` head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from . import kernels


def rotary(x: torch.Tensor, cos_T1D: torch.Tensor, sin_T1D: torch.Tensor) -> torch.Tensor:
    """`x` turned by its positions' angles; where no gradient is recorded, `x` may be overwritten."""
    if torch.is_grad_enabled():
        return _Rotary.apply(x, cos_T1D, sin_T1D)
    if kernels.usable(x, cos_T1D):
        return kernels.rotary(x, cos_T1D, sin_T1D, in_place=True)
    return _turned(x, cos_T1D, sin_T1D)


class _Rotary(torch.autograd.Function):
    """Rotary positions (Su et al. 2021), halves of a head turned against each other; `(T, heads, D)`.

    The sine comes with the sign of its half.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos_T1D: torch.Tensor, sin_T1D: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos_T1D, sin_T1D)
        if kernels.usable(x, cos_T1D):
            return kernels.rotary(x, cos_T1D, sin_T1D)
        return _turned(x, cos_T1D, sin_T1D)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,), (cos_T1D, sin_T1D) = grads, ctx.saved_tensors
        if kernels.usable(grad, cos_T1D):
            return kernels.rotary(grad, cos_T1D, sin_T1D, back=True), None, None
        return (grad * cos_T1D).add_(_swapped(grad * sin_T1D)), None, None


def _turned(x: torch.Tensor, cos_T1D: torch.Tensor, sin_T1D: torch.Tensor) -> torch.Tensor:
    return (x * cos_T1D).addcmul_(_swapped(x), sin_T1D)


def _swapped(x: torch.Tensor) -> torch.Tensor:
    low, high = x.chunk(2, -1)
    return torch.cat((high, low), -1)


def gated(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """activation(gate) * up of `(T, 2 N)`, gate first.

    Args:
        gate_up: both, side by side.
        activation: `silu`, or the kind of approximation of a GELU as torch calls it.
    """
    return (_Gated.apply if torch.is_grad_enabled() else _gated)(gate_up, activation)


class _Gated(torch.autograd.Function):
    """`gated`, which keeps its input only."""

    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor, activation: str) -> torch.Tensor:
        ctx.save_for_backward(gate_up)
        ctx.activation = activation
        return _gated(gate_up, activation)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gate_up,) = ctx.saved_tensors
        if ctx.activation in kernels.ACTIVATIONS and kernels.usable(gate_up, grads[0]):
            return kernels.gated_backward(grads[0], gate_up, ctx.activation), None
        gate, up = gate_up.chunk(2, -1)
        found = torch.empty_like(gate_up)
        of_gate, of_up = found.chunk(2, -1)
        torch.mul(_activated(gate, ctx.activation), grads[0], out=of_up)
        outer = grads[0] * up
        if ctx.activation == "silu":
            of_gate.copy_(torch.ops.aten.silu_backward(outer, gate))
        else:
            of_gate.copy_(torch.ops.aten.gelu_backward(outer, gate, approximate=ctx.activation))
        return found, None


def _gated(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    if activation in kernels.ACTIVATIONS and kernels.usable(gate_up):
        return kernels.gated(gate_up, activation)
    gate, up = gate_up.chunk(2, -1)
    return _activated(gate, activation).mul_(up)


def _activated(gate: torch.Tensor, activation: str) -> torch.Tensor:
    return F.silu(gate) if activation == "silu" else F.gelu(gate, approximate=activation)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, offset: float, eps: float) -> torch.Tensor:
    """x / rms(x) * (weight + offset) over the last dimension (Zhang & Sennrich 2019), in float32 or wider."""
    return (_RMSNorm.apply if torch.is_grad_enabled() else _normalized)(x, weight, offset, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, offset: float, eps: float) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.offset, ctx.eps = offset, eps
        return _normalized(x, weight, offset, eps)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if kernels.usable(x, weight, grads[0]):
            return kernels.rms_norm_backward(grads[0], x, weight, ctx.offset, ctx.eps), None, None, None
        wide = torch.promote_types(x.dtype, torch.float32)
        scaled = grads[0].to(wide) * (weight.to(wide) + ctx.offset)
        values = x.to(wide)
        inverse = torch.linalg.vector_norm(values, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse = inverse.add_(ctx.eps).rsqrt_()
        along = torch.linalg.vecdot(scaled, values)[..., None].mul_(inverse.square()).div_(x.shape[-1])
        return scaled.sub_(values * along).mul_(inverse).to(x.dtype), None, None, None


def _normalized(x: torch.Tensor, weight: torch.Tensor, offset: float, eps: float) -> torch.Tensor:
    if kernels.usable(x, weight):
        return kernels.rms_norm(x, weight, offset, eps)
    if offset or x.dtype != weight.dtype:
        wide = torch.promote_types(x.dtype, torch.float32)
        return (F.rms_norm(x.to(wide), weight.shape, None, eps) * (weight.to(wide) + offset)).to(x.dtype)
    if x.device.type != "cpu":
        return F.rms_norm(x, weight.shape, weight, eps)
    # torch has no kernel of its own for this on a CPU, but one for the layer norm, which does the same where the mean
    # is zero.
    both = torch.cat((x, -x), -1)
    return F.layer_norm(both, both.shape[-1:], None, None, eps)[..., : x.shape[-1]] * weight
