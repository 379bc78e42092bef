"""The corpus that comes with the package: facts about the world, and questions about them.

`data/LICENSES.md` names the sources of the data and their licences; `build.py` makes the files anew from them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..documents import Corpus, Document

DATA = Path(__file__).with_name("data")
DOCUMENTS, QUESTIONS, SOURCES = "documents.jsonl.gz", "questions.jsonl.gz", "sources.json"


def facts_corpus(*, short: bool = False) -> Corpus:
    """The documents: a paragraph about each thing, or its first sentence alone."""

    def read() -> list[Document]:
        rows = read_rows(DATA / DOCUMENTS)
        return [
            Document(it["id"], it["title"], it["lead"] if short else f"{it['lead']} {it['rest']}".strip())
            for it in rows
        ]

    digest = hashlib.blake2b((DATA / DOCUMENTS).read_bytes(), digest_size=16).hexdigest()
    return Corpus(name="facts-short" if short else "facts", fingerprint=f"facts {short} {digest}", read=read)


@lru_cache(maxsize=1)
def question_rows() -> tuple[dict[str, Any], ...]:
    """The rows of all questions, of both splits; not to be changed."""
    return tuple(read_rows(DATA / QUESTIONS))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a compressed JSONL file of this folder."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
