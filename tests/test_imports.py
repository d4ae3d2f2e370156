"""The house: imports run one way, files and folders stay small, extras only where needed."""

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import minidiff

ROOT = Path(minidiff.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
CORE = {"minidiff", "numpy", "numba", "matplotlib", "llvmlite"}  # which Numba is built on
EXTRAS = ("PIL", "onnx", "onnxruntime", "pooch", "requests", "safetensors", "sklearn", "tqdm")


def name(path: Path) -> str:
    return path.relative_to(ROOT.parent).as_posix()


def imported(source: str, package: tuple[str, ...], nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Yield the full dotted names that import statements among ``nodes`` bring in."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # ``from ..a import b`` goes up a package for each dot but one; b may be a module.
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = (*above, *(node.module.split(".") if node.module else ()))
            yield from (".".join((*base, alias.name)) for alias in node.names)


def imports(path: Path, nested: bool = True) -> set[str]:
    """Return what a file imports: anywhere in it, or only when it is imported itself."""
    source = path.read_text(encoding="utf-8")
    package = path.relative_to(ROOT.parent).parent.parts
    tree = ast.parse(source)
    return set(imported(source, package, ast.walk(tree) if nested else at_import(tree)))


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk all but the bodies of functions and what only a type checker runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from at_import(node)


def belongs(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_the_reader_of_imports_resolves_relative_ones():
    code = "import a.b\nfrom . import c\nfrom .d import e\nfrom ..f import g\nfrom h import i"
    found = set(imported(code, ("p", "q"), ast.walk(ast.parse(code))))
    assert found == {"a.b", "p.q.c", "p.q.d.e", "p.f.g", "h.i"}


#: The rooms of the house from the ground up; each imports from those before it, and from itself.
ROOMS = (
    ("engine",),
    ("pruning",),
    ("baselines", "models"),
    ("io",),
    ("data",),
    ("training", "figures"),
    ("cli",),
    ("__init__", "__main__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms} | {"_version": -1}


def room(module: str) -> str:
    """Return the folder or file directly below the package that a module is in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOOR else "__init__"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_run_down_the_house(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for module in imports(path):
        if belongs(module, "minidiff"):
            other = room(module)
            assert other == own or FLOOR[other] < FLOOR[own], f"{name(path)} imports {module}"


def test_no_files_import_each_other_in_a_circle():
    files = {".".join(p.relative_to(ROOT.parent).with_suffix("").parts): p for p in SOURCES}
    uses = {
        module: {
            other
            for found in imports(path)
            for other in (found, found.rpartition(".")[0])
            if other in files and other != module
        }
        for module, path in files.items()
    }
    while uses:
        free = [module for module, others in uses.items() if not others & uses.keys()]
        assert free, f"a circle among {sorted(uses)}"
        for module in free:
            del uses[module]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_file_has_more_than_650_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 650


@pytest.mark.parametrize("folder", sorted({path.parent for path in SOURCES}), ids=name)
def test_no_folder_has_more_than_12_files(folder):
    assert len(list(folder.glob("*.py"))) <= 12


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_modules_import_nothing_beyond_the_core_until_it_is_needed(path):
    outside = {module.split(".")[0] for module in imports(path, nested=False)}
    assert outside <= CORE | set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_is_pickled(path):
    source = path.read_text(encoding="utf-8")
    names = {module.split(".")[0] for module in imports(path)}
    assert not names & {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve"}
    assert "allow_pickle=True" not in source


def test_importing_minidiff_is_light():
    heavy = (*EXTRAS, "matplotlib.pyplot")
    code = f"import minidiff, sys; print(*(m for m in {heavy!r} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        check=True,
    )
    assert done.stdout.split() == []
    assert done.stderr == ""


def test_everything_that_minidiff_promises_is_there():
    assert [n for n in minidiff.__all__ if not hasattr(minidiff, n)] == []


@pytest.mark.parametrize("name", ["nn", "ops", "optim"])
def test_a_module_of_minidiff_is_imported_by_the_name_that_it_has_there(name):
    assert importlib.import_module(f"minidiff.{name}") is getattr(minidiff, name)


def test_importing_minidiff_compiles_nothing_and_starts_no_threads(tmp_path):
    code = (
        "import minidiff, threading; from minidiff.engine import kernels\n"
        "print(threading.active_count(), [n for n, f in vars(kernels).items()\n"
        "      if getattr(f, 'signatures', None)])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        check=True,
    )
    assert done.stdout.split() == ["1", "[]"]
    assert list(tmp_path.rglob("*.nb?")) == []  # what Numba keeps
