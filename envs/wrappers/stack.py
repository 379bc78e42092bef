"""Wrappers by name, and the id that puts them on: what a command line, a JSON file and a recipe can say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium

from ..making import make_env, takes_argument
from ..named import import_path
from ..splits import Split
from .base import Env
from .flat import FlatText
from .limits import LengthBudget, TurnLimit
from .opening import FewShot, SystemPrompt
from .recording import RecordTranscripts
from .rewards import ClipReward, StopReasonReward, TurnCost

_ALL: tuple[type[gymnasium.Wrapper[Any, Any, Any, Any]], ...] = (
    TurnLimit,
    LengthBudget,
    TurnCost,
    ClipReward,
    StopReasonReward,
    RecordTranscripts,
    FewShot,
    SystemPrompt,
    FlatText,
)
WRAPPERS: dict[str, type[gymnasium.Wrapper[Any, Any, Any, Any]]] = {cls.__name__: cls for cls in _ALL}
"""Our wrappers by name."""


def wrapped(
    *,
    environment: str = "loragym/Arithmetic-v0",
    env_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[Mapping[str, Any] | str] = (),
    split: Split | None = None,
    render_mode: str | None = None,
) -> Env:
    """An environment in wrappers; `loragym/Wrapped-v0` makes it.

    Args:
        environment: the id of what is wrapped.
        env_kwargs: its arguments.
        wrappers: from the inside out, each {"wrapper": name, and the wrapper's arguments}, or the name alone. A name is
            one of `WRAPPERS` or the import path "module:Class" of one of yours.
        split: handed on to environments that have held-out problems; None leaves it to them and to `env_kwargs`.
        render_mode: handed on.

    Raises:
        ValueError, TypeError: the environment or a wrapper cannot be made.
    """
    kwargs = handed_on(environment, env_kwargs or {}, split=split, render_mode=render_mode)
    return put_on(make_env(environment, kwargs), wrappers)


def put_on(env: Env, wrappers: Sequence[Mapping[str, Any] | str]) -> Env:
    """`env` in these wrappers, from the inside out; see `wrapped`."""
    for given in wrappers:
        arguments = {"wrapper": given} if isinstance(given, str) else dict(given)
        name = arguments.pop("wrapper", None)
        if not isinstance(name, str):
            raise ValueError(f'a wrapper is {{"wrapper": "TurnLimit", "max_turns": 3}} or the like, got {given!r:.200}')
        if name in WRAPPERS:
            wrapper = WRAPPERS[name]
        elif ":" in name:
            wrapper = import_path(name, "wrapper")
        else:
            raise ValueError(
                f"there is no wrapper {name!r}; there are {', '.join(WRAPPERS)}, and your own as 'module:Class'"
            )
        try:
            env = wrapper(env, **arguments)
        except TypeError as error:
            raise ValueError(f"cannot put on the wrapper {name}: {error}") from error
    return env


def handed_on(
    env_id: str, kwargs: Mapping[str, Any], *, split: Split | None, render_mode: str | None
) -> dict[str, Any]:
    """`kwargs` with those of the arguments that are given and that the environment takes."""
    given = {"split": split, "render_mode": render_mode}
    try:
        extra = {name: value for name, value in given.items() if value is not None and takes_argument(env_id, name)}
    except (gymnasium.error.Error, ImportError):
        extra = {}  # making it gives the better error
    return {**kwargs, **extra}
