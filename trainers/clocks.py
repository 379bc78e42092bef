"""Durations that no jump of a clock can make negative or nothing."""

from __future__ import annotations

import time

SHORTEST = 1e-9


def seconds_since(began: float) -> float:
    """Seconds since `time.monotonic()` was `began`: above 0 whatever the clock does, so that one can divide by them."""
    return max(SHORTEST, time.monotonic() - began)
