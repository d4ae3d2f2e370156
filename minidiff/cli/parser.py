"""The command line of ``minidiff``: its options, and how it prints errors.

The options of ``train`` and ``sweep`` follow from the fields of
:class:`~minidiff.training.config.Config`, and the help of a command from its docstring.
"""

import argparse
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import numba

from minidiff._version import __version__
from minidiff.cli import commands
from minidiff.data.mnist import DataError
from minidiff.io.checkpoint import CheckpointError
from minidiff.io.export import FORMATS, ExportError
from minidiff.training.config import RECIPES, Config, ConfigError, checked, option, values_text
from minidiff.training.runs import RunError
from minidiff.training.trainer import NonFiniteLossError

__all__ = ["main"]

# What a user can mend; OSError is a missing file, a full disk and the like.
EXPECTED = (RunError, DataError, ConfigError, CheckpointError, ExportError,
            NonFiniteLossError, ImportError, OSError)  # fmt: skip

RUN_COMMANDS = ("evaluate", "inspect", "predict", "report", "export", "compare")


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
    options = parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _complain("warning", message)
        try:
            numba.set_num_threads(getattr(options, "threads", numba.get_num_threads()))
            status: int = options.run(options)
            sys.stdout.flush()
            return status
        except BrokenPipeError:  # the reader of the output, such as head, has stopped
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 130  # by convention, after Ctrl-C
        except EXPECTED as error:
            _complain("error", error)
            return 1


def _complain(kind: str, message: object) -> None:
    print(f"minidiff: {kind}: {message}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    root = argparse.ArgumentParser(prog="minidiff", description="Train, prune and use networks.")
    root.add_argument("--version", action="version", version=f"minidiff {__version__}")
    kinds = root.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = {}
    for name in ("train", *RUN_COMMANDS, "sweep", "bench"):
        function = getattr(commands, name)
        text = inspect.getdoc(function) or ""
        command[name] = kinds.add_parser(name, help=text.partition("\n")[0], description=text)
        command[name].set_defaults(run=function)
    for name in RUN_COMMANDS:
        command[name].add_argument("directory", metavar="RUN", type=Path, help="a run directory")
    most = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]  # set on import
    for name in ("train", "compare", "bench"):
        command[name].add_argument("--threads", type=int, choices=range(1, most + 1), default=most)

    train, sweep, predict = command["train"], command["sweep"], command["predict"]
    report, export, compare = command["report"], command["export"], command["compare"]
    train.add_argument("--out", metavar="DIR", type=Path, help="run directory")
    train.add_argument("--resume", metavar="RUN", type=Path, help="go on with an interrupted run")
    _add_settings(train, several=False)
    sweep.add_argument("--out", metavar="FILE", type=Path, default=Path("runs/sweep.jsonl"))
    sweep.add_argument("--jobs", metavar="N", type=int, default=1, help="runs at a time")
    sweep.add_argument("--cluster", metavar="tcp://HOST:PORT", help="a Dask scheduler to use")
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
            how = {"type": _reader(item, several), "metavar": "X,..." if several else "X"}
        (pruning if item.metadata["used_by"] else training).add_argument(
            option(item.name), dest=item.name, default=argparse.SUPPRESS, help=about, **how
        )


def _reader(item: "Field[Any]", several: bool) -> Callable[[str], Any]:
    """Return the function that reads and checks the value of an option."""
    kind = item.type if item.type in (int, float) else str

    def read(text: str) -> Any:
        parts = text.split(",") if several else [text]
        try:
            values = [checked(item, kind(part)) for part in parts]
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return values if several else values[0]

    return read
