r"""Answers as tokens: LaTeX and plain mathematics alike. Only ASCII digits are digits; what is unknown is refused."""

from __future__ import annotations

import re
from typing import NamedTuple

from .records import MAX_CHARACTERS, MAX_DIGITS, TooComplex, Unparsable


class Token(NamedTuple):
    """kind: number, word, command, text, mark or end; `spaced` tells whether white space stood before it."""

    kind: str
    text: str
    spaced: bool


END = Token("end", "", True)

_SPACE_COMMANDS = "quad|qquad|enspace|thinspace|displaystyle|textstyle|limits|nolimits|hfill"
_SPACE = rf"(?:[ \t\r\n\f\u00a0\u2009\u202f]|~|\\[ ,;:!>]|\\(?:{_SPACE_COMMANDS})(?![A-Za-z]))+"
_SIZE = r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?"
_GROUPED = r"[0-9]{1,3}(?:(?:\{,\}|,?\\[,! ;]\\?!?)[0-9]{3})+(?![0-9])(?:\.[0-9]+)?"
_COMMAS = r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?"
_SPACES = r"[0-9]{1,3}(?: [0-9]{3})+(?![0-9])(?:\.[0-9]+)?"
_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4}(?![0-9.A-Za-z]))?"
_FONTS = (
    "text|textbf|textit|textrm|textsf|texttt|textnormal|textup|emph|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathtt|"
    r"mathcal|boldsymbol|bm|operatorname\*?|rm|bf|it"
)
_TEXT = rf"\\(?:{_FONTS})(?![A-Za-z])\s*\{{(?P<words>[^{{}}\\$]*)\}}"
_FONT = rf"\\(?:{_FONTS})(?![A-Za-z])"
_MARK = (
    r"\\[{}$%&#_|\\]|\*\*|<=|>=|!=|==|[-+*/^_=<>!%|(){}\[\],;:&'$€£¥₹]|[°√π∞±∓×÷·⋅−≤≥≠∈∪∩∅∖≈]"
    "|[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+|[αβγδεζηθικλμνξρστυφχψωΓΔΘΛΞΠΣΦΨΩ]"
)


_DOUBLE = r"\\mathbb(?![A-Za-z])\s*\{?(?P<letter>[A-Z])\}?"


def _pattern(commas: bool) -> re.Pattern[str]:
    numbers = "|".join((_GROUPED, *((_COMMAS,) if commas else ()), _SPACES, _NUMBER))
    kinds = {"space": _SPACE, "size": _SIZE, "number": numbers, "text": _TEXT, "font": _FONT, "bb": _DOUBLE}
    kinds |= {"command": r"\\[A-Za-z]+", "word": "[A-Za-z]+", "mark": _MARK}
    return re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in kinds.items()))


_PATTERNS = {commas: _pattern(commas) for commas in (True, False)}
_HAS_COMMAS = re.compile(_COMMAS)

_SAME = {
    "−": "-",
    "–": "-",
    "×": "*",
    "·": "*",
    "⋅": "*",
    "**": "^",
    "÷": "/",
    "==": "=",
    "!=": "≠",
    "<=": "≤",
    ">=": "≥",
    "\\|": "‖",
}
_COMMANDS = {
    "cdot": "*",
    "times": "*",
    "ast": "*",
    "div": "/",
    "pm": "±",
    "mp": "∓",
    "le": "≤",
    "leq": "≤",
    "leqslant": "≤",
    "ge": "≥",
    "geq": "≥",
    "geqslant": "≥",
    "lt": "<",
    "gt": ">",
    "ne": "≠",
    "neq": "≠",
    "in": "∈",
    "cup": "∪",
    "cap": "∩",
    "setminus": "∖",
    "backslash": "∖",
    "emptyset": "∅",
    "varnothing": "∅",
    "infty": "∞",
    "approx": "≈",
    "circ": "°",
    "degree": "°",
    "lbrace": "\\{",
    "rbrace": "\\}",
    "lbrack": "[",
    "rbrack": "]",
    "lparen": "(",
    "rparen": ")",
    "colon": ":",
    "vert": "|",
    "lvert": "|",
    "rvert": "|",
    "mid": "|",
    "dollar": "$",
    "percent": "%",
    "prime": "'",
    "textdollar": "$",
    "pounds": "£",
    "euro": "€",
    "dfrac": "\\frac",
    "tfrac": "\\frac",
    "cfrac": "\\frac",
    "dbinom": "\\binom",
    "tbinom": "\\binom",
    "land": "\\and",
    "wedge": "\\and",
    "lor": "\\or",
    "vee": "\\or",
    "textdegree": "°",
    "varphi": "\\phi",
    "varepsilon": "\\epsilon",
    "vartheta": "\\theta",
    "textpi": "\\pi",
    "bmod": "\\mod",
    "pmod": "\\mod",
}
_GREEK_LETTERS = "αβγδεζηθικλμνξρστυφχψωΓΔΘΛΞΠΣΦΨΩ"
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
)
_GREEK = dict(zip(_GREEK_LETTERS, _GREEK_NAMES.split(), strict=True))
_RAISED = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")


def bare(text: str) -> str:
    """The text without white space, dollars and the full stop around it."""
    text = text.strip()
    for _ in range(3):
        for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
            inside = text[len(opening) : len(text) - len(closing)]
            if text.startswith(opening) and text.endswith(closing) and inside and opening not in inside:
                text = inside.strip()
        if text.endswith((".", ",", ";")) and not text.endswith(("\\,", "\\;", "..")):
            text = text[:-1].rstrip()
    return text


def has_commas(text: str) -> bool:
    """Whether a comma in the text may separate thousands as well as numbers."""
    return _HAS_COMMAS.search(text) is not None


def tokenize(text: str, *, commas: bool = True) -> list[Token]:
    """The tokens of `text`, the last one an end.

    Args:
        text: an answer without what stands around it.
        commas: take 1,234 for one number and not for two.

    Raises:
        TooComplex: the text or a number is too long.
        Unparsable: a character is none of those known.
    """
    if len(text) > MAX_CHARACTERS:
        raise TooComplex(f"{len(text)} characters; at most {MAX_CHARACTERS} are read")
    tokens: list[Token] = []
    at, spaced = 0, False
    match_at = _PATTERNS[commas].match
    while at < len(text):
        match = match_at(text, at)
        if match is None:
            raise Unparsable(f"{text[at]!r} at {at} is not understood")
        kind, word = str(match.lastgroup), match[0]
        at = match.end()
        if kind in ("space", "size", "font"):
            spaced = spaced or kind == "space"
            continue
        tokens.append(_token(kind, word, match, spaced))
        spaced = False
    tokens.append(END)
    return tokens


def _token(kind: str, word: str, match: re.Match[str], spaced: bool) -> Token:
    if kind == "number":
        if len(word) > MAX_DIGITS:
            raise TooComplex(f"a number of {len(word)} characters; at most {MAX_DIGITS} are read")
        return Token(kind, word if word.isalnum() else re.sub(r"[^0-9.eE+-]", "", word), spaced)
    if kind == "text":
        return Token(kind, match["words"].strip(), spaced)
    if kind == "bb":
        return Token("command", f"\\bb{match['letter']}", spaced)
    if kind == "command":
        same = _COMMANDS.get(word[1:], word)
        return Token("command" if len(same) > 1 and same[1].isalpha() else "mark", same, spaced)
    if word in _GREEK:
        return Token("command", f"\\{_GREEK[word]}", spaced)
    if word == "π":
        return Token("command", "\\pi", spaced)
    if word == "√":
        return Token("command", "\\sqrt", spaced)
    if word[-1] in "⁰¹²³⁴⁵⁶⁷⁸⁹":
        return Token("raised", word.translate(_RAISED), spaced)
    return Token(kind, _SAME.get(word, word), spaced)
