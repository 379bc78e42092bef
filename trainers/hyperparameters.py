"""Hyperparameters that can be known beforehand: learning rates, sizes of adapters, batches.

The learning-rate rule is that of Thinking Machines' tinker-cookbook (`hyperparam_utils`), fitted to sweeps over Llama
and Qwen models: 5e-5 x 10 x (2000 / hidden size)^p. It holds for supervised learning with LoRA at alpha 32 and does not
depend on the rank. All the rest is stated where it stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..agents.lora import LoraConfig, target_modules

if TYPE_CHECKING:
    from transformers import PretrainedConfig

EXPONENTS = {"llama": 0.781, "qwen": 0.0775}
"""How the learning rate falls with the hidden size, by family."""
FULL_TUNING_RATE = 5e-5
"""The rule's learning rate for all weights, at a hidden size of 2000."""
LORA_FACTOR = 10.0
"""How much higher LoRA's learning rate is than that of all weights (Schulman et al. 2025, LoRA Without Regret)."""
REFERENCE_BATCH = 128
"""Sequences in a step that the rule's learning rate was fitted at."""

Task = Literal["supervised", "reward", "rl", "distillation", "dpo"]
FACTORS: dict[str, float] = {"supervised": 1.0, "reward": 1.0, "rl": 0.1, "distillation": 0.5, "dpo": 0.02}
"""Learning rates of other trainers as shares of the supervised one, to begin with: where the cookbook's recipes have
theirs (RL 1e-5 to 8e-5, on-policy distillation 1e-4, DPO 1e-6 to 1e-5, where the supervised rate is about 4e-4)."""


@dataclass(frozen=True, slots=True)
class LoraSize:
    """Trained weights of an adapter, by part of the model."""

    attention: int
    mlp: int
    unembedding: int

    @property
    def trained(self) -> int:
        """What a LoraConfig trains by default: all but the unembedding."""
        return self.attention + self.mlp


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Where to begin with a model.

    Attributes:
        learning_rate: of a LoRA at any rank.
        batch_size: sequences in a step.
        rank: of the adapter.
        size: the adapter's weights at that rank.
        notes: what to know about these figures.
    """

    learning_rate: float
    batch_size: int
    rank: int
    size: LoraSize
    notes: tuple[str, ...]


def family(config: PretrainedConfig) -> str | None:
    """`llama` or `qwen` if the model's architecture is one of those, else None."""
    kind = str(config.model_type).lower()
    return next((name for name in EXPONENTS if kind.startswith(name)), None)


def lora_learning_rate(config: PretrainedConfig) -> float:
    """The rule's learning rate for supervised learning with LoRA.

    A family without sweeps of its own gets the geometric mean of what the known ones would get.
    """
    hidden = int(config.get_text_config().hidden_size)
    known = family(config)
    exponents = [EXPONENTS[known]] if known else list(EXPONENTS.values())
    exponent = sum(exponents) / len(exponents)
    return FULL_TUNING_RATE * LORA_FACTOR * (2000 / hidden) ** exponent


def full_tuning_learning_rate(config: PretrainedConfig) -> float:
    """The rule's learning rate where all weights are trained."""
    return lora_learning_rate(config) / LORA_FACTOR


def transferred_learning_rate(rate: float, parameters: float, other_parameters: float) -> float:
    """A rate that was found at one model size, for another of its family: it goes with 1 / sqrt(weights)."""
    return rate * math.sqrt(parameters / other_parameters)


def rate_for_batch(rate: float, batch_size: int, reference: int = REFERENCE_BATCH) -> float:
    """A rate that was found at one batch size, for another: Adam's goes with its square root (Malladi et al. 2022)."""
    return rate * math.sqrt(batch_size / reference)


def lora_size(config: PretrainedConfig, rank: int = 32) -> LoraSize:
    """How many weights an adapter of all linear layers has, part by part.

    The model's layers are laid out without memory for their weights, so any architecture that transformers knows will
    do. An expert's layers count each.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = target_modules(model, LoraConfig(rank=rank, train_unembed=False))
    sizes = {"attention": 0, "mlp": 0}
    for name, layer in layers.items():
        sizes["attention" if "attn" in name else "mlp"] += rank * (layer.in_features + layer.out_features)
    head = model.get_output_embeddings()
    unembedding = 0 if head is None else rank * sum(head.weight.shape)
    return LoraSize(sizes["attention"], sizes["mlp"], unembedding)


def recommend(
    model: str | Path | PretrainedConfig, task: Task = "supervised", *, trained_tokens: int | None = None
) -> Recommendation:
    """Where to begin with a model.

    Args:
        model: a bundled name, a folder, a hub id, or a transformers configuration.
        task: what it is to learn by.
        trained_tokens: how many tokens a supervised run will train on; an adapter has at least as many weights
            (Schulman et al. 2025), up to rank 128.

    Raises:
        ValueError: the task is unknown.
        OSError: there is no such model.
    """
    if task not in FACTORS:
        raise ValueError(f"task is one of {sorted(FACTORS)}, got {task!r}")
    config = load_config(model) if isinstance(model, str | Path) else model
    notes = []
    if family(config) is None:
        notes.append(
            f"the rule was fitted for {' and '.join(EXPONENTS)}; for {config.model_type} this is their geometric mean, "
            "so sweep around it"
        )
    if config.get_text_config().hidden_size < 896:
        notes.append("this model is smaller than all that the rule was fitted to, so sweep around the rate")
    batch_size = {"rl": 64, "dpo": 64}.get(task, REFERENCE_BATCH)
    rank = 32
    if task == "supervised" and trained_tokens:
        while rank < 128 and lora_size(config, rank).trained < trained_tokens:
            rank *= 2
        if lora_size(config, rank).trained < trained_tokens:
            notes.append(f"an adapter of rank {rank} has fewer weights than the {trained_tokens:,} tokens to train on")
    notes.append("sweep: loragym sweep RECIPE --over learning_rate=..., a third and three times this rate at least")
    rate = rate_for_batch(lora_learning_rate(config) * FACTORS[task], batch_size)
    return Recommendation(rate, batch_size, rank, lora_size(config, rank), tuple(notes))


def load_config(model: str | Path) -> PretrainedConfig:
    """A model's configuration, without its weights.

    Raises:
        OSError: there is no such model.
        ValueError: its configuration is damaged.
    """
    from transformers import AutoConfig

    from ..agents.bundled import BUNDLED, fetch_bundled

    folder = fetch_bundled(str(model)) if str(model) in BUNDLED else model
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except OSError:
        raise
    except Exception as error:  # a damaged file makes transformers raise whatever its many layers raise
        raise ValueError(
            f"the configuration of {str(model)!r} cannot be used: {type(error).__name__}: {error}"
        ) from error
    return config
