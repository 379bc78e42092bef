"""Any game of TextArena as a text environment: one seat is the agent's, others are played by opponents."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...messages import Message, Reply, as_reply, assistant, user
from ..core import Outcome, TextEnv
from ..named import Named
from ..splits import Split, SplitPool
from .text_arena_game import Observations, TextArenaGame

Opponent = Callable[[list[Message]], str]
"""Plays a seat: the conversation from its place to what it says."""

RANDOM = "random"
MAX_WORLDS = 100_000
_MOVE = re.compile(r"\[[^\[\]\n]{1,40}\]")
_GAME_TAG = re.compile(r"\[GAME\]")
_PLAYED = re.compile(r"\s*\[?Player \d+\b")
"""Begins a line that says what somebody did, which lists nothing."""


class TextArena(TextEnv):
    """The agent plays one seat of a TextArena game; the reward is the game's own, at its end.

    An observation is what the game and other players have said since the agent last spoke. A text that is no move is
    handled by the game's own rule (most ask once more, then the player loses); a reply that was cut off or malformed
    is passed on as an empty text. A game that fails on the agent's text, or is brought into an endless loop, ends with
    reward -1 and stop reason "game_error"; one that fails on an opponent's text ends with reward 0.

    A problem is a world: the seed that the game is started with.

    Metrics: `won` (more reward than any other seat; alone, a reward of 1 or more), `turns`, `illegal` (texts of the
    agent that were no moves), `opponent_illegal`, `game_error`.

    Args:
        game: the id in TextArena's registry, such as "TicTacToe-v0" or "KuhnPoker-v0-long".
        opponents: who plays the other seats: "random" (draws among the moves in square brackets that the game lists),
            a function of the conversation from that seat that returns a text, its import path "module:function", or a
            list of these, one for each other seat in order.
        seat: the agent's place, or None for one drawn anew in each episode.
        num_players: how many play; by default the fewest that the game takes.
        observations: "new", or "wrapped" for the text that TextArena's own observation wrappers of that id make.
        game_options: arguments of the game's class, over those of the id.
        max_turns: after this many turns of the agent the episode is truncated.
        num_worlds: how many worlds there are in all.
        split: "train", "test" (about a tenth of the worlds) or None for all.
        render_mode: see `TextEnv`.

    Raises:
        ImportError: TextArena is not installed, or the game needs something that is not there.
        ValueError: an argument is out of its range, or there is no such game.
        TypeError: an opponent is no function.
    """

    def __init__(
        self,
        *,
        game: str = "GuessTheNumber-v0",
        opponents: Opponent | str | Sequence[Opponent | str] = RANDOM,
        seat: int | None = 0,
        num_players: int | None = None,
        observations: Observations = "new",
        game_options: Mapping[str, Any] | None = None,
        max_turns: int = 100,
        num_worlds: int = 10_000,
        split: Split | None = "train",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(render_mode=render_mode)
        if max_turns < 1:
            raise ValueError(f"max_turns is at least 1, got {max_turns}")
        if not 1 <= num_worlds <= MAX_WORLDS:
            raise ValueError(f"num_worlds is from 1 to {MAX_WORLDS}, got {num_worlds}")
        options = None if game_options is None else dict(game_options)
        self._game = TextArenaGame(game, num_players=num_players, observations=observations, game_options=options)
        count = self._game.num_players
        if seat is not None and not 0 <= seat < count:
            raise ValueError(f"seat is from 0 to {count - 1}, or None for one drawn anew each time, got {seat}")
        self.game, self.seat, self.max_turns = game, seat, max_turns
        self._opponents = _checked_opponents(opponents, count - 1)
        self._pool = SplitPool(num_worlds, self._split_name, split)

    @property
    def num_problems(self) -> int | None:
        """How many worlds the split has."""
        return self._pool.count

    def begin(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        index = options.get("index")
        world = self._pool.draw(self.np_random) if index is None else self._pool.at(index)
        count = self._game.num_players
        # What an opponent or the draw of a seat needs comes from the world, so that an index is the same episode too.
        self._world = (world, count)
        self._rng = np.random.default_rng(self._world)
        self._seat = int(self._rng.integers(count)) if self.seat is None else self.seat
        self._heard: dict[int, list[Message]] = {other: [] for other in range(count)}
        self._counts = dict.fromkeys(("turns", "illegal", "opponent_illegal", "game_error"), 0)
        self._game.begin(world)
        self._play_others()
        info = {"problem": f"{self.game} {world}", "seat": self._seat}
        return (user(self._news()),), info

    def respond(self, reply: Reply) -> Outcome:
        game, counts = self._game, self._counts
        counts["turns"] += 1
        if not game.over:
            said = game.say(reply["content"] if reply["stop_reason"] == "stop" else "")
            counts["illegal"] += said.illegal
            counts["game_error"] += said.failure is not None
            failure = said.failure or self._play_others()
        else:
            failure = None
        truncated = not game.over and (counts["turns"] >= self.max_turns or game.current != self._seat)
        ended = game.over or truncated
        rewards = game.rewards
        reward = rewards[self._seat] if game.over else 0.0
        others = [other for seat, other in rewards.items() if seat != self._seat]
        won = game.over and (reward > max(others) if others else reward >= 1.0)
        return Outcome(
            messages=(user(self._news()),),
            reward=reward,
            terminated=game.over,
            truncated=truncated,
            stop_reason="game_error" if counts["game_error"] else "max_turns" if truncated else None,
            metrics={"won": won, **counts},
            info={"rewards": dict(rewards)} | ({} if failure is None else {"failure": failure}) if ended else {},
        )

    def solution(self) -> list[Reply]:
        """Replies that play on to the end, for a supervised warm-up: moves drawn among those that the game lists.

        They keep to the rules and know no strategy.

        Raises:
            NotImplementedError: an opponent is a function, so what it will say is not known.
        """
        if any(opponent is not None for opponent in self._opponents):
            raise NotImplementedError("a game against a function has no solution that is known; play against 'random'")
        rehearsal = copy.deepcopy(self)
        # Of its own, so that the opponents' moves are those of the game to come.
        rng = np.random.default_rng((*self._world, 1))
        heard, replies, ended = list(self._conversation), [], False
        while not ended:
            replies.append(as_reply(random_move(heard, rng)))
            outcome = rehearsal.respond(replies[-1])
            heard += [replies[-1], *outcome.messages]
            ended = outcome.terminated or outcome.truncated
        return replies

    def _play_others(self) -> str | None:
        """Lets opponents move until it is the agent's turn or the game is over; in words, what made the game fail."""
        game = self._game
        # An agent that is out of the game watches the others for as long as it could have played.
        for _ in range(self.max_turns * game.num_players):
            if game.over or game.current == self._seat:
                return None
            seat = game.current
            self._heard[seat].append(user(game.observe()))
            said = self._say_for(seat)
            self._heard[seat].append(assistant(said))
            result = game.say(said)
            self._counts["opponent_illegal"] += result.illegal
            if result.failure is not None:
                self._counts["game_error"] += 1
                return result.failure
        return None

    def _say_for(self, seat: int) -> str:
        opponent = self._opponents[seat - (seat > self._seat)]
        if opponent is None:
            return random_move(self._heard[seat], self._rng)
        said = opponent([*self._heard[seat]])
        if not isinstance(said, str):
            raise TypeError(f"an opponent returns a text, got {said!r:.200}")
        return said

    def _news(self) -> str:
        game = self._game
        if game.over:
            return f"The game is over. {game.ending(self._seat)}".strip()
        if game.current != self._seat:
            return "The episode is broken off."
        return game.observe() or "It is your turn."

    def _split_name(self, number: int) -> str:
        return f"world {number} of {self.game}"


def random_move(conversation: Sequence[Message], rng: np.random.Generator) -> str:
    """A move in square brackets, drawn among those that were listed last; "[pass]" where none are."""
    for message in reversed(conversation):
        if message["role"] == "user" and (moves := _listed_last(message["content"])):
            return moves[int(rng.integers(len(moves)))]
    return "[pass]"


def _listed_last(text: str) -> list[str]:
    """The moves in the last lines that have any, in order; lists further up are of earlier turns."""
    moves: set[str] = set()
    for line in reversed(_GAME_TAG.sub("", text).splitlines()):
        found = [] if _PLAYED.match(line) else _MOVE.findall(line)
        if moves and not found:
            break
        moves.update(found)
    return sorted(moves)


def _checked_opponents(opponents: Opponent | str | Sequence[Opponent | str], count: int) -> list[Named | None]:
    """One for each other seat; None stands for random moves."""
    each = [opponents] * count if isinstance(opponents, str) or callable(opponents) else list(opponents)
    if len(each) != count:
        raise ValueError(f"opponents: one for all, or a list of one for each of {count} other seats; got {len(each)}")
    return [None if opponent == RANDOM else Named(opponent, "opponents") for opponent in each]
