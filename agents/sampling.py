"""What to sample and what came of it: parameters, completions, and the draw of a token from logits.

The draw is a pure function of the logits and one uniform number, and that number a pure function of (seed, sample,
position). So a request gives the same tokens alone and in any batch.

Suffixes: `U` rows of logits, `S` samples, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from . import kernels
from .logprobs import log_normalizer, row_chunks, tempered

DRAW_BLOCK = 512
"""Vocabulary entries whose probability is added up at once before the drawn block is looked at closely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to sample.

    Attributes:
        max_tokens: at most so many new tokens.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw from the k likeliest tokens only; 0 from all.
        top_p: draw from the smallest set of tokens that has this much probability.
        stop: token ids, or strings, that end the sample and belong to it; None is the model's own end tokens.
        seed: of this request; None takes a fresh one.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[int, ...] | tuple[str, ...] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is at least 1, got {self.max_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is a finite number from 0 up, got {self.temperature}")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"top_k is from 0 up and top_p in (0, 1], got {self.top_k} and {self.top_p}")
        if isinstance(self.stop, str):
            raise ValueError(f"stop is a tuple of strings or of token ids, got the string {self.stop!r}")
        if self.stop is not None:
            object.__setattr__(self, "stop", tuple(self.stop))
            if len({type(s) for s in self.stop}) > 1 or not all(isinstance(s, int) or s for s in self.stop):
                raise ValueError(f"stop is all token ids or all non-empty strings, got {self.stop!r}")


@dataclass(frozen=True, slots=True)
class Completion:
    """One sample.

    Attributes:
        tokens: what was sampled, the stop included.
        logprobs: each token's log-probability under the distribution that it was drawn from (temperature, top-k and
            top-p included; 0 for greedy).
        stop_reason: `stop` if a stop ended it, `length` if the token limit or the context did.
    """

    tokens: list[int]
    logprobs: list[float]
    stop_reason: Literal["stop", "length"]


_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def mix64(values: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele et al. 2014) over `uint64`."""
    with np.errstate(over="ignore"):
        z = values + _MIX[0]
        z = (z ^ (z >> np.uint64(30))) * _MIX[1]
        z = (z ^ (z >> np.uint64(27))) * _MIX[2]
        return z ^ (z >> np.uint64(31))


def sample_keys(seed: int, n: int) -> list[int]:
    """The `n` samples' own 64-bit keys under one seed."""
    with np.errstate(over="ignore"):
        mixed = mix64(np.array([seed % 2**64], dtype=np.uint64))
        return [int(key) for key in mix64(mixed + np.arange(n, dtype=np.uint64) * _MIX[0])]


def uniforms(keys_S: Sequence[int], positions_S: Sequence[int]) -> np.ndarray:
    """One number in [0, 1) for each (key, position), float64."""
    with np.errstate(over="ignore"):
        state = np.asarray(keys_S, dtype=np.uint64) + np.asarray(positions_S, dtype=np.uint64) * _MIX[0]
    return (mix64(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(
    logits_UV: torch.Tensor, params_U: Sequence[SamplingParams], row_S: Sequence[int], uniform_S: np.ndarray
) -> tuple[list[int], list[float]]:
    """Draws one token for each sample by inverting the distribution function of its row.

    Args:
        logits_UV: rows of logits.
        params_U: each row's parameters (only temperature, top_k and top_p count).
        row_S: each sample's row.
        uniform_S: each sample's number in [0, 1).

    Returns:
        Tokens and their log-probabilities under the distribution drawn from.

    Raises:
        ValueError: logits are NaN or infinite, so that there is no distribution to draw from.
    """
    device, V = logits_UV.device, logits_UV.shape[1]
    rows_S = torch.as_tensor(np.asarray(row_S), device=device)
    greedy_U = [p.temperature == 0 for p in params_U]
    if all(greedy_U):
        _check_finite(logits_UV.amax(-1))
        return _likeliest(logits_UV)[rows_S].tolist(), [0.0] * len(row_S)
    truncating = any(p.temperature and (p.top_k or p.top_p < 1) for p in params_U)
    wide = torch.promote_types(logits_UV.dtype, torch.float32)
    divisors_U = torch.as_tensor([p.temperature or 1.0 for p in params_U], dtype=wide, device=device)
    scaled_UV = tempered(logits_UV, divisors_U) if truncating else None
    if scaled_UV is not None:
        for row, params in enumerate(params_U):
            if params.temperature and (params.top_k or params.top_p < 1):
                scaled_UV[row] = truncated(scaled_UV[row], params.top_k, params.top_p)
    lse_U, by_block = _normalized(logits_UV, divisors_U, scaled_UV)
    _check_finite(lse_U)
    if scaled_UV is None and not any(greedy_U) and kernels.usable(logits_UV):
        places_S = np.asarray(row_S, dtype=np.int64)
        return kernels.draw(logits_UV, divisors_U, lse_U, by_block, places_S, uniform_S, DRAW_BLOCK)
    by_block = by_block.double().cumsum(-1)
    goal_S = torch.as_tensor(uniform_S, device=device) * by_block[rows_S, -1]
    block_S = (by_block[rows_S] <= goal_S[:, None]).sum(-1).clamp(max=by_block.shape[1] - 1)
    before_S = torch.where(block_S > 0, by_block[rows_S, (block_S - 1).clamp(min=0)], 0.0)
    share_S = (goal_S - before_S) / (by_block[rows_S, block_S] - before_S)
    at_SD = block_S[:, None] * DRAW_BLOCK + torch.arange(DRAW_BLOCK, device=device)
    inside_SD = (logits_UV if scaled_UV is None else scaled_UV)[rows_S[:, None], at_SD.clamp(max=V - 1)]
    if scaled_UV is None:
        inside_SD = tempered(inside_SD, divisors_U[rows_S])
    logprob_SD = (inside_SD - lse_U[rows_S, None]).masked_fill_(at_SD >= V, -torch.inf)
    inside_SD = logprob_SD.exp().double().cumsum(-1)
    # The last entry with any probability bounds the choice, should rounding push the goal past the end.
    last_S = (inside_SD < inside_SD[:, -1:]).sum(-1)
    offset_S = torch.minimum((inside_SD <= (share_S * inside_SD[:, -1])[:, None]).sum(-1), last_S)
    tokens_S = block_S * DRAW_BLOCK + offset_S
    logprobs_S = logprob_SD.gather(-1, offset_S[:, None])[:, 0].double()
    if any(greedy_U):
        greedy_S = torch.as_tensor(greedy_U, device=device)[rows_S]
        tokens_S = torch.where(greedy_S, _likeliest(logits_UV)[rows_S], tokens_S)
        logprobs_S = logprobs_S.masked_fill(greedy_S, 0.0)
    return tokens_S.tolist(), logprobs_S.tolist()


def _normalized(
    logits_UV: torch.Tensor, divisors_U: torch.Tensor, scaled_UV: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's normaliser, and the probability of its blocks; of `scaled_UV` where that is not just the quotient."""
    if scaled_UV is None and kernels.usable(logits_UV):
        lse_U, by_block = kernels.normalizers(logits_UV, divisors_U, DRAW_BLOCK)
        assert by_block is not None
        return lse_U, by_block
    blocks = -(-logits_UV.shape[1] // DRAW_BLOCK)
    lse_U, by_block = torch.empty_like(divisors_U), divisors_U.new_empty(len(logits_UV), blocks)
    for rows in row_chunks(logits_UV):
        scaled = tempered(logits_UV[rows], divisors_U[rows]) if scaled_UV is None else scaled_UV[rows]
        lse_U[rows] = log_normalizer(scaled)
        by_block[rows] = _blocks(torch.softmax(scaled, -1)).sum(-1)
    return lse_U, by_block


def _likeliest(logits_UV: torch.Tensor) -> torch.Tensor:
    """The first of the largest entries of each row; quicker on a CPU than `argmax` over all of it."""
    blocks = _blocks(logits_UV, -torch.inf)
    block_U = blocks.amax(-1).argmax(-1)
    return block_U * DRAW_BLOCK + blocks[torch.arange(len(blocks), device=blocks.device), block_U].argmax(-1)


def _blocks(values_UV: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
    """`(U, blocks, DRAW_BLOCK)`, filled up at the end."""
    if lacking := -values_UV.shape[1] % DRAW_BLOCK:
        values_UV = torch.nn.functional.pad(values_UV, (0, lacking), value=fill)
    return values_UV.view(len(values_UV), -1, DRAW_BLOCK)


def _check_finite(values_U: torch.Tensor) -> None:
    if not torch.isfinite(values_U).all():
        raise ValueError(
            "the logits to sample from are NaN or infinite: look at the adapter's last updates (learning rate, "
            "gradient norm), or at a temperature too close to 0 (0 itself is greedy)"
        )


def truncated(scaled_V: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """-inf for all tokens but the `top_k` likeliest, and of these the fewest that hold `top_p` of the probability."""
    kept = torch.full_like(scaled_V, float("-inf"))
    values, tokens = scaled_V.sort(descending=True, stable=True)
    if top_k:
        values, tokens = values[:top_k], tokens[:top_k]
    if top_p < 1:
        before = values.softmax(-1).cumsum(-1) - values.softmax(-1)
        count = max(1, int((before < top_p).sum()))
        values, tokens = values[:count], tokens[:count]
    kept[tokens] = values
    return kept
