"""Losses of reinforcement, supervised and preference learning, as pure functions.

Token losses return one number per token, to be minimised; which tokens count (the mask) and how they are added up (the
normalisation) is the caller's business and the same for all. Let p be the learner's log-probability of a token, q the
sampler's, A the token's advantage, r = exp(p - q), and sg(.) what no gradient flows through.

Losses of pairs and of values take whole tensors and return a scalar; they are at the end.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import torch
from torch.nn.functional import logsigmoid

Normalization = Literal["sum", "token", "sequence"]
NORMALIZATIONS: tuple[Normalization, ...] = ("sum", "token", "sequence")


@dataclass(frozen=True, slots=True)
class TokenInputs:
    """What a loss knows of each trained token besides p; all are `(X,)` over the trained tokens of some datums.

    Attributes:
        weights: of supervised learning.
        sampler_logprobs: q.
        advantages: A.
        reference_logprobs: of the policy that a KL penalty holds to.
        old_logprobs: the learner's before this step's first update; sg(p) where datums have none.
        sequences: which sequence a token belongs to; all tokens of a sequence are here.
    """

    weights: torch.Tensor
    sampler_logprobs: torch.Tensor
    advantages: torch.Tensor
    reference_logprobs: torch.Tensor
    old_logprobs: torch.Tensor
    sequences: torch.Tensor

    def sequence_mean(self, values: torch.Tensor) -> torch.Tensor:
        """Each token's sequence's mean of `values`, `(X,)`."""
        count = int(self.sequences.max()) + 1 if len(self.sequences) else 0
        totals = values.new_zeros(count).index_add_(0, self.sequences, values)
        lengths = torch.bincount(self.sequences, minlength=count).clamp(min=1)
        return (totals / lengths)[self.sequences]


TokenLoss = Callable[..., torch.Tensor]
LOSSES: dict[str, TokenLoss] = {}
"""Losses by name: `(p, inputs, **config) -> (X,)`."""


def register_loss(loss: TokenLoss) -> TokenLoss:
    """Makes a loss known by its function's name; use as a decorator."""
    LOSSES[loss.__name__] = loss
    return loss


@register_loss
def cross_entropy(p: torch.Tensor, inputs: TokenInputs) -> torch.Tensor:
    """-w p. With several weighted candidates for a target it is the cross-entropy with that distribution."""
    return -inputs.weights * p


@register_loss
def importance_sampling(p: torch.Tensor, inputs: TokenInputs) -> torch.Tensor:
    """-r A: the policy gradient with the sampler's bias divided out (REINFORCE when p = q)."""
    return -torch.exp(p - inputs.sampler_logprobs) * inputs.advantages


@register_loss
def ppo(
    p: torch.Tensor, inputs: TokenInputs, clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float = 0.0
) -> torch.Tensor:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), token by token (Schulman et al. 2017, eq. 7).

    `clip_high` above `clip_low` is DAPO's asymmetric clip (Yu et al. 2025). With `dual_clip` c > 1 the loss of a token
    with A < 0 is at most -c A, whatever its ratio (Ye et al. 2020, eq. 8).
    """
    ratio = torch.exp(p - inputs.sampler_logprobs)
    return _clipped(ratio, inputs.advantages, clip_low, clip_high, dual_clip)


@register_loss
def gspo(p: torch.Tensor, inputs: TokenInputs, clip_low: float = 3e-4, clip_high: float = 4e-4) -> torch.Tensor:
    """PPO's loss with the ratio of whole sequences, s = exp(mean over tokens of p - q) (Zheng et al. 2025).

    Token form: the ratio is sg(s) exp(p - sg(p)), so that each token passes its own share of the gradient on. The
    defaults are the paper's; sequence ratios stay much nearer to 1 than those of tokens.
    """
    fixed = p.detach()
    ratio = torch.exp(inputs.sequence_mean(fixed - inputs.sampler_logprobs) + p - fixed)
    return _clipped(ratio, inputs.advantages, clip_low, clip_high, 0.0)


def _clipped(
    ratio: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float, dual_clip: float
) -> torch.Tensor:
    objective = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    if dual_clip:
        if dual_clip <= 1:
            raise ValueError(f"dual_clip is above 1, or 0 for none; got {dual_clip}")
        objective = torch.where(advantages < 0, torch.maximum(objective, dual_clip * advantages), objective)
    return -objective


@register_loss
def cispo(p: torch.Tensor, inputs: TokenInputs, ratio_low: float = 0.0, ratio_high: float = 4.0) -> torch.Tensor:
    """-sg(clip(r, ratio_low, ratio_high)) A p: clipped ratios, but no token loses its gradient (MiniMax 2025, eq. 4).

    With `ratio_low` 0 this is truncated importance sampling (Espeholt et al. 2018).
    """
    ratio = torch.exp(p.detach() - inputs.sampler_logprobs)
    return -ratio.clamp(ratio_low, ratio_high) * inputs.advantages * p


@register_loss
def dro(p: torch.Tensor, inputs: TokenInputs, beta: float = 0.05) -> torch.Tensor:
    """-(A p - beta (p - q)^2 / 2), direct reward optimisation (Richemond et al. 2024), token by token."""
    return -(inputs.advantages * p - beta / 2 * (p - inputs.sampler_logprobs) ** 2)


KL_ESTIMATORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "k1": lambda difference: difference,
    "k2": lambda difference: difference**2 / 2,
    "k3": lambda difference: torch.exp(-difference) - 1 + difference,
}
"""Estimates of KL(p, reference) from samples of p by name, functions of p - reference (Schulman 2020).

k1 and k3 have the right mean. Of a loss term only k2's gradient is that of the KL in the mean; k3's is that of the KL
the other way round, and k1's is zero.
"""


def kl_estimate(name: str, difference: torch.Tensor) -> torch.Tensor:
    """An estimator of `KL_ESTIMATORS` at p - reference; raises ValueError if there is none of that name."""
    if name not in KL_ESTIMATORS:
        raise ValueError(f"unknown KL estimator {name!r}; there are {sorted(KL_ESTIMATORS)}")
    return KL_ESTIMATORS[name](difference)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """What any loss of reinforcement learning can be given besides its own arguments.

    Masked tokens still count where token losses are averaged.
    """

    kl_coef: float = 0.0
    """Adds so many times the estimated KL to the reference; datums need `reference_logprobs`."""
    kl_estimator: str = "k2"
    """How it is estimated: k1, k2 or k3."""
    max_weight: float = 0.0
    """Takes the ratio to the learner's own log-probabilities at the step's start (old) instead of the sampler's, and
    weighs tokens by min(exp(old - q), max_weight): truncated importance sampling (Yao et al. 2025). 0: off."""
    mask_token_low: float = 0.0
    """Tokens whose ratio exp(p - q) is lower have loss 0."""
    mask_token_high: float = float("inf")
    """Tokens whose ratio is higher have loss 0."""
    mask_sequence_low: float = 0.0
    """Sequences whose mean ratio, exp(mean(p - q)), is lower have loss 0."""
    mask_sequence_high: float = float("inf")
    """Sequences whose mean ratio is higher have loss 0."""

    def __call__(self, loss: TokenLoss, p: torch.Tensor, inputs: TokenInputs) -> torch.Tensor:
        """The guarded loss of each token."""
        kept = self._kept(p.detach(), inputs)
        if kept is not None:
            # Neither the loss nor the gradient of a masked token may overflow: no factor of 0 would make it 0.
            p = torch.where(kept, p, inputs.sampler_logprobs)
        if self.max_weight:
            weight = torch.exp(inputs.old_logprobs - inputs.sampler_logprobs).clamp(max=self.max_weight)
            value = loss(p, replace(inputs, sampler_logprobs=inputs.old_logprobs)) * weight
        else:
            value = loss(p, inputs)
        if self.kl_coef:
            value = value + self.kl_coef * kl_estimate(self.kl_estimator, p - inputs.reference_logprobs)
        return value if kept is None else torch.where(kept, value, 0.0)

    def _kept(self, p: torch.Tensor, inputs: TokenInputs) -> torch.Tensor | None:
        if (self.mask_token_low, self.mask_sequence_low) == (0.0, 0.0) and self.mask_token_high == float(
            "inf"
        ) == self.mask_sequence_high:
            return None
        difference = p - inputs.sampler_logprobs
        token, sequence = torch.exp(difference), torch.exp(inputs.sequence_mean(difference))
        return (
            (token >= self.mask_token_low)
            & (token <= self.mask_token_high)
            & (sequence >= self.mask_sequence_low)
            & (sequence <= self.mask_sequence_high)
        )


GUARDS = tuple(field.name for field in fields(Guards))


def token_loss(name: str, config: Mapping[str, Any] | None = None) -> Callable[..., torch.Tensor]:
    """The registered loss of that name with its arguments and guards: `(p, inputs) -> (X,)`.

    Args:
        name: one of `LOSSES`.
        config: the loss's own arguments, and fields of `Guards`.

    Raises:
        ValueError: there is no such loss, or it takes no such argument.
    """
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}; registered are {sorted(LOSSES)}, and `register_loss` adds your own")
    loss, config = LOSSES[name], dict(config or {})
    guards = {key: config.pop(key) for key in GUARDS if key in config}
    _, _, *own = inspect.signature(loss).parameters.values()
    known = [parameter.name for parameter in own if parameter.kind is not parameter.VAR_KEYWORD]
    if len(known) == len(own) and (unknown := config.keys() - set(known)):
        raise ValueError(
            f"the loss {name!r} takes no {', '.join(sorted(unknown))}; it takes {known or 'nothing of its own'}, and "
            f"every loss of reinforcement learning {', '.join(GUARDS)}"
        )
    guarded = Guards(**guards)
    if guarded.kl_estimator not in KL_ESTIMATORS:
        kl_estimate(guarded.kl_estimator, torch.zeros(()))
    bound = partial(loss, **config) if config else loss
    return partial(guarded, bound) if guards else bound


def needed_fields(name: str, config: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The fields that datums must have for a registered loss."""
    if name == "cross_entropy":
        return ("weights",)
    return ("logprobs", "advantages", *(("reference_logprobs",) if (config or {}).get("kl_coef") else ()))


def token_shares(lengths: Sequence[int], normalization: Normalization) -> list[float]:
    """By what each trained token of each datum is multiplied before all are added up.

    Args:
        lengths: number of trained tokens of each datum of the whole batch.
        normalization: `sum` 1; `token` 1 / (trained tokens of the batch); `sequence` 1 / (own trained tokens x datums
            that have any), the mean over sequences of their means.

    Raises:
        ValueError: unknown normalisation, or no token is trained at all.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization is one of {NORMALIZATIONS}, got {normalization!r}")
    total, used = sum(lengths), sum(length > 0 for length in lengths)
    if not total:
        raise ValueError(
            f"no token to train on in a batch of {len(lengths)} datums: every mask or weight is zero; check the "
            "renderer's loss weights and the rollouts' masks"
        )
    if normalization == "sequence":
        return [1 / (length * used) if length else 0.0 for length in lengths]
    return [1 / total if normalization == "token" else 1.0] * len(lengths)


PREFERENCE_LOSSES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "dpo": lambda margin: -logsigmoid(margin),
    "ipo": lambda margin: (margin - 0.5) ** 2,
}
"""Losses of a pair by name, functions of its margin: dpo (Rafailov et al. 2023, eq. 7); ipo (Azar et al. 2024, eq. 17,
times beta squared, with margins in units of beta)."""


def preference_loss(name: str, chosen: torch.Tensor, rejected: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """The mean loss of pairs from their rewards.

    A reward is beta times the log-ratio of learner to reference: of whole replies, or of their mean per token, which is
    the length-normalised variant (Lambert et al. 2024, section 5.1).

    Args:
        name: one of `PREFERENCE_LOSSES`.
        chosen, rejected: rewards, `(P,)` each.
        smoothing: share of the labels that are taken to be wrong (cDPO, Mitchell 2023).
    """
    if name not in PREFERENCE_LOSSES:
        raise ValueError(f"unknown preference loss {name!r}; there are {sorted(PREFERENCE_LOSSES)}")
    loss, margin = PREFERENCE_LOSSES[name], chosen - rejected
    value = loss(margin)
    return ((1 - smoothing) * value + smoothing * loss(-margin) if smoothing else value).mean()


def bradley_terry(
    first: torch.Tensor, second: torch.Tensor, preference: torch.Tensor, margin: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """The mean negative log-likelihood of labelled pairs under P(first wins) = sigmoid(first - second).

    Args:
        first, second: scores, `(P,)` each.
        preference: share of the label that is the first's, `(P,)`: 1 first, 0 second, 0.5 a tie.
        margin: by how much the winner's score should lead at least, in units of the score (Touvron et al. 2023, eq. 2);
            ties have none.
    """
    lead = first - second - margin * torch.sign(preference - 0.5)
    return -(preference * logsigmoid(lead) + (1 - preference) * logsigmoid(-lead)).mean()


def value_loss(
    values: torch.Tensor, returns: torch.Tensor, old_values: torch.Tensor | None = None, clip: float = 0.0
) -> torch.Tensor:
    """(v - R)^2 / 2 of each token; with `clip` the larger of that and of the same with v held near its old value.

    That is the clipped loss of PPO's reference implementation (Dhariwal et al. 2017).

    Args:
        values, returns, old_values: v, R, and v before the step's first update; all of one shape.
        clip: how far v may move before the clipped form holds it; 0 for the plain loss.
    """
    plain = (values - returns) ** 2 / 2
    if not clip:
        return plain
    if old_values is None:
        raise ValueError("a clipped value loss needs the old values")
    held = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum(plain, (held - returns) ** 2 / 2)
