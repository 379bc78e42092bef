"""Environments that other installed packages publish, under the entry point group `loragym.envs`."""

from __future__ import annotations

import inspect
from importlib.metadata import EntryPoint, entry_points
from typing import NamedTuple

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

GROUP = "loragym.envs"


class Published(NamedTuple):
    """An environment of another package: how to name it, and what it is in one line."""

    name: str
    summary: str


def published() -> tuple[list[Published], list[str]]:
    """What installed packages publish, and a line for each that could not be imported.

    An entry point names a module that registers environments with Gymnasium when it is imported.
    """
    found: dict[str, Published] = {}
    problems = []
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # whatever somebody else's module raises
            problems.append(f"{point.name} ({point.value}) cannot be imported: {type(error).__name__}: {error}")
            continue
        for spec in gymnasium.registry.values():
            if _module_of(spec).split(".")[0] == point.module.split(".")[0]:
                found[spec.id] = Published(f"{point.module}:{spec.id}", _summary(spec, point))
    return sorted(found.values()), problems


def _module_of(spec: EnvSpec) -> str:
    creator = spec.entry_point
    return creator.partition(":")[0] if isinstance(creator, str) else getattr(creator, "__module__", "")


def _summary(spec: EnvSpec, point: EntryPoint) -> str:
    """The first line of what documents the environment."""
    try:
        creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    except Exception as error:  # as above
        return f"(cannot be loaded: {type(error).__name__}: {error})"
    documented = inspect.getdoc(creator) or f"From {point.value}."
    return documented.partition("\n")[0]
