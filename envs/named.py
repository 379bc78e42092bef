"""Functions and objects that are handed in, as they are or by import path.

A path, "module:name", is what a command line, a JSON file and a pickle can hold; an object is what programs have.
"""

from __future__ import annotations

import importlib
from functools import reduce
from typing import Any


class Named:
    """Something given as an object or as the import path of one; it pickles as what was given.

    Args:
        given: the object, or "module:name" (dots in the name go on into attributes).
        argument: what the argument is called, for errors.

    Raises:
        ValueError: the path is none, or leads nowhere.
        TypeError: what is there cannot be called and has no method of the name `method`.
    """

    def __init__(self, given: Any, argument: str, *, method: str | None = None) -> None:
        self.given, self.argument = given, argument
        self.value = import_path(given, argument) if isinstance(given, str) else given
        if not callable(self.value) and not (method and callable(getattr(self.value, method, None))):
            also = f" or an object with a method {method}()" if method else ""
            raise TypeError(f"{argument} is a function{also}, or the import path of one; got {self.value!r:.200}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.value(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if isinstance(self.given, str):
            del state["value"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "value" not in state:
            self.value = import_path(self.given, self.argument)


def import_path(path: str, argument: str = "path") -> Any:
    """What "module:name" names.

    Raises:
        ValueError: it has another form, there is no such module, or the module has no such name.
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise ValueError(f'{argument} is an import path such as "my_module:my_function", got {path!r}')
    try:
        return reduce(getattr, name.split("."), importlib.import_module(module))
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{argument}={path!r}: there is no module {error.name!r}; it has to be importable where this runs, such as "
            "a file in the working directory or an installed package"
        ) from error
    except AttributeError as error:
        raise ValueError(f"{argument}={path!r}: {error}") from error
