"""A LoRA policy: forward, forward_backward, optim_step, sampler, and its files.

Suffixes: `N` positions of one datum, `X` trained tokens of a pack, `U` distinct nodes among them, `V` vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.checkpoint import checkpoint

from .attention import TreeLayout
from .logprobs import selected_logprobs
from .lora import Adapter, LoraConfig, load_peft_tensors, read_peft_config, save_peft
from .losses import Normalization, TokenInputs, token_loss, token_shares
from .packing import Pack, pack_sequences

if TYPE_CHECKING:
    from .base_model import BaseModel
    from .torch_sampler import TorchSampler

OPTIMIZER_FILE = "optimizer.safetensors"
POLICY_FILE = "policy.json"
LOGITS_BYTES = 2**28
"""Memory for the logits of one chunk; more trained tokens go through the head chunk by chunk."""


class NonFiniteError(RuntimeError):
    """A loss or a gradient is NaN or infinite; the weights are as they were before."""


@dataclass(frozen=True, slots=True)
class AdamParams:
    """AdamW with decoupled weight decay (Loshchilov & Hutter 2019) for one `optim_step`."""

    learning_rate: float = 1e-4
    """Step size."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    grad_clip_norm: float = 0.0
    """Scale the gradient down to this norm if it is larger; 0 leaves it."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps", "weight_decay", "grad_clip_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is a finite number from 0 up, got {getattr(self, name)}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"beta1 and beta2 are from 0 to below 1, got {self.beta1} and {self.beta2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Datum:
    """One training sequence; position i of `tokens` predicts `targets[i]`. All fields have `N` entries.

    Attributes:
        tokens: the input, without the last token of the sequence.
        targets: the tokens to predict, the sequence without its first token.
        weights: loss weights of the targets, for `cross_entropy`.
        logprobs: the sampler's log-probabilities of the targets, for the losses of reinforcement learning.
        advantages: advantages of the targets, for the same.
        mask: True where a target is trained on; by default where its weight is not zero, or everywhere.
    """

    tokens: Sequence[int]
    targets: Sequence[int]
    weights: Sequence[float] | None = None
    logprobs: Sequence[float] | None = None
    advantages: Sequence[float] | None = None
    mask: Sequence[bool] | None = None

    def __post_init__(self) -> None:
        length = len(self.tokens)
        if not length:
            raise ValueError("a datum needs at least one input token and its target, got none")
        for name in ("targets", "weights", "logprobs", "advantages", "mask"):
            values = getattr(self, name)
            if values is not None and len(values) != length:
                raise ValueError(
                    f"datum: {name} has {len(values)} entries where tokens has {length}; they go by position"
                )

    @classmethod
    def supervised(cls, tokens: Sequence[int], weights: Sequence[float]) -> Datum:
        """From a whole sequence and its loss weights, as renderers give them."""
        return cls(tokens=tokens[:-1], targets=tokens[1:], weights=weights[1:])

    @property
    def trained(self) -> np.ndarray:
        """Positions whose target is trained on, ascending."""
        if self.mask is not None:
            return np.flatnonzero(np.asarray(self.mask))
        if self.weights is not None:
            return np.flatnonzero(np.asarray(self.weights))
        return np.arange(len(self.tokens))


CustomLoss = Callable[[list[torch.Tensor], Sequence[Datum]], tuple[torch.Tensor, Mapping[str, float]]]
"""A user's loss: each datum's log-probabilities at its trained positions, and the datums, to (scalar, metrics)."""


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
        self.version = 0
        """Number of updates behind these weights."""
        self._optimizer = self._new_optimizer()

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [tensor for pair in self.adapter.pairs.values() for tensor in pair]

    def forward(self, data: Sequence[Datum], *, temperature: float = 1.0) -> TrainOutput:
        """Log-probabilities of the trained targets, without gradients."""
        packed = _Batch(data, self)
        logprobs = packed.empty_logprobs()
        with torch.no_grad():
            for pack in packed.packs:
                packed.keep(logprobs, pack, self._logprobs(packed, pack, temperature))
        return TrainOutput(logprobs, float("nan"), packed.metrics())

    def forward_backward(
        self,
        data: Sequence[Datum],
        loss: str | CustomLoss = "cross_entropy",
        loss_config: Mapping[str, Any] | None = None,
        *,
        normalization: Normalization = "sum",
        temperature: float = 1.0,
    ) -> TrainOutput:
        """Adds the gradient of a loss over `data` to the gradients already there.

        Args:
            data: the datums; the result does not depend on how they are cut into passes.
            loss: a registered loss's name, or a function of (log-probabilities of each datum's trained targets, data).
            loss_config: further arguments of a registered loss.
            normalization: how tokens are added up (`losses.token_shares`); a custom loss does its own.
            temperature: of the distribution that is scored: the one that the sampler drew from.

        Raises:
            ValueError: `data` is empty or holds no trained token, or a datum lacks what the loss needs.
            NonFiniteError: the loss is NaN or infinite; the gradients of this call are not to be used.
        """
        batch = _Batch(data, self)
        if callable(loss):
            return self._custom(batch, loss, temperature)
        per_token = token_loss(loss)
        _check_fields(data, loss)
        shares = token_shares([len(t) for t in batch.trained], normalization)
        logprobs, total = batch.empty_logprobs(), 0.0
        for pack in batch.packs:
            p_X = self._logprobs(batch, pack, temperature)
            inputs, share_X = batch.inputs(pack, shares, p_X)
            value = (per_token(p_X, inputs, **(loss_config or {})) * share_X).sum()
            _check_finite(value, loss)
            value.backward()
            total += value.item()
            batch.keep(logprobs, pack, p_X)
        return TrainOutput(logprobs, total, batch.metrics())

    def optim_step(self, params: AdamParams | None = None) -> dict[str, float]:
        """One AdamW update with the gradients gathered so far, which are cleared.

        Returns:
            `grad_norm` (before clipping) and `learning_rate`.

        Raises:
            NonFiniteError: the gradient is NaN or infinite; nothing is changed but the gradients, which are cleared.
            RuntimeError: there is no gradient.
        """
        params = params or AdamParams()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not gradients:
            raise RuntimeError(f"policy {self.name!r} has no gradient; call forward_backward before optim_step")
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            self.zero_grad()
            raise NonFiniteError(
                f"gradient norm of policy {self.name!r} is {norm.item()} after {self.version} updates; the weights are "
                "unchanged. Usual causes: a learning rate that is too high, importance ratios that exploded"
            )
        if params.grad_clip_norm:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, params.grad_clip_norm, norm)
        for group in self._optimizer.param_groups:
            group.update(
                lr=params.learning_rate,
                betas=(params.beta1, params.beta2),
                eps=params.eps,
                weight_decay=params.weight_decay,
            )
        # Counted first: an interrupt in the middle of the update must not leave weights that pass for the old ones.
        self.version += 1
        self._optimizer.step()
        self.zero_grad()
        return {"grad_norm": norm.item(), "learning_rate": params.learning_rate}

    def zero_grad(self) -> None:
        """Forgets the gradients gathered so far."""
        self._optimizer.zero_grad(set_to_none=True)

    def sampler(self, **options: Any) -> TorchSampler:
        """A sampler of the policy as it is now; later updates do not change it. Options as in `TorchSampler`."""
        from .torch_sampler import TorchSampler

        return TorchSampler(self.base, self.adapter.frozen(self.base.dtype), version=self.version, **options)

    def save_adapter(self, folder: str | Path) -> None:
        """Writes a standard PEFT folder, for `peft.PeftModel.from_pretrained` and everything that reads it."""
        linear = [name.split(".")[-1] for name in self.base.switch.hooked]
        adapted = [name.split(".")[-1] for name in self.adapter.pairs]
        save_peft(
            self.adapter,
            self.config,
            Path(folder),
            base_name=self.base.name,
            fingerprint=self.base.fingerprint,
            unique_suffixes=all(linear.count(suffix) == adapted.count(suffix) for suffix in set(adapted)),
        )

    def load_adapter(self, folder: str | Path) -> None:
        """Takes the weights of a PEFT folder; the optimiser starts afresh, without gradients.

        Raises:
            FileNotFoundError, ValueError: no adapter there, or it does not fit this base, rank, alpha and targets.
        """
        saved = read_peft_config(Path(folder))
        expected = self.adapter.tensors()
        tensors = load_peft_tensors(Path(folder), expected, self.base.model, fingerprint=self.base.fingerprint)
        if not math.isclose(saved["lora_alpha"] / saved["r"], self.adapter.scale):
            raise ValueError(
                f"{folder} was trained with lora_alpha {saved['lora_alpha']}, this policy has {self.config.alpha}; "
                "make it with a LoraConfig of that alpha, or use `BaseModel.load_lora`"
            )
        with torch.no_grad():
            for name, tensor in tensors.items():
                expected[name].copy_(tensor)
        self.zero_grad()
        self._optimizer = self._new_optimizer()

    def save_state(self, folder: str | Path) -> None:
        """Writes adapter, optimiser and update count: all that a resumed run needs of the policy."""
        folder = Path(folder)
        self.save_adapter(folder)
        moments = {}
        for name, tensor in self.adapter.tensors().items():
            if state := self._optimizer.state.get(tensor):
                moments[f"{name}.exp_avg"], moments[f"{name}.exp_avg_sq"] = state["exp_avg"], state["exp_avg_sq"]
                moments[f"{name}.step"] = state["step"]
        save_file(moments, folder / OPTIMIZER_FILE)
        (folder / POLICY_FILE).write_text(json.dumps({"version": self.version}) + "\n", encoding="utf-8")

    def load_state(self, folder: str | Path, *, with_optimizer: bool = True) -> None:
        """Takes back what `save_state` wrote; without the optimiser only the adapter.

        Raises:
            FileNotFoundError, ValueError: a file is missing or damaged, or belongs to another base.
        """
        folder = Path(folder)
        moments: dict[str, torch.Tensor] = {}
        if with_optimizer:
            for needed in (OPTIMIZER_FILE, POLICY_FILE):
                if not (folder / needed).is_file():
                    raise FileNotFoundError(
                        f"{folder} has no {needed}; to take its adapter without the optimiser: with_optimizer=False"
                    )
            try:
                moments = load_file(folder / OPTIMIZER_FILE)
                version = int(json.loads((folder / POLICY_FILE).read_text(encoding="utf-8"))["version"])
            except (SafetensorError, ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{folder} is damaged ({error}); use another checkpoint") from error
        self.load_adapter(folder)
        if with_optimizer:
            for name, tensor in self.adapter.tensors().items():
                parts = {part: moments.get(f"{name}.{part}") for part in ("exp_avg", "exp_avg_sq", "step")}
                if all(value is not None for value in parts.values()):
                    self._optimizer.state[tensor] = {
                        part: value if part == "step" else value.to(tensor.device)  # type: ignore[union-attr]
                        for part, value in parts.items()
                    }
            self.version = version

    def _new_optimizer(self) -> torch.optim.AdamW:
        return torch.optim.AdamW(self.parameters, lr=0.0)

    def _logprobs(self, batch: _Batch, pack: Pack, temperature: float) -> torch.Tensor:
        """Log-probabilities `(X,)` of a pack's trained targets, member after member."""
        if not temperature > 0:
            raise ValueError(f"a temperature to score at is above 0, got {temperature}")
        hidden_TH = self.base.hidden_states(pack.tokens_T, pack.positions_T, TreeLayout(pack), self.adapter)
        nodes_X = np.concatenate([path[batch.trained[m]] for m, path in zip(pack.members, pack.paths, strict=True)])
        targets_X = np.concatenate([np.asarray(batch.data[m].targets)[batch.trained[m]] for m in pack.members])
        nodes_U, row_X = np.unique(nodes_X, return_inverse=True)
        device = self.base.device
        hidden_UH = hidden_TH.index_select(0, torch.as_tensor(nodes_U, device=device))
        order_X = np.argsort(row_X, kind="stable")
        chunk = max(1, LOGITS_BYTES // (self.base.dtype.itemsize * self.base.vocabulary))

        def of_chunk(hidden: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return selected_logprobs(self.base.logits(hidden, self.adapter), rows, targets, temperature)

        parts = []
        for start in range(0, len(nodes_U), chunk):
            within = order_X[(row_X[order_X] >= start) & (row_X[order_X] < start + chunk)]
            rows = torch.as_tensor(row_X[within] - start, device=device)
            targets = torch.as_tensor(targets_X[within], device=device)
            hidden = hidden_UH[start : start + chunk]
            if torch.is_grad_enabled() and len(nodes_U) > chunk:
                parts.append(checkpoint(of_chunk, hidden, rows, targets, use_reentrant=False))
            else:
                parts.append(of_chunk(hidden, rows, targets))
        inverse = np.empty_like(order_X)
        inverse[order_X] = np.arange(len(order_X))
        return torch.cat(parts)[torch.as_tensor(inverse, device=device)]

    def _custom(self, batch: _Batch, loss: CustomLoss, temperature: float) -> TrainOutput:
        """A loss that may mix datums: scored first, then its gradient carried back pass by pass."""
        if not any(len(t) for t in batch.trained):
            token_shares([0] * len(batch.data), "sum")
        one_pass = len(batch.packs) == 1
        logprobs = batch.empty_logprobs()
        scored: list[torch.Tensor] = []
        with torch.set_grad_enabled(one_pass):
            scored = [self._logprobs(batch, pack, temperature) for pack in batch.packs]
        leaves = scored if one_pass else [p.detach().requires_grad_() for p in scored]
        each: list[torch.Tensor] = [leaves[0].new_zeros(0)] * len(batch.data)
        for pack, p_X in zip(batch.packs, leaves, strict=True):
            for member, part in zip(
                pack.members, p_X.split([len(batch.trained[m]) for m in pack.members]), strict=True
            ):
                each[member] = part
            batch.keep(logprobs, pack, p_X)
        value, metrics = loss(each, batch.data)
        _check_finite(value, getattr(loss, "__name__", "custom"))
        value.backward()
        if not one_pass:
            for pack, leaf in zip(batch.packs, leaves, strict=True):
                if leaf.grad is not None:
                    self._logprobs(batch, pack, temperature).backward(leaf.grad)
        return TrainOutput(logprobs, value.item(), {**batch.metrics(), **metrics})


class _Batch:
    """Datums of one call, packed; sequences end at their last trained position."""

    def __init__(self, data: Sequence[Datum], policy: LoraPolicy) -> None:
        if not data:
            raise ValueError("no datum to train on: the batch is empty")
        self.data = data
        self.trained = [datum.trained for datum in data]
        context, vocabulary = policy.base.context_length, policy.base.vocabulary
        for index, datum in enumerate(data):
            if len(datum.tokens) > context:
                raise ValueError(
                    f"datum {index} has {len(datum.tokens)} tokens, the context of {policy.base.name} is {context}; "
                    "truncate or drop it"
                )
            ids = np.concatenate([np.asarray(datum.tokens), np.asarray(datum.targets)[self.trained[index]]])
            if ids.min() < 0 or ids.max() >= vocabulary:
                raise ValueError(
                    f"datum {index} has token ids from {ids.min()} to {ids.max()}, the vocabulary of "
                    f"{policy.base.name} goes from 0 to {vocabulary - 1}; mask what is not to be trained on instead"
                )
        used = [index for index in range(len(data)) if len(self.trained[index])]
        packs = pack_sequences(
            [list(data[i].tokens[: self.trained[i][-1] + 1]) for i in used],
            max_nodes=policy.tokens_per_pass,
            device=policy.base.device,
        )
        self.packs = packs
        for pack in packs:
            pack.members[:] = [used[m] for m in pack.members]

    def inputs(self, pack: Pack, shares: Sequence[float], like: torch.Tensor) -> tuple[TokenInputs, torch.Tensor]:
        """The trained tokens' inputs and shares, in the order of `_logprobs`."""

        def column(name: str) -> torch.Tensor:
            parts = []
            for member in pack.members:
                values = getattr(self.data[member], name)
                trained = self.trained[member]
                parts.append(np.zeros(len(trained)) if values is None else np.asarray(values, dtype=float)[trained])
            return torch.as_tensor(np.concatenate(parts), dtype=like.dtype, device=like.device)

        share_X = np.concatenate([np.full(len(self.trained[m]), shares[m]) for m in pack.members])
        inputs = TokenInputs(column("weights"), column("logprobs"), column("advantages"))
        return inputs, torch.as_tensor(share_X, dtype=like.dtype, device=like.device)

    def empty_logprobs(self) -> list[np.ndarray]:
        return [np.zeros(len(datum.tokens), dtype=np.float64) for datum in self.data]

    def keep(self, logprobs: list[np.ndarray], pack: Pack, p_X: torch.Tensor) -> None:
        values = p_X.detach().double().cpu().numpy()
        start = 0
        for member in pack.members:
            count = len(self.trained[member])
            logprobs[member][self.trained[member]] = values[start : start + count]
            start += count

    def metrics(self) -> dict[str, float]:
        return {
            "trained_tokens": float(sum(len(t) for t in self.trained)),
            "computed_tokens": float(sum(pack.num_nodes for pack in self.packs)),
        }


def _check_fields(data: Sequence[Datum], loss: str) -> None:
    needed = ("weights",) if loss == "cross_entropy" else ("logprobs", "advantages")
    for index, datum in enumerate(data):
        lacking = [name for name in needed if getattr(datum, name) is None]
        if lacking:
            raise ValueError(f"datum {index} lacks {' and '.join(lacking)}, which the loss {loss!r} needs")


def _check_finite(value: torch.Tensor, loss: str) -> None:
    if not torch.isfinite(value):
        raise NonFiniteError(
            f"the loss {loss!r} is {value.item()}; the weights are unchanged. Check the datums' logprobs, advantages "
            "and weights for NaN, and the learning rate"
        )
