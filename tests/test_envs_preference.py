"""Replies scored one by one and compared within their group: every pattern counted by hand, and trained judges."""

from __future__ import annotations

import copy
import math
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loragym.agents import AdamParams, BaseModel, LoraConfig, LoraScorer, SamplingParams
from loragym.agents.losses import bradley_terry
from loragym.agents.testing import tiny_model
from loragym.envs import GroupScore
from loragym.envs.checks import checked_group_score, scores_groups
from loragym.envs.preference.overlap import word_overlap
from loragym.envs.preference.pairwise import Pairwise, Shorter
from loragym.envs.preference.scoring import RewardModel
from loragym.envs.preference.tournament import Pairing, play_all_pairs, play_ring, play_swiss
from loragym.messages import Message, assistant, reply, system, user
from loragym.renderers import get_renderer
from loragym.trainers import EpisodeGroup, Task, collect
from loragym.trainers.reward_models import JudgeRewardModel, ScalarRewardModel, scored_datum
from scripted_sampler import TOKENIZER, ScriptedSampler

Conversation = Sequence[Message]
RENDERER = get_renderer(TOKENIZER)
SKY = [{"prompt": "Why is the sky blue?", "reference": "Air scatters blue light."}]


def said(conversation: Conversation) -> str:
    return conversation[-1]["content"]


def digits(conversation: Conversation) -> float:
    """A scorer that a path can name."""
    return sum(character.isdigit() for character in said(conversation))


def all_digits(conversations: Sequence[Conversation]) -> list[float]:
    return [digits(conversation) for conversation in conversations]


def more_digits(first: Conversation, second: Conversation) -> float:
    """A comparer that a path can name: sure of itself by the difference."""
    return float(1 / (1 + math.exp(digits(second) - digits(first))))


class Judge:
    """Scores and compares many at once, and remembers how many came at a time."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        self.calls.append(len(conversations))
        return all_digits(conversations)

    def compare(self, pairs: Sequence[tuple[Conversation, Conversation]]) -> list[float]:
        self.calls.append(len(pairs))
        return [more_digits(first, second) for first, second in pairs]


JUDGE = Judge()


def say(env: gymnasium.Env[Any, Any], action: Any) -> tuple[float, dict[str, float]]:
    env.reset(seed=0)
    _, earned, terminated, _, info = env.step(action)
    assert terminated
    return float(earned), info["metrics"]


def group(env: gymnasium.Env[Any, Any], *replies: str) -> tuple[list[float], list[dict[str, float]]]:
    """What `score_group` gives for these replies."""
    opening, _ = env.reset(seed=0)
    score = checked_group_score(env, [[*opening, assistant(text)] for text in replies])
    assert score is not None
    return list(score.rewards), [dict(metrics) for metrics in score.metrics]


def rates(env: gymnasium.Env[Any, Any], *replies: str) -> list[float]:
    return group(env, *replies)[0]


# ---------------------------------------------------------------------------------------------------- scored one by one


@pytest.mark.parametrize(
    "scorer",
    [
        {"scorer": digits},
        {"scorer": "test_envs_preference:digits"},
        {"scorer": all_digits, "batched": True},
        {"scorer": Judge()},
        {"scorer": "test_envs_preference:JUDGE"},
    ],
    ids=["function", "path", "batched", "object", "path of an object"],
)
def test_a_scorer_of_any_kind_scores_at_once_or_with_the_group(scorer: dict[str, Any]) -> None:
    at_once = RewardModel(data=SKY, **scorer)
    assert say(at_once, "1, 2 or 3") == (3.0, {"score": 3.0, "format": 1.0})
    assert say(at_once, reply("1, 2 o", "length")) == (pytest.approx(1.9), {"score": 2.0, "format": 0.0})
    assert at_once.score_group([[user("x"), assistant("1")]]) is None

    with_group = RewardModel(data=SKY, when="group", **scorer)
    assert say(with_group, "1, 2 or 3") == (0.0, {"format": 1.0})
    assert say(with_group, reply("1", "malformed")) == (-0.1, {"format": 0.0})
    assert group(with_group, "1", "none", "12") == ([1, 0, 2], [{"score": 1}, {"score": 0}, {"score": 2}])


def test_a_group_is_scored_in_one_call() -> None:
    judge = Judge()
    env = RewardModel(data=SKY, scorer=judge, when="group")
    rates(env, "1", "2", "3", "4")
    assert judge.calls == [4]


def test_a_scorer_sees_plain_messages_with_the_reply_last() -> None:
    seen: list[Conversation] = []

    def look(conversation: Conversation) -> float:
        seen.append(conversation)
        return 0.0

    env = RewardModel(data=[[system("Rhyme."), user("Hi.")]], scorer=look, system_prompt="Be brief.")
    say(env, reply("Hel", "length"))
    assert seen == [(system("Be brief."), system("Rhyme."), user("Hi."), assistant("Hel"))]


def test_without_a_scorer_words_are_counted_that_the_reference_has() -> None:
    env = RewardModel(data=SKY)
    assert say(env, "Air scatters blue light!")[0] == 1.0
    # Two words shared, of three said and four wanted: 2 * 2 / 7.
    assert say(env, "Blue light, perhaps.")[0] == pytest.approx(4 / 7)
    assert word_overlap("blue blue", "Air scatters blue light.") == pytest.approx(2 / 6)
    assert word_overlap("", "") == 0.0
    with pytest.raises(ValueError, match="has no reference reply to measure by; pass scorer="):
        RewardModel(data=["Hi."])
    with pytest.raises(ValueError, match="has no reference reply to measure by; pass comparer="):
        Pairwise(data=["Hi."])
    with pytest.raises(ValueError, match="pass a different pattern="):
        Shorter(data=["Hi."], pattern="reference")


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "0.5", [0.5], np.zeros(2)])
@pytest.mark.parametrize("when", ["step", "group"])
def test_a_score_that_is_no_finite_number_is_refused(value: Any, when: Any) -> None:
    env = RewardModel(data=SKY, scorer=lambda _: value, when=when)
    with pytest.raises(ValueError, match=r"the scorer's score is .*; a finite number was expected"):
        say(env, "x") if when == "step" else rates(env, "x")


@pytest.mark.parametrize("value", [[1.0], [], None, 1.0, [1.0, 2.0, 3.0]])
def test_scores_that_are_not_one_for_each_conversation_are_refused(value: Any) -> None:
    env = RewardModel(data=SKY, scorer=lambda _: value, when="group", batched=True)
    with pytest.raises(ValueError, match=r"the scorer gave .* for 2 conversations"):
        rates(env, "x", "y")


def test_an_error_of_a_scorers_is_loud() -> None:
    def broken(*_: Any) -> float:
        raise ConnectionError("the judge is gone")

    for env in (RewardModel(data=SKY, scorer=broken, when="group"), Pairwise(data=SKY, comparer=broken, concurrency=3)):
        with pytest.raises(ConnectionError, match="the judge is gone"):
            rates(env, "x", "y")


@pytest.mark.parametrize(
    ("make", "error", "complaint"),
    [
        (lambda: RewardModel(scorer=7), TypeError, r"scorer is a function or an object with a method score\(\)"),
        (lambda: RewardModel(scorer="digits"), ValueError, "scorer is an import path such as"),
        (lambda: RewardModel(when="later"), ValueError, "when is one of .* got 'later'"),
        (lambda: Pairwise(comparer=[]), TypeError, r"comparer is a function or an object with a method comp"),
        (lambda: Pairwise(comparer="no_such_module:f"), ValueError, "there is no module 'no_such_module'"),
        (lambda: Pairwise(concurrency=0), ValueError, "concurrency is at least 1, got 0"),
        (lambda: Pairwise(pattern="league"), ValueError, "pattern is one of .* got 'league'"),
        (lambda: Pairwise(chunk=1), ValueError, "chunk is at least 2, and goes with pattern='all'; got chunk=1"),
        (lambda: Shorter(chunk=4, pattern="ring"), ValueError, "goes with pattern='all'; got chunk=4, pattern='ring'"),
        (lambda: Shorter(rounds=2), ValueError, "rounds is at least 1, and goes with pattern='swiss'"),
        (lambda: Shorter(rounds=0, pattern="swiss"), ValueError, "rounds is at least 1"),
    ],
)
def test_arguments_that_cannot_be_are_refused_at_once(
    make: Callable[[], Any], error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        make()


# --------------------------------------------------------------------------------------- who is compared with whom

STRENGTHS = [3, 1, 2, 0]


def stronger(strengths: Sequence[float], met: list[Pairing]) -> Any:
    """Compares by strength, and notes who met."""

    def compare(pairings: Sequence[Pairing]) -> list[float]:
        met.extend(pairings)
        return [0.5 + (strengths[a] > strengths[b]) / 2 - (strengths[a] < strengths[b]) / 2 for a, b in pairings]

    return compare


def test_all_pairs_are_everybody_against_everybody() -> None:
    met: list[Pairing] = []
    standings = play_all_pairs(4, stronger(STRENGTHS, met))
    assert met == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert [standings.win_rate(i) for i in range(4)] == pytest.approx([1, 1 / 3, 2 / 3, 0])
    assert standings.played == [3, 3, 3, 3]


def test_chunks_are_of_neighbours_and_nobody_is_left_alone() -> None:
    met: list[Pairing] = []
    standings = play_all_pairs(5, stronger([3, 1, 2, 0, 2], met), chunk=2)
    assert met == [(0, 1), (2, 3), (2, 4), (3, 4)]
    assert [standings.win_rate(i) for i in range(5)] == [1, 0, 0.75, 0, 0.75]
    assert standings.ties == [0, 0, 1, 0, 1]


def test_in_a_ring_each_meets_both_neighbours() -> None:
    met: list[Pairing] = []
    standings = play_ring(4, stronger(STRENGTHS, met))
    assert met == [(0, 1), (1, 2), (2, 3), (3, 0)]
    assert [standings.win_rate(i) for i in range(4)] == [1, 0, 1, 0]
    for size, expected in ((2, [(0, 1)]), (3, [(0, 1), (1, 2), (2, 0)])):
        met.clear()
        play_ring(size, stronger(STRENGTHS, met))
        assert met == expected


def test_in_swiss_rounds_winners_meet_winners() -> None:
    met: list[Pairing] = []
    standings = play_swiss(4, stronger(STRENGTHS, met))
    assert met == [(0, 1), (2, 3), (0, 2), (1, 3)]
    assert [standings.win_rate(i) for i in range(4)] == [1, 0.5, 0.5, 0]


def test_of_an_odd_number_one_sits_out_each_swiss_round() -> None:
    met: list[Pairing] = []
    standings = play_swiss(3, stronger(STRENGTHS, met))
    # The last sits out first; then the first, who won, meets who sat out.
    assert met == [(0, 1), (0, 2)]
    assert [standings.win_rate(i) for i in range(3)] == [1, 0, 0]
    met.clear()
    standings = play_swiss(3, stronger(STRENGTHS, met), rounds=9)
    # Whoever meets everybody is done: no more than all pairs.
    assert sorted(map(sorted, met)) == [[0, 1], [0, 2], [1, 2]]
    assert [standings.win_rate(i) for i in range(3)] == [1, 0, 0.5]


@given(st.integers(2, 17), st.randoms(use_true_random=False))
def test_nobody_meets_twice_and_wins_are_conserved(size: int, rng: Any) -> None:
    strengths = [rng.randrange(4) for _ in range(size)]
    for play in (play_all_pairs, play_ring, play_swiss):
        met: list[Pairing] = []
        standings = play(size, stronger(strengths, met))
        assert len({frozenset(pairing) for pairing in met}) == len(met)
        assert all(first != second for first, second in met)
        assert sum(standings.won) == len(met) and sum(standings.played) == 2 * len(met)
        assert min(standings.played) >= 1


@pytest.mark.parametrize(
    ("options", "asked", "expected"),
    [
        ({}, 6, [1, 1 / 3, 2 / 3, 0]),
        ({"chunk": 2}, 2, [1, 0, 1, 0]),
        ({"pattern": "ring"}, 4, [1, 0, 1, 0]),
        ({"pattern": "swiss"}, 4, [1, 0.5, 0.5, 0]),
        ({"pattern": "swiss", "rounds": 1}, 2, [1, 0, 1, 0]),
        ({"pattern": "reference"}, 4, [1, 0.5, 1, 0]),
    ],
)
def test_a_pattern_gives_the_rewards_that_a_hand_counts(
    options: dict[str, Any], asked: int, expected: list[float]
) -> None:
    judge, replies = Judge(), ("123", "1", "12", "none")
    data = [{"prompt": "Count!", "reference": "1"}]
    rewards, metrics = group(Pairwise(data=data, comparer=judge, hard=True, **options), *replies)
    assert rewards == pytest.approx(expected)
    assert sum(judge.calls) == 2 * asked  # both orders
    assert [entry["win_rate"] for entry in metrics] == rewards
    assert sum(entry["comparisons"] for entry in metrics) == asked * (1 if "reference" in options.values() else 2)

    one_order = Judge()
    assert rates(Pairwise(data=data, comparer=one_order, hard=True, both_orders=False, **options), *replies) == rewards
    assert sum(one_order.calls) == asked


def test_probabilities_count_unless_results_are_hard() -> None:
    soft = rates(Pairwise(data=SKY, comparer=more_digits), "12", "1")
    assert soft == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))])
    assert rates(Pairwise(data=SKY, comparer=more_digits, hard=True), "12", "1") == [1, 0]


def test_a_liking_for_the_first_place_cancels_out() -> None:
    def first(*_: Any) -> float:
        return 0.9

    assert rates(Pairwise(data=SKY, comparer=first), "a", "b") == pytest.approx([0.5, 0.5])
    assert rates(Pairwise(data=SKY, comparer=first, both_orders=False), "a", "b") == pytest.approx([0.9, 0.1])
    rewards, metrics = group(Pairwise(data=SKY, comparer=first, hard=True), "a", "b", "c")
    assert rewards == [0.5] * 3
    assert [entry["ties"] for entry in metrics] == [2, 2, 2]


def test_ties_are_half_a_win_and_are_counted() -> None:
    rewards, metrics = group(Pairwise(data=SKY, comparer=more_digits, hard=True), "1", "2", "none")
    assert rewards == [0.75, 0.75, 0]
    assert [entry["ties"] for entry in metrics] == [1, 1, 0]


def test_who_is_alone_is_compared_with_the_reference_if_there_is_one() -> None:
    env = Pairwise(data=[{"prompt": "Count!", "reference": "12"}], comparer=more_digits, hard=True)
    assert [rates(env, text) for text in ("123", "45", "1")] == [[1], [0.5], [0]]
    assert group(Pairwise(data=["Count!"], comparer=more_digits), "123") == (
        [0.5],
        [{"win_rate": 0.5, "comparisons": 0, "ties": 0}],
    )


def test_an_attempt_that_was_broken_off_before_it_spoke_counts_as_silence() -> None:
    env = Shorter(data=["Hi."])
    opening, _ = env.reset(seed=0)
    score = env.score_group([[*opening], [*opening, assistant("Hello.")]])
    assert list(score.rewards) == [0, 1]


def test_the_comparers_arguments_share_their_prompt_and_end_with_the_replies() -> None:
    seen: list[tuple[Conversation, Conversation]] = []

    def look(first: Conversation, second: Conversation) -> float:
        seen.append((first, second))
        return 0.5

    rates(Pairwise(data=["Hi."], comparer=look, system_prompt="Be brief."), "a", "b")
    prompt = (system("Be brief."), user("Hi."))
    assert seen == [
        ((*prompt, assistant("a")), (*prompt, assistant("b"))),
        ((*prompt, assistant("b")), (*prompt, assistant("a"))),
    ]


@pytest.mark.parametrize("value", [math.nan, -0.1, 1.5, None, "first", True])
def test_a_comparers_result_is_a_probability(value: Any) -> None:
    env = Pairwise(data=SKY, comparer=lambda *_: value)
    if value is True:
        assert rates(env, "a", "b") == [0.5, 0.5]
        return
    with pytest.raises(ValueError, match="the comparer"):
        rates(env, "a", "b")


@pytest.mark.parametrize("value", [[0.5], [], None, 0.5, [0.5] * 3])
def test_results_that_are_not_one_for_each_pair_are_refused(value: Any) -> None:
    env = Pairwise(data=SKY, comparer=lambda _: value, batched=True)
    with pytest.raises(ValueError, match=r"the comparer gave .* for 2 pairs"):
        rates(env, "a", "b")


@pytest.mark.parametrize(
    "comparer",
    [
        {"comparer": more_digits},
        {"comparer": more_digits, "concurrency": 4},
        {"comparer": "test_envs_preference:more_digits"},
        {"comparer": lambda pairs: [more_digits(*pair) for pair in pairs], "batched": True},
        {"comparer": Judge()},
        {"comparer": "test_envs_preference:JUDGE"},
    ],
    ids=["function", "threads", "path", "batched", "object", "path of an object"],
)
def test_a_comparer_of_any_kind_gives_the_same(comparer: dict[str, Any]) -> None:
    env = Pairwise(data=SKY, **comparer)
    expected = rates(Pairwise(data=SKY, comparer=more_digits), "123", "1", "12", "none")
    assert rates(env, "123", "1", "12", "none") == expected


def test_slow_comparisons_run_side_by_side_and_keep_their_order() -> None:
    active, most, lock = 0, 0, threading.Lock()
    all_here = threading.Barrier(4, timeout=20)

    def slow(first: Conversation, second: Conversation) -> float:
        nonlocal active, most
        with lock:
            active += 1
            most = max(most, active)
        all_here.wait()
        time.sleep(0.001 * len(said(first)))
        with lock:
            active -= 1
        return more_digits(first, second)

    # Four replies are twelve questions, in three handfuls of four.
    rewards = rates(Pairwise(data=SKY, comparer=slow, concurrency=4), "123", "1", "12", "none")
    assert most == 4
    assert rewards == rates(Pairwise(data=SKY, comparer=more_digits), "123", "1", "12", "none")


def test_without_a_comparer_the_reference_decides() -> None:
    assert rates(Pairwise(data=SKY), "Air scatters light.", "No idea.", "Nobody knows.") == [1, 0.25, 0.25]


# -------------------------------------------------------------------------------------------------------------- shorter


def test_the_shorter_reply_wins_and_silence_loses() -> None:
    rewards, _ = group(Shorter(data=["Hi."]), "aaa", " a \n", "aa", "", " \n")
    assert rewards == [0.5, 1, 0.75, 0.125, 0.125]
    assert say(Shorter(data=["Hi."]), " ab ") == (0.0, {"characters": 2.0, "format": 1.0})
    for nothing in ("", " \n\t"):
        assert say(Shorter(data=["Hi."]), nothing) == (-0.5, {"characters": 0.0, "format": 0.0})
    assert say(Shorter(data=["Hi."]), reply("Hel", "length"))[0] == -0.5


@given(st.lists(st.text(max_size=6), min_size=2, max_size=7))
def test_win_rates_of_all_pairs_follow_length(replies: list[str]) -> None:
    rewards = rates(Shorter(data=["Hi."]), *replies)
    assert sum(rewards) == pytest.approx(len(replies) / 2)
    length = [len(text.strip()) or math.inf for text in replies]
    for i, first in enumerate(length):
        # By hand: a win for each longer one, half for each equal one.
        others = [*length[:i], *length[i + 1 :]]
        assert rewards[i] == pytest.approx(
            sum((first < other) + (first == other) / 2 for other in others) / len(others)
        )


# ----------------------------------------------------------------------------------------------------- around and about


def test_all_of_them_have_the_splits_and_prompts_of_prompts() -> None:
    prompts = [f"What is {number}?" for number in range(30)]
    for make in (lambda **k: RewardModel(scorer=digits, **k), lambda **k: Pairwise(comparer=more_digits, **k), Shorter):
        train, test = (make(data=prompts, split=split) for split in ("train", "test"))
        assert train.num_problems + test.num_problems == 30
        _, info = test.reset(options={"index": 0})
        assert info["problem"] not in {train.reset(seed=seed)[1]["problem"] for seed in range(300)}


def test_wrappers_hand_group_scores_on() -> None:
    env = gymnasium.make(
        "loragym/Wrapped-v0",
        environment="loragym/Pairwise-v0",
        env_kwargs={"data": ["Hi."], "comparer": "test_envs_preference:more_digits", "hard": True},
        wrappers=[
            {"wrapper": "SystemPrompt", "text": "Be brief."},
            {"wrapper": "LengthBudget", "max_length": 100},
            {"wrapper": "TurnCost", "cost": 0.01},
        ],
    )
    assert scores_groups(env) and env.reset(seed=0)[0] == (system("Be brief."), user("Hi."))
    assert rates(env, "1", "12", "none") == [0.5, 1, 0]
    assert say(env, "1")[0] == pytest.approx(-0.01)


def test_what_was_named_by_a_path_survives_a_pickle() -> None:
    for env in (
        RewardModel(data=SKY, scorer="test_envs_preference:JUDGE", when="group"),
        Pairwise(data=SKY, comparer="test_envs_preference:more_digits"),
    ):
        assert rates(pickle.loads(pickle.dumps(env)), "1", "12") == rates(env, "1", "12")


# ------------------------------------------------------------------------------------------- played, by a trained judge


def play(sampler: Any, tasks: list[Task], size: int, **options: Any) -> list[EpisodeGroup]:
    params = SamplingParams(max_tokens=12)
    return collect(sampler, RENDERER, tasks, size, params, seed=(0,), context_length=512, **options)


def numbered() -> ScriptedSampler:
    """A sampler whose replies have 0 to 3 digits, told apart by their seeds."""
    return ScriptedSampler(lambda prompt, params: "7" * (int(params.seed or 0) % 4))


def test_a_group_that_is_played_gets_its_group_rewards_and_metrics() -> None:
    kwargs = {"data": SKY, "comparer": more_digits, "hard": True, "format_coef": 0.5}
    (found,) = play(numbered(), [Task("loragym/Pairwise-v0", kwargs, 0)], 6)
    count = [digits(episode.messages) for episode in found.episodes]
    assert len(set(count)) > 1
    for i, episode in enumerate(found.episodes):
        others = [*count[:i], *count[i + 1 :]]
        expected = sum((count[i] > other) + (count[i] == other) / 2 for other in others) / 5
        assert episode.group_reward == episode.reward == pytest.approx(expected)
        assert episode.metrics == {
            "format": 1.0,
            "win_rate": pytest.approx(expected),
            "comparisons": 5.0,
            "ties": float(others.count(count[i])),
        }


def test_a_judge_that_fails_is_named_with_its_task() -> None:
    def broken(_: Any) -> float:
        raise ConnectionError("the judge is gone")

    for when in ("step", "group"):
        task = Task("loragym/RewardModel-v0", {"data": SKY, "scorer": broken, "when": when}, 3)
        with pytest.raises(ConnectionError, match="the judge is gone") as raised:
            play(numbered(), [task], 2)
        assert "RewardModel-v0" in raised.value.__notes__[0] and "seed 3" in raised.value.__notes__[0]


def test_a_group_whose_judge_fails_is_asked_again_and_then_dropped_and_counted() -> None:
    fails = [0]

    def flaky(conversation: Conversation) -> float:
        if fails[0]:
            fails[0] -= 1
            raise ConnectionError("the judge is gone")
        return digits(conversation)

    kwargs = {"data": SKY, "scorer": flaky, "when": "group"}
    for failures, left, dropped, retried in ((1, 3, 0, 1), (2, 3, 0, 2), (3, 0, 3, 2)):
        fails[0] = failures
        (found,) = play(numbered(), [Task("loragym/RewardModel-v0", kwargs, 0)], 3, retries=2)
        assert (len(found.episodes), found.num_dropped, found.num_retries) == (left, dropped, retried)
        assert len(found.errors) == failures and all("the judge is gone" in error for error in found.errors)
        assert [episode.reward for episode in found.episodes] == [digits(e.messages) for e in found.episodes]


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return BaseModel(*tiny_model())


@pytest.fixture(scope="module")
def digit_scorer(base: BaseModel) -> LoraScorer:
    """A scalar reward model that was trained, on the policy's own base, to like digits better than letters."""
    scorer = base.add_scorer("digits", LoraConfig(rank=4))
    rng = np.random.default_rng(0)
    for _ in range(30):
        pairs = [("".join(rng.choice(list(kind), 4)) for kind in ("0123456789", "abcdefghij")) for _ in range(8)]
        data = [scored_datum([user("Go!"), assistant(text)], RENDERER, 512) for pair in pairs for text in pair]

        def loss(scores: list[torch.Tensor], _: Any) -> Any:
            flat = torch.cat(scores)
            return bradley_terry(flat[::2], flat[1::2], torch.ones(len(flat) // 2)), {}

        scorer.forward_backward(data, loss)
        scorer.optim_step(AdamParams(learning_rate=1e-2))
    return scorer


def test_a_trained_reward_model_scores_a_policys_group_on_the_same_frozen_base(
    base: BaseModel, digit_scorer: LoraScorer
) -> None:
    weights = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    judge = ScalarRewardModel(digit_scorer, RENDERER)
    calls: list[int] = []

    class Counting(ScalarRewardModel):
        def score(self, conversations: Sequence[Conversation]) -> list[float]:
            calls.append(len(conversations))
            return super().score(conversations)

    policy = base.add_lora("judged policy")
    kwargs = {"data": ["Go!", "Run!"], "scorer": Counting(digit_scorer, RENDERER), "when": "group", "split": None}
    tasks = [Task("loragym/RewardModel-v0", kwargs, seed) for seed in range(2)]
    groups = play(policy.sampler(), tasks, 4)
    assert calls == [4, 4]
    for found in groups:
        expected = judge.score([episode.messages for episode in found.episodes])
        assert len(set(expected)) > 1
        for episode, score in zip(found.episodes, expected, strict=True):
            assert episode.group_reward == episode.metrics["score"] == pytest.approx(score, abs=1e-5)
    go = [user("Go!")]
    liked, disliked = judge.score([[*go, assistant("4711")], [*go, assistant("abcd")]])
    assert liked > disliked + 1
    assert all(torch.equal(tensor, weights[name]) for name, tensor in base.model.state_dict().items())


@pytest.mark.parametrize("kind", ["scalar", "judge"])
def test_a_trained_model_of_either_kind_compares_a_policys_group(
    base: BaseModel, digit_scorer: LoraScorer, kind: str
) -> None:
    model: Any = (
        ScalarRewardModel(digit_scorer, RENDERER) if kind == "scalar" else JudgeRewardModel(None, base, RENDERER)
    )
    env = Pairwise(data=["Go!"], comparer=model)
    replies = ("4711", "abcd", "47ab")
    rewards = rates(env, *replies)
    conversations = [(user("Go!"), assistant(text)) for text in replies]
    for i, reward in enumerate(rewards):
        asked = [(conversations[i], other) for other in conversations if other is not conversations[i]]
        forward, backward = model.compare(asked), model.compare([(b, a) for a, b in asked])
        assert reward == pytest.approx(np.mean([(p + 1 - q) / 2 for p, q in zip(forward, backward, strict=True)]))
    if kind == "scalar":
        assert rewards[0] > rewards[2] > rewards[1]
    task = Task("loragym/Pairwise-v0", {"data": ["Go!"], "comparer": model}, 0)
    (found,) = play(numbered(), [task], 3)
    played = rates(env, *(said(episode.messages) for episode in found.episodes))
    assert [episode.group_reward for episode in found.episodes] == pytest.approx(played)


def test_a_group_score_may_be_a_plain_list() -> None:
    class Ranks(Shorter):
        def score_group(self, episodes: Sequence[Sequence[Message]]) -> GroupScore:
            return GroupScore(rewards=np.arange(len(episodes)))

    env = Ranks(data=["Hi."])
    env.reset(seed=0)
    score = checked_group_score(env, copy.deepcopy([[user("Hi."), assistant("a")]] * 3))
    assert score == GroupScore(rewards=[0.0, 1.0, 2.0], metrics=[])
