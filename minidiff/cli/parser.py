"""The command line of ``minidiff``: its arguments, and how errors are told."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minidiff.cli import commands
from minidiff.data.datasets import DATASETS
from minidiff.data.mnist import DataError
from minidiff.io.checkpoint import CheckpointError
from minidiff.io.export import FORMATS, ExportError
from minidiff.models import MODELS, SPARSITIES
from minidiff.pruning.noise import NOISES
from minidiff.pruning.surrogate import COSTS
from minidiff.training.runs import RunError
from minidiff.training.trainer import METHODS, RECIPES, ConfigError, NonFiniteLossError

__all__ = ["main"]

# What a user can mend; OSError for a full disk and the like.
EXPECTED = (
    RunError, DataError, ConfigError, CheckpointError, ExportError, NonFiniteLossError,
    ImportError, OSError,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    Parameters
    ----------
    arguments
        As typed behind ``minidiff``; those of the process if None.

    Raises
    ------
    SystemExit
        Where argparse has had its say: wrong arguments, ``--help`` and ``--version``.

    Examples
    --------
    >>> main(["evaluate", "no/such/run"])  # says on stderr that it is no run directory
    1
    """
    options = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        try:
            status: int = options.run(options)
            sys.stdout.flush()
        except BrokenPipeError:  # whoever read it has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return commands.INTERRUPTED
        except EXPECTED as error:
            message = error.strerror if isinstance(error, OSError) and not error.filename else None
            print(f"minidiff: error: {message or error}", file=sys.stderr)
            return 1
    return status


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"minidiff: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    from minidiff._version import __version__

    parser = argparse.ArgumentParser(
        prog="minidiff",
        description="Train networks that prune themselves while they learn.",
    )
    parser.add_argument("--version", action="version", version=f"minidiff {__version__}")
    kinds = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = kinds.add_parser(
        "train",
        help="train a gated LeNet5, which prunes itself",
        description="Train LeNet5 with gates on its filters, inputs and units. What is not given "
        "is taken from the recipe for the dataset.",
        epilog=_recipes(),
    )
    train.set_defaults(run=commands.train)
    _add_run_options(train.add_argument_group("the run"))
    _add_training_options(train.add_argument_group("weights"))
    _add_gate_options(train.add_argument_group("gates"))

    sweep = kinds.add_parser(
        "sweep",
        help="train many networks: methods x strengths x seeds",
        description="Train every method with every strength and every seed, several runs at a "
        "time, and write a line of JSON for each. A sweep that was stopped goes on where it was. "
        "What is not given is taken from the recipe for the dataset.",
        epilog=_recipes(),
    )
    sweep.set_defaults(run=commands.sweep)
    _add_run_options(sweep.add_argument_group("the runs"), several=True)
    _add_training_options(sweep.add_argument_group("weights"))
    _add_gate_options(sweep.add_argument_group("gates"), several=True)
    how = sweep.add_argument_group("the sweep")
    _add_sweep_options(how)
    how.add_argument(
        "--test",
        action="store_true",
        help="read the test set at the end of each run: for results, not for choices",
    )

    _add_run_commands(kinds)

    bench = kinds.add_parser(
        "bench",
        help="measure the speed of kernels, training steps and predictions",
        description="Measure how fast this machine is and how much of that minidiff uses. "
        "Nothing else should be running.",
    )
    bench.set_defaults(run=commands.bench)
    bench.add_argument("--threads", type=int, metavar="K", help="default: one for each core")
    bench.add_argument("--out", metavar="DIR", type=Path, help="for bench.json")
    return parser


def _recipes() -> str:
    """Return the settings of the recipes under the names of their options."""

    def said(values: Mapping[str, Any]) -> str:
        options = {"penalty": "lambda"}
        return ", ".join(
            f"{options.get(key, key).replace('_', '-')} {value}"
            for key, value in values.items()
            if value is not None and key not in ("dataset", "seed")
        )

    mnist, digits = (RECIPES[name].to_json() for name in ("mnist", "digits"))
    others = {key: value for key, value in digits.items() if value != mnist[key]}
    return f"The recipe for MNIST: {said(mnist)}. For the small digits: {said(others)}."


def _add_run_commands(kinds: Any) -> None:
    """Add the commands that use a run directory."""

    def add(name: str, run: Any, help_text: str, description: str) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = kinds.add_parser(
            name, help=help_text, description=description
        )
        command.set_defaults(run=run)
        command.add_argument("directory", metavar="RUN", type=Path, help="a run directory")
        return command

    add(
        "evaluate",
        commands.evaluate,
        "measure the error of a trained network",
        "Load the network of a run directory and measure its error on the test set.",
    )
    predict = add(
        "predict",
        commands.predict,
        "ask a trained network about images of your own",
        "Prepare image files of one digit each, of any size, dark on light or light on dark, say "
        "what was done, and print what the network makes of them.",
    )
    predict.add_argument("images", metavar="IMAGE", type=Path, nargs="+", help="an image file")
    add(
        "inspect",
        commands.inspect,
        "show what is left of each layer",
        "Print what is left of each layer, and write the plots of a run again.",
    )
    report = add(
        "report",
        commands.report,
        "write a page about a run",
        "Write one HTML page that holds all there is to see of a run, for a browser or a mail.",
    )
    report.add_argument("--out", metavar="FILE", type=Path, help="default: RUN/report.html")
    export = add(
        "export",
        commands.export,
        "write the pruned network for other software",
        "Write the compact network, all that is pruned left out; .onnx and .npz also normalise.",
    )
    export.add_argument(
        "file", metavar="FILE", type=Path, help=f"its ending says how: {', '.join(FORMATS)}"
    )
    compare = add(
        "compare",
        commands.compare,
        "measure dense, gated and compact networks side by side",
        "Measure weights, bytes, error and time of a dense, the gated and the compact network, and "
        "of the compact one in onnxruntime. Nothing else should be running.",
    )
    compare.add_argument(
        "--dense", metavar="RUN", type=Path, help="a run of minidiff train --dense, for its error"
    )
    compare.add_argument("--threads", type=int, metavar="K", help="default: one for each core")


def _add_sweep_options(group: Any) -> None:
    group.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)"
    )
    group.add_argument(
        "--cluster", metavar="ADDRESS", help="of a Dask scheduler whose workers do the runs"
    )


def _listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Return a parser of several values with commas between them."""

    def parse(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",")]

    parse.__name__ = f"list of {kind.__name__}s"
    return parse


def _method(text: str) -> str:
    if text not in METHODS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(METHODS)}")
    return text


def _add_run_options(group: Any, *, several: bool = False) -> None:
    group.add_argument(
        "--dataset",
        choices=DATASETS,
        help="auto, the default, takes MNIST if it can be had, else the 1,797 digits of "
        "scikit-learn",
    )
    group.add_argument("--model", choices=tuple(MODELS), help="default: lenet5")
    group.add_argument(
        "--validation",
        type=int,
        metavar="N",
        help="of MNIST's training images (default: 5,000); 0 trains on all of them",
    )
    group.add_argument("--epochs", type=int, metavar="N", help="passes over the training images")
    if several:
        group.add_argument(
            "--out", metavar="FILE", type=Path, help="results (default: runs/sweep.jsonl)"
        )
        group.add_argument(
            "--seeds", dest="seed", type=_listed(int), metavar="N,...", help="default: 0"
        )
    else:
        group.add_argument(
            "--out", metavar="DIR", type=Path, help="run directory (default: runs/...)"
        )
        group.add_argument(
            "--resume",
            metavar="RUN",
            type=Path,
            help="go on with a run that was interrupted, to the same bits as if it had not been",
        )
        group.add_argument(
            "--seed", type=int, metavar="N", help="of every random choice (default: 0)"
        )
        group.add_argument("--threads", type=int, metavar="N", help="default: one for each core")
    group.add_argument(
        "--augment",
        action="store_true",
        default=None,
        help="shift, turn and resize the training images a little",
    )


def _add_training_options(group: Any) -> None:
    group.add_argument("--lr", type=float, metavar="X", help="largest step size of SGD")
    group.add_argument("--momentum", type=float, metavar="X")
    group.add_argument("--weight-decay", type=float, metavar="X")
    group.add_argument(
        "--label-smoothing", type=float, metavar="SHARE", help="of the target, over all classes"
    )
    group.add_argument(
        "--dropout", type=float, metavar="SHARE", help="of the pixels, in training (default: none)"
    )
    group.add_argument("--batch-size", type=int, metavar="N")
    group.add_argument("--warmup", type=int, metavar="N", help="steps until --lr is reached")
    group.add_argument(
        "--restart",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether --lr is reached once more, when gates are frozen (default: yes)",
    )
    group.add_argument(
        "--swa-lr",
        type=float,
        metavar="X",
        help="if above 0, the step size once gates are frozen, where weights are averaged",
    )


def _add_gate_options(group: Any, *, several: bool = False) -> None:
    group.add_argument(
        "--sparsity",
        choices=SPARSITIES,
        help="structured: gates on filters, inputs and units (the default); unstructured: on each "
        "weight; combined: on both; dense: none",
    )
    group.add_argument(
        "--dense",
        dest="sparsity",
        action="store_const",
        const="dense",
        help="train without gates; short for --sparsity dense",
    )
    if several:
        group.add_argument(
            "--methods",
            dest="method",
            type=_listed(_method),
            metavar="NAME,...",
            help=f"of {', '.join(METHODS)} (default: diffprune)",
        )
        group.add_argument(
            "--keeps",
            dest="keep",
            type=_listed(float),
            metavar="SHARE,...",
            help="of groups, that magnitude pruning leaves",
        )
        group.add_argument(
            "--lambdas",
            dest="penalty",
            type=_listed(float),
            metavar="X,...",
            help="weights of the penalty, for all other methods",
        )
    else:
        group.add_argument("--method", choices=tuple(METHODS), help="diffprune, or a baseline")
        group.add_argument(
            "--keep", type=float, metavar="SHARE", help="of groups, that magnitude pruning leaves"
        )
        group.add_argument(
            "--lambda",
            dest="penalty",
            type=float,
            metavar="X",
            help="weight of the L0 surrogate: more of it prunes more",
        )
    group.add_argument("--cost", choices=tuple(COSTS), help="what the surrogate counts")
    group.add_argument("--noise", choices=NOISES, help="makes gates stochastic while training")
    group.add_argument("--sigma", type=float, metavar="X", help="scale of the noise")
    group.add_argument("--width", type=float, metavar="X", help="of the gates' transition")
    group.add_argument("--initial", type=float, metavar="X", help="what the gates' phi starts at")
    group.add_argument("--gate-lr", type=float, metavar="X", help="step size of the gates")
    group.add_argument("--gate-start", type=float, metavar="SHARE", help="gates learn from here")
    group.add_argument("--ramp", type=float, metavar="SHARE", help="until lambda is reached")
    group.add_argument("--gate-stop", type=float, metavar="SHARE", help="gates are frozen here")
