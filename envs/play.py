"""A person plays an environment in the terminal: the quickest way to see what a model is asked, and what it earns."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium

from ..messages import Reply, reply
from .checks import checked_reset, checked_step, env_attribute
from .spaces import Texts
from .tool_text import reply_with_call_lines
from .transcript import transcript

BLOCK = '"""'
HOW_TO_REPLY = (
    f"Type a reply and Enter. For several lines, type {BLOCK} on a line of its own before and after them. Ctrl-D ends."
)
HOW_TO_CALL = 'A line such as {{"name": "{name}", "arguments": {{...}}}} calls a tool.'

Read = Callable[[str], str]
Write = Callable[[str], None]


def play(
    env: gymnasium.Env[Any, Any],
    seeds: Iterator[int],
    options: Mapping[str, Any] | None = None,
    *,
    read: Read = input,
    write: Write | None = None,
) -> None:
    """Plays one episode after another until the input ends.

    Args:
        env: an environment that speaks messages, or plain text.
        seeds: of the episodes.
        options: for `reset`.
        read: shows a prompt and gives a line, as `input` does; `EOFError` ends.
        write: shows text; by default on stdout.

    Raises:
        BadEnvironment: the environment breaks the contract.
    """
    write = write or _print
    write(HOW_TO_REPLY)
    try:
        for seed in seeds:
            _episode(env, seed, options, read, write)
            read("\n(Enter plays another, Ctrl-D ends) ")
    except EOFError:
        write("")


def read_reply(read: Read, write: Write, *, calls: bool) -> Reply:
    """What a person types, asked for until it is a reply.

    Args:
        read, write: see `play`.
        calls: whether lines that begin with a brace are tool calls.
    """
    while True:
        line = read("[you] ")
        if not line.strip():
            write(f"(that was empty; an empty reply is {BLOCK} and again {BLOCK})")
            continue
        lines = list(_block(read)) if line.strip() == BLOCK else [line]
        if not calls:
            return reply("\n".join(lines))
        try:
            return reply_with_call_lines(lines)
        except ValueError as error:
            write(f"({error})")


def _block(read: Read) -> Iterator[str]:
    while (line := read("  ... ")).strip() != BLOCK:
        yield line


def _episode(
    env: gymnasium.Env[Any, Any], seed: int, options: Mapping[str, Any] | None, read: Read, write: Write
) -> None:
    flat = isinstance(env.observation_space, Texts)
    given = None if options is None else dict(options)
    observation, begun = env.reset(seed=seed, options=given) if flat else checked_reset(env, seed=seed, options=given)
    spec = env.spec
    write(f"\n--- {'an episode' if spec is None else spec.id}, seed {seed}")
    write(_shown(observation))
    tools = () if flat else env_attribute(env, "tools", ())
    for tool in tools:
        write(f"(tool {tool['name']}: {tool['description']} {sorted(tool['parameters'].get('properties', {}))})")
    if tools:
        write(f"({HOW_TO_CALL.format(name=tools[0]['name'])})")
    total, turns, ended = 0.0, 0, False
    info: dict[str, Any] = {}
    while not ended:
        said = read_reply(read, write, calls=bool(tools))
        step = env.step(said["content"]) if flat else checked_step(env, said)
        observation, reward, terminated, truncated, info = step
        total, turns, ended = total + float(reward), turns + 1, bool(terminated or truncated)
        if observation:
            write(_shown(observation))
        if reward and not ended:
            write(f"(reward {float(reward):g})")
    metrics = ", ".join(f"{name} {value:g}" for name, value in info.get("metrics", {}).items())
    replies = "1 reply" if turns == 1 else f"{turns} replies"
    write(f"--- over after {replies} ({info.get('stop_reason', 'ended')}): reward {total:g}; {metrics}")
    if isinstance(begun.get("reference"), str):
        write(f"--- the reference answer: {_escaped(begun['reference'])}")


def _shown(observation: Any) -> str:
    return _escaped(observation) if isinstance(observation, str) else transcript(observation)


def _escaped(text: str) -> str:
    """Text without what could drive the terminal."""
    return transcript([reply(text)]).removeprefix("[assistant] ")


def _print(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
