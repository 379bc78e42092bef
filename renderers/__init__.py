"""Renderers: conversations to tokens, loss weights, and sampled tokens back to replies.

`get_renderer(tokenizer)` is the way in. Nothing here imports torch or transformers.
"""

from .base import LengthLimit, Renderer, SupervisedExample, TrainOn, build_supervised_examples
from .chatml import ChatML
from .convert import (
    from_hugging_face,
    from_openai,
    to_hugging_face,
    to_openai,
    tools_from_openai,
    tools_to_openai,
)
from .deepseek import DeepSeek, DeepSeekVersion
from .gemma import Gemma
from .glm import Glm
from .harmony import Harmony
from .kimi import Kimi
from .llama import Llama, LlamaVersion
from .mistral import Mistral
from .qwen import Qwen, QwenVersion
from .registry import get_renderer, register_renderer, renderer_names
from .role_colon import RoleColon
from .show import ShownTokens, show_tokens
from .template import TemplateError, TemplateRenderer
from .tokens import Mark, TextTokenizer
from .turns import Turn, TurnFormat, TurnRenderer

__all__ = [
    "ChatML",
    "DeepSeek",
    "DeepSeekVersion",
    "Gemma",
    "Glm",
    "Harmony",
    "Kimi",
    "LengthLimit",
    "Llama",
    "LlamaVersion",
    "Mark",
    "Mistral",
    "Qwen",
    "QwenVersion",
    "Renderer",
    "RoleColon",
    "ShownTokens",
    "SupervisedExample",
    "TemplateError",
    "TemplateRenderer",
    "TextTokenizer",
    "TrainOn",
    "Turn",
    "TurnFormat",
    "TurnRenderer",
    "build_supervised_examples",
    "from_hugging_face",
    "from_openai",
    "get_renderer",
    "register_renderer",
    "renderer_names",
    "show_tokens",
    "to_hugging_face",
    "to_openai",
    "tools_from_openai",
    "tools_to_openai",
]
