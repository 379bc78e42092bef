"""A run that was killed ends in the very weights, figures and transcripts of one that was not."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from killed_runs import (
    after_a_step,
    assert_killed_runs_end_alike,
    finish,
    inside_a_save,
    kill,
    logged_steps,
    result,
    start,
)
from loragym.agents.testing import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def test_a_reinforcement_learning_run_survives_being_killed(tmp_path: Path, model: Path) -> None:
    moments = [after_a_step(), inside_a_save, after_a_step(0.03)]
    assert assert_killed_runs_end_alike("letters", model, tmp_path, moments) >= 2
    # The steps in question taught something, or equal weights would prove nothing.
    metrics = result(tmp_path / "killed")["metrics"]
    assert len(metrics) == 9
    assert all(row["grad_norm"] > 0 for row in metrics[:8])
    assert all(row["groups/mixed"] > 0 for row in metrics[2:8])


def test_a_supervised_run_survives_being_killed(tmp_path: Path, model: Path) -> None:
    assert assert_killed_runs_end_alike("supervised", model, tmp_path, [inside_a_save]) == 1


def test_ctrl_c_stops_a_run_with_130_and_says_how_to_go_on(tmp_path: Path, model: Path) -> None:
    with start("letters", model, tmp_path / "run") as process:
        assert after_a_step(steps=3)(process, tmp_path / "run")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "stopped: the run is saved at step" in err
    assert "run the same command again to go on" in err
    out = finish("letters", model, tmp_path / "run")
    assert "resuming" in out
    assert logged_steps(tmp_path / "run") == 9


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["letters", "arithmetic", "supervised"])
def test_twenty_kills_change_nothing(tmp_path: Path, model: Path, recipe: str) -> None:
    finish(recipe, model, tmp_path / "undisturbed")
    expected, rng, kills, runs = result(tmp_path / "undisturbed"), random.Random(recipe), 0, 0
    while kills < 20:
        folder = tmp_path / f"killed-{runs}"
        runs += 1
        while kills < 20:
            moment = rng.choice([inside_a_save, after_a_step(), after_a_step(rng.uniform(0, 0.3))])
            if not kill(recipe, model, folder, moment):
                break
            kills += 1
        finish(recipe, model, folder)
        assert result(folder) == expected, f"after {kills} kills"
