"""Tool calls that are written out as text, for agents and people who have nothing but text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, cast

from ..messages import Reply, ToolCall, reply

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MAX_CALL_CHARACTERS = 100_000
"""A longer text is no call: nobody's arguments are that long, and JSON that nests without end takes long to refuse."""


def reply_with_tool_calls(text: str) -> Reply:
    """The reply that a text is, its `<tool_call>{...}</tool_call>` blocks read as calls.

    A block that cannot be read, or does not end, makes the reply `malformed`, with the whole text as its content and
    the reason as its `problem`.
    """
    # Not a regular expression: a thousand openings without a close would each be searched to the end.
    spoken, *blocks = text.split(OPEN)
    calls: list[ToolCall] = []
    for number, block in enumerate(blocks):
        call, close, after = block.partition(CLOSE)
        try:
            if not close:
                raise ValueError(f"{OPEN} without {CLOSE}")
            calls.append(parse_call(call, f"call_{number}"))
        except ValueError as error:
            return cast(Reply, {**reply(text, "malformed"), "problem": str(error)})
        spoken += after
    return cast(Reply, {**reply(spoken.strip()), "tool_calls": calls}) if calls else reply(text)


def reply_with_call_lines(lines: Iterable[str]) -> Reply:
    """The reply that lines are, those of the form `{"name": ..., "arguments": {...}}` read as calls.

    Raises:
        ValueError: a line begins like a call but is none.
    """
    spoken: list[str] = []
    calls: list[ToolCall] = []
    for line in lines:
        if line.lstrip().startswith("{"):
            calls.append(parse_call(line, f"call_{len(calls)}"))
        else:
            spoken.append(line)
    said = reply("\n".join(spoken))
    return cast(Reply, {**said, "tool_calls": calls}) if calls else said


def parse_call(text: str, call_id: str) -> ToolCall:
    """The call that a JSON object with `name` and `arguments` stands for.

    Raises:
        ValueError: it is none; the message says what is wrong with it.
    """
    expected = 'a tool call is {"name": "...", "arguments": {...}}'
    if len(text) > MAX_CALL_CHARACTERS:
        raise ValueError(f"{expected} of at most {MAX_CALL_CHARACTERS} characters, got {len(text)}")
    try:
        given: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{expected}, got {text.strip()!r:.80}, which is not JSON: {error}") from error
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise ValueError(f"{expected}, got {text.strip()!r:.80}")
    arguments = given.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ValueError(f"{expected}; arguments is an object, got {arguments!r:.80}")
    return {"id": call_id, "name": given["name"], "arguments": arguments}
