"""``minidiff compare``: a dense, a gated and a compact network side by side, and onnxruntime's."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from minidiff.cli.bench import in_turns
from minidiff.data.batches import batches
from minidiff.data.datasets import Split
from minidiff.engine import nn
from minidiff.engine.arrays import Shape
from minidiff.engine.module import Module, chain
from minidiff.engine.tensor import no_grad
from minidiff.io.checkpoint import save
from minidiff.io.export import export
from minidiff.io.extras import extra
from minidiff.predict.predictor import Predictor
from minidiff.pruning.compact import compact, flat_name
from minidiff.pruning.count import count
from minidiff.pruning.gated import Gated
from minidiff.pruning.gates import Gate

__all__ = ["Row", "compare", "table"]

BATCHES = (1, 1000)
ROUNDS = 6
RUNTIME = "compact, onnxruntime"
Logits = Callable[[NDArray[Any]], NDArray[Any]]  # of images in float32, (N, C, H, W), 0..1


@dataclass(frozen=True)
class Row:
    """What is known of a network.

    Attributes
    ----------
    name : str
    weights, size, macs : int
        Weights that are not left out, bytes of its file, and MACs a sample.
    error : float or None
        In percent of the test set; None for a network that was not trained.
    milliseconds : dict
        For so many images at once, from images to logits.

    Examples
    --------
    See :func:`table`.
    """

    name: str
    weights: int
    size: int
    macs: int
    error: float | None
    milliseconds: dict[int, float]


def compare(
    dense: Module | None,
    gated: Module,
    shape: Shape,
    split: Split,
    *,
    mean: float,
    std: float,
    dense_scale: tuple[float, float] | None = None,
) -> tuple[list[Row], str]:
    """Measure networks on the test set; return a row for each, and a sentence on agreement.

    Parameters
    ----------
    dense
        A trained network without gates; None for an untrained one of the same layers.
    gated
        A trained network with gates.
    shape
        Of one input, without the batch.
    split
        The test set.
    mean, std
        Of the training images, which inputs are normalised with.
    dense_scale
        Mean and standard deviation of the dense network's, if they are others.

    Raises
    ------
    ImportError
        If onnx, onnxruntime or safetensors is not installed.
    """
    plain = dense if dense is not None else _without_gates(gated)
    small = compact(gated, shape)
    dense_mean, dense_std = dense_scale or (mean, std)
    with tempfile.TemporaryDirectory() as directory:
        sizes = {}
        for name, model in (("dense", plain), ("gated", gated), ("compact", small)):
            path = Path(directory) / f"{name}.safetensors"
            save(path, model)
            sizes[name] = path.stat().st_size
        path = Path(directory) / "model.onnx"
        export(path, small, shape, mean=mean, std=std)
        sizes[RUNTIME] = path.stat().st_size
        runtime = _runtime(path)
    functions: dict[str, Logits] = {
        "dense": Predictor(plain, shape, mean=dense_mean, std=dense_std),
        "gated": _in_place(gated, mean, std),
        "compact": Predictor(small, shape, mean=mean, std=std),
        RUNTIME: runtime,
    }
    pixels = split.images.astype(np.float32)
    if split.images.dtype == np.uint8:
        pixels /= 255
    answers = {name: _all(function, pixels) for name, function in functions.items()}
    times: dict[str, dict[int, float]] = {name: {} for name in functions}
    for size in BATCHES:
        images = pixels[:size]
        calls = {name: _call(function, images) for name, function in functions.items()}
        for name, seconds in in_turns(calls, ROUNDS).items():
            times[name][len(images)] = 1000 * seconds
    rows = []
    for name, model in zip(functions, (plain, gated, small, small), strict=True):
        counts = count(model, shape)
        wrong = answers[name].argmax(axis=1) != split.labels
        rows.append(
            Row(
                name,
                sum(layer.weights[0] for layer in counts),
                sizes[name],
                sum(layer.macs[0] for layer in counts),
                None if name == "dense" and dense is None else 100 * float(wrong.mean()),
                times[name],
            )
        )
    return rows, _agreement(answers)


def table(rows: Sequence[Row]) -> str:
    """Write rows, and the ratios that matter.

    Parameters
    ----------
    rows
        The four of :func:`compare`.

    Examples
    --------
    >>> names = ("dense", "gated", "compact", "compact, onnxruntime")
    >>> rows = [Row(name, 8, 800, 80, 0.7, {1: 0.2}) for name in names]
    >>> rows[2] = Row("compact", 1, 160, 10, 0.7, {1: 0.1})
    >>> table(rows).splitlines()[-1]
    'compact: 8.0x fewer weights, 5.0x smaller file'
    """
    sizes = list(rows[0].milliseconds)
    heads = [f"{n:,} image{'s' if n > 1 else ''}" for n in sizes]
    lines = [
        f"{'':<22}{'weights':>9}{'file, bytes':>13}{'MACs':>11}{'test error':>12}"
        + "".join(f"{head:>14}" for head in heads)
    ]
    for row in rows:
        error = "" if row.error is None else f"{row.error:.2f} %"
        times = "".join(f"{row.milliseconds[n]:>11.3f} ms" for n in sizes)
        lines.append(
            f"{row.name:<22}{row.weights:>9,}{row.size:>13,}{row.macs:>11,}{error:>12}{times}"
        )
    dense, _, small, runtime = rows
    lines.append("")
    for row, what in ((dense, "dense"), (runtime, "onnxruntime")):
        ratios = [row.milliseconds[n] / small.milliseconds[n] for n in sizes]
        said = ", ".join(f"{r:.1f} for {h}" for r, h in zip(ratios, heads, strict=True))
        lines.append(f"time of {what} / time of compact: {said}")
    lines.append(
        f"compact: {dense.weights / max(1, small.weights):.1f}x fewer weights, "
        f"{dense.size / small.size:.1f}x smaller file"
    )
    return "\n".join(lines)


def _without_gates(gated: Module) -> nn.Sequential:
    """Return the layers of a gated network, with all gates open."""
    layers = {
        flat_name(name): layer.layer if isinstance(layer, Gated) else layer
        for name, layer in chain(gated)
        if not isinstance(layer, Gate)
    }
    return nn.Sequential(**layers)


def _in_place(model: Module, mean: float, std: float) -> Logits:
    """Predict with the gates in place, as training and evaluation do."""

    def logits(images: NDArray[Any]) -> NDArray[Any]:
        split = Split(images, np.zeros(len(images), np.int64))
        ((x, _),) = batches(split, len(images), mean=mean, std=std)
        with no_grad():
            return np.ascontiguousarray(model.eval()(x).data.T)

    return logits


def _runtime(path: Path) -> Logits:
    """Predict with onnxruntime, with as many threads as minidiff has."""
    onnxruntime = extra("onnxruntime", needed_by="onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = numba.get_num_threads()
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )

    def logits(images: NDArray[Any]) -> NDArray[Any]:
        (out,) = session.run(["logits"], {"images": images})
        return np.asarray(out)

    return logits


def _all(function: Logits, images: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([function(images[i : i + 500]) for i in range(0, len(images), 500)])


def _call(function: Logits, images: NDArray[Any]) -> Callable[[], Any]:
    return lambda: function(images)


def _agreement(answers: dict[str, NDArray[Any]]) -> str:
    reference = answers["gated"]
    parts = []
    for name in ("compact", RUNTIME):
        same = int((answers[name].argmax(axis=1) == reference.argmax(axis=1)).sum())
        apart = float(abs(answers[name] - reference).max())
        parts.append(
            f"{name}: {same:,} of {len(reference):,} predictions are those of the gated network; "
            f"logits differ by at most {apart:.1e}"
        )
    return "\n".join(parts)
