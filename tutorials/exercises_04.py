"""Checks of tutorial 4."""

from statistics import NormalDist

import numpy as np
from support import exercise


@exercise(
    "04.quintic",
    hint="t = x / width + 1/2, clipped to 0..1 before the polynomial; at t = 1/2 it is 1/2.",
)
def quintic(answer):
    for width in (0.5, 2.0):
        x = width * np.linspace(-1.5, 1.5, 3001)
        y = answer(x, width)
        assert y is not None, "it returned None."
        y = np.asarray(y)
        assert y.shape == x.shape, f"for x of shape {x.shape} it returned shape {y.shape}."
        assert (y[x <= -width / 2] == 0).all(), "below -width/2 it is not exactly 0."
        assert np.allclose(y[x >= width / 2], 1, atol=1e-12), "above width/2 it is not 1."
        t = np.clip(x / width + 0.5, 0, 1)
        assert not np.allclose(y, 3 * t**2 - 2 * t**3, atol=1e-4), "it is still the cubic."
        expected = 6 * t**5 - 15 * t**4 + 10 * t**3
        assert np.allclose(y, expected, atol=1e-9), (
            f"at x = width / 4 it is {float(y[np.argmin(abs(x - width / 4))]):.4f}, not "
            f"{float(expected[np.argmin(abs(x - width / 4))]):.4f}."
        )


@exercise(
    "04.widest",
    hint="the bound is d (2 F(w/2) - 1), with F the normal distribution function; solve for w.",
)
def widest(answer):
    for d, share in ((1, 0.1), (4, 0.1), (500, 0.01)):
        w = answer(d, share)
        assert w is not None, "it returned None."
        bound = d * (2 * NormalDist().cdf(w / 2) - 1)
        assert bound <= share * (1 + 1e-6), (
            f"with d = {d} and w = {w:.4g} the bound is {bound:.4g}, more than {share}."
        )
        assert bound >= share * (1 - 1e-6), (
            f"with d = {d} and w = {w:.4g} the bound is {bound:.4g}; it may be as much as {share}."
        )


@exercise(
    "04.one_hot",
    hint="subtract from each score the largest of the others: only the winner stays above 0.",
)
def one_hot(answer):
    n = 20_000
    for p in (np.array([0.2, 0.8]), np.array([0.1, 0.2, 0.3, 0.4])):
        x = answer(p, n, np.random.default_rng(0))
        assert x is not None, "it returned None."
        x = np.asarray(x)
        assert x.shape == (n, len(p)), f"it returned shape {x.shape}, not {(n, len(p))}."
        assert (x != 0).all(), "some elements are exactly 0, where the gate is half open."
        opened = (x > 0).sum(axis=1)
        assert (opened == 1).all(), (
            f"{(opened != 1).mean():.0%} of rows open none or several gates, not one."
        )
        for part in (x, x[: n // 2]):  # random, so half of the rows has the same shares
            found = (part > 0).mean(axis=0)
            assert (abs(found - p) < 6 * np.sqrt(p / len(part))).all(), (
                f"for p = {p} gates are open in shares {found.round(3)} of the first "
                f"{len(part):,} rows."
            )
