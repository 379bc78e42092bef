"""Adapters: they start as nothing, never touch the base or each other, and are PEFT's own on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loragym.agents import AdamParams, BaseModel, LoraConfig, LoraPolicy, SamplingParams
from loragym.agents.testing import tiny_model
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from tiny_engine import FAMILIES, branching, datum, random_tokens, stirred, stirred_policy, tiny_base, weighted_data

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    # PEFT about adapters of a tied output embedding, which is what some of these tests are about.
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

DATA = [datum(sequence) for sequence in branching()]
PROMPT = random_tokens(0, 10)


def all_logprobs(policy: LoraPolicy) -> np.ndarray:
    return np.concatenate(policy.forward(DATA).logprobs)


def bare_logprobs(base: BaseModel) -> np.ndarray:
    policy = base.add_lora("bare")
    policy.adapter.pairs.clear()
    try:
        return all_logprobs(policy)
    finally:
        base.remove_lora("bare")


def peft_logprobs(model: Any) -> np.ndarray:
    """The same from a model that transformers and PEFT run by themselves."""
    found = []
    with torch.no_grad():
        for d in DATA:
            logits = model(torch.tensor([list(d.tokens)])).logits[0].float()
            found.append(logits.log_softmax(-1)[torch.arange(len(d.tokens)), torch.tensor(d.targets)].numpy())
    return np.concatenate(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_changes_no_logit_at_all(dtype: torch.dtype) -> None:
    base = tiny_base(dtype=dtype)
    policy = base.add_lora("fresh", LoraConfig(rank=4, train_unembed=True))
    np.testing.assert_array_equal(all_logprobs(policy), bare_logprobs(base))
    assert np.abs(all_logprobs(stirred(policy)) - bare_logprobs(base)).max() > 0.1


def test_a_fresh_adapter_is_uniform_with_the_same_variance_at_every_rank() -> None:
    base = tiny_base()
    for rank in (2, 64):
        policy = base.add_lora(f"rank {rank}", LoraConfig(rank=rank))
        a = torch.cat([a.detach().flatten() for a, _ in policy.adapter.pairs.values() if a.shape[1] == 64])
        assert a.abs().max() <= 1 / 8
        assert a.var() == pytest.approx(1 / (3 * 64), rel=0.1)


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another() -> None:
    base = tiny_base()
    same, again, other = (
        base.add_lora(name, LoraConfig(rank=4, seed=seed)).parameters[0]
        for name, seed in (("same", 1), ("again", 1), ("other", 2))
    )
    assert torch.equal(same, again) and not torch.equal(same, other)


def test_the_config_says_which_layers_are_adapted() -> None:
    base = tiny_base()
    attention, mlp = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
    for number, (config, expected) in enumerate(
        [
            (LoraConfig(), attention | mlp),
            (LoraConfig(train_mlp=False), attention),
            (LoraConfig(train_attn=False), mlp),
            (LoraConfig(train_unembed=True), attention | mlp | {"lm_head"}),
            (LoraConfig(train_attn=False, train_mlp=False, train_unembed=True), {"lm_head"}),
        ]
    ):
        policy = base.add_lora(str(number), config)
        assert {name.split(".")[-1] for name in policy.adapter.pairs} == expected
        assert len(policy.adapter.pairs) == sum(1 if part == "lm_head" else 2 for part in expected)


def test_training_and_sampling_never_change_the_base() -> None:
    base = tiny_base()
    before, bare = base.weights_hash(), bare_logprobs(base)
    policy = base.add_lora("policy", LoraConfig(rank=4, train_unembed=True))
    for _ in range(3):
        policy.forward_backward(weighted_data(branching()))
        policy.optim_step(AdamParams(learning_rate=0.01))
    policy.sampler().sample([PROMPT], 4, SamplingParams(max_tokens=8, seed=0))
    assert np.abs(all_logprobs(policy) - bare).max() > 0.1
    assert base.weights_hash() == before
    np.testing.assert_array_equal(bare_logprobs(base), bare)
    assert not any(p.requires_grad or p.grad is not None for p in base.model.parameters())


def test_the_hash_notices_one_changed_weight() -> None:
    base = tiny_base()
    before = base.weights_hash()
    next(base.model.parameters()).data[0, 0] += 1e-3
    assert base.weights_hash() != before


def test_adapters_on_one_base_do_not_leak_into_each_other() -> None:
    base = tiny_base()
    one, two = stirred_policy(base, "one", seed=1), stirred_policy(base, "two", seed=2, rank=7)
    before_one, before_two = all_logprobs(one), all_logprobs(two)
    assert np.abs(before_one - before_two).max() > 0.1
    one.forward_backward(DATA[:2], lambda logprobs, _: (torch.cat(logprobs).sum(), {}))
    assert all(p.grad is None for p in two.parameters)
    one.optim_step(AdamParams(learning_rate=0.01))
    np.testing.assert_array_equal(all_logprobs(two), before_two)
    assert np.abs(all_logprobs(one) - before_one).max() > 0.01
    two.sampler().sample([PROMPT], 1, SamplingParams(max_tokens=4))
    base.remove_lora("two")
    np.testing.assert_array_equal(all_logprobs(base.add_lora("two")), bare_logprobs(base))


def test_a_sampler_is_a_snapshot() -> None:
    policy = stirred_policy(tiny_base())
    params = SamplingParams(max_tokens=12, seed=5)
    old = policy.sampler()
    before = old.sample([PROMPT], 3, params)
    policy.forward_backward(weighted_data(branching()))
    policy.optim_step(AdamParams(learning_rate=0.05))
    assert old.sample([PROMPT], 3, params) == before
    new = policy.sampler()
    assert new.sample([PROMPT], 3, params) != before
    assert (old.version, new.version) == (0, 1)


def loss_after_one_update(base: BaseModel, rank: int, seed: int) -> tuple[float, float]:
    policy = base.add_lora("policy", LoraConfig(rank=rank, seed=seed))
    try:
        data = weighted_data([random_tokens(i, 40) for i in range(8)])
        before = policy.forward_backward(data, normalization="token").loss
        policy.optim_step(AdamParams(learning_rate=1e-3))
        after = policy.forward_backward(data, normalization="token").loss
    finally:
        base.remove_lora("policy")
    return before, after


def test_one_update_at_one_learning_rate_lowers_the_loss_alike_at_every_rank() -> None:
    base = tiny_base()
    drops = {}
    for rank in (4, 32, 128):
        losses = [loss_after_one_update(base, rank, seed) for seed in range(4)]
        drops[rank] = float(np.mean([before - after for before, after in losses]))
    assert min(drops.values()) > 0
    assert max(drops.values()) < 1.1 * min(drops.values()), drops


@pytest.mark.parametrize("unembed", [False, True])
@pytest.mark.parametrize("family", ["llama", "llama-untied", "gemma2", "qwen3"])
def test_peft_loads_what_we_save_and_gives_the_same_logits(family: str, unembed: bool, tmp_path: Path) -> None:
    options = {"architecture": family, **FAMILIES[family]}
    policy = stirred_policy(tiny_base(**options), rank=3, alpha=7.0, train_unembed=unembed)
    policy.save_adapter(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(**options, attn_implementation="eager")[0], tmp_path).eval()
    assert len([n for n, _ in loaded.named_parameters() if "lora_A" in n]) == len(policy.adapter.pairs)
    expected = peft_logprobs(loaded)
    np.testing.assert_allclose(all_logprobs(policy), expected, atol=2e-5)
    assert np.abs(bare_logprobs(policy.base) - expected).max() > 0.1


def test_peft_adapts_exactly_our_layers_when_only_attention_is_trained(tmp_path: Path) -> None:
    policy = stirred_policy(tiny_base(), train_mlp=False)
    policy.save_adapter(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model()[0], tmp_path).eval()
    np.testing.assert_allclose(all_logprobs(policy), peft_logprobs(loaded), atol=2e-5)


def peft_folder(folder: Path, **options: Any) -> np.ndarray:
    """Saves an adapter that PEFT made, and returns its logprobs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = {"r": 4, "lora_alpha": 9, "init_lora_weights": False, "task_type": "CAUSAL_LM", **options}
        model = get_peft_model(tiny_model()[0], PeftConfig(**settings)).eval()
    model.save_pretrained(folder)
    return peft_logprobs(model)


@pytest.mark.parametrize(
    "targets",
    [
        ["q_proj", "v_proj"],
        "all-linear",
        r".*layers\.1\..*(k_proj|up_proj)",
        ["model.layers.0.mlp.down_proj", "lm_head"],
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    ],
)
def test_an_adapter_made_by_peft_loads_whatever_layers_it_has(targets: list[str] | str, tmp_path: Path) -> None:
    expected = peft_folder(tmp_path, target_modules=targets)
    base = tiny_base()
    policy = base.load_lora("from peft", tmp_path)
    np.testing.assert_allclose(all_logprobs(policy), expected, atol=2e-5)
    assert np.abs(bare_logprobs(base) - expected).max() > 0.05
    policy.save_adapter(tmp_path / "again")
    again = base.load_lora("again", tmp_path / "again")
    np.testing.assert_array_equal(all_logprobs(again), all_logprobs(policy))


def test_an_adapter_made_by_peft_loads_into_a_policy_of_its_rank_and_alpha(tmp_path: Path) -> None:
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    expected = peft_folder(tmp_path, target_modules=layers)
    policy = tiny_base().add_lora("policy", LoraConfig(rank=4, alpha=9.0))
    policy.load_adapter(tmp_path)
    np.testing.assert_allclose(all_logprobs(policy), expected, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saving_and_loading_an_adapter_is_the_identity(dtype: torch.dtype, tmp_path: Path) -> None:
    policy = stirred_policy(tiny_base(dtype=dtype), train_unembed=True)
    policy.save_adapter(tmp_path)
    base = tiny_base(dtype=dtype)
    loaded = base.load_lora("loaded", tmp_path)
    assert loaded.config == policy.config
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters, loaded.parameters, strict=True))
    np.testing.assert_array_equal(all_logprobs(loaded), all_logprobs(policy))


def test_an_adapter_moves_between_precisions_of_one_base(tmp_path: Path) -> None:
    saved = stirred_policy(tiny_base(dtype=torch.bfloat16))
    saved.save_adapter(tmp_path)
    # The float32 twin of the very weights that the bfloat16 base has.
    model, tokenizer = tiny_model(dtype=torch.bfloat16)
    loaded = BaseModel(model.float(), tokenizer).load_lora("loaded", tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters, saved.parameters, strict=True))
    assert np.abs(all_logprobs(loaded) - all_logprobs(saved)).mean() < 0.1


def test_a_loaded_adapter_can_be_trained_further(tmp_path: Path) -> None:
    peft_folder(tmp_path, target_modules=["q_proj", "v_proj"])
    policy = tiny_base().load_lora("policy", tmp_path)
    before = policy.forward_backward(weighted_data(branching())).loss
    policy.optim_step(AdamParams(learning_rate=1e-3))
    assert policy.forward_backward(weighted_data(branching())).loss < before
