"""Alarms go on when a run's figures look bad for long enough, and say where to read about it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds  # noqa: F401
from interruptions import assert_resumed_equals_uninterrupted
from loragym.agents.testing import save_tiny_model
from loragym.trainers import RLConfig, rl
from loragym.trainers.health import ALARMS, Health, HealthConfig, health_summary
from loragym.trainers.run_directory import read_metrics

pytestmark = pytest.mark.timeout(240)

ROOT = Path(__file__).resolve().parent.parent
HEALTHY: dict[str, float] = {
    "kl_v1": 0.001,
    "kl_v2": 0.002,
    "ratio_min": 0.8,
    "ratio_max": 1.4,
    "effective_samples": 0.99,
    "entropy": 0.8,
    "reward": 0.4,
    "episodes": 64.0,
    "groups/mixed": 0.8,
    "groups/all_good": 0.1,
    "groups/all_bad": 0.1,
    "groups/dropped": 3.0,
    "tokens_per_reply": 9.0,
    "stop/length": 0.05,
    "grad_norm": 0.7,
    "learning_rate": 1e-4,
    "loss": 0.02,
}
FLAT = {"groups/mixed": 0.0, "groups/dropped": 8.0}
SICK: dict[str, tuple[dict[str, float], set[str]]] = {
    "sampler_kl": ({"kl_v2": 0.06}, set()),
    "ratio_tails": ({"ratio_max": 21.0}, set()),
    "entropy_collapse": ({"entropy": 0.05}, set()),
    "never_rewarded": ({**FLAT, "groups/all_bad": 1.0, "groups/all_good": 0.0, "reward": 0.0}, {"constant_groups"}),
    "always_rewarded": ({**FLAT, "groups/all_bad": 0.0, "groups/all_good": 1.0, "reward": 1.0}, {"constant_groups"}),
    "constant_groups": ({**FLAT, "groups/all_bad": 0.7, "groups/all_good": 0.3}, set()),
    "cut_off": ({"stop/length": 0.97}, set()),
    "no_gradient": ({"grad_norm": 0.0}, set()),
    "adapter_still": ({"adapter/b_norm": 3.0}, set()),
    "failing_episodes": ({"errors/dropped": 9.0}, set()),
    "skipped_updates": ({"update/skipped": 1.0}, set()),
    "out_of_memory": ({"memory/halved": 2.0}, set()),
}
"""What makes a healthy row one in which an alarm is on, and which other alarms that brings along."""


def rows_of(*changes: dict[str, float]) -> Iterator[dict[str, Any]]:
    """Healthy rows but for the changes; rewards and the adapter move from row to row."""
    for step, change in enumerate(changes):
        moving = {"reward": 0.4 + 0.02 * (step % 3), "adapter/b_norm": 1.0 + 0.1 * step}
        yield {"step": step, **HEALTHY, **moving, **change}


def names(raised: Sequence[Any]) -> set[str]:
    return {one.alarm.name for one in raised}


def test_every_alarm_is_tried_here_and_has_its_heading_on_the_page() -> None:
    assert SICK.keys() == {alarm.name for alarm in ALARMS}
    headings = [
        line[3:] for line in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines() if line[:3] == "## "
    ]
    assert {alarm.heading for alarm in ALARMS} <= set(headings)


@pytest.mark.parametrize("name", SICK)
def test_an_alarm_goes_on_after_its_patience_is_said_once_and_again_when_it_comes_back(name: str) -> None:
    change, others = SICK[name]
    patience = 1 if name in ("skipped_updates", "out_of_memory") else 3
    # What is judged by the difference to the row before needs one more.
    lead = patience + (name in ("never_rewarded", "always_rewarded", "adapter_still"))
    health = Health(HealthConfig(patience=3), max_tokens=16)
    said = [names(health.take(row)) - others for row in rows_of(*[{}] * 4, *[change] * 6, *[{}] * 2, *[change] * 6)]
    expected = [set[str]()] * 18
    expected[3 + lead] = expected[11 + lead] = {name}
    assert said == expected


@pytest.mark.parametrize(
    "change",
    [
        {"kl_v2": 0.04},
        {"ratio_max": 19.0, "ratio_min": 0.06},
        {"effective_samples": 0.75},
        {"entropy": 0.02, "groups/all_good": 0.7},  # solved, and sure of it
        {"groups/mixed": 0.1, "groups/all_good": 0.85, "groups/all_bad": 0.05},
        {"stop/length": 0.9},
        {"grad_norm": 1e-9},
        {"errors/dropped": 5.0},
    ],
)
def test_what_is_below_the_threshold_is_no_alarm(change: dict[str, float]) -> None:
    health = Health(HealthConfig(patience=2), max_tokens=16)
    assert not [raised for row in rows_of(*[change] * 9) for raised in health.take(row)]


def test_rewards_that_nobody_learns_from_raise_no_alarm() -> None:
    """A distilled student may say what its teacher says without ever being rewarded."""
    health = Health(HealthConfig(patience=2))
    for row in rows_of(*[{**SICK["never_rewarded"][0], "entropy": 0.01}] * 9):
        del row["groups/dropped"]
        assert not health.take(row)


def test_replies_of_several_turns_are_cut_off_when_all_have_the_longest_length() -> None:
    health = Health(HealthConfig(patience=2), max_tokens=9)
    assert [names(health.take(row)) for row in rows_of({"stop/length": 0.0}, {"stop/length": 0.0})] == [
        set(),
        {"cut_off"},
    ]


def test_rows_without_the_figures_are_neither_good_nor_bad() -> None:
    health = Health(HealthConfig(patience=2))
    unknown = {"kl_v2": float("nan")}
    rows = rows_of({"kl_v2": 1.0}, unknown, unknown, {"kl_v2": 1.0}, unknown, {})
    assert [names(health.take(row)) for row in rows] == [set(), set(), set(), {"sampler_kl"}, set(), set()]
    assert health.metrics() == {"health/alarms": 0.0, "health/sampler_kl": 0.0}


def test_patience_0_raises_none() -> None:
    health = Health(HealthConfig(patience=0), max_tokens=4)
    assert not [raised for change, _ in SICK.values() for row in rows_of(*[change] * 9) for raised in health.take(row)]
    with pytest.raises(ValueError, match=r"health.max-kl is at least 0, got -1"):
        HealthConfig(max_kl=-1)


def test_alarms_after_reading_rows_back_are_those_of_a_run_that_went_on() -> None:
    rng = np.random.default_rng(0)
    changes = [{k: v for c, _ in SICK.values() if rng.random() < 0.7 for k, v in c.items()} for _ in range(60)]
    rows = list(rows_of(*changes))
    whole = Health(HealthConfig(patience=2), 16)
    logged = []
    for row in rows:
        whole.take(row)
        # NaN is logged as null.
        logged.append({k: None if v != v else v for k, v in {**row, **whole.metrics()}.items()})
    assert len({name for row in logged for name in row if name.startswith("health/")}) > 8
    for cut in range(0, 60, 7):
        resumed = Health(HealthConfig(patience=2), 16, json.loads(json.dumps(logged[:cut])))
        for row, before in zip(rows[cut:], logged[cut:], strict=True):
            resumed.take(row)
            assert resumed.metrics().items() <= before.items()


def test_real_curves_of_healthy_runs_raise_none_and_those_of_dying_ones_say_why() -> None:
    """Logged runs of this package's recipes; of two it is known that they learnt nothing."""
    found = {}
    for line in (ROOT / "tests" / "data" / "health_curves.jsonl").read_text().splitlines():
        run = json.loads(line)
        health = Health(HealthConfig(), run["max_tokens"])
        found[run["run"]] = {raised.alarm.name for row in run["rows"] for raised in health.take(row)}
    assert found.pop("guess_number_dying") == {"entropy_collapse", "constant_groups"}
    assert found.pop("guess_number_stuck") == {"constant_groups"}
    assert len(found) == 10
    assert not any(found.values()), found


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
            "lora_rank": 4,
            "env": "tests/Letters-v0",
            "steps": 6,
            "problems_per_step": 3,
            "group_size": 2,
            "max_tokens": 3,
            "eval_every": 0,
            "eval_problems": 0,
            "health": HealthConfig(patience=2),
        }
        | changes
    )


def test_a_runs_alarms_are_in_its_table_its_rows_tensorboard_and_summary(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A random model that is asked for one letter never gives it, and never stops by itself.
    summary = rl.train(small(model, tmp_path, env="tests/Fixed-v0", learning_rate=0.0, warmup_steps=1))
    rows = read_metrics(tmp_path / "run")
    assert [row.get("health/constant_groups", 0.0) for row in rows[:7]] == [0, 0, 1, 1, 1, 1, 1]
    assert rows[3]["health/alarms"] >= 3
    assert summary["health"] == health_summary(rows)
    assert summary["health"]["constant_groups"] == {"steps": 5, "first": 2, "last": 6}
    assert {"cut_off", "never_rewarded"} <= summary["health"].keys()
    shown = capsys.readouterr().out
    said = "alarm: Replies are cut off (stop/length 1, tokens_per_reply 3): see docs/troubleshooting.md"
    assert shown.count(f'{said}, "Replies are cut off"') == 1
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("health/cut_off")] == [2, 3, 4, 5, 6]


def test_a_resumed_run_has_the_alarms_of_an_uninterrupted_one(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_resumed_equals_uninterrupted(monkeypatch, rl.train, small(model, tmp_path, save_every=100), after=4)
    assert any(row.get("health/cut_off") for row in read_metrics(tmp_path / "run"))


def test_a_learning_rate_of_0_is_noticed_by_the_adapter(model: str, tmp_path: Path) -> None:
    still, moving = (
        rl.train(small(model, tmp_path / name, learning_rate=rate))["health"]
        for name, rate in (("still", 0.0), ("moving", 1e-5))
    )
    assert "adapter_still" in still
    assert "adapter_still" not in moving
    norms = [row["adapter/b_norm"] for row in read_metrics(tmp_path / "moving" / "run")[:6]]
    assert norms == sorted(norms)
    assert norms[0] > 0
