"""Laws of the seed: the same one gives the same episode, wherever and beside whatever it is played."""

from __future__ import annotations

import copy
import random
import re
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec

from ..checks import checked_reset, checked_step
from .episodes import SCRIPT_TURNS, Env, Played, digest, digests_elsewhere, json_spec, make, play, replies_for, same
from .lawbook import BrokenLaw, law


@law("The same seed gives the same episode, in a new environment and in one that was used before.")
def same_seed_same_episode(spec: EnvSpec) -> None:
    used, fresh = make(spec), make(spec)
    play(used, seed=1)
    for seed in (0, 3, 2**31 - 1):
        for first in (0, 2):
            same(
                play(used, seed, first=first),
                play(fresh, seed, first=first),
                f"reset(seed={seed}) does not always give the same episode: an environment that was used before "
                "differs from a new one. Reset everything that an episode changes, and draw only from self.np_random",
            )
    same(
        play(used, None),
        play(fresh, None),
        "after reset(seed=s), the episodes of further reset() calls are not always the same. Draw only from "
        "self.np_random",
    )
    used.close()
    fresh.close()


@law("The same seed gives the same episode in another process.")
def same_episode_elsewhere(spec: EnvSpec) -> None:
    (elsewhere,) = digests_elsewhere([json_spec(spec)])
    if elsewhere != digest(spec):
        raise BrokenLaw(
            "the same seed gives another episode in another process. Look for hash() of a str, the order of a set, the "
            "time, a process id, or files that differ"
            + ("" if re.fullmatch("[0-9a-f]{64}", elsewhere) else f"; there it failed: {elsewhere}")
        )


@law("It neither uses nor disturbs the global random state of random and numpy.")
def leaves_global_randomness_alone(spec: EnvSpec) -> None:
    kept = random.getstate(), np.random.get_state()
    try:
        played = []
        for global_seed in (1, 2):
            env = make(spec)
            random.seed(global_seed)
            np.random.seed(global_seed)
            before = random.getstate(), _numpy_state()
            played.append([play(env, seed=5), play(env, seed=None, first=2)])
            for state, now, name in zip(
                before, (random.getstate(), _numpy_state()), ("random", "numpy.random"), strict=True
            ):
                if state != now:
                    raise BrokenLaw(
                        f"it changes the global state of {name}, which belongs to others. Draw only from self.np_random"
                    )
            env.close()
        same(played[0], played[1], "its episodes depend on the global random state. Draw only from self.np_random")
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])


@law("Two environments side by side do not disturb each other.")
def side_by_side(spec: EnvSpec) -> None:
    alone = make(spec)
    expected = [play(alone, seed=1), play(alone, seed=None)]
    alone.close()
    first, second = make(spec), make(spec)
    for space in ("action_space", "observation_space"):
        if getattr(first.unwrapped, space) is getattr(second.unwrapped, space):
            raise BrokenLaw(f"two environments share one {space} object, and so its random state; make it in __init__")
    got = [_interleaved(first, second, seed) for seed in (1, None)]
    first.close()
    second.close()
    same(
        expected,
        got,
        "an episode comes out differently while another environment of the same class is played. Keep the state of an "
        "episode on self, not on the class or in the module",
    )


def _interleaved(env: Env, other: Env, seed: int | None) -> Played:
    """What `play` gives, while another environment is played in between."""
    checked_reset(other, seed=99)
    opening = checked_reset(env, seed=seed)
    checked_reset(other, seed=100)
    others = replies_for({})
    steps: list[Any] = []
    other_ended = False
    for action in replies_for(opening[1]):
        if other_ended:
            checked_reset(other)
        *_, terminated, truncated, _ = checked_step(other, next(others))
        other_ended = terminated or truncated
        steps.append(checked_step(env, action))
        if steps[-1][2] or steps[-1][3] or len(steps) == SCRIPT_TURNS:
            break
    return Played(copy.deepcopy(opening), copy.deepcopy(steps))


def _numpy_state() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()
    return (name, np.asarray(keys).tolist(), *rest)
