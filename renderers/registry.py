"""Which renderers there are, and which of them suits a tokenizer.

A family registers itself where it is defined; to add one, write a `TurnFormat` and register a function that makes its
renderer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .base import Renderer
from .tokens import TextTokenizer, TokenizerLike, as_text_tokenizer

Build = Callable[..., Renderer]
Recognises = Callable[[TextTokenizer], bool]


class _Entry(NamedTuple):
    build: Build
    recognises: Recognises


TEMPLATE = "template"
"""The renderer for tokenizers whose chat format is none of the families'."""

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


def get_renderer(tokenizer: TextTokenizer | TokenizerLike, name: str | None = None, **options: str | bool) -> Renderer:
    """The renderer for a tokenizer.

    Args:
        tokenizer: a fast Hugging Face tokenizer, a `tokenizers.Tokenizer`, the path of a `tokenizer.json` or its
            folder, or a model's id on the hub.
        name: one of `renderer_names()`, or `template` for whatever the tokenizer's chat template writes; by default the
            one that suits the tokenizer's special tokens and chat template, `template` if it has another template,
            `role_colon` if it has none.
        options: what the family can be told, such as `keep_thinking=True` (Qwen3) or `date` (Llama, gpt-oss).

    Raises:
        ValueError: the name is unknown, the tokenizer lacks a token that the renderer needs, or no renderer suits it.
        TypeError: the family takes no such option.
    """
    text = as_text_tokenizer(tokenizer)
    if name is None:
        return _suiting(text, options)
    if name == TEMPLATE:
        return _from_template(text)
    if name not in _RENDERERS:
        raise ValueError(
            f"no renderer is called {name!r}; there are: {', '.join(renderer_names())}. "
            f"Add one with @register_renderer({name!r})"
        )
    return _RENDERERS[name].build(text, **options)


def _suiting(text: TextTokenizer, options: dict[str, str | bool]) -> Renderer:
    for entry in reversed(_RENDERERS.values()):
        if entry.recognises(text):
            return entry.build(text, **options)
    if text.chat_template is None:
        return _RENDERERS[PLAIN_TEXT].build(text, **options)
    try:
        return _from_template(text)
    except ValueError as error:
        raise ValueError(
            f"no renderer knows this tokenizer's chat template, which begins {text.chat_template[:80]!r}, and it "
            f"cannot serve as one: {error}. There are: {', '.join(renderer_names())}. Pass name={PLAIN_TEXT!r} for "
            "plain text, or add a renderer with @register_renderer"
        ) from error


def _from_template(text: TextTokenizer) -> Renderer:
    # Only who needs it pays for Jinja.
    from .template import TemplateRenderer

    return TemplateRenderer(text)
