"""Searches per second, and how long an index takes to be built and to be read again."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

from loragym.envs.tools.search import CharacterNgrams, DenseIndex, Search, load_questions, open_bm25, open_dense
from loragym.envs.tools.search.facts import facts_corpus

from .envs import Row

ROUNDS = 5
BATCH = 64
K = 3


def measure(seconds: float) -> list[Row]:
    """Interleaved: every contestant in turn, several times over; the best of each counts. An empty cache of its own."""
    with tempfile.TemporaryDirectory(prefix="loragym-bench-") as cache:
        before = os.environ.get("LORAGYM_CACHE")
        os.environ["LORAGYM_CACHE"] = cache
        try:
            return [*_openings(), *_searches(seconds)]
        finally:
            os.environ.pop("LORAGYM_CACHE")
            if before is not None:
                os.environ["LORAGYM_CACHE"] = before


def _openings() -> list[Row]:
    """Seconds to an index: the first time, in a process that has not read it yet, and once it has."""
    from loragym.envs.tools.search import bm25

    count = len(list(facts_corpus().read()))
    rows = []
    for contestant in ("built and written", "read from the cache", "open in this process"):
        if contestant == "read from the cache":
            bm25._loaded.cache_clear()
        start = time.perf_counter()
        open_bm25(facts_corpus())
        rows.append(Row(f"BM25 index of {count:,} documents", contestant, time.perf_counter() - start, "s"))
    for name in _stores():
        for contestant in ("built and written", "read from the cache"):
            start = time.perf_counter()
            open_dense(facts_corpus(), CharacterNgrams(), store=name)
            took = time.perf_counter() - start
            rows.append(Row(f"dense index of {count:,} documents", f"{name}, {contestant}", took, "s"))
    return rows


def _stores() -> list[Any]:
    found = []
    for name, module in (("numpy", "numpy"), ("faiss", "faiss"), ("lancedb", "lancedb")):
        try:
            __import__(module)
        except ImportError:
            continue
        found.append(name)
    return found


def _searches(seconds: float) -> list[Row]:
    queries = [step.query for question in load_questions("facts", split="test") for step in question.steps]
    index = open_bm25(facts_corpus())
    contestants: dict[tuple[str, str], Callable[[], int]] = {
        ("queries, one by one", "BM25"): _single(index.search, queries),
        (f"queries, {BATCH} at once", "BM25"): _batch(index.search_batch, queries),
        (f"queries, {BATCH} at once", "bm25s alone, words ready"): _bare(index, queries),
    }
    for name in _stores():
        dense: DenseIndex = open_dense(facts_corpus(), CharacterNgrams(), store=name)
        contestants["queries, one by one", f"dense, {name}, exact, embedding included"] = _single(dense.search, queries)
        contestants[f"queries, {BATCH} at once", f"dense, {name}, exact, embedding included"] = _batch(
            dense.search_batch, queries
        )
    for options in ({}, {"difficulty": "small"}):
        name = "Search-v0" if not options else "Search-v0, small"
        contestants["steps of scripted episodes", name] = _episodes(Search(**options))  # type: ignore[arg-type]
    best = dict.fromkeys(contestants, 0.0)
    for _ in range(ROUNDS):
        for key, play in contestants.items():
            best[key] = max(best[key], _rate(play, seconds / ROUNDS))
    return [Row(job, name, figure, f"{job.split()[0].rstrip(',')}/s") for (job, name), figure in best.items()]


def _rate(play: Callable[[], int], seconds: float) -> float:
    start, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        count += play()
    return count / passed


def _single(search: Callable[[str, int], Any], queries: Sequence[str]) -> Callable[[], int]:
    asked = cycle(queries)

    def play() -> int:
        assert search(next(asked), K)
        return 1

    return play


def _batch(search: Callable[[Sequence[str], int], Any], queries: Sequence[str]) -> Callable[[], int]:
    batches = cycle([queries[start : start + BATCH] for start in range(0, len(queries) - BATCH, BATCH)])

    def play() -> int:
        assert all(search(next(batches), K))
        return BATCH

    return play


def _bare(index: Any, queries: Sequence[str]) -> Callable[[], int]:
    """What the library does by itself: no words to split, no ties to settle, no documents to fetch."""
    from loragym.envs.tools.search.text import words

    split = [words(query) for query in queries]
    batches = cycle([split[start : start + BATCH] for start in range(0, len(split) - BATCH, BATCH)])

    def play() -> int:
        found = index._model.retrieve(next(batches), k=K, show_progress=False)
        assert len(found.documents) == BATCH
        return BATCH

    return play


def _episodes(env: Search) -> Callable[[], int]:
    seeds = cycle(range(1000))

    def play() -> int:
        env.reset(seed=next(seeds))
        replies = env.solution()
        for said in replies:
            env.step(said)
        return len(replies)

    return play
