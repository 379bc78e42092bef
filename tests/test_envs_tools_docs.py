"""What the page about tools tells a reader to paste works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "environments_tools.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def run_python(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_environment_of_one_s_own_is_about_thirty_lines_passes_the_checker_and_is_solved(tmp_path: Path) -> None:
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(lines) <= 32
    (tmp_path / "larger.py").write_text(BLOCKS[0], encoding="utf-8")
    check = """
import gymnasium, warnings
from gymnasium.utils.env_checker import check_env
from loragym.envs.tools import demonstrate
env = gymnasium.make("larger:Larger-v0").unwrapped
with warnings.catch_warnings():
    warnings.simplefilter("error")
    check_env(env)
conversation, tools = demonstrate(env, seed=3)
print([message["role"] for message in conversation], tools[0]["parameters"]["required"])
env.reset(seed=3)
print(env.step(env.calling("population", country="Atlantis"))[0][0]["content"])
print(env.step(env._problem[0])[1] + env.reference_answer(env._problem).count(env._problem[1]))
"""
    roles, missing, reward = run_python(check, tmp_path).splitlines()[-3:]
    assert roles == "['user', 'assistant', 'tool', 'tool', 'assistant'] ['country']"
    assert missing == "Error: KeyError: 'Atlantis'"
    assert reward == "1.0"


@pytest.mark.skipif(sys.platform != "linux", reason="the example asks for what only Linux has")
def test_the_example_of_the_python_tool_runs_or_says_why_not(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKS[1]], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    if done.returncode:
        refusals = r"PythonToolUnavailable: require=|PermissionError: PythonTool would run"
        assert re.search(refusals, done.stderr), done.stderr
        pytest.skip(f"this machine shuts nothing in: {done.stderr.splitlines()[-1]}")
    assert done.stdout.startswith("protected: ") and done.stdout.strip().endswith("285")


def test_the_page_names_what_is_registered_and_every_protection() -> None:
    from loragym.envs import CATALOGUE

    assert {"loragym/Calculator-v0", "loragym/Ledger-v0"} <= set(CATALOGUE)
    assert all(f"`{env_id}`" in PAGE for env_id in ("loragym/Calculator-v0", "loragym/Ledger-v0"))
    for word in ("network", "files", "processes", "signals", "disk", "memory", "processor time"):
        assert word in PAGE
