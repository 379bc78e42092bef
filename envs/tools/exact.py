"""Exact arithmetic on expressions that a model wrote: a small grammar of its own, read character by character.

Nothing is handed to Python's own parser or evaluated by it. Numbers are fractions without rounding; their size, the
expression's length and its depth are bounded before anything is computed, so every expression takes milliseconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 500
MAX_DEPTH = 40
MAX_BITS = 4096
MAX_FACTORIAL = 300
_TOKEN = re.compile(r"\s*(?:([0-9]+(?:\.[0-9]*)?|\.[0-9]+)|([A-Za-z_]+)|(\*\*|//|[-+*/%^(),]))", re.ASCII)
_SPELLINGS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "\u00a0": " ", "\u202f": " "})


class ExpressionError(ValueError):
    """The expression cannot be read or has no exact value within the bounds; the message says why."""


def evaluate(expression: str) -> Fraction:
    """The exact value of an expression in + - * / // % ** (or ^), parentheses and the functions of `FUNCTIONS`.

    Precedence is Python's; // and % round towards minus infinity.

    Raises:
        ExpressionError: see there.
    """
    return _Parser(_tokens(expression)).parse()


def written(value: Fraction) -> str:
    """A number in full: digits, decimals where they end, else a fraction with an approximation beside it."""
    if value.denominator == 1:
        return str(value.numerator)
    rest, places = value.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest //= prime
            count += 1
        places = max(places, count)
    if rest == 1:
        digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
        return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
    return f"{value.numerator}/{value.denominator} (about {_approximation(value)})"


def _approximation(value: Fraction) -> str:
    try:
        return f"{float(value):.10g}"
    except OverflowError:
        digits = len(str(abs(value.numerator) // value.denominator)) - 1
        return f"{float(value / 10**digits):.10g}e+{digits}"


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str

    def __str__(self) -> str:
        return self.text if self.kind == "end" else repr(self.text)


_END = _Token("end", "the end")


def _tokens(expression: str) -> list[_Token]:
    if len(expression) > MAX_LENGTH:
        raise ExpressionError(f"the expression has {len(expression)} characters; at most {MAX_LENGTH} are read")
    text = expression.translate(_SPELLINGS).strip()
    tokens, position = [], 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise ExpressionError(f"{text[position:].lstrip()[:1]!r} cannot stand in an expression")
        number, name, operator = found.groups()
        kind = "number" if number is not None else "name" if name is not None else "operator"
        tokens.append(_Token(kind, number or name or operator))
        position = found.end()
    return tokens


class _Parser:
    """Recursive descent, with the depth counted."""

    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens, self._position, self._depth = tokens, 0, 0

    def parse(self) -> Fraction:
        value = self._sum()
        if self._next is not _END:
            raise ExpressionError(f"an operator is missing before {self._next}")
        return value

    @property
    def _next(self) -> _Token:
        return self._tokens[self._position] if self._position < len(self._tokens) else _END

    def _takes(self, *operators: str) -> str | None:
        token = self._next
        if token.kind == "operator" and token.text in operators:
            self._position += 1
            return token.text
        return None

    def _sum(self) -> Fraction:
        value = self._product()
        while operator := self._takes("+", "-"):
            other = self._product()
            value = _bounded(value + other if operator == "+" else value - other)
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while operator := self._takes("*", "/", "//", "%"):
            value = _bounded(_PRODUCTS[operator](value, self._signed()))
        return value

    def _signed(self) -> Fraction:
        negative = False
        while sign := self._takes("+", "-"):
            negative ^= sign == "-"
        value = self._power()
        return -value if negative else value

    def _power(self) -> Fraction:
        base = self._atom()
        if self._takes("**", "^"):
            self._deeper()
            exponent = self._signed()
            self._depth -= 1
            return _power(base, exponent)
        return base

    def _atom(self) -> Fraction:
        token = self._next
        self._position += 1
        if token.kind == "number":
            return _bounded(Fraction(token.text if token.text[-1] != "." else token.text[:-1]))
        if token.kind == "name":
            return self._call(token.text)
        if token.text != "(" or token.kind != "operator":
            raise ExpressionError(f"expected a number, got {token}")
        self._deeper()
        value = self._sum()
        self._depth -= 1
        if not self._takes(")"):
            raise ExpressionError(
                f"expected ')', got {self._next.text if self._next is _END else repr(self._next.text)}"
            )
        return value

    def _call(self, name: str) -> Fraction:
        function = FUNCTIONS.get(name)
        if function is None:
            raise ExpressionError(f"there is no function {name[:40]!r}; there are {', '.join(FUNCTIONS)}")
        if not self._takes("("):
            raise ExpressionError(f"expected '(' after {name}")
        self._deeper()
        arguments = [self._sum()]
        while self._takes(","):
            arguments.append(self._sum())
        self._depth -= 1
        if not self._takes(")"):
            raise ExpressionError(f"expected ',' or ')' in {name}(...)")
        return _bounded(function(arguments))

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExpressionError(f"the expression is nested deeper than {MAX_DEPTH} levels")


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise ExpressionError(f"a number of more than {MAX_BITS} bits")
    return value


def _divide(x: Fraction, y: Fraction) -> Fraction:
    if y == 0:
        raise ExpressionError("division by zero")
    return x / y


def _floor_divide(x: Fraction, y: Fraction) -> Fraction:
    return Fraction(math.floor(_divide(x, y)))


def _modulo(x: Fraction, y: Fraction) -> Fraction:
    return x - y * _floor_divide(x, y)


_PRODUCTS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "*": lambda x, y: x * y,
    "/": _divide,
    "//": _floor_divide,
    "%": _modulo,
}


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ExpressionError("an exponent is an integer here; for a square root there is sqrt")
    if exponent < 0 and base == 0:
        raise ExpressionError("division by zero")
    if abs(base) == 1 or base == 0:
        return base**2 if exponent % 2 == 0 and exponent else Fraction(1) if exponent == 0 else base
    bits = max(base.numerator.bit_length(), base.denominator.bit_length()) - 1
    if abs(exponent) * max(bits, 1) > MAX_BITS:
        raise ExpressionError(f"a number of more than {MAX_BITS} bits")
    return _bounded(base ** int(exponent))


def _one(arguments: Sequence[Fraction]) -> Fraction:
    if len(arguments) != 1:
        raise ExpressionError(f"the function takes one number, got {len(arguments)}")
    return arguments[0]


def _integer(value: Fraction) -> int:
    if value.denominator != 1:
        raise ExpressionError(f"the function takes integers, got {written(value)[:40]}")
    return value.numerator


def _sqrt(arguments: Sequence[Fraction]) -> Fraction:
    value = _one(arguments)
    if value < 0:
        raise ExpressionError("a negative number has no real square root")
    root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
    if root * root != value:
        raise ExpressionError("the square root is not a fraction, so it has no exact value here")
    return root


def _round(arguments: Sequence[Fraction]) -> Fraction:
    """Half to even, as Python has it; the second argument is how many decimals are kept."""
    if len(arguments) not in (1, 2):
        raise ExpressionError(f"round takes one or two numbers, got {len(arguments)}")
    places = _integer(arguments[1]) if len(arguments) == 2 else 0
    if abs(places) > 100:
        raise ExpressionError("round keeps at most 100 decimals")
    return Fraction(round(arguments[0] * Fraction(10) ** places)) / Fraction(10) ** places


def _factorial(arguments: Sequence[Fraction]) -> Fraction:
    value = _integer(_one(arguments))
    if not 0 <= value <= MAX_FACTORIAL:
        raise ExpressionError(f"factorial takes an integer from 0 to {MAX_FACTORIAL}")
    return Fraction(math.factorial(value))


FUNCTIONS: dict[str, Callable[[Sequence[Fraction]], Fraction]] = {
    "abs": lambda arguments: abs(_one(arguments)),
    "min": min,
    "max": max,
    "sum": lambda arguments: sum(arguments, Fraction(0)),
    "floor": lambda arguments: Fraction(math.floor(_one(arguments))),
    "ceil": lambda arguments: Fraction(math.ceil(_one(arguments))),
    "round": _round,
    "sqrt": _sqrt,
    "gcd": lambda arguments: Fraction(math.gcd(*map(_integer, arguments))),
    "lcm": lambda arguments: Fraction(math.lcm(*map(_integer, arguments))),
    "factorial": _factorial,
}
"""What may be called in an expression, by name."""
