"""A renderer for any tokenizer that has a chat template: the template writes, and is held to the laws of renderers.

On construction the template renders probe conversations. They show how it asks for a reply and how a reply ends, what
it cannot write (a system message, tools), and whether a longer conversation only ever extends a shorter one. A template
that does not write replies as it asks for them is refused, with the reason; one that rewrites history is not
prefix-stable, which `instability` explains.

Templates run in a sandbox. Special tokens that content spells out are hidden while the template runs, so they stay
text. The clock that some templates ask for stands still.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from ..messages import Message, Reply, ToolCall, ToolSpec, assistant, check_messages, system, user
from .base import SupervisedExample, TrainOn, trained_messages
from .convert import to_hugging_face
from .reading import Grammar, Reader, as_json, read_json_call
from .tokens import Mark, TextTokenizer, TokenizerLike, as_text_tokenizer

if TYPE_CHECKING:
    from jinja2 import Template

TODAY = datetime.date(2024, 7, 26)
_X = "the reply"
_CALL: ToolCall = {"id": "call_0", "name": "look", "arguments": {"at": "it"}}
_TOOL: ToolSpec = {
    "name": "look",
    "description": "Looks.",
    "parameters": {"type": "object", "properties": {"at": {"type": "string", "description": "what"}}},
}
_CALLED: Message = {**assistant(""), "tool_calls": [_CALL]}
_RESULT: Message = {"role": "tool", "content": "seen", "name": "look", "tool_call_id": "call_0"}
_PROBES: dict[str, list[Message]] = {
    "several turns": [user("a"), assistant("b"), user("c"), assistant("d"), user("e"), assistant("f")],
    "a system message": [system("s"), user("a"), assistant("b"), user("c"), assistant("d")],
    "tools": [user("a"), _CALLED, _RESULT, assistant("b"), user("c"), assistant("d")],
    "thinking": [user("a"), {**assistant("b"), "thinking": "t"}, user("c"), {**assistant("d"), "thinking": "u"}],
}


class TemplateError(ValueError):
    """A chat template that cannot be run, or cannot serve as a renderer; the message says why."""


class _Span(NamedTuple):
    """Where in the rendered text a reply stands: what was sampled, from after the prompt to the stop token."""

    start: int
    end: int
    message: int


class TemplateRenderer:
    """A `Renderer` that writes what a tokenizer's chat template writes.

    Attributes:
        instability: why the renderer is not prefix-stable; None if it is.
        unsupported: by probe, why the template cannot write it.
    """

    def __init__(self, tokenizer: TextTokenizer | TokenizerLike, template: str | None = None) -> None:
        """Reads a template, the tokenizer's own by default.

        Raises:
            TemplateError: there is none, it crashes on the simplest conversation, or replies in it do not stand where
                it asks for them, or end with no special token.
        """
        self.text = as_text_tokenizer(tokenizer)
        source = template if template is not None else self.text.chat_template
        if source is None:
            raise TemplateError("the tokenizer has no chat template; pass one")
        self.name = "template"
        self._source = source
        self._stop, self._separator = self._ending()
        self.stop_sequences = [self.text.special(self._stop)]
        self.unsupported: dict[str, str] = {}
        self.instability = self._find_instability()
        self.is_prefix_stable = self.instability is None
        self._reader = Reader(self.text, self._grammar())

    def build_generation_prompt(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), prefill: str = ""
    ) -> list[int]:
        """See `Renderer`.

        Raises:
            TypeError: `messages` are no messages.
            ValueError: there are none, or the template cannot write them.
        """
        conversation = self._checked(messages)
        hidden = _Hidden(conversation, tools, self.text)
        written = self._run(hidden.messages, tools, prompt=True)
        spans = self._spans(hidden.messages, tools, written)
        tokens, _ = self._encode(written, spans, frozenset(), 0.0, hidden)
        return [*tokens, *self.text.encode_text(prefill)]

    def build_supervised_example(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        train_on: TrainOn = TrainOn.LAST_ASSISTANT,
    ) -> SupervisedExample:
        """See `Renderer`.

        Raises:
            TypeError: `messages` are no messages.
            ValueError: there are none, the template cannot write them, it rewrites a reply that would be trained, or
                the messages that would be trained are not the assistant's, which no rendering tells apart.
        """
        conversation = self._checked(messages)
        trained = trained_messages(conversation, TrainOn(train_on))
        replies = {index for index, message in enumerate(conversation) if message["role"] == "assistant"}
        if not trained:
            roles = [message["role"] for message in conversation]
            raise ValueError(f"train_on={train_on!s} trains none of these messages; their roles are {roles}")
        context = 1.0 if train_on == TrainOn.ALL_TOKENS else 0.0
        if not context and not trained <= replies:
            raise ValueError(f"train_on={train_on!s}: a template only tells where the assistant's messages stand")
        hidden = _Hidden(conversation, tools, self.text)
        written = self._run(hidden.messages, tools, prompt=False)
        spans = self._spans(hidden.messages, tools, written)
        missing = sorted((trained & replies) - {span.message for span in spans})
        if missing and not context:
            raise ValueError(
                f"messages {missing} would be trained, but the template rewrites them once the conversation goes on"
                f" ({self.instability}); build_supervised_examples splits the conversation instead"
            )
        return SupervisedExample(*self._encode(written, spans, trained, context, hidden))

    def parse_response(self, tokens: Sequence[int], tools: Sequence[ToolSpec] = ()) -> Reply:
        """See `Renderer`."""
        return self._reader.parse(tokens, tools)

    def bridge_to_next_turn(
        self,
        prompt_tokens: Sequence[int],
        sampled_tokens: Sequence[int],
        new_messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
    ) -> list[int] | None:
        """See `Renderer`. None also if `new_messages` hold an assistant's message or what the template cannot write."""
        new = check_messages(new_messages, where="new_messages")
        closing = self._reader.close(sampled_tokens)
        if not self.is_prefix_stable or closing is None or any(message["role"] == "assistant" for message in new):
            return None
        said = assistant(_X)
        if new and new[0]["role"] == "tool":
            said["tool_calls"] = self._reader.parse(sampled_tokens, tools).get("tool_calls") or []
        before = [user("a"), said]
        hidden = _Hidden((*before, *new), tools, self.text)
        try:
            past = self._run(hidden.messages[:2], tools, prompt=False)
            header = self._run(before[:1], tools, prompt=True).removeprefix(self._run(before[:1], tools, prompt=False))
            whole = self._run(hidden.messages, tools, prompt=True)
        except TemplateError:
            return None
        past = past[: len(past) - len(self._separator)]
        tail = self._pieces(header, _Hidden((), (), self.text))
        if not whole.startswith(past) or list(prompt_tokens[-len(tail) :]) != tail:
            return None
        ended = [token for piece in closing for token in self.text.marked(Mark(piece)) if isinstance(token, int)]
        return [*prompt_tokens, *sampled_tokens, *ended, *self._pieces(whole[len(past) :], hidden)]

    def _checked(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        conversation = check_messages(messages)
        if not conversation:
            raise ValueError("a conversation has at least one message, got none")
        return conversation

    def _run(self, messages: Sequence[Message], tools: Sequence[ToolSpec], *, prompt: bool) -> str:
        import jinja2

        written_tools = [{"type": "function", "function": tool} for tool in tools] or None
        try:
            return _compiled(self._source).render(
                messages=to_hugging_face(messages),
                tools=written_tools,
                add_generation_prompt=prompt,
                **self.text.named_tokens,
            )
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template fails: {error}") from error
        except (TypeError, KeyError, AttributeError, IndexError, ValueError, ArithmeticError, RecursionError) as error:
            raise TemplateError(f"the chat template fails with {type(error).__name__}: {error}") from error

    def _ending(self) -> tuple[str, str]:
        """The token that ends a reply, and what the template writes after it."""
        asked, answered = [user("a")], [user("a"), assistant(_X)]
        prompt, written = self._run(asked, (), prompt=True), self._run(answered, (), prompt=False)
        if not written.startswith(prompt):
            raise TemplateError(
                f"the template asks for a reply with {prompt[-60:]!r}, but writes replies otherwise: {written[-80:]!r}"
            )
        _, said, tail = written[len(prompt) :].rpartition(_X)
        if not said:
            raise TemplateError("the template leaves out what the assistant says")
        marks = [part for part in self.text.marked(Mark(tail)) if isinstance(part, int)]
        if not marks:
            raise TemplateError(f"the template ends a reply with no special token, but with {tail!r}")
        stop = self.text.decode(marks[:1])
        head, _, separator = tail.partition(stop)
        if head.strip():
            raise TemplateError(f"the template writes {head!r} between a reply and its stop token")
        return stop, separator

    def _find_instability(self) -> str | None:
        """Runs the probes."""
        for what, messages in _PROBES.items():
            tools = (_TOOL,) if what == "tools" else ()
            try:
                whole = self._run(messages, tools, prompt=False)
                spans = {span.message for span in self._spans(messages, tools, whole)}
            except TemplateError as error:
                self.unsupported[what] = str(error)
                continue
            lost = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i not in spans]
            if lost:
                return f"with {what}, reply {lost[0]} of a conversation changes when it goes on"
            asked = self._run(messages[:-1], tools, prompt=True)
            kept = {span.message for span in self._spans(messages[:-1], tools, asked)}
            if kept != spans - {len(messages) - 1}:
                return f"with {what}, a prompt changes the replies before it"
        return None

    def _spans(self, messages: Sequence[Message], tools: Sequence[ToolSpec], written: str) -> list[_Span]:
        """The replies that stand in the rendered text as they were asked for and said."""
        return [
            span
            for index, m in enumerate(messages)
            if m["role"] == "assistant"
            for span in self._span(messages[: index + 1], tools, written)
        ]

    def _span(self, messages: Sequence[Message], tools: Sequence[ToolSpec], written: str) -> Iterator[_Span]:
        if len(messages) == 1:
            return
        prompt = self._run(messages[:-1], tools, prompt=True)
        whole = self._run(messages, tools, prompt=False)
        end = len(whole) - len(self._separator)
        stands = whole.endswith(self._stop + self._separator) and whole.startswith(prompt)
        if stands and written.startswith(whole[:end]):
            yield _Span(len(prompt), end, len(messages) - 1)

    def _encode(
        self, written: str, spans: Sequence[_Span], trained: frozenset[int], context: float, hidden: _Hidden
    ) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        weights: list[float] = []
        position = 0
        stretches = [
            stretch
            for span in spans
            for stretch in ((span.start, context), (span.end, 1.0 if span.message in trained else context))
        ]
        for end, weight in (*stretches, (len(written), context)):
            found = self._pieces(written[position:end], hidden)
            tokens += found
            weights += [weight] * len(found)
            position = end
        return tokens, weights

    def _pieces(self, written: str, hidden: _Hidden) -> list[int]:
        tokens: list[int] = []
        for part in self.text.split_special(written):
            if isinstance(part, int):
                tokens.append(part)
            else:
                tokens.extend(self.text.encode_text(hidden.shown(part)))
        return tokens

    def _grammar(self) -> Grammar:
        known = self.text.special_tokens

        def marks(opening: str, closing: str) -> tuple[str, str] | None:
            return (opening, closing) if {opening, closing} <= known.keys() and closing in self._source else None

        prompt = self._run([user("a")], (), prompt=True).rstrip()
        return Grammar(
            ends=(self._stop,),
            think=marks("<think>", "</think>"),
            opens_thinking=prompt.endswith("<think>"),
            call=marks("<tool_call>", "</tool_call>"),
            read_call=read_json_call("arguments"),
        )


class _Hidden:
    """A conversation in which the special tokens that content spells out are replaced by a character of no use."""

    def __init__(self, messages: Sequence[Message], tools: Sequence[ToolSpec], text: TextTokenizer) -> None:
        said = as_json([messages, tools])
        self._spelled = [token for token in text.special_tokens if as_json(token)[1:-1] in said]
        used = set(said)
        free = (chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in used)
        self._mark = next(free) if self._spelled else ""
        self.messages: list[Message] = (
            self._hide([dict(message) for message in messages]) if self._spelled else list(messages)
        )

    def _hide(self, value: Any) -> Any:
        if isinstance(value, str):
            for number, token in enumerate(self._spelled):
                value = value.replace(token, f"{self._mark}{number}{self._mark}")
            return value
        if isinstance(value, dict):
            return {key: child if key == "role" else self._hide(child) for key, child in value.items()}
        return [self._hide(child) for child in value] if isinstance(value, list) else value

    def shown(self, written: str) -> str:
        """Rendered text with the tokens spelled out again."""
        for number, token in enumerate(self._spelled):
            written = written.replace(f"{self._mark}{number}{self._mark}", token)
        return written


@cache
def _compiled(source: str) -> Template:
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`: where the assistant speaks. The spans are found by comparing renderings."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, ensure_ascii=False, **options: as_json(value, **options)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = TODAY.strftime
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise TemplateError(f"the chat template is no Jinja template: {error}") from error
