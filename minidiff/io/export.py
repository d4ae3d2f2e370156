"""Export: a trained network, compacted, in files for other software and for minidiff itself."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidiff.engine import nn
from minidiff.engine.nn import Module, Shape
from minidiff.io.checkpoint import Checkpoint
from minidiff.io.extras import extra
from minidiff.io.files import write_whole
from minidiff.pruning.compact import compact

__all__ = ["ExportError", "export"]

OPSET, IR = 17, 9  # of ONNX: old enough for every runtime of the last years

Array = NDArray[Any]


class ExportError(ValueError):
    """A file name that says nothing of the format, or a network that cannot be exported."""


def export(
    path: str | Path, model: Module, shape: Shape, *, mean: float = 0.0, std: float = 1.0
) -> nn.Sequential:
    """Write the compact form of a network to a file of other software; return what was written.

    Parameters
    ----------
    path
        Where to; its ending is the format:

        ``.onnx``
            For onnxruntime and others (extra ``onnx``): input "images", float32 of shape
            (N, C, H, W), any N; output "logits", (N, classes).
        ``.npz``
            Arrays of NumPy, for code of your own; ``docs/howto/resume-and-export.md`` has a
            reader of 30 lines.
        ``.safetensors``
            For :func:`minidiff.load`.
    model
        Gated or not.
    shape
        Of one input, without the batch: (C, H, W) or (D,).
    mean, std
        What inputs were normalised with. Files for others do so themselves: they take the numbers
        as they are before, for images 0..1.

    Raises
    ------
    ExportError
        If the ending is unknown, weights are not float32, or ``mean`` or ``std`` is out of range.
    ImportError
        If the package for the format is not installed.
    TypeError, ValueError
        As of :func:`minidiff.compact`, if ``model`` is no module, and if the network does not fit
        the shape.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> model = nn.Sequential(nn.Linear(4, 3, rng=np.random.default_rng(0)))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     small = export(f"{directory}/model.npz", model, (4,))
    ...     with np.load(f"{directory}/model.npz") as arrays:
    ...         sorted(arrays)
    ['0.bias', '0.weight', 'layers', 'mean', 'shape', 'std']
    """
    if not isinstance(model, Module):
        raise TypeError(
            f"the model is a {type(model).__name__}; expected export(path, model, shape)."
        )
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ExportError(
            f"{path} has the ending {path.suffix!r}; expected one of {', '.join(FORMATS)}."
        )
    small = compact(model)
    if any(parameter.dtype != np.float32 for parameter in small.parameters()):
        raise ExportError("the network's weights are not all float32, which files are to hold.")
    if not (math.isfinite(mean) and 0 < std < math.inf):
        raise ExportError(f"mean is {mean} and std {std}; expected numbers, std above 0.")
    small.output_shape(shape)
    FORMATS[path.suffix](path, small, tuple(map(int, shape)), mean, std)
    return small


# -- ONNX --------------------------------------------------------------------------------------


def _write_onnx(path: Path, model: nn.Sequential, shape: Shape, mean: float, std: float) -> None:
    from minidiff._version import __version__

    onnx = extra("onnx", needed_by="onnx")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    graph = _Graph(helper, onnx.numpy_helper)
    graph.add("Sub", "mean", {"mean": np.array(mean, np.float32)})
    graph.add("Div", "std", {"std": np.array(std, np.float32)})
    for name, layer in nn.chain(model):
        _add(graph, name, layer)
    graph.nodes[-1].output[0] = "logits"
    outputs = model.output_shape(shape)
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "minidiff",
            [helper.make_tensor_value_info("images", floats, ["N", *shape])],
            [helper.make_tensor_value_info("logits", floats, ["N", *outputs])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
        producer_name="minidiff",
        producer_version=__version__,
        doc_string="images are 0..1; they are normalised inside. logits are before the softmax.",
    )
    onnx.checker.check_model(proto, full_check=True)
    write_whole(path, proto.SerializeToString())


class _Graph:
    """Nodes of ONNX, one behind the other."""

    def __init__(self, helper: Any, numpy_helper: Any) -> None:
        self.helper, self.numpy_helper = helper, numpy_helper
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.last = "images"

    def add(
        self, op: str, name: str, constants: dict[str, Array] | None = None, **attributes: Any
    ) -> None:
        """Add a node that takes the last one's output, and constants."""
        for key, value in (constants or {}).items():
            self.constants.append(self.numpy_helper.from_array(value, key))
        inputs, output = [self.last, *(constants or {})], f"{name}_{op}"
        self.nodes.append(self.helper.make_node(op, inputs, [output], name=output, **attributes))
        self.last = output


def _add(graph: _Graph, name: str, layer: Module) -> None:
    if isinstance(layer, nn.Conv2d | nn.Linear):
        constants = {f"{name}.weight": layer.weight.data, f"{name}.bias": layer.bias.data}
        if isinstance(layer, nn.Linear):
            graph.add("Gemm", name, constants, transB=1)
        else:
            pads = [*layer.padding, *layer.padding]
            graph.add("Conv", name, constants, strides=layer.stride, pads=pads)
    elif isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
        op = "MaxPool" if isinstance(layer, nn.MaxPool2d) else "AveragePool"
        graph.add(op, name, kernel_shape=layer.kernel, strides=layer.stride)
        if isinstance(layer, nn.MaxPool2d) and layer.relu:
            graph.add("Relu", name)
    elif isinstance(layer, nn.ReLU):
        graph.add("Relu", name)
    elif isinstance(layer, nn.Flatten):
        graph.add("Flatten", name)
    elif isinstance(layer, nn.Select):
        graph.add("Gather", name, {f"{name}.indices": layer.indices}, axis=1)
    # A Dropout does nothing in evaluation.


# -- NumPy -------------------------------------------------------------------------------------

SETTINGS = ("weight", "bias", "stride", "padding", "kernel", "relu", "indices")


def _write_npz(path: Path, model: nn.Sequential, shape: Shape, mean: float, std: float) -> None:
    layers = [layer for _, layer in nn.chain(model) if not isinstance(layer, nn.Dropout)]
    arrays: dict[str, Array] = {
        "layers": np.array([type(layer).__name__ for layer in layers]),
        "shape": np.array(shape),
        "mean": np.array(mean, np.float32),
        "std": np.array(std, np.float32),
    }
    for i, layer in enumerate(layers):
        for key in SETTINGS:
            value = getattr(layer, key, None)
            if value is not None:
                arrays[f"{i}.{key}"] = np.asarray(
                    value.data if key in ("weight", "bias") else value
                )
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # no array is called allow_pickle
    write_whole(path, file.getbuffer())


# -- minidiff ----------------------------------------------------------------------------------


def _write_safetensors(
    path: Path, model: nn.Sequential, shape: Shape, mean: float, std: float
) -> None:
    Checkpoint(model, {"shape": shape, "mean": mean, "std": std}).write(path)


FORMATS: dict[str, Callable[[Path, nn.Sequential, Shape, float, float], None]] = {
    ".onnx": _write_onnx,
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
}
