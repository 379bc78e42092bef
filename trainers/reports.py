"""A run's figures in words, for the end of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .display import what_next

STAGES = {"before": "before", "after_warmup": "after the warm-up", "after": "at the end"}
"""Where a summary has held-out figures, and what to call it."""


def print_stages(run_dir: str, summary: Mapping[str, Any], figures: Mapping[str, str] | None = None) -> None:
    """A reinforcement learning run in figures: held out before, after the warm-up and at the end, rewards and speed.

    Args:
        run_dir: where the run is.
        summary: what the trainer returned.
        figures: held-out metrics to give in a table, and what to call each; by default a line says what was solved.
    """
    stages = {name: summary[key] for key, name in STAGES.items() if summary[key]}
    if figures and stages:
        _print_figures(stages, figures)
    else:
        print("\nHeld-out problems")
        for stage, metrics in stages.items():
            print(f"  {stage:18}{evaluation_line(metrics)}")
    print(
        f"Reward of the sampled episodes: {summary['first_reward']:.3f} in the first step, "
        f"{summary['last_reward']:.3f} over the last five\n"
        f"{summary['minutes']:.1f} minutes, {summary['sampled_tokens_per_second']:.0f} tokens/s sampled, "
        f"{summary['trained_tokens_per_second']:.0f} tokens/s trained, {summary['peak_memory_mib']:.0f} MiB at most\n\n"
        f"{what_next(run_dir)}"
    )


def print_held_out(summary: Mapping[str, Any], figures: Mapping[str, str]) -> None:
    """Held-out figures before and after, a line each.

    Args:
        summary: a run's, with `before` and `after`.
        figures: what to call each metric; those that a run lacks are left out.
    """
    _print_figures({"before": summary.get("before") or {}, "after": summary["after"]}, figures)
    print(f"\n{summary['minutes']:.1f} minutes, {summary['peak_memory_mib']:.0f} MiB at most")


def _print_figures(stages: Mapping[str, Mapping[str, float]], figures: Mapping[str, str]) -> None:
    """A line for each metric that the last stage has, a column for each stage."""
    *_, last = stages.values()
    widths = [max(10, len(stage) + 2) for stage in stages]
    print(f"\n{'Held out':32}" + "".join(stage.rjust(width) for stage, width in zip(stages, widths, strict=True)))
    for metric, name in figures.items():
        if metric in last:
            cells = [format(part[metric], ".3f") if metric in part else "-" for part in stages.values()]
            print(f"  {name:30}" + "".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))


def evaluation_line(metrics: dict[str, float]) -> str:
    """Held-out figures in words."""
    parts = []
    for name in ("greedy", "sampled"):
        key = f"test/{name}/env/correct" if f"test/{name}/env/correct" in metrics else f"test/{name}/reward"
        label = "greedy" if name == "greedy" else "at temperature 1"
        parts.append(f"{key.split('/')[-1]} {metrics[key]:.3f} {label}")
    return ", ".join(parts)
