"""Compaction cuts closed groups out, and returns an ordinary smaller network without gates.

Four passes over the layers with weights:

1. *Fold.* Multiply gates into the weights behind or before them. Gates are never negative, so a
   gated channel may pass ReLU or a pool before its weights.
2. *Fold constants.* An output whose weights are all zero equals its bias. Fold this constant into
   the biases of the next layer. Zero padding makes the constant depend on the position, so the
   filter stays.
3. *Keep.* From the last layer to the first, keep only the inputs that a kept output has weights
   for. Behind a Flatten, these may be only some positions of a channel.
4. *Cut.* Take the kept inputs and outputs out of each layer. Of a weight with few elements left,
   the zeros are fixed.

Before that, each batch normalisation is folded into the layer before it.

Only zero weights decide what to cut, so a network pruned by other methods is compacted as well.
"""

import copy
import warnings
from dataclasses import dataclass, field

import numpy as np

from minidiff.engine import nn
from minidiff.engine.arrays import Array, Indices, Shape
from minidiff.engine.module import Module, Parameter, Sequential, chain, evaluation
from minidiff.engine.nn import Weighted
from minidiff.engine.tensor import Tensor, no_grad

from .gated import Gated, Mask, multiplied, multiply, with_layers
from .gates import Gate
from .network import Bools, Channels, Network, Stage, walk

__all__ = ["compact"]


@dataclass
class Folded:
    """A layer with gates folded into its weights, and the inputs and outputs that it keeps."""

    stage: Stage
    weight: Array  # (O, I, K)
    bias: Array  # (O,)
    inputs: Bools = field(init=False)  # (I,) varies with the input of the network; later, kept
    outputs: Bools = field(init=False)  # (O,) kept


def compact(model: Module, shape: Shape) -> Sequential:
    """Return an ordinary network without gates that computes the same, in less memory and time.

    Compaction cuts out filters, inputs and units that are closed or that no open one uses. The
    result shares nothing with ``model``, and all its parameters require a gradient. You can train
    the result, gate it and compact it again.

    Parameters
    ----------
    model
        Layers in Sequentials of any depth, with gates.
    shape
        Shape of one input without the batch: (C, H, W) or (D,).

    Returns
    -------
    Sequential
        A network with the layer names of ``model``; names in inner Sequentials are joined by an
        underscore. Its outputs equal those of ``model`` in evaluation, up to rounding. A Select
        stands before a layer that reads only some of the channels left.

    Raises
    ------
    TypeError
        If a module does not define how it maps channels.
    ValueError
        If a layer does not fit its input, or no layer has weights. If a gate cannot be folded: a
        gate on single positions that no Flatten turns into features, or a gate in front of a layer
        that is not homogeneous. If outputs would differ, because a class of your own describes its
        channels or gates wrongly.

    Warns
    -----
    UserWarning
        If no inputs of a layer are left, so that the output is the same for any input.

    Examples
    --------
    >>> from minidiff.pruning.gated import gate
    >>> rng = np.random.default_rng(0)
    >>> hidden = gate(nn.Linear(4, 3, rng=rng))
    >>> hidden.outputs.phi.data[1] = -1  # closed
    >>> small = compact(Sequential(hidden, nn.ReLU(), nn.Linear(3, 2, rng=rng)), (4,))
    >>> [parameter.shape for parameter in small.parameters()]
    [(2, 4), (2,), (2, 2), (2,)]
    """
    network = walk(fold_norms(model), shape)
    if not network.stages:
        raise ValueError("the model has no layer with weights, so there is nothing to compact.")
    layers = _fold(network)
    _fold_constants(layers)
    _keep(layers, network.end)
    small = _cut(network, layers)
    _check_own_classes(model, small, shape)
    return small.train(model.training)


def fold_norms(model: Module) -> Module:
    """Return a network whose batch normalisations are in the layers before them, as in evaluation.

    Gates on such a layer are folded, too. A Gate right behind gates the outputs of the layer.
    ValueError if a normalisation follows no layer with weights.
    """
    layers = list(chain(model))
    if not any(isinstance(layer, nn.BatchNorm) for _, layer in layers):
        return model
    new: dict[str, Module | None] = {}
    for i, (name, norm) in enumerate(layers):
        if not isinstance(norm, nn.BatchNorm):
            continue
        before, layer = layers[i - 1] if i else ("", norm)
        if not isinstance(layer, Weighted | Gated):
            raise ValueError(
                f"{name or 'the model'} is a BatchNorm that does not follow a layer with weights; "
                f"expected it right behind a Conv2d or Linear, into which it folds."
            )
        normed, new[name] = _normed(layer, norm), None
        after, gate = layers[i + 1] if i + 1 < len(layers) else ("", None)
        new[before] = normed
        if isinstance(gate, Gate) and not gate.per_sample:
            new[before], new[after] = Gated(normed, outputs=gate), None
    assert isinstance(model, Sequential)  # a chain of at least two layers
    return with_layers(model, new)


def _normed(layer: Weighted | Gated, norm: nn.BatchNorm) -> Weighted:
    """Return a layer without gates that also normalises."""
    inner = layer.layer if isinstance(layer, Gated) else layer
    parts = layer.layouts() if isinstance(layer, Gated) else [(inner.weight, []), (inner.bias, [])]
    folded: Weighted = norm.folded(inner, *(multiplied(p.data, layout) for p, layout in parts))
    return folded


def _check_own_classes(model: Module, small: Module, shape: Shape) -> None:
    """Compare outputs if a class is not from minidiff, because its channel map may be wrong."""
    classes = {type(module) for module in model.modules()}
    own = sorted(c.__name__ for c in classes if not c.__module__.startswith("minidiff."))
    if not own:
        return
    dtype = small.parameters()[0].dtype
    x = np.random.default_rng(0).standard_normal((*shape, 8)).astype(dtype)
    with evaluation(model), np.errstate(all="ignore"):
        expected = model(x).data
    try:
        with evaluation(small), np.errstate(all="ignore"):
            error = np.abs(small(x).data - expected).max()
    except ValueError as problem:
        reason = str(problem)
    else:
        if not error > 1e-3 * np.abs(expected).max():
            return
        reason = f"outputs differ by {error:.2g}"
    raise ValueError(
        f"the compact network computes something else: {reason}. Check how {', '.join(own)} "
        f"describe channels (channelwise, homogeneous, map_channels) and gates (transform)."
    )


# -- 1: fold -----------------------------------------------------------------------------------


def _fold(network: Network) -> list[Folded]:
    layers: list[Folded] = []
    for stage in network.stages:
        _refuse_stuck(stage.name, stage.inputs)
        layer, gated = stage.layer, stage.gated
        parameters = gated.layouts() if gated else [(layer.weight, []), (layer.bias, [])]
        weight, bias = (multiplied(parameter.data, layout) for parameter, layout in parameters)
        weight = weight.reshape(*weight.shape[:2], -1)
        scale = multiplied(np.ones(weight.shape[1]), stage.inputs.scales)
        layers.append(Folded(stage, multiply(weight, scale[:, None]), bias.copy()))
    end = network.end
    _refuse_stuck("the output", end)
    homogeneous = all(module.homogeneous for _, module in network.behind)
    if end.scales and (end.positions > 1 or not homogeneous):
        raise ValueError(
            "a gate behind the last layer with weights cannot be folded back through a layer "
            "between them."
        )
    scale = np.ones(end.source)
    scale[end.origin // end.positions] = multiplied(np.ones(len(end.origin)), end.scales)
    last = layers[-1]
    last.weight = multiply(last.weight, scale[:, None, None])
    last.bias = multiply(last.bias, scale)
    return layers


def _refuse_stuck(name: str, channels: Channels) -> None:
    if channels.stuck or channels.masks:
        raise ValueError(
            f"{name} follows a gate that cannot be folded into its weights: one on positions of "
            f"channels that no Flatten makes into features, or one in front of a layer that is not "
            f"homogeneous. Gate the outputs or inputs of a layer instead."
        )


# -- 2: fold constants -------------------------------------------------------------------------


def _fold_constants(layers: list[Folded]) -> None:
    """Find the inputs that depend on the network's input; fold the others into biases."""
    source = layers[0].stage.inputs.source
    varies: Bools = np.ones(source, np.bool_)
    values: Array = np.zeros(source)
    for layer in layers:
        stage, channels = layer.stage, layer.stage.inputs
        constants = _pass_constants(stage, np.where(varies, 0, values))
        layer.inputs = varies[channels.origin // channels.positions]
        layer.inputs |= (constants != constants[:, :1]).any(axis=1)  # differs between positions
        constant = constants[:, 0]
        if any(getattr(stage.layer, "padding", ())):
            layer.inputs |= constant != 0
        constant_inputs = ~layer.inputs & (constant != 0)
        # Sum in float64. An output without weights for an input does not read the constant.
        weight = layer.weight[:, constant_inputs]
        sums, read = weight.sum(axis=2, dtype=np.float64), weight.any(axis=2)
        more = np.multiply(sums, constant[constant_inputs], out=np.zeros_like(sums), where=read)
        layer.bias = (layer.bias + more.sum(axis=1)).astype(layer.bias.dtype)
        varies = np.asarray(layer.weight[:, layer.inputs].any(axis=(1, 2)))
        values = layer.bias


def _pass_constants(stage: Stage, values: Array) -> Array:
    """Pass constant channels through the layers in front of a stage; return (inputs, positions)."""
    x = np.broadcast_to(values.reshape(-1, *[1] * len(stage.shape)), (*stage.shape, 1))
    out = Tensor(x.astype(np.float64))
    with no_grad(), np.errstate(all="ignore"):
        for _, module in _without_gates(stage.before):
            out = copy.deepcopy(module).eval()(out)
    return out.data.reshape(len(stage.inputs.origin), -1)


def _without_gates(layers: list[tuple[str, Module]]) -> list[tuple[str, Module]]:
    return [(name, module) for name, module in layers if not isinstance(module, Gate | Mask)]


# -- 3: keep -----------------------------------------------------------------------------------


def _keep(layers: list[Folded], end: Channels) -> None:
    """Find what to keep, from the last layer to the first; every layer keeps at least one input."""
    empty: str | None = None
    layers[-1].outputs = _sources(end, np.ones(len(end.origin), np.bool_))
    for layer, before in zip(reversed(layers), [*layers[-2::-1], None], strict=True):
        layer.inputs = layer.inputs & layer.weight[layer.outputs].any(axis=(0, 2))
        nothing = not layer.inputs.any()
        if nothing:
            empty = empty or layer.stage.name
            layer.inputs[0] = True
            layer.weight = np.zeros_like(layer.weight)
        if before is not None:
            before.outputs = _sources(layer.stage.inputs, layer.inputs)
            if nothing:  # nothing reads the layer before, so it keeps no weights
                before.weight, before.bias = (
                    np.zeros_like(before.weight),
                    np.zeros_like(before.bias),
                )
    if empty:
        warnings.warn(
            f"nothing is left of the inputs of {empty}, so the compact network gives the same "
            f"output for any input. Train again, and prune less.",
            stacklevel=3,
        )


def _sources(channels: Channels, kept: Bools) -> Bools:
    """Return which outputs of the layer before are the sources of the kept channels."""
    out = np.zeros(channels.source, np.bool_)
    out[channels.origin[kept] // channels.positions] = True
    return out


# -- 4: cut ------------------------------------------------------------------------------------


def _cut(network: Network, layers: list[Folded]) -> Sequential:
    copies: dict[int, object] = {}  # copy once what modules share, such as a generator
    cut: dict[str, Module] = {}

    def add(name: str, module: Module) -> None:
        name = name.replace(".", "_") or "layer"
        while name in cut:
            name += "_"
        cut[name] = module

    def add_all(modules: list[tuple[str, Module]]) -> None:
        for name, module in _without_gates(modules):
            if type(module).map_channels is not nn.Select.map_channels:
                add(name, copy.deepcopy(module, copies))

    left: Bools = np.ones(layers[0].stage.inputs.source, np.bool_)
    for layer in layers:
        stage = layer.stage
        add_all(stage.before)
        select = _select(stage.inputs, layer.inputs, left)
        if select:
            add(f"{stage.name or 'layer'}_select", select)
        left = layer.outputs
        weight = layer.weight[np.ix_(left, layer.inputs)]
        small = copy.copy(stage.layer)
        small.weight = Parameter(weight.reshape(*weight.shape[:2], *stage.layer.weight.shape[2:]))
        small.weight.fix_zeros()
        small.bias = Parameter(layer.bias[left])
        add(stage.name, small)
    select = _select(network.end, np.ones(len(network.end.origin), np.bool_), left)
    if select and network.end.positions == 1:  # a Flatten that follows may make them features
        add("select", select)
    add_all(network.behind)
    if select and network.end.positions > 1:
        add("select", select)
    return Sequential(**cut)


def _select(channels: Channels, kept: Bools, left: Bools) -> nn.Select | None:
    """Return the Select of the kept channels among the sources left; None if all are kept."""
    origin: Indices = channels.origin[kept]
    rank = np.cumsum(left) - 1  # the new numbers of the sources left
    positions = channels.positions
    indices = rank[origin // positions] * positions + origin % positions
    size = int(left.sum()) * positions
    return nn.Select(indices, size=size) if len(indices) < size else None
