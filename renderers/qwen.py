r"""Qwen2.5, Qwen3 (thinking, thinking disabled, Instruct-2507), Qwen3.5 and Qwen3.6: ChatML with tools and thinking.

Tool results are written as the user's, between `<tool_response>` marks, those of one turn together. Qwen3's thinking
stands at the start of a reply; of replies before the user last spoke it is dropped, so these renderers rewrite history
unless they are made with `keep_thinking=True`. Where they differ from the models' chat templates, on purpose:

- Special tokens spelled out in content stay text; so do a `</think>` in an assistant's content, which the templates
  take for thinking, and a user's text between `<tool_response>` marks, which they take for a tool's.
- Qwen2.5 has no token for `<tool_response>`. There, content that spells out the word gets a space after the `<`.
- What a reply begins with is tokenised apart from the prompt's end (see `chatml`): a leading newline, or, where the
  prompt opens the thinking and there is none, the newline before `</think>`.
- With thinking disabled, a reply after the user last spoke that has thinking is refused instead of written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..messages import Message, Reply, Role, ToolCall, ToolSpec
from .base import Renderer
from .chatml import END, END_OF_TEXT, ENDED, HEADERS, NEWLINE, START, adds_system_prompt, writes_chatml
from .reading import (
    BadCall,
    Grammar,
    Reader,
    as_json,
    last_user,
    make_call,
    read_json_call,
    tool_json,
    untyped_value,
    user_speaks,
)
from .registry import Recognises, register_renderer
from .tokens import Mark, TextTokenizer, TokenizerLike, as_text_tokenizer
from .turns import Pieces, Turn, TurnRenderer

THINK, END_THINK, CALL, END_CALL = "<think>", "</think>", "<tool_call>", "</tool_call>"
_FORGED_RESULT = re.compile("<(?=/?tool_response>)")

_JSON_TOOLS = (
    Mark(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with "
        "function signatures within <tools></tools> XML tags:\n<tools>"
    ),
    Mark(
        "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
        '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
        "</tool_call>"
    ),
)
_XML_TOOLS = (
    Mark("# Tools\n\nYou have access to the following functions:\n\n<tools>"),
    Mark(
        "\n</tools>\n\nIf you choose to call a function ONLY reply in the following format with NO suffix:\n\n"
        "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n"
        "<parameter=example_parameter_2>\nThis is the value for the second parameter\nthat can span\nmultiple lines\n"
        "</parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\nReminder:\n- Function calls MUST follow the specified "
        "format: an inner <function=...></function> block must be nested within <tool_call></tool_call> XML tags\n- "
        "Required parameters MUST be specified\n- You may provide optional reasoning for your function call in natural "
        "language BEFORE the function call, but NOT after\n- If there is no function call available, answer the "
        "question like normal with your current knowledge and do not tell the user about function calls\n</IMPORTANT>"
    ),
)


@dataclass(frozen=True)
class QwenVersion:
    """What tells one generation of Qwen from another.

    Attributes:
        default_system_prompt: put before conversations that do not begin with a system message.
        thinking: whether replies think; None if the model has no thinking.
        keep_thinking: all replies keep their thinking, so that history is never rewritten.
        prompt_opens: whether the prompt opens the thinking, or the reply does.
        xml_calls: whether calls are written as XML with bare values, or as JSON.
        json_scalars: whether bare values that are no strings are JSON, or as Python prints them.
        trims: whether whitespace around content is dropped.
    """

    name: str
    default_system_prompt: str | None = None
    thinking: bool | None = None
    keep_thinking: bool = False
    prompt_opens: bool = False
    xml_calls: bool = False
    json_scalars: bool = False
    trims: bool = False


class Qwen:
    """Qwen's formats as a `TurnFormat`."""

    def __init__(self, tokenizer: TextTokenizer | TokenizerLike, version: QwenVersion) -> None:
        """Makes the format for a tokenizer; raises ValueError if it lacks the special tokens of the version."""
        self.text, self.version, self.name = as_text_tokenizer(tokenizer), version, version.name
        self.supports_thinking = version.thinking is not None
        self.is_prefix_stable = version.thinking is None or version.keep_thinking
        self.text.special(START)
        # Base models and fine-tunes with a smaller vocabulary exist; they can chat but not call.
        self.supports_tools = version.thinking is not None or CALL in self.text.special_tokens
        self._has_result_mark = "<tool_response>" in self.text.special_tokens
        self._reader = Reader(
            self.text,
            Grammar(
                ends=(END,),
                also_stops=(END_OF_TEXT,),
                think=(THINK, END_THINK) if version.thinking is not None else None,
                opens_thinking=version.prompt_opens and bool(version.thinking),
                call=(CALL, END_CALL) if self.supports_tools else None,
                read_call=_read_xml_call if version.xml_calls else read_json_call("arguments"),
                before_call="\n\n" if version.xml_calls else "\n",
                trim=version.trims,
            ),
        )
        self.stop_sequences = self._reader.stop_sequences

    def write(self, messages: Sequence[Message], tools: Sequence[ToolSpec], *, opening: bool) -> list[Turn]:
        asked, last = last_user(messages), len(messages) - 1
        turns = list(self._opening(messages[0], tools)) if opening else []
        for index, message in enumerate(messages):
            role = message["role"]
            if role == "assistant":
                turns.append(self._reply(message, index, current=index > asked, last=index == last))
            elif role == "tool":
                first = index == 0 or messages[index - 1]["role"] != "tool"
                ends = index == last or messages[index + 1]["role"] != "tool"
                turns.append(self._result(message, index, first=first, ends=ends))
            elif not (opening and index == 0 and role == "system"):
                if role == "system" and self.version.trims:
                    raise ValueError(f"{self.name} has a system message only at the start, not as message {index}")
                turns.append(Turn(HEADERS[role], (self._content(message),), ENDED, NEWLINE, index))
        return turns

    def _opening(self, first: Message, tools: Sequence[ToolSpec]) -> Iterator[Turn]:
        """The system message with the tools."""
        given = first["role"] == "system"
        prompt = self._content(first) if given else self.version.default_system_prompt
        index = 0 if given else None
        if not tools:
            if prompt is not None:
                yield Turn(HEADERS["system"], (prompt,), ENDED, NEWLINE, index)
            return
        before, after = _XML_TOOLS if self.version.xml_calls else _JSON_TOOLS
        declared = [piece for tool in tools for piece in (Mark("\n"), tool_json(tool))]
        gap = (Mark("\n\n"),)
        if self.version.xml_calls:
            head: Pieces = (*HEADERS["system"], before, *declared, after, *(gap if prompt else ()))
            yield Turn(head, (prompt or "",), ENDED, NEWLINE, index)
        else:
            system = () if prompt is None else (prompt, *gap)
            yield Turn(HEADERS["system"], (*system, before, *declared, after), ENDED, NEWLINE, index)

    def _content(self, message: Message) -> str:
        content = message["content"].strip() if self.version.trims else message["content"]
        return content if self._has_result_mark else _FORGED_RESULT.sub("< ", content)

    def _result(self, message: Message, index: int, *, first: bool, ends: bool) -> Turn:
        return Turn(
            (Mark(f"{START}user"),) if first else (),
            (Mark("\n<tool_response>\n"), self._content(message), Mark("\n</tool_response>")),
            ENDED if ends else (),
            NEWLINE if ends else (),
            index,
        )

    def _reply(self, message: Message, index: int, *, current: bool, last: bool) -> Turn:
        version = self.version
        content = message["content"].strip() if version.trims else message["content"]
        thinking = message.get("thinking", "").strip(None if version.trims else "\n")
        shows = version.thinking is not None and (version.keep_thinking or current)
        if not version.prompt_opens and not version.keep_thinking and not last and not thinking:
            shows = False
        header, body = HEADERS["assistant"], [content]
        if shows and version.thinking:
            content = content.lstrip("\n")
            opened = (Mark(f"{THINK}\n"),)
            header = (*header, *opened) if version.prompt_opens else header
            body = [*(() if version.prompt_opens else opened), thinking, Mark(f"\n{END_THINK}\n\n"), content]
        elif shows:
            if thinking:
                raise ValueError(f"message {index} has thinking, which {self.name!r} disables; remove it there")
            content = content.lstrip("\n")
            header, body = (*header, Mark(f"{THINK}\n\n{END_THINK}\n\n")), [content]
        calls = message.get("tool_calls") or ()
        return Turn(header, (*body, *self._calls(calls, bool(content))), ENDED, NEWLINE, index, True)

    def _calls(self, calls: Sequence[ToolCall], after_content: bool) -> Iterator[str]:
        for number, call in enumerate(calls):
            if number or after_content:
                yield Mark("\n\n" if self.version.xml_calls and not number else "\n")
            if self.version.xml_calls:
                yield from (Mark(f"{CALL}\n<function="), call["name"], Mark(">\n"))
                for name, value in call["arguments"].items():
                    yield from (Mark("<parameter="), name, Mark(">\n"), self._bare(value), Mark("\n</parameter>\n"))
                yield Mark(f"</function>\n{END_CALL}")
            else:
                yield from (Mark(f'{CALL}\n{{"name": "'), call["name"], Mark('", "arguments": '))
                yield from (as_json(call["arguments"]), Mark(f"}}\n{END_CALL}"))

    def _bare(self, value: object) -> str:
        if isinstance(value, str):
            return value
        return as_json(value) if self.version.json_scalars or isinstance(value, dict | list) else str(value)

    def parse(self, tokens: Sequence[int], tools: Sequence[ToolSpec]) -> Reply:
        return self._reader.parse(tokens, tools)

    def close(self, sampled: Sequence[int], following: Sequence[Role]) -> Pieces | None:
        if not self.is_prefix_stable and user_speaks(following):
            return None
        return self._reader.close(sampled)


_FUNCTION = re.compile(r"\s*<function=([^>\n]*)>\n?(.*?)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]*)>\n?")
_NEXT_PARAMETER = re.compile(r"\s*(?:<parameter=|\Z)")
_END_PARAMETER = "</parameter>"


def _read_xml_call(inside: Sequence[str], tools: Mapping[str, ToolSpec], index: int) -> ToolCall:
    function = _FUNCTION.fullmatch("".join(inside))
    if function is None:
        raise BadCall("<function=...> ... </function> was expected")
    name, body = function.groups()
    arguments, position = {}, 0
    while opened := _PARAMETER.match(body, position):
        end = _end_of_parameter(body, opened.end())
        value = body[opened.end() : end].removesuffix("\n")
        arguments[opened[1]] = untyped_value(value, opened[1], tools.get(name))
        position = end + len(_END_PARAMETER)
    if rest := body[position:].strip():
        raise BadCall(f"<parameter=...> ... </parameter> was expected at {rest[:40]!r}")
    return make_call(name, arguments, index)


def _end_of_parameter(body: str, start: int) -> int:
    """Where a value ends: at the first closing tag that is followed by another parameter or by nothing."""
    end = body.find(_END_PARAMETER, start)
    while end >= 0 and not _NEXT_PARAMETER.match(body, end + len(_END_PARAMETER)):
        end = body.find(_END_PARAMETER, end + 1)
    if end < 0:
        raise BadCall(f"{_END_PARAMETER} is missing")
    return end


_QWEN3 = QwenVersion("qwen3", thinking=True)
_QWEN35 = QwenVersion("qwen3.5", thinking=True, prompt_opens=True, xml_calls=True, trims=True)
_QWEN36 = replace(_QWEN35, name="qwen3.6", json_scalars=True)
QWEN25_PROMPT = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


def _has(*wanted: str, lacks: tuple[str, ...] = ()) -> Recognises:
    def recognises(tokenizer: TextTokenizer) -> bool:
        template = tokenizer.chat_template or ""
        told = all(part in template for part in wanted) and not any(part in template for part in lacks)
        return writes_chatml(tokenizer) and told

    return recognises


def _register(version: QwenVersion, recognises: Recognises | None = None) -> None:
    def build(tokenizer: TextTokenizer, keep_thinking: bool = version.keep_thinking) -> Renderer:
        return TurnRenderer(Qwen(tokenizer, replace(version, keep_thinking=keep_thinking)))

    register_renderer(version.name, **({"recognises": recognises} if recognises else {}))(build)


_register(
    QwenVersion("qwen2.5", QWEN25_PROMPT),
    lambda tokenizer: adds_system_prompt(tokenizer, QWEN25_PROMPT),
)
_register(QwenVersion("qwen3_instruct"), _has('\\"arguments\\": <args-json-object>', lacks=(THINK, "You are Qwen")))
_register(_QWEN3, _has('\\"arguments\\": <args-json-object>', "enable_thinking", "<think>"))
_register(replace(_QWEN3, name="qwen3_no_thinking", thinking=False))
_register(_QWEN35, _has("<function=example_function_name>", "enable_thinking", "args_value | string %}"))
_register(replace(_QWEN35, name="qwen3.5_no_thinking", thinking=False))
_register(_QWEN36, _has("<function=example_function_name>", "preserve_thinking"))
_register(replace(_QWEN36, name="qwen3.6_no_thinking", thinking=False))
