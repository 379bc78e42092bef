"""Connect four: stones fall into columns; four in a row win. With an opponent that looks ahead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .seat import seat_at
from .table import Script, Table, random_move, win_or_draw

IN_A_ROW = 4
MAX_SIDE = 9
"""Keeps a column's name one digit."""
WON = 1_000_000
_WINDOW_WORTH = (0, 1, 4, 16)
"""What a line of four cells is worth that holds so many stones of one colour and none of the other."""
DEFAULT_PLIES, MOST_PLIES = 4, 8


class Stones(NamedTuple):
    """A position: the stones of X and of O as bits, numbered column by column from the bottom up.

    Each column has one bit more than it has rows, which stays 0, so that lines do not run on into the next column.
    """

    x: int = 0
    o: int = 0

    @property
    def total(self) -> int:
        return (self.x | self.o).bit_count()

    @property
    def own(self) -> int:
        """The stones of the seat whose turn it is."""
        return self.o if self.total % 2 else self.x

    @property
    def others(self) -> int:
        return self.x if self.total % 2 else self.o


@dataclass(frozen=True)
class Grid:
    """The cells of a board and what can be done on it with bits."""

    columns: int
    rows: int

    @cached_property
    def bits(self) -> tuple[tuple[int, ...], ...]:
        """The bit of each cell, by column and row."""
        height = self.rows + 1
        return tuple(tuple(1 << (column * height + row) for row in range(self.rows)) for column in range(self.columns))

    @cached_property
    def windows(self) -> tuple[int, ...]:
        """All lines of four cells."""
        found = []
        for column in range(self.columns):
            for row in range(self.rows):
                for dx, dy in ((1, 0), (0, 1), (1, 1), (1, -1)):
                    cells = [(column + dx * i, row + dy * i) for i in range(IN_A_ROW)]
                    if all(0 <= x < self.columns and 0 <= y < self.rows for x, y in cells):
                        found.append(sum(self.bits[x][y] for x, y in cells))
        return tuple(found)

    @cached_property
    def from_the_middle(self) -> tuple[int, ...]:
        """The columns, middle ones first, for those are better on the whole."""
        return tuple(sorted(range(self.columns), key=lambda column: abs(2 * column - self.columns + 1)))

    def landing(self, occupied: int, column: int) -> int:
        """The bit where a stone comes to rest; 0 if the column is full."""
        return next((bit for bit in self.bits[column] if not occupied & bit), 0)

    def has_four(self, stones: int) -> bool:
        height = self.rows + 1
        for step in (1, height - 1, height, height + 1):
            pairs = stones & (stones >> step)
            if pairs & (pairs >> 2 * step):
                return True
        return False

    def is_full(self, occupied: int) -> bool:
        return all(occupied & column[-1] for column in self.bits)

    def worth(self, own: int, others: int) -> int:
        """A guess at how good a position is: open lines, by how many stones they hold."""
        total = 0
        for window in self.windows:
            mine, theirs = own & window, others & window
            if mine and not theirs:
                total += _WINDOW_WORTH[mine.bit_count()]
            elif theirs and not mine:
                total -= _WINDOW_WORTH[theirs.bit_count()]
        return total

    def negamax(self, own: int, others: int, plies: int, alpha: int, beta: int) -> int:
        """What the position is worth to who moves next, looking so many moves ahead (alpha-beta search)."""
        if self.has_four(others):
            return -WON - plies
        occupied = own | others
        if self.is_full(occupied):
            return 0
        if plies == 0:
            return self.worth(own, others)
        for column in self.from_the_middle:
            if bit := self.landing(occupied, column):
                alpha = max(alpha, -self.negamax(others, own | bit, plies - 1, -beta, -alpha))
                if alpha >= beta:
                    break
        return alpha

    def best_columns(self, own: int, others: int, plies: int) -> list[int]:
        """The columns that look best so many moves ahead."""
        best, columns = -2 * WON, list[int]()
        for column, bit in self._landings(own | others):
            # One below the best so far, so that equals are told from what is worse.
            worth = -self.negamax(others, own | bit, plies - 1, -2 * WON, -(best - 1))
            if worth > best:
                best, columns = worth, []
            if worth == best:
                columns.append(column)
        return columns

    def _landings(self, occupied: int) -> Iterator[tuple[int, int]]:
        for column in self.from_the_middle:
            if bit := self.landing(occupied, column):
                yield column, bit


@cache
def grid_of(columns: int, rows: int) -> Grid:
    """The grid of that size, worked out once."""
    return Grid(columns, rows)


@dataclass(frozen=True)
class Search:
    """The script `search-<n>`: a best move `plies` moves ahead, at random among equals."""

    plies: int

    def __call__(self, table: Table[Any], rng: np.random.Generator) -> str:
        assert isinstance(table, ConnectFour)
        columns = table.grid.best_columns(table.state.own, table.state.others, self.plies)
        return str(columns[int(rng.integers(len(columns)))] + 1)


class ConnectFour(Table[Stones]):
    """X and O drop stones into columns in turn, X first; four in a row, column or diagonal win.

    A move is the number of a column that is not full, 1 from the left. The winner gets 1 and the loser -1; both get 0
    when the board is full.

    Metrics: `win`, `draw`. Scripts: `random`; `search-1` to `search-8` look so many moves ahead, and `search` is
    `search-4`.

    Args:
        columns, rows: the board's size, each from 4 to 9.
        options: see `Table`.

    Raises:
        ValueError: the size is out of its range.
    """

    metadata: ClassVar = {**Table.metadata, "name": "ConnectFour-v0"}
    seats = ("X", "O")
    scripts: ClassVar[Mapping[str, Script]] = {
        "random": random_move,
        "search": Search(DEFAULT_PLIES),
        **{f"search-{plies}": Search(plies) for plies in range(1, MOST_PLIES + 1)},
    }
    teacher = "search"

    def __init__(self, *, columns: int = 7, rows: int = 6, **options: Any) -> None:
        super().__init__(**options)
        if not (IN_A_ROW <= columns <= MAX_SIDE and IN_A_ROW <= rows <= MAX_SIDE):
            raise ValueError(f"columns and rows are from {IN_A_ROW} to {MAX_SIDE}, got {columns=}, {rows=}")
        self.grid = grid_of(columns, rows)

    def deal(self, rng: np.random.Generator) -> Stones:
        return Stones()

    def turn(self, state: Stones) -> str:
        return self.seats[state.total % 2]

    def legal_moves(self, state: Stones) -> Sequence[str]:
        occupied = state.x | state.o
        return [str(column + 1) for column in range(self.grid.columns) if self.grid.landing(occupied, column)]

    def play(self, state: Stones, move: str) -> Stones:
        bit = self.grid.landing(state.x | state.o, int(move) - 1)
        return Stones(state.x, state.o | bit) if state.total % 2 else Stones(state.x | bit, state.o)

    def scores(self, state: Stones) -> Sequence[float] | None:
        if self.grid.has_four(state.x):
            return [1.0, -1.0]
        if self.grid.has_four(state.o):
            return [-1.0, 1.0]
        return [0.0, 0.0] if self.grid.is_full(state.x | state.o) else None

    def rules(self, seat: str) -> str:
        return (
            f"We play connect four, and you are {seat}. X begins. A stone falls to the lowest free cell of its column. "
            "Four in a row, column or diagonal win. Answer with the number of a column and nothing else."
        )

    def view(self, state: Stones, seat: str) -> str:
        return f"{self.shown(state)}\nYou are {seat}. Your move?"

    def ending(self, state: Stones, seat: str, score: float) -> str:
        return f"{self.shown(state)}\n" + ("A draw." if not score else "You win." if score > 0 else "You lose.")

    def metrics(self, state: Stones, seat: str, score: float | None) -> Mapping[str, float]:
        return win_or_draw(score)

    def shown(self, state: Stones) -> str:
        """The board, highest row first, under the columns' numbers."""
        lines = [" ".join(str(column + 1) for column in range(self.grid.columns))]
        for row in range(self.grid.rows - 1, -1, -1):
            cells = [column[row] for column in self.grid.bits]
            lines.append(" ".join("X" if state.x & cell else "O" if state.o & cell else "." for cell in cells))
        return "\n".join(lines)


connect_four_seat = seat_at(ConnectFour)
