"""Text to tokens and back, such that text can never forge a special token.

`TextTokenizer` encodes with a copy of the tokenizer that knows no special tokens, so `<|im_end|>` in a message is
ordinary text; special tokens enter a conversation only by name, through `special`, or inside a `Mark`, which is text
that a format itself wrote. Which tokens make a turn is the formats' business.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import groupby, pairwise, takewhile
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""What a token id without text, and a lone surrogate without UTF-8, turn into."""


class Mark(str):
    """Text that a format writes itself: the special tokens in it are tokens. All other text is content."""

    __slots__ = ()


class FastTokenizer(Protocol):
    """A Hugging Face fast tokenizer, as far as it matters here; `chat_template` and `eos_token_id` are optional."""

    @property
    def backend_tokenizer(self) -> Tokenizer: ...


class TextTokenizer:
    """Encodes text without special tokens, names special tokens, decodes any token ids.

    Text pieces are encoded as they stand in the middle of a conversation: no word-start marker is put before them.
    A character that the vocabulary cannot spell, or could only spell with a special token, is left out.

    Attributes:
        special_tokens: text to id of every token that text cannot produce.
        leading_tokens: what the tokenizer puts before every document (a BOS token, or nothing).
        eos_token_id: the end of a document, if the tokenizer says which token that is.
        chat_template: the tokenizer's own Jinja template, if it has one.
        named_tokens: what a template may call by name, such as `bos_token`.
    """

    special_tokens: Mapping[str, int]
    leading_tokens: list[int]
    eos_token_id: int | None
    chat_template: str | None
    named_tokens: Mapping[str, str]

    def __init__(self, tokenizer: TokenizerLike) -> None:
        """Wraps a tokenizer. The second wrapping of the same tokenizer object is cheap.

        Args:
            tokenizer: a `tokenizers.Tokenizer`, a Hugging Face fast tokenizer, or the path of a `tokenizer.json` or of
                the folder that holds it, or a model's id on the hub.

        Raises:
            TypeError: it is none of these (a slow Hugging Face tokenizer, say).
            FileNotFoundError: there is no `tokenizer.json` at the path.
        """
        backend, config = _open(tokenizer)
        self._plain, self._ordinary, self.special_tokens, self.leading_tokens = _plain_copy(backend)
        self._text_of = {token: text for text, token in self.special_tokens.items()}
        self._mark_of = {token: Mark(text) for token, text in self._text_of.items()}
        self._special_ids = frozenset(self._text_of)
        self._marks: dict[Mark, tuple[int | Mark, ...]] = {}
        self._fixed: dict[str, tuple[int, ...]] = {}
        self.chat_template = config.chat_template
        self.eos_token_id = config.eos_token_id
        self.named_tokens = config.named_tokens or {}

    @property
    def leading_text(self) -> Mark:
        """`leading_tokens` as a format writes them."""
        return Mark("".join(self._text_of.get(token, "") for token in self.leading_tokens))

    def encode_text(self, text: str) -> list[int]:
        """The tokens of a piece of text, none of them special."""
        text = encodable(text)
        tokens: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if self._special_ids.isdisjoint(tokens):
            return tokens
        return [token for token, _, _ in self._encode(text, 0)]

    def encode_fixed(self, text: str) -> tuple[int, ...]:
        """`encode_text` for the few texts that a format writes again and again: computed once."""
        tokens = self._fixed.get(text)
        if tokens is None:
            tokens = self._fixed[text] = tuple(self.encode_text(text))
        return tokens

    def encode_spans(self, text: str) -> list[tuple[int, int, int]]:
        """The tokens of a piece of encodable text, each with where its characters start and end."""
        return self._encode(text, 0)

    def _encode(self, text: str, offset: int) -> list[tuple[int, int, int]]:
        """Cuts the text in two wherever the vocabulary itself would spell a special token, until it no longer does."""
        encoding = self._plain.encode(text, add_special_tokens=False)
        tokens = [
            (token, offset + start, offset + end)
            for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
        ]
        forged = [(start - offset, end - offset) for token, start, end in tokens if token in self._special_ids]
        if not forged:
            return tokens
        cuts = sorted({0, len(text), *((start + end) // 2 for start, end in forged)})
        if len(cuts) == 2:
            return [token for token in tokens if token[0] not in self._special_ids]
        return [token for start, end in pairwise(cuts) for token in self._encode(text[start:end], offset + start)]

    def marked(self, mark: Mark) -> tuple[int | Mark, ...]:
        """A mark's special tokens as ids, with the text between them."""
        parts = self._marks.get(mark)
        if parts is None:
            parts = self._marks[mark] = tuple(
                Mark(part) if isinstance(part, str) else part for part in self.split_special(mark)
            )
        return parts

    def split_special(self, written: str) -> Iterable[int | str]:
        """Text that is a format's or a template's own: its special tokens as ids, with the text between them."""
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        pattern = "|".join(re.escape(token) for token in longest_first if token in written)
        for part in re.split(f"({pattern})", written) if pattern else [written]:
            if part:
                yield self.special_tokens.get(part, part)

    def pieces(self, tokens: Iterable[int], marks: frozenset[int]) -> list[str]:
        """Tokens as text: each token of `marks` is a `Mark`, what stands between them is one string."""
        tokens = list(tokens)
        found: list[str] = []
        start = 0
        for place in [place for place, token in enumerate(tokens) if token in marks]:
            if place > start:
                found.append(self.decode(tokens[start:place]))
            found.append(self._mark_of[tokens[place]])
            start = place + 1
        if start < len(tokens):
            found.append(self.decode(tokens[start:]))
        return found

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of any token ids; special tokens appear as their text, ids without a token as U+FFFD."""
        tokens = list(tokens)
        if self._ordinary.issuperset(tokens):
            return self._plain.decode(tokens)
        return "".join(
            self._plain.decode(list(run)) if is_ordinary else "".join(self._text_of.get(t, UNKNOWN) for t in run)
            for is_ordinary, run in groupby(tokens, key=self._ordinary.__contains__)
        )

    def special(self, text: str) -> int:
        """The id of a special token.

        Raises:
            ValueError: the tokenizer has no such token.
        """
        if text not in self.special_tokens:
            known = ", ".join(list(self.special_tokens)[:20]) or "none"
            raise ValueError(
                f"the tokenizer has no special token {text!r}, which this renderer needs; it has: {known}. "
                "Let get_renderer(tokenizer) choose a renderer, or take name='role_colon', which needs no special token"
            )
        return self.special_tokens[text]

    def is_special(self, token: int) -> bool:
        """Whether text can never produce the token."""
        return token in self._text_of


def encodable(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates replaced, which have no UTF-8."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def as_text_tokenizer(tokenizer: TextTokenizer | TokenizerLike) -> TextTokenizer:
    """The tokenizer as a `TextTokenizer`, if it is not one yet; of a path, read once for as long as it is unchanged."""
    if isinstance(tokenizer, TextTokenizer):
        return tokenizer
    if not isinstance(tokenizer, str | os.PathLike):
        return TextTokenizer(tokenizer)
    folder = _folder(tokenizer)
    changes = tuple((file.name, file.stat().st_mtime_ns) for file in _files(folder) if file.is_file())
    return _read(folder, changes)


@lru_cache(maxsize=8)
def _read(path: Path, changes: tuple[tuple[str, int], ...]) -> TextTokenizer:
    return TextTokenizer(path)


TokenizerLike: TypeAlias = Tokenizer | FastTokenizer | str | os.PathLike[str]


class _Config(NamedTuple):
    chat_template: str | None = None
    eos_token_id: int | None = None
    named_tokens: Mapping[str, str] | None = None


_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


def _named(of: Any) -> dict[str, str]:
    """The tokens that a tokenizer or its configuration has a name for."""
    found = {name: of.get(name) if isinstance(of, Mapping) else getattr(of, name, None) for name in _NAMES}
    texts = {name: token.get("content") if isinstance(token, Mapping) else token for name, token in found.items()}
    return {name: str(token) for name, token in texts.items() if token is not None}


def _open(tokenizer: TokenizerLike) -> tuple[Tokenizer, _Config]:
    if isinstance(tokenizer, Tokenizer):
        return tokenizer, _Config()
    if isinstance(tokenizer, str | os.PathLike):
        return _open_path(_folder(tokenizer))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise TypeError(
            "expected a tokenizers.Tokenizer, a fast Hugging Face tokenizer, or the path of a tokenizer.json or its "
            f"folder, got {type(tokenizer).__name__}; slow tokenizers can be converted with AutoTokenizer"
        )
    template = _default_template(getattr(tokenizer, "chat_template", None))
    return backend, _Config(template, getattr(tokenizer, "eos_token_id", None), _named(tokenizer))


_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def _files(path: Path) -> tuple[Path, Path, Path]:
    """The tokenizer, its configuration and its chat template; of these the first has to be there."""
    folder, name = (path, _FILES[0]) if path.is_dir() else (path.parent, path.name)
    return folder / name, folder / _FILES[1], folder / _FILES[2]


def _folder(name: str | os.PathLike[str]) -> Path:
    """Where a tokenizer lies; one that is named by a hub id is fetched first, or found in the hub's cache."""
    path = Path(name)
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        return path
    from huggingface_hub import hf_hub_download

    try:
        file = Path(hf_hub_download(str(name), _FILES[0]))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no tokenizer at {name}, and no model of that name could be fetched: {error}"
        ) from error
    for extra in _FILES[1:]:
        # Not every model has them.
        with suppress(OSError):
            hf_hub_download(str(name), extra)
    return file.parent


def _open_path(path: Path) -> tuple[Tokenizer, _Config]:
    file, beside, template_file = _files(path)
    if not file.is_file():
        raise FileNotFoundError(f"no tokenizer at {file}; expected a tokenizer.json or a folder that holds one")
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # what the library raises has no type of its own
        raise ValueError(f"{file} is no tokenizer that can be read ({error}); copy the model's there") from error
    try:
        config = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
        named = _named(config)
        template = template_file.read_text(encoding="utf-8") if template_file.is_file() else config.get("chat_template")
        chosen = _default_template(template)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{beside} or {template_file.name} beside it is damaged ({type(error).__name__}: {error}); copy the model's"
        ) from error
    eos_text = named.get("eos_token")
    return backend, _Config(chosen, backend.token_to_id(eos_text) if eos_text else None, named)


def _default_template(template: Any) -> str | None:
    """Some tokenizers carry several templates by name, as a dictionary or as a list of name and template."""
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    chosen = template.get("default") if isinstance(template, dict) else template
    if not isinstance(chosen, str | None):
        raise TypeError(f"a chat template is text, got {chosen!r:.80}")
    return chosen


class _Plain(NamedTuple):
    tokenizer: Tokenizer
    ordinary: frozenset[int]
    special_tokens: dict[str, int]
    leading_tokens: list[int]


_PLAIN: WeakKeyDictionary[Tokenizer, tuple[int, _Plain]] = WeakKeyDictionary()


def _plain_copy(tokenizer: Tokenizer) -> _Plain:
    """The copy that knows no special tokens, made once per tokenizer and again when tokens were added to it."""
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    cached = _PLAIN.get(tokenizer)
    if cached is None or cached[0] != size:
        cached = _PLAIN[tokenizer] = (size, _make_plain_copy(json.loads(tokenizer.to_str())))
    return cached[1]


def _make_plain_copy(source: dict[str, Any]) -> _Plain:
    # Runs of whitespace structure nothing; some vocabularies list them as added tokens and need them for code. They
    # join the model's vocabulary because an added token that is not in it gets the next free id when loaded.
    model, added = source["model"], source["added_tokens"]
    extensible = isinstance(model["vocab"], dict)
    whitespace = [token for token in added if extensible and not token["special"] and token["content"].isspace()]
    special = {token["content"]: token["id"] for token in added if token not in whitespace}
    if whitespace:
        model = {**model, "vocab": {**model["vocab"], **{token["content"]: token["id"] for token in whitespace}}}
    unpadded = {**source, "model": model, "added_tokens": whitespace, "truncation": None, "padding": None}
    plain = Tokenizer.from_str(json.dumps(_for_pieces(unpadded)))
    ordinary = frozenset(plain.get_vocab(with_added_tokens=True).values()) - frozenset(special.values())
    return _Plain(plain, ordinary, special, _leading_tokens(source["post_processor"]))


def _leading_tokens(post_processor: dict[str, Any] | None) -> list[int]:
    """The special tokens that template post-processors put before the text."""
    if post_processor is None:
        return []
    if post_processor["type"] == "Sequence":
        return [token for processor in post_processor["processors"] for token in _leading_tokens(processor)]
    before_text = takewhile(lambda piece: "SpecialToken" in piece, post_processor.get("single", []))
    names = [piece["SpecialToken"]["id"] for piece in before_text]
    return [token for name in names for token in post_processor["special_tokens"][name]["ids"]]


def _for_pieces(source: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer's JSON without what it does at the start and end of a document."""
    prepends = '"Prepend"' in json.dumps(source["normalizer"])
    return {
        **source,
        "post_processor": None,
        "normalizer": _without(source["normalizer"], {"Prepend"}),
        "pre_tokenizer": _without(source["pre_tokenizer"], set()),
        # This decoder step takes away the marker that the normaliser would have prepended.
        "decoder": _without(source["decoder"], {"Strip"} if prepends else set()),
    }


def _without(node: Any, types: set[str]) -> Any:
    """A pipeline without the steps of these types, and without prefix spaces."""
    if isinstance(node, list):
        return [kept for child in node if (kept := _without(child, types)) is not None]
    if not isinstance(node, dict):
        return node
    if node.get("type") in types:
        return None
    off = {"prepend_scheme": "never", "add_prefix_space": False}
    return {key: off.get(key, _without(value, types)) for key, value in node.items()}


def shared_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their start."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
