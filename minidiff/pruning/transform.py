"""The gate transform: any real-valued random vector becomes an approximately binary one.

With a transition width w > 0, element by element,

    g(x) = S(x / w + 1/2),    S(t) = 0 for t <= 0,  3 t^2 - 2 t^3 between,  1 for t >= 1

1. g(x) is exactly 0 for x <= -w/2 and exactly 1 for x >= w/2; it is monotone and continuously
   differentiable, and 0 <= g' <= 3 / (2w).
2. For *any* random vector X, whatever its marginals and their dependence, let B be the binary
   vector of the signs, B_i = 1 if X_i > 0, else 0. Then |g(X_i) - B_i| <= 1/2, with equality to B_i
   outside |X_i| < w/2, so P(g(X) != B) <= sum_i P(|X_i| < w/2). As w -> 0 this tends to
   sum_i P(X_i = 0): g(X) approximates the multivariate Bernoulli variable B.
3. Where g is 0, so is g'. Everything that a closed gate multiplies can be left out, if it and its
   gradients are finite: neither the loss nor any gradient changes.

The paper (Shulman 2020, arXiv:2012.03653) states in its abstract that such a transformation
exists; this formula is ours. ``docs/method.md`` has the proofs.
"""

import math
from typing import Any, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from minidiff.engine.arrays import Array, plain, read_only
from minidiff.engine.compiled import serial
from minidiff.engine.op import Gradients, Op
from minidiff.engine.tensor import Tensor, apply

__all__ = ["GateTransform", "binary_gate"]


class GateTransform(Op):
    """The base class of ops that map real numbers to gate values in [0, 1].

    Ops that skip closed and fully open gates rely on one promise: the derivative is 0 where the
    value is 0, and where the gate is ``fully_open``. Any other gradient there is dropped. The live
    rows of a vector are the gates that are not closed.

    A subclass defines ``compute``, ``fully_open`` and ``backward``.
    ``docs/howto/add-a-gate.md`` writes one.

    Examples
    --------
    A hard step from closed to open, whose gradient is 0 everywhere:

    >>> class Step(GateTransform):
    ...     def compute(self, x):
    ...         self.x = x
    ...         return (x > 0).astype(x.dtype)
    ...
    ...     def fully_open(self):
    ...         return self.x > 0
    ...
    ...     def backward(self, grad):
    ...         return np.zeros_like(grad)
    >>> step = Step()
    >>> step.forward(np.array([-0.5, 0.25, 2.0])), step.live
    (array([0., 1., 1.]), array([1, 2]))
    """

    skips_dead_rows = True

    def forward(self, x: Array) -> Array:
        z = np.asarray(self.compute(read_only(x)), x.dtype)
        if x.ndim == 1:
            self.live = (z != 0).nonzero()[0]  # faster on booleans
        return z

    def compute(self, x: Array) -> Array:
        """Compute the gate values, with the shape of x."""
        raise NotImplementedError

    def fully_open(self) -> NDArray[np.bool_]:
        """Return where the last ``compute`` gave the value 1 with derivative 0."""
        raise NotImplementedError


class OpenOnly(GateTransform):
    """Another transform, which never sees the gates that are closed for good, up to ``closed``."""

    def __init__(self, transform: GateTransform, closed: float) -> None:
        self.transform, self.closed = transform, closed

    def forward(self, x: Array) -> Array:
        self.live = self.places = (~(x <= x.dtype.type(self.closed))).nonzero()[0]  # NaN is kept
        self.grad_live = (self.live,)
        self.count, z = len(x), np.zeros_like(x)
        z[self.places] = self.transform.compute(read_only(x[self.places]))
        return z

    def fully_open(self) -> NDArray[np.bool_]:
        found = np.zeros(self.count, np.bool_)
        found[self.places] = self.transform.fully_open()
        return found

    def backward(self, grad: Array) -> Gradients:
        out = np.empty_like(grad)
        out[self.places] = self.transform.backward(grad[self.places])
        return out


@serial
def smoothstep(t: Array, out: Array) -> None:
    """Limit the flat array t to [0, 1], in place, and compute ``out = 3 t^2 - 2 t^3``."""
    number = t.dtype.type
    zero, one = number(0), number(1)
    for i in range(t.size):
        v = zero if t[i] < zero else one if t[i] > one else t[i]  # NaN is kept
        t[i], out[i] = v, v * v * (number(3) - number(2) * v)


@serial
def grad_smoothstep(grad: Array, t: Array, width: float, out: Array) -> None:
    """Compute the gradient of x, given t = x / width + 1/2 as limited by :func:`smoothstep`.

    ``grad`` may be uninitialised where the slope is 0.
    """
    number = t.dtype.type
    factor, zero, one = number(6 / width), number(0), number(1)
    for i in range(t.size):
        slope = factor * t[i] * (one - t[i])
        out[i] = zero if slope == zero else slope * grad[i]


class BinaryGate(GateTransform):
    """S(x / width + 1/2)."""

    def __init__(self, width: float) -> None:
        self.width = width

    def compute(self, x: Array) -> Array:
        # NumPy divides exactly; a kernel may multiply by a rounded reciprocal instead.
        self.t = np.ascontiguousarray(x / x.dtype.type(self.width) + x.dtype.type(0.5))
        z = np.empty(x.shape, x.dtype)
        smoothstep(self.t.reshape(-1), z.reshape(-1))
        return z

    def fully_open(self) -> NDArray[np.bool_]:
        return np.asarray(self.t == 1)

    def backward(self, grad: Array) -> Gradients:
        out, flat = np.empty(grad.shape, grad.dtype), plain(grad).reshape(-1)
        grad_smoothstep(flat, self.t.reshape(-1), self.width, out.reshape(-1))
        return out


@overload
def binary_gate(x: Tensor, width: float = ...) -> Tensor: ...
@overload
def binary_gate(x: NDArray[Any], width: float = ...) -> Array: ...


def binary_gate(x: Tensor | NDArray[Any], width: float = 1.0) -> Tensor | Array:
    """Transform real numbers into approximately binary ones: 0 below -width/2, 1 above width/2.

    ``S(x / width + 1/2)`` with ``S(t) = 3 t^2 - 2 t^3`` between 0 and 1. The paper (Shulman 2020,
    arXiv:2012.03653) states that such a transformation exists; the formula is ours.

    Parameters
    ----------
    x
        A Tensor or an array of any shape, float32 or float64; integers become float64.
    width
        The width of the transition, in units of x; above 0.

    Returns
    -------
    Tensor for a Tensor, ndarray for an array; of the shape of x, in [0, 1]

    Raises
    ------
    ValueError
        If ``width`` is not a finite number above 0 that the dtype can hold.
    TypeError
        If x has another dtype.

    Examples
    --------
    >>> binary_gate(np.array([-0.6, -0.25, 0.0, 0.5]), width=1.0)
    array([0.     , 0.15625, 0.5    , 1.     ])
    """
    values = x.data if isinstance(x, Tensor) else np.asarray(x)
    if values.dtype.kind in "biu":
        values = values.astype(np.float64)
    if values.dtype not in (np.float32, np.float64):
        raise TypeError(f"x is of {values.dtype}; expected float32, float64 or integers.")
    check_positive("width", width, values.dtype)
    return (
        apply(BinaryGate(width), x) if isinstance(x, Tensor) else BinaryGate(width).compute(values)
    )


def check_positive(name: str, value: float, dtype: DTypeLike) -> None:
    """Raise ValueError unless ``value`` is a finite number above 0 that the dtype can hold."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}; expected a finite number above 0.")
    limits = np.finfo(np.dtype(dtype))
    least, most = float(limits.tiny), float(limits.max)
    if not least <= value <= most:
        raise ValueError(
            f"{name} is {value}, which {limits.dtype} cannot hold; expected {least:.2g} to "
            f"{most:.2g}."
        )
