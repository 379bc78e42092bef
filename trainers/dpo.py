"""Direct preference optimisation: a policy learns from pairs, without a reward model (Rafailov et al. 2023).

A reply's reward is `beta` times the log-ratio of policy to reference. The reference is part of each checkpoint where it
is the policy at the start, so that a resumed run keeps it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..agents import Datum, LoraPolicy
from ..agents.losses import PREFERENCE_LOSSES, preference_loss
from ..renderers import get_renderer
from .clocks import seconds_since
from .config import at_least, at_most, one_of
from .display import Column, StepTable
from .epochs import Epochs
from .learners import Learners
from .loop import StepResult, conduct, held_out_figures
from .pair_data import PairConfig, fitting
from .preferences import Pair, reply_datum, reply_logprobs
from .references import START, check_reference, make_reference

COLUMNS = (
    Column("loss", "loss", ".4f"),
    Column("accuracy", "accuracy", ".3f"),
    Column("margin", "margin", ".3f"),
    Column("test loss", "test/loss", ".4f"),
    Column("test acc", "test/accuracy", ".3f"),
    Column("grad", "grad_norm", ".2f"),
    Column("seconds", "time/step", ".1f"),
)


@dataclass(frozen=True, kw_only=True)
class DPOConfig(PairConfig):
    """A run of direct preference optimisation."""

    run_dir: str = "runs/dpo"
    """Directory of the run; running the same command again resumes it."""
    learning_rate: float = 1e-5
    """Learning rate at the start."""
    loss: str = "dpo"
    """Loss: dpo, or ipo, which does not push pairs apart without end."""
    beta: float = 0.1
    """How much a log-ratio counts; higher holds the policy nearer to the reference."""
    length_normalized: bool = False
    """Take the mean log-ratio over a reply's tokens instead of the sum, so that length does not count."""
    smoothing: float = 0.0
    """Share of the labels that is taken to be wrong (conservative DPO)."""
    reference: str = START
    """What the policy is measured against: start (itself when the run begins), base, or an adapter's folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("learning_rate", "beta", "smoothing"):
            at_least(self, name, 0)
        at_most(self, "smoothing", 0.5)
        one_of(self, "loss", PREFERENCE_LOSSES)
        check_reference(self.reference)


def train(config: DPOConfig) -> dict[str, Any]:
    """Runs or resumes a run to its end; returns its summary.

    Raises:
        DataNotFound, BadData, ValueError: the pairs or the config cannot be used; raised before the model loads.
        RunError: the run directory cannot be used.
        Interrupted: stopped by Ctrl-C, after saving.
    """
    training, held_out = config.load_pairs()
    return conduct(config, lambda: DPOTrainer(config, config.load_policy(), training, held_out), COLUMNS)


class DPOTrainer:
    """One run's policy, its reference and the steps over the pairs. Ties teach nothing here and are left out."""

    def __init__(
        self, config: DPOConfig, policy: LoraPolicy, training: Sequence[Pair], held_out: Sequence[Pair]
    ) -> None:
        self.config = config
        self.policy = policy
        self.renderer = get_renderer(policy.base.tokenizer, config.renderer)
        self.reference = make_reference(policy, config.reference)
        self.learner = Learners(policy, {"reference": self.reference} if config.reference == START else {})
        kept, self.num_left_out = self._datums(training)
        self.held_out, _ = self._datums(held_out)
        if not kept:
            raise ValueError("all pairs are ties; direct preference optimisation needs pairs of which one is better")
        self.epochs = Epochs(kept, config.batch_size, config.epochs, config.seed)

    @property
    def total_steps(self) -> int:
        return self.epochs.total

    def step(self, number: int, table: StepTable) -> StepResult:
        """Learns the batch of step `number`."""
        config, began = self.config, time.monotonic()
        due = number == 0 or (config.eval_every and number % config.eval_every == 0)
        metrics = self.evaluate() if due else {}
        data = [datum for pair in self.epochs.batch(number) for datum in pair]
        known = self._replies(data, self.reference.forward(data).logprobs)
        found: dict[str, float] = {}

        def loss(logprobs: list[torch.Tensor], _: Sequence[Datum]) -> tuple[torch.Tensor, Mapping[str, float]]:
            replies = torch.stack([p.mean() if config.length_normalized else p.sum() for p in logprobs])
            rewards = config.beta * (replies - torch.as_tensor(known, dtype=replies.dtype, device=replies.device))
            found.update(pair_figures(rewards.detach().double().cpu().numpy()))
            return preference_loss(config.loss, rewards[::2], rewards[1::2], config.smoothing), {}

        out = self.policy.forward_backward(data, loss)
        updated = self.policy.optim_step(
            config.adam(config.learning_rate * config.rate_factor(number, self.total_steps))
        )
        metrics |= out.metrics | updated | found | {"loss": out.loss, "epoch": float(self.epochs.epoch(number))}
        metrics["tokens_per_second"] = metrics["trained_tokens"] / seconds_since(began)
        return StepResult(metrics)

    def evaluate(self) -> dict[str, float]:
        """Loss, accuracy, margin and rewards on the held-out pairs."""
        if not self.held_out:
            return {}
        data = [datum for pair in self.held_out for datum in pair]
        rewards = self.config.beta * (
            self._replies(data, self.policy.forward(data).logprobs)
            - self._replies(data, self.reference.forward(data).logprobs)
        )
        chosen, rejected = (torch.as_tensor(rewards[i::2]) for i in (0, 1))
        loss = preference_loss(self.config.loss, chosen, rejected, self.config.smoothing)
        return {f"test/{name}": value for name, value in (pair_figures(rewards) | {"loss": loss.item()}).items()}

    def summarize(self, rows: Sequence[dict[str, Any]], final: dict[str, float]) -> dict[str, Any]:
        """Held-out figures before and after, and the training data."""
        return {
            "before": held_out_figures(rows, 0),
            "after": final,
            "first_loss": rows[0]["loss"],
            "pairs": len(self.epochs.examples),
            "pairs_left_out": self.num_left_out,
        }

    def close(self) -> None:
        """Nothing to release."""

    def _replies(self, data: Sequence[Datum], logprobs: Sequence[np.ndarray]) -> np.ndarray:
        return reply_logprobs(data, logprobs, mean=self.config.length_normalized)

    def _datums(self, pairs: Sequence[Pair]) -> tuple[list[tuple[Datum, Datum]], int]:
        def both(pair: Pair) -> tuple[Datum, Datum] | None:
            chosen, rejected = (reply_datum(c, self.renderer, self.config.max_length) for c in pair.conversations)
            return None if chosen is None or rejected is None else (chosen, rejected)

        return fitting([pair for pair in pairs if not pair.is_tie], both, self.config.max_length)


def pair_figures(rewards: np.ndarray) -> dict[str, float]:
    """Accuracy, margin and mean rewards of pairs, from rewards `(2 P,)`: chosen, rejected, chosen, ..."""
    chosen, rejected = rewards[::2], rewards[1::2]
    return {
        # A pair of equal rewards is as good as a coin's toss.
        "accuracy": float(((chosen > rejected) + 0.5 * (chosen == rejected)).mean()),
        "margin": float((chosen - rejected).mean()),
        "chosen_reward": float(chosen.mean()),
        "rejected_reward": float(rejected.mean()),
    }
