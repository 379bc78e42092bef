"""Packs token sequences into prefix trees, so that whatever sequences share is computed once.

A `Pack` is a forest laid out flat in depth-first order: node `i` is one token in one context, and the sequences that
begin alike (a common system prompt, the prompt of a group, equal replies) run through the same nodes. Attention follows
the tree: a node sees its ancestors and itself. The pack also plans that attention as a few batches of dense blocks.

Suffixes: `T` nodes of a pack, `B` blocks of a batch, `N` queries and `K` keys of a block, both padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

QUERY_CHUNK = 256
"""Longest run of queries in one block: bounds the scores held at a time, and skips the empty half of long chains."""
KEY_ROW_COST = 16
"""Cost of gathering one key row into a block, in units of one query-key pair."""
BLOCK_COST = 256
"""Fixed cost of one more block, in the same unit."""
PADDING_ALLOWED = 1.3
"""How much padding may enlarge a batch of blocks."""
KNOWN_WEIGHT = 0.25
"""What a node with keys and values counts in a pack's size: it costs memory and no multiplication."""


@dataclass(frozen=True, slots=True)
class BlockBatch:
    """Dense attention blocks of about one shape; -1 is padding.

    Attributes:
        queries_BN, keys_BK: nodes.
        from_keys: the keys, flat, with the first node in place of padding.
        from_queries: the queries' rows among the nodes that are computed, flat, with some row in place of padding.
        to_queries: the same, with one past the last row in place of padding.
        real_BN: False where a query is padding; None if none is.
    """

    queries_BN: torch.Tensor
    keys_BK: torch.Tensor
    from_queries: torch.Tensor
    from_keys: torch.Tensor
    to_queries: torch.Tensor
    real_BN: torch.Tensor | None

    @classmethod
    def of(cls, queries_BN: torch.Tensor, keys_BK: torch.Tensor, row_T: torch.Tensor, rows: int) -> BlockBatch:
        """A batch whose queries lie in `rows` rows, node `i` in row `row_T[i]`."""
        flat, real_BN = queries_BN.flatten(), queries_BN >= 0
        from_queries = row_T[flat.clamp(min=0)]
        return cls(
            queries_BN,
            keys_BK,
            from_queries=from_queries,
            from_keys=keys_BK.flatten().clamp(min=0),
            to_queries=torch.where(flat >= 0, from_queries, rows),
            real_BN=None if bool(real_BN.all()) else real_BN,
        )


@dataclass(frozen=True, slots=True)
class TreePlan:
    """What a pack's attention has to know, in plain arrays.

    Attributes:
        nodes: int32, each query's node; the queries are the nodes that are computed.
        ends, positions: int32, of all nodes, as a pack has them.
        ranges: `(ranges, 4)`, queries from and to, `runs` from and to.
        runs: `(runs, 2)`, nodes from and to: what the last query of a range sees, and the range's own.
    """

    nodes: np.ndarray
    ends: np.ndarray
    positions: np.ndarray
    ranges: np.ndarray
    runs: np.ndarray


@dataclass(frozen=True)
class Pack:
    """Sequences laid out as a forest in depth-first order.

    Attributes:
        members: indices of the packed sequences among those given.
        paths: for each member the nodes that it runs through, root first.
        tokens_T, positions_T: each node's token and its depth.
        ends_T: one past the last node of each node's subtree; `a` is `b` or an ancestor of it iff `a <= b < ends[a]`.
        fresh_T: the nodes that are computed; None if all are. The others have keys and values already.
        parents: each node's parent, -1 for a root.
        ranges: the attention plan: where runs of queries begin and end, each node in exactly one.
    """

    members: list[int]
    paths: list[np.ndarray]
    tokens_T: torch.Tensor
    positions_T: torch.Tensor
    ends_T: torch.Tensor
    fresh_T: torch.Tensor | None
    parents: np.ndarray
    ranges: list[tuple[int, int]]
    _biases: dict[tuple[int, torch.dtype, int | None], torch.Tensor] = field(default_factory=dict)

    @property
    def num_nodes(self) -> int:
        return len(self.tokens_T)

    @cached_property
    def blocks(self) -> list[BlockBatch]:
        """The ranges as batches of dense blocks; each node that is computed is a query exactly once."""
        return _batches(self.ranges, self.parents, self._fresh, self.tokens_T.device)

    @cached_property
    def tree(self) -> TreePlan:
        """The ranges for the compiled attention."""
        rows, runs = [], [np.zeros((0, 2), dtype=np.int64)]
        count = 0
        for start, stop in self.ranges:
            first, last = np.searchsorted(self._fresh, (start, stop)).tolist()
            if first == last:
                continue
            seen = np.append(_ancestors(self.parents, start), np.arange(start, self._fresh[last - 1] + 1))
            breaks = np.flatnonzero(np.diff(seen) != 1) + 1
            runs.append(np.stack([seen[np.append(0, breaks)], seen[np.append(breaks - 1, -1)] + 1], 1))
            rows.append((first, last, count, count + len(runs[-1])))
            count += len(runs[-1])
        return TreePlan(
            nodes=self._fresh.astype(np.int32),
            ends=self.ends_T.numpy().astype(np.int32),
            positions=self.positions_T.numpy().astype(np.int32),
            ranges=np.asarray(rows, dtype=np.int64),
            runs=np.concatenate(runs),
        )

    @property
    def _fresh(self) -> np.ndarray:
        return np.arange(self.num_nodes) if self.fresh_T is None else self.fresh_T.cpu().numpy()

    def fresh(self, x_T: torch.Tensor) -> torch.Tensor:
        """What belongs to the nodes that are computed."""
        return x_T if self.fresh_T is None else x_T.index_select(0, self.fresh_T)

    def rows(self, nodes: torch.Tensor) -> torch.Tensor:
        """Where nodes that are computed lie among those."""
        return nodes if self.fresh_T is None else torch.searchsorted(self.fresh_T, nodes)

    def bias_BNK(self, batch: int, dtype: torch.dtype, window: int | None) -> torch.Tensor:
        """0 where a query may look, -inf elsewhere; padded queries look at key 0 so that no row is empty.

        Args:
            batch: which of `blocks`.
            dtype: of the result.
            window: a sliding window in tokens, or None.
        """
        key = (batch, dtype, window)
        if key not in self._biases:
            queries_BN1, keys_B1K = self.blocks[batch].queries_BN[:, :, None], self.blocks[batch].keys_BK[:, None, :]
            allowed = (keys_B1K >= 0) & (keys_B1K <= queries_BN1) & (queries_BN1 < self.ends_T[keys_B1K])
            if window is not None:
                allowed &= self.positions_T[queries_BN1] - self.positions_T[keys_B1K] < window
            allowed[:, :, 0] |= queries_BN1[:, :, 0] < 0
            self._biases[key] = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
                ~allowed, float("-inf")
            )
        return self._biases[key]


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """How many leading tokens two sequences share."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    return int(differ[0]) if len(differ) else length


def pack_sequences(
    sequences: Sequence[Sequence[int]],
    *,
    max_nodes: int,
    known: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> list[Pack]:
    """Packs sequences into as few forests of at most `max_nodes` nodes as a greedy pass in sorted order finds.

    A sequence longer than `max_nodes` gets a pack of its own.

    Args:
        sequences: the token sequences.
        max_nodes: the most nodes of a pack; one that is known counts a quarter.
        known: of each sequence how many of the first tokens have keys and values already; by default none. The last
            token never counts as known.
        device: where the tensors go.

    Raises:
        ValueError: a sequence is empty.
    """
    have = (
        [0] * len(sequences) if known is None else [min(n, len(s) - 1) for n, s in zip(known, sequences, strict=True)]
    )
    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    for index, array in enumerate(arrays):
        if not len(array):
            raise ValueError(f"sequence {index} has no token; drop empty sequences before packing")
    # Big-endian bytes sort like the token lists themselves, so neighbours share the longest prefixes.
    order = sorted(range(len(arrays)), key=lambda i: arrays[i].astype(">u4").tobytes())
    packs: list[Pack] = []
    members: list[int] = []
    nodes = 0.0
    for index in order:
        shared = common_prefix(arrays[members[-1]], arrays[index]) if members else 0
        new = _weight(len(arrays[index]), have[index], shared)
        if members and nodes + new > max_nodes:
            packs.append(_build(members, arrays, have, device))
            members, nodes, new = [], 0.0, _weight(len(arrays[index]), have[index], 0)
        members.append(index)
        nodes += new
    if members:
        packs.append(_build(members, arrays, have, device))
    return packs


def _weight(length: int, known: int, shared: int) -> float:
    """What a sequence adds to a pack that has its first `shared` tokens."""
    return length - max(known, shared) + KNOWN_WEIGHT * max(0, known - shared)


def _build(members: list[int], arrays: list[np.ndarray], known: Sequence[int], device: torch.device | str) -> Pack:
    paths: list[np.ndarray] = []
    tokens: list[np.ndarray] = []
    parents: list[np.ndarray] = []
    fresh: list[np.ndarray] = []
    count = 0
    for place, index in enumerate(members):
        sequence = arrays[index]
        shared = common_prefix(arrays[members[place - 1]], sequence) if place else 0
        new = np.arange(count, count + len(sequence) - shared)
        path = np.concatenate([paths[-1][:shared], new]) if shared else new
        if len(new):
            parents.append(np.concatenate([[path[shared - 1] if shared else -1], new[:-1]]))
            tokens.append(sequence[shared:])
            fresh.append(new[max(0, known[index] - shared) :])
        count += len(new)
        paths.append(path)
    parent_T, fresh_F = np.concatenate(parents), np.concatenate(fresh)
    depth_T, end_T = _depths_and_ends(parent_T)
    return Pack(
        members=members,
        paths=paths,
        tokens_T=torch.as_tensor(np.concatenate(tokens), device=device),
        positions_T=torch.as_tensor(depth_T, device=device),
        ends_T=torch.as_tensor(end_T, device=device),
        fresh_T=None if len(fresh_F) == count else torch.as_tensor(fresh_F, device=device),
        parents=parent_T,
        ranges=_plan(parent_T, depth_T, end_T),
    )


def _depths_and_ends(parent_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count = len(parent_T)
    depth, size = [0] * count, [1] * count
    parents = parent_T.tolist()
    for node, parent in enumerate(parents):
        if parent >= 0:
            depth[node] = depth[parent] + 1
    for node in range(count - 1, -1, -1):
        if parents[node] >= 0:
            size[parents[node]] += size[node]
    return np.asarray(depth), np.arange(count) + np.asarray(size)


def _plan(parent_T: np.ndarray, depth_T: np.ndarray, end_T: np.ndarray) -> list[tuple[int, int]]:
    """Cuts the forest into query ranges `[start, stop)` of least total cost.

    Each subtree is either one dense block, or its unbranched stem as a block and its branches planned by themselves.
    """
    count = len(parent_T)
    children = np.bincount(parent_T[parent_T >= 0], minlength=count)
    starts_stem = np.ones(count, dtype=bool)
    starts_stem[1:] = (parent_T[1:] != np.arange(count - 1)) | (children[:-1] != 1)
    stems = np.flatnonzero(starts_stem).tolist()
    stem_end = dict(zip(stems, [*stems[1:], count], strict=True))
    below: dict[int, float] = {}
    dense: dict[int, bool] = {}
    for stem in reversed(stems):
        depth, end, stop = int(depth_T[stem]), int(end_T[stem]), stem_end[stem]
        as_one = _cost(end - stem, depth)
        branches = 0.0
        child = stop
        while child < end:
            branches += below[child]
            child = int(end_T[child])
        split = _cost(stop - stem, depth) + branches
        dense[stem] = as_one <= split and end - stem <= QUERY_CHUNK
        below[stem] = as_one if dense[stem] else split
    ranges: list[tuple[int, int]] = []
    covered = 0
    for stem in stems:
        if stem < covered:
            continue
        stop = int(end_T[stem]) if dense[stem] else stem_end[stem]
        ranges += [(chunk, min(chunk + QUERY_CHUNK, stop)) for chunk in range(stem, stop, QUERY_CHUNK)]
        covered = stop
    return ranges


def _cost(queries: int, depth: int) -> float:
    keys = queries + depth
    return queries * keys + KEY_ROW_COST * keys + BLOCK_COST


def _batches(
    ranges: list[tuple[int, int]], parent_T: np.ndarray, fresh_F: np.ndarray, device: torch.device | str
) -> list[BlockBatch]:
    """Pads blocks of similar shape to common batches; only nodes to compute are queries."""
    blocks = []
    row_T = np.zeros(len(parent_T), dtype=np.int64)
    row_T[fresh_F] = np.arange(len(fresh_F))
    rows = torch.as_tensor(row_T, device=device)
    for start, stop in ranges:
        queries = fresh_F[slice(*np.searchsorted(fresh_F, (start, stop)))]
        if not len(queries):
            continue
        blocks.append((queries, np.append(_ancestors(parent_T, start), np.arange(start, queries[-1] + 1))))
    blocks.sort(key=lambda block: (len(block[1]), len(block[0])))
    batches: list[list[tuple[np.ndarray, np.ndarray]]] = []
    area = widest = 0
    for block in blocks:
        area += len(block[0]) * len(block[1])
        widest = max(widest, len(block[0]))
        padded = widest * len(block[1]) * (len(batches[-1]) + 1) if batches else 0
        if not batches or padded > PADDING_ALLOWED * area + BLOCK_COST:
            batches.append([])
            area, widest = len(block[0]) * len(block[1]), len(block[0])
        batches[-1].append(block)
    return [
        BlockBatch.of(
            _padded([b[0] for b in batch], device), _padded([b[1] for b in batch], device), rows, len(fresh_F)
        )
        for batch in batches
    ]


def _ancestors(parent_T: np.ndarray, node: int) -> np.ndarray:
    """A node's ancestors, root first."""
    found = []
    node = int(parent_T[node])
    while node >= 0:
        found.append(node)
        node = int(parent_T[node])
    return np.asarray(found[::-1], dtype=np.int64)


def _padded(rows: list[np.ndarray], device: torch.device | str) -> torch.Tensor:
    out = np.full((len(rows), max(map(len, rows))), -1, dtype=np.int64)
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = values
    return torch.as_tensor(out, device=device)
