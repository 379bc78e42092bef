"""What a law is, the book of all of them, and trying them on an environment."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import gymnasium
from gymnasium.envs.registration import EnvSpec

from ..checks import BadEnvironment
from ..named import import_path

LAW_SECONDS = 300.0
"""How long a law may take on one environment."""


class BrokenLaw(AssertionError):
    """A law is broken; the message says in plain words how, and what to do."""


class Finding(NamedTuple):
    """A broken law, by name, and what is wrong."""

    law: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Law:
    """A law: what it says, and the function that raises `BrokenLaw` where an environment breaks it.

    `basic` laws come first: where one is broken, what the others would find makes no sense.
    """

    name: str
    statement: str
    holds_for: Callable[[EnvSpec], None]
    basic: bool


LAWS: dict[str, Law] = {}
"""All laws by name, in the order in which they are tried."""


def law(statement: str, *, basic: bool = False) -> Callable[[Callable[[EnvSpec], None]], Callable[[EnvSpec], None]]:
    """Puts a function among the laws, under its own name."""

    def put(function: Callable[[EnvSpec], None]) -> Callable[[EnvSpec], None]:
        LAWS[function.__name__] = Law(function.__name__, statement, function, basic)
        return function

    return put


def check(spec: EnvSpec, laws: Sequence[str] | None = None, *, seconds: float = LAW_SECONDS) -> list[Finding]:
    """The laws that an environment breaks, in plain words; an empty list if all hold.

    Args:
        spec: the environment; see `spec_of`.
        laws: which laws, by name; by default all.
        seconds: how long each law may take; see `try_laws`.

    Raises:
        KeyError: there is no such law.
    """
    return [finding for _, findings in try_laws(spec, laws, seconds=seconds) for finding in findings]


def try_laws(
    spec: EnvSpec, laws: Sequence[str] | None = None, *, seconds: float = LAW_SECONDS
) -> Iterator[tuple[str, list[Finding]]]:
    """Tries one law after the other, and gives its name with what is wrong.

    It ends early where the next laws have nothing to go by: after a basic law that is broken, and after one that did
    not come to an end in time. That one's thread is left behind, for nothing can end it; it does not keep the process
    from exiting.

    Args:
        spec, laws: see `check`.
        seconds: how long each law may take.

    Raises:
        KeyError: there is no such law.
    """
    for chosen in [LAWS[name] for name in (LAWS if laws is None else laws)]:
        findings, hangs = _tried(chosen, spec, seconds)
        yield chosen.name, findings
        if hangs or (findings and chosen.basic):
            break


def _tried(chosen: Law, spec: EnvSpec, seconds: float) -> tuple[list[Finding], bool]:
    """What is wrong, and whether that is because the law did not come to an end."""
    sentences: list[str] = []

    def try_it() -> None:
        try:
            chosen.holds_for(spec)
        except (BrokenLaw, BadEnvironment) as broken:
            sentences.append(str(broken))
        except BaseException as error:  # sys.exit() too: nobody else hears of it in a thread
            sentences.append(f"{type(error).__name__}: {error!s:.500} (from {place_of(error)})")

    thread = threading.Thread(target=try_it, name=f"law {chosen.name}", daemon=True)
    # A render mode may print; what Gymnasium warns of, a law says in its own words.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        thread.start()
        thread.join(seconds)
    hangs = thread.is_alive()
    if hangs:
        frames = list(traceback.walk_stack(sys._current_frames().get(thread.ident or 0)))
        sentences = [
            f"it did not come to an end within {seconds:g} seconds; it was in {_place(reversed(frames))}. Give "
            "whatever waits there a time limit of its own, or it will hold up training"
        ]
    return [Finding(chosen.name, sentence) for sentence in sentences], hangs


def spec_of(environment: str, kwargs: Mapping[str, Any] | None = None) -> EnvSpec:
    """The spec of a registered id ("GuessNumber-v0", "module:Id-v0") or of a class or function ("module:Class").

    Raises:
        ValueError: there is no such id or class; the error says what was looked for.
    """
    kwargs = dict(kwargs or {})
    module, colon, name = environment.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{environment!r}: there is no module {error.name!r}; it is looked for in the folder that you work in "
                "and among the installed packages"
            ) from error
    registered = gymnasium.registry.get(name) or (None if colon else gymnasium.registry.get(f"loragym/{name}"))
    if registered is not None:
        spec = copy.deepcopy(registered)
        spec.kwargs |= kwargs
        if callable(spec.entry_point):
            spec.entry_point = path_of(spec.entry_point)
        return spec
    if not colon:
        raise ValueError(
            f"there is no registered environment {environment!r}; `loragym envs` lists ours, and yours is named as "
            "'your_module:YourId-v0' or 'your_module:YourClass'"
        )
    import_path(environment, "the environment")
    return EnvSpec(id=f"{re.sub('[^A-Za-z0-9_.-]', '-', name)}-v0", entry_point=environment, kwargs=kwargs)


def path_of(creator: Any) -> str:
    return f"{creator.__module__}:{creator.__qualname__}"


def place_of(error: BaseException) -> str:
    """The last place that an exception came by, outside of the laws, Gymnasium and Python's own library."""
    return _place(traceback.walk_tb(error.__traceback__))


def _place(frames: Iterable[tuple[FrameType, int]]) -> str:
    place = "somewhere else"
    for frame, line in frames:
        file = Path(frame.f_code.co_filename)
        if not _is_ours_or_pythons(file):
            place = f"{frame.f_code.co_name}() in {file.name}, line {line}"
    return place


def _is_ours_or_pythons(file: Path) -> bool:
    if any(file.is_relative_to(folder) for folder in (Path(__file__).parent, Path(gymnasium.__file__).parent)):
        return True
    # What is installed may lie below Python's own library.
    return file.is_relative_to(Path(os.__file__).parent) and "site-packages" not in file.parts
