"""The surrogate against every state of the gates of small networks."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, reject
from hypothesis import strategies as st

import minidiff as md
from minidiff import Gate, Gated, Mask, nn
from minidiff.engine.module import chain
from tests.networks import dense, gate_at, networks, rng, small_networks

PRICES = {"weights": lambda n: 1, "macs": lambda n: n, "balanced": lambda n: n ** (1 / 3)}


def surrogate(network, cost):
    """Return the surrogate of a network, or draw another network."""
    try:
        assume(md.gates_of(network.model))
        return md.Surrogate(network.model, network.shape, cost=cost)
    except ValueError:  # a gate saves nothing that the cost counts
        reject()


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
            x, direct = module(md.Tensor(x.data)), True
            parts.append([layer, x, math.prod(x.shape[1:-1])])
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


@given(small_networks(groups=5))
def test_expected_cost_is_the_mean_over_all_states_of_gates(network):
    model, gates = network.model.eval(), list(md.gates_of(network.model).values())
    found = {cost: surrogate(network, cost)().item() for cost in PRICES}
    chances = np.concatenate([gate.open_probability().data for gate in gates])
    ends = np.cumsum([gate.count for gate in gates])[:-1]
    expected = dict.fromkeys(PRICES, 0.0)
    for state in itertools.product([False, True], repeat=len(chances)):
        chance = np.prod(np.where(state, chances, 1 - chances))
        for gate, part in zip(gates, np.split(np.array(state), ends), strict=True):
            gate.set_open(part)
        for positions, left in weights_left(model, network.shape):
            for cost, price in PRICES.items():
                expected[cost] += chance * price(positions) * left.sum()
    assert found == pytest.approx(expected, rel=1e-5)


@given(networks(), st.sampled_from([*PRICES, "groups"]))
def test_its_gradient_matches_finite_differences(network, cost):
    gates, run = list(md.gates_of(network.model).values()), surrogate(network, cost)
    for gate in gates:  # off the jump where deterministic gates close
        low, high = gate.limits
        gate.phi.data = rng().uniform(low + 0.01, high, gate.count)

    def cost_at(*phis):
        for gate, phi in zip(gates, phis, strict=True):
            gate.phi = phi
        return run()

    leaves = [md.Tensor(gate.phi.data, requires_grad=True) for gate in gates]
    assert md.gradcheck(cost_at, leaves, directions=2)


@pytest.mark.parametrize("noise", [None, "normal"])
def test_closed_gates_are_pushed_further_only_if_stochastic(noise):
    layer = md.gate(dense(4, 3), "outputs", "inputs", noise=noise, rng=rng())
    layer.outputs.phi.data[:2] = -2
    surrogate = md.Surrogate(layer, [4])
    surrogate().backward()
    pushed = [(gate.phi.grad > 0).tolist() for _, gate in layer.gates()]
    assert pushed == [[True] * 4, [bool(noise)] * 2 + [True]]
    before, layer.outputs.frozen, layer.outputs.phi.grad = surrogate().item(), True, None
    surrogate().backward()
    assert layer.outputs.phi.grad is None  # a frozen gate is left alone, and counts
    assert surrogate().item() == before


def test_gates_that_save_nothing_are_counted_by_groups_only():
    rows = Mask(Gate(6, sigma=0.01), md.Groups.along((1, 6, 6), 1))
    conv = md.gate(nn.Conv2d(1, 2, 3, rng=rng()), sigma=0.01)
    model = nn.Sequential(rows=rows, conv=conv)
    with pytest.raises(
        ValueError, match="closing the gate 'rows' saves nothing that cost 'weights'"
    ):
        md.Surrogate(model, (1, 6, 6))
    surrogate = md.Surrogate(model, (1, 6, 6), cost="groups")
    assert surrogate().item() == pytest.approx(8)
    conv.outputs.phi.data[0] = rows.gate.phi.data[2] = -1
    assert surrogate().item() == pytest.approx(6)


def test_costs_without_gates_of_unknown_kinds_and_of_nan():
    assert md.Surrogate(dense(4, 3), (4,))().item() == 12
    with pytest.raises(ValueError, match="cost is 'flops'; expected one of weights, macs"):
        md.Surrogate(dense(4, 3), (4,), cost="flops")()
    layer = Gated(dense(4, 3), outputs=gate_at([1.0, math.nan, 1.0]))
    assert math.isnan(md.Surrogate(layer, (4,))().item())
