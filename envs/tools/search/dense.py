"""Retrieval by vectors: documents and queries are embedded, and the nearest by cosine are found."""

from __future__ import annotations

import hashlib
import importlib
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from .cached import cached_folder, key_of
from .documents import Corpus, Document, StoredDocuments
from .retriever import Hit, checked_k
from .text import folded
from .vectors import STORES, Store, chosen_store

logger = logging.getLogger(__name__)

Embed: TypeAlias = Callable[[list[str]], Any]
"""Texts to vectors: an array with a row for each text. With an attribute `name`, which says all that the vectors depend
on, its index is kept; without one it is made anew each time."""

_FORMAT = 1
_MAX_QUERY_CHARS = 8192


class CharacterNgrams:
    """An `Embed` without a model: counts of three-letter pieces of words, hashed into so many places.

    It finds what is spelt alike, misspelt names too, and knows nothing of meaning.

    Args:
        size: how many numbers a vector has.
    """

    def __init__(self, size: int | str = 1024) -> None:
        self.size = int(size)
        if self.size < 1:
            raise ValueError(f"size is at least 1, got {size!r}")
        self.name = f"character-ngrams-{self.size}"

    def __call__(self, texts: list[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), self.size), dtype=np.float32)
        for row, text in zip(vectors, texts, strict=True):
            marked = f" {' '.join(folded(text).split())} "
            places = [_place(marked[at : at + 3]) % self.size for at in range(len(marked) - 2)]
            np.add.at(row, places, 1.0)
        return np.sqrt(vectors)


class DenseIndex:
    """A `Retriever` that compares vectors; `open_dense` makes one.

    Attributes:
        documents: what is searched.
        store: where the vectors are kept.
    """

    def __init__(self, folder: Path, embed: Embed, store: str, *, query_prefix: str = "", owned: Any = None) -> None:
        self.documents, self.store = StoredDocuments(folder), store
        self._embed, self._query_prefix = embed, query_prefix
        self._vectors = STORES[store][0](folder)
        # A temporary folder lives as long as whoever reads it.
        self._owned = owned

    def search(self, query: str, k: int) -> list[Hit]:
        """The `k` documents nearest to the query."""
        return self.search_batch([query], k)[0]

    def search_batch(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """`search` for several queries, which are embedded together."""
        k = checked_k(k)
        if not queries:
            return []
        vectors = _embedded(self._embed, [self._query_prefix + query[:_MAX_QUERY_CHARS] for query in queries])
        return [
            [Hit(self.documents[number], float(product)) for number, product in zip(*found, strict=True)]
            for found in (
                (numbers.tolist(), products.tolist()) for numbers, products in self._vectors.nearest(vectors, k)
            )
        ]


def open_dense(
    corpus: Corpus,
    embed: Embed | str | None,
    *,
    store: Store = "auto",
    batch_size: int = 256,
    document_prefix: str = "",
    query_prefix: str = "",
) -> DenseIndex:
    """The vectors of a corpus, from the cache if `embed` has a name; they are made if they are not there.

    Args:
        corpus: what to search.
        embed: texts to vectors. As text: "module:object", or "module:class:argument" for an object to be made, such as
            "loragym.agents.embedders:SentenceEmbedder:sentence-transformers/all-MiniLM-L6-v2".
        store: "faiss", "lancedb" or "numpy"; "auto" is "faiss" where that is installed, else "numpy".
        batch_size: how many documents are embedded at once.
        document_prefix, query_prefix: what some models want before a text, as E5 wants "passage: " and "query: ".

    Raises:
        ValueError: there are no documents, or `embed` is not given or gives something else than finite vectors.
        ImportError: the store, or what `embed` names, is not installed.
    """
    kept, function = chosen_store(store), _function(embed)

    def make(folder: Path) -> None:
        logger.info("embedding %s", corpus.name)
        count = StoredDocuments.write(corpus.read(), folder)
        if not count:
            raise ValueError(f"{corpus.name} has no documents")
        with tempfile.TemporaryDirectory(prefix="loragym-vectors-") as scratch:
            documents = StoredDocuments(folder)
            texts = (f"{document_prefix}{_text(document)}" for document in documents)
            vectors = _all_embedded(function, texts, count, batch_size, Path(scratch) / "vectors.npy")
            STORES[kept][1](vectors, folder)

    name = getattr(function, "name", None)
    if isinstance(name, str) and name:
        key = key_of(format=_FORMAT, corpus=corpus.fingerprint, embed=name, store=kept, prefix=document_prefix)
        try:
            folder = cached_folder(f"dense-{kept}", key, make)
            return DenseIndex(folder, function, kept, query_prefix=query_prefix)
        except OSError as error:
            logger.warning("the vectors of %s cannot be kept: %s", corpus.name, error)
    temporary = tempfile.TemporaryDirectory(prefix="loragym-dense-")
    make(Path(temporary.name))
    return DenseIndex(Path(temporary.name), function, kept, query_prefix=query_prefix, owned=temporary)


def _text(document: Document) -> str:
    return f"{document.title}: {document.text}" if document.title else document.text


@lru_cache(maxsize=65536)
def _place(piece: str) -> int:
    return int.from_bytes(hashlib.blake2b(piece.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _function(embed: Embed | str | None) -> Embed:
    """The function that is meant by its name.

    Raises:
        ValueError: there is none.
        ImportError: its module cannot be imported.
    """
    if callable(embed):
        return embed
    how = "a function from a list of texts to an array, or its place as 'module:object' or 'module:class:argument'"
    if not isinstance(embed, str) or ":" not in embed:
        raise ValueError(f"dense retrieval needs embed=, {how}, got {embed!r}")
    module, name, *argument = embed.split(":", 2)
    try:
        found = getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise ValueError(f"embed={embed!r}: {error}; give {how}") from error
    made = found(argument[0]) if argument else found() if isinstance(found, type) else found
    if not callable(made):
        raise ValueError(f"embed={embed!r} is {made!r:.80}, which cannot be called; give {how}")
    function: Embed = made
    return function


def _embedded(embed: Embed, texts: list[str]) -> np.ndarray:
    """The vectors of texts, each of length 1; a vector of zeros stays one.

    Raises:
        ValueError: what `embed` gives is no array of finite numbers with a row for each text.
    """
    vectors = np.asarray(embed(texts), dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(texts) or not vectors.shape[1] or not np.isfinite(vectors).all():
        raise ValueError(
            f"embed gave an array of shape {vectors.shape} for {len(texts)} texts; a row of finite numbers for each "
            "was expected"
        )
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths == 0, 1, lengths), dtype=np.float32)


def _all_embedded(embed: Embed, texts: Iterable[str], count: int, batch_size: int, file: Path) -> np.ndarray:
    """The vectors of all documents, on disk, since they may be larger than the memory."""
    made: np.ndarray | None = None
    start = 0
    for batch in _batches(texts, batch_size):
        vectors = _embedded(embed, batch)
        if made is None:
            made = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(count, vectors.shape[1]))
        made[start : start + len(batch)] = vectors
        start += len(batch)
    assert made is not None
    return made


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, size)):
        yield batch
