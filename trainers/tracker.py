"""TensorBoard behind a thread: a board that raises or blocks costs its curves and a warning, never the run."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Figures that may wait to be written; those that come while so many wait are lost to the board."""
CLOSING_SECONDS = 10.0


class Tracker:
    """Writes figures to a board, in their order, in a thread of its own.

    What it misses is in `metrics.jsonl` all the same.

    Args:
        make: opens the board: a `board.Board`, or what has its methods.
        closing_seconds: how long `close` waits for what is left to be written.
    """

    def __init__(
        self, make: Callable[[], Any], *, max_waiting: int = MAX_WAITING, closing_seconds: float = CLOSING_SECONDS
    ) -> None:
        self._closing_seconds = closing_seconds
        self._figures: queue.Queue[tuple[str, float, int] | None] = queue.Queue(max_waiting)
        self._warned = False
        self._thread = threading.Thread(target=self._work, args=(make,), name="loragym tracker", daemon=True)
        self._thread.start()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Queues a figure; never waits and never raises."""
        try:
            self._figures.put_nowait((name, value, step))
        except queue.Full:
            self._warn("it takes no figures any more")

    def close(self) -> None:
        """Waits until all is written, or until that takes too long."""
        with contextlib.suppress(queue.Full):
            self._figures.put(None, timeout=self._closing_seconds)
        self._thread.join(self._closing_seconds)
        if self._thread.is_alive():
            self._warn(f"it was not done after {self._closing_seconds:g} s")

    def _work(self, make: Callable[[], Any]) -> None:
        board: Any = None
        while (figure := self._figures.get()) is not None:
            if self._warned:
                continue
            try:
                if board is None:
                    board = make()
                board.add_scalar(*figure)
                if self._figures.empty():
                    board.flush()
            except Exception as error:
                self._warn(f"{type(error).__name__}: {error}")
        if board is not None:
            try:
                board.close()
            except Exception as error:
                self._warn(f"{type(error).__name__}: {error}")

    def _warn(self, problem: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "TensorBoard fails (%s): its curves end here, the run goes on, and metrics.jsonl has all figures",
                problem,
            )
