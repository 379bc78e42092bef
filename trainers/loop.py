"""The loop that all trainers share: resume, step, log, save, and leave a resumable run whatever happens.

A step is a function of its number and the weights alone; problems, order and sampling follow from the config's seed. So
a run that goes on from a checkpoint takes the very steps that it would have taken.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .clocks import seconds_since
from .config import RunConfig
from .display import Column, StepTable
from .health import health_summary
from .learners import Learner
from .run_directory import RunDirectory, RunError, read_metrics
from .stopping import Interrupted, Stop
from .watch import Watch


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of one step: figures to log, and conversations to keep."""

    metrics: dict[str, float]
    transcripts: list[dict[str, Any]] = field(default_factory=list)


Step = Callable[[int, StepTable], StepResult]


class Trainer(Protocol):
    """One run's learner and the steps that improve it."""

    @property
    def learner(self) -> Learner: ...

    @property
    def total_steps(self) -> int: ...

    def step(self, number: int, table: StepTable) -> StepResult: ...

    def evaluate(self) -> dict[str, float]:
        """Held-out figures of the learner as it is now."""
        ...

    def summarize(self, rows: Sequence[dict[str, Any]], final: dict[str, float]) -> dict[str, Any]:
        """A finished run in figures, from the logged rows, the last of which holds the final evaluation."""
        ...

    def close(self) -> None: ...


def conduct(config: RunConfig, make: Callable[[], Trainer], columns: Sequence[Column]) -> dict[str, Any]:
    """Runs or resumes a run to its end; returns its summary.

    Args:
        config: the run's.
        make: loads the model and what else the steps need; not called if the run is finished already.
        columns: what the user sees of each step.

    Raises:
        RunError: the run directory cannot be used.
        Interrupted, Terminated: stopped by Ctrl-C or SIGTERM, after saving.
    """
    fresh, resume_from, fork = config.fresh, config.resume_from, config.fork
    with Stop(), RunDirectory(config.run_dir, config, fresh=fresh, resume_from=resume_from, fork=fork) as run:
        if (summary := run.summary) is not None:
            return summary
        trainer = make()
        try:
            run_steps(run, config, trainer.learner, trainer.step, trainer.total_steps, columns)
            return _summed_up(run, trainer)
        finally:
            trainer.close()


def _summed_up(run: RunDirectory, trainer: Trainer) -> dict[str, Any]:
    """Evaluates what was trained, and marks the run as finished."""
    try:
        final = trainer.evaluate()
        elapsed = elapsed_seconds(read_metrics(run.path))
        run.log(trainer.total_steps, {**final, "time/elapsed": elapsed})
        rows = read_metrics(run.path)
        summary = {**trainer.summarize(rows, final), "health": health_summary(rows)}
        run.finish({**summary, "minutes": elapsed / 60, "peak_memory_mib": peak_memory_mib()})
    except Exception as error:
        done = f"all {trainer.total_steps} steps are done and saved in {run.path}"
        error.add_note(f"{done}; run the same command again to have them summed up")
        raise
    assert run.summary is not None
    return run.summary


def held_out_figures(rows: Sequence[dict[str, Any]], step: int) -> dict[str, float]:
    """The evaluation that was logged in a step's row."""
    row = next((row for row in rows if row["step"] == step), None)
    if row is None:
        raise RunError(f"metrics.jsonl has no row of step {step}, so the run cannot be summed up; was it edited?")
    return {name: value for name, value in row.items() if name.startswith("test/")}


def elapsed_seconds(rows: Sequence[dict[str, Any]]) -> float:
    """How long a run has taken so far, from its logged rows."""
    known = rows[-1].get("time/elapsed") if rows else None
    return float(known) if isinstance(known, int | float) and not isinstance(known, bool) else 0.0


def run_steps(
    run: RunDirectory, config: RunConfig, learner: Learner, step: Step, total: int, columns: Sequence[Column]
) -> None:
    """Takes the steps that are left of `total`, then saves.

    A step is abandoned for Ctrl-C or SIGTERM as long as it has changed no weights; from then on it is finished.

    Raises:
        Interrupted, Terminated: on Ctrl-C or SIGTERM, after saving what is done.
        RunError: more steps are done than were asked for.
        Exception: whatever a step raised, with a note on where the run can be resumed.
    """
    newest = run.checkpoints.latest()
    start = 0
    if newest is not None:
        start, folder = newest
        if start > total:
            raise RunError(f"{folder} is already at step {start}, and the config asks for {total} steps in all")
        learner.load_state(folder)
    run.start(start)
    rows = read_metrics(run.path)
    elapsed = elapsed_seconds(rows)
    saved = done = start
    version = learner.version
    is_stepping = True
    watch = Watch(config, learner, rows)

    def save(at: int) -> None:
        nonlocal saved
        run.sync()
        run.checkpoints.save(at, learner.save_state, {"version": learner.version, "elapsed": elapsed})
        saved = at

    with StepTable(columns, total, start) as table, Stop(lambda: is_stepping and learner.version == version) as stop:
        if start:
            table.say(f"resuming {run.path} at step {start} of {total}")
            watch.begin(table)
        for change in run.changes:
            table.say(f"  changed: {change}")
        try:
            for number in range(start, total):
                step_began = time.monotonic()
                result = step(number, table)
                is_stepping = False
                seconds = seconds_since(step_began)
                elapsed += seconds
                times = {"time/step": seconds, "time/elapsed": elapsed}
                metrics = watch.take({**result.metrics, **times}, table)
                run.log(number, metrics)
                run.log_transcripts(number, result.transcripts)
                done, version = number + 1, learner.version
                table.row(number, metrics)
                if done % config.save_every == 0 or done == total:
                    save(done)
                watch.check()
                stop.check()
                is_stepping = True
        except BaseException as error:
            is_stepping = False
            # Weights in the middle of a step are those of no step; then the last checkpoint has to do.
            if learner.version == version and done > saved:
                learner.zero_grad()
                try:
                    save(done)
                except Exception as again:
                    error.add_note(f"what was done since the last checkpoint could not be saved: {again}")
            where = f"the run is saved at step {saved} of {total} in {run.path}; run the same command again to go on"
            if isinstance(error, KeyboardInterrupt):
                kind = type(error) if isinstance(error, Interrupted) else Interrupted
                raise kind("; ".join([f"stopped: {where}", *getattr(error, "__notes__", ())])) from None
            error.add_note(where)
            raise


def peak_memory_mib() -> float:
    """Most memory that this process has held, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
