"""`TextTokenizer` on tokenizers of every make: nothing special comes out of text, and text comes back."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loragym.renderers import TextTokenizer
from loragym.renderers.tokens import _plain_copy
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = ["the cat sat on the mat </s> <s> and </s> then <s> sat\n\n", "<|end|> over and over <|end|>"] * 5
SPECIALS = ["<unk>", "<s>", "</s>"]


def byte_level(*added: str | AddedToken) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    for token in added:
        tokenizer.add_tokens([token])
    return tokenizer


def bpe_that_spells_its_end() -> Tokenizer:
    """A vocabulary whose own merges lead to the special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["<|end|>"] * 9, trainer)
    assert tokenizer.encode("<|end|>").ids == [tokenizer.token_to_id("<|end|>")]
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


def unigram() -> Tokenizer:
    """Special tokens are pieces of the vocabulary, as in SentencePiece models."""
    pieces = [("<unk>", 0.0), ("<s>", -0.1), ("</s>", -0.1), ("\u2581", -2.0), ("\u2581the", -3.0)]
    pieces += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz<>/ \n"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def llama2_like() -> Tokenizer:
    """BPE with a prepended word-start marker, which its decoder takes away."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "the": 2, "cat": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer


MAKES = {
    "byte-level": byte_level(AddedToken("<|end|>", special=True), AddedToken("<tool_call>", special=False)),
    "merges lead to a special token": bpe_that_spells_its_end(),
    "unigram": unigram(),
    "llama 2": llama2_like(),
    "words": words(),
}
each_make = pytest.mark.parametrize("make", MAKES)
pieces = ["<|end|>", "<s>", "</s>", "<unk>", "<tool_call>", "<", "the", " ", "\n", "</", "s>", "\N{SNOWMAN}"]
texts = st.one_of(st.text(), st.lists(st.sampled_from(pieces)).map("".join))


@each_make
@given(text=texts)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_text_never_gives_a_special_token(make: str, text: str) -> None:
    tokenizer = TextTokenizer(MAKES[make])
    assert not set(tokenizer.encode_text(text)) & set(tokenizer.special_tokens.values())


@pytest.mark.parametrize("make", ["byte-level", "merges lead to a special token"])
@given(text=texts)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_byte_level_text_comes_back(make: str, text: str) -> None:
    tokenizer = TextTokenizer(MAKES[make])
    assert tokenizer.decode(tokenizer.encode_text(text)) == text


@pytest.mark.parametrize("make", ["unigram", "llama 2"])
@pytest.mark.parametrize("text", ["the cat", " the cat", "cat</s>sat", "\nthe </s></s>", "the<s>"])
def test_text_of_sentencepiece_makes_comes_back_without_a_marker(make: str, text: str) -> None:
    tokenizer = TextTokenizer(MAKES[make])
    assert tokenizer.decode(tokenizer.encode_text(text)) == text


def test_the_text_of_a_special_token_is_encoded_as_if_there_were_no_such_token() -> None:
    without = byte_level().encode("over <|end|>").ids
    assert byte_level(AddedToken("<|end|>", special=True)).encode("over <|end|>").ids != without
    assert TextTokenizer(MAKES["byte-level"]).encode_text("over <|end|>") == without


def test_no_space_is_put_before_a_piece_of_text() -> None:
    backend = byte_level()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer = TextTokenizer(backend)
    assert tokenizer.decode(tokenizer.encode_text("the cat")) == "the cat"


def test_a_long_run_of_forged_tokens_is_text() -> None:
    tokenizer = TextTokenizer(MAKES["merges lead to a special token"])
    text = "<|end|>" * 5000
    assert tokenizer.decode(tokenizer.encode_text(text)) == text


def test_non_special_added_tokens_structure_too_but_whitespace_does_not() -> None:
    backend = byte_level(AddedToken("<tool_call>", special=False), AddedToken("        ", special=False))
    tokenizer = TextTokenizer(backend)
    assert backend.token_to_id("<tool_call>") not in tokenizer.encode_text("a<tool_call>")
    assert backend.token_to_id(" " * 8) in tokenizer.encode_text("a" + " " * 8 + "b")
    assert tokenizer.decode(tokenizer.encode_text("a" + " " * 9 + "b")) == "a" + " " * 9 + "b"
    assert tokenizer.special_tokens == {"<tool_call>": backend.token_to_id("<tool_call>")}


def test_lone_surrogates_become_replacement_characters_and_pairs_become_characters() -> None:
    tokenizer = TextTokenizer(MAKES["byte-level"])
    assert tokenizer.decode(tokenizer.encode_text("a\ud800b\ud83d\ude00")) == "a\ufffdb\N{GRINNING FACE}"


def test_any_ids_decode_and_special_tokens_keep_their_text() -> None:
    tokenizer = TextTokenizer(MAKES["byte-level"])
    tokens = [*tokenizer.encode_text("hi"), tokenizer.special("<|end|>"), -1, 10**15, *tokenizer.encode_text("\u00e9")]
    assert tokenizer.decode(tokens) == "hi<|end|>\ufffd\ufffd\u00e9"
    assert tokenizer.decode(tokenizer.encode_text("\u00e9")[:1]) == "\ufffd"
    assert tokenizer.decode([]) == ""


def test_truncation_and_padding_of_the_tokenizer_do_not_touch_text() -> None:
    backend = byte_level()
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    tokenizer = TextTokenizer(backend)
    assert tokenizer.decode(tokenizer.encode_text("the cat sat")) == "the cat sat"


def test_wrapping_twice_reuses_the_copy_until_tokens_are_added() -> None:
    backend = byte_level()
    first = _plain_copy(backend)
    assert _plain_copy(backend) is first
    backend.add_special_tokens(["<|new|>"])
    assert TextTokenizer(backend).special("<|new|>") == backend.token_to_id("<|new|>")


def test_the_copy_does_not_keep_the_tokenizer_alive() -> None:
    backend = byte_level()
    TextTokenizer(backend)
    alive = weakref.ref(backend)
    del backend
    gc.collect()
    assert alive() is None


def test_a_saved_tokenizer_is_read_from_its_folder_or_file(tmp_path: Path) -> None:
    saved = PreTrainedTokenizerFast(
        tokenizer_object=MAKES["byte-level"], chat_template="{{ messages }}", eos_token="<|end|>"
    )
    saved.save_pretrained(tmp_path)
    for place in (tmp_path, str(tmp_path), tmp_path / "tokenizer.json"):
        tokenizer = TextTokenizer(place)
        assert tokenizer.encode_text("the cat") == MAKES["byte-level"].encode("the cat").ids
        assert tokenizer.chat_template == "{{ messages }}"
        assert tokenizer.eos_token_id == saved.eos_token_id == tokenizer.special("<|end|>")


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    slow: Any = object()
    with pytest.raises(TypeError, match="fast Hugging Face tokenizer"):
        TextTokenizer(slow)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        TextTokenizer(tmp_path)
