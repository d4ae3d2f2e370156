"""Hard concrete gates, against equations 10 to 13 of the paper."""

import numpy as np
import pytest
from hypothesis import given, settings

import minidiff as md
from tests.networks import gate_at, rng
from tests.strategies import arrays, seeds

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@given(arrays((6,), -6, 6), seeds)
def test_values_and_probabilities_are_those_of_the_paper(phi, seed):
    gate, noise = gate_at(phi, md.HardConcrete, seed), rng(seed).logistic(size=6)
    stretched = sigmoid((noise + phi) / BETA) * (ZETA - GAMMA) + GAMMA
    np.testing.assert_allclose(gate().data, np.clip(stretched, 0, 1), atol=1e-12)
    p = sigmoid(phi - BETA * np.log(-GAMMA / ZETA))
    np.testing.assert_allclose(gate.open_probability().data, p, atol=1e-12)
    expected = np.clip(sigmoid(phi) * (ZETA - GAMMA) + GAMMA, 0, 1)
    np.testing.assert_allclose(gate.evaluated(), expected, atol=1e-12)
    np.testing.assert_array_equal(gate.eval()().data, gate.evaluated())


@settings(max_examples=20)
@given(arrays((6,)), seeds)
def test_gradients_match_finite_differences_and_vanish_where_clipped(phi, seed):
    def run(leaf):
        gate = gate_at(phi, md.HardConcrete, seed)  # the same noise at each call
        gate.phi = leaf
        return gate() + 2 * gate.open_probability()

    leaf = md.Tensor(phi, requires_grad=True)
    assert md.gradcheck(run, [leaf], tolerance=1e-4)
    gate = gate_at(phi, md.HardConcrete, seed)
    z = gate()
    z.sum().backward()
    np.testing.assert_array_equal(gate.phi.grad == 0, (z.data == 0) | (z.data == 1))


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
        md.HardConcrete(2, **({"rng": rng()} | options))
