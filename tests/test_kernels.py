"""The compiled loops against plain ones: on any rows, at any batch, at any number of threads."""

from dataclasses import replace

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidiff.engine import kernels
from minidiff.engine.kernels import LANES, TILE
from tests import naive
from tests.checks import dead, equal
from tests.strategies import Convolution, arrays, convolutions, dtypes, pools, row_lists, seeds

SENTINEL = 77.0  # in rows that a kernel may not touch
JIT = not numba.config.DISABLE_JIT

# Around what kernels keep in registers at once.
BATCHES = [1, LANES - 1, LANES + 1, TILE - 1, TILE, TILE + 1, 2 * TILE + 3][:: 1 if JIT else 2]


# -- position maps ---------------------------------------------------------------------------


@given(convolutions())
def test_both_maps_list_every_tap_once(case):
    size, kernel, (down, right), padding = case.x[1:3], case.weight[2:], case.stride, case.padding
    forward, backward = kernels.position_maps(size, kernel, case.stride, padding)
    shape = tuple(map(naive.places, size, kernel, case.stride, padding))
    assert (forward.shape, backward.shape) == (shape, size)
    expected = []
    for i, j, k, n in np.ndindex(*shape, *kernel):
        y, x = i * down + k - padding[0], j * right + n - padding[1]
        if 0 <= y < size[0] and 0 <= x < size[1]:
            expected.append((i * shape[1] + j, y * size[1] + x, k * kernel[1] + n))
    assert sorted(triples(forward)) == sorted(expected)
    assert sorted((o, i, k) for i, o, k in triples(backward)) == sorted(expected)


def triples(position_map):
    """Yield (target, source, kernel position) of each tap; check that spans follow each other."""
    *spans, end = position_map.spans
    assert [first for first, _, _ in spans] == [0, *np.cumsum([n for _, n, _ in spans])[:-1]]
    for (first, length, tap), (_, _, next_tap) in zip(spans, [*spans[1:], end], strict=True):
        for source, kernel in position_map.taps[tap:next_tap]:
            yield from ((first + i, source + i, kernel) for i in range(length))


# -- correlation and products ----------------------------------------------------------------


class Layer:
    """A convolution by its kernels, on the rows ``ins`` and ``outs``."""

    def __init__(self, x, weight, case, ins, outs):
        self.x, self.weight, self.ins, self.outs, self.samples = x, weight, ins, outs, x.shape[3]
        self.kernel = weight.reshape(*weight.shape[:2], -1)
        self.forward_map, self.backward_map = kernels.position_maps(
            x.shape[1:3], weight.shape[2:], case.stride, case.padding
        )
        self.out_shape = (len(weight), *self.forward_map.shape, self.samples)

    def correlate(self, source, swapped, bias, ins, outs, position_map, shape):
        out = np.full(shape, SENTINEL, source.dtype)
        kernels.correlate(
            source.reshape(len(source), -1), self.kernel, swapped, bias, ins, outs,
            position_map.spans, position_map.taps, self.samples, out.reshape(len(out), -1),
        )  # fmt: skip
        return out

    def forward(self, bias):
        settings = self.ins, self.outs, self.forward_map, self.out_shape
        return self.correlate(self.x, False, bias, *settings)

    def gradients(self, grad):
        """Return the gradients of x, weight and bias."""
        settings = self.outs, self.ins, self.backward_map, self.x.shape
        grad_x = self.correlate(grad, True, np.zeros(len(self.x), grad.dtype), *settings)
        grad_weight, grad_bias = (
            np.full(shape, SENTINEL, grad.dtype) for shape in (self.kernel.shape, len(grad))
        )
        rows = grad.reshape(len(grad), -1)
        kernels.grad_weight(
            self.x.reshape(len(self.x), -1), rows, self.ins, self.outs,
            self.forward_map.spans, self.forward_map.taps, self.samples, grad_weight,
        )  # fmt: skip
        kernels.sum_rows(rows, self.outs, grad_bias)
        return grad_x, grad_weight.reshape(self.weight.shape), grad_bias


def followed_by(rows, others):
    """Return the rows in memory that goes on with others: reading past the end shows."""
    return np.concatenate([rows, np.resize(others, 4 * others.size)])[: rows.size]


def check(seed, case, ins, outs, dtype):
    """Compare with loops; all that must not be read is NaN."""
    rng = np.random.default_rng(seed)
    x, weight, bias = (
        rng.uniform(-1, 1, shape).astype(dtype) for shape in (case.x, case.weight, case.weight[:1])
    )
    dead_in, dead_out = dead(ins, len(x)), dead(outs, len(weight))
    x[dead_in] = weight[dead_out] = bias[dead_out] = np.nan
    weight[:, dead_in] = np.nan
    layer = Layer(x, weight, case, followed_by(ins, dead_in), followed_by(outs, dead_out))
    grad = rng.uniform(-1, 1, layer.out_shape).astype(dtype)
    grad[dead_out] = np.nan
    results = layer.forward(bias), *layer.gradients(grad)

    # The loops get zeros there, and what may not be touched is expected as it was.
    x, weight, bias, clean = map(np.nan_to_num, (x, weight, bias, grad))
    out = naive.conv2d(x, weight, bias, case.stride, case.padding)
    grad_x, grad_weight, grad_bias = naive.grad_conv2d(x, weight, clean, case.stride, case.padding)
    out[dead_out] = grad_weight[dead_out] = grad_bias[dead_out] = SENTINEL
    grad_x[dead_in] = grad_weight[:, dead_in] = SENTINEL
    terms = 54, 54, grad[0].size, grad[0].size  # of a sum, each at most 1, and rounded once
    expected = out, grad_x, grad_weight, grad_bias
    for one, other, count in zip(results, expected, terms, strict=True):
        tolerance = float(np.finfo(dtype).eps) * (9 + count)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


@given(st.data(), convolutions(), st.sampled_from(BATCHES), dtypes, seeds)
def test_convolutions_match_loops_and_touch_no_other_rows(data, case, samples, dtype, seed):
    case = replace(case, x=(*case.x[:3], samples))
    ins, outs = data.draw(row_lists(case.x[0])), data.draw(row_lists(case.weight[0]))
    check(seed, case, ins, outs, dtype)


@pytest.mark.parametrize("samples", [2, 2 * TILE + 2])
@pytest.mark.parametrize("padding", [(3, 0), (0, 3), (3, 3)])
@pytest.mark.parametrize("kernel", [1, 2])
def test_outputs_may_read_padding_only(kernel, padding, samples):
    # Rows of the output are wider than the whole input, which ends the memory.
    size = max(1, kernel - 2 * min(padding))
    case = Convolution((2, size, size, samples), (3, 2, kernel, kernel), (1, 1), padding)
    check(kernel, case, np.arange(2), np.arange(3), np.float64)


def large_layer(dtype, stride, samples):
    rng = np.random.default_rng(0)
    shapes = (6, 5, 4, samples), (11, 6, 3, 3), (11,)
    x, weight, bias = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    case = Convolution(x.shape, weight.shape, stride, (1, 1))
    return Layer(x, weight, case, np.arange(6), np.arange(11)), bias


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_skipping_rows_changes_no_bit_of_others(dtype):
    """Blocks of channels differ in height, and add in one order all the same."""
    layer, bias = large_layer(dtype, (1, 1), TILE + 5)
    whole = layer.forward(bias)
    for count in range(1, 11):
        layer.outs = np.arange(count)
        equal(layer.forward(bias)[:count], whole[:count])


@pytest.mark.skipif(not JIT or numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
def test_one_and_two_threads_give_the_same_bits(stride, dtype):
    layer, bias = large_layer(dtype, stride, 301)
    layer.ins, layer.outs = np.array([0, 1, 3, 4]), np.array([0, 2, 3, 4, 5, 8, 9])
    grad = np.random.default_rng(1).standard_normal(layer.out_shape).astype(dtype)
    results = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        results.append([layer.forward(bias), *layer.gradients(grad)])
    for one, two in zip(*results, strict=True):
        assert one.tobytes() == two.tobytes()


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


# -- pools and ReLU --------------------------------------------------------------------------


@given(st.data(), pools(), dtypes)
def test_max_pools_match_loops_and_touch_no_other_rows(data, case, dtype):
    channels, height, width, samples = case.x
    # Few values, so many are equal: of equals the first must win.
    x = data.draw(arrays(case.x, 0, 4, np.int64)).astype(dtype)
    rows = data.draw(row_lists(channels))
    forward, backward = kernels.position_maps((height, width), case.kernel, case.stride)
    out = np.full((channels, *forward.shape, samples), SENTINEL, dtype)
    grad, grad_x = data.draw(arrays(out.shape, dtype=dtype)), np.full(x.shape, SENTINEL, dtype)
    winner = np.zeros((channels, out[0].size), np.uint8)
    kernels.max_pool(
        x.reshape(channels, -1), rows, forward.spans, forward.taps, samples, False,
        out.reshape(channels, -1), winner,
    )  # fmt: skip
    kernels.grad_max_pool(
        grad.reshape(channels, -1), winner, rows, backward.spans, backward.taps, samples,
        grad_x.reshape(channels, -1),
    )  # fmt: skip
    expected = naive.max_pool2d(x, case.kernel, case.stride)
    expected_x = naive.grad_max_pool2d(x, grad, case.kernel, case.stride)
    expected[dead(rows, channels)] = expected_x[dead(rows, channels)] = SENTINEL
    equal(out, expected)
    np.testing.assert_allclose(grad_x, expected_x, rtol=1e-5, atol=1e-6)


@given(st.data(), st.integers(1, 6), st.integers(1, 9), dtypes)
def test_relu_keeps_nan_and_touches_no_other_rows(data, count, columns, dtype):
    x, grad = (data.draw(arrays((count, columns), dtype=dtype)) for _ in range(2))
    x[0, 0] = data.draw(st.sampled_from([0.0, -0.0, np.nan, np.inf]))
    rows = data.draw(row_lists(count))
    out, grad_x, listed = np.full_like(x, SENTINEL), np.full_like(x, SENTINEL), np.zeros_like(x)
    listed[rows] = 1
    kernels.relu(x, rows, out)
    kernels.grad_relu(grad, out, rows, grad_x)
    equal(out, np.where(listed, np.maximum(x, 0), SENTINEL))
    equal(grad_x, np.where(listed, np.where(x > 0, grad, 0), SENTINEL))
