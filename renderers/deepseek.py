r"""DeepSeek V3, R1 and V3.1: `<｜User｜>...<｜Assistant｜>...<｜end▁of▁sentence｜>`.

V3.1 thinks or not, as the mark after `<｜Assistant｜>` says; R1 always thinks. Thinking of earlier replies is dropped,
so the thinking renderers rewrite history. After tool results the assistant goes on without a header. Where the tokens
differ from those of the models' chat templates, on purpose:

- Special tokens spelled out in content stay text; so does a `</think>`, which the templates cut content at.
- A reply that is trained keeps its thinking, which the templates drop even there.
- V3's and R1's template writes a second round of calls and results without its opening marks; here each round has them.
- V3.1's tools stand in the system message, in the words of its model card; its template has no place for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..messages import Message, Reply, Role, ToolCall, ToolSpec
from .base import Renderer
from .reading import BadCall, Grammar, Reader, as_json, make_call, parse_object
from .registry import register_renderer
from .tokens import Mark, TextTokenizer, TokenizerLike, as_text_tokenizer
from .turns import Pieces, Turn, TurnRenderer

_BOS, _EOS, _USER, _ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
_CALLS, _END_CALLS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _SEP, _END_CALL = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_RESULTS, _END_RESULTS = "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"
_RESULT, _END_RESULT = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"
_TOOLS = (
    Mark("## Tools\nYou have access to the following tools:\n"),
    Mark(
        "\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
        f"{_CALLS}{_CALL}tool_call_name{_SEP}tool_call_arguments{_END_CALL}{{additional_tool_calls}}{_END_CALLS}\n\n"
        "Where:\n- `tool_call_name` must be an exact match to one of the available tools\n"
        "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
        "- For multiple tool calls, chain them directly without separators or spaces"
    ),
)


@dataclass(frozen=True)
class DeepSeekVersion:
    """What tells one DeepSeek format from another.

    Attributes:
        asks: what follows `<｜Assistant｜>` where a reply is asked for.
        answered: what follows it before replies of the past.
        thinking: whether a reply begins with thinking.
        close_thinking: what ends the thinking.
        v31: the calls and results of V3.1, or of V3.
    """

    name: str
    asks: str = ""
    answered: str = ""
    thinking: bool = False
    close_thinking: str = "</think>"
    v31: bool = False


class DeepSeek:
    """DeepSeek's formats as a `TurnFormat`."""

    supports_tools = True
    supports_thinking = True

    def __init__(self, tokenizer: TextTokenizer | TokenizerLike, version: DeepSeekVersion) -> None:
        """Makes the format for a tokenizer; raises ValueError if it lacks DeepSeek's special tokens."""
        self.text, self.version, self.name = as_text_tokenizer(tokenizer), version, version.name
        self.is_prefix_stable = not version.thinking
        grammar = Grammar(
            ends=(_EOS,),
            think=("<think>", "</think>") if "<think>" in self.text.special_tokens else None,
            opens_thinking=version.thinking,
            call=(_CALL, _END_CALL),
            ignored=(_CALLS, _END_CALLS),
            inner=(_SEP,),
            read_call=_read_call if version.v31 else _read_v3_call,
            strip="" if version.v31 else "\n",
            before_call="",
            close_thinking=version.close_thinking,
        )
        self._reader = Reader(self.text, grammar)
        self.stop_sequences = self._reader.stop_sequences

    def write(self, messages: Sequence[Message], tools: Sequence[ToolSpec], *, opening: bool) -> list[Turn]:
        turns = list(self._opening(messages[0], tools)) if opening else []
        last = len(messages) - 1
        for index, message in enumerate(messages):
            role = message["role"]
            previous = messages[index - 1]["role"] if index else None
            if role == "user":
                turns.append(Turn((Mark(_USER),), (message["content"],), (), (), index))
            elif role == "assistant":
                turns.append(self._reply(message, index, index == last, previous == "tool"))
            elif role == "tool":
                goes_on = index < last and messages[index + 1]["role"] == "tool"
                turns.append(self._result(message, index, first=previous != "tool", ends=not goes_on))
            elif not (opening and index == 0):
                raise ValueError(f"{self.name} has a system message only at the start, not as message {index}")
        return turns

    def _opening(self, first: Message, tools: Sequence[ToolSpec]) -> Iterator[Turn]:
        yield Turn((Mark(_BOS),))
        given = first["role"] == "system"
        if given:
            yield Turn((), (first["content"],), (), (), 0)
        if not tools:
            return
        if not self.version.v31:
            raise ValueError(
                f"{self.name} has no format for declaring tools; describe them in the system message, or take "
                "'deepseek_v3.1'"
            )
        yield Turn((Mark("\n\n"),) if given else ())
        yield Turn((_TOOLS[0], *(piece for tool in tools for piece in _declared(tool)), _TOOLS[1]))

    def _result(self, message: Message, index: int, *, first: bool, ends: bool) -> Turn:
        body = (message["content"], Mark(_END_RESULT))
        if self.version.v31:
            return Turn((Mark(_RESULT),), body, (), (), index)
        header = Mark(f"{_RESULTS}{_RESULT}" if first else _RESULT)
        return Turn((header,), body, (), (Mark(_END_RESULTS),) if ends else (), index)

    def _reply(self, message: Message, index: int, is_last: bool, after_result: bool) -> Turn:
        version, thinking = self.version, message.get("thinking", "") if is_last else ""
        thinks = version.thinking and is_last and not after_result
        if thinking and not thinks:
            why = "goes on after a tool result without thinking" if version.thinking else "disables thinking"
            raise ValueError(f"message {index} has thinking, but {self.name!r} {why}; remove it there")
        header: Pieces = (Mark(f"{_ASSISTANT}{version.asks if thinks else version.answered}"),)
        body: list[str] = [message["content"], *self._calls(message.get("tool_calls") or ())]
        if thinks:
            written = thinking if version.v31 else thinking.strip("\n")
            body = [written, Mark(version.close_thinking), *body]
        return Turn(() if after_result else header, tuple(body), (Mark(_EOS),), (), index, True)

    def _calls(self, calls: Sequence[ToolCall]) -> Iterator[str]:
        if not calls:
            return
        yield Mark(_CALLS)
        for number, call in enumerate(calls):
            arguments = as_json(call["arguments"])
            if self.version.v31:
                yield from (Mark(_CALL), call["name"], Mark(_SEP), arguments, Mark(_END_CALL))
            else:
                before = Mark(f"{_CALL}function{_SEP}" if not number else f"\n{_CALL}function{_SEP}")
                yield from (before, call["name"], Mark("\n```json\n"), arguments, Mark(f"\n```{_END_CALL}"))
        yield Mark(_END_CALLS)

    def parse(self, tokens: Sequence[int], tools: Sequence[ToolSpec]) -> Reply:
        return self._reader.parse(tokens, tools)

    def close(self, sampled: Sequence[int], following: Sequence[Role]) -> Pieces | None:
        return self._reader.close(sampled) if self.is_prefix_stable else None


def _declared(tool: ToolSpec) -> Pieces:
    parameters = as_json(tool.get("parameters") or {})
    description = tool.get("description", "")
    return (
        Mark("\n### "),
        tool["name"],
        Mark("\nDescription: "),
        description,
        Mark("\n\nParameters: "),
        parameters,
        Mark("\n"),
    )


def _read_call(inside: Sequence[str], tools: Mapping[str, ToolSpec], index: int) -> ToolCall:
    name, arguments = _around_separator(inside)
    return make_call(name.strip(), parse_object(arguments), index)


def _read_v3_call(inside: Sequence[str], tools: Mapping[str, ToolSpec], index: int) -> ToolCall:
    _, call = _around_separator(inside)
    name, fence, rest = call.partition("\n```json\n")
    arguments, closing, after = rest.rpartition("```")
    if not fence or not closing or after.strip():
        raise BadCall("a name and arguments between ```json and ``` were expected")
    return make_call(name.strip(), parse_object(arguments), index)


def _around_separator(inside: Sequence[str]) -> tuple[str, str]:
    cut = next((i for i, piece in enumerate(inside) if type(piece) is Mark and piece == _SEP), None)
    if cut is None:
        raise BadCall(f"{_SEP} is missing")
    return "".join(inside[:cut]), "".join(inside[cut + 1 :])


def _register(version: DeepSeekVersion, *told_by: str, unlike: str = "") -> None:
    def recognises(tokenizer: TextTokenizer) -> bool:
        template = tokenizer.chat_template or ""
        told = bool(told_by) and all(part in template for part in told_by) and not (unlike and unlike in template)
        return told and _ASSISTANT in tokenizer.special_tokens and _CALL in tokenizer.special_tokens

    def build(tokenizer: TextTokenizer) -> Renderer:
        return TurnRenderer(DeepSeek(tokenizer, version))

    register_renderer(version.name, recognises=recognises)(build)


_register(DeepSeekVersion("deepseek_v3"), _ASSISTANT, "```json", unlike="<think>")
_register(
    DeepSeekVersion("deepseek_r1", asks="<think>\n", thinking=True, close_thinking="\n</think>\n\n"),
    *(f"{_ASSISTANT}<think>", "```json"),
)
_register(DeepSeekVersion("deepseek_v3.1", asks="</think>", answered="</think>", v31=True), "is_last_user", "</think>")
_register(DeepSeekVersion("deepseek_v3.1_thinking", asks="<think>", answered="</think>", thinking=True, v31=True))
