"""The draw of a token: the distribution function inverted, so one number gives one token, and no token is favoured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from chances import chance_of_at_least, truncated_by_hand
from hypothesis import given, settings
from hypothesis import strategies as st
from loragym.agents import SamplingParams
from loragym.agents.sampling import DRAW_BLOCK, draw, sample_keys, truncated, uniforms

LARGEST = 1 - 2.0**-53
PLAIN = SamplingParams()
DTYPES = [torch.float32, torch.bfloat16]


def draw_one_row(
    probabilities: Sequence[float], numbers: Sequence[float], params: SamplingParams = PLAIN
) -> tuple[list[int], list[float]]:
    logits = torch.tensor([probabilities], dtype=torch.float64).log()
    return draw(logits, [params], [0] * len(numbers), np.asarray(numbers))


def test_each_token_owns_its_part_of_the_unit_interval() -> None:
    tokens, logprobs = draw_one_row([0.5, 0.25, 0.25], [0.0, 0.499, 0.501, 0.749, 0.751, LARGEST])
    assert tokens == [0, 0, 1, 1, 2, 2]
    assert logprobs == pytest.approx([math.log(p) for p in (0.5, 0.5, 0.25, 0.25, 0.25, 0.25)])


@pytest.mark.parametrize("vocabulary", [1, 2, DRAW_BLOCK - 1, DRAW_BLOCK, DRAW_BLOCK + 1, 3 * DRAW_BLOCK + 7])
def test_the_ends_of_the_unit_interval_are_the_ends_of_the_vocabulary(vocabulary: int) -> None:
    tokens, logprobs = draw_one_row([1 / vocabulary] * vocabulary, [0.0, LARGEST])
    assert tokens == [0, vocabulary - 1]
    assert logprobs == pytest.approx([-math.log(vocabulary)] * 2)


@pytest.mark.parametrize("position", [0, 1, DRAW_BLOCK - 1, DRAW_BLOCK, 2 * DRAW_BLOCK + 3])
def test_the_only_possible_token_is_drawn_whatever_the_number(position: int) -> None:
    probabilities = [0.0] * (2 * DRAW_BLOCK + 5)
    probabilities[position] = 1.0
    tokens, logprobs = draw_one_row(probabilities, [0.0, 1e-300, 0.5, LARGEST])
    assert tokens == [position] * 4 and logprobs == [0.0] * 4


@settings(deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 1300), st.floats(0, LARGEST), st.sampled_from([torch.float32, torch.bfloat16])
)
def test_a_draw_is_the_inverse_of_the_distribution_function(
    seed: int, vocabulary: int, number: float, dtype: torch.dtype
) -> None:
    logits = (4 * torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(seed))).to(dtype)
    (token,), (logprob,) = draw(logits, [PLAIN], [0], np.array([number]))
    probabilities = logits[0].double().softmax(-1)
    above = probabilities[: token + 1].sum().item()
    below = above - probabilities[token].item()
    assert below - 1e-6 <= number <= above + 1e-6
    assert logprob == pytest.approx(probabilities[token].log().item(), abs=1e-5)


@pytest.mark.parametrize("vocabulary", [7, DRAW_BLOCK + 1, 1500])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=1.5),
        SamplingParams(top_k=5),
        SamplingParams(top_p=0.7),
        SamplingParams(temperature=0.7, top_k=6, top_p=0.9),
    ],
    ids=str,
)
def test_frequencies_are_those_of_the_distribution(params: SamplingParams, vocabulary: int) -> None:
    logits = 2 * torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(1))
    scaled = logits[0].double().numpy() / params.temperature
    kept = truncated_by_hand(np.exp(scaled) / np.exp(scaled).sum(), params)
    count = 40 * vocabulary
    numbers = uniforms(sample_keys(3, count), [0] * count)
    tokens, logprobs = draw(logits, [params], [0] * count, numbers)
    counts = np.bincount(tokens, minlength=vocabulary)
    assert chance_of_at_least(counts, kept) > 1e-3
    np.testing.assert_allclose(logprobs, np.log(kept[tokens]), atol=1e-5)


def test_top_p_keeps_the_fewest_tokens_that_cover_it_by_hand() -> None:
    logits = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    for top_p, kept in [(0.1, {1}), (0.5, {1}), (0.51, {1, 2}), (0.8, {1, 2}), (0.81, {0, 1, 2}), (1.0, {0, 1, 2})]:
        assert set(torch.isfinite(truncated(logits, 0, top_p)).nonzero().flatten().tolist()) == kept


def test_top_k_keeps_k_tokens_and_the_earlier_of_equals() -> None:
    logits = torch.tensor([1.0, 2.0, 2.0, 0.0])
    for top_k, kept in [(1, [1]), (2, [1, 2]), (3, [0, 1, 2]), (9, [0, 1, 2, 3])]:
        assert torch.isfinite(truncated(logits, top_k, 1.0)).nonzero().flatten().tolist() == kept


def test_rows_of_one_batch_keep_to_their_own_parameters() -> None:
    """Greedy, hot, cold and truncated rows side by side give what each gives alone."""
    logits = torch.randn(4, 700, generator=torch.Generator().manual_seed(2))
    params = [SamplingParams(temperature=t, top_k=k) for t, k in ((0.0, 0), (1.5, 0), (0.25, 0), (1.0, 3))]
    row_S = [0, 1, 2, 3, 3, 1]
    numbers = np.array([0.9, 0.1, 0.5, 0.99, 0.2, 0.8])
    tokens, logprobs = draw(logits, params, row_S, numbers)
    for row, number, token, logprob in zip(row_S, numbers, tokens, logprobs, strict=True):
        alone = draw(logits[row : row + 1], [params[row]], [0], np.array([number]))
        assert ([token], pytest.approx([logprob])) == alone
    assert (tokens[0], logprobs[0]) == (logits[0].argmax().item(), 0.0)


def test_drawing_leaves_the_logits_alone() -> None:
    logits = torch.randn(2, 30)
    before = logits.clone()
    draw(logits, [SamplingParams(temperature=0.5, top_k=3)] * 2, [0, 1], np.array([0.3, 0.4]))
    assert torch.equal(logits, before)


def test_numbers_are_uniform_over_samples_positions_and_seeds() -> None:
    count = 20_000
    by_sample = uniforms(sample_keys(0, count), [0] * count)
    by_position = uniforms(sample_keys(0, 1) * count, range(count))
    by_seed = uniforms([sample_keys(seed, 1)[0] for seed in range(count)], [0] * count)
    for numbers in (by_sample, by_position, by_seed):
        assert numbers.min() >= 0 and numbers.max() < 1
        counts = np.histogram(numbers, bins=50, range=(0, 1))[0]
        assert chance_of_at_least(counts, np.full(50, 1 / 50)) > 1e-3
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / math.sqrt(count)


def test_samples_have_keys_of_their_own_and_the_first_do_not_depend_on_how_many_there_are() -> None:
    assert len(set(sample_keys(7, 1000) + sample_keys(8, 1000))) == 2000
    assert sample_keys(7, 3) == sample_keys(7, 1000)[:3]
    assert sample_keys(-1, 2) == sample_keys(2**64 - 1, 2)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_without_a_distribution_are_an_error_and_not_token_0(temperature: float) -> None:
    for bad in (float("nan"), float("inf")):
        logits = torch.zeros(2, 5)
        logits[1, 3] = bad
        with pytest.raises(ValueError, match=r"logits to sample from are NaN or infinite.*adapter"):
            draw(logits, [SamplingParams(temperature=temperature)] * 2, [0, 1], np.array([0.5, 0.5]))
