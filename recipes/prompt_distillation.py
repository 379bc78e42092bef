"""A long instruction becomes part of the weights: afterwards its prompt can be left out.

The teacher reads a system message and worked examples, some four hundred tokens, and says what a sentence is about. The
student reads the sentence alone, and learns to say what the teacher would: on the student's own replies, from the
teacher's whole distribution. No label is used: `sentences` knows the topics, only to report how often each is right.

    python -m loragym.recipes.prompt_distillation
    python -m loragym.recipes.prompt_distillation --mode off_policy --run-dir runs/prompt-distillation-off
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loragym.recipes.preference.stages import write_rows
from loragym.recipes.running import play_config, print_held_out
from loragym.recipes.sentences import SYSTEM, rows, worked_examples
from loragym.trainers import DistillationConfig, distillation
from loragym.trainers.display import what_next

DEFAULTS = DistillationConfig(
    run_dir="runs/prompt_distillation",
    env="loragym/Prompts-v0",
    mode="full",
    steps=30,
    problems_per_step=24,
    group_size=2,
    max_tokens=8,
    learning_rate=5e-4,
    schedule="linear",
    eval_every=10,
    eval_problems=96,
    teachers=[{"system": SYSTEM, "messages": worked_examples()}],
)


def main(argv: Sequence[str] | None = None) -> None:
    config = play_config(DEFAULTS, "prompt_distillation", __doc__, argv)
    if config.env == DEFAULTS.env and not config.env_kwargs:
        data = Path(config.run_dir).parent / f"{Path(config.run_dir).name}-data"
        for split in ("train", "test"):
            write_rows(data / f"{split}.jsonl", rows(split))
        reward = "loragym.recipes.sentences:names_the_topic"
        config = replace(config, env_kwargs={"data": str(data), "reward": reward})
    summary = distillation.train(config)
    print_held_out(
        summary,
        {
            "test/agreement": "same reply as the teacher",
            "test/teacher_kl": "KL to the teacher, a token",
            "test/greedy/reward": "right topic, student",
            "test/teacher/reward": "right topic, teacher",
            "test/prompt_tokens": "prompt tokens, student",
            "test/teacher/prompt_tokens": "prompt tokens, teacher",
        },
    )
    print(what_next(config.run_dir))


if __name__ == "__main__":
    main()
