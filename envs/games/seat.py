"""`Seat`: one player's place at a table as a `TextEnv`, the other seats played by opponents."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from ...messages import Message, Reply, as_reply
from ..core import Outcome, TextEnv
from ..named import import_path
from .table import Table
from .tables import make

ChatAgent = Callable[[tuple[Message, ...]], Reply | str]
"""A player that is given all that its seat has been told and has said, and answers with a reply."""
Opponent = str | ChatAgent
"""A script's name, such as "random"; a function of yours as "module:name"; or the function itself."""

RANDOM_SEAT, ALTERNATE = "random", "alternate"


class Seat(TextEnv):
    """Plays one seat of a table against opponents.

    A step is one reply; the opponents then play until it is the seat's turn again or the game is over. The reward is
    what the table gives the seat. Opponents' random choices follow from the seed, as the deal does, so one seed is one
    game up to what the agent says; the deal is the same whichever seat is played.

    If the game is over before the agent first speaks (an opponent that is a function made an illegal move), the opening
    says so, and the first step ends the episode whatever is said.

    Metrics are the table's for this seat, and `opponents_illegal`, the illegal replies of all others.
    `reset(options={"seat": name})` chooses the seat for one episode; `info` of `reset` names it and the opponents.

    Args:
        table: a table's id (see `tables.make`), class, or a table of yours, which is then the seat's own.
        seat: a seat's name; "random" draws one by the seed; "alternate" takes turns: seed s sits in seat s modulo their
            number, an episode without a seed in the seat after the last one's.
        opponents: one opponent for all other seats, or a mapping from seats to opponents.
        teacher: the script that `solution` plays by; by default the table's best one.
        render_mode: see `TextEnv`.
        options: the table's, if `table` is an id or a class.

    Raises:
        ValueError: a seat or an opponent is unknown, or an option has a wrong value.
    """

    reset_options = ("seat",)

    def __init__(
        self,
        table: str | type[Table[Any]] | Table[Any],
        *,
        seat: str = RANDOM_SEAT,
        opponents: Opponent | Mapping[str, Opponent] = "random",
        teacher: str | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(render_mode=render_mode)
        self.table = _made(table, options)
        if seat not in (*self.table.seats, RANDOM_SEAT, ALTERNATE):
            raise ValueError(f"seat is one of {self.table.seats}, 'random' or 'alternate', got {seat!r}")
        self.teacher = self.table.teacher if teacher is None else teacher
        if self.teacher not in self.table.scripts:
            raise ValueError(f"teacher is one of {', '.join(self.table.scripts)}, got {teacher!r}")
        self.seat_choice = seat
        self._players = self._named_opponents(opponents, seat)
        self._episodes_since_seed = 0
        self._seated = self.table.seats[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[Message, ...], dict[str, Any]]:
        self._episodes_since_seed = 0 if seed is not None else self._episodes_since_seed + 1
        return super().reset(seed=seed, options=options)

    def begin(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        # All is drawn whether it is needed or not, so that the deal of a seed does not depend on the seat.
        deal, *players = (int(number) for number in self.np_random.integers(2**31, size=1 + len(self.table.seats)))
        drawn = int(self.np_random.integers(len(self.table.seats)))
        self._seated = self._chosen_seat(options.get("seat"), drawn)
        self._generators = {
            seat: np.random.default_rng(number) for seat, number in zip(self.table.seats, players, strict=True)
        }
        self.table.reset(seed=deal)
        self._let_others_play()
        names = {seat: _name(self._players[seat]) for seat in self.table.seats if seat != self._seated}
        info = {"seat": self._seated, "opponents": names, "problem": f"seat {self._seated} of deal {deal}"}
        return self.table.observe(self._seated), info

    def respond(self, reply: Reply) -> Outcome:
        was_over = self._over
        if not was_over:
            self.table.step(reply)
            self._let_others_play()
        seat, table = self._seated, self.table
        info = table.infos[seat]
        others = (table.infos[other]["metrics"]["illegal"] for other in table.seats if other != seat)
        return Outcome(
            messages=() if was_over else table.observe(seat),
            reward=table.rewards[seat] if self._over else 0.0,
            terminated=table.terminations[seat],
            truncated=table.truncations[seat],
            stop_reason=info.get("stop_reason"),
            metrics={**info["metrics"], "opponents_illegal": sum(others)},
        )

    def solution(self) -> list[Reply]:
        """The replies of the teacher in the game that was just begun, one per turn, for a supervised warm-up.

        Raises:
            NotImplementedError: an opponent is a function, so what it will say is not known.
        """
        others = [self._players[seat] for seat in self.table.seats if seat != self._seated]
        if not all(isinstance(other, str) for other in others):
            raise NotImplementedError("a game against a function has no solution that is known; play against scripts")
        rehearsal = copy.deepcopy(self)
        rng = rehearsal._generators[self._seated]
        replies = []
        while not rehearsal._over:
            said = as_reply(said_by(self.teacher, rehearsal.table, rng))
            replies.append(said)
            rehearsal.respond(said)
        return replies

    @property
    def _over(self) -> bool:
        return self.table.terminations[self._seated] or self.table.truncations[self._seated]

    def _let_others_play(self) -> None:
        while not self._over and (mover := self.table.agent_selection) != self._seated:
            self.table.step(said_by(self._players[mover], self.table, self._generators[mover]))

    def _chosen_seat(self, asked: Any, drawn: int) -> str:
        seats = self.table.seats
        if asked is not None:
            if asked not in seats:
                raise ValueError(f"Seat.reset: the option 'seat' is one of {seats}, got {asked!r}")
            return str(asked)
        if self.seat_choice == RANDOM_SEAT:
            return seats[drawn]
        if self.seat_choice == ALTERNATE:
            return seats[((self.np_random_seed or 0) + self._episodes_since_seed) % len(seats)]
        return self.seat_choice

    def _named_opponents(self, opponents: Opponent | Mapping[str, Opponent], seat: str) -> dict[str, Opponent]:
        seats = self.table.seats
        if not isinstance(opponents, Mapping):
            return {name: as_opponent(opponents, self.table) for name in seats}
        if unknown := [name for name in opponents if name not in seats]:
            raise ValueError(f"opponents: there are no seats {unknown}; the table has {seats}")
        if missing := [name for name in seats if name != seat and name not in opponents]:
            raise ValueError(
                f"opponents: nobody plays {missing}; name an opponent for every seat that may be another's"
            )
        return {name: as_opponent(opponents.get(name, "random"), self.table) for name in seats}


def _made(table: str | type[Table[Any]] | Table[Any], options: Mapping[str, Any]) -> Table[Any]:
    if isinstance(table, str):
        return make(table, **options)
    if isinstance(table, type):
        return table(**options)
    if options:
        raise ValueError(f"a table that is already made takes no options, got {dict(options)}")
    # PettingZoo has no types, so a checker cannot tell that no class gets here.
    return cast("Table[Any]", table)


def seat_at(table: type[Table[Any]]) -> Callable[..., Seat]:
    """What to register with Gymnasium for seats at the table; its signature has the table's options as well."""

    def make_seat(**arguments: Any) -> Seat:
        return Seat(table, **arguments)

    own = [inspect.signature(Seat), *(inspect.signature(cls) for cls in table.__mro__ if "__init__" in vars(cls))]
    parameters = {name: parameter for signature in own for name, parameter in signature.parameters.items()}
    # What is keyword-only in a signature need not stand in any order.
    named = [p for p in parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    make_seat.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    make_seat.__doc__ = f"A `Seat` at `{table.__name__}`: takes the arguments of both."
    return make_seat


def as_opponent(opponent: Opponent, table: Table[Any]) -> Opponent:
    """The opponent, after checking that there is such a one; "module:name" becomes the function.

    Raises:
        ValueError: it is neither a script of the table's nor a function.
    """
    if isinstance(opponent, str) and opponent in table.scripts:
        return opponent
    if isinstance(opponent, str) and ":" in opponent:
        opponent = cast(Opponent, import_path(opponent, "opponents"))
    if callable(opponent):
        return opponent
    raise ValueError(
        f"an opponent at {type(table).__name__} is one of {', '.join(table.scripts)}, a function from messages to a "
        f"reply, or one as 'module:name'; got {opponent!r:.200}"
    )


def said_by(opponent: Opponent, table: Table[Any], rng: np.random.Generator) -> Reply | str:
    """What an opponent says for the seat whose turn it is."""
    if isinstance(opponent, str):
        return table.scripts[opponent](table, rng)
    return opponent(table.conversation(table.agent_selection))


def _name(opponent: Opponent) -> str:
    return opponent if isinstance(opponent, str) else getattr(opponent, "__qualname__", type(opponent).__name__)
