"""What of a run's config may change when it is resumed, and what when it is forked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FREE_FIELDS = frozenset(
    {"run_dir", "fresh", "resume_from", "fork", "threads", "save_every", "transcripts_per_step", "eval_every"}
    | {"keep_checkpoints", "keep_hours", "keep_every", "keep_best", "keep_best_goal"}
    | {"episode_timeout", "engine_timeout", "health", "max_skipped"}
)
"""Fields that change no weights: where a run lies, what is kept of it, how often it is looked at, when it gives up."""
SILENT_FIELDS = frozenset({"run_dir", "fresh", "resume_from", "fork"})
"""Those of them that say nothing about the run."""
LENGTH_FIELDS = frozenset({"steps", "epochs"})
"""May grow while the learning rate does not depend on how long the run is."""
FIXED_FIELDS = frozenset({"model", "lora_rank", "kind"})
"""What a checkpoint's tensors are made for; no fork may change them."""


@dataclass(frozen=True, slots=True)
class Change:
    """A field that has another value than before."""

    field: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.before!r} -> {self.after!r}"


def changes(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Change]:
    """Fields that differ, by name; what a config does not have is None."""
    names = sorted((saved.keys() | wanted.keys()) - SILENT_FIELDS)
    # A field that is younger than the run was at its default then, and a free one does not matter.
    found = [Change(n, saved.get(n), wanted.get(n)) for n in names if saved.get(n) != wanted.get(n)]
    return [change for change in found if change.field in saved or change.field not in FREE_FIELDS]


def lengthens(change: Change, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a change asks for more of the same: further steps under a constant learning rate."""
    return (
        change.field in LENGTH_FIELDS
        and isinstance(change.before, int)
        and isinstance(change.after, int)
        and change.after > change.before
        and saved.get("schedule") == wanted.get("schedule") == "constant"
    )


def refused_by_resume(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Change]:
    """Changes under which the run would not be the one that it was."""
    return [
        change
        for change in changes(saved, wanted)
        if change.field not in FREE_FIELDS and not lengthens(change, saved, wanted)
    ]


def refused_by_fork(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Change]:
    """Changes under which a checkpoint could not be loaded: other tensors, or another trainer's config."""
    return [change for change in changes(saved, wanted) if change.field in FIXED_FIELDS or change.field not in wanted]


def listed(changes: list[Change]) -> str:
    """A line for each change."""
    return "".join(f"\n  {change}" for change in changes)
