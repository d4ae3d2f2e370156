"""Checks of tutorial 7."""

import numpy as np
from support import exercise

SELECT = ("take", "compress", "delete", "reshape", "transpose", "shape", "zeros_like", "empty_like")


class Guarded(np.lib.mixins.NDArrayOperatorsMixin):
    """An array that may be indexed, but refuses to be read where it is NaN."""

    def __init__(self, plain):
        self.plain = plain

    def __len__(self):
        return len(self.plain)

    def __getitem__(self, index):
        return guard(self.plain[index])

    def __setitem__(self, index, values):
        raise AssertionError("it changes the weights or biases that it is given.")

    def __getattr__(self, name):
        if name.startswith("__"):  # the interfaces by which NumPy would take the memory
            raise AttributeError(name)
        value = getattr(self.plain, name)
        return (lambda *a, **k: self._call(value, a, k)) if callable(value) else guard(value)

    def __array__(self, *_, **__):
        raise AssertionError("NumPy takes the whole array, closed units too: index it first.")

    def __array_function__(self, function, types, arguments, options):
        return self._call(function, arguments, options)

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        return self._call(getattr(ufunc, method), inputs, options, ufunc.__name__)

    def _call(self, function, inputs, options, name=None):
        name, where = name or function.__name__, options.get("where", True)
        for a in (self, *inputs, *options.values()):
            if isinstance(a, Guarded) and name not in SELECT:
                is_read = np.isnan(a.plain) & where
                assert not is_read.any(), f"{name} reads weights or biases of closed units."
        options = {key: bare(value) for key, value in options.items()}
        return guard(function(*map(bare, inputs), **options))


def guard(value):
    return Guarded(value) if isinstance(value, np.ndarray) and np.isnan(value).any() else value


def bare(value):
    return value.plain if isinstance(value, Guarded) else value


@exercise(
    "07.linear",
    hint="start from zeros, and compute only the rows z.nonzero()[0]: take weight[live].",
)
def linear(answer):
    rng = np.random.default_rng(7)
    x, weight = rng.standard_normal((6, 5)), rng.standard_normal((8, 6))
    bias, z = rng.standard_normal(8), np.array([1, 0, 0.5, 0, 1, 0, 0, 0.25])
    expected = (weight * z[:, None]) @ x + (bias * z)[:, None]
    weight[z == 0], bias[z == 0] = np.nan, np.nan
    found = answer(x, Guarded(weight), Guarded(bias), z)
    assert found is not None, "it returned None."
    found = np.asarray(found)
    assert found.shape == (8, 5), f"the output has shape {found.shape}, not (8, 5)."
    assert not np.isnan(found).any(), "there is NaN in it, so something closed was read."
    assert not found[z == 0].any(), "the output of a closed unit is not 0."
    assert np.allclose(found, expected), (
        "the outputs of open units are wrong; both weight and bias are multiplied by z."
    )


@exercise(
    "07.folded",
    hint="a constant channel c adds max(constant[c], 0) times weight[:, c], summed over the kernel.",
)
def folded(answer):
    rng = np.random.default_rng(8)
    weight, bias = rng.standard_normal((4, 5, 3, 3)), rng.standard_normal(4)
    constant = np.array([np.nan, 0.4, -0.7, np.nan, 1.5])
    before = bias.copy()
    found = answer(weight, bias, constant)
    assert found is not None, "it returned None."
    assert np.array_equal(bias, before), "it changed the biases it was given."
    assert np.shape(found) == (4,), f"it returned shape {np.shape(found)}, not (4,)."
    assert not np.isnan(found).any(), "there is NaN in it: those channels are not constant."
    assert not np.array_equal(found, bias), "it is the old bias; the constants are not in it."
    without_relu = bias + sum(weight[:, c].sum(axis=(1, 2)) * constant[c] for c in (1, 2, 4))
    assert not np.allclose(found, without_relu), "a negative constant does not pass the ReLU."
    expected = bias + sum(weight[:, c].sum(axis=(1, 2)) * constant[c] for c in (1, 4))
    assert np.allclose(found, expected), (
        f"it returned {np.round(found, 3)}, not {expected.round(3)}."
    )


@exercise(
    "07.selected",
    hint="np.cumsum(channels) - 1 is the new number of each kept channel; multiply by positions,\n"
    "and add the position.",
)
def selected(answer):
    rng = np.random.default_rng(9)
    for positions in (1, 4, 9):
        channels = np.array([True, False, True, True, False, True])
        inputs = np.repeat(channels, positions) & (rng.random(6 * positions) < 0.6)
        inputs[-1] = True
        # The output of the compact convolution: here, each number is its old index.
        given = np.arange(6 * positions).reshape(6, positions)[channels].ravel()
        found = answer(channels, inputs, positions)
        assert found is not None, "it returned None."
        found = np.asarray(found)
        assert found.shape == (inputs.sum(),), (
            f"it returned {found.size} indices; {inputs.sum()} inputs are kept."
        )
        for index in found[(found < 0) | (found >= len(given))][:1]:
            raise AssertionError(
                f"index {index} is out of range; the convolution has {len(given)} outputs left."
            )
        assert np.array_equal(given[found], inputs.nonzero()[0]), "they select other inputs."
