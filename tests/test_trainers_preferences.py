"""Learning from pairs: data in every form, direct preference optimisation, and reward models of both kinds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from interruptions import assert_resumed_equals_uninterrupted
from loragym.agents import BaseModel, LoraConfig
from loragym.agents.testing import save_tiny_model, tiny_tokenizer
from loragym.envs.datasets import BadData
from loragym.messages import assistant, system, user
from loragym.renderers import get_renderer
from loragym.trainers import dpo, reward
from loragym.trainers.dpo import DPOConfig, pair_figures
from loragym.trainers.preferences import Pair, read_pairs, split_pairs
from loragym.trainers.reward import RewardConfig, negative_log_likelihood, prediction_figures
from loragym.trainers.reward_models import JudgeRewardModel, ScalarRewardModel, load_reward_model, question
from loragym.trainers.run_directory import read_metrics

HI = (user("hi"),)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def letters(tmp_path: Path) -> str:
    """Pairs in which letters are better than digits."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "prompt": f"Say something, {i}!",
            "chosen": "".join(rng.choice(list("abcde"), 4)),
            "rejected": "".join(rng.choice(list("01234"), 4)),
        }
        for i in range(60)
    ]
    return write(tmp_path, rows)


def write(folder: Path, rows: list[Any]) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def small(config: type[Any], model: str, folder: Path, **changes: Any) -> Any:
    return config(
        **{
            "run_dir": str(folder / "run"),
            "model": model,
            "dtype": "float32",
            "device": "cpu",
            "lora_rank": 8,
            "batch_size": 8,
            "eval_every": 4,
        }
        | changes
    )


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hi", "chosen": "yes", "rejected": "no"},
        {"prompt": [user("hi")], "chosen": [assistant("yes")], "rejected": [assistant("no")]},
        {"chosen": [user("hi"), assistant("yes")], "rejected": [user("hi"), assistant("no")]},
        {"prompt": "hi", "chosen": [user("hi"), assistant("yes")], "rejected": [user("hi"), assistant("no")]},
        {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
    ],
)
def test_pairs_come_in_the_forms_that_people_have(row: dict[str, Any]) -> None:
    assert read_pairs([row]) == [Pair(HI, assistant("yes"), assistant("no"))]


def test_ties_margins_and_graded_verdicts_are_read() -> None:
    both = {"prompt": "hi", "chosen": "yes", "rejected": "no"}
    assert read_pairs([{**both, "tie": True}])[0].is_tie
    assert read_pairs([{**both, "margin": 1.5}])[0].margin == 1.5
    graded = {"context": [user("hi")], "response1": "yes", "response2": "no"}
    first, second, tie = read_pairs([{**graded, "overall_preference": v} for v in (-2, 3, 0)])
    assert (first.chosen["content"], first.margin, first.preference) == ("yes", 2.0, 1.0)
    assert (second.chosen["content"], second.margin) == ("no", 3.0)
    assert tie.is_tie


def test_a_dialogue_of_several_turns_keeps_its_past() -> None:
    text = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: {}"
    (pair,) = read_pairs([{"chosen": text.format("yes"), "rejected": text.format("no")}])
    assert pair.prompt == (user("a"), assistant("b"), user("c"))
    assert pair.conversations[1][-1] == assistant("no")


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "hi", "chosen": "yes"}, "'rejected'"),
        ({"prompt": "hi", "chosen": "yes", "rejected": 3}, "expected a sequence of messages"),
        ({"chosen": "yes", "rejected": "no"}, "Human: "),
        ({"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("b")]}, "differ before their last"),
        ({"prompt": "hi", "chosen": [user("yes")], "rejected": [user("no")]}, "a reply of the assistant's"),
        ({"prompt": "hi", "chosen": "yes", "rejected": "no", "margin": -1}, "a margin is a number of at least 0"),
    ],
)
def test_a_row_that_is_no_pair_is_named_with_the_forms_that_are(
    tmp_path: Path, row: dict[str, Any], complaint: str
) -> None:
    good = {"prompt": "hi", "chosen": "yes", "rejected": "no"}
    with pytest.raises(BadData, match=complaint) as caught:
        read_pairs(write(tmp_path, [good, row]))
    assert "row 1: expected" in str(caught.value)


@given(st.lists(st.text(max_size=5), min_size=1, max_size=40), st.floats(0.0, 0.9))
def test_pairs_of_one_prompt_are_on_one_side(prompts: list[str], fraction: float) -> None:
    pairs = [Pair((user(p),), assistant(str(i)), assistant("x")) for i, p in enumerate(prompts)]
    training, held_out = split_pairs(pairs, fraction)
    assert sorted(map(repr, training + held_out)) == sorted(map(repr, pairs))
    assert not {repr(p.prompt) for p in training} & {repr(p.prompt) for p in held_out}


@pytest.mark.parametrize("changes", [{}, {"loss": "ipo", "beta": 1.0}, {"length_normalized": True, "beta": 2.0}])
def test_dpo_begins_at_ln_2_and_comes_to_prefer_what_is_chosen(
    model: str, tmp_path: Path, letters: str, changes: dict[str, Any]
) -> None:
    rate = 5e-4 if changes.get("loss") == "ipo" else 3e-3
    config = small(DPOConfig, model, tmp_path, data=letters, epochs=3, learning_rate=rate, **changes)
    summary = dpo.train(config)
    at_zero = 0.25 if changes.get("loss") == "ipo" else math.log(2)
    assert summary["before"]["test/loss"] == pytest.approx(at_zero, abs=1e-5)
    assert summary["first_loss"] == pytest.approx(at_zero, abs=1e-5)
    assert summary["before"]["test/margin"] == pytest.approx(0, abs=1e-5)
    assert summary["after"]["test/accuracy"] > 0.9
    assert summary["after"]["test/loss"] < 0.8 * at_zero
    for row in read_metrics(tmp_path / "run")[:-1]:
        assert row["margin"] == pytest.approx(row["chosen_reward"] - row["rejected_reward"], abs=1e-6)


def test_rewards_are_beta_times_the_log_ratio_to_the_reference(model: str, tmp_path: Path, letters: str) -> None:
    config = small(DPOConfig, model, tmp_path, data=letters, learning_rate=1e-2, beta=0.3)
    training, held_out = config.load_pairs()
    trainer = dpo.DPOTrainer(config, config.load_policy(), training, held_out)
    data = [datum for pair in trainer.held_out for datum in pair]
    before = [p[d.trained].sum() for d, p in zip(data, trainer.policy.forward(data).logprobs, strict=True)]
    trainer.step(0, None)  # type: ignore[arg-type]
    after = [p[d.trained].sum() for d, p in zip(data, trainer.policy.forward(data).logprobs, strict=True)]
    rewards = 0.3 * (np.array(after) - np.array(before))
    found = trainer.evaluate()
    assert abs(rewards).max() > 1e-3
    assert found["test/chosen_reward"] == pytest.approx(rewards[::2].mean(), abs=1e-5)
    assert found["test/margin"] == pytest.approx((rewards[::2] - rewards[1::2]).mean(), abs=1e-5)
    assert found["test/loss"] == pytest.approx(np.log1p(np.exp(-(rewards[::2] - rewards[1::2]))).mean(), abs=1e-5)


def test_a_resumed_dpo_run_keeps_its_reference(
    model: str, tmp_path: Path, letters: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # From an adapter that is not the base, so that a reference made anew would be another one.
    base = BaseModel.load(model, dtype=torch.float32, device="cpu")
    policy = base.add_lora("start", LoraConfig(rank=4))
    with torch.no_grad():
        for tensor in policy.parameters:
            tensor.add_(0.02)
    policy.save_adapter(tmp_path / "start")
    config = small(
        DPOConfig, model, tmp_path, data=letters, learning_rate=3e-3, adapter=str(tmp_path / "start"), epochs=2
    )
    assert_resumed_equals_uninterrupted(monkeypatch, dpo.train, config, after=5)
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert (newest / "reference" / "adapter_model.safetensors").is_file()


def test_equal_rewards_are_half_right() -> None:
    figures = pair_figures(np.array([1.0, 0.0, 2.0, 2.0]))
    assert (figures["accuracy"], figures["margin"]) == (0.75, 0.5)


@pytest.mark.parametrize("kind", ["scalar", "judge"])
def test_a_reward_model_learns_which_replies_are_better(model: str, tmp_path: Path, letters: str, kind: str) -> None:
    rate = {"scalar": 3e-3, "judge": 1e-2}[kind]
    config = small(RewardConfig, model, tmp_path, data=letters, kind=kind, epochs=6, learning_rate=rate)
    summary = reward.train(config)
    if kind == "scalar":
        assert summary["before"]["test/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert summary["after"]["test/accuracy"] > 0.9
    # What a judge has to compare stands far apart, for a model of two layers.
    assert summary["after"]["test/loss"] < (0.5 if kind == "scalar" else 0.69)
    base = BaseModel.load(model, dtype=torch.float32, device="cpu")
    trained = load_reward_model(base, tmp_path / "run")
    assert isinstance(trained, ScalarRewardModel if kind == "scalar" else JudgeRewardModel)
    good, bad = ((user("Say something!"), assistant(reply)) for reply in ("badce", "20134"))
    better, worse = trained.compare([(good, bad), (bad, good)])
    assert better > 0.5 > worse
    if isinstance(trained, ScalarRewardModel):
        scores = trained.score([good, bad])
        assert better == pytest.approx(1 / (1 + math.exp(scores[1] - scores[0])))
        assert better == pytest.approx(1 - worse)


@pytest.mark.parametrize("kind", ["scalar", "judge"])
def test_a_resumed_reward_model_equals_an_uninterrupted_one(
    model: str, tmp_path: Path, letters: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(RewardConfig, model, tmp_path, data=letters, kind=kind, max_length=2000)
    assert_resumed_equals_uninterrupted(monkeypatch, reward.train, config, after=3)


def test_predictions_are_judged_by_accuracy_and_calibration() -> None:
    pairs = [Pair(HI, assistant("a"), assistant("b"), preference) for preference in (1.0, 1.0, 1.0, 1.0, 0.5)]
    figures = prediction_figures(pairs, np.array([0.9, 0.9, 0.9, 0.1, 0.5]))
    assert figures["accuracy"] == 0.75
    assert figures["calibration_error"] == pytest.approx(0.15)  # sure to 0.9, right in 3 of 4
    assert figures["brier"] == pytest.approx((3 * 0.01 + 0.81 + 0) / 5)
    assert negative_log_likelihood(pairs[4:], np.array([0.5])) == pytest.approx(math.log(2))


def test_a_tie_pulls_scores_together_and_a_margin_apart(model: str, tmp_path: Path) -> None:
    def lead(*rows: dict[str, Any]) -> float:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        pairs = [{"prompt": "hi", "chosen": "aaa", "rejected": "111", **row} for row in rows] * (8 // len(rows))
        config = small(
            RewardConfig, model, folder, data=write(folder, pairs), test_fraction=0.0, epochs=12, margin_coef=1.0
        )
        reward.train(config)
        trained = load_reward_model(BaseModel.load(model, dtype=torch.float32, device="cpu"), folder / "run")
        assert isinstance(trained, ScalarRewardModel)
        better, worse = trained.score([(*HI, assistant("aaa")), (*HI, assistant("111"))])
        return better - worse

    # Adam takes steps of one size whatever the gradient's, so a margin shows where pairs pull in both directions.
    other_way = {"chosen": "111", "rejected": "aaa"}
    assert abs(lead({"tie": True})) < 0.05 < lead({})
    assert abs(lead({}, other_way)) < 0.05 < lead({"margin": 3.0}, other_way)


def test_a_question_to_a_judge_shows_prompt_and_replies_in_order() -> None:
    prompt = (system("Be brief."), user("hi"))
    text = question((*prompt, assistant("yes")), (*prompt, assistant("no")))["content"]
    assert text.index("system: Be brief.") < text.index("user: hi") < text.index("yes") < text.index("\nno\n")


def test_pairs_that_are_too_long_are_left_out_and_counted(model: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "chosen": "a" * (200 * (i % 2)), "rejected": "b"} for i in range(8)]
    config = small(DPOConfig, model, tmp_path, data=write(tmp_path, rows), test_fraction=0.0, max_length=100)
    summary = dpo.train(config)
    assert (summary["pairs"], summary["pairs_left_out"]) == (4, 4)
    with pytest.raises(ValueError, match=r"each of 8 pairs has more than 5 tokens; raise max-length"):
        dpo.train(small(DPOConfig, model, tmp_path, data=config.data, max_length=5, fresh=True, test_fraction=0.0))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"loss": "nope"}, r"loss is one of \['dpo', 'ipo'\]"),
        ({"smoothing": 0.6}, "smoothing is at most 0.5"),
        ({"reference": "no/such/folder"}, "neither a PEFT folder"),
        ({"test_fraction": 1.0}, "test-fraction is below 1"),
        ({"adapter": "no/such/folder"}, "neither a PEFT folder"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_at_once(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        DPOConfig(**changes)


def test_without_pairs_nothing_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data names the pairs to learn from"):
        dpo.train(small(DPOConfig, "no/such-model", tmp_path))


def test_the_tiny_tokenizer_tells_the_judges_letters_apart() -> None:
    renderer = get_renderer(tiny_tokenizer())
    first, second = ((user("?"), assistant(letter)) for letter in "AB")
    assert renderer.build_supervised_example(first).tokens != renderer.build_supervised_example(second).tokens
