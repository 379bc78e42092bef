"""Updates and checkpoints: AdamW worked out by hand, clipping, and states that continue bitwise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from loragym.agents import AdamParams, Datum, LoraConfig, LoraPolicy
from tiny_engine import assert_close, branching, gradients, random_tokens, rl_data, stirred_policy, tiny_base

STEPS = [rl_data([random_tokens(10 * step + i, 12) for i in range(3)], seed=step) for step in range(6)]


def update(policy: LoraPolicy, data: list[Datum], params: AdamParams | None = None) -> dict[str, float]:
    policy.forward_backward(data, "importance_sampling", normalization="token")
    return policy.optim_step(params or AdamParams(learning_rate=0.01, weight_decay=0.1))


def weights(policy: LoraPolicy) -> list[torch.Tensor]:
    return [p.detach().clone() for p in policy.parameters]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_updates_are_adamw_with_decoupled_weight_decay_as_published() -> None:
    policy = stirred_policy(tiny_base(dtype=torch.float64))
    expected = weights(policy)
    m = [torch.zeros_like(w) for w in expected]
    v = [torch.zeros_like(w) for w in expected]
    for t, (data, rate) in enumerate(zip(STEPS, (0.01, 0.02, 0.005), strict=False), start=1):
        params = AdamParams(learning_rate=rate, beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.3)
        policy.forward_backward(data, "importance_sampling")
        for i, g in enumerate(gradients(policy)):
            m[i] = 0.8 * m[i] + 0.2 * g
            v[i] = 0.9 * v[i] + 0.1 * g**2
            step = (m[i] / (1 - 0.8**t)) / ((v[i] / (1 - 0.9**t)).sqrt() + 1e-3)
            expected[i] = expected[i] - rate * 0.3 * expected[i] - rate * step
        policy.forward_backward(data, "importance_sampling")
        policy.optim_step(params)
        assert_close(weights(policy), expected, 1e-11)
    assert policy.version == 3


def test_the_first_update_moves_every_weight_by_the_learning_rate() -> None:
    """Adam's first step is the sign of the gradient; A has none yet, for B is zero."""
    policy = tiny_base().add_lora("policy", LoraConfig(rank=4))
    before = policy.adapter.pairs["model.layers.0.self_attn.q_proj"][0].detach().clone()
    update(policy, STEPS[0], AdamParams(learning_rate=0.01, eps=1e-14))
    a, b = policy.adapter.pairs["model.layers.0.self_attn.q_proj"]
    assert torch.equal(a, before)
    torch.testing.assert_close(b.detach().abs(), torch.full_like(b, 0.01))


def test_the_reported_norm_is_that_of_the_whole_gradient_before_clipping() -> None:
    for clip in (0.0, 1e-3, 1e9):
        policy = stirred_policy(tiny_base())
        policy.forward_backward(STEPS[0], "importance_sampling")
        norm = torch.cat([p.grad.flatten() for p in policy.parameters if p.grad is not None]).norm().item()
        report = policy.optim_step(AdamParams(learning_rate=0.01, grad_clip_norm=clip))
        assert report == {"grad_norm": pytest.approx(norm, rel=1e-5), "learning_rate": 0.01}
        assert norm > 1e-3


@pytest.mark.parametrize(("clip", "factor"), [(0.5, 0.5), (1e9, 1.0), (0.0, 1.0)])
def test_clipping_scales_a_larger_gradient_to_the_norm_and_leaves_a_smaller_one(clip: float, factor: float) -> None:
    """With Adam's memory off and a huge eps the update is proportional to the gradient, which shows its scale."""
    moved = []
    for grad_clip in (clip, 0.0):
        policy = stirred_policy(tiny_base(dtype=torch.float64))
        before = weights(policy)
        policy.forward_backward(STEPS[0], "importance_sampling")
        total = torch.cat([g.flatten() for g in (p.grad for p in policy.parameters) if g is not None]).norm().item()
        assert 1 < total < 1e9
        policy.optim_step(AdamParams(learning_rate=1e6, beta1=0.0, beta2=0.0, eps=1e9, grad_clip_norm=grad_clip))
        moved.append([after - b for after, b in zip(weights(policy), before, strict=True)])
    expected = factor / total if clip == 0.5 else 1.0
    assert_close(moved[0], [expected * m for m in moved[1]], 1e-5)


def test_an_update_clears_the_gradients_it_used() -> None:
    policy = stirred_policy(tiny_base())
    update(policy, STEPS[0])
    assert all(p.grad is None for p in policy.parameters)
    before = weights(policy)
    with pytest.raises(RuntimeError, match="no gradient"):
        policy.optim_step()
    assert same(weights(policy), before)


def test_a_resumed_policy_continues_bitwise(tmp_path: Path) -> None:
    straight = tiny_base().add_lora("policy", LoraConfig(rank=4, train_unembed=True))
    for data in STEPS:
        update(straight, data)

    interrupted = tiny_base().add_lora("policy", LoraConfig(rank=4, train_unembed=True))
    for data in STEPS[:3]:
        update(interrupted, data)
    interrupted.save_state(tmp_path)
    resumed = tiny_base().add_lora("policy", LoraConfig(rank=4, train_unembed=True, seed=77))
    resumed.load_state(tmp_path)
    assert resumed.version == 3
    for data in STEPS[3:]:
        update(resumed, data)
    assert same(weights(resumed), weights(straight))
    assert resumed.version == straight.version == 6


def test_saving_disturbs_nothing(tmp_path: Path) -> None:
    quiet, saving = (tiny_base().add_lora("policy", LoraConfig(rank=4)) for _ in range(2))
    for step, data in enumerate(STEPS[:4]):
        update(quiet, data)
        update(saving, data)
        saving.save_state(tmp_path / str(step))
    assert same(weights(quiet), weights(saving))


def test_a_state_before_the_first_update_can_be_saved_and_loaded(tmp_path: Path) -> None:
    policy = tiny_base().add_lora("policy", LoraConfig(rank=4))
    policy.save_state(tmp_path)
    loaded = tiny_base().add_lora("policy", LoraConfig(rank=4, seed=3))
    loaded.load_state(tmp_path)
    for p in (policy, loaded):
        update(p, STEPS[0])
    assert same(weights(policy), weights(loaded))


def test_without_the_optimiser_the_weights_come_and_adam_starts_afresh(tmp_path: Path) -> None:
    trained = tiny_base().add_lora("policy", LoraConfig(rank=4))
    for data in STEPS[:3]:
        update(trained, data)
    trained.save_state(tmp_path)

    loaded = tiny_base().add_lora("policy", LoraConfig(rank=4, seed=3))
    update(loaded, STEPS[4])
    loaded.load_state(tmp_path, with_optimizer=False)
    assert same(weights(loaded), weights(trained))
    by_hand = tiny_base().add_lora("policy", LoraConfig(rank=4))
    with torch.no_grad():
        for mine, theirs in zip(by_hand.parameters, trained.parameters, strict=True):
            mine.copy_(theirs)
    for policy in (loaded, by_hand, trained):
        update(policy, STEPS[5])
    assert same(weights(loaded), weights(by_hand))
    assert not same(weights(loaded), weights(trained))


def test_gradients_of_the_weights_before_do_not_outlive_a_load(tmp_path: Path) -> None:
    policy = stirred_policy(tiny_base())
    policy.save_state(tmp_path)
    policy.forward_backward(STEPS[0], "importance_sampling")
    policy.load_state(tmp_path)
    with pytest.raises(RuntimeError, match="no gradient"):
        policy.optim_step()


def test_forward_leaves_no_gradient_and_changes_nothing() -> None:
    policy = stirred_policy(tiny_base())
    before = weights(policy)
    policy.forward(rl_data(branching()))
    assert same(weights(policy), before)
    assert all(p.grad is None for p in policy.parameters)


def test_training_lowers_the_loss_it_minimises() -> None:
    policy = tiny_base().add_lora("policy", LoraConfig(rank=8))
    sequence = random_tokens(0, 30)
    data = [Datum.supervised(sequence, [1.0] * 30)]
    losses = []
    for _ in range(40):
        losses.append(policy.forward_backward(data, normalization="token").loss)
        policy.optim_step(AdamParams(learning_rate=0.01))
    assert losses[0] > 5 and losses[-1] < losses[0] / 5
