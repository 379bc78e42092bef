"""Teachers: frozen policies on the student's own base, which may know what the student is not told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import gymnasium
import numpy as np

from ..agents import Datum, LoraPolicy
from ..envs import checked_reset
from ..messages import Message, check_messages, system
from ..renderers import Renderer
from .checkpoints import find_adapter
from .rollouts import EnvPool, EpisodeGroup, Task, Turn


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """What a run is told of a teacher."""

    name: str = "teacher"
    """What its figures are called."""
    adapter: str = ""
    """Its adapter, a PEFT folder or a run's directory; empty for the bare base."""
    system: str = ""
    """A system message that it alone reads, before the environment's own."""
    messages: Sequence[Message] = ()
    """Messages that it alone reads, such as worked examples: after the system message, before the problem."""
    hint: str = ""
    """Text that it alone reads, put before the problem's last message; {reference} in it is the problem's answer."""
    env: str = ""
    """Environment whose problems it teaches; empty for the run's."""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of that environment."""
    share: float = 1.0
    """How many of a step's problems are its, in proportion to the other teachers' shares."""

    @classmethod
    def from_json(cls, given: Any) -> TeacherSpec:
        """A teacher as it stands in a config.

        Raises:
            ValueError: it has unknown fields, or its share is not above 0.
            FileNotFoundError: there is no such adapter.
        """
        known = {f.name: f for f in fields(cls)}
        if not isinstance(given, Mapping) or set(given) - set(known):
            raise ValueError(f"a teacher is an object with some of {sorted(known)}; got {given!r:.200}")
        for name, value in given.items():
            kind = {"env_kwargs": Mapping, "share": int | float, "messages": list | tuple}.get(name, str)
            if not isinstance(value, kind):
                raise ValueError(f"a teacher's {name} is {known[name].type}, got {value!r:.80}")
        spec = cls(**given)
        check_messages(spec.messages, where="a teacher's messages")
        if not spec.share > 0:
            raise ValueError(f"a teacher's share is above 0, got {spec.share}")
        if spec.adapter:
            find_adapter(spec.adapter)
        return spec

    @property
    def reads_as_student(self) -> bool:
        """Whether it reads exactly what the student reads."""
        return not (self.system or self.hint or self.messages)


class TeacherView(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A world as a teacher sees it: its opening has the teacher's system message and hint."""

    def __init__(self, env: gymnasium.Env[Any, Any], spec: TeacherSpec) -> None:
        super().__init__(env)
        self._spec = spec

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        opening, info = self.env.reset(seed=seed, options=options)
        told = list(opening)
        if self._spec.hint:
            at = max((i for i, message in enumerate(told) if message["role"] != "assistant"), default=0)
            told[at] = {**told[at], "content": f"{self._hint(info)}\n\n{told[at]['content']}"}
        if self._spec.system and told[0]["role"] == "system":
            told[0] = {**told[0], "content": f"{self._spec.system}\n\n{told[0]['content']}"}
        elif self._spec.system:
            told.insert(0, system(self._spec.system))
        after = int(bool(told) and told[0]["role"] == "system")
        told[after:after] = self._spec.messages
        return tuple(told), info

    def _hint(self, info: Mapping[str, Any]) -> str:
        if "{reference}" not in self._spec.hint:
            return self._spec.hint
        if "reference" not in info:
            raise ValueError(
                f"the teacher {self._spec.name!r} has a hint with {{reference}}, and {self.env} gives no "
                "info['reference'] at reset; give it a hint without"
            )
        return self._spec.hint.replace("{reference}", str(info["reference"]))


class DistillationTeacher:
    """A teacher at work.

    Args:
        spec: what it is.
        policy: its policy.
        renderer: the student's.
        pool: the student's environments.

    Attributes:
        pool: environments as it sees them.
    """

    def __init__(self, spec: TeacherSpec, policy: LoraPolicy, renderer: Renderer, pool: EnvPool) -> None:
        self.spec = spec
        self.policy = policy
        self.pool = pool if spec.reads_as_student else EnvPool(lambda env: TeacherView(env, spec), pool.calls)
        self._renderer = renderer
        self._student_pool = pool

    def teacher_prompts(self, group: EpisodeGroup) -> list[list[list[int]]]:
        """What the teacher reads before each reply of each of the student's episodes."""
        return self._prompts(group, self._student_pool, self.pool)

    def student_prompts(self, group: EpisodeGroup) -> list[list[list[int]]]:
        """What the student reads before each reply of each of the teacher's episodes."""
        return self._prompts(group, self.pool, self._student_pool)

    def _prompts(self, group: EpisodeGroup, own: EnvPool, other: EnvPool) -> list[list[list[int]]]:
        if self.spec.reads_as_student:
            return [[turn.prompt for turn in episode.turns] for episode in group.episodes]
        before, instead = (_opening(pool, group.task) for pool in (own, other))
        found = []
        for episode in group.episodes:
            later = episode.messages[len(before) :]
            starts = [i for i, message in enumerate(later) if message["role"] == "assistant"][: len(episode.turns)]
            found.append([self._renderer.build_generation_prompt([*instead, *later[:start]]) for start in starts])
        return found


def _opening(pool: EnvPool, task: Task) -> Sequence[Message]:
    (env,) = pool.take_all([task])
    options = None if task.options is None else dict(task.options)
    opening, _ = pool.calls.run("an environment's reset", lambda: checked_reset(env, seed=task.seed, options=options))
    pool.give_back(task, env)
    return opening


def reply_datum(prompt: Sequence[int], turn: Turn, advantages: np.ndarray | None = None) -> Datum:
    """A reply's tokens after a prompt, as a datum of which the reply is trained, with advantages `(R,)` or zeros."""
    tokens = [*prompt, *turn.tokens]
    before = len(prompt) - 1  # targets are shifted by one
    zeros = [0.0] * before
    return Datum(
        tokens=tokens[:-1],
        targets=tokens[1:],
        mask=[False] * before + [True] * len(turn.tokens),
        logprobs=[*zeros, *turn.logprobs],
        advantages=[*zeros, *(np.zeros(len(turn.tokens)) if advantages is None else advantages).tolist()],
    )


def soft_target_datum(
    prompt: Sequence[int], tokens: Sequence[int], candidates: np.ndarray, logprobs: np.ndarray
) -> Datum:
    """A reply's tokens after a prompt, to be learnt as distributions over candidates.

    Args:
        prompt: what the student reads.
        tokens: the teacher's reply, `(R,)`.
        candidates: its likeliest tokens at each place, `(R, K)`.
        logprobs: their log-probabilities, `(R, K)`; what is missing to 1 is shared among them in proportion.
    """
    before, size = len(prompt) - 1, candidates.shape[1]
    shares = np.exp(logprobs - logprobs.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return Datum(
        tokens=[*prompt, *tokens][:-1],
        targets=np.concatenate([np.zeros((before, size), dtype=int), candidates]),
        weights=np.concatenate([np.zeros((before, size)), shares]),
    )
