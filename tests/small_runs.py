"""A trainer in ten lines on a tiny model: runs of eight steps to which things happen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from loragym.agents import AdamParams, BaseModel, Datum, LoraConfig, LoraPolicy
from loragym.agents.testing import tiny_model
from loragym.trainers import RunDirectory
from loragym.trainers.config import RunConfig
from loragym.trainers.display import Column, StepTable
from loragym.trainers.loop import StepResult, run_steps
from loragym.trainers.run_directory import read_metrics

TOTAL = 8
DATUM = Datum.supervised(list(b"abcdef"), [1.0] * 6)


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    run_dir: str = "unused"
    save_every: int = 3
    steps: int = TOTAL
    learning_rate: float = 1e-2


def update(policy: LoraPolicy, number: int, config: Config = Config()) -> dict[str, float]:
    out = policy.forward_backward([DATUM])
    policy.optim_step(AdamParams(learning_rate=config.learning_rate * (number + 1)))
    return {"loss": out.loss}


Accident = Callable[[LoraPolicy], None]


def train(
    folder: Path,
    *,
    at: int = -1,
    accident: Accident = lambda policy: None,
    substeps: int = 1,
    config: Config = Config(),
    **options: Any,
) -> LoraPolicy:
    """A run to which something happens in step `at`, before its last update; `options` are the run directory's."""
    policy = BaseModel(*tiny_model(), name="tiny").add_lora("policy", LoraConfig(rank=4))

    def step(number: int, table: StepTable) -> StepResult:
        for _ in range(substeps - 1):
            update(policy, number, config)
        if number == at:
            accident(policy)
        return StepResult(update(policy, number, config), [{"messages": [], "step": number}])

    with RunDirectory(folder, config, **options) as run:
        run_steps(run, config, policy, step, config.steps, [Column("loss", "loss", ".3f")])
    return policy


def raising(error: BaseException) -> Accident:
    def accident(policy: LoraPolicy) -> None:
        raise error

    return accident


def weights(policy: LoraPolicy) -> list[torch.Tensor]:
    return [p.detach().clone() for p in policy.parameters]


def same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def newest(folder: Path) -> int:
    return max(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_metrics(folder)]
