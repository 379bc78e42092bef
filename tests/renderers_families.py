"""The families of renderers as the tests know them: tokenizer, chat template, and the conversations both can write."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from loragym.messages import Message, ToolSpec, assistant, system, user
from loragym.renderers import Renderer, TextTokenizer, get_renderer
from renderers_models import backend, chat_template, folder, hugging_face, small
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Family:
    """A renderer and what it is compared with.

    Attributes:
        renderer: its name.
        tokenizer: a name for `backend`, or the special tokens of a small tokenizer.
        template: whose template, and what `apply_chat_template` is told.
        tail: what the template's generation prompt has beyond ours.
        example_tail: what our examples have beyond the template's.
        opens_thinking: the prompt opens the thinking, so parity is about replies that have some.
        keeps_last_thinking: we write the last reply's thinking, and the template does not.
        string_arguments: the template takes the arguments of calls as JSON text.
        recognised: `get_renderer` finds the renderer by the tokenizer.
        thinking, tools, declares, several_calls, text_and_calls, rounds, system_later: what the format has.
    """

    renderer: str
    tokenizer: str | tuple[str, ...]
    template: str
    end: str
    bos: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    tail: str = ""
    example_tail: str = ""
    thinking: bool = False
    tools: bool = True
    declares: bool = True
    several_calls: bool = True
    text_and_calls: bool = True
    rounds: bool = True
    system_later: bool = True
    string_arguments: bool = False
    opens_thinking: bool = False
    keeps_last_thinking: bool = False
    recognised: bool = True


GLM_TOKENS = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>"),
    *("<|observation|>", "/nothink", "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>"),
    *("</tool_response>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
)
HARMONY_TOKENS = ("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>")
HARMONY_TOKENS += ("<|end|>", "<|message|>", "<|call|>")
GEMMA_TOKENS = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
LLAMA4_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>")
LLAMA4_TOKENS += ("<|python_start|>", "<|python_end|>")
KIMI_TOKENS = ("[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>")
KIMI_TOKENS += ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>")
KIMI_TOKENS += ("<|tool_call_argument_begin|>", "<|tool_call_end|>")
R1 = "<｜begin▁of▁sentence｜>"

_OFF = {"enable_thinking": False}
FAMILIES = [
    Family("qwen2.5", "qwen2", "qwen2_5", "<|im_end|>"),
    Family("qwen3", "qwen3", "qwen3", "<|im_end|>", thinking=True),
    Family("qwen3_no_thinking", "qwen3", "qwen3", "<|im_end|>", options=_OFF, recognised=False),
    Family("qwen3_instruct", "qwen3", "qwen3_instruct_2507", "<|im_end|>"),
    Family("qwen3.5", "qwen3.5", "qwen3_5_think", "<|im_end|>", thinking=True, system_later=False, opens_thinking=True),
    Family("qwen3.5_no_thinking", "qwen3.5", "qwen3_5_nothink", "<|im_end|>", system_later=False, recognised=False),
    Family("qwen3.6", "qwen3.5", "qwen3_6", "<|im_end|>", thinking=True, system_later=False, opens_thinking=True),
    Family(
        "qwen3.6_no_thinking", "qwen3.5", "qwen3_6", "<|im_end|>", options=_OFF, system_later=False, recognised=False
    ),
    Family("llama3", "llama3", "llama3", "<|eot_id|>", "<|begin_of_text|>", tools=False),
    Family(
        "llama3.1", "llama3", "llama3_1", "<|eot_id|>", "<|begin_of_text|>", several_calls=False, text_and_calls=False
    ),
    Family(
        *("llama3.1", "llama3", "llama3_2", "<|eot_id|>", "<|begin_of_text|>", {"date_string": "26 Jul 2024"}),
        several_calls=False,
        text_and_calls=False,
    ),
    Family("llama4", LLAMA4_TOKENS, "llama4", "<|eot|>", "<|begin_of_text|>"),
    Family(
        *("deepseek_r1", "deepseek", "deepseekv3", "<｜end▁of▁sentence｜>", R1),
        declares=False,
        rounds=False,
        system_later=False,
        string_arguments=True,
        keeps_last_thinking=True,
    ),
    Family(
        *("deepseek_v3", "deepseek", "deepseekv3", "<｜end▁of▁sentence｜>", R1),
        tail="<think>\n",
        declares=False,
        rounds=False,
        system_later=False,
        string_arguments=True,
        recognised=False,
    ),
    Family("glm4.5", GLM_TOKENS, "glm4moe", "<|endoftext|>", thinking=True, example_tail="<|user|>"),
    Family(
        *("glm4.5_no_thinking", GLM_TOKENS, "glm4moe", "<|endoftext|>", None, _OFF),
        example_tail="<|user|>",
        recognised=False,
    ),
    Family("gemma3", GEMMA_TOKENS, "gemma3", "<end_of_turn>", "<bos>", tools=False, system_later=False),
    Family(
        *("gpt_oss_medium", HARMONY_TOKENS, "gptoss", "<|return|>"),
        thinking=True,
        several_calls=False,
        text_and_calls=False,
        system_later=False,
    ),
    Family(
        *("gpt_oss_high", HARMONY_TOKENS, "gptoss", "<|return|>", None, {"reasoning_effort": "high"}),
        thinking=True,
        several_calls=False,
        text_and_calls=False,
        system_later=False,
        recognised=False,
    ),
]
BY_NAME = {f"{family.renderer} as {family.template}": family for family in FAMILIES}


@cache
def template_source(name: str) -> str:
    if name != "llama4":
        return chat_template(name)
    source = (folder("transformers") / "models" / "llama4" / "processing_llama4.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "chat_template":
            template: str = ast.literal_eval(node.value)
            return template
    raise AssertionError("transformers has no template for Llama 4")


@cache
def tokenizer_of(which: str) -> PreTrainedTokenizerFast:
    family = BY_NAME[which]
    made = backend(family.tokenizer) if isinstance(family.tokenizer, str) else small(family.tokenizer)
    source = template_source(family.template).replace('strftime_now("%Y-%m-%d")', '"2025-08-05"')
    return hugging_face(made, source, bos=family.bos, eos=family.end)


_TEXTS: dict[Any, TextTokenizer] = {}


@cache
def renderer_of(which: str) -> Renderer:
    family, tokenizer = BY_NAME[which], tokenizer_of(which)
    wrapped = TextTokenizer(tokenizer)
    # The copies without special tokens are large: one for each tokenizer is enough.
    shared = _TEXTS.setdefault(family.tokenizer, wrapped)
    wrapped._plain = shared._plain
    renderer = get_renderer(wrapped, None if family.recognised else family.renderer)
    assert renderer.name == family.renderer
    return renderer


def text_of(which: str) -> TextTokenizer:
    text: TextTokenizer = renderer_of(which).format.text  # type: ignore[attr-defined]
    return text


TOOLS: list[ToolSpec] = [
    {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object",
            "properties": {
                "a": {"type": "integer", "description": "the first"},
                "b": {"type": "number", "default": 0},
                "unit": {"type": "string", "enum": ["m", "km"], "default": "m"},
                "notes": {"type": "array", "items": {"type": "string"}},
                "either": {
                    "oneOf": [{"type": "string", "description": "a name"}, {"type": "integer", "default": 3}],
                    "description": "one of two",
                },
                "rows": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "integer"}}}},
                "anything": {},
                "flag": {"type": "boolean", "nullable": True, "default": False},
                "extra": {"type": "object", "properties": {"deep": {"type": "boolean"}}, "required": []},
            },
            "required": ["a", "b"],
        },
    },
    {
        "name": "now",
        "description": "Tells the time — naïve, “local”.",
        "parameters": {"type": "object", "properties": {}},
    },
]


def calls(*wanted: tuple[str, dict[str, Any]], start: int = 0) -> list[Any]:
    return [
        {"id": f"functions.{name}:{number}", "name": name, "arguments": arguments}
        for number, (name, arguments) in enumerate(wanted, start)
    ]


def called(content: str, *wanted: tuple[str, dict[str, Any]], thinking: str = "", start: int = 0) -> Message:
    message: Message = {**assistant(content), "tool_calls": calls(*wanted, start=start)}
    return {**message, "thinking": thinking} if thinking else message


def result(content: str, name: str = "add", number: int = 0) -> Message:
    return {"role": "tool", "content": content, "name": name, "tool_call_id": f"functions.{name}:{number}"}


def thought(content: str, thinking: str) -> Message:
    return {**assistant(content), "thinking": thinking}


ADD = ("add", {"a": 12, "b": 30.5, "unit": "km", "notes": ["x", "é"], "extra": {"deep": True}})
NOW = ("now", {})


@dataclass(frozen=True)
class Case:
    messages: list[Message]
    tools: list[ToolSpec] = field(default_factory=list)
    needs: Callable[[Family], bool] = lambda family: True


CORPUS: dict[str, Case] = {
    "one question": Case([user("What is 12 + 30?")]),
    "a system prompt": Case([system("Answer briefly."), user("Hi"), assistant("Hello!"), user("List:\n\n1. a\n2. b")]),
    "an answer": Case([user("Hi"), assistant("Hello.\n\nHow are you?")]),
    "whitespace": Case(
        [system("  padded \n"), user("\n\n  What?\n\n"), assistant("42. \n"), user("\t7"), assistant("x\n")]
    ),
    "code": Case([user("```python\ndef f(x):\n    return x  # 10\n```"), assistant("def g():\n\n\n    pass\n")]),
    "scripts": Case([user("你好，世界 — naïve café, привет 🙂\u200d🔬"), assistant("こんにちは\n\n12 ١٢ e\u0301")]),
    "empty": Case([user(""), assistant("")]),
    "control characters": Case([user("a\0b\x07c\x1b[31m\r\nd\u2028e"), assistant("ok\x0b")]),
    "a later system message": Case(
        [user("Q"), assistant("A"), system("Now rhyme."), user("Q2"), assistant("A2")], needs=lambda f: f.system_later
    ),
    "tools offered": Case([user("Add 12 and 30.5")], TOOLS, lambda f: f.tools and f.declares),
    "tools offered, with a system prompt": Case(
        [system("Be exact."), user("Add."), assistant("Add what?")], TOOLS, lambda f: f.tools and f.declares
    ),
    "one call": Case([user("Add"), called("", ADD)], TOOLS[:1], lambda f: f.tools and f.declares),
    "one call without declaration": Case([user("Add"), called("", ADD)], [], lambda f: f.tools),
    "a call, its result": Case([user("Add"), called("", ADD), result("42.5")], needs=lambda f: f.tools),
    "a call, its result, the answer": Case(
        [system("S"), user("Add"), called("", ADD), result('{"sum": 42.5, "é": "“"}'), assistant("It is 42.5.")],
        needs=lambda f: f.tools,
    ),
    "text and a call": Case(
        [user("Add"), called("Let me see.", ADD), result("42")], needs=lambda f: f.tools and f.text_and_calls
    ),
    "several calls": Case(
        [user("Add"), called("Two:", ADD, NOW), result("42"), result("noon", "now", 1), assistant("Both.")],
        needs=lambda f: f.tools and f.several_calls,
    ),
    "several rounds of calls": Case(
        [
            user("Add"),
            called("", ADD),
            result("42"),
            called("", NOW, start=1),
            result("noon", "now", 1),
            assistant("Ok"),
        ],
        needs=lambda f: f.tools and f.rounds,
    ),
    "calls in an earlier turn": Case(
        [user("Add"), called("", ADD), result("42"), assistant("It is 42."), user("Thanks"), assistant("Welcome.")],
        needs=lambda f: f.tools,
    ),
    "thinking": Case([user("Q"), thought("A", "Let me think.\n\nYes.")], needs=lambda f: f.thinking),
    "thinking of an earlier turn": Case(
        [user("Q"), thought("A", "Hm."), user("Q2"), thought("A2", "Hm again.")], needs=lambda f: f.thinking
    ),
    "thinking before a call": Case(
        [user("Add"), called("", ADD, thinking="I need add.")], TOOLS[:1], lambda f: f.thinking
    ),
    "thinking before a call, its result": Case(
        [user("Add"), called("", ADD, thinking="I need add."), result("42")], needs=lambda f: f.thinking
    ),
}


def conversation_for(family: Family, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as the family's template reads them."""
    return [_for_template(family, message) for message in messages]


def _for_template(family: Family, message: Message) -> dict[str, Any]:
    made: dict[str, Any] = {key: value for key, value in message.items() if key not in ("thinking", "tool_calls")}
    if "thinking" in message:
        made["thinking" if family.template == "gptoss" else "reasoning_content"] = message["thinking"]
    if "tool_calls" in message:
        made["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {
                    "name": call["name"],
                    "arguments": json.dumps(call["arguments"], ensure_ascii=False)
                    if family.string_arguments
                    else call["arguments"],
                },
            }
            for call in message["tool_calls"]
        ]
    return made


def tools_for_template(tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    return [{"type": "function", "function": tool} for tool in tools]


def written_for(family: Family, messages: Sequence[Message]) -> list[Message]:
    """The conversation as it is compared: see `Family`."""
    asked = max(index for index, message in enumerate(messages) if message["role"] == "user")
    if not family.opens_thinking:
        return list(messages)
    return [
        {"thinking": "Hm.", **message} if message["role"] == "assistant" and index > asked else message
        for index, message in enumerate(messages)
    ]


def cases() -> list[tuple[str, str]]:
    return [(which, name) for which, family in BY_NAME.items() for name, case in CORPUS.items() if case.needs(family)]
