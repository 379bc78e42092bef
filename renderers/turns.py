"""What all families of renderers share: prompts, examples, weights and bridges, assembled from rendered messages.

A family is a `TurnFormat`: it says how one conversation's messages become token lists, where a reply ends, and nothing
else. `TurnRenderer` makes a `Renderer` of it. Prompts are prefixes of examples by construction, because both are the
same token lists laid end to end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Protocol

from ..messages import Message, Reply, Role, ToolSpec, assistant, check_messages
from .base import SupervisedExample, TrainOn, trained_messages
from .tokens import TextTokenizer


class RenderedMessage(NamedTuple):
    """One message as tokens.

    Attributes:
        header: says who speaks; the generation prompt supplies it.
        body: the content.
        end: what the speaker must emit to finish.
        separator: what stands between this message and the next; nobody is trained to emit it.
    """

    header: list[int]
    body: list[int]
    end: list[int]
    separator: list[int]


class TurnFormat(Protocol):
    """A family's way of writing a conversation.

    Attributes:
        supports_tools: `render` and `parse` know tool specs and tool calls.
        supports_thinking: they know thinking.
    """

    @property
    def name(self) -> str: ...

    @property
    def is_prefix_stable(self) -> bool: ...

    @property
    def stop_sequences(self) -> list[str] | list[int]: ...

    @property
    def supports_tools(self) -> bool: ...

    @property
    def supports_thinking(self) -> bool: ...

    def preamble(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[int]:
        """What stands before the first message."""
        ...

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[RenderedMessage]:
        """Each message as tokens. What a message becomes must not depend on the content of the last one."""
        ...

    def parse(self, tokens: Sequence[int]) -> Reply:
        """See `Renderer.parse_response`."""
        ...

    def close(self, prompt: Sequence[int], sampled: Sequence[int], following: Role) -> list[int] | None:
        """What must follow a sampled reply before the next message; None if it cannot be followed faithfully."""
        ...


_NEXT_REPLY = assistant("")


@dataclass(frozen=True, slots=True)
class TurnRenderer:
    """The `Renderer` of a `TurnFormat`."""

    format: TurnFormat

    @property
    def name(self) -> str:
        return self.format.name

    @property
    def is_prefix_stable(self) -> bool:
        return self.format.is_prefix_stable

    @property
    def stop_sequences(self) -> list[str] | list[int]:
        return self.format.stop_sequences

    def build_generation_prompt(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> list[int]:
        """See `Renderer`.

        Raises:
            TypeError: `messages` are no messages.
            ValueError: there are none, or they hold what this format cannot express.
        """
        conversation = self._checked(messages, tools)
        return [*self.format.preamble(conversation, tools), *self._up_to_reply(conversation, tools)]

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
        roles = [message["role"] for message in conversation]
        trained = trained_messages(roles, TrainOn(train_on))
        if not trained:
            raise ValueError(f"train_on={train_on!s} trains the assistant's messages, but the roles are {roles}")
        context = 1.0 if train_on == TrainOn.ALL_TOKENS else 0.0
        preamble = self.format.preamble(conversation, tools)
        tokens, weights = list(preamble), [context] * len(preamble)
        for index, (header, body, end, separator) in enumerate(self.format.render(conversation, tools)):
            weight = 1.0 if index in trained else context
            tokens += [*header, *body, *end, *separator]
            weights += [context] * len(header) + [weight] * len(body + end) + [context] * len(separator)
        return SupervisedExample(tokens, weights)

    def parse_response(self, tokens: Sequence[int]) -> Reply:
        """See `Renderer`."""
        return self.format.parse(tokens)

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
        if any(message["role"] == "assistant" for message in new):
            return None
        closing = self.format.close(prompt_tokens, sampled_tokens, (*new, _NEXT_REPLY)[0]["role"])
        if closing is None:
            return None
        return [*prompt_tokens, *sampled_tokens, *closing, *self._up_to_reply(new, tools, after_reply=True)]

    def _up_to_reply(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], *, after_reply: bool = False
    ) -> Iterable[int]:
        """The messages' tokens and the header of the reply to come."""
        before = (_NEXT_REPLY,) if after_reply else ()
        *past, reply = self.format.render((*before, *messages, _NEXT_REPLY), tools)
        return chain.from_iterable((*chain.from_iterable(past[len(before) :]), reply.header))

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
    wanted = frozenset(wanted)
    return next((index for index, token in enumerate(tokens) if token in wanted), None)


def missing_end(text: TextTokenizer, sampled: Sequence[int], end: int) -> list[int] | None:
    """What a sampled reply lacks to be ended by the token `end`.

    None if it holds another special token, or goes on after the end: rendered from its text, it would be other tokens.
    """
    special = next((index for index, token in enumerate(sampled) if text.is_special(token)), None)
    if special is None:
        return [end]
    return [] if special == len(sampled) - 1 and sampled[special] == end else None
