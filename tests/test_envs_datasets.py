"""Rows come from files, folders, saved data sets and the hub, and what is wrong with a source is said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from loragym.envs.datasets import BadData, DataNotFound, load_rows, text_of

ROWS = [{"question": f"What is {n}?", "answer": n, "note": "a\u2028b"} for n in range(5)]


def write_jsonl(path: Path, rows: Sequence[Any] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    datasets = pytest.importorskip("datasets")
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    return path


def test_a_file_of_json_lines_is_read_whatever_the_split(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "anything.jsonl")
    assert list(load_rows(file)) == list(load_rows(str(file), split="test")) == ROWS


def test_json_and_parquet_hold_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    parquet = load_rows(write_parquet(tmp_path / "rows.parquet"))
    assert [dict(row) for row in parquet] == load_rows(tmp_path / "rows.json") == ROWS


def test_a_folder_has_a_file_or_a_folder_for_each_split(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data" / "train-00000-of-00002.jsonl", ROWS[:2])
    write_jsonl(tmp_path / "data" / "train-00001-of-00002.jsonl", ROWS[2:3])
    write_jsonl(tmp_path / "test" / "rows.jsonl", ROWS[3:])
    write_jsonl(tmp_path / "training.jsonl", ROWS)
    assert load_rows(tmp_path, split="train") == ROWS[:3]
    assert load_rows(tmp_path, split="test") == ROWS[3:]


def test_shards_of_parquet_are_one_data_set(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00002.parquet", ROWS[:2])
    write_parquet(tmp_path / "train-00001-of-00002.parquet", ROWS[2:])
    assert [row["answer"] for row in load_rows(tmp_path, split="train")] == [0, 1, 2, 3, 4]


def test_a_configuration_is_a_sub_folder(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "main" / "train.jsonl", ROWS[:1])
    write_jsonl(tmp_path / "socratic" / "train.jsonl", ROWS[1:])
    assert load_rows(tmp_path, split="train", config="socratic") == ROWS[1:]


def test_a_saved_data_set_is_read_by_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS[:3]), "test": datasets.Dataset.from_list(ROWS[3:])}
    )
    made.save_to_disk(str(tmp_path / "saved"))
    assert [row["answer"] for row in load_rows(tmp_path / "saved", split="test")] == [3, 4]
    with pytest.raises(DataNotFound, match="train, test; ask for one"):
        load_rows(tmp_path / "saved")


def test_rows_are_read_once_until_the_file_changes(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl")
    first = load_rows(file)
    assert load_rows(file) is first
    write_jsonl(file, ROWS[:1])
    assert load_rows(file) == ROWS[:1]


def test_rows_that_are_handed_in_pass_through() -> None:
    assert load_rows(ROWS, split="train") is ROWS


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"a": 1}\n{"a": \n', r"rows.jsonl:2 is not JSON"),
        (b'{"a": 1}\n[1]\n', r"rows.jsonl:2: an object .* not \[1\]"),
        (b'{"a": "\xff"}\n', "is not UTF-8"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    with pytest.raises(BadData, match=why):
        load_rows(file)


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(BadData, match=r"rows\.parquet cannot be read as Parquet"):
        load_rows(tmp_path / "rows.parquet")


def test_what_is_nowhere_says_what_was_tried_and_how_to_supply_it(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match=r"no file or folder .*missing\.jsonl; pass data= the path"):
        load_rows(tmp_path / "missing.jsonl")
    write_jsonl(tmp_path / "train.jsonl")
    with pytest.raises(DataNotFound, match=r"no file for split 'test'; it has: train\.jsonl"):
        load_rows(tmp_path, split="test")
    with pytest.raises(BadData, match=r"rows\.csv is none of \.jsonl"):
        (tmp_path / "rows.csv").write_text("a,b")
        load_rows(tmp_path / "rows.csv")


def test_a_hub_id_without_a_hub_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*args: Any, **options: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataNotFound, match=r"nobody/nothing is no local path.*no route to host.*pass data="):
        load_rows("nobody/nothing", split="train")


def test_text_of_takes_the_first_column_there_is() -> None:
    assert text_of({"answer": 7, "solution": None}, "solution", "answer", where="here") == "7"
    with pytest.raises(BadData, match=r"here: a row has the columns \['a'\]; one of \['b'\]"):
        text_of({"a": 1}, "b", where="here")
    with pytest.raises(BadData, match="text was expected"):
        text_of({"a": [1]}, "a", where="here")
