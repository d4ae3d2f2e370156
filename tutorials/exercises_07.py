"""Checks of tutorial 7."""

import numpy as np
from support import exercise


@exercise(
    "07.linear",
    hint="make zeros, list z.nonzero()[0], and compute those rows alone; NaN * 0 is NaN.",
)
def linear(answer):
    rng = np.random.default_rng(7)
    x, weight = rng.standard_normal((6, 5)), rng.standard_normal((8, 6))
    bias, z = rng.standard_normal(8), np.array([1, 0, 0.5, 0, 1, 0, 0, 0.25])
    expected = (weight * z[:, None]) @ x + (bias * z)[:, None]
    weight[z == 0], bias[z == 0] = np.nan, np.nan
    found = answer(x, weight, bias, z)
    assert found is not None, "it returned None."
    assert np.shape(found) == (8, 5), f"the output has shape {np.shape(found)}, not (8, 5)."
    assert not np.isnan(found).any(), "there is NaN in it, so something closed was read."
    assert not np.asarray(found)[z == 0].any(), "the output of a closed unit is not 0."
    assert np.allclose(found, expected), (
        "the outputs of open units are wrong; both weight and bias are multiplied by z."
    )


@exercise(
    "07.settled",
    hint="of a constant channel c, weight[:, c].sum() over the kernel times max(constant[c], 0).",
)
def settled(answer):
    rng = np.random.default_rng(8)
    weight, bias = rng.standard_normal((4, 5, 3, 3)), rng.standard_normal(4)
    constant = np.array([np.nan, 0.4, -0.7, np.nan, 1.5])
    before = bias.copy()
    found = answer(weight, bias, constant)
    assert found is not None, "it returned None."
    assert np.array_equal(bias, before), "it changed the biases it was given."
    assert np.shape(found) == (4,), f"it gave shape {np.shape(found)}, not (4,)."
    assert not np.isnan(found).any(), "there is NaN in it: those channels are no constants."
    assert not np.array_equal(found, bias), "it is the old bias; the constants are not in it."
    unrectified = bias + sum(weight[:, c].sum(axis=(1, 2)) * constant[c] for c in (1, 2, 4))
    assert not np.allclose(found, unrectified), "a negative constant does not pass the ReLU."
    expected = bias + sum(weight[:, c].sum(axis=(1, 2)) * constant[c] for c in (1, 4))
    assert np.allclose(found, expected), f"it gave {np.round(found, 3)}, not {expected.round(3)}."


@exercise(
    "07.positions",
    hint="np.cumsum(channels) - 1 numbers kept channels anew; times places, plus the place.",
)
def positions(answer):
    rng = np.random.default_rng(9)
    for places in (1, 4, 9):
        channels = np.array([True, False, True, True, False, True])
        inputs = np.repeat(channels, places) & (rng.random(6 * places) < 0.6)
        inputs[-1] = True
        # What the compact convolution gives: the numbers of the inputs as they were.
        given = np.arange(6 * places).reshape(6, places)[channels].ravel()
        found = answer(channels, inputs, places)
        assert found is not None, "it returned None."
        found = np.asarray(found)
        assert found.shape == (inputs.sum(),), (
            f"it gave {found.size} indices; {inputs.sum()} inputs are kept."
        )
        assert found.max() < len(given), (
            f"index {found.max()} is out of range: {len(given)} numbers are left before it."
        )
        assert np.array_equal(given[found], inputs.nonzero()[0]), "they pick other inputs."
