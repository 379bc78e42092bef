"""What exact arithmetic does not settle: values to many digits at several points, and sympy where those say nothing.

Used in worker processes only, for mpmath and sympy may take long and much memory.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import asdict
from fractions import Fraction
from functools import lru_cache
from typing import Any

import mpmath
import sympy

from .compare import compare, exactly_proportional, exactly_same, fingerprint
from .nodes import Node, kinds, symbols, walk
from .records import Method, TooComplex, Unparsable
from .values import MAX_BITS, Beyond, Fractions, Undefined, binomial_of, evaluate, factorial_of, whole

MAX_MAGNITUDE = 100_000
"""The largest binary exponent of a value: beyond it stands what nobody calculates with."""
MAX_ARGUMENT = 4_000
"""The largest binary exponent of what a periodic function is taken of: as many bits of pi are needed."""
MAX_ARGUMENT_OF_EXP = 18
DIGITS = (60, 240, 960)
"""How many digits are calculated with, at first and where that leaves doubt; more for long and for small numbers."""
MAX_DIGITS_OF_GAMMA = 1_100
MAX_EXTRA_DIGITS = 2_000
ENOUGH_POINTS = 3
POINTS = 24
_IN_PARTS = frozenset(("abs", "floor", "ceil", "max", "min", "gcd", "lcm"))
_GROWING = frozenset(("exp", "sinh", "cosh", "tanh"))
_LOGARITHMS = frozenset(("ln", "log10"))
_MPMATH = {
    "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc", "sinh": "sinh", "cosh": "cosh",
    "tanh": "tanh", "exp": "exp", "ln": "log", "log10": "log10", "arcsin": "asin", "arccos": "acos", "arctan": "atan",
    "arccot": "acot", "arcsec": "asec", "arccsc": "acsc", "asinh": "asinh", "acosh": "acosh", "atanh": "atanh",
}  # fmt: skip


class Numbers:
    """Numbers of many digits: real ones, or complex ones if `is_complex`; `at` gives the unknowns their values."""

    def __init__(self, digits: int, at: dict[str, Fraction], *, is_complex: bool) -> None:
        self.context: Any = _context(digits)
        self.at, self.is_complex = at, is_complex

    def number(self, value: Fraction) -> Any:
        return self._checked(self.context.mpf(value.numerator) / value.denominator)

    def symbol(self, name: str) -> Any:
        return self.number(self.at[name])

    def constant(self, name: str) -> Any:
        if name == "i":
            if not self.is_complex:
                raise Undefined("no real number")
            return self.context.mpc(0, 1)
        return +getattr(self.context, name)

    def add(self, terms: list[Any]) -> Any:
        return self._checked(sum(terms[1:], terms[0]))

    def multiply(self, factors: list[Any]) -> Any:
        product = factors[0]
        for factor in factors[1:]:
            product = self._checked(product * factor)
        return product

    def divide(self, top: Any, bottom: Any) -> Any:
        if bottom == 0:
            raise Undefined("a division by zero")
        return self._checked(top / bottom)

    def power(self, base: Any, exponent: Node) -> Any:
        times = evaluate(exponent, self)
        if base == 0:
            if isinstance(times, self.context.mpc) or times <= 0:
                raise Undefined("zero to a power that is not positive")
            return self.context.mpf(0)
        if not self.is_complex and base < 0 and not self.context.isint(times):
            return self._root_of_negative(base, exponent)
        # The size of the result is known before it is calculated.
        if abs(times) * (abs(self.context.log(abs(base))) + 4) > MAX_MAGNITUDE:
            raise TooComplex("a power of too many digits")
        return self._checked(self.context.power(base, times))

    def root(self, radicand: Any, degree: int) -> Any:
        if not self.is_complex and radicand < 0:
            if -radicand < self._noise():
                # What is zero, but for the digits that were cut off.
                return self.context.mpf(0)
            if degree % 2 == 0:
                raise Undefined("an even root of a negative number")
            return -self.context.root(-radicand, degree)
        return self._checked(self.context.root(radicand, degree))

    def function(self, name: str, arguments: list[Any]) -> Any:
        value = arguments[0]
        if name == "abs":
            return abs(value)
        if name in ("floor", "ceil"):
            return self._whole_beside(value, name)
        if name in ("max", "min"):
            if any(isinstance(argument, self.context.mpc) for argument in arguments):
                raise Undefined(f"{name} of complex numbers")
            return (max if name == "max" else min)(arguments)
        if name in ("gcd", "lcm"):
            if not all(self.context.isint(argument) for argument in arguments):
                raise Undefined(f"{name} of what is no whole number")
            exact = [Fraction(int(argument)) for argument in arguments]
            return self.number(Fractions().function(name, exact))
        limit = MAX_ARGUMENT_OF_EXP if name in _GROWING else MAX_ARGUMENT
        if name not in _LOGARITHMS and value and self.context.mag(value) > limit:
            raise TooComplex(f"{name} of a number of too many digits")
        if name in _LOGARITHMS and value == 0:
            raise Undefined("the logarithm of zero")
        try:
            return self._checked(getattr(self.context, _MPMATH[name])(value))
        except (ZeroDivisionError, ValueError) as error:
            raise Undefined(f"{name} has no value there") from error

    def factorial(self, argument: Node) -> Any:
        value = evaluate(argument, self)
        if isinstance(value, self.context.mpc) or abs(value) > 1_000 or (self.context.isint(value) and value < 0):
            raise Undefined("the factorial of a negative, complex or large number")
        self._check_gamma(value)
        return self._checked(self.context.gamma(value + 1))

    def binomial(self, top: Node, bottom: Node) -> Any:
        upper, lower = evaluate(top, self), evaluate(bottom, self)
        if any(isinstance(value, self.context.mpc) or abs(value) > 100_000 for value in (upper, lower)):
            raise Undefined("the binomial coefficient of complex or large numbers")
        if not (self.context.isint(upper) and self.context.isint(lower)) and max(abs(upper), abs(lower)) > 1_000:
            raise Undefined("the binomial coefficient of a large number that is not whole")
        self._check_gamma(upper, lower)
        return self._checked(self.context.binomial(upper, lower))

    def _check_gamma(self, *values: Any) -> None:
        """Its values at what is no whole number take long, if there are to be many digits."""
        if all(self.context.isint(value) for value in values):
            return
        if self.context.dps > MAX_DIGITS_OF_GAMMA or any(abs(value) > 1_000 for value in values):
            raise TooComplex("a factorial that takes long")

    def power_of_ten(self, exponent: int) -> Any:
        return self.context.mpf(10) ** exponent

    def _checked(self, value: Any) -> Any:
        context = self.context
        if isinstance(value, context.mpc):
            if not self.is_complex:
                if value.imag:
                    raise Undefined("no real number")
                value = value.real
        else:
            value = context.mpf(value)
        for part in (value.real, value.imag):
            if not context.isfinite(part):
                raise Undefined("no finite number")
            if part and abs(context.mag(part)) > MAX_MAGNITUDE:
                raise TooComplex("a value of too many digits")
        return value

    def _root_of_negative(self, base: Any, exponent: Node) -> Any:
        """A negative number to a fraction, which is real if the denominator is odd."""
        try:
            fraction = evaluate(exponent, Fractions(self.at))
        except Beyond as beyond:
            raise Undefined("a power of a negative number") from beyond
        if fraction.denominator % 2 == 0 or fraction.denominator > 1_000:
            raise Undefined("an even root of a negative number")
        size = self.power(-base, Node("num", (), fraction))
        return -size if fraction.numerator % 2 else size

    def _whole_beside(self, value: Any, name: str) -> Any:
        if isinstance(value, self.context.mpc):
            raise Undefined("the whole part of a complex number")
        nearest = self.context.nint(value)
        if abs(value - nearest) < self._noise() * max(1, abs(value)):
            return nearest
        return (self.context.floor if name == "floor" else self.context.ceil)(value)

    def _noise(self) -> Any:
        return self.context.ldexp(1, -self.context.prec * 2 // 3)


class Deep:
    """A calculator that settles what it is asked, however long that takes.

    Args:
        rtol: how far numbers may be from the reference, relative to it.
    """

    def __init__(self, rtol: float = 0.0) -> None:
        self.method: Method = "exact"
        self.rtol = rtol

    def same_value(self, left: Node, right: Node) -> bool:
        self.method = "exact"
        try:
            return exactly_same(left, right, self.rtol)
        except Beyond:
            pass
        agree = self._numerically(left, right)
        if agree is None and not symbols(left) and not symbols(right):
            raise Undefined("a calculation without a value")
        return self._symbolically(left, right) if agree is None else agree

    def same_up_to_factor(self, left: Node, right: Node, *, positive: bool) -> bool:
        self.method = "exact"
        try:
            return exactly_proportional(left, right, positive=positive)
        except Beyond:
            pass
        if not symbols(left) or not symbols(right):
            return False
        digits = _digits(left, right)[1]
        ratios = []
        for at in _real_points(left, right):
            try:
                field = Numbers(digits, at, is_complex=False)
                top, bottom = evaluate(left, field), evaluate(right, field)
            except Unparsable:
                continue
            if abs(top) > _tolerance(field, top) and abs(bottom) > _tolerance(field, bottom):
                ratios.append(top / bottom)
        self.method = "numeric"
        if len(ratios) < ENOUGH_POINTS or (positive and min(ratios) <= 0):
            return False
        return bool(max(ratios) - min(ratios) <= _tolerance(field, ratios[0]))

    def is_within(self, left: Node, right: Node, distance: Fraction) -> bool:
        self.method = "numeric"
        field = Numbers(_digits(left, right)[1], {}, is_complex=False)
        return bool(abs(evaluate(left, field) - evaluate(right, field)) <= field.number(distance))

    def ranks(self, values: list[Node]) -> list[int]:
        if not values:
            return []
        field = Numbers(_digits(*values)[1], {}, is_complex=False)
        found = [evaluate(value, field) for value in values]
        self.method = "numeric"
        steps: list[Any] = []
        for value in sorted(found):
            if not steps or value - steps[-1] > _tolerance(field, value):
                steps.append(value)
        return [min(range(len(steps)), key=lambda place: abs(steps[place] - value)) for value in found]

    def _numerically(self, left: Node, right: Node) -> bool | None:
        """Whether both agree at several points; None if they have values at too few.

        Raises:
            TooComplex: there are too few because values have too many digits.
        """
        self.method = "numeric"
        refused = 0
        names = symbols(left) | symbols(right)
        enough = ENOUGH_POINTS if names else 1
        plenty = POINTS if _has_parts(left) or _has_parts(right) else 2 * ENOUGH_POINTS
        kinds_of_points = [(_real_points, False), (_whole_points, False), (_real_points, True)]
        for points, is_complex in kinds_of_points if names else [kinds_of_points[0], kinds_of_points[2]]:
            agreed = 0
            for at in points(left, right):
                try:
                    outcome = self._agree(left, right, at, is_complex)
                except TooComplex:
                    # sympy would not get through this either.
                    refused += 1
                    if refused >= ENOUGH_POINTS and not agreed:
                        raise
                    outcome = None
                if outcome is False:
                    return False
                agreed += outcome is True
                if agreed >= (plenty if names else enough):
                    return True
            if agreed >= enough:
                return True
        if refused:
            raise TooComplex("values of too many digits")
        return None

    def _agree(self, left: Node, right: Node, at: dict[str, Fraction], is_complex: bool) -> bool | None:
        """Whether both have one value at a point; None if one of them has none."""
        cancels = not kinds(left).union(kinds(right)).isdisjoint({"add", "func"})
        try:
            for digits in _digits(left, right):
                field = Numbers(digits, at, is_complex=is_complex)
                ours, theirs = evaluate(left, field), evaluate(right, field)
                difference = abs(ours - theirs)
                if self.rtol and not at:
                    return bool(difference <= self.rtol * abs(theirs))
                # Values without sums and functions are right to their last digit, be they ever so small.
                scale = max(abs(ours), abs(theirs), 1 if cancels else 0)
                if difference > scale * field.power_of_ten(-digits // 3):
                    return False
                if digits >= DIGITS[1] and difference <= scale * field.power_of_ten(-digits * 5 // 6):
                    break
        except Undefined:
            return None
        # What still differs in the last digits, though by less the more there are, differs by what was cut off.
        return True

    def _symbolically(self, left: Node, right: Node) -> bool:
        self.method = "symbolic"
        field = _Expressions()
        difference = evaluate(left, field) - evaluate(right, field)
        return sympy.simplify(difference) == 0


@lru_cache(maxsize=8)
def _context(digits: int) -> Any:
    context = mpmath.MPContext()
    context.dps = digits
    return context


def _tolerance(field: Numbers, value: Any) -> Any:
    return max(abs(value), 1) * field.power_of_ten(-field.context.dps // 3)


def _digits(*nodes: Node) -> tuple[int, ...]:
    """How many digits to calculate with: so many that neither a long number nor a small one is lost."""
    bits = [_bits(part) for node in nodes for part in walk(node)]
    extra = min(max(bits, default=0), MAX_EXTRA_DIGITS)
    return tuple(digits + extra for digits in DIGITS)


def _bits(node: Node) -> int:
    if node.kind == "pow":
        base, exponent = node.parts
        times = exponent.parts[0] if exponent.kind == "neg" else exponent
        if times.kind == "num" and isinstance(times.value, Fraction):
            return max(_bits(base), 2) * min(math.ceil(abs(times.value)), MAX_EXTRA_DIGITS)
    if isinstance(node.value, Fraction):
        return max(node.value.numerator.bit_length(), node.value.denominator.bit_length())
    return 0


def _has_parts(node: Node) -> bool:
    """Whether an expression may say one thing here and another there, as |x| does: then more points are looked at."""
    return any(
        part.kind == "root"
        or (part.kind == "func" and part.value in _IN_PARTS)
        or (part.kind == "pow" and not kinds(part.parts[1]).isdisjoint({"div", "mixed"}))
        for part in walk(node)
    )


def _real_points(left: Node, right: Node) -> Iterator[dict[str, Fraction]]:
    """Of either sign, within (-1, 1), where inverse functions have values, beyond it, and beyond all constants."""
    names = sorted(symbols(left) | symbols(right))
    rng = random.Random(fingerprint(left, right))
    constants = [abs(part.value) for node in (left, right) for part in walk(node) if isinstance(part.value, Fraction)]
    widths = (1, 4, 3 * min(max(constants, default=Fraction(0)), Fraction(1_000)) + 3)
    for place in range(POINTS if names else 1):
        # All positive at first, then of both signs in turn.
        first = place < len(widths)
        signs = [1 if first or (place + index) % 2 else rng.choice((-1, 1)) for index in range(len(names))]
        width = widths[place % len(widths)]
        yield {
            name: sign * width * Fraction(rng.randint(1, 10**6), 10**6 + 3)
            for name, sign in zip(names, signs, strict=True)
        }


def _whole_points(left: Node, right: Node) -> Iterator[dict[str, Fraction]]:
    names = sorted(symbols(left) | symbols(right))
    rng = random.Random(fingerprint(left, right))
    for place in range(POINTS):
        yield {name: Fraction(rng.randint(1, 3 + place)) for name in names}


class _Expressions:
    """sympy's expressions, built node by node from what the grammar allows."""

    def number(self, value: Fraction) -> Any:
        return sympy.Rational(value.numerator, value.denominator)

    def symbol(self, name: str) -> Any:
        return sympy.Symbol(name, real=True)

    def constant(self, name: str) -> Any:
        return {"pi": sympy.pi, "e": sympy.E, "i": sympy.I}[name]

    def add(self, terms: list[Any]) -> Any:
        return sympy.Add(*terms)

    def multiply(self, factors: list[Any]) -> Any:
        return sympy.Mul(*factors)

    def divide(self, top: Any, bottom: Any) -> Any:
        if bottom == 0:
            raise Undefined("a division by zero")
        return top / bottom

    def power(self, base: Any, exponent: Node) -> Any:
        times = whole(exponent)
        if times is not None and base.is_number and abs(times) > MAX_BITS:
            raise TooComplex("a power of too many digits")
        power = evaluate(exponent, self)
        if base == 0 and not power.is_positive:
            raise Undefined("zero to a power that may not be positive")
        return sympy.Pow(base, power)

    def root(self, radicand: Any, degree: int) -> Any:
        return sympy.root(radicand, degree)

    def function(self, name: str, arguments: list[Any]) -> Any:
        if name == "log10":
            return sympy.log(arguments[0]) / sympy.log(10)
        names = {"ln": "log", "abs": "Abs", "ceil": "ceiling", "max": "Max", "min": "Min"}
        inverse = name.replace("arc", "a") if name.startswith("arc") else name
        return getattr(sympy, names.get(name, inverse))(*arguments)

    def factorial(self, argument: Node) -> Any:
        value = factorial_of(argument)
        return sympy.factorial(evaluate(argument, self)) if value is None else sympy.Integer(value)

    def binomial(self, top: Node, bottom: Node) -> Any:
        value = binomial_of(top, bottom)
        if value is None:
            return sympy.binomial(evaluate(top, self), evaluate(bottom, self))
        return sympy.Integer(value)


def work(job: dict[str, Any]) -> dict[str, Any]:
    """A worker's job: an answer and its reference, compared."""
    return asdict(compare(job["answer"], job["reference"], Deep(job["rtol"])))
