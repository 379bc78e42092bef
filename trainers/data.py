"""From episodes to training data: advantages, datums and the figures of a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..agents import Datum
from .advantages import group_advantages, is_constant
from .rollouts import Episode, EpisodeGroup, Turn


def episode_datums(episode: Episode, advantage: float) -> list[Datum]:
    """An episode's sampled tokens with their advantage.

    One datum as long as each prompt begins with the tokens before it; another starts where a renderer rewrote the past.
    """
    datums: list[Datum] = []
    run: list[Turn] = []
    for turn in episode.turns:
        before = [*run[-1].prompt, *run[-1].tokens] if run else []
        if turn.prompt[: len(before)] != before:
            datums.append(_datum(run, advantage))
            run = []
        run.append(turn)
    if run:
        datums.append(_datum(run, advantage))
    return datums


def _datum(turns: Sequence[Turn], advantage: float) -> Datum:
    tokens = [*turns[-1].prompt, *turns[-1].tokens]
    mask, logprobs = [False] * len(tokens), [0.0] * len(tokens)
    for turn in turns:
        start, stop = len(turn.prompt), len(turn.prompt) + len(turn.tokens)
        mask[start:stop] = [True] * len(turn.tokens)
        logprobs[start:stop] = turn.logprobs
    return Datum(
        tokens=tokens[:-1],
        targets=tokens[1:],
        logprobs=logprobs[1:],
        advantages=[advantage if trained else 0.0 for trained in mask[1:]],
        mask=mask[1:],
    )


def batch_size(data: Sequence[Datum], normalization: str) -> float:
    """What a batch's loss is divided by under a normalisation: its trained tokens, its datums that have any, or 1."""
    lengths = [len(datum.trained) for datum in data]
    return float({"token": sum(lengths), "sequence": sum(n > 0 for n in lengths), "sum": 1}[normalization])


def whole_size(sizes: Sequence[float], normalization: str) -> float:
    """The `batch_size` of a batch from those of its parts."""
    return 1.0 if normalization == "sum" else sum(sizes)


def training_data(groups: Sequence[EpisodeGroup], baseline: str = "mean") -> tuple[list[Datum], dict[str, float]]:
    """Datums of all groups whose rewards differ; constant groups are dropped and counted."""
    datums: list[Datum] = []
    dropped = 0
    for group in groups:
        if is_constant(group.rewards):
            dropped += 1
            continue
        for episode, advantage in zip(group.episodes, group_advantages(group.rewards, baseline), strict=True):
            datums += episode_datums(episode, advantage)
    return datums, {"groups/dropped": float(dropped)}


def episode_metrics(groups: Sequence[EpisodeGroup]) -> dict[str, float]:
    """Means over episodes, shares of stop reasons, and how many groups are mixed, all good or all bad.

    Raises:
        RuntimeError: no episode came to an end.
    """
    retried, dropped = (sum(getattr(group, n) for group in groups) for n in ("num_retries", "num_dropped"))
    failures = {"errors/retried": float(retried), "errors/dropped": float(dropped)} if retried or dropped else {}
    errors = [error for group in groups for error in group.errors]
    if hung := sum(error.startswith("Hangs: ") for error in errors):
        failures["errors/hung"] = float(hung)
    groups = [group for group in groups if group.episodes]
    if not groups and not errors:
        raise RuntimeError("there is no episode to learn from: no group has come about")
    if not groups:
        raise RuntimeError(f"every episode ended with an error, {len(errors)} in all; the first: {errors[0]}")
    episodes = [episode for group in groups for episode in group.episodes]
    turns = [turn for episode in episodes for turn in episode.turns]
    logprobs = np.concatenate([np.asarray(turn.logprobs) for turn in turns])
    metrics = {
        "reward": float(np.mean([episode.reward for episode in episodes])),
        "entropy": float(-logprobs.mean()),
        "episodes": float(len(episodes)),
        "turns_per_episode": len(turns) / len(episodes),
        "tokens_per_reply": len(logprobs) / len(turns),
        "sampled_tokens": float(len(logprobs)),
    }
    for name in sorted({name for episode in episodes for name in episode.metrics}):
        values = [episode.metrics[name] for episode in episodes if name in episode.metrics]
        metrics[f"env/{name}"] = float(np.mean(values))
    for reason, count in sorted(Counter(episode.stop_reason for episode in episodes).items()):
        metrics[f"stop/{reason}"] = count / len(episodes)
    constant = [group for group in groups if is_constant(group.rewards)]
    good = sum(group.rewards[0] >= 0.5 for group in constant)
    metrics["groups/all_good"] = good / len(groups)
    metrics["groups/all_bad"] = (len(constant) - good) / len(groups)
    metrics["groups/mixed"] = 1 - len(constant) / len(groups)
    return metrics | failures


def agreement_metrics(data: Sequence[Datum], logprobs: Sequence[np.ndarray]) -> dict[str, float]:
    """How far the learner's distribution is from the sampler's on the sampled tokens.

    `kl_v1` is mean(q - p), `kl_v2` mean((q - p)^2) / 2, with q the sampler's and p the learner's log-probabilities; the
    ratio exp(p - q) is given raw, and `effective_samples` is (sum r)^2 / (n sum r^2).
    """
    difference = np.concatenate(
        [np.asarray(datum.logprobs)[datum.trained] - p[datum.trained] for datum, p in zip(data, logprobs, strict=True)]
    )
    ratio = np.exp(-difference)
    return {
        "kl_v1": float(difference.mean()),
        "kl_v2": float((difference**2).mean() / 2),
        "ratio_min": float(ratio.min()),
        "ratio_mean": float(ratio.mean()),
        "ratio_max": float(ratio.max()),
        "effective_samples": float(ratio.sum() ** 2 / (len(ratio) * (ratio**2).sum())),
    }
