"""The house: imports run one way, files and folders stay small, new processes start lightly."""

import ast
import importlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import minidiff

ROOT = Path(minidiff.__file__).parent
SOURCES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path
    for path in sorted(ROOT.rglob("*.py"))
}
TEXTS = {module: path.read_text(encoding="utf-8") for module, path in SOURCES.items()}
CORE = {"minidiff", "numpy", "numba", "matplotlib", "llvmlite"}  # which Numba is built on
EXTRAS = ("PIL", "distributed", "joblib", "matplotlib", "onnx", "onnxruntime", "pooch", "requests")
EXTRAS += ("safetensors", "sklearn", "tqdm")

#: The rooms from the ground up; each imports from those on lower floors, and from itself.
ROOMS = (
    ("_version",),
    ("engine",),
    ("pruning", "predict"),
    ("baselines", "models"),
    ("io",),
    ("data",),
    ("training", "figures"),
    ("cli",),
    ("__init__", "__main__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}


def walk(tree, nested):
    """Walk a file, or only what runs when it is imported."""
    for node in ast.iter_child_nodes(tree):
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if nested or not (inside or typing):
            yield node
            yield from walk(node, nested)


def imports(module, nested=True):
    """Return the full dotted names that import statements of a module bring in."""
    found, package = set(), module.split(".")[:-1]
    for node in walk(ast.parse(TEXTS[module]), nested):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # ``from ..a import b`` goes up a package for each dot but one; b may be a module.
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, node.module] if node.module else base
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


def room(module):
    """Return the folder or file directly below the package that a module is in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOOR else "__init__"


# -- the files ---------------------------------------------------------------------------------


def test_imports_run_down_the_house():
    assert {module.split(".")[1] for module in SOURCES} == FLOOR.keys()
    wrong = [
        f"{module} imports {other}"
        for module in SOURCES
        for other in imports(module)
        if other.split(".")[0] == "minidiff"
        and room(other) != room(module)
        and FLOOR[room(other)] >= FLOOR[room(module)]
    ]
    assert wrong == []


def test_no_files_import_each_other_in_a_circle():
    uses = {}
    for module in SOURCES:
        found = imports(module)
        found |= {name.rpartition(".")[0] for name in found}
        uses[module] = found & SOURCES.keys() - {module}
    assert uses["minidiff.pruning.gated"] >= {"minidiff.pruning.gates", "minidiff.engine.nn"}
    while uses:
        free = [module for module, others in uses.items() if not others & uses.keys()]
        assert free, f"a circle among {sorted(uses)}"
        for module in free:
            del uses[module]


def test_files_have_at_most_650_lines_and_folders_15_files():
    lines = {module: len(text.splitlines()) for module, text in TEXTS.items()}
    assert {module: count for module, count in lines.items() if count > 650} == {}
    folders = Counter(path.parent.name for path in SOURCES.values())
    assert {folder: count for folder, count in folders.items() if count > 15} == {}


def test_extras_are_imported_where_needed_and_nothing_pickles():
    allowed = CORE | set(sys.stdlib_module_names)
    pickles = {"pickle", "cPickle", "dill", "marshal", "shelve"}
    for module, text in TEXTS.items():
        assert {name.split(".")[0] for name in imports(module, nested=False)} <= allowed, module
        assert not {name.split(".")[0] for name in imports(module)} & pickles, module
        assert "allow_pickle=True" not in text, module


@pytest.mark.parametrize("name", ["nn", "functional", "optim"])
def test_modules_are_imported_by_the_names_that_they_have(name):
    assert importlib.import_module(f"minidiff.{name}") is getattr(minidiff, name)
    assert [n for n in minidiff.__all__ if not hasattr(minidiff, n)] == []


# -- a new process -----------------------------------------------------------------------------

USE = """
import numpy as np, minidiff as md
x = md.Tensor(np.arange(-2, 3, dtype=np.float32), requires_grad=True)
y = md.functional.relu(x); y.backward(np.ones(5, np.float32)); print(y.data.sum(), x.grad.sum())
"""
NOWHERE = """
from numba.core import caching
for locator in caching.CacheImpl._locator_classes: locator.from_function = lambda *_: None
"""
STARTED = f"""
import minidiff, sys, threading; from minidiff.engine import kernels
print(*(m for m in {EXTRAS!r} if m in sys.modules))
print(threading.active_count(), [f for f in vars(kernels).values() if getattr(f, "signatures", 0)])
"""


def start(code, **environment):
    command, pipe = [sys.executable, "-W", "error", "-c", code], subprocess.PIPE
    new = os.environ | environment
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT.parent, env=new)


def check(process, expected="3.0 2.0\n"):
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (0, expected, "")


def test_importing_minidiff_is_light_and_compiles_nothing(tmp_path):
    check(start(STARTED, NUMBA_CACHE_DIR=str(tmp_path)), "\n1 []\n")
    assert list(tmp_path.rglob("*.nb?")) == []  # what Numba keeps


def test_processes_that_compile_at_the_same_time_do_no_harm(tmp_path):
    for process in [start(USE, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)]:
        check(process)
    kept = set(tmp_path.rglob("*.nbc"))
    min(path for path in kept if "relu" in path.name).unlink()
    check(start(USE, NUMBA_CACHE_DIR=str(tmp_path)))  # takes what is there, and mends the rest
    assert set(tmp_path.rglob("*.nbc")) == kept


def test_kernels_work_where_nothing_is_compiled():
    check(start(USE, NUMBA_DISABLE_JIT="1"))


def test_kernels_work_where_nothing_is_kept_and_one_warning_says_so():
    catch = "import warnings; warnings.simplefilter('always'); "
    tell = "warnings.showwarning = lambda text, *_: print(str(text)[:14])"
    check(start(catch + tell + NOWHERE + USE), "Numba's cache \n3.0 2.0\n")
