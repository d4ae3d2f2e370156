"""The process of the command: signals at any moment, and streams of any kind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and shells")

MINIDIFF = [sys.executable, "-m", "minidiff"]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
TRAIN = ["train", "--dataset", "digits", "--model", "lenet300", "--epochs", "1000", "--out", "run"]
SWEEP = ["sweep", *TRAIN[1:-1], "runs.jsonl", "--seed", "0,1,2", "--jobs", "2"]


def _heed() -> None:
    """Undo in a child what this process may have inherited: a job in the background ignores ^C."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def start(words: list[str], directory: Path, **changes: str) -> "subprocess.Popen[str]":
    """Start the command in a process group of its own, as a terminal does."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])} | changes
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*MINIDIFF, *words], cwd=directory, stdout=pipe, stderr=pipe, text=True,
        env=environment, start_new_session=True, errors="surrogateescape", preexec_fn=_heed,
    )  # fmt: skip


def group(process: "subprocess.Popen[str]") -> list[str]:
    """Return the processes of a group that run."""
    words = ["ps", "-e", "-ww", "-o", "pgid=,stat=,args="]  # whole lines, whatever COLUMNS says
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    found = [line.split(maxsplit=2) for line in lines]
    return [args for pgid, state, args in found if int(pgid) == process.pid and state[0] != "Z"]


def shell(line: str, directory: Path, **changes: str) -> "subprocess.CompletedProcess[bytes]":
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])} | changes
    line = line.replace("minidiff", f"{sys.executable} -m minidiff")
    return subprocess.run(
        ["bash", "-c", line], cwd=directory, capture_output=True, env=environment, preexec_fn=_heed
    )


# -- signals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_training_with_one_line(number: int, tmp_path: Path) -> None:
    process = start(TRAIN, tmp_path)
    assert process.stdout
    while not process.stdout.readline().lstrip().startswith("1 "):  # a line arrives when printed
        assert process.poll() is None
    process.send_signal(number)
    assert process.communicate(timeout=60)[1] == "interrupted\n"
    assert process.returncode == 128 + number
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_imports_has_no_traceback(number: signal.Signals, tmp_path: Path) -> None:
    code = f"import os; os.kill(os.getpid(), {int(number)})"
    (tmp_path / "llvmlite.py").write_text(code)  # python -m finds it before the package
    process = start(["--help"], tmp_path)
    assert process.communicate(timeout=60) == ("", "interrupted\n")
    assert process.returncode == 128 + number


@pytest.mark.parametrize("then", ["time.sleep(100)", "1 / 0", "return 0", "raise ImportError"])
def test_an_interrupt_that_code_swallows_or_changes_still_ends_it(
    then: str, tmp_path: Path
) -> None:
    lines = [
        "import os, signal, sys, time",
        "sys.orig_argv = sys.argv = ['minidiff', 'evaluate', 'run']",
        "from minidiff.cli import commands, parser",
        "def evaluate(options):",
        "    try:",
        "        os.kill(os.getpid(), signal.SIGTERM)",
        "    except KeyboardInterrupt:",
        f"        {then}",
        "commands.evaluate = evaluate",
        "sys.exit(parser.main())",
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    words = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "interrupted\n")


def test_a_signal_that_the_caller_ignores_stays_ignored(tmp_path: Path) -> None:
    (tmp_path / "llvmlite.py").write_text(
        "import os; os.kill(os.getpid(), 1); raise ImportError(3)"
    )
    done = shell("trap '' HUP; minidiff --help", tmp_path)
    assert (done.returncode, done.stderr) == (1, b"minidiff: error: 3\n")


def test_python_that_imports_minidiff_keeps_its_handlers(tmp_path: Path) -> None:
    code = (
        "import signal, sys; before = [*map(signal.getsignal, (1, 2, 15))], sys.excepthook; "
        "import minidiff.cli.parser as p; p.main(['evaluate', 'run']); "
        "assert before == ([*map(signal.getsignal, (1, 2, 15))], sys.excepthook)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGKILL])
def test_workers_end_with_their_sweep(number: int, tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    process = start(SWEEP, tmp_path)
    deadline = time.monotonic() + 60
    while sum("loky" in args and "tracker" not in args for args in group(process)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    if number == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, number)  # as a terminal does
    err = process.communicate(timeout=60)[1]
    if number != signal.SIGKILL:
        assert (err, process.returncode) == ("interrupted\n", 128 + number)
    deadline = time.monotonic() + 10
    while group(process):
        assert time.monotonic() < deadline, group(process)
        time.sleep(0.1)


# -- streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "status", "out"),
    [
        ("minidiff evaluate RUN >&-", 0, b""),
        ("minidiff evaluate RUN 2>&-", 0, b"% test error on 300 images"),
        ("minidiff evaluate RUN <&- >&- 2>&-", 0, b""),
        ("minidiff evaluate none >&- 2>&-", 1, b""),
        ("minidiff evaluate none 2>/dev/full", 1, b""),
        ("set -o pipefail; minidiff evaluate RUN | true", 1, b""),
        ("set -o pipefail; minidiff evaluate RUN 2>&1 | true", 1, b""),
        ("minidiff train --help >&-", 0, b""),
    ],
)
def test_streams_may_be_closed(line: str, status: int, out: bytes, dense: Path) -> None:
    done = shell(line.replace("RUN", str(dense)), dense, PYTHONUNBUFFERED="")
    assert (done.returncode, done.stderr) == (status, b"")
    assert out in done.stdout
    assert bool(out) == bool(done.stdout)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("command", ["evaluate RUN", "--help"])
def test_output_that_cannot_be_written_is_an_error(command: str, dense: Path) -> None:
    line = f"minidiff {command.replace('RUN', str(dense))} >/dev/full"
    done = shell(line, dense, PYTHONUNBUFFERED="")
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"minidiff: error: " in done.stderr
    assert b"No space left" in done.stderr


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("ünï".encode(), "ascii"), ("七".encode(), "cp1252"), (b"\xff sp", "utf-8")],
)
def test_names_that_an_encoding_lacks_are_escaped(
    name: bytes, encoding: str, dense: Path, tmp_path: Path
) -> None:
    run = tmp_path / os.fsdecode(name)
    try:
        shutil.copytree(dense, run)
    except OSError:
        pytest.skip("this file system has no such names")
    report = os.fsdecode(b"report \xff.html" if b"\xff" in name else b"report.html")
    words = ["report", os.fspath(run), "--out", os.fspath(run / report)]
    process = start(words, tmp_path, PYTHONIOENCODING=encoding)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    text = os.fspath(run / report)
    first = out.encode(errors="surrogateescape").partition(b"\n")[0]
    assert first == text.encode(encoding, "backslashreplace")
    assert (run / report).stat().st_size > 1000


# -- variables of the environment ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"NUMBA_NUM_THREADS": "0"}, "Check NUMBA_NUM_THREADS"),
        ({"NUMBA_NUM_THREADS": "x"}, "'NUMBA_NUM_THREADS' is defined but its associated value 'x'"),
        ({"NUMBA_THREADING_LAYER": "x"}, "'x' is unknown to Numba. Check NUMBA_NUM_THREADS and"),
    ],
)
def test_a_variable_that_numba_refuses_is_named_in_one_line(
    variables: dict[str, str], message: str, tmp_path: Path
) -> None:
    process = start(["evaluate", "none"], tmp_path, **variables)
    first, *others = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 1
    assert message in first
    assert all("none has no config.json" in line for line in others)
