"""The calculator is exact and cannot be made to work hard; its problems are solved by what they say solves them."""

from __future__ import annotations

import ast
import operator
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import gymnasium
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loragym.envs.tools import demonstrate
from loragym.envs.tools.calculator import Calculator
from loragym.envs.tools.exact import FUNCTIONS, MAX_BITS, ExpressionError, evaluate, written
from loragym.messages import reply


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3", "7"),
        ("(1 + 2) * 3", "9"),
        ("2 ** 3 ** 2", "512"),
        ("-2 ** 2", "-4"),
        ("2 ** -2", "0.25"),
        ("2^10", "1024"),
        ("7 // 2", "3"),
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("7 % -3", "-2"),
        ("7.5 % 2", "1.5"),
        ("0.1 + 0.2", "0.3"),
        ("1 / 3", "1/3 (about 0.3333333333)"),
        ("1/3 + 2/3", "1"),
        ("-1/8", "-0.125"),
        ("10 / 4", "2.5"),
        ("1 - - 1", "2"),
        ("+-+3", "-3"),
        ("12 × 3 ÷ 4 − 1", "8"),
        (".5 + 5.", "5.5"),
        ("99999999 * 99999999", "9999999800000001"),
        ("sqrt(16/9)", "4/3 (about 1.333333333)"),
        ("max(1, 2, 3) - min(4, 5)", "-1"),
        ("round(2.5) + round(3.5)", "6"),
        ("round(2/3, 2)", "0.67"),
        ("floor(-1/2) + ceil(1/2)", "0"),
        ("gcd(12, 18) + lcm(4, 6)", "18"),
        ("factorial(20)", "2432902008176640000"),
        ("abs(-3) + sum(1, 2)", "6"),
        ("0 ** 0", "1"),
        ("1 ** 999999999999", "1"),
        ("(-1) ** 999999999999", "-1"),
        ("1e", None),
    ],
)
def test_expressions_have_their_exact_value(expression: str, value: str | None) -> None:
    if value is None:
        with pytest.raises(ExpressionError):
            evaluate(expression)
    else:
        assert written(evaluate(expression)) == value


OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


def by_python(node: ast.expr) -> Fraction:
    """The same value by way of Python's own parser, on expressions that a test has made."""
    if isinstance(node, ast.BinOp):
        left, right = by_python(node.left), by_python(node.right)
        if isinstance(node.op, ast.Pow):
            return left ** int(right)
        return Fraction(OPERATORS[type(node.op)](left, right))
    if isinstance(node, ast.UnaryOp):
        value = by_python(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    assert isinstance(node, ast.Constant)
    return Fraction(str(node.value))


numbers = st.integers(0, 999).map(str) | st.decimals(0, 99, places=2).map(str)
expressions = st.recursive(
    numbers,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%", " - ", " + "]), inner).map("".join)
        | inner.map(lambda text: f"({text})")
        | inner.map(lambda text: f"-{text}")
        | st.tuples(inner, st.integers(0, 4)).map(lambda pair: f"({pair[0]})**{pair[1]}")
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(expression=expressions)
def test_values_agree_with_python_s_own_arithmetic_of_fractions(expression: str) -> None:
    try:
        expected = by_python(ast.parse(expression, mode="eval").body)
    except ZeroDivisionError:
        with pytest.raises(ExpressionError, match="division by zero"):
            evaluate(expression)
        return
    except RecursionError:
        return
    try:
        got = evaluate(expression)
    except ExpressionError as error:
        assert "characters" in str(error) or "deeper" in str(error) or "bits" in str(error)
        return
    assert got == expected


ATTACKS = [
    "9**9**9",
    "9**9**9**9",
    "2**10000",
    "(2**4000)*(2**4000)",
    "(1/3)**5000",
    "10**-100000",
    "factorial(10**6)",
    "factorial(factorial(20))",
    "((" * 10_000,
    "(" * 60 + "1" + ")" * 60,
    "-" * 499 + "1",
    "2**" * 100 + "2",
    "abs(" * 60 + "1" + ")" * 60,
    "9" * 1_000_000,
    "9" * 499,
    "1." + "0" * 490 + "1 ** 9",
    "__import__('os').system('true')",
    "().__class__",
    "calculate",
    "f'{1}'",
    "lambda: 1",
    "1 if 1 else 2",
    "1; 2",
    "1 == 1",
    "a",
    "٣ + ٤",
    "１ + １",
    "1_000",
    "0x10",
    "1e400",
    "1j",
    "1 +",
    "* 2",
    "1 2",
    "()",
    "abs()",
    "abs(1, 2)",
    "gcd(1.5, 2)",
    "sqrt(2)",
    "sqrt(-1)",
    "2 ** 0.5",
    "1 / 0",
    "1 // 0",
    "1 % 0",
    "0 ** -1",
    "round(1, 1000)",
    "round(1, 2, 3)",
    "min",
    "max()",
    "\x00",
    "\ud800",
    "",
    " ",
    "1,000 * 2",
    ")" * 400,
    "1" + "*9" * 240,
    "lcm(" + ",".join(str(n) for n in range(1, 150)) + ")",
    "1/" + "/".join(str(n) for n in range(101, 215)),
]


@pytest.mark.parametrize("expression", ATTACKS, ids=lambda text: ascii(text[:20]))
def test_no_expression_takes_long_or_does_harm(expression: str) -> None:
    start = time.perf_counter()
    try:
        value = evaluate(expression)
        assert max(value.numerator.bit_length(), value.denominator.bit_length()) <= MAX_BITS
        assert len(written(value)) < 3 * MAX_BITS
    except ExpressionError as error:
        assert str(error) and len(str(error)) < 300
    assert time.perf_counter() - start < 0.5


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=80) | st.text(alphabet="0123456789+-*/%^(). ,absqrtmx", max_size=80))
def test_any_text_is_a_number_or_an_error(text: str) -> None:
    try:
        assert isinstance(evaluate(text), Fraction)
        assert written(evaluate(text))
    except ExpressionError as error:
        assert str(error)


@given(value=st.fractions())
def test_what_is_written_is_exact_or_says_that_it_is_about(value: Fraction) -> None:
    text = written(value)
    exact, _, about = text.partition(" (about ")
    assert Fraction(exact) == value
    if about:
        assert abs(Fraction(about[:-1]) - value) <= abs(value) / 10**9
        assert "/" in exact


def test_every_function_is_told_to_the_model() -> None:
    description = Calculator().tools[0]["parameters"]["properties"]["expression"]["description"]
    assert all(name in description for name in FUNCTIONS)


@pytest.mark.parametrize("digits", [2, 4, 6])
@pytest.mark.parametrize("split", ["train", "test", None])
def test_every_problem_is_solved_by_its_solution(digits: int, split: Any) -> None:
    env = gymnasium.make("loragym/Calculator-v0", digits=digits, split=split).unwrapped
    assert isinstance(env, Calculator)
    seen = set()
    for index in range(120):
        _, info = env.reset(options={"index": index})
        seen.add(info["problem"])
        call, final = env.solution()
        observation, *_ = env.step(call)
        _, reward, terminated, _, info = env.step(final)
        assert observation[0]["content"] == final["content"].removeprefix("Answer: ")
        assert (reward, terminated, info["metrics"]["correct"]) == (1.0, True, 1.0)
    assert len(seen) > 115


def test_worked_out_by_hand() -> None:
    env = Calculator()
    problem = env._problem = env.problem_at(0)._replace(
        text="?", expression="4 * 25 - 1", answer=99, split_name="4 * 25 - 1"
    )
    assert env.reference_answer(problem) == "Answer: 99"
    assert written(evaluate(problem.expression)) == "99"


def test_the_splits_are_disjoint_however_a_sum_is_told() -> None:
    names: dict[str, set[str]] = {}
    for split in ("train", "test"):
        env = Calculator(digits=2, split=split)  # type: ignore[arg-type]
        names[split] = {env.problem_at(index).split_name for index in range(3000)}
    assert not names["train"] & names["test"]
    assert len(names["test"]) > 300


def test_the_held_out_share_is_about_a_tenth() -> None:
    env = Calculator(split=None)
    held_out = sum(not Calculator()._in_split(env.problem_at(index)) for index in range(2000))
    assert 140 < held_out < 260


@pytest.mark.parametrize(
    ("said", "correct", "well_formed"),
    [
        ("Answer: {n}", 1, 1),
        ("  Answer: {n} \n", 1, 1),
        ("It is so.\nAnswer: {n}", 1, 1),
        ("Answer: {commas}", 1, 1),
        ("Answer: +{n}", 1, 1),
        ("Answer: {wrong}", 0, 1),
        ("{n}", 0, 0),
        ("The Answer: {n}", 0, 0),
        ("Answer: {n}.", 0, 0),
        ("Answer: {n} or {wrong}", 0, 0),
        ("Answer: {wrong}\nAnswer: {n}", 0, 0),
        ("Answer: {n}\nAnswer: {n}", 0, 0),
        ("Answer: {n}\nOr so.", 0, 0),
        ("answer: {n}", 0, 0),
        ("Answer: 1,2", 0, 0),
        ("Answer:", 0, 0),
        ("", 0, 0),
    ],
)
def test_one_answer_on_the_last_line_counts(said: str, correct: float, well_formed: float) -> None:
    env = Calculator()
    env.reset(seed=1)
    n = env._problem.answer
    text = said.format(n=n, wrong=n + 1, commas=f"{n:,}")
    _, reward, terminated, _, info = env.step(text)
    assert terminated
    assert (info["metrics"]["correct"], info["metrics"]["format"]) == (correct, well_formed)
    assert reward == pytest.approx(correct + 0.1 * (well_formed - 1))


def test_a_right_answer_that_was_cut_off_is_badly_put() -> None:
    env = Calculator()
    env.reset(seed=1)
    _, reward, *_, info = env.step(reply(f"Answer: {env._problem.answer}", "length"))
    assert reward == pytest.approx(0.9) and info["stop_reason"] == "length"


def test_a_wrong_expression_is_explained_and_can_be_mended() -> None:
    env = Calculator()
    env.reset(seed=1)
    (message,), reward, terminated, _, info = env.step(env.calling("calculate", expression="9**9**9"))
    assert message["content"] == "Error: ExpressionError: a number of more than 4096 bits"
    assert (reward, terminated, info["metrics"]["errors"]) == (0.0, False, 1.0)
    call, final = env.solution()
    env.step(call)
    assert env.step(final)[1] == 1.0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"digits": 1}, "digits is from 2 to 6"), ({"digits": 7}, "digits is"), ({"split": "dev"}, "split is one of")],
)
def test_a_bad_argument_is_refused_at_once(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Calculator(**options)


def test_demonstrations_are_reproducible() -> None:
    assert demonstrate(Calculator(), seed=5) == demonstrate(Calculator(), seed=5)
    assert demonstrate(Calculator(), seed=5) != demonstrate(Calculator(), seed=6)
