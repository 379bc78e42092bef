"""The guessing game can be won by bisection, and only its own moves count."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loragym.envs.games.guess_number import GuessNumber
from loragym.messages import Reply, reply


def at_secret(secret: int, **kwargs: int) -> GuessNumber:
    """A game whose number is known: the first index at which it is."""
    env = GuessNumber(split=None, **kwargs)
    for index in range(env.num_problems or 0):
        if env.reset(options={"index": index})[1]["problem"] == str(secret):
            return env
    raise AssertionError(f"{secret} is never the number")


def play_by_bisection(env: GuessNumber) -> tuple[float, dict]:
    low, high = env.low, env.high
    total = 0.0
    while True:
        guess = (low + high) // 2
        (answer,), reward, terminated, truncated, info = env.step(f"Guess: {guess}")
        total += reward
        if terminated or truncated:
            return total, info
        low, high = (guess + 1, high) if answer["content"] == "Too low." else (low, guess - 1)


def test_bisection_finds_every_number_but_the_last_in_ten_guesses() -> None:
    env = GuessNumber(split=None)
    returns = {}
    for index in range(1024):
        secret = int(env.reset(options={"index": index})[1]["problem"])
        returns[secret], info = play_by_bisection(env)
        assert info["metrics"]["turns"] <= 10
        assert info["stop_reason"] == ("completed" if returns[secret] else "max_turns")
    assert returns == {secret: float(secret < 1023) for secret in range(1024)}


def test_the_game_is_explained_and_a_guess_is_asked_for() -> None:
    (instruction, request), info = GuessNumber(low=5, high=50, max_turns=7).reset(seed=0)
    assert (instruction["role"], request["role"]) == ("system", "user")
    for fact in ("5", "50", "7", "Guess: <number>"):
        assert fact in instruction["content"]
    assert "reference" not in info


def test_each_guess_is_answered_truthfully() -> None:
    env = at_secret(7, high=20)
    assert env.step("Guess: 3")[0][0]["content"] == "Too low."
    assert env.step("Guess: 9")[0][0]["content"] == "Too high."
    (answer,), reward, terminated, truncated, info = env.step("Guess: 7")
    assert (answer["content"], reward, terminated, truncated) == ("Correct.", 1.0, True, False)
    assert info == {"metrics": {"correct": 1.0, "turns": 3.0, "malformed": 0.0}, "stop_reason": "completed"}


@pytest.mark.parametrize("said", ["Guess: 7", " Guess: 7\n", "Guess:7", "Guess:  +7", "Guess: 007"])
def test_these_are_guesses(said: str) -> None:
    assert at_secret(7, high=20).step(said)[1] == 1.0


@pytest.mark.parametrize(
    "said",
    [
        "",
        "7",
        "guess: 7",
        "Guess: seven",
        "Guess: 7.",
        "I say Guess: 7",
        "Guess: 7\nGuess: 8",
        "Guess: ٧",
        "Guess: " + "7" * 21,
        "Guess: " + "7" * 1_000_000,
        reply("Guess: 7", "length"),
        reply("Guess: 7", "malformed"),
    ],
)
def test_these_are_none_and_cost_a_tenth(said: str | Reply) -> None:
    env = at_secret(7, high=20)
    (answer,), reward, terminated, truncated, info = env.step(said)
    assert reward == pytest.approx(-0.1)
    assert not terminated and not truncated
    assert "Guess: <number>" in answer["content"]
    assert info["metrics"] == {"correct": 0.0, "turns": 1.0, "malformed": 1.0}


def test_guesses_outside_the_range_are_answered_like_others() -> None:
    env = at_secret(7, high=20)
    assert env.step("Guess: -1")[0][0]["content"] == "Too low."
    assert env.step("Guess: 99999999999999999999")[0][0]["content"] == "Too high."


def test_the_turn_limit_truncates() -> None:
    env = at_secret(7, high=20, max_turns=2)
    assert env.step("Guess: 1")[2:4] == (False, False)
    _, reward, terminated, truncated, info = env.step("mumble")
    assert (terminated, truncated) == (False, True)
    assert reward == pytest.approx(-0.1)
    assert info == {"metrics": {"correct": 0.0, "turns": 2.0, "malformed": 1.0}, "stop_reason": "max_turns"}


def test_a_win_on_the_last_turn_is_a_win() -> None:
    env = at_secret(7, high=20, max_turns=1)
    assert env.step("Guess: 7")[1:4] == (1.0, True, False)


def test_the_splits_are_disjoint_and_cover_all_numbers() -> None:
    secrets: dict[str, set[str]] = {}
    for split in ("train", "test"):
        env = GuessNumber(split=split)
        secrets[split] = {env.reset(options={"index": index})[1]["problem"] for index in range(env.num_problems or 0)}
        assert env.reset(seed=8)[1]["problem"] in secrets[split]
    assert not secrets["train"] & secrets["test"]
    assert secrets["train"] | secrets["test"] == {str(number) for number in range(1024)}
    assert 70 < len(secrets["test"]) < 140


@given(st.lists(st.text() | st.builds("Guess: {}".format, st.integers(-5, 1030)), min_size=10, max_size=10))
def test_every_game_ends_within_its_turns_and_adds_up(said: list[str]) -> None:
    env = GuessNumber()
    env.reset(seed=0)
    total, over = 0.0, False
    while not over:
        _, reward, terminated, truncated, info = env.step(said.pop())
        total += reward
        over = terminated or truncated
    metrics = info["metrics"]
    assert total == pytest.approx(metrics["correct"] - 0.1 * metrics["malformed"])


@pytest.mark.parametrize(
    ("kwargs", "complaint"),
    [
        ({"low": 2, "high": 1}, "low=2, high=1"),
        ({"high": 10**30}, "expected -10"),
        ({"max_turns": 0}, "max_turns is at least 1"),
        ({"split": "dev"}, "'dev'"),
        ({"low": 0, "high": 0, "split": "test"}, "split 'test' has none"),
        ({"teacher": "guru"}, "teacher is one of"),
    ],
)
def test_a_bad_argument_is_refused_at_once(kwargs: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        GuessNumber(**kwargs)


@pytest.mark.parametrize("teacher", ["bisection", "possible"])
@pytest.mark.parametrize("kwargs", [{}, {"high": 30, "max_turns": 5}, {"low": -3, "high": 3, "max_turns": 2}])
def test_the_solution_finds_every_number_in_time(kwargs: dict[str, Any], teacher: Any) -> None:
    env = GuessNumber(split=None, teacher=teacher, **kwargs)
    for index in range(0, env.num_problems or 0, 7):
        env.reset(options={"index": index})
        replies = env.solution()
        assert len(replies) <= env.max_turns
        for message in replies:
            _, reward, terminated, _, _ = env.step(message["content"])
        assert terminated
        assert reward == 1.0


def test_a_teacher_of_what_is_possible_keeps_to_the_hints_and_differs_by_the_seed() -> None:
    env = GuessNumber(high=63, max_turns=60, split=None, teacher="possible")
    first = set()
    for seed in range(40):
        _, info = env.reset(seed=seed, options={"index": 20})
        secret = int(info["problem"])
        guesses = [int(message["content"].removeprefix("Guess: ")) for message in env.solution()]
        low, high = 0, 63
        for guess in guesses:
            assert low <= guess <= high
            low, high = (guess + 1, high) if guess < secret else (low, guess - 1)
        assert guesses[-1] == secret
        assert env.solution() == env.solution()
        first.add(guesses[0])
    assert len(first) > 20
