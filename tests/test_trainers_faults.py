"""Faults inside a run: each costs what it must, is counted, and leaves a run that goes on or says how to."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
import worlds
from interruptions import assert_resumed_equals_uninterrupted, saved
from loragym.agents import LoraPolicy, OutOfMemory
from loragym.agents.testing import save_tiny_model
from loragym.envs import Outcome
from loragym.envs.math.grading.pool import Limits, WorkerPool
from loragym.envs.preference.pairwise import Pairwise
from loragym.envs.threads import DaemonExecutor
from loragym.messages import Message, Reply
from loragym.trainers import (
    DistillationConfig,
    RLConfig,
    RLTrainer,
    SupervisedConfig,
    TableRLConfig,
    distillation,
    lessons,
    rl,
    supervised,
    table_rl,
)
from loragym.trainers.deadlines import Calls, DeadlineEngine, EngineHangs, Hangs, TooManyHang
from loragym.trainers.forerunner import Forerunner, PlayHangs
from loragym.trainers.run_directory import RunDirectory, read_metrics
from loragym.trainers.tracker import Tracker
from loragym.trainers.watch import TooManySkipped
from safetensors.torch import load_file

pytestmark = pytest.mark.timeout(120)

FOREVER = threading.Event()
"""Nobody sets it: what waits for it hangs."""


class Hanging(worlds.Letters):
    """Hangs in one place, at the first call there or at all of them."""

    left: ClassVar[dict[str, int]] = {}

    def __init__(self, *, where: str = "step", times: int = 1) -> None:
        super().__init__()
        self.where = where
        self.left.setdefault(where, times)
        self._maybe("making")

    def _maybe(self, where: str) -> None:
        if where == self.where and self.left[where]:
            self.left[where] -= 1
            FOREVER.wait()

    def begin(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        self._maybe("reset")
        return super().begin(options)

    def respond(self, reply: Reply) -> Outcome:
        self._maybe("step")
        return super().respond(reply)

    def score_group(self, episodes: Sequence[Sequence[Message]]) -> list[float]:
        self._maybe("score_group")
        return [0.0] * len(episodes)

    def close(self) -> None:
        self._maybe("close")


class Judged(Pairwise):
    """Compared by a judge that never answers."""

    def __init__(self) -> None:
        super().__init__(
            data=["Say something."], comparer=lambda one, other: FOREVER.wait() or 0.5, concurrency=2, pattern="all"
        )


for _world in (Hanging, Judged):
    if f"tests/{_world.__name__}-v0" not in gymnasium.registry:
        gymnasium.register(f"tests/{_world.__name__}-v0", entry_point=_world)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hanging, "left", {})


def settings(model: str, folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "run_dir": str(folder / "run"),
        "model": model,
        "dtype": "float32",
        "device": "cpu",
        "lora_rank": 4,
        "eval_every": 0,
    } | changes


def small(model: str, folder: Path, **changes: Any) -> RLConfig:
    played = {
        "env": "tests/Letters-v0",
        "steps": 4,
        "problems_per_step": 4,
        "group_size": 3,
        "max_tokens": 3,
        "eval_problems": 0,
        "learning_rate": 1e-2,
    }
    return RLConfig(**settings(model, folder, **played) | changes)


def newest(folder: Path) -> str:
    return max((folder / "run" / "checkpoints").glob("step-*")).name


# Numbers


def rl_run(model: str, folder: Path, **changes: Any) -> None:
    rl.train(small(model, folder, **changes))


def ppo_run(model: str, folder: Path, **changes: Any) -> None:
    rl.train(small(model, folder, advantages="gae", loss="ppo", num_passes=2, **changes))


def streamed_run(model: str, folder: Path, **changes: Any) -> None:
    rl.train(small(model, folder, stream_groups=2, **changes))


def supervised_run(model: str, folder: Path, **changes: Any) -> None:
    data = {"env": "loragym/Arithmetic-v0", "env_problems": 40, "batch_size": 8}
    supervised.train(SupervisedConfig(**settings(model, folder, **data) | changes))


def table_run(model: str, folder: Path, **changes: Any) -> None:
    # A random model's replies are illegal all alike: what it learns from is the warm-up.
    played = {"steps": 1, "warmup_steps": 4, "warmup_batch": 2}
    played |= {"problems_per_step": 2, "group_size": 2, "max_tokens": 2, "eval_problems": 0}
    table_rl.train(TableRLConfig(**settings(model, folder, **played) | changes))


def distillation_run(model: str, folder: Path, **changes: Any) -> None:
    played = {"steps": 4, "problems_per_step": 2, "group_size": 2, "max_tokens": 2, "eval_problems": 2}
    played |= {"env": "tests/Letters-v0", "teachers": [{"system": "Say a."}]}
    distillation.train(DistillationConfig(**settings(model, folder, **played) | changes))


def pair_run(kind: str) -> Callable[..., None]:
    def run(model: str, folder: Path, **changes: Any) -> None:
        from loragym.trainers import DPOConfig, RewardConfig, dpo, reward

        folder.mkdir(exist_ok=True)
        data = folder / "pairs.jsonl"
        rows = (f'{{"prompt": "Say {i}.", "chosen": "{i}{i}", "rejected": "no"}}\n' for i in range(48))
        data.write_text("".join(rows))
        given = settings(model, folder, data=str(data), batch_size=8, **changes)
        if kind == "dpo":
            dpo.train(DPOConfig(**given))
        else:
            reward.train(RewardConfig(**given, kind=kind))

    return run


RUNS: dict[str, Callable[..., None]] = {
    "rl": rl_run,
    "ppo": ppo_run,
    "streamed": streamed_run,
    "supervised": supervised_run,
    "table_rl": table_run,
    "distillation": distillation_run,
    "dpo": pair_run("dpo"),
    "reward": pair_run("scalar"),
    "judge": pair_run("judge"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_gradient_that_is_no_number_costs_an_update_in_every_trainer(
    model: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = torch.nn.utils.get_total_norm, list[int]()

    def poisoned(gradients: Any) -> torch.Tensor:
        calls.append(1)
        return torch.tensor(float("nan")) if len(calls) == 2 else whole(gradients)

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", poisoned)
    RUNS[name](model, tmp_path)
    rows = read_metrics(tmp_path / "run")
    assert [row["update/skipped"] for row in rows if "update/skipped" in row] == [1.0]
    assert len(calls) > 3
    for tensor in load_file(tmp_path / "run" / "checkpoints" / newest(tmp_path) / "adapter_model.safetensors").values():
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("name", ["rl", "supervised", "dpo", "reward"])
def test_a_run_of_updates_that_are_no_numbers_stops_with_a_checkpoint(
    model: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = torch.nn.utils.get_total_norm, list[int]()

    def poisoned(gradients: Any) -> torch.Tensor:
        calls.append(1)
        return torch.tensor(float("inf")) if len(calls) > 1 else whole(gradients)

    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.utils, "get_total_norm", poisoned)
        with pytest.raises(TooManySkipped, match=r"2 steps in a row .* gradient norm of .* is inf") as caught:
            RUNS[name](model, tmp_path, max_skipped=2)
    assert "the run is saved at step 3 of" in caught.value.__notes__[0]
    assert newest(tmp_path) == "step-000003"
    RUNS[name](model, tmp_path, max_skipped=2)


def test_a_resumed_run_with_skipped_updates_equals_an_uninterrupted_one(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reinforce, advantages, now = RLTrainer._reinforce, lessons.group_advantages, [0]

    def noted(self: RLTrainer, number: int) -> Any:
        now[0] = number
        return reinforce(self, number)

    monkeypatch.setattr(RLTrainer, "_reinforce", noted)
    monkeypatch.setattr(
        lessons,
        "group_advantages",
        lambda rewards, *rest: [float("nan")] * len(rewards) if now[0] in (1, 4) else advantages(rewards, *rest),
    )
    config = small(model, tmp_path, steps=6, schedule="linear", save_every=2, kl_coef=0.1, kl_target=0.01)
    assert_resumed_equals_uninterrupted(monkeypatch, rl.train, config, after=3)
    skipped = [row["step"] for row in read_metrics(tmp_path / "run") if "update/skipped" in row]
    assert skipped == [1, 4]


# Memory


def test_a_run_out_of_memory_ends_in_the_weights_of_one_that_was_not(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loragym.agents import BaseModel

    # In double precision, for Adam makes much of the rounding of gradients that are nearly nothing.
    rl_run(model, tmp_path / "plain", dtype="float64", steps=2, max_tokens=8)
    whole = BaseModel.hidden_states

    def limited(self: BaseModel, tokens_T: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if len(tokens_T) > 60:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, tokens_T, *args, **kwargs)

    monkeypatch.setattr(BaseModel, "hidden_states", limited)
    rl_run(model, tmp_path / "short", dtype="float64", steps=2, max_tokens=8)
    folders = [tmp_path / name for name in ("plain", "short")]
    plain, short = (load_file(f / "run" / "checkpoints" / newest(f) / "adapter_model.safetensors") for f in folders)
    for name, tensor in plain.items():
        np.testing.assert_allclose(short[name].numpy(), tensor.numpy(), atol=1e-6)
    rows = read_metrics(tmp_path / "short" / "run")
    assert rows[0]["memory/halved"] >= 2
    assert rows[0]["health/out_of_memory"] == 1
    assert "memory/halved" not in rows[1]


def test_a_run_that_never_fits_stops_with_a_checkpoint_and_says_what_to_change(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = LoraPolicy._hidden, list[int]()

    def failing(self: LoraPolicy, pack: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        return whole(self, pack)

    monkeypatch.setattr(LoraPolicy, "_hidden", failing)
    with pytest.raises(OutOfMemory, match="lora-rank") as caught:
        rl_run(model, tmp_path)
    assert "the run is saved at step 2 of 4" in caught.value.__notes__[0]
    assert newest(tmp_path) == "step-000002"


# Environments


@pytest.mark.parametrize("where", ["reset", "step", "score_group"])
def test_an_environment_that_hangs_costs_an_attempt(model: str, tmp_path: Path, where: str) -> None:
    kwargs = {"where": where, "times": 2}
    began = time.monotonic()
    rl_run(model, tmp_path, env="tests/Hanging-v0", env_kwargs=kwargs, episode_timeout=0.3)
    assert time.monotonic() - began < 60
    rows = read_metrics(tmp_path / "run")
    assert sum(row.get("errors/hung", 0) for row in rows) == 2
    assert sum(row.get("errors/dropped", 0) for row in rows) == 0
    assert [row["episodes"] for row in rows[:4]] == [12] * 4


def test_an_episode_that_hangs_again_and_again_is_left_out_and_counted(model: str, tmp_path: Path) -> None:
    kwargs = {"where": "step", "times": 2}
    rl_run(model, tmp_path, env="tests/Hanging-v0", env_kwargs=kwargs, episode_timeout=0.3, episode_retries=0, steps=2)
    row = read_metrics(tmp_path / "run")[0]
    assert (row["errors/dropped"], row["errors/hung"], row["episodes"]) == (2, 2, 10)


def test_a_judge_that_hangs_drops_groups_and_stops_the_run_when_too_many_do(model: str, tmp_path: Path) -> None:
    with pytest.raises(TooManyHang, match=r"8 calls hang at the same time.*score_group has not come back after 0.3 s"):
        rl_run(model, tmp_path, env="tests/Judged-v0", episode_timeout=0.3, episode_retries=1, problems_per_step=8)


def test_too_many_that_hang_stop_the_run_with_a_checkpoint_and_its_line(model: str, tmp_path: Path) -> None:
    config = small(model, tmp_path, env="tests/Hanging-v0", episode_timeout=0.3, env_kwargs={"times": 99})
    Hanging.left["step"] = 0
    trainer_step = RLTrainer.step

    def hang_from_step_2(self: RLTrainer, number: int, table: Any) -> Any:
        Hanging.left["step"] = 99 if number == 2 else 0
        return trainer_step(self, number, table)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RLTrainer, "step", hang_from_step_2)
        with pytest.raises(TooManyHang, match=r"in _maybe \(.*test_trainers_faults.py, line \d+\)") as caught:
            rl.train(config)
    assert "the run is saved at step 2 of 4" in caught.value.__notes__[0]
    Hanging.left["step"] = 0
    rl.train(config)
    assert len(read_metrics(tmp_path / "run")) == 5


def test_an_environment_that_hangs_when_closed_is_left_behind(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small(model, tmp_path, env="tests/Hanging-v0", episode_timeout=0.3, env_kwargs={"where": "close"}, steps=1)
    Hanging.left["close"] = 0
    trainer = RLTrainer(config, config.load_policy())
    trainer.step(0, None)  # type: ignore[arg-type]
    Hanging.left["close"] = 1
    trainer.close()
    assert "closing an environment has not come back after 0.3 s" in caplog.text


@pytest.mark.parametrize("where", ["making", "close"])
def test_an_environment_that_hangs_before_the_run_is_named(
    model: str, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loragym.trainers.evaluation.MAKING_SECONDS", 0.3)
    with pytest.raises(
        Hangs, match=r"making and closing the environment tests/Hanging-v0 has not come back after 0.3 s"
    ):
        rl_run(model, tmp_path, env="tests/Hanging-v0", env_kwargs={"where": where})


def test_results_do_not_depend_on_whether_there_is_a_deadline(model: str, tmp_path: Path) -> None:
    for name, timeout in (("with", 60.0), ("without", 0.0)):
        rl_run(model, tmp_path / name, episode_timeout=timeout, env_kwargs={"turns": 2}, steps=2)
    assert saved(tmp_path / "with" / "run") == saved(tmp_path / "without" / "run")


def test_a_table_whose_script_hangs_or_fails_costs_an_attempt(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loragym.envs.games import seat

    whole, calls = seat.said_by, list[int]()

    def unsteady(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            FOREVER.wait()
        if len(calls) == 5:
            raise ConnectionError("the opponent's server is gone")
        return whole(*args)

    monkeypatch.setattr(seat, "said_by", unsteady)
    table_run(model, tmp_path, train_opponents=("random",), episode_timeout=0.3, steps=2, warmup_steps=0, group_size=4)
    rows = read_metrics(tmp_path / "run")
    assert sum(row.get("errors/retried", 0) for row in rows) == 2
    assert sum(row.get("errors/hung", 0) for row in rows) == 1
    assert [row["games"] for row in rows[:2]] == [8, 8]


# Calls


def test_calls_come_back_in_order_with_their_errors_and_hung_ones_are_replaced() -> None:
    calls = Calls(0.2)
    outcomes = calls.run_all([lambda: 1, lambda: 1 / 0, FOREVER.wait, lambda: 4])
    assert [outcome.value for outcome in outcomes] == [1, None, None, 4]
    assert [type(outcome.error) for outcome in outcomes] == [type(None), ZeroDivisionError, Hangs, type(None)]
    assert (calls.hung, calls.num_hanging) == (1, 1)


def test_each_call_has_the_whole_time_and_one_that_comes_back_late_no_longer_counts_as_hanging() -> None:
    calls, late = Calls(0.3), threading.Event()
    assert [o.error for o in calls.run_all([lambda: time.sleep(0.2)] * 4)] == [None] * 4
    with pytest.raises(Hangs, match=r"the tool has not come back after 0.3 s"):
        calls.run("the tool", lambda: late.wait(30))
    assert calls.num_hanging == 1
    late.set()
    for _ in range(100):
        if not calls.num_hanging:
            break
        time.sleep(0.02)
    assert (calls.num_hanging, calls.hung) == (0, 1)


def test_ctrl_c_breaks_off_a_call_that_hangs() -> None:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            Calls(60.0).run("the tool", FOREVER.wait)
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("what", ["calls", "executor", "run"])
def test_what_hangs_does_not_keep_the_process_from_exiting(model: str, tmp_path: Path, what: str) -> None:
    scripts = {
        "calls": "from loragym.trainers.deadlines import Calls, Hangs\nimport threading\n"
        "print(type(Calls(0.2).run_all([threading.Event().wait])[0].error).__name__)",
        "executor": "from loragym.envs.threads import DaemonExecutor\nimport threading\n"
        "DaemonExecutor(2, 'x').submit(threading.Event().wait)\nprint('Hangs')",
        "run": "import test_trainers_faults as t, pathlib, sys\nfrom loragym.trainers.deadlines import TooManyHang\n"
        f"try: t.rl_run({model!r}, pathlib.Path({str(tmp_path)!r}), env='tests/Hanging-v0', episode_timeout=0.2,"
        " env_kwargs={'times': 99})\nexcept TooManyHang: print('Hangs')",
    }
    paths = {"PYTHONPATH": ":".join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", scripts[what]],
        capture_output=True,
        text=True,
        timeout=100,
        env={**__import__("os").environ, **paths},
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["Hangs"]), done.stderr


def test_daemon_threads_do_what_an_executor_does() -> None:
    with DaemonExecutor(3, "test") as threads:
        assert list(threads.map(lambda x: x * x, range(20))) == [x * x for x in range(20)]
        failing = threads.submit(lambda: 1 / 0)
    assert isinstance(failing.exception(), ZeroDivisionError)
    with pytest.raises(RuntimeError, match="shut down"):
        threads.submit(print)
    stuck = DaemonExecutor(1, "test")
    stuck.submit(FOREVER.wait)
    waiting = stuck.submit(print)
    stuck.shutdown(cancel_futures=True, timeout=0.1)
    assert waiting.cancelled()


# Engines


class StubEngine:
    """An engine that somebody else wrote around ours, which goes wrong after some steps."""

    def __init__(self, inner: Any, fault: str, after: int) -> None:
        self.inner, self.fault, self.left = inner, fault, after
        self.context_length = inner.context_length

    def sampler(self, policy: Any = None) -> Any:
        engine, sampler = self, self.inner.sampler(policy)
        step = sampler.step

        def failing() -> Any:
            engine.left -= 1
            if engine.left >= 0:
                return step()
            if engine.fault == "dies":
                raise ConnectionError("the engine's process is gone")
            if engine.fault == "hangs":
                FOREVER.wait()
            return {}

        sampler.step = failing
        return sampler

    def close(self) -> None:
        if self.fault == "hangs":
            FOREVER.wait()


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("hangs", EngineHangs, "the sampling engine has not come back after 0.5 s"),
        ("stalls", EngineHangs, r"has finished none of \d+ replies .*--engine-timeout"),
        ("dies", ConnectionError, "the engine's process is gone"),
    ],
)
@pytest.mark.parametrize("staleness", [0, 1])
def test_an_engine_that_goes_wrong_stops_the_run_with_a_checkpoint(
    model: str, tmp_path: Path, fault: str, error: type[Exception], words: str, staleness: int
) -> None:
    config = small(model, tmp_path, staleness=staleness, save_every=1, engine_timeout=0.5)

    class Faulty(RLTrainer):
        def __init__(self, config: RLConfig, policy: LoraPolicy) -> None:
            super().__init__(config, policy)
            inner = self.ground.engine.engine
            self.ground.engine = DeadlineEngine(StubEngine(inner, fault, after=7), config.engine_timeout)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rl, "RLTrainer", Faulty)
        with pytest.raises((error, EngineHangs), match=words) as caught:
            rl.train(config)
    assert "run the same command again" in "".join(caught.value.__notes__)
    assert newest(tmp_path) >= "step-000001"
    rl.train(config)
    assert len(read_metrics(tmp_path / "run")) == 5


def test_a_thread_that_plays_ahead_and_gives_no_sign_of_life_is_named(tmp_path: Path) -> None:
    sign = time.monotonic()
    ahead = Forerunner(
        lambda sampler, step: FOREVER.wait() or [],  # type: ignore[arg-type]
        lambda: (None, 0),  # type: ignore[arg-type,return-value]
        staleness=1,
        total=4,
        last_sign=lambda: sign,
        patience=0.3,
    )
    began = time.monotonic()
    with pytest.raises(PlayHangs, match=r"no sign of life .* --episode-timeout"):
        ahead.take(0)
    ahead.save_state(tmp_path)
    assert (tmp_path / "queue.json").read_text() == "{}"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("loragym.trainers.forerunner.CLOSING_SECONDS", 0.2)
        ahead.close()
    assert time.monotonic() - began < 15


# Graders


def test_a_grader_that_is_stopped_while_it_is_given_a_job_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from loragym.envs.math.grading import pool as pools

    script = Path(__file__).with_name("grading_worker.py")
    with WorkerPool(1, Limits(), script) as pool:
        worker = pool._hire(wait=False)
        assert worker is not None
        monkeypatch.setattr(pools, "SENDING_SECONDS", 0.3)
        os.kill(worker.process.pid, signal.SIGSTOP)
        assert not worker.send({"text": "x" * 10_000_000})
        pool._dismiss(worker)
        assert worker.process.poll() is not None


# Trackers


class FailingBoard:
    def __init__(self, fault: str) -> None:
        self.fault = fault
        if fault == "opening":
            raise OSError("no space left on device")

    def add_scalar(self, name: str, value: float, step: int) -> None:
        if self.fault == "writing":
            raise OSError("the share is gone")
        if self.fault == "blocking":
            FOREVER.wait()

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        if self.fault == "closing":
            raise OSError("the share is gone")


@pytest.mark.parametrize("fault", ["opening", "writing", "blocking", "closing"])
def test_a_tracker_that_fails_costs_a_warning(
    model: str, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("loragym.trainers.run_directory.Board", lambda folder: FailingBoard(fault))
    monkeypatch.setattr(
        "loragym.trainers.run_directory.Tracker", lambda make: Tracker(make, max_waiting=5, closing_seconds=0.3)
    )
    with caplog.at_level(logging.WARNING):
        rl_run(model, tmp_path)
    assert len(read_metrics(tmp_path / "run")) == 5
    assert caplog.text.count("TensorBoard fails") == 1


def test_a_board_gets_all_figures_in_their_order(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run", small("m", tmp_path)) as run:
        run.start(0)
        for step in range(200):
            run.log(step, {"loss": float(step)})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(s, float(s)) for s in range(200)]
