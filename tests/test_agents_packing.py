"""Packing: sequences become prefix trees, and the blocks of the attention plan cover each tree exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from forests import BLOCK_SHAPES, SEQUENCES, packed
from hypothesis import given
from hypothesis import strategies as st
from loragym.agents.packing import Pack, pack_sequences


def prefixes(sequences: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(s[: i + 1]) for s in sequences for i in range(len(s))}


def node_prefixes(pack: Pack, sequences: list[list[int]]) -> dict[int, tuple[int, ...]]:
    """Each node's own context, read off the paths."""
    return {
        int(node): tuple(sequences[member][: depth + 1])
        for member, path in zip(pack.members, pack.paths, strict=True)
        for depth, node in enumerate(path)
    }


@given(SEQUENCES)
def test_the_path_of_each_sequence_spells_it(sequences: list[list[int]]) -> None:
    (pack,) = packed(sequences)
    assert sorted(pack.members) == list(range(len(sequences)))
    for member, path in zip(pack.members, pack.paths, strict=True):
        assert pack.tokens_T[torch.as_tensor(path)].tolist() == sequences[member]
        assert pack.positions_T[torch.as_tensor(path)].tolist() == list(range(len(path)))


@given(SEQUENCES)
def test_equal_prefixes_are_the_same_nodes_and_nothing_else_is(sequences: list[list[int]]) -> None:
    (pack,) = packed(sequences)
    seen = node_prefixes(pack, sequences)
    assert len(set(seen.values())) == len(seen) == pack.num_nodes
    assert set(seen.values()) == prefixes(sequences)


@given(SEQUENCES)
def test_a_subtree_is_a_range_of_nodes(sequences: list[list[int]]) -> None:
    (pack,) = packed(sequences)
    context = node_prefixes(pack, sequences)
    for a in range(pack.num_nodes):
        below = {b for b in context if context[b][: len(context[a])] == context[a]}
        assert below == set(range(a, int(pack.ends_T[a])))


@given(SEQUENCES, BLOCK_SHAPES)
def test_each_node_is_a_query_exactly_once(sequences: list[list[int]], shape: dict[str, Any]) -> None:
    (pack,) = packed(sequences, **shape)
    queries = torch.cat([block.queries_BN.flatten() for block in pack.blocks])
    assert sorted(queries[queries >= 0].tolist()) == list(range(pack.num_nodes))
    assert max(block.queries_BN.shape[1] for block in pack.blocks) <= shape["QUERY_CHUNK"]


@given(SEQUENCES, BLOCK_SHAPES, st.sampled_from([None, 1, 3]))
def test_a_node_sees_its_ancestors_within_the_window_and_itself(
    sequences: list[list[int]], shape: dict[str, Any], window: int | None
) -> None:
    (pack,) = packed(sequences, **shape)
    context = node_prefixes(pack, sequences)
    for index, block in enumerate(pack.blocks):
        bias_BNK = pack.bias_BNK(index, torch.float32, window)
        assert set(bias_BNK.unique().tolist()) <= {0.0, float("-inf")}
        assert (bias_BNK == 0).any(-1).all(), "a row without a key has no softmax"
        for queries, keys, bias_NK in zip(block.queries_BN.tolist(), block.keys_BK, bias_BNK, strict=True):
            for query, bias_K in zip(queries, bias_NK, strict=True):
                if query >= 0:
                    own = context[query]
                    depths = range(len(own) if window is None else min(window, len(own)))
                    expected = sorted(own[: len(own) - back] for back in depths)
                    assert sorted(context.get(key, ()) for key in keys[bias_K == 0].tolist()) == expected


@given(SEQUENCES, st.integers(1, 30))
def test_no_pack_is_larger_than_allowed_unless_one_sequence_is(sequences: list[list[int]], max_nodes: int) -> None:
    packs = packed(sequences, max_nodes)
    assert sorted(m for pack in packs for m in pack.members) == list(range(len(sequences)))
    for pack in packs:
        lengths = {len(sequences[m]) for m in pack.members}
        assert pack.num_nodes <= max_nodes or (lengths == {pack.num_nodes} and max(lengths) > max_nodes)


def test_a_group_of_sixteen_replies_pays_for_its_prompt_once() -> None:
    prompt = list(range(100))
    (pack,) = pack_sequences([[*prompt, 200 + i, 7] for i in range(16)], max_nodes=1000)
    assert pack.num_nodes == 100 + 16 * 2


def test_a_block_of_attention_never_spans_sequences_that_share_nothing() -> None:
    """The cost model's purpose: long unrelated sequences are blocks of their own, not one masked square."""
    sequences = [[i, *range(100, 200)] for i in range(4)]
    (pack,) = pack_sequences(sequences, max_nodes=1000)
    assert sum(block.queries_BN.shape[0] for block in pack.blocks) == 4
    assert all(block.keys_BK.shape[1] == 101 for block in pack.blocks)


def test_an_empty_sequence_is_an_error() -> None:
    with pytest.raises(ValueError, match="sequence 1 has no token"):
        pack_sequences([[1], []], max_nodes=10)


@pytest.mark.parametrize("order", [sorted, lambda s: sorted(s, reverse=True)])
def test_the_order_of_the_sequences_does_not_matter(order: Callable[[list[list[int]]], list[list[int]]]) -> None:
    sequences = [[1, 2, 3], [1, 2], [9], [1, 4, 4], [1, 2, 5]]
    (a,), (b,) = packed(sequences), packed(order(sequences))
    assert torch.equal(a.tokens_T, b.tokens_T) and torch.equal(a.ends_T, b.ends_T)
