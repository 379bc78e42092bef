"""What all wrappers of text environments have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsFloat, TypeAlias

import gymnasium
from gymnasium.utils import RecordConstructorArgs

from ...messages import Message, Reply

Observation: TypeAlias = tuple[Message, ...]
Action: TypeAlias = Reply | str
Step: TypeAlias = tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]
Env: TypeAlias = gymnasium.Env[Any, Any]


class TextWrapper(gymnasium.Wrapper[Observation, Action, Observation, Action], RecordConstructorArgs):
    """A wrapper whose arguments are recorded, so that `env.spec` can be written as JSON and made again.

    Args:
        env: what to wrap.
        **arguments: the arguments that the wrapper was made with.
    """

    def __init__(self, env: Env, **arguments: Any) -> None:
        RecordConstructorArgs.__init__(self, **arguments)
        gymnasium.Wrapper.__init__(self, env)


def with_metrics(info: Mapping[str, Any], **metrics: float) -> dict[str, Any]:
    """A copy of `info` with these metrics besides its own, which take precedence."""
    return {**info, "metrics": {**metrics, **info.get("metrics", {})}}
