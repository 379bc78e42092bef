"""Twenty questions: finding out what somebody thinks of from yes and no.

The rules are those of the game in tinker-cookbook's `multiplayer_rl` recipe; answers come from a table of things or
from any chat agent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from ...messages import Message, Reply, assistant, system, user
from ..core import Outcome, TextEnv
from ..named import Named
from ..splits import Split, SplitPool
from .things import Things, load_things

GUESS_PREFIX = "guess:"
MALFORMED_COST = 0.1
MAX_GUESS_CHARACTERS = 80
YES, NO, UNKNOWN, CORRECT = "Yes.", "No.", "I don't know.", "Correct."
FORM = '"Guess: <thing>"'

Teacher = Literal["bisection", "possible"]
Answerer = Callable[[list[Message]], str]
"""A chat agent that answers: messages to text."""

_QUESTION_WORDS = frozenset((
    "is", "are", "was", "were", "does", "do", "did", "can", "could", "has", "have", "had", "will", "would",
    "should", "may", "might", "isn't", "aren't", "doesn't", "don't",
))  # fmt: skip
_ARTICLE = re.compile(r"(?:an?|the)\s+")


class Move(NamedTuple):
    """What a reply is: a question, a guess, or neither."""

    kind: Literal["question", "guess", "malformed"]
    text: str = ""


class TwentyQuestions(TextEnv):
    """The agent asks questions answered yes or no, until it says `Guess: <thing>` rightly or runs out of turns.

    A turn is one question or one guess, on a single line. The right guess gives reward 1 and ends the episode; a wrong
    one is answered "No." and costs the turn. A turn that is neither, or that was cut off, costs 0.1 and tells nothing.
    A question that the answerer cannot answer with yes or no gets "I don't know." and costs the turn. The turn limit
    truncates the episode, with stop reason "max_turns".

    Metrics: `correct`, `turns` (used so far), `questions`, `guesses`, `malformed`, `unknown` (questions that got "I
    don't know.").

    Args:
        table: the things that may be thought of and the attributes that the scripted answerer knows: "full" (the table
            of the package), "small" (16 things and 13 attributes, for small models), or the path of a JSON file.
        things: which things may be thought of; by default all of the table. With an answerer they may be any words.
        answerer: who answers in place of the table: a function of messages (a system message that names the secret,
            and the question) that returns a text, or its import path "module:function". Only yes and no count.
        max_turns: how many questions and guesses there are in all.
        list_things: whether the agent is told what may be thought of; by default only of the table "small".
        split: "train", "test" (about a tenth of the things) or None for all. The split depends on the name alone.
        teacher: how `solution` plays: "bisection" asks what splits the remaining things most evenly, and finds them
            all; "possible" draws among the questions that tell anything, and leaves the search itself to be learnt.
        render_mode: see `TextEnv`.

    Raises:
        ValueError: an argument is out of its range, or the split has no things.
        TypeError: the answerer is no function.
    """

    def __init__(
        self,
        *,
        table: str = "full",
        things: Sequence[str] | None = None,
        answerer: Answerer | str | None = None,
        max_turns: int = 20,
        list_things: bool | None = None,
        split: Split | None = "train",
        teacher: Teacher = "bisection",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(render_mode=render_mode)
        if max_turns < 1:
            raise ValueError(f"max_turns is at least 1, got {max_turns}")
        if teacher not in get_args(Teacher):
            raise ValueError(f"teacher is one of {get_args(Teacher)}, got {teacher!r}")
        self.table, self.max_turns, self.teacher = table, max_turns, teacher
        self._answerer = None if answerer is None else Named(answerer, "answerer")
        self.things = tuple(self._table.attributes_of) if things is None else _checked_things(things)
        if answerer is None and (missing := [thing for thing in self.things if thing not in self._table.attributes_of]):
            raise ValueError(
                f"things={missing} are not in the table, so it cannot answer for them; hand in an answerer"
            )
        self._list_things = table == "small" if list_things is None else list_things
        self._pool = SplitPool(len(self.things), self._split_name, split)

    @property
    def num_problems(self) -> int | None:
        """How many things the split has."""
        return self._pool.count

    def begin(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        index = options.get("index")
        self._secret = self.things[self._pool.draw(self.np_random) if index is None else self._pool.at(index)]
        self._lesson = int(self.np_random.integers(2**31))
        self._counts = dict.fromkeys(("turns", "questions", "guesses", "malformed", "unknown"), 0)
        choice = f" It is one of these: {', '.join(self.things)}." if self._list_things else ""
        instruction = system(
            f"We play {self.max_turns} questions: I think of a thing, and you find out what it is.{choice} In each "
            f"turn you either ask one question that can be answered with yes or no, or say {FORM} if you know it; the "
            f"thing is a single word. You have {self.max_turns} turns. Say one short line and nothing else."
        )
        return (instruction, user("Ask your first question.")), {"problem": self._secret}

    def respond(self, reply: Reply) -> Outcome:
        move = read_move(reply)
        counts = self._counts
        counts["turns"] += 1
        correct = False
        if move.kind == "malformed":
            counts["malformed"] += 1
            answer = f"Ask one question that can be answered with yes or no, or say {FORM}, on one line."
        elif move.kind == "guess":
            counts["guesses"] += 1
            correct = self._table.named(move.text) == self._table.named(self._secret)
            answer = CORRECT if correct else NO
        else:
            counts["questions"] += 1
            verdict = self._answer(move.text)
            counts["unknown"] += verdict is None
            answer = UNKNOWN if verdict is None else YES if verdict else NO
        out_of_turns = not correct and counts["turns"] >= self.max_turns
        return Outcome(
            messages=(user(answer),),
            reward=float(correct) - MALFORMED_COST * (move.kind == "malformed"),
            terminated=correct,
            truncated=out_of_turns,
            stop_reason="max_turns" if out_of_turns else None,
            metrics={"correct": correct, **counts},
        )

    def solution(self) -> list[Message]:
        """The replies of `solved_conversation`, one a turn."""
        return [message for message in self.solved_conversation() if message["role"] == "assistant"]

    def solved_conversation(self, rng: np.random.Generator | None = None) -> list[Message]:
        """The whole conversation of this episode as the teacher plays it from the start, for a supervised warm-up.

        In the last turn it guesses one of the things that are left.

        Args:
            rng: draws among questions that are equally good; by default bisection asks the first one, and the teacher
                "possible" draws by the episode.

        Raises:
            ValueError: there is an answerer, or no episode has begun; neither can be played beforehand.
        """
        if self._answerer is not None or not self._conversation:
            raise ValueError(
                "a solution plays the current episode against the table: call reset() first, and make the environment "
                "without an answerer"
            )
        if rng is None and self.teacher == "possible":
            rng = np.random.default_rng(self._lesson)
        player = Bisector(self._table, self.things, rng, evenly=self.teacher == "bisection")
        conversation = list(self._conversation[:2])
        for turn in range(self.max_turns):
            remaining = player.remaining(conversation)
            said = player.move(remaining) if turn < self.max_turns - 1 else player.guess(remaining)
            conversation.append(assistant(said))
            move = read_move({"role": "assistant", "content": said, "stop_reason": "stop"})
            if move == ("guess", self._secret):
                conversation.append(user(CORRECT))
                break
            is_true = move.kind == "question" and self._table.answer(move.text, self._secret)
            conversation.append(user(YES if is_true else NO))
        return conversation

    def _answer(self, question: str) -> bool | None:
        if self._answerer is None:
            return self._table.answer(question, self._secret)
        instruction = system(
            f'You think of this: "{self._secret}". Somebody asks questions to find out what it is. Answer the question '
            'truthfully with "yes" or "no", and say nothing else, whatever the question asks for.'
        )
        said = self._answerer([instruction, user(question)])
        if not isinstance(said, str):
            raise TypeError(f"answerer returns a text, got {said!r:.200}")
        return read_answer(said)

    @property
    def _table(self) -> Things:
        # Loaded once for all environments of a process, and not pickled with each.
        return load_things(self.table)

    def _split_name(self, number: int) -> str:
        return f"thing {self.things[number]}"


class Bisector:
    """Plays twenty questions by a table: asks what splits the remaining things most evenly.

    As an agent it is a function of the conversation so far; it needs no memory, so it can go on from anybody's moves.

    Args:
        table: the things and their attributes.
        things: which of them may be thought of; by default all.
        rng: draws among equally good questions; by default the first one is asked.
        evenly: whether only the questions that split most evenly are good ones, or all that tell anything.
    """

    def __init__(
        self,
        table: Things,
        things: Sequence[str] | None = None,
        rng: np.random.Generator | None = None,
        *,
        evenly: bool = True,
    ) -> None:
        self.table, self.rng, self.evenly = table, rng, evenly
        self.things = tuple(things or table.attributes_of)

    def __call__(self, conversation: Sequence[Message]) -> str:
        """The next thing to say."""
        return self.move(self.remaining(conversation))

    def remaining(self, conversation: Sequence[Message]) -> tuple[str, ...]:
        """The things that fit all answers; where none does, those that were not guessed."""
        fitting, unguessed = self.things, self.things
        for said, heard in pairwise(conversation):
            if said["role"] != "assistant":
                continue
            move = read_move({"role": "assistant", "content": said["content"], "stop_reason": "stop"})
            if move.kind == "guess":
                wrong = self.table.named(move.text)
                unguessed = tuple(thing for thing in unguessed if thing != wrong)
                fitting = tuple(thing for thing in fitting if thing != wrong)
            elif heard["content"] in (YES, NO) and (asked := self.table.reader.read(move.text)):
                truth = heard["content"] == YES
                fitting = tuple(thing for thing in fitting if self.table.is_true(asked, thing) == truth)
        return fitting or unguessed or self.things

    def move(self, remaining: Sequence[str]) -> str:
        """The best question, or a guess where asking would gain nothing."""
        if len(remaining) > 2:
            table = self.table
            counts = {a: sum(a in table.attributes_of[thing] for thing in remaining) for a in table.questions}
            unevenness = {a: abs(2 * count - len(remaining)) for a, count in counts.items()}
            best = min(unevenness.values()) if self.evenly else len(remaining) - 1
            if good := [a for a, size in unevenness.items() if size <= best < len(remaining)]:
                return table.questions[self._choice(good)]
        return self.guess(remaining)

    def guess(self, remaining: Sequence[str]) -> str:
        """One of the things that are left."""
        return f"Guess: {self._choice(list(remaining))}"

    def _choice(self, options: Sequence[str]) -> str:
        return options[0 if self.rng is None else int(self.rng.integers(len(options)))]


def read_move(reply: Reply) -> Move:
    """What kind of turn a reply is.

    A guess is one line that begins with "Guess:"; case, an article and a full stop do not matter. A question is one
    line with one question mark, at its end, or one that begins as yes/no questions do; of several sentences the last
    one is the question.
    """
    said = reply["content"].strip()
    if reply["stop_reason"] != "stop" or not said or len(said.splitlines()) > 1:
        return Move("malformed")
    lowered = said[: len(GUESS_PREFIX)].lower()
    if lowered == GUESS_PREFIX:
        guess = said[len(GUESS_PREFIX) :].strip()
        if not guess or len(guess) > MAX_GUESS_CHARACTERS:
            return Move("malformed")
        return Move("guess", _ARTICLE.sub("", guess.strip("\"'*.! ").lower(), count=1) or guess)
    if said.count("?") == 1 and said.endswith("?"):
        return Move("question", re.split(r"[.!;:]\s", said)[-1].strip())
    if "?" not in said and said.split(maxsplit=1)[0].lower() in _QUESTION_WORDS:
        return Move("question", said)
    return Move("malformed")


def read_answer(said: str) -> bool | None:
    """What an answerer's "yes" or "no" says, a full stop and case aside; None if it is anything else."""
    return {"yes": True, "no": False}.get(said.strip().rstrip(".!").lower())


def _checked_things(things: Sequence[str]) -> tuple[str, ...]:
    if isinstance(things, str) or not all(isinstance(thing, str) and thing for thing in things):
        raise ValueError(f"things is a list of words, got {things!r:.200}")
    if not things or len(set(things)) < len(things):
        raise ValueError(f"things is a list of different words, at least one, got {things!r:.200}")
    return tuple(things)
