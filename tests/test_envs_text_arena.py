"""TextArena's games as environments: seeded, isolated, for one seat, and unbroken by whatever is said."""

import pickle
import random
import re
import subprocess
import sys
import threading
import time

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from loragym.envs.games.text_arena import TextArena, random_move
from loragym.envs.games.time_limit import TimeUp, time_limit
from loragym.messages import assistant, reply, user
from text_arena_opponents import first_free_square, mute

text_arena = pytest.importorskip("textarena", reason="needs pip install 'loragym[textarena]'")

GAMES = [
    "GuessTheNumber-v0",
    "TicTacToe-v0",
    "KuhnPoker-v0",
    "Sokoban-v0",
    "Mastermind-v0",
    "Poker-v0",
    "ThreePlayerIPD-v0",
    "SecretMafia-v0",
    "Countdown-v0",
    "SimpleNegotiation-v0",
]
ATTACKS = [
    "",
    " ",
    "\x00",
    "\ud800",
    "[",
    "[]",
    "[[[[" * 5000,
    "[-1]",
    "[٣]",
    f"[{'9' * 6000}]",
    "x" * 1_000_000,
    "{0.__class__}",
]


def moves_of(text: str) -> list[str]:
    return re.findall(r"\[[^\[\]\n]{1,12}\]", text) or ["[1]"]


def play(env: TextArena, seed: int, steps: int = 12) -> list[object]:
    """Everything that happens in an episode in which the agent says what the seed draws."""
    rng = random.Random(seed)
    observation, info = env.reset(seed=seed)
    seen: list[object] = [observation, info]
    for _ in range(steps):
        result = env.step(rng.choice(moves_of(observation[-1]["content"])))
        observation, _, terminated, truncated, _ = result
        seen.append(result)
        if terminated or truncated:
            break
    return seen


@pytest.mark.parametrize("observations", ["new", "wrapped"])
@pytest.mark.parametrize("game", GAMES)
def test_the_environment_checker_has_nothing_to_say(
    game: str, observations: str, recwarn: pytest.WarningsRecorder
) -> None:
    check_env(gymnasium.make("loragym/TextArena-v0", game=game, observations=observations).unwrapped)
    assert not [warning for warning in recwarn.list if "loragym" in str(warning.filename)]


@pytest.mark.parametrize("game", GAMES)
def test_the_seed_is_the_episode_in_a_used_environment_and_a_new_one(game: str) -> None:
    used = TextArena(game=game, seat=None)
    episodes = [play(used, seed) for seed in (1, 2, 1)]
    assert episodes[0] == episodes[2] == play(TextArena(game=game, seat=None), 1)


def test_the_seed_is_the_episode_in_another_process() -> None:
    code = "import test_envs_text_arena as t\nprint([t.play(t.TextArena(game=game, seat=None), 7) for game in t.GAMES])"
    command = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path), "PYTHONHASHSEED": "5", "PATH": ""}
    elsewhere = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert elsewhere.stdout.strip() == repr([play(TextArena(game=game, seat=None), 7) for game in GAMES])


@pytest.mark.parametrize("game", GAMES)
def test_the_global_generators_and_other_environments_are_left_alone(game: str) -> None:
    alone = play(TextArena(game=game), 3)
    random.seed(0)
    np.random.seed(0)
    before = random.getstate(), np.random.get_state()[1].tolist()
    first, second = TextArena(game=game), TextArena(game=game)
    rng = random.Random(3)
    observation, info = first.reset(seed=3)
    seen: list[object] = [observation, info]
    for _ in range(12):
        play(second, 8, steps=2)
        result = first.step(rng.choice(moves_of(observation[-1]["content"])))
        seen.append(result)
        observation = result[0]
        if result[2] or result[3]:
            break
    assert seen == alone
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


@pytest.mark.parametrize("game", ["GuessTheNumber-v0", "KuhnPoker-v0", "Sokoban-v0"])
def test_worlds_differ(game: str) -> None:
    env = TextArena(game=game)
    assert len({env.reset(seed=seed)[1]["problem"] for seed in range(30)}) > 20
    assert len({repr(play(env, seed)[2:]) for seed in range(12)}) > 1


@pytest.mark.parametrize("game", ["GuessTheNumber-v0", "TicTacToe-v0", "Sokoban-v0"])
def test_a_pickled_game_goes_on_where_it_was(game: str) -> None:
    for observations in ("new", "wrapped"):
        env = TextArena(game=game, observations=observations)  # type: ignore[arg-type]
        env.reset(seed=4)
        env.step("[4]")
        twin = pickle.loads(pickle.dumps(env))
        assert twin.step("[5]") == env.step("[5]")
        assert twin.reset() == env.reset()


def test_a_single_player_game_is_played_by_its_own_rules() -> None:
    env = TextArena(split=None)
    (opening,), info = env.reset(seed=1)
    assert info["seat"] == 0 and "[5]" in opening["content"]
    low, high, total = 1, 20, 0.0
    for _ in range(10):
        guess = (low + high) // 2
        (answer,), reward, terminated, _, info = env.step(f"My guess is [{guess}]")
        total += reward
        if terminated:
            break
        assert "is higher" in answer["content"] or "is lower" in answer["content"]
        assert f"[{guess}]" not in answer["content"]
        low, high = (guess + 1, high) if "higher" in answer["content"] else (low, guess - 1)
    assert total == 1.0 and info["metrics"]["won"] == 1.0 and info["stop_reason"] == "completed"
    assert info["rewards"] == {0: 1.0} and answer["content"].startswith("The game is over. Congratulations")


def test_each_seat_sees_its_own_game_and_earns_its_own_reward() -> None:
    # Both take the first free square, so the one that begins has 0, 2, 4 and 6: it wins by the diagonal.
    for seat, reward in ((0, 1.0), (1, -1.0)):
        env = TextArena(game="TicTacToe-v0", seat=seat, opponents=first_free_square, split=None)
        (opening,), info = env.reset(seed=0)
        assert f"You are Player {seat}" in opening["content"] and info["seat"] == seat
        conversation = [opening]
        while True:
            said = first_free_square(conversation)
            (answer,), got, terminated, truncated, info = env.step(said)
            conversation += [assistant(said), answer]
            if terminated:
                break
            assert got == 0.0 and not truncated
        assert got == reward and info["rewards"] == {0: 1.0, 1: -1.0}
        assert info["metrics"]["won"] == float(reward > 0) and info["metrics"]["illegal"] == 0.0


def test_a_seat_of_none_is_drawn_anew_each_time() -> None:
    env = TextArena(game="TicTacToe-v0", seat=None)
    assert {env.reset(seed=seed)[1]["seat"] for seed in range(20)} == {0, 1}


def test_an_illegal_move_is_answered_counted_and_loses_when_repeated() -> None:
    env = TextArena(game="TicTacToe-v0")
    env.reset(seed=0)
    (answer,), reward, terminated, _, info = env.step("I resign")
    assert "invalid move" in answer["content"] and (reward, terminated) == (0.0, False)
    assert info["metrics"]["illegal"] == 1.0
    _, reward, terminated, truncated, info = env.step("[77]")
    assert (reward, terminated, truncated) == (-1.0, True, False)
    assert info["metrics"] == {"won": 0, "turns": 2, "illegal": 2, "opponent_illegal": 0, "game_error": 0}


def test_an_opponent_that_makes_no_moves_loses_and_is_counted() -> None:
    env = TextArena(game="TicTacToe-v0", opponents=mute)
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step("[4]")
    assert (reward, terminated) == (1.0, True)
    assert info["metrics"]["opponent_illegal"] == 2.0 and info["metrics"]["won"] == 1.0


def test_a_game_that_ended_before_the_first_turn_ends_with_the_first_reply() -> None:
    env = TextArena(game="TicTacToe-v0", opponents=mute, seat=1)
    (opening,), _ = env.reset(seed=0)
    assert opening["content"].startswith("The game is over.")
    _, reward, terminated, _, _ = env.step("[0]")
    assert (reward, terminated) == (1.0, True)


@pytest.mark.parametrize("stop_reason", ["length", "malformed"])
def test_a_reply_that_did_not_finish_is_no_move(stop_reason: str) -> None:
    env = TextArena(game="TicTacToe-v0")
    env.reset(seed=0)
    assert env.step(reply("[4]", stop_reason))[4]["metrics"]["illegal"] == 1.0  # type: ignore[arg-type]


def test_the_turn_limit_truncates() -> None:
    env = TextArena(max_turns=3)
    env.reset(seed=0)
    results = [env.step(f"[{number}]") for number in (1, 2, 3)]
    assert [result[2] or result[3] for result in results] == [False, False, True]
    assert results[-1][2:4] == (False, True) and results[-1][4]["stop_reason"] == "max_turns"


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("attack", ATTACKS, ids=range(len(ATTACKS)))
def test_any_text_has_a_defined_result(game: str, attack: str) -> None:
    env = TextArena(game=game, max_turns=5)
    env.reset(seed=0)
    for _ in range(5):
        observation, reward, terminated, truncated, info = env.step(attack)
        assert observation in env.observation_space and np.isfinite(reward)
        assert set(info["metrics"]) == {"won", "turns", "illegal", "opponent_illegal", "game_error"}
        if terminated or truncated:
            break
    assert terminated or truncated


def test_a_game_that_fails_on_the_agents_text_is_lost_and_told() -> None:
    env = TextArena(game="CharacterConclave-v0")  # its code calls a function with too few arguments
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step("Hello!")
    assert (reward, terminated, info["stop_reason"]) == (-1.0, True, "game_error")
    assert info["metrics"]["game_error"] == 1.0 and "TypeError" in info["failure"]


def test_an_endless_game_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loragym.envs.games.text_arena_game.STEP_SECONDS", 0.2)
    env = TextArena(game="PublicGoodsGame-v0", opponents=mute)  # looks for the next player when none is left
    env.reset(seed=5)
    started, over, info = time.monotonic(), False, {}
    while not over:
        _, _, terminated, truncated, info = env.step("")
        over = terminated or truncated
    assert time.monotonic() - started < 20
    assert info["stop_reason"] in ("game_error", "max_turns", "completed")


def test_a_time_limit_breaks_loops_in_any_thread_and_leaves_the_quick_alone() -> None:
    outcomes: list[str] = []

    def loop() -> None:
        try:
            with time_limit(0.1):
                while True:
                    pass
        except TimeUp:
            outcomes.append("broken off")
        with time_limit(5):
            outcomes.append("done")

    thread = threading.Thread(target=loop)
    thread.start()
    loop()
    thread.join(10)
    assert sorted(outcomes) == ["broken off", "broken off", "done", "done"]


@pytest.mark.parametrize("game", ["TicTacToe-v0", "KuhnPoker-v0-short", "GuessTheNumber-v0"])
def test_a_solution_plays_by_the_rules_to_the_end(game: str) -> None:
    env = TextArena(game=game)
    for seed in range(5):
        env.reset(seed=seed)
        replies = env.solution()
        assert env.solution() == replies
        for number, said in enumerate(replies, 1):
            _, _, terminated, truncated, info = env.step(said)
            assert (terminated or truncated) == (number == len(replies))
        if game != "GuessTheNumber-v0":  # which lists no moves
            assert info["metrics"]["illegal"] == 0


def test_a_game_against_a_function_has_no_solution_that_is_known() -> None:
    env = TextArena(game="TicTacToe-v0", opponents=lambda conversation: "[4]")
    env.reset(seed=0)
    with pytest.raises(NotImplementedError, match="against 'random'"):
        env.solution()


def test_random_moves_are_those_that_were_listed_last() -> None:
    conversation = [
        user("Say '[1]'."),
        assistant("[9]"),
        user("Say '[7]'.\n\n[GAME] Say '[2]'.\n[Player 0] [3]\nPlayer 0, submitted move: '[3]'."),
        user("Your turn."),
    ]
    assert random_move(conversation, np.random.default_rng(0)) == "[2]"
    drawn = {random_move([user("'[1]', '[2]' or [3]")], np.random.default_rng(seed)) for seed in range(30)}
    assert drawn == {"[1]", "[2]", "[3]"}
    assert random_move([user("Talk.")], np.random.default_rng(0)) == "[pass]"


def test_a_spec_survives_json() -> None:
    kwargs = {"game": "TicTacToe-v0", "opponents": "text_arena_opponents:first_free_square", "seat": 1}
    env = gymnasium.make("loragym/TextArena-v0", **kwargs)
    assert env.spec is not None
    again = gymnasium.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.reset(seed=9) == env.reset(seed=9)
    assert again.step("[8]") == env.step("[8]")


def test_the_splits_are_disjoint() -> None:
    train, test = TextArena(num_worlds=300), TextArena(num_worlds=300, split="test")
    worlds = [
        {env.reset(options={"index": index})[1]["problem"] for index in range(env.num_problems or 0)}
        for env in (train, test)
    ]
    assert not worlds[0] & worlds[1] and sum(map(len, worlds)) == 300 and 10 < len(worlds[1]) < 60


@pytest.mark.parametrize(
    ("kwargs", "error", "complaint"),
    [
        ({"game": "TicTacTo-v0"}, ValueError, "has no game 'TicTacTo-v0'; it has"),
        ({"game": "TicTacToe-v0", "seat": 2}, ValueError, "seat is from 0 to 1"),
        ({"game": "TicTacToe-v0", "num_players": 3}, ValueError, "does not take num_players=3"),
        ({"game": "TicTacToe-v0", "opponents": [mute, mute]}, ValueError, "one for each of 1 other seats; got 2"),
        ({"opponents": 3}, TypeError, "not iterable"),
        ({"observations": "all"}, ValueError, "observations is"),
        ({"max_turns": 0}, ValueError, "max_turns is at least 1"),
        ({"num_worlds": 0}, ValueError, "num_worlds is from 1"),
        ({"game_options": {"no_such": 1}}, ValueError, "cannot be made: TypeError"),
        ({"game": "Debate-v0"}, ValueError, "cannot be made: ValueError: OpenRouter"),
        ({"opponents": "random_"}, ValueError, "import path"),
    ],
)
def test_a_bad_argument_is_refused_at_once(
    kwargs: dict, error: type[Exception], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    with pytest.raises(error, match=complaint):
        TextArena(**({"game": "TicTacToe-v0"} | kwargs if kwargs.get("opponents") == "random_" else kwargs))


def test_a_game_whose_word_list_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(ImportError, match=r"python -m nltk\.downloader words"):
        TextArena(game="Hangman-v0")


def test_without_text_arena_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['textarena'] = None\n"
        "import gymnasium, loragym.envs\n"
        "gymnasium.make('loragym/TextArena-v0')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and "pip install 'loragym[textarena]'" in result.stderr
