"""Folders that take long to make and are kept: made once, whole or not at all, checked before they are used."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...cache import cache_root

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
MAKING_SECONDS = 3600.0
"""How long to wait for another process that makes the folder."""
_CHECKED_BYTES = 64 * 2**20
"""Larger files are checked by their size alone: reading them through would cost what mapping them saves."""


def cached_folder(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder of this kind and key, made by `make` if it is not there or is damaged.

    Several processes may ask at once: one makes it, the others wait. It appears under its name when it is complete, so
    a process that is killed leaves nothing that passes for a folder.

    Args:
        kind: a word for the folder's name.
        key: tells its content from others of the kind.
        make: fills an empty folder.

    Raises:
        OSError: the cache cannot be written, or (`filelock.Timeout`) another process has been making it for too long.
    """
    from filelock import FileLock

    folder = cache_root() / "search" / f"{kind}-{key}"
    if _problem(folder) is None:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock", timeout=MAKING_SECONDS):
        problem = _problem(folder)
        if problem is None:
            return folder
        if folder.exists():
            logger.warning("%s is damaged (%s); it is made anew", folder, problem)
            shutil.rmtree(folder)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=folder.parent))
        try:
            make(unfinished)
            _write_manifest(unfinished)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def key_of(**settings: Any) -> str:
    """A name for these settings, the same in every process."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _write_manifest(folder: Path) -> None:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    entries = {file.relative_to(folder).as_posix(): _state(file) for file in files}
    with (folder / MANIFEST).open("w", encoding="utf-8") as manifest:
        json.dump(entries, manifest)
        manifest.flush()
        os.fsync(manifest.fileno())


def _state(file: Path) -> list[Any]:
    size = file.stat().st_size
    if size > _CHECKED_BYTES:
        return [size, None]
    with file.open("rb") as opened:
        return [size, hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()]


def _problem(folder: Path) -> str | None:
    """What is wrong with the folder; None if nothing is."""
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, state in entries.items():
            if _state(folder / name) != state:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (ValueError, AttributeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    return None
