"""Bargaining: two seats divide some items whose worth to the other neither knows, by alternating offers.

After the deal-or-no-deal task of Lewis et al. (2017), "Deal or No Deal? End-to-End Learning for Negotiation Dialogues",
with offers in a strict form in place of free dialogue, which can be switched on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from itertools import product
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .seat import seat_at
from .table import Script, Table, random_move

ITEMS = ("book", "hat", "ball")
TOTAL_WORTH = 10
"""What all items together are worth to each seat."""
_FEWEST_ITEMS, _MOST_ITEMS, _MOST_OF_A_KIND = 5, 7, 4
OFFER, ACCEPT = "Offer:", "Accept"
MAX_TALK = 500
FORFEIT = 0.1

Counts = tuple[int, int, int]


class Bargain(NamedTuple):
    """A bargain under way.

    Attributes:
        counts: how many there are of each of `ITEMS`.
        worths: what one of each is worth, by seat.
        offer: what the seat that spoke last would keep; None before the first offer.
        talk: what it said with it.
        turns: how many moves have been made.
        accepted: whether the last move accepted the offer before it.
    """

    counts: Counts
    worths: tuple[Counts, Counts]
    offer: Counts | None = None
    talk: str = ""
    turns: int = 0
    accepted: bool = False


@cache
def worth_vectors(counts: Counts) -> tuple[Counts, ...]:
    """All whole worths of the items of which that many add up to `TOTAL_WORTH`."""
    books, hats, balls = (range(TOTAL_WORTH // count + 1) for count in counts)
    return tuple(worths for worths in product(books, hats, balls) if worth_of(counts, worths) == TOTAL_WORTH)


@cache
def all_counts() -> tuple[Counts, ...]:
    """All collections that are dealt: 5 to 7 items, 1 to 4 of each kind."""
    amounts = range(1, _MOST_OF_A_KIND + 1)
    return tuple(counts for counts in product(amounts, amounts, amounts) if _FEWEST_ITEMS <= sum(counts) <= _MOST_ITEMS)


def worth_of(amounts: Counts, worths: Counts) -> int:
    return sum(amount * worth for amount, worth in zip(amounts, worths, strict=True))


@lru_cache(maxsize=4096)
def divisions(counts: Counts) -> tuple[Counts, ...]:
    """All shares of one side, from nothing to everything."""
    books, hats, balls = (range(count + 1) for count in counts)
    return tuple(product(books, hats, balls))


def rest(counts: Counts, kept: Counts) -> Counts:
    """What is left for the other."""
    a, b, c = (count - amount for count, amount in zip(counts, kept, strict=True))
    return a, b, c


def conceding(table: Table[Any], rng: np.random.Generator) -> str:
    """The script `conceding`: asks for less from turn to turn, from everything down to half (Faratin et al. 1998).

    It accepts what is worth at least what it would ask for next. Otherwise it offers a division that is worth that to
    itself or as little more as there is; of those one that leaves the other the most items, at random among equals. It
    looks only at what its seat may know.
    """
    assert isinstance(table, Bargaining)
    state: Bargain = table.state
    own = state.worths[table.seats.index(table.agent_selection)]
    progress = state.turns / max(1, table.max_turns - 1)
    aim = TOTAL_WORTH * (1 - progress / 2)
    if state.offer is not None and worth_of(rest(state.counts, state.offer), own) >= aim:
        return ACCEPT
    shares = [share for share in divisions(state.counts) if worth_of(share, own) >= aim]
    least = min((worth_of(share, own), sum(share)) for share in shares)
    shares = [share for share in shares if (worth_of(share, own), sum(share)) == least]
    return _offer_text(shares[int(rng.integers(len(shares)))])


class Bargaining(Table[Bargain]):
    """Two seats divide books, hats and balls by alternating offers; each knows only what they are worth to itself.

    5 to 7 items are dealt, 1 to 4 of each kind, and for each seat worths that add up to 10 over all items. Every kind
    is worth something to somebody, and at least one kind to both. In its turn a seat says

    - `Offer: 1 0 2`: it would keep 1 book, no hats and 2 balls, and the other would get the rest; or
    - `Accept`: the other's last offer holds, and the game is over.

    Each seat gets a tenth of what its share is worth to it, 0 to 1. If nobody has accepted after `max_turns` moves,
    both get 0, and that is an end by the rules. An illegal reply that loses the game gives 0 to the other and costs
    0.1.

    With `talk=True` a reply may have words before its last line; the other seat is told them, up to 500 characters.
    Only the last line is the move.

    Metrics: `agreed`; `worth` (of the own share, 0 to 1); `joint` (both worths as a share of the greatest sum that
    there is); `efficient` (1 if no other division is better for one and no worse for the other). Scripts: `random`,
    `conceding`.

    Args:
        max_turns: how many moves both have together.
        talk: whether words may go with an offer.
        options: see `Table`.

    Raises:
        ValueError: there are too few turns for an offer to be accepted.
    """

    metadata: ClassVar = {**Table.metadata, "name": "Bargaining-v0"}
    seats = ("first", "second")
    scripts: ClassVar[Mapping[str, Script]] = {"random": random_move, "conceding": conceding}
    teacher = "conceding"

    def __init__(self, *, max_turns: int = 8, talk: bool = False, **options: Any) -> None:
        super().__init__(**options)
        if max_turns < 2:
            raise ValueError(f"max_turns is at least 2, for an offer and its acceptance, got {max_turns}")
        self.max_turns, self.talk = max_turns, talk

    def deal(self, rng: np.random.Generator) -> Bargain:
        counts = all_counts()[int(rng.integers(len(all_counts())))]
        vectors = worth_vectors(counts)
        while True:
            first, second = (vectors[int(number)] for number in rng.integers(len(vectors), size=2))
            pairs = list(zip(first, second, strict=True))
            if all(a or b for a, b in pairs) and any(a and b for a, b in pairs):
                return Bargain(counts, (first, second))

    def turn(self, state: Bargain) -> str:
        return self.seats[state.turns % 2]

    def legal_moves(self, state: Bargain) -> Sequence[str]:
        offers = _offer_texts(state.counts)
        return offers if state.offer is None else (*offers, ACCEPT)

    def read(self, state: Bargain, text: str) -> str | None:
        said = text.strip()
        words, _, last = said.rpartition("\n") if self.talk else ("", "", said)
        move = last.strip()
        if move not in self.legal_moves(state):
            return None
        return f"{words.strip()[:MAX_TALK]}\n{move}" if words.strip() else move

    def play(self, state: Bargain, move: str) -> Bargain:
        words, _, last = move.rpartition("\n")
        if last == ACCEPT:
            return state._replace(talk=words, turns=state.turns + 1, accepted=True)
        a, b, c = (int(amount) for amount in last.removeprefix(OFFER).split())
        return state._replace(offer=(a, b, c), talk=words, turns=state.turns + 1)

    def scores(self, state: Bargain) -> Sequence[float] | None:
        if not state.accepted:
            return [0.0, 0.0] if state.turns >= self.max_turns else None
        return [worth / TOTAL_WORTH for worth in self._worths(state)]

    def forfeit(self, state: Bargain, seat: str) -> Sequence[float]:
        return [-FORFEIT if other == seat else 0.0 for other in self.seats]

    def rules(self, seat: str) -> str:
        talk = " You may write a few words to the other before that line." if self.talk else ""
        return (
            "You and another divide books, hats and balls. Each of you knows only what they are worth to yourself. In "
            f'your turn say "{OFFER} <books> <hats> <balls>", naming what you keep, such as "{OFFER} 1 0 2"; the other '
            f'gets the rest. Or say "{ACCEPT}" to accept the other\'s last offer. There are {self.max_turns} turns in '
            f"all; without an agreement both get nothing.{talk or ' Say nothing else.'}"
        )

    def view(self, state: Bargain, seat: str) -> str:
        own = state.worths[self.seats.index(seat)]
        lines = [
            f"There are {_listed(state.counts)}.",
            f"One is worth to you: {', '.join(f'{item} {worth}' for item, worth in zip(ITEMS, own, strict=True))}.",
        ]
        if state.talk:
            lines.append(f"The other says: {state.talk}")
        question = "Your offer?"
        if state.offer is not None:
            left = rest(state.counts, state.offer)
            lines.append(f"The other offers you {_listed(left)}, worth {worth_of(left, own)} to you.")
            question = f"Your offer or {ACCEPT}?"
        lines.append(f"Turns left: {self.max_turns - state.turns}. {question}")
        return "\n".join(lines)

    def ending(self, state: Bargain, seat: str, score: float) -> str:
        if not state.accepted:
            return "There is no agreement, and both get nothing."
        return f"There is an agreement. Your share is worth {score * TOTAL_WORTH:g} to you."

    def metrics(self, state: Bargain, seat: str, score: float | None) -> Mapping[str, float]:
        if not state.accepted:
            return {"agreed": 0.0, "worth": 0.0, "joint": 0.0, "efficient": 0.0}
        reached = self._worths(state)
        possible = [self._worths(state._replace(offer=share)) for share in divisions(state.counts)]
        better = any(a >= reached[0] and b >= reached[1] and (a, b) != reached for a, b in possible)
        return {
            "agreed": 1.0,
            "worth": reached[self.seats.index(seat)] / TOTAL_WORTH,
            "joint": sum(reached) / max(a + b for a, b in possible),
            "efficient": float(not better),
        }

    def shown(self, state: Bargain) -> str:
        if state.turns:
            return ""
        return f"{_listed(state.counts)}; one is worth {state.worths[0]} to the first, {state.worths[1]} to the second"

    def _worths(self, state: Bargain) -> tuple[int, int]:
        """What the offer on the table would give the first seat and the second."""
        assert state.offer is not None
        # An offer was made by who moved before the acceptance, or moved last.
        proposer = (state.turns - 1 - state.accepted) % 2
        shares = (state.offer, rest(state.counts, state.offer))
        first, second = shares if proposer == 0 else shares[::-1]
        return worth_of(first, state.worths[0]), worth_of(second, state.worths[1])


@lru_cache(maxsize=4096)
def _offer_texts(counts: Counts) -> tuple[str, ...]:
    return tuple(_offer_text(share) for share in divisions(counts))


def _offer_text(share: Counts) -> str:
    return f"{OFFER} {share[0]} {share[1]} {share[2]}"


def _listed(amounts: Counts) -> str:
    parts = [f"{amount} {item}{'' if amount == 1 else 's'}" for amount, item in zip(amounts, ITEMS, strict=True)]
    return f"{parts[0]}, {parts[1]} and {parts[2]}"


bargaining_seat = seat_at(Bargaining)
