"""How tests make each registered environment: its arguments, with data written into a folder where it needs some.

An id that is registered has a row here; a row whose id is not registered (yet, or without an extra) does no harm.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Kwargs = dict[str, Any]


@dataclass(frozen=True)
class EnvRow:
    """The arguments of an environment, all of them such as JSON holds, and the packages it cannot do without."""

    kwargs: Callable[[Path], Kwargs] = field(default=lambda folder: {})
    needs: Sequence[str] = ()

    @property
    def missing(self) -> list[str]:
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def with_data(rows: Sequence[Mapping[str, Any]], **kwargs: Any) -> Callable[[Path], Kwargs]:
    """Arguments of an environment that reads rows: a folder with the splits train and test."""

    def make(folder: Path) -> Kwargs:
        folder.mkdir(parents=True, exist_ok=True)
        for split in ("train", "test"):
            lines = (json.dumps(row, ensure_ascii=False) for row in rows)
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return {"data": str(folder), **kwargs}

    return make


def always(**kwargs: Any) -> Callable[[Path], Kwargs]:
    return lambda folder: dict(kwargs)


GSM8K = [
    {
        "question": f"Ann has {n} apples and buys {n + 2} more. How many has she?",
        "answer": f"She has {n} + {n + 2} = <<{n}+{n + 2}={2 * n + 2}>>{2 * n + 2} apples.\n#### {2 * n + 2}",
    }
    for n in range(1, 13)
]
MATH = [
    {
        "problem": f"What is $\\frac{{{2 * n}}}{{4}}$?",
        "solution": f"Dividing, we get $\\boxed{{\\frac{{{n}}}{{2}}}}$.",
        "answer": f"\\frac{{{n}}}{{2}}",
        "level": "Level 2",
        "type": "Prealgebra",
        "subject": "Prealgebra",
        "unique_id": f"test/prealgebra/{n}.json",
    }
    for n in range(1, 26, 2)
]
DEEPMATH = [
    {
        "question": f"Evaluate the limit of $\\frac{{{n} x}}{{x}}$ as $x \\to 0$.",
        "final_answer": str(n),
        "difficulty": 4.5,
        "topic": "Mathematics -> Calculus -> Limits",
        "r1_solution_1": "cancel",
    }
    for n in range(2, 14)
]
POLARIS = [
    {"problem": f"Find the sum of the first {n} odd numbers.", "answer": str(n * n), "difficulty": "4/8"}
    for n in range(2, 14)
]

ROWS: dict[str, EnvRow] = {
    "loragym/Arithmetic-v0": EnvRow(),
    "loragym/GuessNumber-v0": EnvRow(),
    "loragym/Mixture-v0": EnvRow(
        always(
            environments=[
                {"environment": "loragym/Arithmetic-v0", "env_kwargs": {"high": 9}, "weight": 3},
                {
                    "environment": "loragym/GuessNumber-v0",
                    "wrappers": [{"wrapper": "TurnLimit", "max_turns": 4}],
                    "name": "guess",
                },
            ]
        )
    ),
    "loragym/Wrapped-v0": EnvRow(
        always(
            environment="loragym/GuessNumber-v0",
            env_kwargs={"high": 99},
            wrappers=[
                {"wrapper": "TurnLimit", "max_turns": 5},
                {"wrapper": "LengthBudget", "max_length": 500},
                {"wrapper": "TurnCost", "cost": 0.01},
                {"wrapper": "StopReasonReward", "reply": {"length": -0.5}, "episode": {"max_turns": -1}},
                {"wrapper": "ClipReward", "low": -1, "high": 1},
                {"wrapper": "SystemPrompt", "text": "Halve the range each time."},
            ],
        )
    ),
    # Math
    "loragym/GSM8K-v0": EnvRow(with_data(GSM8K), needs=("sympy",)),
    "loragym/MATH-v0": EnvRow(with_data(MATH), needs=("sympy",)),
    "loragym/DeepMath-v0": EnvRow(with_data(DEEPMATH), needs=("sympy",)),
    "loragym/Polaris-v0": EnvRow(with_data(POLARIS), needs=("sympy",)),
    "loragym/Countdown-v0": EnvRow(),
    "loragym/ReasoningGym-v0": EnvRow(always(dataset="basic_arithmetic"), needs=("reasoning_gym",)),
    # Tools
    "loragym/Calculator-v0": EnvRow(),
    "loragym/Ledger-v0": EnvRow(),
    "loragym/Search-v0": EnvRow(needs=("bm25s",)),
    # Games
    "loragym/TwentyQuestions-v0": EnvRow(),
    "loragym/TicTacToe-v0": EnvRow(),
    "loragym/ConnectFour-v0": EnvRow(),
    "loragym/KuhnPoker-v0": EnvRow(),
    "loragym/Bargaining-v0": EnvRow(),
    "loragym/TextArena-v0": EnvRow(always(game="GuessTheNumber-v0"), needs=("textarena",)),
    # Preference, and any prompts
    "loragym/Prompts-v0": EnvRow(),
    "loragym/RewardModel-v0": EnvRow(),
    "loragym/Pairwise-v0": EnvRow(),
    "loragym/Shorter-v0": EnvRow(),
    "loragym/Rubric-v0": EnvRow(),
}
