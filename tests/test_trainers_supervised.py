"""Supervised learning lowers the loss on conversations that it did not see, from a file or from a world's answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds  # noqa: F401
from loragym.agents import Datum
from loragym.agents.testing import save_tiny_model, tiny_tokenizer
from loragym.envs.datasets import BadData, DataNotFound
from loragym.messages import assistant, system, user
from loragym.renderers import LengthLimit, TrainOn, get_renderer
from loragym.trainers import SupervisedConfig, supervised
from loragym.trainers.conversations import (
    Example,
    environment_examples,
    read_conversations,
    supervised_datums,
)
from loragym.trainers.epochs import epoch_order
from loragym.trainers.run_directory import read_metrics
from loragym.trainers.supervised import load_conversations, mean_nll


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model")))


def small(model: str, folder: Path, **changes: Any) -> SupervisedConfig:
    return SupervisedConfig(
        **{
            "run_dir": str(folder / "run"),
            "model": model,
            "dtype": "float32",
            "device": "cpu",
            "lora_rank": 8,
            "env_kwargs": {"high": 9},
            "env_problems": 64,
            "batch_size": 16,
            "learning_rate": 1e-2,
        }
        | changes
    )


def lines(folder: Path, *rows: object) -> str:
    path = folder / "chats.jsonl"
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return str(path)


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [user(question), assistant(answer)]}


def test_the_loss_on_held_out_conversations_falls(model: str, tmp_path: Path) -> None:
    summary = supervised.train(small(model, tmp_path, epochs=4, eval_every=8))
    assert summary["after"]["test/nll"] < summary["before"]["test/nll"] - 1
    assert summary["last_nll"] < summary["first_nll"] - 1
    assert summary["conversations"] == 64
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows if "test/nll" in row] == [0, 8, 16]
    assert [row.get("epoch") for row in rows[:16]] == [0.0] * 4 + [1.0] * 4 + [2.0] * 4 + [3.0] * 4
    assert [row["learning_rate"] for row in rows[:16]] == pytest.approx([1e-2 * (1 - i / 16) for i in range(16)])


def test_a_file_of_conversations_is_learnt_and_part_of_it_held_out(model: str, tmp_path: Path) -> None:
    data = lines(tmp_path, *[chat(f"Say {i}", "abc") for i in range(20)])
    config = small(model, tmp_path, data=data, test_fraction=0.25, epochs=6, batch_size=8)
    training, held_out = load_conversations(config)
    assert (len(training), len(held_out)) == (15, 5)
    assert {c.messages[0]["content"] for c in (*training, *held_out)} == {f"Say {i}" for i in range(20)}
    summary = supervised.train(config)
    assert summary["after"]["test/nll"] < 0.5 * summary["before"]["test/nll"]
    again = supervised.train(config)
    assert again == json.loads(json.dumps(summary))


def test_an_environments_answers_are_split_as_the_environment_splits_them() -> None:
    training, held_out = load_conversations(SupervisedConfig(env_kwargs={"high": 9}, env_problems=200))
    asked = [{example.messages[-2]["content"] for example in part} for part in (training, held_out)]
    assert (len(training), len(held_out)) == (200, 20)
    assert not asked[0] & asked[1]
    for *_, question, answer in (example.messages for example in training):
        x, y = map(int, question["content"].removeprefix("What is ").removesuffix("?").split("+"))
        assert answer["content"] == str(x + y)


def test_no_answers_to_learn_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"gives no info\['reference'\] at reset"):
        environment_examples("tests/Untaught-v0", {}, 3, 0)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ('{"prompt": "hi"}', "KeyError: 'messages'"),
        ('{"messages": "hi"}', "expected a sequence of messages"),
        ('{"messages": [{"role": "robot", "content": "hi"}]}', "role is one of"),
        ('{"messages": [{"role": "user"}]}', "content is a str, got None"),
    ],
)
def test_a_line_that_is_no_conversation_is_named(tmp_path: Path, row: str, complaint: str) -> None:
    data = lines(tmp_path, chat("a", "b"), "", row, chat("c", "d"))
    with pytest.raises(ValueError, match=r"chats.jsonl, row 2: expected .*messages") as caught:
        supervised.train(small("no/such-model", tmp_path, data=data))
    assert complaint in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match=r"there is no file or folder .*none.jsonl"):
        read_conversations(tmp_path / "none.jsonl")
    with pytest.raises(BadData, match=r"chats.jsonl:2 is not JSON"):
        read_conversations(lines(tmp_path, chat("a", "b"), "{broken"))
    with pytest.raises(ValueError, match="holds no conversation"):
        read_conversations(lines(tmp_path, "", " "))
    (tmp_path / "latin.jsonl").write_bytes(b'{"messages": "\xe4"}')
    with pytest.raises(ValueError, match=r"latin.jsonl is not UTF-8 text"):
        read_conversations(tmp_path / "latin.jsonl")


def test_texts_may_hold_any_character_and_lines_end_either_way(tmp_path: Path) -> None:
    said = "a line separator \u2028, a next line \x85, half an emoji \ud83d, a \x1c"
    path = tmp_path / "chats.jsonl"
    escaped = json.dumps(chat("1", said)) + "\r\n"
    raw = json.dumps(chat("2", said.replace("\ud83d", "")), ensure_ascii=False) + "\r\n"
    path.write_bytes((escaped + "\r\n" + raw).encode())
    first, second = read_conversations(path)
    assert first.messages[1]["content"] == said
    assert second.messages[1]["content"] == said.replace("\ud83d", "")


def test_all_held_out_is_refused(tmp_path: Path) -> None:
    data = lines(tmp_path, chat("a", "b"))
    with pytest.raises(ValueError, match="all 1 conversations would be held out"):
        load_conversations(SupervisedConfig(data=data, test_fraction=0.9))


def test_a_datum_trains_what_was_asked_for_and_is_cut_where_asked_for() -> None:
    renderer = get_renderer(tiny_tokenizer())
    conversation = [system("s"), user("q"), assistant("one"), user("r"), assistant("two")]

    def trained(train_on: TrainOn, max_length: int = 1000) -> str:
        limit = LengthLimit(max_length, "truncate")
        (datum,) = supervised_datums(Example(tuple(conversation)), renderer, train_on=train_on, limit=limit)
        return str(tiny_tokenizer().decode(np.asarray(datum.targets)[datum.trained].tolist()))

    assert trained(TrainOn.LAST_ASSISTANT) == "two<|im_end|>"
    assert trained(TrainOn.ALL_ASSISTANT) == "one<|im_end|>two<|im_end|>"
    whole = renderer.build_supervised_example(conversation).tokens
    assert trained(TrainOn.ALL_ASSISTANT, len(whole) - 3) == "one<|im_end|>tw"
    none = supervised_datums(
        Example(tuple(conversation)),
        renderer,
        train_on=TrainOn.LAST_ASSISTANT,
        limit=(limit := LengthLimit(10, "truncate")),
    )
    assert (none, limit.dropped) == ([], 1)


def test_rows_may_be_prompts_with_completions_and_have_weights(tmp_path: Path) -> None:
    rows = [{"prompt": "hi", "completion": "ho"}, {"prompt": [user("a")], "completion": [assistant("b")], "weight": 2}]
    first, second = read_conversations(rows)
    assert first == Example((user("hi"), assistant("ho")))
    assert second == Example((user("a"), assistant("b")), 2.0)
    renderer = get_renderer(tiny_tokenizer())
    (datum,) = supervised_datums(second, renderer, train_on=TrainOn.ALL_ASSISTANT, limit=LengthLimit(100, "truncate"))
    assert set(datum.weights or ()) == {0.0, 2.0}
    with pytest.raises(BadData, match=r"row 1: .*a weight is a number of at least 0, got -1"):
        read_conversations([{"prompt": "hi", "completion": "ho", "weight": -1}])


def test_held_out_conversations_may_lie_apart(tmp_path: Path) -> None:
    for name, said in (("train", "abc"), ("test", "xyz")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(chat("q", said)) + "\n")
    for changes in ({"test_split": "test"}, {"test_data": str(tmp_path / "test.jsonl")}):
        training, held_out = load_conversations(SupervisedConfig(data=str(tmp_path), **changes))
        assert [e.messages[-1]["content"] for e in (*training, *held_out)] == ["abc", "xyz"]


def test_bits_per_byte_are_the_bits_of_the_tokens_over_the_bytes_of_their_text(model: str, tmp_path: Path) -> None:
    data = lines(tmp_path, *[chat("q", "añb") for _ in range(4)])
    summary = supervised.train(small(model, tmp_path, data=data, test_fraction=0.5))
    # 4 bytes of text, each a token here, and one token that ends the turn.
    found = summary["before"]
    assert found["test/bits_per_byte"] == pytest.approx(found["test/nll"] * 5 / 4 / np.log(2))


def test_long_conversations_are_cut_and_counted(model: str, tmp_path: Path) -> None:
    data = lines(tmp_path, *[chat("q", "a" * length) for length in (5, 5, 5, 5, 200, 400)])
    summary = supervised.train(small(model, tmp_path, data=data, max_length=64, test_fraction=0))
    assert summary["cut_conversations"] == 2
    assert summary["before"] == summary["after"] == {}
    with pytest.raises(ValueError, match=r"none of 6 conversations has a token to train on .* max-length 8"):
        supervised.train(small(model, tmp_path, data=data, max_length=8, test_fraction=0, run_dir=f"{tmp_path}/other"))


def test_every_epoch_has_an_order_of_its_own() -> None:
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert tuple(epoch_order(50, 0, 1)) == orders[1]


def test_the_mean_loss_is_over_tokens_not_over_conversations() -> None:
    data = [Datum.supervised([1, 2, 3], [0, 1, 1]), Datum.supervised([1, 2], [0, 2])]
    logprobs = [np.array([-1.0, -3.0]), np.array([-0.5])]
    assert mean_nll(data, logprobs) == pytest.approx((1 + 3 + 2 * 0.5) / 4)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("epochs", 0, "epochs is at least 1"),
        ("test_fraction", 1.0, "test-fraction is below 1"),
        ("max_length", 1, "max-length is at least 2"),
        ("schedule", "warm", "schedule is one of"),
        ("normalization", "x", "normalization is one of"),
        ("lora_rank", 0, "lora-rank is at least 1"),
    ],
)
def test_a_field_out_of_range_is_refused_at_once(field: str, value: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        SupervisedConfig(**{field: value})


def test_a_scripted_solution_is_learnt_reply_by_reply_with_its_tools(model: str, tmp_path: Path) -> None:
    (example,) = environment_examples("loragym/Calculator-v0", {}, 1, 0)
    assert [tool["name"] for tool in example.tools] == ["calculate"]
    roles = [(message["role"], message["trainable"]) for message in example.messages]
    assert all(trained == (role == "assistant") for role, trained in roles[1:])
    assert sum(trained for _, trained in roles) >= 2
    config = small(model, tmp_path, env="loragym/Calculator-v0", env_kwargs={"call_format": "text"}, env_problems=16)
    summary = supervised.train(config)
    assert summary["after"]["test/nll"] < summary["before"]["test/nll"]
