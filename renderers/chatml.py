r"""ChatML: `<|im_start|>role\ncontent<|im_end|>\n`, the format of SmolLM2-Instruct, Qwen2.5 and many others.

The tokens are those of `apply_chat_template`, with three exceptions, all on purpose:

- Special tokens spelled out in content stay text.
- An assistant's content that begins with whitespace: the template's text is tokenised as a whole, so the newline of
  `assistant\n` may merge with it. A model that speaks after the prompt cannot sample such a merger, so the content is
  tokenised by itself.
- Tool results are written under the header `tool`; tools cannot be offered.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..messages import Message, Reply, Role, ToolSpec, reply, system
from .base import Renderer
from .registry import register_renderer
from .tokens import TextTokenizer, TokenizerLike, shared_prefix
from .turns import RenderedMessage, TurnRenderer, index_of_first, missing_end

START, END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"

DEFAULT_SYSTEM_PROMPTS = {
    "qwen2": "You are a helpful assistant.",
    "smollm2": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "qwen2.5": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
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
        self._text = tokenizer if isinstance(tokenizer, TextTokenizer) else TextTokenizer(tokenizer)
        self._start, self._end = self._text.special(START), self._text.special(END)
        self._newline = self._text.encode_text("\n")
        self.stop_sequences = [self._end]
        if END_OF_TEXT in self._text.special_tokens:
            self.stop_sequences.append(self._text.special(END_OF_TEXT))

    def preamble(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[int]:
        if self.default_system_prompt is None or messages[0]["role"] == "system":
            return []
        return [token for part in self._render(system(self.default_system_prompt)) for token in part]

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[RenderedMessage]:
        return [self._render(message) for message in messages]

    def _render(self, message: Message) -> RenderedMessage:
        speaker, content = self._text.encode_text(f"{message['role']}\n"), message["content"]
        if message["role"] == "assistant":
            written = [*speaker, *self._text.encode_text(content)]
        else:
            written = self._text.encode_text(f"{message['role']}\n{content}")
        split = shared_prefix(speaker, written)
        return RenderedMessage([self._start, *written[:split]], written[split:], [self._end], self._newline)

    def parse(self, tokens: Sequence[int]) -> Reply:
        stop = index_of_first(tokens, self.stop_sequences)
        return reply(self._text.decode(tokens[:stop]), "length" if stop is None else "stop")

    def close(self, prompt: Sequence[int], sampled: Sequence[int], following: Role) -> list[int] | None:
        header = [self._start, *self._text.encode_text("assistant\n")]
        end = missing_end(self._text, sampled, self._end)
        if end is None or list(prompt[-len(header) :]) != header:
            return None
        return [*end, *self._newline]


def _writes_chatml(tokenizer: TextTokenizer) -> bool:
    has_tokens = START in tokenizer.special_tokens and END in tokenizer.special_tokens
    return has_tokens and (tokenizer.chat_template is None or START in tokenizer.chat_template)


@register_renderer("chatml", recognises=_writes_chatml)
def chatml(tokenizer: TextTokenizer) -> Renderer:
    """ChatML that adds no system prompt."""
    return TurnRenderer(ChatML(tokenizer))


def _register_with_default(name: str, prompt: str) -> None:
    # In a template's source the newline is either itself or an escape sequence.
    in_template = re.compile(re.escape(f"{START}system") + r"(?:\n|\\n)" + re.escape(f"{prompt}{END}"))

    def recognises(tokenizer: TextTokenizer) -> bool:
        return _writes_chatml(tokenizer) and bool(in_template.search(tokenizer.chat_template or ""))

    def build(tokenizer: TextTokenizer) -> Renderer:
        return TurnRenderer(ChatML(tokenizer, prompt, name=name))

    register_renderer(name, recognises=recognises)(build)


for _name, _prompt in DEFAULT_SYSTEM_PROMPTS.items():
    _register_with_default(_name, _prompt)
