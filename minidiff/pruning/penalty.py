"""The L0 surrogate, and counts of what is left: one walk through the network for both.

A weight survives only if the gates of its output, of its input and of itself are all open. So the
number of weights of a layer, *coupled* with its neighbours, is a sum of products,

    K * sum_i live_in[i] * sum_o live_out[o]

with K the places of the kernel (1 for a dense layer). Put the probabilities that gates are open
in place of ``live`` and it is the expected count, if gates are independent: the surrogate, with a
gradient also where gates are closed (with noise that has tails, that is, not with uniform noise).
MACs are weights times output places. The count itself is sharper: it also leaves out what is open
but of no use, since nothing later reads it.

The formula is ours; the paper (Shulman 2020, arXiv:2012.03653) speaks of a surrogate of the L0
loss.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidiff.engine import nn
from minidiff.engine._types import Array, Indices
from minidiff.engine.nn import Module, Shape
from minidiff.engine.tensor import Op, Tensor

from .gates import Gate, Gated

__all__ = [
    "COSTS",
    "LayerCount",
    "Surrogate",
    "architecture",
    "count",
    "expected_cost",
    "gated_sizes",
]

# The price of a weight that is used at so many output places. What a network stores and what it
# computes pull apart: most weights are in dense layers, most MACs in convolutions.
COSTS: dict[str, Callable[[int], float]] = {
    "weights": lambda places: 1.0,
    "macs": lambda places: float(places),
    "balanced": lambda places: float(places) ** (1 / 3),
}


@dataclass(frozen=True)
class Live:
    """How live each channel is: the product of what gates say of it.

    ``factors`` has each gate, and for each channel its group, or None where these are the same;
    ``source`` likewise which output of the layer before each channel comes from.
    """

    size: int
    factors: tuple[tuple[Gate, Indices | None], ...] = ()
    source: Indices | None = None

    def gated(self, gate: Gate) -> "Live":
        """Multiply by a gate that has a group for each channel, unless it has had its say."""
        if any(known is gate and groups is None for known, groups in self.factors):
            return self
        return Live(self.size, (*self.factors, (gate, None)), self.source)

    def taken(self, channels: Indices) -> "Live":
        """Put these channels, some left out or repeated, in place of all."""
        return Live(
            len(channels),
            tuple(
                (gate, channels if groups is None else groups[channels])
                for gate, groups in self.factors
            ),
            channels if self.source is None else self.source[channels],
        )

    def values(self, said: Mapping[Gate, NDArray[Any]]) -> NDArray[Any]:
        """Multiply what gates say, shape (size,)."""
        out: NDArray[Any] | None = None
        for gate, groups in self.factors:
            value = said[gate] if groups is None else said[gate][groups]
            out = value if out is None else out * value
        return np.ones(self.size) if out is None else out

    def total(self, said: Mapping[Gate, NDArray[Any]]) -> float:
        """Sum :meth:`values`."""
        return float(self.values(said).sum()) if self.factors else float(self.size)

    def backward(
        self, grad: Array | float, said: Mapping[Gate, Array], grads: dict[Gate, Array]
    ) -> None:
        """Add the derivative of ``grad @ values`` to ``grads`` of each gate."""
        for i, (gate, groups) in enumerate(self.factors):
            part: Any = grad
            if len(self.factors) > 1:
                part = grad * Live(self.size, self.factors[:i] + self.factors[i + 1 :]).values(said)
            if groups is not None:
                part = np.bincount(groups, np.full(self.size, part), gate.count)
            grads[gate] += part


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

    def groups(self) -> tuple[Gate, Indices] | None:
        """Return the gate on the weights themselves and the group of each, (O, I, K)."""
        if self.gated is None or self.gated.weights is None or self.gated.groups is None:
            return None
        shape = self.layer.weight.shape
        labels = np.broadcast_to(self.gated.groups.labels, shape)
        return self.gated.weights, labels.reshape(*shape[:2], -1)

    def gates(self) -> Iterator[Gate]:
        """Yield every gate that has a say in the layer."""
        yield from (gate for gate, _ in self.live_in.factors + self.live_out.factors)
        grouped = self.groups()
        if grouped:
            yield grouped[0]

    def open_weights(self, is_open: Mapping[Gate, NDArray[np.bool_]]) -> NDArray[np.bool_]:
        """Return which weights have only open gates at their ends and on themselves, (O, I, K)."""
        ends_out, ends_in = self.live_out.values(is_open) > 0, self.live_in.values(is_open) > 0
        paths = ends_out[:, None] & ends_in
        whole: NDArray[np.bool_] = np.repeat(paths[:, :, None], self.kernel_size, axis=2)
        grouped = self.groups()
        if grouped:
            gate, labels = grouped
            whole &= is_open[gate][labels]
        return whole

    def expected_weights(
        self, said: Mapping[Gate, Array], grad: float = 0.0, grads: dict[Gate, Array] | None = None
    ) -> float:
        """Return the expected number of weights left, given the probabilities that gates are open.

        ``grad`` times the derivative is added to ``grads``, if given.
        """
        grouped = self.groups()
        if not grouped:
            ins, outs = self.live_in.total(said), self.live_out.total(said)
            if grads is not None:
                self.live_in.backward(grad * self.kernel_size * outs, said, grads)
                self.live_out.backward(grad * self.kernel_size * ins, said, grads)
            return self.kernel_size * ins * outs
        gate, labels = grouped
        a, b = self.live_in.values(said), self.live_out.values(said)
        alive = said[gate][labels].sum(axis=2)  # (O, I)
        if grads is not None:
            self.live_in.backward(grad * b @ alive, said, grads)
            self.live_out.backward(grad * alive @ a, said, grads)
            paths = np.broadcast_to(grad * b[:, None, None] * a[:, None], labels.shape)
            grads[gate] += np.bincount(labels.ravel(), paths.ravel(), gate.count)
        return float(b @ alive @ a)


def walk(model: Module, shape: Shape) -> tuple[list[Step], Live]:
    """Follow what is live from layer to layer, for inputs of ``shape`` without the batch.

    Returns the layers with weights, and what is live in the network's output. Raises TypeError for
    a module that is not one of the engine's layers, a Gate, a Gated or a Sequential, and
    ValueError for a layer that does not fit its input.
    """
    live = Live(shape[0] if shape else 0)
    steps: list[Step] = []
    for name, module in chain(model):
        gated = module if isinstance(module, Gated) else None
        layer = gated.layer if gated else module
        try:
            after = layer.output_shape(shape)
        except ValueError as error:
            raise ValueError(f"{name or 'the model'}: {error}") from None
        gate = gated.inputs if gated else layer if isinstance(layer, Gate) else None
        if gate:
            live = live.gated(gate)
            if steps and live.source is None:  # a channel that is closed here is of no use before
                steps[-1] = replace(steps[-1], live_out=live)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            live_in, live = live, Live(after[0])
            if gated and gated.outputs:
                live = live.gated(gated.outputs)
            steps.append(Step(name, layer, gated, live_in, live, math.prod(after[1:])))
        elif isinstance(layer, nn.Select):
            live = live.taken(layer.indices)
        elif isinstance(layer, nn.Flatten):
            live = live.taken(np.repeat(np.arange(live.size), math.prod(shape[1:])))
        shape = after
    return steps, live


_LAYERS = (
    nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.AvgPool2d, nn.ReLU, nn.Dropout, nn.Flatten, nn.Select,
    Gate, Gated,
)  # fmt: skip


def chain(model: Module) -> Iterator[tuple[str, Module]]:
    """Yield (dotted name, layer) in order; TypeError for what pruning does not know."""
    for name, module in nn.chain(model):
        layer = module.layer if isinstance(module, Gated) else module
        # A subclass may compute anything.
        if type(module) not in _LAYERS or type(layer) not in _LAYERS:
            raise TypeError(
                f"{name or 'the model'} is a {type(layer).__name__}; counting and compaction know "
                f"Sequential, Gate, Gated and the layers of minidiff.nn."
            )
        yield name, module


class ExpectedCost(Op):
    """The price of the weights expected to be left, as a function of the gates' phi.

    The derivative is the same walk again with little to add, so it is taken along.
    """

    def __init__(self, steps: list[Step], gates: list[Gate], price: Callable[[int], float]) -> None:
        self.steps, self.gates, self.price = steps, gates, price

    def forward(self, *phis: Array) -> Array:
        tails = [gate.tail(phi) for gate, phi in zip(self.gates, phis, strict=True)]
        said = {gate: p for gate, (p, _) in zip(self.gates, tails, strict=True)}
        grads: dict[Gate, Array] = {gate: np.zeros(gate.count) for gate in self.gates}
        total = 0.0
        for step in self.steps:
            price = self.price(step.places)
            total += price * step.expected_weights(said, price, grads)
        self.grads = [
            grads[gate] * density for gate, (_, density) in zip(self.gates, tails, strict=True)
        ]
        return np.asarray(total, np.result_type(np.float32, *phis))

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        return tuple(float(grad) * part for part in self.grads)


class Surrogate:
    """The L0 surrogate of a model: what its gates are expected to leave, as a cost.

    To build it walks the network once; calls are quick, as one a training step should be.

    Parameters
    ----------
    model
        A Sequential of the engine's layers and Gated ones.
    shape
        Of one input, without the batch: (C, H, W) or (D,).
    cost
        What a weight costs: "weights", 1; "macs", its multiply-adds a sample; "balanced", the
        cube root of these.

    Raises
    ------
    ValueError
        If ``cost`` is unknown, or a layer does not fit its input.
    TypeError
        If the model holds a module that counting does not know.
    """

    def __init__(self, model: Module, shape: Shape, *, cost: str = "weights") -> None:
        if cost not in COSTS:
            raise ValueError(f"cost is {cost!r}; expected one of {', '.join(COSTS)}.")
        self.price, (self.steps, _) = COSTS[cost], walk(model, shape)
        # A gate that several layers share is asked once.
        self.gates = list(dict.fromkeys(gate for step in self.steps for gate in step.gates()))

    def __call__(self) -> Tensor:
        """Return the expected cost, a Tensor of shape () that is differentiable in all phi."""
        op = ExpectedCost(self.steps, self.gates, self.price)
        return op(*[gate.phi for gate in self.gates])


def expected_cost(model: Module, shape: Shape, *, cost: str = "weights") -> Tensor:
    """Return what the gates of a model are expected to leave; see :class:`Surrogate`."""
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
        Which roles gates play in it: "inputs", "outputs", "weights".
    """

    name: str
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    weights: tuple[int, int]
    macs: tuple[int, int]
    gated: tuple[str, ...]


def count(model: Module, shape: Shape) -> list[LayerCount]:
    """Count what is left of each layer: inputs, outputs, weights and MACs.

    What cannot change the network's output does not count, though its own gate may be open: a
    channel that no later layer uses, say. Arguments and errors are as of :func:`expected_cost`.
    """
    steps, end = walk(model, shape)
    gates = [gate for step in steps for gate in step.gates()] + [gate for gate, _ in end.factors]
    is_open = {gate: gate.is_open() for gate in gates}
    counts = []
    # The outputs of a layer that later ones use, maybe more than once; None for all.
    later = None if end.source is None else end.source[end.values(is_open) > 0]
    for step in reversed(steps):
        outputs, inputs = step.layer.weight.shape[:2]
        live_out: NDArray[np.bool_] = np.asarray(step.live_out.values(is_open) > 0)
        if later is not None:
            live_out &= np.isin(np.arange(outputs), later)
        weights = step.open_weights(is_open) & live_out[:, None, None]
        used = np.asarray(weights.any(axis=(0, 2)))
        source = step.live_in.source
        later = used.nonzero()[0] if source is None else source[used]
        left = int(weights.sum())
        counts.append(
            LayerCount(
                name=step.name,
                inputs=(int(used.sum()), inputs),
                outputs=(int(live_out.sum()), outputs),
                weights=(left, weights.size),
                macs=(left * step.places, weights.size * step.places),
                gated=tuple(role for role, _ in step.gated.gates()) if step.gated else (),
            )
        )
    return counts[::-1]


def gated_sizes(counts: list[LayerCount]) -> dict[str, tuple[int, int]]:
    """Return (left, of how many) for each gated role, by name, as in "conv1.outputs"."""
    return {
        f"{layer.name}.{role}": getattr(layer, role)
        for layer in counts
        for role in ("inputs", "outputs")
        if role in layer.gated
    }


def architecture(counts: list[LayerCount]) -> str:
    """Write what gates have left as in the literature: for LeNet5, "8-10-112-68"."""
    return "-".join(str(left) for left, _ in gated_sizes(counts).values())
