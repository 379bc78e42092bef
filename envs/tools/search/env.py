"""Questions that are answered by searching a collection of documents, after Search-R1 (Jin et al. 2025)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

from ....messages import Message, Reply, reply
from ...datasets import Source
from ...splits import Split
from ..env import Reward, ToolProblemEnv, demonstrate, final_answer
from ..tool import Tool, ToolOptions
from .bm25 import BM25Settings, open_bm25
from .dense import Embed, Store, open_dense
from .documents import Columns, Corpus, open_corpus
from .facts import facts_corpus
from .grading import AnswerFormat, answer_in, asked_for, exact_match, f1, written_answer
from .questions import FACTS, Question, documents_with, load_questions
from .retriever import Hit, Retriever, checked_k
from .text import normalised

Difficulty = Literal["small", "full"]

FACTS_SHORT = "facts-short"
SYSTEM_PROMPT = "Answer the question. Look up what you need with the tool search. "
MAX_QUERY_CHARS = 1000
NOTHING_FOUND = "No document has these words."


class _Preset(NamedTuple):
    """What the options that a difficulty chooses are."""

    hops: int
    k: int
    max_calls: int
    queries_per_call: int
    max_turns: int


_PRESETS: dict[Difficulty, _Preset] = {
    "small": _Preset(hops=1, k=1, max_calls=2, queries_per_call=1, max_turns=3),
    "full": _Preset(hops=0, k=3, max_calls=4, queries_per_call=3, max_turns=6),
}


class Search(ToolProblemEnv[Question]):
    """A question, a tool that searches documents, and a short answer.

    The final reply gives the answer once, on a last line `Answer: <answer>` or in `<answer>` tags. It is correct if it
    equals one of the question's answers after normalisation (lower case, no punctuation, no articles). The reward is
    `correct + format_coef * (format - 1)`, less `malformed_cost` for each malformed turn. An answer in an earlier turn,
    several answers, and an answer with anything else around it are wrong.

    Metrics: those of `ToolEnv`; `correct` and `format`; `f1` (the words shared with the nearest right answer);
    `answer_seen` (whether a search brought a right answer to light, used or not).

    Args:
        difficulty: "small": questions of one hop about documents of one sentence, one result per search, for models
            of some 100 million parameters; "full": all questions, about whole paragraphs. It only chooses the values of
            options that are None (hops, k, max_calls, queries_per_call, max_turns), and the corpus.
        split: "train", "test" or None for all. No document that answers a question of one split of "facts" is needed
            for one of the other.
        questions: "facts"; "hotpotqa", "nq" or "search-r1" (see `questions.HUB_SETS`); or a file, folder, hub id or
            rows, see `questions.load_questions`.
        corpus: "facts", "facts-short", or a file, folder, hub id or rows, see `documents.open_corpus`. By default what
            comes with the questions.
        columns: which columns of the corpus are id, title and text, where they have unusual names.
        hops: only questions of so many hops; 0: of any number, which "full" stands for.
        kinds: only questions of these kinds.
        retriever: "bm25", "dense", or an object with `search(query, k)`, which brings its own corpus.
        bm25: the constants of BM25.
        embed: for "dense": a function from texts to vectors, or the place of one, see `dense.open_dense`.
        store: for "dense": where vectors are kept, see `dense.open_dense`.
        k: how many documents a query finds.
        max_calls: how many calls are run in an episode.
        queries_per_call: how many queries a call may have. With 1, the tool takes `query`, otherwise `queries`.
        max_passage_chars: longer documents are cut in results.
        answer_format: "line" or "tag", see above.
        examples: how many worked examples from the train split go before the question ("facts" only).
        system_prompt: an instruction that goes first; "" for none. By default one that tells how to answer.
        options: see `ToolProblemEnv` and `ToolEnv`.

    Raises:
        ValueError: an argument is out of its range, no question is left, or questions have no corpus.
        DataNotFound, BadData, ImportError: see `load_questions` and `open_corpus`.
    """

    def __init__(
        self,
        *,
        difficulty: Difficulty = "full",
        split: Split | None = "train",
        questions: Source = FACTS,
        corpus: Source | None = None,
        columns: Columns | None = None,
        hops: int | None = None,
        kinds: Sequence[str] | None = None,
        retriever: Literal["bm25", "dense"] | Retriever = "bm25",
        bm25: Mapping[str, Any] | None = None,
        embed: Embed | str | None = None,
        store: Store = "auto",
        k: int | None = None,
        max_calls: int | None = None,
        queries_per_call: int | None = None,
        max_passage_chars: int = 1500,
        answer_format: AnswerFormat = "line",
        examples: int = 0,
        system_prompt: str | None = None,
        **options: Any,
    ) -> None:
        for name, value, known in (
            ("difficulty", difficulty, get_args(Difficulty)),
            ("split", split, (*get_args(Split), None)),
            ("answer_format", answer_format, get_args(AnswerFormat)),
        ):
            if value not in known:
                raise ValueError(f"{name} is one of {known}, got {value!r}")
        preset = _PRESETS[difficulty]
        self.k = checked_k(preset.k if k is None else k)
        self.queries_per_call = preset.queries_per_call if queries_per_call is None else queries_per_call
        for name, number, least in (
            ("queries_per_call", self.queries_per_call, 1),
            ("max_passage_chars", max_passage_chars, 1),
            ("examples", examples, 0),
        ):
            if number < least:
                raise ValueError(f"{name} is at least {least}, got {number!r}")
        self.max_passage_chars, self.answer_format = max_passage_chars, answer_format
        self.difficulty, self.split = difficulty, split
        # Searching takes milliseconds, so a thread to time it would only cost; a remote retriever wants a time_limit.
        super().__init__(
            tools=[self._tool()],
            system_prompt=SYSTEM_PROMPT + asked_for(answer_format) if system_prompt is None else system_prompt or None,
            max_calls=preset.max_calls if max_calls is None else max_calls,
            **{"time_limit": None, "max_turns": preset.max_turns, **options},
        )
        is_small = difficulty == "small" and isinstance(questions, str) and questions == FACTS
        choose = partial(
            _chosen,
            hops=(preset.hops if hops is None else hops) or None,
            kinds=kinds,
            short=is_small and corpus in (None, FACTS_SHORT),
        )
        self._questions = choose(load_questions(questions, split=split))
        if not self._questions:
            raise ValueError(f"no question of split {split!r} has hops={hops!r} and kinds={kinds!r}; ask for others")
        self._reopen: Callable[[], Retriever] | None = None
        if isinstance(retriever, str):
            source = partial(_corpus, corpus, questions, split, columns, is_small)
            self._reopen = partial(_retriever, retriever, source, bm25, embed, store)
            self.retriever = self._reopen()
        else:
            self.retriever = _given(retriever, corpus)
        if examples:
            self._show_examples(examples, choose(load_questions(questions, split="train")))

    @property
    def num_problems(self) -> int | None:
        return len(self._questions)

    def problem_at(self, index: int) -> Question:
        return self._questions[index]

    def question(self, problem: Question) -> str:
        return problem.text

    def reference_answer(self, problem: Question) -> str:
        return written_answer(problem.answers[0], self.answer_format)

    def is_correct(self, problem: Question, answer: str) -> bool:
        said = answer_in(answer, self.answer_format)
        return said is not None and exact_match(said, problem.answers)

    def is_well_formed(self, answer: str) -> bool:
        return answer_in(answer, self.answer_format) is not None

    def opening(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        messages, info = super().opening(options)
        self._answer_seen = False
        self._wanted = [f" {normalised(answer)} " for answer in self._problem.answers]
        return messages, {**info, "kind": self._problem.kind, "question_id": self._problem.id}

    def final_reward(self, messages: tuple[Message, ...]) -> Reward:
        judged = super().final_reward(messages)
        reward, metrics = judged if isinstance(judged, tuple) else (judged, {})
        said = final_answer(messages)
        given = answer_in(said["content"], self.answer_format) if said else None
        overlap = f1(given, self._problem.answers) if given else 0.0
        return reward, {"f1": overlap, "answer_seen": float(self._answer_seen), **metrics}

    def solution(self) -> list[Reply]:
        """The searches that find the answer, one per turn, and the answer.

        Raises:
            NotImplementedError: the data set does not tell how its questions are answered.
            RuntimeError: the retriever at hand does not find a document that is needed.
        """
        problem = self._problem
        if not problem.steps:
            raise NotImplementedError(f"question {problem.id!r} comes without the searches that answer it")
        said = []
        for step in problem.steps:
            if step.document not in [hit.document.id for hit in self.retriever.search(step.query, self.k)]:
                raise RuntimeError(
                    f"question {problem.id!r}: the search {step.query!r} does not find {step.document!r} among the "
                    f"first {self.k}; raise k, or use the retriever bm25"
                )
            asked: dict[str, Any] = {"query": step.query} if self.queries_per_call == 1 else {"queries": [step.query]}
            said.append(self.calling("search", **asked))
        return [*said, reply(self.reference_answer(problem))]

    def __getstate__(self) -> dict[str, Any]:
        # An index is mapped from the cache again, or built again where there is none; it does not travel.
        dropped = "retriever" if self._reopen is not None else None
        return {name: value for name, value in super().__getstate__().items() if name != dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._reopen is not None:
            self.retriever = self._reopen()

    def _tool(self) -> Tool:
        """The tool, described as this environment has it."""
        # What is found depends on the query alone, so calls may run side by side.
        options = ToolOptions(name="search", concurrent=True)
        return Tool.of(self._search if self.queries_per_call == 1 else self._search_all, options)

    def _search(self, query: str) -> str:
        """Finds the documents that best fit a query.

        Args:
            query: a few words to look for.
        """
        if len(query) > MAX_QUERY_CHARS:
            raise ValueError(f"a query has at most {MAX_QUERY_CHARS} characters, got {len(query)}")
        hits = self.retriever.search(query, self.k)
        self._look_for_answer(hits)
        return "\n".join(self._passage(number, hit) for number, hit in enumerate(hits, 1)) or NOTHING_FOUND

    def _search_all(self, queries: list[str]) -> str:
        """Finds the documents that best fit each of several queries.

        Args:
            queries: one or more queries, each a few words to look for.
        """
        if not 1 <= len(queries) <= self.queries_per_call:
            raise ValueError(f"a call has 1 to {self.queries_per_call} queries, got {len(queries)}")
        found = [self._search(query) for query in queries]
        if len(queries) == 1:
            return found[0]
        return "\n\n".join(f"For {query!r}:\n{text}" for query, text in zip(queries, found, strict=True))

    def _passage(self, number: int, hit: Hit) -> str:
        document = hit.document
        text = document.text
        if len(text) > self.max_passage_chars:
            text = text[: self.max_passage_chars] + " [cut]"
        title = f"{document.title}: " if document.title else ""
        return f"{number}. {title}{text}" if self.k > 1 else f"{title}{text}"

    def _look_for_answer(self, hits: Sequence[Hit]) -> None:
        for hit in hits:
            text = f" {normalised(hit.document.title)}  {normalised(hit.document.text)} "
            if any(wanted in text for wanted in self._wanted):
                self._answer_seen = True
                return

    def _show_examples(self, count: int, pool: Sequence[Question]) -> None:
        """Puts worked examples before every question, and asks no question that one of them answers."""
        # Spread over the pool, so that they are of several kinds.
        shown = [pool[place * len(pool) // count] for place in range(min(count, len(pool)))]
        own, asked_before = self._questions, set(shown)
        messages: list[Message] = []
        prefix, self._prefix = self._prefix, ()
        for self._questions in ((question,) for question in shown):
            conversation, _ = demonstrate(self, options={"index": 0})
            messages += [message for message in conversation if message["role"] != "system"]
        self._prefix = (*prefix, *messages)
        self._questions = tuple(question for question in own if question not in asked_before) or own


def _chosen(
    questions: Sequence[Question], *, hops: int | None, kinds: Sequence[str] | None, short: bool
) -> tuple[Question, ...]:
    return tuple(
        question
        for question in questions
        if (hops is None or question.hops == hops)
        and (kinds is None or question.kind in kinds)
        and (not short or question.short)
    )


def _corpus(
    corpus: Source | None, questions: Source, split: Split | None, columns: Columns | None, is_small: bool
) -> Corpus:
    if isinstance(corpus, str) and corpus in (FACTS, FACTS_SHORT):
        return facts_corpus(short=corpus == FACTS_SHORT)
    if corpus is not None:
        return open_corpus(corpus, columns=columns)
    if is_small:
        return facts_corpus(short=True)
    own = documents_with(questions, split=split)
    if own is None:
        raise ValueError(
            "these questions come without documents; pass corpus= a JSONL or Parquet file, a folder or a hub id with a "
            "text in each row"
        )
    return own


def _retriever(
    name: str,
    source: Callable[[], Corpus],
    bm25: Mapping[str, Any] | None,
    embed: Embed | str | None,
    store: Store,
) -> Retriever:
    makers: dict[str, Callable[[], Retriever]] = {
        "bm25": lambda: open_bm25(source(), BM25Settings(**(bm25 or {}))),
        "dense": lambda: open_dense(source(), embed, store=store),
    }
    if name not in makers:
        raise ValueError(f"retriever is one of {list(makers)} or an object with search(query, k), got {name!r}")
    return makers[name]()


def _given(retriever: Retriever, corpus: Source | None) -> Retriever:
    if not isinstance(retriever, Retriever):
        raise TypeError(f"retriever is an object with search(query, k), got {retriever!r:.200}")
    if corpus is not None:
        raise ValueError("a retriever that is handed in searches its own documents; leave corpus out")
    return retriever
