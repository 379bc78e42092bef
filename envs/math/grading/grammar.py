r"""From text to nodes, by recursive descent over an allow-list: what has no rule here is refused, and nothing is run.

Statements are separated by commas, semicolons, "and" or "or"; a statement is a chain of expressions with relation signs
between them; an expression is the usual one, with LaTeX's commands and implicit multiplication. Depth and size are
bounded (`records`), so reading takes time in proportion to the text and Python's stack never runs out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from .nodes import INFINITY, ZERO, Node, number, walk
from .records import MAX_DEPTH, MAX_NODES, TooComplex, Unparsable
from .tokens import END, Token, bare, tokenize
from .units import CURRENCIES, is_known, unit_of

RELATIONS = {"=": "=", "<": "<", ">": ">", "≤": "≤", "≥": "≥", "≠": "≠", "∈": "∈", "≈": "≈"}
FUNCTIONS = {
    **{name: name for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "exp", "ln", "sqrt")},
    **{name: name for name in ("arcsin", "arccos", "arctan", "arccot", "arcsec", "arccsc", "abs", "floor", "ceil")},
    **{name: name for name in ("cbrt", "gcd", "lcm", "max", "min")},
    "log": "ln", "lg": "log10", "asin": "arcsin", "acos": "arccos", "atan": "arctan", "ceiling": "ceil",
    "arsinh": "asinh", "arcosh": "acosh", "artanh": "atanh", "asinh": "asinh", "acosh": "acosh", "atanh": "atanh",
}  # fmt: skip
"""By the names they are written with; `log` without a base is the natural logarithm."""
INVERSES = {name: f"arc{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc")}
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar"
)
_GREEK = frozenset(_GREEK_NAMES.split())
_ACCENT_NAMES = "vec hat bar overline widehat tilde widetilde dot ddot overrightarrow angle triangle"
_ACCENTS = frozenset(_ACCENT_NAMES.split())
_INFINITIES = ("infinity", "Infinity", "infty", "inf", "oo")
_CONSTANT_WORDS = {"pi": "pi", "Pi": "pi", **dict.fromkeys(_INFINITIES, "inf")}
_SETS = {"\\bbR": "R", "\\bbZ": "Z", "\\bbN": "N", "\\bbQ": "Q", "\\bbC": "C"}
_MATRICES = frozenset(("matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array"))
_BRACKETS = {"(": (")", "]"), "[": ("]", ")")}
_SEPARATOR_WORDS = frozenset(("and", "or"))
_STARTS_NO_FACTOR = frozenset(
    ("end", "+", "-", "±", "∓", "*", "/", ")", "]", "}", "\\}", ",", ";", ":", "!", "%", "\\%", "&", "\\&", "\\\\", "^",
     "_", "'", "°", "∪", "∩", "∖", "\\and", "\\or", "\\mod", "\\choose", "\\end", "\\rfloor", "\\rceil",
     "\\rangle", *RELATIONS)
)  # fmt: skip
_DECIMAL = re.compile(r"([0-9]*)(?:\.([0-9]*))?(?:[eE]([+-]?[0-9]+))?")
MAX_DECIMAL_EXPONENT = 1_000
MAX_SLASHES = 6
MAX_CHOICES = 4
"""The most signs ± that an answer may have."""


def parse(text: str, commas: bool = True) -> Node:
    """The answer that `text` states: one node; several answers are a `list`.

    Args:
        text: an answer, with or without dollars around it.
        commas: take 1,234 for one number and not for two.

    Raises:
        TooComplex: it is beyond a limit.
        Unparsable: it breaks the grammar.
    """
    stripped = bare(text)
    if not stripped:
        raise Unparsable("there is nothing")
    try:
        parser = _Parser(tokenize(stripped, commas=commas))
        node = parser.statements()
        parser.expect_end()
    except RecursionError as error:
        raise TooComplex("nested too deep") from error
    _check_infinities(node)
    return node


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0
        self.bars = 0
        self.size = 0
        self.choices = 0

    # Tokens

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def after(self, distance: int) -> Token:
        place = self.at + distance
        return self.tokens[place] if place < len(self.tokens) else END

    def is_mark(self, *marks: str) -> bool:
        token = self.tokens[self.at]
        return token.text in marks and token.kind in ("mark", "command")

    def take(self, *marks: str) -> bool:
        if self.is_mark(*marks):
            self.at += 1
            return True
        return False

    def expect(self, *marks: str) -> None:
        if not self.take(*marks):
            raise Unparsable(f"{' or '.join(marks)} was expected, not {self.next.text or 'the end'!r:.40}")

    def expect_end(self) -> None:
        if self.next.kind != "end":
            raise Unparsable(f"{self.next.text!r:.40} was not expected")

    def pop(self) -> Token:
        token = self.tokens[self.at]
        self.at += 1
        return token

    def deeper(self, rule: Callable[[], Node]) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooComplex(f"nested more than {MAX_DEPTH} deep")
        node = rule()
        self.depth -= 1
        return node

    def node(self, kind: str, *parts: Node, value: Fraction | int | str = "") -> Node:
        self.size += 1
        self.choices += kind == "pm"
        if self.size > MAX_NODES or self.choices > MAX_CHOICES:
            raise TooComplex(f"more than {MAX_NODES} parts, or more than {MAX_CHOICES} signs ±")
        return Node(kind, parts, value)

    # Statements

    def statements(self) -> Node:
        items = [self.statement()]
        while self._separated():
            items.append(self.statement())
        return items[0] if len(items) == 1 else self.node("list", *items)

    def _separated(self) -> bool:
        found = False
        while self.take(",", ";", "\\and", "\\or") or self._is_separator_word():
            found = True
        return found

    def _is_separator_word(self) -> bool:
        token = self.next
        if token.kind in ("text", "word") and token.text.lower().strip(" ,") in _SEPARATOR_WORDS:
            self.at += 1
            return True
        return False

    def statement(self) -> Node:
        # "≈ 3.14" states what it is.
        self.take("≈")
        items = [self.set_expression()]
        signs: list[str] = []
        while self.next.text in RELATIONS and self.next.kind == "mark":
            signs.append(RELATIONS[self.pop().text])
            items.append(self.set_expression())
        return self.node("rel", *items, value=" ".join(signs)) if signs else items[0]

    def set_expression(self) -> Node:
        items = [self.ratio()]
        marks = []
        while self.is_mark("∪", "∩", "∖"):
            marks.append(self.pop().text)
            items.append(self.ratio())
        if len(set(marks)) > 1 or (marks and marks[0] == "∖" and len(items) > 2):
            raise Unparsable("∪, ∩ and ∖ together, without brackets")
        kind = {"∪": "union", "∩": "intersection", "∖": "minus"}
        return self.node(kind[marks[0]], *items) if marks else items[0]

    def ratio(self) -> Node:
        items = [self.expression()]
        while self.take(":"):
            items.append(self.expression())
        return self.node("ratio", *items) if len(items) > 1 else items[0]

    # Expressions

    def expression(self) -> Node:
        terms: list[Node] = []
        node = self._signed_term(first=True)
        while self.is_mark("+", "-", "±", "∓"):
            if self.is_mark("±", "∓"):
                sign = "+" if self.pop().text == "±" else "-"
                left = self.node("add", *terms, node) if terms else node
                terms, node = [], self.node("pm", left, self._signed_term(), value=sign)
            else:
                negative = self.pop().text == "-"
                terms.append(node)
                term = self._signed_term()
                node = self.node("neg", term) if negative else term
        return self.node("add", *terms, node) if terms else node

    def _signed_term(self, first: bool = False) -> Node:
        negative = False
        while self.is_mark("+", "-", "±", "∓"):
            mark = self.pop().text
            if mark in "±∓":
                if not first:
                    raise Unparsable("± after another sign")
                node = self.node("pm", ZERO, self._signed_term(), value="+" if mark == "±" else "-")
                return self.node("neg", node) if negative else node
            negative ^= mark == "-"
        term = self.term()
        return self.node("neg", term) if negative else term

    def term(self) -> Node:
        currency = CURRENCIES.get(self.next.text.lstrip("\\")) if self.next.kind == "mark" else None
        if currency:
            self.pop()
            node = self.node("unit", self.term(), value=currency)
            if node.parts[0].kind == "unit":
                raise Unparsable("two units")
            return node
        node = self.factor()
        slashes = 0
        while True:
            if self.take("*"):
                node = self._product(node, self._signed_factor())
            elif self.take("/"):
                slashes += 1
                if slashes > MAX_SLASHES:
                    raise TooComplex(f"more than {MAX_SLASHES} divisions in a row")
                node = self.node("div", node, self._signed_factor())
            elif (unit := self._unit_ahead(node)) is not None:
                return self._with_unit(node, unit)
            elif self._starts_factor():
                node = self._juxtaposed(node)
            else:
                return node

    def _signed_factor(self) -> Node:
        negative = False
        while self.is_mark("+", "-"):
            negative ^= self.pop().text == "-"
        factor = self.factor()
        return self.node("neg", factor) if negative else factor

    def _product(self, node: Node, factor: Node) -> Node:
        # One flat node, for a chain of them would be as deep as it is long.
        return self.node("mul", *(node.parts if node.kind == "mul" else (node,)), factor)

    def _starts_factor(self) -> bool:
        token = self.next
        if token.kind in ("mark", "command", "end"):
            if token.text == "|":
                return self.bars == 0
            is_sign = token.text in _STARTS_NO_FACTOR or token.text.lstrip("\\") in CURRENCIES
            return token.kind != "end" and not is_sign
        return not (token.kind in ("text", "word") and token.text.lower().strip(" ,") in _SEPARATOR_WORDS)

    def _juxtaposed(self, node: Node) -> Node:
        """What stands beside a factor without a sign: a mixed number, an application or a product."""
        before, ahead = self.tokens[self.at - 1], self.next
        if ahead.kind == "number" and node.kind != "fact":
            return self._plain_mixed(node, before)
        if before.kind == "number" and node.kind == "num" and ahead.text == "\\frac":
            fraction = self.factor()
            if _is_proper(fraction, node):
                return self.node("mixed", value=_value(node) + _value(fraction.parts[0]) / _value(fraction.parts[1]))
            return self._product(node, fraction)
        applied = ahead.text == "(" and node.kind == "sym"
        right = self.factor()
        if applied and right.kind != "tuple":
            return self.node("apply", node, right)
        return self._product(node, right)

    def _plain_mixed(self, node: Node, before: Token) -> Node:
        # 3 1/2, as typed without LaTeX
        if before.kind == "number" and node.kind == "num" and self.next.spaced and self.after(1).text == "/":
            numerator = self.factor()
            self.expect("/")
            denominator = self.factor()
            fraction = Node("div", (numerator, denominator))
            if _is_proper(fraction, node):
                return self.node("mixed", value=_value(node) + _value(numerator) / _value(denominator))
        raise Unparsable("two numbers side by side")

    # Units

    def _unit_ahead(self, node: Node) -> str | None:
        """The unit that stands next, of which only its first word is looked at."""
        token = self.next
        if token.kind == "text":
            return unit_of(token.text)
        has_meaning = token.text in FUNCTIONS or token.text in _CONSTANT_WORDS
        if token.kind == "word" and len(token.text) > 1 and not has_meaning:
            follows_number = self.tokens[self.at - 1].kind in ("number", "mark")
            if follows_number and (is_known(token.text) or (len(token.text) > 2 and token.spaced)):
                return unit_of(token.text)
        if token.kind == "mark" and token.text.lstrip("\\") in CURRENCIES and self.after(1).kind in ("end", "mark"):
            return CURRENCIES[token.text.lstrip("\\")]
        if token.text == "°":
            return "degree"
        return None

    def _with_unit(self, node: Node, unit: str) -> Node:
        self.pop()
        words = [unit]
        while True:
            if self.is_mark("^") and self.after(1).text in ("2", "3"):
                self.pop()
                words.append(self.pop().text)
            elif self.is_mark("^") and self.after(1).text == "{" and self.after(2).text in ("2", "3"):
                self.at += 2
                words.append(self.pop().text)
                self.expect("}")
            elif self.next.kind == "raised" and self.next.text in ("2", "3"):
                words.append(self.pop().text)
            elif self.is_mark("/") and self.after(1).kind in ("text", "word") and not unit.startswith("/"):
                self.pop()
                words += ["/", self.pop().text]
            elif self.next.kind in ("text", "word") and self._starts_factor():
                words.append(self.pop().text)
            else:
                break
        name = unit_of(" ".join(words))
        if name is None:
            raise Unparsable(f"{' '.join(words)!r:.60} is no unit")
        return self.node("unit", node, value=name)

    # Factors

    def factor(self) -> Node:
        node = self.postfixed()
        if self.take("^"):
            if self._is_degree_sign():
                return self.node("unit", node, value="degree")
            node = self.node("pow", node, self.deeper(self._exponent))
            if self.is_mark("^", "!"):
                raise Unparsable("two exponents side by side")
        elif self.next.kind == "raised":
            node = self.node("pow", node, number(int(self.pop().text)))
        return node

    def _is_degree_sign(self) -> bool:
        if self.take("°"):
            return True
        if self.is_mark("{") and self.after(1).text == "°" and self.after(2).text == "}":
            self.at += 3
            return True
        return False

    def _exponent(self) -> Node:
        negative = False
        while self.is_mark("+", "-"):
            negative ^= self.pop().text == "-"
        node = self.factor()
        return self.node("neg", node) if negative else node

    def postfixed(self) -> Node:
        node = self.atom()
        while True:
            if self.is_mark("!", "%", "\\%"):
                kind = "fact" if self.pop().text == "!" else "percent"
                if node.kind in ("fact", "percent"):
                    raise Unparsable("two signs ! or % in a row")
                node = self.node(kind, node)
            elif self.is_mark("'") and node.kind == "sym":
                self.pop()
                node = Node("sym", (), f"{node.value}'")
            elif self.is_mark("_"):
                node = self._with_subscript(node)
            else:
                return node

    def _with_subscript(self, node: Node) -> Node:
        written = self.tokens[self.at - 1]
        self.pop()
        words = self._subscript()
        if node.kind == "num" and written.kind == "number" and words.isascii() and words.isdigit():
            return self.node("base", number(int(words)), value=written.text)
        if node.kind in ("sym", "const"):
            return self.node("sym", value=f"{node.value}_{words}")
        raise Unparsable("a subscript in an odd place")

    def _subscript(self) -> str:
        if not self.take("{"):
            token = self.pop()
            if token.kind not in ("number", "word", "text", "command"):
                raise Unparsable("a subscript was expected")
            return token.text
        words = []
        while not self.is_mark("}"):
            token = self.pop()
            if token.kind not in ("number", "word", "text", "command") and token.text not in (",", "+", "-", "*"):
                raise Unparsable("a subscript is made of names and numbers")
            words.append(token.text)
        self.expect("}")
        return "".join(words)

    def atom(self) -> Node:
        token = self.next
        match token.kind:
            case "number":
                return self._number()
            case "word":
                return self._word()
            case "text":
                return self._text()
            case "command":
                return self._command()
            case "mark":
                return self._mark()
        raise Unparsable(f"a value was expected, not {token.text or 'the end'!r:.40}")

    def _number(self) -> Node:
        literal = self.pop().text
        if self.is_mark("\\overline", "\\bar") and "." in literal:
            self.pop()
            repeating = self._group_digits()
            return self.node("num", value=_repeating(literal, repeating))
        return self.node("num", value=_decimal(literal))

    def _group_digits(self) -> str:
        braced = self.take("{")
        token = self.pop()
        if token.kind != "number" or not token.text.isdigit():
            raise Unparsable("digits that repeat were expected")
        if braced:
            self.expect("}")
        return token.text

    def _word(self) -> Node:
        token = self.next
        word = token.text
        if word in FUNCTIONS:
            self.pop()
            return self._function(FUNCTIONS[word])
        if word in _CONSTANT_WORDS:
            self.pop()
            return self.node("const", value=_CONSTANT_WORDS[word])
        if word in _GREEK:
            self.pop()
            return self.node("sym", value=word)
        begins_phrase = len(word) == 2 and self.after(1).kind == "word" and len(self.after(1).text) > 1
        if (len(word) > 2 or begins_phrase) and not self._stands_in_formula():
            return self._text()
        if len(word) > 1:
            # Letters side by side are a product; they are taken one at a time, so that exponents go to the last.
            rest = Token("word", word[1:], False)
            self.tokens[self.at : self.at + 1] = [Token("word", word[0], token.spaced), rest]
        letter = self.pop().text
        if letter in ("e", "i") and not self.is_mark("_"):
            return self.node("const", value=letter)
        return self.node("sym", value=letter)

    def _stands_in_formula(self) -> bool:
        before = self.tokens[self.at - 1] if self.at else END
        after = self.after(1)
        beside = (before.kind == "number" and not self.next.spaced) or before.text in ("+", "-", "*", "/", "^")
        return beside or after.text in ("+", "-", "*", "/", "^") or (before.kind == "word" and not self.next.spaced)

    def _text(self) -> Node:
        words = []
        while self.next.kind in ("text", "word") and self._starts_factor():
            words.append(self.pop().text)
            if self.is_mark("-", "'") and self.after(1).kind in ("text", "word") and not self.after(1).spaced:
                words.append(self.pop().text)
        phrase = " ".join(words).strip(" .,:;")
        inner = phrase[1:-1] if phrase.startswith("(") and phrase.endswith(")") else phrase
        if len(inner) == 1 and inner.isascii() and inner.isalpha():
            return self.node("const" if inner in "ei" and not phrase.startswith("(") else "sym", value=inner)
        if inner in FUNCTIONS and self.next.text in ("(", "{"):
            return self._function(FUNCTIONS[inner])
        if inner in _CONSTANT_WORDS:
            return self.node("const", value=_CONSTANT_WORDS[inner])
        if not inner or not any(character.isalpha() for character in inner):
            raise Unparsable("text that says nothing")
        return self.node("text", value=" ".join(inner.split()).casefold())

    def _mark(self) -> Node:
        if self.is_mark("(", "["):
            return self.deeper(self._bracketed)
        if self.take("{"):
            return self.deeper(self._group_rest)
        if self.take("\\{"):
            return self.deeper(self._set_rest)
        if self.take("∅"):
            return self.node("set")
        if self.take("∞"):
            return INFINITY
        if self.take("|"):
            self.bars += 1
            node = self.deeper(self.expression)
            self.bars -= 1
            self.expect("|")
            return self.node("func", node, value="abs")
        raise Unparsable(f"{self.next.text!r:.40} was not expected")

    def _inside(self) -> list[Node]:
        bars, self.bars = self.bars, 0
        items = [self.statement()]
        while self._separated():
            items.append(self.statement())
        self.bars = bars
        return items

    def _bracketed(self) -> Node:
        opening = self.pop().text
        items = self._inside()
        closing = self.next.text
        self.expect(*_BRACKETS[opening])
        if len(items) == 1:
            if (opening, closing) not in (("(", ")"), ("[", "]")):
                raise Unparsable("brackets that do not match")
            return items[0]
        return self.node("tuple", *items, value=opening + closing)

    def _group_rest(self) -> Node:
        if self.take("}"):
            raise Unparsable("empty braces")
        items = self._inside()
        if self.take("\\choose") and len(items) == 1:
            # {n \choose k}
            items = [self.node("binom", items[0], self.expression())]
        self.expect("}")
        return items[0] if len(items) == 1 else self.node("set", *items)

    def _set_rest(self) -> Node:
        if self.take("\\}"):
            return self.node("set")
        if self.next.kind == "word" and len(self.next.text) == 1 and self.after(1).text in ("|", ":"):
            return self._condition()
        items = self._inside()
        self.expect("\\}")
        return self.node("set", *items)

    def _condition(self) -> Node:
        """{x | x > 2}: what bounds the unknown."""
        name = self.pop().text
        self.pop()
        items = self._inside()
        self.expect("\\}")
        if any(
            item.kind != "rel" or "=" in str(item.value) or Node("sym", (), name) not in item.parts for item in items
        ):
            raise Unparsable("a set whose condition is no inequality")
        return items[0] if len(items) == 1 else self.node("list", *items)

    # Commands

    def _command(self) -> Node:
        name = self.pop().text[1:]
        if name == "frac":
            return self.node("div", self.deeper(self._argument), self.deeper(self._argument))
        if name == "sqrt":
            return self._root()
        if name == "binom":
            return self.node("binom", self.deeper(self._argument), self.deeper(self._argument))
        if name == "pi":
            return self.node("const", value="pi")
        if name == "imath":
            return self.node("const", value="i")
        if name in FUNCTIONS:
            return self._function(FUNCTIONS[name])
        if name in _GREEK:
            return self.node("sym", value=name)
        if name in _ACCENTS:
            return self._accented(name)
        if f"\\{name}" in _SETS:
            return self._number_set(_SETS[f"\\{name}"])
        if name in ("lfloor", "lceil"):
            node = self.deeper(self.expression)
            self.expect(f"\\r{name[1:]}")
            return self.node("func", node, value="floor" if name == "lfloor" else "ceil")
        if name == "langle":
            items = self._inside()
            self.expect("\\rangle")
            return self.node("tuple", *items, value="()")
        if name == "begin":
            return self.deeper(self._environment)
        raise Unparsable(f"\\{name:.40} is not understood")

    def _number_set(self, letter: str) -> Node:
        if letter == "R" and not self.is_mark("^", "_"):
            return self.node("tuple", Node("neg", (INFINITY,)), INFINITY, value="()")
        return self.node("sym", value=f"bb{letter}")

    def _accented(self, name: str) -> Node:
        braced = self.take("{")
        words: list[str] = []
        while self.next.kind in ("word", "command", "text") and (braced or not words):
            words.append(self.pop().text.lstrip("\\"))
        if braced:
            self.expect("}")
        if not words:
            raise Unparsable(f"\\{name} of something odd")
        return self.node("sym", value=f"{name} {''.join(words)}")

    def _argument(self) -> Node:
        """What a command is given: a group, or a single digit, letter or command."""
        if self.take("{"):
            return self._group_rest()
        token = self.next
        if token.kind == "number" and token.text[0].isdigit():
            # \frac12 is one half
            self.tokens[self.at] = Token("number", token.text[1:], False)
            if not self.tokens[self.at].text:
                self.at += 1
            return number(int(token.text[0]))
        if token.kind == "word" and len(token.text) > 1:
            self.tokens[self.at : self.at + 1] = [
                Token("word", token.text[0], token.spaced),
                Token("word", token.text[1:], False),
            ]
        return self.atom()

    def _root(self) -> Node:
        degree = 2
        if self.take("["):
            token = self.pop()
            if token.kind == "word" and len(token.text) == 1:
                self.expect("]")
                exponent = self.node("div", number(1), self.node("sym", value=token.text))
                return self.node("pow", self.deeper(self._root_argument), exponent)
            if token.kind != "number" or not token.text.isdigit() or not 2 <= int(token.text[:6]) <= 1000:
                raise Unparsable("the degree of a root is a letter or a number from 2 to 1000")
            degree = int(token.text)
            self.expect("]")
        radicand = self.deeper(self._root_argument)
        return self.node("root", radicand, value=degree)

    def _root_argument(self) -> Node:
        if self.take("{"):
            return self._group_rest()
        return self.atom()

    def _function(self, name: str) -> Node:
        if name in ("sqrt", "cbrt"):
            return self.node("root", self.deeper(self._root_argument), value=2 if name == "sqrt" else 3)
        power: Node | None = None
        base: Node | None = None
        for _ in range(2):
            if self.take("^"):
                power = self.deeper(self._exponent)
            elif self.next.kind == "raised":
                power = number(int(self.pop().text))
            elif self.take("_"):
                base = self.deeper(self._argument)
        if power == Node("neg", (number(1),)) or power == number(-1):
            if name not in INVERSES:
                raise Unparsable("the inverse of this function is written otherwise")
            name, power = INVERSES[name], None
        if base is not None and name != "ln":
            raise Unparsable("only logarithms have a base")
        arguments = self._arguments()
        if (len(arguments) > 1) != (name in ("gcd", "lcm", "max", "min")):
            raise Unparsable(f"{name} of {len(arguments)} arguments")
        if base is not None:
            ratio = (self.node("func", *arguments, value="ln"), self.node("func", base, value="ln"))
            node = self.node("div", *ratio)
        else:
            node = self.node("func", *arguments, value=name)
        return node if power is None else self.node("pow", node, power)

    def _arguments(self) -> tuple[Node, ...]:
        return self.deeper(self._argument_tuple).parts

    def _argument_tuple(self) -> Node:
        if self.is_mark("("):
            node = self._bracketed()
            return node if node.kind == "tuple" and node.value == "()" else Node("list", (node,))
        negative = self.take("-")
        node = self.factor()
        # sin 2x is the sine of 2x; sin x cos x is a product
        while self._starts_factor() and not self._starts_function() and not self.is_mark("(", "[", "{", "\\{"):
            node = self._juxtaposed(node)
            if node.kind == "text":
                raise Unparsable("text within a function")
        while self.is_mark("/") and self.after(1).kind in ("number", "word") and self.after(1).text not in FUNCTIONS:
            self.pop()
            node = self.node("div", node, self.factor())
        return Node("list", (self.node("neg", node) if negative else node,))

    def _starts_function(self) -> bool:
        return self.next.kind in ("word", "command", "text") and self.next.text.lstrip("\\") in FUNCTIONS

    def _environment(self) -> Node:
        name = self._braced_word()
        if name not in _MATRICES:
            raise Unparsable(f"the environment {name:.40} is not understood")
        if name == "array":
            self._skip_columns()
        rows: list[Node] = []
        cells: list[Node] = [self.statement()]
        while not self.take("\\end"):
            if self.take("&"):
                cells.append(self.statement())
                continue
            self.expect("\\\\")
            rows.append(self.node("tuple", *cells))
            cells = []
            if not self.is_mark("\\end"):
                cells.append(self.statement())
        if cells:
            rows.append(self.node("tuple", *cells))
        if self._braced_word() != name:
            raise Unparsable("an environment that ends under another name")
        if len({len(row.parts) for row in rows}) != 1:
            raise Unparsable("rows of different lengths")
        return self.node("matrix", *rows)

    def _braced_word(self) -> str:
        self.expect("{")
        token = self.pop()
        self.expect("}")
        return token.text

    def _skip_columns(self) -> None:
        self.expect("{")
        while not self.take("}"):
            token = self.pop()
            if token.kind != "word" and token.text != "|":
                raise Unparsable("columns of an array")


def _value(node: Node) -> Fraction:
    assert isinstance(node.value, Fraction)
    return node.value


def _is_proper(fraction: Node, whole: Node) -> bool:
    """Whether a whole number and a fraction beside it are a mixed number."""
    if fraction.kind != "div" or {part.kind for part in fraction.parts} != {"num"} or _value(whole).denominator != 1:
        return False
    top, bottom = (_value(part) for part in fraction.parts)
    return top.denominator == bottom.denominator == 1 and 0 < top < bottom


def _decimal(literal: str) -> Fraction:
    match = _DECIMAL.fullmatch(literal)
    if match is None:
        raise Unparsable("a number was expected")
    whole, decimals, exponent = match[1] or "0", match[2] or "", int(match[3] or 0)
    if abs(exponent) > MAX_DECIMAL_EXPONENT:
        raise TooComplex(f"an exponent beyond {MAX_DECIMAL_EXPONENT}")
    value = Fraction(int(whole + decimals), 10 ** len(decimals))
    return value * Fraction(10) ** exponent if exponent else value


def _repeating(literal: str, digits: str) -> Fraction:
    decimals = len(literal.partition(".")[2])
    return _decimal(literal) + Fraction(int(digits), (10 ** len(digits) - 1) * 10**decimals)


def _check_infinities(node: Node) -> None:
    """Infinity is a value or the end of an interval, never part of a calculation."""
    allowed = {"neg", "tuple", "list", "set", "rel", "union", "intersection", "minus", "matrix"}
    for part in walk(node):
        if part.kind == "neg" and part.parts[0].kind == "neg":
            continue
        if any(child == INFINITY for child in part.parts) and part.kind not in allowed:
            if part.kind == "pm" and part.parts[0] == ZERO:
                continue
            raise Unparsable("a calculation with infinity")
        if part.kind not in allowed | {"pm"} and any(c == Node("neg", (INFINITY,)) for c in part.parts):
            raise Unparsable("a calculation with infinity")
