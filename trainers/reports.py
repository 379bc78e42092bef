"""A run's figures in words, for the end of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .display import what_next


def print_stages(run_dir: str, summary: Mapping[str, Any]) -> None:
    """A reinforcement learning run in figures: held out before, after the warm-up and at the end, rewards and speed."""
    stages = {
        "before": summary["before"],
        "after the warm-up": summary["after_warmup"],
        "at the end": summary["after"],
    }
    print("\nHeld-out problems")
    for stage, metrics in stages.items():
        if metrics:
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
    before, after = summary.get("before") or {}, summary["after"]
    print("\nHeld out" + "before".rjust(34) + "after".rjust(10))
    for metric, name in figures.items():
        if metric in after:
            cells = [format(part[metric], ".3f") if metric in part else "-" for part in (before, after)]
            print(f"  {name:30}" + "".join(cell.rjust(10) for cell in cells))
    print(f"\n{summary['minutes']:.1f} minutes, {summary['peak_memory_mib']:.0f} MiB at most")


def evaluation_line(metrics: dict[str, float]) -> str:
    """Held-out figures in words."""
    parts = []
    for name in ("greedy", "sampled"):
        key = f"test/{name}/env/correct" if f"test/{name}/env/correct" in metrics else f"test/{name}/reward"
        label = "greedy" if name == "greedy" else "at temperature 1"
        parts.append(f"{key.split('/')[-1]} {metrics[key]:.3f} {label}")
    return ", ".join(parts)
