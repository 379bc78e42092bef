"""Countdown: reach a target from a few numbers. Every problem can be solved."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from ...messages import Reply, assistant, user
from ..core import Outcome, ProblemEnv
from ..splits import Split, is_held_out
from .grading.extraction import extract

MAX_CHARACTERS = 200
"""The longest answer that is read."""
MAX_DEPTH = 20
"""How deep brackets may stand in one another."""
MAX_DRAWS = 20_000
OPERATIONS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_TOKEN = re.compile(r"\s*(?:([0-9]{1,9})(?![0-9])|([-+*/(){}=]|\\[dt]?frac(?![A-Za-z])))", re.ASCII)
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "[": "(", "]": ")", "$": " "})
_LATEX = re.compile(r"\\(times|cdot|div|left|right|,|!|;)(?![A-Za-z])")
_LATEX_SIGNS = {"times": "*", "cdot": "*", "div": "/"}


class Numbers(NamedTuple):
    """Numbers to use, a target to reach, and one way to reach it."""

    numbers: tuple[int, ...]
    target: int
    solution: str

    @property
    def question(self) -> str:
        *first, last = map(str, self.numbers)
        return f"Make {self.target} from {', '.join(first)} and {last}."


EXAMPLES = (Numbers((2, 3, 4), 10, "2 * 3 + 4"), Numbers((5, 1, 2), 8, "5 + 1 + 2"))
"""Problems whose solutions are shown first."""


class Unreadable(ValueError):
    """The text is no expression of whole numbers; the message says why."""


class Expression(NamedTuple):
    """What an expression is worth, and the numbers in it."""

    value: Fraction
    numbers: tuple[int, ...]


class Countdown(ProblemEnv[Numbers]):
    r""" "Make 24 from 3, 5 and 9.", to be answered with an expression such as `3 * 5 + 9`, and nothing else.

    Operations are +, -, *, / and brackets; results on the way may be fractions. An answer may add what it is worth
    (`3 * 5 + 9 = 24`). With `boxed` there may be any reasoning, and the expression stands in `\boxed{...}`.

    Problems are made up by combining numbers, so each has a solution. About a tenth of them is held out as the test
    split; which ones depends on the numbers and the target alone. Metrics: those of `ProblemEnv`, and `distance`, how
    far a well formed answer is from the target (as a share of it, at most 1).

    Args:
        count: how many numbers there are, 2 to 6; or the fewest and the most of them, such as (2, 3).
        low: the smallest number, from 1.
        high: the largest number, up to 1,000.
        max_target: targets are whole numbers from 1 to this one.
        operations: those that solutions are made with, of "+-*/"; an answer may use all of them.
        use_all: whether every number has to be used.
        partial_credit: what a well formed answer earns that misses the target; 0 for nothing.
        boxed: whether the expression is looked for in a box.
        few_shot: how many worked examples go in front, at most `len(EXAMPLES)`.
        split: "train", "test", or None for all problems.
        system_prompt: an instruction that goes before everything else; None for the rules of the game if there are no
            worked examples or answers are boxed, and for nothing otherwise.
        format_coef: see `ProblemEnv`.
        render_mode: see `TextEnv`.

    Raises:
        ValueError: an argument is out of its range, or there are no such problems.
    """

    def __init__(
        self,
        *,
        count: int | Sequence[int] = 3,
        low: int = 1,
        high: int = 9,
        max_target: int = 50,
        operations: str = "+-*",
        use_all: bool = True,
        partial_credit: float = 0.0,
        boxed: bool = False,
        few_shot: int = 2,
        split: Split | None = "train",
        system_prompt: str | None = None,
        format_coef: float = 0.1,
        render_mode: str | None = None,
    ) -> None:
        fewest, most = (count, count) if isinstance(count, int) else (min(count), max(count))
        if not 2 <= fewest <= most <= 6 or (not isinstance(count, int) and len(count) != 2):
            raise ValueError(f"count is from 2 to 6, or two such numbers, got {count}")
        if not 1 <= low < high <= 1000:
            raise ValueError(f"low and high are from 1 to 1,000, low below high, got {low} and {high}")
        if not operations or set(operations) - set(OPERATIONS) or len(set(operations)) < len(operations):
            raise ValueError(f"operations are of {', '.join(OPERATIONS)}, each at most once, got {operations!r}")
        if not 1 <= max_target <= 10**6:
            raise ValueError(f"max_target is from 1 to 1,000,000, got {max_target}")
        if not 0 <= partial_credit < 1:
            raise ValueError(f"partial_credit is at least 0 and below 1, got {partial_credit}")
        if not 0 <= few_shot <= len(EXAMPLES):
            raise ValueError(f"few_shot is from 0 to {len(EXAMPLES)}, got {few_shot}")
        if split not in ("train", "test", None):
            raise ValueError(f'split is "train", "test" or None for everything, got {split!r}')
        self.boxed, self.use_all = boxed, use_all
        if system_prompt is None and (boxed or not few_shot):
            system_prompt = self._rules()
        shown = [(problem.question, self.reference_answer(problem)) for problem in EXAMPLES[:few_shot]]
        super().__init__(
            system_prompt=system_prompt,
            few_shot=[m for asked, said in shown for m in (user(asked), assistant(said))],
            format_coef=format_coef,
            render_mode=render_mode,
        )
        self.count, self.low, self.high = (fewest, most), low, high
        self.max_target, self.operations = max_target, operations
        self.partial_credit, self.split = partial_credit, split
        self.draw_problem(np.random.default_rng(0))

    def draw_problem(self, rng: np.random.Generator) -> Numbers:
        for _ in range(MAX_DRAWS):
            fewest, most = self.count
            # No draw where there is no choice, so that a fixed count has the problems that it always had.
            count = fewest if fewest == most else int(rng.integers(fewest, most + 1))
            numbers = tuple(int(n) for n in rng.integers(self.low, self.high + 1, size=count))
            solution, value = _combined(numbers, self.operations, rng)
            if value is None or value.denominator != 1 or not 1 <= value <= self.max_target:
                continue
            if not self.use_all and value in numbers:
                continue  # the number alone would do
            problem = Numbers(numbers, int(value), solution)
            name = f"{sorted(numbers)} {problem.target}"
            if self.split is None or is_held_out(name) == (self.split == "test"):
                return problem
        raise ValueError(
            f"no problem of {'-'.join(map(str, dict.fromkeys(self.count)))} numbers from {self.low} to {self.high} "
            f"with a target up to {self.max_target} was found in {MAX_DRAWS} draws, split {self.split!r}; widen the "
            "ranges"
        )

    def question(self, problem: Numbers) -> str:
        return problem.question

    def reference_answer(self, problem: Numbers) -> str:
        return f"\\boxed{{{problem.solution}}}" if self.boxed else problem.solution

    def is_correct(self, problem: Numbers, answer: str) -> bool:
        found = self._read(problem, answer)
        return found is not None and found.value == problem.target

    def is_well_formed(self, answer: str) -> bool:
        return self._read(self._problem, answer) is not None

    def respond(self, reply: Reply) -> Outcome:
        outcome, found = super().respond(reply), self._read(self._problem, reply["content"])
        if found is None:
            return outcome
        distance = min(1.0, float(abs(found.value - self._problem.target) / self._problem.target))
        credit = self.partial_credit if distance and reply["stop_reason"] == "stop" else 0.0
        return replace(outcome, reward=outcome.reward + credit, metrics={**outcome.metrics, "distance": distance})

    def _rules(self) -> str:
        use = "every number exactly once" if self.use_all else "each number at most once"
        form = "Put the expression in \\boxed{}." if self.boxed else "Answer with the expression alone."
        return f"Write an expression that is worth the target. Use {use}, +, -, *, / and brackets. {form}"

    def _read(self, problem: Numbers, answer: str) -> Expression | None:
        """The answer's expression, if it is one and uses the numbers as it may."""
        if self.boxed:
            content, problem_with_it = extract(answer)
            if content is None or problem_with_it is not None:
                return None
            answer = content
        try:
            found = read_expression(answer)
        except Unreadable:
            return None
        used, given = Counter(found.numbers), Counter(problem.numbers)
        return found if (used == given if self.use_all else used <= given) else None


def read_expression(text: str) -> Expression:
    """The expression that a text is, with or without what it is worth after an equals sign.

    Reading is by recursive descent; nothing is evaluated but sums, differences, products and quotients of fractions.

    Raises:
        Unreadable: it is none, or is longer or deeper than answers are, divides by zero, or states a wrong worth.
    """
    if len(text) > MAX_CHARACTERS:
        raise Unreadable(f"longer than {MAX_CHARACTERS} characters")
    text = _LATEX.sub(lambda sign: _LATEX_SIGNS.get(sign[1], " "), text)
    tokens, at, text = list[str](), 0, text.translate(_SIGNS).strip().rstrip(".").rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise Unreadable(f"{text[at:][:10]!r} is no number, sign or bracket")
        tokens.append(match[1] or match[2])
        at = match.end()
    expression, _, stated = _partition(tokens)
    reader = _Reader(expression)
    found = reader.sum(0)
    if reader.tokens:
        raise Unreadable(f"unexpected {reader.tokens[0]!r}")
    if stated is not None and (len(stated) != 1 or not stated[0].isdigit() or int(stated[0]) != found):
        raise Unreadable("what stands after the equals sign is not what the expression is worth")
    return Expression(found, tuple(reader.numbers))


def _partition(tokens: list[str]) -> tuple[list[str], str, list[str] | None]:
    if "=" not in tokens:
        return tokens, "", None
    at = tokens.index("=")
    return tokens[:at], "=", tokens[at + 1 :]


class _Reader:
    def __init__(self, tokens: list[str]) -> None:
        self.tokens = list(tokens)
        self.numbers: list[int] = []

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while self.tokens and self.tokens[0] in "+-":
            value = OPERATIONS[self.tokens.pop(0)](value, self.product(depth))
        return value

    def product(self, depth: int) -> Fraction:
        value = self.atom(depth)
        while self.tokens and self.tokens[0] in "*/":
            sign, right = self.tokens.pop(0), self.atom(depth)
            if sign == "/" and right == 0:
                raise Unreadable("a division by zero")
            value = OPERATIONS[sign](value, right)
        return value

    def atom(self, depth: int) -> Fraction:
        token = self.tokens.pop(0) if self.tokens else ""
        if token == "(":
            return self.rest_of_bracket(")", depth)
        if token.startswith("\\"):
            above, below = (self.bracket("{", "}", depth) for _ in range(2))
            if below == 0:
                raise Unreadable("a division by zero")
            return above / below
        if not token.isdigit():
            raise Unreadable(f"a number was expected, not {token!r}")
        self.numbers.append(int(token))
        return Fraction(int(token))

    def bracket(self, opening: str, closing: str, depth: int) -> Fraction:
        if not self.tokens or self.tokens.pop(0) != opening:
            raise Unreadable(f"{opening!r} was expected")
        return self.rest_of_bracket(closing, depth)

    def rest_of_bracket(self, closing: str, depth: int) -> Fraction:
        if depth >= MAX_DEPTH:
            raise Unreadable(f"brackets deeper than {MAX_DEPTH}")
        value = self.sum(depth + 1)
        if not self.tokens or self.tokens.pop(0) != closing:
            raise Unreadable("a bracket is not closed")
        return value


def _combined(numbers: tuple[int, ...], operations: str, rng: np.random.Generator) -> tuple[str, Fraction | None]:
    """The numbers combined at random: the expression, and what it is worth, or None if it divides by zero."""
    parts = [(str(n), Fraction(n), "") for n in rng.permutation(numbers)]
    while len(parts) > 1:
        at = int(rng.integers(len(parts) - 1))
        (left, x, x_sign), (right, y, y_sign) = parts[at : at + 2]
        sign = operations[int(rng.integers(len(operations)))]
        if sign == "/" and y == 0:
            return "", None
        if sign in "*/":
            left = f"({left})" if x_sign in ("+", "-") else left
        if (sign in "*/" and y_sign) or (sign == "-" and y_sign in ("+", "-")):
            right = f"({right})"
        parts[at : at + 2] = [(f"{left} {sign} {right}", OPERATIONS[sign](x, y), sign)]
    return parts[0][0], parts[0][1]
