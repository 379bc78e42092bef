"""Opponents for TextArena that tests hand in by import path."""

from __future__ import annotations

import re

from loragym.messages import Message


def first_free_square(conversation: list[Message]) -> str:
    """Takes the first square that tic-tac-toe has listed last."""
    return re.findall(r"'(\[\d\])'", conversation[-1]["content"].rpartition("Available Moves")[2])[0]


def mute(conversation: list[Message]) -> str:
    """Never makes a move."""
    return ""
