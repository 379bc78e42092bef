"""Episodes are played as they should be: turn by turn, in any order, with the mistakes of a world named."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import worlds
from loragym.agents import BaseModel, Completion, SamplingParams
from loragym.agents.testing import tiny_model
from loragym.envs import BadEnvironment
from loragym.renderers import get_renderer
from loragym.trainers import EpisodeGroup, Task, collect
from loragym.trainers.data import episode_metrics
from loragym.trainers.rollouts import EnvPool, sampling_seed
from scripted_sampler import END, TOKENIZER, ScriptedSampler, encode, guess

RENDERER = get_renderer(TOKENIZER)
PARAMS = SamplingParams(max_tokens=16)


def guessing(seed: int, **kwargs: Any) -> Task:
    return Task("loragym/GuessNumber-v0", {"high": 63, "max_turns": 40, **kwargs}, seed)


def play(sampler: Any, tasks: list[Task], group_size: int = 1, **options: Any) -> list[EpisodeGroup]:
    return collect(sampler, RENDERER, tasks, group_size, PARAMS, **{"seed": (0, 0), "context_length": 10**6} | options)


def test_a_later_prompt_extends_the_prompt_and_the_reply_before_it_to_the_token() -> None:
    groups = play(ScriptedSampler(guess), [guessing(seed) for seed in range(8)], group_size=4)
    episodes = [episode for group in groups for episode in group.episodes]
    assert max(len(episode.turns) for episode in episodes) > 3
    for episode in episodes:
        assert episode.reward == 1.0
        assert episode.stop_reason == "completed"
        assert episode.metrics["turns"] == len(episode.turns)
        for before, after in zip(episode.turns, episode.turns[1:], strict=False):
            past = before.prompt + before.tokens
            assert after.prompt[: len(past)] == past
            assert TOKENIZER.decode(after.prompt[len(past) :]).startswith("\n<|im_start|>user\nToo ")
        # The conversation that is kept is the one that was tokenised.
        told = [message for message in episode.messages if message["role"] != "user"]
        assert [message["content"] for message in told[1:]] == [
            TOKENIZER.decode(turn.tokens[:-1]) for turn in episode.turns
        ]


def test_what_was_sampled_is_never_tokenised_again() -> None:
    # Half a character: as text it is another one, whose tokens are others.
    half = encode("é")[:1]
    assert encode(TOKENIZER.decode(half)) != half
    (group,) = play(ScriptedSampler(lambda *_: half), [Task("tests/Letters-v0", {"turns": 3}, 0)])
    first, second, third = group.episodes[0].turns
    assert second.prompt[: len(first.prompt) + 2] == [*first.prompt, *half, END]
    assert third.prompt[: len(second.prompt) + 2] == [*second.prompt, *half, END]


def test_a_turn_keeps_the_reward_that_the_world_gave_for_it() -> None:
    first_wrong = ScriptedSampler(lambda p, params: guess(p, params) if "not a guess" in p else "no idea")
    ((group,),) = ([play(first_wrong, [guessing(0)])],)
    (episode,) = group[0].episodes
    assert [turn.reward for turn in episode.turns] == [-0.1] + [0.0] * (len(episode.turns) - 2) + [1.0]
    assert episode.reward == pytest.approx(0.9)
    assert episode.metrics["malformed"] == 1


def test_a_reply_that_was_cut_off_reaches_the_world_as_cut_off() -> None:
    (group,) = play(ScriptedSampler(lambda *_: "Guess: 5", cut_off=8), [guessing(0, max_turns=2)])
    (episode,) = group.episodes
    # All of "Guess: 5" was said, and none of it counts, for it did not end.
    assert [m["content"] for m in episode.messages if m["role"] == "assistant"] == ["Guess: 5", "Guess: 5"]
    assert episode.metrics == {"correct": 0.0, "turns": 2.0, "malformed": 2.0}
    assert episode.stop_reason == "max_turns"
    assert episode.turns[1].prompt[: len(episode.turns[0].prompt) + 8][-8:] == encode("Guess: 5")


def test_the_samplers_word_that_a_reply_was_cut_off_counts_even_if_its_tokens_look_finished() -> None:
    class SaysCutOff(ScriptedSampler):
        def step(self) -> dict[int, list[Completion]]:
            return {ticket: [replace(c, stop_reason="length")] for ticket, (c,) in super().step().items()}

    (group,) = play(SaysCutOff(lambda *_: "Guess: 5"), [guessing(0, max_turns=1)])
    assert group.episodes[0].turns[0].tokens[-1] == END
    assert group.episodes[0].metrics["malformed"] == 1


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_the_order_in_which_replies_finish_changes_nothing(at_once: int) -> None:
    tasks = [guessing(seed) for seed in range(5)]
    expected = play(ScriptedSampler(guess), tasks, group_size=3)
    for shuffle in range(3):
        assert play(ScriptedSampler(guess, order=random.Random(shuffle), at_once=at_once), tasks, 3) == expected


def test_the_same_seed_gives_the_same_episodes_however_many_are_sampled_at_once() -> None:
    policy = BaseModel(*tiny_model()).add_lora("policy")
    tasks = [Task("tests/Letters-v0", {"turns": 3}, seed) for seed in range(4)]

    def played(seed: tuple[int, ...], max_concurrent: int) -> list[EpisodeGroup]:
        return play(policy.sampler(max_concurrent=max_concurrent), tasks, 3, seed=seed)

    expected = played((7, 1), 256)
    for max_concurrent in (1, 5):
        groups = played((7, 1), max_concurrent)
        for group, other in zip(groups, expected, strict=True):
            assert [e.messages for e in group.episodes] == [e.messages for e in other.episodes]
            assert group.rewards == other.rewards
            for episode, twin in zip(group.episodes, other.episodes, strict=True):
                assert [t.tokens for t in episode.turns] == [t.tokens for t in twin.turns]
                for turn, same in zip(episode.turns, twin.turns, strict=True):
                    assert turn.logprobs == pytest.approx(same.logprobs, abs=1e-4)
    assert played((7, 2), 256)[0].episodes[0].messages != expected[0].episodes[0].messages


def test_a_group_is_one_problem_played_several_times() -> None:
    tasks = [Task("loragym/Arithmetic-v0", {"high": 1000}, seed) for seed in range(6)]
    sampler = ScriptedSampler(lambda _, params: str(params.seed))
    groups = play(sampler, tasks, group_size=5)
    questions = [{episode.messages[-2]["content"] for episode in group.episodes} for group in groups]
    assert all(len(asked) == 1 for asked in questions)
    assert len(set.union(*questions)) == 6
    # Every reply draws from its own random numbers, and what ends it is the renderer's.
    assert len({params.seed for params in sampler.seen}) == 30
    assert {params.stop for params in sampler.seen} == {tuple(RENDERER.stop_sequences)}


def test_every_reply_of_an_episode_draws_from_its_own_random_numbers() -> None:
    sampler = ScriptedSampler(lambda *_: "a")
    play(sampler, [Task("tests/Letters-v0", {"turns": 3}, seed) for seed in range(2)], group_size=2)
    assert len({params.seed for params in sampler.seen}) == 2 * 2 * 3


def test_sampling_seeds_depend_on_every_coordinate_and_their_order() -> None:
    assert sampling_seed(1, 2, 3) == sampling_seed(1, 2, 3)
    assert len({sampling_seed(a, b, c) for a in range(10) for b in range(10) for c in range(10)}) == 1000


def test_rewards_of_the_whole_group_are_added_to_each_episodes_own() -> None:
    lengths = iter([3, 1, 2])
    sampler = ScriptedSampler(lambda *_: "a" * next(lengths))
    (group,) = play(sampler, [Task("tests/Ranked-v0", {}, 0)], group_size=3)
    assert [episode.group_reward for episode in group.episodes] == [0.0, 2.0, 1.0]
    assert group.rewards == [1.0, 3.0, 2.0]


def test_group_rewards_that_do_not_fit_the_group_are_refused() -> None:
    with pytest.raises(BadEnvironment, match=r"tests/Miscounts-v0: score_group gave 2 rewards for 3 episodes"):
        play(ScriptedSampler(lambda *_: "a"), [Task("tests/Miscounts-v0", {}, 0)], group_size=3)


def test_a_world_that_breaks_the_contract_is_named_with_the_task() -> None:
    with pytest.raises(BadEnvironment, match=r"step\(\) returned a tuple of 3; expected a tuple of 5") as caught:
        play(ScriptedSampler(lambda *_: "a"), [Task("tests/WrongShape-v0", {}, 11)])
    (note,) = caught.value.__notes__
    assert note == "in an episode of tests/WrongShape-v0 with {}, seed 11, options None, after 0 replies"


def test_a_worlds_own_exception_comes_through_with_the_task() -> None:
    with pytest.raises(ZeroDivisionError, match="the world is broken") as caught:
        play(ScriptedSampler(lambda *_: "a"), [Task("tests/Explodes-v0", {"turns": 3}, 12)])
    assert caught.value.__notes__ == [
        "in an episode of tests/Explodes-v0 with {'turns': 3}, seed 12, options None, after 1 replies"
    ]


@pytest.mark.parametrize("retries", [None, 1])
def test_a_conversation_that_cannot_be_rendered_is_an_error_that_says_why_and_names_the_task(
    retries: int | None,
) -> None:
    task, why = Task("loragym/Calculator-v0", {}, 5), "tools were offered, but the renderer 'chatml' has no tool format"
    sampler = ScriptedSampler(lambda *_: pytest.fail("there is no prompt to sample from"))
    if retries is None:
        with pytest.raises(ValueError, match=why) as caught:
            play(sampler, [task])
        assert "in an episode of loragym/Calculator-v0 with {}, seed 5" in caught.value.__notes__[0]
        return
    (group,) = play(sampler, [task], group_size=2, retries=retries)
    assert (group.episodes, group.num_dropped, group.num_retries) == ([], 2, 2)
    assert all(why in error and "seed 5" in error for error in group.errors)
    with pytest.raises(RuntimeError, match=f"every episode ended with an error, 4 in all; the first: .*{why}"):
        episode_metrics([group])


def test_an_episode_that_outgrows_the_context_ends_there_and_keeps_its_turns() -> None:
    (group,) = play(ScriptedSampler(lambda *_: "abc"), [Task("tests/Letters-v0", {"turns": 50}, 0)], context_length=200)
    (episode,) = group.episodes
    assert episode.stop_reason == "context"
    assert 2 <= len(episode.turns) < 10
    assert len(episode.turns[-1].prompt) < 200
    # One more turn would not have fitted.
    growth = len(episode.turns[-1].prompt) - len(episode.turns[-2].prompt)
    assert len(episode.turns[-1].prompt) + growth >= 200
    assert episode.reward == len(episode.turns)


def test_an_opening_beyond_the_context_is_an_error_that_names_the_task() -> None:
    base = BaseModel(*tiny_model(max_position_embeddings=32))
    task = Task("loragym/Arithmetic-v0", {"few_shot": 4}, 3)
    with pytest.raises(ValueError, match=r"context of .* is 32") as caught:
        play(base.sampler(), [task], context_length=base.context_length)
    assert "loragym/Arithmetic-v0 with {'few_shot': 4}, seed 3" in caught.value.__notes__[0]


def test_environments_are_made_once_and_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    init = worlds.Letters.__init__
    monkeypatch.setattr(worlds.Letters, "__init__", lambda self, **kw: (made.append(kw), init(self, **kw))[1])
    pool = EnvPool()
    one, two = Task("tests/Letters-v0", {"turns": 1}, 0), Task("tests/Letters-v0", {"turns": 2}, 0)
    sampler = ScriptedSampler(lambda *_: "a")
    play(sampler, [one, one], group_size=3, pool=pool)
    assert made == [{"turns": 1}] * 6
    groups = play(sampler, [one, two], group_size=3, pool=pool)
    assert made[6:] == [{"turns": 2}] * 3
    assert [len(group.episodes[0].turns) for group in groups] == [1, 2]
