"""A run is its directory: refused if it is another's, and its logs whole after any interruption."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loragym.messages import assistant, user
from loragym.trainers import RunDirectory, RunError, SupervisedConfig
from loragym.trainers.config_changes import FREE_FIELDS
from loragym.trainers.run_directory import METRICS_FILE, read_metrics, transcript_rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CONFIG = SupervisedConfig(env_kwargs={"high": 9})


def opened_and_closed(path: Path, config: SupervisedConfig = CONFIG, **options: Any) -> None:
    RunDirectory(path, config, **options).close()


def test_a_new_run_notes_what_was_asked_for_and_what_ran_it(tmp_path: Path) -> None:
    opened_and_closed(tmp_path / "deep" / "run")
    saved = json.loads((tmp_path / "deep" / "run" / "config.json").read_text())
    assert saved["env_kwargs"] == {"high": 9}
    assert saved["train_on"] == "all_assistant"
    versions = json.loads((tmp_path / "deep" / "run" / "versions.json").read_text())
    assert versions["packages"]["torch"].startswith("2.")
    assert versions["python"] == sys.version.split()[0]


def test_a_run_with_another_config_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    opened_and_closed(tmp_path)
    changed = replace(CONFIG, batch_size=64, env_kwargs={"high": 10})
    with pytest.raises(RunError) as caught:
        RunDirectory(tmp_path, changed)
    assert "batch_size: 32 -> 64" in str(caught.value)
    assert "env_kwargs: {'high': 9} -> {'high': 10}" in str(caught.value)
    assert "--fresh" in str(caught.value)
    assert "lora_rank" not in str(caught.value)
    opened_and_closed(tmp_path)  # and the refusal has left neither a lock nor a changed config


def test_fields_that_change_no_result_may_change(tmp_path: Path) -> None:
    opened_and_closed(tmp_path)
    opened_and_closed(tmp_path, replace(CONFIG, save_every=3, keep_checkpoints=9, threads=2, run_dir="elsewhere"))
    assert json.loads((tmp_path / "config.json").read_text())["save_every"] == 3
    assert not {"seed", "model", "learning_rate", "dtype", "device", "env", "batch_size"} & FREE_FIELDS


def test_a_damaged_config_is_an_error_that_says_so_and_fresh_gets_over_it(tmp_path: Path) -> None:
    opened_and_closed(tmp_path)
    (tmp_path / "config.json").write_text('{"model": ')
    with pytest.raises(RunError, match=r"config.json is damaged"):
        RunDirectory(tmp_path, CONFIG)
    opened_and_closed(tmp_path, fresh=True)
    opened_and_closed(tmp_path)


def test_fresh_deletes_the_run_and_starts_anew(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, CONFIG) as run:
        run.start(0)
        run.log(0, {"x": 1.0})
        run.log_transcripts(0, [{"messages": []}])
        run.checkpoints.save(1, lambda folder: None, {})
        run.finish({"done": 1})
        assert run.summary == {"done": 1}
    with RunDirectory(tmp_path, replace(CONFIG, batch_size=7), fresh=True) as run:
        assert run.summary is None
        assert run.checkpoints.latest() is None
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.json", "versions.json"]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_that_is_no_run_is_refused_and_left_as_it_was(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')  # as a model's folder has
    with pytest.raises(
        RunError, match=r"is no run directory, and it is not empty \(it holds config.json, thesis.tex\)"
    ):
        RunDirectory(tmp_path, CONFIG, fresh=fresh)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "thesis.tex"]
    assert (tmp_path / "config.json").read_text() == '{"model_type": "llama"}'


def test_a_run_killed_while_it_was_being_made_can_be_made_again(tmp_path: Path) -> None:
    for name in (".lock", ".versions.json", "versions.json", ".config.json"):
        (tmp_path / name).write_text("{")
    opened_and_closed(tmp_path)


def test_a_path_that_cannot_be_a_folder_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot use .*file/run as a run directory.*--run-dir"):
        RunDirectory(tmp_path / "file" / "run", CONFIG)


HOLD = """
import sys
from loragym.trainers.run_directory import RunDirectory
from loragym.trainers.supervised import SupervisedConfig
with RunDirectory(sys.argv[1], SupervisedConfig(env_kwargs={"high": 9})):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_while_the_first_one_lives(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        for fresh in (False, True):
            with pytest.raises(RunError, match="another process is running in"):
                RunDirectory(tmp_path, CONFIG, fresh=fresh)
        holder.kill()
        holder.wait()
    opened_and_closed(tmp_path)  # a killed process holds nothing


def test_metrics_of_a_resumed_run_have_every_step_once(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, CONFIG) as run:
        run.start(0)
        for step in range(5):
            run.log(step, {"x": float(step)})
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 5, "x"')  # killed in the middle of a line
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2, 3, 4]
    with RunDirectory(tmp_path, CONFIG) as run:
        run.start(3)  # the checkpoint was older than the log
        for step in range(3, 6):
            run.log(step, {"x": step + 0.5})
    rows = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert [(row["step"], row["x"]) for row in rows] == [(0, 0), (1, 1), (2, 2), (3, 3.5), (4, 4.5), (5, 5.5)]


def scalars(folder: Path, name: str) -> dict[int, float]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_tensorboard_shows_the_same_figures_once_each(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, CONFIG) as run:
        run.start(0)
        for step in range(5):
            run.log(step, {"train/nll": 2.0**-step, "rare": 1.0} if step == 0 else {"train/nll": 2.0**-step})
    assert scalars(tmp_path, "train/nll") == {step: 2.0**-step for step in range(5)}
    assert scalars(tmp_path, "rare") == {0: 1.0}
    with RunDirectory(tmp_path, CONFIG) as run:
        run.start(3)
        run.log(3, {"train/nll": 7.0})
    assert scalars(tmp_path, "train/nll") == {0: 1.0, 1: 0.5, 2: 0.25, 3: 7.0}


def test_a_figure_that_is_no_number_is_null_and_the_line_stays_json(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, CONFIG) as run:
        run.start(0)
        run.log(0, {"bad": math.nan, "worse": -math.inf, "good": 1.0})
    (line,) = (tmp_path / METRICS_FILE).read_text().splitlines()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert row == {"step": 0, "bad": None, "worse": None, "good": 1.0}


def test_transcripts_keep_whole_conversations_whatever_was_said(tmp_path: Path) -> None:
    said = [user("half an emoji \ud83d, a line separator \u2028, umlauts äö"), assistant("\x00\x1b[31m\ufffd")]
    with RunDirectory(tmp_path, CONFIG) as run:
        run.start(0)
        run.log_transcripts(0, transcript_rows([("Some-v0 seed 3", 0.5, said), ("Some-v0 seed 4", 1.0, said)]))
        run.log_transcripts(1, transcript_rows([("Some-v0 seed 5", 0.5, said)]))
        run.log_transcripts(2, [])
    folder = tmp_path / "transcripts"
    assert sorted(path.name for path in folder.iterdir()) == ["step-000000.jsonl", "step-000001.jsonl"]
    text = (folder / "step-000000.jsonl").read_bytes().decode("utf-8")
    assert "umlauts äö" in text
    rows = [json.loads(line) for line in text.split("\n")[:-1]]
    assert rows == [
        {"task": "Some-v0 seed 3", "reward": 0.5, "messages": said},
        {"task": "Some-v0 seed 4", "reward": 1.0, "messages": said},
    ]
    with RunDirectory(tmp_path, CONFIG) as run:
        run.start(1)
    assert [path.name for path in folder.iterdir()] == ["step-000000.jsonl"]
