"""The grader's workers: limits hold, what dies is replaced, and no job is lost to somebody else's signal."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from loragym.envs.math.grading import Grade, GraderPool, Limits, grade, grade_many, shared_pool
from loragym.envs.math.grading import pool as pool_module
from loragym.envs.math.grading.pool import Done, Failed, WorkerPool

SCRIPT = Path(__file__).resolve().parent / "grading_worker.py"
ROOTS = [(rf"\boxed{{\sqrt{{{4 * n}}}}}", rf"2\sqrt{{{n}}}") for n in range(2, 60)]
"""Pairs that only a worker settles."""


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(workers=2, limits=Limits(seconds=0.5, patience=1.5, memory_mb=512), script=SCRIPT) as pool:
        yield pool


def echo(what: object) -> dict[str, object]:
    return {"do": "echo", "what": what}


def alive(pid: int) -> bool:
    try:
        # A zombie has ended, though its parent has not asked for its exit code.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: object, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


def test_results_come_in_the_order_of_the_jobs(pool: WorkerPool) -> None:
    jobs = [echo(number) for number in range(200)]
    assert pool.run(jobs) == [Done(number) for number in range(200)]
    assert pool.counts == {"jobs": 200}


def test_no_jobs_are_no_work(pool: WorkerPool) -> None:
    assert pool.run([]) == []
    assert pool.process_ids() == []


def test_any_text_goes_through(pool: WorkerPool) -> None:
    texts = ["\ud800", "\x00\n\r", '"}\n{"result": 1}', "é🦉" * 1000, ""]
    assert pool.run([echo(text) for text in texts]) == [Done(text) for text in texts]


def test_a_job_that_calculates_too_long_times_out_and_the_others_do_not_notice(pool: WorkerPool) -> None:
    start = time.monotonic()
    first, spun, last = pool.run([echo(1), {"do": "spin"}, echo(2)])
    assert (first, last) == (Done(1), Done(2))
    assert isinstance(spun, Failed) and spun.reason == "timeout" and "processor time" in spun.detail
    assert time.monotonic() - start < 10
    assert pool.counts == {"jobs": 3, "timeouts": 1, "replaced": 1}


def test_a_job_that_waits_too_long_times_out(pool: WorkerPool) -> None:
    slept, fine = pool.run([{"do": "sleep", "seconds": 60}, {"do": "sleep", "seconds": 0.1}])
    assert slept == Failed("timeout", "more than 1.5 seconds")
    assert fine == Done("slept")


def test_memory_is_limited(pool: WorkerPool) -> None:
    hoarded, fine = pool.run([{"do": "hoard", "megabytes": 2000}, {"do": "hoard", "megabytes": 10}])
    assert hoarded == Failed("crashed", "out of memory")
    assert fine == Done(10 << 20)
    assert pool.counts["crashes"] == 1


@pytest.mark.parametrize(("job", "said"), [("exit", "code 3"), ("segfault", f"code {-signal.SIGSEGV}")])
def test_a_job_that_ends_its_worker_is_tried_three_times(pool: WorkerPool, job: str, said: str) -> None:
    crashed, fine = pool.run([{"do": job}, echo(1)])
    assert isinstance(crashed, Failed) and crashed.reason == "crashed"
    assert "3 times" in crashed.detail and said in crashed.detail
    assert fine == Done(1)
    assert pool.counts["replaced"] == 3


def test_an_error_in_a_worker_is_told(pool: WorkerPool) -> None:
    assert pool.run([{"do": "raise"}, echo(1)]) == [Failed("crashed", "KeyError: 'a bug'"), Done(1)]


def test_a_worker_writes_no_files(pool: WorkerPool, tmp_path: Path) -> None:
    (failed,) = pool.run([{"do": "write", "file": str(tmp_path / "file")}])
    assert isinstance(failed, Failed) and "File too large" in failed.detail
    assert not (tmp_path / "file").exists() or (tmp_path / "file").read_text() == ""


def test_a_worker_brings_nothing_of_the_house_along() -> None:
    worker = Path(pool_module.__file__).parent / "worker.py"
    load = f"import runpy, sys; runpy.run_path({str(worker)!r})['load_work'](); print(*sys.modules)"
    names = subprocess.run(
        [sys.executable, "-I", "-c", load], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "sympy" in names and "loragym_grading.deep" in names
    assert set(names).isdisjoint({"loragym", "gymnasium", "numpy", "torch", "transformers", "datasets"})


def test_workers_killed_at_random_lose_no_job() -> None:
    rng = random.Random(0)
    stop = threading.Event()
    with GraderPool(workers=2) as pool:

        def kill() -> None:
            while not stop.wait(0.3 + rng.random() * 0.3):
                for pid in pool.process_ids()[: rng.randint(0, 2)]:
                    os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            grades: list[Grade] = []
            end = time.monotonic() + 5
            while time.monotonic() < end:
                replies, references = zip(*ROOTS, strict=True)
                grades += grade_many(replies, references, pool=pool)
        finally:
            stop.set()
            killer.join()
        assert pool.counts["replaced"] >= 3
    assert len(grades) >= len(ROOTS)
    assert {grade.verdict for grade in grades} == {"correct"}


def test_an_idle_worker_that_was_killed_is_replaced(pool: WorkerPool) -> None:
    assert pool.run([echo(1)]) == [Done(1)]
    for pid in pool.process_ids():
        os.kill(pid, signal.SIGKILL)
    assert pool.run([echo(2)]) == [Done(2)]


def test_a_worker_that_cannot_start_is_an_error_that_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "broken.py"
    script.write_text("raise SystemExit('no luck')")
    with WorkerPool(script=script) as pool, pytest.raises(RuntimeError, match="before they were ready"):
        pool.run([echo(1)])
    assert "no luck" in capfd.readouterr().err


def test_threads_share_the_workers(pool: WorkerPool) -> None:
    found: dict[int, list[object]] = {}

    def run(number: int) -> None:
        found[number] = list(pool.run([echo((number, place)) for place in range(20)]))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {number: [Done([number, place]) for place in range(20)] for number in range(8)}
    assert len(pool.process_ids()) <= 2


def test_a_pickled_pool_is_a_new_one_with_the_same_settings(pool: WorkerPool) -> None:
    pool.run([echo(1)])
    with pickle.loads(pickle.dumps(pool)) as copy:
        assert (copy.workers, copy.limits, copy.script) == (pool.workers, pool.limits, pool.script)
        assert copy.run([echo(2)]) == [Done(2)]
        assert set(copy.process_ids()).isdisjoint(pool.process_ids())


def test_a_closed_pool_has_no_workers_and_says_that_it_is_closed() -> None:
    pool = WorkerPool(script=SCRIPT)
    pool.run([echo(1)])
    pids = pool.process_ids()
    pool.close()
    pool.close()
    assert pids and not any(alive(pid) for pid in pids)
    with pytest.raises(RuntimeError, match="closed"):
        pool.run([echo(1)])


def test_a_forgotten_pool_ends_its_workers() -> None:
    pool = WorkerPool(script=SCRIPT)
    pool.run([echo(1)])
    (pid,) = pool.process_ids()
    del pool
    assert wait_until(lambda: not alive(pid))


@pytest.mark.parametrize("arguments", [{"seconds": 0}, {"seconds": 3, "patience": 2}, {"memory_mb": 10}])
def test_impossible_limits_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"expected|needs"):
        Limits(**arguments)  # type: ignore[arg-type]


def test_a_pool_has_workers() -> None:
    with pytest.raises(ValueError, match="one worker or more"):
        WorkerPool(workers=0)


def _grade_in_child(numbers: list[int]) -> tuple[list[str], list[int]]:
    verdicts = [grade(*ROOTS[number]).verdict for number in numbers]
    return verdicts, shared_pool().process_ids()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_each_kind_have_workers_of_their_own(method: str) -> None:
    assert grade(*ROOTS[0]).verdict == "correct"
    ours = set(shared_pool().process_ids())
    assert ours
    # The children of such a pool are daemonic, as those of gymnasium's AsyncVectorEnv are.
    with multiprocessing.get_context(method).Pool(2) as children:
        found = children.map(_grade_in_child, [[1, 2], [3, 4]], chunksize=1)
    assert [verdicts for verdicts, _ in found] == [["correct"] * 2] * 2
    assert all(pids and ours.isdisjoint(pids) for _, pids in found)
    assert grade(*ROOTS[5]).verdict == "correct"
    assert all(alive(pid) for pid in ours)


PARENT = """
import os, signal, sys
from loragym.envs.math.grading import grade, shared_pool
assert grade(r"\\boxed{\\sqrt8}", r"2\\sqrt2").correct
print(*shared_pool().process_ids(), flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("way", ["ends", "killed"])
def test_workers_end_with_their_parent_without_a_main_guard(way: str) -> None:
    result = subprocess.run([sys.executable, "-c", PARENT, way], capture_output=True, text=True, check=False)
    pids = [int(word) for word in result.stdout.split()]
    assert pids, result.stderr
    assert wait_until(lambda: not any(alive(pid) for pid in pids))


def test_what_is_easy_starts_no_worker() -> None:
    easy = r"""
from loragym.envs.math.grading import grade, shared_pool
for reply, reference in [("42", "42"), ("41", "42"), ("1,000", "1000"), (r"\frac12", "0.5"), ("(x+1)^2", "x^2+2x+1"),
                         (r"\sqrt{2}", r"\sqrt{2}"), ("(1,2]", "1<x\\le2"), ("9^{9^9}", "9^{9^9}+1"), ("A", "B")]:
    grade("\\boxed{" + reply + "}", reference)
import sys
assert shared_pool().process_ids() == []
assert "sympy" not in sys.modules and "mpmath" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", easy], check=True)
