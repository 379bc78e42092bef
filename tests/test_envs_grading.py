"""The grader of mathematics: what is right earns credit, however it is written; what is not does not."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from grading_attacks import CANARY, attacks
from hypothesis import given, settings
from hypothesis import strategies as st
from loragym.envs.math.grading import (
    MALFORMED,
    VERDICTS,
    GraderPool,
    Limits,
    grade,
    grade_answer,
    grade_many,
    is_readable,
)
from loragym.envs.math.grading.extraction import last_box

PAIRS = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "grading_pairs.jsonl").read_text("utf-8").splitlines()
]
ATTACKS = attacks()


@pytest.fixture(scope="module")
def pool() -> Iterator[GraderPool]:
    with GraderPool(workers=1, limits=Limits(seconds=2, patience=20)) as pool:
        yield pool


# The table of pairs


def test_the_table_is_large_and_has_both_kinds_on_each_topic() -> None:
    assert len(PAIRS) >= 300
    assert len({(pair["answer"], pair["reference"]) for pair in PAIRS}) == len(PAIRS)
    topics = Counter((pair["topic"], pair["equal"]) for pair in PAIRS)
    one_sided = {"unevaluated", "nonsense"}
    assert {topic for topic, _ in topics if (topic, True) not in topics or (topic, False) not in topics} == one_sided
    assert 0.4 < sum(pair["equal"] for pair in PAIRS) / len(PAIRS) < 0.6


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair['topic']}: {pair['answer']} | {pair['reference']}")
def test_a_pair_is_judged_as_by_hand(pair: dict[str, object], pool: GraderPool) -> None:
    found = grade(f"\\boxed{{{pair['answer']}}}", str(pair["reference"]), pool=pool)
    assert found.correct == pair["equal"], found
    assert found.verdict not in ("timeout", "crashed"), found


def test_every_reference_is_equal_to_itself_and_readable(pool: GraderPool) -> None:
    references = [str(pair["reference"]) for pair in PAIRS]
    assert all(found.correct for found in grade_many([f"\\boxed{{{r}}}" for r in references], references, pool=pool))
    assert [reference for reference in references if not is_readable(reference)] == []


# Replies


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        (r"Thus $\boxed{5}$.", "correct"),
        (r"\boxed{6}", "wrong"),
        (r"\boxed 5", "correct"),
        (r"\boxed5", "correct"),
        (r"\fbox{5}", "correct"),
        (r"\boxed{\boxed{5}}", "correct"),
        (r"\boxed{\text{5}}", "correct"),
        ("First \\boxed{4}.\n\nNo, rather \\boxed{5}.", "correct"),
        (r"\boxed{5}, so \boxed{5}.", "correct"),
        ("\\boxed{5}\n\nI put it in \\boxed{}.", "correct"),
        (r"\boxed{5} or \boxed{6}", "several_answers"),
        ("The answer is 5.", "no_box"),
        ("5", "no_box"),
        (r"\boxed{5", "no_box"),
        (r"\boxed{}", "empty_box"),
        (r"\boxed{" + "1" * 5000 + "}", "too_long"),
        (r"\boxed{5 \foo}", "unparsable"),
        (r"\boxed{2+3}", "unevaluated"),
        ("", "no_box"),
    ],
)
def test_what_becomes_of_a_reply(reply: str, verdict: str) -> None:
    found = grade(reply, "5")
    assert found.verdict == verdict
    assert found.correct == (verdict == "correct")
    assert found.well_formed == (verdict not in MALFORMED)


@pytest.mark.parametrize(
    ("reply", "correct"),
    [
        ("5", True),
        ("The answer is 5.", True),
        ("**Answer:** 5", True),
        ("2 + 3 makes\n#### 5", True),
        ("the answer is 4, no: the answer is 5", True),
        ("the answer is 5\nthe answer is 6", False),
        ("The answer is 5 or 6", False),
        (r"The answer is 5. \boxed{6}", False),
        (r"The answer is 6. \boxed{5}", True),
        ("Five", False),
        ("", False),
        ("I think that 5 fits", False),
    ],
)
def test_a_box_is_waived_only_where_it_is_said(reply: str, correct: bool) -> None:
    assert grade(reply, "5", boxed=False).correct == correct
    if "\\boxed" not in reply:
        assert grade(reply, "5").verdict == "no_box"


def test_a_grade_tells_what_was_compared() -> None:
    found = grade(r"So $\boxed{\frac{6}{8}}$.", "0.75")
    assert (found.answer, found.reference, found.method) == (r"\frac{6}{8}", "0.75", "exact")
    assert json.loads(json.dumps(found.as_dict()))["verdict"] == "correct"


@pytest.mark.parametrize(
    ("answer", "reference", "method"),
    [
        ("42", "42", "text"),
        ("0.5", "1/2", "exact"),
        ("(x+1)^2", "x^2+2x+1", "exact"),
        (r"\sqrt{8}", r"2\sqrt{2}", "numeric"),
        # No value can be had at any point: the numbers are too large.
        (r"\frac{(1000000n)!}{(1000000n-1)!}", "1000000n", "symbolic"),
    ],
)
def test_the_cheapest_method_that_suffices_settles_it(
    answer: str, reference: str, method: str, pool: GraderPool
) -> None:
    found = grade_answer(answer, reference, pool=pool)
    assert (found.correct, found.method) == (True, method)


def test_sympy_also_says_no(pool: GraderPool) -> None:
    assert grade_answer(r"\frac{(1000000n)!}{(1000000n-1)!}", "1000000n+1", pool=pool).verdict == "wrong"


def test_a_tolerance_is_relative_to_the_reference(pool: GraderPool) -> None:
    assert grade_answer("0.333", r"\frac13").verdict == "wrong"
    assert grade_answer("0.333", r"\frac13", rtol=0.01).correct
    assert grade_answer("1.414", r"\sqrt2", rtol=0.001, pool=pool).correct
    assert not grade_answer("1.41", r"\sqrt2", rtol=0.001, pool=pool).correct
    assert not grade_answer("x", r"\sqrt2", rtol=0.5, pool=pool).correct


def test_repeating_the_question_earns_nothing_unless_that_is_the_answer(pool: GraderPool) -> None:
    question = "Write $(x+1)^2$ as a sum."
    assert grade_answer("(x+1)^2", "x^2+2x+1", question=question).verdict == "copied"
    assert grade_answer("x^2+2x+1", "x^2+2x+1", question=question).correct
    assert grade_answer("(1+x)^2", "x^2+2x+1", question=question).correct
    assert grade_answer("(x+1)^2", "(x+1)^2", question=question).correct
    assert grade_answer("2/3", r"\frac{2}{3}", question="Which is larger, 2/3 or 3/5?").correct
    assert grade_answer(r"\sqrt{8}", r"2\sqrt{2}", question=r"Simplify $\sqrt{8}$.", pool=pool).verdict == "copied"


def test_many_are_graded_as_one_by_one(pool: GraderPool) -> None:
    replies = [f"\\boxed{{{pair['answer']}}}" for pair in PAIRS]
    references = [str(pair["reference"]) for pair in PAIRS]
    together = grade_many(replies, references, pool=pool)
    assert together == [
        grade(reply, reference, pool=pool) for reply, reference in zip(replies, references, strict=True)
    ]
    with pytest.raises(ValueError, match="as many references"):
        grade_many(["a"], [])


def test_a_reference_that_is_no_mathematics_is_compared_as_text() -> None:
    reference = r"\int_0^1 f(x)\,dx"
    assert not is_readable(reference)
    assert grade_answer(r"\int_0^1 f(x) dx", reference).correct
    found = grade_answer("5", reference)
    assert found.verdict == "wrong" and "compared as text" in found.detail


def test_the_last_box_of_a_solution_is_its_answer() -> None:
    assert last_box(r"so \boxed{1} and then \boxed{\frac{1}{2}}. \boxed{}") == r"\frac{1}{2}"
    assert last_box("none") is None


# Hostile replies


def test_there_are_many_attacks_of_many_kinds() -> None:
    assert len(ATTACKS) >= 200
    assert len({attack.kind for attack in ATTACKS}) >= 12


@pytest.mark.parametrize("kind", sorted({attack.kind for attack in ATTACKS}))
def test_no_attack_earns_credit_or_takes_long_or_runs(
    kind: str, pool: GraderPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for attack in ATTACKS:
        if attack.kind != kind:
            continue
        for boxed in (True, False) if attack.boxed is None else (attack.boxed,):
            start = time.process_time()
            found = grade(attack.reply, attack.reference, boxed=boxed, question=attack.question, pool=pool)
            assert not found.correct, (attack.name[:100], found.method)
            # A bug in a worker, or memory beyond its limit: what is refused is refused before that.
            assert found.verdict not in ("crashed", "timeout"), (attack.name[:100], found.detail)
            assert time.process_time() - start < 0.5, attack.name[:100]
    assert pool.counts["timeouts"] == pool.counts["crashes"] == 0
    assert not list(tmp_path.glob("*"))
    assert not Path(CANARY).exists()


def test_the_attacks_would_succeed_if_they_were_right(pool: GraderPool) -> None:
    # The replies' form is not what fails: with the right answer in the same place they earn credit.
    for attack in (attack for attack in ATTACKS if attack.kind in ("hedge", "disguise", "choice")):
        reply = attack.reply.replace(f"{{{attack.name}}}$.", f"{{{attack.reference}}}$.")
        assert grade(reply, attack.reference, pool=pool).correct, attack.name


def test_a_calculation_that_takes_too_long_is_a_timeout_and_is_counted() -> None:
    sines = "+".join(f"\\sin({number}x)" for number in range(1, 100))
    with GraderPool(workers=1, limits=Limits(seconds=0.01, patience=20)) as pool:
        found = grade_many([f"\\boxed{{{sines}+{'7' * 900}}}"] * 2, [f"{'7' * 900}+{sines}"] * 2, pool=pool)
        assert [grade.verdict for grade in found] == ["timeout", "timeout"]
        assert pool.counts["timeouts"] == 2
        assert not any(grade.correct for grade in found)


WORDS = r"""
\frac \sqrt { } ( ) [ ] \{ \} 1 2 0 9 12 0.5 x y a n i e \pi + - * / ^ _ ! , ; = < > \le \ge \ne \in \cup \cap \% % $
\setminus \pm \mp \approx \$ ° ^\circ | \left \right \sin \log \ln \text{cm} \text{or} \infty \mathbb{R} \binom : ' km
\begin{pmatrix} \end{pmatrix} & \\ \cdot \times \overline \lfloor \rfloor ² and or \emptyset \boxed
"""
PIECES = st.sampled_from(WORDS.split())
NOISE = st.text(max_size=30) | st.lists(PIECES, max_size=25).map(" ".join) | st.lists(PIECES, max_size=25).map("".join)


@settings(max_examples=400, deadline=None)
@given(answer=NOISE, reference=NOISE | st.sampled_from([str(pair["reference"]) for pair in PAIRS]))
def test_any_text_has_a_grade(answer: str, reference: str, pool: GraderPool) -> None:
    for found in (
        grade(f"\\boxed{{{answer}}}", reference, pool=pool),
        grade(answer, reference, boxed=False, pool=pool),
    ):
        assert found.verdict in VERDICTS
        assert found.verdict not in ("crashed", "timeout"), found
        assert found.correct == (found.verdict == "correct")


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES, max_size=12).map(" ".join))
def test_an_answer_and_its_negation_are_never_both_right(answer: str) -> None:
    if grade_answer(answer, "7").correct:
        assert not grade_answer(f"-({answer})", "7").correct


@settings(max_examples=300, deadline=None)
@given(st.integers(), st.integers())
def test_integers_are_equal_if_they_are_the_same(left: int, right: int) -> None:
    assert grade_answer(str(left), str(right)).correct == (left == right)
    assert grade_answer(f"{left:,}", str(right)).correct == (left == right)


@settings(max_examples=200, deadline=None)
@given(st.integers(-999, 999), st.integers(1, 999), st.integers(1, 50))
def test_a_fraction_is_equal_to_itself_extended_and_to_no_other(top: int, bottom: int, times: int) -> None:
    if top % bottom:
        assert grade_answer(f"{top * times}/{bottom * times}", f"\\frac{{{top}}}{{{bottom}}}").correct
    assert not grade_answer(f"{top * times + 1}/{bottom * times}", f"\\frac{{{top}}}{{{bottom}}}").correct


COEFFICIENTS = st.lists(st.integers(-9, 9), min_size=3, max_size=3)


@settings(max_examples=200, deadline=None)
@given(COEFFICIENTS, COEFFICIENTS)
def test_products_of_polynomials_are_equal_to_their_expansion_only(left: list[int], right: list[int]) -> None:
    product = [0] * 5
    for place, a in enumerate(left):
        for other, b in enumerate(right):
            product[place + other] += a * b

    def written(coefficients: list[int]) -> str:
        return "+".join(f"({value})x^{{{power}}}" for power, value in enumerate(coefficients))

    answer = f"({written(left)})({written(right)})"
    assert grade_answer(answer, f"{written(product)}+y").verdict == "wrong"
    assert grade_answer(f"{answer}+y", f"y+{written(product)}").correct
    product[2] += 1
    assert not grade_answer(f"{answer}+y", f"y+{written(product)}").correct
