"""Wrappers that put something before the question: an instruction, worked examples."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast, get_args

from gymnasium.envs.registration import EnvSpec

from ...messages import Message, as_reply, assistant, check_messages, system, user
from ..checks import checked_reset, env_attribute, scores_groups
from ..making import make_env, takes_argument
from ..transcript import transcript
from .base import Action, Env, Observation, Step, TextWrapper

Existing = Literal["join", "replace", "keep"]
EXAMPLE_SEEDS = 10_000
"""How many seeds are tried to find enough different examples."""


class _OpeningWrapper(TextWrapper, ABC):
    """Changes the opening messages; the environment goes on to see its own, in `score_group` too.

    `render` in mode "ansi" shows what the agent sees; in mode "human" the environment prints its own messages, after
    those that were added.
    """

    def __init__(self, env: Env, **arguments: Any) -> None:
        super().__init__(env, **arguments)
        self._original: Observation = ()
        self._shown: Observation = ()
        self._conversation: list[Message] = []

    @abstractmethod
    def open_with(self, opening: Observation) -> Observation:
        """The opening messages as the agent is to see them."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._original = copy.deepcopy(observation)
        self._shown = self.open_with(observation)
        self._conversation = list(copy.deepcopy(self._shown))
        return copy.deepcopy(self._shown), info

    def step(self, action: Action) -> Step:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._conversation += copy.deepcopy([as_reply(action), *observation])
        return observation, reward, terminated, truncated, info

    def render(self) -> Any:
        if self.render_mode == "ansi":
            return transcript(self._conversation)
        return self.env.render()

    @property
    def score_group(self) -> Callable[[Sequence[Sequence[Message]]], Any]:
        """Hands the environment the conversations with its own opening."""
        if not scores_groups(self.env):
            raise AttributeError("the environment has no rewards for groups")
        score = env_attribute(self.env, "score_group")
        size = len(self._shown)
        return lambda episodes: score([[*copy.deepcopy(self._original), *episode[size:]] for episode in episodes])


class SystemPrompt(_OpeningWrapper):
    """Puts an instruction first.

    Args:
        env: what to wrap.
        text: the instruction.
        existing: what becomes of a system message that the environment opens with: "join" puts the instruction before
            it, in the same message; "replace" drops it; "keep" leaves it, and does not give the instruction.

    Raises:
        ValueError, TypeError: an argument is none of those.
    """

    def __init__(self, env: Env, text: str, *, existing: Existing = "join") -> None:
        if not isinstance(text, str):
            raise TypeError(f"text is a str, got {text!r:.200}")
        if existing not in get_args(Existing):
            raise ValueError(f"existing is one of {get_args(Existing)}, got {existing!r}")
        super().__init__(env, text=text, existing=existing)
        self.text, self.existing = text, existing

    def open_with(self, opening: Observation) -> Observation:
        if not opening or opening[0]["role"] != "system":
            return (system(self.text), *opening)
        if self.existing == "keep":
            return opening
        if self.existing == "replace":
            return (system(self.text), *opening[1:])
        return (system(f"{self.text}\n\n{opening[0]['content']}"), *opening[1:])


class FewShot(_OpeningWrapper):
    """Puts worked examples between the instruction and the question.

    Args:
        env: what to wrap.
        examples: messages; or how many examples to take from the environment itself, from its training problems if it
            has held-out ones. Then each is a question with `info["reference"]` as its answer, they are the same in
            every process, and the one that is asked right now is left out.

    Raises:
        TypeError, ValueError: they are no messages, or the environment gives none.
    """

    def __init__(self, env: Env, examples: Sequence[Message] | int) -> None:
        if isinstance(examples, bool) or (isinstance(examples, int) and examples < 0):
            raise ValueError(f"examples is a list of messages or a number from 0 up, got {examples!r}")
        given = examples if isinstance(examples, int) else list(check_messages(examples, where="examples"))
        super().__init__(env, examples=given)
        self.examples = given
        # Now, not later: another environment that is made of this one may put its own spec there.
        self._base_spec = copy.deepcopy(env.unwrapped.spec)
        self._drawn: list[tuple[str, str]] = []
        if isinstance(given, int) and self._base_spec is None:
            raise ValueError(
                "examples can only be taken from an environment that gymnasium.make() made; make it so, or pass "
                "messages"
            )

    def open_with(self, opening: Observation) -> Observation:
        first = 1 if opening and opening[0]["role"] == "system" else 0
        return (*opening[:first], *self._for_question(opening), *opening[first:])

    def _for_question(self, opening: Observation) -> list[Message]:
        if not isinstance(self.examples, int):
            return copy.deepcopy(self.examples)
        if self.examples and not self._drawn:
            self._drawn = draw_examples(cast(EnvSpec, self._base_spec), self.examples + 1)
        others = [example for example in self._drawn if example[0] != opening[-1]["content"]]
        return [
            message for question, answer in others[: self.examples] for message in (user(question), assistant(answer))
        ]


def draw_examples(spec: EnvSpec, count: int) -> list[tuple[str, str]]:
    """Different questions and their reference answers, always the same ones; fewer if there are no more.

    Raises:
        ValueError: the environment gives no `info["reference"]`.
    """
    kwargs: dict[str, Any] = {"render_mode": None} if spec.kwargs.get("render_mode") else {}
    if takes_argument(spec.id, "split") and spec.kwargs.get("split", "train") is not None:
        kwargs["split"] = "train"
    env = make_env(spec, kwargs)
    examples: dict[str, str] = {}
    for seed in range(EXAMPLE_SEEDS):
        opening, info = checked_reset(env, seed=seed)
        if not isinstance(info.get("reference"), str):
            raise ValueError(f"{spec.id} gives no info['reference'] to make examples of; pass messages as examples")
        examples.setdefault(opening[-1]["content"], info["reference"])
        if len(examples) >= count:
            break
    env.close()
    return list(examples.items())
