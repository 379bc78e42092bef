"""Distributions of tokens worked out by hand, and whether counts follow them."""

from __future__ import annotations

import numpy as np
import torch
from loragym.agents import SamplingParams


def chance_of_at_least(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Pearson's test: how likely counts this far from the probabilities are, if these are right."""
    possible = probabilities > 0
    assert not counts[~possible].any(), "an impossible token was drawn"
    expected = probabilities[possible] * counts.sum()
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(
        torch.tensor((possible.sum() - 1) / 2, dtype=torch.float64), torch.tensor(statistic / 2)
    ).item()


def truncated_by_hand(probabilities: np.ndarray, params: SamplingParams) -> np.ndarray:
    """top_k, then top_p of what is left: tokens by falling probability until that much is covered."""
    kept = np.zeros_like(probabilities)
    by_rank = sorted(range(len(probabilities)), key=lambda t: -probabilities[t])[: params.top_k or None]
    total, covered = sum(probabilities[t] for t in by_rank), 0.0
    for token in by_rank:
        if covered >= params.top_p:
            break
        kept[token] = probabilities[token]
        covered += probabilities[token] / total
    return kept / kept.sum()
