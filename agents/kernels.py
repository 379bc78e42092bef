"""What a decoder is made of, compiled for the processor at hand (`kernels.cpp`, `decoder.cpp`).

torch takes several operators for each part, and on a CPU an operator on little data costs more to start than to
compute. The machine's own C++ compiler makes the library once, into the cache folder. Nothing needs it: without a
compiler, or with `LORAGYM_KERNELS=0`, torch's operators do the work. The whole decoding step is in `decoding`.

Shapes: `(T, K)` or `(T, heads, D)`; the values of a row lie next to each other, rows may lie apart.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_double, c_float, c_int, c_int64, c_long, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .bundled import cache_root

if TYPE_CHECKING:
    from .attention import AttentionOptions
    from .packing import TreePlan

logger = logging.getLogger(__name__)

SWITCH = "LORAGYM_KERNELS"
HEADERS = [Path(__file__).with_name(name) for name in ("kernels.h", "products.h")]
SOURCES = [Path(__file__).with_name(f"{name}.cpp") for name in ("kernels", "linear", "attention", "decoder")]
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
LANES = 16
"""A packed weight's outputs come in blocks of so many; `kernels.h` has the same number."""
SUFFIXES = {torch.float32: "float", torch.bfloat16: "bfloat16"}
ACTIVATIONS = {"silu": 0, "tanh": 1}
HEAD_SIZES = {16, 32, 64, 96, 128, 256}
"""For which `attend` is compiled."""
NO_WINDOW = 2**62

_POINTER, _SIZE = c_void_p, c_long
_ARGUMENTS = {
    "rms_norm": [_POINTER] * 3 + [_SIZE] * 5 + [c_float, c_float, c_int],
    "rms_norm_backward": [_POINTER] * 4 + [_SIZE] * 5 + [c_float, c_float, c_int],
    "gated": [_POINTER] * 2 + [_SIZE] * 2 + [c_int, c_int],
    "gated_backward": [_POINTER] * 3 + [_SIZE] * 2 + [c_int, c_int],
    "rotary": [_POINTER] * 4 + [_SIZE] * 5 + [c_int, c_int],
    "add_lora": [_POINTER] * 4 + [_SIZE] * 4 + [_POINTER] * 2 + [c_int],
    "normalizers": [_POINTER] * 4 + [_SIZE] * 3 + [c_int],
    "normalizers_backward": [_POINTER] * 5 + [_SIZE] * 2 + [c_int],
    "draw": [_POINTER] * 8 + [_SIZE] * 3 + [c_int],
    "attend": [_POINTER] * 9 + [_SIZE] * 9 + [c_float, c_float, c_int64, c_int],
}
_PACKING_ARGUMENTS = {
    "pack": [_POINTER] * 2 + [_SIZE] * 5 + [c_int],
    "product": [_POINTER] * 5 + [_SIZE] * 3 + [c_int],
    "project": [_POINTER, _SIZE, *[_POINTER] * 4, c_int],
    "lora_forward": [_POINTER, _SIZE, *[_POINTER] * 5, c_int],
    "lora_backward": [_POINTER] * 3 + [_SIZE, _POINTER, _SIZE, _SIZE] + [_POINTER] * 4 + [c_int],
    "attend_tree": [_POINTER] * 4 + [_SIZE] * 3 + [_POINTER] * 2 + [c_int],
    "attend_tree_backward": [_POINTER] * 6 + [_SIZE] * 4 + [_POINTER] * 4 + [c_int],
    "decode": [_POINTER] * 2 + [c_int],
}
"""Functions that the library has for a type only where the processor multiplies it."""


def usable(*tensors: torch.Tensor) -> bool:
    """Whether there are kernels for these tensors: on a CPU, all float32 or all bfloat16."""
    dtype = tensors[0].dtype
    if dtype not in SUFFIXES:
        return False
    for x in tensors:  # plainly: this is asked a thousand times a step
        if x.dtype is not dtype or not x.is_cpu:
            return False
    return functions() is not None


@cache
def functions() -> dict[tuple[str, torch.dtype], ctypes._NamedFuncPointer] | None:
    """The library's functions, compiled on first use; None if there are none on this machine."""
    if os.environ.get(SWITCH, "1") == "0":
        return None
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("c++") or shutil.which("g++") or ""]
    if not compiler[0]:
        logger.info("no C++ compiler (c++ or g++, or name one in CXX): torch's operators are used, which are slower")
        return None
    try:
        path = _compiled(compiler)
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            path.unlink()  # damaged on its way to the disk, or by a program: made anew, once
            library = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = getattr(error, "stderr", None) or str(error)
        logger.warning(
            "%s could not be compiled, torch's operators are used instead, which are slower (%s=0 silences this): %s",
            " and ".join(source.name for source in SOURCES),
            SWITCH,
            said.strip()[-500:],
        )
        return None
    found = {}
    for name, arguments in (_ARGUMENTS | _PACKING_ARGUMENTS).items():
        for dtype, suffix in SUFFIXES.items():
            function = getattr(library, f"{name}_{suffix}", None)
            if function is not None:
                function.argtypes, function.restype = arguments, None
                found[name, dtype] = function
    return found


def _compiled(compiler: list[str]) -> Path:
    """The library, from the cache if this compiler made it for this processor from this source."""

    def run(*arguments: str) -> str:
        return subprocess.run(
            [*compiler, *arguments], check=True, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL
        ).stdout

    texts = [source.read_text() for source in (*HEADERS, *SOURCES)]
    flags = (*FLAGS, *_own_flags())
    parts = (*texts, *flags, run("--version"), platform.machine(), _processor())
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    path = cache_root() / "kernels" / f"{name}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Elsewhere first: a second process never sees half a library.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            logger.info("compiling %s, once for this machine", " and ".join(source.name for source in SOURCES))
            parts_made = [str(Path(folder) / f"{source.stem}.o") for source in SOURCES]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(lambda source, part: run(*flags, "-c", "-o", part, str(source)), SOURCES, parts_made))
            run(*flags, "-o", str(made), *parts_made)
            made.replace(path)
    return path


@cache
def has_tiles() -> bool:
    """Whether the processor multiplies bfloat16 by tiles (AMX), which oneDNN does and our products do not."""
    return "amx_bf16" in _processor().split()


def _own_flags() -> tuple[str, ...]:
    """What this processor does best beyond what it can do.

    Intel's multiply pairs of bfloat16 outside of AMX at half the rate of float32 (Sapphire Rapids: one `vdpbf16ps` in
    two cycles, two FMAs in each), AMD's at twice its rate.
    """
    return ("-DLORAGYM_WIDENED",) if "GenuineIntel" in _processor("vendor_id") else ()


def _processor(*fields: str) -> str:
    """What the system says of the processor: what it can do, or the named fields."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = fields or ("flags", "Features")
    return next((line for line in lines if line.startswith(wanted)), platform.processor())


def _laid(x: torch.Tensor) -> torch.Tensor:
    """`x` with the values of each row next to each other, copied if they are not."""
    size = x.shape[-1]
    heads_adjoin = x.dim() == 2 or x.shape[1] == 1 or x.stride(1) == size
    return x if heads_adjoin and (size == 1 or x.stride(-1) == 1) else x.contiguous()


def _sizes(x: torch.Tensor) -> tuple[int, int, int]:
    return (x.shape[0], 1, x.shape[1]) if x.dim() == 2 else (x.shape[0], x.shape[1], x.shape[2])


def call(name: str, dtype: torch.dtype, *arguments: float | None) -> None:
    """Runs a kernel on torch's number of threads; all of them come through here."""
    table = functions()
    assert table is not None
    table[name, dtype](*arguments, torch.get_num_threads())


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight `(outputs, inputs)` in the order in which `product` reads it, see `products.h`."""

    values: torch.Tensor
    outputs: int
    inputs: int


def can_pack(dtype: torch.dtype) -> bool:
    """Whether there are products with packed weights of this type here."""
    table = functions()
    return table is not None and ("product", dtype) in table


def pack(weight_NK: torch.Tensor, inputs: int | None = None) -> Packed:
    """Packs a weight; `inputs` above K are filled up with zeros. `can_pack` says whether that is possible.

    Raises:
        ValueError: the inputs are odd in number, and the type is narrow.
    """
    N, inputs = len(weight_NK), inputs or weight_NK.shape[1]
    if inputs % (4 // weight_NK.element_size()):
        raise ValueError(f"{weight_NK.dtype} is packed by pairs of inputs, got {inputs} inputs")
    values = torch.empty(-(-N // LANES) * LANES * inputs, dtype=weight_NK.dtype)
    pack_into(values.data_ptr(), weight_NK, inputs)
    return Packed(values, N, inputs)


def pack_into(place: int, weight_NK: torch.Tensor, inputs: int) -> None:
    """Packs a weight at an address, where there is room for N, filled up to whole blocks, times `inputs`."""
    call("pack", weight_NK.dtype, weight_NK.data_ptr(), place, *weight_NK.shape, *weight_NK.stride(), inputs)


def product(
    x: torch.Tensor, weight: Packed, bias_N: torch.Tensor | None = None, other: torch.Tensor | None = None
) -> torch.Tensor:
    """`x W^T + bias + other`, rounded once; `x` is `(..., K)`, `other` and the result `(..., N)`."""
    x, other = x.contiguous(), None if other is None else other.contiguous()
    y = torch.empty(*x.shape[:-1], weight.outputs, dtype=x.dtype)
    extras = (None if tensor is None else tensor.data_ptr() for tensor in (bias_N, other))
    pointers = x.data_ptr(), weight.values.data_ptr(), *extras, y.data_ptr()
    call("product", y.dtype, *pointers, x.numel() // weight.inputs, weight.outputs, weight.inputs)
    return y


def rms_norm(x: torch.Tensor, weight_K: torch.Tensor, offset: float, eps: float) -> torch.Tensor:
    """x / rms(x) * (weight + offset) over the last dimension; without an offset rounded before the weight too."""
    x, weight_K = _laid(x), weight_K.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype)
    pointers = x.data_ptr(), weight_K.data_ptr(), y.data_ptr()
    call("rms_norm", x.dtype, *pointers, *_sizes(x), x.stride(0), y.stride(0), offset, eps)
    return y


def rms_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight_K: torch.Tensor, offset: float, eps: float
) -> torch.Tensor:
    """The gradient of `rms_norm`'s input."""
    grad, x, weight_K = _laid(grad), _laid(x), weight_K.contiguous()
    found = torch.empty(x.shape, dtype=x.dtype)
    pointers = grad.data_ptr(), x.data_ptr(), weight_K.data_ptr(), found.data_ptr()
    call("rms_norm_backward", x.dtype, *pointers, *_sizes(x), grad.stride(0), x.stride(0), offset, eps)
    return found


def gated(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """activation(gate) * up of `(T, 2 N)`, gate first; `activation` is one of `ACTIVATIONS`."""
    gate_up = gate_up.contiguous()
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    y = torch.empty(rows, size, dtype=gate_up.dtype)
    call("gated", y.dtype, gate_up.data_ptr(), y.data_ptr(), rows, size, ACTIVATIONS[activation])
    return y


def gated_backward(grad: torch.Tensor, gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """The gradient of `gated`'s input."""
    grad, gate_up = grad.contiguous(), gate_up.contiguous()
    found = torch.empty_like(gate_up)
    pointers = grad.data_ptr(), gate_up.data_ptr(), found.data_ptr()
    call("gated_backward", grad.dtype, *pointers, *grad.shape, ACTIVATIONS[activation])
    return found


def rotary(
    x_THD: torch.Tensor, cos_T1D: torch.Tensor, sin_T1D: torch.Tensor, *, back: bool = False, in_place: bool = False
) -> torch.Tensor:
    """Halves of each head turned against each other; the sine comes with the sign of its half.

    `back` gives the gradient instead: the transposed turn.
    """
    laid = _laid(x_THD)
    y = laid if in_place else torch.empty(x_THD.shape, dtype=x_THD.dtype)
    pointers = laid.data_ptr(), cos_T1D.contiguous().data_ptr(), sin_T1D.contiguous().data_ptr(), y.data_ptr()
    call("rotary", y.dtype, *pointers, *x_THD.shape, laid.stride(0), y.stride(0), back)
    return y


def normalizers(
    logits_UV: torch.Tensor, temperatures_U: torch.Tensor, block: int = 0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The log of the sum of exponentials of each row, `(U,)` in float32, and the probability of blocks of entries.

    Args:
        logits_UV: what is divided by the temperatures.
        temperatures_U: float32.
        block: entries in a block; 0 for no blocks.
    """
    logits_UV = logits_UV.contiguous()
    U, V = logits_UV.shape
    found = torch.empty(U)
    blocks = torch.empty(U, -(-V // block)) if block else None
    pointers = logits_UV.data_ptr(), temperatures_U.data_ptr(), found.data_ptr()
    call("normalizers", logits_UV.dtype, *pointers, None if blocks is None else blocks.data_ptr(), U, V, block or V)
    return found, blocks


def normalizers_backward(
    logits_UV: torch.Tensor, temperatures_U: torch.Tensor, normalizers_U: torch.Tensor, outer_U: torch.Tensor
) -> torch.Tensor:
    """The gradient of logits by way of their `normalizers`; all but the logits in float32 and contiguous."""
    logits_UV = logits_UV.contiguous()
    grad_UV = torch.empty_like(logits_UV)
    given = (logits_UV, temperatures_U, normalizers_U, outer_U, grad_UV)
    call("normalizers_backward", logits_UV.dtype, *(tensor.data_ptr() for tensor in given), *logits_UV.shape)
    return grad_UV


def draw(
    logits_UV: torch.Tensor,
    temperatures_U: torch.Tensor,
    normalizers_U: torch.Tensor,
    by_block_UX: torch.Tensor,
    row_S: np.ndarray,
    uniform_S: np.ndarray,
    block: int,
) -> tuple[list[int], list[float]]:
    """A token for each sample, and its log-probability; see `sampling.draw`.

    Args:
        logits_UV: as `normalizers` had them, and `temperatures_U` and `block` too.
        normalizers_U, by_block_UX: what it found.
        row_S: int64, each sample's row.
        uniform_S: float64, each sample's number in [0, 1).
    """
    logits_UV = logits_UV.contiguous()
    tokens_S, logprobs_S = np.empty(len(row_S), dtype=np.int64), np.empty(len(row_S))
    tensors = (x.data_ptr() for x in (logits_UV, temperatures_U, normalizers_U, by_block_UX))
    arrays = (x.ctypes.data for x in (row_S, uniform_S, tokens_S, logprobs_S))
    call("draw", logits_UV.dtype, *tensors, *arrays, len(row_S), logits_UV.shape[1], block)
    return tokens_S.tolist(), logprobs_S.tolist()


def add_lora(
    y: torch.Tensor,
    x: torch.Tensor,
    a_rK: torch.Tensor,
    b_rN: torch.Tensor,
    ranks: torch.Tensor,
    outputs: torch.Tensor,
) -> None:
    """`y += x A^T B`, in place, for the few rows of a decoding step.

    Args:
        y: `(T, N)` and contiguous, as are all others.
        x: `(T, K)`.
        a_rK: the A of adapters that read the same input, one after the other.
        b_rN: their B, transposed and scaled, each in its own rows and columns.
        ranks: int64, where each adapter's rows begin, and where the last one's end.
        outputs: int64, the same for its columns.
    """
    x = x.contiguous()
    pointers = x.data_ptr(), a_rK.data_ptr(), b_rN.data_ptr(), y.data_ptr()
    places = ranks.data_ptr(), outputs.data_ptr()
    call("add_lora", y.dtype, *pointers, *x.shape, y.shape[1], len(ranks) - 1, *places)


class _Tree(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("nodes", "ends", "positions", "ranges", "runs")),
        *((name, c_int64) for name in ("rows", "count", "range_count", "heads", "groups", "head_size", "window")),
        ("scale", c_double),
        ("softcap", c_double),
    )

    @classmethod
    def of(cls, plan: TreePlan, q_THD: torch.Tensor, k_TGD: torch.Tensor, options: AttentionOptions) -> _Tree:
        arrays = (plan.nodes, plan.ends, plan.positions, plan.ranges, plan.runs)
        return cls(
            *(array.ctypes.data for array in arrays),
            *map(len, (plan.nodes, plan.ends, plan.ranges)),
            q_THD.shape[1],
            *k_TGD.shape[1:],
            NO_WINDOW if options.window is None else options.window,
            options.scale,
            options.softcap or 0.0,
        )


def attend_tree(
    q_THD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor, plan: TreePlan, options: AttentionOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over a tree; D is a multiple of `LANES`, and `can_pack` says whether there is any.

    Args:
        q_THD: a query for each of the plan's.
        k_TGD, v_TGD: of all nodes.
        plan: the tree.
        options: the layer's.

    Returns:
        The output `(T, H, D)`, and the log of the sum of exponentials of each query's scores, `(T, H)` in float32.
    """
    q_THD, k_TGD, v_TGD = _laid(q_THD), _laid(k_TGD), _laid(v_TGD)
    tree = _Tree.of(plan, q_THD, k_TGD, options)
    out_THD, normalizers_TH = torch.empty(q_THD.shape, dtype=q_THD.dtype), torch.empty(q_THD.shape[:2])
    given = (q_THD, k_TGD, v_TGD)
    pointers, strides = (x.data_ptr() for x in given), (x.stride(0) for x in given)
    found = out_THD.data_ptr(), normalizers_TH.data_ptr()
    call("attend_tree", q_THD.dtype, ctypes.addressof(tree), *pointers, *strides, *found)
    return out_THD, normalizers_TH


def attend_tree_backward(
    grad_THD: torch.Tensor,
    q_THD: torch.Tensor,
    k_TGD: torch.Tensor,
    v_TGD: torch.Tensor,
    out_THD: torch.Tensor,
    normalizers_TH: torch.Tensor,
    plan: TreePlan,
    options: AttentionOptions,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of `attend_tree`'s queries, keys and values; the same each time for a number of threads."""
    grad_THD, q_THD, k_TGD, v_TGD = map(_laid, (grad_THD, q_THD, k_TGD, v_TGD))
    tree = _Tree.of(plan, q_THD, k_TGD, options)
    q_grad, k_grad, v_grad = (torch.empty(x.shape, dtype=x.dtype) for x in (q_THD, k_TGD, v_TGD))
    pointers = (x.data_ptr() for x in (grad_THD, out_THD.contiguous(), q_THD, k_TGD, v_TGD))
    strides = (x.stride(0) for x in (grad_THD, q_THD, k_TGD, v_TGD))
    results = (x.data_ptr() for x in (normalizers_TH, q_grad, k_grad, v_grad))
    call("attend_tree_backward", q_THD.dtype, ctypes.addressof(tree), *pointers, *strides, *results)
    return q_grad, k_grad, v_grad


def attend(
    q_BHD: torch.Tensor,
    k_BGD: torch.Tensor,
    v_BGD: torch.Tensor,
    caches: tuple[torch.Tensor, torch.Tensor],
    place_B: torch.Tensor,
    on_prompt: torch.Tensor,
    prompt_lengths_B: torch.Tensor,
    options: AttentionOptions,
) -> torch.Tensor:
    """Attention of one new token per row over its own cache, the new key and value written into it first.

    Args:
        q_BHD: queries; `k_BGD`, `v_BGD` the new keys and values.
        caches: keys and values `(rows, G, capacity, D)`, contiguous; the first B rows are those of the batch. D is one
            of `HEAD_SIZES`.
        place_B: int64, where in its cache each row's new token goes; it sees everything up to there.
        on_prompt: scores of prompts that rows share, `(B, G, R, L)`, scaled and contiguous; becomes probabilities.
            L is 0 where there are none.
        prompt_lengths_B: int64, how many of them a row has.

    Returns:
        The part of the output that comes from the rows' own caches, `(B, H, D)`.
    """
    q_BHD, k_BGD, v_BGD = _laid(q_BHD), _laid(k_BGD), _laid(v_BGD)
    keys, values = caches
    (B, H, D), G = q_BHD.shape, k_BGD.shape[1]
    out = torch.empty(B, H, D, dtype=q_BHD.dtype)
    call(
        "attend",
        q_BHD.dtype,
        q_BHD.data_ptr(),
        k_BGD.data_ptr(),
        v_BGD.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        place_B.data_ptr(),
        on_prompt.data_ptr(),
        prompt_lengths_B.data_ptr(),
        out.data_ptr(),
        B,
        G,
        H // G,
        D,
        keys.shape[2],
        on_prompt.shape[-1],
        q_BHD.stride(0),
        k_BGD.stride(0),
        v_BGD.stride(0),
        options.scale,
        options.softcap or 0.0,
        NO_WINDOW if options.window is None else options.window,
    )
    return out
