"""The main job: a small instruct model learns arithmetic by reinforcement learning, on a laptop's CPU.

A few supervised steps teach it the form of an answer; the right answers it finds by itself, from the reward alone.

    python -m loragym.recipes.rl_basic
    python -m loragym.recipes.rl_basic --env-kwargs '{"high": 9}' --steps 40 --run-dir runs/one-digit
    python -m loragym.recipes.rl_basic --env my_module:Mine-v0 --warmup-steps 0
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loragym.recipes.running import play_config
from loragym.trainers import RLConfig, rl
from loragym.trainers.display import what_next
from loragym.trainers.playground import evaluation_line

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
    print_summary(config, rl.train(config))


def print_summary(config: RLConfig, summary: dict[str, Any]) -> None:
    stages = {
        "before": summary["before"],
        "after the warm-up": summary["after_warmup"],
        "at the end": summary["after"],
    }
    print("\nHeld-out problems")
    for stage, metrics in stages.items():
        if metrics:
            print(f"  {stage:18}{evaluation_line(metrics)}")
    print(
        f"Reward of the sampled episodes: {summary['first_reward']:.3f} in the first step, "
        f"{summary['last_reward']:.3f} over the last five\n"
        f"{summary['minutes']:.1f} minutes, {summary['sampled_tokens_per_second']:.0f} tokens/s sampled, "
        f"{summary['trained_tokens_per_second']:.0f} tokens/s trained, {summary['peak_memory_mib']:.0f} MiB at most\n\n"
        f"{what_next(config.run_dir)}"
    )


if __name__ == "__main__":
    main()
