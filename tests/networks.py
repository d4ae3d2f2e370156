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


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def dense(inputs: int, units: int, seed: int = 0) -> nn.Linear:
    return nn.Linear(inputs, units, rng=rng(seed), **DOUBLE)


def conv(inputs: int, filters: int, kernel: int = 3, seed: int = 0, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, filters, kernel, rng=rng(seed), **DOUBLE, **options)


def gate_at(phi: Any, kind: Any = Gate, seed: int = 0, **options: Any) -> Any:
    """Return gates at phi."""
    gate = kind(len(phi), rng=rng(seed), **(DOUBLE | options))
    gate.phi.data = np.array(phi)
    return gate


class Sigmoid(nn.Module):
    """A layer that is not homogeneous: it makes 1/2 of 0."""

    channelwise = True
    settings = ()

    def forward(self, x: md.Tensor) -> md.Tensor:
        return x.sigmoid()


def train(
    model: nn.Module, x: Any, labels: Any, *, steps: int = 40, lr: float = 0.1, penalty: float = 0.0
) -> list[float]:
    """Take steps of SGD and Adam on the loss plus a penalty on weights; return the losses."""
    weights, phis = md.split_parameters(model)
    optimisers: list[Any] = [md.optim.SGD(weights, lr=lr, momentum=0.9)]
    optimisers += [md.optim.Adam(phis, lr=0.05)] if phis else []
    surrogate, losses = md.Surrogate(model, x.shape[:-1]), []
    for _ in range(steps):
        loss = md.functional.cross_entropy(model(x), labels)
        for optimiser in optimisers:
            optimiser.zero_grad()
        (loss + penalty * surrogate()).backward()
        for optimiser in optimisers:
            optimiser.step()
        losses.append(loss.item())
    return losses


# -- by hand -----------------------------------------------------------------------------------


def by_hand(model: nn.Module, x: md.Tensor) -> md.Tensor:
    """Compute what a network is to compute, with products over whole arrays."""
    for _, layer in chain(model):
        x = x * 1.0  # forgets which rows are live
        if isinstance(layer, Gate):
            x = x * layer.values().reshape(-1, *[1] * (x.ndim - 1))
        elif isinstance(layer, Mask):
            labels = np.broadcast_to(layer.groups.labels, x.shape[:-1])
            x = x * layer.gate.values()[labels].reshape(*labels.shape, 1)
        elif isinstance(layer, Gated):
            x = _gated_by_hand(layer, x)
        else:
            x = layer(x)
    return x


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
    out.backward(rng(seed).standard_normal(out.shape).astype(out.dtype))
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


@dataclass(frozen=True)
class Network:
    """A gated network that fits inputs of a shape, without the batch."""

    model: nn.Sequential
    shape: Shape
    seed: int

    def inputs(self, samples: int = 3) -> NDArray[np.float64]:
        """Return a random batch."""
        return rng(self.seed).standard_normal((*self.shape, samples))


class _Drawing:
    """A network while it is drawn, of layers by ``names``; ``room`` for so many groups of gates."""

    def __init__(self, seed: int, shape: Shape, names: str, any_kind: bool, room: float) -> None:
        self.seed, self.rng, self.first, self.shape = seed, rng(seed), shape, shape
        self.names, self.any_kind, self.room = names.split(), any_kind, room
        self.small = room < np.inf
        self.layers: list[nn.Module] = []
        self.gates: list[Gate] = []

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def add(self, layer: nn.Module | None) -> None:
        if layer is not None:
            self.layers.append(layer)
            self.shape = layer.output_shape(self.shape)

    def gate(self, count: int) -> Gate | None:
        """Return a gate that was drawn before, or a new one; None if there is no room."""
        known = [gate for gate in self.gates if gate.count == count]
        if known and (self.chance(0.2) or count > self.room):
            return known[self.rng.integers(len(known))]
        if count > self.room:
            return None
        self.room -= count
        options: dict[str, Any] = {"rng": self.rng, **DOUBLE}
        kind = self.rng.integers(6) if self.any_kind else 0
        gate: Gate
        if kind in (1, 2):
            gate = (md.HardConcrete if kind == 1 else md.GaussianGate)(count, **options)
        else:
            options |= {"width": self.rng.choice([0.6, 1.0]), "sigma": self.rng.choice([0.5, 1.0])}
            gate = Gate(count, noise="logistic" if kind == 3 else None, **options)
        closed, opened = gate.limits
        part = self.rng.choice([-0.5, 0.0, 0.3, 0.8, 0.95, 1.0, 2.5], count)
        gate.phi.data = closed + part * (opened - closed)
        if self.chance(0.05):
            gate.set_open(np.zeros(count, bool))  # nothing is left
        self.gates.append(gate)
        return gate

    def mask(self, shape: Shape, rows: bool = False) -> Mask | None:
        """Return a mask over groups of any kind, or of whole rows; None if there is no room."""
        labels = self.rng.integers(0, 3, shape)
        every = [
            Groups.along(shape, 0),
            Groups.along(shape, len(shape) - 1),
            Groups.along(shape, range(len(shape))[:2]),
            Groups.elements(shape),
            Groups.blocks(shape, (2,) * len(shape)),
            Groups.by(labels),
        ]
        if rows:
            every = [
                Groups.by(labels.reshape(shape[0], -1)[:, :1].reshape(-1, *[1] * len(shape[1:])))
            ]
        groups = every[self.rng.integers(len(every))]
        gate = self.gate(groups.count)
        return gate and Mask(gate, groups)

    def weighted(self, layer: nn.Weighted) -> None:
        """Add a layer, of which some of outputs, inputs, weights and biases are gated."""
        layer.bias.data = self.rng.standard_normal(layer.bias.shape)
        shape, parts = layer.weight.shape, {}
        if self.chance(0.5):
            parts["outputs"] = self.gate(shape[0])
        if self.chance(0.3):
            parts["inputs"] = self.gate(shape[1])
        if self.chance(0.4):
            parts["weights"] = self.mask(shape) or ()
        if self.chance(0.2) and not self.small:  # there a channel is 0 only if its gate is closed
            parts["biases"] = self.mask(shape[:1]) or ()
        self.add(Gated(layer, **parts) if parts else layer)

    def convolution(self, most: int) -> None:
        kernel = tuple(int(self.rng.integers(1, min(n, most) + 1)) for n in self.shape[1:])
        padding = tuple(int(self.rng.integers(0, 2)) * (k > 1 or not self.small) for k in kernel)
        stride = int(self.rng.integers(1, 3))
        if self.small and any(padding):  # else a weight may read nothing but padding
            stride = 1
        filters, options = int(self.rng.integers(1, 5)), {"stride": stride, "padding": padding}
        self.weighted(nn.Conv2d(self.shape[0], filters, kernel, **options, rng=self.rng, **DOUBLE))

    def between(self, names: list[str] | None = None) -> None:
        """Add up to two layers without weights."""
        for name in self.rng.choice(names or self.names, self.rng.integers(0, 3)):
            channels, images = self.shape[0], len(self.shape) == 3 and min(self.shape[1:]) >= 2
            if name == "gate":
                self.add(self.gate(channels))
            elif name == "mask":
                self.add(self.mask(self.shape, rows=True))
            elif name == "relu":
                self.add(nn.ReLU() if self.chance(0.5) else nn.LeakyReLU(0.3))
            elif name == "dropout":
                self.add(nn.Dropout(0.5, rng=self.rng))
            elif name == "sigmoid" and not self.scaled():
                bent = [Sigmoid, nn.Sigmoid, nn.Tanh, nn.SiLU, nn.GELU]
                self.add(bent[self.rng.integers(len(bent))]())
            elif name == "select" and channels > 1:
                some = self.rng.choice(channels, self.rng.integers(1, channels), replace=False)
                self.add(nn.Select(np.sort(some), size=channels))
            elif name == "max" and images:
                self.add(
                    nn.MaxPool2d(2, stride=int(self.rng.integers(1, 3)), relu=self.chance(0.5))
                )
            elif name == "mean" and images:
                self.add(nn.AvgPool2d(2))

    def scaled(self) -> bool:
        """Return whether activations are gated since the last layer with weights."""
        for layer in reversed(self.layers):
            if isinstance(layer, Gate | Mask | Gated | nn.Weighted):
                return isinstance(layer, Gate | Mask)
        return False

    def draw(self, convolutions: int, dense: int, most: int = 3) -> Network:
        """Draw all layers; half of the time some are in a Sequential of their own."""
        for _ in range(convolutions):
            self.between()
            self.convolution(most)
        self.between()
        if len(self.shape) > 1:
            if self.chance(0.3):  # gates on single positions, which become features
                self.add(self.mask(self.shape))
                self.between(["relu", "gate", "select"])
            self.add(nn.Flatten())
        for _ in range(dense):
            self.between()
            units = int(self.rng.integers(1, 6))
            self.weighted(nn.Linear(self.shape[0], units, rng=self.rng, **DOUBLE))
        self.names = [name for name in self.names if name != "sigmoid"]  # gates may not follow it
        self.between()
        layers = self.layers
        if self.chance(0.5):
            cut = int(self.rng.integers(len(layers) + 1))
            layers = [nn.Sequential(*layers[:cut]), *layers[cut:]]
        return Network(nn.Sequential(*layers), self.first, self.seed)


@st.composite
def networks(draw: st.DrawFn, any_kind: bool = True, sigmoids: bool = False) -> Network:
    """Convolutions, pools, dense layers and gates: on parameters and on activations, shared.

    Gates are of any kind, or only deterministic ones. Float64.
    """
    seed, sizes = draw(seeds), draw(st.tuples(st.integers(0, 2), st.integers(1, 2)))
    shape = tuple(map(int, rng(seed).integers((1, 5, 5), (4, 9, 9))))
    names = "gate mask dropout relu select max mean" + " sigmoid" * sigmoids
    return _Drawing(seed, shape, names, any_kind, np.inf).draw(*sizes)


@st.composite
def small_networks(draw: st.DrawFn, groups: int) -> Network:
    """At most so many groups of deterministic gates, and weights above 0: each one matters."""
    seed, sizes = draw(seeds), draw(st.tuples(st.integers(0, 2), st.integers(1, 2)))
    shape = (1 + seed % 2, 3, 3) if sizes[0] else (3,)
    drawing = _Drawing(seed, shape, "gate mask relu select mean", False, groups)
    network = drawing.draw(*sizes, most=2)
    for parameter in md.split_parameters(network.model)[0]:
        parameter.data = drawing.rng.uniform(0.5, 1.5, parameter.shape)
    return network
