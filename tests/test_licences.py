"""What loragym stands on and ships may be used as it is: the check says so, and says what to do where it may not."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import licences
import pytest
import vulnerabilities

ROOT = Path(__file__).resolve().parent.parent
KNOWN = {
    "permitted": ["MIT", "Apache-2.0"],
    "exceptions": {"odd": "nobody imports it"},
    "distributions": {"good": "MIT", "bad": "GPL", "odd": "GPL", "silent": "MIT", "strange": "Beerware"},
}


def found(name: str, *families: str) -> list[str]:
    return licences.problems({name: frozenset(families)}, KNOWN)


def test_the_licences_of_all_that_is_installed_are_permitted(capsys: pytest.CaptureFixture[str]) -> None:
    assert licences.main() == 0, capsys.readouterr().out


def test_torch_and_its_kin_are_looked_at() -> None:
    names = set(licences.closure(["torch", "gymnasium[classic-control]"]))
    assert {"torch", "gymnasium", "numpy", "sympy", "mpmath"} <= names


@pytest.mark.parametrize(("name", "family"), [("good", "MIT"), ("odd", "GPL")])
def test_what_is_permitted_or_excepted_passes(name: str, family: str) -> None:
    assert found(name, family) == []


def test_what_the_metadata_do_not_say_the_list_does() -> None:
    assert found("silent") == []


def test_what_nobody_has_looked_at_is_named_with_the_line_to_add() -> None:
    (line,) = found("new", "BSD")
    assert line.startswith("new: its metadata say BSD") and 'new = "BSD"' in line


def test_what_is_forbidden_is_named() -> None:
    (line,) = found("bad", "GPL")
    assert "GPL is not permitted (Apache-2.0, MIT are)" in line


def test_a_licence_of_no_known_family_is_not_permitted() -> None:
    (line,) = found("strange")
    assert "Beerware is not permitted" in line


def test_a_licence_that_changed_is_named() -> None:
    (line,) = found("good", "AGPL")
    assert "its metadata say AGPL, licences.toml says MIT" in line


@pytest.mark.parametrize(
    ("text", "families"),
    [
        ("MIT License", {"MIT"}),
        ("Apache-2.0 OR BSD-2-Clause", {"Apache-2.0", "BSD"}),
        ("GPL-3.0+", {"GPL"}),
        ("LGPL-2.1-only", {"LGPL"}),
        ("GNU Lesser General Public License v2 (LGPLv2)", {"LGPL"}),
        ("GNU General Public License v3 or later (GPLv3+)", {"GPL"}),
        ("GNU Affero General Public License v3", {"AGPL"}),
        ("AGPL-3.0-only", {"AGPL"}),
        ("Mozilla Public License 2.0 (MPL 2.0)", {"MPL-2.0"}),
        ("do what you like", set()),
    ],
)
def test_families_of_licences(text: str, families: set[str]) -> None:
    assert licences.families(text) == families


@pytest.mark.parametrize(
    ("code", "errors", "verdict"),
    [
        (0, "No known vulnerabilities found", 0),
        (1, "Found 2 known vulnerabilities in 1 package", 1),
        (1, "ConnectionError: x", 0),
        (1, "", 0),
    ],
)
def test_only_what_is_known_to_be_vulnerable_fails(code: int, errors: str, verdict: int) -> None:
    assert vulnerabilities.verdict(code, "", errors) == verdict


def test_the_licences_of_shipped_data_are_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license-files"]
    assert all((ROOT / name).is_file() for name in declared)
    texts = {str(path.relative_to(ROOT)) for path in (ROOT / "envs").rglob("LICENSE*")} | {"LICENSE"}
    assert texts == set(declared)


@pytest.mark.slow
def test_the_wheel_holds_the_licences_of_what_it_ships(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    (about,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
    assert f"{about}/licenses/LICENSE" in names
    assert f"{about}/licenses/envs/tools/search/facts/data/LICENSES.md" in names
    assert "loragym/envs/tools/search/facts/data/LICENSES.md" in names
