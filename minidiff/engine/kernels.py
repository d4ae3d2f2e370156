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
contiguous in x and in out. Kernel size, stride and padding become index arrays
(:func:`position_maps`). A dense layer has one position, one tap, and a channel for each feature.

**Runs.** Taps whose input and kernel positions both follow each other are a *run*: with a stride of
1, a row of the kernel. Each task copies TILE samples of x, with the channels of a position side by
side, and weights are laid out in the same order. A run, through all channels, then reads one
contiguous run of numbers and one of weights.

**Register tiles.** The sums for 5 output channels and 64 samples stay in registers while the loop
goes over all terms: 20 vector multiply-adds for 4 loads of x and 5 of weights. The gradient of the
weight keeps 5 times 5 sums of products in registers. Without AVX-512, registers are half as wide
and half as many: tiles have 16 samples, and 4 times 3 sums. So arithmetic limits the speed, not
memory.

**Skipping is data.** ``ins`` and ``outs`` list the channels to compute; other channels cost
nothing. Threads divide the outputs, never the terms of a sum, and each sum has a fixed order:
results are bit-identical at any number of threads.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .arrays import Indices
from .compiled import inner, limit_threads, prange, set_threads, threaded
from .vectors import LANES, WIDE, U, add_product, add_scaled, copy, fill, registers, tile

# The sizes of register tiles: TILE samples for ROWS outputs, or for FEWEST; and products of GRADS
# spans of grad with PRODUCTS spans of x.
TILE, ROWS, FEWEST, GRADS, PRODUCTS = (64, 5, 3, 5, 5) if WIDE else (16, 5, 3, 4, 3)
SUMS = GRADS * PRODUCTS * LANES
# Numbers of a span, or features, that a register sums up: longer sums would lose digits.
CHUNK, FEATURES = 2048, 1024
PIECE = 1024  # numbers of a span that stay in the nearest cache
PART = 1 << 14  # about the least numbers that a task sums up for a weight
STRIP = 16  # rows whose columns are read together: they fit in the nearest cache at any stride
_grads, _products, _tile, _lanes, _zero, _one = map(U, (GRADS, PRODUCTS, TILE, LANES, 0, 1))

# -- which positions pair up -----------------------------------------------------------------


@dataclass(frozen=True)
class PositionMap:
    """Which positions each target position reads, and through which kernel positions.

    Attributes
    ----------
    shape : (int, int)
        Height and width of the target.
    spans : (S + 1, 4) int64
        For each span: its first target position, its number of positions, its first tap, and its
        first run. The last row ends the list: its first tap is P, its first run R.
    taps : (P, 2) int64
        For each tap: the source position that the first target of the span reads, and the kernel
        position.
    runs : (R, 3) int64
        For each *run*, taps whose source and kernel positions both increase by one: the first
        of both, and the number of taps. In the backward map, kernel positions are
        counted from the last.
    """

    shape: tuple[int, int]
    spans: Indices
    taps: Indices
    runs: Indices


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
        _position_map((rows, columns), outputs, inputs, kernels, kernels),
        _position_map(size, inputs, outputs, kernels, tall * wide - 1 - kernels),
    )


def _position_map(
    shape: tuple[int, int], targets: Indices, sources: Indices, kernels: Indices, packed: Indices
) -> PositionMap:
    """Group triples by target, and neighbours in a row with the same taps into spans.

    ``packed`` are the kernel positions in the order of sources.
    """
    order = np.lexsort((packed, targets))
    targets, sources, kernels, packed = (v[order] for v in (targets, sources, kernels, packed))
    size = shape[0] * shape[1]
    taps = np.bincount(targets, minlength=size)  # how many taps each target has
    left = np.arange(len(targets)) - taps[targets]  # the same tap of the left neighbour
    differs = (sources - sources[left] != 1) | (kernels != kernels[left])
    joins = np.arange(size) % shape[1] != 0  # which targets extend the span on their left
    joins[1:] &= (taps[1:] == taps[:-1]) & (np.bincount(targets[differs], minlength=size)[1:] == 0)
    first = (~joins).nonzero()[0]
    kept = ~joins[targets]
    targets, sources, kernels, packed = (v[kept] for v in (targets, sources, kernels, packed))
    goes_on = (np.diff(targets) == 0) & (np.diff(sources) == 1) & (np.diff(packed) == 1)
    begins = np.append(0, (~goes_on).nonzero()[0] + 1)[: len(targets)]
    first_tap = np.searchsorted(targets, [*first, size])
    columns = [*first, size], [*np.diff(first, append=size), 0], first_tap
    return PositionMap(
        shape,
        np.stack([*columns, np.searchsorted(begins, first_tap)], axis=1),
        np.stack([sources, kernels], axis=1),
        np.stack([sources[begins], packed[begins], np.diff(begins, append=len(targets))], axis=1),
    )


@inner
def _addresses(indices, step):
    """Return ``indices * step``, unsigned."""
    out = np.empty(indices.size, U)
    for i in range(indices.size):
        out[i] = indices[i] * step
    return out


# -- correlation: layers, and the gradient of their input ------------------------------------


def _correlate_span_of(height):
    """Return the loop over a span for blocks of ``height`` output channels."""
    size, rows = height * TILE, U(height)

    @inner
    def correlate_span(source, weights, bias, target, first_run, last_run, count):
        """Compute ``count`` positions of a span, for a block of channels after another.

        All arrays are flat. Term t of run r is a vector of x, from ``reads[r] + t * TILE`` on,
        times the weight at ``o * terms + columns[r] + t``. Output o begins at ``begins[o] + to``.
        The steps are those from one position to the next, in the input and in the output. A block
        that is not full computes its last channel again.
        """
        (x, reads, step_in), (weight, terms, columns, lengths) = source, weights
        out, begins, to, step_out, first_output, last_output = target
        sums = tile(registers(x), size)
        row, begin, constant = (
            tile(registers(reads), height), tile(registers(reads), height),
            tile(registers(x), height),
        )  # fmt: skip
        for first in range(first_output, last_output, rows):
            for i in range(rows):
                o = min(first + i, last_output - _one)
                row[i], begin[i], constant[i] = o * terms, begins[o] + to, bias[o]
            for number in range(count):
                start, at = number * step_in, number * step_out
                for i in range(rows):
                    for v in range(_zero, _tile, _lanes):
                        fill(sums, i * _tile + v, constant[i])
                for r in range(first_run, last_run):
                    a, k = reads[r] + start, columns[r]
                    for _ in range(lengths[r]):
                        for v in range(_zero, _tile, _lanes):
                            for i in range(rows):
                                add_scaled(sums, i * _tile + v, x, a + v, weight[row[i] + k])
                        a += _tile
                        k += _one
                for i in range(rows):
                    for v in range(_zero, _tile, _lanes):
                        copy(out, begin[i] + at + v, sums, i * _tile + v)

    return correlate_span


_correlate_span_3, _correlate_span_4 = _correlate_span_of(3), _correlate_span_of(4)
_correlate_span_5 = _correlate_span_of(ROWS)


@inner
def block_height(channels):
    """Return how many channels a block has: 8 are two blocks of 4, not one of 5 and one of 3."""
    blocks = (channels + ROWS - 1) // ROWS
    return max(FEWEST, (channels + blocks - 1) // max(1, blocks))


@inner
def correlate_span(height, source, weights, bias, target, first_run, last_run, count):
    """Compute a span for blocks of ``height`` channels."""
    if height == 3:
        _correlate_span_3(source, weights, bias, target, first_run, last_run, count)
    elif height == 4:
        _correlate_span_4(source, weights, bias, target, first_run, last_run, count)
    else:
        _correlate_span_5(source, weights, bias, target, first_run, last_run, count)


@inner
def _copy_slice(x, ins, samples, first, near):
    """Copy TILE samples of the listed channels, from sample ``first`` on, to (positions, C, TILE).

    Of fewer samples, the rest is filled with zeros.
    """
    plane, channels = U(x.shape[1]), U(ins.size)
    flat, length = x.reshape(-1), U(samples)
    for c in range(channels):
        a, b = U(ins[c]) * plane + U(first), c * _tile
        for _ in range(x.shape[1] // max(1, samples)):
            if samples >= TILE:
                for v in range(_zero, _tile, _lanes):
                    copy(near, b + v, flat, a + v)
            else:
                for s in range(_tile):
                    near[b + s] = flat[a + s] if s < length else 0
            a += length
            b += channels * _tile


@threaded
def correlate(x, weight, swapped, bias, ins, outs, spans, runs, samples, out):
    """Compute the equation at the top of this file.

    x is (C, positions * samples), weight (O, C, K), or (C, O, K) if ``swapped``, bias (O,), and out
    (O, positions * samples). Only the rows of out in ``outs`` are written.

    Weights are first laid out in the order in which they are read, as (outs, K, ins); if swapped,
    kernel positions are in reverse, as the order of sources is. Each task computes TILE samples,
    for some blocks of channels. It copies these samples of x: then a run of taps, through all
    channels, reads one contiguous run of memory.
    """
    channels, kernel, positions = ins.size, weight.shape[2], x.shape[1] // max(1, samples)
    terms = kernel * channels
    threads = limit_threads(outs.size * out.shape[1] * terms // 8)
    packed = weight.reshape(-1)
    whole = (outs.size, channels) == weight.shape[:2]
    if swapped or not whole or (channels > 1 and kernel > 1):
        packed = np.empty(outs.size * terms, weight.dtype)
        flat_weight, row, column = weight.reshape(-1), weight.shape[1] * kernel, kernel
        if swapped:
            row, column = column, row
        rows, weight_columns = _addresses(outs, row), _addresses(ins, column)
        for strip in prange((channels + STRIP - 1) // STRIP):
            first_input, last_input = U(strip * STRIP), U(min(strip * STRIP + STRIP, channels))
            for i in range(U(outs.size)):
                for k in range(U(kernel)):
                    at = i * U(terms) + (U(kernel - 1) - k if swapped else k) * U(channels)
                    for c in range(first_input, last_input):
                        packed[at + c] = flat_weight[rows[i] + weight_columns[c] + k]
    columns, lengths = _addresses(runs[:, 1], channels), _addresses(runs[:, 2], channels)
    weights = packed, U(terms), columns, lengths
    reads, begins = _addresses(runs[:, 0], channels * TILE), _addresses(outs, out.shape[1])
    flat, constants = out.reshape(-1), bias[outs]
    narrow = samples < TILE  # then a span is computed in spare memory, and copied from there
    longest = spans[:, 1].max() if narrow else 0
    spare_begins = _addresses(np.arange(outs.size), longest * TILE)
    height = block_height(outs.size)
    blocks, slices = (outs.size + ROWS - 1) // ROWS, (samples + TILE - 1) // TILE
    groups = max(1, 4 * threads // max(1, slices))
    share = max(1, (blocks + groups - 1) // groups) * height  # channels of a task
    groups = (outs.size + share - 1) // share
    for task in prange(slices * groups):
        first = task % groups * share
        last = min(first + share, outs.size)
        # The last slice overlaps the one before.
        first_sample = 0 if narrow else min(task // groups * TILE, samples - TILE)
        near = np.empty(positions * channels * TILE, x.dtype)
        _copy_slice(x, ins, samples, first_sample, near)
        spare = np.empty(outs.size * longest * TILE, x.dtype)
        source = near, reads, U(channels * TILE)
        for r in range(len(spans) - 1):
            begin, length = spans[r, 0] * samples + first_sample, U(spans[r, 1])
            target = flat, begins, U(begin), U(samples), U(first), U(last)
            if narrow:
                target = spare, spare_begins, _zero, _tile, U(first), U(last)
            first_run, last_run = U(spans[r, 3]), U(spans[r + 1, 3])
            correlate_span(height, source, weights, constants, target, first_run, last_run, length)
            if narrow:
                for i in range(first, last):
                    for q in range(length):
                        for s in range(samples):
                            value = spare[spare_begins[i] + q * TILE + s]
                            out[outs[i], begin + q * samples + s] = value
    set_threads(threads)


# -- products: the gradient of the weight ----------------------------------------------------


@inner
def _product_tiles(x, inputs, places, grad, outputs, length, sums):
    """Multiply GRADS spans of grad by spans of x, and add LANES partial sums for each pair.

    Span j of x begins at ``inputs[j]``; its sums, with one grad after another, at ``places[j]``.
    """
    products = tile(registers(x), SUMS)
    b, a = tile(registers(places), GRADS), tile(registers(places), PRODUCTS)
    one = _grads * _lanes  # the sums of a span
    for i in range(_grads):
        b[i] = outputs[i]
    whole = length - length % _lanes
    for first_input in range(_zero, U(inputs.size), _products):
        for j in range(_products):
            a[j] = inputs[first_input + j]
        for j in range(_products):
            for v in range(_zero, one, _lanes):
                copy(products, j * one + v, sums, places[first_input + j] + v)
        for first in range(_zero, whole, _lanes):
            for i in range(_grads):
                for j in range(_products):
                    pair = j * one + i * _lanes
                    add_product(products, pair, grad, b[i] + first, x, a[j] + first)
        for j in range(_products):
            for v in range(_zero, one, _lanes):
                copy(sums, places[first_input + j] + v, products, j * one + v)
        for j in range(_products if whole < length else _zero):
            for i in range(_grads):
                total = np.float64(0)  # one lane gets all these products
                for s in range(whole, length):
                    total += grad[b[i] + s] * x[a[j] + s]
                sums[places[first_input + j] + i * _lanes] += total


@threaded
def grad_weight(x, grad, ins, outs, spans, taps, samples, out):
    """Compute ``out[o, c, k] = sum_q sum_s grad[o, q, s] * x[c, input_p(q), s]`` for kernel_p = k.

    x is (C, positions * samples), grad (O, positions * samples), and out (O, C, K). Only the
    elements of out with o in ``outs`` and c in ``ins`` are written.

    Spans are cut into pieces that suit the cache. Tasks divide long sums into parts, which depend
    on neither threads, nor lists, nor channels: a compact network computes the same bits.
    """
    kernel, count = out.shape[2], len(spans) - 1
    blocks = (outs.size + GRADS - 1) // GRADS
    parts = max(1, min(count, grad.shape[1] // PART))
    flat_x, flat_grad = x.reshape(-1), grad.reshape(-1)
    totals = np.zeros((parts, blocks * ins.size, kernel * GRADS))
    threads = limit_threads(outs.size * grad.shape[1] * ins.size * kernel // 8)
    for task in prange(parts * blocks * ins.size):
        part, pair = task % parts, task // parts
        first, c = pair // ins.size * GRADS, ins[pair % ins.size]
        outputs, inputs = np.empty(GRADS, U), np.empty(kernel + PRODUCTS, U)
        places = np.empty(kernel + PRODUCTS, U)
        # The last group of taps may not be full: its other products go behind the sums.
        sums, summed = np.zeros((kernel + 1) * GRADS * LANES, x.dtype), 0
        long_sums = np.zeros(kernel * GRADS * LANES)  # in float64
        for r in range(part * count // parts, (part + 1) * count // parts):
            for i in range(GRADS):
                o = outs[min(first + i, outs.size - 1)]
                outputs[i] = o * grad.shape[1] + spans[r, 0] * samples
            found = spans[r + 1, 2] - spans[r, 2]
            if found == 0:  # reads padding only; the span may be longer than x
                continue
            full = (found + PRODUCTS - 1) // PRODUCTS * PRODUCTS
            for j in range(full):
                p = spans[r, 2] + min(j, found - 1)
                inputs[j] = c * x.shape[1] + taps[p, 0] * samples
                places[j] = (taps[p, 1] if j < found else kernel) * GRADS * LANES
            length = spans[r, 1] * samples
            for begin in range(0, length, PIECE):
                size = min(PIECE, length - begin)
                _product_tiles(flat_x, inputs[:full], places, flat_grad, outputs, U(size), sums)
                for j in range(full):
                    inputs[j] += U(PIECE)
                for i in range(GRADS):
                    outputs[i] += U(PIECE)
                summed += size
                if summed >= CHUNK:
                    _move(sums, long_sums)
                    summed = 0
        _move(sums, long_sums)
        for i in range(kernel * GRADS):
            for s in range(LANES):
                totals[part, pair, i] += long_sums[i * LANES + s]
    for pair in range(blocks * ins.size):
        first, c = pair // ins.size * GRADS, ins[pair % ins.size]
        for i in range(min(GRADS, outs.size - first)):
            for k in range(kernel):
                total = np.float64(0)
                for part in range(parts):
                    total += totals[part, pair, k * GRADS + i]
                out[outs[first + i], c, k] = total
    set_threads(threads)


@inner
def _move(sums, long_sums):
    """Add sums to others of more digits, and set them to 0."""
    for i in range(U(long_sums.size)):
        long_sums[i] += sums[i]
        sums[i] = 0


@threaded
def transpose(x, rows, out):
    """Compute ``out[j, i] = x[rows[i], j]``, in strips that suit the cache."""
    begins, flat = _addresses(rows, x.shape[1]), x.reshape(-1)
    threads = limit_threads(out.size)
    for strip in prange((rows.size + STRIP - 1) // STRIP):
        first, last = U(strip * STRIP), U(min(strip * STRIP + STRIP, rows.size))
        for j in range(U(x.shape[1])):
            for i in range(first, last):
                out[j, i] = flat[begins[i] + j]
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
