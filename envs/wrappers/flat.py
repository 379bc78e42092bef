"""Text in, text out, for code that knows no messages."""

from __future__ import annotations

import json
from typing import Any, SupportsFloat

import gymnasium
from gymnasium.utils import RecordConstructorArgs

from ...messages import Message, ToolSpec, assistant
from ..checks import env_attribute
from ..spaces import Texts
from ..tool_text import reply_with_tool_calls
from .base import Action, Env


class FlatText(gymnasium.Wrapper[str, str, Any, Any], RecordConstructorArgs):
    """Observations and actions are plain strings, as other libraries' text environments have them.

    Messages stand one after another, an empty line between them. Where the environment offers tools, the opening ends
    with their description, and a reply calls them as `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`; what
    cannot be read as a call goes to the environment as a `malformed` reply. It is the outermost wrapper: our own
    wrappers and trainers speak messages.

    Args:
        env: what to wrap.
        roles: whether each message is headed by its role, as in "[user] How are you?".
        history: whether an observation is the whole conversation so far, instead of what is new.
    """

    env: Env  # what it wraps speaks messages, unlike itself

    def __init__(self, env: Env, *, roles: bool = False, history: bool = False) -> None:
        RecordConstructorArgs.__init__(self, roles=roles, history=history)
        gymnasium.Wrapper.__init__(self, env)
        self.roles, self.with_history = roles, history
        self.observation_space = Texts()
        self.action_space = Texts()
        self._parts: list[str] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        parts = [self._show(message) for message in observation]
        if tools := env_attribute(self.env, "tools", ()):
            parts.append(describe_tools(tools))
        self._parts = parts
        return "\n\n".join(parts), info

    def step(self, action: str) -> tuple[str, SupportsFloat, bool, bool, dict[str, Any]]:
        """Says `action`.

        Raises:
            TypeError: `action` is no string.
        """
        if not isinstance(action, str):
            raise TypeError(f"an action is a str, got {action!r:.200}")
        said: Action = reply_with_tool_calls(action) if env_attribute(self.env, "tools", ()) else action
        observation, reward, terminated, truncated, info = self.env.step(said)
        news = [self._show(message) for message in observation]
        self._parts += [self._show(assistant(action)), *news]
        return "\n\n".join(self._parts if self.with_history else news), reward, terminated, truncated, info

    def _show(self, message: Message) -> str:
        return f"[{message['role']}] {message['content']}" if self.roles else message["content"]


def describe_tools(tools: tuple[ToolSpec, ...]) -> str:
    """What an agent that reads plain text is told about its tools."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        f"You may call these tools:\n{listed}\n"
        'Call one by writing <tool_call>{"name": "...", "arguments": {...}}</tool_call>.'
    )
