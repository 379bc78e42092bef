r"""Which part of a reply is the answer.

The rule: the last `\boxed{...}` (or `\fbox{...}`) counts, empty ones aside. Other boxes in the same paragraph must hold
the same text, or none counts: `\boxed{4} or \boxed{5}` is no answer. Boxes of earlier paragraphs are steps on the way.
So a reply has exactly one answer however many boxes it has, and a guess in each of them gains nothing.
"""

from __future__ import annotations

import re

from .records import MAX_CHARACTERS, Verdict

MAX_BOXES = 100
"""How many boxes, from the end, are looked at."""
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_PARAGRAPH = re.compile(r"\n\s*\n")
_BARE = re.compile(r"[0-9A-Za-z.,+\-/]{1,40}|\\[A-Za-z]+")
"""What \boxed holds that has no braces."""
_ANNOUNCED = re.compile(r"(?:####|\banswer\s*(?:is|:|=))\s*:?\s*", re.IGNORECASE)


def extract(text: str, *, require_box: bool = True) -> tuple[str | None, Verdict | None]:
    """The answer in a reply, and what is wrong with it; either may be None.

    Args:
        text: the whole reply; any text at all. Its length costs nothing but a search for the boxes.
        require_box: without a box there is no answer. If False, what follows the last "answer is", "answer:" or "####"
            up to the end of its line is, and failing that the whole text.
    """
    answer, problem = _boxed(text)
    if answer is not None or problem != "no_box" or require_box:
        return answer, problem
    return _unboxed(text)


def last_box(text: str) -> str | None:
    """The content of the last box, as solutions of data sets give their answer; None if there is none."""
    return next((content for _, content in reversed(_boxes(text)) if content), None)


def _boxed(text: str) -> tuple[str | None, Verdict | None]:
    boxes = _boxes(text)
    if not boxes:
        return None, "no_box"
    filled = [(start, content) for start, content in boxes if content != ""]
    if not filled:
        return None, "empty_box"
    last_start, last = filled[-1]
    if last is None:
        return None, "too_long"
    paragraph = _start_of_paragraph(text, last_start)
    beside = {"".join(content.split()) if content else content for start, content in filled if start >= paragraph}
    if len(beside) > 1:
        return last, "several_answers"
    return _unwrapped(last), None


def _boxes(text: str) -> list[tuple[int, str | None]]:
    """Where the last boxes begin, and what is in them: None for one that is too long. Boxes within boxes are not."""
    starts = sorted((*_last_places(text, "\\boxed"), *_last_places(text, "\\fbox")))[-MAX_BOXES:]
    found: list[tuple[int, str | None]] = []
    inside_until = 0
    for start in starts:
        match = _BOX.match(text, start)
        if start < inside_until or match is None:
            continue
        content, inside_until = _content(text, match.end())
        if inside_until:
            found.append((start, content))
    return found


def _last_places(text: str, word: str) -> list[int]:
    places: list[int] = []
    end = len(text)
    while len(places) < MAX_BOXES and (end := text.rfind(word, 0, end)) >= 0:
        places.append(end)
    return places


def _content(text: str, at: int) -> tuple[str | None, int]:
    """What the box holds whose content begins at `at`, and where it ends; 0 if it is never closed."""
    if not text.startswith("{", at):
        match = _BARE.match(text, at)
        return (match[0].rstrip(".,;"), match.end()) if match else ("", at)
    depth = 0
    stop = at + MAX_CHARACTERS + 2
    for brace in _BRACE.finditer(text, at, stop):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[at + 1 : brace.start()].strip(), brace.end()
    return (None, stop) if stop < len(text) else ("", 0)


def _start_of_paragraph(text: str, before: int) -> int:
    # A paragraph that is longer than this is cut: what stands further off does not stand beside the last box.
    window = max(0, before - 4 * MAX_CHARACTERS)
    breaks = [match.end() for match in _PARAGRAPH.finditer(text, window, before)]
    return breaks[-1] if breaks else window


def _unwrapped(content: str) -> str:
    for _ in range(3):
        match = _BOX.match(content)
        if match is None:
            break
        inner, end = _content(content, match.end())
        if not inner or content[end:].strip():
            break
        content = inner
    return content


def _unboxed(text: str) -> tuple[str | None, Verdict | None]:
    tail = text[-4 * MAX_CHARACTERS :]
    announced = [match.end() for match in _ANNOUNCED.finditer(tail)]
    answer = tail[announced[-1] :].partition("\n")[0] if announced else text
    answer = answer.strip().strip("*").strip()
    if not answer:
        return None, "empty_box"
    if len(answer) > MAX_CHARACTERS:
        return None, "too_long"
    return answer, None
