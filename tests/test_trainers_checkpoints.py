"""A checkpoint is whole or it is not there."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from loragym.trainers.checkpoints import BEST_FILE, LATEST_FILE, MANIFEST_FILE, STATE_FILE, CheckpointStore, Retention


def weights(content: str = "weights") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "adapter.bin").write_text(content)
        (folder / "more").mkdir()
        (folder / "more" / "optimizer.bin").write_text(content * 2)

    return write


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    filled = CheckpointStore(tmp_path / "checkpoints", Retention(keep=3))
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
    store = CheckpointStore(tmp_path, Retention(keep=1))
    store.save(10, weights(), {})
    for step in (20, 30):
        shutil.copytree(store.path(10), store.path(step))
        lose_a_file(store.path(step))
    assert store.latest() == (10, store.path(10))
    store.save(12, weights(), {})  # as a run does that went on from step 10 and was stopped
    assert store.latest() == (12, store.path(12))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, Path.unlink])
@pytest.mark.parametrize("name", ["adapter.bin", "more/optimizer.bin", STATE_FILE, MANIFEST_FILE])
def test_damage_to_any_file_is_noticed(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    damage(store.path(20) / name)
    assert store.latest() == (10, store.path(10))
    assert "skipping checkpoint" in caplog.text
    # A bit in the manifest may make another file seem wrong.
    assert name in caplog.text or name == MANIFEST_FILE


def test_all_checkpoints_damaged_is_said(store: CheckpointStore, caplog: pytest.LogCaptureFixture) -> None:
    for step in (10, 20):
        cut_short(store.path(step) / "adapter.bin")
    assert store.latest() is None
    assert "none of the 2 checkpoints" in caplog.text


def test_the_pointer_moves_when_the_checkpoint_is_in_place_and_before_older_ones_leave(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    rename = os.rename

    def watched(source: Path, target: Path) -> None:
        seen.append((Path(source).name, Path(target).name, store.steps()))
        rename(source, target)

    monkeypatch.setattr(os, "rename", watched)
    store.retention = Retention(keep=1)
    store.save(30, weights(), {})
    assert [(source.rstrip("0123456789"), target) for source, target, _ in seen] == [
        (".draft-000030-", "step-000030"),
        (".latest", "latest"),
        ("step-", ".draft-000010-old"),
        ("step-", ".draft-000020-old"),
    ]
    assert seen[1][2] == [10, 20, 30]
    assert (store.folder / LATEST_FILE).read_text() == "step-000030\n"


@pytest.mark.parametrize("content", [None, "", "step-000099", "step-0000", "\x00"])
def test_readers_cope_with_a_pointer_that_is_absent_or_wrong(store: CheckpointStore, content: str | None) -> None:
    pointer = store.folder / LATEST_FILE
    pointer.unlink() if content is None else pointer.write_text(content)
    assert store.latest() == (20, store.path(20))
    store.save(30, weights(), {})
    assert pointer.read_text() == "step-000030\n"


def test_every_so_many_steps_a_checkpoint_stays_for_ever(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, Retention(keep=2, every=10))
    for step in range(2, 33, 2):
        store.save(step, weights(), {})
    assert store.steps() == [10, 20, 30, 32]


def test_rolling_checkpoints_leave_by_age_in_hours_of_training(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, Retention(keep=10, hours=1.0))
    for step in range(1, 7):
        store.save(step, weights(), {"elapsed": step * 1200.0})
    assert store.steps() == [3, 4, 5, 6]
    # A long step: whatever its age, the newest stays.
    store.save(7, weights(), {"elapsed": 1e6})
    assert store.steps() == [7]
    # The age of one that does not say it is not known; number alone counts.
    store.save(8, weights(), {})
    assert store.steps() == [7, 8]


@pytest.mark.parametrize(("goal", "best"), [("max", 4), ("min", 6)])
def test_the_best_checkpoint_stays(tmp_path: Path, goal: str, best: int) -> None:
    store = CheckpointStore(tmp_path, Retention(keep=1, best="test/x", goal=goal))
    figures = {2: 0.5, 4: 0.9, 6: 0.1, 8: 0.9, 10: float("nan")}
    for step in range(2, 13, 2):
        store.save(step, weights(), {})
        store.note(step, {"test/x": figures[step]} if step in figures else {})
        # There is no checkpoint of this one, however good.
        store.note(step + 1, {"test/x": 100.0 if goal == "max" else -100.0})
    assert store.steps() == [best, 12]
    found = json.loads((tmp_path / BEST_FILE).read_text())
    assert (found["step"], found["value"], found["checkpoint"]) == (best, figures[best], f"step-{best:06d}")
    # A resumed run finds it again, from its rows, as far as they go.
    rows = [{"step": step, "test/x": figure} for step, figure in figures.items()]
    again = CheckpointStore(tmp_path, store.retention)
    again.recall_best(rows)
    assert again.best == (best, figures[best])
    again.save(14, weights(), {})
    assert again.steps() == [best, 14]
    again.recall_best([row for row in rows if row["step"] < best])
    assert again.best is None
    assert not (tmp_path / BEST_FILE).exists()


def test_what_a_killed_save_left_undone_is_done_when_the_run_goes_on(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, Retention(keep=3))
    for step in (1, 2, 3, 4):
        store.save(step, weights(), {})
    (tmp_path / LATEST_FILE).write_text("step-000002\n")
    shutil.copytree(store.path(2), tmp_path / ".draft-000001-old")
    again = CheckpointStore(tmp_path, Retention(keep=2))
    again.tidy(4)
    assert again.steps() == [3, 4]
    assert (tmp_path / LATEST_FILE).read_text() == "step-000004\n"
    assert not list(tmp_path.glob(".draft-*"))


def test_a_rewound_store_goes_on_from_where_it_was_rewound_to(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, Retention(keep=5))
    for step in (1, 2, 3, 4):
        store.save(step, weights(), {})
    store.rewind(2)
    assert store.steps() == [1, 2]
    assert store.latest() == (2, store.path(2))
    assert (tmp_path / LATEST_FILE).read_text() == "step-000002\n"


def test_a_checkpoint_that_cannot_be_removed_is_said_and_does_not_stop_the_run(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rename = os.rename

    def refused(source: Path, target: Path) -> None:
        if str(target).endswith("-old"):
            raise PermissionError("not permitted")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refused)
    store.retention = Retention(keep=1)
    store.save(30, weights(), {})
    assert store.latest() == (30, store.path(30))
    assert "cannot remove the checkpoint" in caplog.text
