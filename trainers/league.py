"""Past versions of a policy that stay to be played against; part of a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

from ..agents import LoraPolicy
from .checkpoints import ADAPTER_FILE


class League:
    """Frozen copies of a policy by the step they were taken before. It is a `Learner` without anything to learn.

    Args:
        policy: whose past it keeps.
        size: how many copies stay; the oldest leave first.
    """

    def __init__(self, policy: LoraPolicy, size: int) -> None:
        self.policy = policy
        self.size = size
        self.members: dict[int, LoraPolicy] = {}
        self.version = 0

    def admit(self, step: int) -> None:
        """Adds the policy as it is before step `step`; once for each step."""
        if step in self.members:
            return
        self.members[step] = self.policy.twin(_name(step))
        while len(self.members) > self.size:
            oldest = min(self.members)
            del self.members[oldest]
            self.policy.base.remove_lora(_name(oldest))

    def save_state(self, folder: Path) -> None:
        """Writes the members' adapters, each into a folder of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        for step, member in self.members.items():
            member.save_adapter(folder / f"{step:06d}")

    def load_state(self, folder: Path) -> None:
        """Takes back what `save_state` wrote.

        Raises:
            FileNotFoundError, ValueError: an adapter is damaged.
        """
        members = {}
        for path in sorted(folder.glob(f"*/{ADAPTER_FILE}")):
            if not re.fullmatch(r"[0-9]{6,12}", path.parent.name) or int(path.parent.name) in members:
                raise ValueError(
                    f"{path.parent} is not called by the step of a league's member; use another checkpoint"
                )
            members[int(path.parent.name)] = path.parent
        for step in list(self.members):
            self.policy.base.remove_lora(_name(step))
        self.members = {step: self.policy.base.load_lora(_name(step), path) for step, path in members.items()}

    def zero_grad(self) -> None:
        """It has no gradients."""


def _name(step: int) -> str:
    return f"before step {step}"
