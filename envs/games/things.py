"""Things and what is true of them: the table behind twenty questions, and what is asked and answered with it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from .yes_no_questions import Question, QuestionReader

TABLE = "things.json"
FORMS = ("full", "small")


class Things:
    """A table of things by attributes, in which no two things are alike.

    Args:
        wordings: for each attribute the question that asks after it, then other wordings (see `QuestionReader`).
        attributes_of: the attributes that each thing has; it has no others.
        aliases: the name of a thing by each of its other names.

    Raises:
        ValueError: something is unknown, two things are alike, or a wording has two meanings.
    """

    def __init__(
        self,
        wordings: Mapping[str, Sequence[str]],
        attributes_of: Mapping[str, Collection[str]],
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.questions = {attribute: texts[0] for attribute, texts in wordings.items()}
        self.attributes_of = {thing: frozenset(attributes) for thing, attributes in attributes_of.items()}
        names = {thing: thing for thing in attributes_of}
        alike: dict[frozenset[str], str] = {}
        for thing, attributes in self.attributes_of.items():
            if unknown := sorted(attributes - wordings.keys()):
                raise ValueError(f"{thing!r} has the unknown attributes {unknown}")
            if (twin := alike.setdefault(attributes, thing)) != thing:
                raise ValueError(f"{twin!r} and {thing!r} have the same attributes, so no question tells them apart")
        for alias, thing in (aliases or {}).items():
            if thing not in names or alias in names:
                raise ValueError(f"the alias {alias!r} of {thing!r}: there is no such thing, or one of that name")
            names[alias] = thing
        self.names = names
        self.reader = QuestionReader(wordings, names)

    def answer(self, question: str, thing: str) -> bool | None:
        """Whether what is asked is true of `thing`; None if the question is not understood."""
        asked = self.reader.read(question)
        return None if asked is None else self.is_true(asked, thing)

    def is_true(self, asked: Question, thing: str) -> bool:
        return asked.is_true_of(thing, self.attributes_of[thing])

    def named(self, name: str) -> str:
        """The thing that goes by `name`; a name that is not in the table stands for itself."""
        return self.names.get(name, name)


@lru_cache(maxsize=8)
def load_things(table: str) -> Things:
    """The table that ships with the package, in the form `full` or `small`, or one from a JSON file of the same layout.

    Raises:
        ValueError: there is neither such a form nor such a file, or the file holds no table.
    """
    if table in FORMS:
        return _things(json.loads(resources.files(__package__).joinpath(TABLE).read_text(encoding="utf-8")), table)
    path = Path(table)
    if not path.is_file():
        raise ValueError(f"table is one of {FORMS} or the path of a JSON file such as {TABLE}, got {table!r}")
    try:
        return _things(json.loads(path.read_text(encoding="utf-8")), "full")
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        layout = '{"attributes": {name: [question, ...]}, "things": {name: "attribute attribute ..."}}'
        raise ValueError(f"{path} is not laid out as {layout}: {type(error).__name__} {error}") from error


def _things(data: Mapping[str, Any], form: str) -> Things:
    kinds, wordings, aliases = data.get("kinds", {}), data["attributes"], data.get("aliases", {})
    things = {thing: _attributes(text, kinds, thing) for thing, text in data["things"].items()}
    if form != "full":
        kept = data["forms"][form]
        wordings = {attribute: wordings[attribute] for attribute in kept["attributes"].split()}
        things = {thing: things[thing] & wordings.keys() for thing in kept["things"].split()}
        aliases = {alias: thing for alias, thing in aliases.items() if thing in things}
    return Things(wordings, things, aliases)


def _attributes(text: str, kinds: Mapping[str, str], of: str, depth: int = 0) -> set[str]:
    """`$kind` stands for its attributes, `-attribute` takes one back."""
    if depth > len(kinds):
        raise ValueError(f"{of!r}: its kinds are made of each other")
    attributes: set[str] = set()
    for word in text.split():
        if word.startswith("$"):
            attributes |= _attributes(kinds[word[1:]], kinds, of, depth + 1)
        elif word.startswith("-"):
            if word[1:] not in attributes:
                raise ValueError(f"{of!r}: {word!r} takes back what was not said")
            attributes.remove(word[1:])
        else:
            attributes.add(word)
    return attributes
