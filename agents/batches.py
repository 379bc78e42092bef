"""What is trained on: datums, and a call's datums packed for the passes over them.

Suffixes: `N` positions of one datum, `K` candidates for one target, `X` trained targets of a pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from .losses import TokenInputs
from .packing import Pack, pack_sequences

if TYPE_CHECKING:
    from .base_model import BaseModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Datum:
    """One training sequence; position i of `tokens` predicts `targets[i]`. All fields have `N` entries.

    Attributes:
        tokens: the input, without the last token of the sequence.
        targets: the tokens to predict, the sequence without its first token; or `(N, K)` candidates for each.
        weights: loss weights of the targets, for `cross_entropy`; `(N, K)` as well if the targets are candidates.
        logprobs: the sampler's log-probabilities of the targets, for the losses of reinforcement learning.
        advantages: advantages of the targets, for the same.
        reference_logprobs: a reference policy's, for a KL penalty as a term of the loss.
        old_logprobs: the learner's own before the step's first update; see `losses.Guards`.
        mask: True where a target is trained on; by default where its weight is not zero, or everywhere.
    """

    tokens: Sequence[int]
    targets: Sequence[int] | Sequence[Sequence[int]] | np.ndarray
    weights: Sequence[float] | Sequence[Sequence[float]] | np.ndarray | None = None
    logprobs: Sequence[float] | None = None
    advantages: Sequence[float] | None = None
    reference_logprobs: Sequence[float] | None = None
    old_logprobs: Sequence[float] | None = None
    mask: Sequence[bool] | None = None

    def __post_init__(self) -> None:
        length = len(self.tokens)
        if not length:
            raise ValueError("a datum needs at least one input token and its target, got none")
        for name in ("targets", "weights", *_PER_TARGET, "mask"):
            values = getattr(self, name)
            if values is not None and len(values) != length:
                raise ValueError(
                    f"datum: {name} has {len(values)} entries where tokens has {length}; they go by position"
                )
        if np.ndim(self.targets) == 2:
            self._check_candidates()

    @classmethod
    def supervised(cls, tokens: Sequence[int], weights: Sequence[float]) -> Datum:
        """From a whole sequence and its loss weights, as renderers give them."""
        return cls(tokens=tokens[:-1], targets=tokens[1:], weights=weights[1:])

    @classmethod
    def scored(cls, tokens: Sequence[int], positions: Sequence[int]) -> Datum:
        """A whole sequence whose values at some positions are asked for, as a `LoraScorer` takes it."""
        mask = np.zeros(len(tokens), dtype=bool)
        mask[np.asarray(positions, dtype=int)] = True
        return cls(tokens=tokens, targets=tokens, mask=mask.tolist())

    def _check_candidates(self) -> None:
        shape = np.shape(self.targets)
        given_shape = None if self.weights is None else np.shape(self.weights)
        if given_shape != shape:
            raise ValueError(f"datum: candidates {shape} need weights of the same shape, got {given_shape}")
        if given := [name for name in _PER_TARGET if getattr(self, name) is not None]:
            raise ValueError(f"datum: with several candidates for a target there can be no {', '.join(given)}")

    @property
    def trained(self) -> np.ndarray:
        """Positions whose target is trained on, ascending."""
        if self.mask is not None:
            return np.flatnonzero(np.asarray(self.mask))
        if self.weights is not None:
            used = np.asarray(self.weights) != 0
            return np.flatnonzero(used.any(-1) if used.ndim == 2 else used)
        return np.arange(len(self.tokens))


_PER_TARGET = ("logprobs", "advantages", "reference_logprobs", "old_logprobs")


class Batch:
    """Datums of one call, packed; sequences end at their last trained position."""

    def __init__(self, data: Sequence[Datum], base: BaseModel, max_nodes: int) -> None:
        """Packs datums into passes of at most `max_nodes` tokens.

        Raises:
            ValueError: there are none, or one is longer than the context or has ids outside of the vocabulary.
        """
        if not data:
            raise ValueError("no datum to train on: the batch is empty")
        self.data = data
        self.trained = [datum.trained for datum in data]
        self.targets = [np.asarray(datum.targets)[trained] for datum, trained in zip(data, self.trained, strict=True)]
        context, vocabulary = base.context_length, base.vocabulary
        for index, datum in enumerate(data):
            if len(datum.tokens) > context:
                raise ValueError(
                    f"datum {index} has {len(datum.tokens)} tokens, the context of {base.name} is {context}; "
                    "truncate or drop it"
                )
            ids = np.concatenate([np.asarray(datum.tokens), self.targets[index].ravel()])
            if ids.min() < 0 or ids.max() >= vocabulary:
                raise ValueError(
                    f"datum {index} has token ids from {ids.min()} to {ids.max()}, the vocabulary of "
                    f"{base.name} goes from 0 to {vocabulary - 1}; mask what is not to be trained on instead"
                )
        used = [index for index in range(len(data)) if len(self.trained[index])]
        self.packs = pack_sequences(
            [list(data[i].tokens[: self.trained[i][-1] + 1]) for i in used], max_nodes=max_nodes, device=base.device
        )
        for pack in self.packs:
            pack.members[:] = [used[m] for m in pack.members]

    def lengths(self) -> list[int]:
        """How many targets of each datum are trained on."""
        return [len(trained) for trained in self.trained]

    def nodes(self, pack: Pack) -> np.ndarray:
        """The node before each trained target, member after member, without regard to candidates."""
        return np.concatenate([path[self.trained[m]] for m, path in zip(pack.members, pack.paths, strict=True)])

    def scored(self, pack: Pack) -> tuple[np.ndarray, np.ndarray]:
        """Nodes and targets `(X,)` of a pack, member after member; all candidates of a target one after another."""
        nodes = [
            np.repeat(path[self.trained[m]], self.targets[m].shape[1])
            if self.targets[m].ndim == 2
            else path[self.trained[m]]
            for m, path in zip(pack.members, pack.paths, strict=True)
        ]
        return np.concatenate(nodes), np.concatenate([self.targets[m].ravel() for m in pack.members])

    def inputs(self, pack: Pack, shares: Sequence[float], p_X: torch.Tensor) -> tuple[TokenInputs, torch.Tensor]:
        """The trained targets' inputs and shares, in the order of `scored`."""

        def as_tensor(parts: Sequence[np.ndarray]) -> torch.Tensor:
            return torch.as_tensor(np.concatenate(parts), dtype=p_X.dtype, device=p_X.device)

        def column(name: str) -> torch.Tensor | None:
            given = [getattr(self.data[m], name) for m in pack.members]
            if all(values is None for values in given):
                return None
            return as_tensor(
                [
                    np.zeros(self.targets[m].size)
                    if values is None
                    else np.asarray(values, dtype=float)[self.trained[m]].ravel()
                    for m, values in zip(pack.members, given, strict=True)
                ]
            )

        sizes = [self.targets[m].size for m in pack.members]
        sequences = torch.as_tensor(np.repeat(np.arange(len(sizes)), sizes), device=p_X.device)
        zeros = torch.zeros_like(p_X)
        columns = {name: column(name) for name in ("weights", *_PER_TARGET)}
        inputs = TokenInputs(
            weights=_or(columns["weights"], zeros),
            sampler_logprobs=_or(columns["logprobs"], zeros),
            advantages=_or(columns["advantages"], zeros),
            reference_logprobs=_or(columns["reference_logprobs"], zeros),
            old_logprobs=_or(columns["old_logprobs"], p_X.detach()),
            sequences=sequences,
        )
        return inputs, as_tensor([np.full(size, shares[m]) for m, size in zip(pack.members, sizes, strict=True)])

    def split(self, pack: Pack, values_X: torch.Tensor) -> dict[int, torch.Tensor]:
        """Each member's part of the pack's values, `(its trained targets,)` or `(..., K)`."""
        parts = values_X.split([self.targets[m].size for m in pack.members])
        return {m: part.view(self.targets[m].shape) for m, part in zip(pack.members, parts, strict=True)}

    def by_datum(self, values: Sequence[torch.Tensor], *, candidates: bool = True) -> list[torch.Tensor]:
        """All packs' values by datum; without `candidates` they are one for each trained position."""
        first = values[0]
        found = [first.new_zeros(0, *first.shape[1:])] * len(self.data)
        for pack, values_X in zip(self.packs, values, strict=True):
            if candidates:
                parts = self.split(pack, values_X)
            else:
                lengths = [len(self.trained[m]) for m in pack.members]
                parts = dict(zip(pack.members, values_X.split(lengths), strict=True))
            for member, part in parts.items():
                found[member] = part
        return found

    def empty_logprobs(self) -> list[np.ndarray]:
        """A place for each datum's log-probabilities: zeros of its targets' shape."""
        return [np.zeros(np.shape(datum.targets), dtype=np.float64) for datum in self.data]

    def keep(self, logprobs: list[np.ndarray], pack: Pack, p_X: torch.Tensor) -> None:
        """Puts a pack's values where they belong in `logprobs`."""
        for member, values in self.split(pack, p_X.detach().double().cpu()).items():
            logprobs[member][self.trained[member]] = values.numpy()

    def metrics(self) -> dict[str, float]:
        """How many targets are trained on, and how many tokens are computed for them."""
        return {
            "trained_tokens": float(sum(self.lengths())),
            "computed_tokens": float(sum(pack.num_nodes for pack in self.packs)),
        }


def _or(values: torch.Tensor | None, default: torch.Tensor) -> torch.Tensor:
    return default if values is None else values


def check_fields(data: Sequence[Datum], needed: Sequence[str], loss: str) -> None:
    """Raises ValueError if a datum lacks what a loss needs, or what other datums have."""
    if any(datum.old_logprobs is not None for datum in data):
        needed = (*needed, "old_logprobs")
    for index, datum in enumerate(data):
        lacking = [name for name in needed if getattr(datum, name) is None]
        if lacking:
            raise ValueError(f"datum {index} lacks {' and '.join(lacking)}, which the loss {loss!r} needs")
