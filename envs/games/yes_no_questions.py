"""Reading yes/no questions about a thing: from "Does it have fur?" to the attribute that is asked after.

Nothing is guessed. Every word of a question has to be accounted for by a known wording or be one that carries no
meaning here; otherwise the question is not understood, and whoever answers says so. What is understood is a claim, or
several joined by "and" or by "or", so that each answer is worth one bit whatever is asked.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

MAX_WORDS = 40
"""Longer questions are not read; it bounds the work on text of any length."""
MAX_CHARACTERS = 400

Voice = Literal["it", "you"]
"""Whose doing a verb is: "does it eat" and "do you eat it" ask different things."""

_DROPPED = frozenset(
    [
        "a",
        "an",
        "the",
        "it",
        "its",
        "itself",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "being",
        "do",
        "does",
        "did",
        "this",
        "that",
        "these",
        "those",
        "they",
        "them",
        "their",
        "thing",
        "things",
        "something",
        "someone",
        "anything",
        "object",
        "item",
        "items",
        "kind",
        "kinds",
        "type",
        "types",
        "sort",
        "sorts",
        "of",
        "he",
        "she",
        "please",
        "so",
        "then",
        "ok",
        "okay",
        "well",
        "now",
        "hmm",
        "as",
    ]
)
"""Words without meaning in any question."""
_LIGHT = frozenset(
    [
        "can",
        "could",
        "would",
        "will",
        "may",
        "might",
        "should",
        "usually",
        "normally",
        "typically",
        "generally",
        "often",
        "commonly",
        "mostly",
        "mainly",
        "mostly",
        "ever",
        "also",
        "any",
        "some",
        "very",
        "really",
        "quite",
        "you",
        "your",
        "i",
        "my",
        "we",
        "us",
        "our",
        "people",
        "person's",
        "one",
        "typical",
        "considered",
        "known",
        "able",
        "possible",
        "actually",
        "just",
        "say",
        "think",
        "thinking",
        "guess",
        "mean",
    ]
)
"""Words that may stand beside any wording."""
_HEAVY = frozenset(
    [
        "in",
        "on",
        "at",
        "to",
        "for",
        "by",
        "into",
        "with",
        "from",
        "out",
        "made",
        "have",
        "has",
        "had",
        "having",
        "used",
        "use",
        "found",
        "find",
        "seen",
    ]
)
"""Words that may stand beside the wording of an attribute, but turn the name of a thing into another question."""
_NEGATIONS = frozenset(["not", "no", "never", "cannot", "without", "nor", "neither", "none", "non"])
_UNSTEMMED = frozenset(
    [
        "glasses",
        "scissors",
        "trousers",
        "dice",
        "chess",
        "this",
        "his",
        "bus",
        "gas",
        "grass",
        "dress",
        "glass",
        "red",
        "bed",
        "clothes",
        "clothing",
    ]
)
_SAME = {
    **dict.fromkeys(("has", "had", "having"), "have"),
    **dict.fromkeys(("use", "uses", "using"), "used"),
    "larger": "bigger",
    "mice": "mous",
    "geese": "goos",
    "wolves": "wolf",
    "knives": "knif",
    "leaves": "leaf",
    "scarves": "scarf",
    "oxen": "ox",
}
"""Words that are read as another one, in its stemmed form."""

_CLITIC = re.compile(r"'(?:s|d|m|re|ve|ll)\b")
_WORD = re.compile(r"[a-z0-9]+")
_OPENING = re.compile(
    r"(?:(?:can|could|does|do|did|will|would|might|may) (?P<it>it|they|this|that|the thing)\b(?! (?:be|get|have)\b))"
    r"|(?:(?:can|could|do|did|would|should|will|might|may) "
    r"(?P<you>you|people|we|i|one|humans|children|kids|most people)\b)"
)
_NOUN_OPENINGS = ("a ", "an ", "is it a ", "is it an ")
_POLITE = re.compile(
    r"^(?:(?:ok|okay|well|so|hmm|now|then|and|please|my question is|question|first question|next question)\b[ ,:.]*)*"
    r"(?:(?:are you thinking of|would you say|do you think|would you call it|can you tell me if|tell me)\b"
    r"(?: that)?\s*)?"
)


class Claim(NamedTuple):
    """Something that is true of a thing or not: it has an attribute, or (`is_name`) it is the thing of that name."""

    name: str
    is_name: bool = False
    reversed: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: whether all of the claims hold, or (`any_of`) at least one."""

    claims: tuple[Claim, ...]
    any_of: bool = False

    def is_true_of(self, thing: str, attributes: frozenset[str]) -> bool:
        """The answer for the thing of this name with these attributes."""
        truths = ((c.name == thing if c.is_name else c.name in attributes) != c.reversed for c in self.claims)
        return any(truths) if self.any_of else all(truths)


class _Wording(NamedTuple):
    claim: Claim
    voice: Voice | None
    is_noun: bool


class QuestionReader:
    """Knows the wordings of attributes and the names of things.

    A wording is written as people would say it. One that begins with "a " or "an " is a noun: a question has at most
    one, so that "a fish bowl" is not taken for a fish that is a bowl. One that begins with "you " or "it " says whose
    doing it is. A "-" in front turns the answer round.

    Args:
        wordings: for each attribute, the question in full and then its other wordings.
        names: the name of a thing by each name that it goes by.

    Raises:
        ValueError: a wording has two meanings, or none is left of it.
    """

    def __init__(self, wordings: Mapping[str, Sequence[str]], names: Mapping[str, str]) -> None:
        self._meanings: dict[tuple[str, ...], list[_Wording]] = {}
        for said, name in names.items():
            self._learn(_tokens(_plain(said)), _Wording(Claim(name, is_name=True), None, True), said)
        written = [(attribute, text) for attribute, texts in wordings.items() for text in texts]
        for attribute, text in written:
            self._learn(*_wording(attribute, text), text)
        known = {tokens: {w.claim for w in meanings} for tokens, meanings in self._meanings.items()}
        for attribute, text in written:
            # "have fur" is understood as "fur", where nothing else goes by that name.
            tokens, wording = _wording(attribute, text)
            core = _without(tokens, _LIGHT | _HEAVY)
            if core and known.setdefault(core, {wording.claim}) == {wording.claim}:
                self._learn(core, wording, text)
        self._longest = max(map(len, self._meanings), default=0)

    def read(self, question: str) -> Question | None:
        """What `question`, which may be any text at all, asks; None if it is not understood."""
        if len(question) > MAX_CHARACTERS:
            return None
        plain = _POLITE.sub("", _plain(question), count=1)
        tokens = _tokens(plain)
        if not tokens or len(tokens) > MAX_WORDS or not _NEGATIONS.isdisjoint(tokens):
            # "Isn't it big?" and "Is it not big?" are answered differently by different people.
            return None
        voice = _voice(plain)
        core = _without(tokens, _LIGHT | _HEAVY)
        return (
            self._understood(tokens, voice, tokens)
            or self._understood(_distributed(tokens), voice, tokens)
            or self._understood(core, voice, tokens)
        )

    def _understood(self, tokens: tuple[str, ...], voice: Voice | None, said: tuple[str, ...]) -> Question | None:
        """The question that these words make up; `said` are the words as they came."""
        segments: list[list[_Wording]] = [[]]
        connectors: set[str] = set()
        at = 0
        while at < len(tokens):
            if found := self._longest_at(tokens, at, voice):
                wording, length = found
                segments[-1].append(wording)
                at += length
                continue
            token = tokens[at]
            if token in ("and", "or"):
                connectors.add(token)
                segments.append([])
            elif token not in _LIGHT and token not in _HEAVY:
                return None
            at += 1
        if len(connectors) > 1 or not all(segments):
            return None
        any_of = connectors == {"or"}
        for segment in segments:
            names = sum(wording.claim.is_name for wording in segment)
            if names and (len(segment) > 1 or not _HEAVY.isdisjoint(said)):
                return None
            if len({wording.claim for wording in segment if wording.is_noun}) > 1 or (any_of and len(segment) > 1):
                return None
        claims = tuple(wording.claim for segment in segments for wording in segment)
        return Question(tuple(dict.fromkeys(claims)), any_of)

    def _longest_at(self, tokens: tuple[str, ...], at: int, voice: Voice | None) -> tuple[_Wording, int] | None:
        for length in range(min(self._longest, len(tokens) - at), 0, -1):
            fitting = [
                wording
                for wording in self._meanings.get(tokens[at : at + length], ())
                if voice is None or wording.voice in (None, voice)
            ]
            if len({wording.claim for wording in fitting}) == 1:
                return fitting[0], length
        return None

    def _learn(self, tokens: tuple[str, ...], wording: _Wording, text: str) -> None:
        if not tokens:
            raise ValueError(f"nothing is left of the wording {text!r} of {wording.claim.name!r}; use other words")
        meanings = self._meanings.setdefault(tokens, [])
        for other in meanings:
            if other.claim != wording.claim and (other.voice == wording.voice or None in (other.voice, wording.voice)):
                raise ValueError(
                    f"{text!r} means both {other.claim.name!r} and {wording.claim.name!r}; give one other words"
                )
        if wording not in meanings:
            meanings.append(wording)


def _wording(attribute: str, text: str) -> tuple[tuple[str, ...], _Wording]:
    is_reversed = text.startswith("-")
    plain = _plain(text.removeprefix("-"))
    voice = _voice(plain) or ("it" if plain.startswith("it ") else "you" if plain.startswith("you ") else None)
    tokens = _tokens(plain)
    if voice == "you":
        tokens = tokens[tokens[:1] == ("you",) :]
    return tokens, _Wording(Claim(attribute, reversed=is_reversed), voice, plain.startswith(_NOUN_OPENINGS))


def _voice(plain: str) -> Voice | None:
    opening = _OPENING.match(plain)
    if opening is None:
        return None
    return "it" if opening["it"] else "you"


def _plain(text: str) -> str:
    """Lower case, compatibility forms resolved, white space single, "isn't" written out."""
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    text = re.sub(r"can't\b", "can not", text)
    return " ".join(re.sub(r"n't\b", " not", text).split())


def _tokens(plain: str) -> tuple[str, ...]:
    if not plain.replace("'", "").isascii():
        # A word that is not read cannot be passed over either.
        return ("\ufffd",)
    words = _WORD.findall(_CLITIC.sub("", plain))
    return tuple(_SAME.get(word) or _stem(word) for word in words if word not in _DROPPED)


def _distributed(tokens: tuple[str, ...]) -> tuple[str, ...]:
    """ "have fur or feathers" as "have fur or have feathers"."""
    if tokens[0] not in _HEAVY:
        return tokens
    return tuple(word for token in tokens for word in ((token, tokens[0]) if token in ("and", "or") else (token,)))


def _without(tokens: tuple[str, ...], fillers: frozenset[str]) -> tuple[str, ...]:
    return tuple(token for token in tokens if token not in fillers)


def _stem(word: str) -> str:
    """The word without its common endings: crude, but the same for wordings and questions."""
    if word in _UNSTEMMED or word in _LIGHT or word in _HEAVY or len(word) < 4:
        return word
    if word.endswith("ies") and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith(("ses", "xes", "ches", "shes", "oes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending)
            if word[-1] == word[-2] and word[-1] not in "ls":
                word = word[:-1]
            break
    return word.removesuffix("e") if len(word) > 3 else word
