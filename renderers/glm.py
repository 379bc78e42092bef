r"""GLM-4.5 to 4.7: `<|user|>\n...<|assistant|>\n<think>...</think>\n...`, calls as keys and values between marks.

No token ends a message: a reply ends where the model writes the token of who is next, `<|user|>` or `<|observation|>`.
Thinking of replies before the user last spoke is dropped, so with thinking this format rewrites history. Where the
tokens differ from those of the models' chat templates, on purpose:

- Special tokens spelled out in content stay text; so does a `</think>`, which the templates take for thinking.
- An example that ends with a reply ends with the token that the model must learn to end it with.
- With thinking disabled, a reply after the user last spoke that has thinking is refused instead of written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..messages import Message, Reply, Role, ToolCall, ToolSpec
from .base import Renderer
from .reading import BadCall, Grammar, Reader, as_json, last_user, make_call, tool_json, untyped_value, user_speaks
from .registry import register_renderer
from .tokens import Mark, TextTokenizer, TokenizerLike, as_text_tokenizer
from .turns import Pieces, Turn, TurnRenderer

_HANDOVER: dict[Role | None, Pieces] = {"user": (Mark("<|user|>"),), "tool": (Mark("<|observation|>"),)}
_TOOLS = (
    Mark(
        "<|system|>\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided "
        "with function signatures within <tools></tools> XML tags:\n<tools>\n"
    ),
    Mark("\n"),
    Mark(
        "</tools>\n\nFor each function call, output the function name and arguments within the following XML format:\n"
        "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n<arg_value>{arg-value-1}</arg_value>\n"
        "<arg_key>{arg-key-2}</arg_key>\n<arg_value>{arg-value-2}</arg_value>\n...\n</tool_call>"
    ),
)
_KEY, _END_KEY, _VALUE, _END_VALUE = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"
_CLOSED_BY = {_KEY: _END_KEY, _VALUE: _END_VALUE}
_ASSISTANT = Mark("<|assistant|>")


class Glm:
    """GLM's format as a `TurnFormat`."""

    supports_tools = True
    supports_thinking = True

    def __init__(self, tokenizer: TextTokenizer | TokenizerLike, *, thinking: bool = True) -> None:
        """Makes the format for a tokenizer; raises ValueError if it lacks GLM's special tokens."""
        self.text, self.thinking = as_text_tokenizer(tokenizer), thinking
        self.name = "glm4.5" if thinking else "glm4.5_no_thinking"
        self.is_prefix_stable = not thinking
        grammar = Grammar(
            ends=("<|user|>", "<|observation|>"),
            also_stops=("<|endoftext|>",),
            think=("<think>", "</think>"),
            call=("<tool_call>", "</tool_call>"),
            inner=(_KEY, _END_KEY, _VALUE, _END_VALUE),
            read_call=_read_call,
            close_thinking="</think>",
            trim=True,
        )
        self._reader = Reader(self.text, grammar)
        self.stop_sequences = self._reader.stop_sequences

    def write(self, messages: Sequence[Message], tools: Sequence[ToolSpec], *, opening: bool) -> list[Turn]:
        turns = [Turn((Mark("[gMASK]<sop>"),))] if opening else []
        if opening and tools:
            declared = [piece for tool in tools for piece in (tool_json(tool), _TOOLS[1])]
            turns.append(Turn((_TOOLS[0], *declared, _TOOLS[2])))
        asked = last_user(messages)
        before: Role | None = None
        following = [*(message["role"] for message in messages[1:]), None]
        for index, (message, after) in enumerate(zip(messages, following, strict=True)):
            role = message["role"]
            # The reply before has already written the mark of who is next.
            header = () if before == "assistant" or before == role == "tool" else _HANDOVER.get(role, ())
            if role == "assistant":
                turns.append(self._reply(message, index, index > asked, after))
            elif role == "tool":
                body = (Mark("\n<tool_response>\n"), message["content"], Mark("\n</tool_response>"))
                turns.append(Turn(header, body, (), (), index))
            elif role == "system":
                turns.append(Turn((Mark("<|system|>\n"),), (message["content"],), (), (), index))
            else:
                # Always: a user who spells it out has written text, not the token.
                end: Pieces = () if self.thinking else (Mark("/nothink"),)
                turns.append(Turn((*header, Mark("\n")), (message["content"],), (), end, index))
            before = role
        return turns

    def _reply(self, message: Message, index: int, current: bool, after: Role | None) -> Turn:
        content, thinking = message["content"].strip(), message.get("thinking", "").strip() if current else ""
        calls = message.get("tool_calls") or ()
        if thinking and not self.thinking:
            raise ValueError(f"message {index} has thinking, which {self.name!r} disables; remove it there")
        said = [Mark("\n"), content] if content else []
        said += self._calls(calls)
        if after is None:
            after = "tool" if calls else "user"
        end = _HANDOVER.get(after, ())
        if self.thinking:
            return Turn((_ASSISTANT,), (Mark("\n<think>"), thinking, Mark("</think>"), *said), end, (), index, True)
        return Turn((_ASSISTANT, Mark("\n<think></think>")), tuple(said), end, (), index, True)

    def _calls(self, calls: Sequence[ToolCall]) -> Iterator[str]:
        for call in calls:
            yield from (Mark("\n<tool_call>"), call["name"], Mark("\n"))
            for key, value in call["arguments"].items():
                written = value if isinstance(value, str) else as_json(value)
                yield from (Mark(_KEY), key, Mark(f"{_END_KEY}\n{_VALUE}"), written, Mark(f"{_END_VALUE}\n"))
            yield Mark("</tool_call>")

    def parse(self, tokens: Sequence[int], tools: Sequence[ToolSpec]) -> Reply:
        return self._reader.parse(tokens, tools)

    def close(self, sampled: Sequence[int], following: Sequence[Role]) -> Pieces | None:
        handover = _HANDOVER.get(following[0])
        if handover is None or (not self.is_prefix_stable and user_speaks(following)):
            return None
        closing = self._reader.close(sampled)
        if closing == ():
            return () if sampled[-1] == self.text.special(handover[0]) else None
        return None if closing is None else (*closing[:-1], *handover)


def _read_call(inside: Sequence[str], tools: Mapping[str, ToolSpec], index: int) -> ToolCall:
    name = inside[0].strip() if inside and type(inside[0]) is str else ""
    parts = list(_parts(inside[1:]))
    if [kind for kind, _ in parts] != [_KEY, _VALUE] * (len(parts) // 2):
        raise BadCall(f"pairs of {_KEY} and {_VALUE} were expected")
    texts = [text for _, text in parts]
    arguments = {
        key: untyped_value(value, key, tools.get(name)) for key, value in zip(texts[::2], texts[1::2], strict=True)
    }
    return make_call(name, arguments, index)


def _parts(inside: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each key and each value, with the mark that opened it."""
    opened, said = "", ""
    for piece in inside:
        if type(piece) is Mark and not opened and piece in _CLOSED_BY:
            opened, said = piece, ""
        elif type(piece) is Mark and opened and piece == _CLOSED_BY[opened]:
            yield opened, said
            opened = ""
        elif type(piece) is Mark:
            raise BadCall(f"{piece} stands where it means nothing")
        elif opened:
            said = piece
        elif piece.strip():
            raise BadCall(f"there is text between keys and values: {piece.strip()[:40]!r}")
    if opened:
        raise BadCall(f"{opened} was never closed")


@register_renderer(
    "glm4.5",
    recognises=lambda tokenizer: (
        "<|observation|>" in tokenizer.special_tokens
        and "[gMASK]<sop>" in (tokenizer.chat_template or "")
        and _KEY in (tokenizer.chat_template or "")
    ),
)
def glm45(tokenizer: TextTokenizer) -> Renderer:
    """GLM-4.5 and later, thinking."""
    return TurnRenderer(Glm(tokenizer))


@register_renderer("glm4.5_no_thinking")
def glm45_no_thinking(tokenizer: TextTokenizer) -> Renderer:
    """GLM-4.5 and later, with thinking disabled."""
    return TurnRenderer(Glm(tokenizer, thinking=False))
