"""Fixed train/test splits of what an environment can ask.

A hash of the item's name decides, so the split is the same in every process, on every machine and for every range of
items, and nothing has to be listed to know where an item belongs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Literal, get_args

import numpy as np

Split = Literal["train", "test"]
TEST_SHARE = 0.1
MAX_LISTED = 250_000
"""A pool is listed, and so can be picked from by index, if it is cut from at most this many items."""


def hash_position(name: str) -> float:
    """Where `name` falls in the unit interval: uniform over names, the same always."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def is_held_out(name: str) -> bool:
    """Whether the item of this name belongs to the test split; about one in ten does."""
    return hash_position(name) < TEST_SHARE


class SplitPool:
    """The items of one split, out of those numbered 0 to `size - 1`.

    Args:
        size: how many items there are in both splits together.
        name_of: the name of the item with a given number; items of the same name are always in the same split.
        split: "train", "test", or None for all items.
        held_out: whether the item of a name belongs to the test split.

    Raises:
        ValueError: the split is unknown or has no items.
    """

    def __init__(
        self,
        size: int,
        name_of: Callable[[int], str],
        split: Split | None,
        held_out: Callable[[str], bool] = is_held_out,
    ) -> None:
        if split not in (*get_args(Split), None):
            raise ValueError(f"split is one of {get_args(Split)} or None for everything, got {split!r}")
        self.size, self.name_of, self.split, self.held_out = size, name_of, split, held_out
        if not any(number in self for number in range(size)):
            raise ValueError(f"split {split!r} has none of the {size} items; widen the range, or ask for split=None")

    def __contains__(self, number: int) -> bool:
        return self.split is None or self.held_out(self.name_of(number)) == (self.split == "test")

    def draw(self, rng: np.random.Generator) -> int:
        """The number of an item of the split, uniformly at random."""
        while (number := int(rng.integers(self.size))) not in self:
            pass
        return number

    @property
    def count(self) -> int | None:
        """How many items the split has; None if the pool is too big to list."""
        return len(self._members) if self.size <= MAX_LISTED else None

    def at(self, index: int) -> int:
        """The number of the item at `index` in a list of the split that is shuffled once and for all.

        Raises:
            IndexError: there is no such index, or the pool is too big to list.
        """
        if self.count is None:
            raise IndexError(f"{self.size} items are too many to list; at most {MAX_LISTED} are")
        return self._members[index]

    @cached_property
    def _members(self) -> tuple[int, ...]:
        members = (number for number in range(self.size) if number in self)
        return tuple(sorted(members, key=lambda number: hash_position(self.name_of(number))))
