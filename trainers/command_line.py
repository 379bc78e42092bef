"""A trainer's config: defaults, overruled by a YAML or TOML file, overruled by the command line."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from .playground import PlayConfig

C = TypeVar("C")
P = TypeVar("P", bound=PlayConfig)
FILE_OPTION = "--config"
MAX_PARTS = 100_000
"""How many values a config file may hold, those counted each time that an alias repeats."""
HELP = """

Fields may also come from a YAML or TOML file: --config FILE. The command line overrules the file."""


def config_from(default: C, *, prog: str, description: str | None, argv: Sequence[str] | None = None) -> C:
    """The config that a user asks for.

    Args:
        default: a config dataclass with its values; its field docs are the help.
        prog, description: for the help.
        argv: the command line's arguments; by default the process's own.

    Raises:
        ValueError: the file cannot be read, or has fields or values that the config does not take.
        SystemExit: the command line is wrong, or asked for help.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    while (found := _take_file(arguments)) is not None:
        default = with_file(default, found)
    try:
        return tyro.cli(
            type(default), default=default, prog=prog, description=(description or "") + HELP, args=arguments
        )
    except AssertionError as error:  # how tyro refuses a shell that it has no completion for
        raise ValueError(f"{prog} {' '.join(arguments)}: {error}") from error


def play_config(defaults: P, recipe: str, description: str | None, argv: Sequence[str] | None) -> P:
    """The config that a user asks for; another environment does not get the arguments of the recipe's own."""
    config = config_from(defaults, prog=f"loragym train {recipe}", description=description, argv=argv)
    if config.env != defaults.env and config.env_kwargs == defaults.env_kwargs:
        config = dataclasses.replace(config, env_kwargs={})
    return config


def with_file(config: C, path: str | Path) -> C:
    """The config with the fields of a file.

    Raises:
        ValueError: see `config_from`.
    """
    return _with_fields(config, _read(Path(path)), str(path))


def _with_fields(config: C, given: Mapping[str, Any], path: str) -> C:
    known = {f.name: f for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(type(config))
    values = {}
    for written, value in given.items():
        name = str(written).replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ValueError(
                f"{path}: there is no field {written!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
        inner = getattr(config, name)
        if dataclasses.is_dataclass(inner) and isinstance(value, Mapping):
            values[name] = _with_fields(inner, value, f"{path}: {written}")
        else:
            values[name] = _checked(value, hints[name], f"{path}: {written}")
    try:
        return dataclasses.replace(config, **values)  # type: ignore[type-var]
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: {error}") from error


def _take_file(arguments: list[str]) -> str | None:
    """Takes the first `--config FILE` or `--config=FILE` out of the arguments."""
    for index, argument in enumerate(arguments):
        if argument == FILE_OPTION:
            if index + 1 == len(arguments):
                raise ValueError(f"{FILE_OPTION} needs a file")
            file = arguments[index + 1]
            del arguments[index : index + 2]
            return file
        if argument.startswith(f"{FILE_OPTION}="):
            del arguments[index]
            return argument.removeprefix(f"{FILE_OPTION}=")
    return None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the config file {path}: {error}") from error
    try:
        if path.suffix == ".toml":
            found: Any = tomllib.loads(text)
        elif path.suffix in (".yaml", ".yml"):
            import yaml

            try:
                found = yaml.safe_load(text) or {}
            except yaml.YAMLError as error:
                raise ValueError(str(error)) from error
        else:
            raise ValueError("its name ends in neither .yaml, .yml nor .toml")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot read the config file {path}: {error}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{path}: expected fields with their values, got {type(found).__name__}")
    try:
        _check_parts(found, str(path), [])
    except RecursionError as error:
        raise ValueError(f"{path} holds values within values without end") from error
    return found


def _check_parts(value: Any, where: str, seen: list[None]) -> None:
    """Refuses what JSON cannot hold, for that is how a run keeps its config, and what has no end.

    Raises:
        ValueError: the message names the place.
    """
    seen.append(None)
    if len(seen) > MAX_PARTS:
        raise ValueError(f"{where.partition(': ')[0]} holds more than {MAX_PARTS:,} values once aliases are followed")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise ValueError(f"{where}: a name is a text, got {name!r:.80}; put it into quotes")
            _check_parts(inner, f"{where}: {name}", seen)
    elif isinstance(value, list):
        for inner in value:
            _check_parts(inner, where, seen)
    elif isinstance(value, int) and value.bit_length() > 64:
        raise ValueError(f"{where} is a whole number of {value.bit_length()} bits; at most 64 are expected")
    elif not isinstance(value, str | int | float | None):
        raise ValueError(
            f"{where} is {value!r:.80}, of type {type(value).__name__}; expected a text, a number, a truth value, a "
            "list or names with values"
        )


def _checked(value: Any, hint: Any, where: str) -> Any:
    """The value as the field's type has it; whole numbers do for floats, and numerals such as 1e-4, which YAML reads as
    text.

    Raises:
        ValueError: it is of another type.
    """
    origin = typing.get_origin(hint)
    choices = typing.get_args(hint) if origin in (typing.Union, types.UnionType) else (hint,)
    if value is None and type(None) in choices:
        return None
    for choice in choices:
        kind = typing.get_origin(choice) or choice
        if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                return float(value)
            except ValueError:
                continue
        if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
        if isinstance(kind, type) and isinstance(value, str) and issubclass(kind, str):
            return kind(value)  # an enumeration's member by its value
    names = " or ".join(getattr(choice, "__name__", str(choice)) for choice in choices)
    raise ValueError(f"{where} is {value!r:.80}; expected {names}")
