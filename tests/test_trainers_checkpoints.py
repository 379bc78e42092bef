"""A checkpoint is whole or it is not there."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from loragym.trainers.checkpoints import MANIFEST_FILE, STATE_FILE, CheckpointStore


def weights(content: str = "weights") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "adapter.bin").write_text(content)
        (folder / "more").mkdir()
        (folder / "more" / "optimizer.bin").write_text(content * 2)

    return write


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    filled = CheckpointStore(tmp_path / "checkpoints", keep=3)
    for step in (10, 20):
        filled.save(step, weights(), {"version": step})
    return filled


def test_a_checkpoint_holds_what_was_written_the_state_and_a_manifest_of_both(store: CheckpointStore) -> None:
    step, folder = store.latest() or (None, Path())
    assert (step, folder.name) == (20, "step-000020")
    assert (folder / "adapter.bin").read_text() == "weights"
    assert json.loads((folder / STATE_FILE).read_text()) == {"step": 20, "version": 20}
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    assert sorted(manifest) == ["adapter.bin", "more/optimizer.bin", STATE_FILE]
    assert manifest["more/optimizer.bin"]["bytes"] == 14


def test_there_is_no_newest_checkpoint_before_the_first(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none").latest() is None


def flip(folder: Path) -> None:
    (folder / "adapter.bin").write_text("weighty")  # as long as before


def truncate(folder: Path) -> None:
    (folder / "more" / "optimizer.bin").write_text("weights")


def lose_a_file(folder: Path) -> None:
    (folder / "adapter.bin").unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()


def truncate_the_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).write_text((folder / MANIFEST_FILE).read_text()[:40])


def replace_the_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).write_text("[1]")


def damage_the_state(folder: Path) -> None:
    (folder / STATE_FILE).write_text("{}")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (flip, "adapter.bin is not what was written"),
        (truncate, "more/optimizer.bin is not what was written"),
        (lose_a_file, "adapter.bin is missing"),
        (lose_the_manifest, "its manifest.json cannot be read"),
        (truncate_the_manifest, "its manifest.json cannot be read"),
        (replace_the_manifest, "its manifest.json cannot be read"),
        (damage_the_state, "state.json is not what was written"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], complaint: str
) -> None:
    damage(store.path(20))
    with caplog.at_level(logging.WARNING):
        assert store.latest() == (10, store.path(10))
    assert complaint in caplog.text
    assert "step-000020" in caplog.text
    damage(store.path(10))
    assert store.latest() is None


def test_a_draft_is_never_taken_for_a_checkpoint_and_the_next_save_removes_it(store: CheckpointStore) -> None:
    shutil.copytree(store.path(20), store.folder / ".draft-000030-123")
    (store.folder / "step-nonsense").mkdir()
    (store.folder / "step-000040").write_text("a file")
    assert store.steps() == [10, 20]
    assert store.latest() == (20, store.path(20))
    store.save(30, weights(), {})
    assert not list(store.folder.glob(".draft-*"))


def test_a_save_that_fails_leaves_what_was_there(store: CheckpointStore) -> None:
    def disk_is_full(folder: Path) -> None:
        (folder / "adapter.bin").write_text("half")
        raise OSError("no space left on device")

    for step in (20, 30):
        with pytest.raises(OSError, match="no space"):
            store.save(step, disk_is_full, {})
    assert store.steps() == [10, 20]
    assert store.latest() == (20, store.path(20))
    assert not list(store.folder.glob(".draft-*"))


def test_saving_a_step_again_replaces_it(store: CheckpointStore) -> None:
    store.save(20, weights("better"), {"version": 7})
    assert store.latest() == (20, store.path(20))
    assert (store.path(20) / "adapter.bin").read_text() == "better"
    assert store.steps() == [10, 20]


def test_only_the_newest_are_kept(store: CheckpointStore) -> None:
    store.save(30, weights(), {})
    assert store.steps() == [10, 20, 30]
    store.save(1000000, weights(), {})
    assert store.steps() == [20, 30, 1000000]
    assert store.latest() == (1000000, store.path(1000000))


def test_later_damaged_checkpoints_do_not_push_out_a_new_whole_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(10, weights(), {})
    for step in (20, 30):
        shutil.copytree(store.path(10), store.path(step))
        lose_a_file(store.path(step))
    assert store.latest() == (10, store.path(10))
    store.save(12, weights(), {})  # as a run does that went on from step 10 and was stopped
    assert store.latest() == (12, store.path(12))
