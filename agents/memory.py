"""Memory: freed memory is kept; where none is left, half as much is computed at once and the call is made again."""

from __future__ import annotations

import ctypes
import functools
import gc
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

import torch

from .batches import Datum
from .optimizer import Adam

if TYPE_CHECKING:
    from .base_model import BaseModel

logger = logging.getLogger(__name__)

KEPT_BYTES = 2**25 - 2**16
"""Up to so many bytes at once glibc can be told to keep, see `keep_freed_memory`."""
_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""In the messages of allocators that have no exception of their own: the CPU's, MPS's, cuBLAS's."""


class OutOfMemory(RuntimeError):
    """Memory ran out, and nothing that is computed at once can be halved any more."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator says that there is no memory left, of the device or of the machine."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    is_plain = isinstance(error, RuntimeError) and not isinstance(error, OutOfMemory)
    return is_plain and any(words in str(error) for words in _WORDS)


def release_memory() -> None:
    """Gives back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def note_shortage(base: BaseModel, text: str) -> None:
    """Logs what was halved, and keeps it for who trains on the base."""
    logger.warning("%s", text)
    base.shortages.append(text)


class Learns(Protocol):
    name: str
    tokens_per_pass: int
    optimizer: Adam

    @property
    def base(self) -> BaseModel: ...


S = TypeVar("S", bound=Learns)
P = ParamSpec("P")
R = TypeVar("R")
Method = Callable[Concatenate[S, Sequence[Datum], P], R]


def halved_when_short(method: Method[S, P, R]) -> Method[S, P, R]:
    """Makes a call with half as many tokens in a pass when memory runs out; the result differs by rounding alone.

    Gradients are put back to what they were before the call that failed. The smaller size stays for the calls to come.

    Raises:
        OutOfMemory: each sequence has a pass of its own already.
    """

    @functools.wraps(method)
    def patient(self: S, data: Sequence[Datum], /, *args: P.args, **kwargs: P.kwargs) -> R:
        while True:
            before = self.optimizer.gathered()
            try:
                return method(self, data, *args, **kwargs)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                problem = str(error) or type(error).__name__
            # Out of the handler, whose traceback holds on to the tensors of the call that failed.
            self.optimizer.put_back(before)
            release_memory()
            _halve(self, data, problem)

    return patient


def _halve(learner: Learns, data: Sequence[Datum], problem: str) -> None:
    at_once = learner.tokens_per_pass
    lengths = [len(datum.tokens) for datum in data] or [0]
    if at_once < min(lengths) or at_once <= 1:
        raise OutOfMemory(
            f"out of memory with one sequence of up to {max(lengths)} tokens at a time ({problem.strip()[:300]}). "
            "Use shorter sequences (max-tokens, max-length), a smaller model or lora-rank, dtype bfloat16, or a device "
            "with more memory"
        )
    learner.tokens_per_pass = at_once // 2
    note_shortage(
        learner.base,
        f"out of memory: {learner.name!r} goes on with {at_once // 2} tokens in a pass instead of {at_once} "
        f"({problem.strip()[:200]})",
    )


@functools.cache
def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed for the next pass instead of handing it back to the system page by page.

    A pass allocates and frees the same megabytes again and again; by default each round pays for fresh, zeroed pages.
    Other allocators are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3
    mallopt(m_mmap_threshold, KEPT_BYTES + 2**16)  # the largest that glibc takes; larger tensors still go back at once
    mallopt(m_trim_threshold, 2**30)
    mallopt(m_top_pad, 2**26)
