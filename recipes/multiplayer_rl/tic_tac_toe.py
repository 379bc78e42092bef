"""Tic-tac-toe by self-play: one policy in both seats, and against its own past.

    python -m loragym.recipes.multiplayer_rl.tic_tac_toe
    python -m loragym.recipes.multiplayer_rl.tic_tac_toe --train-opponents random optimal
    python -m loragym.recipes.multiplayer_rl.tic_tac_toe --env loragym/KuhnPoker-v0 --test-opponents random

A warm-up on games of random moves shows what a move is and which are legal; playing well is learnt from the results.
"""

from __future__ import annotations

from collections.abc import Sequence

from loragym.trainers import TableRLConfig, table_rl
from loragym.trainers.command_line import play_config
from loragym.trainers.display import what_next
from loragym.trainers.reports import print_held_out

DEFAULTS = TableRLConfig(
    run_dir="runs/tic_tac_toe",
    env="loragym/TicTacToe-v0",
    warmup_steps=50,
    warmup_batch=4,
    warmup_learning_rate=5e-4,
    steps=60,
    eval_every=20,
    eval_problems=32,
    problems_per_step=2,
    group_size=16,
    max_tokens=4,
    learning_rate=2e-4,
    league_every=10,
    league_size=4,
    test_opponents=("random", "optimal"),
    max_concurrent=512,
)


def main(argv: Sequence[str] | None = None) -> None:
    config = play_config(DEFAULTS, "multiplayer_rl/tic_tac_toe", __doc__, argv)
    summary = table_rl.train(config)
    seats = config.make_table().seats
    figures = {"test/sampled/illegal": "illegal replies"}
    for opponent in config.test_opponents:
        for seat in seats:
            for part in ("score", "win", "draw"):
                figures[f"test/sampled/{opponent}/{seat}/{part}"] = f"{part} as {seat} against {opponent}"
    for stage in ("before", "after_warmup"):
        if summary[stage]:
            print(f"\n{stage.replace('_', ' ')}: illegal replies {summary[stage]['test/sampled/illegal']:.3f}")
    print_held_out({**summary, "before": summary["after_warmup"] or summary["before"]}, figures)
    print(what_next(config.run_dir))


if __name__ == "__main__":
    main()
