"""The surrogate of L0 against every state of the gates, and the counts against what matters."""

import itertools
import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import minidiff as md
from minidiff import nn
from minidiff.models import SPARSITIES
from minidiff.pruning.penalty import gated_sizes, in_use
from tests.strategies import arrays, seeds

PRICES = {"weights": lambda n: 1, "macs": lambda n: n, "balanced": lambda n: n ** (1 / 3)}
COSTS = list(PRICES)
KINDS = ("convolutions", "dense", "grouped", "plain ends", "shared", "several", "activations")
kinds = st.sampled_from(KINDS)
some = settings(max_examples=25)


# -- small networks, and their weights one by one


def build(kind: str, seed: int = 0, **options: Any) -> tuple[nn.Sequential, tuple[int, ...]]:
    """Return a network of at most ten gates, all weights positive, and the shape of its input."""
    rng = np.random.default_rng(seed)
    draws: dict[str, Any] = {"rng": rng, "dtype": np.float64}

    def gate(size: int) -> md.Gate:
        return md.Gate(size, **({"rng": rng, "dtype": np.float64, "sigma": 0.8} | options))

    if kind == "convolutions":  # 3 + 2 + 4 + 1 gates
        model = nn.Sequential(
            conv1=md.Gated(nn.Conv2d(1, 3, 2, padding=1, **draws), outputs=gate(3)),  # (3, 6, 5)
            pool=nn.MaxPool2d((2, 1)),  # (3, 3, 5)
            relu=nn.ReLU(),
            conv2=md.Gated(nn.Conv2d(3, 2, (2, 3), stride=(1, 2), **draws), outputs=gate(2)),
            mean=nn.AvgPool2d((1, 2)),  # (2, 2, 1)
            flatten=nn.Flatten(),  # each channel twice
            dense=md.Gated(nn.Linear(4, 1, **draws), inputs=gate(4), outputs=gate(1)),
        )
        shape: tuple[int, ...] = (1, 5, 4)
    elif kind == "dense":  # 2 + 3 + 3 + 2
        model = nn.Sequential(
            md.Gated(nn.Linear(2, 3, **draws), inputs=gate(2), outputs=gate(3)),
            nn.Sequential(nn.ReLU(), nn.Dropout(0.5, rng=rng)),
            md.Gated(nn.Linear(3, 2, **draws), inputs=gate(3)),
            md.Gated(nn.Linear(2, 2, **draws), outputs=gate(2)),
        )
        shape = (2,)
    elif kind == "grouped":  # 2 + 4 + 3
        along = md.Groups.along((2, 2, 2, 2), (2, 3))  # a gate for each place of the kernel
        by = md.Groups.by([[0, 1], [1, 2], [2, 2]])
        conv, dense = nn.Conv2d(2, 2, 2, **draws), nn.Linear(2, 3, **draws)
        model = nn.Sequential(
            conv=md.Gated(conv, outputs=gate(2), weights=md.Mask(gate(4), along)),
            flatten=nn.Flatten(),
            dense=md.Gated(dense, weights=md.Mask(gate(3), by)),
        )
        shape = (2, 2, 2)
    elif kind == "shared":  # 2 + 3 + 2
        units, ends, rows = gate(2), gate(3), gate(2)
        tied = md.Mask(units, md.Groups.by([[0, 1, 0], [1, 1, 0]]))  # on weights, too
        model = nn.Sequential(
            md.Gated(nn.Linear(3, 2, **draws), outputs=units, inputs=ends, weights=tied),
            nn.ReLU(),
            # One gate on outputs and inputs: of a weight between a unit and itself it counts once.
            md.Gated(nn.Linear(2, 2, **draws), inputs=units, outputs=units),
            md.Mask(rows, md.Groups.along((2,), 0)),
            md.Gated(nn.Linear(2, 3, **draws), outputs=ends, inputs=rows),
            nn.Linear(3, 1, **draws),
        )
        shape = (3,)
    elif kind == "several":  # 3 + 4 + 2
        conv = nn.Conv2d(2, 3, 2, **draws)
        masks = [
            md.Mask(gate(4), md.Groups.blocks(conv.weight.shape, (2, 1))),
            md.Mask(gate(2), md.Groups.along(conv.weight.shape, 2)),
        ]
        filters = gate(3)
        bias = md.Mask(filters, md.Groups.elements((3,)))
        model = nn.Sequential(
            conv=md.Gated(conv, outputs=filters, weights=masks, biases=bias),
            relu=nn.ReLU(),
            flatten=nn.Flatten(),
            dense=nn.Linear(12, 1, **draws),
        )
        shape = (2, 3, 3)
    elif kind == "activations":  # 2 + 3 + 3
        model = nn.Sequential(
            conv=nn.Conv2d(1, 3, 2, **draws),  # (3, 2, 3)
            pairs=md.Mask(gate(2), md.Groups.by(np.array([0, 1, 1]).reshape(3, 1, 1))),
            columns=md.Mask(gate(3), md.Groups.along((3, 2, 3), 2)),
            relu=nn.ReLU(),
            rows=md.Mask(gate(3), md.Groups.by([[[0], [1]], [[1], [1]], [[2], [0]]])),
            flatten=nn.Flatten(),
            dense=nn.Linear(18, 2, **draws),
        )
        shape = (1, 3, 4)
    else:  # 3 + 2
        model = nn.Sequential(
            first=nn.Linear(2, 3, **draws),
            middle=md.Gated(nn.Linear(3, 2, **draws), inputs=gate(3), outputs=gate(2)),
            last=nn.Linear(2, 2, **draws),
        )
        shape = (2,)
    for name, parameter in model.named_parameters():
        if not name.endswith("phi"):
            parameter.data = rng.uniform(0.5, 1.5, parameter.shape)
    return model, shape


def gates_of(model: nn.Module) -> list[md.Gate]:
    return [module for module in model.modules() if isinstance(module, md.Gate)]


def leaves_of(model: nn.Module) -> list[nn.Module]:
    if not isinstance(model, nn.Sequential):
        return [model]
    return [leaf for layer in model.layers for leaf in leaves_of(layer)]


@dataclass(frozen=True)
class Weight:
    """One weight: at how many places it is used, and the gates that must all be open for it."""

    places: int
    gates: frozenset[tuple[int, int]]  # (id of the gate, number of the group)


def weights_of(model: nn.Module, shape: tuple[int, ...]) -> list[Weight]:
    """List every weight of a model. Shapes are taken from a run of it, not from what it says."""
    weights: list[Weight] = []
    x = md.Tensor(np.ones((*shape, 1)))
    behind: list[set[tuple[int, int]]] = [set() for _ in range(shape[0])]
    before_this: list[tuple[int, int]] = []  # weights of the layer before, and their outputs
    places: list[md.Mask] = []  # masks over places, which a Flatten makes into features

    def close(channel: int, bit: tuple[int, int]) -> None:
        behind[channel] = behind[channel] | {bit}
        for number, output in before_this:
            if output == channel:
                weights[number] = replace(weights[number], gates=weights[number].gates | {bit})

    for module in leaves_of(model):
        before, x = x, module(x)
        layer = module.layer if isinstance(module, md.Gated) else module
        if isinstance(layer, nn.Flatten):
            behind = [behind[c] for c in range(before.shape[0]) for _ in range(before[c].size)]
            for mask in places:
                labels = np.broadcast_to(mask.groups.labels, before.shape[:-1]).ravel()
                behind = [
                    b | {(id(mask.gate), int(n))} for b, n in zip(behind, labels, strict=True)
                ]
            before_this, places = (
                [],
                [],
            )  # of which some places are of use, whatever a gate does to others
        if isinstance(layer, md.Mask):
            labels = layer.groups.labels
            if labels.size == labels.shape[0] == len(behind):
                for channel, label in enumerate(labels.ravel().tolist()):
                    close(channel, (id(layer.gate), label))
            else:
                places.append(layer)
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        gated = module if isinstance(module, md.Gated) else md.Gated(layer)
        if gated.inputs is not None and before_this:
            for channel in range(len(behind)):
                close(channel, (id(gated.inputs), channel))
        before_this = []
        out_gates: list[set[tuple[int, int]]] = [set() for _ in range(layer.weight.shape[0])]
        if gated.outputs is not None:
            out_gates = [{(id(gated.outputs), o)} for o in range(len(out_gates))]
        for index in np.ndindex(layer.weight.shape):
            path = behind[index[1]] | out_gates[index[0]]
            if gated.inputs is not None:
                path = path | {(id(gated.inputs), index[1])}
            for mask in gated.weights:
                labels = np.broadcast_to(mask.groups.labels, layer.weight.shape)
                path = path | {(id(mask.gate), int(labels[index]))}
            before_this.append((len(weights), index[0]))
            weights.append(Weight(int(np.prod(x.shape[1:-1])), frozenset(path)))
        behind = out_gates
    return weights


def probability(gate: md.Gate, phi: float) -> float:
    t = (phi + gate.width / 2) / gate.sigma
    if gate.noise is None and t <= 0:
        return 0.0
    if gate.noise == "logistic":
        return 1 / (1 + math.exp(-t))
    if gate.noise == "uniform":
        return min(1.0, max(0.0, (1 + t) / 2))
    return NormalDist().cdf(t)


def expectation(model: nn.Module, shape: tuple[int, ...], cost: str) -> float:
    """Go through all states of all gates: probability times what the open weights cost."""
    bits = [(id(gate), i) for gate in gates_of(model) for i in range(gate.count)]
    chances = [probability(g, phi) for g in gates_of(model) for phi in g.phi.data.tolist()]
    assert len(bits) <= 10
    # Each weight as the set of the gates it needs, written as the bits of a number.
    needs = [
        (sum(1 << bits.index(bit) for bit in w.gates), PRICES[cost](w.places))
        for w in weights_of(model, shape)
    ]
    total = 0.0
    for state in range(1 << len(bits)):
        chance = math.prod(p if state >> i & 1 else 1 - p for i, p in enumerate(chances))
        total += chance * sum(price for mask, price in needs if mask & state == mask)
    return total


def scatter(model: nn.Module, seed: int, low: float = -1.5, high: float = 1.5) -> None:
    rng = np.random.default_rng(seed)
    for gate in gates_of(model):
        gate.phi.data = rng.uniform(low, high, gate.count)


# -- the surrogate


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3)
@given(seed=seeds)
def test_expected_cost_is_the_mean_over_all_states_of_the_gates(kind, cost, seed):
    model, shape = build(kind)
    scatter(model, seed)
    assert md.expected_cost(model, shape, cost=cost).item() == pytest.approx(
        expectation(model, shape, cost), rel=1e-6
    )


@pytest.mark.parametrize("noise", ["normal", "logistic", "uniform"])
@pytest.mark.parametrize("kind", KINDS)
def test_expected_cost_of_stochastic_gates_is_what_training_steps_leave_on_average(kind, noise):
    model, shape = build(kind, noise=noise)
    scatter(model, 1, -1.0, 0.7)
    weights = weights_of(model, shape)
    used = []
    for _ in range(1500):
        opened = {
            (id(gate), int(i)) for gate in gates_of(model) for i in np.flatnonzero(gate().data)
        }
        used.append(sum(w.places for w in weights if w.gates <= opened))
    error = np.std(used) / math.sqrt(len(used))
    assert error > 0
    expected = md.expected_cost(model, shape, cost="macs").item()
    assert abs(np.mean(used) - expected) < 4 * error


@some
@given(kinds, seeds, st.sampled_from(sorted(COSTS)))
def test_the_gradient_of_expected_cost_is_that_of_finite_differences(kind, seed, cost):
    model, shape = build(kind)
    scatter(model, seed)
    gates = gates_of(model)
    for gate in gates:  # off the jump where a gate closes
        gate.phi.data = np.where(abs(gate.phi.data + 0.5) < 1e-3, 0.0, gate.phi.data)

    def run(*phis: md.Tensor) -> md.Tensor:
        for gate, phi in zip(gates, phis, strict=True):
            gate.phi = phi
        return md.expected_cost(model, shape, cost=cost)

    assert md.gradcheck(run, [md.Tensor(g.phi.data, requires_grad=True) for g in gates])


@some
@given(kinds, seeds)
def test_every_gate_of_an_open_network_is_pushed_to_close(kind, seed):
    model, shape = build(kind)
    scatter(model, seed, low=-0.4)
    md.expected_cost(model, shape).backward()
    for gate in gates_of(model):
        assert gate.phi.grad.shape == (gate.count,)
        assert (gate.phi.grad > 0).all()


def test_a_stochastic_gate_that_is_closed_is_still_pushed_and_a_deterministic_one_left_alone():
    for noise in ("normal", None):
        model, shape = build("dense", noise=noise)
        scatter(model, 0, -2.0, -1.0)
        assert not any(gate.is_open().any() for gate in gates_of(model))
        cost = md.expected_cost(model, shape)
        assert (cost.item() > 0) == (noise is not None)
        cost.backward()
        pushed = [(gate.phi.grad > 0).all() for gate in gates_of(model)]
        assert all(pushed) == any(pushed) == (noise is not None)


@some
@given(kinds, seeds, st.sampled_from(sorted(COSTS)))
def test_with_gates_surely_open_or_closed_expected_cost_is_a_count(kind, seed, cost):
    model, shape = build(kind, sigma=0.01)
    rng = np.random.default_rng(seed)
    for gate in gates_of(model):
        gate.phi.data = rng.choice([-3.0, 3.0], gate.count)
    opened = {(id(g), int(i)) for g in gates_of(model) for i in np.flatnonzero(g.is_open())}
    expected = sum(PRICES[cost](w.places) for w in weights_of(model, shape) if w.gates <= opened)
    assert md.expected_cost(model, shape, cost=cost).item() == pytest.approx(expected, abs=1e-4)


# -- counts


@dataclass
class Influence:
    """What of a layer the output of the network depends on: a mask of each kind."""

    inputs: NDArray[np.bool_]
    outputs: NDArray[np.bool_]
    weights: NDArray[np.bool_]


def influences(model: nn.Module, shape: tuple[int, ...]) -> list[Influence]:
    """Change every weight and bias in turn, and see whether the network answers otherwise.

    All numbers are positive, so that no ReLU hides a change and no two changes cancel. An output
    matters if its bias does; an input, if one of its weights does.
    """
    model.eval()
    x = np.random.default_rng(0).uniform(0.5, 1.5, (*shape, 2))
    with md.no_grad():
        before = model(x).data.copy()

        def matters(array: NDArray[Any]) -> NDArray[np.bool_]:
            mask = np.zeros(array.shape, bool)
            for index in np.ndindex(array.shape):
                kept, array[index] = array[index], 2 * array[index] + 1
                mask[index] = (model(x).data != before).any()
                array[index] = kept
            return mask

        found = []
        for module in leaves_of(model):
            layer = module.layer if isinstance(module, md.Gated) else module
            if isinstance(layer, nn.Conv2d | nn.Linear):
                weights = matters(layer.weight.data)
                others = (0, *range(2, weights.ndim))
                found.append(Influence(weights.any(axis=others), matters(layer.bias.data), weights))
    return found


def assert_counts_are_influences(model: nn.Module, shape: tuple[int, ...]) -> None:
    for layer, found in zip(md.count(model, shape), influences(model, shape), strict=True):
        assert layer.weights == (found.weights.sum(), found.weights.size), layer.name
        assert layer.outputs == (found.outputs.sum(), found.outputs.size), layer.name
        if found.weights.any():  # else inputs are neither used nor unused
            assert layer.inputs == (found.inputs.sum(), found.inputs.size), layer.name
        for role in ("inputs", "outputs"):
            which = in_use(model, shape)[f"{layer.name}.{role}"]
            assert (which.sum(), which.size) == getattr(layer, role)
            if found.weights.any():
                np.testing.assert_array_equal(which, getattr(found, role))


def open_or_close(model: nn.Module, seed: int, at_least_one: bool) -> None:
    rng = np.random.default_rng(seed)
    for gate in gates_of(model):
        gate.phi.data = rng.choice([-2.0, 0.2, 2.0], gate.count)
        if at_least_one:
            gate.phi.data[rng.integers(gate.count)] = 2.0


@some
@given(st.sampled_from(["dense", "plain ends"]), seeds)
def test_counts_are_of_what_the_output_depends_on(kind, seed):
    model, shape = build(kind)
    open_or_close(model, seed, at_least_one=True)
    # The gates of two layers can also close one of them between them: see below.
    assume(all(layer.weights[0] for layer in md.count(model, shape)))
    assert_counts_are_influences(model, shape)


@pytest.mark.parametrize("inputs", list(itertools.product([-2.0, 2.0], repeat=4))[1:])
@pytest.mark.parametrize("second", [(2.0, 2.0), (2.0, -2.0)])
def test_a_filter_whose_every_feature_is_closed_further_on_does_not_count(inputs, second):
    model, shape = build("convolutions")
    layers = dict(model.children())
    layers["conv1"].outputs.phi.data = np.array([2.0, -2.0, 2.0])
    layers["conv2"].outputs.phi.data = np.array(second)
    layers["dense"].inputs.phi.data = np.array(inputs)
    left = [second[c] > 0 and (inputs[2 * c] > 0 or inputs[2 * c + 1] > 0) for c in range(2)]
    counts = md.count(model, shape)
    assert counts[1].outputs == (sum(left), 2)
    assert counts[1].weights == (2 * 6 * sum(left), 36)
    if any(left):  # else see below
        assert_counts_are_influences(model, shape)


@some
@given(kinds, seeds)
def test_counts_are_of_what_the_output_depends_on_however_much_is_closed(kind, seed):
    """Also where a layer is closed altogether, or a channel by the gates of single weights."""
    model, shape = build(kind)
    open_or_close(model, seed, at_least_one=False)
    assert_counts_are_influences(model, shape)


def test_what_leads_into_a_layer_that_is_all_closed_does_not_count():
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        nn.Linear(2, 3, rng=rng), md.Gated(nn.Linear(3, 2, rng=rng), outputs=md.Gate(2, initial=-2))
    )
    assert [layer.weights[0] for layer in md.count(model, (2,))] == [0, 0]


def test_a_channel_whose_weights_are_all_closed_one_by_one_does_not_count():
    rng = np.random.default_rng(0)
    mask = md.Mask(md.Gate(3), md.Groups.along((2, 3), 1))
    second = md.Gated(nn.Linear(3, 2, rng=rng), weights=mask)
    mask.gate.phi.data = np.array([2, -2, 2])
    counts = md.count(nn.Sequential(nn.Linear(2, 3, rng=rng), second), (2,))
    assert (counts[1].weights, counts[0].outputs, counts[0].weights) == ((4, 6), (2, 3), (4, 6))


@some
@given(kinds, seeds)
def test_macs_are_the_weights_left_times_the_places_they_are_used_at(kind, seed):
    model, shape = build(kind)
    open_or_close(model, seed, at_least_one=False)
    counts = md.count(model, shape)
    x: Any = md.Tensor(np.ones((*shape, 1)))
    places = []
    for module in leaves_of(model):
        x = module(x)
        if isinstance(module, nn.Conv2d | nn.Linear | md.Gated):
            places.append(int(np.prod(x.shape[1:-1])))
    assert [c.macs for c in counts] == [
        (c.weights[0] * n, c.weights[1] * n) for c, n in zip(counts, places, strict=True)
    ]


def test_layers_are_named_as_in_the_model_and_say_which_gates_they_have():
    model, shape = build("dense")
    counts = md.count(model, shape)
    assert [c.name for c in counts] == ["0", "2", "3"]
    assert [set(c.gated) for c in counts] == [{"inputs", "outputs"}, {"inputs"}, {"outputs"}]
    model, shape = build("grouped")
    assert set(md.count(model, shape)[0].gated) == {"outputs", "weights"}
    nested = nn.Sequential(body=nn.Sequential(model), head=nn.Linear(3, 1, rng=model_rng()))
    assert [c.name for c in md.count(nested, shape)] == ["body.0.conv", "body.0.dense", "head"]


def model_rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_layer_by_itself_can_be_counted():
    gate = md.Gate(3)
    gate.phi.data = np.array([2, -2, 2])
    (layer,) = md.count(md.Gated(nn.Linear(4, 3, rng=model_rng()), outputs=gate), (4,))
    assert (layer.inputs, layer.outputs, layer.weights) == ((4, 4), (2, 3), (8, 12))
    assert md.count(nn.Sequential(nn.ReLU()), (4,)) == []


def test_counting_draws_nothing_and_is_of_evaluation():
    rng = np.random.default_rng(0)
    gate = md.Gate(3, initial=2.0, noise="normal", sigma=100.0, rng=rng)
    model = md.Gated(nn.Linear(4, 3, rng=model_rng()), outputs=gate)
    assert md.count(model, (4,))[0].outputs == (3, 3)
    md.expected_cost(model, (4,))
    assert rng.random() == np.random.default_rng(0).random()


def test_the_counts_of_a_large_layer_are_exact():
    # 4097 * 4099 is odd and above 2^24, which float32 cannot hold.
    layer = nn.Linear(1, 1, rng=model_rng())
    layer.weight = nn.Parameter(np.broadcast_to(np.float32(0), (4099, 4097)))
    layer.bias = nn.Parameter(np.broadcast_to(np.float32(0), 4099))
    (found,) = md.count(layer, (4097,))
    assert found.weights == (4097 * 4099, 4097 * 4099)


# -- LeNet5


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_lenet5_has_430500_weights_and_2293000_macs(sparsity):
    model = md.LeNet5(rng=model_rng(), sparsity=sparsity)
    counts = md.count(model, model.input_shape)
    assert sum(c.weights[0] for c in counts) == sum(c.weights[1] for c in counts) == 430_500
    assert sum(c.macs[0] for c in counts) == sum(c.macs[1] for c in counts) == 2_293_000
    assert [c.name for c in counts] == ["conv1", "conv2", "dense1", "dense2"]
    assert md.architecture(counts) == "20-50-800-500"


def test_expected_cost_of_an_open_lenet5_is_its_count():
    model = md.LeNet5(rng=model_rng(), initial=20.0)
    shape = model.input_shape
    assert md.expected_cost(model, shape).item() == 430_500
    assert md.expected_cost(model, shape, cost="macs").item() == 2_293_000


def pruned_lenet5() -> md.LeNet5:
    model = md.LeNet5(rng=model_rng())
    layers = dict(model.children())

    def leave(gate: md.Gate, opened: Any) -> None:
        gate.phi.data = np.full(gate.count, -1.0)
        gate.phi.data[opened] = 1.0

    leave(layers["conv1"].outputs, np.arange(0, 16, 2))  # 8
    leave(layers["conv2"].outputs, np.arange(11))  # 11, of which the last is of no use:
    leave(layers["dense1"].inputs, [*range(112), *range(176, 300)])  # 112 of its inputs live
    leave(layers["dense1"].outputs, np.arange(100, 168))  # 68
    return model


def test_a_pruned_lenet5_is_counted_layer_by_layer_and_written_as_in_the_literature():
    model = pruned_lenet5()
    counts = md.count(model, model.input_shape)
    assert md.architecture(counts) == "8-7-112-68"
    assert [c.weights[0] for c in counts] == [8 * 25, 8 * 7 * 25, 112 * 68, 68 * 10]
    assert [c.macs[0] for c in counts] == [8 * 25 * 576, 8 * 7 * 25 * 64, 112 * 68, 68 * 10]
    assert gated_sizes(counts) == {
        "conv1.outputs": (8, 20),
        "conv2.outputs": (7, 50),
        "dense1.inputs": (112, 800),
        "dense1.outputs": (68, 500),
    }


# -- errors


def test_parameters_are_split_into_weights_and_phi_each_once():
    rng, gate = np.random.default_rng(0), md.Gate(3)
    first = md.Gated(nn.Linear(4, 3, rng=rng), outputs=gate)
    model = nn.Sequential(first, gate, nn.Linear(3, 2, rng=rng), md.Gate(2))
    weights, phis = md.split_parameters(model)
    assert [w.shape for w in weights] == [(3, 4), (3,), (2, 3), (2,)]
    assert len(phis) == 2
    assert phis[0] is gate.phi


def test_an_unknown_cost_is_an_error_that_lists_the_known_ones():
    model, shape = build("dense")
    with pytest.raises(
        ValueError, match="cost is 'flops'; expected one of weights, macs, balanced"
    ):
        md.expected_cost(model, shape, cost="flops")


def test_a_gate_as_a_layer_counts_as_a_gate_on_inputs():
    for shape in ((3,), (3, 4, 4)):
        convolution = len(shape) == 3
        build = (
            (lambda i, o: nn.Conv2d(i, o, 2, rng=model_rng()))
            if convolution
            else (lambda i, o: nn.Linear(i, o, rng=model_rng()))
        )
        gate = md.Gate(5)
        gate.phi.data[[1, 4]] = -1, 0.3
        as_layer = nn.Sequential(build(3, 5), nn.ReLU(), gate, build(5, 2))
        wrapped = nn.Sequential(build(3, 5), nn.ReLU(), md.Gated(build(5, 2), inputs=gate))
        ours, theirs = md.count(as_layer, shape), md.count(wrapped, shape)
        assert [(c.inputs, c.outputs, c.weights, c.macs) for c in ours] == [
            (c.inputs, c.outputs, c.weights, c.macs) for c in theirs
        ]
        costs = [md.expected_cost(model, shape).item() for model in (as_layer, wrapped)]
        assert costs[0] == costs[1]
        with pytest.raises(ValueError, match=r"1: Gate does not fit an input of shape \(4"):
            md.count(nn.Sequential(build(3, 4), gate), shape)


def test_what_a_select_leaves_out_does_not_count():
    first, second = nn.Conv2d(1, 4, 1, rng=model_rng()), nn.Linear(3, 2, rng=model_rng())
    select = nn.Select([0, 1, 5], size=8)  # two places of channel 0, one of channel 2
    model = nn.Sequential(first, nn.Flatten(), select, second)
    counts = md.count(model, (1, 1, 2))
    assert [c.outputs for c in counts] == [(2, 4), (2, 2)]
    assert [c.weights for c in counts] == [(2, 4), (6, 6)]
    with pytest.raises(ValueError, match=r"2: Select does not fit an input of shape \(12,\)"):
        md.count(model, (1, 1, 3))


class Strange(nn.Module):
    def forward(self, x: md.Tensor) -> md.Tensor:
        return x


@pytest.mark.parametrize("run", [md.count, md.expected_cost])
def test_a_module_that_counting_does_not_know_is_an_error_that_names_it(run):
    body = nn.Sequential(linear=nn.Linear(2, 2, rng=model_rng()), odd=Strange())
    with pytest.raises(
        TypeError, match=r"body.odd is a Strange; counting and compaction know Sequential"
    ):
        run(nn.Sequential(body=body), (2,))
    with pytest.raises(TypeError, match="the model is a Strange"):
        run(Strange(), (2,))


@pytest.mark.parametrize("run", [md.count, md.expected_cost])
@pytest.mark.parametrize(("kind", "shape"), [("plain ends", (5,)), ("convolutions", (2, 5, 4))])
def test_a_shape_that_does_not_fit_the_model_is_an_error(run, kind, shape):
    model, _ = build(kind)
    with pytest.raises(ValueError, match="does not fit an input of shape"):
        run(model, shape)


@some
@given(arrays((5,), -1, 1), seeds)
def test_a_gate_in_several_layers_gathers_the_gradient_of_all(phi, seed):
    """One mask for two layers side by side in depth: probabilities are asked once, used twice."""
    gate = md.Gate(5, dtype=np.float64)
    gate.phi.data = phi
    rng = np.random.default_rng(seed)
    first, second = nn.Linear(2, 5, rng=rng), nn.Linear(3, 5, rng=rng)
    apart = nn.Linear(5, 3, rng=rng)
    model = nn.Sequential(md.Gated(first, outputs=gate), apart, md.Gated(second, outputs=gate))
    md.expected_cost(model, (2,)).backward()
    slope = np.exp(-((phi + 0.5) ** 2) / 2) / math.sqrt(2 * math.pi) * (phi > -0.5)
    # Each group has 2 weights of the first layer, 3 of the one between and 3 of the last.
    np.testing.assert_allclose(gate.phi.grad, 8 * slope, rtol=1e-6)


def test_a_flatten_of_single_places_changes_nothing_about_what_is_spared() -> None:
    rng = np.random.default_rng(0)
    first, last = nn.Conv2d(1, 10, 8, rng=rng), nn.Linear(10, 2, rng=rng)
    gate = md.Gate(10)
    gate.phi.data[1:] = -3
    before = nn.Sequential(first, gate, nn.Flatten(), last)
    behind = nn.Sequential(first, nn.Flatten(), gate, last)
    assert md.Surrogate(behind, (1, 8, 8))().item() == md.Surrogate(before, (1, 8, 8))().item()
    assert [c.weights[0] for c in md.count(behind, (1, 8, 8))] == [64, 2]


def test_a_convolution_with_one_output_place_is_no_dense_layer() -> None:
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 5, rng=rng), nn.Flatten(), nn.Linear(8, 4, rng=rng))
    assert md.architecture(md.count(model, (3, 5, 5))) == "8"


def test_a_shape_may_be_a_list() -> None:
    shape: Any = [4]
    assert md.count(nn.Linear(4, 2, rng=np.random.default_rng(0)), shape)[0].weights == (8, 8)


def test_the_surrogate_leaves_frozen_gates_alone() -> None:
    rng = np.random.default_rng(0)
    first, second = (md.gate_units(nn.Linear(4, 4, rng=rng)) for _ in range(2))
    model = nn.Sequential(first, nn.ReLU(), second)
    surrogate = md.Surrogate(model, (4,))
    before = surrogate().item()
    first.outputs.frozen = True
    cost = surrogate()
    cost.backward()
    assert cost.item() == before
    assert first.outputs.phi.grad is None
    assert (second.outputs.phi.grad > 0).all()


def test_gates_have_names_of_their_own() -> None:
    rng = np.random.default_rng(0)
    layer = md.gate_weights(nn.Linear(4, 4, rng=rng))
    model = nn.Sequential(block=nn.Sequential(gate=md.Gate(4)), dense=layer)
    assert list(md.gates_of(model)) == ["block.gate", "dense.weights.0"]
