"""Supervised learning on conversations: fine-tuning, or the warm-up before reinforcement learning."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np

from ..agents import Datum, LoraPolicy
from ..agents.losses import NORMALIZATIONS
from ..renderers import LengthLimit, TrainOn, get_renderer
from .clocks import seconds_since
from .config import RunConfig, at_least, one_of
from .conversations import Example, environment_examples, read_conversations, supervised_datums
from .display import Column, StepTable
from .epochs import Epochs
from .evaluation import check_env_id, takes_split
from .json_argument import JSON_OBJECT
from .loop import StepResult, conduct, held_out_figures

COLUMNS = (
    Column("nll", "train/nll", ".4f"),
    Column("test nll", "test/nll", ".4f"),
    Column("bits/byte", "test/bits_per_byte", ".3f"),
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
    """Conversations: a JSONL or Parquet file, a folder, or a data set's id on the hub, with rows of messages, or of
    prompt and completion, and a weight if wanted; if empty, the environment's reference answers."""
    data_config: str | None = None
    """Which configuration of a hub data set."""
    data_split: str | None = None
    """Which split is trained; by default train where there are test data, else everything."""
    test_data: str = ""
    """Held-out conversations; by default a share of the data."""
    test_split: str | None = None
    """Held-out split: of the test data, or of the data itself."""
    test_fraction: float = 0.1
    """Share of the conversations held out where there are no test data."""
    env: str = "loragym/Arithmetic-v0"
    """Environment whose reference answers are learnt where no data file is given."""
    env_kwargs: Annotated[dict[str, Any], JSON_OBJECT] = field(default_factory=dict)
    """Arguments of the environment, as JSON."""
    env_problems: int = 1000
    """Problems drawn from the environment."""
    train_on: TrainOn = TrainOn.ALL_ASSISTANT
    """Which messages of the data are trained; of an environment's solutions it is the replies."""
    max_length: int = 1024
    """Longer conversations are cut to so many tokens, or left out, and counted."""
    overlong: str = "truncate"
    """What becomes of longer conversations: truncate or drop."""
    epochs: int = 1
    """Passes over the data."""
    batch_size: int = 32
    """Conversations in a step."""
    learning_rate: float = 2e-4
    """Learning rate at the start."""
    schedule: str = "linear"
    """Learning rate over the run: constant, linear (to 0) or cosine (to 0)."""
    normalization: str = "token"
    """How tokens are weighted: token (each the same), sequence (each conversation the same) or sum."""
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
        one_of(self, "overlong", ("truncate", "drop"))


def train(config: SupervisedConfig) -> dict[str, Any]:
    """Runs or resumes a run to its end; returns its summary.

    Raises:
        FileNotFoundError, ValueError: the data or the config cannot be used; raised before the model loads.
        RunError: the run directory cannot be used.
        Interrupted: stopped by Ctrl-C, after saving.
    """
    training, held_out = load_conversations(config)
    return conduct(config, lambda: SupervisedTrainer(config, config.load_policy(), training, held_out), COLUMNS)


def load_conversations(config: SupervisedConfig) -> tuple[list[Example], list[Example]]:
    """Training and held-out conversations: of the data, split at random or as they are; or of the environment's."""
    if config.data:
        held_out_apart = bool(config.test_data or config.test_split)
        split = config.data_split or ("train" if held_out_apart else None)
        conversations = read_conversations(config.data, split=split, config=config.data_config)
        if held_out_apart:
            source, test_config = config.test_data or config.data, None if config.test_data else config.data_config
            return conversations, read_conversations(source, split=config.test_split, config=test_config)
        order = np.random.default_rng(config.seed).permutation(len(conversations))
        held_out = round(config.test_fraction * len(conversations))
        if held_out == len(conversations):
            raise ValueError(f"{config.data}: all {held_out} conversations would be held out; lower test-fraction")
        return [conversations[i] for i in order[held_out:]], [conversations[i] for i in order[:held_out]]
    check_env_id(config.env, config.env_kwargs)
    test_kwargs = {**config.env_kwargs, **({"split": "test"} if takes_split(config.env) else {})}
    test_count = round(config.test_fraction * config.env_problems)
    return (
        environment_examples(config.env, config.env_kwargs, config.env_problems, config.seed),
        environment_examples(config.env, test_kwargs, test_count, config.seed + 1),
    )


class SupervisedTrainer:
    """One run's policy, its data and the steps over them."""

    def __init__(
        self,
        config: SupervisedConfig,
        policy: LoraPolicy,
        training: Sequence[Example],
        held_out: Sequence[Example],
    ) -> None:
        self.config = config
        self.policy = self.learner = policy
        self.renderer = get_renderer(policy.base.tokenizer, config.renderer)
        self.limit = LengthLimit(config.max_length, config.overlong)  # type: ignore[arg-type]
        self.epochs = Epochs(self._datums(training, self.limit), config.batch_size, config.epochs, config.seed)
        self.held_out = self._datums(held_out, replace(self.limit))
        self.held_out_bytes = sum(trained_bytes(datum, policy.base.tokenizer) for datum in self.held_out)

    @property
    def total_steps(self) -> int:
        return self.epochs.total

    def step(self, number: int, table: StepTable) -> StepResult:
        """Learns the batch of step `number`."""
        config, began = self.config, time.monotonic()
        due = number == 0 or (config.eval_every and number % config.eval_every == 0)
        metrics = self.evaluate() if due else {}
        data = self.epochs.batch(number)
        out = self.policy.forward_backward(
            data,
            "cross_entropy",
            normalization=config.normalization,  # type: ignore[arg-type]
        )
        rate = config.learning_rate * config.rate_factor(number, self.total_steps)
        updated = self.policy.optim_step(config.adam(rate))
        metrics |= (
            out.metrics
            | updated
            | {"train/nll": mean_nll(data, out.logprobs), "epoch": float(self.epochs.epoch(number))}
        )
        metrics["tokens_per_second"] = metrics["trained_tokens"] / seconds_since(began)
        return StepResult(metrics)

    def evaluate(self) -> dict[str, float]:
        """Of the held-out tokens the mean negative log-likelihood in nats, and bits per byte of their text.

        Bits per byte do not depend on the tokenizer, so models can be compared by them. Tokens that are no text, such
        as the end of a turn, count among the bits and not among the bytes.
        """
        if not self.held_out:
            return {}
        logprobs = self.policy.forward(self.held_out).logprobs
        found = {"test/nll": mean_nll(self.held_out, logprobs)}
        if self.held_out_bytes:
            nats = -sum(float(p[datum.trained].sum()) for datum, p in zip(self.held_out, logprobs, strict=True))
            found["test/bits_per_byte"] = nats / math.log(2) / self.held_out_bytes
        return found

    def summarize(self, rows: Sequence[dict[str, Any]], final: dict[str, float]) -> dict[str, Any]:
        """Held-out figures before and after, the training data, and the speed."""
        steps = rows[:-1]
        return {
            "before": held_out_figures(rows, 0),
            "after": final,
            "first_nll": steps[0]["train/nll"],
            "last_nll": steps[-1]["train/nll"],
            "conversations": len(self.epochs.examples),
            "cut_conversations": self.limit.truncated,
            "dropped_conversations": self.limit.dropped,
            "trained_tokens_per_second": float(np.mean([row["tokens_per_second"] for row in steps])),
        }

    def close(self) -> None:
        """Nothing to release."""

    def _datums(self, examples: Sequence[Example], limit: LengthLimit) -> list[Datum]:
        datums = []
        # An environment's solutions say themselves what is to be learnt of them.
        train_on = self.config.train_on if self.config.data else TrainOn.CUSTOM
        for example in examples:
            try:
                datums += supervised_datums(example, self.renderer, train_on=train_on, limit=limit)
            except ValueError as error:
                raise ValueError(f"cannot train on the conversation {str(example.messages)[:200]}: {error}") from error
        if examples and not datums:
            raise ValueError(
                f"none of {len(examples)} conversations has a token to train on with train-on "
                f"{self.config.train_on} and max-length {self.config.max_length}"
            )
        return datums


def trained_bytes(datum: Datum, tokenizer: Any) -> int:
    """The length of the text that a datum's trained targets spell, in bytes of UTF-8, without special tokens."""
    targets = np.asarray(datum.targets)[datum.trained].tolist()
    return len(tokenizer.decode(targets, skip_special_tokens=True).encode("utf-8", "replace"))


def mean_nll(data: Sequence[Datum], logprobs: Sequence[np.ndarray]) -> float:
    """-sum(w p) / sum(w) over all datums, in nats per token."""
    weights = [np.asarray(datum.weights, dtype=float) for datum in data]
    total = sum(float(w @ p) for w, p in zip(weights, logprobs, strict=True))
    return -total / sum(float(w.sum()) for w in weights)
