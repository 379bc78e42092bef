"""A LoRA scorer: an adapter with a linear head that gives a number for a position, where a policy gives a distribution.

Reward models and critics are scorers on the policy's own frozen base. On disk a scorer is a PEFT folder of a sequence
classifier with one label, so other code can read it; its head is called `score` there.

Suffixes: `X` scored positions of a pack, `H` hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .attention import TreeLayout
from .batches import Batch, Datum
from .exclusive import exclusive
from .lora import HEAD_WEIGHT, Adapter, LoraConfig
from .memory import halved_when_short
from .optimizer import Adam, AdamParams
from .packing import Pack
from .policy import backward_over_packs

if TYPE_CHECKING:
    from .base_model import BaseModel
    from .policy import LoraPolicy

ScoreLoss = Callable[[list[torch.Tensor], Sequence[Datum]], tuple[torch.Tensor, Mapping[str, float]]]
"""Each datum's scores at its trained positions, and the datums, to (scalar, metrics)."""


@dataclass(frozen=True, slots=True)
class ScoreOutput:
    """What a scorer found.

    Attributes:
        scores: for each datum the scores at its trained positions, in their order.
        loss: the scalar that was minimised.
        metrics: `trained_tokens`, `computed_tokens` (after sharing) and the loss's own.
    """

    scores: list[np.ndarray]
    loss: float
    metrics: dict[str, float] = field(default_factory=dict)


class LoraScorer:
    """An adapter and a head on a frozen base; made by `BaseModel.add_scorer`. The head begins at zero."""

    def __init__(self, base: BaseModel, name: str, config: LoraConfig, adapter: Adapter) -> None:
        self.base = base
        self.name = name
        self.config = config
        self.adapter = adapter
        hidden_size = base.model.get_input_embeddings().weight.shape[1]
        dtype = torch.promote_types(base.dtype, torch.float32)
        self.head_1H = torch.nn.Parameter(torch.zeros(1, hidden_size, dtype=dtype, device=base.device))
        self.tokens_per_pass = 2048
        """Most tokens in one forward and backward pass."""
        self.optimizer = Adam({**adapter.tensors(), HEAD_WEIGHT: self.head_1H}, f"scorer {name!r}")

    @property
    def version(self) -> int:
        """Number of updates behind these weights."""
        return self.optimizer.version

    @exclusive
    @halved_when_short
    def score(self, data: Sequence[Datum]) -> list[np.ndarray]:
        """Each datum's scores at its trained positions (`Datum.scored` makes such a datum)."""
        batch = Batch(data, self.base, self.tokens_per_pass)
        with torch.no_grad():
            return _as_arrays(self._by_datum(batch, [self._scores(batch, pack) for pack in batch.packs]))

    @exclusive
    @halved_when_short
    def forward_backward(self, data: Sequence[Datum], loss: ScoreLoss) -> ScoreOutput:
        """Adds the gradient of a loss of the scores to the gradients already there.

        Raises:
            ValueError: `data` is empty or no position is scored.
            NonFiniteError: the loss is NaN or infinite; the gradients of this call are not to be used.
        """
        batch = Batch(data, self.base, self.tokens_per_pass)
        kept: list[np.ndarray] = []

        def of_packs(parts: Sequence[Sequence[torch.Tensor]]) -> tuple[torch.Tensor, Mapping[str, float]]:
            scores = self._by_datum(batch, [scores_X for (scores_X,) in parts])
            kept.extend(_as_arrays(scores))
            return loss(scores, data)

        name = getattr(loss, "__name__", "custom")
        value, metrics = backward_over_packs(
            batch, lambda pack: [self._scores(batch, pack)], of_packs, name, self.optimizer.accepts
        )
        return ScoreOutput(kept, value, {**batch.metrics(), **metrics})

    def optim_step(self, params: AdamParams | None = None) -> dict[str, float]:
        """One AdamW update of adapter and head; see `LoraPolicy.optim_step`."""
        return self.optimizer.step(params or AdamParams())

    def zero_grad(self) -> None:
        """Forgets the gradients gathered so far."""
        self.optimizer.zero_grad()

    def copy_adapter(self, policy: LoraPolicy) -> None:
        """Takes over a policy's adapter; the head stays, moments are forgotten.

        Raises:
            ValueError: the policy has other layers or another rank.
        """
        self.adapter.copy_from(policy.adapter)
        self.optimizer.restart()

    def save_adapter(self, folder: str | Path) -> None:
        """Writes a PEFT folder of a sequence classifier with one label."""
        self.base.write_adapter(self.adapter, self.config, folder, head=self.head_1H)

    def load_adapter(self, folder: str | Path) -> None:
        """Takes the weights of a PEFT folder that a scorer wrote; the optimiser starts afresh.

        Raises:
            FileNotFoundError, ValueError: no scorer there, or it does not fit this base, rank, alpha and targets.
        """
        self.base.read_adapter(self.adapter, self.config, folder, extra={HEAD_WEIGHT: self.head_1H})
        self.optimizer.restart()

    def save_state(self, folder: str | Path) -> None:
        """Writes adapter, head, optimiser and update count."""
        self.save_adapter(folder)
        self.optimizer.save(Path(folder))

    def load_state(self, folder: str | Path, *, with_optimizer: bool = True) -> None:
        """Takes back what `save_state` wrote; without the optimiser only the weights.

        Raises:
            FileNotFoundError, ValueError: a file is missing or damaged, or belongs to another base.
        """
        saved = self.optimizer.read(Path(folder)) if with_optimizer else None
        if saved is not None:
            self.optimizer.check(saved)
        self.load_adapter(folder)
        if saved is not None:
            self.optimizer.restore(saved)

    def _scores(self, batch: Batch, pack: Pack) -> torch.Tensor:
        hidden_TH = self.base.hidden_states(pack.tokens_T, pack.positions_T, TreeLayout(pack), self.adapter)
        nodes = torch.as_tensor(batch.nodes(pack), device=self.base.device)
        return (hidden_TH[nodes].to(self.head_1H.dtype) @ self.head_1H.T).squeeze(-1)

    def _by_datum(self, batch: Batch, scores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if not scores:
            return [self.head_1H.new_zeros(0)] * len(batch.data)
        return batch.by_datum(scores, candidates=False)


def _as_arrays(scores: Sequence[torch.Tensor]) -> list[np.ndarray]:
    return [values.detach().double().cpu().numpy() for values in scores]
