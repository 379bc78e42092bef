"""Where a run begins that does not begin at its first step: at another run's checkpoint, or further back in itself."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..envs.json_files import read_json_object
from .checkpoints import MANIFEST_FILE, STATE_FILE, CheckpointStore, damage

CONFIG_FILE = "config.json"


class OriginError(ValueError):
    """There is nothing to begin from."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A checkpoint to begin from.

    Attributes:
        folder: the checkpoint.
        step: how many steps are behind it.
        state: what its `state.json` holds.
        run: the directory of its run, which has the history before it.
        config: the config of its run.
    """

    folder: Path
    step: int
    state: dict[str, Any]
    run: Path
    config: dict[str, Any]

    def is_inside(self, run: Path) -> bool:
        return self.folder.is_relative_to(run.resolve())

    def write(self, folder: Path) -> None:
        """Copies what the learners wrote."""
        shutil.copytree(
            self.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST_FILE, STATE_FILE)
        )


def find_origin(path: Path) -> Origin:
    """The checkpoint that a user means by a checkpoint's folder or a run's directory: the newest that is whole.

    Raises:
        OriginError: there is none, or it is damaged, or its run is not there.
    """
    path = path.expanduser().resolve()
    if not (path / MANIFEST_FILE).is_file() and not (path / STATE_FILE).is_file():
        newest = CheckpointStore(path / "checkpoints").latest()
        if newest is None:
            raise OriginError(f"{path} is neither a checkpoint nor a run that has a whole one")
        path = newest[1]
    if (problem := damage(path)) is not None:
        raise OriginError(f"the checkpoint {path} cannot be used: {problem}; choose another")
    run = path.parent.parent
    if not (run / CONFIG_FILE).is_file():
        raise OriginError(
            f"the checkpoint {path} lies alone; it belongs into checkpoints/ of its run, which has config and history. "
            "--adapter begins a new run with its weights"
        )
    try:
        state = read_json_object(path / STATE_FILE, "choose another checkpoint")
        config = read_json_object(run / CONFIG_FILE, "choose another run")
    except (OSError, ValueError) as error:
        raise OriginError(str(error)) from error
    step = state.get("step")
    if type(step) is not int or step < 0:
        raise OriginError(f"{path / STATE_FILE} does not say its step: {step!r:.80}; choose another checkpoint")
    return Origin(path, step, state, run, config)
