"""Reinforcement learning by self-play: all seats of a table by the policy, or the others by its past versions.

A game gives a trajectory for each seat in which the policy sits. What an episode is better than are the others of the
same deal in the same seat with the same players.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from ..agents import Datum, LoraPolicy
from ..messages import Message
from ..renderers import LengthLimit, TrainOn
from .config import at_least, at_most
from .conversations import Example, supervised_datums
from .display import Column, StepTable
from .evaluation import HELD_OUT
from .json_argument import JSON_OBJECT
from .league import League
from .loop import StepResult, conduct
from .rl import RLConfig, RLTrainer
from .rollouts import EpisodeGroup, Sampler, Task, sampling_seed
from .selfplay import Casting, Game, Speaker, against, everywhere, finished, game_metrics, play_games, seat_groups

if TYPE_CHECKING:
    from ..envs.games.seat import Opponent
    from ..envs.games.table import Table

COLUMNS = (
    Column("reward", "reward", ".3f"),
    Column("nll", "warmup/nll", ".3f"),
    Column("illegal", "illegal", ".3f"),
    Column("turns", "turns_per_episode", ".2f"),
    Column("KL", "kl_v1", ".4f"),
    Column("entropy", "entropy", ".3f"),
    Column("mixed", "groups/mixed", ".2f"),
    Column("grad", "grad_norm", ".2f"),
    Column("seconds", "time/step", ".1f"),
)


@dataclass(frozen=True, kw_only=True)
class TableRLConfig(RLConfig):
    """A run of self-play. The environment fields name the seat that evaluations of other trainers would play."""

    run_dir: str = "runs/table_rl"
    """Directory of the run; running the same command again resumes it."""
    env: str = "loragym/TicTacToe-v0"
    """The table, by the id of its seat; your own as 'module:Table'."""
    env_kwargs: Annotated[dict[str, Any], JSON_OBJECT] = field(default_factory=dict)
    """Arguments of the table, as JSON, such as {"illegal": "retry:1"}."""
    train_opponents: tuple[str, ...] = ()
    """Scripts that sit in the other seats instead of the policy itself, by turns of problems."""
    league_every: int = 0
    """Steps between copies of the policy that join the league; 0 for no league."""
    league_size: int = 4
    """Most copies in the league; the oldest leave first."""
    league_share: float = 0.5
    """Share of the problems that are played against the league, once it has a member."""
    warmup_script: str = "random"
    """Who plays the games that the warm-up learns from."""
    test_opponents: tuple[str, ...] = ("random",)
    """Scripts that evaluations are against, both seats in turn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "league_every", 0)
        at_least(self, "league_size", 1)
        at_least(self, "league_share", 0)
        at_most(self, "league_share", 1)
        if self.staleness or self.stream_groups or self.reward_model or self.refill_rounds:
            raise ValueError("self-play takes no staleness, stream-groups, refill-rounds or reward-model")

    def make_table(self) -> Table[Any]:
        """A table.

        Raises:
            ValueError, ImportError: there is no such table, or it does not know a script that is named.
        """
        from ..envs.games import tables

        table = tables.make(self.env, **self.env_kwargs)
        for script in (*self.train_opponents, *self.test_opponents, self.warmup_script):
            if script not in table.scripts:
                raise ValueError(f"{self.env} has no script {script!r}; it has {', '.join(table.scripts)}")
        return table

    def check_world(self) -> None:
        self.make_table()


def train(config: TableRLConfig) -> dict[str, Any]:
    """Runs or resumes a run to its end; returns its summary.

    Raises:
        ValueError: the config or the table cannot be used; raised before the model loads.
        ImportError: games need PettingZoo.
        RunError: the run directory cannot be used.
        Interrupted: stopped by Ctrl-C, after saving.
    """
    config.check_world()
    return conduct(config, lambda: TableRLTrainer(config, config.load_policy()), COLUMNS)


class TableRLTrainer(RLTrainer):
    """One run's policy, its league and the steps that improve it."""

    def __init__(self, config: TableRLConfig, policy: LoraPolicy) -> None:
        super().__init__(config, policy)
        self.table_config = config
        self.seats = config.make_table().seats
        self.league = League(policy, config.league_size)
        if config.league_every:
            self.learner.others["league"] = self.league
        self._games: list[list[Game]] = []

    def step(self, number: int, table: StepTable) -> StepResult:
        config = self.table_config
        learning = number - config.warmup_steps
        if config.league_every and learning > 0 and learning % config.league_every == 0:
            self.league.admit(number)
        result = super().step(number, table)
        if learning < 0:
            return result
        metrics = {**result.metrics, **game_metrics(self._games), "illegal": _illegal_share(self._games)}
        rows = [
            {"task": f"{config.env} seed {game.task.seed}", "players": game.players, "scores": game.scores,
             "messages": [{"role": "user", "content": line} for line in game.record]}
            for alike in finished(self._games)[: config.transcripts_per_step]
            for game in alike[:1]
        ]  # fmt: skip
        return StepResult(metrics, rows)

    def evaluate(self) -> dict[str, float]:
        """Against each script, from every seat: mean score, wins, draws, and the share of illegal replies.

        `test/greedy/...` and `test/sampled/...` as in `rl`: the means over opponents, `reward` among them.
        """
        config, metrics = self.table_config, dict[str, float]()
        if not config.eval_problems:
            return {}
        # Each opponent meets the policy in each seat as often.
        count = -(-config.eval_problems // len(self.seats))
        tasks = [Task(config.env, config.env_kwargs, sampling_seed(HELD_OUT, i) % 2**31) for i in range(count)]
        for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
            speaker = self._speaker(self.ground.engine.sampler(self.policy), "policy", temperature)
            every: list[list[Game]] = []
            for opponent in config.test_opponents:
                games = finished(self._play_games(tasks, len(self.seats), against(speaker, opponent), (HELD_OUT,)))
                every += games
                for seat in self.seats:
                    scores = [g.scores[seat] for alike in games for g in alike if g.players[seat] == "policy"]
                    metrics |= _results(f"test/{name}/{opponent}/{seat}", scores) if scores else {}
            scores = [g.scores[s] for alike in every for g in alike for s in self.seats if g.players[s] == "policy"]
            metrics[f"test/{name}/reward"] = float(np.mean(scores))
            metrics[f"test/{name}/illegal"] = _illegal_share(every)
        return metrics

    def _play(self, sampler: Sampler, number: int) -> list[EpisodeGroup]:
        config = self.table_config
        seeds = [task.seed for task in self.ground.tasks(number, config.problems_per_step)]
        tasks = [Task(config.env, config.env_kwargs, seed) for seed in seeds]
        policy = self._speaker(sampler, "policy", config.temperature)
        casting = self._casting(policy, number, tasks)
        self._games = self._play_games(tasks, config.group_size, casting, (config.seed, number))
        return [group for group in seat_groups(finished(self._games)) if len(group.episodes) > 1]

    def _play_games(self, tasks: Sequence[Task], count: int, casting: Casting, seed: Sequence[int]) -> list[list[Game]]:
        retries = self.table_config.episode_retries
        return play_games(tasks, count, casting, seed=seed, retries=retries, calls=self.ground.calls)

    def _casting(self, policy: Speaker, number: int, tasks: Sequence[Task]) -> Casting:
        """Who plays each task: the policy in all seats, or in one against a script or a past version."""
        config = self.table_config
        past = [
            self._speaker(self.ground.engine.sampler(member), f"before step {step}", config.temperature)
            for step, member in sorted(self.league.members.items())
        ]
        rng = np.random.default_rng([config.seed, number, len(past)])
        castings: dict[int, Casting] = {}
        for task in tasks:
            scripts: Sequence[Opponent] = config.train_opponents
            if past and rng.random() < config.league_share:
                castings[task.seed] = against(policy, past[int(rng.integers(len(past)))])
            elif scripts:
                castings[task.seed] = against(policy, scripts[int(rng.integers(len(scripts)))])
            else:
                castings[task.seed] = everywhere(policy)

        def cast_seats(task: Task, member: int, seats: Sequence[str]) -> Mapping[str, Speaker | Opponent]:
            return castings[task.seed](task, member, seats)

        return cast_seats

    def _speaker(self, sampler: Sampler, name: str, temperature: float) -> Speaker:
        ground = self.ground
        return Speaker(
            sampler=sampler,
            renderer=ground.renderer,
            params=ground.sampling(temperature),
            context_length=ground.engine.context_length,
            name=name,
        )

    def _reference_datums(self, task: Task) -> list[Datum]:
        """A game between scripts as each seat saw it; what the seat said is trained."""
        limit = LengthLimit(self.policy.base.context_length, "drop")
        return [
            datum
            for conversation in scripted_game(self.table_config, task.seed)
            for datum in supervised_datums(
                Example(conversation), self.ground.renderer, train_on=TrainOn.CUSTOM, limit=limit
            )
        ]


def scripted_game(config: TableRLConfig, seed: int) -> list[tuple[Message, ...]]:
    """A game in which the warm-up's script sits in all seats, from each seat that has spoken."""
    table = config.make_table()
    table.reset(seed=seed)
    rngs = {seat: np.random.default_rng([seed, number]) for number, seat in enumerate(table.seats)}
    script = table.scripts[config.warmup_script]
    while not all(table.terminations[s] or table.truncations[s] for s in table.seats):
        table.step(script(table, rngs[table.agent_selection]))
    conversations = []
    for seat in table.seats:
        seen: list[Message] = [{**m, "trainable": m["role"] == "assistant"} for m in table.conversation(seat)]
        while seen and seen[-1]["role"] != "assistant":
            seen.pop()  # what is told when the game is over has no reply
        if seen:
            conversations.append(tuple(seen))
    return conversations


def _illegal_share(games: Sequence[Sequence[Game]]) -> float:
    """Illegal replies as a share of all that models said."""
    metrics = [episode.metrics for alike in games for game in alike for episode in game.episodes.values()]
    illegal = sum(m.get("illegal", 0.0) for m in metrics)
    return illegal / max(1.0, illegal + sum(m.get("moves", 0.0) for m in metrics))


def _results(prefix: str, scores: Sequence[float]) -> dict[str, float]:
    values = np.asarray(scores)
    return {
        f"{prefix}/score": float(values.mean()),
        f"{prefix}/win": float((values > 0).mean()),
        f"{prefix}/draw": float((values == 0).mean()),
    }
