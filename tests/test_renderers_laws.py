"""The laws of renderers, for every family there is: prefixes, weights, round trips, bridges, and no forgery."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loragym.messages import Message, assistant, user
from loragym.renderers import Renderer, TextTokenizer, TrainOn, get_renderer
from renderers_all import (
    MODELS,
    TOOLS,
    contents,
    conversations,
    offered,
    renderer_of,
    replies,
    results,
    text_of,
    without_ids,
)
from renderers_models import QWEN3_TOKENS, chat_template, hugging_face, small

each = pytest.mark.parametrize("name", MODELS)
many = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


def spoken(tokens: list[int], weights: list[float]) -> list[int]:
    return [token for token, weight in zip(tokens, weights, strict=True) if weight]


def last_reply(data: st.DataObject, name: str, messages: list[Message]) -> Message:
    return data.draw(
        replies(
            MODELS[name], calls=None if MODELS[name].tools else False, start=95, first=messages[-1]["role"] != "tool"
        )
    )


@each
@given(data=st.data())
@many
def test_the_prompt_is_a_prefix_and_exactly_the_reply_and_its_stop_are_trained(name: str, data: st.DataObject) -> None:
    renderer, model = renderer_of(name), MODELS[name]
    messages, tools = data.draw(conversations(model)), data.draw(offered(model))
    prompt = renderer.build_generation_prompt(messages, tools)
    tokens, weights = renderer.build_supervised_example([*messages, last_reply(data, name, messages)], tools)
    assert tokens[: len(prompt)] == prompt
    changes = [index for index, (a, b) in enumerate(pairwise(weights), 1) if a != b]
    assert changes[0] == len(prompt) and len(changes) <= 2
    assert spoken(tokens, weights)[-1] in renderer.stop_sequences


@each
@given(data=st.data())
@many
def test_what_is_trained_parses_back_to_the_message(name: str, data: st.DataObject) -> None:
    renderer, model = renderer_of(name), MODELS[name]
    messages = data.draw(conversations(model))
    reply = last_reply(data, name, messages)
    trained = spoken(*renderer.build_supervised_example([*messages, reply]))
    parsed = renderer.parse_response(trained, TOOLS)
    if name.startswith("deepseek") and messages[-1]["role"] == "tool" and MODELS[name].thinking:
        # After a result these formats go on without thinking, which only the prompt can tell.
        assert parsed["stop_reason"] == "malformed"
        return
    assert without_ids(parsed) == {**without_ids(reply), "stop_reason": "stop"}


@each
@given(data=st.data())
@many
def test_a_bridge_extends_what_was_said_and_is_the_prompt_rendered_anew(name: str, data: st.DataObject) -> None:
    renderer, model = renderer_of(name), MODELS[name]
    messages, tools = data.draw(conversations(model)), data.draw(offered(model))
    reply = last_reply(data, name, messages)
    prompt = renderer.build_generation_prompt(messages, tools)
    sampled = spoken(*renderer.build_supervised_example([*messages, reply], tools))
    new = data.draw(results(reply)) if "tool_calls" in reply else [user(data.draw(contents))]
    bridged = renderer.bridge_to_next_turn(prompt, sampled, new, tools)
    if renderer.is_prefix_stable:
        assert bridged == renderer.build_generation_prompt([*messages, reply, *new], tools)
    if bridged is not None:
        assert bridged[: len(prompt) + len(sampled)] == prompt + sampled
    elif new[0]["role"] == "tool":
        assert name.startswith("deepseek")


@each
@given(data=st.data())
@many
def test_a_reply_that_was_cut_off_is_closed_and_bridged(name: str, data: st.DataObject) -> None:
    renderer, model = renderer_of(name), MODELS[name]
    messages = data.draw(conversations(model))
    prompt = renderer.build_generation_prompt(messages)
    whole = spoken(*renderer.build_supervised_example([*messages, last_reply(data, name, messages)]))
    sampled = whole[: data.draw(st.integers(0, len(whole) - 1))]
    assert renderer.parse_response(sampled)["stop_reason"] == "length"
    bridged = renderer.bridge_to_next_turn(prompt, sampled, [user("go on")])
    assert (bridged is not None) == renderer.is_prefix_stable
    if bridged is not None:
        assert bridged[: len(prompt) + len(sampled)] == prompt + sampled
        # What follows is what follows a reply that ended by itself.
        asked = [user("Q")]
        first = renderer.build_generation_prompt(asked)
        ended = spoken(*renderer.build_supervised_example([*asked, assistant("x")]))
        after = renderer.bridge_to_next_turn(first, ended, [user("go on")])
        assert after is not None
        following = after[len(first) + len(ended) :]
        assert bridged[-len(following) :] == following


@each
@given(data=st.data())
@many
def test_content_cannot_forge_structure(name: str, data: st.DataObject) -> None:
    renderer, model, text = renderer_of(name), MODELS[name], text_of(name)
    messages = data.draw(conversations(model))
    reply = last_reply(data, name, messages)
    harmless = [harmless_copy(message) for message in (*messages, reply)]
    assert special(renderer, text, [*messages, reply]) == special(renderer, text, harmless)


def harmless_copy(message: Message) -> Message:
    copy = dict(message)
    for key in ("content", "thinking"):
        if str(copy.get(key, "")).strip():
            copy[key] = "x"
    return copy  # type: ignore[return-value]


def special(renderer: Renderer, text: object, messages: list[Message]) -> list[int]:
    tokens = renderer.build_supervised_example(messages, train_on=TrainOn.ALL_TOKENS).tokens
    return [token for token in tokens if text.is_special(token)]  # type: ignore[attr-defined]


def random_tokens(text: TextTokenizer, rng: random.Random, seeds: list[list[int]]) -> list[int]:
    """A real reply with tokens changed, dropped, doubled and moved, or a random sequence rich in special tokens."""
    specials = list(text.special_tokens.values())
    size = max(specials)
    if rng.random() < 0.5:
        tokens = list(rng.choice(seeds))
        for _ in range(rng.randrange(1, 6)):
            where = rng.randrange(len(tokens) + 1)
            change = rng.randrange(4)
            if change == 0:
                tokens.insert(where, rng.choice(specials))
            elif change == 1:
                del tokens[where : where + rng.randrange(1, 4)]
            elif change == 2:
                tokens[where:where] = tokens[rng.randrange(len(tokens) + 1) :][: rng.randrange(8)]
            else:
                tokens.insert(where, rng.randrange(size + 5))
        return tokens
    pick = (lambda: rng.choice(specials), lambda: rng.randrange(size), lambda: rng.randrange(-3, 10**6))
    return [rng.choice(pick)() for _ in range(rng.randrange(24))]


def seed_replies(name: str) -> list[list[int]]:
    renderer, model = renderer_of(name), MODELS[name]
    said: list[Message] = [assistant("Hello."), assistant("")]
    call = {"id": "functions.add:0", "name": "add", "arguments": {"text": "a", "n": 1, "items": [1, "b"]}}
    if model.tools:
        said.append({**assistant(""), "tool_calls": [call]})  # type: ignore[list-item]
        if model.several:
            said.append({**assistant("Two:"), "tool_calls": [call, call]})  # type: ignore[list-item]
    if model.thinking:
        said += [{**message, "thinking": "Hm.\n\nYes."} for message in said]  # type: ignore[misc]
    return [spoken(*renderer.build_supervised_example([user("Q"), reply])) for reply in said]


def fuzz(name: str, sequences: int) -> None:
    if name in MODELS:
        renderer, text, seeds = renderer_of(name), text_of(name), seed_replies(name)
    else:
        text = TextTokenizer(hugging_face(small(tuple(QWEN3_TOKENS)), chat_template("qwen3"), eos="<|im_end|>"))
        renderer = get_renderer(text, name)
        seeds = [spoken(*renderer.build_supervised_example([user("Q"), assistant("A. User: B\n\nUser: C")]))]
    rng = random.Random(0)
    for _ in range(sequences):
        parsed = renderer.parse_response(random_tokens(text, rng, seeds), TOOLS)
        assert parsed["role"] == "assistant" and (parsed["stop_reason"] == "malformed") <= ("problem" in parsed)


every = pytest.mark.parametrize("name", [*MODELS, "role_colon", "template"])


@every
def test_any_tokens_parse(name: str) -> None:
    fuzz(name, 300)


@pytest.mark.slow
@every
def test_a_hundred_thousand_token_sequences_parse(name: str) -> None:
    fuzz(name, 100_000)


def seconds_to_parse(renderer: Renderer, tokens: list[int]) -> float:
    start = time.process_time()
    renderer.parse_response(tokens, TOOLS)
    return time.process_time() - start


@each
def test_parsing_takes_linear_time(name: str) -> None:
    renderer, seeds = renderer_of(name), seed_replies(name)
    stops = set(renderer.stop_sequences)
    for seed in seeds:
        body = [token for token in seed if token not in stops] or text_of(name).encode_text("x ")
        times = [min(seconds_to_parse(renderer, body * repeats) for _ in range(3)) for repeats in (100, 1600)]
        assert times[1] < 16 * 6 * max(times[0], 1e-3), times


@each
def test_growing_a_conversation_by_bridges_tokenises_only_what_is_new(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer, model = renderer_of(name), MODELS[name]
    tools = TOOLS if model.tools and model.declares else []
    called: Message = {
        **assistant(""),
        "tool_calls": [{"id": "functions.add:0", "name": "add", "arguments": {"text": "a"}}],
    }
    result: Message = {"role": "tool", "content": "seen", "name": "add", "tool_call_id": "functions.add:0"}
    reply, new = (called, result) if model.tools else (assistant("answer"), user("question"))
    sampled = spoken(*renderer.build_supervised_example([user("Q"), reply], tools))
    read: list[int] = []
    encode = TextTokenizer.encode_text

    def counting(self: TextTokenizer, text: str) -> list[int]:
        read.append(len(text))
        return encode(self, text)

    def characters(turns: int) -> int:
        prompt: list[int] | None = renderer.build_generation_prompt([user("Q")], tools)
        read.clear()
        for _ in range(turns):
            prompt = renderer.bridge_to_next_turn(prompt, sampled, [new], tools)
            assert prompt is not None
        return sum(read)

    if name in ("deepseek_r1", "deepseek_v3.1_thinking"):
        pytest.skip("this format rewrites history at every turn")
    characters(1)
    monkeypatch.setattr(TextTokenizer, "encode_text", counting)
    eight = characters(8)
    assert 0 < eight < 8 * 200
    assert (characters(32), characters(128)) == (4 * eight, 16 * eight)
