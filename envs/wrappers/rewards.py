"""Wrappers that change the reward of a step; what `score_group` gives is left alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from ...messages import STOP_REASONS, as_reply
from .base import Action, Env, Observation, Step, TextWrapper, with_metrics

Per = Literal["step", "episode"]


class TurnCost(TextWrapper):
    """Each reply costs something. Metric: `turn_cost` (so far).

    Args:
        env: what to wrap.
        cost: of one reply.
        free_turns: how many replies cost nothing.

    Raises:
        ValueError: a number is not finite or below 0.
    """

    def __init__(self, env: Env, cost: float, *, free_turns: int = 0) -> None:
        if not math.isfinite(cost) or free_turns < 0:
            raise ValueError(f"cost is a finite number and free_turns is from 0 up, got {cost=}, {free_turns=}")
        super().__init__(env, cost=cost, free_turns=free_turns)
        self.cost, self.free_turns = cost, free_turns
        self._turns = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        self._turns = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Action) -> Step:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._turns += 1
        paid = max(0, self._turns - self.free_turns)
        info = with_metrics(info, turn_cost=self.cost * paid)
        return observation, float(reward) - self.cost * (paid > 0), terminated, truncated, info


class ClipReward(TextWrapper):
    """Keeps rewards within bounds. Metric: `unclipped` (the sum of the rewards before clipping, so far).

    Args:
        env: what to wrap.
        low: the least; None for no bound.
        high: the most; None for no bound.
        per: "step" clips each reward; "episode" clips their sum, so that a step's reward is what it adds to the clipped
            sum.

    Raises:
        ValueError: there are no bounds, or the lower is above the upper.
    """

    def __init__(self, env: Env, low: float | None = None, high: float | None = None, *, per: Per = "step") -> None:
        if per not in get_args(Per):
            raise ValueError(f"per is one of {get_args(Per)}, got {per!r}")
        lowest, highest = -math.inf if low is None else low, math.inf if high is None else high
        if low is high is None or not lowest <= highest:
            raise ValueError(f"expected low <= high, and at least one of them, got {low=}, {high=}")
        super().__init__(env, low=low, high=high, per=per)
        self.low, self.high, self.per = lowest, highest, per
        self._total = self._given = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        self._total = self._given = 0.0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Action) -> Step:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._total += float(reward)
        clipped = self._clip(float(reward)) if self.per == "step" else self._clip(self._total) - self._given
        self._given += clipped
        return observation, clipped, terminated, truncated, with_metrics(info, unclipped=self._total)

    def _clip(self, value: float) -> float:
        return min(max(value, self.low), self.high)


class StopReasonReward(TextWrapper):
    """Adds to a step's reward by why the reply or the episode ended, or puts another in its place.

    Args:
        env: what to wrap.
        reply: what a reply earns by its `stop_reason`, such as {"length": -0.5, "malformed": -0.5}.
        episode: what the last step earns by `info["stop_reason"]`, such as {"max_turns": -1}.
        replace: the numbers take the place of the step's reward, instead of being added to it.

    Raises:
        ValueError: a reply does not end for such a reason, or a number is not finite.
    """

    def __init__(
        self,
        env: Env,
        *,
        reply: Mapping[str, float] | None = None,
        episode: Mapping[str, float] | None = None,
        replace: bool = False,
    ) -> None:
        self.reply, self.episode, self.replace = dict(reply or {}), dict(episode or {}), replace
        if unknown := [reason for reason in self.reply if reason not in STOP_REASONS]:
            raise ValueError(
                f"a reply ends for one of the reasons {STOP_REASONS}, got {unknown}; an episode's reasons "
                "go into episode="
            )
        if not all(math.isfinite(number) for number in (*self.reply.values(), *self.episode.values())):
            raise ValueError(f"expected finite numbers, got {reply=}, {episode=}")
        super().__init__(env, reply=self.reply, episode=self.episode, replace=replace)

    def step(self, action: Action) -> Step:
        observation, reward, terminated, truncated, info = self.env.step(action)
        shaped = []
        if (reason := as_reply(action)["stop_reason"]) in self.reply:
            shaped.append(self.reply[reason])
        if (terminated or truncated) and info.get("stop_reason") in self.episode:
            shaped.append(self.episode[info["stop_reason"]])
        if shaped:
            reward = sum(shaped) + (0.0 if self.replace else float(reward))
        return observation, reward, terminated, truncated, info
