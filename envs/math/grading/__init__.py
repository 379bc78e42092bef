r"""The grader of mathematical answers: `grade(reply, reference) -> Grade`.

A reply is searched for its `\boxed{...}` (`extraction`), the answer is read by a grammar that knows what it allows and
refuses the rest (`grammar`), and is held against the reference (`compare`). Nothing that a model wrote is evaluated as
code, by Python or by sympy. Integers, the same words and exact arithmetic are settled on the spot; roots, functions and
whatever needs sympy go to a worker process that has a limit on time and memory and can be killed (`pool`).

This package imports nothing else of the house, so that its workers start fast.
"""

from __future__ import annotations

from .grader import GraderPool, grade, grade_answer, grade_many, is_readable, shared_pool
from .pool import Limits
from .records import MALFORMED, VERDICTS, Grade, Method, Verdict

__all__ = [
    "MALFORMED",
    "VERDICTS",
    "Grade",
    "GraderPool",
    "Limits",
    "Method",
    "Verdict",
    "grade",
    "grade_answer",
    "grade_many",
    "is_readable",
    "shared_pool",
]
