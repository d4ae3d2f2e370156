"""The surrogate against every state of the gates of small networks."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

import minidiff as md
from minidiff import Gate, Gated, Mask, nn
from minidiff.engine.module import chain
from tests.networks import DOUBLE, networks, small_networks
from tests.strategies import seeds

PRICES = {"weights": lambda n: 1, "macs": lambda n: n, "balanced": lambda n: n ** (1 / 3)}


def rng():
    return np.random.default_rng(0)


def weights_left(model, shape):
    """Return (positions, mask of the weights left) of each layer, for gates that are 0 or 1.

    A weight is left if the outputs of its layer depend on it, also behind gates that close whole
    outputs. All weights, biases and inputs are above 0, so nothing else hides one.
    """
    x, parts, direct = md.Tensor(np.ones((*shape, 1))), [], False
    for _, module in chain(model):
        gated = module if isinstance(module, Gated) else None
        layer = gated.layer if gated else module
        if isinstance(layer, nn.Weighted):
            if gated and gated.inputs and direct:
                parts[-1][1] = gated.inputs(parts[-1][1])
            x = module(md.Tensor(x.data))
            parts.append([layer, x, math.prod(x.shape[1:-1])])
            direct = True
            continue
        before, x = x, module(x)
        # From where channels are no longer the outputs of the layer, nothing is saved in it.
        direct = direct and len(x) == len(before)
        if direct and not (isinstance(layer, Mask) and layer.groups.rows is None):
            parts[-1][1] = module(parts[-1][1])
    left = []
    for layer, end, positions in parts:
        layer.weight.grad = None
        end.sum().backward()
        left.append((positions, layer.weight.grad != 0))
    return left


def surrogate(network, cost):
    """Return the surrogate of a network, or draw another network."""
    try:
        assume(md.gates_of(network.model))
        return md.Surrogate(network.model, network.shape, cost=cost)
    except ValueError:  # a gate saves nothing that the cost counts
        reject()


@settings(max_examples=40)
@given(small_networks(groups=5))
def test_expected_cost_is_the_mean_over_all_states_of_gates(network):
    model, shape = network.model.eval(), network.shape
    gates = list(md.gates_of(model).values())
    found = {cost: surrogate(network, cost)().item() for cost in PRICES}
    chances = np.concatenate([gate.open_probability().data for gate in gates])
    ends = np.cumsum([gate.count for gate in gates])[:-1]
    expected = dict.fromkeys(PRICES, 0.0)
    for state in itertools.product([False, True], repeat=len(chances)):
        chance = np.prod(np.where(state, chances, 1 - chances))
        for gate, part in zip(gates, np.split(np.array(state), ends), strict=True):
            gate.set_open(part)
        for positions, left in weights_left(model, shape):
            for cost, price in PRICES.items():
                expected[cost] += chance * price(positions) * left.sum()
    assert found == pytest.approx(expected, rel=1e-5)


@settings(max_examples=30)
@given(networks(), st.sampled_from(["weights", "macs", "balanced", "groups"]))
def test_its_gradient_matches_finite_differences(network, cost):
    gates, cost_of = list(md.gates_of(network.model).values()), surrogate(network, cost)
    for gate in gates:  # off the jump where deterministic gates close
        low, high = gate.limits
        gate.phi.data = np.random.default_rng(0).uniform(low + 0.01, high, gate.count)

    def run(*phis):
        for gate, phi in zip(gates, phis, strict=True):
            gate.phi = phi
        return cost_of()

    leaves = [md.Tensor(gate.phi.data, requires_grad=True) for gate in gates]
    assert md.gradcheck(run, leaves, directions=2)


@given(seeds)
def test_a_gate_in_several_layers_gathers_the_gradient_of_all(seed):
    gate = Gate(5, **DOUBLE)
    gate.phi.data = phi = np.random.default_rng(seed).uniform(-1, 1, 5)
    first, second = (Gated(nn.Linear(n, 5, rng=rng()), outputs=gate) for n in (2, 3))
    model = nn.Sequential(first, nn.Linear(5, 3, rng=rng()), second)
    md.expected_cost(model, (2,)).backward()
    slope = np.exp(-((phi + 0.5) ** 2) / 2) / math.sqrt(2 * math.pi) * (phi > -0.5)
    # Each group has 2 weights of the first layer, 3 of the one between and 3 of the last.
    np.testing.assert_allclose(gate.phi.grad, 8 * slope, rtol=1e-6)


@pytest.mark.parametrize("noise", [None, "normal"])
def test_closed_gates_are_pushed_further_only_if_stochastic(noise):
    layer = md.gate(nn.Linear(4, 3, rng=rng()), "outputs", "inputs", noise=noise, rng=rng())
    layer.outputs.phi.data[:2] = -2
    md.Surrogate(layer, (4,))().backward()
    pushed = [(gate.phi.grad > 0).tolist() for _, gate in layer.gates()]
    assert pushed == [[True] * 4, [bool(noise)] * 2 + [True]]


def test_frozen_gates_count_and_are_left_alone():
    first, second = (md.gate(nn.Linear(4, 4, rng=rng())) for _ in range(2))
    surrogate = md.Surrogate(nn.Sequential(first, nn.ReLU(), second), (4,))
    before = surrogate().item()
    first.outputs.frozen = True
    cost = surrogate()
    cost.backward()
    assert cost.item() == before
    assert first.outputs.phi.grad is None
    assert (second.outputs.phi.grad > 0).all()


def test_gates_that_save_nothing_are_counted_by_groups_only():
    rows = Mask(Gate(6, sigma=0.01), md.Groups.along((1, 6, 6), 1))
    model = nn.Sequential(rows=rows, conv=md.gate(nn.Conv2d(1, 2, 3, rng=rng()), sigma=0.01))
    with pytest.raises(ValueError, match="closing the gate rows saves nothing that cost 'weights'"):
        md.Surrogate(model, (1, 6, 6))
    surrogate = md.Surrogate(model, (1, 6, 6), cost="groups")
    assert surrogate().item() == pytest.approx(8)
    model["conv"].outputs.phi.data[0] = rows.gate.phi.data[2] = -1
    assert surrogate().item() == pytest.approx(6)


def test_a_network_without_gates_costs_its_weights():
    assert md.Surrogate(nn.Linear(4, 3, rng=rng()), [4])().item() == 12
    with pytest.raises(ValueError, match="cost is 'flops'; expected one of weights, macs"):
        md.expected_cost(nn.Linear(4, 3, rng=rng()), (4,), cost="flops")


def test_a_phi_that_is_not_a_number_shows():
    layer = md.gate(nn.Linear(4, 3, rng=rng()))
    layer.outputs.phi.data[1] = math.nan
    assert math.isnan(md.Surrogate(layer, (4,))().item())
