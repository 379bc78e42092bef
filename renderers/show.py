"""An example for human eyes: which tokens are trained, which are context, which are special.

In a terminal by colour, in a notebook as HTML. Both show every token and its text; control characters are written out.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from .base import SupervisedExample
from .tokens import TextTokenizer, TokenizerLike, as_text_tokenizer

_COLOURS = {"trained": "30;42", "context": "0", "special": "35", "trained special": "30;45"}
_STYLES = {
    "trained": "background:#b7e4c7;color:#000",
    "context": "color:inherit",
    "special": "color:#9d4edd",
    "trained special": "background:#e0aaff;color:#000",
}


@dataclass(frozen=True)
class ShownTokens:
    """An example's tokens with their text; `print` shows them in colour, a notebook as HTML.

    Attributes:
        tokens: id, text and kind of each token; the kind is one of `trained`, `context`, `special`, `trained special`.
        colour: whether `str` colours; otherwise what is trained stands between ⟦ and ⟧.
    """

    tokens: tuple[tuple[int, str, str], ...]
    colour: bool = True

    def __str__(self) -> str:
        written = "".join(self._stretches())
        trained = sum("trained" in kind for _, _, kind in self.tokens)
        return f"{written}\n{len(self.tokens)} tokens, {trained} trained"

    def _stretches(self) -> Iterator[str]:
        if not self.colour:
            for trained, run in groupby(self.tokens, key=lambda token: "trained" in token[2]):
                text = "".join(_printable(text) for _, text, _ in run)
                yield f"⟦{text}⟧" if trained else text
            return
        for kind, run in groupby(self.tokens, key=lambda token: token[2]):
            # A background would run on to the end of the line.
            lines = "".join(_printable(text) for _, text, _ in run).split("\n")
            yield "\n".join(f"\x1b[{_COLOURS[kind]}m{line}\x1b[0m" if line else "" for line in lines)

    def _repr_html_(self) -> str:
        shown = "".join(
            f'<span title="{token}" style="{_STYLES[kind]};border-right:1px solid #8884">'
            f"{html.escape(_printable(text))}</span>"
            for token, text, kind in self.tokens
        )
        legend = " ".join(f'<span style="{style}">{kind}</span>' for kind, style in _STYLES.items())
        return f'<div>{legend}</div><pre style="white-space:pre-wrap">{shown}</pre>'


def show_tokens(
    example: SupervisedExample, tokenizer: TextTokenizer | TokenizerLike, *, colour: bool = True
) -> ShownTokens:
    """An example as something to look at.

    Args:
        example: its tokens and weights; a prompt is `SupervisedExample(prompt, [0.0] * len(prompt))`.
        tokenizer: the one that the tokens are of.
        colour: whether a terminal gets colours.
    """
    text = as_text_tokenizer(tokenizer)
    kinds = (
        " ".join(["trained"] * bool(weight) + ["special"] * text.is_special(token)) or "context"
        for token, weight in zip(*example, strict=True)
    )
    return ShownTokens(tuple(zip(example.tokens, _texts(example.tokens, text), kinds, strict=True)), colour)


def _texts(tokens: list[int], text: TextTokenizer) -> list[str]:
    """Each token's text; of a character that takes several tokens, the last one has it all."""
    texts: list[str] = []
    waiting: list[int] = []
    for token in tokens:
        waiting.append(token)
        decoded = text.decode(waiting)
        if decoded.endswith("\N{REPLACEMENT CHARACTER}") and len(waiting) < 4 and not text.is_special(token):
            texts.append("")
            continue
        texts.append(decoded)
        waiting = []
    if waiting:
        texts[-1] = text.decode(waiting)
    return texts


def _printable(text: str) -> str:
    """Text less what would drive a terminal, and with spaces at line ends to be seen."""
    shown = "".join(char if char == "\n" or char.isprintable() else f"\\x{ord(char):02x}" for char in text)
    return shown.replace("\n", "⏎\n")
