"""Secrets that were planted in the environment, in arguments and in URLs are in nothing that is written or said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from hostile import cases, json_values, try_many
from hypothesis import strategies as st
from loragym import cli
from loragym.agents.testing import save_tiny_model
from loragym.envs import Outcome, TextEnv
from loragym.envs.making import make_env
from loragym.envs.secrets import is_secret_name, redacted, redacted_message, redacted_texts
from loragym.envs.wrappers import RecordTranscripts
from loragym.messages import Message, Reply, user
from loragym.trainers import RLConfig, RunError, rl
from loragym.trainers.run_directory import RunDirectory
from loragym.trainers.sweep import Axis, sweep

HUB_TOKEN = "planted-hub-token-4711"
API_KEY = "planted-api-key-0815"
PASSWORD = "planted-pass-w0rd"
SECRETS = (HUB_TOKEN, API_KEY, PASSWORD)
URL = f"https://someone:{PASSWORD}@judge.example/v1"


class Gossip(TextEnv):
    """Says everything that it was told, and breaks now and then with all of it in its message."""

    heard = 0

    def __init__(self, *, api_key: str, judge: str, breaks: bool = True) -> None:
        super().__init__()
        self.told = f"{HUB_TOKEN} {judge}"
        self.breaks = breaks
        if api_key == "":
            raise ValueError(f"no api_key for {judge}")

    def begin(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        return [user(self.told)], {}

    def respond(self, reply: Reply) -> Outcome:
        Gossip.heard += 1
        if self.breaks and Gossip.heard % 4 == 1:
            raise ConnectionError(f"{self.told} did not answer")
        return Outcome(reward=float(self.np_random.random()), terminated=True)


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
    gymnasium.register("tests/Gossip-v0", Gossip)


def assert_kept(folder: Path) -> None:
    """No file in the folder has a planted secret in its content or its name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        for secret in SECRETS:
            assert secret.encode() not in content, path
            assert secret not in str(path.relative_to(folder))


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_run_writes_no_secret_down_and_resumes(
    tmp_path: Path, staleness: int, capfd: pytest.CaptureFixture[str]
) -> None:
    config = RLConfig(
        run_dir=str(tmp_path / "run"),
        model=str(save_tiny_model(tmp_path / "model")),
        env="tests/Gossip-v0",
        env_kwargs={"api_key": API_KEY, "judge": URL},
        dtype="float32",
        device="cpu",
        lora_rank=2,
        steps=2,
        save_every=1,
        problems_per_step=2,
        group_size=3,
        max_tokens=2,
        eval_every=0,
        eval_problems=0,
        episode_retries=20,
        staleness=staleness,
    )
    rl.train(config)
    assert_kept(tmp_path / "run")
    assert rl.train(config)["minutes"] >= 0
    said = "".join(capfd.readouterr())
    assert not any(secret in said for secret in SECRETS)
    with pytest.raises(RunError, match=r"env_kwargs: .*<secret \w{8}>.* -> .*<secret \w{8}>") as caught:
        rl.train(replace(config, env_kwargs={"api_key": "another-key-0816", "judge": URL}))
    assert API_KEY not in str(caught.value) and "another-key" not in str(caught.value)


def test_a_run_with_the_same_secret_resumes_and_with_another_is_refused(tmp_path: Path) -> None:
    config = RLConfig(run_dir=str(tmp_path), env_kwargs={"nested": [{"password": PASSWORD}], "high": 9})
    RunDirectory(tmp_path, config).close()
    RunDirectory(tmp_path, config).close()
    assert_kept(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["env_kwargs"]["high"] == 9
    with pytest.raises(RunError, match="env_kwargs"):
        RunDirectory(tmp_path, replace(config, env_kwargs={"nested": [{"password": "x"}], "high": 9}))


def test_recorded_episodes_hold_no_secret(tmp_path: Path) -> None:
    env = RecordTranscripts(Gossip(api_key=API_KEY, judge=URL, breaks=False), tmp_path / "episodes.jsonl")
    env.reset(seed=0)
    env.step("hello")
    env.close()
    assert_kept(tmp_path)


def test_errors_of_commands_hold_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    kwargs = json.dumps({"api_key": "", "judge": URL, "db_password": PASSWORD})
    for argv in (
        ["play", "tests/Gossip-v0", "--env-kwargs", kwargs],
        ["check", "tests/Gossip-v0", "--env-kwargs", kwargs],
        ["check", "tests/Gossip-v0", "--env-kwargs", '{"api_key": "' + API_KEY],
        ["train", "rl_basic", "--env-kwargs", '{"api_key": "' + API_KEY],
        [
            "train",
            "rl_basic",
            "--model",
            f"https://someone:{PASSWORD}@hub.example/x",
            "--run-dir",
            f"/dev/null/{HUB_TOKEN}",
        ],
        ["chat", f"{HUB_TOKEN}/nowhere"],
    ):
        with pytest.raises(SystemExit) as ending:
            cli.main(argv)
        assert ending.value.code
        said = "".join(capsys.readouterr())
        assert not any(secret in said.replace("\n", "") for secret in SECRETS), said


def test_what_cannot_be_made_is_named_without_its_secrets() -> None:
    with pytest.raises(ValueError, match="cannot make the environment") as caught:
        make_env("tests/Gossip-v0", {"api_key": "", "judge": URL, "client_secret": API_KEY})
    assert not any(secret in str(caught.value) for secret in SECRETS)


def test_a_sweep_over_a_secret_does_not_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def outcome(recipe: str, run: Path, values: Any, arguments: Any, metric: str) -> dict[str, Any]:
        given.append(values["env-kwargs"])
        run.mkdir(parents=True)
        (run / "file").write_text("")
        return {metric: 1.0, "minutes": 0.0}

    monkeypatch.setattr("loragym.trainers.sweep._outcome", outcome)
    axis = Axis.parse('env-kwargs={"api_key": "' + API_KEY + '"},{"high": 9}')
    sweep("rl_basic", [axis], tmp_path, metric="reward")
    assert API_KEY in given[0]
    assert_kept(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "api_key",
        "API_KEY",
        "apiKey",
        "apikey",
        "OPENAI_API_KEY",
        "HF_TOKEN",
        "token",
        "auth-token",
        "AuthToken",
        "password",
        "db_password",
        "client_secret",
        "aws_secret_access_key",
        "AWS_SESSION_TOKEN",
        "Authorization",
        "private_key",
    ],
)
def test_names_of_secrets_are_known(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "max_tokens",
        "tokens",
        "key",
        "keys",
        "keyboard",
        "token_limit",
        "high",
        "",
        "monkey",
        "tokenizer",
        "primary_key",
    ],
)
def test_other_names_are_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("see https://example.com/a@b?c=d@e", "see https://example.com/a@b?c=d@e"),
        ("max_tokens: 5, high=9", "max_tokens: 5, high=9"),
        ("Bearer of news", "Bearer of news"),
    ],
)
def test_harmless_messages_stay(text: str, kept: str) -> None:
    assert redacted_message(text) == kept


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"cannot reach {URL}", PASSWORD),
        (f"api_key={API_KEY}, high=9", API_KEY),
        (f"{{'api_key': '{API_KEY}'}}", API_KEY),
        (f'{{"password": "{PASSWORD}"}}', PASSWORD),
        (f"--client-secret {API_KEY} and {HUB_TOKEN}", HUB_TOKEN),
        ("hf_" + "a1B2" * 9, "a1B2a1B2"),
        ("sk-proj-" + "a1B2" * 9, "a1B2a1B2"),
    ],
)
def test_secrets_in_messages_go(text: str, secret: str) -> None:
    assert secret not in redacted_message(text) and "<secret " in redacted_message(text)


@cases()
def test_redaction_keeps_the_shape_of_what_it_reads(cases: int) -> None:
    def law(value: Any, secret: str) -> None:
        found = redacted({"password": secret, "inner": [value, {"apiKey": secret}], "text": f"x{HUB_TOKEN}y"})
        assert found["password"] == found["inner"][1]["apiKey"] != secret
        assert HUB_TOKEN not in found["text"] and found["text"][0] + found["text"][-1] == "xy"
        assert redacted(found) == found or "NaN" in json.dumps(found)
        redacted_message(json.dumps(found))
        if isinstance(value, int | float | None):
            assert found["inner"][0] is value
        assert redacted_texts(["plain", 1]) == ["plain", 1]

    try_many(cases, law, value=json_values, secret=st.text(min_size=1))
