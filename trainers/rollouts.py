"""Plays episodes: many at once, each waiting only for its own replies, the sampler's batch kept full.

Vocabulary: a `Task` is one problem in one world (env id, arguments, seed); an `Episode` is one attempt at it, a list of
`Turn`s of tokens; an `EpisodeGroup` is several attempts at the same task.
"""

from __future__ import annotations

import copy
import itertools
import json
import logging
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
from .deadlines import CallOutcome, Calls, Hangs, TooManyHang

logger = logging.getLogger(__name__)

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
        calls: how environments are called: with a deadline or, by default, without one.
    """

    def __init__(self, wrap: Callable[[Env], Env] | None = None, calls: Calls | None = None) -> None:
        self._idle: dict[str, list[Env]] = {}
        self._wrap = wrap
        self.calls = calls or Calls()

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

    def take_all(self, tasks: Sequence[Task]) -> list[Env]:
        """An environment for each task, made within the calls' deadline."""
        outcomes = self.calls.run_all([partial(self.take, task) for task in tasks], "making an environment")
        return [outcome.result() for outcome in outcomes]

    def give_back(self, task: Task, env: Env) -> None:
        self._idle.setdefault(self._key(task), []).append(env)

    def dispose(self, env: Env) -> None:
        """Closes an environment that failed; what goes wrong with that as well is logged, and no more."""
        try:
            self.calls.run("closing an environment", env.close)
        except TooManyHang:
            raise
        except Exception as error:
            logger.warning("an environment that had failed could not be closed: %s", as_error(error))

    def close(self) -> None:
        """Closes the environments that are idle; one that hangs is left behind."""
        idle = [env for envs in self._idle.values() for env in envs]
        self._idle.clear()
        try:
            outcomes = self.calls.run_all([env.close for env in idle], "closing an environment")
        except TooManyHang as error:
            outcomes = [CallOutcome(error=error)]
        self.calls.close()
        for outcome in outcomes:
            if isinstance(outcome.error, Hangs | TooManyHang):
                logger.warning("%s; it is left behind", outcome.error)
            else:
                outcome.result()

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
        retries: how often an episode that its world ends with an exception, or does not go on with in time, is played
            again, in a new environment, before it is given up; what happened is in the group. None lets the exception
            through.

    Raises:
        BadEnvironment: an environment breaks the contract; its own exceptions pass through with the task named.
        TooManyHang: as many calls of environments hang as the pool allows.
    """
    params = replace(params, stop=tuple(renderer.stop_sequences))  # type: ignore[arg-type]
    own_pool = pool or EnvPool()
    groups = [EpisodeGroup(task, []) for task in tasks]
    members: list[list[Episode | None]] = [[None] * group_size for _ in tasks]
    left = [group_size] * len(tasks)
    openings = [_Opening() for _ in tasks]
    waiting: dict[int, _Player] = {}
    over: list[int] = []

    def sit_down(places: Sequence[tuple[int, int]], attempts: int = 0) -> list[_Player]:
        """Players at the beginning of an episode, by task and member."""
        envs = own_pool.take_all([tasks[index] for index, _ in places])
        return [
            _Player(tasks[index], Episode(), env, (*seed, index, member), openings[index], attempts)
            for (index, member), env in zip(places, envs, strict=True)
        ]

    def go_on(players: list[_Player]) -> None:
        """Makes the players' moves and lets each speak, or begin again, or leave."""
        while players:
            outcomes = own_pool.calls.run_all([player.move for player in players], "an environment's reset or step")
            again: list[_Player] = []
            for player, outcome in zip(players, outcomes, strict=True):
                index, member = player.seed[-2:]
                try:
                    player.take_in(outcome, renderer, context_length)
                except Exception as error:
                    if retries is None:
                        raise
                    groups[index].errors.append(as_error(error))
                    if not isinstance(error, Hangs):
                        own_pool.dispose(player.env)
                    if player.attempts < retries:
                        groups[index].num_retries += 1
                        again += sit_down([(index, member)], player.attempts + 1)
                    else:
                        groups[index].num_dropped += 1
                        leave(index, member, None)
                    continue
                speak(player)
            players = again

    def speak(player: _Player) -> None:
        if player.prompt is None:
            own_pool.give_back(player.task, player.env)
            index, member = player.seed[-2:]
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

    go_on(sit_down([(index, member) for index in range(len(tasks)) for member in range(group_size)]))
    while True:
        while over:
            index = over.pop(0)
            yield index, groups[index]
        if not waiting:
            break
        heard = []
        for ticket, (completion,) in sampler.step().items():
            player = waiting.pop(ticket)
            player.hear(completion, renderer)
            heard.append(player)
        go_on(heard)
    if pool is None:
        own_pool.close()


@dataclass(slots=True)
class _Opening:
    """The first prompt of a group, which its episodes have in common: rendered once."""

    messages: list[Message] | None = None
    tools: tuple[Any, ...] = ()
    prompt: list[int] = field(default_factory=list)


class _Player:
    """One episode under way.

    Attributes:
        move: what the world is to be asked next, to be called where it may hang.
        prompt: what the policy is to be asked next; None at the end.
        attempts: how many attempts came before.
    """

    def __init__(
        self,
        task: Task,
        episode: Episode,
        env: Env,
        seed: tuple[int, ...],
        opening: _Opening,
        attempts: int,
    ) -> None:
        self.task = task
        self.episode = episode
        self.env = env
        self.seed = seed
        self.opening = opening
        self.attempts = attempts
        self.prompt: list[int] | None = None
        self.move: Callable[[], Any] = self._begin
        self._said: tuple[Completion, Reply] | None = None

    def hear(self, completion: Completion, renderer: Renderer) -> None:
        """Makes telling the world a reply the next move."""
        self.move = partial(self._tell, completion, renderer)

    def take_in(self, outcome: CallOutcome[Any], renderer: Renderer, context_length: int) -> None:
        """Makes the next prompt of what the world answered, or None at the end; raises what the world raised."""

        def take_in() -> None:
            answer = outcome.result()
            if self._said is None:
                observation, _ = answer
                self._take_in_opening(observation, renderer)
            else:
                self._take_in_answer(self._said, answer, renderer, context_length)

        self.guarded(take_in)

    def _begin(self) -> Any:
        options = None if self.task.options is None else dict(self.task.options)
        return checked_reset(self.env, seed=self.task.seed, options=options)

    def _tell(self, completion: Completion, renderer: Renderer) -> Any:
        reply = cast(Reply, {**renderer.parse_response(completion.tokens, self._tools)})
        if completion.stop_reason == "length":
            reply["stop_reason"] = "length"
        self._said = completion, reply
        return checked_step(self.env, reply)

    def _take_in_opening(self, observation: Sequence[Message], renderer: Renderer) -> None:
        self.episode.messages += observation
        opening, tools = self.opening, self._tools
        if opening.messages is None or opening.messages != list(observation) or opening.tools != tools:
            opening.prompt = renderer.build_generation_prompt(self.episode.messages, tools)
            # Copied, so that a world which goes on to change its messages cannot make two openings look alike.
            opening.messages, opening.tools = copy.deepcopy(list(observation)), tools
        self.prompt = list(opening.prompt)

    def _take_in_answer(
        self, said: tuple[Completion, Reply], answer: Any, renderer: Renderer, context_length: int
    ) -> None:
        assert self.prompt is not None
        (completion, reply), (observation, reward, terminated, truncated, info) = said, answer
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


def as_error(error: Exception) -> str:
    """An exception and its notes, without secrets, as groups keep them."""
    return redacted_message("\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]))


def _score_group(group: EpisodeGroup, pool: EnvPool, retries: int | None) -> None:
    """Adds the rewards that need the whole group side by side, if the task has any.

    What cannot be scored after so many retries is given up, for what its episodes earned is not known.
    """
    for attempt in itertools.count():
        (env,) = pool.take_all([group.task])
        try:
            score = pool.calls.run("an environment's score_group", partial(_group_score, env, group))
            break
        except Exception as error:
            error.add_note(f"in scoring a group of {group.task.env_id}, seed {group.task.seed}")
            if retries is None or isinstance(error, TooManyHang):
                raise
            group.errors.append(as_error(error))
            if not isinstance(error, Hangs):
                pool.dispose(env)
            if attempt >= retries:
                group.num_dropped += len(group.episodes)
                group.episodes = []
                return
            group.num_retries += 1
    pool.give_back(group.task, env)
    for index, episode in enumerate(group.episodes if score else ()):
        assert score is not None
        episode.group_reward = score.rewards[index]
        episode.metrics = {**episode.metrics, **(score.metrics[index] if score.metrics else {})}


def _group_score(env: Env, group: EpisodeGroup) -> GroupScore | None:
    if not scores_groups(env):
        return None
    task = group.task
    checked_reset(env, seed=task.seed, options=None if task.options is None else dict(task.options))
    return checked_group_score(env, [episode.messages for episode in group.episodes])
