"""The two classes that text environments are made from: `TextEnv`, a conversation, and `ProblemEnv`, one question.

They keep the book-keeping (order of calls, fresh observations, the transcript, `info`), so that an author writes only
what is peculiar to the task. A class that derives from `gymnasium.Env` directly and uses the same spaces is as welcome.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from ..messages import Message, Reply, ToolSpec, as_reply, check_messages, copied, system, user
from .spaces import Messages, Replies
from .transcript import transcript

ProblemT = TypeVar("ProblemT")


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What the world answers to one reply: `TextEnv.respond` returns it, `TextEnv.step` unpacks it.

    Attributes:
        messages: what the agent is told next.
        reward: for this reply alone.
        terminated: the task is over, by its own rules.
        truncated: the task was broken off, as at a turn limit.
        stop_reason: why the episode ended; by default "completed" or "truncated".
        metrics: numbers about the episode so far; a trainer averages those of the last step over episodes.
        info: anything else for `info`.
    """

    messages: Sequence[Message] = ()
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    stop_reason: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupScore:
    """What `TextEnv.score_group` gives where there is more to tell than rewards.

    Attributes:
        rewards: one number per episode, added to its other rewards.
        metrics: as in `Outcome`, one mapping per episode; empty if there is nothing to tell.
    """

    rewards: Sequence[float]
    metrics: Sequence[Mapping[str, float]] = ()


class TextEnv(gymnasium.Env[tuple[Message, ...], Reply | str], ABC):
    """A conversation between a world and an agent, as a Gymnasium environment.

    An author writes `begin` and `respond`, and draws all randomness from `self.np_random`. The observation is a tuple
    of the messages that are new since the agent last spoke; the action is what the agent says, a plain `str` standing
    for a finished reply. `info["metrics"]` comes with every step, `info["stop_reason"]` with the last one.

    Attributes:
        tools: what the agent may call; empty for most tasks.
        reset_options: the keys that `reset(options=...)` takes besides "index".

    Args:
        render_mode: "ansi" (`render` returns the transcript), "human" (messages are printed as they come) or None.
    """

    # Gymnasium declares `metadata` an instance variable, so it cannot become a ClassVar here.
    metadata: dict[str, Any] = {"render_modes": ["ansi", "human"], "render_fps": 1}  # noqa: RUF012
    tools: tuple[ToolSpec, ...] = ()
    reset_options: tuple[str, ...] = ()

    def __init__(self, *, render_mode: str | None = None) -> None:
        if render_mode not in (*self.metadata["render_modes"], None):
            raise ValueError(f"render_mode is one of {self.metadata['render_modes']} or None, got {render_mode!r}")
        self.render_mode = render_mode
        self.observation_space = Messages()
        self.action_space = Replies()
        self._respond = f"{type(self).__name__}.respond()"
        self._conversation: list[Message] = []
        self._num_printed = 0
        self._awaits_reply = False

    @abstractmethod
    def begin(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        """Starts an episode: the opening messages and `info`. The random generator is seeded, `options` are checked."""

    @abstractmethod
    def respond(self, reply: Reply) -> Outcome:
        """Goes on after the agent's `reply`, whose content is any text at all."""

    @property
    def num_problems(self) -> int | None:
        """How many numbered problems `reset(options={"index": i})` picks from; None if they are not numbered."""
        return None

    def score_group(self, episodes: Sequence[Sequence[Message]]) -> list[float] | GroupScore | None:
        """Rewards that need several attempts at the same problem side by side, such as pairwise preferences.

        It is called on an environment that was reset to the problem, with the same seed and options as the attempts.

        Args:
            episodes: the whole conversation of each attempt, all begun from the same seed or index.

        Returns:
            One number per episode, added to its other rewards, or those with metrics; None (the default) if the task
            has no such rewards.
        """
        return None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[Message, ...], dict[str, Any]]:
        """Starts an episode; the same `seed` always gives the same one.

        Raises:
            ValueError: an option is unknown, or the index is not one of a problem.
        """
        super().reset(seed=seed)
        messages, info = self.begin(self._checked_options(options or {}))
        opening = check_messages(messages, where=f"{type(self).__name__}.begin()")
        self._conversation = list(opening)
        self._num_printed = 0
        self._awaits_reply = True
        if self.render_mode == "human":
            self._print_unseen()
        return copied(opening), dict(info)

    def step(self, action: Reply | str) -> tuple[tuple[Message, ...], float, bool, bool, dict[str, Any]]:
        """Says `action` and hears the answer.

        Raises:
            ResetNeeded: no episode is going on.
            TypeError, ValueError: `action` is not a reply.
        """
        if not self._awaits_reply:
            raise ResetNeeded(f"{type(self).__name__}: step() was called with no episode going on; call reset() first")
        reply = as_reply(action)
        outcome = self.respond(reply)
        terminated, truncated = bool(outcome.terminated), bool(outcome.truncated)
        news = check_messages(outcome.messages, where=self._respond)
        self._conversation += (reply, *news)
        self._awaits_reply = not (terminated or truncated)
        if self.render_mode == "human":
            self._print_unseen()
        info = {**outcome.info, "metrics": {name: float(value) for name, value in outcome.metrics.items()}}
        if not self._awaits_reply:
            info["stop_reason"] = outcome.stop_reason or ("completed" if terminated else "truncated")
        return copied(news), float(outcome.reward), terminated, truncated, info

    def render(self) -> str | None:
        """The transcript so far in mode "ansi"; mode "human" prints what it has not printed yet."""
        if self.render_mode == "human":
            self._print_unseen()
        return transcript(self._conversation) if self.render_mode == "ansi" else None

    def _print_unseen(self) -> None:
        if unseen := self._conversation[self._num_printed :]:
            encoding = sys.stdout.encoding or "utf-8"
            print(transcript(unseen).encode(encoding, "backslashreplace").decode(encoding))
            self._num_printed = len(self._conversation)

    def _checked_options(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        allowed = ("index", *self.reset_options)
        if unknown := [key for key in options if key not in allowed]:
            raise ValueError(f"{type(self).__name__}.reset: unknown options {unknown}; the known ones are {allowed}")
        if "index" not in options:
            return options
        index, count = options["index"], self.num_problems
        if count is None:
            raise ValueError(f"{type(self).__name__} has no list of problems to take an index of; use reset(seed=...)")
        if isinstance(index, bool) or not isinstance(index, int | np.integer) or not 0 <= index < count:
            raise ValueError(f"{type(self).__name__}.reset: index is an int from 0 to {count - 1}, got {index!r}")
        return {**options, "index": int(index)}


class ProblemEnv(TextEnv, Generic[ProblemT]):
    """One question, one graded answer.

    An author writes `question`, `reference_answer` and either `draw_problem` (problems made up at random) or
    `num_problems` and `problem_at` (rows of a data set); then, where the defaults do not serve, `is_correct` and
    `is_well_formed`. A problem may be any object.

    The reward is `correct + format_coef * (format - 1)`, where `format` is 1 if the answer is well formed and the reply
    finished by itself. So the rewards are 1 (right), 0.9 (right, badly put), 0 (wrong) and -0.1 (wrong, badly put).
    `reset` gives `info["problem"]` (the question) and `info["reference"]`; `step` gives the metrics `correct` and
    `format`.

    Args:
        system_prompt: an instruction that goes before everything else.
        few_shot: messages that go before the question, such as worked examples.
        format_coef: what bad form costs.
        render_mode: see `TextEnv`.
    """

    def __init__(
        self,
        *,
        system_prompt: str | None = None,
        few_shot: Sequence[Message] = (),
        format_coef: float = 0.1,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(render_mode=render_mode)
        instruction = () if system_prompt is None else (system(system_prompt),)
        self._prefix = check_messages((*instruction, *check_messages(few_shot, where="few_shot")))
        self.format_coef = format_coef

    def draw_problem(self, rng: np.random.Generator) -> ProblemT:
        """A problem at random; by default a row of the data set."""
        if self.num_problems is None:
            raise NotImplementedError(
                f"{type(self).__name__}: write draw_problem(rng), or num_problems and problem_at(index)"
            )
        return self.problem_at(int(rng.integers(self.num_problems)))

    def problem_at(self, index: int) -> ProblemT:
        """The problem in row `index`, 0 <= index < `num_problems`."""
        raise NotImplementedError(f"{type(self).__name__}: num_problems is given, so write problem_at(index) as well")

    @abstractmethod
    def question(self, problem: ProblemT) -> str:
        """What the agent is asked."""

    @abstractmethod
    def reference_answer(self, problem: ProblemT) -> str:
        """An answer that `is_correct` accepts: shown in logs, and taught in a supervised warm-up."""

    def is_correct(self, problem: ProblemT, answer: str) -> bool:
        """Whether `answer`, which is any text at all, solves the problem; by default: is it the reference answer?"""
        return answer.strip() == self.reference_answer(problem).strip()

    def is_well_formed(self, answer: str) -> bool:
        """Whether `answer` has the form that was asked for, right or wrong; by default: always."""
        return True

    def begin(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        index = options.get("index")
        self._problem = self.draw_problem(self.np_random) if index is None else self.problem_at(index)
        question = self.question(self._problem)
        info = {"problem": question, "reference": self.reference_answer(self._problem)}
        return (*self._prefix, user(question)), info

    def respond(self, reply: Reply) -> Outcome:
        answer, finished = reply["content"], reply["stop_reason"] == "stop"
        correct = float(self.is_correct(self._problem, answer))
        well_formed = float(finished and self.is_well_formed(answer))
        return Outcome(
            reward=correct + self.format_coef * (well_formed - 1),
            terminated=True,
            stop_reason="completed" if finished else reply["stop_reason"],
            metrics={"correct": correct, "format": well_formed},
        )
