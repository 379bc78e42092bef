"""Running tools: side by side, with a time limit each, functions and coroutines alike.

A function runs in a thread, a coroutine in the event loop of a thread of its own, so it makes no difference whether the
caller has a running loop. Python cannot end a thread: a function that outlives its limit is *abandoned*. Its result is
thrown away when it comes, its thread lives on until then, and is no obstacle to the interpreter's end; when too many
are alive, further calls are refused. A coroutine is cancelled at its limit. Code that holds the interpreter's lock
without a break (`9**9**9`, a bad regular expression) stops the whole process and cannot be timed here; it needs a
process of its own, as `PythonTool` has.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .tool import ToolResult
from .values import as_text

logger = logging.getLogger(__name__)

Status = Literal["ok", "error", "timeout", "refused"]
MAX_ABANDONED = 16
_GRACE = 0.25
"""Seconds that a cancelled coroutine has to give way before its event loop counts as blocked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One call that is to be run: the function with its arguments, ready to be called with none."""

    name: str
    function: Callable[[], Any]
    is_async: bool
    time_limit: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOutcome:
    """What came of one call.

    Attributes:
        status: "ok"; "error" (the tool raised), "timeout" (it took too long) or "refused" (it was not run).
        content: what the model is told.
        result: what the tool asked for besides, if it was run to its end.
    """

    status: Status
    content: str
    result: ToolResult = field(default_factory=ToolResult)


@dataclass(slots=True)
class _Slot:
    """Where a running call leaves its outcome."""

    job: Job
    ended: threading.Event = field(default_factory=threading.Event)
    started: bool = False
    outcome: CallOutcome | None = None
    future: Any = None
    lane: _AsyncLane | None = None

    @property
    def is_running(self) -> bool:
        # A coroutine that is cancelled before its first step never starts, and so never ends.
        return self.started and not self.ended.is_set()


class CallRunner:
    """Runs the calls of one environment and remembers those that were abandoned."""

    def __init__(self, max_abandoned: int = MAX_ABANDONED) -> None:
        self.max_abandoned = max_abandoned
        self._abandoned: list[_Slot] = []
        self._lane: _AsyncLane | None = None

    @property
    def num_abandoned(self) -> int:
        """How many calls outlived their limit and are still running."""
        self._abandoned = [slot for slot in self._abandoned if slot.is_running]
        return len(self._abandoned)

    def run(self, jobs: Sequence[Job]) -> list[CallOutcome]:
        """Runs jobs at once; the outcomes come in the order of the jobs. Takes no longer than the longest limit."""
        if self.num_abandoned >= self.max_abandoned:
            text = f"Error: not run, because {self.num_abandoned} earlier calls are still running past their time limit"
            return [CallOutcome(status="refused", content=text) for _ in jobs]
        if len(jobs) == 1 and jobs[0].time_limit is None and not jobs[0].is_async:
            return [_carry_out(jobs[0], jobs[0].function)]
        start = time.monotonic()
        slots = [self._start(job) for job in jobs]
        return [self._wait(slot, start) for slot in slots]

    def close(self) -> None:
        """Ends the event loop, if there is one; abandoned threads end when their functions do."""
        if self._lane is not None:
            self._lane.close()
            self._lane = None

    def _start(self, job: Job) -> _Slot:
        slot = _Slot(job)
        if job.is_async:
            if self._lane is None:
                self._lane = _AsyncLane()
                # An environment that is dropped without `close` leaves no loop behind.
                weakref.finalize(self, self._lane.close)
            slot.lane = self._lane
            slot.future = self._lane.submit(slot)
        else:
            context = contextvars.copy_context()
            slot.started = True
            threading.Thread(
                target=context.run, args=(_fill, slot), name=f"loragym tool {job.name}", daemon=True
            ).start()
        return slot

    def _wait(self, slot: _Slot, start: float) -> CallOutcome:
        limit = slot.job.time_limit
        left = None if limit is None else max(0.0, start + limit - time.monotonic())
        if slot.ended.wait(left) and slot.outcome is not None:
            return slot.outcome
        if slot.future is not None:
            slot.future.cancel()
            assert slot.lane is not None
            if not slot.ended.wait(_GRACE) and slot.lane is self._lane and not slot.lane.responds(_GRACE):
                slot.lane.close()
                self._lane = None
        if slot.is_running:
            self._abandoned.append(slot)
        return CallOutcome(status="timeout", content=f"Error: {slot.job.name} took longer than {limit:g} seconds")


def _fill(slot: _Slot) -> None:
    try:
        slot.outcome = _carry_out(slot.job, slot.job.function)
    finally:
        slot.ended.set()


def _carry_out(job: Job, function: Callable[[], Any]) -> CallOutcome:
    """Calls, and puts what came of it into words: a tool may raise anything, `SystemExit` included."""
    try:
        value = function()
        if inspect.isawaitable(value):
            # A plain function around an async one. Its thread has no loop, unless it runs in the caller's own.
            value = asyncio.run(_awaited(value))
        return _in_words(value)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise
        return _failure(job, error)


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _in_words(value: Any) -> CallOutcome:
    result = value if isinstance(value, ToolResult) else ToolResult(content=value)
    return CallOutcome(status="ok", content=as_text(result.content), result=result)


def _failure(job: Job, error: BaseException) -> CallOutcome:
    logger.debug("tool %s failed", job.name, exc_info=error)
    try:
        text = str(error)
    except Exception as second:
        text = f"(its message cannot be shown: {type(second).__name__})"
    return CallOutcome(status="error", content=f"Error: {type(error).__name__}" + (f": {text}" if text else ""))


class _AsyncLane:
    """An event loop in a thread of its own, kept from call to call, so that what belongs to a loop stays usable."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self._work, name="loragym async tools", daemon=True).start()

    def submit(self, slot: _Slot) -> Any:
        return asyncio.run_coroutine_threadsafe(self._run(slot), self.loop)

    def responds(self, seconds: float) -> bool:
        """Whether the loop still turns, or is blocked by a coroutine that never gives way."""
        answered = threading.Event()
        self.loop.call_soon_threadsafe(answered.set)
        return answered.wait(seconds)

    def close(self) -> None:
        """Stops the loop as soon as it turns again; what still runs in it is cancelled."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._cancel_all)

    def _cancel_all(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.call_soon(self.loop.stop)

    def _work(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    @staticmethod
    async def _run(slot: _Slot) -> None:
        slot.started = True
        try:
            slot.outcome = _in_words(await slot.job.function())
        except BaseException as error:
            slot.outcome = _failure(slot.job, error)
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            slot.ended.set()
