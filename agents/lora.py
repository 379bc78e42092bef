"""LoRA (Hu et al. 2021): low-rank updates of frozen linear layers, kept outside of the model.

Adapters are plain tensors by module name. One switch per base model says which adapter the next forward call uses;
forward hooks on the linear layers add its update. Nothing is ever written into the model. On disk an adapter is a
standard PEFT folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..envs.json_files import read_json_object
from .tensor_files import unfit_tensors, write_tensors

PEFT_PREFIX = "base_model.model."
HEAD_NAME = "score"
HEAD_WEIGHT = f"{PEFT_PREFIX}{HEAD_NAME}.weight"
ADAPTER_FILE = "adapter_model.safetensors"
_A_SUFFIX = ".lora_A.weight"
ADAPTER_CONFIG_FILE = "adapter_config.json"
MLP_NAMES = ("mlp", "feed_forward", "ffn", "expert")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which layers get an adapter, and how large.

    `alpha` stays fixed while the rank varies, so that the best learning rate does not depend on the rank.
    """

    rank: int = 32
    """Rank of the update; more rank, more capacity."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank."""
    train_attn: bool = True
    """Adapt the attention projections."""
    train_mlp: bool = True
    """Adapt the MLP projections."""
    train_unembed: bool = False
    """Adapt the output embedding."""
    seed: int = 0
    """Seed of A's initial values."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank is at least 1, got {self.rank}")
        if not (self.train_attn or self.train_mlp or self.train_unembed):
            raise ValueError("nothing to train: set train_attn, train_mlp or train_unembed")


@dataclass
class Adapter:
    """An adapter's tensors by module name: A is `(rank, in)`, B is `(out, rank)`.

    Attributes:
        pairs: A and B of each module.
        scale: factor of the update.
        stacks: what `fused` made of a snapshot's tensors; None while the tensors may still change.
    """

    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]
    scale: float
    stacks: dict[tuple[str, ...], Any] | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by their names in a PEFT folder."""
        named = {}
        for module, (a, b) in self.pairs.items():
            named[f"{PEFT_PREFIX}{module}.lora_A.weight"] = a
            named[f"{PEFT_PREFIX}{module}.lora_B.weight"] = b
        return named

    @torch.no_grad()
    def b_norm(self) -> float:
        """The norm of all B together: 0 for a fresh adapter, and another one after each update that did something."""
        norms = torch._foreach_norm([b for _, b in self.pairs.values()])
        return float(torch.linalg.vector_norm(torch.stack(norms).double()))

    @torch.no_grad()
    def copy_from(self, other: Adapter) -> None:
        """Takes over another's tensors.

        Raises:
            ValueError: it has other layers or another rank.
        """
        mine, theirs = self.tensors(), other.tensors()
        if {name: t.shape for name, t in mine.items()} != {name: t.shape for name, t in theirs.items()}:
            raise ValueError("the two adapters have other layers or another rank; make both with the same LoraConfig")
        for name, tensor in mine.items():
            tensor.copy_(theirs[name])

    def frozen(self, dtype: torch.dtype) -> Adapter:
        """A copy that no later update can change, with the scale folded into B."""
        pairs = {
            module: (a.detach().to(dtype, copy=True), (b.detach() * self.scale).to(dtype, copy=True))
            for module, (a, b) in self.pairs.items()
        }
        return Adapter(pairs, 1.0, stacks={})


@dataclass
class AdapterSwitch:
    """Which adapter the next forward call uses; None is the bare base model."""

    active: Adapter | None = None
    hooked: list[str] = field(default_factory=list)

    @contextmanager
    def using(self, adapter: Adapter | None) -> Iterator[None]:
        before, self.active = self.active, adapter
        try:
            yield
        finally:
            self.active = before

    def attach(self, model: nn.Module) -> None:
        """Hooks every linear layer of `model` once."""
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(self._hook(name))
                self.hooked.append(name)

    def _hook(self, name: str) -> Any:
        def add_update(_module: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor | None:
            if self.active is None or (pair := self.active.pairs.get(name)) is None:
                return None
            a, b = pair
            x = args[0]
            update = nn.functional.linear(nn.functional.linear(x, a.to(x.dtype)), b.to(x.dtype))
            return out + update * self.active.scale if self.active.scale != 1.0 else out + update

        return add_update


def target_modules(model: nn.Module, config: LoraConfig) -> dict[str, nn.Linear]:
    """The linear layers that `config` adapts, by name.

    Raises:
        ValueError: the model has no such layer.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    targets = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        parts = name.lower().split(".")
        if module is head:
            wanted = config.train_unembed
        elif any("attn" in part or "attention" in part for part in parts):
            wanted = config.train_attn
        elif parts[-1] in ("gate", "router"):  # a mixture's router stays as it is
            wanted = False
        else:
            wanted = config.train_mlp and any(kind in part for kind in MLP_NAMES for part in parts)
        if wanted:
            targets[name] = module
    if not targets:
        kinds = sorted({name.split(".")[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise ValueError(f"no linear layer of {type(model).__name__} matches {config}; its linear layers are {kinds}")
    return targets


def initial_adapter(targets: dict[str, nn.Linear], config: LoraConfig) -> Adapter:
    """A fresh adapter: A uniform with variance 1 / (3 in), whatever the rank; B zero. Float32 at least."""
    generator = torch.Generator().manual_seed(config.seed)
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, module in targets.items():
        device = module.weight.device
        dtype = torch.promote_types(module.weight.dtype, torch.float32)
        bound = 1 / math.sqrt(module.in_features)
        a = torch.empty(config.rank, module.in_features, dtype=dtype).uniform_(-bound, bound, generator=generator)
        b = torch.zeros(module.out_features, config.rank, dtype=dtype)
        pairs[name] = (nn.Parameter(a.to(device)), nn.Parameter(b.to(device)))
    return Adapter(pairs, config.alpha / config.rank)


def save_peft(
    adapter: Adapter,
    config: LoraConfig,
    folder: Path,
    *,
    base_name: str,
    fingerprint: str,
    unique_suffixes: bool,
    head: torch.Tensor | None = None,
) -> None:
    """Writes a PEFT folder: `adapter_config.json` and `adapter_model.safetensors`.

    Args:
        adapter: what to write.
        config: its configuration.
        folder: where to; made if need be.
        base_name: goes into the config as `base_model_name_or_path`.
        fingerprint: of the base model; kept in the safetensors metadata, so that another base is noticed on loading.
        unique_suffixes: whether the last part of a module's name is enough to name the targets.
        head: `(labels, hidden)` of a sequence classifier; by default the adapter is that of a language model.
    """
    from peft import LoraConfig as PeftConfig

    folder.mkdir(parents=True, exist_ok=True)
    modules = sorted({name.split(".")[-1] for name in adapter.pairs} if unique_suffixes else adapter.pairs)
    peft_config = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        target_modules=modules,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM" if head is None else "SEQ_CLS",
        modules_to_save=None if head is None else [HEAD_NAME],
        base_model_name_or_path=base_name,
        inference_mode=True,
    )
    peft_config.save_pretrained(str(folder))
    named = adapter.tensors() | ({} if head is None else {HEAD_WEIGHT: head})
    tensors = {name: tensor.detach().contiguous() for name, tensor in named.items()}
    write_tensors(tensors, folder / ADAPTER_FILE, {"format": "pt", "loragym_base": fingerprint})


def read_peft_config(folder: Path) -> dict[str, Any]:
    """The adapter's configuration.

    Raises:
        FileNotFoundError: the folder holds no adapter.
        ValueError: the file is damaged, or the adapter is of a kind that this engine does not have.
    """
    path = folder / ADAPTER_CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no LoRA adapter: {ADAPTER_CONFIG_FILE} is missing")
    config = read_json_object(path, "use another checkpoint")
    if "peft_type" not in config:
        raise ValueError(f"{path} is damaged: it has no peft_type; use another checkpoint")
    kind, bias = config["peft_type"], config.get("bias", "none")
    extras = [name for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if config.get(name)]
    if kind != "LORA" or bias != "none" or extras:
        raise ValueError(
            f"{path}: only plain LoRA adapters can be loaded, all of one rank and alpha and without biases; this one "
            f"has peft_type {kind!r}, bias {bias!r}{''.join(f', {name} {config[name]!r}' for name in extras)}"
        )
    if lacking := [name for name in ("r", "lora_alpha", "target_modules") if not config.get(name)]:
        raise ValueError(f"{path} is damaged: it has no {' and no '.join(lacking)}; use another checkpoint")
    rank, alpha, targets = config["r"], config["lora_alpha"], config["target_modules"]
    if type(rank) is not int or rank < 1 or isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise ValueError(f"{path} is damaged: r {rank!r:.80} and lora_alpha {alpha!r:.80} are numbers above 0")
    if not 0 < alpha < 1e9:
        raise ValueError(f"{path}: lora_alpha is a finite number above 0, got {alpha!r:.80}")
    listed = isinstance(targets, list) and all(isinstance(target, str) for target in targets)
    if not listed and not isinstance(targets, str):
        raise ValueError(f"{path}: target_modules are names of modules or a pattern, got {targets!r:.80}")
    return config


def adapted_modules(folder: Path, config: dict[str, Any]) -> set[str]:
    """The modules that an adapter's file has tensors for; only the file's header is read.

    Args:
        folder: the adapter's.
        config: what `read_peft_config` found there.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, or of another rank than the configuration says.
    """
    found = set()
    with _opened(folder / ADAPTER_FILE) as tensors:
        for name in tensors.keys():  # noqa: SIM118 - the file is no mapping
            module = name.removeprefix(PEFT_PREFIX).removesuffix(_A_SUFFIX)
            if name != f"{PEFT_PREFIX}{module}{_A_SUFFIX}":
                continue
            shape = tensors.get_slice(name).get_shape()
            if len(shape) != 2 or shape[0] != config["r"]:
                raise ValueError(
                    f"{folder}: {name} has the shape {tuple(shape)}, and {ADAPTER_CONFIG_FILE} says r {config['r']}; "
                    "use another checkpoint"
                )
            found.add(module)
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no adapter weights: {path.name} is missing")
    try:
        with safe_open(path, framework="pt") as opened:
            yield opened
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); use another checkpoint") from error


def load_peft_tensors(
    folder: Path, expected: dict[str, torch.Tensor], model: nn.Module, *, fingerprint: str
) -> dict[str, torch.Tensor]:
    """Reads an adapter's tensors and checks them against those of the model at hand.

    Raises:
        ValueError: the file is damaged, or the adapter belongs to another base or has other targets or another rank.
    """
    path = folder / ADAPTER_FILE
    with _opened(path) as opened:
        saved_base = (opened.metadata() or {}).get("loragym_base")
        tensors = load_file(path)
    if saved_base is not None and saved_base != fingerprint:
        raise ValueError(
            f"{path} was trained on another base model (fingerprint {saved_base}, this base has {fingerprint}); "
            "load the base that its adapter_config.json names"
        )
    # PEFT stores the base's own output embedding along with an adapter of it.
    linear = {name: module.weight for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    base_weights = {f"{PEFT_PREFIX}{name}.base_layer.weight": weight for name, weight in linear.items()}
    for name in tensors.keys() & base_weights.keys():
        copy, own = tensors.pop(name), base_weights[name]
        # Equal in the narrower of the two types, for the base may be held in another one than when it was saved.
        if copy.shape != own.shape or not (torch.equal(copy.to(own), own) or torch.equal(own.to(copy), copy)):
            raise ValueError(f"{path} brings its own {name}, which is not this base's; load the base it was made on")
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    wrong = [
        f"{n}: {tuple(tensors[n].shape)} where {tuple(t.shape)} is expected"
        for n, t in expected.items()
        if n in tensors and tensors[n].shape != t.shape
    ]
    if missing or unknown or wrong:
        raise ValueError(
            f"{path} does not fit this model and LoraConfig: {len(missing)} tensors missing {missing[:2]}, "
            f"{len(unknown)} unknown {unknown[:2]}, {len(wrong)} of another shape {wrong[:2]}; "
            "load it on the base that it was trained on, with the rank and target modules of its adapter_config.json"
        )
    if unfit := unfit_tensors(tensors):
        raise ValueError(f"{path} is damaged: {unfit}; use another checkpoint")
    return tensors
