"""Reading replies: sampled tokens to thinking, content and tool calls, without ever failing.

A format says which of its marks mean what; a mark is a token, so text that only looks like one means nothing. How
conversations are written lives with the formats.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..messages import Reply, Role, StopReason, ToolCall, ToolSpec, reply
from .tokens import Mark, TextTokenizer
from .turns import Pieces, index_of_first


class BadCall(Exception):
    """A tool call that cannot be parsed; the message says why."""


ReadCall: TypeAlias = Callable[[Sequence[str], Mapping[str, ToolSpec], int], ToolCall]
"""Reads what stands inside a call: its pieces, the tools on offer by name, how many calls came before.

Raises `BadCall`."""


@dataclass(slots=True)
class Draft:
    """A reply while it is being read."""

    content: list[str] = field(default_factory=list)
    thinking: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    problem: str = ""

    def call(
        self, inside: Sequence[str], around: tuple[str, str], read: ReadCall, tools: Mapping[str, ToolSpec]
    ) -> None:
        """Reads one call; a malformed one stays in the content as it came."""
        try:
            self.calls.append(read(inside, tools, len(self.calls)))
        except BadCall as error:
            self.keep((around[0], *inside, around[1]), f"tool call {len(self.calls)}: {error}")

    def keep(self, pieces: Iterable[str], problem: str) -> None:
        """Keeps as content what could not be read."""
        self.content.extend(pieces)
        self.problem = self.problem or problem

    def finish(self, content: str, stopped: bool) -> Reply:
        """The reply; one that was cut off may well be incomplete and is not called malformed for it."""
        reason: StopReason = "length" if not stopped else "malformed" if self.problem else "stop"
        finished = reply(content, reason)
        if self.thinking:
            finished["thinking"] = self.thinking
        if self.calls:
            finished["tool_calls"] = self.calls
        if self.problem:
            finished["problem"] = self.problem
        return finished


@dataclass(frozen=True)
class Grammar:
    """What the marks inside a reply mean, for formats that put thinking first and calls between two marks.

    Attributes:
        ends: tokens that end a reply; the first is what a reply that was cut off is ended with.
        also_stops: tokens that stop a reply too, but after which a conversation cannot go on as the format has it.
        think: the marks around thinking.
        opens_thinking: whether the generation prompt has opened the thinking.
        call: the marks around a call.
        ignored: marks that carry no meaning of their own, such as those around a list of calls.
        inner: other marks that `read_call` looks for.
        read_call: reads what stands inside a call.
        strip: what is taken off the start of content that follows thinking, and off both ends of thinking.
        before_call: what a format puts between content and the first call.
        trim: whether content is stripped of whitespace.
    """

    ends: tuple[str, ...]
    also_stops: tuple[str, ...] = ()
    think: tuple[str, str] | None = None
    opens_thinking: bool = False
    call: tuple[str, str] | None = None
    ignored: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    read_call: ReadCall | None = None
    strip: str = "\n"
    before_call: str = "\n"
    close_thinking: str = "\n</think>\n\n"
    trim: bool = False


class Reader:
    """Reads replies of a `Grammar` from the tokens of one tokenizer."""

    def __init__(self, text: TextTokenizer, grammar: Grammar) -> None:
        """Raises ValueError if the tokenizer lacks one of the grammar's marks."""
        self.text, self.grammar = text, grammar
        inside = [*(grammar.think or ()), *(grammar.call or ()), *grammar.ignored, *grammar.inner]
        self._inside = frozenset(map(text.special, inside))
        self._outside = frozenset(text.special_tokens.values()) - self._inside
        self._ends = tuple(map(text.special, grammar.ends))
        extra = [text.special(token) for token in grammar.also_stops if token in text.special_tokens]
        self.stop_sequences = [*self._ends, *extra]
        self._stops = frozenset(self.stop_sequences)

    def parse(self, tokens: Sequence[int], tools: Sequence[ToolSpec]) -> Reply:
        """See `Renderer.parse_response`."""
        stop = index_of_first(tokens, self._stops)
        pieces = self.text.pieces(tokens[:stop], self._inside)
        grammar, draft, stopped = self.grammar, Draft(), stop is not None
        rest = self._read_thinking(pieces, draft, stopped)
        self._read_calls(rest, draft, {tool["name"]: tool for tool in tools})
        content = "".join(draft.content)
        return draft.finish(content.strip() if grammar.trim else content, stopped)

    def _read_thinking(self, pieces: list[str], draft: Draft, stopped: bool) -> list[str]:
        """Takes the thinking from the pieces' start and returns what follows it."""
        grammar = self.grammar
        if grammar.think is None:
            return pieces
        opening, closing = grammar.think
        first = next((piece for piece in pieces if not (type(piece) is str and not piece.strip())), "")
        if not grammar.opens_thinking and not (type(first) is Mark and first == opening):
            return pieces
        close = next((i for i, piece in enumerate(pieces) if type(piece) is Mark and piece == closing), None)
        thought = pieces[:close]
        # The prompt may have opened the thinking, and the model opens it once more.
        start = next((i for i, piece in enumerate(thought) if type(piece) is Mark and piece == opening), -1)
        before, thought = thought[: max(start, 0)], thought[start + 1 :]
        if any(piece.strip() for piece in before):
            thought = [*before, opening, *thought]
        draft.thinking = "".join(thought).strip(None if grammar.trim else grammar.strip)
        if close is None:
            if stopped:
                draft.problem = "the thinking was never closed"
            return []
        rest = pieces[close + 1 :]
        if rest and type(rest[0]) is str:
            rest[0] = rest[0].lstrip(grammar.strip)
        return rest

    def _read_calls(self, pieces: list[str], draft: Draft, tools: Mapping[str, ToolSpec]) -> None:
        grammar = self.grammar
        if grammar.call is None or grammar.read_call is None:
            draft.content.extend(pieces)
            return
        opening, closing = grammar.call
        inside: list[str] | None = None
        for piece in pieces:
            mark = piece if type(piece) is Mark else None
            if inside is None and mark == opening:
                if draft.content and not draft.calls and not draft.problem:
                    draft.content[-1] = draft.content[-1].removesuffix(grammar.before_call)
                inside = []
            elif inside is not None and mark == closing:
                draft.call(inside, grammar.call, grammar.read_call, tools)
                inside = None
            elif inside is not None:
                inside.append(piece)
            elif mark in grammar.ignored:
                if draft.content and not draft.calls and not draft.problem:
                    draft.content[-1] = draft.content[-1].removesuffix(grammar.before_call)
            elif mark is not None:
                draft.keep((piece,), f"{piece} stands where it means nothing")
            elif not (draft.calls and not piece.strip()):
                draft.content.append(piece)
        if inside is not None:
            draft.keep((opening, *inside), f"tool call {len(draft.calls)} was never closed with {closing}")

    def close(self, sampled: Sequence[int]) -> Pieces | None:
        """What a sampled reply lacks to be ended: the end of its thinking, and of itself.

        None if it holds a mark that has no place inside a reply, or goes on after its end.
        """
        outside = next((i for i, token in enumerate(sampled) if token in self._outside), None)
        if outside is not None:
            return () if outside == len(sampled) - 1 and sampled[outside] in self._ends else None
        end = (Mark(self.grammar.ends[0]),)
        return (Mark(self.grammar.close_thinking), *end) if self._is_thinking(sampled) else end

    def _is_thinking(self, sampled: Sequence[int]) -> bool:
        if self.grammar.think is None:
            return False
        opening, closing = map(self.text.special, self.grammar.think)
        return closing not in sampled and (self.grammar.opens_thinking or opening in sampled)


def parse_object(source: str) -> dict[str, Any]:
    """A JSON object from a model.

    Raises:
        BadCall: it is none; the message says why.
    """
    try:
        found = json.loads(source, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise BadCall(f"no JSON ({error})") from error
    if not isinstance(found, dict):
        raise BadCall(f"a JSON object was expected, not {type(found).__name__}")
    return found


def _no_number(text: str) -> None:
    raise BadCall(f"{text} is no JSON")


def make_call(name: Any, arguments: Any, index: int, call_id: str | None = None) -> ToolCall:
    """A tool call from what a model wrote.

    Raises:
        BadCall: the name is no name, or the arguments are no object.
    """
    if not isinstance(name, str) or not name.strip():
        raise BadCall(f"the name of a tool was expected, not {name!r:.80}")
    if not isinstance(arguments, dict):
        raise BadCall(f"the arguments are an object, not {type(arguments).__name__}")
    return {"id": call_id or f"call_{index}", "name": name, "arguments": arguments}


def read_json_call(key: str) -> ReadCall:
    """Reads `{"name": ..., key: {...}}`."""

    def read(inside: Sequence[str], tools: Mapping[str, ToolSpec], index: int) -> ToolCall:
        call = parse_object("".join(inside))
        if missing := {"name", key} - call.keys():
            raise BadCall(f"{', '.join(sorted(missing))} is missing")
        return make_call(call["name"], call[key], index)

    return read


def untyped_value(text: str, name: str, tool: ToolSpec | None) -> Any:
    """An argument that was written without quotes: text if the tool's schema says so, else JSON if it is any."""
    parameters: Any = tool.get("parameters") if tool else None
    schema = parameters.get("properties") if isinstance(parameters, Mapping) else None
    declared = schema.get(name) if isinstance(schema, Mapping) else None
    if isinstance(declared, Mapping) and declared.get("type") == "string":
        return text
    if text in _PYTHON:
        return _PYTHON[text]
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError, BadCall):
        return text


_PYTHON = {"True": True, "False": False, "None": None}


def as_json(value: Any, **options: Any) -> str:
    """JSON as chat templates write it."""
    return json.dumps(value, ensure_ascii=False, **options)


def tool_json(tool: ToolSpec, **options: Any) -> str:
    """A tool's declaration as chat templates write it."""
    return as_json({"type": "function", "function": tool}, **options)


def last_user(messages: Sequence[Any]) -> int:
    """Where the user last spoke; -1 if never."""
    return max((index for index, message in enumerate(messages) if message["role"] == "user"), default=-1)


def user_speaks(following: Sequence[Role]) -> bool:
    """Whether the user speaks before the next reply, so that formats which drop old thinking drop it."""
    return "user" in following
