"""What a renderer is: the contract between conversations and tokens, and which tokens of an example are trained.

The families that implement it live beside this file; `turns` holds what they share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple, Protocol

from ..messages import Message, Reply, Role, ToolSpec


class SupervisedExample(NamedTuple):
    """A conversation as tokens, with the loss weight of each token (as a target, not as an input)."""

    tokens: list[int]
    weights: list[float]


class TrainOn(StrEnum):
    """Which parts of a conversation are trained: their content and what ends it, never what a prompt supplies.

    `LAST_TURN` is every assistant's message since the user last spoke before the last of them: with tools, the calls
    and the answer. `CUSTOM` asks each message: it has `trainable`, True or False. `ALL_TOKENS` is everything,
    including what a prompt supplies.
    """

    LAST_ASSISTANT = "last_assistant"
    LAST_TURN = "last_turn"
    ALL_ASSISTANT = "all_assistant"
    ALL_MESSAGES = "all_messages"
    ALL_TOKENS = "all_tokens"
    USER_AND_SYSTEM = "user_and_system"
    CUSTOM = "custom"

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

    def build_generation_prompt(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), prefill: str = ""
    ) -> list[int]:
        """The tokens after which the assistant speaks; with `prefill`, after it has said that much."""
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

    def parse_response(self, tokens: Sequence[int], tools: Sequence[ToolSpec] = ()) -> Reply:
        """The reply that sampled tokens spell, less what ends it; `stop_reason` is `length` if nothing ends it.

        Tool calls come with parsed arguments; a call that cannot be parsed stays in `content` as text, `stop_reason`
        is `malformed` and `problem` says why. `tools` are those that were offered: formats that write arguments
        without quotes read from them which are strings.

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


def trained_messages(messages: Sequence[Message], train_on: TrainOn) -> frozenset[int]:
    """The indices of the messages whose content is trained; empty if there are none.

    Raises:
        ValueError: `train_on` is `CUSTOM` and a message does not say whether it is trained.
    """
    if train_on == TrainOn.CUSTOM:
        silent = [index for index, message in enumerate(messages) if not isinstance(message.get("trainable"), bool)]
        if silent:
            raise ValueError(f"train_on=custom asks each message for `trainable`, True or False; {silent} have none")
        return frozenset(index for index, message in enumerate(messages) if message["trainable"])
    return frozenset(_SELECT[train_on]([message["role"] for message in messages]))


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
    TrainOn.USER_AND_SYSTEM: lambda roles: [i for i, role in enumerate(roles) if role in ("user", "system")],
}


def build_supervised_examples(
    renderer: Renderer,
    messages: Sequence[Message],
    tools: Sequence[ToolSpec] = (),
    train_on: TrainOn = TrainOn.ALL_ASSISTANT,
) -> list[SupervisedExample]:
    """A conversation as the examples that training on every reply, as it was prompted, takes.

    One if the renderer is prefix-stable. A renderer that rewrites history (drops earlier thinking, say) never prompts
    with what one example of the whole conversation shows; there it is one for each turn of the assistant.

    Raises:
        ValueError: as `build_supervised_example`.
    """
    if renderer.is_prefix_stable or train_on not in (TrainOn.LAST_TURN, TrainOn.ALL_ASSISTANT):
        return [renderer.build_supervised_example(messages, tools, train_on)]
    trained = sorted(trained_messages(messages, train_on))
    ends = [index for index in trained if not _turn_goes_on(messages, index)]
    if not ends:
        return [renderer.build_supervised_example(messages, tools, train_on)]
    return [renderer.build_supervised_example(messages[: end + 1], tools, TrainOn.LAST_TURN) for end in ends]


def _turn_goes_on(messages: Sequence[Message], index: int) -> bool:
    """Whether the assistant speaks again before the user does."""
    following = next((message["role"] for message in messages[index + 1 :] if message["role"] != "tool"), "user")
    return following == "assistant"


@dataclass
class LengthLimit:
    """Holds examples to a length, and counts what it did.

    Attributes:
        max_length: tokens that an example may have.
        overlong: whether a longer one is cut off at that length or left out. One that is cut before its first trained
            token is left out too.
        kept: examples that were short enough.
        truncated: examples that were cut.
        dropped: examples that were left out.
    """

    max_length: int
    overlong: Literal["truncate", "drop"]
    kept: int = 0
    truncated: int = 0
    dropped: int = 0

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"max_length is at least 1 token, got {self.max_length}")
        if self.overlong not in ("truncate", "drop"):
            raise ValueError(f"overlong is 'truncate' or 'drop', got {self.overlong!r}")

    def __call__(self, example: SupervisedExample) -> SupervisedExample | None:
        """The example, cut if need be; None if it is left out."""
        if len(example.tokens) <= self.max_length:
            self.kept += 1
            return example
        shorter = SupervisedExample(example.tokens[: self.max_length], example.weights[: self.max_length])
        if self.overlong == "drop" or not any(shorter.weights):
            self.dropped += 1
            return None
        self.truncated += 1
        return shorter
