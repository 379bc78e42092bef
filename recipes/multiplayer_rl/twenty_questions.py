"""Twenty questions: the policy asks, a table of things and their attributes answers; or a chat agent of yours does.

    python -m loragym.recipes.multiplayer_rl.twenty_questions
    python -m loragym.recipes.multiplayer_rl.twenty_questions --env-kwargs '{"answerer": "my_module:answer"}'

A short warm-up on games whose questions all tell something shows the form; which of them tell most, and so find every
thing in time, is learnt from the reward.
"""

from __future__ import annotations

from collections.abc import Sequence

from loragym.trainers import RLConfig, rl
from loragym.trainers.command_line import play_config
from loragym.trainers.reports import print_stages

DEFAULTS = RLConfig(
    run_dir="runs/twenty_questions",
    env="loragym/TwentyQuestions-v0",
    # The thing is hidden, so a policy that has met all of them knows no answer: none has to be held out.
    env_kwargs={"table": "small", "max_turns": 6, "split": None, "teacher": "possible"},
    warmup_steps=40,
    warmup_learning_rate=5e-4,
    steps=40,
    eval_every=20,
    eval_problems=32,
    problems_per_step=8,
    group_size=8,
    max_tokens=12,
    learning_rate=6e-4,
    schedule="linear",
    max_concurrent=512,
)


def main(argv: Sequence[str] | None = None) -> None:
    config = play_config(DEFAULTS, "multiplayer_rl/twenty_questions", __doc__, argv)
    print_stages(config.run_dir, rl.train(config))


if __name__ == "__main__":
    main()
