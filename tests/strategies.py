"""What Hypothesis draws for the tests: arrays, shapes, axes, convolutions, sets of channels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

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
    """Uniform numbers. Drawn from a seed: quick, never special, and shapes are what shrinks."""
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
    """Numbers no two of which are closer than 0.1, in random order."""
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
    """Slices, integers and ellipses; arrays of integers, with repeats; masks."""
    basic = hnp.basic_indices(shape)
    if not shape:
        return basic
    fancy = hnp.integer_array_indices(shape, result_shape=hnp.array_shapes(max_dims=2, max_side=5))
    mask = seeds.map(lambda seed: np.random.default_rng(seed).random(shape) < 0.5)
    return basic | fancy | mask


def actives(count: int) -> st.SearchStrategy[NDArray[np.int64]]:
    """Some of ``count`` slices, in order: often an odd number, sometimes one, all or none."""
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
def convolutions(draw: st.DrawFn, samples: int = 3, padded: bool = True) -> Convolution:
    """Channels 1 to 6 (the kernels work in blocks of four), all else small."""
    kernel, stride = draw(_pair(1, 3)), draw(_pair(1, 3))
    padding = draw(_pair(0, 2)) if padded else (0, 0)
    more = draw(_pair(0, 3))
    height, width = (max(1, k - 2 * p) + m for k, p, m in zip(kernel, padding, more, strict=True))
    ins, outs = draw(_pair(1, 6))
    batch = draw(st.integers(1, samples))
    return Convolution((ins, height, width, batch), (outs, ins, *kernel), stride, padding)


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
