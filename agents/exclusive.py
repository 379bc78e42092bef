"""One at a time on a base model: threads that sample and threads that learn take turns, pass by pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from .base_model import BaseModel


class OnABase(Protocol):
    @property
    def base(self) -> BaseModel: ...


S = TypeVar("S", bound=OnABase)
P = ParamSpec("P")
R = TypeVar("R")


def exclusive(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Lets one thread at a time into such methods of all that works on the same base."""

    @functools.wraps(method)
    def alone(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.base.turn:
            return method(self, *args, **kwargs)

    return alone
