"""Networks from ONNX files, which PyTorch, scikit-learn's converter and others write."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidiff.engine import nn
from minidiff.engine.module import Module, Sequential

from .extras import extra

__all__ = ["OnnxError", "from_onnx"]

ROOT = 0.5**0.5  # in the definition of GELU


class OnnxError(ValueError):
    """A file that is no ONNX, or a network that minidiff cannot read."""


def from_onnx(path: str | Path) -> Sequential:
    """Read a network from an ONNX file, ready to be gated, trained and exported again.

    Convolutions, dense layers, pools, activations and Flatten become layers of :mod:`minidiff.nn`,
    named after their weights. Batch normalisations go into the layer before, and a normalisation of
    the input into the first layer. A softmax at the end is left out, because
    :func:`~minidiff.functional.cross_entropy` takes logits.

    Parameters
    ----------
    path
        A file of a chain of layers, batch first, in float32 or float64.

    Returns
    -------
    Sequential
        In training mode, batch last. Its outputs in evaluation are those of the file, up to
        rounding.

    Raises
    ------
    OnnxError
        If the file is no ONNX, or has operators or settings that minidiff does not know. The
        message lists them.
    OSError
        If the file cannot be read.
    ImportError
        If onnx is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from minidiff.io.export import export
    >>> dense = nn.Linear(4, 3, rng=np.random.default_rng(0))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     small = export(f"{directory}/model.onnx", nn.Sequential(dense=dense), (4,))
    ...     from_onnx(f"{directory}/model.onnx")
    Sequential()
      dense: Linear(in_features=4, out_features=3)
    """
    onnx = extra("onnx", needed_by="onnx")
    content = Path(path).read_bytes()
    try:
        graph = onnx.load_model_from_string(content).graph
    except Exception as error:  # the parser of protocol buffers raises its own
        raise OnnxError(f"{path} is not an ONNX file: {type(error).__name__}.") from error
    try:
        return _Reader(onnx, graph).read()
    except ValueError as error:
        raise OnnxError(f"{path}: {error}") from None


class _Reader:
    """Turns the nodes of a graph into layers, one behind the other."""

    def __init__(self, onnx: Any, graph: Any) -> None:
        to_array = onnx.numpy_helper.to_array
        self.constants = {t.name: to_array(t) for t in graph.initializer}
        self.nodes, self.attributes = [], {}
        for node in graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant":
                (value,) = attributes.values()  # a tensor, a number or a list of them
                known = "value" in attributes
                self.constants[node.output[0]] = to_array(value) if known else np.asarray(value)
            else:
                self.nodes.append(node)
                self.attributes[node.output[0]] = attributes
        inputs = [i.name for i in graph.input if i.name not in self.constants]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise OnnxError(f"{len(inputs)} inputs and {len(graph.output)} outputs; expected one.")
        self.last, self.end = inputs[0], graph.output[0].name  # the result of the last layer
        (given,) = (i for i in graph.input if i.name == self.last)
        sizes = tuple(d.dim_value for d in given.type.tensor_type.shape.dim)[1:]
        self.axes = len(sizes)  # of the result of the last layer, without the batch
        self.shape = sizes if sizes and min(sizes) > 0 else None  # its shape, if it is known
        self.layers: dict[str, Module] = {}
        self.scale: Any = None  # factor and shift of the input, to fold into the first layer

    def read(self) -> Sequential:
        unknown = Counter(n.op_type for n in self.nodes if n.op_type not in READERS)
        if unknown:
            listed = ", ".join(f"{op} ({count})" for op, count in sorted(unknown.items()))
            raise OnnxError(f"no layer for {listed}; known are {', '.join(sorted(READERS))}.")
        at = 0
        while at < len(self.nodes):
            at += self._activation(at) or self._single(self.nodes[at])
        if self.last != self.end:
            raise OnnxError(f"its output {self.end!r} is not the result of the last layer.")
        if self.scale is not None:
            raise OnnxError("its input is normalised, but no layer with weights follows.")
        if not self.layers:
            raise OnnxError("it has no layers.")
        return Sequential(**self.layers)

    # -- one node ------------------------------------------------------------------------------

    def _single(self, node: Any) -> int:
        data = [name for name in node.input if name and name not in self.constants]
        if data != [self.last]:
            raise self._error(node, f"reads {', '.join(data)}; expected {self.last}, as in a chain")
        READERS[node.op_type](self, node)
        self.last = node.output[0]
        return 1

    def _error(self, node: Any, problem: str) -> OnnxError:
        return OnnxError(f"{node.op_type} {node.name or node.output[0]!r} {problem}.")

    def _activation(self, at: int) -> int:
        """Read a SiLU or GELU that is written as several nodes; return their number."""
        for ops, make in (
            (("Sigmoid", "Mul"), nn.SiLU),
            (("Mul", "Erf", "Add", "Mul", "Mul"), nn.GELU),
            (("Div", "Erf", "Add", "Mul", "Mul"), nn.GELU),
        ):
            nodes = self.nodes[at : at + len(ops)]
            if tuple(node.op_type for node in nodes) != ops:
                continue
            product = nodes[1 if make is nn.SiLU else 3]
            if self.last not in product.input or nodes[0].input[0] != self.last:
                continue
            if make is nn.GELU:
                first, one, half = (self._number(nodes[i]) for i in (0, 2, 4))
                factor = 1 / first if ops[0] == "Div" else first
                if not np.allclose([factor, one, half], [ROOT, 1, 0.5], atol=1e-6):
                    continue
            self._add(make(), make.__name__.lower())
            self.last = nodes[-1].output[0]
            return len(ops)
        return 0

    def _number(self, node: Any) -> float:
        values = [self.constants[name] for name in node.input if name in self.constants]
        return float(values[0].ravel()[0]) if len(values) == 1 and values[0].size == 1 else np.nan

    # -- helpers of the readers ----------------------------------------------------------------

    def _add(self, layer: Module, name: str) -> None:
        """Add a layer behind the others, under a name that is not taken."""
        even = self.scale is not None and all(np.size(part) == 1 for part in self.scale)
        if self.scale is not None and not (even and isinstance(layer, nn.Flatten)):
            raise OnnxError(
                f"a {type(layer).__name__} stands between the normalisation of the input and the "
                f"first layer with weights; expected nothing, or a Flatten behind single numbers."
            )
        self.shape = self.shape and layer.output_shape(self.shape)
        self.axes = 1 if isinstance(layer, nn.Flatten) else self.axes
        name = name.replace("/", "_").replace(".", "_").strip("_") or "layer"
        if name in dir(Sequential) or name in ("layers", "names"):
            name += "_"
        count = sum(known.rstrip("0123456789") == name for known in self.layers)
        self.layers[f"{name}{count + 1}" if name in self.layers or count else name] = layer

    def _layer(self) -> Module | None:
        """Return the last layer so far."""
        return next(reversed(self.layers.values()), None)

    def _constant(self, node: Any, at: int) -> NDArray[Any]:
        name = node.input[at]
        if name not in self.constants:
            raise self._error(node, f"computes its input {name!r}; expected a constant")
        constant: NDArray[Any] = self.constants[name]
        return constant

    def _expect(self, node: Any, **values: Any) -> None:
        """Refuse settings that no layer of minidiff has."""
        for key, expected in values.items():
            given = self.attributes[node.output[0]].get(key, expected)
            given = given.decode() if isinstance(given, bytes) else given
            if given != expected and list(np.ravel(given)) != list(np.ravel(expected)):
                raise self._error(node, f"has {key} {given}; expected {expected}")

    def _weighted(self, node: Any, layer: nn.Weighted, weight: Any, bias: Any) -> None:
        padded = any(getattr(layer, "padding", (0,)))
        if self.scale is not None:
            factor, shift = (
                np.broadcast_to(v, weight.shape[1]).reshape(-1, *[1] * (weight.ndim - 2))
                for v in self.scale
            )
            if padded and np.any(shift):
                raise self._error(node, "pads a normalised input; normalise it before the network")
            bias = bias + (weight * shift).sum(axis=tuple(range(1, weight.ndim)))
            weight, self.scale = weight * factor, None
        dtype = layer.weight.dtype
        layer.weight.data = np.ascontiguousarray(weight, dtype)
        layer.bias.data = np.ascontiguousarray(bias, dtype)
        name = node.input[1].removesuffix(".weight").rpartition("/")[2]
        if "::" in name:  # PyTorch has folded something into the weight, and it has no name
            name = node.name.rpartition("/")[0].rpartition("/")[2] or node.op_type.lower()
        self._add(layer, name)

    def _last_weighted(self, node: Any) -> nn.Weighted:
        layer = self._layer()
        if not isinstance(layer, nn.Weighted):
            raise self._error(node, "does not follow a layer with weights")
        return layer

    # -- readers -------------------------------------------------------------------------------

    def conv(self, node: Any) -> None:
        attributes, weight = self.attributes[node.output[0]], self._constant(node, 1)
        if weight.ndim != 4:
            raise self._error(node, f"has a weight of shape {weight.shape}; expected 4 axes")
        self._expect(node, group=1, dilations=[1, 1], auto_pad="NOTSET")
        pads = attributes.get("pads", [0, 0, 0, 0])
        if pads[:2] != pads[2:]:
            raise self._error(node, f"has pads {pads}; expected the same on both sides")
        layer = nn.Conv2d(
            weight.shape[1], weight.shape[0], weight.shape[2:], padding=tuple(pads[:2]),
            stride=tuple(attributes.get("strides", (1, 1))), **_new(weight),
        )  # fmt: skip
        bias = self._constant(node, 2) if len(node.input) > 2 else np.zeros(len(weight))
        self._weighted(node, layer, weight, bias)

    def gemm(self, node: Any) -> None:
        self._expect(node, alpha=1.0, beta=1.0, transA=0)
        weight = self._constant(node, 1)
        weight = weight if self.attributes[node.output[0]].get("transB") else weight.T
        bias = self._constant(node, 2) if len(node.input) > 2 else np.zeros(len(weight))
        if bias.size not in (1, len(weight)):
            raise self._error(node, f"has a bias of shape {bias.shape}; expected ({len(weight)},)")
        self._dense(node, weight, np.broadcast_to(bias.ravel(), len(weight)))

    def matmul(self, node: Any) -> None:
        weight = self._constant(node, 1)
        if weight.ndim != 2:
            raise self._error(node, f"has a constant of shape {weight.shape}; expected 2 axes")
        self._dense(node, weight.T, np.zeros(weight.shape[1]))

    def _dense(self, node: Any, weight: Any, bias: Any) -> None:
        layer = nn.Linear(weight.shape[1], weight.shape[0], **_new(weight))
        self._weighted(node, layer, weight, bias)

    def arithmetic(self, node: Any) -> None:
        """Fold a sum or product with a constant into the layer before, or the first layer."""
        if node.input[0] in self.constants and node.op_type in ("Sub", "Div"):
            raise self._error(node, "has a constant in front; expected it behind")
        constant = self._constant(node, 0 if node.input[0] in self.constants else 1)
        value = np.asarray(constant, np.float64)
        value = self._by_channel(node, value)
        if node.op_type in ("Add", "Sub"):
            self._affine(node, 1.0, value if node.op_type == "Add" else -value)
        else:
            self._affine(node, value if node.op_type == "Mul" else 1 / value, 0.0)

    def _by_channel(self, node: Any, value: Any) -> Any:
        """Return a constant as one number, or one for each channel; axes align at their ends."""
        if value.size == 1:
            return value.ravel()
        shape = (1,) * (self.axes - value.ndim) + value.shape[-self.axes :]
        if value.size != shape[0]:
            raise self._error(
                node, f"has a constant of shape {value.shape}; expected one a channel"
            )
        return value.ravel()

    def norm(self, node: Any) -> None:
        self._expect(node, training_mode=0)
        gamma, beta, mean, variance = (self._constant(node, i).astype(float) for i in range(1, 5))
        factor = gamma / np.sqrt(variance + self.attributes[node.output[0]].get("epsilon", 1e-5))
        self._affine(node, factor, beta - mean * factor)

    def _affine(self, node: Any, factor: Any, shift: Any) -> None:
        factor, shift = np.ravel(factor), np.ravel(shift)
        if not self.layers:
            before = (np.ones(1), np.zeros(1)) if self.scale is None else self.scale
            self.scale = before[0] * factor, before[1] * factor + shift
            return
        layer = self._last_weighted(node)
        outputs = layer.weight.shape[0]
        if {factor.size, shift.size} - {1, outputs}:
            raise self._error(node, f"has {max(factor.size, shift.size)} numbers for {outputs}")
        factor = np.broadcast_to(factor, outputs)
        weight = layer.weight.data * factor.reshape(-1, *[1] * (layer.weight.ndim - 1))
        layer.weight.data = weight.astype(layer.weight.dtype)
        layer.bias.data = (layer.bias.data * factor + shift).astype(layer.weight.dtype)

    def pool(self, node: Any) -> None:
        self._expect(node, pads=[0, 0, 0, 0], ceil_mode=0, auto_pad="NOTSET", dilations=[1, 1])
        attributes = self.attributes[node.output[0]]
        kernel = tuple(attributes["kernel_shape"])
        strides = tuple(attributes.get("strides", (1, 1)))
        if node.op_type == "AveragePool":
            self._add(nn.AvgPool2d(kernel, stride=strides), "pool")
            return
        rectified = isinstance(self._layer(), nn.ReLU)  # one pass does both
        if rectified:
            self.layers.popitem()
        self._add(nn.MaxPool2d(kernel, stride=strides, relu=rectified), "pool")

    def relu(self, _: Any) -> None:
        layer = self._layer()
        if isinstance(layer, nn.MaxPool2d):
            layer.relu = True
        else:
            self._add(nn.ReLU(), "relu")

    def global_pool(self, node: Any) -> None:
        if node.op_type == "ReduceMean":
            axes = self.attributes[node.output[0]].get("axes")
            axes = self._constant(node, 1) if axes is None else axes
            if [a % 4 for a in np.ravel(axes)] != [2, 3]:
                raise self._error(node, f"has axes {list(np.ravel(axes))}; expected 2 and 3")
            self._add(nn.GlobalAvgPool2d(), "pool")
            if not self.attributes[node.output[0]].get("keepdims", 1):
                self._add(nn.Flatten(), "flatten")
            return
        self._add(nn.GlobalAvgPool2d(), "pool")

    def flatten(self, node: Any) -> None:
        if node.op_type == "Reshape":
            shape = [int(n) for n in self._constant(node, 1)]
            if len(shape) != 2 or (shape[0] not in (0, -1) and shape[1] != -1):
                raise self._error(node, f"has shape {shape}; expected the batch and one more axis")
            if self.shape and shape[1] not in (-1, math.prod(self.shape)):
                raise self._error(node, f"has shape {shape}, but an input has shape {self.shape}")
        else:
            self._expect(node, axis=1)
        self._add(nn.Flatten(), "flatten")

    def gather(self, node: Any) -> None:
        if self.attributes[node.output[0]].get("axis", 0) != 1:
            raise self._error(node, "selects along another axis; expected axis 1")
        if self.shape is None:
            raise self._error(
                node, "selects channels of an input whose shape the file does not say"
            )
        self._add(nn.Select(self._constant(node, 1), size=self.shape[0]), "select")

    def leaky(self, node: Any) -> None:
        slope = self.attributes[node.output[0]].get("alpha", 0.01)
        if not 0 <= slope <= 1:
            raise self._error(node, f"has slope {slope}; expected 0 to 1")
        self._add(nn.LeakyReLU(float(f"{slope:.7g}")), "leaky")  # 0.1 is no float32

    def gelu(self, node: Any) -> None:
        self._expect(node, approximate="none")
        self._add(nn.GELU(), "gelu")

    def erf(self, node: Any) -> None:
        raise self._error(node, "stands alone; known is the Erf of a GELU")

    def softmax(self, node: Any) -> None:
        if node.output[0] != self.end:
            raise self._error(node, "is not at the end")

    def nothing(self, node: Any) -> None:
        """Read a node that does nothing in evaluation."""


def _new(weight: NDArray[Any]) -> dict[str, Any]:
    if weight.dtype not in (np.float32, np.float64):
        raise OnnxError(f"weights are {weight.dtype}; expected float32 or float64.")
    return {"rng": np.random.default_rng(0), "dtype": weight.dtype}


def _activation_of(make: Callable[[], Module]) -> Callable[[_Reader, Any], None]:
    return lambda reader, _: reader._add(make(), make.__name__.lower())


READERS: dict[str, Callable[[_Reader, Any], None]] = {
    "Conv": _Reader.conv, "Gemm": _Reader.gemm, "MatMul": _Reader.matmul,
    "BatchNormalization": _Reader.norm, "Gather": _Reader.gather,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _Reader.arithmetic),
    **dict.fromkeys(("MaxPool", "AveragePool"), _Reader.pool),
    **dict.fromkeys(("GlobalAveragePool", "ReduceMean"), _Reader.global_pool),
    **dict.fromkeys(("Flatten", "Reshape"), _Reader.flatten),
    "Relu": _Reader.relu, "Sigmoid": _activation_of(nn.Sigmoid),
    "Tanh": _activation_of(nn.Tanh), "LeakyRelu": _Reader.leaky, "Gelu": _Reader.gelu,
    "Erf": _Reader.erf, "Softmax": _Reader.softmax,
    **dict.fromkeys(("Dropout", "Identity"), _Reader.nothing),
}  # fmt: skip
