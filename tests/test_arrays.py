"""Arrays for kernels: aligned, contiguous and writeable, with live rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidiff.engine import arrays
from minidiff.engine.arrays import ALIGNMENT, SMALL
from tests import strategies as own
from tests.checks import dead

LARGE = SMALL // 4 + 1  # float32 numbers


def is_aligned(x):
    return x.ctypes.data % ALIGNMENT == 0


@given(own.shapes, st.sampled_from([np.float32, np.float64, np.uint8, np.bool_]))
def test_new_arrays_have_the_shape_and_dtype_asked_for(shape, dtype):
    for out in (arrays.empty(shape, dtype), arrays.zeros(shape, dtype)):
        assert (out.shape, out.dtype) == (shape, dtype)
        assert out.flags.c_contiguous
        assert out.flags.writeable
    assert not arrays.zeros(shape, dtype).any()


def test_large_arrays_are_aligned():
    held = [arrays.empty((LARGE + i,), np.float32) for i in range(20)]
    assert all(map(is_aligned, held))
    assert all(is_aligned(arrays.zeros((LARGE, i), np.float64)) for i in range(1, 5))


def test_plain_copies_what_is_read_only_or_strided():
    x = np.arange(12.0).reshape(3, 4)
    assert arrays.plain(x) is x
    frozen = x.copy()
    frozen.flags.writeable = False
    for odd in (frozen, x.T, x[:, ::2]):
        taken = arrays.plain(odd)
        assert taken.flags.c_contiguous
        assert taken.flags.writeable
        np.testing.assert_array_equal(taken, odd)


def test_aligned_copies_what_is_not_aligned():
    x = arrays.zeros((LARGE + 16,), np.float32)
    crooked = x[1:]
    assert arrays.aligned(x) is x
    assert not is_aligned(crooked)
    assert is_aligned(arrays.aligned(crooked))
    np.testing.assert_array_equal(arrays.aligned(crooked), crooked)
    assert arrays.aligned(crooked[:5]).base is not None  # too small to matter
    assert arrays.aligned(x[::2]).flags.c_contiguous


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((), (1, 1)), ((3,), (3, 1)), ((2, 3, 4), (2, 12)), ((0, 3), (0, 3)), ((3, 0), (3, 0))],
)
def test_matrix_keeps_the_rows(shape, rows):
    assert arrays.matrix(np.zeros(shape)).shape == rows


@given(st.data(), own.shapes.filter(len), own.dtypes)
def test_filled_has_zeros_in_dead_rows(data, shape, dtype):
    x = data.draw(own.arrays(shape, dtype=dtype))
    assert arrays.filled(x, None) is x
    live = data.draw(own.row_lists(len(x)))
    x[dead(live, len(x))] = np.nan
    out = arrays.filled(x, live)
    np.testing.assert_array_equal(out, np.nan_to_num(x))
    assert out.dtype == dtype
    assert not np.shares_memory(out, x)


def test_all_rows_are_listed_for_none():
    np.testing.assert_array_equal(arrays.row_list(None, 3), [0, 1, 2])
    np.testing.assert_array_equal(arrays.row_list(np.array([1]), 3), [1])
