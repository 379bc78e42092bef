"""Retrievers find what they should, alike on every day and in every process; indices are kept whole or made anew."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loragym.envs.datasets import BadData, DataNotFound
from loragym.envs.tools.search import (
    BM25Index,
    BM25Settings,
    CharacterNgrams,
    Corpus,
    Document,
    Hit,
    Retriever,
    corpus_of,
    load_questions,
    normalised,
    open_bm25,
    open_corpus,
    open_dense,
)
from loragym.envs.tools.search import cached as cached_module
from loragym.envs.tools.search.cached import cached_folder
from loragym.envs.tools.search.facts import facts_corpus
from loragym.envs.tools.search.questions import documents_with
from loragym.envs.tools.search.retriever import best
from loragym.envs.tools.search.text import folded, words

DOCUMENTS = [
    Document("a", "Apples", "An apple is a fruit. Apples grow on trees."),
    Document("b", "Bananas", "A banana is a yellow fruit."),
    Document("c", "Čerešne", "Cherries are small. Trees bear them."),
    Document("d", "", "Nothing of the kind \ud800 here."),
]
CORPUS = corpus_of(DOCUMENTS, name="fruit")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("LORAGYM_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"


def ids(hits: Any) -> list[str]:
    return [hit.document.id for hit in hits]


# --- text


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("The Beatles!", "beatles"),
        ("  a  U.S.A. ", "usa"),
        ("An apple, the pear", "apple pear"),
        ("A", "a"),
        ("theatre", "theatre"),
        (".ch", "ch"),
        ("+1-268", "1268"),
    ],
)
def test_answers_are_normalised_as_squad_does_it(text: str, same: str) -> None:
    assert normalised(text) == same


@given(st.text())
def test_normalising_twice_changes_nothing_more_and_words_do_not_depend_on_case(text: str) -> None:
    assert normalised(normalised(text)) in (normalised(text), normalised(normalised(normalised(text))))
    assert words(text) == words(folded(text))


# --- BM25


def reference_bm25(documents: list[Document], query: str, settings: BM25Settings) -> list[float]:
    """Lucene's BM25, written down from the formula."""
    texts = [words(it.title) * settings.title_weight + words(it.text) for it in documents]
    mean = sum(map(len, texts)) / len(texts)
    scores = [0.0] * len(texts)
    for word in words(query):
        having = sum(word in text for text in texts)
        idf = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        for number, text in enumerate(texts):
            often = Counter(text)[word]
            scores[number] += idf * often / (often + settings.k1 * (1 - settings.b + settings.b * len(text) / mean))
    return scores


@pytest.mark.parametrize("settings", [BM25Settings(), BM25Settings(k1=0.9, b=0.4, title_weight=0)])
@pytest.mark.parametrize("query", ["apple", "FRUIT trees", "yellow banana banana", "ceresne", "an unknown word"])
def test_scores_are_those_of_the_formula(query: str, settings: BM25Settings) -> None:
    expected = reference_bm25(DOCUMENTS, query, settings)
    hits = BM25Index.build(DOCUMENTS, settings).search(query, 10)
    order = sorted((-score, number) for number, score in enumerate(expected) if score > 0)
    assert ids(hits) == [DOCUMENTS[number].id for _, number in order]
    # bm25s leaves out the constant factor k1 + 1, as Lucene does.
    assert [hit.score for hit in hits] == pytest.approx([-score for score, _ in order], rel=1e-5)


def test_at_most_k_come_and_none_that_shares_no_word() -> None:
    index = BM25Index.build(DOCUMENTS)
    assert len(index.search("a fruit", 1)) == 1
    assert index.search("xylophone", 3) == index.search("", 3) == index.search("?!", 3) == []
    assert index.search_batch(["apple", "banana"], 2) == [index.search("apple", 2), index.search("banana", 2)]


@pytest.mark.parametrize("k", [0, -1, True, 1.5, "3"])
def test_a_strange_k_is_refused(k: Any) -> None:
    with pytest.raises(ValueError, match="k is a whole number"):
        BM25Index.build(DOCUMENTS).search("apple", k)


@pytest.mark.parametrize("options", [{"k1": -1}, {"b": 2}, {"title_weight": -1}])
def test_strange_constants_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        BM25Settings(**options)


@pytest.mark.parametrize("documents", [[], [Document("x", "", " ... ")]])
def test_a_corpus_without_words_is_an_error(documents: list[Document]) -> None:
    with pytest.raises(ValueError, match="not a word"):
        open_bm25(corpus_of(documents, name="nothing"))


@settings(deadline=None)
@given(st.text())
def test_any_text_is_a_query(query: str) -> None:
    index = open_index()
    assert all(isinstance(hit, Hit) and hit.score > 0 for hit in index.search(query, 3))


def open_index() -> BM25Index:
    global _index
    if _index is None:
        _index = BM25Index.build(DOCUMENTS)
    return _index


_index: BM25Index | None = None


def test_a_query_of_a_megabyte_is_answered_at_once() -> None:
    start = time.perf_counter()
    assert ids(open_index().search("apple " * 200_000, 1)) == ["a"]
    assert time.perf_counter() - start < 0.5


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 70))
def test_the_best_are_the_largest_and_of_equal_ones_the_first(numbers: list[int], k: int) -> None:
    expected = sorted(range(len(numbers)), key=lambda place: (-numbers[place], place))[:k]
    assert best(np.array(numbers, dtype=np.float32), k).tolist() == expected


# --- the cache


def test_an_index_is_built_once_and_then_read(own_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first = open_bm25(CORPUS)
    assert caplog.text.count("building") == 1
    unread = Corpus(name="fruit", fingerprint=CORPUS.fingerprint, read=lambda: pytest.fail("read again"))
    second = open_bm25(unread)
    assert list(second.documents) == list(first.documents) == DOCUMENTS
    assert (
        second.search("fruit trees", 4)
        == first.search("fruit trees", 4)
        == BM25Index.build(DOCUMENTS).search("fruit trees", 4)
    )
    assert caplog.text.count("building") == 1
    assert len(list((own_cache / "search").glob("bm25-*[!k]"))) == 1


def test_the_parts_that_grow_with_the_corpus_are_mapped_not_read() -> None:
    index = open_bm25(CORPUS)
    assert isinstance(index._model.scores["data"], np.memmap) and isinstance(index._model.scores["indices"], np.memmap)
    assert isinstance(index.documents._pieces, np.memmap)  # type: ignore[attr-defined]


def test_other_documents_or_settings_have_an_index_of_their_own(own_cache: Path) -> None:
    open_bm25(CORPUS)
    open_bm25(CORPUS, BM25Settings(k1=1.2))
    open_bm25(corpus_of(DOCUMENTS[:3], name="fruit"))
    moved = [Document(it.id, it.title + it.text[:1], it.text[1:]) for it in DOCUMENTS]
    open_bm25(corpus_of(moved, name="fruit"))
    assert len([it for it in (own_cache / "search").iterdir() if it.is_dir()]) == 4


def damage_truncate(folder: Path) -> None:
    file = folder / "documents.bin"
    file.write_bytes(file.read_bytes()[:-5])


def damage_flip(folder: Path) -> None:
    file = next(folder.glob("data*.npy"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 0xFF
    file.write_bytes(bytes(content))


def damage_remove(folder: Path) -> None:
    (folder / "documents.npy").unlink()


def damage_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def damage_no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def damage_list(folder: Path) -> None:
    (folder / "manifest.json").write_text("[1, 2]")


@pytest.mark.parametrize(
    "damage", [damage_truncate, damage_flip, damage_remove, damage_manifest, damage_no_manifest, damage_list]
)
def test_a_damaged_index_is_reported_and_made_anew(
    damage: Any, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = open_bm25(CORPUS).search("fruit", 3)
    (folder,) = [it for it in (own_cache / "search").iterdir() if it.is_dir()]
    damage(folder)
    assert open_bm25(CORPUS).search("fruit", 3) == expected
    (warning,) = [it for it in caplog.records if it.levelno == logging.WARNING]
    assert "damaged" in warning.getMessage() and "made anew" in warning.getMessage()
    caplog.clear()
    open_bm25(CORPUS)
    assert not caplog.records


def test_a_build_that_fails_leaves_nothing_behind(own_cache: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        cached_folder("bm25", "key", make)
    assert [it for it in (own_cache / "search").iterdir() if it.is_dir()] == []


def test_large_files_are_checked_by_their_size(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_module, "_CHECKED_BYTES", 3)
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "big").write_bytes(b"12345")

    folder = cached_folder("x", "key", make)
    (folder / "big").write_bytes(b"54321")
    assert cached_folder("x", "key", make) == folder and len(made) == 1
    (folder / "big").write_bytes(b"5432")
    cached_folder("x", "key", make)
    assert len(made) == 2


def slow_make(folder: Path) -> None:
    with (folder.parent / "builds").open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(0.5)
    (folder / "content").write_text("whole")


def ask(queue: Any) -> None:
    folder = cached_folder("slow", "key", slow_make)
    queue.put((str(folder), (folder / "content").read_text()))


def test_two_processes_that_ask_at_once_build_once(own_cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=ask, args=(queue,)) for _ in range(3)]
    for process in processes:
        process.start()
    answers = {queue.get(timeout=30) for _ in processes}
    for process in processes:
        process.join(30)
    assert answers == {(str(own_cache / "search" / "slow-key"), "whole")}
    assert len((own_cache / "search" / "builds").read_text().splitlines()) == 1


def test_a_process_that_is_killed_while_it_builds_leaves_nothing_that_passes_for_an_index(own_cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=ask, args=(context.Queue(),))
    process.start()
    while not (own_cache / "search" / "builds").exists():
        time.sleep(0.01)
    process.kill()
    process.join(10)
    assert not (own_cache / "search" / "slow-key").exists()
    assert (cached_folder("slow", "key", slow_make) / "content").read_text() == "whole"


def test_without_a_cache_that_can_be_written_the_index_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LORAGYM_CACHE", str(tmp_path / "file"))
    assert ids(open_bm25(CORPUS).search("yellow", 1)) == ["b"]
    assert "built in memory" in caplog.text
    assert ids(open_dense(CORPUS, CharacterNgrams(), store="numpy").search("bananas", 1)) == ["b"]
    assert "cannot be kept" in caplog.text


def test_the_order_of_results_is_the_same_in_another_process() -> None:
    code = (
        "from loragym.envs.tools.search import open_bm25; from loragym.envs.tools.search.facts import facts_corpus;"
        "print([h.document.id for h in open_bm25(facts_corpus()).search('city country capital', 50)])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    index = BM25Index.build(facts_corpus().read())
    assert done.stdout.strip() == str(ids(index.search("city country capital", 50)))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ImportError, match=r"loragym\[search\]"):
        open_bm25(CORPUS)


# --- corpora


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


ROWS = [{"id": it.id, "title": it.title, "text": it.text} for it in DOCUMENTS]


def test_a_corpus_comes_from_jsonl_parquet_a_folder_or_rows(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    plain = ROWS[:3]
    file = write_jsonl(tmp_path / "docs.jsonl", plain)
    parquet = tmp_path / "docs.parquet"
    datasets.Dataset.from_list(plain).to_parquet(str(parquet))
    write_jsonl(tmp_path / "folder" / "part-1.jsonl", plain[:2])
    write_jsonl(tmp_path / "folder" / "part-2.jsonl", plain[2:])
    datasets.Dataset.from_list(plain).save_to_disk(str(tmp_path / "saved"))
    for source in (file, str(file), parquet, tmp_path / "folder", tmp_path / "saved", plain):
        assert list(open_corpus(source).read()) == DOCUMENTS[:3]
    # A saved data set and a hub one carry a fingerprint; rows in memory are read for one.
    assert open_corpus(plain).fingerprint == corpus_of(DOCUMENTS[:3], name="other").fingerprint


def test_a_file_that_changes_is_another_corpus(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "docs.jsonl", ROWS)
    before = open_corpus(file).fingerprint
    assert open_corpus(file).fingerprint == before
    write_jsonl(file, ROWS[:2])
    assert open_corpus(file).fingerprint != before
    assert ids(open_bm25(open_corpus(file)).search("fruit", 5)) == ["b", "a"]


def test_columns_have_usual_names_or_are_named() -> None:
    rows = [{"contents": '"Title"\nfirst line\nsecond', "docid": 7}, {"contents": "only text", "docid": 8}]
    assert list(open_corpus(rows).read()) == [
        Document("7", "Title", "first line\nsecond"),
        Document("8", "", "only text"),
    ]
    named = open_corpus([{"q": "x", "headline": "h"}], columns={"text": "q", "title": "headline"})
    assert list(named.read()) == [Document("0", "h", "x")]
    with pytest.raises(ValueError, match="columns names"):
        open_corpus([{"text": "x"}], columns={"body": "text"})
    with pytest.raises(BadData, match="was expected"):
        open_corpus([{"nothing": "x"}])


def test_a_corpus_that_is_nowhere_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="no file or folder"):
        open_corpus(str(tmp_path / "none.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadData, match="no files"):
        open_corpus(tmp_path / "empty")


# --- dense


def stores() -> list[Any]:
    def mark(name: str, module: str) -> Any:
        import importlib.util

        missing = importlib.util.find_spec(module) is None
        return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"{module} is not installed"))

    return ["numpy", mark("faiss", "faiss"), mark("lancedb", "lancedb")]


class Letters:
    """How often each of the letters a to z stands in a text."""

    name = "letters"

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: list[str]) -> list[list[int]]:
        self.texts += texts
        return [[text.lower().count(chr(97 + at)) for at in range(26)] for text in texts]


def cosines(query: str) -> list[float]:
    embed = Letters()
    rows = np.array(embed([f"{it.title}: {it.text}" if it.title else it.text for it in DOCUMENTS]), dtype=float)
    (asked,) = np.array(embed([query]), dtype=float)
    return list(rows @ asked / np.linalg.norm(rows, axis=1) / np.linalg.norm(asked))


@pytest.mark.parametrize("store", stores())
def test_dense_retrieval_gives_the_nearest_by_cosine(store: Any) -> None:
    index = open_dense(CORPUS, Letters(), store=store)
    assert isinstance(index, Retriever) and index.store == store
    for query in ("banana", "apples on trees", "cherry"):
        expected = cosines(query)
        hits = index.search(query, 3)
        order = sorted(range(4), key=lambda place: -expected[place])[:3]
        assert ids(hits) == [DOCUMENTS[place].id for place in order]
        assert [hit.score for hit in hits] == pytest.approx([expected[place] for place in order], abs=1e-5)
    assert [ids(hits) for hits in index.search_batch(["banana", "cherry"], 10)] == [
        ids(index.search("banana", 10)),
        ids(index.search("cherry", 10)),
    ]
    assert index.search_batch([], 3) == []


@pytest.mark.parametrize("store", stores())
def test_documents_are_embedded_once(store: Any) -> None:
    embed = Letters()
    open_dense(CORPUS, embed, store=store, batch_size=3)
    assert len(embed.texts) == 4
    again = Letters()
    unread = Corpus(name="fruit", fingerprint=CORPUS.fingerprint, read=lambda: pytest.fail("read again"))
    assert ids(open_dense(unread, again, store=store).search("banana", 1)) == ["b"]
    assert again.texts == ["banana"]
    other = Letters()
    other.name = "letters, others"
    open_dense(CORPUS, other, store=store, document_prefix="passage: ", query_prefix="query: ").search("x", 1)
    assert other.texts[0].startswith("passage: Apples: ") and other.texts[-1] == "query: x"


@pytest.mark.parametrize("store", stores())
def test_stores_agree_on_the_shipped_corpus_misspelt_queries_included(store: Any) -> None:
    embed = CharacterNgrams()
    index, plain = open_dense(facts_corpus(short=True), embed, store=store), open_bm25(facts_corpus(short=True))
    assert ids(index.search("Reykjavk Iceland capitol", 3)) == ids(
        open_dense(facts_corpus(short=True), embed, store="numpy").search("Reykjavk Iceland capitol", 3)
    )
    assert plain.search("Rekjavk", 1) == [] and index.search("Rekjavk", 1)[0].document.title == "Reykjavík"


def test_a_function_without_a_name_is_asked_anew_and_leaves_nothing(own_cache: Path) -> None:
    index = open_dense(CORPUS, lambda texts: [[len(text), 1] for text in texts], store="numpy")
    assert len(index.search("x", 9)) == 4
    assert not (own_cache / "search").exists()


@pytest.mark.parametrize(
    ("embed", "problem"),
    [
        (None, "needs embed="),
        ("no colon", "needs embed="),
        ("math:nothing", "has no attribute"),
        ("math:pi", "cannot be called"),
        (lambda texts: [1.0] * len(texts), "shape"),
        (lambda texts: [[1.0]], "shape"),
        (lambda texts: [[math.nan]] * len(texts), "finite"),
        (lambda texts: np.zeros((len(texts), 0)), "shape"),
    ],
)
def test_what_is_no_embedding_is_said_to_be_none(embed: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        open_dense(CORPUS, embed, store="numpy")


def test_an_embedding_can_be_named_by_its_place() -> None:
    place = "loragym.envs.tools.search.dense:CharacterNgrams"
    assert ids(open_dense(CORPUS, place, store="numpy").search("banannas", 1)) == ["b"]
    assert ids(open_dense(CORPUS, f"{place}:64", store="numpy").search("banannas", 1)) == ["b"]
    with pytest.raises(ValueError, match="store is one of"):
        open_dense(CORPUS, place, store="cupboard")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no documents"):
        open_dense(corpus_of([], name="nothing"), place)


@pytest.mark.parametrize(("store", "module"), [("faiss", "faiss"), ("lancedb", "lancedb")])
def test_a_missing_store_is_named(store: Any, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"loragym\[dense\]"):
        open_dense(CORPUS, CharacterNgrams(), store=store)


def test_a_sentence_embedder_loads_its_model_when_asked_and_travels_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    from loragym.agents.embedders import SentenceEmbedder

    loaded = []

    class Model:
        def __init__(self, name: str, device: str | None = None, trust_remote_code: bool = True) -> None:
            assert not trust_remote_code
            loaded.append((name, device))

        def encode(self, texts: list[str], **options: Any) -> np.ndarray:
            assert options == {"batch_size": 32, "convert_to_numpy": True, "show_progress_bar": False}
            return np.array(Letters()(texts), dtype=np.float32)

    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = Model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    place = "loragym.agents.embedders:SentenceEmbedder:some/model"
    index = open_dense(CORPUS, place, store="numpy")
    assert ids(index.search("banana", 1)) == ["b"] and loaded == [("some/model", None)]
    embedder = pickle.loads(pickle.dumps(SentenceEmbedder("some/model", device="cpu")))
    assert embedder.name == "sentence-transformers some/model" and len(loaded) == 1
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"loragym\[embeddings\]"):
        embedder(["x"])


def test_faiss_is_taken_where_it_is_installed_and_a_plain_array_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from loragym.envs.tools.search.vectors import chosen_store

    for there, expected in (({"faiss", "lancedb"}, "faiss"), ({"lancedb"}, "numpy"), (set(), "numpy")):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, there=there: name if name in there else None)
        assert chosen_store("auto") == expected


def test_the_benchmark_measures_something(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.envs_search import measure

    rows = measure(0.05)
    assert all(row.figure > 0 for row in rows)
    assert {"queries/s", "steps/s", "s"} == {row.unit for row in rows}


# --- questions of others


HOTPOT = [
    {
        "id": "5a",
        "question": "Which is taller, A or B?",
        "answer": "A",
        "type": "comparison",
        "level": "easy",
        "supporting_facts": {"title": ["A"], "sent_id": [0]},
        "context": {"title": ["A tower", "B tower"], "sentences": [["A is 10 m.", " It is old."], ["B is 5 m."]]},
    },
    {
        "id": "5b",
        "question": "Where is A?",
        "answer": "in the north",
        "type": "bridge",
        "level": "hard",
        "supporting_facts": {"title": ["A"], "sent_id": [0]},
        "context": {"title": ["A tower", "A tower"], "sentences": [["A is 10 m.", " It is old."], ["Another text."]]},
    },
]


def test_hotpotqa_gives_questions_and_their_paragraphs_from_the_hubs_form_and_the_original(tmp_path: Path) -> None:
    original = [
        {**row, "_id": row["id"], "context": list(zip(*row["context"].values(), strict=True))}  # type: ignore[attr-defined]
        for row in HOTPOT
    ]
    for row in original:
        del row["id"]
    (tmp_path / "dev.json").write_text(json.dumps(original))
    write_jsonl(tmp_path / "hub.jsonl", HOTPOT)
    for source in (tmp_path / "dev.json", tmp_path / "hub.jsonl", HOTPOT):
        first, second = load_questions(source)
        assert (first.id, first.text, first.answers, first.kind) == ("5a", HOTPOT[0]["question"], ("A",), "comparison")
        assert (second.id, second.answers, second.hops, second.steps) == ("5b", ("in the north",), None, ())
        corpus = documents_with(source, split="train")
        assert corpus is not None and list(corpus.read()) == [
            Document("A tower", "A tower", "A is 10 m. It is old."),
            Document("B tower", "B tower", "B is 5 m."),
            Document("A tower (2)", "A tower", "Another text."),
        ]


def test_natural_questions_and_search_r1_have_lists_of_answers(tmp_path: Path) -> None:
    nq = write_jsonl(tmp_path / "nq.jsonl", [{"question": "who sings x", "answer": ["The A", "B"]}])
    assert load_questions(nq)[0].answers == ("The A", "B")
    assert documents_with(nq, split="train") is None
    row = {"id": "train_0", "question": "q?", "golden_answers": ["g"], "data_source": "nq"}
    nested = {"id": "train_1", "question": "q?", "reward_model": {"ground_truth": {"target": ["t"]}, "style": "rule"}}
    assert [(it.id, it.answers) for it in load_questions([row, nested])] == [("train_0", ("g",)), ("train_1", ("t",))]


def test_parquet_files_of_questions_are_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"id": "1", "question": "q?", "golden_answers": ["a", "b"]}]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "test.parquet"))
    assert load_questions(tmp_path, split="test")[0].answers == ("a", "b")
    with pytest.raises(DataNotFound, match="no file for split 'train'"):
        load_questions(tmp_path, split="train")


@pytest.mark.parametrize(
    "row", [{"question": "q?"}, {"question": "q?", "answers": []}, {"answer": "x"}, {"question": "q?", "answer": " "}]
)
def test_rows_that_are_no_questions_are_said_to_be_none(row: dict[str, Any]) -> None:
    with pytest.raises(BadData, match="was expected"):
        load_questions([row])


def test_no_rows_are_an_error() -> None:
    with pytest.raises(BadData, match="no questions"):
        load_questions([])


def test_named_sets_ask_the_hub_for_the_splits_that_have_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def rows(source: Any, *, split: str | None, config: str | None) -> Any:
        asked.append((source, split, config))
        return HOTPOT

    monkeypatch.setattr("loragym.envs.tools.search.questions.load_rows", rows)
    for name in ("hotpotqa", "nq", "search-r1"):
        load_questions(name, split="test")
    assert asked == [
        ("hotpotqa/hotpot_qa", "validation", "distractor"),
        ("google-research-datasets/nq_open", "validation", None),
        ("PeterJinGo/nq_hotpotqa_train", "test", None),
    ]
