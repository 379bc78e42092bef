r"""ChatML: `<|im_start|>role\ncontent<|im_end|>\n`, the format of SmolLM2-Instruct, Qwen2 and many others.

The tokens are those of `apply_chat_template`, with three exceptions, all on purpose:

- Special tokens spelled out in content stay text.
- An assistant's content that begins with whitespace: the template's text is tokenised as a whole, so the newline of
  `assistant\n` may merge with it. A model that speaks after the prompt cannot sample such a merger, so the content is
  tokenised by itself.
- Tool results are written under the header `tool`; tools cannot be offered. Qwen2.5 and later can: see `qwen`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..messages import Message, Reply, Role, ToolSpec, system
from .base import Renderer
from .reading import Grammar, Reader
from .registry import register_renderer
from .tokens import Mark, TextTokenizer, TokenizerLike, as_text_tokenizer
from .turns import Pieces, Turn, TurnRenderer

START, END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
HEADERS: dict[Role, Pieces] = {
    "system": (Mark(f"{START}system\n"),),
    "user": (Mark(f"{START}user\n"),),
    "assistant": (Mark(f"{START}assistant\n"),),
    "tool": (Mark(f"{START}tool\n"),),
}
ENDED: Pieces = (Mark(END),)
NEWLINE: Pieces = (Mark("\n"),)

DEFAULT_SYSTEM_PROMPTS = {
    "qwen2": "You are a helpful assistant.",
    "smollm2": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
}
"""By model family: the system prompt that its chat template adds to a conversation that does not begin with one."""


class ChatML:
    """ChatML as a `TurnFormat`.

    A reply also stops at `<|endoftext|>` if the tokenizer has it: models that saw few chats end their text with it.
    """

    is_prefix_stable = True
    supports_tools = False
    supports_thinking = False

    def __init__(
        self,
        tokenizer: TextTokenizer | TokenizerLike,
        default_system_prompt: str | None = None,
        *,
        name: str = "chatml",
    ) -> None:
        """Makes the format for a tokenizer.

        Args:
            tokenizer: what `TextTokenizer` takes, or one.
            default_system_prompt: put before conversations that do not begin with a system message.
            name: what the renderer is called in errors and run directories.

        Raises:
            ValueError: the tokenizer lacks ChatML's special tokens.
        """
        self.name = name
        self.default_system_prompt = default_system_prompt
        self.text = as_text_tokenizer(tokenizer)
        self.text.special(START)
        self._reader = Reader(self.text, Grammar(ends=(END,), also_stops=(END_OF_TEXT,)))
        self.stop_sequences = self._reader.stop_sequences

    def write(self, messages: Sequence[Message], tools: Sequence[ToolSpec], *, opening: bool) -> list[Turn]:
        turns = [plain_turn(message, index) for index, message in enumerate(messages)]
        if opening and self.default_system_prompt is not None and messages[0]["role"] != "system":
            return [plain_turn(system(self.default_system_prompt), None), *turns]
        return turns

    def parse(self, tokens: Sequence[int], tools: Sequence[ToolSpec]) -> Reply:
        return self._reader.parse(tokens, tools)

    def close(self, sampled: Sequence[int], following: Sequence[Role]) -> Pieces | None:
        return self._reader.close(sampled)


def plain_turn(message: Message, index: int | None) -> Turn:
    """A message that is nothing but its content."""
    role = message["role"]
    return Turn(HEADERS[role], (message["content"],), ENDED, NEWLINE, index, role == "assistant")


def writes_chatml(tokenizer: TextTokenizer) -> bool:
    """Whether the tokenizer's own format is some ChatML."""
    has_tokens = START in tokenizer.special_tokens and END in tokenizer.special_tokens
    return has_tokens and (tokenizer.chat_template is None or START in tokenizer.chat_template)


def adds_system_prompt(tokenizer: TextTokenizer, prompt: str) -> bool:
    """Whether the tokenizer's own format is a ChatML that begins with this prompt."""
    # In a template's source the newline is either itself or an escape sequence.
    in_template = re.escape(f"{START}system") + r"(?:\n|\\n)" + re.escape(f"{prompt}{END}")
    return writes_chatml(tokenizer) and bool(re.search(in_template, tokenizer.chat_template or ""))


@register_renderer("chatml", recognises=writes_chatml)
def chatml(tokenizer: TextTokenizer) -> Renderer:
    """ChatML that adds no system prompt."""
    return TurnRenderer(ChatML(tokenizer))


def _register_with_default(name: str, prompt: str) -> None:
    def build(tokenizer: TextTokenizer) -> Renderer:
        return TurnRenderer(ChatML(tokenizer, prompt, name=name))

    register_renderer(name, recognises=lambda tokenizer: adds_system_prompt(tokenizer, prompt))(build)


for _name, _prompt in DEFAULT_SYSTEM_PROMPTS.items():
    _register_with_default(_name, _prompt)
