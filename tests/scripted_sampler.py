"""A sampler without a model: replies are a function of prompt and seed, and finish in whatever order a test wants."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from loragym.agents import Completion, SamplingParams
from loragym.agents.testing import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
END = TOKENIZER.eos_token_id
Answer = Callable[[str, SamplingParams], str | list[int]]


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


class ScriptedSampler:
    """Submit and step, as `TorchSampler` has them.

    Args:
        answer: the reply to a prompt's text, as text or as tokens, without its end.
        order: shuffles who finishes next; None is first come, first served.
        at_once: how many requests finish in a step.
        cut_off: end replies at this many tokens, as a token limit does.
    """

    def __init__(
        self, answer: Answer, *, order: random.Random | None = None, at_once: int = 1, cut_off: int = 10**9
    ) -> None:
        self.answer, self.order, self.at_once, self.cut_off = answer, order, at_once, cut_off
        self.seen: list[SamplingParams] = []
        self._waiting: dict[int, tuple[list[int], SamplingParams]] = {}

    @property
    def pending(self) -> int:
        return len(self._waiting)

    def submit(self, prompt: Sequence[int], params: SamplingParams, n: int = 1) -> int:
        assert n == 1
        ticket = len(self.seen)
        self.seen.append(params)
        self._waiting[ticket] = (list(prompt), params)
        return ticket

    def step(self) -> dict[int, list[Completion]]:
        tickets = list(self._waiting)
        if self.order is not None:
            self.order.shuffle(tickets)
        return {ticket: [self._completion(*self._waiting.pop(ticket))] for ticket in tickets[: self.at_once]}

    def _completion(self, prompt: list[int], params: SamplingParams) -> Completion:
        answer = self.answer(TOKENIZER.decode(prompt), params)
        tokens = [*(encode(answer) if isinstance(answer, str) else answer), END]
        reason = "stop" if len(tokens) <= self.cut_off else "length"
        tokens = tokens[: self.cut_off]
        return Completion(tokens, [-float(token) for token in tokens], reason)  # type: ignore[arg-type]


def guess(prompt: str, params: SamplingParams) -> str:
    """Guesses at random, by the request's seed, within what the hints so far leave."""
    low, high = map(int, re.search(r"from (\d+) to (\d+)", prompt).groups())  # type: ignore[union-attr]
    for number, hint in re.findall(r"Guess: (\d+).*?Too (low|high)\.", prompt, flags=re.DOTALL):
        low, high = (int(number) + 1, high) if hint == "low" else (low, int(number) - 1)
    assert params.seed is not None
    return f"Guess: {low + params.seed % (high - low + 1)}"
