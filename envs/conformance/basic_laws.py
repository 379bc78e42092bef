"""The basic laws: where one of them is broken, the others make no sense."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping

from gymnasium.envs.registration import EnvSpec

from ..checks import BadEnvironment, checked_reset, checked_step
from .episodes import SCRIPT_TURNS, in_space, make, replies_for
from .lawbook import BrokenLaw, law, place_of


@law("It can be made, and is a gymnasium.Env.", basic=True)
def can_be_made(spec: EnvSpec) -> None:
    try:
        env = make(spec)
    except Exception as error:
        raise BrokenLaw(f"it cannot be made: {type(error).__name__}: {error}") from error
    for name, example in (("observation_space", "Messages()"), ("action_space", "Replies()")):
        if getattr(env, name, None) is None:
            raise BrokenLaw(f"it has no {name}; set self.{name} = loragym.envs.{example} in __init__")
    modes = env.metadata.get("render_modes") if isinstance(env.metadata, Mapping) else None
    if not isinstance(modes, list | tuple):
        raise BrokenLaw(
            'its metadata does not list the render modes; set metadata = {"render_modes": []} on the class, or derive '
            "from loragym.envs.TextEnv"
        )
    env.close()


@law("reset() and step() take and return what they should.", basic=True)
def keeps_the_contract(spec: EnvSpec) -> None:
    env = make(spec)
    for name, wanted in (("reset", ("seed", "options")), ("step", ("action",))):
        parameters = inspect.signature(getattr(env.unwrapped, name)).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        missing = [argument for argument in wanted if argument not in parameters]
        if name == "reset" and missing and not takes_all:
            raise BrokenLaw(
                f"reset() has no argument {missing[0]!r}; write def reset(self, *, seed=None, options=None) and begin "
                "it with super().reset(seed=seed)"
            )
    # A wrapper such as OrderEnforcing keeps the result as it is, so what is wrong with it is the environment's.
    for seed in range(3):
        opening, info = checked_reset(env, seed=seed)
        in_space(env, opening, "reset()")
        if "stop_reason" in info:
            raise BrokenLaw("reset() gives info['stop_reason'], but an episode that has just begun has not stopped")
        for number, action in enumerate(replies_for(info)):
            if action not in env.action_space:
                raise BrokenLaw(
                    f"its action_space does not contain the reply {action!r:.80}; an action is any str or Reply, as "
                    "loragym.envs.Replies() has them"
                )
            try:
                observation, _, terminated, truncated, info = checked_step(env, action)
            except BadEnvironment:
                raise
            except Exception as error:
                given = "a str" if isinstance(action, str) else "a Reply, which is a dictionary"
                raise BrokenLaw(
                    f"step() raised {type(error).__name__}: {error!s:.300} ({place_of(error)}) when it got {given}. An "
                    "action is either: loragym.messages.as_reply(action)['content'] is the text of both"
                ) from error
            in_space(env, observation, "step()")
            if terminated or truncated or number == SCRIPT_TURNS:
                break
    env.close()


@law("self.np_random is seeded by reset(seed=...).", basic=True)
def is_seeded(spec: EnvSpec) -> None:
    env = make(spec)
    states = []
    for seed in (7, 7, 8):
        checked_reset(env, seed=seed)
        generator = getattr(env.unwrapped, "_np_random", None)
        if generator is None:
            raise BrokenLaw("reset(seed=...) does not seed self.np_random; begin reset with super().reset(seed=seed)")
        states.append(json.dumps(generator.bit_generator.state, default=str))
    if states[0] != states[1]:
        raise BrokenLaw(
            "after reset(seed=7) self.np_random is not always in the same state; begin reset with "
            "super().reset(seed=seed), and draw from nothing else"
        )
    if states[0] == states[2]:
        raise BrokenLaw(
            "reset(seed=7) and reset(seed=8) leave self.np_random in the same state; hand the seed that comes on to "
            "super().reset(seed=seed)"
        )
    env.close()
