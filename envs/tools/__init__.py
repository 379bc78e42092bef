"""Environments with tools: the classes to write one, and ready ones.

`PythonTool`, which runs code that a model wrote, is not among these names on purpose: import it from `python_tool`.
"""

from .env import Reward, ToolEnv, ToolProblemEnv, demonstrate, final_answer
from .questions import ToolQuestions
from .tool import BadArguments, Tool, ToolOptions, ToolResult, tool

__all__ = [
    "BadArguments",
    "Reward",
    "Tool",
    "ToolEnv",
    "ToolOptions",
    "ToolProblemEnv",
    "ToolQuestions",
    "ToolResult",
    "demonstrate",
    "final_answer",
    "tool",
]
