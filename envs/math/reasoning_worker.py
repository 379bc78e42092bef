"""A worker that makes and scores problems of reasoning-gym: the script that its process runs. See `grading.pool`.

Several of the package's scorers hand the reply to `eval` or to sympy's parser, which evaluates too. Here these get
readers that take literals and formulas and nothing else, and while a reply is scored no text at all becomes code. From
the start on the process deletes nothing, writes no file, starts no program and opens no connection.

Hashes of strings are the same in every process, and global random generators are seeded before each problem: some data
sets go by the order of a set, or by a global generator, and would be another problem each time.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import importlib
import importlib.util
import json
import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

GENERATION_SECONDS = 60.0
"""Processor time that making a problem may take."""
SCORERS_THAT_EVALUATE_LITERALS = (
    "algorithmic.string_insertion",
    "algorithmic.spiral_matrix",
    "algorithmic.binary_matrix",
    "algorithmic.number_sorting",
    "games.n_queens",
)
SCORERS_THAT_EVALUATE_THEIR_PROBLEM = ("arithmetic.bitwise_arithmetic",)
SCORERS_THAT_PARSE_FORMULAS = ("games.puzzle24", "games.countdown")
TRIGONOMETRY = ("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh", "tanh")
NAMES = frozenset(("exp", "log", "ln", "sqrt", "Abs", "pi", *TRIGONOMETRY))
LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCEI")
"""Unknowns and constants; the others of the alphabet are objects and functions of sympy."""
MAX_FORMULA = 2_000
MAX_REMEMBERED = 10_000
_FORMULA_PART = re.compile(
    r"\s+|[0-9]{1,30}(?:\.[0-9]{0,30})?(?![0-9A-Za-z.])|[A-Za-z]+(?![0-9A-Za-z])|\*\*|[-+*/^(),]"
)
_TOWER = re.compile(r"(?:\*\*|\^)\s*[-+]?\s*[0-9A-Za-z.]+\s*(?:\*\*|\^)")
_CALCULATION = re.compile(r"[0-9A-Fa-fxX+\-*()<>\s]*")
REFUSED = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pty.", "webbrowser.", "ftplib.", "urllib.")
HARMLESS = frozenset(("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.putenv", "os.unsetenv"))
_STANDARD_LIBRARY = os.path.dirname(os.__file__) + os.sep  # noqa: PTH120
_INSTALLED = tuple(_STANDARD_LIBRARY + folder + os.sep for folder in ("site-packages", "dist-packages"))
NONSENSE = "\N{SNOWMAN}"
_NO_NUMBER = re.compile(r"(?<![A-Za-z])(?:nan|inf|infinity)[ij]?(?![A-Za-z])", re.IGNORECASE)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Refused(Exception):
    """A reply asked for what is not done here."""


class Guard:
    """Sees what the interpreter is about to do (PEP 578), and refuses what is no business of a problem or a reply."""

    def __init__(self) -> None:
        self.scoring = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(REFUSED) and event not in HARMLESS:
            raise Refused(event)
        if event == "open" and len(arguments) > 2 and isinstance(arguments[2], int) and arguments[2] & _WRITES:
            raise Refused(f"open {arguments[0]!r} to write")
        if event == "compile" and self.scoring and not _is_library(sys._getframe(1)):
            raise Refused("evaluating text")

    @contextlib.contextmanager
    def while_scoring(self, on: bool) -> Iterator[None]:
        before, self.scoring = self.scoring, on
        try:
            yield
        finally:
            self.scoring = before


def _is_library(frame: FrameType | None) -> bool:
    """Whether Python's own library or sympy makes code of text that it wrote itself.

    sympy's parsers take anybody's text, so for them it is their caller that counts.
    """
    while frame is not None and frame.f_code.co_filename.startswith(_parsers()):
        frame = frame.f_back
    file = frame.f_code.co_filename if frame is not None else ""
    if file.startswith(_installed("sympy", "mpmath", "numpy")):
        return True
    return file.startswith(("<frozen importlib", _STANDARD_LIBRARY)) and not file.startswith(_INSTALLED)


@lru_cache(maxsize=1)
def _parsers() -> tuple[str, ...]:
    (sympy,) = _installed("sympy")
    return sympy + "parsing" + os.sep, os.path.join(sympy, "core", "sympify.py")  # noqa: PTH118


@lru_cache(maxsize=4)
def _installed(*packages: str) -> tuple[str, ...]:
    """The folders of these packages."""
    return tuple(
        folder + os.sep
        for package in packages
        if (spec := importlib.util.find_spec(package)) is not None
        for folder in spec.submodule_search_locations or ()
    )


class Desk:
    """Makes and scores problems, one job after the other."""

    def __init__(self, set_timers: Callable[[float, float], None], limits: dict[str, float]) -> None:
        self.set_timers, self.limits, self.guard = set_timers, limits, Guard()
        self.nonsense: dict[tuple[str, str, int], float] = {}
        self._put_readers_in_place()
        # Nothing that a data set prints may get among the results, which go to stdout.
        self.nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
        sys.addaudithook(self.guard)

    def work(self, job: dict[str, Any]) -> dict[str, Any]:
        """check, make or score: `{}`, `{"question", "answer"}` or `{"score"}`; `{"error"}` if that raised something."""
        # Making a problem may take longer than scoring an answer, whose own limit is set below.
        self.set_timers(GENERATION_SECONDS, self.limits["patience"])
        try:
            with contextlib.redirect_stdout(self.nowhere), contextlib.redirect_stderr(self.nowhere):
                return self._work(job, json.dumps(job["config"], sort_keys=True))
        except MemoryError:
            raise
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"[:500]}

    def _work(self, job: dict[str, Any], config: str) -> dict[str, Any]:
        if job["do"] == "check":
            _dataset(job["dataset"], config, 0)
            return {}
        entry = _entry(job["dataset"], config, job["number"])
        if job["do"] == "make":
            answer = entry["answer"]
            return {"question": str(entry["question"]), "answer": None if answer is None else str(answer)}
        self.set_timers(self.limits["seconds"], self.limits["patience"])
        return {"score": self._score(job["dataset"], config, job["number"], job["answer"])}

    def _score(self, name: str, config: str, number: int, answer: str) -> float:
        """The data set's score of an answer, but 0 for what no answer should earn anything by.

        That is as much as nonsense earns too (some scorers give a little for anything, or take all that is not "True"
        for "False"), and numbers that are none: no comparison with them fails.
        """
        reference = _entry(name, config, number)["answer"]
        is_number = any(character.isdigit() for character in str(reference))
        if is_number and _NO_NUMBER.search(answer) and not _NO_NUMBER.search(str(reference)):
            return 0.0
        score = self._own_score(name, config, number, answer)
        if not score or answer == reference:
            return score
        return score if score > self._score_of_nonsense(name, config, number) else 0.0

    def _own_score(self, name: str, config: str, number: int, answer: str) -> float:
        # A scorer may change the entry.
        entry, dataset = copy.deepcopy(_entry(name, config, number)), _dataset(name, config, 0)
        _seed(number)
        with self.guard.while_scoring(True):
            score = float(dataset.score_answer(answer=answer, entry=entry))
        if score != score:
            raise ValueError("the score is not a number")
        return min(1.0, max(0.0, score))

    def _score_of_nonsense(self, name: str, config: str, number: int) -> float:
        if (name, config, number) not in self.nonsense:
            if len(self.nonsense) > MAX_REMEMBERED:
                self.nonsense.clear()
            try:
                score = self._own_score(name, config, number, NONSENSE)
            except Exception:
                # This scorer raises where it cannot read an answer, which is to earn nothing.
                score = 0.0
            self.nonsense[name, config, number] = score
        return self.nonsense[name, config, number]

    def _put_readers_in_place(self) -> None:
        import sympy

        parse_expr = sympy.parse_expr

        def formula(text: str, *arguments: Any, **options: Any) -> Any:
            checked = checked_formula(text)
            with self.guard.while_scoring(False):
                return parse_expr(checked, *arguments, **options)

        def literal(text: str) -> Any:
            if len(text) > MAX_FORMULA:
                raise Refused(f"more than {MAX_FORMULA} characters")
            with self.guard.while_scoring(False):
                return ast.literal_eval(text)

        def calculation(text: str) -> Any:
            if not _CALCULATION.fullmatch(text) or "**" in text:
                raise Refused("no calculation with whole numbers")
            with self.guard.while_scoring(False):
                return eval(text, {"__builtins__": {}})

        _installed("sympy", "mpmath", "numpy")
        sympy.parse_expr = formula
        for names, attribute, reader in (
            (SCORERS_THAT_EVALUATE_LITERALS, "eval", literal),
            (SCORERS_THAT_EVALUATE_THEIR_PROBLEM, "eval", calculation),
            (SCORERS_THAT_PARSE_FORMULAS, "parse_expr", formula),
        ):
            for name in names:
                # Where another version has no such module, its scorer is refused what it asks for.
                with contextlib.suppress(ModuleNotFoundError):
                    setattr(importlib.import_module(f"reasoning_gym.{name}"), attribute, reader)


def checked_formula(text: str) -> str:
    """The text, if it is made of numbers, letters, brackets, operators and the names of elementary functions.

    Raises:
        Refused: it is not, or has a tower of powers.
    """
    if len(text) > MAX_FORMULA:
        raise Refused(f"more than {MAX_FORMULA} characters")
    at = 0
    while at < len(text):
        part = _FORMULA_PART.match(text, at)
        if part is None or (part[0].isalpha() and part[0] not in NAMES and part[0] not in LETTERS):
            raise Refused(f"{text[at : at + 20]!r} is no part of a formula")
        at = part.end()
    if _TOWER.search(text):
        raise Refused("a tower of powers")
    return text


@lru_cache(maxsize=4)
def _dataset(name: str, config: str, seed: int) -> Any:
    from reasoning_gym.composite import DatasetSpec
    from reasoning_gym.factory import create_dataset

    arguments = json.loads(config)
    if name == "composite":
        arguments["datasets"] = [DatasetSpec(**spec) for spec in arguments.get("datasets", [])]
    _seed(seed)
    return create_dataset(name, **arguments, seed=seed, size=1 if seed else 500)


@lru_cache(maxsize=1024)
def _entry(name: str, config: str, number: int) -> dict[str, Any]:
    dataset = _dataset(name, config, 0)
    _seed(number)
    try:
        entry: dict[str, Any] = dataset[number]
    except IndexError:
        # Some data sets are lists that are made in advance; theirs is the first of the list from this seed.
        dataset = _dataset(name, config, max(1, number))
        _seed(number)
        entry = dataset[0]
    return entry


def _seed(number: int) -> None:
    import numpy as np

    random.seed(number)
    np.random.seed(number % 2**32)


def _sibling(path: Path) -> ModuleType:
    """A file of the house alone: by its usual name it would bring the rest of the house along."""
    spec = importlib.util.spec_from_file_location(f"loragym_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    if sys.flags.hash_randomization:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [sys.executable, "-P", "-s", "-X", "utf8", str(Path(__file__).resolve())]
        os.execve(sys.executable, command, {**kept, "PYTHONHASHSEED": "0"})
    worker = _sibling(Path(__file__).resolve().parent / "grading" / "worker.py")
    limits = {"seconds": 0.0, "patience": 0.0}
    set_timers = worker.set_timers

    def noted(seconds: float, patience: float) -> None:
        if seconds:
            limits.update(seconds=seconds, patience=patience)
        set_timers(seconds, patience)

    vars(worker)["set_timers"] = noted
    worker.serve(lambda: Desk(set_timers, limits).work)


if __name__ == "__main__":
    main()
