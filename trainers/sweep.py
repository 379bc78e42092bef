"""Sweeps: one recipe over a grid of values, or over random ones, with a table and a picture of what came out.

Each run is a process of its own in a directory of its own, so a sweep that is stopped goes on where it was, and one run
that fails does not take the others with it.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..envs.secrets import redacted_message
from .run_directory import SUMMARY_FILE, read_metrics
from .stopping import Interrupted, Terminated

Goal = Literal["min", "max"]
RESULTS_FILE = "results.jsonl"
TABLE_FILE = "results.md"
PICTURE_FILE = "sweep.png"
_RANGE = re.compile(r"(log)?uniform\(([^,]+),([^,]+)\)")


@dataclass(frozen=True, slots=True)
class Axis:
    """One field and the values to try.

    Attributes:
        field: as on the command line, without the dashes.
        values: those of a grid; empty for a range.
        low, high, logarithmic: a range to draw from.
    """

    field: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    logarithmic: bool = False

    @classmethod
    def parse(cls, text: str) -> Axis:
        """From `field=a,b,c`, `field=uniform(low,high)` or `field=loguniform(low,high)`.

        Raises:
            ValueError: it has another form.
        """
        field, equals, given = text.partition("=")
        field = field.strip().lstrip("-").replace("_", "-")
        form = "expected FIELD=A,B,C or FIELD=uniform(LOW,HIGH) or FIELD=loguniform(LOW,HIGH)"
        if not (field and equals and given):
            raise ValueError(f"{form}, got {text!r}")
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", field):
            raise ValueError(f"{text!r}: {field!r} is no field's name")
        if match := _RANGE.fullmatch(given.strip()):
            try:
                low, high = float(match[2]), float(match[3])
            except ValueError:
                raise ValueError(f"{form}, got {text!r}") from None
            if not low < high or (match[1] and low <= 0):
                raise ValueError(f"{text!r}: a range goes from a lower to a higher number; above 0 if logarithmic")
            return cls(field, (), low, high, bool(match[1]))
        values = tuple(value.strip() for value in _split(given))
        if len(set(values)) < len(values):
            raise ValueError(f"{text!r} names a value twice")
        return cls(field, values)

    def draw(self, rng: np.random.Generator) -> str:
        """A value at random."""
        if self.values:
            return str(rng.choice(list(self.values)))
        low, high = (math.log(x) if self.logarithmic else x for x in (self.low, self.high))
        drawn = rng.uniform(low, high)
        return f"{math.exp(drawn) if self.logarithmic else drawn:.4g}"


def trials(axes: Sequence[Axis], samples: int = 0, seed: int = 0) -> list[dict[str, str]]:
    """The values of each run: the whole grid, or `samples` random points.

    Raises:
        ValueError: a grid has a range, or a field comes twice.
    """
    if not axes:
        raise ValueError("nothing to sweep over; name fields with --over FIELD=A,B,C")
    if len({axis.field for axis in axes}) < len(axes):
        raise ValueError("a field is swept over twice")
    if samples:
        rng = np.random.default_rng(seed)
        return [{axis.field: axis.draw(rng) for axis in axes} for _ in range(samples)]
    if ranges := [axis.field for axis in axes if not axis.values]:
        raise ValueError(f"{', '.join(ranges)}: a range is drawn from at random; say how often with --samples")
    return [
        dict(zip([axis.field for axis in axes], values, strict=True))
        for values in itertools.product(*(axis.values for axis in axes))
    ]


def sweep(
    recipe: str,
    axes: Sequence[Axis],
    folder: Path,
    *,
    metric: str,
    goal: Goal = "min",
    samples: int = 0,
    seed: int = 0,
    arguments: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Runs a recipe once for each trial; returns the results, the best first.

    Args:
        recipe: its name.
        axes: what to vary.
        folder: where the runs, the table and the picture go.
        metric: what to compare runs by: a name in their metrics.jsonl, of which the last value counts.
        goal: whether less or more of it is better.
        samples, seed: for random trials, see `trials`.
        arguments: further arguments of the recipe, the same for all.

    Raises:
        ValueError: see `trials`; or no run has the metric.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    planned = trials(axes, samples, seed)
    for number, values in enumerate(planned, 1):
        run = folder / "-".join(f"{field}={_safe(_shown(field, value))}" for field, value in values.items())
        print(f"[{number}/{len(planned)}] {run}", flush=True)
        shown = {field: _shown(field, value) for field, value in values.items()}
        results.append({**shown, "run": str(run), **_outcome(recipe, run, values, arguments, metric)})
        (folder / RESULTS_FILE).write_text("".join(json.dumps(row) + "\n" for row in results), encoding="utf-8")
    if all(row[metric] is None for row in results):
        known = sorted({name for row in results for name in _names(Path(row["run"]))})
        raise ValueError(f"no run has the metric {metric!r}; they have {known}")
    worst = math.inf if goal == "min" else -math.inf
    results.sort(key=lambda row: worst if row[metric] is None else row[metric], reverse=goal == "max")
    (folder / TABLE_FILE).write_text(table(results, [axis.field for axis in axes], metric), "utf-8", "backslashreplace")
    return results


def table(results: Sequence[Mapping[str, Any]], fields: Sequence[str], metric: str) -> str:
    """The results as a Markdown table."""
    lines = [f"| {' | '.join([*fields, metric, 'minutes'])} |", "|---" * (len(fields) + 2) + "|"]
    for row in results:
        figure = f"failed ({row['problem']})" if row[metric] is None else f"{row[metric]:.4f}"
        minutes = "-" if row.get("minutes") is None else f"{row['minutes']:.1f}"
        lines.append(f"| {' | '.join([*(row[field] for field in fields), figure, minutes])} |")
    return "\n".join(lines) + "\n"


def draw(results: Sequence[Mapping[str, Any]], axes: Sequence[Axis], metric: str, picture: Path) -> Path:
    """A panel for each field: the metric by its values, with a line through the best of each value.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures need matplotlib: pip install 'loragym[plot]'") from error
    known = [row for row in results if row[metric] is not None]
    figure, panels = pyplot.subplots(1, len(axes), figsize=(5 * len(axes), 3.6), squeeze=False, layout="constrained")
    for axis, panel in zip(axes, panels[0], strict=True):
        texts = [row[axis.field] for row in known]
        numbers = [_number(text) for text in texts]
        is_scale = all(number is not None for number in numbers)
        places: list[Any] = numbers if is_scale else texts
        panel.plot(places, [row[metric] for row in known], "o", markersize=5)
        if is_scale and len(axes) == 1:
            order = np.argsort(np.array(numbers, dtype=float))
            panel.plot([numbers[i] for i in order], [known[i][metric] for i in order], "-", color="C0", alpha=0.5)
        if is_scale and _spans_a_decade([number for number in numbers if number is not None]):
            panel.set_xscale("log")
        if _spans_a_decade([row[metric] for row in known]):
            panel.set_yscale("log")
        panel.set_xlabel(axis.field)
        panel.set_ylabel(metric)
        panel.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
    return picture


def _spans_a_decade(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) / min(values) >= 10


def _outcome(
    recipe: str, run: Path, values: Mapping[str, str], arguments: Sequence[str], metric: str
) -> dict[str, Any]:
    given = [part for field, value in values.items() for part in (f"--{field}", value)]
    command = [sys.executable, "-m", f"{__package__.split('.')[0]}.cli", "train", recipe, *arguments, *given]
    # What the run says is its own business, but for why it failed.
    run.parent.mkdir(parents=True, exist_ok=True)
    code, complaint = _run([*command, "--run-dir", str(run)])
    if code in (Interrupted.exit_code, Terminated.exit_code):
        raise (Interrupted if code == Interrupted.exit_code else Terminated)(_complaint(complaint))
    if code:
        problem = _complaint(complaint) or f"exit code {code}"
        print(f"    failed: {problem}", flush=True)
        return {metric: None, "problem": problem}
    figures = [row[metric] for row in read_metrics(run) if row.get(metric) is not None]
    summary = json.loads((run / SUMMARY_FILE).read_text(encoding="utf-8"))
    found = float(figures[-1]) if figures else None
    print(f"    {metric} {'absent' if found is None else f'{found:.4f}'}", flush=True)
    return {metric: found, "minutes": summary.get("minutes"), **({} if figures else {"problem": "no such metric"})}


def _run(command: Sequence[str]) -> tuple[int, str]:
    """Runs a command; its exit code and stderr. What asks this process to stop is passed on, and waited for.

    Raises:
        Interrupted, Terminated: this process was asked to stop.
    """
    # In a session of its own: Ctrl-C would reach it from the terminal, too, and a second signal ends it at once.
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            _, said = process.communicate()
        except KeyboardInterrupt as asked:
            process.send_signal(signal.SIGTERM if isinstance(asked, Terminated) else signal.SIGINT)
            try:
                _, said = process.communicate()
            except KeyboardInterrupt:
                process.kill()
                raise
            kind = type(asked) if isinstance(asked, Interrupted) else Interrupted
            raise kind(_complaint(said) or "stopped; run the same command again to go on") from None
    return process.returncode, said


def _complaint(stderr: str) -> str:
    """What a run that failed said: its own message, or what stands in the box that a wrong argument gets."""
    lines = [line.strip("│╭╮╰╯─ ") for line in stderr.strip().splitlines()]
    own = [line.removeprefix("loragym: ") for line in lines if line.startswith("loragym: ")]
    boxed = [line for line, whole in zip(lines, stderr.strip().splitlines(), strict=True) if "│" in whole and line]
    return (own or [" ".join(boxed)] if own or boxed else lines[-1:] or [""])[0][:200]


def _names(run: Path) -> set[str]:
    return {name for row in read_metrics(run) for name in row} if run.is_dir() else set()


def _split(text: str) -> list[str]:
    """Splits at commas outside of brackets, so that values may be JSON."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(text):
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def _shown(field: str, value: str) -> str:
    """A value as names, tables and pictures have it: without secrets."""
    return redacted_message(f"{field}={value}").partition("=")[2]


def _safe(value: str) -> str:
    return re.sub(r"[^\w.+-]", "_", value)[:60]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
