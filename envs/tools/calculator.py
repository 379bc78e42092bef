"""Word problems with numbers too large to work out in the head, and a calculator to call."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np

from ...messages import Reply, reply
from ..integers import parse_integer
from ..splits import Split, is_held_out
from .env import ToolProblemEnv
from .exact import evaluate, written
from .tool import tool

ANSWER = "Answer:"
SYSTEM_PROMPT = (
    "Solve the problem. Do not work out the arithmetic yourself: call the tool calculate for it. End your final reply "
    f'with a line "{ANSWER} <integer>".'
)
NUM_PROBLEMS = 1_000_000
MAX_DIGITS = 6
"""With operands of at most six digits no answer has more digits than are read."""
_INDEXED = 0xCA1C  # tells numbered problems apart from other uses of the same number as a seed
_SEPARATED = re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})+", re.ASCII)


class WordProblem(NamedTuple):
    """A problem with the expression that solves it.

    `split_name` is the same for all ways to tell the same sum.
    """

    text: str
    expression: str
    answer: int
    split_name: str


class _Story(NamedTuple):
    """A kind of problem: ways to tell it, the expression that solves it, and how its numbers are drawn."""

    tellings: tuple[str, ...]
    expression: str
    numbers: Callable[[_Draw], Sequence[int]]
    name: Callable[..., str]


class _Draw:
    """Numbers of about as many digits as asked for."""

    def __init__(self, rng: np.random.Generator, digits: int) -> None:
        self._rng, self._digits = rng, digits

    def large(self) -> int:
        return int(self._rng.integers(10 ** (self._digits - 1) + 1, 10**self._digits))

    def between(self, low: int, high: int) -> int:
        return int(self._rng.integers(low, high + 1))

    def below(self, number: int) -> int:
        return int(self._rng.integers(1, number))


def _left_over(draw: _Draw) -> tuple[int, ...]:
    a, b = draw.large(), draw.large()
    return a, b, draw.below(a * b)


def _shared(draw: _Draw) -> tuple[int, ...]:
    each, people = draw.large(), draw.large()
    return each * people, people


def _packed(draw: _Draw) -> tuple[int, ...]:
    size = draw.large()
    return size * draw.large() + draw.below(size), size


def _days_off(draw: _Draw) -> tuple[int, ...]:
    days = draw.large()
    return draw.large(), days, draw.below(days)


def _pond(draw: _Draw) -> tuple[int, ...]:
    a, b = draw.large(), draw.large()
    return a, b, draw.below(a), draw.below(b)


def _mean(draw: _Draw) -> tuple[int, ...]:
    a, b = draw.large(), draw.large()
    return a, b, draw.large() * 3 - (a + b) % 3


_STORIES = (
    _Story(
        (
            "{name} packs {0} crates with {1} {thing} each. How many {thing} is that?",
            "A factory makes {0} {thing} a day. How many {thing} does it make in {1} days?",
            "There are {0} shelves in a storehouse, and {1} {thing} on each. How many {thing} are there?",
        ),
        "{0} * {1}",
        lambda draw: (draw.large(), draw.large()),
        lambda a, b: f"{min(a, b)} * {max(a, b)}",
    ),
    _Story(
        (
            "A storehouse receives {0} pallets of {1} {thing}. {2} of the {thing} are broken. How many are whole?",
            "{name} buys {0} boxes of {1} {thing} each and sells {2} {thing}. How many {thing} does {name} have left?",
        ),
        "{0} * {1} - {2}",
        _left_over,
        lambda a, b, c: f"{min(a, b)} * {max(a, b)} - {c}",
    ),
    _Story(
        (
            "{name} orders {0} boxes of {1} {thing} and {2} boxes of {3} {thing}. How many {thing} is that in all?",
            "One ship carries {0} containers with {1} {thing} each, another {2} containers with {3} each. "
            "How many {thing} do both carry?",
        ),
        "{0} * {1} + {2} * {3}",
        lambda draw: (draw.large(), draw.large(), draw.large(), draw.large()),
        lambda a, b, c, d: " + ".join(f"{x} * {y}" for x, y in sorted((sorted((a, b)), sorted((c, d))))),
    ),
    _Story(
        (
            "{0} {thing} are shared equally among {1} people. How many {thing} does each get?",
            "{name} puts {0} {thing} into {1} boxes, the same number in each. How many {thing} are in a box?",
        ),
        "{0} / {1}",
        _shared,
        lambda a, b: f"{a} / {b}",
    ),
    _Story(
        (
            "{name} packs {0} {thing} into full boxes of {1}. How many {thing} are left over?",
            "{0} {thing} are loaded onto lorries, {1} on each. The last lorry takes what is left. How many {thing} "
            "does it take?",
        ),
        "{0} % {1}",
        _packed,
        lambda a, b: f"{a} % {b}",
    ),
    _Story(
        (
            "A machine makes {0} {thing} a day. Of {1} days it stands still on {2}. How many {thing} does it make?",
            "{name} sells {0} {thing} a day, and is closed on {2} of {1} days. How many {thing} does {name} sell?",
        ),
        "{0} * ({1} - {2})",
        _days_off,
        lambda a, b, c: f"{a} * ({b} - {c})",
    ),
    _Story(
        (
            "A field is {0} metres long and {1} metres wide. A pond in it is {2} by {3} metres. How many square metres "
            "of land are there?",
        ),
        "{0} * {1} - {2} * {3}",
        _pond,
        lambda a, b, c, d: f"{min(a, b)} * {max(a, b)} - {min(c, d)} * {max(c, d)}",
    ),
    _Story(
        (
            "A shop sold {0}, {1} and {2} {thing} in three years. What is the mean of the three years?",
            "Three lorries carry {0}, {1} and {2} {thing}. The load is to be shared out so that all carry the same. "
            "How many {thing} does each carry then?",
        ),
        "({0} + {1} + {2}) / 3",
        _mean,
        lambda *numbers: "mean of {}, {}, {}".format(*sorted(numbers)),
    ),
    _Story(
        (
            "A colony of {0} cells doubles every hour. How many cells are there after {1} hours?",
            "{name} has {0} {thing} and doubles their number {1} times. How many {thing} does {name} have then?",
        ),
        "{0} * 2 ** {1}",
        lambda draw: (draw.large(), draw.between(6, 24)),
        lambda a, n: f"{a} * 2 ** {n}",
    ),
)
_NAMES = ("Ada", "Bela", "Chen", "Dana", "Emeka", "Farah", "Goran", "Hana", "Ines", "Jonas", "Kiri", "Lena")
_THINGS = (
    "apples",
    "bolts",
    "books",
    "bottles",
    "bricks",
    "coins",
    "cups",
    "lamps",
    "pens",
    "screws",
    "shirts",
    "tiles",
)


class Calculator(ToolProblemEnv[WordProblem]):
    """A word problem; the agent calls `calculate(expression)` as often as it likes, then says `Answer: <integer>`.

    About a tenth of all sums are held out as the test split, however they are told. The numbered problems are drawn
    once and for all. The answer counts if it is right, whether the tool was called or not.

    Metrics: those of `ToolProblemEnv`.

    Args:
        digits: how many digits the numbers have, from 2 to 6.
        split: "train", "test", or None for all problems.
        system_prompt: an instruction that goes first; by default one that tells of the tool and the answer's form.
        options: see `ToolProblemEnv`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        digits: int = 4,
        split: Split | None = "train",
        system_prompt: str | None = SYSTEM_PROMPT,
        **options: Any,
    ) -> None:
        if not 2 <= digits <= MAX_DIGITS:
            raise ValueError(f"digits is from 2 to {MAX_DIGITS}, got {digits!r}")
        if split not in (*get_args(Split), None):
            raise ValueError(f"split is one of {get_args(Split)} or None for everything, got {split!r}")
        # Every expression takes milliseconds, so a thread to time it would only cost.
        super().__init__(system_prompt=system_prompt, **{"time_limit": None, **options})
        self.digits, self.split = digits, split

    @tool(concurrent=True)
    def calculate(self, expression: str) -> str:
        """Works out an arithmetic expression exactly.

        Args:
            expression: numbers with + - * / // % ** and parentheses, such as "(17 + 4) * 3". It may call abs, min, max,
                sum, floor, ceil, round, sqrt, gcd, lcm and factorial.
        """
        return written(evaluate(expression))

    @property
    def num_problems(self) -> int | None:
        return NUM_PROBLEMS

    def draw_problem(self, rng: np.random.Generator) -> WordProblem:
        while not self._in_split(problem := _draw_problem(rng, self.digits)):
            pass
        return problem

    def problem_at(self, index: int) -> WordProblem:
        return self.draw_problem(np.random.default_rng((_INDEXED, index)))

    def question(self, problem: WordProblem) -> str:
        return problem.text

    def reference_answer(self, problem: WordProblem) -> str:
        return f"{ANSWER} {problem.answer}"

    def is_correct(self, problem: WordProblem, answer: str) -> bool:
        return _parse_answer(answer) == problem.answer

    def is_well_formed(self, answer: str) -> bool:
        return _parse_answer(answer) is not None

    def solution(self) -> list[Reply]:
        problem = self._problem
        return [self.calling("calculate", expression=problem.expression), reply(self.reference_answer(problem))]

    def _in_split(self, problem: WordProblem) -> bool:
        return self.split is None or is_held_out(problem.split_name) == (self.split == "test")


def _draw_problem(rng: np.random.Generator, digits: int) -> WordProblem:
    story = _STORIES[rng.integers(len(_STORIES))]
    numbers = story.numbers(_Draw(rng, digits))
    telling = story.tellings[rng.integers(len(story.tellings))]
    text = telling.format(*numbers, name=_NAMES[rng.integers(len(_NAMES))], thing=_THINGS[rng.integers(len(_THINGS))])
    expression = story.expression.format(*numbers)
    answer = evaluate(expression)
    assert answer.denominator == 1, expression
    return WordProblem(text, expression, answer.numerator, story.name(*numbers))


def _parse_answer(answer: str) -> int | None:
    """The integer on the last line of a reply that gives one answer, not several to choose from."""
    before, found, said = answer.rstrip().rpartition(ANSWER)
    line_start = before.rpartition("\n")[2]
    if not found or ANSWER in before or line_start.strip():
        return None
    said = said.strip()
    return parse_integer(said.replace(",", "") if _SEPARATED.fullmatch(said) else said)
