"""Each noise is drawn from the distribution whose tail it gives."""

import math

import numpy as np
import pytest

import minidiff as md
from minidiff.pruning.noise import NOISES

LAWS = {  # standard deviation, P(noise > -t)
    "normal": (1.0, lambda t: 0.5 * math.erfc(-t / math.sqrt(2))),
    "logistic": (math.pi / math.sqrt(3), lambda t: 1 / (1 + math.exp(-t))),
    "uniform": (1 / math.sqrt(3), lambda t: min(1.0, max(0.0, (1 + t) / 2))),
}


def test_each_noise_has_a_law_here():
    assert NOISES.keys() == LAWS.keys()


@pytest.mark.parametrize("name", LAWS)
def test_draws_have_the_law_of_the_tail(name):
    deviation, tail = LAWS[name]
    drawn = NOISES[name].draw(np.random.default_rng(0), (100, 400))
    assert drawn.mean() == pytest.approx(0, abs=4 * deviation / 200)
    assert drawn.std() == pytest.approx(deviation, rel=0.03)
    for t in (-2.5, -0.9, -0.3, 0.0, 0.6, 1.1):
        p = tail(t)
        assert abs((drawn > -t).mean() - p) <= 4 * math.sqrt(p * (1 - p)) / 200


@pytest.mark.parametrize("name", LAWS)
def test_the_tail_is_its_formula_and_comes_with_its_derivative(name):
    t = np.linspace(-3.05, 3.05, 100)
    p, density = NOISES[name].tail(t)
    np.testing.assert_allclose(p, [LAWS[name][1](v) for v in t], rtol=0, atol=1e-12)
    around = [NOISES[name].tail(t + step)[0] for step in (-1e-6, 1e-6)]
    np.testing.assert_allclose(density, (around[1] - around[0]) / 2e-6, atol=1e-8)
    narrow = NOISES[name].tail(t.astype(np.float32))
    assert {part.dtype for part in narrow} == {np.dtype(np.float32)}
    np.testing.assert_allclose(narrow[0], p, atol=1e-6)


@pytest.mark.parametrize("name", LAWS)
def test_a_gate_adds_sigma_times_its_noise_to_phi(name):
    gate = md.Gate(40, noise=name, sigma=0.5, rng=np.random.default_rng(0), dtype=np.float64)
    gate.phi.data = np.linspace(-1, 1, 40)
    noise = NOISES[name].draw(np.random.default_rng(0), (40,))
    np.testing.assert_array_equal(gate().data, md.binary_gate(gate.phi.data + 0.5 * noise))
