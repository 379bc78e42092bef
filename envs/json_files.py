"""JSON files that somebody else may have written, or that were damaged on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json_object(path: Path, advice: str) -> dict[str, Any]:
    """The object that a file holds.

    Args:
        path: the file.
        advice: what to do where it holds none.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is no JSON, or no object; the message names the file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); {advice}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged (it holds {found!r:.80}, an object was expected); {advice}")
    return found
