"""One walk through a network, which finds the gates on the path of each weight.

The walk visits the layers in order. Between two layers with weights it carries :class:`Channels`:
the gates that multiply each channel, and the output of the earlier layer that each channel comes
from. Each layer with weights becomes a :class:`Stage`. The surrogate, the counts and compaction all
start from the stages, so they agree on the gates of each weight.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidiff.engine.arrays import Array, Indices, Shape
from minidiff.engine.module import Module, Parameter, chain, input_shape
from minidiff.engine.nn import Weighted

from .gated import Gated, Layout, Mask
from .gates import Gate

__all__ = ["gates_of", "split_parameters"]

Bools = NDArray[np.bool_]
Values = Mapping[Gate, NDArray[Any]]  # for each gate, a number or a bool for each group


@dataclass(frozen=True)
class Factor:
    """A gate laid out over an array: each element is multiplied by the value of its group."""

    gate: Gate
    labels: Indices  # the group of each element; broadcasts to the array
    first: Bools | None = None  # where no earlier factor counted the group; None for everywhere

    @cached_property
    def in_order(self) -> bool:
        """Whether the groups are the elements of ``labels`` in order: no lookup is needed."""
        return np.array_equal(self.labels.ravel(), np.arange(self.gate.count))

    def values(self, values: Values) -> NDArray[Any]:
        """Return the factor of each element: 1 where an earlier factor counted the group."""
        value = values[self.gate]
        value = value.reshape(self.labels.shape) if self.in_order else value[self.labels]
        return value if self.first is None else np.where(self.first, value, value.dtype.type(1))

    def sizes(self, shape: Shape) -> Any:
        """Return how many elements of the array each group has; one number if all have one."""
        if self.in_order and self.labels.shape == shape:
            return 1.0
        labels = np.broadcast_to(self.labels, shape)
        return np.bincount(labels.ravel(), minlength=self.gate.count).astype(np.float64)

    def sum_by_group(self, grad: Any, shape: Shape) -> NDArray[Any]:
        """Sum a gradient, which broadcasts to the array's shape, over each group's elements."""
        if self.first is not None:
            grad = np.where(self.first, grad, 0)
        if self.in_order and self.labels.shape == shape:
            # A scalar gradient need not be broadcast to all groups.
            return np.asarray(grad) if np.ndim(grad) == 0 else np.broadcast_to(grad, shape).ravel()
        labels, grad = np.broadcast_to(self.labels, shape), np.broadcast_to(grad, shape)
        return np.bincount(labels.ravel(), grad.ravel(), self.gate.count)


@dataclass(frozen=True)
class Product:
    """For each element of an array, the product of the gates on its path.

    A group that is on the path twice counts once, because a gate is open or closed as a whole.
    """

    shape: Shape
    factors: tuple[Factor, ...] = ()

    def times(self, gate: Gate, labels: Indices) -> "Product":
        """Multiply by a gate, given the group of each element."""
        counted = np.zeros(self.shape, np.bool_)
        for factor in self.factors:
            if factor.gate is gate:
                counted |= factor.labels == labels
        if counted.all():
            return self
        first = ~counted if counted.any() else None
        return replace(self, factors=(*self.factors, Factor(gate, labels, first)))

    def taken(self, elements: Indices) -> "Product":
        """Return the product for the listed elements of a vector, which may repeat."""
        product = Product((len(elements),))
        for factor in self.factors:
            product = product.times(factor.gate, factor.labels[elements])
        return product

    def values(self, values: Values) -> NDArray[Any]:
        """Multiply the values of the gates; return an array of shape ``self.shape``."""
        if not self.factors:
            return np.ones(self.shape)
        out = self.factors[0].values(values)
        for factor in self.factors[1:]:
            out = out * factor.values(values)
        return out if out.shape == self.shape else np.broadcast_to(out, self.shape)

    def total(self, values: Values) -> float:
        """Sum :meth:`values`."""
        return float(self.values(values).sum()) if self.factors else float(math.prod(self.shape))

    def backward(self, grad: Any, values: Values, grads: dict[Gate, Array]) -> None:
        """Add the derivative of ``(grad * values).sum()`` by each gate to ``grads``."""
        for i, factor in enumerate(self.factors):
            others = Product(self.shape, self.factors[:i] + self.factors[i + 1 :])
            part = grad * others.values(values) if others.factors else grad
            grads[factor.gate] += factor.sum_by_group(part, self.shape)


@dataclass(frozen=True)
class Channels:
    """The channels, or features, between a layer with weights and the next one.

    Attributes
    ----------
    product : Product
        The gates on the path of each channel, from the source on.
    source : int
        The number of outputs of the layer before, or of channels of the network's input.
    positions : int
        The number of features that a Flatten makes of each source channel; 1 without a Flatten.
    origin : ndarray of int64
        The source of each channel: ``source channel * positions + position``.
    scales : list of (Gate, ndarray of int64)
        Gates to fold into the next weights, with the group of each channel.
    masks : list of (Gate, ndarray of int64)
        Gates on single positions, with groups of shape (C, H, W). A Flatten turns them into gates
        on features.
    stuck : list of Gate
        Gates that cannot be folded into the next weights.
    """

    product: Product
    source: int
    origin: Indices
    positions: int = 1
    scales: Layout = field(default_factory=list)
    masks: Layout = field(default_factory=list)
    stuck: list[Gate] = field(default_factory=list)

    @classmethod
    def of(cls, product: Product) -> "Channels":
        """Return the channels of a layer's output, or of the network's input."""
        (count,) = product.shape
        return cls(product, count, np.arange(count))

    @cached_property
    def direct(self) -> bool:
        """Whether the channels are those of the source; then closing one saves work there too."""
        return self.positions == 1 and np.array_equal(self.origin, np.arange(self.source))

    # -- what layers do to channels ------------------------------------------------------------

    def gated(self, gate: Gate, labels: Indices) -> "Channels":
        """Multiply by a gate, given the group of each channel."""
        product, scales = self.product.times(gate, labels), [*self.scales, (gate, labels)]
        return replace(self, product=product, scales=scales)

    def masked(self, gate: Gate, labels: Indices) -> "Channels":
        """Multiply single positions by a gate, given the group of each position."""
        return replace(self, masks=[*self.masks, (gate, labels)])

    def pooled(self) -> "Channels":
        """Move or mix the positions of each channel: no gate on positions can be folded through."""
        gates = [gate for gate, _ in self.masks]
        return replace(self, masks=[], stuck=[*self.stuck, *gates]) if gates else self

    def bent(self) -> "Channels":
        """Pass a layer that is not homogeneous: no gate can be folded through it."""
        gates = [gate for gate, _ in [*self.scales, *self.masks]]
        return replace(self, scales=[], masks=[], stuck=[*self.stuck, *gates]) if gates else self

    def selected(self, indices: Indices) -> "Channels":
        """Keep some channels, or repeat them."""
        return replace(
            self,
            product=self.product.taken(indices),
            origin=self.origin[indices],
            scales=[(gate, labels[indices]) for gate, labels in self.scales],
            masks=[(gate, labels[indices]) for gate, labels in self.masks],
        )

    def flattened(self, shape: Shape) -> "Channels":
        """Make a feature of each position of each channel; ``shape`` is (C, H, W)."""
        positions = math.prod(shape[1:])
        features = replace(self, masks=[]).selected(np.repeat(np.arange(shape[0]), positions))
        origin = features.origin * positions + np.tile(np.arange(positions), shape[0])
        features = replace(features, origin=origin, positions=self.positions * positions)
        for gate, labels in self.masks:
            features = features.gated(gate, labels.ravel())
        return features


@dataclass(frozen=True)
class Stage:
    """A layer with weights, as the walk finds it."""

    name: str
    layer: Weighted
    gated: Gated | None
    before: list[tuple[str, Module]]  # the layers without weights in front of it
    shape: Shape  # of the input of ``before``, without the batch
    inputs: Channels
    outputs: Product  # the gates on its outputs, and on later channels that equal its outputs
    positions: int  # of the output, H' * W'

    @property
    def kernel_size(self) -> int:
        """How many positions the kernel has."""
        return math.prod(self.layer.weight.shape[2:])

    @cached_property
    def products(self) -> tuple[Product, Product, Product]:
        """The gates on outputs (O,), on inputs (I,), and on the weights themselves (O, I, K).

        A weight is left if all three are open. A gate in two of the products makes them dependent;
        then the third product holds all gates.
        """
        shape = (*self.layer.weight.shape[:2], self.kernel_size)
        outs, ins, weights = self.outputs, self.inputs.product, Product(shape)
        for mask in self.gated.weights if self.gated else ():
            labels = mask.groups.labels
            if labels.ndim > 2:
                labels = np.broadcast_to(labels, (*labels.shape[:2], *self.layer.weight.shape[2:]))
            weights = weights.times(mask.gate, labels.reshape(*labels.shape[:2], -1))
        gates = [{factor.gate for factor in part.factors} for part in (outs, ins, weights)]
        if sum(map(len, gates)) == len(set().union(*gates)):
            return outs, ins, weights
        for part, axes in ((outs, (-1, 1, 1)), (ins, (-1, 1))):
            for factor in part.factors:
                weights = weights.times(factor.gate, factor.labels.reshape(axes))
        return Product(shape[:1]), Product(shape[1:2]), weights

    def gates(self) -> list[Gate]:
        """List every gate on the path of a weight."""
        return [factor.gate for product in self.products for factor in product.factors]


@dataclass(frozen=True)
class Network:
    """The layers with weights of a network, and the layers behind the last of them."""

    stages: list[Stage]
    behind: list[tuple[str, Module]]
    shape: Shape  # of the input of ``behind``
    end: Channels  # the network's outputs


def walk(model: Module, shape: Shape) -> Network:
    """Walk through a network for inputs of ``shape`` without the batch.

    Raises TypeError for a module that does not define how it maps channels, and ValueError for a
    layer that does not fit its input.
    """
    first = shape = input_shape(shape)
    channels = Channels.of(Product(shape[:1]))
    stages: list[Stage] = []
    before: list[tuple[str, Module]] = []
    for name, module in chain(model):
        gated = module if isinstance(module, Gated) else None
        layer = gated.layer if gated else module
        try:
            after = module.output_shape(shape)
            if gated and gated.inputs:
                inputs = gated.inputs.map_channels(channels, shape)
                channels = replace(inputs, scales=channels.scales)  # the stage has the gate itself
            elif not isinstance(layer, Weighted):
                channels = channels if layer.homogeneous else channels.bent()
                channels = layer.map_channels(channels, shape)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name or 'the model'}: {error}") from None
        if stages and channels.direct:  # a channel closed here is not needed before
            stages[-1] = replace(stages[-1], outputs=channels.product)
        if isinstance(layer, Weighted):
            product = Product(after[:1])
            if gated and gated.outputs:
                product = product.times(gated.outputs, np.arange(after[0]))
            positions = math.prod(after[1:])
            stages.append(Stage(name, layer, gated, before, first, channels, product, positions))
            channels, before, first = Channels.of(product), [], after
        else:
            before.append((name, module))
        shape = after
    return Network(stages, before, first, channels)


def gates_of(model: Module) -> dict[str, Gate]:
    """Return the gates of a network by name, such as "conv1.outputs" or "dense.weights.0".

    Parameters
    ----------
    model
        A tree of any modules.

    Examples
    --------
    >>> from minidiff import nn
    >>> gates_of(nn.Sequential(gate=Gate(4), flatten=nn.Flatten()))["gate"].count
    4
    """
    owners = {id(m.phi): m for m in model.modules() if isinstance(m, Gate)}
    masked = {id(m.gate.phi) for m in model.modules() if isinstance(m, Mask)}
    return {
        name.removesuffix(".phi").removesuffix(".gate" if id(phi) in masked else ""): owners[
            id(phi)
        ]
        for name, phi in model.named_parameters()
        if id(phi) in owners
    }


def split_parameters(model: Module) -> tuple[list[Parameter], list[Parameter]]:
    """Return the weights and biases of a network, and phi of its gates: one list per optimiser.

    Train the weights by SGD with weight decay. Train phi by Adam without decay, because the slope
    of a gate that is nearly open or closed is tiny.

    Parameters
    ----------
    model
        A tree of any modules.

    Examples
    --------
    >>> from minidiff import nn
    >>> layer = Gated(nn.Linear(4, 3, rng=np.random.default_rng(0)), outputs=Gate(3))
    >>> weights, phis = split_parameters(layer)
    >>> [w.shape for w in weights], phis[0] is layer.outputs.phi
    ([(3, 4), (3,)], True)
    """
    phis = {id(gate.phi) for gate in gates_of(model).values()}
    lists: tuple[list[Parameter], list[Parameter]] = [], []
    for parameter in model.parameters():
        lists[id(parameter) in phis].append(parameter)
    return lists
