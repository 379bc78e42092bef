"""The stages that recipes on preferences share: warm up a policy, sample and label pairs, compare with gold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from loragym.agents import BaseModel, LoraPolicy, SamplingParams
from loragym.envs.datasets import write_rows
from loragym.messages import Message, Reply, assistant
from loragym.recipes.preference.gold import gold_score, preference
from loragym.recipes.preference.topics import prompts
from loragym.renderers import Renderer, get_renderer
from loragym.trainers import SupervisedConfig, supervised
from loragym.trainers.checkpoints import find_adapter
from loragym.trainers.config import RunConfig
from loragym.trainers.preferences import reply_datum

WARMUP = SupervisedConfig(
    learning_rate=3e-4, batch_size=32, epochs=2, test_fraction=0.1, max_length=256, eval_every=5, save_every=20
)


@dataclass(frozen=True, kw_only=True)
class StagesConfig:
    """What all stages have in common. Each stage's run lies in a folder of `run_dir`."""

    run_dir: str = "runs/preference"
    """Directory of all stages; running the same command again goes on where it stopped."""
    model: str = "smollm2-135m-instruct"
    """Base model: a bundled name, a local directory or a hub id."""
    renderer: str | None = None
    """Chat format by name; by default the model's own."""
    device: str = "auto"
    """Torch device; auto takes a GPU if there is one."""
    dtype: str = "auto"
    """Type of the base's weights: auto, float32 or bfloat16."""
    threads: int = 0
    """CPU threads; 0 leaves torch's own choice."""
    seed: int = 0
    """Seed of all stages."""
    max_tokens: int = 32
    """Most tokens of a reply."""
    warmup_replies: int = 1
    """Replies of the base to each prompt, of which the warm-up learns those that end by themselves."""
    paired_replies: int = 4
    """Replies of the warmed-up policy to each prompt, of which two and two make a pair."""
    warmup: SupervisedConfig = field(default_factory=lambda: WARMUP)
    """The first stage."""

    def of_run(self, config: Any, name: str, **changes: Any) -> Any:
        """A stage's config with what all have in common."""
        common = {name: getattr(self, name) for name in ("model", "renderer", "device", "dtype", "threads", "seed")}
        return replace(config, **common, run_dir=str(self.folder / name), **changes)

    @property
    def folder(self) -> Path:
        return Path(self.run_dir)

    def load_base(self) -> BaseModel:
        """The base model."""
        return RunConfig(
            run_dir=self.run_dir, model=self.model, device=self.device, dtype=self.dtype, threads=self.threads
        ).load_base()


def warm_up(config: StagesConfig) -> dict[str, Any]:
    """Teaches the base to reply shortly: supervised learning on those of its own replies that end by themselves."""
    data = config.folder / "warmup.jsonl"
    if not data.is_file():
        base = config.load_base()
        rows = [
            {"messages": [*prompt, assistant(reply["content"])]}
            for prompt, replies in sample(base, None, config, prompts("train"), config.warmup_replies, seed=1)
            for reply in replies
            if reply["stop_reason"] == "stop" and reply["content"].strip()
        ]
        write_rows(data, rows)
    summary: dict[str, Any] = supervised.train(config.of_run(config.warmup, "warmup", data=str(data)))
    return summary


def label_pairs(config: StagesConfig) -> tuple[Path, Path]:
    """Pairs of the warmed-up policy's replies, labelled by the gold preference: training and held-out ones."""
    files = config.folder / "pairs-train.jsonl", config.folder / "pairs-test.jsonl"
    if not all(file.is_file() for file in files):
        base = config.load_base()
        policy = base.load_lora("warmup", find_adapter(config.folder / "warmup"))
        for seed, (split, file) in enumerate(zip(("train", "test"), files, strict=True), 2):
            sampled = sample(base, policy, config, prompts(split), config.paired_replies, seed=seed)
            write_rows(file, [pair for prompt, replies in sampled for pair in labelled(prompt, replies)])
    return files


def labelled(prompt: Sequence[Message], replies: Sequence[Reply]) -> list[dict[str, Any]]:
    """Each reply against the next one of the same prompt, unless both say the same."""
    rows = []
    for first, second in zip(replies[::2], replies[1::2], strict=False):
        if first["content"] == second["content"]:
            continue
        scores = [gold_score([*prompt, reply]) for reply in (first, second)]
        verdict = preference(*scores)
        better, worse = (first, second) if verdict >= 0.5 else (second, first)
        rows.append(
            {
                "prompt": list(prompt),
                "chosen": [assistant(better["content"])],
                "rejected": [assistant(worse["content"])],
                "tie": verdict == 0.5,
                "margin": round(abs(scores[0] - scores[1]), 4),
            }
        )
    return rows


def sample(
    base: BaseModel,
    policy: LoraPolicy | None,
    config: StagesConfig,
    asked: Sequence[Sequence[Message]],
    count: int,
    *,
    seed: int,
    temperature: float = 1.0,
) -> list[tuple[Sequence[Message], list[Reply]]]:
    """Replies to prompts, of a policy or of the bare base."""
    renderer = get_renderer(base.tokenizer, config.renderer)
    stop: Any = tuple(renderer.stop_sequences)
    params = SamplingParams(max_tokens=config.max_tokens, temperature=temperature, stop=stop, seed=seed)
    tokens = [renderer.build_generation_prompt(prompt) for prompt in asked]
    completions = (policy or base).sampler(max_concurrent=512).sample(tokens, count, params)
    return [
        (prompt, [renderer.parse_response(completion.tokens) for completion in found])
        for prompt, found in zip(asked, completions, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A policy against the warmed-up one on the held-out prompts, a reply each.

    Attributes:
        win_rate: share of prompts on which the policy's reply is the gold-better one; ties count half.
        gold: mean gold score of the policy's replies.
        kl: nats that a reply of the policy's is less likely for the warmed-up policy, in the mean.
        replies: the policy's conversations.
    """

    win_rate: float
    gold: float
    kl: float
    replies: list[list[Message]]


def compare(base: BaseModel, policy: LoraPolicy, warmed: LoraPolicy, config: StagesConfig) -> Comparison:
    """Plays a policy against the warmed-up one."""
    asked = prompts("test")
    conversations = [
        [[*prompt, assistant(reply["content"])] for prompt, (reply,) in sample(base, who, config, asked, 1, seed=9)]
        for who in (policy, warmed)
    ]
    scores = [[gold_score(conversation) for conversation in side] for side in conversations]
    renderer: Renderer = get_renderer(base.tokenizer, config.renderer)
    data = [d for c in conversations[0] if (d := reply_datum(c, renderer, base.context_length)) is not None]
    likely = [
        np.array([p[d.trained].sum() for d, p in zip(data, who.forward(data).logprobs, strict=True)])
        for who in (policy, warmed)
    ]
    return Comparison(
        win_rate=float(np.mean([preference(a, b) for a, b in zip(*scores, strict=True)])),
        gold=float(np.mean(scores[0])),
        kl=float((likely[0] - likely[1]).mean()),
        replies=conversations[0],
    )
