"""The house stands: imports keep to their floors, the light half is light, and the wheel holds every package."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from floors import violations

ROOT = Path(__file__).resolve().parent.parent


def house(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_the_floors_hold() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("messages.py", "from .envs import core", "messages (floor 0) imports envs (floor 1)"),
        ("envs/math/sums.py", "from ...agents import model", "envs (floor 1) imports agents (floor 2)"),
        ("agents/lora.py", "def f():\n    from .. import trainers", "agents (floor 2) imports trainers (floor 3)"),
        ("trainers/rl.py", "from ..cli import main", "trainers (floor 3) imports cli (floor 4)"),
        ("renderers/chat.py", "from ..envs import core", "rooms of one floor"),
        ("recipes/a.py", "from ..cli import main", "rooms of one floor"),
        ("__init__.py", "from . import agents", "loragym (floor 1) imports agents (floor 2)"),
        ("recipes/a.py", "from .b import run", "one recipe imports another"),
        ("recipes/a.py", "from . import b", "one recipe imports another"),
        ("recipes/a/train.py", "from loragym.recipes.b import run", "one recipe imports another"),
        ("envs/core.py", "def f():\n    import torch.nn", "envs imports torch"),
        ("renderers/chat.py", "from transformers import AutoTokenizer", "renderers imports transformers"),
        ("envs/core.py", "import importlib\nimportlib.import_module('peft')", "envs imports peft"),
        ("agents/engine.py", "import vllm", "inside the function that needs it"),
        ("agents/engine.py", "from loragym.messages import Message", "imports are relative"),
        ("helpers.py", "", "no room of the house"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, file: str, line: str, complaint: str) -> None:
    (found,) = violations(house(tmp_path, {file: line}))
    assert complaint in found
    assert file in found


def test_right_imports_pass(tmp_path: Path) -> None:
    files = {
        "__init__.py": "from . import envs",
        "messages.py": "import json",
        "envs/core.py": "import gymnasium\nfrom ..messages import Message\nfrom .spaces import Messages",
        "envs/math/sums.py": "from ..core import TextEnv",
        "agents/engine.py": "import torch\nfrom ..renderers import base\ndef f():\n    import vllm",
        "trainers/rl.py": "from .. import __version__\nfrom ..agents.model import BaseModel",
        "recipes/a/train.py": "import loragym.trainers.rl\nfrom .config import Config\nfrom loragym import envs",
        "cli.py": "from .recipes import a",
        "tests/test_a.py": "import loragym.cli",
    }
    assert violations(house(tmp_path, files)) == []


IMPORT_AND_REPORT = """
import sys, time
start = time.process_time()
import loragym, loragym.envs
print(time.process_time() - start)
print(*sorted(name for name in sys.modules if "." not in name))
"""


def test_importing_the_package_takes_no_torch_and_under_a_third_of_a_second(tmp_path: Path) -> None:
    command = [sys.executable, "-c", IMPORT_AND_REPORT]
    runs = [subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True) for _ in range(5)]
    seconds, modules = zip(*(run.stdout.splitlines() for run in runs), strict=True)
    assert not {"torch", "transformers", "peft", "vllm"} & set(modules[0].split())
    # Processor time, and the best of five: what a busy machine adds is not the package's.
    assert min(map(float, seconds)) < 0.3


def test_every_package_is_in_the_wheel() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(settings["tool"]["setuptools"]["packages"])
    rooms = [ROOT / room for room in ("envs", "renderers", "agents", "trainers", "recipes")]
    folders = {path.parent.relative_to(ROOT) for room in rooms for path in room.rglob("*.py")}
    assert {".".join(("loragym", *folder.parts)) for folder in folders} <= listed
