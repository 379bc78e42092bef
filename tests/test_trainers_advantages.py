"""Advantages, KL penalties and the critic, against tables worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st
from loragym.agents import AdamParams, BaseModel, Datum, LoraConfig
from loragym.agents.testing import save_tiny_model
from loragym.trainers import Episode, EpisodeGroup, RLConfig, Task, Turn, rl
from loragym.trainers.advantages import (
    BASELINES,
    KLController,
    explained_variance,
    generalized_advantages,
    group_advantages,
    with_kl_penalty,
)
from loragym.trainers.critic import Critic, token_rewards, whiten
from loragym.trainers.data import episode_datums, training_data
from loragym.trainers.learners import Learners
from loragym.trainers.run_directory import read_metrics

rewards_of_groups = st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=9)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model")))


def small(model: str, folder: Path, **changes: Any) -> RLConfig:
    return RLConfig(
        **{
            "run_dir": str(folder),
            "model": model,
            "dtype": "float32",
            "device": "cpu",
            "lora_rank": 8,
            "env": "tests/Letters-v0",
            "steps": 4,
            "problems_per_step": 4,
            "group_size": 4,
            "max_tokens": 3,
            "learning_rate": 1e-2,
            "eval_every": 0,
            "eval_problems": 4,
        }
        | changes
    )


def test_each_baseline_by_hand() -> None:
    assert group_advantages([1, 0, 0, 1], "mean") == [0.5, -0.5, -0.5, 0.5]
    assert group_advantages([3, 0, 0], "leave_one_out") == [3, -1.5, -1.5]
    assert group_advantages([1, 0, 0, 1], "deviation") == pytest.approx([1, -1, -1, 1], abs=1e-5)
    assert all(group_advantages([0.3] * 5, baseline) == [0.0] * 5 for baseline in BASELINES)


@given(rewards_of_groups)
def test_advantages_of_a_group_add_up_to_nothing(rewards: list[float]) -> None:
    for baseline in BASELINES:
        assert sum(group_advantages(rewards, baseline)) == pytest.approx(0, abs=1e-4)


@given(rewards_of_groups)
def test_leave_one_out_is_the_lead_over_the_mean_of_the_others(rewards: list[float]) -> None:
    total = sum(rewards)
    by_hand = [r - (total - r) / (len(rewards) - 1) for r in rewards]
    found = group_advantages(rewards, "leave_one_out")
    assert found == pytest.approx(by_hand if any(found) else [0.0] * len(rewards), abs=1e-4)


def test_generalized_advantages_against_a_table_worked_out_by_hand() -> None:
    # d = r + 0.5 v' - v = [1 + 2 - 2, 0 + 4 - 4, 2 + 0 - 8] = [1, 0, -6]; A_t = d_t + 0.5 * 0.5 A_(t+1).
    advantages, returns = generalized_advantages(
        np.array([1.0, 0.0, 2.0]), np.array([2.0, 4.0, 8.0]), discount=0.5, decay=0.5
    )
    assert advantages.tolist() == [1 + 0.25 * -1.5, -1.5, -6]
    assert returns.tolist() == [2.625, 2.5, 2.0]


def test_generalized_advantages_of_an_episode_that_was_broken_off_go_on_with_the_critics_value() -> None:
    advantages, _ = generalized_advantages(np.array([0.0]), np.array([1.0]), discount=0.5, decay=1.0, last_value=10.0)
    assert advantages.tolist() == [4.0]


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=12), st.floats(0, 1))
def test_generalized_advantages_lie_between_one_step_and_the_whole_episode(
    pairs: list[tuple[float, float]], discount: float
) -> None:
    rewards, values = np.array(pairs).T
    whole, returns = generalized_advantages(rewards, values, discount=discount, decay=1.0)
    discounted = [sum(discount**k * r for k, r in enumerate(rewards[t:])) for t in range(len(rewards))]
    np.testing.assert_allclose(returns, discounted, atol=1e-9)
    np.testing.assert_allclose(whole, np.array(discounted) - values, atol=1e-9)
    one_step, _ = generalized_advantages(rewards, values, discount=discount, decay=0.0)
    np.testing.assert_allclose(one_step, rewards + discount * np.append(values[1:], 0) - values, atol=1e-9)


def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_a_constant_one() -> None:
    returns = np.array([0.0, 1.0, 2.0, 5.0])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(np.full(4, 7.0), returns) == 0
    assert explained_variance(-returns, returns) == pytest.approx(-3)
    assert np.isnan(explained_variance(returns, np.ones(4)))


def datum(logprobs: list[float]) -> Datum:
    n = len(logprobs)
    return Datum(
        tokens=[1] * (n + 1),
        targets=[1] * (n + 1),
        mask=[False] + [True] * n,
        logprobs=[0.0, *logprobs],
        advantages=[0.0] + [1.0] * n,
    )


def test_a_kl_penalty_is_what_a_token_costs_above_the_mean() -> None:
    data = [datum([-1.0, -2.0]), datum([-3.0])]
    reference = [np.array([9.0, -1.5, -2.0]), np.array([9.0, -4.0])]
    # log-ratios 0.5, 0, 1: their mean is 0.5.
    edited, kl = with_kl_penalty(data, reference, 0.1)
    assert kl == pytest.approx(0.5)
    assert [list(d.advantages or ()) for d in edited] == [[0, 1.0, pytest.approx(1.05)], [0, pytest.approx(0.95)]]
    discounted, _ = with_kl_penalty(data, reference, 0.1, discount=0.5)
    assert list(discounted[0].advantages or ()) == pytest.approx([0, 1.025, 1.05])
    assert sum(data[0].advantages or ()) == 2  # the data given are as they were


def test_a_coefficient_follows_the_kl_that_it_brings_about() -> None:
    controller = KLController(0.1, target=0.02, horizon=1000)
    controller.update(0.04, 100)  # twice the target, which counts as a fifth too much
    assert controller.coef == pytest.approx(0.1 * 1.02)
    controller.update(0.019, 100)
    assert controller.coef == pytest.approx(0.1 * 1.02 * (1 - 0.05 * 0.1))
    still = KLController(0.1)
    still.update(5.0, 10_000)
    assert still.coef == 0.1


def episode(*turns: tuple[int, float], group_reward: float = 0.0) -> Episode:
    seen: list[int] = [1, 2]
    found = Episode(group_reward=group_reward)
    for length, reward in turns:
        tokens = [(7 * len(seen) + i) % 256 for i in range(length)]
        found.turns.append(Turn(list(seen), tokens, [-1.0] * length, reward))
        seen += [*tokens, 3, 4]
    return found


def test_a_turns_reward_belongs_to_its_last_token_and_the_groups_to_the_very_last() -> None:
    assert token_rewards(episode((2, 1.0), (3, -0.5), group_reward=0.25)).tolist() == [0, 1, 0, 0, -0.25]


def test_a_constant_group_teaches_nothing() -> None:
    task = Task("x", {}, 0)
    constant = EpisodeGroup(task, [episode((2, 1.0)), episode((3, 1.0))])
    mixed = EpisodeGroup(task, [episode((2, 1.0)), episode((3, 0.0))])
    assert training_data([constant]) == ([], {"groups/dropped": 1.0})
    data, metrics = training_data([constant, mixed])
    assert len(data) == 2
    assert metrics == {"groups/dropped": 1.0}


def test_a_critic_learns_what_episodes_are_worth(model: str) -> None:
    base = BaseModel.load(model, dtype=torch.float32, device="cpu")
    critic = Critic(base.add_scorer("critic", LoraConfig(rank=8)), discount=1.0, decay=1.0, clip=0.0)
    # Worth 1 or 0 by the prompt's first token; the critic begins at 0 everywhere.
    episodes = []
    for kind in (10, 200):
        for i in range(4):
            e = Episode()
            e.turns.append(Turn([kind, 5 + i], [30 + i, 40], [-1.0, -1.0], float(kind == 10)))
            episodes.append(e)
    given = [(episode_datums(e, 0.0), token_rewards(e)) for e in episodes]
    first = critic.assess(given)
    assert all(not values.any() for v in first for values in v.values)
    assert [d.advantages for d in first[0].data] == [[0.0, 1.0, 1.0]]
    for _ in range(40):
        metrics = critic.learn(critic.assess(given), AdamParams(learning_rate=1e-2))
    assert metrics["critic/explained_variance"] > 0.9
    assert metrics["critic/value"] == pytest.approx(0.5, abs=0.1)
    advantages = [np.abs(np.asarray(d.advantages)).max() for v in critic.assess(given) for d in v.data]
    assert max(advantages) < 0.3


def test_whitened_advantages_have_mean_zero_and_deviation_one(model: str) -> None:
    base = BaseModel.load(model, dtype=torch.float32, device="cpu")
    critic = Critic(base.add_scorer("critic"), discount=0.9, decay=0.9, clip=0.2)
    episodes = [episode((2, 1.0), (3, 0.0)), episode((4, -1.0))]
    whitened = whiten(critic.assess([(episode_datums(e, 0.0), token_rewards(e)) for e in episodes]))
    every = np.concatenate([np.asarray(d.advantages)[d.trained] for v in whitened for d in v.data])
    assert every.mean() == pytest.approx(0, abs=1e-9)
    assert every.std() == pytest.approx(1)


def test_ppo_with_a_critic_learns_and_its_critic_comes_to_explain_the_returns(model: str, tmp_path: Path) -> None:
    config = small(
        model,
        tmp_path,
        env="tests/Unequal-v0",
        steps=24,
        problems_per_step=16,
        group_size=2,
        advantages="gae",
        gae_decay=0.95,
        critic_learning_rate=1e-2,
        value_clip=0.0,
        loss="ppo",
        num_passes=2,
    )
    summary = rl.train(config)
    assert summary["last_reward"] > summary["first_reward"] + 0.2
    explained = [row["critic/explained_variance"] for row in read_metrics(tmp_path)[:-1]]
    assert explained[0] < 0.05
    assert np.mean(explained[-5:]) > 0.6


@pytest.mark.parametrize("kl_as", ["advantage", "loss", "full"])
@pytest.mark.parametrize("reference", ["base", "start"])
def test_the_kl_to_the_reference_is_nothing_at_the_start_and_the_penalty_holds_it_down(
    model: str, tmp_path: Path, reference: str, kl_as: str
) -> None:
    def kls(coef: float) -> list[float]:
        folder = tmp_path / f"{coef}"
        estimator = {"advantage": "k1", "loss": "k2", "full": "k1"}[kl_as]
        config = small(
            model, folder, steps=12, kl_coef=coef, kl_reference=reference, kl_as=kl_as, kl_estimator=estimator
        )
        rl.train(config)
        return [row["kl_reference"] for row in read_metrics(folder)[:-1] if "kl_reference" in row]

    free, held = kls(1e-9), kls(2.0)
    assert abs(free[0]) < 1e-5
    assert abs(held[0]) < 1e-5
    assert np.mean(held[-4:]) < 0.5 * np.mean(free[-4:])


def test_an_adaptive_coefficient_moves_and_is_kept_by_a_resumed_run(model: str, tmp_path: Path) -> None:
    rl.train(small(model, tmp_path, kl_coef=0.1, kl_target=1e-6, steps=6))
    coefs = [row["kl_coef"] for row in read_metrics(tmp_path)[:6]]
    assert coefs[0] == 0.1
    assert coefs[-1] > coefs[1]
    values = json.loads((tmp_path / "checkpoints" / "step-000006" / "values.json").read_text())
    assert values["kl_coef"] >= coefs[-1]


def test_learners_save_and_restore_all_they_hold(model: str, tmp_path: Path) -> None:
    base = BaseModel.load(model, dtype=torch.float32, device="cpu")
    policy, critic = base.add_lora("policy", LoraConfig(rank=2)), base.add_scorer("critic", LoraConfig(rank=2))
    values = {"kl_coef": 0.25}
    learners = Learners(policy, {"critic": critic}, values)
    critic.forward_backward([Datum.scored([1, 2, 3], [1])], lambda scores, _: ((scores[0] - 1).square().sum(), {}))
    critic.optim_step()
    assert learners.version == 1
    (tmp_path / "critic").mkdir()
    learners.save_state(tmp_path)
    other = BaseModel.load(model, dtype=torch.float32, device="cpu")
    restored = Learners(
        other.add_lora("policy", LoraConfig(rank=2)), {"critic": other.add_scorer("critic", LoraConfig(rank=2))}, {}
    )
    restored.load_state(tmp_path)
    assert restored.values == values
    assert restored.version == 1
    scorer: Any = restored.others["critic"]
    assert scorer.score([Datum.scored([1, 2, 3], [1])])[0] == critic.score([Datum.scored([1, 2, 3], [1])])[0]
    (tmp_path / "values.json").write_text("[broken")
    with pytest.raises(ValueError, match=r"values.json is damaged.*use another checkpoint"):
        restored.load_state(tmp_path)
