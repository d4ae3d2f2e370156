"""The command line of ``minidiff``: its options, and how it prints errors.

The options of ``train`` and ``sweep`` follow from the fields of
:class:`~minidiff.training.config.Config`, and the help of a command from its docstring.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numba

from minidiff._version import __version__
from minidiff.cli import commands
from minidiff.cli.process import complain, finish
from minidiff.data.mnist import DataError
from minidiff.io.checkpoint import CheckpointError
from minidiff.io.export import FORMATS, ExportError
from minidiff.io.files import words
from minidiff.training.config import (
    RECIPES,
    Config,
    ConfigError,
    did_you_mean,
    misfit,
    option,
    values_text,
)
from minidiff.training.runs import RunError
from minidiff.training.trainer import NonFiniteLossError

__all__ = ["main"]

# What a user can mend; OSError is a missing file, a full disk and the like.
EXPECTED = (RunError, DataError, ConfigError, CheckpointError, ExportError,
            NonFiniteLossError, ImportError, OSError)  # fmt: skip

RUN_COMMANDS = ("evaluate", "inspect", "predict", "report", "export", "compare")
COMMANDS = ("train", *RUN_COMMANDS, "sweep", "bench")
JSON_COMMANDS = ("evaluate", "inspect", "predict", "compare", "bench")  # those that print a table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    Parameters
    ----------
    arguments
        The words after ``minidiff``; None for those of the process.

    Raises
    ------
    SystemExit
        By argparse, after ``--help``, ``--version`` and arguments that it does not take.

    Examples
    --------
    >>> main(["evaluate", "no/such/run"])  # prints an error to stderr
    1
    """
    try:
        status = _run(arguments)
    except SystemExit as end:  # argparse has printed help or an error
        raise SystemExit(finish(int(end.code or 0))) from None
    return finish(status)


def _run(arguments: Sequence[str] | None) -> int:
    options = parser().parse_args(arguments)
    try:
        _start_threads(options)
        status: int = options.run(options)
        return status
    except BrokenPipeError:  # the reader of the output, such as head, has stopped
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130  # by convention, after Ctrl-C
    except EXPECTED as error:
        complain("error", words(error))
        return 1


def _start_threads(options: argparse.Namespace) -> None:
    try:
        numba.set_num_threads(getattr(options, "threads", numba.get_num_threads()))
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"Numba's threads do not start: {reason} "
            f"Check NUMBA_NUM_THREADS and NUMBA_THREADING_LAYER, or unset them."
        ) from error


class Parser(argparse.ArgumentParser):
    """An ArgumentParser without abbreviations, whose errors are one line and name what was typed.

    Its subcommands are of this class too.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        # argparse takes -1e-3 and -1,2 for options; of these minidiff has none.
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments; an unknown one is an error here, where the options are known."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].partition("=")[0]
            known = re.findall(r"--[\w-]+", self.format_usage())
            self.error(f"{self.prog} does not take {word!r}{did_you_mean(word, known)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        if wrong := re.match("argument COMMAND: invalid choice: '(.*)' ", message):
            expected = misfit(wrong[1], str, COMMANDS)
            message = f"{wrong[1]!r} is not a command of minidiff; {expected}"
        message = re.sub("argument (--[^ :]+)(:(?= is ))?", r"\1", message)
        self.exit(2, f"minidiff: error: {message}\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    root = Parser(prog="minidiff", description="Train, prune and use networks.")
    root.add_argument("--version", action="version", version=f"minidiff {__version__}")
    kinds = root.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = {}
    for name in COMMANDS:
        function = getattr(commands, name)
        text = inspect.getdoc(function) or ""
        command[name] = kinds.add_parser(name, help=text.partition("\n")[0], description=text)
        command[name].set_defaults(run=function, refuse=command[name].error)
    for name in RUN_COMMANDS:
        exported = ", or an exported .safetensors" if name in ("evaluate", "predict") else ""
        about = f"a run directory{exported}"
        command[name].add_argument("directory", metavar="RUN", type=Path, help=about)
    for name in JSON_COMMANDS:
        command[name].add_argument("--json", action="store_true", help="print JSON, for programs")
    most = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]  # set on import
    threads = partial(_read, kind=int, allowed=f"[1, {most}]")
    for name in ("train", "compare", "bench"):
        command[name].add_argument("--threads", metavar="N", type=threads, default=most)

    train, sweep, predict = command["train"], command["sweep"], command["predict"]
    report, export, compare = command["report"], command["export"], command["compare"]
    train.add_argument("--out", metavar="DIR", type=Path, help="run directory")
    train.add_argument("--resume", metavar="RUN", type=Path, help="go on with an interrupted run")
    _add_settings(train, several=False)
    sweep.add_argument("--out", metavar="FILE", type=Path, default=Path("runs/sweep.jsonl"))
    where = sweep.add_mutually_exclusive_group()
    jobs = partial(_read, kind=int, allowed="[1, 1e3]")
    where.add_argument("--jobs", metavar="N", type=jobs, default=1, help="runs at a time")
    where.add_argument("--cluster", metavar="tcp://HOST:PORT", help="a Dask scheduler to use")
    sweep.add_argument("--test", action="store_true", help="measure test errors too")
    _add_settings(sweep, several=True)
    predict.add_argument("images", metavar="IMAGE", type=Path, nargs="+")
    report.add_argument("--out", metavar="FILE", type=Path, help="default: RUN/report.html")
    export.add_argument("file", metavar="FILE", type=Path, help=f"ends in {', '.join(FORMATS)}")
    compare.add_argument("--dense", metavar="RUN", type=Path, help="a run with --sparsity dense")
    command["bench"].add_argument("--out", metavar="DIR", type=Path, help="for bench.json")
    return root


def _add_settings(command: argparse.ArgumentParser, *, several: bool) -> None:
    """Add an option for each setting; in a sweep it takes several values, with commas."""
    training = command.add_argument_group("training")
    pruning = command.add_argument_group("pruning")
    for item in fields(Config):
        digits = getattr(RECIPES["digits"], item.name)
        other = f"; digits: {digits}" if digits != item.default else ""
        about = f"{item.metadata['meaning']}; {values_text(item)} (default {item.default}{other})"
        how: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if item.type is not bool:
            read: Callable[[str], Any] = partial(
                _read, kind=item.type, allowed=item.metadata["allowed"]
            )
            if several:
                read = partial(_read_several, read=read)
            how = {"type": read, "metavar": "X,..." if several else "X"}
        (pruning if item.metadata["used_by"] else training).add_argument(
            option(item.name), dest=item.name, default=argparse.SUPPRESS, help=about, **how
        )


def _read(text: str, kind: Any, allowed: str | tuple[Any, ...]) -> Any:
    """Return the value that an option is given as text, if it is allowed."""
    value: Any = text
    if kind in (int, float):
        with suppress(ValueError):
            value = kind(text)
    elif isinstance(allowed, tuple) and None in allowed and text.lower() == "none":
        value = None
    if problem := misfit(value, kind, allowed):
        raise argparse.ArgumentTypeError(f"is {text!r}; {problem}")
    return value


def _read_several(text: str, read: Callable[[str], Any]) -> list[Any]:
    return [read(part) for part in text.split(",")]
