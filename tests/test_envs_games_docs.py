"""The page about games is true: its examples run, and its catalogue names the options and the scripts there are."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.envs.registration import load_env_creator
from gymnasium.utils.env_checker import check_env
from loragym.agents import BaseModel
from loragym.agents.testing import tiny_model
from loragym.envs.games import tables

PAGE = (Path(__file__).parent.parent / "docs" / "environments_games.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
ROWS = {
    name: row
    for name, row in re.findall(r"^\| `loragym/([\w-]+)` \|(.*)\|$", PAGE, flags=re.MULTILINE)
    if name not in ("TwentyQuestions-v0", "TextArena-v0")  # these are no tables
}


def example(word: str) -> str:
    (found,) = [text for text in EXAMPLES if word in text]
    return found


def test_every_table_has_a_row_and_every_row_its_own_options_and_scripts() -> None:
    assert set(ROWS) == set(tables.TABLES)
    for name, row in ROWS.items():
        options = row.split("|")[3]
        parameters = set(inspect.signature(load_env_creator(gymnasium.spec(f"loragym/{name}").entry_point)).parameters)
        assert set(re.findall(r"`(\w+)`", options)) == parameters - {"render_mode"}
        for script in re.search(r"`opponents` \((.*?)\)", options)[1].replace(" to ", ", ").split(", "):  # type: ignore[index]
            assert script in tables.table_class(name).scripts


def test_a_table_of_ones_own_takes_thirty_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    code = example("class Nim")
    (tmp_path / "sticks.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    names = vars(importlib.import_module("sticks"))
    body = code[code.index("class Nim") : code.index("check_table(Nim)")]
    assert len([line for line in body.splitlines() if line.strip()]) <= 30
    check_env(names["env"])
    # From five sticks the first player wins by taking one, and so on: leave a multiple of four.
    env = names["env"]
    for seed in range(30):
        env.reset(seed=seed)
        if env.table.state[0] % 4 == 0:
            continue
        over = False
        while not over:
            _, reward, over, _, _ = env.step(str(env.table.state[0] % 4))
        assert reward == 1.0


@pytest.mark.parametrize("word", ["gymnasium.make(", "agent_iter"])
def test_the_short_examples_run(word: str) -> None:
    exec(example(word), {})


def test_the_self_play_example_runs_and_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    base = BaseModel(*tiny_model(max_position_embeddings=2048))
    monkeypatch.setattr(BaseModel, "load", lambda name: base)
    names: dict[str, Any] = {}
    exec(example("play_games").replace("range(step * 4, step * 4 + 4)", "range(1)"), names)
    assert len(names["games"][0]) == 8
    assert {tuple(game.players.values()) for game in names["games"][0]} == {
        ("policy", "rival"),
        ("rival", "policy"),
        ("policy", "random"),
        ("random", "policy"),
    }
