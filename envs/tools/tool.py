"""A tool: a typed Python function that a model may call.

What the model is told of it comes from the signature and the docstring; what the model sends is checked against the
same signature. How calls are run is in `runner.py`, how they come and go in `env.py`.
"""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ParamSpec, TypeVar, overload

import numpy as np

from ...messages import ToolSpec
from .values import BadValue, Field, Fields, description_in, kind_of

P = ParamSpec("P")
R = TypeVar("R")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_MARK = "__loragym_tool__"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOptions:
    """What can be said of a tool besides its signature; None where the signature or the environment decides."""

    name: str | None = None
    description: str | None = None
    time_limit: float | None = None
    concurrent: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a tool may return to say more than a plain value does.

    Attributes:
        content: what the model is told; text as it stands, anything else as JSON.
        done: the call ends the episode, as handing in an answer does.
        reward: for this call alone.
        metrics: numbers added up over the calls of an episode.
    """

    content: Any = ""
    done: bool = False
    reward: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


class BadArguments(Exception):
    """A call's arguments do not fit the tool's signature; the message says how, in words for the model."""


@overload
def tool(function: Callable[P, R], /) -> Callable[P, R]: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    time_limit: float | None = None,
    concurrent: bool | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def tool(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    time_limit: float | None = None,
    concurrent: bool | None = None,
) -> Any:
    """Marks a method of a `ToolEnv` as a tool, or sets a function's options; the function itself stays as it is.

    Args:
        function: the function, where the decorator has no arguments.
        name: what the model calls it; by default the function's name.
        description: what the model is told; by default the docstring above its list of arguments.
        time_limit: seconds that a call may take; by default the environment's.
        concurrent: whether calls in one turn may run at once; by default functions may, and methods, which may change
            what they share, may not.
    """
    options = ToolOptions(name=name, description=description, time_limit=time_limit, concurrent=concurrent)

    def mark(marked: Any) -> Any:
        target = marked.__func__ if isinstance(marked, staticmethod | classmethod) else marked
        setattr(target, _MARK, options)
        return marked

    return mark if function is None else mark(function)


def is_marked(function: Any) -> bool:
    """Whether `@tool` stands above the function."""
    return isinstance(getattr(function, _MARK, None), ToolOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function with all that is needed to offer it, to check a call of it and to run it.

    Attributes:
        function: what is called; it may be `async`.
        name: what the model calls it.
        description: what the model is told of it.
        arguments: what it takes, as the model sees it.
        generators: names of the parameters annotated `numpy.random.Generator`, which the model does not see; each call
            gets a generator of its own, drawn from the environment's.
        time_limit: seconds that a call may take; None: the environment decides.
        concurrent: whether its calls may run while other calls of the turn do.
    """

    function: Callable[..., Any]
    name: str
    description: str
    arguments: Fields
    generators: tuple[str, ...] = ()
    time_limit: float | None = None
    concurrent: bool = True

    @classmethod
    def of(cls, function: Callable[..., Any] | Tool, options: ToolOptions | None = None) -> Tool:
        """The tool that a function is.

        Raises:
            TypeError: a parameter has no type or an unsupported one, or there is no description.
            ValueError: the name is not one for a tool, or the docstring describes a parameter that does not exist.
        """
        if isinstance(function, Tool):
            return function
        if not callable(function) or isinstance(function, type):
            raise TypeError(f"a tool is a function, or an object that can be called, got {function!r:.200}")
        given = options or getattr(function, _MARK, None) or ToolOptions()
        name = given.name or getattr(function, "__name__", None) or getattr(function, "name", None)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"a tool's name is made of letters, digits, _ and -, at most 64 of them, got {name!r:.200}; "
                "give one with @tool(name=...)"
            )
        if given.time_limit is not None and not given.time_limit > 0:
            raise ValueError(f"tool {name}: time_limit is a positive number of seconds, got {given.time_limit!r}")
        description, documented = _documentation(function)
        description = given.description or description
        if not description:
            raise TypeError(f"tool {name} has no description; write a docstring: it is what the model reads")
        arguments, generators = _parameters(function, name, documented)
        return cls(
            function=function,
            name=name,
            description=description,
            arguments=arguments,
            generators=generators,
            time_limit=given.time_limit,
            concurrent=not inspect.ismethod(function) if given.concurrent is None else given.concurrent,
        )

    @property
    def spec(self) -> ToolSpec:
        """What the model is told, for the renderers."""
        return {"name": self.name, "description": self.description, "parameters": self.arguments.schema()}

    @property
    def is_async(self) -> bool:
        call = getattr(self.function, "__call__", None)  # noqa: B004 - it is the method that is looked at
        return inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(call)

    def read(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as the function takes them.

        Raises:
            BadArguments: some are unknown, missing or of the wrong type.
        """
        try:
            return self.arguments.read(arguments, lenient=True)
        except BadValue as error:
            takes = ", ".join(self._usage()) or "no arguments"
            raise BadArguments(f"Wrong arguments for {self.name}: {error.problem}. It takes {takes}.") from None

    def renamed(self, name: str) -> Tool:
        """The same tool under another name."""
        return Tool.of(replace(self, name=name))

    def _usage(self) -> list[str]:
        return [f"{entry.name} ({_in_words(entry)})" for entry in self.arguments.fields]


def _in_words(entry: Field) -> str:
    schema = entry.schema()
    kind = schema.get("type") or ("one of the values listed" if "enum" in schema else "any of several types")
    return f"{kind}{'' if entry.required else ', optional'}"


def _documentation(function: Any) -> tuple[str, dict[str, str]]:
    """The description of a function and those of its parameters, by name."""
    text = inspect.getdoc(_underlying(function))
    if not text and not inspect.isroutine(function):
        text = inspect.getdoc(type(function))
    if not text:
        return "", {}
    from docstring_parser import parse

    parsed = parse(text)
    parts = (parsed.short_description, parsed.long_description)
    entries = {entry.arg_name: " ".join((entry.description or "").split()) for entry in parsed.params}
    return "\n\n".join(part.strip() for part in parts if part), entries


def _parameters(function: Any, name: str, documented: Mapping[str, str]) -> tuple[Fields, tuple[str, ...]]:
    signature = inspect.signature(function)
    hints = _hints(function, name)
    fields, generators = [], []
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"tool {name}: parameter {parameter} cannot be given by name; a model names all arguments")
        hint = hints.get(parameter.name)
        if hint is None and parameter.name not in hints:
            raise TypeError(f"tool {name}: parameter {parameter.name} has no type; write {parameter.name}: str, or so")
        if hint is np.random.Generator:
            generators.append(parameter.name)
            continue
        try:
            kind = kind_of(hint)
        except TypeError as error:
            raise TypeError(f"tool {name}: parameter {parameter.name}: {error}") from None
        required = parameter.default is parameter.empty
        fields.append(
            Field(
                name=parameter.name,
                kind=kind,
                required=required,
                description=documented.get(parameter.name) or description_in(hint),
                default=None if required else parameter.default,
            )
        )
    if strange := [entry for entry in documented if entry not in signature.parameters]:
        raise ValueError(f"tool {name}: the docstring describes {strange}, which the function does not take")
    return Fields(tuple(fields)), tuple(generators)


def _hints(function: Any, name: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(_underlying(function), include_extras=True)
    except NameError as error:
        raise TypeError(
            f"tool {name}: {error} in its type annotations; types are looked up in the module where the function is, "
            "so define them there"
        ) from None


def _underlying(function: Any) -> Any:
    """Where the types and the docstring stand: for an object that can be called, at its call."""
    if isinstance(function, functools.partial):
        return _underlying(function.func)
    return function if inspect.isroutine(function) else type(function).__call__
