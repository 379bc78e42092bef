"""Calls of tools per second: ours, GEM's where it is installed, and what the bare machine does."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loragym.envs.tools import Tool, ToolEnv, tool
from loragym.envs.tools.python_tool import PythonTool
from loragym.messages import Message, user

from .envs import Row

ROUNDS = 5
_CODE = "print(sum(n * n for n in range(10)))"


def add(x: int, y: int) -> int:
    """Adds.

    Args:
        x: a number.
        y: another number.
    """
    return x + y


async def add_async(x: int, y: int) -> int:
    """Adds."""
    return x + y


class Adding(ToolEnv):
    def opening(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        return [user("What is 1 + 2?")], {}

    def final_reward(self, messages: tuple[Message, ...]) -> float:
        return 1.0


def measure(seconds: float) -> list[Row]:
    """Interleaved: every contestant of a job in turn, several times over; the best time of each counts."""
    rows: list[Row] = []
    for job, contestants in (("one call per turn", _turns()), ("python code run", _python())):
        best = dict.fromkeys(contestants, 0.0)
        for _ in range(ROUNDS):
            for name, play in contestants.items():
                best[name] = max(best[name], _rate(play, seconds / ROUNDS))
        rows += [Row(job, name, figure, "calls/s") for name, figure in best.items()]
    return rows


def _rate(play: Callable[[], int], seconds: float) -> float:
    """Calls per second; `play` says how many it made."""
    start, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        count += play()
    return count / passed


def _episode(function: Callable[..., Any], time_limit: float | None, calls_per_turn: int = 1) -> Callable[[], int]:
    env = Adding(tools=[function], time_limit=time_limit, max_turns=11, max_calls_per_turn=calls_per_turn)
    name = Tool.of(function).name

    def play() -> int:
        env.reset(seed=0)
        for _ in range(10):
            env.step(env.calling_all([(name, {"x": 1, "y": 2})] * calls_per_turn))
        env.step("3")
        return 10 * calls_per_turn

    return play


def _turns() -> dict[str, Callable[[], int]]:
    contestants = {
        "ToolEnv, no time limit": _episode(add, None),
        "ToolEnv, time limit": _episode(add, 10.0),
        "ToolEnv, async, time limit": _episode(add_async, 10.0),
        "ToolEnv, 8 calls per turn, time limit": _episode(add, 10.0, 8),
        "arguments read and checked alone": _reading(),
    }
    try:
        from gem.core import Env
        from gem.tools.base_tool import BaseTool
        from gem.tools.tool_env_wrapper import ToolEnvWrapper
    except ImportError:
        return contestants

    class GemAdd(BaseTool):
        def instruction_string(self) -> str:
            return "Write <add>x y</add>."

        def execute_action(self, action: str) -> Any:
            # What an author has to write there: reading, checking and calling, by hand.
            _, opening, rest = action.partition("<add>")
            inside, closing, _ = rest.partition("</add>")
            if not opening or not closing:
                return False, True, "", action
            x, y = map(int, inside.split())
            return True, False, str(x + y), action

    class GemEnv(Env):
        def reset(self, seed: int | None = None) -> Any:
            return "What is 1 + 2?", {}

        def step(self, action: str) -> Any:
            return "", 1.0, True, False, {}

    env = ToolEnvWrapper(GemEnv(), [GemAdd()], max_tool_uses=11)

    def play() -> int:
        env.reset(seed=0)
        for _ in range(10):
            env.step("<add>1 2</add>")
        env.step("3")
        return 10

    return {**contestants, "GEM, ToolEnvWrapper (no limit, no checks)": play}


def _reading() -> Callable[[], int]:
    made = Tool.of(tool(add))

    def play() -> int:
        for _ in range(100):
            made.read({"x": 1, "y": 2})
        return 100

    return play


def _python() -> dict[str, Callable[[], int]]:
    python = PythonTool(i_understand_that_model_code_runs_on_this_machine=True)

    def ours() -> int:
        assert python(_CODE) == "285"
        return 1

    def bare() -> int:
        done = subprocess.run([sys.executable, "-I", "-S", "-c", _CODE], capture_output=True, text=True, check=True)
        assert done.stdout == "285\n"
        return 1

    contestants = {"PythonTool": ours, "a bare subprocess": bare}
    try:
        from gem.tools.python_code_tool import PythonCodeTool
    except ImportError:
        return contestants
    theirs = PythonCodeTool(timeout=5)

    def gem() -> int:
        assert "285" in theirs.execute_action(f"<python>{_CODE}</python>")[2]
        return 1

    return {**contestants, "GEM, PythonCodeTool (no isolation)": gem}
