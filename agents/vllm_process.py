"""vLLM inside this process, which it is kept from changing: environment, random numbers and torch's threads stay."""

from __future__ import annotations

import gc
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .vllm_backend import Outcome, Request, ServedAdapter
from .vllm_child import adapt_one_at_a_time, restore

QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
"""Defaults: no log but errors, no statistics sent home."""


class ProcessBackend:
    """An engine of vLLM in this process; each `poll` is one of its steps.

    Args:
        arguments: of vLLM's `EngineArgs`.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        with undisturbed(VLLM_ENABLE_V1_MULTIPROCESSING="0"):
            import vllm

            stock = adapt_one_at_a_time()
            try:
                self._engine: Any = vllm.LLMEngine.from_engine_args(
                    vllm.EngineArgs(**arguments, seed=0, disable_log_stats=True, use_tqdm_on_load=False)
                )
            except Exception as error:
                _clean_up()
                error.add_note("vLLM did not start; memory and context are the engine's kv_cache_gib and context")
                raise
            finally:
                restore(stock)
        self.context_length = int(self._engine.model_config.max_model_len)

    def load(self, adapter: ServedAdapter) -> None:
        with undisturbed():
            loaded = self._engine.add_lora(_lora_request(adapter))
        if not loaded or adapter.number not in self._engine.list_loras():
            raise RuntimeError(f"vLLM did not load the adapter {adapter.name} from {adapter.folder}")

    def drop(self, adapter: ServedAdapter) -> None:
        self._engine.remove_lora(adapter.number)

    def start(self, request: Request, adapter: ServedAdapter | None) -> None:
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        settings = SamplingParams(
            **request.settings,
            detokenize="stop" in request.settings,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._engine.add_request(
            str(request.number),
            tokens_input(list(request.prompt)),
            settings,
            lora_request=None if adapter is None else _lora_request(adapter),
        )

    def poll(self) -> dict[int, Outcome]:
        # vLLM on a CPU draws from torch's own numbers in each step, even for requests that have a seed.
        before = torch.get_rng_state()
        finished = self._engine.step()
        torch.set_rng_state(before)
        return {int(output.request_id): _outcome(output) for output in finished if output.finished}

    def close(self) -> None:
        self._engine.engine_core.shutdown()
        del self._engine
        _clean_up()


def _lora_request(adapter: ServedAdapter) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(adapter.name, adapter.number, str(adapter.folder))


def _outcome(output: Any) -> Outcome:
    (sample,) = output.outputs
    tokens = list(sample.token_ids)
    scored = None
    if output.prompt_logprobs is not None:
        pairs = zip(output.prompt_logprobs[1:], output.prompt_token_ids[1:], strict=True)
        scored = [entries[token].logprob for entries, token in pairs]
    return Outcome(
        tokens=tokens,
        logprobs=[entries[token].logprob for entries, token in zip(sample.logprobs or (), tokens, strict=False)],
        reason=sample.finish_reason,
        prompt_logprobs=scored,
    )


def _clean_up() -> None:
    """Releases what vLLM holds for the whole process, so that another engine can start."""
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()
    gc.collect()


@contextmanager
def undisturbed(**environment: str) -> Iterator[None]:
    """Undoes what vLLM does to the environment, to random numbers, to warnings and to torch while it loads.

    Args:
        **environment: variables to set meanwhile; those of `QUIET` are set where the user has not set them.
    """
    before, python, numpy = dict(os.environ), random.getstate(), np.random.get_state()
    dtype, set_num_threads = torch.get_default_dtype(), torch.set_num_threads
    os.environ.update({**QUIET, **before, **environment})
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_default_dtype(dtype)
        torch.set_num_threads = set_num_threads
