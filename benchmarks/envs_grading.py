r"""Our grader beside math-verify on a table of pairs judged by hand: `python -m benchmarks.envs grading`.

Both get every pair as `\boxed{answer}` with its reference, taking turns pair by pair. Each one's time is taken where it
works: ours with the way to its worker process and back, math-verify's without any. What ours keeps of references is
thrown away before each pair. Errors are verdicts that differ from the hand's.

`python -m benchmarks.envs_grading` lists the pairs on which the two differ. math-verify may be installed elsewhere:
LORAGYM_PEERS names the interpreter.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from loragym.envs.math.grading import GraderPool, grade
from loragym.envs.math.grading.compare import forget_references

from .envs import Row

HERE = Path(__file__).resolve().parent
TABLE = HERE.parent / "tests" / "data" / "grading_pairs.jsonl"
PEERS = "LORAGYM_PEERS"


class Pair(NamedTuple):
    topic: str
    answer: str
    reference: str
    equal: bool
    note: str = ""


class Judged(NamedTuple):
    equal: bool
    seconds: float


def pairs() -> list[Pair]:
    return [Pair(**json.loads(line)) for line in TABLE.read_text("utf-8").splitlines()]


class Ours:
    name = "loragym"

    def __enter__(self) -> Ours:
        self.pool = GraderPool(workers=1)
        self.judge(Pair("", "\\sqrt{8}", "\\sqrt{9}", False))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.pool.close()

    def judge(self, pair: Pair) -> Judged:
        forget_references()
        start = time.perf_counter()
        found = grade(f"\\boxed{{{pair.answer}}}", pair.reference, pool=self.pool)
        return Judged(found.correct, time.perf_counter() - start)


class MathVerify:
    """Raises FileNotFoundError or RuntimeError if it is not there."""

    name = "math-verify"

    def __enter__(self) -> MathVerify:
        python = os.environ.get(PEERS, sys.executable)
        self.process = subprocess.Popen(
            [python, str(HERE / "workers" / "peer_grader.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            raise RuntimeError(f"math-verify does not start in {python}; set {PEERS} to an interpreter that has it")
        self.judge(Pair("", "\\sqrt{8}", "\\sqrt{9}", False))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def judge(self, pair: Pair) -> Judged:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"answer": pair.answer, "reference": pair.reference}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return Judged(answer["equal"], answer["seconds"])


def contest(seconds: float) -> dict[str, list[list[Judged]]]:
    """For each contestant its rounds through the table: three at least, and as many as begin within `seconds`."""
    table = pairs()
    with ExitStack() as stack:
        contestants: list[Ours | MathVerify] = [stack.enter_context(Ours())]
        try:
            contestants.append(stack.enter_context(MathVerify()))
        except (FileNotFoundError, RuntimeError) as error:
            print(f"{MathVerify.name} is left out: {error}", file=sys.stderr)
        rounds: dict[str, list[list[Judged]]] = {contestant.name: [] for contestant in contestants}
        end = time.perf_counter() + seconds
        gc.collect()
        gc.disable()
        while len(rounds[Ours.name]) < 3 or time.perf_counter() < end:
            for judged in rounds.values():
                judged.append([])
            for pair in table:
                for contestant in contestants:
                    rounds[contestant.name][-1].append(contestant.judge(pair))
        gc.enable()
    return rounds


def measure(seconds: float) -> list[Row]:
    """Pairs per second, the 99th percentile of a pair's time, and errors, of both."""
    table = pairs()
    rows = []
    for name, rounds in contest(seconds).items():
        times = sorted(judged.seconds for found in rounds for judged in found)
        errors = sum(judged.equal != pair.equal for judged, pair in zip(rounds[0], table, strict=True))
        rows += [
            Row(f"grading {len(table)} pairs", name, len(times) / sum(times), "pairs/s"),
            Row(f"grading {len(table)} pairs, p99", name, times[int(len(times) * 0.99)] * 1e3, "ms"),
            Row(f"grading {len(table)} pairs, verdicts unlike the hand's", name, errors, "pairs"),
        ]
    return sorted(rows)


def disagreements() -> list[tuple[Pair, bool, bool]]:
    """The pairs on which the two differ, with our verdict and theirs."""
    with Ours() as ours, MathVerify() as theirs:
        judged = [(pair, ours.judge(pair).equal, theirs.judge(pair).equal) for pair in pairs()]
    return [(pair, left, right) for pair, left, right in judged if left != right]


def main() -> None:
    found = disagreements()
    print("| topic | answer | reference | by hand | loragym | math-verify | why |\n|---|---|---|---|---|---|---|")
    for pair, ours, theirs in found:
        words = [{True: "equal", False: "not"}[equal] for equal in (pair.equal, ours, theirs)]
        cells = [f"`{text}`".replace("|", "\\|") for text in (pair.answer, pair.reference)]
        print(f"| {' | '.join([pair.topic, *cells, *words, pair.note])} |")
    ours_right = sum(ours == pair.equal for pair, ours, _ in found)
    print(
        f"\n{len(found)} of {len(pairs())} pairs; the hand is with loragym on {ours_right} of them and with "
        f"math-verify on {len(found) - ours_right}."
    )


if __name__ == "__main__":
    main()
