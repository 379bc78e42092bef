"""Sums, differences and products of two integers: the smallest task on which training shows."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ...messages import Message, assistant, user
from ..core import ProblemEnv
from ..integers import parse_integer
from ..splits import Split, SplitPool

OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
MAX_OPERAND = 10**8
"""Keeps every answer within the digits that are read, and the number of problems within 64 bits."""
WORKED_PAIRS = ((4, 5), (7, 2), (3, 6), (8, 1), (2, 9), (6, 4), (5, 3), (1, 7))


class Calculation(NamedTuple):
    x: int
    operation: str
    y: int

    @property
    def question(self) -> str:
        return f"What is {self.x} {self.operation} {self.y}?"

    @property
    def answer(self) -> int:
        return OPERATIONS[self.operation](self.x, self.y)

    @property
    def split_name(self) -> str:
        # 2 + 3 and 3 + 2 share a name, or the test split would be known from its mirror image in the training split.
        x, y = (self.x, self.y) if self.operation == "-" else sorted((self.x, self.y))
        return f"{x} {self.operation} {y}"


class Arithmetic(ProblemEnv[Calculation]):
    """ "What is x + y?", to be answered with an integer and nothing else.

    About a tenth of all problems are held out as the test split; which ones depends on the problem alone. The worked
    examples are the same for all problems, so all prompts begin alike.

    Args:
        operation: one or more of "+", "-" and "*", such as "+-".
        low: the smallest operand.
        high: the largest operand, inclusive.
        few_shot: how many worked examples go in front, at most `len(WORKED_PAIRS)`.
        split: "train", "test", or None for all problems.
        system_prompt: see `ProblemEnv`.
        format_coef: see `ProblemEnv`.
        render_mode: see `TextEnv`.

    Raises:
        ValueError: an argument is out of its range, or the split has no problems.
    """

    def __init__(
        self,
        *,
        operation: str = "+",
        low: int = 0,
        high: int = 20,
        few_shot: int = 1,
        split: Split | None = "train",
        system_prompt: str | None = None,
        format_coef: float = 0.1,
        render_mode: str | None = None,
    ) -> None:
        if not operation or len(set(operation)) < len(operation) or not set(operation) <= set(OPERATIONS):
            raise ValueError(f"operation is made of {', '.join(OPERATIONS)}, each at most once, got {operation!r}")
        if not -MAX_OPERAND <= low <= high <= MAX_OPERAND:
            raise ValueError(f"expected -{MAX_OPERAND} <= low <= high <= {MAX_OPERAND}, got {low=}, {high=}")
        if not 0 <= few_shot <= len(WORKED_PAIRS):
            raise ValueError(f"few_shot is from 0 to {len(WORKED_PAIRS)}, got {few_shot}")
        super().__init__(
            system_prompt=system_prompt,
            few_shot=_worked_examples(operation, few_shot),
            format_coef=format_coef,
            render_mode=render_mode,
        )
        self.operation, self.low, self.high = operation, low, high
        self._pool = SplitPool(len(operation) * (high - low + 1) ** 2, self._split_name, split)

    @property
    def num_problems(self) -> int | None:
        """How many problems the split has; None if the range is too wide to list them."""
        return self._pool.count

    def draw_problem(self, rng: np.random.Generator) -> Calculation:
        return self._calculation(self._pool.draw(rng))

    def problem_at(self, index: int) -> Calculation:
        return self._calculation(self._pool.at(index))

    def question(self, problem: Calculation) -> str:
        return problem.question

    def reference_answer(self, problem: Calculation) -> str:
        return str(problem.answer)

    def is_correct(self, problem: Calculation, answer: str) -> bool:
        return parse_integer(answer) == problem.answer

    def is_well_formed(self, answer: str) -> bool:
        return parse_integer(answer) is not None

    def _calculation(self, number: int) -> Calculation:
        width = self.high - self.low + 1
        pair, operation = divmod(number, len(self.operation))
        x, y = divmod(pair, width)
        return Calculation(self.low + x, self.operation[operation], self.low + y)

    def _split_name(self, number: int) -> str:
        return self._calculation(number).split_name


def _worked_examples(operation: str, count: int) -> list[Message]:
    examples: list[Message] = []
    for number, (x, y) in enumerate(WORKED_PAIRS[:count]):
        calculation = Calculation(x, operation[number % len(operation)], y)
        examples += [user(calculation.question), assistant(str(calculation.answer))]
    return examples
