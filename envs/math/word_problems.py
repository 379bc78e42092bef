r"""Questions of data sets, each with a reference answer that the grader compares with what stands in `\boxed{...}`.

`WordProblems` is any data set with a question and an answer in each row; a `Reader` says what a row means. Rows come
through `envs.datasets`, are read once per process, and are shared by all environments that read them alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced
from fractions import Fraction
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypedDict, Unpack, get_args

import gymnasium
import numpy as np

from ...messages import Message, Reply, assistant, reply, user
from ..core import Outcome, ProblemEnv
from ..datasets import BadData, DataNotFound, Rows, Source, StoredRows, load_rows, text_of
from ..splits import Split, is_held_out
from .grading import Grade, grade
from .grading.extraction import extract, last_box

SUFFIX = " Put the final answer in \\boxed{}."
NUMBER_SUFFIX = " Put the final answer, a number without its unit, in \\boxed{}."
WORKED_EXAMPLES: tuple[tuple[str, str], ...] = (
    (
        "A train has 6 coaches with 40 seats each, and 25 seats are taken. How many seats are free?",
        "There are 6 * 40 = 240 seats. Of these 240 - 25 = 215 are free. \\boxed{215}",
    ),
    (
        "Tom has 4 boxes with 6 eggs in each. He breaks 3 eggs. How many are whole?",
        "4 * 6 = 24 eggs, and 24 - 3 = 21 are whole. \\boxed{21}",
    ),
    ("What is half of 30 less than 100?", "100 - 30 = 70, and half of 70 is 35. \\boxed{35}"),
)
"""Questions with replies that show the form that is asked for."""
MAX_SHOWN = 80


class WordProblem(NamedTuple):
    """A question, its reference answer, and the data set's own solution, empty if there is none."""

    question: str
    answer: str
    solution: str = ""


@dataclass(frozen=True)
class Reader:
    """What a row means.

    Readers that are equal read alike, so a subclass says all it goes by in its fields. These have defaults, by which no
    row is unwanted.
    """

    columns: ClassVar[tuple[str, ...]] = ("question", "problem", "prompt", "answer", "final_answer", "reference")
    """The columns that are looked at; what else the rows hold stays where it is."""

    def read(self, row: Mapping[str, Any], where: str) -> WordProblem | None:
        """The row's problem; None if it is not wanted. A problem with an empty answer is left out and counted.

        Raises:
            BadData: the row is no problem.
        """
        return WordProblem(
            text_of(row, "question", "problem", "prompt", where=where),
            _text_or_nothing(row, "answer", "final_answer", "reference", where=where),
        )


class HubPart(NamedTuple):
    """Rows on the hub: a data set's id, its split and its configuration."""

    name: str
    split: str
    config: str | None = None

    def rows(self) -> _Part:
        return _Part(load_rows(self.name, split=self.split, config=self.config), self.name)


class WordProblemOptions(TypedDict, total=False):
    """The arguments of `WordProblems`, which its subclasses pass on."""

    data: Source | None
    test_data: Source | None
    config: str | None
    split: Split | None
    suffix: str | None
    boxed: bool
    few_shot: int
    system_prompt: str | None
    format_coef: float
    render_mode: str | None


class WordProblems(ProblemEnv[WordProblem]):
    r"""A question of a data set, to be answered with reasoning and a result in `\boxed{...}`.

    Rows have a `question`, `problem` or `prompt`, and an `answer`, `final_answer` or `reference`; another `reader` may
    see it otherwise. What is held out depends on where they come from:

    - `test_data` is held out, and what is in it is left out of the training split, by its text.
    - A folder or a hub data set with a split "test" of its own is read by its splits, in their order.
    - Anything else, such as a single file, is divided by a hash of the question: about a tenth is held out.

    Metrics: those of `ProblemEnv`; `timeout` and `crashed` are 1 if grading took too long or failed. `info["grade"]` of
    a step says what was compared and how. `num_skipped` counts the rows that have no answer and are left out.

    Args:
        data: rows of your own in place of the hub's: a file, a folder, a hub id, or a list.
        test_data: rows to hold out; by default those that `data` holds out.
        config: which of a hub data set's configurations, or of a folder's sub-folders.
        split: "train", "test", or None for all.
        suffix: what is added to each question; None for the data set's own.
        boxed: whether an answer counts only in a box; see `grading.grade`.
        few_shot: how many worked examples go in front, at most `len(WORKED_EXAMPLES)`.
        reader: what a row means; None for the data set's own.
        system_prompt, format_coef, render_mode: see `ProblemEnv`.

    Raises:
        DataNotFound, BadData: there are no such rows.
        ValueError: an argument is out of its range.
    """

    suffix: str = SUFFIX
    reader: Reader = Reader()
    config: str | None = None
    hub_train: tuple[HubPart, ...] = ()
    hub_test: tuple[HubPart, ...] = ()
    hub_overlaps: bool = False
    """Whether the training rows hold those of the test split, which are then left out; all splits are training rows."""

    def __init__(
        self,
        *,
        data: Source | None = None,
        test_data: Source | None = None,
        config: str | None = None,
        split: Split | None = "train",
        suffix: str | None = None,
        boxed: bool = True,
        few_shot: int = 1,
        reader: Reader | None = None,
        system_prompt: str | None = None,
        format_coef: float = 0.1,
        render_mode: str | None = None,
    ) -> None:
        if not 0 <= few_shot <= len(WORKED_EXAMPLES):
            raise ValueError(f"few_shot is from 0 to {len(WORKED_EXAMPLES)}, got {few_shot}")
        if split not in (*get_args(Split), None):
            raise ValueError(f"split is one of {get_args(Split)} or None for everything, got {split!r}")
        self.suffix = type(self).suffix if suffix is None else suffix
        shown = WORKED_EXAMPLES[:few_shot]
        super().__init__(
            system_prompt=system_prompt,
            few_shot=[m for asked, said in shown for m in (user(asked + self.suffix), assistant(said))],
            format_coef=format_coef,
            render_mode=render_mode,
        )
        self.boxed, self.split = boxed, split
        self.reader = self.reader if reader is None else reader
        self.config = self.config if config is None else config
        self._sources = (data, test_data)
        self._graded: tuple[WordProblem, str, Grade] | None = None
        self._load()

    @property
    def num_problems(self) -> int | None:
        return len(self._problems)

    def problem_at(self, index: int) -> WordProblem:
        return self._problems[index]

    def draw_problem(self, rng: np.random.Generator) -> WordProblem:
        return self._problems[int(rng.integers(len(self._problems)))]

    def question(self, problem: WordProblem) -> str:
        return problem.question + self.suffix

    def reference_answer(self, problem: WordProblem) -> str:
        return f"\\boxed{{{problem.answer}}}" if self.boxed else problem.answer

    def solution(self) -> list[Reply]:
        """The data set's own way to the answer, ending with the answer in a box: what a supervised warm-up teaches.

        Raises:
            NotImplementedError: the row has none.
        """
        solution, answer = self._problem.solution, self._problem.answer
        if not solution:
            raise NotImplementedError(f"{type(self).__name__}: the row has no solution")
        if extract(solution) != (answer, None):
            solution = f"{solution}\n\n\\boxed{{{answer}}}"
        return [reply(solution)]

    def is_correct(self, problem: WordProblem, answer: str) -> bool:
        return self._grade(problem, answer).correct

    def is_well_formed(self, answer: str) -> bool:
        return self._grade(self._problem, answer).well_formed

    def begin(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        self._graded = None
        return super().begin(options)

    def respond(self, reply: Reply) -> Outcome:
        outcome = super().respond(reply)
        found = self._grade(self._problem, reply["content"])
        failures = {name: float(found.verdict == name) for name in ("timeout", "crashed")}
        return replaced(outcome, metrics={**outcome.metrics, **failures}, info={"grade": found.as_dict()})

    def _grade(self, problem: WordProblem, answer: str) -> Grade:
        # Asked for twice a reply: is it right, and is it well formed?
        if self._graded is None or self._graded[:2] != (problem, answer):
            found = grade(answer, problem.answer, boxed=self.boxed, question=problem.question)
            self._graded = problem, answer, found
        return self._graded[2]

    def _load(self) -> None:
        train, test, overlaps = self._parts()
        self._problems, self.num_skipped = _problems(self.reader, train, test, overlaps, self.split)

    def _parts(self) -> tuple[tuple[_Part, ...], tuple[_Part, ...] | None, bool]:
        """The training rows, the held-out rows (None: a hash decides), and whether the latter are among the former.

        What the split has no need of is not loaded.
        """
        data, test_data = self._sources
        if test_data is not None:
            test: tuple[_Part, ...] | None = (_Part(load_rows(test_data), _name_of(test_data)),)
            if self.split == "test":
                return (), test, False
            if data is None:
                train = self._hub(self.hub_train)
            else:
                train = _all_rows(data, self.config) if self.hub_overlaps else (_own_rows(data, self.config),)
            return train, test, self.split != "test"
        if data is not None:
            return _own_parts(data, self.config, self.split)
        if not self.hub_test:
            return self._hub(self.hub_train), None, False
        needs_test = self.split != "train" or self.hub_overlaps
        train = () if self.split == "test" else self._hub(self.hub_train)
        return train, self._hub(self.hub_test) if needs_test else (), self.hub_overlaps

    def _hub(self, parts: tuple[HubPart, ...]) -> tuple[_Part, ...]:
        if not parts:
            raise ValueError(f"{type(self).__name__} has no data set of its own; pass data=")
        return tuple(part.rows() for part in parts)

    def __getstate__(self) -> dict[str, Any]:
        """Without the problems, which may be many megabytes, if they can be read again."""
        state = dict(self.__dict__)
        if all(source is None or isinstance(source, str | PathLike) for source in self._sources):
            del state["_problems"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "_problems" not in state:
            self._load()


@dataclass(frozen=True)
class GSM8KReader(Reader):
    """`question`, and an `answer` that is a solution which ends with `#### 42`, or the number alone."""

    columns: ClassVar[tuple[str, ...]] = ("question", "answer")

    def read(self, row: Mapping[str, Any], where: str) -> WordProblem | None:
        worked, found, answer = _text_or_nothing(row, "answer", where=where).rpartition("####")
        answer = answer.strip()
        if not found and len(answer.split()) > 1:
            answer = ""
        # <<48/2=24>> are notes for a calculator that do not belong to the text.
        return WordProblem(
            text_of(row, "question", where=where), answer, re.sub(r"<<[^<>]*>>", "", worked).strip() if answer else ""
        )


class GSM8K(WordProblems):
    """Grade-school word problems with whole-number answers (Cobbe et al. 2021), `openai/gsm8k`: 7,473 and 1,319.

    Args:
        **options: those of `WordProblems`. A row's answer ends with `#### 42`, or is the number alone.
    """

    suffix = NUMBER_SUFFIX
    reader = GSM8KReader()
    config = "main"
    hub_train = (HubPart("openai/gsm8k", "train", "main"),)
    hub_test = (HubPart("openai/gsm8k", "test", "main"),)

    def __init__(self, **options: Unpack[WordProblemOptions]) -> None:
        super().__init__(**options)


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


@dataclass(frozen=True)
class MathReader(Reader):
    """`problem`, and `answer` or a `solution` with a box; to choose by, `type` or `subject`, and `level`."""

    columns: ClassVar[tuple[str, ...]] = ("problem", "question", "answer", "solution", "type", "subject", "level")
    subjects: tuple[str, ...] | None = None
    levels: tuple[int, ...] | None = None

    def read(self, row: Mapping[str, Any], where: str) -> WordProblem | None:
        if self.subjects is not None:
            subject = text_of(row, "subject", "type", where=where).lower().replace("&", "and")
            if "_".join(subject.split()) not in self.subjects:
                return None
        if self.levels is not None:
            # "Level 5", 5, or "Level ?", which is none of them.
            level = text_of(row, "level", where=where).removeprefix("Level").strip()
            if level not in {str(wanted) for wanted in self.levels}:
                return None
        question = text_of(row, "problem", "question", where=where)
        solution = "" if row.get("solution") is None else text_of(row, "solution", where=where)
        answer = _text_or_nothing(row, "answer", where=where) if "answer" in row else ""
        if not answer and "answer" not in row and "solution" not in row:
            text_of(row, "answer", "solution", where=where)
        return WordProblem(question, answer or (last_box(solution) or "").strip(), solution.strip())


class Math(WordProblems):
    r"""Competition problems (Hendrycks et al. 2021), split as Lightman et al. (2023) did: 12,000 and MATH-500.

    The training split is all of `EleutherAI/hendrycks_math` but the problems of `HuggingFaceH4/MATH-500`, which are the
    test split; they are told by their text.

    Args:
        subjects: take these of `SUBJECTS` alone.
        levels: take problems of these levels alone, 1 (easy) to 5.
        **options: those of `WordProblems`. A row has `problem`, and `answer` or a `solution` with a box; to choose by,
            `type` or `subject`, and `level`.
    """

    hub_test = (HubPart("HuggingFaceH4/MATH-500", "test"),)
    hub_overlaps = True

    def __init__(
        self,
        *,
        subjects: Sequence[str] | None = None,
        levels: Sequence[int] | None = None,
        **options: Unpack[WordProblemOptions],
    ) -> None:
        if isinstance(subjects, str) or (unknown := set(subjects or ()) - set(SUBJECTS)):
            raise ValueError(f"subjects are of {SUBJECTS}, got {subjects if isinstance(subjects, str) else unknown}")
        if unknown_levels := set(levels or ()) - set(range(1, 6)):
            raise ValueError(f"levels are from 1 to 5, got {sorted(unknown_levels)}")
        self.hub_train = tuple(
            HubPart("EleutherAI/hendrycks_math", split, subject)
            for subject in subjects or SUBJECTS
            for split in ("train", "test")
        )
        self.reader = MathReader(
            subjects=None if subjects is None else tuple(subjects), levels=None if levels is None else tuple(levels)
        )
        super().__init__(**options)


@dataclass(frozen=True)
class DeepMathReader(Reader):
    """`question`, `final_answer`, and `difficulty` to choose by."""

    columns: ClassVar[tuple[str, ...]] = ("question", "final_answer", "difficulty")
    min_difficulty: float | None = None
    max_difficulty: float | None = None

    def read(self, row: Mapping[str, Any], where: str) -> WordProblem | None:
        if not _is_within(row, float, self.min_difficulty, self.max_difficulty, where):
            return None
        return WordProblem(text_of(row, "question", where=where), _text_or_nothing(row, "final_answer", where=where))


class DeepMath(WordProblems):
    """Hard problems with checked answers (He et al. 2025), `zwhe99/DeepMath-103K`; a tenth is held out by a hash.

    Args:
        min_difficulty, max_difficulty: bounds of the column `difficulty`, about -1 to 10, both inclusive.
        **options: those of `WordProblems`. A row has `question`, `final_answer` and, to choose by, `difficulty`.
    """

    hub_train = (HubPart("zwhe99/DeepMath-103K", "train"),)

    def __init__(
        self,
        *,
        min_difficulty: float | None = None,
        max_difficulty: float | None = None,
        **options: Unpack[WordProblemOptions],
    ) -> None:
        _check_bounds("difficulty", min_difficulty, max_difficulty)
        self.reader = DeepMathReader(min_difficulty=min_difficulty, max_difficulty=max_difficulty)
        super().__init__(**options)


@dataclass(frozen=True)
class PolarisReader(Reader):
    """`problem`, `answer`, and to choose by `difficulty`, the share of attempts that a 7B model solved, such as 3/8."""

    columns: ClassVar[tuple[str, ...]] = ("problem", "answer", "difficulty")
    min_pass_rate: float | None = None
    max_pass_rate: float | None = None

    def read(self, row: Mapping[str, Any], where: str) -> WordProblem | None:
        if not _is_within(row, Fraction, self.min_pass_rate, self.max_pass_rate, where):
            return None
        return WordProblem(text_of(row, "problem", where=where), _text_or_nothing(row, "answer", where=where))


class Polaris(WordProblems):
    """Problems chosen for reinforcement learning of reasoning (An et al. 2025), `POLARIS-Project/Polaris-Dataset-53K`.

    A tenth is held out by a hash.

    Args:
        min_pass_rate, max_pass_rate: bounds of the share of attempts that a model of 7B solved, both inclusive.
        **options: those of `WordProblems`. A row has `problem`, `answer` and, to choose by, `difficulty`, such as 3/8.
    """

    hub_train = (HubPart("POLARIS-Project/Polaris-Dataset-53K", "train"),)

    def __init__(
        self,
        *,
        min_pass_rate: float | None = None,
        max_pass_rate: float | None = None,
        **options: Unpack[WordProblemOptions],
    ) -> None:
        _check_bounds("pass_rate", min_pass_rate, max_pass_rate)
        self.reader = PolarisReader(min_pass_rate=min_pass_rate, max_pass_rate=max_pass_rate)
        super().__init__(**options)


class _Part:
    """Rows and what to call them; two parts are the same if their rows are the same object."""

    __slots__ = ("rows", "where")

    def __init__(self, rows: Rows, where: str) -> None:
        self.rows, self.where = rows, where

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Part) and self.rows is other.rows

    def __hash__(self) -> int:
        return id(self.rows)

    def read(self, reader: Reader) -> tuple[list[WordProblem], int]:
        """The problems that are wanted, and how many rows were left out for want of an answer."""
        found: list[WordProblem] = []
        skipped = 0
        for number, row in enumerate(_wanted_columns(self.rows, reader.columns)):
            problem = reader.read(row, f"{self.where}, row {number}")
            if problem is not None and not problem.answer:
                skipped += 1
            elif problem is not None:
                found.append(problem)
        return found, skipped


@lru_cache(maxsize=32)
def _problems(
    reader: Reader, train: tuple[_Part, ...], test: tuple[_Part, ...] | None, overlaps: bool, split: Split | None
) -> tuple[tuple[WordProblem, ...], int]:
    """The problems of a split, and how many rows were left out for want of an answer. See `WordProblems._parts`."""
    training, skipped = _read_all(reader, train)
    if test is None:
        chosen = [p for p in training if split is None or is_held_out(_name(p)) == (split == "test")]
    else:
        # What is held out stays so whatever is chosen of it.
        held_out, _ = _read_all(_everything(reader), test) if overlaps else ([], 0)
        names = {_name(problem) for problem in held_out}
        chosen = [] if split == "test" else [p for p in training if _name(p) not in names]
        if split != "train":
            testing, more = _read_all(reader, test)
            chosen += testing
            skipped += more
    where = ", ".join(dict.fromkeys(part.where for part in (*train, *(test or ()))))
    if skipped:
        gymnasium.logger.warn(f"{where}: {skipped} rows have no answer and are left out")
    if not chosen:
        raise BadData(f"{where}: there are no problems in it, split {split!r}, as {reader} reads it")
    return tuple(chosen), skipped


def _read_all(reader: Reader, parts: Iterable[_Part]) -> tuple[list[WordProblem], int]:
    found: list[WordProblem] = []
    skipped = 0
    for part in parts:
        problems, without_answer = part.read(reader)
        found += problems
        skipped += without_answer
    return found, skipped


def _everything(reader: Reader) -> Reader:
    """The reader without what it chooses by."""
    return type(reader)()


def _name(problem: WordProblem) -> str:
    """What tells a problem: its text, however it is spaced; without surrogates, which have no hash."""
    return "".join(problem.question.split()).encode("utf-8", "backslashreplace").decode()


def _own_parts(
    source: Source, config: str | None, split: Split | None
) -> tuple[tuple[_Part, ...], tuple[_Part, ...] | None, bool]:
    """Training and held-out rows of somebody's own source; see `WordProblems._parts`."""
    if not _has_test_split(source, config):
        return (_own_rows(source, config),), None, False
    assert isinstance(source, str | PathLike)
    train, test = (
        () if split == other else (_Part(load_rows(source, split=name, config=config), _name_of(source)),)
        for name, other in (("train", "test"), ("test", "train"))
    )
    return train, test, False


def _all_rows(source: Source, config: str | None) -> tuple[_Part, ...]:
    """All rows of a source, of whatever split."""
    if isinstance(source, str | PathLike) and Path(source).expanduser().is_dir():
        try:
            return (_Part(load_rows(source, config=config), _name_of(source)),)
        except DataNotFound:
            pass  # splits that were saved together; taken one by one below
    train, test, _ = _own_parts(source, config, None)
    return (*train, *(test or ()))


def _own_rows(source: Source, config: str | None) -> _Part:
    """All rows of a source; of a hub data set or of a folder with files for splits, those of "train"."""
    if not isinstance(source, str | PathLike) or _is_one_split(source):
        return _Part(load_rows(source), _name_of(source))
    try:
        rows = load_rows(source, split="train", config=config)
    except DataNotFound:
        if not Path(source).expanduser().is_dir():
            raise
        rows = load_rows(source, config=config)
    return _Part(rows, _name_of(source))


def _has_test_split(source: Source, config: str | None) -> bool:
    if not isinstance(source, str | PathLike) or _is_one_split(source):
        return False
    if not Path(source).expanduser().is_dir():
        return _hub_has_test_split(str(source), config)
    try:
        load_rows(source, split="test", config=config)
    except DataNotFound:
        return False
    return True


@lru_cache(maxsize=32)
def _hub_has_test_split(name: str, config: str | None) -> bool:
    try:
        load_rows(name, split="test", config=config)
    except DataNotFound as error:
        # A ValueError of `datasets` says that there is no such split; anything else, that there is no data set.
        if not isinstance(error.__cause__, ValueError):
            raise
        return False
    return True


def _is_one_split(source: str | PathLike[str]) -> bool:
    """Whether it is a single file, or a folder with one saved data set."""
    path = Path(source).expanduser()
    return path.is_file() or (path / "dataset_info.json").is_file()


def _name_of(source: Source) -> str:
    return str(source) if isinstance(source, str | PathLike) else "the rows handed in"


def _wanted_columns(rows: Rows, columns: Sequence[str]) -> Iterable[Mapping[str, Any]]:
    """The rows with these columns alone: what else a large data set holds is not read from the disk."""
    wanted = [name for name in columns if isinstance(rows, StoredRows) and name in rows.column_names]
    if not isinstance(rows, StoredRows) or not wanted:
        return rows
    table = rows.columns(wanted)
    return (dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True))


def _text_or_nothing(row: Mapping[str, Any], *names: str, where: str) -> str:
    """The stripped text in the first of these columns that holds one; empty where there is such a column, but no text.

    Raises:
        BadData: there is no such column, or something else than text stands in it.
    """
    if any(name in row for name in names) and all(row.get(name) is None for name in names):
        return ""
    return text_of(row, *names, where=where).strip()


def _is_within(
    row: Mapping[str, Any], parse: Callable[[str], float | Fraction], low: float | None, high: float | None, where: str
) -> bool:
    if low is None and high is None:
        return True
    text = text_of(row, "difficulty", where=where)
    try:
        value = parse(text[:MAX_SHOWN])
    except (ValueError, ZeroDivisionError) as error:
        raise BadData(f"{where}: column 'difficulty' holds {text[:MAX_SHOWN]!r}; a number was expected") from error
    return (low is None or value >= low) and (high is None or value <= high)


def _check_bounds(what: str, low: float | None, high: float | None) -> None:
    if low is not None and high is not None and not low <= high:
        raise ValueError(f"expected min_{what} <= max_{what}, got {low} and {high}")
