"""The bundled model learns arithmetic on this machine, in minutes: the claim of the package, kept small."""

from __future__ import annotations

from pathlib import Path

import pytest
from loragym.trainers import RLConfig, rl

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(3600)]


def test_the_bundled_model_learns_to_add(bundled: Path, tmp_path: Path) -> None:
    summary = rl.train(
        RLConfig(
            run_dir=str(tmp_path),
            model=str(bundled),
            env="loragym/Arithmetic-v0",
            env_kwargs={"high": 9},
            warmup_steps=4,
            steps=20,
            problems_per_step=16,
            group_size=8,
            max_tokens=8,
            learning_rate=1e-4,
            eval_every=0,
        )
    )
    before, after_warmup, after = (
        summary[stage]["test/sampled/env/correct"] for stage in ("before", "after_warmup", "after")
    )
    assert before < 0.1
    assert after_warmup < 0.75
    assert after >= 0.8
    # Held out are six problems only; the reward is over 128 fresh episodes a step.
    assert summary["first_reward"] < 0.65
    assert summary["last_reward"] > 0.85
