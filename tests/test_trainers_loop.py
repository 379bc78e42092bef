"""Whatever ends a run, what it leaves can be resumed, and it says where."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from loragym.agents import Datum, LoraPolicy
from loragym.trainers import Interrupted, RunDirectory
from loragym.trainers.run_directory import read_metrics
from small_runs import DATUM, TOTAL, losses, newest, raising, same, train, weights


@pytest.fixture(scope="module", params=[1, 2])
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path, list]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return request.param, folder, weights(train(folder, substeps=request.param))


def test_a_run_saves_every_few_steps_and_at_the_end(undisturbed: tuple[int, Path, list]) -> None:
    substeps, folder, _ = undisturbed
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["latest", "step-000006", "step-000008"]
    assert (folder / "checkpoints" / "latest").read_text() == "step-000008\n"
    state = json.loads((folder / "checkpoints" / "step-000008" / "state.json").read_text())
    assert (state["step"], state["version"]) == (8, 8 * substeps)
    assert state["elapsed"] == read_metrics(folder)[-1]["time/elapsed"]
    assert [step for step, _ in losses(folder)] == list(range(TOTAL))
    assert len(list((folder / "transcripts").iterdir())) == TOTAL
    elapsed = [row["time/elapsed"] for row in read_metrics(folder)]
    assert elapsed == sorted(elapsed)


@pytest.mark.parametrize("at", [0, 4, 6, 7])
def test_ctrl_c_in_a_step_leaves_a_run_that_ends_in_the_very_same_weights(
    tmp_path: Path, undisturbed: tuple[int, Path, list], at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    substeps, folder, expected = undisturbed
    with pytest.raises(Interrupted) as caught:
        train(tmp_path, at=at, accident=raising(KeyboardInterrupt()), substeps=substeps)
    # With one update a step the interrupt came before it, and all whole steps are saved. With two it came between them:
    # those weights belong to no step, and the last checkpoint counts.
    saved = at if substeps == 1 else at - at % 3
    where = f"the run is saved at step {saved} of 8 in {tmp_path}; run the same command again to go on"
    assert str(caught.value) == f"stopped: {where}"
    if saved:
        assert newest(tmp_path) == saved
    capsys.readouterr()
    assert same(weights(train(tmp_path, substeps=substeps)), expected)
    assert losses(tmp_path) == losses(folder)
    assert (f"resuming {tmp_path} at step {saved} of 8" in capsys.readouterr().out) == bool(saved)


def test_an_exception_saves_the_last_whole_step_and_notes_where(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="oops") as caught:
        train(tmp_path, at=4, accident=raising(ZeroDivisionError("oops")))
    assert caught.value.__notes__ == [
        f"the run is saved at step 4 of 8 in {tmp_path}; run the same command again to go on"
    ]
    assert newest(tmp_path) == 4
    assert [step for step, _ in losses(tmp_path)] == [0, 1, 2, 3]


def test_gradients_of_a_broken_step_do_not_reach_the_checkpoint_or_the_next_run(
    tmp_path: Path, undisturbed: tuple[int, Path, list]
) -> None:
    substeps, _, expected = undisturbed

    def accident(policy: LoraPolicy) -> None:
        policy.forward_backward([DATUM])
        raise MemoryError

    with pytest.raises(MemoryError):
        train(tmp_path, at=4, accident=accident, substeps=substeps)
    assert same(weights(train(tmp_path, substeps=substeps)), expected)


def test_an_update_with_a_loss_that_is_no_number_is_left_out_and_counted(
    tmp_path: Path, undisturbed: tuple[int, Path, list]
) -> None:
    substeps, _, expected = undisturbed
    poisoned = Datum(tokens=[1], targets=[2], logprobs=[-1.0], advantages=[float("nan")])
    policy = train(
        tmp_path,
        at=5,
        accident=lambda policy: policy.forward_backward([poisoned], "importance_sampling"),
        substeps=substeps,
    )
    assert policy.version == TOTAL * substeps - 1
    assert not same(weights(policy), expected)
    assert all(torch.isfinite(tensor).all() for tensor in weights(policy))
    rows = read_metrics(tmp_path)
    assert {row["step"]: row["update/skipped"] for row in rows if "update/skipped" in row} == {5: 1.0}
    assert [row["step"] for row in rows if row.get("health/skipped_updates")] == [5]
    assert np.isfinite([loss for _, loss in losses(tmp_path)]).all()


def test_a_failure_after_the_update_is_not_saved_as_a_whole_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_is_full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(RunDirectory, "log_transcripts", disk_is_full)
    with pytest.raises(OSError, match="no space") as caught:
        train(tmp_path)
    assert "saved at step 0 of 8" in caught.value.__notes__[0]
    assert not (tmp_path / "checkpoints").exists()


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    tmp_path: Path, undisturbed: tuple[int, Path, list]
) -> None:
    substeps, folder, expected = undisturbed
    with pytest.raises(Interrupted):
        train(tmp_path, at=7, accident=raising(KeyboardInterrupt()), substeps=substeps)
    (tmp_path / "checkpoints" / f"step-{newest(tmp_path):06d}" / "adapter_model.safetensors").write_bytes(b"")
    assert same(weights(train(tmp_path, substeps=substeps)), expected)
    assert losses(tmp_path) == losses(folder)


def test_a_run_that_is_done_takes_no_further_step(tmp_path: Path) -> None:
    expected = weights(train(tmp_path))
    again = train(tmp_path, at=0, accident=lambda policy: pytest.fail("a step was taken"))
    assert again.version == TOTAL
    assert same(weights(again), expected)
