"""The compiled loops of training: arrays and index vectors in, arrays out.

**Batch last.** Activations are (C, H, W, N): the samples of a batch are neighbours in memory. One
channel at one position is a contiguous run of N numbers; a row of W positions is a run of W*N
numbers. Every inner loop walks such a run, so the loop vectorises for any number of channels.
Skipping a channel skips a block of memory.

**One equation.** A convolution, the gradient of its input, and a dense layer are the same sum over
input channels c and *taps* p:

    out[o, q, s] = bias[o] + sum_c sum_p weight[o, c, kernel_p] * x[c, input_p(q), s]

A tap p pairs a kernel position with the input position that output position q reads through it;
s counts samples. Neighbouring output positions with the same taps form a *span*: memory that is
contiguous in x and in out. Kernel size, stride and padding become two index arrays
(:func:`position_maps`). A dense layer has one position, one tap, and a channel for each feature.

**Register tiles.** The sums for 5 output channels and 64 numbers of a span stay in registers while
the loop goes over all channels and taps: 20 vector multiply-adds for 4 loads of x and 5 of weights.
The gradient of the weight keeps 5 times 5 sums of products in registers. Without AVX-512, registers
are half as wide and half as many: tiles have 16 numbers of a span, and 5 times 2 sums. So
arithmetic limits the speed, not memory.

**Skipping is data.** ``ins`` and ``outs`` list the channels to compute; other channels cost
nothing. Threads divide the outputs, never the terms of a sum, and each sum has a fixed order:
results are bit-identical at any number of threads.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import prange

from .arrays import Indices
from .compiled import inner, limit_threads, set_threads, threaded
from .vectors import LANES, WIDE, U, add_product, add_scaled, copy, fill, registers, tile

# The sizes of register tiles: TILE numbers of a span for ROWS outputs, and products of ROWS spans
# with PRODUCTS spans.
TILE, ROWS, FEWEST, PRODUCTS = (64, 5, 3, 5) if WIDE else (16, 5, 3, 2)
SUMS = ROWS * PRODUCTS * LANES
# Numbers of a span, or features, that a register sums up: longer sums would lose digits.
CHUNK, FEATURES = 8192, 1024
TASKS = 16  # about the least number of tasks that a correlation is divided into
FAR = 100  # terms of a sum from which on what they read is copied to one place
_rows, _products, _tile, _lanes, _zero, _one = map(U, (ROWS, PRODUCTS, TILE, LANES, 0, 1))

# -- which positions pair up -----------------------------------------------------------------


@dataclass(frozen=True)
class PositionMap:
    """Which positions each target position reads, and through which kernel positions.

    Attributes
    ----------
    shape : (int, int)
        Height and width of the target.
    spans : (S + 1, 3) int64
        For each span: its first target position, its number of positions, and its first tap.
        The last row ends the list: its first tap is P.
    taps : (P, 2) int64
        For each tap: the source position that the first target of the span reads, and the kernel
        position.
    """

    shape: tuple[int, int]
    spans: Indices
    taps: Indices


def windows(size: int, kernel: int, stride: int, padding: int = 0) -> int:
    """Return how many windows fit along an axis; 0 or less if the axis is too short."""
    return (size + 2 * padding - kernel) // stride + 1


@lru_cache(maxsize=256)
def position_maps(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] = (0, 0),
) -> tuple[PositionMap, PositionMap]:
    """Return the forward map, from outputs to inputs, and the backward map, from inputs to outputs.

    Both maps list the same triples (output, input, kernel position) of a kernel that moves over an
    input of ``size``. The gradient of the input needs the backward map.
    """
    (height, width), (tall, wide) = size, kernel
    rows, columns = map(windows, size, kernel, stride, padding)
    i, j, k, n = np.ix_(*map(np.arange, (rows, columns, tall, wide)))
    y, x = i * stride[0] + k - padding[0], j * stride[1] + n - padding[1]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    outputs = np.broadcast_to(i * columns + j, inside.shape)[inside]
    inputs = (y * width + x)[inside]
    kernels = np.broadcast_to(k * wide + n, inside.shape)[inside]
    return (
        _position_map((rows, columns), outputs, inputs, kernels),
        _position_map(size, inputs, outputs, kernels),
    )


def _position_map(
    shape: tuple[int, int], targets: Indices, sources: Indices, kernels: Indices
) -> PositionMap:
    """Group triples by target, and neighbours in a row with the same taps into spans."""
    order = np.lexsort((kernels, targets))
    targets, sources, kernels = targets[order], sources[order], kernels[order]
    size = shape[0] * shape[1]
    taps = np.bincount(targets, minlength=size)  # how many taps each target has
    left = np.arange(len(targets)) - taps[targets]  # the same tap of the left neighbour
    differs = (sources - sources[left] != 1) | (kernels != kernels[left])
    joins = np.arange(size) % shape[1] != 0  # which targets extend the span on their left
    joins[1:] &= (taps[1:] == taps[:-1]) & (np.bincount(targets[differs], minlength=size)[1:] == 0)
    first = (~joins).nonzero()[0]
    spans = [first, np.diff(first, append=size), np.cumsum(taps[first]) - taps[first]]
    kept = np.stack([sources, kernels], axis=1)[~joins[targets]]
    return PositionMap(shape, np.array([*zip(*spans, strict=True), (size, 0, len(kept))]), kept)


@inner
def _addresses(indices, step):
    """Return ``indices * step``, unsigned."""
    out = np.empty(indices.size, U)
    for i in range(indices.size):
        out[i] = indices[i] * step
    return out


# -- correlation: layers, and the gradient of their input ------------------------------------


def _correlate_span_of(height):
    """Return the loop over a span for a block of ``height`` output channels."""
    size, rows = height * TILE, U(height)

    @inner
    def correlate_span(source, weights, first_tap, last_tap, bias, target, tiles):
        """Compute a span for a block of channels, tile by tile; all arrays are flat.

        Tap p of channel c reads x from ``inputs[c] + shifts[p]`` on, times the weight at
        ``block_rows[i] + columns[c] + positions[p]``. Output i begins at ``outputs[i]``. ``tiles``
        is their number, the step between them in the output, and where the last of them begins in
        the input and in the output: it may overlap the one before.
        """
        (x, inputs, shifts), (weight, block_rows, columns, positions) = source, weights
        (out, outputs), (count, step, last_source, last_target) = target, tiles
        sums = tile(registers(x), size)
        row, begin = tile(registers(block_rows), height), tile(registers(outputs), height)
        for i in range(rows):
            row[i], begin[i] = block_rows[i], outputs[i]
        for number in range(count):
            start, to = min(number * _tile, last_source), min(number * step, last_target)
            for i in range(rows):
                for v in range(_zero, _tile, _lanes):
                    fill(sums, i * _tile + v, bias[i])
            for c in range(inputs.size):
                first, column = inputs[c] + start, columns[c]
                for p in range(first_tap, last_tap):
                    a, k = first + shifts[p], column + positions[p]
                    for v in range(_zero, _tile, _lanes):
                        for i in range(rows):
                            add_scaled(sums, i * _tile + v, x, a + v, weight[row[i] + k])
            for i in range(rows):
                for v in range(_zero, _tile, _lanes):
                    copy(out, begin[i] + to + v, sums, i * _tile + v)

    return correlate_span


_correlate_span_3, _correlate_span_4 = _correlate_span_of(3), _correlate_span_of(4)
_correlate_span_5 = _correlate_span_of(ROWS)


@inner
def block_height(channels):
    """Return how many channels a block has: 8 are two blocks of 4, not one of 5 and one of 3."""
    blocks = (channels + ROWS - 1) // ROWS
    return max(FEWEST, (channels + blocks - 1) // max(1, blocks))


@inner
def correlate_block(height, source, weights, first_tap, last_tap, bias, target, tiles):
    """Compute a span for a block of ``height`` channels."""
    if height == 3:
        _correlate_span_3(source, weights, first_tap, last_tap, bias, target, tiles)
    elif height == 4:
        _correlate_span_4(source, weights, first_tap, last_tap, bias, target, tiles)
    else:
        _correlate_span_5(source, weights, first_tap, last_tap, bias, target, tiles)


@inner
def _correlate_short(source, weights, first_tap, last_tap, bias, out):
    """Compute one channel of a span that is too short for a tile."""
    (x, inputs, shifts), (weight, row, columns, positions) = source, weights
    out[:] = bias
    for c in range(inputs.size):
        first, column = inputs[c], columns[c]
        for p in range(first_tap, last_tap):
            a, w = first + shifts[p], weight[row + column + positions[p]]
            for s in range(U(out.size)):
                out[s] += w * x[a + s]


@threaded
def correlate(x, weight, swapped, bias, ins, outs, spans, taps, samples, out):
    """Compute the equation at the top of this file.

    x is (C, positions * samples), weight (O, C, K), or (C, O, K) if ``swapped``, bias (O,), and out
    (O, positions * samples). Only the rows of out in ``outs`` are written.

    A tile reads TILE samples through all taps, from as many places of x, which may not fit in the
    nearest cache. So each task copies a slice of TILE samples of x, without gaps.
    """
    kernel = weight.shape[2]
    row, column = weight.shape[1] * kernel, kernel
    if swapped:
        row, column = column, row
    count = len(spans) - 1
    terms = ins.size * len(taps) // max(1, count)  # of a sum
    sliced = samples >= TILE and terms >= FAR and x.shape[1] > samples
    step = TILE if sliced else samples
    slices = (samples + TILE - 1) // TILE if sliced else 1
    positions_in = x.shape[1] // max(1, samples)
    inputs, shifts = _addresses(ins, x.shape[1]), _addresses(taps[:, 0], step)
    columns, positions = _addresses(ins, column), _addresses(taps[:, 1], 1)
    local = _addresses(np.arange(ins.size), positions_in * TILE) if sliced else inputs
    dense = positions_in * len(taps) == 1  # then loop over taps, not over channels
    if dense:
        local, shifts, columns, positions = shifts, local, positions, columns
    flat_x, flat_weight, flat_out = x.reshape(-1), weight.reshape(-1), out.reshape(-1)
    height = block_height(outs.size)
    blocks = (outs.size + ROWS - 1) // ROWS
    groups = max(1, TASKS // slices)
    share = max(1, (blocks + groups - 1) // groups)  # blocks of a task
    groups = (blocks + share - 1) // share
    threads = limit_threads(outs.size * out.shape[1] * terms // 8)
    for task in prange(slices * groups):
        first_block = task % groups * share
        s0 = min(task // groups * TILE, samples - TILE) if sliced else 0
        near = flat_x
        if sliced:
            near = np.empty(ins.size * positions_in * TILE, x.dtype)
            for c in range(U(ins.size)):
                for q in range(U(positions_in)):
                    a, b = inputs[c] + q * U(samples) + U(s0), (c * U(positions_in) + q) * _tile
                    for v in range(_zero, _tile, _lanes):
                        copy(near, b + v, flat_x, a + v)
        source = near, local, shifts
        rows, begins = tile(registers(columns), ROWS), tile(registers(columns), ROWS)
        biases = tile(registers(x), ROWS)
        for block in range(first_block, min(first_block + share, blocks)):
            first = block * height
            for i in range(ROWS):  # a block that is not full computes its last channel again
                o = outs[min(first + i, outs.size - 1)]
                rows[i], biases[i] = o * row, bias[o]
            for r in range(count):
                begin, length = spans[r, 0] * samples + s0, spans[r, 1] * step
                p0, p1 = U(spans[r, 2]), U(ins.size if dense else spans[r + 1, 2])
                if length < TILE:
                    for i in range(first, min(first + height, outs.size)):
                        o = outs[i]
                        weights = flat_weight, U(o * row), columns, positions
                        target = out[o, begin : begin + length]
                        _correlate_short(source, weights, p0, p1, bias[o], target)
                    continue
                for i in range(ROWS):
                    begins[i] = outs[min(first + i, outs.size - 1)] * out.shape[1] + begin
                weights = flat_weight, rows, columns, positions
                number = U((length + TILE - 1) // TILE)
                tiles = number, _tile, U(length - TILE), U(length - TILE)
                if sliced:
                    tiles = number, U(samples), U(length - TILE), (number - _one) * U(samples)
                correlate_block(height, source, weights, p0, p1, biases, (flat_out, begins), tiles)
    set_threads(threads)


# -- products: the gradient of the weight ----------------------------------------------------


@inner
def _product_tile(x, inputs, first_input, grad, outputs, length, sums, at):
    """Multiply ROWS spans of grad by PRODUCTS spans of x, and add LANES partial sums for each pair.

    The spans of x begin at ``inputs[first_input:]``. The sums are added to ``sums[at:]``.
    """
    products = tile(registers(x), SUMS)
    b, a = tile(registers(outputs), ROWS), tile(registers(inputs), PRODUCTS)
    for i in range(_rows):
        b[i] = outputs[i]
    for j in range(_products):
        a[j] = inputs[first_input + j]
    for n in range(_zero, U(SUMS), _lanes):
        fill(products, n, x.dtype.type(0))
    whole = length - length % _lanes
    for first in range(_zero, whole, _lanes):
        for i in range(_rows):
            for j in range(_products):
                pair = (i * _products + j) * _lanes
                add_product(products, pair, grad, b[i] + first, x, a[j] + first)
    for n in range(U(SUMS)):
        sums[at + n] += products[n]
    if whole < length:
        for i in range(_rows):
            for j in range(_products):
                total = np.float64(0)  # one lane gets all these products
                for s in range(whole, length):
                    total += grad[b[i] + s] * x[a[j] + s]
                sums[at + (i * _products + j) * _lanes] += total


@threaded
def grad_weight(x, grad, ins, outs, spans, taps, samples, out):
    """Compute ``out[o, c, k] = sum_q sum_s grad[o, q, s] * x[c, input_p(q), s]`` for kernel_p = k.

    x is (C, positions * samples), grad (O, positions * samples), and out (O, C, K). Only the
    elements of out with o in ``outs`` and c in ``ins`` are written.
    """
    kernel = out.shape[2]
    groups = (kernel + PRODUCTS - 1) // PRODUCTS
    flat_x, flat_grad = x.reshape(-1), grad.reshape(-1)
    threads = limit_threads(outs.size * grad.shape[1] * ins.size * kernel // 8)
    for task in prange((outs.size + ROWS - 1) // ROWS * ins.size):
        first, c = task // ins.size * ROWS, ins[task % ins.size]
        rows = min(ROWS, outs.size - first)
        outputs, inputs = np.empty(ROWS, U), np.empty(groups * PRODUCTS, U)
        tapped = np.empty(groups * PRODUCTS, np.bool_)
        sums = np.zeros((groups + 1) * SUMS)  # in float64
        for r in range(len(spans) - 1):
            if spans[r, 2] == spans[r + 1, 2]:  # reads padding only; the span may be longer than x
                continue
            for i in range(ROWS):
                o = outs[first + min(i, rows - 1)]
                outputs[i] = o * grad.shape[1] + spans[r, 0] * samples
            for k in range(groups * PRODUCTS):
                inputs[k], tapped[k] = c * x.shape[1], k >= kernel
            for p in range(spans[r, 2], spans[r + 1, 2]):
                inputs[taps[p, 1]] = c * x.shape[1] + taps[p, 0] * samples
                tapped[taps[p, 1]] = True
            length = spans[r, 1] * samples
            for begin in range(0, length, CHUNK):
                for group in range(groups):
                    # If a kernel position of the group reads padding, the products go to the spare
                    # last group first, and those at other positions are added from there.
                    whole = True
                    for j in range(PRODUCTS):
                        whole &= tapped[group * PRODUCTS + j]
                    _product_tile(
                        flat_x, inputs, U(group * PRODUCTS), flat_grad, outputs,
                        U(min(CHUNK, length - begin)), sums, U((group if whole else groups) * SUMS),
                    )  # fmt: skip
                    if not whole:
                        for n in range(SUMS):
                            if tapped[group * PRODUCTS + n // LANES % PRODUCTS]:
                                sums[group * SUMS + n] += sums[groups * SUMS + n]
                            sums[groups * SUMS + n] = 0
                for k in range(groups * PRODUCTS):
                    inputs[k] += U(CHUNK)
                for i in range(ROWS):
                    outputs[i] += U(CHUNK)
        for i in range(rows):
            for k in range(kernel):
                at = (k // PRODUCTS * ROWS + i) * PRODUCTS + k % PRODUCTS
                total = np.float64(0)
                for s in range(LANES):
                    total += sums[at * LANES + s]
                out[outs[first + i], c, k] = total
    set_threads(threads)


@threaded
def transpose(x, rows, out):
    """Compute ``out[j, i] = x[rows[i], j]``, in strips that suit the cache."""
    threads = limit_threads(out.size)
    for strip in prange((rows.size + 15) // 16):
        for j in range(x.shape[1]):
            for i in range(strip * 16, min(strip * 16 + 16, rows.size)):
                out[j, i] = x[rows[i], j]
    set_threads(threads)


@threaded
def spread(x, rows, columns, out):
    """Set ``out[i, columns[j]] = x[i, j]``, and zeros elsewhere, for the rows i in ``rows``."""
    threads = limit_threads(rows.size * out.shape[1])
    for task in prange(rows.size):
        i = rows[task]
        out[i] = 0
        for j in range(columns.size):
            out[i, columns[j]] = x[i, j]
    set_threads(threads)


# -- pools and ReLU --------------------------------------------------------------------------

NOBODY = 255  # the winner of a window in which 0 is the largest


@threaded
def max_pool(x, channels, spans, taps, samples, relu, out, winner):
    """Compute the maximum of each window; at a tie the first position wins.

    x and out are (C, positions * samples). winner, uint8 with the shape of out, gets the kernel
    position of the maximum. With ``relu``, every window has a 0 in front of all positions. If this
    0 wins, winner is NOBODY.
    """
    count = len(spans) - 1
    threads = limit_threads(channels.size * x.shape[1])
    for task in prange(channels.size * count):
        c, r = channels[task // count], task % count
        begin, length = spans[r, 0] * samples, spans[r, 1] * samples
        y, k_max = out[c, begin : begin + length], winner[c, begin : begin + length]
        y[:], k_max[:] = 0, NOBODY
        for p in range(spans[r, 2], spans[r + 1, 2]):
            at, k = taps[p, 0] * samples, np.uint8(taps[p, 1])
            v = x[c, at : at + length]
            if p == spans[r, 2] and not relu:
                y[:], k_max[:] = v, k
                continue
            # Two loops, and arithmetic in place of a choice between bytes, vectorise everywhere.
            for s in range(length):
                larger = np.uint8((v[s] > y[s]) | (v[s] != v[s]))  # NaN is taken, and kept
                k_max[s] ^= larger * (k ^ k_max[s])
            for s in range(length):
                y[s] = v[s] if (v[s] > y[s]) | (v[s] != v[s]) else y[s]
    set_threads(threads)


@threaded
def grad_max_pool(grad, winner, channels, spans, taps, samples, out):
    """Pass each gradient to the winner of its window, with spans and taps of the backward map."""
    count = len(spans) - 1
    threads = limit_threads(channels.size * out.shape[1])
    for task in prange(channels.size * count):
        c, r = channels[task // count], task % count
        begin, length = spans[r, 0] * samples, spans[r, 1] * samples
        y, zero = out[c, begin : begin + length], out.dtype.type(0)
        if spans[r, 2] == spans[r + 1, 2]:  # no window reads these positions
            y[:] = 0
        for p in range(spans[r, 2], spans[r + 1, 2]):
            at, k = taps[p, 0] * samples, np.uint8(taps[p, 1])
            g, k_max = grad[c, at : at + length], winner[c, at : at + length]
            if p == spans[r, 2]:
                for s in range(length):
                    y[s] = g[s] if k_max[s] == k else zero
            else:
                for s in range(length):
                    y[s] += g[s] if k_max[s] == k else zero
    set_threads(threads)


@threaded
def relu(x, rows, out):
    """Compute ``out[i] = max(x[i], 0)`` for the rows listed; arrays are (rows, columns)."""
    threads = limit_threads(rows.size * x.shape[1])
    for task in prange(rows.size):
        i = rows[task]
        for s in range(x.shape[1]):
            v = x[i, s]
            out[i, s] = 0 if v < 0 else v  # NaN is kept
    set_threads(threads)


@threaded
def grad_relu(grad, out, rows, grad_x):
    """Compute the gradient of the input of :func:`relu`, given its output."""
    threads = limit_threads(rows.size * grad.shape[1])
    for task in prange(rows.size):
        i = rows[task]
        for s in range(grad.shape[1]):
            grad_x[i, s] = grad[i, s] if out[i, s] > 0 else 0
    set_threads(threads)


# -- rows ------------------------------------------------------------------------------------


@threaded
def sum_rows(x, rows, out):
    """Compute ``out[i] = sum(x[i])``, in float64, for the rows listed; x is (rows, columns)."""
    threads = limit_threads(rows.size * x.shape[1])
    for task in prange(rows.size):
        i = rows[task]
        total = np.float64(0)
        for s in range(x.shape[1]):
            total += x[i, s]
        out[i] = total
    set_threads(threads)
