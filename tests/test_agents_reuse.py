"""Prompts that go on from a finished completion: the same replies as ever, and only what is new is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loragym.agents import Completion, LoraPolicy, SamplingParams, TorchSampler
from loragym.agents.packing import pack_sequences
from loragym.agents.reuse import Finished, KeyValues, Span
from tiny_engine import FAMILIES, count_tokens, family_base, random_tokens, stirred_policy

PROMPTS = [random_tokens(0, 9) + random_tokens(10 + i, 2 * i) for i in range(5)]
"""They begin alike, and one begins all others."""


def conversation(policy: LoraPolicy, sampler: Any, n: int, turns: int = 4) -> list[list[Completion]]:
    """Each turn goes on from all completions of the turn before, with a few tokens of the world's; a list a turn."""
    prompts, heard = [list(prompt) for prompt in PROMPTS], []
    for turn in range(turns):
        params = SamplingParams(max_tokens=6, temperature=1.0, stop=(), seed=turn)
        completions = sampler().sample(prompts, n if turn == 0 else 1, params)
        heard.append([completion for group in completions for completion in group])
        prompts = [
            [*prompt, *completion.tokens, *random_tokens(100 + turn, 3)]
            for prompt, group in zip(prompts, completions, strict=True)
            for completion in group
        ]
    return heard


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each pass of a model computes."""
    return count_tokens(monkeypatch)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_is_the_same_as_without_reuse(family: str, n: int) -> None:
    policy = stirred_policy(family_base(family))
    one = policy.sampler()
    found, expected = (conversation(policy, sampler, n) for sampler in (lambda: one, policy.sampler))
    for turn, (ours, fresh) in enumerate(zip(found, expected, strict=True)):
        assert [c.tokens for c in ours] == [c.tokens for c in fresh], turn
        logprobs = [np.concatenate([c.logprobs for c in side]) for side in (ours, fresh)]
        assert np.abs(logprobs[0] - logprobs[1]).max() < 1e-4


def test_of_a_next_turn_only_what_is_new_is_computed(computed: list[int]) -> None:
    policy = stirred_policy(family_base("llama"))
    computed.clear()
    sampler = policy.sampler()
    conversation(policy, lambda: sampler, 1, turns=2)
    # The last token of a reply has no keys yet, and the world adds three.
    assert computed == [len({tuple(p[:i]) for p in PROMPTS for i in range(1, len(p) + 1)}), *[5] * 5, 5 * 4, *[5] * 5]


def test_a_group_goes_on_from_the_prompt_that_it_shares(computed: list[int]) -> None:
    policy = stirred_policy(family_base("llama"))
    sampler = policy.sampler()
    params = SamplingParams(max_tokens=6, temperature=1.0, stop=(), seed=0)
    (group,) = sampler.sample([PROMPTS[4]], 8, params)
    computed.clear()
    sampler.sample([[*PROMPTS[4], *completion.tokens, 5, 6] for completion in group], 1, params)
    assert computed[0] == len({tuple(completion.tokens) for completion in group}) * 3


def test_no_more_memory_is_held_than_allowed(computed: list[int]) -> None:
    policy = stirred_policy(family_base("llama"))
    computed.clear()
    sampler = policy.sampler(reuse_bytes=0)
    conversation(policy, lambda: sampler, 1, turns=2)
    assert computed[6] > len(PROMPTS[4]) + 6 + 3
    roomy = policy.sampler()
    expected = conversation(policy, lambda: roomy, 3)
    assert roomy._past._bytes > 0
    little = policy.sampler(reuse_bytes=roomy._past._bytes // 2)
    found = conversation(policy, lambda: little, 3)
    assert [[c.tokens for c in turn] for turn in found] == [[c.tokens for c in turn] for turn in expected]
    assert little._past._bytes <= roomy._past._bytes // 2


def test_where_no_prompt_ever_goes_on_keeping_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loragym.agents.torch_sampler.FRUITLESS", 8)
    sampler = stirred_policy(family_base("llama")).sampler()
    for seed in range(3):
        sampler.sample([PROMPTS[0]], 8, SamplingParams(max_tokens=4, stop=(), seed=seed))
    assert 8 <= sampler._kept < 24


def cache(rows: int, length: int) -> KeyValues:
    return KeyValues({0: torch.zeros(rows, 1, length, 2)}, {0: torch.zeros(rows, 1, length, 2)})


def test_the_longest_beginning_is_found_and_the_oldest_go_first() -> None:
    kept = Finished(3 * cache(1, 4).num_bytes)
    sequences = [(1, 2), (1, 2, 3), (1, 2, 3, 4), (7,)]
    for tokens in sequences[:3]:
        kept.add(tokens, [Span(cache(1, 4), 0, len(tokens))])
    assert kept.longest_prefix((1, 2, 3, 4, 5)) == (1, 2, 3, 4)
    assert kept.longest_prefix((1, 2, 3, 4)) == (1, 2, 3)  # something must be left to compute
    assert kept.longest_prefix((2, 1)) is None
    kept.add((7,), [Span(cache(1, 4), 0, 1)])
    assert len(kept) == 3 and kept.longest_prefix((1, 2, 9)) is None
    kept.drop([(1, 2, 3, 4), (5, 5)])
    assert kept.longest_prefix((1, 2, 3, 4, 5)) == (1, 2, 3)


def test_a_cache_counts_once_however_many_use_it() -> None:
    shared = cache(4, 8)
    kept = Finished(shared.num_bytes)
    for row in range(4):
        kept.add((row, 1), [Span(shared, row, 2)])
    assert len(kept) == 4
    kept.add((9,), [Span(cache(1, 1), 0, 1)])  # the four go, for nothing is free before the last of them
    assert len(kept) == 1


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_nodes_that_are_known_are_no_queries(data: st.DataObject) -> None:
    sequences = data.draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=12))
    known = [data.draw(st.integers(0, len(s))) for s in sequences]
    for pack in pack_sequences(sequences, known=known, max_nodes=data.draw(st.sampled_from([8, 1000]))):
        fresh = set(range(pack.num_nodes) if pack.fresh_T is None else pack.fresh_T.tolist())
        queries = [int(q) for block in pack.blocks for q in block.queries_BN.flatten() if q >= 0]
        assert sorted(queries) == sorted(fresh)
        for block in pack.blocks:
            rows = block.to_queries[block.queries_BN.flatten() >= 0].tolist()
            assert rows == [sorted(fresh).index(q) for q in block.queries_BN.flatten().tolist() if q >= 0]
        introduced = set()
        for member, path in zip(pack.members, pack.paths, strict=True):
            assert int(path[-1]) in fresh or int(path[-1]) in introduced
            for depth, node in enumerate(path.tolist()):
                if node not in introduced:
                    introduced.add(node)
                    assert (node in fresh) == (depth >= min(known[member], len(path) - 1))


def test_requests_that_come_one_by_one_are_prefilled_together(monkeypatch: pytest.MonkeyPatch) -> None:
    waves: list[int] = []
    prefill = TorchSampler._prefill

    def noted(sampler: TorchSampler, pack: Any, past: Any, prompts: list[Any], groups: Any) -> None:
        waves.append(len(prompts))
        prefill(sampler, pack, past, prompts, groups)

    sampler = stirred_policy(family_base("llama")).sampler()
    monkeypatch.setattr(TorchSampler, "_prefill", noted)
    sampler.submit(PROMPTS[0], SamplingParams(max_tokens=20, stop=(), seed=0), 12)
    for i in range(4):
        sampler.step()
        sampler.submit(PROMPTS[1 + i], SamplingParams(max_tokens=2, stop=(), seed=i))
    while sampler.pending:
        sampler.step()
    assert waves == [1, 3, 1]
