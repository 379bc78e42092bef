"""Embedding models for retrieval: what `loragym.envs.tools.search` takes as `embed`."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np


class SentenceEmbedder:
    """Texts to vectors by a model of `sentence-transformers`, loaded when the first text comes.

    Copies and other processes load the model for themselves; what is pickled is its name.

    Attributes:
        name: what the vectors depend on, so that an index of them can be kept.

    Args:
        model: a name on the hub, or a folder.
        device: "cpu", "cuda" and so on; None: the library's choice.
        batch_size: how many texts go through the model at once.
    """

    def __init__(self, model: str, *, device: str | None = None, batch_size: int = 32) -> None:
        self.model, self.device, self.batch_size = model, device, batch_size
        self.name = f"sentence-transformers {model}"
        self._loaded: Any = None
        self._lock = threading.Lock()

    def __call__(self, texts: list[str]) -> np.ndarray:
        """A row for each text.

        Raises:
            ImportError: sentence-transformers is not installed.
            OSError: the model cannot be found.
        """
        # A model is not safe to be used by two threads at once, and searches may run side by side.
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            vectors = self._loaded.encode(
                texts, batch_size=self.batch_size, convert_to_numpy=True, show_progress_bar=False
            )
        return np.asarray(vectors, dtype=np.float32)

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (self.model, self.device, self.batch_size)

    def _load(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ImportError(
                "embedding with a model needs the package sentence-transformers: pip install 'loragym[embeddings]'"
            ) from error
        return SentenceTransformer(self.model, device=self.device, trust_remote_code=False)


def _remade(model: str, device: str | None, batch_size: int) -> SentenceEmbedder:
    return SentenceEmbedder(model, device=device, batch_size=batch_size)
