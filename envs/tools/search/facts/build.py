"""Builds the shipped corpus anew: `python -m loragym.envs.tools.search.facts.build`.

A question is kept if each of its searches has the document that it needs as its first result, in the full corpus, and
in the short one where the answer stands there as well. So every question can be answered by the stated path with one
result per search.

A question belongs to the test split if all documents on its path do, to the train split if none does; the others are
dropped. So no document that answers a question of one split is needed for a question of the other.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ....splits import Split, is_held_out
from ..bm25 import BM25Index
from ..documents import Document
from ..questions import Step
from ..retriever import Retriever
from . import DATA, DOCUMENTS, QUESTIONS, SOURCES
from .documents import FactDocument, fact_documents
from .questions import FactQuestion, fact_questions
from .sources import read_world


def build(folder: Path) -> dict[str, Any]:
    """Writes the corpus into `folder` and returns what it says about itself.

    Raises:
        ImportError: a package that carries the data is missing.
    """
    world = read_world()
    documents = fact_documents(world)
    full = BM25Index.build([Document(it.id, it.title, f"{it.lead} {it.rest}".strip()) for it in documents.values()])
    short = BM25Index.build([Document(it.id, it.title, it.lead) for it in documents.values()])
    dropped: Counter[str] = Counter()
    kept = []
    for question in fact_questions(world, documents):
        split = _split_of(question, documents)
        if split is None:
            dropped["paths in both splits"] += 1
        elif not _is_found(question.steps, full):
            dropped["another document is found first"] += 1
        else:
            in_leads = all(_says(documents[step.document].lead, step.found) for step in question.steps)
            kept.append(_question_row(question, split, short=in_leads and _is_found(question.steps, short)))
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"id": it.id, "title": it.title, "lead": it.lead, "rest": it.rest} for it in documents.values()]
    _write(folder / DOCUMENTS, rows)
    _write(folder / QUESTIONS, kept)
    about = {
        "packages": world.versions,
        "documents": len(rows),
        "questions": len(kept),
        "short questions": sum(row["short"] for row in kept),
        "by hops": _count(kept, "hops"),
        "by split": _count(kept, "split"),
        "by kind": _count(kept, "kind"),
        "dropped": dict(sorted(dropped.items())),
    }
    (folder / SOURCES).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return about


def _split_of(question: FactQuestion, documents: Mapping[str, FactDocument]) -> Split | None:
    held_out = {is_held_out(documents[step.document].owner) for step in question.steps}
    if len(held_out) == 2:
        return None
    return "test" if True in held_out else "train"


def _is_found(steps: Sequence[Step], index: Retriever) -> bool:
    return all([hit.document.id for hit in index.search(step.query, 1)] == [step.document] for step in steps)


def _says(text: str, found: str) -> bool:
    # "Euro" does not stand in "Europe".
    return re.search(rf"(?<!\w){re.escape(found)}(?!\w)", text) is not None


def _question_row(question: FactQuestion, split: Split, *, short: bool) -> dict[str, Any]:
    return {
        "id": question.id,
        "kind": question.kind,
        "split": split,
        "hops": len(question.steps),
        "short": short,
        "question": question.text,
        "answers": question.answers,
        "steps": [step._asdict() for step in question.steps],
    }


def _count(rows: Iterable[Mapping[str, Any]], key: str) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(row[key] for row in rows).items())}


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # No name and no time inside: the same rows give the same bytes.
    path.write_bytes(gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DATA, metavar="FOLDER", help="where to (default: where it is read)")
    print(json.dumps(build(parser.parse_args().out), indent=2))


if __name__ == "__main__":
    main()
