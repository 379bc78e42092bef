"""Runs that begin at a checkpoint: at an earlier one of their own, or at another run's, with its config or another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loragym.trainers import Interrupted, RunDirectory, RunError
from loragym.trainers.checkpoints import CheckpointStore
from loragym.trainers.config_changes import FREE_FIELDS, changes, refused_by_fork, refused_by_resume
from loragym.trainers.run_directory import read_metrics
from small_runs import Config, losses, newest, raising, same, train, weights

KEEPING = Config(keep_checkpoints=9)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints at steps 3, 6 and 8."""
    train(tmp_path / "run", config=KEEPING)
    return tmp_path / "run"


def checkpoint(run: Path, step: int) -> str:
    return str(run / "checkpoints" / f"step-{step:06d}")


def rewritten(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_run_goes_back_to_a_checkpoint_of_its_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected, before = weights(train(run, config=KEEPING)), losses(run)
    capsys.readouterr()
    again = train(run, config=KEEPING, resume_from=checkpoint(run, 3))
    assert "at step 3 of 8" in capsys.readouterr().out
    assert same(weights(again), expected)
    assert losses(run) == before
    assert len(list((run / "transcripts").iterdir())) == 8
    assert json.loads((run / "origin.json").read_text())["step"] == 3


@pytest.mark.parametrize("named", [lambda run: str(run), lambda run: checkpoint(run, 6)])
def test_a_run_goes_on_from_another_ones_checkpoint_with_its_history(
    run: Path, tmp_path: Path, named: Callable[[Path], str]
) -> None:
    shutil.rmtree(checkpoint(run, 8))
    before = {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    policy = train(tmp_path / "new", config=KEEPING, resume_from=named(run))
    assert same(weights(policy), weights(train(tmp_path / "undisturbed")))
    assert losses(tmp_path / "new") == losses(run)
    assert len(list((tmp_path / "new" / "transcripts").iterdir())) == 8
    origin = json.loads((tmp_path / "new" / "origin.json").read_text())
    assert (origin["checkpoint"], origin["step"], origin["fork"]) == (checkpoint(run, 6), 6, False)
    assert {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_same_command_again_goes_on_and_does_not_begin_again(run: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"config": KEEPING, "resume_from": checkpoint(run, 3)}
    with pytest.raises(Interrupted):
        train(tmp_path / "new", at=7, accident=raising(KeyboardInterrupt()), **options)
    assert newest(tmp_path / "new") == 7
    taken: list[int] = []
    train(tmp_path / "new", at=7, accident=lambda policy: taken.append(policy.version), **options)
    assert taken == [7]  # the first step that it took was the one that had been broken off
    # Not even where the run that it came from is gone.
    shutil.rmtree(run)
    train(tmp_path / "new", at=0, accident=lambda policy: pytest.fail("a step was taken"), **options)


@pytest.mark.parametrize("step", ["history", "checkpoint"])
def test_a_beginning_that_is_broken_off_is_repeated(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("killed")

    with monkeypatch.context() as patched:
        owner, name = (shutil, "copyfile") if step == "history" else (CheckpointStore, "save")
        patched.setattr(owner, name, killed)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path / "new", config=KEEPING, resume_from=checkpoint(run, 3))
    # By the bare command, too: what it was to begin from is noted.
    policy = train(tmp_path / "new", config=KEEPING)
    assert same(weights(policy), weights(train(tmp_path / "undisturbed")))
    assert losses(tmp_path / "new") == losses(run)


def test_a_fork_goes_on_under_another_config_and_leaves_its_origin_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Config(keep_checkpoints=9, learning_rate=1e-3, steps=10)
    before = losses(run)
    policy = train(tmp_path / "fork", config=other, fork=checkpoint(run, 3))
    assert "changed: learning_rate: 0.01 -> 0.001" in capsys.readouterr().out
    assert not same(weights(policy), weights(train(run, config=KEEPING)))
    assert losses(tmp_path / "fork")[:4] == before[:4]
    assert [step for step, _ in losses(tmp_path / "fork")] == list(range(10))
    assert losses(run) == before
    origin = json.loads((tmp_path / "fork" / "origin.json").read_text())
    assert origin["fork"] is True
    assert origin["changes"] == ["learning_rate: 0.01 -> 0.001", "steps: 8 -> 10"]
    assert json.loads((tmp_path / "fork" / "config.json").read_text())["learning_rate"] == 1e-3
    # What is asked for in the fork is its own config from now on.
    with pytest.raises(RunError, match=r"learning_rate: 0\.001 -> 0\.01"):
        train(tmp_path / "fork", config=KEEPING)


@pytest.mark.parametrize(
    ("options", "config", "message"),
    [
        ({"resume_from": "{run}"}, Config(learning_rate=0.5), r"learning_rate: 0.01 -> 0.5\n.*--fork"),
        ({"fork": "{run}"}, Config(lora_rank=8), r"lora_rank: 32 -> 8\n.*--adapter"),
        ({"fork": "{run}"}, Config(model="another"), r"model: .* -> 'another'"),
        ({"resume_from": "{tmp}/nowhere"}, KEEPING, "neither a checkpoint nor a run that has a whole one"),
        ({"resume_from": "{tmp}/damaged"}, KEEPING, "adapter_model.safetensors is not what was written"),
        ({"resume_from": "{tmp}/alone/step-000006"}, KEEPING, "lies alone.*--adapter"),
        ({"fork": "{tmp}/nameless/checkpoints/step-000006"}, KEEPING, "is not what was written"),
    ],
)
def test_what_cannot_be_begun_from_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path, options: dict[str, str], config: Config, message: str
) -> None:
    shutil.copytree(run, tmp_path / "damaged")
    for step in (3, 6, 8):
        adapter = Path(checkpoint(tmp_path / "damaged", step), "adapter_model.safetensors")
        adapter.write_bytes(adapter.read_bytes()[:-1] + b"?")
    if "damaged" in str(options):
        options = {"resume_from": checkpoint(tmp_path / "damaged", 6)}
    shutil.copytree(checkpoint(run, 6), tmp_path / "alone" / "step-000006")
    shutil.copytree(run, tmp_path / "nameless")
    rewritten(tmp_path / "nameless" / "checkpoints" / "step-000006" / "state.json", step="six")
    found = {name: value.format(run=run, tmp=tmp_path) for name, value in options.items()}
    with pytest.raises(RunError, match=f"(?s){message}"):
        train(tmp_path / "new", config=config, **found)
    assert {path.name for path in (tmp_path / "new").iterdir()} <= {".lock"}
    # And the directory can be used.
    train(tmp_path / "new", config=KEEPING)


def test_a_directory_that_holds_another_run_is_not_begun_anew_in(run: Path, tmp_path: Path) -> None:
    train(tmp_path / "other", config=KEEPING)
    before = losses(tmp_path / "other")
    with pytest.raises(RunError, match=r"holds a run already.*--fresh"):
        train(tmp_path / "other", config=KEEPING, resume_from=checkpoint(run, 3))
    with pytest.raises(RunError, match=r"a directory of its own"):
        train(run, config=Config(learning_rate=0.5), fork=checkpoint(run, 3))
    with pytest.raises(RunError, match=r"--fresh would delete"):
        train(run, config=KEEPING, fresh=True, resume_from=checkpoint(run, 3))
    assert losses(tmp_path / "other") == before
    assert newest(run) == 8
    train(tmp_path / "other", config=KEEPING, fresh=True, resume_from=checkpoint(run, 3))
    assert json.loads((tmp_path / "other" / "origin.json").read_text())["step"] == 3


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_more_steps_are_taken_where_that_is_more_of_the_same(tmp_path: Path, schedule: str) -> None:
    config = Config(schedule=schedule)
    train(tmp_path / "run", config=config)
    with RunDirectory(tmp_path / "run", config) as finished:
        finished.start(8)
        finished.finish({"figure": 1.0})
    longer = Config(schedule=schedule, steps=12)
    if schedule == "linear":
        with pytest.raises(RunError, match="steps: 8 -> 12"):
            train(tmp_path / "run", config=longer)
        return
    with RunDirectory(tmp_path / "run", longer) as again:
        assert again.summary is None  # no longer finished
    expected = weights(train(tmp_path / "at once", config=longer))
    assert same(weights(train(tmp_path / "run", config=longer)), expected)
    assert losses(tmp_path / "run") == losses(tmp_path / "at once")
    with pytest.raises(RunError, match="steps: 12 -> 8"):
        train(tmp_path / "run", config=config)


def test_a_field_that_is_younger_than_the_run_is_at_its_default_or_named() -> None:
    saved = {"seed": 0, "threads": 2}
    assert not refused_by_resume(saved, {**saved, "run_dir": "elsewhere", "keep_best": "test/nll"})
    assert [str(change) for change in refused_by_resume(saved, {**saved, "loss": "ppo"})] == ["loss: None -> 'ppo'"]
    assert [str(change) for change in changes(saved, {"seed": 0, "threads": 4})] == ["threads: 2 -> 4"]
    assert [change.field for change in refused_by_fork(saved, {"threads": 2})] == ["seed"]
    assert "learning_rate" not in FREE_FIELDS


def test_rows_that_were_edited_away_are_named(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([*lines[:2], "{broken\n", *lines[4:]]))
    train(run, config=KEEPING)
    assert "no row of 2 of the 8 steps before step 8 (the first is step 2)" in caplog.text
    assert [row["step"] for row in read_metrics(run)] == [0, 1, 4, 5, 6, 7]
