"""What the workers share: models and adapters by specification, the clock, versions."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch

RANDOM = "random:"
"""Prefix of a model's specification that means random weights in the shape of one of `RANDOM_MODELS`."""

QWEN3: dict[str, Any] = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
    "rope_theta": 1_000_000.0,
}
RANDOM_MODELS: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": QWEN3
    | {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "qwen3-1.7b": QWEN3
    | {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "qwen3-4b": QWEN3
    | {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
    },
    "tiny": {"num_hidden_layers": 2, "vocab_size": 512},
}
"""Sizes of published models, and one for trying things out."""


def load_model(specification: str, *, dtype: str, device: str) -> tuple[Any, Any]:
    """A model and its tokenizer: a folder, a bundled name, or random weights.

    Random is `random:` and a name from `RANDOM_MODELS`, with other sizes behind slashes as in
    `random:smollm2-135m/vocab_size=98304`; its tokenizer is one of bytes.
    """
    if specification.startswith(RANDOM):
        from loragym.agents.testing import tiny_model

        name, *changes = specification.removeprefix(RANDOM).split("/")
        fields = {"initializer_range": 0.02, **RANDOM_MODELS[name]}
        fields |= {field: int(value) for field, value in (change.split("=") for change in changes)}
        architecture = "qwen3" if name.startswith("qwen3") else "llama"
        model, tokenizer = tiny_model(architecture=architecture, dtype=getattr(torch, dtype), **fields)
    else:
        from loragym.agents.loading import load_pretrained

        model, tokenizer = load_pretrained(specification, dtype=getattr(torch, dtype))
    return model.to(device), tokenizer


def timed(work: Callable[[], Any], device: str = "cpu") -> tuple[float, Any]:
    """Seconds that a call took, the device's part included, and what it returned."""
    synchronize(device)
    began = time.perf_counter()
    result = work()
    synchronize(device)
    return time.perf_counter() - began, result


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def peak_on_device(device: str) -> dict[str, float]:
    """`peak_mib` of the accelerator's memory since the last call; nothing on a CPU, where the process's own counts."""
    if device == "cpu":
        return {}
    peak = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    return {"peak_mib": round(peak, 1)}


def problem_seeds(count: int, step: int) -> list[int]:
    """The seeds of a step's problems, the same that `trainers.rl` draws for a run of seed 0."""
    from loragym.trainers.rollouts import sampling_seed

    return [sampling_seed(0, step, index) % 2**31 for index in range(count)]


def versions(*packages: str) -> dict[str, str]:
    return {package: metadata.version(package) for package in packages}


def set_threads(threads: int) -> None:
    torch.set_num_threads(threads)
