"""The suite on one GPU: random weights in the shapes of Qwen3, against the bound and against transformers + PEFT.

    python -m benchmarks.gpu                                  all models; results as JSON, one file a model
    python -m benchmarks.gpu --models qwen3-0.6b --output DIR
    python -m benchmarks.gpu --tiny                           a trial on the CPU, of tiny sizes

It needs nothing beyond loragym itself: no download, no TRL, no vLLM. Published marks are printed beside the row
`training/16k`: prime-rl's trainer on one H100, LoRA of rank 16, 16,384 tokens a sequence, two sequences a step.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from .cases import Workload
from .report import RESULTS, line_of, write
from .run import Setting, measure
from .suite import OURS, RL_STEP, Row

MODELS = ("qwen3-0.6b", "qwen3-1.7b", "qwen3-4b")
PEERS = {OURS: 5, "generate": 3, "generate-peft": 3}
TRAINERS = {OURS: 5, "peft": 3}
UNEVEN_TRAINERS = {OURS: 5, "peft-single": 1}
MARK_RANK = 16


@dataclass(frozen=True, slots=True)
class Mark:
    """prime-rl's published figures on one H100."""

    tokens_per_second: float
    peak_gib: float


MARKS = {"qwen3-0.6b": Mark(13_342, 5.15), "qwen3-4b": Mark(6_229, 23.3)}


def rows(scale: int = 1) -> list[tuple[Row, Mapping[str, int]]]:
    """The rows with their engines; lengths are divided by `scale`."""

    def sampling(
        name: str, title: str, workload: Workload, engines: Mapping[str, int]
    ) -> tuple[Row, Mapping[str, int]]:
        return Row(section="sampling", name=name, title=title, kind="sample", workload=workload), engines

    def training(
        name: str, title: str, workload: Workload, engines: Mapping[str, int]
    ) -> tuple[Row, Mapping[str, int]]:
        return Row(section="training", name=name, title=title, kind="train", workload=workload), engines

    def equal(count: int) -> Workload:
        return Workload(groups=count, prompt=256 // scale, shortest=256 // scale, longest=256 // scale)

    group = Workload(groups=16, members=16, prompt=512 // scale, shortest=32 // scale, longest=512 // scale)
    chats = Workload(groups=32, shortest=128 // scale, longest=4096 // scale, geometric=True, untrained_share=0.5)
    flat = Workload(groups=16, shortest=1024 // scale, longest=1024 // scale)
    return [
        *(sampling(str(n), f"{n} sequences, prompt 256, 256 new", equal(n), PEERS) for n in (1, 32, 256)),
        sampling("rl-512", "16 prompts of 512 x 16 samples, 32 to 512 new", group, PEERS),
        training("unpadded", "16 sequences of 1024, all trained", flat, TRAINERS),
        training("sft", "32 sequences of 128 to 4096, second half trained", chats, UNEVEN_TRAINERS),
        training("rl-512", "16 groups of 16, prompt 512, replies of 32 to 512", group, {OURS: 5}),
        training(
            "rl-512-small", "2 groups of 16, prompt 512, replies of 32 to 512", replace(group, groups=2), TRAINERS
        ),
        (
            Row(
                section="rl",
                name="step",
                title="RL step, 16 problems x 16 samples, at most 64 new tokens",
                kind="rl",
                request=RL_STEP | {"problems": 16, "max_tokens": 64 // min(scale, 8)},
                unit="s",
                figure="seconds",
            ),
            {"loragym-fresh": 5, "peft-rl": 3},
        ),
    ]


def mark_rows(scale: int = 1) -> list[tuple[Row, Mapping[str, int]]]:
    """The work of the published marks: all tokens of two long sequences trained, with the update."""
    workload = Workload(groups=2, shortest=16_384 // scale, longest=16_384 // scale)
    row = Row(
        section="training",
        name="16k",
        title="2 sequences of 16,384, all trained, with the update, rank 16",
        kind="train",
        workload=workload,
        request={"update": True},
    )
    return [(row, {OURS: 5, "peft-single": 3})]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=8, help="CPU threads of each engine")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows or sections")
    parser.add_argument("--repetitions", type=int, help="of every engine")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU: does it run at all?")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON files")
    arguments = parser.parse_args()
    models, device, scale = arguments.models, arguments.device, 1
    if arguments.tiny:
        models, device, scale = ["tiny"], "cpu", 32
    for model in models:
        for form, rank, chosen in (("gpu", 32, rows(scale)), ("gpu-16k", MARK_RANK, mark_rows(scale))):
            plan = [
                (row, {name: arguments.repetitions or count for name, count in engines.items()})
                for row, engines in chosen
                if not arguments.only or {row.key, row.section} & set(arguments.only)
            ]
            if not plan:
                continue
            setting = Setting(
                model=f"random:{model}", dtype=arguments.dtype, device=device, threads=arguments.threads, rank=rank
            )
            print(f"{model}, {arguments.dtype} on {device}, rank {rank}")
            result = measure(setting, plan, form=form, tell=lambda record: print(line_of(record), flush=True))
            if form == "gpu-16k" and model in MARKS:
                ours = next(r for r in result["records"] if r["engine"] == OURS)
                mark = MARKS[model]
                print(
                    f"prime-rl on one H100: {mark.tokens_per_second:,.0f} tokens/s and {mark.peak_gib} GiB; "
                    f"here {ours['median']:,.0f} tokens/s and {ours['peak_mib'] / 1024:.2f} GiB"
                )
            write(result, arguments.output / f"{result['date'][:10]}-{form}-{model}.json")


if __name__ == "__main__":
    main()
