"""Configs from files and command lines, and sweeps over them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loragym.agents.testing import save_tiny_model
from loragym.trainers import RLConfig, SupervisedConfig
from loragym.trainers.command_line import config_from, with_file
from loragym.trainers.sweep import Axis, sweep, table, trials


def parse(default: Any, *argv: str) -> Any:
    return config_from(default, prog="test", description="A test.", argv=list(argv))


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.yaml", "learning-rate: 1e-4\nsteps: 7\nenv_kwargs: {high: 9}\nrenderer: null\nloss: ppo\n"),
        ("c.toml", 'learning_rate = 1e-4\nsteps = 7\nloss = "ppo"\n[env_kwargs]\nhigh = 9\n'),
    ],
)
def test_fields_come_from_a_file_and_the_command_line_overrules_it(tmp_path: Path, name: str, text: str) -> None:
    file = write(tmp_path / name, text)
    config = parse(RLConfig(steps=3, group_size=5), "--config", file, "--steps", "8")
    assert (config.steps, config.learning_rate, config.env_kwargs) == (8, 1e-4, {"high": 9})
    assert (config.loss, config.group_size, config.renderer) == ("ppo", 5, None)
    assert parse(RLConfig(), f"--config={file}").steps == 7


def test_of_two_files_the_later_one_counts(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.yaml", "steps: 1\nseed: 5"), write(tmp_path / "b.yaml", "steps: 2")
    config = parse(RLConfig(), "--config", first, "--config", second)
    assert (config.steps, config.seed) == (2, 5)


def test_an_enumeration_is_given_by_its_value(tmp_path: Path) -> None:
    config = with_file(SupervisedConfig(), write(tmp_path / "c.yaml", "train_on: last_assistant"))
    assert config.train_on == "last_assistant"


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("c.yaml", "lerning_rate: 1", r"there is no field 'lerning_rate'; did you mean 'learning_rate'\?"),
        ("c.yaml", "steps: many", "steps is 'many'; expected int"),
        ("c.yaml", "steps: 1.5", "steps is 1.5; expected int"),
        ("c.yaml", "steps: true", "steps is True; expected int"),
        ("c.yaml", "env_kwargs: [1]", r"env_kwargs is \[1\]; expected dict"),
        ("c.yaml", "steps: 0", "steps is at least 1, got 0"),
        ("c.yaml", "- 1\n- 2", "expected fields with their values, got list"),
        ("c.yaml", "{", "cannot read the config file"),
        ("c.toml", "steps = ", "cannot read the config file"),
        ("c.json", "{}", "ends in neither .yaml, .yml nor .toml"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        parse(RLConfig(), "--config", write(tmp_path / name, text))
    assert name in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the config file .*none.yaml"):
        parse(RLConfig(), "--config", str(tmp_path / "none.yaml"))
    with pytest.raises(ValueError, match="--config needs a file"):
        parse(RLConfig(), "--config")


@given(st.text(max_size=40))
def test_no_file_whatever_it_holds_ends_in_anything_but_a_config_or_a_value_error(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("yaml", "toml"):
            path = Path(folder) / f"c.{suffix}"
            path.write_text(text, encoding="utf-8", errors="replace")
            with contextlib.suppress(ValueError):
                with_file(RLConfig(), path)


def test_a_grid_is_all_combinations_and_random_trials_follow_from_the_seed() -> None:
    axes = [Axis.parse("learning_rate=1e-4,1e-3"), Axis.parse("--lora-rank=8,32")]
    assert trials(axes) == [
        {"learning-rate": rate, "lora-rank": rank} for rate in ("1e-4", "1e-3") for rank in ("8", "32")
    ]
    ranges = [Axis.parse("learning-rate=loguniform(1e-5,1e-3)"), Axis.parse("temperature=uniform(0.5,1.5)")]
    drawn = trials(ranges, samples=200, seed=3)
    assert drawn == trials(ranges, samples=200, seed=3) != trials(ranges, samples=200, seed=4)
    rates = np.array([float(values["learning-rate"]) for values in drawn])
    assert 1e-5 <= rates.min() < 2e-5 < 5e-4 < rates.max() <= 1e-3
    assert abs(np.mean(np.log10(rates)) + 4) < 0.15
    assert Axis.parse('env-kwargs={"high": 9, "few_shot": 1},{"high": 19}').values == (
        '{"high": 9, "few_shot": 1}',
        '{"high": 19}',
    )


@pytest.mark.parametrize(
    ("axes", "complaint"),
    [
        (["x"], "expected FIELD=A,B,C"),
        (["x=uniform(2,1)"], "a range goes from a lower to a higher number"),
        (["x=loguniform(0,1)"], "above 0 if logarithmic"),
        (["x=uniform(a,b)"], "expected FIELD"),
        (["x=1,1"], "names a value twice"),
        (["x=uniform(0,1)"], "say how often with --samples"),
        (["x=1", "x=2"], "a field is swept over twice"),
        ([], "nothing to sweep over"),
    ],
)
def test_axes_that_make_no_sweep_are_refused(axes: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        trials([Axis.parse(text) for text in axes])


def test_the_table_shows_runs_that_failed() -> None:
    rows = [{"lr": "1", "loss": 0.5, "minutes": 2.0}, {"lr": "9", "loss": None, "problem": "NaN"}]
    assert table(rows, ["lr"], "loss").splitlines()[2:] == ["| 1 | 0.5000 | 2.0 |", "| 9 | failed (NaN) | - |"]


def test_a_sweep_runs_every_trial_once_and_ranks_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_tiny_model(tmp_path / "model")
    arguments = [
        *f"--model {model} --device cpu --dtype float32 --threads 1 --lora-rank 4 --env-problems 32".split(),
        *("--env-kwargs", '{"high": 9}'),
    ]
    axes = [Axis.parse("learning-rate=1e-4,1e-2,-1")]
    results = sweep("sl_basic", axes, tmp_path / "sweep", metric="test/nll", arguments=arguments)
    assert [row["learning-rate"] for row in results] == ["1e-2", "1e-4", "-1"]
    assert results[0]["test/nll"] < results[1]["test/nll"]
    assert "learning-rate is at least 0" in results[2]["problem"]
    text = (tmp_path / "sweep" / "results.md").read_text()
    assert text.count("\n") == 5
    written = [json.loads(line) for line in (tmp_path / "sweep" / "results.jsonl").read_text().splitlines()]
    assert {row["learning-rate"] for row in written} == {"1e-2", "1e-4", "-1"}
    # Again: what is finished is not run again.
    before = (tmp_path / "sweep" / "learning-rate=1e-2" / "metrics.jsonl").stat().st_mtime_ns
    assert sweep("sl_basic", axes[:1], tmp_path / "sweep", metric="test/nll", arguments=arguments)[0] == results[0]
    assert (tmp_path / "sweep" / "learning-rate=1e-2" / "metrics.jsonl").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"no run has the metric 'nope'; they have \[.*'test/nll'.*\]"):
        sweep("sl_basic", [Axis.parse("learning-rate=1e-2")], tmp_path / "sweep", metric="nope", arguments=arguments)


def test_the_command_sweeps_and_draws(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    command = [
        *(sys.executable, "-m", "loragym.cli", "sweep", "sl_basic", "--over", "seed=1,2", "--metric", "test/nll"),
        *("--sweep-dir", str(tmp_path / "s"), "--model", str(model), "--env-problems", "16", "--device", "cpu"),
        *("--dtype", "float32", "--env-kwargs", '{"high": 9}'),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "| seed | test/nll | minutes |" in done.stdout
    assert (tmp_path / "s" / "sweep.png").stat().st_size > 5000


def test_the_command_recommends(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from loragym.cli import main

    model = save_tiny_model(tmp_path / "model")
    with pytest.raises(SystemExit) as ended:
        main(["recommend", str(model), "--task", "rl"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "learning rate" in out
    assert "note: sweep" in out
