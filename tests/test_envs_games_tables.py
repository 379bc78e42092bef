"""Tables keep PettingZoo's contract and their own: turns, what seats are told, illegal moves, seeds."""

from __future__ import annotations

import inspect
import pickle
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from loragym.envs import BadEnvironment
from loragym.envs.games.conformance import check_table
from loragym.envs.games.connect_four import ConnectFour
from loragym.envs.games.kuhn_poker import KuhnPoker
from loragym.envs.games.parallel import ParallelTable, parallel_env
from loragym.envs.games.seat import Seat
from loragym.envs.games.table import Table, random_move
from loragym.envs.games.tables import TABLES, make, register_table, table_class
from loragym.envs.games.tic_tac_toe import TicTacToe
from loragym.messages import Message, reply
from pettingzoo.test import parallel_api_test, parallel_seed_test, seed_test
from pettingzoo.utils.conversions import turn_based_aec_to_parallel

IDS = sorted(TABLES)
RULES = ["lose", "retry:2", "random"]


class Nim(Table[int]):
    """Takes one to three sticks in turn; who takes the last one wins. Three players may play."""

    seats = ("a", "b", "c")

    def deal(self, rng: np.random.Generator) -> int:
        return int(rng.integers(4, 12)) * 10

    def turn(self, state: int) -> str:
        return self.seats[state % 10]

    def legal_moves(self, state: int) -> Sequence[str]:
        return [str(sticks) for sticks in (1, 2, 3) if sticks <= state // 10]

    def play(self, state: int, move: str) -> int:
        return (state // 10 - int(move)) * 10 + (state + 1) % 10 % 3

    def scores(self, state: int) -> Sequence[float] | None:
        last = (state % 10 - 1) % 3
        return None if state >= 10 else [1.0 if number == last else -0.5 for number in range(3)]

    def rules(self, seat: str) -> str:
        return ""

    def view(self, state: int, seat: str) -> str:
        return f"{state // 10} sticks."


def plays(table: Table[Any], seed: int = 0) -> Iterator[tuple[str, str]]:
    """A game of random legal moves: (seat, what it is about to say)."""
    rng = np.random.default_rng(seed)
    table.reset(seed=seed)
    while not any(table.terminations.values()):
        seat, said = table.agent_selection, random_move(table, rng)
        yield seat, said
        table.step(said)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("table", [*IDS, Nim])
def test_every_table_keeps_what_tables_promise(table: str | type[Table[Any]], rule: str) -> None:
    def made(**options: Any) -> Table[Any]:
        options = {"illegal": rule, **options}
        return make(table, **options) if isinstance(table, str) else table(**options)

    check_table(made, games=6, seed=17)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("table", IDS)
def test_pettingzoos_own_tests_pass_where_they_can_take_messages(table: str, rule: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seed_test(partial(make, table, illegal=rule))
        parallel_api_test(parallel_env(table, illegal=rule))
        parallel_seed_test(partial(parallel_env, table, illegal=rule))


def test_pettingzoos_api_test_cannot_take_messages_and_fails_on_its_own_account() -> None:
    """The day this fails, the docs can say so, and `check_table` has a companion."""
    from pettingzoo.test import api_test

    with pytest.raises(Exception) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        api_test(make("TicTacToe-v0"), num_cycles=5)
    assert caught.traceback[-1].path.name == "api_test.py"


def test_pettingzoos_conversion_to_parallel_takes_a_table() -> None:
    env = turn_based_aec_to_parallel(make("TicTacToe-v0"))
    env.reset(seed=0)
    observations, rewards, terminations, *_ = env.step({"X": "nonsense", "O": "5"})
    assert rewards == {"X": -1.0, "O": 1.0} and all(terminations.values())
    assert "no legal move" in observations["X"][-1]["content"]


class SharedObservations(TicTacToe):
    def observe(self, agent: str) -> tuple[Message, ...]:
        return tuple(self._conversations[agent][self._spoken[agent] :])


class Forgetful(TicTacToe):
    def legal_moves(self, state: str) -> Sequence[str]:
        return [*super().legal_moves(state), "10"]

    def play(self, state: str, move: str) -> str:
        return super().play(state, move) if len(move) == 1 else state

    def read(self, state: str, text: str) -> str | None:
        return super().read(state, text) if len(text) < 2 else None


class Endless(Nim):
    def scores(self, state: int) -> None:
        return None

    def legal_moves(self, state: int) -> Sequence[str]:
        return ["0"]


class ChangesItsState(Table[list[int]]):
    seats = ("a", "b")

    def deal(self, rng: np.random.Generator) -> list[int]:
        return []

    def turn(self, state: list[int]) -> str:
        return self.seats[len(state) % 2]

    def legal_moves(self, state: list[int]) -> Sequence[str]:
        return ["1", "2"]

    def play(self, state: list[int], move: str) -> list[int]:
        state.append(int(move))
        return state

    def scores(self, state: list[int]) -> Sequence[float] | None:
        return [0.0, 0.0] if len(state) > 3 else None

    def rules(self, seat: str) -> str:
        return "Say 1 or 2."

    def view(self, state: list[int], seat: str) -> str:
        return "Your turn."


class GlobalDice(Nim):
    def deal(self, rng: np.random.Generator) -> int:
        return random.randint(4, 400) * 10

    def legal_moves(self, state: int) -> Sequence[str]:
        return super().legal_moves(state)


class GlobalWaste(Nim):
    def view(self, state: int, seat: str) -> str:
        np.random.random()
        return super().view(state, seat)


class MiscountedScores(Nim):
    def scores(self, state: int) -> Sequence[float] | None:
        scores = super().scores(state)
        return None if scores is None else scores[:2]


class Lenient(TicTacToe):
    """Takes any first digit for a move, so the rule about illegal replies never applies to what looks like one."""

    def _judge_illegal(self, seat: str) -> None:
        self._go_on()


class Shrugging(Nim):
    """Forgets how many sticks there are when it is pickled."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "state": 30})


class Unpicklable(Nim):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.oracle = lambda: 3


class NoMoves(Nim):
    def legal_moves(self, state: int) -> Sequence[str]:
        return []


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (SharedObservations, "gives the same objects at each call"),
        (Forgetful, r"legal_moves\(\) has '10', and read\(\) does not know it"),
        (Endless, "not over after 2000 replies"),
        (ChangesItsState, "changed the state; return a new one"),
        (GlobalDice, "are not alike|deals differently"),
        (GlobalWaste, "draws from the global random generators"),
        (Lenient, "the game goes on after ''"),
        (Shrugging, "pickled does not go on"),
        (Unpicklable, "cannot be pickled"),
        (NoMoves, "cannot be listed, pass a player"),
    ],
)
def test_a_broken_promise_is_found_and_named(broken: Callable[..., Table[Any]], complaint: str) -> None:
    with pytest.raises(BadEnvironment, match=complaint):
        check_table(broken, games=3)


def test_scores_that_do_not_fit_the_seats_are_refused() -> None:
    with pytest.raises(ValueError, match=r"MiscountedScores: 2 scores for the 3 seats"):
        for _ in plays(MiscountedScores()):
            pass


@pytest.mark.parametrize("said", ["x", "", "5.", "10", "0", "5 5", "\ud800", reply("5", "length"), "٥"])
def test_an_illegal_reply_loses_and_is_counted(said: Any) -> None:
    table = TicTacToe()
    table.reset(seed=0)
    table.step("1")
    table.step(said)
    assert table.rewards == {"X": 1.0, "O": -1.0} and all(table.terminations.values())
    assert {seat: info["metrics"]["illegal"] for seat, info in table.infos.items()} == {"X": 0.0, "O": 1.0}
    assert {info["stop_reason"] for info in table.infos.values()} == {"illegal"}
    assert table.observe("O")[-1]["content"].startswith("Your reply was no legal move")
    assert table.observe("X")[-1]["content"].startswith("The reply of O was no legal move")


def test_a_move_may_have_white_space_around_it_and_nothing_else() -> None:
    table = TicTacToe()
    table.reset()
    table.step(" 5\n")
    assert table.state == "1234X6789"


def test_retries_are_per_move() -> None:
    table = TicTacToe(illegal="retry:1")
    table.reset(seed=0)
    for said in ("x", "1", "1", "2", "x", "3"):
        table.step(said)
    assert not any(table.terminations.values())
    assert [table.infos[seat]["metrics"]["illegal"] for seat in "XO"] == [2.0, 1.0]
    assert [table.infos[seat]["metrics"]["moves"] for seat in "XO"] == [2.0, 1.0]
    table.step("x")
    assert table.agent_selection == "O" and "try again" in table.observe("O")[-1]["content"]
    table.step("x")
    assert table.rewards == {"X": 1.0, "O": -1.0}


def test_a_move_at_random_is_legal_told_to_the_seat_and_drawn_from_the_seed() -> None:
    boards = set()
    for seed in (*range(40), 0):
        table = TicTacToe(illegal="random")
        table.reset(seed=seed)
        table.step("mumble")
        assert table.state.count("X") == 1
        boards.add(table.state)
        table.step(next(cell for cell in table.state if cell != "X"))
        cell = next(str(number + 1) for number, mark in enumerate(table.state) if mark == "X")
        assert f"{cell} was played for you" in table.observe("X")[-1]["content"]
        assert table.infos["X"]["metrics"] == {"moves": 0.0, "illegal": 1.0, "win": 0.0, "draw": 0.0}
    assert 5 < len(boards) <= 9


def test_a_limit_on_replies_truncates_with_nothing_for_anybody() -> None:
    table = TicTacToe(max_replies=3)
    table.reset(seed=0)
    for said in "123":
        table.step(said)
    assert table.truncations == {"X": True, "O": True} and table.terminations == {"X": False, "O": False}
    assert table.rewards == {"X": 0.0, "O": 0.0}
    assert table.infos["X"]["stop_reason"] == "max_turns"


def test_three_may_play_and_the_others_share_what_is_won_by_a_forfeit() -> None:
    table = Nim()
    table.reset(seed=0)
    assert [seat for seat, _ in plays(table, 3)][:4] == ["a", "b", "c", "a"]
    assert sorted(table.rewards.values()) == [-0.5, -0.5, 1.0]
    table.reset(seed=0)
    table.step("1")
    table.step("no")
    assert table.rewards == {"a": 0.5, "b": -1.0, "c": 0.5}


def test_the_record_shows_replies_with_their_control_characters_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    table = TicTacToe(render_mode="ansi")
    table.reset()
    table.step("\x1b[2J")
    assert "X: '\\x1b[2J' (illegal)" in (table.render() or "")
    printed = TicTacToe(render_mode="human")
    printed.reset()
    printed.step("5\ud800")
    assert capsys.readouterr().out.splitlines()[3] == "X: '5\\ud800' (illegal)"
    assert TicTacToe().render() is None


def test_stepping_without_a_game_or_with_nothing_is_refused() -> None:
    table = TicTacToe()
    with pytest.raises(ResetNeeded):
        table.step("5")
    table.reset()
    with pytest.raises(TypeError, match="X is to move"):
        table.step(None)
    with pytest.raises(TypeError, match="an action is a str"):
        table.step(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"illegal": "forgive"}, "illegal is one of"),
        ({"illegal": "retry:x"}, "retry:<n>"),
        ({"max_replies": 0}, "max_replies is at least 1"),
        ({"render_mode": "gif"}, "render_mode"),
    ],
)
def test_a_bad_option_is_refused_at_once(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        TicTacToe(**options)


def test_tables_are_made_by_id_by_class_and_by_import_path() -> None:
    assert isinstance(make("TicTacToe-v0", illegal="random"), TicTacToe)
    assert isinstance(make("loragym/ConnectFour-v0", columns=5), ConnectFour)
    assert table_class("loragym.envs.games.kuhn_poker:KuhnPoker") is KuhnPoker
    with pytest.raises(ValueError, match=r"no table 'Chess-v0'; the known ones are Bargaining-v0"):
        make("Chess-v0")
    with pytest.raises(ValueError, match="is no Table"):
        make("loragym.envs.games.kuhn_poker:CARDS")
    register_table("tests/Nim-v0", Nim)
    try:
        register_table("tests/Nim-v0", Nim)
        assert isinstance(make("tests/Nim-v0"), Nim)
        with pytest.raises(ValueError, match="registered already"):
            register_table("tests/Nim-v0", TicTacToe)
    finally:
        del TABLES["tests/Nim-v0"]


def test_in_parallel_only_the_seat_to_move_is_heard_and_each_message_is_delivered_once() -> None:
    env = ParallelTable(TicTacToe())
    observations, infos = env.reset(seed=0)
    assert [len(observations[seat]) for seat in "XO"] == [2, 1]
    assert [infos[seat]["to_move"] for seat in "XO"] == [True, False]
    observations, *_, infos = env.step({"X": "5", "O": "6"})
    assert env.table.state == "1234X6789"
    assert observations["X"] == () and len(observations["O"]) == 1
    assert [infos[seat]["to_move"] for seat in "XO"] == [False, True]
    with pytest.raises(KeyError, match="turn of 'O'"):
        env.step({"X": "1"})
    _, rewards, terminations, truncations, _ = env.step({"O": "5"})
    assert rewards == {"X": 1.0, "O": -1.0} and env.agents == []
    assert all(terminations.values()) and not any(truncations.values())
    with pytest.raises(ResetNeeded):
        env.step({})


# Seats


SEAT_IDS = [f"loragym/{table}" for table in ("TicTacToe-v0", "ConnectFour-v0", "KuhnPoker-v0", "Bargaining-v0")]


def echo(messages: tuple[Message, ...]) -> str:
    """An opponent that never makes a legal move."""
    return "".join(message["role"][0] for message in messages)


def first_free_cell(messages: tuple[Message, ...]) -> str:
    board = messages[-1]["content"]
    return next(character for character in board if character in "123456789")


@pytest.mark.parametrize("env_id", SEAT_IDS)
@pytest.mark.parametrize("options", [{}, {"illegal": "retry:2", "seat": "alternate"}, {"illegal": "random"}])
def test_a_seat_is_a_gymnasium_environment(env_id: str, options: dict[str, Any], capsys: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(env_id, **options).unwrapped)


@pytest.mark.parametrize("env_id", SEAT_IDS)
def test_a_seats_seed_is_its_game_in_any_process(env_id: str) -> None:
    code = (
        f"import gymnasium; env = gymnasium.make('loragym:{env_id}', illegal='random', opponents='random');"
        "print(env.reset(seed=11), [env.step('nonsense')[:4] for _ in range(1)])"
    )
    elsewhere = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    env = gymnasium.make(env_id, illegal="random", opponents="random")
    assert elsewhere.stdout.strip() == f"{env.reset(seed=11)} {[env.step('nonsense')[:4]]}"


@pytest.mark.parametrize("env_id", SEAT_IDS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), said=st.lists(st.text() | st.sampled_from(["1", "bet", "Accept"]), max_size=6))
def test_any_reply_has_the_same_defined_result_at_the_same_seed(env_id: str, seed: int, said: list[str]) -> None:
    used, fresh = (gymnasium.make(env_id, illegal="retry:3") for _ in range(2))
    used.reset(seed=1)
    used.step("anything")
    assert used.reset(seed=seed) == fresh.reset(seed=seed)
    for text in said:
        result = used.step(text)
        assert result == fresh.step(text)
        assert result[0] in used.observation_space
        assert np.isfinite(result[1])
        if result[2] or result[3]:
            break
    assert used.reset() == fresh.reset()


@pytest.mark.parametrize("env_id", SEAT_IDS)
@pytest.mark.parametrize("text", ["", " ", "\x00", "\ud800", "💥" * 1000, "{0.__class__}", "x" * 1_000_000])
def test_a_reply_that_is_no_move_never_pays(env_id: str, text: str) -> None:
    env = gymnasium.make(env_id)
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(text)
    assert reward < 0 and terminated
    assert info["metrics"]["illegal"] == 1.0 and info["stop_reason"] == "illegal"


@pytest.mark.parametrize("env_id", SEAT_IDS)
def test_a_seat_leaves_the_global_generators_and_its_neighbours_alone(env_id: str) -> None:
    alone = gymnasium.make(env_id)
    expected = [alone.reset(seed=1), alone.reset(), alone.reset()]
    random.seed(0)
    np.random.seed(0)
    state = random.getstate(), repr(np.random.get_state())
    first, second = gymnasium.make(env_id), gymnasium.make(env_id)
    got = [first.reset(seed=1)]
    second.reset(seed=2)
    second.step("1")
    got += [first.reset(), first.reset()]
    assert got == expected
    assert (random.getstate(), repr(np.random.get_state())) == state


@pytest.mark.parametrize("env_id", SEAT_IDS)
def test_a_pickled_seat_goes_on_and_its_spec_survives_json(env_id: str) -> None:
    env = gymnasium.make(env_id, seat="alternate", illegal="random")
    env.reset(seed=4)
    twin = pickle.loads(pickle.dumps(env))
    assert twin.step("anything") == env.step("anything")
    assert twin.reset() == env.reset()
    spec = EnvSpec.from_json(env.spec.to_json())
    assert gymnasium.make(spec).reset(seed=9) == env.reset(seed=9)


@pytest.mark.parametrize("vectorise", [SyncVectorEnv, partial(AsyncVectorEnv, shared_memory=False)])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_seats_play_in_vectors(vectorise: Any, mode: AutoresetMode) -> None:
    envs = vectorise([partial(gymnasium.make, "loragym:loragym/KuhnPoker-v0", seat="first")] * 3, autoreset_mode=mode)
    observations, _ = envs.reset(seed=[1, 2, 3])
    assert [observation[0]["role"] for observation in observations] == ["system"] * 3
    _, rewards, terminations, _, infos = envs.step(("bet", "mumble", reply("bet", "length")))
    assert terminations.all() and rewards[1:].tolist() == [-2.0, -2.0]
    if mode == AutoresetMode.SAME_STEP:
        assert all("no legal move" in infos["final_obs"][i][0]["content"] for i in (1, 2))
    observations, *_ = envs.step(("check",) * 3)
    assert observations in envs.observation_space
    envs.close()


def test_the_seat_is_fixed_drawn_or_alternates_by_the_seed_and_the_deal_is_the_same() -> None:
    drawn = Seat("KuhnPoker-v0")
    seats = [drawn.reset(seed=seed)[1]["seat"] for seed in range(60)]
    assert 15 < seats.count("first") < 45
    alternating = Seat("KuhnPoker-v0", seat="alternate")
    assert [alternating.reset(seed=seed)[1]["seat"] for seed in (0, 1, 2, 7)] == ["first", "second", "first", "second"]
    assert [alternating.reset()[1]["seat"] for _ in range(3)] == ["first", "second", "first"]
    for seed in range(10):
        deals = set()
        for seat in ("first", "second"):
            env = Seat("KuhnPoker-v0", seat=seat)
            assert env.reset(seed=seed)[1]["seat"] == seat
            deals.add(env.table.state.cards)
        assert drawn.reset(seed=seed, options={"seat": "second"})[1]["seat"] == "second"
        deals.add(drawn.table.state.cards)
        assert len(deals) == 1


def test_opponents_are_scripts_functions_and_import_paths() -> None:
    env = Seat(TicTacToe, seat="O", opponents=first_free_cell)
    observation, info = env.reset(seed=0)
    assert "X 2 3" in observation[-1]["content"] and info["opponents"] == {"X": "first_free_cell"}
    observation, *_ = env.step("2")
    assert "X O X" in observation[-1]["content"]
    by_path = Seat("TicTacToe-v0", seat="O", opponents="test_envs_games_tables:first_free_cell")
    sys.modules.setdefault("test_envs_games_tables", sys.modules[__name__])
    assert by_path.reset(seed=0)[0] == Seat(TicTacToe, seat="O", opponents=first_free_cell).reset(seed=0)[0]


def test_a_function_is_given_all_that_its_seat_has_heard_and_said() -> None:
    heard: list[tuple[Message, ...]] = []

    def listener(messages: tuple[Message, ...]) -> str:
        heard.append(messages)
        return first_free_cell(messages)

    env = Seat(TicTacToe(), seat="X", opponents={"O": listener})
    env.reset(seed=0)
    env.step("1")
    env.step("3")
    assert [[message["role"] for message in messages] for messages in heard] == [
        ["system", "user"],
        ["system", "user", "assistant", "user"],
    ]
    assert heard[1][2]["content"] == "2"
    assert heard[1][:2] == heard[0]


def test_a_game_that_is_over_before_the_agent_speaks_ends_at_its_first_step() -> None:
    env = Seat("TicTacToe-v0", seat="O", opponents=echo)
    observation, _ = env.reset(seed=0)
    assert [message["role"] for message in observation] == ["system", "user"]
    assert "The reply of X was no legal move" in observation[1]["content"]
    observation, reward, terminated, truncated, info = env.step("5")
    assert (observation, reward, terminated, truncated) == ((), 1.0, True, False)
    assert info["metrics"]["opponents_illegal"] == 1.0 and info["metrics"]["illegal"] == 0.0


@pytest.mark.parametrize(
    ("kwargs", "complaint"),
    [
        ({"seat": "Z"}, "seat is one of"),
        ({"opponents": "perfect"}, "is one of random, optimal, a function"),
        ({"opponents": "no_such_module:f"}, "no_such_module"),
        ({"opponents": {"Z": "random"}}, r"there are no seats \['Z'\]"),
        ({"opponents": {"X": "random"}}, r"nobody plays \['O'\]"),
        ({"illegal": "x"}, "illegal is one of"),
    ],
)
def test_a_bad_seat_or_opponent_is_refused_at_once(kwargs: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Seat("TicTacToe-v0", **kwargs)


def test_a_seats_bad_reset_options_are_refused() -> None:
    env = Seat("TicTacToe-v0")
    with pytest.raises(ValueError, match="the option 'seat' is one of"):
        env.reset(options={"seat": "Z"})
    with pytest.raises(ValueError, match="unknown options"):
        env.reset(options={"chair": "X"})
    with pytest.raises(ValueError, match="already made takes no options"):
        Seat(TicTacToe(), illegal="random")


def test_the_rooms_without_games_need_no_pettingzoo() -> None:
    code = (
        "import sys; sys.modules['pettingzoo'] = None; import loragym.envs, gymnasium;"
        "gymnasium.make('loragym/GuessNumber-v0').reset(seed=0)\n"
        "try: gymnasium.make('loragym/TicTacToe-v0')\n"
        "except ImportError as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'loragym[games]'" in found.stdout


@pytest.mark.parametrize("env_id", SEAT_IDS)
def test_a_seat_has_a_solution_by_the_tables_teacher_that_ends_the_episode(env_id: str) -> None:
    scores: dict[str, list[float]] = {"random": [], "default": []}
    for teacher, got in scores.items():
        env = gymnasium.make(env_id, **({} if teacher == "default" else {"teacher": teacher})).unwrapped
        for seed in range(300 if "Kuhn" in env_id else 25):
            env.reset(seed=seed)
            replies = env.solution()
            assert env.solution() == replies
            total = 0.0
            for number, said in enumerate(replies, 1):
                _, reward, terminated, _, info = env.step(said)
                assert terminated == (number == len(replies))
                total += reward
            assert info["metrics"]["illegal"] == 0.0
            got.append(total)
    assert np.mean(scores["default"]) > np.mean(scores["random"])


def test_a_game_against_a_function_has_no_solution_that_is_known() -> None:
    env = Seat("TicTacToe-v0", opponents=first_free_cell)
    env.reset(seed=0)
    with pytest.raises(NotImplementedError, match="play against scripts"):
        env.solution()
    with pytest.raises(ValueError, match="teacher is one of random, optimal"):
        Seat("TicTacToe-v0", teacher="genius")


def test_a_registered_seat_says_which_arguments_it_takes() -> None:
    creator = load_env_creator(gymnasium.spec("loragym/ConnectFour-v0").entry_point)
    parameters = inspect.signature(creator).parameters
    assert {"seat", "opponents", "teacher", "illegal", "max_replies", "columns", "rows", "render_mode"} == set(
        parameters
    )
    assert parameters["columns"].default == 7
    with pytest.raises(TypeError, match="layers"):
        gymnasium.make("loragym/ConnectFour-v0", layers=3)
