"""A reward model from pairs of your own: a prompt, a chosen and a rejected reply in each row.

    loragym train reward --data my_pairs.jsonl
    python -m loragym.recipes.reward --data my_pairs.jsonl --kind judge

RL then takes it as `--env loragym/RewardModel-v0 --reward-model runs/reward` (or `loragym/Pairwise-v0`).
"""

from __future__ import annotations

from collections.abc import Sequence

from loragym.trainers import RewardConfig, reward
from loragym.trainers.command_line import config_from
from loragym.trainers.display import what_next
from loragym.trainers.reports import print_held_out

FIGURES = {
    "test/loss": "negative log-likelihood",
    "test/accuracy": "accuracy",
    "test/calibration_error": "calibration error",
    "test/brier": "Brier score",
}
"""What is printed at the end."""


def main(argv: Sequence[str] | None = None) -> None:
    config = config_from(RewardConfig(), prog="loragym train reward", description=__doc__, argv=argv)
    summary = reward.train(config)
    print(f"{summary['pairs']} pairs ({summary['pairs_left_out']} left out)")
    print_held_out(summary, FIGURES)
    print(what_next(config.run_dir))


if __name__ == "__main__":
    main()
