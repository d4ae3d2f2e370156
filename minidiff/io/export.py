"""Export: a trained network, compacted, in files for other software and for minidiff itself."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidiff._version import __version__
from minidiff.engine import nn
from minidiff.engine.arrays import Shape, check_scale
from minidiff.engine.module import Module, Sequential, chain
from minidiff.pruning.compact import compact

from .checkpoint import Checkpoint
from .extras import extra
from .files import write_whole

__all__ = ["ExportError", "export"]

OPSET, IR = 17, 9  # of ONNX: old enough for every runtime of the last years


class ExportError(ValueError):
    """A file name that says nothing of the format, or a network that cannot be exported."""


def export(
    path: str | Path, model: Module, shape: Shape, *, mean: float = 0.0, std: float = 1.0
) -> Sequential:
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
        The normalisation of inputs in training. Files for other software normalise themselves: they
        take the numbers as they are before, for images 0..1.

    Raises
    ------
    ExportError
        If the ending is unknown, weights are not float32, or ``mean`` or ``std`` is out of range.
    ImportError
        If the package for the format is not installed.
    TypeError, ValueError
        As in :func:`minidiff.compact`, and if ``model`` is no module.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> model = nn.Sequential(nn.Linear(4, 3, rng=np.random.default_rng(0)))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     small = export(f"{directory}/model.npz", model, (4,))
    ...     with np.load(f"{directory}/model.npz") as arrays:
    ...         [name for name in arrays if name.startswith("0.")]
    ['0.weight', '0.bias', '0.in_features', '0.out_features', '0.dtype']
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
    small = compact(model, shape)
    if any(parameter.dtype != np.float32 for parameter in small.parameters()):
        raise ExportError("the network's weights are not all float32, which files are to hold.")
    try:
        check_scale(mean, std)
    except ValueError as error:
        raise ExportError(str(error)) from None
    FORMATS[path.suffix](path, small, tuple(map(int, shape)), mean, std)
    return small


# -- ONNX --------------------------------------------------------------------------------------


class Graph:
    """Nodes of ONNX, one behind the other; layers add them by their method ``onnx``."""

    def __init__(self) -> None:
        onnx = extra("onnx", needed_by="onnx")
        self._helper, self._from_array = onnx.helper, onnx.numpy_helper.from_array
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.layer = ""  # the name of the layer that adds nodes
        self.last = "images"  # the output of the last node

    def add(
        self,
        op: str,
        constants: Mapping[str, NDArray[Any] | np.floating[Any]] | None = None,
        *,
        inputs: Sequence[str] = (),
        **attributes: Any,
    ) -> None:
        """Add a node that takes the output of the last one, other outputs, and constants."""
        names = [f"{self.layer}.{key}" for key in constants or {}]
        for name, value in zip(names, (constants or {}).values(), strict=True):
            self.constants.append(self._from_array(np.ascontiguousarray(value), name))
        output = f"{self.layer}_{op}"
        if any(node.name == output for node in self.nodes):
            output += f"_{len(self.nodes)}"
        self.nodes.append(
            self._helper.make_node(
                op, [self.last, *inputs, *names], [output], name=output, **attributes
            )
        )
        self.last = output


def _write_onnx(path: Path, model: Sequential, shape: Shape, mean: float, std: float) -> None:
    graph = Graph()
    graph.layer = "normalised"
    graph.add("Sub", {"mean": np.array(mean, np.float32)})
    graph.add("Div", {"std": np.array(std, np.float32)})
    for graph.layer, layer in chain(model):
        layer.onnx(graph)
    graph.nodes[-1].output[0] = "logits"
    onnx = extra("onnx", needed_by="onnx")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "minidiff",
            [helper.make_tensor_value_info("images", floats, ["N", *shape])],
            [helper.make_tensor_value_info("logits", floats, ["N", *model.output_shape(shape)])],
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


# -- NumPy -------------------------------------------------------------------------------------


def _write_npz(path: Path, model: Sequential, shape: Shape, mean: float, std: float) -> None:
    layers = [layer for _, layer in chain(model) if type(layer) is not nn.Dropout]
    arrays: dict[str, NDArray[Any]] = {
        "layers": np.array([type(layer).__name__ for layer in layers]),
        "shape": np.array(shape),
        "mean": np.array(mean, np.float32),
        "std": np.array(std, np.float32),
    }
    for i, layer in enumerate(layers):
        arrays |= {f"{i}.{key}": p.data for key, p in layer.named_parameters()}
        arrays |= {f"{i}.{key}": np.asarray(getattr(layer, key)) for key in layer.settings or ()}
    objects = [name for name, array in arrays.items() if array.dtype.hasobject]
    if objects:
        raise ExportError(
            f"{', '.join(objects)} cannot be an array of numbers or text, as .npz needs."
        )
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # no array is called allow_pickle
    write_whole(path, file.getvalue())


# -- minidiff ----------------------------------------------------------------------------------


def _write_safetensors(
    path: Path, model: Sequential, shape: Shape, mean: float, std: float
) -> None:
    Checkpoint(model, {"shape": shape, "mean": mean, "std": std}).write(path)


FORMATS: dict[str, Callable[[Path, Sequential, Shape, float, float], None]] = {
    ".onnx": _write_onnx,
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
}
