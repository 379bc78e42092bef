"""The grader's front door: extraction, comparison, and workers for what may take long."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from .compare import Comparison, Deferred, Quick, compare, is_calculation, is_readable, same_reading
from .extraction import extract
from .pool import Failed, WorkerPool
from .records import MAX_CHARACTERS, Grade, Verdict, ungraded
from .texts import integer, stands_in

__all__ = ["GraderPool", "grade", "grade_answer", "grade_many", "is_readable", "shared_pool"]


class GraderPool(WorkerPool):
    """The workers of a grader; see `WorkerPool` for its arguments and counts."""

    def compare_many(self, pairs: Sequence[tuple[str, str]], *, rtol: float = 0.0) -> list[Comparison]:
        """What comes of answers, each held against its reference; the verdict may be timeout or crashed."""
        jobs = [{"answer": answer, "reference": reference, "rtol": rtol} for answer, reference in pairs]
        return [
            Comparison(done.reason, detail=done.detail) if isinstance(done, Failed) else Comparison(**done.result)
            for done in self.run(jobs)
        ]


_shared: GraderPool | None = None
_shared_lock = threading.Lock()


def shared_pool() -> GraderPool:
    """The pool of this process, shared by all that grade without one of their own; made when first asked for."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = GraderPool()
        return _shared


def _renew_lock() -> None:
    """In a forked child: another thread of the parent may have held the lock."""
    global _shared_lock
    _shared_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def grade(
    reply: str,
    reference: str,
    *,
    boxed: bool = True,
    question: str | None = None,
    rtol: float = 0.0,
    pool: GraderPool | None = None,
) -> Grade:
    r"""Grades a reply: finds its answer and compares it with the reference.

    Args:
        reply: what a model wrote; any text at all.
        reference: the right answer, as in a data set: mathematics in LaTeX or plain, or words.
        boxed: whether an answer must stand in `\boxed{...}`. If False, a reply without a box may announce it ("the
            answer is ...", "#### ...") or be nothing else.
        question: what was asked. An answer that repeats an expression of it earns nothing, unless it is the reference.
        rtol: how far a number may be from the reference, relative to it. 0.0: decimals are exact, 0.33 is not 1/3.
        pool: workers for what is not settled at once; None for those that the process shares.

    Raises:
        RuntimeError: workers do not start, or `pool` is closed. Whatever the reply is, it is graded.
    """
    return grade_many([reply], [reference], boxed=boxed, questions=[question], rtol=rtol, pool=pool)[0]


def grade_answer(
    answer: str,
    reference: str,
    *,
    question: str | None = None,
    rtol: float = 0.0,
    pool: GraderPool | None = None,
) -> Grade:
    """Grades an answer that stands by itself. Arguments as for `grade`."""
    return _grade([(answer, None)], [reference], [question], rtol, pool)[0]


def grade_many(
    replies: Sequence[str],
    references: Sequence[str],
    *,
    boxed: bool = True,
    questions: Sequence[str | None] | None = None,
    rtol: float = 0.0,
    pool: GraderPool | None = None,
) -> list[Grade]:
    """Grades many replies, on several workers at a time where they are needed. Arguments as for `grade`."""
    if len(replies) != len(references) or (questions is not None and len(questions) != len(replies)):
        raise ValueError(
            f"expected as many references and questions as replies, got {len(replies)} replies, "
            f"{len(references)} references and {'no' if questions is None else len(questions)} questions"
        )
    extracted = [extract(reply, require_box=boxed) for reply in replies]
    return _grade(extracted, references, questions or [None] * len(replies), rtol, pool)


def _grade(
    extracted: Sequence[tuple[str | None, Verdict | None]],
    references: Sequence[str],
    questions: Sequence[str | None],
    rtol: float,
    pool: GraderPool | None,
) -> list[Grade]:
    grades: list[Grade] = []
    deferred: list[int] = []
    for (answer, problem), reference, question in zip(extracted, references, questions, strict=True):
        start = ungraded(answer, reference)
        if problem is not None or answer is None or not answer.strip():
            grades.append(start.judged(problem or "empty_box"))
        elif len(answer) > MAX_CHARACTERS:
            detail = f"{len(answer)} characters; at most {MAX_CHARACTERS} are read"
            grades.append(start.judged("too_long", detail=detail))
        else:
            try:
                grades.append(_judged(start, compare(answer, reference, Quick(rtol)), question))
            except Deferred:
                deferred.append(len(grades))
                grades.append(start)
    if deferred:
        pairs = [(grades[place].answer or "", grades[place].reference) for place in deferred]
        for place, outcome in zip(deferred, (pool or shared_pool()).compare_many(pairs, rtol=rtol), strict=True):
            grades[place] = _judged(grades[place], outcome, questions[place])
    return grades


def _judged(start: Grade, outcome: Comparison, question: str | None) -> Grade:
    if outcome.verdict == "correct" and outcome.method != "text" and question and _is_copied(start, question):
        return start.judged("copied", outcome.method, "the answer repeats an expression of the question")
    return start.judged(outcome.verdict, outcome.method, outcome.detail)


def _is_copied(grade: Grade, question: str) -> bool:
    answer = grade.answer or ""
    if integer(answer) is not None or not stands_in(answer, question):
        return False
    return is_calculation(answer) and not same_reading(answer, grade.reference)
