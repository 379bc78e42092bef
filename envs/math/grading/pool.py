"""Worker processes for jobs that may take long, take much memory or crash: they have limits, are killed and replaced.

A worker is a plain subprocess that reads jobs and writes results, one JSON object a line. So a pool works inside
daemonic processes, which may have no `multiprocessing` children, in threads, after a fork, and in a program without a
main guard.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

MAX_ATTEMPTS = 3
"""How often a job is tried whose worker dies."""
MAX_FAILED_STARTS = 3
MAX_KILLED_STARTS = 30
"""How often in a row workers may end by themselves, or be killed by somebody, before they are ready."""
SENDING_SECONDS = 30.0
"""How long a worker that is waiting for a job may take to read it."""
HIRING_SECONDS = 600.0
"""How long to wait for a worker while other threads have all of them."""
ENDING_SECONDS = 10.0
"""How long a killed worker may take to be gone."""
STARTUP_SECONDS = 120.0
"""How long a worker may take until it is ready, on a machine that is busy."""
_HERE = Path(__file__).resolve().parent
_TIMERS = {-number for number in (getattr(signal, name, None) for name in ("SIGPROF", "SIGALRM", "SIGXCPU")) if number}

Job = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a worker may use.

    Attributes:
        seconds: processor time for one job. It does not run while others have the machine, so what is graded does not
            depend on how busy that is.
        patience: seconds by the clock for one job.
        memory_mb: the worker's address space; None for no limit.
    """

    seconds: float = 2.0
    patience: float = 10.0
    memory_mb: int | None = 1024

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= self.patience:
            raise ValueError(f"expected 0 < seconds <= patience, got {self.seconds=}, {self.patience=}")
        if self.memory_mb is not None and self.memory_mb < 256:
            raise ValueError(f"a worker needs 256 MB or more, got memory_mb={self.memory_mb}")


@dataclass(frozen=True, slots=True)
class Done:
    """A job's result."""

    result: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """A job without a result."""

    reason: Literal["timeout", "crashed"]
    detail: str


class _Worker:
    """One process, and the job that it has."""

    def __init__(self, script: Path, limits: Limits) -> None:
        # -I: nothing of the working directory or of the environment decides what is imported.
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        os.set_blocking(self.process.stdin.fileno(), False)
        self.job: int | None = None
        self.ready = False
        self.received = b""
        self.deadline = time.monotonic() + STARTUP_SECONDS
        self.send({"path": sys.path, **asdict(limits)})

    def send(self, message: Job) -> bool:
        """Whether it arrived; it does not if the process is dead, or stopped and reads nothing."""
        line = json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        assert self.process.stdin is not None
        deadline = time.monotonic() + SENDING_SECONDS
        try:
            while line := line[self.process.stdin.write(line) or 0 :]:
                with selectors.DefaultSelector() as selector:
                    selector.register(self.process.stdin, selectors.EVENT_WRITE)
                    if not selector.select(max(0.0, deadline - time.monotonic())):
                        return False
        except BrokenPipeError:
            return False
        return True

    def fileno(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def receive(self) -> list[Any] | None:
        """The messages that have come; None if the process is at its end."""
        data = os.read(self.fileno(), 1 << 16)
        if not data:
            return None
        *lines, self.received = (self.received + data).split(b"\n")
        return [json.loads(line.decode("utf-8", "surrogatepass")) for line in lines]

    def end(self) -> int:
        """Kills the process if it lives; its exit code."""
        self.process.kill()
        try:
            return self.process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            # In the kernel's hands: it dies when they let go.
            return -signal.SIGKILL
        finally:
            self.forget()

    def forget(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()


class WorkerPool:
    """Runs jobs in worker processes, which are started when there is something to do.

    A worker that dies is replaced, and its job is tried again, up to `MAX_ATTEMPTS` times; one that takes too long is
    killed. The pool may be used by several threads. A pickled pool arrives as a new one with the same settings, and so
    does one that a forked process inherits: workers belong to the process that started them.

    Args:
        workers: how many at most; by default as many as there are processors, up to four.
        limits: of each worker.
        script: what a worker runs; see `worker.py`.

    Attributes:
        counts: "jobs", "timeouts", "crashes" and "replaced" (workers), since the pool was made.
    """

    def __init__(self, workers: int | None = None, limits: Limits | None = None, script: Path | None = None) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"a pool has one worker or more, got workers={workers}")
        self.workers = workers or min(4, os.cpu_count() or 1)
        self.limits = limits or Limits()
        self.script = script or _HERE / "worker.py"
        self.counts: Counter[str] = Counter()
        self._start_afresh()
        _pools.add(self)

    def _start_afresh(self) -> None:
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._free = threading.Condition()
        self._bad_starts: Counter[str] = Counter()
        self._closed = False
        self._finalizer = weakref.finalize(self, _end_all, self._all)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.workers, self.limits, self.script)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers; also done when the interpreter exits or the pool is forgotten."""
        with self._free:
            self._closed = True
            self._finalizer()
            self._idle.clear()
            self._free.notify_all()

    def process_ids(self) -> list[int]:
        """The processes that live now."""
        with self._free:
            return [worker.process.pid for worker in self._all]

    def run(self, jobs: Sequence[Job]) -> list[Done | Failed]:
        """The results of the jobs, in their order.

        Raises:
            RuntimeError: the pool is closed, or its workers do not start.
        """
        with self._free:
            self.counts["jobs"] += len(jobs)
        return _Run(self, jobs).results() if jobs else []

    # For runs

    def _hire(self, wait: bool) -> _Worker | None:
        """A worker of one's own; None if all are busy and `wait` is not set."""
        deadline = time.monotonic() + HIRING_SECONDS
        with self._free:
            while True:
                if self._closed:
                    raise RuntimeError("the grader's pool is closed; make a new one")
                if self._idle:
                    # One that still starts is the second choice.
                    place = max(range(len(self._idle)), key=lambda place: self._idle[place].ready)
                    return self._idle.pop(place)
                if len(self._all) < self.workers:
                    worker = _Worker(self.script, self.limits)
                    self._all.add(worker)
                    return worker
                if not wait:
                    return None
                if not self._free.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    raise RuntimeError(
                        f"all {self.workers} workers of the grader were busy for {HIRING_SECONDS:g} s; do other "
                        "threads hold on to them? A pool with more workers, or of one's own, helps"
                    )

    def _release(self, worker: _Worker) -> None:
        with self._free:
            if worker in self._all:
                self._idle.append(worker)
            self._free.notify()

    def _dismiss(self, worker: _Worker) -> int:
        """Ends a worker for good; its exit code."""
        code = worker.end()
        with self._free:
            self._all.discard(worker)
            self.counts["replaced"] += 1
            if not worker.ready:
                self._bad_starts["killed" if code < 0 else "failed"] += 1
            bad = self._bad_starts.copy()
            self._free.notify()
        if bad["failed"] >= MAX_FAILED_STARTS or bad["killed"] >= MAX_KILLED_STARTS:
            raise RuntimeError(
                f"{bad.total()} workers of the grader ended before they were ready, the last with code {code}. "
                f"What they wrote to stderr says why. Is sympy installed for {sys.executable}?"
            )
        return code

    def _count(self, what: str) -> None:
        with self._free:
            self.counts[what] += 1


class _Run:
    """One call's jobs on their way through the workers."""

    def __init__(self, pool: WorkerPool, jobs: Sequence[Job]) -> None:
        self.pool, self.jobs = pool, jobs
        self.found: dict[int, Done | Failed] = {}
        self.waiting = deque(range(len(jobs)))
        self.deaths: Counter[int] = Counter()
        self.team: set[_Worker] = set()

    def results(self) -> list[Done | Failed]:
        with selectors.DefaultSelector() as selector:
            self.selector = selector
            try:
                while len(self.found) < len(self.jobs):
                    self._hand_out()
                    self._wait()
            finally:
                for worker in list(self.team):
                    self._leave(worker)
        return [self.found[number] for number in range(len(self.jobs))]

    def _hand_out(self) -> None:
        for worker in list(self.team):
            if worker.ready and worker.job is None:
                self._give(worker)
        starting = sum(worker.job is None for worker in self.team)
        while len(self.waiting) > starting:
            hired = self.pool._hire(wait=not self.team)
            if hired is None:
                break
            self.team.add(hired)
            self.selector.register(hired, selectors.EVENT_READ)
            if hired.ready:
                self._give(hired)
            else:
                starting += 1

    def _give(self, worker: _Worker) -> None:
        if not self.waiting:
            self._leave(worker)
            return
        number = self.waiting.popleft()
        if worker.send(self.jobs[number]):
            worker.job = number
            worker.deadline = time.monotonic() + self.pool.limits.patience
        else:
            # It was dead before it had the job, which lost nothing.
            self.waiting.appendleft(number)
            self._remove(worker)

    def _wait(self) -> None:
        if not self.team:
            return
        nearest = min(worker.deadline for worker in self.team)
        for key, _ in self.selector.select(max(0.0, nearest - time.monotonic())):
            worker = key.fileobj
            assert isinstance(worker, _Worker)
            messages = worker.receive()
            if messages is None:
                self._died(worker)
                continue
            for message in messages:
                self._heard(worker, message)
        now = time.monotonic()
        for worker in [worker for worker in self.team if worker.deadline <= now]:
            self._overdue(worker)

    def _heard(self, worker: _Worker, message: Any) -> None:
        if not worker.ready:
            worker.ready = True
            self.pool._bad_starts.clear()
            worker.deadline = float("inf")
            return
        number, worker.job = worker.job, None
        assert number is not None
        worker.deadline = float("inf")
        if "result" in message:
            self.found[number] = Done(message["result"])
            return
        self._fail(number, "crashed", str(message["error"]))
        # After an error such as one of memory nobody knows in what state it is.
        self._remove(worker)

    def _died(self, worker: _Worker) -> None:
        number = worker.job
        code = self._remove(worker)
        if number is None:
            return
        if code in _TIMERS:
            self._fail(number, "timeout", f"more than {self.pool.limits.seconds:g} seconds of processor time")
            return
        self.deaths[number] += 1
        if self.deaths[number] < MAX_ATTEMPTS:
            self.waiting.appendleft(number)
        else:
            self._fail(number, "crashed", f"the worker died {MAX_ATTEMPTS} times, the last with exit code {code}")

    def _overdue(self, worker: _Worker) -> None:
        number = worker.job
        self._remove(worker)
        if number is not None:
            self._fail(number, "timeout", f"more than {self.pool.limits.patience:g} seconds")

    def _fail(self, number: int, reason: Literal["timeout", "crashed"], detail: str) -> None:
        self.found[number] = Failed(reason, detail)
        self.pool._count("timeouts" if reason == "timeout" else "crashes")

    def _remove(self, worker: _Worker) -> int:
        self.selector.unregister(worker)
        self.team.discard(worker)
        return self.pool._dismiss(worker)

    def _leave(self, worker: _Worker) -> None:
        """Gives a worker back; one that still works, as after an exception, is of no use to others."""
        if worker.job is not None:
            self._remove(worker)
            return
        # If it is about to start, the next one to hire it hears when it is ready.
        self.selector.unregister(worker)
        self.team.discard(worker)
        self.pool._release(worker)


def _end_all(workers: set[_Worker]) -> None:
    for worker in workers:
        worker.end()
    workers.clear()


_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


def _after_fork() -> None:
    """Leaves to the parent what is its own: a child that kept the pipes open would keep the workers alive."""
    for pool in list(_pools):
        pool._finalizer.detach()
        for worker in pool._all:
            worker.forget()
            worker.process.returncode = 0
        pool._start_afresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
