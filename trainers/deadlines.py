"""Deadlines for what others wrote: environments, tools, judges, samplers.

A call runs in a thread of ours. When its time is up the thread is left behind, for Python cannot end a thread: the call
counts as failed, its thread lives on until the call comes back, and it does not keep the process from exiting. When too
many are left behind at once the run stops. Code that holds the interpreter's lock without a break (`9**9**9`, a bad
regular expression) stops the whole process and cannot be timed in it.
"""

from __future__ import annotations

import logging
import queue
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch

from ..agents import Completion, LoraPolicy, SamplingParams
from ..agents.engines import Engine, Sampler

logger = logging.getLogger(__name__)

T = TypeVar("T")
MAX_HANGING = 8
"""Calls of environments that may hang at the same time before the run stops."""


class Hangs(TimeoutError):
    """A call did not come back in time; its thread is left behind."""


class TooManyHang(RuntimeError):
    """So many calls hang that going on would only add to them."""


class EngineHangs(RuntimeError):
    """What samples gives no sign of life."""


@dataclass(frozen=True, slots=True)
class CallOutcome(Generic[T]):
    """What came of a call: its value, or what it raised."""

    value: T | None = None
    error: BaseException | None = None

    def result(self) -> T:
        """The value; raises what the call raised."""
        if self.error is not None:
            raise self.error
        return cast(T, self.value)


class Calls:
    """Makes calls with a deadline each.

    Args:
        limit: seconds that a call may take; 0 for no limit, and then calls run in the caller's own thread.
        max_hanging: how many calls may hang at a time.

    Attributes:
        last_sign: when a call came back last, by `time.monotonic`.
        hung: calls that did not come back in time so far.
    """

    def __init__(self, limit: float = 0.0, *, max_hanging: int = MAX_HANGING) -> None:
        self.limit, self.max_hanging = limit, max_hanging
        self.last_sign = time.monotonic()
        self.hung = 0
        self._idle: list[_Worker] = []
        self._left: list[threading.Thread] = []

    @property
    def num_hanging(self) -> int:
        """Calls that hang now."""
        self._left = [thread for thread in self._left if thread.is_alive()]
        return len(self._left)

    def run(self, what: str, call: Callable[[], T]) -> T:
        """Makes one call; see `run_all`."""
        (outcome,) = self.run_all([call], what)
        return outcome.result()

    def run_all(self, calls: Sequence[Callable[[], T]], what: str = "a call") -> list[CallOutcome[T]]:
        """Makes calls one after another; an outcome for each, in which `Hangs` is an error like any other.

        Args:
            calls: what to call.
            what: what they are, for messages.

        Raises:
            TooManyHang: `max_hanging` calls hang.
        """
        if not self.limit:
            outcomes = [_made(call) for call in calls]
            self.last_sign = time.monotonic()
            return outcomes
        outcomes = []
        while len(outcomes) < len(calls):
            worker = self._idle.pop() if self._idle else _Worker()
            batch = _Batch(calls[len(outcomes) :])
            worker.batches.put(batch)
            try:
                is_done = batch.wait(self.limit)
            except BaseException:
                # Ctrl-C: what is under way must not go on beside what follows.
                batch.leave()
                raise
            outcomes += batch.outcomes
            self.last_sign = time.monotonic()
            if is_done:
                self._idle.append(worker)
            else:
                outcomes.append(CallOutcome(error=self._hangs(worker, what)))
        return outcomes

    def close(self) -> None:
        """Ends the threads that are idle."""
        while self._idle:
            self._idle.pop().batches.put(None)

    def _hangs(self, worker: _Worker, what: str) -> Hangs:
        self.hung += 1
        self._left.append(worker.thread)
        error = Hangs(f"{what} has not come back after {self.limit:g} s{_whereabouts(worker.thread)}")
        if self.num_hanging >= self.max_hanging:
            raise TooManyHang(
                f"{self.num_hanging} calls hang at the same time, the last one: {error}. Give what hangs a timeout "
                "of its own; or more time (--episode-timeout), if it is slow"
            )
        return error


class DeadlineEngine:
    """An engine that raises when it gives no sign of life.

    Args:
        engine: what samples. If it does not say by `keeps_time` that its calls come back, each is made in a thread.
        limit: seconds without a finished reply, or for one call; 0 for no limit.

    Attributes:
        last_sign: when a call came back last, by `time.monotonic`.
    """

    def __init__(self, engine: Engine, limit: float) -> None:
        self.engine, self.limit = engine, limit
        self.last_sign = time.monotonic()
        is_watched = limit and not getattr(engine, "keeps_time", False)
        self._calls = Calls(limit if is_watched else 0.0, max_hanging=2)

    @property
    def context_length(self) -> int:
        return self.engine.context_length

    def sampler(self, policy: LoraPolicy | None = None) -> Sampler:
        """A sampler of the policy as it is now; raises EngineHangs if it does not come."""
        return DeadlineSampler(self, self.made(lambda: self.engine.sampler(policy)))

    def close(self) -> None:
        """Closes the engine; one that hangs is left behind."""
        try:
            self.made(self.engine.close)
        except EngineHangs as error:
            logger.warning("closing: %s; it is left behind", error)
        finally:
            self._calls.close()

    def made(self, call: Callable[[], T]) -> T:
        """Makes a call of the engine's."""
        try:
            return self._calls.run("the sampling engine", call)
        except (Hangs, TooManyHang) as error:
            raise EngineHangs(f"{error}; is it stuck? More time: --engine-timeout") from error
        finally:
            self.last_sign = time.monotonic()


class DeadlineSampler:
    """A sampler of a `DeadlineEngine`."""

    def __init__(self, engine: DeadlineEngine, sampler: Sampler) -> None:
        self.engine, self.inner = engine, sampler
        self.version = sampler.version
        self._since = time.monotonic()
        """When a request finished last, or the first one came."""

    @property
    def pending(self) -> int:
        return self.inner.pending

    def sample(
        self, prompts: Sequence[Sequence[int]], n: int = 1, params: SamplingParams | None = None
    ) -> list[list[Completion]]:
        return self.engine.made(lambda: self.inner.sample(prompts, n, params))

    def submit(self, prompt: Sequence[int], params: SamplingParams, n: int = 1) -> int:
        if not self.pending:
            self._since = time.monotonic()
        return self.inner.submit(prompt, params, n)

    def step(self) -> dict[int, list[Completion]]:
        """Goes on for a moment; raises EngineHangs if no request finishes for too long."""
        done = self.engine.made(self.inner.step)
        limit, now = self.engine.limit, time.monotonic()
        if done:
            self._since = now
        elif limit and now - self._since > limit:
            raise EngineHangs(
                f"the sampling engine has finished none of {self.pending} replies for {now - self._since:.0f} s; is it "
                "stuck, or are replies that long? More time: --engine-timeout"
            )
        return done


class _Worker:
    """A thread that makes calls, batch by batch, until it is left behind."""

    def __init__(self) -> None:
        self.batches: queue.SimpleQueue[_Batch[Any] | None] = queue.SimpleQueue()
        threads = torch.get_num_threads()
        self.thread = threading.Thread(
            target=self._work, args=(threads,), name="loragym calls with a deadline", daemon=True
        )
        self.thread.start()

    def _work(self, threads: int) -> None:
        # A new thread would otherwise compute with as many threads as the machine has.
        torch.set_num_threads(threads)
        while (batch := self.batches.get()) is not None:
            if not batch.carry_out():
                return
            del batch


class _Batch(Generic[T]):
    """Calls to be made one after another, and what came of those that were made."""

    def __init__(self, calls: Sequence[Callable[[], T]]) -> None:
        self.calls = calls
        self.outcomes: list[CallOutcome[T]] = []
        self._since = time.monotonic()
        self._is_left = False
        self._lock = threading.Lock()
        self._done = threading.Lock()
        self._done.acquire()

    def carry_out(self) -> bool:
        """In the worker's thread; whether it is still wanted there."""
        for call in self.calls:
            with self._lock:
                if self._is_left:
                    return False
                self._since = time.monotonic()
            outcome = _settled(call)
            with self._lock:
                if self._is_left:
                    return False
                self.outcomes.append(outcome)
        self._done.release()
        return True

    def wait(self, limit: float) -> bool:
        """Whether all calls came back, none of them later than `limit` seconds."""
        left = limit
        while not self._done.acquire(timeout=left):
            with self._lock:
                left = self._since + limit - time.monotonic()
                if left <= 0 and len(self.outcomes) < len(self.calls):
                    self._is_left = True
                    return False
                left = max(left, 0.01)
        return True

    def leave(self) -> None:
        """No further call is begun."""
        with self._lock:
            self._is_left = True


def _made(call: Callable[[], T]) -> CallOutcome[T]:
    try:
        return CallOutcome(call())
    except Exception as error:
        return CallOutcome(error=error)


def _settled(call: Callable[[], T]) -> CallOutcome[T]:
    """As `_made`, in a thread where nobody else would see what is no `Exception`."""
    try:
        return CallOutcome(call())
    except BaseException as error:
        return CallOutcome(error=error)


def _whereabouts(thread: threading.Thread) -> str:
    """Where a thread is: the innermost line that is not the standard library's."""
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return ""
    library = sysconfig.get_paths()["stdlib"]
    stack = traceback.extract_stack(frame)
    own = [at for at in stack if not at.filename.startswith(library) or "site-packages" in at.filename]
    at = (own or stack)[-1]
    return f"; it is in {at.name} ({at.filename}, line {at.lineno})"
