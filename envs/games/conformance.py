"""Checks a table against PettingZoo's AEC contract and against what is promised of tables.

PettingZoo's own `api_test` takes array observations only: with messages it fails in its own code, looking for a
`dtype`. `check_table` asks what that test asks, of observations that are messages, and plays whole games by the rules
besides. PettingZoo's `parallel_api_test` and `seed_test` do take messages.
"""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gymnasium.utils.env_checker import data_equivalence

from ...messages import Message, check_messages, reply
from ..checks import BadEnvironment
from .table import Script, Table, random_move

MakeTable = Callable[..., Table[Any]]
MOST_REPLIES = 2000
"""A game that goes on for longer is taken for endless."""
HOSTILE = ("", " ", "\x00", "\ud800", "💥" * 1000, "9" * 10_000, "{0.__class__}", "1\n2", "٣", "-0", "x" * 1_000_000)
"""Replies that are no moves in any game that is known here; if one is in yours, it is taken as one."""


def check_table(make: MakeTable, *, player: Script = random_move, games: int = 10, seed: int = 0) -> None:
    """Plays games at tables that `make` makes and looks at everything that a table promises.

    Args:
        make: makes a table; takes the options that tables take, such as `illegal`.
        player: a script that says legal moves; needed where `legal_moves` cannot list them.
        games: how many games to play.
        seed: of the first of them.

    Raises:
        BadEnvironment: a promise is broken; the error says which and how.
    """
    _check_shape(make())
    for number in range(seed, seed + games):
        _check_game(make(), player, number)
        _check_twins(make, player, number)
    _check_global_randomness(make, player, seed)
    _check_pickle(make, player, seed)
    _check_illegal_replies(make, player, seed)


def _require(condition: bool, complaint: str) -> None:
    if not condition:
        raise BadEnvironment(complaint)


def _check_shape(table: Table[Any]) -> None:
    seats = list(table.seats)
    _require(bool(seats) and len(set(seats)) == len(seats), f"seats are distinct names, at least one; got {seats}")
    _require(all(isinstance(seat, str) for seat in seats), f"seats are named by strings; got {seats}")
    _require(table.possible_agents == seats, f"possible_agents {table.possible_agents} are not the seats {seats}")
    for seat in seats:
        for space in (table.observation_space, table.action_space):
            _require(space(seat) is space(seat), f"{space.__name__}({seat!r}) gives another object at each call")
    _require(isinstance(table.metadata.get("name"), str), "metadata['name'] is missing")
    _require(table.unwrapped is table, "unwrapped is not the table itself")


def _check_game(table: Table[Any], player: Script, seed: int) -> None:
    """One game by the rules, looked at after every step."""
    rng = np.random.default_rng(seed)
    seats = list(table.seats)
    heard: dict[str, list[Message]] = {seat: [] for seat in seats}
    paid = dict.fromkeys(seats, 0.0)
    table.reset(seed=seed)
    _require(table.agents == seats, f"after reset the agents are {table.agents}; expected all seats {seats}")
    for _ in range(MOST_REPLIES):
        _check_books(table)
        seat = table.agent_selection
        observation, reward, terminated, truncated, info = table.last()
        _require(data_equivalence(observation, table.observe(seat)), "last() and observe() do not give the same")
        _check_observation(table, seat, observation)
        heard[seat] += observation
        paid[seat] += reward
        if terminated or truncated:
            break
        _require(table.scores(table.state) is None, f"{seat} is asked to move, and scores() says that the game is over")
        said = _checked_move(table, player, rng)
        heard[seat].append({"role": "assistant", "content": said})
        illegal_before = info["metrics"]["illegal"]
        table.step(said)
        _require(
            table.infos[seat]["metrics"]["illegal"] == illegal_before, f"{said!r} is legal and was counted illegal"
        )
    else:
        raise BadEnvironment(f"a game of legal moves is not over after {MOST_REPLIES} replies; bound it by the rules")
    for seat in seats:
        told = list(table.conversation(seat))
        _require(told[: len(heard[seat])] == heard[seat], f"conversation({seat!r}) is not what was observed and said")
    _check_end(table, paid)


def _checked_move(table: Table[Any], player: Script, rng: np.random.Generator) -> str:
    """A move by the player, after looking whether the rules deal with it as values and texts."""
    state = table.state
    moves = table.legal_moves(state)
    if player is random_move:
        _require(
            len(moves) > 0, "legal_moves() is empty and the game not over; where they cannot be listed, pass a player"
        )
    before = copy.deepcopy(state)
    for move in moves:
        _require(isinstance(move, str), f"a move is a text; legal_moves() has {move!r:.200}")
        _require(table.read(state, move) is not None, f"legal_moves() has {move!r:.200}, and read() does not know it")
        table.play(state, move)
        _require(data_equivalence(before, state), f"play(state, {move!r:.200}) changed the state; return a new one")
    _require(len(set(moves)) == len(moves), f"legal_moves() names a move twice: {moves!r:.200}")
    said = player(table, rng)
    _require(data_equivalence(before, table.state), "a script changed the state of the table")
    return said


def _check_books(table: Table[Any]) -> None:
    """The dictionaries that AEC asks for name just the agents."""
    names = ("rewards", "_cumulative_rewards", "terminations", "truncations", "infos")
    for name in names:
        keys = set(getattr(table, name))
        _require(keys == set(table.agents), f"{name} has the keys {sorted(keys)}, and the agents are {table.agents}")
    _require(table.num_agents == len(table.agents), "num_agents is not the number of agents")
    _require(set(table.agents) <= set(table.possible_agents), f"agents {table.agents} are not all possible ones")
    _require(table.agent_selection in table.agents, f"{table.agent_selection!r} is to move and is no agent")
    for seat in table.agents:
        _require(np.isfinite(table.rewards[seat]), f"the reward of {seat} is {table.rewards[seat]}")
        _require(isinstance(table.terminations[seat], bool), f"terminations[{seat!r}] is no bool")
        _require(isinstance(table.truncations[seat], bool), f"truncations[{seat!r}] is no bool")
        metrics = table.infos[seat].get("metrics", {})
        _require(
            {"moves", "illegal"} <= metrics.keys() and all(np.isfinite(value) for value in metrics.values()),
            f"infos[{seat!r}]['metrics'] has no finite counts of moves and illegal replies: {metrics}",
        )


def _check_observation(table: Table[Any], seat: str, observation: Any) -> None:
    _require(observation in table.observation_space(seat), f"{seat} observes {observation!r:.200}, not in its space")
    _require(len(check_messages(observation)) > 0, f"{seat} is to move and observes nothing")
    _require(observation[-1]["role"] == "user", f"{seat} is to move, and its last message is not a user's")
    twice = table.observe(seat)
    _require(
        all(a is not b for a, b in zip(observation, twice, strict=True)),
        f"observe({seat!r}) gives the same objects at each call; who changes one would change the table",
    )


def _check_end(table: Table[Any], paid: dict[str, float]) -> None:
    """All seats are told, are paid once, and leave by stepping None."""
    scores = dict(table._cumulative_rewards)
    left: list[str] = []
    while table.agents:
        seat = table.agent_selection
        _, reward, terminated, truncated, info = table.last()
        _require(terminated or truncated, f"the game is over for some seats and not for {seat}")
        _require(isinstance(info.get("stop_reason"), str), f"the game is over, and infos[{seat!r}] has no stop_reason")
        _require(len(table.observe(seat)) > 0, f"{seat} is told nothing about the end")
        try:
            table.step("a word too many")
        except ValueError:
            pass
        else:
            raise BadEnvironment(f"{seat} spoke after its game was over, and no ValueError was raised")
        if left:
            paid[seat] += reward
        left.append(seat)
        table.step(None)
    _require(set(left) == set(table.seats), f"only {left} had to leave, of {table.seats}")
    for seat, score in scores.items():
        _require(abs(paid[seat] - score) < 1e-9, f"{seat} was paid {paid[seat]}; its score is {score}")


def _moves_of(table: Table[Any], player: Script, seed: int) -> Iterator[str]:
    """Plays a game from the start, and gives each reply before it is said."""
    rng = np.random.default_rng(seed)
    table.reset(seed=seed)
    for _ in range(MOST_REPLIES):
        if any(table.terminations.values()) or any(table.truncations.values()):
            return
        said = player(table, rng)
        yield said
        table.step(said)


def _snapshot(table: Table[Any]) -> tuple[Any, ...]:
    return (
        table.state,
        table.agent_selection,
        {seat: table.observe(seat) for seat in table.agents},
        dict(table.rewards),
        dict(table.terminations),
        dict(table.truncations),
        copy.deepcopy(table.infos),
    )


def _check_twins(make: MakeTable, player: Script, seed: int) -> None:
    """One seed is one game, beside other tables and after other games."""
    one, other, third = make(), make(), make()
    other.reset(seed=seed + 1)
    third.reset(seed=seed + 2)
    other.reset(seed=seed)
    for said in _moves_of(one, player, seed):
        _require(data_equivalence(_snapshot(one), _snapshot(other)), f"two tables of seed {seed} are not alike")
        other.step(said)
    _require(data_equivalence(_snapshot(one), _snapshot(other)), f"two games of seed {seed} do not end alike")
    one.reset()
    other.reset()
    _require(data_equivalence(_snapshot(one), _snapshot(other)), "after alike games reset() deals differently")


def _check_global_randomness(make: MakeTable, player: Script, seed: int) -> None:
    before = random.getstate(), repr(np.random.get_state(legacy=False))
    for _ in _moves_of(make(), player, seed):
        pass
    after = random.getstate(), repr(np.random.get_state(legacy=False))
    _require(before == after, "the table draws from the global random generators; use the rng that deal() is given")


def _check_pickle(make: MakeTable, player: Script, seed: int) -> None:
    table = make()
    twin: Table[Any] | None = None
    for said in _moves_of(table, player, seed):
        _check_alike(table, twin)
        try:
            twin = pickle.loads(pickle.dumps(table))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise BadEnvironment(f"the table cannot be pickled, so no other process can play it: {error}") from error
        assert twin is not None
        twin.step(said)
    _check_alike(table, twin)


def _check_alike(table: Table[Any], twin: Table[Any] | None) -> None:
    same = twin is None or data_equivalence(_snapshot(table), _snapshot(twin))
    _require(same, "a table that was pickled does not go on as the table itself does")


def _check_illegal_replies(make: MakeTable, player: Script, seed: int) -> None:
    """Anything that is no move is judged by the rule and counted, and nothing raises."""
    for text in HOSTILE:
        for said in (text, reply(text, "length"), reply(text, "malformed")):
            table = make(illegal="lose")
            table.reset(seed=seed)
            seat = table.agent_selection
            whole = isinstance(said, str)
            if whole and table.read(table.state, text) is not None:
                continue
            table.step(said)
            _check_books(table)
            _require(all(table.terminations.values()), f"illegal='lose', and the game goes on after {said!r:.80}")
            _require(table.infos[seat]["metrics"]["illegal"] == 1, f"{said!r:.80} is illegal and was not counted")
            _require(
                table.infos[seat]["stop_reason"] == "illegal", "a game lost by an illegal reply has another reason"
            )
    cut_off = reply("", "length")
    table = make(illegal="retry:2")
    table.reset(seed=seed)
    seat = table.agent_selection
    for count in (1, 2, 3):
        _require(table.agent_selection == seat, "illegal='retry:2', and the seat that may try again is not asked")
        _require(
            not table.terminations[seat], f"illegal='retry:2', and the game is over after {count - 1} illegal replies"
        )
        table.step(cut_off)
        _require(table.infos[seat]["metrics"]["illegal"] == count, "illegal replies are not counted one by one")
    _require(all(table.terminations.values()), "illegal='retry:2', and a third illegal reply does not lose")
    if player is random_move:
        table = make(illegal="random")
        table.reset(seed=seed)
        for _ in range(MOST_REPLIES):
            if any(table.terminations.values()) or any(table.truncations.values()):
                break
            table.step(cut_off)
            _check_books(table)
        else:
            raise BadEnvironment(f"illegal='random', and the game is not over after {MOST_REPLIES} replies")
        _require(
            sum(info["metrics"]["moves"] for info in table.infos.values()) == 0, "moves at random count as own moves"
        )
