"""Guessing a hidden number from "too low" and "too high": the smallest task that takes several turns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from ...messages import Message, Reply, assistant, system, user
from ..core import Outcome, TextEnv
from ..integers import INTEGER
from ..splits import Split, SplitPool

Teacher = Literal["bisection", "possible"]
GUESS_PREFIX = "Guess:"
_GUESS = re.compile(rf"\s*{GUESS_PREFIX}\s*({INTEGER})\s*")
MALFORMED_COST = 0.1
MAX_NUMBER = 10**18
"""Keeps every number within the digits that are read, and how many there are within 64 bits."""


class GuessNumber(TextEnv):
    """The agent says `Guess: <n>` until it finds the number or has used up its turns.

    Finding the number gives reward 1 and ends the episode. A turn that is not such a guess, or that was cut off, costs
    0.1 and tells nothing. The turn limit truncates the episode, with stop reason "max_turns". Ten guesses by bisection
    find every number from 0 to 1023 but one.

    Metrics: `correct`, `turns` (used so far), `malformed` (how many of them were no guess).

    Args:
        low: the smallest number.
        high: the largest number, inclusive.
        max_turns: how many guesses the agent has.
        split: "train", "test" (about a tenth of the numbers) or None for all.
        teacher: how `solution` guesses: "bisection" halves what is left; "possible" draws from it, which keeps to the
            hints and leaves the search itself to be learnt.
        render_mode: see `TextEnv`.

    Raises:
        ValueError: the range, the turn limit or the split is empty, or there is no such teacher.
    """

    def __init__(
        self,
        *,
        low: int = 0,
        high: int = 1023,
        max_turns: int = 10,
        split: Split | None = "train",
        teacher: Teacher = "bisection",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(render_mode=render_mode)
        if teacher not in get_args(Teacher):
            raise ValueError(f"teacher is one of {get_args(Teacher)}, got {teacher!r}")
        if not -MAX_NUMBER <= low <= high <= MAX_NUMBER:
            raise ValueError(f"expected -{MAX_NUMBER} <= low <= high <= {MAX_NUMBER}, got {low=}, {high=}")
        if max_turns < 1:
            raise ValueError(f"max_turns is at least 1, got {max_turns}")
        self.low, self.high, self.max_turns, self.teacher = low, high, max_turns, teacher
        self._pool = SplitPool(high - low + 1, self._split_name, split)

    @property
    def num_problems(self) -> int | None:
        """How many numbers the split has; None if the range is too wide to list them."""
        return self._pool.count

    def begin(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        index = options.get("index")
        number = self._pool.draw(self.np_random) if index is None else self._pool.at(index)
        self._secret = self.low + number
        self._lesson = int(self.np_random.integers(2**31))
        self._turns = 0
        self._malformed = 0
        instruction = system(
            f"I think of an integer from {self.low} to {self.high}, and you find it in at most {self.max_turns} "
            f'guesses. Say "{GUESS_PREFIX} <number>" and nothing else. I tell you whether your guess is too low or '
            "too high."
        )
        return (instruction, user("What is your first guess?")), {"problem": str(self._secret)}

    def respond(self, reply: Reply) -> Outcome:
        guess = _parse_guess(reply)
        self._turns += 1
        self._malformed += guess is None
        correct = guess == self._secret
        out_of_turns = not correct and self._turns >= self.max_turns
        return Outcome(
            messages=(user(self._feedback(guess)),),
            reward=float(correct) - MALFORMED_COST * (guess is None),
            terminated=correct,
            truncated=out_of_turns,
            stop_reason="max_turns" if out_of_turns else None,
            metrics={"correct": correct, "turns": self._turns, "malformed": self._malformed},
        )

    def solution(self) -> list[Message]:
        """The teacher's guesses, of which the last one is right. Where turns run out first, the last guess is told."""
        low, high, guesses = self.low, self.high, list[int]()
        rng = np.random.default_rng(self._lesson)
        while not guesses or guesses[-1] != self._secret:
            guess = (low + high) // 2 if self.teacher == "bisection" else int(rng.integers(low, high + 1))
            if len(guesses) == self.max_turns - 1:
                guess = self._secret
            guesses.append(guess)
            low, high = (guess + 1, high) if guess < self._secret else (low, guess - 1)
        return [assistant(f"{GUESS_PREFIX} {guess}") for guess in guesses]

    def _feedback(self, guess: int | None) -> str:
        if guess is None:
            return f'That is not a guess. Say "{GUESS_PREFIX} <number>" and nothing else.'
        if guess == self._secret:
            return "Correct."
        return "Too low." if guess < self._secret else "Too high."

    def _split_name(self, number: int) -> str:
        return f"guess {self.low + number}"


def _parse_guess(reply: Reply) -> int | None:
    found = _GUESS.fullmatch(reply["content"])
    return int(found[1]) if found and reply["stop_reason"] == "stop" else None
