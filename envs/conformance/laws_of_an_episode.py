"""Laws of an episode: how it ends, what it hands out, what may be said in it, how it is shown."""

from __future__ import annotations

import contextlib
import copy
import io
import time
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec

from ..checks import BadEnvironment, checked_reset, checked_step, env_attribute
from .episodes import MAX_TURNS, SCRIPT_TURNS, in_space, make, play, replies_for, same, to_reply_to
from .hostile import HOSTILE_REPLIES, hostile_calls
from .lawbook import BrokenLaw, law, place_of

SLOW_SECONDS = 20.0
"""An environment that takes longer over one reply is a brake on training."""


@law("An episode ends, and is terminated or truncated, not both.")
def ends_in_one_way(spec: EnvSpec) -> None:
    env = make(spec)
    for only_silence in (True, False):
        opening, info = checked_reset(env, seed=0)
        to_reply_to(opening, "reset()")
        for number, action in enumerate(replies_for(info)):
            observation, _, terminated, truncated, info = checked_step(env, "" if only_silence else action)
            if terminated and truncated:
                raise BrokenLaw(
                    "step() gave terminated and truncated both True. An episode that reaches its end by the rules is "
                    "terminated; one that is broken off, as at a turn limit, is truncated"
                )
            if terminated or truncated:
                break
            if "stop_reason" in info:
                raise BrokenLaw(
                    f"step() gave info['stop_reason']={info['stop_reason']!r} while the episode goes on; give it with "
                    "the last step only, or end the episode"
                )
            to_reply_to(observation, "step()")
            if number + 1 == MAX_TURNS:
                raise BrokenLaw(
                    f"no episode ended within {MAX_TURNS} replies. Give it a turn limit: end with truncated=True, or "
                    "put loragym.envs.wrappers.TurnLimit around it"
                )
    env.close()


@law("Observations and infos are fresh objects: changing one changes nothing in the environment.")
def gives_fresh_objects(spec: EnvSpec) -> None:
    expected = []
    for scribbles in (False, True):
        env = make(spec)
        for seed in (2, 2):
            # Called directly, for `checked_reset` and `checked_step` hand on copies of the info.
            opening, info = env.reset(seed=seed)
            steps: list[Any] = []
            episode = [copy.deepcopy((opening, info)), steps]
            script = replies_for(copy.deepcopy(info))
            for _ in range(SCRIPT_TURNS):
                action = copy.deepcopy(next(script))
                if scribbles:
                    _scribble((opening, info))
                result = env.step(action)
                steps.append(copy.deepcopy(result))
                opening, info = result[0], result[4]
                if scribbles and isinstance(action, dict):
                    _scribble(action)
                if result[2] or result[3]:
                    break
            expected.append(episode)
        env.close()
    plain, scribbled = expected[:2], expected[2:]
    same(
        plain,
        scribbled,
        "changing an observation, an info or an action after the call changes what the environment does next. Return "
        "fresh objects each time, such as copy.deepcopy gives",
    )


@law("Any text and any tool call is a legal reply, with a defined result.")
def takes_any_reply(spec: EnvSpec) -> None:
    env = make(spec)
    checked_reset(env, seed=0)
    calls = hostile_calls(env_attribute(env, "tools", ()))
    for what, action in {**HOSTILE_REPLIES, **calls}.items():
        results = []
        for _ in range(2):
            checked_reset(env, seed=0)
            began = time.monotonic()
            try:
                results.append(checked_step(env, copy.deepcopy(action)))
            except BadEnvironment:
                raise
            except Exception as error:
                raise BrokenLaw(
                    f"{what} as a reply raised {type(error).__name__}: {error!s:.300} ({place_of(error)}). Whatever a "
                    "model says must have a result: answer it, or count it as wrong"
                ) from error
            if (seconds := time.monotonic() - began) > SLOW_SECONDS:
                raise BrokenLaw(f"{what} as a reply took {seconds:.0f} seconds; keep it under {SLOW_SECONDS:.0f}")
            in_space(env, results[-1][0], "step()")
        same(results[0], results[1], f"{what} as a reply does not always have the same result after the same seed")
        if not (results[-1][2] or results[-1][3]):
            checked_step(env, "Hello.")
    env.close()


@law('render_mode "ansi" gives the conversation as text, "human" prints it.')
def renders(spec: EnvSpec) -> None:
    env = make(spec)
    modes = env.metadata["render_modes"]
    env.close()
    if modes:
        try:
            make(spec, render_mode=modes[0]).close()
        except TypeError as error:
            raise BrokenLaw(
                f"its metadata lists the render modes {list(modes)}, but it cannot be made with "
                f"render_mode={modes[0]!r}: "
                "let __init__ take render_mode=None, and hand it on to super().__init__(render_mode=render_mode)"
            ) from error
    if "ansi" in modes:
        env = make(spec, render_mode="ansi")
        play(env, seed=0, turns=2)
        checked_reset(env, seed=0)
        checked_step(env, "\x1b[2J\ud800 a reply")
        if not isinstance(shown := env.render(), str):
            raise BrokenLaw(f'render() in mode "ansi" gave {shown!r:.80}; a str was expected')
        if "\x1b[2J" in shown:
            raise BrokenLaw(
                "render() shows control characters as they are, so that a reply can drive the reader's terminal. Use "
                "loragym.envs.transcript(messages)"
            )
        env.close()
    if "human" in modes:
        env = make(spec, render_mode="human")
        printed = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        with contextlib.redirect_stdout(printed):
            checked_reset(env, seed=0)
            checked_step(env, "ä\ud800")
            env.render()
        printed.flush()
        if not printed.buffer.getvalue():
            raise BrokenLaw('nothing is printed in render mode "human"; print each message as it comes')
        env.close()


def _scribble(thing: Any) -> None:
    """Changes all that can be changed in a nest of containers."""
    if isinstance(thing, dict):
        for value in thing.values():
            _scribble(value)
        for key in thing:
            if isinstance(thing[key], str) and key != "role":
                thing[key] = "scribbled over"
        thing["scribble"] = True
    elif isinstance(thing, list | tuple):
        for value in thing:
            _scribble(value)
        if isinstance(thing, list):
            thing.append("scribble")
    elif isinstance(thing, np.ndarray) and thing.flags.writeable and thing.dtype.kind in "iuf":
        thing[...] = 0
    elif isinstance(thing, set):
        thing.clear()
