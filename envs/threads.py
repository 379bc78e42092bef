"""Threads that never keep the interpreter from ending: those of `ThreadPoolExecutor` are waited for at its exit."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DaemonExecutor(Executor):
    """An executor whose threads are daemons.

    Args:
        max_workers: how many threads at most; each is started when there is a call for it.
        name: of the threads.
        initializer: called first in each thread.
    """

    def __init__(self, max_workers: int, name: str, initializer: Callable[[], object] | None = None) -> None:
        if max_workers < 1:
            raise ValueError(f"max_workers is at least 1, got {max_workers}")
        self._max_workers, self._name, self._initializer = max_workers, name, initializer
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._open: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queues a call.

        Raises:
            RuntimeError: the executor is shut down.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError(f"the threads {self._name!r} are shut down")
            self._open = {other for other in self._open if not other.done()} | {future}
            if len(self._threads) < min(self._max_workers, len(self._open)):
                thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()
        self._calls.put((future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None) -> None:
        """Ends the threads after the calls that are queued.

        Args:
            wait: until they have ended.
            cancel_futures: those that have not begun are not made.
            timeout: seconds to wait at most; threads that still run then are left behind.
        """
        with self._lock:
            self._closed = True
        if cancel_futures:
            for future in list(self._open):
                future.cancel()
        for _ in self._threads:
            self._calls.put(None)
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads if wait else ():
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        if self._initializer is not None:
            self._initializer()
        while (task := self._calls.get()) is not None:
            future, call = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del task, future, call
