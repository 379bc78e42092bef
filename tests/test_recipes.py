"""Every recipe explains itself, runs from end to end, and leaves what it says."""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import worlds  # noqa: F401
from loragym.agents import BaseModel
from loragym.agents.testing import save_tiny_model
from loragym.cli import find_policy
from loragym.messages import assistant, user
from loragym.recipes import RECIPES
from loragym.trainers.curves import plot_runs
from loragym.trainers.run_directory import read_metrics

TINY = ["--lora-rank", "4"]
TRAINER = [*TINY, "--dtype", "float32", "--device", "cpu", "--eval-every", "0"]
RL = [
    "--env",
    "tests/Letters-v0",
    "--env-kwargs",
    "{}",
    "--group-size",
    "4",
    "--max-tokens",
    "3",
    "--learning-rate",
    "0.02",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model")))


def recipe(name: str) -> Any:
    return importlib.import_module(f"loragym.recipes.{name.replace('/', '.')}")


def run(name: str, model: str, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    recipe(name).main(["--model", model, "--run-dir", str(folder), *arguments])
    return read_metrics(folder)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("rl_basic", "Episodes of each problem; their mean reward is the baseline."),
        ("rl_loop", "Replies to each problem (G)."),
        ("sl_basic", "Share of the conversations held out"),
        ("sl_loop", "Steps between looks at the held-out conversations."),
    ],
)
def test_help_explains_the_fields(name: str, field: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        recipe(name).main(["--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert field in shown
    assert "--run-dir" in shown
    assert "smollm2-135m-instruct" in shown


def test_every_recipe_is_listed_and_every_listed_one_is_there() -> None:
    folder = Path(recipe("rl_loop").__file__).parent
    modules = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.py")]
    assert {name for name in modules if hasattr(recipe(name), "main")} == set(RECIPES)
    assert all(callable(recipe(name).main) and summary for name, summary in RECIPES.items())


@pytest.mark.parametrize("name", ["rl_loop", "sl_loop"])
def test_a_loop_is_one_flat_file_of_at_most_200_lines_without_a_trainer(name: str) -> None:
    source = Path(recipe(name).__file__).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 200
    taken = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            taken |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            taken |= {alias.name for alias in node.names}
    assert not any(name.startswith(".") for name in taken)
    of_ours = {name for name in taken if name.startswith("loragym")}
    assert of_ours
    allowed = {"loragym.trainers.json_argument.JSON_OBJECT"}
    assert {name for name in of_ours if name.startswith("loragym.trainers")} <= allowed


def test_rl_basic_runs_reports_and_leaves_a_run(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        *TRAINER,
        *RL,
        *["--steps", "3", "--problems-per-step", "4", "--warmup-steps", "2", "--warmup-batch", "4"],
    ]
    rows = run("rl_basic", model, tmp_path, *arguments, "--eval-problems", "4")
    assert [row["step"] for row in rows] == list(range(6))
    out = capsys.readouterr().out
    for part in ("Held-out problems", "before", "after the warm-up", "at the end", f"loragym plot {tmp_path}"):
        assert part in out
    for name in ("config.json", "versions.json", "summary.json", "tensorboard", "checkpoints/step-000005"):
        assert (tmp_path / name).exists()
    again = run("rl_basic", model, tmp_path, *arguments, "--eval-problems", "4")
    assert again == rows
    assert capsys.readouterr().out == out[out.index("\nHeld-out problems") :]  # told again, not trained again


def test_sl_basic_runs_reports_and_leaves_a_run(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--env-problems", "32", "--batch-size", "8", "--learning-rate", "0.01"]
    rows = run("sl_basic", model, tmp_path, *TRAINER, *arguments, "--env-kwargs", '{"high": 9}')
    assert [row["step"] for row in rows] == list(range(5))
    assert rows[-1]["test/nll"] < rows[0]["test/nll"]
    out = capsys.readouterr().out
    assert f"Held-out nll: {rows[0]['test/nll']:.4f} before, {rows[-1]['test/nll']:.4f} at the end" in out
    assert (tmp_path / "checkpoints" / "step-000004" / "adapter_config.json").is_file()


def test_sl_basic_runs_without_held_out_conversations(model: str, tmp_path: Path) -> None:
    rows = run(
        "sl_basic", model, tmp_path, *TRAINER, *["--env-problems", "8", "--batch-size", "8", "--test-fraction", "0"]
    )
    assert "test/nll" not in rows[0]


def test_tool_use_learns_from_scripted_searches_then_from_its_own_and_tells_of_calls_and_turns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = str(save_tiny_model(tmp_path / "model", max_position_embeddings=4096))
    sizes = ["--warmup-steps", "3", "--warmup-batch", "4", "--steps", "2", "--problems-per-step", "2"]
    rows = run(
        "tool_use",
        wide,
        tmp_path / "run",
        *TRAINER,
        *sizes,
        *["--warmup-learning-rate", "0.02", "--group-size", "2", "--max-tokens", "8", "--eval-problems", "3"],
    )
    assert [row["step"] for row in rows] == list(range(6))
    assert rows[2]["warmup/nll"] < rows[0]["warmup/nll"] - 0.5
    for row in rows[3:5]:
        assert {"env/calls", "env/correct", "env/answer_seen", "turns_per_episode"} <= row.keys()
    out = capsys.readouterr().out
    for part in ("after the warm-up", "exact match, temperature 1", "calls, greedy", "turns, greedy"):
        assert part in out
    pytest.importorskip("matplotlib")
    assert plot_runs([tmp_path / "run"], tmp_path / "calls.png", panels=["Tool calls per episode"]).is_file()


def test_tool_use_on_another_environment_has_its_figures_alone(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--warmup-steps", "0", "--steps", "1", "--problems-per-step", "2", "--eval-problems", "2"]
    run("tool_use", model, tmp_path, *TRAINER, *RL, *sizes)
    out = capsys.readouterr().out
    assert "turns, greedy" in out and "exact match" not in out


def test_rl_loop_learns_and_goes_on_where_it_stopped(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*TINY, *RL, *["--problems", "8", "--save-every", "2"]]
    whole = run("rl_loop", model, tmp_path / "whole", *arguments, "--steps", "6")
    assert [row["step"] for row in whole] == list(range(6))
    assert all(abs(row["kl_v1"]) < 0.05 for row in whole)
    assert f"the adapter is in {tmp_path / 'whole' / 'checkpoint'}" in capsys.readouterr().out
    run("rl_loop", model, tmp_path / "parts", *arguments, "--steps", "4")
    parts = run("rl_loop", model, tmp_path / "parts", *arguments, "--steps", "6")
    assert f"going on from step 4 in {tmp_path / 'parts'}" in capsys.readouterr().out
    assert [(row["step"], row["reward"], row["grad_norm"]) for row in parts] == [
        (row["step"], row["reward"], row["grad_norm"]) for row in whole
    ]
    monkeypatch.setattr("loragym.agents.LoraPolicy.optim_step", lambda *_: pytest.fail("a step was taken"))
    assert run("rl_loop", model, tmp_path / "whole", *arguments, "--steps", "6") == whole


def test_rl_loop_raises_the_reward(model: str, tmp_path: Path) -> None:
    gently = [*RL[:-1], "0.01"]
    rows = run("rl_loop", model, tmp_path, *TINY, *gently, *["--problems", "16", "--steps", "30"])
    # From 0.75 to between 1.9 and 2.6 with six seeds; rounding, which differs by processor, is as good as another seed.
    assert sum(row["reward"] for row in rows[-3:]) > sum(row["reward"] for row in rows[:3]) + 0.7


def test_sl_loop_learns_a_file_of_conversations_and_leaves_a_peft_folder(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "chats.jsonl"
    rows = [json.dumps({"messages": [user(f"Say {i}"), assistant("abc")]}) + "\n" for i in range(20)]
    data.write_text("".join(rows), encoding="utf-8")
    arguments = [
        *TINY,
        "--data",
        str(data),
        *["--batch-size", "6", "--epochs", "4", "--learning-rate", "0.01", "--eval-every", "4"],
    ]
    logged = run("sl_loop", model, tmp_path / "run", *arguments)
    assert [row["step"] for row in logged] == list(range(12))
    assert logged[8]["test/nll"] < logged[0]["test/nll"] - 1
    out = capsys.readouterr().out
    assert "on 2 held-out conversations" in out
    base_name, adapter, _ = find_policy(str(tmp_path / "run" / "adapter"))
    assert adapter is not None
    policy = BaseModel.load(base_name, dtype="float32").load_lora("policy", adapter)
    assert policy.config.rank == 4


def test_sl_loop_learns_additions_by_default() -> None:
    conversations = recipe("sl_loop").additions(5)
    env = gymnasium.make("loragym/Arithmetic-v0", high=99)
    for seed, conversation in enumerate(conversations):
        messages, info = env.reset(seed=seed)
        assert conversation == [*messages, assistant(info["reference"])]
