"""What a retriever is: anything that finds the documents nearest to a query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from .documents import Document

MAX_QUERY_WORDS = 256
"""What a longer query says after these is not looked at."""

_FEW = 32


class Hit(NamedTuple):
    """A document that was found, and how well it fits: more is better, on the retriever's own scale."""

    document: Document
    score: float


@runtime_checkable
class Retriever(Protocol):
    """Finds documents. Its answers depend on the query alone, and it may be asked by several threads at once."""

    def search(self, query: str, k: int) -> Sequence[Hit]:
        """The `k` best documents for any text at all, best first; fewer where fewer fit."""
        ...


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """The places of the `k` largest of these numbers, largest first; of equal ones the first come first."""
    count = len(scores)
    if k <= _FEW:
        # Much quicker than a partition, which is slow where many numbers are equal, as those of most documents are.
        left = scores.copy()
        places = np.empty(min(k, count), dtype=np.intp)
        for number in range(len(places)):
            places[number] = place = left.argmax()
            left[place] = -np.inf
        return places
    if k >= count:
        return np.lexsort((np.arange(count), -scores))
    least = np.partition(scores, count - k)[count - k]
    above = np.flatnonzero(scores > least)
    chosen = np.concatenate([above, np.flatnonzero(scores == least)[: k - len(above)]])
    return chosen[np.lexsort((chosen, -scores[chosen]))]


def checked_k(k: int) -> int:
    """`k` if it is a number of documents.

    Raises:
        ValueError: it is none.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k is a whole number of documents, at least 1, got {k!r}")
    return int(k)
