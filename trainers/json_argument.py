"""Command-line arguments that are JSON, for fields whose keys the config cannot know."""

from __future__ import annotations

import json
from typing import Any

from tyro.constructors import PrimitiveConstructorSpec

from ..envs.secrets import redacted_message


def _argument(kind: type, name: str, example: str) -> PrimitiveConstructorSpec[Any]:
    def parse(args: list[str]) -> Any:
        try:
            value = json.loads(args[0])
        except ValueError as error:
            raise ValueError(
                f"expected a JSON {name} such as {example}, got {redacted_message(args[0])!r} ({error})"
            ) from None
        if not isinstance(value, kind):
            raise ValueError(f"expected a JSON {name} such as {example}, got {redacted_message(args[0])!r}")
        return value

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, kind),
        str_from_instance=lambda value: [json.dumps(value)],
    )


JSON_OBJECT = _argument(dict, "object", '{"high": 50}')
JSON_LIST = _argument(list, "list", '[{"adapter": "runs/rl_basic"}]')
