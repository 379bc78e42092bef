"""Loading a model and its tokenizer by name: a folder, a bundled model, or a repository on a model hub.

Every source ends as a folder on this machine, and one piece of code loads folders: safetensors only, no code from the
model's authors, nothing left at its random initial value. What is done with the model is `model`'s business.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .bundled import BUNDLED, BundledModelError, fetch_bundled

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
# Of a repository's files those that `_load_folder` reads: no pickled weights, no second copies in other formats.
HUB_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "model*.safetensors"]


class LoadingError(RuntimeError):
    """A model could not be loaded; the message says what came, what was expected and what to do."""


class ModelNotFound(LoadingError):
    """No source has a model of that name."""


class ModelDamaged(LoadingError):
    """The model was found, but its files are missing, damaged or of a kind that is not loaded here."""


def load_pretrained(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | Literal["auto"],
    revision: str | None = None,
    attn_implementation: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A frozen causal language model on the CPU, in evaluation mode, with its tokenizer.

    Args:
        name_or_path: a folder in the Hugging Face format, the name of a bundled model, or a hub id such as `org/name`;
            tried in this order.
        dtype: what the weights are held in; `"auto"` is what they were saved in.
        revision: a branch, tag or commit of a hub repository.
        attn_implementation: as in transformers; by default its choice.

    Raises:
        ModelNotFound: no source has such a model.
        ModelDamaged: it was found and cannot be loaded.
        ValueError: a revision of something that has none.
    """
    folder = find_model(name_or_path, revision=revision)
    return _load_folder(folder, dtype=dtype, attn_implementation=attn_implementation)


def find_model(name_or_path: str | Path, *, revision: str | None = None) -> Path:
    """The folder on this machine that holds a model, after fetching it if need be; raises as `load_pretrained`."""
    name = str(name_or_path)
    path = Path(name).expanduser()
    is_folder = path.is_dir()
    if revision is not None and (is_folder or name in BUNDLED):
        raise ValueError(f"a revision belongs to a model on the hub, and {name!r} is none; leave {revision!r} out")
    if is_folder:
        return path
    if name in BUNDLED:
        try:
            return fetch_bundled(name)
        except BundledModelError as error:
            raise ModelNotFound(f"{name!r} is a bundled model, but could not be fetched: {error}") from error
    if path.is_file():
        raise ModelNotFound(
            f"{name!r} is a file; expected a folder with config.json, safetensors and a tokenizer. A GGUF file is read "
            f"by `from_pretrained(folder, gguf_file=...)` of transformers; save what that returns as a folder."
        )
    return _from_hub(name, revision)


def _from_hub(name: str, revision: str | None) -> Path:
    try:
        # One request decides whether the hub can be reached; without it the local cache answers. Loading through
        # transformers would retry for half a minute, file by file.
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=["*/*.safetensors"])
        )
    except Exception as error:
        offline = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE")
        reason = str(error).strip().replace("\n", "\n    ")
        at_revision = f" at revision {revision!r}" if revision else ""
        raise ModelNotFound(
            f"no model {name!r}{at_revision}. What was tried:\n"
            f"  - a folder: there is none at {str(Path(name).expanduser().absolute())!r}\n"
            f"  - the bundled models: {', '.join(sorted(BUNDLED))}\n"
            f"  - the model hub and its local cache{' (offline: HF_HUB_OFFLINE is set)' if offline else ''}: "
            f"{type(error).__name__}: {reason}\n"
            f"Give a folder with config.json, safetensors and a tokenizer, one of the bundled names, or the id of a "
            f"hub repository that this machine can reach or has in its cache."
        ) from error


def _load_folder(
    folder: Path, *, dtype: torch.dtype | Literal["auto"], attn_implementation: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    _check_files(folder)
    options: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    # The stubs of `from_pretrained` do not know that `output_loading_info` makes it return a pair.
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model, loading = from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except Exception as error:
        raise ModelDamaged(
            f"{str(folder)!r} cannot be loaded as a causal language model: {type(error).__name__}: {error}"
        ) from error
    # transformers leaves such weights at random with no more than a warning.
    if absent := sorted(loading["missing_keys"]):
        raise ModelDamaged(
            f"{str(folder)!r}: the safetensors lack {len(absent)} weights that {type(model).__name__} has, the first "
            f"of them {absent[0]!r}; is config.json of the same model?"
        )
    model.eval().requires_grad_(False)
    return model, tokenizer


def _check_files(folder: Path) -> None:
    """Raises `ModelDamaged`, with the file's name, for what can be told before loading."""

    def damaged(what: str) -> ModelDamaged:
        return ModelDamaged(f"{str(folder)!r}: {what}")

    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise damaged("this is a LoRA adapter and no model; load its base model and then the adapter")
        raise damaged("there is no config.json; expected a model's folder in the Hugging Face format")
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise damaged(f"there is no tokenizer (any of {', '.join(TOKENIZER_FILES)}); copy the model's there")
    for path in _weight_files(folder):
        if not path.is_file():
            raise damaged(f"there is no {path.name}; expected the weights as safetensors")
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            size = path.stat().st_size
            raise damaged(f"{path.name} ({size:,} bytes) is damaged or cut off ({error}); fetch it again") from error


def _weight_files(folder: Path) -> list[Path]:
    index = folder / WEIGHTS_INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return [folder / WEIGHTS]
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if foreign := [
            shard for shard in shards if not isinstance(shard, str) or Path(shard).name != shard or not shard
        ]:
            raise ValueError(f"{foreign[0]!r:.80} is no file's name")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ModelDamaged(f"{str(folder)!r}: {index.name} cannot be read ({error!r}); fetch it again") from error
    return [folder / shard for shard in shards]
