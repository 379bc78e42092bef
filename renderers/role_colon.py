r"""Role and colon: `System: ...\n\nUser: ...\n\nAssistant: ...`, for models that were never taught a chat format.

A reply ends where the model begins to write the user's next line. Text is tokenised in one piece between the places
where the model starts and stops to speak, so that paragraph breaks get the tokens that they have in ordinary text.

Nothing but text marks a turn here, so content could forge one: a speaker's label at the start of a paragraph in content
gets a space before it (`\n\n User:`). Content is otherwise what the tokenizer makes of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..messages import ROLES, Message, Reply, Role, ToolSpec, reply
from .base import Renderer
from .registry import PLAIN_TEXT, register_renderer
from .tokens import TextTokenizer, TokenizerLike, shared_prefix
from .turns import RenderedMessage, TurnRenderer

_LABELS: dict[Role, str] = {role: f"{role.capitalize()}:" for role in ROLES}
_FORGED = re.compile(rf"(?<=\n\n)(?={'|'.join(_LABELS.values())})")
STOP = f"\n\n{_LABELS['user']}"


class RoleColon:
    """Role and colon as a `TurnFormat`; a document begins with the tokenizer's BOS token if it has one."""

    name = PLAIN_TEXT
    is_prefix_stable = True
    supports_tools = False
    supports_thinking = False

    def __init__(self, tokenizer: TextTokenizer | TokenizerLike) -> None:
        """Makes the format for a tokenizer: what `TextTokenizer` takes, or one."""
        self.stop_sequences = [STOP]
        self._text = tokenizer if isinstance(tokenizer, TextTokenizer) else TextTokenizer(tokenizer)

    def preamble(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[int]:
        return self._text.leading_tokens

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[RenderedMessage]:
        headers = [self._text.encode_text(_LABELS[messages[0]["role"]]), *([] for _ in messages[1:])]
        following = [*(message["role"] for message in messages[1:]), None]
        return [
            self._render(header, message, next_role)
            for header, message, next_role in zip(headers, messages, following, strict=True)
        ]

    def _render(self, header: list[int], message: Message, following: Role | None) -> RenderedMessage:
        """A message with the label of the next speaker, which is what an assistant emits to hand over to the user."""
        is_reply = message["role"] == "assistant"
        if following is None and is_reply:
            following = "user"
        label = f"\n\n{_LABELS[following]}" if following else ""
        written = self._text.encode_text(f" {self._harmless(message['content'])}{label}")
        split = len(written) - shared_prefix(written[::-1], self._text.encode_text(label)[::-1])
        body, handover = written[:split], written[split:]
        if is_reply and following == "user":
            return RenderedMessage(header, body, handover, [])
        return RenderedMessage(header, body, [], handover)

    def _harmless(self, content: str) -> str:
        # The tokenizer may drop or rewrite characters, so a label is looked for in what it will have written.
        return _FORGED.sub(" ", self._text.decode(self._text.encode_text(content)))

    def parse(self, tokens: Sequence[int]) -> Reply:
        eos = next((index for index, token in enumerate(tokens) if token == self._text.eos_token_id), None)
        content, stop, _ = self._text.decode(tokens[:eos]).partition(STOP)
        return reply(content.removeprefix(" "), "length" if eos is None and not stop else "stop")

    def close(self, prompt: Sequence[int], sampled: Sequence[int], following: Role) -> list[int] | None:
        label = _LABELS["assistant"]
        if not self._text.decode(prompt[-len(label) :]).endswith(label) or any(map(self._text.is_special, sampled)):
            return None
        _, stop, rest = self._text.decode(sampled).partition(STOP)
        if not stop:
            return self._text.encode_text(f"\n\n{_LABELS[following]}")
        return [] if not rest and following == "user" else None


@register_renderer(PLAIN_TEXT)
def role_colon(tokenizer: TextTokenizer) -> Renderer:
    """Plain text with a label for each speaker; works with any tokenizer."""
    return TurnRenderer(RoleColon(tokenizer))
