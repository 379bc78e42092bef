"""Log-probabilities of chosen tokens from logits, with a backward pass that makes few copies of them."""

from __future__ import annotations

from typing import Any

import torch

from . import kernels

CACHE_BYTES = 2**21
"""Working set of a chunk of rows on a CPU."""


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


def tempered(logits_UV: torch.Tensor, temperature: float | torch.Tensor) -> torch.Tensor:
    """logits / temperature in float32 or wider, always a new tensor; one temperature, or one for each row."""
    copied = logits_UV.to(torch.promote_types(logits_UV.dtype, torch.float32), copy=True)
    if isinstance(temperature, torch.Tensor):
        return copied.div_(temperature[:, None])
    return copied if temperature == 1.0 else copied.div_(temperature)


def row_chunks(logits_UV: torch.Tensor) -> list[slice]:
    """Ranges of rows that are small enough for a processor's cache in float32; all rows at once elsewhere."""
    rows, vocabulary = logits_UV.shape
    chunk = max(1, CACHE_BYTES // (4 * vocabulary)) if logits_UV.device.type == "cpu" else max(1, rows)
    return [slice(start, min(start + chunk, rows)) for start in range(0, rows, chunk)]


def normalizers(logits_UV: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """log of the sum of exponentials of logits / temperature of each row, `(U,)`, in float32 or wider."""
    if kernels.usable(logits_UV):
        return kernels.normalizers(logits_UV, torch.full((len(logits_UV),), temperature))[0]
    lse_U = logits_UV.new_empty(len(logits_UV), dtype=torch.promote_types(logits_UV.dtype, torch.float32))
    for rows in row_chunks(logits_UV):
        lse_U[rows] = log_normalizer(tempered(logits_UV[rows], temperature))
    return lse_U


class _SelectedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_UV: torch.Tensor, row_X: torch.Tensor, target_X: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        lse_U = normalizers(logits_UV, temperature)
        ctx.save_for_backward(logits_UV, row_X, target_X, lse_U)
        ctx.temperature = temperature
        return tempered(logits_UV[row_X, target_X], temperature) - lse_U[row_X]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits_UV, row_X, target_X, lse_U = ctx.saved_tensors
        total_U = grads[0].new_zeros(len(logits_UV)).index_add_(0, row_X, grads[0])
        backward = _backward_compiled if kernels.usable(logits_UV) else _backward
        return backward(logits_UV, row_X, target_X, lse_U, grads[0], total_U, ctx.temperature), None, None, None


def _backward_compiled(
    logits_UV: torch.Tensor,
    row_X: torch.Tensor,
    target_X: torch.Tensor,
    lse_U: torch.Tensor,
    grad_X: torch.Tensor,
    total_U: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    temperatures_U = torch.full((len(logits_UV),), temperature)
    grad_UV = kernels.normalizers_backward(logits_UV, temperatures_U, lse_U, -total_U)
    # The targets' entries anew, for they are the sum of two numbers of which only the sum may be rounded.
    places, number_X = torch.unique(row_X * logits_UV.shape[1] + target_X, return_inverse=True)
    rows = places // logits_UV.shape[1]
    likely = (tempered(logits_UV.view(-1)[places], temperature) - lse_U[rows]).exp_()
    found = likely.mul_(-total_U[rows]).index_add_(0, number_X, grad_X).div_(temperature)
    grad_UV.view(-1)[places] = found.to(grad_UV.dtype)
    return grad_UV


def _backward(
    logits_UV: torch.Tensor,
    row_X: torch.Tensor,
    target_X: torch.Tensor,
    lse_U: torch.Tensor,
    grad_X: torch.Tensor,
    total_U: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    order = row_X.argsort()
    row_X, target_X, grad_X = row_X[order], target_X[order], grad_X[order]
    chunks = row_chunks(logits_UV)
    ends = torch.searchsorted(row_X, torch.as_tensor([c.stop for c in chunks], device=row_X.device)).tolist()
    grad_UV = torch.empty_like(logits_UV)
    start = 0
    for rows, end in zip(chunks, ends, strict=True):
        part = tempered(logits_UV[rows], temperature).sub_(lse_U[rows, None]).exp_().mul_(-total_U[rows, None])
        part.index_put_(
            (row_X[start:end] - rows.start, target_X[start:end]), grad_X[start:end].to(part.dtype), accumulate=True
        )
        grad_UV[rows] = part if temperature == 1.0 else part.div_(temperature)
        start = end
    return grad_UV


def log_normalizer(scaled_UV: torch.Tensor) -> torch.Tensor:
    """log of the sum of exponentials of each row."""
    # log_softmax is one fused pass, and rounding takes least where it is largest.
    return scaled_UV.amax(-1) - torch.log_softmax(scaled_UV, -1).amax(-1)
