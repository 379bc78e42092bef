"""Episodes with tools are played by the trainer's own rollouts, to the token."""

from __future__ import annotations

from typing import Any

import pytest
from loragym.agents import SamplingParams
from loragym.envs.tools.calculator import Calculator
from loragym.envs.tools.ledger import Ledger
from loragym.renderers import get_renderer
from loragym.trainers import Task, collect
from scripted_sampler import TOKENIZER, ScriptedSampler

RENDERER = get_renderer(TOKENIZER)


def scripted(world: Any, seed: int) -> ScriptedSampler:
    """Says what the world's own solution for the seed says, turn by turn."""
    world.reset(seed=seed)
    replies = [reply["content"] for reply in world.solution()]
    return ScriptedSampler(lambda prompt, _: replies[prompt.count("<|im_start|>assistant") - 1])


@pytest.mark.parametrize(("env_id", "cls"), [("loragym/Calculator-v0", Calculator), ("loragym/Ledger-v0", Ledger)])
def test_a_scripted_model_solves_problems_with_tools_and_every_prompt_extends_the_last(env_id: str, cls: Any) -> None:
    kwargs: dict[str, Any] = {"call_format": "text"} | ({"orders": 1} if cls is Ledger else {})
    for seed in range(5):
        sampler = scripted(cls(**kwargs), seed)
        (group,) = collect(
            sampler,
            RENDERER,
            [Task(env_id, kwargs, seed)],
            2,
            SamplingParams(max_tokens=1000),
            seed=(0,),
            context_length=10**6,
        )
        for episode in group.episodes:
            assert episode.reward == pytest.approx(1.0)
            assert episode.stop_reason == "completed"
            assert episode.metrics["calls"] >= 1 and episode.metrics["errors"] == 0
            for before, after in zip(episode.turns, episode.turns[1:], strict=False):
                past = before.prompt + before.tokens
                assert after.prompt[: len(past)] == past


def test_a_model_that_never_stops_calling_is_truncated() -> None:
    call = '<tool_call>{"name": "calculate", "arguments": {"expression": "1 + 1"}}</tool_call>'
    (group,) = collect(
        ScriptedSampler(lambda *_: call),
        RENDERER,
        [Task("loragym/Calculator-v0", {"call_format": "text", "max_turns": 3}, 0)],
        1,
        SamplingParams(max_tokens=1000),
        seed=(0,),
        context_length=10**6,
    )
    (episode,) = group.episodes
    assert (len(episode.turns), episode.stop_reason) == (3, "max_turns")
    assert episode.reward == pytest.approx(-0.1)
