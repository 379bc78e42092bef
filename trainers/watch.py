"""Watches a run step by step: updates that were skipped, memory that ran out, and alarms from its figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..agents import BaseModel
from ..agents.lora import Adapter
from ..agents.optimizer import Adam
from .config import RunConfig
from .display import StepTable
from .health import Health, Row
from .learners import Learner, Learners

SKIPPED = "update/skipped"
HALVED = "memory/halved"
B_NORM = "adapter/b_norm"


class TooManySkipped(RuntimeError):
    """Update after update had a loss or a gradient that is NaN or infinite."""


class Watch:
    """What to add to each step's figures, and when to stop.

    Its optimisers skip updates that are not finite from now on, and count them.

    Args:
        config: the run's.
        learner: what is trained.
        rows: what has been logged already.
    """

    def __init__(self, config: RunConfig, learner: Learner, rows: Iterable[Row] = ()) -> None:
        self._config = config
        parts = [learner.first, *learner.others.values()] if isinstance(learner, Learners) else [learner]
        found = [getattr(part, "optimizer", None) for part in parts]
        self._optimizers = [optimizer for optimizer in found if isinstance(optimizer, Adam)]
        for optimizer in self._optimizers:
            optimizer.skips_non_finite = True
        adapter, base = (getattr(parts[0], name, None) for name in ("adapter", "base"))
        self._adapter = adapter if isinstance(adapter, Adapter) else None
        self._shortages = base.shortages if isinstance(base, BaseModel) else []
        self._skipped_before, self._halved_before = self._counts()
        rows = list(rows)
        self._health = Health(config.health, getattr(config, "max_tokens", 0), rows)
        self._in_a_row = 0
        for row in rows:
            self._count(row)

    def begin(self, table: StepTable) -> None:
        """Says which alarms of the rows so far are on."""
        for raised in self._health.active:
            table.say(f"  still: {raised}", "yellow")

    def take(self, metrics: Mapping[str, float], table: StepTable) -> dict[str, float]:
        """A step's figures with those of the watch; says what went wrong in it."""
        skipped, halved = self._counts()
        row = {**metrics}
        if self._adapter is not None:
            row[B_NORM] = self._adapter.b_norm()
        for name, now, before in (
            (SKIPPED, skipped, self._skipped_before),
            (HALVED, halved, self._halved_before),
        ):
            if now > before:
                row[name] = float(now - before)
        self._skipped_before, self._halved_before = skipped, halved
        self._count(row)
        for raised in self._health.take(row):
            why = f"; the last one because {self._problem}" if raised.alarm.name == "skipped_updates" else ""
            table.say(f"  alarm: {raised}{why}", "yellow")
        return {**row, **self._health.metrics()}

    def check(self) -> None:
        """Raises TooManySkipped if so many steps in a row had skipped updates as the config allows."""
        if self._in_a_row >= self._config.max_skipped:
            raise TooManySkipped(
                f"{self._in_a_row} steps in a row had an update that was skipped, the last one because "
                f"{self._problem}. Lower the learning rate, or look for NaN in rewards, advantages and data; "
                "--max-skipped allows more"
            )

    @property
    def _problem(self) -> str:
        return next((optimizer.problem for optimizer in self._optimizers if optimizer.problem), "")

    def _counts(self) -> tuple[int, int]:
        return sum(optimizer.skipped for optimizer in self._optimizers), len(self._shortages)

    def _count(self, row: Mapping[str, Any]) -> None:
        self._in_a_row = self._in_a_row + 1 if row.get(SKIPPED) else 0
