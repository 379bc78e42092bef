"""Shorter replies win: the smallest preference there is. Replies to the same prompt are compared by their length.

python -m loragym.recipes.preference.shorter
python -m loragym.recipes.preference.shorter --env-kwargs '{"data": "my_prompts.jsonl"}'
"""

from __future__ import annotations

from collections.abc import Sequence

from loragym.trainers import RLConfig, rl
from loragym.trainers.command_line import play_config
from loragym.trainers.display import what_next
from loragym.trainers.reports import print_held_out

DEFAULTS = RLConfig(
    run_dir="runs/shorter",
    env="loragym/Shorter-v0",
    steps=40,
    problems_per_step=4,
    group_size=8,
    max_tokens=48,
    learning_rate=2e-4,
    eval_every=20,
    eval_problems=16,
    max_concurrent=256,
)


def main(argv: Sequence[str] | None = None) -> None:
    config = play_config(DEFAULTS, "preference/shorter", __doc__, argv)
    summary = rl.train(config)
    print_held_out(
        summary,
        {
            "test/sampled/tokens_per_reply": "tokens a reply, temperature 1",
            "test/greedy/tokens_per_reply": "tokens a reply, greedy",
            "test/sampled/env/characters": "characters a reply",
        },
    )
    print(what_next(config.run_dir))


if __name__ == "__main__":
    main()
