"""Whatever stands in a data file, a loader gives rows or a sentence that names the file: never a traceback.

The loaders are all there are: chats, preference pairs, prompts, word problems, documents to search and questions about
them. A file's lines are JSON that fits, JSON that does not, or no JSON at all; Parquet files hold any columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile import cases, deep, json_values, mangled, refusal, texts, try_many, writes_only_in
from hypothesis import strategies as st
from loragym.envs.datasets import load_rows
from loragym.envs.making import make_env
from loragym.envs.tools.search.documents import open_corpus
from loragym.envs.tools.search.questions import documents_with, load_questions
from loragym.trainers.conversations import read_conversations
from loragym.trainers.preferences import read_pairs, split_pairs


def play_first(env_id: str) -> Callable[[Path], Any]:
    def load(path: Path) -> Any:
        env = make_env(env_id, {"data": str(path), "split": None})
        try:
            # The first reply, too: some rows are read when they are asked for.
            for index in range(min(3, env.unwrapped.num_problems)):  # type: ignore[attr-defined]
                env.reset(seed=0, options={"index": index})
        finally:
            env.close()

    return load


LOADERS: dict[str, Callable[[Path], Any]] = {
    "rows": lambda path: list(load_rows(path)),
    "chats": read_conversations,
    "pairs": lambda path: split_pairs(read_pairs(path), 0.5),
    "prompts": play_first("loragym/Prompts-v0"),
    "gsm8k": play_first("loragym/GSM8K-v0"),
    "math": play_first("loragym/MATH-v0"),
    "deepmath": play_first("loragym/DeepMath-v0"),
    "polaris": play_first("loragym/Polaris-v0"),
    "word problems": play_first("loragym/WordProblems-v0"),
    "documents": lambda path: list(open_corpus(str(path)).read()),
    "questions": lambda path: load_questions(str(path), split=None),
    "paragraphs": lambda path: [list(found.read()) for found in [documents_with(str(path), split=None)] if found],
}

COLUMNS = (
    "messages",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "tie",
    "margin",
    "weight",
    "tools",
    "question",
    "problem",
    "answer",
    "answers",
    "golden_answers",
    "final_answer",
    "solution",
    "level",
    "type",
    "subject",
    "text",
    "contents",
    "title",
    "id",
    "context",
    "reference",
    "hops",
    "kind",
    "reward_model",
    "response1",
    "response2",
    "overall_preference",
    "difficulty",
)

roles = st.sampled_from(["user", "assistant", "system", "tool", "king", "", "user"])
chat_messages = st.fixed_dictionaries(
    {"role": roles, "content": texts},
    optional={"tool_calls": json_values, "thinking": json_values, "name": json_values, "trainable": json_values},
)
odd_messages = st.dictionaries(st.sampled_from(["role", "content", "tool_calls"]), json_values, max_size=3)
chats = st.lists(chat_messages | chat_messages | odd_messages | json_values, max_size=4)
dialogues = st.lists(st.sampled_from(["\n\nHuman: ", "\n\nAssistant: ", "a", "b", "\n\n"]), max_size=8).map("".join)
paragraphs = st.fixed_dictionaries(
    {"title": st.lists(texts, max_size=2), "sentences": st.lists(st.lists(texts), max_size=2)}
)
results = st.sampled_from(
    ["#### 4", "so \\boxed{7}", "\\boxed{", "\\boxed{}", "4", "1/0", "\\frac{1}{", "9" * 5000, "####"]
)
cells = json_values | chats | texts | dialogues | paragraphs | results | st.just({"ground_truth": {"target": ["a", 1]}})
rows = st.dictionaries(st.sampled_from(COLUMNS), cells, max_size=6)
NO_ROWS = (
    "",
    "null",
    "[]",
    "{",
    '{"a":',
    "\ufeff{}",
    "NaN",
    "-Infinity",
    '{"a": NaN}',
    deep(100_000),
    '{"a": ' * 50_000,
    "9" * 5000,
    '{"messages": [], "messages": 1}',
    '"\\ud800"',
    '{"messages": "x"}',
    '{"messages": {"role": "user"}}',
    '{"weight": 1e999}',
    '{"messages": [{"role": "user", "content": "a"}], "weight": -1}',
    "{}\x00",
    '{"messages": [{"role": ["user"], "content": "a"}]}',
)


def written(row: Any) -> bytes:
    return json.dumps(row).encode()


GOOD = (
    b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}], "weight": 2}\n'
    b'{"prompt": "hi", "chosen": "yes", "rejected": "no", "margin": 1.5}\n'
    b'{"question": "2 + 2?", "answer": "4", "id": "a", "text": "Two and two are four.", "title": "Sums"}\n'
)
lines = rows.map(written) | st.sampled_from(NO_ROWS).map(str.encode) | json_values.map(written) | st.binary(max_size=20)
jsonl = st.lists(rows.map(written) | lines, max_size=4).map(b"\n".join) | mangled(GOOD)
json_lists = st.lists(rows, max_size=3).map(written) | lines


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` makes of Parquet files goes into the test's own folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@cases(fast=600)
def test_any_text_gives_rows_or_a_sentence(cases: int, tmp_path: Path) -> None:
    number = 0

    def law(loader: str, suffix: str, content: bytes) -> None:
        nonlocal number
        # A name of its own: what was read is remembered by name and time.
        number += 1
        path = tmp_path / f"data-{number}{suffix}"
        path.write_bytes(content)
        with writes_only_in(tmp_path):
            refusal(lambda: LOADERS[loader](path), path.name)
        path.unlink()

    files = st.tuples(st.sampled_from([".jsonl", ".ndjson"]), jsonl) | st.tuples(st.just(".json"), json_lists)
    files |= st.tuples(
        st.sampled_from([".parquet", ".csv", "", ".jsonl.gz"]), st.binary(max_size=40) | mangled(b"PAR1" * 8)
    )

    def both(loader: str, file: tuple[str, bytes]) -> None:
        law(loader, *file)

    try_many(cases, both, loader=st.sampled_from(sorted(LOADERS)), file=files)


@cases(fast=100)
def test_any_parquet_file_gives_rows_or_a_sentence(cases: int, tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    number = 0

    def law(loader: str, data: st.DataObject) -> None:
        nonlocal number
        number += 1
        path = tmp_path / f"data-{number}.parquet"
        count = data.draw(st.integers(0, 3))
        columns = {}
        for name in data.draw(st.lists(st.sampled_from(COLUMNS), unique=True, max_size=4)):
            column = data.draw(st.one_of([st.lists(kind, min_size=count, max_size=count) for kind in PARQUET_CELLS]))
            columns[name] = column
        parquet.write_table(pyarrow.table(columns), path)
        if data.draw(st.booleans()):
            path.write_bytes(data.draw(mangled(path.read_bytes())))
        refusal(lambda: LOADERS[loader](path), path.name)
        path.unlink()

    try_many(cases, law, loader=st.sampled_from(sorted(LOADERS)), data=st.data())


safe_texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
PARQUET_CELLS: tuple[st.SearchStrategy[Any], ...] = (
    safe_texts | st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.booleans(),
    st.binary(max_size=5),
    st.none(),
    st.lists(safe_texts, max_size=2),
    st.dates(),
    st.datetimes(),
    st.decimals(-10, 10, places=2),
    st.lists(st.fixed_dictionaries({"role": roles, "content": safe_texts | st.none()}), max_size=3),
    st.fixed_dictionaries(
        {"title": st.lists(safe_texts, max_size=2), "sentences": st.lists(st.lists(safe_texts), max_size=2)}
    ),
)


@cases()
def test_any_rows_in_memory_give_examples_or_a_sentence(cases: int) -> None:
    loaders: tuple[Callable[[Any], Any], ...] = (
        read_conversations,
        lambda found: split_pairs(read_pairs(found), 0.5),
        lambda found: load_questions(found, split=None),
        lambda found: list(open_corpus(found).read()),
    )

    def law(loader: int, found: list[Any]) -> None:
        refusal(lambda: loaders[loader](found))

    try_many(cases, law, loader=st.integers(0, 3), found=st.lists(rows | rows | json_values, max_size=3))


def test_half_of_a_surrogate_pair_is_a_prompt_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text('[{"prompt": "\\ud800"}, {"prompt": "b"}, {"prompt": "c"}]')
    env = make_env("loragym/Prompts-v0", {"data": str(path), "split": "train"})
    assert env.reset(seed=0)[0][0]["content"] in ("\ud800", "b", "c")


def test_a_string_of_parquet_that_is_no_text_names_its_row(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    # Strings are not checked when a table is made of their bytes.
    column = pyarrow.StringArray.from_buffers(1, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xc2\x41"))
    parquet.write_table(pyarrow.table({"question": column, "answer": ["a"]}), path)
    said = refusal(lambda: load_questions(str(path), split=None), path.name)
    assert said is not None and "row 0: cannot be read" in said
