"""Gaussian stochastic gates, against equations 4 to 6 of the paper."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given

import minidiff as md
from tests.networks import gate_at, rng
from tests.strategies import arrays, seeds


@given(arrays((6,)), seeds)
def test_values_and_probabilities_are_those_of_the_paper(phi, seed):
    gate, noise = gate_at(phi, md.GaussianGate, seed), rng(seed).standard_normal(6)
    z, p = gate(), gate.open_probability()
    np.testing.assert_allclose(z.data, np.clip(phi + 0.5 * noise, 0, 1), atol=1e-12)
    laws = [NormalDist(mean, 0.5) for mean in phi]
    np.testing.assert_allclose(p.data, [1 - law.cdf(0) for law in laws], atol=1e-12)
    (z + p).backward(np.ones(6))
    inside = (z.data > 0) & (z.data < 1)  # where it is clipped, the slope of z is 0
    np.testing.assert_allclose(gate.phi.grad, inside + [law.pdf(0) for law in laws], atol=1e-12)
    np.testing.assert_array_equal(gate.evaluated(), np.clip(phi, 0, 1))
    np.testing.assert_array_equal(gate.eval()().data, gate.evaluated())


def test_settings_out_of_range_are_errors():
    with pytest.raises(ValueError, match="sigma is 0"):
        md.GaussianGate(2, sigma=0, rng=rng())
    with pytest.raises(ValueError, match="needs rng"):
        md.GaussianGate(2)
