r"""Answers as text: when two say the same without being read as mathematics, and when one repeats the question."""

from __future__ import annotations

import re
from functools import lru_cache

from .tokens import bare

_INTEGER = re.compile(r"\$?\s*([+-]?)\s*([0-9]{1,40}|[0-9]{1,3}(?:,[0-9]{3}){1,12})\s*\$?\.?")
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}\\$]*)\}")
_INVISIBLE = re.compile(r"\\\$|\\(?:left|right|displaystyle)(?![A-Za-z])|\\[,;:!>]|[~$]+|(?<![0-9])\s+|\s+(?![0-9])")
_BETWEEN_DIGITS = re.compile(r"(?<=[0-9])(?:\\[,;:!> ]|[\s~$])+(?=[0-9])")
_CHOICE = re.compile(r"\(?([A-J])(?:\)|[.:])\s*(.+)")
_OTHER_LETTER = re.compile(r"(?<![A-Za-z\\])[A-J](?![A-Za-z])|\b(?:or|not|and)\b", re.IGNORECASE)
_CLOCK = re.compile(r"([0-9]{1,2}:[0-9]{2})([ap]m)?")


def integer(text: str) -> int | None:
    """The integer that a text plainly is, with commas between thousands at most; None for all else."""
    match = _INTEGER.fullmatch(text.strip())
    return int(match[1] + match[2].replace(",", "")) if match else None


@lru_cache(maxsize=1024)
def plain(text: str) -> str:
    r"""The text without what does not show: white space, dollars, \text{...} around words, \left and \right."""
    text = bare(text)
    for _ in range(2):
        text = _WRAPPED.sub(r"\1", text)
    text = _BETWEEN_DIGITS.sub(" ", text)
    text = _INVISIBLE.sub("", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return text.rstrip(".")


def clock(text: str) -> str | None:
    """A time of day such as 3:45 or 3:45 pm, which is no ratio; None for all else."""
    match = _CLOCK.fullmatch(plain(text).lower().replace("a.m", "am").replace("p.m", "pm"))
    return match[0] if match else None


def choice(text: str) -> tuple[str, str] | None:
    """The letter of a choice and what it says, as in "(B) 12" or "B. 12"; None for all else."""
    match = _CHOICE.fullmatch(_WRAPPED.sub(r"\1", bare(text)).replace("\\ ", " ").strip())
    return (match[1], match[2]) if match else None


def names_others(text: str) -> bool:
    """Whether a text mentions a letter that may be another choice, or words such as "or"."""
    return _OTHER_LETTER.search(text) is not None


def stands_in(answer: str, question: str) -> bool:
    """Whether the answer is part of the question, white space and dollars aside."""
    wanted = plain(answer)
    return len(wanted) > 1 and wanted in plain(question)
