"""What a run trains and must not lose: one learner, or several as one, with the numbers that steps change."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ..envs.json_files import read_json_object

VALUES_FILE = "values.json"
MOST = sys.float_info.max


class Learner(Protocol):
    """Something with weights and an optimiser; `LoraPolicy` and `LoraScorer` are two."""

    @property
    def version(self) -> int: ...

    def save_state(self, folder: Path) -> None: ...

    def load_state(self, folder: Path) -> None: ...

    def zero_grad(self) -> None: ...


class Learners:
    """Several learners as one: the first in a checkpoint's folder itself, each other in a folder of its name.

    Args:
        first: the one that the run is about, usually the policy.
        others: further ones by name, a critic for instance.
        values: numbers that steps change and that a resumed run needs, such as an adaptive coefficient; changed in
            place.
    """

    def __init__(
        self, first: Learner, others: Mapping[str, Learner] | None = None, values: dict[str, float] | None = None
    ) -> None:
        self.first = first
        self.others = dict(others or {})
        self.values = {} if values is None else values

    @property
    def version(self) -> int:
        """Number of updates behind all of them together."""
        return self.first.version + sum(other.version for other in self.others.values())

    def save_state(self, folder: Path) -> None:
        """Writes all states."""
        self.first.save_state(folder)
        for name, other in self.others.items():
            other.save_state(folder / name)
        (folder / VALUES_FILE).write_text(json.dumps(self.values) + "\n", encoding="utf-8")

    def load_state(self, folder: Path) -> None:
        """Takes back what `save_state` wrote.

        Raises:
            FileNotFoundError, ValueError: a file is missing or damaged.
        """
        path = folder / VALUES_FILE
        values = read_json_object(path, "use another checkpoint")
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MOST:
                raise ValueError(f"{path} is damaged: {name!r:.40} is {value!r:.80}; use another checkpoint")
        self.values.update({name: float(value) for name, value in values.items()})
        self.first.load_state(folder)
        for name, other in self.others.items():
            other.load_state(folder / name)

    def zero_grad(self) -> None:
        """Forgets all gradients gathered so far."""
        for learner in (self.first, *self.others.values()):
            learner.zero_grad()
