"""The environment of the timed RL step: additions whose rewards never tie, so that every group trains in every engine.

Ours drops groups of equal rewards and TRL computes them; without ties both do the same work.
"""

from __future__ import annotations

import zlib
from dataclasses import replace

import gymnasium
from loragym.envs.core import Outcome
from loragym.envs.math.arithmetic import Arithmetic
from loragym.messages import Reply

ADDITIONS = "benchmarks.worlds:AdditionsWithoutTies-v0"


class AdditionsWithoutTies(Arithmetic):
    """Arithmetic, with up to 0.01 added to the reward by a checksum of the answer's text."""

    def respond(self, reply: Reply) -> Outcome:
        outcome = super().respond(reply)
        return replace(outcome, reward=outcome.reward + zlib.crc32(reply["content"].encode()) / 2**32 / 100)


gymnasium.register("AdditionsWithoutTies-v0", entry_point=AdditionsWithoutTies)
