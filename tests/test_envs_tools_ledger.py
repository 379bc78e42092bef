"""A bank whose books must be right at the end: what is rewarded is the world, not the words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loragym.envs.tools import ToolQuestions
from loragym.envs.tools.ledger import Ledger
from loragym.messages import Message, reply


def opened(**options: Any) -> Ledger:
    env = Ledger(**options)
    env.reset(seed=2)
    return env


def answers(env: Ledger, name: str, /, **arguments: Any) -> str:
    return env.step(env.calling(name, **arguments))[0][0]["content"]


@pytest.mark.parametrize("orders", [1, 2, 4])
@pytest.mark.parametrize("accounts", [3, 12])
def test_every_request_is_met_by_its_solution_and_not_by_doing_nothing(orders: int, accounts: int) -> None:
    env = Ledger(orders=orders, accounts=accounts, split=None)
    for index in range(150):
        env.reset(options={"index": index})
        assert env.step("Done.")[1] == 0.0
        env.reset(options={"index": index})
        *calls, final = env.solution()
        for call in calls:
            *_, info = env.step(call)
            assert info["metrics"]["errors"] == 0
        _, reward, terminated, _, info = env.step(final)
        assert (reward, terminated) == (1.0, True)
        assert info["metrics"]["correct"] == info["metrics"]["accounts_right"] == info["metrics"]["format"] == 1.0
        assert info["metrics"]["payments"] >= orders


def test_money_is_moved_and_neither_made_nor_lost() -> None:
    env = opened(max_turns=20)
    before = dict(env._balances)
    payer, payee, *others = before
    assert answers(env, "list_accounts") == '["' + '", "'.join(before) + '"]'
    assert answers(env, "balance", name=payer) == str(before[payer])
    assert answers(env, "pay", sender=payer, recipient=payee.upper(), amount="10") == (
        f"paid; {payer} has {before[payer] - 10}, {payee} has {before[payee] + 10}"
    )
    assert env._balances == {**before, payer: before[payer] - 10, payee: before[payee] + 10}
    assert sum(env._balances.values()) == sum(before.values())
    assert [env._balances[name] for name in others] == [before[name] for name in others]


@pytest.mark.parametrize(
    ("amount", "complaint"),
    [(0, "the amount is from 1"), (-5, "the amount is from 1"), (10**9, "the amount is from 1")],
)
def test_an_impossible_payment_is_refused_and_changes_nothing(amount: int, complaint: str) -> None:
    env = opened()
    before = dict(env._balances)
    payer, payee, *_ = before
    assert complaint in answers(env, "pay", sender=payer, recipient=payee, amount=amount)
    assert "the same" in answers(env, "pay", sender=payer, recipient=payer, amount=1)
    assert "nobody named 'Zoe'" in answers(env, "balance", name="Zoe")
    assert env._balances == before


def test_a_payment_made_twice_is_wrong() -> None:
    for index in range(200):
        env = Ledger(orders=1, split=None)
        env.reset(options={"index": index})
        _, pay, final = env.solution()
        if any(
            call["arguments"]["amount"] * 2 > env._balances[call["arguments"]["sender"]] for call in pay["tool_calls"]
        ):
            continue
        env.step(pay)
        env.step(pay)
        assert env.step(final)[1] == 0.0
        return
    raise AssertionError("no request can be carried out twice")


@pytest.mark.parametrize(("said", "well_formed"), [("Done.", 1), (" Done.\n", 1), ("It is done.", 0), ("", 0)])
def test_the_last_reply_is_done_and_nothing_else(said: str, well_formed: float) -> None:
    env = opened()
    *calls, _ = env.solution()
    for call in calls:
        env.step(call)
    _, reward, *_, info = env.step(said)
    assert reward == pytest.approx(1 + 0.1 * (well_formed - 1))
    assert info["metrics"]["format"] == well_formed


@pytest.mark.parametrize("end", ["length", "max_turns"])
def test_an_episode_that_is_not_finished_is_not_rewarded(end: str) -> None:
    env = opened(max_turns=4, orders=2)
    *calls, final = env.solution()
    for call in calls:
        _, reward, terminated, truncated, info = env.step(call)
    if end == "max_turns":
        assert (truncated, reward, info["stop_reason"]) == (True, pytest.approx(-0.1), "max_turns")
        return
    env = opened()
    for call in calls:
        env.step(call)
    _, reward, terminated, _, info = env.step(reply(final["content"], "length"))
    assert (terminated, reward, info["stop_reason"]) == (True, pytest.approx(-0.1), "length")


def test_payments_of_one_turn_are_booked_in_their_order() -> None:
    env = opened()
    a, b, *_ = env._balances
    have = env._balances[a]
    _first, second = env.step(
        env.calling_all(
            [
                ("pay", {"sender": a, "recipient": b, "amount": have}),
                ("pay", {"sender": a, "recipient": b, "amount": 1}),
            ]
        )
    )[0]
    assert "the amount is from 1 to 0" in second["content"]


def test_the_splits_ask_different_things() -> None:
    asked = {
        split: {Ledger(split=split).reset(options={"index": index})[1]["problem"] for index in range(150)}  # type: ignore[arg-type]
        for split in ("train", "test")
    }
    assert not asked["train"] & asked["test"]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**40))
def test_the_request_never_tells_a_balance_that_has_to_be_looked_up(seed: int) -> None:
    env = Ledger(split=None)
    (_, request), info = env.reset(seed=seed)
    assert request["content"] == info["problem"]
    assert "reference" not in info


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"accounts": 2}, "accounts is from 3 to 12"),
        ({"orders": 5}, "orders is from 1 to 4"),
        ({"split": "dev"}, "split is one of"),
    ],
)
def test_a_bad_argument_is_refused_at_once(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Ledger(**options)


def population(country: str) -> int:
    """The number of people who live in a country."""
    return {"Malta": 550_000, "Iceland": 390_000}[country]


ROWS = [
    {"question": "Has Malta more people than Iceland?", "answer": "Yes"},
    {"question": "How many people live in Malta?", "answer": "550000"},
]


def test_an_environment_is_made_of_questions_and_functions() -> None:
    env = ToolQuestions(rows=ROWS, tools=[population])
    assert env.num_problems == 2
    (question,), info = env.reset(options={"index": 1})
    assert (question["content"], info["reference"]) == (ROWS[1]["question"], "550000")
    (result,), *_ = env.step(env.calling("population", country="Malta"))
    assert result["content"] == "550000"
    (missing,), *_ = env.step(env.calling("population", country="Atlantis"))
    assert missing["content"] == "Error: KeyError: 'Atlantis'"
    assert env.step(" 550000\n")[1] == 1.0
    env.reset(options={"index": 0})
    assert env.step("yes")[1] == 1.0


def test_the_grade_can_be_one_s_own() -> None:
    env = ToolQuestions(rows=ROWS, tools=[population], grade=lambda row, answer: row["answer"] in answer)
    env.reset(options={"index": 1})
    assert env.step("About 550000 people.")[1] == 1.0


def test_the_whole_reward_can_be_one_s_own() -> None:
    def few_words(messages: tuple[Message, ...]) -> tuple[float, dict[str, float]]:
        count = len(messages[-1]["content"].split())
        return 1 / count, {"words": count}

    env = ToolQuestions(rows=ROWS, reward=few_words)
    env.reset(seed=0)
    _, reward, *_, info = env.step("one two")
    assert reward == 0.5 and info["metrics"]["words"] == 2.0


@pytest.mark.parametrize(
    ("rows", "error", "complaint"),
    [
        ([], ValueError, "rows has none"),
        ([{"question": "?"}], TypeError, r"rows\[0\]: expected a mapping whose 'answer' is a str"),
        (["?"], TypeError, r"rows\[0\]: expected a mapping whose 'question' is a str"),
    ],
)
def test_rows_that_are_no_questions_are_refused(rows: Any, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        ToolQuestions(rows=rows)
