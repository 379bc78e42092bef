"""Any game of TextArena, one seat by the policy: `pip install 'loragym[textarena]'`.

    python -m loragym.recipes.multiplayer_rl.text_arena
    python -m loragym.recipes.multiplayer_rl.text_arena --env-kwargs '{"game": "KuhnPoker-v0-short"}'

A short warm-up on moves drawn among those that the game lists shows what a move is; winning is learnt from the reward.
"""

from __future__ import annotations

from collections.abc import Sequence

from loragym.trainers import RLConfig, rl
from loragym.trainers.command_line import play_config
from loragym.trainers.reports import print_stages

DEFAULTS = RLConfig(
    run_dir="runs/text_arena",
    env="loragym/TextArena-v0",
    env_kwargs={"game": "TicTacToe-v0"},
    warmup_steps=30,
    warmup_batch=4,
    warmup_learning_rate=5e-4,
    steps=30,
    eval_every=15,
    eval_problems=32,
    problems_per_step=2,
    group_size=8,
    max_tokens=6,
    learning_rate=4e-4,
    max_concurrent=256,
)


def main(argv: Sequence[str] | None = None) -> None:
    config = play_config(DEFAULTS, "multiplayer_rl/text_arena", __doc__, argv)
    print_stages(config.run_dir, rl.train(config))


if __name__ == "__main__":
    main()
