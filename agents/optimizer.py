"""AdamW over an adapter's tensors: one update at a time, with its state on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..envs.json_files import read_json_object
from .tensor_files import unfit_tensors, write_tensors

OPTIMIZER_FILE = "optimizer.safetensors"
POLICY_FILE = "policy.json"
_STATE = ("exp_avg", "exp_avg_sq", "step")


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


@dataclass(frozen=True, slots=True)
class SavedState:
    """An optimiser's state from disk: moments by tensor and part, the number of updates, and the moments' file."""

    moments: dict[str, torch.Tensor]
    version: int
    path: Path


@dataclass(frozen=True, slots=True)
class Gathered:
    """Gradients gathered so far by tensor, and whether a loss among them was not finite."""

    gradients: list[torch.Tensor | None]
    is_spoiled: bool


class Adam:
    """The optimiser of some named tensors.

    Args:
        tensors: what is trained, by the names that the state has on disk.
        owner: whose they are, for messages.

    Attributes:
        version: number of updates so far.
        skips_non_finite: leave out and count an update whose loss or gradient is NaN or infinite, instead of raising.
        skipped: how many updates were left out since this object was made.
        problem: what was wrong with the last of them.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], owner: str) -> None:
        self.tensors = dict(tensors)
        self.owner = owner
        self.version = 0
        self.skips_non_finite = False
        self.skipped = 0
        self.problem = ""
        self._is_spoiled = False
        self.restart()

    def restart(self) -> None:
        """Forgets moments and gradients."""
        tensors = list(self.tensors.values())
        fused = all(tensor.device.type in ("cpu", "cuda") for tensor in tensors)
        self._adamw = torch.optim.AdamW(tensors, lr=0.0, fused=fused)
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forgets the gradients gathered so far."""
        self._adamw.zero_grad(set_to_none=True)
        self._is_spoiled = False

    def gathered(self) -> Gathered:
        """A copy of the gradients gathered so far."""
        gradients = [tensor.grad if tensor.grad is None else tensor.grad.clone() for tensor in self.tensors.values()]
        return Gathered(gradients, self._is_spoiled)

    def put_back(self, gathered: Gathered) -> None:
        """Makes the gradients what they were at `gathered`."""
        for tensor, gradient in zip(self.tensors.values(), gathered.gradients, strict=True):
            tensor.grad = gradient
        self._is_spoiled = gathered.is_spoiled

    def accepts(self, value: torch.Tensor, loss: str) -> bool:
        """Whether a loss is finite. If it is not, and such updates are skipped, the next one will be.

        Raises:
            NonFiniteError: it is not, and they are not.
        """
        if torch.isfinite(value):
            return True
        self._object(
            f"the loss {loss!r} is {value.item()}; the weights are unchanged. Check the datums' logprobs, advantages "
            "and weights for NaN, and the learning rate"
        )
        self._is_spoiled = True
        return False

    def step(self, params: AdamParams) -> dict[str, float]:
        """One update with the gradients gathered so far, which are cleared.

        Returns:
            `grad_norm` (before clipping; NaN if the update was skipped) and `learning_rate`.

        Raises:
            NonFiniteError: the gradient is NaN or infinite; nothing is changed but the gradients, which are cleared.
            RuntimeError: there is no gradient.
        """
        if self._is_spoiled:
            return self._skip(params)
        gradients = [tensor.grad for tensor in self.tensors.values() if tensor.grad is not None]
        if not gradients:
            raise RuntimeError(f"{self.owner} has no gradient; call forward_backward before optim_step")
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            self.zero_grad()
            self._object(
                f"gradient norm of {self.owner} is {norm.item()} after {self.version} updates; the weights are "
                "unchanged. Usual causes: a learning rate that is too high, importance ratios that exploded"
            )
            return self._skip(params)
        if params.grad_clip_norm:
            torch.nn.utils.clip_grads_with_norm_(self.tensors.values(), params.grad_clip_norm, norm)
        for group in self._adamw.param_groups:
            group.update(
                lr=params.learning_rate,
                betas=(params.beta1, params.beta2),
                eps=params.eps,
                weight_decay=params.weight_decay,
            )
        # Counted first: an interrupt in the middle of the update must not leave weights that pass for the old ones.
        self.version += 1
        self._adamw.step()
        self.zero_grad()
        return {"grad_norm": norm.item(), "learning_rate": params.learning_rate}

    def _object(self, problem: str) -> None:
        if not self.skips_non_finite:
            raise NonFiniteError(problem)
        self.problem = problem

    def _skip(self, params: AdamParams) -> dict[str, float]:
        self.zero_grad()
        self.skipped += 1
        return {"grad_norm": math.nan, "learning_rate": params.learning_rate}

    @property
    def num_bytes(self) -> int:
        """Memory of the moments."""
        return sum(int(value.nbytes) for state in self._adamw.state.values() for value in state.values())

    def save(self, folder: Path) -> None:
        """Writes moments and update count."""
        moments = {
            f"{name}.{part}": state[part]
            for name, tensor in self.tensors.items()
            if (state := self._adamw.state.get(tensor))
            for part in _STATE
        }
        write_tensors(moments, folder / OPTIMIZER_FILE)
        (folder / POLICY_FILE).write_text(json.dumps({"version": self.version}) + "\n", encoding="utf-8")

    @staticmethod
    def read(folder: Path) -> SavedState:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError, ValueError: a file is missing or damaged.
        """
        for needed in (OPTIMIZER_FILE, POLICY_FILE):
            if not (folder / needed).is_file():
                raise FileNotFoundError(
                    f"{folder} has no {needed}; to take its adapter without the optimiser: with_optimizer=False"
                )
        version = read_json_object(folder / POLICY_FILE, "use another checkpoint").get("version")
        if type(version) is not int or version < 0:
            raise ValueError(f"{folder / POLICY_FILE} is damaged: version is {version!r:.80}; use another checkpoint")
        path = folder / OPTIMIZER_FILE
        try:
            moments = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); use another checkpoint") from error
        if unfit := unfit_tensors(moments):
            raise ValueError(f"{path} is damaged: {unfit}; use another checkpoint")
        return SavedState(moments, version, path)

    def check(self, saved: SavedState) -> None:
        """Sees that what `read` found belongs to these tensors.

        Raises:
            ValueError: it does not.
        """
        expected = {
            f"{name}.{part}": torch.Size() if part == "step" else tensor.shape
            for name, tensor in self.tensors.items()
            for part in _STATE
        }
        for name, moment in saved.moments.items():
            if name not in expected or moment.shape != expected[name]:
                there = f"of the shape {tuple(moment.shape)}"
                wanted = f"{tuple(expected[name])} is expected" if name in expected else "there is no such weight"
                raise ValueError(f"{saved.path} does not fit {self.owner}: {name} is {there}, and {wanted}")
            if name.endswith((".exp_avg_sq", ".step")) and (moment < 0).any():
                raise ValueError(f"{saved.path} is damaged: {name} is below 0; use another checkpoint")

    def restore(self, saved: SavedState) -> None:
        """Takes back what `read` found, for the tensors that it has moments of.

        Raises:
            ValueError: see `check`.
        """
        self.check(saved)
        for name, tensor in self.tensors.items():
            parts = {part: saved.moments.get(f"{name}.{part}") for part in _STATE}
            if all(value is not None for value in parts.values()):
                self._adamw.state[tensor] = {
                    part: value.float() if part == "step" else value.to(tensor)  # type: ignore[union-attr]
                    for part, value in parts.items()
                }
        self.version = saved.version
