"""What Hypothesis draws for the tests: arrays, shapes, axes, live rows, layers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numba import config
from numpy.typing import NDArray

from minidiff import nn

Shape = tuple[int, ...]

seeds = st.integers(0, 2**32 - 1)
shapes = hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)
dtypes = st.sampled_from([np.float32, np.float64])
pairs_of_shapes = hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3).map(
    lambda drawn: drawn.input_shapes
)
matmul_shapes = hnp.mutually_broadcastable_shapes(
    signature="(m?,n),(n,p?)->(m?,p?)", max_dims=2, max_side=3
).map(lambda drawn: drawn.input_shapes)


def arrays(
    shape: Shape, low: float = -2.0, high: float = 2.0, dtype: Any = np.float64
) -> st.SearchStrategy[NDArray[Any]]:
    """Uniform numbers, from a seed: that is quick, and only shapes shrink."""
    return seeds.map(
        lambda seed: np.asarray(np.random.default_rng(seed).uniform(low, high, shape), dtype)
    )


def off_zero(shape: Shape, dtype: Any = np.float64) -> st.SearchStrategy[NDArray[Any]]:
    """Numbers of both signs, at least 0.1 away from zero."""

    def draw(seed: int) -> NDArray[Any]:
        rng = np.random.default_rng(seed)
        return np.asarray(rng.choice([-1, 1], shape) * rng.uniform(0.1, 2, shape), dtype)

    return seeds.map(draw)


def distinct(shape: Shape, dtype: Any = np.float64) -> st.SearchStrategy[NDArray[Any]]:
    """Numbers of which no two are closer than 0.1, in random order."""
    count = int(np.prod(shape))
    return seeds.map(
        lambda seed: np.asarray(
            (np.random.default_rng(seed).permutation(count) - count / 2).reshape(shape) * 0.1, dtype
        )
    )


def axes(ndim: int) -> st.SearchStrategy[int | tuple[int, ...] | None]:
    """None, or one axis, or some; from either end."""
    if ndim == 0:
        return st.none()
    return st.none() | st.integers(-ndim, ndim - 1) | hnp.valid_tuple_axes(ndim, min_size=1)


def indices(shape: Shape) -> st.SearchStrategy[Any]:
    """Slices, integers, ellipses and new axes; arrays of integers, with repeats; masks."""
    basic = hnp.basic_indices(shape, allow_newaxis=True)
    if not shape:
        return basic
    fancy = hnp.integer_array_indices(shape, result_shape=hnp.array_shapes(max_dims=2, max_side=5))
    mask = seeds.map(lambda seed: np.random.default_rng(seed).random(shape) < 0.5)
    return basic | fancy | mask


def row_lists(count: int) -> st.SearchStrategy[NDArray[np.int64]]:
    """Some of ``count`` rows, in order: sometimes one, all or none."""
    return st.sets(st.integers(0, count - 1)).map(lambda some: np.array(sorted(some), np.int64))


@dataclass(frozen=True)
class Convolution:
    """The sizes of a convolution that fits."""

    x: Shape
    weight: Shape
    stride: tuple[int, int]
    padding: tuple[int, int]


def _pair(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def convolutions(draw: st.DrawFn) -> Convolution:
    """Channels 1 to 6 (kernels work in blocks of up to 5), all else small."""
    kernel, stride, padding = draw(_pair(1, 3)), draw(_pair(1, 3)), draw(_pair(0, 2))
    more = draw(_pair(0, 3))
    height, width = (max(1, k - 2 * p) + m for k, p, m in zip(kernel, padding, more, strict=True))
    ins, outs = draw(_pair(1, 6))
    samples = draw(st.integers(1, 3))
    return Convolution((ins, height, width, samples), (outs, ins, *kernel), stride, padding)


@dataclass(frozen=True)
class Pool:
    """The sizes of a pooling that fits."""

    x: Shape
    kernel: tuple[int, int]
    stride: tuple[int, int]


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    """Windows that overlap, touch, or leave gaps."""
    kernel, stride, more = draw(_pair(1, 3)), draw(_pair(1, 3)), draw(_pair(0, 3))
    channels, samples = draw(_pair(1, 4))
    return Pool((channels, kernel[0] + more[0], kernel[1] + more[1], samples), kernel, stride)


#: Numbers of channels that fill vectors and blocks, or nearly, or more than once.
SIZES = (1, 2, 3) if config.DISABLE_JIT else (1, 2, 3, 5, 8, 9, 15, 16, 17, 33)


@st.composite
def stacks(draw: st.DrawFn) -> tuple[nn.Sequential, Shape]:
    """Ungated layers in evaluation, and a shape that fits them, without the batch."""
    rng = np.random.default_rng(draw(seeds))
    layers: list[nn.Module] = []
    shape = first = (int(rng.choice(SIZES)), int(rng.integers(3, 7)), int(rng.integers(3, 14)))

    def add(layer: nn.Module) -> None:
        nonlocal shape
        layers.append(layer)
        shape = layer.output_shape(shape)
        if isinstance(layer, nn.Weighted):
            layer.bias.data[...] = rng.standard_normal(len(layer.bias))

    for _ in range(draw(st.integers(0, 4))):
        channels, kernel = shape[0], [int(rng.integers(1, min(3, n) + 1)) for n in shape[1:]]
        moves = {"stride": (int(rng.integers(1, 3)), int(rng.integers(1, 3)))}
        some = np.sort(rng.choice(channels, rng.integers(1, channels + 1), replace=False))
        kind = draw(st.sampled_from(["conv", "conv", "max", "avg", "select", "relu", "dropout"]))
        if kind == "conv":
            padding, count = tuple(map(int, rng.integers(0, 3, 2))), int(rng.choice(SIZES))
            add(nn.Conv2d(channels, count, kernel, **moves, padding=padding, rng=rng))
        elif kind == "max":
            add(nn.MaxPool2d(kernel, **moves, relu=bool(rng.integers(2))))
        elif kind == "avg":
            add(nn.AvgPool2d(kernel, **moves))
        elif kind == "select":
            add(nn.Select(some, size=channels))
        else:
            add(nn.ReLU() if kind == "relu" else nn.Dropout(0.5, rng=rng))
    if draw(st.booleans()):
        add(nn.Flatten())
        add(nn.Linear(shape[0], int(rng.choice(SIZES)), rng=rng))
        add(nn.ReLU())
    cut = int(rng.integers(0, len(layers) + 1))
    return nn.Sequential(nn.Sequential(*layers[:cut]), *layers[cut:]).eval(), first
