"""Steps per second of guess-the-number: ours, those of others and a bare `gymnasium.Env`; and the time of our import.

Every contestant runs in a process of its own; they take turns, burst by burst. The figure is the median of the bursts,
the spread half the distance between their quartiles; beside them stands how many guesses an episode had, which is to be
the same for all. LORAGYM_PEERS names an interpreter that has gem-llm and textarena; those that it lacks are left out,
with a note.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from .envs import Row

WORKER = Path(__file__).resolve().parent / "workers" / "env_steps.py"
PEERS = "LORAGYM_PEERS"
BURSTS = 15
IMPORTS = 11
ONE, SIXTEEN = "guess-the-number, one environment", "guess-the-number, 16 in a vector"


@dataclass(slots=True)
class Contestant:
    """Who plays; `is_peer` says in whose interpreter."""

    name: str
    job: str
    label: str
    is_peer: bool = False
    version: str = ""
    rates: list[float] = field(default_factory=list)
    steps: int = 0
    episodes: int = 0
    process: subprocess.Popen[str] | None = None

    def start(self, stack: ExitStack) -> bool:
        """Whether it runs."""
        python = os.environ.get(PEERS, sys.executable) if self.is_peer else sys.executable
        self.process = stack.enter_context(
            subprocess.Popen(
                [python, str(WORKER), self.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        )
        stack.callback(self.process.terminate)
        assert self.process.stdout is not None and self.process.stderr is not None
        ready, _, self.version = self.process.stdout.readline().strip().partition(" ")
        if ready != "ready":
            reason = self.process.stderr.read().strip().splitlines()[-1:]
            print(f"{self.label} is left out: {''.join(reason)}", file=sys.stderr)
        return ready == "ready"

    def burst(self, seconds: float) -> None:
        assert self.process is not None and self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        steps, took, episodes = self.process.stdout.readline().split()
        self.rates.append(int(steps) / float(took))
        self.steps += int(steps)
        self.episodes += int(episodes)

    @property
    def row(self) -> Row:
        lower, median, upper = statistics.quantiles(self.rates, n=4)
        label = f"{self.label} {self.version}".strip()
        spread, length = 50 * (upper - lower) / median, self.steps / self.episodes
        return Row(self.job, label, median, f"steps/s, ± {spread:.0f} %, {length:.2f} an episode")


def contestants() -> list[Contestant]:
    return [
        Contestant("loragym", ONE, "loragym"),
        Contestant("loragym/make", ONE, "loragym through gymnasium.make"),
        Contestant("gem", ONE, "gem-llm", is_peer=True),
        Contestant("textarena", ONE, "textarena", is_peer=True),
        Contestant("textarena/raw", ONE, "textarena without wrappers", is_peer=True),
        Contestant("gymnasium", ONE, "bare gymnasium.Env, integers"),
        Contestant("loragym/loop", SIXTEEN, "loragym, in turn, as `collect` plays them"),
        Contestant("loragym/sync", SIXTEEN, "loragym, SyncVectorEnv"),
        Contestant("gem/sync", SIXTEEN, "gem-llm, SyncVectorEnv", is_peer=True),
        Contestant("textarena/loop", SIXTEEN, "textarena, in turn (it has no vectors)", is_peer=True),
        Contestant("gymnasium/sync", SIXTEEN, "bare gymnasium.Env, integers, SyncVectorEnv"),
        Contestant("loragym/async", SIXTEEN, "loragym, AsyncVectorEnv (processes)"),
        Contestant("gem/async", SIXTEEN, "gem-llm, AsyncVectorEnv (threads)", is_peer=True),
    ]


def measure(seconds: float) -> list[Row]:
    """`seconds` of play for each contestant, in `BURSTS` turns."""
    with ExitStack() as stack:
        running = [contestant for contestant in contestants() if contestant.start(stack)]
        for _ in range(BURSTS):
            for contestant in running:
                contestant.burst(seconds / BURSTS)
    return [*(contestant.row for contestant in running), *imports()]


def imports() -> list[Row]:
    """How long `import loragym.envs` takes in a new interpreter: all of it, and what gymnasium and numpy leave.

    By the clock and by the processor: on a busy machine the first has the others' work in it.
    """
    code = (
        "{}; import time; a, b = time.perf_counter(), time.process_time(); import loragym.envs; "
        "print(time.perf_counter() - a, time.process_time() - b)"
    )
    contestants = {"loragym": "pass", "loragym, less gymnasium and numpy": "import gymnasium, numpy"}
    times: dict[str, list[list[float]]] = {name: [] for name in contestants}
    for _ in range(IMPORTS):
        for name, first in contestants.items():
            command = [sys.executable, "-c", code.format(first)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            times[name].append([float(figure) for figure in done.stdout.split()])
    return [
        Row("import loragym.envs", name, statistics.median(figures), unit)
        for name, found in times.items()
        for figures, unit in zip(zip(*found, strict=True), ("s", "s of the processor"), strict=True)
    ]
