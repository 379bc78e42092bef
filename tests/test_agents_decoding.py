"""Products with packed weights, and decoding steps made of them, give what torch's operators give."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from loragym.agents import LoraPolicy, SamplingParams, kernels
from loragym.agents.decoding import CHUNK, Stepper
from loragym.agents.fused import FusedDecoder
from loragym.agents.projections import ProjectionPlan, TrainedAdapters, Update, lora_backward, lora_forward, project
from tiny_engine import FAMILIES, datum, family_base, random_tokens, stirred_policy, tiny_base

TYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if kernels.can_pack(dtype)]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
pytestmark = pytest.mark.skipif(not TYPES, reason="no compiled products on this machine")
SHAPES = [(1, 16, 2), (2, 48, 64), (3, 20, 6), (7, 100, 34), (8, 49, 16), (9, 144, 96), (31, 160, 40), (70, 33, 128)]
"""Rows, outputs and inputs: whole tiles and all kinds of rests."""


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(got: torch.Tensor, expected: torch.Tensor) -> None:
    bound = TOLERANCE[got.dtype]
    torch.testing.assert_close(got.float(), expected.float(), rtol=bound, atol=bound * max(1, float(expected.std())))


@pytest.fixture(params=[1, 2, 3, 7])
def threads(request: pytest.FixtureRequest) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_product(shape: tuple[int, int, int], dtype: torch.dtype, threads: int) -> None:
    rows, outputs, inputs = shape
    x, weight = random(rows, inputs, dtype=dtype), random(outputs, inputs, dtype=dtype, seed=1)
    bias, other = random(outputs, dtype=dtype, seed=2), random(rows, outputs, dtype=dtype, seed=3)
    packed, exact = kernels.pack(weight), x.double() @ weight.double().T
    assert_near(kernels.product(x, packed), exact)
    assert_near(kernels.product(x, packed, bias, other), exact + bias + other)
    assert_near(
        kernels.product(x.view(rows, 1, inputs), packed, None, other.view(rows, 1, outputs)).squeeze(1), exact + other
    )
    # A weight that lies otherwise in memory, and room for more inputs than it has.
    across = kernels.pack(weight.T.contiguous().T, inputs + 6)
    wide = torch.cat([x, random(rows, 6, dtype=dtype, seed=4)], 1)
    assert_near(kernels.product(wide, across), exact)


@pytest.mark.skipif(torch.bfloat16 not in TYPES, reason="bfloat16 has no products here")
def test_pairs_of_inputs_have_to_come_out_even() -> None:
    with pytest.raises(ValueError, match="by pairs of inputs, got 5"):
        kernels.pack(random(16, 5, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("missing", [None, 0, 1, 2])
@pytest.mark.parametrize("rows", [1, 9, 40, 300])
def test_projection_with_adapters_side_by_side(
    rows: int, missing: int | None, dtype: torch.dtype, threads: int
) -> None:
    sizes, ranks, inputs, scale = (64, 16, 48), (4, 16, 33), 40, 0.5
    x, weight = random(rows, inputs, dtype=dtype), random(sum(sizes), inputs, dtype=dtype, seed=1)
    bias, residual = random(sum(sizes), dtype=dtype, seed=2), random(rows, sum(sizes), dtype=dtype, seed=3)
    pairs = [
        None
        if part == missing
        else (random(r, inputs, dtype=torch.float32, seed=part), random(n, r, dtype=torch.float32))
        for part, (n, r) in enumerate(zip(sizes, ranks, strict=True))
    ]
    packed = kernels.pack(weight)
    plan = ProjectionPlan.of(packed.values, bias, sum(sizes), inputs, packed=True)
    base = x.double() @ weight.double().T + bias + residual
    updates = [
        torch.zeros(rows, n, dtype=torch.float64)
        if pair is None
        else (x.double() @ pair[0].to(dtype).double().T) @ (scale * pair[1]).to(dtype).double().T
        for pair, n in zip(pairs, sizes, strict=True)
    ]
    assert_near(project(x, plan, None, residual), base)
    found = project(x, plan, Update.of(pairs, sizes, scale, dtype), residual)
    assert_near(found, base + torch.cat(updates, 1))
    # To the same bits with a weight that is not packed beforehand, and in training.
    plain = ProjectionPlan.of(weight, bias, sum(sizes), inputs, packed=False)
    assert torch.equal(project(x, plain, None, residual), project(x, plan, None, residual))
    assert torch.equal(project(x, plain, Update.of(pairs, sizes, scale, dtype), residual), found)
    adapters = TrainedAdapters.of(pairs, sizes, scale)
    assert torch.equal(lora_forward(x, plain, residual, adapters)[0], found)
    assert torch.equal(lora_forward(x, plan, residual, adapters)[0], found)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("missing", [None, 0, 2])
@pytest.mark.parametrize(("rows", "sizes"), [(1, (16,)), (9, (64, 16, 48)), (301, (32, 160)), (2500, (48,))])
def test_gradients_of_a_projection_with_adapters(
    rows: int, sizes: tuple[int, ...], missing: int | None, dtype: torch.dtype, threads: int
) -> None:
    inputs, ranks, scale = 80, (4, 16, 33), 0.5
    x, weight = random(rows, inputs, dtype=dtype), random(sum(sizes), inputs, dtype=dtype, seed=1)
    outer = random(rows, sum(sizes), dtype=dtype, seed=2)
    pairs = [
        None
        if part == missing
        else (random(rank, inputs, dtype=torch.float32, seed=4), random(size, rank, dtype=torch.float32, seed=5))
        for part, (size, rank) in enumerate(zip(sizes, ranks, strict=False))
    ]
    if not any(pairs):
        pytest.skip("nothing is adapted")
    adapters = TrainedAdapters.of(pairs, sizes, scale)
    plan = ProjectionPlan.of(weight, None, sum(sizes), inputs, packed=False)
    _, inner = lora_forward(x, plan, None, adapters)
    x_grad, found = lora_backward(outer, x, inner, weight, adapters, with_input=True)
    assert x_grad is not None
    exact = x.double().requires_grad_()
    leaves = [None if pair is None else tuple(t.double().requires_grad_() for t in pair) for pair in pairs]
    parts = [
        x.new_zeros(rows, size, dtype=torch.float64) if leaf is None else exact @ leaf[0].T @ leaf[1].T * scale
        for leaf, size in zip(leaves, sizes, strict=True)
    ]
    (exact @ weight.double().T + torch.cat(parts, 1)).backward(outer.double())
    assert exact.grad is not None
    assert_relatively_near(x_grad, exact.grad, dtype)
    for leaf, pair in zip(leaves, found, strict=True):
        assert (leaf is None) == (pair is None)
        if leaf is not None and pair is not None:
            assert_relatively_near(pair[0], leaf[0].grad, dtype)
            assert_relatively_near(pair[1] * scale, leaf[1].grad, dtype)
    again = lora_backward(outer, x, inner, weight, adapters, with_input=False)
    assert again[0] is None
    assert all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(again[1], found, strict=True) if a and b
    )


def assert_relatively_near(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Near for the size of the whole tensor, as sums of many products of this type are."""
    bound = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert got.shape == expected.shape
    assert (got.double() - expected).abs().max() <= bound * expected.abs().max()


def both_ways(policy: LoraPolicy, monkeypatch: pytest.MonkeyPatch, prompts: list[list[int]], n: int) -> tuple[Any, Any]:
    """Samples of the policy with one call for each step, and layer by layer."""
    params, calls = SamplingParams(max_tokens=40, stop=(), seed=3), []
    step = Stepper.__call__
    monkeypatch.setattr(Stepper, "__call__", lambda *given: calls.append(len(given[1])) or step(*given))
    ours = policy.sampler().sample(prompts, n, params)
    assert max(calls) >= len(prompts), "no step was taken in one call"
    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "of", lambda decoder: None)
        decoder = policy.base.fused
        assert decoder is not None
        decoder.unpack()
        theirs = policy.sampler().sample(prompts, n, params)
        decoder.unpack()
    return ours, theirs


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [1, 3, 2 * CHUNK + 3])
def test_steps_are_those_of_the_layers(family: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = stirred_policy(family_base(family))
    prompts = [random_tokens(i, length) for i, length in enumerate((3, 16, 40, 17))]
    ours, theirs = both_ways(policy, monkeypatch, prompts, n)
    for one, other in zip(chain(*ours), chain(*theirs), strict=True):
        assert one.tokens == other.tokens
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=5e-5)


@pytest.mark.parametrize(
    "config", [{"rank": 1}, {"rank": 40, "alpha": 9.0}, {"train_mlp": False}, {"train_attn": False}]
)
def test_steps_with_adapters_of_any_shape(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    policy = stirred_policy(tiny_base(), **config)
    ours, theirs = both_ways(policy, monkeypatch, [random_tokens(i, 9) for i in range(5)], 2)
    for one, other in zip(chain(*ours), chain(*theirs), strict=True):
        assert one.tokens == other.tokens
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=5e-5)


@pytest.mark.skipif(torch.bfloat16 not in TYPES, reason="bfloat16 has no products here")
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_in_bfloat16_are_as_near_to_the_learner_as_the_layers_are(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = stirred_policy(family_base(family, dtype=torch.bfloat16))
    prompts = [random_tokens(i, 20) for i in range(6)]
    off = []
    for way in both_ways(policy, monkeypatch, prompts, 4):
        found = [(prompt, c) for prompt, group in zip(prompts, way, strict=True) for c in group]
        learner = policy.forward([datum(prompt + c.tokens) for prompt, c in found]).logprobs
        pairs = [(scored[-len(c.tokens) :], c.logprobs) for scored, (_, c) in zip(learner, found, strict=True)]
        off.append(np.mean([np.abs(scored - sampled).mean() for scored, sampled in pairs]))
    assert off[0] < 1.2 * off[1] + 1e-3


def test_a_decoder_with_odd_sizes_goes_layer_by_layer() -> None:
    base = tiny_base(hidden_size=72, num_attention_heads=3, num_key_value_heads=1, head_dim=24)
    sampler = base.sampler()
    assert isinstance(base.fused, FusedDecoder) and base.fused.stepper is None
    assert len(sampler.sample([random_tokens(0, 5)], params=SamplingParams(max_tokens=3, stop=()))[0][0].tokens) == 3


def test_prompts_that_are_not_used_any_more_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = stirred_policy(tiny_base()).sampler()
    for seed in range(3):
        sampler.sample([random_tokens(seed, 30)], 4, SamplingParams(max_tokens=5, stop=(), seed=seed))
        assert len(sampler._packed) <= 1
