"""A worker that scores answers with reasoning-gym: the script that its process runs. See `grading.pool`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any


def _sibling(path: Path) -> ModuleType:
    """A file of the house alone: by its usual name it would bring the rest of the house along."""
    spec = importlib.util.spec_from_file_location(f"loragym_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_work() -> Any:
    """The scoring of one answer, `{"dataset", "arguments", "index", "answer"} -> {"score"}`."""
    import reasoning_gym

    made: dict[str, Any] = {}

    def work(job: dict[str, Any]) -> dict[str, float]:
        key = json.dumps([job["dataset"], job["arguments"]], sort_keys=True)
        if key not in made:
            made.clear()  # one at a time: some data sets are large
            made[key] = reasoning_gym.create_dataset(job["dataset"], **job["arguments"])
        score = made[key].score_answer(answer=job["answer"], entry=made[key][job["index"]])
        return {"score": min(1.0, max(0.0, float(score)))}

    return work


if __name__ == "__main__":
    _sibling(Path(__file__).resolve().parent / "grading" / "worker.py").serve(load_work)
