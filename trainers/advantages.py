"""Advantages: from the rewards of a group, or from a critic's values; and KL penalties as an edit of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..agents import Datum
from ..agents.losses import KL_ESTIMATORS

BASELINES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda rewards: rewards - rewards.mean(),
    "deviation": lambda rewards: (rewards - rewards.mean()) / (rewards.std() + 1e-6),
    "leave_one_out": lambda rewards: (rewards - rewards.mean()) * len(rewards) / (len(rewards) - 1),
}
"""Advantages of a group's members by name, from their rewards `(G,)`.

mean: the reward less the group's mean. deviation: that over the group's standard deviation (GRPO, Shao et al. 2024),
which favours problems that are nearly always or nearly never solved (Liu et al. 2025). leave_one_out: less the mean of
the other members (RLOO, Ahmadian et al. 2024), which has no bias.
"""


def group_advantages(rewards: Sequence[float], baseline: str = "mean") -> list[float]:
    """Each member's advantage, by one of `BASELINES`; all zero if all rewards are equal."""
    values = np.asarray(rewards, dtype=float)
    return [0.0] * len(values) if is_constant(rewards) else [float(a) for a in BASELINES[baseline](values)]


def is_constant(rewards: Sequence[float]) -> bool:
    """Whether all rewards are equal: then no member is better than another, and nothing is learnt."""
    return len(rewards) < 2 or max(rewards) - min(rewards) < 1e-9


def generalized_advantages(
    rewards: np.ndarray, values: np.ndarray, *, discount: float = 1.0, decay: float = 0.95, last_value: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """GAE (Schulman et al. 2016, eq. 16) along one episode.

    A_t = sum over l of (discount x decay)^l d_(t+l), with d_t = r_t + discount v_(t+1) - v_t.

    Args:
        rewards: r after each action, `(T,)`.
        values: the critic's v before each action, `(T,)`.
        discount: gamma.
        decay: lambda.
        last_value: v after the last action: 0 where the episode ended, the critic's where it was broken off.

    Returns:
        Advantages and returns (advantages plus values), `(T,)` each.
    """
    following = np.append(values[1:], last_value)
    errors = rewards + discount * following - values
    advantages = np.zeros(len(rewards))
    ahead = 0.0
    for t in range(len(rewards) - 1, -1, -1):
        advantages[t] = ahead = errors[t] + discount * decay * ahead
    return advantages, advantages + values


def explained_variance(values: np.ndarray, returns: np.ndarray) -> float:
    """1 - Var(returns - values) / Var(returns): 1 for a perfect critic, 0 for a constant one."""
    variance = float(np.var(returns))
    return 1 - float(np.var(returns - values)) / variance if variance > 0 else float("nan")


def log_ratios(data: Sequence[Datum], reference: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each datum's sampler log-probabilities less the reference's at its trained positions."""
    return [
        np.asarray(datum.logprobs)[datum.trained] - logprobs[datum.trained]
        for datum, logprobs in zip(data, reference, strict=True)
    ]


def with_kl_penalty(
    data: Sequence[Datum],
    reference: Sequence[np.ndarray],
    coef: float,
    *,
    estimator: str = "k1",
    discount: float = 0.0,
) -> tuple[list[Datum], float]:
    """The datums with a KL penalty against a reference taken from their advantages.

    Each token's penalty is what its estimate exceeds the batch's mean by, so that the penalty does not shift all
    advantages at once; with a `discount` it is charged for the tokens after it as well.

    Args:
        data: datums with the sampler's log-probabilities and advantages.
        reference: the reference's log-probabilities of the same targets, as `LoraPolicy.forward` gives them.
        coef: its factor.
        estimator: k1, k2 or k3, see `losses.KL_ESTIMATORS`.
        discount: of later tokens' penalties; 0 charges each token its own alone.

    Returns:
        The datums, and the estimated KL per token before centring.
    """
    import torch

    estimates = [KL_ESTIMATORS[estimator](torch.as_tensor(part)).numpy() for part in log_ratios(data, reference)]
    mean = float(np.concatenate(estimates).mean()) if estimates else 0.0
    edited = []
    for datum, estimate in zip(data, estimates, strict=True):
        penalty = coef * (estimate - mean)
        if discount:
            for t in range(len(penalty) - 2, -1, -1):
                penalty[t] += discount * penalty[t + 1]
        advantages = np.array(datum.advantages, dtype=float)
        advantages[datum.trained] -= penalty
        edited.append(replace(datum, advantages=advantages.tolist()))
    return edited, mean


@dataclass(slots=True)
class KLController:
    """A coefficient that follows the KL that it brings about (Ziegler et al. 2019, section 2.2).

    Attributes:
        coef: the coefficient now; part of a run's state.
        target: the KL per token to hold; 0 leaves the coefficient as it is.
        horizon: over how many tokens the coefficient changes by as much as the KL is off, at most a fifth.
    """

    coef: float
    target: float = 0.0
    horizon: float = 10_000.0

    def update(self, kl: float, tokens: float) -> None:
        """Takes note of the KL of a step of so many tokens."""
        if self.target:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coef *= 1 + error * tokens / self.horizon
