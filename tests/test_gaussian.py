"""Gaussian stochastic gates, against equations 4 to 6 of the paper."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given

import minidiff as md
from tests.networks import DOUBLE
from tests.strategies import arrays, seeds


def gate_at(phi, seed=0, **options):
    gate = md.GaussianGate(len(phi), rng=np.random.default_rng(seed), **DOUBLE, **options)
    gate.phi.data = phi
    return gate


@given(arrays((6,)), seeds)
def test_values_and_probabilities_are_those_of_the_paper(phi, seed):
    gate, noise = gate_at(phi, seed), np.random.default_rng(seed).standard_normal(6)
    np.testing.assert_allclose(gate().data, np.clip(phi + 0.5 * noise, 0, 1), atol=1e-12)
    opens = [NormalDist().cdf(mean / 0.5) for mean in phi]
    np.testing.assert_allclose(gate.open_probability().data, opens, atol=1e-12)
    np.testing.assert_array_equal(gate.evaluated(), np.clip(phi, 0, 1))
    np.testing.assert_array_equal(gate.eval()().data, gate.evaluated())


def test_gates_are_open_in_training_as_often_as_they_say():
    gate = gate_at(np.repeat([-1.0, -0.3, 0.0, 0.7], 20_000), sigma=0.8)
    found = (gate().data > 0).reshape(4, -1).mean(axis=1)
    np.testing.assert_allclose(found, gate.open_probability().data[::20_000], atol=0.015)


@given(arrays((6,)), seeds)
def test_gradients_are_1_between_and_vanish_where_clipped(phi, seed):
    gate = gate_at(phi, seed)
    z = gate()
    z.backward(np.ones(6))
    np.testing.assert_array_equal(gate.phi.grad, (z.data > 0) & (z.data < 1))

    def probabilities(leaf):
        gate.phi = leaf
        return gate.open_probability()

    assert md.gradcheck(probabilities, [md.Tensor(phi, requires_grad=True)])


def test_settings_out_of_range_are_errors():
    with pytest.raises(ValueError, match="sigma is 0"):
        gate_at(np.zeros(2), sigma=0)
    with pytest.raises(ValueError, match="needs rng"):
        md.GaussianGate(2)
