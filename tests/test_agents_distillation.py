"""Soft targets, losses on logits, and the divergence from a teacher over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from loragym.agents import AdamParams, BaseModel, Datum, LoraConfig, LoraPolicy, policy
from loragym.agents.divergence import DIRECTIONS, Direction
from loragym.agents.losses import NORMALIZATIONS, Normalization, token_shares
from tiny_engine import (
    assert_close,
    branching,
    exact_policy,
    gradients,
    random_tokens,
    reference_logits,
    rl_data,
    stirred_policy,
    tiny_base,
)


@pytest.fixture(scope="module")
def exact() -> LoraPolicy:
    return exact_policy(train_unembed=True)


@pytest.fixture(scope="module")
def teacher(exact: LoraPolicy) -> LoraPolicy:
    return teacher_on(exact.base)


def teacher_on(base: BaseModel) -> LoraPolicy:
    return stirred_policy(base, "teacher", seed=5)


def candidates(sequences: Sequence[Sequence[int]], count: int = 3) -> list[Datum]:
    rng = np.random.default_rng(0)
    data = []
    for sequence in sequences:
        shape = (len(sequence) - 1, count)
        weights = rng.random(shape) * (rng.random(shape) < 0.7)
        weights[rng.random(len(weights)) < 0.3] = 0
        weights[-1, 0] = 0.5
        data.append(Datum(tokens=sequence[:-1], targets=rng.integers(0, 256, shape), weights=weights))
    return data


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("tokens_per_pass", [14, 2048])
def test_soft_targets_are_the_weighted_sum_of_hard_ones(
    exact: LoraPolicy, normalization: Normalization, tokens_per_pass: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = candidates(branching())
    monkeypatch.setattr(exact, "tokens_per_pass", tokens_per_pass)
    out = exact.forward_backward(data, normalization=normalization)
    soft = gradients(exact)
    shares = token_shares([len(d.trained) for d in data], normalization)
    hard = []
    for d, share in zip(data, shares, strict=True):
        targets, weights = np.asarray(d.targets), np.asarray(d.weights)
        mask = weights.any(-1).tolist()
        hard += [
            Datum(tokens=d.tokens, targets=targets[:, k], weights=weights[:, k] * share, mask=mask) for k in range(3)
        ]
    expected = exact.forward_backward(hard, normalization="sum")
    assert out.loss == pytest.approx(expected.loss, rel=1e-10)
    assert_close(soft, gradients(exact), 1e-12)
    assert out.metrics["trained_tokens"] == sum(len(d.trained) for d in data)
    for number, logprobs in enumerate(out.logprobs):
        stacked = np.stack(expected.logprobs[3 * number : 3 * number + 3], -1)
        np.testing.assert_allclose(logprobs, stacked, atol=1e-12)


def test_candidates_without_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"candidates \(2, 2\) need weights of the same shape, got None"):
        Datum(tokens=[1, 2], targets=[[1, 2], [3, 4]])
    with pytest.raises(ValueError, match="there can be no advantages"):
        Datum(tokens=[1], targets=[[1, 2]], weights=[[1.0, 0.0]], advantages=[1.0])


def test_the_likeliest_candidates_are_those_of_the_models_own_logits(exact: LoraPolicy) -> None:
    data = rl_data(branching())
    for d, (ids, logprobs) in zip(data, exact.top_candidates(data, 4, temperature=1.5), strict=True):
        expected = (reference_logits(exact.base, d.tokens, exact.adapter) / 1.5).log_softmax(-1)[d.trained].topk(4)
        np.testing.assert_array_equal(ids, expected.indices.numpy())
        np.testing.assert_allclose(logprobs, expected.values.numpy(), atol=1e-6)


@pytest.mark.parametrize("count", [0, 10**6])
def test_a_senseless_number_of_candidates_is_refused(exact: LoraPolicy, count: int) -> None:
    with pytest.raises(ValueError, match="count is from 1 to"):
        exact.top_candidates(rl_data(branching()), count)


@pytest.mark.parametrize("tokens_per_pass", [14, 2048])
def test_a_loss_on_logits_gets_those_of_the_trained_positions(
    exact: LoraPolicy, tokens_per_pass: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rl_data(branching())
    monkeypatch.setattr(exact, "tokens_per_pass", tokens_per_pass)

    def mixed(
        logprobs: list[torch.Tensor], given: Sequence[Datum], logits: list[torch.Tensor]
    ) -> tuple[torch.Tensor, Mapping[str, float]]:
        own = [
            part.log_softmax(-1)[torch.arange(len(part)), torch.as_tensor(np.asarray(d.targets)[d.trained])]
            for part, d in zip(logits, given, strict=True)
        ]
        for a, b in zip(own, logprobs, strict=True):
            assert torch.allclose(a, b, atol=1e-6)
        return torch.cat(own).sum() + 2 * torch.cat(logprobs).sum(), {}

    exact.forward_backward(data, mixed, temperature=1.5, with_logits=True)
    found = gradients(exact)
    exact.forward_backward(data, lambda p, _: (3 * torch.cat(p).sum(), {}), temperature=1.5)
    assert_close(found, gradients(exact), 1e-6)


def by_hand(direction: Direction, teacher_logprobs: list[torch.Tensor], shares: list[float]) -> Any:
    """The divergence written with `with_logits`."""

    def loss(
        logprobs: list[torch.Tensor], data: Sequence[Datum], logits: list[torch.Tensor]
    ) -> tuple[torch.Tensor, Mapping[str, float]]:
        total = logits[0].new_zeros(())
        for part, taught, share in zip(logits, teacher_logprobs, shares, strict=True):
            p, q = part.log_softmax(-1), taught
            kl = (p.exp() * (p - q)).sum(-1) if direction == "reverse" else (q.exp() * (q - p)).sum(-1)
            total = total + share * kl.sum()
        return total, {}

    return loss


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("tokens_per_pass", [14, 2048])
def test_the_divergence_and_its_gradient_are_those_of_the_whole_vocabulary(
    exact: LoraPolicy,
    teacher: LoraPolicy,
    direction: Direction,
    tokens_per_pass: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = rl_data(branching())
    taught = [(reference_logits(exact.base, d.tokens, teacher.adapter) / 1.5).log_softmax(-1)[d.trained] for d in data]
    shares = token_shares([len(d.trained) for d in data], "sequence")
    expected = exact.forward_backward(data, by_hand(direction, taught, shares), temperature=1.5, with_logits=True)
    gradient = gradients(exact)
    monkeypatch.setattr(exact, "tokens_per_pass", tokens_per_pass)
    monkeypatch.setattr(policy, "LOGITS_BYTES", 5 * exact.base.dtype.itemsize * exact.base.vocabulary)
    out = exact.forward_backward_kl(data, teacher, direction=direction, normalization="sequence", temperature=1.5)
    assert out.loss == pytest.approx(expected.loss, rel=1e-5) and out.loss > 0
    assert_close(gradients(exact), gradient, 1e-6)
    assert all(tensor.grad is None for tensor in teacher.parameters)


def test_the_divergence_from_itself_is_zero_and_so_is_its_gradient(exact: LoraPolicy) -> None:
    out = exact.forward_backward_kl(rl_data(branching()), exact)
    assert out.loss == pytest.approx(0, abs=1e-12)
    assert all(gradient.abs().max() < 1e-10 for gradient in gradients(exact))


def test_the_teacher_may_read_a_longer_prompt(exact: LoraPolicy, teacher: LoraPolicy) -> None:
    reply, short, long = random_tokens(1, 4), random_tokens(2, 3), random_tokens(3, 9)

    def after(prompt: list[int]) -> Datum:
        whole = prompt + reply
        return Datum(tokens=whole[:-1], targets=whole[1:], mask=[i >= len(prompt) - 1 for i in range(len(whole) - 1)])

    taught = reference_logits(exact.base, (long + reply)[:-1], teacher.adapter)[len(long) - 1 :].log_softmax(-1)
    expected = exact.forward_backward([after(short)], by_hand("reverse", [taught], [1.0]), with_logits=True)
    gradient = gradients(exact)
    out = exact.forward_backward_kl([after(short)], teacher, teacher_data=[after(long)], normalization="sum")
    assert out.loss == pytest.approx(expected.loss, rel=1e-5)
    assert_close(gradients(exact), gradient, 1e-6)
    with pytest.raises(ValueError, match="as many trained positions"):
        exact.forward_backward_kl([after(short)], teacher, teacher_data=rl_data([long]))


def test_a_teacher_on_another_base_is_refused(exact: LoraPolicy) -> None:
    with pytest.raises(ValueError, match="'other' is on another base model"):
        exact.forward_backward_kl(rl_data(branching()), stirred_policy(tiny_base(1), "other"))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_student_comes_to_agree_with_its_teacher(direction: Direction) -> None:
    base = tiny_base()
    teacher, student = teacher_on(base), base.add_lora("student", LoraConfig(rank=4))
    data = rl_data([random_tokens(i, 12) for i in range(8)])
    losses = []
    for _ in range(60):
        losses.append(student.forward_backward_kl(data, teacher, direction=direction).loss)
        student.optim_step(AdamParams(learning_rate=1e-2))
    assert losses[-1] < 0.1 * losses[0]


def test_a_student_learns_from_its_teachers_likeliest_tokens() -> None:
    base = tiny_base()
    teacher, student = teacher_on(base), base.add_lora("student", LoraConfig(rank=4))
    data = rl_data([random_tokens(i, 12) for i in range(8)])
    soft = []
    for d, (ids, logprobs) in zip(data, teacher.top_candidates(data, 16), strict=True):
        targets = np.zeros((len(d.tokens), 16), dtype=int)
        weights = np.zeros((len(d.tokens), 16))
        targets[d.trained], weights[d.trained] = ids, np.exp(logprobs)
        soft.append(Datum(tokens=d.tokens, targets=targets, weights=weights))
    before = student.forward_backward_kl(data, teacher, direction="forward").loss
    student.zero_grad()
    for _ in range(60):
        student.forward_backward(soft, normalization="token")
        student.optim_step(AdamParams(learning_rate=1e-2))
    assert student.forward_backward_kl(data, teacher, direction="forward").loss < 0.5 * before
