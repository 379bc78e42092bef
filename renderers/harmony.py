r"""Harmony, the format of gpt-oss: `<|start|>assistant<|channel|>final<|message|>...<|return|>`.

A reply is one or more messages on channels: thinking on `analysis`, calls and what is said before them on `commentary`,
the answer on `final`. It ends with `<|return|>`, or with `<|call|>` after a call, and holds at most one call. In
history an answer ends with `<|end|>` and thinking before the last answer is dropped, so this format rewrites history.

Where the tokens differ from those of the model's chat template, on purpose:

- Special tokens spelled out in content stay text.
- The date is fixed, or the same conversation would be other tokens tomorrow; `date` changes it.
- Text beside a call goes to the commentary channel, as the format's description has it; the template takes it for
  thinking, and refuses it beside thinking.
- Thinking before calls of the turn that is being trained is kept, for the prompts had it; the template drops it there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..messages import Message, Reply, Role, ToolSpec
from .base import Renderer
from .reading import BadCall, Draft, as_json, make_call, parse_object, user_speaks
from .registry import register_renderer
from .tokens import Mark, TextTokenizer, TokenizerLike, as_text_tokenizer
from .turns import Pieces, Turn, TurnRenderer, index_of_first

EFFORTS = ("low", "medium", "high")
_START, _END, _MESSAGE, _CHANNEL = "<|start|>", "<|end|>", "<|message|>", "<|channel|>"
_CALL, _RETURN, _CONSTRAIN = "<|call|>", "<|return|>", "<|constrain|>"
_ANALYSIS, _FINAL = Mark(f"{_CHANNEL}analysis{_MESSAGE}"), Mark(f"{_CHANNEL}final{_MESSAGE}")
_PREAMBLE = Mark(f"{_CHANNEL}commentary{_MESSAGE}")
_NEXT = Mark(f"{_END}{_START}assistant")
_HEADER = (Mark(f"{_START}assistant"),)
_TO, _AS_JSON = Mark(" to=functions."), Mark(f"{_CHANNEL}commentary json{_MESSAGE}")


class Harmony:
    """Harmony as a `TurnFormat`."""

    is_prefix_stable = False
    supports_tools = True
    supports_thinking = True

    def __init__(
        self, tokenizer: TextTokenizer | TokenizerLike, *, effort: str = "medium", date: str = "2025-08-05"
    ) -> None:
        """Makes the format for a tokenizer.

        Args:
            tokenizer: what `TextTokenizer` takes, or one.
            effort: how much the model is told to think: low, medium or high.
            date: which it is told it is.

        Raises:
            ValueError: the tokenizer lacks Harmony's special tokens, or there is no such effort.
        """
        if effort not in EFFORTS:
            raise ValueError(f"effort is one of {', '.join(EFFORTS)}, got {effort!r}")
        self.text, self.effort, self.date = as_text_tokenizer(tokenizer), effort, date
        self.name = f"gpt_oss_{effort}"
        self.stop_sequences = [self.text.special(_RETURN), self.text.special(_CALL)]
        self._inside = frozenset(
            self.text.special(mark)
            for mark in (_START, _END, _MESSAGE, _CHANNEL, _CONSTRAIN)
            if mark != _CONSTRAIN or mark in self.text.special_tokens
        )

    def write(self, messages: Sequence[Message], tools: Sequence[ToolSpec], *, opening: bool) -> list[Turn]:
        turns = list(self._opening(messages[0], tools)) if opening else []
        last = len(messages) - 1
        answered = max((i for i, m in enumerate(messages[:last]) if _is_answer(m)), default=-1)
        called = ""
        for index, message in enumerate(messages):
            role = message["role"]
            if role == "assistant":
                turns.append(self._reply(message, index, keeps=index > answered, last=index == last))
                calls = message.get("tool_calls")
                called = calls[0]["name"] if calls else ""
            elif role == "tool":
                name = message.get("name") or called
                if not name:
                    raise ValueError(f"message {index} is a tool's, but no message before it calls one")
                header = (Mark(f"{_START}functions."), name, Mark(f" to=assistant{_CHANNEL}commentary{_MESSAGE}"))
                turns.append(Turn(header, (as_json(message["content"]),), (Mark(_END),), (), index))
            elif role == "user":
                turns.append(Turn((Mark(f"{_START}user{_MESSAGE}"),), (message["content"],), (Mark(_END),), (), index))
            elif not (opening and index == 0):
                raise ValueError(f"{self.name} has a system message only at the start, not as message {index}")
        return turns

    def _opening(self, first: Message, tools: Sequence[ToolSpec]) -> Iterator[Turn]:
        """What the model is told about itself, then the developer's message with the system's words and the tools."""
        told = (
            "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\nCurrent date: "
            f"{self.date}\n\nReasoning: {self.effort}\n\n"
            "# Valid channels: analysis, commentary, final. Channel must be included for every message."
        )
        if tools:
            told += "\nCalls to these tools must go to the commentary channel: 'functions'."
        yield Turn((Mark(f"{_START}system{_MESSAGE}{told}{_END}"),))
        given = first["role"] == "system"
        instructions = first["content"] if given else ""
        if not instructions and not tools:
            return
        body: list[str] = [Mark("# Instructions\n\n"), instructions, Mark("\n\n")] if instructions else []
        if tools:
            body += [Mark("# Tools\n\n"), _namespace(tools)]
        yield Turn((Mark(f"{_START}developer{_MESSAGE}"),), tuple(body), (Mark(_END),), (), 0 if given else None)

    def _reply(self, message: Message, index: int, *, keeps: bool, last: bool) -> Turn:
        content, calls = message["content"], message.get("tool_calls") or ()
        thinking = message.get("thinking", "") if keeps and (calls or last) else ""
        body: list[str] = [_ANALYSIS, thinking, _NEXT] if thinking else []
        if not calls:
            end = (Mark(_RETURN),) if last else (Mark(_END),)
            return Turn(_HEADER, (*body, _FINAL, content), end, (), index, True)
        if len(calls) > 1:
            raise ValueError(f"message {index} has {len(calls)} tool calls; a reply of {self.name} has one at most")
        body += [_PREAMBLE, content, _NEXT] if content else []
        body += [_TO, calls[0]["name"], _AS_JSON, as_json(calls[0]["arguments"])]
        return Turn(_HEADER, tuple(body), (Mark(_CALL),), (), index, True)

    def parse(self, tokens: Sequence[int], tools: Sequence[ToolSpec]) -> Reply:
        stop = index_of_first(tokens, self.stop_sequences)
        calls = stop is not None and tokens[stop] == self.stop_sequences[1]
        messages = _messages(self.text.pieces(tokens[:stop], self._inside))
        draft, thoughts, answers = Draft(), [], 0
        for number, (header, body) in enumerate(messages):
            channel, recipient = _CHANNEL_NAME.search(header), _RECIPIENT.search(header)
            if body is None:
                draft.keep((header,), f"a message has no {_MESSAGE}")
            elif recipient is not None:
                last = number == len(messages) - 1
                self._read_call(recipient[1], header, body, draft, complete=last and (calls or stop is None))
            elif channel is not None and channel[1] == "analysis":
                thoughts.append(body)
            elif channel is not None and channel[1] in ("commentary", "final"):
                draft.content.append(body)
                answers += 1
            else:
                draft.keep((header, _MESSAGE, body), "a message is on no channel")
        draft.thinking = "\n".join(thoughts)
        if calls and not draft.calls and not draft.problem:
            draft.problem = f"{_CALL} ends a message that goes to no tool"
        if stop is not None and not calls and not answers and not draft.problem:
            draft.problem = "there is no final message"
        return draft.finish("".join(draft.content), stop is not None)

    def _read_call(self, recipient: str, header: str, body: str, draft: Draft, *, complete: bool) -> None:
        try:
            if not complete:
                raise BadCall(f"it does not end with {_CALL}")
            draft.calls.append(make_call(recipient.removeprefix("functions."), parse_object(body), len(draft.calls)))
        except BadCall as error:
            draft.keep((header, _MESSAGE, body), f"tool call {len(draft.calls)}: {error}")

    def close(self, sampled: Sequence[int], following: Sequence[Role]) -> Pieces | None:
        if user_speaks(following) or not sampled or following[0] != "tool":
            return None
        special = [i for i, token in enumerate(sampled) if self.text.is_special(token) and token not in self._inside]
        return () if special == [len(sampled) - 1] and sampled[-1] == self.stop_sequences[1] else None


_CHANNEL_NAME = re.compile(rf"{re.escape(_CHANNEL)}\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")


def _is_answer(message: Message) -> bool:
    return message["role"] == "assistant" and not message.get("tool_calls")


def _messages(pieces: Sequence[str]) -> list[tuple[str, str | None]]:
    """The header and the body of each message of a reply; the body of one that has none is None."""
    found: list[tuple[str, str | None]] = []
    header: list[str] = []
    body: list[str] | None = None
    for piece in pieces:
        mark = piece if type(piece) is Mark else None
        if mark in (_START, _END):
            if header or body is not None:
                found.append(("".join(header), None if body is None else "".join(body)))
            header, body = [], None
        elif mark == _MESSAGE and body is None:
            body = []
        elif body is not None:
            body.append(piece)
        else:
            header.append(piece)
    if header or body is not None:
        found.append(("".join(header), None if body is None else "".join(body)))
    return [(header, body) for header, body in found if body is not None or header.strip() != "assistant"]


def _namespace(tools: Sequence[ToolSpec]) -> str:
    """The tools as TypeScript, as the model was taught to read them."""
    declared = "".join(map(_declared, tools))
    return f"## functions\n\nnamespace functions {{\n\n{declared}}} // namespace functions"


def _declared(tool: ToolSpec) -> str:
    schema = tool.get("parameters") or {}
    properties: Mapping[str, Any] = schema.get("properties") or {}
    required = schema.get("required") or []
    head = f"// {tool.get('description', '')}\ntype {tool['name']} = "
    if not properties:
        return f"{head}() => any;\n\n"
    lines = "".join(_parameter(name, spec, required) for name, spec in properties.items())
    return f"{head}(_: {{\n{lines}}}) => any;\n\n"


def _parameter(name: str, spec: Mapping[str, Any], required: Sequence[str]) -> str:
    comment = f"// {spec['description']}\n" if spec.get("description") else ""
    default = ""
    if "default" in spec:
        bare = spec.get("enum") or spec.get("oneOf")
        written = spec["default"] if bare else as_json(spec["default"])
        default = f"{'' if spec.get('oneOf') and not spec.get('enum') else ', '}// default: {written}"
    return f"{comment}{name}{'' if name in required else '?'}: {_type(spec)}{default},\n"


_SCALARS = {"number": "number", "integer": "number", "boolean": "boolean"}


def _type(spec: Mapping[str, Any]) -> str:
    """A JSON schema as a TypeScript type, with the template's own spacing."""
    kind = spec.get("type")
    or_null = " | null" if spec.get("nullable") else ""
    if kind == "array":
        return _array(spec) + or_null
    if isinstance(kind, list) and kind:
        return " | ".join(kind)
    if spec.get("oneOf"):
        return _one_of(spec["oneOf"])
    if kind == "string":
        return '"' + '" | "'.join(map(str, spec["enum"])) + '"' if spec.get("enum") else f"string{or_null}"
    if kind == "object" and spec.get("properties"):
        return _object(spec)
    return _SCALARS.get(str(kind), "object" if kind == "object" else "any")


def _array(spec: Mapping[str, Any]) -> str:
    items = spec.get("items")
    if not items:
        return "any[]"
    if items.get("type") == "string":
        return "string[]"
    inner = _type(items)
    return "any[]" if inner == "object | object" or len(inner) > 50 else f"{inner}[]"


def _one_of(variants: Sequence[Mapping[str, Any]]) -> str:
    if len(variants) > 1 and any(variant.get("type") == "object" for variant in variants):
        return "any"
    written = []
    for variant in variants:
        comment = f"// {variant['description']}" if variant.get("description") else ""
        default = f"{' ' * 20}// default: {as_json(variant['default'])}" if "default" in variant else ""
        written.append(f"{_type(variant)}{comment}{default}")
    return " | \n".join(written)


def _object(spec: Mapping[str, Any]) -> str:
    required = spec.get("required") or []
    gap = "\n" + " " * 16
    fields = [f"{name}{'' if name in required else '?'}: {gap}{_type(of)}" for name, of in spec["properties"].items()]
    return "{\n" + ", ".join(fields) + "}"


def _register(effort: str) -> None:
    def recognises(tokenizer: TextTokenizer) -> bool:
        return effort == "medium" and _CHANNEL in tokenizer.special_tokens and _RETURN in tokenizer.special_tokens

    def build(tokenizer: TextTokenizer, date: str = "2025-08-05") -> Renderer:
        return TurnRenderer(Harmony(tokenizer, effort=effort, date=date))

    register_renderer(f"gpt_oss_{effort}", recognises=recognises)(build)


for _effort in EFFORTS:
    _register(_effort)
