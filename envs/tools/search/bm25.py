"""Retrieval by words: BM25, as `bm25s` computes it, in an index that is built once and mapped into memory."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from .cached import cached_folder, key_of
from .documents import Corpus, Document, StoredDocuments
from .retriever import MAX_QUERY_WORDS, Hit, best, checked_k
from .text import words

logger = logging.getLogger(__name__)

_FORMAT = 1
"""Goes up when the same documents and settings would give other files."""
_MAX_QUERY_CHARS = 32 * MAX_QUERY_WORDS


@dataclass(frozen=True, slots=True, kw_only=True)
class BM25Settings:
    """The two constants of BM25 (Robertson and Zaragoza 2009) in Lucene's form.

    Attributes:
        k1: how much a word's second and third occurrence add.
        b: how much long documents are held back, from 0 to 1.
        title_weight: how many times a word of the title counts.
    """

    k1: float = 1.5
    b: float = 0.75
    title_weight: int = 5

    def __post_init__(self) -> None:
        if not self.k1 >= 0 or not 0 <= self.b <= 1:
            raise ValueError(f"k1 is at least 0 and b is from 0 to 1, got k1={self.k1!r}, b={self.b!r}")
        if self.title_weight < 0:
            raise ValueError(f"title_weight is at least 0, got {self.title_weight!r}")


class BM25Index:
    """A `Retriever` that compares words: case and accents do not count, word forms do.

    `build` makes one in memory, `open_bm25` one that is kept in the cache.
    """

    def __init__(self, documents: Sequence[Document], model: Any, settings: BM25Settings) -> None:
        self.documents, self.settings = documents, settings
        self._model = model

    @classmethod
    def build(cls, documents: Iterable[Document], settings: BM25Settings = BM25Settings()) -> BM25Index:
        """An index in memory.

        Raises:
            ValueError: there are no documents, or not a word in them.
            ImportError: bm25s is not installed.
        """
        held = list(documents)
        return cls(held, _indexed(held, settings), settings)

    @classmethod
    def load(cls, folder: Path, settings: BM25Settings) -> BM25Index:
        """The index in a folder; the parts of it that grow with the corpus stay on disk until they are needed."""
        model = _bm25s().BM25.load(folder, mmap=True, load_corpus=False)
        return cls(StoredDocuments(folder), model, settings)

    def save(self, folder: Path) -> None:
        """Writes the index and its documents into a folder."""
        StoredDocuments.write(self.documents, folder)
        self._model.save(folder, show_progress=False)

    def search(self, query: str, k: int) -> list[Hit]:
        """The `k` best documents that share a word with the query; of equally good ones the first come first."""
        k = checked_k(k)
        known = self._model.vocab_dict
        ids = [known[word] for word in words(query[:_MAX_QUERY_CHARS])[:MAX_QUERY_WORDS] if word in known]
        if not ids:
            return []
        scores = self._model.get_scores_from_ids(ids)
        found = best(scores, k)
        return [Hit(self.documents[number], float(scores[number])) for number in found.tolist() if scores[number] > 0]

    def search_batch(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """`search` for each of several queries."""
        return [self.search(query, k) for query in queries]


def open_bm25(corpus: Corpus, settings: BM25Settings = BM25Settings()) -> BM25Index:
    """The index of a corpus, from the cache; it is built if it is not there.

    Where the cache cannot be written, the index is built in memory, and a warning is logged.

    Raises:
        ValueError: the corpus has no documents, or not a word in them.
        ImportError: bm25s is not installed.
    """
    key = key_of(format=_FORMAT, corpus=corpus.fingerprint, library=_bm25s().__version__, **asdict(settings))

    def make(folder: Path) -> None:
        logger.info("building the BM25 index of %s", corpus.name)
        BM25Index.build(corpus.read(), settings).save(folder)

    try:
        folder = cached_folder("bm25", key, make)
    except OSError as error:
        logger.warning("the BM25 index of %s cannot be kept (%s); it is built in memory", corpus.name, error)
        return BM25Index.build(corpus.read(), settings)
    return _loaded(folder, settings, (folder / "manifest.json").stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _loaded(folder: Path, settings: BM25Settings, changed: int) -> BM25Index:
    return BM25Index.load(folder, settings)


def _indexed(documents: Sequence[Document], settings: BM25Settings) -> Any:
    vocabulary: dict[str, int] = {}
    ids = [
        [
            vocabulary.setdefault(word, len(vocabulary))
            for word in chain(words(document.title) * settings.title_weight, words(document.text))
        ]
        for document in documents
    ]
    if not vocabulary:
        raise ValueError(f"the corpus has {len(documents)} documents, and not a word to search for in them")
    model = _bm25s().BM25(k1=settings.k1, b=settings.b, method="lucene")
    model.index((ids, vocabulary), show_progress=False)
    return model


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise ImportError("retrieval by BM25 needs the package bm25s: pip install 'loragym[search]'") from error
    return bm25s
