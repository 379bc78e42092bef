"""A mixture plays its sources in their shares, tells them apart, and is one environment to whoever trains on it."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import islice
from typing import Any

import gymnasium
import numpy as np
import pytest
import worlds  # noqa: F401
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from hypothesis import given
from hypothesis import strategies as st
from loragym.envs import checked_group_score, env_attribute, scores_groups
from loragym.envs.mixture import Mixture, weighted_turns
from loragym.messages import assistant

SUMS = {"environment": "loragym/Arithmetic-v0", "env_kwargs": {"high": 9, "few_shot": 0}, "name": "sums"}
GUESS = {"environment": "loragym/GuessNumber-v0", "env_kwargs": {"high": 99}, "name": "guess"}
RANKED = {"environment": "worlds:tests/Ranked-v0", "name": "ranked"}


def mixture(*environments: Any, **kwargs: Any) -> Mixture:
    return Mixture(environments=environments, **kwargs)


def test_sources_are_drawn_in_their_shares_by_the_seed_alone() -> None:
    env = mixture({**SUMS, "weight": 3}, {**GUESS, "weight": 1})
    drawn = [env.reset(seed=seed)[1]["source"] for seed in range(2000)]
    # Binomial with a deviation of 19.
    assert abs(Counter(drawn)["sums"] - 1500) < 80
    other = mixture({**SUMS, "weight": 3}, {**GUESS, "weight": 1})
    assert [other.reset(seed=seed)[1]["source"] for seed in reversed(range(100))] == drawn[99::-1]


def test_further_resets_go_on_drawing() -> None:
    env = mixture(SUMS, GUESS)
    env.reset(seed=0)
    drawn = [env.reset()[1]["source"] for _ in range(400)]
    assert 140 < Counter(drawn)["sums"] < 260
    env.reset(seed=0)
    assert [env.reset()[1]["source"] for _ in range(400)] == drawn


def test_the_same_seed_is_the_same_problem_of_the_same_source() -> None:
    first, second = mixture(SUMS, GUESS), mixture(SUMS, GUESS)
    second.reset(seed=77)
    for seed in range(30):
        assert first.reset(seed=seed) == second.reset(seed=seed)
    assert len({first.reset(seed=seed)[1]["problem"] for seed in range(50)}) > 25


def test_metrics_are_told_apart_by_source() -> None:
    env = mixture(SUMS, GUESS)
    _, info = env.reset(seed=0, options={"source": "sums"})
    assert env.step(info["reference"])[4] == {
        "metrics": {
            "correct": 1.0,
            "format": 1.0,
            "sums/correct": 1.0,
            "sums/format": 1.0,
            "sums/reward": 1.0,
            "sums/share": 1.0,
            "guess/share": 0.0,
        },
        "stop_reason": "completed",
        "source": "sums",
    }
    env.reset(seed=0, options={"source": "guess"})
    env.step("?")
    metrics = env.step("?")[4]["metrics"]
    assert metrics["guess/reward"] == pytest.approx(-0.2)  # of the episode so far
    assert (metrics["guess/share"], metrics["sums/share"], metrics["guess/malformed"]) == (1.0, 0.0, 2.0)
    assert "sums/correct" not in metrics


def test_options_pick_a_source_and_reach_it() -> None:
    env = mixture(SUMS, GUESS)
    _, info = env.reset(seed=5, options={"source": "guess", "index": 3})
    _, again = env.reset(seed=6, options={"source": "guess", "index": 3})
    assert (info["source"], info["problem"]) == ("guess", again["problem"])
    with pytest.raises(ValueError, match=re.escape("there is no source 'chess'; there are ['sums', 'guess']")):
        env.reset(options={"source": "chess"})
    with pytest.raises(ValueError, match="unknown options"):
        env.reset(options={"source": "sums", "colour": "red"})


def test_numbered_problems_come_in_the_shares_and_each_once() -> None:
    env = mixture({**SUMS, "weight": 1}, {**GUESS, "weight": 3}, split="test")
    sums, guess = (source.num_problems for source in env.sources)
    assert sums is not None and guess is not None
    count = env.num_problems
    assert count is not None
    problems = [env.reset(seed=index, options={"index": index})[1] for index in range(count)]
    by_source = Counter(info["source"] for info in problems)
    # Whichever source runs out first decides how many there are: guess has 3 in 4.
    assert by_source["guess"] == guess < 3 * sums
    assert abs(by_source["sums"] - guess / 3) <= 1
    assert len({(info["source"], info["problem"]) for info in problems}) == count
    assert {info["source"] for info in problems[::3]} == {"guess", "sums"}
    # Of a source with more problems than turns they are taken evenly, not from its beginning.
    if by_source["sums"] < sums:
        inner = env.sources[0].env
        turns = by_source["sums"]
        chosen = {inner.reset(options={"index": turn * sums // turns})[1]["problem"] for turn in range(turns)}
        assert {info["problem"] for info in problems if info["source"] == "sums"} == chosen


def test_every_other_problem_is_not_all_of_one_source() -> None:
    env = mixture(SUMS, GUESS)
    assert env.num_problems is not None and env.num_problems > 40
    for stride in (2, 3, 4):
        taken = range(0, env.num_problems, stride)
        share = np.mean([env.reset(seed=0, options={"index": index})[1]["source"] == "sums" for index in taken])
        assert 0.25 < share < 0.75


def test_an_index_that_is_no_problem_is_refused() -> None:
    env = mixture(SUMS, GUESS)
    for index in (-1, env.num_problems, "0", True, 1.0):
        with pytest.raises(ValueError, match="index is an int from 0 to"):
            env.reset(options={"index": index})
    assert env.reset(options={"index": np.int64(0)})[1]["source"] == "sums"
    unnumbered = mixture(SUMS, "worlds:tests/Letters-v0")
    assert unnumbered.num_problems is None
    with pytest.raises(ValueError, match="not numbered"):
        unnumbered.reset(options={"index": 0})


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_turns_are_as_even_as_can_be(weights: list[int]) -> None:
    total = sum(weights)
    turns = list(islice(weighted_turns([weight / total for weight in weights]), 2 * total))
    for length in range(1, 2 * total + 1):
        counts = Counter(turns[:length])
        assert all(abs(counts[i] - length * weight / total) < len(weights) for i, weight in enumerate(weights))
    # After a whole round everybody had exactly as many turns as its weight says.
    assert all(Counter(turns[:total])[i] == weight for i, weight in enumerate(weights))


def test_the_split_reaches_sources_that_have_one() -> None:
    training, test = (mixture(SUMS, "worlds:tests/Letters-v0", split=split) for split in ("train", "test"))
    assert training.sources[0].num_problems != test.sources[0].num_problems
    asked = {test.reset(seed=seed, options={"source": "sums"})[1]["problem"] for seed in range(200)}
    assert not asked & {training.reset(seed=seed, options={"source": "sums"})[1]["problem"] for seed in range(200)}


def test_wrappers_go_around_a_source() -> None:
    env = mixture({**GUESS, "wrappers": [{"wrapper": "TurnLimit", "max_turns": 1}]})
    env.reset(seed=0)
    assert env.step("?")[4]["stop_reason"] == "max_turns"


def test_tools_and_group_rewards_are_the_source_s_own() -> None:
    assert not scores_groups(mixture(SUMS, GUESS))
    env = mixture(SUMS, RANKED)
    assert scores_groups(env)
    opening, _ = env.reset(seed=0, options={"source": "ranked"})
    score = checked_group_score(env, [[*opening, assistant(text)] for text in ("abc", "a")])
    assert score is not None and list(score.rewards) == [0.0, 1.0]
    env.reset(seed=0, options={"source": "sums"})
    assert checked_group_score(env, [[*opening, assistant("abc")]]) is None
    assert env_attribute(env, "tools") == ()


def test_names_are_those_of_the_ids_and_never_twice_the_same() -> None:
    plain = "loragym/Arithmetic-v0"
    assert [source.name for source in mixture(plain, plain, GUESS).sources] == ["Arithmetic", "Arithmetic-2", "guess"]
    with pytest.raises(ValueError, match="a name of its own"):
        mixture(plain, plain, {**SUMS, "name": "Arithmetic-2"})


def test_it_is_made_from_json() -> None:
    env = gymnasium.make("loragym/Mixture-v0", environments=[{**SUMS, "weight": 2}, "loragym/GuessNumber-v0"])
    assert env.spec is not None
    again = gymnasium.make(EnvSpec.from_json(json.dumps(json.loads(env.spec.to_json()))))
    assert [env.reset(seed=seed) for seed in range(9)] == [again.reset(seed=seed) for seed in range(9)]


def test_it_renders_the_source_that_is_playing() -> None:
    env = mixture(SUMS, GUESS, render_mode="ansi")
    assert env.render() == ""
    env.reset(seed=0, options={"source": "sums"})
    env.step("12")
    assert env.render().endswith("[assistant] 12")
    assert mixture(SUMS).render() is None


def test_a_step_needs_an_episode() -> None:
    with pytest.raises(ResetNeeded, match="call reset"):
        mixture(SUMS).step("12")


@pytest.mark.parametrize(
    ("environments", "complaint"),
    [
        ([], "a list of at least one environment, got []"),
        ("loragym/Arithmetic-v0", "a list of at least one environment"),
        ([{"env_kwargs": {}}], "is an id or"),
        ([{**SUMS, "weigth": 2}], "['weigth'] as well"),
        ([{**SUMS, "weight": 0}], "a number above 0, got 0"),
        ([{**SUMS, "weight": float("inf")}], "a number above 0"),
        (["loragym/Nothing-v0"], "cannot make the environment 'loragym/Nothing-v0'"),
        ([{**SUMS, "env_kwargs": {"hihg": 9}}], "unexpected keyword argument 'hihg'"),
        ([{**SUMS, "wrappers": ["Nothing"]}], "there is no wrapper 'Nothing'"),
    ],
)
def test_what_cannot_be_mixed_is_explained(environments: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        Mixture(environments=environments)
