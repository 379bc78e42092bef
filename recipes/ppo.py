"""Proximal policy optimisation with a critic: actor and critic are two adapters on one frozen base.

The same task as `rl_basic`, with values from a critic in place of a group's mean: problems need no second attempt.

    python -m loragym.recipes.ppo
    python -m loragym.recipes.ppo --env loragym/GuessNumber-v0 --max-tokens 8
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loragym.trainers import RLConfig, rl
from loragym.trainers.command_line import play_config
from loragym.trainers.display import what_next
from loragym.trainers.reports import print_held_out
from loragym.trainers.run_directory import read_metrics

DEFAULTS = RLConfig(
    run_dir="runs/ppo",
    env="loragym/Arithmetic-v0",
    env_kwargs={"high": 19},
    warmup_steps=16,
    warmup_learning_rate=3e-4,
    steps=80,
    eval_every=20,
    problems_per_step=48,
    group_size=4,
    max_tokens=6,
    temperature=1.5,
    learning_rate=4e-4,
    schedule="linear",
    loss="ppo",
    num_substeps=2,
    advantages="gae",
    gae_decay=0.95,
    critic_learning_rate=1e-3,
    max_concurrent=1024,
)


def main(argv: Sequence[str] | None = None) -> None:
    config = play_config(DEFAULTS, "ppo", __doc__, argv)
    summary = rl.train(config)
    print_held_out(
        summary,
        {"test/greedy/env/correct": "solved, greedy", "test/sampled/env/correct": "solved, at temperature 1"}
        | {"test/greedy/reward": "reward, greedy", "test/sampled/reward": "reward, at temperature 1"},
    )
    rows = [row for row in read_metrics(config.run_dir) if row.get("critic/return_variance")]
    if rows:
        tenth = max(1, len(rows) // 10)
        first, last = explained(rows[:tenth]), explained(rows[-tenth:])
        print(
            f"variance that the critic explains: {first:.2f} in the first tenth of the steps, {last:.2f} in the last\n"
        )
    print(what_next(config.run_dir))


def explained(rows: Sequence[Mapping[str, Any]]) -> float:
    """The share of the returns' variance in some steps that the critic explains, all steps together."""
    # Not the mean of the shares: where nearly all is solved a step may have next to no variance.
    whole = sum(row["critic/return_variance"] for row in rows)
    return sum(row["critic/explained_variance"] * row["critic/return_variance"] for row in rows) / whole


if __name__ == "__main__":
    main()
