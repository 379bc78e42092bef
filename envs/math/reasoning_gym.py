"""Any procedural data set of the package `reasoning-gym`, scored by its own rules in a process that can be killed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...messages import Message, Reply, system, user
from ..core import Outcome, TextEnv
from ..splits import Split
from .grading.pool import Failed, Limits, WorkerPool

INSTRUCTION = "Write your final answer between <answer> and </answer>."
MAX_CHARACTERS = 4_000
"""The longest answer that is scored; a longer one earns nothing."""
SPLIT_SEEDS = {"train": 0, "test": 1, None: 0}


class ReasoningGym(TextEnv):
    """A problem of a procedural data set of `reasoning-gym` (Stojanovski et al. 2025).

    The reward is the data set's own score of what stands between `<answer>` and `</answer>`, from 0 to 1, and
    `format_coef` less without such an answer or if the reply was cut off. Scoring runs in a worker process with a time
    limit; what takes longer or fails scores 0, and counts as `timeout` in the first case. Metrics: `score`, `correct`
    (a score of 1), `format`, `timeout`.

    Args:
        dataset: its name, such as "basic_arithmetic" or "sudoku".
        config: arguments of the data set, such as {"min_terms": 2}.
        size: how many problems it has.
        split: "train" or "test": the same data set from another seed. A procedural data set may make the same problem
            in both where its range is small. None is "train".
        answer_tags: whether an answer counts only between the tags; if not, a reply without them is taken as it is.
        instruction: a system message before the question; None for one that asks for the tags.
        time_limit: seconds that scoring an answer may take.
        format_coef: what bad form costs.
        render_mode: see `TextEnv`.

    Raises:
        ImportError: reasoning-gym is not installed.
        ValueError: it has no such data set, or does not take these arguments.
    """

    def __init__(
        self,
        *,
        dataset: str = "basic_arithmetic",
        config: Mapping[str, Any] | None = None,
        size: int = 10_000,
        split: Split | None = "train",
        answer_tags: bool = True,
        instruction: str | None = None,
        time_limit: float = 5.0,
        format_coef: float = 0.1,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(render_mode=render_mode)
        if split not in SPLIT_SEEDS:
            raise ValueError(f'split is "train", "test" or None, got {split!r}')
        if size < 1:
            raise ValueError(f"size is at least 1, got {size}")
        if not time_limit > 0:
            raise ValueError(f"time_limit is above 0 seconds, got {time_limit}")
        try:
            import reasoning_gym
        except ModuleNotFoundError as error:
            raise ImportError("ReasoningGym-v0 needs reasoning-gym: pip install 'loragym[reasoning]'") from error
        self.arguments = {**(config or {}), "size": size, "seed": SPLIT_SEEDS[split]}
        try:
            self._data = reasoning_gym.create_dataset(dataset, **self.arguments)
        except (ValueError, TypeError, AssertionError) as error:
            raise ValueError(f"reasoning-gym has no data set {dataset!r} with {dict(config or {})}: {error}") from error
        self.dataset, self.size, self.answer_tags = dataset, size, answer_tags
        self.time_limit, self.format_coef = time_limit, format_coef
        self.instruction = (INSTRUCTION if answer_tags else "") if instruction is None else instruction
        json.dumps(self.arguments)  # goes to the worker

    @property
    def num_problems(self) -> int | None:
        return self.size

    def begin(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        index = options.get("index")
        self._index = int(self.np_random.integers(self.size)) if index is None else index
        entry = self._data[self._index]
        self._question, answer = str(entry["question"]), str(entry["answer"])
        opening = (system(self.instruction),) if self.instruction else ()
        reference = f"<answer>{answer}</answer>" if self.answer_tags else answer
        return (*opening, user(self._question)), {"problem": self._question, "reference": reference}

    def respond(self, reply: Reply) -> Outcome:
        finished = reply["stop_reason"] == "stop"
        answer = self._answer(reply["content"])
        score, timeout = (0.0, False) if answer is None else self._score(answer)
        well_formed = float(finished and answer is not None)
        return Outcome(
            reward=score + self.format_coef * (well_formed - 1),
            terminated=True,
            stop_reason="completed" if finished else reply["stop_reason"],
            metrics={
                "score": score,
                "correct": float(score >= 1),
                "format": well_formed,
                "timeout": float(timeout),
            },
        )

    def _answer(self, text: str) -> str | None:
        before, opened, rest = text.rpartition("<answer>")
        answer, closed, _ = rest.partition("</answer>")
        if opened and closed:
            # Two answers are none.
            return None if "<answer>" in before else answer.strip()
        return None if self.answer_tags else text.strip()

    def _score(self, answer: str) -> tuple[float, bool]:
        if len(answer) > MAX_CHARACTERS:
            return 0.0, False
        job = {"dataset": self.dataset, "arguments": self.arguments, "index": self._index, "answer": answer}
        (done,) = _workers(self.time_limit).run([job])
        return (0.0, done.reason == "timeout") if isinstance(done, Failed) else (done.result["score"], False)


@lru_cache(maxsize=4)
def _workers(seconds: float) -> WorkerPool:
    """The workers of this process, shared by all that have the same time limit."""
    limits = Limits(seconds=seconds, patience=5 * seconds, memory_mb=4096)
    return WorkerPool(workers=2, limits=limits, script=Path(__file__).with_name("reasoning_worker.py"))
