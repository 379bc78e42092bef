"""Where files are kept that can be made anew: indices, fetched models, compiled code."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "LORAGYM_CACHE"


def cache_root() -> Path:
    """`$LORAGYM_CACHE`, else `$XDG_CACHE_HOME/loragym`, else `~/.cache/loragym`."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser().absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser().absolute() / "loragym"
    return Path.home() / ".cache" / "loragym"
