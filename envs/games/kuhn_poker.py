"""Kuhn poker: three cards, one bet, hidden information, and a known equilibrium (Kuhn 1950)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .seat import seat_at
from .table import Script, Table, random_move

CARDS = ("jack", "queen", "king")
"""From the lowest to the highest."""
_OPEN, _FACING_BET = ("check", "bet"), ("call", "fold")
_SHOWDOWNS = {("check", "check"): 1, ("bet", "call"): 2, ("check", "bet", "call"): 2}
"""What each has put in when the cards are compared."""
_FOLDED_WINNER = {("bet", "fold"): 0, ("check", "bet", "fold"): 1}
"""Which seat wins, by number, when the other has folded; it wins the other's ante."""
FORFEIT = 2.0


class Hand(NamedTuple):
    """The cards of both seats, as indices of `CARDS`, and what has been done."""

    cards: tuple[int, int]
    actions: tuple[str, ...] = ()


def equilibrium_action(card: int, actions: Sequence[str], alpha: float) -> dict[str, float]:
    """How likely each action is in the equilibrium of that `alpha`, for who moves after `actions` holding `card`.

    Kuhn's (1950) family: the first player bets a jack with probability alpha and a king with 3 alpha, and calls with a
    queen with alpha + 1/3, for alpha from 0 to 1/3. The second player has but one equilibrium strategy.
    """
    jack, queen = card == 0, card == 1
    match tuple(actions):
        case ():
            aggressive = alpha if jack else 0.0 if queen else 3 * alpha
        case ("check",):
            aggressive = 1 / 3 if jack else 0.0 if queen else 1.0
        case ("bet",):
            aggressive = 0.0 if jack else 1 / 3 if queen else 1.0
        case _:
            aggressive = 0.0 if jack else alpha + 1 / 3 if queen else 1.0
    bold, timid = ("call", "fold") if "bet" in actions else ("bet", "check")
    return {bold: aggressive, timid: 1 - aggressive}


@dataclass(frozen=True)
class Equilibrium:
    """The script `equilibrium`: no other strategy wins anything against it in the long run.

    Args:
        alpha: which one of the family, 0 to 1/3.
    """

    alpha: float = 1 / 6

    def __call__(self, table: Table[Any], rng: np.random.Generator) -> str:
        hand: Hand = table.state
        own = hand.cards[table.seats.index(table.agent_selection)]
        chances = equilibrium_action(own, hand.actions, self.alpha)
        return str(rng.choice(list(chances), p=list(chances.values())))


class KuhnPoker(Table[Hand]):
    """Two players hold one of three cards each, have paid 1 into the pot, and may bet 1 more.

    Who acts first says `check` or `bet`; after a bet the other says `call` or `fold`; after a check the other may check
    as well, which ends the hand, or bet. The higher card wins what the other has put in: 1, or 2 after a called bet; a
    fold loses 1. No seat is ever told the other's card, not even at the end. Where both play the equilibrium, the first
    loses 1/18 a hand. An illegal reply that loses the game costs 2, the most that there is to lose.

    Metrics: `win`. Scripts: `random`, `equilibrium` (alpha = 1/6), `equilibrium-0` and `equilibrium-1/3` (the ends of
    the first player's family). Arguments: see `Table`.
    """

    metadata: ClassVar = {**Table.metadata, "name": "KuhnPoker-v0"}
    seats = ("first", "second")
    scripts: ClassVar[Mapping[str, Script]] = {
        "random": random_move,
        "equilibrium": Equilibrium(),
        "equilibrium-0": Equilibrium(0.0),
        "equilibrium-1/3": Equilibrium(1 / 3),
    }
    teacher = "equilibrium"

    def deal(self, rng: np.random.Generator) -> Hand:
        first, second = (int(card) for card in rng.permutation(len(CARDS))[:2])
        return Hand((first, second))

    def turn(self, state: Hand) -> str:
        return self.seats[len(state.actions) % 2]

    def legal_moves(self, state: Hand) -> Sequence[str]:
        return _FACING_BET if "bet" in state.actions else _OPEN

    def play(self, state: Hand, move: str) -> Hand:
        return Hand(state.cards, (*state.actions, move))

    def scores(self, state: Hand) -> Sequence[float] | None:
        first, second = state.cards
        if (stake := _SHOWDOWNS.get(state.actions)) is not None:
            first_gains = float(stake if first > second else -stake)
        elif (winner := _FOLDED_WINNER.get(state.actions)) is not None:
            first_gains = 1.0 if winner == 0 else -1.0
        else:
            return None
        return [first_gains, -first_gains]

    def forfeit(self, state: Hand, seat: str) -> Sequence[float]:
        return [-FORFEIT if other == seat else FORFEIT for other in self.seats]

    def rules(self, seat: str) -> str:
        return (
            "We play Kuhn poker. Jack, queen and king are shuffled, each of two players gets one, and each has put 1 "
            f"into the pot. You act {seat}. With no bet made, say check or bet (1 more). After a bet, say call (1 "
            "more) or fold. After two checks or a call the higher card wins the pot. Answer with one of these words "
            "and nothing else."
        )

    def view(self, state: Hand, seat: str) -> str:
        card = CARDS[state.cards[self.seats.index(seat)]]
        said = [
            f"{'you' if number % 2 == self.seats.index(seat) else 'the other'}: {action}"
            for number, action in enumerate(state.actions)
        ]
        so_far = f" So far {', '.join(said)}." if said else ""
        return f"Your card is the {card}.{so_far} Say {' or '.join(self.legal_moves(state))}."

    def ending(self, state: Hand, seat: str, score: float) -> str:
        return f"You {'win' if score > 0 else 'lose'} {abs(score):g}."

    def metrics(self, state: Hand, seat: str, score: float | None) -> Mapping[str, float]:
        return {"win": float(score is not None and score > 0)}

    def shown(self, state: Hand) -> str:
        return "" if state.actions else "cards: " + ", ".join(CARDS[card] for card in state.cards)


kuhn_poker_seat = seat_at(KuhnPoker)
