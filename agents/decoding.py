"""A decoding step of the fused decoder as one call of compiled code (`decoder.cpp`): one new token for each row.

Only where the library multiplies packed weights of the base's type (float32; bfloat16 with AVX-512's instruction for
it) and every weight comes in blocks of `kernels.LANES` outputs; `TorchSampler` goes layer by layer elsewhere.

Suffixes: `B` rows of the batch, `H` hidden size, `P` prompts of a wave, `G` key-value heads, `L` tokens, `D` head size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from ctypes import POINTER, addressof, c_double, c_int64, c_void_p
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from . import kernels
from .kernels import LANES
from .lora import Adapter
from .projections import ProjectionPlan, UpdatePlan
from .reuse import KeyValues

if TYPE_CHECKING:
    from .fused import FusedDecoder

CHUNK = 8
"""Rows with the same prompt that one thread takes at once."""
FIXED_ANGLES = frozenset({"default", "linear", "llama3", "yarn"})
"""Kinds of rotary positions whose angles depend on the position alone."""
_UPDATES_KEY = ("a decoding step",)


class _Norm(ctypes.Structure):
    _fields_ = (("weight", c_void_p), ("offset", c_double), ("eps", c_double))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ProjectionPlan) for name in ("qkv", "o", "gate_up", "down")),
        *((name, _Norm) for name in ("before_attention", "after_attention", "before_mlp", "after_mlp")),
        *((name, _Norm) for name in ("of_queries", "of_keys")),
        ("angles", c_int64),
        ("window", c_int64),
        ("scale", c_double),
        ("softcap", c_double),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("layers", POINTER(_Layer)),
        *((name, c_int64) for name in ("count", "hidden", "heads", "groups", "head_size", "activation")),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        ("x", c_void_p),
        ("rows", c_int64),
        *((name, c_void_p) for name in ("updates", "cosines", "sines", "keys", "values")),
        ("capacity", c_int64),
        *((name, c_void_p) for name in ("places", "prompt_lengths", "chunks", "members")),
        ("chunk_count", c_int64),
        *((name, c_void_p) for name in ("wave_keys", "wave_values", "wave_lengths")),
        ("waves", c_int64),
    )


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a row's tokens are: `own` of them in its own cache, the new one included, the others in a wave's prompt."""

    own: int
    wave: KeyValues | None = None
    prompt: int = 0
    length: int = 0


@dataclass(frozen=True, slots=True)
class PackedPrompts:
    """A wave's prompts as packed weights by layer: of each prompt and head the keys (L, D) and the values (D, L)."""

    length: int
    keys: dict[int, torch.Tensor]
    values: dict[int, torch.Tensor]

    @classmethod
    def of(cls, wave: KeyValues) -> PackedPrompts:
        keys, values, length = {}, {}, 0
        for layer, keys_PGLD in wave.keys.items():
            missing = -keys_PGLD.shape[2] % LANES
            # All prompts and heads are one tall weight, as each fills whole blocks.
            keys[layer] = kernels.pack(F.pad(keys_PGLD, (0, 0, 0, missing)).flatten(0, 2)).values
            values_PGDL = F.pad(wave.values[layer], (0, 0, 0, missing)).transpose(2, 3)
            values[layer] = kernels.pack(values_PGDL.flatten(0, 2)).values
            length = values_PGDL.shape[3]
        return cls(length, keys, values)


class Stepper:
    """Decoding steps of a decoder whose weights are packed; see `of`."""

    def __init__(self, decoder: FusedDecoder) -> None:
        self._decoder = decoder
        first = decoder.layers[0]
        self._kinds = list(dict.fromkeys(layer.kind for layer in decoder.layers))
        self._tables: dict[str | None, tuple[torch.Tensor, torch.Tensor]] = {}
        self._layers = (_Layer * len(decoder.layers))(*(self._described(layer) for layer in decoder.layers))
        self._model = _Model(
            self._layers,
            len(decoder.layers),
            first.o.weight.shape[0],
            first.heads,
            first.groups,
            first.head_dim,
            kernels.ACTIVATIONS[first.activation],
        )

    @classmethod
    def of(cls, decoder: FusedDecoder) -> Stepper | None:
        """The stepper of a decoder; None where there is none for it."""
        first = decoder.layers[0]
        like = first.o.weight
        alike = all(
            (layer.heads, layer.groups, layer.head_dim) == (first.heads, first.groups, first.head_dim)
            for layer in decoder.layers
        )
        if not alike or first.head_dim not in kernels.HEAD_SIZES or first.activation not in kernels.ACTIVATIONS:
            return None
        for layer in decoder.layers:
            if any(each.plan is None for each in layer.projections) or any(
                decoder.kind_of(norm, like[:1]) is None for norm in layer.norms if norm is not None
            ):
                return None
        return cls(decoder)

    def __call__(
        self,
        tokens_B: torch.Tensor,
        positions_B: torch.Tensor,
        seats: Sequence[Seat],
        tails: Mapping[int, tuple[torch.Tensor, torch.Tensor]],
        packed: dict[KeyValues, PackedPrompts],
        adapter: Adapter | None,
    ) -> torch.Tensor:
        """The last layer's normalised states `(B, H)` of new tokens, whose keys and values go into the rows' caches.

        Args:
            tokens_B: the new tokens.
            positions_B: their positions.
            seats: where each row's tokens are.
            tails: each layer's caches, keys and values `(at least B, G, capacity, D)`.
            packed: the waves' prompts from one step to the next; what is missing is added, what is not used goes.
            adapter: a snapshot's adapter, or None.
        """
        x_BH = self._decoder.embedded(tokens_B).contiguous()
        angles = [self._angles(kind, x_BH, positions_B) for kind in self._kinds]
        caches = [tails[layer.index] for layer in self._decoder.layers]
        places = np.asarray([seat.own - 1 for seat in seats], dtype=np.int64)
        lengths = np.asarray([seat.length if seat.wave is not None else 0 for seat in seats], dtype=np.int64)
        waves = list({id(seat.wave): seat.wave for seat in seats if seat.wave is not None}.values())
        chunks, members = _chunks(seats, waves)
        for unused in packed.keys() - set(waves):
            del packed[unused]
        prompts = [packed.setdefault(wave, packed.get(wave) or PackedPrompts.of(wave)) for wave in waves]
        order = [layer.index for layer in self._decoder.layers]
        arrays = {
            "cosines": _addresses(cosine for cosine, _ in angles),
            "sines": _addresses(sine for _, sine in angles),
            "keys": _addresses(keys for keys, _ in caches),
            "values": _addresses(values for _, values in caches),
            "places": places,
            "prompt_lengths": lengths,
            "chunks": chunks,
            "members": members,
            "wave_keys": _addresses(each.keys[index] for index in order for each in prompts),
            "wave_values": _addresses(each.values[index] for index in order for each in prompts),
            "wave_lengths": np.asarray([each.length for each in prompts], dtype=np.int64),
        }
        call = _Call(
            x=x_BH.data_ptr(),
            rows=len(x_BH),
            updates=None if adapter is None else addressof(self._updates(adapter)),
            capacity=caches[0][0].shape[2],
            chunk_count=len(chunks),
            waves=len(waves),
            **{name: array.ctypes.data for name, array in arrays.items()},
        )
        kernels.call("decode", x_BH.dtype, addressof(self._model), addressof(call))
        return self._decoder.normed(x_BH)

    def _described(self, layer: Any) -> _Layer:
        decoder, options = self._decoder, layer.options

        def norm(module: Any) -> _Norm:
            if module is None:
                return _Norm(None, 0.0, 0.0)
            kind = decoder.kind_of(module, layer.o.weight[:1])
            assert kind is not None
            return _Norm(module.weight.data_ptr(), *kind)

        return _Layer(
            *(each.plan for each in layer.projections),
            *map(norm, layer.norms),
            self._kinds.index(layer.kind),
            kernels.NO_WINDOW if options.window is None else options.window,
            options.scale,
            options.softcap or 0.0,
        )

    def _angles(
        self, kind: str | None, x_BH: torch.Tensor, positions_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines `(B, D)`; from a table where they depend on the position alone."""
        rope_type = getattr(self._decoder.decoder.rotary_emb, "rope_type", None)
        if (rope_type.get(kind) if isinstance(rope_type, Mapping) else rope_type) not in FIXED_ANGLES:
            cosine, sine = self._decoder.angles(kind, x_BH, positions_B)
            return cosine.flatten(1).contiguous(), sine.flatten(1).contiguous()
        furthest = int(positions_B.max())
        if kind not in self._tables or len(self._tables[kind][0]) <= furthest:
            cosine, sine = self._decoder.angles(kind, x_BH, torch.arange(max(256, 2 * furthest)))
            self._tables[kind] = cosine.flatten(1).contiguous(), sine.flatten(1).contiguous()
        cosines, sines = self._tables[kind]
        return cosines.index_select(0, positions_B), sines.index_select(0, positions_B)

    def _updates(self, adapter: Adapter) -> Any:
        """The adapter in the order of the call, made once for a snapshot."""
        assert adapter.stacks is not None, "only a snapshot's adapter stays as it is"
        if _UPDATES_KEY not in adapter.stacks:
            found = [each.update(adapter) for layer in self._decoder.layers for each in layer.projections]
            adapter.stacks[_UPDATES_KEY] = (UpdatePlan * len(found))(*(update.plan for update in found))
        return adapter.stacks[_UPDATES_KEY]


def _chunks(seats: Sequence[Seat], waves: Sequence[KeyValues]) -> tuple[np.ndarray, np.ndarray]:
    """The rows in groups that one thread takes: (wave or -1, prompt, first member, members), and all members."""
    number = {id(wave): index for index, wave in enumerate(waves)}
    alike: dict[tuple[int, int], list[int]] = {}
    for row, seat in enumerate(seats):
        key = (-1, row) if seat.wave is None else (number[id(seat.wave)], seat.prompt)
        alike.setdefault(key, []).append(row)
    chunks: list[tuple[int, int, int, int]] = []
    members: list[int] = []
    for (wave, prompt), rows in alike.items():
        for first in range(0, len(rows), CHUNK):
            part = rows[first : first + CHUNK]
            chunks.append((wave, 0 if wave < 0 else prompt, len(members), len(part)))
            members += part
    return np.asarray(chunks, dtype=np.int64), np.asarray(members, dtype=np.int64)


def _addresses(tensors: Iterable[torch.Tensor]) -> np.ndarray:
    return np.asarray([tensor.data_ptr() for tensor in tensors], dtype=np.uint64)
