"""``minidiff compare``: the dense, the gated and the compact network side by side."""

import tempfile
from collections.abc import Callable
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
from minidiff.io.export import export
from minidiff.io.extras import extra
from minidiff.predict.predictor import Predictor
from minidiff.pruning.compact import compact
from minidiff.pruning.count import count

__all__ = ["compare"]

SIZES = (1, 1000)  # images at once, for the times
ROUNDS = 6
Logits = Callable[[NDArray[Any]], NDArray[Any]]  # from images in 0..1, (N, C, H, W)


def compare(
    dense: Module,
    gated: Module,
    shape: Shape,
    split: Split,
    dense_scale: dict[str, float],
    scale: dict[str, float],
) -> list[tuple[object, ...]]:
    """Measure networks on the same images; return a table, with the heads in its first row.

    Each row has the weights that are left, the bytes of all parameters, the multiply-adds of an
    image, the error, the largest difference of a logit from the gated network's, and times from
    images to logits.

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

    Raises
    ------
    ImportError
        If onnx or onnxruntime is not installed.
    """
    small = compact(gated, shape)
    networks: list[tuple[str, Module, Logits]] = [
        ("dense", dense, Predictor(dense, shape, **dense_scale)),
        ("gated", gated, partial(_logits, gated.eval(), scale)),
        ("compact", small, Predictor(small, shape, **scale)),
        ("compact, onnxruntime", small, _runtime(small, shape, scale)),
    ]
    images = split.images.astype(np.float32) / 255
    parts = np.array_split(images, -(-len(images) // 500))
    answers = {n: np.concatenate([logits(part) for part in parts]) for n, _, logits in networks}
    times = [
        in_turns({n: partial(logits, images[:size]) for n, _, logits in networks}, ROUNDS)
        for size in SIZES
    ]
    heads = ("", "weights", "bytes", "MACs", "error", "off by")
    rows: list[tuple[object, ...]] = [(*heads, *(f"{size:,} at once" for size in SIZES))]
    for name, model, _ in networks:
        layers = count(model, shape)
        weights, macs = (sum(getattr(c, key)[0] for c in layers) for key in ("weights", "macs"))
        size = 4 * sum(parameter.size for parameter in model.parameters())
        error = 100 * (answers[name].argmax(axis=1) != split.labels).mean()
        off = abs(answers[name] - answers["gated"]).max()
        measured = [f"{1000 * seconds[name]:.3f} ms" for seconds in times]
        rows.append((name, weights, size, macs, f"{error:.2f} %", f"{off:.0e}", *measured))
    return rows


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
