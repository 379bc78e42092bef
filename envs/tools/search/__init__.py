"""Searching: retrievers over corpora, and questions to be answered with them."""

from .bm25 import BM25Index, BM25Settings, open_bm25
from .dense import CharacterNgrams, DenseIndex, Embed, open_dense
from .documents import Corpus, Document, corpus_of, open_corpus
from .env import Search
from .grading import answer_in, exact_match, f1
from .questions import HUB_SETS, Question, Step, load_questions
from .retriever import Hit, Retriever
from .text import normalised

__all__ = [
    "HUB_SETS",
    "BM25Index",
    "BM25Settings",
    "CharacterNgrams",
    "Corpus",
    "DenseIndex",
    "Document",
    "Embed",
    "Hit",
    "Question",
    "Retriever",
    "Search",
    "Step",
    "answer_in",
    "corpus_of",
    "exact_match",
    "f1",
    "load_questions",
    "normalised",
    "open_bm25",
    "open_corpus",
    "open_dense",
]
