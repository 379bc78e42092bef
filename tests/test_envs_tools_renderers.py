"""Tools reach a model through every renderer, and its calls come back: the loop of a rollout, without a model."""

from __future__ import annotations

from typing import Any

import pytest
from loragym.envs.tools import demonstrate
from loragym.envs.tools.calculator import Calculator
from loragym.envs.tools.ledger import Ledger
from loragym.messages import Message, Reply, without_stop_reason
from loragym.renderers import Renderer
from renderers_all import MODELS, renderer_of, text_of

# Its prompt opens no thinking after the results of tools, which reading a reply cannot know: an answer that comes then
# is taken for thinking without an end.
CANNOT_ANSWER_AFTER_RESULTS = {"deepseek_v3.1_thinking"}
NATIVE = [
    name for name, model in MODELS.items() if model.tools and model.declares and name not in CANNOT_ANSWER_AFTER_RESULTS
]
SEVERAL = [name for name in NATIVE if MODELS[name].several]


def spoken(renderer: Renderer, conversation: list[Message], tools: Any) -> tuple[list[int], list[int]]:
    """The prompt before the last message, and the tokens with which a model would say it."""
    prompt = renderer.build_generation_prompt(conversation[:-1], tools)
    tokens, _ = renderer.build_supervised_example(conversation, tools)
    assert tokens[: len(prompt)] == prompt
    return prompt, tokens[len(prompt) :]


def play(name: str, env: Any, *, parse_with_tools: bool) -> float:
    """Plays the scripted solution as a rollout would: every reply goes through tokens."""
    renderer, text, model = renderer_of(name), text_of(name), MODELS[name]
    observation, _ = env.reset(seed=3)
    conversation: list[Message] = list(observation)
    total = 0.0
    for turn, planned in enumerate(env.solution()):
        if model.thinking and (turn == 0 or model.thinking_after_results):
            planned["thinking"] = "Let me see."
        prompt, tokens = spoken(renderer, [*conversation, without_stop_reason(planned)], env.tools)
        for spec in env.tool_specs:
            assert spec["name"] in text.decode(prompt)
        said: Reply = renderer.parse_response(tokens, env.tools if parse_with_tools else ())
        assert said["stop_reason"] == "stop"
        observation, reward, terminated, _, info = env.step(said)
        assert info["metrics"]["malformed"] == info["metrics"]["errors"] == 0
        conversation += [without_stop_reason(said), *observation]
        total += reward
        if not terminated:
            assert renderer.build_generation_prompt(conversation, env.tools), "the results can be shown"
    assert terminated
    return total


@pytest.mark.parametrize("parse_with_tools", [True, False], ids=["typed", "untyped"])
@pytest.mark.parametrize("name", NATIVE)
def test_a_solution_written_in_a_model_s_own_format_earns_its_reward(name: str, parse_with_tools: bool) -> None:
    reward = play(name, Calculator(), parse_with_tools=parse_with_tools)
    assert reward == pytest.approx(1.0)


@pytest.mark.parametrize("name", SEVERAL)
def test_several_calls_in_a_turn_go_through_as_well(name: str) -> None:
    # Without the schema, formats that write bare values turn amounts into numbers and names into text, or into neither.
    assert play(name, Ledger(), parse_with_tools=False) == pytest.approx(1.0)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_in_the_text_format_every_renderer_will_do(name: str) -> None:
    reward = play(name, Calculator(call_format="text"), parse_with_tools=True)
    assert reward == pytest.approx(1.0)


def test_a_demonstration_trains_on_what_the_assistant_says() -> None:
    conversation, tools = demonstrate(Calculator(), seed=0)
    prompt, tokens = spoken(renderer_of("qwen3_instruct"), conversation[:3], tools)
    assert "calculate" in text_of("qwen3_instruct").decode(prompt)
    assert '"expression"' in text_of("qwen3_instruct").decode(tokens)
