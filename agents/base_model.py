"""The frozen base model: one set of weights in memory that carries any number of LoRA adapters."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from .attention import IMPLEMENTATION, Layout, TreeLayout
from .fused import FusedDecoder
from .loading import load_pretrained
from .lora import (
    Adapter,
    AdapterSwitch,
    LoraConfig,
    adapted_modules,
    initial_adapter,
    load_peft_tensors,
    read_peft_config,
    save_peft,
    target_modules,
)
from .memory import keep_freed_memory
from .packing import pack_sequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .policy import LoraPolicy
    from .scorer import LoraScorer
    from .torch_sampler import TorchSampler

PROBE_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}
"""Largest difference of log-probabilities between our forward pass and transformers' own that counts as rounding,
as a mean over the probe."""


class BaseModel:
    """A frozen transformers model with a tokenizer, and the adapters on it.

    Make one with `BaseModel.load`, or `BaseModel(model, tokenizer)` around a model that is already in memory.

    Raises:
        NotImplementedError: our forward pass does not reproduce the architecture's own.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name or model.config._name_or_path or type(model).__name__
        self.adapters: dict[str, LoraPolicy | LoraScorer] = {}
        self.switch = AdapterSwitch()
        self.turn = threading.RLock()
        """Held during each pass, so that several threads may sample and learn; see `exclusive`."""
        self.shortages: list[str] = []
        """What was halved because memory ran out, in words; see `memory`."""
        self.fused = FusedDecoder.of(model)
        try:
            self._probe()
        except NotImplementedError:
            if self.fused is None:
                raise
            self.fused = None
            self._probe()
        if self.fused is not None:
            self.fused.unpack()  # until there is something to sample
        self.switch.attach(model)

    @classmethod
    def load(cls, name_or_path: str, *, device: str = "auto", dtype: str | torch.dtype = "auto") -> BaseModel:
        """Loads a local directory, a bundled name or a hub id.

        Args:
            name_or_path: where the model is; see `loading.load_pretrained` for the order of the sources.
            device: a torch device; `auto` is CUDA if there is one, else the CPU.
            dtype: of the weights; `auto` is bfloat16 where the processor computes in it, else float32.

        Raises:
            loading.ModelNotFound: no source has it; the error names those tried.
        """
        place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        if place.type == "cpu":
            keep_freed_memory()
        model, tokenizer = load_pretrained(name_or_path, dtype=_dtype(dtype, place))
        return cls(model.to(place), tokenizer, name=name_or_path)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype

    @property
    def context_length(self) -> int:
        """Tokens that the model can take at once."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 2**31))

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the model knows."""
        return min(
            self.model.get_input_embeddings().weight.shape[0], self.model.get_output_embeddings().weight.shape[0]
        )

    @cached_property
    def head_name(self) -> str:
        """The output embedding's name among the model's modules."""
        head = self.model.get_output_embeddings()
        return next(name for name, module in self.model.named_modules() if module is head)

    @cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """Tokens that end a reply when no other stop is asked for."""
        ids = {self.tokenizer.eos_token_id}
        of_config = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ids |= set(of_config) if isinstance(of_config, list) else {of_config}
        return tuple(sorted(i for i in ids if i is not None))

    @cached_property
    def fingerprint(self) -> str:
        """Tells one base from another: a digest of every weight's name, shape and first values."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.model.state_dict().items()):
            sample = weight.detach().flatten()[:16].to("cpu", torch.float32)
            # Rounded to bfloat16, so that the same weights in float32 and bfloat16 are the same base.
            digest.update(
                f"{name}{tuple(weight.shape)}".encode() + sample.bfloat16().view(torch.int16).numpy().tobytes()
            )
        return digest.hexdigest()[:16]

    def weights_hash(self) -> str:
        """Digest of every byte of the base's weights: the proof that nothing changed them."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def add_lora(self, name: str, config: LoraConfig | None = None) -> LoraPolicy:
        """A new adapter on this base, to train and to sample from.

        Raises:
            ValueError: the name is taken.
        """
        config = config or LoraConfig()
        return self._add(name, config, target_modules(self.model, config))

    def add_like(self, name: str, other: LoraPolicy) -> LoraPolicy:
        """A new adapter of another's configuration on the same layers.

        Raises:
            ValueError: the name is taken.
        """
        layers = {layer: self.model.get_submodule(layer) for layer in other.adapter.pairs}
        return self._add(name, other.config, cast(dict[str, nn.Linear], layers))

    def add_scorer(self, name: str, config: LoraConfig | None = None) -> LoraScorer:
        """A new adapter with a head that gives a number: a reward model, or a critic.

        Raises:
            ValueError: the name is taken.
        """
        from .scorer import LoraScorer

        config = config or LoraConfig()
        scorer = LoraScorer(self, self._new(name), config, initial_adapter(target_modules(self.model, config), config))
        self.adapters[name] = scorer
        return scorer

    def load_scorer(self, name: str, folder: str | Path) -> LoraScorer:
        """A scorer from a PEFT folder of a sequence classifier with one label.

        Raises:
            FileNotFoundError, ValueError: the folder holds no scorer that fits this base.
        """
        from .scorer import LoraScorer

        config, targets = self._saved_config(folder)
        scorer = LoraScorer(self, self._new(name), config, initial_adapter(targets, config))
        scorer.load_adapter(folder)
        self.adapters[name] = scorer
        return scorer

    def load_lora(self, name: str, folder: str | Path) -> LoraPolicy:
        """An adapter from a PEFT folder, of any rank and of whichever linear layers it has.

        Raises:
            FileNotFoundError, ValueError: the folder holds no adapter that fits this base.
        """
        config, targets = self._saved_config(folder)
        policy = self._add(name, config, targets)
        try:
            policy.load_adapter(folder)
        except Exception:
            self.remove_lora(name)
            raise
        return policy

    def _saved_config(self, folder: str | Path) -> tuple[LoraConfig, dict[str, nn.Linear]]:
        saved = read_peft_config(Path(folder))
        targets = saved["target_modules"]
        linear = {n: m for n, m in self.model.named_modules() if isinstance(m, nn.Linear)}
        # Not matched where it is a pattern: whoever wrote the file could keep us busy with one for ever.
        there = adapted_modules(Path(folder), saved)
        named = {n: m for n, m in linear.items() if (n in there if isinstance(targets, str) else _matches(n, targets))}
        if not named:
            raise ValueError(f"{folder} adapts {targets}, and no linear layer of {self.name} is called so")
        config = LoraConfig(
            rank=saved["r"],
            alpha=saved["lora_alpha"],
            train_attn=any("attn" in n for n in named),
            train_mlp=any("attn" not in n and n != "lm_head" for n in named),
            train_unembed="lm_head" in named,
        )
        return config, named

    def _new(self, name: str) -> str:
        if name in self.adapters:
            raise ValueError(f"this base already has an adapter {name!r}; choose another name or `remove_lora` it")
        return name

    def _add(self, name: str, config: LoraConfig, targets: dict[str, nn.Linear]) -> LoraPolicy:
        from .policy import LoraPolicy

        policy = LoraPolicy(self, self._new(name), config, initial_adapter(targets, config))
        self.adapters[name] = policy
        return policy

    def write_adapter(
        self, adapter: Adapter, config: LoraConfig, folder: str | Path, *, head: torch.Tensor | None = None
    ) -> None:
        """Writes an adapter on this base as a PEFT folder; with a `head` as that of a sequence classifier."""
        linear = [name.split(".")[-1] for name in self.switch.hooked]
        adapted = [name.split(".")[-1] for name in adapter.pairs]
        save_peft(
            adapter,
            config,
            Path(folder),
            base_name=self.name,
            fingerprint=self.fingerprint,
            unique_suffixes=all(linear.count(suffix) == adapted.count(suffix) for suffix in set(adapted)),
            head=head,
        )

    def read_adapter(
        self,
        adapter: Adapter,
        config: LoraConfig,
        folder: str | Path,
        *,
        extra: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Copies the weights of a PEFT folder into an adapter, and into `extra` tensors by their names there.

        Raises:
            FileNotFoundError, ValueError: no adapter there, or it does not fit this base, rank, alpha and targets.
        """
        saved = read_peft_config(Path(folder))
        expected = {**adapter.tensors(), **(extra or {})}
        tensors = load_peft_tensors(Path(folder), expected, self.model, fingerprint=self.fingerprint)
        if not math.isclose(saved["lora_alpha"] / saved["r"], adapter.scale):
            raise ValueError(
                f"{folder} was trained with lora_alpha {saved['lora_alpha']}, this policy has {config.alpha}; "
                "make it with a LoraConfig of that alpha, or use `BaseModel.load_lora`"
            )
        with torch.no_grad():
            for name, tensor in tensors.items():
                expected[name].copy_(tensor)

    def remove_lora(self, name: str) -> None:
        """Drops an adapter; samplers made from it keep their snapshot."""
        del self.adapters[name]

    def sampler(self, **options: Any) -> TorchSampler:
        """A sampler of the bare base model; options as in `TorchSampler`."""
        from .torch_sampler import TorchSampler

        return TorchSampler(self, None, **options)

    def hidden_states(
        self,
        tokens_T: torch.Tensor,
        positions_T: torch.Tensor,
        layout: Layout,
        adapter: Adapter | None,
        only: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Runs the decoder over flat tokens; returns the last layer's normalised states, `(T, hidden)`.

        With `only`, indices of tokens, returns the states of these.
        """
        if self.fused is not None:
            return self.fused(tokens_T, positions_T, layout, adapter, only)
        decoder = getattr(self.model, self.model.base_model_prefix)
        with self.switch.using(adapter):
            out = decoder(
                input_ids=tokens_T[None], position_ids=positions_T[None], use_cache=False, layout=layout
            ).last_hidden_state[0]
        return out if only is None else out.index_select(0, only)

    def logits(self, hidden_XH: torch.Tensor, adapter: Adapter | None) -> torch.Tensor:
        """Unnormalised log-probabilities `(X, V)` of the next token, in the head's own type."""
        if self.fused is not None and not (adapter and self.head_name in adapter.pairs):
            logits = self.fused.logits(hidden_XH)
        else:
            with self.switch.using(adapter):
                logits = self.model.get_output_embeddings()(hidden_XH)
        config = self.model.config.get_text_config()
        if scaling := getattr(config, "logits_scaling", None):
            logits = logits / scaling
        if scale := getattr(config, "logit_scale", None):
            logits = logits * scale
        if cap := getattr(config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        return logits

    @torch.no_grad()
    def _probe(self) -> None:
        """Proves on a small tree that our attention, head and decoding give what the architecture gives by itself."""
        from .sampling import SamplingParams
        from .torch_sampler import TorchSampler

        kind, layers = type(self.model).__name__, self.model.config.get_text_config().num_hidden_layers
        self.model.set_attn_implementation(IMPLEMENTATION)
        tokens = [(7919 * i + 11) % self.vocabulary for i in range(7)]
        prompts = [tokens[:5], tokens[:3] + tokens[5:]]
        params = SamplingParams(max_tokens=3, stop=(), seed=0)
        sampled = [
            (prompt, completion)
            for prompt, completions in zip(prompts, TorchSampler(self, None).sample(prompts, 2, params), strict=True)
            for completion in completions
        ]
        sequences = [prompt + completion.tokens for prompt, completion in sampled]
        (pack,) = pack_sequences(sequences, max_nodes=2**31, device=self.device)
        layout = TreeLayout(pack, kept={})
        hidden = self.hidden_states(pack.tokens_T, pack.positions_T, layout, None)
        if layout.kept is None or len(layout.kept) != layers:
            raise NotImplementedError(
                f"{kind} has {layers} layers, of which {len(layout.kept or ())} use transformers' attention interface: "
                "loragym's engine cannot carry recurrent, convolutional or hard-coded attention layers along a tree"
            )
        paths_SN = torch.as_tensor(np.stack([pack.paths[pack.members.index(i)] for i in range(len(sequences))]))
        ours = self.logits(hidden[paths_SN.to(self.device)], None).float().log_softmax(-1)
        self.model.set_attn_implementation("eager")
        tokens_SN = torch.tensor(sequences, device=self.device)
        expected = self.model(tokens_SN, use_cache=False).logits.float().log_softmax(-1)
        self.model.set_attn_implementation(IMPLEMENTATION)
        drawn = torch.tensor([completion.logprobs for _, completion in sampled], device=self.device)
        likewise = expected[:, 4:-1].gather(-1, tokens_SN[:, 5:, None]).squeeze(-1)
        for what, difference in (("forward pass", ours - expected), ("decoding", drawn - likewise)):
            if not difference.abs().mean().item() <= PROBE_TOLERANCE[self.dtype]:
                raise NotImplementedError(
                    f"{kind} computes something that loragym's {what} does not: mean difference of log-probabilities "
                    f"{difference.abs().mean().item():.3g} on a tree of {pack.num_nodes} tokens in {self.dtype}"
                )


def _dtype(asked: str | torch.dtype, device: torch.device) -> torch.dtype:
    if isinstance(asked, torch.dtype):
        return asked
    if asked == "auto":
        fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
    if asked not in dtypes:
        raise ValueError(f"dtype is auto or one of {sorted(dtypes)}, got {asked!r}")
    return dtypes[asked]


def _matches(module: str, targets: list[str]) -> bool:
    """PEFT's rule: a list names whole modules or their last parts."""
    return any(module == target or module.endswith(f".{target}") for target in targets)
