"""Laws of what a trainer asks for: numbered problems, rewards of groups, tools."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from gymnasium.envs.registration import EnvSpec

from ...messages import Message
from ..checks import checked_group_score, checked_reset, checked_step, env_attribute, scores_groups
from .episodes import make, replies_for
from .lawbook import BrokenLaw, law


@law("Numbered problems are the same whatever the seed.")
def numbers_its_problems(spec: EnvSpec) -> None:
    env, other = make(spec), make(spec)
    count = env_attribute(env, "num_problems")
    if count is None:
        return
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise BrokenLaw(f"num_problems is {count!r}; it is a number from 1 up, or None where problems are not numbered")
    for index in sorted({0, count // 2, count - 1}):
        first = checked_reset(env, seed=1, options={"index": int(index)})
        second = checked_reset(other, seed=2, options={"index": int(index)})
        if first[1].get("problem") != second[1].get("problem"):
            raise BrokenLaw(
                f'reset(options={{"index": {index}}}) gives one problem with seed 1 and another with seed 2; the index '
                "alone decides which problem it is"
            )
    try:
        checked_reset(env, options={"index": int(count)})
    except (ValueError, IndexError):
        pass
    else:
        raise BrokenLaw(
            f'reset(options={{"index": {count}}}) is accepted, though num_problems is {count}; raise ValueError, or '
            "held-out problems are counted wrongly"
        )
    env.close()
    other.close()


@law("Rewards of a group are one number for each episode.")
def scores_its_groups(spec: EnvSpec) -> None:
    env = make(spec)
    if not scores_groups(env):
        return
    episodes: list[list[Message]] = []
    for first in (0, 1, 2):
        opening, info = checked_reset(env, seed=3)
        messages = list(opening)
        for number, action in enumerate(replies_for(info)):
            if number < first:
                continue
            observation, _, terminated, truncated, _ = checked_step(env, action)
            said: Message = {"role": "assistant", "content": action if isinstance(action, str) else action["content"]}
            messages += [said, *observation]
            if terminated or truncated:
                break
        episodes.append(messages)
    for group in (episodes, episodes[:1]):
        checked_reset(env, seed=3)
        checked_group_score(env, copy.deepcopy(group))
    env.close()


@law("Tools have a name of their own, a description and a JSON schema of an object.")
def describes_its_tools(spec: EnvSpec) -> None:
    env = make(spec)
    checked_reset(env, seed=0)
    tools = env_attribute(env, "tools", ())
    if not isinstance(tools, tuple):
        raise BrokenLaw(f"tools is {tools!r:.80}; a tuple of ToolSpec was expected")
    for tool in tools:
        parameters = tool.get("parameters") if isinstance(tool, Mapping) else None
        is_spec = isinstance(parameters, Mapping) and all(
            isinstance(tool.get(key), str) for key in ("name", "description")
        )
        if not is_spec or cast(Mapping[str, Any], parameters).get("type") != "object":
            raise BrokenLaw(
                f"{tool!r:.200} is no tool; expected {{'name': ..., 'description': ..., 'parameters': "
                "{'type': 'object', 'properties': {...}}}"
            )
        json.dumps(tool)
    names = [tool["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise BrokenLaw(f"two tools have the same name, of {names}")
    env.close()
