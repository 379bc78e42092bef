r"""Whether an answer says what the reference says.

`compare` walks over both trees: lists and sets in any order, tuples and matrices in theirs, equations up to a factor,
inequalities and intervals as regions of the line, and at the leaves values. What values are worth is asked of a
`Calculator`: `Quick` knows exact arithmetic and puts off what it cannot settle at once; the worker's `Deep` settles it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from itertools import product
from typing import Protocol

from .grammar import parse
from .nodes import INFINITY, ONE, ZERO, Node, kinds, number, symbols, walk
from .records import MAX_DIGITS, Method, TooComplex, Unparsable, Verdict
from .texts import choice, clock, integer, names_others, plain
from .tokens import has_commas
from .units import measure
from .values import Beyond, Fractions, NotAValue, Residues, Undefined, evaluate

METHODS: tuple[Method, ...] = ("text", "exact", "numeric", "symbolic")
HALF = number(Fraction(1, 2))
MAX_ITEMS = 64
"""The most items that are compared in any order, for each may have to be held against each."""
_ORDERINGS = frozenset(("<", ">", "≤", "≥"))
_TURNED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤", "=": "=", "≠": "≠"}
_COLLECTIONS = frozenset(("list", "set"))
_REGIONS = frozenset(("union", "intersection", "minus"))
_MINUS_INFINITY = Node("neg", (INFINITY,))
_SHAPES = frozenset(("text", "tuple", "set", "list", "matrix", "rel", *_REGIONS))
"""Kinds that are no values."""


class Deferred(Exception):
    """Exact arithmetic does not settle this: a worker has to."""


class Calculator(Protocol):
    """Who knows what values are worth. Each method may raise `Deferred`, or `Unparsable` if something has no value."""

    method: Method

    def same_value(self, left: Node, right: Node) -> bool:
        """Whether two expressions are equal wherever both have a value."""

    def same_up_to_factor(self, left: Node, right: Node, *, positive: bool) -> bool:
        """Whether one is the other times a number other than zero, and above it if `positive`."""

    def is_within(self, left: Node, right: Node, distance: Fraction) -> bool:
        """Whether two constants lie no further apart."""

    def ranks(self, values: list[Node]) -> list[int]:
        """The place of each constant among them in ascending order; equal ones share a place."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of it; `verdict` is one of correct, wrong, unevaluated, unparsable and too_long."""

    verdict: Verdict
    method: Method = ""
    detail: str = ""


def compare(answer: str, reference: str, calculator: Calculator) -> Comparison:
    """Holds an answer against a reference.

    Raises:
        Deferred: `calculator` puts it off.
    """
    if plain(answer) == plain(reference) and plain(answer):
        return Comparison("correct", "text")
    left, right = integer(answer), integer(reference)
    if left is not None and right is not None:
        return Comparison("correct" if left == right else "wrong", "exact")
    if (chosen := choice(answer)) and chosen[0] == plain(reference).strip("()") and not names_others(chosen[1]):
        return Comparison("correct", "text")
    if (stated := choice(reference)) and reference.lstrip("\\abcdefghijklmnopqrstuvwxyz{ ").startswith("("):
        if plain(answer).strip("()") == stated[0]:
            return Comparison("correct", "text")
        if chosen and chosen[0] != stated[0]:
            return Comparison("wrong", "text", "another choice")
        return compare(chosen[1] if chosen else answer, stated[1], calculator)
    if clock(reference):
        # 1:15 and 3:45 are one ratio and two times.
        return Comparison("correct" if _same_time(answer, reference) else "wrong", "text")
    outcome = Comparison("wrong")
    for commas in (True, False) if has_commas(answer) or has_commas(reference) else (True,):
        outcome = _compare_read(answer, reference, commas, calculator)
        if outcome.verdict == "correct":
            break
    return outcome


def is_readable(reference: str) -> bool:
    """Whether a reference is understood, so that answers other than its very words can be right."""
    if clock(reference) or choice(reference):
        return True
    try:
        parse(reference)
    except Unparsable:
        return False
    return True


def same_reading(answer: str, reference: str) -> bool:
    """Whether both are written alike, commands and spaces aside."""
    try:
        return parse(answer) == parse(reference)
    except Unparsable:
        return False


def is_calculation(answer: str) -> bool:
    """Whether something in an answer could still be calculated."""
    try:
        found = kinds(parse(answer))
    except Unparsable:
        return False
    return not found.isdisjoint({"add", "mul", "div", "pow", "root", "func", "fact", "binom"})


def _same_time(answer: str, reference: str) -> bool:
    ours, theirs = clock(reference), clock(answer)
    if ours is None or theirs is None:
        return False
    # A reference without am or pm leaves it open, and so may an answer.
    if ours[-1] == theirs[-1] == "m":
        return ours == theirs
    return ours.rstrip("apm") == theirs.rstrip("apm")


@lru_cache(maxsize=2048)
def _parse_reference(reference: str, commas: bool) -> Node:
    # References come again with every reply of a group; answers are not kept, for they may be built to be large.
    return parse(reference, commas)


def forget_references() -> None:
    """Empties what is kept of references and texts, for those who measure."""
    _parse_reference.cache_clear()
    plain.cache_clear()


def _compare_read(answer: str, reference: str, commas: bool, calculator: Calculator) -> Comparison:
    try:
        right = _parse_reference(reference, commas)
    except Unparsable as error:
        same = plain(answer).casefold() == plain(reference).casefold()
        return Comparison("correct" if same else "wrong", "text", f"the reference is compared as text: {error}")
    try:
        left = parse(answer, commas)
    except TooComplex as error:
        return Comparison("too_long", detail=str(error))
    except Unparsable as error:
        return Comparison("unparsable", detail=str(error))
    comparer = _Comparer(calculator)
    try:
        if comparer.same(left, right):
            return Comparison("correct", comparer.method)
    except TooComplex as error:
        return Comparison("too_long", comparer.method, str(error))
    except Unparsable as error:
        return Comparison("wrong", comparer.method, str(error))
    if comparer.unevaluated:
        return Comparison("unevaluated", comparer.method, "the value is right, but is left to be calculated")
    return Comparison("wrong", comparer.method)


@dataclass
class _Comparer:
    calculator: Calculator
    unevaluated: bool = False
    used: set[Method] = field(default_factory=lambda: {"text"})

    @property
    def method(self) -> Method:
        return max(self.used, key=METHODS.index)

    # Answers of any kind

    def same(self, answer: Node, reference: Node) -> bool:
        if answer == reference:
            return True
        answer, reference = _without_domain(answer), _without_domain(reference)
        answer, reference = self._exact_part(answer), self._exact_part(reference)
        member, of = _member_of(answer), _member_of(reference)
        if member or of:
            # x ∈ {1, 2} says no more than {1, 2}, but y ∈ {1, 2} says something else.
            same_name = not (member and of) or member[0] == of[0]
            return same_name and self.same(member[1] if member else answer, of[1] if of else reference)
        answers, references = _items(answer), _items(reference)
        if answers is not None or references is not None:
            return self._same_items(answer, answers, reference, references)
        if answer.kind == "rel" or reference.kind == "rel":
            return self._same_relation(answer, reference)
        if answer.kind in _REGIONS or reference.kind in _REGIONS:
            return self._same_region(answer, reference)
        if answer.kind == "matrix" or reference.kind == "matrix":
            return self._same_matrix(answer, reference)
        if answer.kind == "tuple" or reference.kind == "tuple":
            return self._same_tuple(answer, reference)
        if answer.kind == "ratio" and reference.kind == "ratio":
            return self._same_ratio(answer, reference)
        if answer.kind == "text" or reference.kind == "text":
            return _words(answer) is not None and _words(answer) == _words(reference)
        return self._same_quantity(answer, reference)

    def _exact_part(self, node: Node) -> Node:
        """x = 1/3 ≈ 0.33 without what follows the sign ≈: what stands before it is the answer, if it rounds to that."""
        signs = str(node.value).split() if node.kind == "rel" else []
        if "≈" not in signs:
            return node
        place = signs.index("≈")
        first = node.parts[0]
        if len(signs) == 1 and _is_name(first):
            # "x ≈ 0.33" states a value, "1/3 ≈ 0.33" has stated it before.
            return Node("rel", node.parts, "=")
        before, after = _without_unit(node.parts[place]), _without_unit(node.parts[place + 1])
        if place != len(signs) - 1 or not self._rounds_to(before, after):
            raise Undefined("two values that do not round to each other")
        return first if place == 0 else Node("rel", node.parts[: place + 1], " ".join(signs[:place]))

    def _rounds_to(self, exact: Node, rounded: Node) -> bool:
        literal = _unsigned(rounded)
        if literal.kind != "num" or not isinstance(literal.value, Fraction) or not _is_constant(exact):
            return False
        unit = next((10**places for places in range(MAX_DIGITS) if literal.value * 10**places % 1 == 0), None)
        if unit is None:
            # 0.333... with a line over the threes is not rounded.
            return False
        # The last decimal may have been cut off; a whole number is rounded.
        distance = Fraction(1, unit) if unit > 1 else Fraction(1, 2)
        same = self.calculator.is_within(exact, rounded, distance)
        self.used.add(self.calculator.method)
        return same

    def _same_ratio(self, answer: Node, reference: Node) -> bool:
        if len(answer.parts) != len(reference.parts):
            return False
        first, *others = zip(answer.parts, reference.parts, strict=True)
        crossed = ((Node("mul", (a, first[1])), Node("mul", (r, first[0]))) for a, r in others)
        return all(self.value(left, right) for left, right in crossed)

    # Lists and sets

    def _same_items(
        self, answer: Node, answers: list[Node] | None, reference: Node, references: list[Node] | None
    ) -> bool:
        if _is_ordered(answer) or _is_ordered(reference):
            # (1, 2) and "1, 2", or "x = 1, y = 2": in the same order
            if answer.kind == "set" or reference.kind == "set":
                return False
            left = list(answer.parts) if answers is None else answers
            right = list(reference.parts) if references is None else references
            return len(left) == len(right) and all(
                self.same(_assigned(a), _assigned(r)) for a, r in zip(left, right, strict=True)
            )
        if self._may_be_region(answer) and self._may_be_region(reference):
            return self._same_region(answer, reference)
        left = [answer] if answers is None else answers
        right = [reference] if references is None else references
        if answers is None or references is None:
            # {4} and 4, or x = 4, 4 (a double root): only a set of one says the same as what is in it
            return len(left) == len(right) == 1 and self.same(left[0], right[0])
        as_sets = "set" in (answer.kind, reference.kind) or "pm" in kinds(answer) | kinds(reference)
        return self._match(left, right, self.same, as_sets)

    def _match(self, left: list[Node], right: list[Node], same: Callable[[Node, Node], bool], as_sets: bool) -> bool:
        if max(len(left), len(right)) > MAX_ITEMS:
            raise TooComplex(f"more than {MAX_ITEMS} items in any order")
        if not as_sets and len(left) != len(right):
            return False
        rest = list(right)
        met: list[Node] = []
        for item in left:
            found = next((place for place, other in enumerate(rest) if same(item, other)), None)
            if found is not None:
                met.append(rest.pop(found))
            elif not (as_sets and any(same(item, other) for other in met)):
                return False
        return not rest or (as_sets and all(any(same(other, item) for item in met) for other in rest))

    def _same_tuple(self, answer: Node, reference: Node) -> bool:
        if answer.kind != "tuple" or reference.kind != "tuple" or len(answer.parts) != len(reference.parts):
            return False
        if len(answer.parts) == 2 and answer.value != reference.value:
            return False
        return all(self.same(a, r) for a, r in zip(answer.parts, reference.parts, strict=True))

    def _same_matrix(self, answer: Node, reference: Node) -> bool:
        left, right = _as_matrix(answer, reference), _as_matrix(reference, answer)
        if left is None or right is None or len(left) != len(right) or len(left[0]) != len(right[0]):
            return False
        return all(self.same(a, r) for p, q in zip(left, right, strict=True) for a, r in zip(p, q, strict=True))

    # Relations

    def _same_relation(self, answer: Node, reference: Node) -> bool:
        if self._may_be_region(answer) and self._may_be_region(reference):
            return self._same_region(answer, reference)
        answer, reference = self._settled(answer), self._settled(reference)
        if answer.kind == "rel" and reference.kind == "rel":
            return self._same_relations(answer, reference)
        if "rel" not in (answer.kind, reference.kind):
            return self.same(answer, reference)
        equation, other = (answer, reference) if answer.kind == "rel" else (reference, answer)
        named = _assignment(equation)
        if named is None:
            return False
        return self.same(named[1], other) if equation is answer else self.same(other, named[1])

    def _settled(self, relation: Node) -> Node:
        """A chain a = b = c without what stands in its middle, once all that stands there is equal."""
        if relation.kind != "rel" or set(str(relation.value).split()) != {"="}:
            return relation
        first, *others = relation.parts
        if len(others) > 1:
            if not all(self._is_equal(part, others[-1]) for part in others[:-1]):
                raise Undefined("sides of an equation that differ")
            relation = Node("rel", (first, others[-1]), "=")
        left, right = relation.parts
        if not symbols(left) and not symbols(right) and {left.kind, right.kind}.isdisjoint(_SHAPES):
            if not self._is_equal(left, right):
                raise Undefined("an equation that is false")
            return right
        return relation

    def _is_equal(self, left: Node, right: Node) -> bool:
        if left.kind == "unit" or right.kind == "unit":
            left, right = (node.parts[0] if node.kind == "unit" else node for node in (left, right))
        return self.value(left, right)

    def _same_relations(self, answer: Node, reference: Node) -> bool:
        if len(answer.parts) != len(reference.parts):
            return False
        if len(answer.parts) > 2:
            left, right = _ascending(answer), _ascending(reference)
            return left.value == right.value and all(
                self.same(a, r) for a, r in zip(left.parts, right.parts, strict=True)
            )
        sign, other = str(answer.value), str(reference.value)
        ours, theirs = _assignment(answer), _assignment(reference)
        if sign == other == "=" and ours and theirs and ours[0] == theirs[0]:
            return self.same(ours[1], theirs[1])
        if sign != other:
            if _TURNED.get(sign) != other:
                return False
            answer = Node("rel", answer.parts[::-1], other)
        if other not in _TURNED or not all(
            {part.kind for part in relation.parts}.isdisjoint(_SHAPES) for relation in (answer, reference)
        ):
            return False
        left, right = (
            Node("add", (_without_unit(a), Node("neg", (_without_unit(b),))))
            for a, b in (answer.parts, reference.parts)
        )
        self.used.add("exact")
        same = self.calculator.same_up_to_factor(left, right, positive=other in _ORDERINGS)
        self.used.add(self.calculator.method)
        return same

    # Regions of the line

    def _may_be_region(self, node: Node) -> bool:
        return _Region.names(node) is not None

    def _same_region(self, answer: Node, reference: Node) -> bool:
        names = _Region.names(answer), _Region.names(reference)
        if None in names or len(set().union(*(name for name in names if name))) > 1:
            return False
        ends = list(dict.fromkeys(end for node in (answer, reference) for end in _Region.ends(node)))
        self.used.add("exact")
        region = _Region(dict(zip(ends, self.calculator.ranks(ends), strict=True)))
        self.used.add(self.calculator.method)
        return region.cells(answer) == region.cells(reference)

    # Values

    def _same_quantity(self, answer: Node, reference: Node) -> bool:
        if not {answer.kind, reference.kind}.isdisjoint(_SHAPES):
            return False
        if _infinite(answer) is not None or _infinite(reference) is not None:
            return _infinite(answer) == _infinite(reference)
        readings = list(_readings(answer, reference))
        if not any(self.value(left, right) for left, right in readings):
            return False
        if _is_plain_number(reference) and not _is_evaluated(answer, reference):
            self.unevaluated = True
            return False
        return True

    def value(self, left: Node, right: Node) -> bool:
        if left == right:
            return True
        if any(part.kind in _SHAPES for node in (left, right) for part in walk(node)):
            return False
        self.used.add("exact")
        same = self.calculator.same_value(left, right)
        self.used.add(self.calculator.method)
        return same


class _Region:
    """Parts of the line as cells: of n ends in ascending order, end k is cell 2k + 1, and the gap before it cell 2k."""

    def __init__(self, ranks: dict[Node, int]) -> None:
        self.ranks = ranks
        self.last = 2 * (max(ranks.values(), default=-1) + 1)

    @staticmethod
    def names(node: Node) -> set[str] | None:
        """The unknowns for which the node says where they lie, none for an interval; None if it says no such thing."""
        if node.kind in ("list", *_REGIONS):
            found = [_Region.names(part) for part in node.parts]
            # A list is one of inequalities: "1, 2" and "(1, 2), (3, 4)" are no regions.
            if node.kind == "list" and not all(part.kind == "rel" for part in node.parts):
                return None
            return None if None in found else set().union(*(names for names in found if names))
        if node.kind == "set":
            return set() if all(_is_constant(part) for part in node.parts) else None
        if node.kind == "tuple":
            return set() if len(node.parts) == 2 and all(_is_end(part) for part in node.parts) else None
        if node.kind == "rel":
            signs = str(node.value).split()
            unknown = [part for part in node.parts if part.kind == "sym"]
            if len(unknown) != 1 or not _bounds(signs, node.parts.index(unknown[0])):
                return None
            if all(_is_end(part) for part in node.parts if part is not unknown[0]):
                return {str(unknown[0].value)}
        return None

    @staticmethod
    def ends(node: Node) -> Iterable[Node]:
        """The finite ends in a region."""
        if node.kind in ("list", "set", "tuple", *_REGIONS) or (node.kind == "rel"):
            for part in node.parts:
                yield from _Region.ends(part)
        elif _infinite(node) is None and node.kind != "sym":
            yield _without_unit(node)

    def cells(self, node: Node) -> frozenset[int]:
        parts = node.parts
        if node.kind in ("union", "list"):
            return frozenset().union(*(self.cells(part) for part in parts))
        if node.kind == "intersection":
            return frozenset.intersection(*(self.cells(part) for part in parts))
        if node.kind == "minus":
            return self.cells(parts[0]) - self.cells(parts[1])
        if node.kind == "set":
            return frozenset(self._cell(part) for part in parts)
        if node.kind == "tuple":
            brackets = str(node.value)
            return self._between(parts[0], brackets[0] == "[", parts[1], brackets[1] == "]")
        return self._solutions(node)

    def _solutions(self, relation: Node) -> frozenset[int]:
        signs = str(relation.value).split()
        parts = list(relation.parts)
        if signs == ["≠"]:
            end = parts[1] if parts[0].kind == "sym" else parts[0]
            without = {self._cell(end)} if _infinite(end) is None else set()
            return frozenset(range(self.last + 1)) - without
        if signs[0] in ">≥":
            parts, signs = parts[::-1], [_TURNED[sign] for sign in signs[::-1]]
        low, low_sign = (_MINUS_INFINITY, "<") if parts[0].kind == "sym" else (parts[0], signs[0])
        high, high_sign = (INFINITY, "<") if parts[-1].kind == "sym" else (parts[-1], signs[-1])
        return self._between(low, low_sign == "≤", high, high_sign == "≤")

    def _between(self, low: Node, with_low: bool, high: Node, with_high: bool) -> frozenset[int]:
        if _infinite(low) == 1 or _infinite(high) == -1:
            return frozenset()
        first = self._cell(low) + (not with_low and _infinite(low) is None)
        last = self._cell(high) - (not with_high and _infinite(high) is None)
        return frozenset(range(first, last + 1))

    def _cell(self, end: Node) -> int:
        sign = _infinite(end)
        if sign is not None:
            return 0 if sign < 0 else self.last
        return 2 * self.ranks[_without_unit(end)] + 1


def _bounds(signs: list[str], place: int) -> bool:
    """Whether these signs bound an unknown that stands at `place`, on one side or both."""
    if len(signs) == 2:
        return place == 1 and (set(signs) <= {"<", "≤"} or set(signs) <= {">", "≥"})
    return len(signs) == 1 and signs[0] in {*_ORDERINGS, "≠"}


class Quick:
    """Exact arithmetic: fractions, and rational functions modulo a prime. What has roots or functions is put off."""

    method: Method = "exact"

    def __init__(self, rtol: float = 0.0) -> None:
        self.rtol = rtol

    def same_value(self, left: Node, right: Node) -> bool:
        try:
            return exactly_same(left, right, self.rtol)
        except Beyond as beyond:
            raise Deferred from beyond

    def same_up_to_factor(self, left: Node, right: Node, *, positive: bool) -> bool:
        try:
            return exactly_proportional(left, right, positive=positive)
        except Beyond as beyond:
            raise Deferred from beyond

    def is_within(self, left: Node, right: Node, distance: Fraction) -> bool:
        try:
            return abs(evaluate(left, Fractions()) - evaluate(right, Fractions())) <= distance
        except Beyond as beyond:
            raise Deferred from beyond

    def ranks(self, values: list[Node]) -> list[int]:
        try:
            numbers = [evaluate(value, Fractions()) for value in values]
        except Beyond as beyond:
            raise Deferred from beyond
        order = sorted(set(numbers))
        return [order.index(number) for number in numbers]


def exactly_same(left: Node, right: Node, rtol: float = 0.0) -> bool:
    """Raises `Beyond` if exact arithmetic does not know."""
    if not symbols(left) and not symbols(right):
        try:
            ours, theirs = evaluate(left, Fractions()), evaluate(right, Fractions())
            return abs(ours - theirs) <= Fraction(rtol) * abs(theirs)
        except TooComplex:
            pass
        except Beyond:
            if rtol:
                raise
    key = fingerprint(left, right)
    return evaluate(left, Residues(key)) == evaluate(right, Residues(key))


def exactly_proportional(left: Node, right: Node, *, positive: bool) -> bool:
    """Raises `Beyond` if exact arithmetic does not know."""
    if not symbols(left) or not symbols(right):
        return False
    points = [Residues(fingerprint(left, right) + bytes([place])) for place in range(3)]
    lefts = [evaluate(left, point) for point in points]
    rights = [evaluate(right, point) for point in points]
    if 0 in lefts or 0 in rights:
        return False
    multiply = points[0].multiply
    pairs = zip(lefts, rights, strict=True)
    if not all(multiply([left, rights[0]]) == multiply([right, lefts[0]]) for left, right in pairs):
        return False
    return not positive or _ratio_is_positive(left, right)


def _ratio_is_positive(left: Node, right: Node) -> bool:
    """Whether two proportional expressions have the same sign, seen at points where neither is zero."""
    names = sorted(symbols(left) | symbols(right))
    for place in range(1, 8):
        at = {name: Fraction(7 * place + 3 * index, 5 + place) for index, name in enumerate(names)}
        try:
            ratio = evaluate(left, Fractions(at)) * evaluate(right, Fractions(at))
        except Undefined:
            continue
        if ratio:
            return ratio > 0
    raise Beyond("a sign")


def fingerprint(left: Node, right: Node) -> bytes:
    """Bytes that follow from what is compared, for points that whoever wrote it could not foresee."""
    return blake2b(repr((left, right)).encode("utf-8", "surrogatepass"), digest_size=16).digest()


# Readings of nodes


def _items(node: Node) -> list[Node] | None:
    """What a list or set holds, signs ± written out; None for what is neither."""
    if node.kind in _COLLECTIONS:
        return [choice for part in node.parts for choice in _choices(part)]
    choices = _choices(node)
    return choices if len(choices) > 1 else None


def _without_domain(node: Node) -> Node:
    """What is left of 2k, k ∈ Z without the numbers that k may be."""
    parts = tuple(part for part in node.parts if node.kind != "list" or not _is_domain(part, node))
    if len(parts) == len(node.parts):
        return node
    return parts[0] if len(parts) == 1 else Node("list", parts)


def _is_domain(part: Node, node: Node) -> bool:
    """Whether this part of a list only says which numbers an unknown of its other parts may be: k in 2k, k ∈ Z."""
    of = _member_of(part)
    if node.kind != "list" or of is None or not str(of[1].value).startswith("bb"):
        return False
    return any(of[0].value in symbols(other) for other in node.parts if other is not part)


def _choices(node: Node) -> list[Node]:
    """The expressions that one with signs ± stands for: all signs together if there is a ∓, else each by itself."""
    signs = [part for part in walk(node) if part.kind == "pm"]
    if not signs:
        return [node]
    together = any(sign.value == "-" for sign in signs)
    patterns = [(True,), (False,)] if together else list(product((True, False), repeat=len(signs)))
    return [_with_signs(node, iter(pattern * (len(signs) if together else 1))) for pattern in patterns]


def _with_signs(node: Node, choices: Iterable[bool]) -> Node:
    if node.kind != "pm":
        return Node(node.kind, tuple(_with_signs(part, choices) for part in node.parts), node.value)
    upper = next(iter(choices))
    left, right = (_with_signs(part, choices) for part in node.parts)
    signed = right if upper == (node.value == "+") else Node("neg", (right,))
    return signed if left == ZERO else Node("add", (left, signed))


def _is_ordered(node: Node) -> bool:
    return node.kind == "tuple" and node.value == "()"


def _words(node: Node) -> str | None:
    """Words, or the single letter that stands for a choice."""
    if node.kind == "text":
        return str(node.value)
    return str(node.value).casefold() if node.kind in ("sym", "const") and len(str(node.value)) == 1 else None


def _as_matrix(node: Node, other: Node) -> list[tuple[Node, ...]] | None:
    """The rows of a matrix; a tuple is a row or a column, as the other is."""
    if node.kind == "matrix":
        return [row.parts for row in node.parts]
    if node.kind == "tuple" and other.kind == "matrix" and node.value in ("()", "[]"):
        return [node.parts] if len(other.parts) == 1 else [(part,) for part in node.parts]
    return None


def _is_name(node: Node) -> bool:
    """What may stand before an equals sign to say what is given: x, f(2), AB, a + b, the area."""
    if node.kind in ("sym", "text"):
        return True
    if node.kind == "tuple":
        return all(part.kind == "sym" for part in node.parts)
    if node.kind == "apply":
        # f(2) = 5, but 5x = 10 is also written x(5) = 10.
        return node.parts[0].value not in ("x", "y", "z")
    if node.kind == "func" and node.value in ("abs", "min", "max", "gcd", "lcm"):
        return bool(symbols(node)) or node.value != "abs"
    return node.kind in ("add", "mul", "neg", "div") and all(_is_name(part) for part in node.parts)


def _assignment(relation: Node) -> tuple[Node, Node] | None:
    """The name and the value of an equation that gives one, in this order."""
    if relation.kind != "rel" or relation.value != "=":
        return None
    for name, value in (relation.parts, relation.parts[::-1]):
        if _is_name(name) and symbols(name).isdisjoint(symbols(value)) and value.kind != "text":
            return name, value
        if name.kind == "apply" and _is_name(name) and name.parts[1].kind == "sym" and value.kind != "text":
            # f(x) = x + 1: the unknown stands on both sides
            return name, value
    return None


def _assigned(node: Node) -> Node:
    named = _assignment(node)
    return named[1] if named else node


def _member_of(node: Node) -> tuple[Node, Node] | None:
    if node.kind != "rel" or node.value != "∈" or node.parts[0].kind != "sym":
        return None
    return node.parts[0], node.parts[1]


def _ascending(relation: Node) -> Node:
    signs = str(relation.value).split()
    if signs[0] not in ">≥":
        return relation
    return Node("rel", relation.parts[::-1], " ".join(_TURNED.get(sign, sign) for sign in signs[::-1]))


def _infinite(node: Node) -> int | None:
    """1 or -1 for infinity; None for what is finite."""
    if node == INFINITY:
        return 1
    return -1 if node == _MINUS_INFINITY else None


def _is_constant(node: Node) -> bool:
    return kinds(node).isdisjoint({"sym", "pm", *_SHAPES}) and INFINITY not in set(walk(node))


def _is_end(node: Node) -> bool:
    return _infinite(node) is not None or _is_constant(node)


def _without_unit(node: Node) -> Node:
    return node.parts[0] if node.kind == "unit" else node


def _unsigned(node: Node) -> Node:
    node = _without_unit(node)
    while node.kind == "neg":
        node = node.parts[0]
    return node


def _readings(answer: Node, reference: Node) -> Iterable[tuple[Node, Node]]:
    """The pairs of values of which one has to agree, given the units and percent signs on both sides."""
    ours, theirs = (str(node.value) if node.kind == "unit" else None for node in (answer, reference))
    left, right = _without_unit(answer), _without_unit(reference)
    if ours and theirs:
        if ours == theirs or _same_noun(ours, theirs):
            yield left, right
            return
        a, b = measure(ours), measure(theirs)
        if a.quantity == b.quantity:
            yield Node("mul", (left, number(a.factor))), Node("mul", (right, number(b.factor)))
        return
    if left.kind == "percent" or right.kind == "percent":
        if ours or theirs:
            return
        yield left, right
        if left.kind != "percent":
            # "50" where 50% is asked for
            yield left, right.parts[0]
        elif right.kind != "percent" and _exceeds_one(right):
            yield left.parts[0], right
        return
    yield left, right
    if "degree" in (ours, theirs):
        # 30° and pi/6 are one angle.
        yield answer, reference


def _same_noun(ours: str, theirs: str) -> bool:
    """ "red marble" and "marble": things that are counted, one of them described more closely."""
    short, long = sorted((ours.split(), theirs.split()), key=len)
    return long[-len(short) :] == short and measure(short[-1]).quantity == short[-1]


def _exceeds_one(node: Node) -> bool:
    try:
        value: Fraction = evaluate(node, Fractions())
        return abs(value) > 1
    except (Beyond, NotAValue, Undefined):
        return False


def _is_integer(node: Node) -> bool:
    while node.kind == "neg":
        node = node.parts[0]
    return node.kind == "num" and isinstance(node.value, Fraction) and node.value.denominator == 1


def _is_plain_number(node: Node) -> bool:
    """A number with nothing left to calculate."""
    node = _unsigned(node.parts[0] if _without_unit(node).kind == "percent" else node)
    return node.kind in ("num", "mixed") or (node.kind == "div" and all(_is_integer(part) for part in node.parts))


def _is_evaluated(node: Node, reference: Node) -> bool:
    """Whether a number is given, and not a calculation that leads to one.

    Powers, factorials and binomial coefficients of whole numbers, and products with them, are a way to write large
    numbers; so is a fraction where the reference is no whole number.
    """
    node = _unsigned(node)
    if node.kind in ("num", "mixed", "base"):
        return True
    if node.kind == "percent":
        return _is_evaluated(node.parts[0], HALF)
    if reference.kind == "unit" and reference.value == "degree" and Node("const", (), "pi") in walk(node):
        # an angle in radians
        return True
    if node.kind in ("div", "ratio"):
        whole = all(_is_integer(part) for part in node.parts)
        return len(node.parts) == 2 and whole and not _is_integer(_without_unit(reference))
    return _is_written_large(node)


def _is_written_large(node: Node) -> bool:
    if node.kind in ("pow", "fact", "binom"):
        # 30^1 is written larger than it is.
        return all(_is_integer(part) for part in node.parts) and (node.kind != "pow" or node.parts[1] != ONE)
    if node.kind == "mul":
        large = [_is_written_large(part) for part in node.parts]
        return any(large) and all(
            part.kind == "num" or is_large for part, is_large in zip(node.parts, large, strict=True)
        )
    return False
