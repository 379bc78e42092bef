"""What recipes on a trainer have in common: the command line, and the figures in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from loragym.trainers.command_line import config_from
from loragym.trainers.playground import PlayConfig

C = TypeVar("C", bound=PlayConfig)


def play_config(defaults: C, recipe: str, description: str | None, argv: Sequence[str] | None) -> C:
    """The config that a user asks for; another environment does not get the arguments of the recipe's own."""
    config = config_from(defaults, prog=f"loragym train {recipe}", description=description, argv=argv)
    if config.env != defaults.env and config.env_kwargs == defaults.env_kwargs:
        config = replace(config, env_kwargs={})
    return config


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
