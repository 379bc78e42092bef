"""Data sets by their ids on the hub, as they are laid out there: a hub on loopback serves stand-ins for their rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import loopback_hub

datasets = pytest.importorskip("datasets")

MATH_SUBJECTS = {
    "algebra": (1744, 1187),
    "counting_and_probability": (771, 474),
    "geometry": (870, 479),
    "intermediate_algebra": (1295, 903),
    "number_theory": (869, 540),
    "prealgebra": (1205, 871),
    "precalculus": (746, 546),
}
"""How many problems MATH has of each subject, for training and for testing: 7,500 and 5,000."""


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(str(path))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_card(folder: Path, configs: dict[str, dict[str, str]]) -> None:
    """The README of a data set with several configurations: which files are whose splits."""
    lines = ["---", "configs:"]
    for name, splits in configs.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += [f"  - split: {split}\n    path: {path}" for split, path in splits.items()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("\n".join([*lines, "---", "A stand-in."]), encoding="utf-8")


def write_configs(folder: Path, configs: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    for config, splits in configs.items():
        for split, rows in splits.items():
            write_parquet(folder / config / f"{split}-00000-of-00001.parquet", rows)
    write_card(
        folder, {config: {split: f"{config}/{split}-*" for split in splits} for config, splits in configs.items()}
    )


def gsm8k(numbers: range) -> list[dict[str, Any]]:
    return [
        {
            "question": f"Ann has {n} apples and buys 2. How many?",
            "answer": f"{n} + 2 = <<{n}+2={n + 2}>>{n + 2}\n#### {n + 2}",
        }
        for n in numbers
    ]


def math_problem(subject: str, split: str, number: int) -> dict[str, Any]:
    return {
        "problem": f"In {subject} ({split}), what is ${number} + 1$?",
        "level": f"Level {number % 5 + 1}",
        "type": subject.replace("_", " ").title(),
        "solution": f"It is $\\boxed{{{number + 1}}}$.",
    }


def hotpot(number: int) -> dict[str, Any]:
    return {
        "id": f"hotpot-{number}",
        "question": f"Which river flows through town {number}?",
        "answer": f"River {number}",
        "type": "bridge",
        "level": "easy",
        "supporting_facts": {"title": [f"Town {number}"], "sent_id": [0]},
        "context": {
            "title": [f"Town {number}", "Elsewhere"],
            "sentences": [[f"Town {number} lies on River {number}.", " It is old."], ["Elsewhere is far away."]],
        },
    }


def fill(root: Path) -> None:
    """Stand-ins for the data sets, in the layouts that those have on the hub."""
    write_configs(
        root / "openai" / "gsm8k",
        {
            "main": {"train": gsm8k(range(30)), "test": gsm8k(range(100, 110))},
            "socratic": {"train": gsm8k(range(3)), "test": gsm8k(range(3))},
        },
    )
    problems = {
        subject: {
            split: [math_problem(subject, split, n) for n in range(count)]
            for split, count in zip(("train", "test"), counts, strict=True)
        }
        for subject, counts in MATH_SUBJECTS.items()
    }
    write_configs(root / "EleutherAI" / "hendrycks_math", problems)
    every_test = [row for splits in problems.values() for row in splits["test"]]
    held_out = [
        {
            **row,
            "answer": row["solution"].split("{")[1].split("}")[0],
            "subject": row.pop("type"),
            "level": int(row["level"][-1]),
            "unique_id": f"test/{number}.json",
        }
        for number, row in enumerate(dict(row) for row in every_test[::10])
    ]
    write_jsonl(root / "HuggingFaceH4" / "MATH-500" / "test.jsonl", held_out)
    deepmath = [
        {
            "question": f"Evaluate $\\int_0^{n} dx$.",
            "final_answer": str(n),
            "difficulty": float(n % 10),
            "topic": "Calculus",
            "r1_solution_1": "x",
        }
        for n in range(60)
    ]
    for part in range(2):
        name = f"train-0000{part}-of-00002.parquet"
        write_parquet(root / "zwhe99" / "DeepMath-103K" / "data" / name, deepmath[30 * part : 30 * part + 30])
    polaris = [{"problem": f"Find ${n}^2$.", "answer": str(n * n), "difficulty": f"{n % 9}/8"} for n in range(60)]
    write_parquet(root / "POLARIS-Project" / "Polaris-Dataset-53K" / "polaris-data-53K.parquet", polaris)
    write_configs(
        root / "hotpotqa" / "hotpot_qa",
        {
            "distractor": {"train": [hotpot(n) for n in range(8)], "validation": [hotpot(n) for n in range(100, 104)]},
            "fullwiki": {"train": [hotpot(0)], "validation": [hotpot(1)]},
        },
    )
    open_questions = [{"question": f"who wrote book {n}", "answer": [f"Author {n}", f"A. {n}"]} for n in range(8)]
    nq = root / "google-research-datasets" / "nq_open"
    write_configs(nq, {"nq_open": {"train": open_questions[:6], "validation": open_questions[6:]}})
    # Some messages have a name: a table then has the column for all, filled with None.
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"Hi {n}."},
                {"role": "assistant", "content": "Hello.", "name": "Bo" if n else None},
            ]
        }
        for n in range(4)
    ]
    write_parquet(root / "org" / "chats" / "data" / "train-00000-of-00001.parquet", chats)
    sides = {"chosen": ("Yes.", None), "rejected": ("No.", "Bo")}
    pairs = [
        {"prompt": f"Is it {n}?"}
        | {
            side: [{"role": "user", "content": f"Is it {n}?"}, {"role": "assistant", "content": text, "name": name}]
            for side, (text, name) in sides.items()
        }
        for n in range(5)
    ]
    write_parquet(root / "org" / "pairs" / "data" / "train-00000-of-00001.parquet", pairs)
    write_jsonl(
        root / "org" / "documents" / "train.jsonl", [{"id": "a", "title": "Author 6", "text": "Author 6 wrote book 6."}]
    )


PROGRAM = """
import json, sys
import gymnasium
import loragym
from loragym.envs.datasets import DataNotFound
from loragym.trainers.conversations import read_conversations
from loragym.trainers.preferences import read_pairs

def problems(env_id, **kwargs):
    env = gymnasium.make(f"loragym/{env_id}", **kwargs).unwrapped
    return [env.reset(options={"index": index})[1] for index in range(env.num_problems)]

def found():
    for env_id in ("GSM8K-v0", "MATH-v0", "DeepMath-v0", "Polaris-v0"):
        for split in ("train", "test"):
            yield f"{env_id} {split}", problems(env_id, split=split)
    yield "geometry 5", problems("MATH-v0", subjects=["geometry"], levels=[5])
    yield "hard", problems("DeepMath-v0", split=None, min_difficulty=8)
    yield "passable", problems("Polaris-v0", split=None, min_pass_rate=0.25, max_pass_rate=0.5)
    for name in ("hotpotqa", "nq"):
        for split in ("train", "test"):
            corpus = {} if name == "hotpotqa" else {"corpus": "org/documents"}
            yield f"{name} {split}", problems("Search-v0", questions=name, split=split, **corpus)
    env = gymnasium.make("loragym/Search-v0", questions="hotpotqa", split="test")
    env.reset(options={"index": 0})
    call = {"id": "1", "name": "search", "arguments": {"queries": ["town 100"]}}
    news, *_ = env.step({"role": "assistant", "content": "", "tool_calls": [call]})
    yield "searched", news[0]["content"]
    yield "chats", [example.messages for example in read_conversations("org/chats", split="train")]
    yield "pairs", [pair.conversations for pair in read_pairs("org/pairs", split="train")]
    yield "prompts", problems("Prompts-v0", data="org/chats")
    yield "own", problems("GSM8K-v0", data="openai/gsm8k", config="socratic", split="test")
    for what, ask in {
        "absent": lambda: problems("Prompts-v0", data="org/absent"),
        "no split": lambda: problems("Prompts-v0", data="org/chats", split="test"),
        "no config": lambda: problems("Prompts-v0", data="openai/gsm8k", config="none"),
    }.items():
        try:
            ask()
        except DataNotFound as error:
            yield what, str(error)

json.dump(dict(found()), sys.stdout)
"""


def run(endpoint: str, home: Path, program: str = PROGRAM) -> subprocess.CompletedProcess[str]:
    # The address is read when huggingface_hub is imported, hence a process of its own.
    surroundings = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "LORAGYM_CACHE": str(home / "cache"),
    }
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", program], env=surroundings, cwd=home, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def found(home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a program finds that asks for all of them."""
    root = tmp_path_factory.mktemp("hub")
    fill(root / "datasets")
    with loopback_hub(root) as endpoint:
        done = run(endpoint, home)
    assert done.returncode == 0, done.stderr[-3000:]
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


def questions(problems: list[dict[str, str]]) -> Iterator[str]:
    return (problem["problem"].split(" Put the final answer")[0] for problem in problems)


def test_gsm8k_has_its_own_splits(found: dict[str, Any]) -> None:
    assert list(questions(found["GSM8K-v0 train"])) == [row["question"] for row in gsm8k(range(30))]
    assert list(questions(found["GSM8K-v0 test"])) == [row["question"] for row in gsm8k(range(100, 110))]
    assert found["GSM8K-v0 test"][3]["reference"] == "\\boxed{105}"
    assert len(found["own"]) == 3


def test_math_trains_on_all_but_the_500_that_are_held_out(found: dict[str, Any]) -> None:
    train, test = (list(questions(found[f"MATH-v0 {split}"])) for split in ("train", "test"))
    assert (len(train), len(test)) == (12_000, 500)
    assert len({*train, *test}) == 12_500
    # The training split has what is left of both of the data set's own.
    assert sum("(test)" in question for question in train) == 4_500
    assert all("(test)" in question for question in test)


def test_math_is_chosen_by_subject_and_level(found: dict[str, Any]) -> None:
    train, test = MATH_SUBJECTS["geometry"]
    chosen = list(questions(found["geometry 5"]))
    assert all(question.startswith("In geometry") for question in chosen)
    # Every fifth problem is of level 5; of the 500 that are held out some are geometry's.
    held_out = [question for question in questions(found["MATH-v0 test"]) if question.startswith("In geometry")]
    of_level_5 = [question for question in held_out if int(question.split("$")[1].split()[0]) % 5 == 4]
    assert len(chosen) == train // 5 + test // 5 - len(of_level_5)


@pytest.mark.parametrize(("env_id", "size"), [("DeepMath-v0", 60), ("Polaris-v0", 60)])
def test_a_data_set_without_a_test_split_is_divided_by_its_questions(
    found: dict[str, Any], env_id: str, size: int
) -> None:
    train, test = (set(questions(found[f"{env_id} {split}"])) for split in ("train", "test"))
    assert not train & test and len(train | test) == size
    assert 0 < len(test) < size / 4


def test_problems_are_chosen_by_how_hard_they_are(found: dict[str, Any]) -> None:
    assert list(questions(found["hard"])) == [f"Evaluate $\\int_0^{n} dx$." for n in range(60) if n % 10 >= 8]
    assert list(questions(found["passable"])) == [f"Find ${n}^2$." for n in range(60) if 2 <= n % 9 <= 4]


def test_questions_to_search_for_come_from_the_hub(found: dict[str, Any]) -> None:
    assert [len(found[f"hotpotqa {split}"]) for split in ("train", "test")] == [8, 4]
    assert [len(found[f"nq {split}"]) for split in ("train", "test")] == [6, 2]
    assert "who wrote book 6" in found["nq test"][0]["problem"]
    assert "Town 100 lies on River 100. It is old." in found["searched"]


def test_conversations_and_pairs_come_from_the_hub(found: dict[str, Any]) -> None:
    assert found["chats"][0] == [{"role": "user", "content": "Hi 0."}, {"role": "assistant", "content": "Hello."}]
    assert found["chats"][1][1] == {"role": "assistant", "content": "Hello.", "name": "Bo"}
    assert len(found["chats"]) == 4 and len(found["pairs"]) == 5
    for number, (chosen, rejected) in enumerate(found["pairs"]):
        assert chosen[0] == rejected[0] == {"role": "user", "content": f"Is it {number}?"}
        assert (chosen[1]["content"], rejected[1]["content"]) == ("Yes.", "No.")
    # Their numbers are shuffled once and for all.
    assert sorted(found["prompts"], key=str) == [{"problem": f"Hi {n}.", "reference": "Hello."} for n in range(4)]


def test_what_is_not_there_is_named_with_what_to_do(found: dict[str, Any]) -> None:
    assert "org/absent is no local path, and the hub gave none of that name" in found["absent"]
    assert "pass data= the path of a JSONL or Parquet file" in found["absent"]
    assert found["no split"].startswith("org/chats has no such split or configuration")
    assert found["no config"].startswith("openai/gsm8k has no such split or configuration")


def test_what_was_fetched_is_there_without_the_hub(found: dict[str, Any], home: Path) -> None:
    program = """
import gymnasium, loragym
print(gymnasium.make("loragym/MATH-v0", split="train").unwrapped.num_problems)
try:
    gymnasium.make("loragym/GSM8K-v0", data="org/never-fetched")
except FileNotFoundError as error:
    print(type(error).__name__, "Without a network, pass data=" in str(error))
"""
    began = time.monotonic()
    done = run("http://127.0.0.1:9", home, program)
    assert time.monotonic() - began < 60
    assert "the hub http://127.0.0.1:9 does not answer" in done.stderr
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == ["12000", "DataNotFound True"]
