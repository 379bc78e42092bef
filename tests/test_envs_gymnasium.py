"""The two smallest environments in all that Gymnasium does with one; `test_envs_conformance` has the laws for all."""

import importlib
import pickle
import random
import subprocess
import sys
import warnings
from functools import partial

import gymnasium
import loragym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from loragym.envs import CATALOGUE
from loragym.messages import reply

ENV_IDS = ["loragym/Arithmetic-v0", "loragym/GuessNumber-v0"]
VECTORISERS = [SyncVectorEnv, partial(AsyncVectorEnv, shared_memory=False)]


def in_a_bare_interpreter(code: str, *options: str) -> str:
    result = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_catalogue_names_both_environments_and_says_what_they_are() -> None:
    assert {"loragym/Arithmetic-v0", "loragym/GuessNumber-v0"} <= set(CATALOGUE)
    for env_id, description in CATALOGUE.items():
        assert env_id in gymnasium.registry
        assert description.endswith(".") and "\n" not in description


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_the_environment_checker_has_nothing_to_say(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(env_id).unwrapped)


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_a_bare_interpreter_can_make_it_and_gets_the_same_problem(env_id: str) -> None:
    code = f"import gymnasium; print(gymnasium.make('loragym:{env_id}').reset(seed=11))"
    elsewhere = in_a_bare_interpreter(code, "-W", "error")
    assert elsewhere == repr(gymnasium.make(env_id).reset(seed=11))


def test_the_import_is_quick_and_light() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import loragym; print(time.perf_counter() - start);"
        "print([name for name in ('torch', 'transformers', 'pettingzoo', 'sympy') if name in sys.modules])"
    )
    runs = [in_a_bare_interpreter(code).splitlines() for _ in range(4)]
    assert {heavy for _, heavy in runs} == {"[]"}
    assert min(float(seconds) for seconds, _ in runs) < 0.3


def test_a_second_import_registers_nothing_anew() -> None:
    spec = gymnasium.spec(ENV_IDS[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(loragym.envs)
    assert gymnasium.spec(ENV_IDS[0]) is spec


@pytest.mark.parametrize("env_id", ENV_IDS)
@settings(max_examples=30)
@given(seed=st.integers(0, 2**63 - 1))
def test_the_seed_is_the_problem(env_id: str, seed: int) -> None:
    used, fresh = gymnasium.make(env_id), gymnasium.make(env_id)
    used.reset(seed=1)
    used.step("anything")
    assert used.reset(seed=seed) == fresh.reset(seed=seed)
    assert used.step("anything") == fresh.step("anything")
    assert used.reset() == fresh.reset()


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_seeds_give_different_problems(env_id: str) -> None:
    env = gymnasium.make(env_id)
    assert len({env.reset(seed=seed)[1]["problem"] for seed in range(50)}) > 20


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_two_environments_and_the_global_generators_leave_each_other_alone(env_id: str) -> None:
    alone = gymnasium.make(env_id)
    expected = [alone.reset(seed=1), alone.reset(), alone.reset()]
    random.seed(0)
    np.random.seed(0)
    global_state = random.getstate(), np.random.get_state()[1].tolist()
    first, second = gymnasium.make(env_id), gymnasium.make(env_id)
    got = [first.reset(seed=1)]
    second.reset(seed=2)
    second.step(second.action_space.sample())
    got.append(first.reset())
    second.reset()
    got.append(first.reset())
    assert got == expected
    assert first.action_space is not second.action_space
    assert (random.getstate(), np.random.get_state()[1].tolist()) == global_state


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_the_same_index_is_the_same_problem_whatever_the_seed(env_id: str) -> None:
    first, second = gymnasium.make(env_id), gymnasium.make(env_id)
    assert first.reset(seed=1, options={"index": 3}) == second.reset(seed=2, options={"index": 3})
    assert first.reset(options={"index": 4}) != second.reset(options={"index": 3})


def batch(envs: VectorEnv, reply: str) -> tuple[str, ...]:
    return (reply,) * envs.num_envs


@pytest.mark.parametrize("vectorise", VECTORISERS, ids=["sync", "async"])
def test_a_vector_resets_at_the_next_step(vectorise: partial) -> None:
    single = gymnasium.make("loragym/Arithmetic-v0")
    envs = vectorise([partial(gymnasium.make, "loragym:loragym/Arithmetic-v0")] * 2)
    observations, infos = envs.reset(seed=[5, 6])
    assert observations == (single.reset(seed=5)[0], single.reset(seed=6)[0])
    observations, rewards, terminations, truncations, infos = envs.step(tuple(infos["reference"]))
    assert rewards.tolist() == [1.0, 1.0]
    assert terminations.all() and not truncations.any()
    assert observations == ((), ())
    assert infos["metrics"]["correct"].tolist() == [1.0, 1.0]
    observations, rewards, terminations, *_ = envs.step(batch(envs, "ignored"))
    assert all(observation[-1]["role"] == "user" for observation in observations)
    assert rewards.tolist() == [0.0, 0.0] and not terminations.any()
    envs.close()


@pytest.mark.parametrize("vectorise", VECTORISERS, ids=["sync", "async"])
def test_a_vector_resets_within_the_step_and_keeps_the_last_observation(vectorise: partial) -> None:
    make = partial(gymnasium.make, "loragym:loragym/GuessNumber-v0", max_turns=1)
    envs = vectorise([make] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    _, infos = envs.reset(seed=0)
    actions = (f"Guess: {infos['problem'][0]}", reply("Guess: 5", "length"))
    observations, rewards, terminations, truncations, infos = envs.step(actions)
    assert [observation[0]["role"] for observation in observations] == ["system", "system"]
    assert terminations.tolist() == [True, False] and truncations.tolist() == [False, True]
    assert rewards.tolist() == pytest.approx([1.0, -0.1])
    assert infos["final_obs"][0][0]["content"] == "Correct."
    assert "Guess: <number>" in infos["final_obs"][1][0]["content"]
    assert infos["final_info"]["stop_reason"].tolist() == ["completed", "max_turns"]
    envs.close()


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_a_vector_plays_random_replies(env_id: str) -> None:
    envs = SyncVectorEnv([partial(gymnasium.make, env_id)] * 3)
    envs.reset(seed=0)
    envs.action_space.seed(0)
    for _ in range(25):
        observations, rewards, *_ = envs.step(envs.action_space.sample())
        assert observations in envs.observation_space
        assert np.isfinite(rewards).all()


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_a_pickled_environment_goes_on_where_it_was(env_id: str) -> None:
    env = gymnasium.make(env_id)
    env.reset(seed=4)
    twin = pickle.loads(pickle.dumps(env))
    assert twin.step("anything") == env.step("anything")
    assert twin.reset() == env.reset()


def test_a_spec_survives_json() -> None:
    kwargs = {"operation": "+-", "low": 3, "split": "test", "system_prompt": "Answer with a number: π."}
    env = gymnasium.make("loragym/Arithmetic-v0", **kwargs)
    assert env.spec is not None
    spec = EnvSpec.from_json(env.spec.to_json())
    assert spec == env.spec
    assert gymnasium.make(spec).reset(seed=9) == env.reset(seed=9)


@pytest.mark.parametrize("env_id", ENV_IDS)
@pytest.mark.parametrize("text", ["", " ", "\x00", "\ud800", "💥" * 1000, "Guess: NaN", "x" * 1_000_000])
def test_any_text_is_a_legal_move(env_id: str, text: str) -> None:
    env = gymnasium.make(env_id)
    env.reset(seed=0)
    first = env.step(text)
    env.reset(seed=0)
    assert env.step(text) == first
    assert first[1] == pytest.approx(-0.1)
    assert first[0] in env.observation_space
