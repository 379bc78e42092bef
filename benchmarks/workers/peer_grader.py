"""math-verify as a contestant, in whatever environment it is installed: a script that reads pairs and answers each.

A line on stdin is a JSON object with an answer and a reference; a line on stdout tells whether they are equal and how
many seconds it took to read both and compare them.
"""

from __future__ import annotations

import json
import sys
import time

from math_verify import parse, verify


def main() -> None:
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        pair = json.loads(line)
        start = time.perf_counter()
        error = ""
        try:
            # With its own limits of five seconds each for reading and comparing, as it comes.
            equal = bool(verify(parse(f"\\boxed{{{pair['reference']}}}"), parse(f"\\boxed{{{pair['answer']}}}")))
        except Exception as raised:
            equal, error = False, type(raised).__name__
        seconds = time.perf_counter() - start
        print(json.dumps({"equal": equal, "seconds": seconds, "error": error}), flush=True)


if __name__ == "__main__":
    main()
