"""Hyperparameters that can be known: against published values, and against models as they are built."""

from __future__ import annotations

import pytest
from loragym.agents import BaseModel, LoraConfig
from loragym.agents.testing import tiny_model
from loragym.trainers.hyperparameters import (
    lora_learning_rate,
    lora_size,
    rate_for_batch,
    recommend,
    transferred_learning_rate,
)
from transformers import AutoConfig, PretrainedConfig


def config(kind: str, hidden: int, **changes: int) -> PretrainedConfig:
    return AutoConfig.for_model(kind, hidden_size=hidden, **changes)


@pytest.mark.parametrize(
    ("kind", "hidden", "rate"),
    [
        ("llama", 4096, 0.0002856415043086949),
        ("llama", 2048, 4.9082e-4),
        ("llama", 3072, 3.5760e-4),
        ("qwen3", 4096, 4.7298e-4),
        ("qwen3", 2560, 4.9053e-4),
        ("qwen3", 1024, 5.2663e-4),
        ("qwen2", 896, 5.3210e-4),
    ],
)
def test_the_learning_rate_rule_gives_the_published_values(kind: str, hidden: int, rate: float) -> None:
    assert lora_learning_rate(config(kind, hidden)) == pytest.approx(rate, rel=2e-5)


def test_an_unknown_family_gets_the_mean_and_a_warning() -> None:
    known = [lora_learning_rate(config(kind, 4096)) for kind in ("llama", "qwen3")]
    assert lora_learning_rate(config("mistral", 4096)) == pytest.approx((known[0] * known[1]) ** 0.5)
    found = recommend(config("mistral", 512, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2))
    assert any("mistral" in note and "sweep" in note for note in found.notes)
    assert any("smaller than all" in note for note in found.notes)


@pytest.mark.parametrize(
    ("shape", "attention", "mlp", "unembedding"),
    [
        # Llama-3.2-1B and Qwen3-8B, weights for each unit of rank.
        (
            ("llama", 2048, 16, 32, 8, 8192, 128256, 64),
            212992,
            491520,
            130304,
        ),
        (
            ("qwen3", 4096, 36, 32, 8, 12288, 151936, 128),
            958464,
            1769472,
            156032,
        ),
    ],
)
def test_adapter_sizes_of_real_models(
    shape: tuple[str, int, int, int, int, int, int, int], attention: int, mlp: int, unembedding: int
) -> None:
    kind, hidden, layers, heads, kv_heads, inner, vocabulary, head_dim = shape
    model = config(
        kind,
        hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=inner,
        vocab_size=vocabulary,
        head_dim=head_dim,
    )
    size = lora_size(model, rank=1)
    assert (size.attention, size.mlp, size.unembedding) == (attention, mlp, unembedding)
    assert lora_size(model, rank=32).trained == 32 * (attention + mlp)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text", "mixtral"])
def test_the_count_is_that_of_an_adapter_as_it_is_built(architecture: str) -> None:
    model, tokenizer = tiny_model(architecture=architecture)
    adapter = BaseModel(model, tokenizer).add_lora("a", LoraConfig(rank=3))
    assert lora_size(model.config, rank=3).trained == sum(tensor.numel() for tensor in adapter.parameters)


def test_rates_scale_with_the_root_of_the_batch_and_of_the_models_size() -> None:
    assert rate_for_batch(1e-4, 512, 128) == pytest.approx(2e-4)
    assert transferred_learning_rate(1e-4, 1e9, 4e9) == pytest.approx(5e-5)


def test_an_adapter_is_as_large_as_the_data_ask_for() -> None:
    small = config("llama", 256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512, vocab_size=1000)
    few, many = recommend(small, trained_tokens=1000), recommend(small, trained_tokens=10**12)
    assert (few.rank, many.rank) == (32, 128)
    assert any("fewer weights than the 1,000,000,000,000 tokens" in note for note in many.notes)
    between = recommend(small, trained_tokens=lora_size(small, 32).trained + 1)
    assert between.rank == 64


def test_other_trainers_want_lower_rates() -> None:
    model = config("llama", 4096, num_hidden_layers=2)
    rates = {task: recommend(model, task).learning_rate for task in ("supervised", "distillation", "rl", "dpo")}  # type: ignore[arg-type]
    assert sorted(rates, key=lambda task: -rates[task]) == ["supervised", "distillation", "rl", "dpo"]
    assert rates["supervised"] == pytest.approx(0.0002856415043086949)
    with pytest.raises(ValueError, match=r"task is one of .*'rl'.*, got 'nope'"):
        recommend(model, "nope")  # type: ignore[arg-type]
