"""Reinforcement learning raises rewards, by the schedule asked for, and is judged on problems that it never saw."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds  # noqa: F401
from loragym.agents import LoraPolicy
from loragym.agents.base_model import BaseModel
from loragym.agents.testing import save_tiny_model
from loragym.trainers import RLConfig, RunError, lessons, rl
from loragym.trainers.evaluation import check_env_id, held_out_tasks, takes_split
from loragym.trainers.rollouts import EnvPool
from loragym.trainers.run_directory import read_metrics
from loragym.trainers.watch import TooManySkipped


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


def test_the_reward_of_a_simple_task_rises(model: str, tmp_path: Path) -> None:
    config = small(model, tmp_path, steps=20, problems_per_step=8, group_size=8, eval_problems=32)
    summary = rl.train(config)
    assert summary["first_reward"] < 0.6
    assert summary["last_reward"] > 0.75
    assert summary["after"]["test/sampled/env/letters"] > summary["before"]["test/sampled/env/letters"] + 0.3
    rows = read_metrics(tmp_path)
    assert summary["first_reward"] == rows[0]["reward"]
    assert summary["last_reward"] == pytest.approx(np.mean([row["reward"] for row in rows[15:20]]))
    assert all(row["ratio_max"] == pytest.approx(1, abs=1e-4) for row in rows if "ratio_max" in row)


@pytest.mark.parametrize(("substeps", "passes"), [(1, 1), (4, 1), (2, 3)])
def test_tokens_of_all_updates_of_a_step_count_as_trained(
    model: str, tmp_path: Path, substeps: int, passes: int
) -> None:
    rl.train(small(model, tmp_path, steps=1, loss="ppo", num_substeps=substeps, num_passes=passes, eval_problems=0))
    row = read_metrics(tmp_path)[0]
    assert row["groups/mixed"] == 1 and row["trained_tokens"] == passes * row["sampled_tokens"]


def test_a_letter_that_a_warm_up_hinted_at_is_learnt_from_the_reward_alone(model: str, tmp_path: Path) -> None:
    summary = rl.train(
        small(
            model,
            tmp_path,
            env="tests/Fixed-v0",
            warmup_steps=4,
            warmup_batch=4,
            warmup_learning_rate=1e-2,
            steps=20,
            learning_rate=5e-3,
            problems_per_step=8,
            group_size=8,
        )
    )
    # So small a model has a tied head that gives no token more than two thirds: two tokens, 0.4 at best.
    assert summary["first_reward"] < 0.15
    assert summary["last_reward"] > 0.3
    stages = [summary[stage]["test/greedy/env/correct"] for stage in ("before", "after_warmup", "after")]
    assert stages == [0, 1, 1]
    nll = [row["warmup/nll"] for row in read_metrics(tmp_path)[:4]]
    assert nll == sorted(nll, reverse=True)


def test_several_updates_a_step_each_take_a_share_of_the_groups(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    original = LoraPolicy.forward_backward

    def counting(self: LoraPolicy, data: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append((len(data), args[0], args[1]))
        return original(self, data, *args, **kwargs)

    monkeypatch.setattr(LoraPolicy, "forward_backward", counting)
    config = small(model, tmp_path, loss="ppo", loss_config={"clip_high": 0.3}, num_substeps=2, steps=3)
    rl.train(config)
    assert len(sizes) == 6
    assert {size for size, _, _ in sizes} <= {4, 8}  # two groups of four at most
    assert {(loss, tuple(kwargs.items())) for _, loss, kwargs in sizes} == {("ppo", (("clip_high", 0.3),))}
    rows = read_metrics(tmp_path)[:3]
    # The second share was sampled before the first one's update.
    assert all(row["ratio_max"] > 1.001 for row in rows)
    assert all(row["effective_samples"] < 1 for row in rows)
    state = json.loads((tmp_path / "checkpoints" / "step-000003" / "state.json").read_text())
    assert state["version"] == 6


def test_the_linear_schedule_falls_to_zero_over_the_learning_steps(model: str, tmp_path: Path) -> None:
    rl.train(small(model, tmp_path, schedule="linear", warmup_steps=2, warmup_batch=2, warmup_learning_rate=5e-3))
    rates = [row.get("learning_rate") for row in read_metrics(tmp_path)[:6]]
    assert rates == pytest.approx([5e-3, 5e-3, 1e-2, 7.5e-3, 5e-3, 2.5e-3])


def test_a_step_whose_groups_all_agree_updates_nothing_and_says_so(model: str, tmp_path: Path) -> None:
    summary = rl.train(small(model, tmp_path, env="loragym/GuessNumber-v0", env_kwargs={"max_turns": 2}, steps=2))
    for row in read_metrics(tmp_path)[:2]:
        assert (row["updates_skipped"], row["groups/dropped"], row["groups/all_bad"]) == (1, 4, 1)
        assert row["reward"] == pytest.approx(-0.2)
        assert "grad_norm" not in row
    assert summary["trained_tokens_per_second"] == 0
    state = json.loads((tmp_path / "checkpoints" / "step-000002" / "state.json").read_text())
    assert state["version"] == 0


def test_evaluations_come_at_the_ends_of_the_warm_up_and_every_few_steps_after(model: str, tmp_path: Path) -> None:
    rl.train(small(model, tmp_path, warmup_steps=3, warmup_batch=2, steps=5, eval_every=2))
    evaluated = [row["step"] for row in read_metrics(tmp_path) if "test/greedy/reward" in row]
    assert evaluated == [0, 3, 5, 7, 8]


def test_an_advantage_that_is_no_number_stops_the_run_where_it_can_be_resumed(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(model, tmp_path, save_every=100, max_skipped=1)
    whole = lessons.group_advantages
    calls = []

    def poisoned(rewards: Any, *options: Any) -> list[float]:
        calls.append(rewards)
        return [float("nan")] * len(rewards) if len(calls) > 8 else whole(rewards, *options)

    monkeypatch.setattr(lessons, "group_advantages", poisoned)
    with pytest.raises(TooManySkipped, match=r"1 steps in a row .* the loss 'importance_sampling' is nan") as caught:
        rl.train(config)
    assert "the run is saved at step 3 of 4" in caught.value.__notes__[0]
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-000003"]
    monkeypatch.undo()
    assert rl.train(config)["health"]["skipped_updates"] == {"steps": 1, "first": 2, "last": 2}
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[2]["reward"] is not None
    assert rows[2]["loss"] is None


def test_transcripts_show_what_was_said_in_each_step(model: str, tmp_path: Path) -> None:
    rl.train(small(model, tmp_path, env="tests/Surrogates-v0", steps=2, transcripts_per_step=1))
    files = sorted((tmp_path / "transcripts").iterdir())
    assert [file.name for file in files] == ["step-000000.jsonl", "step-000001.jsonl"]
    rows = [json.loads(line) for line in files[0].read_text(encoding="utf-8").split("\n")[:-1]]
    assert len(rows) == 2
    assert rows[0]["messages"][0]["content"] == "half of an emoji: \ud83d and a separator: \u2028"
    assert rows[0]["task"].startswith("tests/Surrogates-v0 seed ")


def test_a_finished_run_returns_its_summary_and_loads_no_model(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(model, tmp_path, steps=1)
    summary = rl.train(config)
    monkeypatch.setattr(BaseModel, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert rl.train(config) == json.loads(json.dumps(summary))


def test_held_out_problems_are_of_the_test_split_and_never_trained_on() -> None:
    kwargs = {"high": 12}
    pool = EnvPool()

    def question(task: Any) -> str:
        env = pool.take(task)
        messages, _ = env.reset(seed=task.seed, options=task.options)
        pool.give_back(task, env)
        return str(messages[-1]["content"])

    tasks = held_out_tasks("loragym/Arithmetic-v0", kwargs, 1000)
    assert all(task.kwargs == {"high": 12, "split": "test"} for task in tasks)
    asked = [question(task) for task in tasks]
    assert len(set(asked)) == len(asked) > 5  # the whole split, each problem once
    trained = {
        question(replace(task, kwargs=kwargs, options=None, seed=seed)) for seed in range(300) for task in tasks[:1]
    }
    assert len(trained) > 80
    assert not trained & set(asked)
    assert len(held_out_tasks("loragym/Arithmetic-v0", kwargs, 4)) == 4


def test_a_world_without_a_split_is_evaluated_on_all_its_problems() -> None:
    kwargs = {"low": 1, "high": 31, "split": None}
    tasks = held_out_tasks("loragym/GuessNumber-v0", kwargs, 100)
    assert len(tasks) == 31
    assert all(task.kwargs == kwargs for task in tasks)


def test_without_a_split_held_out_problems_are_other_seeds() -> None:
    assert not takes_split("tests/Letters-v0")
    assert takes_split("loragym/Arithmetic-v0")
    tasks = held_out_tasks("tests/Letters-v0", {"turns": 2}, 50)
    assert len({task.seed for task in tasks}) == 50
    assert all(task.kwargs == {"turns": 2} and task.options is None for task in tasks)


def test_an_environment_may_be_named_with_its_module() -> None:
    check_env_id("worlds:tests/Letters-v0", {})
    assert not takes_split("worlds:tests/Letters-v0")
    assert takes_split("loragym:loragym/Arithmetic-v0")
    assert held_out_tasks("worlds:tests/Letters-v0", {}, 3)[0].env_id == "worlds:tests/Letters-v0"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"env": "nope/Nothing-v0"}, "cannot make the environment 'nope/Nothing-v0'.*your_module:YourId-v0"),
        ({"env": "no_such_module:Nothing-v0"}, "cannot make the environment.*no_such_module"),
        ({"env": "loragym/Arithmetic-v0", "env_kwargs": {"hihg": 9}}, "unexpected keyword argument 'hihg'"),
        ({"env": "loragym/Arithmetic-v0", "env_kwargs": {"high": -1}}, "high=-1"),
        ({"env": "loragym/Arithmetic-v0", "env_kwargs": {"high": 1}}, "split 'test' has none of the 4 items"),
        ({"env": "tests/Untaught-v0", "warmup_steps": 1}, r"no info\['reference'\].*without supervised steps"),
    ],
)
def test_a_task_that_cannot_be_used_is_refused_before_a_model_loads(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        rl.train(small("no/such-model", tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("group_size", 1, "group-size is at least 2, got 1"),
        ("temperature", 0.0, "temperature is above 0, or all episodes of a group are the same"),
        ("temperature", float("nan"), "temperature is a finite number, got nan"),
        ("loss", "nope", r"loss is one of \[.*'importance_sampling', 'ppo'.*\], got 'nope'"),
        ("loss", "cross_entropy", "loss is one of"),
        ("normalization", "mean", "normalization is one of"),
        ("schedule", "step", r"schedule is one of \['constant', 'cosine', 'linear'\], got 'step'"),
        ("steps", 0, "steps is at least 1, got 0"),
        ("num_substeps", 0, "num-substeps is at least 1"),
        ("save_every", 0, "save-every is at least 1"),
        ("learning_rate", -1.0, "learning-rate is at least 0"),
    ],
)
def test_a_field_out_of_range_is_refused_at_once(field: str, value: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        RLConfig(**{field: value})


def test_another_config_in_the_same_directory_is_refused_before_a_model_loads(model: str, tmp_path: Path) -> None:
    rl.train(small(model, tmp_path, steps=1))
    with pytest.raises(RunError, match="group_size: 4 -> 8"):
        rl.train(small(model, tmp_path, steps=1, group_size=8))
