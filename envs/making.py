"""Making environments by id, with errors that say what to do, and asking what arguments one takes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

from .secrets import redacted, redacted_message

TextEnvironment = gymnasium.Env[Any, Any]


def make_env(env_id: str | EnvSpec, kwargs: Mapping[str, Any] | None = None) -> TextEnvironment:
    """`gymnasium.make` without Gymnasium's own checker, for what the checker would look at `checked_step` looks at.

    Args:
        env_id: such as "loragym/Arithmetic-v0", or "your_module:YourId-v0" for one that your module registers.
        kwargs: the environment's arguments.

    Raises:
        ValueError: it cannot be made; the error says why.
    """
    name = env_id if isinstance(env_id, str) else env_id.id
    try:
        return gymnasium.make(env_id, disable_env_checker=True, **dict(kwargs or {}))
    except (gymnasium.error.Error, TypeError, ValueError, ImportError) as error:
        raise ValueError(
            f"cannot make the environment {name!r} with {redacted(dict(kwargs or {}))}: "
            f"{redacted_message(str(error))}. An environment of your own is named as 'your_module:YourId-v0', so that "
            "the module that registers it is imported"
        ) from error


def takes_argument(env_id: str, argument: str) -> bool:
    """Whether an environment has this argument, itself or as one of those that it passes on to its base class.

    Raises:
        gymnasium.error.Error, ImportError: there is no such id.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    entry_point = gymnasium.spec(name).entry_point
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    if not inspect.isclass(creator):
        return creator is not None and argument in inspect.signature(creator).parameters
    # `**options` is what the next class in line takes.
    for cls in creator.__mro__:
        if "__init__" in vars(cls):
            parameters = inspect.signature(_initialiser(cls)).parameters
            if argument in parameters:
                return True
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                return False
    return False


def _initialiser(cls: type) -> Callable[..., None]:
    method: Callable[..., None] = vars(cls)["__init__"]
    return method
