"""Checkpoints that are whole or absent: written beside, synced, described by a manifest, then renamed.

`latest` moves to a checkpoint when that is in place, and only then do older ones leave. A reader trusts neither the
pointer nor a name: it takes the newest checkpoint whose files are what the manifest says.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..envs.json_files import read_json_object

ADAPTER_FILE = "adapter_config.json"
MANIFEST_FILE = "manifest.json"
STATE_FILE = "state.json"
LATEST_FILE = "latest"
BEST_FILE = "best.json"
NAME = re.compile(r"step-([0-9]{1,18})")
GOALS = ("max", "min")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which checkpoints stay; the newest and the best always do.

    Attributes:
        keep: how many of the newest.
        hours: of those, none that is older than the newest by more hours of training; 0 for no limit. Hours are the
            run's own, so that neither a pause nor a clock that is put right makes a checkpoint old.
        every: those of a multiple of so many steps stay for ever; 0 for none.
        best: the metric by which the best one is told; empty for none.
        goal: whether more ("max") or less ("min") of it is better.
    """

    keep: int = 2
    hours: float = 0.0
    every: int = 0
    best: str = ""
    goal: str = "max"


class CheckpointStore:
    """The checkpoints of one run, `step-000020` being the state after 20 steps.

    Args:
        folder: where they lie.
        retention: which of them stay.
    """

    def __init__(self, folder: Path, retention: Retention = Retention()) -> None:
        self.folder = folder
        self.retention = retention
        self._best: tuple[int, float] | None = None
        self._newest: int | None = None

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending, whole or not."""
        names = [NAME.fullmatch(p.name) for p in self.folder.glob("step-*") if p.is_dir()]
        return sorted(int(name[1]) for name in names if name)

    def save(self, step: int, write: Callable[[Path], None], state: Mapping[str, Any]) -> Path:
        """Writes a checkpoint, moves `latest` to it and removes those that need not stay.

        Args:
            step: how many steps are behind it.
            write: puts the policy's files into the folder that it is given.
            state: goes into `state.json`, with the step; `elapsed`, seconds of training, tells its age.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        target, draft = self.path(step), self.folder / f".draft-{step:06d}-{os.getpid()}"
        self._remove_drafts()
        draft.mkdir()
        try:
            write(draft)
            (draft / STATE_FILE).write_text(json.dumps({"step": step, **state}, indent=1) + "\n", encoding="utf-8")
            files = sorted(path for path in draft.rglob("*") if path.is_file())
            entries = {str(p.relative_to(draft)): {"bytes": p.stat().st_size, "sha256": _digest(p)} for p in files}
            (draft / MANIFEST_FILE).write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
            for path in [*draft.rglob("*"), draft]:
                sync(path)
            if target.exists():
                # Out of the way in one go: half of it must never pass for the whole.
                target.rename(self.folder / f".draft-{step:06d}-replaced")
            draft.rename(target)
        finally:
            self._remove_drafts()
        sync(self.folder)
        write_durably(self.folder / LATEST_FILE, target.name + "\n")
        self._newest = step
        self._prune()
        return target

    def latest(self) -> tuple[int, Path] | None:
        """The newest checkpoint that is whole; what was passed over, and why, is said in warnings."""
        steps = self.steps()
        for step in reversed(steps):
            damage = self.damage(step)
            if damage is None:
                return step, self.path(step)
            logger.warning("skipping checkpoint %s: %s; using an older one", self.path(step), damage)
        if steps:
            logger.warning("none of the %d checkpoints in %s is whole", len(steps), self.folder)
        return None

    def damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint, or None."""
        return damage(self.path(step))

    @property
    def best(self) -> tuple[int, float] | None:
        """The step of the best checkpoint and its figure."""
        return self._best

    def rewind(self, step: int) -> None:
        """Makes the checkpoint of a step the newest: `latest` first, then the later ones leave, the newest first."""
        write_durably(self.folder / LATEST_FILE, self.path(step).name + "\n")
        for later in reversed([s for s in self.steps() if s > step]):
            self._remove(later)
        self._remove_drafts()

    def recall_best(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Finds out which checkpoint is the best so far, from the logged rows; `best.json` follows."""
        self._best = None
        there = set(self.steps())
        for row in rows:
            self._compare(row["step"], row, there)
        self._write_best()

    def tidy(self, newest: int) -> None:
        """Finishes what a process that was killed after its last save had begun; `newest` is where the run goes on."""
        self._remove_drafts()
        self._newest = newest
        if self.folder.is_dir() and self._pointed_at() != self.path(newest).name:
            write_durably(self.folder / LATEST_FILE, self.path(newest).name + "\n")
        self._prune()

    def note(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the figures of the weights after `step` steps, which may make that checkpoint the best one."""
        before = self._best
        if self._compare(step, metrics, set(self.steps())):
            self._write_best()
            if before is not None:
                self._prune()

    def _pointed_at(self) -> str | None:
        path = self.folder / LATEST_FILE
        return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else None

    def _compare(self, step: int, metrics: Mapping[str, Any], there: set[int]) -> bool:
        value = metrics.get(self.retention.best) if self.retention.best else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        sign = 1 if self.retention.goal == "max" else -1
        if self._best is not None and sign * value <= sign * self._best[1]:
            return False
        if step not in there:
            return False
        self._best = step, float(value)
        return True

    def _write_best(self) -> None:
        path = self.folder / BEST_FILE
        if self._best is None:
            path.unlink(missing_ok=True)
            return
        step, value = self._best
        found = {"step": step, "checkpoint": self.path(step).name, "metric": self.retention.best, "value": value}
        write_durably(path, json.dumps({**found, "goal": self.retention.goal}) + "\n")

    def _prune(self) -> None:
        """Removes what need not stay."""
        newest, rules = self._newest, self.retention
        if newest is None:
            return
        # Later ones were found damaged, or the run would not be here; they do not count among those kept.
        steps = [step for step in self.steps() if step <= newest]
        rolling = steps[-rules.keep :]
        if rules.hours:
            now = self._elapsed(newest)
            rolling = [step for step in rolling if now - self._elapsed(step, now) <= rules.hours * 3600]
        stay = {newest, *rolling, *(step for step in steps if rules.every and step % rules.every == 0)}
        if self._best is not None:
            stay.add(self._best[0])
        for step in steps:
            if step not in stay:
                self._remove(step)

    def _remove(self, step: int) -> None:
        # Renamed first, so that what is half deleted is no checkpoint.
        gone = self.folder / f".draft-{step:06d}-old"
        try:
            self.path(step).rename(gone)
        except OSError as error:
            logger.warning("cannot remove the checkpoint %s: %s", self.path(step), error)
            return
        shutil.rmtree(gone, ignore_errors=True)

    def _remove_drafts(self) -> None:
        for killed in self.folder.glob(".draft-*"):
            shutil.rmtree(killed, ignore_errors=True)

    def _elapsed(self, step: int, unknown: float = 0.0) -> float:
        """Seconds of training behind a checkpoint."""
        try:
            found = read_json_object(self.path(step) / STATE_FILE, "").get("elapsed")
        except (OSError, ValueError):
            return unknown
        return float(found) if isinstance(found, int | float) else unknown


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's folder, or None."""
    try:
        entries = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        for name, entry in entries.items():
            if Path(name).is_absolute() or ".." in Path(name).parts:
                return f"its {MANIFEST_FILE} names {name!r:.80}, which is not in it"
            if not (folder / name).is_file():
                return f"{name} is missing"
            if (folder / name).stat().st_size != entry["bytes"] or _digest(folder / name) != entry["sha256"]:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"its {MANIFEST_FILE} cannot be read ({error})"
    return None


def find_adapter(path: str | Path) -> Path:
    """The folder of the adapter that a user means by a PEFT folder or a run's directory: the newest that is whole.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path)
    # The flat loops leave one adapter, under these names.
    for folder in (path, path / "checkpoint", path / "adapter"):
        if (folder / ADAPTER_FILE).is_file():
            return folder
    newest = CheckpointStore(path / "checkpoints").latest()
    if newest is not None:
        return newest[1]
    if (path / "checkpoints").is_dir() or (path / "metrics.jsonl").is_file():
        raise FileNotFoundError(f"the run {path} has no checkpoint yet; wait for its first save or choose another")
    raise FileNotFoundError(f"{path} is neither a PEFT folder (with {ADAPTER_FILE}) nor the directory of a run")


def write_durably(path: Path, text: str) -> None:
    """Writes a file that is the old one or the new one, whole, whenever the process or the machine stops."""
    draft = path.with_name(f".{path.name}")
    draft.write_text(text, encoding="utf-8")
    sync(draft)
    draft.rename(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Has the system put a file or folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
