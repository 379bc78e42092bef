"""What checkpoints and resuming cost: bytes on the disk, and seconds to save, to check and to take one back.

python -m benchmarks.checkpoints
python -m benchmarks.checkpoints --model a/folder --lora-rank 8 --repetitions 9
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from loragym.agents import AdamParams, Datum
from loragym.trainers.checkpoints import CheckpointStore, Retention
from loragym.trainers.config import RunConfig

MIB = 2**20


def seconds(call: Callable[[int], object], repetitions: int) -> list[float]:
    found = []
    for number in range(repetitions):
        began = time.perf_counter()
        call(number)
        found.append(time.perf_counter() - began)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=RunConfig.model)
    parser.add_argument("--lora-rank", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()

    config = RunConfig(run_dir="unused", model=options.model, lora_rank=options.lora_rank)
    (loading,) = seconds(lambda _: config.load_base(), 1)
    policy = config.load_policy()
    tokens = list(range(32))
    policy.forward_backward([Datum.supervised(tokens, [1.0] * len(tokens))])
    policy.optim_step(AdamParams(learning_rate=1e-4))

    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder), Retention(keep=2))
        saving = seconds(lambda number: store.save(number, policy.save_state, {}), options.repetitions)
        checking = seconds(lambda _: store.latest(), options.repetitions)
        newest = store.path(options.repetitions - 1)
        taking = seconds(lambda _: policy.load_state(newest), options.repetitions)
        sizes = Counter({path.name: path.stat().st_size for path in newest.iterdir()})

    print(f"{platform.processor() or platform.machine()}, {platform.platform()}")
    size = sum(tensor.numel() for tensor in policy.parameters)
    print(f"{options.model}, rank {options.lora_rank}, {size:,} numbers in the adapter\n")
    print("| file of a checkpoint | MiB |\n|---|---|")
    for name, size in sizes.most_common():
        print(f"| {name} | {size / MIB:.3f} |")
    print(f"| all | {sizes.total() / MIB:.3f} |\n\n| what | seconds, median | range |\n|---|---|---|")
    for what, found in (("saving, synced", saving), ("checking against the manifest", checking), ("loading", taking)):
        print(f"| {what} | {statistics.median(found):.2f} | {min(found):.2f}-{max(found):.2f} |")
    print(f"| the base model, once a start | {loading:.2f} | |")


if __name__ == "__main__":
    main()
