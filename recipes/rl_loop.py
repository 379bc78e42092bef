"""Group-relative policy optimisation in one flat file: no trainer, only the primitives.

What is left out of `rl_basic`: warm-up, several turns, sub-steps, TensorBoard, live evaluation. What is here is all
that the algorithm needs: sample G replies to each of P problems, subtract each problem's mean reward, and take one
importance-weighted policy-gradient step on the adapter.

    python -m loragym.recipes.rl_loop --env-kwargs '{"high": 9, "few_shot": 3}'

Suffixes: `P` problems, `G` replies to a problem, `D` training datums.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import numpy as np
import tyro
from loragym.agents import AdamParams, BaseModel, Datum, LoraConfig, SamplingParams
from loragym.renderers import get_renderer
from loragym.trainers.json_argument import JSON_OBJECT


@dataclass(frozen=True, kw_only=True)
class Config:
    run_dir: Path = Path("runs/rl_loop")
    """Where metrics.jsonl and the checkpoint go; running again goes on from it."""
    model: str = "smollm2-135m-instruct"
    """Base model: a bundled name, a local directory or a hub id."""
    env: str = "loragym/Arithmetic-v0"
    """Environment of one question and one answer."""
    env_kwargs: Annotated[dict[str, Any], JSON_OBJECT] = field(default_factory=lambda: {"high": 9, "few_shot": 3})
    """Its arguments, as JSON."""
    steps: int = 50
    """Updates."""
    problems: int = 32
    """Problems in a step (P)."""
    group_size: int = 8
    """Replies to each problem (G)."""
    max_tokens: int = 8
    """Most tokens of a reply."""
    learning_rate: float = 2e-4
    """Adam's step size."""
    lora_rank: int = 32
    """Rank of the adapter."""
    save_every: int = 10
    """Steps between checkpoints."""
    seed: int = 0
    """Seed of the adapter, the problems and the sampling."""


def main(argv: Sequence[str] | None = None) -> None:
    config = tyro.cli(Config, prog="loragym train rl_loop", description=__doc__, args=argv)
    env = gymnasium.make(config.env, **config.env_kwargs)
    base = BaseModel.load(config.model)
    renderer = get_renderer(base.tokenizer)
    policy = base.add_lora("policy", LoraConfig(rank=config.lora_rank, seed=config.seed))
    metrics_file, checkpoint = config.run_dir / "metrics.jsonl", config.run_dir / "checkpoint"
    config.run_dir.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, float]] = []
    if checkpoint.is_dir():
        policy.load_state(checkpoint)
        done = json.loads((checkpoint / "step.json").read_text())
        rows = [row for row in map(json.loads, metrics_file.read_text().splitlines()) if row["step"] < done]
        print(f"going on from step {done} in {config.run_dir}")
    adam = AdamParams(learning_rate=config.learning_rate)

    for step in range(len(rows), config.steps):
        began = time.monotonic()

        # The problems of this step: the seed is the problem, so each can be asked and graded as often as needed.
        seeds_P = [config.seed * 1_000_003 + step * config.problems + i for i in range(config.problems)]
        prompts_P = [renderer.build_generation_prompt(env.reset(seed=seed)[0]) for seed in seeds_P]

        # G replies to each, from a frozen snapshot of the policy.
        stop: Any = tuple(renderer.stop_sequences)
        params = SamplingParams(max_tokens=config.max_tokens, stop=stop, seed=step)
        replies_PG = policy.sampler().sample(prompts_P, n=config.group_size, params=params)

        # A reply's advantage is its reward less the mean of its group; groups without a difference teach nothing.
        data_D: list[Datum] = []
        rewards_PG = np.zeros((config.problems, config.group_size))
        for p, (seed, prompt, replies_G) in enumerate(zip(seeds_P, prompts_P, replies_PG, strict=True)):
            for g, reply in enumerate(replies_G):
                env.reset(seed=seed)
                rewards_PG[p, g] = env.step(renderer.parse_response(reply.tokens))[1]
            advantages_G = rewards_PG[p] - rewards_PG[p].mean()
            if not advantages_G.any():
                continue
            for reply, advantage in zip(replies_G, advantages_G, strict=True):
                tokens = prompt + reply.tokens
                before = len(prompt) - 1  # targets are shifted by one: so many of them belong to the prompt
                count = len(reply.tokens)
                data_D.append(
                    Datum(
                        tokens=tokens[:-1],
                        targets=tokens[1:],
                        mask=[False] * before + [True] * count,
                        logprobs=[0.0] * before + reply.logprobs,
                        advantages=[0.0] * before + [float(advantage)] * count,
                    )
                )

        row = {"step": step, "reward": float(rewards_PG.mean()), "mixed": len(data_D) / rewards_PG.size}
        if data_D:
            out = policy.forward_backward(data_D, "importance_sampling", normalization="token")
            row |= policy.optim_step(adam)
            q = np.concatenate([np.asarray(datum.logprobs)[datum.trained] for datum in data_D])
            learnt = np.concatenate([p[datum.trained] for datum, p in zip(data_D, out.logprobs, strict=True)])
            row |= {"kl_v1": float((q - learnt).mean()), "entropy": float(-q.mean())}
        row["seconds"] = time.monotonic() - began
        rows.append(row)
        metrics_file.write_text("".join(json.dumps(r) + "\n" for r in rows))
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)

        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            policy.save_state(checkpoint)
            (checkpoint / "step.json").write_text(json.dumps(step + 1))

    print(f"the adapter is in {checkpoint}: `loragym chat {checkpoint}`, or peft.PeftModel.from_pretrained")


if __name__ == "__main__":
    main()
