"""Conversations to train on: from a JSONL file, or an environment's problems with their reference answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from ..agents import Datum
from ..envs import checked_reset
from ..messages import Message, assistant, check_messages
from ..renderers import Renderer, TrainOn
from .rollouts import sampling_seed

Conversation = tuple[Message, ...]


def read_conversations(path: str | Path) -> list[Conversation]:
    """Reads JSON lines `{"messages": [{"role": ..., "content": ...}, ...]}`, as TRL and the Hugging Face hub have them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not UTF-8, or a line is no conversation; the error names the file, the line and what is
            wrong.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f'{file} is no file; expected JSON lines of {{"messages": [...]}}')
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error})") from error
    conversations = []
    # Not splitlines(): JSON strings may hold other line separators, such as U+2028, as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            conversations.append(check_messages(row["messages"]))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f'{file}, line {number}: expected {{"messages": [{{"role": ..., "content": ...}}]}}, '
                f"got {line[:120]!r} ({type(error).__name__}: {error})"
            ) from error
    if not conversations:
        raise ValueError(f"{file} holds no conversation")
    return conversations


def reference_conversation(env: gymnasium.Env[Any, Any], seed: int) -> Conversation:
    """A problem of the environment answered by its own reference.

    Raises:
        ValueError: the environment gives no reference answers.
    """
    messages, info = checked_reset(env, seed=seed)
    if "reference" not in info:
        raise ValueError(
            f"{env} gives no info['reference'] at reset, so there is no answer to learn from; let the environment give "
            "one, or do without supervised steps"
        )
    return (*messages, assistant(info["reference"]))


def environment_conversations(env_id: str, kwargs: Mapping[str, Any], count: int, seed: int) -> list[Conversation]:
    """`count` problems of an environment with their reference answers."""
    env = gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    conversations = [reference_conversation(env, sampling_seed(seed, i) % 2**31) for i in range(count)]
    env.close()
    return conversations


def supervised_datum(
    conversation: Sequence[Message], renderer: Renderer, *, train_on: TrainOn, max_length: int | None = None
) -> Datum | None:
    """The conversation as a datum, cut at `max_length` tokens; None if nothing that is trained is left."""
    tokens, weights = renderer.build_supervised_example(conversation, train_on=train_on)
    tokens, weights = tokens[:max_length], weights[:max_length]
    return Datum.supervised(tokens, weights) if any(weights[1:]) else None


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `count` examples in an epoch: a function of seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)
