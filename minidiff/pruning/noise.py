"""The noise of stochastic gates: how it is drawn, and its distribution."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minidiff.engine.arrays import Array, Shape
from minidiff.engine.op import erf, logistic

__all__ = ["NOISES"]


class Noise(NamedTuple):
    """A symmetric distribution with scale 1."""

    draw: Callable[[np.random.Generator, Shape], NDArray[Any]]
    tail: Callable[[Array], tuple[Array, Array]]  # P(noise > -t), and its derivative


def normal_tail(t: Array) -> tuple[Array, Array]:
    """Return the tail of a standard normal variable, and its derivative."""
    number = t.dtype.type
    t = t * number(1 / math.sqrt(2))
    p = np.empty(t.shape, t.dtype)
    erf(t, p)
    return number(0.5) * p + number(0.5), np.exp(-t * t) * number(1 / math.sqrt(2 * math.pi))


def _logistic_tail(t: Array) -> tuple[Array, Array]:
    p = logistic(t)
    return p, p * (1 - p)


def _uniform_tail(t: Array) -> tuple[Array, Array]:
    number = t.dtype.type
    p = np.clip(number(0.5) * t + number(0.5), 0, 1)
    return p, np.where(abs(t) <= 1, number(0.5), number(0))


#: What the noise of a stochastic gate may be.
NOISES = {
    "normal": Noise(lambda rng, shape: rng.standard_normal(shape), normal_tail),
    "logistic": Noise(lambda rng, shape: rng.logistic(size=shape), _logistic_tail),
    "uniform": Noise(lambda rng, shape: rng.uniform(-1, 1, shape), _uniform_tail),
}
