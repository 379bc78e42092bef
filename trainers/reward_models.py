"""Trained reward models: scalar ones score a conversation, judges compare two. Both live on a policy's own frozen base.

They fit `RewardModel-v0` (`scorer=`) and `Pairwise-v0` (`comparer=`), and work wherever conversations are to be scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..agents import BaseModel, Datum, LoraPolicy, LoraScorer
from ..agents.lora import read_peft_config
from ..messages import Message, assistant, user
from ..renderers import Renderer, TrainOn, get_renderer
from .checkpoints import find_adapter
from .preferences import Pair

Conversation = Sequence[Message]
FIRST, SECOND, TIE = "A", "B", "C"
LABELS = (FIRST, SECOND, TIE)
_QUESTION = """\
Two replies to the same conversation follow. Which is better? Answer with one letter: A if reply A is better, B if \
reply B is better, C if neither is.

[Conversation]
{conversation}

[Reply A]
{first}

[Reply B]
{second}

[Better reply]"""


class ScalarRewardModel:
    """Scores conversations with a `LoraScorer`, read at a conversation's last token.

    Args:
        scorer: the adapter and head.
        renderer: turns conversations into tokens; by default the model's own.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: what is copied is the description of an environment that holds it, and there is one base model."""
        return self

    def __init__(self, scorer: LoraScorer, renderer: Renderer | None = None) -> None:
        self.scorer = scorer
        self.renderer = renderer or get_renderer(scorer.base.tokenizer)

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """A score for each conversation that ends with a reply; differences of scores are log-odds of winning."""
        if not conversations:
            return []
        context = self.scorer.base.context_length
        data = [scored_datum(conversation, self.renderer, context) for conversation in conversations]
        return [float(values[0]) for values in self.scorer.score(data)]

    def compare(self, pairs: Sequence[tuple[Conversation, Conversation]]) -> list[float]:
        """The probability that the first of each pair is the better one."""
        scores = np.asarray(self.score([conversation for pair in pairs for conversation in pair]))
        lead = scores[::2] - scores[1::2]
        return [float(p) for p in np.exp(-np.logaddexp(0.0, -lead))]


class JudgeRewardModel:
    """Compares replies with a policy that answers a question with a letter; the letter's probability is the verdict.

    Args:
        policy: the judge; None is the bare base.
        base: the base model.
        renderer: turns the question into tokens; by default the model's own.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: what is copied is the description of an environment that holds it, and there is one base model."""
        return self

    def __init__(self, policy: LoraPolicy | None, base: BaseModel, renderer: Renderer | None = None) -> None:
        self.policy = policy or base.add_lora("judge")
        self.renderer = renderer or get_renderer(base.tokenizer)

    def compare(self, pairs: Sequence[tuple[Conversation, Conversation]]) -> list[float]:
        """The probability that the first of each pair is the better one; half of a tie's counts for each."""
        first, _, tie = label_probabilities(self.policy, self.renderer, pairs).T
        return [float(p) for p in first + tie / 2]


def load_reward_model(
    base: BaseModel, path: str | Path, *, name: str = "reward_model", renderer: Renderer | None = None
) -> ScalarRewardModel | JudgeRewardModel:
    """The reward model that a run of `reward` trained, of whichever kind it is.

    Args:
        base: the base model that it was trained on.
        path: the run's directory, or an adapter's folder.
        name: its name among the base's adapters.
        renderer: see `ScalarRewardModel`.

    Raises:
        FileNotFoundError, ValueError: there is none that fits this base.
    """
    folder = find_adapter(path)
    if read_peft_config(folder).get("task_type") == "SEQ_CLS":
        return ScalarRewardModel(base.load_scorer(name, folder), renderer)
    return JudgeRewardModel(base.load_lora(name, folder), base, renderer)


def scored_datum(conversation: Conversation, renderer: Renderer, context_length: int) -> Datum:
    """The conversation with a score asked for at its last token.

    One that is longer than the context loses its beginning: the reply is what is scored.
    """
    tokens, _ = renderer.build_supervised_example(conversation, train_on=TrainOn.ALL_TOKENS)
    tokens = tokens[-context_length:]
    return Datum.scored(tokens, [len(tokens) - 1])


def question(first: Conversation, second: Conversation) -> Message:
    """What a judge is asked about two conversations that answer the same prompt."""
    prompt = "\n".join(f"{message['role']}: {message['content']}" for message in first[:-1])
    return user(_QUESTION.format(conversation=prompt, first=first[-1]["content"], second=second[-1]["content"]))


def judged_examples(pair: Pair, renderer: Renderer) -> list[Datum]:
    """A labelled pair as what a judge learns: asked in both orders, answered with the right letter."""
    chosen, rejected = pair.conversations
    orders = [(chosen, rejected, FIRST), (rejected, chosen, SECOND)]
    conversations = [[question(a, b), assistant(TIE if pair.is_tie else label)] for a, b, label in orders]
    return [Datum.supervised(*renderer.build_supervised_example(conversation)) for conversation in conversations]


def label_probabilities(
    policy: LoraPolicy, renderer: Renderer, pairs: Sequence[tuple[Conversation, Conversation]]
) -> np.ndarray:
    """P(A), P(B), P(C) of a judge's first token, given that it is one of the three: `(pairs, 3)`.

    Raises:
        ValueError: the model's tokens do not tell the letters apart.
    """
    if not pairs:
        return np.zeros((0, len(LABELS)))
    prompts = [renderer.build_generation_prompt([question(first, second)]) for first, second in pairs]
    labels = _label_tokens(renderer)
    data = []
    for prompt in prompts:
        candidates = np.zeros((len(prompt), len(LABELS)), dtype=int)
        candidates[-1] = labels
        weights = np.zeros((len(prompt), len(LABELS)))
        weights[-1] = 1.0
        data.append(Datum(tokens=prompt, targets=candidates, weights=weights))
    scores = np.stack([logprobs[-1] for logprobs in policy.forward(data).logprobs])
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    normalized: np.ndarray = shares / shares.sum(-1, keepdims=True)
    return normalized


def _label_tokens(renderer: Renderer) -> list[int]:
    prompt = renderer.build_generation_prompt([user("?")])
    found = [renderer.build_supervised_example([user("?"), assistant(label)]).tokens[len(prompt)] for label in LABELS]
    if len(set(found)) < len(LABELS):
        raise ValueError(f"the renderer {renderer.name!r} begins the replies {LABELS} with the same token; use another")
    return found
