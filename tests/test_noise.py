"""Each noise is drawn from the distribution whose tail it gives."""

import math

import numpy as np
import pytest

import minidiff as md
from minidiff.pruning.noise import NOISES
from tests.networks import gate_at, rng

LAWS = {  # standard deviation, P(noise > -t)
    "normal": (1.0, lambda t: 0.5 * math.erfc(-t / math.sqrt(2))),
    "logistic": (math.pi / math.sqrt(3), lambda t: 1 / (1 + math.exp(-t))),
    "uniform": (1 / math.sqrt(3), lambda t: min(1.0, max(0.0, (1 + t) / 2))),
}


@pytest.mark.parametrize("name", NOISES)
def test_draws_have_the_law_of_the_tail(name):
    deviation, tail = LAWS[name]
    drawn = NOISES[name].draw(rng(), (100, 400))
    assert drawn.mean() == pytest.approx(0, abs=4 * deviation / 200)
    assert drawn.std() == pytest.approx(deviation, rel=0.03)
    for t in (-2.5, -0.9, -0.3, 0.0, 0.6, 1.1):
        p = tail(t)
        assert abs((drawn > -t).mean() - p) <= 4 * math.sqrt(p * (1 - p)) / 200
    phi = np.linspace(-1, 1, 400)  # a gate adds sigma times its noise
    z = gate_at(phi, noise=name, sigma=0.5)()
    np.testing.assert_array_equal(z.data, md.binary_gate(phi + 0.5 * drawn[0]))


@pytest.mark.parametrize("name", NOISES)
def test_the_tail_comes_with_its_derivative(name):
    t = np.linspace(-3.05, 3.05, 100)
    p, density = NOISES[name].tail(t)
    np.testing.assert_allclose(p, [LAWS[name][1](v) for v in t], rtol=0, atol=1e-12)
    below, above = (NOISES[name].tail(t + step)[0] for step in (-1e-6, 1e-6))
    np.testing.assert_allclose(density, (above - below) / 2e-6, atol=1e-8)
    assert {part.dtype.name for part in NOISES[name].tail(t.astype(np.float32))} == {"float32"}
