"""Our engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from loragym.agents import AdamParams, BaseModel, Datum, LoraConfig, LoraPolicy, SamplingParams, kernels
from loragym.agents.loading import find_model
from loragym.recipes.rl_basic import MAIN_JOB
from loragym.trainers import RLConfig
from loragym.trainers.display import StepTable
from loragym.trainers.rl import RLTrainer
from loragym.trainers.run_directory import RunDirectory

from benchmarks.protocol import Answer, Handler, peak_memory_mib, serve
from benchmarks.workers.common import RANDOM, load_model, peak_on_device, set_threads, timed, versions

B_DEVIATION = 0.01
"""Spread of the adapter's B, which stands for a trained one: its update is a few percent of the layer's output."""


def load(options: Answer) -> tuple[Handler, Answer]:
    set_threads(options["threads"])
    device = options["device"]
    model, tokenizer = load_model(options["model"], dtype=options["dtype"], device=device)
    base = BaseModel(model, tokenizer, name=options["model"])
    policy = base.add_lora("policy", LoraConfig(rank=options["rank"]))
    set_adapter(policy, options["adapter_kind"], Path(options["adapter"]))
    is_random = options["model"].startswith(RANDOM)
    about = {
        "versions": versions("torch", "transformers", "peft"),
        "config": base.model.config.to_dict(),
        "weight_bytes": base.dtype.itemsize,
        "vocabulary": base.vocabulary,
        "folder": options["model"] if is_random else str(find_model(options["model"])),
        "loaded_mib": peak_memory_mib(),
    }
    steps = Steps(policy, Path(options["scratch"]) / "runs")
    kinds: dict[str, Callable[[Answer], Answer]] = {
        "sample": lambda request: sample(policy, request, device),
        "train": lambda request: train(policy, request, device),
        "rl": steps.one,
        "overhead": steps.profiled,
        "rl-until": steps.until,
        "memory": lambda request: memory(policy, request),
    }

    def handle(request: Answer) -> Answer:
        return {**kinds[request["kind"]](request), **peak_on_device(device)}

    return handle, about


@contextmanager
def timed_kernels() -> Iterator[list[float]]:
    """The seconds of each call of a compiled kernel while this is open."""
    found: list[float] = []
    call = kernels.call

    def timed_call(*arguments: Any) -> None:
        began = time.perf_counter()
        call(*arguments)
        found.append(time.perf_counter() - began)

    kernels.call = timed_call
    try:
        yield found
    finally:
        kernels.call = call


def set_adapter(policy: LoraPolicy, kind: str, folder: Path) -> None:
    """Reads the adapter that all engines share, or makes it first.

    Args:
        policy: gets it.
        kind: `fresh` has B zero; `random` has a B of random numbers, and stands for a trained one; `warm` is after the
            main job's supervised steps.
        folder: where it is, or is written to.
    """
    if folder.is_dir():
        policy.load_adapter(folder)
        return
    if kind == "random":
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for _, b in policy.adapter.pairs.values():
                b.copy_(torch.randn(b.shape, generator=generator) * B_DEVIATION)
    elif kind == "warm":
        trainer = RLTrainer(replace(MAIN_JOB, eval_every=0, eval_problems=0), policy)
        with StepTable((), MAIN_JOB.warmup_steps, 0) as table:
            for number in range(MAIN_JOB.warmup_steps):
                trainer.step(number, table)
    policy.save_adapter(folder)
    policy.load_adapter(folder)  # the optimiser starts afresh, as the others' do


def sample(policy: LoraPolicy, request: Answer, device: str) -> Answer:
    """Samples of given lengths, as fast as they come; making the sampler counts."""

    def work() -> int:
        sampler = policy.sampler(max_concurrent=max(256, sum(map(len, request["lengths"]))))
        for index, (prompt, lengths) in enumerate(zip(request["prompts"], request["lengths"], strict=True)):
            for length in sorted(set(lengths)):
                seed = (request["seed"] * 1000 + index) * 10_000 + length
                params = SamplingParams(max_tokens=length, stop=(), seed=seed)
                sampler.submit(prompt, params, n=lengths.count(length))
        tokens = 0
        while sampler.pending:
            for completions in sampler.step().values():
                tokens += sum(len(completion.tokens) for completion in completions)
        return tokens

    seconds, tokens = timed(work, device)
    return {"seconds": seconds, "tokens": tokens}


def train(policy: LoraPolicy, request: Answer, device: str) -> Answer:
    """One `forward_backward` with the mean cross-entropy of the trained tokens, and an update if it is asked for."""
    data = [
        Datum.supervised(tokens, [0.0] * start + [1.0] * (len(tokens) - start))
        for tokens, start in zip(request["sequences"], request["starts"], strict=True)
    ]

    def work() -> float:
        out = policy.forward_backward(data, "cross_entropy", normalization="token")
        if request.get("update"):
            policy.optim_step(AdamParams(learning_rate=0.0))
        return out.loss

    seconds, loss = timed(work, device)
    policy.zero_grad()
    return {"seconds": seconds, "tokens": sum(map(len, request["sequences"])), "loss": loss}


class Steps:
    """Whole steps of the trainer, logged as in a run."""

    def __init__(self, policy: LoraPolicy, folder: Path) -> None:
        self.policy = policy
        self.folder = folder

    def one(self, request: Answer) -> Answer:
        """Sampling, grading, training, update, logging; not the checkpoint."""
        trainer, run = self._start(request, 1)
        with run, StepTable((), 1, 0) as table:
            run.start(0)
            seconds, metrics = timed(lambda: self._step(trainer, run, request["step"], table))
        return {
            "seconds": seconds,
            "reward": metrics["reward"],
            "tokens": metrics["sampled_tokens"],
            "mixed": metrics["groups/mixed"],
            "sampling": metrics["time/sample"] / seconds,
        }

    def profiled(self, request: Answer) -> Answer:
        """The shares of a step's wall time in our compiled kernels, in torch's operators, and in neither (Python,
        scheduling, grading, logging: the overhead).

        The same step is made twice. The first has the wall time and the kernels'. The second runs under torch's
        profiler, which makes Python slower, and has the operators': their own times are added up; backward passes on a
        CPU run in the calling thread.
        """
        from torch.profiler import ProfilerActivity, profile

        before = [tensor.detach().clone() for tensor in self.policy.parameters]
        with timed_kernels() as in_kernels:
            seconds = self.one(request)["seconds"]
        with torch.no_grad():
            for tensor, value in zip(self.policy.parameters, before, strict=True):
                tensor.copy_(value)
        trainer, run = self._start(request, 1)
        with run, StepTable((), 1, 0) as table:
            run.start(0)
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                self._step(trainer, run, request["step"], table)
        kernels_share, operators = sum(in_kernels) / seconds, 0.0
        for event in profiler.key_averages():
            if "::" in event.key and not event.key.startswith("autograd::"):
                operators += event.self_cpu_time_total / 1e6 / seconds
        return {
            "seconds": seconds,
            "kernels": kernels_share,
            "operators": operators,
            "overhead": 1 - kernels_share - operators,
        }

    def until(self, request: Answer) -> Answer:
        """Steps until the mean reward of the last few reaches a goal."""
        trainer, run = self._start(request, request["most_steps"])
        rewards: list[float] = []
        window, reached = request["window"], False
        began = time.perf_counter()
        with run, StepTable((), request["most_steps"], 0) as table:
            run.start(0)
            for step in range(request["step"], request["step"] + request["most_steps"]):
                rewards.append(self._step(trainer, run, step, table)["reward"])
                recent = rewards[-window:]
                reached = len(recent) == window and sum(recent) / window >= request["goal"]
                if reached or time.perf_counter() - began > request["limit"]:
                    break
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "steps": len(rewards), "reached": reached, "rewards": rewards}

    def _start(self, request: Answer, steps: int) -> tuple[RLTrainer, RunDirectory]:
        config = RLConfig(
            run_dir=str(self.folder / f"{time.time_ns()}"),
            env=request["env"],
            env_kwargs=request["env_kwargs"],
            steps=request["step"] + steps,
            problems_per_step=request["problems"],
            group_size=request["group"],
            max_tokens=request["max_tokens"],
            temperature=request["temperature"],
            learning_rate=request["learning_rate"],
            max_concurrent=request["problems"] * request["group"],
            eval_every=0,
            eval_problems=0,
        )
        return RLTrainer(config, self.policy), RunDirectory(config.run_dir, config)

    @staticmethod
    def _step(trainer: RLTrainer, run: RunDirectory, number: int, table: StepTable) -> dict[str, float]:
        result = trainer.step(number, table)
        run.log(number, result.metrics)
        run.log_transcripts(number, result.transcripts)
        return result.metrics


def memory(policy: LoraPolicy, request: Answer) -> Answer:
    """Trains `adapters` adapters, one after the other, for a step each; says what a further one holds.

    Returns:
        MiB of the base's weights, of an adapter's weights, and of these with gradients and Adam's moments.
    """
    rows, length = request["rows"], request["length"]
    generator = torch.Generator().manual_seed(0)
    policies = [policy] + [policy.base.add_lora(f"{i}", policy.config) for i in range(1, request["adapters"])]
    for trained in policies:
        ids = torch.randint(3, policy.base.vocabulary - 3, (rows, length + 1), generator=generator).tolist()
        trained.forward_backward([Datum.supervised(tokens, [1.0] * len(tokens)) for tokens in ids])
        gradients = sum(p.grad.nbytes for p in trained.parameters if p.grad is not None)
        trained.optim_step()
    weights = sum(p.nbytes for p in policy.parameters)
    moments = policy.optimizer.num_bytes
    base = sum(p.nbytes for p in policy.base.model.parameters())
    return {
        "seconds": 0.0,
        "tokens": rows * length,
        "base_mib": base / 2**20,
        "adapter_mib": weights / 2**20,
        "training_state_mib": (weights + gradients + moments) / 2**20,
        "share": weights / base,
    }


if __name__ == "__main__":
    serve(load)
