"""A worker of the grader's pool that does what a job asks for, good or bad: the script that tests run."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from pathlib import Path
from typing import Any

WORKER = Path(__file__).resolve().parent.parent / "envs" / "math" / "grading" / "worker.py"


def work(job: dict[str, Any]) -> Any:
    match job["do"]:
        case "echo":
            return job["what"]
        case "spin":
            while True:
                pass
        case "sleep":
            time.sleep(job["seconds"])
            return "slept"
        case "hoard":
            return len(bytearray(job["megabytes"] << 20))
        case "raise":
            raise KeyError("a bug")
        case "exit":
            os._exit(3)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "write":
            Path(job["file"]).write_text("x")
            return "written"
    raise ValueError(f"unknown: {job}")


if __name__ == "__main__":
    spec = importlib.util.spec_from_file_location("worker", WORKER)
    assert spec is not None and spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    worker.serve(lambda: work)
