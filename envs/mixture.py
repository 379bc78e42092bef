"""Several environments as one: each episode is of one of them, in the proportions of their weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, TypeAlias

import gymnasium

from ..messages import Message, Reply, ToolSpec
from .checks import env_attribute, scores_groups
from .core import TextEnv
from .making import make_env
from .spaces import Messages, Replies
from .splits import MAX_LISTED, Split, hash_position
from .wrappers.stack import handed_on, put_on

Observation: TypeAlias = tuple[Message, ...]

DEFAULT_SOURCES = ("loragym/Arithmetic-v0", "loragym/GuessNumber-v0")
_KEYS = ("environment", "env_kwargs", "wrappers", "weight", "name")


@dataclass(frozen=True, slots=True)
class Source:
    """One environment of a mixture, with its share of the episodes."""

    name: str
    share: float
    env: gymnasium.Env[Any, Any]

    @property
    def num_problems(self) -> int | None:
        count: int | None = env_attribute(self.env, "num_problems")
        return count


class Mixture(gymnasium.Env[Observation, Reply | str]):
    """Each episode is one of several environments', drawn by the seed in proportion to their weights.

    The seed decides which environment and which of its problems, so a group that shares a seed shares a problem. Where
    all sources have numbered problems, so has the mixture: as many as there can be with every source in its share and
    no problem twice, taken evenly from each source, in a mixed order that is always the same. Tools and group rewards
    are those of the source that is playing.

    `info["source"]` names it. Metrics: the source's own; the same as `<source>/<metric>`; `<source>/reward` (the
    episode's so far); and for each source `<source>/share`, 1 in its own episodes and 0 in others', whose mean is the
    share of the episodes.

    `reset(options={"source": name})` picks a source and hands on the other options; {"index": i} picks a problem.

    Args:
        environments: ids, or objects {"environment": id, "env_kwargs": {...}, "wrappers": [...], "weight": 2.0,
            "name": "sums"}, of which only the id is needed. The weight is 1 by default, the name that of the id.
            `wrappers` are as in `loragym/Wrapped-v0`.
        split: handed on to the sources that have held-out problems; None leaves it to them and to their `env_kwargs`.
        render_mode: handed on.

    Raises:
        ValueError: there are no environments, one cannot be made, or a weight is not above 0.
    """

    metadata: dict[str, Any] = TextEnv.metadata

    def __init__(
        self,
        *,
        environments: Sequence[str | Mapping[str, Any]] = DEFAULT_SOURCES,
        split: Split | None = None,
        render_mode: str | None = None,
    ) -> None:
        if isinstance(environments, str | Mapping) or not environments:
            raise ValueError(f"environments is a list of at least one environment, got {environments!r:.200}")
        described = [_described(given) for given in environments]
        total = sum(weight for _, weight, _, _ in described)
        self.sources: tuple[Source, ...] = ()
        for number, (env_id, weight, name, given) in enumerate(described):
            env = make_env(env_id, handed_on(env_id, given["env_kwargs"], split=split, render_mode=render_mode))
            taken = [name for _, _, name, _ in described[:number]].count(name)
            unique = f"{name}-{taken + 1}" if taken else name
            self.sources += (Source(unique, weight / total, put_on(env, given["wrappers"])),)
        if len({source.name for source in self.sources}) < len(self.sources):
            raise ValueError(f"each source has a name of its own, got {[source.name for source in self.sources]}")
        self.render_mode = render_mode
        self.observation_space = Messages()
        self.action_space = Replies()
        self._playing: Source | None = None
        self._reward = 0.0

    @property
    def num_problems(self) -> int | None:
        """How many numbered problems there are; None if a source's are not numbered."""
        counts = [source.num_problems for source in self.sources]
        return None if None in counts else len(self._numbering)

    @property
    def tools(self) -> tuple[ToolSpec, ...]:
        """The tools of the source that is playing."""
        return () if self._playing is None else tuple(env_attribute(self._playing.env, "tools", ()))

    @property
    def score_group(self) -> Callable[[Sequence[Sequence[Message]]], Any]:
        """That of the source that is playing."""
        if not any(scores_groups(source.env) for source in self.sources):
            raise AttributeError("no source of the mixture has rewards for groups")
        return self._score_group

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode of one of the sources.

        Raises:
            ValueError: there is no such source or problem, or the source does not know an option.
        """
        super().reset(seed=seed)
        drawn, inner_seed = float(self.np_random.random()), int(self.np_random.integers(2**31))
        rest = dict(options or {})
        if "source" in rest:
            self._playing = self._source(rest.pop("source"))
        elif "index" in rest:
            self._playing, rest["index"] = self._problem(rest["index"])
        else:
            self._playing = self._at(drawn)
        self._reward = 0.0
        observation, info = self._playing.env.reset(seed=inner_seed, options=rest or None)
        return observation, {**info, "source": self._playing.name}

    def step(self, action: Reply | str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Says `action` to the source that is playing.

        Raises:
            gymnasium.error.ResetNeeded: no episode is going on.
        """
        if self._playing is None:
            raise gymnasium.error.ResetNeeded("Mixture: step() was called with no episode going on; call reset() first")
        name = self._playing.name
        observation, reward, terminated, truncated, info = self._playing.env.step(action)
        self._reward += float(reward)
        own = dict(info.get("metrics", {}))
        metrics = {
            **own,
            **{f"{source.name}/share": float(source is self._playing) for source in self.sources},
            **{f"{name}/{metric}": value for metric, value in own.items()},
            f"{name}/reward": self._reward,
        }
        return observation, float(reward), terminated, truncated, {**info, "metrics": metrics, "source": name}

    def render(self) -> Any:
        """What the source that is playing renders."""
        if self._playing is None:
            return "" if self.render_mode == "ansi" else None
        return self._playing.env.render()

    def close(self) -> None:
        for source in self.sources:
            source.env.close()

    def _score_group(self, episodes: Sequence[Sequence[Message]]) -> Any:
        if self._playing is None or not scores_groups(self._playing.env):
            return None
        return env_attribute(self._playing.env, "score_group")(episodes)

    def _source(self, name: Any) -> Source:
        for source in self.sources:
            if source.name == name:
                return source
        raise ValueError(f"there is no source {name!r}; there are {[source.name for source in self.sources]}")

    def _at(self, position: float) -> Source:
        """The source at a position from 0 to 1, where each has as much room as its share."""
        for source in self.sources:
            position -= source.share
            if position < 0:
                return source
        return self.sources[-1]

    def _problem(self, index: Any) -> tuple[Source, int]:
        """The source and its own index that a problem of the mixture stands for."""
        count = self.num_problems
        if count is None:
            raise ValueError("Mixture: the problems of a source are not numbered; use reset(seed=...)")
        if isinstance(index, bool) or not hasattr(index, "__index__") or not 0 <= index < count:
            raise ValueError(f"Mixture.reset: index is an int from 0 to {count - 1}, got {index!r}")
        chosen, inner_index = self._numbering[int(index)]
        return self.sources[chosen], inner_index

    @property
    def _numbering(self) -> tuple[tuple[int, int], ...]:
        shares = tuple(source.share for source in self.sources)
        return _numbered(shares, tuple(source.num_problems or 0 for source in self.sources))


def weighted_turns(shares: Sequence[float]) -> Iterator[int]:
    """Whose turn it is, without end: each gets its share, as evenly spread as can be.

    It is smooth weighted round-robin, as in nginx's load balancer: all credits grow by their shares, whoever has most
    takes the turn and pays 1 for it.
    """
    credits = [0.0] * len(shares)
    while True:
        credits = [credit + share for credit, share in zip(credits, shares, strict=True)]
        # Rounded, so that equal shares take turns in their order whatever the sums' last digits.
        chosen = max(range(len(shares)), key=lambda i: (round(credits[i], 9), -i))
        credits[chosen] -= 1.0
        yield chosen


@lru_cache(maxsize=16)
def _numbered(shares: tuple[float, ...], counts: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """For each problem of a mixture its source and its index there; `counts` are how many problems the sources have."""
    schedule: list[int] = []
    turns = [0] * len(shares)
    for chosen in islice(weighted_turns(shares), MAX_LISTED):
        if turns[chosen] == counts[chosen]:
            break
        schedule.append(chosen)
        turns[chosen] += 1
    # Of a source with more problems than turns, those at even distances.
    indices = [
        iter([turn * count // taken for turn in range(taken)]) for taken, count in zip(turns, counts, strict=True)
    ]
    numbered = [(chosen, next(indices[chosen])) for chosen in schedule]
    # Shuffled, once and for all: who takes every other problem must not get them all from one source.
    return tuple(numbered[at] for at in sorted(range(len(numbered)), key=lambda at: hash_position(f"problem {at}")))


def _described(given: str | Mapping[str, Any]) -> tuple[str, float, str, dict[str, Any]]:
    """An environment's id, weight, name and how it is made."""
    entry: dict[str, Any] = {"environment": given} if isinstance(given, str) else dict(given)
    if unknown := [key for key in entry if key not in _KEYS]:
        raise ValueError(f"an environment of a mixture has the keys {_KEYS}, got {unknown} as well")
    env_id, weight = entry.get("environment"), entry.get("weight", 1.0)
    if not isinstance(env_id, str):
        raise ValueError(f'an environment of a mixture is an id or {{"environment": id, ...}}, got {given!r:.200}')
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ValueError(f"the weight of {env_id} is a number above 0, got {weight!r}")
    name = entry.get("name") or env_id.rpartition(":")[2].rpartition("/")[2].rpartition("-v")[0] or env_id
    made = {"env_kwargs": dict(entry.get("env_kwargs") or {}), "wrappers": list(entry.get("wrappers") or ())}
    return env_id, float(weight), name, made
