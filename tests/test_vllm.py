"""The vLLM engine with the real vLLM, in process and as a server: `make test-vllm`."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import worlds  # noqa: F401
from chances import chance_of_at_least, truncated_by_hand
from loragym.agents import AdamParams, BaseModel, Datum, LoraConfig, LoraPolicy, SamplingParams
from loragym.agents.testing import save_tiny_model
from loragym.agents.vllm_engine import AdapterDidNotTake, VllmEngine
from loragym.agents.vllm_options import MAX_LORA_RANKS, VllmOptions
from loragym.trainers import RLConfig, rl
from loragym.trainers.run_directory import read_metrics
from test_agents_sampler import AFTER_THE_END, TEXT, learner_difference, tokens_of
from tiny_engine import random_tokens, reference_logits, stirred, stirred_policy

pytestmark = pytest.mark.vllm

SMALL: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
"""vLLM's attention on a CPU has no heads of 16."""
PROMPTS = [random_tokens(i, 7 + 5 * i) for i in range(3)]
LONG = random_tokens(50, 300)
"""More than two blocks of vLLM's prefix cache, which are of 128 tokens on a CPU."""
OPTIONS: dict[str, Any] = {"kv_cache_gib": 0.1, "max_concurrent": 64, "timeout": 120.0}


def small_base(folder: Path, **config: Any) -> BaseModel:
    return BaseModel.load(str(save_tiny_model(folder, **{**SMALL, **config})), dtype="float32")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return small_base(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=["in_process", "server"])
def engine(base: BaseModel, request: pytest.FixtureRequest) -> Iterator[VllmEngine]:
    with VllmEngine(base, LoraConfig(rank=8), VllmOptions(mode=request.param, **OPTIONS)) as running:
        yield running


@pytest.fixture
def policy(base: BaseModel) -> Iterator[LoraPolicy]:
    yield stirred_policy(base)
    base.adapters.clear()


def largest_difference(
    engine: VllmEngine, policy: LoraPolicy, prompts: list[list[int]], temperature: float = 1.0, **params: Any
) -> float:
    """Between the log-probabilities of vLLM's samples and the learner's."""
    settings = SamplingParams(**{"max_tokens": 24, "temperature": temperature, "stop": (), "seed": 1, **params})
    completions = engine.sampler(policy).sample(prompts, 5, settings)
    return float(np.abs(learner_difference(policy, prompts, completions, temperature)).max())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_logprobs_are_the_learners(engine: VllmEngine, policy: LoraPolicy, temperature: float) -> None:
    assert largest_difference(engine, policy, [*PROMPTS, LONG], temperature) < 1e-4


def test_greedy_is_the_torch_engines(engine: VllmEngine, policy: LoraPolicy) -> None:
    params = SamplingParams(max_tokens=20, temperature=0.0, stop=())
    assert engine.sampler(policy).sample(PROMPTS, 1, params) == policy.sampler().sample(PROMPTS, 1, params)
    assert engine.sampler().sample(PROMPTS, 1, params) == policy.base.sampler().sample(PROMPTS, 1, params)


@pytest.mark.parametrize("truncation", [{"top_k": 3}, {"top_p": 0.6}, {"top_k": 4, "top_p": 0.8, "temperature": 0.7}])
def test_logprobs_of_truncated_sampling_are_of_what_is_left(
    engine: VllmEngine, policy: LoraPolicy, truncation: dict[str, Any]
) -> None:
    params = SamplingParams(max_tokens=6, stop=(), seed=2, **truncation)
    for prompt, samples in zip(PROMPTS, engine.sampler(policy).sample(PROMPTS, 3, params), strict=True):
        for sample in samples:
            logits = reference_logits(policy.base, [*prompt, *sample.tokens][:-1], policy.adapter)
            for row, token, got in zip(logits[len(prompt) - 1 :], sample.tokens, sample.logprobs, strict=True):
                p = (row / params.temperature).softmax(-1).numpy()
                assert got == pytest.approx(np.log(truncated_by_hand(p, params)[token]), abs=1e-4)


def test_frequencies_are_the_models(engine: VllmEngine, policy: LoraPolicy) -> None:
    params = SamplingParams(max_tokens=1, stop=(), temperature=1.5, seed=0)
    (samples,) = engine.sampler(policy).sample([PROMPTS[0]], 2000, params)
    expected = (reference_logits(policy.base, PROMPTS[0], policy.adapter)[-1] / 1.5).softmax(-1).numpy()
    counts = np.bincount([sample.tokens[0] for sample in samples], minlength=len(expected))
    assert chance_of_at_least(counts, expected) > 1e-3
    assert chance_of_at_least(counts, np.roll(expected, 1)) < 1e-9, "this test would notice"


def test_seeds_repeat_and_samples_calls_and_repeated_prompts_differ(engine: VllmEngine, policy: LoraPolicy) -> None:
    sampler = engine.sampler(policy)
    seeded = SamplingParams(max_tokens=12, stop=(), seed=3)
    groups = [tokens_of(group) for group in sampler.sample([PROMPTS[0]] * 2, 8, seeded)]
    assert groups == [tokens_of(group) for group in sampler.sample([PROMPTS[0]] * 2, 8, seeded)]
    assert len({tuple(tokens) for group in groups for tokens, _ in group}) == 16
    assert groups[0][:3] == tokens_of(sampler.sample([PROMPTS[0]], 3, seeded)[0])
    fresh = SamplingParams(max_tokens=12, stop=())
    assert len({tuple(sampler.sample(PROMPTS[:1], 1, fresh)[0][0].tokens) for _ in range(3)}) == 3


def test_the_two_modes_draw_the_same_tokens(base: BaseModel, policy: LoraPolicy) -> None:
    params = SamplingParams(max_tokens=16, stop=(), seed=4)
    drawn = []
    for mode in ("in_process", "server"):
        with VllmEngine(base, LoraConfig(rank=8), VllmOptions(mode=mode, **OPTIONS)) as engine:
            drawn.append(engine.sampler(policy).sample(PROMPTS, 4, params))
    ours, theirs = drawn
    assert [tokens_of(group) for group in ours] == [tokens_of(group) for group in theirs]
    for group, other_group in zip(ours, theirs, strict=True):
        for one, other in zip(group, other_group, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_a_request_that_comes_later_can_finish_earlier(engine: VllmEngine, policy: LoraPolicy) -> None:
    sampler = engine.sampler(policy)
    long = sampler.submit(PROMPTS[0], SamplingParams(max_tokens=200, stop=(), seed=0), 2)
    short = sampler.submit(PROMPTS[1], SamplingParams(max_tokens=2, stop=(), seed=0))
    finished: list[int] = []
    while sampler.pending:
        finished += sampler.step()
    assert finished == [short, long]


def test_a_long_prompt_after_a_swap_is_computed_anew(engine: VllmEngine, policy: LoraPolicy) -> None:
    """Stale keys and values would show as log-probabilities of the version before."""
    held = engine.sampler(policy)
    greedy = SamplingParams(max_tokens=12, temperature=0.0, stop=())
    before = held.sample([LONG], 1, greedy)
    assert largest_difference(engine, policy, [LONG] * 2) < 1e-4
    for seed in (5, 6):
        stirred(policy, seed)
        assert largest_difference(engine, policy, [LONG] * 2) < 1e-4
        assert engine.sampler(policy).sample([LONG], 1, greedy) != before
    assert held.sample([LONG], 1, greedy) == before, "an old version is served as long as a sampler holds it"
    bare = engine.sampler().sample([LONG], 1, greedy)
    assert bare == policy.base.sampler().sample([LONG], 1, greedy)


def test_requests_that_do_not_fit_the_cache_at_once_are_put_off(base: BaseModel, policy: LoraPolicy) -> None:
    """vLLM throws out what it has computed for some of them and begins again with their tokens so far."""
    params = SamplingParams(max_tokens=400, stop=(), seed=3)
    context = 2 * len(base.model.model.layers) * 32 * 4 * base.context_length
    options = VllmOptions(**{**OPTIONS, "kv_cache_gib": 1.3 * context / 2**30})
    with VllmEngine(base, LoraConfig(rank=8), options) as engine:
        completions = engine.sampler(policy).sample(PROMPTS, 4, params)
    assert np.abs(learner_difference(policy, PROMPTS, completions, 1.0)).max() < 1e-4
    assert [len(c.tokens) for group in completions for c in group] == [400] * 12


def test_adapters_and_base_keep_apart_when_their_requests_come_together(engine: VllmEngine, base: BaseModel) -> None:
    policies = [stirred_policy(base, f"policy {seed}", seed=seed) for seed in range(2)]
    samplers = [engine.sampler(policy) for policy in policies] + [engine.sampler()]
    params = SamplingParams(max_tokens=12, temperature=0.0, stop=())
    tickets = [[sampler.submit(prompt, params, 2) for sampler in samplers] for prompt in PROMPTS]
    done: list[dict[int, Any]] = [{} for _ in samplers]
    while any(sampler.pending for sampler in samplers):
        for sampler, mine in zip(samplers, done, strict=True):
            mine |= sampler.step()
    for i, source in enumerate((*policies, base)):
        assert [done[i][row[i]] for row in tickets] == source.sampler().sample(PROMPTS, 2, params)
    base.adapters.clear()


@pytest.fixture(scope="module")
def talker(base: BaseModel) -> LoraPolicy:
    """Has learnt one text by heart, a token per letter."""
    policy = base.add_lora("talker", LoraConfig(rank=8))
    tokens = [*TEXT.encode(), 257, *AFTER_THE_END.encode()]
    for _ in range(80):
        policy.forward_backward([Datum.supervised(tokens, [1.0] * len(tokens))], normalization="token")
        policy.optim_step(AdamParams(learning_rate=0.01))
    base.remove_lora("talker")
    return policy


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (None, TEXT[1:] + "<|im_end|>"),
        (("\n\nUser:",), ": why?\n\nBecause.\n\nUser:"),
        (("so?", "\n\n"), ": why?\n\n"),
        (("é",), ": why?\n\nBecause.\n\nUser: é"),
        (("<|im_end|>",), TEXT[1:] + "<|im_end|>"),
        ((ord("B"), ord("U")), ": why?\n\nB"),
    ],
)
def test_a_stop_ends_a_sample_and_belongs_to_it(engine: VllmEngine, talker: LoraPolicy, stop: Any, text: str) -> None:
    params = SamplingParams(max_tokens=100, temperature=0.0, stop=stop)
    ((sample,),) = engine.sampler(talker).sample([[ord("Q")]], 1, params)
    assert (talker.base.tokenizer.decode(sample.tokens), sample.stop_reason) == (text, "stop")
    assert len(sample.logprobs) == len(sample.tokens)


@pytest.mark.parametrize(
    ("stop", "max_tokens", "text", "reason"),
    [
        ((), 60, (TEXT[1:] + "<|im_end|>" + AFTER_THE_END)[:10], "length"),
        (("Q",), 10, TEXT[1:11], "length"),
        (("?",), 6, ": why?", "stop"),
        (("?",), 5, ": why", "length"),
        ((ord("?"),), 6, ": why?", "stop"),
    ],
)
def test_the_limit_and_stops_that_do_not_count(
    engine: VllmEngine, talker: LoraPolicy, stop: Any, max_tokens: int, text: str, reason: str
) -> None:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, stop=stop)
    ((sample,),) = engine.sampler(talker).sample([[ord("Q")]], 1, params)
    assert talker.base.tokenizer.decode(sample.tokens).startswith(text) and sample.stop_reason == reason
    assert len(sample.tokens) == max_tokens


def test_the_context_ends_a_sample(engine: VllmEngine, policy: LoraPolicy) -> None:
    prompts = [random_tokens(i, length) for i, length in enumerate((1020, 1023))]
    completions = engine.sampler(policy).sample(prompts, 2, SamplingParams(max_tokens=100, stop=(), seed=0))
    assert [len(c.tokens) for group in completions for c in group] == [4, 4, 1, 1]
    assert {c.stop_reason for group in completions for c in group} == {"length"}


def test_twenty_swaps_keep_memory_flat_and_one_version(base: BaseModel) -> None:
    psutil = pytest.importorskip("psutil")
    with VllmEngine(base, LoraConfig(rank=256), VllmOptions(**OPTIONS)) as engine:
        policy = base.add_lora("large", LoraConfig(rank=256))
        replies, memory = set(), []
        for seed in range(30):
            stirred(policy, seed)
            ((sample,),) = engine.sampler(policy).sample([PROMPTS[0]], 1, SamplingParams(temperature=0, stop=()))
            replies.add(tuple(sample.tokens))
            memory.append(psutil.Process().memory_info().rss / 2**20)
        folders = list(Path(engine._folder.name).iterdir())
        backend: Any = engine._backend
        engine.step()
        assert len(backend._engine.list_loras()) == 1 and len(folders) <= 2
    base.adapters.clear()
    adapter = sum(tensor.numel() * 4 for tensor in policy.parameters) / 2**20
    assert len(replies) > 20, "a swap changes what is said"
    assert memory[-1] - memory[9] < 3 * adapter, f"{adapter:.1f} MiB an adapter, in all {memory}"


def test_random_numbers_environment_and_threads_are_left_alone(base: BaseModel, policy: LoraPolicy) -> None:
    def state() -> Any:
        return (
            random.getstate(),
            str(np.random.get_state()),
            torch.get_rng_state().tolist(),
            dict(os.environ),
            torch.set_num_threads,
            torch.get_num_threads(),
            torch.get_default_dtype(),
        )

    before = state()
    with VllmEngine(base, LoraConfig(rank=8), VllmOptions(**OPTIONS)) as engine:
        engine.sampler(policy).sample(PROMPTS, 2, SamplingParams(max_tokens=3))
        assert state() == before
    assert state() == before


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        ("no adapter", "answers as the base without any adapter"),
        ("one number for all", "answers as the version before"),
    ],
)
def test_an_adapter_that_did_not_take_is_noticed(
    base: BaseModel, policy: LoraPolicy, monkeypatch: pytest.MonkeyPatch, fault: str, part: str
) -> None:
    from loragym.agents import vllm_process
    from vllm.lora.request import LoRARequest

    def request(adapter: Any) -> Any:
        return None if fault == "no adapter" else LoRARequest(adapter.name, 1, str(adapter.folder))

    with VllmEngine(base, LoraConfig(rank=8), VllmOptions(**OPTIONS)) as engine:
        backend: Any = engine._backend
        if fault == "no adapter":
            start = backend.start
            monkeypatch.setattr(backend, "start", lambda sample, adapter: start(sample, None))
        else:
            engine.sampler(policy)
            monkeypatch.setattr(vllm_process, "_lora_request", request)
            monkeypatch.setattr(backend, "load", lambda adapter: backend._engine.add_lora(request(adapter)))
            monkeypatch.setattr(backend, "drop", lambda adapter: None)
            stirred(policy, seed=9)
        with pytest.raises(AdapterDidNotTake, match=part):
            engine.sampler(policy)


def test_another_models_folder_is_noticed(base: BaseModel, tmp_path: Path) -> None:
    other = small_base(tmp_path, seed=1)
    other.name = base.name
    with pytest.raises(RuntimeError, match="vLLM computes something else than"):
        VllmEngine(other, LoraConfig(rank=8), VllmOptions(**OPTIONS))


def test_the_ranks_are_those_of_the_installed_vllm() -> None:
    from vllm.config.lora import MaxLoRARanks

    assert get_args(MaxLoRARanks) == MAX_LORA_RANKS


@pytest.mark.parametrize(
    ("config", "lora", "options", "part"),
    [
        ({"architecture": "qwen2"}, {"train_unembed": True}, {}, "serves no adapter of Qwen2ForCausalLM's output"),
        ({}, {}, {"vllm_args": {"block_sise": 32}}, "has no argument block_sise"),
        ({"architecture": "gpt_neox_japanese", "head_dim": None}, {}, {}, "has no GPTNeoXJapaneseForCausalLM"),
    ],
)
def test_what_vllm_cannot_serve_is_refused_before_it_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], lora: Any, options: Any, part: str
) -> None:
    from loragym.agents import vllm_engine

    monkeypatch.setattr(vllm_engine, "start_backend", lambda *_: pytest.fail("vLLM was started"))
    if config.get("architecture") == "gpt_neox_japanese":
        base = small_base(tmp_path)
        base.model.__class__ = type("GPTNeoXJapaneseForCausalLM", (type(base.model),), {})
    else:
        base = small_base(tmp_path, **config)
    with pytest.raises(ValueError, match=part):
        VllmEngine(base, LoraConfig(rank=8, **lora), VllmOptions(**OPTIONS, **options))


@pytest.mark.parametrize(
    ("config", "lora"),
    [
        ({"architecture": "qwen2"}, {}),
        ({"architecture": "qwen3"}, {"train_unembed": True}),
        ({"architecture": "llama", "tie_word_embeddings": False}, {"train_unembed": True}),
        ({"architecture": "mistral", "sliding_window": 5}, {}),
        ({"architecture": "llama", "dtype": torch.float32}, {"train_attn": False}),
    ],
)
def test_other_families_and_targets_agree_too(tmp_path: Path, config: dict[str, Any], lora: dict[str, Any]) -> None:
    base = small_base(tmp_path, **config)
    settings = {"rank": 4, "alpha": 10.0, **lora}
    policy = stirred_policy(base, **settings)
    with VllmEngine(base, LoraConfig(**settings), VllmOptions(**OPTIONS)) as engine:
        assert largest_difference(engine, policy, PROMPTS) < 1e-4
        bare = engine.sampler().sample(PROMPTS, 1, SamplingParams(max_tokens=8, temperature=0.0, stop=()))
    assert bare == base.sampler().sample(PROMPTS, 1, SamplingParams(max_tokens=8, temperature=0.0, stop=()))


@pytest.mark.model
@pytest.mark.parametrize(("dtype", "bound", "typical"), [("float32", 2e-4, 5e-5), ("bfloat16", 2.0, 0.1)])
def test_the_bundled_models_logprobs_are_the_learners(bundled: Path, dtype: str, bound: float, typical: float) -> None:
    base = BaseModel.load(str(bundled), dtype=dtype)
    policy = stirred(base.add_lora("policy", LoraConfig(rank=32)), size=0.01)
    prompts = [base.tokenizer.encode(text) for text in ("What is 17 + 25?", "The capital of France is", "Once upon")]
    with VllmEngine(base, LoraConfig(rank=32), VllmOptions(max_concurrent=64)) as engine:
        for temperature in (0.5, 1.0, 1.5):
            params = SamplingParams(max_tokens=16, temperature=temperature, stop=(), seed=1)
            completions = engine.sampler(policy).sample(prompts, 4, params)
            difference = np.abs(learner_difference(policy, prompts, completions, temperature))
            print(f"{dtype} temperature {temperature}: mean {difference.mean():.2g}, largest {difference.max():.2g}")
            assert difference.max() < bound and difference.mean() < typical


def test_a_server_that_cannot_start_says_why(base: BaseModel) -> None:
    options = VllmOptions(**OPTIONS, mode="server", vllm_args={"block_size": 7})
    with pytest.raises(RuntimeError, match=r"the vLLM server ended with status \d.*its log ends with"):
        VllmEngine(base, LoraConfig(rank=8), options)


def test_a_server_is_given_up_at_its_deadline(base: BaseModel) -> None:
    options = VllmOptions(**{**OPTIONS, "timeout": 0.5}, mode="server")
    with pytest.raises(TimeoutError, match=r"not ready after 0.5 s; the option `timeout`"):
        VllmEngine(base, LoraConfig(rank=8), options)


def test_a_server_that_runs_already_can_be_used_and_is_left_without_adapters(
    base: BaseModel, policy: LoraPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with VllmEngine(base, LoraConfig(rank=8), VllmOptions(mode="server", **OPTIONS)) as owner:
        running: Any = owner._backend
        monkeypatch.setenv("VLLM_API_KEY", running._key)
        options = VllmOptions(url=running.url, max_concurrent=8)
        with VllmEngine(base, LoraConfig(rank=8), options) as guest:
            assert largest_difference(guest, policy, PROMPTS) < 1e-4
            assert len(running._call("GET", "/v1/models")["data"]) == 2
        assert len(running._call("GET", "/v1/models")["data"]) == 1
        monkeypatch.setenv("VLLM_API_KEY", "wrong")
        with pytest.raises(RuntimeError, match="answered /v1/models with 401"):
            VllmEngine(base, LoraConfig(rank=8), options)
    with pytest.raises(RuntimeError, match=r"cannot be reached"):
        VllmEngine(base, LoraConfig(rank=8), options)


def test_a_server_whose_process_is_killed_is_an_error_with_its_log(base: BaseModel) -> None:
    with VllmEngine(base, LoraConfig(rank=8), VllmOptions(mode="server", **OPTIONS)) as engine:
        backend: Any = engine._backend
        os.killpg(backend._child._process.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"cannot be reached .*its log ends with"):
            engine.sampler().sample(PROMPTS)


ORPHAN = """
import os, sys
from loragym.agents import BaseModel, LoraConfig
from loragym.agents.vllm_engine import VllmEngine, VllmOptions
engine = VllmEngine(BaseModel.load(sys.argv[1], dtype="float32"), LoraConfig(rank=8),
    VllmOptions(mode="server", kv_cache_gib=0.1, max_concurrent=64))
print(engine._backend._child._process.pid, flush=True)
sys.stdin.read()
"""


def members(group: int) -> list[int]:
    psutil = pytest.importorskip("psutil")
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def test_the_servers_processes_die_with_a_killed_parent(base: BaseModel) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, base.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    group = int(parent.stdout.readline())
    assert len(members(group)) >= 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while members(group) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert members(group) == []


@pytest.mark.parametrize("mode", ["in_process", "server"])
def test_reinforcement_learning_raises_the_reward(base: BaseModel, tmp_path: Path, mode: str) -> None:
    config = RLConfig(
        run_dir=str(tmp_path / "run"),
        engine="vllm",
        engine_options={**OPTIONS, "mode": mode},
        model=base.name,
        dtype="float32",
        device="cpu",
        lora_rank=8,
        env="tests/Letters-v0",
        steps=12,
        problems_per_step=8,
        group_size=8,
        max_tokens=3,
        learning_rate=1e-2,
        eval_every=0,
        eval_problems=16,
    )
    summary = rl.train(config)
    assert summary["last_reward"] > summary["first_reward"] + 0.15
    rows = read_metrics(tmp_path / "run")[:-1]
    assert all(row["ratio_max"] == pytest.approx(1, abs=2e-3) for row in rows if "ratio_max" in row)
