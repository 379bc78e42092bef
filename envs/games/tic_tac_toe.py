"""Tic-tac-toe: three in a row on nine cells; perfect play draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import ClassVar

import numpy as np

from .seat import seat_at
from .table import Script, Table, random_move, win_or_draw

CELLS = "123456789"
LINES = ("123", "456", "789", "147", "258", "369", "159", "357")
_SEATS = ("X", "O")


def optimal(table: Table[str], rng: np.random.Generator) -> str:
    """The script `optimal`: a best move by minimax, at random among equals; it wins soon and loses late."""
    moves = best_moves(table.state)
    return moves[int(rng.integers(len(moves)))]


class TicTacToe(Table[str]):
    """X and O take cells in turn, X first; three in a row win.

    A move is the number of a free cell, 1 to 9 from the top left, row by row. The winner gets 1 and the loser -1; both
    get 0 for a draw. A state is the board as nine characters: a cell's number as long as it is free, then "X" or "O".

    Metrics: `win`, `draw`. Scripts: `random`, `optimal`. Arguments: see `Table`.
    """

    metadata: ClassVar = {**Table.metadata, "name": "TicTacToe-v0"}
    seats = _SEATS
    scripts: ClassVar[Mapping[str, Script]] = {"random": random_move, "optimal": optimal}
    teacher = "optimal"

    def deal(self, rng: np.random.Generator) -> str:
        return CELLS

    def turn(self, state: str) -> str:
        return _mover(state)

    def legal_moves(self, state: str) -> Sequence[str]:
        return _free(state)

    def play(self, state: str, move: str) -> str:
        return state.replace(move, _mover(state))

    def scores(self, state: str) -> Sequence[float] | None:
        if (winner := _winner(state)) is not None:
            return [1.0 if seat == winner else -1.0 for seat in self.seats]
        return None if _free(state) else [0.0, 0.0]

    def rules(self, seat: str) -> str:
        return (
            f"We play tic-tac-toe, and you are {seat}. X begins. Three in a row, column or diagonal win. A free cell "
            "shows its number. Answer with the number of a free cell and nothing else."
        )

    def view(self, state: str, seat: str) -> str:
        return f"{board(state)}\nYou are {seat}. Your move?"

    def ending(self, state: str, seat: str, score: float) -> str:
        return f"{board(state)}\n" + ("A draw." if not score else "You win." if score > 0 else "You lose.")

    def metrics(self, state: str, seat: str, score: float | None) -> Mapping[str, float]:
        return win_or_draw(score)

    def shown(self, state: str) -> str:
        return board(state)


def board(state: str) -> str:
    """The board in three lines."""
    return "\n".join(" ".join(state[row : row + 3]) for row in (0, 3, 6))


@cache
def value(state: str) -> int:
    """What the game is worth to the seat whose turn it is: 0 for a draw, else more the sooner it is won."""
    if _winner(state) is not None:
        return -1 - len(_free(state))
    return max((-value(state.replace(move, _mover(state))) for move in _free(state)), default=0)


@cache
def best_moves(state: str) -> tuple[str, ...]:
    """The moves of greatest value."""
    values = {move: -value(state.replace(move, _mover(state))) for move in _free(state)}
    return tuple(move for move, worth in values.items() if worth == max(values.values()))


def _free(state: str) -> tuple[str, ...]:
    return tuple(cell for cell in state if cell in CELLS)


def _mover(state: str) -> str:
    return _SEATS[(len(CELLS) - len(_free(state))) % 2]


def _winner(state: str) -> str | None:
    for line in LINES:
        a, b, c = (state[int(cell) - 1] for cell in line)
        if a == b == c:
            return a
    return None


tic_tac_toe_seat = seat_at(TicTacToe)
