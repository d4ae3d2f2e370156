"""Gates on layers: a layer whose parameters are multiplied by gates, and :func:`gate` to make one.

A :class:`Mask` lays a gate out over the groups of an array. :class:`Gated` is a layer with gates.
:func:`fold_gates` multiplies gates into weights before fine-tuning.
"""

import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias, overload

import numpy as np

from minidiff.engine.arrays import Array, Indices, Shape
from minidiff.engine.functional import BATCH_LAST
from minidiff.engine.module import Module, Parameter, Sequential, chain
from minidiff.engine.nn import BatchNorm, Flatten, Weighted
from minidiff.engine.tensor import Tensor

from .gates import Gate
from .groups import Groups
from .scale import scale

__all__ = ["Gated", "Mask", "fold_gates", "gate"]


class Mask(Module):
    """A gate laid out over an array: each element is multiplied by the gate of its group.

    As a layer it gates activations. In :class:`Gated` it gates a layer's weight or bias. Several
    masks may share a gate, each with its own groups.

    Parameters
    ----------
    gate
        One gate for each group.
    groups
        The groups of the array without the batch: (C, H, W) for activations of a convolution.

    Raises
    ------
    TypeError
        If ``gate`` is not a Gate, or ``groups`` is not a Groups.
    ValueError
        If there is not one gate for each group. When called, if the groups do not fit the input.

    Examples
    --------
    >>> rows = Mask(Gate(2, initial=-1.0), Groups.along((1, 2, 3), 1))  # of an image
    >>> rows(np.ones((1, 2, 3, 8), np.float32)).data.any()
    np.False_
    """

    homogeneous = True
    settings = ("gate", "groups")

    def __init__(self, gate: Gate, groups: Groups) -> None:
        if not isinstance(gate, Gate) or not isinstance(groups, Groups):
            raise TypeError(
                f"Mask: given a {type(gate).__name__} and a {type(groups).__name__}; expected a "
                f"Gate and Groups (Groups(labels) makes them of an array)."
            )
        if gate.count != groups.count:
            raise ValueError(
                f"Mask: the gate has {gate.count} groups, but there are {groups.count} groups."
            )
        self.gate, self.groups = gate, groups

    def forward(self, x: Tensor) -> Tensor:
        try:
            self.output_shape(x.shape[:-1])
        except ValueError as error:
            raise ValueError(f"{error} {BATCH_LAST}") from None
        labels = self.groups.labels
        if self.gate.per_sample and self.gate.stochastic:
            return x * self.gate.values(samples=x.shape[-1])[labels]
        rows = self.groups.rows
        labels = labels[..., None] if rows is None else np.broadcast_to(rows, len(x))
        return scale(x, self.gate.values(), labels)

    def scale(self, parameter: Tensor) -> Tensor:
        """Multiply the elements of a parameter by the gate values."""
        labels, final = self.groups.labels_in(parameter.shape), self.gate.closes_for_good
        return scale(parameter, self.gate.values(), labels, closed_for_good=final, is_weight=True)

    def output_shape(self, shape: Shape) -> Shape:
        if not self.groups.fits(shape):
            raise ValueError(
                f"a Mask of groups of shape {self.groups.labels.shape} does not fit an input of "
                f"shape {shape}, without the batch."
            )
        return shape

    def map_channels(self, channels: Any, shape: Shape) -> Any:
        rows = self.groups.rows
        if rows is not None:
            return channels.gated(self.gate, np.broadcast_to(rows, shape[0]))
        return channels.masked(self.gate, np.broadcast_to(self.groups.labels, shape))


Masks = Mask | Sequence[Mask]
#: The names or classes of layers.
Only: TypeAlias = str | type[Module] | Sequence[str | type[Module]]
Layout = list[tuple[Gate, Indices]]  # gates, with the group of each element of an array


class Gated(Module):
    """A layer whose weight and bias are multiplied by gates. Closed rows are not computed.

    Parameters
    ----------
    layer
        A Conv2d, a Linear or another Weighted layer.
    outputs
        A gate for each filter or unit. Gate o multiplies row o of the weight, and bias o.
    inputs
        A gate for each input channel or feature. Gate i multiplies input i, which is the same as
        multiplying column i of the weight.
    weights, biases
        A :class:`Mask` or a list of them, on the elements of the weight or of the bias.

    Raises
    ------
    TypeError
        If the layer is not a Weighted layer.
    ValueError
        If a gate or a mask does not fit the layer, or a gate draws noise per sample.

    Examples
    --------
    >>> from minidiff import nn
    >>> layer = Gated(nn.Linear(4, 3, rng=np.random.default_rng(0)), outputs=Gate(3))
    >>> layer.outputs.set_open(np.array([True, False, True]))
    >>> layer(np.ones((4, 1), np.float32)).data.ravel() != 0
    array([ True, False,  True])
    """

    settings = ("layer", "outputs", "inputs", "weights", "biases")

    def __init__(
        self,
        layer: Weighted,
        *,
        outputs: Gate | None = None,
        inputs: Gate | None = None,
        weights: Masks = (),
        biases: Masks = (),
    ) -> None:
        if not isinstance(layer, Weighted):
            raise TypeError(f"Gated: the layer is {layer!r}; expected a Conv2d or Linear.")
        self.layer, self.inputs, self.outputs = layer, inputs, outputs
        self.weights = tuple(weights) if isinstance(weights, list | tuple) else (weights,)
        self.biases = tuple(biases) if isinstance(biases, list | tuple) else (biases,)
        shape = layer.weight.shape
        for role, gate, count in (("outputs", outputs, shape[0]), ("inputs", inputs, shape[1])):
            if gate is not None and not (isinstance(gate, Gate) and gate.count == count):
                given = f"a Gate of {gate.count}" if isinstance(gate, Gate) else repr(gate)
                raise ValueError(
                    f"Gated: {role} is {given}; expected a Gate of {count} groups, for a weight of "
                    f"shape {shape}."
                )
        for role, masks, size in (
            ("weights", self.weights, shape),
            ("biases", self.biases, shape[:1]),
        ):
            for mask in masks:
                if not (isinstance(mask, Mask) and mask.groups.fits(size)):
                    sizes = mask.groups.labels.shape if isinstance(mask, Mask) else repr(mask)
                    raise ValueError(
                        f"Gated: {role} is {sizes}; expected a Mask(gate, groups) with groups of "
                        f"shape {size}, or 1 along some axes."
                    )
        if any(gate.per_sample for _, gate in self.gates()):
            raise ValueError(
                "Gated: a gate draws noise per sample, but samples share their parameters; "
                "expected per_sample=False, or the gate as a layer."
            )

    def gates(self) -> list[tuple[str, Gate]]:
        """List (role, gate) for each gate of the layer."""
        gates = [("inputs", self.inputs), ("outputs", self.outputs)]
        found = [(role, gate) for role, gate in gates if gate is not None]
        found += [("weights", mask.gate) for mask in self.weights]
        return found + [("biases", mask.gate) for mask in self.biases]

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.layer.weight
        bias: Tensor = self.layer.bias
        for mask in self.weights:
            weight = mask.scale(weight)
        for mask in self.biases:
            bias = mask.scale(bias)
        if self.outputs is not None:
            z, final = self.outputs.values(), self.outputs.closes_for_good
            weight = scale(weight, z, closed_for_good=final, is_weight=True)
            bias = scale(bias, z, closed_for_good=final, is_weight=True)
        if self.inputs is not None:
            x = self.inputs(x)
        return self.layer.apply(x, weight, bias)

    def layouts(self) -> list[tuple[Parameter, Layout]]:
        """List weight and bias, each with its gates and the group of each of its elements."""
        weight = [(mask.gate, mask.groups.labels) for mask in self.weights]
        bias = [(mask.gate, mask.groups.labels) for mask in self.biases]
        ends = [1] * (self.layer.weight.ndim - 1)
        if self.outputs is not None:
            rows = np.arange(self.outputs.count)
            weight.append((self.outputs, rows.reshape(-1, *ends)))
            bias.append((self.outputs, rows))
        if self.inputs is not None:
            weight.append((self.inputs, np.arange(self.inputs.count).reshape(1, -1, *ends[1:])))
        return [(self.layer.weight, weight), (self.layer.bias, bias)]

    def output_shape(self, shape: Shape) -> Shape:
        return self.layer.output_shape(shape)

    def __repr__(self) -> str:
        """Show the layer, and how many groups of each kind have gates."""
        return f"{self.layer!r}, gated: " + ", ".join(
            f"{gate.count} {role.partition('.')[0]}" for role, gate in self.gates()
        )


@overload
def gate(layer: Weighted | Gated, *roles: str, groups: Groups | None = ..., kind: type[Gate] = ...,
         **settings: Any) -> Gated: ...  # fmt: skip
@overload
def gate(layer: Sequential, *roles: str, only: Only = ..., kind: type[Gate] = ...,
         **settings: Any) -> Sequential: ...  # fmt: skip


def gate(
    layer: Weighted | Gated | Sequential,
    *roles: str,
    groups: Groups | None = None,
    only: Only = (),
    kind: type[Gate] = Gate,
    **settings: Any,
) -> Gated | Sequential:
    """Put new gates on a layer, or on all layers of a network.

    Parameters
    ----------
    layer
        A Conv2d or Linear; a Gated layer, which keeps its gates; or a Sequential. Print the network
        that is returned to see its gates.
    roles
        What to gate; "outputs" of a layer if none is given. Of a network, by default: the outputs
        of all layers but the last, and the inputs of dense layers behind a Flatten. Of the last
        layer's outputs, which are the network's, none are gated. Where a BatchNorm follows a layer,
        the gate on outputs goes behind it.

        "outputs"
            Each filter or unit, with its bias. A closed gate saves the work of its filter or unit.
        "inputs"
            Each input channel or feature. A closed gate saves work in this layer and, after
            compaction, in the layer before if the input is a whole channel.
        "weights"
            Each group of weights; by default each weight (unstructured). A closed gate saves
            storage. Work is saved where at most two fifths of the weights are left.
            Several such gates on a layer multiply.
    groups
        The groups of the elements of the weight, for "weights" of a layer.
    only
        Of a network, the names or classes of the layers to gate, such as "conv1" or nn.Conv2d.
        By default all.
    kind
        The class of the gates; ``docs/howto/add-a-gate.md`` writes one.
    settings
        The settings of the gates: width, initial, noise, sigma, rng and so on.

    Returns
    -------
    Gated, or Sequential for a network
        A new layer or network that shares the layers of ``layer`` and their gates.

    Raises
    ------
    TypeError
        If the layer, ``kind`` or ``groups`` has the wrong type.
    ValueError
        If a role is unknown, the layer has such a gate already, or a setting is out of range. If a
        network has no layer to gate, or none of a name or class in ``only``.

    Examples
    --------
    >>> from minidiff import nn
    >>> layer = gate(nn.Linear(4, 3, rng=np.random.default_rng(0)), "outputs", "inputs")
    >>> [(role, g.count) for role, g in layer.gates()]
    [('inputs', 4), ('outputs', 3)]
    >>> conv = nn.Conv2d(2, 3, 3, rng=np.random.default_rng(0))
    >>> kernels = Groups.along(conv.weight.shape, (0, 1))  # 3x3 weights a group
    >>> gate(conv, "weights", groups=kernels).weights[0].gate.count
    6
    >>> hidden, out = (nn.Linear(n, 3, rng=np.random.default_rng(0)) for n in (4, 3))
    >>> gate(Sequential(nn.Flatten(), hidden, nn.ReLU(), out))
    Sequential()
      0: Flatten()
      1: Linear(in_features=4, out_features=3), gated: 4 inputs, 3 outputs
      2: ReLU()
      3: Linear(in_features=3, out_features=3)
    """
    if not (isinstance(kind, type) and issubclass(kind, Gate)):
        raise TypeError(
            f"gate: kind is {kind!r:.80}; expected a class, such as Gate. To share a gate that "
            f"exists, write Gated(layer, outputs=gate), or inputs=gate."
        )
    if groups is not None and not isinstance(groups, Groups):
        raise TypeError(f"gate: groups is a {type(groups).__name__}; expected Groups(labels).")
    if isinstance(layer, Sequential):
        if groups is not None:
            raise ValueError("gate: groups are those of one layer; expected none for a network.")
        return _gate_network(layer, roles, only, {"kind": kind, **settings})
    if only:
        raise ValueError("gate: only names layers of a network; expected none for one layer.")
    gated = layer if isinstance(layer, Gated) else Gated(layer)
    shape = gated.layer.weight.shape
    parts: dict[str, Any] = {
        role: getattr(gated, role) for role in ("outputs", "inputs", "weights", "biases")
    }
    for role in roles or ("outputs",):
        if role == "weights":
            groups = Groups.elements(shape) if groups is None else groups
            parts[role] = (*parts[role], Mask(kind(groups.count, **settings), groups))
        elif role not in ("outputs", "inputs"):
            raise ValueError(f"gate: role {role!r}; expected 'outputs', 'inputs' or 'weights'.")
        elif parts[role] is not None:
            raise ValueError(f"gate: the layer has a gate on its {role} already; expected none.")
        else:
            parts[role] = kind(shape[role == "inputs"], **settings)
    return Gated(gated.layer, **parts)


def _gate_network(
    model: Sequential, roles: tuple[str, ...], only: Only, settings: dict[str, Any]
) -> Sequential:
    """Return a network with gates on its layers with weights."""
    names = (only,) if isinstance(only, str | type) else tuple(only)
    layers = list(chain(model))
    weighted = {name: layer for name, layer in layers if isinstance(layer, Weighted | Gated)}
    norms = {  # behind which layer
        before: name
        for (before, _), (name, layer) in pairwise(layers)
        if isinstance(layer, BatchNorm)
    }
    new: dict[str, Module] = {}
    made: dict[int, Gated] = {}  # a layer that is used twice has the same gates in both places
    used: set[str | type[Module]] = set()
    flat = False  # whether there is a Flatten since the last layer with weights
    for name, module in layers:
        flat |= isinstance(module, Flatten)
        if name not in weighted:
            continue
        layer, roles_here = weighted[name], roles or (("inputs", "outputs")[not flat :])
        flat = False
        inner = layer.layer if isinstance(layer, Gated) else layer
        chosen = [n for n in names if n == name or (isinstance(n, type) and isinstance(inner, n))]
        used.update(chosen)
        if name == list(weighted)[-1]:
            roles_here = tuple(role for role in roles_here if role != "outputs")
        if name in norms and "outputs" in roles_here and (chosen or not names):
            # A gate in front of a normalisation would be undone by it.
            roles_here = tuple(role for role in roles_here if role != "outputs")
            new[norms[name]] = settings["kind"](
                inner.weight.shape[0], **{k: v for k, v in settings.items() if k != "kind"}
            )
        if roles_here and (chosen or not names):
            new[name] = made.setdefault(id(layer), gate(layer, *roles_here, **settings))
    missing = [n if isinstance(n, str) else n.__name__ for n in names if n not in used]
    if missing or not new:
        what = f"none is {' or '.join(missing)}" if missing else "none can be gated"
        known = ", ".join(weighted) or "none"
        raise ValueError(f"gate: the layers with weights are {known}; {what}.")
    return with_layers(model, new)


def with_layers(
    model: Sequential, new: Mapping[str, Module | None], prefix: str = ""
) -> Sequential:
    """Return a Sequential with other layers in place of those of the same dotted names.

    None leaves a layer out. A gate goes behind the layer.
    """
    layers: dict[str, Module] = {}
    for key, layer in model.items():
        name = f"{prefix}{key}"
        if isinstance(layer, Sequential) and type(layer).forward is Sequential.forward:
            layers[key] = with_layers(layer, new, f"{name}.")
            continue
        other = new.get(name, layer)
        if isinstance(other, Gate) and other is not layer:
            layers[key], layers[f"{key}_gate"] = layer, other
        elif other is not None:
            layers[key] = other
    return Sequential(**layers).train(model.training)


def fold_gates(model: Module) -> None:
    """Multiply the gates of layers into weights and biases, in place; then set gates to 0 or 1.

    Outputs in evaluation stay the same, up to rounding. A gate of value z scales the effective
    learning rate by z^2, but not the weight decay, so weights fine-tune better once gates are
    binary. Gates that stand as layers, on activations, do not change, even if a Gated layer shares
    them; :func:`~minidiff.compact` folds them.

    Parameters
    ----------
    model
        A model with :class:`Gated` layers. Gates multiply by their values of evaluation.

    Raises
    ------
    ValueError
        If a weight or bias is used in two places with different gates.

    Warns
    -----
    UserWarning
        If gates that stand as layers are partly open, and stay so.

    Examples
    --------
    >>> from minidiff import nn
    >>> layer = gate(nn.Linear(4, 2, rng=np.random.default_rng(0)), initial=0.0)
    >>> fold_gates(layer)
    >>> layer.outputs().data
    array([1., 1.], dtype=float32)
    """
    uses: list[tuple[Parameter, Layout]] = []
    as_layers: set[Gate] = set()
    behind = {  # the gates right behind normalisations, which scale and shift by these gates
        id(norm): gate
        for (_, norm), (_, gate) in pairwise(chain(model))
        if isinstance(norm, BatchNorm) and isinstance(gate, Gate)
    }
    stack = [model]
    while stack:
        module = stack.pop()
        if isinstance(module, Gated):
            uses += module.layouts()
        elif isinstance(module, BatchNorm) and id(module) in behind:
            layout = [(behind[id(module)], np.arange(module.channels))]
            uses += [(module.weight, layout), (module.bias, layout)]
        elif isinstance(module, Gate | Mask):
            if module not in behind.values():
                as_layers.add(module.gate if isinstance(module, Mask) else module)
        else:
            uses += [(value, []) for _, value in module.members() if isinstance(value, Parameter)]
            stack.extend(child for _, child in module.children())
    found: dict[int, tuple[Parameter, Layout]] = {}  # a parameter may be used in several places
    for parameter, layout in uses:
        _, known = found.setdefault(id(parameter), (parameter, layout))
        if len(known) != len(layout) or any(
            one is not other or not np.array_equal(labels, others)
            for (one, labels), (other, others) in zip(known, layout, strict=True)
        ):
            raise ValueError(
                f"fold_gates: a parameter of shape {parameter.shape} is used in two places with "
                f"different gates; expected the same gates, or a parameter for each."
            )
    folded: set[Gate] = set()
    for parameter, layout in found.values():
        layout = [(gate, labels) for gate, labels in layout if gate not in as_layers]
        if layout:
            parameter.data = multiplied(parameter.data, layout)
        folded.update(gate for gate, _ in layout)
    for gate in folded:
        gate.set_open(gate.is_open())
    values = [gate.evaluated() for gate in as_layers]
    partly = sum(int(((z > 0) & (z < 1)).sum()) for z in values)
    if partly:
        warnings.warn(
            f"fold_gates: {partly} partly open gates stand as layers, on activations, and keep "
            f"their values; it folds gates into weights that md.gate() or Gated has put on layers.",
            stacklevel=2,
        )


def multiplied(array: Array, layout: Layout) -> Array:
    """Return an array times the evaluation values of the gates laid out over the array."""
    for gate, labels in layout:
        array = multiply(array, gate.evaluated()[labels])
    return array


def multiply(array: Array, z: Array) -> Array:
    """Multiply by gate values; closed elements become 0, even if they are not finite."""
    z = np.broadcast_to(z, array.shape)
    return np.multiply(array, z, out=np.zeros_like(array), where=z != 0, casting="same_kind")
