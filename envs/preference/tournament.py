"""Who is compared with whom in a group of attempts, and what is made of the results.

A result is the probability that the first of two is better. Nothing here knows what is compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TypeAlias

Pairing: TypeAlias = tuple[int, int]
CompareAll: TypeAlias = Callable[[Sequence[Pairing]], Sequence[float]]
"""For each pairing (i, j) the probability that i is better than j."""

NO_OPINION = 0.5


@dataclass(slots=True)
class Standings:
    """Results so far: what each member won, in how many comparisons."""

    size: int
    hard: bool = False
    won: list[float] = field(init=False)
    played: list[int] = field(init=False)
    ties: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.won, self.played, self.ties = [0.0] * self.size, [0] * self.size, [0] * self.size

    def enter(self, pairings: Sequence[Pairing], results: Sequence[float]) -> None:
        """Notes what came of the pairings."""
        for (first, second), probability in zip(pairings, results, strict=True):
            tied = math.isclose(probability, NO_OPINION, abs_tol=1e-9)
            won = (NO_OPINION if tied else float(probability > NO_OPINION)) if self.hard else probability
            for member, share in ((first, won), (second, 1 - won)):
                self.won[member] += share
                self.played[member] += 1
                self.ties[member] += tied

    def win_rate(self, member: int) -> float:
        """The mean of a member's results; one half if it was never compared."""
        return self.won[member] / self.played[member] if self.played[member] else NO_OPINION


def play_all_pairs(size: int, compare: CompareAll, *, chunk: int | None = None, hard: bool = False) -> Standings:
    """Everybody against everybody, or within chunks of neighbours: n (n - 1) / 2 comparisons in n."""
    standings = Standings(size, hard)
    pairings = [pairing for members in _chunks(size, chunk or size) for pairing in combinations(members, 2)]
    standings.enter(pairings, compare(pairings))
    return standings


def play_ring(size: int, compare: CompareAll, *, hard: bool = False) -> Standings:
    """Each against the next, the last against the first: n comparisons, two for each member."""
    standings = Standings(size, hard)
    pairings = [(i, (i + 1) % size) for i in range(size)] if size > 2 else [(0, 1)][: size - 1]
    standings.enter(pairings, compare(pairings))
    return standings


def play_swiss(size: int, compare: CompareAll, *, rounds: int | None = None, hard: bool = False) -> Standings:
    """Rounds in which members meet who did equally well so far, nobody twice: n / 2 comparisons a round.

    The Swiss system of chess tournaments, with log2(n) rounds, rounded up, by default. Where their number is odd, one
    of the last sits out, nobody twice before all have. Among equals the order is the group's, so that the same results
    give the same pairings.
    """
    standings = Standings(size, hard)
    met: set[Pairing] = set()
    sat_out: list[int] = []
    for _ in range(math.ceil(math.log2(size)) if rounds is None else rounds):
        order = sorted(range(size), key=lambda member: -standings.win_rate(member))
        if size % 2:
            idle = min(reversed(order), key=sat_out.count)
            sat_out.append(idle)
            order.remove(idle)
        pairings = _neighbours(order, met)
        if not pairings:
            break
        met |= set(pairings) | {(second, first) for first, second in pairings}
        standings.enter(pairings, compare(pairings))
    return standings


def _chunks(size: int, chunk: int) -> Iterator[range]:
    """Runs of `chunk` members; a last one of a single member joins the one before, so that nobody is left alone."""
    starts = [start for start in range(0, size, chunk) if start == 0 or size - start > 1]
    for start, end in zip(starts, [*starts[1:], size], strict=True):
        yield range(start, end)


def _neighbours(order: list[int], met: set[Pairing]) -> list[Pairing]:
    """Pairs of members who stand close in `order` and have not met; who has met everybody left sits out."""
    pairings = []
    left = list(order)
    while left:
        first = left.pop(0)
        second = next((member for member in left if (first, member) not in met), None)
        if second is not None:
            left.remove(second)
            pairings.append((first, second))
    return pairings
