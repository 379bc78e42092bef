"""What `docs/environments.md` says is so: its catalogue, its examples, its laws, and how to publish."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest
from loragym.envs import CATALOGUE
from loragym.envs.conformance import LAWS, check, spec_of
from loragym.envs.making import takes_argument
from loragym.envs.wrappers import WRAPPERS

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "environments.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
CONSOLE = re.findall(r"```console\n(.*?)```", PAGE, flags=re.DOTALL)


def rows_of_ids() -> dict[str, list[str]]:
    """The catalogue's rows, on whichever of the pages about environments they stand."""
    rows = {}
    for page in sorted(DOCS.glob("environments*.md")):
        for line in page.read_text(encoding="utf-8").splitlines():
            if match := re.match(r"\| `(loragym/[\w.-]+)` \|", line):
                rows[match[1]] = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    return rows


def run(arguments: list[str], folder: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    """A program in a folder, with more places to import from."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, *sys.path]))}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_the_catalogue_has_every_registered_id_and_no_other() -> None:
    assert set(rows_of_ids()) == set(CATALOGUE)


def test_the_page_links_to_every_page_of_a_kind_and_names_what_is_there() -> None:
    linked = dict(re.findall(r"^\| \[[\w ]+\]\((environments_\w+\.md)\) \| (.*) \|$", PAGE, flags=re.MULTILINE))
    assert set(linked) == {page.name for page in DOCS.glob("environments_*.md")}
    for page, what in linked.items():
        there = re.findall(r"^\| `loragym/([\w.-]+)` \|", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert set(re.findall(r"`([\w-]+-v0)`", what)) == set(there), page


@pytest.mark.parametrize("env_id", sorted(CATALOGUE))
def test_the_options_in_the_catalogue_are_the_environments_own(env_id: str) -> None:
    row = rows_of_ids()[env_id]
    assert len(row) == 6 and all(row)
    for option in re.findall(r"`(\w+)", row[4]):
        assert takes_argument(env_id, option), option


@pytest.mark.parametrize(
    ("number", "module", "name"), [(0, "count_letters", "CountLetters"), (1, "matches", "Matches"), (2, "quiz", "Quiz")]
)
def test_an_example_is_about_thirty_lines_and_keeps_all_laws(
    number: int, module: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(PYTHON[number].strip().splitlines()) <= 30
    (tmp_path / f"{module}.py").write_text(PYTHON[number], encoding="utf-8")
    rows = [{"question": f"What comes after {n}?", "answer": str(n + 1)} for n in range(20)]
    (tmp_path / "quiz.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(module)
    assert check(spec_of(f"{module}:{name}")) == []


def test_the_examples_are_solved_by_who_knows_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, module in enumerate(("letters_again", "matches_again")):
        (tmp_path / f"{module}.py").write_text(PYTHON[number], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    gymnasium.registry.pop("CountLetters-v0", None)  # a second one of that name would be warned about
    letters = importlib.import_module("letters_again").CountLetters()
    _, info = letters.reset(seed=0)
    assert letters.step(info["reference"])[1] == 1.0
    matches = importlib.import_module("matches_again").Matches()
    won = 0
    for seed in range(40):
        _, info = matches.reset(seed=seed)
        ended = False
        while not ended:
            # Leave a multiple of four: who moves on any other number wins.
            _, reward, ended, _, _ = matches.step(str(matches.left % 4 or 1))
        assert (reward == 1.0) == (int(info["problem"]) % 4 != 0)
        won += reward == 1.0
    assert won > 20


def test_the_wrappers_are_listed_and_the_example_runs(tmp_path: Path) -> None:
    assert set(re.findall(r"^\| `(\w+)\(env", PAGE, flags=re.MULTILINE)) == set(WRAPPERS)
    (example,) = (block for block in PYTHON if "RecordTranscripts" in block)
    done = run(
        ["-c", f"{example}\nenv.close(); assert reward == -0.05, reward; print(text[:10], again.spec == env.spec)"],
        tmp_path,
    )
    assert done.stdout == "I think of True\n", done.stderr
    assert (tmp_path / "episodes.jsonl").is_file()


def test_the_arguments_on_the_command_lines_make_environments() -> None:
    made = 0
    for block in CONSOLE:
        for env_id, kwargs in re.findall(r"--env (\S+) --env-kwargs '(.*?)'", block, flags=re.DOTALL):
            assert check(spec_of(env_id, json.loads(kwargs)), ["can_be_made", "keeps_the_contract", "is_seeded"]) == []
            made += 1
    assert made == 2


def test_a_published_package_is_listed_made_and_checked(tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "riddles").mkdir(parents=True)
    (register,) = (block for block in PYTHON if "riddles.envs:Riddles" in block)
    (site / "riddles" / "__init__.py").write_text(register)
    code = PYTHON[0].replace("CountLetters", "Riddles")
    (site / "riddles" / "envs.py").write_text(code[: code.index("gymnasium.register")])
    (entry_points,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    info = site / "riddles-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: riddles\nVersion: 1.0\n")
    table, line = entry_points.strip().splitlines()
    assert table == '[project.entry-points."loragym.envs"]'
    (info / "entry_points.txt").write_text(f"[loragym.envs]\n{line.replace(chr(34), '')}\n")
    listed = run(["-m", "loragym.cli", "envs"], tmp_path, site)
    assert "riddles:riddles/Riddles-v0  How often does a letter occur in a word?" in listed.stdout, listed.stderr
    make = "import gymnasium; print(gymnasium.make('riddles:riddles/Riddles-v0').reset(seed=0)[1]['problem'])"
    assert run(["-c", make], tmp_path, site).stdout.startswith("How often does")
    checked = run(["-m", "loragym.cli", "check", "riddles:riddles/Riddles-v0"], tmp_path, site)
    assert checked.stdout.endswith(f"keeps all {len(LAWS)} laws\n"), checked.stdout + checked.stderr
    (site / "riddles" / "__init__.py").write_text("raise RuntimeError('out of riddles')")
    broken = run(["-m", "loragym.cli", "envs"], tmp_path, site)
    assert broken.returncode == 0 and "loragym/Arithmetic-v0" in broken.stdout
    assert broken.stderr == "riddles (riddles) cannot be imported: RuntimeError: out of riddles\n"


def test_the_laws_are_listed() -> None:
    listed = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|$", PAGE, flags=re.MULTILINE))
    assert {name: listed.get(name) for name in LAWS} == {name: law.statement for name, law in LAWS.items()}


def test_every_page_that_is_pointed_to_is_there() -> None:
    for page in DOCS.glob("environments*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (DOCS / target).exists(), target
