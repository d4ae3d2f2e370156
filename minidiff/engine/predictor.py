"""Prediction: a trained network as a function from images to logits, in one compiled call.

In training, each op is a call from Python, and threads meet after each. For one image that is all
overhead, and for many it sends every activation through memory. So a network is translated, once,
into *programs*: tables of steps that one compiled function runs from the first layer to the last.

Many images are taken in blocks of TILE samples, *batch last* as in training: a number of a program
is a run of samples, and each thread runs whole blocks by itself. For a few there is no batch for
vectors to run along. Then it is *channels last*, (H, W, C) without gaps, one image after another,
and a vector holds channels. Each step writes whole vectors there: where channels do not fill the
last one, what is too much spills into the next place, which is written after, or into spare room.

A program knows three kinds of steps. A CONV is any layer with weights (a dense layer has one place
with many channels). A POOL takes the largest or the mean of each window. A GATHER copies numbers to
where the next step wants them; it serves Flatten, Select and padding, which at translation do no
more than rearrange a table of positions.
"""

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from . import kernels, memory, nn
from ._types import Array, Indices
from .kernels import CONV, GATHER, LANES, POOL, SPARE, STEP, TILE, windows
from .nn import Module, Shape

__all__ = ["Predictor"]

FEW = 12  # images, up to which channels last is quicker
LIMIT = 1 << 28  # bytes that a block of images may take; else channels last, one by one

LAYERS = (
    nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.AvgPool2d, nn.ReLU, nn.Dropout, nn.Flatten, nn.Select,
)  # fmt: skip


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
    >>> dense = nn.Linear(12, 10, rng=np.random.default_rng(0))
    >>> predict = Predictor(nn.Sequential(nn.Flatten(), dense), (3, 2, 2), mean=0.1, std=0.3)
    >>> predict(np.zeros((5, 3, 2, 2), np.uint8)).shape
    (5, 10)
    """

    def __init__(self, model: Module, shape: Shape, *, mean: float = 0.0, std: float = 1.0) -> None:
        if not (math.isfinite(mean) and 0 < std < math.inf):
            raise ValueError(f"mean is {mean} and std {std}; expected numbers, std above 0.")
        self.shape, self.mean, self.std = tuple(shape), mean, std
        self._few = _Program(model, self.shape, channels_last=True)
        self._many = _Program(model, self.shape, channels_last=False)

    def __call__(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Return the network's outputs, for classes the logits.

        Parameters
        ----------
        images
            Shape (N, C, H, W), or (N, D); N may be 0. uint8 counts as 0..1 in steps of 1/255;
            floats are taken as they are.

        Returns
        -------
        ndarray of float32, shape (N, classes), or (N, C', H', W') for a network without Flatten

        Raises
        ------
        ValueError
            If the shape does not fit.
        TypeError
            If the images are of another dtype.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 and images.dtype.kind != "f":
            raise TypeError(f"images are {images.dtype}; expected uint8, from 0 to 255, or floats.")
        if images.shape[1:] != self.shape or images.ndim != len(self.shape) + 1:
            expected = ", ".join(["N", *map(str, self.shape)])
            raise ValueError(f"images have shape {images.shape}; expected ({expected}).")
        scale = 1 / (255 * self.std) if images.dtype == np.uint8 else 1 / self.std
        offset = self.mean / self.std
        numbers = memory.rows(np.ascontiguousarray(images, np.float32))
        large = 4 * self._many.size * TILE > LIMIT
        program = self._few if large or len(images) <= FEW else self._many
        return program.run(numbers, np.float32(scale), np.float32(offset))


class _Program:
    """A network as steps for a kernel; ``at`` says where each number of the output lies."""

    def __init__(self, model: Module, shape: Shape, *, channels_last: bool) -> None:
        self.channels_last = channels_last
        self.lists: dict[str, list[Any]] = {"weights": [], "biases": [], "indices": []}
        self.used = dict.fromkeys(self.lists, 0)
        self._steps: list[dict[str, int]] = []
        self.size = 1  # of the memory it works in; the first number is 0, what padding shows
        count = math.prod(shape)
        self.at: Indices = self._room(count) + np.arange(count).reshape(shape)
        for name, layer in nn.chain(model):
            if type(layer) not in LAYERS:  # a subclass may compute anything
                raise TypeError(
                    f"{name or 'the model'} is a {type(layer).__name__}; a Predictor knows "
                    f"Sequential and the layers of minidiff.nn. Of a gated network, take "
                    f"minidiff.compact(model)."
                )
            try:
                layer.output_shape(self.at.shape)
            except ValueError as error:
                raise ValueError(f"{name or 'the model'}: {error}") from None
            self._add(layer)
        self.steps = np.zeros(len(self._steps), STEP)
        for i, step in enumerate(self._steps):
            self.steps[i] = tuple(step.get(name, 0) for name in STEP.names or ())
        empty = np.empty(0)
        self.weights, self.biases = (
            np.concatenate([empty, *self.lists[kind]]).astype(np.float32)
            for kind in ("weights", "biases")
        )
        self.indices = np.concatenate([empty, *self.lists["indices"]]).astype(np.uint64)

    def run(self, numbers: Array, scale: np.float32, offset: np.float32) -> NDArray[np.float32]:
        """Compute the outputs for numbers of shape (N, C*H*W), normalised first."""
        out = np.empty((len(numbers), *self.at.shape), np.float32)
        tables = self.steps, self.weights, self.biases, self.indices, self.at.ravel()
        if self.channels_last:
            kernels.run_few(*tables, self.size, numbers, scale, offset, memory.rows(out))
        else:
            work = memory.empty((numba.get_num_threads(), self.size * TILE), np.float32)
            kernels.run_many(*tables, work, numbers, scale, offset, memory.rows(out))
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

    def _add(self, layer: Module) -> None:
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

    def _weighted(self, weight: Array, bias: Array, stride: tuple[int, int]) -> None:
        """Add a convolution; for channels last, weights are (KH, KW, C, O), O in whole vectors."""
        if weight.dtype != np.float32:
            raise TypeError(f"weights are {weight.dtype}; a Predictor computes in float32.")
        outputs, kernel = len(weight), weight.shape[2:]
        if self.channels_last:
            fill = (0, -outputs % LANES)
            weight = np.pad(weight.transpose(2, 3, 1, 0), ((0, 0), (0, 0), (0, 0), fill))
            bias = np.pad(bias, fill)
        first, second = self._put("weights", weight), self._put("biases", bias)
        self._window(kernel, stride, outputs, kind=CONV, first=first, bias=second)

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
        rows, columns = map(windows, (height, width), kernel, stride)
        source, outputs = self._packed(at), outputs or channels
        target = self._room(rows * columns * outputs)
        (tall, wide), (down, right) = kernel, stride
        self._steps.append(
            {
                **settings,
                "source": source, "target": target, "channels": channels, "outputs": outputs,
                "height": height, "width": width, "rows": rows, "columns": columns,
                "tall": tall, "wide": wide, "down": down, "right": right,
            }
        )  # fmt: skip
        places = [rows, columns][: len(shape) - 1]
        new = target + np.arange(rows * columns * outputs)
        if self.channels_last:
            self.at = new.reshape(*places, outputs).transpose(-1, *range(len(places)))
        else:
            self.at = new.reshape(outputs, *places)

    def _packed(self, at: Indices) -> int:
        """Return where the input lies in the order of the layout, gathered if it does not."""
        wanted = (at.transpose(1, 2, 0) if self.channels_last else at).ravel()
        if (np.diff(wanted) == 1).all():
            return int(wanted[0])
        target = self._room(wanted.size)
        first = self._put("indices", wanted)
        self._steps.append(
            {"kind": GATHER, "target": target, "outputs": wanted.size, "first": first}
        )
        return target
