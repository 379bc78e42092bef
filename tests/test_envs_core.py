"""The conversation book-keeping of `TextEnv`, the grading of `ProblemEnv`, and an environment as a user writes one."""

import copy
import io
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from loragym.envs import Outcome, ProblemEnv, TextEnv, checked_reset, checked_step
from loragym.messages import Message, Reply, StopReason, assistant, reply, user


class Reverse(ProblemEnv[str]):
    """An environment as its author would write it."""

    def draw_problem(self, rng: np.random.Generator) -> str:
        return "".join(rng.choice(list("abc"), size=4))

    def question(self, problem: str) -> str:
        return f"Spell {problem} backwards, in lower case."

    def reference_answer(self, problem: str) -> str:
        return problem[::-1]

    def is_well_formed(self, answer: str) -> bool:
        return answer.islower()


class Capitals(ProblemEnv[tuple[str, str]]):
    """A data set of three rows."""

    rows = (("France", "Paris"), ("Japan", "Tokyo"), ("Peru", "Lima"))

    @property
    def num_problems(self) -> int:
        return len(self.rows)

    def problem_at(self, index: int) -> tuple[str, str]:
        return self.rows[index]

    def question(self, problem: tuple[str, str]) -> str:
        return f"What is the capital of {problem[0]}?"

    def reference_answer(self, problem: tuple[str, str]) -> str:
        return problem[1]


class Echo(TextEnv):
    """Repeats what it hears, three times over; then breaks off."""

    reset_options = ("greeting",)

    def begin(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        self._num_heard = 0
        return [user(options.get("greeting", "Hello"))], {}

    def respond(self, reply: Reply) -> Outcome:
        self._num_heard += 1
        return Outcome(
            messages=[user(reply["content"])],
            reward=self._num_heard,
            truncated=self._num_heard == 3,
            metrics={"heard": self._num_heard},
        )


def test_a_users_environment_registers_passes_the_checker_and_is_played(recwarn: pytest.WarningsRecorder) -> None:
    gymnasium.register("tests/Reverse-v0", entry_point=Reverse)
    env = gymnasium.make("tests/Reverse-v0")
    check_env(env.unwrapped)
    assert not recwarn.list
    (question,), info = checked_reset(env, seed=1)
    word = question["content"].split()[1]
    assert info["reference"] == word[::-1]
    observation, reward, terminated, truncated, info = checked_step(env, word[::-1])
    assert (observation, reward, terminated, truncated) == ((), 1.0, True, False)
    assert info == {"metrics": {"correct": 1.0, "format": 1.0}, "stop_reason": "completed"}
    del gymnasium.registry["tests/Reverse-v0"]


@pytest.mark.parametrize(
    ("right", "stop_reason", "well_put", "reward"),
    [
        (True, "stop", True, 1.0),
        (True, "length", True, 0.9),
        (True, "malformed", True, 0.9),
        (False, "stop", True, 0.0),
        (False, "length", True, -0.1),
        (False, "stop", False, -0.1),
    ],
)
def test_the_reward_table(right: bool, stop_reason: StopReason, well_put: bool, reward: float) -> None:
    env = Reverse()
    _, info = env.reset(seed=0)
    wrong = "x" if well_put else "X"
    _, got, _, _, info = env.step(reply(info["reference"] if right else wrong, stop_reason))
    assert got == pytest.approx(reward, abs=1e-12)
    assert info["metrics"] == {"correct": float(right), "format": float(well_put and stop_reason == "stop")}
    assert info["stop_reason"] == ("completed" if stop_reason == "stop" else stop_reason)


def test_what_bad_form_costs_is_the_authors_choice() -> None:
    env = Reverse(format_coef=0.5)
    env.reset(seed=0)
    assert env.step("X")[1] == -0.5


def test_instruction_and_examples_come_before_the_question() -> None:
    env = Reverse(system_prompt="Be brief.", few_shot=[user("Spell ab backwards."), assistant("ba")])
    observation, info = env.reset(seed=0)
    assert [message["role"] for message in observation] == ["system", "user", "assistant", "user"]
    assert observation[-1]["content"] == info["problem"]


def test_examples_that_are_no_messages_are_refused_at_once() -> None:
    with pytest.raises(TypeError, match=r"few_shot\[0\]"):
        Reverse(few_shot=["ab -> ba"])


def test_an_index_picks_a_row_and_the_seed_draws_one() -> None:
    env = Capitals()
    for index, (country, city) in enumerate(Capitals.rows):
        observation, info = env.reset(options={"index": np.int64(index)})
        assert country in observation[0]["content"]
        assert info["reference"] == city
        assert env.step(f" {city}\n")[1] == 1.0
    drawn = {env.reset(seed=seed)[1]["reference"] for seed in range(30)}
    assert drawn == {"Paris", "Tokyo", "Lima"}


@pytest.mark.parametrize("index", [-1, 3, "0", 1.0, True, None])
def test_an_index_that_is_no_row_is_refused(index: object) -> None:
    with pytest.raises(ValueError, match="index is an int from 0 to 2"):
        Capitals().reset(options={"index": index})


def test_unknown_options_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"Capitals.reset: unknown options \['indx'\]; the known ones are \('index'"):
        Capitals().reset(options={"indx": 1})
    with pytest.raises(ValueError, match="Reverse has no list of problems"):
        Reverse().reset(options={"index": 1})


def test_an_author_who_forgets_a_method_is_told_which() -> None:
    class NoQuestion(ProblemEnv[str]):
        def reference_answer(self, problem: str) -> str:
            return problem

    with pytest.raises(TypeError, match="question"):
        NoQuestion()

    class NoProblem(NoQuestion):
        def question(self, problem: str) -> str:
            return problem

    with pytest.raises(NotImplementedError, match=r"NoProblem: write draw_problem\(rng\)"):
        NoProblem().reset()


def test_an_episode_is_a_conversation_of_new_messages() -> None:
    env = Echo()
    assert env.reset(options={"greeting": "Hi"}) == ((user("Hi"),), {})
    assert env.step("one") == ((user("one"),), 1.0, False, False, {"metrics": {"heard": 1.0}})
    assert env.step(reply("two")) == ((user("two"),), 2.0, False, False, {"metrics": {"heard": 2.0}})
    *_, terminated, truncated, info = env.step("three")
    assert (terminated, truncated) == (False, True)
    assert info == {"metrics": {"heard": 3.0}, "stop_reason": "truncated"}


def test_a_step_needs_an_episode() -> None:
    env = Capitals()
    with pytest.raises(ResetNeeded, match="Capitals"):
        env.step("Paris")
    env.reset(seed=0)
    env.step("Paris")
    with pytest.raises(ResetNeeded, match="reset"):
        env.step("Paris")
    env.reset()
    env.step("Paris")


def test_an_action_that_is_no_reply_is_refused_and_the_episode_goes_on() -> None:
    env = Capitals()
    env.reset(options={"index": 0})
    with pytest.raises(TypeError, match="got 42"):
        env.step(42)
    with pytest.raises(ValueError, match="'tired'"):
        env.step({"role": "assistant", "content": "Paris", "stop_reason": "tired"})
    assert env.step("Paris")[1] == 1.0


def test_what_was_handed_out_may_be_changed_without_harm() -> None:
    env = Capitals(few_shot=[user("Italy?"), assistant("Rome")], render_mode="ansi")
    observation, info = env.reset(options={"index": 0})
    pristine, transcript = copy.deepcopy((observation, info)), env.render()
    for message in observation:
        message["content"] = "scribble"
    info.clear()
    assert env.render() == transcript
    assert env.reset(options={"index": 0}) == pristine


def test_a_broken_opening_is_traced_to_its_author() -> None:
    class Broken(Echo):
        def begin(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
            return "Hello", {}

    with pytest.raises(TypeError, match=r"Broken.begin\(\): expected a sequence of messages"):
        Broken().reset()


def test_most_tasks_have_neither_tools_nor_group_rewards() -> None:
    assert Echo().tools == ()
    assert Echo().score_group([[user("Hi"), assistant("Hi")]]) is None


def test_the_transcript_is_rendered_as_text() -> None:
    env = Echo(render_mode="ansi")
    env.reset()
    env.step("Good day")
    assert env.render() == "[user] Hello\n[assistant] Good day\n[user] Good day"


def test_thoughts_and_calls_are_in_the_transcript() -> None:
    env = Echo(render_mode="ansi")
    env.reset()
    call = {"id": "1", "name": "add", "arguments": {"x": 1}}
    env.step({**reply("so"), "thinking": "hm", "tool_calls": [call]})
    assert '[assistant, thinking] hm\n[assistant] so\n[assistant, call] add {"x": 1}' in (env.render() or "")


def test_a_human_reads_each_message_once(capsys: pytest.CaptureFixture[str]) -> None:
    env = Echo(render_mode="human")
    env.reset()
    assert env.render() is None
    env.step("Good day")
    assert env.render() is None
    assert capsys.readouterr().out == "[user] Hello\n[assistant] Good day\n[user] Good day\n"


@given(st.text() | st.just("\ud800\x1b[2J\x9b"))
def test_no_reply_can_break_or_drive_the_terminal(text: str) -> None:
    shown, printed = Echo(render_mode="ansi"), Echo(render_mode="human")
    for env in (shown, printed):
        env.reset()
        env.step(text)
    assert not set(shown.render() or "") & {"\x1b", "\x9b", "\r", "\x08", "\x00"}


def test_a_terminal_without_unicode_shows_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    Echo(render_mode="human").reset(options={"greeting": "π\ud800"})
    terminal.flush()
    assert terminal.buffer.getvalue() == b"[user] \\u03c0\\ud800\n"


def test_an_unknown_render_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'rgb_array'"):
        Echo(render_mode="rgb_array")
