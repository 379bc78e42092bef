"""Reinforcement learning on mathematics: arithmetic, countdown, or a data set of word problems.

    python -m loragym.recipes.math_rl
    python -m loragym.recipes.math_rl --env loragym/Arithmetic-v0 --env-kwargs '{"high": 19}'
    python -m loragym.recipes.math_rl --env loragym/GSM8K-v0 --model Qwen/Qwen3-1.7B --max-tokens 512 --warmup-steps 0

The default is countdown: reach a target from a few numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

from loragym.trainers import RLConfig, rl
from loragym.trainers.command_line import play_config
from loragym.trainers.reports import print_stages

DEFAULTS = RLConfig(
    run_dir="runs/math_rl",
    env="loragym/Countdown-v0",
    warmup_steps=24,
    warmup_learning_rate=5e-4,
    steps=120,
    eval_every=30,
    problems_per_step=16,
    group_size=16,
    max_tokens=24,
    temperature=1.2,
    learning_rate=4e-4,
    schedule="linear",
    max_concurrent=512,
)


def main(argv: Sequence[str] | None = None) -> None:
    config = play_config(DEFAULTS, "math_rl", __doc__, argv)
    print_stages(config.run_dir, rl.train(config))


if __name__ == "__main__":
    main()
