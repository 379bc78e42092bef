"""What was set as a goal, and whether a run meets it: ratios of medians within that one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .suite import OURS

BOUND = "bound"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One goal.

    Attributes:
        what: the goal in words, without its number.
        row: of the suite; its `-small` twin serves where the run has no such row.
        engine: ours, as the row names it.
        versus: an engine, the bound, or None for the figure itself.
        figure: `median`, `peak_mib`, or a field of the repetitions.
        least, most: what the ratio (how many times better we are) or the figure has to reach, or stay below.
    """

    what: str
    row: str
    engine: str = OURS
    versus: str | None = None
    figure: str = "median"
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target's figure in one run; None where the run has not measured it. `at_least`: the peer did not finish."""

    target: Target
    value: float | None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        target = self.target
        return self.value >= target.least if target.least is not None else self.value < (target.most or 0.0)


FRESH, WARM = "loragym-fresh", "loragym-warm"
TARGETS: tuple[Target, ...] = (
    Target(what="32 sequences: times `generate` without adapter", row="sampling/32", versus="generate", least=3.0),
    Target(what="32 sequences: times `generate` with PEFT", row="sampling/32", versus="generate-peft", least=5.0),
    Target(what="32 sequences: times vLLM with LoRA", row="sampling/32", versus="vllm-lora", least=4.0),
    Target(what="32 sequences: times vLLM with merged weights", row="sampling/32", versus="vllm-merged", least=1.3),
    Target(what="32 sequences: share of the bound", row="sampling/32", versus=BOUND, least=0.55),
    Target(what="ragged: times `generate`", row="sampling/ragged-32", versus="generate", least=6.0),
    Target(what="RL-shaped, prompts of 512: times `generate`", row="sampling/rl-512", versus="generate", least=15.0),
    Target(what="forward_backward, unpadded: times PEFT", row="training/unpadded", versus="peft", least=1.8),
    Target(what="forward_backward, unpadded: share of the bound", row="training/unpadded", versus=BOUND, least=0.6),
    Target(what="forward_backward, SFT-shaped: times TRL", row="training/sft", versus="trl-sft", least=3.5),
    Target(what="forward_backward, SFT-shaped: share of the bound", row="training/sft", versus=BOUND, least=0.6),
    Target(what="forward_backward, prompts of 512: times PEFT", row="training/rl-512", versus="peft", least=8.0),
    Target(what="forward_backward, prompts of 512: times TRL", row="training/rl-512", versus="trl-sft", least=8.0),
    Target(what="forward_backward, prompts of 512: share of the bound", row="training/rl-512", versus=BOUND, least=0.6),
    Target(what="RL step: times TRL", row="rl/step", engine=FRESH, versus="trl-grpo", least=12.0),
    Target(
        what="RL step: peak memory, times less than TRL",
        row="rl/step",
        engine=FRESH,
        versus="trl-grpo",
        figure="peak_mib",
        least=1.0,
    ),
    Target(
        what="time to a reward of 0.9: times shorter than TRL",
        row="rl/until-0.9",
        engine=WARM,
        versus="trl-grpo-warm",
        least=10.0,
    ),
    Target(what="RL step: share of the time in no tensor operator", row="rl/overhead", engine=FRESH, most=0.10),
    Target(what="a second adapter: share of the base's memory", row="memory/adapters-2", figure="share", most=0.05),
)


def verdicts(records: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """Every target's figure in a run's records."""
    return [_verdict(target, records) for target in TARGETS]


def _verdict(target: Target, records: Sequence[Mapping[str, Any]]) -> Verdict:
    ours = _find(records, target.row, target.engine)
    if ours is None:
        return Verdict(target, None)
    if not all(answer.get("reached", True) for answer in ours["repetitions"]):
        return Verdict(target, 0.0)
    own = _figure(ours, target.figure)
    if target.versus is None:
        return Verdict(target, own)
    if target.versus == BOUND:
        return Verdict(target, own / ours["bound"]["tokens_per_second"])
    peer = _find(records, target.row, target.versus)
    if peer is None:
        return Verdict(target, None)
    other = _figure(peer, target.figure)
    more_is_better = target.figure == "median" and ours["unit"] == "tokens/s"
    unfinished = not all(answer.get("reached", True) for answer in peer["repetitions"])
    return Verdict(target, own / other if more_is_better else other / own, at_least=unfinished)


def _find(records: Sequence[Mapping[str, Any]], row: str, engine: str) -> Mapping[str, Any] | None:
    """The record of a row or its small twin, if it was measured."""
    for name in (row, f"{row}-small"):
        for record in records:
            is_it = f"{record['section']}/{record['row']}" == name and record["engine"] == engine
            if is_it and "missing" not in record:
                return record
    return None


def _figure(record: Mapping[str, Any], name: str) -> float:
    return float(record[name] if name in record else record["repetitions"][-1][name])
