"""What the commands of ``minidiff`` do: from parsed options to an exit status."""

import argparse
import math
import statistics
import sys
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidiff.data.datasets import Dataset, load_dataset
from minidiff.engine import nn
from minidiff.engine.arrays import Array, Shape
from minidiff.engine.module import Module, chain
from minidiff.io.checkpoint import MALFORMED, Checkpoint
from minidiff.io.extras import extra
from minidiff.predict.predictor import Predictor
from minidiff.pruning.compact import compact
from minidiff.pruning.count import count, in_use
from minidiff.pruning.gated import Gated
from minidiff.pruning.network import gates_of
from minidiff.training.runs import Run, RunError, peak_megabytes, versions
from minidiff.training.trainer import Config, ConfigError, Trainer, error_rate

__all__ = [
    "INTERRUPTED",
    "bench",
    "compare",
    "evaluate",
    "export",
    "inspect",
    "predict",
    "report",
    "sweep",
    "train",
]

LINES = 30  # that a run prints, about; metrics.jsonl has every epoch
INTERRUPTED = 130  # the exit status of a program that Ctrl-C has ended

# -- train -------------------------------------------------------------------------------------


def train(options: argparse.Namespace) -> int:
    """Train a network, or go on with a run that was interrupted."""
    extra("safetensors")  # asked for now, not after the first epoch
    _set_threads(options.threads)
    names = [field.name for field in fields(Config)]
    new: dict[str, Any] | None = None
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
            run.checkpoint()
            print(f"{run.path} has finished; there is nothing to go on with.")
            try:
                print(_table(run.read_json("result.json")))
            except MALFORMED as error:
                raise RunError(f"{run.path / 'result.json'} is not what was written.") from error
            return 0
        data = load_dataset(config.dataset, validation=config.validation)
    else:
        changes = {name: getattr(options, name) for name in names if name != "dataset"}
        _refuse_gates_of_dense(options)
        validation = Config.recipe("mnist", validation=options.validation).validation  # is in range
        data = load_dataset(options.dataset or "auto", validation=validation)
        config = Config.recipe(data.name, **changes)
        plain = {name: getattr(Config(), name) for name in ("model", "sparsity", "method")}
        kind = "".join(
            f"-{getattr(config, name)}"
            for name, usual in plain.items()
            if getattr(config, name) != usual
        )
        run = Run.create(options.out or _free_directory(f"{data.name}{kind}-seed{config.seed}"))
        new = config.to_json()
    with run.training(new):
        return _train(run, config, data)


GATE_SETTINGS = (
    *("method", "keep", "penalty", "cost", "noise", "sigma", "width", "initial"),
    *("gate_lr", "gate_start", "ramp", "gate_stop"),
)


def _refuse_gates_of_dense(options: argparse.Namespace) -> None:
    gates = [name for name in GATE_SETTINGS if getattr(options, name) is not None]
    if gates and options.sparsity == "dense":
        raise ConfigError(f"--dense trains without gates; it leaves no use for {gates[0]}.")


def _train(run: Run, config: Config, data: Dataset) -> int:
    checkpoint = run.checkpoint() if run.checkpoint_path.exists() else None
    trainer = Trainer(config, data, checkpoint)
    if checkpoint:
        run.write_metrics(trainer.records)  # which a crash may have left behind
    sizes = (
        f"{len(data.train):,} to train on, {len(data.validation or ()):,} for validation, "
        f"{len(data.test):,} to test on."
    )
    indent = " " * 9
    print(textwrap.fill(f"data     {data.source}", 100, subsequent_indent=indent))
    print(indent + sizes)
    print(f"run      {run.path}" + (f", from epoch {trainer.epoch + 1} on" if checkpoint else ""))
    reach = (config.gate_stop - config.gate_start) * trainer.steps * config.gate_lr
    way = config.initial + config.width / 2
    if config.gated and config.method == "diffprune" and reach < way:
        said = (
            f"gates    cannot close in this run: from {config.initial:g} to {-config.width / 2:g} "
            f"is {way:g}, and they move {reach:.2g} at most. Try more --epochs, or a larger "
            f"--gate-lr."
        )
        print(textwrap.fill(said, 100, subsequent_indent=indent))
    print("kernels  compiled at the first step, once; then cached\n", flush=True)
    interrupted = _run_epochs(run, trainer)
    records = trainer.records
    if interrupted:  # what counts is on the disk
        written = run.checkpoint_path.exists()
        records = list(run.checkpoint().info["records"]) if written else []
        done = f"what was reached by epoch {len(records)}" if records else "no whole epoch yet"
        print(
            f"\ninterrupted: the run directory holds {done}.\n"
            f"minidiff train --resume {run.path} goes on from there."
        )
    if not records:
        return INTERRUPTED
    model = run.checkpoint().model
    _plot(run, model, trainer.shape, records)
    if interrupted:
        return INTERRUPTED
    # The one look at the test set.
    error = error_rate(model, data.test, mean=data.mean, std=data.std)
    result = _result(trainer, error)
    run.write_json("result.json", result)
    print(_table(result))
    return 0


def _run_epochs(run: Run, trainer: Trainer) -> bool:
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
                bar.set_postfix_str(f"loss {loss:.3f}{_live(trainer.records)}", refresh=False)

        try:
            while trainer.step < trainer.steps:
                record = trainer.train_epoch(report)
                epoch = record["epoch"]
                run.write_checkpoint(trainer.checkpoint())  # which has the records too
                run.write_metrics(trainer.records)
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
    """Make and return runs/NAME, or runs/NAME-2 and so on if there is one already."""
    Path("runs").mkdir(exist_ok=True)
    path, number = Path("runs") / name, 1
    while True:
        try:
            path.mkdir()  # fails if another process was quicker
            return path
        except FileExistsError:
            number += 1
            path = Path("runs") / f"{name}-{number}"


def _ratio(record: dict[str, Any], what: str) -> str:
    left = record[what]
    return f"{record[f'dense_{what}'] / left:.1f}x" if left else "all"


def _live(records: list[dict[str, Any]]) -> str:
    """Say in a few words how far the last whole epoch has come."""
    if not records:
        return ""
    last = records[-1]
    return (
        f", error {last['train_error']:.2f}% train "
        f"{_percent(last['validation_error'])} validation, "
        f"{last['architecture']}, {_ratio(last, 'weights')} fewer weights, "
        f"{_ratio(last, 'macs')} fewer MACs"
    )


def _percent(error: float | None) -> str:
    return "-" if error is None else f"{error:.2f}%"


def _header() -> str:
    return (
        f"{'epoch':>5}  {'loss':>7}  {'train':>7}  {'validation':>10}  {'architecture':<16}"
        f"{'fewer weights':>14}{'fewer MACs':>12}{'ms/step':>9}"
    )


def _line(record: dict[str, Any]) -> str:
    return (
        f"{record['epoch']:>5}  {record['loss']:>7.4f}  {record['train_error']:>6.2f}%  "
        f"{_percent(record['validation_error']):>10}  {record['architecture']:<16}"
        f"{_ratio(record, 'weights'):>14}{_ratio(record, 'macs'):>12}{record['step_ms']:>9.1f}"
    )


def _plot(run: Run, model: Module, shape: Shape, records: list[dict[str, Any]]) -> None:
    from minidiff.figures.plots import plot_run

    gates = gates_of(model)
    name, weight = _first_layer(model)
    plot_run(
        run.path / "plots",
        records,
        {name: gate.phi.data for name, gate in gates.items()},
        next((gate.limits for gate in gates.values()), (0.0, 1.0)),
        weight,
        in_use(model, shape)[f"{name}.outputs"],
    )


def _first_layer(model: Module) -> tuple[str, Array]:
    """Return the name of the first layer, and its weights as small images."""
    name, first = next(
        (name, layer)
        for name, layer in chain(model)
        if isinstance(layer, Gated | nn.Conv2d | nn.Linear)
    )
    weight = (first.layer if isinstance(first, Gated) else first).weight.data
    if weight.ndim == 2:  # of a dense layer that sees images
        side = math.isqrt(weight.shape[1])
        weight = weight.reshape(len(weight), -1, side, side)
    return name, weight


def _result(trainer: Trainer, error: float) -> dict[str, Any]:
    """Sum up a run: figures of the whole network, of its last epoch, and of each layer."""
    records, counts = trainer.records, trainer.counts()
    last, dense_biases = records[-1], sum(layer.outputs[1] for layer in counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the table says it if nothing is left
        small = compact(trainer.model, trainer.shape)
    return {
        "versions": versions(),
        "gated": trainer.config.gated,
        "test_error": error,
        "validation_error": last["validation_error"],
        "architecture": last["architecture"],
        "weights": last["weights"],
        "dense_weights": last["dense_weights"],
        "macs": last["macs"],
        "dense_macs": last["dense_macs"],
        # In float32, biases included; zeros among what is left take room too.
        "bytes": 4 * sum(parameter.size for parameter in small.parameters()),
        "dense_bytes": 4 * (last["dense_weights"] + dense_biases),
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
    gated = result["gated"]
    rows = [("", "dense", "pruned" if gated else "", "")]
    for label, key in (("weights", "weights"), ("MACs a sample", "macs"), ("bytes", "bytes")):
        dense, left = result[f"dense_{key}"], result[key]
        saved = f"{dense / left:.1f}x fewer" if left else ""
        rows.append((label, f"{dense:,}", *((f"{left:,}", saved) if gated else ("", ""))))
    first, last = result["first_step_ms"], result["step_ms"]
    times = (f"{last:.1f} ms", f"{first / last:.1f}x faster") if gated else ("", "")
    rows.append(("training step", f"{first if gated else last:.1f} ms", *times))
    figures = [("test error", f"{result['test_error']:.2f} %", result["architecture"])]
    figures.append(("training", f"{result['seconds']:.0f} s", ""))
    if result["peak_megabytes"] is not None:
        memory = f"{result['peak_megabytes']:.0f} MB"
        figures.append(("peak memory", memory, "of the whole process"))
    for label, value, note in figures:
        rows.append((label, *(("", value) if gated else (value, "")), note))
    if not result["weights"]:
        rows.append(("", "", "", "Nothing is left: try a smaller --lambda."))
    lines = [f"{a:<15}{b:>12}{c:>12}   {d}".rstrip() for a, b, c, d in rows]
    return "\n" + "\n".join(lines)


# -- sweep -------------------------------------------------------------------------------------


def sweep(options: argparse.Namespace) -> int:
    """Train many networks: every method with every strength and every seed."""
    from minidiff.training.sweep import sweep as run_all

    names = [field.name for field in fields(Config)]
    listed = ("method", "penalty", "keep", "seed")
    changes = {n: getattr(options, n) for n in names if n != "dataset" and n not in listed}
    _refuse_gates_of_dense(options)
    data = _which_dataset(options.dataset)
    configs = []
    for method in options.method or ["diffprune"]:
        strength = "keep" if method == "magnitude" else "penalty"
        for value in getattr(options, strength) or [None]:
            configs += [
                Config.recipe(data, **changes, method=method, seed=seed, **{strength: value})
                for seed in options.seed or [0]
            ]
    path: Path = options.out or Path("runs") / "sweep.jsonl"
    if path.suffix != ".jsonl":
        raise ConfigError(f"--out is {path}; expected a file that ends in .jsonl.")
    path.parent.mkdir(parents=True, exist_ok=True)
    failed = run_all(configs, path, jobs=options.jobs, cluster=options.cluster, test=options.test)
    print(f"results are in {path}" + (f"; {failed} runs failed" if failed else ""))
    return 1 if failed else 0


def _which_dataset(name: str | None) -> str:
    """Say where images come from, and return the name of the dataset."""
    data = load_dataset(name or "auto")
    print(textwrap.fill(f"data: {data.source}", 100))
    return data.name


# -- bench -------------------------------------------------------------------------------------


def bench(options: argparse.Namespace) -> int:
    """Measure the speed of kernels, training steps and predictions."""
    import numba

    from minidiff.cli.bench import run, table

    _set_threads(options.threads)
    directory = Run.create(options.out or _free_directory("bench"))
    results = run(numba.get_num_threads(), print)
    directory.write_json("bench.json", results)
    print(f"\n{table(results)}\n\nsaved in {directory.path}")
    return 0


# -- what is done with a run -------------------------------------------------------------------


@dataclass
class Trained:
    """A run directory with a trained network in it."""

    run: Run
    config: Config
    records: list[dict[str, Any]]
    model: Module
    shape: Shape
    mean: float
    std: float

    @classmethod
    def open(cls, directory: Path) -> "Trained":
        """Read a run; RunError or CheckpointError if there is nothing to read."""
        run = Run.open(directory)
        config = Config.from_json(run.read_json("config.json"))
        checkpoint: Checkpoint = run.checkpoint()
        info = checkpoint.info
        try:
            if Config.from_json(info["config"]) != config:
                raise ValueError("it is of a run with another configuration")
            shape = tuple(int(n) for n in info["shape"])
            count(checkpoint.model, shape)  # fits
            mean, std, records = float(info["mean"]), float(info["std"]), list(info["records"])
        except MALFORMED as error:
            raise RunError(f"the checkpoint of {directory} is not of this run: {error}.") from error
        if not run.finished:
            print(
                f"minidiff: note: {directory} has come to epoch {len(records)} of {config.epochs}; "
                f"minidiff train --resume {directory} goes on.",
                file=sys.stderr,
            )
        return cls(run, config, records, checkpoint.model, shape, mean, std)

    def predictor(self) -> Predictor:
        """Return the compact network, ready to be asked."""
        return Predictor(compact(self.model, self.shape), self.shape, mean=self.mean, std=self.std)


def evaluate(options: argparse.Namespace) -> int:
    """Print the error on the test set."""
    trained = Trained.open(options.directory)
    data: Dataset = load_dataset(trained.config.dataset)
    # As in training: another number of images held out makes another mean.
    error = error_rate(trained.model, data.test, mean=trained.mean, std=trained.std)
    print(f"{error:.2f} % test error on {len(data.test):,} images ({data.source.rstrip('.')})")
    return 0


def export(options: argparse.Namespace) -> int:
    """Write the compact network to a file for other software."""
    from minidiff.io.export import export as write

    trained = Trained.open(options.directory)
    trained.run.refuse_own(options.file)
    small = write(options.file, trained.model, trained.shape, mean=trained.mean, std=trained.std)
    layers = [m for m in small.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    weights = sum(layer.weight.size for layer in layers)
    print(
        f"{options.file}: {options.file.stat().st_size:,} bytes, {weights:,} weights in "
        f"{len(layers)} layers"
    )
    if options.file.suffix == ".safetensors":
        print(f"it expects inputs normalised with mean {trained.mean:.6g}, std {trained.std:.6g}")
    else:
        print("it normalises its inputs, which are to be from 0 to 1")
    return 0


def predict(options: argparse.Namespace) -> int:
    """Print what the network thinks of images."""
    from minidiff.data.photos import ImageError, prepare_digit

    extra("PIL.Image", "pillow")
    predictor = Trained.open(options.directory).predictor()
    status = 0
    for path in options.images:
        try:
            prepared = prepare_digit(path)
        except ImageError as error:
            print(f"minidiff: error: {error}", file=sys.stderr)
            status = 1
            continue
        (shares,) = 100 * _softmax(predictor(prepared.pixels[None, None]))
        print(f"{path}: {shares.argmax()}, with {shares.max():.1f} %")
        print(textwrap.fill("; ".join(prepared.notes), 100, **_INDENT))
        print("    " + "  ".join(f"{label}: {share:.1f} %" for label, share in enumerate(shares)))
    return status


_INDENT: Any = {"initial_indent": "    ", "subsequent_indent": "    "}


def inspect(options: argparse.Namespace) -> int:
    """Print what is left of each layer, and write the plots again."""
    trained = Trained.open(options.directory)
    print(_layer_table(trained.model, trained.shape))
    _plot(trained.run, trained.model, trained.shape, trained.records)
    print(f"\nplots are in {trained.run.path / 'plots'}")
    return 0


def _layer_table(model: Module, shape: Shape) -> str:
    """Write what the compact network has of each layer with weights, of how much."""
    small = compact(model, shape)
    layers = dict(small.children())
    rows = [("layer", "weight", "", "weights", "MACs", "bytes")]
    totals = [0] * 5
    for left, whole in zip(count(small, shape), count(model, shape), strict=True):
        layer = layers[left.name]
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        size = 4 * (layer.weight.size + layer.bias.size)
        figures = [left.weights[1], whole.weights[1], left.macs[1], whole.macs[1], size]
        totals = [total + figure for total, figure in zip(totals, figures, strict=True)]
        now = "x".join(map(str, layer.weight.shape))
        was = "x".join(map(str, (whole.outputs[1], whole.inputs[1], *layer.weight.shape[2:])))
        rows.append((whole.name, now, f"of {was}", *_figures(figures)))
    rows.append(("in all", "", "", *_figures(totals)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, 2) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _figures(figures: Sequence[int]) -> tuple[str, str, str]:
    weights, dense_weights, macs, dense_macs, size = figures
    return _of(weights, dense_weights), _of(macs, dense_macs), f"{size:,}"


def _of(left: int, whole: int) -> str:
    return f"{left:,} of {whole:,}"


def report(options: argparse.Namespace) -> int:
    """Write a page about a run."""
    from minidiff.figures.report import Mistake, report_page
    from minidiff.io.files import write_whole

    trained = Trained.open(options.directory)
    run = trained.run
    if not run.finished:
        raise RunError(
            f"{run.path} has not finished, so there is nothing to report yet; go on with minidiff "
            f"train --resume {run.path}."
        )
    data = load_dataset(trained.config.dataset)
    predictor, mistakes = trained.predictor(), []
    for start in range(0, len(data.test), 500):
        images, labels = data.test.images[start:][:500], data.test.labels[start:][:500]
        probabilities = _softmax(predictor(images))
        for i in np.flatnonzero(probabilities.argmax(axis=1) != labels):
            pixels = images[i, 0] if images.dtype == np.uint8 else 255 * images[i, 0]
            mistakes.append(
                Mistake(int(start + i), pixels.astype(np.uint8), int(labels[i]), probabilities[i])
            )
    page = report_page(
        title=run.path.resolve().name,
        source=data.source,
        config=trained.config.to_json(),
        records=trained.records,
        result=run.read_json("result.json"),
        gates={name: gate.is_open() for name, gate in gates_of(trained.model).items()},
        used=in_use(trained.model, trained.shape),
        filters=_first_layer(trained.model)[1],
        mistakes=mistakes,
    )
    path = options.out or run.path / "report.html"
    run.refuse_own(path)
    write_whole(path, page.encode())
    print(path)
    return 0


def compare(options: argparse.Namespace) -> int:
    """Measure a dense, the gated and the compact network side by side."""
    from minidiff.cli.compare import compare as measure
    from minidiff.cli.compare import table

    _set_threads(options.threads)
    trained = Trained.open(options.directory)
    if not trained.config.gated:
        raise RunError(f"{options.directory} is a dense run; give it as --dense of a gated one.")
    dense = Trained.open(options.dense) if options.dense else None
    config = trained.config
    if dense and (
        dense.config.gated
        or (dense.config.dataset, dense.config.model) != (config.dataset, config.model)
    ):
        raise RunError(
            f"{options.dense} is not a dense run of {config.model} on {config.dataset}; train one "
            f"with minidiff train --dense --model {config.model} --dataset {config.dataset}."
        )
    data = load_dataset(trained.config.dataset)
    rows, agreement = measure(
        dense.model if dense else None,
        trained.model,
        trained.shape,
        data.test,
        mean=trained.mean,
        std=trained.std,
        # With another number of images held out, its mean is another.
        dense_scale=(dense.mean, dense.std) if dense else None,
    )
    print(f"{table(rows)}\n{agreement}")
    return 0


def _softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return probabilities, (N, classes)."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
