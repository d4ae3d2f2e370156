"""Every compiled loop of the engine: arrays and index vectors in, arrays out.

**Batch last.** Activations are stored as (C, H, W, N): the samples of a batch are neighbours in
memory. One channel at one place is a contiguous run of N numbers, and so is a row of W places, of
W*N numbers. Every inner loop below walks such a run, so it vectorises for any number of channels,
and to leave out a channel is to leave out a slab of memory that is never touched.

**One equation.** A convolution, its gradient with respect to the input, and a dense layer are the
same sum over pairs of an input channel c and a *part* p,

    out[o, q, s] = bias[o] + sum_c sum_p weight[o, c, place_p] * x[c, at_p(q), s]

where a part says through which place of the kernel the output place q sees which input place, and
s counts the samples. Neighbouring output places that see their inputs alike form a *run*: memory
that is contiguous in x and in out. Kernel size, stride and padding live in two index arrays
(:func:`geometry`); a dense layer is a single place that sees each feature as a place of its own.

**Register tiles.** The sums for 5 channels and 64 numbers of a run stay in registers while the
loop goes over all channels and parts: 20 vector multiply-adds for 4 loads of x and 5 of weights,
and nothing is written until the sums are complete. The gradient of the weight keeps 5 times 5 sums
of products in registers alike. (Where registers are half as wide and half as many, it is 16 numbers
and 5 times 2 sums.) So it is the cores' arithmetic that limits, not memory.

**Skipping is data.** ``ins`` and ``outs`` list the channels to compute; those not listed cost
nothing. Threads share out outputs, never the terms of a sum, and each sum has one order: the same
bits at any number of threads.

The programs near the end are for prediction alone; :mod:`minidiff.engine.predictor` explains them.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import erf as _erf
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numba import carray, prange, types  # type: ignore[attr-defined]  # not in its stubs
from numba.core.cgutils import alloca_once
from numba.extending import intrinsic
from numpy.typing import NDArray

from ._types import Array, Indices
from .compiled import inner, plain, threaded

# An index that is unsigned needs no provision for negative ones, which in the innermost loops would
# cost as much as the arithmetic.
U = np.uint64

# The sizes of register tiles: of 32 vectors of 16 numbers, or of 16 of 8 numbers.
_WIDE = bool(llvm.get_host_cpu_features().get("avx512f", False))
TILE = 64 if _WIDE else 16
LANES = 16 if _WIDE else 8
ROWS, _TAPS = 5, (5 if _WIDE else 2)
# Of a loop over 3 channels LLVM makes slow code for narrow registers, which even adds in another
# order than that over 4 or 5.
_FEWEST = 3 if _WIDE else 4
_rows, _taps, _tile, _lanes, _zero = U(ROWS), U(_TAPS), U(TILE), U(LANES), U(0)
SUMS = ROWS * _TAPS * LANES
_TILE_SHAPE, _SUMS_SHAPE = (ROWS, TILE), (ROWS, _TAPS, LANES)


def _allocate(typingctx, like):
    """Return the address of room for a tile of the dtype of ``like``.

    It lies on the stack, and as it is only ever indexed by constants once loops are unrolled, the
    compiler keeps its elements in registers. NumPy's arrays it cannot move there.
    """

    def generate(context, builder, signature, arguments):
        return alloca_once(
            builder,
            context.get_value_type(like.dtype),
            size=max(ROWS * TILE, SUMS),
        )

    return types.CPointer(like.dtype)(like), generate


_registers: Any = intrinsic(_allocate)  # called with ``like`` alone

# -- geometry --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Geometry:
    """Which input places each output place sees, and through which places of the kernel.

    Attributes
    ----------
    shape : (int, int)
        Height and width of the output.
    runs : (R + 1, 3) int64
        Of each run: its first output place, the number of its places, and its first part. The
        last row tells where parts end.
    parts : (P, 2) int64
        The input place that the run's first output place sees, and the place of the kernel.
    """

    shape: tuple[int, int]
    runs: Indices
    parts: Indices


def windows(size: int, kernel: int, stride: int, padding: int = 0) -> int:
    """Return how many windows fit along an axis; none, or fewer, if it is too short."""
    return (size + 2 * padding - kernel) // stride + 1


@lru_cache(maxsize=256)
def geometry(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] = (0, 0),
) -> tuple[Geometry, Geometry]:
    """Describe a kernel moving over an input of ``size``: what outputs see, and what sees inputs.

    The second is the first seen from the other side, as gradients need it.
    """
    (height, width), (tall, wide) = size, kernel
    rows, columns = map(windows, size, kernel, stride, padding)
    i, j, k, n = np.ix_(*map(np.arange, (rows, columns, tall, wide)))
    y, x = i * stride[0] + k - padding[0], j * stride[1] + n - padding[1]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    outputs = np.broadcast_to(i * columns + j, inside.shape)[inside]
    inputs = (y * width + x)[inside]
    places = np.broadcast_to(k * wide + n, inside.shape)[inside]
    return (
        _runs((rows, columns), outputs, inputs, places),
        _runs(size, inputs, outputs, places),
    )


def _runs(shape: tuple[int, int], to: Indices, of: Indices, places: Indices) -> Geometry:
    """Group who sees whom by ``to``, and neighbours in a row that see alike into runs."""
    order = np.lexsort((places, to))
    to, of, places = to[order], of[order], places[order]
    size = shape[0] * shape[1]
    seen = np.bincount(to, minlength=size)  # how many places each sees
    before = np.arange(len(to)) - seen[to]  # what its neighbour sees, if that sees as many
    differs = (of - of[before] != 1) | (places != places[before])
    alike = np.arange(size) % shape[1] != 0
    alike[1:] &= (seen[1:] == seen[:-1]) & (np.bincount(to[differs], minlength=size)[1:] == 0)
    first = (~alike).nonzero()[0]
    runs = [first, np.diff(first, append=size), np.cumsum(seen[first]) - seen[first]]
    parts = np.stack([of, places], axis=1)[~alike[to]]
    return Geometry(shape, np.array([*zip(*runs, strict=True), (size, 0, len(parts))]), parts)


@inner
def _addresses(indices, step, first):
    """Return ``first + indices * step``, unsigned."""
    out = np.empty(indices.size, U)
    for i in range(indices.size):
        out[i] = first + indices[i] * step
    return out


# -- correlation: layers, and the gradient of their input ------------------------------------


def _correlate_run_of(height):
    """Return the loop over a run for a block of so many channels."""
    shape, rows = (height, TILE), U(height)

    @inner
    def correlate_run(
        x, inputs, shifts, weight, block_rows, columns, places, first_part, last_part, bias, out,
        outputs, length,
    ):  # fmt: skip
        """Compute a run for a block of channels, tile by tile; all arrays are flat.

        The numbers of x begin at ``inputs[c] + shifts[p]``, their weight lies at
        ``block_rows[i] + columns[c] + places[p]``, and the output begins at ``outputs[i]``.
        """
        sums = carray(_registers(x), shape)
        row, begin = carray(_registers(block_rows), height), carray(_registers(outputs), height)
        for i in range(rows):
            row[i], begin[i] = block_rows[i], outputs[i]
        for tile in range(_zero, length, _tile):
            start = min(tile, length - _tile)  # the last tile overlaps the one before
            for s in range(_tile):
                for i in range(rows):
                    sums[i, s] = bias[i]
            for c in range(inputs.size):
                first, column = inputs[c] + start, columns[c]
                for p in range(first_part, last_part):
                    a, k = first + shifts[p], column + places[p]
                    for s in range(_tile):
                        for i in range(rows):
                            sums[i, s] += weight[row[i] + k] * x[a + s]
            for s in range(_tile):
                for i in range(rows):
                    out[begin[i] + start + s] = sums[i, s]

    return correlate_run


_correlate_run_3, _correlate_run_4 = _correlate_run_of(3), _correlate_run_of(4)
_correlate_run_5 = _correlate_run_of(ROWS)


@inner
def _block_height(channels):
    """Return how many channels a block has: 8 are two blocks of 4, not one of 5 and one of 3."""
    blocks = (channels + ROWS - 1) // ROWS
    return max(_FEWEST, (channels + blocks - 1) // max(1, blocks))


@inner
def _correlate_block(
    height, x, inputs, shifts, weight, rows, columns, places, first_part, last_part, bias, out,
    outputs, length,
):  # fmt: skip
    """Compute a run for a block of channels of that height."""
    if height == 3:
        _correlate_run_3(
            x, inputs, shifts, weight, rows, columns, places, first_part, last_part, bias, out,
            outputs, length,
        )  # fmt: skip
    elif height == 4:
        _correlate_run_4(
            x, inputs, shifts, weight, rows, columns, places, first_part, last_part, bias, out,
            outputs, length,
        )  # fmt: skip
    else:
        _correlate_run_5(
            x, inputs, shifts, weight, rows, columns, places, first_part, last_part, bias, out,
            outputs, length,
        )  # fmt: skip


@inner
def _correlate_short(
    x, inputs, shifts, weight, row, columns, places, first_part, last_part, bias, out
):
    """Compute one channel of a run that is too short for a tile."""
    out[:] = bias
    for c in range(inputs.size):
        first, column = inputs[c], columns[c]
        for p in range(first_part, last_part):
            a, w = first + shifts[p], weight[row + column + places[p]]
            for s in range(U(out.size)):
                out[s] += w * x[a + s]


@threaded
def correlate(
    x: Array,  # (C, places * samples)
    weight: Array,  # (O, C, K), or (C, O, K) if swapped
    swapped: bool,
    bias: Array,  # (O,)
    ins: Indices,
    outs: Indices,
    runs: Indices,
    parts: Indices,
    samples: int,
    out: Array,  # (O, places * samples); rows not in outs are left alone
) -> None:
    """Compute ``out[o, q, s] = bias[o] + sum_c sum_p weight[o, c, place_p] * x[c, at_p(q), s]``."""
    kernel = weight.shape[2]
    row, column = weight.shape[1] * kernel, kernel
    if swapped:
        row, column = column, row
    inputs, shifts = _addresses(ins, x.shape[1], 0), _addresses(parts[:, 0], samples, 0)
    columns, places = _addresses(ins, column, 0), _addresses(parts[:, 1], 1, 0)
    flat_x, flat_weight, flat_out = x.reshape(-1), weight.reshape(-1), out.reshape(-1)
    count = len(runs) - 1
    blocks = (outs.size + ROWS - 1) // ROWS
    height = _block_height(outs.size)
    for task in prange(blocks * count):
        first, r = task // count * height, task % count
        begin, length = runs[r, 0] * samples, runs[r, 1] * samples
        rows, begins = carray(_registers(inputs), ROWS), carray(_registers(inputs), ROWS)
        biases = carray(_registers(x), ROWS)
        p0, p1 = U(runs[r, 2]), U(runs[r + 1, 2])
        if length < TILE:
            for i in range(first, min(first + height, outs.size)):
                o = outs[i]
                _correlate_short(
                    flat_x, inputs, shifts, flat_weight, U(o * row), columns, places, p0, p1,
                    bias[o], out[o, begin : begin + length],
                )  # fmt: skip
            continue
        for i in range(ROWS):  # a block that is not full computes its last channel again
            o = outs[min(first + i, outs.size - 1)]
            rows[i], biases[i], begins[i] = o * row, bias[o], o * out.shape[1] + begin
        _correlate_block(
            height, flat_x, inputs, shifts, flat_weight, rows, columns, places, p0, p1, biases,
            flat_out, begins, U(length),
        )  # fmt: skip


# -- products: the gradient of the weight ----------------------------------------------------


@inner
def _product_tile(x, inputs, first_input, grad, outputs, length, sums, at):
    """Add the products of each of 5 runs of grad and of 5 of x, LANES partial sums for each.

    The runs of x begin at the inputs from ``first_input`` on, the sums at ``at``.
    """
    tile = carray(_registers(x), _SUMS_SHAPE)
    b, a = carray(_registers(outputs), ROWS), carray(_registers(inputs), _TAPS)
    for i in range(_rows):
        b[i] = outputs[i]
    for j in range(_taps):
        a[j] = inputs[first_input + j]
    for s in range(_lanes):
        for i in range(_rows):
            for j in range(_taps):
                tile[i, j, s] = 0
    whole = length - length % _lanes
    for first in range(_zero, whole, _lanes):
        for s in range(_lanes):
            for i in range(_rows):
                for j in range(_taps):
                    tile[i, j, s] += grad[b[i] + first + s] * x[a[j] + first + s]
    for s in range(_lanes):
        for i in range(_rows):
            for j in range(_taps):
                sums[at + (i * _taps + j) * _lanes + s] += tile[i, j, s]
    for s in range(whole, length):
        for i in range(_rows):
            for j in range(_taps):
                sums[at + (i * _taps + j) * _lanes] += grad[b[i] + s] * x[a[j] + s]


@threaded
def grad_weight(
    x: Array,  # (C, places * samples)
    grad: Array,  # (O, places * samples)
    ins: Indices,
    outs: Indices,
    runs: Indices,
    parts: Indices,
    samples: int,
    out: Array,  # (O, C, K); only what is in outs and ins is changed
) -> None:
    """Compute ``out[o, c, k] = sum_q sum_s grad[o, q, s] * x[c, at_p(q), s]``, place_p being k."""
    kernel = out.shape[2]
    groups = (kernel + _TAPS - 1) // _TAPS
    flat_x, flat_grad = x.reshape(-1), grad.reshape(-1)
    for task in prange((outs.size + ROWS - 1) // ROWS * ins.size):
        first, c = task // ins.size * ROWS, ins[task % ins.size]
        rows = min(ROWS, outs.size - first)
        outputs, inputs = np.empty(ROWS, U), np.empty(groups * _TAPS, U)
        seen = np.empty(groups * _TAPS, np.bool_)
        sums = np.zeros((groups + 1) * SUMS, x.dtype)
        for r in range(len(runs) - 1):
            if runs[r, 2] == runs[r + 1, 2]:  # it sees padding only, and may be wider than x
                continue
            for i in range(ROWS):
                o = outs[first + min(i, rows - 1)]
                outputs[i] = o * grad.shape[1] + runs[r, 0] * samples
            for k in range(groups * _TAPS):
                inputs[k], seen[k] = c * x.shape[1], k >= kernel
            for p in range(runs[r, 2], runs[r + 1, 2]):
                inputs[parts[p, 1]] = c * x.shape[1] + parts[p, 0] * samples
                seen[parts[p, 1]] = True
            for group in range(groups):
                # Where padding hides a place from the run, products of anything go to the last.
                whole = True
                for j in range(_TAPS):
                    whole &= seen[group * _TAPS + j]
                _product_tile(
                    flat_x, inputs, U(group * _TAPS), flat_grad, outputs, U(runs[r, 1] * samples),
                    sums, U((group if whole else groups) * SUMS),
                )  # fmt: skip
                if not whole:
                    for n in range(SUMS):
                        if seen[group * _TAPS + n // LANES % _TAPS]:
                            sums[group * SUMS + n] += sums[groups * SUMS + n]
                        sums[groups * SUMS + n] = 0
        for i in range(rows):
            for k in range(kernel):
                at, total = (k // _TAPS * ROWS + i) * _TAPS + k % _TAPS, x.dtype.type(0)
                for s in range(LANES):
                    total += sums[at * LANES + s]
                out[outs[first + i], c, k] = total


@threaded
def transpose(x: Array, rows: Indices, out: Array) -> None:
    """Compute ``out[j, i] = x[rows[i], j]``, in strips that suit the cache."""
    for strip in prange((rows.size + 15) // 16):
        for j in range(x.shape[1]):
            for i in range(strip * 16, min(strip * 16 + 16, rows.size)):
                out[j, i] = x[rows[i], j]


@threaded
def spread(x: Array, rows: Indices, columns: Indices, out: Array) -> None:
    """Set ``out[i, columns[j]] = x[i, j]``, and zeros between, for the rows i that are listed."""
    for task in prange(rows.size):
        i = rows[task]
        out[i] = 0
        for j in range(columns.size):
            out[i, columns[j]] = x[i, j]


# -- pools and rectifiers --------------------------------------------------------------------

NOBODY = 255  # the winner of a window in which 0 is the largest


@threaded
def max_pool(
    x: Array,  # (C, places * samples)
    channels: Indices,
    runs: Indices,
    parts: Indices,
    samples: int,
    rectified: bool,
    out: Array,  # (C, output places * samples)
    winner: NDArray[np.uint8],  # of the same shape: through which place the largest was seen
) -> None:
    """Take the largest of each window; of equals, the first.

    If ``rectified``, 0 is in every window, before all places, and its winner is NOBODY.
    """
    count = len(runs) - 1
    for task in prange(channels.size * count):
        c, r = channels[task // count], task % count
        begin, length = runs[r, 0] * samples, runs[r, 1] * samples
        y, k_max = out[c, begin : begin + length], winner[c, begin : begin + length]
        y[:], k_max[:] = 0, NOBODY
        for p in range(runs[r, 2], runs[r + 1, 2]):
            at, k = parts[p, 0] * samples, np.uint8(parts[p, 1])
            v = x[c, at : at + length]
            if p == runs[r, 2] and not rectified:
                y[:], k_max[:] = v, k
                continue
            # Two loops, and arithmetic for a choice among bytes, vectorise on every machine.
            for s in range(length):
                larger = np.uint8((v[s] > y[s]) | (v[s] != v[s]))  # NaN is taken, and kept
                k_max[s] += larger * (k - k_max[s])
            for s in range(length):
                y[s] = v[s] if (v[s] > y[s]) | (v[s] != v[s]) else y[s]


@threaded
def grad_max_pool(
    grad: Array,  # (C, output places * samples)
    winner: NDArray[np.uint8],
    channels: Indices,
    runs: Indices,  # from the inputs' side
    parts: Indices,
    samples: int,
    out: Array,  # (C, places * samples)
) -> None:
    """Hand each gradient to the place that was largest."""
    count = len(runs) - 1
    for task in prange(channels.size * count):
        c, r = channels[task // count], task % count
        begin, length = runs[r, 0] * samples, runs[r, 1] * samples
        y, zero = out[c, begin : begin + length], out.dtype.type(0)
        if runs[r, 2] == runs[r + 1, 2]:  # no window sees these places
            y[:] = 0
        for p in range(runs[r, 2], runs[r + 1, 2]):
            at, k = parts[p, 0] * samples, np.uint8(parts[p, 1])
            g, k_max = grad[c, at : at + length], winner[c, at : at + length]
            if p == runs[r, 2]:
                for s in range(length):
                    y[s] = g[s] if k_max[s] == k else zero
            else:
                for s in range(length):
                    y[s] += g[s] if k_max[s] == k else zero


@threaded
def relu(x: Array, rows: Indices, out: Array) -> None:
    """Compute ``out[i] = max(x[i], 0)`` for the rows listed; arrays are (rows, columns)."""
    for task in prange(rows.size):
        i = rows[task]
        for s in range(x.shape[1]):
            v = x[i, s]
            out[i, s] = 0 if v < 0 else v  # NaN is kept


@threaded
def grad_relu(grad: Array, out: Array, rows: Indices, grad_x: Array) -> None:
    """Undo :func:`relu`, given what it returned."""
    for task in prange(rows.size):
        i = rows[task]
        for s in range(grad.shape[1]):
            grad_x[i, s] = grad[i, s] if out[i, s] > 0 else 0


# -- rows ------------------------------------------------------------------------------------


@threaded
def sum_rows(x: Array, rows: Indices, out: Array) -> None:
    """Compute ``out[i] = sum(x[i])`` for the rows listed; x is (rows, columns)."""
    for task in prange(rows.size):
        i = rows[task]
        total = x.dtype.type(0)
        for s in range(x.shape[1]):
            total += x[i, s]
        out[i] = total


@threaded
def scale_rows(x: Array, factors: Array, rows: Indices, out: Array) -> None:
    """Compute ``out[i] = factors[i] * x[i]`` for the rows listed; arrays are (rows, columns)."""
    for task in prange(rows.size):
        i = rows[task]
        for s in range(x.shape[1]):
            out[i, s] = factors[i] * x[i, s]


@threaded
def grad_scale_rows(
    grad: Array, x: Array, factors: Array, rows: Indices, grad_x: Array, grad_factors: Array
) -> None:
    """Undo :func:`scale_rows`: both derivatives in one pass; rows not listed become zeros."""
    listed = np.zeros(len(x), np.bool_)
    listed[rows] = True
    for i in prange(len(x)):
        total = x.dtype.type(0)
        if listed[i]:
            for s in range(x.shape[1]):
                grad_x[i, s] = factors[i] * grad[i, s]
                total += grad[i, s] * x[i, s]
        else:
            grad_x[i] = 0
        grad_factors[i] = total


# -- programs of the predictor -------------------------------------------------------------------

CONV, GATHER, POOL = range(3)
PLACES = 8  # of a tile, whose sums stay in registers
_PLACES_SHAPE = (PLACES, LANES)
_places, _one = U(PLACES), U(1)
SPARE = 2 * LANES

# A step, all numbers of it: where its input and output begin, the sizes of both and of the window
# that moves, by how much, where weights (or the indices of a GATHER) and biases begin.
STEP = np.dtype(
    [
        (name, np.uint64)
        for name in (
            *("kind", "source", "target", "channels", "height", "width", "rows", "columns"),
            *("tall", "wide", "down", "right", "outputs", "first", "bias", "rectified", "largest"),
        )
    ]
)


def _window_of(length):
    """Return the loop over a window for vectors of so many numbers."""
    size = U(length)

    @inner
    def window(step, work, source, next_row, next_place, target):
        """Take the largest, or the mean, of the vectors that a window shows."""
        largest, rectified = step.largest != 0, step.rectified != 0
        share = np.float32(1) / np.float32(step.tall * step.wide)
        best = carray(_registers(work), length)
        for s in range(size):
            best[s] = work[source + s] if largest else 0
        for i in range(step.tall):
            for j in range(step.wide):
                for s in range(size):
                    v = work[source + i * next_row + j * next_place + s]
                    if largest:
                        best[s] = v if (v > best[s]) | (v != v) else best[s]  # NaN is kept
                    else:
                        best[s] += v * share
        for s in range(size):
            v = best[s]
            work[target + s] = 0 if rectified and v < 0 else v

    return window


_pool_lanes, _pool_samples = _window_of(LANES), _window_of(TILE)

# -- programs, channels last: a few images ------------------------------------------------------


@inner
def _conv_places(
    work, source, next_row, next_place, weights, first, lanes, tall, length, biases, bias, target,
    outputs, rectified,
):  # fmt: skip
    """Compute a vector of outputs at 8 places, next to each other in a row.

    A row of the window is ``length`` contiguous numbers; there are ``tall``.
    """
    sums = carray(_registers(work), _PLACES_SHAPE)
    for s in range(_lanes):
        for p in range(_places):
            sums[p, s] = biases[bias + s]
    for i in range(tall):
        x, k = source + i * next_row, first + i * length * lanes
        for c in range(length):
            for s in range(_lanes):
                for p in range(_places):
                    sums[p, s] += work[x + c + p * next_place] * weights[k + c * lanes + s]
    for p in range(_places):
        for s in range(_lanes):
            v = sums[p, s]
            work[target + p * outputs + s] = 0 if rectified and v < 0 else v


@inner
def _conv_place(
    work, source, next_row, weights, first, lanes, tall, length, biases, bias, target, rectified
):
    """Compute a vector of outputs at one place."""
    sums = carray(_registers(work), LANES)
    for s in range(_lanes):
        sums[s] = biases[bias + s]
    for i in range(tall):
        x, k = source + i * next_row, first + i * length * lanes
        for c in range(length):
            for s in range(_lanes):
                sums[s] += work[x + c] * weights[k + c * lanes + s]
    for s in range(_lanes):
        v = sums[s]
        work[target + s] = 0 if rectified and v < 0 else v


@inner
def _conv(step, weights, biases, work):
    """Compute a CONV: the last vector of channels first, as it spills into the others."""
    columns, outputs, tall, rectified = step.columns, step.outputs, step.tall, step.rectified != 0
    lanes = (outputs + _lanes - _one) // _lanes * _lanes
    next_row, next_place = step.width * step.channels, step.right * step.channels
    length = step.wide * step.channels
    for number in range(_lanes, lanes + _one, _lanes):
        block = lanes - number
        first, bias = step.first + block, step.bias + block
        for y in range(step.rows):
            row = step.source + y * step.down * next_row
            target = step.target + y * columns * outputs + block
            if columns < _places:
                for x in range(columns):
                    _conv_place(
                        work, row + x * next_place, next_row, weights, first, lanes, tall, length,
                        biases, bias, target + x * outputs, rectified,
                    )  # fmt: skip
                continue
            for start in range(_zero, columns, _places):
                x = min(start, columns - _places)  # the last tile overlaps the one before
                _conv_places(
                    work, row + x * next_place, next_row, next_place, weights, first, lanes, tall,
                    length, biases, bias, target + x * outputs, outputs, rectified,
                )  # fmt: skip


@inner
def _pool(step, work):
    """Compute a POOL, likewise."""
    next_row, channels = step.width * step.channels, step.channels
    lanes = (channels + _lanes - _one) // _lanes * _lanes
    for number in range(_lanes, lanes + _one, _lanes):
        block = lanes - number
        for y in range(step.rows):
            for x in range(step.columns):
                source = step.source + y * step.down * next_row + x * step.right * channels
                target = step.target + (y * step.columns + x) * channels
                _pool_lanes(step, work, source + block, next_row, channels, target + block)


@plain
def run_few(
    steps: NDArray[Any],  # (steps,) of STEP
    weights: NDArray[np.float32],
    biases: NDArray[np.float32],
    indices: NDArray[np.uint64],
    at: Indices,
    size: int,
    numbers: NDArray[np.float32],  # (N, inputs)
    scale: np.float32,
    offset: np.float32,
    out: NDArray[np.float32],  # (N, outputs)
) -> None:
    """Run a program for one row of numbers after another."""
    work = np.empty(size, np.float32)
    work[0] = 0
    for n in range(len(numbers)):
        for j in range(numbers.shape[1]):
            work[1 + j] = numbers[n, j] * scale - offset
        for i in range(len(steps)):
            step = steps[i]
            if step.kind == CONV:
                _conv(step, weights, biases, work)
            elif step.kind == POOL:
                _pool(step, work)
            else:
                for j in range(step.outputs):
                    work[step.target + j] = work[indices[step.first + j]]
        for j in range(at.size):
            out[n, j] = work[at[j]]


# -- programs, batch last: blocks of samples -----------------------------------------------------


@inner
def _conv_block(step, weights, biases, work):
    """Compute a CONV for a block of samples: blocks of channels, run by run."""
    outputs, channels, columns = int(step.outputs), int(step.channels), int(step.columns)
    places, wide, right = step.tall * step.wide, step.wide, int(step.right)
    inputs, weight_columns = np.empty(channels, U), np.empty(channels, U)
    for c in range(channels):
        weight_columns[c] = U(c) * places
    shifts, numbers = np.empty(places, U), np.empty(places, U)
    for k in range(places):
        shifts[k], numbers[k] = (k // wide * step.width + k % wide) * _tile, k
    height, kept, area = _block_height(outputs), np.empty(ROWS, np.int64), step.rows * step.columns
    rows, begins, bias = np.empty(ROWS, U), np.empty(ROWS, U), np.empty(ROWS, np.float32)
    # With a stride of 1 a row of places is one run, else each place is one.
    runs, length = (1, columns) if right == 1 else (columns, 1)
    for first in range(0, outputs, height):
        for i in range(ROWS):  # a block that is not full computes its last channel again
            kept[i] = min(first + i, outputs - 1)
            rows[i] = step.first + U(kept[i]) * U(channels) * places
            bias[i] = biases[int(step.bias) + kept[i]]
        for y in range(step.rows):
            for x in range(runs):
                seen = y * step.down * step.width + U(x * right)
                for c in range(channels):
                    inputs[c] = (step.source + U(c) * step.height * step.width + seen) * _tile
                for i in range(ROWS):
                    place = U(kept[i]) * area + y * step.columns + U(x)
                    begins[i] = (step.target + place) * _tile
                _correlate_block(
                    height, work, inputs, shifts, weights, rows, weight_columns, numbers, _zero,
                    U(places), bias, work, begins, U(length) * _tile,
                )  # fmt: skip
    if step.rectified:
        for i in range(step.target * _tile, (step.target + step.outputs * area) * _tile):
            work[i] = 0 if work[i] < 0 else work[i]


@inner
def _pool_block(step, work):
    """Compute a POOL for a block of samples."""
    next_row = step.width * _tile
    for c in range(step.channels):
        for y in range(step.rows):
            for x in range(step.columns):
                place = (c * step.height + y * step.down) * step.width + x * step.right
                target = (step.target + (c * step.rows + y) * step.columns + x) * _tile
                source = (step.source + place) * _tile
                _pool_samples(step, work, source, next_row, _tile, target)


@threaded
def run_many(
    steps: NDArray[Any],  # (steps,) of STEP
    weights: NDArray[np.float32],
    biases: NDArray[np.float32],
    indices: NDArray[np.uint64],
    at: Indices,
    work: NDArray[np.float32],  # (threads, size * TILE)
    numbers: NDArray[np.float32],  # (N, inputs)
    scale: np.float32,
    offset: np.float32,
    out: NDArray[np.float32],  # (N, outputs)
) -> None:
    """Run a program for blocks of TILE rows of numbers, each thread for its share of them."""
    blocks = (len(numbers) + TILE - 1) // TILE
    for thread in prange(len(work)):
        own = work[thread]
        own[:TILE] = 0
        for block in range(thread, blocks, len(work)):
            first = block * TILE
            count = min(TILE, len(numbers) - first)
            for strip in range(0, numbers.shape[1], LANES):  # which suit the cache
                for s in range(TILE):
                    n = first + min(s, count - 1)  # what is missing is the last again
                    for j in range(strip, min(strip + LANES, numbers.shape[1])):
                        own[(1 + j) * TILE + s] = numbers[n, j] * scale - offset
            for i in range(len(steps)):
                step = steps[i]
                if step.kind == CONV:
                    _conv_block(step, weights, biases, own)
                elif step.kind == POOL:
                    _pool_block(step, own)
                else:
                    for j in range(step.outputs):
                        target, source = (step.target + j) * TILE, indices[step.first + j] * TILE
                        own[target : target + TILE] = own[source : source + TILE]
            for s in range(count):
                for j in range(at.size):
                    out[first + s, j] = own[at[j] * TILE + s]


# -- optimisers ------------------------------------------------------------------------------


@inner
def _flushed(x):
    """Return x, or 0 for a subnormal number.

    What decays without a gradient becomes subnormal, in rounding stays so for good, and takes the
    processor thirty times as long. It is too small to move anything.
    """
    number = type(x)
    return number(0) if abs(x) < np.finfo(number).tiny else x  # NaN is kept


@threaded
def sgd(
    weight: Array,  # (rows, columns), as all
    grad: Array,
    velocity: Array,
    rows: Indices,
    rate: float,
    momentum: float,
    decay: float,
    nesterov: bool,
) -> None:
    """Take one step of stochastic gradient descent on the rows listed, in place and in one pass."""
    number = weight.dtype.type  # lest all be computed in float64
    lr, m, d = number(rate), number(momentum), number(decay)
    for task in prange(rows.size):
        i = rows[task]
        for j in range(weight.shape[1]):
            g = grad[i, j] + d * weight[i, j]
            velocity[i, j] = _flushed(m * velocity[i, j] + g)
            weight[i, j] -= lr * (g + m * velocity[i, j] if nesterov else velocity[i, j])


@threaded
def adam(
    weight: Array,  # (rows, columns), as all
    grad: Array,
    mean: Array,
    square: Array,
    rows: Indices,
    rate: float,
    betas: tuple[float, float],
    corrections: tuple[float, float],  # of the bias of mean and square
    eps: float,
    decay: float,
) -> None:
    """Take one step of Adam on the rows listed, in place and in one pass."""
    number = weight.dtype.type
    first, second, d, e = number(1 - betas[0]), number(1 - betas[1]), number(decay), number(eps)
    lr, scale = number(rate / corrections[0]), number(1 / corrections[1])
    for task in prange(rows.size):
        i = rows[task]
        for j in range(weight.shape[1]):
            g = grad[i, j] + d * weight[i, j]
            mean[i, j] = _flushed(mean[i, j] + first * (g - mean[i, j]))
            square[i, j] = _flushed(square[i, j] + second * (g * g - square[i, j]))
            weight[i, j] -= lr * mean[i, j] / (np.sqrt(scale * square[i, j]) + e)


@plain
def smoothstep(t: Array, out: Array) -> None:
    """Limit the flat array t to [0, 1], in place, and compute ``out = 3 t^2 - 2 t^3``."""
    number = t.dtype.type
    zero, one = number(0), number(1)
    for i in range(t.size):
        v = zero if t[i] < zero else one if t[i] > one else t[i]  # NaN is kept
        t[i], out[i] = v, v * v * (number(3) - number(2) * v)


@plain
def grad_smoothstep(grad: Array, t: Array, width: float, out: Array) -> None:
    """Undo :func:`smoothstep`; where the slope is 0 the gradient may be anything."""
    number = t.dtype.type
    factor, zero, one = number(6 / width), number(0), number(1)
    for i in range(t.size):
        slope = factor * t[i] * (one - t[i])
        out[i] = zero if slope == zero else slope * grad[i]


@plain
def erf(x: Array, out: Array) -> None:
    """Compute the error function of a flat array."""
    for i in range(x.size):
        out[i] = _erf(x[i])


# -- a yardstick -----------------------------------------------------------------------------


@inner
def _multiply_add(rounds, out):
    """Do nothing but multiply-adds in registers: ``x = x * a + b``, so often."""
    tile = carray(_registers(out), _TILE_SHAPE)
    a, b = out[0], out[1]
    for s in range(_tile):
        for i in range(_rows):
            tile[i, s] = out[s]
    for _ in range(rounds):
        for s in range(_tile):
            for i in range(_rows):
                tile[i, s] = tile[i, s] * a + b
    for s in range(_tile):
        for i in range(_rows):
            out[s] += tile[i, s]


@threaded
def multiply_add(rounds: int, out: Array) -> None:
    """Do ``rounds`` times 5 * TILE multiply-adds for each row of out, (rows, TILE)."""
    for task in prange(len(out)):
        _multiply_add(rounds, out[task])
