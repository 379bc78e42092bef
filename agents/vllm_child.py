"""vLLM's server as a child that dies with its parent, and vLLM's CPU operators for adapters, made for one at a time.

The stock operators copy the adapter's weights once for every token. Here a batch is of one adapter or of none, so two
matrix products do. This file runs as a script too, in vLLM's own processes, and imports nothing of the package.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
from typing import Any


def adapt_one_at_a_time() -> Any:
    """Puts our operators in the place of vLLM's for engines that start from now on; returns what stood there."""
    from vllm.lora.punica_wrapper import punica_cpu

    stock: Any = punica_cpu.PunicaWrapperCPU

    # Suffixes: `T` tokens of the batch, `I` and `O` a layer's inputs and outputs, `R` rank, `S` slots for adapters.
    class OneAdapterWrapper(stock):
        def update_metadata(self, mapping: Any, *args: Any, **kwargs: Any) -> None:
            super().update_metadata(mapping, *args, **kwargs)
            slots = set(self.token_lora_indices.tolist())
            if len(slots) > 1:
                raise RuntimeError("one batch holds requests of several adapters, or of one and of the base")
            self.slot = slots.pop() if slots else -1

        def _apply_shrink(self, y: Any, x: Any, w_t_all: Any, scale: float) -> None:
            if self.slot >= 0:
                a_RI = w_t_all[self.slot, 0]
                y[:, : len(a_RI)] = (x @ a_RI.T) * scale

        def _apply_expand(
            self, y: Any, x: Any, w_t_all: Any, y_offset: int, y_slice_size: int, add_inputs: bool = True
        ) -> None:
            if self.slot < 0:
                return
            b_OR = w_t_all[self.slot, 0, :y_slice_size]
            y_TO, update_TO = y[:, y_offset : y_offset + y_slice_size], x.to(b_OR.dtype) @ b_OR.T
            if add_inputs:
                y_TO += update_TO
            else:
                y_TO.copy_(update_TO)

        def add_lora_logits(
            self, y: Any, x: Any, lora_a_stacked: Any, lora_b_stacked: Any, scale: float, **_: Any
        ) -> None:
            if self.slot >= 0:
                a_RI, b_OR = lora_a_stacked[self.slot, 0], lora_b_stacked[self.slot, 0]
                y[:, : len(b_OR)] += (x @ a_RI.T * scale) @ b_OR.T

    punica_cpu.PunicaWrapperCPU = OneAdapterWrapper
    return stock


def restore(stock: Any) -> None:
    """Undoes `adapt_one_at_a_time`."""
    from vllm.lora.punica_wrapper import punica_cpu

    punica_cpu.PunicaWrapperCPU = stock


def main() -> None:
    """Runs vLLM's server with this script's arguments until standard input ends, as it does when the parent dies."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    # Not `vllm serve`, which asks for the version of a package that is called vllm, and on a CPU none is.
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")


def _die_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.killpg(0, signal.SIGKILL)


# vLLM's processes are spawned and import the script anew, under the second name.
if __name__ in ("__main__", "__mp_main__"):
    adapt_one_at_a_time()
if __name__ == "__main__":
    main()
