"""Gated networks drawn at random, and how they compute by hand: nothing is skipped or folded."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

import minidiff as md
from minidiff import Gate, Gated, Groups, Mask, nn
from minidiff.engine.module import chain
from tests.strategies import seeds

Shape = tuple[int, ...]
DOUBLE: dict[str, Any] = {"dtype": np.float64}


@dataclass(frozen=True)
class Network:
    """A gated network that fits inputs of a shape, without the batch."""

    model: nn.Sequential
    shape: Shape
    seed: int

    def inputs(self, samples: int = 3) -> NDArray[np.float64]:
        """Return a random batch."""
        return np.random.default_rng(self.seed).standard_normal((*self.shape, samples))


class Sigmoid(nn.Module):
    """A layer that is not homogeneous: it makes 1/2 of 0."""

    channelwise = True
    settings = ()

    def forward(self, x: md.Tensor) -> md.Tensor:
        return x.sigmoid()


# -- by hand -----------------------------------------------------------------------------------


def by_hand(model: nn.Module, x: md.Tensor) -> md.Tensor:
    """Compute what a network is to compute, with products over whole arrays."""
    for _, layer in chain(model):
        x = x * 1.0  # forgets which rows are live
        if isinstance(layer, Gate):
            x = x * _batch_values(layer, x)
        elif isinstance(layer, Mask):
            labels = np.broadcast_to(layer.groups.labels, x.shape[:-1])
            x = x * _batch_values(layer.gate, x)[labels].reshape(*labels.shape, -1)
        elif isinstance(layer, Gated):
            x = _gated_by_hand(layer, x)
        else:
            x = layer(x)
    return x


def _batch_values(gate: Gate, x: md.Tensor) -> md.Tensor:
    """Return the values of a gate of rows, with axes of one up to the samples."""
    samples = x.shape[-1] if gate.per_sample and gate.stochastic else None
    return gate.values(samples=samples).reshape(gate.count, *[1] * (x.ndim - 2), -1)


def _gated_by_hand(gated: Gated, x: md.Tensor) -> md.Tensor:
    layer, ones = gated.layer, [1] * (gated.layer.weight.ndim - 1)
    weight, bias = layer.weight * 1.0, layer.bias * 1.0
    for mask in gated.weights:
        weight = weight * mask.gate()[np.broadcast_to(mask.groups.labels, weight.shape)]
    for mask in gated.biases:
        bias = bias * mask.gate()[np.broadcast_to(mask.groups.labels, bias.shape)]
    if gated.outputs is not None:
        z = gated.outputs()
        weight, bias = weight * z.reshape(-1, *ones), bias * z
    if gated.inputs is not None:
        weight = weight * gated.inputs().reshape(1, -1, *ones[1:])
    return layer.apply(x, weight, bias)


def results(run: Any, model: nn.Module, x: NDArray[Any], seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return the output and every gradient, for a random loss behind ``run``."""
    for parameter in model.parameters():
        parameter.grad = None
    leaf = md.Tensor(x, requires_grad=True)
    out = run(leaf)
    out.backward(np.random.default_rng(seed).standard_normal(out.shape).astype(out.dtype))
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"output": out.data, "x": leaf.grad, **grads}


def assert_same(found: dict[str, Any], expected: dict[str, Any], atol: float = 1e-9) -> None:
    """Compare what :func:`results` returns."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-9, atol=atol, err_msg=name)


def outputs(model: nn.Module, x: NDArray[Any]) -> NDArray[Any]:
    """Return the outputs in evaluation."""
    with md.no_grad():
        return copy.deepcopy(model).eval()(x).data


def narrow(model: nn.Module) -> nn.Module:
    """Make all parameters float32, in place; return the model."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, nn.Parameter):
                setattr(module, name, nn.Parameter(value.data.astype(np.float32)))
    return model


# -- at random ---------------------------------------------------------------------------------


class _Drawing:
    """A network while it is drawn; ``room`` is left for so many groups of new gates."""

    def __init__(self, rng: np.random.Generator, shape: Shape, room: float = np.inf) -> None:
        self.rng, self.first, self.shape, self.room = rng, shape, shape, room
        self.layers: list[nn.Module] = []
        self.gates: list[Gate] = []

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def add(self, layer: nn.Module) -> None:
        self.layers.append(layer)
        self.shape = layer.output_shape(self.shape)

    def gate(self, count: int, kinds: str = "deterministic") -> Gate | None:
        """Return a gate that was drawn before, or a new one; None if there is no room."""
        known = [gate for gate in self.gates if gate.count == count]
        if known and (self.chance(0.2) or count > self.room):
            return known[self.rng.integers(len(known))]
        if count > self.room:
            return None
        self.room -= count
        options: dict[str, Any] = {"rng": self.rng, **DOUBLE}
        kind = self.rng.integers(6) if kinds == "any" else 0
        gate: Gate
        if kind == 1:
            gate = md.HardConcrete(count, **options)
        elif kind == 2:
            gate = md.GaussianGate(count, **options)
        else:
            options |= {"width": self.rng.choice([0.6, 1.0]), "sigma": self.rng.choice([0.5, 1.0])}
            gate = Gate(count, noise="logistic" if kind == 3 else None, **options)
        closed, opened = gate.limits
        part = self.rng.choice([-0.5, 0.0, 0.3, 0.5, 0.8, 1.0, 2.5], count)
        gate.phi.data = closed + part * (opened - closed)
        if self.chance(0.05):
            gate.set_open(np.zeros(count, bool))  # nothing is left
        self.gates.append(gate)
        return gate

    def mask(self, shape: Shape, kinds: str, rows: bool = False) -> Mask | None:
        """Return a mask over groups of any kind, or of whole rows; None if there is no room."""
        if rows:
            ones = [1] * (len(shape) - 1)
            groups = Groups.by(self.rng.integers(0, 3, shape[0]).reshape(-1, *ones))
        else:
            every = [
                Groups.along(shape, 0),
                Groups.along(shape, len(shape) - 1),
                Groups.along(shape, range(len(shape))[:2]),
                Groups.elements(shape),
                Groups.blocks(shape, (2,) * len(shape)),
                Groups.by(self.rng.integers(0, 3, shape)),
            ]
            groups = every[self.rng.integers(len(every))]
        gate = self.gate(groups.count, kinds)
        return gate and Mask(gate, groups)

    def weighted(self, layer: nn.Conv2d | nn.Linear, kinds: str = "deterministic") -> None:
        """Add a layer, of which some of outputs, inputs, weights and biases are gated."""
        layer.bias.data = self.rng.standard_normal(layer.bias.shape)
        shape, parts = layer.weight.shape, {}
        for role, p, size in (("outputs", 0.5, shape[0]), ("inputs", 0.3, shape[1])):
            if self.chance(p):
                parts[role] = self.gate(size, kinds)
        small = self.room < np.inf  # then a channel is above 0 unless its gate is closed
        for role, p, sizes in (("weights", 0.4, shape), ("biases", 0.2, shape[:1])):
            if self.chance(p) and not (small and role == "biases"):
                parts[role] = self.mask(sizes, kinds) or ()
        self.add(Gated(layer, **parts) if parts else layer)

    def between(self, names: list[str], kinds: str = "deterministic") -> None:
        """Add up to two layers without weights."""
        for name in self.rng.choice(names, self.rng.integers(0, 3)):
            channels, layer = self.shape[0], None
            if name == "gate":
                layer = self.gate(channels, kinds)
            elif name == "mask":
                layer = self.mask(self.shape, kinds, rows=True)
            elif name == "dropout":
                layer = nn.Dropout(0.5, rng=self.rng)
            elif name == "relu":
                layer = nn.ReLU()
            elif name == "sigmoid" and not self.scaled():
                layer = Sigmoid()
            elif name == "select" and channels > 1:
                some = self.rng.choice(channels, self.rng.integers(1, channels), replace=False)
                layer = nn.Select(np.sort(some), size=channels)
            elif name == "pool" and len(self.shape) == 3 and min(self.shape[1:]) >= 2:
                pools = [
                    nn.MaxPool2d(2),
                    nn.MaxPool2d(2, stride=1, relu=True),
                    nn.AvgPool2d((2, 1), stride=1),
                ]
                layer = pools[self.rng.integers(3)]
            elif name == "mean" and len(self.shape) == 3 and min(self.shape[1:]) >= 2:
                layer = nn.AvgPool2d(2)
            if layer is not None:
                self.add(layer)

    def scaled(self) -> bool:
        """Return whether activations are gated since the last layer with weights."""
        for layer in reversed(self.layers):
            if isinstance(layer, Gate | Mask):
                return True
            if isinstance(layer, Gated | nn.Weighted):
                return False
        return False

    def done(self, seed: int) -> Network:
        """Return the network, half of the time as a Sequential in a Sequential."""
        layers = self.layers
        if self.chance(0.5):
            cut = int(self.rng.integers(len(layers) + 1))
            layers = [nn.Sequential(*layers[:cut]), *layers[cut:]]
        return Network(nn.Sequential(*layers), self.first, seed)


@st.composite
def networks(draw: st.DrawFn, sigmoids: bool = False, kinds: str = "any") -> Network:
    """Convolutions, pools, dense layers and gates: on parameters and on activations, shared.

    Gates are of any kind, or ``kinds="deterministic"``. Float64.
    """
    seed, convolutions, dense = draw(seeds), draw(st.integers(0, 2)), draw(st.integers(1, 2))
    rng = np.random.default_rng(seed)
    net = _Drawing(rng, (int(rng.integers(1, 4)), *map(int, rng.integers(5, 9, 2))))
    names = ["gate", "mask", "dropout", "relu", "select", "pool"]
    for _ in range(convolutions):
        net.between(names + ["sigmoid"] * sigmoids, kinds)
        kernel = tuple(int(rng.integers(1, min(n, 3) + 1)) for n in net.shape[1:])
        padding, outputs = tuple(map(int, rng.integers(0, 2, 2))), int(rng.integers(1, 5))
        stride = int(rng.integers(1, 3))
        conv = nn.Conv2d(
            net.shape[0], outputs, kernel, stride=stride, padding=padding, rng=rng, **DOUBLE
        )
        net.weighted(conv, kinds)
    net.between(names + ["sigmoid"] * sigmoids, kinds)
    if net.chance(0.3):
        net.add(net.mask(net.shape, kinds))  # on single positions, which become features
        net.between(["relu", "gate", "select"], kinds)
    net.add(nn.Flatten())
    for _ in range(dense):
        net.between(names + ["sigmoid"] * sigmoids, kinds)
        net.weighted(nn.Linear(net.shape[0], int(rng.integers(1, 6)), rng=rng, **DOUBLE), kinds)
    net.between(names, kinds)
    return net.done(seed)


@st.composite
def small_networks(draw: st.DrawFn, groups: int) -> Network:
    """At most so many groups of deterministic gates, and weights above 0: each one matters."""
    seed, convolutions, dense = draw(seeds), draw(st.integers(0, 2)), draw(st.integers(1, 2))
    rng = np.random.default_rng(seed)
    net = _Drawing(rng, (int(rng.integers(1, 3)), 3, 3) if convolutions else (3,), groups)
    names = ["gate", "mask", "relu", "select"]
    for _ in range(convolutions):
        net.between([*names, "mean"])
        kernel, padding = int(rng.integers(1, min(2, *net.shape[1:]) + 1)), int(rng.integers(0, 2))
        stride = 1 if padding else int(rng.integers(1, 3))  # else a weight may read padding alone
        options = {"stride": stride, "padding": padding if kernel > 1 else 0, "rng": rng, **DOUBLE}
        net.weighted(nn.Conv2d(net.shape[0], int(rng.integers(2, 4)), kernel, **options))
    if convolutions:
        net.between([*names, "mean"])
        if net.chance(0.4) and (mask := net.mask(net.shape, "deterministic")):
            net.add(mask)
        net.add(nn.Flatten())
    for _ in range(dense):
        net.between(names)
        net.weighted(nn.Linear(net.shape[0], int(rng.integers(2, 4)), rng=rng, **DOUBLE))
    net.between(names)
    network = net.done(seed)
    for parameter in md.split_parameters(network.model)[0]:
        parameter.data = rng.uniform(0.5, 1.5, parameter.shape)
    return network
