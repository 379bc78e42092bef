"""Writing down whole episodes, one line of JSON each."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

from ...messages import as_reply
from ..secrets import redacted_texts
from .base import Action, Env, Observation, Step, TextWrapper


class RecordTranscripts(TextWrapper):
    """Appends each episode to a file: a JSON object with everything that was said and what came of it.

    A line has `env` (the id), `seed`, `options`, `messages`, `rewards` (one for each reply), `reward` (their sum),
    `terminated`, `truncated`, `stop_reason`, `metrics` and `info` (of the reset). An episode that was left unfinished,
    by a reset or by closing, has stop reason "abandoned". A line is written at once, so that several environments and
    processes may share a file.

    Args:
        env: what to wrap.
        path: the file; its folder is made if need be.
        every: write one episode in so many.
        unfinished: whether to write episodes that were left unfinished.

    Raises:
        ValueError: `every` is below 1.
    """

    def __init__(self, env: Env, path: str | os.PathLike[str], *, every: int = 1, unfinished: bool = True) -> None:
        if every < 1:
            raise ValueError(f"every is from 1 up, got {every}")
        super().__init__(env, path=str(path), every=every, unfinished=unfinished)
        self.path, self.every, self.unfinished = Path(path), every, unfinished
        self._num_begun = 0
        self._record: dict[str, Any] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        self._abandon()
        observation, info = self.env.reset(seed=seed, options=options)
        spec = self.env.spec
        self._record = {
            "env": None if spec is None else spec.id,
            "seed": seed,
            "options": copy.deepcopy(options),
            "messages": copy.deepcopy(list(observation)),
            "rewards": [],
            "info": copy.deepcopy(info),
        }
        self._num_begun += 1
        return observation, info

    def step(self, action: Action) -> Step:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._record is not None:
            self._record["messages"] += copy.deepcopy([as_reply(action), *observation])
            self._record["rewards"].append(float(reward))
            self._record["metrics"] = dict(info.get("metrics", {}))
            if terminated or truncated:
                stop_reason = info.get("stop_reason", "completed" if terminated else "truncated")
                self._write(terminated=bool(terminated), truncated=bool(truncated), stop_reason=stop_reason)
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        self._abandon()
        super().close()

    def _abandon(self) -> None:
        if self._record is not None and self._record["rewards"] and self.unfinished:
            self._write(terminated=False, truncated=False, stop_reason="abandoned")
        self._record = None

    def _write(self, **ending: Any) -> None:
        record, self._record = self._record, None
        assert record is not None
        if (self._num_begun - 1) % self.every:
            return
        record |= {"reward": sum(record["rewards"]), **ending}
        # ASCII, so that half of a surrogate pair can be written; `repr` for what has no JSON.
        line = json.dumps(redacted_texts(record), default=lambda value: redacted_texts(repr(value))) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # One write to a file opened for appending: lines of several writers do not mix.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, line.encode("ascii"))
        finally:
            os.close(descriptor)
