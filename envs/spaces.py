"""The spaces of text environments: what an agent reads (`Messages`) and what it says (`Replies`).

Membership looks at types and roles, never at the characters, so its cost does not grow with the length of the text.
`gymnasium.spaces.Text` is not used: it has an alphabet and a length limit, and shared memory garbles it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

import gymnasium
import numpy as np
from gymnasium.vector.utils import concatenate

from ..messages import ROLES, STOP_REASONS, Message, Reply, copied, reply

T = TypeVar("T")

_MAX_SAMPLED_MESSAGES = 4
_MAX_SAMPLED_CHARACTERS = 32
_FIRST_SURROGATE, _NUM_SURROGATES, _NUM_CODE_POINTS = 0xD800, 0x800, 0x110000


class _TextSpace(gymnasium.Space[T], ABC):
    """What both spaces share: no array shape, any Unicode, equal to every other space of the same class."""

    def __init__(self, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(shape=None, dtype=None, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> T:
        """Something legal, at random. `mask` and `probability` are warned about and ignored, as `Box` does."""
        if mask is not None or probability is not None:
            gymnasium.logger.warn(f"{self}.sample cannot use a mask or a probability: {mask=}, {probability=}")
        return self._draw()

    @abstractmethod
    def _draw(self) -> T:
        """Something legal, drawn with `self.np_random`."""

    def _draw_text(self) -> str:
        length = self.np_random.integers(_MAX_SAMPLED_CHARACTERS + 1)
        # Surrogates are skipped: a string with one is legal, but cannot be written as UTF-8.
        points = self.np_random.integers(_NUM_CODE_POINTS - _NUM_SURROGATES, size=length)
        return "".join(chr(point if point < _FIRST_SURROGATE else point + _NUM_SURROGATES) for point in points)


class Texts(_TextSpace[str]):
    """Any string at all, for environments that speak plain text.

    Example:
        >>> "How are you? 💬" in Texts()
        True
    """

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)

    def _draw(self) -> str:
        return self._draw_text()


class Messages(_TextSpace[tuple[Message, ...]]):
    """Observations: tuples of messages, each with a known role and a `str` content.

    Example:
        >>> ({"role": "user", "content": "How are you?"},) in Messages()
        True
        >>> "How are you?" in Messages()
        False
    """

    def contains(self, x: Any) -> bool:
        return isinstance(x, tuple) and all(
            isinstance(message, Mapping) and message.get("role") in ROLES and isinstance(message.get("content"), str)
            for message in x
        )

    def _draw(self) -> tuple[Message, ...]:
        count = self.np_random.integers(_MAX_SAMPLED_MESSAGES + 1)
        roles = [ROLES[self.np_random.integers(len(ROLES))] for _ in range(count)]
        return tuple({"role": role, "content": self._draw_text()} for role in roles)

    def to_jsonable(self, sample_n: Iterable[tuple[Message, ...]]) -> list[list[Message]]:
        return [list(sample) for sample in sample_n]

    def from_jsonable(self, sample_n: list[Any]) -> list[tuple[Message, ...]]:
        return [tuple(cast(Message, message) for message in sample) for sample in sample_n]


class _Batch(tuple[tuple[Message, ...], ...]):
    """A vector's observations. Vectors deepcopy them at every step, which is most of the time that they take."""

    def __deepcopy__(self, memo: dict[int, Any]) -> tuple[tuple[Message, ...], ...]:
        return tuple(copied(observation) for observation in self)


@concatenate.register
def _(space: Messages, items: Iterable[Any], out: Any) -> _Batch:
    return _Batch(items)


class Replies(_TextSpace[Reply | str]):
    """Actions: a `str`, or an assistant's message that may say why it ended. `as_reply` accepts just these.

    Example:
        >>> "Fine." in Replies()
        True
        >>> {"role": "assistant", "content": "Fi", "stop_reason": "length"} in Replies()
        True
    """

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) or (
            isinstance(x, Mapping)
            and x.get("role") == "assistant"
            and isinstance(x.get("content"), str)
            and x.get("stop_reason", "stop") in STOP_REASONS
        )

    def _draw(self) -> Reply | str:
        text = self._draw_text()
        if self.np_random.integers(2):
            return text
        return reply(text, STOP_REASONS[self.np_random.integers(len(STOP_REASONS))])
