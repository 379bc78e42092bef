"""Replies learn to meet a rubric: brief, whole, on topic; judged by a script, or by a chat agent of yours.

python -m loragym.recipes.rubric
python -m loragym.recipes.rubric --env-kwargs '{"judge": "my_module:judge", "criteria": ["It is kind."]}'
"""

from __future__ import annotations

from collections.abc import Sequence

from loragym.trainers import RLConfig, rl
from loragym.trainers.command_line import play_config
from loragym.trainers.display import what_next
from loragym.trainers.reports import print_held_out

DEFAULTS = RLConfig(
    run_dir="runs/rubric",
    env="loragym/Rubric-v0",
    steps=30,
    problems_per_step=4,
    group_size=8,
    max_tokens=48,
    learning_rate=2e-4,
    eval_every=15,
    eval_problems=16,
    max_concurrent=256,
)


def main(argv: Sequence[str] | None = None) -> None:
    config = play_config(DEFAULTS, "rubric", __doc__, argv)
    summary = rl.train(config)
    names = ("score", "brief", "whole", "on_topic", "unparsable")
    print_held_out(summary, {f"test/sampled/env/{name}": name.replace("_", " ") for name in names})
    print(what_next(config.run_dir))


if __name__ == "__main__":
    main()
