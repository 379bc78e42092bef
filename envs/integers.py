"""Reading an integer that a model wrote, without trusting it."""

from __future__ import annotations

import re

MAX_DIGITS = 20
INTEGER = rf"[+-]?[0-9]{{1,{MAX_DIGITS}}}"
"""The pattern of an integer that is read: ASCII digits with an optional sign."""
_INTEGER = re.compile(INTEGER)


def parse_integer(text: str) -> int | None:
    """The integer that `text` is, surrounding white space aside; None if it is anything else.

    Only ASCII digits with an optional sign count: no "1_000", "1e3", "٣" or numbers of more than `MAX_DIGITS` digits.
    """
    literal = text.strip()
    return int(literal) if _INTEGER.fullmatch(literal) else None
