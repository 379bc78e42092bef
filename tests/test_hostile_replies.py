"""Whatever a model says, every environment, every renderer and every tool goes on or says what was wrong.

Replies are put together from what worlds and chat formats look for: tags of tool calls, pieces of JSON, special tokens,
boxes, moves, and all categories of Unicode. The tests of the laws of environments and renderers have other kinds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from env_rows import ROWS
from hostile import HOSTILE_NAMES, cases, deep, json_values, try_many, writes_only_in
from hypothesis import strategies as st
from loragym.envs import CATALOGUE, checked_reset, checked_step
from loragym.envs.making import make_env
from loragym.envs.tools.tool import BadArguments, Tool
from loragym.messages import STOP_REASONS
from renderers_all import MODELS, renderer_of, text_of

PIECES = (
    "<tool_call>",
    "</tool_call>",
    "<|tool_call|>",
    "<tool_calls>",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    "<function=add>",
    "</function>",
    "<parameter=a>",
    "</parameter>",
    "<think>",
    "</think>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "</s>",
    "<eos>",
    "<bos>",
    "<|start|>assistant<|channel|>analysis<|message|>",
    "<|call|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|user|>",
    "```json\n",
    "```",
    '{"name": "',
    '"arguments": {',
    '"}',
    "}}",
    "{",
    "}",
    "[",
    "]",
    '"',
    "\\",
    ":",
    ",",
    "null",
    "true",
    "NaN",
    "1e999",
    "-0",
    "9" * 60,
    "\\boxed{",
    "\\boxed{}",
    "\\frac{1}{0}",
    "$$",
    "\\left(",
    "^",
    "_",
    "!",
    "**" * 20,
    "2**2**2**2",
    "sqrt(",
    "(",
    ")",
    "Answer:",
    "####",
    "[1]",
    "[[A]]",
    "bet",
    "check",
    "fold",
    "propose",
    "accept",
    "a1",
    "0",
    "3",
    "-1",
    "1.5",
    "½",
    "٣",
    "一",
    "add",
    "search",
    "python",
    "submit",
    "\u2028",
    "\ufeff",
    "\u202e",
    "\0",
    "\x1b[2J",
    "e\u0301\u0300" * 20,
    "👩‍👩‍👧",
    "\ud800",
    "\U0010ffff",
    "\n\nUser: ",
    "\r\n",
    "\t",
    "Human:",
    "Assistant:",
    deep(2000),
    deep(300, '{"a":', "}"),
    deep(500, "(", ")"),
    "\\frac{" * 300,
    "--",
    "+-*/",
    "=",
    "%",
    "a" * 5000,
    *HOSTILE_NAMES,
)

NAMES = (
    "add",
    "calculate",
    "search",
    "python",
    "submit",
    "answer",
    "",
    "__class__",
    "add ",
    "get_balance",
    "open",
    "transfer",
)

texts = st.lists(st.sampled_from(PIECES) | st.text(st.characters(), max_size=6), max_size=12).map("".join)
written_calls = st.builds(
    lambda name, arguments, before, after: (
        f"{before}<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>{after}"
    ),
    st.sampled_from(NAMES),
    json_values,
    st.sampled_from(["", "Hm. "]),
    st.sampled_from(["", "<tool_call>", "."]),
)
calls = st.lists(
    st.fixed_dictionaries(
        {
            "id": texts,
            "name": st.sampled_from(NAMES),
            "arguments": st.dictionaries(st.sampled_from(NAMES) | texts, json_values, max_size=3),
        }
    )
    | json_values,
    max_size=3,
)
replies = st.fixed_dictionaries(
    {
        "role": st.just("assistant"),
        "content": texts | texts | written_calls,
        "stop_reason": st.sampled_from(STOP_REASONS),
    },
    optional={"tool_calls": calls | json_values, "thinking": texts | json_values, "problem": texts, "name": texts},
)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, gymnasium.Env[Any, Any]]]:
    """All registered environments that can be made here."""
    folder = tmp_path_factory.mktemp("data")
    made = {
        env_id: make_env(env_id, ROWS[env_id].kwargs(folder / env_id.replace("/", "-")))
        for env_id in sorted(CATALOGUE)
        if not ROWS[env_id].missing
    }
    yield made
    for env in made.values():
        env.close()


@cases(fast=80)
def test_any_replies_play_any_environment_to_its_end(
    cases: int, worlds: dict[str, gymnasium.Env[Any, Any]], tmp_path: Path
) -> None:
    def law(env_id: str, seed: int, said: list[Any]) -> None:
        env = worlds[env_id]
        checked_reset(env, seed=seed)
        with writes_only_in(tmp_path):
            for reply in said:
                messages, reward, terminated, truncated, info = checked_step(env, reply)
                assert math.isfinite(reward)
                json.dumps([messages, info.get("metrics", {})])
                if terminated or truncated:
                    break

    try_many(
        cases,
        law,
        env_id=st.sampled_from(sorted(worlds)),
        seed=st.integers(0, 50),
        said=st.lists(replies | texts, min_size=1, max_size=4),
    )


@cases(fast=80)
def test_any_text_parses_in_any_format(cases: int) -> None:
    def law(name: str, said: str, offered: bool) -> None:
        renderer, text = renderer_of(name), text_of(name)
        tokens = [token for piece in said.split("\x00") for token in encoded(text, piece)]
        tools = [SPEC] if offered else []
        parsed = renderer.parse_response(tokens, tools)
        assert parsed["role"] == "assistant" and parsed["stop_reason"] in STOP_REASONS
        assert (parsed["stop_reason"] == "malformed") <= bool(parsed.get("problem"))
        for call in parsed.get("tool_calls", []):
            assert isinstance(call["name"], str) and isinstance(call["arguments"], dict)
            json.dumps(call)

    try_many(cases, law, name=st.sampled_from(sorted(MODELS)), said=texts | written_calls, offered=st.booleans())


def encoded(text: Any, piece: str) -> list[int]:
    """Tokens of a text in which the names of special tokens are these tokens, as in what a model samples."""
    specials = text.special_tokens
    tokens: list[int] = []
    rest = piece.encode("utf-8", "replace").decode()
    while rest:
        starts = [(rest.find(name), name) for name in specials if name in rest]
        at, name = min(starts, default=(len(rest), ""), key=lambda found: (found[0], -len(found[1])))
        tokens += text.encode_text(rest[:at]) if at else []
        if not name:
            break
        tokens.append(specials[name])
        rest = rest[at + len(name) :]
    return tokens


SPEC: Any = {
    "name": "add",
    "description": "Adds.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
        "required": ["a"],
    },
}


def plain(a: int, b: str = "x") -> str:
    """Takes two things.

    Args:
        a: a number.
        b: a text.
    """
    return f"{a}{b}"


def nested(items: list[dict[str, int]], either: int | str | None, share: float, flag: bool = False) -> str:
    """Takes things within things.

    Args:
        items: what there is.
        either: one or the other.
        share: a part.
        flag: yes or no.
    """
    return json.dumps([items, either, share, flag])


TOOLS = [Tool.of(plain), Tool.of(nested)]
WORDS = ("a", "b", "items", "either", "share", "flag", "self", "__class__", "")


@cases(fast=120)
def test_any_arguments_are_bound_or_refused_in_words(cases: int) -> None:
    def law(tool: int, arguments: Any) -> None:
        try:
            bound = TOOLS[tool].read(arguments)
        except BadArguments as error:
            assert len(str(error)) > 10
            return
        assert isinstance(TOOLS[tool].function(**bound), str)

    fitting = st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            WORDS, json_values | st.integers() | st.lists(st.dictionaries(st.text(max_size=3), st.integers()))
        ),
    )
    try_many(cases, law, tool=st.integers(0, len(TOOLS) - 1), arguments=fitting)


@pytest.mark.parametrize("odd", [{"tool_calls": True}, {"tool_calls": {"a": 1}}, {"thinking": 3}, {"thinking": None}])
def test_a_length_budget_counts_whatever_was_said(
    odd: dict[str, Any], worlds: dict[str, gymnasium.Env[Any, Any]]
) -> None:
    env = worlds["loragym/Wrapped-v0"]
    for content in ("", "x" * 600):
        checked_reset(env, seed=0)
        said: Any = {"role": "assistant", "content": content, "stop_reason": "stop", **odd}
        assert math.isfinite(checked_step(env, said)[1])
