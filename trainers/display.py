"""What a user sees while a run is under way: a row per step and, on a terminal, a bar with the time left."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .clocks import seconds_since

HEADER_EVERY = 25


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of the table: its heading, the metric behind it and how to print it."""

    heading: str
    metric: str
    format: str


class StepTable:
    """Prints the run's figures step by step; use as a context manager.

    Args:
        columns: what to show.
        total: steps of the whole run.
        start: steps done already.
    """

    def __init__(self, columns: Sequence[Column], total: int, start: int) -> None:
        self._columns = columns
        self._total = total
        self._start = start
        self._rows = 0
        self._began = time.monotonic()
        console = Console(highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("[bold]training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar = self._progress.add_task("steps", total=total, completed=start)

    def row(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows the figures of a step that is done."""
        done = step + 1 - self._start
        left = seconds_since(self._began) / done * (self._total - step - 1)
        if self._rows % HEADER_EVERY == 0:
            self.say("step".rjust(5) + "".join(c.heading.rjust(10) for c in self._columns) + "left".rjust(8), "bold")
        cells = [format(metrics[c.metric], c.format) if c.metric in metrics else "-" for c in self._columns]
        self.say(f"{step + 1:5d}" + "".join(cell.rjust(10) for cell in cells) + clock(left).rjust(8))
        self._rows += 1
        self._progress.update(self._bar, completed=step + 1)

    def say(self, text: str, style: str | None = None) -> None:
        """Prints a line above the bar."""
        self._progress.console.print(text, style=style, markup=False)

    def __enter__(self) -> StepTable:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def clock(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def what_next(run_dir: str) -> str:
    """Where a finished run is and what can be done with it, in lines to print."""
    return (
        f"The run is in {run_dir}\n"
        f"  curves:      loragym plot {run_dir}      or: tensorboard --logdir {run_dir}\n"
        f"  chat:        loragym chat {run_dir}\n"
        f"  go on:       the same command again, should a run be stopped; --fresh starts anew"
    )
