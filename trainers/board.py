"""TensorBoard's curves: its event files, written one event at a time by whoever calls, and anew from a run's rows."""

from __future__ import annotations

import math
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Board:
    """An event file of TensorBoard's. TensorBoard's own writer has a thread, whose errors nobody sees.

    Args:
        folder: where it goes; made if need be.
        suffix: of its name.

    Raises:
        OSError: it cannot be written; from every method.
    """

    def __init__(self, folder: Path, suffix: str = "") -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}{suffix}"
        self._file = RecordWriter((folder / name).open("wb"))
        self._write(Event(wall_time=now, file_version="brain.Event:2"))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Writes one figure, as of now."""
        self.add_scalars({name: value}, step, time.time())

    def add_scalars(self, values: Mapping[str, float], step: int, wall_time: float) -> None:
        """Writes figures of a step, as of a time in seconds since 1970."""
        found = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(self._event(wall_time=wall_time, step=step, summary=self._summary(value=found)))

    def flush(self) -> None:
        """Hands to the system what was written."""
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Any) -> None:
        self._file.write(event.SerializeToString())


def rewrite_board(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replaces a folder of event files by one that holds the figures of `rows`, each once.

    What a killed run had not written yet is in the rows, and what it wrote after its last checkpoint is not. The times
    of the events are those of training, without the pauses, and end now.

    Raises:
        OSError: it cannot be written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if not rows:
        return
    draft = folder.with_name(f".{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    board = Board(draft, ".resumed")
    elapsed = [_number(row.get("time/elapsed")) or 0.0 for row in rows]
    began = time.time() - elapsed[-1]
    for row, seconds in zip(rows, elapsed, strict=True):
        known = {name: math.nan if value is None else _number(value) for name, value in row.items() if name != "step"}
        if values := {name: value for name, value in known.items() if value is not None}:
            board.add_scalars(values, row["step"], began + seconds)
    board.close()
    draft.rename(folder)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
