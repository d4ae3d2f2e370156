"""What documents show is true: Python runs, commands parse, and what they name exists.

The tutorials are run when the documentation is built, and ``test_exercises.py`` tries the checks of
their exercises. The examples of the reference are docstrings, which pytest runs. So these pages are
left out here.
"""

import doctest
import re
import shlex
from pathlib import Path

import pytest

from minidiff.cli import parser as cli

sybil = pytest.importorskip("sybil")
markdown = pytest.importorskip("sybil.parsers.markdown")

ROOT = Path(__file__).parents[1]
ELSEWHERE = {"_build", "api", "node_modules", "results", "tutorials"}
DOCUMENTS = [
    ROOT / "README.md",
    *(
        path
        for path in sorted((ROOT / "docs").rglob("*.md"))
        if not ELSEWHERE & set(path.relative_to(ROOT / "docs").parts)
    ),
]
each_document = pytest.mark.parametrize(
    "path", DOCUMENTS, ids=[path.relative_to(ROOT).as_posix() for path in DOCUMENTS]
)


# -- Python ----------------------------------------------------------------------------------------


def run(path: Path) -> int:
    """Run the blocks of Python of a document, in one namespace; return how many there are."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    parser = markdown.PythonCodeBlockParser(doctest_optionflags=flags)
    document = sybil.Sybil([parser], pattern="*.md").parse(path)
    document.namespace["__name__"] = "__main__"
    examples = list(document.examples())
    for example in examples:
        example.evaluate()
    return len(examples)


@each_document
def test_python_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for needed in ("onnx", "onnxruntime", "safetensors", "sklearn", "tqdm"):
        pytest.importorskip(needed)
    monkeypatch.chdir(tmp_path)  # where blocks may write
    blocks = run(path)
    assert bool(blocks) == ("```python" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\n1 / 0\n```\n", ZeroDivisionError),
        ("```python\nx = 1\n```\n\nText.\n\n```python\nassert x == 2\n```\n", AssertionError),
        ("```python\n>>> 1 + 1\n3\n```\n", sybil.example.SybilFailure),
        ("```python\nimport warnings\nwarnings.warn('old')\n```\n", UserWarning),
    ],
)
def test_a_broken_block_is_found(text: str, error: type[Exception], tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(text)
    with pytest.raises(error):
        run(path)


def test_blocks_share_a_namespace(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("```python\nx = 1\n```\n\n```python\n>>> x + 1\n2\n```\n")
    assert run(path) == 2


# -- commands --------------------------------------------------------------------------------------


def in_blocks(text: str) -> list[list[str]]:
    """Return the arguments of every ``minidiff`` that a block of shell commands runs."""
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            command: list[str] = []
            for word in [*lexer, ";"]:
                if not set(word) <= set(";&|<>()"):
                    command.append(word)
                    continue
                while command and re.match(r"\w+=", command[0]):  # of the environment
                    command.pop(0)
                if command[1:3] == ["-m", "minidiff"]:
                    command = ["minidiff", *command[3:]]
                if command and Path(command[0]).name == "minidiff":
                    found.append(command[1:])
                command = []
    return found


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str | None:
    """Return what the parser has against these arguments, None if it takes them."""
    try:
        cli.parser().parse_args(arguments)
    except SystemExit as stop:  # --help stops too, with 0
        message = capsys.readouterr().err.strip().splitlines()
        return message[-1] if stop.code else None
    return None


@each_document
def test_commands_in_blocks_parse(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = in_blocks(path.read_text(encoding="utf-8"))
    wrong = {" ".join(words): refused(words, capsys) for words in commands}
    assert {words: message for words, message in wrong.items() if message} == {}


@each_document
def test_commands_in_prose_exist(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # There a command may stand without its arguments, but not with others than it knows.
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    commands = [shlex.split(words) for words in re.findall(r"`minidiff ([^`]+)`", text)]
    wrong = {" ".join(words): refused(words, capsys) for words in commands}
    missing = "the following arguments are required: "
    assert {w: message for w, message in wrong.items() if message and missing not in message} == {}


def test_commands_are_found_wherever_a_line_has_them(capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "```bash\ncd x && .venv/bin/minidiff train \\\n  --seed 1   # comment\n"
        "A=1 B=2 minidiff evaluate runs/a > file\npython -m minidiff bench\nminidiffer x\n```\n"
        "```text\nminidiff nothing\n```\n"
    )
    commands = in_blocks(text)
    assert commands == [["train", "--seed", "1"], ["evaluate", "runs/a"], ["bench"]]


@pytest.mark.parametrize("command", ["dance", "train --speed 9", "evaluate", "sweep --seeds a"])
def test_a_command_that_does_not_parse_is_found(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (words,) = in_blocks(f"```bash\nminidiff {command}\n```\n")
    assert "error" in (refused(words, capsys) or "")


# -- names -----------------------------------------------------------------------------------------


def unknown(text: str) -> set[str]:
    """Return the tests and files that a text names and that are not there."""
    missing = set()
    for file, test in re.findall(r"`(tests/\w+\.py)::(\w+)`", text):
        path = ROOT / file
        source = path.read_text(encoding="utf-8") if path.exists() else ""
        if not re.search(rf"^def {test}\(", source, re.MULTILINE):
            missing.add(f"{file}::{test}")
    for file in re.findall(r"`((?:minidiff|tests|tutorials|docs)/[\w/.-]+\.\w+)", text):
        if not (ROOT / file).exists():
            missing.add(file)
    return missing


@each_document
def test_tests_and_files_that_are_named_exist(path: Path) -> None:
    assert unknown(path.read_text(encoding="utf-8")) == set()


def test_names_of_nothing_are_found() -> None:
    here = "tests/test_documents.py"
    assert unknown(f"`{here}::test_names_of_nothing_are_found` `{here}` `docs/no.md`") == {
        "docs/no.md"
    }
    assert unknown(f"`{here}::test_no` and `tests/no.py::test_no`") == {
        f"{here}::test_no",
        "tests/no.py::test_no",
        "tests/no.py",
    }
