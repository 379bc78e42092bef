"""Supervised fine-tuning in one flat file: no trainer, only the primitives.

What is left out of `sl_basic`: resuming, TensorBoard, cutting long conversations by choice. What is here is all that
the method needs: render conversations to tokens and loss weights, minimise the cross-entropy of the weighted tokens
with a learning rate that falls to 0, and watch the loss on held-out conversations.

    python -m loragym.recipes.sl_loop
    python -m loragym.recipes.sl_loop --data my_chats.jsonl --learning-rate 3e-4
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import tyro
from loragym.agents import AdamParams, BaseModel, Datum, LoraConfig, LoraPolicy
from loragym.envs.datasets import load_rows
from loragym.messages import Message, assistant, check_messages
from loragym.renderers import TrainOn, get_renderer


@dataclass(frozen=True, kw_only=True)
class Config:
    run_dir: Path = Path("runs/sl_loop")
    """Where metrics.jsonl and the adapter go."""
    model: str = "smollm2-135m-instruct"
    """Base model: a bundled name, a local directory or a hub id."""
    data: Path | None = None
    """JSONL file of conversations, {"messages": [...]} a line; by default additions with their answers."""
    batch_size: int = 32
    """Conversations in a step."""
    epochs: int = 1
    """Passes over the data."""
    learning_rate: float = 2e-4
    """Adam's step size at the start; it falls to 0 in a line."""
    lora_rank: int = 32
    """Rank of the adapter."""
    max_length: int = 1024
    """Longer conversations are cut to so many tokens."""
    eval_every: int = 10
    """Steps between looks at the held-out conversations."""
    seed: int = 0
    """Seed of the adapter, the split and the order."""


def main(argv: Sequence[str] | None = None) -> None:
    config = tyro.cli(Config, prog="loragym train sl_loop", description=__doc__, args=argv)
    conversations = additions(1000) if config.data is None else read(config.data)
    rng = np.random.default_rng(config.seed)
    rng.shuffle(conversations)
    held_out = max(1, len(conversations) // 10)

    base = BaseModel.load(config.model)
    renderer = get_renderer(base.tokenizer)
    policy = base.add_lora("policy", LoraConfig(rank=config.lora_rank, seed=config.seed))

    # One datum a conversation: its tokens, and weight 1 on what the assistant says.
    data = []
    for conversation in conversations:
        tokens, weights = renderer.build_supervised_example(conversation, train_on=TrainOn.ALL_ASSISTANT)
        data.append(Datum.supervised(tokens[: config.max_length], weights[: config.max_length]))
    test, train = data[:held_out], data[held_out:]

    config.run_dir.mkdir(parents=True, exist_ok=True)
    batches = -(-len(train) // config.batch_size)
    total = batches * config.epochs
    with (config.run_dir / "metrics.jsonl").open("w") as metrics_file:
        for step in range(total):
            began = time.monotonic()
            epoch, batch = divmod(step, batches)
            row: dict[str, float] = {"step": step}
            if step % config.eval_every == 0:
                row["test/nll"] = mean_nll(policy, test)

            order = np.random.default_rng([config.seed, epoch]).permutation(len(train))
            chosen = order[batch * config.batch_size : (batch + 1) * config.batch_size]
            out = policy.forward_backward([train[i] for i in chosen], "cross_entropy", normalization="token")
            row |= policy.optim_step(AdamParams(learning_rate=config.learning_rate * (1 - step / total)))

            row |= {"train/nll": out.loss, "seconds": time.monotonic() - began}
            metrics_file.write(json.dumps(row) + "\n")
            print("  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)

    print(f"test/nll {mean_nll(policy, test):.4f} on {len(test)} held-out conversations")
    policy.save_adapter(config.run_dir / "adapter")
    print(f"the adapter is in {config.run_dir / 'adapter'}: `loragym chat` it, or peft.PeftModel.from_pretrained")


def mean_nll(policy: LoraPolicy, data: Sequence[Datum]) -> float:
    """Negative log-likelihood per trained token, in nats."""
    logprobs = policy.forward(data).logprobs
    trained = np.concatenate([p[datum.trained] for p, datum in zip(logprobs, data, strict=True)])
    return float(-trained.mean())


def additions(count: int) -> list[list[Message]]:
    """Problems of the arithmetic environment with their answers."""
    env = gymnasium.make("loragym:loragym/Arithmetic-v0", high=99)
    conversations = []
    for seed in range(count):
        messages, info = env.reset(seed=seed)
        conversations.append([*messages, assistant(info["reference"])])
    return conversations


def read(path: Path) -> list[list[Message]]:
    try:
        return [list(check_messages(row["messages"])) for row in load_rows(str(path))]
    except (KeyError, TypeError) as error:
        raise ValueError(f'{path}: expected rows {{"messages": [...]}} ({error!r})') from error


if __name__ == "__main__":
    main()
