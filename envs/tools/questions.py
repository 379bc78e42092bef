"""`ToolQuestions`: an environment from a list of questions and a few functions, without a class of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .env import ToolProblemEnv
from .tool import Tool

Row = Mapping[str, Any]


class ToolQuestions(ToolProblemEnv[Row]):
    """Questions that are answered with the help of tools.

    Example:
        >>> def population(country: str) -> int:
        ...     "The number of people who live in a country."
        ...     return {"Malta": 550_000, "Iceland": 390_000}[country]
        >>> rows = [{"question": "Has Malta more people than Iceland? Say yes or no.", "answer": "yes"}]
        >>> env = ToolQuestions(rows=rows, tools=[population])

    Args:
        rows: mappings with a "question" and an "answer", and whatever else `grade` looks at.
        tools: the functions that may be called, see `Tool.of`.
        grade: whether an answer to a row is right; by default, whether it is the row's answer, white space and case
            aside.
        options: see `ToolProblemEnv`.

    Raises:
        TypeError, ValueError: there are no rows, or one lacks its question or answer.
    """

    def __init__(
        self,
        *,
        rows: Sequence[Row],
        tools: Sequence[Callable[..., Any] | Tool] = (),
        grade: Callable[[Row, str], bool] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(tools=tools, **options)
        self._rows, self._grade = list(rows), grade
        if not self._rows:
            raise ValueError("rows has none; give at least one mapping with a question and an answer")
        for number, row in enumerate(self._rows):
            for key in ("question", "answer"):
                if not isinstance(row, Mapping) or not isinstance(row.get(key), str):
                    raise TypeError(f"rows[{number}]: expected a mapping whose {key!r} is a str, got {row!r:.200}")

    @property
    def num_problems(self) -> int | None:
        return len(self._rows)

    def problem_at(self, index: int) -> Row:
        return self._rows[index]

    def question(self, problem: Row) -> str:
        return str(problem["question"])

    def reference_answer(self, problem: Row) -> str:
        return str(problem["answer"])

    def is_correct(self, problem: Row, answer: str) -> bool:
        if self._grade is not None:
            return bool(self._grade(problem, answer))
        return " ".join(answer.split()).casefold() == " ".join(self.reference_answer(problem).split()).casefold()
