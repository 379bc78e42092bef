"""What becomes of episodes: advantages, datums whose masks cover what was sampled, and figures worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import worlds  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st
from loragym.agents import BaseModel, Datum, SamplingParams
from loragym.agents.testing import tiny_model
from loragym.messages import Message
from loragym.renderers import get_renderer
from loragym.trainers import Episode, EpisodeGroup, RLConfig, RLTrainer, Task, Turn, collect
from loragym.trainers.data import (
    agreement_metrics,
    episode_datums,
    episode_metrics,
    group_advantages,
    is_constant,
    training_data,
)
from loragym.trainers.display import StepTable
from loragym.trainers.rl import COLUMNS
from scripted_sampler import TOKENIZER, ScriptedSampler, guess

TASK = Task("tests/Letters-v0", {}, 0)


def group(*rewards: float) -> EpisodeGroup:
    episodes = [
        Episode([Turn([1, 2], [3, 4], [-1.0, -2.0], r)], metrics={"ok": r}, stop_reason="done") for r in rewards
    ]
    return EpisodeGroup(TASK, episodes)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=16))
def test_advantages_of_a_group_sum_to_zero(rewards: list[float]) -> None:
    assert sum(group_advantages(rewards)) == pytest.approx(0, abs=1e-8)
    assert np.diff(group_advantages(rewards)) == pytest.approx(np.diff(rewards), abs=1e-8)


def test_advantages_are_divided_by_the_deviation_only_if_asked_for() -> None:
    assert group_advantages([1, 0, 0, 1]) == [0.5, -0.5, -0.5, 0.5]
    assert group_advantages([1, 0, 0, 1], "deviation") == pytest.approx([1, -1, -1, 1], abs=1e-5)


def test_groups_without_a_difference_are_dropped_and_counted() -> None:
    groups = [group(1, 1, 1), group(1, 0, 0), group(0, 0, 0), group(0.1 + 0.2, 0.3, 0.3)]
    assert [is_constant(g.rewards) for g in groups] == [True, False, True, True]
    data, metrics = training_data(groups)
    assert metrics == {"groups/dropped": 3.0}
    assert [datum.advantages[-1] for datum in data] == pytest.approx([2 / 3, -1 / 3, -1 / 3])


def test_a_mask_covers_the_sampled_tokens_over_all_turns_and_nothing_else() -> None:
    groups = collect(
        ScriptedSampler(guess),
        get_renderer(TOKENIZER),
        [Task("loragym/GuessNumber-v0", {"high": 63}, seed) for seed in range(4)],
        2,
        SamplingParams(),
        seed=(0,),
        context_length=10**6,
    )
    for episode in (episode for g in groups for episode in g.episodes):
        (datum,) = episode_datums(episode, 0.25)
        whole = [*datum.tokens, datum.targets[-1]]
        assert whole == episode.turns[-1].prompt + episode.turns[-1].tokens
        assert datum.targets == whole[1:]
        sampled = [token for turn in episode.turns for token in turn.tokens]
        assert [t for t, m in zip(datum.targets, datum.mask, strict=True) if m] == sampled
        # The script's log-probability of a token is minus its id: each stands at its own target.
        expected = [-float(t) if m else 0.0 for t, m in zip(datum.targets, datum.mask, strict=True)]
        assert datum.logprobs == expected
        assert datum.advantages == [0.25 if m else 0.0 for m in datum.mask]


class Forgetful:
    """A renderer that rewrites history: of earlier replies it keeps a dash."""

    def __init__(self) -> None:
        self._inner = get_renderer(TOKENIZER)
        self.name, self.is_prefix_stable = "forgetful", False
        self.stop_sequences = self._inner.stop_sequences
        self.parse_response = self._inner.parse_response

    def build_generation_prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[int]:
        short = [{**m, "content": "-"} if m["role"] == "assistant" else m for m in messages]
        return self._inner.build_generation_prompt(short, tools)  # type: ignore[arg-type]

    def bridge_to_next_turn(self, *_: Any) -> None:
        return None


def test_an_episode_becomes_several_datums_where_the_renderer_rewrote_the_past() -> None:
    (played,) = collect(
        ScriptedSampler(lambda prompt, _: "abc" * (1 + prompt.count("More!"))),
        Forgetful(),  # type: ignore[arg-type]
        [Task("tests/Letters-v0", {"turns": 3}, 0)],
        1,
        SamplingParams(),
        seed=(0,),
        context_length=10**6,
    )
    (episode,) = played.episodes
    data = episode_datums(episode, 1.0)
    assert len(data) == 3
    for datum, turn in zip(data, episode.turns, strict=True):
        assert [*datum.tokens, datum.targets[-1]] == turn.prompt + turn.tokens
        assert [t for t, m in zip(datum.targets, datum.mask, strict=True) if m] == turn.tokens
    assert TOKENIZER.decode(episode.turns[2].prompt).count("assistant\n-<|im_end|>") == 2


def test_turns_that_extend_each_other_share_a_datum_until_one_does_not() -> None:
    turns = [Turn([1], [2], [-2.0], 0), Turn([1, 2, 3], [4], [-4.0], 0), Turn([1, 9], [5], [-5.0], 0)]
    first, second = episode_datums(Episode(turns), 1.0)
    assert (first.tokens, first.targets, first.mask) == ([1, 2, 3], [2, 3, 4], [True, False, True])
    assert first.logprobs == [-2.0, 0.0, -4.0]
    assert (second.tokens, second.targets, second.mask) == ([1, 9], [9, 5], [False, True])


def test_an_episode_without_turns_gives_no_datum() -> None:
    assert episode_datums(Episode(), 1.0) == []


def test_agreement_of_sampler_and_learner_by_hand() -> None:
    # q = log 0.5 and log 0.25, p = log 0.25 and log 0.5: the ratios are 1/2 and 2.
    datum = Datum(
        tokens=[1, 2, 3],
        targets=[2, 3, 4],
        mask=[False, True, True],
        logprobs=[-99.0, math.log(0.5), math.log(0.25)],
        advantages=[0.0, 1.0, 1.0],
    )
    metrics = agreement_metrics([datum], [np.array([0.0, math.log(0.25), math.log(0.5)])])
    assert metrics["kl_v1"] == pytest.approx(0)
    assert metrics["kl_v2"] == pytest.approx(math.log(2) ** 2 / 2)
    assert (metrics["ratio_min"], metrics["ratio_mean"], metrics["ratio_max"]) == pytest.approx((0.5, 1.25, 2))
    assert metrics["effective_samples"] == pytest.approx(2.5**2 / (2 * 4.25))
    lower = agreement_metrics([datum], [np.array([0.0, math.log(0.25), math.log(0.25)])])
    assert lower["kl_v1"] == pytest.approx(math.log(2) / 2)  # the sampler's less the learner's


def test_figures_of_a_batch_by_hand() -> None:
    good, bad, mixed = group(1, 1), group(0, 0), group(1, 0)
    mixed.episodes[0].stop_reason = "length"
    metrics = episode_metrics([good, bad, mixed, group(0.2, 0.8)])
    assert metrics["reward"] == pytest.approx(0.5)
    assert metrics["env/ok"] == pytest.approx(0.5)
    assert metrics["entropy"] == pytest.approx(1.5)
    assert (metrics["episodes"], metrics["sampled_tokens"], metrics["tokens_per_reply"]) == (8, 16, 2)
    assert metrics["stop/length"] == 1 / 8
    assert metrics["stop/done"] == 7 / 8
    shares = [metrics[f"groups/{kind}"] for kind in ("all_good", "all_bad", "mixed")]
    assert shares == [0.25, 0.25, 0.5]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_on_policy_the_learners_probabilities_are_the_samplers(temperature: float) -> None:
    config = RLConfig(
        env="tests/Letters-v0",
        env_kwargs={"turns": 3},
        problems_per_step=8,
        group_size=4,
        max_tokens=5,
        temperature=temperature,
        eval_problems=0,
        learning_rate=1e-2,
    )
    trainer = RLTrainer(config, BaseModel(*tiny_model()).add_lora("policy"))
    with StepTable(COLUMNS, 3, 0) as table:
        for number in range(3):
            metrics = trainer.step(number, table).metrics
            assert metrics["groups/mixed"] > 0.5
            assert metrics["ratio_min"] == pytest.approx(1, abs=1e-4)
            assert metrics["ratio_max"] == pytest.approx(1, abs=1e-4)
            assert abs(metrics["kl_v1"]) < 1e-5
            assert metrics["effective_samples"] == pytest.approx(1, abs=1e-6)
    assert trainer.policy.version == 3
