"""Messages to and from the formats of the OpenAI API and of Hugging Face's chat templates, tools included.

Ours differ from both in three points: arguments of calls are parsed, thinking has a field of its own, and a call's name
stands in the call itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from ..messages import ROLES, Message, ToolCall, ToolSpec

_THINKING = ("thinking", "reasoning_content", "reasoning")


def to_openai(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Messages as the OpenAI API takes them: arguments are a string of JSON, thinking is `reasoning_content`."""
    return [_outward(message, as_text=True) for message in messages]


def to_hugging_face(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates read them: arguments are objects, thinking stands under each of its usual names."""
    return [_outward(message, as_text=False) for message in messages]


def from_openai(messages: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Messages from either format: content in parts or None, arguments as text or parsed, `developer` as `system`.

    Raises:
        ValueError: a message cannot be one of ours (an image, say, or arguments that are no JSON); it names which.
    """
    return [_inward(message, f"messages[{index}]") for index, message in enumerate(_listed(messages, "messages"))]


from_hugging_face = from_openai


def tools_to_openai(tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    """Tools as both formats declare them."""
    return [{"type": "function", "function": dict(tool)} for tool in tools]


def tools_from_openai(tools: Iterable[Mapping[str, Any]]) -> list[ToolSpec]:
    """Tools from either format, with or without the wrapper.

    Raises:
        ValueError: a tool has no name.
    """
    found: list[ToolSpec] = []
    for index, tool in enumerate(_listed(tools, "tools")):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(f"tools[{index}] has no name: {tool!r:.200}")
        description = function.get("description") or ""
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(description, str) or not isinstance(parameters, Mapping):
            raise ValueError(
                f"tools[{index}]: a description is text and parameters are a JSON schema, got {tool!r:.200}"
            )
        found.append({"name": function["name"], "description": description, "parameters": dict(parameters)})
    return found


def _outward(message: Message, *, as_text: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"role": message["role"], "content": message["content"]}
    made |= {key: message[key] for key in ("name", "tool_call_id") if key in message}
    if message.get("thinking"):
        names = ("reasoning_content",) if as_text else ("reasoning_content", "thinking")
        made |= dict.fromkeys(names, message["thinking"])
    if message.get("tool_calls"):
        made["tool_calls"] = [_call_outward(call, as_text) for call in message["tool_calls"]]
    return made


def _call_outward(call: ToolCall, as_text: bool) -> dict[str, Any]:
    arguments = json.dumps(call["arguments"], ensure_ascii=False) if as_text else call["arguments"]
    return {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": arguments}}


def _listed(given: Any, what: str) -> Iterable[Any]:
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise ValueError(f"{what}: expected a list of objects, got {given!r:.200}")
    return given


def _inward(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise ValueError(f"{where}: expected an object with role and content, got {message!r:.200}")
    role = message.get("role")
    role = {"developer": "system", "function": "tool"}.get(role, role) if isinstance(role, str) else None
    if role not in ROLES:
        raise ValueError(f"{where}: role is one of {ROLES}, got {message.get('role')!r:.80}")
    made: dict[str, Any] = {"role": role, "content": _text(message.get("content"), where)}
    made |= {key: message[key] for key in ("name", "tool_call_id", "trainable") if message.get(key) is not None}
    thinking = next((message[key] for key in _THINKING if isinstance(message.get(key), str)), "")
    if thinking:
        made["thinking"] = thinking
    if message.get("tool_calls"):
        made["tool_calls"] = [
            _call_inward(call, f"{where}.tool_calls[{number}]", number)
            for number, call in enumerate(_listed(message["tool_calls"], f"{where}.tool_calls"))
        ]
    return cast(Message, made)


def _text(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            raise ValueError(f"{where}: content is text or parts of text, got {part!r:.200}")
    return "".join(part["text"] for part in parts)


def _call_inward(call: Any, where: str, number: int) -> ToolCall:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise ValueError(f"{where}: a call has a name and an object of arguments, got {call!r:.200}")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: arguments are no JSON ({error}): {arguments!r:.200}") from error
    if not isinstance(arguments, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"{where}: a call has a name and an object of arguments, got {call!r:.200}")
    return {"id": call.get("id") or f"call_{number}", "name": function["name"], "arguments": arguments}
