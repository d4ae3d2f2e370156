"""Counts of the inputs, outputs, weights and MACs left in each layer of a network."""

from dataclasses import dataclass

import numpy as np

from minidiff.engine import nn
from minidiff.engine.arrays import Shape
from minidiff.engine.module import Module

from .network import Bools, Stage, walk

__all__ = ["LayerCount", "architecture", "count", "gated_sizes", "in_use"]


@dataclass(frozen=True)
class LayerCount:
    """The sizes left in a layer, and its dense sizes, without biases.

    Attributes
    ----------
    name : str
    inputs, outputs, weights, macs : (int, int)
        (left, dense). MACs are multiply-adds per sample: weights times output positions. As in
        fvcore and ptflops, products with padding count too, although the kernels skip them.
    gated : tuple of str
        The roles of the gates on the layer: "inputs", "outputs", "weights", "biases".
    dense : bool
        Whether the layer is a Linear.

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
    """Count the inputs, outputs, weights and MACs left in each layer.

    A weight of 0 does not count, and neither does one that cannot change the network's output, even
    if its own gate is open: for example, the weights of a channel that no later layer uses.
    :func:`~minidiff.compact` may leave less: a unit without weights is a constant, which goes into
    the next layer's biases.

    Parameters
    ----------
    model, shape
        As in :class:`Surrogate`.

    Raises
    ------
    ValueError
        If a layer does not fit its input.
    TypeError
        If a module does not define how it maps channels.

    Examples
    --------
    A closed unit removes weights of its own layer and of the next layer:

    >>> from minidiff.pruning.gated import Gated
    >>> from minidiff.pruning.gates import Gate
    >>> rng, gate = np.random.default_rng(0), Gate(3)
    >>> hidden = Gated(nn.Linear(4, 3, rng=rng), outputs=gate)
    >>> model = nn.Sequential(hidden, nn.Linear(3, 2, rng=rng))
    >>> gate.set_open(np.array([True, True, False]))
    >>> [layer.weights for layer in count(model, (4,))]
    [(8, 12), (4, 6)]
    """
    return [
        LayerCount(
            name=stage.name,
            inputs=(int(inputs.sum()), inputs.size),
            outputs=(int(outputs.sum()), outputs.size),
            weights=(int(weights.sum()), weights.size),
            macs=(int(weights.sum()) * stage.positions, weights.size * stage.positions),
            gated=tuple(dict(stage.gated.gates())) if stage.gated else (),
            dense=isinstance(stage.layer, nn.Linear),
        )
        for stage, inputs, outputs, weights in _used(model, shape)
    ]


def in_use(model: Module, shape: Shape) -> dict[str, Bools]:
    """Return which inputs and outputs of each layer :func:`~minidiff.count` counts as left.

    Parameters
    ----------
    model, shape
        As in :class:`~minidiff.Surrogate`.

    Returns
    -------
    dict of bool arrays
        One array for each layer and role, such as "conv1.outputs", with or without gates.

    Raises
    ------
    ValueError, TypeError
        As in :func:`~minidiff.count`.

    Examples
    --------
    >>> from minidiff.pruning.gated import gate
    >>> rng = np.random.default_rng(0)
    >>> second = gate(nn.Linear(3, 2, rng=rng), "inputs")
    >>> second.inputs.set_open(np.array([True, True, False]))
    >>> in_use(nn.Sequential(first=nn.Linear(4, 3, rng=rng), second=second), (4,))["first.outputs"]
    array([ True,  True, False])
    """
    return {
        f"{stage.name}.{role}": used
        for stage, inputs, outputs, _ in _used(model, shape)
        for role, used in (("inputs", inputs), ("outputs", outputs))
    }


def _used(model: Module, shape: Shape) -> list[tuple[Stage, Bools, Bools, Bools]]:
    """Return each layer with the inputs, outputs and weights (O, I, K) that count."""
    network = walk(model, shape)
    gates = [gate for stage in network.stages for gate in stage.gates()]
    gates += [factor.gate for factor in network.end.product.factors]
    is_open = {gate: gate.is_open() for gate in gates}
    found = []
    channels, used = network.end, np.asarray(network.end.product.values(is_open) > 0)
    for stage in reversed(network.stages):
        outputs = np.zeros(channels.source, np.bool_)
        outputs[channels.origin[used] // channels.positions] = True
        outputs &= stage.outputs.values(is_open) > 0
        outs, ins, own = (product.values(is_open) > 0 for product in stage.products)
        own = own & (stage.layer.weight.data.reshape(own.shape) != 0)
        weights = (outs & outputs)[:, None, None] & ins[:, None] & own
        channels, used = stage.inputs, np.asarray(weights.any(axis=(0, 2)))
        found.append((stage, used, outputs, weights))
    return found[::-1]


def gated_sizes(counts: list[LayerCount]) -> dict[str, tuple[int, int]]:
    """Return (left, dense) sizes for each gated role, by a name like "conv1.outputs".

    Parameters
    ----------
    counts
        The counts of all layers, from :func:`~minidiff.count`.

    Examples
    --------
    >>> from minidiff.pruning.gated import gate
    >>> layer = gate(nn.Linear(4, 3, rng=np.random.default_rng(0)))
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
    """Return the sizes left, or the dense sizes, as the literature writes them: "8-10-112-68".

    The text lists the outputs of each layer but the last. It also lists the inputs of a dense layer
    that differ from the outputs of the layer before: in the first layer, and behind a Flatten.

    Parameters
    ----------
    counts
        The counts of all layers, from :func:`~minidiff.count`.
    dense
        Whether to return the dense sizes.

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
