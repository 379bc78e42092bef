"""Streamed, asynchronous and refilled steps teach what plain ones do; a world's errors cost an episode, not a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import worlds
from interruptions import assert_resumed_equals_uninterrupted, logged, saved
from loragym.agents.testing import save_tiny_model
from loragym.envs import Outcome
from loragym.messages import Reply
from loragym.trainers import RLConfig, RLTrainer, rl
from loragym.trainers.run_directory import read_metrics
from safetensors.torch import load_file

UNLIKE = ("computed_tokens", "time/step", "time/elapsed", "time/sample", "time/update", "tokens_per_second")
"""Figures that depend on the clock, or on how a batch is cut."""


class Unsteady(worlds.Letters):
    """Raises an exception at some replies, once each; at every time if it is stubborn."""

    heard: ClassVar[set[str]] = set()

    def __init__(self, *, stubborn: bool = False, chance: float = 0.3) -> None:
        super().__init__()
        self.stubborn, self.chance = stubborn, chance

    def respond(self, reply: Reply) -> Outcome:
        bad = sum(map(ord, reply["content"])) % 100 < 100 * self.chance
        if bad and (self.stubborn or reply["content"] not in self.heard):
            self.heard.add(reply["content"])
            raise ConnectionError("the tool's server is gone")
        return super().respond(reply)


if "tests/Unsteady-v0" not in gymnasium.registry:
    gymnasium.register("tests/Unsteady-v0", entry_point=Unsteady)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model")))


def small(model: str, folder: Path, **changes: Any) -> RLConfig:
    return RLConfig(
        **{
            "run_dir": str(folder / "run"),
            "model": model,
            "dtype": "float32",
            "device": "cpu",
            "lora_rank": 8,
            "env": "tests/Letters-v0",
            "steps": 4,
            "problems_per_step": 6,
            "group_size": 4,
            "max_tokens": 3,
            "learning_rate": 1e-2,
            "eval_every": 0,
            "eval_problems": 4,
        }
        | changes
    )


@pytest.mark.parametrize("normalization", ["token", "sequence", "sum"])
@pytest.mark.parametrize("groups", [1, 4, 100])
def test_a_streamed_step_is_the_synchronous_one(model: str, tmp_path: Path, normalization: str, groups: int) -> None:
    updated = []
    for name, changes in (("plain", {}), ("streamed", {"stream_groups": groups})):
        # Replies of different lengths, so that groups are over at different times.
        # In double precision, for Adam makes much of the rounding of gradients that are nearly nothing.
        config = small(
            model, tmp_path / name, steps=2, normalization=normalization, max_tokens=12, dtype="float64", **changes
        )
        rl.train(config)
        newest = max(Path(config.run_dir, "checkpoints").iterdir())
        updated.append((load_file(newest / "adapter_model.safetensors"), read_metrics(config.run_dir)))
    for name, tensor in updated[0][0].items():
        np.testing.assert_allclose(tensor.numpy(), updated[1][0][name].numpy(), atol=1e-6)
    for plain, streamed in zip(updated[0][1], updated[1][1], strict=True):
        for key in set(plain) - set(UNLIKE):
            assert streamed[key] == pytest.approx(plain[key], abs=1e-5, rel=1e-4), key


def test_asynchronous_steps_play_with_weights_as_old_as_was_allowed(model: str, tmp_path: Path) -> None:
    rl.train(small(model, tmp_path, staleness=2, steps=6, loss="ppo"))
    rows = read_metrics(tmp_path / "run")[:6]
    assert [row["staleness"] for row in rows] == [0, 1, 2, 2, 2, 2]
    # Off the policy that learns, and said so.
    assert all(abs(row["ratio_max"] - 1) < 1e-4 for row in rows[:1])
    assert all(abs(row["ratio_max"] - 1) > 1e-3 for row in rows[2:])


def test_asynchronous_with_staleness_0_is_synchronous(model: str, tmp_path: Path) -> None:
    """The batch that a thread plays with the same weights is the batch that the caller plays itself."""
    config = small(model, tmp_path, staleness=1)
    trainer = RLTrainer(config, config.load_policy())
    try:
        ahead = trainer.forerunner.take(0)
        trainer.forerunner.wait()
        here = trainer._play(trainer.ground.engine.sampler(trainer.policy), 0)
        assert ahead.groups == here
        later = trainer.forerunner.take(1)
        assert later.groups == trainer._play(trainer.ground.engine.sampler(trainer.policy), 1)
    finally:
        trainer.close()
    plain, asynchronous = (
        small(model, tmp_path / "plain", steps=1),
        small(model, tmp_path / "ahead", steps=1, staleness=3),
    )
    rl.train(plain)
    rl.train(asynchronous)
    states = [saved(Path(config.run_dir)) for config in (plain, asynchronous)]
    assert states[0] == states[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"staleness": 2},
        {"stream_groups": 2},
        {"refill_rounds": 2},
        {"advantages": "gae", "loss": "ppo", "num_passes": 2},
        {"kl_coef": 0.1, "kl_reference": "start", "kl_target": 0.001, "warmup_steps": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_resumed_run_of_every_kind_equals_an_uninterrupted_one(
    model: str, tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(model, tmp_path, steps=6, **changes)
    assert_resumed_equals_uninterrupted(monkeypatch, rl.train, config, after=4)


def test_a_damaged_queue_is_named(model: str, tmp_path: Path) -> None:
    config = small(model, tmp_path, staleness=1)
    trainer = RLTrainer(config, config.load_policy())
    trainer.forerunner.take(0)
    trainer.forerunner.save_state(tmp_path)
    (tmp_path / "queue.json").write_text(json.dumps({"1": {"version": 0}}))
    with pytest.raises(ValueError, match=r"queue.json is damaged \(KeyError: 'groups'\); use another checkpoint"):
        trainer.forerunner.load_state(tmp_path)
    trainer.close()


def test_constant_groups_are_made_up_for_by_further_problems(model: str, tmp_path: Path) -> None:
    # Replies of one byte: a group of two often agrees.
    changes = {"max_tokens": 1, "group_size": 2, "steps": 3, "problems_per_step": 8}
    rl.train(small(model, tmp_path / "plain", **changes))
    rl.train(small(model, tmp_path / "refilled", refill_rounds=8, **changes))
    plain, refilled = (read_metrics(tmp_path / name / "run")[:3] for name in ("plain", "refilled"))
    for before, after in zip(plain, refilled, strict=True):
        assert before["groups/dropped"] > 0
        mixed = after["episodes"] / 2 - after["groups/dropped"]
        assert mixed == 8
        assert after["episodes"] > before["episodes"]
    # The first round is the plain step's own, and within a limit that cannot be met the step goes on with what it has.
    rl.train(small(model, tmp_path / "never", env="loragym/GuessNumber-v0", refill_rounds=1, steps=1, eval_problems=0))
    (row, _) = read_metrics(tmp_path / "never" / "run")
    assert row["episodes"] <= 2 * 6 * 4


def test_an_episode_that_fails_is_played_again(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Unsteady, "heard", set())
    rl.train(small(model, tmp_path, env="tests/Unsteady-v0", steps=2, eval_problems=0))
    for row in read_metrics(tmp_path / "run")[:2]:
        assert row["errors/retried"] >= 3
        assert row["errors/dropped"] == 0
        assert row["episodes"] == 24


def test_an_episode_that_fails_again_and_again_is_left_out_and_counted(model: str, tmp_path: Path) -> None:
    rl.train(small(model, tmp_path, env="tests/Unsteady-v0", env_kwargs={"stubborn": True}, steps=2, eval_problems=0))
    for row in read_metrics(tmp_path / "run")[:2]:
        assert row["errors/dropped"] > 0
        assert row["episodes"] == 24 - row["errors/dropped"]
        assert row["errors/retried"] == 2 * row["errors/dropped"]
        assert "grad_norm" in row


def test_a_world_in_which_every_episode_fails_stops_the_run_with_its_error(model: str, tmp_path: Path) -> None:
    kwargs = {"stubborn": True, "chance": 1.0}
    with pytest.raises(
        RuntimeError, match=r"every episode ended with an error.*ConnectionError: the tool's server is gone"
    ):
        rl.train(small(model, tmp_path, env="tests/Unsteady-v0", env_kwargs=kwargs, eval_problems=0))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"stream_groups": 2, "staleness": 1}, "does not go with staleness"),
        ({"stream_groups": 2, "num_substeps": 2}, "num-substeps and num-passes"),
        ({"stream_groups": 2, "kl_coef": 0.1}, "a KL penalty as advantage"),
        ({"staleness": -1}, "staleness is at least 0"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        RLConfig(**changes)


def test_runs_are_compared_without_the_clock(model: str, tmp_path: Path) -> None:
    rl.train(small(model, tmp_path, steps=1))
    assert not any(name.startswith("time/") for row in logged(tmp_path / "run") for name in row)
