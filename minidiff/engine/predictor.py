"""Prediction: a trained network as a function from images to logits, quick for one image too.

Many images take the way of training, batch last. For a few that would be slow: eight ops on tiny
arrays are all overhead, and there is no batch for vectors to run along. So a network is also
translated, once, into a *program* that a single compiled call runs for one image after another. In
it activations are channels last, (H, W, C) without gaps, and a vector holds channels.

A program knows three kinds of steps. A CONV is any layer with weights (a dense layer has one place
with many channels). A POOL takes the largest or the sum of each window. A GATHER copies numbers to
where the next step wants them; it serves Flatten, Select and padding, which at translation do no
more than rearrange a table of positions.

Every step writes whole vectors. Where channels do not fill the last one, what is too much spills
into the next place, which is written after, or, at the end, into spare room.
"""

import copy
import math
from typing import Any

import numpy as np
from numba import carray, prange  # type: ignore[attr-defined]  # not in its stubs
from numpy.typing import NDArray

from . import memory, nn
from ._types import Array, Indices
from .compiled import inner, plain, threaded
from .kernels import LANES, TILE, U, _registers
from .nn import Module, Shape
from .tensor import no_grad

__all__ = ["Predictor"]

FEW = 8  # images, up to which the program is quicker
CACHED = 1 << 22  # bytes that the largest activation of a chunk of images may take, about

CONV, GATHER, POOL = range(3)
PLACES = 8  # of a tile, whose sums stay in registers
_TILE = (PLACES, LANES)
_places, _lanes, _zero, _one = U(PLACES), U(LANES), U(0), U(1)
SPARE = 2 * LANES

STEP = np.dtype(
    [
        (name, np.uint64)
        for name in (
            *("kind", "source", "target", "channels", "width", "rows", "columns"),
            *("tall", "wide", "down", "right", "outputs", "first", "bias", "rectified", "largest"),
        )
    ]
)


class Predictor:
    """A network without gates, ready to be asked.

    Parameters
    ----------
    model
        A Sequential of the layers of :mod:`minidiff.engine.nn`, as :func:`minidiff.compact`
        returns. Its weights are copied: what is trained later changes nothing here.
    shape
        Of one input, without the batch: (C, H, W) or (D,).
    mean, std
        What inputs were normalised with in training: each number becomes (number - mean) / std.

    Raises
    ------
    TypeError
        If the model holds another module, a gate say, or its weights are not float32.
    ValueError
        If a layer does not fit the shape, or ``std`` is not above 0.

    Examples
    --------
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 10, rng=np.random.default_rng(0)))
    >>> predict = Predictor(model, (3, 2, 2), mean=0.1, std=0.3)
    >>> predict(np.zeros((5, 3, 2, 2), np.uint8)).shape
    (5, 10)
    """

    def __init__(self, model: Module, shape: Shape, *, mean: float = 0.0, std: float = 1.0) -> None:
        if not (math.isfinite(mean) and 0 < std < math.inf):
            raise ValueError(f"mean is {mean} and std {std}; expected numbers, std above 0.")
        self.shape, self.mean, self.std = tuple(shape), mean, std
        self._program = _Program(model, self.shape)
        self._model = copy.deepcopy(model).eval()

    def __call__(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Return the network's outputs, for classes the logits.

        Parameters
        ----------
        images
            Shape (N, C, H, W), or (N, D); N may be 0. uint8 counts as 0..1 in steps of 1/255,
            any floats are taken as they are.

        Returns
        -------
        ndarray of float32, shape (N, classes), or (N, C', H', W') for a network without Flatten

        Raises
        ------
        ValueError
            If the shape does not fit.
        """
        images = np.asarray(images)
        if images.shape[1:] != self.shape or images.ndim != len(self.shape) + 1:
            expected = ", ".join(["N", *map(str, self.shape)])
            raise ValueError(f"images have shape {images.shape}; expected ({expected}).")
        scale = 1 / (255 * self.std) if images.dtype == np.uint8 else 1 / self.std
        offset = self.mean / self.std
        numbers = memory.rows(np.ascontiguousarray(images, np.float32))
        if len(images) <= FEW:
            return self._program.run(numbers, scale, offset)
        out = np.empty((len(images), *self._program.at.shape), np.float32)
        chunk = self._chunk(len(images))
        for start in range(0, len(images), chunk):
            some = numbers[start : start + chunk]
            batch_last = memory.empty(some.shape[::-1], np.float32)
            _batch_last(some, np.float32(scale), np.float32(offset), batch_last)
            with no_grad():
                logits = self._model(batch_last.reshape(*self.shape, -1)).data
            out[start : start + len(some)] = np.moveaxis(logits, -1, 0)
        return out

    def _chunk(self, count: int) -> int:
        """Return how many images to take at once: as caches like it, and in whole tiles."""
        most = max(TILE, CACHED // (4 * self._program.largest))
        equal = math.ceil(count / math.ceil(count / most))
        return math.ceil(equal / TILE) * TILE


class _Program:
    """A network as steps for :func:`_run`; ``at`` says where each number of the output lies."""

    def __init__(self, model: Module, shape: Shape) -> None:
        self.lists: dict[str, list[Any]] = {"weights": [], "biases": [], "indices": []}
        self.used = dict.fromkeys(self.lists, 0)
        self._steps: list[dict[str, int]] = []
        self.largest = math.prod(shape)  # activation
        self.size = 1  # of the memory it works in; the first number is 0, what padding shows
        count = math.prod(shape)
        self.at: Indices = self._room(count) + np.arange(count).reshape(shape)
        for name, layer in nn.chain(model):
            if not _fits(layer, self.at.shape):
                raise ValueError(
                    f"{name or 'the model'} is a {type(layer).__name__} that does not fit its "
                    f"input, of shape {self.at.shape} without the batch."
                )
            self._add(name, layer)
        self.steps = np.zeros(len(self._steps), STEP)
        for i, step in enumerate(self._steps):
            self.steps[i] = tuple(step.get(name, 0) for name in STEP.names or ())
        empty = np.empty(0)
        self.weights, self.biases = (
            np.concatenate([empty, *self.lists[kind]]).astype(np.float32)
            for kind in ("weights", "biases")
        )
        self.indices = np.concatenate([empty, *self.lists["indices"]]).astype(np.uint64)

    def run(self, numbers: Array, scale: float, offset: float) -> NDArray[np.float32]:
        """Compute the outputs for numbers of shape (N, C*H*W), normalised first."""
        out = np.empty((len(numbers), *self.at.shape), np.float32)
        _run(
            self.steps, self.weights, self.biases, self.indices, self.at.ravel(), self.size,
            numbers, np.float32(scale), np.float32(offset), memory.rows(out),
        )  # fmt: skip
        return out

    def _room(self, count: int) -> int:
        """Set memory aside; return where it begins."""
        first = self.size
        self.size += count + SPARE
        return first

    def _put(self, kind: str, values: NDArray[Any]) -> int:
        """Append to weights, biases or indices; return where they begin."""
        self.lists[kind].append(values.ravel())
        first = self.used[kind]
        self.used[kind] += values.size
        return first

    def _add(self, name: str, layer: Module) -> None:
        if isinstance(layer, nn.Flatten):
            self.at = self.at.ravel()
        elif isinstance(layer, nn.Select):
            self.at = self.at[layer.indices]
        elif isinstance(layer, nn.ReLU):
            if self._steps:
                self._steps[-1]["rectified"] = 1  # whatever came between has moved, not computed
            else:
                self._window((1, 1), (1, 1), kind=POOL, largest=1, rectified=1)
        elif isinstance(layer, nn.MaxPool2d):
            self._window(layer.kernel, layer.stride, kind=POOL, largest=1, rectified=layer.relu)
        elif isinstance(layer, nn.AvgPool2d):
            self._window(layer.kernel, layer.stride, kind=POOL)
        elif isinstance(layer, nn.Conv2d):
            down, right = layer.padding
            self.at = np.pad(self.at, ((0, 0), (down, down), (right, right)))  # with the place of 0
            self._weighted(layer.weight.data, layer.bias.data, layer.stride)
        elif isinstance(layer, nn.Linear):
            self.at = self.at[:, None, None]
            self._weighted(layer.weight.data[:, :, None, None], layer.bias.data, (1, 1))
            self.at = self.at.ravel()
        elif not isinstance(layer, nn.Dropout):
            raise TypeError(
                f"{name or 'the model'} is a {type(layer).__name__}; a Predictor knows Sequential "
                f"and the layers of minidiff.nn. Of a gated network, take minidiff.compact(model)."
            )

    def _weighted(self, weight: Array, bias: Array, stride: tuple[int, int]) -> None:
        """Add a convolution, its weights as (KH, KW, C, O) with O filled up to whole vectors."""
        if weight.dtype != np.float32:
            raise TypeError(f"weights are {weight.dtype}; a Predictor computes in float32.")
        fill = -len(weight) % LANES
        filled = np.pad(weight.transpose(2, 3, 1, 0), ((0, 0), (0, 0), (0, 0), (0, fill)))
        self._window(
            weight.shape[2:],
            stride,
            outputs=len(weight),
            kind=CONV,
            first=self._put("weights", filled),
            bias=self._put("biases", np.pad(bias, (0, fill))),
        )

    def _window(
        self,
        kernel: tuple[int, ...],
        stride: tuple[int, int],
        outputs: int | None = None,
        **settings: int,
    ) -> None:
        """Add a step whose windows move over the input; ``outputs`` channels, or all."""
        shape = self.at.shape
        at = self.at.reshape(*shape, *[1] * (3 - len(shape)))
        channels, height, width = at.shape
        rows = (height - kernel[0]) // stride[0] + 1
        columns = (width - kernel[1]) // stride[1] + 1
        if rows < 1 or columns < 1:
            raise ValueError(f"a window {tuple(kernel)} does not fit on an input of {shape}.")
        source, outputs = self._packed(at), outputs or channels
        target = self._room(rows * columns * outputs)
        self.largest = max(self.largest, rows * columns * outputs)
        names = ("source", "target", "channels", "width", "rows", "columns", "outputs")
        sizes = (source, target, channels, width, rows, columns, outputs)
        moves = zip(("tall", "wide", "down", "right"), (*kernel, *stride), strict=True)
        self._steps.append({**settings, **dict(zip(names, sizes, strict=True)), **dict(moves)})
        last = np.arange(rows * columns * outputs).reshape(rows, columns, outputs)
        self.at = (target + last.transpose(2, 0, 1)).reshape(
            outputs, *[rows, columns][: len(shape) - 1]
        )

    def _packed(self, at: Indices) -> int:
        """Return where the input lies, channels last; gather it first if it does not."""
        wanted = at.transpose(1, 2, 0).ravel()
        if (np.diff(wanted) == 1).all():
            return int(wanted[0])
        target = self._room(wanted.size)
        first = self._put("indices", wanted)
        self._steps.append(
            {"kind": GATHER, "target": target, "outputs": wanted.size, "first": first}
        )
        return target


def _fits(layer: Module, shape: Shape) -> bool:
    if isinstance(layer, nn.Conv2d | nn.Linear):
        return len(shape) == layer.weight.ndim - 1 and shape[0] == layer.weight.shape[1]
    if isinstance(layer, nn.Select):
        return shape[0] == layer.size
    return len(shape) == 3 or not isinstance(layer, nn.MaxPool2d | nn.AvgPool2d)


# -- kernels -----------------------------------------------------------------------------------


@threaded
def _batch_last(
    numbers: NDArray[np.float32], scale: np.float32, offset: np.float32, out: NDArray[np.float32]
) -> None:
    """Compute ``out[j, i] = numbers[i, j] * scale - offset``, in strips that suit the cache."""
    for strip in prange((numbers.shape[1] + 15) // 16):
        for i in range(numbers.shape[0]):
            for j in range(strip * 16, min(strip * 16 + 16, numbers.shape[1])):
                out[j, i] = numbers[i, j] * scale - offset


@inner
def _tile(
    work, source, next_row, next_place, weights, first, lanes, tall, length, biases, bias, target,
    outputs, rectified,
):  # fmt: skip
    """Compute a vector of outputs at 8 places, next to each other in a row.

    A row of the window is ``length`` contiguous numbers; there are ``tall``.
    """
    sums = carray(_registers(work), _TILE)
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
def _place(
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
                    _place(
                        work, row + x * next_place, next_row, weights, first, lanes, tall, length,
                        biases, bias, target + x * outputs, rectified,
                    )  # fmt: skip
                continue
            for start in range(_zero, columns, _places):
                x = min(start, columns - _places)  # the last tile overlaps the one before
                _tile(
                    work, row + x * next_place, next_row, next_place, weights, first, lanes, tall,
                    length, biases, bias, target + x * outputs, outputs, rectified,
                )  # fmt: skip


@inner
def _pool(step, work):
    """Compute a POOL, likewise."""
    best = carray(_registers(work), LANES)
    tall, wide, columns, channels = step.tall, step.wide, step.columns, step.channels
    next_row, largest, rectified = step.width * channels, step.largest != 0, step.rectified != 0
    share = np.float32(1) / np.float32(tall * wide)
    lanes = (channels + _lanes - _one) // _lanes * _lanes
    for number in range(_lanes, lanes + _one, _lanes):
        block = lanes - number
        for y in range(step.rows):
            for x in range(columns):
                source = step.source + y * step.down * next_row + x * step.right * channels + block
                target = step.target + (y * columns + x) * channels + block
                for s in range(_lanes):
                    best[s] = work[source + s] if largest else 0
                for i in range(tall):
                    for j in range(wide):
                        for s in range(_lanes):
                            v = work[source + i * next_row + j * channels + s]
                            if largest:
                                best[s] = best[s] if v < best[s] else v
                            else:
                                best[s] += v * share
                for s in range(_lanes):
                    v = best[s]
                    work[target + s] = 0 if rectified and v < 0 else v


@plain
def _run(
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
