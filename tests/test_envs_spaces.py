"""What counts as an observation and as an action, and that both spaces behave as Gymnasium's own."""

import copy
import json
import pickle
import time
from functools import partial

import gymnasium
import pytest
from gymnasium.vector import SyncVectorEnv
from hypothesis import given
from hypothesis import strategies as st
from loragym.envs import Messages, Replies
from loragym.messages import Message, as_reply, copied, reply, user

SPACES = [Messages, Replies]

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["role", "content", "stop_reason"]), inner),
)
nearly_replies = st.fixed_dictionaries(
    {"role": st.sampled_from(["assistant", "user"]) | anything, "content": st.text() | anything},
    optional={"stop_reason": st.sampled_from(["stop", "length", "malformed"]) | anything},
)


@given(st.text())
def test_any_string_is_an_action_and_any_content_a_message(text: str) -> None:
    assert text in Replies()
    assert (user(text),) in Messages()


def test_a_lone_surrogate_is_text_too() -> None:
    assert "\ud800" in Replies()


@given(anything | nearly_replies)
def test_an_action_is_legal_exactly_if_it_can_be_read_as_a_reply(action: object) -> None:
    try:
        as_reply(action)
        readable = True
    except (TypeError, ValueError):
        readable = False
    assert (action in Replies()) == readable


@pytest.mark.parametrize(
    "observation",
    [
        "hello",
        [user("a list")],
        ("hello",),
        ({"role": "robot", "content": ""},),
        ({"role": "user"},),
        (user("a"), None),
    ],
)
def test_what_is_no_tuple_of_messages_is_no_observation(observation: object) -> None:
    assert observation not in Messages()


def test_membership_does_not_read_the_text() -> None:
    huge = "π" * 10_000_000
    observation = (user(huge),)
    start = time.perf_counter()
    for _ in range(1000):
        assert huge in Replies()
        assert observation in Messages()
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize("space_class", SPACES)
@given(seed=st.integers(0, 2**31))
def test_samples_are_legal_and_follow_from_the_seed(space_class: type[gymnasium.Space], seed: int) -> None:
    first, second = space_class(seed=seed), space_class()
    second.seed(seed)
    for _ in range(5):
        sample = first.sample()
        assert sample in first
        assert sample == second.sample()


def test_samples_reach_beyond_ascii_and_show_every_kind_of_reply() -> None:
    space = Replies(seed=0)
    samples = [as_reply(space.sample()) for _ in range(100)]
    assert any(not sample["content"].isascii() for sample in samples)
    assert {sample["stop_reason"] for sample in samples} == {"stop", "length", "malformed"}


@pytest.mark.parametrize("space_class", SPACES)
def test_a_mask_is_warned_about_and_a_legal_sample_returned(space_class: type[gymnasium.Space]) -> None:
    space = space_class(seed=0)
    with pytest.warns(UserWarning, match="mask"):
        assert space.sample(mask=(1, 0)) in space
    with pytest.warns(UserWarning, match="probability"):
        assert space.sample(probability=(0.5, 0.5)) in space


@pytest.mark.parametrize("space_class", SPACES)
def test_samples_survive_json(space_class: type[gymnasium.Space]) -> None:
    space = space_class(seed=1)
    samples = [space.sample() for _ in range(20)]
    assert space.from_jsonable(json.loads(json.dumps(space.to_jsonable(samples)))) == samples


@pytest.mark.parametrize("space_class", SPACES)
def test_a_pickled_space_goes_on_where_it_was(space_class: type[gymnasium.Space]) -> None:
    space = space_class(seed=2)
    space.sample()
    twin = pickle.loads(pickle.dumps(space))
    assert twin == space
    assert [twin.sample() for _ in range(5)] == [space.sample() for _ in range(5)]


def test_spaces_are_equal_by_kind_and_name_themselves() -> None:
    assert Messages() == Messages(seed=3)
    assert Messages() != Replies()
    assert repr(Replies()) == "Replies()"
    assert not Messages().is_np_flattenable


def test_a_tuple_of_spaces_samples_without_shared_randomness() -> None:
    space = gymnasium.spaces.Tuple([Replies(), Replies()], seed=0)
    first, second = space.sample()
    assert first != second
    assert (reply("a"), "b") in space


def test_what_a_vector_gives_is_the_callers_own() -> None:
    envs = SyncVectorEnv([partial(gymnasium.make, "loragym/GuessNumber-v0")] * 2)
    observations, _ = envs.reset(seed=1)
    kept = copy.deepcopy(observations)
    observations[0][1]["content"] = "scribbled over"
    again = envs.step(("Guess: 1", "Guess: 1"))[0]
    again[1][0]["content"] = "scribbled over"
    assert envs.reset(seed=1)[0] == kept
    assert all(type(observation) is tuple for observation in kept)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "Hm?"},
        {"role": "tool", "content": "", "name": "search", "tool_call_id": "1"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "name": "add", "arguments": {"x": [1]}}]},
    ],
)
def test_a_copied_message_shares_nothing_with_the_original(message: Message) -> None:
    original = copy.deepcopy(message)
    (other,) = copied([message])
    assert other == message and other is not message
    other["content"] = "scribbled over"
    for call in other.get("tool_calls", []):
        call["arguments"]["x"].append(2)
    assert message == original
