"""Small worlds that tests play in, on which a random byte-level model earns something from the start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from loragym.envs import Outcome, ProblemEnv, TextEnv
from loragym.messages import Message, Reply, user


def share_of_letters(text: str) -> float:
    return sum(character.isascii() and character.isalpha() for character in text) / max(1, len(text))


class Letters(TextEnv):
    """Rewards the share of letters in each of a few replies; the answers that it teaches are letters alone."""

    def __init__(self, *, turns: int = 1) -> None:
        super().__init__()
        self.turns = turns

    def begin(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        self._heard = 0
        word = "".join(self.np_random.choice(list("abcdef"), size=3))
        return [user(f"Say {word}!")], {"reference": word}

    def respond(self, reply: Reply) -> Outcome:
        self._heard += 1
        share = share_of_letters(reply["content"])
        return Outcome(
            messages=[user("More!")], reward=share, terminated=self._heard == self.turns, metrics={"letters": share}
        )


class Unequal(Letters):
    """Half of its problems pay one more whatever is said, and say so in the question."""

    def begin(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        self._gift = int(self.np_random.integers(2))
        return [user("++++++" if self._gift else "------")], super().begin(options)[1]

    def respond(self, reply: Reply) -> Outcome:
        outcome = super().respond(reply)
        return replace(outcome, reward=outcome.reward + self._gift)


class Untaught(Letters):
    """Gives no answers to learn from."""

    def begin(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        return super().begin(options)[0], {}


class Fixed(ProblemEnv[str]):
    """Wants the same letter every time."""

    def draw_problem(self, rng: np.random.Generator) -> str:
        return "x"

    def question(self, problem: str) -> str:
        return "?"

    def reference_answer(self, problem: str) -> str:
        return problem


class WrongShape(gymnasium.Env[Any, Any]):
    """Answers a reply with the wrong number of things."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return (user("hi"),), {}

    def step(self, action: Any) -> Any:
        return (user("hi"),), 0.0, True


class Explodes(Letters):
    """Raises an exception of its own in the second turn."""

    def respond(self, reply: Reply) -> Outcome:
        if self._heard == 1:
            raise ZeroDivisionError("the world is broken")
        return super().respond(reply)


class Ranked(Letters):
    """Rewards an episode for how many others of its group it is shorter than."""

    def score_group(self, episodes: Sequence[Sequence[Message]]) -> list[float]:
        lengths = [len(messages[1]["content"]) for messages in episodes]
        return [float(sum(other > length for other in lengths)) for length in lengths]


class Miscounts(Letters):
    """Gives one group reward too few."""

    def score_group(self, episodes: Sequence[Sequence[Message]]) -> list[float]:
        return [0.0] * (len(episodes) - 1)


class Surrogates(Letters):
    """Says what has no UTF-8."""

    def begin(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        return [user("half of an emoji: \ud83d and a separator: \u2028")], super().begin(options)[1]


for _world in (Letters, Unequal, Untaught, Fixed, WrongShape, Explodes, Ranked, Miscounts, Surrogates):
    if f"tests/{_world.__name__}-v0" not in gymnasium.registry:
        gymnasium.register(f"tests/{_world.__name__}-v0", entry_point=_world)
