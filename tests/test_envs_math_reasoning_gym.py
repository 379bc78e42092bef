"""Procedural data sets of reasoning-gym: scored by their own rules, whatever a reply says."""

from __future__ import annotations

from typing import Any

import gymnasium
import pytest

pytest.importorskip("reasoning_gym")


def make(dataset: str, **kwargs: Any) -> Any:
    return gymnasium.make("loragym/ReasoningGym-v0", disable_env_checker=True, dataset=dataset, **kwargs).unwrapped


@pytest.mark.parametrize(
    "dataset", ["basic_arithmetic", "leg_counting", "simple_equations", "word_sorting", "countdown"]
)
def test_the_reference_earns_1_and_nonsense_nothing(dataset: str) -> None:
    env = make(dataset, size=20)
    for seed in range(3):
        _, info = env.reset(seed=seed)
        assert env.step(f"I think {info['reference']}")[1] == pytest.approx(1.0)
        env.reset(seed=seed)
        _, reward, terminated, _, info = env.step("<answer>certainly not this</answer>")
        assert terminated
        assert reward < 0.5
        assert info["metrics"]["format"] == 1


def test_without_tags_or_with_two_answers_there_is_no_answer() -> None:
    env = make("basic_arithmetic", size=20)
    _, info = env.reset(seed=1)
    right = info["reference"].removeprefix("<answer>").removesuffix("</answer>")
    for said in (right, f"<answer>{right}</answer> or <answer>1</answer>", "<answer>", ""):
        env.reset(seed=1)
        assert env.step(said)[1] == pytest.approx(-0.1)
    loose = make("basic_arithmetic", size=20, answer_tags=False)
    loose.reset(seed=1)
    assert loose.step(right)[1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "attack",
    [
        "9**9**9**9",
        "__import__('os').system('exit 7')",
        "(" * 3000,
        "factorial(10**9)",
        "1e999999999",
    ],
)
@pytest.mark.parametrize("dataset", ["countdown", "simple_equations", "polynomial_equations"])
def test_attacks_on_scorers_earn_nothing_and_end_in_time(dataset: str, attack: str) -> None:
    env = make(dataset, size=5, time_limit=1.0)
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(f"<answer>{attack}</answer>")
    assert terminated
    assert reward < 0.2
    assert info["metrics"]["correct"] == 0


def test_the_same_seed_is_the_same_problem_and_the_splits_differ() -> None:
    first, again, other = (make("basic_arithmetic", split=s) for s in ("train", "train", "test"))
    openings = [env.reset(seed=5)[0] for env in (first, again, other)]
    assert openings[0] == openings[1] != openings[2]
    assert first.num_problems == 10_000


@pytest.mark.parametrize(
    ("kwargs", "complaint"),
    [
        ({"dataset": "no_such"}, "no data set 'no_such'"),
        ({"dataset": "basic_arithmetic", "config": {"nope": 1}}, "no data set 'basic_arithmetic' with"),
        ({"dataset": "basic_arithmetic", "size": 0}, "size is at least 1"),
        ({"dataset": "basic_arithmetic", "time_limit": 0}, "time_limit is above 0"),
    ],
)
def test_what_cannot_be_made_says_why(kwargs: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make(**kwargs)
