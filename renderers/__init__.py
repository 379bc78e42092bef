"""Renderers: conversations to tokens, loss weights, and sampled tokens back to replies.

`get_renderer(tokenizer)` is the way in. Nothing here imports torch or transformers.
"""

from .base import Renderer, SupervisedExample, TrainOn
from .chatml import ChatML
from .registry import get_renderer, register_renderer, renderer_names
from .role_colon import RoleColon
from .tokens import TextTokenizer
from .turns import RenderedMessage, TurnFormat, TurnRenderer

__all__ = [
    "ChatML",
    "RenderedMessage",
    "Renderer",
    "RoleColon",
    "SupervisedExample",
    "TextTokenizer",
    "TrainOn",
    "TurnFormat",
    "TurnRenderer",
    "get_renderer",
    "register_renderer",
    "renderer_names",
]
