"""A time limit on Python code that somebody else wrote, in whichever thread it runs.

It breaks loops of Python statements; a single call into C, such as a match of a regular expression, is not broken off
before it returns.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator


class TimeUp(BaseException):
    """The time was up. No `Exception`, so that what is broken off does not handle it itself."""


_POLL_SECONDS = 0.25


class _Watchdog:
    """Looks at the deadlines of other threads now and then and interrupts them; to set one costs next to nothing."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._deadlines: dict[int, float] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, name="loragym time limit", daemon=True).start()

    def begin(self, thread: int, deadline: float) -> None:
        with self._lock:
            self._deadlines[thread] = deadline

    def end(self, thread: int) -> None:
        with self._lock:
            if self._deadlines.pop(thread, None) is None:
                # Interrupted at the last moment: what has not been raised yet must not be raised later.
                _raise_in(thread, None)

    def _watch(self) -> None:
        while True:
            time.sleep(_POLL_SECONDS)
            with self._lock:
                now = time.monotonic()
                for thread in [thread for thread, deadline in self._deadlines.items() if deadline <= now]:
                    del self._deadlines[thread]
                    _raise_in(thread, TimeUp)


def _raise_in(thread: int, exception: type[BaseException] | None) -> None:
    raised = None if exception is None else ctypes.py_object(exception)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)


_watchdog: _Watchdog | None = None
_starting = threading.Lock()


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `TimeUp` in the block if it takes longer than `seconds`; not to be nested in one thread."""
    global _watchdog
    with _starting:
        # Threads do not survive a fork.
        if _watchdog is None or _watchdog.pid != os.getpid():
            _watchdog = _Watchdog()
        watchdog = _watchdog
    thread = threading.get_ident()
    watchdog.begin(thread, time.monotonic() + seconds)
    try:
        yield
    finally:
        watchdog.end(thread)
