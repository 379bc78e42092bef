"""Code that a model wrote runs shut in, and nothing of it is left when the call is over."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loragym.envs.tools import Tool, ToolEnv
from loragym.envs.tools import python_tool as python_tool_module
from loragym.envs.tools.python_tool import PythonTool, PythonToolUnavailable
from loragym.messages import Message, user

if os.name != "posix":
    pytest.skip("PythonTool needs a POSIX system", allow_module_level=True)

ACCEPTED = {"i_understand_that_model_code_runs_on_this_machine": True}
_SCRIPT = str(python_tool_module._SCRIPT).encode()
ALL_MEANS = ("namespaces", "landlock", "seccomp")


def python_tool(**options: Any) -> PythonTool:
    return PythonTool(**{**ACCEPTED, "time_limit": 10.0, **options})


def make_or_none(**options: Any) -> PythonTool | None:
    try:
        return python_tool(**options)
    except (PermissionError, PythonToolUnavailable):
        return None


FULL = make_or_none()
WITHOUT_NAMESPACES = make_or_none(without=["namespaces"])
WITHOUT_SECCOMP = make_or_none(without=["seccomp"])


def protects(tool: PythonTool | None, *names: str) -> bool:
    return tool is not None and set(names) <= tool.isolation.active.keys()


needs_tool = pytest.mark.skipif(FULL is None, reason="run as root without Landlock or seccomp")


def shut_in(*names: str) -> list[Any]:
    """The ways to be shut in that this machine has, of which each protects `names` on its own."""
    ways = {"all": FULL, "no namespaces": WITHOUT_NAMESPACES, "no seccomp": WITHOUT_SECCOMP}
    found = [pytest.param(tool, id=way) for way, tool in ways.items() if protects(tool, *names)]
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=f"nothing here protects {names}"))]


def run(code: str, tool: PythonTool | None = None) -> str:
    chosen = tool or FULL
    assert chosen is not None
    return chosen(textwrap.dedent(code))


def test_the_risk_must_be_accepted_in_so_many_words() -> None:
    with pytest.raises(PermissionError, match="i_understand_that_model_code_runs_on_this_machine=True"):
        PythonTool()
    with pytest.raises(PermissionError):
        PythonTool(i_understand_that_model_code_runs_on_this_machine=1)  # type: ignore[arg-type]


def test_the_package_of_tools_does_not_offer_it() -> None:
    code = (
        "import sys, loragym.envs.tools as tools;"
        "print(hasattr(tools, 'PythonTool'), 'loragym.envs.tools.python_tool' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False False", done.stderr


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"time_limit": 0}, "time_limit is a positive number"),
        ({"time_limit": float("inf")}, "time_limit is a positive number"),
        ({"memory_mb": 10}, "memory_mb is at least 64"),
        ({"max_output_chars": -1}, "max_output_chars is a positive number"),
        ({"require": ["magic"]}, "require names what is to be protected"),
        ({"without": ["magic"]}, "without names means"),
    ],
)
def test_a_bad_option_is_refused_at_once(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        python_tool(**options)


def test_what_is_required_and_cannot_be_had_is_refused() -> None:
    with pytest.raises((PythonToolUnavailable, PermissionError), match=r"network|root"):
        python_tool(require=["network"], without=ALL_MEANS)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused")
@pytest.mark.parametrize("without", [ALL_MEANS, ["landlock"], ["namespaces", "seccomp"]])
def test_root_is_refused_where_files_or_processes_are_within_reach(without: Sequence[str]) -> None:
    with pytest.raises(PermissionError, match="as root"):
        python_tool(without=without)


@needs_tool
def test_it_says_what_is_protected_and_by_what() -> None:
    assert FULL is not None
    isolation = FULL.isolation
    assert {"memory", "cpu", "file_size"} <= isolation.active.keys()
    assert str(isolation).startswith("protected: ")
    if WITHOUT_NAMESPACES is not None:
        assert "namespace" not in WITHOUT_NAMESPACES.isolation.active.get("network", ())
        assert "pids" not in WITHOUT_NAMESPACES.isolation.active


@needs_tool
@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("1 + 1", "2"),
        ("x = 3\nprint('x is', x)\nx * 2", "x is 3\n6"),
        ("x = 1", "[no output]"),
        ("", "[no output]"),
        ("None", "[no output]"),
        ("'ü' * 3", "'üüü'"),
        ("if __name__ == '__main__': print('main')", "main"),
        ("def f(n): return 1 if n < 2 else n * f(n - 1)\nf(20)", "2432902008176640000"),
        ("import sys; print('out'); print('err', file=sys.stderr)", "out\nerr"),
        ("import sys; sys.exit(3)", "[exit status 3]"),
        ("import sys; print(sys.argv, input.__name__)", "[''] input"),
        ("print(__import__('sys').stdin.read() == '')", "True"),
        (
            "import math, json, random, statistics, fractions, itertools, re, decimal\nmath.gcd(12, 18)",
            "6",
        ),
        ("import threading\nt = threading.Thread(target=print, args=('thread',)); t.start(); t.join()", "thread"),
        ("import asyncio\nasync def f(): return 5\nasyncio.run(f())", "5"),
        ("open('note', 'w').write('kept'); open('note').read()", "'kept'"),
        ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\nP(3)", "P(x=3)"),
    ],
)
def test_code_runs_and_its_output_comes_back(code: str, output: str) -> None:
    assert run(code) == output


@needs_tool
def test_errors_come_back_as_a_traceback_of_the_code_alone() -> None:
    assert run("def f():\n    return 1 / 0\nf()") == (
        "Traceback (most recent call last):\n"
        '  File "<code>", line 3, in <module>\n'
        '  File "<code>", line 2, in f\n'
        "ZeroDivisionError: division by zero\n"
        "[exit status 1]"
    )
    broken = run("def f(:")
    assert broken.startswith('  File "<code>", line 1') and "SyntaxError" in broken
    assert "ast.py" not in broken
    for hostile in ("\x00", "(" * 5000, "-" * 90_000 + "1", "x = '" + "a" * 50, "\ud800"):
        assert "[exit status 1]" in run(hostile)


@needs_tool
def test_every_call_starts_afresh_and_leaves_nothing_behind() -> None:
    before = set(Path(tempfile.gettempdir()).glob("loragym-python-*"))
    run("x = 1; open('file', 'w').write('a')")
    assert "NameError" in run("x")
    assert "FileNotFoundError" in run("open('file')")
    assert set(Path(tempfile.gettempdir()).glob("loragym-python-*")) == before


@pytest.mark.skipif(WITHOUT_NAMESPACES is None, reason="with a file system of its own nothing is there to remove")
def test_the_working_directory_is_removed_whatever_was_made_of_it(tmp_path: Path) -> None:
    before = set(Path(tempfile.gettempdir()).glob("loragym-python-*"))
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o500)
    for code in (
        "import os; os.makedirs('a/b'); open('a/b/c', 'w').close(); os.chmod('a/b', 0); os.chmod('a', 0)",
        "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')",
        f"import os; os.mkdir('a'); os.symlink({str(theirs)!r}, 'a/link'); os.chmod('a', 0)",
        "import os; os.mkfifo('pipe'); os.chmod('.', 0)",
    ):
        assert run(code, WITHOUT_NAMESPACES) == "[no output]"
        assert set(Path(tempfile.gettempdir()).glob("loragym-python-*")) == before
    assert theirs.stat().st_mode & 0o777 == 0o500, "a link to somebody else's folder is not followed"


@needs_tool
def test_the_order_of_sets_is_the_same_in_every_run() -> None:
    code = "print({'a', 'b', 'c', 'd', 'e'})"
    assert run(code) == run(code)


@needs_tool
def test_the_environment_variables_of_the_caller_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    seen = run("import os; print(sorted(os.environ))")
    assert "SECRET" not in seen and "HOME" not in seen


@pytest.mark.parametrize(
    "code",
    ["while True: pass", "import time; time.sleep(100)", "import os; os.close(1); os.close(2)\nwhile True: pass"],
)
@needs_tool
def test_an_infinite_loop_is_killed_on_time(code: str) -> None:
    quick = python_tool(time_limit=0.7)
    start = time.perf_counter()
    assert run(code, quick) == "[killed: it took longer than 0.7 seconds]"
    assert time.perf_counter() - start < 3


@needs_tool
def test_signals_and_handlers_do_not_prolong_its_life() -> None:
    quick = python_tool(time_limit=0.7)
    code = """
        import signal, time
        for number in range(1, 32):
            try:
                signal.signal(number, lambda *_: print('no'))
            except (OSError, ValueError):
                pass
        print('armed', flush=True)
        while True:
            try:
                time.sleep(1)
            except BaseException:
                pass
    """
    assert run(code, quick) == "armed\n[killed: it took longer than 0.7 seconds]"


@needs_tool
def test_processor_time_is_limited_too() -> None:
    # Two busy threads that hold no lock use up the processor time before the wall time is over, on two free cores;
    # on one core both end at once. Either way it is dead.
    quick = python_tool(time_limit=1.0)
    code = """
        import hashlib, threading
        def burn():
            while True: hashlib.sha256(bytes(10**6))
        for _ in range(4): threading.Thread(target=burn).start()
    """
    start = time.perf_counter()
    assert "killed" in run(code, quick)
    assert time.perf_counter() - start < 4


@needs_tool
@pytest.mark.parametrize(
    "code", ["while True: print('x' * 1000)", "import os\nwhile True: os.write(2, b'\\xff' * 65536)"]
)
def test_a_flood_of_output_is_cut_and_ended(code: str) -> None:
    start = time.perf_counter()
    text = run(code)
    assert time.perf_counter() - start < 5
    assert len(text) < 4200
    assert text.endswith("[cut after 4000 characters]\n[killed: it printed too much]")


@needs_tool
def test_output_up_to_the_limit_is_whole() -> None:
    assert run("print('x' * 3999)") == "x" * 3999
    assert run("print('ü' * 4000, end='')") == "ü" * 4000
    assert run("print('x' * 5000)").endswith("x\n[cut after 4000 characters]")


@needs_tool
@pytest.mark.parametrize(
    "code",
    ["bytearray(10**10)", "x = []\nwhile True: x.append(bytearray(10**7))", "import mmap; mmap.mmap(-1, 10**10)"],
)
def test_a_memory_hog_fails_by_itself(code: str) -> None:
    text = run(code)
    assert "MemoryError" in text or "Cannot allocate memory" in text


@needs_tool
def test_files_are_bounded() -> None:
    assert "File too large" in run("open('x', 'wb').write(bytes(10**8))") or "No space left" in run(
        "open('x', 'wb').write(bytes(10**8))"
    )


@pytest.mark.parametrize("tool", shut_in("disk"))
def test_all_files_together_are_bounded(tool: PythonTool) -> None:
    code = """
        for number in range(10_000):
            with open(f'f{number}', 'wb') as file: file.write(bytes(10**6))
    """
    assert "No space left on device" in run(code, tool)
    assert "No space left on device" in run("for n in range(10_000): open(f'f{n}', 'w').close()", tool)


FORKS = [
    "import os; os.fork()",
    "import os\nwhile True: os.fork()",
    "import subprocess; subprocess.run(['true'])",
    "import os; os.system('true') and exit(9)",
    "import os; os.posix_spawn('/bin/true', ['true'], {})",
    "import os; os.execv('/bin/true', ['true'])",
    "import multiprocessing as m; p = m.get_context('fork').Process(target=print); p.start()",
    "import ctypes; r = ctypes.CDLL(None).fork(); print('STARTED' if r >= 0 else 'PermissionError')",
    "import ctypes; r = ctypes.CDLL(None).syscall(56, 17, 0, 0, 0); print('STARTED' if r >= 0 else 'PermissionError')",
    "import ctypes; a = (ctypes.c_uint64 * 11)(); a[4] = 17; r = ctypes.CDLL(None).syscall(435, a, 88); "
    "print('STARTED' if r >= 0 else 'PermissionError')",
]


@pytest.mark.parametrize("code", FORKS)
@pytest.mark.parametrize("tool", [t for t in shut_in("processes") if t.id != "no seccomp"])
def test_no_other_process_can_be_started(tool: PythonTool, code: str) -> None:
    text = run(code, tool)
    assert "STARTED" not in text
    assert "PermissionError" in text or "BlockingIOError" in text or "exit status 9" in text or "killed" in text


NETWORK = [
    "import socket; socket.socket()",
    "import socket; socket.socket(socket.AF_UNIX)",
    "import socket; socket.create_connection(('127.0.0.1', {port}), timeout=2)",
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}', timeout=2)",
    "import ctypes; c = ctypes.CDLL(None); print('open' if c.socket(2, 1, 0) >= 0 else 'PermissionError')",
    "import ctypes; c = ctypes.CDLL(None); p = (ctypes.c_char * 120)(); "
    "print('open' if c.syscall(425, 8, p) >= 0 else 'PermissionError')",
]


@pytest.fixture
def listener() -> Any:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.mark.parametrize("code", NETWORK)
@pytest.mark.parametrize("tool", shut_in("network"))
def test_there_is_no_network(tool: PythonTool, code: str, listener: Any) -> None:
    listener.settimeout(0.05)
    text = run(code.replace("{port}", str(listener.getsockname()[1])), tool)
    if "seccomp" in tool.isolation.active["network"]:
        assert "PermissionError" in text or "Operation not permitted" in text
    with pytest.raises(TimeoutError):
        listener.accept()


@pytest.mark.parametrize("tool", shut_in("files"))
def test_no_files_but_the_interpreter_s_own_can_be_read_or_written(tool: PythonTool, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    paths = (
        secret,
        "/etc/passwd",
        "/etc/hostname",
        "/proc/self/environ",
        "/proc/1/environ",
        f"/proc/{os.getpid()}/mem",
    )
    for path in paths:
        text = run(f"open({str(path)!r}, 'rb').read()", tool)
        assert "PermissionError" in text or "FileNotFoundError" in text
        assert "hunter2" not in text
    for code in (
        f"open({str(secret)!r}, 'w').write('x')",
        f"import os; os.remove({str(secret)!r})",
        f"import os; os.rename({str(secret)!r}, 'mine')",
        f"import os; os.link({str(secret)!r}, 'mine'); print(open('mine').read())",
        f"import os; os.symlink({str(secret)!r}, 'mine'); print(open('mine').read())",
        f"import os; os.chmod({str(tmp_path)!r} + '/../x', 0o777)",
        f"import os; os.mkdir({str(tmp_path / 'new')!r})",
        f"import os; os.truncate({str(secret)!r}, 0)",
        "import os; print(os.listdir('/'))",
        "import os; print(os.listdir(os.path.expanduser('~root')))",
        "import os; open(os.path.dirname(os.__file__) + '/mine.py', 'w')",
    ):
        assert "Error" in run(code, tool), code
    assert secret.read_text() == "hunter2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret"]


@pytest.mark.parametrize("tool", shut_in("files"))
def test_what_is_named_readable_can_be_read_but_not_written(tool: PythonTool, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("a,b")
    reader = python_tool(readable=[table], without=tool.without)
    assert run(f"open({str(table)!r}).read()", reader) == "'a,b'"
    assert "PermissionError" in run(f"open({str(table)!r}, 'w')", reader)


@pytest.mark.parametrize("tool", shut_in("signals"))
def test_no_other_process_can_be_reached(tool: PythonTool) -> None:
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        for code in (
            f"import os, signal; os.kill({victim.pid}, signal.SIGKILL)",
            f"import os; os.kill({os.getpid()}, 0)",
            "import os; os.kill(os.getppid(), 9)",
            f"import ctypes; c = ctypes.CDLL(None); print(['Error', 'done'][c.ptrace(16, {victim.pid}, 0, 0) == 0])",
        ):
            text = run(code, tool)
            assert "Error" in text or "killed" in text, code
        run("import os; os.kill(-1, 9)", tool)
        assert victim.poll() is None
        if "seccomp" in tool.isolation.active["signals"]:
            code = f"import resource; resource.prlimit({victim.pid}, resource.RLIMIT_NOFILE, (1, 1))"
            assert "Error" in run(code, tool)
    finally:
        victim.kill()
        victim.wait()


@needs_tool
def test_limits_and_filters_cannot_be_lifted_again() -> None:
    assert "not allowed" in run("import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))")
    assert FULL is not None
    if "seccomp" in FULL.isolation.active.get("processes", ()):
        for call in ("unshare(0x10000000)", "mount(b'none', b'.', b'tmpfs', 0, None)", "chroot(b'.')", "setsid()"):
            text = run(f"import ctypes; print(ctypes.CDLL(None).{call})")
            assert text == "-1", call


@needs_tool
@pytest.mark.parametrize(
    ("code", "note"),
    [
        ("import os; os.abort()", "[killed by SIGABRT]"),
        ("import ctypes; ctypes.string_at(0)", "[killed by SIGSEGV]"),
        ("import os; os.kill(os.getpid(), 15)", "[killed by SIGTERM]"),
        ("import os; os._exit(7)", "[exit status 7]"),
    ],
)
def test_a_crash_is_a_result_like_any_other(code: str, note: str) -> None:
    assert run(code) == note


@needs_tool
def test_recursion_without_end_is_an_error() -> None:
    assert "RecursionError" in run("def f(): f()\nf()")


@needs_tool
def test_code_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="the code has 100001 characters"):
        run("#" * 100_001)


@needs_tool
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_nothing_outlives_a_call() -> None:
    quick = python_tool(time_limit=0.5)
    for code in (
        *FORKS[:3],
        "while True: pass",
        "import os; os.setsid()",
        "import os; os.setpgid(0, 0)\nwhile 1: pass",
    ):
        run(code, quick)
    deadline = time.monotonic() + 3
    while _sandboxes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _sandboxes()


@needs_tool
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_sandbox_dies_with_the_program_that_started_it(tmp_path: Path) -> None:
    code = (
        "import threading, time\n"
        "from loragym.envs.tools.python_tool import PythonTool\n"
        "tool = PythonTool(i_understand_that_model_code_runs_on_this_machine=True, time_limit=60)\n"
        "threading.Thread(target=tool, args=('import time; mark = 271828; time.sleep(50)',), daemon=True).start()\n"
        "time.sleep(1); print('started', flush=True); time.sleep(50)\n"
    )
    # A program that is killed cannot remove its temporary folder.
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert program.stdout is not None and program.stdout.readline().strip() == "started"
    started = _sandboxes()
    assert started
    program.kill()
    program.wait()
    program.stdout.close()
    deadline = time.monotonic() + 5
    while _sandboxes() & started and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _sandboxes() & started


def _sandboxes() -> set[int]:
    """The processes that run the sandbox's script."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(argument == _SCRIPT for argument in arguments):
            found.add(int(folder.name))
    return found


@needs_tool
def test_installed_packages_can_be_let_in() -> None:
    with_packages = python_tool(packages=True, memory_mb=1024)
    assert run("import numpy; int(numpy.arange(5).sum())", with_packages) == "10"
    assert "ModuleNotFoundError" in run("import numpy")


@needs_tool
@settings(max_examples=10, deadline=None)
@given(code=st.text(max_size=60))
def test_any_text_is_code_with_some_result(code: str) -> None:
    assert FULL is not None
    text = FULL(code)
    assert text and len(text) < 4300


class Coding(ToolEnv):
    def opening(self, options: Mapping[str, Any]) -> tuple[Sequence[Message], dict[str, Any]]:
        return [user("What is the twentieth prime?")], {}

    def final_reward(self, messages: tuple[Message, ...]) -> float:
        return float(messages[-1]["content"] == "71")


@needs_tool
def test_it_is_a_tool_like_others() -> None:
    assert FULL is not None
    made = Tool.of(FULL)
    assert made.name == "python" and "starts afresh" in made.description
    assert made.spec["parameters"]["required"] == ["code"]
    assert made.time_limit == FULL.time_limit + 5.0
    env = Coding(tools=[python_tool(time_limit=1.5)], time_limit=0.1)
    env.reset(seed=0)
    codes = ["2 + 2", "while True: pass", "1 / 0", "import time; time.sleep(0.3); 5"]
    start = time.perf_counter()
    results = [message["content"] for message in env.step(env.calling_all([("python", {"code": c}) for c in codes]))[0]]
    assert time.perf_counter() - start < 6
    assert results[0] == "4" and results[1].startswith("[killed: it took longer") and results[3] == "5"
    assert "ZeroDivisionError" in results[2]
    assert env.step("71")[1] == 1.0
    twin = pickle.loads(pickle.dumps(env))
    twin.reset(seed=0)
    assert twin.step(twin.calling("python", code="3"))[0][0]["content"] == "3"


@needs_tool
def test_many_at_once_do_not_mix_their_output() -> None:
    assert FULL is not None
    results: dict[int, str] = {}

    def work(number: int) -> None:
        results[number] = run(f"print({number})")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: str(number) for number in range(8)}
