"""The compiled loops over single weights, for layers with few weights left.

The equation is that of ``kernels.py``. There, all pairs of the listed channels are computed. Here,
a layer has a *list* of weights, and only the weights on the list are computed: each adds its
multiple of a span of the input to a span of the output. Batch last makes that fast, because a span
is a long contiguous run: each weight is one vector multiply-add after another.

The sums for RUN numbers of a span stay in registers while the loop goes over all weights of an
output. For the gradient of weights, the products of one span of grad with PARALLEL spans of x stay
in registers. As in the dense loops, threads divide outputs, never the terms of a sum.
"""

from typing import NamedTuple

import numpy as np

from .arrays import Indices
from .compiled import inner, limit_threads, prange, serial, set_threads, threaded
from .kernels import CHUNK, FEATURES, TILE
from .vectors import LANES, U, add_product, add_scaled, copy, fill, registers, tile

#: The largest share of weights for which these loops run. They need a load for each multiply-add,
#: and dense loops half of one, so at half of the weights both take about as long.
SPARSE = 0.4

SPAN = 4  # vectors of TILE numbers, whose sums stay in registers
RUN, PARALLEL = SPAN * TILE, 8
TARGETS = 8  # outputs that a task computes one after another, while the nearest cache holds x
_tile, _parallel, _lanes = U(TILE), U(PARALLEL), U(LANES)
_features, _zero, _one = U(FEATURES), U(0), U(1)


def pays(weights: int, pairs: int) -> bool:
    """Return whether the sparse loops are faster, given the weights left and those if dense."""
    return weights <= SPARSE * pairs


class WeightList(NamedTuple):
    """The weights of a layer, grouped by target: by output, or by input for the gradient of x.

    Attributes
    ----------
    starts : (targets + 1,) int64
        The weights of target t are those from ``starts[t]`` up to ``starts[t + 1]``.
    sources : (weights,) int64
        The channel that each weight reads.
    kernels : (weights,) int64
        The kernel position of each weight.
    places : (weights,) int64
        The position of each weight in the flat weight array.
    """

    starts: Indices
    sources: Indices
    kernels: Indices
    places: Indices


def by_output(places: Indices, shape: tuple[int, int, int]) -> WeightList:
    """List the weights at ``places``, which increase, of a flat array (O, C, K)."""
    listed = _empty_list(shape[0], places.size)
    _by_output(places, shape[1], shape[2], listed)
    return listed


def by_input(listed: WeightList, inputs: int) -> WeightList:
    """Return the same weights grouped by input, and in the same order for each input."""
    swapped = _empty_list(inputs, listed.places.size)
    _by_input(listed, swapped)
    return swapped


def _empty_list(targets: int, weights: int) -> WeightList:
    return WeightList(np.zeros(targets + 1, np.int64), *np.empty((3, weights), np.int64))


@serial
def _by_output(places, inputs, kernel, out):
    for e in range(places.size):
        channel = places[e] // kernel
        output = channel // inputs
        out.starts[output + 1] += 1
        out.sources[e], out.kernels[e] = channel - output * inputs, places[e] - channel * kernel
        out.places[e] = places[e]
    for o in range(out.starts.size - 1):
        out.starts[o + 1] += out.starts[o]


@serial
def _by_input(listed, out):
    for e in range(listed.sources.size):
        out.starts[listed.sources[e] + 1] += 1
    for c in range(out.starts.size - 1):
        out.starts[c + 1] += out.starts[c]
    free = out.starts.copy()
    for o in range(listed.starts.size - 1):
        for e in range(listed.starts[o], listed.starts[o + 1]):
            at = free[listed.sources[e]]
            free[listed.sources[e]] += 1
            out.sources[at], out.kernels[at] = o, listed.kernels[e]
            out.places[at] = listed.places[e]


@inner
def _reads(spans, taps, r, samples, reads):
    """Set ``reads[k]`` to where span r reads its source through kernel position k, or to -1."""
    for k in range(reads.size):
        reads[k] = -1
    for p in range(spans[r, 2], spans[r + 1, 2]):
        reads[taps[p, 1]] = taps[p, 0] * samples


# -- correlation: layers, and the gradient of their input ------------------------------------


def correlate_run_of(count):
    """Return the loop over the weights of an output, for ``count`` times TILE numbers of it."""
    size = U(count * TILE)

    @inner
    def correlate_run(x, addresses, factors, first, last, start, bias, out, target, steps):
        """Weight e reads x from ``addresses[e] + start`` on.

        ``steps`` are those from one of the vectors to the next, in x and in out.
        """
        sums, (step_in, step_out) = tile(registers(x), count * TILE), steps
        for v in range(_zero, size, _lanes):
            fill(sums, v, bias)
        for piece in range(first, max(last, first + _one), _features):  # loses no digits
            for e in range(piece, min(piece + _features, last)):
                a, w = addresses[e] + start, factors[e]
                for v in range(_zero, size, _lanes):
                    add_scaled(sums, v, x, a + v // _tile * step_in + v % _tile, w)
            for v in range(_zero, size, _lanes):
                at = target + v // _tile * step_out + v % _tile
                if piece > first:
                    add_scaled(sums, v, out, at, x.dtype.type(1))
                copy(out, at, sums, v)
                fill(sums, v, x.dtype.type(0))

    return correlate_run


_correlate_run = correlate_run_of(SPAN)


@inner
def _correlate_short(x, addresses, factors, first, last, bias, out):
    """Compute an output of a span that is shorter than RUN."""
    length, part = U(out.size), np.empty(out.size, x.dtype)
    out[:] = bias
    for piece in range(first, last, _features):
        part[:] = 0
        for e in range(piece, min(piece + _features, last)):
            a, w = addresses[e], factors[e]
            for s in range(length):
                part[s] += w * x[a + s]
        for s in range(length):
            out[s] += part[s]


@threaded
def correlate(x, weight, listed, bias, targets, spans, taps, kernel, samples, out):
    """Compute :func:`minidiff.engine.kernels.correlate` from a list of weights.

    x is (C, positions * samples), weight flat, bias (O,), and out (O, positions * samples). Only
    the rows of out in ``targets`` are written.
    """
    starts, sources, kernels, places = listed
    count = len(spans) - 1
    blocks = (targets.size + TARGETS - 1) // TARGETS
    flat, size = x.reshape(-1), out.shape[1]
    flat_out = out.reshape(-1)
    threads = limit_threads(places.size * out.shape[1] // 8)
    for task in prange(count * blocks):
        r, block = task // blocks, task % blocks * TARGETS
        own = targets[block : block + TARGETS]
        begin, length = spans[r, 0] * samples, spans[r, 1] * samples
        reads = np.empty(kernel, np.int64)
        _reads(spans, taps, r, samples, reads)
        most = 0
        for o in own:
            most += starts[o + 1] - starts[o]
        addresses, factors = np.empty(most, U), np.empty(most, x.dtype)
        ends = np.zeros(TARGETS + 1, U)
        found = 0
        for i in range(own.size):
            for e in range(starts[own[i]], starts[own[i] + 1]):
                read = reads[kernels[e]]
                if read >= 0:  # padding otherwise
                    addresses[found] = sources[e] * x.shape[1] + read
                    factors[found] = weight[places[e]]
                    found += 1
            ends[i + 1] = found
        if length < RUN:
            for i in range(own.size):
                row = out[own[i], begin : begin + length]
                _correlate_short(flat, addresses, factors, ends[i], ends[i + 1], bias[own[i]], row)
            continue
        for number in range(0, length, RUN):
            start = U(min(number, length - RUN))  # the last run overlaps the one before
            for i in range(own.size):
                target = U(own[i] * size + begin) + start
                _correlate_run(
                    flat, addresses, factors, ends[i], ends[i + 1], start, bias[own[i]],
                    flat_out, target, (_tile, _tile),
                )  # fmt: skip
    set_threads(threads)


# -- products: the gradient of the weights ---------------------------------------------------


@inner
def _products(grad, at, x, addresses, e, length, totals):
    """Multiply a span of grad by PARALLEL spans of x, and add the sums to ``totals[e:]``."""
    products = tile(registers(x), PARALLEL * LANES)
    a = tile(registers(addresses), PARALLEL)
    for j in range(_parallel):
        a[j] = addresses[e + j]
    for j in range(_parallel):
        fill(products, j * _lanes, x.dtype.type(0))
    whole = length - length % _lanes
    for first in range(_zero, whole, _lanes):
        for j in range(_parallel):
            add_product(products, j * _lanes, grad, at + first, x, a[j] + first)
    for j in range(_parallel):
        total = np.float64(0)
        for s in range(_lanes):
            total += products[j * _lanes + s]
        for s in range(whole, length):
            total += grad[at + s] * x[a[j] + s]
        totals[e + j] += total


@threaded
def grad_weight(x, grad, listed, outs, spans, taps, kernel, samples, out):
    """Compute :func:`minidiff.engine.kernels.grad_weight` for a list of weights, by output.

    x is (C, positions * samples), grad (O, positions * samples), and out flat. Only the elements of
    out on the list, of outputs in ``outs``, are written.
    """
    starts, sources, kernels, places = listed
    flat_x, flat_grad = x.reshape(-1), grad.reshape(-1)
    threads = limit_threads(places.size * grad.shape[1] // 8)
    for task in prange(outs.size):
        o = outs[task]
        first, count = starts[o], starts[o + 1] - starts[o]
        room = count + PARALLEL  # the last group may go beyond the list
        addresses, numbers, sums = np.zeros(room, U), np.empty(room, U), np.zeros(room)
        totals, reads = np.zeros(count), np.empty(kernel, np.int64)
        for r in range(len(spans) - 1):
            _reads(spans, taps, r, samples, reads)
            found = 0
            for e in range(count):
                read = reads[kernels[first + e]]
                if read >= 0:
                    addresses[found] = sources[first + e] * x.shape[1] + read
                    numbers[found] = e
                    found += 1
            if found == 0:
                continue
            for j in range(found, found + PARALLEL):
                addresses[j] = addresses[found - 1]
            at = U(o * grad.shape[1] + spans[r, 0] * samples)
            length = spans[r, 1] * samples
            for begin in range(0, length, CHUNK):
                size = U(min(CHUNK, length - begin))
                for e in range(_zero, U(found), _parallel):
                    _products(flat_grad, at, flat_x, addresses, e, size, sums)
                for j in range(found + PARALLEL):
                    addresses[j] += U(CHUNK)
                at += U(CHUNK)
            for e in range(found):
                totals[numbers[e]] += sums[e]
            sums[:] = 0
        for e in range(count):
            out[places[first + e]] = totals[e]
    set_threads(threads)
