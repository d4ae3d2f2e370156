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

PUBLIC = [f"minidiff.{n}" for n in minidiff.__all__ if n not in ("nn", "functional", "optim")]
for part in (nn, functional, optim):
    PUBLIC += [f"minidiff.{part.__name__.split('.')[-1]}.{name}" for name in part.__all__]


def resolved(name):
    """Return the object of a dotted name, and the module that the name is in."""
    parts = name.split(".")
    for i in range(len(parts) - 1, 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        obj = module
        for part in parts[i:]:
            obj = getattr(obj, part)
        return obj, module
    raise ValueError(f"{name} is nowhere.")


def test_every_public_name_is_in_the_reference_once():
    times = Counter(id(resolved(name)[0]) for name in DOCUMENTED)
    assert {name: times[id(resolved(name)[0])] for name in PUBLIC} == dict.fromkeys(PUBLIC, 1)
    assert [name for name in PUBLIC if name not in DOCUMENTED] == []  # as users write it
    repeated = [name for name in DOCUMENTED if times[id(resolved(name)[0])] > 1]
    assert [name for name in repeated if not isinstance(resolved(name)[0], tuple | dict)] == []


# -- what a docstring says ---------------------------------------------------------------------


def sections(doc):
    """Split a docstring at its headings; what is above them is called ""."""
    parts = re.split(r"^(\w+)\n-{3,}\n", inspect.cleandoc(doc) + "\n", flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], parts[::2], strict=True))


def entries(section):
    """Return what a section lists: the names left of the colon in lines that are not indented."""
    heads = [line.split(" : ")[0] for line in section.splitlines() if line[:1].strip()]
    return {name.strip() for head in heads for name in head.split(",")}


def raised(obj):
    """Return the classes of the exceptions that a function, or the making of an object, raises."""
    makers = [vars(obj).get(name) for name in ("__init__", "__post_init__")]
    functions = [f for f in makers if inspect.isfunction(f)] if inspect.isclass(obj) else [obj]
    found = set()
    for function in functions:
        if "<string>" not in function.__code__.co_filename:  # else of a dataclass
            code = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
            found |= {
                node.exc.func.id
                for node in ast.walk(ast.parse(code))
                if isinstance(node, ast.Raise)
                and isinstance(getattr(node.exc, "func", 0), ast.Name)
            }
    return found


def problems(obj):
    """Say what a function or class leaves out of its docstring."""
    doc = vars(obj).get("__doc__") if inspect.isclass(obj) else obj.__doc__
    if not doc:
        return ["no docstring"]
    parts = sections(doc)
    summary, _, rest = parts[""].partition("\n")
    wrong = [] if summary.strip().endswith(".") and not rest[:1].strip() else ["no summary"]
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
    obj, module = resolved(name)
    if inspect.isclass(obj) or inspect.isfunction(obj):
        assert problems(obj) == []
    else:  # of a constant the reference takes the comment
        own = name.rpartition(".")[2]
        assert re.search(rf"^#: .*\n(#.*\n)*{own}\b.* = ", inspect.getsource(module), re.MULTILINE)


# -- made-up docstrings ------------------------------------------------------------------------


def good(x, *, y=0.0):
    """Add two numbers.

    Parameters
    ----------
    x, y
        Any.

    Raises
    ------
    ValueError
        If x is below 0.

    Examples
    --------
    >>> good(1.0, y=2.0)
    3.0
    """
    if x < 0:
        raise ValueError("x is below 0.")
    return x + y


@pytest.mark.parametrize(
    ("left_out", "expected"),
    [
        ("", []),
        (good.__doc__, ["no docstring"]),
        ("numbers.", ["no summary"]),
        ("x, ", ["parameter x"]),
        ("Parameters\n    ----------\n", ["parameter x", "parameter y"]),
        ("Raises\n    ------\n", ["raises ValueError"]),
        ("3.0", ["no example with a result"]),
    ],
)
def test_what_is_left_out_is_found(left_out, expected, monkeypatch):
    assert left_out in good.__doc__
    monkeypatch.setattr(good, "__doc__", good.__doc__.replace(left_out, ""))
    assert problems(good) == expected
