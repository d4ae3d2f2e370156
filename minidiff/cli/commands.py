"""The commands of ``minidiff``: from parsed options to an exit status.

The docstring of a command is its help.
"""

import argparse
import json
import math
import shlex
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minidiff.data.datasets import Dataset, load_dataset
from minidiff.engine import functional, nn
from minidiff.engine.arrays import Array, Shape
from minidiff.engine.module import Module
from minidiff.io.checkpoint import Checkpoint, CheckpointError
from minidiff.io.extras import extra
from minidiff.io.files import words
from minidiff.predict.predictor import Predictor
from minidiff.pruning.compact import compact
from minidiff.pruning.count import count, in_use
from minidiff.pruning.network import gates_of
from minidiff.training.config import Config, ConfigError, option, option_words
from minidiff.training.runs import (
    Run,
    RunError,
    free_path,
    peak_megabytes,
    read_network,
    versions,
)
from minidiff.training.trainer import NonFiniteLossError, Trainer, build_model, error_rate

# 80 columns.
HEADER = "epoch    loss  train %  validation %  architecture   weights       MACs  ms/step"
LINE = (
    "{epoch:>5} {loss:>7.4f}  {train_error:>7.2f}  {validation:>12}  {architecture:<13}"
    "{weights:>9,}{macs:>11,}{step_ms:>9.1f}"
)


def table(rows: Sequence[Sequence[object]]) -> str:
    """Write rows with aligned columns: the first one to the left, the others to the right."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    first, *others = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ([row[0].ljust(first), *map(str.rjust, row[1:], others)] for row in cells)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def finish(options: argparse.Namespace, value: Any, text: str, following: Sequence[object]) -> int:
    """Print what a command found, as text or with --json, and the words of the next command."""
    if options.json:
        print(json.dumps(value, indent=2, allow_nan=False))
    else:
        print(text, end="\n" if text else "")
        follow(*following)
    return 0


def follow(*words: object) -> None:
    """Print the command to try next."""
    print(f"\nnext: minidiff {shlex.join(map(str, words))}")


def given(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that the command line gives."""
    return {f.name: getattr(options, f.name) for f in fields(Config) if f.name in options}


@contextmanager
def wrong_options(options: argparse.Namespace) -> Iterator[None]:
    """Refuse the command line if its settings do not go together."""
    try:
        yield
    except ConfigError as error:
        options.refuse(error.as_typed(given(options)))


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
            name = next((option_words(*change)[0] for change in changes.items()), "--out")
            options.refuse(f"{name} has no effect with --resume, which keeps the settings.")
        run = Run.open(options.resume)
        config = run.config()
        data = load_dataset(config.dataset, validation=config.validation)
    else:
        dataset = changes.pop("dataset", "auto")
        with wrong_options(options):
            if dataset != "auto":
                Config.recipe(dataset, **changes)  # an error comes before a download
            data = load_dataset(dataset, validation=changes.get("validation", Config.validation))
            config = Config.recipe(data.name, **changes)
            if config.targets:
                Trainer(config, data)  # an impossible size is an error before anything is written
        run = Run.create(options.out or free_path(f"{data.name}-seed{config.seed}"))
    if run.finished:
        print(f"{run.path} has finished; there is nothing to resume.")
        return 0
    with run.training(None if options.resume else config.to_json()):
        _train(run, config, data)
    return 0


def _train(run: Run, config: Config, data: Dataset) -> None:
    checkpoint = run.checkpoint() if run.checkpoint_path.exists() else None
    try:
        trainer = Trainer(config, data, checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{run.checkpoint_path}: {error}") from error
    if checkpoint:
        _warn_of_other_versions(checkpoint)
    run.write_metrics(trainer.records)  # a crash may have left other lines
    sizes = [len(split) if split else 0 for split in (data.train, data.validation, data.test)]
    print(f"data     {data.source}")
    print("         {:,} to train on, {:,} for validation, {:,} to test on.".format(*sizes))
    print(f"run      {run.path}, from epoch {trainer.epoch + 1} on")
    print(f"         After an interruption, {run.resume_command} goes on.")
    obstacle = "" if trainer.step else trainer.obstacle()
    if obstacle:
        print(f"minidiff: warning: {obstacle}", file=sys.stderr)
    print("kernels  compile in the first step, once on this machine\n")
    _train_epochs(run, trainer)
    # The one look at the test set.
    result = _result(trainer, error_rate(trainer.model, data.test, **trainer.scale))
    run.write_json("result.json", result)
    try:
        _plot(run, trainer.model, trainer.shape, trainer.records)
    except Exception as error:  # whatever it is, the result counts
        warnings.warn(
            f"the plots are missing: {words(error)}; minidiff inspect {run.path} draws them again",
            stacklevel=2,
        )
    rows: list[tuple[object, ...]] = [("", "dense", "pruned", "saving")]
    for key in ("weights", "macs", "bytes"):
        dense, left = result[f"dense_{key}"], result[key]
        saving = "none" if left == dense else f"{dense / left:.1f}x" if left else "all"
        rows.append((key, dense, left, saving))
    print(f"\n{table(rows)}\n\n{result['test_error']:.2f} % test error, {result['architecture']}")
    if trainer.target and trainer.target.closed_at_end:
        number = trainer.target.closed_at_end
        print(f"{number:,} gates, the least open ones, were closed at once to reach the target.")
    if config.gated and not 0 < result["weights"] < result["dense_weights"]:
        print(_advice(config, obstacle, closed=not result["weights"]))
    follow("inspect", run.path)


def _advice(config: Config, obstacle: str, *, closed: bool) -> str:
    """Return what to change if all gates are closed, or none is."""
    if obstacle and not closed:
        return obstacle
    if config.targets:
        return "every path is closed: the target is too small for this network and these epochs."
    larger = closed == (config.method == "magnitude")  # a larger keep, or a smaller penalty
    name = option("keep" if config.method == "magnitude" else "penalty")
    what = "every path is closed" if closed else "nothing is closed"
    return f"{what}: try a {'larger' if larger else 'smaller'} {name}."


def _warn_of_other_versions(checkpoint: Checkpoint) -> None:
    """Warn if other software, or another processor, has trained so far."""
    then, now = checkpoint.info.get("versions") or {}, versions()
    others = [
        f"{key} {then.get(key, '?')} (now {now[key]})" for key in now if then.get(key) != now[key]
    ]
    if others:
        warnings.warn(
            f"the run was trained with {', '.join(others)}; its bits may differ from those of an "
            f"uninterrupted run",
            stacklevel=2,
        )


def _train_epochs(run: Run, trainer: Trainer) -> None:
    """Train to the end; write a checkpoint and print a line after each epoch."""
    print(HEADER, flush=True)
    while trainer.step < trainer.steps:
        record = trainer.train_epoch()
        run.write_checkpoint(trainer.checkpoint())
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
    from minidiff.training.sweep import combinations, read_results
    from minidiff.training.sweep import sweep as train_all

    lists = {n: v if isinstance(v, list) else [v] for n, v in given(options).items()}
    runs, path = [], options.out
    for dataset in lists.pop("dataset", ["auto"]):
        with wrong_options(options):
            if dataset != "auto":
                combinations(dataset, **lists)  # an error comes before a download
            data = load_dataset(dataset)
            runs += combinations(data.name, **lists)
        print(f"data: {data.source}")
    path.parent.mkdir(parents=True, exist_ok=True)
    failed = train_all(runs, path, jobs=options.jobs, cluster=options.cluster, test=options.test)
    print(f"results are in {path}; {failed} runs failed")
    errors = {
        line["config"]: line["result"]["validation_error"]
        for line in read_results(path)
        if line["config"] in runs and line.get("result", {}).get("validation_error") is not None
    }
    follow("train", *(min(errors, key=errors.__getitem__).options() if errors else ()))
    return 1 if failed else 0


def bench(options: argparse.Namespace) -> int:
    """Measure the speed of kernels, training steps and predictions.

    Nothing else should be running on this machine.
    """
    from minidiff.cli.bench import run as measure
    from minidiff.cli.bench import table as describe

    run = Run.create(options.out or free_path("bench"))
    results = measure(options.threads, partial(print, file=sys.stderr))
    status = finish(options, results, describe(results), ["train"])
    # After the table, so that a failed write does not lose minutes of measurement.
    run.write_json("bench.json", results)
    print(f"saved in {run.path}", file=sys.stderr)
    return status


# -- commands that use a run -------------------------------------------------------------------


class Network:
    """A trained network, and how its inputs were normalised."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.model, info = checkpoint.model, checkpoint.info
        self.shape: Shape = tuple(info["shape"])
        self.scale: dict[str, float] = {"mean": info["mean"], "std": info["std"]}

    def predictor(self) -> Predictor:
        """Return the compact network as a function from images to logits."""
        return Predictor(compact(self.model, self.shape), self.shape, **self.scale)

    def data(self) -> Dataset:
        """Return the images that the network was trained on; for other images, MNIST or digits."""
        digits = load_dataset("digits")
        scale = {"mean": digits.mean, "std": digits.std}
        near = all(math.isclose(self.scale[key], scale[key], rel_tol=0.01) for key in scale)
        return digits if near else load_dataset()


class Trained(Network):
    """The network of a run directory, and what its checkpoint says of the run."""

    def __init__(self, directory: Path) -> None:
        self.run = Run.open(directory)
        checkpoint = self.run.checkpoint()
        super().__init__(checkpoint)
        self.config = self.run.config()
        if Config.from_json(checkpoint.info["config"]) != self.config:
            raise RunError(f"the checkpoint in {directory} belongs to another run.")
        self.records = checkpoint.info["records"]

    def data(self) -> Dataset:
        """Return the images of the run."""
        return load_dataset(self.config.dataset)


def _network(path: Path) -> Network:
    """Return the network of a run directory, or of a file that was exported."""
    return Network(read_network(path)) if path.is_file() else Trained(path)


def evaluate(options: argparse.Namespace) -> int:
    """Measure the test error of a trained network."""
    network = _network(options.directory)
    data = network.data()
    try:
        error = error_rate(network.model, data.test, **network.scale)
    except NonFiniteLossError as cause:
        raise NonFiniteLossError(f"{options.directory}: {cause}") from cause
    value = {"test_error": error, "images": len(data.test), "data": data.source}
    text = f"{error:.2f} % test error on {len(data.test):,} images ({data.source.rstrip('.')})"
    path = options.directory
    following = ["inspect", path] if path.is_dir() else ["predict", path, "photo.jpg"]
    return finish(options, value, text, following)


def predict(options: argparse.Namespace) -> int:
    """Recognise the digits in image files.

    An image shows one digit, of any size, dark on light or light on dark.
    """
    from minidiff.data.photos import ImageError, prepare_digit

    extra("PIL.Image", "pillow")
    predictor = _network(options.directory).predictor()
    answers: list[dict[str, Any]] = []
    for path in options.images:
        try:
            prepared = prepare_digit(path)
        except ImageError as error:  # the other images are as good as before
            print(f"minidiff: error: {error}", file=sys.stderr)
            continue
        shares = 100 * _probabilities(predictor(prepared.pixels[None, None]), options.directory)[0]
        answers.append(
            {"image": str(path), "digit": int(shares.argmax()), "percent": shares.tolist()}
        )
        if not options.json:
            print(f"{path}: {shares.argmax()}, with {shares.max():.1f} %")
            print(textwrap.indent("\n".join(prepared.notes), "    "))
            print("".join(f"{digit:>7}" for digit in range(len(shares))))
            print("".join(f"{share:>5.1f} %" for share in shares))
    path = options.directory
    finish(
        options,
        answers,
        "",
        ["export", path, "model.onnx"] if path.is_dir() else ["evaluate", path],
    )
    return 0 if len(answers) == len(options.images) else 1


def _probabilities(logits: Array, path: Path) -> Array:
    """Return the probabilities of the classes, (N, classes), from the logits of a Predictor."""
    if not np.isfinite(logits).all():
        text = f"{path}: the outputs of the network are infinite or not a number."
        raise NonFiniteLossError(text)
    return functional.softmax(logits.T).data.T


def inspect(options: argparse.Namespace) -> int:
    """Show what is left of each layer, and draw the plots again."""
    trained = Trained(options.directory)
    model, shape = trained.model, trained.shape
    small, whole = count(compact(model, shape), shape), count(model, shape)
    keys = {"inputs": 1, "outputs": 1, "weights": 0, "macs": 0}  # weights that are not 0
    rows: list[tuple[str, ...]] = [("layer", "inputs", "outputs", "weights", "MACs")]
    layers: dict[str, Any] = {}  # [left, dense] by layer and by kind
    for left, dense in zip(small, whole, strict=True):
        pairs = {k: [getattr(left, k)[at], getattr(dense, k)[1]] for k, at in keys.items()}
        layers[dense.name] = pairs
        rows.append((dense.name, *(f"{now:,} of {before:,}" for now, before in pairs.values())))
    _plot(trained.run, model, shape, trained.records)
    text = f"{table(rows)}\n\nplots are in {trained.run.path / 'plots'}"
    return finish(options, layers, text, ["report", options.directory])


def report(options: argparse.Namespace) -> int:
    """Write one HTML page about a run."""
    from minidiff.figures.report import Mistake, report_page
    from minidiff.io.files import write_whole

    trained = Trained(options.directory)
    run, path = trained.run, options.out or options.directory / "report.html"
    if not run.finished:
        raise RunError(f"{run.path} has not finished, so there is no result to report.")
    data = trained.data()
    images, labels = data.test.images, data.test.labels
    chances = _probabilities(trained.predictor()(images), options.directory)
    wrong = np.flatnonzero(chances.argmax(axis=1) != labels)
    page = report_page(
        title=run.path.resolve().name,
        source=data.source,
        config=trained.config.to_json(),
        records=trained.records,
        result=run.result() | {"layers": [asdict(c) for c in count(trained.model, trained.shape)]},
        gates={name: gate.is_open() for name, gate in gates_of(trained.model).items()},
        used=in_use(trained.model, trained.shape),
        filters=_first_layer(trained.model, trained.shape)[0],
        mistakes=[Mistake(int(i), images[i, 0], int(labels[i]), chances[i]) for i in wrong],
    )
    write_whole(path, page.encode(errors="backslashreplace"))  # the name may not be UTF-8
    print(path)
    follow("predict", options.directory, "photo.jpg")
    return 0


def export(options: argparse.Namespace) -> int:
    """Write the pruned network to a file for other software.

    The network is compact: whatever is pruned is left out.
    """
    from minidiff.io.export import export as write

    trained, path = Trained(options.directory), options.file
    write(path, trained.model, trained.shape, **trained.scale)
    print(f"{path}: {path.stat().st_size:,} bytes")
    follow("compare", options.directory)
    return 0


def compare(options: argparse.Namespace) -> int:
    """Measure the dense, the gated and the compact network side by side.

    The compact network also runs in onnxruntime, if that is installed. Nothing else should be
    running on this machine.
    """
    from minidiff.cli.compare import compare as measure
    from minidiff.cli.compare import rows

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
    found = measure(dense, gated.model, gated.shape, test, dense_scale, gated.scale)
    following = ["sweep", "--dataset", dataset, "--model", model, "--seed", "0,1,2"]
    return finish(options, found, table(rows(found)), following)
