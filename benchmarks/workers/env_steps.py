"""Plays guess-the-number as fast as it goes, in the interpreter that has the contestant: `env_steps.py CONTESTANT`.

It answers "ready" with the contestant's version, then each line of input, a number of seconds, with a line
"STEPS SECONDS EPISODES". All play the same game (1 to 1023, ten guesses) with the same guesses, written as each of them
wants them, and none has a guess that is no guess. Only the first reset is seeded; starting the next episode is part of
the work. A vector's step counts for each of its 16 environments.
"""

from __future__ import annotations

import importlib.metadata
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

LOW, HIGH, TURNS, COUNT = 1, 1023, 10, 16
GUESSES = [(number * 389) % HIGH + LOW for number in range(240)]

Burst = Callable[[int], int]
"""Makes so many steps, and tells how many episodes came to an end."""


Contestant = tuple[str, Burst, int]
"""The package whose version is told, a burst, and how many environments each of its steps is of."""


def single(env: Any, actions: Sequence[Any]) -> Burst:
    env.reset(seed=0)

    def burst(steps: int) -> int:
        step, reset, episodes = env.step, env.reset, 0
        for number in range(steps):
            _, _, terminated, truncated, _ = step(actions[number % 240])
            if terminated or truncated:
                reset()
                episodes += 1
        return episodes

    return burst


def vector(envs: Any, actions: Sequence[Any]) -> Burst:
    envs.reset(seed=0)
    batches = [[actions[(start + 13 * index) % 240] for index in range(COUNT)] for start in range(240)]

    def burst(steps: int) -> int:
        episodes = 0
        for number in range(steps):
            _, _, terminations, truncations, _ = envs.step(batches[number % 240])
            episodes += int((terminations | truncations).sum())
        return episodes

    return burst


def bare_class() -> Any:
    import gymnasium

    class Bare(gymnasium.Env):
        """The game with integers and nothing else: what the API itself allows."""

        observation_space = gymnasium.spaces.Discrete(3)
        action_space = gymnasium.spaces.Discrete(HIGH + 1)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict]:
            super().reset(seed=seed)
            self.secret = int(self.np_random.integers(LOW, HIGH + 1))
            self.turns = 0
            return 0, {}

        def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
            self.turns += 1
            found = action == self.secret
            return 1 + (action > self.secret), float(found), found, self.turns >= TURNS, {}

    return Bare


def bare() -> Contestant:
    return "gymnasium", single(bare_class()(), GUESSES), 1


def bare_vector() -> Contestant:
    from gymnasium.vector import AutoresetMode, SyncVectorEnv

    envs = SyncVectorEnv([bare_class()] * COUNT, autoreset_mode=AutoresetMode.SAME_STEP)
    return "gymnasium", vector(envs, GUESSES), COUNT


OURS = {"low": LOW, "high": HIGH, "max_turns": TURNS, "split": None}


def ours_made(**kwargs: Any) -> Any:
    import gymnasium
    import loragym.envs  # noqa: F401

    return gymnasium.make("loragym/GuessNumber-v0", **OURS, **kwargs)


def ours_actions() -> list[str]:
    return [f"Guess: {guess}" for guess in GUESSES]


def ours() -> Contestant:
    return "", single(ours_made().unwrapped, ours_actions()), 1


def ours_through_make() -> Contestant:
    return "", single(ours_made(), ours_actions()), 1


def ours_in_turn() -> Contestant:
    """16 one after the other, as `trainers.collect` plays them."""
    actions = ours_actions()
    envs = [ours_made().unwrapped for _ in range(COUNT)]
    for env in envs:
        env.reset(seed=0)

    def burst(steps: int) -> int:
        episodes = 0
        for number in range(steps):
            for index, env in enumerate(envs):
                _, _, terminated, truncated, _ = env.step(actions[(number + 13 * index) % 240])
                if terminated or truncated:
                    env.reset()
                    episodes += 1
        return episodes

    return "", burst, COUNT


def ours_vector(asynchronous: bool) -> Contestant:
    from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

    make = partial(ours_made, disable_env_checker=True)
    mode = AutoresetMode.SAME_STEP
    envs: Any
    if asynchronous:
        envs = AsyncVectorEnv([make] * COUNT, shared_memory=False, autoreset_mode=mode)
    else:
        envs = SyncVectorEnv([make] * COUNT, autoreset_mode=mode)
    return "", vector(envs, ours_actions()), COUNT


GEM = {"min_number": LOW, "max_number": HIGH, "max_turns": TURNS}


def gem_actions() -> list[str]:
    return [f"\\boxed{{{guess}}}" for guess in GUESSES]


def gem() -> Contestant:
    from gem.envs.game_env.guess_the_number import GuessTheNumberEnv

    return "gem-llm", single(GuessTheNumberEnv(**GEM), gem_actions()), 1


def gem_vector(asynchronous: bool) -> Contestant:
    from gem.envs.game_env.guess_the_number import GuessTheNumberEnv
    from gem.vector.async_vector_env import AsyncVectorEnv
    from gem.vector.sync_vector_env import SyncVectorEnv

    kind = AsyncVectorEnv if asynchronous else SyncVectorEnv
    envs = kind(env_ids=["guess"] * COUNT, env_fns=[partial(GuessTheNumberEnv, **GEM)] * COUNT)
    return "gem-llm", vector(envs, gem_actions()), COUNT


def text_arena(count: int = 1, raw: bool = False) -> Contestant:
    """TextArena has no vectors, so 16 are stepped in turn."""
    import textarena

    # A game ends with the guess after its turn limit.
    game = {"min_number": LOW, "max_number": HIGH, "max_turns": TURNS - 1}
    actions = [f"[{guess}]" for guess in GUESSES]

    def fresh(old: Any = None) -> Any:
        # The wrappers of an old one would go on repeating the episodes before; without them one is enough.
        env = old if raw and old else textarena.make("GuessTheNumber-v0-raw" if raw else "GuessTheNumber-v0", **game)
        env.reset(num_players=1)
        env.get_observation()
        return env

    random.seed(0)
    envs = [fresh() for _ in range(count)]

    def burst(steps: int) -> int:
        episodes = 0
        for number in range(steps):
            for index, env in enumerate(envs):
                done, _ = env.step(actions[(number + 13 * index) % 240])
                if done:
                    env.close()
                    envs[index] = fresh(env)
                    episodes += 1
                else:
                    env.get_observation()
        return episodes

    return "textarena", burst, count


CONTESTANTS: dict[str, Callable[[], Contestant]] = {
    "gymnasium": bare,
    "gymnasium/sync": bare_vector,
    "loragym": ours,
    "loragym/make": ours_through_make,
    "loragym/loop": ours_in_turn,
    "loragym/sync": partial(ours_vector, False),
    "loragym/async": partial(ours_vector, True),
    "gem": gem,
    "gem/sync": partial(gem_vector, False),
    "gem/async": partial(gem_vector, True),
    "textarena": text_arena,
    "textarena/raw": partial(text_arena, raw=True),
    "textarena/loop": partial(text_arena, COUNT),
}


def main() -> None:
    # What the packages print must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    package, burst, size = CONTESTANTS[sys.argv[1]]()
    chunk = 240 if size == 1 else 24
    burst(chunk)
    print("ready", importlib.metadata.version(package) if package else "", file=answers, flush=True)
    for line in sys.stdin:
        steps, episodes, start = 0, 0, time.perf_counter()
        until = start + float(line)
        while (now := time.perf_counter()) < until:
            episodes += burst(chunk)
            steps += chunk * size
        print(steps, now - start, episodes, file=answers, flush=True)


if __name__ == "__main__":
    main()
