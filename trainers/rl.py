"""Reinforcement learning from episodes: sample, find out what was better than expected, update.

What is expected comes from the other episodes of a group (GRPO and its kin) or from a critic (PPO). A run may begin
with a short supervised warm-up on the environment's own reference answers. Each step's problems and samples follow from
the seed and the step's number.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np

from ..agents import LOSSES, Datum, LoraPolicy
from ..agents.losses import KL_ESTIMATORS, NORMALIZATIONS, token_loss
from ..agents.policy import TrainOutput
from ..renderers import LengthLimit, TrainOn
from .advantages import BASELINES, is_constant
from .clocks import SHORTEST, seconds_since
from .config import at_least, at_most, one_of
from .conversations import environment_examples, reference_example, supervised_datums
from .data import agreement_metrics, batch_size, episode_metrics, whole_size
from .display import Column, StepTable
from .forerunner import Forerunner
from .json_argument import JSON_OBJECT
from .learners import Learners
from .lessons import Tutor
from .loop import StepResult, conduct, held_out_figures
from .playground import PlayConfig, Playground
from .references import check_reference
from .reports import evaluation_line
from .rollouts import EpisodeGroup, Sampler, Task

WORK = ("trained_tokens", "computed_tokens")
"""What a step's updates did, added up; of their other figures the last update's stand."""
KL_FORMS = ("advantage", "loss", "full")
COLUMNS = (
    Column("reward", "reward", ".3f"),
    Column("nll", "warmup/nll", ".3f"),
    Column("KL", "kl_v1", ".4f"),
    Column("entropy", "entropy", ".3f"),
    Column("mixed", "groups/mixed", ".2f"),
    Column("grad", "grad_norm", ".2f"),
    Column("tokens/s", "tokens_per_second", ".0f"),
    Column("seconds", "time/step", ".1f"),
)


@dataclass(frozen=True, kw_only=True)
class RLConfig(PlayConfig):
    """A reinforcement learning run."""

    run_dir: str = "runs/rl"
    """Directory of the run; running the same command again resumes it."""
    steps: int = 100
    """Reinforcement learning steps."""
    problems_per_step: int = 32
    """Different problems in a step."""
    group_size: int = 8
    """Episodes of each problem; their mean reward is the baseline."""
    learning_rate: float = 1e-4
    """Learning rate of the reinforcement learning steps."""
    loss: str = "importance_sampling"
    """Loss: importance_sampling, ppo, cispo, gspo, dro, or one that you registered."""
    loss_config: Annotated[dict[str, Any], JSON_OBJECT] = field(default_factory=dict)
    """Arguments of the loss and off-policy guards, as JSON: {"clip_high": 0.28} for ppo, {"max_weight": 2} for any."""
    normalization: str = "token"
    """How token losses add up: token (mean over tokens), sequence (mean of means) or sum."""
    num_substeps: int = 1
    """Updates per pass over a step's episodes, each on its share of the groups; more than 1 wants the ppo loss."""
    num_passes: int = 1
    """Passes over a step's episodes; more than 1 wants the ppo loss."""
    advantages: str = "mean"
    """What an episode is better than: mean, deviation or leave_one_out (of its group), or gae (a critic's values)."""
    discount: float = 1.0
    """Discount per token of later rewards; gae only."""
    gae_decay: float = 1.0
    """GAE's lambda: 1 trusts rewards alone, 0 the critic alone."""
    critic_learning_rate: float = 3e-4
    """Learning rate of the critic; gae only."""
    value_clip: float = 0.2
    """How far an update may move a value before it is held back; 0 for no limit; gae only."""
    kl_coef: float = 0.0
    """Factor of a KL penalty against a reference; 0 for none."""
    kl_reference: str = "base"
    """What to stay near: base, start (the policy when reinforcement learning begins), or an adapter's folder."""
    kl_as: str = "advantage"
    """advantage: charge it as an edit of the advantages; loss: add its estimate as a term of the loss; full: add the KL
    over the whole vocabulary, which has less noise and takes another pass."""
    kl_estimator: str = "k1"
    """Estimator of the KL: k1, k2 or k3; as a term of the loss k2 has the right gradient."""
    kl_target: float = 0.0
    """KL per token to hold by changing the factor as the run goes on; 0 leaves the factor alone."""
    refill_rounds: int = 0
    """Dynamic sampling: rounds in which as many new problems are played as groups were constant."""
    stream_groups: int = 0
    """Learn from so many groups at a time as they are over, one update a step; 0 waits for all of them."""
    staleness: int = 0
    """Asynchronous: play so many steps ahead of the update; worth it where sampling runs beside it, as with vllm."""
    warmup_steps: int = 0
    """Supervised steps on reference answers before reinforcement learning."""
    warmup_batch: int = 32
    """Examples in a warm-up step."""
    warmup_learning_rate: float = 3e-4
    """Learning rate of the warm-up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "problems_per_step", "num_substeps", "num_passes"):
            at_least(self, name, 1)
        for name in ("warmup_steps", "learning_rate", "refill_rounds", "stream_groups", "staleness"):
            at_least(self, name, 0)
        if self.stream_groups:
            self._check_streaming()
        for name in ("kl_coef", "kl_target", "value_clip", "discount", "gae_decay", "critic_learning_rate"):
            at_least(self, name, 0)
        for name in ("discount", "gae_decay"):
            at_most(self, name, 1)
        one_of(self, "advantages", [*BASELINES, "gae"])
        at_least(self, "group_size", 1 if self.advantages == "gae" else 2)
        one_of(self, "kl_as", KL_FORMS)
        one_of(self, "kl_estimator", KL_ESTIMATORS)
        if self.num_substeps > self.problems_per_step:
            raise ValueError(
                f"num-substeps is at most problems-per-step ({self.problems_per_step}): each update needs a problem of "
                f"its own; got {self.num_substeps}"
            )
        one_of(self, "loss", LOSSES.keys() - {"cross_entropy"})
        token_loss(self.loss, self.loss_config)
        if "kl_coef" in self.loss_config:
            raise ValueError("loss-config: the KL penalty has fields of its own, kl-coef and kl-as loss")
        if self.kl_coef:
            check_reference(self.kl_reference)
        one_of(self, "normalization", NORMALIZATIONS)

    def _check_streaming(self) -> None:
        """Raises ValueError for what needs all of a step's groups at once."""
        at_odds = {
            "refill-rounds": self.refill_rounds > 0,
            "staleness": self.staleness > 0,
            "num-substeps and num-passes above 1": self.num_substeps * self.num_passes > 1,
            "advantages gae": self.advantages == "gae",
            "a KL penalty as advantage": self.kl_coef > 0 and self.kl_as == "advantage",
        }
        if found := [name for name, there in at_odds.items() if there]:
            raise ValueError(f"stream-groups learns from parts of a step, which does not go with {', '.join(found)}")


def train(config: RLConfig) -> dict[str, Any]:
    """Runs or resumes a run to its end; returns its summary.

    Raises:
        ValueError: the config or the environment cannot be used; raised before the model loads.
        ImportError: the engine is not installed; likewise.
        RunError: the run directory cannot be used.
        Interrupted: stopped by Ctrl-C, after saving.
    """
    config.check_world()
    if config.warmup_steps:
        environment_examples(config.env, config.env_kwargs, 1, config.seed)
    return conduct(config, lambda: RLTrainer(config, config.load_policy()), COLUMNS)


class RLTrainer:
    """One run's policy and the steps that improve it."""

    def __init__(self, config: RLConfig, policy: LoraPolicy) -> None:
        self.config = config
        self.policy = policy
        self.ground = Playground(config, policy)
        self.tutor = Tutor(config, policy)
        others = dict(self.tutor.learners)
        self.forerunner = Forerunner(
            self._play,
            lambda: (self.ground.engine.sampler(policy), policy.version),
            staleness=config.staleness,
            total=self.total_steps,
            last_sign=lambda: self.ground.last_sign,
            patience=self.ground.patience,
        )
        if config.staleness:
            others["played"] = self.forerunner
        self.learner = Learners(policy, others, self.tutor.values)

    @property
    def total_steps(self) -> int:
        return self.config.warmup_steps + self.config.steps

    def close(self) -> None:
        """Releases environments and engine."""
        self.forerunner.close()
        self.ground.close()

    def step(self, number: int, table: StepTable) -> StepResult:
        """Takes step `number`: of the warm-up, then of reinforcement learning."""
        metrics = self._evaluation_due(number, table)
        if number < self.config.warmup_steps:
            return StepResult({**metrics, **self._warm_up(number)})
        result = self._reinforce(number)
        return StepResult({**metrics, **result.metrics}, result.transcripts)

    def evaluate(self) -> dict[str, float]:
        """Held-out figures, greedy and at temperature 1, as `test/greedy/...` and `test/sampled/...`."""
        self.forerunner.wait()
        return self.ground.evaluate(self.policy)

    def summarize(self, rows: Sequence[dict[str, Any]], final: dict[str, float]) -> dict[str, Any]:
        """Held-out results before, after the warm-up and at the end, rewards and speed."""
        warmup = self.config.warmup_steps
        learning = [row for row in rows if row["step"] >= warmup and "reward" in row]
        sampled = sum(row["sampled_tokens"] for row in learning)
        trained = sum(row.get("trained_tokens") or 0 for row in learning)
        return {
            "before": held_out_figures(rows, 0),
            "after_warmup": held_out_figures(rows, warmup) if warmup else {},
            "after": final,
            "first_reward": learning[0]["reward"],
            "last_reward": float(np.mean([row["reward"] for row in learning[-5:]])),
            "sampled_tokens_per_second": sampled / sum(row["time/sample"] for row in learning),
            "trained_tokens_per_second": trained / sum(row["time/update"] for row in learning),
        }

    def _evaluation_due(self, number: int, table: StepTable) -> dict[str, float]:
        """Figures before step `number`, at the ends of the warm-up and every `eval_every` steps between."""
        every, learning = self.config.eval_every, number - self.config.warmup_steps
        if number and learning and not (every and learning > 0 and learning % every == 0):
            return {}
        metrics = self.evaluate()
        if metrics:
            table.say(f"after {number} steps, held out: {evaluation_line(metrics)}")
        return metrics

    def _warm_up(self, number: int) -> dict[str, float]:
        """One supervised step on reference answers."""
        config = self.config
        data = [d for task in self.ground.tasks(number, config.warmup_batch) for d in self._reference_datums(task)]
        out = self.policy.forward_backward(data, "cross_entropy", normalization="token")
        metrics = self.policy.optim_step(config.adam(config.warmup_learning_rate))
        return {"warmup/nll": out.loss, **metrics}

    def _reinforce(self, number: int) -> StepResult:
        config, began = self.config, time.monotonic()
        if number == config.warmup_steps:
            self.tutor.learning_begins()
        if config.stream_groups:
            groups, metrics = self._learn_while_playing(number)
        else:
            batch = self.forerunner.take(number)
            groups, sampled = batch.groups, time.monotonic()
            metrics = {"staleness": float(self.policy.version - batch.version), "time/sample": seconds_since(began)}
            metrics |= episode_metrics(groups) | self._update(groups, number)
            metrics["time/update"] = seconds_since(sampled)
        self.tutor.step_is_over()
        metrics["tokens_per_second"] = metrics["sampled_tokens"] / seconds_since(began)
        return StepResult(metrics, self.ground.transcripts(groups))

    def _play(self, sampler: Sampler, number: int) -> list[EpisodeGroup]:
        """A step's groups; while too many of them are constant, as many further problems as are missing."""
        config = self.config
        groups = self.ground.play(
            sampler, self.ground.tasks(number, config.problems_per_step), config.group_size, seed=(config.seed, number)
        )
        for again in range(1, config.refill_rounds + 1):
            missing = config.problems_per_step - sum(not is_constant(group.rewards) for group in groups)
            if missing <= 0:
                break
            tasks = self.ground.tasks(number, missing, first=len(groups))
            groups += self.ground.play(sampler, tasks, config.group_size, seed=(config.seed, number, again))
        return groups

    def _learn_while_playing(self, number: int) -> tuple[list[EpisodeGroup], dict[str, float]]:
        """Learns from groups as they are over; the update is that of all of them together."""
        config, began = self.config, time.monotonic()
        tasks = self.ground.tasks(number, config.problems_per_step)
        playing = self.ground.stream(
            self.ground.engine.sampler(self.policy), tasks, config.group_size, seed=(config.seed, number)
        )
        groups: dict[int, EpisodeGroup] = {}
        waiting: list[EpisodeGroup] = []
        learnt: list[tuple[list[Datum], TrainOutput]] = []
        metrics: dict[str, float] = {}
        spent, sizes = 0.0, list[float]()

        def learn() -> None:
            nonlocal spent
            started = time.monotonic()
            lessons, figures = self.tutor.lessons(waiting)
            data = [datum for lesson in lessons for datum in lesson.data]
            for name, value in figures.items():
                metrics[name] = metrics.get(name, 0.0) + value if name == "groups/dropped" else value
            if data:
                sizes.append(batch_size(data, config.normalization))
                # As a sum: what the whole is divided by is known at the end.
                learnt.append((data, self._forward_backward(data, scale=sizes[-1])))
            waiting.clear()
            spent += seconds_since(started)

        for index, group in playing:
            groups[index] = group
            waiting.append(group)
            if len(waiting) >= config.stream_groups:
                learn()
        if waiting:
            learn()
        started = time.monotonic()
        ordered = [groups[index] for index in range(len(tasks))]
        metrics |= episode_metrics(ordered) | {"updates_skipped": float(not learnt), "staleness": 0.0}
        if learnt:
            size = whole_size(sizes, config.normalization)
            self.policy.scale_gradients(1 / size)
            factor = config.rate_factor(number - config.warmup_steps, config.steps)
            updated = self.policy.optim_step(config.adam(config.learning_rate * factor))
            for name in learnt[0][1].metrics:
                metrics[name] = sum(out.metrics[name] for _, out in learnt)
            data = [datum for part, _ in learnt for datum in part]
            logprobs = [p for _, out in learnt for p in out.logprobs]
            metrics |= updated | agreement_metrics(data, logprobs) | {"loss": sum(o.loss for _, o in learnt) / size}
        metrics["time/update"] = spent + seconds_since(started)
        metrics["time/sample"] = max(SHORTEST, seconds_since(began) - metrics["time/update"])
        return ordered, metrics

    def _forward_backward(self, data: Sequence[Datum], scale: float = 1.0) -> TrainOutput:
        config = self.config
        out = self.policy.forward_backward(
            data,
            config.loss,
            self.tutor.loss_config,
            normalization=config.normalization,  # type: ignore[arg-type]
            temperature=config.temperature,
            scale=scale,
        )
        if self.tutor.reference is not None and config.kl_as == "full":
            held = self.policy.forward_backward_kl(
                data,
                self.tutor.reference,
                normalization=config.normalization,  # type: ignore[arg-type]
                temperature=config.temperature,
                scale=scale * self.tutor.values["kl_coef"],
            )
            return TrainOutput(out.logprobs, out.loss + held.loss, out.metrics)
        return out

    def _update(self, groups: Sequence[EpisodeGroup], number: int) -> dict[str, float]:
        """The step's updates, each on a share of the groups; one without anything to learn is skipped and counted."""
        config = self.config
        factor = config.rate_factor(number - config.warmup_steps, config.steps)
        lessons, metrics = self.tutor.lessons(groups)
        metrics["updates_skipped"] = 0.0
        first: tuple[list[Datum], list[np.ndarray]] = ([], [])
        for pass_number in range(config.num_passes):
            for share in np.array_split(np.arange(len(lessons)), config.num_substeps):
                data = [datum for i in share for datum in lessons[i].data]
                if not data:
                    metrics["updates_skipped"] += 1
                    continue
                out = self._forward_backward(data)
                updated = self.policy.optim_step(config.adam(config.learning_rate * factor))
                work = {name: metrics.get(name, 0.0) + out.metrics[name] for name in WORK}
                metrics |= out.metrics | work | updated | {"loss": out.loss}
                metrics |= self.tutor.update_critic([lessons[i] for i in share], factor)
                if pass_number == 0:
                    first[0].extend(data)
                    first[1].extend(out.logprobs)
        return metrics | (agreement_metrics(*first) if first[0] else {})

    def _reference_datums(self, task: Task) -> list[Datum]:
        (env,) = self.ground.pool.take_all([task])
        example = self.ground.calls.run("an environment's solution", lambda: reference_example(env, task.seed))
        self.ground.pool.give_back(task, env)
        limit = LengthLimit(self.policy.base.context_length, "drop")
        return supervised_datums(example, self.ground.renderer, train_on=TrainOn.CUSTOM, limit=limit)
