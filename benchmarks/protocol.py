"""Workers: each engine lives in a process of its own, loads once, and answers one JSON line for each JSON line.

So repetitions can be interleaved while only one engine computes, each engine has its own Python environment, and its
memory is its own. The first line that a worker writes says what it is: `{"ready": {...}}` or `{"unavailable": "why"}`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
Answer = dict[str, Any]
Handler = Callable[[Answer], Answer]


class Unavailable(RuntimeError):
    """An engine cannot run here; the message says how to install it."""


class WorkerError(RuntimeError):
    """A worker died or could not do what it was asked."""


class Worker:
    """A running worker process.

    Args:
        command: starts it; the options are added as one JSON argument.
        options: what the worker's `load` gets.
        log: where its stderr goes.
        environment: added to this process's.

    Raises:
        Unavailable: the worker says so.
        WorkerError: it died while loading.
    """

    def __init__(
        self,
        command: Sequence[str],
        options: Mapping[str, Any],
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [*command, json.dumps(options)],
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        hello = self._read()
        if "unavailable" in hello:
            self.close()
            raise Unavailable(hello["unavailable"])
        self.about: Answer = hello["ready"]

    def ask(self, request: Mapping[str, Any]) -> Answer:
        """The answer to a request, with `others`: the share of all CPUs that other processes took meanwhile.

        Raises:
            WorkerError: the worker died or failed; the message ends with its own words.
        """
        assert self.process.stdin is not None
        before = _cpu_seconds(self.process.pid)
        began = time.monotonic()
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(f"the worker is gone\n{self._last_words()}") from None
        answer = self._read()
        if "error" in answer:
            raise WorkerError(answer["error"])
        after = _cpu_seconds(self.process.pid)
        if before and after:
            capacity = (time.monotonic() - began) * (os.cpu_count() or 1)
            busy, own = after[0] - before[0], after[1] - before[1]
            answer["others"] = round(max(0.0, busy - own) / capacity, 4)
        return answer

    def close(self) -> None:
        """Ends the process: its input ends, and if that is not enough, so does it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def _read(self) -> Answer:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise WorkerError(f"the worker ended with code {self.process.returncode}\n{self._last_words()}")
        answer: Answer = json.loads(line)
        return answer

    def _last_words(self) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])


def serve(load: Callable[[Answer], tuple[Handler, Answer]]) -> None:
    """A worker's main loop.

    Args:
        load: from the options to what handles a request and what the worker has to say about itself. Libraries may
            print: their standard output goes to stderr. A missing module makes the worker unavailable.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(content: Answer) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        handle, about = load(json.loads(sys.argv[1]))
    except (ModuleNotFoundError, Unavailable) as error:
        answer({"unavailable": str(error)})
        return
    answer({"ready": about})
    for line in sys.stdin:
        try:
            reset_peak_memory()
            request = json.loads(line)
            if request.get("kind") == "release":
                release_memory()
                found = {}
            else:
                found = handle(request)
            answer({"peak_mib": round(peak_memory_mib(), 1)} | found)
        except Exception:
            answer({"error": traceback.format_exc()})


def release_memory() -> None:
    """Gives freed memory back to the system (glibc), so that an engine that waits does not stand in the others' way."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak_memory() -> None:
    """Forgets this process's peak memory where the system can (Linux), so that the next one is a request's own."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib() -> float:
    """Most memory resident in this process since the last reset, in MiB."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _cpu_seconds(pid: int) -> tuple[float, float] | None:
    """Seconds that all CPUs were busy, and those that went to one process; None where the system does not tell."""
    try:
        everything = [int(ticks) for ticks in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        of_process = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    idle = everything[3] + everything[4]
    ticks = os.sysconf("SC_CLK_TCK")
    return (sum(everything) - idle) / ticks, sum(map(int, of_process[11:15])) / ticks
