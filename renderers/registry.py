"""Which renderers there are, and which of them suits a tokenizer.

A family registers itself where it is defined; to add one, write a `TurnFormat` and register a function that makes its
renderer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .base import Renderer
from .tokens import TextTokenizer, TokenizerLike

Build = Callable[[TextTokenizer], Renderer]
Recognises = Callable[[TextTokenizer], bool]


class _Entry(NamedTuple):
    build: Build
    recognises: Recognises


PLAIN_TEXT = "role_colon"
"""The renderer for tokenizers that have no chat format."""

_RENDERERS: dict[str, _Entry] = {}


def register_renderer(name: str, *, recognises: Recognises = lambda tokenizer: False) -> Callable[[Build], Build]:
    """Registers the decorated function, which makes a renderer for a tokenizer.

    Args:
        name: for `get_renderer`; registering a name again replaces it.
        recognises: whether the renderer suits a tokenizer; where several do, the one registered last is taken. By
            default the renderer is only taken by name.
    """

    def register(build: Build) -> Build:
        _RENDERERS.pop(name, None)
        _RENDERERS[name] = _Entry(build, recognises)
        return build

    return register


def renderer_names() -> tuple[str, ...]:
    """The names that `get_renderer` knows."""
    return tuple(sorted(_RENDERERS))


def get_renderer(tokenizer: TextTokenizer | TokenizerLike, name: str | None = None) -> Renderer:
    """The renderer for a tokenizer.

    Args:
        tokenizer: a fast Hugging Face tokenizer, a `tokenizers.Tokenizer`, or the path of a `tokenizer.json` or its
            folder.
        name: one of `renderer_names()`; by default the one that suits the tokenizer's special tokens and chat template,
            `role_colon` if it has none.

    Raises:
        ValueError: the name is unknown, the tokenizer lacks a token that the renderer needs, or no renderer suits it.
    """
    text = tokenizer if isinstance(tokenizer, TextTokenizer) else TextTokenizer(tokenizer)
    if name is None:
        return _suiting(text).build(text)
    if name not in _RENDERERS:
        raise ValueError(
            f"no renderer is called {name!r}; there are: {', '.join(renderer_names())}. "
            f"Add one with @register_renderer({name!r})"
        )
    return _RENDERERS[name].build(text)


def _suiting(text: TextTokenizer) -> _Entry:
    for entry in reversed(_RENDERERS.values()):
        if entry.recognises(text):
            return entry
    if text.chat_template is None:
        return _RENDERERS[PLAIN_TEXT]
    raise ValueError(
        f"no renderer knows this tokenizer's chat template, which begins {(text.chat_template or '')[:80]!r}; "
        f"there are: {', '.join(renderer_names())}. Pass name={PLAIN_TEXT!r} for plain text, "
        "or add a renderer with @register_renderer"
    )
