"""Renderers against what else turns conversations into tokens: `python -m benchmarks.renderers`.

Compared are `apply_chat_template` of transformers, with the models' own templates, and the PyPI package `renderers`, on
the same conversations and tokenizers, in one process and one thread, taking turns. Three jobs:

- prompt: a conversation of 8 messages to the tokens of a generation prompt, nothing carried over from call to call;
- reply: sampled tokens back to a message (`apply_chat_template` has no such thing: there it is `decode`, which yields
  text and no message);
- growth: the prompt of turn 8, 32 and 128, given that of the turn before and what was sampled; a turn is a tool call
  with its result, or a question with its answer in formats without tools. Where a renderer cannot bridge, its whole
  prompt is rendered anew; `apply_chat_template` always does that.

Figures are the median of many calls, in microseconds. Tokenizers and templates come from the packages of the tests.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parent.parent
# The package `renderers` would be this repository's room of that name if one stands in the repository's root.
sys.path[:] = [str(ROOT / "tests"), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]

from loragym.messages import Message, assistant, system, user  # noqa: E402
from loragym.renderers import Renderer, get_renderer, to_openai  # noqa: E402
from renderers_families import BY_NAME, conversation_for, tokenizer_of  # noqa: E402
from renderers_models import template_tokens  # noqa: E402

PEERS = {
    "qwen3": ("Qwen3RendererConfig", {}),
    "qwen3_instruct": ("Qwen3RendererConfig", {"enable_thinking": False}),
    "qwen3.5": ("Qwen35RendererConfig", {}),
    "qwen3.6": ("Qwen36RendererConfig", {}),
    "llama3.1": ("Llama3RendererConfig", {}),
    "deepseek_v3": ("DeepSeekV3RendererConfig", {}),
    "deepseek_r1": ("DeepSeekR1RendererConfig", {}),
    "glm4.5": ("GLM45RendererConfig", {}),
    "gpt_oss_medium": ("GptOssRendererConfig", {}),
}
"""The package's renderer for each of ours, where it has one."""

FAMILIES = (
    "qwen2.5 as qwen2_5",
    "qwen3 as qwen3",
    "qwen3_instruct as qwen3_instruct_2507",
    "qwen3.5 as qwen3_5_think",
    "qwen3.6 as qwen3_6",
    "llama3 as llama3",
    "llama3.1 as llama3_1",
    "llama4 as llama4",
    "deepseek_v3 as deepseekv3",
    "deepseek_r1 as deepseekv3",
    "glm4.5 as glm4moe",
    "gemma3 as gemma3",
    "gpt_oss_medium as gptoss",
)
PARAGRAPH = (
    "The river bends twice before it reaches the mill, and the path follows it as closely as the ground allows. "
    "Count the steps: 128 down to the ford, 64 along the weir, and 12.5 metres of wall — then the café.\n\n"
)
TURNS = (8, 32, 128)


def conversation(turns: int, *, tools: bool = False) -> list[Message]:
    """`turns` questions with their answers, but for the last; with tools, a question and `turns` calls with results."""
    messages = [system("You answer in full sentences.")]
    if tools:
        messages.append(user(f"Question: {PARAGRAPH}"))
        for turn in range(turns):
            messages += [
                called(turn),
                {"role": "tool", "content": PARAGRAPH, "name": "look", "tool_call_id": _id(turn)},
            ]
        return messages
    for turn in range(turns):
        messages.append(user(f"Question {turn}: {PARAGRAPH}What comes next?"))
        messages.append(assistant(f"Answer {turn}. {PARAGRAPH * 2}"))
    return messages[:-1]


def _id(turn: int) -> str:
    return f"functions.look:{turn}"


def called(turn: int) -> Message:
    """A tool call."""
    arguments = {"at": PARAGRAPH, "number": turn}
    return {**assistant(""), "tool_calls": [{"id": _id(turn), "name": "look", "arguments": arguments}]}


def timed(jobs: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The median of each job's calls in microseconds; they take turns, so that all meet the same machine."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    gc.disable()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - start)
    gc.enable()
    return {name: statistics.median(found) * 1e6 for name, found in times.items()}


def peer_of(name: str, tokenizer: Any) -> Any:
    """The package's renderer; None where it has none for the family, or is not installed."""
    try:
        import renderers
        from renderers import configs
    except ImportError:
        return None
    if name not in PEERS:
        return None
    config, options = PEERS[name]
    try:
        return renderers.create_renderer(tokenizer, getattr(configs, config)(**options))
    except Exception as error:
        # Some of its renderers fetch a vocabulary when they are made.
        print(f"left out: renderers for {name}: {str(error).splitlines()[0]}", file=sys.stderr)
        return None


def sampled_after(renderer: Renderer, messages: Sequence[Message], reply: Message) -> list[int]:
    example = renderer.build_supervised_example([*messages, reply])
    return [token for token, weight in zip(*example, strict=True) if weight]


def measure(which: str, seconds: float) -> list[tuple[str, dict[str, float]]]:
    """A family's jobs, each with the figures of those that can do it."""
    family, tokenizer = BY_NAME[which], tokenizer_of(which)
    ours = get_renderer(tokenizer, family.renderer)
    peer = peer_of(family.renderer, tokenizer)
    rows = []

    messages = conversation(4)
    given = conversation_for(family, messages)

    def template(messages: list[dict[str, Any]]) -> list[int]:
        return template_tokens(tokenizer, messages, (), prompt=True, options=family.options)

    jobs: dict[str, Callable[[], object]] = {
        "ours": lambda: ours.build_generation_prompt(messages),
        "template": lambda: template(given),
    }
    if peer is not None:
        jobs["peer"] = lambda: peer.render_ids(to_openai(messages), add_generation_prompt=True)
    rows.append(("prompt", timed(jobs, seconds)))

    sampled = sampled_after(ours, messages, assistant(f"Answer. {PARAGRAPH * 2}"))
    jobs = {"ours": lambda: ours.parse_response(sampled), "template": lambda: tokenizer.decode(sampled)}
    if peer is not None:
        jobs["peer"] = lambda: peer.parse_response(sampled)
    rows.append(("reply", timed(jobs, seconds)))

    for turns in TURNS:
        grown = conversation(turns, tools=family.tools)
        rows.append((f"growth {turns}", growth(ours, peer, template, family, grown, seconds)))
    return rows


def growth(
    ours: Renderer, peer: Any, template: Callable[..., object], family: Any, messages: list[Message], seconds: float
) -> dict[str, float]:
    past, new = messages[:-2], messages[-1:]
    prompt = ours.build_generation_prompt(past)
    sampled = sampled_after(ours, past, messages[-2])
    given, asked = conversation_for(family, messages), to_openai(messages)
    jobs: dict[str, Callable[[], object]] = {
        "ours": lambda: ours.bridge_to_next_turn(prompt, sampled, new) or ours.build_generation_prompt(messages),
        "template": lambda: template(given),
    }
    if peer is not None:
        following = asked[-1:]
        jobs["peer"] = lambda: (
            peer.bridge_to_next_turn(prompt, sampled, following) or peer.render_ids(asked, add_generation_prompt=True)
        )
    return timed(jobs, seconds)


def report(which: str, rows: Sequence[tuple[str, dict[str, float]]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = []
    for job, figures in rows:
        cells = [f"{figures[name]:,.0f}" if name in figures else "" for name in ("ours", "template", "peer")]
        cells += [f"{figures[name] / figures['ours']:.1f}" if name in figures else "" for name in ("template", "peer")]
        lines.append(f"| {which.split()[0]} | {job} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each figure's turn (default: 1)")
    parser.add_argument("--family", choices=FAMILIES, help="one family (default: all)")
    options = parser.parse_args()
    rivals = "apply_chat_template | renderers 0.1.12"
    print(f"| family | job | ours | {rivals} | template / ours | renderers / ours |")
    print("|---|---|---|---|---|---|---|")
    for which in [options.family] if options.family else FAMILIES:
        print("\n".join(report(which, measure(which, options.seconds))), flush=True)


if __name__ == "__main__":
    main()
