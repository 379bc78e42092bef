"""Our forward pass is the architecture's own: log-probabilities against transformers with its eager attention."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from loragym.agents import BaseModel, Datum, LoraPolicy, packing, policy
from tiny_engine import (
    FAMILIES,
    branching,
    datum,
    eager,
    family_base,
    random_tokens,
    reference_logits,
    reference_logprobs,
    stirred_policy,
    tiny_base,
)

SEQUENCES = branching(stem=20)
TEMPERATURES = [0.5, 1.0, 1.5]


@lru_cache
def family_policy(family: str) -> LoraPolicy:
    return stirred_policy(family_base(family))


def assert_forward_is_reference(policy: LoraPolicy, temperature: float, tolerance: float) -> None:
    got = policy.forward([datum(s) for s in SEQUENCES], temperature=temperature).logprobs
    for sequence, logprobs in zip(SEQUENCES, got, strict=True):
        expected = reference_logprobs(policy.base, sequence, policy.adapter, temperature)
        np.testing.assert_allclose(logprobs, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_are_those_of_transformers(family: str, temperature: float) -> None:
    assert_forward_is_reference(family_policy(family), temperature, 2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_float64_they_agree_to_float64_or_what_the_architecture_keeps_in_float32(family: str) -> None:
    """Families compute their norms and rotary angles in float32 whatever their type; the rest has no excuse."""
    assert_forward_is_reference(stirred_policy(family_base(family, dtype=torch.float64)), 1.0, 2e-6)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_the_sliding_windows_of_these_tests_matter(family: str) -> None:
    base = family_base(family)
    tokens = random_tokens(0, 30)
    narrow = reference_logits(base, tokens)
    wide = reference_logits(family_base(family, sliding_window=64), tokens)
    assert (narrow - wide)[:5].abs().max() < 1e-5
    assert (narrow - wide)[10:].abs().max() > 0.05


def test_the_soft_caps_of_these_tests_matter() -> None:
    tokens = random_tokens(0, 30)
    capped = reference_logits(family_base("gemma2"), tokens)
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        assert (capped - reference_logits(family_base("gemma2", **{cap: None}), tokens)).abs().max() > 0.01


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("constants", [{"QUERY_CHUNK": 4}, {"BLOCK_COST": 0, "KEY_ROW_COST": 0}, {"BLOCK_COST": 10**6}])
def test_logprobs_do_not_depend_on_the_shape_of_the_blocks(
    family: str, constants: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in constants.items():
        monkeypatch.setattr(packing, name, value)
    assert_forward_is_reference(family_policy(family), 1.0, 2e-5)


@pytest.mark.parametrize("tokens_per_pass", [1, 30, 45])
def test_logprobs_do_not_depend_on_how_many_passes_there_are(
    tokens_per_pass: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = family_policy("llama")
    monkeypatch.setattr(tested, "tokens_per_pass", tokens_per_pass)
    assert_forward_is_reference(tested, 1.0, 2e-5)


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_logprobs_do_not_depend_on_how_the_head_is_chunked(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tested = family_policy("llama")
    monkeypatch.setattr(policy, "LOGITS_BYTES", 4 * tested.base.vocabulary * rows)
    assert_forward_is_reference(tested, 1.5, 2e-5)


def test_a_shared_prompt_is_computed_once() -> None:
    prompt = random_tokens(1, 50)
    out = family_policy("llama").forward([datum([*prompt, i, 1]) for i in range(8)])
    assert out.metrics["computed_tokens"] == 50 + 8
    assert out.metrics["trained_tokens"] == 8 * 51


def test_what_is_not_trained_has_logprob_zero_and_what_stands_behind_it_is_not_computed() -> None:
    tested = family_policy("llama")
    sequence = random_tokens(2, 12)
    mask = [i in (3, 6) for i in range(11)]
    out = tested.forward([datum(sequence, mask=mask), datum(sequence, mask=[False] * 11)])
    expected = np.where(mask, reference_logprobs(tested.base, sequence, tested.adapter), 0.0)
    np.testing.assert_allclose(out.logprobs[0], expected, atol=2e-5)
    assert not out.logprobs[1].any()
    assert out.metrics == {"trained_tokens": 2.0, "computed_tokens": 7.0}
    assert np.isnan(out.loss)


def test_a_sequence_may_fill_the_whole_context() -> None:
    tested = stirred_policy(tiny_base(max_position_embeddings=40))
    sequence = random_tokens(3, 41)
    (logprobs,) = tested.forward([datum(sequence)]).logprobs
    np.testing.assert_allclose(logprobs, reference_logprobs(tested.base, sequence, tested.adapter), atol=2e-5)


def test_targets_need_not_be_the_next_tokens() -> None:
    """A datum of a conversation whose middle was rewritten, or a classifier's label."""
    tested = family_policy("llama")
    tokens, targets = random_tokens(4, 6), random_tokens(5, 6)
    (logprobs,) = tested.forward([Datum(tokens=tokens, targets=targets)]).logprobs
    expected = reference_logits(tested.base, tokens, tested.adapter).log_softmax(-1)[torch.arange(6), targets]
    np.testing.assert_allclose(logprobs, expected.numpy(), atol=2e-5)


def test_an_architecture_that_the_engine_does_not_reproduce_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base()
    head = BaseModel.logits
    monkeypatch.setattr(BaseModel, "logits", lambda self, hidden, adapter: 0.8 * head(self, hidden, adapter))
    with pytest.raises(NotImplementedError, match="LlamaForCausalLM computes something that loragym's forward pass"):
        BaseModel(base.model, base.tokenizer)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("bloom", "BloomForCausalLM has 2 layers, of which 0 use transformers' attention interface"),
        ("rwkv", "RwkvForCausalLM has 2 layers, of which 0 use transformers' attention interface"),
        ("diffllama", "DiffLlamaForCausalLM computes something that loragym's decoding does not"),
        ("gpt_oss", "GptOssAttention uses attention sinks, which loragym's engine does not have"),
    ],
)
def test_architectures_that_would_go_wrong_in_silence_are_refused(architecture: str, reason: str) -> None:
    """On one plain sequence the first three agree with transformers: what tells them apart is a tree, and decoding."""
    with pytest.raises(NotImplementedError, match=reason):
        tiny_base(architecture=architecture)


def test_the_model_serves_transformers_again_after_it_served_us() -> None:
    base = tiny_base()
    tokens = random_tokens(0, 10)
    before = reference_logits(base, tokens)
    stirred_policy(base).forward([datum(tokens)])
    assert torch.equal(reference_logits(base, tokens), before)
    with eager(base) as model:
        assert torch.equal(model(torch.tensor([tokens])).logits[0].double(), before)
