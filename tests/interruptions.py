"""Runs that are stopped between two steps and started again, in one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loragym.trainers import Interrupted, loop
from loragym.trainers.run_directory import RunDirectory
from safetensors.torch import load_file


def assert_resumed_equals_uninterrupted(
    monkeypatch: pytest.MonkeyPatch, train: Callable[[Any], Any], config: Any, *, after: int
) -> None:
    """A run that is interrupted after so many steps, and resumed, ends bitwise in what an undisturbed one ends in."""
    undisturbed = replace(config, run_dir=f"{config.run_dir}-undisturbed")
    train(undisturbed)
    log = RunDirectory.log

    def interrupting(self: RunDirectory, step: int, metrics: dict[str, float]) -> None:
        log(self, step, metrics)
        if step + 1 == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop.RunDirectory, "log", interrupting)
        with pytest.raises(Interrupted, match="run the same command again"):
            train(config)
    train(config)
    assert saved(Path(config.run_dir)) == saved(Path(undisturbed.run_dir))
    assert logged(Path(config.run_dir)) == logged(Path(undisturbed.run_dir))


def saved(folder: Path) -> dict[str, Any]:
    """The tensors and values of a run's last checkpoint, as something to compare."""
    newest = max((folder / "checkpoints").glob("step-*"))
    tensors = {
        f"{path.relative_to(newest)}:{name}": tensor.tolist()
        for path in sorted(newest.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }
    values = newest / "values.json"
    return tensors | ({"values": json.loads(values.read_text())} if values.is_file() else {})


def logged(folder: Path) -> list[dict[str, Any]]:
    """A run's rows without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/") and "per_second" not in k} for row in rows]
