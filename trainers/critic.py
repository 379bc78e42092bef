"""PPO's critic: a scorer on the policy's own base that learns what a state is worth (Schulman et al. 2017).

A state is what has been said up to a token that the policy is about to choose; its value is read at the position before
that token. Tokens that the world says are no actions and have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..agents import AdamParams, Datum, LoraScorer
from ..agents.losses import value_loss
from .advantages import explained_variance, generalized_advantages
from .rollouts import Episode


@dataclass(frozen=True, slots=True)
class ValuedEpisode:
    """An episode's datums with GAE's advantages, and what the critic said and should have said.

    Attributes:
        data: one datum, or several where the renderer rewrote the past.
        values, returns: at each datum's trained positions, `(its trained positions,)`.
    """

    data: list[Datum]
    values: list[np.ndarray]
    returns: list[np.ndarray]


def token_rewards(episode: Episode) -> np.ndarray:
    """An episode's rewards by sampled token: a turn's at its last token, the group's at the last of all."""
    lengths = [len(turn.tokens) for turn in episode.turns]
    rewards = np.zeros(sum(lengths))
    for end, turn in zip(np.cumsum(lengths), episode.turns, strict=True):
        rewards[end - 1] += turn.reward
    if len(rewards):
        rewards[-1] += episode.group_reward
    return rewards


class Critic:
    """A scorer, how its values make advantages, and how it learns.

    Args:
        scorer: gives the values.
        discount: gamma.
        decay: GAE's lambda.
        clip: see `losses.value_loss`.
    """

    def __init__(self, scorer: LoraScorer, *, discount: float, decay: float, clip: float) -> None:
        self.scorer = scorer
        self.discount = discount
        self.decay = decay
        self.clip = clip

    def assess(self, episodes: Sequence[tuple[list[Datum], np.ndarray]]) -> list[ValuedEpisode]:
        """Values and advantages of episodes, each given as its datums and `token_rewards`."""
        data = [datum for datums, _ in episodes for datum in datums]
        scores = iter(self.scorer.score([_positions(datum) for datum in data]) if data else [])
        found = []
        for datums, rewards in episodes:
            values = [next(scores) for _ in datums]
            ends = np.cumsum([len(v) for v in values])[:-1]
            advantages, returns = generalized_advantages(
                rewards, np.concatenate(values), discount=self.discount, decay=self.decay
            )
            edited = [_with_advantages(d, a) for d, a in zip(datums, np.split(advantages, ends), strict=True)]
            found.append(ValuedEpisode(edited, values, np.split(returns, ends)))
        return found

    def learn(self, episodes: Sequence[ValuedEpisode], adam: AdamParams) -> dict[str, float]:
        """One update towards the episodes' returns; its loss is the mean over tokens."""
        data = [_positions(datum) for episode in episodes for datum in episode.data]
        old = np.concatenate([values for episode in episodes for values in episode.values])
        returns = np.concatenate([part for episode in episodes for part in episode.returns])

        def loss(scores: list[torch.Tensor], _: Sequence[Datum]) -> tuple[torch.Tensor, Mapping[str, float]]:
            values = torch.cat(scores)
            wanted, before = (torch.as_tensor(x, dtype=values.dtype, device=values.device) for x in (returns, old))
            return value_loss(values, wanted, before, self.clip).mean(), {}

        out = self.scorer.forward_backward(data, loss)
        updated = self.scorer.optim_step(adam)
        return {
            "critic/loss": out.loss,
            "critic/explained_variance": explained_variance(old, returns),
            "critic/return_variance": float(np.var(returns)),
            "critic/value": float(old.mean()),
            "critic/grad_norm": updated["grad_norm"],
        }


def whiten(episodes: Sequence[ValuedEpisode]) -> list[ValuedEpisode]:
    """The episodes with advantages of mean 0 and deviation 1 over all their tokens."""
    everything = [np.asarray(d.advantages)[d.trained] for episode in episodes for d in episode.data]
    pooled = np.concatenate(everything) if everything else np.zeros(1)
    mean, deviation = float(pooled.mean()), float(pooled.std()) + 1e-8

    def whitened(datum: Datum) -> Datum:
        return _with_advantages(datum, (np.asarray(datum.advantages)[datum.trained] - mean) / deviation)

    return [replace(episode, data=[whitened(datum) for datum in episode.data]) for episode in episodes]


def _positions(datum: Datum) -> Datum:
    return Datum.scored(datum.tokens, datum.trained.tolist())


def _with_advantages(datum: Datum, trained: np.ndarray) -> Datum:
    advantages = np.zeros(len(datum.tokens))
    advantages[datum.trained] = trained
    return replace(datum, advantages=advantages.tolist())
