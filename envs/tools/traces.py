"""Scripted solutions as training data: conversations with tool calls that earn the full reward.

`python -m loragym.envs.tools.traces loragym/Search-v0 --count 1000 --out warmup.jsonl` writes a line for each, with its
"messages" and "tools", for a supervised warm-up.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium

from ...messages import Message, ToolSpec
from .env import ToolEnv, demonstrate


class Trace(NamedTuple):
    """A conversation that solves a problem, and the tools to render it with."""

    messages: list[Message]
    tools: tuple[ToolSpec, ...]


def traces(env: ToolEnv | str, count: int, *, seed: int = 0, **options: Any) -> Iterator[Trace]:
    """Scripted solutions of `count` problems drawn from `seed`, the same ones always.

    Args:
        env: an environment with tools, or the id of one.
        count: how many.
        seed: of the first episode; the next ones follow from it.
        options: for making the environment, where `env` is an id.

    Raises:
        TypeError: it is no environment with tools.
        NotImplementedError: it has no scripted solutions.
    """
    world = gymnasium.make(env, **options).unwrapped if isinstance(env, str) else env
    if not isinstance(world, ToolEnv):
        raise TypeError(f"expected an environment with tools, got {type(world).__name__}")
    for number in range(count):
        yield Trace(*demonstrate(world, seed=seed if number == 0 else None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", help="the id of an environment with tools, such as loragym/Search-v0")
    parser.add_argument("--env-kwargs", type=json.loads, default={}, metavar="JSON", help="options to make it with")
    parser.add_argument("--count", type=int, default=1000, help="how many conversations (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first problem (default: 0)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a JSONL file")
    arguments = parser.parse_args()
    with arguments.out.open("w", encoding="utf-8") as file:
        for trace in traces(arguments.env, arguments.count, seed=arguments.seed, **arguments.env_kwargs):
            file.write(json.dumps(trace._asdict(), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
