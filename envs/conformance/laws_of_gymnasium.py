"""Gymnasium's laws: its checker, pickles, specs and vectors."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from ..checks import checked_reset, checked_step
from .episodes import json_spec, make, play, replies_for, same
from .lawbook import BrokenLaw, law

ANSWER_SECONDS = 60.0
"""How long a process may take to answer in a vector."""
VECTOR_TURNS = 8


@law("gymnasium.utils.env_checker.check_env has nothing to say.")
def passes_gymnasiums_checker(spec: EnvSpec) -> None:
    env = make(spec)
    made = env.spec
    subject = env if made is not None and made.additional_wrappers else env.unwrapped
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            check_env(subject)
        except Exception as error:
            raise BrokenLaw(f"check_env says: {_plain(error)}") from error
    complaints = [_plain(warning.message) for warning in warned if "unwrapped version" not in str(warning.message)]
    if complaints:
        raise BrokenLaw(f"check_env warns: {complaints[0]}")
    env.close()


@law("A pickled environment goes on where it was.")
def can_be_pickled(spec: EnvSpec) -> None:
    env = make(spec)
    _, info = checked_reset(env, seed=4)
    try:
        twin = pickle.loads(pickle.dumps(env))
    except Exception as error:
        raise BrokenLaw(
            f"it cannot be pickled: {type(error).__name__}: {error}. Keep lambdas, open files, locks and generators "
            "off self, or write __getstate__ and __setstate__"
        ) from error
    script = replies_for(info)
    for action in (next(script), next(script), next(script)):
        here, there = checked_step(env, copy.deepcopy(action)), checked_step(twin, copy.deepcopy(action))
        same(here, there, "a pickled environment does not go on as the original does")
        if here[2] or here[3]:
            break
    same(checked_reset(env), checked_reset(twin), "a pickled environment does not reset as the original does")
    env.close()
    twin.close()


@law("Its EnvSpec survives JSON, and makes the same environment again.")
def spec_survives_json(spec: EnvSpec) -> None:
    env = make(spec)
    if env.spec is None:
        raise BrokenLaw("it has no spec, so Gymnasium cannot make it again; do not set or delete self.spec")
    text = json_spec(env.spec).to_json()
    again = EnvSpec.from_json(text)
    if again.to_json() != text:
        raise BrokenLaw(
            "its EnvSpec is another one after JSON; pass only what JSON has: numbers, strings, lists, objects"
        )
    twin = make(again)
    same(play(env, seed=9), play(twin, seed=9), "made again from its EnvSpec in JSON it plays differently")
    env.close()
    twin.close()


@law("In a SyncVectorEnv it plays as alone, in both autoreset modes.")
def plays_in_a_sync_vector(spec: EnvSpec) -> None:
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        _plays_in_a_vector(spec, SyncVectorEnv, mode)


@law("In an AsyncVectorEnv, with processes of its own, it plays as alone, in both autoreset modes.")
def plays_in_an_async_vector(spec: EnvSpec) -> None:
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        _plays_in_a_vector(spec, partial(AsyncVectorEnv, shared_memory=False), mode)


def _plays_in_a_vector(spec: EnvSpec, vectorise: Callable[..., VectorEnv[Any, Any, Any]], mode: AutoresetMode) -> None:
    """Compares a vector of two with two single environments that are reset by hand as `mode` says."""
    where = f"in a vector with autoreset mode {mode.name}"
    # The limit is what makes every episode end within the turns that are played.
    kwargs = {"max_episode_steps": VECTOR_TURNS // 2}
    singles = [make(spec, **kwargs) for _ in range(2)]
    envs = vectorise([partial(make, spec, **kwargs)] * 2, autoreset_mode=mode)
    try:
        seeds: Any = [3, 4]  # VectorEnv is typed for one seed, and both of its kinds take one for each
        openings = [checked_reset(env, seed=seed) for env, seed in zip(singles, seeds, strict=True)]
        observations, _ = _in_time(envs, "reset", seeds)
        same(tuple(observations), tuple(opening for opening, _ in openings), f"{where}, reset() gives something else")
        scripts = [replies_for(info) for _, info in openings]
        done = [False, False]
        for _ in range(VECTOR_TURNS):
            actions = tuple(next(script) for script in scripts)
            expected, finals = [], []
            for i, (env, action) in enumerate(zip(singles, actions, strict=True)):
                final = None
                if mode is AutoresetMode.NEXT_STEP and done[i]:
                    row = (checked_reset(env)[0], 0.0, False, False)
                else:
                    observation, reward, terminated, truncated, _ = checked_step(env, action)
                    if mode is AutoresetMode.SAME_STEP and (terminated or truncated):
                        final, observation = observation, checked_reset(env)[0]
                    row = (observation, reward, terminated, truncated)
                done[i] = row[2] or row[3]
                expected.append(row)
                finals.append(final)
            observations, rewards, terminations, truncations, infos = _in_time(envs, "step", actions)
            got = list(zip(observations, rewards.tolist(), terminations.tolist(), truncations.tolist(), strict=True))
            same(expected, got, f"{where}, step() gives something else than alone")
            if any(final is not None for final in finals):
                same(
                    finals, list(infos.get("final_obs", ())), f"{where}, infos['final_obs'] is not the last observation"
                )
    except BaseException:
        # Not asked to end but ended: after an error some of them may still be at work, and closing waits for those.
        envs.close(**({"terminate": True} if isinstance(envs, AsyncVectorEnv) else {}))
        raise
    envs.close()
    for env in singles:
        env.close()


def _in_time(envs: VectorEnv[Any, Any, Any], call: Literal["reset", "step"], argument: Any) -> Any:
    """`envs.reset(seed=argument)` or `envs.step(argument)`, but not waiting for processes that never answer."""
    if not isinstance(envs, AsyncVectorEnv):
        return envs.reset(seed=argument) if call == "reset" else envs.step(argument)
    try:
        if call == "reset":
            envs.reset_async(seed=argument)
            return envs.reset_wait(timeout=ANSWER_SECONDS)
        envs.step_async(argument)
        return envs.step_wait(timeout=ANSWER_SECONDS)
    except multiprocessing.TimeoutError as error:
        raise BrokenLaw(
            f"in a process of its own it did not answer {call}() within {ANSWER_SECONDS:.0f} seconds. Look for locks, "
            "threads and process pools that were there before the process was forked"
        ) from error


def _plain(thing: Any) -> str:
    return re.sub(r"\x1b\[[0-9;]*m|^WARN: ", "", str(thing)).removeprefix("WARN: ").strip()
