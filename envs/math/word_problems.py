r"""Questions of data sets, each with a reference answer that the grader compares with what stands in `\boxed{...}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np

from ...messages import Message, Reply, assistant, user
from ..core import Outcome, ProblemEnv
from ..datasets import BadData, Rows, Source, load_rows, text_of
from ..splits import Split, SplitPool
from .grading import Grade, grade
from .grading.extraction import last_box

SUFFIX = " Write your answer in \\boxed{} format."
WORKED_EXAMPLES: tuple[tuple[str, str], ...] = (
    ("How many r's are in strawberry?", "s, t, r (1), a, w, b, e, r (2), r (3), y. So there are \\boxed{3}."),
    ("Tom has 4 boxes with 6 eggs in each. He breaks 3 eggs. How many are whole?", "4 * 6 = 24, 24 - 3 = \\boxed{21}."),
    ("What is half of 3/4?", "Half of 3/4 is 3/4 * 1/2 = \\boxed{3/8}."),
)
"""Questions with replies that show the form that is asked for."""


class WordProblem(NamedTuple):
    """A question and its reference answer."""

    question: str
    answer: str


class WordProblemOptions(TypedDict, total=False):
    """The arguments of `WordProblems`, which its subclasses pass on."""

    data: Source | None
    split: Split | None
    suffix: str | None
    boxed: bool
    few_shot: int
    system_prompt: str | None
    format_coef: float
    render_mode: str | None


class WordProblems(ProblemEnv[WordProblem]):
    r"""A question of a data set, to be answered with reasoning and a result in `\boxed{...}`.

    An author says where the rows come from (`hub_rows`) and what a row means (`read`).

    Metrics: those of `ProblemEnv`, and `timeout`, 1 if grading took longer than it may. `info["grade"]` of the last
    step says what was compared and how.

    Args:
        data: rows of your own in place of the hub's: a file, a folder, a hub id, or a list. A folder or a hub id has
            splits of its own; a single file or a list is divided by a hash of the question, a tenth for "test".
        split: "train", "test", or None for all.
        suffix: what is added to each question; None for the data set's own.
        boxed: whether an answer counts only in a box; see `grading.grade`.
        few_shot: how many worked examples go in front, at most `len(WORKED_EXAMPLES)`.
        system_prompt, format_coef, render_mode: see `ProblemEnv`.

    Raises:
        DataNotFound, BadData: there are no such rows.
        ValueError: an argument is out of its range.
    """

    suffix = SUFFIX

    def __init__(
        self,
        *,
        data: Source | None = None,
        split: Split | None = "train",
        suffix: str | None = None,
        boxed: bool = True,
        few_shot: int = 1,
        system_prompt: str | None = None,
        format_coef: float = 0.1,
        render_mode: str | None = None,
    ) -> None:
        if not 0 <= few_shot <= len(WORKED_EXAMPLES):
            raise ValueError(f"few_shot is from 0 to {len(WORKED_EXAMPLES)}, got {few_shot}")
        self.suffix = type(self).suffix if suffix is None else suffix
        super().__init__(
            system_prompt=system_prompt,
            few_shot=self._worked_examples(few_shot),
            format_coef=format_coef,
            render_mode=render_mode,
        )
        self.boxed = boxed
        self._where = str(data) if isinstance(data, str | Path) else type(self).__name__
        self._rows, is_whole = self._load(data, split)
        if not len(self._rows):
            raise BadData(f"{self._where}: there are no problems in it, split {split!r}")
        self.read(self._rows[0], self._where)
        # Where the rows are a split already, all of them are wanted.
        self._pool = SplitPool(len(self._rows), self._name, split if is_whole else None)
        self._graded: tuple[str, Grade] | None = None

    def hub_rows(self, split: Split | None) -> tuple[Rows, bool]:
        """The rows of the hub's data set, and whether they are all splits together."""
        raise NotImplementedError(f"{type(self).__name__} has no data set of its own; pass data=")

    def read(self, row: Mapping[str, Any], where: str) -> WordProblem:
        """What a row means.

        Raises:
            BadData: it is no problem.
        """
        return WordProblem(
            text_of(row, "question", "problem", "prompt", where=where),
            text_of(row, "answer", "final_answer", "reference", where=where),
        )

    def keeps(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is wanted at all; by default every one."""
        return True

    @property
    def num_problems(self) -> int | None:
        """How many problems the split has; None if they are too many to be listed."""
        return self._pool.count

    def draw_problem(self, rng: np.random.Generator) -> WordProblem:
        return self._row(self._pool.draw(rng))

    def problem_at(self, index: int) -> WordProblem:
        return self._row(self._pool.at(index))

    def question(self, problem: WordProblem) -> str:
        return problem.question + self.suffix

    def reference_answer(self, problem: WordProblem) -> str:
        return f"\\boxed{{{problem.answer}}}" if self.boxed else problem.answer

    def is_correct(self, problem: WordProblem, answer: str) -> bool:
        return self._grade(problem, answer).correct

    def is_well_formed(self, answer: str) -> bool:
        return self._grade(self._problem, answer).well_formed

    def begin(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        opening, info = super().begin(options)
        self._graded = None
        return opening, info

    def respond(self, reply: Reply) -> Outcome:
        outcome = super().respond(reply)
        found = self._grade(self._problem, reply["content"])
        metrics = {**outcome.metrics, "timeout": float(found.verdict == "timeout")}
        return replaced(outcome, metrics=metrics, info={**outcome.info, "grade": found.as_dict()})

    def _grade(self, problem: WordProblem, answer: str) -> Grade:
        if self._graded is None or self._graded[0] != answer:
            self._graded = answer, grade(answer, problem.answer, boxed=self.boxed, question=problem.question)
        return self._graded[1]

    def _load(self, data: Source | None, split: Split | None) -> tuple[Rows, bool]:
        if data is None:
            rows, is_whole = self.hub_rows(split)
        else:
            is_path = isinstance(data, str | Path)
            has_splits = is_path and not Path(str(data)).expanduser().is_file()
            rows, is_whole = load_rows(data, split=split if has_splits else None), not has_splits
        if type(self).keeps is not WordProblems.keeps:
            rows = [row for row in rows if self.keeps(row)]
        return rows, is_whole

    def _row(self, number: int) -> WordProblem:
        return self.read(self._rows[number], f"{self._where}, row {number}")

    def _name(self, number: int) -> str:
        return self._row(number).question

    def _worked_examples(self, count: int) -> list[Message]:
        shown = WORKED_EXAMPLES[:count]
        return [m for asked, said in shown for m in (user(asked + self.suffix), assistant(said))]


class GSM8K(WordProblems):
    """Grade-school word problems with whole-number answers (Cobbe et al. 2021), `openai/gsm8k`: 7,473 and 1,319.

    Args:
        **options: those of `WordProblems`. A row's answer ends with `#### 42`, or is the number alone.
    """

    suffix = " Provide a numerical answer without units, written inside \\boxed{}."

    def __init__(self, **options: Unpack[WordProblemOptions]) -> None:
        super().__init__(**options)

    def hub_rows(self, split: Split | None) -> tuple[Rows, bool]:
        return load_rows("openai/gsm8k", split=split, config="main"), False

    def read(self, row: Mapping[str, Any], where: str) -> WordProblem:
        solution = text_of(row, "answer", where=where)
        return WordProblem(text_of(row, "question", where=where), solution.rpartition("####")[2].strip())


SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
"""The subjects of MATH; each is a configuration of the data set on the hub."""


class Math(WordProblems):
    r"""Competition problems (Hendrycks et al. 2021), split as Lightman et al. (2023) did: 12,000 and MATH-500.

    The training split is everything in `EleutherAI/hendrycks_math` but the problems of `HuggingFaceH4/MATH-500`, which
    are the test split.

    Args:
        subjects: take these of `SUBJECTS` alone.
        levels: take problems of these levels alone, 1 (easy) to 5.
        test_data: held-out problems for `data` of your own, which are left out of it; by default a hash divides it.
        **options: those of `WordProblems`. A row has `problem`, and `answer` or a `solution` with a box; where there
            are any, `type` or `subject`, and `level`.
    """

    def __init__(
        self,
        *,
        subjects: Sequence[str] | None = None,
        levels: Sequence[int] | None = None,
        test_data: Source | None = None,
        **options: Unpack[WordProblemOptions],
    ) -> None:
        if unknown := set(subjects or ()) - set(SUBJECTS):
            raise ValueError(f"subjects are of {SUBJECTS}, got {sorted(unknown)}")
        if unknown_levels := set(levels or ()) - set(range(1, 6)):
            raise ValueError(f"levels are from 1 to 5, got {sorted(unknown_levels)}")
        self.subjects, self.levels = subjects, levels
        self._test_data = test_data
        super().__init__(**options)

    def hub_rows(self, split: Split | None) -> tuple[Rows, bool]:
        held_out = load_rows("HuggingFaceH4/MATH-500", split="test")
        if split == "test":
            return held_out, False
        everything: list[Mapping[str, Any]] = []
        for subject in self.subjects or SUBJECTS:
            everything += load_rows("EleutherAI/hendrycks_math", config=subject)
        return (everything if split is None else without(everything, held_out)), False

    def read(self, row: Mapping[str, Any], where: str) -> WordProblem:
        question = text_of(row, "problem", "question", where=where)
        if row.get("answer") is not None:
            return WordProblem(question, text_of(row, "answer", where=where))
        answer = last_box(text_of(row, "solution", where=where))
        if answer is None:
            raise BadData(f"{where}: the solution has no \\boxed{{...}}, and there is no column 'answer'")
        return WordProblem(question, answer)

    def keeps(self, row: Mapping[str, Any]) -> bool:
        if self.subjects is not None:
            subject = str(row.get("subject") or row.get("type") or "").lower().replace("&", "and").replace(" ", "_")
            if subject not in self.subjects:
                return False
        return self.levels is None or str(row.get("level", ""))[-1:] in {str(level) for level in self.levels}

    def _load(self, data: Source | None, split: Split | None) -> tuple[Rows, bool]:
        if data is None or self._test_data is None:
            return super()._load(data, split)
        held_out = load_rows(self._test_data)
        rows = held_out if split == "test" else load_rows(data)
        if split == "train":
            rows = without(rows, held_out)
        return [row for row in rows if self.keeps(row)], False


class DeepMath(WordProblems):
    """Hard problems with checked answers (He et al. 2025), `zwhe99/DeepMath-103K`; a tenth is held out by a hash.

    Args:
        min_difficulty, max_difficulty: bounds of the column `difficulty`, about -1 to 10, both inclusive.
        **options: those of `WordProblems`. A row has `question`, `final_answer` and `difficulty`.
    """

    def __init__(
        self,
        *,
        min_difficulty: float = -float("inf"),
        max_difficulty: float = float("inf"),
        **options: Unpack[WordProblemOptions],
    ) -> None:
        if not min_difficulty <= max_difficulty:
            raise ValueError(f"expected min_difficulty <= max_difficulty, got {min_difficulty} and {max_difficulty}")
        self.min_difficulty, self.max_difficulty = min_difficulty, max_difficulty
        super().__init__(**options)

    def hub_rows(self, split: Split | None) -> tuple[Rows, bool]:
        return load_rows("zwhe99/DeepMath-103K", split="train"), True

    def keeps(self, row: Mapping[str, Any]) -> bool:
        return self.min_difficulty <= float(row.get("difficulty") or 0.0) <= self.max_difficulty


class Polaris(WordProblems):
    """Problems chosen for reinforcement learning of reasoning (An et al. 2025), `POLARIS-Project/Polaris-Dataset-53K`.

    Args:
        **options: those of `WordProblems`. A row has `problem` and `answer`; a tenth is held out by a hash.
    """

    def __init__(self, **options: Unpack[WordProblemOptions]) -> None:
        super().__init__(**options)

    def hub_rows(self, split: Split | None) -> tuple[Rows, bool]:
        return load_rows("POLARIS-Project/Polaris-Dataset-53K", split="train"), True


def without(rows: Rows, held_out: Rows) -> list[Mapping[str, Any]]:
    """The rows whose problem is not among those held out, white space aside."""
    names = {_problem_name(row) for row in held_out}
    return [row for row in rows if _problem_name(row) not in names]


def _problem_name(row: Mapping[str, Any]) -> str:
    return "".join(str(row.get("problem", row.get("question", ""))).split())
