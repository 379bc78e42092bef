"""Training runs in processes of their own, to be killed at any instant and started again."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from loragym.cli import main
from safetensors.torch import load_file

TESTS = Path(__file__).resolve().parent
RUN_SIZE = shlex.split("--device cpu --dtype float32 --threads 1 --lora-rank 4 --save-every 2")
RECIPES = {
    "letters": [
        *shlex.split(
            "rl_basic --env worlds:tests/Letters-v0 --steps 6 --warmup-steps 2 --warmup-batch 4 --schedule linear"
        ),
        *shlex.split("--problems-per-step 4 --group-size 4 --max-tokens 4 --eval-every 3 --eval-problems 4"),
        *["--learning-rate", "0.01", "--env-kwargs"],
        '{"turns": 2}',
    ],
    "arithmetic": [
        *shlex.split("rl_basic --env loragym/Arithmetic-v0 --steps 6 --warmup-steps 6 --warmup-batch 8 --loss ppo"),
        *shlex.split(
            "--warmup-learning-rate 0.02 --num-substeps 2 --problems-per-step 4 --group-size 8 --max-tokens 4"
        ),
        *shlex.split("--eval-every 4 --eval-problems 4 --learning-rate 0.01 --env-kwargs"),
        '{"high": 9}',
    ],
    "supervised": [
        *shlex.split("sl_basic --env-problems 32 --batch-size 8 --epochs 2 --eval-every 3 --learning-rate 0.01"),
        *["--env-kwargs", '{"high": 9}'],
    ],
}
"""Arguments of runs of about eight steps on the tiny model; all of them learn something."""

When = Callable[["subprocess.Popen[str]", Path], bool]
"""Waits for the instant to kill at; False if the run was over before."""


def arguments(recipe: str, model: Path, folder: Path) -> list[str]:
    return ["train", *RECIPES[recipe], *RUN_SIZE, "--model", str(model), "--run-dir", str(folder)]


def start(recipe: str, model: Path, folder: Path) -> subprocess.Popen[str]:
    paths = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "loragym.cli", *arguments(recipe, model, folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )


def finish(recipe: str, model: Path, folder: Path) -> str:
    """Runs to the end; what it printed."""
    with start(recipe, model, folder) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def kill(recipe: str, model: Path, folder: Path, when: When) -> bool:
    """Runs until `when` and kills the process; False if the run was over before."""
    with start(recipe, model, folder) as process:
        reached = when(process, folder)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return reached


def logged_steps(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def after_a_step(pause: float = 0.0, *, steps: int = 1) -> When:
    """`pause` seconds after so many more steps were logged."""

    def wait(process: subprocess.Popen[str], folder: Path) -> bool:
        before = None
        while process.poll() is None:
            now = logged_steps(folder)
            # Resuming may take lines back first.
            before = now if before is None else min(before, now)
            if now >= before + steps:
                time.sleep(pause)
                return process.poll() is None
            time.sleep(0.0005)
        return False

    return wait


def inside_a_save(process: subprocess.Popen[str], folder: Path) -> bool:
    """While a checkpoint is being written: its draft is there when the process has been stopped."""
    drafts = set(folder.glob("checkpoints/.draft-*"))
    while process.poll() is None:
        if set(folder.glob("checkpoints/.draft-*")) - drafts:
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.02)
            if set(folder.glob("checkpoints/.draft-*")) - drafts:
                return True
            process.send_signal(signal.SIGCONT)
        time.sleep(0.0002)
    return False


def tensor_bytes(path: Path) -> dict[str, bytes]:
    # Not the file's own bytes: the order of its metadata differs from process to process.
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


def result(folder: Path) -> dict[str, Any]:
    """All of a run that must not depend on how often it was killed."""
    newest = max((folder / "checkpoints").glob("step-*"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "checkpoint": newest.name,
        "weights": {path.name: tensor_bytes(path) for path in sorted(newest.glob("*.safetensors"))},
        "metrics": [
            {k: v for k, v in row.items() if not k.startswith("time/") and k != "tokens_per_second"} for row in rows
        ],
        "transcripts": {path.name: path.read_bytes() for path in sorted((folder / "transcripts").glob("*"))},
    }


def assert_killed_runs_end_alike(recipe: str, model: Path, folder: Path, moments: Sequence[When]) -> int:
    """Kills a run at each of the moments and compares its end with an undisturbed run's; returns how many kills hit."""
    # In this process: starting one takes longer than the run.
    with pytest.raises(SystemExit) as ended:
        main(arguments(recipe, model, folder / "undisturbed"))
    assert ended.value.code == 0
    hits = sum(kill(recipe, model, folder / "killed", when) for when in moments)
    finish(recipe, model, folder / "killed")
    expected, found = result(folder / "undisturbed"), result(folder / "killed")
    assert expected["weights"].keys() == {"adapter_model.safetensors", "optimizer.safetensors"}
    assert found == expected
    assert [row["step"] for row in found["metrics"]] == list(range(len(found["metrics"])))
    assert not list((folder / "killed" / "checkpoints").glob(".draft-*"))
    return hits
