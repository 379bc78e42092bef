"""Opponents for TextArena that tests hand in by import path."""

from __future__ import annotations

import re

from loragym.messages import Message


def first_free_square(conversation: list[Message]) -> str:
    """Takes the first square that tic-tac-toe lists."""
    # What stands before the list may hold an example of a move.
    _, _, listed = conversation[-1]["content"].rpartition("Available Moves")
    return re.findall(r"'(\[\d\])'", listed)[0]


def mute(conversation: list[Message]) -> str:
    """Never makes a move."""
    return ""
