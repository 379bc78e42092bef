"""The sampler: what it draws is the learner's distribution, and a request gets the same tokens in any company."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from chances import chance_of_at_least, truncated_by_hand
from hypothesis import given, settings
from hypothesis import strategies as st
from loragym.agents import AdamParams, Completion, Datum, LoraConfig, LoraPolicy, SamplingParams, TorchSampler
from tiny_engine import (
    FAMILIES,
    count_tokens,
    eager,
    family_base,
    random_tokens,
    reference_logits,
    stirred_policy,
    tiny_base,
)

PROMPTS = [random_tokens(i, 7) + random_tokens(10 + i, 3 * i + 1) for i in (0, 0, 1, 2, 3)] + [random_tokens(0, 7)]
"""A repeated prompt, one that begins another, and lengths from 7 to 17."""


@lru_cache
def family_policy(family: str) -> LoraPolicy:
    return stirred_policy(family_base(family))


@pytest.fixture(scope="module")
def policy() -> LoraPolicy:
    return family_policy("llama")


def learner_difference(
    policy: LoraPolicy, prompts: Sequence[list[int]], completions: list[list[Completion]], temperature: float
) -> np.ndarray:
    """Sampler's minus learner's log-probability of every sampled token."""
    sampled = [(p, c) for p, group in zip(prompts, completions, strict=True) for c in group]
    data = [
        Datum(
            tokens=[*p, *c.tokens][:-1],
            targets=[*p, *c.tokens][1:],
            mask=[False] * (len(p) - 1) + [True] * len(c.tokens),
        )
        for p, c in sampled
    ]
    scored = policy.forward(data, temperature=temperature).logprobs
    return np.concatenate([np.asarray(c.logprobs) - s[len(p) - 1 :] for (p, c), s in zip(sampled, scored, strict=True)])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_are_the_learners(family: str, temperature: float) -> None:
    """24 tokens: longer than the sliding windows, so that these move over prompt and reply alike."""
    policy = family_policy(family)
    params = SamplingParams(max_tokens=24, temperature=temperature, stop=(), seed=1)
    completions = policy.sampler().sample(PROMPTS, 5, params)
    difference = learner_difference(policy, PROMPTS, completions, temperature)
    assert len(difference) == len(PROMPTS) * 5 * 24
    assert np.abs(difference).max() < 1e-4


@pytest.mark.parametrize("rank", [4, 32])
def test_in_bfloat16_logprobs_are_the_learners_on_average(rank: int) -> None:
    """Rounding differs with the shape of the batch. Random weights are a hard case: their logits spread over +-8."""
    policy = stirred_policy(tiny_base(dtype=torch.bfloat16), rank=rank)
    completions = policy.sampler().sample(PROMPTS, 8, SamplingParams(max_tokens=24, stop=(), seed=1))
    difference = learner_difference(policy, PROMPTS, completions, 1.0)
    assert np.abs(difference).mean() < 0.015
    assert abs(difference.mean()) < 0.002


def test_the_first_samples_do_not_depend_on_how_many_are_asked_for(policy: LoraPolicy) -> None:
    params = SamplingParams(max_tokens=6, seed=3)
    (few,), (many,) = (policy.sampler().sample([PROMPTS[0]], n, params) for n in (2, 9))
    assert tokens_of(few) == tokens_of(many[:2])


def tokens_of(completions: Sequence[Completion]) -> list[tuple[list[int], str]]:
    return [(c.tokens, c.stop_reason) for c in completions]


def alone(policy: LoraPolicy, prompt: list[int], params: SamplingParams, n: int) -> list[tuple[list[int], str]]:
    sampler = policy.sampler(max_concurrent=1)
    ticket = sampler.submit(prompt, params, n)
    done: dict[int, list[Completion]] = {}
    while sampler.pending:
        done |= sampler.step()
    return tokens_of(done[ticket])


REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 6),  # steps to wait before it is submitted
        st.integers(0, len(PROMPTS) - 1),
        st.integers(1, 5),  # samples
        st.builds(
            SamplingParams,
            max_tokens=st.integers(1, 9),
            temperature=st.sampled_from([0.0, 0.3, 1.0, 1.5]),
            top_k=st.sampled_from([0, 2]),
            # Half of all tokens stop: rows leave the batch at all times.
            stop=st.sampled_from([(), tuple(range(128))]),
            seed=st.integers(0, 3),
        ),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(REQUESTS, st.sampled_from([1, 3, 256]), st.sampled_from([8, 4096]), st.sampled_from(["llama", "mistral"]))
def test_a_request_gets_the_same_tokens_alone_and_in_any_company(
    requests: list[tuple[int, int, int, SamplingParams]], max_concurrent: int, prefill_tokens: int, family: str
) -> None:
    """Requests come while others run, share prompts, part, stop and leave; cold and truncated ones part late."""
    policy = family_policy(family)
    sampler = policy.sampler(max_concurrent=max_concurrent, prefill_tokens=prefill_tokens)
    tickets, done = [], {}
    for wait, prompt, n, params in requests:
        for _ in range(wait):
            done |= sampler.step()
        tickets.append(sampler.submit(PROMPTS[prompt], params, n))
    while sampler.pending:
        done |= sampler.step()
    for ticket, (_, prompt, n, params) in zip(tickets, requests, strict=True):
        assert tokens_of(done[ticket]) == alone(policy, PROMPTS[prompt], params, n)
        assert len(done[ticket]) == n


@pytest.mark.parametrize("max_concurrent", [1, 3, 256])
def test_a_batch_gives_the_same_whatever_fits_at_once(policy: LoraPolicy, max_concurrent: int) -> None:
    params = SamplingParams(max_tokens=10, seed=4)
    expected = [tokens_of(group) for group in policy.sampler().sample(PROMPTS, 4, params)]
    got = policy.sampler(max_concurrent=max_concurrent).sample(PROMPTS, 4, params)
    assert [tokens_of(group) for group in got] == expected


def test_never_more_samples_are_under_way_than_allowed(policy: LoraPolicy) -> None:
    sampler = policy.sampler(max_concurrent=3)
    for i in range(4):
        sampler.submit(PROMPTS[0], SamplingParams(max_tokens=5, stop=(), seed=i), 2)
    most = 0
    while sampler.pending:
        sampler.step()
        most = max(most, sum(len(row.samples) for row in sampler._rows))
    assert most in (2, 3)


def test_a_request_that_comes_later_starts_before_the_earlier_ones_are_done(policy: LoraPolicy) -> None:
    sampler = policy.sampler()
    long = sampler.submit(PROMPTS[0], SamplingParams(max_tokens=60, stop=(), seed=0), 2)
    for _ in range(5):
        assert sampler.step() == {}
    short = sampler.submit(PROMPTS[1], SamplingParams(max_tokens=2, stop=(), seed=0))
    finished: list[int] = []
    while sampler.pending:
        finished += sampler.step()
    assert finished == [short, long]


def test_samples_differ_from_one_another_and_repeated_prompts_do_too(policy: LoraPolicy) -> None:
    first, second = policy.sampler().sample([PROMPTS[0]] * 2, 8, SamplingParams(max_tokens=12, stop=(), seed=0))
    assert len({tuple(c.tokens) for c in first + second}) == 16


def test_without_a_seed_every_call_is_new_and_with_one_it_repeats(policy: LoraPolicy) -> None:
    sampler = policy.sampler()
    fresh = [sampler.sample([PROMPTS[0]], 1, SamplingParams(max_tokens=12, stop=())) for _ in range(3)]
    fresh.append(policy.sampler().sample([PROMPTS[0]], 1, SamplingParams(max_tokens=12, stop=())))
    assert len({tuple(c.tokens) for ((c,),) in fresh}) == 4
    seeded = SamplingParams(max_tokens=12, stop=(), seed=9)
    assert sampler.sample([PROMPTS[0]], 2, seeded) == sampler.sample([PROMPTS[0]], 2, seeded)


def test_sampling_leaves_torchs_random_numbers_alone(policy: LoraPolicy) -> None:
    before = torch.get_rng_state()
    policy.sampler().sample(PROMPTS, 2, SamplingParams(max_tokens=3))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_transformers_own(family: str) -> None:
    policy = family_policy(family)
    params = SamplingParams(max_tokens=20, temperature=0.0, stop=())
    for prompt, (got,) in zip(PROMPTS, policy.sampler().sample(PROMPTS, 1, params), strict=True):
        with eager(policy.base) as model, policy.base.switch.using(policy.adapter):
            whole = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                max_new_tokens=20,
                eos_token_id=None,
                pad_token_id=0,
            )
        assert got.tokens == whole[0, len(prompt) :].tolist()
        assert got.logprobs == [0.0] * 20


def small_vocabulary_policy() -> LoraPolicy:
    base = tiny_base(vocab_size=6, eos_token_id=None, pad_token_id=None, initializer_range=0.05)
    return stirred_policy(base)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=1.5),
        SamplingParams(top_k=3),
        SamplingParams(top_p=0.8),
        SamplingParams(temperature=0.7, top_k=4, top_p=0.9),
    ],
    ids=str,
)
@pytest.mark.parametrize("by", ["samples", "seeds"])
def test_frequencies_of_token_pairs_are_the_models(params: SamplingParams, by: str) -> None:
    """Pairs, not tokens: the second draw must follow the first one's logits and be independent of its number."""
    policy, prompt = small_vocabulary_policy(), [1, 4, 2]

    def following(tokens: list[int]) -> np.ndarray:
        logits = reference_logits(policy.base, tokens, policy.adapter)[-1].numpy() / params.temperature
        return truncated_by_hand(np.exp(logits) / np.exp(logits).sum(), params)

    expected = np.concatenate([p * following([*prompt, t]) for t, p in enumerate(following(prompt))])
    params = replace(params, max_tokens=2, stop=(), seed=0)
    sampler = policy.sampler(max_concurrent=4000)
    if by == "samples":
        (completions,) = sampler.sample([prompt], 4000, params)
    else:
        for seed in range(1500):
            sampler.submit(prompt, replace(params, seed=seed))
        completions = []
        while sampler.pending:
            completions += [c for (c,) in sampler.step().values()]
    counts = np.bincount([6 * c.tokens[0] + c.tokens[1] for c in completions], minlength=36)
    assert chance_of_at_least(counts, expected) > 1e-3
    wrong = np.roll(expected, 7)
    assert (wrong[counts > 0] == 0).any() or chance_of_at_least(counts, wrong) < 1e-9, "this test would notice"


@pytest.fixture(scope="module")
def talker() -> LoraPolicy:
    """Has learnt one text by heart, a token per letter."""
    policy = tiny_base().add_lora("talker", LoraConfig(rank=8))
    tokens = [*TEXT.encode(), 257, *AFTER_THE_END.encode()]
    for _ in range(60):
        policy.forward_backward([Datum.supervised(tokens, [1.0] * len(tokens))], normalization="token")
        policy.optim_step(AdamParams(learning_rate=0.01))
    (completion,) = policy.sampler().sample([[ord("Q")]], 1, SamplingParams(max_tokens=200, stop=(), temperature=0))[0]
    assert completion.tokens[: len(tokens) - 1] == tokens[1:], "not learnt by heart"
    return policy


TEXT = "Q: why?\n\nBecause.\n\nUser: é\n\nUser: so?"
AFTER_THE_END = " and on"


def say(talker: LoraPolicy, **params: Any) -> tuple[str, str]:
    settings = {"max_tokens": 100, "temperature": 0.0, **params}
    (completion,) = talker.sampler().sample([[ord("Q")]], 1, SamplingParams(**settings))[0]
    assert len(completion.logprobs) == len(completion.tokens)
    return talker.base.tokenizer.decode(completion.tokens), completion.stop_reason


def test_the_models_own_end_stops_by_default_and_belongs_to_the_sample(talker: LoraPolicy) -> None:
    assert say(talker) == (TEXT[1:] + "<|im_end|>", "stop")


def test_no_stop_at_all_runs_through_the_models_own_end(talker: LoraPolicy) -> None:
    text, reason = say(talker, stop=())
    assert text.startswith(TEXT[1:] + "<|im_end|>" + AFTER_THE_END) and reason == "length"


@pytest.mark.parametrize("temperature", [0.0, 0.2])
def test_a_stop_string_split_over_many_tokens_stops_with_its_last_and_stays(
    talker: LoraPolicy, temperature: float
) -> None:
    assert say(talker, stop=("\n\nUser:",), temperature=temperature, seed=0) == (": why?\n\nBecause.\n\nUser:", "stop")


def test_the_first_of_several_stop_strings_counts(talker: LoraPolicy) -> None:
    assert say(talker, stop=("so?", "\n\n")) == (": why?\n\n", "stop")


def test_a_stop_string_may_be_a_letter_of_several_tokens_or_a_special_token(talker: LoraPolicy) -> None:
    assert say(talker, stop=("é",)) == (": why?\n\nBecause.\n\nUser: é", "stop")
    assert say(talker, stop=("<|im_end|>",)) == (TEXT[1:] + "<|im_end|>", "stop")


def test_a_stop_string_of_the_prompt_does_not_count(talker: LoraPolicy) -> None:
    assert say(talker, stop=("Q",), max_tokens=10) == (TEXT[1:11], "length")


def test_a_stop_token_stops_and_stays(talker: LoraPolicy) -> None:
    assert say(talker, stop=(ord("B"), ord("U"))) == (": why?\n\nB", "stop")


def test_a_stop_on_the_last_allowed_token_is_a_stop(talker: LoraPolicy) -> None:
    assert say(talker, max_tokens=7, stop=("?",)) == (": why?", "stop")
    assert say(talker, max_tokens=6, stop=("?",)) == (": why?", "stop")
    assert say(talker, max_tokens=5, stop=("?",)) == (": why", "length")


@pytest.mark.parametrize("max_tokens", [1, 2, 33])
def test_max_tokens_is_the_most_there_are(policy: LoraPolicy, max_tokens: int) -> None:
    (completion,) = policy.sampler().sample([PROMPTS[0]], 1, SamplingParams(max_tokens=max_tokens, stop=()))[0]
    assert (len(completion.tokens), completion.stop_reason) == (max_tokens, "length")


def test_the_context_ends_a_sample() -> None:
    policy = stirred_policy(tiny_base(max_position_embeddings=32))
    prompts = [random_tokens(i, length) for i, length in enumerate((28, 31, 10))]
    completions = policy.sampler().sample(prompts, 2, SamplingParams(max_tokens=100, stop=(), seed=0))
    assert [len(c.tokens) for group in completions for c in group] == [4, 4, 1, 1, 22, 22]
    assert {c.stop_reason for group in completions for c in group} == {"length"}
    assert np.abs(learner_difference(policy, prompts, completions, 1.0)).max() < 1e-4


def test_a_call_to_sample_hands_out_no_results_of_others_and_loses_none(policy: LoraPolicy) -> None:
    sampler = policy.sampler()
    params = SamplingParams(max_tokens=3, stop=(), seed=5)
    early = sampler.submit(PROMPTS[1], params)
    late = sampler.submit(PROMPTS[2], replace(params, max_tokens=30))
    (mine,) = sampler.sample([PROMPTS[0]], 1, replace(params, max_tokens=10))
    assert len(mine[0].tokens) == 10
    done = sampler.step()
    assert list(done) == [early] and tokens_of(done[early]) == alone(policy, PROMPTS[1], params, 1)
    while sampler.pending:
        done |= sampler.step()
    assert len(done[late][0].tokens) == 30


def test_the_base_itself_samples_without_any_adapter() -> None:
    base = tiny_base()
    (completion,) = base.sampler().sample([PROMPTS[0]], 1, SamplingParams(max_tokens=12, stop=(), seed=0))[0]
    logits = reference_logits(base, [*PROMPTS[0], *completion.tokens][:-1])[len(PROMPTS[0]) - 1 :]
    expected = logits.log_softmax(-1)[torch.arange(12), completion.tokens]
    assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_samples_that_agree_so_far_are_computed_once(policy: LoraPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = count_tokens(monkeypatch)
    policy.sampler().sample([PROMPTS[0]], 16, SamplingParams(max_tokens=4, temperature=0.0, stop=()))
    assert computed == [len(PROMPTS[0]), 1, 1, 1]


def test_nothing_to_sample_is_no_samples(policy: LoraPolicy) -> None:
    assert policy.sampler().sample([]) == []
    assert TorchSampler(policy.base, None).step() == {}
