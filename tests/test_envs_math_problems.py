"""Data sets of problems: their columns, their splits, and what a reply to them earns."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from grading_attacks import attacks
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from loragym.envs.datasets import BadData, DataNotFound
from loragym.envs.math import word_problems
from loragym.envs.math.grading import Grade, grade
from loragym.envs.math.word_problems import SUBJECTS, WORKED_EXAMPLES, Reader, WordProblem, WordProblems
from loragym.messages import reply, without_stop_reason

GSM8K = [
    {"question": f"What is {n} plus {n}?", "answer": f"{n} + {n} = <<{n}+{n}={2 * n}>>{2 * n}.\n#### {2 * n}"}
    for n in range(40)
]
MATH = [
    {
        "problem": f"Find $x$ with $x={n}/7$.",
        "solution": rf"We have \boxed{{x}}, so it is \boxed{{\frac{{{n}}}{{7}}}}.",
        "level": f"Level {n % 5 + 1}",
        "type": ["Algebra", "Counting & Probability"][n % 2],
    }
    for n in range(40)
]
DEEPMATH = [
    {"question": f"Find $\\lim {n}$.", "final_answer": f"{n}\\pi", "difficulty": n / 2, "r1_solution_1": "long"}
    for n in range(20)
]
POLARIS = [{"problem": f"Find ${n}!$.", "answer": f"{n}!", "difficulty": f"{n % 9}/8"} for n in range(20)]
ALL = {"GSM8K-v0": GSM8K, "MATH-v0": MATH, "DeepMath-v0": DEEPMATH, "Polaris-v0": POLARIS}


def write(path: Path, rows: Sequence[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    datasets = pytest.importorskip("datasets")
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    return str(path)


def make(env_id: str, **kwargs: Any) -> Any:
    return gymnasium.make(f"loragym/{env_id}", disable_env_checker=True, **kwargs).unwrapped


def questions(env: Any) -> list[str]:
    return [env.reset(options={"index": i})[1]["problem"].removesuffix(env.suffix) for i in range(env.num_problems)]


def splits(env_id: str, **kwargs: Any) -> tuple[list[str], list[str], list[str]]:
    train, test, everything = (questions(make(env_id, split=split, **kwargs)) for split in ("train", "test", None))
    return train, test, everything


# What a reply earns


def test_a_right_answer_in_a_box_earns_1_and_form_costs_a_tenth() -> None:
    env = make("GSM8K-v0", data=GSM8K, split=None)
    for said, earned in (
        (r"17 + 17 is \boxed{34}", 1.0),
        (r"\boxed{34.0}", 1.0),
        ("34", -0.1),
        (r"\boxed{35}", 0.0),
        (r"\boxed{34} or \boxed{35}", -0.1),
        (r"\boxed{17+17}", 0.0),
        ("", -0.1),
    ):
        env.reset(options={"index": 17})
        observation, reward, terminated, truncated, info = env.step(said)
        assert (observation, terminated, truncated) == ((), True, False)
        assert reward == pytest.approx(earned), said
        assert info["grade"]["reference"] == "34"
        assert set(info["metrics"]) == {"correct", "format", "timeout", "crashed"}
    env.reset(options={"index": 17})
    _, reward, _, _, info = env.step(reply(r"\boxed{34}", "length"))
    assert (reward, info["stop_reason"]) == (pytest.approx(0.9), "length")
    loose = make("GSM8K-v0", data=GSM8K, split=None, boxed=False)
    loose.reset(options={"index": 17})
    assert loose.step("34")[1] == 1.0
    dear = make("GSM8K-v0", data=GSM8K, split=None, format_coef=0.5)
    dear.reset(options={"index": 17})
    assert dear.step("34")[1] == pytest.approx(-0.5)


@pytest.mark.parametrize("env_id", ALL)
@pytest.mark.parametrize("boxed", [True, False])
def test_the_reference_and_the_solution_are_replies_that_earn_1(env_id: str, boxed: bool) -> None:
    env = make(env_id, data=ALL[env_id], split=None, boxed=boxed)
    for index in range(2, 8):
        _, info = env.reset(options={"index": index})
        assert env.step(info["reference"])[1] == 1.0
        env.reset(options={"index": index})
        if "solution" in MATH[0] and env_id in ("GSM8K-v0", "MATH-v0"):
            (solution,) = env.solution()
            assert len(solution["content"]) > len(info["reference"])
            assert env.step(solution)[1] == 1.0
        else:
            with pytest.raises(NotImplementedError):
                env.solution()


def test_a_solution_is_the_data_sets_own_without_notes_for_calculators() -> None:
    env = make("GSM8K-v0", data=GSM8K, split=None)
    env.reset(options={"index": 3})
    assert [without_stop_reason(said)["content"] for said in env.solution()] == ["3 + 3 = 6.\n\n\\boxed{6}"]


def test_a_failing_grader_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for verdict in ("timeout", "crashed"):
        failed = Grade(correct=False, well_formed=True, verdict=verdict, answer="1", reference="2")  # type: ignore[arg-type]
        monkeypatch.setattr(word_problems, "grade", lambda *_, failed=failed, **__: failed)
        env = make("GSM8K-v0", data=GSM8K)
        env.reset(seed=0)
        metrics = env.step("x")[4]["metrics"]
        assert metrics == {"correct": 0.0, "format": 1.0, "timeout": 0.0, "crashed": 0.0, verdict: 1.0}


def test_a_reply_is_graded_once_and_never_with_the_grade_of_another_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    graded: list[str] = []

    def counting(answer: str, reference: str, **options: Any) -> Grade:
        graded.append(reference)
        return grade(answer, reference, **options)

    monkeypatch.setattr(word_problems, "grade", counting)
    env = make("GSM8K-v0", data=GSM8K, split=None)
    for index in (3, 4):
        env.reset(options={"index": index})
        assert env.step(r"\boxed{6}")[1] == float(index == 3)
    assert graded == ["6", "8"]
    assert env.is_correct(WordProblem("?", "6"), r"\boxed{6}")


def test_worked_examples_show_the_form_that_is_asked_for() -> None:
    env = make("GSM8K-v0", data=GSM8K, few_shot=3, system_prompt="Be brief.")
    opening, _ = env.reset(seed=0)
    assert [message["role"] for message in opening] == ["system", *["user", "assistant"] * 3, "user"]
    assert all(r"\boxed{" in message["content"] for message in opening[1:])
    assert all(message["content"].endswith(env.suffix) for message in opening[1::2])
    for (asked, said), answer in zip(WORKED_EXAMPLES, ("215", "21", "35"), strict=True):
        assert grade(said, answer, question=asked).correct
    bare, _ = make("GSM8K-v0", data=GSM8K, few_shot=0, suffix="").reset(options={"index": 0})
    assert len(bare) == 1
    assert bare[0]["content"].endswith("?")


@pytest.mark.parametrize(
    ("said", "reference", "question"),
    [
        *((attack.reply, attack.reference, attack.question) for attack in attacks()[::12] if attack.boxed is not False),
        ("\\boxed{" * 150_000, "1", None),
        ("\ud800\\boxed{\ud800}", "1", None),
    ],
)
def test_hostile_replies_earn_nothing(said: str, reference: str, question: str | None) -> None:
    row = {"question": question or "How much?", "answer": f"#### {reference}"}
    env = make("GSM8K-v0", data=[row], split=None)
    env.reset(seed=0)
    start = time.perf_counter()
    _, reward, terminated, *_ = env.step(said)
    assert terminated and reward <= 0
    assert time.perf_counter() - start < 15


@given(st.text(max_size=200))
def test_any_text_is_a_legal_reply(text: str) -> None:
    env = make("MATH-v0", data=MATH, split=None)
    env.reset(seed=0)
    assert env.step(text)[1] in (pytest.approx(0), pytest.approx(-0.1))


# Splits


@pytest.mark.parametrize("env_id", ALL)
def test_a_single_file_is_divided_by_its_questions(env_id: str, tmp_path: Path) -> None:
    data = write(tmp_path / "all.jsonl", ALL[env_id])
    train, test, everything = splits(env_id, data=data)
    assert sorted(train + test) == sorted(everything)
    assert len(everything) == len(set(everything)) == len(ALL[env_id])
    assert 0 < len(test) < len(everything) / 3


def test_where_a_problem_belongs_depends_on_its_words_alone(tmp_path: Path) -> None:
    spaced = [{**row, "question": row["question"].replace(" ", " \n")} for row in reversed(GSM8K)]
    _, test, _ = splits("GSM8K-v0", data=GSM8K)
    _, again, _ = splits("GSM8K-v0", data=write(tmp_path / "spaced.jsonl", spaced))
    assert sorted(" ".join(question.split()) for question in again) == sorted(test)


def test_a_folder_is_divided_by_its_files(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", GSM8K[:30])
    write(tmp_path / "test.jsonl", GSM8K[30:])
    train, test, everything = splits("GSM8K-v0", data=str(tmp_path))
    assert train == [row["question"] for row in GSM8K[:30]]
    assert test == [row["question"] for row in GSM8K[30:]]
    assert everything == train + test


def test_a_folder_without_a_test_split_is_divided_by_its_questions(tmp_path: Path) -> None:
    # Both are as `hf download` leaves them.
    write_parquet(tmp_path / "deep" / "data" / "train-00000-of-00002.parquet", DEEPMATH[:10])
    write_parquet(tmp_path / "deep" / "data" / "train-00001-of-00002.parquet", DEEPMATH[10:])
    write_parquet(tmp_path / "polaris" / "polaris-data-53K.parquet", POLARIS)
    for env_id, folder in (("DeepMath-v0", "deep"), ("Polaris-v0", "polaris")):
        train, test, everything = splits(env_id, data=str(tmp_path / folder))
        assert (train, test) == splits(env_id, data=ALL[env_id])[:2]
        assert len(everything) == 20


def test_a_folder_of_gsm8k_from_the_hub_has_its_configurations_in_folders(tmp_path: Path) -> None:
    for split, rows in (("train", GSM8K[:30]), ("test", GSM8K[30:])):
        write_parquet(tmp_path / "main" / f"{split}-00000-of-00001.parquet", rows)
        write_parquet(tmp_path / "socratic" / f"{split}-00000-of-00001.parquet", rows)
    train, test, _ = splits("GSM8K-v0", data=str(tmp_path))
    assert (len(train), len(test)) == (30, 10)


def test_a_saved_data_set_is_divided_by_its_splits_if_it_has_any(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(GSM8K)
    whole.save_to_disk(str(tmp_path / "one"))
    train, test, _ = splits("GSM8K-v0", data=str(tmp_path / "one"))
    assert len(train) + len(test) == 40 and not set(train) & set(test)
    datasets.DatasetDict({"train": whole.select(range(30)), "test": whole.select(range(30, 40))}).save_to_disk(
        str(tmp_path / "two")
    )
    train, test, _ = splits("GSM8K-v0", data=str(tmp_path / "two"))
    assert (len(train), len(test)) == (30, 10)


@pytest.mark.parametrize("env_id", ALL)
def test_test_data_is_held_out_and_left_out_of_the_rest(env_id: str, tmp_path: Path) -> None:
    rows = ALL[env_id]
    name = "problem" if "problem" in rows[0] else "question"
    # Spaced differently, as copies of data sets are.
    held_out = [{**row, name: f" {row[name]}".replace("$", " $ ")} for row in rows[::4]]
    data, test_data = write(tmp_path / "all.jsonl", rows), write(tmp_path / "held_out.jsonl", held_out)
    train, test, everything = splits(env_id, data=data, test_data=test_data)
    assert train == [row[name] for row in rows if row not in rows[::4]]
    assert test == [row[name] for row in held_out]
    assert everything == train + test


def test_the_split_of_math_has_12000_and_500_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    """All subjects and both splits of the hub's MATH, less MATH-500, on a data set of the right size and shape."""

    def row(number: int, subject: str) -> dict[str, Any]:
        return {"problem": f"Find ${number}$.", "solution": rf"\boxed{{{number}}}", "type": subject.title()}

    sizes = {("train", subject): 1071 for subject in SUBJECTS} | {("test", subject): 714 for subject in SUBJECTS}
    sizes["train", "algebra"] += 7500 - 7 * 1071
    sizes["test", "algebra"] += 5000 - 7 * 714
    hub: dict[Any, list[dict[str, Any]]] = {}
    tests: list[dict[str, Any]] = []
    count = 0
    for (split, subject), size in sizes.items():
        rows = [row(count + i, subject) for i in range(size)]
        hub["EleutherAI/hendrycks_math", split, subject] = rows
        tests += rows if split == "test" else []
        count += size
    math_500 = [{**one, "answer": one["solution"][7:-1], "problem": one["problem"] + "\n"} for one in tests[::10]]
    hub["HuggingFaceH4/MATH-500", "test", None] = math_500
    asked: list[Any] = []

    def load(source: Any, *, split: str | None = None, config: str | None = None) -> list[dict[str, str]]:
        asked.append((source, split, config))
        return hub[source, split, config]

    monkeypatch.setattr(word_problems, "load_rows", load)
    train, test, everything = (make("MATH-v0", split=split) for split in ("train", "test", None))
    assert (train.num_problems, test.num_problems, everything.num_problems) == (12_000, 500, 12_500)
    held_out = {int(one["answer"]) for one in math_500}
    assert {int(p.answer) for p in train._problems} == set(range(12_500)) - held_out
    assert {int(p.answer) for p in test._problems} == held_out
    asked.clear()
    assert make("MATH-v0", split="test").num_problems == 500
    assert asked == [("HuggingFaceH4/MATH-500", "test", None)]
    asked.clear()
    make("MATH-v0", subjects=["geometry"], split="test")
    make("MATH-v0", subjects=["geometry", "algebra"])
    assert {config for _, _, config in asked} == {None, "geometry", "algebra"}


def test_a_copy_of_math_is_all_its_subjects_and_splits_less_the_test_data(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    test_data = write(tmp_path / "500.jsonl", [{**row, "answer": "1"} for row in MATH[::4]])
    for part, subject, split in ((0, "algebra", "train"), (1, "algebra", "test"), (2, "geometry", "train")):
        write_parquet(tmp_path / "copy" / subject / f"{split}-00000-of-00001.parquet", MATH[part::3])
    halves = {"train": datasets.Dataset.from_list(MATH[:20]), "test": datasets.Dataset.from_list(MATH[20:])}
    datasets.DatasetDict(halves).save_to_disk(str(tmp_path / "saved"))
    for folder in ("copy", "saved"):
        train, test, everything = splits("MATH-v0", data=str(tmp_path / folder), test_data=test_data)
        assert sorted(train) == sorted(row["problem"] for row in MATH if row not in MATH[::4])
        assert (len(test), len(everything)) == (10, 40)


def test_the_hubs_data_sets_are_asked_for_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load(source: Any, *, split: str | None = None, config: str | None = None) -> list[dict[str, str]]:
        asked.append((source, split, config))
        return [{"question": f"q{n}", "problem": f"q{n}", "answer": "#### 1", "final_answer": "1"} for n in range(40)]

    monkeypatch.setattr(word_problems, "load_rows", load)
    for env_id, split in (("GSM8K-v0", "train"), ("GSM8K-v0", "test"), ("DeepMath-v0", "test"), ("Polaris-v0", None)):
        make(env_id, split=split)
    assert asked == [
        ("openai/gsm8k", "train", "main"),
        ("openai/gsm8k", "test", "main"),
        ("zwhe99/DeepMath-103K", "train", None),
        ("POLARIS-Project/Polaris-Dataset-53K", "train", None),
    ]


def test_a_hub_id_of_ones_own_is_divided_by_its_splits_if_it_has_a_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(source: Any, *, split: str | None = None, config: str | None = None) -> list[dict[str, str]]:
        if source == "me/gone":
            raise DataNotFound("no such id") from ConnectionError("unreachable")
        if source == "me/train_alone" and split != "train":
            raise DataNotFound("no such split") from ValueError("Unknown split")
        return GSM8K[:30] if split == "train" else GSM8K[30:]

    monkeypatch.setattr(word_problems, "load_rows", load)
    train, test, _ = splits("GSM8K-v0", data="me/both")
    assert (len(train), len(test)) == (30, 10)
    train, test, everything = splits("GSM8K-v0", data="me/train_alone")
    assert sorted(train + test) == sorted(everything) and len(everything) == 30
    with pytest.raises(DataNotFound, match="no such id"):
        make("GSM8K-v0", data="me/gone")


@pytest.mark.parametrize("env_id", ALL)
def test_trainers_evaluate_on_what_is_held_out(env_id: str, tmp_path: Path) -> None:
    from loragym.trainers.evaluation import held_out_tasks

    data = write(tmp_path / "rows.jsonl", ALL[env_id])
    _, test, _ = splits(env_id, data=data)
    asked = []
    for task in held_out_tasks(f"loragym/{env_id}", {"data": data}, 100):
        env = make(env_id, **task.kwargs)
        asked.append(env.reset(seed=task.seed, options=dict(task.options or {}))[1]["problem"].removesuffix(env.suffix))
    assert asked == test


# Columns, and choosing


def test_files_lists_and_parquet_are_the_same_problems(tmp_path: Path) -> None:
    listed = splits("DeepMath-v0", data=DEEPMATH)
    assert splits("DeepMath-v0", data=write(tmp_path / "rows.jsonl", DEEPMATH)) == listed
    assert splits("DeepMath-v0", data=write_parquet(tmp_path / "rows.parquet", DEEPMATH)) == listed


def test_math_may_be_narrowed_to_subjects_and_levels() -> None:
    env = make("MATH-v0", data=MATH, split=None, subjects=["algebra"], levels=[1, 2])
    rows = [row for row in MATH if row["type"] == "Algebra" and row["level"][-1] in "12"]
    assert questions(env) == [row["problem"] for row in rows]
    named = make("MATH-v0", data=MATH, split=None, subjects=["counting_and_probability"])
    assert named.num_problems == 20
    # As in MATH-500, and with a level that nobody knows.
    others = [{"problem": "p", "answer": "1", "subject": "Algebra", "level": 2}, {**MATH[0], "level": "Level ?"}]
    assert questions(make("MATH-v0", data=others, split=None, levels=[2])) == ["p"]


def test_choosing_moves_no_problem_from_one_split_to_the_other(tmp_path: Path) -> None:
    data, test_data = write(tmp_path / "math.jsonl", MATH), write(tmp_path / "500.jsonl", MATH[::4])
    for kwargs in ({"data": data}, {"data": data, "test_data": test_data}):
        train, test, _ = splits("MATH-v0", **kwargs)
        some_train, some_test, _ = splits("MATH-v0", **kwargs, levels=[1, 2, 3, 4], subjects=["algebra"])
        assert set(some_train) < set(train) and set(some_test) < set(test)


def test_an_answer_of_math_is_the_last_box_of_the_solution_or_its_own_column() -> None:
    rows = [
        {"problem": "a", "solution": r"\boxed{1} and so \boxed{\frac{1}{2}}"},
        {"problem": "b", "solution": r"\boxed 7"},
        {"problem": "c", "solution": r"\fbox{8}", "answer": "9"},
    ]
    env = make("MATH-v0", data=rows, split=None)
    assert [problem.answer for problem in env._problems] == [r"\frac{1}{2}", "7", "9"]


def test_deepmath_and_polaris_may_be_narrowed_to_difficulties() -> None:
    assert make("DeepMath-v0", data=DEEPMATH, split=None, min_difficulty=3, max_difficulty=5).num_problems == 5
    env = make("Polaris-v0", data=POLARIS, split=None, min_pass_rate=0.125, max_pass_rate=0.25)
    assert [problem.answer for problem in env._problems] == ["1!", "2!", "10!", "11!", "19!"]


def test_rows_without_an_answer_are_left_out_and_counted() -> None:
    rows = [*GSM8K, {"question": "q", "answer": None}, {"question": "r", "answer": "It is not known."}]
    env = make("GSM8K-v0", data=rows, split=None)
    assert (env.num_problems, env.num_skipped) == (40, 2)
    env = make("MATH-v0", data=[*MATH, {"problem": "p", "solution": "no box"}], split=None)
    assert (env.num_problems, env.num_skipped) == (40, 1)


@dataclass(frozen=True)
class Capitals(Reader):
    """Rows of countries."""

    def read(self, row: Any, where: str) -> WordProblem | None:
        return WordProblem(f"What is the capital of {row['country']}?", row["capital"]) if row["capital"] else None


def test_any_data_set_is_one_of_problems_by_a_reader_of_ones_own() -> None:
    rows = [{"country": "Norway", "capital": "Oslo"}, {"country": "Nauru", "capital": ""}]
    env = WordProblems(data=rows, reader=Capitals(), split=None)
    assert questions(env) == ["What is the capital of Norway?"]
    env.reset(seed=0)
    assert env.step(r"It is \boxed{Oslo}.")[1] == 1.0
    with pytest.raises(ValueError, match="WordProblems has no data set of its own; pass data="):
        WordProblems()


# What is wrong with data


@pytest.mark.parametrize(
    ("env_id", "kwargs", "complaint"),
    [
        ("GSM8K-v0", {"data": "none.jsonl"}, "there is no file or folder none.jsonl|none.jsonl"),
        ("GSM8K-v0", {"data": [{"question": "q"}]}, "row 0: .*one of .*'answer'.* was expected"),
        ("GSM8K-v0", {"data": [*GSM8K, {"question": [1], "answer": "1"}]}, "row 40: column 'question' holds"),
        ("GSM8K-v0", {"data": []}, "there are no problems in it"),
        ("MATH-v0", {"data": [{"problem": "p"}]}, r"one of \['answer', 'solution'\] was expected"),
        ("MATH-v0", {"data": [{"problem": "p", "solution": "no box"}]}, "there are no problems in it"),
        ("MATH-v0", {"data": MATH, "subjects": ["poetry"]}, "subjects are of"),
        ("MATH-v0", {"data": MATH, "subjects": "algebra"}, "subjects are of"),
        ("MATH-v0", {"data": MATH, "levels": [6]}, "levels are from 1 to 5"),
        ("MATH-v0", {"data": [{"problem": "p", "answer": "1"}], "levels": [5]}, r"one of \['level'\] was expected"),
        ("MATH-v0", {"data": MATH, "levels": [5], "subjects": ["geometry"]}, "there are no problems in it"),
        ("DeepMath-v0", {"data": GSM8K, "min_difficulty": 2, "max_difficulty": 1}, "min_difficulty <= max_difficulty"),
        ("Polaris-v0", {"data": POLARIS, "min_pass_rate": 2, "max_pass_rate": 1}, "min_pass_rate <= max_pass_rate"),
        ("Polaris-v0", {"data": [{**POLARIS[0], "difficulty": "1/0"}], "min_pass_rate": 0}, "'1/0'; a number was"),
        ("GSM8K-v0", {"data": GSM8K, "few_shot": 9}, "few_shot is from 0 to 3"),
        ("GSM8K-v0", {"data": GSM8K, "split": "dev"}, "split is one of .*'dev'"),
    ],
)
def test_what_cannot_be_used_says_why(env_id: str, kwargs: dict[str, Any], complaint: str) -> None:
    with pytest.raises((ValueError, DataNotFound, BadData), match=complaint):
        make(env_id, **kwargs)


def test_without_a_hub_or_a_file_the_error_says_how_to_get_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*args: Any, **options: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    for env_id in ALL:
        with pytest.raises(DataNotFound, match=r"/.*no route.*pass data= the path of a JSONL or Parquet file"):
            make(env_id)


# Conformance and cost


@pytest.mark.parametrize("env_id", ALL)
def test_they_are_gymnasium_environments(env_id: str, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", ALL[env_id])
    env = gymnasium.make(f"loragym/{env_id}", data=data, split=None)
    check_env(env.unwrapped)
    assert env.spec is not None
    again = gymnasium.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.reset(seed=9) == env.reset(seed=9)


@pytest.mark.parametrize("env_id", ALL)
def test_the_same_seed_is_the_same_problem_in_another_process(env_id: str, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", ALL[env_id])
    code = f"import gymnasium; print(gymnasium.make('loragym:loragym/{env_id}', data={data!r}).reset(seed=11))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == repr(make(env_id, data=data).reset(seed=11))


def test_a_pickled_environment_goes_on_and_carries_no_data_that_can_be_read_again(tmp_path: Path) -> None:
    rows = [{"question": f"q{n} " + "x" * 1000, "answer": f"#### {n}"} for n in range(500)]
    for data, is_small in ((write(tmp_path / "rows.jsonl", rows), True), (rows, False)):
        env = make("GSM8K-v0", data=data)
        _, info = env.reset(seed=5)
        frozen = pickle.dumps(env)
        assert (len(frozen) < 50_000) == is_small
        twin = pickle.loads(frozen)
        assert twin.step(info["reference"]) == env.step(info["reference"])
        assert twin.reset() == env.reset()


def test_many_environments_of_the_same_data_share_it_and_are_made_at_once(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} + 1?", "final_answer": str(n + 1), "difficulty": 5.0} for n in range(20_000)]
    data = write(tmp_path / "rows.jsonl", rows)
    first = make("DeepMath-v0", data=data)
    start = time.perf_counter()
    others = [make("DeepMath-v0", data=data) for _ in range(100)]
    assert time.perf_counter() - start < 2
    assert all(other._problems is first._problems for other in others)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", GSM8K)
    assert make("GSM8K-v0", data=data, split=None).num_problems == 40
    write(tmp_path / "rows.jsonl", GSM8K[:7])
    assert make("GSM8K-v0", data=data, split=None).num_problems == 7


def test_columns_that_nobody_asked_for_stay_on_the_disk(tmp_path: Path) -> None:
    data = write_parquet(tmp_path / "rows.parquet", DEEPMATH)
    (part,) = make("DeepMath-v0", data=data)._parts()[0]
    (row, *_) = word_problems._wanted_columns(part.rows, ("question", "final_answer"))
    assert set(row) == {"question", "final_answer"}
