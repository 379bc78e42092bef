"""A person can play any environment in the terminal, and check one."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from loragym.cli import main
from loragym.envs import Outcome, TextEnv
from loragym.envs.conformance import LAWS
from loragym.envs.making import make_env
from loragym.envs.play import play
from loragym.messages import Message, Reply, user


class Shop(TextEnv):
    """Offers a tool, and repeats what it heard."""

    tools = (
        {
            "name": "price",
            "description": "Looks up a price.",
            "parameters": {"type": "object", "properties": {"of": {"type": "string"}}},
        },
    )

    def begin(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        return [user("Yes?")], {"reference": "two\x1bpounds"}

    def respond(self, reply: Reply) -> Outcome:
        self.heard = reply
        return Outcome(messages=[user("Thank you.")], reward=0.5, terminated=True, metrics={"sold": 1})


def played(env: gymnasium.Env, *typed: str, seed: int = 0, options: Any = None) -> list[str]:
    """What is shown to somebody who types these lines, prompts included."""
    lines, shown = iter(typed), []

    def read(prompt: str) -> str:
        shown.append(prompt)
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    play(env, count(seed), options, read=read, write=shown.append)
    return shown


def command(arguments: Sequence[str], typed: str, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def test_an_episode_is_shown_played_and_summed_up() -> None:
    env = make_env("loragym/GuessNumber-v0", {"high": 9, "split": None})
    _, info = env.reset(seed=3)
    shown = played(env, "pass", f"Guess: {info['problem']}", seed=3)
    assert "\n--- loragym/GuessNumber-v0, seed 3" in shown
    assert "[user] What is your first guess?" in "\n".join(shown)
    assert '[user] That is not a guess. Say "Guess: <number>" and nothing else.' in shown
    assert "(reward -0.1)" in shown
    assert "--- over after 2 replies (completed): reward 0.9; correct 1, turns 2, malformed 1" in shown
    assert shown[-2] == "\n(Enter plays another, Ctrl-D ends) "


def test_the_next_episode_has_the_next_seed_and_an_index_stays() -> None:
    env = make_env("loragym/Arithmetic-v0", {"few_shot": 0})
    shown = "\n".join(played(env, "1", "", "2", seed=7))
    for seed in (7, 8):
        opening, info = env.reset(seed=seed)
        assert f"seed {seed}\n[user] {opening[0]['content']}" in shown
        assert f"--- the reference answer: {info['reference']}" in shown
    question = env.reset(options={"index": 4})[0][0]["content"]
    assert "\n".join(played(env, "1", "", "2", options={"index": 4})).count(question) == 2


def test_several_lines_make_one_reply_and_an_empty_line_is_asked_about() -> None:
    shop = Shop()
    shown = played(shop, "", '"""', "one", "", "two", '"""')
    assert shop.heard["content"] == "one\n\ntwo"
    assert '(that was empty; an empty reply is """ and again """)' in shown
    played(shop, '"""', '"""')
    assert shop.heard["content"] == ""


def test_tool_calls_are_typed_as_json() -> None:
    shop = Shop()
    shown = played(shop, '{"name": "price", "arguments": {"of": ', '{"name": "price", "arguments": {"of": "tea"}}')
    assert "(tool price: Looks up a price. ['of'])" in shown
    assert any("which is not JSON" in line for line in shown)
    assert shop.heard["tool_calls"] == [{"id": "call_0", "name": "price", "arguments": {"of": "tea"}}]
    played(shop, '"""', "Two of them:", '{"name": "price"}', '{"name": "price", "arguments": {"of": "milk"}}', '"""')
    assert shop.heard["content"] == "Two of them:"
    assert [call["arguments"] for call in shop.heard["tool_calls"]] == [{}, {"of": "milk"}]


def test_where_there_are_no_tools_a_brace_is_text() -> None:
    env = make_env("loragym/Arithmetic-v0")
    assert any(line.startswith("--- over") for line in played(env, '{"name": "price"}'))


def test_nothing_that_is_shown_drives_the_terminal() -> None:
    assert "--- the reference answer: two\\x1bpounds" in played(Shop(), "tea")


def test_plain_text_environments_are_played_too() -> None:
    env = make_env("loragym/Wrapped-v0", {"env_kwargs": {"few_shot": 0}, "wrappers": ["FlatText"]})
    shown = played(env, "1")
    assert any(line.startswith("What is ") for line in shown)
    assert any(line.startswith("--- over after 1 reply") for line in shown)


def test_the_command_plays(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["play", "GuessNumber-v0", "--env-kwargs", '{"high": 3, "max_turns": 2}', "--seed", "5"]
    assert command(arguments, "Guess: 0\nGuess: 1\n", monkeypatch) == 0
    first = capsys.readouterr().out
    assert "from 0 to 3" in first and "seed 5" in first
    assert command(arguments, "Guess: 0\nGuess: 1\n", monkeypatch) == 0
    assert capsys.readouterr().out == first


def test_the_input_may_end_anywhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for typed in ("", "Guess: 1\n", '"""\nhalf a block\n'):
        assert command(["play", "GuessNumber-v0"], typed, monkeypatch) == 0
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["Nothing-v0"], "there is no registered environment 'Nothing-v0'"),
        (["GuessNumber-v0", "--env-kwargs", "{broken"], "is not JSON"),
        (["GuessNumber-v0", "--env-kwargs", "[1]"], "is a JSON object such as"),
        (["GuessNumber-v0", "--env-kwargs", '{"hihg": 9}'], "unexpected keyword argument 'hihg'"),
        (["GuessNumber-v0", "--seed", "-1"], "--seed is from 0 up, got -1"),
        (["GuessNumber-v0", "--index", "99999"], "index is an int from 0 to"),
    ],
)
def test_what_cannot_be_played_is_one_line(
    arguments: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["play", *arguments], "", monkeypatch) == 1
    err = capsys.readouterr().err
    assert complaint in err and len(err.splitlines()) == 1


def test_an_interrupt_ends_it_without_a_traceback(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "loragym.cli", "play", "GuessNumber-v0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    while "first guess" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip() == "stopped"


# ------------------------------------------------------------------------------------------------------ loragym check


def test_a_sound_environment_is_checked_law_by_law(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["check", "GuessNumber-v0"], "", monkeypatch) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"GuessNumber-v0 keeps all {len(LAWS)} laws"
    assert lines == [f"ok      {law.statement}" for law in LAWS.values()]


def test_a_broken_one_is_named_with_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["check", "broken_worlds:BothFlags"], "", monkeypatch) == 1
    shown = capsys.readouterr()
    assert "BROKEN  An episode ends, and is terminated or truncated, not both.\n        step() gave" in shown.out
    assert shown.out.count("BROKEN") == 1 and shown.out.count("ok  ") == len(LAWS) - 1
    assert shown.err == f"loragym: broken_worlds:BothFlags breaks 1 of {len(LAWS)} laws\n"


def test_after_a_basic_mistake_nothing_else_is_tried(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["check", "broken_worlds:StringObservation"], "", monkeypatch) == 1
    assert "The other laws were not tried: put this one right first." in capsys.readouterr().out


def test_a_file_in_the_working_directory_is_checked(tmp_path: Path) -> None:
    code = (
        "from loragym.envs import ProblemEnv\n\n\nclass Twice(ProblemEnv):\n"
        "    def __init__(self, high=9, **kwargs):\n        super().__init__(**kwargs)\n        self.high = high\n\n"
        "    def draw_problem(self, rng):\n        return int(rng.integers(self.high))\n\n"
        "    def question(self, problem):\n        return f'Twice {problem}?'\n\n"
        "    def reference_answer(self, problem):\n        return str(2 * problem)\n"
    )
    (tmp_path / "twice.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "loragym.cli", "check", "twice:Twice", "--env-kwargs", '{"high": 99}'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.endswith(f"twice:Twice keeps all {len(LAWS)} laws\n")


def test_laws_can_be_listed_and_chosen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["check", "--list"], "", monkeypatch) == 0
    listed = capsys.readouterr().out
    assert all(name in listed and law.statement in listed for name, law in LAWS.items())
    assert command(["check", "broken_worlds:BothFlags", "--laws", "is_seeded", "renders"], "", monkeypatch) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "broken_worlds:BothFlags keeps all 2 laws"
    assert command(["check", "GuessNumber-v0", "--laws", "is_fun"], "", monkeypatch) == 1
    assert "there is no law 'is_fun'; there are can_be_made," in capsys.readouterr().err
    assert command(["check"], "", monkeypatch) == 1
    assert "which environment?" in capsys.readouterr().err
