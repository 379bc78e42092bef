"""Countdown: every problem can be solved, no text earns what an expression of the numbers would not."""

from __future__ import annotations

import ast
import itertools
import operator
from fractions import Fraction
from typing import Any

import gymnasium
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loragym.envs.math.countdown import EXAMPLES, MAX_CHARACTERS, Unreadable, read_expression

SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
         ast.Div: operator.truediv}  # fmt: skip


def make(**kwargs: Any) -> Any:
    return gymnasium.make("loragym/Countdown-v0", disable_env_checker=True, **kwargs).unwrapped


def by_python(text: str) -> Fraction:
    """What an expression is worth by Python's own parser, in fractions."""

    def worth(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant):
            return Fraction(node.value)
        assert isinstance(node, ast.BinOp)
        return SIGNS[type(node.op)](worth(node.left), worth(node.right))

    return worth(ast.parse(text, mode="eval").body)


def reachable(numbers: tuple[int, ...]) -> set[Fraction]:
    """All that can be made of all the numbers, by trying everything."""
    if len(numbers) == 1:
        return {Fraction(numbers[0])}
    found = set()
    for size in range(1, len(numbers)):
        for left in itertools.combinations(range(len(numbers)), size):
            right = [i for i in range(len(numbers)) if i not in left]
            for x in reachable(tuple(numbers[i] for i in left)):
                for y in reachable(tuple(numbers[i] for i in right)):
                    found |= {x + y, x - y, x * y} | ({x / y} if y else set())
    return found


@pytest.mark.parametrize(
    "kwargs", [{}, {"count": 4, "operations": "+-*/", "high": 20, "max_target": 100}, {"count": 2}]
)
def test_every_problem_can_be_solved_as_its_reference_says(kwargs: dict[str, Any]) -> None:
    env = make(**kwargs)
    for seed in range(60):
        _, info = env.reset(seed=seed)
        numbers, target, solution = env._problem
        assert by_python(solution) == target
        assert target in reachable(numbers)
        assert sorted(read_expression(solution).numbers) == sorted(numbers)
        assert env.step(info["reference"])[1] == 1.0


def test_the_splits_have_no_problem_in_common() -> None:
    def names(split: str) -> set[tuple[Any, ...]]:
        env = make(split=split)
        found = set()
        for seed in range(400):
            env.reset(seed=seed)
            found.add((tuple(sorted(env._problem.numbers)), env._problem.target))
        return found

    assert not names("train") & names("test")


@pytest.mark.parametrize(
    ("answer", "earned"),
    [
        ("2 * 3 + 4", 1.0),
        ("4+2*3 = 10", 1.0),
        ("(2 × 3) + 4.", 1.0),
        ("4 - -6", -0.1),
        ("2 + 3 + 4", 0.0),
        ("2 * 3 + 4 = 11", -0.1),
        ("2 * 3 + 4 + 0", -0.1),
        ("10", -0.1),
        ("2 * 5", -0.1),
        ("2 * 3 + 4 2", -0.1),
        ("2 * 3 + 4 = 10 = 10", -0.1),
        ("The answer is 2 * 3 + 4", -0.1),
        ("2 / (3 - 3) + 4", -0.1),
        ("", -0.1),
        ("٢ * 3 + 4", -0.1),
        ("2**3 + 4", -0.1),
        ("__import__('os')", -0.1),
        ("(" * 190 + "2", -0.1),
        ("9" * 150, -0.1),
    ],
)
def test_what_an_answer_earns(answer: str, earned: float) -> None:
    env = make(split=None)
    env.reset(seed=0)
    env._problem = EXAMPLES[0]  # 10 from 2, 3 and 4
    assert env.step(answer)[1] == pytest.approx(earned)


def test_numbers_may_be_left_over_and_near_misses_earn_a_part_where_asked_for() -> None:
    env = make(split=None, use_all=False, partial_credit=0.2)
    for answer, earned, distance in (("2 * 3 + 4", 1.0, 0.0), ("3 * 4", 0.2, 0.2), ("2 + 2", -0.1, None)):
        env.reset(seed=0)
        env._problem = EXAMPLES[0]
        _, reward, _, _, info = env.step(answer)
        assert reward == pytest.approx(earned)
        assert info["metrics"].get("distance") == (None if distance is None else pytest.approx(distance))


expressions = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.builds(lambda a, sign, b: f"({a} {sign} {b})", inner, st.sampled_from("+-*/"), inner),
    max_leaves=8,
)


@given(expressions)
def test_expressions_are_worth_what_python_says(text: str) -> None:
    try:
        expected = by_python(text)
    except ZeroDivisionError:
        expected = None
    try:
        found = read_expression(text).value
    except Unreadable:
        assert expected is None or len(text) > MAX_CHARACTERS
    else:
        assert found == expected


@given(st.text(max_size=300) | st.text(alphabet="0123456789+-*/()= ", max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read_expression(text)
    except Unreadable as error:
        assert str(error)


@pytest.mark.parametrize(
    ("kwargs", "complaint"),
    [
        ({"count": 1}, "count is from 2 to 6"),
        ({"high": 1}, "high is from 2"),
        ({"operations": "+^"}, "operations are of"),
        ({"max_target": 0}, "max_target is from 1"),
        ({"partial_credit": 1.0}, "partial_credit is at least 0 and below 1"),
        ({"split": "dev"}, 'split is "train"'),
        ({"count": 6, "high": 1000, "max_target": 1, "operations": "*"}, "no problem of 6 numbers"),
    ],
)
def test_arguments_out_of_range_are_refused(kwargs: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make(**kwargs)
