"""Where vectors are kept and compared: in a plain array, in FAISS, or in LanceDB. All three search exactly."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from .retriever import best

Store = Literal["auto", "numpy", "faiss", "lancedb"]

_ROWS = 4096


class VectorStore(Protocol):
    """Vectors by number, in a folder."""

    def __len__(self) -> int: ...

    def nearest(self, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each row of `queries`: the numbers of the `k` vectors of largest inner product, and those products."""
        ...


class ArrayVectors:
    """A NumPy array that is mapped into memory; every vector is looked at."""

    def __init__(self, folder: Path) -> None:
        self._vectors = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)

    @staticmethod
    def write(vectors: np.ndarray, folder: Path) -> None:
        np.save(folder / "vectors.npy", vectors, allow_pickle=False)

    def __len__(self) -> int:
        return len(self._vectors)

    def nearest(self, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        # A few queries at a time, so that the table of products stays small.
        step = max(1, min(64, 2**26 // max(1, len(self._vectors))))
        for start in range(0, len(queries), step):
            for products in queries[start : start + step] @ self._vectors.T:
                numbers = best(products, k)
                yield numbers, products[numbers]


class FaissVectors:
    """A flat FAISS index, mapped into memory where FAISS can."""

    def __init__(self, folder: Path) -> None:
        faiss = _module("faiss")
        self._index = faiss.read_index(str(folder / "vectors.faiss"), faiss.IO_FLAG_MMAP)

    @staticmethod
    def write(vectors: np.ndarray, folder: Path) -> None:
        faiss = _module("faiss")
        index = faiss.IndexFlatIP(vectors.shape[1])
        for start in range(0, len(vectors), _ROWS):
            index.add(np.ascontiguousarray(vectors[start : start + _ROWS]))
        faiss.write_index(index, str(folder / "vectors.faiss"))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def nearest(self, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        products, numbers = self._index.search(np.ascontiguousarray(queries), min(k, len(self)))
        for row_numbers, row_products in zip(numbers, products, strict=True):
            yield _in_order(row_numbers, row_products)


class LanceVectors:
    """A LanceDB table without an approximate index."""

    def __init__(self, folder: Path) -> None:
        self._table = _module("lancedb").connect(str(folder / "lance")).open_table("vectors")
        self._count = int(self._table.count_rows())

    @staticmethod
    def write(vectors: np.ndarray, folder: Path) -> None:
        import pyarrow

        schema = pyarrow.schema(
            [("number", pyarrow.int64()), ("vector", pyarrow.list_(pyarrow.float32(), vectors.shape[1]))]
        )

        def batches() -> Iterator[Any]:
            for start in range(0, len(vectors), _ROWS):
                part = np.ascontiguousarray(vectors[start : start + _ROWS])
                column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(part.ravel()), vectors.shape[1])
                numbers = pyarrow.array(np.arange(start, start + len(part)))
                yield pyarrow.RecordBatch.from_arrays([numbers, column], schema=schema)

        _module("lancedb").connect(str(folder / "lance")).create_table("vectors", data=batches(), schema=schema)

    def __len__(self) -> int:
        return self._count

    def nearest(self, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for query in queries:
            found = self._table.search(query).distance_type("dot").limit(k).select(["number", "_distance"]).to_arrow()
            numbers = found["number"].to_numpy()
            # LanceDB gives one less the product as the distance.
            yield _in_order(numbers, np.asarray(1 - found["_distance"].to_numpy(), dtype=np.float32))


STORES: dict[str, tuple[Callable[[Path], VectorStore], Callable[[np.ndarray, Path], None], str | None]] = {
    "faiss": (FaissVectors, FaissVectors.write, "faiss"),
    "lancedb": (LanceVectors, LanceVectors.write, "lancedb"),
    "numpy": (ArrayVectors, ArrayVectors.write, None),
}
"""Each store: how it is opened, how it is written, and the module it needs."""


def chosen_store(store: Store) -> str:
    """The store that is meant; "auto" is FAISS where it is installed, and a plain array elsewhere.

    LanceDB, the slowest of the three on corpora that fit into memory, is taken where it is asked for.

    Raises:
        ValueError: there is none of that name.
        ImportError: its package is not installed.
    """
    if store == "auto":
        return "faiss" if importlib.util.find_spec("faiss") else "numpy"
    if store not in STORES:
        raise ValueError(f"store is one of {['auto', *STORES]}, got {store!r}")
    if module := STORES[store][2]:
        _module(module)
    return store


def _in_order(numbers: np.ndarray, products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest product first; of equal ones the smaller number first."""
    order = np.lexsort((numbers, -products))
    return numbers[order], products[order]


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = {"faiss": "faiss-cpu"}.get(name, name)
        raise ImportError(
            f"keeping vectors in {name} needs the package {package}: pip install 'loragym[dense]'; store='numpy' needs "
            "none"
        ) from error
