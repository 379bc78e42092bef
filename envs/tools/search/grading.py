"""Answers to questions: finding the one answer in a reply, and comparing it as the data sets' own evaluations do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal

from .text import normalised

AnswerFormat = Literal["line", "tag"]

LINE = "Answer:"
OPEN_TAG, CLOSE_TAG = "<answer>", "</answer>"
MAX_ANSWER_CHARS = 1000
"""No reference answer comes near; what is longer is wrong without being looked at."""


def exact_match(answer: str, answers: Iterable[str]) -> bool:
    """Whether an answer is one of these after normalisation."""
    if len(answer) > MAX_ANSWER_CHARS:
        return False
    return normalised(answer) in {normalised(right) for right in answers}


def f1(answer: str, answers: Iterable[str]) -> float:
    """How many words an answer shares with the nearest of these: the F1 of SQuAD's evaluation."""
    return max(
        (_f1(normalised(answer[:MAX_ANSWER_CHARS]).split(), normalised(right).split()) for right in answers),
        default=0.0,
    )


def _f1(said: list[str], right: list[str]) -> float:
    shared = sum((Counter(said) & Counter(right)).values())
    return 2 * shared / (len(said) + len(right)) if shared else 0.0


def answer_in(reply: str, answer_format: AnswerFormat) -> str | None:
    """The answer that a reply gives; None if it gives none, or several to choose from."""
    return _READERS[answer_format](reply)


def written_answer(answer: str, answer_format: AnswerFormat) -> str:
    """The reply that gives this answer."""
    return f"{LINE} {answer}" if answer_format == "line" else f"{OPEN_TAG}{answer}{CLOSE_TAG}"


def asked_for(answer_format: AnswerFormat) -> str:
    """How the agent is told to answer."""
    form = f'a last line "{LINE} <answer>"' if answer_format == "line" else f'"{OPEN_TAG}...{CLOSE_TAG}"'
    return f"When you know the answer, give it once, in as few words as possible, as {form}."


def _on_last_line(reply: str) -> str | None:
    before, found, said = reply.rstrip().rpartition(LINE)
    line_start = before.rpartition("\n")[2]
    if not found or LINE in before or line_start.strip() or "\n" in said:
        return None
    return said.strip() or None


def _in_tag(reply: str) -> str | None:
    if reply.count(OPEN_TAG) != 1 or reply.count(CLOSE_TAG) != 1:
        return None
    said, found, after = reply.partition(OPEN_TAG)[2].partition(CLOSE_TAG)
    return said.strip() or None if found and not after.strip() else None


_READERS: dict[str, Callable[[str], str | None]] = {"line": _on_last_line, "tag": _in_tag}
