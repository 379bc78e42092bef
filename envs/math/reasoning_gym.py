"""Any procedural data set of the package `reasoning-gym`, scored by its own rules in a process that can be killed.

The package runs in worker processes alone; see `reasoning_worker`. So what it does to global random generators, how
long it takes and what its scorers do with a reply stays there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

import gymnasium

from ...messages import Message, Reply, system, user
from ..core import Outcome, TextEnv
from ..splits import Split, is_held_out
from .grading.pool import Failed, Limits, WorkerPool

INSTRUCTION = "Write your final answer between <answer> and </answer>."
MAX_CHARACTERS = 20_000
"""The longest answer that is scored; a longer one earns nothing."""
MAX_TRIES = 500
"""How many problems are made in search of one that is in the split."""
MAX_FAILURES = 5
"""How many of these may fail to be made; each is warned of."""
PATIENCE = 300.0
"""Seconds by the clock that a worker may take for anything."""


class Problem(NamedTuple):
    """A problem of a data set: the number it is made from, what is asked, and an answer if the data set has one."""

    number: int
    question: str
    answer: str | None


class Score(NamedTuple):
    """What an answer is worth; if it could not be scored, why: "timeout" or "failed", and in words."""

    value: float
    failure: str = ""
    detail: str = ""


class ReasoningGym(TextEnv):
    """A problem of a procedural data set of `reasoning-gym` (Stojanovski et al. 2025).

    The reward is the data set's own score of what stands between `<answer>` and `</answer>`, from 0 to 1, and
    `format_coef` less without such an answer or if the reply was cut off. Many data sets give a part of the reward to
    what is nearly right or holds the right answer; `exact` does not. What nonsense would earn as well earns nothing.

    About a tenth of all problems are held out as the test split; which ones depends on the question alone, so no
    problem is in both. Problems are numbered from 0 to `size - 1`; where a data set's range is small, several numbers
    are the same problem. Metrics: `score`, `correct` (a score of 1), `format`, `timeout` (scoring took too long),
    `failed` (it raised an exception or its process died); after these two the score is 0 and `info["failure"]` says
    why.

    Args:
        dataset: its name, such as "basic_arithmetic" or "sudoku".
        config: arguments of the data set, such as {"min_terms": 2}; all but `seed` and `size`.
        size: how many problems each split has.
        split: "train", "test", or None for all problems.
        exact: whether a score below 1 counts as 0.
        answer_tags: whether an answer counts only between the tags; if not, a reply without them is taken as it is.
        instruction: a system message before the question; None for one that asks for the tags.
        time_limit: seconds of processor time that scoring an answer may take.
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
        exact: bool = False,
        answer_tags: bool = True,
        instruction: str | None = None,
        time_limit: float = 5.0,
        format_coef: float = 0.1,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(render_mode=render_mode)
        if split not in (*get_args(Split), None):
            raise ValueError(f"split is one of {get_args(Split)} or None for everything, got {split!r}")
        if size < 1:
            raise ValueError(f"size is at least 1, got {size}")
        if not 0 < time_limit <= PATIENCE:
            raise ValueError(f"time_limit is above 0 seconds and at most {PATIENCE:g}, got {time_limit}")
        if reserved := {"seed", "size"} & set(config or {}):
            raise ValueError(f"config has {sorted(reserved)}; reset(seed=...) and the argument size stand for them")
        if importlib.util.find_spec("reasoning_gym") is None:
            raise ImportError("ReasoningGym-v0 needs reasoning-gym: pip install 'loragym[reasoning]'")
        try:
            self.config = json.dumps(dict(config or {}), sort_keys=True)
        except TypeError as error:
            raise ValueError(f"config holds what JSON does not: {error}") from error
        self.dataset, self.size, self.split, self.exact = dataset, size, split, exact
        self.answer_tags, self.time_limit, self.format_coef = answer_tags, time_limit, format_coef
        self.instruction = (INSTRUCTION if answer_tags else "") if instruction is None else instruction
        _check(dataset, self.config, time_limit)

    @property
    def num_problems(self) -> int | None:
        return self.size

    def begin(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        index = options.get("index")
        index = int(self.np_random.integers(self.size)) if index is None else index
        self._problem = _find(self.dataset, self.config, self.split, index, self.time_limit)
        opening = (system(self.instruction),) if self.instruction else ()
        info = {"problem": self._problem.question}
        answer = self._problem.answer
        if answer is not None:
            info["reference"] = f"<answer>{answer}</answer>" if self.answer_tags else answer
        return (*opening, user(self._problem.question)), info

    def respond(self, reply: Reply) -> Outcome:
        finished = reply["stop_reason"] == "stop"
        answer = self._answer(reply["content"])
        score = Score(0.0) if answer is None else self._score(answer)
        value = float(score.value >= 1) if self.exact else score.value
        well_formed = float(finished and answer is not None)
        return Outcome(
            reward=value + self.format_coef * (well_formed - 1),
            terminated=True,
            stop_reason="completed" if finished else reply["stop_reason"],
            metrics={
                "score": value,
                "correct": float(score.value >= 1),
                "format": well_formed,
                "timeout": float(score.failure == "timeout"),
                "failed": float(score.failure == "failed"),
            },
            info={"failure": score.detail} if score.failure else {},
        )

    def _answer(self, text: str) -> str | None:
        before, opened, rest = text.rpartition("<answer>")
        answer, closed, _ = rest.partition("</answer>")
        if opened and closed:
            # Two answers are none.
            return None if "<answer>" in before else answer.strip()
        return None if self.answer_tags else text.strip()

    def _score(self, answer: str) -> Score:
        if len(answer) > MAX_CHARACTERS:
            return Score(0.0)
        done = _ask(self.time_limit, "score", self.dataset, self.config, number=self._problem.number, answer=answer)
        if isinstance(done, Failed):
            return Score(0.0, "timeout" if done.reason == "timeout" else "failed", done.detail)
        return Score(0.0, "failed", done["error"]) if "error" in done else Score(done["score"])


@lru_cache(maxsize=4)
def _workers(seconds: float) -> WorkerPool:
    """The workers of this process, shared by all that have the same time limit."""
    limits = Limits(seconds=seconds, patience=PATIENCE, memory_mb=4096)
    return WorkerPool(workers=2, limits=limits, script=Path(__file__).with_name("reasoning_worker.py"))


def _ask(seconds: float, do: str, dataset: str, config: str, **more: Any) -> dict[str, Any] | Failed:
    (done,) = _workers(seconds).run([{"do": do, "dataset": dataset, "config": json.loads(config), **more}])
    if isinstance(done, Failed):
        return done
    result: dict[str, Any] = done.result
    return result


@lru_cache(maxsize=256)
def _check(dataset: str, config: str, seconds: float) -> None:
    done = _ask(seconds, "check", dataset, config)
    problem = done.detail if isinstance(done, Failed) else done.get("error")
    if problem is not None:
        raise ValueError(f"reasoning-gym has no data set {dataset!r} with {config}: {problem}")


@lru_cache(maxsize=4096)
def _find(dataset: str, config: str, split: Split | None, index: int, seconds: float) -> Problem:
    """The problem of this index: the first that is in the split, of a row of problems that belongs to the index."""
    failures: list[str] = []
    for attempt in range(MAX_TRIES):
        number = _number(index, attempt)
        done = _ask(seconds, "make", dataset, config, number=number)
        if isinstance(done, Failed) or "error" in done:
            failures.append(done.detail if isinstance(done, Failed) else done["error"])
            gymnasium.logger.warn(f"reasoning-gym made no problem {number} of {dataset}: {failures[-1]}")
            if len(failures) == MAX_FAILURES:
                break
        elif split is None or is_held_out(done["question"]) == (split == "test"):
            return Problem(number, done["question"], done["answer"])
    why = ", ".join([f"{attempt + 1} tries", *failures[-1:]])
    raise RuntimeError(
        f"reasoning-gym made no problem of {dataset} with {config} that is in the split {split!r} ({why}); widen its "
        "range, or ask for split=None"
    )


def _number(index: int, attempt: int) -> int:
    digest = hashlib.blake2b(f"{index} {attempt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 2**31
