"""Hard concrete gates, against equations 10 to 13 of the paper."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minidiff as md
from tests.networks import DOUBLE
from tests.strategies import arrays, seeds

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1


def gate_at(phi, seed=0, **options):
    options = {"rng": np.random.default_rng(seed), **DOUBLE, **options}
    gate = md.HardConcrete(len(phi), **options)
    gate.phi.data = phi
    return gate


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@given(arrays((6,), -6, 6), seeds)
def test_values_and_probabilities_are_those_of_the_paper(phi, seed):
    noise = np.random.default_rng(seed).logistic(size=6)  # log u - log(1 - u)
    gate = gate_at(phi, seed)
    stretched = sigmoid((noise + phi) / BETA) * (ZETA - GAMMA) + GAMMA
    np.testing.assert_allclose(gate().data, np.clip(stretched, 0, 1), atol=1e-12)
    p = sigmoid(phi - BETA * np.log(-GAMMA / ZETA))
    np.testing.assert_allclose(gate.open_probability().data, p, atol=1e-12)
    expected = np.clip(sigmoid(phi) * (ZETA - GAMMA) + GAMMA, 0, 1)
    np.testing.assert_allclose(gate.evaluated(), expected, atol=1e-12)
    np.testing.assert_array_equal(gate.eval()().data, gate.evaluated())


def test_gates_are_open_in_training_as_often_as_they_say():
    phi = np.repeat([-1.0, -0.3, 0.0, 0.7], 20_000)
    gate = gate_at(phi, beta=0.5, gamma=-0.2, zeta=1.3)
    found = (gate().data > 0).reshape(4, -1).mean(axis=1)
    np.testing.assert_allclose(found, gate.open_probability().data[::20_000], atol=0.015)


@settings(max_examples=20)
@given(st.lists(st.floats(-1.8, 1.8), min_size=6, max_size=6).map(np.array), seeds)
def test_gradients_match_finite_differences_and_vanish_where_clipped(phi, seed):
    def values(leaf):
        gate = gate_at(phi, seed)  # the same noise at each call
        gate.phi = leaf
        return gate()

    def probabilities(leaf):
        gate = gate_at(phi, seed)
        gate.phi = leaf
        return gate.open_probability()

    for function in (values, probabilities):
        assert md.gradcheck(function, [md.Tensor(phi, requires_grad=True)], tolerance=1e-4)
    leaf = md.Tensor(phi, requires_grad=True)
    z = values(leaf)
    z.sum().backward()
    np.testing.assert_array_equal(leaf.grad == 0, (z.data == 0) | (z.data == 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta is 0"),
        ({"gamma": 0.1}, "gamma is 0.1"),
        ({"zeta": 1.0}, "zeta 1.0"),
        ({"rng": None}, "needs rng"),
    ],
)
def test_settings_out_of_range_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        gate_at(np.zeros(2), **options)
