"""The machine's own speed: matrix products at given shapes, and memory bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from loragym.agents import kernels
from torch.nn import functional

from benchmarks.protocol import Answer, Handler, serve
from benchmarks.workers.common import set_threads, synchronize

SAMPLE_SECONDS = 0.01
SAMPLES = 3
BANDWIDTH_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""Many times any cache."""
SMALL_PRODUCT = {"cpu": 2**27, "cuda": 2**32}
"""Operations below which several products are also measured at once."""
TOGETHER = 32


def load(options: Answer) -> tuple[Handler, Answer]:
    set_threads(options["threads"])
    device, dtype = options["device"], getattr(torch, options["dtype"])

    def handle(request: Answer) -> Answer:
        if request["kind"] == "products":
            with torch.no_grad():
                return {"rates": [product_rate(*shape, dtype=dtype, device=device) for shape in request["shapes"]]}
        return bandwidths(device)

    name = torch.cuda.get_device_name() if device != "cpu" else torch.backends.cpu.get_cpu_capability()
    return handle, {"processor": name, "torch": torch.__version__, "threads": torch.get_num_threads()}


def product_rate(m: int, k: int, n: int, *, dtype: torch.dtype, device: str) -> float:
    """Operations per second of `(m, k) @ (k, n)`: the best of plain, several at once, and on a CPU prepacked weights,
    oneDNN's and ours.

    A small product alone is mostly the cost of the call; several at once show what its arithmetic takes.
    """
    x, weight = torch.randn(m, k, device=device).to(dtype), torch.randn(n, k, device=device).to(dtype)
    ways: list[Callable[[], Any]] = [lambda: functional.linear(x, weight)]
    if device == "cpu" and dtype != torch.float64 and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, m)
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""))
    if device == "cpu" and kernels.can_pack(dtype) and k % 2 == 0:
        ours = kernels.pack(weight)
        ways.append(lambda: kernels.product(x, ours))
    best = min(quickest(way, device) for way in ways)
    if 2 * m * k * n < SMALL_PRODUCT[device]:
        xs, weights = x.expand(TOGETHER, -1, -1).contiguous(), weight.t().expand(TOGETHER, -1, -1).contiguous()
        best = min(best, quickest(lambda: torch.bmm(xs, weights), device) / TOGETHER)
    return 2 * m * k * n / best


def bandwidths(device: str) -> Answer:
    """Bytes per second, the best of copying (bytes read plus bytes written) and reading."""
    source = torch.randn(BANDWIDTH_BYTES[device] // 4, device=device)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / quickest(lambda: target.copy_(source), device)
    read = source.nbytes / quickest(lambda: source.amax(), device)
    return {"copy": copy, "read": read, "bandwidth": max(copy, read)}


def quickest(work: Callable[[], Any], device: str) -> float:
    """Seconds of one call, the least of a few samples of many calls."""
    work()
    best = float("inf")
    for _ in range(SAMPLES):
        synchronize(device)
        began, calls = time.perf_counter(), 0
        while not calls or time.perf_counter() - began < SAMPLE_SECONDS:
            for _ in range(8 if calls else 1):
                work()
            calls += 8 if calls else 1
            synchronize(device)
        best = min(best, (time.perf_counter() - began) / calls)
    return best


if __name__ == "__main__":
    serve(load)
