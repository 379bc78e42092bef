"""What the tests of hostile input share: how many cases there are, what counts as a clear refusal, and two watchmen.

A law is a function of what Hypothesis draws. `try_many` tries it on many draws: a few hundred in the tests that take
seconds, ten thousand in the slow ones, by the same code.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from loragym.envs import BadEnvironment

SECONDS_PER_CASE = 60
"""On a machine that is busy with other things too; a case takes milliseconds."""

CLEAR = (ValueError, RuntimeError, OSError, ImportError, NotImplementedError, BadEnvironment)
"""What `loragym.cli.report_errors` turns into a line for the user."""

RAW = (UnicodeError, json.JSONDecodeError, RecursionError)
"""Kinds of those that say what a library stumbled over, and nothing about where it came from."""


def cases(fast: int = 300, slow: int = 10_000) -> pytest.MarkDecorator:
    """The test's argument `cases`: how many are tried."""
    return pytest.mark.parametrize(
        "cases", [fast, pytest.param(slow, marks=[pytest.mark.slow, pytest.mark.timeout(0)])]
    )


def try_many(cases: int, law: Callable[..., None], **drawn: SearchStrategy[Any]) -> None:
    """Tries a law on many draws, each of which ends in time; the same draws whenever there are few."""

    @wraps(law)
    def in_time(**values: Any) -> None:
        with deadline():
            law(**values)

    few = cases < 1000
    phases = [Phase.explicit, Phase.generate, *([] if few else [Phase.shrink])]
    checks = settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=few,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )
    checks(given(**drawn)(in_time))()


def refusal(call: Callable[[], Any], *names: str) -> str | None:
    """What a call that cannot be done says; None if it could.

    Args:
        call: what is tried.
        names: what the message has to name.

    Raises:
        AssertionError: it says nothing that helps.
        Exception: it crashed.
    """
    try:
        call()
    except CLEAR as error:
        said = str(error)
        assert not isinstance(error, RAW), f"a bare {type(error).__name__}: {said}"
        assert len(said) > 10, f"{type(error).__name__} says no more than {said!r}"
        missing = [name for name in names if name not in said]
        assert not missing, f"does not name {missing}: {said}"
        return said
    return None


@contextmanager
def deadline(seconds: float = SECONDS_PER_CASE) -> Iterator[None]:
    """Fails what takes longer."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def writes_only_in(*folders: Path) -> Iterator[None]:
    """Fails if anything in this process makes, changes or removes a file elsewhere."""
    allowed = [Path(os.path.realpath(folder)) for folder in (*folders, Path("/dev"))]
    written: list[str] = []

    def note(path: Any) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            # Where it leads, whatever links are on the way there; what is not there yet leads where its folder does.
            place = Path(os.path.realpath(os.fsdecode(path)))
            if "__pycache__" not in place.parts and not any(place.is_relative_to(folder) for folder in allowed):
                written.append(str(place))

    _watchers.append(note)
    _watch()
    try:
        yield
    finally:
        _watchers.remove(note)
    assert not written, f"written outside of {', '.join(map(str, folders))}: {written}"


_watchers: list[Callable[[Any], None]] = []
_hooked: list[bool] = []
_CHANGES = {
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.rename": (0, 1),
    "os.link": (1,),
    "os.symlink": (1,),
}
"""Which of an event's arguments are paths that it changes; the last one may be the number of the folder they are in."""


def _watch() -> None:
    if not _hooked:
        sys.addaudithook(_heard)
        _hooked.append(True)


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watchers:
        return
    if event == "open":
        path, mode, flags = arguments
        if flags & os.O_NOFOLLOW and Path(os.fsdecode(path)).is_symlink():  # it is about to fail
            return
        if (isinstance(mode, str) and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _watchers[-1](path)
    for place in _CHANGES.get(event, ()):
        folder = arguments[-1] if isinstance(arguments[-1], int) and arguments[-1] >= 0 else None
        _watchers[-1](arguments[place] if folder is None else f"/proc/self/fd/{folder}/{os.fsdecode(arguments[place])}")


HOSTILE_NAMES = (
    "..",
    "../outside",
    "../../outside",
    "/tmp/outside",
    "a/../../outside",
    "~",
    "~/outside",
    "$HOME/outside",
    ".",
    "",
    "a\0b",
    "con",
    "a" * 300,
    "ü\u202e",
    "\ud800",
    "-rf",
    "--config",
    "a\nb",
    "C:\\outside",
    "..\\outside",
    "\x1b[2J",
)
"""Names that are more than names."""

texts = st.text(st.characters(), max_size=20) | st.sampled_from(HOSTILE_NAMES)
"""Any text, lone surrogates included."""

json_values: SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
"""Whatever JSON can hold, and the NaN and infinities that Python's reader takes."""


def deep(levels: int, opening: str = "[", closing: str = "]") -> str:
    """Brackets within brackets."""
    return opening * levels + closing * levels


def mangled(text: bytes) -> SearchStrategy[bytes]:
    """A file with bits flipped, cut off, something in between, or replaced."""

    def change(kind: str, at: float, piece: bytes) -> bytes:
        place = int(at * len(text))
        if kind == "cut":
            return text[:place]
        if kind == "flip" and text:
            place = min(place, len(text) - 1)
            return text[:place] + bytes([text[place] ^ (piece[0] if piece and piece[0] else 1)]) + text[place + 1 :]
        if kind == "insert":
            return text[:place] + piece + text[place:]
        return piece

    return st.builds(
        change,
        st.sampled_from(["cut", "flip", "flip", "insert", "replace"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(max_size=12) | st.sampled_from([b"\xff\xfe", b"\x00" * 8, b"{}", b"[]", b"null", b"../", b"9" * 400]),
    )
