"""What an answer is made of, once read: a tree of nodes of a few kinds, bounded in size.

Kinds, with their parts and value:

    num        Fraction; no parts             sym        the name
    const      "pi", "e", "i", "inf"          mixed      Fraction, such as 3 1/2
    add        two or more parts              neg        one
    mul, div   two                            pow        base, exponent
    root       one; the degree, an int        func       arguments; the name
    fact       one                            binom      two
    pm         two; "+" or "-", the sign that comes first
    apply      name, argument: f(3), which may also mean f times 3
    percent    one                            base       digits as text; the base, in parts[0]
    unit       one; the unit's name           text       words
    tuple      two or more; the brackets      set, list  any number
    matrix     rows, which are tuples         ratio      two or more
    rel        two or more; the signs between them, as words
    union, intersection, minus                of sets; two
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple


class Node(NamedTuple):
    """A part of an answer; see the module's table of kinds."""

    kind: str
    parts: tuple[Node, ...] = ()
    value: Fraction | int | str = ""


def number(value: int | Fraction) -> Node:
    return Node("num", (), Fraction(value))


ZERO, ONE = number(0), number(1)
INFINITY = Node("const", (), "inf")


def walk(node: Node) -> Iterator[Node]:
    """The node and all that is below it."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.parts)


def kinds(node: Node) -> set[str]:
    return {part.kind for part in walk(node)}


def symbols(node: Node) -> set[str]:
    """The names of the unknowns."""
    return {str(part.value) for part in walk(node) if part.kind == "sym"}
