"""The L0 surrogate, and counts of what is left: one walk through the network for both.

A weight survives only if the gates of its output, of its input and of itself are all open. So the
number of weights of a layer, *coupled* with its neighbours, is a sum of products,

    K * sum_i live_in[i] * sum_o live_out[o]

with K the places of the kernel (1 for a dense layer). Put the probabilities that gates are open
in place of ``live`` and it is the expected count, if gates are independent: the surrogate. For a
deterministic gate, which has no such probability, that of a stochastic one stands in for it, so
that there is a gradient where it is fully open; once it has closed it counts for nothing. MACs are
weights times output places. The count itself is sharper: it also leaves out what is open but of no
use, since nothing later reads it.

The formula is ours; the paper (Shulman 2020, arXiv:2012.03653) speaks of a surrogate of the L0
loss.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidiff.engine import nn
from minidiff.engine._types import Array, Indices
from minidiff.engine.nn import Module, Parameter, Shape
from minidiff.engine.tensor import Op, Tensor

from .gates import Gate, Gated, Mask

__all__ = [
    "COSTS",
    "LayerCount",
    "Surrogate",
    "architecture",
    "count",
    "expected_cost",
    "gated_sizes",
    "gates_of",
    "in_use",
    "split_parameters",
]

#: The price of a weight that is used at so many output places. What a network stores and what it
#: computes pull apart: most weights are in dense layers, most MACs in convolutions.
COSTS: dict[str, Callable[[int], float] | None] = {
    "weights": lambda places: 1.0,
    "macs": lambda places: float(places),
    "balanced": lambda places: float(places) ** (1 / 3),
    "groups": None,
}


@dataclass(frozen=True)
class Factor:
    """What one gate says of the elements of an array.

    ``labels`` is the group of each element, broadcasting to the array; None where groups are the
    elements in order. Of an element for which the same group has had its say already, ``fresh`` is
    False; None where there is none such.
    """

    gate: Gate
    labels: Indices | None = None
    fresh: NDArray[np.bool_] | None = None

    def values(self, said: Mapping[Gate, NDArray[Any]], shape: Shape) -> NDArray[Any]:
        """Return what the gate says of each element, broadcasting to the array."""
        value = said[self.gate]
        value = value.reshape(shape) if self.labels is None else value[self.labels]
        return value if self.fresh is None else np.where(self.fresh, value, value.dtype.type(1))

    def gather(self, grad: NDArray[Any] | float, shape: Shape) -> NDArray[Any]:
        """Sum a gradient, which broadcasts to the array's shape, for each group."""
        if self.fresh is not None:
            grad = np.where(self.fresh, grad, 0)
        if self.labels is None:  # one number for all groups need not be laid out
            return np.asarray(grad) if np.ndim(grad) == 0 else np.broadcast_to(grad, shape).ravel()
        labels, grad = np.broadcast_to(self.labels, shape), np.broadcast_to(grad, shape)
        return np.bincount(labels.ravel(), grad.ravel(), self.gate.count)


@dataclass(frozen=True)
class Product:
    """For each element of an array, the product over the gates on its way; a group counts once."""

    shape: Shape
    factors: tuple[Factor, ...] = ()

    def times(self, gate: Gate, labels: Indices | None = None) -> "Product":
        """Multiply by a gate, given the group of each element."""
        own = self._labels(labels)
        repeated = [
            np.broadcast_to(own == self._labels(known.labels), self.shape)
            for known in self.factors
            if known.gate is gate
        ]
        fresh = ~np.logical_or.reduce(repeated) if repeated else None
        if fresh is None or fresh.all():
            return replace(self, factors=(*self.factors, Factor(gate, labels)))
        if not fresh.any():
            return self
        return replace(self, factors=(*self.factors, Factor(gate, labels, fresh)))

    def _labels(self, labels: Indices | None) -> Indices:
        return np.arange(math.prod(self.shape)).reshape(self.shape) if labels is None else labels

    def values(self, said: Mapping[Gate, NDArray[Any]]) -> NDArray[Any]:
        """Multiply what gates say; of the array's shape."""
        out: NDArray[Any] | None = None
        for factor in self.factors:
            value = factor.values(said, self.shape)
            out = value if out is None else out * value
        return np.ones(self.shape) if out is None else np.broadcast_to(out, self.shape)

    def total(self, said: Mapping[Gate, NDArray[Any]]) -> float:
        """Sum :meth:`values`."""
        return float(self.values(said).sum()) if self.factors else float(math.prod(self.shape))

    def backward(
        self, grad: Array | float, said: Mapping[Gate, Array], grads: dict[Gate, Array]
    ) -> None:
        """Add the derivative of ``(grad * values).sum()`` to ``grads`` of each gate."""
        for i, factor in enumerate(self.factors):
            part: Any = grad
            if len(self.factors) > 1:
                others = Product(self.shape, self.factors[:i] + self.factors[i + 1 :])
                part = part * others.values(said)
            grads[factor.gate] += factor.gather(part, self.shape)


@dataclass(frozen=True)
class Live:
    """How live each channel or feature is on the way through a network.

    ``product`` is over channels, and ``source`` says which output of the layer before each comes
    from, None where they are the same. ``places`` are masks over places of channels, which become
    features of their own behind a Flatten and spare nothing before.
    """

    product: Product
    source: Indices | None = None
    places: tuple[tuple[Gate, Indices], ...] = ()

    @classmethod
    def of(cls, size: int) -> "Live":
        """All live."""
        return cls(Product((size,)))

    @property
    def size(self) -> int:
        """How many channels or features there are."""
        return self.product.shape[0]

    def gated(self, gate: Gate, labels: Indices | None = None) -> "Live":
        """Multiply by a gate, given the group of each channel."""
        return replace(self, product=self.product.times(gate, labels))

    def taken(self, channels: Indices) -> "Live":
        """Put these channels, some left out or repeated, in place of all."""
        product = Product((len(channels),))
        for factor in self.product.factors:
            labels = channels if factor.labels is None else factor.labels[channels]
            product = product.times(factor.gate, labels)
        source = self.source
        if not np.array_equal(channels, np.arange(self.size)):  # as a Flatten of single places
            source = channels if source is None else source[channels]
        return Live(product, source, tuple((g, labels[channels]) for g, labels in self.places))

    def flattened(self, shape: Shape) -> "Live":
        """Set the places of each channel side by side, from (C, H, W)."""
        live = replace(self, places=()).taken(np.repeat(np.arange(self.size), math.prod(shape[1:])))
        for gate, labels in self.places:
            live = live.gated(gate, labels.ravel())
        return live


@dataclass(frozen=True)
class Step:
    """A layer with weights, met on the walk through a network."""

    name: str
    layer: nn.Conv2d | nn.Linear
    gated: Gated | None
    live_in: Live
    live_out: Live
    places: int  # output places, H' * W'

    @property
    def kernel_size(self) -> int:
        """Places of the kernel."""
        return math.prod(self.layer.weight.shape[2:])

    @cached_property
    def parts(self) -> tuple[Product, Product, Product]:
        """What is live: outputs (O,), inputs (I,), and weights themselves (O, I, K).

        A weight is live if all three are. Where one gate has its say in two of them, they are not
        independent, and all is in the third.
        """
        shape = (*self.layer.weight.shape[:2], self.kernel_size)
        outs, ins, whole = self.live_out.product, self.live_in.product, Product(shape)
        for mask in self.gated.weights if self.gated else ():
            labels = mask.groups.labels
            if mask.groups.are_elements_of(self.layer.weight.shape):
                whole = whole.times(mask.gate)
            else:
                kernel = np.broadcast_to(labels, (*labels.shape[:2], *self.layer.weight.shape[2:]))
                whole = whole.times(mask.gate, kernel.reshape(*labels.shape[:2], -1))
        gates = [{factor.gate for factor in part.factors} for part in (outs, ins, whole)]
        if sum(map(len, gates)) == len(set().union(*gates)):
            return outs, ins, whole
        for part, axis in ((outs, 0), (ins, 1)):
            for factor in part.factors:
                labels = np.arange(shape[axis]) if factor.labels is None else factor.labels
                whole = whole.times(factor.gate, labels.reshape(-1, *[1] * (2 - axis)))
        return Product(shape[:1]), Product(shape[1:2]), whole

    def gates(self) -> Iterator[Gate]:
        """Yield every gate that has a say in the layer."""
        yield from (factor.gate for part in self.parts for factor in part.factors)

    def open_weights(self, is_open: Mapping[Gate, NDArray[np.bool_]]) -> NDArray[np.bool_]:
        """Return which weights have only open gates at their ends and on themselves, (O, I, K)."""
        outs, ins, whole = (part.values(is_open) > 0 for part in self.parts)
        return outs[:, None, None] & ins[:, None] & whole

    def expected_weights(
        self, said: Mapping[Gate, Array], grad: float = 0.0, grads: dict[Gate, Array] | None = None
    ) -> float:
        """Return the expected number of weights left, given the probabilities that gates are open.

        ``grad`` times the derivative is added to ``grads``, if given.
        """
        outs, ins, whole = self.parts
        if not whole.factors:
            total_out, total_in, size = outs.total(said), ins.total(said), self.kernel_size
            if grads is not None:
                ins.backward(grad * size * total_out, said, grads)
                outs.backward(grad * size * total_in, said, grads)
            return size * total_out * total_in
        if not (outs.factors or ins.factors):
            if grads is not None:
                whole.backward(grad, said, grads)
            return whole.total(said)
        b, a = outs.values(said)[:, None], ins.values(said)
        alive = whole.values(said).sum(axis=2)  # (O, I)
        # No products of matrices: the order of their sums changes with the number of threads.
        alive_a = (alive * a).sum(axis=1)
        if grads is not None:
            ins.backward(grad * (b * alive).sum(axis=0), said, grads)
            outs.backward(grad * alive_a, said, grads)
            whole.backward(grad * b[:, :, None] * a[:, None], said, grads)
        return float((b[:, 0] * alive_a).sum())


def walk(model: Module, shape: Shape) -> tuple[list[Step], Live]:
    """Follow what is live from layer to layer, for inputs of ``shape`` without the batch.

    Returns the layers with weights, and what is live in the network's output. Raises TypeError for
    a module that is not one of the engine's layers, a Gate, a Mask, a Gated or a Sequential, and
    ValueError for a layer that does not fit its input.
    """
    shape = tuple(shape)
    live = Live.of(shape[0] if shape else 0)
    steps: list[Step] = []
    for name, module in known_layers(model):
        gated = module if isinstance(module, Gated) else None
        layer = gated.layer if gated else module
        try:
            after = layer.output_shape(shape)
        except ValueError as error:
            raise ValueError(f"{name or 'the model'}: {error}") from None
        gate = gated.inputs if gated else layer if isinstance(layer, Gate) else None
        if gate:
            live = live.gated(gate)
        elif isinstance(layer, Mask):
            slices = layer.groups.slices
            if slices is not None:
                live = live.gated(layer.gate, np.broadcast_to(slices, shape[:1]))
            else:
                spread = np.broadcast_to(layer.groups.labels, shape)
                live = replace(live, places=(*live.places, (layer.gate, spread)))
        if (gate or isinstance(layer, Mask)) and steps and live.source is None:
            # A channel that is closed here is of no use before.
            steps[-1] = replace(steps[-1], live_out=live)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            live_in, live = live, Live.of(after[0])
            if gated and gated.outputs:
                live = live.gated(gated.outputs)
            steps.append(Step(name, layer, gated, live_in, live, math.prod(after[1:])))
        elif isinstance(layer, nn.Select):
            live = live.taken(layer.indices)
        elif isinstance(layer, nn.Flatten):
            live = live.flattened(shape)
        elif after != shape:  # a pool, behind which places are others
            live = replace(live, places=())
        shape = after
    return steps, live


_LAYERS = (
    nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.AvgPool2d, nn.ReLU, nn.Dropout, nn.Flatten, nn.Select,
    Gate, Mask, Gated,
)  # fmt: skip


def known_layers(model: Module) -> Iterator[tuple[str, Module]]:
    """Yield (dotted name, layer) in order; TypeError for what pruning does not know."""
    for name, module in nn.chain(model):
        layer = module.layer if isinstance(module, Gated) else module
        # A subclass may compute anything.
        known = type(module) in _LAYERS and type(layer) in _LAYERS
        if not known and not isinstance(module, Gate):
            raise TypeError(
                f"{name or 'the model'} is a {type(layer).__name__}; counting and compaction know "
                f"Sequential, Gate, Mask, Gated and the layers of minidiff.nn."
            )
        yield name, module


def gates_of(model: Module) -> dict[str, Gate]:
    """Return the gates of a network by name, such as "conv1.outputs" or "dense.weights.0".

    Parameters
    ----------
    model
        Of any modules.

    Examples
    --------
    >>> gates_of(nn.Sequential(gate=Gate(4), flatten=nn.Flatten()))["gate"].count
    4
    """
    owners = {id(m.phi): m for m in model.modules() if isinstance(m, Gate)}
    masked = {id(m.gate.phi) for m in model.modules() if isinstance(m, Mask)}
    return {
        name.removesuffix(".gate.phi" if id(phi) in masked else ".phi"): owners[id(phi)]
        for name, phi in model.named_parameters()
        if id(phi) in owners
    }


def split_parameters(model: Module) -> tuple[list[Parameter], list[Parameter]]:
    """Return the weights and biases of a network, and phi of its gates: each for an optimiser.

    Weights are for SGD with weight decay. The slope of a gate that is nearly open or closed is
    tiny, so phi is for Adam, without decay.

    Parameters
    ----------
    model
        Of any modules.

    Examples
    --------
    >>> layer = Gated(nn.Linear(4, 3, rng=np.random.default_rng(0)), outputs=Gate(3))
    >>> weights, phis = split_parameters(layer)
    >>> [w.shape for w in weights], phis[0] is layer.outputs.phi
    ([(3, 4), (3,)], True)
    """
    phis = {id(gate.phi) for gate in gates_of(model).values()}
    parts: tuple[list[Parameter], list[Parameter]] = [], []
    for parameter in model.parameters():
        parts[id(parameter) in phis].append(parameter)
    return parts


class ExpectedCost(Op):
    """The price of the weights expected to be left, as a function of the gates' phi.

    The derivative is the same walk again with little to add, so it is taken along.
    """

    def __init__(
        self, steps: list[Step], gates: list[Gate], price: Callable[[int], float] | None
    ) -> None:
        self.steps, self.gates, self.price = steps, gates, price

    def forward(self, *phis: Array) -> Array:
        tails = [gate.tail(phi) for gate, phi in zip(self.gates, phis, strict=True)]
        said = {gate: p for gate, (p, _) in zip(self.gates, tails, strict=True)}
        grads: dict[Gate, Array] = {gate: np.zeros(gate.count) for gate in self.gates}
        if self.price is None:
            total = sum(float(p.sum()) for p in said.values())
            grads = {gate: np.ones(gate.count) for gate in self.gates}
        else:
            total = 0.0
            for step in self.steps:
                price = self.price(step.places)
                total += price * step.expected_weights(said, price, grads)
        self.grads = [
            grads[gate] * density for gate, (_, density) in zip(self.gates, tails, strict=True)
        ]
        self.reached = tuple(
            (p != 0).nonzero()[0] if gate.noise is None else None
            for gate, p in zip(self.gates, said.values(), strict=True)
        )
        return np.asarray(total, np.result_type(np.float32, *phis))

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        return tuple(float(grad) * part for part in self.grads)


class Surrogate:
    """The L0 surrogate of a model: what its gates are expected to leave, as a cost.

    Of a layer whose kernel has K places, ``K * sum(p_in) * sum(p_out)`` weights are expected, with
    p the probabilities that gates of inputs and outputs are open. The formula is ours; the paper
    (Shulman 2020, arXiv:2012.03653) speaks of a surrogate of the L0 loss. To build it walks the
    network once; calls are quick, as one a training step should be.

    Parameters
    ----------
    model
        A Sequential of the engine's layers and Gated ones.
    shape
        Of one input, without the batch: (C, H, W) or (D,).
    cost
        What a weight costs: "weights", 1; "macs", its multiply-adds a sample; "balanced", the
        cube root of these. Or "groups": every group of a gate costs 1, whatever it gates.

    Raises
    ------
    ValueError
        If ``cost`` is unknown, a layer does not fit its input, or a gate stands where it spares
        nothing that the cost counts.
    TypeError
        If the model holds a module that counting does not know.

    Examples
    --------
    Twelve weights, each there with the probability that normal noise is above -2:

    >>> gate = Gate(3, initial=1.5, width=1.0, sigma=1.0)
    >>> linear = Gated(nn.Linear(4, 3, rng=np.random.default_rng(0)), outputs=gate)
    >>> round(Surrogate(linear, (4,))().item(), 3)
    11.727
    """

    def __init__(self, model: Module, shape: Shape, *, cost: str = "weights") -> None:
        if cost not in COSTS:
            raise ValueError(f"cost is {cost!r}; expected one of {', '.join(COSTS)}.")
        self.price, (self.steps, _) = COSTS[cost], walk(model, shape)
        # A gate that several layers share is asked once.
        self.gates = list(dict.fromkeys(gate for step in self.steps for gate in step.gates()))
        for name, gate in gates_of(model).items():
            if gate in self.gates:
                continue
            if self.price is not None:
                raise ValueError(
                    f"the gate {name} stands where to close it spares none of what cost {cost!r} "
                    f"counts, so nothing would close it; cost='groups' counts gates themselves."
                )
            self.gates.append(gate)

    def __call__(self) -> Tensor:
        """Return the expected cost, a Tensor of shape (), differentiable in phi if not frozen."""
        op = ExpectedCost(self.steps, self.gates, self.price)
        return op(*[gate.learned for gate in self.gates])


def expected_cost(model: Module, shape: Shape, *, cost: str = "weights") -> Tensor:
    """Return what the gates of a model are expected to leave, once; see :class:`Surrogate`.

    Parameters
    ----------
    model, shape, cost
        As of :class:`Surrogate`.

    Returns
    -------
    Tensor of shape (), differentiable in phi of all gates that are not frozen

    Raises
    ------
    ValueError, TypeError
        As of :class:`Surrogate`.

    Examples
    --------
    >>> conv = nn.Conv2d(1, 2, 3, rng=np.random.default_rng(0))  # 18 weights, 16 places
    >>> [expected_cost(conv, (1, 6, 6), cost=cost).item() for cost in ("weights", "macs")]
    [18.0, 288.0]
    """
    return Surrogate(model, shape, cost=cost)()


@dataclass(frozen=True)
class LayerCount:
    """What is left of a layer, beside what it had; without biases.

    Attributes
    ----------
    name : str
    inputs, outputs, weights, macs : (int, int)
        Left, and of how many. MACs are multiply-adds a sample.
    gated : tuple of str
        Which roles gates play in it: "inputs", "outputs", "weights", "biases".
    dense : bool
        Whether it is a dense layer.

    Examples
    --------
    >>> conv = nn.Conv2d(1, 2, 3, rng=np.random.default_rng(0))
    >>> count(nn.Sequential(conv=conv), (1, 6, 6))[0]
    LayerCount(name='conv', inputs=(1, 1), outputs=(2, 2), weights=(18, 18), macs=(288, 288),
               gated=(), dense=False)
    """

    name: str
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    weights: tuple[int, int]
    macs: tuple[int, int]
    gated: tuple[str, ...]
    dense: bool


def count(model: Module, shape: Shape) -> list[LayerCount]:
    """Count what is left of each layer: inputs, outputs, weights and MACs.

    What cannot change the network's output does not count, though its own gate may be open: a
    channel that no later layer uses, say. (:func:`~minidiff.compact` may leave less: a unit
    without weights of its own is a constant, which it adds to the next layer's biases.)

    Parameters
    ----------
    model, shape
        As of :class:`Surrogate`.

    Raises
    ------
    ValueError
        If a layer does not fit its input.
    TypeError
        If the model holds a module that counting does not know.

    Examples
    --------
    A unit that is closed takes weights of the next layer with it:

    >>> rng, gate = np.random.default_rng(0), Gate(3)
    >>> hidden = Gated(nn.Linear(4, 3, rng=rng), outputs=gate)
    >>> model = nn.Sequential(hidden, nn.Linear(3, 2, rng=rng))
    >>> gate.set_open(np.array([True, True, False]))
    >>> [layer.weights for layer in count(model, (4,))]
    [(8, 12), (4, 6)]
    """
    return [
        LayerCount(
            name=step.name,
            inputs=(int(inputs.sum()), inputs.size),
            outputs=(int(outputs.sum()), outputs.size),
            weights=(left, weights.size),
            macs=(left * step.places, weights.size * step.places),
            gated=tuple(dict(step.gated.gates())) if step.gated else (),
            dense=isinstance(step.layer, nn.Linear),
        )
        for step, inputs, outputs, weights in _left(model, shape)
        for left in (int(weights.sum()),)
    ]


def in_use(model: Module, shape: Shape) -> dict[str, NDArray[np.bool_]]:
    """Return which inputs and outputs of each layer :func:`~minidiff.count` counts.

    Parameters
    ----------
    model, shape
        As of :class:`Surrogate`.

    Returns
    -------
    dict of bool arrays
        By layer and role, such as "conv1.outputs", whether there are gates or not.

    Raises
    ------
    ValueError, TypeError
        As of :func:`~minidiff.count`.

    Examples
    --------
    >>> rng, gate = np.random.default_rng(0), Gate(3)
    >>> model = nn.Sequential(first=nn.Linear(4, 3, rng=rng), second=nn.Linear(3, 2, rng=rng))
    >>> model["second"] = Gated(model["second"], inputs=gate)
    >>> gate.set_open(np.array([True, True, False]))
    >>> in_use(model, (4,))["first.outputs"]
    array([ True,  True, False])
    """
    return {
        f"{step.name}.{role}": which
        for step, inputs, outputs, _ in _left(model, shape)
        for role, which in (("inputs", inputs), ("outputs", outputs))
    }


def _left(
    model: Module, shape: Shape
) -> list[tuple[Step, NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]]:
    """Return each layer with what is of use: which inputs, outputs and weights (O, I, K)."""
    steps, end = walk(model, shape)
    gates = [gate for step in steps for gate in step.gates()]
    gates += [factor.gate for factor in end.product.factors]
    is_open = {gate: gate.is_open() for gate in gates}
    left = []
    # The outputs of a layer that later ones use, maybe more than once; None for all.
    later = None if end.source is None else end.source[end.product.values(is_open) > 0]
    for step in reversed(steps):
        outputs: NDArray[np.bool_] = np.asarray(step.live_out.product.values(is_open) > 0)
        if later is not None:
            outputs &= np.isin(np.arange(outputs.size), later)
        weights = step.open_weights(is_open) & outputs[:, None, None]
        inputs = np.asarray(weights.any(axis=(0, 2)))
        source = step.live_in.source
        later = inputs.nonzero()[0] if source is None else source[inputs]
        left.append((step, inputs, outputs, weights))
    return left[::-1]


def gated_sizes(counts: list[LayerCount]) -> dict[str, tuple[int, int]]:
    """Return (left, of how many) for each gated role, by name, as in "conv1.outputs".

    Parameters
    ----------
    counts
        Of all layers, as of :func:`~minidiff.count`.

    Examples
    --------
    >>> layer = Gated(nn.Linear(4, 3, rng=np.random.default_rng(0)), outputs=Gate(3))
    >>> gated_sizes(count(nn.Sequential(dense=layer), (4,)))
    {'dense.outputs': (3, 3)}
    """
    return {
        f"{layer.name}.{role}": getattr(layer, role)
        for layer in counts
        for role in ("inputs", "outputs", "weights")
        if role in layer.gated
    }


def architecture(counts: list[LayerCount], *, dense: bool = False) -> str:
    """Write what is left, or was at first, as in the literature: for LeNet5, "8-10-112-68".

    That is the outputs of each layer but the last, and the inputs of a dense layer where they are
    others than the outputs before it: of the first, and behind a Flatten.

    Parameters
    ----------
    counts
        Of all layers, as of :func:`~minidiff.count`.
    dense
        Whether to write what was at first.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> conv, dense = nn.Conv2d(1, 8, 3, rng=rng), nn.Linear(8 * 6 * 6, 10, rng=rng)
    >>> architecture(count(nn.Sequential(conv, nn.Flatten(), dense), (1, 8, 8)))
    '8-288'
    """
    sizes: list[int] = []
    before = None
    for layer in counts:
        if layer.dense and layer.inputs[1] != before:
            sizes.append(layer.inputs[dense])
        sizes.append(layer.outputs[dense])
        before = layer.outputs[1]
    return "-".join(map(str, sizes[:-1]))
