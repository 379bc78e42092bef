"""Frozen linear layers that read the same input, as one product, with the adapters on them.

Compiled where the processor's products are ours (`projections`), else by torch's operators and oneDNN's packed weights.
A snapshot's adapter is laid out once; one in training has a backward pass that gives its gradients and its input's.

Suffixes: `T` tokens, `K` inputs, `N` outputs, `r` ranks of stacked adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from . import kernels
from .lora import Adapter
from .projections import Pair, ProjectionPlan, TrainedAdapters, Update, lora_backward, lora_forward, project

FEW_ROWS = 48
"""Up to so many rows our products are quicker than the library's, even by tiles."""

Packed = kernels.Packed | torch.Tensor
"""A packed weight: ours, or oneDNN's."""


@dataclass(slots=True)
class Projection:
    """Linear layers with the same input as one product; `weight` is `(N, K)`."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    weight: torch.Tensor
    bias: torch.Tensor | None
    packed: Packed | None = None
    plan: ProjectionPlan | None = None
    """For the compiled products, where there are some and the layers come in whole blocks."""

    @classmethod
    def stacked(cls, parent: nn.Module, prefix: str, names: Sequence[str]) -> Projection:
        """Of a module's linear layers by their names there."""
        return cls.of([getattr(parent, name) for name in names], [f"{prefix}.{name}" for name in names])

    @classmethod
    def of(cls, modules: Sequence[Any], names: Sequence[str]) -> Projection:
        """Of linear layers, whose weights become views of the stacked one."""
        sizes = tuple(module.weight.shape[0] for module in modules)
        weight, bias = modules[0].weight.data, None if modules[0].bias is None else modules[0].bias.data
        if len(modules) > 1:
            weight = torch.cat([module.weight.data for module in modules])
            for module, part in zip(modules, weight.split(sizes), strict=True):
                module.weight.data = part
            if bias is not None:
                bias = torch.cat([module.bias.data for module in modules])
                for module, part in zip(modules, bias.split(sizes), strict=True):
                    module.bias.data = part
        made = cls(tuple(names), sizes, weight, bias)
        whole = not any(size % kernels.LANES for size in (*sizes, weight.shape[1]))
        if whole and kernels.usable(weight) and kernels.can_pack(weight.dtype):
            made.plan = ProjectionPlan.of(weight, bias, *weight.shape, packed=False)
        return made

    def __call__(self, x: torch.Tensor, adapter: Adapter | None, residual: torch.Tensor | None = None) -> torch.Tensor:
        """`x W^T + bias + residual` and the adapter's update."""
        pairs = [None if adapter is None else adapter.pairs.get(name) for name in self.names]
        if self.plan is not None and kernels.usable(x, self.weight) and not _for_tiles(x):
            return self._compiled(x, adapter, pairs, residual)
        if not any(pairs):
            return _linear(x, self.weight, self.bias, residual) if torch.is_grad_enabled() else self._base(x, residual)
        assert adapter is not None
        if torch.is_grad_enabled():
            return _LoraLinear.apply(x, residual, self, adapter.scale, *_flat(pairs))
        update: _Stack | None = None if adapter.stacks is None else adapter.stacks.get(self.names)
        if update is None:
            update = _Stack.of(pairs, self.sizes, adapter.scale, x.dtype)
            if adapter.stacks is not None:
                update.pack()
                adapter.stacks[self.names] = update
        return update.add_to(self._base(x, residual), x)

    def _compiled(
        self,
        x: torch.Tensor,
        adapter: Adapter | None,
        pairs: Sequence[Pair | None],
        residual: torch.Tensor | None,
    ) -> torch.Tensor:
        """The same bits with gradients and without, packed or not, for a snapshot and for the adapter in training."""
        if torch.is_grad_enabled():
            scale = 1.0 if adapter is None else adapter.scale
            return _CompiledLoraLinear.apply(x, residual, self, scale, *_flat(pairs))
        assert self.plan is not None
        if adapter is None or not any(pairs):
            return project(x, self.plan, None, residual)
        if adapter.stacks is not None:
            return project(x, self.plan, self.update(adapter), residual)
        adapters = TrainedAdapters.of(pairs, self.sizes, adapter.scale)
        return lora_forward(x.contiguous(), self.plan, residual, adapters)[0]

    def pack(self) -> None:
        """Lays the weight out a second time."""
        self.packed = packed(self.weight)
        if self.plan is not None and isinstance(self.packed, kernels.Packed):
            self.plan = ProjectionPlan.of(self.packed.values, self.bias, *self.weight.shape, packed=True)

    def unpack(self) -> None:
        """Gives the second copy back."""
        self.packed = None
        if self.plan is not None:
            self.plan = ProjectionPlan.of(self.weight, self.bias, *self.weight.shape, packed=False)

    def update(self, adapter: Adapter) -> Update:
        """A snapshot's adapter on these layers, packed, made once."""
        assert adapter.stacks is not None, "only a snapshot's adapter stays as it is"
        key = ("packed", *self.names)
        if key not in adapter.stacks:
            pairs = [adapter.pairs.get(name) for name in self.names]
            adapter.stacks[key] = Update.of(pairs, self.sizes, adapter.scale, self.weight.dtype)
        return adapter.stacks[key]

    def _base(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        if self.packed is None or _for_tiles(x):
            return _linear(x, self.weight, self.bias, residual)
        return _packed_linear(x, self.packed, self.bias, residual)


@dataclass(slots=True)
class _Stack:
    """The adapters of a projection side by side: A is `(r, K)`, B is `(N, r)`, block-diagonal and scaled."""

    a_rK: torch.Tensor
    b_Nr: torch.Tensor
    ranks: list[int]
    """Where each layer's adapter begins among the ranks, and where the last one ends; `outputs` likewise."""
    outputs: list[int]
    packed: tuple[Packed, Packed] | None = None
    for_few_rows: tuple[torch.Tensor, ...] | None = None

    @classmethod
    def of(
        cls,
        pairs: Sequence[Pair | None],
        sizes: Sequence[int],
        scale: float,
        dtype: torch.dtype,
    ) -> _Stack:
        present = [pair for pair in pairs if pair is not None]
        a_rK = torch.cat([a.detach() for a, _ in present]).to(dtype)
        b_Nr = a_rK.new_zeros(sum(sizes), len(a_rK))
        ranks, outputs = [0], [0]
        for pair, size in zip(pairs, sizes, strict=True):
            row, column = outputs[-1], ranks[-1]
            if pair is not None:
                b = pair[1].detach()
                column += b.shape[1]
                b_Nr[row : row + size, ranks[-1] : column] = b if scale == 1.0 else b * scale
            ranks.append(column)
            outputs.append(row + size)
        return cls(a_rK, b_Nr, ranks, outputs)

    def pack(self) -> None:
        """Lays the adapters out a second time for sampling on a CPU."""
        if kernels.usable(self.a_rK):
            self.for_few_rows = self.a_rK, self.b_Nr.T.contiguous(), *map(torch.tensor, (self.ranks, self.outputs))
        if can_pack(self.a_rK):
            self.packed = packed(self.a_rK), packed(self.b_Nr)

    def add_to(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`y + x A^T B^T`; `y` may be overwritten."""
        if self.for_few_rows is not None and len(x) <= FEW_ROWS:
            kernels.add_lora(y, x, *self.for_few_rows)
            return y
        if self.packed is None or _for_tiles(x):
            return y.addmm_(x @ self.a_rK.T, self.b_Nr.T)
        return _packed_linear(_packed_linear(x, self.packed[0], None), self.packed[1], None, y)


class _LoraLinear(torch.autograd.Function):
    """A frozen projection with its trained update, and the residual path that ends in it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        projection: Projection,
        scale: float,
        *tensors: torch.Tensor | None,
    ) -> torch.Tensor:
        pairs = _pairs(tensors)
        stack = _Stack.of(pairs, projection.sizes, scale, x.dtype)
        y = _linear(x, projection.weight, projection.bias, residual)
        inner_Tr = x @ stack.a_rK.T
        y.addmm_(inner_Tr, stack.b_Nr.T)
        ctx.save_for_backward(x, inner_Tr, stack.a_rK, stack.b_Nr)
        ctx.projection, ctx.scale = projection, scale
        ctx.kinds = [None if pair is None else (len(pair[0]), pair[0].dtype) for pair in pairs]
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        x, inner_Tr, a_rK, b_Nr = ctx.saved_tensors
        inner_grad = grad @ b_Nr
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = (grad @ ctx.projection.weight).addmm_(inner_grad, a_rK)
        a_grad = inner_grad.T @ x
        found: list[torch.Tensor | None] = []
        row = column = 0
        for kind, size in zip(ctx.kinds, ctx.projection.sizes, strict=True):
            if kind is None:
                found += [None, None]
            else:
                rank, dtype = kind
                columns = slice(column, column + rank)
                b_grad = (grad[:, row : row + size].T @ inner_Tr[:, columns]).to(dtype)
                found += [a_grad[columns].to(dtype), b_grad if ctx.scale == 1.0 else b_grad.mul_(ctx.scale)]
                column += rank
            row += size
        return x_grad, grad if ctx.needs_input_grad[1] else None, None, None, *found


class _CompiledLoraLinear(torch.autograd.Function):
    """`_LoraLinear` by `linear.cpp`; the adapter's gradients are summed up in float32."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        projection: Projection,
        scale: float,
        *tensors: torch.Tensor | None,
    ) -> torch.Tensor:
        adapters = TrainedAdapters.of(_pairs(tensors), projection.sizes, scale)
        x = x.contiguous()
        assert projection.plan is not None
        y, inner_Tr = lora_forward(x, projection.plan, residual, adapters)
        ctx.save_for_backward(x, inner_Tr)
        ctx.projection, ctx.scale, ctx.adapters = projection, scale, adapters
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, inner_Tr = ctx.saved_tensors
        x_grad, pairs = lora_backward(
            grads[0], x, inner_Tr, ctx.projection.weight, ctx.adapters, with_input=ctx.needs_input_grad[0]
        )
        found: list[torch.Tensor | None] = []
        for pair in pairs:
            a_grad, b_grad = pair or (None, None)
            found += [a_grad, b_grad if b_grad is None or ctx.scale == 1.0 else b_grad.mul_(ctx.scale)]
        return x_grad, grads[0] if ctx.needs_input_grad[1] else None, None, None, *found


def _flat(pairs: Sequence[Pair | None]) -> list[torch.Tensor | None]:
    """All A and B one after the other, as autograd takes them."""
    return [tensor for pair in pairs for tensor in (pair or (None, None))]


def _pairs(tensors: Sequence[torch.Tensor | None]) -> list[Pair | None]:
    """The pairs that `_flat` made one list of."""
    pairs = zip(tensors[::2], tensors[1::2], strict=True)
    return [None if a is None or b is None else (a, b) for a, b in pairs]


def _for_tiles(x: torch.Tensor) -> bool:
    """Whether a product of these rows is oneDNN's business: of many, where the processor has tiles for their type."""
    return x.dtype == torch.bfloat16 and x.shape[0] > FEW_ROWS and kernels.has_tiles()


def _linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None
) -> torch.Tensor:
    """`x W^T + bias + residual`, rounded once, as `_packed_linear` does: then learner and sampler round alike."""
    if residual is None:
        return F.linear(x, weight, bias)
    y = torch.addmm(residual, x, weight.T)
    return y if bias is None else y + bias


def can_pack(weight: torch.Tensor) -> bool:
    """Whether there are products with packed weights for such a weight here: ours, or else oneDNN's."""
    if weight.device.type != "cpu":
        return False
    if kernels.can_pack(weight.dtype):
        return True
    if not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def packed(weight: torch.Tensor) -> Packed:
    """The weight `(N, K)` in the order that the products read."""
    weight = weight.detach()
    if kernels.can_pack(weight.dtype) and weight.shape[1] % 2 == 0:
        return kernels.pack(weight)
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def _packed_linear(
    x: torch.Tensor, weight: Packed, bias: torch.Tensor | None, other: torch.Tensor | None = None
) -> torch.Tensor:
    """`x W^T + bias + other` with a packed weight."""
    if isinstance(weight, kernels.Packed):
        return kernels.product(x, weight, bias, other)
    if other is None:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, bias, "add")
