"""What the engine's tests share: tiny bases, adapters that do something, and transformers' own answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from loragym.agents import BaseModel, Datum, LoraConfig, LoraPolicy
from loragym.agents.attention import IMPLEMENTATION
from loragym.agents.decoding import Stepper
from loragym.agents.lora import Adapter
from loragym.agents.testing import tiny_model

# Every sliding window is shorter than the tests' sequences and every soft cap low enough to bend their scores.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-untied": {"architecture": "llama", "tie_word_embeddings": False},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 5},
    "gemma2": {
        "sliding_window": 5,
        "attn_logit_softcapping": 1.0,
        "final_logit_softcapping": 2.0,
        "query_pre_attn_scalar": 9,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gemma3": {
        "architecture": "gemma3_text",
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


def tiny_base(seed: int = 0, **options: Any) -> BaseModel:
    """A tiny base of its own, which the test may do anything with."""
    return BaseModel(*tiny_model(seed, **options), name="tiny")


def family_base(family: str, **options: Any) -> BaseModel:
    """A tiny base of one of `FAMILIES`, its biases and norms away from the zeros and ones that they start with."""
    base = tiny_base(**{"architecture": family, **FAMILIES[family], **options})
    generator = torch.Generator().manual_seed(3)
    for parameter in base.model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float32).to(
                parameter.dtype
            )
    return base


def stirred(policy: LoraPolicy, seed: int = 0, size: float = 0.05) -> LoraPolicy:
    """The policy with random B matrices, so that its adapter changes every logit."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, b in policy.adapter.pairs.values():
            b.copy_(size * torch.randn(b.shape, generator=generator, dtype=torch.float64))
    return policy


def stirred_policy(base: BaseModel, name: str = "policy", *, seed: int = 0, **config: Any) -> LoraPolicy:
    return stirred(base.add_lora(name, LoraConfig(**{"rank": 4, **config})), seed)


def count_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets the number of tokens of each pass through any model's layers, whichever way it takes."""
    computed: list[int] = []
    through, step = BaseModel.hidden_states, Stepper.__call__

    def counted(self: BaseModel, tokens_T: torch.Tensor, *args: Any) -> torch.Tensor:
        computed.append(len(tokens_T))
        return through(self, tokens_T, *args)

    def counted_step(self: Stepper, tokens_B: torch.Tensor, *args: Any) -> torch.Tensor:
        computed.append(len(tokens_B))
        return step(self, tokens_B, *args)

    monkeypatch.setattr(BaseModel, "hidden_states", counted)
    monkeypatch.setattr(Stepper, "__call__", counted_step)
    return computed


def random_tokens(seed: int, length: int, vocabulary: int = 256) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocabulary, length).tolist()


def branching(seed: int = 0, *, stem: int = 9, branches: Sequence[int] = (6, 3, 7, 1)) -> list[list[int]]:
    """Sequences with a common stem; the second is repeated, and one stands apart."""
    stem_tokens = random_tokens(seed, stem)
    sequences = [stem_tokens + random_tokens(seed + 1 + i, length) for i, length in enumerate(branches)]
    return [*sequences, list(sequences[1]), random_tokens(seed + 99, 8)]


def datum(sequence: Sequence[int], **fields: Any) -> Datum:
    """The whole sequence as a datum, its first token being the only one that is not predicted."""
    return Datum(tokens=list(sequence[:-1]), targets=list(sequence[1:]), **fields)


def rl_data(sequences: Sequence[Sequence[int]], seed: int = 0) -> list[Datum]:
    """Datums with random sampler log-probabilities, advantages of both signs and masks; each trains its last token."""
    rng = np.random.default_rng(seed)
    data = []
    for sequence in sequences:
        length = len(sequence) - 1
        mask = rng.random(length) < 0.7
        mask[-1] = True
        data.append(
            datum(
                sequence,
                logprobs=(-5.5 + rng.normal(size=length)).tolist(),
                advantages=rng.normal(size=length).tolist(),
                mask=mask.tolist(),
            )
        )
    return data


def weighted_data(sequences: Sequence[Sequence[int]], seed: int = 0) -> list[Datum]:
    """Datums with random loss weights, some of them zero; each trains its last token."""
    rng = np.random.default_rng(seed)
    data = []
    for sequence in sequences:
        weights = rng.random(len(sequence)) * (rng.random(len(sequence)) < 0.7)
        weights[-1] = 0.5
        data.append(Datum.supervised(list(sequence), weights.tolist()))
    return data


@contextmanager
def eager(base: BaseModel) -> Iterator[Any]:
    """The model with transformers' own attention."""
    base.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            yield base.model
    finally:
        base.model.set_attn_implementation(IMPLEMENTATION)


def reference_logits(base: BaseModel, tokens: Sequence[int], adapter: Adapter | None = None) -> torch.Tensor:
    """transformers' own logits `(T, V)` for one sequence, in float64."""
    with eager(base) as model, base.switch.using(adapter):
        return model(torch.tensor([list(tokens)]), use_cache=False).logits[0].double()


def reference_logprobs(
    base: BaseModel, sequence: Sequence[int], adapter: Adapter | None = None, temperature: float = 1.0
) -> np.ndarray:
    """Log-probabilities of all tokens of a sequence but the first."""
    logits = reference_logits(base, sequence[:-1], adapter) / temperature
    return logits.log_softmax(-1)[torch.arange(len(sequence) - 1), torch.tensor(sequence[1:])].numpy()


def gradients(policy: LoraPolicy) -> list[torch.Tensor]:
    """The gathered gradients, which are cleared."""
    gathered = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in policy.parameters]
    policy.zero_grad()
    return gathered


def assert_close(got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float) -> None:
    """All tensors equal to within `tolerance` of the largest entry expected anywhere, which is not zero."""
    largest = max(t.abs().max().item() for t in expected)
    assert largest > 0
    worst = max((a - b).abs().max().item() for a, b in zip(got, expected, strict=True))
    assert worst <= tolerance * largest, f"differs by {worst:.3g} of {largest:.3g}"


def exact_policy(**config: Any) -> LoraPolicy:
    """A policy that computes in float64 throughout, norms included, for which transformers has float32 in any model."""
    base = tiny_base(dtype=torch.float64)
    for module in list(base.model.modules()):
        for name, child in list(module.named_children()):
            if name.endswith("norm"):
                norm = torch.nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon, dtype=torch.float64)
                norm.weight = child.weight
                setattr(module, name, norm)
    return stirred_policy(base, **config)
