"""What is measured: workloads as plain numbers, and the tokens that every engine gets alike.

Vocabulary: a `Group` is one prompt with its members, each of which goes on in tokens of its own; its `lengths` are
those of the members. Tokens are random, drawn from (seed, repetition): no two repetitions share any, so that no
engine's cache outlives one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and its members.

    Attributes:
        prompt: tokens of the prompt that all members share; may be 0.
        lengths: each member's own tokens after it.
        untrained: how many of each member's own tokens are not trained on.
    """

    prompt: int
    lengths: tuple[int, ...]
    untrained: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Groups of a given shape; lengths are spread evenly from `shortest` to `longest`, or evenly in their logarithm."""

    groups: int
    members: int = 1
    prompt: int = 0
    shortest: int
    longest: int
    geometric: bool = False
    untrained_share: float = 0.0

    def layout(self) -> list[Group]:
        """The groups; which member gets which length is shuffled by a fixed seed."""
        count = self.groups * self.members
        space = np.geomspace if self.geometric else np.linspace
        lengths = np.round(space(self.shortest, self.longest, count)).astype(int)
        np.random.default_rng(0).shuffle(lengths)
        return [
            Group(self.prompt, tuple(own), tuple(int(n * self.untrained_share) for n in own))
            for own in lengths.reshape(self.groups, self.members).tolist()
        ]

    @property
    def own_tokens(self) -> int:
        """Tokens beyond the prompts: what sampling yields."""
        return sum(sum(group.lengths) for group in self.layout())

    @property
    def sequence_tokens(self) -> int:
        """Tokens of all sequences, a prompt counted once for each member: the non-padding tokens of a batch."""
        return sum(group.prompt * len(group.lengths) + sum(group.lengths) for group in self.layout())

    def sampling_request(self, repetition: int, vocabulary: int) -> dict[str, Any]:
        """Prompts as token ids, and for each the lengths of its samples."""
        rng = np.random.default_rng([1, repetition])
        groups = self.layout()
        return {
            "kind": "sample",
            "prompts": [_tokens(rng, group.prompt, vocabulary) for group in groups],
            "lengths": [list(group.lengths) for group in groups],
            "seed": repetition,
        }

    def training_request(self, repetition: int, vocabulary: int) -> dict[str, Any]:
        """Sequences as token ids, and for each the first position that is trained on (at least 1)."""
        rng = np.random.default_rng([2, repetition])
        sequences, starts = [], []
        for group in self.layout():
            prompt = _tokens(rng, group.prompt, vocabulary)
            for length, untrained in zip(group.lengths, group.untrained, strict=True):
                sequences.append(prompt + _tokens(rng, length, vocabulary))
                starts.append(max(1, group.prompt + untrained))
        return {"kind": "train", "sequences": sequences, "starts": starts}


def _tokens(rng: np.random.Generator, count: int, vocabulary: int) -> list[int]:
    """Token ids from the middle of the vocabulary, for special tokens lie at its ends."""
    return rng.integers(vocabulary // 50 + 3, vocabulary - vocabulary // 50 - 3, count).tolist()
