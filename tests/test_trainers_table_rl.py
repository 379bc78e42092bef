"""Self-play: all seats by the policy, or against its own past, with what belongs to each seat kept apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pettingzoo")

import torch
from interruptions import assert_resumed_equals_uninterrupted
from loragym.agents import BaseModel, LoraConfig
from loragym.agents.testing import save_tiny_model
from loragym.trainers import TableRLConfig, TableRLTrainer, table_rl
from loragym.trainers.league import League
from loragym.trainers.run_directory import read_metrics
from loragym.trainers.table_rl import scripted_game


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model")))


def small(model: str, folder: Path, **changes: Any) -> TableRLConfig:
    return TableRLConfig(
        **{
            "run_dir": str(folder / "run"),
            "model": model,
            "dtype": "float32",
            "device": "cpu",
            "lora_rank": 8,
            "env": "loragym/KuhnPoker-v0",
            "steps": 4,
            "problems_per_step": 3,
            "group_size": 4,
            "max_tokens": 6,
            "learning_rate": 1e-2,
            "eval_every": 0,
            "eval_problems": 4,
        }
        | changes
    )


def test_a_warm_up_on_scripted_games_teaches_legal_moves(model: str, tmp_path: Path) -> None:
    config = small(
        model,
        tmp_path,
        env="loragym/TicTacToe-v0",
        warmup_steps=40,
        warmup_batch=4,
        warmup_learning_rate=1e-2,
        steps=1,
        eval_problems=16,
        max_tokens=3,
    )
    summary = table_rl.train(config)
    assert summary["before"]["test/sampled/illegal"] == 1.0
    assert summary["after_warmup"]["test/sampled/illegal"] < 0.9
    nll = [row["warmup/nll"] for row in read_metrics(tmp_path / "run")[:40]]
    assert np.mean(nll[-5:]) < 0.6 * np.mean(nll[:5])


def test_scripted_games_are_seen_from_each_seat_and_end_with_what_it_said(tmp_path: Path) -> None:
    for seed in range(5):
        for conversation in scripted_game(small("none", tmp_path, env="loragym/TicTacToe-v0"), seed):
            assert conversation[0]["role"] == "system"
            assert conversation[-1]["role"] == "assistant"
            assert all(m["trainable"] == (m["role"] == "assistant") for m in conversation)


def test_every_seat_of_self_play_is_learnt_from_its_own_turns(model: str, tmp_path: Path) -> None:
    config = small(model, tmp_path, env_kwargs={"illegal": "random"})
    trainer = TableRLTrainer(config, config.load_policy())
    groups = trainer._play(trainer.ground.engine.sampler(trainer.policy), 0)
    seats = [seat for game in trainer._games for seat in game[0].episodes]
    assert len(groups) == len(seats) == 3 * 2
    for group in groups:
        assert len(group.episodes) == 4
        for episode in group.episodes:
            said = [m["content"] for m in episode.messages if m["role"] == "assistant"]
            assert len(said) == len(episode.turns)
    # What one wins at poker the other loses.
    for games in trainer._games:
        for game in games:
            assert sum(game.scores.values()) == pytest.approx(0)
            assert {s: e.reward for s, e in game.episodes.items()} == pytest.approx(game.scores)
    trainer.close()


def test_past_versions_join_the_league_and_are_played_against(model: str, tmp_path: Path) -> None:
    config = small(model, tmp_path, league_every=1, league_size=2, league_share=1.0, env_kwargs={"illegal": "random"})
    table_rl.train(config)
    rows = read_metrics(tmp_path / "run")[:4]
    names = [{k.split("/")[1] for k in row if k.startswith("score/before step")} for row in rows]
    assert names[0] == set()
    assert names[1] == {"before step 1"}
    assert names[3] <= {"before step 2", "before step 3"}
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert sorted(p.name for p in (newest / "league").iterdir()) == ["000002", "000003"]


def test_a_resumed_run_keeps_its_league(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(model, tmp_path, steps=5, league_every=2, league_size=2, env_kwargs={"illegal": "random"})
    assert_resumed_equals_uninterrupted(monkeypatch, table_rl.train, config, after=3)


def test_a_league_keeps_copies_that_later_updates_do_not_change(model: str, tmp_path: Path) -> None:
    base = BaseModel.load(model, dtype=torch.float32, device="cpu")
    policy = base.add_lora("policy", LoraConfig(rank=2))
    league = League(policy, 2)
    for step in (3, 3, 5, 8):
        with torch.no_grad():
            for tensor in policy.parameters:
                tensor.fill_(step)
        league.admit(step)
    assert list(league.members) == [5, 8]
    assert all(float(tensor.mean()) == step for step, member in league.members.items() for tensor in member.parameters)
    league.save_state(tmp_path / "league")
    other = BaseModel.load(model, dtype=torch.float32, device="cpu")
    restored = League(other.add_lora("policy", LoraConfig(rank=2)), 2)
    restored.load_state(tmp_path / "league")
    assert list(restored.members) == [5, 8]
    assert all(float(t.mean()) == step for step, member in restored.members.items() for t in member.parameters)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"env": "loragym/NoSuchGame-v0"}, "there is no table 'loragym/NoSuchGame-v0'"),
        ({"test_opponents": ("cheater",)}, "has no script 'cheater'; it has "),
        ({"league_size": 0}, "league-size is at least 1"),
        ({"staleness": 1}, "self-play takes no staleness"),
        ({"league_share": 1.5}, "league-share is at most 1"),
    ],
)
def test_what_cannot_be_played_is_refused_before_a_model_loads(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        table_rl.train(small("no/such-model", tmp_path, **changes))
