"""Modules: parameters in a tree, and the layers that most networks are made of."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import ops
from ._types import Array
from .kernels import windows
from .ops import Pair, generator, pair
from .tensor import Tensor, float_dtype

Self = TypeVar("Self", bound="Module")
Shape = tuple[int, ...]

__all__ = [
    "AvgPool2d",
    "Conv2d",
    "Dropout",
    "Flatten",
    "Linear",
    "MaxPool2d",
    "Module",
    "Parameter",
    "ReLU",
    "Select",
    "Sequential",
]


class Parameter(Tensor):
    """A tensor that training changes: a leaf which requires a gradient.

    Parameters
    ----------
    array
        As of :class:`~minidiff.engine.tensor.Tensor`.

    Examples
    --------
    >>> Parameter([1.0, 2.0])
    Tensor([1., 2.], requires_grad=True)
    """

    __slots__ = ()

    def __init__(self, array: Any) -> None:
        super().__init__(array, requires_grad=True)


class Module:
    """Something with parameters and a ``forward``.

    Parameters and modules that are set as attributes, or stand in a list or tuple that is one, are
    found in the order in which they were set. One that is found in two places counts once.

    Attributes
    ----------
    training : bool
        Whether it computes as in training or as in evaluation; see :meth:`train`, :meth:`eval`.

    Examples
    --------
    >>> class Scale(Module):
    ...     def __init__(self):
    ...         self.factor = Parameter(2.0)
    ...     def forward(self, x):
    ...         return self.factor * x
    >>> Scale()([1.0, 3.0]).data, dict(Scale().named_parameters())
    (array([2., 6.], dtype=float32), {'factor': Tensor(2., requires_grad=True)})
    """

    training: bool = True

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output."""
        raise NotImplementedError

    def __call__(self, x: Any) -> Tensor:
        """Compute the output for a Tensor or an array."""
        return self.forward(x if isinstance(x, Tensor) else Tensor(x))

    def __repr__(self) -> str:
        """Show the class, the shapes of its parameters, and the modules in it, one a line."""
        members = list(self.members())
        own = [f"{name} {value.shape}" for name, value in members if isinstance(value, Parameter)]
        text = f"{type(self).__name__}({', '.join(own)})"
        for name, child in self.children():
            text += f"\n  {name}: " + repr(child).replace("\n", "\n  ")
        return text

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output, without the batch, for an input of ``shape``.

        Layers that keep the shape need not define it. Raises ValueError if the layer does not fit.
        """
        return shape

    def children(self) -> Iterator[tuple[str, "Module"]]:
        """Yield (name, module) for the modules directly below this one."""
        for name, value in self.members():
            if isinstance(value, Module):
                yield name, value

    def modules(self) -> Iterator["Module"]:
        """Yield this module and all below it, each once."""
        seen: set[int] = set()
        stack: list[Module] = [self]
        while stack:
            module = stack.pop()
            if id(module) not in seen:
                seen.add(id(module))
                yield module
                stack.extend(child for _, child in reversed(list(module.children())))

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Yield (dotted name, parameter), each parameter once."""
        seen: set[int] = set()
        for name, parameter in self._walk(prefix):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def parameters(self) -> list[Parameter]:
        """List the parameters, each once, in order."""
        return [parameter for _, parameter in self.named_parameters()]

    def members(self) -> Iterator[tuple[str, Any]]:
        """Yield (name, attribute); those in a list or tuple one by one, as in "weights.0"."""
        for name, value in vars(self).items():
            if isinstance(value, list | tuple):
                yield from ((f"{name}.{i}", item) for i, item in enumerate(value))
            else:
                yield name, value

    def _walk(self, prefix: str) -> Iterator[tuple[str, Parameter]]:
        for name, value in self.members():
            if isinstance(value, Parameter):
                yield prefix + name, value
            elif isinstance(value, Module):
                yield from value._walk(f"{prefix}{name}.")

    def train(self: Self, mode: bool = True) -> Self:
        """Switch this module and all below it to training (or not); return it."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: Self) -> Self:
        """Switch this module and all below it to evaluation; return it."""
        return self.train(False)

    def state_dict(self) -> dict[str, Array]:
        """Return a copy of every parameter, by name."""
        return {name: p.data.copy() for name, p in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Set every parameter from ``state``, which must fit in all names and shapes.

        Raises ValueError, which names every mismatch, and then changes nothing.
        """
        parameters = dict(self.named_parameters())
        wrong = [f"{name} is missing" for name in parameters if name not in state]
        wrong += [f"{name} is unknown" for name in state if name not in parameters]
        for name, parameter in parameters.items():
            if name in state and np.shape(state[name]) != parameter.shape:
                wrong.append(f"{name} has shape {np.shape(state[name])}, not {parameter.shape}")
        if wrong:
            raise ValueError(
                f"the state does not fit this {type(self).__name__}: {'; '.join(wrong)}."
            )
        # All are converted before the first is set.
        arrays = {name: np.array(state[name], p.dtype, order="C") for name, p in parameters.items()}
        for name, parameter in parameters.items():
            parameter.data = arrays[name]


def he_normal(shape: Shape, rng: np.random.Generator, dtype: DTypeLike = np.float32) -> Array:
    """Draw weights (out, in, ...) with variance 2 / fan-in (He et al. 2015, arXiv:1502.01852)."""
    fan_in = int(np.prod(shape[1:]))
    values: Array = generator(rng).standard_normal(shape) * np.sqrt(2 / fan_in)
    return values.astype(float_dtype(dtype))


class Conv2d(Module):
    """Convolution of (C, H, W, N); weight (O, C, KH, KW), bias (O,).

    Parameters
    ----------
    in_channels, out_channels
        C and O.
    kernel
        An int or a pair (vertical, horizontal).
    stride, padding
        Likewise; padding is with zeros.
    rng
        Draws the initial weights, normal with variance 2 / fan-in (He et al. 2015,
        arXiv:1502.01852, equation 10); biases start at 0.
    dtype
        float32 or float64.

    Raises
    ------
    TypeError
        If ``dtype`` is another.
    ValueError
        If a size is not an integer >= 1 (for padding, >= 0). When called, as of
        :func:`~minidiff.ops.conv2d`.

    Examples
    --------
    >>> layer = Conv2d(1, 20, 5, rng=np.random.default_rng(0))
    >>> layer(np.zeros((1, 28, 28, 8), np.float32)).shape
    (20, 24, 24, 8)
    """

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
        _check_sizes("Conv2d", in_channels=in_channels, out_channels=out_channels)
        self.kernel = pair(kernel, "kernel")
        self.stride, self.padding = pair(stride, "stride"), pair(padding, "padding", least=0)
        self.weight = Parameter(he_normal((out_channels, in_channels, *self.kernel), rng, dtype))
        self.bias = Parameter(np.zeros(out_channels, dtype))

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Do what ``forward`` does, with another weight and bias."""
        return ops.conv2d(x, weight, bias, stride=self.stride, padding=self.padding)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (O, H', W', N) from (C, H, W, N)."""
        return self.apply(x, self.weight, self.bias)

    def output_shape(self, shape: Shape) -> Shape:
        """Return (O, H', W') for (C, H, W)."""
        outputs, inputs = self.weight.shape[:2]
        _check_input(self, shape, len(shape) == 3 and shape[0] == inputs, f"({inputs}, H, W)")
        out = (outputs, *map(windows, shape[1:], self.kernel, self.stride, self.padding))
        _check_input(self, shape, min(out) > 0, f"room for a kernel {self.kernel}")
        return out


class Linear(Module):
    """Dense layer on (D, N); weight (O, D), bias (O,).

    Parameters
    ----------
    in_features, out_features
        D and O.
    rng, dtype
        As of :class:`Conv2d`.

    Raises
    ------
    TypeError
        If ``dtype`` is another.
    ValueError
        If a size is not an integer >= 1. When called, as of :func:`~minidiff.ops.linear`.

    Examples
    --------
    >>> layer = Linear(800, 500, rng=np.random.default_rng(0))
    >>> layer.weight.shape, layer(np.zeros((800, 8), np.float32)).shape
    ((500, 800), (500, 8))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rng: np.random.Generator,
        dtype: DTypeLike = np.float32,
    ) -> None:
        _check_sizes("Linear", in_features=in_features, out_features=out_features)
        self.weight = Parameter(he_normal((out_features, in_features), rng, dtype))
        self.bias = Parameter(np.zeros(out_features, dtype))

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Do what ``forward`` does, with another weight and bias."""
        return ops.linear(x, weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (O, N) from (D, N)."""
        return self.apply(x, self.weight, self.bias)

    def output_shape(self, shape: Shape) -> Shape:
        """Return (O,) for (D,)."""
        outputs, inputs = self.weight.shape
        _check_input(self, shape, shape == (inputs,), f"({inputs},)")
        return (outputs,)


class ReLU(Module):
    """max(x, 0), of any shape.

    Examples
    --------
    >>> ReLU()([-1.0, 2.0]).data
    array([0., 2.], dtype=float32)
    """

    def forward(self, x: Tensor) -> Tensor:
        """Compute max(x, 0)."""
        return ops.relu(x)


class Dropout(Module):
    """Zeros with probability ``p`` while training; nothing in evaluation.

    Parameters
    ----------
    p, rng
        As of :func:`~minidiff.ops.dropout`.

    Raises
    ------
    ValueError
        If ``p`` is not in [0, 1).

    Examples
    --------
    >>> Dropout(0.5, rng=np.random.default_rng(0)).eval()([1.0, 2.0]).data
    array([1., 2.], dtype=float32)
    """

    def __init__(self, p: float, *, rng: np.random.Generator) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p is {p}; expected a probability in [0, 1).")
        self.p, self.rng = float(p), generator(rng)

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of x while training."""
        return ops.dropout(x, self.p, self.rng) if self.training else x


class _Pool2d(Module):
    def __init__(self, kernel: Pair, *, stride: Pair | None = None) -> None:
        self.kernel = pair(kernel, "kernel")
        self.stride = self.kernel if stride is None else pair(stride, "stride")

    def output_shape(self, shape: Shape) -> Shape:
        """Return (C, H', W') for (C, H, W)."""
        _check_input(self, shape, len(shape) == 3, "(C, H, W)")
        out = (shape[0], *map(windows, shape[1:], self.kernel, self.stride))
        _check_input(self, shape, min(out) > 0, f"room for a window {self.kernel}")
        return out


class MaxPool2d(_Pool2d):
    """Largest of each window, (C, H, W, N) to (C, H', W', N).

    Parameters
    ----------
    kernel, stride, relu
        As of :func:`~minidiff.ops.max_pool2d`.

    Raises
    ------
    ValueError
        If a size is not an integer >= 1. When called, as of that function.

    Examples
    --------
    >>> MaxPool2d(2, relu=True)(-np.ones((1, 2, 2, 1))).data.item()
    0.0
    """

    def __init__(self, kernel: Pair, *, stride: Pair | None = None, relu: bool = False) -> None:
        super().__init__(kernel, stride=stride)
        self.relu = bool(relu)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (C, H', W', N) from (C, H, W, N)."""
        return ops.max_pool2d(x, self.kernel, stride=self.stride, relu=self.relu)


class AvgPool2d(_Pool2d):
    """Mean of each window, (C, H, W, N) to (C, H', W', N).

    Parameters
    ----------
    kernel, stride
        As of :func:`~minidiff.ops.avg_pool2d`.

    Raises
    ------
    ValueError
        If a size is not an integer >= 1. When called, as of that function.

    Examples
    --------
    >>> AvgPool2d(2)(np.arange(4.0).reshape(1, 2, 2, 1)).data.item()
    1.5
    """

    def forward(self, x: Tensor) -> Tensor:
        """Compute (C, H', W', N) from (C, H, W, N)."""
        return ops.avg_pool2d(x, self.kernel, stride=self.stride)


class Flatten(Module):
    """(C, H, W, N) to (C*H*W, N).

    Examples
    --------
    >>> Flatten().output_shape((50, 4, 4))
    (800,)
    """

    def forward(self, x: Tensor) -> Tensor:
        """Reshape x."""
        return ops.flatten(x)

    def output_shape(self, shape: Shape) -> Shape:
        """Return (C*H*W,)."""
        return (int(np.prod(shape)),)


class Select(Module):
    """Some of the channels or features, as a compact network has them.

    Parameters
    ----------
    indices
        Of those that are kept, increasing.
    size
        How many there are before.

    Raises
    ------
    ValueError
        If the indices do not increase within 0..size-1. When called, if the input has another size.

    Examples
    --------
    >>> Select([0, 2], size=3)(np.float32([[1], [2], [3]])).data.ravel()
    array([1., 3.], dtype=float32)
    """

    def __init__(self, indices: Sequence[int] | NDArray[Any], *, size: int) -> None:
        _check_sizes("Select", size=size)
        self.indices, self.size = ops.increasing(indices, "Select"), int(size)
        if self.indices[-1] >= size:
            raise ValueError(f"Select: index {self.indices[-1]} is not below the size, {size}.")

    def forward(self, x: Tensor) -> Tensor:
        """Keep some of x."""
        if x.shape[:1] != (self.size,):
            raise ValueError(f"Select of {self.size} does not fit an input of shape {x.shape}.")
        return ops.select(x, self.indices)

    def output_shape(self, shape: Shape) -> Shape:
        """Return (len(indices), ...) for (size, ...)."""
        _check_input(self, shape, shape[:1] == (self.size,), f"({self.size}, ...)")
        return (len(self.indices), *shape[1:])


class Sequential(Module):
    """Layers one after another, numbered, or named by keyword.

    Parameters
    ----------
    layers, named
        Modules, in order.

    Raises
    ------
    TypeError
        If a layer is none, such as a list of layers or a class.
    ValueError
        If two layers have one name, or a name is empty, has "." or "/" in it, or is that of an
        attribute of every Sequential.

    Examples
    --------
    >>> model = Sequential(hidden=Linear(3, 2, rng=np.random.default_rng(0)), relu=ReLU())
    >>> [name for name, _ in model.named_parameters()]
    ['hidden.weight', 'hidden.bias']
    >>> model["hidden"] is model[0], len(model)
    (True, 2)
    """

    def __init__(self, *layers: Module, **named: Module) -> None:
        self.layers = [*layers, *named.values()]
        for i, layer in enumerate(self.layers):
            if not isinstance(layer, Module):
                kind = f"the class {layer.__name__}" if isinstance(layer, type) else repr(layer)
                raise TypeError(
                    f"Sequential: layer {i} is {kind}; expected a module (of a list, *layers)."
                )
        self.names = [*map(str, range(len(layers))), *named]
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"Sequential: two layers have one name, of {self.names}.")
        odd = [name for name in self.names if not name or set(name) & set("./")]
        if odd:
            raise ValueError(f"Sequential: {odd[0]!r} is no name of a layer; expected no . or /.")
        own = {*dir(type(self)), "layers", "names"}
        taken = [name for name in self.names if name in own]
        if taken:
            raise ValueError(
                f"Sequential: no layer can have the name {taken[0]!r}, which an attribute has."
            )

    def items(self) -> Iterator[tuple[str, Module]]:
        """Yield (name, layer) in order, and nothing that a subclass holds besides."""
        return zip(self.names, self.layers, strict=True)

    def members(self) -> Iterator[tuple[str, Any]]:
        """Yield (name, attribute): the layers, then what a subclass has besides."""
        yield from self.items()
        for name, value in super().members():
            if name.partition(".")[0] not in ("layers", "names"):
                yield name, value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in getattr(self, "names", ()):
            raise AttributeError(f"a layer is replaced by model[{name!r}] = layer.")
        super().__setattr__(name, value)

    def __setitem__(self, key: int | str, layer: Module) -> None:
        """Put another layer in the place of one."""
        if not isinstance(layer, Module):
            raise TypeError(f"Sequential: {layer!r} is no layer; expected a module.")
        self[key]  # which says what is wrong with the key
        self.layers[self.names.index(key) if isinstance(key, str) else key] = layer

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.layers)

    def __getitem__(self, key: int | str) -> Any:  # each class has attributes of its own
        """Return a layer by its place or by its name; IndexError or KeyError if there is none."""
        if isinstance(key, str):
            if key not in self.names:
                raise KeyError(f"no layer is named {key!r}; there are {', '.join(self.names)}.")
            return self.layers[self.names.index(key)]
        return self.layers[key]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers in order."""
        for layer in self.layers:
            x = layer(x)
        return x

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape that the last layer gives."""
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape


def chain(model: Module, prefix: str = "") -> Iterator[tuple[str, Module]]:
    """Yield (dotted name, layer) in order, with the layers of Sequentials in their place."""
    if isinstance(model, Sequential) and type(model).forward is Sequential.forward:
        for name, layer in model.items():
            yield from chain(layer, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, model


def _check_input(layer: Module, shape: Shape, fits: bool, expected: str) -> None:
    if not fits:
        raise ValueError(
            f"{type(layer).__name__} does not fit an input of shape {shape}; expected {expected}, "
            f"without the batch."
        )


def _check_sizes(name: str, **sizes: int) -> None:
    for key, value in sizes.items():
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name}: {key} is {value!r}; expected an integer >= 1.")
