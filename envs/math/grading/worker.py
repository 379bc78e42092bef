"""A worker of the grader's pool: the script that its process runs. See `pool`.

The first line on stdin says what it may use, every further line is a job; a line on stdout answers each.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

Work = Callable[[dict[str, Any]], Any]
PACKAGE = "loragym_grading"


def load_package(folder: Path) -> ModuleType:
    """The grading package alone: by its usual name it would bring gymnasium and the rest of the house along."""
    spec = importlib.util.spec_from_file_location(
        PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)
    return module


def limit(memory_mb: int | None) -> None:
    """No files, no processes, no core dumps, and no more memory than is allowed, as far as the system can do that."""
    try:
        import resource
    except ImportError:
        # Windows has no such limits; there the clock alone ends a job.
        return
    wanted = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_NPROC: 0}
    if memory_mb is not None:
        wanted[resource.RLIMIT_AS] = memory_mb << 20
    for kind, value in wanted.items():
        # Some systems know a limit and refuse to set it.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))


def set_timers(seconds: float, patience: float) -> None:
    """Timers end the process unless they are set anew: one of processor time, and one by the clock for an orphan."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, 2 * patience if patience else 0)


def load_work() -> Work:
    """The comparison, once it has been through all that takes time at first."""
    package = load_package(Path(__file__).resolve().parent)
    work: Work = importlib.import_module(f"{package.__name__}.deep").work
    # At too few points of this one both sides have a value, so sympy is asked.
    work({"answer": "\\frac{(1000000n)!}{(1000000n-1)!}", "reference": "1000000n", "rtol": 0.0})
    return work


def serve(load: Callable[[], Work]) -> None:
    """Answers jobs with what `load` gives until stdin ends."""
    settings = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = settings["path"]
    work = load()
    limit(settings["memory_mb"])
    answer({"ready": True})
    for line in sys.stdin.buffer:
        set_timers(settings["seconds"], settings["patience"])
        try:
            message = {"result": work(json.loads(line.decode("utf-8", "surrogatepass")))}
        except MemoryError:
            message = {"error": "out of memory"}
        except Exception as error:
            # The pool counts it and says so in the grade; the process is replaced.
            message = {"error": f"{type(error).__name__}: {error}"[:500]}
        set_timers(0, 0)
        answer(message)


def answer(message: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(message).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve(load_work)
