r"""Llama 3, 3.1 to 3.3 and 4: `<|start_header_id|>role<|end_header_id|>\n\ncontent<|eot_id|>`.

From 3.1 on tools are declared in the first user's message, and a call is a bare JSON object, which is why a reply is
either text or a call: nothing but its shape tells one from the other. Where the tokens differ from those of the models'
chat templates, on purpose:

- Special tokens spelled out in content stay text.
- The date of the preamble is fixed, or the same conversation would be other tokens tomorrow; `date` changes it.
- An answer of the assistant's that has the shape of a call gets a space before it.
- What the templates drop without a word is refused: text beside a call (3.x), tools without a user's message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..messages import Message, Reply, Role, ToolSpec
from .base import Renderer
from .reading import BadCall, Draft, Grammar, Reader, as_json, make_call, parse_object, tool_json
from .registry import register_renderer
from .tokens import Mark, TextTokenizer, TokenizerLike, as_text_tokenizer
from .turns import Pieces, Turn, TurnRenderer, index_of_first

_TOOLS = (
    Mark(
        "Given the following functions, please respond with a JSON for a function call with its proper arguments that "
        'best answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of '
        "argument name and its value}.Do not use variables.\n\n"
    ),
    Mark("\n\n"),
)
_BETWEEN = re.compile(r"[; \n]*")
_CALL = re.compile(r'\{\s*"name"\s*:\s*"[^"]*"\s*,\s*"parameters"\s*:')


@dataclass(frozen=True)
class LlamaVersion:
    """What tells one generation of Llama from another.

    Attributes:
        start, middle, end: the tokens around a header and after a message.
        code: the tokens around what is run or said before calls; one of them may be missing.
        also_stops: tokens that stop a reply too.
        preamble: whether every conversation begins with a system message that tells the date.
        date: which it tells.
        tools: whether tools can be offered.
        trims: whether whitespace around all content is dropped.
        many_calls: whether a reply may hold several calls, and text before them.
    """

    name: str
    start: str = "<|start_header_id|>"
    middle: str = "<|end_header_id|>"
    end: str = "<|eot_id|>"
    code: tuple[str, ...] = ()
    also_stops: tuple[str, ...] = ("<|eom_id|>", "<|end_of_text|>")
    preamble: bool = False
    date: str = "26 Jul 2024"
    tools: bool = True
    trims: bool = True
    many_calls: bool = False


class Llama:
    """Llama's formats as a `TurnFormat`."""

    is_prefix_stable = True
    supports_thinking = False

    def __init__(self, tokenizer: TextTokenizer | TokenizerLike, version: LlamaVersion) -> None:
        """Makes the format for a tokenizer; raises ValueError if it lacks the special tokens of the version."""
        self.text, self.version, self.name = as_text_tokenizer(tokenizer), version, version.name
        self.supports_tools = version.tools
        self.text.special(version.start)
        grammar = Grammar(ends=(version.end,), also_stops=version.also_stops, inner=version.code)
        self._reader = Reader(self.text, grammar)
        self.stop_sequences = self._reader.stop_sequences
        self._code = frozenset(map(self.text.special, version.code))
        self._end, self._gap = (Mark(version.end),), (Mark("\n\n"),)
        names = {"system": "system", "user": "user", "assistant": "assistant", "tool": "ipython"}
        self._headers = {role: (Mark(f"{version.start}{name}{version.middle}\n\n"),) for role, name in names.items()}

    def write(self, messages: Sequence[Message], tools: Sequence[ToolSpec], *, opening: bool) -> list[Turn]:
        turns = list(self._opening(messages, tools)) if opening else []
        given = opening and messages[0]["role"] == "system"
        first_user = int(given)
        if opening and tools and messages[first_user]["role"] != "user":
            raise ValueError(
                f"{self.name} declares tools in the first message after the system's, which is to be the user's, "
                f"not the {messages[first_user]['role']}'s"
            )
        for index, message in enumerate(messages):
            if given and index == 0:
                continue
            role = message["role"]
            if role == "assistant":
                turns.append(Turn(self._headers[role], self._said(message, index), self._end, (), index, True))
                continue
            body: Pieces = (as_json(message["content"]),) if self._is_result(role) else (self._content(message),)
            if opening and tools and index == first_user:
                declared = [piece for tool in tools for piece in (tool_json(tool, indent=4), _TOOLS[1])]
                body = (_TOOLS[0], *declared, message["content"].strip())
            turns.append(Turn(self._headers[role], body, self._end, (), index))
        return turns

    def _is_result(self, role: Role) -> bool:
        return role == "tool" and self.version.tools

    def _content(self, message: Message) -> str:
        return message["content"].strip() if self.version.trims else message["content"]

    def _opening(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> Iterator[Turn]:
        yield Turn((self.text.leading_text or Mark("<|begin_of_text|>"),))
        given = messages[0]["role"] == "system"
        if not self.version.preamble and not given:
            return
        said = [Mark("Environment: ipython\n")] if tools else []
        if self.version.preamble:
            said.append(Mark(f"Cutting Knowledge Date: December 2023\nToday Date: {self.version.date}\n\n"))
        content = messages[0]["content"].strip() if given else ""
        yield Turn((*self._headers["system"], *said), (content,), self._end, (), 0 if given else None)

    def _said(self, message: Message, index: int) -> Pieces:
        content, calls = self._content(message), message.get("tool_calls") or ()
        if not calls:
            return (Mark(" "), content) if self.version.tools and _CALL.match(content) else (content,)
        written = [
            piece
            for call in calls
            for piece in (
                *(Mark('{"name": "'), call["name"], Mark('", "parameters": ')),
                *(as_json(call["arguments"]), Mark("}")),
            )
        ]
        if self.version.many_calls:
            before, after = self.version.code
            return (Mark(before), content, Mark(after), *written)
        if len(calls) > 1 or content:
            what = f"{len(calls)} tool calls" if len(calls) > 1 else "text beside a tool call"
            raise ValueError(f"message {index} has {what}; a reply of {self.name} is either text or one call")
        return tuple(written)

    def parse(self, tokens: Sequence[int], tools: Sequence[ToolSpec]) -> Reply:
        stop = index_of_first(tokens, self.stop_sequences)
        pieces = self.text.pieces(tokens[:stop], self._code)
        draft = Draft()
        if type(pieces[0] if pieces else "") is Mark:
            # Llama 3.x: a call of a built-in tool. Llama 4: what is said before the calls.
            ends = [i for i, piece in enumerate(pieces) if type(piece) is Mark and piece == self.version.code[-1]]
            cut = ends[-1] if self.version.many_calls and ends else 0
            draft.content.extend(pieces[1:cut])
            pieces = pieces[cut + 1 :]
        source = "".join(pieces)
        if self.version.tools and _CALL.match(source):
            self._read_calls(source, draft)
        else:
            draft.content.append(source)
        content = "".join(draft.content)
        return draft.finish(content.strip() if self.version.trims else content, stop is not None)

    def _read_calls(self, source: str, draft: Draft) -> None:
        decoder, position = json.JSONDecoder(), 0
        while position < len(source):
            try:
                _, end = decoder.raw_decode(source, position)
                call = parse_object(source[position:end])
                draft.calls.append(make_call(call.get("name"), call.get("parameters"), len(draft.calls)))
            except (ValueError, RecursionError, BadCall) as error:
                draft.keep((source[position:],), f"tool call {len(draft.calls)}: {error}")
                return
            between = _BETWEEN.match(source, end)
            position = between.end() if between else end

    def close(self, sampled: Sequence[int], following: Sequence[Role]) -> Pieces | None:
        return self._reader.close(sampled)


_LLAMA3 = LlamaVersion("llama3", tools=False)
_LLAMA31 = LlamaVersion("llama3.1", preamble=True, code=("<|python_tag|>",))
_LLAMA4 = LlamaVersion(
    "llama4",
    start="<|header_start|>",
    middle="<|header_end|>",
    end="<|eot|>",
    code=("<|python_start|>", "<|python_end|>"),
    also_stops=("<|eom|>", "<|end_of_text|>"),
    trims=False,
    many_calls=True,
)


def _register(version: LlamaVersion, *told_by: str) -> None:
    def recognises(tokenizer: TextTokenizer) -> bool:
        return version.start in tokenizer.special_tokens and all(
            part in (tokenizer.chat_template or "") for part in told_by
        )

    def build(tokenizer: TextTokenizer, date: str = version.date) -> Renderer:
        return TurnRenderer(Llama(tokenizer, replace(version, date=date)))

    register_renderer(version.name, recognises=recognises)(build)


_register(_LLAMA3, "<|start_header_id|>")
_register(_LLAMA31, "<|start_header_id|>", "Cutting Knowledge Date: December 2023")
_register(_LLAMA4, "<|header_start|>")
