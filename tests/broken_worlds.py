"""Environments that are wrong on purpose, each in one way: what `loragym check` has to find and name.

`Good` is the environment that all of them would be without their mistake. It derives from `gymnasium.Env` alone, for
what `TextEnv` takes care of cannot go wrong there.
"""

from __future__ import annotations

import copy
import random
import threading
import time
from typing import Any, ClassVar

import gymnasium
import numpy as np
from loragym.envs import Messages, Replies, transcript
from loragym.messages import as_reply, assistant, user

TURNS = 3


class Good(gymnasium.Env):
    """Wants the same word three times over."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "human"], "render_fps": 1}

    def __init__(self, *, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space, self.action_space = Messages(), Replies()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.word = self.draw()
        self.turn = 0
        self.said = [user(f"Say {self.word}.")]
        if self.render_mode == "human":
            print("[user] Say something.")
        return self.opening(), self.begun()

    def draw(self) -> str:
        return "".join(self.np_random.choice(list("abcdef"), size=4))

    def opening(self) -> Any:
        return (user(f"Say {self.word}."),)

    def begun(self) -> Any:
        return {"problem": self.word, "reference": self.word}

    def text(self, action: Any) -> str:
        return as_reply(action)["content"]

    def step(self, action: Any) -> Any:
        text = self.text(action)
        self.turn += 1
        self.said += [assistant(text), user("Again.")]
        return self.news(), float(text == self.word), self.turn >= TURNS, False, self.info()

    def news(self) -> Any:
        return (user("Again."),)

    def info(self) -> Any:
        return {"metrics": {"turn": self.turn}}

    def render(self) -> Any:
        return transcript(self.said) if self.render_mode == "ansi" else None


class NotAnEnvironment:
    pass


class FailsInInit(Good):
    def __init__(self, *, render_mode: str | None = None) -> None:
        raise RuntimeError("no licence for the word list")


class NoSpaces(gymnasium.Env):
    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return (user("hi"),), {}


class NoRenderModes(Good):
    metadata: ClassVar[dict[str, Any]] = {}


class OldReset(Good):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed)[0][0]


class NoSeedArgument(Good):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class OldStep(Good):
    def step(self, action: Any) -> Any:
        observation, reward, done, _, info = super().step(action)
        return observation, reward, done, info


class StringObservation(Good):
    def opening(self) -> Any:
        return f"Say {self.word}."


class ListObservation(Good):
    def opening(self) -> Any:
        return [user(self.word)]


class UnknownRole(Good):
    def opening(self) -> Any:
        return ({"role": "human", "content": self.word},)


class NoOpening(Good):
    def opening(self) -> Any:
        return ()


class NotANumber(Good):
    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return observation, float("nan"), *rest


class NumberForFlag(Good):
    def step(self, action: Any) -> Any:
        observation, reward, done, truncated, info = super().step(action)
        return observation, reward, int(done), truncated, info


class NoInfo(Good):
    def begun(self) -> Any:
        return None


class WordMetrics(Good):
    def info(self) -> Any:
        return {"metrics": {"verdict": "good"}}


class OnlyStrings(Good):
    def text(self, action: Any) -> str:
        return action.strip()


class NumbersForActions(Good):
    def __init__(self, *, render_mode: str | None = None) -> None:
        super().__init__(render_mode=render_mode)
        self.action_space = gymnasium.spaces.Discrete(5)


class PlainTextSpace(Good):
    def __init__(self, *, render_mode: str | None = None) -> None:
        super().__init__(render_mode=render_mode)
        self.observation_space = gymnasium.spaces.Text(100)


class NeverSeeded(Good):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.word, self.turn, self.said = "same", 0, []
        return self.opening(), self.begun()


class AlwaysSeededAlike(Good):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=0)


class GlobalDice(Good):
    def draw(self) -> str:
        return str(random.random())


class SeedsEverybody(Good):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            random.seed(seed)
        return super().reset(seed=seed)

    def draw(self) -> str:
        return str(random.random())


class SeedsNumpy(Good):
    def draw(self) -> str:
        np.random.seed(int(self.np_random.integers(1000)))
        return str(np.random.random())


class Clock(Good):
    def draw(self) -> str:
        return str(time.perf_counter_ns())


class HashedWords(Good):
    def draw(self) -> str:
        return str(hash("a word") % 1000 + int(self.np_random.integers(9)))


class Leftovers(Good):
    """What one episode leaves behind shows in the next."""

    heard = 0

    def step(self, action: Any) -> Any:
        self.heard += 1
        return super().step(action)

    def opening(self) -> Any:
        return (user(f"Say {self.word}. I have heard {self.heard} words."),)


class SharedTurn(Good):
    """Counts the turns of all environments together."""

    turns: ClassVar[list[int]] = [0]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.turns[0] = 0
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        self.turns[0] += 1
        _, reward, _, truncated, info = super().step(action)
        return self.news(), reward, self.turns[0] >= TURNS, truncated, info


SPACES = Messages(), Replies()


class SharedSpaces(Good):
    def __init__(self, *, render_mode: str | None = None) -> None:
        super().__init__(render_mode=render_mode)
        self.observation_space, self.action_space = SPACES


class BothFlags(Good):
    def step(self, action: Any) -> Any:
        observation, reward, done, _, info = super().step(action)
        return observation, reward, done, done, info


class Endless(Good):
    def step(self, action: Any) -> Any:
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, False, truncated, info


class StopsTooEarly(Good):
    def info(self) -> Any:
        return {"stop_reason": "completed"}


class SaysNothing(Good):
    def news(self) -> Any:
        return ()


class AnswersItself(Good):
    def news(self) -> Any:
        return user("Again."), assistant("Certainly!")


class KeptObservation(Good):
    """Hands out its own messages, and reads the task from them."""

    def opening(self) -> Any:
        self.asked = user(f"Say {self.word}.")
        return (self.asked,)

    def step(self, action: Any) -> Any:
        _, _, *rest = super().step(action)
        return self.news(), float(self.asked["content"].endswith(f"{self.word}.")), *rest


class KeptInfo(Good):
    """Grades by the info that it handed out."""

    def begun(self) -> Any:
        self.kept = {"reference": self.word}
        return self.kept

    def step(self, action: Any) -> Any:
        _, _, *rest = super().step(action)
        return self.news(), float(self.text(action) == self.kept["reference"]), *rest


class SharedOneMessage(Good):
    """Always the same message object."""

    def __init__(self, *, render_mode: str | None = None) -> None:
        super().__init__(render_mode=render_mode)
        self.again = user("Again.")

    def news(self) -> Any:
        return (self.again,)


class NeedsAWord(Good):
    def text(self, action: Any) -> str:
        text = super().text(action)
        return text and text.split()[0] + text[len(text.split()[0]) :]


class WritesBytes(Good):
    def text(self, action: Any) -> str:
        return super().text(action).encode("utf-8").decode("utf-8")


class Evaluates(Good):
    def text(self, action: Any) -> str:
        text = super().text(action)
        return str(eval(text)) if "(" in text else text


class ReadsNumbers(Good):
    def text(self, action: Any) -> str:
        text = super().text(action)
        return str(int(text)) if text.isdigit() else text


class TrustsToolNames(Good):
    def text(self, action: Any) -> str:
        for call in as_reply(action).get("tool_calls", ()):
            {"search": str}[call["name"]](call["arguments"])
        return super().text(action)


class TakesNoRenderMode(Good):
    def __init__(self) -> None:
        super().__init__()


class RendersNothing(Good):
    def render(self) -> Any:
        return None


class RendersControlCodes(Good):
    def render(self) -> Any:
        return "\n".join(message["content"] for message in self.said) if self.render_mode == "ansi" else None


class PrintsNothing(Good):
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["human"], "render_fps": 1}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        mode, self.render_mode = self.render_mode, None
        result = super().reset(seed=seed)
        self.render_mode = mode
        return result


class IgnoresTheIndex(Good):
    num_problems = 3


class TakesAnyIndex(Good):
    num_problems = 3

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if options and "index" in options:
            self.word = "abc"[options["index"] % 3]
        return self.opening(), self.begun()


class CountsByWords(Good):
    num_problems = "three"


class ForgetsAnEpisode(Good):
    def score_group(self, episodes: Any) -> list[float]:
        return [1.0] * (len(episodes) - 1)


class ToolWithoutSchema(Good):
    tools = ({"name": "search", "description": "Searches."},)


class TwinTools(Good):
    tools = ({"name": "search", "description": "Searches.", "parameters": {"type": "object"}},) * 2


class HasSeedMethod(Good):
    def seed(self, seed: int) -> None:
        pass


class KeepsALambda(Good):
    def __init__(self, *, render_mode: str | None = None) -> None:
        super().__init__(render_mode=render_mode)
        self.grade = lambda text: text == "x"


class LosesItsTurn(Good):
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "word": "lost"}

    def news(self) -> Any:
        return (user(f"Again: {self.word}."),)


class TakesAFunction(Good):
    def __init__(self, *, grade: Any = None, render_mode: str | None = None) -> None:
        super().__init__(render_mode=render_mode)


class NeedsASeed(Good):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed + 0)  # type: ignore[operator]


class MixedInfo(Good):
    """The type of an entry depends on the episode, which a vector cannot put into one array."""

    def begun(self) -> Any:
        return {**super().begun(), "count": 1 if self.word < "c" else "many"}


class Slow(Good):
    def step(self, action: Any) -> Any:
        if len(self.text(action)) > 100_000:
            time.sleep(0.3)
        return super().step(action)


class Copies(Good):
    """Not broken: an environment that hands out copies of what it keeps."""

    def opening(self) -> Any:
        return copy.deepcopy(super().opening())


class HangsInInit(Good):
    def __init__(self, *, render_mode: str | None = None) -> None:
        time.sleep(3600)


class HangsInReset(Good):
    def draw(self) -> str:
        time.sleep(3600)
        return ""


class HangsAfterALongReply(Good):
    def text(self, action: Any) -> str:
        while len(said := super().text(action)) > 10_000:
            time.sleep(0.01)
        return said


class HangsInRender(Good):
    def render(self) -> Any:
        threading.Event().wait(3600)


class Exits(Good):
    def text(self, action: Any) -> str:
        raise SystemExit(3)
