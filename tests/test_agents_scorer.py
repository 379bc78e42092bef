"""A scorer gives a number for a position, learns on the frozen base, and is a PEFT sequence classifier on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from loragym.agents import AdamParams, BaseModel, Datum, LoraConfig, LoraScorer
from loragym.agents.losses import bradley_terry
from tiny_engine import branching, eager, random_tokens, stirred, tiny_base


def stirred_scorer(base: BaseModel, name: str = "scorer") -> LoraScorer:
    scorer = base.add_scorer(name, LoraConfig(rank=4))
    stirred(scorer)  # type: ignore[arg-type]
    with torch.no_grad():
        scorer.head_1H.copy_(torch.linspace(-1, 1, scorer.head_1H.numel())[None])
    return scorer


def at_ends(sequences: Sequence[Sequence[int]]) -> list[Datum]:
    return [Datum.scored(sequence, [len(sequence) - 1]) for sequence in sequences]


def squares(scores: list[torch.Tensor], data: Sequence[Datum]) -> tuple[torch.Tensor, Mapping[str, float]]:
    return (torch.cat(scores) ** 2).sum(), {"scored": float(len(data))}


@pytest.mark.parametrize("tokens_per_pass", [14, 2048])
def test_a_score_is_the_heads_product_with_the_last_state(tokens_per_pass: int) -> None:
    base = tiny_base()
    scorer = stirred_scorer(base)
    scorer.tokens_per_pass = tokens_per_pass
    sequences = branching()
    found = scorer.score([Datum.scored(s, [0, len(s) - 1]) for s in sequences])
    for sequence, scores in zip(sequences, found, strict=True):
        with eager(base) as model, base.switch.using(scorer.adapter):
            hidden = model.model(torch.tensor([sequence]), use_cache=False).last_hidden_state[0]
        expected = (hidden[[0, -1]] @ scorer.head_1H.T).squeeze(-1).detach().numpy()
        np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_a_new_scorer_gives_zero() -> None:
    scorer = tiny_base().add_scorer("critic")
    assert all(scores == 0 for scores in scorer.score(at_ends(branching())))


@pytest.mark.parametrize("part", ["head", "q_proj.lora_A", "down_proj.lora_B"])
def test_gradients_are_those_of_finite_differences(part: str) -> None:
    scorer = stirred_scorer(tiny_base(dtype=torch.float64))
    data = at_ends(branching())
    scorer.forward_backward(data, squares)
    name = next(name for name in scorer.optimizer.tensors if part in name or (part == "head" and "score" in name))
    tensor = scorer.optimizer.tensors[name]
    assert tensor.grad is not None
    entry = int(tensor.grad.abs().argmax())
    flat, slope = tensor.detach().view(-1), tensor.grad.view(-1)[entry].item()
    before, values = flat[entry].item(), []
    for moved in (before + 1e-5, before - 1e-5):
        flat[entry] = moved
        values.append(scorer.forward_backward(data, squares).loss)
    # Norms compute in float32 in every model, so differences are good to a few digits only.
    assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=2e-2)


def test_several_passes_give_the_gradient_of_one() -> None:
    scorer = stirred_scorer(tiny_base(dtype=torch.float64))
    data = at_ends(branching())
    found = []
    for tokens_per_pass in (14, 2048):
        scorer.tokens_per_pass = tokens_per_pass
        out = scorer.forward_backward(data, squares)
        assert out.metrics["scored"] == len(data)
        found.append([t.grad.clone() for t in scorer.optimizer.tensors.values() if t.grad is not None])
        scorer.zero_grad()
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(*found, strict=True))


def test_state_comes_back_with_the_head_and_the_optimiser(tmp_path: Path) -> None:
    base = tiny_base()
    scorer, data = stirred_scorer(base), at_ends(branching())

    def learn(who: LoraScorer) -> None:
        who.forward_backward(data, squares)
        who.optim_step(AdamParams(learning_rate=1e-2))

    learn(scorer)
    scorer.save_state(tmp_path)
    other = base.add_scorer("other", LoraConfig(rank=4, seed=9))
    other.load_state(tmp_path)
    learn(scorer)
    learn(other)
    assert other.version == scorer.version == 2
    for a, b in zip(scorer.optimizer.tensors.values(), other.optimizer.tensors.values(), strict=True):
        assert torch.equal(a, b)


def test_the_folder_is_a_peft_sequence_classifier(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    base = tiny_base()
    scorer, sequence = stirred_scorer(base), random_tokens(3, 11)
    scorer.save_adapter(tmp_path / "scorer")
    base.model.save_pretrained(tmp_path / "base")
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(classifier, tmp_path / "scorer")(torch.tensor([sequence])).logits.item()
    assert scorer.score(at_ends([sequence]))[0][0] == pytest.approx(theirs, abs=1e-4)
    loaded = base.load_scorer("loaded", tmp_path / "scorer")
    assert loaded.score(at_ends([sequence]))[0][0] == scorer.score(at_ends([sequence]))[0][0]


def test_a_policy_and_a_scorer_do_not_take_each_others_folders(tmp_path: Path) -> None:
    base = tiny_base()
    base.add_lora("policy", LoraConfig(rank=4)).save_adapter(tmp_path / "policy")
    stirred_scorer(base).save_adapter(tmp_path / "scorer")
    with pytest.raises(ValueError, match=r"1 tensors missing \['base_model.model.score.weight'\]"):
        base.load_scorer("other", tmp_path / "policy")
    with pytest.raises(ValueError, match=r"1 unknown \['base_model.model.score.weight'\]"):
        base.load_lora("another", tmp_path / "scorer")
    with pytest.raises(ValueError, match="already has an adapter 'scorer'"):
        base.add_scorer("scorer")


def test_it_learns_to_prefer(tmp_path: Path) -> None:
    scorer = tiny_base().add_scorer("reward", LoraConfig(rank=4))
    liked, other = ([[*random_tokens(i, 10)[:-1], end] for i in range(12)] for end in (7, 8))
    labels = torch.ones(len(liked))

    def loss(scores: list[torch.Tensor], data: Sequence[Datum]) -> tuple[torch.Tensor, Mapping[str, float]]:
        first, second = torch.cat(scores[: len(liked)]), torch.cat(scores[len(liked) :])
        return bradley_terry(first, second, labels), {}

    losses = []
    for _ in range(30):
        losses.append(scorer.forward_backward(at_ends([*liked, *other]), loss).loss)
        scorer.optim_step(AdamParams(learning_rate=1e-2))
    assert losses[0] == pytest.approx(np.log(2)) and losses[-1] < 0.05
    new = [random_tokens(100 + i, 9) for i in range(10)]
    a, b = (np.concatenate(scorer.score(at_ends([[*tokens, end] for tokens in new]))) for end in (7, 8))
    assert (a > b).mean() >= 0.9
