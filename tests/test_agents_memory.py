"""Memory that runs out costs time, not the result: what is computed at once is halved until it fits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from loragym.agents import BaseModel, Datum, OutOfMemory, SamplingParams, exclusive, memory
from loragym.agents.engines import TorchEngine
from tiny_engine import assert_close, branching, gradients, random_tokens, rl_data, stirred_policy, tiny_base

pytestmark = pytest.mark.timeout(120)

CPU = (
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8"
)
ERRORS: dict[str, Callable[[], Exception]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": lambda: RuntimeError(CPU),
    "numpy": lambda: MemoryError(),
}
SEQUENCES = [random_tokens(seed, 12 + seed) for seed in range(9)]


def hold_at_most(
    monkeypatch: pytest.MonkeyPatch, base: BaseModel, tokens: int, error: Callable[[], Exception] = ERRORS["cuda"]
) -> list[int]:
    """Makes the base fail at more tokens in a pass; the sizes of the passes that were tried."""
    whole, tried = base.hidden_states, list[int]()

    def limited(tokens_T: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        tried.append(len(tokens_T))
        if len(tokens_T) > tokens:
            raise error()
        return whole(tokens_T, *args, **kwargs)

    monkeypatch.setattr(base, "hidden_states", limited)
    return tried


@pytest.mark.parametrize("kind", ERRORS)
def test_a_batch_that_does_not_fit_is_learnt_in_smaller_passes(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    policy, data = stirred_policy(tiny_base()), rl_data(SEQUENCES)
    expected = policy.forward_backward(data, "importance_sampling", normalization="token")
    wanted = gradients(policy)
    tried = hold_at_most(monkeypatch, policy.base, 40, ERRORS[kind])
    found = policy.forward_backward(data, "importance_sampling", normalization="token")
    assert max(tried) > 40
    assert 1 < policy.tokens_per_pass <= 64
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    for one, other in zip(found.logprobs, expected.logprobs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert_close(gradients(policy), wanted, 1e-4)
    assert "goes on with" in policy.base.shortages[-1]
    # It is remembered: the next call fits at once.
    tried.clear()
    policy.forward_backward(data, "importance_sampling")
    assert max(tried) <= 40


def test_gradients_from_before_a_call_that_failed_halfway_stay_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, first, second = stirred_policy(tiny_base()), rl_data(SEQUENCES[:3]), rl_data(SEQUENCES[3:], seed=1)
    for data in (first, second):
        policy.forward_backward(data, "importance_sampling")
    wanted = gradients(policy)
    policy.forward_backward(first, "importance_sampling")
    whole, calls = policy.base.hidden_states, list[int]()

    def failing(tokens_T: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(len(tokens_T))
        if len(calls) == 3:  # the passes before it have left their gradients
            raise ERRORS["cuda"]()
        return whole(tokens_T, *args, **kwargs)

    policy.tokens_per_pass = 40
    monkeypatch.setattr(policy.base, "hidden_states", failing)
    policy.forward_backward(second, "importance_sampling")
    assert policy.tokens_per_pass == 20
    assert_close(gradients(policy), wanted, 1e-4)


@pytest.mark.parametrize("kind", ["custom", "kl", "scorer", "forward"])
def test_every_way_to_learn_has_it(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    base = tiny_base()
    learner: Any = base.add_scorer("scorer") if kind == "scorer" else stirred_policy(base)
    data = [Datum.scored(s, [len(s) - 1]) for s in SEQUENCES] if kind == "scorer" else rl_data(SEQUENCES)

    def loss(values: list[torch.Tensor], _: Any) -> Any:
        return torch.cat(values).square().sum() + torch.cat(values).sum(), {}

    def learn() -> Any:
        if kind == "kl":
            return learner.forward_backward_kl(data, None).loss
        if kind == "forward":
            return np.concatenate(learner.forward(data).logprobs)
        return learner.forward_backward(data, loss).loss

    def taken() -> list[torch.Tensor]:
        found = [torch.zeros_like(t) if t.grad is None else t.grad.clone() for t in learner.optimizer.tensors.values()]
        learner.zero_grad()
        return found

    expected, wanted = learn(), taken()
    tried = hold_at_most(monkeypatch, base, 40)
    np.testing.assert_allclose(learn(), expected, rtol=1e-4)
    assert max(tried) > 40
    if kind != "forward":
        assert_close(taken(), wanted, 1e-4)


def test_one_sequence_that_does_not_fit_is_an_error_that_says_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = stirred_policy(tiny_base())
    tried = hold_at_most(monkeypatch, policy.base, 10)
    with pytest.raises(OutOfMemory, match=r"one sequence of up to 19 tokens at a time .*smaller model or lora-rank"):
        policy.forward_backward(rl_data(SEQUENCES), "importance_sampling")
    assert len(tried) < 15
    assert all(tensor.grad is None for tensor in policy.parameters)


def test_other_errors_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = stirred_policy(tiny_base())
    hold_at_most(monkeypatch, policy.base, 0, lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        policy.forward_backward(rl_data(SEQUENCES), "importance_sampling")
    with pytest.raises(RuntimeError, match="shapes"):
        policy.sampler().sample([[1, 2, 3]])
    assert policy.tokens_per_pass == 2048
    assert not memory.is_out_of_memory(OutOfMemory("out of memory"))


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("at_most", [20, 9])
def test_replies_that_do_not_fit_are_sampled_fewer_at_a_time_and_come_out_the_same(
    monkeypatch: pytest.MonkeyPatch, kind: str, at_most: int
) -> None:
    # In double precision, in which no batch's rounding moves a draw.
    policy = stirred_policy(tiny_base(dtype=torch.float64))
    prompts, params = branching(branches=(3, 2, 1, 4)), SamplingParams(max_tokens=12, seed=5)
    prompts = [prompt[-8:] for prompt in prompts]
    expected = policy.sampler().sample(prompts, 6, params)
    tried = hold_at_most(monkeypatch, policy.base, at_most, ERRORS[kind])
    engine = TorchEngine(policy.base, max_concurrent=64)
    sampler = engine.sampler(policy)
    found = sampler.sample(prompts, 6, params)
    assert max(tried) > at_most
    for one, other in zip(chain.from_iterable(found), chain.from_iterable(expected), strict=True):
        assert one.tokens == other.tokens
        assert one.stop_reason == other.stop_reason
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-9)
    assert sampler.pending == 0
    # The engine's next sampler knows.
    assert engine.max_concurrent < 64
    tried.clear()
    engine.sampler(policy).sample(prompts, 6, params)
    assert max(tried) <= max(at_most, 8)


def test_memory_that_runs_out_in_the_middle_of_replies_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = stirred_policy(tiny_base(dtype=torch.float64))
    prompts = [random_tokens(seed, 5) for seed in range(7)]
    params = SamplingParams(max_tokens=9, seed=1, stop=tuple(range(0, 256, 9)))
    expected = policy.sampler().sample(prompts, 3, params)
    for at in range(1, 9):
        whole, calls = policy.base.hidden_states, list[int]()

        def failing(*args: Any, at: int = at, whole: Any = whole, calls: list[int] = calls, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == at:
                raise ERRORS["cpu"]()
            return whole(*args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(policy.base, "hidden_states", failing)
            found = policy.sampler(max_concurrent=16).sample(prompts, 3, params)
        assert [[c.tokens for c in group] for group in found] == [[c.tokens for c in group] for group in expected]


def test_a_reply_that_does_not_fit_alone_is_an_error_that_says_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = stirred_policy(tiny_base())
    hold_at_most(monkeypatch, policy.base, 2)
    with pytest.raises(OutOfMemory, match=r"one reply at a time .*max-tokens"):
        policy.sampler().sample([[1, 2, 3]] * 4, 2, SamplingParams(max_tokens=3))


def test_a_thread_that_never_lets_go_of_the_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = stirred_policy(tiny_base())
    monkeypatch.setattr(exclusive, "PATIENCE", 0.1)
    taken, release = threading.Event(), threading.Event()

    def hold() -> None:
        with policy.base.turn:
            taken.set()
            release.wait(30)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    taken.wait(30)
    with pytest.raises(TimeoutError, match=r"held the model tiny for 0.1 s, so LoraPolicy.forward cannot begin"):
        policy.forward(rl_data(SEQUENCES))
    release.set()
    thread.join(30)
    assert len(policy.forward(rl_data(SEQUENCES)).logprobs) == len(SEQUENCES)
