"""Tiny models with random weights, for tests of anything that takes a model: built in memory in milliseconds.

They are ordinary transformers models of real families; only their size and their tokenizer, one token per byte, are
unusual.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
"""Ids 256, 257 (the end of a turn) and 258 (padding)."""

TINY_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    # Five times the usual: at the usual one all next tokens are about equally likely, whatever stands before, and an
    # error in a mask or a position would hide below a test's tolerance.
    "initializer_range": 0.1,
}


def tiny_model(
    seed: int = 0, *, architecture: str = "llama", dtype: torch.dtype = torch.float32, **config: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A frozen random model of 2 layers and 90,000 weights, and a byte-level tokenizer that speaks ChatML.

    The same arguments give the same weights; the global random state is left as it was.

    Args:
        seed: of the weights.
        architecture: a model type of transformers: `llama`, `qwen2`, `qwen3`, `mistral`, `gemma3_text`, `gpt2`, ...
        dtype: what the weights are held in.
        **config: further fields of the model's configuration, such as `sliding_window=8` or `vocab_size=512`.
    """
    tokenizer = tiny_tokenizer()
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    settings = {**TINY_SIZES, **special, "vocab_size": len(tokenizer), **config}
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which reseeds the accelerators too.
        torch.default_generator.manual_seed(seed)
        # Drawn in float32 whatever the dtype, so that models of one seed differ by rounding alone.
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **settings), dtype=torch.float32)
    return model.to(dtype).eval().requires_grad_(False), tokenizer


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer whose ids 0 to 255 are the bytes of the text, followed by `SPECIAL_TOKENS`."""
    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML_TEMPLATE,
        model_max_length=TINY_SIZES["max_position_embeddings"],
    )


def save_tiny_model(folder: str | Path, seed: int = 0, **options: Any) -> Path:
    """Saves `tiny_model(seed, **options)` as a folder that `load_pretrained` loads, and returns the folder."""
    model, tokenizer = tiny_model(seed, **options)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in byte-level vocabularies, after GPT-2's encoder."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    shifted = iter(range(256, 512))
    return [chr(byte if byte in printable else next(shifted)) for byte in range(256)]
