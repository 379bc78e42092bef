"""Models load from a folder and from a hub; every way in which that fails names what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from loopback_hub import loopback_hub
from loragym.agents.loading import ModelDamaged, ModelNotFound, load_pretrained
from loragym.agents.testing import save_tiny_model, tiny_model
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def damage(folder: Path) -> str:
    with pytest.raises(ModelDamaged) as caught:
        load_pretrained(folder, dtype="auto")
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_a_saved_model_loads_as_it_was_frozen(saved: Path) -> None:
    model, tokenizer = load_pretrained(saved, dtype="auto")
    original, _ = tiny_model()
    assert not model.training
    for parameter, expected in zip(model.parameters(), original.parameters(), strict=True):
        assert torch.equal(parameter, expected)
        assert not parameter.requires_grad
    assert tokenizer.encode("añ<|im_end|>") == [97, 195, 177, 257]


def test_the_dtype_is_the_one_asked_for(saved: Path) -> None:
    assert load_pretrained(saved, dtype="auto")[0].dtype == torch.float32
    assert load_pretrained(saved, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_the_attention_implementation_is_passed_on(saved: Path) -> None:
    model, _ = load_pretrained(saved, dtype="auto", attn_implementation="eager")
    assert model.config._attn_implementation == "eager"


def test_loading_leaves_the_global_random_state_alone(saved: Path) -> None:
    before = torch.get_rng_state()
    load_pretrained(saved, dtype="auto")
    assert torch.equal(before, torch.get_rng_state())


def test_an_unknown_name_is_told_all_that_was_tried() -> None:
    with pytest.raises(ModelNotFound) as caught:
        load_pretrained("nobody/nothing", dtype="auto")
    message = str(caught.value)
    assert "nobody/nothing" in message
    assert "a folder" in message
    assert "smollm2-135m-instruct" in message
    assert "HF_HUB_OFFLINE is set" in message


def test_a_gguf_file_is_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelNotFound, match="is a file; expected a folder"):
        load_pretrained(tmp_path / "model.gguf", dtype="auto")


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "."])
def test_a_revision_of_what_has_none_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="a revision belongs to a model on the hub"):
        load_pretrained(name, dtype="auto", revision="main")


def test_a_folder_without_a_config_is_no_model(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "there is no config.json" in damage(folder)


def test_an_adapter_folder_is_called_one(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    assert "LoRA adapter" in damage(folder)


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "there is no model.safetensors" in damage(folder)


def test_pickled_weights_are_not_loaded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "expected the weights as safetensors" in damage(folder)


@pytest.mark.parametrize("size", [0, 1_000, 100_000])
def test_cut_off_weights_are_named(folder: Path, size: int) -> None:
    os.truncate(folder / "model.safetensors", size)
    assert f"model.safetensors ({size:,} bytes) is damaged or cut off" in damage(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = ("model-1.safetensors", "model-2.safetensors")
    halves = {key: names[index % 2] for index, key in enumerate(weights)}
    for name in names:
        part = {key: weights[key] for key in weights if halves[key] == name}
        save_file(part, folder / name, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": halves}))
    load_pretrained(folder, dtype="auto")
    (folder / "model-2.safetensors").unlink()
    assert "there is no model-2.safetensors" in damage(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    assert "model.safetensors.index.json cannot be read" in damage(folder)


def test_no_weight_stays_at_its_random_start(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "the first of them 'model.layers.1.mlp.up_proj.weight'" in damage(folder)


def test_a_missing_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "there is no tokenizer" in damage(folder)


def test_an_unknown_architecture_is_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "no-such-model"}))
    assert "no-such-model" in damage(folder)


LOAD_EACH = """
import json, sys
from loragym.agents.loading import LoadingError, load_pretrained
for name in sys.argv[1:]:
    try:
        model, tokenizer = load_pretrained(name, dtype="auto")
        print(json.dumps([type(model).__name__, tokenizer.decode([104, 105])]))
    except LoadingError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def load_in_a_new_process(hub: str, home: Path, *names: str) -> list[list[str]]:
    # The address of the hub is read when huggingface_hub is imported.
    surroundings = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", LOAD_EACH, *names]
    done = subprocess.run(command, env=surroundings, cwd=home, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_hub_id_loads_from_the_hub_and_then_from_its_cache(saved: Path, tmp_path: Path) -> None:
    root, home = tmp_path / "hub", tmp_path / "home"
    home.mkdir()
    shutil.copytree(saved, root / "org" / "tiny")
    (root / "org" / "tiny" / "pytorch_model.bin").write_bytes(b"never fetched")
    with loopback_hub(root) as hub:
        loaded, missing = load_in_a_new_process(hub, home, "org/tiny", "org/absent")
    assert loaded == ["LlamaForCausalLM", "hi"]
    assert missing[0] == "ModelNotFound"
    assert "RepositoryNotFoundError" in missing[1]
    assert not list(home.rglob("*.bin"))

    start = time.monotonic()
    cached, unreachable = load_in_a_new_process(hub, home, "org/tiny", "org/absent")
    assert cached == loaded
    assert unreachable[0] == "ModelNotFound"
    assert "Connection refused" in unreachable[1]
    assert time.monotonic() - start < 20
