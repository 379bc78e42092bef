"""A command-line argument that is a JSON object, for fields whose keys the config cannot know."""

from __future__ import annotations

import json
from typing import Any

from tyro.constructors import PrimitiveConstructorSpec


def _parse(args: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(args[0])
    except ValueError as error:
        raise ValueError(f'expected a JSON object such as {{"high": 50}}, got {args[0]!r} ({error})') from None
    if not isinstance(value, dict):
        raise ValueError(f'expected a JSON object such as {{"high": 50}}, got {args[0]!r}')
    return value


JSON_OBJECT = PrimitiveConstructorSpec(
    nargs=1,
    metavar="JSON",
    instance_from_str=_parse,
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda value: [json.dumps(value)],
)
