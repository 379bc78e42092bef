"""Plays episodes: many at once, each waiting only for its own replies, the sampler's batch kept full.

Vocabulary: a `Task` is one problem in one world (env id, arguments, seed); an `Episode` is one attempt at it, a list of
`Turn`s of tokens; an `EpisodeGroup` is several attempts at the same task.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import gymnasium
import numpy as np

from ..agents import Completion, SamplingParams
from ..envs import GroupScore, checked_group_score, checked_reset, checked_step, env_attribute, scores_groups
from ..envs.secrets import redacted, redacted_message
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


@dataclass(slots=True)
class EpisodeGroup:
    """Several attempts at one task.

    Attributes:
        task: what was attempted.
        episodes: the attempts that came to an end.
        errors: the world's errors that ended an attempt, or its scoring.
        num_dropped: attempts that were given up after so many errors.
        num_retries: how often an attempt was made again, or the group scored again, after an error.
    """

    task: Task
    episodes: list[Episode]
    errors: list[str] = field(default_factory=list)
    num_dropped: int = 0
    num_retries: int = 0

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
    retries: int | None = None,
) -> list[EpisodeGroup]:
    """Plays `group_size` episodes of every task; the groups come in the order of the tasks. See `stream`."""
    groups = dict(
        stream(
            sampler,
            renderer,
            tasks,
            group_size,
            params,
            seed=seed,
            context_length=context_length,
            pool=pool,
            retries=retries,
        )
    )
    return [groups[index] for index in range(len(tasks))]


def stream(
    sampler: Sampler,
    renderer: Renderer,
    tasks: Sequence[Task],
    group_size: int,
    params: SamplingParams,
    *,
    seed: Sequence[int],
    context_length: int,
    pool: EnvPool | None = None,
    retries: int | None = None,
) -> Iterator[tuple[int, EpisodeGroup]]:
    """Plays `group_size` episodes of every task, and gives each group, with its task's number, as soon as it is over.

    Args:
        sampler: gives the replies.
        renderer: turns conversations into prompts and tokens into replies; its stop sequences end a reply.
        tasks: what to play.
        group_size: attempts at each task.
        params: how to sample; `stop` and `seed` are set here.
        seed: coordinates of this call; with (task, member, turn) they seed each reply.
        context_length: an episode whose prompt outgrows it ends with the stop reason `context`.
        pool: environments to use again; by default made for this call alone.
        retries: how often an episode that its world ends with an exception is played again, in a new environment,
            before it is given up; what happened is in the group. None lets the exception through.

    Raises:
        BadEnvironment: an environment breaks the contract; its own exceptions pass through with the task named.
    """
    params = replace(params, stop=tuple(renderer.stop_sequences))  # type: ignore[arg-type]
    own_pool = pool or EnvPool()
    groups = [EpisodeGroup(task, []) for task in tasks]
    members: list[list[Episode | None]] = [[None] * group_size for _ in tasks]
    left = [group_size] * len(tasks)
    openings = [_Opening() for _ in tasks]
    waiting: dict[int, _Player] = {}
    over: list[int] = []

    def sit_down(index: int, member: int) -> _Player:
        task = tasks[index]
        return _Player(task, Episode(), own_pool.take(task), (*seed, index, member), openings[index])

    def go_on(player: _Player, move: Callable[[], None]) -> None:
        """Makes a player's move and lets it speak, or begin again, or leave."""
        index, member = player.seed[-2:]
        while True:
            try:
                player.guarded(move)
                break
            except Exception as error:
                if retries is None:
                    raise
                said = "\n".join([f"{type(error).__name__}: {error}", *error.__notes__])
                groups[index].errors.append(redacted_message(said))
                player.env.close()
                if player.attempts >= retries:
                    groups[index].num_dropped += 1
                    leave(index, member, None)
                    return
                groups[index].num_retries += 1
                again = sit_down(index, member)
                again.attempts = player.attempts + 1
                player, move = again, partial(again.start, renderer)
        if player.prompt is None:
            own_pool.give_back(player.task, player.env)
            leave(index, member, player.episode)
            return
        reply_seed = sampling_seed(*player.seed, len(player.episode.turns))
        prompt = player.prompt
        waiting[player.guarded(lambda: sampler.submit(prompt, replace(params, seed=reply_seed)))] = player

    def leave(index: int, member: int, episode: Episode | None) -> None:
        members[index][member] = episode
        left[index] -= 1
        if not left[index]:
            groups[index].episodes = [found for found in members[index] if found is not None]
            if groups[index].episodes:
                _score_group(groups[index], own_pool, retries)
            over.append(index)

    players = [sit_down(index, member) for index in range(len(tasks)) for member in range(group_size)]
    for player in players:
        go_on(player, partial(player.start, renderer))
    while True:
        while over:
            index = over.pop(0)
            yield index, groups[index]
        if not waiting:
            break
        for ticket, (completion,) in sampler.step().items():
            player = waiting.pop(ticket)
            go_on(player, partial(player.hear, completion, renderer, context_length))
    if pool is None:
        own_pool.close()


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
        self.attempts = 0

    def start(self, renderer: Renderer) -> None:
        options = None if self.task.options is None else dict(self.task.options)
        observation, _ = checked_reset(self.env, seed=self.task.seed, options=options)
        self.episode.messages += observation
        opening, tools = self.opening, self._tools
        if opening.messages is None or opening.messages != list(observation) or opening.tools != tools:
            opening.prompt = renderer.build_generation_prompt(self.episode.messages, tools)
            # Copied, so that a world which goes on to change its messages cannot make two openings look alike.
            opening.messages, opening.tools = copy.deepcopy(list(observation)), tools
        self.prompt = list(opening.prompt)

    def hear(self, completion: Completion, renderer: Renderer, context_length: int) -> None:
        """Takes a reply to the world and makes the next prompt of its answer, or None at the end."""
        assert self.prompt is not None
        reply = cast(Reply, {**renderer.parse_response(completion.tokens, self._tools)})
        if completion.stop_reason == "length":
            reply["stop_reason"] = "length"
        observation, reward, terminated, truncated, info = checked_step(self.env, reply)
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
        return tuple(env_attribute(self.env, "tools", ()))

    def guarded(self, call: Callable[[], T]) -> T:
        """Calls, and notes on an exception which episode it happened in."""
        try:
            return call()
        except Exception as error:
            error.add_note(
                f"in an episode of {self.task.env_id} with {redacted(dict(self.task.kwargs))}, seed {self.task.seed}, "
                f"options {self.task.options}, after {len(self.episode.turns)} replies"
            )
            raise


def _score_group(group: EpisodeGroup, pool: EnvPool, retries: int | None) -> None:
    """Adds the rewards that need the whole group side by side, if the task has any.

    What cannot be scored after so many retries is given up, for what its episodes earned is not known.
    """
    for attempt in itertools.count():
        try:
            score = _group_score(group, pool)
            break
        except Exception as error:
            error.add_note(f"in scoring a group of {group.task.env_id}, seed {group.task.seed}")
            if retries is None:
                raise
            group.errors.append("\n".join([f"{type(error).__name__}: {error}", *error.__notes__]))
            if attempt >= retries:
                group.num_dropped += len(group.episodes)
                group.episodes = []
                return
            group.num_retries += 1
    for index, episode in enumerate(group.episodes if score else ()):
        assert score is not None
        episode.group_reward = score.rewards[index]
        episode.metrics = {**episode.metrics, **(score.metrics[index] if score.metrics else {})}


def _group_score(group: EpisodeGroup, pool: EnvPool) -> GroupScore | None:
    task = group.task
    env = pool.take(task)
    score = None
    if scores_groups(env):
        checked_reset(env, seed=task.seed, options=None if task.options is None else dict(task.options))
        score = checked_group_score(env, [episode.messages for episode in group.episodes])
    pool.give_back(task, env)
    return score
