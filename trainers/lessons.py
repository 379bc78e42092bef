"""From a step's episodes to what is learnt from them: advantages, by groups or by a critic, and the KL penalty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..agents import Datum, LoraPolicy
from ..agents.losses import KL_ESTIMATORS
from .advantages import KLController, group_advantages, is_constant, log_ratios, with_kl_penalty
from .critic import Critic, ValuedEpisode, token_rewards, whiten
from .data import episode_datums
from .learners import Learner
from .references import START, make_reference
from .rollouts import EpisodeGroup

if TYPE_CHECKING:
    from .rl import RLConfig


@dataclass
class Lesson:
    """What a group's episodes teach: datums with advantages, and with a critic what it said of each episode."""

    data: list[Datum] = field(default_factory=list)
    valued: list[ValuedEpisode] = field(default_factory=list)


class Tutor:
    """Makes lessons of episodes, with the critic and the reference that a run's config asks for.

    Attributes:
        learners: what must be saved with the policy.
        values: numbers that must be.
    """

    def __init__(self, config: RLConfig, policy: LoraPolicy) -> None:
        self.config = config
        self.policy = policy
        self.critic = self._make_critic() if config.advantages == "gae" else None
        self.reference = make_reference(policy, config.kl_reference) if config.kl_coef else None
        self.values = {"kl_coef": config.kl_coef}
        self._seen: list[tuple[float, int]] = []
        self.learners: dict[str, Learner] = {}
        if self.critic is not None:
            self.learners["critic"] = self.critic.scorer
        if self.reference is not None and config.kl_reference == START:
            self.learners["reference"] = self.reference

    def learning_begins(self) -> None:
        """Notes the policy as it is before its first lesson."""
        if self.reference is not None and self.config.kl_reference == START:
            self.reference.copy_weights(self.policy)

    def step_is_over(self) -> None:
        """Moves the KL penalty's coefficient; not before, for a step that is abandoned is taken again as it was."""
        controller = KLController(self.values["kl_coef"], self.config.kl_target)
        for kl, tokens in self._seen:
            controller.update(kl, tokens)
        self._seen.clear()
        self.values["kl_coef"] = controller.coef

    @property
    def loss_config(self) -> dict[str, Any]:
        """The loss's arguments as they are now."""
        config = self.config
        if not (self.reference and config.kl_as == "loss"):
            return config.loss_config
        return {**config.loss_config, "kl_coef": self.values["kl_coef"], "kl_estimator": config.kl_estimator}

    def lessons(self, groups: Sequence[EpisodeGroup]) -> tuple[list[Lesson], dict[str, float]]:
        """What there is to learn from each group, KL penalty included, and figures about it."""
        config = self.config
        if self.critic is not None:
            return self._valued_lessons(groups, self.critic)
        lessons = []
        for group in groups:
            lesson = Lesson()
            if not is_constant(group.rewards):
                advantages = group_advantages(group.rewards, config.advantages)
                for episode, advantage in zip(group.episodes, advantages, strict=True):
                    lesson.data += episode_datums(episode, advantage)
            lessons.append(lesson)
        metrics = {"groups/dropped": float(sum(not lesson.data for lesson in lessons))}
        data = self._with_old([datum for lesson in lessons for datum in lesson.data])
        if self.reference is not None and data:
            data, kl_metrics = self._penalised(data, self.reference)
            metrics |= kl_metrics
        for lesson in lessons:
            lesson.data, data = data[: len(lesson.data)], data[len(lesson.data) :]
        return lessons, metrics

    def update_critic(self, lessons: Sequence[Lesson], factor: float) -> dict[str, float]:
        """One update of the critic, if there is one, at `factor` times its learning rate."""
        if self.critic is None:
            return {}
        valued = [episode for lesson in lessons for episode in lesson.valued]
        return self.critic.learn(valued, self.config.adam(self.config.critic_learning_rate * factor))

    def _valued_lessons(self, groups: Sequence[EpisodeGroup], critic: Critic) -> tuple[list[Lesson], dict[str, float]]:
        config, metrics = self.config, dict[str, float]()
        episodes = [episode for group in groups for episode in group.episodes if episode.turns]
        data = [episode_datums(episode, 0.0) for episode in episodes]
        flat = self._with_old([datum for datums in data for datum in datums])
        rewards = [token_rewards(episode) for episode in episodes]
        if self.reference is not None:
            known = self.reference.forward(flat, temperature=config.temperature).logprobs
            if config.kl_as == "full":
                pass
            elif config.kl_as == "loss":
                flat = [replace(d, reference_logprobs=p.tolist()) for d, p in zip(flat, known, strict=True)]
            else:
                ratios, coef = iter(log_ratios(flat, known)), self.values["kl_coef"]
                for datums, reward in zip(data, rewards, strict=True):
                    reward -= coef * np.concatenate([_kl(config.kl_estimator, next(ratios)) for _ in datums])
            metrics |= self._note_kl(flat, known)
        rest = iter(flat)
        valued = critic.assess([([next(rest) for _ in datums], r) for datums, r in zip(data, rewards, strict=True)])
        by_episode = iter(whiten(valued))
        lessons = []
        for group in groups:
            kept = [next(by_episode) for episode in group.episodes if episode.turns]
            lessons.append(Lesson([datum for episode in kept for datum in episode.data], kept))
        return lessons, metrics

    def _penalised(self, data: list[Datum], reference: LoraPolicy) -> tuple[list[Datum], dict[str, float]]:
        config = self.config
        known = reference.forward(data, temperature=config.temperature).logprobs
        metrics = self._note_kl(data, known)
        if config.kl_as == "full":
            return data, metrics
        if config.kl_as == "loss":
            return [replace(d, reference_logprobs=p.tolist()) for d, p in zip(data, known, strict=True)], metrics
        coef = metrics["kl_coef"]
        return with_kl_penalty(data, known, coef, estimator=config.kl_estimator)[0], metrics

    def _note_kl(self, data: Sequence[Datum], reference: Sequence[np.ndarray]) -> dict[str, float]:
        """The KL to the reference per token, which will move the coefficient, and the coefficient of this step."""
        ratios = np.concatenate(log_ratios(data, reference))
        kl = float(ratios.mean())
        if np.isfinite(kl):
            self._seen.append((kl, len(ratios)))
        return {"kl_reference": kl, "kl_coef": self.values["kl_coef"]}

    def _with_old(self, data: list[Datum]) -> list[Datum]:
        """The datums with the learner's own log-probabilities, where the loss needs them over several updates."""
        config = self.config
        if not (config.loss_config.get("max_weight") and config.num_substeps * config.num_passes > 1 and data):
            return data
        old = self.policy.forward(data, temperature=config.temperature).logprobs
        return [replace(datum, old_logprobs=p.tolist()) for datum, p in zip(data, old, strict=True)]

    def _make_critic(self) -> Critic:
        config = self.config
        scorer = self.policy.base.add_scorer("critic", config.lora())
        scorer.tokens_per_pass = self.policy.tokens_per_pass
        return Critic(scorer, discount=config.discount, decay=config.gae_decay, clip=config.value_clip)


def _kl(estimator: str, log_ratio: np.ndarray) -> np.ndarray:
    estimate: np.ndarray = KL_ESTIMATORS[estimator](torch.as_tensor(log_ratio)).numpy()
    return estimate
