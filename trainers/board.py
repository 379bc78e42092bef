"""TensorBoard's curves from a run's rows: written anew when a run is resumed, so that each step is there once."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def rewrite_board(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replaces a folder of event files by one that holds the figures of `rows`, each once.

    What a killed run had not written yet is in the rows, and what it wrote after its last checkpoint is not. The times
    of the events are those of training, without the pauses, and end now.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    shutil.rmtree(folder, ignore_errors=True)
    if not rows:
        return
    draft = folder.with_name(f".{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    writer = EventFileWriter(str(draft), max_queue_size=1000, filename_suffix=".resumed")
    elapsed = [_number(row.get("time/elapsed")) or 0.0 for row in rows]
    began = time.time() - elapsed[-1]
    for row, seconds in zip(rows, elapsed, strict=True):
        values = [
            Summary.Value(tag=name, simple_value=math.nan if value is None else value)
            for name, value in row.items()
            if name != "step" and (value is None or _number(value) is not None)
        ]
        if values:
            writer.add_event(Event(wall_time=began + seconds, step=row["step"], summary=Summary(value=values)))
    writer.close()
    draft.rename(folder)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
