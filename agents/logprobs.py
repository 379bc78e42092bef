"""Log-probabilities of chosen tokens from logits, with a backward pass that makes few copies of them."""

from __future__ import annotations

from typing import Any

import torch


def selected_logprobs(
    logits_UV: torch.Tensor, row_X: torch.Tensor, target_X: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """log softmax(logits / temperature) at the given (row, target) pairs.

    Args:
        logits_UV: logits, any floating type.
        row_X, target_X: the pairs; a row may come up several times.
        temperature: above 0.

    Returns:
        `(X,)` in float32 (float64 for float64 logits).
    """
    return _SelectedLogprobs.apply(logits_UV, row_X, target_X, temperature)


def tempered(logits_UV: torch.Tensor, temperature: float) -> torch.Tensor:
    """logits / temperature in float32 or wider, always a new tensor."""
    wide = torch.promote_types(logits_UV.dtype, torch.float32)
    copied = logits_UV.to(wide, copy=True)
    return copied if temperature == 1.0 else copied.div_(temperature)


class _SelectedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_UV: torch.Tensor, row_X: torch.Tensor, target_X: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        scaled = tempered(logits_UV, temperature)
        lse_U = scaled.logsumexp(-1)
        ctx.save_for_backward(logits_UV, row_X, target_X, lse_U)
        ctx.temperature = temperature
        return scaled[row_X, target_X] - lse_U[row_X]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_X,) = grads
        logits_UV, row_X, target_X, lse_U = ctx.saved_tensors
        probabilities = tempered(logits_UV, ctx.temperature).sub_(lse_U[:, None]).exp_()
        total_U = torch.zeros_like(lse_U).index_add_(0, row_X, grad_X)
        grad_UV = probabilities.mul_(-total_U[:, None])
        grad_UV.index_put_((row_X, target_X), grad_X, accumulate=True)
        return grad_UV.div_(ctx.temperature).to(logits_UV.dtype), None, None, None
