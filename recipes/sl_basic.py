"""Supervised learning on the trainer: conversations from a file, or an environment's problems with their answers.

It runs as:

    python -m loragym.recipes.sl_basic
    python -m loragym.recipes.sl_basic --data my_chats.jsonl --epochs 3 --run-dir runs/chats
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from loragym.trainers import SupervisedConfig, supervised
from loragym.trainers.command_line import config_from
from loragym.trainers.display import what_next

DEFAULTS = SupervisedConfig(run_dir="runs/sl_basic", env_kwargs={"high": 99})


def main(argv: Sequence[str] | None = None) -> None:
    config = config_from(DEFAULTS, prog="loragym train sl_basic", description=__doc__, argv=argv)
    if config.env != DEFAULTS.env and config.env_kwargs == DEFAULTS.env_kwargs:
        config = replace(config, env_kwargs={})  # those of another environment are its own
    summary = supervised.train(config)
    if summary["after"]:
        before, after = summary["before"]["test/nll"], summary["after"]["test/nll"]
        print(f"\nHeld-out nll: {before:.4f} before, {after:.4f} at the end")
    print(
        f"{summary['conversations']} conversations ({summary['cut_conversations']} cut to max-length, "
        f"{summary['dropped_conversations']} left out), "
        f"{summary['minutes']:.1f} minutes, {summary['trained_tokens_per_second']:.0f} tokens/s trained, "
        f"{summary['peak_memory_mib']:.0f} MiB at most\n\n"
        f"{what_next(config.run_dir)}"
    )


if __name__ == "__main__":
    main()
