"""Each wrapper does what its page says, keeps the laws, and lets through what a trainer asks for."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import worlds
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from loragym.envs import Outcome, TextEnv, checked_group_score, env_attribute, scores_groups
from loragym.envs.conformance import LAWS, check, spec_of
from loragym.envs.making import make_env, takes_argument
from loragym.envs.tool_text import reply_with_call_lines, reply_with_tool_calls
from loragym.envs.wrappers import (
    WRAPPERS,
    ClipReward,
    FewShot,
    FlatText,
    LengthBudget,
    RecordTranscripts,
    StopReasonReward,
    SystemPrompt,
    TurnCost,
    TurnLimit,
    wrapped,
)
from loragym.envs.wrappers.limits import counter, longest_beginning
from loragym.messages import Message, Reply, assistant, reply, system, user

GUESS = "loragym/GuessNumber-v0"
SUMS = "loragym/Arithmetic-v0"


class Shop(TextEnv):
    """Pays what is asked for, in numbers; keeps what it heard; offers a tool; ends at "bye"."""

    tools = ({"name": "price", "description": "Looks up a price.", "parameters": {"type": "object", "properties": {}}},)

    def begin(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        self.heard: list[Reply] = []
        return [system("A shop."), user("What would you like?")], {"opened": True}

    def respond(self, reply: Reply) -> Outcome:
        self.heard.append(reply)
        text = reply["content"]
        reward = float(text) if text.lstrip("-").replace(".", "").isdigit() else 0.0
        return Outcome(messages=[user("Else?")], reward=reward, terminated=text == "bye", metrics={"sales": reward})


class JudgedShop(Shop):
    """Has rewards for groups: the number of characters of each conversation's first message and its replies."""

    def score_group(self, episodes: Sequence[Sequence[Message]]) -> list[float]:
        self.judged = [list(episode) for episode in episodes]
        return [
            float(
                len(episode[0]["content"])
                + sum(len(message["content"]) for message in episode if message["role"] == "assistant")
            )
            for episode in episodes
        ]


class Ranked(worlds.Ranked):
    """Three turns, rewards for groups, and whatever a render mode asks for."""

    def __init__(self, *, render_mode: str | None = None) -> None:
        super().__init__(turns=3)
        self.render_mode = render_mode


def rewards(env: gymnasium.Env, *replies: Reply | str) -> list[float]:
    env.reset(seed=0)
    return [float(env.step(said)[1]) for said in replies]


# ------------------------------------------------------------------------------------------------------------- limits


def test_the_turn_limit_breaks_off_and_says_so() -> None:
    env = TurnLimit(make_env(GUESS, {"max_turns": 10}), 2)
    for _ in range(2):
        env.reset(seed=0)
        *_, terminated, truncated, info = env.step("Guess: 1")
        assert (terminated, truncated, info["metrics"]["turns"]) == (False, False, 1)
        assert "stop_reason" not in info
        *_, terminated, truncated, info = env.step("Guess: 1")
        assert (terminated, truncated, info["stop_reason"]) == (False, True, "max_turns")


def test_an_episode_that_ends_with_its_last_turn_is_not_broken_off() -> None:
    env = TurnLimit(make_env(GUESS), 1)
    _, info = env.reset(seed=0)
    *_, terminated, truncated, info = env.step(f"Guess: {info['problem']}")
    assert (terminated, truncated, info["stop_reason"]) == (True, False, "completed")


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "3"])
def test_a_limit_is_a_whole_number_from_one_up(limit: Any) -> None:
    with pytest.raises(ValueError, match="from 1 up, got"):
        TurnLimit(Shop(), limit)
    with pytest.raises(ValueError, match="from 1 up, got"):
        LengthBudget(Shop(), limit)


def test_an_episodes_budget_cuts_the_reply_that_goes_over_it_and_ends_the_episode() -> None:
    shop = Shop()
    env = LengthBudget(shop, 10)
    env.reset(seed=0)
    *_, terminated, truncated, info = env.step("sixsix")
    assert (terminated, truncated, info["metrics"]["length"]) == (False, False, 6)
    *_, terminated, truncated, info = env.step("sevenses")
    assert (terminated, truncated, info["stop_reason"]) == (False, True, "budget")
    assert info["metrics"]["length"] == 10
    assert shop.heard == [reply("sixsix"), reply("seve", "length")]


def test_a_reply_that_fits_just_so_uses_up_the_budget_uncut() -> None:
    shop = Shop()
    env = LengthBudget(shop, 6)
    env.reset(seed=0)
    *_, truncated, info = env.step("sixsix")
    assert (truncated, info["stop_reason"], shop.heard) == (True, "budget", [reply("sixsix")])
    env.reset(seed=0)
    *_, terminated, truncated, info = env.step("bye")
    assert (terminated, truncated, info["stop_reason"]) == (True, False, "completed")


def test_a_replys_budget_cuts_each_reply_and_ends_nothing() -> None:
    shop = Shop()
    env = LengthBudget(shop, 3, per="reply")
    env.reset(seed=0)
    for said, heard in (("four", reply("fou", "length")), ("one", reply("one")), ("1234", reply("123", "length"))):
        *_, terminated, truncated, _ = env.step(said)
        assert not terminated and not truncated
        assert shop.heard[-1] == heard


def test_observations_count_where_they_are_asked_to() -> None:
    env = LengthBudget(Shop(), 60, include_observations=True)
    env.reset(seed=0)
    opening = len("A shop.") + len("What would you like?")
    assert env.step("12345")[4]["metrics"]["length"] == opening + 5 + len("Else?")
    with pytest.raises(ValueError, match="goes with per='episode'"):
        LengthBudget(Shop(), 60, per="reply", include_observations=True)


def test_thinking_is_cut_before_the_content_and_calls_that_do_not_fit_are_dropped() -> None:
    call = {"id": "1", "name": "price", "arguments": {}}
    size = len(json.dumps(call))
    said: Reply = {**reply("answer"), "thinking": "hmhm", "tool_calls": [call, call]}
    for budget, thinking, content, calls in (
        (2, "hm", "", 0),
        (4, "hmhm", "", 0),
        (7, "hmhm", "ans", 0),
        (10 + size, "hmhm", "answer", 1),
        (10 + 2 * size, "hmhm", "answer", 2),
    ):
        shop = Shop()
        env = LengthBudget(shop, budget)
        env.reset(seed=0)
        env.step(said)
        (heard,) = shop.heard
        assert (heard["thinking"], heard["content"], len(heard["tool_calls"])) == (thinking, content, calls)
        assert heard["stop_reason"] == ("stop" if calls == 2 else "length")
    assert said == {**reply("answer"), "thinking": "hmhm", "tool_calls": [call, call]}  # the agent's own is not touched


def letters(text: str) -> int:
    return sum(character.isalpha() for character in text)


class Pairs:
    """A tokenizer: two characters make a token, and two tokens mark the beginning and the end of a text."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        tokens = [hash(text[at : at + 2]) for at in range(0, len(text), 2)]
        return [0, *tokens, 0] if add_special_tokens else tokens


class Tiktoken(Pairs):
    def encode(self, text: str) -> list[int]:  # type: ignore[override]
        raise ValueError("text spells a special token")

    def encode_ordinary(self, text: str) -> list[int]:
        return super().encode(text, add_special_tokens=False)


PAIRS = Pairs()


@pytest.mark.parametrize(
    ("count", "text", "length"),
    [
        ("characters", "one two", 7),
        ("words", "one two", 2),
        (letters, "one two", 6),
        ("test_envs_wrappers:letters", "one two", 6),
        ("test_envs_wrappers:PAIRS", "one two", 4),
        (PAIRS, "one two", 4),
        (Tiktoken(), "one two", 4),
        (PAIRS, "", 0),
        (PAIRS, "\ud800x", 1),
    ],
)
def test_what_can_be_counted(count: Any, text: str, length: int) -> None:
    assert counter(count)(text) == length


def test_a_tokenizer_file_can_be_named(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"one": 0, "two": 1, "[UNK]": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    shop = Shop()
    env = LengthBudget(shop, 2, count=str(tmp_path / "tokenizer.json"))
    env.reset(seed=0)
    env.step("one two one")
    assert shop.heard[0]["content"].split() == ["one", "two"]
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read as a tokenizer"):
        counter(str(tmp_path / "broken.json"))


@pytest.mark.parametrize(
    ("count", "error", "complaint"),
    [
        (
            "letters",
            ValueError,
            "count is one of 'characters', 'words', the path of a tokenizer.json, or an import path",
        ),
        ("no_such_module:letters", ValueError, "there is no module 'no_such_module'"),
        (7, TypeError, "a function of a text or a tokenizer"),
    ],
)
def test_what_cannot_be_counted(count: Any, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        counter(count)


@given(
    text=st.text(max_size=300),
    budget=st.integers(-1, 200),
    count=st.sampled_from(["characters", "words", letters, PAIRS]),
)
def test_the_longest_beginning_fits_and_one_character_more_does_not(text: str, budget: int, count: Any) -> None:
    measure = counter(count)
    kept = longest_beginning(text, budget, measure)
    assert text.startswith(kept)
    assert measure(kept) <= max(0, budget)
    if budget > 0 and kept != text:
        assert measure(text[: len(kept) + 1]) > budget


def test_cutting_a_megabyte_asks_for_little_more_than_what_is_kept() -> None:
    asked = []

    def count(text: str) -> int:
        asked.append(len(text))
        return len(text)

    env = LengthBudget(Shop(), 100, count=count)
    env.reset(seed=0)
    env.step("x" * 1_000_000)
    assert sum(asked) < 1_000_000 + 100 * 50


# ------------------------------------------------------------------------------------------------------------ rewards


def test_each_turn_costs_after_the_free_ones() -> None:
    assert rewards(TurnCost(Shop(), 0.25), "1", "0", "2") == [0.75, -0.25, 1.75]
    env = TurnCost(Shop(), 0.25, free_turns=2)
    assert rewards(env, "1", "0", "2") == [1.0, 0.0, 1.75]
    assert env.step("0")[4]["metrics"] == {"turn_cost": 0.5, "sales": 0.0}
    with pytest.raises(ValueError, match="finite"):
        TurnCost(Shop(), float("nan"))


def test_rewards_are_clipped_step_by_step_or_as_a_sum() -> None:
    said = ("5", "-7", "0.5", "1")
    assert rewards(ClipReward(Shop(), -1, 1), *said) == [1.0, -1.0, 0.5, 1.0]
    # The sums 5, -2, -1.5 and -0.5 clip to 1, -1, -1 and -0.5.
    assert rewards(ClipReward(Shop(), -1, 1, per="episode"), *said) == [1.0, -2.0, 0.0, 0.5]
    assert rewards(ClipReward(Shop(), high=2), *said) == [2.0, -7.0, 0.5, 1.0]
    assert rewards(ClipReward(Shop(), low=0), *said) == [5.0, 0.0, 0.5, 1.0]
    env = ClipReward(Shop(), -1, 1)
    rewards(env, *said)
    assert env.step("1")[4]["metrics"]["unclipped"] == 0.5


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=8), st.integers(-3, 0), st.integers(1, 3))
def test_an_episodes_clipped_rewards_add_up_to_its_clipped_sum(numbers: list[int], low: int, high: int) -> None:
    env = ClipReward(Shop(), low, high, per="episode")
    assert sum(rewards(env, *map(str, numbers))) == min(max(sum(numbers), low), high)


@pytest.mark.parametrize("bounds", [{}, {"low": 1, "high": 0}, {"low": float("nan")}, {"high": 1, "per": "turn"}])
def test_bounds_that_are_none_are_refused(bounds: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected low <= high|per is one of"):
        ClipReward(Shop(), **bounds)


def test_a_reply_is_rewarded_by_why_it_ended() -> None:
    env = StopReasonReward(Shop(), reply={"length": -0.5, "malformed": -2})
    assert rewards(env, "3", reply("3", "length"), reply("3", "malformed")) == [3.0, 2.5, 1.0]
    env = StopReasonReward(Shop(), reply={"length": -0.5}, replace=True)
    assert rewards(env, "3", reply("3", "length")) == [3.0, -0.5]


def test_an_episode_is_rewarded_by_why_it_ended() -> None:
    env = StopReasonReward(TurnLimit(Shop(), 2), reply={"length": -1}, episode={"max_turns": -10, "completed": 10})
    assert rewards(env, "1", reply("1", "length")) == [1.0, -10.0]
    assert rewards(env, "bye") == [10.0]
    with pytest.raises(ValueError, match=r"got \['max_turns'\]; an episode's reasons go into episode="):
        StopReasonReward(Shop(), reply={"max_turns": -1})
    with pytest.raises(ValueError, match="finite"):
        StopReasonReward(Shop(), episode={"max_turns": float("inf")})


# ------------------------------------------------------------------------------------------------------------ opening


@pytest.mark.parametrize(
    ("existing", "opening"),
    [
        ("join", [system("Be brief.\n\nA shop."), user("What would you like?")]),
        ("replace", [system("Be brief."), user("What would you like?")]),
        ("keep", [system("A shop."), user("What would you like?")]),
    ],
)
def test_an_instruction_goes_first(existing: Any, opening: list[Message]) -> None:
    env = SystemPrompt(Shop(), "Be brief.", existing=existing)
    for _ in range(2):
        assert env.reset(seed=0) == (tuple(opening), {"opened": True})


def test_an_instruction_goes_before_a_question_without_one() -> None:
    opening, _ = SystemPrompt(make_env(SUMS, {"few_shot": 0}), "Be brief.").reset(seed=0)
    assert [message["role"] for message in opening] == ["system", "user"]


def test_worked_examples_stand_between_instruction_and_question() -> None:
    examples = [user("Something?"), assistant("1")]
    env = FewShot(Shop(), examples)
    assert list(env.reset(seed=0)[0]) == [system("A shop."), *examples, user("What would you like?")]
    env.reset(seed=0)[0][1]["content"] = "scribble"
    assert env.reset(seed=0)[0][1]["content"] == "Something?"


def test_examples_can_be_taken_from_the_training_problems() -> None:
    env = FewShot(make_env(SUMS, {"few_shot": 0, "split": "test", "high": 9}), 3)
    training = make_env(SUMS, {"few_shot": 0, "high": 9})
    assert training.unwrapped.num_problems is not None
    known = {
        training.reset(options={"index": index})[0][-1]["content"]: training.reset(options={"index": index})[1][
            "reference"
        ]
        for index in range(training.unwrapped.num_problems)
    }
    shown = [env.reset(seed=seed)[0] for seed in range(9)]
    assert all(opening[:-1] == shown[0][:-1] for opening in shown)
    questions, answers = shown[0][:-1:2], shown[0][1:-1:2]
    assert len(questions) == len(answers) == 3
    for question, answer in zip(questions, answers, strict=True):
        assert known[question["content"]] == answer["content"]


def test_the_question_that_is_asked_is_not_among_its_examples() -> None:
    # Two problems in all: the example is always the other one.
    env = FewShot(make_env(SUMS, {"few_shot": 0, "split": None, "low": 1, "high": 2}), 2)
    for seed in range(20):
        *examples, question = env.reset(seed=seed)[0]
        assert len(examples) == 4
        assert question not in examples


def test_examples_need_an_environment_that_can_be_made_again_and_has_answers() -> None:
    with pytest.raises(ValueError, match=r"gymnasium\.make\(\) made"):
        FewShot(Shop(), 2)
    with pytest.raises(ValueError, match="GuessNumber-v0 gives no info"):
        FewShot(make_env(GUESS), 2).reset(seed=0)
    with pytest.raises(TypeError, match=r"examples\[0\]"):
        FewShot(Shop(), ["2 + 2 = 4"])


def test_what_the_agent_sees_is_what_is_rendered() -> None:
    env = FewShot(SystemPrompt(make_env(SUMS, {"few_shot": 0, "render_mode": "ansi"}), "Be brief."), [user("Q")])
    opening, _ = env.reset(seed=0)
    env.step("12")
    assert env.render() == f"[system] Be brief.\n[user] Q\n[user] {opening[-1]['content']}\n[assistant] 12"


# ---------------------------------------------------------------------------------------------------------- recording


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def test_each_episode_becomes_a_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "episodes.jsonl"
    env = RecordTranscripts(make_env(GUESS, {"high": 9, "split": None}), path)
    _, info = env.reset(seed=3, options={"index": 4})
    env.step("\ud800")
    env.step({**reply(f"Guess: {info['problem']}"), "thinking": "now"})
    env.reset(seed=4)
    env.step("Guess: 1")
    env.close()
    first, second = read_lines(path)
    assert (first["env"], first["seed"], first["options"]) == (GUESS, 3, {"index": 4})
    assert [message["role"] for message in first["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    assert first["messages"][2]["content"] == "\ud800"
    assert first["messages"][4]["thinking"] == "now"
    assert first["rewards"] == [-0.1, 1.0] and first["reward"] == pytest.approx(0.9)
    assert (first["terminated"], first["truncated"], first["stop_reason"]) == (True, False, "completed")
    assert first["metrics"] == {"correct": 1.0, "turns": 2.0, "malformed": 1.0}
    assert first["info"]["problem"] == info["problem"]
    assert (second["seed"], second["stop_reason"], second["terminated"]) == (4, "abandoned", False)


def test_some_episodes_may_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    env = RecordTranscripts(make_env(SUMS), path, every=3, unfinished=False)
    for seed in range(7):
        env.reset(seed=seed)
        env.step("1")
    env.reset(seed=7)
    env.close()
    assert [line["seed"] for line in read_lines(path)] == [0, 3, 6]


def test_writers_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    make = [lambda: RecordTranscripts(make_env(SUMS), path)] * 3
    envs = gymnasium.vector.AsyncVectorEnv(make, shared_memory=False)
    envs.reset(seed=0)
    for _ in range(20):
        envs.step(("x" * 5000,) * 3)
    envs.close()
    assert len(read_lines(path)) == 30


# --------------------------------------------------------------------------------------------------------------- text


def test_strings_in_and_out() -> None:
    env = FlatText(make_env(GUESS, {"high": 9}))
    observation, info = env.reset(seed=0)
    assert observation.startswith("I think of an integer from 0 to 9") and observation.endswith(
        "\n\nWhat is your first guess?"
    )
    assert observation in env.observation_space
    assert env.step("what?")[:2] == ('That is not a guess. Say "Guess: <number>" and nothing else.', -0.1)
    assert env.step(f"Guess: {info['problem']}")[:3] == ("Correct.", 1.0, True)
    with pytest.raises(TypeError, match="an action is a str"):
        env.step(reply("Guess: 1"))


def test_roles_and_history_are_shown_where_asked_for() -> None:
    env = FlatText(make_env(SUMS, {"few_shot": 0}), roles=True)
    assert env.reset(seed=0)[0].startswith("[user] What is")
    env = FlatText(make_env(GUESS, {"high": 9}), history=True, roles=True)
    opening, _ = env.reset(seed=0)
    assert env.step("Guess: 0")[0] in {
        f"{opening}\n\n[assistant] Guess: 0\n\n[user] {hint}" for hint in ("Too low.", "Correct.")
    }


def test_flat_text_passes_gymnasiums_checker_and_vectors() -> None:
    env = FlatText(make_env(GUESS))
    with pytest.warns(UserWarning, match="unwrapped version"):
        check_env(env)
    assert env.spec is not None
    assert gymnasium.make(EnvSpec.from_json(env.spec.to_json())).reset(seed=1) == env.reset(seed=1)
    envs = gymnasium.vector.SyncVectorEnv([lambda: FlatText(make_env(SUMS))] * 2)
    observations, _ = envs.reset(seed=[0, 1])
    assert all(isinstance(observation, str) for observation in observations)
    assert envs.step(envs.action_space.sample())[1].shape == (2,)


def test_tools_are_described_and_called_in_text() -> None:
    shop = Shop()
    env = FlatText(shop)
    opening, _ = env.reset(seed=0)
    assert '{"name": "price", "description": "Looks up a price."' in opening
    env.step('Let me see. <tool_call>{"name": "price", "arguments": {"of": "tea"}}</tool_call>')
    assert shop.heard[0]["content"] == "Let me see."
    assert shop.heard[0]["tool_calls"] == [{"id": "call_0", "name": "price", "arguments": {"of": "tea"}}]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<tool_call>{}</tool_call>", "a tool call is"),
        ("<tool_call>not json</tool_call>", "which is not JSON"),
        ('<tool_call>{"name": "a", "arguments": [1]}</tool_call>', "arguments is an object, got [1]"),
        ('<tool_call>{"name": "a"}', "<tool_call> without </tool_call>"),
        ("<tool_call>" * 50_000, "<tool_call> without </tool_call>"),
        (f"<tool_call>{'[' * 90_000}</tool_call>", "which is not JSON"),
        (f"<tool_call>{'[' * 200_000}</tool_call>", "of at most 100000 characters"),
        (f'<tool_call>{{"name": {"9" * 9000}}}</tool_call>', "which is not JSON"),
    ],
)
def test_a_call_that_cannot_be_read_makes_the_reply_malformed(text: str, problem: str) -> None:
    said = reply_with_tool_calls(text)
    assert (said["content"], said["stop_reason"]) == (text, "malformed")
    assert problem in said["problem"]
    assert "tool_calls" not in said


@given(st.text())
def test_text_without_calls_stays_as_it_is(text: str) -> None:
    assert reply_with_tool_calls(text) == reply(text) or "<tool_call>" in text


def test_calls_can_be_lines() -> None:
    said = reply_with_call_lines(["First this.", '{"name": "a", "arguments": {"x": 1}}', '{"name": "b"}', "Then that."])
    assert said["content"] == "First this.\nThen that."
    assert [(call["id"], call["name"], call["arguments"]) for call in said["tool_calls"]] == [
        ("call_0", "a", {"x": 1}),
        ("call_1", "b", {}),
    ]
    assert reply_with_call_lines(["no call"]) == reply("no call")
    with pytest.raises(ValueError, match="which is not JSON"):
        reply_with_call_lines(["{name: a}"])


# ------------------------------------------------------------------------------------------------ what reaches through

AROUND: dict[str, Callable[[gymnasium.Env], gymnasium.Env]] = {
    "TurnLimit": lambda env: TurnLimit(env, 5),
    "LengthBudget": lambda env: LengthBudget(env, 1000),
    "TurnCost": lambda env: TurnCost(env, 0.125),
    "ClipReward": lambda env: ClipReward(env, -1, 1),
    "StopReasonReward": lambda env: StopReasonReward(env, reply={"length": -1}, episode={"max_turns": -1}),
    "SystemPrompt": lambda env: SystemPrompt(env, "Be brief."),
    "FewShot": lambda env: FewShot(env, [user("Q"), assistant("A")]),
    "RecordTranscripts": lambda env: RecordTranscripts(env, "/dev/null"),
    "FlatText": FlatText,
}


def test_every_wrapper_is_tried_below() -> None:
    assert set(AROUND) == set(WRAPPERS)


@pytest.mark.parametrize("name", AROUND)
def test_tools_problems_and_group_rewards_reach_through(name: str) -> None:
    assert env_attribute(AROUND[name](Shop()), "tools") == Shop.tools
    sums = make_env(SUMS)
    assert env_attribute(AROUND[name](sums), "num_problems") == sums.unwrapped.num_problems
    assert not scores_groups(AROUND[name](Shop()))
    shop = JudgedShop()
    env = AROUND[name](shop)
    assert scores_groups(env)
    opening, _ = env.reset(seed=0)
    episodes = (
        [[*opening, assistant(text)] for text in ("a", "bcd")] if name != "FlatText" else [[system("A shop.")]] * 2
    )
    score = checked_group_score(env, episodes)
    assert score is not None
    assert list(score.rewards) == ([7.0, 7.0] if name == "FlatText" else [8.0, 10.0])
    assert all(judged[0] == system("A shop.") for judged in shop.judged)


def test_a_group_is_judged_by_what_the_world_heard() -> None:
    shop = JudgedShop()
    env = LengthBudget(shop, 4)
    opening, _ = env.reset(seed=0)
    checked_group_score(
        env, [[*opening, assistant("abc"), user("Else?"), assistant("def")], [*opening, assistant("x")]]
    )
    assert [[m["content"] for m in judged if m["role"] == "assistant"] for judged in shop.judged] == [
        ["abc", "d"],
        ["x"],
    ]


@pytest.mark.parametrize("name", [name for name in AROUND if name != "FlatText"])
@pytest.mark.parametrize("env_id", [GUESS, "test_envs_wrappers:Ranked"])
def test_a_wrapped_environment_keeps_all_laws(name: str, env_id: str) -> None:
    spec = AROUND[name](make_env(spec_of(env_id))).spec
    assert spec is not None and len(spec.additional_wrappers) == 1
    assert check(spec, [law for law in LAWS if law != "same_episode_elsewhere"]) == []


@pytest.mark.parametrize("name", AROUND)
def test_a_wrapper_is_pickled_with_its_state(name: str) -> None:
    env = AROUND[name](make_env(GUESS))
    env.reset(seed=0)
    env.step("Guess: 5")
    twin = pickle.loads(pickle.dumps(env))
    assert twin.step("Guess: 6") == env.step("Guess: 6")


# ------------------------------------------------------------------------------------------------------------- by name


def test_wrappers_are_put_on_by_name_from_the_inside_out() -> None:
    env = gymnasium.make(
        "loragym/Wrapped-v0",
        environment=GUESS,
        env_kwargs={"high": 9},
        wrappers=[
            {"wrapper": "TurnLimit", "max_turns": 2},
            {"wrapper": "StopReasonReward", "episode": {"max_turns": -5}},
        ],
    )
    assert rewards(env, "Guess: x", "Guess: x") == [-0.1, -5.1]
    assert str(env).count("<StopReasonReward<TurnLimit<") == 1
    assert env.spec is not None
    again = EnvSpec.from_json(env.spec.to_json())
    assert again == env.spec
    assert rewards(gymnasium.make(again), "Guess: x", "Guess: x") == [-0.1, -5.1]


def test_a_wrapper_of_ones_own_is_named_by_its_path() -> None:
    env = wrapped(environment=SUMS, wrappers=["gymnasium.wrappers:RecordEpisodeStatistics", "FlatText"])
    env.reset(seed=0)
    assert "episode" in env.step("3")[4]


def test_split_and_render_mode_are_handed_on_to_environments_that_take_them() -> None:
    env = wrapped(environment=SUMS, env_kwargs={"split": "train", "high": 9}, split="test", render_mode="ansi")
    test = make_env(SUMS, {"split": "test", "high": 9})
    assert env.unwrapped.num_problems == test.unwrapped.num_problems
    env.reset(seed=0)
    assert isinstance(env.render(), str)
    assert wrapped(environment="worlds:tests/Letters-v0", split="test", render_mode="ansi").render_mode is None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"wrappers": ["TurnLimitt"]}, "there is no wrapper 'TurnLimitt'; there are TurnLimit, LengthBudget"),
        ({"wrappers": [{"max_turns": 3}]}, "a wrapper is"),
        ({"wrappers": [{"wrapper": "TurnLimit"}]}, "cannot put on the wrapper TurnLimit: .*max_turns"),
        ({"wrappers": [{"wrapper": "TurnLimit", "max_turns": 0}]}, "from 1 up, got 0"),
        ({"wrappers": ["no_such:Wrapper"]}, "there is no module 'no_such'"),
        ({"environment": "loragym/Nothing-v0"}, "cannot make the environment 'loragym/Nothing-v0'"),
        ({"env_kwargs": {"hihg": 3}}, "unexpected keyword argument 'hihg'"),
    ],
)
def test_what_cannot_be_wrapped_is_explained(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        wrapped(**arguments)


def test_which_arguments_an_environment_takes() -> None:
    assert takes_argument(SUMS, "split") and not takes_argument(SUMS, "colour")
    assert takes_argument("loragym/Wrapped-v0", "split")
    assert takes_argument("loragym/Mixture-v0", "split")
    assert not takes_argument("worlds:tests/Letters-v0", "split")
    # An argument that is handed on to the base class is one all the same.
    gymnasium.register("tests/HandsOn-v0", entry_point=HandsOn)
    assert takes_argument("tests/HandsOn-v0", "turns") and not takes_argument("tests/HandsOn-v0", "split")
    del gymnasium.registry["tests/HandsOn-v0"]


class HandsOn(worlds.Letters):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
