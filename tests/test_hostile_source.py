"""Nothing that comes from outside is run: no pickle, no evaluation, no shell, no code of a model's authors.

Read from the source of the package: what is not written down cannot happen by a configuration.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("__init__.py", "messages.py", "cli.py", "envs", "renderers", "agents", "trainers", "recipes")

MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
"""Reading what they wrote runs it."""

CALLS = {
    "eval",
    "exec",
    "compile",
    "execfile",
    "input_eval",
    "sympify",
    "parse_expr",
    "parse_latex",
    "literal_eval",
    "S",
    "lambdify",
    "os.system",
    "os.popen",
    "getoutput",
    "getstatusoutput",
    "extractall",
    "unpack_archive",
}
"""Functions by their last name, or with the module's where the last name is everybody's."""

ATTRIBUTES = {
    "torch.load",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
    "np.load",
    "numpy.load",
    "pd.read_pickle",
    "builtins.eval",
    "torch.jit.load",
    "torch.hub.load",
}

ROUND_TRIP = "pickles and reads back an environment of the caller's own process, to see whether it survives that"
NO_PICKLE = "with allow_pickle=False, which the next test reads"
SANDBOXED = "the tool that runs a model's Python, in a process of its own that can neither write nor reach a network"
ALLOWED = {
    ("envs/conformance/laws_of_gymnasium.py", "import pickle"): ROUND_TRIP,
    ("envs/games/conformance.py", "import pickle"): ROUND_TRIP,
    ("envs/tools/search/documents.py", "np.load"): NO_PICKLE,
    ("envs/tools/search/vectors.py", "np.load"): NO_PICKLE,
    ("envs/tools/python_sandbox.py", "compile"): SANDBOXED,
    ("envs/tools/python_sandbox.py", "exec"): SANDBOXED,
    ("envs/tools/python_sandbox.py", "eval"): SANDBOXED,
    ("envs/math/reasoning_worker.py", "eval"): "sums of whole numbers alone, by a pattern, in a killable worker",
    ("envs/math/reasoning_worker.py", "parse_expr"): "formulas alone, read token by token before, in a killable worker",
    ("envs/math/reasoning_worker.py", "ast.literal_eval"): "reads literals and runs nothing, in a killable worker",
}
"""Safe uses, each with why."""


def forbidden(source: str) -> Iterator[tuple[int, str]]:
    """(line, what) of everything in a file's text that could run what it is given."""
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            taken = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            yield from ((line, f"import {name}") for name in names if name.split(".")[0] in MODULES)
            yield from (
                (line, f"import {name}") for name in taken if name in CALLS - {"S", "compile"} or name in MODULES
            )
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ATTRIBUTES or name in CALLS or (name.split(".")[-1] in CALLS - {"compile", "S", "eval", "exec"}):
                yield line, name
            loads = name.split(".")[-1] in ("from_pretrained", "SentenceTransformer")
            if loads and "trust_remote_code" not in [keyword.arg for keyword in node.keywords]:
                yield line, f"{name} without trust_remote_code=False"
            for keyword in node.keywords:
                value = ast.unparse(keyword.value)
                if keyword.arg in ("shell", "trust_remote_code", "allow_pickle") and value != "False":
                    yield line, f"{keyword.arg}={value}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in (
            "yaml.Loader",
            "yaml.UnsafeLoader",
            "yaml.FullLoader",
        ):
            yield line, ast.unparse(node)


def sources() -> list[Path]:
    return [
        file
        for room in ROOMS
        for file in ([ROOT / room] if room.endswith(".py") else sorted((ROOT / room).rglob("*.py")))
    ]


def test_nothing_in_the_package_runs_what_it_is_given() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in sources()
        for line, what in forbidden(path.read_text(encoding="utf-8"))
        if (path.relative_to(ROOT).as_posix(), what) not in ALLOWED
    ]
    assert len(sources()) > 100
    assert found == []


def test_each_exception_is_still_there() -> None:
    uses = {(path.relative_to(ROOT).as_posix(), what) for path in sources() for _, what in forbidden(path.read_text())}
    assert set(ALLOWED) <= uses


@pytest.mark.parametrize("path", sorted({path for path, what in ALLOWED if what == "np.load"}))
def test_arrays_are_read_without_pickle(path: str) -> None:
    calls = [node for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.Call)]
    loads = [call for call in calls if ast.unparse(call.func) == "np.load"]
    assert loads and all("allow_pickle=False" in ast.unparse(call) for call in loads)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("import pickle", "import pickle"),
        ("from pickle import loads", "import pickle"),
        ("import torch\ntorch.load('x')", "torch.load"),
        ("eval('1')", "eval"),
        ("exec('x = 1')", "exec"),
        ("from sympy import sympify", "import sympify"),
        ("import sympy\nsympy.parse_expr('1')", "sympy.parse_expr"),
        ("sympy.parsing.sympy_parser.parse_expr(t)", "sympy.parsing.sympy_parser.parse_expr"),
        ("yaml.load(t)", "yaml.load"),
        ("yaml.load(t, Loader=yaml.Loader)", "yaml.Loader"),
        ("load(t, trust_remote_code=True)", "trust_remote_code=True"),
        ("load(t, trust_remote_code=flag)", "trust_remote_code=flag"),
        ("AutoConfig.from_pretrained(f)", "AutoConfig.from_pretrained without trust_remote_code=False"),
        ("subprocess.run(c, shell=True)", "shell=True"),
        ("np.load(f)", "np.load"),
        ("zipfile.ZipFile(f).extractall(d)", "zipfile.ZipFile(f).extractall"),
        ("os.system('ls')", "os.system"),
    ],
)
def test_a_dangerous_line_is_found(line: str, what: str) -> None:
    assert what in [found for _, found in forbidden(line)]


@pytest.mark.parametrize(
    "line",
    [
        "model.eval()",
        "re.compile('a')",
        "yaml.safe_load(t)",
        "load(t, trust_remote_code=False)",
        "json.loads(t)",
        "torch.compile(f)",
        "subprocess.run(c)",
    ],
)
def test_a_safe_line_is_not(line: str) -> None:
    assert list(forbidden(line)) == []
