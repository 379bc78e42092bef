"""Conversations to train on: from any data set, or an environment's problems with their reference answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium

from ..agents import Datum
from ..envs import checked_reset, checked_step, env_attribute
from ..envs.datasets import BadData, Source, as_row, load_rows
from ..messages import (
    Message,
    ToolSpec,
    as_reply,
    assistant,
    messages_in_table,
    user,
    without_stop_reason,
)
from ..renderers import LengthLimit, Renderer, TrainOn, build_supervised_examples
from .deadlines import Calls
from .rollouts import sampling_seed

Conversation = tuple[Message, ...]

EXAMPLE_SECONDS = 600.0
"""How long an environment may take for one problem and its solution."""


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation to learn, and how much it counts.

    Attributes:
        messages: the conversation.
        weight: a factor of its tokens' loss.
        tools: those that were offered in it.
    """

    messages: Conversation
    weight: float = 1.0
    tools: tuple[ToolSpec, ...] = ()


def read_conversations(source: Source, *, split: str | None = None, config: str | None = None) -> list[Example]:
    """Reads rows `{"messages": [{"role": ..., "content": ...}, ...]}`, as TRL and the Hugging Face hub have them.

    A row may have a `weight`. Rows of `prompt` and `completion`, texts or messages, are conversations as well.

    Args:
        source, split, config: see `envs.datasets.load_rows`.

    Raises:
        DataNotFound: there is no such file or data set.
        BadData: a row is no conversation; the error names it and says what is wrong.
    """
    where = source if isinstance(source, str | os.PathLike) else "the conversations"
    examples = []
    for number, row in enumerate(load_rows(source, split=split, config=config), 1):
        try:
            examples.append(_example(as_row(row, f"{where}, row {number}")))
        except (ValueError, TypeError, KeyError) as error:
            raise BadData(
                f'{where}, row {number}: expected {{"messages": [{{"role": ..., "content": ...}}]}}, '
                f"got {row!r:.120} ({type(error).__name__}: {error})"
            ) from error
    if not examples:
        raise BadData(f"{where} holds no conversation")
    return examples


def _example(row: Mapping[str, Any]) -> Example:
    if "messages" in row or "completion" not in row:
        messages = messages_in_table(row["messages"])
    else:
        sides = [
            (make(row[name]),) if isinstance(row[name], str) else messages_in_table(row[name], where=name)
            for name, make in (("prompt", user), ("completion", assistant))
        ]
        messages = (*sides[0], *sides[1])
    weight = 1.0 if row.get("weight") is None else float(row["weight"])
    if not 0 <= weight < float("inf"):
        raise ValueError(f"a weight is a number of at least 0, got {weight}")
    return Example(messages, weight)


def reference_example(env: gymnasium.Env[Any, Any], seed: int) -> Example:
    """A problem of the environment solved by its own solution, or answered by its own reference.

    A solution is the environment's method `solution()`: after a reset the replies that solve the problem, one a turn.
    The messages say which of them are trained: the replies, and not what stood in the opening.

    Raises:
        ValueError: the environment gives neither solutions nor reference answers, or its solution does not end.
    """
    opening, info = checked_reset(env, seed=seed)
    conversation: list[Message] = [{**message, "trainable": False} for message in opening]
    replies = _solution(env)
    if replies is None:
        if "reference" not in info:
            raise ValueError(
                f"{env} gives no info['reference'] at reset and has no solution(), so there is no answer to learn "
                "from; let the environment give one, or do without supervised steps"
            )
        conversation.append({**assistant(info["reference"]), "trainable": True})
        return Example(tuple(conversation))
    for reply in replies:
        news, _, terminated, truncated, _ = checked_step(env, as_reply({**reply, "stop_reason": "stop"}))
        conversation.append({**without_stop_reason(reply), "trainable": True})
        conversation += [{**message, "trainable": False} for message in news]
        if terminated or truncated:
            return Example(tuple(conversation), tools=tuple(env_attribute(env, "tools", ())))
    raise ValueError(f"{env}: its solution() of {len(conversation)} messages does not end the episode")


def _solution(env: gymnasium.Env[Any, Any]) -> list[Message] | None:
    solution = env_attribute(env, "solution")
    if solution is None:
        return None
    try:
        found: list[Message] = solution()
    except NotImplementedError:
        return None
    return found


def environment_examples(env_id: str, kwargs: Mapping[str, Any], count: int, seed: int) -> list[Example]:
    """`count` problems of an environment, solved.

    Raises:
        ValueError: see `reference_example`.
        Hangs: a problem takes longer than `EXAMPLE_SECONDS`.
    """
    calls = Calls(EXAMPLE_SECONDS)
    env = gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    what = f"a problem of {env_id} and its solution"
    seeds = [sampling_seed(seed, i) % 2**31 for i in range(count)]
    examples = [calls.run(what, partial(reference_example, env, each)) for each in seeds]
    calls.run(f"closing {env_id}", env.close)
    calls.close()
    return examples


def supervised_datums(example: Example, renderer: Renderer, *, train_on: TrainOn, limit: LengthLimit) -> list[Datum]:
    """A conversation as datums: one, or one a turn where the renderer rewrites the past; without those left out.

    Args:
        example: the conversation.
        renderer: turns it into tokens.
        train_on: which messages are trained.
        limit: cuts what is too long, and counts.
    """
    datums = []
    for built in build_supervised_examples(renderer, example.messages, example.tools, train_on):
        kept = limit(built)
        if kept is not None and example.weight and any(kept.weights[1:]):
            datums.append(Datum.supervised(kept.tokens, [weight * example.weight for weight in kept.weights]))
    return datums
