"""The rows of the suite: which workloads, which engines, how often, in the short and in the long form.

A row that takes minutes on some engine has a smaller twin, named `...-small`, in the short form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .cases import Workload

RANK = 32
OURS = "loragym"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Something that is measured.

    Attributes:
        label: its name in tables.
        module: its worker in `benchmarks.workers`.
        options: what the worker is told beyond model, adapter, threads and device.
        adapter: which adapter it starts from: `random` (B not zero), `fresh` (B zero) or `warm` (briefly trained).
        environment: variables of its process.
        home: the folder of its Python environment; None is the one that runs the suite.
        install: how to get it.
    """

    label: str
    module: str
    options: Mapping[str, Any] = field(default_factory=dict)
    adapter: str = "random"
    environment: Mapping[str, str] = field(default_factory=dict)
    home: str | None = None
    install: str = "make bench"


TRL_HOME, VLLM_HOME = ".venv-bench", ".venv-vllm"
VLLM_INSTALL = "make .venv-vllm/.installed"
NARROW = {"peft": True, "float32_adapter": False}
"""For sampling: PEFT's adapter in the base's type, as ours is then."""
AUTOCAST = {"peft": True, "float32_adapter": True, "autocast": True}
"""For training: a float32 adapter under autocast, which keeps the precision of ours and is quicker than without."""
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""What our engine sets by itself in glibc, for the others too: freed memory stays with the process."""
POSITIONS = {"cpu": 2048, "cuda": 8192}
"""Most positions, padding included, in one pass of an engine that pads; larger batches are accumulated."""


def _plain(label: str, adapter: str = "random", **options: Any) -> Engine:
    return Engine(
        label=label,
        module="transformers_peft",
        options=options,
        adapter=adapter,
        environment=KEEP_FREED_MEMORY,
    )


def _trl(label: str, adapter: str = "random", **options: Any) -> Engine:
    return Engine(
        label=label,
        module="trl_trainers",
        options=options,
        adapter=adapter,
        environment=KEEP_FREED_MEMORY,
        home=TRL_HOME,
    )


def _vllm(label: str, merged: bool) -> Engine:
    return Engine(
        label=label,
        module="vllm_cpu",
        options={"merged": merged},
        environment=KEEP_FREED_MEMORY,
        home=VLLM_HOME,
        install=VLLM_INSTALL,
    )


ENGINES: dict[str, Engine] = {
    OURS: Engine(label="loragym", module="ours", adapter="random"),
    "loragym-fresh": Engine(label="loragym", module="ours", adapter="fresh"),
    "loragym-warm": Engine(label="loragym", module="ours", adapter="warm"),
    "generate": _plain("transformers generate, no adapter", peft=False),
    "generate-peft": _plain("transformers generate, PEFT unmerged", **NARROW),
    "vllm-lora": _vllm("vLLM, LoRA as it ships", merged=False),
    "vllm-merged": _vllm("vLLM, merged weights", merged=True),
    "peft": _plain("transformers + PEFT, padded", **AUTOCAST),
    "peft-single": _plain("transformers + PEFT, one by one", **AUTOCAST),
    "peft-rl": _plain("transformers + PEFT, plain loop", adapter="fresh", **AUTOCAST),
    "trl-sft": _trl("TRL SFTTrainer, padded"),
    "trl-sft-single": _trl("TRL SFTTrainer, one by one"),
    "trl-sft-free": _trl("TRL SFTTrainer, padding-free", padding_free=True),
    "trl-sft-checkpointing": _trl("TRL SFTTrainer, checkpointing", checkpointing=True),
    "trl-grpo": _trl("TRL GRPOTrainer", adapter="fresh"),
    "trl-grpo-checkpointing": _trl("TRL GRPOTrainer, checkpointing", adapter="fresh", checkpointing=True),
    "trl-grpo-warm": _trl("TRL GRPOTrainer", adapter="warm"),
}
ONE_BY_ONE = {"peft-single", "trl-sft-single"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One workload.

    Attributes:
        section, name: its name is `section/name`.
        title: what it is, in words.
        kind: what the workers are asked for.
        workload: the tokens, for `sample` and `train`.
        request: the rest of what the workers are asked.
        unit: of the figure: `tokens/s`, `s` (lower is better), `MiB` or `share`.
        figure: which of the answer's figures that is; None computes tokens/s.
        model: another than the suite's.
        fresh: every repetition in a new process, whose memory tells of it alone.
        short, long: how often each engine repeats it in the two forms; an empty form leaves the row out.
    """

    section: str
    name: str
    title: str
    kind: str
    workload: Workload | None = None
    request: Mapping[str, Any] = field(default_factory=dict)
    unit: str = "tokens/s"
    figure: str | None = None
    model: str | None = None
    fresh: bool = False
    short: Mapping[str, int] = field(default_factory=dict)
    long: Mapping[str, int] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.section}/{self.name}"


RL_STEP = {
    "env": "benchmarks.worlds:AdditionsWithoutTies-v0",
    "env_kwargs": {"high": 20},
    "problems": 4,
    "group": 16,
    "max_tokens": 8,
    "temperature": 1.0,
    "learning_rate": 1e-4,
}
RL_UNTIL = RL_STEP | {
    "env": "loragym/Arithmetic-v0",
    "problems": 16,
    "max_tokens": 6,
    "learning_rate": 3e-4,
    "goal": 0.9,
    "window": 3,
    "limit": 900.0,
    "most_steps": 1000,
}
SAMPLERS = {OURS: 5, "generate": 3, "generate-peft": 3, "vllm-lora": 3, "vllm-merged": 3}
ONCE = {OURS: 3, "generate": 1, "generate-peft": 1, "vllm-lora": 1, "vllm-merged": 1}
LONGEST = {OURS: 3, "generate": 1, "generate-peft": 1, "vllm-merged": 1}
"""vLLM with LoRA would take a third of an hour."""
TRAINERS = {OURS: 5, "peft": 3, "trl-sft": 3, "trl-sft-checkpointing": 1}
SLOW_TRAINERS = {OURS: 5, "peft": 1, "peft-single": 1, "trl-sft": 1, "trl-sft-single": 1, "trl-sft-free": 1}


def _sampling(name: str, title: str, workload: Workload, **forms: Mapping[str, int]) -> Row:
    return Row(section="sampling", name=name, title=title, kind="sample", workload=workload, **forms)


def _training(name: str, title: str, workload: Workload, **forms: Mapping[str, int]) -> Row:
    return Row(section="training", name=name, title=title, kind="train", workload=workload, **forms)


def _rl(groups: int, prompt: int) -> Workload:
    return Workload(groups=groups, members=16, prompt=prompt, shortest=8, longest=64)


def _equal(count: int) -> Workload:
    return Workload(groups=count, prompt=64, shortest=64, longest=64)


def _memory(name: str, title: str, rows: int, length: int, adapters: int = 1, vocabulary: int = 0) -> Row:
    short = name in ("length-512", "length-2048", "adapters-2")
    peers = {} if adapters > 1 else {"peft": 1}
    return Row(
        section="memory",
        name=name,
        title=title,
        kind="memory",
        request={"rows": rows, "length": length, "adapters": adapters},
        model=f"random:smollm2-135m/vocab_size={vocabulary}" if vocabulary else None,
        unit="MiB",
        figure="peak_mib",
        fresh=True,
        short={OURS: 1} | (peers if name == "length-2048" else {}) if short else {},
        long={OURS: 1} | peers,
    )


ROWS: tuple[Row, ...] = (
    _sampling("1", "1 sequence, prompt 64, 64 new", _equal(1), long=SAMPLERS),
    _sampling("8", "8 sequences, prompt 64, 64 new", _equal(8), long=SAMPLERS),
    _sampling(
        "32",
        "32 sequences, prompt 64, 64 new",
        _equal(32),
        short=ONCE | {"vllm-merged": 2},
        long=SAMPLERS,
    ),
    _sampling("128", "128 sequences, prompt 64, 64 new", _equal(128), long=SAMPLERS | {"vllm-lora": 1}),
    _sampling(
        "ragged-32",
        "32 sequences, prompt 64, 8 to 64 new",
        Workload(groups=32, prompt=64, shortest=8, longest=64),
        short={OURS: 3, "generate": 1},
        long=SAMPLERS,
    ),
    _sampling("rl-64", "16 prompts of 64 x 16 samples, 8 to 64 new", _rl(16, 64), long=ONCE | {OURS: 5}),
    _sampling("rl-512", "16 prompts of 512 x 16 samples, 8 to 64 new", _rl(16, 512), long=LONGEST),
    _sampling(
        "rl-512-small",
        "2 prompts of 512 x 16 samples, 8 to 64 new",
        _rl(2, 512),
        short={OURS: 3, "generate": 1},
    ),
    _training(
        "unpadded",
        "8 sequences of 128, all trained",
        Workload(groups=8, shortest=128, longest=128),
        short={OURS: 3, "peft": 2, "trl-sft": 2},
        long=TRAINERS,
    ),
    _training(
        "sft",
        "16 sequences of 32 to 1024, second half trained",
        Workload(groups=16, shortest=32, longest=1024, geometric=True, untrained_share=0.5),
        long=SLOW_TRAINERS,
    ),
    _training(
        "sft-small",
        "4 sequences of 32 to 1024, second half trained",
        Workload(groups=4, shortest=32, longest=1024, geometric=True, untrained_share=0.5),
        short={OURS: 3, "peft": 1, "peft-single": 1, "trl-sft": 1, "trl-sft-single": 1},
    ),
    _training(
        "rl-64",
        "8 groups of 16, prompt 64, replies of 8 to 64",
        _rl(8, 64),
        long=SLOW_TRAINERS,
    ),
    _training(
        "rl-512",
        "2 groups of 16, prompt 512, replies of 8 to 64",
        _rl(2, 512),
        long=SLOW_TRAINERS,
    ),
    _training(
        "rl-512-small",
        "1 group of 16, prompt 512, replies of 8 to 64",
        _rl(1, 512),
        short={OURS: 3, "peft": 1},
    ),
    Row(
        section="rl",
        name="step",
        title="RL step, 4 problems x 16 samples, at most 8 new tokens",
        kind="rl",
        request=RL_STEP,
        unit="s",
        figure="seconds",
        short={"loragym-fresh": 3, "trl-grpo": 1},
        long={"loragym-fresh": 5, "peft-rl": 3, "trl-grpo": 3, "trl-grpo-checkpointing": 1},
    ),
    Row(
        section="rl",
        name="overhead",
        title="the same step's time outside of tensor operators",
        kind="overhead",
        request=RL_STEP,
        unit="share",
        figure="overhead",
        short={"loragym-fresh": 1},
        long={"loragym-fresh": 3},
    ),
    Row(
        section="rl",
        name="until-0.9",
        title="time to a reward of 0.9 on additions of 0 to 20, 16 problems x 16 samples",
        kind="rl-until",
        request=RL_UNTIL,
        unit="s",
        figure="seconds",
        long={"loragym-warm": 1, "trl-grpo-warm": 1},
    ),
    *(
        _memory(*arguments)
        for arguments in (
            ("length-512", "1 sequence of 512", 1, 512),
            ("length-2048", "1 sequence of 2048", 1, 2048),
            ("length-8192", "1 sequence of 8192", 1, 8192),
            ("batch-4", "4 sequences of 512", 4, 512),
            ("batch-16", "16 sequences of 512", 16, 512),
            ("vocabulary-98304", "1 sequence of 2048, twice the vocabulary", 1, 2048, 1, 98304),
            ("vocabulary-196608", "1 sequence of 2048, four times the vocabulary", 1, 2048, 1, 196608),
            ("adapters-2", "1 sequence of 512, 2 adapters", 1, 512, 2),
            ("adapters-8", "1 sequence of 512, 8 adapters", 1, 512, 8),
        )
    ),
)
