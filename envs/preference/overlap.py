"""How much of a reference's words a text has: the judge of last resort, which needs no model and no network.

It is what the preference environments use when they are given nothing better. It is easy to see through and easy to
please, so it is for trying things out, not for training something to be proud of.
"""

from __future__ import annotations

import re
from collections import Counter

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.lower())


def word_overlap(text: str, reference: str) -> float:
    """F1 of the words that `text` shares with `reference`, each counted as often as it occurs: from 0 to 1.

    It is the token F1 of SQuAD (Rajpurkar et al., 2016) without the removal of articles.
    """
    said, wanted = Counter(words(text)), Counter(words(reference))
    shared = (said & wanted).total()
    return 2 * shared / (said.total() + wanted.total()) if shared else 0.0
