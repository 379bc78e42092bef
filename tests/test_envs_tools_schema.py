"""A function's signature and docstring are its declaration, and its only guard against what a model sends."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import pickle
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NewType, NotRequired, Optional, TypedDict, Union

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loragym.envs.tools import BadArguments, Tool, tool
from loragym.envs.tools.values import BadValue, as_text, kind_of


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 3


@dataclasses.dataclass
class Point:
    x: int
    y: Annotated[int, "upwards"] = 0

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError("x is at least 0")


class Query(TypedDict):
    text: str
    limit: NotRequired[int]


@dataclasses.dataclass
class Tree:
    children: list[Tree]


Kilometres = NewType("Kilometres", float)


def everything(
    text: str,
    count: int,
    ratio: float,
    flag: bool,
    words: list[str],
    table: dict[str, int],
    mode: Literal["fast", "slow"],
    colour: Colour,
    point: Point,
    query: Query,
    pair: tuple[int, str],
    either: int | list[int],
    unit: Annotated[str, "such as km"] = "m",
    maybe: Optional[str] = None,  # noqa: UP045 - the old spelling must work as well
    anything: Any = None,
) -> str:
    """Takes one of each.

    More about it, on a second paragraph
    of two lines.

    Args:
        text: what to say,
            over two lines.
        count (int): how many: at most ten.
        ratio: a share.

    Returns:
        Nothing of note.
    """
    return "done"


def test_the_declaration_says_what_the_signature_and_the_docstring_say() -> None:
    spec = Tool.of(everything).spec
    assert spec["name"] == "everything"
    assert spec["description"] == "Takes one of each.\n\nMore about it, on a second paragraph\nof two lines."
    point = {
        "type": "object",
        "properties": {
            "x": {"type": "integer"},
            "y": {"type": "integer", "description": "upwards", "default": 0},
        },
        "required": ["x"],
    }
    query = {
        "type": "object",
        "properties": {"text": {"type": "string"}, "limit": {"type": "integer"}},
        "required": ["text"],
    }
    integers = {"type": "array", "items": {"type": "integer"}}
    assert spec["parameters"] == {
        "type": "object",
        "properties": {
            "text": {"type": "string", "description": "what to say, over two lines."},
            "count": {"type": "integer", "description": "how many: at most ten."},
            "ratio": {"type": "number", "description": "a share."},
            "flag": {"type": "boolean"},
            "words": {"type": "array", "items": {"type": "string"}},
            "table": {"type": "object", "additionalProperties": {"type": "integer"}},
            "mode": {"type": "string", "enum": ["fast", "slow"]},
            "colour": {"type": "string", "enum": ["red", "blue"]},
            "point": point,
            "query": query,
            "pair": {
                "type": "array",
                "prefixItems": [{"type": "integer"}, {"type": "string"}],
                "minItems": 2,
                "maxItems": 2,
            },
            "either": {"anyOf": [{"type": "integer"}, integers]},
            "unit": {"type": "string", "description": "such as km", "default": "m"},
            "maybe": {"type": "string"},
            "anything": {},
        },
        "required": [
            *("text", "count", "ratio", "flag", "words", "table", "mode", "colour", "point", "query", "pair", "either")
        ],
    }
    assert json.loads(json.dumps(spec)) == spec


def plain(city: str, days: int, share: float, exact: bool, names: list[str], sizes: dict[str, int]) -> str:
    """
    Looks up the weather.

    Args:
        city: Where it is.
        days: How many days ahead.
        share: How much of it.
        exact: Whether to be exact.
        names: Whom to tell.
        sizes: How large they are.
    """
    return city


def test_a_plain_declaration_is_the_one_that_transformers_makes() -> None:
    utils = pytest.importorskip("transformers.utils")
    theirs = utils.get_json_schema(plain)["function"]
    ours = Tool.of(plain).spec
    assert ours == {key: theirs[key] for key in ("name", "description", "parameters")}


READINGS: list[tuple[Any, Any, Any]] = [
    (str, "5", "5"),
    (str, 5, "5"),
    (str, 2.5, "2.5"),
    (str, True, "true"),
    (int, 5, 5),
    (int, "5", 5),
    (int, " -12 ", -12),
    (int, 5.0, 5),
    (float, 5, 5.0),
    (float, "2.5e3", 2500.0),
    (float, ".5", 0.5),
    (bool, True, True),
    (bool, "False", False),
    (type(None), None, None),
    (list[int], [1, "2"], [1, 2]),
    (list[int], "[1, 2]", [1, 2]),
    (list, [1, "a", None], [1, "a", None]),
    (Sequence[str], ["a"], ["a"]),
    (set[int], [1, 2, 2], {1, 2}),
    (tuple[int, ...], [1, 2], (1, 2)),
    (tuple[int, str], [1, "a"], (1, "a")),
    (dict[str, int], {"a": 1}, {"a": 1}),
    (dict[str, int], '{"a": 1}', {"a": 1}),
    (dict[int, str], {"1": "a"}, {1: "a"}),
    (Literal["a", 3, None], 3, 3),
    (Literal["a", 3, None], "3", 3),
    (Literal["a", 3, None], None, None),
    (Literal[1, True], True, True),
    (Literal[Colour.RED], "red", "red"),
    (Colour, "red", Colour.RED),
    (Colour, "RED", Colour.RED),
    (Level, 3, Level.HIGH),
    (Level, "3", Level.HIGH),
    (Level, "HIGH", Level.HIGH),
    (Point, {"x": 1}, Point(1, 0)),
    (Point, '{"x": 1, "y": "2"}', Point(1, 2)),
    (Query, {"text": "a"}, {"text": "a"}),
    (Query, {"text": "a", "limit": 3}, {"text": "a", "limit": 3}),
    (int | None, None, None),
    (int | None, "null", None),
    (int | str, "5", "5"),
    (int | str, 5, 5),
    (Union[int, list[int]], "[5]", [5]),  # noqa: UP007 - the old spelling must work as well
    (str | None, "null", "null"),
    (Kilometres, 3, 3.0),
    (Annotated[int, "a number"], 3, 3),
    (Any, {"a": [1]}, {"a": [1]}),
]


@pytest.mark.parametrize(("annotation", "sent", "read"), READINGS, ids=repr)
def test_a_value_is_read_as_its_type_has_it(annotation: Any, sent: Any, read: Any) -> None:
    got = kind_of(annotation).read(sent, lenient=True)
    if annotation == Literal[Colour.RED]:
        assert got is Colour.RED
        return
    assert got == read and type(got) is type(read)


REFUSALS: list[tuple[Any, Any, str]] = [
    (str, None, "expected a string, got null"),
    (str, ["a"], "expected a string, got a list of 1"),
    (str, 10**5000, "expected a string, got an integer of 16610 bits"),
    (int, "five", "expected an integer, got 'five'"),
    (int, 5.5, "expected an integer, got 5.5"),
    (int, True, "expected an integer, got true"),
    (int, "٣", "expected an integer"),
    (int, "1_000", "expected an integer"),
    (int, "9" * 5000, r"expected an integer, got '9+'\.\.\. \(5000 characters\)"),
    (int, float("inf"), "expected an integer, got inf"),
    (float, float("nan"), "expected a finite number, got nan"),
    (float, "inf", "expected a finite number, got 'inf'"),
    (float, "1e9999", "expected a finite number"),
    (float, 10**400, "expected a finite number"),
    (float, False, "expected a finite number, got false"),
    (bool, 1, "expected true or false, got 1"),
    (bool, "yes", "expected true or false, got 'yes'"),
    (list[int], 3, "expected a list, got 3"),
    (list[int], "1, 2", "expected a list, got '1, 2'"),
    (list[int], {"a": 1}, "expected a list, got an object of 1"),
    (list[int], [1, "b"], r"\[1\]: expected an integer, got 'b'"),
    (set, [[1]], "items can stand in a set"),
    (tuple[int, int], [1], "expected a list of 2, got a list of 1"),
    (dict[str, int], {"a": "b"}, "a: expected an integer"),
    (dict[str, list[int]], {"a": [1, "x"]}, r"a\[1\]: expected an integer"),
    (Literal["a", "b"], "c", "expected one of 'a', 'b', got 'c'"),
    (Literal[1], True, "expected one of 1, got true"),
    (Colour, "green", "expected one of 'red', 'blue', got 'green'"),
    (Point, {"y": 1}, "x is missing"),
    (Point, {"x": 1, "z": 1}, "z is unknown"),
    (Point, {"x": -1}, "x is at least 0"),
    (int | None, "x", "expected an integer, got 'x', or expected null"),
    (list[Point], [{"x": "a"}], r"\[0\]: x: expected an integer"),
]


@pytest.mark.parametrize(("annotation", "sent", "complaint"), REFUSALS, ids=map(str, range(len(REFUSALS))))
def test_a_value_of_another_type_is_refused_with_what_was_expected(annotation: Any, sent: Any, complaint: str) -> None:
    import re

    with pytest.raises(BadValue) as caught:
        kind_of(annotation).read(sent, lenient=True)
    error = caught.value
    assert re.search(complaint, f"{error.where}: {error.problem}" if error.where else error.problem)


def example_of(annotation: Any) -> st.SearchStrategy[Any]:
    return st.from_type(annotation)


ROUND_TRIPS = [int, str, bool, list[int], dict[str, int], list[dict[str, bool]], int | str, Literal["a", 2], int | None]


@pytest.mark.parametrize("annotation", ROUND_TRIPS, ids=str)
@given(data=st.data())
def test_what_json_can_say_of_a_type_comes_back_the_same(annotation: Any, data: st.DataObject) -> None:
    value = data.draw(example_of(annotation))
    sent = json.loads(json.dumps(value))
    assert kind_of(annotation).read(sent, lenient=False) == value
    assert kind_of(annotation).read(sent, lenient=True) == value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@given(arguments=st.dictionaries(st.sampled_from(list("abc")) | st.text(), JSON, max_size=5))
def test_whatever_is_sent_is_either_read_or_refused_in_words(arguments: dict[str, Any]) -> None:
    def takes(a: Point | list[int], b: dict[str, Colour] = {}, c: Query | None = None) -> None:  # noqa: B006
        """Takes things."""

    try:
        read = Tool.of(takes).read(arguments)
    except BadArguments as error:
        assert str(error).startswith("Wrong arguments for takes: ")
        assert len(str(error)) < 3000
    else:
        assert set(read) == set(arguments) and "a" in read
        assert isinstance(read["a"], Point | list)


def test_a_refusal_lists_everything_at_once_and_the_usage() -> None:
    def send(to: str, copies: int = 1, urgent: bool = False) -> None:
        """Sends."""

    with pytest.raises(BadArguments) as caught:
        Tool.of(send).read({"copies": "many", "too": "you"})
    assert str(caught.value) == (
        "Wrong arguments for send: to is missing; too is unknown; copies: expected an integer, got 'many'. "
        "It takes to (string), copies (integer, optional), urgent (boolean, optional)."
    )


def test_a_list_nested_ten_thousand_deep_is_refused_or_passed_on_but_breaks_nothing() -> None:
    deep: Any = []
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(BadValue):
        kind_of(list[int]).read(deep, lenient=True)
    with pytest.raises(BadValue):
        kind_of(list[int]).read("[" * 100_000, lenient=True)
    assert kind_of(Any).read(deep, lenient=True) is deep


def no_type(x) -> None:  # type: ignore[no-untyped-def]
    """Has no type."""


def positional(x: int, /) -> None:
    """Has a parameter without a name."""


def variadic(*xs: int) -> None:
    """Takes any number."""


def odd_type(x: Callable[[], int]) -> None:
    """Takes a function."""


def silent(x: int) -> None:
    pass


def wrong_docstring(x: int) -> None:
    """Has a docstring.

    Args:
        y: is not there.
    """


def recursive(tree: Tree) -> None:
    """Takes a tree."""


def unresolvable(x: "Nowhere") -> None:  # type: ignore[name-defined]  # noqa: F821, UP037
    """Has an unknown type."""


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (no_type, "no_type: parameter x has no type"),
        (positional, "parameter x: int cannot be given by name|parameter x.*cannot be given by name"),
        (variadic, "cannot be given by name"),
        (odd_type, "odd_type: parameter x: .* is no type for an argument; supported are str, int"),
        (silent, "tool silent has no description; write a docstring"),
        (wrong_docstring, r"describes \['y'\], which the function does not take"),
        (recursive, "Tree contains itself"),
        (unresolvable, "'Nowhere' is not defined"),
        (lambda: None, "a tool's name is made of letters"),
        (3, "a tool is a function"),
        (Point, "a tool is a function"),
        (functools.partial(everything, text="a"), "a tool's name is made of letters"),
    ],
)
def test_a_function_that_cannot_be_a_tool_is_refused_at_once(function: Any, complaint: str) -> None:
    with pytest.raises((TypeError, ValueError), match=complaint):
        Tool.of(function)


def test_name_description_and_limits_can_be_given() -> None:
    @tool(name="look-up", description="Looks something up.", time_limit=2.5, concurrent=False)
    def f(x: int) -> int:
        return x

    made = Tool.of(f)
    assert (made.name, made.description, made.time_limit, made.concurrent) == (
        "look-up",
        "Looks something up.",
        2.5,
        False,
    )
    assert f(3) == 3, "the function itself stays as it was"
    with pytest.raises(ValueError, match="time_limit is a positive number"):
        Tool.of(tool(time_limit=0)(f))


class Adder:
    """An object that can be called."""

    name = "add"

    def __call__(self, x: int, y: int = 1) -> int:
        """Adds.

        Args:
            x: one number.
        """
        return x + y


def test_an_object_that_can_be_called_is_a_tool() -> None:
    made = Tool.of(Adder())
    assert (made.name, made.description) == ("add", "Adds.")
    assert made.function(**made.read({"x": "2"})) == 3


def test_a_generator_is_asked_for_by_its_type_and_hidden_from_the_model() -> None:
    def roll(sides: int, dice: np.random.Generator) -> int:
        """Rolls a die."""
        return int(dice.integers(sides))

    made = Tool.of(roll)
    assert made.generators == ("dice",)
    assert list(made.spec["parameters"]["properties"]) == ["sides"]
    with pytest.raises(BadArguments, match="dice is unknown"):
        made.read({"sides": 6, "dice": 1})


def test_a_tool_can_be_pickled() -> None:
    twin = pickle.loads(pickle.dumps(Tool.of(everything)))
    assert twin.spec == Tool.of(everything).spec


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        (None, "null"),
        (3, "3"),
        ({"a": [1, "ü"]}, '{"a": [1, "ü"]}'),
        ((1, 2), "[1, 2]"),
        ({3, 1, 2}, "[1, 2, 3]"),
        (Point(1, 2), '{"x": 1, "y": 2}'),
        ([Colour.RED], '["red"]'),
        (np.float64(0.5), "0.5"),
        (np.arange(3), "[0, 1, 2]"),
        (b"ab", "b'ab'"),
        ({(1, 2): 3}, "{(1, 2): 3}"),
        (range(3), "[0, 1, 2]"),
    ],
    ids=repr,
)
def test_a_result_is_text_or_json_or_what_str_makes_of_it(value: Any, text: str) -> None:
    assert as_text(value) in (text, f'"{text}"') if isinstance(value, bytes) else as_text(value) == text
