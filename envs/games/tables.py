"""The tables by name: `tables.make("TicTacToe-v0")` makes one, for self-play and for PettingZoo.

`gymnasium.make("loragym/TicTacToe-v0")` makes a `Seat` at such a table instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from ..named import import_path

if TYPE_CHECKING:
    from .table import Table

TABLES: dict[str, str | type[Table[Any]]] = {
    "TicTacToe-v0": "loragym.envs.games.tic_tac_toe:TicTacToe",
    "ConnectFour-v0": "loragym.envs.games.connect_four:ConnectFour",
    "KuhnPoker-v0": "loragym.envs.games.kuhn_poker:KuhnPoker",
    "Bargaining-v0": "loragym.envs.games.bargaining:Bargaining",
}
"""Tables by id: the class, or where to import it from as "module:Class"."""
_PREFIX = "loragym/"


def register_table(table_id: str, entry_point: str | type[Table[Any]]) -> None:
    """Names a table.

    Raises:
        ValueError: the name is taken by another one.
    """
    if TABLES.get(table_id, entry_point) != entry_point:
        raise ValueError(f"the table {table_id!r} is registered already, as {TABLES[table_id]!r}; choose another id")
    TABLES[table_id] = entry_point


def make(table: str, **options: Any) -> Table[Any]:
    """A new table.

    Args:
        table: an id of `TABLES`, with or without "loragym/" before it; or a class of your own as "module:Class".
        options: the table's own, such as `illegal="retry:2"`.

    Raises:
        ValueError: there is no such table, or an option has a wrong value.
        ImportError: PettingZoo is not installed.
    """
    return table_class(table)(**options)


def table_class(table: str) -> type[Table[Any]]:
    """The class of the table of that name, see `make`."""
    name = table.removeprefix(_PREFIX)
    entry_point = TABLES.get(name, name)
    if not isinstance(entry_point, str):
        return entry_point
    if ":" not in entry_point:
        raise ValueError(
            f"there is no table {table!r}; the known ones are {', '.join(sorted(TABLES))}, and one of your own is "
            "named as 'your_module:YourTable'"
        )
    found = import_path(entry_point, "table")
    # Not isinstance(found, type): that would let any class pass.
    if not hasattr(found, "legal_moves"):
        raise ValueError(f"{entry_point!r} is no Table: {found!r:.200}; derive from loragym.envs.games.table.Table")
    return cast("type[Table[Any]]", found)
