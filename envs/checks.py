"""Calling somebody's environment and checking what it returns.

Whoever plays episodes calls environments through here, so that a mistake in one shows where it was made, with what
came, what was expected and what to do, instead of deep inside a training step.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from ..messages import Message, Reply, check_messages
from .core import GroupScore, TextEnv

AnyTextEnv = gymnasium.Env[tuple[Message, ...], Reply | str]


class BadEnvironment(Exception):
    """An environment returned something that breaks its contract."""


def checked_reset(
    env: AnyTextEnv, *, seed: int | None = None, options: dict[str, Any] | None = None
) -> tuple[tuple[Message, ...], dict[str, Any]]:
    """`env.reset(...)`, checked.

    Raises:
        BadEnvironment: the result is not `(messages, info)`, or there is no message to reply to.
    """
    call = f"{_name_of(env)}: reset()"
    observation, info = _unpack(env.reset(seed=seed, options=options), ("observation", "info"), call)
    if not (opening := _checked_observation(observation, call)):
        raise BadEnvironment(f"{call} returned no messages; an episode opens with at least one for the agent to answer")
    return opening, _checked_info(info, call)


def checked_step(env: AnyTextEnv, action: Reply | str) -> tuple[tuple[Message, ...], float, bool, bool, dict[str, Any]]:
    """`env.step(action)`, checked; numbers and booleans come back as Python's own, `info["metrics"]` is always there.

    Raises:
        BadEnvironment: the result is not `(messages, finite number, bool, bool, info)`.
    """
    call = f"{_name_of(env)}: step()"
    parts = ("observation", "reward", "terminated", "truncated", "info")
    observation, reward, terminated, truncated, info = _unpack(env.step(action), parts, call)
    return (
        _checked_observation(observation, call),
        _checked_number(reward, "reward", call),
        _checked_bool(terminated, "terminated", call),
        _checked_bool(truncated, "truncated", call),
        _checked_info(info, call),
    )


def env_attribute(env: gymnasium.Env[Any, Any], name: str, default: Any = None) -> Any:
    """What an environment, or one that it wraps, has under `name`: the outermost one that has it."""
    return env.get_wrapper_attr(name) if env.has_wrapper_attr(name) else default


def scores_groups(env: gymnasium.Env[Any, Any]) -> bool:
    """Whether the environment may have rewards for a group as a whole; if not, nobody needs to ask."""
    score = env_attribute(env, "score_group")
    return score is not None and getattr(score, "__func__", None) is not TextEnv.score_group


def checked_group_score(env: gymnasium.Env[Any, Any], episodes: Sequence[Sequence[Message]]) -> GroupScore | None:
    """`env.score_group(episodes)`, checked; `env` was reset to the episodes' problem.

    Raises:
        BadEnvironment: the result is not one finite number for each episode, or the metrics are no numbers.
    """
    if not scores_groups(env):
        return None
    call = f"{_name_of(env)}: score_group"
    given = env_attribute(env, "score_group")(episodes)
    if given is None:
        return None
    score = given if isinstance(given, GroupScore) else GroupScore(rewards=given)
    if isinstance(score.rewards, str | Mapping) or not isinstance(score.rewards, Sequence | np.ndarray):
        raise BadEnvironment(f"{call} gave {score.rewards!r:.200}; it returns one number per episode")
    for what, values in (("rewards", score.rewards), ("metrics", score.metrics)):
        if len(values) != len(episodes) and not (what == "metrics" and not values):
            raise BadEnvironment(
                f"{call} gave {len(values)} {what} for {len(episodes)} episodes; it returns one number per episode"
            )
    rewards = [_checked_number(reward, f"the reward of episode {i}", call) for i, reward in enumerate(score.rewards)]
    return GroupScore(rewards=rewards, metrics=[_checked_metrics(metrics, call) for metrics in score.metrics])


def _name_of(env: AnyTextEnv) -> str:
    cls = type(env.unwrapped)
    return env.spec.id if env.spec is not None else f"{cls.__module__}.{cls.__qualname__}"


def _unpack(result: Any, parts: tuple[str, ...], call: str) -> tuple[Any, ...]:
    if isinstance(result, tuple) and len(result) == len(parts):
        return result
    came = f"a tuple of {len(result)}" if isinstance(result, tuple) else f"{result!r:.200}"
    raise BadEnvironment(f"{call} returned {came}; expected a tuple of {len(parts)}: ({', '.join(parts)})")


def _checked_observation(observation: Any, call: str) -> tuple[Message, ...]:
    remedy = "return a tuple such as (loragym.messages.user('...'),)"
    if not isinstance(observation, tuple):
        raise BadEnvironment(f"{call} returned the observation {observation!r:.200}, which is no tuple; {remedy}")
    try:
        return check_messages(observation, where="observation")
    except TypeError as error:
        raise BadEnvironment(f"{call}: {error}; {remedy}") from error


def _checked_number(value: Any, name: str, call: str) -> float:
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise BadEnvironment(f"{call} returned {name}={value!r:.200}; expected a finite number, such as float(...) gives")


def _checked_bool(value: Any, name: str, call: str) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise BadEnvironment(f"{call} returned {name}={value!r:.200}; expected True or False, such as bool(...) gives")


def _checked_info(info: Any, call: str) -> dict[str, Any]:
    if not isinstance(info, dict):
        raise BadEnvironment(f"{call} returned info={info!r:.200}; expected a dict, {{}} if there is nothing to say")
    checked_metrics = _checked_metrics(info.get("metrics", {}), call)
    stop_reason = info.get("stop_reason")
    if not isinstance(stop_reason, str | None):
        raise BadEnvironment(
            f"{call} returned info['stop_reason']={stop_reason!r:.200}; expected a str, or no such key"
        )
    return {**info, "metrics": checked_metrics}


def _checked_metrics(metrics: Any, call: str) -> dict[str, float]:
    if not isinstance(metrics, Mapping):
        raise BadEnvironment(f"{call} returned info['metrics']={metrics!r:.200}; expected a dict of numbers by name")
    return {
        name: _checked_number(
            int(value) if isinstance(value, bool | np.bool_) else value, f"info['metrics'][{name!r}]", call
        )
        for name, value in metrics.items()
    }
