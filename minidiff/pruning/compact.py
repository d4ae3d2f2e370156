"""Compaction: closed groups leave, and an ordinary smaller network without gates remains.

Four passes over a chain of layers:

1. *Fold.* Gates are multiplied into the weights that follow or precede them. Gates are never
   negative, so a gated channel may pass a rectifier or a pool before it meets its weights.
2. *Settle.* An output whose weights are all zero is a constant, its bias; what constants make of
   the next layer's sums is part of the next layer's biases. Only where that layer pads its input
   with zeros is a constant no constant any more, and it stays.
3. *Keep*, from the end: the inputs of which kept outputs have weights, and nothing else. Behind a
   Flatten these may be some places of a channel and not others.
4. *Cut.*

It is the zeros that count, whatever has made them, so a network pruned by other means is
compacted as well.
"""

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from minidiff.engine import nn
from minidiff.engine._types import Array, Indices
from minidiff.engine.nn import Module, Parameter, Sequential

from .gates import Gate, Gated, Mask
from .penalty import known_layers

__all__ = ["compact", "unnested"]

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Flow:
    """What lies between the outputs of a layer, its ``source``, and the inputs of the next.

    Attributes
    ----------
    count, places : int
        How many channels the source has, and how many places of each a Flatten has set side by
        side (else 1).
    origin : (inputs,) int64
        Which of these count * places each input is.
    scale : (inputs,)
        What gates multiply each input by.
    grid : (inputs, H or 1, W or 1) or None
        What masks multiply the places of each input by, which only a Flatten makes into inputs.
    """

    count: int
    places: int
    origin: Indices
    scale: Array
    grid: Array | None = None

    @classmethod
    def of(cls, count: int) -> "Flow":
        """Pass on all channels as they are."""
        return cls(count, 1, np.arange(count), np.ones(count))

    @property
    def channel(self) -> Indices:
        """Which channel each input is of."""
        return self.origin // self.places

    def through(self, module: Module, size: int | None) -> "Flow":
        """Pass a layer without weights; ``size`` is the number of inputs that are expected next."""
        if isinstance(module, Gate):
            return replace(self, scale=self.scale * module.evaluated())
        if isinstance(module, Mask):
            values, slices = module.gate.evaluated(), module.groups.slices
            if slices is not None:
                return replace(
                    self, scale=self.scale * values[np.broadcast_to(slices, len(self.scale))]
                )
            labels = module.groups.labels
            labels = labels[..., None] if labels.ndim == 2 else labels  # features (C, L)
            grid = values[labels] * np.ones((len(self.scale), 1, 1))
            return replace(self, grid=grid if self.grid is None else self.grid * grid)
        if isinstance(module, nn.Select):
            kept = module.indices
            places = None if self.grid is None else self.grid[kept]
            return replace(self, origin=self.origin[kept], scale=self.scale[kept], grid=places)
        if isinstance(module, nn.Flatten) and size:
            times = size // len(self.origin)
            origin = (self.origin[:, None] * times + np.arange(times)).ravel()
            scale = np.repeat(self.scale, times)
            if self.grid is not None:
                _, height, width = self.grid.shape
                # All along a row, or along all places, if the width is 1.
                shape = (height, times // height) if width == 1 else (times // width, width)
                scale = scale * np.broadcast_to(self.grid, (len(self.scale), *shape)).ravel()
            return Flow(self.count, self.places * times, origin, scale)
        return self


@dataclass
class Piece:
    """A layer with weights, with what its input passes through first."""

    name: str
    layer: nn.Conv2d | nn.Linear
    weight: Array  # (O, I, K), gates folded in
    bias: Array  # (O,), later with what constant inputs add
    flow: Flow
    before: list[tuple[str, Module]]
    varying: Bools = field(init=False)  # (I,) inputs that depend on the network's input
    inputs: Bools = field(init=False)  # (I,) that are kept
    outputs: Bools = field(init=False)  # (O,) that are kept

    def __post_init__(self) -> None:
        self.varying = np.ones(len(self.flow.origin), np.bool_)
        self.inputs = self.varying.copy()
        self.outputs = np.ones(len(self.bias), np.bool_)

    @property
    def pads(self) -> bool:
        """Whether it sees zeros around its input."""
        return isinstance(self.layer, nn.Conv2d) and any(self.layer.padding)


def compact(model: Module) -> Sequential:
    """Return an ordinary network without gates that computes the same, in less memory and time.

    Filters, inputs and units that are closed, or of no use to those that are open, leave it. It
    shares nothing with ``model``, all its parameters require a gradient, and it can be trained on,
    gated again, and compacted again.

    Parameters
    ----------
    model
        A Sequential of the layers of :mod:`minidiff.engine.nn`, Gate, Mask and Gated, of any depth.

    Returns
    -------
    Sequential
        With the names of ``model``; names of inner Sequentials are joined by an underscore. Its
        outputs are those of ``model`` in evaluation, up to rounding. A Select stands before a
        layer of which only some inputs are left.

    Raises
    ------
    TypeError
        If the model holds a module that is none of these.
    ValueError
        If it has no layer with weights, layers that do not fit each other, a gate on single places
        of channels that no Flatten makes into features, or one behind the last layer with weights,
        or a mask over activations of more than three axes.

    Warns
    -----
    UserWarning
        If nothing is left of some layer, so that the output is the same for any input.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> hidden = Gated(nn.Linear(4, 3, rng=rng), outputs=Gate(3))
    >>> hidden.outputs.phi.data[1] = -1  # closed
    >>> small = compact(Sequential(hidden, nn.ReLU(), nn.Linear(3, 2, rng=rng)))
    >>> [parameter.shape for parameter in small.parameters()]
    [(2, 4), (2,), (2, 2), (2,)]
    """
    pieces, behind, end = _fold(model)
    _settle(pieces)
    _keep(pieces, end)
    layers: dict[str, Module] = {}
    names = {name for piece in pieces for name, _ in [*piece.before, (piece.name, None), *behind]}
    shared: dict[int, object] = {}  # what several modules hold, a generator say, is copied once
    left: Bools | None = None  # of the outputs of the layer before; None for the network's input
    for piece in pieces:
        layers.update((name, copy.deepcopy(module, shared)) for name, module in piece.before)
        flow, kept = piece.flow, piece.inputs
        left = np.ones(flow.count, np.bool_) if left is None else left
        select = _select(flow.origin[kept], flow.places, left)
        if select:
            layers[_free(f"{piece.name}_select", names)] = select
        left = piece.outputs
        layer = copy.copy(piece.layer)
        weight = piece.weight[np.ix_(left, kept)]
        layer.weight = Parameter(weight.reshape(*weight.shape[:2], *piece.layer.weight.shape[2:]))
        layer.bias = Parameter(piece.bias[left])
        layers[piece.name] = layer
    rest = {name: copy.deepcopy(module, shared) for name, module in behind}
    select = _select(end.origin, end.places, pieces[-1].outputs)
    last = {_free("select", names): select} if select else {}
    # Of whole channels it comes first, as behind it a Flatten may have made them into features.
    layers.update({**last, **rest} if end.places == 1 else {**rest, **last})
    return Sequential(**layers).train(model.training)


def unnested(model: Module) -> list[tuple[str, Module]]:
    """List (name, layer) in order; names of inner Sequentials are joined by an underscore.

    Parameters
    ----------
    model
        As of :func:`~minidiff.compact`.

    Raises
    ------
    TypeError
        If it holds another module.

    Examples
    --------
    >>> inner = Sequential(a=nn.ReLU(), b=nn.ReLU())
    >>> [name for name, _ in unnested(Sequential(top=inner))]
    ['top_a', 'top_b']
    """
    names: set[str] = set()
    return [
        (_free(name.replace(".", "_") or "layer", names), module)
        for name, module in known_layers(model)
    ]


def _free(name: str, names: set[str]) -> str:
    """Return the name, made longer until nothing else has it, and note it in ``names``."""
    while name in names:
        name += "_"
    names.add(name)
    return name


def _laid(mask: Mask, shape: tuple[int, ...]) -> Array:
    """Return what a mask multiplies each element of an array by."""
    return np.broadcast_to(mask.gate.evaluated()[mask.groups.labels], shape)


def _times(array: Array, z: Array) -> Array:
    """Multiply by gates; what they close is 0, whatever it was."""
    return np.multiply(array, z, out=np.zeros_like(array), where=z != 0, casting="same_kind")


def _select(origin: Indices, places: int, left: Bools) -> nn.Select | None:
    """Return what takes inputs of that origin from the channels that are left, if not all."""
    rank = np.cumsum(left) - 1  # the channels that are left, numbered anew
    positions = rank[origin // places] * places + origin % places
    size = int(left.sum()) * places
    return nn.Select(positions, size=size) if len(positions) < size else None


def _fold(model: Module) -> tuple[list[Piece], list[tuple[str, Module]], Flow]:
    """Split a network into layers with weights, gates folded in, and what is behind the last.

    The Flow is what lies behind the last, too, up to the outputs of the network.
    """
    layers = unnested(model)
    sizes = [_size(module) for _, module in layers]
    pieces: list[Piece] = []
    flow: Flow | None = None
    before: list[tuple[str, Module]] = []
    for position, (name, module) in enumerate(layers):
        size = sizes[position]
        if flow is None and size:
            flow = Flow.of(size)
        following = next((size for size in sizes[position + 1 :] if size), None)
        if flow is None and isinstance(module, Mask) and following:
            after = layers[position : position + 1 + sizes[position + 1 :].index(following)]
            flow = Flow.of(_channels(name, module, following, after))
        if flow is not None and not _fits(module, len(flow.origin), size, following):
            raise ValueError(
                f"{name} does not fit: it is given {len(flow.origin)} channels or features; "
                f"{size or following} are expected by it or by the next layer with weights."
            )
        labels = module.groups.labels.shape if isinstance(module, Mask) else ()
        if len(labels) > 3:
            raise ValueError(
                f"{name} is a Mask with labels of shape {labels}; only those of (C, H, W), (C, L) "
                f"or (C,) can be folded into weights."
            )
        gated = module if isinstance(module, Gated) else None
        layer = gated.layer if gated else module
        windows = isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)
        if windows and flow is not None and flow.grid is not None:
            raise ValueError(
                f"{name} follows a Mask over single places of channels, which cannot be folded "
                f"into its weights; a Mask of whole channels, or one that a Flatten follows, can."
            )
        if isinstance(layer, nn.Conv2d | nn.Linear) and flow is not None:
            if gated and gated.inputs:
                flow = flow.through(gated.inputs, None)
            weight, bias = layer.weight.data, layer.bias.data
            for mask in gated.weights if gated else ():
                weight = _times(weight, _laid(mask, weight.shape))
            for mask in gated.biases if gated else ():
                bias = _times(bias, _laid(mask, bias.shape))
            weight = weight.reshape(*weight.shape[:2], -1)
            if gated and gated.outputs:
                z = gated.outputs.evaluated()
                weight, bias = _times(weight, z[:, None, None]), _times(bias, z)
            weight = _times(weight, flow.scale[:, None])
            before = [item for item in before if not isinstance(item[1], nn.Select)]
            pieces.append(Piece(name, layer, weight, bias.copy(), flow, before))
            flow, before = Flow.of(len(bias)), []
        else:
            if flow is not None:
                flow = flow.through(module, following)
            if not isinstance(module, Gate | Mask):
                before.append((name, module))
    if not pieces or flow is None:
        raise ValueError("the model has no layer with weights, so there is nothing to compact.")
    _fold_back(pieces[-1], flow)
    return pieces, [item for item in before if not isinstance(item[1], nn.Select)], flow


def _fold_back(last: Piece, flow: Flow) -> None:
    """Multiply the gates behind the last layer with weights into it."""
    if flow.grid is not None or (flow.places > 1 and (flow.scale != 1).any()):
        raise ValueError(
            f"a gate stands behind {last.name}, the last layer with weights, and a Flatten, and "
            f"gates places of a channel; that cannot be folded into weights."
        )
    scale = np.ones(flow.count)
    scale[flow.channel] = flow.scale
    last.weight, last.bias = _times(last.weight, scale[:, None, None]), _times(last.bias, scale)


def _size(module: Module) -> int | None:
    """Return how many channels or features a layer expects; None for any number."""
    if isinstance(module, Gated):
        module = module.layer
    if isinstance(module, Gate):
        return module.count
    if isinstance(module, Mask):
        along = len(module.groups.labels)  # 1 stands for any number
        return along if along > 1 else None
    if isinstance(module, nn.Select):
        return module.size
    return module.weight.shape[1] if isinstance(module, nn.Conv2d | nn.Linear) else None


def _channels(name: str, mask: Mask, following: int, after: Sequence[tuple[str, Module]]) -> int:
    """Return how many channels an input has that a mask is laid out over, each alike."""
    if not any(isinstance(module, nn.Flatten) for _, module in after):
        return following
    labels = mask.groups.labels
    places = math.prod(labels.shape[1:])
    if 1 in labels.shape[1:] or following % places:
        raise ValueError(
            f"{name} is a Mask over the network's input with labels of shape "
            f"{labels.shape}, which does not tell how many channels and places the input has; give "
            f"labels of its whole shape."
        )
    return following // places


def _fits(module: Module, given: int, size: int | None, following: int | None) -> bool:
    if isinstance(module, nn.Flatten):
        return following is None or following % given == 0
    return size is None or size == given


def _settle(pieces: list[Piece]) -> None:
    """Find what does not vary with the input, and add it to the biases of the next layer."""
    inputs = pieces[0].flow.count
    varies: Bools = np.ones(inputs, np.bool_)
    value: Array = np.zeros(inputs)
    for piece in pieces:
        constant = value[piece.flow.channel]
        if any(_rectifies(module) for _, module in piece.before):
            constant = np.maximum(constant, 0)
        piece.varying = varies[piece.flow.channel]
        if piece.pads:
            piece.varying |= constant != 0
        settled = ~piece.varying & (constant != 0)
        # In float64, as sums of many. What an output has no weights for it does not read.
        weight = piece.weight[:, settled]
        sums, read = weight.sum(axis=2, dtype=np.float64), weight.any(axis=2)
        more = np.multiply(sums, constant[settled], out=np.zeros_like(sums), where=read)
        piece.bias = (piece.bias + more.sum(axis=1)).astype(piece.bias.dtype)
        varies = np.asarray(piece.weight[:, piece.varying].any(axis=(1, 2)))
        value = piece.bias


def _rectifies(module: Module) -> bool:
    return isinstance(module, nn.ReLU) or (isinstance(module, nn.MaxPool2d) and module.relu)


def _keep(pieces: list[Piece], end: Flow) -> None:
    """Find what is of use, from the end; every layer keeps at least one input."""
    empty: str | None = None
    pieces[-1].outputs[:] = False
    pieces[-1].outputs[end.channel] = True
    for piece, source in zip(reversed(pieces), [*pieces[-2::-1], None], strict=True):
        piece.inputs = piece.varying & piece.weight[piece.outputs].any(axis=(0, 2))
        nothing = not piece.inputs.any()
        if nothing:
            empty = empty or piece.name
            piece.inputs[0] = True
            piece.weight = np.zeros_like(piece.weight)
        if source is not None:
            source.outputs = np.zeros(len(source.bias), np.bool_)
            source.outputs[piece.flow.channel[piece.inputs]] = True
            if nothing:  # what nobody reads shall cost nothing either
                source.weight = np.zeros_like(source.weight)
                source.bias = np.zeros_like(source.bias)
    if empty:
        warnings.warn(
            f"nothing is left of the inputs of {empty}, so the compact network gives the same "
            f"output for any input. Train again, with a smaller penalty.",
            stacklevel=3,
        )
