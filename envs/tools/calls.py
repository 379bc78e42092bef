"""Calls of tools as they stand in replies: reading them, whatever came, and writing their results.

A call comes as an entry of a reply's `tool_calls`, where a renderer has read it from the model's own format, or, in the
format "text", as JSON between two tags, which any model and any code that deals in strings can write. Results go back
the way the calls came.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ...messages import Message, Reply, ToolCall, ToolSpec, system, user
from .values import BadValue, parse_json, shown

CallFormat = Literal["native", "text"]

OPEN_CALL, CLOSE_CALL = "<tool_call>", "</tool_call>"
OPEN_RESULT, CLOSE_RESULT = "<tool_response>", "</tool_response>"
_MAX_NAME = 64
_MAX_ID = 200

INSTRUCTIONS = """You may call tools. To call one, write
{open}{{"name": "<tool>", "arguments": {{<its arguments as JSON>}}}}{close}
A turn may have several calls. Their results come between {open_result} and {close_result}. A turn without a call is \
your final answer.

The tools, with the JSON schema of their arguments:"""


@dataclass(slots=True)
class ReadCalls:
    """What a reply asks for.

    Attributes:
        native: calls that a renderer has read.
        text: calls read from the reply's text.
        problems: what could not be read, in words for the model.
    """

    native: list[ToolCall] = field(default_factory=list)
    text: list[ToolCall] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def all(self) -> list[ToolCall]:
        return [*self.native, *self.text]


def read_calls(reply: Reply, call_format: CallFormat) -> ReadCalls:
    """The calls of a reply; never raises, whatever the reply holds.

    In the format "native" a call in the text is not one, but a problem: it would otherwise pass for a final answer.
    """
    read = ReadCalls()
    given: Any = reply.get("tool_calls")
    if isinstance(given, list | tuple):
        for number, call in enumerate(given):
            try:
                read.native.append(_native_call(call, number))
            except BadValue as error:
                read.problems.append(f"call {number + 1}: {error.problem}")
    elif given is not None:
        read.problems.append(f"tool_calls is a list, got {shown(given)}")
    if reply["stop_reason"] == "malformed":
        problem: Any = reply.get("problem")
        read.problems.append(problem if isinstance(problem, str) and problem else "the reply could not be parsed")
    elif call_format == "native" and (OPEN_CALL in reply["content"] or CLOSE_CALL in reply["content"]):
        read.problems.append(f"{OPEN_CALL} stands in the text; call tools in the format that your instructions give")
    if call_format == "text":
        _read_text(reply["content"], read)
    return read


def _native_call(call: Any, number: int) -> ToolCall:
    if not isinstance(call, Mapping):
        raise BadValue(f"expected an object with a name and arguments, got {shown(call)}")
    function = call.get("function")
    if "name" not in call and isinstance(function, Mapping):  # as OpenAI's messages have it
        return _call({**function, "id": call.get("id")}, number)
    return _call(call, number)


def _call(call: Mapping[str, Any], number: int) -> ToolCall:
    name, arguments, call_id = call.get("name"), call.get("arguments"), call.get("id")
    if not isinstance(name, str) or not name:
        raise BadValue(f"the name of a tool is a string, got {shown(name)}")
    if isinstance(arguments, str):
        arguments = parse_json(arguments) if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise BadValue(f"arguments is an object, got {shown(arguments)}")
    known = call_id if isinstance(call_id, str) and 0 < len(call_id) <= _MAX_ID else f"call_{number}"
    return {"id": known, "name": name, "arguments": dict(arguments)}


def _read_text(content: str, read: ReadCalls) -> None:
    position = 0
    while (start := content.find(OPEN_CALL, position)) >= 0:
        end = content.find(CLOSE_CALL, start)
        if end < 0:
            read.problems.append(f"{OPEN_CALL} is never closed by {CLOSE_CALL}")
            return
        number = len(read.native) + len(read.text)
        try:
            value = parse_json(content[start + len(OPEN_CALL) : end])
            if not isinstance(value, Mapping):
                raise BadValue(f"expected an object with a name and arguments, got {shown(value)}")
            read.text.append(_call({**value, "id": None}, number))
        except BadValue as error:
            read.problems.append(f"call {number + 1}: {error.problem}")
        position = end + len(CLOSE_CALL)
    if content.find(CLOSE_CALL, position) >= 0:
        read.problems.append(f"{CLOSE_CALL} without {OPEN_CALL} before it")


def write_call(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as it stands in the text of a reply, in the format "text"."""
    return OPEN_CALL + json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False) + CLOSE_CALL


def result_messages(read: ReadCalls, results: Sequence[str]) -> Iterator[Message]:
    """The results of a turn's calls, in their order: a tool message for each, or one user message for those in text."""
    count = len(read.native)
    for call, result in zip(read.native, results[:count], strict=True):
        yield {"role": "tool", "content": result, "tool_call_id": call["id"], "name": shown_name(call)}
    if read.text:
        # A result must not be able to close its own brackets and go on as somebody else.
        safe = (text.replace(CLOSE_RESULT, CLOSE_RESULT.replace("</", "</ ")) for text in results[count:])
        yield user("\n".join(f"{OPEN_RESULT}\n{text}\n{CLOSE_RESULT}" for text in safe))


def shown_name(call: ToolCall) -> str:
    """The tool's name, cut to the length of one."""
    return call["name"][:_MAX_NAME]


def with_instructions(opening: Sequence[Message], tools: Sequence[ToolSpec]) -> list[Message]:
    """The opening of a conversation whose system message tells how to call tools in the format "text"."""
    tags = {"open": OPEN_CALL, "close": CLOSE_CALL, "open_result": OPEN_RESULT, "close_result": CLOSE_RESULT}
    lines = [INSTRUCTIONS.format(**tags), *(json.dumps(tool, ensure_ascii=False) for tool in tools)]
    text = "\n".join(lines)
    if opening and opening[0]["role"] == "system":
        first: Message = {**opening[0], "content": f"{opening[0]['content']}\n\n{text}"}
        return [first, *opening[1:]]
    return [system(text), *opening]
