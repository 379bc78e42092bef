"""Countdown: every problem can be solved, no text earns what an expression of the numbers would not."""

from __future__ import annotations

import ast
import itertools
import operator
import time
from fractions import Fraction
from typing import Any

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from loragym.envs.math.countdown import EXAMPLES, MAX_CHARACTERS, Unreadable, read_expression
from loragym.messages import reply

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
    "kwargs",
    [
        {},
        {"count": 4, "operations": "+-*/", "high": 20, "max_target": 100},
        {"count": 2},
        {"count": (2, 4), "low": 3, "high": 12, "split": "test", "use_all": False},
        {"count": 3, "boxed": True, "operations": "+-*/"},
    ],
)
def test_every_problem_can_be_solved_as_its_reference_says(kwargs: dict[str, Any]) -> None:
    env = make(**kwargs)
    for seed in range(60):
        _, info = env.reset(seed=seed)
        numbers, target, solution = env._problem
        assert by_python(solution) == target
        assert target in reachable(numbers)
        assert sorted(read_expression(solution).numbers) == sorted(numbers)
        assert kwargs.get("low", 1) <= min(numbers) and max(numbers) <= kwargs.get("high", 9)
        assert 1 <= target <= kwargs.get("max_target", 50)
        assert env.use_all or target not in numbers
        assert env.step(info["reference"])[1] == 1.0


def test_there_may_be_more_numbers_or_fewer() -> None:
    env = make(count=[2, 4])
    counts = []
    for seed in range(100):
        env.reset(seed=seed)
        counts.append(len(env._problem.numbers))
    assert set(counts) == {2, 3, 4}


def test_the_target_alone_is_no_way_out_where_numbers_may_be_left_over() -> None:
    env = make(use_all=False, high=4)
    for seed in range(100):
        env.reset(seed=seed)
        assert env.step(str(env._problem.target))[1] == pytest.approx(-0.1)


def test_any_solution_counts_and_only_solutions_do() -> None:
    """Every expression of three numbers, against the worth that Python gives it."""
    env = make(split=None, high=6)
    for seed in range(4):
        env.reset(seed=seed)
        problem = env._problem
        for numbers in set(itertools.permutations(problem.numbers)):
            for first, second in itertools.product("+-*/", repeat=2):
                for form in ("{} {} {} {} {}", "({} {} {}) {} {}", "{} {} ({} {} {})"):
                    text = form.format(numbers[0], first, numbers[1], second, numbers[2])
                    try:
                        worth = by_python(text)
                    except ZeroDivisionError:
                        worth = None
                    env.reset(seed=seed)
                    reward = env.step(text)[1]
                    expected = -0.1 if worth is None else float(worth == problem.target)
                    assert reward == pytest.approx(expected), (problem, text)


def test_the_rules_are_told_where_examples_do_not_show_them() -> None:
    assert [message["role"] for message in make().reset(seed=0)[0]] == ["user", "assistant"] * 2 + ["user"]
    bare, _ = make(few_shot=0).reset(seed=0)
    assert bare[0]["role"] == "system" and "every number exactly once" in bare[0]["content"]
    assert "expression alone" in bare[0]["content"]
    boxed, _ = make(boxed=True, use_all=False, few_shot=1).reset(seed=0)
    assert "each number at most once" in boxed[0]["content"] and r"in \boxed{}" in boxed[0]["content"]
    assert boxed[2]["content"] == r"\boxed{2 * 3 + 4}"
    assert make(few_shot=0, system_prompt="Play.").reset(seed=0)[0][0]["content"] == "Play."


@pytest.mark.parametrize(
    ("answer", "earned"),
    [
        (r"2 times 3 is 6, and 4 makes 10: \boxed{2 * 3 + 4}", 1.0),
        (r"\boxed{2 \times 3 + 4 = 10}", 1.0),
        (r"\boxed{\left(3 \cdot 2\right) + 4}", 1.0),
        (r"\boxed{4 \div \frac{2}{3} + 4}", -0.1),
        (r"\boxed{\frac{2}{3} + 4}", 0.0),
        (r"\boxed{\frac{3 - 2}{4}}", 0.0),
        (r"\boxed{\frac{2}{3 - 3}}", -0.1),
        (r"\boxed{\frac{2}}", -0.1),
        ("2 * 3 + 4", -0.1),
        (r"\boxed{2 * 3 + 4} or \boxed{2 + 3 + 4}", -0.1),
        (r"\boxed{10}", -0.1),
        (r"\boxed{}", -0.1),
        ("\\boxed{" * 150_000, -0.1),
        ("\\boxed{" + "(" * 1_000_000, -0.1),
    ],
)
def test_what_an_answer_in_a_box_earns(answer: str, earned: float) -> None:
    env = make(split=None, boxed=True)
    env.reset(seed=0)
    env._problem = EXAMPLES[0]  # 10 from 2, 3 and 4
    assert env.step(answer)[1] == pytest.approx(earned)


def test_an_answer_that_was_cut_off_earns_no_part() -> None:
    env = make(split=None, partial_credit=0.2)
    env.reset(seed=0)
    env._problem = EXAMPLES[0]
    assert env.step(reply("2 + 3 + 4", "length"))[1] == pytest.approx(-0.1)


def test_a_megabyte_is_read_at_once_and_environments_are_conformant() -> None:
    env = make(count=(2, 3), boxed=True)
    check_env(env)
    start = time.perf_counter()
    for answer in ("1" * 1_000_000, "(" * 1_000_000, "\\frac{" * 100_000, "\ud800"):
        for boxed in (True, False):
            env = make(boxed=boxed)
            env.reset(seed=0)
            assert env.step(answer)[1] == pytest.approx(-0.1)
    assert time.perf_counter() - start < 2


def test_a_fixed_count_has_the_problems_that_it_always_had() -> None:
    # Taken down once: what models were trained on must not move into the test split.
    assert [make().reset(seed=seed)[1]["problem"] for seed in range(3)] == [
        "Make 19 from 8, 6 and 5.",
        "Make 32 from 5, 5 and 7.",
        "Make 10 from 8, 3 and 1.",
    ]


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
        ({"count": (2, 7)}, "count is from 2 to 6"),
        ({"count": (2, 3, 4)}, "or two such numbers"),
        ({"high": 1}, "low below high, got 1 and 1"),
        ({"low": 0}, "low and high are from 1 to 1,000"),
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
