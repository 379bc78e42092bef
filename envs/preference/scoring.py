"""Replies that are scored one by one: by a function, a reward model, or anything that gives a number."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, Unpack, get_args, runtime_checkable

from ...messages import Message
from ..core import GroupScore
from ..named import Named
from ..prompts import Conversation, PromptEnv, PromptOptions, as_conversation, finite_number, one_for_each
from .overlap import word_overlap

When = Literal["step", "group"]


@runtime_checkable
class ConversationScorer(Protocol):
    """What a trained reward model has to be: something that scores conversations, many at once.

    Each ends with the reply that is scored. The scores may have any scale.
    """

    def score(self, conversations: Sequence[Conversation]) -> Sequence[float]: ...


Scorer: TypeAlias = Callable[[Conversation], float] | Callable[[Sequence[Conversation]], Sequence[float]]


class Scored(NamedTuple):
    """What a reply earns, and the numbers behind it."""

    reward: float
    metrics: Mapping[str, float]


class ScoredEnv(PromptEnv):
    """A reply is scored by itself, at once or together with the others of its group. An author writes `score_all`.

    Args:
        when: "step" scores each reply as it comes, as everywhere in Gymnasium. "group" leaves it to `score_group`, so
            that the replies of a group are scored in one call; then `step` gives no more than what bad form costs.
        **options: those of `PromptEnv`.
    """

    def __init__(self, *, when: When = "step", **options: Unpack[PromptOptions]) -> None:
        super().__init__(**options)
        if when not in get_args(When):
            raise ValueError(f"when is one of {get_args(When)}, got {when!r}")
        self.when = when

    @abstractmethod
    def score_all(self, conversations: Sequence[Conversation]) -> Sequence[Scored]:
        """What the last message of each conversation earns. All of them answer `self.prompt`."""

    def judge(self, conversation: Conversation) -> tuple[float, Mapping[str, float]]:
        if self.when == "group":
            return 0.0, {}
        (scored,) = self.score_all([as_conversation(conversation)])
        return scored

    def score_group(self, episodes: Sequence[Sequence[Message]]) -> GroupScore | None:
        if self.when == "step":
            return None
        scored = self.score_all([as_conversation(episode) for episode in episodes])
        return GroupScore(rewards=[reward for reward, _ in scored], metrics=[metrics for _, metrics in scored])


class RewardModel(ScoredEnv):
    """The reward is what a scorer makes of the reply: a function of yours, or a trained reward model.

    Metrics: `score`, `format`.

    Args:
        scorer: a function of a conversation that gives a number; or an object with a method `score` that takes many
            conversations and gives as many numbers; or the import path "module:name" of either. A conversation is a
            tuple of messages that ends with the reply. By default the words that the reply shares with the prompt's
            reference (`word_overlap`), which is for trying things out and needs data with references.
        batched: the function takes a list of conversations and gives a list of numbers.
        when: see `ScoredEnv`; "group" is what a reward model on an accelerator wants.
        **options: those of `PromptEnv`.

    Raises:
        ValueError, TypeError: there is no such scorer, or none is given and the prompts have no references.
    """

    def __init__(
        self,
        *,
        scorer: Scorer | ConversationScorer | str | None = None,
        batched: bool = False,
        when: When = "step",
        **options: Unpack[PromptOptions],
    ) -> None:
        super().__init__(when=when, **options)
        self.batched = batched
        self._scorer = None if scorer is None else Named(scorer, "scorer", method="score")
        if self._scorer is None:
            self._prompt(0).reference_for("scorer")

    def score_all(self, conversations: Sequence[Conversation]) -> list[Scored]:
        given = one_for_each(self._scores(conversations), len(conversations), "the scorer", "conversations")
        scores = [finite_number(score, "the scorer's score") for score in given]
        return [Scored(score, {"score": score}) for score in scores]

    def _scores(self, conversations: Sequence[Conversation]) -> Any:
        if self._scorer is None:
            reference = self.prompt.reference_for("scorer")
            return [word_overlap(conversation[-1]["content"], reference) for conversation in conversations]
        scorer: Any = self._scorer.value
        if isinstance(scorer, ConversationScorer):
            return scorer.score(conversations)
        if self.batched:
            return scorer(conversations)
        return [scorer(conversation) for conversation in conversations]
