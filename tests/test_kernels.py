"""The compiled loops against plain ones, channel by channel, at any batch and any threads."""

from collections.abc import Callable, Iterator
from math import erf
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from minidiff.engine import kernels
from minidiff.engine.kernels import LANES, TILE
from tests import naive
from tests.strategies import (
    Convolution,
    Pool,
    actives,
    arrays,
    convolutions,
    dtypes,
    pools,
    seeds,
)

Indices = NDArray[np.int64]
SENTINEL = 77.0

# Around what the kernels keep in registers at once.
BATCHES = (1, 3, LANES - 1, LANES, LANES + 1, TILE - 1, TILE, TILE + 1, 2 * TILE + 3, 1000)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = numba.get_num_threads()
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("needs two threads")
    yield numba.set_num_threads
    numba.set_num_threads(before)


class Run:
    """One convolution by the three kernels, computing only ``ins`` and ``outs``."""

    def __init__(self, x: Any, weight: Any, case: Convolution, ins: Indices, outs: Indices) -> None:
        self.x, self.ins, self.outs, self.samples = x, ins, outs, x.shape[3]
        self.weight = weight.reshape(*weight.shape[:2], -1)
        self.seen, self.seeing = kernels.geometry(
            x.shape[1:3], weight.shape[2:], case.stride, case.padding
        )
        self.out_shape = (len(weight), *self.seen.shape, self.samples)

    def forward(self, bias: Any) -> Any:
        out = np.full(self.out_shape, SENTINEL, self.x.dtype)
        kernels.correlate(
            self.x.reshape(len(self.x), -1), self.weight, False, bias, self.ins, self.outs,
            self.seen.runs, self.seen.parts, self.samples, out.reshape(len(out), -1),
        )  # fmt: skip
        return out

    def grad_input(self, grad: Any) -> Any:
        out = np.full(self.x.shape, SENTINEL, self.x.dtype)
        kernels.correlate(
            grad.reshape(len(grad), -1), self.weight, True, np.zeros(len(out), out.dtype),
            self.outs, self.ins, self.seeing.runs, self.seeing.parts, self.samples,
            out.reshape(len(out), -1),
        )  # fmt: skip
        return out

    def grad_weight(self, grad: Any) -> Any:
        out = np.zeros_like(self.weight)
        kernels.grad_weight(
            self.x.reshape(len(self.x), -1), grad.reshape(len(grad), -1), self.ins, self.outs,
            self.seen.runs, self.seen.parts, self.samples, out,
        )  # fmt: skip
        return out


def check(seed: int, case: Convolution, ins: Indices, outs: Indices, dtype: Any) -> None:
    """Compare with the oracle, NaN in all that must not be read."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, case.x).astype(dtype)
    weight = rng.uniform(-1, 1, case.weight).astype(dtype)
    bias = rng.uniform(-1, 1, len(weight)).astype(dtype)
    dead_in = np.setdiff1d(np.arange(len(x)), ins)
    dead_out = np.setdiff1d(np.arange(len(weight)), outs)
    # Vectors that go on in memory with what must not be touched: reading past the end shows.
    ins = np.concatenate([ins, np.resize(dead_in, 4 * dead_in.size)])[: ins.size]
    outs = np.concatenate([outs, np.resize(dead_out, 4 * dead_out.size)])[: outs.size]
    clean_x, clean_weight = x.copy(), weight.copy()
    clean_x[dead_in] = 0
    clean_weight[dead_out] = 0
    clean_weight[:, dead_in] = 0
    x[dead_in] = np.nan
    weight[dead_out] = np.nan
    weight[:, dead_in] = np.nan

    run = Run(x, weight, case, ins, outs)
    out = run.forward(bias)
    expected = naive.conv2d(clean_x, clean_weight, bias, case.stride, case.padding)
    # An error of rounding for each term of the sum; terms are at most 1.
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(out[outs], expected[outs], rtol=0, atol=eps * (9 + 54))
    assert (out[dead_out] == SENTINEL).all()

    grad = rng.uniform(-1, 1, out.shape).astype(dtype)
    clean_grad = grad.copy()
    clean_grad[dead_out] = 0
    grad[dead_out] = np.nan
    expected_x, expected_weight, expected_bias = naive.grad_conv2d(
        clean_x, clean_weight, clean_grad, case.stride, case.padding
    )
    grad_x = run.grad_input(grad)
    np.testing.assert_allclose(grad_x[ins], expected_x[ins], rtol=0, atol=eps * 60)
    assert (grad_x[dead_in] == SENTINEL).all()

    terms = grad[0].size
    grad_weight = run.grad_weight(grad)
    expected_weight[:, dead_in] = 0
    expected_weight = expected_weight.reshape(grad_weight.shape)
    np.testing.assert_allclose(grad_weight, expected_weight, rtol=0, atol=eps * (9 + terms))
    assert not grad_weight[dead_out].any()
    assert not grad_weight[:, dead_in].any()

    grad_bias = np.full(len(bias), SENTINEL, dtype)
    kernels.sum_rows(grad.reshape(len(grad), -1), outs, grad_bias)
    np.testing.assert_allclose(grad_bias[outs], expected_bias[outs], rtol=0, atol=eps * (9 + terms))
    assert (grad_bias[dead_out] == SENTINEL).all()


@settings(max_examples=60)
@given(st.data(), convolutions(), dtypes, seeds)
def test_convolution_kernels_match_loops_on_any_channels_and_touch_no_others(
    data: st.DataObject, case: Convolution, dtype: Any, seed: int
) -> None:
    ins, outs = data.draw(actives(case.x[0])), data.draw(actives(case.weight[0]))
    check(seed, case, ins, outs, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 2)])
@pytest.mark.parametrize("samples", BATCHES)
def test_convolution_kernels_match_loops_across_tiles(
    samples: int, padding: tuple[int, int], stride: tuple[int, int], dtype: Any
) -> None:
    case = Convolution((3, 3, 4, samples), (7, 3, 2, 2), stride, padding)
    check(samples, case, np.array([0, 2]), np.array([0, 1, 2, 4, 5, 6]), dtype)
    check(samples, case, np.arange(3), np.arange(7), dtype)


@pytest.mark.parametrize("padding", [(3, 0), (0, 3), (3, 3)])
@pytest.mark.parametrize("kernel", [1, 2])
def test_outputs_that_see_nothing_but_padding_are_right(
    kernel: int, padding: tuple[int, int]
) -> None:
    # Rows of the output are wider than the whole input, which ends the memory.
    size = max(1, kernel - 2 * min(padding))
    for samples in (2, 130):
        case = Convolution((2, size, size, samples), (3, 2, kernel, kernel), (1, 1), padding)
        check(kernel, case, np.arange(2), np.arange(3), np.float64)


@pytest.mark.parametrize("ins", [0, 1, 2, 5, 17])
@pytest.mark.parametrize("outs", [0, 1, 3, 4, 6])
def test_dense_kernels_match_loops_for_any_number_of_active_features(ins: int, outs: int) -> None:
    case = Convolution((17, 1, 1, 6), (6, 17, 1, 1), (1, 1), (0, 0))
    check(ins, case, np.arange(17)[:ins], np.arange(6)[6 - outs :], np.float64)


@settings(max_examples=40)
@given(st.data(), pools(), dtypes)
def test_max_pool_kernels_match_loops_on_any_channels_and_touch_no_others(
    data: st.DataObject, case: Pool, dtype: Any
) -> None:
    channels, height, width, samples = case.x
    # Few values, so many are equal: of equals the first must win.
    x = data.draw(arrays(case.x, 0, 4, np.int64)).astype(dtype)
    live = data.draw(actives(channels))
    dead = np.setdiff1d(np.arange(channels), live)
    seen, seeing = kernels.geometry((height, width), case.kernel, case.stride)
    out = np.full((channels, *seen.shape, samples), SENTINEL, dtype)
    winner = np.zeros(out.shape, np.uint8).reshape(channels, -1)
    kernels.max_pool(
        x.reshape(channels, -1), live, seen.runs, seen.parts, samples, False,
        out.reshape(channels, -1), winner,
    )  # fmt: skip
    np.testing.assert_array_equal(out[live], naive.max_pool2d(x, case.kernel, case.stride)[live])
    assert (out[dead] == SENTINEL).all()

    grad = data.draw(arrays(out.shape, dtype=dtype))
    grad_x = np.full(x.shape, SENTINEL, dtype)
    kernels.grad_max_pool(
        grad.reshape(channels, -1), winner, live, seeing.runs, seeing.parts, samples,
        grad_x.reshape(channels, -1),
    )  # fmt: skip
    expected = naive.grad_max_pool2d(x, grad, case.kernel, case.stride)
    np.testing.assert_allclose(grad_x[live], expected[live], rtol=1e-5, atol=1e-6)
    assert (grad_x[dead] == SENTINEL).all()


@settings(max_examples=30)
@given(st.data(), st.integers(1, 6), st.integers(1, 9), dtypes)
def test_scaled_rows_and_their_gradients_match_numpy_and_touch_no_others(
    data: st.DataObject, count: int, columns: int, dtype: Any
) -> None:
    x, grad = (data.draw(arrays((count, columns), dtype=dtype)) for _ in range(2))
    factors = data.draw(arrays((count,), dtype=dtype))
    rows = data.draw(actives(count))
    dead = np.setdiff1d(np.arange(count), rows)
    out, grad_x = np.full_like(x, SENTINEL), np.full_like(x, SENTINEL)
    grad_factors = np.full_like(factors, SENTINEL)
    kernels.scale_rows(x, factors, rows, out)
    kernels.grad_scale_rows(grad, x, factors, rows, grad_x, grad_factors)
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(out[rows], (factors[:, None] * x)[rows], **tolerance)
    np.testing.assert_allclose(grad_x[rows], (factors[:, None] * grad)[rows], **tolerance)
    np.testing.assert_allclose(grad_factors[rows], (grad * x).sum(1)[rows], **tolerance)
    assert (out[dead] == SENTINEL).all()
    assert not grad_x[dead].any()
    assert not grad_factors[dead].any()


@settings(max_examples=30)
@given(st.data(), st.integers(1, 40), st.integers(1, 40), dtypes)
def test_transpose_and_spread_move_what_is_listed(
    data: st.DataObject, count: int, columns: int, dtype: Any
) -> None:
    x = data.draw(arrays((count, columns), dtype=dtype))
    rows, places = data.draw(actives(count)), data.draw(actives(columns))
    out = np.empty((columns, rows.size), dtype)
    kernels.transpose(x, rows, out)
    np.testing.assert_array_equal(out, x[rows].T)

    wide = np.full((count, columns), SENTINEL, dtype)
    kernels.spread(x[:, : places.size].copy(), rows, places, wide)
    expected = np.full_like(wide, SENTINEL)
    expected[rows] = 0
    expected[np.ix_(rows, places)] = x[rows, : places.size]
    np.testing.assert_array_equal(wide, expected)


@settings(max_examples=30)
@given(st.data(), st.integers(1, 6), st.integers(1, 9), dtypes)
def test_rectifiers_match_numpy_keep_nan_and_touch_no_other_rows(
    data: st.DataObject, count: int, columns: int, dtype: Any
) -> None:
    x, grad = (data.draw(arrays((count, columns), dtype=dtype)) for _ in range(2))
    x[0, 0] = data.draw(st.sampled_from([0.0, -0.0, np.nan, np.inf]))
    rows = data.draw(actives(count))
    dead = np.setdiff1d(np.arange(count), rows)
    out, grad_x = np.full_like(x, SENTINEL), np.full_like(x, SENTINEL)
    kernels.relu(x, rows, out)
    kernels.grad_relu(grad, out, rows, grad_x)
    np.testing.assert_array_equal(out[rows], np.maximum(x, 0)[rows])
    np.testing.assert_array_equal(grad_x[rows], np.where(x > 0, grad, 0)[rows])
    assert (out[dead] == SENTINEL).all()
    assert (grad_x[dead] == SENTINEL).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
def test_one_and_two_threads_give_the_same_bits(
    threads: Callable[[int], None], stride: tuple[int, int], dtype: Any
) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((7, 9, 8, 301)).astype(dtype)
    weight = rng.standard_normal((10, 7, 3, 3)).astype(dtype)
    bias = rng.standard_normal(10).astype(dtype)
    ins, outs = np.array([0, 1, 3, 4, 6]), np.array([0, 2, 3, 4, 5, 8, 9])
    case = Convolution(x.shape, weight.shape, stride, (1, 1))
    run = Run(x, weight, case, ins, outs)
    grad = rng.standard_normal(run.out_shape).astype(dtype)
    results = []
    for count in (1, 2):
        threads(count)
        sums = np.zeros(10, dtype)
        kernels.sum_rows(grad.reshape(10, -1), outs, sums)
        moved, velocity = x.reshape(7, -1).copy(), x.reshape(7, -1).copy()
        kernels.sgd(moved, x.reshape(7, -1), velocity, ins, 0.1, 0.9, 1e-4, True)
        scaled, grad_scaled = np.zeros_like(x.reshape(7, -1)), np.zeros_like(x.reshape(7, -1))
        grad_factors = np.zeros(7, dtype)
        kernels.scale_rows(x.reshape(7, -1), bias[:7], ins, scaled)
        kernels.grad_scale_rows(scaled, x.reshape(7, -1), bias[:7], ins, grad_scaled, grad_factors)
        results.append(
            [
                run.forward(bias),
                run.grad_input(grad),
                run.grad_weight(grad),
                sums,
                moved,
                velocity,
                scaled,
                grad_scaled,
                grad_factors,
            ]
        )
    for one, two in zip(*results, strict=True):
        assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_erf_matches_the_standard_library(dtype: Any) -> None:
    x = np.linspace(-6, 6, 101).astype(dtype)
    out = np.empty_like(x)
    kernels.erf(x, out)
    expected = [erf(float(value)) for value in x]
    np.testing.assert_allclose(out, expected, rtol=2 * np.finfo(dtype).eps, atol=0)
