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
from .tokens import TextTokenizer, TokenizerLike, as_text_tokenizer
from .turns import Pieces, Turn, TurnRenderer

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
        self.text = as_text_tokenizer(tokenizer)

    def write(self, messages: Sequence[Message], tools: Sequence[ToolSpec], *, opening: bool) -> list[Turn]:
        start = self.text.leading_text if opening else ""
        following = [*(message["role"] for message in messages[1:]), None]
        return [
            self._write(message, next_role, index, start if index == 0 else None)
            for index, (message, next_role) in enumerate(zip(messages, following, strict=True))
        ]

    def _write(self, message: Message, following: Role | None, index: int, start: str | None) -> Turn:
        """A message with the label of the next speaker, which is what an assistant emits to hand over to the user."""
        is_reply = message["role"] == "assistant"
        if following is None and is_reply:
            following = "user"
        header: Pieces = () if start is None else (start, _LABELS[message["role"]])
        handover: Pieces = (f"\n\n{_LABELS[following]}",) if following else ()
        body = (" ", self._harmless(message["content"]))
        if is_reply and following == "user":
            return Turn(header, body, handover, (), index, True)
        return Turn(header, body, (), handover, index, is_reply)

    def _harmless(self, content: str) -> str:
        # The tokenizer may drop or rewrite characters, so a label is looked for in what it will have written.
        return _FORGED.sub(" ", self.text.decode(self.text.encode_text(content)))

    def parse(self, tokens: Sequence[int], tools: Sequence[ToolSpec]) -> Reply:
        eos = next((index for index, token in enumerate(tokens) if token == self.text.eos_token_id), None)
        content, stop, _ = self.text.decode(tokens[:eos]).partition(STOP)
        return reply(content.removeprefix(" "), "length" if eos is None and not stop else "stop")

    def close(self, sampled: Sequence[int], following: Sequence[Role]) -> Pieces | None:
        if any(map(self.text.is_special, sampled)):
            return None
        _, stop, rest = self.text.decode(sampled).partition(STOP)
        if not stop:
            return (STOP,) if following[0] == "user" else ()
        return () if not rest and following[0] == "user" else None


@register_renderer(PLAIN_TEXT)
def role_colon(tokenizer: TextTokenizer) -> Renderer:
    """Plain text with a label for each speaker; works with any tokenizer."""
    return TurnRenderer(RoleColon(tokenizer))
