"""The layers of most networks. :class:`Module` documents the methods that layers override."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import functional
from .arrays import Array, Shape
from .functional import Pair, float_dtype, generator, pair, probability
from .kernels import windows
from .module import Module, Parameter, Sequential
from .norm import BatchNorm
from .tensor import Tensor

__all__ = [
    "GELU",
    "AvgPool2d",
    "BatchNorm",
    "Conv2d",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2d",
    "LeakyReLU",
    "Linear",
    "MaxPool2d",
    "Module",
    "Parameter",
    "ReLU",
    "Select",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Tanh",
    "Weighted",
]


# -- layers with weights ---------------------------------------------------------------------


class Weighted(Module):
    """A layer with a weight (O, I, ...) and a bias (O,): the base of Conv2d and Linear.

    A subclass computes in :meth:`apply`, so that gates can pass a gated weight and bias.

    Parameters
    ----------
    shape
        Shape of the weight: outputs, inputs, and the kernel size of a convolution.
    rng
        Generator that draws the initial weights, as in :class:`Conv2d`; biases start at 0.
    dtype
        float32 or float64.

    Raises
    ------
    TypeError
        If ``dtype`` is not float32 or float64, or ``rng`` is not a numpy.random.Generator.
    ValueError
        If the number of outputs or of inputs is not an integer >= 1.

    Examples
    --------
    A dense layer that subtracts the mean of its input first:

    >>> class Centred(Weighted):
    ...     def apply(self, x, weight, bias):
    ...         return functional.linear(x - x.mean(axis=0), weight, bias)
    >>> layer = Centred((2, 3), np.random.default_rng(0), np.float32)
    >>> layer(np.ones((3, 4), np.float32)).data.max()
    np.float32(0.0)
    """

    def __init__(self, shape: Shape, rng: np.random.Generator, dtype: DTypeLike) -> None:
        for what, size in zip(("outputs", "inputs"), shape, strict=False):
            if not isinstance(size, int | np.integer) or size < 1:
                raise ValueError(
                    f"{type(self).__name__}: {size!r} {what}; expected an integer >= 1."
                )
        self.weight = Parameter(he_normal(shape, rng, dtype))
        self.bias = Parameter(np.zeros(shape[0], dtype))

    @property
    def dtype(self) -> str:
        """The name of the dtype."""
        return self.weight.dtype.name

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Compute the output with this weight and bias in place of the layer's own."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.apply(x, self.weight, self.bias)


def he_normal(shape: Shape, rng: np.random.Generator, dtype: DTypeLike = np.float32) -> Array:
    """Draw weights (out, in, ...) with variance 2 / fan-in (He et al. 2015, arXiv:1502.01852)."""
    fan_in = int(np.prod(shape[1:]))
    values: Array = generator(rng).standard_normal(shape) * np.sqrt(2 / fan_in)
    return values.astype(float_dtype(dtype))


class Conv2d(Weighted):
    """Convolution of (C, H, W, N); weight (O, C, KH, KW), bias (O,).

    Parameters
    ----------
    in_channels, out_channels
        The numbers of channels, C, and of filters, O.
    kernel
        An int or a pair (vertical, horizontal).
    stride, padding
        An int or a pair; zero padding on both sides.
    rng
        Generator that draws the initial weights from a normal distribution with variance
        2 / fan-in (He et al. 2015, arXiv:1502.01852, equation 10); biases start at 0.
    dtype
        float32 or float64.

    Raises
    ------
    TypeError
        If ``dtype`` is not float32 or float64, or ``rng`` is not a numpy.random.Generator.
    ValueError
        If a size is not an integer >= 1, or ``padding`` is not an integer >= 0. When called, if the
        input does not fit.

    Examples
    --------
    >>> layer = Conv2d(1, 20, 5, rng=np.random.default_rng(0))
    >>> layer(np.zeros((1, 28, 28, 8), np.float32)).shape
    (20, 24, 24, 8)
    """

    settings = ("in_channels", "out_channels", "kernel", "stride", "padding", "dtype")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Pair,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        rng: np.random.Generator,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.kernel = pair(kernel, "kernel")
        self.stride, self.padding = pair(stride, "stride"), pair(padding, "padding", least=0)
        super().__init__((out_channels, in_channels, *self.kernel), rng, dtype)

    @property
    def in_channels(self) -> int:
        """The number of input channels, C."""
        return self.weight.shape[1]

    @property
    def out_channels(self) -> int:
        """The number of filters, O."""
        return self.weight.shape[0]

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Compute (O, H', W', N) from (C, H, W, N)."""
        return functional.conv2d(x, weight, bias, stride=self.stride, padding=self.padding)

    def output_shape(self, shape: Shape) -> Shape:
        outputs, inputs = self.weight.shape[:2]
        _check_input(self, shape, len(shape) == 3 and shape[0] == inputs, f"({inputs}, H, W)")
        out = (outputs, *map(windows, shape[1:], self.kernel, self.stride, self.padding))
        _check_input(self, shape, min(out) > 0, f"room for a kernel {self.kernel}")
        return out

    def compile(self, program: Any) -> None:
        program.conv(self.weight.data, self.bias.data, self.stride, self.padding)

    def onnx(self, graph: Any) -> None:
        constants = {"weight": self.weight.data, "bias": self.bias.data}
        graph.add("Conv", constants, strides=self.stride, pads=[*self.padding, *self.padding])


class Linear(Weighted):
    """Dense layer on (D, N); weight (O, D), bias (O,).

    Parameters
    ----------
    in_features, out_features
        The numbers of features, D, and of units, O.
    rng, dtype
        As in :class:`Conv2d`.

    Raises
    ------
    TypeError
        If ``dtype`` is not float32 or float64, or ``rng`` is not a numpy.random.Generator.
    ValueError
        If a size is not an integer >= 1. When called, if the input does not fit.

    Examples
    --------
    >>> layer = Linear(800, 500, rng=np.random.default_rng(0))
    >>> layer.weight.shape, layer(np.zeros((800, 8), np.float32)).shape
    ((500, 800), (500, 8))
    """

    settings = ("in_features", "out_features", "dtype")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rng: np.random.Generator,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__((out_features, in_features), rng, dtype)

    @property
    def in_features(self) -> int:
        """The number of input features, D."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """The number of units, O."""
        return self.weight.shape[0]

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Compute (O, N) from (D, N)."""
        return functional.linear(x, weight, bias)

    def output_shape(self, shape: Shape) -> Shape:
        outputs, inputs = self.weight.shape
        _check_input(self, shape, shape == (inputs,), f"({inputs},)")
        return (outputs,)

    def compile(self, program: Any) -> None:
        program.linear(self.weight.data, self.bias.data)

    def onnx(self, graph: Any) -> None:
        graph.add("Gemm", {"weight": self.weight.data, "bias": self.bias.data}, transB=1)


# -- layers without weights ------------------------------------------------------------------


class ReLU(Module):
    """max(x, 0), for an input of any shape.

    Examples
    --------
    >>> ReLU()([-1.0, 2.0]).data
    array([0., 2.], dtype=float32)
    """

    channelwise = homogeneous = True
    settings = ()

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x)

    def map_channels(self, channels: Any, shape: Shape) -> Any:
        return channels  # each number stays in its position

    def compile(self, program: Any) -> None:
        program.relu()

    def onnx(self, graph: Any) -> None:
        graph.add("Relu")


class _Elementwise(Module):
    """A function of each number by itself."""

    channelwise = True
    settings: tuple[str, ...] = ()

    def map_channels(self, channels: Any, shape: Shape) -> Any:
        return channels  # each number stays in its position

    def compile(self, program: Any) -> None:
        program.activate(type(self).__name__, getattr(self, "slope", 0.0))

    def onnx(self, graph: Any) -> None:
        graph.add(type(self).__name__)


class Sigmoid(_Elementwise):
    """1 / (1 + exp(-x)).

    Examples
    --------
    >>> Sigmoid()([0.0, 100.0]).data
    array([0.5, 1. ], dtype=float32)
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.sigmoid()


class Tanh(_Elementwise):
    """Hyperbolic tangent.

    Examples
    --------
    >>> Tanh()([0.0, 100.0]).data
    array([0., 1.], dtype=float32)
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.tanh()


class SiLU(_Elementwise):
    """x / (1 + exp(-x)), also known as swish (Ramachandran et al. 2017, arXiv:1710.05941).

    Examples
    --------
    >>> SiLU()([0.0, 100.0]).data
    array([  0., 100.], dtype=float32)
    """

    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()

    def onnx(self, graph: Any) -> None:
        x = graph.last
        graph.add("Sigmoid")
        graph.add("Mul", inputs=[x])


class GELU(_Elementwise):
    """x times the normal distribution function of x (Hendrycks & Gimpel 2016, arXiv:1606.08415).

    Examples
    --------
    >>> GELU()([0.0, 100.0]).data
    array([  0., 100.], dtype=float32)
    """

    def forward(self, x: Tensor) -> Tensor:
        return x * ((x * math.sqrt(0.5)).erf() + 1) * 0.5

    def onnx(self, graph: Any) -> None:
        x = graph.last
        graph.add("Mul", {"root": np.float32(math.sqrt(0.5))})
        graph.add("Erf")
        graph.add("Add", {"one": np.float32(1)})
        graph.add("Mul", inputs=[x])
        graph.add("Mul", {"half": np.float32(0.5)})


class LeakyReLU(_Elementwise):
    """x above 0, and slope * x below (Maas et al. 2013).

    Parameters
    ----------
    slope
        From 0 to 1.

    Raises
    ------
    ValueError
        If the slope is not from 0 to 1.

    Examples
    --------
    >>> LeakyReLU(0.1)([-1.0, 2.0]).data
    array([-0.1,  2. ], dtype=float32)
    """

    homogeneous = True
    settings = ("slope",)

    def __init__(self, slope: float = 0.01) -> None:
        if not 0 <= slope <= 1:
            raise ValueError(f"LeakyReLU: slope is {slope!r}; expected a number from 0 to 1.")
        self.slope = float(slope)

    def forward(self, x: Tensor) -> Tensor:
        return functional.where(x.data > 0, x, x * self.slope)

    def onnx(self, graph: Any) -> None:
        graph.add("LeakyRelu", alpha=self.slope)


class Dropout(Module):
    """Set elements to 0 with probability ``p`` in training; do nothing in evaluation.

    Parameters
    ----------
    p, rng
        As in :func:`~minidiff.functional.dropout`.

    Raises
    ------
    ValueError
        If ``p`` is not in [0, 1).

    Examples
    --------
    >>> Dropout(0.5, rng=np.random.default_rng(0)).eval()([1.0, 2.0]).data
    array([1., 2.], dtype=float32)
    """

    channelwise = homogeneous = True
    settings = ("p",)

    def __init__(self, p: float, *, rng: np.random.Generator) -> None:
        self.p, self.rng = probability(p, "Dropout: p"), generator(rng)

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.p, self.rng) if self.training else x

    def map_channels(self, channels: Any, shape: Shape) -> Any:
        return channels  # each number stays in its position

    def compile(self, program: Any) -> None:
        """Add nothing, because Dropout does nothing in evaluation."""

    def onnx(self, graph: Any) -> None:
        """Add nothing, because Dropout does nothing in evaluation."""


class _Pool2d(Module):
    channelwise = homogeneous = True
    settings: tuple[str, ...] = ("kernel", "stride")

    def __init__(self, kernel: Pair, *, stride: Pair | None = None) -> None:
        self.kernel = pair(kernel, "kernel")
        self.stride = self.kernel if stride is None else pair(stride, "stride")

    def output_shape(self, shape: Shape) -> Shape:
        _check_input(self, shape, len(shape) == 3, "(C, H, W)")
        out = (shape[0], *map(windows, shape[1:], self.kernel, self.stride))
        _check_input(self, shape, min(out) > 0, f"room for a window {self.kernel}")
        return out


class MaxPool2d(_Pool2d):
    """Maximum of each window, (C, H, W, N) to (C, H', W', N).

    Parameters
    ----------
    kernel, stride, relu
        As in :func:`~minidiff.functional.max_pool2d`.

    Raises
    ------
    ValueError
        If a size is not an integer >= 1. When called, if the window does not fit.

    Examples
    --------
    >>> MaxPool2d(2, relu=True)(-np.ones((1, 2, 2, 1))).data.item()
    0.0
    """

    settings = ("kernel", "stride", "relu")

    def __init__(self, kernel: Pair, *, stride: Pair | None = None, relu: bool = False) -> None:
        super().__init__(kernel, stride=stride)
        self.relu = bool(relu)

    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(x, self.kernel, stride=self.stride, relu=self.relu)

    def compile(self, program: Any) -> None:
        program.pool(self.kernel, self.stride, largest=1, relu=self.relu)

    def onnx(self, graph: Any) -> None:
        graph.add("MaxPool", kernel_shape=self.kernel, strides=self.stride)
        if self.relu:
            graph.add("Relu")


class AvgPool2d(_Pool2d):
    """Mean of each window, (C, H, W, N) to (C, H', W', N).

    Parameters
    ----------
    kernel, stride
        As in :func:`~minidiff.functional.avg_pool2d`.

    Raises
    ------
    ValueError
        If a size is not an integer >= 1. When called, if the window does not fit.

    Examples
    --------
    >>> AvgPool2d(2)(np.arange(4.0).reshape(1, 2, 2, 1)).data.item()
    1.5
    """

    def forward(self, x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, self.kernel, stride=self.stride)

    def compile(self, program: Any) -> None:
        program.pool(self.kernel, self.stride, largest=0)

    def onnx(self, graph: Any) -> None:
        graph.add("AveragePool", kernel_shape=self.kernel, strides=self.stride)


class GlobalAvgPool2d(Module):
    """The mean of each channel, (C, H, W, N) to (C, 1, 1, N). A Flatten may follow.

    Raises
    ------
    ValueError
        When called, if the input is not (C, H, W, N).

    Examples
    --------
    >>> GlobalAvgPool2d()(np.arange(4.0).reshape(1, 2, 2, 1)).data.item()
    1.5
    """

    channelwise = homogeneous = True
    settings = ()

    def forward(self, x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, _sizes(self, x.shape[:-1]))

    def output_shape(self, shape: Shape) -> Shape:
        _sizes(self, shape)
        return (shape[0], 1, 1)

    def compile(self, program: Any) -> None:
        program.pool(program.at.shape[1:], (1, 1), largest=0)

    def onnx(self, graph: Any) -> None:
        graph.add("GlobalAveragePool")


def _sizes(layer: Module, shape: Shape) -> tuple[int, int]:
    """Return the height and width of an input (C, H, W)."""
    _check_input(layer, shape, len(shape) == 3, "(C, H, W)")
    return shape[1], shape[2]


class Flatten(Module):
    """(C, H, W, N) to (C*H*W, N).

    Examples
    --------
    >>> Flatten().output_shape((50, 4, 4))
    (800,)
    """

    homogeneous = True
    settings = ()

    def forward(self, x: Tensor) -> Tensor:
        return functional.flatten(x)

    def output_shape(self, shape: Shape) -> Shape:
        return (int(np.prod(shape)),)

    def map_channels(self, channels: Any, shape: Shape) -> Any:
        return channels.flattened(shape)

    def compile(self, program: Any) -> None:
        program.flatten()

    def onnx(self, graph: Any) -> None:
        graph.add("Flatten")


class Select(Module):
    """Keep some of the channels or features, as in a compact network.

    Parameters
    ----------
    indices
        The indices of the channels to keep, increasing.
    size
        The number of channels of the input.

    Raises
    ------
    ValueError
        If the indices do not increase within 0..size-1. When called, if the input does not have
        ``size`` channels.

    Examples
    --------
    >>> Select([0, 2], size=3)(np.float32([[1], [2], [3]])).data.ravel()
    array([1., 3.], dtype=float32)
    """

    homogeneous = True
    settings = ("indices", "size")

    def __init__(self, indices: Sequence[int] | NDArray[Any], *, size: int) -> None:
        self.indices, self.size = functional.increasing(indices, "Select"), int(size)
        if self.indices[-1] >= size:
            raise ValueError(f"Select: index {self.indices[-1]} is not below the size, {size}.")

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[:1] != (self.size,):
            raise ValueError(f"Select of {self.size} does not fit an input of shape {x.shape}.")
        return functional.select(x, self.indices)

    def output_shape(self, shape: Shape) -> Shape:
        _check_input(self, shape, shape[:1] == (self.size,), f"({self.size}, ...)")
        return (len(self.indices), *shape[1:])

    def map_channels(self, channels: Any, shape: Shape) -> Any:
        return channels.selected(self.indices)

    def compile(self, program: Any) -> None:
        program.select(self.indices)

    def onnx(self, graph: Any) -> None:
        graph.add("Gather", {"indices": self.indices}, axis=1)


def _check_input(layer: Module, shape: Shape, fits: bool, expected: str) -> None:
    if not fits:
        raise ValueError(
            f"{type(layer).__name__} does not fit an input of shape {shape}; expected {expected}, "
            f"without the batch."
        )
