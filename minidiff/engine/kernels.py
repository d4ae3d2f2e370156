"""Every compiled loop of the engine: arrays and index vectors in, arrays out.

**Batch last.** Activations are stored as (C, H, W, N): the samples of a batch are neighbours in
memory. One channel at one place is a contiguous run of N numbers, and so is a row of W places, of
W*N numbers. Every inner loop below walks such a run, so it vectorises for any number of channels,
and to leave out a channel is to leave out a slab of memory that is never touched.

**One equation.** A convolution and a dense layer are the same sum. Write the input as flat
memory, call each pair (input channel, place in the kernel) a *tap*, and let ``offsets[t]`` say
how far tap t lies from the first one. Then, for a run r of output places that starts at
``starts[r]``,

    out[o, r, s] = bias[o] + sum_t weight[o, t] * x[starts[r] + offsets[t] + s]

Height, width, kernel size and stride live in those two vectors (:func:`window`), and a dense
layer has a single run and a tap per feature. The three kernels below are this sum and its two
derivatives.

**Four by four.** One step multiplies a 4x4 block of weights into four runs of input and adds to
four runs of output: 16 multiply-adds for 8 loads and 4 stores, near what a core can do. The
four output runs lie in one small buffer at distances known to the compiler, as it must prove that
they do not overlap; the distance is no power of two, as such addresses compete for the same
places in the cache.

**Skipping is data.** ``outs`` and ``ins`` list the channels to compute. Channels not listed
cost nothing. Threads share out outputs, never the terms of a sum: the same bits at any number of
threads.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import erf as _erf
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from ._types import Array, Indices

# Threads that wait for others do so in a busy loop, but soon fall asleep: to wait for long would
# make a step ten times slower wherever a machine has other work too. GNU's OpenMP reads this when
# the first parallel kernel starts.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Sums may be reordered; NaN and infinity keep their meaning (unlike under full fastmath).
FASTMATH = {"reassoc", "contract", "arcp", "nsz"}

SEGMENT = 512  # numbers of a run in work at once: what fits the nearest cache
STRIDE = SEGMENT + 16  # between the four buffered runs


@dataclass(frozen=True)
class Window:
    """Where a kernel touches its (padded) input, as offsets into memory; see the module's text.

    Attributes
    ----------
    out_shape : (int, int)
        Height and width of the output.
    run : int
        Length of a contiguous run of output, in numbers.
    starts : (R,) int64
        Where the input of each run begins within a channel.
    shifts : (K,) int64
        How far each of the kernel's K places lies from its first.
    strips : (S + 1, 2) int64
        For the input gradient: the first place of each strip of neighbouring input places in a
        row, and the first of its contributions; last, where both end.
    contributions : (P, 4) int64
        Where in its strip a contribution begins, at which output place, how many places it spans,
        and through which place of the kernel.
    """

    out_shape: tuple[int, int]
    run: int
    starts: Indices
    shifts: Indices
    strips: Indices
    contributions: Indices


@lru_cache(maxsize=256)
def window(
    height: int, width: int, samples: int, kernel: tuple[int, int], stride: tuple[int, int]
) -> Window:
    """Describe a kernel that moves over ``height`` x ``width`` places of ``samples`` numbers."""
    rows = np.arange(0, height - kernel[0] + 1, stride[0]) * width
    columns = np.arange(0, width - kernel[1] + 1, stride[1])
    shifts = np.arange(kernel[0])[:, None] * width + np.arange(kernel[1])
    if stride[1] == 1:  # a whole output row is one run
        starts, run = rows, len(columns) * samples
    else:
        starts, run = (rows[:, None] + columns).ravel(), samples
    strips, contributions = _strips(height, width, samples, kernel, stride)
    return Window(
        out_shape=(len(rows), len(columns)),
        run=run,
        starts=starts * samples,
        shifts=shifts.ravel() * samples,
        strips=strips,
        contributions=contributions,
    )


def _strips(
    height: int, width: int, samples: int, kernel: tuple[int, int], stride: tuple[int, int]
) -> tuple[Indices, Indices]:
    """List what contributes to the gradient of each strip of input; see :class:`Window`."""
    rows = (height - kernel[0]) // stride[0] + 1
    columns = (width - kernel[1]) // stride[1] + 1
    wide = max(1, SEGMENT // samples)  # as many places as the buffer holds
    strips: list[tuple[int, int]] = []
    parts: list[tuple[int, int, int, int]] = []
    for row, left in product(range(height), range(0, width, wide)):
        right = min(left + wide, width)
        strips.append((row * width + left, len(parts)))
        for k, n in product(range(kernel[0]), range(kernel[1])):
            i, between = divmod(row - k, stride[0])
            if between or not 0 <= i < rows:
                continue
            # Output columns j whose place n of the kernel falls on left <= j * stride + n < right.
            first = max(0, -((n - left) // stride[1]))
            end = min(columns, (right - 1 - n) // stride[1] + 1)
            together = max(0, end - first) if stride[1] == 1 else 1
            for j in range(first, end, max(1, together)):
                at = j * stride[1] + n - left
                parts.append((at, i * columns + j, together, k * kernel[1] + n))
    strips.append((height * width, len(parts)))
    return np.array(strips, np.int64), np.array(parts, np.int64).reshape(-1, 4)


@njit(fastmath=FASTMATH, cache=True, inline="always")
def _add_block(y, m, x0, x1, x2, x3, w0, w1, w2, w3):  # type: ignore[no-untyped-def]
    """Add to four buffered runs of length m: y[i] += sum_j w_i[j] * x_j."""
    a0, b0, c0, d0 = w0
    a1, b1, c1, d1 = w1
    a2, b2, c2, d2 = w2
    a3, b3, c3, d3 = w3
    for s in range(m):
        a, b, c, d = x0[s], x1[s], x2[s], x3[s]
        y[s] += a0 * a + b0 * b + c0 * c + d0 * d
        y[STRIDE + s] += a1 * a + b1 * b + c1 * c + d1 * d
        y[2 * STRIDE + s] += a2 * a + b2 * b + c2 * c + d2 * d
        y[3 * STRIDE + s] += a3 * a + b3 * b + c3 * c + d3 * d


@njit(fastmath=FASTMATH, cache=True, inline="always")
def _add_run(y, m, x, w0, w1, w2, w3):  # type: ignore[no-untyped-def]
    """Add to four buffered runs of length m: y[i] += w_i * x."""
    for s in range(m):
        a = x[s]
        y[s] += w0 * a
        y[STRIDE + s] += w1 * a
        y[2 * STRIDE + s] += w2 * a
        y[3 * STRIDE + s] += w3 * a


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def forward(
    x: Array,  # flat
    weight: Array,  # (O, T)
    bias: Array,  # (O,)
    taps: Indices,  # the columns of weight to use, and of each
    offsets: Indices,  # the offset
    outs: Indices,
    starts: Indices,
    run: int,
    out: Array,  # (O, R * run); rows not in outs are left alone
) -> None:
    """Compute ``out[o, r, s] = bias[o] + sum_t weight[o, t] * x[starts[r] + offsets[t] + s]``."""
    segments = (run + SEGMENT - 1) // SEGMENT
    whole = taps.size - taps.size % 4
    for task in prange((outs.size + 3) // 4 * starts.size * segments):
        first = task // (starts.size * segments) * 4
        r = task // segments % starts.size
        s0 = task % segments * SEGMENT
        m = min(SEGMENT, run - s0)
        last = min(first + 3, outs.size - 1)  # a block that is not full computes its last row again
        o0, o1 = outs[first], outs[min(first + 1, last)]
        o2, o3 = outs[min(first + 2, last)], outs[last]
        w0, w1, w2, w3 = weight[o0], weight[o1], weight[o2], weight[o3]
        y = np.empty(4 * STRIDE, x.dtype)
        y[:m] = bias[o0]
        y[STRIDE : STRIDE + m] = bias[o1]
        y[2 * STRIDE : 2 * STRIDE + m] = bias[o2]
        y[3 * STRIDE : 3 * STRIDE + m] = bias[o3]
        base = starts[r] + s0
        for t in range(0, whole, 4):
            i, j, k, n = taps[t], taps[t + 1], taps[t + 2], taps[t + 3]
            _add_block(
                y,
                m,
                x[base + offsets[t] : base + offsets[t] + m],
                x[base + offsets[t + 1] : base + offsets[t + 1] + m],
                x[base + offsets[t + 2] : base + offsets[t + 2] + m],
                x[base + offsets[t + 3] : base + offsets[t + 3] + m],
                (w0[i], w0[j], w0[k], w0[n]),
                (w1[i], w1[j], w1[k], w1[n]),
                (w2[i], w2[j], w2[k], w2[n]),
                (w3[i], w3[j], w3[k], w3[n]),
            )
        for t in range(whole, taps.size):
            i = taps[t]
            _add_run(y, m, x[base + offsets[t] :], w0[i], w1[i], w2[i], w3[i])
        for b in range(first, last + 1):
            begin = r * run + s0
            out[outs[b], begin : begin + m] = y[(b - first) * STRIDE : (b - first) * STRIDE + m]


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def grad_input(
    grad: Array,  # (O, output places * samples)
    weight: Array,  # (O, C * K)
    ins: Indices,
    outs: Indices,
    kernel_size: int,  # K
    samples: int,
    strips: Indices,
    contributions: Indices,
    out: Array,  # (C, input places * samples); rows not in ins are left alone
) -> None:
    """Compute the derivative of the sum in :func:`forward` with respect to x.

    A strip of input, for four channels at once, is gathered in the buffer: no two tasks write to
    the same place.
    """
    segments = (samples + SEGMENT - 1) // SEGMENT  # above 1 only if a strip is a single place
    count = len(strips) - 1
    whole = outs.size - outs.size % 4
    for task in prange((ins.size + 3) // 4 * count * segments):
        first = task // (count * segments) * 4
        strip = task // segments % count
        s0 = task % segments * SEGMENT
        last = min(first + 3, ins.size - 1)
        c0, c1 = ins[first] * kernel_size, ins[min(first + 1, last)] * kernel_size
        c2, c3 = ins[min(first + 2, last)] * kernel_size, ins[last] * kernel_size
        y = np.zeros(4 * STRIDE, grad.dtype)
        for p in range(strips[strip, 1], strips[strip + 1, 1]):
            at, source, places, k = contributions[p]
            m = min(SEGMENT, places * samples - s0)
            begin = source * samples + s0
            end = begin + m
            z = y[at * samples :]
            i0, i1, i2, i3 = c0 + k, c1 + k, c2 + k, c3 + k
            for b in range(0, whole, 4):
                o0, o1, o2, o3 = outs[b], outs[b + 1], outs[b + 2], outs[b + 3]
                w0, w1, w2, w3 = weight[o0], weight[o1], weight[o2], weight[o3]
                _add_block(
                    z,
                    m,
                    grad[o0, begin:end],
                    grad[o1, begin:end],
                    grad[o2, begin:end],
                    grad[o3, begin:end],
                    (w0[i0], w1[i0], w2[i0], w3[i0]),
                    (w0[i1], w1[i1], w2[i1], w3[i1]),
                    (w0[i2], w1[i2], w2[i2], w3[i2]),
                    (w0[i3], w1[i3], w2[i3], w3[i3]),
                )
            for b in range(whole, outs.size):
                w = weight[outs[b]]
                _add_run(z, m, grad[outs[b], begin:end], w[i0], w[i1], w[i2], w[i3])
        begin = strips[strip, 0] * samples + s0
        end = min(strips[strip + 1, 0] * samples, begin + SEGMENT)
        for b in range(first, last + 1):
            out[ins[b], begin:end] = y[(b - first) * STRIDE : (b - first) * STRIDE + end - begin]


@njit(fastmath=FASTMATH, cache=True, inline="always")
def _dot_block(g0, g1, g2, g3, x0, x1, x2, x3):  # type: ignore[no-untyped-def]
    """Return the sixteen sums of products of two times four runs."""
    zero = g0.dtype.type(0)
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = zero
    c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = zero
    for s in range(g0.size):
        a, b, c, d = x0[s], x1[s], x2[s], x3[s]
        p, q, r, t = g0[s], g1[s], g2[s], g3[s]
        a0 += p * a
        b0 += p * b
        c0 += p * c
        d0 += p * d
        a1 += q * a
        b1 += q * b
        c1 += q * c
        d1 += q * d
        a2 += r * a
        b2 += r * b
        c2 += r * c
        d2 += r * d
        a3 += t * a
        b3 += t * b
        c3 += t * c
        d3 += t * d
    return (a0, b0, c0, d0), (a1, b1, c1, d1), (a2, b2, c2, d2), (a3, b3, c3, d3)


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def grad_weight(
    x: Array,  # flat
    grad: Array,  # (O, R * run)
    taps: Indices,
    offsets: Indices,
    outs: Indices,
    starts: Indices,
    run: int,
    out: Array,  # (O, T), zero at first; only rows in outs and columns in taps are changed
) -> None:
    """Compute ``out[o, t] = sum_r sum_s grad[o, r, s] * x[starts[r] + offsets[t] + s]``."""
    segments = (run + 2 * SEGMENT - 1) // (2 * SEGMENT)
    chunks = (taps.size + 15) // 16
    for task in prange((outs.size + 3) // 4 * chunks):
        first = task // chunks * 4
        t0 = task % chunks * 16
        t1 = min(t0 + 16, taps.size)
        last = min(first + 3, outs.size - 1)
        rows = (outs[first], outs[min(first + 1, last)], outs[min(first + 2, last)], outs[last])
        for r in range(starts.size):
            for segment in range(segments):
                s0 = segment * 2 * SEGMENT
                m = min(2 * SEGMENT, run - s0)
                base = starts[r] + s0
                begin, end = r * run + s0, r * run + s0 + m
                g0, g1 = grad[rows[0], begin:end], grad[rows[1], begin:end]
                g2, g3 = grad[rows[2], begin:end], grad[rows[3], begin:end]
                for t in range(t0, t1, 4):
                    u, v, w = min(t + 1, t1 - 1), min(t + 2, t1 - 1), min(t + 3, t1 - 1)
                    sums = _dot_block(
                        g0,
                        g1,
                        g2,
                        g3,
                        x[base + offsets[t] : base + offsets[t] + m],
                        x[base + offsets[u] : base + offsets[u] + m],
                        x[base + offsets[v] : base + offsets[v] + m],
                        x[base + offsets[w] : base + offsets[w] + m],
                    )
                    for i in range(last + 1 - first):
                        for j in range(min(4, t1 - t)):
                            out[rows[i], taps[t + j]] += sums[i][j]


@njit(parallel=True, cache=True)
def max_pool(
    x: Array,  # (C, places * samples)
    channels: Indices,
    first: Indices,  # input place of each output place
    shifts: Indices,  # of the K places of a window
    samples: int,
    out: Array,  # (C, output places * samples)
    winner: NDArray[np.uint8],  # of the same shape: which of the K places was largest
) -> None:
    """Take the largest of each window; of equals, the first."""
    for task in prange(channels.size * first.size):
        c, q = channels[task // first.size], task % first.size
        y = out[c, q * samples : (q + 1) * samples]
        k_max = winner[c, q * samples : (q + 1) * samples]
        begin = (first[q] + shifts[0]) * samples
        y[:] = x[c, begin : begin + samples]
        k_max[:] = 0
        for k in range(1, shifts.size):
            begin = (first[q] + shifts[k]) * samples
            v = x[c, begin : begin + samples]
            for s in range(samples):
                larger = v[s] > y[s] or v[s] != v[s]  # NaN is taken, and kept
                y[s] = v[s] if larger else y[s]
                k_max[s] = k if larger else k_max[s]


@njit(parallel=True, cache=True)
def grad_max_pool(
    grad: Array,  # (C, output places * samples)
    winner: NDArray[np.uint8],
    channels: Indices,
    first: Indices,
    shifts: Indices,
    samples: int,
    out: Array,  # (C, places * samples), zero at first
) -> None:
    """Hand each gradient to the place that was largest."""
    for i in prange(channels.size):
        c = channels[i]
        for q in range(first.size):
            g = grad[c, q * samples : (q + 1) * samples]
            k_max = winner[c, q * samples : (q + 1) * samples]
            for k in range(shifts.size):
                begin = (first[q] + shifts[k]) * samples
                y = out[c, begin : begin + samples]
                for s in range(samples):
                    y[s] += g[s] if k_max[s] == k else 0


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def sum_rows(x: Array, rows: Indices, out: Array) -> None:
    """Compute ``out[i] = sum(x[i])`` for the rows listed; x is (rows, columns)."""
    for task in prange(rows.size):
        i = rows[task]
        total = x.dtype.type(0)
        for s in range(x.shape[1]):
            total += x[i, s]
        out[i] = total


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def scale_rows(x: Array, factors: Array, rows: Indices, out: Array) -> None:
    """Compute ``out[i] = factors[i] * x[i]`` for the rows listed; arrays are (rows, columns)."""
    for task in prange(rows.size):
        i = rows[task]
        out[i] = factors[i] * x[i]


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def grad_scale_rows(
    grad: Array, x: Array, factors: Array, rows: Indices, grad_x: Array, grad_factors: Array
) -> None:
    """Undo :func:`scale_rows`: both derivatives in one pass over the rows listed."""
    for task in prange(rows.size):
        i = rows[task]
        total = x.dtype.type(0)
        for s in range(x.shape[1]):
            grad_x[i, s] = factors[i] * grad[i, s]
            total += grad[i, s] * x[i, s]
        grad_factors[i] = total


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def sgd(
    weight: Array,
    grad: Array,
    velocity: Array,
    rate: np.floating[Any],  # of the dtype of weight, lest all be computed in float64
    momentum: np.floating[Any],
    decay: np.floating[Any],
    nesterov: bool,
) -> None:
    """Take one step of stochastic gradient descent on flat arrays, in place and in one pass."""
    for i in prange(weight.size):
        g = grad[i] + decay * weight[i]
        velocity[i] = momentum * velocity[i] + g
        weight[i] -= rate * (g + momentum * velocity[i] if nesterov else velocity[i])


@njit(cache=True)
def erf(x: Array, out: Array) -> None:
    """Compute the error function of a flat array."""
    for i in range(x.size):
        out[i] = _erf(x[i])
