"""Units of measurement as they stand behind answers, and how many of one make another."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple


class Unit(NamedTuple):
    """A quantity's name, and how many basic units one is; those of what is not listed are themselves."""

    quantity: str
    factor: Fraction


_TABLE: dict[str, tuple[str, str, str]] = {
    # name: (quantity, factor, other names)
    "mm": ("length", "1/1000", "millimeter millimetre"),
    "cm": ("length", "1/100", "centimeter centimetre"),
    "m": ("length", "1", "meter metre"),
    "km": ("length", "1000", "kilometer kilometre"),
    "in": ("length", "0.0254", "inch inches"),
    "ft": ("length", "0.3048", "foot feet"),
    "yd": ("length", "0.9144", "yard"),
    "mi": ("length", "1609.344", "mile"),
    "mg": ("mass", "1/1000", "milligram"),
    "g": ("mass", "1", "gram"),
    "kg": ("mass", "1000", "kilogram"),
    "oz": ("ounce", "1", "ounce"),
    "lb": ("ounce", "16", "lbs pound"),
    "ms": ("time", "1/1000", "millisecond"),
    "s": ("time", "1", "sec second"),
    "min": ("time", "60", "minute"),
    "h": ("time", "3600", "hr hour"),
    "day": ("time", "86400", "days"),
    "week": ("time", "604800", ""),
    "month": ("month", "1", ""),
    "year": ("month", "12", "yr"),
    "ml": ("volume", "1/1000", "milliliter millilitre"),
    "l": ("volume", "1", "liter litre"),
    "gallon": ("gallon", "1", "gal"),
    "quart": ("gallon", "1/4", ""),
    "pint": ("gallon", "1/8", ""),
    "cup": ("gallon", "1/16", ""),
    "dollar": ("dollar", "1", "usd buck"),
    "cent": ("dollar", "1/100", "penny pennies"),
    "euro": ("euro", "1", "eur"),
    "gbp": ("gbp", "1", ""),
    "yen": ("yen", "1", "jpy"),
    "rupee": ("rupee", "1", "rs"),
    "degree": ("angle", "1", "deg"),
    "mph": ("length^1/time^1", "0.44704", ""),
    "kph": ("length^1/time^1", "5/18", "kmh"),
    "unit": ("unit", "1", ""),
}
_NAMES = {other: name for name, (_, _, others) in _TABLE.items() for other in (name, *others.split())}
_LETTERS = {"N": "newton", "J": "joule", "W": "watt", "V": "volt", "K": "kelvin", "L": "l"}
"""Units that are capital letters; any other single letter is an unknown."""
CURRENCIES = {"$": "dollar", "€": "euro", "£": "gbp", "¥": "yen", "₹": "rupee"}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cubed": 3}

_CHANGING_WORDS = """
    or and not either neither nor maybe perhaps about approximately around nearly almost than less more least most
    over under below above between to from plus minus times divided by negative positive mod modulo choose factorial
    percent percentage half halves third thirds quarter quarters fourth fourths fifth fifths tenth tenths dozen dozens
    pair pairs couple score hundred hundreds thousand thousands million millions billion billions trillion trillions
    zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty sixty seventy eighty
    ninety first power root pi if when where for all any none no is are was equals equal answer correct incorrect wrong
    right otherwise but except unless true false yes
    sixth seventh eighth ninth twelfth hundredth thousandth millionth billionth twice double triple fold minus short
"""
_NOT_A_NOUN = frozenset(_CHANGING_WORDS.split())
"""Words that change what a number says, so they are never its unit."""


def unit_of(words: str) -> str | None:
    """The canonical name of the unit that `words` are, such as "cm^2" or "marble"; None if they are none.

    Any one to three words count that do not change what a number says, such as "or", "dozen" or "not" do: things that
    are counted have no table.
    """
    if len(words.strip()) == 1:
        letter = words.strip()
        return _LETTERS.get(letter) or (_NAMES.get(letter) if letter.islower() else None)
    parts = re.findall(r"[a-z]+|\^?\d+|/", words.lower().replace("per ", "/ "))
    if not parts or len(parts) > 6 or re.search(r"[^A-Za-z0-9\s/^.\-]", words):
        return None
    names: list[str] = []
    power = 0
    for part in parts:
        if part in _POWERS:
            power = _POWERS[part]
            if names:
                names[-1] += f"^{power}"
                power = 0
        elif part.lstrip("^").isdigit():
            if not names or part.lstrip("^") not in "23":
                return None
            names[-1] += f"^{part.lstrip('^')}"
        elif part == "/":
            names.append("/")
        elif part in _NOT_A_NOUN or _singular(part) in _NOT_A_NOUN:
            return None
        else:
            names.append(_singular(part) + (f"^{power}" if power else ""))
            power = 0
    plain = [name for name in names if name != "/"]
    if not plain or power or len(plain) > 3:
        return None
    return " ".join(names).replace(" / ", "/")


def is_known(word: str) -> bool:
    """Whether the word is a unit of the table, as against any other noun."""
    return _singular(word.lower()) in _TABLE


def measure(unit: str) -> Unit:
    """Which quantity a unit measures, and in which multiple."""
    parts = [re.fullmatch(r"([a-z]+)(?:\^([0-9]))?", part) for part in unit.split("/")]
    quantities, factor = [], Fraction(1)
    for place, part in enumerate(parts):
        if part is None or part[1] not in _TABLE:
            # Things that are counted, or several words.
            return Unit(unit, Fraction(1))
        name, power = part[1], part[2]
        quantity, multiple, _ = _TABLE[name]
        quantities.append(f"{quantity}^{power or 1}" if "/" not in quantity else quantity)
        exponent = int(power or 1) * (-1 if place else 1)
        factor *= Fraction(multiple) ** exponent
    return Unit("/".join(quantities), factor)


def _singular(word: str) -> str:
    if word in _NAMES:
        return _NAMES[word]
    if word.endswith("s") and not word.endswith("ss") and len(word) > 3:
        return _NAMES.get(word[:-1], word[:-1])
    return word
