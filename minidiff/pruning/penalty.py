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

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidiff.engine import nn
from minidiff.engine.nn import Module, Sequential, Shape
from minidiff.engine.tensor import Tensor

from .gates import Gate, Gated

__all__ = ["COSTS", "LayerCount", "architecture", "count", "expected_cost", "gated_sizes"]

Live = Any  # a Tensor of probabilities, or an array of 0 and 1

# The price of a weight that is used at so many output places. What a network stores and what it
# computes pull apart: most weights are in dense layers, most MACs in convolutions.
COSTS: dict[str, Callable[[int], float]] = {
    "weights": lambda places: 1.0,
    "macs": lambda places: float(places),
    "balanced": lambda places: float(places) ** (1 / 3),
}


@dataclass(frozen=True)
class Step:
    """A layer with weights, met on the walk through a network."""

    name: str
    layer: nn.Conv2d | nn.Linear
    gated: Gated | None
    live_in: Live  # (channels or features,)
    live_out: Live  # (outputs,)
    places: int  # output places, H' * W'

    @property
    def kernel_size(self) -> int:
        """Places of the kernel."""
        return int(np.prod(self.layer.weight.shape[2:]))

    def open_weights(self, is_open: Callable[[Gate], NDArray[np.bool_]]) -> NDArray[np.bool_]:
        """Return which weights have only open gates at their ends and on themselves, (O, I, K)."""
        paths = (self.live_out > 0)[:, None] & (self.live_in > 0)
        whole: NDArray[np.bool_] = np.repeat(paths[:, :, None], self.kernel_size, axis=2)
        if self.gated is not None and self.gated.weights is not None and self.gated.groups:
            labels = np.broadcast_to(self.gated.groups.labels, self.layer.weight.shape)
            whole &= is_open(self.gated.weights)[labels].reshape(whole.shape)
        return whole

    def expected_weights(self, value: Callable[[Gate], Live]) -> Live:
        """Return the expected number of weights left, a Tensor or an array of shape ()."""
        if self.gated is None or self.gated.weights is None or self.gated.groups is None:
            return self.kernel_size * self.live_in.sum() * self.live_out.sum()
        shape = self.layer.weight.shape
        ones = (1,) * len(shape[2:])
        paths = self.live_out.reshape(-1, 1, *ones) * self.live_in.reshape(1, -1, *ones)
        alive = value(self.gated.weights)[np.broadcast_to(self.gated.groups.labels, shape)]
        return (paths * alive).sum()


def walk(model: Module, shape: Shape, value: Callable[[Gate], Live]) -> Iterator[Step]:
    """Follow what is live from layer to layer, for inputs of ``shape`` without the batch.

    ``value`` says how live each group of a gate is.

    Raises TypeError for a module that is not one of the engine's layers, a Gated or a Sequential,
    and ValueError for a layer that does not fit its input.
    """
    live: Live = np.ones(shape[0], np.float32) if shape else np.ones(0)
    for name, module in _chain(model, ""):
        gated = module if isinstance(module, Gated) else None
        layer = gated.layer if gated else module
        if isinstance(layer, nn.Conv2d | nn.Linear):
            if shape[:1] != layer.weight.shape[1:2] or len(shape) != max(1, layer.weight.ndim - 1):
                raise ValueError(
                    f"{name or 'the model'} has a weight of shape {layer.weight.shape}, which does "
                    f"not fit an input of shape {shape}; is the shape without the batch?"
                )
            if gated and gated.inputs:
                live = live * value(gated.inputs)
            shape = layer.output_shape(shape)
            live_in, live = live, np.ones(shape[0], np.float32)
            if gated and gated.outputs:
                live = value(gated.outputs)
            yield Step(name, layer, gated, live_in, live, int(np.prod(shape[1:])))
        elif isinstance(layer, nn.Flatten):
            places = int(np.prod(shape[1:]))
            # A channel's places share its fate.
            spread = np.repeat(np.arange(shape[0]), places)
            live = live[spread]
            shape = layer.output_shape(shape)
        elif isinstance(layer, nn.MaxPool2d | nn.AvgPool2d | nn.ReLU | nn.Dropout):
            shape = layer.output_shape(shape)
        else:
            raise TypeError(
                f"{name or 'the model'} is a {type(layer).__name__}; counting knows Sequential, "
                f"Gated and the layers of minidiff.nn."
            )


def _chain(module: Module, prefix: str) -> Iterator[tuple[str, Module]]:
    if isinstance(module, Sequential):
        for name, layer in module.children():
            yield from _chain(layer, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, module


def expected_cost(model: Module, shape: Shape, *, cost: str = "weights") -> Tensor:
    """Return the expected cost of what the gates leave, differentiable: the L0 surrogate.

    Parameters
    ----------
    model
        A Sequential of the engine's layers and Gated ones.
    shape
        Of one input, without the batch: (C, H, W) or (D,).
    cost
        What a weight costs: "weights", 1; "macs", its multiply-adds a sample; "balanced", the
        cube root of these.

    Returns
    -------
    Tensor of shape ()

    Raises
    ------
    ValueError
        If ``cost`` is unknown, or a layer does not fit its input.
    TypeError
        If the model holds a module that counting does not know.
    """
    if cost not in COSTS:
        raise ValueError(f"cost is {cost!r}; expected one of {', '.join(COSTS)}.")
    # A gate that several layers share is asked once.
    known: dict[int, Tensor] = {}

    def probability(gate: Gate) -> Tensor:
        return known.setdefault(id(gate), gate.open_probability())

    total = Tensor(0.0)
    for step in walk(model, shape, probability):
        total = total + COSTS[cost](step.places) * step.expected_weights(probability)
    return total


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

    def is_open(gate: Gate) -> NDArray[np.bool_]:
        return gate.is_open()

    counts = []
    used: NDArray[np.bool_] | None = None  # of a layer's outputs, by later layers
    for step in reversed(list(walk(model, shape, is_open))):
        outputs, inputs = step.layer.weight.shape[:2]
        live_out = step.live_out > 0
        if used is not None:  # it may be per place of each channel, behind a Flatten
            live_out &= used.reshape(outputs, -1).any(axis=1)
        weights = step.open_weights(is_open) & live_out[:, None, None]
        used = weights.any(axis=(0, 2))
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
