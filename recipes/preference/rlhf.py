"""Reinforcement learning from preferences, in three stages and one command.

Warm-up: the base learns to reply shortly, from its own short replies. Reward model: pairs of replies are labelled by a
gold preference (cheerfulness, see `gold`) that the reward model does not see, and a scalar head learns them. RL: the
policy is rewarded by that model, held near the warm-up by a KL penalty. Then every checkpoint is held against the gold:
the over-optimisation curve (Gao et al. 2023).

    python -m loragym.recipes.preference.rlhf
    python -m loragym.recipes.preference.rlhf --rl.kl-coef 0 --run-dir runs/rlhf-unheld
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loragym.envs.datasets import write_rows
from loragym.recipes.preference.stages import StagesConfig, compare, label_pairs, warm_up
from loragym.recipes.preference.topics import prompts
from loragym.trainers import RewardConfig, RLConfig, reward, rl
from loragym.trainers.checkpoints import CheckpointStore, find_adapter
from loragym.trainers.command_line import config_from
from loragym.trainers.reward_models import ScalarRewardModel, load_reward_model

REWARD = RewardConfig(learning_rate=1e-3, batch_size=32, epochs=2, max_length=256, eval_every=10)
RL = RLConfig(
    env="loragym/RewardModel-v0",
    steps=40,
    problems_per_step=8,
    group_size=8,
    learning_rate=3e-4,
    kl_coef=0.02,
    kl_reference="start",
    eval_every=0,
    eval_problems=16,
    save_every=10,
    keep_checkpoints=100,
    max_concurrent=512,
)


@dataclass(frozen=True, kw_only=True)
class Config(StagesConfig):
    """Three stages: warm-up, reward model, RL."""

    run_dir: str = "runs/rlhf"
    """Directory of all stages; running the same command again goes on where it stopped."""
    reward: RewardConfig = field(default_factory=lambda: REWARD)
    """The second stage; its data are made by the recipe."""
    rl: RLConfig = field(default_factory=lambda: RL)
    """The third stage; environment and reward model are the recipe's."""


def main(argv: Sequence[str] | None = None) -> None:
    config = config_from(Config(), prog="loragym train preference/rlhf", description=__doc__, argv=argv)
    print("1. warm-up: the base learns to reply shortly")
    warmed = warm_up(config)
    print("2. reward model: learns the gold preference from labelled pairs")
    train_pairs, test_pairs = label_pairs(config)
    judged = reward.train(
        config.of_run(config.reward, "reward", data=str(train_pairs), test_data=str(test_pairs), kind="scalar")
    )
    print("3. RL on the reward model")
    rl.train(rl_config(config))
    rows = optimisation_curve(config)
    minutes = [
        json.loads((config.folder / n / "summary.json").read_text())["minutes"] for n in ("warmup", "reward", "rl")
    ]
    print(f"\nWarm-up: held-out nll {warmed['before']['test/nll']:.3f} -> {warmed['after']['test/nll']:.3f}")
    print(f"Reward model: accuracy {judged['after']['test/accuracy']:.3f} on held-out pairs")
    print("step   KL to the warm-up   reward model   gold score   gold win rate against the warm-up")
    for row in rows:
        print(f"{row['step']:4d}{row['kl']:20.2f}{row['proxy']:15.3f}{row['gold']:13.3f}{row['win_rate']:37.3f}")
    print(f"\nMinutes of the stages: {', '.join(f'{m:.1f}' for m in minutes)}")
    picture = draw(rows, config.folder / "over-optimisation.png")
    print(picture or "no picture: matplotlib is not installed")


def rl_config(config: Config) -> RLConfig:
    """The third stage's config."""
    data = config.folder / "prompts"
    for split in ("train", "test"):
        write_rows(data / f"{split}.jsonl", [{"prompt": prompt} for prompt in prompts(split)])
    found: RLConfig = config.of_run(
        config.rl,
        "rl",
        adapter=str(config.folder / "warmup"),
        reward_model=str(config.folder / "reward"),
        # All replies of a group are scored in one call.
        env_kwargs={"data": str(data), "when": "group", **config.rl.env_kwargs},
        max_tokens=config.max_tokens,
    )
    return found


def optimisation_curve(config: Config) -> list[dict[str, Any]]:
    """Proxy and gold of the warm-up and of every checkpoint, on held-out prompts."""
    base = config.load_base()
    warmed = base.load_lora("warmup", find_adapter(config.folder / "warmup"))
    judge = load_reward_model(base, config.folder / "reward")
    assert isinstance(judge, ScalarRewardModel)
    store = CheckpointStore(config.folder / "rl" / "checkpoints")
    rows = []
    for step in [0, *store.steps()]:
        policy = warmed if step == 0 else base.load_lora(f"step {step}", store.path(step))
        found = compare(base, policy, warmed, config)
        scores = judge.score(found.replies)
        rows.append(
            {
                "step": step,
                "kl": found.kl,
                "proxy": sum(scores) / len(scores),
                "gold": found.gold,
                "win_rate": found.win_rate,
                "example": found.replies[step % len(found.replies)][-1]["content"],
            }
        )
        if step:
            base.remove_lora(f"step {step}")
    write_rows(config.folder / "over-optimisation.jsonl", rows)
    return rows


def draw(rows: Sequence[dict[str, Any]], picture: Path) -> Path | None:
    """Proxy and gold by the KL's root; None without matplotlib."""
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError:
        return None
    figure, proxy = pyplot.subplots(figsize=(6, 3.8), layout="constrained")
    gold = proxy.twinx()
    distance = [max(0.0, row["kl"]) ** 0.5 for row in rows]
    order = sorted(range(len(rows)), key=distance.__getitem__)
    for axis, name, colour in ((proxy, "proxy", "C0"), (gold, "gold", "C1")):
        axis.plot([distance[i] for i in order], [rows[i][name] for i in order], "o-", color=colour)
        axis.set_ylabel({"proxy": "reward model's score", "gold": "gold score"}[name], color=colour)
    proxy.set_xlabel("root of the KL to the warm-up, nats a reply")
    proxy.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
    return picture


if __name__ == "__main__":
    main()
