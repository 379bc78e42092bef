"""Environments in which the agent may call tools before it answers: `ToolEnv`, and `ToolProblemEnv` for one question.

Vocabulary: a *turn* is one reply of the agent; it holds *calls* of tools, or it is the *final answer*. What the agent
sends is hostile: a call that cannot be read, names no tool or has wrong arguments is answered in words, never by an
exception, and is counted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar, get_args

import numpy as np

from ...messages import Message, Reply, ToolCall, ToolSpec, assistant, user, without_stop_reason
from ..core import Outcome, ProblemEnv, TextEnv
from .calls import CallFormat, ReadCalls, read_calls, result_messages, shown_name, with_instructions, write_call
from .runner import CallOutcome, CallRunner, Job
from .tool import BadArguments, Tool, is_marked

logger = logging.getLogger(__name__)

ProblemT = TypeVar("ProblemT")
Reward: TypeAlias = float | tuple[float, Mapping[str, float]]
"""A reward, or a reward and the metrics that go with it."""


class ToolEnv(TextEnv):
    """The agent calls tools for some turns, then answers.

    Tools are methods marked with `@tool`, and the functions given as `tools`. An author writes them, `opening`, and
    `final_reward` (or hands in `reward`). An example stands in `docs/environments_tools.md`.

    A turn with calls is answered by their results, one message each, and the episode goes on. A turn without calls is
    the final answer and ends it; so do a reply that was cut off (its calls are not run), a tool that returns
    `ToolResult(done=True)`, and the turn limit, which truncates with stop reason "max_turns" after the calls of the
    last turn. `final_reward` is asked in all these cases. A malformed turn (see `calls.read_calls`) costs
    `malformed_cost`; the agent is told what was wrong, and the calls that could be read are run.

    Calls of one turn run at once, except tools that are not `concurrent` (methods, by default), which run alone and in
    order. `runner` tells how the time limit is kept. Each call of a tool that takes a `numpy.random.Generator` gets one
    of its own, drawn in the order of the calls, so results do not depend on which call is quicker.

    Metrics: `turns`, `calls` (all that could be read), `errors` (those with no proper result, the next two included),
    `timeouts`, `refused` (over a limit), `malformed` (turns), and those of `final_reward` and of `ToolResult`.
    `info["calls"]` names the calls of the turn with their status.

    Attributes:
        tools: what a renderer is to offer; empty in the call format "text", which offers them in words.
        toolbox: the tools by name.

    Args:
        tools: functions (see `tool.Tool.of`) besides the methods marked with `@tool`.
        reward: gives the reward of a whole conversation, in place of `final_reward`.
        max_turns: replies after which the episode is truncated.
        max_calls: calls that are run in an episode; further ones are refused in words. None: any number.
        max_calls_per_turn: calls that are run in one turn; further ones are refused in words.
        time_limit: seconds that a call may take unless its tool says otherwise; None: as long as it likes.
        max_result_chars: a longer result is cut, with a note that says so.
        malformed_cost: what each malformed turn costs.
        call_format: "native": calls come in `tool_calls`, as a renderer reads them from the model's own format. "text":
            the system message tells the agent to write calls as JSON between tags, for models without such a format
            and for code that deals in strings; calls in `tool_calls` count as well.
        render_mode: see `TextEnv`.
        problem_options: for the class that comes next in line, as `ToolProblemEnv` has one.

    Raises:
        TypeError, ValueError: an argument is out of its range, or a function cannot be offered as a tool.
    """

    def __init__(
        self,
        *,
        tools: Sequence[Callable[..., Any] | Tool] = (),
        reward: Callable[[tuple[Message, ...]], Reward] | None = None,
        max_turns: int = 8,
        max_calls: int | None = None,
        max_calls_per_turn: int = 8,
        time_limit: float | None = 10.0,
        max_result_chars: int = 4000,
        malformed_cost: float = 0.1,
        call_format: CallFormat = "native",
        render_mode: str | None = None,
        **problem_options: Any,
    ) -> None:
        super().__init__(render_mode=render_mode, **problem_options)
        for name, value in {
            "max_turns": max_turns,
            "max_calls_per_turn": max_calls_per_turn,
            "max_result_chars": max_result_chars,
        }.items():
            if value < 1:
                raise ValueError(f"{name} is at least 1, got {value!r}")
        if max_calls is not None and max_calls < 0:
            raise ValueError(f"max_calls is at least 0, or None for any number, got {max_calls!r}")
        if time_limit is not None and not time_limit > 0:
            raise ValueError(f"time_limit is a positive number of seconds, or None for no limit, got {time_limit!r}")
        if call_format not in get_args(CallFormat):
            raise ValueError(f"call_format is one of {get_args(CallFormat)}, got {call_format!r}")
        self._reward = reward
        if reward is None and type(self).final_reward is ToolEnv.final_reward:
            raise TypeError(f"{type(self).__name__} has no reward: write final_reward(messages), or give reward=...")
        self.max_turns, self.max_calls, self.max_calls_per_turn = max_turns, max_calls, max_calls_per_turn
        self.time_limit, self.max_result_chars, self.malformed_cost = time_limit, max_result_chars, malformed_cost
        self.call_format = call_format
        self.toolbox = _toolbox([*self._own_tools(), *tools], type(self).__name__)
        self.tools = () if call_format == "text" else self.tool_specs
        self._runner = CallRunner()
        self._start_counts()

    def opening(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        """Starts an episode: what `TextEnv.begin` is to other environments."""
        raise NotImplementedError(f"{type(self).__name__}: write opening(options) -> (messages, info)")

    def final_reward(self, messages: tuple[Message, ...]) -> Reward:
        """The reward of an episode that has just ended, by its whole conversation, any metrics beside it.

        The last reply has its `stop_reason`; `final_answer(messages)` picks out the answer, if there is one.
        """
        if self._reward is None:
            raise NotImplementedError(f"{type(self).__name__}: write final_reward(messages), or give reward=...")
        return self._reward(messages)

    def solution(self) -> list[Reply]:
        """Replies that solve the problem at hand, one per turn, for `demonstrate` and a supervised warm-up."""
        raise NotImplementedError(
            f"{type(self).__name__} has no scripted solutions; write solution() -> list of replies"
        )

    @property
    def tool_specs(self) -> tuple[ToolSpec, ...]:
        """What can be told of the tools, in either call format."""
        return tuple(offered.spec for offered in self.toolbox.values())

    def calling(self, name: str, /, **arguments: Any) -> Reply:
        """A reply that calls one tool, in the environment's call format; for `solution`."""
        return self.calling_all([(name, arguments)])

    def calling_all(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> Reply:
        """A reply that calls several tools at once, in the environment's call format."""
        if self.call_format == "text":
            text = "\n".join(write_call(name, arguments) for name, arguments in calls)
            return {"role": "assistant", "content": text, "stop_reason": "stop"}
        made: list[ToolCall] = [
            {"id": f"call_{number}", "name": name, "arguments": dict(arguments)}
            for number, (name, arguments) in enumerate(calls)
        ]
        return {"role": "assistant", "content": "", "tool_calls": made, "stop_reason": "stop"}

    def begin(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        self._start_counts()
        messages, info = self.opening(options)
        return (with_instructions(messages, self.tool_specs) if self.call_format == "text" else messages), info

    def respond(self, reply: Reply) -> Outcome:
        self._turns += 1
        read = read_calls(reply, self.call_format)
        if "tool_calls" in reply:
            # The conversation keeps what could be read: whatever else came has been reported as a problem.
            reply["tool_calls"] = read.native
            if not read.native:
                del reply["tool_calls"]
        cut_off = reply["stop_reason"] == "length"
        if cut_off or not (read.all or read.problems):
            return self._end(reply, (), 0.0, terminated=True, stop_reason="length" if cut_off else "completed")
        outcomes = self._run(read.all)
        results = [self._cut(outcome.content) for outcome in outcomes]
        news = list(result_messages(read, results))
        cost = 0.0
        if read.problems:
            self._counts["malformed"] += 1
            cost = self.malformed_cost
            news.append(user(_complaint(read)))
        reward = sum(outcome.result.reward for outcome in outcomes) - cost
        info = {"calls": [_record(call, outcome) for call, outcome in zip(read.all, outcomes, strict=True)]}
        if any(outcome.result.done for outcome in outcomes):
            return self._end(reply, news, reward, terminated=True, stop_reason="completed", info=info)
        if self._turns >= self.max_turns:
            return self._end(reply, news, reward, terminated=False, stop_reason="max_turns", info=info)
        return Outcome(messages=news, reward=reward, metrics=self._metrics(), info=info)

    def close(self) -> None:
        """Ends what runs in the background."""
        self._runner.close()
        super().close()

    def __getstate__(self) -> dict[str, Any]:
        # Threads stay where they are: a copy starts its own when it needs them.
        return {name: value for name, value in self.__dict__.items() if name != "_runner"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._runner = CallRunner()

    def _end(
        self,
        reply: Reply,
        news: Sequence[Message],
        reward: float,
        *,
        terminated: bool,
        stop_reason: str,
        info: Mapping[str, Any] | None = None,
    ) -> Outcome:
        judged = self.final_reward((*self._conversation, reply, *news))
        final, metrics = judged if isinstance(judged, tuple) else (judged, {})
        return Outcome(
            messages=news,
            reward=reward + final,
            terminated=terminated,
            truncated=not terminated,
            stop_reason=stop_reason,
            metrics={**self._metrics(), **metrics},
            info=info or {},
        )

    def _start_counts(self) -> None:
        self._turns = 0
        self._num_run = 0
        self._counts = dict.fromkeys(("calls", "errors", "timeouts", "refused", "malformed"), 0)
        self._tool_metrics: dict[str, float] = {}

    def _metrics(self) -> dict[str, float]:
        return {"turns": self._turns, **self._counts, **self._tool_metrics}

    def _run(self, calls: Sequence[ToolCall]) -> list[CallOutcome]:
        """Runs the calls of a turn: neighbours that may run at once do, the others one by one."""
        outcomes: list[CallOutcome] = []
        batch: list[Job] = []
        places: list[int] = []

        def run_batch() -> None:
            for place, outcome in zip(places, self._runner.run(batch), strict=True):
                outcomes[place] = outcome
            batch.clear()
            places.clear()

        for number, call in enumerate(calls):
            prepared = self._prepare(call, number)
            if isinstance(prepared, CallOutcome):
                outcomes.append(prepared)
                continue
            job, concurrent = prepared
            if batch and not concurrent:
                run_batch()
            outcomes.append(_NOT_YET)
            batch.append(job)
            places.append(number)
            if not concurrent:
                run_batch()
        if batch:
            run_batch()
        for outcome in outcomes:
            self._counts["calls"] += 1
            self._counts["errors"] += outcome.status != "ok"
            self._counts["timeouts"] += outcome.status == "timeout"
            self._counts["refused"] += outcome.status == "refused"
            for name, value in outcome.result.metrics.items():
                self._tool_metrics[name] = self._tool_metrics.get(name, 0.0) + value
        return outcomes

    def _prepare(self, call: ToolCall, number: int) -> tuple[Job, bool] | CallOutcome:
        """The call, ready to be run and whether beside others; or what the agent is told instead."""
        called = self.toolbox.get(call["name"])
        if called is None:
            known = ", ".join(self.toolbox) or "none"
            text = f"Error: there is no tool named {shown_name(call)!r}; the tools are: {known}."
            return CallOutcome(status="error", content=text)
        try:
            arguments = called.read(call["arguments"])
        except BadArguments as error:
            return CallOutcome(status="error", content=f"Error: {error}")
        if number >= self.max_calls_per_turn:
            text = f"Error: not run, because a turn may have at most {self.max_calls_per_turn} calls"
            return CallOutcome(status="refused", content=text)
        if self.max_calls is not None and self._num_run >= self.max_calls:
            text = f"Error: not run, because all {self.max_calls} calls are used up; give your final answer"
            return CallOutcome(status="refused", content=text)
        self._num_run += 1
        for name in called.generators:
            arguments[name] = np.random.default_rng(self.np_random.integers(2**63, size=4))
        limit = called.time_limit if called.time_limit is not None else self.time_limit
        job = Job(
            name=called.name,
            function=partial(called.function, **arguments),
            is_async=called.is_async,
            time_limit=limit,
        )
        return job, called.concurrent

    def _cut(self, text: str) -> str:
        if len(text) <= self.max_result_chars:
            return text
        return f"{text[: self.max_result_chars]}\n[cut: the result has {len(text)} characters]"

    def _own_tools(self) -> list[Tool]:
        """The marked methods, in the order in which they are defined, those of base classes first."""
        names = dict.fromkeys(name for cls in reversed(type(self).__mro__) for name in vars(cls))
        # Looked up in the class first: a property must not be asked while the object is being made.
        return [Tool.of(getattr(self, name)) for name in names if is_marked(getattr(type(self), name, None))]


class ToolProblemEnv(ToolEnv, ProblemEnv[ProblemT], Generic[ProblemT]):
    """One question, tools to find the answer with, one graded answer.

    An author writes what a `ProblemEnv` needs (`question`, `reference_answer`, problems, and where the defaults do not
    serve `is_correct` and `is_well_formed`) and the tools. The final reward is that of `ProblemEnv`; an episode without
    a final answer is wrong and badly put.

    Metrics: those of `ToolEnv`, and `correct` and `format`.

    Args:
        system_prompt, few_shot, format_coef: see `ProblemEnv`.
        others: see `ToolEnv`.
    """

    def opening(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        return ProblemEnv.begin(self, options)

    def final_reward(self, messages: tuple[Message, ...]) -> Reward:
        if self._reward is not None:
            return self._reward(messages)
        answer = final_answer(messages)
        if answer is None:
            return -self.format_coef, {"correct": 0.0, "format": 0.0}
        outcome = ProblemEnv.respond(self, answer)
        return outcome.reward, outcome.metrics


def final_answer(messages: Sequence[Message]) -> Reply | None:
    """The reply that ends a conversation, cut off or not; None if that ends with calls, results or a complaint."""
    last = messages[-1] if messages else None
    if last is None or last["role"] != "assistant" or last.get("tool_calls"):
        return None
    stop_reason: Any = last.get("stop_reason", "stop")
    return {**assistant(last["content"]), "stop_reason": stop_reason}


def demonstrate(
    env: ToolEnv, *, seed: int | None = None, options: dict[str, Any] | None = None
) -> tuple[list[Message], tuple[ToolSpec, ...]]:
    """Plays the scripted solution of a problem: a conversation to learn from, and the tools to render it with.

    Raises:
        NotImplementedError: the environment has no scripted solutions.
        RuntimeError: the solution does not end the episode, or loses reward on the way.
    """
    world = env.unwrapped
    if not isinstance(world, ToolEnv):
        raise TypeError(f"expected a ToolEnv, got {type(world).__name__}")
    messages, _ = world.reset(seed=seed, options=options)
    conversation = list(messages)
    for reply in world.solution():
        news, reward, terminated, truncated, _ = world.step(reply)
        if not math.isfinite(reward) or reward < 0:
            raise RuntimeError(f"{type(world).__name__}.solution(): the reply {reply!r:.300} has the reward {reward}")
        conversation += [without_stop_reason(reply), *news]
        if terminated or truncated:
            return conversation, world.tools
    raise RuntimeError(f"{type(world).__name__}.solution() does not end the episode; it ends with a final answer")


_NOT_YET = CallOutcome(status="error", content="")


def _toolbox(functions: Sequence[Callable[..., Any] | Tool], owner: str) -> dict[str, Tool]:
    toolbox: dict[str, Tool] = {}
    for function in functions:
        made = Tool.of(function)
        if made.name in toolbox:
            raise ValueError(f"{owner}: two tools are named {made.name!r}; rename one with @tool(name=...)")
        toolbox[made.name] = made
    return toolbox


def _complaint(read: ReadCalls) -> str:
    shown = "; ".join(read.problems[:5])
    return f"Part of your turn could not be read: {shown[:1000]}. Try again, or give your final answer."


def _record(call: ToolCall, outcome: CallOutcome) -> dict[str, str]:
    return {"name": shown_name(call), "status": outcome.status}
