"""Plays episodes: many at once, each waiting only for its own replies, the sampler's batch kept full.

Vocabulary: a `Task` is one problem in one world (env id, arguments, seed); an `Episode` is one attempt at it, a list of
`Turn`s of tokens; an `EpisodeGroup` is several attempts at the same task.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, cast

import gymnasium
import numpy as np

from ..agents import Completion, SamplingParams
from ..envs import checked_reset, checked_step
from ..messages import Message, Reply, without_stop_reason
from ..renderers import Renderer

Env = gymnasium.Env[Any, Any]
T = TypeVar("T")


class Sampler(Protocol):
    """What a rollout needs of a sampler; `agents.TorchSampler` is one."""

    @property
    def pending(self) -> int: ...

    def submit(self, prompt: Sequence[int], params: SamplingParams, n: int = 1) -> int: ...

    def step(self) -> dict[int, list[Completion]]: ...


@dataclass(frozen=True, slots=True)
class Task:
    """One problem: the environment that `env_id` and `kwargs` make, reset with `seed` and `options`."""

    env_id: str
    kwargs: Mapping[str, Any]
    seed: int
    options: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One reply of the policy: what it was shown, what it said, and the reward that the world gave at once."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    reward: float


@dataclass(slots=True)
class Episode:
    """One attempt at a task."""

    turns: list[Turn] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    stop_reason: str = ""
    group_reward: float = 0.0

    @property
    def reward(self) -> float:
        return sum(turn.reward for turn in self.turns) + self.group_reward


@dataclass(frozen=True, slots=True)
class EpisodeGroup:
    """Several attempts at one task."""

    task: Task
    episodes: list[Episode]

    @property
    def rewards(self) -> list[float]:
        return [episode.reward for episode in self.episodes]


class EnvPool:
    """Environments by how they are made, kept for the next episode.

    Args:
        wrap: what is put around each.
    """

    def __init__(self, wrap: Callable[[Env], Env] | None = None) -> None:
        self._idle: dict[str, list[Env]] = {}
        self._wrap = wrap

    def take(self, task: Task) -> Env:
        """An environment for the task: one that is idle, or a new one.

        Raises:
            gymnasium.error.Error, TypeError, ValueError: the id is unknown or the arguments are wrong.
        """
        idle = self._idle.setdefault(self._key(task), [])
        if idle:
            return idle.pop()
        # The checker that `make` adds checks what `checked_step` checks as well.
        env = gymnasium.make(task.env_id, disable_env_checker=True, **task.kwargs)
        return self._wrap(env) if self._wrap else env

    def give_back(self, task: Task, env: Env) -> None:
        self._idle[self._key(task)].append(env)

    def close(self) -> None:
        for env in (env for idle in self._idle.values() for env in idle):
            env.close()
        self._idle.clear()

    @staticmethod
    def _key(task: Task) -> str:
        return task.env_id + json.dumps(dict(task.kwargs), sort_keys=True, default=repr)


def sampling_seed(*coordinates: int) -> int:
    """A seed from where in the run it is used, such as (run seed, step, group, member, turn)."""
    return int(np.random.SeedSequence(coordinates).generate_state(1, np.uint64)[0])


def collect(
    sampler: Sampler,
    renderer: Renderer,
    tasks: Sequence[Task],
    group_size: int,
    params: SamplingParams,
    *,
    seed: Sequence[int],
    context_length: int,
    pool: EnvPool | None = None,
) -> list[EpisodeGroup]:
    """Plays `group_size` episodes of every task.

    Args:
        sampler: gives the replies.
        renderer: turns conversations into prompts and tokens into replies; its stop sequences end a reply.
        tasks: what to play.
        group_size: attempts at each task.
        params: how to sample; `stop` and `seed` are set here.
        seed: coordinates of this call; with (task, member, turn) they seed each reply.
        context_length: an episode whose prompt outgrows it ends with the stop reason `context`.
        pool: environments to use again; by default made for this call alone.

    Raises:
        BadEnvironment: an environment breaks the contract; its own exceptions pass through with the task named.
    """
    params = replace(params, stop=tuple(renderer.stop_sequences))  # type: ignore[arg-type]
    own_pool = pool or EnvPool()
    groups = [EpisodeGroup(task, [Episode() for _ in range(group_size)]) for task in tasks]
    openings = [_Opening() for _ in groups]
    players = [
        _Player(group.task, episode, own_pool.take(group.task), (*seed, index, member), openings[index])
        for index, group in enumerate(groups)
        for member, episode in enumerate(group.episodes)
    ]
    waiting: dict[int, _Player] = {}

    def speak(player: _Player) -> None:
        prompt = player.prompt
        if prompt is None:
            own_pool.give_back(player.task, player.env)
            return
        reply_seed = sampling_seed(*player.seed, len(player.episode.turns))
        waiting[player.guarded(lambda: sampler.submit(prompt, replace(params, seed=reply_seed)))] = player

    for player in players:
        player.start(renderer)
        speak(player)
    while waiting:
        for ticket, (completion,) in sampler.step().items():
            player = waiting.pop(ticket)
            player.hear(completion, renderer, context_length)
            speak(player)
    for group in groups:
        _score_group(group, own_pool)
    if pool is None:
        own_pool.close()
    return groups


@dataclass(slots=True)
class _Opening:
    """The first prompt of a group, which its episodes have in common: rendered once."""

    messages: list[Message] | None = None
    tools: tuple[Any, ...] = ()
    prompt: list[int] = field(default_factory=list)


class _Player:
    """One episode under way."""

    def __init__(self, task: Task, episode: Episode, env: Env, seed: tuple[int, ...], opening: _Opening) -> None:
        self.task = task
        self.episode = episode
        self.env = env
        self.seed = seed
        self.opening = opening
        self.prompt: list[int] | None = None

    def start(self, renderer: Renderer) -> None:
        options = None if self.task.options is None else dict(self.task.options)
        observation, _ = self.guarded(lambda: checked_reset(self.env, seed=self.task.seed, options=options))
        self.episode.messages += observation
        opening, tools = self.opening, self._tools
        if opening.messages is None or opening.messages != list(observation) or opening.tools != tools:
            # Copied, so that a world which goes on to change its messages cannot make two openings look alike.
            opening.messages, opening.tools = copy.deepcopy(list(observation)), tools
            opening.prompt = renderer.build_generation_prompt(self.episode.messages, tools)
        self.prompt = list(opening.prompt)

    def hear(self, completion: Completion, renderer: Renderer, context_length: int) -> None:
        """Takes a reply to the world and makes the next prompt of its answer, or None at the end."""
        assert self.prompt is not None
        reply = cast(Reply, {**renderer.parse_response(completion.tokens)})
        if completion.stop_reason == "length":
            reply["stop_reason"] = "length"
        observation, reward, terminated, truncated, info = self.guarded(lambda: checked_step(self.env, reply))
        self.episode.turns.append(Turn(self.prompt, completion.tokens, completion.logprobs, reward))
        self.episode.messages += [without_stop_reason(reply), *observation]
        self.episode.metrics = info["metrics"]
        if terminated or truncated:
            self.episode.stop_reason = info.get("stop_reason", "completed" if terminated else "truncated")
            self.prompt = None
            return
        self.prompt = renderer.bridge_to_next_turn(
            self.prompt, completion.tokens, observation, self._tools
        ) or renderer.build_generation_prompt(self.episode.messages, self._tools)
        if len(self.prompt) >= context_length:
            self.episode.stop_reason = "context"
            self.prompt = None

    @property
    def _tools(self) -> tuple[Any, ...]:
        return tuple(getattr(self.env.unwrapped, "tools", ()))

    def guarded(self, call: Callable[[], T]) -> T:
        """Calls, and notes on an exception which episode it happened in."""
        try:
            return call()
        except Exception as error:
            error.add_note(
                f"in an episode of {self.task.env_id} with {dict(self.task.kwargs)}, seed {self.task.seed}, "
                f"options {self.task.options}, after {len(self.episode.turns)} replies"
            )
            raise


def _score_group(group: EpisodeGroup, pool: EnvPool) -> None:
    """Adds the rewards that need the whole group side by side, if the task has any."""
    env = pool.take(group.task)
    score = getattr(env.unwrapped, "score_group", None)
    rewards = None if score is None else score([episode.messages for episode in group.episodes])
    pool.give_back(group.task, env)
    if rewards is None:
        return
    if len(rewards) != len(group.episodes):
        raise ValueError(
            f"{group.task.env_id}: score_group gave {len(rewards)} rewards for {len(group.episodes)} episodes; "
            "it returns one number per episode"
        )
    for episode, reward in zip(group.episodes, rewards, strict=True):
        episode.group_reward = float(reward)
