"""The command does what its help says, and what a user can put right is one line, not a traceback."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import worlds  # noqa: F401
from loragym.agents import BaseModel, LoraConfig
from loragym.agents.testing import save_tiny_model
from loragym.cli import find_policy, main, report_errors, training_prefix
from loragym.envs import CATALOGUE
from loragym.recipes import RECIPES

RUN = [
    *[
        "train",
        "sl_basic",
        "--lora-rank",
        "4",
        "--dtype",
        "float32",
        "--device",
        "cpu",
        "--env-problems",
        "16",
        "--batch-size",
        "8",
    ],
    *["--learning-rate", "0.01", "--env-kwargs"],
    '{"high": 9, "few_shot": 2}',
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "sums"
    assert command([*RUN, "--model", str(model), "--run-dir", str(folder)]) == 0
    return folder


def command(arguments: Sequence[str]) -> object:
    """The exit code of `loragym ARGUMENTS`."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def chat(monkeypatch: pytest.MonkeyPatch, typed: str, *arguments: str) -> object:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    return command(["chat", *arguments, "--max-tokens", "5"])


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("train", "chat", "plot", "envs"))


def test_the_recipes_are_listed_and_their_own_help_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["train"], ["train", "--help"]):
        assert command(arguments) == 0
        shown = capsys.readouterr().out
        assert all(name in shown and summary in shown for name, summary in RECIPES.items())
    assert command(["train", "rl_basic", "--help"]) == 0
    assert "--problems-per-step" in capsys.readouterr().out


def test_the_environments_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["envs"]) == 0
    shown = capsys.readouterr().out
    assert all(env_id in shown and summary in shown for env_id, summary in CATALOGUE.items())


def test_a_trained_run_can_be_talked_to_with_the_examples_it_was_trained_with(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(monkeypatch, "What is 1 + 2?\n\nWhat is 3 + 4?\n", str(trained), "--temperature", "0") == 0
    out = capsys.readouterr().out
    assert "What is 4 + 5?" in out and "What is 7 + 2?" in out  # the two worked examples
    assert "(started over)" in out
    assert out.count("[assistant]") == 4


def test_what_was_trained_is_what_answers(
    trained: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = max((trained / "checkpoints").glob("step-*"))
    answers = []
    for policy in (str(trained), str(newest), str(model)):
        assert chat(monkeypatch, "hello\n", policy, "--temperature", "0", "--system", "Be brief.") == 0
        out = capsys.readouterr().out
        assert "[system] Be brief." in out
        answers.append(out[out.rindex("[assistant]") :])
    assert answers[0] == answers[1] != answers[2]


def test_a_reply_cannot_drive_the_terminal(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    escape = [*b"\x1b[2Jgone", 257]

    class Hostile:
        def sample(self, *_: object) -> list[list[object]]:
            from loragym.agents import Completion

            return [[Completion(list(escape), [0.0] * len(escape), "stop")]]

    monkeypatch.setattr(BaseModel, "sampler", lambda self: Hostile())
    assert chat(monkeypatch, "hello\n", str(model)) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[2Jgone" in out


def test_chat_with_a_flat_loops_checkpoint(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "train",
        "rl_loop",
        "--env",
        "tests/Letters-v0",
        "--env-kwargs",
        "{}",
        "--lora-rank",
        "4",
        "--steps",
        "1",
        "--problems",
        "2",
    ]
    assert command([*arguments, "--model", str(model), "--run-dir", str(tmp_path)]) == 0
    assert chat(monkeypatch, "hello\n", str(tmp_path / "checkpoint")) == 0
    assert capsys.readouterr().out.count("[assistant]") == 1


def test_what_a_name_means(trained: Path, model: Path, tmp_path: Path) -> None:
    base, adapter, config = find_policy(str(trained))
    assert (base, adapter) == (str(model), trained / "checkpoints" / "step-000002")
    assert config["env_kwargs"] == {"high": 9, "few_shot": 2}
    BaseModel.load(str(model)).add_lora("a", LoraConfig(rank=2)).save_adapter(tmp_path / "adapter")
    assert find_policy(str(tmp_path / "adapter")) == (str(model), tmp_path / "adapter", {})
    assert find_policy("some/model") == ("some/model", None, {})
    assert training_prefix({"env": "loragym/Arithmetic-v0", "env_kwargs": {"few_shot": 0}}) == []
    assert training_prefix({**config, "data": "chats.jsonl"}) == training_prefix({}) == []


def test_a_run_without_a_checkpoint_cannot_be_talked_to_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert command(["chat", str(tmp_path)]) == 1
    assert "has no checkpoint yet" in capsys.readouterr().err


def test_plot_draws_the_curves_of_runs(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert command(["plot", str(trained)]) == 0
    picture = trained / "curves.png"
    assert capsys.readouterr().out.strip() == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    picture.unlink()
    two = tmp_path / "pictures" / "two.svg"
    arguments = ["plot", str(trained), str(trained), "-o", str(two), "--panels", "Negative log-likelihood"]
    assert command(arguments) == 0
    assert "<svg" in two.read_text()
    assert command(["plot", str(trained), "--panels", "Nonsense"]) == 1
    assert "unknown panels ['Nonsense']" in capsys.readouterr().err
    assert command(["plot", str(tmp_path / "none")]) == 1
    assert "nothing to draw" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["train", "nope"], "unknown recipe 'nope'; there are rl_basic, "),
        (["train", "rl_basic", "--env", "nope/Nothing-v0"], "cannot make the environment 'nope/Nothing-v0'"),
        (["train", "rl_basic", "--env-kwargs", '{"hihg": 9}'], "unexpected keyword argument 'hihg'"),
        (["train", "rl_basic", "--env", "worlds:tests/Untaught-v0"], "gives no info['reference']"),
        (["train", "sl_basic", "--data", "none.jsonl"], "there is no file or folder none.jsonl"),
        (["train", "sl_basic", "--data", "broken.jsonl"], "broken.jsonl:2 is not JSON"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(BaseModel, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    good = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    Path("broken.jsonl").write_text(f"{good}\nbroken\n")
    assert command(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("loragym: ")
    assert complaint in err
    assert len(err.splitlines()) <= 2
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--group-size", "1"], "group-size is at least 2, got 1"),
        (["--temperature", "0"], "temperature is above 0"),
        (["--loss", "nope"], "loss is one of"),
        (["--env-kwargs", "{broken"], "expected a JSON object such as"),
        (["--env-kwargs", "[1]"], "expected a JSON object such as"),
        (["--steps", "many"], "invalid literal for int"),
        (["--stepz", "3"], "--stepz"),
    ],
)
def test_a_field_that_is_wrong_is_named_with_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(["train", "rl_basic", *arguments]) == 2
    err = capsys.readouterr().err
    assert complaint in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert not Path("runs").exists()


def test_arguments_that_a_command_does_not_take_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["envs", "--all"]) == 2
    assert "envs does not take --all" in capsys.readouterr().err
    assert command([]) == 2


def test_an_error_comes_with_its_notes_and_an_interrupt_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        error = ValueError("what is wrong")
        error.add_note("where the run is")
        raise error

    assert report_errors(fail) == 1
    assert capsys.readouterr().err == "loragym: what is wrong\n  where the run is\n"

    def stop() -> None:
        raise KeyboardInterrupt

    assert report_errors(stop) == 130
    assert capsys.readouterr().err == "\nstopped\n"
    assert report_errors(lambda: None) == 0

    def bug() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):  # a mistake in the program keeps its traceback
        report_errors(bug)


def test_a_world_that_breaks_the_contract_is_reported_without_a_traceback(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "train",
        "rl_basic",
        "--env",
        "tests/WrongShape-v0",
        "--env-kwargs",
        "{}",
        "--warmup-steps",
        "0",
        "--eval-problems",
        "0",
    ]
    assert command([*arguments, "--model", str(model), "--run-dir", str(tmp_path / "run")]) == 1
    err = capsys.readouterr().err
    assert "tests/WrongShape-v0: step() returned a tuple of 3; expected a tuple of 5" in err
    assert "seed" in err


def test_the_command_line_answers_without_loading_torch() -> None:
    source = "import sys; from loragym.cli import main\ntry: main(['envs'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "loragym/Arithmetic-v0" in done.stdout


@pytest.mark.parametrize("name", ["checkpoint", "adapter"])
def test_a_flat_loops_run_stands_for_its_one_adapter(tmp_path: Path, name: str) -> None:
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    (tmp_path / name).mkdir()
    (tmp_path / name / "adapter_config.json").write_text('{"base_model_name_or_path": "a-base"}', encoding="utf-8")
    assert find_policy(str(tmp_path)) == ("a-base", tmp_path / name, {})
