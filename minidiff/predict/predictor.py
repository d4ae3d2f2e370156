"""Prediction: a trained network as a function from images to logits, in one compiled call.

In training, Python calls each op, and threads synchronise after each. For one image this overhead
dominates; for many images every activation passes through memory. So a Predictor translates the
network once into *programs*: tables of steps that one compiled function runs from the first layer
to the last.

The numbers of an image lie *channels last*, (H, W, C) without gaps. Many images run in blocks of
TILE samples: each number of a program is a run of samples, and each thread runs whole blocks by
itself. A few images do not fill vectors along the batch. They run one after another, and a vector
holds channels. Each step writes whole vectors; excess lanes spill into the next position and are
overwritten, or spill into spare memory.

A program has five kinds of steps. A CONV is any layer with weights; a dense layer has one position
with many channels. A SPARSE is the same with a list of the few weights that are not 0; only blocks
of samples have it. A POOL takes the maximum or the mean of each window. An ACTIVATE applies a
function to each number. Flatten, Select and padding only rearrange a table of addresses during
translation. A GATHER then copies numbers into the order that the next step reads.

A layer without ``compile`` runs its ``forward`` between two programs.
"""

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from minidiff.engine import sparse
from minidiff.engine.arrays import Array, Indices, Shape, check_scale, empty, matrix
from minidiff.engine.kernels import TILE, windows
from minidiff.engine.module import Module, chain, evaluation, input_shape
from minidiff.engine.nn import BatchNorm, Weighted
from minidiff.engine.tensor import Tensor
from minidiff.engine.vectors import LANES

from .kernels import (
    ACTIVATE,
    CONV,
    FUNCTIONS,
    GATHER,
    POOL,
    SPARE,
    SPARSE,
    STEP,
    run_few,
    run_many,
)

__all__ = ["Predictor"]

FEW = 12  # images: up to this number, channels last is faster
LIMIT = 1 << 28  # bytes of memory for a block of images; above, images run one by one


class Predictor:
    """A trained network as a compiled function from images to outputs.

    Parameters
    ----------
    model
        Layers in Sequentials, as :func:`minidiff.compact` returns. The Predictor copies the weights
        of compiled layers, so later training does not change them. Other layers, such as gates, run
        their ``forward``.
    shape
        Shape of one input without the batch: (C, H, W) or (D,).
    mean, std
        The normalisation of inputs in training: each number becomes (number - mean) / std.

    Raises
    ------
    TypeError
        If weights are not float32.
    ValueError
        If a layer does not fit its input, or if ``mean`` or ``std`` is out of range: ``std`` from
        1e-35 to 1e35, ``mean`` up to 1e35.

    Examples
    --------
    >>> from minidiff import nn
    >>> dense = nn.Linear(12, 10, rng=np.random.default_rng(0))
    >>> predict = Predictor(nn.Sequential(nn.Flatten(), dense), (3, 2, 2), mean=0.1, std=0.3)
    >>> predict(np.zeros((5, 3, 2, 2), np.uint8)).shape
    (5, 10)
    """

    def __init__(self, model: Module, shape: Shape, *, mean: float = 0.0, std: float = 1.0) -> None:
        check_scale(mean, std)
        self.shape, self.mean, self.std = input_shape(shape), mean, std
        self._stages: list[_Compiled | Module] = [_Compiled(self.shape)]
        shape = self.shape
        for name, layer in _folded(model):
            try:
                after = layer.output_shape(shape)
            except ValueError as error:
                raise ValueError(f"{name or 'the model'}: {error}") from None
            stage = self._stages[-1]
            if type(layer).compile is Module.compile:
                self._stages.append(layer)
            elif isinstance(stage, _Compiled):
                stage.add(layer)
            else:
                stage = _Compiled(shape)
                stage.add(layer)
                self._stages.append(stage)
            shape = after
        self.output_shape = shape
        for stage in self._stages:
            if isinstance(stage, _Compiled):
                stage.finish()

    def __call__(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Return the outputs of the network: the logits of a classifier.

        Parameters
        ----------
        images
            Shape (N, C, H, W) or (N, D); N may be 0. uint8 images are divided by 255, floats are
            not. Both are then normalised by ``mean`` and ``std``, float64 in its own precision.

        Returns
        -------
        ndarray of float32, shape (N, classes), or (N, C', H', W') for a network without Flatten

        Raises
        ------
        ValueError
            If the shape does not fit.
        TypeError
            If the images are neither uint8 nor floats.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 and images.dtype.kind != "f":
            raise TypeError(f"images are {images.dtype}; expected uint8, from 0 to 255, or floats.")
        if images.shape[1:] != self.shape or images.ndim != len(self.shape) + 1:
            expected = ", ".join(["N", *map(str, self.shape)])
            raise ValueError(f"images have shape {images.shape}; expected ({expected}).")
        white = 255 if images.dtype == np.uint8 else 1
        shift, factor = white * self.mean, 1 / (white * self.std)
        if images.dtype.itemsize > 4:  # only the difference may fit in float32
            images, shift, factor = (images - shift) * factor, 0.0, 1.0
        x = np.ascontiguousarray(images, np.float32)
        for stage in self._stages:
            if isinstance(stage, _Compiled):
                x = stage.run(x, np.float32(shift), np.float32(factor))
                shift, factor = 0.0, 1.0  # the first stage normalises
            else:
                x = _forward(stage, x)
        return x


def _folded(model: Module) -> list[tuple[str, Module]]:
    """List the layers, with each BatchNorm folded into the layer with weights before it."""
    layers: list[tuple[str, Module]] = []
    for name, layer in chain(model):
        before = layers[-1][1] if layers else None
        if isinstance(layer, BatchNorm) and isinstance(before, Weighted):
            folded = layer.folded(before, before.weight.data, before.bias.data)
            layers[-1] = layers[-1][0], folded
        else:
            layers.append((name, layer))
    return layers


def _forward(layer: Module, x: Array) -> NDArray[np.float32]:
    """Run a layer in evaluation; the layer's batch is last, the predictor's is first."""
    with evaluation(layer):
        out = layer(Tensor(np.ascontiguousarray(np.moveaxis(x, 0, -1)))).data
    return np.ascontiguousarray(np.moveaxis(out, -1, 0), np.float32)


class _Compiled:
    """Layers as two programs: one for a few images, one for many."""

    def __init__(self, shape: Shape) -> None:
        self.few, self.many = (
            Program(shape, blocks=False),
            Program(shape, blocks=True),
        )

    def add(self, layer: Module) -> None:
        layer.compile(self.few)
        layer.compile(self.many)

    def finish(self) -> None:
        self.few.finish()
        self.many.finish()

    def run(self, x: Array, shift: np.float32, factor: np.float32) -> NDArray[np.float32]:
        large = 4 * self.many.size * TILE > LIMIT
        program = self.few if large or len(x) <= FEW else self.many
        return program.run(matrix(x), shift, factor)


class Program:
    """The steps of a kernel, which layers add in their method ``compile``.

    ``at`` has the shape of the current output without the batch. It holds the address of each
    number of this output in the memory of the program. With ``blocks``, each number is a run of
    TILE samples.
    """

    def __init__(self, shape: Shape, *, blocks: bool) -> None:
        self.blocks = blocks
        self.size = 1  # of the memory; address 0 holds the 0 that pads inputs
        self._steps: list[dict[str, int]] = []
        self._tables: dict[str, list[NDArray[Any]]] = {"weights": [], "biases": [], "indices": []}
        self._used = dict.fromkeys(self._tables, 0)
        self.at: Indices = self._room(math.prod(shape)) + np.arange(math.prod(shape)).reshape(shape)

    # -- what layers call ----------------------------------------------------------------------

    def conv(
        self, weight: Array, bias: Array, stride: tuple[int, int], padding: tuple[int, int] = (0, 0)
    ) -> None:
        """Add a convolution; weight (O, C, KH, KW)."""
        if weight.dtype != np.float32:
            raise TypeError(f"weights are {weight.dtype}; a Predictor computes in float32.")
        self.at = np.pad(self.at, ((0, 0), *((p, p) for p in padding)))
        outputs, kernel = len(weight), weight.shape[2:]
        settings = {"kind": CONV}
        if self.blocks and sparse.pays(int(np.count_nonzero(weight)), weight.size):
            settings = {"kind": SPARSE, **self._weight_list(weight)}
            weight = weight[weight != 0]
        elif self.blocks:  # as (O, KH, KW, C)
            weight = weight.transpose(0, 2, 3, 1)
        else:  # as (KH, KW, C, O), with O filled up to whole vectors
            fill = (0, -outputs % LANES)
            weight = np.pad(weight.transpose(2, 3, 1, 0), ((0, 0), (0, 0), (0, 0), fill))
            bias = np.pad(bias, fill)
        first, second = self._put("weights", weight), self._put("biases", bias)
        self._window(kernel, stride, outputs, **settings, first=first, bias=second)

    def _weight_list(self, weight: Array) -> dict[str, int]:
        """Put the weights that are not 0 into the table of indices, for :data:`SPARSE`."""
        channels, _, width = self.at.shape
        outputs, channel, tall, wide = weight.nonzero()
        starts = np.searchsorted(outputs, np.arange(len(weight) + 1))
        reads = ((tall * width + wide) * channels + channel) * TILE
        return {"starts": self._put("indices", starts), "reads": self._put("indices", reads)}

    def linear(self, weight: Array, bias: Array) -> None:
        """Add a dense layer; weight (O, D)."""
        self.at = self.at[:, None, None]
        self.conv(weight[:, :, None, None], bias, (1, 1))
        self.at = self.at.ravel()

    def pool(self, kernel: Shape, stride: tuple[int, int], *, largest: int, relu: int = 0) -> None:
        """Add a pool: the maximum of each window if ``largest``, else the mean."""
        self._window(kernel, stride, kind=POOL, largest=largest, relu=relu)

    def relu(self) -> None:
        """Apply ReLU to the output of the last step."""
        if self._steps:
            self._steps[-1]["relu"] = 1  # layers since then only moved numbers
        else:
            self.pool((1, 1), (1, 1), largest=1, relu=1)

    def activate(self, name: str, slope: float) -> None:
        """Apply the function of an elementwise layer; ``slope`` is that of a LeakyReLU."""
        function, number = FUNCTIONS.index(name), self._put("biases", np.array([slope]))
        self._window((1, 1), (1, 1), kind=ACTIVATE, largest=function, bias=number)

    def flatten(self) -> None:
        """Make a feature of each number."""
        self.at = self.at.ravel()

    def select(self, indices: Indices) -> None:
        """Keep some rows."""
        self.at = self.at[indices]

    # -- how steps are laid out ----------------------------------------------------------------

    def _window(
        self,
        kernel: Shape,
        stride: tuple[int, int],
        outputs: int | None = None,
        **settings: int,
    ) -> None:
        """Add a step with windows that move over the input; ``outputs`` are its output channels.

        By default, the output has the channels of the input.
        """
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
        positions = [rows, columns][: len(shape) - 1]
        new = target + np.arange(rows * columns * outputs)
        self.at = new.reshape(*positions, outputs).transpose(-1, *range(len(positions)))

    def _packed(self, at: Indices) -> int:
        """Return the address of the input in the order of the layout; add a GATHER if needed."""
        wanted = at.transpose(1, 2, 0).ravel()
        if (np.diff(wanted) == 1).all():
            return int(wanted[0])
        target, first = self._room(wanted.size), self._put("indices", wanted)
        self._steps.append(
            {"kind": GATHER, "target": target, "outputs": wanted.size, "first": first}
        )
        return target

    def _room(self, count: int) -> int:
        """Reserve memory for ``count`` numbers; return its address."""
        first = self.size
        self.size += count + SPARE
        return first

    def _put(self, table: str, values: NDArray[Any]) -> int:
        """Append to weights, biases or indices; return where the values begin."""
        self._tables[table].append(values.ravel())
        first = self._used[table]
        self._used[table] += values.size
        return first

    def finish(self) -> None:
        """Convert the tables to arrays for the kernels."""
        steps = np.zeros(len(self._steps), STEP)
        for i, step in enumerate(self._steps):
            steps[i] = tuple(step.get(name, 0) for name in STEP.names or ())
        if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]  # set on import
            steps = steps.view(np.recarray)  # in Python, too, a step has attributes
        dtypes = {"weights": np.float32, "biases": np.float32, "indices": np.uint64}
        arrays = [
            np.concatenate([np.empty(0), *self._tables[name]]).astype(dtype)
            for name, dtype in dtypes.items()
        ]
        self._arguments = (steps, *arrays, self.at.ravel())

    def run(self, numbers: Array, shift: np.float32, factor: np.float32) -> NDArray[np.float32]:
        """Normalise inputs of shape (N, inputs), and compute the outputs."""
        out = np.empty((len(numbers), *self.at.shape), np.float32)
        if self.blocks:
            work = empty((numba.get_num_threads(), self.size * TILE), np.float32)
            run_many(*self._arguments, work, numbers, shift, factor, matrix(out))
        else:
            run_few(*self._arguments, self.size, numbers, shift, factor, matrix(out))
        return out
