"""What trainers on pairs have in common: where the pairs come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from .config import RunConfig, at_least
from .preferences import Pair, read_pairs, split_pairs

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PairConfig(RunConfig):
    """Fields of the trainers that learn from pairs."""

    data: str = ""
    """Pairs: a JSONL or Parquet file, a folder, or a data set's id on the hub; each a prompt, chosen and rejected."""
    data_config: str | None = None
    """Which configuration of a hub data set."""
    test_data: str = ""
    """Held-out pairs; by default a share of the data's prompts."""
    test_fraction: float = 0.1
    """Share of the prompts held out where there are no test data."""
    max_length: int = 1024
    """Pairs with a longer conversation are left out, and counted."""
    epochs: int = 1
    """Passes over the pairs."""
    batch_size: int = 32
    """Pairs in a step."""
    schedule: str = "linear"
    """Learning rate over the run: constant, linear (to 0) or cosine (to 0)."""
    eval_every: int = 10
    """Steps between evaluations on the held-out pairs; 0 evaluates only at the ends."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size"):
            at_least(self, name, 1)
        at_least(self, "max_length", 2)
        for name in ("eval_every", "test_fraction"):
            at_least(self, name, 0)
        if self.test_fraction >= 1:
            raise ValueError(f"test-fraction is below 1, got {self.test_fraction}")

    def load_pairs(self) -> tuple[list[Pair], list[Pair]]:
        """Training and held-out pairs.

        Raises:
            DataNotFound, BadData, ValueError: there are none.
        """
        if not self.data:
            raise ValueError("data names the pairs to learn from: a file, a folder or a hub id; got nothing")
        split = None if self.test_data else "train"
        pairs = read_pairs(self.data, split=split, config=self.data_config)
        if self.test_data:
            return pairs, read_pairs(self.test_data, config=self.data_config)
        training, held_out = split_pairs(pairs, self.test_fraction)
        if not training:
            raise ValueError(f"{self.data}: all {len(pairs)} pairs would be held out; lower test-fraction")
        return training, held_out


def fitting(pairs: Sequence[Pair], make: Callable[[Pair], T | None], max_length: int) -> tuple[list[T], int]:
    """What `make` makes of each pair, and how many it left out as too long.

    Raises:
        ValueError: it left out all of them.
    """
    made = [make(pair) for pair in pairs]
    kept = [example for example in made if example is not None]
    if pairs and not kept:
        raise ValueError(f"each of {len(pairs)} pairs has more than {max_length} tokens; raise max-length")
    return kept, len(made) - len(kept)
