"""What Hypothesis draws for the tests: arrays, shapes, axes, live rows, layers, networks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numba import config
from numpy.typing import NDArray

from minidiff import nn
from minidiff.engine.nn import Module
from minidiff.pruning.gated import Gated, Mask
from minidiff.pruning.gates import Gate
from minidiff.pruning.groups import Groups

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


@dataclass(frozen=True)
class Network:
    """A gated network that fits inputs of a shape, without the batch."""

    model: nn.Sequential
    shape: Shape
    seed: int


def _gate(rng: np.random.Generator, count: int) -> Gate:
    """Of each kind some: closed, in between, and fully open."""
    width = float(rng.choice([0.6, 1.0]))
    gate = Gate(count, width=width, sigma=float(rng.choice([0.5, 1.0])), dtype=np.float64)
    gate.phi.data[...] = rng.choice([-1.0, -0.5, -0.2, 0.1, 0.3, 0.5, 2.0], count)
    if rng.random() < 0.05:
        gate.phi.data[...] = -1  # nothing left
    return gate


def _layer(rng: np.random.Generator, layer: nn.Conv2d | nn.Linear) -> Module:
    """Gate some of outputs, inputs and weights, with groups of any kind; biases are not zero."""
    layer.bias.data[...] = rng.standard_normal(len(layer.bias))
    shape = layer.weight.shape
    outputs, inputs, weights = rng.random(3) < (0.5, 0.3, 0.4)
    if not (outputs or inputs or weights):
        return layer
    kinds = [
        Groups.along(shape, 0),
        Groups.along(shape, 1),
        Groups.along(shape, (0, 1)),
        Groups.elements(shape),
    ]
    groups = kinds[rng.integers(len(kinds))] if weights else None
    return Gated(
        layer,
        outputs=_gate(rng, shape[0]) if outputs else None,
        inputs=_gate(rng, shape[1]) if inputs else None,
        weights=Mask(_gate(rng, groups.count), groups) if groups else (),
    )


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Convolutions with stride and padding, pools, dropout, gates on activations, dense layers."""
    seed = draw(seeds)
    rng = np.random.default_rng(seed)
    shape: Shape = (int(rng.integers(1, 4)), *(int(n) for n in rng.integers(5, 9, 2)))
    first, layers = shape, []

    def add(layer: Module) -> None:
        nonlocal shape
        layers.append(layer)
        shape = layer.output_shape(shape)

    def add_between() -> None:
        for _ in range(rng.integers(0, 3)):
            kind = rng.integers(0, 5)
            if kind == 0:
                add(_gate(rng, shape[0]))
            elif kind == 1:
                add(nn.Dropout(0.5, rng=rng))
            elif kind == 2 and shape[0] > 1:
                some = np.sort(rng.choice(shape[0], rng.integers(1, shape[0]), replace=False))
                add(nn.Select(some, size=shape[0]))
            elif kind == 3 and len(shape) == 3 and min(shape[1:]) >= 2:
                pools = (
                    *(nn.MaxPool2d(2), nn.MaxPool2d(2, stride=1, relu=True)),
                    *(nn.AvgPool2d(2), nn.AvgPool2d(2, stride=1)),
                )
                add(pools[rng.integers(4)])
            else:
                add(nn.ReLU())

    for _ in range(draw(st.integers(0, 2))):
        add_between()
        kernel = tuple(int(rng.integers(1, min(n, 3) + 1)) for n in shape[1:])
        conv = nn.Conv2d(
            shape[0],
            int(rng.integers(1, 5)),
            kernel,
            stride=int(rng.integers(1, 3)),
            padding=tuple(int(n) for n in rng.integers(0, 2, 2)),
            rng=rng,
            dtype=np.float64,
        )
        add(_layer(rng, conv))
    add_between()
    add(nn.Flatten())
    for _ in range(draw(st.integers(1, 2))):
        add_between()
        add(_layer(rng, nn.Linear(shape[0], int(rng.integers(1, 6)), rng=rng, dtype=np.float64)))
    add_between()
    if rng.random() < 0.5:  # as a part of a part
        cut = int(rng.integers(0, len(layers)))
        layers = [nn.Sequential(*layers[:cut]), *layers[cut:]]
    return Network(nn.Sequential(*layers), first, seed)
