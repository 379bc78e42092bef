"""What stands around the renderers: choosing what is trained, lengths, looking at tokens, other message formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from loragym.cli import main
from loragym.messages import Message, assistant, system, user
from loragym.renderers import (
    LengthLimit,
    SupervisedExample,
    TextTokenizer,
    TrainOn,
    build_supervised_examples,
    from_openai,
    get_renderer,
    renderer_names,
    show_tokens,
    to_hugging_face,
    to_openai,
    tools_from_openai,
    tools_to_openai,
)
from loragym.renderers.tokens import as_text_tokenizer
from renderers_all import MODELS, TOOLS, renderer_of, text_of
from renderers_models import small

TALK = [system("S"), user("Q1"), assistant("A1"), user("Q2"), assistant("A2")]


def trained(messages: list[Message], train_on: TrainOn, name: str = "chatml") -> str:
    example = renderer_of(name).build_supervised_example(messages, train_on=train_on)
    return text_of(name).decode(token for token, weight in zip(*example, strict=True) if weight)


def test_user_and_system_messages_can_be_trained() -> None:
    assert trained(TALK, TrainOn.USER_AND_SYSTEM) == "S<|im_end|>Q1<|im_end|>Q2<|im_end|>"
    assert trained(TALK, TrainOn.USER_AND_SYSTEM, "llama3") == "S<|eot_id|>Q1<|eot_id|>Q2<|eot_id|>"
    assert trained(TALK, TrainOn.USER_AND_SYSTEM, "deepseek_v3") == "SQ1Q2"


def test_each_message_can_say_whether_it_is_trained() -> None:
    chosen: list[Any] = [{**message, "trainable": index in (1, 2)} for index, message in enumerate(TALK)]
    assert trained(chosen, TrainOn.CUSTOM) == "Q1<|im_end|>A1<|im_end|>"
    del chosen[3]["trainable"]
    with pytest.raises(ValueError, match=r"trainable.*\[3\]"):
        trained(chosen, TrainOn.CUSTOM)


def test_one_of_two_tool_results_that_share_a_turn_can_be_trained() -> None:
    call: Any = {**assistant(""), "tool_calls": [{"id": str(n), "name": "f", "arguments": {}} for n in range(2)]}
    results: list[Any] = [{"role": "tool", "content": text, "trainable": text == "two"} for text in ("one", "two")]
    messages: list[Any] = [{**message, "trainable": False} for message in (user("Q"), call)]
    assert "two" in trained([*messages, *results], TrainOn.CUSTOM, "qwen2.5")
    assert "one" not in trained([*messages, *results], TrainOn.CUSTOM, "qwen2.5")


def test_examples_are_split_where_history_is_rewritten() -> None:
    messages: list[Message] = [
        user("Q"),
        {**assistant("A"), "thinking": "T"},
        user("Q2"),
        {**assistant("B"), "thinking": "U"},
    ]
    text = text_of("qwen3")
    examples = build_supervised_examples(renderer_of("qwen3"), messages)
    spoken = [text.decode(t for t, w in zip(*example, strict=True) if w) for example in examples]
    assert spoken == ["<think>\nT\n</think>\n\nA<|im_end|>", "<think>\nU\n</think>\n\nB<|im_end|>"]
    kept = renderer_of("qwen3", keep_thinking=True)
    assert kept.is_prefix_stable and len(build_supervised_examples(kept, messages)) == 1
    assert len(build_supervised_examples(renderer_of("qwen3_instruct"), TALK)) == 1


def test_thinking_can_be_kept_so_that_every_turn_bridges() -> None:
    renderer, text = renderer_of("qwen3", keep_thinking=True), text_of("qwen3")
    reply: Message = {**assistant("A"), "thinking": "T"}
    prompt = renderer.build_generation_prompt([user("Q")])
    sampled = [t for t, w in zip(*renderer.build_supervised_example([user("Q"), reply]), strict=True) if w]
    bridged = renderer.bridge_to_next_turn(prompt, sampled, [user("Q2")])
    assert bridged == renderer.build_generation_prompt([user("Q"), reply, user("Q2")])
    assert text.decode(bridged).count("<think>") == 1


def test_overlong_examples_are_cut_or_left_out_and_counted() -> None:
    example = SupervisedExample([1, 2, 3, 4], [0.0, 0.0, 1.0, 1.0])
    cut, drop = LengthLimit(3, "truncate"), LengthLimit(3, "drop")
    assert cut(example) == ([1, 2, 3], [0.0, 0.0, 1.0]) and drop(example) is None
    assert LengthLimit(4, "drop")(example) is example
    untrained = LengthLimit(2, "truncate")
    assert untrained(example) is None
    assert (cut.truncated, drop.dropped, untrained.dropped, untrained.truncated) == (1, 1, 1, 0)
    wrong: Any = "shorten"
    with pytest.raises(ValueError, match="'truncate' or 'drop'"):
        LengthLimit(3, wrong)
    with pytest.raises(ValueError, match="at least 1"):
        LengthLimit(0, "drop")


@pytest.mark.parametrize("name", MODELS)
def test_a_prefill_follows_the_prompt(name: str) -> None:
    renderer, text = renderer_of(name), text_of(name)
    prompt = renderer.build_generation_prompt([user("Q")])
    assert renderer.build_generation_prompt([user("Q")], prefill="Sure<s>, ") == [
        *prompt,
        *text.encode_text("Sure<s>, "),
    ]


# --- malformed calls ------------------------------------------------------------------------------------------------

BAD_CALLS = [
    ("qwen3_instruct", "<tool_call>\n{'name': 1}\n</tool_call><|im_end|>", "no JSON"),
    ("qwen3_instruct", '<tool_call>{"name": "f"}</tool_call><|im_end|>', "arguments is missing"),
    ("qwen3_instruct", '<tool_call>{"name": "f", "arguments": [1]}</tool_call><|im_end|>', "arguments are an object"),
    ("qwen3_instruct", '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call><|im_end|>', "NaN"),
    ("qwen3_instruct", f"<tool_call>{'[' * 100_000}</tool_call><|im_end|>", "no JSON"),
    ("qwen3_instruct", '<tool_call>\n{"name": "f", "arguments": {}}<|im_end|>', "never closed"),
    ("qwen3_instruct", "</tool_call><|im_end|>", "means nothing"),
    (
        "qwen3.5",
        "</think>\n\n<tool_call>\n<function=f>\n<parameter=a>\n1\n</function>\n</tool_call><|im_end|>",
        "missing",
    ),
    ("qwen3.5", "</think>\n\n<tool_call>f()</tool_call><|im_end|>", "<function=...>"),
    ("qwen3", "<think>\nnever done<|im_end|>", "thinking was never closed"),
    ("glm4.5", "\n<think></think>\n<tool_call>f\n<arg_key>a</arg_key></tool_call><|user|>", "pairs"),
    ("deepseek_v3.1", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f{}<｜tool▁call▁end｜><｜end▁of▁sentence｜>", "sep"),
    ("kimi_k2", "<|tool_call_begin|>f<|tool_call_argument_begin|>{}<|tool_call_end|><|im_end|>", "functions.NAME"),
    ("llama3.1", '{"name": "f", "parameters": {"a": }}<|eot_id|>', "Expecting value"),
    ("gpt_oss_low", "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{a}<|call|>", "no JSON"),
    ("gpt_oss_low", "<|channel|>analysis<|message|>Hm.<|return|>", "no final message"),
    ("gpt_oss_low", "<|channel|>final<|message|>Hi.<|call|>", "goes to no tool"),
]


@pytest.mark.parametrize(("name", "written", "why"), BAD_CALLS, ids=[f"{name}-{why}" for name, _, why in BAD_CALLS])
def test_a_malformed_call_stays_as_text_with_the_reason(name: str, written: str, why: str) -> None:
    text = text_of(name)
    tokens = spelled(text, written)
    parsed = renderer_of(name).parse_response(tokens)
    assert parsed["stop_reason"] == "malformed" and why in parsed["problem"]
    assert "tool_calls" not in parsed


def spelled(text: TextTokenizer, written: str) -> list[int]:
    """A reply as a model would sample it, special tokens being tokens."""
    parts = text.split_special(written)
    return [token for part in parts for token in ([part] if isinstance(part, int) else text.encode_text(part))]


def test_good_calls_beside_a_malformed_one_are_kept() -> None:
    text = text_of("qwen3_instruct")
    written = (
        'Hm.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>\nf(\n</tool_call><|im_end|>'
    )
    tokens = spelled(text, written)
    parsed = renderer_of("qwen3_instruct").parse_response(tokens)
    assert [call["arguments"] for call in parsed["tool_calls"]] == [{"a": 1}]
    assert parsed["content"] == "Hm.<tool_call>\nf(\n</tool_call>"


# --- looking at tokens ----------------------------------------------------------------------------------------------


def test_tokens_are_shown_by_kind() -> None:
    text = text_of("chatml")
    example = renderer_of("chatml").build_supervised_example([user("a\x1b é<"), assistant("naïve 🙂")])
    shown = show_tokens(example, text)
    assert [kind for _, _, kind in shown.tokens].count("trained special") == 1
    plain = str(show_tokens(example, text, colour=False))
    assert "⟦naïve 🙂<|im_end|>⟧" in plain and "\\x1b" in plain and "\x1b" not in plain
    assert plain.endswith(f"{len(example.tokens)} tokens, {sum(map(bool, example.weights))} trained")
    assert "\x1b[30;42mnaïve 🙂\x1b[0m\x1b[30;45m<|im_end|>\x1b[0m" in str(shown)
    page = shown._repr_html_()
    assert "&lt;|im_end|&gt;" in page and page.count("<span title=") == len(example.tokens)


def test_the_command_shows_a_conversation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small(MODELS["qwen3_instruct"].special).save(str(tmp_path / "tokenizer.json"))
    conversation = tmp_path / "conversation.json"
    conversation.write_text(json.dumps({"messages": to_openai(TALK), "tools": tools_to_openai(TOOLS)}))
    command = ["render", "--model", str(tmp_path), "--renderer", "qwen3_instruct", "--plain", str(conversation)]
    with pytest.raises(SystemExit) as ended:
        main(command)
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and "⟦A1<|im_end|>⟧" in shown and "search_web" in shown
    with pytest.raises(SystemExit):
        main([*command, "--prompt"])
    assert "⟦" not in capsys.readouterr().out


# --- other formats --------------------------------------------------------------------------------------------------

CALLING: list[Message] = [
    user("Q"),
    {
        **assistant("Hm."),
        "thinking": "T",
        "tool_calls": [{"id": "c1", "name": "f", "arguments": {"a": "é", "b": [1]}}],
    },
    {"role": "tool", "content": "R", "tool_call_id": "c1", "name": "f"},
]


def test_messages_go_to_the_formats_of_others_and_come_back() -> None:
    assert from_openai(to_openai(CALLING)) == CALLING == from_openai(to_hugging_face(CALLING))
    function = to_openai(CALLING)[1]["tool_calls"][0]
    assert function == {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": "é", "b": [1]}'}}
    assert to_hugging_face(CALLING)[1]["tool_calls"][0]["function"]["arguments"] == {"a": "é", "b": [1]}
    assert tools_from_openai(tools_to_openai(TOOLS)) == TOOLS


def test_what_others_allow_is_understood() -> None:
    parts: Any = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    given: list[Any] = [
        {"role": "developer", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": ""}}]},
    ]
    assert from_openai(given) == [
        system("ab"),
        {**assistant(""), "tool_calls": [{"id": "call_0", "name": "f", "arguments": {}}]},
    ]


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"role": "robot", "content": ""}, r"messages\[0\].*robot"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "parts of text"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "no JSON"),
        ({"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}, "a name and an object"),
    ],
)
def test_what_cannot_be_a_message_names_where_it_stands(message: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        from_openai([message])
    with pytest.raises(ValueError, match=r"tools\[0\]"):
        tools_from_openai([{"type": "function"}])


def test_the_page_on_renderers_names_them_all() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "renderers.md").read_text(encoding="utf-8")
    # Variants stand behind their family's name.
    assert [name for name in renderer_names() if f"`{name.removesuffix('_no_thinking')}`" not in page] == []


# --- tokenizers -----------------------------------------------------------------------------------------------------


def test_a_tokenizer_is_read_once_until_its_file_changes(tmp_path: Path) -> None:
    small(("<s>",)).save(str(tmp_path / "tokenizer.json"))
    first = as_text_tokenizer(tmp_path)
    assert as_text_tokenizer(str(tmp_path)) is first
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    again = as_text_tokenizer(tmp_path)
    assert again is not first and isinstance(again, TextTokenizer) and again.chat_template == "{{ messages }}"


def test_an_option_that_a_family_does_not_have_is_an_error() -> None:
    with pytest.raises(TypeError, match="effort"):
        get_renderer(text_of("gemma3"), "gemma3", effort="high")
    with pytest.raises(ValueError, match="low, medium, high"):
        from loragym.renderers import Harmony

        Harmony(text_of("gpt_oss_low"), effort="extreme")
