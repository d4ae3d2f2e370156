"""Oracles: what kernels compute, as loops over positions and channels that hide nothing."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Pair = tuple[int, int]


def places(size: int, kernel: int, stride: int, padding: int = 0) -> int:
    """Count the positions along one axis where a window fits."""
    count, first = 0, -padding
    while first + kernel <= size + padding:
        count, first = count + 1, first + stride
    return count


def conv2d(
    x: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[Any],
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
) -> Array:
    """Cross-correlate (C, H, W, N) with (O, C, KH, KW), in float64."""
    channels, height, width, samples = x.shape
    outs, _, tall, wide = weight.shape
    rows = places(height, tall, stride[0], padding[0])
    columns = places(width, wide, stride[1], padding[1])
    out = np.zeros((outs, rows, columns, samples))
    for o, row, column in np.ndindex(outs, rows, columns):
        out[o, row, column] += bias[o]
        for c, k, j in np.ndindex(channels, tall, wide):
            y, z = row * stride[0] + k - padding[0], column * stride[1] + j - padding[1]
            if 0 <= y < height and 0 <= z < width:
                out[o, row, column] += float(weight[o, c, k, j]) * x[c, y, z].astype(np.float64)
    return out


def grad_conv2d(
    x: NDArray[Any],
    weight: NDArray[Any],
    grad: NDArray[Any],
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
) -> tuple[Array, Array, Array]:
    """Return the gradients of x, weight and bias, given that of the output."""
    channels, height, width, _ = x.shape
    outs, _, tall, wide = weight.shape
    grad = grad.astype(np.float64)
    grad_x, grad_weight, grad_bias = np.zeros(x.shape), np.zeros(weight.shape), np.zeros(outs)
    for o, row, column in np.ndindex(*grad.shape[:3]):
        above = grad[o, row, column]
        grad_bias[o] += above.sum()
        for c, k, j in np.ndindex(channels, tall, wide):
            y, z = row * stride[0] + k - padding[0], column * stride[1] + j - padding[1]
            if 0 <= y < height and 0 <= z < width:
                grad_x[c, y, z] += float(weight[o, c, k, j]) * above
                grad_weight[o, c, k, j] += (above * x[c, y, z]).sum()
    return grad_x, grad_weight, grad_bias


def _windows(shape: tuple[int, ...], kernel: Pair, stride: Pair) -> Any:
    """Yield (index of the output, indices of its window, row by row)."""
    channels, height, width, samples = shape
    rows, columns = places(height, kernel[0], stride[0]), places(width, kernel[1], stride[1])
    for c, row, column, n in np.ndindex(channels, rows, columns, samples):
        window = [
            (c, row * stride[0] + k, column * stride[1] + j, n) for k, j in np.ndindex(*kernel)
        ]
        yield (c, row, column, n), window


def _pooled_shape(shape: tuple[int, ...], kernel: Pair, stride: Pair) -> tuple[int, ...]:
    rows, columns = (places(shape[1 + i], kernel[i], stride[i]) for i in (0, 1))
    return (shape[0], rows, columns, shape[3])


def max_pool2d(x: NDArray[Any], kernel: Pair, stride: Pair) -> NDArray[Any]:
    """Take the largest of each window; NaN if one of them is NaN."""
    out = np.empty(_pooled_shape(x.shape, kernel, stride), x.dtype)
    for at, window in _windows(x.shape, kernel, stride):
        values = [x[place] for place in window]
        out[at] = np.nan if any(np.isnan(values)) else max(values)
    return out


def grad_max_pool2d(
    x: NDArray[Any], grad: NDArray[Any], kernel: Pair, stride: Pair
) -> NDArray[Any]:
    """Hand each gradient to the largest of its window; of equals, to the first."""
    out = np.zeros_like(x)
    for at, window in _windows(x.shape, kernel, stride):
        out[max(window, key=lambda place: x[place])] += grad[at]
    return out


def avg_pool2d(x: NDArray[Any], kernel: Pair, stride: Pair) -> NDArray[Any]:
    """Average each window."""
    out = np.empty(_pooled_shape(x.shape, kernel, stride), x.dtype)
    for at, window in _windows(x.shape, kernel, stride):
        out[at] = sum(float(x[place]) for place in window) / len(window)
    return out


def grad_avg_pool2d(
    x: NDArray[Any], grad: NDArray[Any], kernel: Pair, stride: Pair
) -> NDArray[Any]:
    """Share each gradient among its window."""
    out = np.zeros_like(x)
    for at, window in _windows(x.shape, kernel, stride):
        for place in window:
            out[place] += grad[at] / len(window)
    return out
