"""What a node is worth: one walk over the tree, in whatever numbers a field calculates with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from hashlib import blake2b
from typing import Protocol, TypeVar

from .nodes import Node
from .records import TooComplex, Unparsable

T = TypeVar("T")

MAX_FACTORIAL = 1_000
MAX_BITS = 8_192
"""The size of the whole numbers that are calculated with exactly."""


class NotAValue(Unparsable):
    """A part that is no number stands where one was expected."""


class Undefined(Unparsable):
    """A division by zero, or a function where it has no value."""


class Beyond(Exception):
    """The field has no such numbers: a root among fractions."""


class Field(Protocol[T]):
    """Numbers to calculate with. Methods raise `Beyond` if a result is none of them, `Undefined` if there is none."""

    def number(self, value: Fraction) -> T: ...
    def symbol(self, name: str) -> T: ...
    def constant(self, name: str) -> T: ...
    def add(self, terms: list[T]) -> T: ...
    def multiply(self, factors: list[T]) -> T: ...
    def divide(self, top: T, bottom: T) -> T: ...
    def power(self, base: T, exponent: Node) -> T: ...
    def root(self, radicand: T, degree: int) -> T: ...
    def function(self, name: str, arguments: list[T]) -> T: ...
    def factorial(self, argument: Node) -> T: ...
    def binomial(self, top: Node, bottom: Node) -> T: ...


def evaluate(node: Node, field: Field[T]) -> T:
    """The value of `node`.

    Raises:
        NotAValue, Undefined, TooComplex, Beyond: there is none in this field, for the reason that the class says.
    """
    kind, parts, value = node
    if kind == "num" or kind == "mixed":
        return field.number(Fraction(value))
    if kind == "sym":
        return field.symbol(str(value))
    if kind == "const":
        if value == "inf":
            raise Undefined("a calculation with infinity")
        return field.constant(str(value))
    if kind == "add":
        return field.add([evaluate(part, field) for part in parts])
    if kind == "neg":
        return field.multiply([field.number(Fraction(-1)), evaluate(parts[0], field)])
    if kind == "mul" or kind == "apply":
        return field.multiply([evaluate(part, field) for part in parts])
    if kind == "div" or (kind == "ratio" and len(parts) == 2):
        return field.divide(evaluate(parts[0], field), evaluate(parts[1], field))
    if kind == "pow":
        return field.power(evaluate(parts[0], field), parts[1])
    if kind == "root":
        return field.root(evaluate(parts[0], field), int(value))
    if kind == "func":
        return field.function(str(value), [evaluate(part, field) for part in parts])
    if kind == "fact":
        return field.factorial(parts[0])
    if kind == "binom":
        return field.binomial(parts[0], parts[1])
    if kind == "percent":
        return field.multiply([field.number(Fraction(1, 100)), evaluate(parts[0], field)])
    if kind == "base":
        return field.number(Fraction(in_base(node)))
    if kind == "unit" and value == "degree":
        return field.multiply([evaluate(parts[0], field), field.constant("pi"), field.number(Fraction(1, 180))])
    raise NotAValue(f"{kind} where a number was expected")


def in_base(node: Node) -> int:
    """What the digits of a number with a base as its subscript are worth."""
    base = Fraction(node.parts[0].value)
    if not 2 <= base <= 36 or len(str(node.value)) > MAX_FACTORIAL:
        raise Undefined(f"a base is from 2 to 36, not {base}")
    try:
        return int(str(node.value), int(base))
    except ValueError as error:
        raise Undefined(f"{node.value!r:.40} is no number to base {base}") from error


def whole(node: Node) -> int | None:
    """The integer that `node` is worth; None if it is worth something else.

    Raises:
        NotAValue, Undefined, TooComplex: see `evaluate`.
    """
    try:
        value = evaluate(node, Fractions())
    except Beyond:
        return None
    return value.numerator if value.denominator == 1 else None


def factorial_of(node: Node) -> int | None:
    """n! for a whole n; None if `node` is no number that is known.

    Raises:
        TooComplex, Undefined: n is too large, or negative.
    """
    number = whole(node)
    if number is None:
        return None
    if number < 0:
        raise Undefined("the factorial of a negative number")
    if number > MAX_FACTORIAL:
        raise TooComplex(f"the factorial of {number}; at most that of {MAX_FACTORIAL} is taken")
    return math.factorial(number)


def binomial_of(top: Node, bottom: Node) -> int | None:
    """The binomial coefficient of whole numbers; None if they are not known. Raises as `factorial_of`."""
    upper, lower = whole(top), whole(bottom)
    if upper is None or lower is None:
        return None
    if not 0 <= upper <= 100 * MAX_FACTORIAL or not abs(min(lower, upper - lower)) <= MAX_FACTORIAL:
        raise TooComplex(f"the binomial coefficient of {upper} and {lower}")
    return math.comb(upper, lower) if 0 <= lower <= upper else 0


class Fractions:
    """Rational numbers, exactly; `at` gives the unknowns their values."""

    def __init__(self, at: Mapping[str, Fraction] | None = None) -> None:
        self.at = at or {}

    def number(self, value: Fraction) -> Fraction:
        return _bounded(value)

    def symbol(self, name: str) -> Fraction:
        if name not in self.at:
            raise Beyond(name)
        return self.at[name]

    def constant(self, name: str) -> Fraction:
        raise Beyond(name)

    def add(self, terms: list[Fraction]) -> Fraction:
        total = Fraction(0)
        for term in terms:
            total = _bounded(total + term)
        return total

    def multiply(self, factors: list[Fraction]) -> Fraction:
        product = Fraction(1)
        for factor in factors:
            product = _bounded(product * factor)
        return product

    def divide(self, top: Fraction, bottom: Fraction) -> Fraction:
        if bottom == 0:
            raise Undefined("a division by zero")
        return _bounded(top / bottom)

    def power(self, base: Fraction, exponent: Node) -> Fraction:
        times = whole(exponent) if not self.at else _whole_at(exponent, self)
        if times is None:
            raise Beyond("a power whose exponent is no whole number")
        if base == 0 and times <= 0:
            raise Undefined("zero to a power that is not positive")
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if size > 1 and abs(times) * (size - 1) > MAX_BITS:
            raise TooComplex("a power of too many digits")
        # What is left are bases of at most one bit: 0, 1 and -1, to any power.
        return base**times if size > 1 else (base if times % 2 or base >= 0 else -base)

    def root(self, radicand: Fraction, degree: int) -> Fraction:
        raise Beyond("a root")

    def function(self, name: str, arguments: list[Fraction]) -> Fraction:
        if name == "abs":
            return abs(arguments[0])
        if name in ("floor", "ceil"):
            return Fraction(math.floor(arguments[0]) if name == "floor" else math.ceil(arguments[0]))
        if name in ("max", "min"):
            return (max if name == "max" else min)(arguments)
        if name in ("gcd", "lcm") and all(argument.denominator == 1 for argument in arguments):
            whole_numbers = [argument.numerator for argument in arguments]
            return _bounded(Fraction((math.gcd if name == "gcd" else math.lcm)(*whole_numbers)))
        raise Beyond(name)

    def factorial(self, argument: Node) -> Fraction:
        value = factorial_of(argument)
        if value is None:
            raise Beyond("the factorial of an unknown")
        return _bounded(Fraction(value))

    def binomial(self, top: Node, bottom: Node) -> Fraction:
        value = binomial_of(top, bottom)
        if value is None:
            raise Beyond("the binomial coefficient of an unknown")
        return _bounded(Fraction(value))


def _whole_at(exponent: Node, field: Fractions) -> int | None:
    value = evaluate(exponent, field)
    return value.numerator if value.denominator == 1 else None


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() > 2 * MAX_BITS or value.denominator.bit_length() > 2 * MAX_BITS:
        raise TooComplex("a number of too many digits")
    return value


PRIME = 2**255 - 19
"""A prime for which minus one has a square root."""
_I = pow(2, (PRIME - 1) // 4, PRIME)
MAX_EXPONENT_BITS = 512


class Residues:
    """Rational functions with i, modulo a large prime, at a point that `key` determines.

    Two rational functions that differ have the same residue with a probability of about 2^-250, unless who wrote them
    knew the point; so it is drawn from what is compared. Every step costs the same, whatever the numbers are: this is
    how 9^{387420489} is compared in microseconds. pi and e count as unknowns, for no rational function of one is zero.
    """

    def __init__(self, key: bytes) -> None:
        self.key = key

    def number(self, value: Fraction) -> int:
        if value.denominator == 1:
            return value.numerator % PRIME
        return value.numerator * pow(value.denominator, -1, PRIME) % PRIME

    def symbol(self, name: str) -> int:
        return (
            int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), key=self.key, digest_size=32).digest())
            % PRIME
        )

    def constant(self, name: str) -> int:
        return _I if name == "i" else self.symbol(f"the constant {name}")

    def add(self, terms: list[int]) -> int:
        return sum(terms) % PRIME

    def multiply(self, factors: list[int]) -> int:
        product = 1
        for factor in factors:
            product = product * factor % PRIME
        return product

    def divide(self, top: int, bottom: int) -> int:
        if bottom == 0:
            raise Undefined("a division by zero")
        return top * pow(bottom, -1, PRIME) % PRIME

    def power(self, base: int, exponent: Node) -> int:
        times = whole(exponent)
        if times is None:
            raise Beyond("a power whose exponent is no whole number")
        if times.bit_length() > MAX_EXPONENT_BITS:
            raise TooComplex("an exponent of too many digits")
        if base == 0 and times <= 0:
            raise Undefined("zero to a power that is not positive")
        return pow(base, times, PRIME)

    def root(self, radicand: int, degree: int) -> int:
        raise Beyond("a root")

    def function(self, name: str, arguments: list[int]) -> int:
        raise Beyond(name)

    def factorial(self, argument: Node) -> int:
        value = factorial_of(argument)
        if value is None:
            raise Beyond("the factorial of an unknown")
        return value % PRIME

    def binomial(self, top: Node, bottom: Node) -> int:
        value = binomial_of(top, bottom)
        if value is None:
            raise Beyond("the binomial coefficient of an unknown")
        return value % PRIME
