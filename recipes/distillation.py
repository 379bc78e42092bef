"""Distillation: students learn from teachers on their own frozen base.

One command runs both stages. The teachers are trained first (supervised, a minute or two each), unless --teachers names
others; then the student learns from them: on its own replies (on_policy, full) or on theirs (off_policy).

    python -m loragym.recipes.distillation
    python -m loragym.recipes.distillation --mode off_policy --run-dir runs/distillation-off
    python -m loragym.recipes.distillation --subjects + -
    python -m loragym.recipes.distillation --teachers '[{"adapter": "runs/rl_basic"}]' --env-kwargs '{"high": 49}'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from loragym.trainers import SupervisedConfig, distillation, supervised
from loragym.trainers.command_line import play_config
from loragym.trainers.display import what_next
from loragym.trainers.distillation import DistillationConfig
from loragym.trainers.reports import print_held_out


@dataclass(frozen=True, kw_only=True)
class Config(DistillationConfig):
    """Teachers and student."""

    subjects: tuple[str, ...] = ("+",)
    """A teacher for each of these operations of arithmetic, where --teachers names none."""
    teacher_problems: int = 1600
    """Problems that each teacher learns from."""
    teacher_learning_rate: float = 1e-3
    """Learning rate of the teachers."""


DEFAULTS = Config(
    run_dir="runs/distillation",
    env="loragym/Arithmetic-v0",
    env_kwargs={"high": 19},
    mode="on_policy",
    steps=60,
    problems_per_step=48,
    group_size=4,
    max_tokens=6,
    learning_rate=1e-3,
    schedule="linear",
    eval_every=15,
    max_concurrent=512,
)


def main(argv: Sequence[str] | None = None) -> None:
    config = play_config(DEFAULTS, "distillation", __doc__, argv)
    if not config.teachers:
        config = replace(config, teachers=[train_teacher(config, subject) for subject in config.subjects])
    summary = distillation.train(student_of(config))
    print_held_out(
        summary,
        {
            "test/agreement": "same reply as the teacher",
            "test/teacher_kl": "KL to the teacher, a token",
            "test/greedy/reward": "reward of the student",
            "test/teacher/reward": "reward of the teacher",
        },
    )
    print(what_next(student_of(config).run_dir))


def train_teacher(config: Config, subject: str) -> dict[str, object]:
    """Trains a teacher of one operation, or finds it trained; how a run names it."""
    kwargs = {**config.env_kwargs, "operation": subject}
    name = {"+": "sums", "-": "differences", "*": "products"}.get(subject, subject)
    teacher = SupervisedConfig(
        run_dir=str(Path(config.run_dir) / f"teacher-{name}"),
        fresh=config.fresh,
        model=config.model,
        renderer=config.renderer,
        device=config.device,
        dtype=config.dtype,
        threads=config.threads,
        lora_rank=config.lora_rank,
        seed=config.seed,
        env=config.env,
        env_kwargs=kwargs,
        env_problems=config.teacher_problems,
        learning_rate=config.teacher_learning_rate,
    )
    supervised.train(teacher)
    return {"name": name, "adapter": teacher.run_dir, "env": config.env, "env_kwargs": kwargs}


def student_of(config: Config) -> DistillationConfig:
    """The student's part of the config, its run in a folder beside the teachers'."""
    given = {field.name: getattr(config, field.name) for field in fields(DistillationConfig)}
    return DistillationConfig(**{**given, "run_dir": str(Path(config.run_dir) / "student")})


if __name__ == "__main__":
    main()
