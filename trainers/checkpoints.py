"""Checkpoints that are whole or absent: written beside, synced, described by a manifest, then renamed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

ADAPTER_FILE = "adapter_config.json"
MANIFEST_FILE = "manifest.json"
STATE_FILE = "state.json"

logger = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints of one run, `step-000020` being the state after 20 steps.

    Args:
        folder: where they lie.
        keep: how many of the newest to keep.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending, whole or not."""
        names = [re.fullmatch(r"step-(\d+)", p.name) for p in self.folder.glob("step-*") if p.is_dir()]
        return sorted(int(name[1]) for name in names if name)

    def save(self, step: int, write: Callable[[Path], None], state: dict[str, Any]) -> Path:
        """Writes a checkpoint.

        Args:
            step: how many steps are behind it.
            write: puts the policy's files into the folder that it is given.
            state: goes into `state.json`, with the step.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        target, draft = self.path(step), self.folder / f".draft-{step:06d}-{os.getpid()}"
        for killed in self.folder.glob(".draft-*"):
            shutil.rmtree(killed, ignore_errors=True)
        draft.mkdir()
        try:
            write(draft)
            (draft / STATE_FILE).write_text(json.dumps({"step": step, **state}, indent=1) + "\n", encoding="utf-8")
            files = sorted(path for path in draft.rglob("*") if path.is_file())
            entries = {str(p.relative_to(draft)): {"bytes": p.stat().st_size, "sha256": _digest(p)} for p in files}
            (draft / MANIFEST_FILE).write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
            for path in [*files, draft / MANIFEST_FILE, draft]:
                _sync(path)
            shutil.rmtree(target, ignore_errors=True)
            draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        _sync(self.folder)
        # Later ones were found damaged, or the run would not be here; they do not count among those kept.
        for old in [s for s in self.steps() if s <= step][: -self.keep]:
            shutil.rmtree(self.path(old), ignore_errors=True)
        return target

    def latest(self) -> tuple[int, Path] | None:
        """The newest checkpoint that is whole; those skipped are named in a warning."""
        for step in reversed(self.steps()):
            damage = self.damage(step)
            if damage is None:
                return step, self.path(step)
            logger.warning("skipping checkpoint %s: %s; using an older one", self.path(step), damage)
        return None

    def damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint, or None."""
        folder = self.path(step)
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


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
