"""Procedural data sets of reasoning-gym: scored by their own rules, whatever a reply says."""

from __future__ import annotations

import importlib.util
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from loragym.messages import reply

pytest.importorskip("reasoning_gym")

from loragym.envs.math import reasoning_gym as module
from loragym.envs.math.grading.pool import Failed

WORKER = Path(module.__file__).with_name("reasoning_worker.py")


def make(dataset: str = "basic_arithmetic", **kwargs: Any) -> Any:
    return gymnasium.make("loragym/ReasoningGym-v0", disable_env_checker=True, dataset=dataset, **kwargs).unwrapped


def worker_functions() -> Any:
    spec = importlib.util.spec_from_file_location("reasoning_worker", WORKER)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def said(env: Any, answer: str, index: int = 0) -> tuple[float, dict[str, Any]]:
    """The reward of an answer between tags, and the info."""
    env.reset(options={"index": index})
    _, reward, terminated, truncated, info = env.step(f"<answer>{answer}</answer>")
    assert terminated and not truncated
    return reward, info


# Each of these once gave its own answer nothing, as it hangs on a set's order, a global generator, or sympy's innards.
DELICATE = ["polynomial_multiplication", "ransom_note", "list_functions", "number_sorting", "intermediate_integration"]


@pytest.mark.parametrize(
    "dataset", ["basic_arithmetic", "word_sorting", "countdown", "sudoku", "spiral_matrix", *DELICATE]
)
def test_the_reference_earns_1_and_nonsense_nothing(dataset: str) -> None:
    env = make(dataset)
    for index in range(6):
        _, info = env.reset(options={"index": index})
        if "Integral(" in info["reference"]:
            continue  # where the package could not solve its own problem
        assert env.step(f"I think {info['reference']}")[1] == pytest.approx(1.0)
        reward, info = said(env, "certainly not this", index)
        assert reward == 0
        assert info["metrics"] == {"score": 0, "correct": 0, "format": 1, "timeout": 0, "failed": 0}


@pytest.mark.slow
def test_every_data_set_makes_problems_and_earns_its_own_answer_1_and_stands_attacks() -> None:
    from reasoning_gym.factory import DATASETS

    without_answers, partly = set(), set()
    for dataset in sorted(set(DATASETS) - {"composite"}):
        env = make(dataset)
        for index in range(3):
            _, info = env.reset(options={"index": index})
            if "reference" not in info:
                without_answers.add(dataset)
            elif env.step(info["reference"])[1] < 1 and "Integral(" not in info["reference"]:
                partly.add(dataset)
        for attack in ATTACKS:
            reward, _ = said(env, attack)
            assert 0 <= reward <= 0.5, (dataset, attack)
    assert without_answers == {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
    assert not partly


def test_a_composite_is_several_data_sets() -> None:
    specs = [{"name": name, "weight": 1, "config": {}} for name in ("gcd", "leg_counting", "word_ladder")]
    env = make("composite", config={"datasets": specs})
    openings = []
    for index in range(12):
        _, info = env.reset(options={"index": index})
        openings.append(info["problem"])
        assert env.step(info["reference"])[1] == pytest.approx(1.0)
    assert sum("legs" in opening for opening in openings) < 12 == len(set(openings))


def test_without_tags_or_with_two_answers_there_is_no_answer() -> None:
    env = make()
    _, info = env.reset(seed=1)
    right = info["reference"].removeprefix("<answer>").removesuffix("</answer>")
    for text in (right, f"<answer>{right}</answer> or <answer>1</answer>", f"<answer>{right}", f"{right}</answer>", ""):
        env.reset(seed=1)
        assert env.step(text)[1] == pytest.approx(-0.1)
    env.reset(seed=1)
    _, reward, _, _, after = env.step(reply(f"<answer>{right}</answer>", "length"))
    assert (reward, after["stop_reason"], after["metrics"]["format"]) == (pytest.approx(0.9), "length", 0)
    loose = make(answer_tags=False)
    loose.reset(seed=1)
    assert loose.step(right)[1] == pytest.approx(1.0)


def test_a_part_of_the_score_is_kept_or_not() -> None:
    _, info = make("leg_counting").reset(options={"index": 0})
    right = info["reference"].removeprefix("<answer>").removesuffix("</answer>")
    for exact in (False, True):
        reward, after = said(make("leg_counting", exact=exact), f"{right} or so")
        assert after["metrics"]["correct"] == 0
        assert (reward == 0) == exact
        assert said(make("leg_counting", exact=exact), right)[0] == 1


# Hostile answers

CANARY = "canary_of_reasoning_gym"
ATTACKS = [
    "9**9**9**9",
    "((9**99)**999)**9999",
    f"[__import__('pathlib').Path('{CANARY}').touch()]",
    f"__import__('os').system('touch {CANARY}')",
    f"[open('{CANARY}', 'w')]",
    "[c for c in ().__class__.__base__.__subclasses__()]",
    "(" * 3000,
    "[" * 3000,
    "factorial(10**9)",
    "1e999999999",
    "9" * 19_000,
    "x" * 1_000_000,
    "\ud800\x00\u202e",
    "nan",
    "[NaN, NaN]",
    "",
]


@pytest.mark.parametrize("dataset", ["spiral_matrix", "n_queens", "countdown", "simple_integration", "puzzle24"])
def test_attacks_on_scorers_earn_nothing_run_nothing_and_end_in_time(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    env = make(dataset, time_limit=1.0)
    for attack in ATTACKS:
        start = time.perf_counter()
        reward, info = said(env, attack)
        assert reward == 0, attack
        assert info["metrics"]["correct"] == 0
        assert time.perf_counter() - start < 30
    assert not list(tmp_path.iterdir())
    assert not Path(CANARY).exists()


@pytest.mark.parametrize(
    ("dataset", "answers"),
    [
        ("complex_arithmetic", ["nan", "NaN + nanj", "nani"]),
        ("number_sorting", ["['nan', 'nan', 'nan']", "[NaN, NaN, NaN]"]),
        ("game_of_life_halting", ["no idea", "1", "halts"]),
        ("puzzle24", ["24"]),
        ("intermediate_integration", ["Integral(x, x)"]),
    ],
)
def test_holes_in_scorers_earn_nothing(dataset: str, answers: list[str]) -> None:
    env = make(dataset)
    for index in range(6):
        for answer in answers:
            assert said(env, answer, index)[0] == 0


def test_an_answer_that_takes_too_long_or_breaks_the_scorer_is_counted() -> None:
    slow = make("coin_flip", time_limit=0.5)
    reward, info = said(slow, "1e99999999")
    assert (reward, info["metrics"]["timeout"], info["metrics"]["failed"]) == (0, 1, 0)
    assert "0.5 seconds" in info["failure"]
    reward, info = said(make("prime_factorization"), "two times three")
    assert (reward, info["metrics"]["timeout"], info["metrics"]["failed"]) == (0, 0, 1)
    assert "ValueError" in info["failure"]


def test_a_worker_that_is_killed_loses_no_episode() -> None:
    env = make("gcd")
    _, info = env.reset(seed=3)
    pool = module._workers(env.time_limit)
    for pid in pool.process_ids():
        os.kill(pid, signal.SIGKILL)
    assert env.step(info["reference"])[1] == 1.0


@settings(max_examples=40)
@given(text=st.text(max_size=300))
def test_any_text_is_a_legal_reply(text: str) -> None:
    env = make("sudoku")
    for action in (text, f"<answer>{text}</answer>"):
        env.reset(seed=0)
        assert -0.1 <= env.step(action)[1] <= 1


def test_formulas_are_numbers_letters_and_elementary_functions() -> None:
    worker = worker_functions()
    good = ["2*x**2 + C", "-cos(6*x - 4)**2/2", "6*x**2*y**3*z**4", "(1 + 2.5)*3/(4 - 1)", "exp(-x**2)*log(x)", "x^2"]
    for text in good:
        assert worker.checked_formula(text) == text
    bad = ["__import__('os')", "x.y", "S('1')", "9**9**9", "1e9", "lambda: 1", "[1]", "factorial(9)", "x" * 3000, "2;3"]
    for text in bad:
        with pytest.raises(worker.Refused):
            worker.checked_formula(text)


@given(st.text(max_size=100) | st.text(alphabet="0123456789+-*/().^ exsincog_'[]", max_size=60))
def test_no_text_disturbs_the_reading_of_formulas(text: str) -> None:
    worker = worker_functions()
    try:
        worker.checked_formula(text)
    except worker.Refused:
        return
    assert not set(text) & set("_'\"[]{}:;=\\") and ".." not in text


UNREVIEWED = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("reasoning_worker", sys.argv[1])
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
desk = worker.Desk(lambda *seconds: None, {"seconds": 5.0, "patience": 5.0})
import sympy
from sympy.parsing import sympy_parser
from reasoning_gym.arithmetic.gcd import GCDDataset as Dataset
scorers = {
    "eval": lambda answer: len(eval(answer)),
    "exec": lambda answer: exec(answer) or 1,
    "parser": lambda answer: float(sympy_parser.parse_expr(answer)),
    "sympify": lambda answer: float(sympy.sympify(answer)),
    "patched": lambda answer: float(sympy.parse_expr(answer)),
    "own": lambda answer: float(sympy.simplify("1/2 + 1/2")),
    "file": lambda answer: open(answer, "w").write("x"),
    "system": lambda answer: __import__("os").system("true"),
    "remove": lambda answer: __import__("os").remove(answer),
    "connect": lambda answer: __import__("socket").create_connection(("127.0.0.1", 9)),
    "fine": lambda answer: 1.0,
}
for name, scorer in scorers.items():
    Dataset.score_answer = lambda self, answer, entry, scorer=scorer: scorer(answer)
    job = {"do": "score", "dataset": "gcd", "config": {}, "number": 7, "answer": "max(1, 2)" if name != "file" else "f"}
    desk.nonsense["gcd", "{}", 7] = 0.0
    print(name, desk.work(job))
"""


def test_a_scorer_that_nobody_has_reviewed_is_refused_what_is_dangerous(tmp_path: Path) -> None:
    """As another version of the package might have: `eval` of the answer, files, programs, connections."""
    command = [sys.executable, "-c", UNREVIEWED, str(WORKER)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=tmp_path)
    found = dict(line.split(" ", 1) for line in ran.stdout.splitlines())
    refused = {name for name, result in found.items() if "Refused" in result}
    assert refused == {"eval", "exec", "parser", "patched", "file", "system", "remove", "connect", "sympify"}, found
    assert found["fine"] == found["own"] == "{'score': 1.0}"
    assert not list(tmp_path.iterdir())


# Splits and seeds


def test_no_problem_is_in_both_splits() -> None:
    seen: dict[Any, set[str]] = {}
    for split in ("train", "test", None):
        env = make("chain_sum", split=split, config={"max_terms": 2, "max_digits": 1, "min_digits": 1}, size=60)
        seen[split] = {env.reset(options={"index": index})[1]["problem"] for index in range(60)}
    assert not seen["train"] & seen["test"]
    assert len(seen["train"]) > 30 and len(seen["test"]) > 5
    assert seen[None] & seen["train"] and seen[None] - seen["train"]


CODE = """
import gymnasium
for name in ("ransom_note", "list_functions", "pool_matrix", "word_ladder"):
    env = gymnasium.make("loragym:loragym/ReasoningGym-v0", dataset=name)
    print(ascii([env.reset(seed=seed) for seed in (1, 2, 3)]))
"""


def test_the_same_seed_is_the_same_problem_in_any_process_with_any_hashes() -> None:
    printed = {
        subprocess.run(
            [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120, check=True, env=env
        ).stdout
        for env in ({**os.environ, "PYTHONHASHSEED": seed} for seed in ("1", "2"))
    }
    assert len(printed) == 1
    assert len(set(printed.pop().splitlines())) == 4


def test_global_generators_are_left_alone() -> None:
    random.seed(0)
    np.random.seed(0)
    before = random.getstate(), np.random.get_state()[1].tolist()
    env = make("pool_matrix")
    first = env.reset(seed=1)
    env.step("x")
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert env.reset(seed=1) == first


def test_a_data_set_that_prints_does_no_harm() -> None:
    env = make("codeio")
    for index in range(60):
        _, info = env.reset(options={"index": index})
    assert env.step(info["reference"])[1] == 1.0


def test_problems_that_cannot_be_made_are_passed_over_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = module._ask
    monkeypatch.setattr(module, "_find", module._find.__wrapped__)

    def fails_once(seconds: float, do: str, dataset: str, config: str, **more: Any) -> Any:
        is_first = do == "make" and more["number"] == module._number(0, 0)
        return {"error": "IndexError: a bug"} if is_first else ask(seconds, do, dataset, config, **more)

    monkeypatch.setattr(module, "_ask", fails_once)
    env = make("gcd", split=None)
    with pytest.warns(UserWarning, match="of gcd: IndexError: a bug"):
        _, info = env.reset(options={"index": 0})
    assert "Greatest Common Divisor" in info["problem"] and env._problem.number == module._number(0, 1)
    monkeypatch.setattr(module, "_ask", lambda *_, **__: Failed("timeout", "more than 60 seconds"))
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match=r"of gcd .* \(5 tries, more than 60 seconds\)"):
        env.reset(options={"index": 0})


def test_a_range_without_held_out_problems_says_so() -> None:
    env = make("coin_flip", split="test", config={"min_trials": 3, "max_trials": 3, "allow_at_least": False})
    with pytest.raises(RuntimeError, match=r"in the split 'test' \(500 tries\); widen its range"):
        for index in range(10):
            env.reset(options={"index": index})


# Conformance


def test_it_is_a_gymnasium_environment_and_survives_pickling() -> None:
    env = make("leg_counting")
    check_env(env)
    _, info = env.reset(seed=4)
    twin = pickle.loads(pickle.dumps(env))
    assert twin.step(info["reference"]) == env.step(info["reference"])
    assert twin.reset() == env.reset()
    assert env.num_problems == 10_000


@pytest.mark.parametrize(
    ("kwargs", "complaint"),
    [
        ({"dataset": "no_such"}, "no data set 'no_such'"),
        ({"config": {"nope": 1}}, "no data set 'basic_arithmetic' with .*nope"),
        ({"config": {"min_terms": -1}}, "no data set 'basic_arithmetic' with"),
        ({"config": {"seed": 1}}, r"config has \['seed'\]"),
        ({"config": {"min_terms": {1}}}, "what JSON does not"),
        ({"size": 0}, "size is at least 1"),
        ({"time_limit": 0}, "time_limit is above 0"),
        ({"split": "dev"}, "split is one of .*'dev'"),
    ],
)
def test_what_cannot_be_made_says_why(kwargs: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make(**kwargs)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"loragym\[reasoning\]"):
        module.ReasoningGym()
