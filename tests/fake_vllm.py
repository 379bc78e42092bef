"""A vLLM without vLLM: the backend's interface over our own engine, which can be made to go wrong in the usual ways."""

from __future__ import annotations

from loragym.agents import BaseModel, Datum, LoraPolicy, SamplingParams
from loragym.agents.vllm_backend import Outcome, Request, ServedAdapter


class FakeVllm:
    """Serves the adapters that it is given by their folders.

    Args:
        base: the base model that it has loaded.
        ignores: numbers of adapters that it takes and does not use: it answers as the base.
        stuck_at: the number of an adapter that it goes on using for later ones.
        stretched: multiplies the updates of all adapters.
        raw: reports log-probabilities from before the temperature.
        silent: never answers.
        at_once: how many requests finish in a step.
    """

    def __init__(
        self,
        base: BaseModel,
        *,
        ignores: tuple[int, ...] = (),
        stuck_at: int | None = None,
        stretched: float = 1.0,
        raw: bool = False,
        silent: bool = False,
        at_once: int = 2,
    ) -> None:
        self.base, self.ignores, self.stuck_at, self.stretched = base, ignores, stuck_at, stretched
        self.raw, self.silent, self.at_once = raw, silent, at_once
        self.context_length = base.context_length
        self.served: dict[int, LoraPolicy] = {}
        self.loaded: list[ServedAdapter] = []
        self.most_running = 0
        self.closed = False
        self._running: dict[int, tuple[Request, ServedAdapter | None]] = {}

    def load(self, adapter: ServedAdapter) -> None:
        policy = self.base.load_lora(f"fake {adapter.name}", adapter.folder)
        self.base.remove_lora(policy.name)
        policy.adapter.scale *= self.stretched
        self.served[adapter.number] = policy
        self.loaded.append(adapter)

    def drop(self, adapter: ServedAdapter) -> None:
        del self.served[adapter.number]

    def start(self, request: Request, adapter: ServedAdapter | None) -> None:
        self._running[request.number] = (request, adapter)
        self.most_running = max(self.most_running, len(self._running))
        assert len({adapter for _, adapter in self._running.values()}) == 1, "two adapters in one batch"

    def poll(self) -> dict[int, Outcome]:
        if self.silent:
            return {}
        return {number: self._outcome(*self._running.pop(number)) for number in list(self._running)[: self.at_once]}

    def close(self) -> None:
        self.closed = True

    def _outcome(self, request: Request, adapter: ServedAdapter | None) -> Outcome:
        policy = self._policy(adapter)
        settings, prompt = request.settings, list(request.prompt)
        if "prompt_logprobs" in settings:
            datum = Datum(tokens=prompt[:-1], targets=prompt[1:])
            return Outcome([0], [], "length", list(policy.forward([datum]).logprobs[0]))
        params = SamplingParams(
            max_tokens=settings["max_tokens"],
            temperature=settings["temperature"],
            top_k=settings["top_k"],
            top_p=settings["top_p"],
            stop=tuple(settings.get("stop") or settings["stop_token_ids"]),
            seed=settings["seed"],
        )
        ((sample,),) = policy.sampler().sample([prompt], 1, params)
        logprobs = sample.logprobs
        if self.raw:
            whole = [*prompt, *sample.tokens]
            datum = Datum(tokens=whole[:-1], targets=whole[1:])
            logprobs = list(policy.forward([datum]).logprobs[0][len(prompt) - 1 :])
        return Outcome(sample.tokens, logprobs, sample.stop_reason)

    def _policy(self, adapter: ServedAdapter | None) -> LoraPolicy:
        if adapter is None or adapter.number in self.ignores:
            bare = self.base.add_lora("bare")
            self.base.remove_lora("bare")
            return bare
        return self.served[adapter.number if self.stuck_at is None else min(self.stuck_at, adapter.number)]
