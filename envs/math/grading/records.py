"""What a grader says, and the limits that it keeps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

Verdict = Literal[
    "correct",
    "wrong",
    "no_box",
    "empty_box",
    "several_answers",
    "too_long",
    "unparsable",
    "unevaluated",
    "copied",
    "timeout",
    "crashed",
]
"""What became of an answer.

correct, wrong: it was compared. no_box: there is no `\\boxed{...}`. empty_box: there is nothing in it. several_answers:
boxes that differ stand side by side. too_long: it is longer or more nested than answers are. unparsable: it is neither
mathematics that is understood nor the reference's own words. unevaluated: the reference is a plain number, the answer a
calculation. copied: it repeats an expression of the question. timeout: comparing took longer than is allowed. crashed:
the worker ran out of memory, failed, or died three times over it.
"""
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
MALFORMED: frozenset[Verdict] = frozenset(("no_box", "empty_box", "several_answers", "too_long"))
"""The verdicts on answers that are not put as was asked for."""

Method = Literal["text", "exact", "numeric", "symbolic", ""]
"""What settled it: the same text, exact arithmetic, values to many digits at several points, or sympy's `simplify`."""

MAX_CHARACTERS = 4_000
"""The longest answer that is looked at; a longer one is too_long."""
MAX_DIGITS = 1_000
"""The longest run of digits that is read as a number."""
MAX_DEPTH = 20
"""How deep brackets, fractions, roots and exponents may stand within one another."""
MAX_NODES = 1_000
"""The most parts that an answer may have."""


class Unparsable(ValueError):
    """The text is no mathematics that is understood here; the message says where it stopped."""


class TooComplex(Unparsable):
    """The text is beyond a limit; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """The judgement of one answer.

    Attributes:
        correct: whether it earns credit.
        well_formed: whether an answer was given in the form that was asked for, right or wrong.
        verdict: what became of it; see `Verdict`.
        answer: what was taken to be the answer; None if there was nothing.
        reference: what it was compared with.
        method: what settled the comparison; see `Method`.
        detail: why, in words, where the verdict does not say it all.
    """

    correct: bool
    well_formed: bool
    verdict: Verdict
    answer: str | None
    reference: str
    method: Method = ""
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def judged(self, verdict: Verdict, method: Method = "", detail: str = "") -> Grade:
        """The same answer with this verdict."""
        return replace(
            self,
            verdict=verdict,
            correct=verdict == "correct",
            well_formed=verdict not in MALFORMED,
            method=method,
            detail=detail,
        )


def ungraded(answer: str | None, reference: str) -> Grade:
    """A grade to start from: nothing was compared yet."""
    return Grade(correct=False, well_formed=False, verdict="no_box", answer=answer, reference=reference)
