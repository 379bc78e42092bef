"""Text as retrieval and grading see it: words without case and accents, and answers put into one form."""

from __future__ import annotations

import re
import string
import unicodedata

_WORD = re.compile(r"\w+")
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def folded(text: str) -> str:
    """The text without case and without accents: "Bogotá" and "BOGOTA" become the same."""
    if text.isascii():
        return text.lower()
    # Twice: "𝕬" has no lower case until it is decomposed, and what casefold makes of a letter may be composed again.
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(char for char in decomposed if not unicodedata.combining(char))


def words(text: str) -> list[str]:
    """The words of a text as the indices hold them: letters, digits and underscores, folded."""
    return _WORD.findall(folded(text))


def normalised(answer: str) -> str:
    """An answer as exact match compares it: lower case, no ASCII punctuation, no English articles, single spaces.

    The rules are those of SQuAD's evaluation, which HotpotQA, Natural Questions and Search-R1 share. An answer that
    would vanish, such as "A", keeps its letters.
    """
    lowered = answer.lower()
    bare = " ".join(_ARTICLE.sub(" ", lowered.translate(_PUNCTUATION)).split())
    return bare or " ".join(lowered.split())
