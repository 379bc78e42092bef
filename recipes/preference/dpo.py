"""Direct preference optimisation on the pairs of `rlhf`: the same warm-up, the same labels, no reward model.

    python -m loragym.recipes.preference.dpo
    python -m loragym.recipes.preference.dpo --dpo.beta 0.3 --run-dir runs/dpo-held
    loragym train dpo --data my_pairs.jsonl

The last one trains on pairs of your own, without the stages around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from loragym.recipes.preference.stages import StagesConfig, compare, label_pairs, warm_up
from loragym.trainers import DPOConfig, dpo
from loragym.trainers.checkpoints import find_adapter
from loragym.trainers.command_line import config_from
from loragym.trainers.reports import print_held_out

DPO = DPOConfig(learning_rate=1e-4, batch_size=32, epochs=1, max_length=256, eval_every=10)


@dataclass(frozen=True, kw_only=True)
class Config(StagesConfig):
    """Two stages: warm-up, DPO."""

    run_dir: str = "runs/dpo"
    """Directory of all stages; running the same command again goes on where it stopped."""
    dpo: DPOConfig = field(default_factory=lambda: DPO)
    """The second stage; its data are made by the recipe."""


def main(argv: Sequence[str] | None = None) -> None:
    config = config_from(Config(), prog="loragym train preference/dpo", description=__doc__, argv=argv)
    print("1. warm-up: the base learns to reply shortly")
    warm_up(config)
    print("2. DPO on pairs labelled by the gold preference")
    train_pairs, test_pairs = label_pairs(config)
    summary = dpo.train(
        config.of_run(
            config.dpo,
            "dpo",
            data=str(train_pairs),
            test_data=str(test_pairs),
            adapter=str(config.folder / "warmup"),
        )
    )
    base = config.load_base()
    warmed, tuned = (base.load_lora(n, find_adapter(config.folder / n)) for n in ("warmup", "dpo"))
    before, after = (compare(base, policy, warmed, config) for policy in (warmed, tuned))
    print(f"\nLoss of the first step: {summary['first_loss']:.4f}")
    print_held_out(summary, {"test/loss": "loss", "test/accuracy": "accuracy", "test/margin": "margin of the rewards"})
    print(f"Gold score on held-out prompts: {before.gold:.3f} -> {after.gold:.3f}")
    print(f"Gold win rate against the warm-up: {after.win_rate:.3f}, at a KL of {after.kl:.2f} nats a reply")


if __name__ == "__main__":
    main()
