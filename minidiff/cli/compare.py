"""``minidiff compare``: the dense, the gated and the compact network side by side."""

import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from minidiff.cli.bench import in_turns
from minidiff.data.datasets import Split
from minidiff.engine.arrays import Shape
from minidiff.engine.module import Module
from minidiff.engine.tensor import no_grad
from minidiff.io.checkpoint import stored_bytes
from minidiff.io.export import export
from minidiff.io.extras import extra
from minidiff.predict.predictor import Predictor
from minidiff.pruning.compact import compact
from minidiff.pruning.count import count

__all__ = ["compare", "rows"]

SIZES = (1, 1000)  # images at once, for the times
ROUNDS = 6
# How a table writes some of the figures.
LABELS = {
    "macs": ("MACs", "{:,}"),
    "test_error": ("test error, %", "{:.2f}"),
    "off_by": ("off by", "{:.0e}"),
    **{f"ms_for_{size}": (f"ms for {size:,} at once", "{:.3f}") for size in SIZES},
}
Logits = Callable[[NDArray[Any]], NDArray[Any]]  # from images in 0..1, (N, C, H, W)


def compare(
    dense: Module,
    gated: Module,
    shape: Shape,
    split: Split,
    dense_scale: dict[str, float],
    scale: dict[str, float],
) -> dict[str, dict[str, float]]:
    """Measure networks on the same images; return the figures of each network by their names.

    The figures are the weights that are left, the bytes of all parameters in a file, the
    multiply-adds of an image, the error in percent, the largest difference of a logit from the
    gated network's, and times from images to logits. The compact network stands there twice if
    onnxruntime is installed.

    Parameters
    ----------
    dense
        A network without gates.
    gated
        A network with gates, which also gives the compact network.
    shape
        The shape of one input, without the batch.
    split
        The images, and their labels.
    dense_scale, scale
        "mean" and "std" of the normalisation, for the dense network and the others.
    """
    small = compact(gated, shape)
    networks: dict[str, tuple[Module, Logits]] = {
        "dense": (dense, Predictor(dense, shape, **dense_scale)),
        "gated": (gated, partial(_logits, gated.eval(), scale)),
        "compact": (small, Predictor(small, shape, **scale)),
    }
    with suppress(ImportError):  # of the optional extra onnx
        networks["onnxruntime"] = small, _runtime(small, shape, scale)
    images = split.images.astype(np.float32) / 255
    parts = np.array_split(images, -(-len(images) // 500))
    calls = {name: logits for name, (_, logits) in networks.items()}
    answers = {n: np.concatenate([call(part) for part in parts]) for n, call in calls.items()}
    times = {
        size: in_turns({n: partial(call, images[:size]) for n, call in calls.items()}, ROUNDS)
        for size in SIZES
    }
    found = {}
    for name, (model, _) in networks.items():
        layers = count(model, shape)
        found[name] = {
            "weights": sum(layer.weights[0] for layer in layers),
            "bytes": stored_bytes(model, dense=name == "onnxruntime"),
            "macs": sum(layer.macs[0] for layer in layers),
            "test_error": 100 * float((answers[name].argmax(axis=1) != split.labels).mean()),
            "off_by": float(abs(answers[name] - answers["gated"]).max()),
            **{f"ms_for_{size}": 1000 * seconds[name] for size, seconds in times.items()},
        }
    return found


def rows(found: Mapping[str, Mapping[str, float]]) -> list[tuple[object, ...]]:
    """Return the results of :func:`compare` as rows of a table, a column for each network."""
    lines: list[tuple[object, ...]] = [("", *found)]
    for name in next(iter(found.values())):
        label, form = LABELS.get(name, (name, "{:,}"))
        lines.append((label, *(form.format(figures[name]) for figures in found.values())))
    return lines


def _logits(model: Module, scale: dict[str, float], images: NDArray[Any]) -> NDArray[Any]:
    """Return the logits of a network with its gates, as in training and evaluation."""
    normalised = (images.transpose(1, 2, 3, 0) - scale["mean"]) / scale["std"]  # (C, H, W, N)
    with no_grad():
        return model(np.ascontiguousarray(normalised, np.float32)).data.T


def _runtime(model: Module, shape: Shape, scale: dict[str, float]) -> Logits:
    """Return a network in onnxruntime, with as many threads as minidiff has."""
    onnxruntime = extra("onnxruntime", needed_by="onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = numba.get_num_threads()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.onnx"
        export(path, model, shape, **scale)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(["logits"], {"images": images})[0])
