"""The licences of what loragym stands on: `python tests/licences.py` lists what nobody has looked at or wanted.

Read from the metadata of the installed distributions that loragym's own requirements lead to, those of the extras that
are installed included; nothing is fetched. `licences.toml` beside this file holds what was found and is permitted.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
LIST = Path(__file__).with_name("licences.toml")

FAMILIES = {
    "AGPL": r"\bAGPL|affero",
    "LGPL": r"\bLGPL|lesser general public",
    "GPL": r"(?<![AL])\bGPL|(?<!lesser )(?<!affero )general public licen[cs]e",
    "Apache-2.0": r"apache",
    "MPL-2.0": r"\bMPL|mozilla public",
    "BSD": r"\b0?BSD|kiwi licen",
    "MIT": r"\bMIT\b",
    "PSF": r"\bPSF|python software foundation|matplotlib",
    "ISC": r"\bISC\b",
    "BSL-1.0": r"\bBSL-1|boost",
    "Zlib": r"zlib",
    "CC0-1.0": r"\bCC0",
    "CNRI": r"\bCNRI",
    "Unlicense": r"unlicense|public domain",
    "Llama": r"llama \d* ?community",
    "NVIDIA": r"nvidia|LicenseRef-NVIDIA",
}
"""A licence's family by what its name or text has in it."""


def families(text: str) -> frozenset[str]:
    """The families that a licence's name, expression or text belongs to."""
    return frozenset(name for name, pattern in FAMILIES.items() if re.search(pattern, text, re.IGNORECASE))


def declared(found: metadata.Distribution) -> frozenset[str]:
    """The families that a distribution's metadata name; none where they are silent.

    An expression counts first, then the classifiers, then the beginning of the free text.
    """
    about = found.metadata
    classifiers = " ".join(name for name in about.get_all("Classifier") or () if name.startswith("License ::"))
    for text in (about.get("License-Expression") or "", classifiers, (about.get("License") or "")[:200]):
        if known := families(text):
            return known
    return frozenset()


def closure(
    requirements: Iterable[str], extras: Mapping[str, Iterable[str]] | None = None
) -> dict[str, metadata.Distribution]:
    """All installed distributions that the requirements lead to, by their normalised names."""
    found: dict[str, metadata.Distribution] = {}
    done: set[tuple[str, str]] = set()
    waiting = [Requirement(text) for text in requirements]
    waiting += [Requirement(text) for texts in (extras or {}).values() for text in texts]
    while waiting:
        wanted = waiting.pop()
        name = normalised(wanted.name)
        try:
            distribution = metadata.distribution(wanted.name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = distribution
        for extra in {"", *wanted.extras}:
            if (name, extra) in done:
                continue
            done.add((name, extra))
            for needed in map(Requirement, distribution.requires or ()):
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append(needed)
    found.pop("loragym", None)
    return found


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def problems(found: Mapping[str, frozenset[str]], known: Mapping[str, object]) -> list[str]:
    """A line for each distribution that may not be there, or that has not been looked at.

    Args:
        found: families by distribution, as the metadata declare them.
        known: the content of `licences.toml`.
    """
    permitted = set(known["permitted"])  # type: ignore[call-overload]
    listed: Mapping[str, str] = known["distributions"]  # type: ignore[assignment]
    exceptions: Mapping[str, str] = known["exceptions"]  # type: ignore[assignment]
    lines = []
    for name, declares in sorted(found.items()):
        says = " and ".join(sorted(declares)) or "nothing"
        entry = next((pattern for pattern in listed if fnmatch(name, pattern)), None)
        if entry is None:
            lines.append(
                f"{name}: its metadata say {says}. Read its licence; if it may be used, add to {LIST.name}:\n"
                f'    {name} = "{says}"'
            )
            continue
        agreed = families(listed[entry])
        if declares and declares != agreed:
            lines.append(
                f"{name}: its metadata say {says}, {LIST.name} says {listed[entry]}. Read its licence again, and "
                "correct the list or pin an older version"
            )
        if entry not in exceptions and not (agreed and agreed <= permitted):
            forbidden = ", ".join(sorted(agreed - permitted)) or listed[entry]
            lines.append(
                f"{name}: {forbidden} is not permitted ({', '.join(sorted(permitted))} are). Do without it, or say in "
                f"[exceptions] of {LIST.name} why it does no harm"
            )
    return lines


def main() -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = closure(project["dependencies"], project["optional-dependencies"])
    known = tomllib.loads(LIST.read_text(encoding="utf-8"))
    found = problems({name: declared(distribution) for name, distribution in installed.items()}, known)
    print("\n".join(found) if found else f"{len(installed)} distributions have licences that are permitted")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
