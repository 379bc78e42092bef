"""`Table`: a game of words in which seats take turns, as a PettingZoo AEC environment.

An author writes the rules as functions of a state that is never changed in place; the table keeps the book: turns, what
each seat has been told, illegal moves, rewards. One seat of a table as a Gymnasium environment is `seat.Seat`; all
seats stepped at once are `parallel.ParallelTable`.
"""

from __future__ import annotations

import copy
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding

from ...messages import Message, Reply, as_reply, system, user, without_stop_reason
from ..spaces import Messages, Replies

try:
    from pettingzoo.utils.env import AECEnv
except ImportError as error:
    raise ImportError("games at a table need PettingZoo: pip install 'loragym[games]'") from error

StateT = TypeVar("StateT")

Script = Callable[["Table[Any]", np.random.Generator], str]
"""A scripted player: what it says for the seat whose turn it is. It is given the whole table, so it is its author's
business to look only at what that seat may know."""

ILLEGAL_RULES = ("lose", "retry:<n>", "random")
_RETRY = re.compile(r"retry:([0-9]{1,4})")


def random_move(table: Table[Any], rng: np.random.Generator) -> str:
    """The script `random`: any legal move, all alike."""
    moves = table.legal_moves(table.state)
    return moves[int(rng.integers(len(moves)))]


class Table(AECEnv[str, tuple[Message, ...], Reply | str], ABC, Generic[StateT]):
    """A turn-taking game whose moves are texts.

    An author names the `seats` and writes `deal`, `turn`, `legal_moves`, `play`, `scores`, `rules` and `view`. A state
    is a value: `play` returns a new one. So opponents and tests can look ahead with the very rules that are played.

    A reply is a move if it finished by itself and its text, white space at the ends aside, is one of the legal moves to
    the letter (`read`). Any other reply is illegal, is counted in the seat's metrics, and by the table's rule

    - `illegal="lose"` (the default) ends the game with the rewards of `forfeit`;
    - `illegal="retry:2"` lets the seat try again, up to twice for one move; the next illegal reply loses;
    - `illegal="random"` plays a legal move at random in its place.

    A seat's observation is the messages that are new to it since it last spoke: at first the rules (system), and, when
    it is its turn or the game is over, one message (user). Rewards come when the game ends. `infos[seat]["metrics"]`
    has `moves` (legal ones), `illegal`, and what `metrics` adds; `infos[seat]["stop_reason"]` tells at the end why:
    "completed", "illegal" (somebody lost by an illegal reply) or "max_turns".

    Attributes:
        seats: the names of the seats, in the order in which they are asked about.
        scripts: scripted players by name.
        teacher: the script whose moves a supervised warm-up learns; the table's best one.
        state: the state of the game that is going on.

    Args:
        illegal: the rule for illegal replies.
        max_replies: after so many replies of all seats together the game is truncated, with reward 0 for everybody;
            None for no limit, which serves where the rules themselves bound a game.
        render_mode: "ansi" (`render` returns the record of the game), "human" (it is printed as it grows) or None.

    Raises:
        ValueError: an argument is none of those.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": ["ansi", "human"],
        "render_fps": 1,
        "is_parallelizable": True,
        "name": "table",
    }
    seats: ClassVar[tuple[str, ...]]
    scripts: ClassVar[Mapping[str, Script]] = {"random": random_move}
    teacher: ClassVar[str] = "random"
    state: StateT

    def __init__(
        self, *, illegal: str = "lose", max_replies: int | None = None, render_mode: str | None = None
    ) -> None:
        super().__init__()
        if render_mode not in (*self.metadata["render_modes"], None):
            raise ValueError(f"render_mode is one of {self.metadata['render_modes']} or None, got {render_mode!r}")
        retry = _RETRY.fullmatch(illegal) if isinstance(illegal, str) else None
        if retry is None and illegal not in ("lose", "random"):
            raise ValueError(f"illegal is one of {ILLEGAL_RULES}, such as 'retry:2', got {illegal!r}")
        if max_replies is not None and max_replies < 1:
            raise ValueError(f"max_replies is at least 1, or None for no limit, got {max_replies}")
        self.illegal, self.max_replies, self.render_mode = illegal, max_replies, render_mode
        self._retries = int(retry[1]) if retry else 0
        self.possible_agents = list(self.seats)
        self.agents: list[str] = []
        self._observation_spaces = {seat: Messages() for seat in self.seats}
        self._action_spaces = {seat: Replies() for seat in self.seats}
        self._np_random: np.random.Generator | None = None
        self._record: list[str] = []
        self._num_printed = 0

    @abstractmethod
    def deal(self, rng: np.random.Generator) -> StateT:
        """The state in which a game begins; all that is random about it comes from `rng`."""

    @abstractmethod
    def turn(self, state: StateT) -> str:
        """The seat that moves next; not asked once the game is over."""

    @abstractmethod
    def legal_moves(self, state: StateT) -> Sequence[str]:
        """All moves of the seat whose turn it is; empty if they cannot be listed, then write `read` as well."""

    @abstractmethod
    def play(self, state: StateT, move: str) -> StateT:
        """The state after a legal move (what `read` returned)."""

    @abstractmethod
    def scores(self, state: StateT) -> Sequence[float] | None:
        """The rewards by seat once the game is over; None as long as it goes on."""

    @abstractmethod
    def rules(self, seat: str) -> str:
        """What the seat is told once, before everything else; empty for nothing."""

    @abstractmethod
    def view(self, state: StateT, seat: str) -> str:
        """What the seat is told when it is its turn: all that it may know and needs to move."""

    def read(self, state: StateT, text: str) -> str | None:
        """The move that a reply's text is; None if it is none. The text is any text at all."""
        said = text.strip()
        return said if said in self.legal_moves(state) else None

    def forfeit(self, state: StateT, seat: str) -> Sequence[float]:
        """The rewards by seat when `seat` loses by an illegal reply; by default -1 for it, and +1 among the others."""
        return [-1.0 if other == seat else 1.0 / max(1, len(self.seats) - 1) for other in self.seats]

    def ending(self, state: StateT, seat: str, score: float) -> str:
        """What the seat is told when the game is over by its rules."""
        return f"The game is over. Your score: {score:g}."

    def metrics(self, state: StateT, seat: str, score: float | None) -> Mapping[str, float]:
        """Further numbers about the seat's game so far, the same names at every step; `score` is None until the end."""
        return {}

    def shown(self, state: StateT) -> str:
        """The state in the record that `render` shows to onlookers; by default nothing."""
        return ""

    @property
    def np_random(self) -> np.random.Generator:
        """The table's own random numbers, seeded by `reset`."""
        if self._np_random is None:
            self._np_random, _ = seeding.np_random()
        return self._np_random

    def observation_space(self, agent: str) -> Messages:
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> Replies:
        return self._action_spaces[agent]

    def reset(self, seed: int | None = None, options: Mapping[str, Any] | None = None) -> None:
        """Deals a new game; the same `seed` always deals the same one. There are no options; any are ignored."""
        if seed is not None:
            self._np_random, _ = seeding.np_random(seed)
        self.agents = list(self.seats)
        self.rewards = dict.fromkeys(self.seats, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.seats, 0.0)
        self.terminations = dict.fromkeys(self.seats, False)
        self.truncations = dict.fromkeys(self.seats, False)
        self._skip_agent_selection = None
        self._replies = self._failures = 0
        self._moves = dict.fromkeys(self.seats, 0)
        self._illegal = dict.fromkeys(self.seats, 0)
        self._final: dict[str, float] | None = None
        self._conversations: dict[str, list[Message]] = {seat: [] for seat in self.seats}
        self._spoken = dict.fromkeys(self.seats, 0)
        self._remarks: dict[str, str] = {}
        self._record, self._num_printed = [], 0
        self.state = self.deal(self.np_random)
        for seat in self.seats:
            if rules := self.rules(seat):
                self._conversations[seat].append(system(rules))
        self._note(self.shown(self.state))
        self._go_on()

    def observe(self, agent: str) -> tuple[Message, ...]:
        """The messages that are new to the seat since it last spoke; looking takes nothing away."""
        return copy.deepcopy(tuple(self._conversations[agent][self._spoken[agent] :]))

    def conversation(self, seat: str) -> tuple[Message, ...]:
        """All that the seat has been told and has said in this game."""
        return copy.deepcopy(tuple(self._conversations[seat]))

    def step(self, action: Reply | str | None) -> None:
        """Says `action` for the seat `agent_selection`; None takes a seat off whose game is over.

        Raises:
            ResetNeeded: no game is going on.
            TypeError, ValueError: `action` is not a reply.
        """
        if not self.agents:
            raise ResetNeeded(f"{type(self).__name__}: step() was called with no game going on; call reset() first")
        seat = self.agent_selection
        if self.terminations[seat] or self.truncations[seat]:
            self._was_dead_step(action)
            return
        if action is None:
            raise TypeError(f"{type(self).__name__}: {seat} is to move, and None says nothing; pass a reply")
        reply = as_reply(action)
        self._cumulative_rewards[seat] = 0.0
        self._clear_rewards()
        self._conversations[seat].append(copy.deepcopy(without_stop_reason(reply)))
        self._spoken[seat] = len(self._conversations[seat])
        self._replies += 1
        # Escaped, for a model must not be able to drive the terminal of who reads the record.
        said = reply["content"] if reply["content"].isprintable() else repr(reply["content"])
        move = self.read(self.state, reply["content"]) if reply["stop_reason"] == "stop" else None
        if move is None:
            self._illegal[seat] += 1
            self._note(f"{seat}: {said} (illegal)")
            self._judge_illegal(seat)
        else:
            self._note(f"{seat}: {said}")
            self._make(seat, move)
            self._go_on()

    @property
    def record(self) -> tuple[str, ...]:
        """The game so far as an onlooker sees it, who is told everything: line by line, control characters escaped."""
        return tuple(self._record)

    def render(self) -> str | None:
        """The record so far in mode "ansi"; mode "human" prints what it has not printed yet."""
        self._print_if_human()
        return "\n".join(self._record) if self.render_mode == "ansi" else None

    def _make(self, seat: str, move: str) -> None:
        self._failures = 0
        self._moves[seat] += 1
        self.state = self.play(self.state, move)
        self._note(self.shown(self.state))

    def _judge_illegal(self, seat: str) -> None:
        self._failures += 1
        if self.illegal == "random":
            move = random_move(self, self.np_random)
            self._make(seat, move)
            # An illegal reply is not a move of the seat's own.
            self._moves[seat] -= 1
            self._note(f"{seat}: {move} (at random)")
            self._remarks[seat] = f"That was no legal move; {move} was played for you at random."
            self._go_on()
        elif self._failures <= self._retries:
            self._remarks[seat] = "That was no legal move; try again."
            self._go_on()
        else:
            self._end(self.forfeit(self.state, seat), "illegal", offender=seat)

    def _go_on(self) -> None:
        """Ends the game, or asks the next seat."""
        if (scores := self.scores(self.state)) is not None:
            self._end(scores, "completed")
        elif self.max_replies is not None and self._replies >= self.max_replies:
            self._end([0.0] * len(self.seats), "max_turns")
        else:
            self.agent_selection = self.turn(self.state)
            self._tell(self.agent_selection, self.view(self.state, self.agent_selection))
            self._inform()
            self._print_if_human()

    def _end(self, scores: Sequence[float], stop_reason: str, offender: str | None = None) -> None:
        if len(scores) != len(self.seats):
            raise ValueError(
                f"{type(self).__name__}: {len(scores)} scores for the {len(self.seats)} seats {self.seats}; "
                "scores() and forfeit() return one number per seat"
            )
        self._final = {seat: float(score) for seat, score in zip(self.seats, scores, strict=True)}
        self.rewards = dict(self._final)
        self._accumulate_rewards()
        cut = stop_reason == "max_turns"
        self.truncations = dict.fromkeys(self.seats, cut)
        self.terminations = dict.fromkeys(self.seats, not cut)
        for seat, score in self._final.items():
            if offender is not None:
                who = "Your reply" if seat == offender else f"The reply of {offender}"
                text = f"{who} was no legal move, and the game is over. Your score: {score:g}."
            elif cut:
                text = "The game was broken off: there were too many replies."
            else:
                text = self.ending(self.state, seat, score)
            self._tell(seat, text)
        self.agent_selection = self.seats[0]
        self._note(f"{stop_reason}: " + ", ".join(f"{seat} {score:g}" for seat, score in self._final.items()))
        self._inform(stop_reason)
        self._print_if_human()

    def _tell(self, seat: str, text: str) -> None:
        """Gives the seat a message, headed by what there was to remark on its last reply."""
        remark = self._remarks.pop(seat, "")
        self._conversations[seat].append(user(f"{remark}\n{text}" if remark else text))

    def _inform(self, stop_reason: str | None = None) -> None:
        self.infos: dict[str, dict[str, Any]] = {}
        for seat in self.seats:
            score = None if self._final is None else self._final[seat]
            further = {name: float(value) for name, value in self.metrics(self.state, seat, score).items()}
            counts = {"moves": float(self._moves[seat]), "illegal": float(self._illegal[seat])}
            self.infos[seat] = {"metrics": {**counts, **further}}
            if stop_reason is not None:
                self.infos[seat]["stop_reason"] = stop_reason

    def _note(self, line: str) -> None:
        if line:
            self._record.append(line)

    def _print_if_human(self) -> None:
        unseen = self._record[self._num_printed :]
        if self.render_mode == "human" and unseen:
            encoding = sys.stdout.encoding or "utf-8"
            print("\n".join(unseen).encode(encoding, "backslashreplace").decode(encoding))
            self._num_printed = len(self._record)


def win_or_draw(score: float | None) -> dict[str, float]:
    """The metrics of a game that is won, drawn or lost."""
    return {"win": float(score is not None and score > 0), "draw": float(score == 0)}
