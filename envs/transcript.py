"""Conversations for human eyes. How a model sees them is the renderers' business."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..messages import Message

_CONTROL_CODES = (set(range(0x20)) | set(range(0x7F, 0xA0))) - {ord("\n"), ord("\t")}
# A model must not be able to drive the reader's terminal.
ESCAPED = {code: f"\\x{code:02x}" for code in _CONTROL_CODES}


def transcript(messages: Iterable[Message]) -> str:
    """The messages as text, one paragraph each, headed by the role; control characters are shown escaped."""
    return "\n".join("\n".join(_lines(message)) for message in messages).translate(ESCAPED)


def _lines(message: Message) -> Iterator[str]:
    if message.get("thinking"):
        yield f"[{message['role']}, thinking] {message['thinking']}"
    yield f"[{message['role']}] {message['content']}"
    # A reply is whatever an agent said, so its calls may be anything.
    calls: Any = message.get("tool_calls")
    for call in calls if isinstance(calls, list | tuple) else ():
        name, arguments = (call.get("name"), call.get("arguments")) if isinstance(call, Mapping) else ("?", call)
        yield f"[{message['role']}, call] {name} {_as_json(arguments)}"


def _as_json(arguments: Any) -> str:
    try:
        return json.dumps(arguments, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return "(arguments that JSON cannot express)"
