"""The reference has every public name once, and each says what it takes, raises and shows.

That examples are right is doctest's affair, which pytest runs on all of ``minidiff``.
"""

import ast
import doctest
import importlib
import inspect
import re
import textwrap
from collections import Counter
from pathlib import Path

import pytest

import minidiff
from minidiff import functional, nn, optim

API = Path(__file__).parents[1] / "docs" / "api"
DIRECTIVE = r"^\.\. (?:auto(?:class|function|data|exception)|py:type):: (minidiff\.[\w.]+)"
PAGES = "\n".join(path.read_text(encoding="utf-8") for path in sorted(API.glob("*.md")))
DOCUMENTED = re.findall(DIRECTIVE, PAGES, re.MULTILINE)
# The names of a module that the reference takes as a whole, but for those it leaves out.
WHOLE = r"^\.\. automodule:: ([\w.]+)\n   :members:\n(?:   :exclude-members: (.*))?"
for module, left_out in re.findall(WHOLE, PAGES, re.MULTILINE):
    names = importlib.import_module(module).__all__
    DOCUMENTED += [f"{module}.{name}" for name in names if name not in left_out.split(", ")]

PUBLIC = [f"minidiff.{n}" for n in minidiff.__all__ if n not in ("nn", "functional", "optim")]
for part in (nn, functional, optim):
    PUBLIC += [f"minidiff.{part.__name__.split('.')[-1]}.{name}" for name in part.__all__]


def resolved(name):
    """Return the object of a dotted name, and the source of the module that the name is in."""
    parts, module = name.split("."), None
    while module is None:
        parts.pop()
        try:
            module = importlib.import_module(".".join(parts))
        except ModuleNotFoundError:
            continue
    obj = module
    for part in name.split(".")[len(parts) :]:
        obj = getattr(obj, part)
    return obj, inspect.getsource(module)


def test_every_public_name_is_in_the_reference_once():
    times = Counter(DOCUMENTED)
    assert {name: times[name] for name in PUBLIC} == dict.fromkeys(PUBLIC, 1)
    objects = Counter(id(resolved(name)[0]) for name in times)  # nor by another name
    assert [name for name in PUBLIC if objects[id(resolved(name)[0])] > 1] == []


def sections(doc):
    """Split a docstring at its headings; what is above them is called ""."""
    parts = re.split(r"^(\w+)\n-{3,}\n", inspect.cleandoc(doc) + "\n", flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], parts[::2], strict=True))


def entries(section):
    """Return what a section lists: the names left of the colon in lines that are not indented."""
    heads = [line.split(" : ")[0] for line in section.splitlines() if line[:1].strip()]
    return {name.strip() for head in heads for name in head.split(",")}


def raised(obj):
    """Return the names of the exceptions that a function, or the making of an object, raises."""
    maker = vars(obj).get("__init__") if inspect.isclass(obj) else inspect.unwrap(obj)
    if not inspect.isfunction(maker) or maker.__code__.co_filename == "<string>":
        return set()
    nodes = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(maker))))
    calls = [node.exc.func for node in nodes if isinstance(getattr(node, "exc", 0), ast.Call)]
    return {call.id for call in calls if isinstance(call, ast.Name)}


def problems(obj):
    """Say what a function or class leaves out of its docstring."""
    doc = vars(obj).get("__doc__") if inspect.isclass(obj) else obj.__doc__
    parts = sections(doc or "")
    wrong = [] if re.match(r"\S.*\.\s*(\n\n|$)", parts[""]) else ["no summary"]
    if inspect.isclass(obj) and issubclass(obj, BaseException):
        return wrong
    listed = entries(parts.get("Parameters", "")) | entries(parts.get("Attributes", ""))
    wrong += [f"parameter {p}" for p in inspect.signature(obj).parameters if p not in listed]
    wrong += [f"raises {error}" for error in sorted(raised(obj) - entries(parts.get("Raises", "")))]
    shown = parts.get("Examples", "")
    if refers := re.fullmatch(r"See :func:`(\w+)`\.\s*", shown):
        shown = sections(getattr(inspect.getmodule(obj), refers[1]).__doc__).get("Examples", "")
    if not any(example.want for example in doctest.DocTestParser().get_examples(shown)):
        wrong.append("no example with a result")
    return wrong


@pytest.mark.parametrize("name", sorted({*DOCUMENTED, *PUBLIC}))
def test_documented_names_say_all_that_a_caller_needs(name):
    obj, source = resolved(name)
    if inspect.isclass(obj) or inspect.isfunction(obj):
        assert problems(obj) == []
    else:  # of a constant the reference takes the comment
        own = name.rpartition(".")[2]
        assert re.search(rf"^#: .*\n(#.*\n)*{own}\b.* = ", source, re.MULTILINE)


@pytest.mark.parametrize(
    ("function", "left_out", "expected"),
    [
        (functional.dropout, "(1 - p).", ["no summary"]),
        (functional.dropout, "rng\n", ["parameter rng"]),
        (functional.flatten, "ValueError\n", ["raises ValueError"]),
        (functional.dropout, "(array([0., 2.]), True)", ["no example with a result"]),
    ],
)
def test_what_is_left_out_is_found(function, left_out, expected, monkeypatch):
    monkeypatch.setattr(function, "__doc__", function.__doc__.replace(left_out, ""))
    assert problems(function) == expected
