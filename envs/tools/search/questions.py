"""Questions to be answered by searching: those of the shipped corpus, of HotpotQA, of Natural Questions, one's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from ...datasets import BadData, Source, as_row, load_rows, text_of
from ...splits import Split
from .documents import Corpus, Document, corpus_of, fingerprint_of
from .facts import facts_corpus, question_rows
from .text import normalised

FACTS = "facts"
_ANSWERS = ("answers", "golden_answers", "answer")


class Step(NamedTuple):
    """One search on the way to an answer: what to look for, the document that tells, and what it tells."""

    query: str
    document: str
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question with its answers.

    Attributes:
        id: its name in its data set.
        text: what is asked.
        answers: all that is right; the first is the reference.
        kind: what sort of question it is, as the data set has it.
        hops: how many documents have to be found one after the other; None where the data set does not say.
        steps: the searches that find the answer; empty where they are not known.
        short: whether the short corpus has the answer too.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    kind: str = ""
    hops: int | None = None
    steps: tuple[Step, ...] = ()
    short: bool = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Question:
        # Nothing in it can be changed, and an environment holds thousands.
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSet:
    """A data set of the hub: where it is, which of its splits serve, and what documents come with its questions."""

    hub_id: str
    config: str | None
    splits: Mapping[str, str]
    documents: Callable[[Mapping[str, Any]], Iterable[Document]] | None = None


def _paragraphs(row: Mapping[str, Any], where: str = "HotpotQA") -> Iterator[Document]:
    """The paragraphs that HotpotQA gives with a question, in the hub's form or in that of the original files."""
    context: Any = as_row(row, where).get("context")
    try:
        pairs = (
            zip(context["title"], context["sentences"], strict=True) if isinstance(context, Mapping) else iter(context)
        )
        for title, sentences in pairs:
            if not isinstance(title, str) or isinstance(sentences, str):
                raise TypeError(f"a title is text and sentences are a list, got {title!r:.40} and {sentences!r:.40}")
            yield Document(title, title, "".join(sentences).strip())
    except (TypeError, ValueError, KeyError) as error:
        raise BadData(
            f"{where}: a row of HotpotQA has a context of titles and sentences, got {context!r:.80} ({error})"
        ) from error


HUB_SETS: dict[str, HubSet] = {
    "hotpotqa": HubSet(
        hub_id="hotpotqa/hotpot_qa",
        config="distractor",
        # The rows of its split "test" have no answers.
        splits={"train": "train", "test": "validation"},
        documents=_paragraphs,
    ),
    "nq": HubSet(
        hub_id="google-research-datasets/nq_open", config=None, splits={"train": "train", "test": "validation"}
    ),
    "search-r1": HubSet(hub_id="PeterJinGo/nq_hotpotqa_train", config=None, splits={"train": "train", "test": "test"}),
}
"""Sets of questions that can be asked for by a short name."""


def load_questions(source: Source, *, split: Split | None = "train", config: str | None = None) -> tuple[Question, ...]:
    """The questions of a split.

    A row has a "question" and its "answers", "golden_answers" or "answer", one or a list; "id", "kind" (or "type") and
    "hops" are optional. So the rows of HotpotQA, NQ-open and Search-R1 are understood as they are, from the hub or from
    a file.

    Args:
        source: "facts", one of `HUB_SETS`, or whatever `datasets.load_rows` takes.
        split: "train", "test", or None for all there is.
        config: see `datasets.load_rows`.

    Raises:
        DataNotFound, ImportError: see `datasets.load_rows`.
        BadData: a row lacks its question or its answers.
    """
    if isinstance(source, str) and source == FACTS:
        return _facts(split)
    rows_source, rows_split, rows_config = _resolved(source, split, config)
    rows = load_rows(rows_source, split=rows_split, config=rows_config)
    where = str(source) if isinstance(source, str | os.PathLike) else "the rows given"
    questions = tuple(_question(row, number, where) for number, row in enumerate(rows))
    if not questions:
        raise BadData(f"{where} has no questions")
    return questions


def documents_with(source: Source, *, split: Split | None, config: str | None = None) -> Corpus | None:
    """The documents that come with questions: those of "facts", the paragraphs of HotpotQA; None if there are none."""
    if isinstance(source, str) and source == FACTS:
        return facts_corpus()
    rows_source, rows_split, rows_config = _resolved(source, split, config)
    rows = load_rows(rows_source, split=rows_split, config=rows_config)
    where = str(source) if isinstance(source, str | os.PathLike) else "the rows given"
    if not len(rows) or as_row(rows[0], where).get("context") is None:
        return None
    name = f"the paragraphs of {where}"

    def read() -> list[Document]:
        return _with_own_ids(dict.fromkeys(document for row in rows for document in _paragraphs(row, where)))

    own = fingerprint_of(rows_source, split=rows_split, config=rows_config)
    if own is None:
        return corpus_of(read(), name=name)
    return Corpus(name=name, fingerprint=f"paragraphs {own}", read=read)


def _with_own_ids(documents: Iterable[Document]) -> list[Document]:
    """The same title may stand above two texts; the second and later ones get a number."""
    seen: dict[str, int] = {}
    renamed = []
    for document in documents:
        seen[document.id] = count = seen.get(document.id, 0) + 1
        renamed.append(document if count == 1 else document._replace(id=f"{document.id} ({count})"))
    return renamed


def _resolved(source: Source, split: Split | None, config: str | None) -> tuple[Source, str | None, str | None]:
    hub_set = HUB_SETS.get(source) if isinstance(source, str) else None
    if hub_set is None:
        return source, split, config
    return hub_set.hub_id, hub_set.splits[split] if split else None, config or hub_set.config


@lru_cache(maxsize=3)
def _facts(split: Split | None) -> tuple[Question, ...]:
    return tuple(
        Question(
            id=row["id"],
            text=row["question"],
            answers=tuple(row["answers"]),
            kind=row["kind"],
            hops=row["hops"],
            steps=tuple(Step(**step) for step in row["steps"]),
            short=row["short"],
        )
        for row in question_rows()
        if split in (row["split"], None)
    )


def _question(row: Mapping[str, Any], number: int, where: str) -> Question:
    answers = _answers(as_row(row, f"{where}: row {number}"), f"{where}: row {number}")
    hops = row.get("hops")
    kind = next((row[name] for name in ("kind", "type") if isinstance(row.get(name), str)), "")
    return Question(
        id=text_of(row, "id", "_id", where=where) if row.get("id", row.get("_id")) is not None else str(number),
        text=text_of(row, "question", where=f"{where}: row {number}"),
        answers=answers,
        kind=kind,
        hops=hops if isinstance(hops, int) else None,
    )


def _answers(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    name = next((name for name in _ANSWERS if row.get(name) is not None), None)
    value: Any = row[name] if name else _nested(row)
    given = [value] if isinstance(value, str | int | float) else value if isinstance(value, list | tuple) else []
    texts = [str(answer) for answer in given]
    if not texts or not all(normalised(text) for text in texts):
        raise BadData(
            f"{where} has the columns {sorted(row)}; one of {list(_ANSWERS)} was expected, with an answer or a list of "
            f"answers, got {value!r:.80}"
        )
    return tuple(texts)


def _nested(row: Mapping[str, Any]) -> Any:
    """Where Search-R1's training files have their answers, in the form of the trainer they were made for."""
    truth = row.get("reward_model")
    truth = truth.get("ground_truth") if isinstance(truth, Mapping) else None
    return truth.get("target") if isinstance(truth, Mapping) else None
