"""Direct preference optimisation on pairs of your own: a prompt, a chosen and a rejected reply in each row.

loragym train dpo --data my_pairs.jsonl
loragym train dpo --data trl-lib/ultrafeedback_binarized --adapter runs/sl_basic
python -m loragym.recipes.dpo --data my_pairs.jsonl --loss ipo
"""

from __future__ import annotations

from collections.abc import Sequence

from loragym.trainers import DPOConfig, dpo
from loragym.trainers.command_line import config_from
from loragym.trainers.display import what_next
from loragym.trainers.reports import print_held_out

FIGURES = {
    "test/loss": "loss",
    "test/accuracy": "accuracy",
    "test/margin": "margin of the rewards",
    "test/chosen_reward": "reward of the chosen",
    "test/rejected_reward": "reward of the rejected",
}
"""What is printed at the end."""


def main(argv: Sequence[str] | None = None) -> None:
    config = config_from(DPOConfig(), prog="loragym train dpo", description=__doc__, argv=argv)
    summary = dpo.train(config)
    print(f"{summary['pairs']} pairs ({summary['pairs_left_out']} left out)")
    print_held_out(summary, FIGURES)
    print(what_next(config.run_dir))


if __name__ == "__main__":
    main()
