"""Prompts from any data, one reply each; what the reply earns is somebody else's business.

`PromptEnv` keeps the prompts and the book; the preference environments derive from it. `Prompts` leaves the reward to a
user's function, or gives none.
"""

from __future__ import annotations

import math
import numbers
import operator
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, Unpack, cast

from ..messages import Message, Reply, messages_in_table, system, user, without_stop_reason
from .core import Outcome, TextEnv
from .datasets import BadData, Source, load_rows
from .named import Named
from .splits import Split, SplitPool, hash_position, is_held_out

Conversation: TypeAlias = tuple[Message, ...]
PromptSource: TypeAlias = Source | Sequence[str] | Sequence[Sequence[Message]]
"""What `datasets.load_rows` takes, or a list of prompts: strings, or lists of messages."""
RewardFunction: TypeAlias = Callable[[Conversation, Mapping[str, Any]], float | Mapping[str, float]]

EVERYDAY_PROMPTS = Path(__file__).with_name("everyday_prompts.jsonl")
"""Everyday questions and small writing tasks, each with a short reference reply: what is asked without any data."""
PROMPT_COLUMNS = ("prompt", "messages", "question", "instruction", "conversation", "text", "chosen")
REFERENCE_COLUMNS = ("reference", "answer", "response", "completion", "output", "chosen")


class PromptOptions(TypedDict, total=False):
    """The arguments of `PromptEnv`, which its subclasses pass on."""

    data: PromptSource | None
    column: str | None
    reference_column: str | None
    split: Split | None
    config: str | None
    system_prompt: str | None
    format_coef: float
    render_mode: str | None


@dataclass(frozen=True, slots=True)
class Prompt:
    """Something to reply to: the messages, a good reply if one is known, and the row that it comes from."""

    messages: Conversation
    reference: str | None
    row: Mapping[str, Any]

    def reference_for(self, argument: str) -> str:
        """The reference, which is needed because `argument` was not given.

        Raises:
            ValueError: there is none.
        """
        if self.reference is None:
            raise ValueError(
                f"the prompt {self.messages[-1]['content']!r:.60} has no reference reply to measure by; pass "
                f"{argument}=, or data with one of the columns {', '.join(REFERENCE_COLUMNS)}, or name yours with "
                "reference_column="
            )
        return self.reference


class PromptEnv(TextEnv):
    """A prompt and one reply. An author writes `judge`, and says in `is_well_formed` what form is asked for.

    `reset` gives `info["problem"]` (the text of the last message) and, where the data has one, `info["reference"]`.
    Metrics: `format`, which is 1 if the reply is well formed, and those of `judge`. Bad form costs `format_coef`.

    Args:
        data: the prompts: a file, a folder, a hub id, rows, or a list of strings or of lists of messages. By default
            the everyday prompts that come along. A conversation that ends with an assistant's message is a prompt with
            that message as its reference.
        column: which column holds the prompt, as text or as messages; by default the first of `PROMPT_COLUMNS`.
        reference_column: which column holds a good reply; by default the first of `REFERENCE_COLUMNS`, if any.
        split: "train", "test" or None for everything. Folders and hub data sets have splits of their own; a list or a
            single file is divided by a hash of the prompt, about one in ten for "test", and at least one for each. A
            single prompt is in both.
        config: which of a hub data set's configurations.
        system_prompt: an instruction that goes before the prompt.
        format_coef: what a reply costs that is not well formed, such as one that was cut off.
        render_mode: see `TextEnv`.

    Raises:
        DataNotFound, BadData: see `load_rows`; there are no prompts; a row is none.
        ValueError: the split is unknown.
    """

    def __init__(
        self,
        *,
        data: PromptSource | None = None,
        column: str | None = None,
        reference_column: str | None = None,
        split: Split | None = "train",
        config: str | None = None,
        system_prompt: str | None = None,
        format_coef: float = 0.1,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(render_mode=render_mode)
        self._columns = PROMPT_COLUMNS if column is None else (column,)
        self._reference_columns = REFERENCE_COLUMNS if reference_column is None else (reference_column,)
        self._where = str(data) if isinstance(data, str | os.PathLike) else "data"
        self._instruction: Conversation = () if system_prompt is None else (system(system_prompt),)
        self.format_coef = format_coef
        source = EVERYDAY_PROMPTS if data is None else data
        has_splits = isinstance(source, str | os.PathLike) and not Path(source).expanduser().is_file()
        if has_splits:
            self._rows: Sequence[Any] = load_rows(cast(Source, source), split=split, config=config)
        else:
            self._rows = load_rows(cast(Source, source), config=config)
        if not isinstance(self._rows, Sequence) and not hasattr(self._rows, "__getitem__"):
            raise TypeError(f"data is a path, a hub id or a sequence of prompts, got {self._rows!r:.200}")
        if not len(self._rows):
            raise BadData(f"{self._where}: there are no prompts in it")
        self._prompt(0)
        self._pool = self._divided(split, has_splits)

    @abstractmethod
    def judge(self, conversation: Conversation) -> tuple[float, Mapping[str, float]]:
        """The reward of a conversation, whose last message is the agent's `Reply`, and metrics; see `self.prompt`."""

    def is_well_formed(self, reply: Reply) -> bool:
        """Whether a reply has the form that was asked for; by default: did it finish by itself?"""
        return reply["stop_reason"] == "stop"

    @property
    def num_problems(self) -> int | None:
        """How many prompts the split has; None if the data is too long to be listed."""
        return self._pool.count

    def begin(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        index = options.get("index")
        number = self._pool.draw(self.np_random) if index is None else self._pool.at(index)
        self.prompt = self._prompt(number)
        self._opening = (*self._instruction, *self.prompt.messages)
        info = {"problem": self.prompt.messages[-1]["content"]}
        if self.prompt.reference is not None:
            info["reference"] = self.prompt.reference
        return self._opening, info

    def respond(self, reply: Reply) -> Outcome:
        well_formed = float(self.is_well_formed(reply))
        reward, metrics = self.judge((*self._opening, reply))
        return Outcome(
            reward=reward + self.format_coef * (well_formed - 1),
            terminated=True,
            stop_reason="completed" if reply["stop_reason"] == "stop" else reply["stop_reason"],
            metrics={**metrics, "format": well_formed},
        )

    def _prompt(self, number: int) -> Prompt:
        where, row = f"{self._where}, row {number}", self._rows[number]
        if isinstance(row, str) or not isinstance(row, Mapping):
            row = {"prompt": row}
            columns: tuple[str, ...] = ("prompt",)
        else:
            columns = self._columns
        name = next((name for name in columns if row.get(name) is not None), None)
        if name is None:
            raise BadData(f"{where} has the columns {sorted(row)}; the prompt was looked for in {list(columns)}")
        messages, reference = _prompt_and_reply(row[name], f"{where}, column {name!r}")
        if reference is None:
            reference = self._reference(row, name, where)
        return Prompt(messages, reference, row)

    def _reference(self, row: Mapping[str, Any], prompt_column: str, where: str) -> str | None:
        for name in self._reference_columns:
            if name != prompt_column and (value := row.get(name)) is not None:
                if not isinstance(value, list | tuple):
                    return str(value)
                # A whole conversation, or the reply alone: what counts is how it ends.
                last = _messages(value, f"{where}, column {name!r}")[-1:]
                return last[0]["content"] if last and last[0]["role"] == "assistant" else None
        return None

    def _name(self, number: int) -> str:
        return "\n".join(message["content"] for message in self._prompt(number).messages)

    def _divided(self, split: Split | None, has_splits: bool) -> SplitPool:
        size = len(self._rows)
        if has_splits or split is None:
            return SplitPool(size, self._name, None)
        held_out = {is_held_out(self._name(0))}
        if any(is_held_out(self._name(number)) not in held_out for number in range(1, size)):
            return SplitPool(size, self._name, split)
        # By the hash alone one side would be empty, as it may be with a handful of prompts: one of them changes sides.
        names = sorted({self._name(number) for number in range(size)}, key=hash_position)
        if len(names) == 1:
            return SplitPool(size, self._name, None)
        moved = partial(operator.ne, names[-1]) if held_out == {True} else partial(operator.eq, names[0])
        return SplitPool(size, self._name, split, moved)


class Prompts(PromptEnv):
    """Prompts from any data, rewarded by a function of yours, or by nothing: for distillation and quick experiments.

    Metrics: `format`, and whatever the function gives besides "reward".

    Args:
        reward: called as `reward(conversation, row)`, or the import path "module:function" of such a function. The
            conversation is a tuple of messages, the last of them the `Reply` with its `stop_reason`; the row is the one
            that the prompt comes from, `{"prompt": ...}` for an item of a list. It gives a number, or a mapping of
            numbers with the key "reward", whose other entries become metrics. None rewards nothing.
        **options: those of `PromptEnv`: data, column, split, system_prompt and so on; `format_coef` is 0 here.

    Raises:
        ValueError, TypeError: the reward cannot be found or called.
    """

    def __init__(self, *, reward: RewardFunction | str | None = None, **options: Unpack[PromptOptions]) -> None:
        options.setdefault("format_coef", 0.0)
        super().__init__(**options)
        self._reward = None if reward is None else Named(reward, "reward")

    def judge(self, conversation: Conversation) -> tuple[float, Mapping[str, float]]:
        if self._reward is None:
            return 0.0, {}
        given = self._reward(conversation, self.prompt.row)
        metrics = dict(given) if isinstance(given, Mapping) else {"reward": given}
        if "reward" not in metrics:
            raise ValueError(f"the reward function gave {given!r:.200}; a mapping has the reward under 'reward'")
        numbers_ = {name: finite_number(value, f"the reward function's {name}") for name, value in metrics.items()}
        return numbers_.pop("reward"), numbers_


def finite_number(value: Any, what: str) -> float:
    """`value` as a float: a number, a boolean, or an array or tensor that holds a single one.

    Raises:
        ValueError: it is no finite number.
    """
    if math.prod(getattr(value, "shape", (0,))) == 1:
        value = value.item()
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"{what} is {value!r:.200}; a finite number was expected")
    return float(value)


def one_for_each(given: Any, count: int, who: str, what: str) -> list[Any]:
    """What somebody who was asked about `count` of `what` at once gave, as a list.

    Raises:
        ValueError: it is no list of as many.
    """
    try:
        results = list(given)
    except TypeError as error:
        raise ValueError(f"{who} gave {given!r:.200} for {count} {what}; a number for each was expected") from error
    if len(results) != count:
        raise ValueError(f"{who} gave {len(results)} results for {count} {what}; one for each was expected")
    return results


def _prompt_and_reply(value: Any, where: str) -> tuple[Conversation, str | None]:
    """The messages to be answered, and the answer if the last of them is one."""
    if isinstance(value, str):
        return (user(value),), None
    if not isinstance(value, list | tuple):
        raise BadData(f"{where} holds {value!r:.80}; text or a list of messages was expected")
    messages = _messages(value, where)
    reference = messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else None
    prompt = messages if reference is None else messages[:-1]
    if not prompt or prompt[-1]["role"] == "assistant":
        raise BadData(f"{where} holds no message to reply to: {value!r:.120}")
    return prompt, reference


def _messages(value: Sequence[Any], where: str) -> Conversation:
    try:
        return messages_in_table(value)
    except TypeError as error:
        raise BadData(f"{where}: {error}") from error


def as_conversation(conversation: Sequence[Message]) -> Conversation:
    """A conversation as plain messages, the agent's `Reply` included."""
    return tuple(without_stop_reason(message) for message in conversation)
