"""What all samplers share: the checks of a request, its seed, and the batch call on top of `submit` and `step`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .sampling import Completion, SamplingParams

if TYPE_CHECKING:
    from .base_model import BaseModel


class Submitting(Protocol):
    """A sampler, as far as `sample_batch` needs one."""

    def submit(self, prompt: Sequence[int], params: SamplingParams, n: int = 1) -> int: ...

    def step(self) -> dict[int, list[Completion]]: ...


def checked_request(
    base: BaseModel, prompt: Sequence[int], params: SamplingParams, n: int, *, context: int | None = None
) -> SamplingParams:
    """The parameters as they hold for this prompt: the stop spelt out, no more tokens than the context has room for.

    Args:
        base: the model that is sampled from.
        prompt: token ids.
        params: what was asked for.
        n: number of samples.
        context: tokens that the engine takes at once, if fewer than the model.

    Raises:
        ValueError: the prompt is empty, leaves no room in the context or has a token that the model does not know.
    """
    context = context or base.context_length
    if n < 1:
        raise ValueError(f"n is at least 1, got {n}")
    if not len(prompt):
        raise ValueError("the prompt has no token; a chat prompt comes from Renderer.build_generation_prompt")
    if len(prompt) >= context:
        raise ValueError(
            f"the prompt has {len(prompt)} tokens and the context of {base.name} is {context}: there is no "
            "room for a reply; shorten the conversation or choose a model with a longer context"
        )
    if min(prompt) < 0 or max(prompt) >= base.vocabulary:
        raise ValueError(
            f"the prompt has token ids from {min(prompt)} to {max(prompt)}, the vocabulary of {base.name} "
            f"goes from 0 to {base.vocabulary - 1}; is it another model's tokenizer?"
        )
    stop = base.end_tokens if params.stop is None else params.stop
    return replace(params, max_tokens=min(params.max_tokens, context - len(prompt)), stop=stop)


def seed_of(params: SamplingParams, fresh: np.random.SeedSequence) -> int:
    """The request's own seed, or the next one of `fresh`."""
    return params.seed if params.seed is not None else int(fresh.spawn(1)[0].generate_state(1, np.uint64)[0])


def sample_batch(
    sampler: Submitting, prompts: Sequence[Sequence[int]], n: int, params: SamplingParams | None
) -> tuple[list[list[Completion]], dict[int, list[Completion]]]:
    """`n` completions of each prompt, and by ticket what finished meanwhile of requests that were submitted apart."""
    params = params or SamplingParams()
    tickets = []
    for index, prompt in enumerate(prompts):
        # Equal prompts of one call are different requests: each draws by its own seed.
        seed = None if params.seed is None else params.seed + index * 0x9E3779B9
        tickets.append(sampler.submit(prompt, replace(params, seed=seed), n))
    done: dict[int, list[Completion]] = {}
    others: dict[int, list[Completion]] = {}
    while not done.keys() >= set(tickets):
        done.update(sampler.step())
        others |= {ticket: done.pop(ticket) for ticket in done.keys() - set(tickets)}
    return [done[ticket] for ticket in tickets], others
