"""The chat message: what every room of the house speaks.

Roles, thinking, tool calls and replies live here, as plain dictionaries that serialise to JSON. How messages become
tokens is the renderers' business; what they mean is the environments'.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NotRequired, TypedDict, cast

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")

StopReason = Literal["stop", "length", "malformed"]
"""Why a reply ended: it finished by itself, it was cut off at a token limit, or it could not be parsed."""
STOP_REASONS: tuple[StopReason, ...] = ("stop", "length", "malformed")


class ToolCall(TypedDict):
    """One call of a tool by the assistant; `arguments` are already parsed JSON."""

    id: str
    name: str
    arguments: dict[str, Any]


class ToolSpec(TypedDict):
    """A tool offered to the assistant; `parameters` is a JSON schema of an object."""

    name: str
    description: str
    parameters: dict[str, Any]


class Message(TypedDict):
    """One message of a conversation, after the OpenAI and Hugging Face `messages` formats."""

    role: Role
    content: str
    thinking: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    trainable: NotRequired[bool]
    """Whether supervised learning trains this message; only looked at where messages are chosen one by one."""


class Reply(Message):
    """An assistant's message together with why it ended.

    `problem` says in words what could not be parsed; that part of the reply stands as text in `content`.
    """

    stop_reason: StopReason
    problem: NotRequired[str]


def system(content: str) -> Message:
    return {"role": "system", "content": content}


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def reply(content: str, stop_reason: StopReason = "stop") -> Reply:
    """An assistant's reply; by default one that finished by itself."""
    return {"role": "assistant", "content": content, "stop_reason": stop_reason}


def as_reply(action: Reply | str) -> Reply:
    """The action of a text environment as a `Reply`: a plain `str` is a finished reply.

    Raises:
        TypeError: `action` is neither a string nor an assistant's message.
        ValueError: its `stop_reason` is unknown.
    """
    if isinstance(action, str):
        return reply(action)
    is_reply = isinstance(action, Mapping) and action.get("role") == "assistant"
    if not is_reply or not isinstance(action.get("content"), str):
        raise TypeError(f"an action is a str or an assistant's message with a str content, got {action!r:.200}")
    stop_reason = action.get("stop_reason", "stop")
    if stop_reason not in STOP_REASONS:
        raise ValueError(f"stop_reason is one of {STOP_REASONS}, got {stop_reason!r}")
    return cast(Reply, {**action, "stop_reason": stop_reason})


def without_stop_reason(message: Message | Reply) -> Message:
    """The message as it stands in a conversation: a `Reply` less its stop reason and what was wrong with it."""
    return cast(Message, {key: value for key, value in message.items() if key not in ("stop_reason", "problem")})


def check_messages(messages: Iterable[Any], *, where: str = "messages") -> tuple[Message, ...]:
    """Returns `messages` as a tuple after checking that each is one.

    Args:
        messages: what should be a sequence of `Message`.
        where: what to call it in the error.

    Raises:
        TypeError: it is no sequence of messages; the error names the first wrong one.
    """
    form = "{'role': ..., 'content': ...}"
    # The plain types first: asking an abstract class costs more than all the rest.
    is_plain = isinstance(messages, (tuple, list))
    if not is_plain and (isinstance(messages, (str, Mapping)) or not isinstance(messages, Iterable)):
        raise TypeError(f"{where}: expected a sequence of messages ({form}), got {messages!r:.200}")
    checked = tuple(messages)
    for index, message in enumerate(checked):
        if _is_text(message):
            continue
        if not isinstance(message, (dict, Mapping)):
            raise TypeError(f"{where}[{index}]: expected a message ({form}), got {message!r:.200}")
        if message.get("role") not in ROLES:
            raise TypeError(f"{where}[{index}]: role is one of {ROLES}, got {message.get('role')!r}")
        if not isinstance(message.get("content"), str):
            raise TypeError(f"{where}[{index}]: content is a str, got {message.get('content')!r:.200}")
    return checked


def messages_in_table(messages: Iterable[Any], *, where: str = "messages") -> tuple[Message, ...]:
    """`check_messages` for rows of tables, where a key that one message has stands in all, filled with None."""
    if isinstance(messages, (list, tuple)):
        messages = [
            {key: part for key, part in message.items() if part is not None}
            if isinstance(message, Mapping)
            else message
            for message in messages
        ]
    return check_messages(messages, where=where)


def copied(messages: Iterable[Message]) -> tuple[Message, ...]:
    """What `copy.deepcopy` gives, but quicker where a message is a role and a text, as nearly all are."""
    return tuple([cast(Message, {**message}) if _is_text(message) else copy.deepcopy(message) for message in messages])


def _is_text(message: Any) -> bool:
    """Whether it is a message of a role and a text and nothing else, in a plain dictionary."""
    return (
        type(message) is dict
        and len(message) == 2
        and message.get("role") in ROLES
        and type(message.get("content")) is str
    )
