"""Reward models from pairs: a scalar head under the Bradley-Terry model, or a judge that names the better reply."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..agents import Datum, LoraPolicy, LoraScorer
from ..agents.losses import bradley_terry
from ..renderers import Renderer, get_renderer
from .clocks import seconds_since
from .config import at_least, one_of
from .display import Column, StepTable
from .epochs import Epochs
from .loop import StepResult, conduct, held_out_figures
from .pair_data import PairConfig, fitting
from .preferences import Pair
from .reward_models import judged_examples, label_probabilities, scored_datum

COLUMNS = (
    Column("loss", "loss", ".4f"),
    Column("accuracy", "accuracy", ".3f"),
    Column("test loss", "test/loss", ".4f"),
    Column("test acc", "test/accuracy", ".3f"),
    Column("off by", "test/calibration_error", ".3f"),
    Column("grad", "grad_norm", ".2f"),
    Column("seconds", "time/step", ".1f"),
)
KINDS = ("scalar", "judge")


@dataclass(frozen=True, kw_only=True)
class RewardConfig(PairConfig):
    """A reward model's run."""

    run_dir: str = "runs/reward"
    """Directory of the run; running the same command again resumes it."""
    kind: str = "scalar"
    """scalar: a head that scores replies; judge: the model is asked which of two replies is better."""
    learning_rate: float = 3e-4
    """Learning rate at the start."""
    margin_coef: float = 0.0
    """How much of a pair's margin the scores should differ by at least; scalar only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "kind", KINDS)
        for name in ("learning_rate", "margin_coef"):
            at_least(self, name, 0)
        if self.margin_coef and self.kind != "scalar":
            raise ValueError("margin-coef is for kind scalar: a judge's letters have no margin")


def train(config: RewardConfig) -> dict[str, Any]:
    """Runs or resumes a run to its end; returns its summary.

    Raises:
        DataNotFound, BadData, ValueError: the pairs or the config cannot be used; raised before the model loads.
        RunError: the run directory cannot be used.
        Interrupted: stopped by Ctrl-C, after saving.
    """
    training, held_out = config.load_pairs()
    return conduct(config, lambda: make_trainer(config, training, held_out), COLUMNS)


def make_trainer(config: RewardConfig, training: Sequence[Pair], held_out: Sequence[Pair]) -> RewardTrainer:
    """Loads the model and gives the run's trainer.

    A scalar model begins with a fresh adapter, or with the weights of `adapter`, of which only the head is new.
    """
    if config.kind == "judge":
        policy = config.load_policy()
        return RewardTrainer(
            config, Judge(policy, get_renderer(policy.base.tokenizer, config.renderer)), training, held_out
        )
    base = config.load_base()
    scorer = base.add_scorer("reward_model", config.lora())
    if config.adapter:
        scorer.copy_adapter(config.load_adapter(base, "start"))
    return RewardTrainer(
        config, Scalar(scorer, get_renderer(base.tokenizer, config.renderer), config), training, held_out
    )


class Scalar:
    """A scorer that learns the Bradley-Terry model of the pairs."""

    def __init__(self, scorer: LoraScorer, renderer: Renderer, config: RewardConfig) -> None:
        self.learner = scorer
        self.renderer = renderer
        self.config = config

    def example(self, pair: Pair) -> list[Datum] | None:
        """The pair's two conversations; None if one is too long."""
        context = self.learner.base.context_length
        data = [scored_datum(conversation, self.renderer, context) for conversation in pair.conversations]
        return None if max(len(datum.tokens) for datum in data) > self.config.max_length else data

    def learn(self, pairs: Sequence[Pair], data: Sequence[Datum]) -> tuple[dict[str, float], np.ndarray]:
        """Adds the gradient; gives figures, and P(chosen wins) of each pair as it was."""
        found = np.zeros(0)

        def loss(scores: list[torch.Tensor], _: Sequence[Datum]) -> tuple[torch.Tensor, Mapping[str, float]]:
            nonlocal found
            values = torch.cat(scores)
            label, margin = (
                torch.as_tensor(x, dtype=values.dtype, device=values.device)
                for x in ([p.preference for p in pairs], [self.config.margin_coef * p.margin for p in pairs])
            )
            found = torch.sigmoid((values[::2] - values[1::2]).detach().double()).cpu().numpy()
            return bradley_terry(values[::2], values[1::2], label, margin), {}

        out = self.learner.forward_backward(data, loss)
        return {**out.metrics, "loss": out.loss}, found

    def predict(self, pairs: Sequence[Pair], data: Sequence[Datum]) -> np.ndarray:
        """P(chosen wins) of each pair."""
        values = np.concatenate(self.learner.score(data))
        predicted: np.ndarray = 1 / (1 + np.exp(values[1::2] - values[::2]))
        return predicted


class Judge:
    """A policy that learns to answer which of two replies is better, in both orders."""

    def __init__(self, policy: LoraPolicy, renderer: Renderer) -> None:
        self.learner = policy
        self.renderer = renderer

    def example(self, pair: Pair) -> list[Datum] | None:
        """The question in both orders, with its answer; None if it is too long for the model."""
        data = judged_examples(pair, self.renderer)
        return None if max(len(datum.tokens) for datum in data) > self.learner.base.context_length else data

    def learn(self, pairs: Sequence[Pair], data: Sequence[Datum]) -> tuple[dict[str, float], np.ndarray]:
        """Adds the gradient; gives figures, and P(chosen wins) of each pair as it was."""
        predicted = self.predict(pairs, data)
        out = self.learner.forward_backward(data, "cross_entropy", normalization="token")
        return {**out.metrics, "loss": out.loss}, predicted

    def predict(self, pairs: Sequence[Pair], data: Sequence[Datum]) -> np.ndarray:
        """P(chosen wins) of each pair: the mean over both orders, half of a tie's probability included."""
        both = [pair.conversations for pair in pairs]
        asked = [*both, *((second, first) for first, second in both)]
        first, second, tie = label_probabilities(self.learner, self.renderer, asked).T
        wins = np.concatenate([first[: len(both)], second[len(both) :]]) + tie / 2
        predicted: np.ndarray = wins.reshape(2, -1).mean(0)
        return predicted


class RewardTrainer:
    """One run's reward model and the steps over the pairs."""

    def __init__(
        self, config: RewardConfig, model: Scalar | Judge, training: Sequence[Pair], held_out: Sequence[Pair]
    ) -> None:
        self.config = config
        self.model = model
        self.learner = model.learner
        kept, self.num_left_out = self._examples(training)
        self.held_out, _ = self._examples(held_out)
        self.epochs = Epochs(kept, config.batch_size, config.epochs, config.seed)

    @property
    def total_steps(self) -> int:
        return self.epochs.total

    def step(self, number: int, table: StepTable) -> StepResult:
        """Learns the batch of step `number`."""
        config, began = self.config, time.monotonic()
        due = number == 0 or (config.eval_every and number % config.eval_every == 0)
        metrics = self.evaluate() if due else {}
        batch = self.epochs.batch(number)
        pairs = [pair for pair, _ in batch]
        figures, predicted = self.model.learn(pairs, [datum for _, data in batch for datum in data])
        rate = config.learning_rate * config.rate_factor(number, self.total_steps)
        metrics |= figures | self.learner.optim_step(config.adam(rate)) | prediction_figures(pairs, predicted)
        metrics["epoch"] = float(self.epochs.epoch(number))
        metrics["tokens_per_second"] = metrics["computed_tokens"] / seconds_since(began)
        return StepResult(metrics)

    def evaluate(self) -> dict[str, float]:
        """Accuracy, calibration and negative log-likelihood on the held-out pairs."""
        if not self.held_out:
            return {}
        pairs = [pair for pair, _ in self.held_out]
        predicted = self.model.predict(pairs, [datum for _, data in self.held_out for datum in data])
        return {f"test/{name}": value for name, value in prediction_figures(pairs, predicted).items()} | {
            "test/loss": negative_log_likelihood(pairs, predicted)
        }

    def summarize(self, rows: Sequence[dict[str, Any]], final: dict[str, float]) -> dict[str, Any]:
        """Held-out figures before and after, and the training data."""
        return {
            "before": held_out_figures(rows, 0),
            "after": final,
            "pairs": len(self.epochs.examples),
            "pairs_left_out": self.num_left_out,
        }

    def close(self) -> None:
        """Nothing to release."""

    def _examples(self, pairs: Sequence[Pair]) -> tuple[list[tuple[Pair, list[Datum]]], int]:
        def made(pair: Pair) -> tuple[Pair, list[Datum]] | None:
            data = self.model.example(pair)
            return None if data is None else (pair, data)

        return fitting(pairs, made, self.config.max_length)


def prediction_figures(pairs: Sequence[Pair], predicted: np.ndarray) -> dict[str, float]:
    """How good predictions P(chosen wins) are: accuracy over pairs that are no ties, and calibration.

    The calibration error (Naeini et al. 2015) is the mean over ten bins, by weight, of |mean confidence - accuracy| of
    the reply that is held to be better. The Brier score counts ties as half.
    """
    label = np.array([pair.preference for pair in pairs])
    decided = label != 0.5
    figures = {"brier": float(((predicted - label) ** 2).mean())}
    if decided.any():
        p = predicted[decided]
        right = (p > 0.5) + 0.5 * (p == 0.5)
        confidence = np.maximum(p, 1 - p)
        bins = np.minimum((confidence - 0.5) / 0.05, 9).astype(int)
        gaps = [abs((confidence - right)[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
        figures |= {"accuracy": float(right.mean()), "calibration_error": float(np.sum(gaps))}
    return figures


def negative_log_likelihood(pairs: Sequence[Pair], predicted: np.ndarray) -> float:
    """The labels' mean negative log-likelihood, in nats; a coin's is ln 2."""
    label, p = np.array([pair.preference for pair in pairs]), np.clip(predicted, 1e-12, 1 - 1e-12)
    return float(-(label * np.log(p) + (1 - label) * np.log(1 - p)).mean())
