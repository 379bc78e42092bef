"""A run of any trainer that was killed, at any instant, ends in the state, figures and words of one that was not."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from killed_runs import (
    FOLDERS,
    PLACES,
    RECIPES,
    arguments,
    assert_killed_runs_end_alike,
    finish,
    furnish,
    logged_steps,
    result,
    run,
    started,
    wait_for_steps,
)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("workshop"))


@pytest.mark.parametrize("recipe", ["rl", "dpo"])
def test_a_run_survives_being_killed(tmp_path: Path, workshop: Path, recipe: str) -> None:
    hits = assert_killed_runs_end_alike(recipe, workshop, tmp_path, kills=3, seed=0)
    assert hits.total() == 3
    # The steps in question taught something, or equal weights would prove nothing.
    rows = result(tmp_path / "undisturbed")["metrics"]
    assert all(row["grad_norm"] > 0 for row in rows[:-1])


@pytest.mark.slow
def test_every_recipe_of_the_proof_learns_in_every_step(tmp_path: Path, workshop: Path) -> None:
    for recipe in RECIPES:
        finish(recipe, workshop, tmp_path / recipe)
        rows = result(tmp_path / recipe / FOLDERS.get(recipe, "."))["metrics"]
        assert len(rows) >= 7, recipe
        assert all(row["grad_norm"] > 0 for row in rows[:-1]), recipe


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_twelve_kills_change_nothing(tmp_path: Path, workshop: Path, recipe: str) -> None:
    hits = assert_killed_runs_end_alike(recipe, workshop, tmp_path, kills=12, seed=1)
    print(f"{recipe}: {dict(hits)}")


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_kill_at_each_place_of_an_asynchronous_run_changes_nothing(
    tmp_path: Path, workshop: Path, place: str
) -> None:
    counts = finish("asynchronous", workshop, tmp_path / "undisturbed")
    expected = result(tmp_path / "undisturbed")
    for number in {1, counts[place] // 2, counts[place]} - {0}:
        code, output, _ = run("asynchronous", workshop, tmp_path / f"{number}", place=place, number=number)
        assert code == -signal.SIGKILL, output
        finish("asynchronous", workshop, tmp_path / f"{number}")
        assert result(tmp_path / f"{number}") == expected


@pytest.mark.parametrize(("place", "number"), [("sampling", 60), ("update", 9), ("sync", 40)])
def test_sigterm_saves_whole_steps_and_exits_with_143(tmp_path: Path, workshop: Path, place: str, number: int) -> None:
    finish("ppo", workshop, tmp_path / "undisturbed")
    code, output, _ = run("ppo", workshop, tmp_path / "run", place=place, number=number, asked=signal.SIGTERM)
    assert code == 143, output
    assert "stopped: the run is saved at step" in output
    assert "Traceback" not in output
    # What is saved is what was logged: nothing is lost but the step that was abandoned.
    assert f"at step {logged_steps(tmp_path / 'run')} of 7" in output
    finish("ppo", workshop, tmp_path / "run")
    assert result(tmp_path / "run") == result(tmp_path / "undisturbed")


def test_ctrl_c_stops_a_run_with_130_and_says_how_to_go_on(tmp_path: Path, workshop: Path) -> None:
    with started("rl", workshop, tmp_path / "run") as process:
        assert wait_for_steps(process, tmp_path / "run", 3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "stopped: the run is saved at step" in err
    assert "run the same command again to go on" in err
    counts = finish("rl", workshop, tmp_path / "run")
    assert isinstance(counts, Counter)
    assert logged_steps(tmp_path / "run") == 9


def test_a_sweep_passes_sigterm_on_and_goes_on_in_the_middle(tmp_path: Path, workshop: Path) -> None:
    command = [
        *(sys.executable, "-m", "loragym.cli", "sweep", "dpo", "--over", "seed=1,2", "--metric", "test/loss"),
        *("--sweep-dir", str(tmp_path / "sweep"), *arguments("dpo", workshop, tmp_path / "unused")[2:-2]),
    ]
    first = tmp_path / "sweep" / "seed=1"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert wait_for_steps(process, first, 2)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "Traceback" not in said
    assert "the run is saved at step" in said
    assert not (tmp_path / "sweep" / "seed=2").exists()
    before = logged_steps(first)
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert before < logged_steps(first) == logged_steps(tmp_path / "sweep" / "seed=2")
    finish("dpo", workshop, tmp_path / "undisturbed", "--seed", "1")
    assert result(first) == result(tmp_path / "undisturbed")
