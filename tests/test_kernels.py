"""The compiled loops by themselves; test_functional.py compares layers with plain loops."""

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidiff import functional as F
from minidiff import nn, optim
from minidiff.engine import kernels
from minidiff.engine.kernels import TILE
from tests.checks import equal, leaf
from tests.strategies import arrays, dtypes, row_lists

SENTINEL = 77.0  # in rows that a kernel may not touch


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_skipping_rows_changes_no_bit_of_others(dtype):
    """Blocks of channels differ in height, and add in one order all the same."""
    rng = np.random.default_rng(0)
    shapes = (6, 5, 4, TILE + 5), (11, 6, 3, 3), (11, 120), (11,)
    x, weight, dense, bias = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    for function, inputs, values in (
        (F.conv2d, x, weight),
        (F.linear, x.reshape(120, -1), dense),
    ):
        whole = function(inputs, values, bias).data
        for count in range(1, 11):
            live = np.arange(11 - count, 11)
            out = function(inputs, leaf(values, live), leaf(bias, live))
            equal(out.data[live], whole[live])


@pytest.mark.skipif(
    numba.config.DISABLE_JIT or numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads"
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("stride", [1, 2])
def test_one_and_two_threads_train_to_the_same_bits(stride, dtype):
    results = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        rng = np.random.default_rng(0)
        convs = [nn.Conv2d(n, 7, 3, stride=stride, rng=rng, dtype=dtype) for n in (3, 7)]
        model = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.MaxPool2d(2, stride=1, relu=True))
        features = int(np.prod(model.output_shape((3, 12, 11))))
        model = nn.Sequential(model, nn.Flatten(), nn.Linear(features, 9, rng=rng, dtype=dtype))
        x, labels = rng.standard_normal((3, 12, 11, 301)).astype(dtype), rng.integers(0, 9, 301)
        for make in (lambda w: optim.SGD(w, momentum=0.9, weight_decay=0.1), optim.Adam):
            F.cross_entropy(model(x), labels).backward()
            make(model.parameters()).step()
        results.append(model.state_dict())
    for name, array in results[0].items():
        equal(array, results[1][name])


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
