"""Asynchronous play: while a step is learnt, the episodes of the next ones are being played.

The batch of step s is played with the weights before step s - staleness. Which weights those are never depends on
timing, so a run is repeatable, and nothing is ever played in vain: play waits for the update, not the other way round.
What was played ahead is part of a checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import torch

from ..envs.json_files import read_json_object
from ..envs.secrets import redacted_texts
from ..envs.threads import DaemonExecutor
from ..messages import check_messages
from .rollouts import Episode, EpisodeGroup, Sampler, Task, Turn

logger = logging.getLogger(__name__)

QUEUE_FILE = "queue.json"
POLL_SECONDS = 1.0
CLOSING_SECONDS = 30.0


class PlayHangs(RuntimeError):
    """The thread that plays ahead gives no sign of life."""


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """A step's groups.

    Attributes:
        groups: its groups.
        version: number of updates behind the weights that played them.
    """

    groups: list[EpisodeGroup]
    version: int


class Forerunner:
    """Plays up to `staleness` steps ahead, in a thread of its own. It is a `Learner`: its queue is saved with the rest.

    Args:
        play: plays the batch of a step with a sampler.
        snapshot: a sampler of the policy as it is now, and its version.
        staleness: how many steps ahead; 0 plays each step's batch when it is asked for, in the caller's thread.
        total: the step after the last one.
        last_sign: when what plays gave a sign of life last, by `time.monotonic`.
        patience: seconds without one after which play counts as hung; 0 for no limit.
    """

    def __init__(
        self,
        play: Callable[[Sampler, int], list[EpisodeGroup]],
        snapshot: Callable[[], tuple[Sampler, int]],
        *,
        staleness: int,
        total: int,
        last_sign: Callable[[], float] = time.monotonic,
        patience: float = 0.0,
    ) -> None:
        self._play, self._snapshot = play, snapshot
        self.staleness = staleness
        self.total = total
        self._last_sign, self._patience = last_sign, patience
        self._hangs = False
        self.version = 0
        self._batches: dict[int, Future[Batch]] = {}
        threads = torch.get_num_threads()
        # A new thread would otherwise compute with as many threads as the machine has, whatever the run asked for.
        self._thread = DaemonExecutor(1, "loragym play", initializer=lambda: torch.set_num_threads(threads))

    def take(self, number: int) -> Batch:
        """The batch of step `number`, after those that may be played by now have been begun."""
        if not self.staleness:
            return self._played(*self._snapshot(), number)
        # Kept until the next step asks: a step that fails halfway is taken again, with the same batch.
        self._batches = {step: batch for step, batch in self._batches.items() if step >= number}
        for step in range(number, min(number + self.staleness + 1, self.total)):
            if step not in self._batches:
                sampler, version = self._snapshot()
                self._batches[step] = self._thread.submit(self._played, sampler, version, step)
        self._wait_for(self._batches[number])
        return self._batches[number].result()

    def wait(self) -> None:
        """Returns when nothing is being played; raises PlayHangs if that does not come to an end."""
        for batch in self._batches.values():
            self._wait_for(batch)

    def close(self) -> None:
        """Ends the thread; what was not begun is not played, and a thread that does not end soon is left behind."""
        for batch in self._batches.values():
            batch.cancel()
        try:
            self.wait()
        except PlayHangs as error:
            logger.warning("%s; it is left behind", error)
        self._thread.shutdown(cancel_futures=True, timeout=CLOSING_SECONDS)

    def save_state(self, folder: Path) -> None:
        """Writes what was played ahead, which is waited for; of play that failed or hangs there is nothing to write."""
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(PlayHangs):
            self.wait()
        rows = {
            str(step): {"version": batch.result().version, "groups": [_as_json(g) for g in batch.result().groups]}
            for step, batch in self._batches.items()
            if batch.done() and not batch.cancelled() and batch.exception() is None
        }
        (folder / QUEUE_FILE).write_text(json.dumps(rows), encoding="utf-8")

    def load_state(self, folder: Path) -> None:
        """Takes back what `save_state` wrote.

        Raises:
            ValueError: the file is damaged.
        """
        path = folder / QUEUE_FILE
        rows = read_json_object(path, "use another checkpoint")
        try:
            batches = {
                int(step): Batch([_from_json(group) for group in row["groups"]], int(row["version"]))
                for step, row in rows.items()
            }
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); use another checkpoint") from error
        self._batches = {step: _done(batch) for step, batch in batches.items()}

    def zero_grad(self) -> None:
        """It has no gradients."""

    def _wait_for(self, batch: Future[Batch]) -> None:
        """Returns when the batch is over, one way or another; raises PlayHangs if nothing moves any more."""
        began = time.monotonic()
        while not batch.done():
            wait([batch], POLL_SECONDS)
            since = self._last_sign() if self._hangs else max(began, self._last_sign())
            silent = time.monotonic() - since
            if self._patience and silent > self._patience and not batch.done():
                self._hangs = True
                raise PlayHangs(
                    f"the thread that plays ahead has given no sign of life for {silent:.0f} s: an environment or the "
                    "sampling engine is stuck. More time: --episode-timeout and --engine-timeout"
                )

    def _played(self, sampler: Sampler, version: int, step: int) -> Batch:
        return Batch(self._play(sampler, step), version)


def _done(batch: Batch) -> Future[Batch]:
    future: Future[Batch] = Future()
    future.set_result(batch)
    return future


def _as_json(group: EpisodeGroup) -> dict[str, Any]:
    """A group as JSON, less its task's arguments, which are the run's, and less secrets in what was said."""
    return redacted_texts(
        {**dataclasses.asdict(group), "task": [group.task.env_id, group.task.seed, group.task.options]}
    )


def _from_json(row: dict[str, Any]) -> EpisodeGroup:
    env_id, seed, options = row["task"]
    _require("task", type(seed) is int and isinstance(env_id, str) and isinstance(options, dict | None), row["task"])
    _require("errors", _all_of(str, row["errors"]), row["errors"])
    for name in ("num_dropped", "num_retries"):
        _require(name, type(row[name]) is int, row[name])
    episodes = [_episode(episode) for episode in row["episodes"]]
    return EpisodeGroup(
        Task(env_id, {}, seed, options), episodes, row["errors"], row["num_dropped"], row["num_retries"]
    )


def _episode(row: dict[str, Any]) -> Episode:
    episode = Episode(**{**row, "turns": [Turn(**turn) for turn in row["turns"]]})
    for turn in episode.turns:
        _require("prompt", _all_of(int, turn.prompt), turn.prompt)
        _require("tokens", _all_of(int, turn.tokens), turn.tokens)
        _require("logprobs", _all_of((int, float), turn.logprobs), turn.logprobs)
        _require("logprobs", len(turn.logprobs) == len(turn.tokens), len(turn.logprobs))
        _require("reward", _all_of((int, float), [turn.reward]), turn.reward)
    _require("metrics", isinstance(episode.metrics, dict), episode.metrics)
    _require("metrics", _all_of((int, float), list(episode.metrics.values())), episode.metrics)
    _require("group_reward", _all_of((int, float), [episode.group_reward]), episode.group_reward)
    _require("stop_reason", isinstance(episode.stop_reason, str), episode.stop_reason)
    check_messages(episode.messages)
    return episode


def _all_of(kind: type | tuple[type, ...], values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in values)


def _require(name: str, holds: bool, value: Any) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r:.80}")
