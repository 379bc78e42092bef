"""Reference policies: what a run is held near to, or measured against."""

from __future__ import annotations

from ..agents import LoraConfig, LoraPolicy
from .checkpoints import find_adapter

BASE, START = "base", "start"


def check_reference(where: str) -> None:
    """Raises FileNotFoundError if `where` is neither `base` nor `start` and leads to no adapter."""
    if where not in (BASE, START):
        find_adapter(where)


def make_reference(policy: LoraPolicy, where: str, name: str = "reference") -> LoraPolicy:
    """A frozen policy on the same base.

    Args:
        policy: the one that learns.
        where: `base`; `start`, a copy of `policy` as it is now; or a PEFT folder or a run's directory.
        name: its name among the base's adapters.

    Raises:
        FileNotFoundError, ValueError: there is no adapter that fits.
    """
    if where == START:
        return policy.twin(name)
    if where == BASE:
        return policy.base.add_lora(name, LoraConfig(rank=1))  # a fresh adapter changes nothing
    return policy.base.load_lora(name, find_adapter(where))
