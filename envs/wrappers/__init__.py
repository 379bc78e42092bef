"""Wrappers for text environments, each a `gymnasium.Wrapper` that an `EnvSpec` records and makes again.

They go around any environment that speaks messages, one of ours or of yours, and around each other. Everything that a
trainer asks an environment for (tools, numbered problems, rewards of a group) reaches through them. From a recipe or a
JSON file they are put on by name: `loragym/Wrapped-v0`.
"""

from .base import TextWrapper
from .flat import FlatText
from .limits import LengthBudget, TurnLimit
from .opening import FewShot, SystemPrompt
from .recording import RecordTranscripts
from .rewards import ClipReward, StopReasonReward, TurnCost
from .stack import WRAPPERS, wrapped

__all__ = [
    "WRAPPERS",
    "ClipReward",
    "FewShot",
    "FlatText",
    "LengthBudget",
    "RecordTranscripts",
    "StopReasonReward",
    "SystemPrompt",
    "TextWrapper",
    "TurnCost",
    "TurnLimit",
    "wrapped",
]
