"""Data sets of problems: their columns, their splits, and what a reply to them earns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env
from loragym.envs.datasets import BadData, DataNotFound
from loragym.envs.math.word_problems import SUBJECTS, without
from loragym.messages import reply

GSM8K = [{"question": f"What is {n} plus {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"} for n in range(40)]
MATH = [
    {
        "problem": f"Find $x$ with $x={n}/3$.",
        "solution": rf"So \boxed{{\frac{{{n}}}{{3}}}}.",
        "level": f"Level {n % 5 + 1}",
        "type": ["Algebra", "Counting & Probability"][n % 2],
    }
    for n in range(40)
]


def write(path: Path, rows: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def make(env_id: str, **kwargs: Any) -> Any:
    return gymnasium.make(f"loragym/{env_id}", disable_env_checker=True, **kwargs).unwrapped


def questions(env: Any) -> list[str]:
    return [env.reset(options={"index": i})[1]["problem"] for i in range(env.num_problems)]


def test_a_right_answer_in_a_box_earns_1_and_form_costs_a_tenth() -> None:
    env = make("GSM8K-v0", data=GSM8K, split=None)
    at = next(i for i, question in enumerate(questions(env)) if "17 plus 17" in question)
    for said, earned in (
        (r"17 + 17 is \boxed{34}", 1.0),
        (r"\boxed{34.0}", 1.0),
        ("34", -0.1),
        (r"\boxed{35}", 0.0),
        (r"\boxed{34} or \boxed{35}", -0.1),
        ("", -0.1),
    ):
        env.reset(options={"index": at})
        _, reward, terminated, truncated, info = env.step(said)
        assert (reward, terminated, truncated) == (pytest.approx(earned), True, False), said
        assert info["grade"]["reference"] == "34"
    env.reset(options={"index": at})
    assert env.step(reply(r"\boxed{34}", "length"))[1] == pytest.approx(0.9)
    loose = make("GSM8K-v0", data=GSM8K, split=None, boxed=False)
    loose.reset(options={"index": at})
    assert loose.step("34")[1] == 1.0


def test_the_reference_is_a_reply_that_earns_1() -> None:
    for env_id, rows in (("GSM8K-v0", GSM8K), ("MATH-v0", MATH)):
        for boxed in (True, False):
            env = make(env_id, data=rows, split=None, boxed=boxed)
            for index in range(5):
                _, info = env.reset(options={"index": index})
                assert env.step(info["reference"])[1] == 1.0


def test_worked_examples_show_the_form_that_is_asked_for() -> None:
    opening, _ = make("GSM8K-v0", data=GSM8K, few_shot=3, system_prompt="Be brief.").reset(seed=0)
    assert [message["role"] for message in opening] == ["system", *["user", "assistant"] * 3, "user"]
    assert all(r"\boxed{" in message["content"] for message in opening[1:])
    assert all(message["content"].endswith("written inside \\boxed{}.") for message in opening[1::2])
    bare, _ = make("GSM8K-v0", data=GSM8K, few_shot=0, suffix="").reset(options={"index": 0})
    assert len(bare) == 1
    assert bare[0]["content"].endswith("?")


def test_one_file_is_divided_by_the_questions_and_a_folder_by_its_files(tmp_path: Path) -> None:
    data = write(tmp_path / "all.jsonl", GSM8K)
    train, test = (questions(make("GSM8K-v0", data=data, split=split)) for split in ("train", "test"))
    assert len(train) + len(test) == 40
    assert 0 < len(test) < 12
    assert not set(train) & set(test)
    write(tmp_path / "folder" / "train.jsonl", GSM8K[:30])
    write(tmp_path / "folder" / "test.jsonl", GSM8K[30:])
    train, test = (questions(make("GSM8K-v0", data=str(tmp_path / "folder"), split=s)) for s in ("train", "test"))
    assert (len(train), len(test)) == (30, 10)


def test_the_500_are_left_out_of_the_training_split_of_math(tmp_path: Path) -> None:
    # Spaced differently, as the two data sets are.
    held_out = [{**row, "problem": row["problem"].replace(" ", "  ")} for row in MATH[::4]]
    data, test_data = write(tmp_path / "math.jsonl", MATH), write(tmp_path / "500.jsonl", held_out)
    train = make("MATH-v0", data=data, test_data=test_data)
    test = make("MATH-v0", data=data, test_data=test_data, split="test")
    everything = make("MATH-v0", data=data, test_data=test_data, split=None)
    assert (train.num_problems, test.num_problems, everything.num_problems) == (30, 10, 40)
    assert len(without([{"problem": str(i)} for i in range(12500)], [{"problem": str(i)} for i in range(500)])) == 12000


def test_the_hubs_data_sets_are_asked_for_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load(source: Any, *, split: str | None = None, config: str | None = None) -> list[dict[str, str]]:
        asked.append((source, split, config))
        return [{"question": "q", "problem": f"{source} {config}", "answer": "#### 1", "final_answer": "1"}]

    monkeypatch.setattr("loragym.envs.math.word_problems.load_rows", load)
    for env_id in ("GSM8K-v0", "DeepMath-v0", "Polaris-v0"):
        make(env_id, split=None if env_id != "GSM8K-v0" else "test")
    assert asked == [
        ("openai/gsm8k", "test", "main"),
        ("zwhe99/DeepMath-103K", "train", None),
        ("POLARIS-Project/Polaris-Dataset-53K", "train", None),
    ]
    asked.clear()
    make("MATH-v0")
    assert asked[0] == ("HuggingFaceH4/MATH-500", "test", None)
    assert [config for _, _, config in asked[1:]] == list(SUBJECTS)
    asked.clear()
    make("MATH-v0", split="test")
    assert asked == [("HuggingFaceH4/MATH-500", "test", None)]


def test_math_may_be_narrowed_to_subjects_and_levels() -> None:
    env = make("MATH-v0", data=MATH, split=None, subjects=["algebra"], levels=[1, 2])
    rows = [row for row in MATH if row["type"] == "Algebra" and row["level"][-1] in "12"]
    assert len(questions(env)) == len(rows)
    named = make("MATH-v0", data=MATH, split=None, subjects=["counting_and_probability"])
    assert named.num_problems == 20


def test_deepmath_may_be_narrowed_to_difficulties() -> None:
    rows = [{"question": f"q{n}", "final_answer": str(n), "difficulty": n / 2} for n in range(20)]
    assert make("DeepMath-v0", data=rows, split=None, min_difficulty=3, max_difficulty=5).num_problems == 5


@pytest.mark.parametrize(
    ("env_id", "kwargs", "complaint"),
    [
        ("GSM8K-v0", {"data": "none.jsonl"}, "there is no file or folder none.jsonl"),
        ("GSM8K-v0", {"data": [{"question": "q"}]}, "one of .*'answer'.* was expected"),
        ("MATH-v0", {"data": [{"problem": "p", "solution": "no box"}]}, r"no \\boxed"),
        ("MATH-v0", {"data": MATH, "subjects": ["poetry"]}, "subjects are of"),
        ("MATH-v0", {"data": MATH, "levels": [6]}, "levels are from 1 to 5"),
        ("MATH-v0", {"data": MATH, "levels": [5], "subjects": ["geometry"]}, "there are no problems in it"),
        ("DeepMath-v0", {"data": GSM8K, "min_difficulty": 2, "max_difficulty": 1}, "min_difficulty <= max_difficulty"),
        ("GSM8K-v0", {"data": GSM8K, "few_shot": 9}, "few_shot is from 0 to 3"),
    ],
)
def test_what_cannot_be_used_says_why(env_id: str, kwargs: dict[str, Any], complaint: str) -> None:
    with pytest.raises((ValueError, DataNotFound, BadData), match=complaint):
        make(env_id, **kwargs)


def test_without_a_network_or_a_file_the_error_says_how_to_get_the_data() -> None:
    with pytest.raises(DataNotFound, match=r"openai/gsm8k.*pass data= the path of a JSONL or Parquet file"):
        make("GSM8K-v0")


@pytest.mark.parametrize(("env_id", "rows"), [("GSM8K-v0", GSM8K), ("MATH-v0", MATH)])
def test_they_are_gymnasium_environments(env_id: str, rows: list[Any]) -> None:
    check_env(make(env_id, data=rows), skip_render_check=True)
