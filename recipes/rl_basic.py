"""The main job: a small instruct model learns arithmetic by reinforcement learning, on a laptop's CPU.

A few supervised steps teach it the form of an answer; the right answers it finds by itself, from the reward alone.

    python -m loragym.recipes.rl_basic
    python -m loragym.recipes.rl_basic --env-kwargs '{"high": 9}' --steps 40 --run-dir runs/one-digit
    python -m loragym.recipes.rl_basic --env my_module:Mine-v0 --warmup-steps 0
"""

from __future__ import annotations

from collections.abc import Sequence

from loragym.trainers import RLConfig, rl
from loragym.trainers.command_line import play_config
from loragym.trainers.reports import print_stages

MAIN_JOB = RLConfig(
    run_dir="runs/rl_basic",
    env="loragym/Arithmetic-v0",
    env_kwargs={"high": 49},
    warmup_steps=16,
    warmup_learning_rate=3e-4,
    steps=220,
    eval_every=55,
    problems_per_step=40,
    group_size=16,
    max_tokens=6,
    # Hotter than it is judged: at 1 the groups soon agree, and groups that agree teach nothing.
    temperature=1.5,
    learning_rate=6e-4,
    schedule="linear",
    max_concurrent=1024,
)


def main(argv: Sequence[str] | None = None) -> None:
    config = play_config(MAIN_JOB, "rl_basic", __doc__, argv)
    print_stages(config.run_dir, rl.train(config))


if __name__ == "__main__":
    main()
