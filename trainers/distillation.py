"""Distillation: a student learns to reply as teachers would, on their replies or on its own.

Teachers are adapters on the student's own base, or the base itself, and may read more than the student: a long system
message (prompt distillation), or the answer (self-distillation with a privileged context).

off_policy: teachers reply, and the student learns the distribution of their likeliest tokens at each place.
on_policy: the student replies; its advantage at each token is how much likelier the token is for the teacher, so that
the mean gradient is that of the reverse KL (Agarwal et al. 2024; Lu 2025).
full: the student replies; the KL over the whole vocabulary is the loss.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np

from ..agents import Datum, LoraPolicy
from ..agents.divergence import DIRECTIONS
from ..agents.losses import NORMALIZATIONS
from .clocks import seconds_since
from .config import at_least, one_of
from .data import agreement_metrics, batch_size, episode_metrics, whole_size
from .display import Column, StepTable
from .evaluation import check_env_id, held_out_tasks
from .json_argument import JSON_LIST
from .loop import StepResult, conduct, held_out_figures
from .playground import PlayConfig, Playground
from .references import BASE, make_reference
from .rollouts import EpisodeGroup, Sampler, Task, Turn
from .teachers import DistillationTeacher, TeacherSpec, reply_datum, soft_target_datum

COLUMNS = (
    Column("loss", "loss", ".4f"),
    Column("KL", "teacher_kl", ".4f"),
    Column("test KL", "test/teacher_kl", ".4f"),
    Column("agree", "test/agreement", ".3f"),
    Column("reward", "reward", ".3f"),
    Column("grad", "grad_norm", ".2f"),
    Column("seconds", "time/step", ".1f"),
)
MODES = ("off_policy", "on_policy", "full")


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(PlayConfig):
    """A run of distillation."""

    run_dir: str = "runs/distillation"
    """Directory of the run; running the same command again resumes it."""
    teachers: Annotated[list[dict[str, Any]], JSON_LIST] = field(default_factory=list)
    """Teachers, as JSON: [{"adapter": "runs/rl_basic"}]; also system, messages, hint, env, share, name ..."""
    mode: str = "on_policy"
    """off_policy (teachers reply), on_policy (the student does), or full (the same, over the whole vocabulary)."""
    steps: int = 50
    """Updates."""
    problems_per_step: int = 32
    """Different problems in a step."""
    group_size: int = 4
    """Replies to each problem."""
    learning_rate: float = 3e-4
    """Learning rate."""
    top_candidates: int = 20
    """How many of a teacher's likeliest tokens are learnt at each place; off_policy only."""
    direction: str = "reverse"
    """Which KL: reverse (of the student from the teacher) or forward; full only."""
    normalization: str = "token"
    """How token losses add up: token (mean over tokens), sequence (mean of means) or sum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "mode", MODES)
        one_of(self, "direction", DIRECTIONS)
        one_of(self, "normalization", NORMALIZATIONS)
        for name in ("steps", "problems_per_step", "group_size", "top_candidates"):
            at_least(self, name, 1)
        at_least(self, "learning_rate", 0)
        specs = self.specs()
        if len({spec.name for spec in specs}) < len(specs):
            raise ValueError('teachers: give each a name of its own, as in [{"name": "a", ...}, {"name": "b", ...}]')

    def specs(self) -> list[TeacherSpec]:
        """The teachers; without any, the bare base.

        Raises:
            ValueError, FileNotFoundError: one of them cannot be used.
        """
        given = [TeacherSpec.from_json(teacher) for teacher in self.teachers] or [TeacherSpec()]
        return [spec if spec.env else replace(spec, env=self.env, env_kwargs=self.env_kwargs) for spec in given]


def train(config: DistillationConfig) -> dict[str, Any]:
    """Runs or resumes a run to its end; returns its summary.

    Raises:
        ValueError, FileNotFoundError: config, teachers or environments cannot be used; raised before the model loads.
        RunError: the run directory cannot be used.
        Interrupted: stopped by Ctrl-C, after saving.
    """
    config.check_world()
    for spec in config.specs():
        check_env_id(spec.env, spec.env_kwargs)
    return conduct(config, lambda: DistillationTrainer(config, config.load_policy()), COLUMNS)


class DistillationTrainer:
    """One run's student, its teachers and the steps."""

    def __init__(self, config: DistillationConfig, policy: LoraPolicy) -> None:
        self.config = config
        self.policy = self.learner = policy
        self.ground = Playground(config, policy)
        self.teachers = [
            DistillationTeacher(
                spec,
                make_reference(policy, spec.adapter or BASE, f"teacher {spec.name}"),
                self.ground.renderer,
                self.ground.pool,
            )
            for spec in config.specs()
        ]
        specs = [teacher.spec for teacher in self.teachers]
        self.shares = np.array([spec.share for spec in specs]) / sum(spec.share for spec in specs)
        each = -(-config.eval_problems // len(specs))
        self.held_out = [held_out_tasks(spec.env, spec.env_kwargs, each) for spec in specs]
        self.taught = [
            self._play_teacher(teacher, tasks, 1, seed=(0,), temperature=0.0)
            for teacher, tasks in zip(self.teachers, self.held_out, strict=True)
        ]

    @property
    def total_steps(self) -> int:
        return self.config.steps

    def close(self) -> None:
        """Releases environments and engine."""
        self.ground.close()
        for teacher in self.teachers:
            teacher.pool.close()

    def step(self, number: int, table: StepTable) -> StepResult:
        """Takes step `number`."""
        config, began = self.config, time.monotonic()
        due = number == 0 or (config.eval_every and number % config.eval_every == 0)
        metrics = self.evaluate() if due else {}
        learn = self._learn_from_teachers if config.mode == "off_policy" else self._learn_from_own
        groups, figures = learn(self._tasks(number), number)
        rate = config.learning_rate * config.rate_factor(number, config.steps)
        metrics |= episode_metrics(groups) | figures | self.policy.optim_step(config.adam(rate))
        metrics["tokens_per_second"] = metrics["sampled_tokens"] / seconds_since(began)
        return StepResult(metrics, self.ground.transcripts(groups))

    def evaluate(self) -> dict[str, float]:
        """On held-out problems: how far the student is from its teachers, and how each of them does.

        `test/teacher_kl` is the KL of the student from the teacher per token, estimated on the student's own replies at
        temperature 1; `test/agreement` the share of problems to which both say the same when greedy.
        """
        found = {
            teacher.spec.name: (self._figures(teacher, tasks, taught), len(tasks))
            for teacher, tasks, taught in zip(self.teachers, self.held_out, self.taught, strict=True)
            if tasks
        }
        metrics: dict[str, float] = {}
        for name, (figures, count) in found.items():
            for key, value in figures.items():
                metrics[f"test/{key}"] = metrics.get(f"test/{key}", 0.0) + value * count
                if len(self.teachers) > 1:
                    metrics[f"test/{name}/{key}"] = value
        total = sum(count for _, count in found.values())
        means = {f"test/{key}" for figures, _ in found.values() for key in figures}
        return {name: value / total if name in means else value for name, value in metrics.items()}

    def summarize(self, rows: Sequence[dict[str, Any]], final: dict[str, float]) -> dict[str, Any]:
        """Held-out figures before and after."""
        return {"before": held_out_figures(rows, 0), "after": final}

    def _figures(
        self, teacher: DistillationTeacher, tasks: Sequence[Task], taught: Sequence[EpisodeGroup]
    ) -> dict[str, float]:
        greedy = self.ground.play(self._sampler(), tasks, 1, seed=(0,), temperature=0.0)
        own = self.ground.play(self._sampler(), tasks, 1, seed=(1,), temperature=1.0)
        student, known = read_by_both(teacher, own)
        ratios = sampled_ratios(student, known, teacher.policy.forward(known).logprobs)
        return {
            "agreement": float(np.mean([_said(a) == _said(b) for a, b in zip(greedy, taught, strict=True)])),
            "teacher_kl": float(np.concatenate(ratios).mean()),
            "greedy/reward": float(np.mean([group.rewards[0] for group in greedy])),
            "teacher/reward": float(np.mean([group.rewards[0] for group in taught])),
            "prompt_tokens": float(np.mean([len(group.episodes[0].turns[0].prompt) for group in greedy])),
            "teacher/prompt_tokens": float(np.mean([len(group.episodes[0].turns[0].prompt) for group in taught])),
        }

    def _tasks(self, number: int) -> list[list[Task]]:
        """The step's problems of each teacher."""
        count = self.config.problems_per_step
        rng = np.random.default_rng([self.config.seed, number])
        chosen = rng.choice(len(self.teachers), size=count, p=self.shares)
        seeds = [task.seed for task in self.ground.tasks(number, count)]
        return [
            [Task(teacher.spec.env, teacher.spec.env_kwargs, seeds[i]) for i in np.flatnonzero(chosen == index)]
            for index, teacher in enumerate(self.teachers)
        ]

    def _sampler(self) -> Sampler:
        return self.ground.engine.sampler(self.policy)

    def _play_teacher(
        self,
        teacher: DistillationTeacher,
        tasks: Sequence[Task],
        count: int,
        *,
        seed: Sequence[int],
        temperature: float,
    ) -> list[EpisodeGroup]:
        sampler = self.ground.engine.sampler(teacher.policy)
        return self.ground.play(sampler, tasks, count, seed=seed, temperature=temperature, pool=teacher.pool)

    def _learn_from_own(self, tasks: list[list[Task]], number: int) -> tuple[list[EpisodeGroup], dict[str, float]]:
        config = self.config
        flat = [task for own in tasks for task in own]
        groups = self.ground.play(self._sampler(), flat, config.group_size, seed=(config.seed, number))
        ends = np.cumsum([len(own) for own in tasks])
        parts = []
        for teacher, start, end in zip(self.teachers, [0, *ends], ends, strict=False):
            if start < end:
                parts.append((teacher, *read_by_both(teacher, groups[start:end])))
        learn = self._learn_whole if config.mode == "full" else self._learn_sampled
        return groups, learn(parts)

    def _learn_sampled(self, parts: Sequence[Reading]) -> dict[str, float]:
        """The reverse KL as an advantage."""
        config, data = self.config, list[Datum]()
        every: list[np.ndarray] = []
        for teacher, student, known in parts:
            logprobs = teacher.policy.forward(known, temperature=config.temperature).logprobs
            ratios = sampled_ratios(student, known, logprobs)
            every += ratios
            for datum, ratio in zip(student, ratios, strict=True):
                advantages = np.zeros(len(datum.tokens))
                advantages[datum.trained] = -ratio
                data.append(replace(datum, advantages=advantages.tolist()))
        out = self.policy.forward_backward(
            data,
            "importance_sampling",
            normalization=config.normalization,  # type: ignore[arg-type]
            temperature=config.temperature,
        )
        found = {"loss": out.loss, "teacher_kl": float(np.concatenate(every).mean())}
        return out.metrics | agreement_metrics(data, out.logprobs) | found

    def _learn_whole(self, parts: Sequence[Reading]) -> dict[str, float]:
        """The KL over the whole vocabulary as the loss; the teachers' parts add up to the batch's."""
        config = self.config
        sizes = [batch_size(student, config.normalization) for _, student, _ in parts]
        whole = whole_size(sizes, config.normalization)
        metrics: dict[str, float] = {"loss": 0.0}
        for (teacher, student, known), size in zip(parts, sizes, strict=True):
            out = self.policy.forward_backward_kl(
                student,
                teacher.policy,
                teacher_data=known,
                direction=config.direction,  # type: ignore[arg-type]
                normalization=config.normalization,  # type: ignore[arg-type]
                temperature=config.temperature,
                scale=size / whole,
            )
            metrics["loss"] += out.loss
            for name, value in out.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + value
        return metrics | {"teacher_kl": metrics["loss"]}

    def _learn_from_teachers(self, tasks: list[list[Task]], number: int) -> tuple[list[EpisodeGroup], dict[str, float]]:
        config = self.config
        data, groups = list[Datum](), list[EpisodeGroup]()
        for index, (teacher, own) in enumerate(zip(self.teachers, tasks, strict=True)):
            if not own:
                continue
            seed = (config.seed, number, index)
            played = self._play_teacher(teacher, own, config.group_size, seed=seed, temperature=config.temperature)
            groups += played
            turns = _turns(played)
            taught = teacher.policy.top_candidates(
                [reply_datum(turn.prompt, turn) for turn in turns],
                config.top_candidates,
                temperature=config.temperature,
            )
            read = [prompt for group in played for prompts in teacher.student_prompts(group) for prompt in prompts]
            data += [
                soft_target_datum(prompt, turn.tokens, *targets)
                for prompt, turn, targets in zip(read, turns, taught, strict=True)
            ]
        out = self.policy.forward_backward(
            data,
            "cross_entropy",
            normalization=config.normalization,  # type: ignore[arg-type]
            temperature=config.temperature,
        )
        return groups, {**out.metrics, "loss": out.loss}


Reading = tuple[DistillationTeacher, list[Datum], list[Datum]]
"""A teacher, and the same replies as the student and as the teacher read them."""


def read_by_both(teacher: DistillationTeacher, groups: Sequence[EpisodeGroup]) -> tuple[list[Datum], list[Datum]]:
    """The student's replies after what it read, and after what the teacher reads in its place."""
    turns = _turns(groups)
    prompts = [prompt for group in groups for prompts in teacher.teacher_prompts(group) for prompt in prompts]
    known = [reply_datum(prompt, turn) for prompt, turn in zip(prompts, turns, strict=True)]
    return [reply_datum(turn.prompt, turn) for turn in turns], known


def sampled_ratios(
    student: Sequence[Datum], known: Sequence[Datum], logprobs: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """The student's log-probabilities less the teacher's at each reply's tokens, `(R,)` for each."""
    return [
        np.asarray(datum.logprobs)[datum.trained] - taught[read.trained]
        for datum, read, taught in zip(student, known, logprobs, strict=True)
    ]


def _turns(groups: Sequence[EpisodeGroup]) -> list[Turn]:
    return [turn for group in groups for episode in group.episodes for turn in episode.turns]


def _said(group: EpisodeGroup) -> list[str]:
    """What the policy says in a group's first episode."""
    (episode, *_) = group.episodes
    spoken = [message["content"].strip() for message in episode.messages if message["role"] == "assistant"]
    return spoken[len(spoken) - len(episode.turns) :]
