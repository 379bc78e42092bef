"""Losses of reinforcement and supervised learning, as pure functions of per-token log-probabilities.

Each returns one number per token, to be minimised; which tokens count (the mask) and how they are added up (the
normalisation) is the caller's business and the same for all. Let p be the learner's log-probability of a token, q the
sampler's, A the token's advantage and r = exp(p - q).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Normalization = Literal["sum", "token", "sequence"]
NORMALIZATIONS: tuple[Normalization, ...] = ("sum", "token", "sequence")


@dataclass(frozen=True, slots=True)
class TokenInputs:
    """What a loss knows of each trained token besides p; all are `(X,)` over the trained tokens of some datums."""

    weights: torch.Tensor
    sampler_logprobs: torch.Tensor
    advantages: torch.Tensor


TokenLoss = Callable[..., torch.Tensor]
LOSSES: dict[str, TokenLoss] = {}
"""Losses by name: `(p, inputs, **config) -> (X,)`."""


def register_loss(loss: TokenLoss) -> TokenLoss:
    """Makes a loss known by its function's name; use as a decorator."""
    LOSSES[loss.__name__] = loss
    return loss


@register_loss
def cross_entropy(p: torch.Tensor, inputs: TokenInputs) -> torch.Tensor:
    """-w p."""
    return -inputs.weights * p


@register_loss
def importance_sampling(p: torch.Tensor, inputs: TokenInputs) -> torch.Tensor:
    """-r A: the policy gradient with the sampler's bias divided out (REINFORCE when p = q)."""
    return -torch.exp(p - inputs.sampler_logprobs) * inputs.advantages


@register_loss
def ppo(p: torch.Tensor, inputs: TokenInputs, clip_low: float = 0.2, clip_high: float = 0.2) -> torch.Tensor:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), token by token (Schulman et al. 2017, eq. 7)."""
    ratio = torch.exp(p - inputs.sampler_logprobs)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)


def token_loss(name: str) -> TokenLoss:
    """The registered loss of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}; registered are {sorted(LOSSES)}, and `register_loss` adds your own")
    return LOSSES[name]


def token_shares(lengths: Sequence[int], normalization: Normalization) -> list[float]:
    """By what each trained token of each datum is multiplied before all are added up.

    Args:
        lengths: number of trained tokens of each datum of the whole batch.
        normalization: `sum` 1; `token` 1 / (trained tokens of the batch); `sequence` 1 / (own trained tokens x datums
            that have any), the mean over sequences of their means.

    Raises:
        ValueError: unknown normalisation, or no token is trained at all.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization is one of {NORMALIZATIONS}, got {normalization!r}")
    total, used = sum(lengths), sum(length > 0 for length in lengths)
    if not total:
        raise ValueError(
            f"no token to train on in a batch of {len(lengths)} datums: every mask or weight is zero; check the "
            "renderer's loss weights and the rollouts' masks"
        )
    if normalization == "sequence":
        return [1 / (length * used) if length else 0.0 for length in lengths]
    return [1 / total if normalization == "token" else 1.0] * len(lengths)
