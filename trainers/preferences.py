"""Pairs of replies of which one is better: from files, the hub, or rows in memory; and as tokens to learn from."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..agents import Datum
from ..envs.datasets import BadData, Source, as_row, load_rows
from ..messages import Message, assistant, messages_in_table, user
from ..renderers import Renderer, TrainOn

Conversation = tuple[Message, ...]
FORMS = (
    'expected {"prompt": text or messages, "chosen": text or messages, "rejected": likewise}, with messages that may '
    'begin with the prompt, and if wanted "tie": true and "margin": a number; or columns as of Anthropic\'s hh-rlhf or '
    "NVIDIA's HelpSteer3"
)
_TURN = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replies to one prompt.

    Attributes:
        prompt: what was said before, at least one message.
        chosen, rejected: the assistant's messages; which is which says nothing in a tie.
        preference: share of the label that is the chosen one's: 1, or 0.5 in a tie.
        margin: by how much it is better, in units of a reward model's score; 0 if nobody said.
    """

    prompt: Conversation
    chosen: Message
    rejected: Message
    preference: float = 1.0
    margin: float = 0.0

    @property
    def conversations(self) -> tuple[Conversation, Conversation]:
        """The prompt with the chosen reply, and with the rejected one."""
        return (*self.prompt, self.chosen), (*self.prompt, self.rejected)

    @property
    def is_tie(self) -> bool:
        return self.preference == 0.5


def read_pairs(source: Source, *, split: str | None = None, config: str | None = None) -> list[Pair]:
    """Pairs from a file, a folder, a data set on the hub, or rows.

    Args:
        source, split, config: see `envs.datasets.load_rows`.

    Raises:
        DataNotFound, BadData: there are none, or a row is no pair; the error names the row and the forms that are.
    """
    where = source if isinstance(source, str | os.PathLike) else "the pairs"
    pairs = []
    for number, row in enumerate(load_rows(source, split=split, config=config)):
        try:
            pairs.append(_pair(as_row(row, f"{where}, row {number}")))
        except (ValueError, TypeError, KeyError) as error:
            raise BadData(f"{where}, row {number}: {FORMS}; got {row!r:.200} ({error})") from error
    if not pairs:
        raise BadData(f"{where} holds no pair")
    return pairs


def split_pairs(pairs: Sequence[Pair], test_fraction: float) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs; all pairs of a prompt are on the same side, which its text alone decides."""
    parts: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        digest = hashlib.sha256(repr([(m["role"], m["content"]) for m in pair.prompt]).encode()).digest()
        parts[int.from_bytes(digest[:8], "big") / 2**64 < test_fraction].append(pair)
    return parts


def reply_datum(conversation: Sequence[Message], renderer: Renderer, max_length: int) -> Datum | None:
    """A conversation of which the last reply is trained; None if it has more than `max_length` tokens."""
    tokens, weights = renderer.build_supervised_example(conversation, train_on=TrainOn.LAST_ASSISTANT)
    return None if len(tokens) > max_length else Datum.supervised(tokens, weights)


def reply_logprobs(data: Sequence[Datum], logprobs: Sequence[np.ndarray], *, mean: bool = False) -> np.ndarray:
    """The log-probability of each datum's reply, `(D,)`: the sum over its tokens, or their mean."""
    parts = [p[datum.trained] for datum, p in zip(data, logprobs, strict=True)]
    return np.array([part.mean() if mean else part.sum() for part in parts])


def _pair(row: Mapping[str, Any]) -> Pair:
    if "response1" in row:
        return _helpsteer(row)
    chosen, rejected = row["chosen"], row["rejected"]
    prompt = row.get("prompt")
    if isinstance(chosen, str) and prompt is None:
        chosen, rejected = _dialogue(chosen), _dialogue(rejected)
    before, good = _completed(prompt, chosen)
    also_before, bad = _completed(prompt, rejected)
    if before != also_before:
        raise ValueError("the chosen and the rejected conversation differ before their last message")
    preference = 0.5 if row.get("tie") else 1.0
    margin = float(row.get("margin") or 0.0)
    if not 0 <= margin < float("inf"):
        raise ValueError(f"a margin is a number of at least 0, got {margin}")
    return Pair(before, good, bad, preference, margin)


def _completed(prompt: Any, reply: Any) -> tuple[Conversation, Message]:
    """Prompt and reply apart, from whichever of them holds messages."""
    before = (user(prompt),) if isinstance(prompt, str) else messages_in_table(prompt or (), where="prompt")
    said = (assistant(reply),) if isinstance(reply, str) else messages_in_table(reply, where="a reply")
    whole = said if said[: len(before)] == before else (*before, *said)
    if len(whole) < 2 or whole[-1]["role"] != "assistant":
        raise ValueError("a prompt and a reply of the assistant's were expected")
    return whole[:-1], whole[-1]


def _dialogue(text: str) -> list[Message]:
    """The messages of a text in which `Human:` and `Assistant:` take turns."""
    opening, *rest = _TURN.split(text)
    if opening.strip() or not rest:
        raise ValueError("without a prompt, texts are dialogues of '\\n\\nHuman: ...' and '\\n\\nAssistant: ...'")
    turns = zip(rest[::2], rest[1::2], strict=True)
    return [(user if speaker == "Human" else assistant)(said.strip()) for speaker, said in turns]


def _helpsteer(row: Mapping[str, Any]) -> Pair:
    """HelpSteer3: `overall_preference` from -3, the first is much better, to 3, the second is."""
    context = row["context"]
    prompt = (user(context),) if isinstance(context, str) else messages_in_table(context, where="context")
    verdict = float(row["overall_preference"])
    replies = [assistant(row["response1"]), assistant(row["response2"])]
    chosen, rejected = replies if verdict <= 0 else replies[::-1]
    return Pair(prompt, chosen, rejected, 0.5 if verdict == 0 else 1.0, abs(verdict))
