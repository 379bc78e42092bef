"""What `VllmEngine` needs of a vLLM, wherever it runs: adapters in and out, requests in, outcomes out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """One version of an adapter as vLLM knows it. Name, number and folder are never used again for another."""

    name: str
    number: int
    folder: Path


@dataclass(frozen=True, slots=True)
class Request:
    """One sample to draw.

    Attributes:
        number: of this request, unique in its engine.
        prompt: token ids.
        settings: sampling parameters by the names that vLLM and its server share.
    """

    number: int
    prompt: tuple[int, ...]
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One sample as vLLM drew it.

    Attributes:
        tokens: the stop included.
        logprobs: of the tokens; empty if none were asked for.
        reason: vLLM's word for why it ended.
        prompt_logprobs: of all tokens of the prompt but the first, if asked for.
    """

    tokens: list[int]
    logprobs: list[float]
    reason: str | None
    prompt_logprobs: list[float] | None = None


class Backend(Protocol):
    """A running vLLM."""

    context_length: int

    def load(self, adapter: ServedAdapter) -> None:
        """Raises RuntimeError if vLLM does not take the adapter."""
        ...

    def drop(self, adapter: ServedAdapter) -> None: ...

    def start(self, request: Request, adapter: ServedAdapter | None) -> None:
        """Queues a request; without an adapter it is the base's."""
        ...

    def poll(self) -> dict[int, Outcome]:
        """Goes on for a moment; outcomes of the requests that finished, by number."""
        ...

    def close(self) -> None: ...
