"""The physical bound: the least time in which this machine could do the work, whatever the program.

    seconds = max(sum over matrix products of operations / rate, bytes moved / bandwidth)

The rate of each product is measured in the same run at its own shape `(M, K, N)`: `(M, K) @ (K, N)`, the best of plain
weights, prepacked weights (oneDNN's and ours) and, for small products, many at once (`workers/machine.py`). The number
of tokens in a shape is rounded up to a power of two, at most `LARGEST`, where rates no longer grow: that makes the
bound stricter. One product is `2 M K N` operations. Counted:

- each frozen linear layer `K -> N` over `T` tokens: forward `2 T K N`, in training `2 T K N` more for the gradient of
  its input. Its weight's gradient is not needed;
- its LoRA update of rank `r`: forward `2 T r (K + N)`, in training twice that again (input and weights). Layers that
  read the same input share one product with their `A` side by side;
- attention of a token that sees `c` tokens: `4 c H D` (scores and values, `H` heads of size `D`), in training `8 c H D`
  more, at the best rate of any shape;
- the output head: `2 K V` a position whose next token is sampled or trained, in training `2 K V` more;
- bytes: the weights once a decoding step, and the keys and values that it reads, a shared prompt's once for all samples
  of it; in training the weights twice a call.

What sequences share is counted once: a group's prompt, and its last position's head. Not counted, so that the bound
stays below what can be reached: norms, activations, rotary positions, softmax, the draw, the optimiser, Python.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .cases import Group

LARGEST = {"cpu": 1024, "cuda": 8192}
"""Tokens of a measured product beyond which the rate is taken to be constant."""

Shape = tuple[int, int, int]
"""A product's M, K, N."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A dense decoder's sizes: `hidden`, `intermediate`, `heads` of `head_dim`, `kv_heads`, `vocabulary`."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    weight_bytes: int = 2

    @classmethod
    def of_config(cls, config: Mapping[str, Any], weight_bytes: int) -> ModelShape:
        """From the fields of a transformers configuration."""
        heads = config["num_attention_heads"]
        return cls(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocabulary=config["vocab_size"],
            weight_bytes=weight_bytes,
        )

    @property
    def linears(self) -> list[tuple[int, tuple[int, ...]]]:
        """A layer's linear layers by input: (K, the N of each layer that reads it)."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return [
            (self.hidden, (wide, narrow, narrow)),
            (wide, (self.hidden,)),
            (self.hidden, (self.intermediate, self.intermediate)),
            (self.intermediate, (self.hidden,)),
        ]

    @property
    def linear_weights(self) -> int:
        """Weights of all layers' linear layers."""
        return self.layers * sum(k * sum(ns) for k, ns in self.linears)

    @property
    def weight_bytes_read(self) -> int:
        """Bytes of what one pass reads: linear layers and the head."""
        return self.weight_bytes * (self.linear_weights + self.hidden * self.vocabulary)

    def lora_weights(self, rank: int) -> int:
        """Weights of an adapter on all linear layers."""
        return self.layers * sum(rank * (k + n) for k, ns in self.linears for n in ns)

    @property
    def kv_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.weight_bytes


@dataclass(slots=True)
class Work:
    """Operations by part and measured shape, attention's apart, and bytes.

    Attributes:
        sizes: the model's own sizes; every other number in a shape is a number of tokens.
        largest: the most tokens of a measured product.
    """

    sizes: frozenset[int]
    largest: int
    operations: Counter[tuple[str, Shape]] = field(default_factory=Counter)
    attention: float = 0.0
    bytes: float = 0.0

    @classmethod
    def on(cls, shape: ModelShape, rank: int, largest: int) -> Work:
        """No work yet."""
        sizes = {shape.vocabulary, rank}
        for k, ns in shape.linears:
            sizes |= {k, *ns, rank * len(ns)}
        return cls(frozenset(sizes), largest)

    def add(self, part: str, m: int, k: int, n: int, times: int = 1) -> None:
        """Counts a product `times` over."""
        if m and k and n:
            measured = tuple(d if d in self.sizes else rounded_tokens(d, self.largest) for d in (m, k, n))
            self.operations[part, measured] += 2 * m * k * n * times  # type: ignore[index]

    @property
    def shapes(self) -> set[Shape]:
        return {shape for _, shape in self.operations}

    @property
    def total_operations(self) -> float:
        return sum(self.operations.values()) + self.attention


@dataclass(frozen=True, slots=True)
class Machine:
    """Measured: operations per second by shape, and bytes per second."""

    rates: Mapping[Shape, float]
    bandwidth: float

    @property
    def best_rate(self) -> float:
        return max(self.rates.values())


def rounded_tokens(count: int, largest: int) -> int:
    """The next power of two, at most `largest`."""
    return min(largest, 1 << (count - 1).bit_length())


def add_forward(work: Work, shape: ModelShape, rank: int, tokens: int) -> None:
    """Counts all linear layers' forward products over `tokens`."""
    for k, ns in shape.linears:
        for n in ns:
            work.add("linear", tokens, k, n, shape.layers)
            work.add("lora", tokens, rank, n, shape.layers)
        work.add("lora", tokens, k, rank * len(ns), shape.layers)


def add_backward(work: Work, shape: ModelShape, rank: int, tokens: int) -> None:
    """Counts the products of the backward pass over `tokens`, without gradients of the frozen weights."""
    for k, ns in shape.linears:
        fused = rank * len(ns)
        for n in ns:
            work.add("linear", tokens, n, k, shape.layers)
            work.add("lora", tokens, n, rank, shape.layers)
            work.add("lora", n, tokens, rank, shape.layers)
        work.add("lora", tokens, fused, k, shape.layers)
        work.add("lora", fused, tokens, k, shape.layers)


def training_work(shape: ModelShape, rank: int, groups: Iterable[Group], largest: int = LARGEST["cpu"]) -> Work:
    """One `forward_backward` over sequences; a sequence's last token is a target only."""
    work = Work.on(shape, rank, largest)
    nodes = trained = seen = 0
    for group in groups:
        # Without a prompt each member is a tree of its own.
        nodes += group.prompt
        seen += _seen(0, group.prompt)
        starts_at_prompt = [n for n, untrained in zip(group.lengths, group.untrained, strict=True) if not untrained]
        trained += bool(group.prompt and starts_at_prompt)
        for length, untrained in zip(group.lengths, group.untrained, strict=True):
            nodes += length - 1
            seen += _seen(group.prompt, length - 1)
            trained += length - max(untrained, 1)
    add_forward(work, shape, rank, nodes)
    add_backward(work, shape, rank, nodes)
    work.add("head", trained, shape.hidden, shape.vocabulary)
    work.add("head", trained, shape.vocabulary, shape.hidden)
    work.attention = 12.0 * seen * shape.heads * shape.head_dim * shape.layers
    work.bytes = 2.0 * shape.weight_bytes_read
    return work


def sampling_steps(shape: ModelShape, rank: int, groups: Sequence[Group], largest: int = LARGEST["cpu"]) -> list[Work]:
    """The prefill, which gives each sample its first token, and one decoding step for each further token."""
    prefill = Work.on(shape, rank, largest)
    add_forward(prefill, shape, rank, sum(group.prompt for group in groups))
    prefill.add("head", len(groups), shape.hidden, shape.vocabulary)
    attention = 4.0 * shape.heads * shape.head_dim * shape.layers
    prefill.attention = attention * sum(_seen(0, group.prompt) for group in groups)
    weights = shape.weight_bytes_read + shape.weight_bytes * shape.lora_weights(rank)
    prefill.bytes = weights
    steps = [prefill]
    for own in range(1, max(max(group.lengths) for group in groups)):
        active = [(group.prompt, sum(length > own for length in group.lengths)) for group in groups]
        rows = sum(count for _, count in active)
        step = Work.on(shape, rank, largest)
        add_forward(step, shape, rank, rows)
        step.add("head", rows, shape.hidden, shape.vocabulary)
        step.attention = attention * sum(count * (prompt + own) for prompt, count in active)
        read = sum(prompt for prompt, count in active if count) + rows * own
        step.bytes = weights + shape.kv_bytes * read
        steps.append(step)
    return steps


def seconds(work: Work, machine: Machine) -> float:
    """The least time for one pass."""
    return max(sum(parts(work, machine).values()), work.bytes / machine.bandwidth)


def parts(work: Work, machine: Machine) -> dict[str, float]:
    """Seconds of arithmetic by part: linear, lora, head, attention."""
    found: Counter[str] = Counter()
    for (part, shape), operations in work.operations.items():
        found[part] += operations / machine.rates[shape]  # type: ignore[assignment]
    if work.attention:
        found["attention"] += work.attention / machine.best_rate  # type: ignore[assignment]
    return dict(found)


def _seen(before: int, count: int) -> int:
    """Tokens seen in all by `count` tokens after `before` others, each seeing itself too."""
    return count * before + count * (count + 1) // 2
