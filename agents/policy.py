"""A LoRA policy: forward, forward_backward, optim_step, sampler, and its files.

Suffixes: `N` positions of one datum, `X` trained tokens of a pack, `U` distinct nodes among them, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from .attention import TreeLayout
from .batches import Batch, Datum, check_fields
from .divergence import Direction, chunk_divergence
from .exclusive import exclusive
from .logprobs import selected_logprobs, tempered
from .lora import Adapter, LoraConfig
from .losses import Normalization, needed_fields, token_loss, token_shares
from .memory import KEPT_BYTES, halved_when_short
from .optimizer import Adam, AdamParams
from .packing import Pack

if TYPE_CHECKING:
    from .base_model import BaseModel
    from .torch_sampler import TorchSampler

LOGITS_BYTES = 2**28
"""Memory for logits; of more trained tokens they are computed chunk by chunk, and once more on the way back."""


CustomLoss = Callable[..., tuple[torch.Tensor, Mapping[str, float]]]
"""A user's loss: each datum's log-probabilities at its trained positions, and the datums, to (scalar, metrics).

With `with_logits` there is a third argument: each datum's logits at those positions, `(its trained positions, V)`.
"""


@dataclass(frozen=True, slots=True)
class TrainOutput:
    """What a forward pass found.

    Attributes:
        logprobs: for each datum the learner's log-probabilities of its targets, `(N,)`; 0 where nothing is trained.
        loss: the scalar that was minimised; NaN after a plain `forward`.
        metrics: `trained_tokens`, `computed_tokens` (after sharing) and the custom loss's own.
    """

    logprobs: list[np.ndarray]
    loss: float
    metrics: dict[str, float] = field(default_factory=dict)


class LoraPolicy:
    """One adapter on a frozen base; made by `BaseModel.add_lora`."""

    def __init__(self, base: BaseModel, name: str, config: LoraConfig, adapter: Adapter) -> None:
        self.base = base
        self.name = name
        self.config = config
        self.adapter = adapter
        self.tokens_per_pass = 2048
        """Most tokens in one forward and backward pass; larger batches are accumulated. Bounds memory."""
        self.optimizer = Adam(adapter.tensors(), f"policy {name!r}")

    @property
    def version(self) -> int:
        """Number of updates behind these weights."""
        return self.optimizer.version

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [tensor for pair in self.adapter.pairs.values() for tensor in pair]

    @exclusive
    @halved_when_short
    def forward(self, data: Sequence[Datum], *, temperature: float = 1.0) -> TrainOutput:
        """Log-probabilities of the trained targets, without gradients."""
        packed = self._batch(data)
        logprobs = packed.empty_logprobs()
        with torch.no_grad():
            for pack in packed.packs:
                packed.keep(logprobs, pack, self._logprobs(packed, pack, temperature))
        return TrainOutput(logprobs, float("nan"), packed.metrics())

    @exclusive
    @halved_when_short
    def forward_backward(
        self,
        data: Sequence[Datum],
        loss: str | CustomLoss = "cross_entropy",
        loss_config: Mapping[str, Any] | None = None,
        *,
        normalization: Normalization = "sum",
        temperature: float = 1.0,
        scale: float = 1.0,
        with_logits: bool = False,
    ) -> TrainOutput:
        """Adds the gradient of a loss over `data` to the gradients already there.

        Args:
            data: the datums; the result does not depend on how they are cut into passes.
            loss: a registered loss's name, or a function of (log-probabilities of each datum's trained targets, data).
            loss_config: further arguments of a registered loss, and fields of `losses.Guards`.
            normalization: how tokens are added up (`losses.token_shares`); a custom loss does its own.
            temperature: of the distribution that is scored: the one that the sampler drew from.
            scale: factor of a registered loss: this call's share of a batch that is learnt in several calls.
            with_logits: give a custom loss the logits too, divided by the temperature, in float32 at least; they take
                4 bytes for each trained position and entry of the vocabulary.

        Raises:
            ValueError: `data` is empty or holds no trained token, or a datum lacks what the loss needs.
            NonFiniteError: the loss is NaN or infinite; the gradients of this call are not to be used.
        """
        batch = self._batch(data)
        if callable(loss):
            return self._custom(batch, loss, temperature, with_logits)
        per_token = token_loss(loss, loss_config)
        check_fields(data, needed_fields(loss, loss_config), loss)
        shares = token_shares(batch.lengths(), normalization)
        logprobs, total = batch.empty_logprobs(), 0.0
        for pack in batch.packs:
            p_X = self._logprobs(batch, pack, temperature)
            inputs, share_X = batch.inputs(pack, shares, p_X)
            value = (per_token(p_X, inputs) * share_X).sum() * scale
            if self.optimizer.accepts(value, loss):
                value.backward()
            total += value.item()
            batch.keep(logprobs, pack, p_X)
        return TrainOutput(logprobs, total, batch.metrics())

    @exclusive
    @halved_when_short
    def forward_backward_kl(
        self,
        data: Sequence[Datum],
        teacher: LoraPolicy | None,
        *,
        teacher_data: Sequence[Datum] | None = None,
        direction: Direction = "reverse",
        normalization: Normalization = "token",
        temperature: float = 1.0,
        scale: float = 1.0,
    ) -> TrainOutput:
        """Adds the gradient of the KL divergence from a teacher over the whole vocabulary at the trained positions.

        Args:
            data: what the student reads; the log-probabilities of its targets come back, and play no part.
            teacher: a policy on the same base, which is not changed; None is the base itself.
            teacher_data: what the teacher reads, where that differs (a longer prompt, say): a datum for each of `data`,
                with as many trained positions.
            direction: `reverse` is KL(student, teacher), which seeks a mode; `forward` KL(teacher, student).
            normalization: see `forward_backward`.
            temperature: of both distributions.
            scale: see `forward_backward`.

        Raises:
            ValueError: nothing is trained, the data do not fit together, or the teacher is on another base.
        """
        if teacher is not None and teacher.base is not self.base:
            raise ValueError(f"the teacher {teacher.name!r} is on another base model than {self.name!r}; load it there")
        batch = self._batch(data)
        shares = token_shares(batch.lengths(), normalization)
        read = self._batch(teacher_data if teacher_data is not None else data)
        if read.lengths() != batch.lengths():
            raise ValueError("each of teacher_data has as many trained positions as its datum; these have not")
        adapter = None if teacher is None else teacher.adapter
        taught = _hidden_by_datum(self.base, adapter, read)
        logprobs, total = batch.empty_logprobs(), 0.0
        divergence = partial(chunk_divergence, self.base, (self.adapter, adapter), direction, temperature)
        for pack in batch.packs:
            places = torch.as_tensor(batch.nodes(pack), device=self.base.device)
            student_XH, teacher_XH = self._hidden(pack)[places], torch.cat([taught[m] for m in pack.members])
            chunk = self._rows_per_chunk() // 2 + 1
            kl_X = torch.cat(
                [
                    checkpoint(divergence, student, known, use_reentrant=False)
                    for student, known in zip(student_XH.split(chunk), teacher_XH.split(chunk), strict=True)
                ]
            )
            share_X = torch.cat([kl_X.new_full((len(batch.trained[m]),), shares[m]) for m in pack.members])
            value = (kl_X * share_X).sum() * scale
            if self.optimizer.accepts(value, "KL"):
                value.backward()
            total += value.item()
        return TrainOutput(logprobs, total, batch.metrics())

    @exclusive
    @halved_when_short
    def top_candidates(
        self, data: Sequence[Datum], count: int, *, temperature: float = 1.0
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each datum the `count` likeliest tokens at its trained positions, with their log-probabilities.

        Returns:
            A pair `(positions, count)`, `(positions, count)` for each datum: a student's targets and, as exponentials,
            their weights.
        """
        if not 0 < count <= self.base.vocabulary:
            raise ValueError(f"count is from 1 to the vocabulary's {self.base.vocabulary}, got {count}")
        batch = self._batch(data)
        found = []
        for hidden_XH in _hidden_by_datum(self.base, self.adapter, batch):
            parts = []
            for hidden in hidden_XH.split(self._rows_per_chunk()):
                with torch.no_grad():
                    scaled = tempered(self.base.logits(hidden, self.adapter), temperature)
                parts.append(torch.log_softmax(scaled, -1).topk(count))
            ids = torch.cat([part.indices for part in parts]) if parts else torch.zeros(0, count, dtype=torch.long)
            values = torch.cat([part.values for part in parts]) if parts else torch.zeros(0, count)
            found.append((ids.cpu().numpy(), values.double().cpu().numpy()))
        return found

    def optim_step(self, params: AdamParams | None = None) -> dict[str, float]:
        """One AdamW update with the gradients gathered so far, which are cleared.

        Returns:
            `grad_norm` (before clipping) and `learning_rate`.

        Raises:
            NonFiniteError: the gradient is NaN or infinite; nothing is changed but the gradients, which are cleared.
            RuntimeError: there is no gradient.
        """
        return self.optimizer.step(params or AdamParams())

    def scale_gradients(self, factor: float) -> None:
        """Multiplies the gradients gathered so far, as where a batch's size is known only at its end."""
        for tensor in self.parameters:
            if tensor.grad is not None:
                tensor.grad.mul_(factor)

    def zero_grad(self) -> None:
        """Forgets the gradients gathered so far."""
        self.optimizer.zero_grad()

    def sampler(self, **options: Any) -> TorchSampler:
        """A sampler of the policy as it is now; later updates do not change it. Options as in `TorchSampler`."""
        from .torch_sampler import TorchSampler

        return TorchSampler(self.base, self.adapter.frozen(self.base.dtype), version=self.version, **options)

    def copy_weights(self, other: LoraPolicy) -> None:
        """Takes over the weights of a policy of the same shape as they are now; moments and gradients are forgotten.

        Raises:
            ValueError: the other has other layers or another rank.
        """
        self.adapter.copy_from(other.adapter)
        self.optimizer.restart()

    def twin(self, name: str) -> LoraPolicy:
        """Another policy on the same base with this one's layers and weights as they are now, without moments.

        Raises:
            ValueError: the name is taken.
        """
        twin = self.base.add_like(name, self)
        twin.copy_weights(self)
        return twin

    def save_adapter(self, folder: str | Path) -> None:
        """Writes a standard PEFT folder, for `peft.PeftModel.from_pretrained` and everything that reads it."""
        self.base.write_adapter(self.adapter, self.config, folder)

    def load_adapter(self, folder: str | Path) -> None:
        """Takes the weights of a PEFT folder; the optimiser starts afresh, without gradients.

        Raises:
            FileNotFoundError, ValueError: no adapter there, or it does not fit this base, rank, alpha and targets.
        """
        self.base.read_adapter(self.adapter, self.config, folder)
        self.optimizer.restart()

    def save_state(self, folder: str | Path) -> None:
        """Writes adapter, optimiser and update count: all that a resumed run needs of the policy."""
        folder = Path(folder)
        self.save_adapter(folder)
        self.optimizer.save(folder)

    def load_state(self, folder: str | Path, *, with_optimizer: bool = True) -> None:
        """Takes back what `save_state` wrote; without the optimiser only the adapter.

        Raises:
            FileNotFoundError, ValueError: a file is missing or damaged, or belongs to another base.
        """
        folder = Path(folder)
        saved = self.optimizer.read(folder) if with_optimizer else None
        if saved is not None:
            self.optimizer.check(saved)
        self.load_adapter(folder)
        if saved is not None:
            self.optimizer.restore(saved)

    def _batch(self, data: Sequence[Datum]) -> Batch:
        return Batch(data, self.base, self.tokens_per_pass)

    def _hidden(self, pack: Pack) -> torch.Tensor:
        return self.base.hidden_states(pack.tokens_T, pack.positions_T, TreeLayout(pack), self.adapter)

    def _logprobs(self, batch: Batch, pack: Pack, temperature: float) -> torch.Tensor:
        """Log-probabilities `(X,)` of a pack's trained targets, member after member."""
        return self._scores(batch, pack, temperature, self._hidden(pack))

    def _scores(self, batch: Batch, pack: Pack, temperature: float, hidden_TH: torch.Tensor) -> torch.Tensor:
        if not temperature > 0:
            raise ValueError(f"a temperature to score at is above 0, got {temperature}")
        nodes_X, targets_X = batch.scored(pack)
        nodes_U, row_X = np.unique(nodes_X, return_inverse=True)
        device = self.base.device
        hidden_UH = hidden_TH.index_select(0, torch.as_tensor(nodes_U, device=device))
        order_X = np.argsort(row_X, kind="stable")
        most = self._rows_per_chunk()
        chunk = min(most, self._rows_per_chunk(KEPT_BYTES)) if device.type == "cpu" else most

        def of_chunk(hidden: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return selected_logprobs(self.base.logits(hidden, self.adapter), rows, targets, temperature)

        parts = []
        for start in range(0, len(nodes_U), chunk):
            within = order_X[(row_X[order_X] >= start) & (row_X[order_X] < start + chunk)]
            rows = torch.as_tensor(row_X[within] - start, device=device)
            targets = torch.as_tensor(targets_X[within], device=device)
            hidden = hidden_UH[start : start + chunk]
            if torch.is_grad_enabled() and len(nodes_U) > most:
                parts.append(checkpoint(of_chunk, hidden, rows, targets, use_reentrant=False))
            else:
                parts.append(of_chunk(hidden, rows, targets))
        inverse = np.empty_like(order_X)
        inverse[order_X] = np.arange(len(order_X))
        return torch.cat(parts)[torch.as_tensor(inverse, device=device)]

    def _rows_per_chunk(self, size: int | None = None) -> int:
        return max(1, (size or LOGITS_BYTES) // (self.base.dtype.itemsize * self.base.vocabulary))

    def _custom(self, batch: Batch, loss: CustomLoss, temperature: float, with_logits: bool) -> TrainOutput:
        def outputs(pack: Pack) -> list[torch.Tensor]:
            hidden_TH = self._hidden(pack)
            found = [self._scores(batch, pack, temperature, hidden_TH)]
            if with_logits:
                nodes = torch.as_tensor(batch.nodes(pack), device=self.base.device)
                found.append(tempered(self.base.logits(hidden_TH[nodes], self.adapter), temperature))
            return found

        logprobs = batch.empty_logprobs()

        def of_packs(parts: Sequence[Sequence[torch.Tensor]]) -> tuple[torch.Tensor, Mapping[str, float]]:
            given: list[Any] = [batch.by_datum([p_X for p_X, *_ in parts])]
            if with_logits:
                given.append(batch.by_datum([logits_XV for _, logits_XV in parts], candidates=False))
            for pack, (p_X, *_) in zip(batch.packs, parts, strict=True):
                batch.keep(logprobs, pack, p_X)
            return loss(given[0], batch.data, *given[1:])

        name = getattr(loss, "__name__", "custom")
        value, metrics = backward_over_packs(batch, outputs, of_packs, name, self.optimizer.accepts)
        return TrainOutput(logprobs, value, {**batch.metrics(), **metrics})


def backward_over_packs(
    batch: Batch,
    outputs: Callable[[Pack], list[torch.Tensor]],
    loss: Callable[[Sequence[Sequence[torch.Tensor]]], tuple[torch.Tensor, Mapping[str, float]]],
    name: str,
    accepts: Callable[[torch.Tensor, str], bool],
) -> tuple[float, Mapping[str, float]]:
    """The gradient of a loss that may mix datums of different passes.

    Several passes are scored first without gradients; the loss's gradient by their outputs is then carried back pass by
    pass, which computes each once more but never holds more than one.

    Args:
        batch: the datums.
        outputs: a pass's outputs, with gradients.
        loss: of all passes' outputs, to (scalar, metrics).
        name: the loss's, for messages.
        accepts: `Adam.accepts`: whether the loss is one to take the gradient of.

    Raises:
        ValueError: nothing is trained.
        NonFiniteError: the loss is NaN or infinite, and such updates are not skipped.
    """
    if not any(batch.lengths()):
        token_shares([0] * len(batch.data), "sum")
    one_pass = len(batch.packs) == 1
    with torch.set_grad_enabled(one_pass):
        scored = [outputs(pack) for pack in batch.packs]
    leaves = scored if one_pass else [[part.detach().requires_grad_() for part in parts] for parts in scored]
    value, metrics = loss(leaves)
    if not accepts(value, name):
        return value.item(), metrics
    value.backward()
    if not one_pass:
        for pack, parts in zip(batch.packs, leaves, strict=True):
            used = [(place, part.grad) for place, part in enumerate(parts) if part.grad is not None]
            if used:
                again = outputs(pack)
                torch.autograd.backward([again[place] for place, _ in used], [grad for _, grad in used])
    return value.item(), metrics


@torch.no_grad()
def _hidden_by_datum(base: BaseModel, adapter: Adapter | None, batch: Batch) -> list[torch.Tensor]:
    """The last states at each datum's trained positions, `(its trained positions, H)`."""
    hidden_size = base.model.get_input_embeddings().weight.shape[1]
    found = [torch.zeros(0, hidden_size, dtype=base.dtype, device=base.device)] * len(batch.data)
    for pack in batch.packs:
        hidden_TH = base.hidden_states(pack.tokens_T, pack.positions_T, TreeLayout(pack), adapter)
        states_XH = hidden_TH[torch.as_tensor(batch.nodes(pack), device=base.device)]
        lengths = [len(batch.trained[m]) for m in pack.members]
        for member, part in zip(pack.members, states_XH.split(lengths), strict=True):
            found[member] = part
    return found
