"""How a run is told to stop: Ctrl-C or SIGTERM, heard at once where nothing is lost by it, else as soon as possible."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """The user stopped the run; the message says how to go on."""

    exit_code = 130


class Terminated(Interrupted, SystemExit):
    """The system asked the run to stop (SIGTERM); the message says how to go on. Uncaught, it is the exit code 143."""

    exit_code = 143

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.code = self.exit_code


ERRORS: dict[int, type[Interrupted]] = {signal.SIGINT: Interrupted, signal.SIGTERM: Terminated}
_DEFAULTS: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class Stop:
    """Turns the first Ctrl-C or SIGTERM into an exception, or notes it until `check`; a second one ends the process.

    A context manager; it puts back what it found. Outside of the main thread, and where the program has handlers of its
    own, it changes nothing.

    Args:
        may_abandon: whether what is being done may be left in the middle.
    """

    def __init__(self, may_abandon: Callable[[], bool] = lambda: True) -> None:
        self._may_abandon = may_abandon
        self._received: int | None = None
        self._found: dict[int, Any] = {}

    def check(self) -> None:
        """Raises what came while it could not be heard.

        Raises:
            Interrupted, Terminated: the process was asked to stop.
        """
        if self._received is not None:
            raise ERRORS[self._received]()

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number, default in _DEFAULTS.items():
                found = signal.getsignal(number)
                if found == default or isinstance(getattr(found, "__self__", None), Stop):
                    self._found[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, found in self._found.items():
            # One that has come stays with the default: the next one is the second.
            signal.signal(number, found if self._received is None else _DEFAULTS[number])

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        for each in self._found:
            signal.signal(each, _DEFAULTS[each])
        if self._may_abandon():
            self.check()
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"stopping when this step is done and saved; a second signal ends it at once\n")
