"""The commands of ``minidiff``: from parsed options to an exit status.

The docstring of a command is its help.
"""

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from minidiff.data.datasets import Dataset, load_dataset
from minidiff.engine import functional, nn
from minidiff.engine.arrays import Array, Shape
from minidiff.engine.module import Module
from minidiff.io.extras import extra
from minidiff.predict.predictor import Predictor
from minidiff.pruning.compact import compact
from minidiff.pruning.count import count, in_use
from minidiff.pruning.network import gates_of
from minidiff.training.config import Config, ConfigError
from minidiff.training.runs import Run, RunError, free_path, peak_megabytes, versions
from minidiff.training.trainer import Trainer, build_model, error_rate

HEADER = "epoch     loss  train %  validation %  architecture        weights       MACs  ms/step"
LINE = (
    "{epoch:>5}  {loss:>7.4f}  {train_error:>7.2f}  {validation:>12}  {architecture:<16}"
    "{weights:>11,}{macs:>11,}{step_ms:>9.1f}"
)


def table(rows: Sequence[Sequence[object]]) -> str:
    """Write rows with aligned columns: the first one to the left, the others to the right."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    first, *others = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ([row[0].ljust(first), *map(str.rjust, row[1:], others)] for row in cells)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def given(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that the command line gives."""
    return {f.name: getattr(options, f.name) for f in fields(Config) if f.name in options}


# -- train -------------------------------------------------------------------------------------


def train(options: argparse.Namespace) -> int:
    """Train a network that prunes itself.

    Settings that are not given are those of the recipe for the dataset. Where MNIST is not
    available, the network trains on the small digits of scikit-learn. A run that was interrupted
    goes on with --resume, and ends bit-identical to one without a break.
    """
    extra("safetensors")  # a missing package is an error now, not after the first epoch
    changes = given(options)
    if options.resume:
        if changes or options.out:
            raise ConfigError("--resume keeps the settings of the run; expected no other option.")
        run = Run.open(options.resume)
        config = Config.from_json(run.read_json("config.json"))
        data = load_dataset(config.dataset, validation=config.validation)
    else:
        validation = changes.get("validation", Config.validation)
        data = load_dataset(changes.pop("dataset", "auto"), validation=validation)
        config = Config.recipe(data.name, **changes)
        run = Run.create(options.out or free_path(f"{data.name}-seed{config.seed}"))
    if run.finished:
        print(f"{run.path} has finished; there is nothing to resume.")
        return 0
    with run.training(None if options.resume else config.to_json()):
        _train(run, config, data)
    return 0


def _train(run: Run, config: Config, data: Dataset) -> None:
    checkpoint = run.checkpoint() if run.checkpoint_path.exists() else None
    trainer = Trainer(config, data, checkpoint)
    run.write_metrics(trainer.records)  # a crash may have left other lines
    sizes = [len(split) if split else 0 for split in (data.train, data.validation, data.test)]
    print(f"data     {data.source}")
    print("         {:,} to train on, {:,} for validation, {:,} to test on.".format(*sizes))
    print(f"run      {run.path}, from epoch {trainer.epoch + 1} on")
    print(f"         After an interruption, {run.resume_command} goes on.")
    reach = (config.gate_stop - config.gate_start) * trainer.steps * config.gate_lr
    learns = config.gated and config.method == "diffprune"
    if learns and reach < config.initial + config.width / 2:
        print(f"gates    move by {reach:.2g} at most, too little to close: try more --epochs")
    print("kernels  compile in the first step, once on this machine\n")
    _train_epochs(run, trainer)
    _plot(run, trainer.model, trainer.shape, trainer.records)
    # The one look at the test set.
    result = _result(trainer, error_rate(trainer.model, data.test, **trainer.scale))
    run.write_json("result.json", result)
    rows: list[tuple[object, ...]] = [("", "dense", "pruned", "saving")]
    for key in ("weights", "macs", "bytes"):
        dense, left = result[f"dense_{key}"], result[key]
        rows.append((key, dense, left, f"{dense / left:.1f}x" if left else "all"))
    print(f"\n{table(rows)}\n\n{result['test_error']:.2f} % test error, {result['architecture']}")


def _train_epochs(run: Run, trainer: Trainer) -> None:
    """Train to the end; write a checkpoint and print a line after each epoch."""
    print(HEADER, flush=True)
    while trainer.step < trainer.steps:
        record = trainer.train_epoch()
        trainer.checkpoint().write(run.checkpoint_path)
        run.write_metrics(trainer.records)
        error = record["validation_error"]
        validation = "-" if error is None else f"{error:.2f}"
        print(LINE.format(validation=validation, **record), flush=True)


def _result(trainer: Trainer, error: float) -> dict[str, Any]:
    """Return ``result.json``: the last epoch, and figures of the whole run and of each layer."""
    records, counts = trainer.records, trainer.counts()
    dense_biases = sum(layer.outputs[1] for layer in counts)
    return {
        **records[-1],
        "test_error": error,
        "bytes": 4 * sum(p.size for p in compact(trainer.model, trainer.shape).parameters()),
        "dense_bytes": 4 * (records[-1]["dense_weights"] + dense_biases),
        "first_step_ms": records[0]["step_ms"],
        "seconds": sum(record["seconds"] for record in records),
        "peak_megabytes": peak_megabytes(),
        "layers": [asdict(layer) for layer in counts],
        "versions": versions(),
    }


def _plot(run: Run, model: Module, shape: Shape, records: list[dict[str, Any]]) -> None:
    from minidiff.figures.plots import plot_run

    gates = gates_of(model)
    phis = {name: gate.phi.data for name, gate in gates.items()}
    limits = next((gate.limits for gate in gates.values()), (0.0, 1.0))
    plot_run(run.path / "plots", records, phis, limits, *_first_layer(model, shape))


def _first_layer(model: Module, shape: Shape) -> tuple[Array, Any]:
    """Return the weights of the first layer as images (O, C, H, W), and which outputs are left."""
    layers = (module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    weight = next(layers).weight.data
    if weight.ndim == 2:  # a dense layer, whose inputs are pixels
        weight = weight.reshape(len(weight), *shape)
    return weight, next(left for name, left in in_use(model, shape).items() if "outputs" in name)


# -- sweep and bench ---------------------------------------------------------------------------


def sweep(options: argparse.Namespace) -> int:
    """Train many networks: every combination of settings.

    Give several values of a setting with commas between them, such as --seed 0,1,2. Each run is a
    line of JSON in the results file. A sweep that was stopped goes on where it was.
    """
    from minidiff.training.sweep import combinations
    from minidiff.training.sweep import sweep as train_all

    lists = {n: v if isinstance(v, list) else [v] for n, v in given(options).items()}
    runs, path = [], options.out
    for dataset in lists.pop("dataset", ["auto"]):
        data = load_dataset(dataset)
        print(f"data: {data.source}")
        runs += combinations(data.name, **lists)
    path.parent.mkdir(parents=True, exist_ok=True)
    failed = train_all(runs, path, jobs=options.jobs, cluster=options.cluster, test=options.test)
    print(f"results are in {path}; {failed} runs failed")
    return 1 if failed else 0


def bench(options: argparse.Namespace) -> int:
    """Measure the speed of kernels, training steps and predictions.

    Nothing else should be running on this machine.
    """
    from minidiff.cli.bench import run as measure
    from minidiff.cli.bench import table as describe

    run = Run.create(options.out or free_path("bench"))
    results = measure(options.threads, print)
    run.write_json("bench.json", results)
    print(f"\n{describe(results)}\n\nsaved in {run.path}")
    return 0


# -- commands that use a run -------------------------------------------------------------------


class Trained:
    """The network of a run directory, and what its checkpoint says of the run."""

    def __init__(self, directory: Path) -> None:
        self.run = Run.open(directory)
        checkpoint = self.run.checkpoint()
        self.model, info = checkpoint.model, checkpoint.info
        if info.get("config") != self.run.read_json("config.json"):
            raise RunError(f"the checkpoint in {directory} belongs to another run.")
        self.config = Config.from_json(info["config"])
        self.records, self.shape = info["records"], tuple(info["shape"])
        self.scale: dict[str, float] = {"mean": info["mean"], "std": info["std"]}

    def predictor(self) -> Predictor:
        """Return the compact network as a function from images to logits."""
        return Predictor(compact(self.model, self.shape), self.shape, **self.scale)


def evaluate(options: argparse.Namespace) -> int:
    """Measure the test error of a trained network."""
    trained = Trained(options.directory)
    data = load_dataset(trained.config.dataset)
    error = error_rate(trained.model, data.test, **trained.scale)
    print(f"{error:.2f} % test error on {len(data.test):,} images ({data.source.rstrip('.')})")
    return 0


def predict(options: argparse.Namespace) -> int:
    """Recognise the digits in image files.

    An image shows one digit, of any size, dark on light or light on dark.
    """
    from minidiff.data.photos import ImageError, prepare_digit

    extra("PIL.Image", "pillow")
    predictor, status = Trained(options.directory).predictor(), 0
    for path in options.images:
        try:
            prepared = prepare_digit(path)
        except ImageError as error:  # the other images are as good as before
            print(f"minidiff: error: {error}", file=sys.stderr)
            status = 1
            continue
        shares = 100 * _probabilities(predictor(prepared.pixels[None, None]))[0]
        print(f"{path}: {shares.argmax()}, with {shares.max():.1f} %")
        print(textwrap.indent("\n".join(prepared.notes), "    "))
        print("    " + "  ".join(f"{label}: {share:.1f} %" for label, share in enumerate(shares)))
    return status


def _probabilities(logits: Array) -> Array:
    """Return the probabilities of the classes, (N, classes), from the logits of a Predictor."""
    return functional.softmax(logits.T).data.T


def inspect(options: argparse.Namespace) -> int:
    """Show what is left of each layer, and draw the plots again."""
    trained = Trained(options.directory)
    model, shape = trained.model, trained.shape
    small, whole = count(compact(model, shape), shape), count(model, shape)
    keys = ("inputs", "outputs", "weights", "macs")
    rows: list[tuple[str, ...]] = [("layer", "inputs", "outputs", "weights", "MACs")]
    for left, dense in zip(small, whole, strict=True):
        pairs = ((getattr(left, key)[1], getattr(dense, key)[1]) for key in keys)
        rows.append((dense.name, *(f"{now:,} of {before:,}" for now, before in pairs)))
    print(table(rows))
    _plot(trained.run, model, shape, trained.records)
    print(f"\nplots are in {trained.run.path / 'plots'}")
    return 0


def report(options: argparse.Namespace) -> int:
    """Write one HTML page about a run."""
    from minidiff.figures.report import Mistake, report_page
    from minidiff.io.files import write_whole

    trained = Trained(options.directory)
    run, path = trained.run, options.out or options.directory / "report.html"
    if not run.finished:
        raise RunError(f"{run.path} has not finished, so there is no result to report.")
    data = load_dataset(trained.config.dataset)
    images, labels = data.test.images, data.test.labels
    chances = _probabilities(trained.predictor()(images))
    wrong = np.flatnonzero(chances.argmax(axis=1) != labels)
    page = report_page(
        title=run.path.resolve().name,
        source=data.source,
        config=trained.config.to_json(),
        records=trained.records,
        result=run.read_json("result.json"),
        gates={name: gate.is_open() for name, gate in gates_of(trained.model).items()},
        used=in_use(trained.model, trained.shape),
        filters=_first_layer(trained.model, trained.shape)[0],
        mistakes=[Mistake(int(i), images[i, 0], int(labels[i]), chances[i]) for i in wrong],
    )
    write_whole(path, page.encode())
    print(path)
    return 0


def export(options: argparse.Namespace) -> int:
    """Write the pruned network to a file for other software.

    The network is compact: whatever is pruned is left out.
    """
    from minidiff.io.export import export as write

    trained, path = Trained(options.directory), options.file
    write(path, trained.model, trained.shape, **trained.scale)
    print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


def compare(options: argparse.Namespace) -> int:
    """Measure the dense, the gated and the compact network side by side.

    The compact network also runs in onnxruntime. Nothing else should be running on this machine.
    """
    from minidiff.cli.compare import compare as measure

    gated = Trained(options.directory)
    dataset, model = gated.config.dataset, gated.config.model
    if options.dense:
        trained = Trained(options.dense)
        config, dense, dense_scale = trained.config, trained.model, trained.scale
        if (config.dataset, config.model, config.sparsity) != (dataset, model, "dense"):
            raise RunError(f"{options.dense} is not a dense run of {model} on {dataset}.")
    else:
        config = Config(model=model, sparsity="dense")
        dense, dense_scale = build_model(config, np.random.default_rng(0)), gated.scale
    test = load_dataset(dataset).test
    print(table(measure(dense, gated.model, gated.shape, test, dense_scale, gated.scale)))
    return 0
