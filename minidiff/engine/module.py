"""Module, a node in a tree of parameters, and Sequential, which applies layers in order.

The class of a layer tells the rest of minidiff how the layer computes, how it maps channels (for
counts, the surrogate and compaction), and how to save, compile and export it. A new layer is one
class; ``docs/howto/add-a-layer.md`` writes one.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Elements, Shape, real
from .sparse import pays
from .tensor import Tensor, no_grad

Self = TypeVar("Self", bound="Module")


class Parameter(Tensor):
    """A tensor that training changes: a leaf that requires a gradient.

    Parameters
    ----------
    array
        The initial values, as for :class:`~minidiff.Tensor`.

    Examples
    --------
    >>> Parameter([1.0, 2.0])
    Tensor([1., 2.], requires_grad=True)
    """

    __slots__ = ()

    def __init__(self, array: Any) -> None:
        super().__init__(array, requires_grad=True)

    def fix_zeros(self) -> None:
        """Keep elements that are 0 at 0 for good, if few others are left.

        Then layers compute the other elements alone, optimisers move no more, and files store no
        more. ``data`` becomes read-only. Assign to ``data`` to set other values: if one of them is
        where a 0 was, all elements are free again.

        >>> p = Parameter([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
        >>> p.fix_zeros()
        >>> (p * p).sum().backward()
        >>> p.live.places, p.grad
        (array([1]), array([[0., 4., 0.],
               [0., 0., 0.]], dtype=float32))
        """
        places = np.flatnonzero(self.data)
        self.live = Elements(places) if pays(places.size, self.size) else None


class Module:
    """The base class of layers and networks: parameters, submodules and a ``forward``.

    A module finds its parameters and submodules among its attributes, and in attributes that are
    lists, tuples or dicts, in the order of assignment. Each counts once, even if found twice.

    A subclass that defines ``forward`` does not inherit ``channelwise``, ``homogeneous``,
    ``map_channels``, ``compile`` and ``onnx``, which describe the computation of its parent. A
    subclass that defines a constructor does not inherit ``settings``.

    Attributes
    ----------
    training : bool
        Whether the module computes as in training or as in evaluation; see :meth:`train` and
        :meth:`eval`.
    channelwise : bool
        Whether channel c of the output depends on channel c of the input alone. The surrogate,
        counts and compaction refuse a layer that is not channelwise and does not define
        :meth:`map_channels`.
    homogeneous : bool
        Whether f(z x) = z f(x) for every z >= 0. If so, a gate in front of the layer can be folded
        into the weights behind the layer.
    settings : tuple of str, or None
        The arguments of the constructor that a file stores, each an attribute of the same name.
        None if the layer cannot be saved.

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
    channelwise: bool = False
    homogeneous: bool = False
    settings: tuple[str, ...] | None = None

    def __init_subclass__(cls) -> None:
        """Do not inherit what describes the parent's ``forward`` or constructor."""
        own = vars(cls).keys()
        another = {"forward", "apply"} & own
        parent: Any = super(cls, cls)
        if another and parent.forward is not Module.forward:
            for name in {"channelwise", "homogeneous", "map_channels", "compile", "onnx"} - own:
                setattr(cls, name, getattr(Module, name))
        if "__init__" in own and "settings" not in own:
            cls.settings = None

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output."""
        raise NotImplementedError

    def __call__(self, x: Any) -> Tensor:
        """Compute the output for a Tensor or an array."""
        return self.forward(x if isinstance(x, Tensor) else Tensor(x))

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output, without the batch, for an input of ``shape``.

        A layer that keeps the shape need not define this method. Raises ValueError if the layer
        does not fit the input.
        """
        return shape

    def map_channels(self, channels: Any, shape: Shape) -> Any:
        """Return the output channels, given the input channels and ``shape`` without the batch.

        ``channels`` is a ``Channels`` of ``minidiff/pruning/network.py``, which has a method for
        each thing that a layer can do to channels. A channelwise layer need not define
        ``map_channels``: its channels stay in order, and their positions may move. Raises TypeError
        if the class is not channelwise and does not define ``map_channels``.
        """
        if not self.channelwise:
            raise TypeError(
                f"{type(self).__name__} does not say what becomes of channels, so it can neither "
                f"be counted nor compacted. If each output channel depends on the same input "
                f"channel alone, set channelwise = True in the class; else define map_channels."
            )
        return channels.pooled()

    def compile(self, program: Any) -> None:
        """Add this layer to a ``Program`` of ``minidiff/predict/predictor.py``.

        If a layer does not define ``compile``, a Predictor calls its ``forward``.
        """
        raise NotImplementedError

    def onnx(self, graph: Any) -> None:
        """Add this layer to an ONNX ``Graph`` of ``minidiff/io/export.py``."""
        raise TypeError(
            f"{type(self).__name__} has no method onnx, so it cannot be exported to ONNX."
        )

    # -- the tree of modules -------------------------------------------------------------------

    def members(self) -> Iterator[tuple[str, Any]]:
        """Yield (name, attribute), and items of lists, tuples and dicts by names like "heads.0"."""
        for name, value in vars(self).items():
            yield from _items(name, value)

    def children(self) -> Iterator[tuple[str, "Module"]]:
        """Yield (name, module) for the modules directly below this one."""
        return ((name, value) for name, value in self.members() if isinstance(value, Module))

    def modules(self) -> Iterator["Module"]:
        """Yield this module and all modules below it, each once."""
        found: dict[int, Module] = {id(self): self}
        for _, child in self.children():
            found |= {id(module): module for module in child.modules()}
        yield from found.values()

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Yield (dotted name, parameter), each parameter once."""
        seen: set[int] = set()
        for name, parameter in self._all_parameters(prefix):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def _all_parameters(self, prefix: str) -> Iterator[tuple[str, Parameter]]:
        for name, value in self.members():
            if isinstance(value, Parameter):
                yield prefix + name, value
            elif isinstance(value, Module):
                yield from value._all_parameters(f"{prefix}{name}.")

    def parameters(self) -> list[Parameter]:
        """List the parameters, each once, in order."""
        return [parameter for _, parameter in self.named_parameters()]

    def train(self: Self, mode: bool = True) -> Self:
        """Set ``training`` to ``mode`` in this module and all below it; return this module."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: Self) -> Self:
        """Set ``training`` to False in this module and all below it; return this module."""
        return self.train(False)

    def state_dict(self) -> dict[str, Array]:
        """Return a copy of every parameter, by name."""
        return {name: p.data.copy() for name, p in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Set every parameter from ``state``.

        Raises ValueError if a name or shape does not match. The error lists every mismatch, and no
        parameter changes.
        """
        parameters = dict(self.named_parameters())
        arrays = fitting(state, {name: p.data for name, p in parameters.items()}, self)
        for name, parameter in parameters.items():
            parameter.data = arrays[name]

    def __repr__(self) -> str:
        """Show the class with its settings, or shapes of parameters, and the modules in it."""
        if self.settings is None:
            own = [f"{name} {p.shape}" for name, p in self.members() if isinstance(p, Parameter)]
        else:
            values = {name: getattr(self, name) for name in self.settings if name != "dtype"}
            plain = bool | int | float | str | None
            own = [
                f"{name}={value}"
                for name, value in values.items()
                if all(isinstance(v, plain) for v in (value if type(value) is tuple else (value,)))
            ]
        text = f"{type(self).__name__}({', '.join(own)})"
        for name, child in self.children():
            text += f"\n  {name}: " + repr(child).replace("\n", "\n  ")
        return text


def _items(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list | tuple | dict):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _items(f"{name}.{key}", item)
    else:
        yield name, value


@contextmanager
def evaluation(model: Module) -> Iterator[None]:
    """Compute as in evaluation, without a tape; then restore the mode of every module."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with no_grad():
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training


def input_shape(shape: Any) -> Shape:
    """Return the shape of an input without the batch; ValueError unless integers above 0."""
    sizes = tuple(shape) if isinstance(shape, tuple | list) and shape else (None,)
    if not all(isinstance(n, int | np.integer) and n > 0 for n in sizes):
        raise ValueError(
            f"shape is {shape!r:.60}; expected the shape of one input, without the batch, as a "
            f"tuple of integers above 0, such as (1, 28, 28) or (30,)."
        )
    return tuple(map(int, sizes))


def fitting(
    state: Mapping[str, NDArray[Any]], expected: Mapping[str, Array], owner: object
) -> dict[str, Array]:
    """Copy the arrays of a state in the expected dtypes.

    ValueError if names or shapes differ, or as in :func:`real`.
    """
    wrong = [f"{name} is missing" for name in expected if name not in state]
    wrong += [f"{name} is unknown" for name in state if name not in expected]
    wrong += [
        f"{name} has shape {np.shape(state[name])}, not {array.shape}"
        for name, array in expected.items()
        if name in state and np.shape(state[name]) != array.shape
    ]
    if wrong:
        raise ValueError(f"the state does not fit this {type(owner).__name__}: {'; '.join(wrong)}.")
    arrays = {}
    for name, array in expected.items():
        try:
            arrays[name] = np.array(real(state[name], array.dtype), order="C")
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
    return arrays


class Sequential(Module):
    """Layers applied in order; their names are numbers or keywords.

    Parameters
    ----------
    layers, named
        Modules, in order.

    Raises
    ------
    TypeError
        If a layer is not a module but, for example, a list of layers or a class.
    ValueError
        If two layers have the same name, or if a name is empty, contains "." or "/", or is the name
        of an attribute of Sequential.

    Examples
    --------
    >>> from minidiff import nn
    >>> model = Sequential(hidden=nn.Linear(3, 2, rng=np.random.default_rng(0)), relu=nn.ReLU())
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
                    f"Sequential: layer {i} is {kind}; expected a module (unpack a list: *layers)."
                )
        self.names = [*map(str, range(len(layers))), *named]
        own = {*dir(type(self)), "layers", "names"}
        for name in self.names:
            if self.names.count(name) > 1:
                raise ValueError(f"Sequential: two layers have the name {name!r}.")
            if not name or set(name) & set("./"):
                raise ValueError(f"Sequential: a layer has the name {name!r}; expected no . or /.")
            if name in own:
                raise ValueError(
                    f"Sequential: a layer has the name {name!r}, which is the name of an attribute."
                )

    def items(self) -> Iterator[tuple[str, Module]]:
        """Yield (name, layer) in order, without the other attributes of a subclass."""
        return zip(self.names, self.layers, strict=True)

    def members(self) -> Iterator[tuple[str, Any]]:
        """Yield (name, attribute): the layers, then the other attributes of a subclass."""
        yield from self.items()
        for name, value in super().members():
            if name.partition(".")[0] not in ("layers", "names"):
                yield name, value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in getattr(self, "names", ()):
            raise AttributeError(f"a layer is replaced by model[{name!r}] = layer.")
        super().__setattr__(name, value)

    def __setitem__(self, key: int | str, layer: Module) -> None:
        """Replace a layer."""
        if not isinstance(layer, Module):
            raise TypeError(f"Sequential: {layer!r} is not a layer; expected a module.")
        self.layers[self._index(key)] = layer

    def __getitem__(self, key: int | str) -> Any:  # each class has attributes of its own
        """Return a layer by its index or by its name; IndexError or KeyError if there is none."""
        return self.layers[self._index(key)]

    def _index(self, key: int | str) -> int:
        if isinstance(key, str) and key not in self.names:
            raise KeyError(f"no layer is named {key!r}; there are {', '.join(self.names)}.")
        return self.names.index(key) if isinstance(key, str) else key

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers in order."""
        for layer in self.layers:
            x = layer(x)
        return x

    def output_shape(self, shape: Shape) -> Shape:
        """Return the output shape of the last layer."""
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape


def chain(model: Module, prefix: str = "") -> Iterator[tuple[str, Module]]:
    """Yield (dotted name, layer) in order; a Sequential is replaced by its layers."""
    if isinstance(model, Sequential) and type(model).forward is Sequential.forward:
        for name, layer in model.items():
            yield from chain(layer, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, model
