"""Disks that are full or read-only, and clocks that jump: a run ends with what it has saved, or does not notice."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killed_runs import (
    FOLDERS,
    FULL_DISK,
    RECIPES,
    TESTS,
    WRITES,
    arguments,
    finish,
    furnish,
    result,
    run,
)
from loragym.trainers.run_directory import read_metrics
from small_runs import losses, same, train, weights

SAID = "No space left on device"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("workshop"))


def assert_a_full_disk_costs_no_more_than_steps(recipe: str, workshop: Path, folder: Path, places: list[str]) -> int:
    """Fills the disk at drawn instants and gives it room again; returns how often."""
    where = FOLDERS.get(recipe, ".")
    counts = finish(recipe, workshop, folder / "undisturbed")
    expected = result(folder / "undisturbed" / where)
    rng = random.Random(f"{recipe} full")
    for number, place in enumerate(places):
        full = folder / f"full-{number}"
        code, output, _ = run(
            recipe, workshop, full, place=place, number=rng.randint(1, counts[place]), asked=FULL_DISK
        )
        assert code == 1, output
        assert SAID in output
        assert "Traceback" not in output
        if (full / where / "metrics.jsonl").is_file():
            assert any(text in output for text in ("the run is saved at step", "steps are done and saved in")), output
        finish(recipe, workshop, full)
        assert result(full / where) == expected
    return len(places)


@pytest.mark.parametrize("recipe", ["ppo"])
def test_a_disk_that_is_full_ends_a_run_which_goes_on_when_there_is_room(
    tmp_path: Path, workshop: Path, recipe: str
) -> None:
    assert_a_full_disk_costs_no_more_than_steps(recipe, workshop, tmp_path, list(WRITES))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_full_disks_at_many_instants_cost_no_run(tmp_path: Path, workshop: Path, recipe: str) -> None:
    places = [place for place in WRITES if place != "transcript" or (recipe not in ("dpo", "scalar reward", "judge"))]
    if recipe == "supervised":
        places.remove("transcript")
    done = assert_a_full_disk_costs_no_more_than_steps(recipe, workshop, tmp_path, places * 3)
    print(f"{recipe}: {done} full disks")


def mounts() -> bool:
    """Whether a disk of one's own can be mounted here, in a namespace."""
    if not sys.platform.startswith("linux") or shutil.which("unshare") is None:
        return False
    tried = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    return tried.returncode == 0


@pytest.mark.skipif(not mounts(), reason="needs user namespaces, to mount a small disk")
def test_a_small_disk_and_a_read_only_one(tmp_path: Path, workshop: Path) -> None:
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    command = [sys.executable, "-m", "loragym.cli", *arguments("rl", workshop, disk / "run", "--keep-checkpoints", "9")]
    script = """
        mount -t tmpfs -o size="$SIZE" tmpfs "$DISK"
        "$@" > "$KEPT.full" 2>&1; echo "full: $?"
        mount -o remount,ro "$DISK"
        "$@" > "$KEPT.read-only" 2>&1; echo "read-only: $?"
        mount -o remount,rw,size=64m "$DISK"
        "$@" > "$KEPT.whole" 2>&1; echo "whole: $?"
        cp -r "$DISK/run" "$KEPT"
    """
    finish("rl", workshop, tmp_path / "undisturbed", "--keep-checkpoints", "9")
    size = sum(path.stat().st_size for path in (tmp_path / "undisturbed").rglob("*"))
    environment = {"SIZE": str(size // 2), "DISK": str(disk), "KEPT": str(kept), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *command],
        capture_output=True, text=True, timeout=280, env={**os.environ, **environment},
    )  # fmt: skip
    said = {name: Path(f"{kept}.{name}").read_text() for name in ("full", "read-only", "whole")}
    assert done.stdout.split("\n")[:3] == ["full: 1", "read-only: 1", "whole: 0"], said
    assert SAID in said["full"]
    assert "the run is saved at step" in said["full"]
    assert "cannot use" in said["read-only"]
    assert "Read-only file system" in said["read-only"]
    assert "Traceback" not in said["full"] + said["read-only"]
    assert "resuming" in said["whole"]
    assert result(kept) == result(tmp_path / "undisturbed")


@pytest.mark.parametrize("jump", [1e9, -1e9, -0.5])
def test_clocks_that_jump_change_no_weights_and_no_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    expected = weights(train(tmp_path / "undisturbed"))
    with monkeypatch.context() as patched:
        for name in ("time", "monotonic", "perf_counter"):
            real, calls = getattr(time, name), itertools.count()
            # Each third reading is off, and so is the pace between any two.
            patched.setattr(time, name, lambda real=real, calls=calls: real() + jump * (next(calls) % 3 == 2))
        policy = train(tmp_path / "run")
    assert same(weights(policy), expected)
    assert losses(tmp_path / "run") == losses(tmp_path / "undisturbed")
    rows = read_metrics(tmp_path / "run")
    elapsed = [row["time/elapsed"] for row in rows]
    assert elapsed == sorted(elapsed)
    assert all(row["time/step"] > 0 for row in rows)
