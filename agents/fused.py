"""A quicker way through decoders of the Llama family than transformers' own modules.

What these decoders have in common is written out once: projections of the same input are one matrix product, the
adapter's too; norms, rotary positions and gated MLPs have backward passes that keep little; for sampling on a CPU the
weights lie in the order that the processor's matrix products want. Weights stay those of the transformers model, whose
tensors become views of the stacked ones. `BaseModel` proves at load that the way gives what the architecture gives;
other architectures go through their own modules.

Suffixes: `T` tokens, `H` query heads, `G` key-value heads, `D` head size.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .attention import AttentionOptions, Layout
from .decoding import Stepper
from .elementwise import gated, rms_norm, rotary
from .frozen_linear import Projection, can_pack
from .lora import Adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FUSED_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"})
"""transformers' model types whose decoder is written out here."""
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "tanh", "gelu": "none"}
"""Gated MLPs' activations: `silu`, or the kind of approximation of a GELU."""
PACKED_SHARE = 0.25
"""Weights are packed for sampling if they take at most this share of the machine's memory."""


class FusedDecoder:
    """The decoder of a transformers model, from token ids to normalised hidden states."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.config: Any = model.config
        self.decoder: Any = getattr(model, model.base_model_prefix)
        prefix = f"{model.base_model_prefix}.layers"
        self.layers = [_Layer(layer, f"{prefix}.{i}", self.config) for i, layer in enumerate(self.decoder.layers)]
        self.head = Projection.of([model.get_output_embeddings()], ["lm_head"])
        self.stepper: Stepper | None = None
        """Decoding steps in one call; None where there are none for this decoder, and until `pack`."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> FusedDecoder | None:
        """The fused decoder of a model of a known type; None for others."""
        if model.config.model_type not in FUSED_TYPES:
            return None
        decoder = getattr(model, model.base_model_prefix)
        linear = all(
            type(module) is nn.Linear
            for layer in decoder.layers
            for name, module in layer.named_modules()
            if name.endswith("_proj")
        )
        return cls(model) if linear and _activation(model.config) in ACTIVATIONS else None

    def __call__(
        self,
        tokens_T: torch.Tensor,
        positions_T: torch.Tensor,
        layout: Layout,
        adapter: Adapter | None,
        only: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The last layer's normalised states `(T, hidden)`, or those of the tokens `only`."""
        x = self.embedded(tokens_T)
        angles: dict[str | None, tuple[torch.Tensor, torch.Tensor]] = {}
        for layer in self.layers:
            if layer.kind not in angles:
                angles[layer.kind] = self.angles(layer.kind, x, positions_T)
            x = layer(x, angles[layer.kind], layout, adapter, only if layer is self.layers[-1] else None)
        return self.normed(x)

    def embedded(self, tokens_T: torch.Tensor) -> torch.Tensor:
        """The first layer's input, `(T, hidden)`."""
        return self.decoder.embed_tokens(tokens_T)

    def angles(self, kind: str | None, x: torch.Tensor, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines `(T, 1, D)`, the sine with the sign of its half; of `x` only type and device count."""
        asked = (kind,) if kind is not None else ()
        cos, sin = self.decoder.rotary_emb(x, positions_T[None], *asked)
        low, high = sin[0, :, None].chunk(2, -1)
        return cos[0, :, None], torch.cat((-low, high), -1)

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        """The last layer's output, normalised."""
        return norm(self.decoder.norm, x)

    @staticmethod
    def kind_of(module: nn.Module, like: torch.Tensor) -> tuple[float, float] | None:
        """(offset of the weight, epsilon) of an RMS norm for tensors such as `like`; None if it is another norm."""
        return _kind_of(module, like)

    def logits(self, hidden_XH: torch.Tensor) -> torch.Tensor:
        """The head's product, without an adapter."""
        return self.head(hidden_XH.flatten(0, -2), None).unflatten(0, hidden_XH.shape[:-1])

    @property
    def projections(self) -> list[Projection]:
        """All of them, the head the last."""
        return [projection for layer in self.layers for projection in layer.projections] + [self.head]

    def pack(self) -> None:
        """Lays the weights out a second time for sampling on a CPU, where that pays and memory allows."""
        weight = self.head.weight
        size = sum(p.numel() * p.element_size() for p in self.decoder.parameters())
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
        if self.head.packed is not None or not can_pack(weight) or size > PACKED_SHARE * memory:
            return
        for projection in self.projections:
            projection.pack()
        self.stepper = Stepper.of(self)

    def unpack(self) -> None:
        """Gives the second copy of the weights back."""
        for projection in self.projections:
            projection.unpack()
        self.stepper = None


class _Layer:
    """One decoder layer: attention and gated MLP, each between its norms and around a residual path."""

    def __init__(self, layer: Any, name: str, config: Any) -> None:
        attn = layer.self_attn
        self.index: int = attn.layer_idx
        self.qkv = Projection.stacked(attn, f"{name}.self_attn", ("q_proj", "k_proj", "v_proj"))
        self.o = Projection.stacked(attn, f"{name}.self_attn", ("o_proj",))
        self.gate_up = Projection.stacked(layer.mlp, f"{name}.mlp", ("gate_proj", "up_proj"))
        self.down = Projection.stacked(layer.mlp, f"{name}.mlp", ("down_proj",))
        self.projections = (self.qkv, self.o, self.gate_up, self.down)
        self.head_dim: int = attn.head_dim
        self.groups = self.qkv.sizes[1] // self.head_dim
        self.heads = self.qkv.sizes[0] // self.head_dim
        # Gemma 3 turns local and global layers by different angles.
        self.kind = getattr(attn, "layer_type", None) if config.model_type == "gemma3_text" else None
        # Mistral keeps one window for all layers in the config, the others one per layer.
        self.options = AttentionOptions(
            scale=attn.scaling,
            softcap=attn.attn_logit_softcapping if config.model_type == "gemma2" else None,
            window=getattr(config if config.model_type == "mistral" else attn, "sliding_window", None),
        )
        self.activation = ACTIVATIONS[_activation(config)]
        # Gemma's norms stand behind attention and MLP too.
        sandwich = hasattr(layer, "pre_feedforward_layernorm")
        behind = layer.post_attention_layernorm
        self.norms = (
            layer.input_layernorm,
            *((behind, layer.pre_feedforward_layernorm) if sandwich else (None, behind)),
            layer.post_feedforward_layernorm if sandwich else None,
            getattr(attn, "q_norm", None),
            getattr(attn, "k_norm", None),
        )
        """Before and after attention, before and after the MLP, of queries and of keys; None where there is none."""

    def __call__(
        self,
        x: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        layout: Layout,
        adapter: Adapter | None,
        only: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The layer's output `(T, hidden)`; behind the attention, whose keys all need, that of the tokens `only`."""
        before_attention, after_attention, before_mlp, after_mlp, *_ = self.norms
        q_THD, k_TGD, v_TGD = self._heads(norm(before_attention, x), angles, adapter)
        mixed = layout.attend(self.index, q_THD, k_TGD, v_TGD, self.options).flatten(1)
        if only is not None:
            x, mixed = x.index_select(0, only), mixed.index_select(0, only)
        # Without norms behind attention and MLP these end in the residual path themselves.
        if after_attention is None:
            x = self.o(mixed, adapter, residual=x)
        else:
            x = x + norm(after_attention, self.o(mixed, adapter))
        inner = gated(self.gate_up(norm(before_mlp, x), adapter), self.activation)
        if after_mlp is None:
            return self.down(inner, adapter, residual=x)
        return x + norm(after_mlp, self.down(inner, adapter))

    def _heads(
        self, x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], adapter: Adapter | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        heads = self.qkv(x, adapter).view(x.shape[0], -1, self.head_dim)
        turned, v_TGD = heads.split([self.heads + self.groups, self.groups], 1)
        *_, of_queries, of_keys = self.norms
        if of_queries is None:
            q_THD, k_TGD = rotary(turned, *angles).split([self.heads, self.groups], 1)
            return q_THD, k_TGD, v_TGD
        q_THD, k_TGD = turned.split([self.heads, self.groups], 1)
        q_THD, k_TGD = norm(of_queries, q_THD), norm(of_keys, k_TGD)
        return rotary(q_THD, *angles), rotary(k_TGD, *angles), v_TGD


def _activation(config: Any) -> str:
    return getattr(config, "hidden_activation", None) or config.hidden_act


_NORM_KINDS: WeakKeyDictionary[nn.Module, tuple[float, float] | None] = WeakKeyDictionary()


def norm(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the module gives; an RMS norm goes through `rms_norm`, whatever the module calls its parts."""
    kind = _kind_of(module, x)
    if kind is None:
        return module(x)
    return rms_norm(x, module.weight, *kind)  # type: ignore[arg-type]


def _kind_of(module: nn.Module, like: torch.Tensor) -> tuple[float, float] | None:
    if module not in _NORM_KINDS:
        _NORM_KINDS[module] = _norm_kind(module, like)
    return _NORM_KINDS[module]


@torch.no_grad()
def _norm_kind(module: nn.Module, like: torch.Tensor) -> tuple[float, float] | None:
    """(offset of the weight, epsilon) of an RMS norm, found by trying; None if it is another norm."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", None) or getattr(module, "eps", None)
    if weight is None or weight.dim() != 1 or not isinstance(eps, float):
        return None
    # Large and small inputs, so that a wrong epsilon shows too.
    x = torch.linspace(-1.0, 1.7, 2 * len(weight), dtype=torch.float32).view(2, -1)
    x = (x * torch.tensor([[1.0], [2 * eps**0.5]])).to(like)
    expected = module(x)
    for offset in (0.0, 1.0):
        got = rms_norm(x, weight, offset, eps)
        if torch.allclose(got.float(), expected.float(), rtol=0.02, atol=1e-3):
            return offset, eps
    return None
