"""Replies that are compared with one another: the reward is how often a reply wins within its group."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, Unpack, get_args, runtime_checkable

from ...messages import Message, Reply, assistant
from ..core import GroupScore
from ..named import Named
from ..prompts import Conversation, PromptEnv, PromptOptions, as_conversation, finite_number, one_for_each
from ..threads import DaemonExecutor
from .overlap import word_overlap
from .tournament import NO_OPINION, CompareAll, Pairing, Standings, play_all_pairs, play_ring, play_swiss

Pattern = Literal["all", "ring", "swiss", "reference"]
TIE_MARGIN = 1e-9


@runtime_checkable
class ConversationComparer(Protocol):
    """What a trained preference model has to be: something that compares many pairs of conversations at once.

    Both conversations of a pair answer the same prompt; each result is the probability that the first is better.
    """

    def compare(self, pairs: Sequence[tuple[Conversation, Conversation]]) -> Sequence[float]: ...


Comparer: TypeAlias = (
    Callable[[Conversation, Conversation], float]
    | Callable[[Sequence[tuple[Conversation, Conversation]]], Sequence[float]]
)


class ComparedEnv(PromptEnv):
    """A reply's reward is its mean win rate against others of its group. An author writes `compare`.

    `step` gives nothing but what bad form costs; `score_group` gives the win rate, from 0 to 1. So `format_coef` is 0.5
    by default: the distance from the middle of a group to its end. Metrics of an episode: `win_rate`, `comparisons`
    (that it took part in, each counted once, however many orders were asked) and `ties`; and `format`.

    A reply that is alone, as in an evaluation, is compared with the prompt's reference; without one its win rate is 0.5
    and `comparisons` is 0.

    Args:
        pattern: who is compared with whom. "all": everybody with everybody, n (n - 1) / 2 comparisons. "ring": each
            with its neighbours, n comparisons. "swiss": rounds in which equals meet, n / 2 log2(n) comparisons.
            "reference": each with the prompt's reference reply, n comparisons.
        chunk: with "all", compare within chunks of so many neighbours only.
        rounds: with "swiss", how many rounds; by default log2(n), rounded up.
        hard: a comparison is won, lost or tied, instead of counting as the probability.
        both_orders: ask for each pair in both orders and take the mean, so that a comparer's liking for the first or
            the second place cancels out.
        **options: those of `PromptEnv`.

    Raises:
        ValueError: an argument is none of those, or does not go with the pattern.
    """

    def __init__(
        self,
        *,
        pattern: Pattern = "all",
        chunk: int | None = None,
        rounds: int | None = None,
        hard: bool = False,
        both_orders: bool = True,
        **options: Unpack[PromptOptions],
    ) -> None:
        options.setdefault("format_coef", 0.5)
        super().__init__(**options)
        if pattern not in get_args(Pattern):
            raise ValueError(f"pattern is one of {get_args(Pattern)}, got {pattern!r}")
        if chunk is not None and (pattern != "all" or chunk < 2):
            raise ValueError(f"chunk is at least 2, and goes with pattern='all'; got {chunk=}, {pattern=}")
        if rounds is not None and (pattern != "swiss" or rounds < 1):
            raise ValueError(f"rounds is at least 1, and goes with pattern='swiss'; got {rounds=}, {pattern=}")
        self.pattern, self.chunk, self.rounds, self.hard, self.both_orders = pattern, chunk, rounds, hard, both_orders
        if pattern == "reference":
            self._prompt(0).reference_for("a different pattern")

    @abstractmethod
    def compare(self, pairs: Sequence[tuple[Conversation, Conversation]]) -> Sequence[float]:
        """For each pair the probability that the first conversation is better than the second: 0.5 is a tie."""

    def judge(self, conversation: Conversation) -> tuple[float, Mapping[str, float]]:
        return 0.0, {}

    def score_group(self, episodes: Sequence[Sequence[Message]]) -> GroupScore:
        conversations = [_complete(episode) for episode in episodes]
        size = len(conversations)
        if self.pattern == "reference" or (size == 1 and self.prompt.reference is not None):
            reference = assistant(self.prompt.reference_for("a different pattern"))
            conversations += [(*conversation[:-1], reference) for conversation in conversations]
            standings = Standings(2 * size, self.hard)
            pairings = [(i, size + i) for i in range(size)]
            standings.enter(pairings, self._compare_all(conversations)(pairings))
        else:
            standings = self._play(size, self._compare_all(conversations)) if size > 1 else Standings(size)
        rates = [standings.win_rate(member) for member in range(size)]
        return GroupScore(
            rewards=rates,
            metrics=[
                {"win_rate": rates[i], "comparisons": standings.played[i], "ties": standings.ties[i]}
                for i in range(size)
            ],
        )

    def _play(self, size: int, compare: CompareAll) -> Standings:
        if self.pattern == "all":
            return play_all_pairs(size, compare, chunk=self.chunk, hard=self.hard)
        if self.pattern == "ring":
            return play_ring(size, compare, hard=self.hard)
        return play_swiss(size, compare, rounds=self.rounds, hard=self.hard)

    def _compare_all(self, conversations: Sequence[Conversation]) -> CompareAll:
        def compare(pairings: Sequence[Pairing]) -> list[float]:
            asked = [*pairings, *((second, first) for first, second in pairings)] if self.both_orders else pairings
            given = self.compare([(conversations[first], conversations[second]) for first, second in asked])
            results = [_probability(result) for result in one_for_each(given, len(asked), "the comparer", "pairs")]
            if not self.both_orders:
                return results
            half = len(pairings)
            return [(results[i] + 1 - results[half + i]) / 2 for i in range(half)]

        return compare


class Pairwise(ComparedEnv):
    """A reply's reward is its mean win rate within its group, as a comparer of yours sees it.

    Args:
        comparer: a function of two conversations that gives the probability, from 0 to 1, that the first is better; or
            an object with a method `compare` that takes many pairs and gives as many probabilities; or the import path
            "module:name" of either. Both conversations are tuples of messages with the same prompt, each ending with a
            reply. By default the reply that shares more words with the prompt's reference (`word_overlap`) is better,
            which is for trying things out.
        batched: the function takes a list of pairs and gives a list of probabilities.
        concurrency: how many comparisons of a function that is not batched run at a time, in threads: for judges
            behind a network.
        pattern, chunk, rounds, hard, both_orders: see `ComparedEnv`.
        **options: those of `PromptEnv`.

    Raises:
        ValueError, TypeError: there is no such comparer, or none is given and the prompts have no references.
    """

    def __init__(
        self,
        *,
        comparer: Comparer | ConversationComparer | str | None = None,
        batched: bool = False,
        concurrency: int = 1,
        pattern: Pattern = "all",
        chunk: int | None = None,
        rounds: int | None = None,
        hard: bool = False,
        both_orders: bool = True,
        **options: Unpack[PromptOptions],
    ) -> None:
        super().__init__(pattern=pattern, chunk=chunk, rounds=rounds, hard=hard, both_orders=both_orders, **options)
        if concurrency < 1:
            raise ValueError(f"concurrency is at least 1, got {concurrency}")
        self.batched, self.concurrency = batched, concurrency
        self._comparer = None if comparer is None else Named(comparer, "comparer", method="compare")
        if self._comparer is None:
            self._prompt(0).reference_for("comparer")

    def compare(self, pairs: Sequence[tuple[Conversation, Conversation]]) -> Sequence[float]:
        if self._comparer is None:
            reference = self.prompt.reference_for("comparer")
            return [_closer(first, second, reference) for first, second in pairs]
        comparer: Any = self._comparer.value
        if isinstance(comparer, ConversationComparer):
            return comparer.compare(pairs)
        if self.batched:
            batch: Sequence[float] = comparer(pairs)
            return batch
        if self.concurrency == 1:
            return [comparer(first, second) for first, second in pairs]
        with DaemonExecutor(self.concurrency, "loragym comparisons") as threads:
            return list(threads.map(lambda pair: comparer(*pair), pairs))


class Shorter(ComparedEnv):
    """Of two replies the shorter one is better: the smallest preference there is, and one whose effect shows at once.

    Length is in characters, white space at both ends aside. A reply of white space alone says nothing: it loses against
    any other, and is badly formed. Metrics: `characters`, and those of `ComparedEnv`.

    Args:
        pattern, chunk, rounds, hard: see `ComparedEnv`.
        **options: those of `PromptEnv`.
    """

    def __init__(
        self,
        *,
        pattern: Pattern = "all",
        chunk: int | None = None,
        rounds: int | None = None,
        hard: bool = False,
        **options: Unpack[PromptOptions],
    ) -> None:
        # A comparison of lengths has no order to be partial to.
        super().__init__(pattern=pattern, chunk=chunk, rounds=rounds, hard=hard, both_orders=False, **options)

    def is_well_formed(self, reply: Reply) -> bool:
        return super().is_well_formed(reply) and bool(reply["content"].strip())

    def judge(self, conversation: Conversation) -> tuple[float, Mapping[str, float]]:
        return 0.0, {"characters": len(conversation[-1]["content"].strip())}

    def compare(self, pairs: Sequence[tuple[Conversation, Conversation]]) -> Sequence[float]:
        return [_greater(_brevity(first), _brevity(second)) for first, second in pairs]


def _complete(episode: Sequence[Message]) -> Conversation:
    """The conversation of an attempt; one that was broken off before it began replied with nothing."""
    conversation = as_conversation(episode)
    return conversation if conversation[-1]["role"] == "assistant" else (*conversation, assistant(""))


def _probability(given: Any) -> float:
    probability = finite_number(given, "the comparer's result")
    if not 0 <= probability <= 1:
        raise ValueError(
            f"the comparer gave {probability}; it gives the probability that the first is better, from 0 to 1"
        )
    return probability


def _greater(first: float, second: float) -> float:
    if first == second or abs(first - second) <= TIE_MARGIN:
        return NO_OPINION
    return float(first > second)


def _closer(first: Conversation, second: Conversation, reference: str) -> float:
    return _greater(word_overlap(first[-1]["content"], reference), word_overlap(second[-1]["content"], reference))


def _brevity(conversation: Conversation) -> float:
    length = len(conversation[-1]["content"].strip())
    return -float(length) if length else -float("inf")
