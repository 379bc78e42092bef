"""The process that runs code a model wrote: it shuts itself in, then runs the code. Started by `python_tool.py` alone.

This file is a script, run by a bare interpreter (`python -P -s -S`); it imports the standard library only, nothing
of the package. Each layer is tried on its own, and what came of it is reported through a pipe before the code runs, so
the code cannot forge it.

Layers, on Linux: resource limits (setrlimit); user, network, process and mount namespaces (unshare); a file system of
which only the interpreter and the working directory are left (Landlock); no new processes, sockets, signals to others
and the like (seccomp). Elsewhere the resource limits stand alone.

Few modules are imported, and none that pulls in many: their import is most of what a call costs.
"""

from __future__ import annotations

import _ast
import ctypes
import os
import resource
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

REFUSED = 97
"""The exit status if a layer that is required is missing; the code has not run then."""
SHUT_IN_FAILED = 98
"""The exit status if the process broke down before the code ran."""

_NEWNS, _NEWUTS, _NEWIPC = 0x00020000, 0x04000000, 0x08000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE = 2, 4, 16384, 1 << 18
_SIGKILL = 9
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63

# Landlock's rights on files, by the version that brought them.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _IOCTL_DEV = 1, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
_FIRST_RIGHTS, _REFER = (1 << 13) - 1, 1 << 13
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_SCOPES_SINCE = 6
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446

# What is denied outright, by system call number on (x86_64, aarch64); None where the call does not exist.
_DENIED: dict[str, tuple[int | None, int]] = {
    "socket": (41, 198),
    "fork": (57, -1),
    "vfork": (58, -1),
    "execve": (59, 221),
    "execveat": (322, 281),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "userfaultfd": (323, 282),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "setpriority": (141, 140),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "swapon": (167, 224),
}
_CLONE, _CLONE3, _KILL, _TGKILL, _PRLIMIT, _SETAFFINITY = (
    (56, 220),
    (435, 435),
    (62, 129),
    (234, 131),
    (302, 261),
    (203, 122),
)
_CLONE_THREAD = 0x00010000
_PROTECTED_BY_LIMIT = {"AS": ("memory",), "CPU": ("cpu",), "FSIZE": ("file_size",), "NPROC": ("processes",)}
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


class Unavailable(Exception):
    """A layer cannot be had on this system; the message says why."""


class Layers:
    """What shuts the process in, by what it protects, and why the rest does not."""

    def __init__(self) -> None:
        self.active: dict[str, list[str]] = {}
        self.missing: dict[str, str] = {}

    def add(self, means: str, *protects: str) -> None:
        for name in protects:
            self.active.setdefault(name, []).append(means)

    def attempt(self, means: str, apply: Callable[[], None], *protects: str) -> None:
        """Applies a layer; notes what it protects, or why it cannot be had."""
        try:
            apply()
        except (Unavailable, OSError, ValueError) as error:
            self.missing[means] = str(error)
        else:
            self.add(means, *protects)

    def report(self, refused: Sequence[str]) -> str:
        """One line for each fact, for `python_tool.py` to read."""
        lines = [f"active {name} {means}" for name, all_means in self.active.items() for means in all_means]
        lines += [f"missing {means} {why}".replace("\n", " ") for means, why in self.missing.items()]
        return "\n".join([*lines, *(f"refused {name}" for name in refused)])


class Config:
    """What `python_tool.py` asks for: one argument of the form key=value for each fact."""

    def __init__(self, arguments: Sequence[str]) -> None:
        pairs = [argument.partition("=")[::2] for argument in arguments]
        self.work = next(value for key, value in pairs if key == "work")
        self.report = int(next(value for key, value in pairs if key == "report"))
        self.disk = int(next(value for key, value in pairs if key == "disk"))
        self.limits = {value.partition(":")[0]: int(value.partition(":")[2]) for key, value in pairs if key == "limit"}
        self.readable = [value for key, value in pairs if key == "readable"]
        self.require = [value for key, value in pairs if key == "require"]
        self.use = {value for key, value in pairs if key == "use"}


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, call: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise Unavailable(f"{call}: {os.strerror(error)}")
    return result


def limit_resources(limits: dict[str, int], layers: Layers) -> None:
    """Limits of the kernel for this process and all it starts; a hard limit cannot be raised again."""
    for name, value in limits.items():

        def lower(name: str = name, value: int = value) -> None:
            number = getattr(resource, f"RLIMIT_{name}")
            _, hard = resource.getrlimit(number)
            lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(number, (lowest, lowest))

        layers.attempt("limit", lower, *_PROTECTED_BY_LIMIT.get(name, ()))


def die_with_parent() -> None:
    """Asks the kernel to end this process when its parent ends, however that comes about."""
    _libc().prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


def unshare() -> None:
    """Namespaces: no network but a loopback that is down, no sight of other processes, mounts of its own."""
    uid, gid = os.getuid(), os.getgid()
    flags = _NEWUSER | _NEWNET | _NEWPID | _NEWIPC | _NEWUTS | _NEWNS
    _checked(_libc().unshare(flags), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        try:
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123 - pathlib takes long to import
                file.write(text)
        except OSError:
            pass  # without a map the process is nobody, which serves as well


def fork_into_namespace(report: int) -> None:
    """Goes on as a process of the new process namespace; the two outside only wait, and pass its end on.

    The first process of a namespace is special: signals to itself do nothing. So the code runs in the second; when the
    first ends, the kernel ends every other.
    """
    for _ in range(2):
        if child := os.fork():
            os.close(report)
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
        die_with_parent()


def mount_work_directory(path: str, size: int) -> None:
    """A file system of bounded size over the working directory; it vanishes with the process."""
    libc = _libc()
    _checked(libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "mount --make-private")
    options = f"size={size},nr_inodes=1024,mode=0700".encode()
    _checked(libc.mount(b"none", path.encode(), b"tmpfs", _MS_NOSUID | _MS_NODEV, options), "mount tmpfs")
    os.chdir(path)


def drop_capabilities() -> None:
    """Inside a user namespace the process would otherwise be its own root."""
    libc = _libc()
    for capability in range(_LAST_CAPABILITY + 1):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    libc.capset(header, bytes(24))


def landlock_version() -> int:
    """Which version of Landlock the kernel has.

    Raises:
        Unavailable: it has none.
    """
    return _checked(_libc().syscall(_LANDLOCK_CREATE, None, 0, 1), "landlock_create_ruleset")


def restrict_files(readable: Sequence[str], writable: Sequence[str], version: int) -> None:
    """Landlock: nothing but these paths can be opened; signals to and sockets of other processes are out of reach."""
    libc = _libc()
    rights = _FIRST_RIGHTS
    rights |= (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    rights |= _IOCTL_DEV if version >= 5 else 0
    network = 3 if version >= 4 else 0
    scopes = 3 if version >= _SCOPES_SINCE else 0
    attributes = struct.pack("=QQQ", rights, network, scopes)
    size = 24 if version >= _SCOPES_SINCE else 16 if version >= 4 else 8
    ruleset = _checked(libc.syscall(_LANDLOCK_CREATE, attributes, size, 0), "landlock_create_ruleset")
    for paths, allowed in ((readable, _READ), (writable, rights & ~_EXECUTE)):
        for path in paths:
            try:
                descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            allowed_here = allowed & rights & (-1 if os.path.isdir(path) else _FILE_RIGHTS)  # noqa: PTH112 - as above
            rule = struct.pack("=Qi", allowed_here, descriptor)
            _checked(libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0), f"landlock_add_rule for {path}")
            os.close(descriptor)
    _checked(libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def _instruction(code: int, k: int, jump_true: int = 0, jump_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, jump_true, jump_false, k)


def seccomp_filter(machine: str, pid: int) -> bytes:
    """The filter program: what is not named here is allowed.

    Raises:
        Unavailable: the system calls of this machine are not known here.
    """
    if machine not in _ARCHITECTURES:
        raise Unavailable(f"the system calls of {machine} are not known here")
    column, architecture = _ARCHITECTURES[machine]
    load, equal, at_least, has_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, deny, unknown = 0x7FFF0000, 0x80000000, 0x00050000 | 1, 0x00050000 | 38

    def unless(number: int, block: list[bytes]) -> list[bytes]:
        return [_instruction(equal, number, 0, len(block)), *block]

    def argument(place: int, test: int, value: int) -> list[bytes]:
        return [
            _instruction(load, 16 + 8 * place),
            _instruction(test, value, 0, 1),
            _instruction(give, allow),
            _instruction(give, deny),
        ]

    program = [
        _instruction(load, 4),
        _instruction(equal, architecture, 1, 0),
        _instruction(give, kill),
        _instruction(load, 0),
    ]
    if machine == "x86_64":  # the x32 interface reaches the same calls under other numbers
        program += [_instruction(at_least, 0x40000000, 0, 1), _instruction(give, deny)]
    program += unless(_CLONE3[column], [_instruction(give, unknown)])
    program += unless(_CLONE[column], argument(0, has_bit, _CLONE_THREAD))
    for numbers in (_KILL, _TGKILL):
        program += unless(numbers[column], argument(0, equal, pid))
    for numbers in (_PRLIMIT, _SETAFFINITY):
        program += unless(numbers[column], argument(0, equal, 0))
    for both in _DENIED.values():
        number = both[column]
        if number is not None and number >= 0:
            program += unless(number, [_instruction(give, deny)])
    program.append(_instruction(give, allow))
    return b"".join(program)


def deny_system_calls() -> None:
    """seccomp: no new processes or programs, no sockets, no signals to others, no way back out."""
    program = ctypes.create_string_buffer(seccomp_filter(os.uname().machine, os.getpid()))
    count = (len(program) - 1) // 8
    packed = ctypes.create_string_buffer(struct.pack("@HP", count, ctypes.addressof(program)))
    _checked(_libc().prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, packed, 0, 0), "prctl(PR_SET_SECCOMP)")


def shut_in(config: Config) -> Layers:
    """Applies every layer that this system has; from a fork of this process on Linux, when it returns."""
    layers = Layers()
    if sys.platform == "linux":
        die_with_parent()
        _checked(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
        if "namespaces" in config.use:
            layers.attempt("namespaces", unshare, "network", "pids")
        if "pids" in layers.active:
            fork_into_namespace(config.report)
            layers.attempt("tmpfs", lambda: mount_work_directory(config.work, config.disk), "disk")
            drop_capabilities()
    limit_resources(config.limits, layers)
    if sys.platform == "linux":
        if "landlock" in config.use:
            writable = (config.work, "/dev/null")
            layers.attempt("landlock", lambda: restrict_files(config.readable, writable, landlock_version()), "files")
            if "files" in layers.active and landlock_version() >= _SCOPES_SINCE:
                layers.add("landlock", "signals")
        if "seccomp" in config.use:
            layers.attempt("seccomp", deny_system_calls, "network", "processes", "signals")
    if "processes" not in layers.active and os.geteuid() != 0:
        # The kernel does not hold root to this one.
        limit_resources({"NPROC": 1}, layers)
    return layers


def run(code: str) -> None:
    """Runs the code as a script of its own; the value of a last expression is printed, as at the prompt."""
    main = type(sys)("__main__")
    main.__dict__["__builtins__"] = __builtins__
    # The module `site` gives these to scripts, but it is not loaded.
    main.__dict__.setdefault("exit", sys.exit)
    main.__dict__.setdefault("quit", sys.exit)
    sys.modules["__main__"] = main
    sys.argv = [""]
    try:
        tree: Any = compile(code, "<code>", "exec", _ast.PyCF_ONLY_AST)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], _ast.Expr) else None
        exec(compile(tree, "<code>", "exec"), main.__dict__)
        if isinstance(last, _ast.Expr):
            value = eval(compile(_ast.Expression(last.value), "<code>", "eval"), main.__dict__)
            if value is not None:
                print(repr(value))
    except SystemExit:
        raise
    except BaseException as error:
        sys.stdout.flush()
        own = error.with_traceback(_own_part(error.__traceback__))
        sys.__excepthook__(type(own), own, own.__traceback__)
        sys.exit(1)


def _own_part(trace: Any) -> Any:
    """The traceback without the frames of this file, which are no business of the code."""
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def main() -> None:
    config = Config(sys.argv[1:])
    code = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        layers = shut_in(config)
        refused = [name for name in config.require if name not in layers.active]
        report = layers.report(refused)
    except BaseException as error:
        os.write(config.report, f"failed {type(error).__name__}: {error}".encode())
        _leave(SHUT_IN_FAILED)
    os.write(config.report, report.encode())
    os.close(config.report)
    if refused:
        _leave(REFUSED)
    run(code)


def _leave(status: int) -> NoReturn:
    os._exit(status)


if __name__ == "__main__":
    main()
