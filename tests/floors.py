"""The floors of the house, checked by reading the imports: `python tests/floors.py` lists what breaks them.

A room imports rooms of lower floors only, and itself; recipes do not import one another; the light rooms never import
torch and its kin, not even inside a function; inside the package imports are relative, except in recipes, which are
examples of what a user writes.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "loragym"
FLOORS = {"messages": 0, "envs": 1, "renderers": 1, "agents": 2, "trainers": 3, "recipes": 4, "cli": 4}
LIGHT_ROOMS = {"", "messages", "envs", "renderers"}
HEAVY = {"torch", "transformers", "peft", "vllm"}
LAZY_ONLY = {"vllm"}
OUTSIDE = {"tests", "benchmarks", "docs", "build", "dist", "runs"}
ROOT_FLOOR = 1
"""The package's own `__init__` imports as the rooms of the first floor do, and may import those."""


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, as an absolute dotted name.

    `relative` tells how it was written, `lazy` whether importing the file leaves it undone.
    """

    module: str
    line: int
    relative: bool
    lazy: bool


def violations(root: Path) -> list[str]:
    """A line for each import under `root`, the package's folder, that breaks the floors."""
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if any(part.startswith(".") for part in parts) or parts[0] in OUTSIDE:
            continue
        room = "" if parts == ("__init__.py",) else parts[0].removesuffix(".py")
        if room and room not in FLOORS:
            found.append(f"{path}: {room} is no room of the house, which has {', '.join(FLOORS)}")
            continue
        for imported in imports(path.read_text(encoding="utf-8"), (PACKAGE, *parts)):
            if broken := _broken(room, parts, imported):
                found.append(f"{path}:{imported.line}: {broken}")
    return found


def imports(source: str, parts: tuple[str, ...]) -> Iterator[Import]:
    """All imports of a file, those inside functions and by `import_module("...")` too.

    Args:
        source: the file's text.
        parts: its path from the folder that holds the package, such as `("loragym", "envs", "base.py")`.
    """
    tree = ast.parse(source)
    inside = {id(child) for node in ast.walk(tree) if _defers(node) for child in ast.walk(node)}
    for node in ast.walk(tree):
        for module, relative in _named(node, parts):
            yield Import(module, getattr(node, "lineno", 0), relative, id(node) in inside)


def _defers(node: ast.AST) -> bool:
    """Does what stands inside not run when the module is imported?"""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def _named(node: ast.AST, parts: tuple[str, ...]) -> list[tuple[str, bool]]:
    """(absolute module, was it written relatively) of an import statement or call."""
    if isinstance(node, ast.Import):
        return [(alias.name, False) for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = parts[: len(parts) - node.level] if node.level else ()
        stem = ".".join((*base, *([node.module] if node.module else [])))
        # In `from .. import envs` the rooms are the names, in `from . import other` the recipes are.
        whole = stem in (PACKAGE, f"{PACKAGE}.recipes")
        names = [f"{stem}.{alias.name}" for alias in node.names] if whole else [stem]
        return [(name, node.level > 0) for name in names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")) and node.args:
        name = node.args[0]
        if isinstance(name, ast.Constant) and isinstance(name.value, str) and not name.value.startswith("."):
            return [(name.value, False)]
    return []


def _broken(room: str, parts: tuple[str, ...], imported: Import) -> str | None:
    """Which rule the import breaks, in words; None if it breaks none."""
    top, *inner = imported.module.split(".")
    if top in HEAVY and room in LIGHT_ROOMS:
        return f"{room or PACKAGE} imports {top}, and must work without it installed"
    if top in LAZY_ONLY and not imported.lazy:
        return f"{top} is optional: import it inside the function that needs it"
    if top != PACKAGE:
        return None
    if not imported.relative and room != "recipes":
        return f"imports {imported.module} absolutely; inside the package imports are relative"
    target = inner[0] if inner and inner[0] in FLOORS else ""
    if not target:
        return None
    if room == target == "recipes" and len(inner) > 1 and inner[1] != parts[1].removesuffix(".py"):
        return f"one recipe imports another ({imported.module}); what they share belongs into a room below"
    if room == target or (room == "cli" and target == "recipes"):
        return None
    floor = FLOORS[room] if room else ROOT_FLOOR
    if FLOORS[target] > floor:
        return f"{room or PACKAGE} (floor {floor}) imports {target} (floor {FLOORS[target]}): up the stairs"
    if FLOORS[target] == floor and room:
        return f"{room} imports {target}: rooms of one floor do not know each other"
    return None


def main() -> int:
    found = violations(Path(__file__).resolve().parent.parent)
    print("\n".join(found) if found else "the floors hold")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
