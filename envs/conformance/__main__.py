"""Prints the digests of the specs that come on stdin, each an error's text if it cannot be had."""

from __future__ import annotations

import contextlib
import json
import sys

from gymnasium.envs.registration import EnvSpec

from .episodes import digest


def main() -> None:
    digests = []
    with contextlib.redirect_stdout(sys.stderr):
        for text in json.load(sys.stdin):
            try:
                digests.append(digest(EnvSpec.from_json(text)))
            except Exception as error:
                digests.append(f"{type(error).__name__}: {error}")
    print(json.dumps(digests))


if __name__ == "__main__":
    main()
