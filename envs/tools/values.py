"""Python types as JSON schemas, and JSON values as Python's: what stands between a model's arguments and a function.

A `Kind` is one type: it says what the model is told (`schema`) and reads what the model sent (`read`). Reading is
lenient where the meaning is beyond doubt, since many formats write arguments as bare text: "5" is read as 5 where an
integer is expected, 5 as "5" where a string is, 5.0 as 5, "true" as True, and text as the JSON that it holds where a
list or an object is expected. Nothing else is converted, and nothing is evaluated.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}", re.ASCII)
_NUMBER = re.compile(r"[+-]?([0-9]{1,400}(\.[0-9]{0,400})?|\.[0-9]{1,400})([eE][+-]?[0-9]{1,4})?", re.ASCII)
_LARGEST_EXACT_FLOAT = 2.0**53
_MAX_SHOWN = 60


class BadValue(Exception):
    """A value is not of the kind that was expected; the message says what is wrong, `where` in the value."""

    def __init__(self, problem: str, where: str = "") -> None:
        super().__init__(problem)
        self.problem, self.where = problem, where

    def inside(self, step: str) -> BadValue:
        """The same problem, seen from one level further out."""
        joint = "" if self.where.startswith("[") or not self.where else "."
        return BadValue(self.problem, f"{step}{joint}{self.where}")


class Kind(Protocol):
    """One type of values."""

    def schema(self) -> dict[str, Any]:
        """The JSON schema that the model is shown."""
        ...

    def read(self, value: Any, *, lenient: bool) -> Any:
        """The Python value that `value` stands for. Raises `BadValue`."""
        ...


def shown(value: Any) -> str:
    """A value in a few words for an error message; never fails, however deep or long the value is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if abs(value) < 10**_MAX_SHOWN else f"an integer of {value.bit_length()} bits"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return repr(value) if len(value) <= _MAX_SHOWN else f"{value[:_MAX_SHOWN]!r}... ({len(value)} characters)"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return f"an object of {len(value)}"
    return f"a {type(value).__name__}"


def _wrong(expected: str, value: Any) -> BadValue:
    return BadValue(f"expected {expected}, got {shown(value)}")


def parse_json(text: str) -> Any:
    """The JSON value that `text` is.

    Raises:
        BadValue: it is not JSON, or is nested too deep or has too long a number to be read.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "it is too deep, or a number is too long"
        raise BadValue(f"{shown(text)} is not JSON: {reason}") from None


def _container(value: Any, expected: str, *, lenient: bool) -> Any:
    """A list or an object, which may have come as text."""
    if not (lenient and isinstance(value, str)):
        return value
    try:
        return parse_json(value)
    except BadValue:
        raise _wrong(expected, value) from None


@dataclasses.dataclass(frozen=True, slots=True)
class _Anything:
    def schema(self) -> dict[str, Any]:
        return {}

    def read(self, value: Any, *, lenient: bool) -> Any:
        return value


@dataclasses.dataclass(frozen=True, slots=True)
class _Null:
    def schema(self) -> dict[str, Any]:
        return {"type": "null"}

    def read(self, value: Any, *, lenient: bool) -> None:
        if value is not None and not (lenient and isinstance(value, str) and value.strip() in ("null", "None", "")):
            raise _wrong("null", value)


@dataclasses.dataclass(frozen=True, slots=True)
class _Boolean:
    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}

    def read(self, value: Any, *, lenient: bool) -> bool:
        if isinstance(value, bool):
            return value
        if lenient and isinstance(value, str) and (word := value.strip().lower()) in ("true", "false"):
            return word == "true"
        raise _wrong("true or false", value)


@dataclasses.dataclass(frozen=True, slots=True)
class _Integer:
    def schema(self) -> dict[str, Any]:
        return {"type": "integer"}

    def read(self, value: Any, *, lenient: bool) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            return int(value)
        if isinstance(value, float) and value.is_integer() and abs(value) <= _LARGEST_EXACT_FLOAT:
            return int(value)
        if lenient and isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
            return int(value)
        raise _wrong("an integer", value)


@dataclasses.dataclass(frozen=True, slots=True)
class _Number:
    def schema(self) -> dict[str, Any]:
        return {"type": "number"}

    def read(self, value: Any, *, lenient: bool) -> float:
        if lenient and isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
            value = float(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return number
        raise _wrong("a finite number", value)


@dataclasses.dataclass(frozen=True, slots=True)
class _String:
    def schema(self) -> dict[str, Any]:
        return {"type": "string"}

    def read(self, value: Any, *, lenient: bool) -> str:
        if isinstance(value, str):
            return value
        if lenient and isinstance(value, bool | int | float):
            try:
                return json.dumps(value)
            except ValueError:  # more digits than Python writes
                raise _wrong("a string", value) from None
        raise _wrong("a string", value)


@dataclasses.dataclass(frozen=True, slots=True)
class _Choice:
    """One of several fixed values: what the model writes, and what the function gets for it.

    `names` are other ways to write them.
    """

    choices: tuple[tuple[Any, Any], ...]
    names: tuple[tuple[str, Any], ...] = ()

    def schema(self) -> dict[str, Any]:
        written = [choice for choice, _ in self.choices]
        types = {_JSON_TYPES.get(type(choice)) for choice in written}
        kind = {"type": types.pop()} if len(types) == 1 else {}
        return {**kind, "enum": written}

    def read(self, value: Any, *, lenient: bool) -> Any:
        if isinstance(value, str | int | float | None):
            for choice, meant in self.choices:
                if type(choice) is type(value) and choice == value:
                    return meant
            if lenient:
                text = value if isinstance(value, str) else shown(value)
                for name, meant in (*((_written(choice), meant) for choice, meant in self.choices), *self.names):
                    if name == text:
                        return meant
        raise _wrong("one of " + ", ".join(shown(choice) for choice, _ in self.choices), value)


def _written(choice: Any) -> str:
    return choice if isinstance(choice, str) else shown(choice)


@dataclasses.dataclass(frozen=True, slots=True)
class _Array:
    item: Kind
    build: Callable[[list[Any]], Any]

    def schema(self) -> dict[str, Any]:
        unique = {"uniqueItems": True} if self.build in (set, frozenset) else {}
        return {"type": "array", "items": self.item.schema(), **unique}

    def read(self, value: Any, *, lenient: bool) -> Any:
        values = _container(value, "a list", lenient=lenient)
        if not isinstance(values, list | tuple):
            raise _wrong("a list", value)
        items = []
        for index, item in enumerate(values):
            try:
                items.append(self.item.read(item, lenient=lenient))
            except BadValue as error:
                raise error.inside(f"[{index}]") from None
        try:
            return self.build(items)
        except TypeError:
            raise BadValue("expected a list whose items can stand in a set") from None


@dataclasses.dataclass(frozen=True, slots=True)
class _Tuple:
    items: tuple[Kind, ...]

    def schema(self) -> dict[str, Any]:
        count = len(self.items)
        return {
            "type": "array",
            "prefixItems": [item.schema() for item in self.items],
            "minItems": count,
            "maxItems": count,
        }

    def read(self, value: Any, *, lenient: bool) -> tuple[Any, ...]:
        expected = f"a list of {len(self.items)}"
        values = _container(value, expected, lenient=lenient)
        if not isinstance(values, list | tuple) or len(values) != len(self.items):
            raise _wrong(expected, value)
        read = []
        for index, (kind, item) in enumerate(zip(self.items, values, strict=True)):
            try:
                read.append(kind.read(item, lenient=lenient))
            except BadValue as error:
                raise error.inside(f"[{index}]") from None
        return tuple(read)


@dataclasses.dataclass(frozen=True, slots=True)
class _Dictionary:
    key: Kind
    value: Kind

    def schema(self) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": self.value.schema() or True}

    def read(self, value: Any, *, lenient: bool) -> dict[Any, Any]:
        values = _container(value, "an object", lenient=lenient)
        if not isinstance(values, Mapping):
            raise _wrong("an object", value)
        read = {}
        for key, item in values.items():
            try:
                # Keys of a JSON object are always text, whatever the type of the function's.
                read[self.key.read(key, lenient=True)] = self.value.read(item, lenient=lenient)
            except BadValue as error:
                raise error.inside(_step(key)) from None
        return read


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One argument of a function, or one entry of an object."""

    name: str
    kind: Kind
    required: bool
    description: str = ""
    default: Any = None

    def schema(self) -> dict[str, Any]:
        described = {"description": self.description} if self.description else {}
        kind = self.kind
        if isinstance(kind, _Union) and not self.required and self.default is None:
            # That it may be left out says it already, and a plain type is what formats and models know best.
            kind = kind.without_null()
        default = {} if self.required or self.default is None else {"default": self.default}
        return {**kind.schema(), **described, **_if_json(default)}


@dataclasses.dataclass(frozen=True, slots=True)
class Fields:
    """The arguments of a function, or the entries of an object; unknown and missing ones are refused."""

    fields: tuple[Field, ...]

    def schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {field.name: field.schema() for field in self.fields},
            "required": [field.name for field in self.fields if field.required],
        }

    def read(self, value: Any, *, lenient: bool) -> dict[str, Any]:
        """The values by name, without those that were left out; one `BadValue` lists everything that is wrong."""
        values = _container(value, "an object", lenient=lenient)
        if not isinstance(values, Mapping):
            raise _wrong("an object", value)
        known = {field.name for field in self.fields}
        problems = [f"{field.name} is missing" for field in self.fields if field.required and field.name not in values]
        problems += [f"{_step(name)} is unknown" for name in values if name not in known]
        read = {}
        for field in self.fields:
            if field.name in values:
                try:
                    read[field.name] = field.kind.read(values[field.name], lenient=lenient)
                except BadValue as error:
                    inner = error.inside(field.name)
                    problems.append(f"{inner.where}: {inner.problem}")
        if problems:
            raise BadValue("; ".join(problems[:10]) + ("; ..." if len(problems) > 10 else ""))
        return read


@dataclasses.dataclass(frozen=True, slots=True)
class _Record:
    """An object with known entries, made into a dataclass or left a dictionary."""

    fields: Fields
    build: Callable[..., Any]

    def schema(self) -> dict[str, Any]:
        return self.fields.schema()

    def read(self, value: Any, *, lenient: bool) -> Any:
        values = self.fields.read(value, lenient=lenient)
        try:
            return self.build(**values)
        except (TypeError, ValueError) as error:
            raise BadValue(str(error)) from None


@dataclasses.dataclass(frozen=True, slots=True)
class _Union:
    members: tuple[Kind, ...]

    def without_null(self) -> Kind:
        members = tuple(member for member in self.members if not isinstance(member, _Null))
        return members[0] if len(members) == 1 else _Union(members)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [member.schema() for member in self.members]}

    def read(self, value: Any, *, lenient: bool) -> Any:
        """The first member that takes the value as it stands; only then the first that takes it leniently."""
        problems: dict[str, None] = {}
        for leniently in (False, True) if lenient else (False,):
            for member in self.members:
                try:
                    return member.read(value, lenient=leniently)
                except BadValue as error:
                    if leniently == lenient:
                        problems[f"{error.where}: {error.problem}" if error.where else error.problem] = None
        raise BadValue(", or ".join(problems))


_JSON_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
_SCALARS: dict[Any, Kind] = {
    Any: _Anything(),
    object: _Anything(),
    None: _Null(),
    type(None): _Null(),
    bool: _Boolean(),
    int: _Integer(),
    float: _Number(),
    str: _String(),
}
_ARRAYS: dict[Any, Callable[[list[Any]], Any]] = {
    list: list,
    set: set,
    frozenset: frozenset,
    collections.abc.Sequence: list,
    collections.abc.Iterable: list,
    collections.abc.Collection: list,
}
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
SUPPORTED = (
    "str, int, float, bool, None, list, tuple, set, dict, Literal, Enum, Optional, Union, Annotated, dataclasses, "
    "TypedDict and Any"
)


def kind_of(annotation: Any, within: tuple[Any, ...] = ()) -> Kind:
    """The kind of values that a type annotation stands for.

    Raises:
        TypeError: the type is none of `SUPPORTED`, or contains itself.
    """
    if annotation in within:
        raise TypeError(f"{_name(annotation)} contains itself, which cannot be written as a plain JSON schema")
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Annotated, typing.Required, typing.NotRequired):
        return kind_of(arguments[0], within)
    if (alias := getattr(annotation, "__value__", None) or getattr(annotation, "__supertype__", None)) is not None:
        return kind_of(alias, (*within, annotation))  # `type X = ...` and NewType
    if isinstance(annotation, typing.TypeVar | str):
        raise TypeError(f"{annotation!r} is no type that a value can be checked against; supported are {SUPPORTED}")
    if origin is None and (scalar := _SCALARS.get(annotation)) is not None:
        return scalar
    if origin is typing.Literal:
        return _Choice(tuple((_literal(choice), choice) for choice in arguments))
    if origin in (typing.Union, types.UnionType):
        return _Union(tuple(kind_of(member, within) for member in arguments))
    container = origin or annotation
    if container is tuple:
        if not arguments:
            return _Array(_Anything(), tuple)
        if arguments[-1] is Ellipsis:
            return _Array(kind_of(arguments[0], within), tuple)
        return _Tuple(tuple(kind_of(item, within) for item in arguments))
    if container in _ARRAYS:
        return _Array(kind_of(arguments[0], within) if arguments else _Anything(), _ARRAYS[container])
    if container in _MAPPINGS:
        key, value = arguments or (str, Any)
        return _Dictionary(kind_of(key, within), kind_of(value, within))
    if isinstance(annotation, type):
        if issubclass(annotation, enum.Enum):
            return _enum_kind(annotation)
        if dataclasses.is_dataclass(annotation):
            return _Record(_dataclass_fields(annotation, (*within, annotation)), annotation)
        if typing.is_typeddict(annotation):
            return _Record(_typed_dict_fields(annotation, (*within, annotation)), dict)
    raise TypeError(f"{_name(annotation)} is no type for an argument; supported are {SUPPORTED}")


def description_in(annotation: Any) -> str:
    """The text in `Annotated[..., "text"]`, which describes an argument."""
    if typing.get_origin(annotation) in (typing.Required, typing.NotRequired):
        annotation = typing.get_args(annotation)[0]
    extras = getattr(annotation, "__metadata__", ())
    return next((extra for extra in extras if isinstance(extra, str)), "")


def _literal(choice: Any) -> Any:
    if isinstance(choice, enum.Enum):
        return _enum_value(choice)
    if type(choice) not in _JSON_TYPES:
        raise TypeError(f"Literal[{choice!r}] cannot be written in JSON")
    return choice


def _enum_value(member: enum.Enum) -> Any:
    # An enumeration of objects, or one that derives from str, is written by its plain value or else by its name.
    for plain in (str, bool, int, float):
        if isinstance(member.value, plain):
            return plain(member.value)
    return member.name


def _enum_kind(annotation: type[enum.Enum]) -> Kind:
    members = list(annotation)
    if not members:
        raise TypeError(f"{_name(annotation)} has no members to choose from")
    return _Choice(
        tuple((_enum_value(member), member) for member in members), tuple((member.name, member) for member in members)
    )


def _dataclass_fields(cls: Any, within: tuple[Any, ...]) -> Fields:
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = []
    for field in dataclasses.fields(cls):
        if field.init:
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            fields.append(
                Field(
                    name=field.name,
                    kind=kind_of(hints[field.name], within),
                    required=required,
                    description=description_in(hints[field.name]),
                    default=None if field.default is dataclasses.MISSING else field.default,
                )
            )
    return Fields(tuple(fields))


def _typed_dict_fields(cls: Any, within: tuple[Any, ...]) -> Fields:
    # Under `from __future__ import annotations` the class itself does not know which keys may be left out.
    wrapped = typing.get_type_hints(cls, include_extras=True)
    return Fields(
        tuple(
            Field(
                name=name,
                kind=kind_of(hint, within),
                required=(name in cls.__required_keys__ or typing.get_origin(hint) is typing.Required)
                and typing.get_origin(hint) is not typing.NotRequired,
                description=description_in(hint),
            )
            for name, hint in wrapped.items()
        )
    )


def _if_json(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry with its value as JSON has it; nothing if it cannot be written so."""
    try:
        return {name: json.loads(json.dumps(value, allow_nan=False, default=_plain)) for name, value in entry.items()}
    except (TypeError, ValueError):
        return {}


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return _enum_value(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(type(value).__name__)


def _step(key: Any) -> str:
    return key if isinstance(key, str) and re.fullmatch(r"\w{1,60}", key) else shown(key)


def _name(annotation: Any) -> str:
    return getattr(annotation, "__qualname__", None) or str(annotation)


def as_text(value: Any) -> str:
    """What a tool returned as the model reads it: text as it stands, everything else as JSON, or else as `str` has it.

    Whatever the value's own `__str__` raises passes through.
    """
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=_readable)
    except (TypeError, ValueError, RecursionError):
        return str(value)


def _readable(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return str(value)
    if isinstance(value, Sequence | Mapping | set | frozenset | enum.Enum) or dataclasses.is_dataclass(value):
        return dict(value) if isinstance(value, Mapping) else _plain_or_list(value)
    # Numbers and arrays of NumPy and the like.
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _plain_or_list(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    return list(value) if isinstance(value, Sequence) else _plain(value)
