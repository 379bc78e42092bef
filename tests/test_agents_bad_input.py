"""What is wrong is said: each message names what came, what was expected and what to do; nothing is damaged by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loragym.agents import AdamParams, BaseModel, Datum, LoraConfig, LoraPolicy, NonFiniteError, SamplingParams
from safetensors.torch import load_file, save_file
from tiny_engine import branching, datum, random_tokens, rl_data, stirred_policy, tiny_base, weighted_data


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base(max_position_embeddings=64)


@pytest.fixture
def policy(base: BaseModel) -> LoraPolicy:
    base.adapters.clear()
    return stirred_policy(base)


def weights(policy: LoraPolicy) -> list[torch.Tensor]:
    return [p.detach().clone() for p in policy.parameters]


def unchanged(policy: LoraPolicy, before: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(policy.parameters, before, strict=True))


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ([], ["prompt has no token", "build_generation_prompt"]),
        ([1] * 64, ["prompt has 64 tokens", "context of tiny is 64", "shorten the conversation"]),
        ([1] * 1000, ["prompt has 1000 tokens", "context of tiny is 64", "shorten the conversation"]),
        ([1, 259], ["token ids from 1 to 259", "vocabulary of tiny goes from 0 to 258", "tokenizer"]),
        ([-1, 5], ["token ids from -1 to 5", "tokenizer"]),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused(policy: LoraPolicy, prompt: list[int], parts: list[str]) -> None:
    sampler = policy.sampler()
    for call in (lambda: sampler.submit(prompt, SamplingParams()), lambda: sampler.sample([[1], prompt])):
        with pytest.raises(ValueError) as error:
            call()
        assert all(part in str(error.value) for part in parts), error.value


def test_a_number_of_samples_below_one_is_refused(policy: LoraPolicy) -> None:
    with pytest.raises(ValueError, match="n is at least 1, got 0"):
        policy.sampler().sample([[1]], 0)


def test_a_sampler_that_could_never_sample_is_refused(policy: LoraPolicy) -> None:
    with pytest.raises(ValueError, match="max_concurrent and prefill_tokens are at least 1, got 0"):
        policy.sampler(max_concurrent=0)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"max_tokens": 0}, "max_tokens is at least 1, got 0"),
        ({"temperature": -0.1}, "temperature is a finite number from 0 up, got -0.1"),
        ({"temperature": float("inf")}, "temperature is a finite number from 0 up, got inf"),
        ({"temperature": float("nan")}, "temperature is a finite number from 0 up, got nan"),
        ({"top_k": -1}, "top_k is from 0 up and top_p in"),
        ({"top_p": 0.0}, "top_p in (0, 1], got 0 and 0.0"),
        ({"top_p": 1.1}, "top_p in (0, 1], got 0 and 1.1"),
        ({"stop": "User:"}, "stop is a tuple of strings or of token ids, got the string 'User:'"),
        ({"stop": (1, "User:")}, "stop is all token ids or all non-empty strings"),
        ({"stop": ("",)}, "stop is all token ids or all non-empty strings"),
    ],
)
def test_sampling_parameters_out_of_range_are_refused(fields: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError) as error:
        SamplingParams(**fields)
    assert part in str(error.value)


@pytest.mark.parametrize("field", ["targets", "weights", "logprobs", "advantages", "mask"])
def test_a_datum_of_unequal_lengths_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} has 2 entries where tokens has 3"):
        Datum(**{"tokens": [1, 2, 3], "targets": [2, 3, 4], field: [1, 0]})


def test_a_datum_without_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one input token and its target, got none"):
        Datum(tokens=[], targets=[])
    with pytest.raises(ValueError, match="at least one input token and its target, got none"):
        Datum.supervised([5], [1.0])


def custom(logprobs: list[torch.Tensor], data: Any) -> tuple[torch.Tensor, dict[str, float]]:
    return torch.cat(logprobs).sum(), {}


@pytest.mark.parametrize(
    ("data", "loss", "parts"),
    [
        ([], "cross_entropy", ["batch is empty"]),
        ([], custom, ["batch is empty"]),
        (
            [datum([1, 2, 3], weights=[0.0, 0.0])] * 2,
            "cross_entropy",
            ["no token to train on in a batch of 2 datums", "renderer's loss weights"],
        ),
        (
            [datum([1, 2, 3], mask=[False, False], logprobs=[0, 0], advantages=[0, 0])],
            "ppo",
            ["no token to train on in a batch of 1 datums", "rollouts' masks"],
        ),
        ([datum([1, 2, 3], mask=[False, False])], custom, ["no token to train on in a batch of 1 datums"]),
        ([datum(range(66))], custom, ["datum 0 has 65 tokens", "context of tiny is 64", "truncate or drop it"]),
        ([datum([1, 2]), datum([1, 300, 2])], custom, ["datum 1", "from 1 to 300", "from 0 to 258"]),
        ([Datum(tokens=[1, 2], targets=[2, -100])], custom, ["datum 0", "from -100 to 2", "mask what is not"]),
        (weighted_data([[1, 2, 3]]), "importance_sampling", ["datum 0 lacks logprobs and advantages", "needs"]),
        ([datum([1, 2], logprobs=[0.0])], "ppo", ["datum 0 lacks advantages", "'ppo' needs"]),
        (rl_data([[1, 2, 3]]), "cross_entropy", ["datum 0 lacks weights", "'cross_entropy' needs"]),
        (rl_data([[1, 2, 3]]), "reinforce", ["unknown loss 'reinforce'", "importance_sampling", "register_loss"]),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(
    policy: LoraPolicy, data: list[Datum], loss: Any, parts: list[str]
) -> None:
    before = weights(policy)
    with pytest.raises(ValueError) as error:
        policy.forward_backward(data, loss)
    assert all(part in str(error.value) for part in parts), error.value
    assert unchanged(policy, before)
    assert all(p.grad is None for p in policy.parameters)


def test_an_unknown_normalisation_is_refused(policy: LoraPolicy) -> None:
    with pytest.raises(ValueError, match=r"normalization is one of .*token.*, got 'batch'"):
        policy.forward_backward(weighted_data(branching()), normalization="batch")  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_scoring_at_no_temperature_is_refused(policy: LoraPolicy, temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature to score at is above 0"):
        policy.forward(rl_data(branching()), temperature=temperature)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", lambda p, _: (torch.cat(p).sum() * float("nan"), {})])
def test_a_loss_that_is_no_number_leaves_the_weights_unchanged(policy: LoraPolicy, loss: Any, bad: float) -> None:
    before = weights(policy)
    data = [datum([1, 2, 3], logprobs=[-5.0, -5.0], advantages=[1.0, bad])]
    with pytest.raises(NonFiniteError, match=r"the loss .* is (nan|-?inf); the weights are unchanged. Check"):
        policy.forward_backward(data, loss)
    assert unchanged(policy, before)
    with pytest.raises(RuntimeError, match="no gradient"):
        policy.optim_step()


def test_a_gradient_that_is_no_number_leaves_the_weights_unchanged_and_is_forgotten(policy: LoraPolicy) -> None:
    policy.forward_backward(rl_data(branching()), "ppo")
    policy.optim_step()
    before = weights(policy)

    def infinite_slope(logprobs: list[torch.Tensor], data: Any) -> tuple[torch.Tensor, dict[str, float]]:
        return (torch.cat(logprobs)[0] * 0).sqrt(), {}

    policy.forward_backward(rl_data(branching()), infinite_slope)
    with pytest.raises(NonFiniteError, match=r"gradient norm of policy 'policy' is nan after 1 updates.*learning rate"):
        policy.optim_step()
    assert unchanged(policy, before) and policy.version == 1
    assert all(p.grad is None for p in policy.parameters)
    policy.forward_backward(rl_data(branching()), "ppo")
    policy.optim_step()
    assert all(torch.isfinite(p).all() for p in policy.parameters)


def test_a_step_without_gradients_is_refused(policy: LoraPolicy) -> None:
    with pytest.raises(RuntimeError, match="policy 'policy' has no gradient; call forward_backward before optim_step"):
        policy.optim_step()


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"learning_rate": -1e-4}, "learning_rate is a finite number from 0 up, got -0.0001"),
        ({"learning_rate": float("nan")}, "learning_rate is a finite number from 0 up, got nan"),
        ({"grad_clip_norm": -1.0}, "grad_clip_norm is a finite number from 0 up"),
        ({"beta2": 1.0}, "beta1 and beta2 are from 0 to below 1, got 0.9 and 1.0"),
    ],
)
def test_adam_parameters_out_of_range_are_refused(fields: dict[str, float], part: str) -> None:
    with pytest.raises(ValueError) as error:
        AdamParams(**fields)
    assert part in str(error.value)


def test_lora_configs_without_rank_or_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="rank is at least 1, got 0"):
        LoraConfig(rank=0)
    with pytest.raises(ValueError, match="nothing to train: set train_attn, train_mlp or train_unembed"):
        LoraConfig(train_attn=False, train_mlp=False)


def test_a_name_can_be_taken_once(policy: LoraPolicy) -> None:
    with pytest.raises(ValueError, match=r"already has an adapter 'policy'.*remove_lora"):
        policy.base.add_lora("policy")
    policy.base.remove_lora("policy")
    policy.base.add_lora("policy")


def damaged(name: str, content: bytes) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return edit


def cut_short(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-100])

    return edit


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def configured(**fields: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_config.json"
        config = {**json.loads(path.read_text()), **fields}
        path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))

    return edit


def retensored(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return edit


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
DAMAGE: list[tuple[Callable[[Path], None], type[Exception], list[str]]] = [
    (
        without("adapter_model.safetensors"),
        FileNotFoundError,
        ["holds no adapter weights", "safetensors is missing"],
    ),
    (without("adapter_config.json"), FileNotFoundError, ["holds no LoRA adapter", "adapter_config.json is missing"]),
    (without("optimizer.safetensors"), FileNotFoundError, ["has no optimizer.safetensors", "with_optimizer=False"]),
    (without("policy.json"), FileNotFoundError, ["has no policy.json", "with_optimizer=False"]),
    (
        cut_short("adapter_model.safetensors"),
        ValueError,
        ["adapter_model.safetensors is damaged", "another checkpoint"],
    ),
    (damaged("adapter_model.safetensors", b"not"), ValueError, ["is damaged", "use another checkpoint"]),
    (cut_short("optimizer.safetensors"), ValueError, ["is damaged", "use another checkpoint"]),
    (damaged("policy.json", b"{}"), ValueError, ["is damaged", "version", "use another checkpoint"]),
    (damaged("adapter_config.json", b'{"r": 4'), ValueError, ["adapter_config.json is damaged", "another checkpoint"]),
    (damaged("adapter_config.json", b"[]"), ValueError, ["adapter_config.json is damaged", "another checkpoint"]),
    (configured(r=...), ValueError, ["has no r", "another checkpoint"]),
    (configured(use_dora=True), ValueError, ["only plain LoRA", "use_dora True"]),
    (configured(use_rslora=True), ValueError, ["only plain LoRA", "use_rslora True"]),
    (configured(rank_pattern={"q_proj": 2}), ValueError, ["only plain LoRA", "rank_pattern {'q_proj': 2}"]),
    (configured(bias="all"), ValueError, ["only plain LoRA", "bias 'all'"]),
    (configured(peft_type="IA3"), ValueError, ["only plain LoRA", "peft_type 'IA3'"]),
    (configured(lora_alpha=5), ValueError, ["lora_alpha 5", "this policy has 32.0", "load_lora"]),
    (retensored(lambda t: t.pop(FIRST)), ValueError, ["does not fit", "1 tensors missing", FIRST]),
    (retensored(lambda t: t.update(other=torch.zeros(1))), ValueError, ["does not fit", "1 unknown ['other']"]),
    (
        retensored(lambda t: t.update({FIRST: torch.zeros(2, 2)})),
        ValueError,
        [f"1 of another shape ['{FIRST}: (2, 2) where (4, 64) is expected']", "rank and target modules"],
    ),
]


@pytest.mark.parametrize(("damage", "kind", "parts"), DAMAGE)
def test_a_damaged_state_is_refused_and_changes_nothing(
    policy: LoraPolicy, damage: Callable[[Path], None], kind: type[Exception], parts: list[str], tmp_path: Path
) -> None:
    policy.forward_backward(rl_data(branching()), "ppo")
    policy.optim_step()
    policy.save_state(tmp_path)
    damage(tmp_path)
    other = stirred_policy(policy.base, "other", seed=8)
    before = weights(other)
    with pytest.raises(kind) as error:
        other.load_state(tmp_path)
    assert all(part in str(error.value) for part in parts), error.value
    assert unchanged(other, before) and other.version == 0


def test_a_folder_that_is_not_there_is_named(policy: LoraPolicy, tmp_path: Path) -> None:
    for load in (policy.load_state, policy.load_adapter, lambda folder: policy.base.load_lora("new", folder)):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            load(tmp_path / "nowhere")
    assert set(policy.base.adapters) == {"policy"}


def test_an_adapter_of_another_base_is_refused(policy: LoraPolicy, tmp_path: Path) -> None:
    stranger = stirred_policy(tiny_base(seed=1, max_position_embeddings=64))
    stranger.save_state(tmp_path)
    mine, theirs = policy.base.fingerprint, stranger.base.fingerprint
    assert mine != theirs == tiny_base(seed=1).fingerprint
    for load in (policy.load_state, policy.load_adapter, lambda folder: policy.base.load_lora("new", folder)):
        with pytest.raises(ValueError, match="trained on another base model") as error:
            load(tmp_path)
        assert mine in str(error.value) and theirs in str(error.value) and "adapter_config.json" in str(error.value)
    assert set(policy.base.adapters) == {"policy"}


def test_an_adapter_of_another_rank_or_with_other_layers_is_refused(policy: LoraPolicy, tmp_path: Path) -> None:
    wide = stirred_policy(policy.base, "wide", rank=5)
    wide.save_adapter(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"28 of another shape .*\(5, 64\) where \(4, 64\).*rank and target modules"):
        policy.load_adapter(tmp_path / "wide")
    narrow = stirred_policy(policy.base, "narrow", train_mlp=False)
    narrow.save_adapter(tmp_path / "narrow")
    with pytest.raises(ValueError, match=r"12 tensors missing .*mlp.*0 unknown"):
        policy.load_adapter(tmp_path / "narrow")


def test_an_output_embedding_that_is_not_the_bases_own_is_refused(policy: LoraPolicy, tmp_path: Path) -> None:
    """PEFT stores the whole output embedding along with an adapter of it; another one would be another model."""
    head = policy.base.model.get_output_embeddings().weight.detach()
    name = "base_model.model.lm_head.base_layer.weight"
    policy.save_adapter(tmp_path)
    retensored(lambda t: t.update({name: head.clone()}))(tmp_path)
    policy.load_adapter(tmp_path)
    retensored(lambda t: t.update({name: head + 0.01}))(tmp_path)
    with pytest.raises(ValueError, match=r"brings its own .*lm_head.*not this base's"):
        policy.load_adapter(tmp_path)


def test_an_adapter_for_layers_that_are_not_there_is_refused(policy: LoraPolicy, tmp_path: Path) -> None:
    policy.save_adapter(tmp_path)
    configured(target_modules=["c_attn"])(tmp_path)
    with pytest.raises(ValueError, match=r"adapts \['c_attn'\], and no linear layer of tiny is called so"):
        policy.base.load_lora("new", tmp_path)


def test_an_unknown_type_of_weights_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dtype is auto or one of \['bfloat16', .*got 'int8'"):
        BaseModel.load(str(tmp_path), dtype="int8")


def test_the_tokens_of_a_long_prompt_just_fit(policy: LoraPolicy) -> None:
    """The border of the first test here: one token less is fine."""
    (completion,) = policy.sampler().sample([random_tokens(0, 63)], 1, SamplingParams(stop=()))[0]
    assert len(completion.tokens) == 1
