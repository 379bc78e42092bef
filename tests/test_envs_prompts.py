"""`Prompts-v0`: prompts from wherever they come, in the splits that they have, rewarded by a function or by nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loragym.envs.datasets import BadData, DataNotFound
from loragym.envs.prompts import EVERYDAY_PROMPTS, Prompts
from loragym.messages import Message, assistant, reply, system, user

QUESTIONS = [f"What is {number} plus one?" for number in range(40)]


def counts_words(conversation: tuple[Message, ...], row: Mapping[str, Any]) -> dict[str, float]:
    """A reward function that a path can name: words of the reply, and a mark of the row's."""
    words = len(conversation[-1]["content"].split())
    return {"reward": words / 10, "words": words, "difficulty": row.get("difficulty", 0)}


def prompts_of(env: Prompts) -> list[str]:
    assert env.num_problems is not None
    return [env.reset(options={"index": index})[1]["problem"] for index in range(env.num_problems)]


def say(env: gymnasium.Env[Any, Any], action: Any, seed: int = 0) -> tuple[float, dict[str, Any]]:
    env.reset(seed=seed)
    news, reward, terminated, truncated, info = env.step(action)
    assert (news, terminated, truncated) == ((), True, False)
    return float(reward), info


def jsonl(path: Path, rows: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# ----------------------------------------------------------------------------------------------------------------- data


def test_without_data_it_asks_everyday_questions_that_have_answers() -> None:
    env = Prompts(split=None)
    rows = [json.loads(line) for line in EVERYDAY_PROMPTS.read_text("utf-8").splitlines()]
    assert env.num_problems == len(rows) == 72
    opening, info = env.reset(seed=0)
    assert opening == (user(info["problem"]),)
    assert {"prompt": info["problem"], "reference": info["reference"]} in rows


@pytest.mark.parametrize(
    ("item", "opening", "reference"),
    [
        ("Hi.", (user("Hi."),), None),
        ([system("Be brief."), user("Hi.")], (system("Be brief."), user("Hi.")), None),
        ((user("Hi."), assistant("Hello.")), (user("Hi."),), "Hello."),
        ([user("1"), assistant("2"), user("3"), assistant("4")], (user("1"), assistant("2"), user("3")), "4"),
        ({"prompt": "Hi.", "reference": "Hello."}, (user("Hi."),), "Hello."),
        ({"question": "1+1?", "answer": 2}, (user("1+1?"),), "2"),
        ({"instruction": "Greet.", "output": "Hello."}, (user("Greet."),), "Hello."),
        ({"text": "Hi."}, (user("Hi."),), None),
        ({"prompt": None, "question": "1+1?", "reference": None, "answer": "2"}, (user("1+1?"),), "2"),
        ({"messages": [user("Hi."), assistant("Hello.")]}, (user("Hi."),), "Hello."),
        # As a table has it that fills what a message does not have.
        ({"messages": [{**user("Hi."), "tool_calls": None, "name": None}]}, (user("Hi."),), None),
        ({"prompt": [user("Hi.")], "completion": [assistant("Hello.")]}, (user("Hi."),), "Hello."),
        (
            {"chosen": [user("Hi."), assistant("Hello.")], "rejected": [user("Hi."), assistant("No.")]},
            (user("Hi."),),
            "Hello.",
        ),
        ({"prompt": "Hi.", "chosen": [user("Hi."), assistant("Hello.")]}, (user("Hi."),), "Hello."),
    ],
)
def test_prompts_come_in_the_forms_that_people_have(
    item: Any, opening: tuple[Message, ...], reference: str | None
) -> None:
    found, info = Prompts(data=[item]).reset(seed=0)
    assert found == opening
    assert info == {"problem": opening[-1]["content"]} | ({} if reference is None else {"reference": reference})


def test_columns_can_be_named() -> None:
    rows = [{"prompt": "no", "reference": "no", "zadanie": "Ile?", "odpowiedz": "Tyle."}]
    _, info = Prompts(data=rows, column="zadanie", reference_column="odpowiedz").reset(seed=0)
    assert info == {"problem": "Ile?", "reference": "Tyle."}


def test_an_instruction_goes_before_everything(tmp_path: Path) -> None:
    data = jsonl(tmp_path / "chats.jsonl", [{"messages": [system("Rhyme."), user("Hi.")]}])
    opening, _ = Prompts(data=data, system_prompt="Be brief.").reset(seed=0)
    assert opening == (system("Be brief."), system("Rhyme."), user("Hi."))


def test_a_parquet_file_is_read_as_a_jsonl_file(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": question, "messages": None} for question in QUESTIONS]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    ours = [Prompts(data=str(tmp_path / "rows.parquet")), Prompts(data=jsonl(tmp_path / "rows.jsonl", rows))]
    assert prompts_of(ours[0]) == prompts_of(ours[1])
    assert [env.reset(seed=3)[0] for env in ours] == [Prompts(data=QUESTIONS).reset(seed=3)[0]] * 2


@pytest.mark.parametrize(
    ("data", "error", "complaint"),
    [
        ([], BadData, "data: there are no prompts in it"),
        ([{"frage": "Hm?"}], BadData, r"row 0 has the columns \['frage'\]; the prompt was looked for in \['prompt', "),
        ([{"prompt": None}], BadData, "the prompt was looked for in"),
        ([{"prompt": 7}], BadData, "row 0, column 'prompt' holds 7; text or a list of messages was expected"),
        ([7], BadData, "row 0, column 'prompt' holds 7; text or a list of messages was expected"),
        ([None], BadData, "the prompt was looked for in"),
        ([[]], BadData, "holds no message to reply to"),
        ([[assistant("Hello.")]], BadData, "holds no message to reply to"),
        ([[user("a"), assistant("b"), assistant("c")]], BadData, "holds no message to reply to"),
        ([[{"role": "human", "content": "Hi."}]], BadData, "role is one of .* got 'human'"),
        ([["Hi.", "Hello."]], BadData, "expected a message"),
        ("no/such/place/at/all", DataNotFound, "there is no file or folder no/such/place/at/all; pass data= the path"),
        ("prompts.jsonl", DataNotFound, "there is no file or folder prompts.jsonl"),
        (7, TypeError, "data is a path, a hub id or a sequence of prompts, got 7"),
    ],
)
def test_data_that_is_none_is_refused_with_what_was_expected(data: Any, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        Prompts(data=data)


def test_a_bad_row_is_named_by_its_number(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [*({"prompt": question} for question in QUESTIONS), {"prompt": []}])
    with pytest.raises(BadData, match=r"rows\.jsonl, row 40, column 'prompt' holds no message to reply to"):
        prompts_of(Prompts(data=path))
    (tmp_path / "broken.jsonl").write_text('{"prompt": "Hi."}\n{"prompt": \n', encoding="utf-8")
    with pytest.raises(BadData, match=r"broken\.jsonl:2 is not JSON"):
        Prompts(data=str(tmp_path / "broken.jsonl"))


def test_a_row_is_never_changed_by_an_episode() -> None:
    rows = [{"messages": [user("Hi."), assistant("Hello.")], "difficulty": 3}]
    env = Prompts(data=rows)
    opening, info = env.reset(seed=0)
    opening[0]["content"] = info["reference"] = "scribbled over"
    assert env.reset(seed=0)[0] == (user("Hi."),)
    assert rows == [{"messages": [user("Hi."), assistant("Hello.")], "difficulty": 3}]


# --------------------------------------------------------------------------------------------------------------- splits


def test_a_list_is_divided_once_and_for_all() -> None:
    train, test, both = (prompts_of(Prompts(data=QUESTIONS, split=split)) for split in ("train", "test", None))
    assert not set(train) & set(test)
    assert sorted(train + test) == sorted(both) == sorted(QUESTIONS)
    assert 0 < len(test) < len(train)
    assert test == prompts_of(Prompts(data=[{"prompt": question} for question in reversed(QUESTIONS)], split="test"))


@given(st.lists(st.text(min_size=1), min_size=2, max_size=12, unique=True))
def test_of_two_prompts_or_more_each_split_has_one(prompts: list[str]) -> None:
    train, test = (prompts_of(Prompts(data=prompts, split=split)) for split in ("train", "test"))
    assert train and test and sorted(train + test) == sorted(prompts)


def test_a_single_prompt_is_in_both_splits_and_twins_are_in_one() -> None:
    for prompts in (["Hi."], ["Hi.", "Hi."]):
        assert {*prompts_of(Prompts(data=prompts)), *prompts_of(Prompts(data=prompts, split="test"))} == {"Hi."}
    twins = QUESTIONS * 2
    train, test = (prompts_of(Prompts(data=twins, split=split)) for split in ("train", "test"))
    assert not set(train) & set(test) and len(train) + len(test) == 80


def test_a_folder_has_splits_of_its_own(tmp_path: Path) -> None:
    jsonl(tmp_path / "data" / "train.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    jsonl(tmp_path / "data" / "test.jsonl", [{"prompt": "c"}])
    assert sorted(prompts_of(Prompts(data=str(tmp_path / "data")))) == ["a", "b"]
    assert prompts_of(Prompts(data=str(tmp_path / "data"), split="test")) == ["c"]
    (tmp_path / "data" / "test.jsonl").unlink()
    with pytest.raises(DataNotFound, match=r"no file for split 'test'; it has: train\.jsonl"):
        Prompts(data=str(tmp_path / "data"), split="test")


def test_an_unknown_split_is_refused() -> None:
    split: Any = "validation"
    with pytest.raises(ValueError, match=r"split is one of .* got 'validation'"):
        Prompts(data=QUESTIONS, split=split)


def test_seeds_draw_from_all_of_the_split() -> None:
    env = Prompts(data=QUESTIONS)
    drawn = {env.reset(seed=seed)[1]["problem"] for seed in range(400)}
    assert drawn == set(prompts_of(env))
    with pytest.raises(ValueError, match="index is an int from 0 to"):
        env.reset(options={"index": env.num_problems})


# -------------------------------------------------------------------------------------------------------------- rewards


def test_without_a_function_nothing_is_earned_and_nothing_lost() -> None:
    env = Prompts(data=["Hi."])
    assert say(env, "Hello.") == (0.0, {"metrics": {"format": 1.0}, "stop_reason": "completed"})
    assert say(env, reply("Hel", "length")) == (0.0, {"metrics": {"format": 0.0}, "stop_reason": "length"})
    assert say(Prompts(data=["Hi."], format_coef=0.25), reply("Hel", "malformed"))[0] == -0.25


@pytest.mark.parametrize("reward", [counts_words, "test_envs_prompts:counts_words"])
def test_a_function_sees_the_conversation_and_the_row(reward: Any) -> None:
    env = Prompts(data=[{"prompt": "Hi.", "difficulty": 4}], reward=reward)
    earned, info = say(env, "to be or not")
    assert earned == pytest.approx(0.4)
    assert info["metrics"] == {"words": 4.0, "difficulty": 4.0, "format": 1.0}


def test_a_function_is_told_why_a_reply_ended_and_what_was_said_before() -> None:
    seen = []

    def look(conversation: tuple[Message, ...], row: Mapping[str, Any]) -> bool:
        seen.append((conversation, row))
        return True

    env = Prompts(data=[[system("Rhyme."), user("Hi.")]], reward=look, system_prompt="Be brief.")
    assert say(env, reply("Hel", "length"))[0] == 1.0
    ((conversation, row),) = seen
    assert conversation == (system("Be brief."), system("Rhyme."), user("Hi."), reply("Hel", "length"))
    assert row == {"prompt": [system("Rhyme."), user("Hi.")]}


@pytest.mark.parametrize("given_", [np.float32(0.5), np.array([0.5]), np.array(0.5), 0.5, {"reward": np.float64(0.5)}])
def test_numbers_of_all_kinds_are_numbers(given_: Any) -> None:
    assert say(Prompts(data=["Hi."], reward=lambda *_: given_), "x")[0] == 0.5


@pytest.mark.parametrize(
    ("given_", "complaint"),
    [
        (math.nan, "the reward function's reward is nan; a finite number was expected"),
        (math.inf, "the reward function's reward is inf"),
        (None, "the reward function's reward is None"),
        ("0.5", "the reward function's reward is '0.5'"),
        ([0.5], r"the reward function's reward is \[0.5\]"),
        (np.zeros(2), r"the reward function's reward is array\("),
        ({"score": 1.0}, "a mapping has the reward under 'reward'"),
        ({"reward": 1.0, "length": math.nan}, "the reward function's length is nan"),
    ],
)
def test_what_is_no_finite_number_is_refused(given_: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        say(Prompts(data=["Hi."], reward=lambda *_: given_), "x")


def test_an_error_of_the_functions_is_loud() -> None:
    def broken(*_: Any) -> float:
        raise ConnectionError("the service is gone")

    with pytest.raises(ConnectionError, match="the service is gone"):
        say(Prompts(data=["Hi."], reward=broken), "x")


@pytest.mark.parametrize(
    ("reward", "error", "complaint"),
    [
        (7, TypeError, "reward is a function, or the import path of one; got 7"),
        ("counts_words", ValueError, "reward is an import path such as \"my_module:my_function\", got 'counts_words'"),
        ("no_such_module:f", ValueError, "there is no module 'no_such_module'"),
        ("test_envs_prompts:nothing", ValueError, "has no attribute 'nothing'"),
        ("test_envs_prompts:QUESTIONS", TypeError, "reward is a function, or the import path of one"),
    ],
)
def test_a_reward_that_cannot_be_called_is_refused_at_once(reward: Any, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        Prompts(data=["Hi."], reward=reward)


def test_it_is_made_by_its_id_and_in_wrappers() -> None:
    env = gymnasium.make("loragym/Prompts-v0", data=["Hi."], reward="test_envs_prompts:counts_words")
    assert say(env, "to be or not")[0] == pytest.approx(0.4)
    env = gymnasium.make(
        "loragym/Wrapped-v0",
        environment="loragym/Prompts-v0",
        env_kwargs={"data": ["Hi."], "reward": "test_envs_prompts:counts_words"},
        wrappers=[{"wrapper": "SystemPrompt", "text": "Be brief."}, {"wrapper": "ClipReward", "high": 0.25}],
    )
    assert env.reset(seed=0)[0] == (system("Be brief."), user("Hi."))
    assert say(env, "to be or not")[0] == 0.25
