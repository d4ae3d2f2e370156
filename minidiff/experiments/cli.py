"""The command line: ``minidiff train``, ``minidiff evaluate RUN``."""

import argparse
import math
import statistics
import sys
import textwrap
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from minidiff import __version__
from minidiff.engine.nn import Module
from minidiff.pruning.gates import NOISES
from minidiff.pruning.penalty import COSTS, LayerCount

from .checkpoint import CheckpointError
from .data import DATASETS, DataError, Dataset, load_dataset
from .extras import extra
from .runs import Run, RunError, peak_megabytes
from .training import Config, ConfigError, NonFiniteLossError, Trainer, error_rate, gates_of

__all__ = ["main"]

LINES = 30  # that a run prints, about; metrics.jsonl has every epoch
INTERRUPTED = 130  # the exit status of a program that Ctrl-C has ended
# What a user can mend; OSError for a full disk and the like.
EXPECTED = (
    RunError, DataError, ConfigError, CheckpointError, NonFiniteLossError, ImportError, OSError,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except EXPECTED as error:
        print(f"minidiff: error: {error}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minidiff",
        description="Train networks that prune themselves while they learn.",
    )
    parser.add_argument("--version", action="version", version=f"minidiff {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a gated LeNet5, which prunes itself",
        description="Train LeNet5 with gates on its filters, inputs and units. What is not given "
        "is taken from the recipe for the dataset.",
    )
    train.set_defaults(run=_train)
    _add_run_options(train.add_argument_group("the run"))
    _add_training_options(train.add_argument_group("weights"))
    _add_gate_options(train.add_argument_group("gates"))

    evaluate = commands.add_parser(
        "evaluate",
        help="measure the error of a trained network",
        description="Load the network of a run directory and measure its error on the test set.",
    )
    evaluate.set_defaults(run=_evaluate)
    evaluate.add_argument("directory", metavar="RUN", type=Path, help="a run directory")

    bench = commands.add_parser(
        "bench",
        help="measure the speed of kernels, training steps and predictions",
        description="Measure how fast this machine is and how much of that minidiff uses; a minute "
        "or two. Nothing else should be running.",
    )
    bench.set_defaults(run=_bench)
    bench.add_argument(
        "--against", choices=("torch",), help="do the same work in PyTorch too, if it is installed"
    )
    bench.add_argument("--threads", type=int, metavar="K", help="default: one for each core")
    bench.add_argument("--out", metavar="DIR", type=Path, help="for bench.json and bench.png")
    return parser


def _add_run_options(group: Any) -> None:
    group.add_argument(
        "--dataset",
        choices=DATASETS,
        help="auto, the default, takes MNIST if it can be had, else the 1,797 digits of "
        "scikit-learn",
    )
    group.add_argument("--out", metavar="DIR", type=Path, help="run directory (default: runs/...)")
    group.add_argument(
        "--resume",
        metavar="RUN",
        type=Path,
        help="go on with a run that was interrupted, to the same bits as if it had not been",
    )
    group.add_argument("--epochs", type=int, metavar="N", help="passes over the training images")
    group.add_argument("--seed", type=int, metavar="N", help="of every random choice (default: 0)")
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
    group.add_argument("--batch-size", type=int, metavar="N")
    group.add_argument("--warmup", type=int, metavar="N", help="steps until --lr is reached")


def _add_gate_options(group: Any) -> None:
    group.add_argument(
        "--dense", dest="gated", action="store_false", default=None, help="train without gates"
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


# -- minidiff train --------------------------------------------------------------------------


def _train(options: argparse.Namespace) -> int:
    extra("safetensors")  # asked for now, not after the first epoch
    _set_threads(options.threads)
    names = [field.name for field in fields(Config)]
    if options.resume:
        given = [name for name in (*names, "out") if getattr(options, name) is not None]
        if given:
            raise ConfigError(
                f"--resume goes on with the settings of the run; it cannot change "
                f"{', '.join(given)}. Only --threads may stand beside it."
            )
        run = Run.open(options.resume)
        config = Config.from_json(run.read_json("config.json"))
        if run.finished:
            print(f"{run.path} has finished; there is nothing to go on with.")
            print(_table(run.read_json("result.json")))
            return 0
        data = load_dataset(config.dataset)
    else:
        data = load_dataset(options.dataset or "auto")
        changes = {name: getattr(options, name) for name in names if name != "dataset"}
        config = Config.recipe(data.name, **changes)
        run = Run.create(options.out or _free_directory(f"{data.name}-seed{config.seed}"))
        run.write_json("config.json", config.to_json())

    checkpoint = run.checkpoint() if run.checkpoint_path.exists() else None
    trainer = Trainer(config, data, checkpoint)
    sizes = (
        f"{len(data.train):,} to train on, {len(data.held_out):,} held out for choices, "
        f"{len(data.test):,} to test on."
    )
    indent = " " * 9
    print(textwrap.fill(f"data     {data.source}", 100, subsequent_indent=indent))
    print(indent + sizes)
    print(f"run      {run.path}" + (f", from epoch {trainer.epoch + 1} on" if checkpoint else ""))
    print("kernels  compiled at the first step, once; then cached\n", flush=True)
    records = run.keep_metrics(trainer.epoch)
    interrupted = _run_epochs(run, trainer, records)
    if interrupted:
        print(
            f"\ninterrupted: the run directory holds what was reached by the last whole epoch.\n"
            f"minidiff train --resume {run.path} goes on from there."
        )
    if not records:
        return INTERRUPTED
    model = run.checkpoint().model
    _plot(run, model, config, records)
    if interrupted:
        return INTERRUPTED
    # The one look at the test set.
    error = error_rate(model, data.test, mean=data.mean, std=data.std)
    result = _result(records, trainer.counts(), error)
    run.write_json("result.json", result)
    print(_table(result))
    return 0


def _run_epochs(run: Run, trainer: Trainer, records: list[dict[str, Any]]) -> bool:
    """Train to the end, with a progress bar and a table; return whether Ctrl-C has stopped it."""
    tqdm = extra("tqdm").tqdm
    epochs = trainer.config.epochs
    every = math.ceil(epochs / LINES)
    with tqdm(
        total=trainer.steps,
        initial=trainer.step,
        unit="step",
        leave=False,
        disable=None,
        dynamic_ncols=True,
    ) as bar:
        tqdm.write(_header())

        def report(loss: float) -> None:
            bar.update()
            if trainer.step % 10 == 0:
                bar.set_description(f"epoch {trainer.epoch + 1}")
                bar.set_postfix_str(f"loss {loss:.3f}{_live(records)}", refresh=False)

        try:
            while trainer.step < trainer.steps:
                record = trainer.train_epoch(report)
                epoch = record["epoch"]
                # In this order: of what is killed between, resuming forgets the line.
                run.append_metrics(record)
                run.write_checkpoint(trainer.checkpoint())
                records.append(record)
                if epoch % every == 0 or epoch in (1, epochs):
                    tqdm.write(_line(record))
        except KeyboardInterrupt:
            return True
    return False


def _set_threads(threads: int | None) -> None:
    import numba

    if threads is None:
        return
    most = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]  # set on import
    if not 1 <= threads <= most:
        raise ConfigError(f"threads is {threads}; expected 1 to {most} on this machine.")
    numba.set_num_threads(threads)


def _free_directory(name: str) -> Path:
    """Return runs/NAME, or runs/NAME-2 and so on if there is one already."""
    path, number = Path("runs") / name, 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{name}-{number}"
    return path


def _ratio(record: dict[str, Any], what: str) -> str:
    left = record[what]
    return f"{record[f'dense_{what}'] / left:.1f}x" if left else "all"


def _live(records: list[dict[str, Any]]) -> str:
    """Say in a few words how far the last whole epoch has come."""
    if not records:
        return ""
    last = records[-1]
    return (
        f", error {last['train_error']:.2f}% train {last['held_out_error']:.2f}% held out, "
        f"{last['architecture'] or 'dense'}, {_ratio(last, 'weights')} fewer weights, "
        f"{_ratio(last, 'macs')} fewer MACs"
    )


def _header() -> str:
    return (
        f"{'epoch':>5}  {'loss':>7}  {'train':>7}  {'held out':>8}  {'architecture':<16}"
        f"{'fewer weights':>14}{'fewer MACs':>12}{'ms/step':>9}"
    )


def _line(record: dict[str, Any]) -> str:
    return (
        f"{record['epoch']:>5}  {record['loss']:>7.4f}  {record['train_error']:>6.2f}%  "
        f"{record['held_out_error']:>7.2f}%  {record['architecture'] or 'dense':<16}"
        f"{_ratio(record, 'weights'):>14}{_ratio(record, 'macs'):>12}{record['step_ms']:>9.1f}"
    )


def _plot(run: Run, model: Module, config: Config, records: list[dict[str, Any]]) -> None:
    from .plots import plot_run

    gates = gates_of(model)
    weight = next(p for name, p in model.named_parameters() if name.endswith("weight"))
    first = gates.get("conv1.outputs")
    kept = first.is_open() if first else np.ones(len(weight.data), np.bool_)
    plot_run(
        run.path / "plots",
        records,
        {name: gate.phi.data for name, gate in gates.items()},
        config.width,
        weight.data,
        kept,
    )


def _result(
    records: list[dict[str, Any]], counts: list[LayerCount], error: float
) -> dict[str, Any]:
    last = records[-1]
    biases = [(layer.outputs[0] if layer.weights[0] else 0, layer.outputs[1]) for layer in counts]
    return {
        "test_error": error,
        "held_out_error": last["held_out_error"],
        "architecture": last["architecture"],
        "weights": last["weights"],
        "dense_weights": last["dense_weights"],
        "macs": last["macs"],
        "dense_macs": last["dense_macs"],
        # float32, biases included
        "bytes": 4 * (last["weights"] + sum(left for left, _ in biases)),
        "dense_bytes": 4 * (last["dense_weights"] + sum(dense for _, dense in biases)),
        "step_ms": last["step_ms"],
        "first_step_ms": records[0]["step_ms"],
        "seconds": sum(record["seconds"] for record in records),
        "peak_megabytes": peak_megabytes(),
        "median_epoch_seconds": statistics.median(record["seconds"] for record in records),
        "layers": [
            {
                "name": layer.name,
                "inputs": layer.inputs,
                "outputs": layer.outputs,
                "weights": layer.weights,
                "macs": layer.macs,
            }
            for layer in counts
        ],
    }


def _table(result: dict[str, Any]) -> str:
    rows = [("", "dense", "pruned", "")]
    for label, key in (("weights", "weights"), ("MACs a sample", "macs"), ("bytes", "bytes")):
        dense, left = result[f"dense_{key}"], result[key]
        rows.append(
            (label, f"{dense:,}", f"{left:,}", f"{dense / left:.1f}x fewer" if left else "")
        )
    first, last = result["first_step_ms"], result["step_ms"]
    rows.append(
        ("training step", f"{first:.1f} ms", f"{last:.1f} ms", f"{first / last:.1f}x faster")
    )
    rows.append(("test error", "", f"{result['test_error']:.2f} %", result["architecture"]))
    rows.append(("training", "", f"{result['seconds']:.0f} s", ""))
    if result["peak_megabytes"] is not None:
        memory = f"{result['peak_megabytes']:.0f} MB"
        rows.append(("peak memory", "", memory, "of the whole process"))
    if not result["weights"]:
        rows.append(("", "", "", "Nothing is left: try a smaller --lambda."))
    lines = [f"{a:<15}{b:>12}{c:>12}   {d}".rstrip() for a, b, c, d in rows]
    return "\n" + "\n".join(lines)


# -- minidiff bench --------------------------------------------------------------------------


def _bench(options: argparse.Namespace) -> int:
    import numba

    from .bench import Bench, TorchProcess, report
    from .plots import bench_figure, save

    _set_threads(options.threads)
    threads = numba.get_num_threads()
    with TorchProcess(threads) if options.against else nullcontext() as torch:
        run = Run.create(options.out or _free_directory("bench"))
        results = Bench(threads, torch, say=print).run()
    run.write_json("bench.json", results)
    save(bench_figure(results), run.path, "bench")
    print(f"\n{report(results)}\n\nsaved in {run.path}")
    return 0


# -- minidiff evaluate -----------------------------------------------------------------------


def _evaluate(options: argparse.Namespace) -> int:
    run = Run.open(options.directory)
    config = Config.from_json(run.read_json("config.json"))
    model = run.checkpoint().model
    data: Dataset = load_dataset(config.dataset)
    error = error_rate(model, data.test, mean=data.mean, std=data.std)
    print(f"{error:.2f} % test error on {len(data.test):,} images ({data.source})")
    return 0
