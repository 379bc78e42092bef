"""Every renderer there is, on small tokenizers, with conversations that its format can write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from hypothesis import strategies as st
from loragym.messages import Message, ToolSpec, assistant
from loragym.renderers import Renderer, TextTokenizer, get_renderer, renderer_names
from renderers_families import GEMMA_TOKENS, GLM_TOKENS, HARMONY_TOKENS, KIMI_TOKENS, LLAMA4_TOKENS
from renderers_models import LLAMA3_TOKENS, QWEN3_TOKENS, small

DEEPSEEK_TOKENS = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<think>",
    "</think>",
)
DEEPSEEK_TOKENS += tuple(f"<｜tool▁{what}｜>" for what in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep"))
DEEPSEEK_TOKENS += tuple(f"<｜tool▁output{what}｜>" for what in ("s▁begin", "s▁end", "▁begin", "▁end"))


MISTRAL_TOKENS = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")
MISTRAL_TOKENS += ("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
MISTRAL_TOKENS += ("[TOOL_CONTENT]",)


def _strip(text: str) -> str:
    return text.strip()


def _same(text: str) -> str:
    return text


@dataclass(frozen=True)
class Model:
    """What the laws need to know of a renderer: its tokens, what it can write, how it changes text on purpose."""

    special: tuple[str, ...]
    tools: bool = True
    several: bool = True
    declares: bool = True
    text_and_calls: bool = True
    thinking: bool = False
    thinking_after_results: bool = True
    content: Callable[[str], str] = _same
    thought: Callable[[str], str] = _same


_QWEN = tuple(QWEN3_TOKENS)
_THINKER = Model(_QWEN, thinking=True, content=lambda text: text.lstrip("\n"), thought=lambda text: text.strip("\n"))
_TRIMMER = Model(_QWEN, content=_strip, thought=_strip)
_DEEPSEEK = Model(DEEPSEEK_TOKENS, declares=False)
MODELS = {
    "chatml": Model(_QWEN, tools=False),
    "smollm2": Model(_QWEN, tools=False),
    "qwen2": Model(_QWEN, tools=False),
    "qwen2.5": Model(_QWEN),
    "qwen3": _THINKER,
    "qwen3_no_thinking": replace(_THINKER, thinking=False),
    "qwen3_instruct": Model(_QWEN),
    "qwen3.5": replace(_TRIMMER, thinking=True),
    "qwen3.5_no_thinking": _TRIMMER,
    "qwen3.6": replace(_TRIMMER, thinking=True),
    "qwen3.6_no_thinking": _TRIMMER,
    "llama3": Model(tuple(LLAMA3_TOKENS), tools=False, content=_strip),
    "llama3.1": Model(tuple(LLAMA3_TOKENS), several=False, text_and_calls=False, content=_strip),
    "llama4": Model(LLAMA4_TOKENS),
    "deepseek_v3": _DEEPSEEK,
    "deepseek_r1": replace(
        _DEEPSEEK,
        thinking=True,
        thinking_after_results=False,
        content=lambda text: text.lstrip("\n"),
        thought=lambda text: text.strip("\n"),
    ),
    "deepseek_v3.1": replace(_DEEPSEEK, declares=True),
    "deepseek_v3.1_thinking": replace(_DEEPSEEK, declares=True, thinking=True, thinking_after_results=False),
    "glm4.5": Model(GLM_TOKENS, thinking=True, content=_strip, thought=_strip),
    "glm4.5_no_thinking": Model(GLM_TOKENS, content=_strip),
    "gemma3": Model(GEMMA_TOKENS, tools=False, content=_strip),
    "kimi_k2": Model(KIMI_TOKENS),
    "mistral_v7": Model(MISTRAL_TOKENS, content=lambda text: text.rstrip(" ")),
    "mistral_v7_no_tools": Model(MISTRAL_TOKENS, tools=False, content=lambda text: text.rstrip(" ")),
    "gpt_oss_low": Model(HARMONY_TOKENS, several=False, thinking=True),
    "gpt_oss_medium": Model(HARMONY_TOKENS, several=False, thinking=True),
    "gpt_oss_high": Model(HARMONY_TOKENS, several=False, thinking=True),
}
assert set(MODELS) == set(renderer_names()) - {"role_colon"}, "a renderer without its laws"


@cache
def text_of(name: str) -> TextTokenizer:
    return TextTokenizer(small(MODELS[name].special))


@cache
def renderer_of(name: str, **options: Any) -> Renderer:
    return get_renderer(text_of(name), name, **options)


SPELLED = sorted({token for model in MODELS.values() for token in model.special if "fim" not in token})
HOSTILE = [
    *SPELLED,
    *(
        "user",
        "assistant\n",
        "\n",
        "\n\n",
        " ",
        "a",
        "7",
        "é",
        "e\u0301",
        "\0",
        "\ufffd",
        "</tool_response>",
        "functions.add",
    ),
    *(
        '{"name": "add", "parameters": {"a": 1}}',
        '{"name": "add", "arguments": {}}',
        "analysis",
        "</parameter>",
        "```json",
    ),
]
contents = st.one_of(st.text(max_size=20), st.lists(st.sampled_from(HOSTILE), max_size=8).map("".join))
names = st.sampled_from(["add", "now", "search_web-2.0"])
words = st.text(alphabet="abc é,.\n\"'\\", max_size=12)
arguments = st.fixed_dictionaries(
    {},
    optional={
        "text": words,
        "n": st.integers(-(10**6), 10**6),
        "share": st.floats(-100, 100).map(lambda number: round(number, 3)),
        "flag": st.booleans(),
        "none": st.none(),
        "items": st.lists(st.one_of(words, st.integers(0, 9)), max_size=3),
        "deep": st.fixed_dictionaries({"key": words}),
    },
)
_TEXT = {"type": "object", "properties": {"text": {"type": "string"}, "n": {"type": "integer"}}}
TOOLS: list[ToolSpec] = [
    {"name": name, "description": "does it", "parameters": _TEXT} for name in ("add", "now", "search_web-2.0")
]


@st.composite
def replies(draw: st.DrawFn, model: Model, *, calls: bool | None = None, first: bool = True, start: int = 0) -> Message:
    """An assistant's message, as it comes back: text is changed already as the format changes it."""
    made: Message = assistant(model.content(draw(contents)))
    if draw(st.booleans()) if calls is None else calls:
        wanted = draw(st.lists(st.tuples(names, arguments), min_size=1, max_size=3 if model.several else 1))
        numbered = enumerate(wanted, start)
        made["tool_calls"] = [
            {"id": f"functions.{name}:{number}", "name": name, "arguments": given} for number, (name, given) in numbered
        ]
        if not model.text_and_calls:
            made["content"] = ""
    thinking = model.thought(draw(contents)) if model.thinking and (first or model.thinking_after_results) else ""
    if thinking and draw(st.booleans()):
        made["thinking"] = thinking
    return made


@st.composite
def conversations(draw: st.DrawFn, model: Model) -> list[Message]:
    """Messages in a legal order, ending where the assistant is to speak."""
    messages: list[Message] = [{"role": "system", "content": draw(contents)}] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(1, 3))):
        if turn:
            messages.append(draw(replies(model, calls=False)))
        messages.append({"role": "user", "content": draw(contents)})
        for number in range(draw(st.integers(0, 2)) if model.tools else 0):
            called = draw(replies(model, calls=True, first=number == 0, start=10 * turn + 3 * number))
            messages += [called, *draw(results(called))]
            if turn == 0 and draw(st.booleans()):
                break
        if messages[-1]["role"] == "tool":
            messages.append(draw(replies(model, calls=False, first=False)))
            messages.append({"role": "user", "content": draw(contents)})
    if model.tools and draw(st.booleans()):
        called = draw(replies(model, calls=True, start=90))
        messages += [called, *draw(results(called))]
    return messages


@st.composite
def results(draw: st.DrawFn, called: Message) -> list[Message]:
    return [
        {"role": "tool", "content": draw(contents), "name": call["name"], "tool_call_id": call["id"]}
        for call in called["tool_calls"]
    ]


def offered(model: Model) -> st.SearchStrategy[list[ToolSpec]]:
    return st.sampled_from([[], TOOLS]) if model.tools and model.declares else st.just([])


def without_ids(message: Any) -> Any:
    """A message as it should come back: formats have ids for calls or not, and no empty thinking."""
    kept = {key: value for key, value in message.items() if key != "thinking" or value}
    if "tool_calls" in kept:
        kept["tool_calls"] = [(call["name"], call["arguments"]) for call in kept["tool_calls"]]
    return kept
