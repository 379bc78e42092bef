"""Keys and values of finished completions, kept for the prompts that go on from them.

A conversation's next prompt begins with its last prompt and reply, so of each turn only what is new has to be computed.

Suffixes: `X` rows of a cache, `L` tokens, `N` nodes of a pack, `T` all of them; `G`, `D` as in `attention`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from .packing import Pack

_MULTIPLIER = 0x9E3779B97F4A7C15
"""Odd, so that its powers never vanish modulo 2**64."""


@dataclass(slots=True, eq=False)
class KeyValues:
    """Each layer's keys and values of some rows of tokens, `(X, G, L, D)`."""

    keys: dict[int, torch.Tensor]
    values: dict[int, torch.Tensor]

    @property
    def num_bytes(self) -> int:
        return sum(x.nbytes for x in (*self.keys.values(), *self.values.values()))


class Span(NamedTuple):
    """The first `length` tokens of a row, which stand one behind the other in a sequence."""

    cache: KeyValues
    row: int
    length: int


class Finished:
    """Finished sequences by their tokens; the oldest go where there are too many.

    Args:
        max_bytes: the most that the caches behind them may hold together.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._spans: dict[tuple[int, ...], list[Span]] = {}
        self._by_hash: dict[tuple[int, int], tuple[int, ...]] = {}
        self._lengths: Counter[int] = Counter()
        self._users: Counter[KeyValues] = Counter()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._spans)

    def add(self, tokens: tuple[int, ...], spans: Sequence[Span]) -> None:
        """Keeps a sequence; its spans together are as long as it is."""
        self.drop([tokens])
        self._spans[tokens] = list(spans)
        self._by_hash[len(tokens), int(_hashes(tokens)[-1])] = tokens
        self._lengths[len(tokens)] += 1
        for cache in {span.cache for span in spans}:
            if not self._users[cache]:
                self._bytes += cache.num_bytes
            self._users[cache] += 1
        while self._bytes > self.max_bytes:
            self.drop([next(iter(self._spans))])

    def longest_prefix(self, tokens: tuple[int, ...]) -> tuple[int, ...] | None:
        """The longest sequence that is kept and that `tokens` goes on from."""
        lengths = sorted((length for length in self._lengths if length < len(tokens)), reverse=True)
        hashes = _hashes(tokens) if lengths else ()
        for length in lengths:
            found = self._by_hash.get((length, int(hashes[length - 1])))
            if found is not None and found == tokens[:length]:
                return found
        return None

    def spans(self, tokens: tuple[int, ...]) -> list[Span]:
        return self._spans[tokens]

    def drop(self, sequences: Iterable[tuple[int, ...]]) -> None:
        """Forgets sequences, as far as they are kept."""
        for tokens in sequences:
            spans = self._spans.pop(tokens, None)
            if spans is None:
                continue
            self._by_hash.pop((len(tokens), int(_hashes(tokens)[-1])), None)
            self._lengths[len(tokens)] -= 1
            self._lengths += Counter()  # drops what is at 0
            for cache in {span.cache for span in spans}:
                self._users[cache] -= 1
                if not self._users[cache]:
                    del self._users[cache]
                    self._bytes -= cache.num_bytes


def _hashes(tokens: Sequence[int]) -> np.ndarray:
    """A hash of each beginning of a sequence, modulo 2**64."""
    powers = np.cumprod(np.full(len(tokens), _MULTIPLIER, dtype=np.uint64))
    return np.cumsum((np.asarray(tokens, dtype=np.uint64) + 1) * powers)


class PackPast:
    """The keys and values of a pack's nodes that are not computed, out of kept sequences.

    Args:
        pack: of the sequences `members`.
        spans: for each member those of its first tokens; none where nothing of it is known.
    """

    def __init__(self, pack: Pack, spans: Sequence[Sequence[Span]]) -> None:
        parts: dict[KeyValues, list[np.ndarray]] = {}
        count = 0
        for path, known in zip(pack.paths, spans, strict=True):
            # A node belongs to the first member that runs through it.
            introduced, count = count, max(count, int(path[-1]) + 1)
            start = 0
            for cache, row, length in known:
                stop = min(start + length, len(path) - 1)
                at = np.arange(start, stop)[path[start:stop] >= introduced]
                parts.setdefault(cache, []).append(np.stack([path[at], np.full(len(at), row), at - start]))
                start = stop
        device = pack.tokens_T.device
        self._parts = [
            (cache, *torch.as_tensor(np.concatenate(columns, axis=1), device=device))
            for cache, columns in parts.items()
        ]

    def fill(self, layer: int, k_TGD: torch.Tensor, v_TGD: torch.Tensor) -> None:
        """Writes a layer's keys and values to the nodes that are known."""
        for cache, nodes_N, rows_N, places_N in self._parts:
            for whole, kept in ((k_TGD, cache.keys[layer]), (v_TGD, cache.values[layer])):
                whole.index_copy_(0, nodes_N, kept[rows_N, :, places_N])
