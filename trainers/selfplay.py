"""Plays games at tables: every seat of a table by a model, a script or a function, with one trajectory per seat.

Vocabulary: a `Speaker` is a model that plays, with its sampler and renderer; whoever sits in a seat is a `Player`, a
`Speaker` or one of the opponents that `envs.games.seat.Seat` knows; a `Casting` says who sits where; a `Game` is what
happened at one table, with an `Episode` for each seat in which a speaker sat. As in `rollouts`, a `Task` is what is
played: here `env_id` names a table (`envs.games.tables`), its arguments and the seed of the deal.

    speaker = Speaker(policy.sampler(), renderer, params, context_length)
    games = play_games(tasks, group_size, everywhere(speaker), seed=(run_seed, step))
    data, metrics = training_data(seat_groups(games))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from ..agents import Completion, SamplingParams
from ..messages import Message, Reply, reply, without_stop_reason
from ..renderers import Renderer
from .deadlines import Calls
from .rollouts import Episode, EpisodeGroup, Sampler, Task, Turn, as_error, sampling_seed

if TYPE_CHECKING:
    from ..envs.games.seat import Opponent
    from ..envs.games.table import Table

T = TypeVar("T")
GIVEN_UP = "error"
"""Why a game ended that its table or a script broke off too often."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Speaker:
    """A model at a table. The same one may sit in several seats; it shares nothing between them.

    Attributes:
        sampler: gives the replies; speakers of one base may each have an adapter's.
        renderer: turns conversations into prompts and tokens into replies; its stop sequences end a reply.
        params: how to sample; `stop` and `seed` are set here.
        context_length: most tokens of a prompt and its reply. A seat whose prompt outgrows it says nothing any more: an
            illegal reply by the table's rule. Its episode ends with the stop reason `context`.
        name: what to call it: "policy" is who learns, see `seat_groups`.
    """

    sampler: Sampler
    renderer: Renderer
    params: SamplingParams
    context_length: int
    name: str = "policy"

    def params_for(self, seed: int) -> SamplingParams:
        """How to sample one reply."""
        return replace(self.params, stop=tuple(self.renderer.stop_sequences), seed=seed)  # type: ignore[arg-type]


Casting = Callable[[Task, int, Sequence[str]], "Mapping[str, Speaker | Opponent]"]
"""Who sits in each seat, from the task, the member of its group (from 0) and the table's seats."""


@dataclass(slots=True)
class Game:
    """What happened at one table.

    Attributes:
        task: what was played.
        players: the name of who sat in each seat.
        stop_reason: why it ended: "completed", "illegal" (somebody lost by an illegal reply) or "max_turns"; "error" if
            it was given up, which leaves it without scores and episodes.
        scores: what the game gave each seat.
        episodes: the trajectory of each seat in which a speaker sat; without turns if the game was over before.
        record: the game as an onlooker sees it, line by line.
        errors: the table's or a script's errors that ended an attempt at it.
    """

    task: Task
    players: dict[str, str]
    stop_reason: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    episodes: dict[str, Episode] = field(default_factory=dict)
    record: tuple[str, ...] = ()
    errors: list[str] = field(default_factory=list)


def everywhere(player: Speaker) -> Casting:
    """The player in all seats: self-play."""
    return lambda task, member, seats: dict.fromkeys(seats, player)


def against(player: Speaker, *opponents: Speaker | Opponent) -> Casting:
    """The player in one seat of each table and an opponent in all others.

    The player's seat goes round with the member, and after each round the next opponent has its turn; so a group of
    `len(seats) * len(opponents)` members has each of them against the player in each seat.

    Raises:
        ValueError: there are no opponents.
    """
    if not opponents:
        raise ValueError("against: no opponents; name at least one, a Speaker, a script's name or a function")

    def cast_seats(task: Task, member: int, seats: Sequence[str]) -> Mapping[str, Speaker | Opponent]:
        own = seats[member % len(seats)]
        opponent = opponents[member // len(seats) % len(opponents)]
        return {seat: player if seat == own else opponent for seat in seats}

    return cast_seats


def seat_groups(games: Sequence[Sequence[Game]], *names: str) -> list[EpisodeGroup]:
    """The episodes of the speakers of these names (by default "policy"), in groups whose rewards can be compared.

    A group is one deal, seen from one seat, with the same players in all seats: another seat may have the better
    prospects, and so may who meets another opponent. Episodes without turns, of games that were over before the speaker
    had spoken, are left out.

    Args:
        games: as `play_games` returns them.
        names: of the speakers.
    """
    groups = []
    for alike in games:
        comparable: dict[tuple[str, ...], list[Episode]] = {}
        for game in alike:
            for seat, episode in game.episodes.items():
                if game.players[seat] in (names or ("policy",)) and episode.turns:
                    comparable.setdefault((seat, *game.players.values()), []).append(episode)
        groups += [EpisodeGroup(alike[0].task, episodes) for episodes in comparable.values()]
    return groups


def finished(games: Sequence[Sequence[Game]]) -> list[list[Game]]:
    """The games that came to an end, without those that were given up.

    Raises:
        RuntimeError: none did.
    """
    found = [[game for game in alike if game.stop_reason != GIVEN_UP] for alike in games]
    errors = [error for alike in games for game in alike for error in game.errors]
    if errors and not any(found):
        raise RuntimeError(f"every game ended with an error of the table's, {len(errors)} in all: {errors[0]}")
    return found


def game_metrics(games: Sequence[Sequence[Game]]) -> dict[str, float]:
    """Mean scores by seat, and by player and seat, and how many games were lost by an illegal reply.

    With errors, `errors/retried` and `errors/dropped` tell how many games were played again and given up, and
    `errors/hung` how often it was because a table or a script did not come back.

    Raises:
        RuntimeError: all games were given up.
    """
    scores: dict[str, list[float]] = {}
    flat = [game for alike in finished(games) for game in alike]
    errors = [error for alike in games for game in alike for error in game.errors]
    num_dropped = sum(map(len, games)) - len(flat)
    for game in flat:
        for seat, score in game.scores.items():
            scores.setdefault(f"score/{seat}", []).append(score)
            scores.setdefault(f"score/{game.players[seat]}/{seat}", []).append(score)
    illegal = [game.stop_reason == "illegal" for game in flat]
    metrics = {name: float(np.mean(values)) for name, values in sorted(scores.items())} | {
        "games": float(len(flat)),
        "games/ended_illegally": float(np.mean(illegal)),
    }
    if errors:
        metrics |= {"errors/retried": float(len(errors) - num_dropped), "errors/dropped": float(num_dropped)}
    if hung := sum(error.startswith("Hangs: ") for error in errors):
        metrics["errors/hung"] = float(hung)
    return metrics


def play_games(
    tasks: Sequence[Task],
    group_size: int,
    casting: Casting | Mapping[str, Speaker | Opponent],
    *,
    seed: Sequence[int],
    retries: int | None = None,
    calls: Calls | None = None,
) -> list[list[Game]]:
    """Plays `group_size` games of every task, all at once; each waits only for the reply that is its next.

    Replies depend on the task's place, the member, the seat and the turn alone, never on who finishes first. Scripts
    draw from the task's seed, so that all games of a group meet the same world.

    Args:
        tasks: what to play: a table's id, its arguments and the seed of the deal.
        group_size: games of each task.
        casting: who sits where; a mapping from seats to players says it for all games.
        seed: coordinates of this call; with (task, member, seat, turn) they seed each reply.
        retries: how often a game that its table or a script ends with an exception, or does not go on with in time, is
            played again, at a new table, before it is given up. None lets the exception through.
        calls: how tables are called: with a deadline or, by default, without one.

    Returns:
        The games, a list for each task; those that were given up have the stop reason "error", see `finished`.

    Raises:
        ValueError: a seat is left empty, or a player is unknown; exceptions of tables and players pass through with the
            task named.
        TooManyHang: as many calls of tables hang as `calls` allows.
    """
    from ..envs.games import tables

    calls = calls or Calls()
    casting_of = _fixed(casting) if isinstance(casting, Mapping) else casting
    openings: dict[tuple[Any, ...], list[int]] = {}
    waiting: dict[tuple[int, int], tuple[_GameUnderway, Speaker]] = {}
    samplers: dict[int, Sampler] = {}

    def sit_down(index: int, member: int) -> _GameUnderway:
        task = tasks[index]
        table = tables.make(task.env_id, **task.kwargs)
        return _GameUnderway(task, table, casting_of(task, member, table.seats), (*seed, index, member), openings)

    def go_on(moves: list[tuple[_GameUnderway, Callable[[], None]]]) -> None:
        """Makes moves and plays on until models are to speak; what failed begins again, or is given up."""
        while moves:
            outcomes = calls.run_all([partial(playing.after, move) for playing, move in moves], "a table or a script")
            again: list[tuple[_GameUnderway, Callable[[], None]]] = []
            for (playing, _), outcome in zip(moves, outcomes, strict=True):
                place = playing.seed[-2:]
                try:
                    request = playing.guarded(outcome.result)
                except Exception as error:
                    if retries is None:
                        raise
                    errors = [*playing.game.errors, as_error(error)]
                    if len(errors) > retries:
                        players = playing.game.players
                        games[place] = Game(playing.task, players, stop_reason=GIVEN_UP, errors=errors)
                    else:
                        replayed = sit_down(*place)
                        replayed.game.errors = errors
                        again.append((replayed, replayed.deal))
                    continue
                if request is None:
                    games[place] = playing.game
                else:
                    ask(playing, *request)
            moves = again

    def ask(playing: _GameUnderway, speaker: Speaker, prompt: list[int], params: SamplingParams) -> None:
        samplers[id(speaker.sampler)] = speaker.sampler
        ticket = playing.guarded(lambda: speaker.sampler.submit(prompt, params))
        waiting[id(speaker.sampler), ticket] = playing, speaker

    games: dict[tuple[int, ...], Game] = {}
    opened = [sit_down(index, member) for index in range(len(tasks)) for member in range(group_size)]
    go_on([(playing, playing.deal) for playing in opened])
    while waiting:
        asked = {key for key, _ in waiting}
        # In the order in which they were first asked: who is in a batch together decides how its numbers are rounded.
        for key in [key for key in samplers if key in asked]:
            moves: list[tuple[_GameUnderway, Callable[[], None]]] = []
            for ticket, (completion,) in samplers[key].step().items():
                playing, speaker = waiting.pop((key, ticket))
                moves.append((playing, partial(playing.hear, speaker, completion)))
            go_on(moves)
    return [[games[index, member] for member in range(group_size)] for index in range(len(tasks))]


def _fixed(mapping: Mapping[str, Speaker | Opponent]) -> Casting:
    return lambda task, member, seats: mapping


class _Chair:
    """A seat in which a speaker sits: what it was asked and said, and what it was paid for it."""

    def __init__(self, speaker: Speaker, openings: dict[tuple[Any, ...], list[int]]) -> None:
        self.speaker = speaker
        self.openings = openings
        self.episode = Episode()
        self.said: list[tuple[list[int], Completion]] = []
        self.rewards: list[float] = []
        self.silent = False

    def pay(self, reward: float) -> None:
        """Adds to the reward of the last turn, which is what led to it."""
        if self.rewards:
            self.rewards[-1] += reward
        else:
            self.episode.group_reward += reward

    def next_prompt(self, news: Sequence[Message]) -> list[int]:
        messages, renderer = self.episode.messages, self.speaker.renderer
        if self.said:
            prompt, completion = self.said[-1]
            bridged = renderer.bridge_to_next_turn(prompt, completion.tokens, list(news), ())
            return bridged or renderer.build_generation_prompt(messages, ())
        # Seats open alike at many tables: rendered once.
        opening = (id(renderer), *((message["role"], message["content"]) for message in messages))
        if opening not in self.openings:
            self.openings[opening] = renderer.build_generation_prompt(messages, ())
        return list(self.openings[opening])

    def finish(self, info: Mapping[str, Any]) -> None:
        self.episode.turns = [
            Turn(prompt, completion.tokens, completion.logprobs, reward)
            for (prompt, completion), reward in zip(self.said, self.rewards, strict=True)
        ]
        self.episode.metrics = dict(info["metrics"])
        self.episode.stop_reason = "context" if self.silent else info["stop_reason"]


class _GameUnderway:
    """A table at which a game is played."""

    def __init__(
        self,
        task: Task,
        table: Table[Any],
        players: Mapping[str, Speaker | Opponent],
        seed: tuple[int, ...],
        openings: dict[tuple[Any, ...], list[int]],
    ) -> None:
        from ..envs.games.seat import as_opponent

        self.task, self.table, self.seed = task, table, seed
        if missing := [seat for seat in table.seats if seat not in players]:
            raise ValueError(f"{task.env_id}: nobody sits in {missing}; name a player for each of {table.seats}")
        if unknown := [seat for seat in players if seat not in table.seats]:
            raise ValueError(f"{task.env_id}: there are no seats {unknown}; the table has {table.seats}")
        self.chairs = {
            seat: _Chair(player, openings) for seat, player in players.items() if isinstance(player, Speaker)
        }
        self.others = {
            seat: as_opponent(player, table) for seat, player in players.items() if not isinstance(player, Speaker)
        }
        self.rngs = {
            seat: np.random.default_rng(np.random.SeedSequence((task.seed, number)))
            for number, seat in enumerate(table.seats)
        }
        names = {seat: chair.speaker.name for seat, chair in self.chairs.items()}
        names |= {seat: _opponent_name(opponent) for seat, opponent in self.others.items()}
        self.game = Game(task, {seat: names[seat] for seat in table.seats}, scores=dict.fromkeys(table.seats, 0.0))

    def deal(self) -> None:
        """Begins the game."""
        self.table.reset(seed=self.task.seed, options=self.task.options)

    def after(self, move: Callable[[], None]) -> tuple[Speaker, list[int], SamplingParams] | None:
        """Makes a move and plays on, see `until_a_model_speaks`."""
        move()
        return self.until_a_model_speaks()

    def until_a_model_speaks(self) -> tuple[Speaker, list[int], SamplingParams] | None:
        """Plays on until a speaker is to reply, and returns what to ask of it; None when the game is over."""
        from ..envs.games.seat import said_by

        table = self.table
        while table.agents:
            seat = table.agent_selection
            observation, reward, terminated, truncated, info = table.last()
            over, chair = terminated or truncated, self.chairs.get(seat)
            self.game.scores[seat] += reward
            if chair is not None:
                chair.pay(reward)
                chair.episode.messages += observation or ()
                if over:
                    chair.finish(info)
                    self.game.episodes[seat] = chair.episode
                elif (request := self._request(seat, chair, observation or ())) is not None:
                    return request
            if over:
                self.game.stop_reason = info["stop_reason"]
                table.step(None)
            elif chair is not None:
                self._say_nothing(chair)
            else:
                table.step(said_by(self.others[seat], table, self.rngs[seat]))
        self.game.record = table.record
        return None

    def hear(self, speaker: Speaker, completion: Completion) -> None:
        """Takes a reply to the table."""
        chair = self.chairs[self.table.agent_selection]
        said = cast(Reply, {**speaker.renderer.parse_response(completion.tokens)})
        if completion.stop_reason == "length":
            said["stop_reason"] = "length"
        chair.said.append((self._asked, completion))
        chair.rewards.append(0.0)
        chair.episode.messages.append(without_stop_reason(said))
        self.table.step(said)

    def _request(
        self, seat: str, chair: _Chair, news: Sequence[Message]
    ) -> tuple[Speaker, list[int], SamplingParams] | None:
        """What to ask of the speaker in the seat; None if it does not fit into its context."""
        if chair.silent:
            return None
        prompt = chair.next_prompt(news)
        # As in `collect`, a first prompt that does not fit is left to the sampler to refuse: no game could be played.
        if chair.said and len(prompt) >= chair.speaker.context_length:
            chair.silent = True
            return None
        self._asked = prompt
        coordinates = (*self.seed, self.table.seats.index(seat), len(chair.said))
        return chair.speaker, prompt, chair.speaker.params_for(sampling_seed(*coordinates))

    def _say_nothing(self, chair: _Chair) -> None:
        nothing = reply("", "length")
        chair.episode.messages.append(without_stop_reason(nothing))
        self.table.step(nothing)

    def guarded(self, call: Callable[[], T]) -> T:
        """Calls, and notes on an exception which game it happened in."""
        try:
            return call()
        except Exception as error:
            error.add_note(
                f"in a game of {self.task.env_id} with {dict(self.task.kwargs)}, seed {self.task.seed}, between "
                f"{self.game.players}, after {sum(len(chair.said) for chair in self.chairs.values())} replies of models"
            )
            raise


def _opponent_name(opponent: Opponent) -> str:
    return opponent if isinstance(opponent, str) else getattr(opponent, "__qualname__", type(opponent).__name__)
