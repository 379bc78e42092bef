"""One at a time on a base model: threads that sample and threads that learn take turns, pass by pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from .base_model import BaseModel

PATIENCE = 3600.0
"""Seconds to wait for another thread's pass; the longest ones take minutes."""


class OnABase(Protocol):
    @property
    def base(self) -> BaseModel: ...


S = TypeVar("S", bound=OnABase)
P = ParamSpec("P")
R = TypeVar("R")


def exclusive(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Lets one thread at a time into such methods of all that works on the same base.

    Raises:
        TimeoutError: another thread has been at it for longer than any pass takes.
    """

    @functools.wraps(method)
    def alone(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        if not self.base.turn.acquire(timeout=PATIENCE):
            raise TimeoutError(
                f"another thread has held the model {self.base.name} for {PATIENCE:g} s, so {method.__qualname__} "
                "cannot begin; does a reward model or an environment hang in the middle of a pass?"
            )
        try:
            return method(self, *args, **kwargs)
        finally:
            self.base.turn.release()

    return alone
