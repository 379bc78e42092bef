"""The compiled kernels give what torch's operators give; without a compiler those do the work."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from loragym.agents import SamplingParams, elementwise, frozen_linear, kernels
from loragym.agents.attention import AttentionOptions
from tiny_engine import FAMILIES, family_base, stirred_policy

needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler on this machine"
)
TYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


@pytest.fixture
def fresh() -> Iterator[None]:
    """Looks for the library anew, within the test and after it."""
    kernels.functions.cache_clear()
    yield
    kernels.functions.cache_clear()


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def both(monkeypatch: pytest.MonkeyPatch, call):  # type: ignore[no-untyped-def]
    """What `call` gives with kernels and without."""
    assert kernels.functions() is not None
    ours = call()
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "usable", lambda *_: False)
        return ours, call()


def with_gradient(function, x: torch.Tensor, *arguments):  # type: ignore[no-untyped-def]
    """Output and the gradient of the input."""

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        y = function(leaf, *arguments)
        y.backward(random(*y.shape, dtype=y.dtype, seed=5))
        assert leaf.grad is not None
        return y.detach(), leaf.grad

    return call


def assert_near(got: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    for a, b in zip(got, expected, strict=True):
        bound = TOLERANCE[a.dtype]
        torch.testing.assert_close(a, b, rtol=bound, atol=bound)


@needs_compiler
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(1, 5), (7, 64), (300, 96), (9, 3, 40)])
def test_norm(shape: tuple[int, ...], offset: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = 3 * random(*shape, dtype=dtype), random(shape[-1], dtype=dtype, seed=1)
    assert_near(*both(monkeypatch, with_gradient(elementwise.rms_norm, x, weight, offset, 1e-5)))
    with torch.no_grad():
        # Heads cut out of wider rows, as queries and keys are out of the stacked projection.
        wide = random(shape[0], 4, shape[-1], dtype=dtype)[:, 1:3]
        assert_near(*both(monkeypatch, lambda: (elementwise.rms_norm(wide, weight, offset, 1e-5),)))


@needs_compiler
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("activation", ["silu", "tanh"])
@pytest.mark.parametrize("shape", [(1, 2), (5, 96), (70, 1000)])
def test_gate(shape: tuple[int, int], activation: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = 4 * random(*shape, dtype=dtype)
    x.view(-1)[:2] = torch.tensor([-200.0, 200.0])  # where an exponential runs over or under
    assert_near(*both(monkeypatch, with_gradient(elementwise.gated, x, activation)))


@needs_compiler
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 1, 2), (6, 3, 16), (200, 5, 64)])
def test_rotary(shape: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _, size = shape
    x = random(*shape, dtype=dtype)
    cos, sin = random(rows, 1, size, dtype=dtype, seed=1), random(rows, 1, size, dtype=dtype, seed=2)
    assert_near(*both(monkeypatch, with_gradient(elementwise.rotary, x, cos, sin)))
    with torch.no_grad():
        wide = torch.cat([x, x, x], 1)
        got, expected = both(monkeypatch, lambda: (elementwise.rotary(wide.clone()[:, : shape[1]], cos, sin),))
        assert_near(got, expected)


@needs_compiler
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("L", [0, 9])
def test_attention_of_single_tokens(L: int, window: int | None, softcap: float | None, dtype: torch.dtype) -> None:
    B, G, R, D, capacity = 5, 2, 3, 16, 12
    options = AttentionOptions(scale=0.4, softcap=softcap, window=window)
    stacked = random(B, G * R + 2 * G, D, dtype=dtype)
    q, k, v = stacked.split([G * R, G, G], 1)
    caches = random(B + 1, G, capacity, D, dtype=dtype, seed=1), random(B + 1, G, capacity, D, dtype=dtype, seed=2)
    before = tuple(cache.clone() for cache in caches)
    place_B = torch.tensor([0, 3, 11, 5, 7])
    lengths_B = torch.tensor([L, 0, L // 2, L, 1 if L else 0])
    prompt_k = random(B, G, L, D, dtype=dtype, seed=3)
    queries = q.view(B, G, R, D)
    scores = (queries.float() @ prompt_k.float().transpose(-1, -2) * options.scale).to(dtype)
    given = scores.clone()
    out = kernels.attend(q, k, v, caches, place_B, scores, lengths_B, options)
    for row, (place, length) in enumerate(zip(place_B.tolist(), lengths_B.tolist(), strict=True)):
        for cache, old, new in zip(caches, before, (k, v), strict=True):
            assert torch.equal(cache[row, :, place], new[row])
            kept = [t for t in range(capacity) if t != place]
            assert torch.equal(cache[row, :, kept], old[row, :, kept])
        own = queries[row].float() @ caches[0][row, :, : place + 1].float().transpose(-1, -2) * options.scale
        prompt = given[row, ..., :length].float()
        all_scores = torch.cat([prompt, own], -1)
        if softcap:
            all_scores = softcap * torch.tanh(all_scores / softcap)
        at = torch.arange(length + place + 1)
        if window is not None:
            all_scores[..., at[-1] - at >= window] = float("-inf")
        p = torch.softmax(all_scores, -1)
        expected = p[..., length:] @ caches[1][row, :, : place + 1].float()
        assert_near((out[row].view(G, R, D),), (expected.to(dtype),))
        assert_near((scores[row, ..., :length],), (p[..., :length].to(dtype),))
        assert not scores[row, ..., length:].any()
    assert all(torch.equal(cache[B], old[B]) for cache, old in zip(caches, before, strict=True))


@needs_compiler
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("missing", [None, 0, 1])
@pytest.mark.parametrize(("rows", "K", "sizes"), [(1, 20, (7, 5)), (5, 64, (64, 130, 3)), (48, 200, (192, 64))])
def test_adapter_of_few_rows(
    rows: int, K: int, sizes: tuple[int, ...], missing: int | None, dtype: torch.dtype
) -> None:
    pairs: list[tuple[torch.Tensor, torch.Tensor] | None] = [
        (random(rank, K, dtype=dtype, seed=i) / K**0.5, random(size, rank, dtype=dtype, seed=9 + i))
        for i, (size, rank) in enumerate(zip(sizes, (6, 3, 32), strict=False))
    ]
    if missing is not None:
        pairs[missing] = None
    stack = frozen_linear._Stack.of(pairs, sizes, 0.5, dtype)
    x, y = random(rows, K, dtype=dtype, seed=20), random(rows, sum(sizes), dtype=dtype, seed=21)
    expected = stack.add_to(y.clone(), x)
    stack.pack()
    assert stack.for_few_rows is not None
    assert_near((stack.add_to(y.clone(), x),), (expected,))


@needs_compiler
def test_a_nan_stays_one() -> None:
    for dtype in TYPES:
        x = torch.full((2, 8), float("nan"), dtype=dtype)
        assert elementwise.gated(x, "silu").isnan().all()
        assert elementwise.rms_norm(x, torch.ones(8, dtype=dtype), 0.0, 1e-5).isnan().all()


@needs_compiler
@pytest.mark.parametrize("family", FAMILIES)
def test_samples_are_those_without_kernels(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = stirred_policy(family_base(family))
    prompts = [[5, 6, 7, 8], [5, 6, 9], [11], list(range(20, 60))]

    def sample() -> list[tuple[list[int], list[float]]]:
        params = SamplingParams(max_tokens=12, stop=(), seed=3)
        groups = policy.sampler().sample(prompts, 3, params)
        alone = policy.sampler().sample(prompts, 1, params)
        return [(c.tokens, c.logprobs) for group in groups + alone for c in group]

    with_kernels, without = both(monkeypatch, sample)
    for (tokens, logprobs), (other, expected) in zip(with_kernels, without, strict=True):
        assert tokens == other
        assert logprobs == pytest.approx(expected, abs=2e-5)


def test_float64_is_left_to_torch() -> None:
    x = torch.zeros(2, 8, dtype=torch.float64)
    assert not kernels.usable(x)
    assert not kernels.usable(x.float(), x)


@pytest.mark.usefixtures("fresh")
def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with caplog.at_level(logging.INFO, logger=kernels.__name__):
        assert not kernels.usable(torch.zeros(2, 2))
    assert "no C++ compiler" in caplog.text and "CXX" in caplog.text
    assert elementwise.gated(torch.ones(3, 8), "silu").shape == (3, 4)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("compiler", ["/nowhere/c++", "false"])
def test_a_compiler_that_fails_is_told_of_once(
    compiler: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LORAGYM_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    assert not kernels.usable(torch.zeros(2, 2))
    assert not kernels.usable(torch.zeros(2, 2))
    assert len(caplog.records) == 1
    assert "LORAGYM_KERNELS=0" in caplog.text and compiler in caplog.text
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.usefixtures("fresh")
def test_switched_off(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("LORAGYM_KERNELS", "0")
    assert not kernels.usable(torch.zeros(2, 2))
    assert not caplog.records


@needs_compiler
@pytest.mark.usefixtures("fresh")
def test_a_damaged_library_is_made_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORAGYM_CACHE", str(tmp_path))
    (compiler,) = [shutil.which("c++") or shutil.which("g++")]
    library = kernels._compiled([str(compiler)])
    size = library.stat().st_size
    library.write_bytes(b"not a library")
    assert kernels.usable(torch.zeros(2, 2))
    assert library.stat().st_size == size
    assert [path.name for path in library.parent.iterdir()] == [library.name]
