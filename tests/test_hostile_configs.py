"""Whatever stands in a config file or on a command line, the answer is a config or a sentence: never a traceback.

The parsers are called in this process; where a recipe would load a model, it stops.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hostile import HOSTILE_NAMES, cases, deep, json_values, mangled, refusal, texts, try_many, writes_only_in
from hypothesis import strategies as st
from loragym import cli
from loragym.recipes import RECIPES
from loragym.trainers.command_line import config_from, with_file
from loragym.trainers.rl import RLConfig
from loragym.trainers.sweep import Axis, trials


class Parsed(BaseException):
    """A recipe has read its config and would begin."""

    def __init__(self, config: Any) -> None:
        self.config = config


def stop_after_parsing(module: Any, patch: pytest.MonkeyPatch, only_default: bool = False) -> None:
    """Makes a recipe raise `Parsed` once it knows its config, or before it parses anything."""
    for name in ("config_from", "play_config"):
        if (parse := getattr(module, name, None)) is not None:

            def stop(default: Any, *given: Any, parse: Any = parse, **more: Any) -> Any:
                raise Parsed(default if only_default else parse(default, *given, **more))

            patch.setattr(module, name, stop)
    if (tyro := getattr(module, "tyro", None)) is not None:

        def stop_cli(kind: Any, **more: Any) -> Any:
            raise Parsed(kind() if only_default else tyro.cli(kind, **more))

        patch.setattr(module, "tyro", SimpleNamespace(cli=stop_cli))


def recipe_module(name: str) -> Any:
    return importlib.import_module(f"loragym.recipes.{name.replace('/', '.')}")


def flags(config: Any, before: str = "") -> Iterator[str]:
    """All fields of a config as the command line has them."""
    for field in fields(config):
        value = getattr(config, field.name)
        yield f"{before}{field.name.replace('_', '-')}"
        if is_dataclass(value):
            yield from flags(value, f"{before}{field.name.replace('_', '-')}.")


@pytest.fixture(scope="module")
def recipe_flags() -> dict[str, list[str]]:
    found = {}
    for name in RECIPES:
        module = recipe_module(name)
        with pytest.MonkeyPatch.context() as patch:
            stop_after_parsing(module, patch, only_default=True)
            with pytest.raises(Parsed) as caught:
                module.main([])
        found[name] = list(flags(caught.value.config))
    return found


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes stop when they know their config; commands say by an exception what they refuse."""
    for name in RECIPES:
        stop_after_parsing(recipe_module(name), monkeypatch)
    monkeypatch.setattr(cli, "report_errors", lambda run: int(refusal(run) is not None))


NUMERALS = ("0", "-1", "1", "1.5", "1e400", "nan", "-inf", "9" * 30, "0x10", "1_000", "१", "", "None", "True")
JSON_TEXTS = (
    "{}",
    "[]",
    "null",
    '{"high": NaN}',
    '{"high": 1e999}',
    "{",
    '"',
    "[1,",
    '{"a":{"b":[1]}}',
    deep(100_000),
    "9" * 5000,
    '{"\\ud800": 1}',
)
values = st.sampled_from(NUMERALS + JSON_TEXTS + HOSTILE_NAMES) | texts | json_values.map(json.dumps)

YAML_TEXTS = (
    "!!python/object/apply:os.system ['echo']",
    "steps: !!python/name:os.system",
    "a: &a [*a]",
    "<<: {steps: 1}",
    "steps: &s 3\nseed: *s",
    "? [1]\n: 2",
    "steps: 2026-01-01",
    "steps: !!binary aGk=",
    "steps: !!set {1}",
    "\t",
    "---\n---",
    "env_kwargs: {1: 2, null: 3}",
    "env_kwargs: {2026-01-01: 1}",
    "env_kwargs: {a: 2026-01-01}",
    "steps: 0o17",
    "renderer: [1]",
    "env_kwargs: !!binary aGk=",
    "env_kwargs: {a: !!set {1}}",
    "steps: " + "9" * 5000,
    "env_kwargs: " + deep(5000),
    "env_kwargs: " + deep(900),
    "%YAML 9.9\n--- {}",
    "steps: {steps: {steps: 1}}",
    "\ufeffsteps: 1",
    "learning_rate: .nan",
    "learning_rate: .inf",
    "temperature: 1e-400",
    'env: "\\uD800"',
)
TOML_TEXTS = (
    "steps = 2026-01-01",
    "env_kwargs = {a = 2026-01-01T00:00:00Z}",
    "learning_rate = nan",
    "learning_rate = -inf",
    "steps = 1\nsteps = 2",
    "[steps]",
    "[[env_kwargs]]",
    "env_kwargs." + ".".join("a" * 2000) + " = 1",
    "steps = " + "9" * 5000,
    "env_kwargs = " + deep(5000),
    "env = '''\n",
    '[env_kwargs]\n"" = 1',
    "seed = 9223372036854775808",
    "env_kwargs = " + deep(900),
)
BOMB = "b0: &b0 [x, x]\n" + "".join(f"b{n}: &b{n} [*b{n - 1}, *b{n - 1}]\n" for n in range(1, 60))
BOMBS = tuple(f"{BOMB}{line}" for line in ("", "steps: *b59\n", "env_kwargs: {a: *b59}\n", "teachers: *b59\n"))
GOOD_YAML = b"learning-rate: 1e-4\nsteps: 7\nenv_kwargs: {high: 9}\nrenderer: null\nloss: ppo\nwarmup: {steps: 3}\n"
GOOD_TOML = b'learning_rate = 1e-4\nsteps = 7\nloss = "ppo"\n[env_kwargs]\nhigh = 9\n[rl]\nsteps = 3\n'


def config_files(names: Sequence[str]) -> st.SearchStrategy[tuple[str, bytes]]:
    """A file's name and content."""
    fitting = st.dictionaries(st.sampled_from(names), json_values, max_size=4)
    as_yaml = fitting.map(lambda found: json.dumps(found).encode())
    as_toml = fitting.map(
        lambda found: "\n".join(f"{json.dumps(name)} = {json.dumps(value)}" for name, value in found.items()).encode()
    )
    written = st.sampled_from(YAML_TEXTS + BOMBS).map(lambda text: text.encode("utf-8", "surrogatepass"))
    yaml = st.tuples(st.sampled_from(["c.yaml", "c.yml"]), mangled(GOOD_YAML) | as_yaml | written)
    toml = st.tuples(st.just("c.toml"), mangled(GOOD_TOML) | as_toml | st.sampled_from(TOML_TEXTS).map(str.encode))
    return yaml | toml | st.tuples(st.sampled_from(["c.json", "c", "c.YAML"]), st.binary(max_size=40))


@cases()
def test_any_config_file_gives_a_config_or_a_sentence(
    cases: int, tmp_path: Path, recipe_flags: dict[str, list[str]], stopped: None
) -> None:
    def law(name: str, data: st.DataObject) -> None:
        file, content = data.draw(config_files([flag.replace("-", "_").split(".")[0] for flag in recipe_flags[name]]))
        path = tmp_path / file
        path.write_bytes(content)
        module = recipe_module(name)
        if hasattr(module, "tyro"):
            return
        with writes_only_in(tmp_path):

            def parse() -> None:
                try:
                    module.main(["--config", str(path)])
                except Parsed as parsed:
                    # What a run writes down first.
                    json.dumps(vars(parsed.config), default=vars)

            refusal(parse, file)

    try_many(cases, law, name=st.sampled_from(sorted(RECIPES)), data=st.data())


@cases(fast=80)
def test_any_command_line_of_a_recipe_gives_a_config_or_a_sentence(
    cases: int,
    tmp_path: Path,
    recipe_flags: dict[str, list[str]],
    stopped: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    def law(name: str, data: st.DataObject) -> None:
        flag = st.sampled_from(recipe_flags[name]).map(lambda field: f"--{field}")
        pair = st.tuples(flag, values).map(list)
        joined = st.tuples(flag, values).map(lambda both: [f"{both[0]}={both[1]}"])
        other = (
            st.sampled_from(["--config", "--help", "--config=", "--", "-h", "--tyro-print-completion", "@file"])
            | values
        )
        parts = data.draw(st.lists(pair | pair | joined | other.map(lambda one: [one]), max_size=4))
        words = [word for part in parts for word in part]
        if hasattr(
            recipe_module(name), "tyro"
        ):  # the flat recipes hand everything to tyro, whose own options are its own
            words = [word for word in words if not word.startswith("--tyro")]
        code = exit_code(["train", name, *words], tmp_path)
        assert code in (0, 1, 2), code
        said = capsys.readouterr()
        assert code != 2 or said.err.strip() or said.out.strip()

    try_many(cases, law, name=st.sampled_from(sorted(RECIPES)), data=st.data())


def exit_code(argv: list[str], *folders: Path) -> int:
    """How the command ends; 0 where a recipe would begin."""
    with writes_only_in(*folders):
        try:
            cli.main(argv)
        except Parsed:
            return 0
        except SystemExit as ending:
            assert isinstance(ending.code, int)
            return ending.code
    raise AssertionError("a command ends by an exit")


COMMANDS = {
    "sweep": ("RECIPE", "--over", "--samples", "--metric", "--goal", "--sweep-seed", "--sweep-dir", "--steps"),
    "recommend": ("PATH", "--task", "--trained-tokens"),
    "chat": ("PATH", "--system", "--temperature", "--max-tokens", "--renderer"),
    "plot": ("PATH", "--output", "--panels"),
    "render": ("PATH", "--model", "--renderer", "--train-on", "--prompt", "--plain"),
    "envs": (),
    "play": ("ENV", "--env-kwargs", "--seed", "--index"),
    "check": ("ENV", "--env-kwargs", "--laws", "--list"),
    "nonsense": ("--help",),
}


@cases(fast=120)
def test_any_command_line_of_a_command_ends_with_an_exit(
    cases: int, tmp_path: Path, stopped: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAGYM_CACHE", str(cache))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    monkeypatch.setattr("loragym.trainers.sweep._outcome", lambda *given: {given[-1]: 1.0, "minutes": 0.0})
    monkeypatch.setattr("loragym.agents.BaseModel.load", lambda name, **more: (_ for _ in ()).throw(Parsed(name)))
    monkeypatch.setattr(
        "loragym.agents.bundled.fetch_bundled",
        lambda name: (_ for _ in ()).throw(ValueError("no model is fetched in this test")),
    )
    monkeypatch.setattr("builtins.input", lambda *prompt: (_ for _ in ()).throw(EOFError))
    monkeypatch.setattr(sys, "stdin", open("/dev/null"))  # noqa: SIM115, PTH123
    files = hostile_files(tmp_path)

    def law(command: str, data: st.DataObject) -> None:
        known = COMMANDS[command]
        place = {
            "RECIPE": st.sampled_from([*RECIPES, "none"]),
            "PATH": st.sampled_from(files) | texts,
            "ENV": st.sampled_from(
                ["GuessNumber-v0", "loragym/Arithmetic-v0", "Countdown-v0", "TicTacToe-v0", "x:y", ":"]
            )
            | texts,
        }
        one = st.one_of([st.just(option) for option in known if option.startswith("-")] or [st.just("--x")])
        law_names = st.just(["--laws", "opens_with_messages"])
        inner = st.lists(st.tuples(one, values | st.sampled_from(files)).map(list) | one.map(lambda o: [o]), max_size=3)
        first = data.draw(place.get(known[0], st.just("")) if known else st.just(""))
        words = [word for part in data.draw(inner) for word in part]
        argv = [command, first, *words] if first else [command, *words]
        if command == "check" and "--laws" not in argv:
            argv += data.draw(law_names)
        code = exit_code(argv, tmp_path, Path(sys.prefix))
        assert code in (0, 1, 2)
        capsys.readouterr()

    try_many(cases, law, command=st.sampled_from(sorted(COMMANDS)), data=st.data())


def hostile_files(folder: Path) -> list[str]:
    """Files and folders of all kinds that a command may be pointed at."""
    made = {
        "empty": b"",
        "text.json": b"[1, 2",
        "deep.json": deep(100_000).encode(),
        "null.json": b"null",
        "bytes.json": b"\xff\xfe\x00",
        "number.json": b"9" * 5000,
        "roles.json": b'[{"role": "king", "content": 1}]',
        "list.json": b'{"messages": [[1]], "tools": [1]}',
        "calls.json": b'{"messages": [{"role": "assistant", "tool_calls": [1], "content": null}]}',
        "tools.json": b'{"messages": [{"role": "user", "content": "x"}], "tools": {"a": 1}}',
        "run/metrics.jsonl": b'{"step": "a"}\n[1]\n',
        "run/config.json": b"[]",
        "run/versions.json": b"{}",
        "run2/metrics.jsonl": b'{"step": 0, "reward": {"a": 1}}\n{"reward": null}\n3\n',
        "run3/metrics.jsonl": b"\xff\n",
        "run4/metrics.jsonl": deep(100_000).encode(),
        "run5/config.json": b'{"model": 3, "env": 4}',
        "run5/checkpoints/step-000001/manifest.json": b"{}",
        "run5/checkpoints/step-000001/adapter_config.json": b"{}",
        "run6/config.json": b"null",
        "run6/checkpoints/step-000001/manifest.json": b"{}",
        "adapter/adapter_config.json": b"null",
        "adapter2/adapter_config.json": b'{"base_model_name_or_path": null}',
        "adapter3/adapter_config.json": b"\xff",
        "adapter4/adapter_config.json": b"{}",
        "model/config.json": b'{"model_type": "llama", "hidden_size": "x"}',
        "model2/config.json": b"[]",
        "model3/config.json": b'{"model_type": "../x", "architectures": 3}',
        "model4/config.json": b'{"model_type": "llama", "hidden_size": -5, "num_hidden_layers": 1e9}',
        "model5/config.json": b'{"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}',
        "model5/evil.py": b"1 / 0",
        "tokenizer/tokenizer.json": b"{}",
        "tokenizer2/tokenizer.json": deep(100_000).encode(),
    }
    for name, content in made.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return sorted({str(folder / name) for name in made} | {str((folder / name).parent) for name in made if "/" in name})


@cases()
def test_any_text_gives_an_axis_and_trials_or_a_sentence(cases: int) -> None:
    pieces = st.lists(
        st.sampled_from(
            ["lr", "=", ",", "1", "1e-3", "uniform(", "loguniform(", ")", "nan", "inf", "0", "[", "]", "--"]
        )
        | texts,
        max_size=8,
    ).map("".join)

    def law(given: list[str], samples: int) -> None:
        refusal(lambda: trials([Axis.parse(text) for text in given], samples, 0))

    try_many(cases, law, given=st.lists(pieces, max_size=3), samples=st.integers(-2, 3))


@pytest.mark.parametrize("text", BOMBS)
def test_a_file_that_unfolds_without_end_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"c.yaml.*aliases"):
        with_file(RLConfig(), path)


def test_a_file_that_runs_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"!!python/object/apply:os.mkdir ['{tmp_path}/made']")
    with pytest.raises(ValueError, match=r"c.yaml"):
        config_from(RLConfig(), prog="t", description="", argv=["--config", str(path)])
    assert not (tmp_path / "made").exists()


def test_a_file_that_names_no_adapter_is_named_itself(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text('adapter: "0"')
    with pytest.raises(ValueError, match=r"c.yaml: 0 is neither a PEFT folder"):
        with_file(RLConfig(), path)


def test_arguments_that_are_no_text_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", "rl_basic", "--model", "\udcff"])
    assert r"'\udcff' holds bytes that are no UTF-8" in capsys.readouterr().err
