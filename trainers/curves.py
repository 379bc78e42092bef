"""Curves of finished or running runs as a picture."""

from __future__ import annotations

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
"""A picture's panels, and the metrics that each shows where a run has them."""


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
        if (panels is None or name in panels) and any(_series(rows, m)[0] for rows in runs.values() for m in metrics)
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
            for style, metric in enumerate(PANELS[name]):
                steps, values = _series(rows, metric)
                if steps:
                    label = " ".join([path.name] * (len(runs) > 1) + [_label(metric)] * (len(PANELS[name]) > 1))
                    axis.plot(
                        steps,
                        values,
                        color=f"C{index if len(runs) > 1 else style}",
                        linestyle=("-", "--", ":")[style if len(runs) > 1 else 0],
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


def _series(rows: Sequence[dict[str, Any]], metric: str) -> tuple[list[int], list[float]]:
    points = [(row["step"], row[metric]) for row in rows if isinstance(row.get(metric), int | float)]
    return [int(step) for step, _ in points], [float(np.float64(value)) for _, value in points]


def _label(metric: str) -> str:
    name = metric.removeprefix("test/")
    if name != metric and "/" not in name:
        return f"{name}, held out"
    return "training" if name.startswith("env/") else name.partition("/env/")[0]
