"""What laws are made of: environments from specs, scripted episodes, and telling two of them apart."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from ...messages import Message, Reply, reply
from ..checks import checked_reset, checked_step
from .lawbook import BrokenLaw, path_of

MAX_TURNS = 1000
"""An episode that goes on for longer than so many replies is taken for one without end."""
SCRIPT_TURNS = 6

Env = gymnasium.Env[Any, Any]
Action = Reply | str


def make(spec: EnvSpec, **kwargs: Any) -> Env:
    """The environment that the spec describes, without Gymnasium's own checker around it."""
    return gymnasium.make(spec, disable_env_checker=True, **kwargs)


def replies_for(info: Mapping[str, Any]) -> Iterator[Action]:
    """What an agent says in an episode that laws play: nothing useful, then the reference answer where there is one."""
    yield "Hello."
    yield reply("I was cut off in the mid", "length")
    reference = info.get("reference")
    while True:
        yield reference if isinstance(reference, str) else "Guess: 7"
        yield ""
        yield {**reply("Let me see.", "malformed"), "problem": "there was no such thing"}


class Played(NamedTuple):
    """An episode: what the reset gave, then what each step gave."""

    opening: tuple[Any, dict[str, Any]]
    steps: list[tuple[Any, float, bool, bool, dict[str, Any]]]


def play(env: Env, seed: int | None, turns: int = SCRIPT_TURNS, first: int = 0) -> Played:
    """An episode of at most so many of the replies of `replies_for`, from the `first` on."""
    opening = checked_reset(env, seed=seed)
    steps = []
    for number, action in enumerate(replies_for(opening[1])):
        if number < first:
            continue
        steps.append(checked_step(env, action))
        if steps[-1][2] or steps[-1][3] or len(steps) == turns:
            break
    return Played(copy.deepcopy(opening), copy.deepcopy(steps))


def digest(spec: EnvSpec, seeds: Sequence[int] = (0, 1, 12345)) -> str:
    """A hash of what some seeds' episodes are like, the same in every process in which they are the same."""
    env = make(spec)
    played = [[play(env, seed), play(env, seed, first=2)] for seed in seeds]
    env.close()
    # Sets have no order that two processes share; dictionaries have the order in which they were filled.
    return hashlib.sha256(json.dumps(played, default=_in_order).encode()).hexdigest()


def digests_elsewhere(specs: Sequence[EnvSpec], timeout: float = 240.0) -> list[str]:
    """`digest` of each spec, from one other process with another hash seed; an error's text where there was one.

    Raises:
        BrokenLaw: the process ended with an error, or did not answer within `timeout` seconds.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
    environment["PYTHONHASHSEED"] = "271828" if environment.get("PYTHONHASHSEED") != "271828" else "314159"
    try:
        done = subprocess.run(
            [sys.executable, "-m", __package__],
            input=json.dumps([spec.to_json() for spec in specs]),
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise BrokenLaw(
            f"another process did not play the episode within {timeout:.0f} seconds. Look for what waits for this "
            "process there, such as a lock, a port or a file"
        ) from error
    if done.returncode:
        raise BrokenLaw(f"another process could not play the episode:\n{done.stderr.strip()[-2000:]}")
    digests: list[str] = json.loads(done.stdout.splitlines()[-1])
    return digests


def same(first: Any, second: Any, otherwise: str) -> None:
    if first != second:
        raise BrokenLaw(f"{otherwise}. {_difference(first, second)}")


def _difference(first: Any, second: Any, path: str = "") -> str:
    """Where two results part."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in [*first, *(key for key in second if key not in first)]:
            if key not in first or key not in second or first[key] != second[key]:
                return _difference(first.get(key), second.get(key), f"{path}[{key!r}]")
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            if one != other:
                return _difference(one, other, f"{path}[{index}]")
    return f"Once it was {first!r:.120}, once {second!r:.120}" + (f" (at {path})" if path else "")


def in_space(env: Env, observation: Any, call: str) -> None:
    if observation not in env.observation_space:
        raise BrokenLaw(
            f"{call} returned {observation!r:.120}, which is not in its observation_space {env.observation_space}; "
            "messages are in loragym.envs.Messages()"
        )


def to_reply_to(observation: Sequence[Message], call: str) -> None:
    if not observation:
        raise BrokenLaw(f"{call} returned no messages while the episode goes on; the agent needs something to reply to")
    if observation[-1]["role"] == "assistant":
        raise BrokenLaw(
            f"the last message that {call} returned is the assistant's; the agent replies to a user, tool or system "
            "message"
        )


def _in_order(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    # Where an object lies in memory is not what an episode is like.
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def json_spec(spec: EnvSpec) -> EnvSpec:
    """The spec with a path instead of a class or function.

    Raises:
        BrokenLaw: an argument is nothing that JSON has.
    """
    spec = copy.deepcopy(spec)
    if callable(spec.entry_point):
        spec.entry_point = path_of(spec.entry_point)
    try:
        spec.to_json()
    except (TypeError, ValueError) as error:
        raise BrokenLaw(
            f"its EnvSpec cannot be written as JSON: {error}. Make it with arguments that JSON has; functions by their "
            "import path"
        ) from error
    return spec
