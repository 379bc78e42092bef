"""What a renderer is: the contract between conversations and tokens, and which tokens of an example are trained.

The families that implement it live beside this file; `turns` holds what they share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from ..messages import Message, Reply, Role, ToolSpec


class SupervisedExample(NamedTuple):
    """A conversation as tokens, with the loss weight of each token (as a target, not as an input)."""

    tokens: list[int]
    weights: list[float]


class TrainOn(StrEnum):
    """Which parts of a conversation are trained: their content and what ends it, never what a prompt supplies.

    `LAST_TURN` is every assistant's message since the user last spoke before the last of them: with tools, the calls
    and the answer. `ALL_TOKENS` is everything, including what a prompt supplies.
    """

    LAST_ASSISTANT = "last_assistant"
    LAST_TURN = "last_turn"
    ALL_ASSISTANT = "all_assistant"
    ALL_MESSAGES = "all_messages"
    ALL_TOKENS = "all_tokens"

    @classmethod
    def _missing_(cls, value: object) -> TrainOn:
        raise ValueError(f"train_on is one of {', '.join(cls)}; got {value!r}")


class Renderer(Protocol):
    """Turns conversations into tokens and tokens into replies."""

    @property
    def name(self) -> str: ...

    @property
    def is_prefix_stable(self) -> bool:
        """Whether a longer conversation renders to an extension of a shorter one: its past is never rewritten."""
        ...

    @property
    def stop_sequences(self) -> list[str] | list[int]:
        """What ends a reply, as strings or as token ids; a sampler keeps it in what it returns."""
        ...

    def build_generation_prompt(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> list[int]:
        """The tokens after which the assistant speaks."""
        ...

    def build_supervised_example(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        train_on: TrainOn = TrainOn.LAST_ASSISTANT,
    ) -> SupervisedExample:
        """The conversation's tokens with their loss weights, 0 or 1.

        If the last message is the assistant's, the generation prompt of those before it is an exact prefix.

        Raises:
            ValueError: nothing in the conversation would be trained.
        """
        ...

    def parse_response(self, tokens: Sequence[int]) -> Reply:
        """The reply that sampled tokens spell, less what ends it; `stop_reason` is `length` if nothing ends it.

        Never raises, whatever the tokens.
        """
        ...

    def bridge_to_next_turn(
        self,
        prompt_tokens: Sequence[int],
        sampled_tokens: Sequence[int],
        new_messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
    ) -> list[int] | None:
        """The next generation prompt, beginning with exactly `prompt_tokens + sampled_tokens`.

        A reply that was cut off is closed. None if such a prompt would not be a faithful rendering of the conversation;
        then the caller renders it anew.
        """
        ...


def trained_messages(roles: Sequence[Role], train_on: TrainOn) -> frozenset[int]:
    """The indices of the messages whose content is trained; empty if there are none."""
    return frozenset(_SELECT[train_on](roles))


def _assistants(roles: Sequence[Role]) -> list[int]:
    return [index for index, role in enumerate(roles) if role == "assistant"]


def _last_turn(roles: Sequence[Role]) -> list[int]:
    assistants = _assistants(roles)
    asked = max((index for index in range(max(assistants, default=0)) if roles[index] == "user"), default=-1)
    return [index for index in assistants if index > asked]


_SELECT: dict[TrainOn, Callable[[Sequence[Role]], Sequence[int]]] = {
    TrainOn.LAST_ASSISTANT: lambda roles: _assistants(roles)[-1:],
    TrainOn.LAST_TURN: _last_turn,
    TrainOn.ALL_ASSISTANT: _assistants,
    TrainOn.ALL_MESSAGES: lambda roles: range(len(roles)),
    TrainOn.ALL_TOKENS: lambda roles: range(len(roles)),
}
