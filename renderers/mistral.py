r"""Mistral instruct v7 with the Tekken tokenizer: `[INST]content[/INST]content</s>`.

The assistant has no header: it speaks after `[/INST]` and after results. Tools are declared before the user's last
message, so with tools this format rewrites history when the user speaks again; `mistral_v7_no_tools` has none and
never does. The tokens are those of `mistral-common`: spaces at the end of an answer are dropped, and control tokens
spelled out in content stay text, as there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from ..messages import Message, Reply, Role, ToolCall, ToolSpec
from .base import Renderer
from .reading import BadCall, Draft, Grammar, Reader, as_json, last_user, make_call, tool_json, user_speaks
from .registry import register_renderer
from .tokens import Mark, TextTokenizer, TokenizerLike, as_text_tokenizer
from .turns import Pieces, Turn, TurnRenderer, index_of_first

_CALLS, _END = "[TOOL_CALLS]", "</s>"


class Mistral:
    """Mistral's v7 format as a `TurnFormat`."""

    supports_thinking = False

    def __init__(self, tokenizer: TextTokenizer | TokenizerLike, *, tools: bool = True) -> None:
        """Makes the format for a tokenizer; raises ValueError if it lacks Mistral's control tokens."""
        self.text = as_text_tokenizer(tokenizer)
        self.name = "mistral_v7" if tools else "mistral_v7_no_tools"
        self.supports_tools, self.is_prefix_stable = tools, not tools
        for token in ("[INST]", "[SYSTEM_PROMPT]", "[TOOL_CONTENT]"):
            self.text.special(token)
        self._reader = Reader(self.text, Grammar(ends=(_END,), inner=(_CALLS,) if tools else ()))
        self.stop_sequences = self._reader.stop_sequences
        self._inside = frozenset({self.text.special(_CALLS)} if tools else ())

    def write(self, messages: Sequence[Message], tools: Sequence[ToolSpec], *, opening: bool) -> list[Turn]:
        turns = [Turn((Mark("<s>"),))] if opening else []
        asked = last_user(messages)
        header: Pieces
        for index, message in enumerate(messages):
            role = message["role"]
            if role == "assistant":
                body = (message["content"].rstrip(" "), *self._calls(message))
                turns.append(Turn((), body, (Mark(_END),), (), index, True))
            elif role == "tool":
                header = (Mark("[TOOL_RESULTS]"), message.get("tool_call_id", ""), Mark("[TOOL_CONTENT]"))
                turns.append(Turn(header, (message["content"],), (), (Mark("[/TOOL_RESULTS]"),), index))
            elif role == "system":
                end = (Mark("[/SYSTEM_PROMPT]"),)
                turns.append(Turn((Mark("[SYSTEM_PROMPT]"),), (message["content"],), (), end, index))
            else:
                declared = f"[{', '.join(map(tool_json, tools))}]"
                before: Pieces = (Mark("[AVAILABLE_TOOLS]"), declared, Mark("[/AVAILABLE_TOOLS]"))
                header = (*(before if tools and index == asked else ()), Mark("[INST]"))
                turns.append(Turn(header, (message["content"],), (), (Mark("[/INST]"),), index))
        return turns

    def _calls(self, message: Message) -> Iterator[str]:
        if calls := message.get("tool_calls"):
            yield Mark(_CALLS)
            yield as_json([{"name": call["name"], "arguments": call["arguments"], "id": call["id"]} for call in calls])

    def parse(self, tokens: Sequence[int], tools: Sequence[ToolSpec]) -> Reply:
        stop = index_of_first(tokens, self.stop_sequences)
        pieces = self.text.pieces(tokens[:stop], self._inside)
        mark = next((i for i, piece in enumerate(pieces) if type(piece) is Mark), None)
        draft = Draft(content=pieces[:mark])
        if mark is not None:
            try:
                draft.calls.extend(_read_calls("".join(pieces[mark + 1 :])))
            except BadCall as error:
                draft.keep(pieces[mark:], f"tool calls: {error}")
        return draft.finish("".join(draft.content), stop is not None)

    def close(self, sampled: Sequence[int], following: Sequence[Role]) -> Pieces | None:
        if not self.is_prefix_stable and user_speaks(following):
            return None
        return self._reader.close(sampled)


def _read_calls(source: str) -> Iterator[ToolCall]:
    try:
        found = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise BadCall(f"no JSON ({error})") from error
    if not isinstance(found, list) or not all(isinstance(call, dict) for call in found):
        raise BadCall("a JSON list of objects was expected")
    for index, call in enumerate(found):
        call_id = call.get("id")
        yield make_call(call.get("name"), call.get("arguments"), index, call_id if isinstance(call_id, str) else None)


def _recognises(tokenizer: TextTokenizer) -> bool:
    wanted = {"[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[TOOL_CONTENT]"}
    template = tokenizer.chat_template
    return wanted <= tokenizer.special_tokens.keys() and (template is None or "[SYSTEM_PROMPT]" in template)


@register_renderer("mistral_v7", recognises=_recognises)
def mistral_v7(tokenizer: TextTokenizer) -> Renderer:
    """Mistral v7 with Tekken."""
    return TurnRenderer(Mistral(tokenizer))


@register_renderer("mistral_v7_no_tools")
def mistral_v7_no_tools(tokenizer: TextTokenizer) -> Renderer:
    """Mistral v7 with Tekken, where no tools are used."""
    return TurnRenderer(Mistral(tokenizer, tools=False))
