"""The compiled loops by themselves; test_functional.py compares them with loops in layers."""

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidiff.engine import kernels, ops
from minidiff.engine.kernels import TILE
from tests.checks import equal
from tests.strategies import arrays, dtypes, row_lists

SENTINEL = 77.0  # in rows that a kernel may not touch


def convolution(dtype, samples, stride=(1, 1), ins=6, outs=11):
    """Return the output and the three gradients of a convolution, on the first rows."""
    rng, op = np.random.default_rng(0), ops.Conv2d(stride, (1, 1))
    x, weight, bias = (
        rng.standard_normal(shape).astype(dtype)
        for shape in ((6, 5, 4, samples), (11, 6, 3, 3), (11,))
    )
    op.needs, op.live_in = (True,) * 3, (np.arange(ins), np.arange(outs), np.arange(outs))
    out = op.forward(x, weight, bias)
    return out, *op.backward(rng.standard_normal(out.shape).astype(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_skipping_rows_changes_no_bit_of_others(dtype):
    """Blocks of channels differ in height, and add in one order all the same."""
    whole, *_ = convolution(dtype, TILE + 5)
    for count in range(1, 11):
        out, *_ = convolution(dtype, TILE + 5, outs=count)
        equal(out[:count], whole[:count])


@pytest.mark.skipif(
    numba.config.DISABLE_JIT or numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads"
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
def test_one_and_two_threads_give_the_same_bits(stride, dtype):
    results = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        results.append(convolution(dtype, 301, stride, ins=5, outs=7))
    live = slice(7), slice(5), slice(None), slice(None)
    for one, two, rows in zip(*results, live, strict=True):
        equal(one[rows], two[rows])


@given(st.data(), st.integers(1, 40), st.integers(1, 40), dtypes)
def test_transpose_and_spread_move_what_is_listed(data, count, columns, dtype):
    x = data.draw(arrays((count, columns), dtype=dtype))
    rows, places = data.draw(row_lists(count)), data.draw(row_lists(columns))
    out = np.empty((columns, rows.size), dtype)
    kernels.transpose(x, rows, out)
    equal(out, x[rows].T)
    wide, expected = (np.full((count, columns), SENTINEL, dtype) for _ in range(2))
    kernels.spread(x[:, : places.size].copy(), rows, places, wide)
    expected[rows] = 0
    expected[np.ix_(rows, places)] = x[rows, : places.size]
    equal(wide, expected)


@given(st.data(), st.integers(1, 6), st.integers(1, 40), dtypes)
def test_loops_over_rows_touch_no_others(data, count, columns, dtype):
    x, grad = (data.draw(arrays((count, columns), dtype=dtype)) for _ in range(2))
    x[0, 0] = data.draw(st.sampled_from([0.0, -0.0, np.nan, np.inf]))
    rows, listed = data.draw(row_lists(count)), np.zeros((count, 1), bool)
    listed[rows] = True
    out, grad_x, sums = (np.full(s, SENTINEL, dtype) for s in (x.shape, x.shape, count))
    kernels.relu(x, rows, out)
    kernels.grad_relu(grad, out, rows, grad_x)
    kernels.sum_rows(grad, rows, sums)
    equal(out, np.where(listed, np.maximum(x, 0), SENTINEL))
    equal(grad_x, np.where(listed, np.where(x > 0, grad, 0), SENTINEL))
    expected = np.where(listed[:, 0], grad.sum(axis=1), SENTINEL)
    np.testing.assert_allclose(sums, expected, rtol=1e-4, atol=1e-5)
