"""The compiled loops of prediction; ``predictor.py`` explains what a program is.

Numba keeps compiled code on disk and notices changes of this file only: after a change of what it
takes from the kernels of the engine, touch this file too.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidiff.engine.arrays import Indices
from minidiff.engine.compiled import inner, prange, serial, threaded
from minidiff.engine.kernels import TILE, block_height, correlate_span
from minidiff.engine.sparse import SPAN, correlate_run_of
from minidiff.engine.vectors import (
    LANES,
    U,
    add_scaled,
    copy,
    fill,
    registers,
    take_larger,
    tile,
)

CONV, GATHER, POOL, SPARSE, ACTIVATE = range(5)
FUNCTIONS = ("Sigmoid", "Tanh", "SiLU", "GELU", "LeakyReLU")  # of an ACTIVATE, by their numbers
SIGMOID, TANH, SILU, GELU, LEAKY = range(len(FUNCTIONS))
SPARE = 2 * LANES  # numbers of room behind each buffer, as whole vectors are written
POSITIONS = 8  # of a tile, whose sums stay in registers
_positions, _lanes, _tile, _span = U(POSITIONS), U(LANES), U(TILE), U(SPAN)
_zero, _one = U(0), U(1)

# A step: where its input and output begin, the sizes of both and of the window that moves, by how
# much it moves, and where weights (or the indices of a GATHER) and biases begin. For a SPARSE, too,
# where among indices the first weight of each output begins, and what each weight reads.
STEP = np.dtype(
    [
        (name, np.uint64)
        for name in (
            *("kind", "source", "target", "channels", "height", "width", "rows", "columns"),
            *("tall", "wide", "down", "right", "outputs", "first", "bias", "relu", "largest"),
            *("starts", "reads"),
        )
    ]
)


def _window_of(length):
    """Return the loop over a window for vectors of so many numbers."""
    size = U(length)

    @inner
    def window(step, work, source, next_row, next_position, target):
        """Take the largest, or the mean, of the vectors in a window."""
        share = np.float32(1) / np.float32(step.tall * step.wide)
        best, floor = tile(registers(work), length), tile(registers(work), LANES)
        fill(floor, _zero, np.float32(0))
        for v in range(_zero, size, _lanes):
            if step.largest:
                copy(best, v, work, source + v)
            else:
                fill(best, v, np.float32(0))
        for i in range(step.tall):
            for j in range(step.wide):
                at = source + i * next_row + j * next_position
                for v in range(_zero, size, _lanes):
                    if step.largest:
                        take_larger(best, v, work, at + v)
                    else:
                        add_scaled(best, v, work, at + v, share)
        for v in range(_zero, size, _lanes):
            if step.relu:
                take_larger(best, v, floor, _zero)
            copy(work, target + v, best, v)

    return window


_pool_lanes, _pool_samples = _window_of(LANES), _window_of(TILE)


@inner
def _activate(step, biases, work, unit):
    """Compute an ACTIVATE; each number of the program is ``unit`` numbers of ``work``."""
    slope, one, half = biases[step.bias], np.float32(1), np.float32(0.5)
    for i in range(step.outputs * step.rows * step.columns * unit):
        v = work[step.source * unit + i]
        if step.largest == TANH:
            out = np.float32(math.tanh(v))
        elif step.largest == GELU:
            out = half * v * (one + math.erf(v * np.float32(math.sqrt(0.5))))
        elif step.largest == LEAKY:
            out = v if v > 0 else slope * v
        else:  # of numbers from 0 down exp does not overflow
            small = np.float32(math.exp(-abs(v)))
            out = (one if v >= 0 else small) / (one + small)
            if step.largest == SILU:
                out *= v
        work[step.target * unit + i] = out
    if step.relu:
        end = step.target + step.outputs * step.rows * step.columns
        for i in range(step.target * unit, end * unit):
            work[i] = 0 if work[i] < 0 else work[i]


# -- one image after another ----------------------------------------------------------------------


def _conv_of(count):
    """Return the loop that computes a vector of outputs at ``count`` adjacent positions."""
    size, positions = count * LANES, U(count)

    @inner
    def conv(step, work, source, weights, first, lanes, biases, bias, target):
        """Sum up windows, each ``tall`` rows of contiguous numbers."""
        next_row, next_position = step.width * step.channels, step.right * step.channels
        length, outputs, relu = step.wide * step.channels, step.outputs, step.relu != 0
        sums = tile(registers(work), size)
        for p in range(positions):
            copy(sums, p * _lanes, biases, bias)
        for i in range(step.tall):
            x, k = source + i * next_row, first + i * length * lanes
            for c in range(length):
                for p in range(positions):
                    number = work[x + c + p * next_position]
                    add_scaled(sums, p * _lanes, weights, k + c * lanes, number)
        least = np.float32(0) if relu else np.float32(-np.inf)
        for p in range(positions):
            for s in range(_lanes):
                v = sums[p * _lanes + s]
                work[target + p * outputs + s] = least if v < least else v

    return conv


_conv_positions, _conv_position = _conv_of(POSITIONS), _conv_of(1)


@inner
def _conv(step, weights, biases, work):
    """Compute a CONV, the last vector of channels first: its excess lanes are overwritten after."""
    columns, outputs = step.columns, step.outputs
    lanes = (outputs + _lanes - _one) // _lanes * _lanes
    for number in range(_lanes, lanes + _one, _lanes):
        block = lanes - number
        first, bias = step.first + block, step.bias + block
        for y in range(step.rows):
            row = step.source + y * step.down * step.width * step.channels
            target = step.target + y * columns * outputs + block
            if columns < _positions:
                for x in range(columns):
                    source = row + x * step.right * step.channels
                    at = target + x * outputs
                    _conv_position(step, work, source, weights, first, lanes, biases, bias, at)
                continue
            for start in range(_zero, columns, _positions):
                x = min(start, columns - _positions)  # the last tile overlaps the one before
                source, at = row + x * step.right * step.channels, target + x * outputs
                _conv_positions(step, work, source, weights, first, lanes, biases, bias, at)


@inner
def _pool(step, work):
    """Compute a POOL, the last vector of channels first."""
    next_row, channels = step.width * step.channels, step.channels
    lanes = (channels + _lanes - _one) // _lanes * _lanes
    for number in range(_lanes, lanes + _one, _lanes):
        block = lanes - number
        for y in range(step.rows):
            for x in range(step.columns):
                source = step.source + y * step.down * next_row + x * step.right * channels
                target = step.target + (y * step.columns + x) * channels
                _pool_lanes(step, work, source + block, next_row, channels, target + block)


@serial
def run_few(
    steps: NDArray[Any],  # (steps,) of STEP
    weights: NDArray[np.float32],
    biases: NDArray[np.float32],
    indices: NDArray[np.uint64],
    at: Indices,
    size: int,
    numbers: NDArray[np.float32],  # (N, inputs)
    shift: np.float32,
    factor: np.float32,
    out: NDArray[np.float32],  # (N, outputs)
) -> None:
    """Run a program for one row of numbers after another."""
    work = np.empty(size, np.float32)
    work[0] = 0
    for n in range(len(numbers)):
        for j in range(numbers.shape[1]):
            work[1 + j] = (numbers[n, j] - shift) * factor
        for i in range(len(steps)):
            step = steps[i]
            if step.kind == CONV:
                _conv(step, weights, biases, work)
            elif step.kind == POOL:
                _pool(step, work)
            elif step.kind == ACTIVATE:
                _activate(step, biases, work, _one)
            else:
                for j in range(step.outputs):
                    work[step.target + j] = work[indices[step.first + j]]
        for j in range(at.size):
            out[n, j] = work[at[j]]


# -- blocks of samples ---------------------------------------------------------------------------


@inner
def _conv_block(step, weights, biases, work):
    """Compute a CONV for a block of samples, row by row."""
    outputs, channels, first = int(step.outputs), step.channels, int(step.bias)
    length, next_row = step.wide * channels, step.width * channels * _tile
    reads, columns = np.empty(step.tall, U), np.empty(step.tall, U)
    for i in range(step.tall):
        columns[i] = i * length
    begins = np.empty(outputs, U)
    for o in range(U(outputs)):
        begins[o] = o * _tile
    block = weights[step.first :], step.tall * length, columns, np.full(step.tall, length)
    for y in range(step.rows):
        for i in range(step.tall):
            reads[i] = step.source * _tile + (y * step.down + i) * next_row
        to = (step.target + y * step.columns * step.outputs) * _tile
        correlate_span(
            block_height(outputs), (work, reads, step.right * channels * _tile), block,
            biases[first : first + outputs],
            (work, begins, to, step.outputs * _tile, _zero, step.outputs),
            _zero, step.tall, step.columns,
        )  # fmt: skip
    _relu_block(step, work)


@inner
def _sparse_block(step, weights, biases, indices, work):
    """Compute a SPARSE for a block of samples, SPAN positions of a row at a time."""
    starts, reads, factors = indices[step.starts :], indices[step.reads :], weights[step.first :]
    steps = step.right * step.channels * _tile, step.outputs * _tile
    for y in range(step.rows):
        corner = (step.source + y * step.down * step.width * step.channels) * _tile
        row = (step.target + y * step.columns * step.outputs) * _tile
        for o in range(step.outputs):
            first, last, bias = starts[o], starts[o + _one], biases[step.bias + o]
            target = row + o * _tile
            if step.columns < _span:
                for x in range(step.columns):
                    _sparse_tile(
                        work, reads, factors, first, last, corner + x * steps[0], bias, work,
                        target + x * steps[1], steps,
                    )  # fmt: skip
                continue
            for number in range(_zero, step.columns, _span):
                x = min(number, step.columns - _span)  # the last run overlaps
                _sparse_run(
                    work, reads, factors, first, last, corner + x * steps[0], bias, work,
                    target + x * steps[1], steps,
                )  # fmt: skip
    _relu_block(step, work)


_sparse_run, _sparse_tile = correlate_run_of(SPAN), correlate_run_of(1)


@inner
def _relu_block(step, work):
    """Apply ReLU to the output of a step that has it."""
    if step.relu:
        area = step.rows * step.columns
        for i in range(step.target * _tile, (step.target + step.outputs * area) * _tile):
            work[i] = 0 if work[i] < 0 else work[i]


@inner
def _pool_block(step, work):
    """Compute a POOL for a block of samples."""
    next_position = step.channels * _tile
    next_row = step.width * next_position
    for y in range(step.rows):
        for x in range(step.columns):
            source = step.source * _tile + y * step.down * next_row + x * step.right * next_position
            target = (step.target + (y * step.columns + x) * step.channels) * _tile
            for v in range(_zero, next_position, _tile):
                _pool_samples(step, work, source + v, next_row, next_position, target + v)


@threaded
def run_many(
    steps: NDArray[Any],  # (steps,) of STEP
    weights: NDArray[np.float32],
    biases: NDArray[np.float32],
    indices: NDArray[np.uint64],
    at: Indices,
    work: NDArray[np.float32],  # (threads, size * TILE)
    numbers: NDArray[np.float32],  # (N, inputs)
    shift: np.float32,
    factor: np.float32,
    out: NDArray[np.float32],  # (N, outputs)
) -> None:
    """Run a program for blocks of TILE rows of numbers; each thread takes a share of the blocks."""
    blocks = (len(numbers) + TILE - 1) // TILE
    for thread in prange(len(work)):
        own = work[thread]
        own[:TILE] = 0
        for block in range(thread, blocks, len(work)):
            first = block * TILE
            count = min(TILE, len(numbers) - first)
            for strip in range(0, numbers.shape[1], LANES):  # strips suit the cache
                for s in range(TILE):
                    n = first + min(s, count - 1)  # the last sample fills the block
                    for j in range(strip, min(strip + LANES, numbers.shape[1])):
                        own[(1 + j) * TILE + s] = (numbers[n, j] - shift) * factor
            for i in range(len(steps)):
                step = steps[i]
                if step.kind == CONV:
                    _conv_block(step, weights, biases, own)
                elif step.kind == SPARSE:
                    _sparse_block(step, weights, biases, indices, own)
                elif step.kind == POOL:
                    _pool_block(step, own)
                elif step.kind == ACTIVATE:
                    _activate(step, biases, own, _tile)
                else:
                    for j in range(step.outputs):
                        target, source = (step.target + j) * TILE, indices[step.first + j] * TILE
                        own[target : target + TILE] = own[source : source + TILE]
            for s in range(count):
                for j in range(at.size):
                    out[first + s, j] = own[at[j] * TILE + s]
