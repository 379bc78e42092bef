"""Losses: closed forms by hand, normalisation by name, and gradients that are those of the written loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loragym.agents import LOSSES, Datum, LoraPolicy, policy, register_loss
from loragym.agents.logprobs import selected_logprobs
from loragym.agents.losses import (
    NORMALIZATIONS,
    Normalization,
    TokenInputs,
    bradley_terry,
    kl_estimate,
    preference_loss,
    token_loss,
    token_shares,
    value_loss,
)
from tiny_engine import (
    assert_close,
    branching,
    datum,
    exact_policy,
    gradients,
    random_tokens,
    rl_data,
    weighted_data,
)


def of_one_token(
    loss: str, p: float, q: float = 0.0, advantage: float = 0.0, weight: float = 0.0, **config: float
) -> tuple[float, float]:
    """A loss and its derivative by log p; p and q are probabilities here."""
    values, slopes = of_tokens(loss, [p], [q or 1.0], [advantage], weights=[weight], **config)
    return values[0], slopes[0]


def of_tokens(
    loss: str,
    p: Sequence[float],
    q: Sequence[float],
    advantages: Sequence[float],
    *,
    sequences: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    reference: Sequence[float] | None = None,
    old: Sequence[float] | None = None,
    **config: Any,
) -> tuple[list[float], list[float]]:
    """A loss of each token, and the derivatives of their sum by each log p; all but advantages are probabilities."""

    def column(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.float64)

    logprobs = column(p).log().requires_grad_()
    inputs = TokenInputs(
        weights=column(weights or [0.0] * len(p)),
        sampler_logprobs=column(q).log(),
        advantages=column(advantages),
        reference_logprobs=column(reference or [1.0] * len(p)).log(),
        old_logprobs=column(old or p).log(),
        sequences=torch.tensor(sequences or [0] * len(p)),
    )
    value = token_loss(loss, config)(logprobs, inputs)
    value.sum().backward()
    assert logprobs.grad is not None
    return value.tolist(), logprobs.grad.tolist()


def test_cross_entropy_of_a_coin_is_ln_2_times_its_weight() -> None:
    assert of_one_token("cross_entropy", 0.5, weight=3.0) == pytest.approx((3 * math.log(2), -3.0))


@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_importance_sampling_is_minus_ratio_times_advantage_and_so_is_its_gradient(advantage: float) -> None:
    assert of_one_token("importance_sampling", 0.6, 0.3, advantage) == pytest.approx((-2 * advantage, -2 * advantage))


@pytest.mark.parametrize(
    ("p", "q", "advantage", "loss", "gradient"),
    [
        (0.5, 0.5, 1.0, -1.0, -1.0),  # on policy: the policy gradient
        (0.55, 0.5, 1.0, -1.1, -1.1),  # ratio 1.1, inside the clip
        (0.6, 0.3, 1.0, -1.2, 0.0),  # ratio 2, good token: clipped, no further push
        (0.6, 0.3, -1.0, 2.0, 2.0),  # ratio 2, bad token: the pessimistic side, full push back
        (0.3, 0.6, 1.0, -0.5, -0.5),  # ratio 1/2, good token: full push
        (0.3, 0.6, -1.0, 0.8, 0.0),  # ratio 1/2, bad token: clipped, no further push
    ],
)
def test_ppo_takes_the_smaller_of_clipped_and_unclipped(
    p: float, q: float, advantage: float, loss: float, gradient: float
) -> None:
    assert of_one_token("ppo", p, q, advantage) == pytest.approx((loss, gradient))


def test_ppo_clips_where_it_is_told_to() -> None:
    assert of_one_token("ppo", 0.6, 0.3, 1.0, clip_high=0.5)[0] == pytest.approx(-1.5)
    assert of_one_token("ppo", 0.3, 0.6, -1.0, clip_low=0.4)[0] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("p", "q", "loss", "gradient"),
    [
        (0.6, 0.3, 2.0, 2.0),  # ratio 2, below the bound of 3: as without it
        (0.8, 0.1, 3.0, 0.0),  # ratio 8: held at 3 times the advantage, and no gradient
    ],
)
def test_dual_clip_bounds_what_a_bad_token_can_cost(p: float, q: float, loss: float, gradient: float) -> None:
    assert of_one_token("ppo", p, q, -1.0, dual_clip=3.0) == pytest.approx((loss, gradient))
    assert of_one_token("ppo", 0.8, 0.1, 1.0, dual_clip=3.0) == pytest.approx((-1.2, 0.0)), "good tokens are as ever"


@pytest.mark.parametrize(("p", "q", "weight"), [(0.6, 0.3, 2.0), (0.9, 0.1, 4.0), (0.1, 0.2, 0.5)])
@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_cispo_weighs_the_policy_gradient_with_a_clipped_ratio(
    p: float, q: float, weight: float, advantage: float
) -> None:
    expected = (-weight * advantage * math.log(p), -weight * advantage)
    assert of_one_token("cispo", p, q, advantage) == pytest.approx(expected)


def test_dro_pulls_back_to_the_sampler_in_proportion_to_the_log_ratio() -> None:
    difference = math.log(0.6 / 0.3)
    loss = -(1.5 * math.log(0.6) - 0.05 / 2 * difference**2)
    assert of_one_token("dro", 0.6, 0.3, 1.5) == pytest.approx((loss, -1.5 + 0.05 * difference))
    assert of_one_token("dro", 0.6, 0.3, 1.5, beta=1.0)[1] == pytest.approx(-1.5 + difference)


def test_gspo_has_one_ratio_for_a_whole_sequence() -> None:
    # Two sequences: ratios 2 and 1/2 cancel to 1; 4 and 1 make 2.
    p, q, sequences = [0.6, 0.2, 0.8, 0.5], [0.3, 0.4, 0.2, 0.5], [0, 0, 1, 1]
    losses, slopes = of_tokens("gspo", p, q, [1.0, 1.0, -1.0, -1.0], sequences=sequences, clip_low=0.1, clip_high=0.1)
    assert losses == pytest.approx([-1.0, -1.0, 2.0, 2.0]) and slopes == pytest.approx([-1.0, -1.0, 2.0, 2.0])
    losses, slopes = of_tokens("gspo", p, q, [1.0, 1.0, 1.0, 1.0], sequences=sequences, clip_low=0.1, clip_high=0.1)
    assert losses == pytest.approx([-1.0, -1.0, -1.1, -1.1]) and slopes == pytest.approx([-1.0, -1.0, 0.0, 0.0])


def test_gspo_of_sequences_of_one_token_is_ppo() -> None:
    p, q, advantages = [0.6, 0.3, 0.55], [0.3, 0.6, 0.5], [1.0, -1.0, 2.0]
    clip = {"clip_low": 0.2, "clip_high": 0.2}
    as_gspo = of_tokens("gspo", p, q, advantages, sequences=[0, 1, 2], **clip)
    assert as_gspo == tuple(map(pytest.approx, of_tokens("ppo", p, q, advantages, **clip)))


@pytest.mark.parametrize(
    ("estimator", "value", "slope"),
    [
        ("k1", math.log(3), 1.0),
        ("k2", math.log(3) ** 2 / 2, math.log(3)),
        ("k3", 1 / 3 - 1 + math.log(3), 1 - 1 / 3),
    ],
)
def test_a_kl_term_is_added_to_any_loss(estimator: str, value: float, slope: float) -> None:
    for loss in ("importance_sampling", "ppo", "cispo", "dro", "gspo"):
        plain = of_tokens(loss, [0.6], [0.6], [1.0])
        held = of_tokens(loss, [0.6], [0.6], [1.0], reference=[0.2], kl_coef=0.5, kl_estimator=estimator)
        assert held[0][0] - plain[0][0] == pytest.approx(0.5 * value)
        assert held[1][0] - plain[1][0] == pytest.approx(0.5 * slope)


@given(st.lists(st.floats(0.01, 0.99), min_size=2, max_size=6), st.lists(st.floats(0.01, 0.99), min_size=6, max_size=6))
def test_k1_and_k3_estimate_the_kl_without_bias(ours: list[float], theirs: list[float]) -> None:
    p = np.asarray(ours) / sum(ours)
    q = np.asarray(theirs[: len(ours)]) / sum(theirs[: len(ours)])
    expected = float((p * np.log(p / q)).sum())
    for name in ("k1", "k3"):
        estimate = kl_estimate(name, torch.tensor(np.log(p / q))).numpy()
        assert float((p * estimate).sum()) == pytest.approx(expected, abs=1e-9)


def test_truncated_weights_take_the_ratio_to_the_learners_own_past() -> None:
    # Old 0.5 against the sampler's 0.25 and 0.05: weights 2 and, truncated, 3; new 0.6 against old 0.5: ratio 1.2.
    losses, _ = of_tokens("ppo", [0.6, 0.6], [0.25, 0.05], [-1.0, -1.0], old=[0.5, 0.5], max_weight=3.0)
    assert losses == pytest.approx([2 * 1.2, 3 * 1.2])


def test_without_old_logprobs_the_ratio_to_the_past_is_one_and_its_gradient_stays() -> None:
    losses, slopes = of_tokens("importance_sampling", [0.6], [0.1], [2.0], max_weight=3.0)
    assert (losses, slopes) == (pytest.approx([-6.0]), pytest.approx([-6.0]))


def test_tokens_and_sequences_are_masked_by_their_ratio() -> None:
    p, q, advantages, sequences = [0.6, 0.6, 0.1, 0.4], [0.3, 0.6, 0.4, 0.4], [1.0] * 4, [0, 0, 1, 1]
    losses, slopes = of_tokens(
        "importance_sampling", p, q, advantages, sequences=sequences, mask_token_low=0.5, mask_token_high=1.9
    )
    assert losses == pytest.approx([0.0, -1.0, 0.0, -1.0]) and slopes == pytest.approx(losses)
    # Mean ratios: sqrt(2) and 1/2.
    losses, _ = of_tokens("importance_sampling", p, q, advantages, sequences=sequences, mask_sequence_low=0.6)
    assert losses == pytest.approx([-2.0, -1.0, 0.0, 0.0])
    losses, _ = of_tokens("importance_sampling", p, q, advantages, sequences=sequences, mask_sequence_high=1.0)
    assert losses == pytest.approx([0.0, 0.0, -0.25, -1.0])


def test_a_masked_token_of_infinite_ratio_leaves_finite_gradients() -> None:
    losses, slopes = of_tokens("importance_sampling", [0.5, 0.5], [1e-320, 0.5], [1.0, 1.0], mask_token_high=10.0)
    assert losses == pytest.approx([0.0, -1.0]) and slopes == pytest.approx([0.0, -1.0])


@pytest.mark.parametrize(
    ("loss", "config", "why"),
    [
        ("ppo", {"clip": 0.2}, r"'ppo' takes no clip; it takes \['clip_low', 'clip_high', 'dual_clip'\].*kl_coef"),
        ("cross_entropy", {"beta": 1}, "takes no beta; it takes nothing of its own"),
        ("ppo", {"kl_coef": 1.0, "kl_estimator": "k4"}, "unknown KL estimator 'k4'"),
        ("grpo", {}, "unknown loss 'grpo'"),
    ],
)
def test_arguments_that_a_loss_does_not_take_are_named(loss: str, config: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        token_loss(loss, config)


def test_a_dual_clip_that_would_clip_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="dual_clip is above 1"):
        of_one_token("ppo", 0.5, 0.5, 1.0, dual_clip=0.5)


def slope_of(value: torch.Tensor, leaf: torch.Tensor) -> list[float]:
    leaf.grad = None
    value.backward()
    assert leaf.grad is not None
    return leaf.grad.tolist()


def test_dpo_at_equal_rewards_is_ln_2_and_pushes_apart() -> None:
    chosen = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    loss = preference_loss("dpo", chosen, torch.zeros(2, dtype=torch.float64))
    assert loss.item() == pytest.approx(math.log(2)) and slope_of(loss, chosen) == pytest.approx([-0.25, -0.25])


def test_ipo_wants_a_margin_of_one_half_and_no_more() -> None:
    chosen = torch.tensor([0.5, 0.75], dtype=torch.float64, requires_grad=True)
    loss = preference_loss("ipo", chosen, torch.zeros(2, dtype=torch.float64))
    assert loss.item() == pytest.approx(0.0625 / 2) and slope_of(loss, chosen) == pytest.approx([0.0, 0.25])


def test_smoothed_labels_take_some_pairs_to_be_the_wrong_way_round() -> None:
    a, b = torch.tensor([1.0]), torch.tensor([0.0])
    smoothed = preference_loss("dpo", a, b, smoothing=0.2)
    expected = 0.8 * preference_loss("dpo", a, b) + 0.2 * preference_loss("dpo", b, a)
    assert smoothed.item() == pytest.approx(expected.item())
    with pytest.raises(ValueError, match="unknown preference loss 'kto'"):
        preference_loss("kto", a, b)


def test_bradley_terry_knows_ties_and_margins() -> None:
    first = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64, requires_grad=True)
    second, labels = torch.zeros(3, dtype=torch.float64), torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)

    def minus_log_sigmoid(x: float) -> float:
        return math.log1p(math.exp(-x))

    parts = [minus_log_sigmoid(1.0), minus_log_sigmoid(-1.0), (minus_log_sigmoid(1.0) + minus_log_sigmoid(-1.0)) / 2]
    assert bradley_terry(first, second, labels).item() == pytest.approx(sum(parts) / 3)
    parts[:2] = [minus_log_sigmoid(0.25), minus_log_sigmoid(-1.75)]
    assert bradley_terry(first, second, labels, margin=0.75).item() == pytest.approx(sum(parts) / 3)


def test_a_clipped_value_loss_is_the_larger_of_two() -> None:
    values = torch.tensor([1.0, 1.0, 0.1], dtype=torch.float64, requires_grad=True)
    returns, old = torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    assert value_loss(values, returns).tolist() == pytest.approx([0.5, 0.5, 0.405])
    clipped = value_loss(values, returns, old, clip=0.2)
    assert clipped.tolist() == pytest.approx([0.5 * 1.8**2, 0.5, 0.405])
    assert slope_of(clipped.sum(), values) == pytest.approx([0.0, 1.0, -0.9])
    with pytest.raises(ValueError, match="needs the old values"):
        value_loss(values, returns, clip=0.2)


def test_shares_by_hand() -> None:
    lengths = [1, 0, 3]
    assert token_shares(lengths, "sum") == [1.0, 1.0, 1.0]
    assert token_shares(lengths, "token") == [0.25, 0.25, 0.25]
    assert token_shares(lengths, "sequence") == [0.5, 0.0, pytest.approx(1 / 6)]


@given(st.lists(st.integers(0, 50), min_size=1).filter(any))
def test_mean_normalisations_share_out_exactly_one(lengths: list[int]) -> None:
    for normalization in ("token", "sequence"):
        shares = token_shares(lengths, normalization)
        assert sum(share * n for share, n in zip(shares, lengths, strict=True)) == pytest.approx(1.0)


@pytest.fixture(scope="module")
def exact() -> LoraPolicy:
    """A policy in float64 whose adapter does something."""
    return exact_policy(train_unembed=True)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("loss", ["cross_entropy", "importance_sampling", "ppo"])
def test_the_loss_of_a_batch_is_its_tokens_losses_added_up_as_named(
    exact: LoraPolicy, loss: str, normalization: Normalization
) -> None:
    sequences = branching()
    data = weighted_data(sequences) if loss == "cross_entropy" else rl_data(sequences)
    out = exact.forward_backward(data, loss, normalization=normalization, temperature=1.5)
    exact.zero_grad()
    scored = exact.forward(data, temperature=1.5).logprobs
    per_datum = []
    for d, p in zip(data, scored, strict=True):
        if loss == "cross_entropy":
            trained, losses = np.asarray(d.weights) != 0, -np.asarray(d.weights) * p
        else:
            trained, r, a = np.asarray(d.mask), np.exp(p - np.asarray(d.logprobs)), np.asarray(d.advantages)
            losses = -r * a if loss == "importance_sampling" else np.maximum(-r * a, -np.clip(r, 0.8, 1.2) * a)
        per_datum.append(losses[trained])
    expected = {
        "sum": np.concatenate(per_datum).sum(),
        "token": np.concatenate(per_datum).mean(),
        "sequence": np.mean([losses.mean() for losses in per_datum]),
    }[normalization]
    assert out.loss == pytest.approx(expected, rel=1e-10)
    assert out.metrics["trained_tokens"] == sum(map(len, per_datum))
    for a, b in zip(out.logprobs, scored, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_masked_tokens_have_no_influence(exact: LoraPolicy) -> None:
    (clean,) = rl_data([random_tokens(0, 12)], seed=4)
    assert clean.logprobs is not None and clean.advantages is not None and clean.mask is not None
    masked = [i for i, kept in enumerate(clean.mask) if not kept]
    assert masked
    wild = Datum(
        tokens=clean.tokens,
        targets=[-100 if i in masked else t for i, t in enumerate(clean.targets)],
        logprobs=[float("nan") if i in masked else x for i, x in enumerate(clean.logprobs)],
        advantages=[1e9 if i in masked else x for i, x in enumerate(clean.advantages)],
        mask=clean.mask,
    )
    losses, found = [], []
    for d in (clean, wild):
        losses.append(exact.forward_backward([d], "importance_sampling").loss)
        found.append(gradients(exact))
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def pair_loss(logprobs: list[torch.Tensor], data: Sequence[Datum]) -> tuple[torch.Tensor, Mapping[str, float]]:
    """Like DPO: datums come in pairs, chosen and rejected, and each pair's margin goes through a log-sigmoid."""
    scores = torch.stack([p.sum() for p in logprobs])
    margins = 0.3 * (scores[0::2] - scores[1::2])
    assert len(logprobs) == len(data)
    return -torch.nn.functional.logsigmoid(margins).mean(), {"margin": margins.mean().item()}


def central_difference(exact: LoraPolicy, parameter: torch.Tensor, entry: int, value: Callable[[], float]) -> float:
    step, flat = 1e-5, parameter.detach().view(-1)
    before = flat[entry].item()
    values = []
    for moved in (before + step, before - step):
        flat[entry] = moved
        values.append(value())
    flat[entry] = before
    exact.zero_grad()
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("loss", ["cross_entropy", "importance_sampling", "ppo", pair_loss])
def test_gradients_are_those_of_finite_differences(exact: LoraPolicy, loss: Any, temperature: float) -> None:
    data = rl_data(branching()) if loss in ("importance_sampling", "ppo") else weighted_data(branching())

    def value() -> float:
        return exact.forward_backward(data, loss, temperature=temperature).loss

    value()
    found = gradients(exact)
    names = list(exact.adapter.tensors())
    for part in ("q_proj.lora_A", "v_proj.lora_B", "down_proj.lora_A", "gate_proj.lora_B", "lm_head.lora_A"):
        index = next(i for i, name in enumerate(names) if part in name)
        gradient, parameter = found[index].flatten(), exact.parameters[index]
        for entry in (int(gradient.abs().argmax()), 7):
            numeric = central_difference(exact, parameter, entry, value)
            assert gradient[entry].item() == pytest.approx(numeric, rel=1e-5, abs=1e-7)
        assert gradient.abs().max() > 1e-4


@pytest.mark.parametrize("tokens_per_pass", [1, 14])
@pytest.mark.parametrize("loss", ["cross_entropy", "ppo", pair_loss])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_batch_in_several_passes_gives_the_gradient_of_one(
    exact: LoraPolicy,
    loss: Any,
    normalization: Normalization,
    tokens_per_pass: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = rl_data(branching()) if loss == "ppo" else weighted_data(branching())
    whole = exact.forward_backward(data, loss, normalization=normalization)
    expected = gradients(exact)
    monkeypatch.setattr(exact, "tokens_per_pass", tokens_per_pass)
    cut = exact.forward_backward(data, loss, normalization=normalization)
    assert_close(gradients(exact), expected, 1e-12)
    assert cut.loss == pytest.approx(whole.loss, rel=1e-12)
    assert cut.metrics["computed_tokens"] > whole.metrics["computed_tokens"], "no prefix was shared across the cut"
    assert cut.metrics.get("margin") == pytest.approx(whole.metrics.get("margin"))


def test_gradients_of_several_calls_add_up(exact: LoraPolicy) -> None:
    data = rl_data(branching())
    exact.forward_backward(data, "ppo")
    expected = gradients(exact)
    for d in data:
        exact.forward_backward([d], "ppo")
    assert_close(gradients(exact), expected, 1e-12)


@pytest.mark.parametrize("loss", ["importance_sampling", pair_loss])
def test_the_gradient_does_not_depend_on_how_the_head_is_chunked(
    exact: LoraPolicy, loss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rl_data(branching())
    exact.forward_backward(data, loss, temperature=1.5)
    expected = gradients(exact)
    monkeypatch.setattr(policy, "LOGITS_BYTES", 4 * exact.base.vocabulary * 4)
    exact.forward_backward(data, loss, temperature=1.5)
    assert_close(gradients(exact), expected, 1e-12)


def test_datums_that_share_a_prompt_have_the_gradient_of_each_alone(exact: LoraPolicy) -> None:
    """The prompt is computed once and gets the gradients of all its replies."""
    prompt = random_tokens(7, 15)
    data = rl_data([prompt + random_tokens(8 + i, 5) for i in range(3)])
    out = exact.forward_backward(data, "importance_sampling")
    assert out.metrics["computed_tokens"] < sum(len(d.tokens) for d in data)
    together = gradients(exact)
    alone = []
    for d in data:
        exact.forward_backward([d], "importance_sampling")
        alone.append(gradients(exact))
    assert_close(together, [torch.stack(parts).sum(0) for parts in zip(*alone, strict=True)], 1e-12)


def test_a_custom_loss_gets_each_datums_trained_logprobs_in_the_order_of_the_data(exact: LoraPolicy) -> None:
    data = [*rl_data(branching()), datum(random_tokens(0, 5), mask=[False] * 4)]
    seen: list[np.ndarray] = []

    def look(logprobs: list[torch.Tensor], given: Sequence[Datum]) -> tuple[torch.Tensor, Mapping[str, float]]:
        assert given is data
        seen.extend(p.detach().numpy() for p in logprobs)
        return torch.cat(logprobs).sum(), {}

    out = exact.forward_backward(data, look)
    exact.zero_grad()
    assert len(seen) == len(data) and len(seen[-1]) == 0
    for d, p, whole in zip(data, seen, out.logprobs, strict=True):
        np.testing.assert_array_equal(p, whole[d.trained])


def test_a_loss_can_be_registered_and_used_by_name(exact: LoraPolicy) -> None:
    @register_loss
    def squared(p: torch.Tensor, inputs: TokenInputs, power: float = 2.0) -> torch.Tensor:
        return inputs.advantages * p.abs() ** power

    try:
        data = rl_data(branching())
        out = exact.forward_backward(data, "squared", {"power": 3.0})
    finally:
        del LOSSES["squared"]
        exact.zero_grad()
    expected = sum((np.asarray(d.advantages) * np.abs(p) ** 3).sum() for d, p in zip(data, out.logprobs, strict=True))
    assert out.loss == pytest.approx(expected)


ROWS, TARGETS = torch.tensor([2, 0, 2, 1, 2]), torch.tensor([4, 0, 4, 1, 3])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_selected_logprobs_are_log_softmax_at_rows_that_come_up_repeatedly(temperature: float) -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    got = selected_logprobs(logits, ROWS, TARGETS, temperature)
    torch.testing.assert_close(got, (logits / temperature).log_softmax(-1)[ROWS, TARGETS], rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: selected_logprobs(x, ROWS, TARGETS, temperature), (logits,))


def test_logprobs_of_bfloat16_logits_are_float32_and_leave_the_logits_alone() -> None:
    logits = (10 * torch.randn(3, 5, generator=torch.Generator().manual_seed(0))).bfloat16().requires_grad_()
    before = logits.detach().clone()
    got = selected_logprobs(logits, ROWS, TARGETS)
    got.sum().backward()
    assert got.dtype == torch.float32 and logits.grad is not None and logits.grad.dtype == torch.bfloat16
    expected = logits.detach().double().log_softmax(-1)[ROWS, TARGETS]
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits, before)
