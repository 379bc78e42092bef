"""What all families of renderers share: prompts, examples, weights and bridges, assembled from written turns.

A family is a `TurnFormat`: it says how one conversation is written, as pieces of text and of its own marks, and how a
reply is read. `TurnRenderer` makes a `Renderer` of it. Prompts are prefixes of examples by construction: both are the
same pieces laid end to end, and no token reaches across the place where the assistant begins to speak.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

from ..messages import Message, Reply, Role, ToolSpec, assistant, check_messages
from .base import SupervisedExample, TrainOn, trained_messages
from .tokens import Mark, TextTokenizer, encodable

Pieces: TypeAlias = tuple[str, ...]
"""Text as a format writes it: a `Mark` is the format's own and may hold special tokens, any other string is content."""


class Turn(NamedTuple):
    """One message as it is written, or a stretch that the format adds by itself.

    Attributes:
        header: says who speaks; the generation prompt supplies it.
        body: the content.
        end: what the speaker must emit to finish.
        separator: what stands between this message and the next; nobody is trained to emit it.
        message: which message of the conversation this is; None for what the format adds.
        is_reply: the assistant speaks: no token reaches into the body or out of its end.
    """

    header: Pieces = ()
    body: Pieces = ()
    end: Pieces = ()
    separator: Pieces = ()
    message: int | None = None
    is_reply: bool = False


class TurnFormat(Protocol):
    """A family's way of writing a conversation.

    Attributes:
        text: the tokenizer.
        supports_tools: `write` and `parse` know tool specs and tool calls.
        supports_thinking: they know thinking.
    """

    @property
    def name(self) -> str: ...

    @property
    def text(self) -> TextTokenizer: ...

    @property
    def is_prefix_stable(self) -> bool: ...

    @property
    def stop_sequences(self) -> list[str] | list[int]: ...

    @property
    def supports_tools(self) -> bool: ...

    @property
    def supports_thinking(self) -> bool: ...

    def write(self, messages: Sequence[Message], tools: Sequence[ToolSpec], *, opening: bool) -> list[Turn]:
        """The conversation's turns; the header of the last must not depend on the content of the last message.

        Args:
            messages: what is said; never empty.
            tools: what is offered.
            opening: whether a conversation begins here. Otherwise the first message is a placeholder for the reply that
                these messages follow, and what opens a conversation (a preamble, the tools) has been written before.

        Raises:
            ValueError: the messages or their order cannot be written in this format.
        """
        ...

    def parse(self, tokens: Sequence[int], tools: Sequence[ToolSpec]) -> Reply:
        """See `Renderer.parse_response`."""
        ...

    def close(self, sampled: Sequence[int], following: Sequence[Role]) -> Pieces | None:
        """What a sampled reply lacks to be ended, before messages of these roles; None if they cannot follow it.

        They cannot where the rendering of the whole conversation would say something else than was said.
        """
        ...


NEXT_REPLY = assistant("")
"""Stands for the reply that a prompt asks for."""


@dataclass(slots=True)
class _Tape:
    """Pieces laid end to end, as tokens with weights.

    Text waits until a special token or a cut ends it, and is then tokenised in one piece.
    """

    text: TextTokenizer
    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    _waiting: list[str] = field(default_factory=list)
    _weights: list[float] = field(default_factory=list)

    def write(self, pieces: Pieces, weight: float = 0.0) -> None:
        for piece in pieces:
            if type(piece) is not Mark:
                self._waiting.append(piece)
                self._weights.append(weight)
                continue
            for part in self.text.marked(piece):
                if isinstance(part, int):
                    if self._waiting:
                        self.cut()
                    self.tokens.append(part)
                    self.weights.append(weight)
                else:
                    self._waiting.append(part)
                    self._weights.append(weight)

    def cut(self) -> None:
        """Ends the waiting text here, so that no token reaches further."""
        waiting, weights = self._waiting, self._weights
        if not waiting:
            return
        if len(waiting) == 1 and type(waiting[0]) is Mark:
            self._take(self.text.encode_fixed(waiting[0]), weights[0])
        elif weights.count(weights[0]) == len(weights):
            self._take(self.text.encode_text("".join(waiting)), weights[0])
        else:
            self._take_mixed([encodable(piece) for piece in waiting], weights)
        self._waiting, self._weights = [], []

    def _take(self, tokens: Sequence[int], weight: float) -> None:
        self.tokens.extend(tokens)
        self.weights.extend([weight] * len(tokens))

    def _take_mixed(self, pieces: list[str], weights: list[float]) -> None:
        """A token that covers text of two weights gets the higher one: what is trained, is trained whole."""
        weight_of = [weight for piece, weight in zip(pieces, weights, strict=True) for _ in piece]
        last = 0.0
        for token, start, end in self.text.encode_spans("".join(pieces)):
            last = max(weight_of[start:end], default=last)
            self.tokens.append(token)
            self.weights.append(last)


@dataclass(frozen=True, slots=True)
class TurnRenderer:
    """The `Renderer` of a `TurnFormat`."""

    format: TurnFormat
    _tails: list[list[int]] = field(default_factory=list, init=False, compare=False, repr=False)

    @property
    def name(self) -> str:
        return self.format.name

    @property
    def is_prefix_stable(self) -> bool:
        return self.format.is_prefix_stable

    @property
    def stop_sequences(self) -> list[str] | list[int]:
        return self.format.stop_sequences

    def build_generation_prompt(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), prefill: str = ""
    ) -> list[int]:
        """See `Renderer`.

        Raises:
            TypeError: `messages` are no messages.
            ValueError: there are none, or they hold what this format cannot express.
        """
        conversation = self._checked(messages, tools)
        tape = _Tape(self.format.text)
        self._lay_prompt(tape, self.format.write((*conversation, NEXT_REPLY), tools, opening=True))
        tape.write((prefill,))
        tape.cut()
        return tape.tokens

    def build_supervised_example(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        train_on: TrainOn = TrainOn.LAST_ASSISTANT,
    ) -> SupervisedExample:
        """See `Renderer`.

        Raises:
            TypeError: `messages` are no messages.
            ValueError: there are none, they hold what this format cannot express, or nothing would be trained.
        """
        conversation = self._checked(messages, tools)
        trained = trained_messages(conversation, TrainOn(train_on))
        if not trained:
            roles = [message["role"] for message in conversation]
            raise ValueError(f"train_on={train_on!s} trains none of these messages; their roles are {roles}")
        context = 1.0 if train_on == TrainOn.ALL_TOKENS else 0.0
        tape = _Tape(self.format.text)
        for turn in self.format.write(conversation, tools, opening=True):
            weight = 1.0 if turn.message in trained else context
            tape.write(turn.header, context)
            if turn.is_reply:
                tape.cut()
            tape.write(turn.body, weight)
            tape.write(turn.end, weight)
            if turn.is_reply:
                tape.cut()
            tape.write(turn.separator, context)
        tape.cut()
        return SupervisedExample(tape.tokens, tape.weights)

    def parse_response(self, tokens: Sequence[int], tools: Sequence[ToolSpec] = ()) -> Reply:
        """See `Renderer`."""
        return self.format.parse(tokens, tools)

    def bridge_to_next_turn(
        self,
        prompt_tokens: Sequence[int],
        sampled_tokens: Sequence[int],
        new_messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
    ) -> list[int] | None:
        """See `Renderer`. None also if `new_messages` hold an assistant's message: those are sampled, not given.

        Raises:
            TypeError: `new_messages` are no messages.
            ValueError: they hold what this format cannot express.
        """
        new = check_messages(new_messages, where="new_messages")
        self._refuse_unsupported(new, tools)
        following = [message["role"] for message in (*new, NEXT_REPLY)]
        if "assistant" in following[:-1] or not self._asks_for_reply(prompt_tokens):
            return None
        closing = self.format.close(sampled_tokens, following)
        if closing is None:
            return None
        tape = _Tape(self.format.text)
        tape.tokens.extend(prompt_tokens)
        tape.tokens.extend(sampled_tokens)
        tape.write(closing)
        tape.cut()
        # A tool's result may have to say what it answers.
        said: Message = self.format.parse(sampled_tokens, tools) if following[0] == "tool" else NEXT_REPLY
        before: Message = {**NEXT_REPLY, "tool_calls": said.get("tool_calls", [])}
        replied, *turns = self.format.write((before, *new, NEXT_REPLY), tools, opening=False)
        tape.write(replied.separator)
        self._lay_prompt(tape, turns)
        return tape.tokens

    def _lay_prompt(self, tape: _Tape, turns: Iterable[Turn]) -> None:
        *past, reply = turns
        for turn in past:
            tape.write(turn.header)
            if turn.is_reply:
                tape.cut()
            tape.write(turn.body)
            tape.write(turn.end)
            if turn.is_reply:
                tape.cut()
            tape.write(turn.separator)
        tape.write(reply.header)
        tape.cut()

    def _asks_for_reply(self, prompt: Sequence[int]) -> bool:
        if not self._tails:
            self._tails.extend(self._prompt_tails())
        return any(self._ends_with(prompt, tail) for tail in self._tails)

    def _ends_with(self, prompt: Sequence[int], tail: list[int]) -> bool:
        text = self.format.text
        if any(map(text.is_special, tail)):
            return list(prompt[-len(tail) :]) == tail
        # Where nothing but text says who speaks, the tail's first tokens may have merged with what stands before them.
        wanted = text.decode(tail)
        return text.decode(prompt[-len(wanted) :]).endswith(wanted)

    def _prompt_tails(self) -> list[list[int]]:
        """What a generation prompt can end with."""
        tails = []
        asked: tuple[Message, ...] = (NEXT_REPLY, {"role": "user", "content": ""}, NEXT_REPLY)
        result: Message = {"role": "tool", "content": "", "name": "tool"}
        results: tuple[Message, ...] = (NEXT_REPLY, result, NEXT_REPLY)
        for messages in (asked, results) if self.format.supports_tools else (asked,):
            *_, before, reply = self.format.write(messages, (), opening=False)
            tape = _Tape(self.format.text)
            # After tool results some formats let the assistant speak without a header.
            tape.write(reply.header or (*before.end, *before.separator))
            tape.cut()
            tails.append(tape.tokens)
        return tails

    def _checked(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> tuple[Message, ...]:
        conversation = check_messages(messages)
        if not conversation:
            raise ValueError("a conversation has at least one message, got none")
        self._refuse_unsupported(conversation, tools)
        return conversation

    def _refuse_unsupported(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> None:
        called = any(message.get("tool_calls") for message in messages)
        if (tools or called) and not self.format.supports_tools:
            what = "tools were offered" if tools else "a message has tool_calls"
            raise ValueError(f"{what}, but the renderer {self.name!r} has no tool format; choose one that has")
        if any(message.get("thinking") for message in messages) and not self.format.supports_thinking:
            raise ValueError(
                f"a message has thinking, but the renderer {self.name!r} has no format for it; "
                "remove it from the messages, or choose a renderer that has"
            )


def index_of_first(tokens: Sequence[int], wanted: Iterable[int]) -> int | None:
    """Where the first of the wanted tokens stands."""
    return min((tokens.index(token) for token in wanted if token in tokens), default=None)
