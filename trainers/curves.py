"""Curves of finished or running runs as a picture."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .run_directory import read_metrics

PANELS = {
    "Reward of the sampled episodes": ("reward",),
    "Held-out problems solved": ("test/greedy/env/correct", "test/sampled/env/correct"),
    "Tool calls per episode": ("env/calls", "test/greedy/env/calls", "test/sampled/env/calls"),
    "Illegal replies": ("illegal", "test/sampled/illegal"),
    "Held-out score by opponent and seat": ("test/sampled/*/*/score",),
    "Tokens per reply": ("tokens_per_reply",),
    "Negative log-likelihood": ("warmup/nll", "train/nll", "test/nll"),
    "Pairs in the right order": ("accuracy", "test/accuracy"),
    "Same reply as the teacher": ("test/agreement",),
    "KL to the teacher": ("teacher_kl", "test/teacher_kl"),
    "Explained variance of the critic": ("critic/explained_variance",),
    "Entropy": ("entropy",),
    "Sampler/learner KL": ("kl_v1", "kl_v2"),
    "Gradient norm": ("grad_norm",),
}
"""A picture's panels, and the metrics, or patterns of their names, that each shows where a run has them."""
LINES = ("-", "--", ":", "-.")
LEAST = {"Explained variance of the critic": -1.0}
"""The least that a panel shows: returns that hardly differ give an explained variance of minus some hundreds."""


def plot_runs(paths: Sequence[str | Path], picture: str | Path, *, panels: Sequence[str] | None = None) -> Path:
    """Draws the runs' curves, one colour a run, and writes the picture.

    Args:
        paths: run directories.
        picture: the file to write; its suffix chooses the format.
        panels: names from `PANELS`; by default all that any of the runs has.

    Raises:
        ValueError: no run has anything to draw, or a panel is unknown.
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures need matplotlib: pip install 'loragym[plot]'") from error
    runs = {Path(path): read_metrics(path) for path in paths}
    if unknown := [name for name in panels or () if name not in PANELS]:
        raise ValueError(f"unknown panels {unknown}; there are {list(PANELS)}")
    shown = [
        name
        for name, metrics in PANELS.items()
        if (panels is None or name in panels) and any(_known(rows, metrics) for rows in runs.values())
    ]
    if not shown:
        raise ValueError(
            f"nothing to draw in {[str(path) for path in runs]}: no metrics.jsonl with known figures there"
        )
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(5 * columns, 3.4 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, shown, strict=False):
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        for index, (path, rows) in enumerate(runs.items()):
            known = _known(rows, PANELS[name])
            for style, metric in enumerate(known):
                steps, values = _series(rows, metric)
                is_one = len(PANELS[name]) == len(known) == 1
                label = " ".join([path.name] * (len(runs) > 1) + [_label(metric)] * (not is_one))
                axis.plot(
                    steps,
                    np.maximum(values, LEAST.get(name, -np.inf)),
                    color=f"C{index if len(runs) > 1 else style}",
                    linestyle=LINES[style % len(LINES) if len(runs) > 1 else 0],
                    marker="o" if len(steps) < 30 else None,
                    markersize=3,
                    label=label or None,
                )
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    picture = Path(picture)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
    return picture


def _known(rows: Sequence[dict[str, Any]], patterns: Sequence[str]) -> list[str]:
    """The metrics of a run that match, in the order of the patterns, as far as they have figures."""
    names = sorted({name for row in rows for name in row})
    found = [name for pattern in patterns for name in names if fnmatch.fnmatchcase(name, pattern)]
    return [name for name in found if _series(rows, name)[0]]


def _series(rows: Sequence[dict[str, Any]], metric: str) -> tuple[list[int], list[float]]:
    points = [(row["step"], row[metric]) for row in rows if isinstance(row.get(metric), int | float)]
    return [int(step) for step, _ in points], [float(np.float64(value)) for _, value in points]


def _label(metric: str) -> str:
    name = metric.removeprefix("test/")
    if name.endswith("/score"):
        opponent, seat = name.split("/")[1:3]
        return f"{seat} against {opponent}"
    if name != metric and "/" not in name:
        return f"{name}, held out"
    return "training" if name.startswith("env/") else name.partition("/env/")[0]
