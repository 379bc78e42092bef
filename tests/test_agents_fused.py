"""The fused decoder gives what transformers' own modules give, forward and backward, and changes no weight."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from loragym.agents import BaseModel, Datum, LoraPolicy, SamplingParams, frozen_linear, fused, kernels
from loragym.agents.testing import tiny_model
from tiny_engine import (
    FAMILIES,
    assert_close,
    branching,
    datum,
    family_base,
    gradients,
    random_tokens,
    rl_data,
    stirred_policy,
    tiny_base,
    weighted_data,
)

ADAPTERS: dict[str, dict[str, Any]] = {
    "all": {},
    "attention": {"train_mlp": False},
    "mlp": {"train_attn": False},
    "scaled": {"alpha": 9.0},
    "unembed": {"train_unembed": True},
}


def both_ways(policy: LoraPolicy, call: Any) -> tuple[Any, Any]:
    """What `call` gives with the fused decoder and with the modules."""
    decoder = policy.base.fused
    assert decoder is not None
    first = call()
    policy.base.fused = None
    second = call()
    policy.base.fused = decoder
    return first, second


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_modules(family: str, adapter: str) -> None:
    policy = stirred_policy(family_base(family), **ADAPTERS[adapter])

    def train() -> tuple[list[np.ndarray], list[torch.Tensor]]:
        out = policy.forward_backward(weighted_data(branching()), temperature=1.3)
        return out.logprobs, gradients(policy)

    (logprobs, got), (expected_logprobs, expected) = both_ways(policy, train)
    for ours, theirs in zip(logprobs, expected_logprobs, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert_close(got, expected, 2e-5)


def test_gradients_in_float64_are_those_of_the_modules_to_the_norms_of_float32() -> None:
    policy = stirred_policy(tiny_base(dtype=torch.float64), rank=3)

    def train() -> list[torch.Tensor]:
        policy.forward_backward(rl_data(branching()), "importance_sampling")
        return gradients(policy)

    assert_close(*both_ways(policy, train), 1e-6)


def test_bfloat16_gradients_point_where_those_of_float32_do() -> None:
    """Rounding aside: the fused path's gradients are as close to float32's as those of the modules."""

    def train(base: BaseModel) -> torch.Tensor:
        policy = stirred_policy(base, rank=8)
        policy.forward_backward(weighted_data(branching(stem=40)))
        return torch.cat([g.flatten() for g in gradients(policy)])

    exact = train(tiny_base())
    ours = train(tiny_base(dtype=torch.bfloat16))
    modules = tiny_base(dtype=torch.bfloat16)
    modules.fused = None
    off, theirs_off = ((g - exact).norm() / exact.norm() for g in (ours, train(modules)))
    assert off < 0.1 and off < 1.5 * theirs_off


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_are_those_of_the_modules(family: str) -> None:
    policy = stirred_policy(family_base(family))
    prompts = [random_tokens(i, 4 + 3 * i) for i in range(4)]
    params = SamplingParams(max_tokens=12, stop=(), seed=5)
    got, expected = both_ways(policy, lambda: policy.sampler().sample(prompts, 3, params))
    for ours, theirs in zip(chain(*got), chain(*expected), strict=True):
        assert ours.tokens == theirs.tokens
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=2e-5)


@pytest.mark.skipif(not frozen_linear.can_pack(torch.zeros(1)), reason="this torch has no packed products")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_give_what_plain_ones_give(dtype: torch.dtype) -> None:
    if not frozen_linear.can_pack(torch.zeros(1, dtype=dtype)):
        pytest.skip(f"no packed products of {dtype} here")
    policy = stirred_policy(tiny_base(dtype=dtype))
    decoder = policy.base.fused
    assert decoder is not None and decoder.head.packed is None
    data = [datum(random_tokens(i, 30)) for i in range(4)]
    plain = np.concatenate(policy.forward(data).logprobs)
    policy.sampler()
    assert decoder.head.packed is not None
    packed = np.concatenate(policy.forward(data).logprobs)
    assert np.abs(packed - plain).mean() < (1e-6 if dtype == torch.float32 else 0.02)


@pytest.mark.skipif(not kernels.can_pack(torch.bfloat16), reason="no products of bfloat16 here")
def test_where_the_processor_has_tiles_many_rows_are_left_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = stirred_policy(tiny_base(dtype=torch.bfloat16))
    data = [Datum.supervised(tokens := random_tokens(i, 60), [1.0] * len(tokens)) for i in range(4)]

    def found() -> tuple[np.ndarray, list[torch.Tensor], list[float], set[str]]:
        names: set[str] = set()
        call = kernels.call
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "call", lambda name, *given: (names.add(name), call(name, *given))[1])
            logprobs = np.concatenate(policy.forward_backward(data, "cross_entropy").logprobs)
            gradients = [p.grad.clone() for p in policy.parameters if p.grad is not None]
            policy.zero_grad()
            [[sampled]] = policy.sampler().sample([random_tokens(9, 60)], 1, SamplingParams(max_tokens=4, seed=1))
        return logprobs, gradients, sampled.logprobs, names

    ours = found()
    monkeypatch.setattr(kernels, "has_tiles", lambda: True)
    theirs = found()
    assert "lora_backward" in ours[3] and "project" in ours[3]
    assert "lora_backward" not in theirs[3]
    assert np.abs(ours[0] - theirs[0]).mean() < 0.02
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert (a - b).norm() <= 0.05 * a.norm()
    assert ours[2] == pytest.approx(theirs[2], abs=0.2)


def test_weights_are_not_packed_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "PACKED_SHARE", 1e-9)
    base = tiny_base()
    assert base.sampler().sample([[1, 2, 3]], params=SamplingParams(max_tokens=2))
    assert base.fused is not None and base.fused.head.packed is None


def test_stacking_moves_weights_and_changes_none() -> None:
    model, tokenizer = tiny_model(architecture="qwen2")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    BaseModel(model, tokenizer)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    attn = model.model.layers[0].self_attn
    assert attn.q_proj.weight.untyped_storage().data_ptr() == attn.k_proj.weight.untyped_storage().data_ptr()


def test_snapshots_do_not_share_their_stacks() -> None:
    base = tiny_base()
    one, other = stirred_policy(base, "one", seed=1), stirred_policy(base, "other", seed=2)
    params = SamplingParams(max_tokens=8, stop=(), temperature=0)
    prompt = [random_tokens(0, 9)]
    first, second, bare = one.sampler(), other.sampler(), base.sampler()
    expected = [sampler.sample(prompt, params=params)[0][0].tokens for sampler in (first, second, bare)]
    assert len({tuple(tokens) for tokens in expected}) == 3
    got = [sampler.sample(prompt, params=params)[0][0].tokens for sampler in (bare, second, first)]
    assert got == expected[::-1]


def test_a_decoder_that_is_not_like_the_others_goes_through_its_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Granite has the modules of a Llama and multiplies by factors of its own."""
    options = {"architecture": "granite", "residual_multiplier": 0.5, "attention_multiplier": 0.3}
    monkeypatch.setattr(fused, "FUSED_TYPES", frozenset({"granite"}))
    base = tiny_base(**options)
    assert base.fused is None
    assert len(base.sampler().sample([[5, 6]], params=SamplingParams(max_tokens=3, stop=()))[0][0].tokens) == 3


def test_a_norm_of_another_kind_is_called_as_it_is() -> None:
    module, x = torch.nn.LayerNorm(16), torch.randn(3, 16)
    assert torch.equal(fused.norm(module, x), module(x))
