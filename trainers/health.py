"""Alarms: what a run's figures say is going wrong, and which heading of docs/troubleshooting.md to read about it.

An alarm is a function of the logged rows alone, so that a resumed run raises those of an uninterrupted one. It is on
when its sign is there in the last few rows that have the figures it needs.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

PAGE = "docs/troubleshooting.md"
PREFIX = "health/"
Row = Mapping[str, Any]
"""A step's figures; what is not a finite number counts as not there."""


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """When alarms are raised."""

    patience: int = 5
    """Steps in a row that have to look bad before an alarm is raised; 0 raises none."""
    max_kl: float = 0.05
    """Sampler/learner KL (kl_v2) above this is an alarm, in nats per token."""
    max_ratio: float = 20.0
    """Importance ratios above this, or below its inverse, are an alarm."""
    min_effective_samples: float = 0.7
    """Effective samples below this share are an alarm."""
    min_entropy: float = 0.1
    """Entropy below this is an alarm while most groups are not solved, in nats per token."""
    min_mixed: float = 0.25
    """A share of groups whose rewards differ below this is an alarm while most groups are not solved."""
    max_cut_off: float = 0.95
    """A share of replies cut off at the token limit above this is an alarm."""
    flat_reward: float = 0.005
    """Rewards that differ by less from step to step count as flat."""
    max_failing: float = 0.1
    """A share of episodes left out because of errors above this is an alarm."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) >= 0:
                raise ValueError(
                    f"health.{field.name.replace('_', '-')} is at least 0, got {getattr(self, field.name)}"
                )


@dataclass(frozen=True, slots=True)
class Limits:
    """What signs are judged by: the thresholds, and the run's token limit (0: it samples nothing)."""

    config: HealthConfig
    max_tokens: int = 0


Sign = Callable[[Sequence[Row], Limits], bool]
"""Whether the last of some rows looks bad; all of them have the figures that the alarm needs."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that goes wrong in a way that figures show.

    Attributes:
        name: of its metric, after `health/`.
        heading: of the page's part about it.
        needs: figures that a row must have to say anything.
        sign: whether a row looks bad.
        shows: figures to quote.
        patience: rows that have to look bad; None is the config's.
    """

    name: str
    heading: str
    needs: tuple[str, ...]
    sign: Sign
    shows: tuple[str, ...]
    patience: int | None = None


@dataclass(frozen=True, slots=True)
class Raised:
    """An alarm that went on, with the figures of the step at which it did."""

    alarm: Alarm
    figures: dict[str, float]

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in self.figures.items())
        return f'{self.alarm.heading} ({shown}): see {PAGE}, "{self.alarm.heading}"'


class Health:
    """The alarms of a run as its rows come.

    Args:
        config: when to raise alarms.
        max_tokens: the run's token limit for a reply; 0 if it samples nothing.
        rows: what has been logged already.
    """

    def __init__(self, config: HealthConfig, max_tokens: int = 0, rows: Iterable[Row] = ()) -> None:
        self._limits = Limits(config, max_tokens)
        self._watched = [_Watched(alarm, alarm.patience or config.patience) for alarm in ALARMS if config.patience]
        for row in rows:
            self.take(row)

    @property
    def active(self) -> list[Raised]:
        """The alarms that are on."""
        return [watched.raised for watched in self._watched if watched.raised is not None]

    def take(self, row: Row) -> list[Raised]:
        """Takes a step's figures; returns the alarms that went on with them."""
        before = {raised.alarm.name for raised in self.active}
        for watched in self._watched:
            watched.take(row, self._limits)
        return [raised for raised in self.active if raised.alarm.name not in before]

    def metrics(self) -> dict[str, float]:
        """`health/alarms`, how many are on, and for each that ever was whether it is."""
        known = {PREFIX + w.alarm.name: float(w.raised is not None) for w in self._watched if w.ever}
        return {PREFIX + "alarms": float(len(self.active)), **known}


class _Watched:
    def __init__(self, alarm: Alarm, patience: int) -> None:
        self.alarm, self.patience = alarm, patience
        self.raised: Raised | None = None
        self.ever = False
        self._rows: deque[Row] = deque(maxlen=patience + 1)
        self._signs: deque[bool] = deque(maxlen=patience)

    def take(self, row: Row, limits: Limits) -> None:
        if not all(_is_number(row.get(name)) for name in self.alarm.needs):
            return
        self._rows.append({name: row[name] for name in row if _is_number(row[name])})
        self._signs.append(self.alarm.sign(list(self._rows), limits))
        if not (len(self._signs) == self.patience and all(self._signs)):
            self.raised = None
        elif self.raised is None:
            self.ever = True
            latest = self._rows[-1]
            self.raised = Raised(self.alarm, {name: latest[name] for name in self.alarm.shows if name in latest})


def health_summary(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """For each alarm that was ever on: at how many steps, at which first and last."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith(PREFIX) and name != PREFIX + "alarms" and value:
                seen = found.setdefault(name.removeprefix(PREFIX), {"steps": 0, "first": row["step"]})
                seen["steps"] += 1
                seen["last"] = row["step"]
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _disagrees(rows: Sequence[Row], limits: Limits) -> bool:
    return bool(rows[-1]["kl_v2"] > limits.config.max_kl)


def _has_tails(rows: Sequence[Row], limits: Limits) -> bool:
    row, config = rows[-1], limits.config
    is_wide = row["ratio_max"] > config.max_ratio or row["ratio_min"] < 1 / config.max_ratio
    return is_wide or bool(row["effective_samples"] < config.min_effective_samples)


def _has_collapsed(rows: Sequence[Row], limits: Limits) -> bool:
    row = rows[-1]
    return _rewards_teach(row) and row["entropy"] < limits.config.min_entropy and row["groups/all_good"] < 0.5


def _rewards_teach(row: Row) -> bool:
    """Whether rewards are what is learnt from, by groups or by a critic; in distillation they are not."""
    return "groups/dropped" in row or "critic/loss" in row


def _is_flat(rows: Sequence[Row], limits: Limits) -> bool:
    return len(rows) > 1 and abs(rows[-1]["reward"] - rows[-2]["reward"]) <= limits.config.flat_reward


def _is_never_rewarded(rows: Sequence[Row], limits: Limits) -> bool:
    return _rewards_teach(rows[-1]) and rows[-1]["groups/all_bad"] == 1 and _is_flat(rows, limits)


def _is_always_rewarded(rows: Sequence[Row], limits: Limits) -> bool:
    return _rewards_teach(rows[-1]) and rows[-1]["groups/all_good"] == 1 and _is_flat(rows, limits)


def _is_constant(rows: Sequence[Row], limits: Limits) -> bool:
    row = rows[-1]
    is_rare = row["groups/mixed"] <= limits.config.min_mixed and row["groups/all_good"] < 0.5
    return bool(row["groups/mixed"] == 0 or is_rare)


def _is_cut_off(rows: Sequence[Row], limits: Limits) -> bool:
    row = rows[-1]
    at_limit = 1 < limits.max_tokens <= row["tokens_per_reply"]
    return at_limit or row.get("stop/length", 0.0) > limits.config.max_cut_off


def _has_no_gradient(rows: Sequence[Row], limits: Limits) -> bool:
    return rows[-1]["grad_norm"] == 0


def _is_still(rows: Sequence[Row], limits: Limits) -> bool:
    is_same = len(rows) > 1 and rows[-1]["adapter/b_norm"] == rows[-2]["adapter/b_norm"]
    return is_same and rows[-1]["grad_norm"] > 0


def _is_failing(rows: Sequence[Row], limits: Limits) -> bool:
    row = rows[-1]
    dropped = row.get("errors/dropped", 0.0)
    return bool(dropped > limits.config.max_failing * (row["episodes"] + dropped))


def _happened(name: str) -> Sign:
    return lambda rows, limits: rows[-1].get(name, 0.0) > 0


ALARMS = (
    Alarm("sampler_kl", "Sampler and learner disagree", ("kl_v2",), _disagrees, ("kl_v2", "kl_v1", "staleness")),
    Alarm(
        "ratio_tails",
        "Importance ratios have long tails",
        ("ratio_min", "ratio_max", "effective_samples"),
        _has_tails,
        ("ratio_min", "ratio_max", "effective_samples"),
    ),
    Alarm(
        "entropy_collapse",
        "Entropy has collapsed",
        ("entropy", "groups/all_good"),
        _has_collapsed,
        ("entropy", "reward"),
    ),
    Alarm("never_rewarded", "Nothing is rewarded", ("groups/all_bad", "reward"), _is_never_rewarded, ("reward",)),
    Alarm("always_rewarded", "Everything is rewarded", ("groups/all_good", "reward"), _is_always_rewarded, ("reward",)),
    Alarm(
        "constant_groups",
        "Few groups differ",
        ("groups/mixed", "groups/all_good", "groups/dropped"),
        _is_constant,
        ("groups/mixed", "groups/all_good", "groups/all_bad"),
    ),
    Alarm("cut_off", "Replies are cut off", ("tokens_per_reply",), _is_cut_off, ("stop/length", "tokens_per_reply")),
    Alarm("no_gradient", "The gradient is zero", ("grad_norm",), _has_no_gradient, ("grad_norm", "loss")),
    Alarm(
        "adapter_still",
        "The adapter does not move",
        ("grad_norm", "adapter/b_norm"),
        _is_still,
        ("adapter/b_norm", "learning_rate", "grad_norm"),
    ),
    Alarm("failing_episodes", "Episodes fail", ("episodes",), _is_failing, ("errors/dropped",)),
    Alarm("skipped_updates", "Updates are skipped", (), _happened("update/skipped"), ("update/skipped",), patience=1),
    Alarm("out_of_memory", "Memory runs out", (), _happened("memory/halved"), ("memory/halved",), patience=1),
)
