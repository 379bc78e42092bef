"""Wrappers that end an episode, or cut a reply short, when it grows too long."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, cast, get_args

from ...messages import Message, Reply, as_reply, without_stop_reason
from ..checks import env_attribute, scores_groups
from ..named import import_path
from .base import Action, Env, Observation, Step, TextWrapper, with_metrics

Per = Literal["episode", "reply"]
CountText: TypeAlias = Callable[[str], int]


class TurnLimit(TextWrapper):
    """Breaks an episode off after so many replies: truncated, with stop reason "max_turns".

    An episode that ends by itself with its last reply is terminated, not truncated. Metric: `turns` (used so far).

    Args:
        env: what to wrap.
        max_turns: how many replies the agent has.

    Raises:
        ValueError: the limit is below 1.
    """

    def __init__(self, env: Env, max_turns: int) -> None:
        if isinstance(max_turns, bool) or not isinstance(max_turns, int) or max_turns < 1:
            raise ValueError(f"max_turns is a whole number from 1 up, got {max_turns!r}")
        super().__init__(env, max_turns=max_turns)
        self.max_turns = max_turns
        self._turns = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        self._turns = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Action) -> Step:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._turns += 1
        info = with_metrics(info, turns=self._turns)
        if self._turns >= self.max_turns and not (terminated or truncated):
            truncated, info["stop_reason"] = True, "max_turns"
        return observation, reward, terminated, truncated, info


class LengthBudget(TextWrapper):
    """Gives an episode, or each reply, so much length; the world hears no more of a reply than fits.

    A reply that goes over what is left is cut to the longest beginning that fits and handed on as one that was cut off
    (`stop_reason` "length"); tool calls that do not fit are dropped. Thinking comes first, then the content, then the
    tool calls. When an episode's budget is used up, the episode is truncated, with stop reason "budget". Metric:
    `length` (used so far; with `per="reply"` of all replies).

    Args:
        env: what to wrap.
        max_length: the budget.
        count: what is counted: "characters", "words", a function of a text, a tokenizer (an object with `encode`), the
            path of a `tokenizer.json`, or the import path "module:name" of a function or tokenizer.
        per: "episode" or "reply".
        include_observations: whether what the world says uses up an episode's budget as well.

    Raises:
        ValueError, TypeError: an argument is none of those.
    """

    def __init__(
        self,
        env: Env,
        max_length: int,
        *,
        count: Any = "characters",
        per: Per = "episode",
        include_observations: bool = False,
    ) -> None:
        if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1:
            raise ValueError(f"max_length is a whole number from 1 up, got {max_length!r}")
        if per not in get_args(Per):
            raise ValueError(f"per is one of {get_args(Per)}, got {per!r}")
        if include_observations and per == "reply":
            raise ValueError("include_observations goes with per='episode'; a reply's budget is for the reply alone")
        super().__init__(env, max_length=max_length, count=count, per=per, include_observations=include_observations)
        self.max_length, self.per, self.include_observations = max_length, per, include_observations
        self._count = counter(count)
        self._used = 0
        self._opening_size = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._opening_size = len(observation)
        self._used = self._length_of(observation) if self.include_observations else 0
        return observation, info

    def step(self, action: Action) -> Step:
        heard, length, was_cut = self._cut(as_reply(action), self._left(self._used))
        self._used += length
        observation, reward, terminated, truncated, info = self.env.step(heard)
        if self.include_observations:
            self._used += self._length_of(observation)
        info = with_metrics(info, length=self._used)
        used_up = self.per == "episode" and (was_cut or self._used >= self.max_length)
        if used_up and not (terminated or truncated):
            truncated, info["stop_reason"] = True, "budget"
        return observation, reward, terminated, truncated, info

    @property
    def score_group(self) -> Callable[[Sequence[Sequence[Message]]], Any]:
        """Hands the environment the conversations as it heard them."""
        if not scores_groups(self.env):
            raise AttributeError("the environment has no rewards for groups")
        score = env_attribute(self.env, "score_group")
        return lambda episodes: score([self._as_heard(episode) for episode in episodes])

    def _as_heard(self, episode: Sequence[Message]) -> list[Message]:
        opening, rest = episode[: self._opening_size], episode[self._opening_size :]
        used = self._length_of(opening) if self.include_observations else 0
        heard: list[Message] = list(opening)
        for message in rest:
            if message["role"] == "assistant":
                cut, length, _ = self._cut(cast(Reply, message), self._left(used))
                used += length
                heard.append(without_stop_reason(cut))
            else:
                used += self._length_of([message]) if self.include_observations else 0
                heard.append(message)
        return heard

    def _left(self, used: int) -> int:
        return self.max_length if self.per == "reply" else max(0, self.max_length - used)

    def _length_of(self, messages: Iterable[Message]) -> int:
        return sum(self._count(part) for message in messages for part in _parts(message))

    def _cut(self, reply: Reply, left: int) -> tuple[Reply, int, bool]:
        """The reply as far as it fits, its length then, and whether it had to be cut."""
        length = self._length_of([reply])
        if length <= left:
            return reply, length, False
        cut = cast(Reply, {**reply, "stop_reason": "length"})
        used = 0
        for key in ("thinking", "content"):
            text = _said(reply, key)
            kept = longest_beginning(text, left - used, self._count)
            used += self._count(kept)
            if key in reply:
                cut[key] = kept
            if kept != text:
                left = used  # what comes after the cut is not heard
        calls = []
        for call in _calls(reply):
            size = self._count(_as_text(call))
            if used + size > left:
                break
            calls.append(call)
            used += size
        if "tool_calls" in reply:
            cut["tool_calls"] = calls
        return cut, used, True


def counter(count: Any) -> CountText:
    """The function that counts a text's length, made of what a user may hand in as `count`.

    Raises:
        ValueError: a name that is none.
        TypeError: it is no function and has no `encode`.
    """
    given = count
    if isinstance(count, str):
        if count in _COUNTERS:
            return _COUNTERS[count]
        if count.endswith(".json"):
            count = _tokenizer_from_file(count)
        elif ":" in count:
            count = import_path(count, "count")
        else:
            raise ValueError(
                f"count is one of {', '.join(map(repr, _COUNTERS))}, the path of a tokenizer.json, or an import path "
                f'such as "my_module:my_function", got {given!r}'
            )
    if callable(getattr(count, "encode", None)) and not isinstance(count, str):
        return _TokenCounter(count)
    if not callable(count):
        raise TypeError(f"count is a function of a text or a tokenizer with encode(), got {given!r:.200}")
    return _FunctionCounter(count)


def longest_beginning(text: str, max_length: int, count: CountText) -> str:
    """The longest beginning of `text` that `count` finds no longer than `max_length`, found by doubling and halving.

    Where a longer text may count for less, as with tokens, it is a beginning that fits, if not the longest.
    """
    if max_length <= 0 or not text:
        return ""
    fits, size = 0, 1
    while size < len(text) and count(text[:size]) <= max_length:
        fits, size = size, size * 2
    if size >= len(text) and count(text) <= max_length:
        return text
    too_long = min(size, len(text))
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if count(text[:middle]) <= max_length:
            fits = middle
        else:
            too_long = middle
    return text[:fits]


class _FunctionCounter:
    """A user's counting function, which need not know what to do with half of a surrogate pair."""

    def __init__(self, count: Callable[[str], Any]) -> None:
        self._function = count

    def __call__(self, text: str) -> int:
        return int(self._function(text.encode("utf-8", "replace").decode())) if text else 0


class _TokenCounter(_FunctionCounter):
    """Counts tokens: those of the text alone, without the special tokens that begin or end a sequence."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        super().__init__(self._tokens)

    def _tokens(self, text: str) -> int:
        # tiktoken's encode() refuses text that spells a special token; encode_ordinary() does not.
        if hasattr(self.tokenizer, "encode_ordinary"):
            return len(self.tokenizer.encode_ordinary(text))
        if self._has_special_tokens:
            return len(self.tokenizer.encode(text, add_special_tokens=False))
        return len(self.tokenizer.encode(text))

    @property
    def _has_special_tokens(self) -> bool:
        try:
            return "add_special_tokens" in inspect.signature(self.tokenizer.encode).parameters
        except ValueError:  # a function of an extension module may hide its signature
            return False


def _count_words(text: str) -> int:
    return len(text.split())


_COUNTERS: dict[str, CountText] = {"characters": len, "words": _count_words}


def _tokenizer_from_file(path: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError(f"count={path!r} needs the package tokenizers: pip install tokenizers") from error
    try:
        return Tokenizer.from_file(path)
    except Exception as error:  # tokenizers raises plain Exceptions
        raise ValueError(f"count={path!r} cannot be read as a tokenizer.json: {error}") from error


def _parts(message: Message) -> Iterable[str]:
    yield _said(message, "thinking")
    yield message["content"]
    for call in _calls(message):
        yield _as_text(call)


def _said(message: Mapping[str, Any], key: str) -> str:
    """A reply is whatever an agent said, so under its keys may stand anything."""
    value = message.get(key, "")
    return value if isinstance(value, str) else _as_text(value)


def _calls(message: Mapping[str, Any]) -> Iterable[Any]:
    calls = message.get("tool_calls") or ()
    return calls if isinstance(calls, list | tuple) else (calls,)


def _as_text(call: Any) -> str:
    return json.dumps(call, ensure_ascii=False, default=repr)
