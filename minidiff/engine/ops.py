"""Differentiable operations of neural networks, batch last, on compiled kernels.

Activations are (C, H, W, N) or (D, N): channels or features first, the samples of the batch last.
Rows are channels, features, filters or units. The live rows of the inputs (see
:class:`~minidiff.engine.op.Op`) tell the kernels which rows to compute. A dead row is a constant
zero, so the kernels leave dead rows out of every sum, forward and backward.

For each op, ``functional.py`` has a function that checks the arguments.
"""

import math

import numpy as np
from numpy.typing import NDArray

from . import arrays, kernels, sparse
from .arrays import Array, Elements, Indices, filled, matrix, plain, row_list
from .kernels import PositionMap
from .op import Gradients, Op
from .vectors import LANES

# -- layers with weights ---------------------------------------------------------------------


class Weighted(Op):
    """Base of Conv2d and Linear: an input, a weight and a bias, each with live rows.

    An output without weights equals its bias; if the bias is dead too, the output is dead. If a
    weight has few live elements, only these are computed, by the loops of ``sparse.py``.
    """

    skips_dead_rows = True
    sparse_input = 1  # the weight

    def _prepare(self, x: Array, weight: Array, bias: Array) -> Array:
        """Store which rows to compute, and return the bias."""
        live_x, live_weight, live_bias = self.live_in
        self.x, self.weight = arrays.aligned(x), plain(weight)
        self.kernel = self.weight.reshape(*weight.shape[:2], -1)  # (O, I, K)
        self.ins = self.read = row_list(live_x, len(x))  # rows that exist, and rows to sum over
        self.listed: sparse.WeightList | None = None
        if isinstance(live_weight, Elements):
            live_weight = self._list_weights(live_weight)
        self.outs = self.written = row_list(live_weight, len(weight))  # rows to compute
        self.live = live_weight
        # One gate on both gives both the same list. A gate on weights alone leaves biases live.
        if live_weight is not live_bias:
            self.written = row_list(live_bias, len(bias))
            if live_bias is not None:
                self.written = np.union1d(self.outs, live_bias)
            self.live = None if live_weight is None or live_bias is None else self.written
            bias = filled(bias, live_bias)
        return plain(bias)

    def _list_weights(self, elements: Elements) -> Indices:
        """List the live elements that read live rows; return the outputs with live elements."""
        places, shape = elements.places, self.kernel.shape
        rows = places // (shape[1] * shape[2])
        outs: Indices = rows[np.diff(rows, prepend=-1).nonzero()[0]]
        if len(self.ins) < shape[1]:
            is_live = np.zeros(shape[1], np.bool_)
            is_live[self.ins] = True
            places = places[is_live[places // shape[2] % shape[1]]]
        listed = sparse.by_output(places, shape)
        is_read = np.zeros(shape[1], np.bool_)
        is_read[listed.sources] = True
        self.read = is_read.nonzero()[0]
        if sparse.pays(places.size, outs.size * self.read.size * shape[2]):
            self.listed = listed
        else:
            self.weight = filled(self.weight, elements)
            self.kernel = self.weight.reshape(shape)
        return outs

    def _sparse_backward(
        self, grad: Array, forward_map: PositionMap, backward_map: PositionMap
    ) -> Gradients:
        """Return the gradients of the input, of the listed weights, and of the bias."""
        assert self.listed is not None
        _, inputs, kernel = self.kernel.shape
        samples, grad_x, grad_weight = grad.shape[-1], None, None
        if self.needs[0]:
            by_input = sparse.by_input(self.listed, inputs)
            grad_x, no_bias = arrays.empty(self.x.shape, grad.dtype), np.zeros(inputs, grad.dtype)
            sparse.correlate(
                matrix(grad), self.weight.reshape(-1), by_input, no_bias, self.ins,
                backward_map.spans, backward_map.taps, kernel, samples, matrix(grad_x),
            )  # fmt: skip
        if self.needs[1]:
            grad_weight = arrays.empty(self.weight.shape, grad.dtype)
            flat, places = grad_weight.reshape(-1), self.live_in[1].places
            if self.listed.places.size < places.size:  # the others read dead rows
                flat[places] = 0
            sparse.grad_weight(
                matrix(self.x), matrix(grad), self.listed, self.outs, forward_map.spans,
                forward_map.taps, kernel, samples, flat,
            )  # fmt: skip
        return grad_x, grad_weight, self._grad_bias(grad) if self.needs[2] else None

    def _add_constants(self, out: Array, bias: Array) -> Array:
        """Write the bias into the outputs without live weights."""
        if self.written is not self.outs:
            is_constant = np.zeros(len(bias), np.bool_)
            is_constant[self.written] = True
            is_constant[self.outs] = False
            constant = is_constant.nonzero()[0]
            out[constant] = bias[constant].reshape(-1, *[1] * (out.ndim - 1))
        return out

    def _grad_bias(self, grad: Array) -> Array:
        out = np.zeros(len(grad), grad.dtype)
        kernels.sum_rows(matrix(grad), self.written, out)
        return out


class Conv2d(Weighted):
    """Cross-correlation."""

    def __init__(self, stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0)) -> None:
        self.stride, self.padding = stride, padding

    def forward(self, x: Array, weight: Array, bias: Array) -> Array:
        bias = self._prepare(x, weight, bias)
        self.forward_map, self.backward_map = kernels.position_maps(
            x.shape[1:3], weight.shape[2:], self.stride, self.padding
        )
        spans, taps, samples = self.forward_map.spans, self.forward_map.taps, x.shape[3]
        out = arrays.empty((len(weight), *self.forward_map.shape, samples), x.dtype)
        if self.listed:
            sparse.correlate(
                matrix(self.x), self.weight.reshape(-1), self.listed, bias, self.outs, spans, taps,
                self.kernel.shape[2], samples, matrix(out),
            )  # fmt: skip
        else:
            kernels.correlate(
                matrix(self.x), self.kernel, False, bias, self.read, self.outs, spans,
                self.forward_map.runs, samples, matrix(out),
            )  # fmt: skip
        return self._add_constants(out, bias)

    def backward(self, grad: Array) -> Gradients:
        grad, samples = arrays.aligned(grad), grad.shape[3]
        if self.listed:
            return self._sparse_backward(grad, self.forward_map, self.backward_map)
        grad_x = grad_weight = grad_bias = None
        if self.needs[0]:
            spans, runs = self.backward_map.spans, self.backward_map.runs
            grad_x = arrays.empty(self.x.shape, grad.dtype)
            no_bias = np.zeros(len(self.x), grad.dtype)
            kernels.correlate(
                matrix(grad), self.kernel, True, no_bias, self.outs, self.ins, spans, runs,
                samples, matrix(grad_x),
            )  # fmt: skip
        if self.needs[1]:
            spans, taps = self.forward_map.spans, self.forward_map.taps
            # Lists name rows only, so columns of dead inputs must be zero.
            grad_weight = arrays.zeros(self.weight.shape, grad.dtype)
            kernels.grad_weight(
                matrix(self.x), matrix(grad), self.read, self.outs, spans, taps, samples,
                grad_weight.reshape(self.kernel.shape),
            )  # fmt: skip
        if self.needs[2]:
            grad_bias = self._grad_bias(grad)
        return grad_x, grad_weight, grad_bias


class Linear(Weighted):
    """weight @ x + bias[:, None]: a convolution with one position and one tap per feature."""

    def forward(self, x: Array, weight: Array, bias: Array) -> Array:
        bias = self._prepare(x, weight, bias)
        features, samples = x.shape
        out = arrays.empty((len(weight), samples), x.dtype)
        if self.listed:
            sparse.correlate(
                self.x, self.weight.reshape(-1), self.listed, bias, self.outs, POINT.spans,
                POINT.taps, 1, samples, out,
            )  # fmt: skip
        elif samples < LANES and len(self.read) == features:
            # Too few samples to fill a vector, so the inner loop runs over features instead.
            rows, every = np.ascontiguousarray(self.x.T), np.arange(samples)
            kernels.grad_weight(
                rows, self.weight, every, self.outs, POINT.spans, POINT.taps, features,
                out[:, :, None],
            )  # fmt: skip
            out[self.outs] += bias[self.outs, None]
        else:
            _multiply(self.weight, False, bias, self.read, self.outs, self.x, out)
        return self._add_constants(out, bias)

    def backward(self, grad: Array) -> Gradients:
        grad, (features, samples) = arrays.aligned(grad), self.x.shape
        if self.listed:
            return self._sparse_backward(grad, POINT, POINT)
        grad_x = grad_weight = grad_bias = None
        if self.needs[0]:
            grad_x, no_bias = arrays.empty(self.x.shape, grad.dtype), np.zeros(features, grad.dtype)
            _multiply(self.weight, True, no_bias, self.outs, self.ins, grad, grad_x)
        if self.needs[1]:  # grad @ x.T
            every = np.arange(samples)
            rows = arrays.empty((samples, len(self.read)), grad.dtype)
            kernels.transpose(self.x, self.read, rows)
            product = arrays.empty((len(grad), len(self.read)), grad.dtype)
            no_bias = np.zeros(len(grad), grad.dtype)
            _multiply(grad, False, no_bias, every, self.outs, rows, product)
            grad_weight = product
            if len(self.read) < features:
                grad_weight = arrays.empty(self.weight.shape, grad.dtype)
                kernels.spread(product, self.outs, self.read, grad_weight)
        if self.needs[2]:
            grad_bias = self._grad_bias(grad)
        return grad_x, grad_weight, grad_bias


POINT, _ = kernels.position_maps((1, 1), (1, 1), (1, 1))


def _multiply(
    a: Array, swapped: bool, bias: Array, columns: Indices, rows: Indices, b: Array, out: Array
) -> None:
    """Compute ``out = a @ b + bias``, with a.T in place of a if ``swapped``.

    Only the listed columns and rows of a (or of a.T) are used, FEATURES columns at a time.
    """
    weight, part = a[:, :, None], out
    for first in range(0, max(1, columns.size), kernels.FEATURES):
        if first > 0:
            part, bias = arrays.empty(out.shape, out.dtype), np.zeros_like(bias)
        chunk = columns[first : first + kernels.FEATURES]
        kernels.correlate(
            b, weight, swapped, bias, chunk, rows, POINT.spans, POINT.runs, b.shape[1], part
        )
        if first > 0:
            out[rows] += part[rows]


# -- activations -----------------------------------------------------------------------------


class ReLU(Op):
    """max(x, 0)."""

    skips_dead_rows = True

    def forward(self, x: Array) -> Array:
        (self.live,) = self.live_in
        rows = matrix(plain(x))
        self.rows = row_list(self.live, len(rows))
        self.out = arrays.empty(x.shape, x.dtype)
        kernels.relu(rows, self.rows, matrix(self.out))
        return self.out

    def backward(self, grad: Array) -> Gradients:
        grad_x = arrays.empty(grad.shape, grad.dtype)
        kernels.grad_relu(matrix(plain(grad)), matrix(self.out), self.rows, matrix(grad_x))
        return grad_x


class Dropout(Op):
    """x times a mask that is 0 or 1 / (1 - p)."""

    def __init__(self, p: float, rng: np.random.Generator) -> None:
        self.p, self.rng = p, rng

    def forward(self, x: Array) -> Array:
        (self.live,) = self.live_in
        kept = self.rng.random(x.shape, dtype=np.float32) >= self.p
        self.mask = kept * x.dtype.type(1 / (1 - self.p))
        return x * self.mask

    def backward(self, grad: Array) -> Gradients:
        return grad * self.mask


# -- pooling ---------------------------------------------------------------------------------


class MaxPool2d(Op):
    """Maximum of each window, and of 0 with ``relu``. At a tie 0 wins, else the first position."""

    skips_dead_rows = True

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int], relu: bool) -> None:
        self.kernel, self.stride, self.relu = kernel, stride, relu

    def forward(self, x: Array) -> Array:
        (self.live,), self.shape = self.live_in, x.shape
        self.channels = row_list(self.live, len(x))
        forward_map, self.backward_map = kernels.position_maps(
            x.shape[1:3], self.kernel, self.stride
        )
        out = arrays.empty((len(x), *forward_map.shape, x.shape[3]), x.dtype)
        self.winner = arrays.empty(matrix(out).shape, np.uint8)
        kernels.max_pool(
            matrix(plain(x)), self.channels, forward_map.spans, forward_map.taps, x.shape[3],
            self.relu, matrix(out), self.winner,
        )  # fmt: skip
        return out

    def backward(self, grad: Array) -> Gradients:
        grad_x = arrays.empty(self.shape, grad.dtype)
        kernels.grad_max_pool(
            matrix(plain(grad)), self.winner, self.channels, self.backward_map.spans,
            self.backward_map.taps, self.shape[3], matrix(grad_x),
        )  # fmt: skip
        return grad_x


class AvgPool2d(Op):
    """The mean of each window."""

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int]) -> None:
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Array) -> Array:
        (self.live,), self.shape = self.live_in, x.shape
        (tall, wide), (down, right) = self.kernel, self.stride
        rows, columns = map(kernels.windows, x.shape[1:3], self.kernel, self.stride)
        # For each kernel position, the slices of the input that outputs read through it.
        self.inputs = [
            (
                slice(i, i + down * (rows - 1) + 1, down),
                slice(j, j + right * (columns - 1) + 1, right),
            )
            for i in range(tall)
            for j in range(wide)
        ]
        total = np.zeros((len(x), rows, columns, x.shape[3]))  # in float64
        for i, j in self.inputs:
            total += x[:, i, j]
        return np.asarray(total / (tall * wide), x.dtype)

    def backward(self, grad: Array) -> Gradients:
        grad_x, share = np.zeros(self.shape, grad.dtype), grad / grad.dtype.type(len(self.inputs))
        for i, j in self.inputs:
            grad_x[:, i, j] += share
        return grad_x


# -- normalisation ---------------------------------------------------------------------------


class BatchNorm(Op):
    """(x - mean) / sqrt(variance + eps) * weight + bias, with mean and variance of each row."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def forward(self, x: Array, weight: Array, bias: Array) -> Array:
        rows, dtype = matrix(x), x.dtype
        self.mean = rows.mean(axis=1, dtype=np.float64)
        normal = rows - self.mean.astype(dtype)[:, None]
        self.variance = np.square(normal).mean(axis=1, dtype=np.float64)
        self.scale = np.asarray(1 / np.sqrt(self.variance + self.eps), dtype)
        normal *= self.scale[:, None]
        self.normal, self.weight = normal, weight
        return np.asarray(normal * weight[:, None] + bias[:, None]).reshape(x.shape)

    def backward(self, grad: Array) -> Gradients:
        rows, count = matrix(grad), self.normal.shape[1]
        grad_bias = rows.sum(axis=1, dtype=np.float64)
        grad_weight = (rows * self.normal).sum(axis=1, dtype=np.float64)
        # The mean and the variance depend on x too.
        through_mean = np.asarray(grad_bias / count, grad.dtype)[:, None]
        through_variance = np.asarray(grad_weight / count, grad.dtype)[:, None]
        grad_x = rows - through_mean - self.normal * through_variance
        grad_x *= (self.weight * self.scale)[:, None]
        sums = (np.asarray(total, grad.dtype) for total in (grad_weight, grad_bias))
        return grad_x.reshape(grad.shape), *sums


# -- rows ------------------------------------------------------------------------------------


class Flatten(Op):
    """(C, H, W, N) to (C*H*W, N)."""

    skips_dead_rows = True

    def forward(self, x: Array) -> Array:
        self.shape, positions = x.shape, math.prod(x.shape[1:-1])
        (live,) = self.live_in
        if live is not None:
            self.live = (live[:, None] * positions + np.arange(positions)).ravel()
        return x.reshape(positions * len(x), x.shape[-1])

    def backward(self, grad: Array) -> Gradients:
        return grad.reshape(self.shape)


class Select(Op):
    """Some rows, in increasing order."""

    def __init__(self, indices: Indices) -> None:
        self.indices = indices

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        out = arrays.empty((len(self.indices), *x.shape[1:]), x.dtype)
        # Indices are in range, and mode="clip" avoids a buffer.
        return np.take(x, self.indices, axis=0, out=out, mode="clip")

    def backward(self, grad: Array) -> Gradients:
        grad_x = arrays.zeros(self.shape, grad.dtype)
        grad_x[self.indices] = grad
        return grad_x


# -- loss ------------------------------------------------------------------------------------


class CrossEntropy(Op):
    """Mean over the batch of -log softmax(logits)[label], with label smoothing."""

    def __init__(self, labels: NDArray[np.int64], smoothing: float) -> None:
        self.labels, self.smoothing = labels.copy(), smoothing  # the caller may reuse labels

    def forward(self, logits: Array) -> Array:
        # Subtracting the largest logit changes nothing but keeps exp from overflowing.
        shifted = logits - logits.max(axis=0)
        self.softmax = np.exp(shifted)
        total = self.softmax.sum(axis=0, dtype=np.float64)
        self.softmax = np.asarray(self.softmax / total, logits.dtype)
        self.picked = self.labels, np.arange(len(self.labels))
        target = shifted[self.picked]
        if self.smoothing:
            mean = shifted.mean(axis=0, dtype=np.float64)
            target = (1 - self.smoothing) * target + self.smoothing * mean
        return np.asarray((np.log(total) - target).mean(), logits.dtype)

    def backward(self, grad: Array) -> Gradients:
        share = grad / len(self.labels)
        grad_logits: Array = self.softmax * share
        if self.smoothing:
            grad_logits -= share * grad.dtype.type(self.smoothing / len(grad_logits))
        grad_logits[self.picked] -= share * grad.dtype.type(1 - self.smoothing)
        return grad_logits
