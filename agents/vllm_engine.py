"""Sampling with vLLM: adapters swapped in by version, each proven to have taken, with the interface of `TorchSampler`.

A version gets a name, a number and a folder of its own, so neither vLLM's adapter cache nor its prefix cache can take
it for another, and it is dropped once no sampler can ask for it. Requests of different adapters, and of the base, are
never in one batch.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from .batches import Datum
from .loading import LoadingError, find_model
from .lora import Adapter, LoraConfig, initial_adapter, target_modules
from .policy import LoraPolicy
from .requests import checked_request, sample_batch, seed_of
from .sampling import Completion, SamplingParams, sample_keys
from .vllm_backend import Backend, Outcome, Request, ServedAdapter
from .vllm_options import VllmOptions, check_dtype, check_temperature, check_vllm, max_lora_rank

if TYPE_CHECKING:
    from .base_model import BaseModel

PROBE_TEXT = (
    "A probe is a sentence of ordinary words, with numbers like 42 and names like Ada, for what a model knows well it "
    "computes the same way everywhere. It ends here, and another one begins."
)
PROBE_LENGTH = 32
"""Tokens of it that are scored to tell one adapter from another."""
PROBE_TEMPERATURE = 2.0
"""At this one log-probabilities of sampled tokens are nats away from those before the temperature."""
BATCHED_TOKENS = 4096
"""Most tokens that vLLM computes in one step on a CPU, unless the context is longer."""
CPU_BLOCK = 32
"""Tokens of a block of the prefix cache on a CPU, the fewest there are: short prompts of a group share whole blocks."""
TOLERANCE = {torch.float32: (1e-3, 0.02), torch.bfloat16: (0.2, 0.5), torch.float16: (0.05, 0.2)}
"""How far vLLM's change of log-probabilities may be from the learner's, as a mean over the probe: so many nats, and so
much of the change itself."""


class AdapterDidNotTake(RuntimeError):
    """vLLM does not answer as the policy that was synced to it."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Log-probabilities of the probe's tokens, `(PROBE_LENGTH - 1,)`: the learner's and vLLM's."""

    learner: np.ndarray
    vllm: np.ndarray


@dataclass(slots=True, weakref_slot=True, eq=False)
class _Version:
    """An adapter that vLLM serves; dropped when nothing refers to it any more."""

    served: ServedAdapter
    digest: str
    probe: Probe


@dataclass(slots=True)
class _Pending:
    request: Request
    version: _Version | None
    deliver: Callable[[Outcome], None]


class VllmEngine:
    """A vLLM that samples for the policies of one base model.

    Use `sampler` after each update; it syncs the adapter if its weights are new. Close the engine, or use it as a
    context manager: its memory and its server live until then.

    Args:
        base: the base model; vLLM loads it a second time, from its folder and in the same type.
        config: of the adapters to come; their rank may be smaller.
        options: how to run vLLM.

    Raises:
        ImportError: vLLM is not installed.
        ValueError: vLLM cannot serve this model or such adapters.
        RuntimeError: vLLM computes something else than the base model does.
    """

    def __init__(self, base: BaseModel, config: LoraConfig | None = None, options: VllmOptions | None = None) -> None:
        self.base = base
        self.config = config or LoraConfig()
        self.options = options or VllmOptions()
        dtype = str(base.dtype).removeprefix("torch.")
        check_dtype(dtype)
        check_vllm(self.options, self.config, type(base.model).__name__)
        self.max_rank = max_lora_rank(self.config.rank)
        arguments = _arguments(self.options, model_folder(base), dtype, self.max_rank, base.context_length)
        self._connect(start_backend(arguments, self.options))

    @classmethod
    def with_backend(
        cls, base: BaseModel, backend: Backend, config: LoraConfig | None = None, options: VllmOptions | None = None
    ) -> VllmEngine:
        """An engine around a vLLM that is running."""
        engine = cls.__new__(cls)
        engine.base, engine.config, engine.options = base, config or LoraConfig(), options or VllmOptions()
        engine.max_rank = max_lora_rank(engine.config.rank)
        engine._connect(backend)
        return engine

    keeps_time = True
    """It computes in the caller's thread, or gives each request to a server a deadline (`VllmOptions.timeout`)."""

    def _connect(self, backend: Backend) -> None:
        self._backend: Backend | None = backend
        self._folder = tempfile.TemporaryDirectory(prefix="loragym-vllm-", dir=self.options.adapter_dir)
        self._waiting: deque[_Pending] = deque()
        self._running: dict[int, _Pending] = {}
        self._current: _Version | None = None
        """Of the requests under way."""
        self._requests = 0
        self._versions = 0
        self._newest: dict[str, _Version] = {}
        self._unused: deque[ServedAdapter] = deque()
        try:
            self._base_probe = self._prove_base()
        except BaseException:
            self.close()
            raise

    @property
    def context_length(self) -> int:
        """Tokens that model and engine can take at once."""
        return min(self.base.context_length, self._running_backend.context_length)

    def sampler(self, policy: LoraPolicy | None = None) -> VllmSampler:
        """A sampler of the policy as it is now, later updates not changing it; without a policy, of the bare base.

        Raises:
            ValueError: the policy is on another base, or larger than what vLLM was started for.
            AdapterDidNotTake: vLLM answers as if there were no adapter, or an older one, or another one.
            TimeoutError: vLLM did not answer in time.
        """
        if policy is None:
            return VllmSampler(self, None, version=0)
        return VllmSampler(self, self._synced(policy), version=policy.version)

    def close(self) -> None:
        """Stops vLLM and deletes the adapters written for it; samplers of this engine are of no use afterwards."""
        backend, self._backend = self._backend, None
        if backend is None:
            return
        self._newest.clear()
        self._waiting.clear()
        self._running.clear()
        try:
            backend.close()
        finally:
            self._folder.cleanup()

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self,
        prompt: Sequence[int],
        settings: dict[str, Any],
        version: _Version | None,
        deliver: Callable[[Outcome], None],
    ) -> None:
        """Queues one sample; `deliver` is called with its outcome by some later `step`."""
        self._waiting.append(_Pending(Request(self._requests, tuple(prompt), settings), version, deliver))
        self._requests += 1

    def step(self) -> None:
        """Admits what may run now, lets vLLM go on for a moment, and delivers what finished."""
        backend = self._running_backend
        self._drop_unused()
        while self._waiting and (not self._running or self._waiting[0].version is self._current):
            pending = self._waiting.popleft()
            self._running[pending.request.number] = pending
            self._current = pending.version
            backend.start(pending.request, pending.version.served if pending.version else None)
        if self._running:
            for number, outcome in backend.poll().items():
                self._running.pop(number).deliver(outcome)
        if not self._running:
            self._current = None

    @property
    def _running_backend(self) -> Backend:
        if self._backend is None:
            raise RuntimeError("this vLLM engine is closed; make a new one")
        return self._backend

    def _synced(self, policy: LoraPolicy) -> _Version:
        """The policy's weights as vLLM serves them, loaded if they are new."""
        if policy.base is not self.base:
            raise ValueError(
                f"policy {policy.name!r} is on {policy.base.name}, this engine samples from {self.base.name}; "
                "make an engine for that base"
            )
        if policy.config.rank > self.max_rank or (policy.config.train_unembed and not self.config.train_unembed):
            raise ValueError(
                f"this engine was started for adapters up to rank {self.max_rank}, "
                f"train_unembed {self.config.train_unembed}; policy {policy.name!r} has {policy.config}. "
                "Make the engine with that LoraConfig"
            )
        # What vLLM gets is what `TorchSampler` gets: rounded to the base's type, the scale folded into B.
        snapshot = LoraPolicy(
            self.base,
            policy.name,
            replace(policy.config, alpha=float(policy.config.rank)),
            policy.adapter.frozen(self.base.dtype),
        )
        digest = _digest(snapshot.adapter)
        newest = self._newest.get(policy.name)
        if newest is None or newest.digest != digest:
            newest = self._newest[policy.name] = self._load(snapshot, digest, policy.version, newest)
            self._drop_unused()
        return newest

    def _load(self, snapshot: LoraPolicy, digest: str, number_of_updates: int, before: _Version | None) -> _Version:
        self._versions += 1
        name = f"{Path(self._folder.name).name}-{self._versions}-after-{number_of_updates}-updates"
        served = ServedAdapter(name, self._versions, Path(self._folder.name) / name)
        snapshot.save_adapter(served.folder)
        self._running_backend.load(served)
        scores = _learner_scores(snapshot, self._probe_tokens)
        version = _Version(served, digest, Probe(scores, scores))
        weakref.finalize(version, self._unused.append, served)
        version.probe = Probe(scores, self._vllm_scores(version))
        others = {"the base without any adapter": self._base_probe}
        if before is not None:
            others["the version before"] = before.probe
        check_took(version.probe, self._base_probe, others, self.base.dtype, name)
        return version

    def _drop_unused(self) -> None:
        while self._unused:
            served = self._unused.popleft()
            self._running_backend.drop(served)
            shutil.rmtree(served.folder, ignore_errors=True)

    @property
    def _probe_tokens(self) -> list[int]:
        length = min(PROBE_LENGTH, self.context_length - 1)
        return self.base.tokenizer.encode(PROBE_TEXT, add_special_tokens=False)[:length]

    def _vllm_scores(self, version: _Version | None) -> np.ndarray:
        """vLLM's log-probabilities of the probe's tokens but the first."""
        outcome = self._alone(self._probe_tokens, {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 0}, version)
        return np.asarray(outcome.prompt_logprobs)

    def _alone(self, prompt: Sequence[int], settings: dict[str, Any], version: _Version | None) -> Outcome:
        """One request of the engine's own, with a deadline."""
        outcomes: list[Outcome] = []
        self.submit(prompt, settings, version, outcomes.append)
        deadline = time.monotonic() + self.options.timeout
        while not outcomes:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"vLLM did not answer a probe of {len(prompt)} tokens within {self.options.timeout:g} s; is it "
                    "stuck, or the machine overloaded? The option `timeout` sets the limit"
                )
            self.step()
        return outcomes[0]

    def _prove_base(self) -> Probe:
        """Proves that vLLM samples from the base model, and reports the distribution that it draws from."""
        bare = _bare_policy(self.base)
        prompt = self._probe_tokens[: PROBE_LENGTH // 2]
        params = SamplingParams(max_tokens=PROBE_LENGTH // 2, temperature=PROBE_TEMPERATURE, stop=())
        settings = _settings(checked_request(self.base, prompt, params, 1, context=self.context_length), seed=0)
        outcome = self._alone(prompt, settings, None)
        drawn, sequence = np.asarray(outcome.logprobs), [*prompt, *outcome.tokens]
        allowed = TOLERANCE[self.base.dtype][0]
        tempered, raw = (
            float(np.abs(_learner_scores(bare, sequence, t)[len(prompt) - 1 :] - drawn).mean())
            for t in (PROBE_TEMPERATURE, 1.0)
        )
        if not tempered <= allowed and raw <= allowed:
            raise RuntimeError(
                "this vLLM reports log-probabilities before the temperature is applied; start the server with "
                "--logprobs-mode processed_logprobs"
            )
        probe = Probe(_learner_scores(bare, self._probe_tokens), self._vllm_scores(None))
        difference = max(tempered, float(np.abs(probe.learner - probe.vllm).mean()))
        if not difference <= allowed:
            raise RuntimeError(
                f"vLLM computes something else than {self.base.name}: log-probabilities differ by {difference:.3g} in "
                f"the mean, {allowed:g} is expected of {self.base.dtype}. Does the server run another model or type? "
                "Were the weights in memory changed after loading?"
            )
        return probe


class VllmSampler:
    """A frozen snapshot of a policy that samples in vLLM; made by `VllmEngine.sampler`.

    Its interface is that of `TorchSampler`. A request gives the same tokens again in the same engine and the same
    company; in other company rounding may differ, as batches have other shapes.
    """

    def __init__(self, engine: VllmEngine, served: _Version | None, *, version: int) -> None:
        self.engine = engine
        self.version = version
        self._served = served
        self._tickets = 0
        self._unfinished: dict[int, list[Completion | None]] = {}
        self._finished: dict[int, list[Completion]] = {}
        self._seeds = np.random.SeedSequence()

    def sample(
        self, prompts: Sequence[Sequence[int]], n: int = 1, params: SamplingParams | None = None
    ) -> list[list[Completion]]:
        """`n` completions of each prompt; raises as `submit` does."""
        completions, others = sample_batch(self, prompts, n, params)
        self._finished |= others
        return completions

    def submit(self, prompt: Sequence[int], params: SamplingParams, n: int = 1) -> int:
        """Queues a request for `n` completions of one prompt; returns its ticket.

        Raises:
            ValueError: the prompt is empty, leaves no room in the context or has a token that the model does not know,
                or the temperature is none of vLLM's.
        """
        params = checked_request(self.engine.base, prompt, params, n, context=self.engine.context_length)
        check_temperature(params.temperature)
        ticket, self._tickets = self._tickets, self._tickets + 1
        self._unfinished[ticket] = [None] * n
        for index, key in enumerate(sample_keys(seed_of(params, self._seeds), n)):
            self.engine.submit(prompt, _settings(params, seed=key), self._served, self._receiver(ticket, index, params))
        return ticket

    @property
    def pending(self) -> int:
        """Requests not handed out yet."""
        return len(self._unfinished) + len(self._finished)

    def step(self) -> dict[int, list[Completion]]:
        """Lets vLLM go on for a moment; returns the requests that finished, by ticket."""
        if self._unfinished and not self._finished:
            self.engine.step()
        done, self._finished = self._finished, {}
        return done

    def _receiver(self, ticket: int, index: int, params: SamplingParams) -> Callable[[Outcome], None]:
        def receive(outcome: Outcome) -> None:
            samples = self._unfinished[ticket]
            samples[index] = _completion(outcome, greedy=params.temperature == 0)
            if None not in samples:
                self._finished[ticket] = [sample for sample in self._unfinished.pop(ticket) if sample is not None]

        return receive


def check_took(probe: Probe, base: Probe, others: Mapping[str, Probe], dtype: torch.dtype, name: str) -> None:
    """Makes sure that vLLM answers with an adapter as the learner does, and not as with another one or none.

    Args:
        probe: with the adapter.
        base: without any.
        others: what vLLM may still answer as, by what it is; it must differ from each from which the learner differs.
        dtype: of the weights, which says how exactly the two agree.
        name: of the adapter, for the message.

    Raises:
        AdapterDidNotTake: it does not.
    """
    advice = (
        "Sampling goes on with other weights than training, so this is an error. Make a new engine; if it happens "
        "again, check that vLLM's version is one that docs/vllm.md names, and that a server reads the same adapter_dir"
    )
    for what, other in others.items():
        # One rounding flipped moves a number or two; weights that matter move most of them.
        expected = np.mean(probe.learner != other.learner) >= 0.5
        if expected and np.array_equal(probe.vllm, other.vllm):
            raise AdapterDidNotTake(f"the adapter {name} did not take: vLLM answers as {what}. {advice}")
    wanted, got = probe.learner - base.learner, probe.vllm - base.vllm
    nats, share = TOLERANCE[dtype]
    allowed = nats + share * float(np.abs(wanted).mean())
    difference = float(np.abs(got - wanted).mean())
    if not difference <= allowed:
        raise AdapterDidNotTake(
            f"vLLM computes something else with the adapter {name}: it changes log-probabilities by "
            f"{np.abs(got).mean():.3g} in the mean, the learner by {np.abs(wanted).mean():.3g}, and the two changes "
            f"differ by {difference:.3g} where {allowed:.3g} is expected of {dtype}. {advice}"
        )


def model_folder(base: BaseModel) -> Path:
    """The folder that the base was loaded from.

    Raises:
        ValueError: it is in memory alone.
    """
    try:
        return find_model(base.name)
    except LoadingError as error:
        raise ValueError(
            f"vLLM loads the base model from a folder, and {base.name!r} is none: save it with `save_pretrained` (the "
            "tokenizer too) and take BaseModel.load(folder), or use the torch engine"
        ) from error


def start_backend(arguments: dict[str, Any], options: VllmOptions) -> Backend:
    """A vLLM in this process, in a child process, or the one that runs at `options.url`."""
    if options.mode == "in_process":
        from .vllm_process import ProcessBackend

        return ProcessBackend(arguments)
    from .vllm_server import ServerBackend, start_server

    if options.url is not None:
        return ServerBackend(options.url, timeout=options.timeout, max_concurrent=options.max_concurrent)
    return start_server(arguments, timeout=options.timeout, max_concurrent=options.max_concurrent)


def _arguments(options: VllmOptions, folder: Path, dtype: str, max_rank: int, context: int) -> dict[str, Any]:
    """By the names of vLLM's `EngineArgs`."""
    context = min(options.context or context, context)
    arguments = {
        "model": str(folder),
        "dtype": dtype,
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": max_rank,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "max_num_seqs": options.max_concurrent,
        "max_model_len": context,
        "kv_cache_memory_bytes": int(options.kv_cache_gib * 2**30),
        "enable_prefix_caching": options.prefix_caching,
    }
    if not torch.cuda.is_available():
        # vLLM on a CPU fails on a request with a seed whose prompt is computed in several pieces.
        tokens = max(context, options.max_concurrent, BATCHED_TOKENS)
        arguments |= {"enable_chunked_prefill": False, "max_num_batched_tokens": tokens, "block_size": CPU_BLOCK}
    return {**arguments, **options.vllm_args}


def _settings(params: SamplingParams, seed: int) -> dict[str, Any]:
    """Sampling parameters by the names that vLLM and its server share."""
    stop = params.stop or ()
    return {
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "max_tokens": params.max_tokens,
        # 63 bits, as the server takes signed numbers.
        "seed": seed >> 1,
        "logprobs": 0,
        # Which tokens end a sample is said by the request alone.
        "ignore_eos": True,
        "skip_special_tokens": False,
        "include_stop_str_in_output": True,
        **({"stop": list(stop)} if stop and isinstance(stop[0], str) else {"stop_token_ids": list(stop)}),
    }


def _completion(outcome: Outcome, *, greedy: bool) -> Completion:
    reasons: dict[str | None, Literal["stop", "length"]] = {"stop": "stop", "length": "length"}
    if outcome.reason not in reasons:
        raise RuntimeError(f"vLLM ended a request with {outcome.reason!r} after {len(outcome.tokens)} tokens")
    logprobs = [0.0] * len(outcome.tokens) if greedy else outcome.logprobs
    return Completion(outcome.tokens, logprobs, reasons[outcome.reason])


def _bare_policy(base: BaseModel) -> LoraPolicy:
    """The base behind the interface of a policy: its adapter is zero."""
    config = LoraConfig(rank=1)
    return LoraPolicy(base, "bare", config, initial_adapter(target_modules(base.model, config), config))


def _learner_scores(policy: LoraPolicy, tokens: Sequence[int], temperature: float = 1.0) -> np.ndarray:
    """The learner's log-probabilities of all tokens but the first."""
    datum = Datum(tokens=tokens[:-1], targets=tokens[1:])
    return policy.forward([datum], temperature=temperature).logprobs[0]


def _digest(adapter: Adapter) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(adapter.tensors().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
