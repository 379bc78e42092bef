"""Keeping secrets out of what is written down: configs, transcripts, checkpoints, errors.

A secret is what stands under a telling name ("api_key", "token", "password"), the value of an environment variable of
such a name, the credentials in a URL, and what has the form of a well-known service's token. In its place stands
`<secret 1f2e3d4c>`: eight digits of a digest, by which two runs can tell whether theirs is the same.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any

_LAST_WORDS = frozenset(
    (
        "token",
        "secret",
        "password",
        "passwd",
        "passphrase",
        "credential",
        "credentials",
        "authorization",
        "bearer",
        "cookie",
    )
)
_KEYS = frozenset(("api", "access", "secret", "private", "auth", "account", "encryption", "signing"))
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SHORTEST = 8
"""Shorter values of environment variables are not looked for: they would be found everywhere."""
_URL = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]{1,20}://)([^\s/?#@\"'<>]{1,500})@")
_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,100}|sk-[A-Za-z0-9_-]{20,200}|gh[pousr]_[A-Za-z0-9]{36,100}|xox[abp]-[A-Za-z0-9-]{10,100}"
    r"|AKIA[A-Z0-9]{16}|pypi-[A-Za-z0-9_-]{50,300})"
)
_ASSIGNED = re.compile(
    r"([A-Za-z][A-Za-z0-9_-]{1,60})([\"']?\s{0,3}[:=]\s{0,3})(?:\"([^\"]{1,2000})\"|'([^']{1,2000})'|[\"']?([^\s\"',;&}\])<]{1,2000}))"
)


def is_secret_name(name: str) -> bool:
    """Whether what stands under a name is a secret: "HF_TOKEN", "apiKey", "db-password", but not "max_tokens"."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words:
        return False
    *before, last = words
    return last in _LAST_WORDS or last == "apikey" or (last == "key" and bool(_KEYS & set(before)))


def redacted(config: Any) -> Any:
    """Settings with `<secret ...>` for each secret in them, however deep: by their names, and in texts.

    Args:
        config: anything; mappings, lists and tuples are looked through, other objects stay.
    """
    return _redacted(config, "", True, _of_environment())


def redacted_texts(value: Any) -> Any:
    """Conversations and the like with `<secret ...>` for each secret in a text; what texts are called plays no part."""
    return _redacted(value, "", False, _of_environment())


def redacted_message(text: str) -> str:
    """An error's message with `<secret ...>` for each secret in it, those that follow a telling name included."""
    return _ASSIGNED.sub(_assigned, _in_text(text, _of_environment()))


def _redacted(value: Any, name: str, by_name: bool, known: list[str]) -> Any:
    if isinstance(value, str):
        return _mark(value) if by_name and value and is_secret_name(name) else _in_text(value, known)
    if isinstance(value, Mapping):
        return {
            key: _redacted(inner, key if isinstance(key, str) else "", by_name, known) for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_redacted(inner, name, by_name, known) for inner in value]
    return value


def _in_text(text: str, known: list[str]) -> str:
    for secret in known:
        if secret in text:
            text = text.replace(secret, _mark(secret))
    text = _URL.sub(lambda found: f"{found[1]}{_mark(found[2])}@", text)
    return _FORMS.sub(lambda found: _mark(found[0]), text)


def _assigned(found: re.Match[str]) -> str:
    given = found[3] or found[4] or found[5]
    if not is_secret_name(found[1]) or given.startswith("<secret"):
        return found[0]
    return found[1] + found[2] + _mark(given)


def _of_environment() -> list[str]:
    """Longest first, for one may be part of another."""
    found = {value for name, value in os.environ.items() if len(value) >= _SHORTEST and is_secret_name(name)}
    return sorted(found, key=len, reverse=True)


def _mark(secret: str) -> str:
    if re.fullmatch(r"<secret [0-9a-f]{8}>", secret):
        return secret
    return f"<secret {hashlib.blake2b(secret.encode('utf-8', 'surrogatepass'), digest_size=4).hexdigest()}>"
