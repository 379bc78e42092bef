"""What all trainers are told: the model, its adapter, the run directory. Field docs are the command line's help."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields

from ..agents import AdamParams, BaseModel, LoraConfig, LoraPolicy
from ..agents.lora import read_peft_config
from .checkpoints import GOALS, Retention, find_adapter
from .health import HealthConfig

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}
"""Factor of the learning rate by the share of the run that is done."""


def scheduled(name: str, step: int, total: int, rise: int = 0) -> float:
    """The learning rate's factor at a step: a linear rise over the first `rise` steps, then the named schedule."""
    if step < rise:
        return (step + 1) / (rise + 1)
    return SCHEDULES[name]((step - rise) / max(1, total - rise))


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Fields that every trainer has."""

    run_dir: str
    """Directory of the run; running the same command again resumes it."""
    fresh: bool = False
    """Delete the run directory and start anew."""
    resume_from: str = ""
    """Begin at this checkpoint, or at the newest of this run, with its history and the same config."""
    fork: str = ""
    """As resume-from, into a new run directory and under a config that may differ."""
    model: str = "smollm2-135m-instruct"
    """Base model: a bundled name, a local directory or a hub id."""
    renderer: str | None = None
    """Chat format by name; by default the model's own."""
    device: str = "auto"
    """Torch device; auto takes a GPU if there is one."""
    dtype: str = "auto"
    """Type of the base's weights: auto, float32 or bfloat16."""
    threads: int = 0
    """CPU threads; 0 leaves torch's own choice."""
    adapter: str = ""
    """Begin with this adapter, a PEFT folder or a run's directory, instead of a fresh one."""
    lora_rank: int = 32
    """Rank of a fresh adapter."""
    seed: int = 0
    """Seed of the adapter, the problems and the sampling."""
    schedule: str = "constant"
    """Learning rate over the run: constant, linear (to 0) or cosine (to 0)."""
    rise_steps: int = 0
    """Steps over which the learning rate first rises to its value."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    grad_clip_norm: float = 1.0
    """Scale gradients down to this norm; 0 for no limit."""
    save_every: int = 20
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints to keep."""
    keep_hours: float = 0.0
    """Of those, keep none that is more hours of training behind the newest; 0 for no limit."""
    keep_every: int = 0
    """Keep the checkpoints of every so many steps for ever; 0 for none."""
    keep_best: str = ""
    """Keep the best checkpoint by this metric, such as test/greedy/reward or test/nll."""
    keep_best_goal: str = "max"
    """Whether more (max) or less (min) of keep-best is better."""
    max_skipped: int = 5
    """Updates whose loss or gradient is NaN or infinite are skipped; after so many steps in a row the run stops."""
    health: HealthConfig = field(default_factory=HealthConfig)
    """When alarms are raised; docs/troubleshooting.md explains them."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{each.name.replace('_', '-')} is a finite number, got {value}")
        for name in ("save_every", "keep_checkpoints", "lora_rank", "max_skipped"):
            at_least(self, name, 1)
        for name in ("rise_steps", "keep_hours", "keep_every"):
            at_least(self, name, 0)
        one_of(self, "schedule", SCHEDULES)
        one_of(self, "keep_best_goal", GOALS)
        if self.resume_from and self.fork:
            raise ValueError("resume-from keeps the config and fork changes it; give one of them")
        if self.adapter:
            find_adapter(self.adapter)

    @property
    def retention(self) -> Retention:
        """Which checkpoints stay."""
        return Retention(
            keep=self.keep_checkpoints,
            hours=self.keep_hours,
            every=self.keep_every,
            best=self.keep_best,
            goal=self.keep_best_goal,
        )

    def load_base(self) -> BaseModel:
        """The base model, on the device and with the threads that were asked for."""
        if self.threads:
            import torch

            torch.set_num_threads(self.threads)
        return BaseModel.load(self.model, device=self.device, dtype=self.dtype)

    def load_policy(self) -> LoraPolicy:
        """The base model with the adapter to train: the one to begin with, or a fresh one."""
        base = self.load_base()
        return self.load_adapter(base, "policy") if self.adapter else base.add_lora("policy", self.lora())

    def load_adapter(self, base: BaseModel, name: str) -> LoraPolicy:
        """The adapter to begin with, on a base, under a name."""
        return base.load_lora(name, find_adapter(self.adapter))

    def lora(self) -> LoraConfig:
        """The adapter's configuration."""
        rank = read_peft_config(find_adapter(self.adapter))["r"] if self.adapter else self.lora_rank
        return LoraConfig(rank=rank, seed=self.seed)

    def rate_factor(self, step: int, total: int) -> float:
        """The learning rate's factor at step `step` of `total`."""
        return scheduled(self.schedule, step, total, self.rise_steps)

    def adam(self, learning_rate: float) -> AdamParams:
        return AdamParams(
            learning_rate=learning_rate, weight_decay=self.weight_decay, grad_clip_norm=self.grad_clip_norm
        )


def at_least(config: object, name: str, least: float) -> None:
    """Raises ValueError if the field is below `least`."""
    if not getattr(config, name) >= least:
        raise ValueError(f"{name.replace('_', '-')} is at least {least}, got {getattr(config, name)}")


def at_most(config: object, name: str, most: float) -> None:
    """Raises ValueError if the field is above `most`."""
    if not getattr(config, name) <= most:
        raise ValueError(f"{name.replace('_', '-')} is at most {most}, got {getattr(config, name)}")


def one_of(config: object, name: str, choices: object) -> None:
    """Raises ValueError if the field is none of `choices`."""
    known = sorted(choices)  # type: ignore[call-overload]
    if getattr(config, name) not in known:
        raise ValueError(f"{name.replace('_', '-')} is one of {known}, got {getattr(config, name)!r}")
