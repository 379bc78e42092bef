"""The gold preference: what the reward model is to learn and does not see. Here it is cheerfulness.

A reply's gold score is VADER's compound score (Hutto and Gilbert 2014), a sum over a lexicon of words with their mood,
between -1 and 1. It stands for a human who likes cheerful replies: nobody would want such a reward in earnest, which is
the point, for what a policy makes of a reward model can be held against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from loragym.messages import Message

TIE = 0.05
"""Replies whose scores differ by less are equally good."""


@cache
def _analyzer() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the gold preference needs vaderSentiment: pip install 'loragym[preference]'"
        ) from error
    return SentimentIntensityAnalyzer()


def gold_score(conversation: Sequence[Message]) -> float:
    """How cheerful the last message is, from -1 to 1."""
    return float(_analyzer().polarity_scores(conversation[-1]["content"])["compound"])


def preference(first: float, second: float) -> float:
    """1 if the first score is the better one, 0 if the second is, 0.5 in a tie."""
    return 0.5 if abs(first - second) < TIE else float(first > second)
