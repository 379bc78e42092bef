"""Training runs in processes of their own, to which something happens at an instant that is named beforehand.

An instant is a place and how often it has been reached: the third rename, the fortieth token. A run that nobody
disturbs counts them, and the runs that are to die get one of those drawn. The process kills itself there with SIGKILL:
nothing is flushed, closed or tidied up. Or its disk is full from there on, and every write fails half-way.
"""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from loragym.agents.testing import save_tiny_model
from safetensors.torch import load_file

TESTS = Path(__file__).resolve().parent
RUN_SIZE = "--device cpu --dtype float32 --threads 1 --lora-rank 4 --save-every 2"
PLAY_SIZE = (
    "--env worlds:tests/Letters-v0 --steps 6 --problems-per-step 4 --group-size 4 --max-tokens 4 --learning-rate 0.01"
)
EVALUATED = "--eval-every 3 --eval-problems 4"
PAIRS = "--data {pairs} --batch-size 8 --eval-every 3 --epochs 2 --learning-rate 0.01"
TWO_TURNS = ["--env-kwargs", '{"turns": 2}']
RECIPES: dict[str, list[str]] = {
    "supervised": [
        *shlex.split("sl_basic --env-problems 32 --batch-size 8 --epochs 2 --eval-every 3 --learning-rate 0.01"),
        *["--env-kwargs", '{"high": 9}'],
    ],
    "rl": [
        *shlex.split(f"rl_basic --warmup-steps 2 --warmup-batch 4 --schedule linear {PLAY_SIZE} {EVALUATED}"),
        *TWO_TURNS,
    ],
    "ppo": [
        *shlex.split(f"ppo --warmup-steps 1 --warmup-batch 4 --num-substeps 2 {PLAY_SIZE} {EVALUATED}"),
        *shlex.split("--kl-coef 0.1 --kl-target 0.01 --kl-reference start"),
        *TWO_TURNS,
    ],
    "streamed": [
        *shlex.split(f"rl_basic --warmup-steps 0 --stream-groups 2 {PLAY_SIZE} {EVALUATED}"),
        *TWO_TURNS,
    ],
    "asynchronous": [
        *shlex.split(f"rl_basic --warmup-steps 1 --warmup-batch 4 --staleness 2 --loss ppo {PLAY_SIZE} {EVALUATED}"),
        *TWO_TURNS,
    ],
    "league": [
        *shlex.split(f"multiplayer_rl/tic_tac_toe --warmup-steps 2 {PLAY_SIZE} --league-every 2 --league-size 2"),
        *shlex.split("--env loragym/KuhnPoker-v0 --test-opponents random --eval-every 3 --eval-problems 2"),
    ],
    "dpo": shlex.split(f"dpo {PAIRS}"),
    "scalar reward": shlex.split(f"reward --kind scalar {PAIRS}"),
    "judge": shlex.split(f"reward --kind judge {PAIRS}"),
    "distillation": [
        *shlex.split(f"distillation {PLAY_SIZE} {EVALUATED} --teachers"),
        '[{"system": "Shout!"}]',
    ],
}
"""Arguments of runs of about eight steps on the tiny model; all of them learn something."""
FOLDERS = {"distillation": "student"}
"""Where in its directory a recipe's run lies, if not in it itself."""
PLACES = ("sampling", "learning", "update", "checkpoint", "sync", "rename", "delete", "log", "transcript")
"""Where a run can be killed; see `install`."""
FULL_DISK = -1
"""In place of a signal: from the instant on no write succeeds."""
WRITES = ("checkpoint", "log", "transcript")
"""Places where a full disk shows."""
PRELOADED = [
    "loragym.cli",
    "loragym.trainers",
    "loragym.recipes.rl_basic",
    "tensorboard.summary.writer.record_writer",
    "transformers",
]


@dataclass
class Instants:
    """Counts how often each place is reached, and does something at one of those times."""

    place: str = ""
    number: int = 0
    asked: int = signal.SIGKILL
    is_full: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    def is_now(self, place: str) -> bool:
        self.counts[place] += 1
        return self.is_full or (place, self.counts[place]) == (self.place, self.number)

    def reach(self, place: str) -> None:
        if self.is_now(place):
            self.act(place)

    def act(self, place: str) -> None:
        if self.asked != FULL_DISK:
            os.kill(os.getpid(), self.asked)
            return
        self.is_full = True
        if place in WRITES:
            raise OSError(errno.ENOSPC, "No space left on device")


def install(instants: Instants) -> None:
    """Has this process tell when it reaches a place. For one that will not be used for anything else."""
    import loragym.agents.tensor_files
    import torch
    from loragym.agents import LoraPolicy, LoraScorer
    from loragym.agents.torch_sampler import TorchSampler
    from tensorboard.summary.writer.record_writer import RecordWriter

    def before(owner: Any, name: str, place: str) -> None:
        original = getattr(owner, name)

        def reached(*args: Any, **kwargs: Any) -> Any:
            instants.reach(place)
            return original(*args, **kwargs)

        setattr(owner, name, reached)

    def around(owner: Any, name: str, place: str) -> None:
        before(owner, name, place)
        original = getattr(owner, name)

        def reached(*args: Any, **kwargs: Any) -> Any:
            found = original(*args, **kwargs)
            instants.reach(place)
            return found

        setattr(owner, name, reached)

    before(TorchSampler, "step", "sampling")
    for learner in (LoraPolicy, LoraScorer):
        around(learner, "forward_backward", "learning")
    around(torch.optim.AdamW, "step", "update")
    around(loragym.agents.tensor_files, "save_file", "checkpoint")
    before(os, "fsync", "sync")
    around(os, "rename", "rename")
    around(os, "rmdir", "delete")
    before(os, "unlink", "delete")
    write, write_text = os.write, Path.write_text

    def half_a_line(descriptor: int, data: bytes) -> int:
        if bytes(data).startswith(b'{"step"') and instants.is_now("log"):
            write(descriptor, data[: len(data) // 2])
            instants.act("log")
        return write(descriptor, data)

    def half_a_file(path: Path, data: str, *args: Any, **kwargs: Any) -> int:
        place = "transcript" if path.parent.name == "transcripts" else "checkpoint"
        if instants.is_now(place):
            write_text(path, data[: len(data) // 2], *args, **kwargs)
            instants.act(place)
        return write_text(path, data, *args, **kwargs)

    def half_an_event(writer: Any, data: bytes) -> None:
        write_event(writer, data)
        if instants.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")

    write_event = RecordWriter.write
    os.write, Path.write_text = half_a_line, half_a_file  # type: ignore[assignment, method-assign]
    RecordWriter.write = half_an_event


def arguments(recipe: str, workshop: Path, folder: Path, *more: str) -> list[str]:
    """The command line of a recipe's run; `workshop` holds the model and the pairs, see `furnish`."""
    given = [part.replace("{pairs}", str(workshop / "pairs.jsonl")) for part in RECIPES[recipe]]
    size = shlex.split(RUN_SIZE)
    return ["train", *given, *size, "--model", str(workshop / "model"), "--run-dir", str(folder), *more]


def furnish(workshop: Path) -> Path:
    """Puts the tiny model and some pairs into a folder."""
    save_tiny_model(workshop / "model")
    rng = np.random.default_rng(0)
    rows = [
        {
            "prompt": f"Say {i}!",
            "chosen": "".join(rng.choice(list("abc"), 4)),
            "rejected": str(rng.integers(1000, 9999)),
        }
        for i in range(40)
    ]
    (workshop / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return workshop


def run(
    recipe: str, workshop: Path, folder: Path, *more: str, place: str = "", number: int = 0, asked: int = signal.SIGKILL
) -> tuple[int, str, Counter[str]]:
    """Runs in a process of its own, which gets a signal (or `FULL_DISK`) when it reaches a place for a certain time.

    Returns:
        The exit code (negative: the signal that ended it), what was printed, and how often it reached each place.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    folder.parent.mkdir(parents=True, exist_ok=True)
    output = folder.with_suffix(".output")
    command = arguments(recipe, workshop, folder, *more)
    child = context.Process(target=_run, args=(command, str(output), place, number, asked))
    child.start()
    child.join(300)
    if child.is_alive():
        child.kill()
        raise TimeoutError(f"{recipe} hangs:\n{output.read_text(errors='replace')}")
    counts = output.with_suffix(".counts")
    found = Counter(json.loads(counts.read_text())) if counts.is_file() else Counter()
    assert child.exitcode is not None
    return child.exitcode, output.read_text(encoding="utf-8", errors="replace"), found


def _run(command: list[str], output: str, place: str, number: int, asked: int) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    with Path(output).open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    sys.path.insert(0, str(TESTS))
    from loragym.cli import main
    from loragym.envs.games.tables import TABLES

    TABLES["KuhnPoker-v0"] = "lenient_poker:LenientPoker"
    instants = Instants(place, number, asked)
    install(instants)
    counts = Path(output).with_suffix(".counts")
    counts.unlink(missing_ok=True)
    try:
        main(command)
    finally:
        instants.place, instants.is_full = "", False
        counts.write_text(json.dumps(instants.counts))


def finish(recipe: str, workshop: Path, folder: Path, *more: str) -> Counter[str]:
    """Runs to the end; how often each place was reached."""
    code, output, counts = run(recipe, workshop, folder, *more)
    assert code == 0, output
    return counts


def tensor_bytes(path: Path) -> dict[str, bytes]:
    # Not the file's own bytes: the order of its metadata differs from process to process.
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


def result(folder: Path) -> dict[str, Any]:
    """All of a run that must not depend on how often it was killed."""
    newest = max((folder / "checkpoints").glob("step-*"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    elapsed = [row["time/elapsed"] for row in rows]
    assert elapsed == sorted(elapsed)
    assert events(folder) == {
        (row["step"], name): np.float32(value) for row in rows for name, value in row.items() if name != "step"
    }
    assert (folder / "checkpoints" / "latest").read_text().strip() == newest.name
    assert not list(folder.rglob(".draft-*"))
    return {
        "checkpoints": sorted(path.name for path in (folder / "checkpoints").glob("step-*")),
        "files": sorted(str(path.relative_to(newest)) for path in newest.rglob("*")),
        "tensors": {
            str(path.relative_to(newest)): tensor_bytes(path) for path in sorted(newest.rglob("*.safetensors"))
        },
        "values": {
            str(path.relative_to(newest)): json.loads(path.read_text())
            for path in sorted(newest.rglob("*.json"))
            if path.name in ("values.json", "queue.json", "policy.json")
        },
        "metrics": [
            {k: v for k, v in row.items() if not k.startswith("time/") and "per_second" not in k} for row in rows
        ],
        "transcripts": {path.name: path.read_bytes() for path in sorted((folder / "transcripts").glob("*"))},
    }


def events(folder: Path) -> dict[tuple[int, str], np.float32]:
    """What the files of TensorBoard's hold, read one by one and without its rules on restarts: each figure once."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: dict[tuple[int, str], np.float32] = {}
    for file in (folder / "tensorboard").iterdir():
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                assert (event.step, value.tag) not in found, f"{value.tag} of step {event.step} is there twice"
                found[event.step, value.tag] = np.float32(value.simple_value)
    return found


def assert_killed_runs_end_alike(recipe: str, workshop: Path, folder: Path, kills: int, seed: int) -> Counter[str]:
    """Kills runs at drawn instants until so many kills have hit, and compares each one's end with an undisturbed run's.

    Returns:
        How many kills hit, by place.
    """
    where = FOLDERS.get(recipe, ".")
    counts = finish(recipe, workshop, folder / "undisturbed")
    expected = result(folder / "undisturbed" / where)
    rng = random.Random(f"{recipe} {seed}")
    places, hits, runs = [place for place in PLACES if counts[place]], Counter[str](), 0
    while hits.total() < kills:
        killed = folder / f"killed-{runs}"
        runs += 1
        is_over = False
        while not is_over and hits.total() < kills:
            place = rng.choice(places)
            code, output, _ = run(recipe, workshop, killed, place=place, number=rng.randint(1, counts[place]))
            assert code in (0, -signal.SIGKILL), output
            is_over = code == 0
            hits[place] += not is_over
        if not is_over:
            finish(recipe, workshop, killed)
        assert result(killed / where) == expected, f"{recipe}, after {dict(hits)}"
    return hits


@contextlib.contextmanager
def started(recipe: str, workshop: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A run in a process that was started as a user starts one."""
    paths = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    with subprocess.Popen(
        [sys.executable, "-m", "loragym.cli", *arguments(recipe, workshop, folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def logged_steps(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def wait_for_steps(process: subprocess.Popen[str], folder: Path, steps: int) -> bool:
    """Returns when so many steps are logged; False if the process ended before."""
    while process.poll() is None:
        if logged_steps(folder) >= steps:
            return True
        time.sleep(0.001)
    return False
