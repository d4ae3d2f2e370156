"""Checks of tutorial 5."""

import itertools
import math

import numpy as np
from support import exercise

import minidiff as md


@exercise(
    "05.cauchy",
    hint="F((phi + width / 2) / sigma), where the Cauchy distribution has F(t) = 1/2 + arctan(t) / pi.",
)
def cauchy(answer):
    for phi, width, sigma in ((0.0, 1.0, 1.0), (-1.5, 1.0, 0.5), (0.7, 0.2, 2.0)):
        found = answer(phi, width, sigma)
        assert found is not None, "it returned None."
        expected = 0.5 + math.atan2(phi + width / 2, sigma) / math.pi
        assert abs(found - expected) < 1e-6, (
            f"for phi = {phi}, width = {width}, sigma = {sigma} it is "
            f"{float(found):.4f}, not {expected:.4f}."
        )


@exercise(
    "05.square",
    hint="a weight from i to j needs both gates if i and j differ; from i to i, only one.",
)
def square(answer):
    for pi in ([0.5], [0.2, 0.9], [0.1, 0.5, 0.8, 1.0]):
        found = answer(np.array(pi))
        assert found is not None, "it returned None."
        expected = 0.0
        for state in itertools.product((0, 1), repeat=len(pi)):
            chance = math.prod(p if s else 1 - p for p, s in zip(pi, state, strict=True))
            expected += chance * sum(state) ** 2
        assert abs(found - expected) < 1e-9, (
            f"for pi = {pi} it is {float(found):.3f}; all states give {expected:.3f}."
        )


@exercise(
    "05.rests",
    hint="the best weight for each z = g(phi) leaves decay / (2 (z^2 + decay)); add\n"
    "strength * pi(phi), and find the minimum.",
)
def rests(answer):
    phi = np.linspace(-0.4999, 1.5, 40_001)
    z = md.binary_gate(phi, 1.0)
    pi = 0.5 + 0.5 * md.Tensor((phi + 0.5) / math.sqrt(2)).erf().data
    for strength, decay in ((0.05, 0.01), (0.05, 0.05), (0.02, 0.01)):
        found = answer(strength, decay)
        assert found is not None, "it returned None."
        best = np.argmin(decay / (2 * (z**2 + decay)) + strength * pi)
        expected = phi[best]
        assert abs(found - z[best]) > 0.001, "that is the value z of the gate, not its phi."
        assert abs(found - expected) < 0.02, (
            f"for strength {strength} and decay {decay} it is "
            f"{float(found):.2f}, not near {expected:.2f}."
        )
