"""Sums are asked, graded and split as promised."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loragym.envs.math.arithmetic import MAX_OPERAND, OPERATIONS, WORKED_PAIRS, Arithmetic
from loragym.messages import assistant, reply, user

QUESTION = re.compile(r"What is (-?\d+) ([-+*]) (-?\d+)\?")


def ask(env: Arithmetic, **reset: object) -> tuple[int, str, int]:
    observation, _ = env.reset(**reset)
    match = QUESTION.fullmatch(observation[-1]["content"])
    assert match
    return int(match[1]), match[2], int(match[3])


def listed(**kwargs: object) -> list[tuple[int, str, int]]:
    env = Arithmetic(**kwargs)
    return [ask(env, options={"index": index}) for index in range(env.num_problems or 0)]


@given(
    seed=st.integers(0, 2**40),
    operation=st.sampled_from(["+", "-", "*", "+-", "+-*"]),
    low=st.integers(-1000, 1000),
    width=st.integers(20, 10**6),
)
def test_the_true_answer_and_only_it_is_right(seed: int, operation: str, low: int, width: int) -> None:
    env = Arithmetic(operation=operation, low=low, high=low + width)
    x, sign, y = ask(env, seed=seed)
    assert sign in operation and low <= x <= low + width and low <= y <= low + width
    truth = {"+": x + y, "-": x - y, "*": x * y}[sign]
    assert env.step(str(truth))[1] == 1.0
    assert env.reset(seed=seed)[1]["reference"] == str(truth)
    assert env.step(str(truth + 1))[1] == 0.0


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("{}", 1.0),
        (" {}\n", 1.0),
        ("+{}", 1.0),
        ("0{}", 1.0),
        ("{}.", -0.1),
        ("The answer is {}", -0.1),
        ("{} {}", -0.1),
        ("{}e0", -0.1),
        ("", -0.1),
        ("٣", -0.1),
        ("9" * 21, -0.1),
        ("9" * 20, 0.0),
    ],
)
def test_only_an_integer_and_nothing_else_is_well_formed(answer: str, reward: float) -> None:
    env = Arithmetic()
    _, info = env.reset(seed=5)
    assert env.step(answer.replace("{}", info["reference"]))[1] == pytest.approx(reward)


def test_a_right_answer_that_was_cut_off_counts_as_badly_put() -> None:
    env = Arithmetic()
    _, info = env.reset(seed=5)
    _, reward, _, _, after = env.step(reply(info["reference"], "length"))
    assert reward == pytest.approx(0.9)
    assert after == {"metrics": {"correct": 1.0, "format": 0.0}, "stop_reason": "length"}


@given(st.text() | st.sampled_from(["", "9" * 1_000_000, " " * 1_000_000, "９", "\ud800", "\x00"]))
def test_no_text_disturbs_the_grader(text: str) -> None:
    env = Arithmetic()
    env.reset(seed=0)
    observation, reward, terminated, truncated, _ = env.step(text)
    assert (observation, terminated, truncated) == ((), True, False)
    assert min(abs(reward - legal) for legal in (1, 0.9, 0, -0.1)) < 1e-9


def test_a_megabyte_is_graded_at_once() -> None:
    env = Arithmetic()
    start = time.perf_counter()
    for _ in range(20):
        env.reset(seed=0)
        env.step("1" * 1_000_000)
    assert time.perf_counter() - start < 1


def test_all_prompts_begin_alike() -> None:
    env = Arithmetic(few_shot=2)
    prefixes = {tuple(message["content"] for message in env.reset(seed=seed)[0][:-1]) for seed in range(20)}
    assert prefixes == {("What is 4 + 5?", "9", "What is 7 + 2?", "9")}
    assert Arithmetic().reset(seed=0)[0][:2] == (user("What is 4 + 5?"), assistant("9"))
    assert len(Arithmetic(few_shot=0).reset(seed=0)[0]) == 1


def test_the_worked_examples_show_every_operation_and_are_right() -> None:
    observation, _ = Arithmetic(operation="*-", few_shot=len(WORKED_PAIRS)).reset(seed=0)
    signs = set()
    for question, answer in zip(observation[:-1:2], observation[1:-1:2], strict=True):
        match = QUESTION.fullmatch(question["content"])
        assert match
        signs.add(match[2])
        assert int(answer["content"]) == OPERATIONS[match[2]](int(match[1]), int(match[3]))
    assert signs == {"*", "-"}


@pytest.mark.parametrize("operation", ["+", "-", "+-*"])
def test_the_splits_are_disjoint_and_cover_everything(operation: str) -> None:
    train, test = listed(operation=operation, split="train"), listed(operation=operation, split="test")
    everything = {(x, sign, y) for sign in operation for x in range(21) for y in range(21)}
    assert sorted(train + test) == sorted(everything)
    assert 0.05 < len(test) / len(everything) < 0.15
    assert sorted(listed(operation=operation, split=None)) == sorted(everything)


def test_a_problem_and_its_mirror_image_are_in_the_same_split() -> None:
    test = set(listed(operation="+*", split="test"))
    assert {(y, sign, x) for x, sign, y in test} == test


def test_where_a_problem_belongs_does_not_depend_on_the_range() -> None:
    narrow, wide = set(listed(high=20, split="test")), set(listed(high=40, split="test"))
    assert narrow == {problem for problem in wide if max(problem[0], problem[2]) <= 20}


@pytest.mark.parametrize("split", ["train", "test"])
def test_drawn_problems_are_those_of_the_split(split: str) -> None:
    env = Arithmetic(high=6, split=split)
    drawn = {ask(env, seed=seed) for seed in range(600)}
    assert drawn == set(listed(high=6, split=split))


def test_a_wide_range_is_quick_and_has_no_index() -> None:
    start = time.perf_counter()
    env = Arithmetic(high=10**6, split="test")
    for seed in range(200):
        env.reset(seed=seed)
    assert time.perf_counter() - start < 1
    assert env.num_problems is None
    with pytest.raises(ValueError, match="no list of problems"):
        env.reset(options={"index": 0})


def test_the_widest_range_is_still_answerable() -> None:
    env = Arithmetic(operation="*", low=-MAX_OPERAND, high=MAX_OPERAND)
    for seed in range(50):
        _, info = env.reset(seed=seed)
        assert env.step(info["reference"])[1] == 1.0


@pytest.mark.parametrize(
    ("kwargs", "complaint"),
    [
        ({"operation": ""}, "operation is made of"),
        ({"operation": "/"}, "got '/'"),
        ({"operation": "++"}, "at most once"),
        ({"low": 3, "high": 2}, "low=3, high=2"),
        ({"high": 10**9}, "high=1000000000"),
        ({"few_shot": 9}, "from 0 to 8"),
        ({"few_shot": -1}, "got -1"),
        ({"split": "dev"}, "'dev'"),
        ({"low": 1, "high": 1, "split": "test"}, "split 'test' has none of the 1 items; widen the range"),
    ],
)
def test_a_bad_argument_is_refused_at_once(kwargs: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Arithmetic(**kwargs)
