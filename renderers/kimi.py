r"""Kimi K2: `<|im_user|>user<|im_middle|>content<|im_end|>`, tools as a message of their own, calls with ids.

A call is known by its id, `functions.NAME:NUMBER`, and a result says which call it answers. The tokens are those of the
model's chat template, but that special tokens spelled out in content stay text, and that a call whose id has another
form is given one of this form, for the name stands nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ..messages import Message, Reply, Role, ToolCall, ToolSpec
from .base import Renderer
from .reading import BadCall, Grammar, Reader, as_json, make_call, parse_object
from .registry import register_renderer
from .tokens import Mark, TextTokenizer, TokenizerLike, as_text_tokenizer
from .turns import Pieces, Turn, TurnRenderer

DEFAULT_SYSTEM_PROMPT = "You are Kimi, an AI assistant created by Moonshot AI."
_SPEAKERS: dict[Role, str] = {
    "system": "<|im_system|>",
    "user": "<|im_user|>",
    "assistant": "<|im_assistant|>",
    "tool": "<|im_system|>",
}
_MIDDLE, _END = "<|im_middle|>", "<|im_end|>"
_CALLS, _END_CALLS = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
_CALL, _ARGUMENTS, _END_CALL = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
_ID = re.compile(r"functions\.(.+):\d+")
_ENDED: Pieces = (Mark(_END),)


class Kimi:
    """Kimi K2's format as a `TurnFormat`."""

    name = "kimi_k2"
    is_prefix_stable = True
    supports_tools = True
    supports_thinking = False

    def __init__(self, tokenizer: TextTokenizer | TokenizerLike) -> None:
        """Makes the format for a tokenizer; raises ValueError if it lacks Kimi's special tokens."""
        self.text = as_text_tokenizer(tokenizer)
        self.text.special(_MIDDLE)
        grammar = Grammar(
            ends=(_END,),
            also_stops=("[EOS]", "[EOT]"),
            call=(_CALL, _END_CALL),
            ignored=(_CALLS, _END_CALLS),
            inner=(_ARGUMENTS,),
            read_call=_read_call,
            before_call="",
        )
        self._reader = Reader(self.text, grammar)
        self.stop_sequences = self._reader.stop_sequences

    def write(self, messages: Sequence[Message], tools: Sequence[ToolSpec], *, opening: bool) -> list[Turn]:
        turns: list[Turn] = []
        if opening and tools:
            # The model's own tokenizer code sorts the keys and leaves out the spaces.
            wrapped = [{"type": "function", "function": tool} for tool in tools]
            declared = as_json(wrapped, separators=(",", ":"), sort_keys=True)
            turns.append(Turn((Mark(f"<|im_system|>tool_declare{_MIDDLE}"), declared, *_ENDED)))
        if opening and messages[0]["role"] != "system":
            turns.append(Turn((Mark(f"<|im_system|>system{_MIDDLE}"), DEFAULT_SYSTEM_PROMPT, *_ENDED, Mark("\n"))))
        ids: dict[str, str] = {}
        for index, message in enumerate(messages):
            role = message["role"]
            said = message.get("name") or role
            header: Pieces = (Mark(_SPEAKERS[role]), said, Mark(_MIDDLE))
            body: Pieces = (message["content"],)
            if role == "assistant":
                header = (Mark(f"<|im_assistant|>assistant{_MIDDLE}"),)
                body = (*body, *self._calls(message.get("tool_calls") or (), ids))
            elif role == "tool":
                call_id = message.get("tool_call_id", "")
                header = (*header, Mark("## Return of "), ids.get(call_id, call_id), Mark("\n"))
            turns.append(Turn(header, body, _ENDED, (), index, role == "assistant"))
        return turns

    def _calls(self, calls: Sequence[ToolCall], ids: dict[str, str]) -> Iterator[str]:
        if not calls:
            return
        yield Mark(_CALLS)
        for call in calls:
            named = _ID.fullmatch(call["id"])
            written = call["id"] if named and named[1] == call["name"] else f"functions.{call['name']}:{len(ids)}"
            ids[call["id"]] = written
            yield from (Mark(_CALL), written, Mark(_ARGUMENTS), as_json(call["arguments"]), Mark(_END_CALL))
        yield Mark(_END_CALLS)

    def parse(self, tokens: Sequence[int], tools: Sequence[ToolSpec]) -> Reply:
        return self._reader.parse(tokens, tools)

    def close(self, sampled: Sequence[int], following: Sequence[Role]) -> Pieces | None:
        return self._reader.close(sampled)


def _read_call(inside: Sequence[str], tools: Mapping[str, ToolSpec], index: int) -> ToolCall:
    cut = next((i for i, piece in enumerate(inside) if type(piece) is Mark and piece == _ARGUMENTS), None)
    if cut is None:
        raise BadCall(f"{_ARGUMENTS} is missing")
    call_id = "".join(inside[:cut]).strip()
    named = _ID.fullmatch(call_id)
    if named is None:
        raise BadCall(f"the id functions.NAME:NUMBER was expected, not {call_id[:80]!r}")
    return make_call(named[1], parse_object("".join(inside[cut + 1 :])), index, call_id)


@register_renderer(
    "kimi_k2",
    recognises=lambda tokenizer: (
        _MIDDLE in tokenizer.special_tokens
        and _CALLS in tokenizer.special_tokens
        and "<think>" not in (tokenizer.chat_template or "")
    ),
)
def kimi_k2(tokenizer: TextTokenizer) -> Renderer:
    """Kimi K2 Instruct."""
    return TurnRenderer(Kimi(tokenizer))
