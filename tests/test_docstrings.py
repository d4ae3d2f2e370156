"""Every public name says what it takes, what it raises and shows it; and is in the reference once.

That examples are right is doctest's affair, which pytest runs on all of ``minidiff``.
"""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minidiff

API = Path(__file__).parents[1] / "docs" / "api"

# What neighbours import and nobody else needs; commands are documented by ``minidiff --help``.
MACHINERY = {
    "minidiff.engine.compiled",
    "minidiff.engine.memory",
    "minidiff.cli.bench",
    "minidiff.cli.commands",
    "minidiff.io.extras",
    "minidiff.io.files",
}
# Modules that say nowhere which of their names are public.
NO_EXAMPLE = {
    "minidiff.cli.compare.compare": "measures for half a minute",
}


def public_names() -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, object), each where it is defined."""
    for info in pkgutil.walk_packages(minidiff.__path__, "minidiff."):
        if info.name in MACHINERY or info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", ()):
            yield f"{info.name}.{name}", getattr(module, name)


PUBLIC = dict(public_names())


# -- what a docstring says -------------------------------------------------------------------------


def sections(doc: str) -> dict[str, str]:
    """Split a docstring at its headings; what is above them is called ""."""
    parts = re.split(r"^(\w+)\n-{3,}\n", doc + "\n", flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], parts[::2], strict=True))


def entries(section: str) -> set[str]:
    """Return what a section lists: the names left of the colon in lines that are not indented."""
    heads = [line.split(" : ")[0] for line in section.splitlines() if line[:1].strip()]
    return {name.strip() for head in heads for name in head.split(",")}


def raised(obj: Any) -> set[str]:
    """Return the classes of the exceptions that a function, or the making of an object, raises."""
    makers = [vars(obj).get(name) for name in ("__init__", "__post_init__")]
    functions = [f for f in makers if inspect.isfunction(f)] if inspect.isclass(obj) else [obj]
    found = set()
    for function in functions:
        if "<string>" in function.__code__.co_filename:  # of a dataclass
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise):
                made = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                if isinstance(made, ast.Name) and made.id[0].isupper():
                    found.add(made.id)
    # An abstract method raises it to say that subclasses define it: no error that users meet.
    return found - {"NotImplementedError"}


def problems(obj: Any, name: str = "") -> list[str]:
    """Say what a function or class leaves out of its docstring."""
    doc = vars(obj).get("__doc__") if inspect.isclass(obj) else obj.__doc__
    if not doc:
        return ["no docstring"]
    parts = sections(inspect.cleandoc(doc))
    wrong = []
    summary, _, rest = parts[""].partition("\n")
    if not summary.strip().endswith(".") or rest[:1].strip():
        wrong.append("no summary in one line that ends with a full stop")
    if inspect.isclass(obj) and issubclass(obj, BaseException):
        return wrong

    listed = entries(parts.get("Parameters", "")) | entries(parts.get("Attributes", ""))
    missing = [p for p in inspect.signature(obj).parameters if p not in listed]
    wrong += [f"parameter {parameter} is not documented" for parameter in missing]

    unsaid = raised(obj) - entries(parts.get("Raises", ""))
    wrong += [f"{error} is raised and not documented" for error in sorted(unsaid)]
    if re.search(r"\b[Rr]aises [A-Z]\w*Error\b", parts[""]) and "Raises" not in parts:
        wrong.append("errors are mentioned, but there is no section Raises")

    shown = parts.get("Examples", "")
    if refers := re.fullmatch(r"See :func:`(\w+)`\.\s*", shown):
        neighbour = getattr(inspect.getmodule(obj), refers[1])
        shown = sections(inspect.cleandoc(neighbour.__doc__)).get("Examples", "")
    if name not in NO_EXAMPLE and not any(
        e.want for e in doctest.DocTestParser().get_examples(shown)
    ):
        wrong.append("no example with a result")
    return wrong


def is_constant(obj: Any) -> bool:
    """Whether it is something that cannot have a docstring; type aliases are such, too."""
    return not (inspect.isclass(obj) or inspect.isfunction(obj))


CONSTANTS = {name: obj for name, obj in PUBLIC.items() if is_constant(obj)}


def test_the_names_at_the_top_are_public_where_they_are_defined() -> None:
    objects = list(map(id, PUBLIC.values()))
    for name in minidiff.__all__:
        obj = getattr(minidiff, name)
        assert inspect.ismodule(obj) or id(obj) in objects, name


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - CONSTANTS.keys()))
def test_docstring_is_complete(name: str) -> None:
    assert problems(PUBLIC[name], name) == []


@pytest.mark.parametrize("name", sorted(CONSTANTS))
def test_constant_has_a_comment_for_the_reference(name: str) -> None:
    module, _, own = name.rpartition(".")
    lines = inspect.getsource(importlib.import_module(module)).splitlines()
    (place,) = (i for i, line in enumerate(lines) if re.match(rf"{own}\b.* = ", line))
    assert lines[place - 1].startswith("#: ")


@pytest.mark.parametrize("name", sorted(NO_EXAMPLE))
def test_what_needs_no_example_has_none(name: str) -> None:
    assert "no example with a result" in problems(PUBLIC[name])


@pytest.mark.parametrize("odd", [None, "a", 1j])
@pytest.mark.parametrize("name", ["relu", "flatten", "softmax"])
def test_ops_refuse_what_a_tensor_refuses_as_their_module_says(name: str, odd: Any) -> None:
    with pytest.raises(TypeError, match="real numbers"):
        getattr(minidiff.ops, name)(odd)


# -- made-up docstrings ----------------------------------------------------------------------------


def good(x: float, *, y: float = 0.0) -> float:
    """Add two numbers.

    Parameters
    ----------
    x, y
        Any.

    Raises
    ------
    ValueError
        If x is not finite.

    Examples
    --------
    >>> good(1.0, y=2.0)
    3.0
    """
    if not np.isfinite(x):
        raise ValueError("x is not finite.")
    return x + y


def without(*texts: str) -> Callable[..., Any]:
    """Return a function as :func:`good` whose docstring lacks some texts."""

    def bad(x: float, *, y: float = 0.0) -> float:
        if not np.isfinite(x):
            raise ValueError("x is not finite.")
        return x + y

    doc = good.__doc__ or ""
    for text in texts:
        assert text in doc
        doc = doc.replace(text, "")
    bad.__doc__ = doc
    return bad


def mentions(x: float) -> None:
    """Do nothing.

    Raises ValueError if x is odd.

    Parameters
    ----------
    x
        Any.

    Examples
    --------
    >>> mentions(1.0) is None
    True
    """


@dataclass
class Undescribed:
    """A class.

    Attributes
    ----------
    x : float

    Examples
    --------
    >>> Undescribed(1.0, 2.0).x
    1.0
    """

    x: float
    y: float

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError("x is below 0.")


class Inherits(Undescribed):
    pass


def bare() -> None:
    pass


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        (good, []),
        (bare, ["no docstring"]),
        (Inherits, ["no docstring"]),
        (without("numbers."), ["no summary in one line that ends with a full stop"]),
        (without("x, "), ["parameter x is not documented"]),
        (without("Parameters\n    ----------\n"), ["parameter x", "parameter y"]),
        (without("Raises\n    ------\n"), ["ValueError is raised and not documented"]),
        (without(">>> good(1.0, y=2.0)", "3.0"), ["no example with a result"]),
        (without("3.0"), ["no example with a result"]),
        (mentions, ["errors are mentioned, but there is no section Raises"]),
        (Undescribed, ["parameter y is not documented", "ValueError is raised"]),
    ],
)
def test_what_is_left_out_is_found(obj: Any, expected: list[str]) -> None:
    found = problems(obj)
    assert len(found) == len(expected)
    assert all(text.startswith(start) for text, start in zip(found, expected, strict=True))


# -- the reference ---------------------------------------------------------------------------------


def documented() -> list[str]:
    """List the names that the pages of the reference document."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in sorted(API.glob("*.md")))
    directive = r"^\.\. (?:auto(?:class|function|data|exception)|py:type):: ([\w.]+)"
    return re.findall(directive, pages, re.MULTILINE)


def resolved(name: str) -> Any:
    """Return the object of a dotted name that begins at the package."""
    parts = name.split(".")
    for i in range(len(parts) - 1, 0, -1):
        try:
            obj = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for part in parts[i:]:
            obj = getattr(obj, part)
        return obj
    raise ValueError(f"{name} is nowhere.")


def test_every_public_name_is_in_the_reference_once() -> None:
    places = {id(obj): name for name, obj in PUBLIC.items()}
    times = Counter(places.get(id(resolved(name)), f"{name}, not public") for name in documented())
    assert {name: n for name, n in times.items() if n != 1 or name not in PUBLIC} == {}
    assert PUBLIC.keys() - times.keys() == set()


def test_names_of_the_package_are_in_the_reference_as_users_write_them() -> None:
    top = [name for name in minidiff.__all__ if not inspect.ismodule(getattr(minidiff, name))]
    modules = [getattr(minidiff, name) for name in ("nn", "ops", "optim")]
    inside = [f"{m.__name__.split('.')[-1]}.{name}" for m in modules for name in m.__all__]
    assert {f"minidiff.{name}" for name in [*top, *inside]} <= set(documented())
    listed = re.findall(r"^   (\w+)$", (API / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(top)
