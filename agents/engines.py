"""Sampling engines behind one interface: a policy in, a sampler of it as it is now out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .base_model import BaseModel
    from .lora import LoraConfig
    from .policy import LoraPolicy
    from .sampling import Completion, SamplingParams


class Sampler(Protocol):
    """A frozen snapshot of a policy that samples; `TorchSampler` and `VllmSampler` are two."""

    version: int

    @property
    def pending(self) -> int: ...

    def sample(
        self, prompts: Sequence[Sequence[int]], n: int = 1, params: SamplingParams | None = None
    ) -> list[list[Completion]]: ...

    def submit(self, prompt: Sequence[int], params: SamplingParams, n: int = 1) -> int: ...

    def step(self) -> dict[int, list[Completion]]: ...


class Engine(Protocol):
    """What samples for the policies of one base model."""

    @property
    def context_length(self) -> int: ...

    def sampler(self, policy: LoraPolicy | None = None) -> Sampler: ...

    def close(self) -> None: ...


class TorchEngine:
    """The base model itself (`TorchSampler`), which needs nothing but what the learner has.

    Args:
        base: the base model.
        max_concurrent: most samples under way at once; fewer once memory ran out.
    """

    def __init__(self, base: BaseModel, *, max_concurrent: int = 256) -> None:
        self.base = base
        self.max_concurrent = max_concurrent
        self.keeps_time = True
        """It computes in the caller's thread, and waits for nobody."""

    @property
    def context_length(self) -> int:
        return self.base.context_length

    def sampler(self, policy: LoraPolicy | None = None) -> Sampler:
        """A sampler of the policy as it is now, or of the bare base."""
        return (policy or self.base).sampler(max_concurrent=self.max_concurrent, on_shortage=self._allow)

    def _allow(self, max_concurrent: int) -> None:
        self.max_concurrent = min(self.max_concurrent, max_concurrent)

    def close(self) -> None:
        """Nothing to release."""


@dataclass(frozen=True, slots=True)
class EngineKind:
    """How to get an engine by name.

    Attributes:
        check: raises ValueError for an adapter configuration, a type, a temperature or options that it cannot serve;
            imports nothing.
        require: raises ImportError or ValueError if it is not installed as it has to be; loads no model.
        make: from the base model, the adapters' configuration, most samples at once, and options.
    """

    check: Callable[[LoraConfig, str, float, Mapping[str, Any]], None]
    require: Callable[[LoraConfig, Mapping[str, Any]], None]
    make: Callable[[BaseModel, LoraConfig, int, Mapping[str, Any]], Engine]


def _check_torch(config: LoraConfig, dtype: str, temperature: float, options: Mapping[str, Any]) -> None:
    if options:
        raise ValueError(f"the engine torch has no options, got {dict(options)}")


def _check_vllm(config: LoraConfig, dtype: str, temperature: float, options: Mapping[str, Any]) -> None:
    from .vllm_options import VllmOptions, check_dtype, check_temperature, max_lora_rank

    VllmOptions.from_json(options)
    max_lora_rank(config.rank)
    check_temperature(temperature)
    if dtype != "auto":
        check_dtype(dtype)


def _require_vllm(config: LoraConfig, options: Mapping[str, Any]) -> None:
    from .vllm_options import VllmOptions, check_vllm

    check_vllm(VllmOptions.from_json(options), config)


def _make_vllm(base: BaseModel, config: LoraConfig, max_concurrent: int, options: Mapping[str, Any]) -> Engine:
    from .vllm_engine import VllmEngine
    from .vllm_options import VllmOptions

    return VllmEngine(base, config, VllmOptions.from_json({"max_concurrent": max_concurrent, **options}))


ENGINES = {
    "torch": EngineKind(
        _check_torch,
        lambda config, options: None,
        lambda base, config, max_concurrent, options: TorchEngine(base, max_concurrent=max_concurrent),
    ),
    "vllm": EngineKind(_check_vllm, _require_vllm, _make_vllm),
}
