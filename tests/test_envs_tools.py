"""An environment with tools answers every turn: with results, with a reason, or with the end."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import pickle
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from loragym.envs import transcript
from loragym.envs.tools import Tool, ToolEnv, ToolProblemEnv, ToolResult, demonstrate, final_answer, tool
from loragym.messages import Message, Reply, reply, system, user

Calls = Sequence[tuple[str, Mapping[str, Any]]]


def echo(text: str, times: int = 1) -> str:
    """Says it again.

    Args:
        text: what to say.
        times: how often.
    """
    return text * times


def fail(how: Literal["value", "exit", "keyboard", "unprintable", "stop"] = "value") -> str:
    """Fails."""

    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    raise {
        "value": ValueError("no such thing"),
        "exit": SystemExit(3),
        "keyboard": KeyboardInterrupt(),
        "unprintable": Unprintable(),
        "stop": StopIteration(),
    }[how]


def wait(seconds: float) -> str:
    """Waits."""
    time.sleep(seconds)
    return f"waited {seconds:g}"


async def wait_async(seconds: float) -> str:
    """Waits, and lets others work."""
    await asyncio.sleep(seconds)
    return f"waited {seconds:g}"


async def block_async(seconds: float) -> str:
    """Waits without letting others work."""
    time.sleep(seconds)
    return "blocked"


async def stubborn(seconds: float) -> str:
    """Waits, and will not be cancelled."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            await asyncio.sleep(end - time.monotonic())
        except asyncio.CancelledError:
            continue
    return "done at last"


def wrapped_async(seconds: float) -> Any:
    """Returns something to be awaited."""
    return wait_async(seconds)


def roll(dice: np.random.Generator, sides: int = 1000) -> int:
    """Rolls a die."""
    return int(dice.integers(sides))


def submit(answer: str) -> ToolResult:
    """Hands in the answer."""
    return ToolResult(content="handed in", done=True, reward=0.25, metrics={"submitted": 1})


TOOLS = (echo, fail, wait, wait_async, block_async, stubborn, wrapped_async, roll, submit)


class Desk(ToolEnv):
    """Rewards the final answer "yes"; its drawer is changed by a tool of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"tools": TOOLS, "time_limit": 5.0, "max_turns": 4, **options})

    def opening(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        self.drawer: list[str] = []
        return [system("Be brief."), user(f"Number {self.np_random.integers(1000)}?")], {"problem": "?"}

    def final_reward(self, messages: tuple[Message, ...]) -> tuple[float, dict[str, float]]:
        answer = final_answer(messages)
        return float(answer is not None and answer["content"] == "yes"), {"answered": answer is not None}

    @tool
    def put(self, thing: str) -> str:
        """Puts a thing into the drawer."""
        before = list(self.drawer)
        time.sleep(0.02)
        self.drawer = [*before, thing]
        return ",".join(self.drawer)


def desk(**options: Any) -> Desk:
    env = Desk(**options)
    env.reset(seed=0)
    return env


def results(env: ToolEnv, *calls: tuple[str, Mapping[str, Any]]) -> list[str]:
    """What the calls of one turn are answered with."""
    return [message["content"] for message in env.step(env.calling_all(calls))[0]]


def test_results_come_back_in_the_order_of_the_calls_as_tool_messages() -> None:
    env = desk()
    observation, reward, terminated, truncated, info = env.step(
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [
                {"id": "abc", "name": "echo", "arguments": {"text": "hi", "times": 2}},
                {"id": "def", "name": "echo", "arguments": {"text": "ho"}},
            ],
            "stop_reason": "stop",
        }
    )
    assert observation == (
        {"role": "tool", "content": "hihi", "tool_call_id": "abc", "name": "echo"},
        {"role": "tool", "content": "ho", "tool_call_id": "def", "name": "echo"},
    )
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info["calls"] == [{"name": "echo", "status": "ok"}] * 2
    zeros = {"errors": 0.0, "timeouts": 0.0, "refused": 0.0, "malformed": 0.0}
    assert info["metrics"] == {"turns": 1.0, "calls": 2.0, **zeros}


def test_a_reply_without_calls_is_the_final_answer() -> None:
    _, reward, terminated, truncated, info = desk().step("yes")
    assert (reward, terminated, truncated, info["stop_reason"]) == (1.0, True, False, "completed")
    assert info["metrics"]["answered"] == 1.0
    assert desk().step("no")[1] == 0.0


def test_the_conversation_is_judged_as_it_was_held() -> None:
    seen: list[tuple[Message, ...]] = []

    def reward(messages: tuple[Message, ...]) -> float:
        seen.append(messages)
        return 0.5

    class Open(ToolEnv):
        def opening(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
            return [user("Go.")], {}

    env = Open(tools=[echo], reward=reward)
    env.reset(seed=0)
    call = env.calling("echo", text="a")
    env.step(call)
    assert env.step(reply("end", "length"))[1] == 0.5
    result = {"role": "tool", "content": "a", "tool_call_id": "call_0", "name": "echo"}
    assert seen == [(user("Go."), call, result, reply("end", "length"))]


def test_an_environment_without_a_reward_is_refused_at_once() -> None:
    class Rewardless(ToolEnv):
        pass

    with pytest.raises(TypeError, match=r"Rewardless has no reward: write final_reward"):
        Rewardless(tools=[echo])


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two tools are named 'echo'"):
        Desk(tools=[echo, echo])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_turns": 0}, "max_turns is at least 1"),
        ({"max_calls": -1}, "max_calls is at least 0"),
        ({"max_calls_per_turn": 0}, "max_calls_per_turn is at least 1"),
        ({"max_result_chars": 0}, "max_result_chars is at least 1"),
        ({"time_limit": 0}, "time_limit is a positive number"),
        ({"call_format": "xml"}, "call_format is one of"),
        ({"render_mode": "video"}, "render_mode"),
    ],
)
def test_a_bad_option_is_refused_at_once(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Desk(**options)


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (("fail", {}), "Error: ValueError: no such thing"),
        (("fail", {"how": "exit"}), "Error: SystemExit: 3"),
        (("fail", {"how": "keyboard"}), "Error: KeyboardInterrupt"),
        (("fail", {"how": "unprintable"}), "Error: Unprintable: (its message cannot be shown: RuntimeError)"),
        (("fail", {"how": "stop"}), "Error: StopIteration"),
        (("echo", {}), "Error: Wrong arguments for echo: text is missing. It takes text (string), times"),
        (("echo", {"text": "a", "x": 1}), "Error: Wrong arguments for echo: x is unknown."),
        (("echo", {"text": "a", "times": "b"}), "Error: Wrong arguments for echo: times: expected an integer, got 'b'"),
        (("eval", {"code": "1"}), "Error: there is no tool named 'eval'; the tools are: put, echo, fail"),
        (("__class__", {}), "Error: there is no tool named '__class__'"),
        (("x" * 10_000, {}), f"Error: there is no tool named '{'x' * 64}'"),
    ],
)
@pytest.mark.parametrize("time_limit", [5.0, None])
def test_a_call_that_fails_is_answered_in_words_and_counted(
    call: tuple[str, dict[str, Any]], answer: str, time_limit: float | None
) -> None:
    if call == ("fail", {"how": "keyboard"}) and time_limit is None:
        # Without a limit a lone call runs in the caller's thread, where the user's own Ctrl-C must count.
        with pytest.raises(KeyboardInterrupt):
            results(desk(time_limit=None), call)
        return
    env = desk(time_limit=time_limit)
    (message,), reward, terminated, _, info = env.step(env.calling_all([call]))
    assert message["content"].startswith(answer)
    assert (reward, terminated) == (0.0, False)
    assert (info["metrics"]["calls"], info["metrics"]["errors"]) == (1.0, 1.0)
    assert info["calls"][0]["status"] == "error"


def test_arguments_that_came_as_text_are_read_by_their_types() -> None:
    assert results(desk(), ("echo", {"text": 7, "times": "3"})) == ["777"]


def test_a_long_result_is_cut_with_a_note() -> None:
    (cut,) = results(desk(max_result_chars=10), ("echo", {"text": "a", "times": 1000}))
    assert cut == "a" * 10 + "\n[cut: the result has 1000 characters]"


@pytest.mark.parametrize("name", ["wait", "wait_async", "wrapped_async"])
def test_calls_of_one_turn_run_at_once(name: str) -> None:
    env = desk()
    start = time.perf_counter()
    assert results(env, *[(name, {"seconds": 0.5 - i / 100}) for i in range(4)]) == [
        f"waited {0.5 - i / 100:g}" for i in range(4)
    ]
    assert time.perf_counter() - start < 1.5


def test_methods_run_one_by_one_in_order_so_that_state_is_safe() -> None:
    things = [("put", {"thing": letter}) for letter in "abcd"]
    assert results(desk(), *things) == ["a", "a,b", "a,b,c", "a,b,c,d"]
    mixed = desk()
    assert results(mixed, things[0], ("echo", {"text": "-"}), things[1]) == ["a", "-", "a,b"]


@pytest.mark.parametrize("name", ["wait", "wait_async", "block_async", "stubborn", "wrapped_async"])
def test_a_tool_that_hangs_does_not_hang_the_environment(name: str) -> None:
    env = desk(time_limit=0.2)
    start = time.perf_counter()
    answers = results(env, (name, {"seconds": 4}), ("echo", {"text": "fine"}))
    assert time.perf_counter() - start < 3
    assert answers == [f"Error: {name} took longer than 0.2 seconds", "fine"]
    *_, info = env.step(env.calling("wait_async", seconds=0.01))
    assert info["metrics"]["timeouts"] == 1.0 and info["metrics"]["errors"] == 1.0
    assert info["calls"] == [{"name": "wait_async", "status": "ok"}], "async tools work on after one that blocked"


def test_a_tool_has_a_limit_of_its_own() -> None:
    @tool(time_limit=0.1)
    def nap() -> str:
        """Naps."""
        time.sleep(1)
        return "rested"

    assert results(desk(tools=[nap], time_limit=None), ("nap", {})) == ["Error: nap took longer than 0.1 seconds"]


def test_too_many_abandoned_calls_refuse_further_ones_until_they_end() -> None:
    release = threading.Event()

    def hang() -> str:
        """Hangs."""
        release.wait(20)
        return "at last"

    env = Desk(tools=[hang, echo], time_limit=0.02, max_turns=50)
    env.reset(seed=0)
    for _ in range(2):
        env.step(env.calling_all([("hang", {})] * 8))
    assert env._runner.num_abandoned == 16
    (message,), *_, info = env.step(env.calling("echo", text="a"))
    assert "16 earlier calls are still running" in message["content"]
    assert info["calls"][0]["status"] == "refused" and info["metrics"]["refused"] == 1.0
    release.set()
    deadline = time.monotonic() + 5
    while env._runner.num_abandoned and time.monotonic() < deadline:
        time.sleep(0.01)
    assert results(env, ("echo", {"text": "a"})) == ["a"]


def test_async_tools_run_inside_a_running_event_loop_and_outside() -> None:
    async def inside() -> list[str]:
        return results(desk(), ("wait_async", {"seconds": 0.01}), ("wrapped_async", {"seconds": 0.01}))

    assert asyncio.run(inside()) == results(desk(), *[("wait_async", {"seconds": 0.01})] * 2) == ["waited 0.01"] * 2


def test_async_tools_share_one_loop_from_call_to_call() -> None:
    loops = []

    async def where() -> str:
        """Notes the loop."""
        loops.append(asyncio.get_running_loop())
        return "here"

    env = desk(tools=[where])
    results(env, ("where", {}), ("where", {}))
    results(env, ("where", {}))
    assert len(set(map(id, loops))) == 1 and len(loops) == 3
    env.close()
    assert results_after_close(env, loops)


def results_after_close(env: Desk, loops: list[Any]) -> bool:
    """A closed environment that is used again starts anew, and its first loop has ended."""
    env.reset(seed=0)
    results(env, ("where", {}))
    deadline = time.monotonic() + 5
    while not loops[0].is_closed() and time.monotonic() < deadline:
        time.sleep(0.01)
    return loops[0].is_closed() and loops[-1] is not loops[0]


def test_an_environment_that_is_dropped_leaves_no_loop_behind() -> None:
    def loops() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "loragym async tools"}

    before = loops()
    env = desk()
    results(env, ("wait_async", {"seconds": 0}))
    (own,) = loops() - before
    del env
    gc.collect()
    own.join(timeout=30)
    assert not own.is_alive()


def test_generators_follow_the_seed_and_the_order_of_the_calls() -> None:
    def rolls() -> list[str]:
        env = desk()
        return results(env, *[("roll", {})] * 5) + results(env, ("roll", {}))

    assert rolls() == rolls()
    assert len(set(rolls())) > 3
    other = Desk()
    other.reset(seed=1)
    assert results(other, *[("roll", {})] * 5) != rolls()[:5]


def test_a_tool_can_end_the_episode_and_give_reward_and_metrics() -> None:
    env = desk()
    (message,), reward, terminated, truncated, info = env.step(env.calling("submit", answer="42"))
    assert (message["content"], reward, terminated, truncated) == ("handed in", 0.25, True, False)
    assert info["stop_reason"] == "completed"
    assert info["metrics"]["submitted"] == 1.0 and info["metrics"]["answered"] == 0.0


def test_the_turn_limit_truncates_after_the_calls_of_the_last_turn() -> None:
    env = desk(max_turns=2)
    assert env.step(env.calling("put", thing="a"))[2:4] == (False, False)
    (message,), reward, terminated, truncated, info = env.step(env.calling("put", thing="b"))
    assert (message["content"], reward, terminated, truncated) == ("a,b", 0.0, False, True)
    assert info["stop_reason"] == "max_turns"


def test_an_answer_in_the_last_turn_is_an_answer() -> None:
    assert desk(max_turns=1).step("yes")[1:4] == (1.0, True, False)


def test_calls_beyond_the_limits_are_refused_in_words() -> None:
    env = desk(max_calls=3, max_calls_per_turn=2)
    first = results(env, *[("echo", {"text": str(n)}) for n in range(4)])
    assert first[:2] == ["0", "1"] and all("at most 2 calls" in text for text in first[2:])
    second = results(env, *[("echo", {"text": str(n)}) for n in range(2)])
    assert second[0] == "0" and "all 3 calls are used up" in second[1]
    *_, info = env.step("yes")
    assert (info["metrics"]["calls"], info["metrics"]["refused"], info["metrics"]["errors"]) == (6.0, 3.0, 3.0)


def test_a_call_with_wrong_arguments_does_not_use_up_a_call() -> None:
    env = desk(max_calls=1)
    assert results(env, ("echo", {}), ("echo", {"text": "a"}))[1] == "a"


def test_a_reply_that_was_cut_off_ends_the_episode_and_runs_nothing() -> None:
    env = desk()
    call = env.calling("put", thing="a")
    observation, reward, terminated, truncated, info = env.step({**call, "stop_reason": "length"})
    assert (observation, reward, terminated, truncated) == ((), 0.0, True, False)
    assert info["stop_reason"] == "length" and env.drawer == []


MALFORMED: list[Any] = [
    {**reply("<tool_call>{oops", "malformed"), "problem": "tool call 0: not JSON"},
    reply("??", "malformed"),
    reply("<tool_call>{}</tool_call>"),
    {**reply(""), "tool_calls": [{"name": 3, "arguments": {}}]},
    {**reply(""), "tool_calls": [None]},
    {**reply(""), "tool_calls": "echo"},
    {**reply(""), "tool_calls": [{"id": "a", "name": "echo", "arguments": [1]}]},
    {**reply(""), "tool_calls": [{"id": "a", "name": "echo", "arguments": "{"}]},
    {**reply(""), "tool_calls": [{"id": "a"}]},
    {**reply(""), "tool_calls": {"name": "echo"}},
]


@pytest.mark.parametrize("said", MALFORMED, ids=str)
def test_a_turn_that_cannot_be_read_costs_a_tenth_and_is_explained(said: Reply) -> None:
    env = desk()
    (message,), reward, terminated, truncated, info = env.step(copy.deepcopy(said))
    assert message["role"] == "user" and message["content"].startswith("Part of your turn could not be read: ")
    assert reward == pytest.approx(-0.1)
    assert not terminated and not truncated
    assert info["metrics"]["malformed"] == 1.0
    assert env.step("yes")[1] == 1.0


def test_the_calls_beside_one_that_cannot_be_read_are_run() -> None:
    env = desk()
    good = {"id": "a", "name": "echo", "arguments": {"text": "hi"}}
    said: Any = {**reply("", "malformed"), "tool_calls": [good], "problem": "tool call 1: not JSON"}
    (result, complaint), reward, *_ = env.step(said)
    assert result["content"] == "hi" and "tool call 1: not JSON" in complaint["content"]
    assert reward == pytest.approx(-0.1)


def test_the_malformed_cost_can_be_changed_and_the_turn_limit_counts_such_turns() -> None:
    env = desk(malformed_cost=0.5, max_turns=2)
    assert env.step(reply("", "malformed"))[1] == -0.5
    _, reward, terminated, truncated, info = env.step(reply("", "malformed"))
    assert (reward, terminated, truncated, info["stop_reason"]) == (-0.5, False, True, "max_turns")


@pytest.mark.parametrize("tool_calls", [None, []])
def test_an_empty_list_of_calls_is_none_at_all(tool_calls: Any) -> None:
    assert desk().step({**reply("yes"), "tool_calls": tool_calls})[1:3] == (1.0, True)


def test_calls_as_openai_writes_them_are_read() -> None:
    said: Any = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "x", "type": "function", "function": {"name": "echo", "arguments": '{"text": "hi"}'}}],
    }
    (message,), *_ = desk().step(said)
    assert (message["content"], message["tool_call_id"]) == ("hi", "x")


def test_the_transcript_shows_any_reply() -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    for calls in (
        [{"name": "echo", "arguments": {"text": deep}}],
        [{"name": "echo", "arguments": {"text": object()}}],
        [1],
        3,
        None,
    ):
        said: Any = {**reply("x"), "tool_calls": calls}
        assert transcript([said]).startswith("[assistant] x")
        env = desk(render_mode="ansi")
        env.step(said)
        assert "[user] Number" in (env.render() or "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["echo", "fail", "roll", "submit", "put", "wait"]) | JSON
ARGUMENTS = (
    st.fixed_dictionaries(
        {},
        optional={"text": JSON, "times": st.integers(-3, 3), "how": st.sampled_from(["value", "exit"]), "sides": JSON},
    )
    | JSON
)
CALL = st.fixed_dictionaries({}, optional={"id": JSON, "name": NAMES, "arguments": ARGUMENTS}) | JSON
HOSTILE = st.builds(
    lambda content, calls, stop, extra: {
        "role": "assistant",
        "content": content,
        "stop_reason": stop,
        **calls,
        **extra,
    },
    st.text(max_size=20) | st.sampled_from(["<tool_call>", "</tool_call>", '<tool_call>{"name":"echo"}</tool_call>']),
    st.fixed_dictionaries({}, optional={"tool_calls": st.lists(CALL, max_size=4) | JSON}),
    st.sampled_from(["stop", "length", "malformed"]),
    st.fixed_dictionaries({}, optional={"problem": JSON, "thinking": st.text(max_size=5)}),
)


@settings(max_examples=150, deadline=None)
@given(turns=st.lists(HOSTILE, min_size=4, max_size=4), call_format=st.sampled_from(["native", "text"]))
def test_whatever_comes_has_a_defined_result(turns: list[Any], call_format: Any) -> None:
    env = Desk(call_format=call_format, time_limit=0.5)
    env.reset(seed=0)
    total, over = 0.0, False
    metrics: dict[str, float] = {}
    for said in turns:
        observation, reward, terminated, truncated, info = env.step(said)
        assert observation in env.observation_space
        json.dumps(observation)
        total += reward
        metrics = info["metrics"]
        over = terminated or truncated
        if over:
            break
    assert over, "the fourth turn is the last"
    assert metrics["errors"] <= metrics["calls"] and metrics["timeouts"] == 0
    won = total + 0.1 * metrics["malformed"] - 0.25 * metrics.get("submitted", 0)
    assert won == pytest.approx(0.0) or won == pytest.approx(1.0)


@settings(max_examples=60, deadline=None)
@given(
    content=st.lists(st.sampled_from(["<tool_call>", "</tool_call>", '{"name": "echo"', "}", "{", "[", "a"])).map(
        "".join
    )
)
def test_any_text_of_tags_and_brackets_is_read(content: str) -> None:
    env = desk(call_format="text")
    observation, reward, terminated, *_ = env.step(content)
    assert observation in env.observation_space and reward in (0.0, pytest.approx(-0.1))
    assert terminated == ("tool_call>" not in content)


def test_a_thousand_calls_in_a_megabyte_are_answered_quickly() -> None:
    env = desk(call_format="text")
    said = '<tool_call>{"name": "echo", "arguments": {"text": "a"}}</tool_call>' * 15_000
    start = time.perf_counter()
    *_, info = env.step(said)
    assert time.perf_counter() - start < 10
    assert info["metrics"]["calls"] == 15_000 and info["metrics"]["refused"] == 15_000 - 8
    unclosed = desk(call_format="text")
    start = time.perf_counter()
    unclosed.step("<tool_call>" * 90_000)
    assert time.perf_counter() - start < 5


def test_in_the_text_format_the_tools_are_offered_in_words_and_called_in_words() -> None:
    env = Desk(call_format="text", tools=[echo])
    (instruction, _), _ = env.reset(seed=0)
    assert env.tools == ()
    assert instruction["content"].startswith("Be brief.\n\n")
    for line in ('{"name": "<tool>", "arguments": {<its arguments as JSON>}}', '"description": "what to say."'):
        assert line in instruction["content"]
    said = 'Let me see. <tool_call>{"name": "echo", "arguments": {"text": "hi"}}</tool_call> and\n' + "".join(
        ["<tool_call>", '{"name": "echo", "arguments": {"text": "</tool_response>"}}', "</tool_call>"]
    )
    (message,), reward, terminated, *_ = env.step(said)
    assert message == user(
        "<tool_response>\nhi\n</tool_response>\n<tool_response>\n</ tool_response>\n</tool_response>"
    )
    assert (reward, terminated) == (0.0, False)
    assert env.step("yes")[1] == 1.0


def test_in_the_text_format_a_call_that_a_renderer_has_read_counts_as_well() -> None:
    env = desk(call_format="text")
    native = desk().calling("echo", text="hi")
    native["content"] = '<tool_call>{"name": "echo", "arguments": {"text": "ho"}}</tool_call>'
    first, second = env.step(native)[0]
    assert (first["role"], first["content"]) == ("tool", "hi")
    assert (second["role"], second["content"]) == ("user", "<tool_response>\nho\n</tool_response>")


def test_without_a_system_message_the_text_format_adds_one() -> None:
    class Bare(Desk):
        def opening(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
            return [user("Go.")], {}

    opening, _ = Bare(call_format="text").reset(seed=0)
    assert [message["role"] for message in opening] == ["system", "user"]


def test_an_environment_is_pickled_and_copied_without_its_threads() -> None:
    env = desk()
    results(env, ("wait_async", {"seconds": 0}), ("put", {"thing": "a"}))
    for twin in (pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
        assert results(twin, ("put", {"thing": "b"}), ("roll", {}))[0] == "a,b"
        assert twin.toolbox["put"].function.__self__ is twin
    assert env.drawer == ["a"]


if "tests/Desk-v0" not in gymnasium.registry:
    gymnasium.register("tests/Desk-v0", entry_point=Desk)


@pytest.mark.parametrize("call_format", ["native", "text"])
def test_the_environment_checker_has_nothing_to_say(call_format: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make("tests/Desk-v0", call_format=call_format).unwrapped)


def test_the_same_seed_and_calls_give_the_same_episode() -> None:
    def played() -> list[Any]:
        env = Desk()
        steps: list[Any] = [env.reset(seed=5)]
        steps += [env.step(env.calling_all([("roll", {}), ("put", {"thing": "x"}), ("fail", {})])) for _ in range(3)]
        return steps

    assert played() == played()


class Lookup(ToolProblemEnv[int]):
    """What is the square? It stands in a table."""

    num_problems = 10

    def problem_at(self, index: int) -> int:
        return index

    def question(self, problem: int) -> str:
        return f"What is {problem} squared?"

    def reference_answer(self, problem: int) -> str:
        return str(problem**2)

    def is_well_formed(self, answer: str) -> bool:
        return answer.isdigit()

    @tool(concurrent=True)
    def square(self, number: int) -> int:
        """Squares."""
        return number**2

    def solution(self) -> list[Reply]:
        return [self.calling("square", number=self._problem), reply(self.reference_answer(self._problem))]


@pytest.mark.parametrize(
    ("said", "reward", "correct", "well_formed"),
    [
        ("49", 1.0, 1, 1),
        ("48", 0.0, 0, 1),
        ("I do not know", -0.1, 0, 0),
        (reply("49", "length"), 0.9, 1, 0),
    ],
)
def test_a_problem_with_tools_is_rewarded_as_a_problem(
    said: Any, reward: float, correct: float, well_formed: float
) -> None:
    env = Lookup(system_prompt="Be quick.", few_shot=[user("?"), {"role": "assistant", "content": "!"}])
    opening, info = env.reset(options={"index": 7})
    assert [message["content"] for message in opening] == ["Be quick.", "?", "!", "What is 7 squared?"]
    assert info == {"problem": "What is 7 squared?", "reference": "49"}
    env.step(env.calling("square", number=7))
    got = env.step(said)
    assert got[1] == pytest.approx(reward) and got[2]
    assert (got[4]["metrics"]["correct"], got[4]["metrics"]["format"]) == (correct, well_formed)


def test_a_problem_that_is_never_answered_is_wrong_and_badly_put() -> None:
    env = Lookup(max_turns=1)
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(env.calling("square", number=7))
    assert (reward, terminated, truncated) == (pytest.approx(-0.1), False, True)
    assert (info["metrics"]["correct"], info["metrics"]["format"]) == (0.0, 0.0)


@pytest.mark.parametrize("call_format", ["native", "text"])
def test_a_scripted_solution_becomes_a_conversation_to_learn_from(call_format: Any) -> None:
    conversation, tools = demonstrate(Lookup(call_format=call_format), options={"index": 3})
    roles = [message["role"] for message in conversation]
    if call_format == "native":
        assert roles == ["user", "assistant", "tool", "assistant"]
        assert conversation[1]["tool_calls"][0]["arguments"] == {"number": 3}
        assert [spec["name"] for spec in tools] == ["square"]
    else:
        assert roles == ["system", "user", "assistant", "user", "assistant"]
        assert tools == ()
    assert conversation[-1] == {"role": "assistant", "content": "9"}


def test_a_solution_that_does_not_solve_is_refused() -> None:
    class Unfinished(Lookup):
        def solution(self) -> list[Reply]:
            return super().solution()[:1]

    class Clumsy(Lookup):
        def solution(self) -> list[Reply]:
            return [reply("well, er")]

    with pytest.raises(RuntimeError, match="does not end the episode"):
        demonstrate(Unfinished(), seed=0)
    with pytest.raises(RuntimeError, match=r"has the reward -0\.1"):
        demonstrate(Clumsy(), seed=0)
    with pytest.raises(NotImplementedError, match="no scripted solutions"):
        demonstrate(desk(), seed=0)


def test_static_methods_and_inherited_tools_are_offered_in_order() -> None:
    class Base(Desk):
        @tool
        @staticmethod
        def first() -> str:
            """First."""
            return "1"

        @staticmethod
        @tool
        def second() -> str:
            """Second."""
            return "2"

    class Derived(Base):
        @tool(name="third")
        def last(self) -> str:
            """Third."""
            return "3"

        @property
        def trap(self) -> str:
            raise AssertionError("a property was asked while the object was made")

    env = Derived(tools=[])
    assert [spec["name"] for spec in env.tools] == ["put", "first", "second", "third"]
    env.reset(seed=0)
    assert results(env, ("first", {}), ("second", {}), ("third", {})) == ["1", "2", "3"]


def test_a_ready_tool_can_be_given_under_another_name() -> None:
    env = desk(tools=[echo, Tool.of(echo).renamed("say")])
    assert results(env, ("say", {"text": "hi"})) == ["hi"]


def test_context_variables_reach_the_tools() -> None:
    import contextvars

    current = contextvars.ContextVar("current", default="none")

    def read() -> str:
        """Reads."""
        return current.get()

    async def read_async() -> str:
        """Reads."""
        return current.get()

    env = desk(tools=[read, read_async])
    current.set("mine")
    assert results(env, ("read", {}), ("read_async", {})) == ["mine", "mine"]


def test_the_interpreter_ends_while_a_tool_still_hangs() -> None:
    import subprocess

    code = """
import time
from loragym.envs.tools import ToolEnv
from loragym.messages import user

def hang() -> str:
    "Hangs."
    time.sleep(600)

class Env(ToolEnv):
    def opening(self, options):
        return [user("?")], {}

env = Env(tools=[hang], reward=lambda messages: 0.0, time_limit=0.1)
env.reset(seed=0)
print(env.step(env.calling("hang"))[0][0]["content"])
"""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "Error: hang took longer than 0.1 seconds", done.stderr
    assert time.perf_counter() - start < 30
