"""The documents of a corpus: where they come from, and how they lie on disk beside an index.

A corpus is opened before it is read: its fingerprint tells whether an index of it is there already, and then nothing
else has to be read.
"""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeAlias, overload

import numpy as np

from ...datasets import BadData, Rows, Source, StoredRows, load_rows, text_of

Columns: TypeAlias = Mapping[str, str]
"""Which column of a row is a document's "id", "title" or "text", where it has another name than the usual ones."""

_USUAL = {
    "id": ("id", "_id", "docid", "doc_id"),
    "title": ("title", "name"),
    "text": ("text", "contents", "content", "passage", "body"),
}
_TITLE_LINE = re.compile(r'"?(.*?)"?\n(.*)', re.DOTALL)
_PIECES, _STARTS = "documents.bin", "documents.npy"


class Document(NamedTuple):
    """One entry of a corpus."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Documents that have not been read yet.

    Attributes:
        name: what to call it in messages.
        fingerprint: tells it from any corpus with other documents.
        read: gives the documents.
    """

    name: str
    fingerprint: str
    read: Callable[[], Iterable[Document]]


def open_corpus(
    source: Source, *, split: str | None = None, config: str | None = None, columns: Columns | None = None
) -> Corpus:
    """A corpus from a file, a folder, the hub, or rows.

    A row has the text of a document, and may have a title and an id; `columns` names them where the usual names do not
    fit. Wikipedia dumps whose column "contents" begins with the title on a line of its own are understood.

    Args:
        source: see `datasets.load_rows`; so are `split` and `config`.
        columns: see `Columns`.

    Raises:
        DataNotFound, ImportError: see `datasets.load_rows`.
        BadData: a row has no text.
        ValueError: `columns` names something else than "id", "title" and "text".
    """
    columns = dict(columns or {})
    if unknown := set(columns) - set(_USUAL):
        raise ValueError(f"columns names the columns of {sorted(_USUAL)}, got {sorted(unknown)} as well")
    name = str(source) if isinstance(source, str | os.PathLike) else "the rows given"

    def read() -> Iterator[Document]:
        return documents_in(load_rows(source, split=split, config=config), columns=columns, where=name)

    own = fingerprint_of(source, split=split, config=config)
    if own is None:
        return corpus_of(list(read()), name=name)
    return Corpus(name=name, fingerprint=_digest([own, repr(sorted(columns.items()))]), read=read)


def fingerprint_of(source: Source, *, split: str | None, config: str | None) -> str | None:
    """Tells these rows from others without reading them one by one; None if they are in memory.

    Raises:
        DataNotFound, BadData, ImportError: see `datasets.load_rows`.
    """
    if not isinstance(source, str | os.PathLike):
        return None
    path = Path(source).expanduser()
    # A data set of the hub knows its own fingerprint.
    own = _files_fingerprint(path) if path.exists() else _hub_fingerprint(load_rows(source, split=split, config=config))
    return None if own is None else _digest([own, repr((split, config))])


def _hub_fingerprint(rows: Rows) -> str | None:
    return rows.fingerprint if isinstance(rows, StoredRows) else None


def corpus_of(documents: Sequence[Document], *, name: str) -> Corpus:
    """A corpus of documents that are in memory."""
    pieces = (piece for document in documents for piece in document)
    return Corpus(name=name, fingerprint=_digest(pieces), read=lambda: documents)


def documents_in(rows: Rows, *, columns: Columns, where: str) -> Iterator[Document]:
    """The documents that the rows of a data set hold."""

    def names(of: str) -> tuple[str, ...]:
        return (columns[of],) if of in columns else _USUAL[of]

    for number, row in enumerate(rows):
        text = text_of(row, *names("text"), where=where)
        title = text_of(row, *names("title"), where=where) if any(row.get(it) for it in names("title")) else ""
        if not title and "text" not in columns and row.get("text") is None and (match := _TITLE_LINE.fullmatch(text)):
            title, text = match.groups()
        has_id = any(row.get(it) is not None for it in names("id"))
        yield Document(text_of(row, *names("id"), where=where) if has_id else str(number), title, text)


class StoredDocuments(Sequence[Document]):
    """The documents in a folder, read from disk one by one; processes share the memory that holds them."""

    def __init__(self, folder: Path) -> None:
        self._starts = np.load(folder / _STARTS, mmap_mode="r", allow_pickle=False)
        path = folder / _PIECES
        # An empty file cannot be mapped.
        self._pieces = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)

    @staticmethod
    def write(documents: Iterable[Document], folder: Path) -> int:
        """Writes documents into a folder and returns how many there are."""
        starts = array("q", [0])
        with (folder / _PIECES).open("wb") as file:
            for document in documents:
                for piece in document:
                    # JSON can hold half a surrogate pair, which is no UTF-8.
                    starts.append(starts[-1] + file.write(piece.encode("utf-8", "surrogatepass")))
        np.save(folder / _STARTS, np.frombuffer(starts, dtype=np.int64), allow_pickle=False)
        return len(starts) // 3

    def __len__(self) -> int:
        return (len(self._starts) - 1) // 3

    @overload
    def __getitem__(self, index: int) -> Document: ...

    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...

    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} documents, none has the number {index}")
        first = 3 * (index % len(self))
        bounds = self._starts[first : first + 4].tolist()
        whole = self._pieces[bounds[0] : bounds[3]].tobytes()
        cuts = [bound - bounds[0] for bound in bounds]
        pieces = [whole[start:end].decode("utf-8", "surrogatepass") for start, end in pairwise(cuts)]
        return Document(*pieces)


def _digest(pieces: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        data = piece.encode("utf-8", "surrogatepass")
        # With the length before it, no piece can pass for the end of another.
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _files_fingerprint(path: Path) -> str:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        raise BadData(f"{path} has no files")
    return _digest(
        part
        for file in files
        for part in (str(file.relative_to(path)), _file_digest(file, file.stat().st_size, file.stat().st_mtime_ns))
    )


@lru_cache(maxsize=256)
def _file_digest(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
