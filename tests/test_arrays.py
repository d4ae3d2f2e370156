"""Arrays for kernels: aligned, contiguous and writeable, with live rows."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minidiff.engine import arrays
from minidiff.engine.arrays import ALIGNMENT, SMALL
from tests import strategies as own
from tests.checks import dead, equal

LARGE = SMALL // 4 + 1  # float32 numbers


def is_aligned(x):
    return x.ctypes.data % ALIGNMENT == 0


@given(own.shapes, st.sampled_from([np.float32, np.float64, np.uint8, np.bool_]), st.booleans())
def test_new_arrays_are_contiguous_and_large_ones_aligned(shape, dtype, large):
    shape = (LARGE * 4, *shape) if large else shape
    for out in (arrays.empty(shape, dtype), arrays.zeros(shape, dtype)):
        assert (out.shape, out.dtype) == (shape, dtype)
        assert out.flags.carray
        assert is_aligned(out) or not large
    assert not arrays.zeros(shape, dtype).any()


def test_plain_and_aligned_copy_only_what_is_not():
    x = arrays.zeros((LARGE, 2), np.float32)
    x[:] = np.random.default_rng(0).standard_normal(x.shape)
    frozen, crooked = x.copy(), x.ravel()[1:]
    frozen.flags.writeable = False
    assert arrays.plain(x) is arrays.aligned(x) is x
    assert arrays.plain(crooked) is crooked
    assert not is_aligned(crooked)
    for odd in (frozen, x.T, x[:, ::2], crooked):
        for taken in (arrays.plain(odd), arrays.aligned(odd)):
            assert taken.flags.carray
            equal(taken, odd)
        assert is_aligned(taken)


@given(st.data(), own.shapes.filter(len), own.dtypes)
def test_filled_has_zeros_in_dead_rows(data, shape, dtype):
    x, live = data.draw(own.arrays(shape, dtype=dtype)), data.draw(own.row_lists(shape[0]))
    assert arrays.filled(x, None) is x
    equal(arrays.row_list(None, len(x)), np.arange(len(x)))
    assert arrays.row_list(live, len(x)) is live
    x[dead(live, len(x))] = np.nan
    equal(arrays.filled(x, live), np.nan_to_num(x))
    assert arrays.filled(x, live).dtype == dtype
