"""Known vulnerabilities of what is installed: `python tests/vulnerabilities.py` asks pip-audit, if it can.

Without pip-audit, or without a network to its database, it says so and finds nothing wrong: a check that works on an
aeroplane must not depend on it.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

SECONDS = 120


def main() -> int:
    if importlib.util.find_spec("pip_audit") is None:
        print("vulnerabilities: not looked for (pip-audit is not installed: pip install pip-audit)")
        return 0
    command = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--skip-editable", "--timeout", "20"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        print(f"vulnerabilities: not looked for (pip-audit took more than {SECONDS} s)")
        return 0
    return verdict(done.returncode, done.stdout, done.stderr)


def verdict(code: int, output: str, errors: str) -> int:
    """What pip-audit's ending means: 1 if it found something, 0 if it did not or could not look."""
    if code == 0:
        print("vulnerabilities: none known")
        return 0
    if "known vulnerabilit" in errors:
        print(output + errors + "Update what is named, or pin a version that is not affected.")
        return 1
    last = (errors.strip().splitlines() or ["it said nothing"])[-1]
    print(f"vulnerabilities: not looked for (pip-audit: {last[:200]})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
