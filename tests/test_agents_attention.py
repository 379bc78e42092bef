"""Attention over a tree is plain masked softmax attention, forward and backward, however it is cut into blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from forests import BLOCK_SHAPES, SEQUENCES, packed
from hypothesis import given, settings
from hypothesis import strategies as st
from loragym.agents import kernels
from loragym.agents.attention import AttentionOptions, CompiledTreeAttention, TreeAttention
from loragym.agents.packing import Pack

OPTIONS = [
    AttentionOptions(scale=0.7),
    AttentionOptions(scale=1.3, window=3),
    AttentionOptions(scale=1.0, softcap=0.8),
    AttentionOptions(scale=2.0, softcap=1.5, window=2),
]
FOREST = [[1, 2, 3, 4, 5], [1, 2, 3, 7], [1, 2, 8], [1, 2, 3, 4], [9, 9, 9]]


def plain_attention(
    q_THD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor, pack: Pack, options: AttentionOptions
) -> torch.Tensor:
    """Every node by itself: softmax over the nodes on its path, as the textbook has it."""
    repeats = q_THD.shape[1] // k_TGD.shape[1]
    k_THD, v_THD = k_TGD.repeat_interleave(repeats, 1), v_TGD.repeat_interleave(repeats, 1)
    out: list[torch.Tensor | None] = [None] * pack.num_nodes
    for path in pack.paths:
        for depth, node in enumerate(path.tolist()):
            first = 0 if options.window is None else max(0, depth + 1 - options.window)
            seen = torch.as_tensor(path[first : depth + 1])
            scores_HK = torch.einsum("hd,khd->hk", q_THD[node], k_THD[seen]) * options.scale
            if options.softcap:
                scores_HK = options.softcap * torch.tanh(scores_HK / options.softcap)
            out[node] = torch.einsum("hk,khd->hd", scores_HK.softmax(-1), v_THD[seen])
    return torch.stack([node for node in out if node is not None])


def inputs(
    nodes: int, heads: int = 4, groups: int = 2, size: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(nodes, heads, size), (nodes, groups, size), (nodes, groups, size)]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [tensor.requires_grad_() for tensor in made]


@settings(max_examples=60, deadline=None)
@given(SEQUENCES, BLOCK_SHAPES, st.sampled_from(OPTIONS), st.sampled_from([(4, 2), (3, 1), (2, 2)]))
def test_tree_attention_is_plain_attention_forward_and_backward(
    sequences: list[list[int]], shape: dict[str, Any], options: AttentionOptions, heads: tuple[int, int]
) -> None:
    (pack,) = packed(sequences, **shape)
    ours, plain = inputs(pack.num_nodes, *heads), inputs(pack.num_nodes, *heads)
    out, expected = TreeAttention.apply(*ours, pack, options), plain_attention(*plain, pack, options)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
    (direction,) = inputs(pack.num_nodes, *heads, seed=5)[:1]
    out.backward(direction.detach())
    expected.backward(direction.detach())
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-10)


needs_kernels = pytest.mark.skipif(not kernels.can_pack(torch.float32), reason="no C++ compiler")


@needs_kernels
@settings(max_examples=100, deadline=None)
@given(SEQUENCES, BLOCK_SHAPES, st.sampled_from(OPTIONS), st.sampled_from([(4, 2, 16), (3, 1, 32), (2, 2, 16)]))
def test_compiled_attention_is_plain_attention_forward_and_backward(
    sequences: list[list[int]], shape: dict[str, Any], options: AttentionOptions, heads: tuple[int, int, int]
) -> None:
    (pack,) = packed(sequences, **shape)
    close_to_plain(pack, heads, options, torch.float32, 1e-5)


LONG = [list(range(700)), [*range(300), *range(900, 1000)], [*range(300), *range(900, 950), 1], [5, 6], [5]]
"""Longer than a piece of queries and than a block of nodes, with branches in the middle of blocks."""


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("heads", [(6, 3, 32), (7, 1, 16), (2, 2, 64)])
@pytest.mark.parametrize("options", [*OPTIONS, AttentionOptions(scale=0.2, window=100)])
def test_compiled_attention_over_long_sequences(
    options: AttentionOptions, heads: tuple[int, int, int], threads: int
) -> None:
    (pack,) = packed(LONG)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        close_to_plain(pack, heads, options, torch.float32, 1e-5)
        if kernels.can_pack(torch.bfloat16):
            close_to_plain(pack, heads, options, torch.bfloat16, 3e-2)
    finally:
        torch.set_num_threads(before)


def close_to_plain(
    pack: Pack, heads: tuple[int, int, int], options: AttentionOptions, dtype: torch.dtype, tolerance: float
) -> None:
    ours = inputs(pack.num_nodes, *heads, dtype=dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in ours]
    (direction,) = inputs(pack.num_nodes, *heads, dtype=dtype, seed=5)[:1]
    out, expected = CompiledTreeAttention.apply(*ours, pack, options), TreeAttention.apply(*exact, pack, options)
    out.backward(direction.detach())
    expected.backward(direction.detach().double())
    for a, b in [(out, expected), *((a.grad, b.grad) for a, b in zip(ours, exact, strict=True))]:
        assert a is not None
        assert b is not None
        assert a.dtype == dtype
        assert (a.double() - b).abs().max() <= tolerance * max(1.0, b.abs().max())


@needs_kernels
def test_compiled_attention_gives_the_same_bits_each_time() -> None:
    (pack,) = packed(LONG)
    seen = []
    for _ in range(3):
        ours = inputs(pack.num_nodes, 6, 3, 32, dtype=torch.float32)
        out = CompiledTreeAttention.apply(*ours, pack, OPTIONS[0])
        out.square().sum().backward()
        seen.append([out.detach(), *(tensor.grad for tensor in ours)])
    for again in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], again, strict=True))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    "shape", [{}, {"QUERY_CHUNK": 1}, {"QUERY_CHUNK": 2, "BLOCK_COST": 0, "PADDING_ALLOWED": 100.0}]
)
def test_gradients_are_those_of_finite_differences(options: AttentionOptions, shape: dict[str, Any]) -> None:
    (pack,) = packed(FOREST, **shape)
    assert torch.autograd.gradcheck(
        lambda q, k, v: TreeAttention.apply(q, k, v, pack, options), inputs(pack.num_nodes, size=2), fast_mode=False
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_lower_precision_differs_by_rounding_only(dtype: torch.dtype, tolerance: float) -> None:
    (pack,) = packed(FOREST)
    ours = inputs(pack.num_nodes, size=16, dtype=dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in ours]
    out, expected = TreeAttention.apply(*ours, pack, OPTIONS[0]), plain_attention(*exact, pack, OPTIONS[0])
    out.sum().backward()
    expected.sum().backward()
    for a, b in [(out, expected), *((a.grad, b.grad) for a, b in zip(ours, exact, strict=True))]:
        assert a.dtype == dtype
        assert (a.double() - b).abs().max() <= tolerance * b.abs().max()


def test_what_is_kept_for_the_backward_pass_grows_linearly_with_the_tokens() -> None:
    kept = {}
    for length in (200, 400):
        (pack,) = packed([list(range(length))])
        stored: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=stored: (s.append(t.numel()), t)[1], lambda t: t):
            TreeAttention.apply(*inputs(length), pack, OPTIONS[0])
        kept[length] = sum(stored)
    assert kept[400] == 2 * kept[200] > 0
