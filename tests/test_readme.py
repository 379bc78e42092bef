"""What the README tells a reader to paste works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def run_python(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_custom_environment_is_about_thirty_lines_and_passes_gymnasiums_checker(tmp_path: Path) -> None:
    assert len(BLOCKS[0].strip().splitlines()) <= 35
    (tmp_path / "largest.py").write_text(BLOCKS[0], encoding="utf-8")
    check = (
        "import gymnasium, warnings; warnings.simplefilter('error')\n"
        "from gymnasium.utils.env_checker import check_env\n"
        "env = gymnasium.make('largest:Largest-v0').unwrapped\n"
        "check_env(env)\n"
        "(_, question), info = env.reset(seed=3)\n"
        "print(env.step(info['reference'])[1], env.reset(seed=3)[1] == info)\n"
    )
    assert run_python(check, tmp_path).splitlines()[-1] == "1.0 True"  # the checker renders for people before that


def test_the_custom_environment_trains_from_the_command_line(tmp_path: Path) -> None:
    from loragym.agents.testing import save_tiny_model

    (tmp_path / "largest.py").write_text(BLOCKS[0], encoding="utf-8")
    save_tiny_model(tmp_path / "model")
    command = (
        "train rl_basic --env largest:Largest-v0 --run-dir runs/largest --model model "
        "--steps 1 --warmup-steps 1 --problems-per-step 2 --group-size 2 --eval-problems 2"
    )
    done = subprocess.run(
        [sys.executable, "-m", "loragym.cli", *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/largest/summary.json").is_file()
    assert "loragym chat runs/largest" in done.stdout


@pytest.mark.model
def test_the_python_example_runs_and_leaves_an_adapter(tmp_path: Path, bundled: Path) -> None:
    assert "38" in run_python(BLOCKS[1], tmp_path)
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").is_file()


def test_every_file_that_the_readme_points_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
