"""Random sequences that branch a lot, for tests of packing and of the attention over what is packed."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from loragym.agents import packing
from loragym.agents.packing import Pack, pack_sequences

# Three tokens branch a lot; they differ in every byte of their encoding, which the sorting goes by.
TOKENS = st.sampled_from([1, 255, 256 * 7 + 1])
SEQUENCES = st.lists(st.lists(TOKENS, min_size=1, max_size=12), min_size=1, max_size=9)
BLOCK_SHAPES = st.fixed_dictionaries(
    {
        "QUERY_CHUNK": st.sampled_from([1, 2, 5, 256]),
        "KEY_ROW_COST": st.sampled_from([0, 16]),
        "BLOCK_COST": st.sampled_from([0, 3, 256, 10**6]),
        "PADDING_ALLOWED": st.sampled_from([1.0, 1.3, 100.0]),
    }
)


def packed(sequences: list[list[int]], max_nodes: int = 10**6, **shape: float) -> list[Pack]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in shape.items():
            patch.setattr(packing, name, value)
        return pack_sequences(sequences, max_nodes=max_nodes)
