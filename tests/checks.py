"""What several tests make and compare."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidiff import Tensor

equal = np.testing.assert_array_equal


def leaf(values: Any, live: NDArray[np.int64] | None = None) -> Tensor:
    """A copy of the values that requires a gradient; in float64 if they are no array of floats."""
    array = np.array(values)
    tensor = Tensor(array if array.dtype.kind == "f" else array.astype(float), requires_grad=True)
    tensor.live = live
    return tensor


def close(result: Any, expected: Any) -> None:
    """Compare to the rounding of sums of some hundred numbers near 1."""
    assert result.shape == np.shape(expected)
    tolerance = 1e-4 if result.dtype == np.float32 else 1e-11
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


def dead(live: NDArray[np.int64] | None, count: int) -> NDArray[np.int64]:
    """The rows that are not live."""
    return np.setdiff1d(np.arange(count), np.arange(count) if live is None else live)
