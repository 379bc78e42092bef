"""Supervised learning on conversations: fine-tuning, or the warm-up before reinforcement learning."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np

from ..agents import Datum, LoraPolicy
from ..agents.losses import NORMALIZATIONS
from ..renderers import TrainOn, get_renderer
from .config import RunConfig, at_least, one_of
from .conversations import Conversation, environment_conversations, epoch_order, read_conversations, supervised_datum
from .display import Column, StepTable
from .evaluation import check_env_id, takes_split
from .json_argument import JSON_OBJECT
from .loop import StepResult, conduct, held_out_figures

COLUMNS = (
    Column("nll", "train/nll", ".4f"),
    Column("test nll", "test/nll", ".4f"),
    Column("grad", "grad_norm", ".2f"),
    Column("tokens", "trained_tokens", ".0f"),
    Column("tokens/s", "tokens_per_second", ".0f"),
    Column("seconds", "time/step", ".1f"),
)


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(RunConfig):
    """A supervised run."""

    run_dir: str = "runs/supervised"
    """Directory of the run; running the same command again resumes it."""
    data: str = ""
    """JSONL file of conversations, {"messages": [...]} a line; if empty, the environment's reference answers."""
    test_fraction: float = 0.1
    """Share of the conversations held out."""
    env: str = "loragym/Arithmetic-v0"
    """Environment whose reference answers are learnt where no data file is given."""
    env_kwargs: Annotated[dict[str, Any], JSON_OBJECT] = field(default_factory=dict)
    """Arguments of the environment, as JSON."""
    env_problems: int = 1000
    """Problems drawn from the environment."""
    train_on: TrainOn = TrainOn.ALL_ASSISTANT
    """Which messages are trained."""
    max_length: int = 1024
    """Longer conversations are cut to so many tokens, and counted."""
    epochs: int = 1
    """Passes over the data."""
    batch_size: int = 32
    """Conversations in a step."""
    learning_rate: float = 2e-4
    """Learning rate at the start."""
    schedule: str = "linear"
    """Learning rate over the run: constant, linear (to 0) or cosine (to 0)."""
    normalization: str = "token"
    """How token losses add up: token (mean over tokens), sequence (mean of means) or sum."""
    eval_every: int = 10
    """Steps between evaluations on the held-out conversations; 0 evaluates only at the ends."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size", "env_problems"):
            at_least(self, name, 1)
        at_least(self, "max_length", 2)
        for name in ("eval_every", "learning_rate", "test_fraction"):
            at_least(self, name, 0)
        if self.test_fraction >= 1:
            raise ValueError(f"test-fraction is below 1, got {self.test_fraction}")
        one_of(self, "normalization", NORMALIZATIONS)


def train(config: SupervisedConfig) -> dict[str, Any]:
    """Runs or resumes a run to its end; returns its summary.

    Raises:
        FileNotFoundError, ValueError: the data or the config cannot be used; raised before the model loads.
        RunError: the run directory cannot be used.
        Interrupted: stopped by Ctrl-C, after saving.
    """
    training, held_out = load_conversations(config)
    return conduct(config, lambda: SupervisedTrainer(config, config.load_policy(), training, held_out), COLUMNS)


def load_conversations(config: SupervisedConfig) -> tuple[list[Conversation], list[Conversation]]:
    """Training and held-out conversations: of the file, split at random; or of the environment's two splits."""
    if config.data:
        conversations = read_conversations(config.data)
        order = np.random.default_rng(config.seed).permutation(len(conversations))
        held_out = round(config.test_fraction * len(conversations))
        if held_out == len(conversations):
            raise ValueError(f"{config.data}: all {held_out} conversations would be held out; lower test-fraction")
        return [conversations[i] for i in order[held_out:]], [conversations[i] for i in order[:held_out]]
    check_env_id(config.env, config.env_kwargs)
    test_kwargs = {**config.env_kwargs, **({"split": "test"} if takes_split(config.env) else {})}
    test_count = round(config.test_fraction * config.env_problems)
    return (
        environment_conversations(config.env, config.env_kwargs, config.env_problems, config.seed),
        environment_conversations(config.env, test_kwargs, test_count, config.seed + 1),
    )


class SupervisedTrainer:
    """One run's policy, its data and the steps over them."""

    def __init__(
        self,
        config: SupervisedConfig,
        policy: LoraPolicy,
        training: Sequence[Conversation],
        held_out: Sequence[Conversation],
    ) -> None:
        self.config = config
        self.policy = self.learner = policy
        self.renderer = get_renderer(policy.base.tokenizer, config.renderer)
        self.num_cut = 0
        self.training = self._datums(training)
        self.held_out = self._datums(held_out)
        self.batches_per_epoch = -(-len(self.training) // config.batch_size)

    @property
    def total_steps(self) -> int:
        return self.batches_per_epoch * self.config.epochs

    def step(self, number: int, table: StepTable) -> StepResult:
        """Learns the batch of step `number`."""
        config, began = self.config, time.monotonic()
        epoch, batch = divmod(number, self.batches_per_epoch)
        due = number == 0 or (config.eval_every and number % config.eval_every == 0)
        metrics = self.evaluate() if due else {}
        order = epoch_order(len(self.training), config.seed, epoch)
        chosen = order[batch * config.batch_size : (batch + 1) * config.batch_size]
        data = [self.training[i] for i in chosen]
        out = self.policy.forward_backward(
            data,
            "cross_entropy",
            normalization=config.normalization,  # type: ignore[arg-type]
        )
        rate = config.learning_rate * config.rate_factor(number, self.total_steps)
        updated = self.policy.optim_step(config.adam(rate))
        metrics |= out.metrics | updated | {"train/nll": mean_nll(data, out.logprobs), "epoch": float(epoch)}
        metrics["tokens_per_second"] = metrics["trained_tokens"] / (time.monotonic() - began)
        return StepResult(metrics)

    def evaluate(self) -> dict[str, float]:
        """Mean negative log-likelihood of the held-out tokens, in nats."""
        if not self.held_out:
            return {}
        return {"test/nll": mean_nll(self.held_out, self.policy.forward(self.held_out).logprobs)}

    def summarize(self, rows: Sequence[dict[str, Any]], final: dict[str, float]) -> dict[str, Any]:
        """Held-out figures before and after, the training data, and the speed."""
        steps = rows[:-1]
        return {
            "before": held_out_figures(rows, 0),
            "after": final,
            "first_nll": steps[0]["train/nll"],
            "last_nll": steps[-1]["train/nll"],
            "conversations": len(self.training),
            "cut_conversations": self.num_cut,
            "trained_tokens_per_second": float(np.mean([row["tokens_per_second"] for row in steps])),
        }

    def close(self) -> None:
        """Nothing to release."""

    def _datums(self, conversations: Sequence[Conversation]) -> list[Datum]:
        datums = []
        for conversation in conversations:
            try:
                whole = supervised_datum(conversation, self.renderer, train_on=self.config.train_on)
            except ValueError as error:
                raise ValueError(f"cannot train on the conversation {str(conversation)[:200]}: {error}") from error
            datum = whole
            if whole is not None and len(whole.tokens) >= self.config.max_length:
                self.num_cut += 1
                datum = supervised_datum(
                    conversation, self.renderer, train_on=self.config.train_on, max_length=self.config.max_length
                )
            if datum is not None:
                datums.append(datum)
        if conversations and not datums:
            raise ValueError(
                f"none of {len(conversations)} conversations has a token to train on with train-on "
                f"{self.config.train_on} and max-length {self.config.max_length}"
            )
        return datums


def mean_nll(data: Sequence[Datum], logprobs: Sequence[np.ndarray]) -> float:
    """-sum(w p) / sum(w) over all datums, in nats per token."""
    weights = [np.asarray(datum.weights, dtype=float) for datum in data]
    total = sum(float(w @ p) for w, p in zip(weights, logprobs, strict=True))
    return -total / sum(float(w.sum()) for w in weights)
