"""The order in which examples are learnt: a function of the seed alone, so that a resumed run keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `count` examples in an epoch: a function of seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


class Epochs(Generic[T]):
    """Examples batch by batch: each epoch's order follows from the seed alone.

    Args:
        examples: at least one.
        batch_size: examples of a step; the last batch of an epoch may be smaller.
        epochs: how often each is met.
        seed: of the order.
    """

    def __init__(self, examples: Sequence[T], batch_size: int, epochs: int, seed: int) -> None:
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.batches_per_epoch = -(-len(examples) // batch_size)
        self.total = self.batches_per_epoch * epochs

    def epoch(self, step: int) -> int:
        return step // self.batches_per_epoch

    def batch(self, step: int) -> list[T]:
        """The examples of step `step`."""
        epoch, batch = divmod(step, self.batches_per_epoch)
        order = epoch_order(len(self.examples), self.seed, epoch)
        return [self.examples[i] for i in order[batch * self.batch_size : (batch + 1) * self.batch_size]]
