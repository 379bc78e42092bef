"""The renderer made of a chat template: its laws, what it refuses, and that it agrees with the families'."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loragym.messages import Message, assistant, reply, system, user
from loragym.renderers import (
    TemplateError,
    TemplateRenderer,
    TextTokenizer,
    TrainOn,
    build_supervised_examples,
    get_renderer,
)
from renderers_models import chat_template, hugging_face, small

SPECIAL = ("<s>", "</s>", "<|user|>", "<|bot|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
PLAIN = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content | trim }}"
    "{% elif m.role == 'assistant' %}<|bot|>{% generation %}{{ m.content }}</s>{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ raise_exception('only users and bots') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|bot|>{% endif %}"
)
FORGETS = (
    "{% for m in messages %}<|{{ 'bot' if m.role == 'assistant' else 'user' }}|>"
    "{% if m.role == 'assistant' and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}"
)
contents = st.one_of(st.text(max_size=12), st.lists(st.sampled_from([*SPECIAL, "a", " ", "\n"])).map("".join))
TALK = [user("a"), assistant("b"), user("c"), assistant("d")]


def made(template: str) -> TextTokenizer:
    return TextTokenizer(hugging_face(small(SPECIAL), template, bos="<s>", eos="</s>"))


def template_renderer(template: str) -> TemplateRenderer:
    return TemplateRenderer(made(template))


def trained_texts(renderer: TemplateRenderer, messages: list[Message], train_on: TrainOn) -> list[str]:
    tokens, weights = renderer.build_supervised_example(messages, train_on=train_on)
    edges = [0, *(i for i, (a, b) in enumerate(pairwise(weights), 1) if a != b), len(tokens)]
    return [renderer.text.decode(tokens[a:b]) for a, b in pairwise(edges) if weights[a]]


def test_a_tokenizer_with_an_unknown_template_gets_this_renderer() -> None:
    renderer = get_renderer(made(PLAIN))
    assert isinstance(renderer, TemplateRenderer) and renderer.name == "template"
    assert renderer.is_prefix_stable and renderer.instability is None
    assert renderer.text.decode(renderer.stop_sequences) == "</s>"
    assert set(renderer.unsupported) == {"a system message", "tools"}


def test_replies_and_their_stop_are_trained_wherever_they_stand() -> None:
    renderer = template_renderer(PLAIN)
    assert trained_texts(renderer, TALK, TrainOn.ALL_ASSISTANT) == ["b</s>", "d</s>"]
    assert trained_texts(renderer, TALK, TrainOn.LAST_ASSISTANT) == ["d</s>"]
    assert renderer.text.decode(renderer.build_supervised_example(TALK).tokens) == (
        "<s><|user|>a<|bot|>b</s>\n<|user|>c<|bot|>d</s>\n"
    )


@given(said=st.lists(contents, min_size=1, max_size=3), answer=contents)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_the_laws_hold_for_any_text(said: list[str], answer: str) -> None:
    renderer = template_renderer(PLAIN)
    messages = [message for text in said for message in (user(text), assistant(text))][:-1]
    prompt = renderer.build_generation_prompt(messages)
    tokens, weights = renderer.build_supervised_example([*messages, assistant(answer)])
    assert tokens[: len(prompt)] == prompt and not any(weights[: len(prompt)])
    sampled = [token for token, weight in zip(tokens, weights, strict=True) if weight]
    structure = [token for token in tokens if renderer.text.is_special(token)]
    assert len(structure) == 1 + 3 * len(said)
    if "<think>" not in answer:
        assert renderer.parse_response(sampled) == reply(answer)
    bridged = renderer.bridge_to_next_turn(prompt, sampled, [user("next")])
    assert bridged == renderer.build_generation_prompt([*messages, assistant(answer), user("next")])
    cut_off = renderer.bridge_to_next_turn(prompt, sampled[:-1], [user("next")])
    assert cut_off == bridged


def test_a_template_that_rewrites_history_says_so_and_splits() -> None:
    renderer = template_renderer(FORGETS)
    assert not renderer.is_prefix_stable and "reply 1" in str(renderer.instability)
    prompt = renderer.build_generation_prompt(TALK[:1])
    assert renderer.bridge_to_next_turn(prompt, renderer.text.encode_text("x"), [user("c")]) is None
    with pytest.raises(ValueError, match=r"messages \[1\].*rewrites.*build_supervised_examples"):
        renderer.build_supervised_example(TALK, train_on=TrainOn.ALL_ASSISTANT)
    split = build_supervised_examples(renderer, TALK)
    spoken = [renderer.text.decode(t for t, w in zip(*example, strict=True) if w) for example in split]
    assert spoken == ["<think></think>b</s>", "<think></think>d</s>"]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for %}", "no Jinja template"),
        ("{{ messages[7].content }}", "fails"),
        ("{{ nothing.at.all }}", "fails"),
        ("{{ raise_exception('not today') }}", "not today"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "fails"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "no special token"),
        ("{% for m in messages %}</s>{% endfor %}", "leaves out"),
        (
            "{% for m in messages %}{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<think>{% endif %}",
            "asks for a reply with",
        ),
    ],
)
def test_a_template_that_cannot_serve_is_refused_with_the_reason(template: str, why: str) -> None:
    with pytest.raises(TemplateError, match=why):
        template_renderer(template)


def test_what_a_template_cannot_write_is_a_clear_error() -> None:
    renderer = template_renderer(PLAIN)
    with pytest.raises(TemplateError, match="only users and bots"):
        renderer.build_generation_prompt([system("s"), user("a")])
    with pytest.raises(ValueError, match="where the assistant's messages stand"):
        renderer.build_supervised_example(TALK, train_on=TrainOn.ALL_MESSAGES)
    with pytest.raises(ValueError, match="at least one message"):
        renderer.build_generation_prompt([])


def test_a_template_that_runs_away_in_the_sandbox_does_not_reach_python() -> None:
    with pytest.raises(TemplateError):
        template_renderer("{{ messages.__class__.__base__.__subclasses__() }}{{ messages.append(1) }}")


QWEN: Any = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<tool_response>")
QWEN += ("</tool_response>", "<think>", "</think>")


def test_it_agrees_with_the_familys_own_renderer() -> None:
    tokenizer = hugging_face(small(QWEN), chat_template("qwen3_instruct_2507"), eos="<|im_end|>")
    family, derived = get_renderer(tokenizer), get_renderer(tokenizer, "template")
    assert family.name == "qwen3_instruct" and derived.is_prefix_stable
    call: Message = {**assistant("Let me."), "tool_calls": [{"id": "call_0", "name": "f", "arguments": {"a": "é"}}]}
    result: Message = {"role": "tool", "content": "<|im_end|>"}
    tools: Any = [{"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}]
    messages = [system("s"), user("a <tool_call>"), call, result, assistant("b"), user("c")]
    assert derived.build_generation_prompt(messages, tools) == family.build_generation_prompt(messages, tools)
    example = family.build_supervised_example(messages, tools, TrainOn.ALL_ASSISTANT)
    assert derived.build_supervised_example(messages, tools, TrainOn.ALL_ASSISTANT) == example
    prompt = family.build_generation_prompt(messages[:2], tools)
    sampled = [t for t, w in zip(*family.build_supervised_example(messages[:3], tools), strict=True) if w]
    assert derived.parse_response(sampled) == family.parse_response(sampled)
    bridged = derived.bridge_to_next_turn(prompt, sampled, [result], tools)
    assert bridged == family.bridge_to_next_turn(prompt, sampled, [result], tools)


@pytest.mark.parametrize(
    ("template", "stable"),
    [("phi3", True), ("llama3", True), ("gemma", True), ("qwen3", False), ("cohere", True), ("lfm2", True)],
)
def test_templates_of_other_families_are_told_apart(template: str, stable: bool) -> None:
    source = chat_template(template)
    special = sorted({*_spelled(source), "<bos>"})
    renderer = TemplateRenderer(hugging_face(small(tuple(special)), source, bos="<bos>", eos="<bos>"))
    assert renderer.is_prefix_stable == stable


def _spelled(source: str) -> list[str]:
    import re

    return re.findall(r"<\|[^<>|{}' ]+\|>|<(?:start|end)_of_turn>|</?think>|</?tool_call>", source)


@pytest.mark.parametrize("template", ["llama3", "qwen2_5", "qwen3_instruct_2507", "gemma", "gemma3", "lfm2_v2"])
def test_the_spans_are_those_of_generation_tags(template: str) -> None:
    source = chat_template(f"{template}_training")
    tokenizer = hugging_face(small(tuple(sorted({*_spelled(source), "<bos>"}))), source, bos="<bos>", eos="<bos>")
    renderer = TemplateRenderer(tokenizer)
    tagged: Any = tokenizer.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    tokens, weights = renderer.build_supervised_example(TALK, train_on=TrainOn.ALL_ASSISTANT)
    assert tokens == tagged["input_ids"]
    # Some tags take in the line break after the stop token, which no model has to say.
    differing = {
        renderer.text.decode([t]) for t, w, m in zip(tokens, weights, tagged["assistant_masks"], strict=True) if w != m
    }
    assert differing <= {"\n"}
