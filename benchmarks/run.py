"""Runs rows: starts the engines, interleaves their repetitions, computes each row's bound, gathers the figures."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from . import bound
from .bound import Machine, ModelShape, Work
from .protocol import ROOT, Answer, Unavailable, Worker, WorkerError
from .suite import ENGINES, ONE_BY_ONE, OURS, POSITIONS, RANK, Row

THREADS = 2
DISTURBED = 0.1
"""Share of the machine that others may take during a measurement before it counts as disturbed."""
MEASUREMENTS = 3
"""How often the machine's own speed is measured at most, if that is disturbed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all engines share."""

    model: str = "smollm2-135m-instruct"
    dtype: str = "bfloat16"
    device: str = "cpu"
    threads: int = THREADS
    rank: int = RANK


@dataclass(slots=True)
class Session:
    """The engines that run, started when they are first wanted, and the machine's measured speed.

    Use as a context manager: leaving it ends the workers.

    Attributes:
        setting: what all engines share.
        folder: for adapters and logs.
        versions: of the packages in each engine's environment.
        machine: its description and speed, as they come.
        warm: engines and kinds of request that have had their warm-up.
    """

    setting: Setting
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="loragym-bench-")))
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    warm: set[tuple[str, str]] = field(default_factory=set)
    _workers: dict[str, Worker] = field(default_factory=dict)
    _ours: dict[str, Answer] = field(default_factory=dict)
    _rates: dict[bound.Shape, float] = field(default_factory=dict)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all workers; they start again when they are wanted."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
        self.warm.clear()

    def release(self) -> None:
        """Lets all workers give back what they have freed."""
        for worker in self._workers.values():
            with contextlib.suppress(WorkerError):
                worker.ask({"kind": "release"})

    def engine(self, name: str) -> Worker:
        """The worker that runs an engine; engines of the same module, adapter and options share one.

        Raises:
            Unavailable: it is not installed.
        """
        engine = ENGINES[name]
        is_ours = engine.module == ENGINES[OURS].module
        python = ROOT / engine.home / "bin" / "python" if engine.home else Path(sys.executable)
        if not python.exists():
            raise Unavailable(f"not installed: {engine.install}")
        options = {
            "model": self.setting.model if is_ours else self.ours(engine.adapter)["folder"],
            "adapter": str(self.folder / f"adapter-{engine.adapter}"),
            "adapter_kind": engine.adapter,
            "rank": self.setting.rank,
            "dtype": self.setting.dtype,
            "device": self.setting.device,
            "threads": self.setting.threads,
            "scratch": str(self.folder),
            **engine.options,
        }
        try:
            worker = self._worker(engine.module, python, options, engine.environment)
        except Unavailable as error:
            raise Unavailable(f"not installed ({error}): {engine.install}") from None
        if is_ours:
            self._ours.setdefault(engine.adapter, worker.about)
        return worker

    def ours(self, adapter: str = ENGINES[OURS].adapter) -> Answer:
        """What our engine says about the model; it writes the adapter, so it runs once before the others."""
        if adapter not in self._ours:
            self.engine(next(n for n, e in ENGINES.items() if e.module == "ours" and e.adapter == adapter))
        return self._ours[adapter]

    @property
    def shape(self) -> ModelShape:
        return ModelShape.of_config(self.ours()["config"], self.ours()["weight_bytes"])

    def measured(self, works: Iterable[Work]) -> Machine:
        """The machine's speed at all shapes of `works`; each is measured once a session."""
        options = {"threads": self.setting.threads, "device": self.setting.device, "dtype": self.setting.dtype}
        worker = self._worker("machine", Path(sys.executable), options)
        if "bandwidth" not in self.machine:
            bandwidths = worker.ask({"kind": "bandwidth"})
            self.machine |= worker.about
            self.machine |= {name: bandwidths[name] for name in ("bandwidth", "copy", "read")}
        if shapes := sorted({shape for work in works for shape in work.shapes} - self._rates.keys()):
            for _ in range(MEASUREMENTS):
                answer = worker.ask({"kind": "products", "shapes": shapes})
                for shape, rate in zip(shapes, answer["rates"], strict=True):
                    self._rates[shape] = max(rate, self._rates.get(shape, 0.0))
                if answer.get("others", 0.0) <= DISTURBED:
                    break
            self.machine["rates"] = {"x".join(map(str, shape)): rate for shape, rate in sorted(self._rates.items())}
        return Machine(self._rates, self.machine["bandwidth"])

    def _worker(
        self, module: str, python: Path, options: Mapping[str, Any], environment: Mapping[str, str] | None = None
    ) -> Worker:
        key = f"{module} {sorted(options.items())}"
        if key not in self._workers:
            environment = {
                **(environment or {}),
                "OMP_NUM_THREADS": str(self.setting.threads),
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
                "TRANSFORMERS_VERBOSITY": "error",
            }
            command = [str(python), "-m", f"benchmarks.workers.{module}"]
            worker = Worker(command, options, self.folder / f"{module}.log", environment)
            self._workers[key] = worker
            self.versions.setdefault(module, worker.about.get("versions", {}))
        return self._workers[key]


def measure(
    setting: Setting, rows: Sequence[tuple[Row, Mapping[str, int]]], *, form: str, tell: Callable[[Answer], None]
) -> Answer:
    """Measures rows in order; engines live for one section.

    Args:
        setting: what all engines share.
        rows: each with its engines and how often they repeat it.
        form: the run's name.
        tell: is given each record as it comes.

    Returns:
        The run's result: setting, machine, versions, minutes and records.
    """
    began = time.monotonic()
    records: list[Answer] = []
    with Session(setting) as session:
        for index, (row, engines) in enumerate(rows):
            if index and row.section != rows[index - 1][0].section:
                session.close()
            for record in run_row(session, row, engines):
                tell(record)
                records.append(record)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "form": form,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "setting": asdict(setting),
        "machine": describe_machine() | session.machine,
        "versions": session.versions,
        "records": records,
    }


def run_row(session: Session, row: Row, engines: Mapping[str, int]) -> list[Answer]:
    """Measures a row on several engines, their repetitions interleaved: one round of all, then the next.

    Returns:
        A record for each engine: the repetitions, and their figures or why there are none.
    """
    if row.model:
        with Session(replace(session.setting, model=row.model)) as other:
            return run_row(other, replace(row, model=None), engines)
    vocabulary = session.ours()["vocabulary"] if row.workload else 0
    answers: dict[str, list[Answer]] = {name: [] for name in engines}
    failed: dict[str, str] = {}

    def ask(name: str, request: Answer) -> Answer | None:
        if row.fresh:
            session.close()
        try:
            return session.engine(name).ask(request)
        except (Unavailable, WorkerError) as error:
            failed[name] = str(error)
            return None

    if row.workload:
        for name in engines:
            if (name, row.kind) not in session.warm:
                ask(name, warm_up(row, vocabulary))
                session.warm.add((name, row.kind))
    for repetition in range(max(engines.values(), default=0)):
        for name, count in engines.items():
            if repetition < count and name not in failed:
                answer = ask(name, request_of(row, name, repetition, vocabulary, session.setting.device))
                if answer is not None:
                    answers[name].append(answer)
    session.release()
    limit = bound_of(session, row) if row.workload else None
    records = []
    for name in engines:
        record = {"section": row.section, "row": row.name, "title": row.title, "engine": name, "unit": row.unit}
        if name in failed:
            records.append(record | {"missing": failed[name]})
        else:
            records.append(record | figures(answers[name], row.figure) | ({"bound": limit} if limit else {}))
    return records


def request_of(row: Row, engine: str, repetition: int, vocabulary: int, device: str = "cpu") -> Answer:
    """What a worker is asked in one repetition."""
    request: Answer = {"kind": row.kind, "step": repetition + 1, **row.request}
    if row.workload:
        make = row.workload.sampling_request if row.kind == "sample" else row.workload.training_request
        request |= make(repetition + 1, vocabulary)
        longest = max(group.prompt + max(group.lengths) for group in row.workload.layout())
        request["rows_per_batch"] = 1 if engine in ONE_BY_ONE else max(1, POSITIONS[device] // longest)
    return request


def warm_up(row: Row, vocabulary: int) -> Answer:
    """The row in small: the first use of a library and of memory is in nobody's figures."""
    assert row.workload
    small = replace(row.workload, groups=1, members=min(2, row.workload.members), shortest=8, longest=8)
    return request_of(replace(row, workload=small), "", -1, vocabulary)


def bound_of(session: Session, row: Row) -> dict[str, Any]:
    """The row's physical bound: seconds, tokens/s, seconds of arithmetic by part."""
    assert row.workload
    groups, shape, rank = row.workload.layout(), session.shape, session.setting.rank
    largest = bound.LARGEST[session.setting.device]
    if row.kind == "sample":
        works = bound.sampling_steps(shape, rank, groups, largest)
        tokens = row.workload.own_tokens
    else:
        works = [bound.training_work(shape, rank, groups, largest)]
        tokens = row.workload.sequence_tokens
    machine = session.measured(works)
    seconds = sum(bound.seconds(work, machine) for work in works)
    parts: dict[str, float] = {}
    for work in works:
        for part, value in bound.parts(work, machine).items():
            parts[part] = parts.get(part, 0.0) + value
    memory = sum(work.bytes for work in works) / machine.bandwidth
    return {"seconds": seconds, "tokens_per_second": tokens / seconds, "parts": {**parts, "memory": memory}}


def figures(answers: Sequence[Answer], figure: str | None) -> Answer:
    """Median and range of a figure, by default tokens/s; highest memory; the most that other processes took.

    Disturbed repetitions are kept, but do not count where there are undisturbed ones.
    """
    counted = [answer for answer in answers if answer.get("others", 0.0) <= DISTURBED] or answers
    values = [answer["tokens"] / answer["seconds"] if figure is None else answer[figure] for answer in counted]
    return {
        "repetitions": list(answers),
        "counted": len(counted),
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "peak_mib": max(answer["peak_mib"] for answer in answers),
        "others": max(answer.get("others", 0.0) for answer in counted),
    }


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, system."""
    name = platform.processor() or platform.machine()
    cpuinfo, meminfo = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    if cpuinfo.exists():
        models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    memory = int(meminfo.read_text().split()[1]) / 2**20 if meminfo.exists() else None
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "memory_gib": memory and round(memory, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
