"""`PythonTool`: a tool that runs Python code which a model wrote. Read the risk before you use it.

THE RISK. Code from a model is run on your machine, as your user. It runs in a process of its own with limits of time,
memory, file size and output, with an empty environment and in a temporary directory; on Linux, where the kernel allows,
also without network, without new processes, and with no files but the interpreter's own and that directory. That stops
accidents and the usual mischief. It is no proof against an attacker who knows a hole in the kernel, and on systems
other than Linux only the limits remain: there the code can read your files and use your network. For code you have
reason to fear, use a virtual machine or a container without your data in it. `PythonTool.isolation` says what holds on
this machine; `require` makes what you rely on a condition.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from .tool import ToolOptions

logger = logging.getLogger(__name__)

Protection = Literal["network", "files", "processes", "signals", "pids", "disk", "file_size", "memory", "cpu"]
MAX_CODE_CHARS = 100_000
_MEANS = ("namespaces", "landlock", "seccomp")
_SCRIPT = Path(__file__).with_name("python_sandbox.py")
_CHUNK = 65536
_GRACE = 5.0
"""Seconds beyond the tool's own limit after which the environment gives the call up, should all else fail."""
ENDING_SECONDS = 10.0
"""How long a killed process may take to be gone."""
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")
_DEVICES = ("/dev/urandom", "/dev/random", "/dev/zero")


class PythonToolUnavailable(RuntimeError):
    """The code cannot be run as safely as was asked for; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """What shuts the code in on this machine.

    Attributes:
        active: for each thing that is protected, the means that protect it.
        missing: means that this system does not offer, and why.
    """

    active: dict[str, tuple[str, ...]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{name} ({', '.join(means)})" for name, means in self.active.items()]
        text = "protected: " + (", ".join(parts) or "nothing")
        if self.missing:
            text += "; not available: " + ", ".join(f"{name} ({why})" for name, why in self.missing.items())
        return text


class PythonTool:
    """Runs Python code in a fresh process and returns what it printed; give it to a `ToolEnv` among its `tools`.

    Nothing is kept from one call to the next. See the module's docstring for the risk.

    Attributes:
        isolation: what shuts the code in, found out by a trial run.

    Args:
        i_understand_that_model_code_runs_on_this_machine: True, or the tool is not made.
        time_limit: seconds of wall time; then the process is killed, with all it started. The limit of processor time
            is the same, rounded up.
        memory_mb: address space; what goes beyond fails with MemoryError.
        disk_mb: size of the working directory, and of each file in it.
        max_output_chars: when more is printed the process is killed, and the beginning is returned.
        packages: whether the code may import what is installed beside the standard library.
        readable: further files and folders that the code may read.
        require: what must be protected, such as ("network", "files"); the tool is not made, and no code is run, where
            it is not.
        without: means not to use ("namespaces", "landlock", "seccomp"), for systems where one does harm.

    Raises:
        PermissionError: the risk was not accepted, or the code would run as root with all files within its reach.
        PythonToolUnavailable: the system is not POSIX, or lacks what `require` names.
        ValueError: a limit is out of its range.
    """

    name = "python"

    def __init__(
        self,
        *,
        i_understand_that_model_code_runs_on_this_machine: bool = False,
        time_limit: float = 5.0,
        memory_mb: int = 512,
        disk_mb: int = 16,
        max_output_chars: int = 4000,
        packages: bool = False,
        readable: Sequence[str | Path] = (),
        require: Sequence[Protection] = (),
        without: Sequence[str] = (),
    ) -> None:
        if i_understand_that_model_code_runs_on_this_machine is not True:
            raise PermissionError(
                "PythonTool runs code that a model wrote on this machine; read the risk in "
                "loragym.envs.tools.python_tool, then pass i_understand_that_model_code_runs_on_this_machine=True"
            )
        if os.name != "posix":
            raise PythonToolUnavailable(f"PythonTool needs a POSIX system for its limits, got {sys.platform}")
        for limit, value in {
            "time_limit": time_limit,
            "memory_mb": memory_mb,
            "disk_mb": disk_mb,
            "max_output_chars": max_output_chars,
        }.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{limit} is a positive number, got {value!r}")
        if memory_mb < 64:
            raise ValueError(f"memory_mb is at least 64, which the interpreter itself needs, got {memory_mb!r}")
        if not set(require) <= set(get_args(Protection)):
            raise ValueError(f"require names what is to be protected, of {get_args(Protection)}, got {require!r}")
        if not set(without) <= set(_MEANS):
            raise ValueError(f"without names means, of {_MEANS}, got {without!r}")
        self.time_limit, self.memory_mb, self.disk_mb = time_limit, memory_mb, disk_mb
        self.max_output_chars, self.packages = max_output_chars, packages
        self.readable = tuple(str(Path(path).resolve()) for path in readable)
        self.require, self.without = tuple(require), tuple(without)
        # The environment's own clock must not run out first.
        self.__loragym_tool__ = ToolOptions(name=self.name, time_limit=time_limit + _GRACE, concurrent=True)
        self.isolation = self._try_out()

    def __call__(self, code: str) -> str:
        """Runs Python code and returns what it prints; the value of a last expression is printed as well.

        Every call starts afresh: variables, files and imports of earlier calls are gone. There is no network.

        Args:
            code: a whole program, in several lines if need be.
        """
        return self._run(code)[0]

    def _try_out(self) -> Isolation:
        text, report = self._run("print('ready')")
        if report.failed or (not report.refused and text.strip() != "ready"):
            raise PythonToolUnavailable(f"a trial run failed: {report.failed or text}")
        isolation = Isolation({name: tuple(means) for name, means in report.active.items()}, report.missing)
        if report.refused:
            raise PythonToolUnavailable(f"require={self.require}: {report.refused} cannot be had here. {isolation}")
        if os.geteuid() == 0 and not {"files", "processes"} <= isolation.active.keys():
            raise PermissionError(
                "PythonTool would run model code as root, with every file within reach or free to start processes; run "
                f"as another user. {isolation}"
            )
        unprotected = [name for name in ("network", "files", "processes") if name not in isolation.active]
        if unprotected:
            logger.warning("PythonTool: model code is not kept from %s on this machine. %s", unprotected, isolation)
        return isolation

    def _run(self, code: str) -> tuple[str, _Report]:
        if len(code) > MAX_CODE_CHARS:
            raise ValueError(f"the code has {len(code)} characters; at most {MAX_CODE_CHARS} are run")
        work = tempfile.mkdtemp(prefix="loragym-python-")
        report_read, report_write = os.pipe()
        try:
            with tempfile.TemporaryFile() as source:
                source.write(code.encode("utf-8", "surrogatepass"))
                source.seek(0)
                process = subprocess.Popen(
                    self._command(os.path.realpath(work), report_write),
                    stdin=source,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=_ENVIRONMENT,
                    cwd=work,
                    pass_fds=(report_write,),
                    start_new_session=True,
                )
            os.close(report_write)
            report_write = -1
            with process:
                text = self._watch(process)
            return text, _read_report(report_read)
        finally:
            os.close(report_read)
            if report_write >= 0:
                os.close(report_write)
            _remove(work)

    def _command(self, work: str, report: int) -> list[str]:
        size = self.disk_mb * 2**20
        limits = {
            "CPU": math.ceil(self.time_limit),
            "AS": self.memory_mb * 2**20,
            "FSIZE": size,
            "NOFILE": 64,
            "CORE": 0,
        }
        facts = [("work", work), ("report", report), ("disk", size)]
        facts += [("limit", f"{name}:{value}") for name, value in limits.items()]
        facts += [("use", name) for name in _MEANS if name not in self.without]
        facts += [("require", name) for name in self.require]
        readable = [*_interpreter_paths(self.packages), *_LIBRARIES, *_DEVICES, *self.readable]
        facts += [("readable", path) for path in readable]
        flags = ["-P", "-s", "-B", "-u", "-X", "utf8", *([] if self.packages else ["-S"])]
        return [sys.executable, *flags, str(_SCRIPT), *(f"{key}={value}" for key, value in facts)]

    def _watch(self, process: subprocess.Popen[bytes]) -> str:
        """Reads what the process prints until it ends, takes too long or prints too much; it does not survive this."""
        deadline = time.monotonic() + self.time_limit
        # A character has at most four bytes.
        room = 4 * self.max_output_chars
        output = bytearray()
        end = ""
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                while not end:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        end = f"killed: it took longer than {self.time_limit:g} seconds"
                    elif selector.select(min(left, 0.1)):
                        chunk = process.stdout.read(_CHUNK)
                        output += chunk or b""
                        if len(output) > room:
                            end = "killed: it printed too much"
                        elif chunk == b"":
                            end = self._wait(process, deadline)
                    elif process.poll() is not None:
                        end = _exit_note(process.returncode)
        finally:
            _kill_group(process)
        text = output[: room + 1].decode("utf-8", "replace")
        cut = len(text) > self.max_output_chars
        text = text[: self.max_output_chars] + (f"\n[cut after {self.max_output_chars} characters]" if cut else "")
        note = "" if end == _FINE else f"[{end}]"
        return "\n".join(part for part in (text.rstrip("\n"), note) if part) or "[no output]"

    def _wait(self, process: subprocess.Popen[bytes], deadline: float) -> str:
        """The code has closed its output; it may work on until the time is up."""
        try:
            return _exit_note(process.wait(max(0.0, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            return f"killed: it took longer than {self.time_limit:g} seconds"


_FINE = "fine"
_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "PATH": os.defpath,
    # The order of sets is the same in every run.
    "PYTHONHASHSEED": "0",
    # Threads of numeric libraries would reserve address space beyond the limit.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


def _exit_note(status: int) -> str:
    """What an exit status means; the process in the middle passes a signal on as 128 and more."""
    if status == 0:
        return _FINE
    number = -status if status < 0 else status - 128
    if number > 0:
        try:
            return f"killed by {signal.Signals(number).name}"
        except ValueError:
            pass
    return f"exit status {status}"


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills the process and its whole group; it leads a session of its own, so that group is nobody else's."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # already gone; macOS says so with EPERM
        process.kill()
    # What is killed and does not die is in the kernel's hands, and goes when they let go.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(ENDING_SECONDS)


def _interpreter_paths(packages: bool) -> list[str]:
    """What the interpreter reads to run: its standard library, and with `packages` what is installed beside it."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    roots = dict.fromkeys((sys.base_prefix, sys.base_exec_prefix))
    paths = [str(Path(root, sys.platlibdir, version)) for root in roots]
    paths += [str(Path(root, "lib", version)) for root in roots]
    paths += [str(Path(root, "lib")) for root in roots if root not in ("/", "/usr")]
    paths.append(str(_SCRIPT))
    if packages:
        paths += [path for path in sys.path if path and Path(path).name in ("site-packages", "dist-packages")]
    return list(dict.fromkeys(os.path.realpath(path) for path in paths))


@dataclass(slots=True)
class _Report:
    """What the process said of how it is shut in, before the code ran."""

    active: dict[str, list[str]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    failed: str = ""


def _read_report(descriptor: int) -> _Report:
    parts = []
    # The process is dead, so all that it wrote is there and the other end is closed.
    while part := os.read(descriptor, _CHUNK):
        parts.append(part)
    report = _Report()
    for line in b"".join(parts).decode("utf-8", "replace").splitlines():
        kind, _, rest = line.partition(" ")
        name, _, more = rest.partition(" ")
        if kind == "active":
            report.active.setdefault(name, []).append(more)
        elif kind == "missing":
            report.missing[name] = more
        elif kind == "refused":
            report.refused.append(name)
        else:
            report.failed = rest
    if not (report.active or report.failed):
        report.failed = "the process ended before it could report how it is shut in"
    return report


def _remove(folder: str) -> None:
    """Removes the working directory, whatever rights the code has left on it and however deep it is nested."""
    try:
        shutil.rmtree(folder)
    except (OSError, RecursionError):
        # Neither command follows the links that it meets.
        for command in (["chmod", "-R", "u+rwX", folder], ["rm", "-rf", folder]):
            subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if os.path.lexists(folder):
            logger.warning("PythonTool: cannot remove %s", folder)
