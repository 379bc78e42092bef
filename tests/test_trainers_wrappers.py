"""Wrapped and mixed environments are trained on and evaluated like any other."""

from __future__ import annotations

from collections import Counter
from typing import Any

import worlds  # noqa: F401
from loragym.agents import SamplingParams
from loragym.renderers import get_renderer
from loragym.trainers import Task, collect
from loragym.trainers.data import episode_metrics
from loragym.trainers.evaluation import held_out_tasks
from scripted_sampler import TOKENIZER, ScriptedSampler

RENDERER = get_renderer(TOKENIZER)
PARAMS = SamplingParams(max_tokens=16)
SUMS = {"environment": "loragym/Arithmetic-v0", "env_kwargs": {"high": 9, "few_shot": 0}, "name": "sums"}
RANKED = {"environment": "worlds:tests/Ranked-v0", "name": "ranked"}


def play(answer: Any, tasks: list[Task], group_size: int = 2) -> list[Any]:
    sampler = ScriptedSampler(answer)
    return collect(sampler, RENDERER, tasks, group_size, PARAMS, seed=(0,), context_length=10**6)


def test_the_policy_is_shown_what_a_wrapper_adds_and_stopped_where_it_ends() -> None:
    wrappers = [
        {"wrapper": "SystemPrompt", "text": "You are quick."},
        {"wrapper": "TurnLimit", "max_turns": 2},
        {"wrapper": "StopReasonReward", "episode": {"max_turns": -1}},
    ]
    kwargs = {"environment": "loragym/GuessNumber-v0", "env_kwargs": {"high": 99}, "wrappers": wrappers}
    (group,) = play(lambda prompt, params: "Guess: x", [Task("loragym/Wrapped-v0", kwargs, 0)])
    for episode in group.episodes:
        assert [round(turn.reward, 9) for turn in episode.turns] == [-0.1, -1.1]
        assert episode.stop_reason == "max_turns"
        assert "You are quick." in TOKENIZER.decode(episode.turns[0].prompt)


def test_a_mixture_has_metrics_by_source_and_group_rewards_of_the_source_that_has_them() -> None:
    tasks = [Task("loragym/Mixture-v0", {"environments": [SUMS, RANKED]}, seed) for seed in range(24)]
    groups = play(lambda prompt, params: "a" * (1 + params.seed % 5), tasks)
    metrics = episode_metrics(groups)
    assert metrics["env/sums/share"] + metrics["env/ranked/share"] == 1.0
    assert metrics["env/sums/correct"] == 0.0 and metrics["env/ranked/letters"] == 1.0
    sources = Counter()
    for group in groups:
        by_length = sorted(group.episodes, key=lambda episode: len(episode.messages[1]["content"]))
        name = "ranked" if "ranked/letters" in group.episodes[0].metrics else "sums"
        sources[name] += 1
        shorter, longer = (len(episode.messages[1]["content"]) for episode in by_length)
        assert [episode.group_reward for episode in by_length] == (
            [1.0, 0.0] if name == "ranked" and shorter < longer else [0.0, 0.0]
        )
    assert min(sources["sums"], sources["ranked"]) > 4


def test_held_out_problems_reach_through_a_mixture_and_wrappers() -> None:
    guess = {"environment": "loragym/GuessNumber-v0", "env_kwargs": {"high": 99}, "name": "guess"}
    tasks = held_out_tasks("loragym/Mixture-v0", {"environments": [SUMS, guess]}, 10)
    assert len(tasks) == 10
    assert {task.kwargs["split"] for task in tasks} == {"test"}
    assert all(task.options is not None for task in tasks)
    groups = play(lambda prompt, params: "7", tasks, group_size=1)
    asked = [group.episodes[0].messages[0]["content"] for group in groups]
    assert 3 <= sum(question.startswith("I think of") for question in asked) <= 7
    wrapped = {**SUMS, "env_kwargs": {"high": 9}, "wrappers": [{"wrapper": "TurnCost", "cost": 0.1}]}
    del wrapped["name"]
    tasks = held_out_tasks("loragym/Wrapped-v0", wrapped, 1000)
    alone = held_out_tasks("loragym/Arithmetic-v0", {"high": 9}, 1000)
    assert [task.options for task in tasks] == [task.options for task in alone]
