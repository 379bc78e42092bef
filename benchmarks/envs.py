"""Speed of the environments, beside those of others: `python -m benchmarks.envs`.

A topic is a module `envs_<topic>.py` with `measure(seconds) -> list[Row]`; it runs in a process of its own. Contestants
that are not installed are left out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """One figure: which job, who did it, how much of what."""

    job: str
    contestant: str
    figure: float
    unit: str


def topics() -> list[str]:
    """The topics that there are, by their modules."""
    return sorted(path.stem.removeprefix("envs_") for path in Path(__file__).parent.glob("envs_*.py"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.envs", description=__doc__)
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=f"of {', '.join(topics())}; by default all")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure")
    parser.add_argument("--here", action="store_true", help="measure in this process and print JSON")
    arguments = parser.parse_args()
    if arguments.here:
        (topic,) = arguments.topics
        rows = importlib.import_module(f"{__package__}.envs_{topic}").measure(arguments.seconds)
        print(json.dumps(rows))
        return
    print("| job | contestant | figure | unit |\n|---|---|---|---|")
    for topic in arguments.topics or topics():
        command = [sys.executable, "-m", "benchmarks.envs", topic, "--here", "--seconds", str(arguments.seconds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        for row in json.loads(done.stdout.splitlines()[-1]):
            job, contestant, figure, unit = row
            print(f"| {job} | {contestant} | {figure:,.4g} | {unit} |")


if __name__ == "__main__":
    main()
