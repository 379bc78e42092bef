r"""Gemma 2 and 3: `<start_of_turn>user\ncontent<end_of_turn>\n`, the assistant as `model`.

There is no system role: a system message is the first words of the user's first turn. Roles alternate. Neither tools
nor thinking are in the format. Special tokens spelled out in content stay text; all else is as in the chat template.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..messages import Message, Reply, Role, ToolSpec
from .base import Renderer
from .reading import Grammar, Reader
from .registry import register_renderer
from .tokens import Mark, TextTokenizer, TokenizerLike, as_text_tokenizer
from .turns import Pieces, Turn, TurnRenderer

START, END = "<start_of_turn>", "<end_of_turn>"
_USER, _MODEL, _ENDED, _NEWLINE = (Mark(f"{START}user\n"),), (Mark(f"{START}model\n"),), (Mark(END),), (Mark("\n"),)


class Gemma:
    """Gemma's format as a `TurnFormat`."""

    name = "gemma3"
    is_prefix_stable = True
    supports_tools = False
    supports_thinking = False

    def __init__(self, tokenizer: TextTokenizer | TokenizerLike) -> None:
        """Makes the format for a tokenizer; raises ValueError if it lacks Gemma's special tokens."""
        self.text = as_text_tokenizer(tokenizer)
        self.text.special(START)
        self._reader = Reader(self.text, Grammar(ends=(END,), also_stops=("<eos>",), trim=True))
        self.stop_sequences = self._reader.stop_sequences

    def write(self, messages: Sequence[Message], tools: Sequence[ToolSpec], *, opening: bool) -> list[Turn]:
        has_system = opening and messages[0]["role"] == "system"
        turns = [Turn((self.text.leading_text or Mark("<bos>"),))] if opening else []
        if has_system:
            turns.append(Turn(_USER, (messages[0]["content"],), (), (Mark("\n\n"),), 0))
        expected = "user" if opening else "assistant"
        for index, message in enumerate(messages[has_system:], int(has_system)):
            if message["role"] != expected:
                raise ValueError(
                    f"in {self.name} the user and the assistant take turns, beginning with the user, after at most one "
                    f"system message; message {index} is the {message['role']}'s instead of the {expected}'s"
                )
            is_reply = expected == "assistant"
            header: Pieces = _MODEL if is_reply else () if has_system and index == 1 else _USER
            turns.append(Turn(header, (message["content"].strip(),), _ENDED, _NEWLINE, index, is_reply))
            expected = "user" if is_reply else "assistant"
        return turns

    def parse(self, tokens: Sequence[int], tools: Sequence[ToolSpec]) -> Reply:
        return self._reader.parse(tokens, tools)

    def close(self, sampled: Sequence[int], following: Sequence[Role]) -> Pieces | None:
        return self._reader.close(sampled)


@register_renderer(
    "gemma3",
    recognises=lambda tokenizer: START in tokenizer.special_tokens and START in (tokenizer.chat_template or START),
)
def gemma3(tokenizer: TextTokenizer) -> Renderer:
    """Gemma 2 and 3."""
    return TurnRenderer(Gemma(tokenizer))
