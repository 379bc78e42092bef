"""Find a hidden number from the hints "too low" and "too high": reinforcement learning over several turns.

    python -m loragym.recipes.multiplayer_rl.guess_number
    python -m loragym.recipes.multiplayer_rl.guess_number --env-kwargs '{"high": 1023}' --model Qwen/Qwen3-1.7B

A short warm-up on games whose guesses are drawn from what is still possible shows what the hints mean; to halve what is
left, and so to find every number in time, is learnt from the reward.
"""

from __future__ import annotations

from collections.abc import Sequence

from loragym.trainers import RLConfig, rl
from loragym.trainers.command_line import play_config
from loragym.trainers.reports import print_stages

DEFAULTS = RLConfig(
    run_dir="runs/guess_number",
    env="loragym/GuessNumber-v0",
    # The number is hidden, so a policy that has met all of them knows no answer: none has to be held out.
    env_kwargs={"low": 1, "high": 15, "max_turns": 4, "split": None, "teacher": "possible"},
    warmup_steps=40,
    warmup_learning_rate=5e-4,
    steps=40,
    eval_every=20,
    eval_problems=64,
    problems_per_step=8,
    group_size=8,
    max_tokens=8,
    learning_rate=6e-4,
    schedule="linear",
    max_concurrent=512,
)


def main(argv: Sequence[str] | None = None) -> None:
    config = play_config(DEFAULTS, "multiplayer_rl/guess_number", __doc__, argv)
    print_stages(config.run_dir, rl.train(config))


if __name__ == "__main__":
    main()
