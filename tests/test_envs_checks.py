"""An environment that breaks the contract is named, with what came, what was expected and what to do."""

import math
from fractions import Fraction
from typing import Any

import gymnasium
import numpy as np
import pytest
from loragym.envs import (
    BadEnvironment,
    GroupScore,
    Messages,
    Replies,
    TextEnv,
    checked_group_score,
    checked_reset,
    checked_step,
    env_attribute,
    scores_groups,
)
from loragym.messages import user

GOOD_RESET = ((user("Hi"),), {})
GOOD_STEP = ((), 0.0, True, False, {})


class Scripted(gymnasium.Env):
    """Returns what it was told to return."""

    def __init__(self, reset: Any = GOOD_RESET, step: Any = GOOD_STEP) -> None:
        self.observation_space, self.action_space = Messages(), Replies()
        self.reset_result, self.step_result = reset, step

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.heard = (seed, options)
        return self.reset_result

    def step(self, action: Any) -> Any:
        self.heard = action
        return self.step_result


def test_a_good_environment_passes_through() -> None:
    env = Scripted(step=((user("ok"),), np.float32(0.5), np.bool_(True), False, {"metrics": {"correct": True}}))
    assert checked_reset(env, seed=3, options={"index": 1}) == ((user("Hi"),), {"metrics": {}})
    assert env.heard == (3, {"index": 1})
    observation, reward, terminated, truncated, info = checked_step(env, "hello")
    assert env.heard == "hello"
    assert (observation, reward, terminated, truncated) == ((user("ok"),), 0.5, True, False)
    assert type(reward) is float and type(terminated) is bool
    assert info == {"metrics": {"correct": 1.0}}


@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        ((user("Hi"),), "a tuple of 1; expected a tuple of 2"),
        ("Hi", "'Hi'; expected a tuple of 2"),
        (("Hi", {}), "observation 'Hi', which is no tuple"),
        (([user("Hi")], {}), "which is no tuple; return a tuple such as"),
        ((({"role": "human", "content": "Hi"},), {}), r"observation\[0\]: role is one of .* got 'human'"),
        ((({"role": "user", "content": 3},), {}), r"observation\[0\]: content is a str, got 3"),
        (((), {}), "returned no messages"),
        (((user("Hi"),), None), "info=None; expected a dict"),
    ],
)
def test_a_bad_reset_is_explained(result: Any, complaint: str) -> None:
    with pytest.raises(BadEnvironment, match=rf"Scripted: reset\(\).*{complaint}"):
        checked_reset(Scripted(reset=result))


@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        (
            ((), 0.0, True, {}),
            r"a tuple of 4; expected a tuple of 5: \(observation, reward, terminated, truncated, info",
        ),
        ((None, 0.0, True, False, {}), "observation None"),
        (((), math.nan, True, False, {}), "reward=nan; expected a finite number"),
        (((), math.inf, True, False, {}), "reward=inf"),
        (((), 10**400, True, False, {}), "reward=1000"),
        (((), "1", True, False, {}), "reward='1'"),
        (((), True, True, False, {}), "reward=True"),
        (((), np.zeros(2), True, False, {}), "reward=array"),
        (((), 0.0, 1, False, {}), "terminated=1; expected True or False"),
        (((), 0.0, True, None, {}), "truncated=None"),
        (((), 0.0, True, False, []), r"info=\[\]"),
        (((), 0.0, True, False, {"metrics": 0.5}), "metrics'"),
        (((), 0.0, True, False, {"metrics": {"correct": "yes"}}), r"info\['metrics'\]\['correct'\]='yes'"),
        (((), 0.0, True, False, {"metrics": {"loss": math.nan}}), "'loss'"),
        (((), 0.0, True, False, {"stop_reason": 7}), "stop_reason"),
    ],
)
def test_a_bad_step_is_explained(result: Any, complaint: str) -> None:
    with pytest.raises(BadEnvironment, match=rf"Scripted: step\(\).*{complaint}"):
        checked_step(Scripted(step=result), "hello")


@pytest.mark.parametrize("reward", [1, np.int64(1), np.float16(1), Fraction(1)])
def test_every_kind_of_real_number_is_a_reward(reward: Any) -> None:
    assert checked_step(Scripted(step=((), reward, False, True, {})), "")[1] == 1.0


def test_a_registered_environment_is_named_by_its_id() -> None:
    gymnasium.register("tests/Scripted-v0", entry_point=Scripted)
    env = gymnasium.make("tests/Scripted-v0", disable_env_checker=True, reset=None)
    with pytest.raises(BadEnvironment, match="tests/Scripted-v0: reset"):
        checked_reset(env)
    del gymnasium.registry["tests/Scripted-v0"]


def test_the_error_of_an_environment_is_left_alone() -> None:
    env = Scripted()
    env.step = lambda action: 1 / 0
    with pytest.raises(ZeroDivisionError):
        checked_step(env, "hello")


class Judge(Scripted):
    """Gives a group what it was told to give."""

    def __init__(self, given: Any = None) -> None:
        super().__init__()
        self.given = given

    def score_group(self, episodes: Any) -> Any:
        return self.given


EPISODES = [[user("Hi")], [user("Hi")]]


@pytest.mark.parametrize("given", [[1, 0.5], np.array([1.0, 0.5]), (np.float32(1), 0.5), GroupScore(rewards=[1, 0.5])])
def test_group_rewards_are_numbers_one_for_each_episode(given: Any) -> None:
    score = checked_group_score(Judge(given), EPISODES)
    assert score is not None
    assert score.rewards == [1.0, 0.5] and all(type(reward) is float for reward in score.rewards)


def test_group_rewards_may_come_with_metrics() -> None:
    score = checked_group_score(Judge(GroupScore(rewards=[1, 0], metrics=[{"won": True}, {"won": 0}])), EPISODES)
    assert score == GroupScore(rewards=[1.0, 0.0], metrics=[{"won": 1.0}, {"won": 0.0}])


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ([1.0], "gave 1 rewards for 2 episodes; it returns one number per episode"),
        (1.0, "gave 1.0; it returns one number per episode"),
        ("10", "gave '10'; it returns one number per episode"),
        ({0: 1.0, 1: 0.0}, "it returns one number per episode"),
        ([1.0, math.nan], "the reward of episode 1=nan; expected a finite number"),
        (GroupScore(rewards=[1, 0], metrics=[{}]), "gave 1 metrics for 2 episodes"),
        (GroupScore(rewards=[1, 0], metrics=[{"won": "yes"}, {}]), r"info\['metrics'\]\['won'\]='yes'"),
    ],
)
def test_bad_group_rewards_are_explained(given: Any, complaint: str) -> None:
    with pytest.raises(BadEnvironment, match=rf"Judge: score_group.*{complaint}"):
        checked_group_score(Judge(given), EPISODES)


def test_who_has_no_group_rewards_is_not_asked() -> None:
    class Plain(TextEnv):
        def begin(self, options: Any) -> Any:
            return [user("Hi")], {}

        def respond(self, reply: Any) -> Any:
            raise NotImplementedError

    assert not scores_groups(Plain()) and not scores_groups(Scripted())
    assert checked_group_score(Plain(), EPISODES) is checked_group_score(Scripted(), EPISODES) is None
    assert scores_groups(Judge()) and checked_group_score(Judge(), EPISODES) is None  # it may still have none


def test_an_attribute_is_that_of_the_outermost_that_has_it() -> None:
    inner = Scripted()
    inner.colour = "red"

    class Painted(gymnasium.Wrapper):
        colour = "blue"

    assert env_attribute(gymnasium.Wrapper(inner), "colour") == "red"
    assert env_attribute(Painted(inner), "colour") == "blue"
    assert env_attribute(Painted(inner), "size", 3) == 3
