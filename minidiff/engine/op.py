"""Differentiable operations on arrays. This module knows nothing of tensors or of the tape.

An :class:`Op` computes an output array from input arrays, and the gradients of the inputs from the
gradient of the output. This module has the ops behind Python's operators and NumPy's functions;
``ops.py`` has the ops of neural networks.
"""

import math
from copy import deepcopy
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Live, plain
from .compiled import limit_threads, prange, set_threads, threaded

__all__ = ["Op"]

Axes: TypeAlias = int | tuple[int, ...] | None
#: The result of ``backward``: a tuple with one gradient per input; for one input, an array.
Gradients: TypeAlias = Array | tuple[Array | None, ...]


class Op:
    """One differentiable operation: a subclass defines ``forward`` and ``backward``.

    ``forward`` takes the input arrays and returns the output array. It stores on ``self`` the
    values that ``backward`` needs, so each application needs a new object. ``backward`` takes the
    gradient of the output and returns the gradient of each input, or None for an input whose
    ``needs`` is False. The tape sums gradients over broadcast axes. Neither method may write into
    its arguments, because other ops may hold the same arrays. The arguments are read-only unless
    ``skips_dead_rows`` is set.

    Attributes
    ----------
    needs : tuple of bool
        Which inputs need a gradient; set before ``forward``.
    skips_dead_rows : bool
        Whether the op computes live rows only. Then dead rows of its arguments and results may be
        uninitialised, and its arguments are writeable, as kernels need them. ``backward`` must
        still write every row of an input's gradient that is in ``live_in`` (and in ``grad_live``,
        if given): zeros where only the output is dead. Other ops get read-only arrays with zeros in
        dead rows.
    shares_inputs : bool
        Whether the output may share memory with an input that can still change, because no user
        ever holds the output. Otherwise the tape copies such an output.
    sparse_input : int, or None
        The number of the input that may have dead elements in live rows, as weights have. Such an
        input comes with an ``Elements`` of ``arrays.py`` in ``live_in``. All other inputs get zeros
        there.
    live_in : tuple of (ndarray of int64, or None)
        The live rows of each input, or None for all rows; set before ``forward``. All other rows
        are zero, and their gradient has no effect.
    live : ndarray of int64, or None
        The live rows of the output. ``forward`` sets ``live`` if some rows are known to be zero,
        whether the op skips or not; otherwise later ops compute all rows.
    grad_live : tuple of (ndarray of int64, or None)
        For each input, the rows (or Elements) that can get a gradient in this pass or in a later
        one, or None for all; empty if all are None. The optimiser does not update anything else.
        Being dead is not enough for that: a stochastic gate may open again in the next step.

    Examples
    --------
    >>> import minidiff as md
    >>> class Cube(Op):
    ...     def forward(self, x):
    ...         self.x = x
    ...         return x**3
    ...     def backward(self, grad):
    ...         return 3 * self.x**2 * grad
    >>> x = md.Tensor([2.0], requires_grad=True)
    >>> md.apply(Cube(), x).backward()
    >>> x.grad
    array([12.], dtype=float32)
    """

    needs: tuple[bool, ...] = ()
    skips_dead_rows = False
    shares_inputs = False
    sparse_input: int | None = None
    live_in: tuple[Any, ...] = ()
    live: Live = None
    grad_live: tuple[Live, ...] = ()

    @property
    def name(self) -> str:
        """The name of the class, for errors."""
        return type(self).__name__

    def forward(self, *arrays: Any) -> Array:
        """Compute the output array."""
        raise NotImplementedError

    def backward(self, grad: Array) -> Gradients:
        """Compute the gradient of each input."""
        raise NotImplementedError


def number(value: Any) -> Any:
    """Convert a NumPy number to a Python number, which does not promote float32."""
    return value.item() if isinstance(value, np.ndarray | np.generic) else value


# -- arithmetic ------------------------------------------------------------------------------


class Add(Op):
    """a + b."""

    def forward(self, a: Array, b: Array) -> Array:
        return a + b

    def backward(self, grad: Array) -> Gradients:
        return grad, grad


class Subtract(Op):
    """a - b."""

    def forward(self, a: Array, b: Array) -> Array:
        return a - b

    def backward(self, grad: Array) -> Gradients:
        return grad, -grad if self.needs[1] else None


class Multiply(Op):
    """a * b."""

    def forward(self, a: Array, b: Array) -> Array:
        self.a, self.b = a, b
        return a * b

    def backward(self, grad: Array) -> Gradients:
        return (
            grad * self.b if self.needs[0] else None,
            grad * self.a if self.needs[1] else None,
        )


class Divide(Op):
    """a / b."""

    def forward(self, a: Array, b: Array) -> Array:
        self.b, self.out = b, a / b
        return self.out

    def backward(self, grad: Array) -> Gradients:
        grad_a = grad / self.b
        return grad_a, -grad_a * self.out if self.needs[1] else None


class Negate(Op):
    """-a."""

    def forward(self, a: Array) -> Array:
        return -a

    def backward(self, grad: Array) -> Gradients:
        return -grad


class Power(Op):
    """a ** exponent, for a fixed exponent."""

    def __init__(self, exponent: float) -> None:
        if not isinstance(exponent, int | float | np.number):
            raise TypeError(
                f"the exponent is {exponent!r:.60}; expected a number. For a tensor as exponent "
                f"write (exponent * x.log()).exp()."
            )
        self.exponent = number(exponent)

    def forward(self, a: Array) -> Array:
        self.a = a
        out: Array = a**self.exponent
        return out

    def backward(self, grad: Array) -> Gradients:
        if self.exponent == 0:  # 0 * a ** -1 would be NaN at 0
            return np.zeros_like(grad)
        slope: Array = self.exponent * self.a ** (self.exponent - 1)
        return grad * slope


class Exponential(Op):
    """base ** a, for a fixed base."""

    def __init__(self, base: float) -> None:
        if not isinstance(base, int | float | np.number) or not base > 0:
            raise TypeError(
                f"the base of a power is {base!r:.60}; expected a number above 0. For a tensor as "
                f"base write (exponent * base.log()).exp()."
            )
        self.base: float = number(base)

    def forward(self, a: Array) -> Array:
        self.out: Array = self.base**a
        return self.out

    def backward(self, grad: Array) -> Gradients:
        return grad * (self.out * math.log(self.base))


class MatMul(Op):
    """a @ b, with NumPy's rules for vectors and for stacks of matrices."""

    def forward(self, a: Array, b: Array) -> Array:
        self.a, self.b = a, b
        return np.asarray(a @ b)

    def backward(self, grad: Array) -> Gradients:
        # Treat a vector as a matrix: a row on the left, a column on the right.
        a = self.a[None, :] if self.a.ndim == 1 else self.a
        b = self.b[:, None] if self.b.ndim == 1 else self.b
        if self.b.ndim == 1:
            grad = np.expand_dims(grad, -1)
        if self.a.ndim == 1:
            grad = np.expand_dims(grad, -2)
        grad_a = grad @ b.swapaxes(-1, -2) if self.needs[0] else None
        grad_b = a.swapaxes(-1, -2) @ grad if self.needs[1] else None
        if grad_a is not None and self.a.ndim == 1:
            grad_a = grad_a[..., 0, :]
        if grad_b is not None and self.b.ndim == 1:
            grad_b = grad_b[..., 0]
        return grad_a, grad_b


# -- shapes ----------------------------------------------------------------------------------


class Reshape(Op):
    """The same elements in another shape."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape

    def forward(self, a: Array) -> Array:
        self.old = a.shape
        return a.reshape(*self.shape)

    def backward(self, grad: Array) -> Gradients:
        return grad.reshape(self.old)


class Transpose(Op):
    """Axes permuted; None reverses them."""

    def __init__(self, axes: tuple[int, ...] | None) -> None:
        self.axes = axes

    def forward(self, a: Array) -> Array:
        return a.transpose(self.axes)

    def backward(self, grad: Array) -> Gradients:
        if self.axes is None:
            return grad.T
        return grad.transpose(np.argsort([axis % grad.ndim for axis in self.axes]))


class Index(Op):
    """a[index], for any index NumPy takes."""

    def __init__(self, index: Any) -> None:
        parts = index if isinstance(index, tuple) else (index,)
        basic = (slice, int, np.integer, type(None), type(Ellipsis))
        self.picks_once = all(isinstance(p, basic) and not isinstance(p, bool) for p in parts)
        self.index = deepcopy(index)  # the caller may change an index array later

    def forward(self, a: Array) -> Array:
        self.shape = a.shape
        return np.asarray(a[self.index])

    def backward(self, grad: Array) -> Gradients:
        out = np.zeros(self.shape, grad.dtype if self.picks_once else np.float64)
        if self.picks_once:
            out[self.index] = grad
        else:
            np.add.at(out, self.index, grad)  # an element picked twice gets both gradients
        return out


class Concatenate(Op):
    """Arrays joined along an axis."""

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def forward(self, *arrays: Array) -> Array:
        out = np.concatenate(arrays, axis=self.axis)
        self.ends = np.cumsum([a.shape[self.axis] for a in arrays])
        return out

    def backward(self, grad: Array) -> Gradients:
        return tuple(np.split(grad, self.ends[:-1], axis=self.axis))


# -- reductions ------------------------------------------------------------------------------


class Sum(Op):
    """Sum over axes, accumulated in float64."""

    def __init__(self, axis: Axes, keepdims: bool) -> None:
        self.axis, self.keepdims = axis, keepdims

    def _total(self, a: Array) -> Array:
        self.shape = a.shape
        return np.asarray(a.sum(axis=self.axis, keepdims=self.keepdims, dtype=np.float64))

    def forward(self, a: Array) -> Array:
        return self._total(a).astype(a.dtype)

    def backward(self, grad: Array) -> Gradients:
        if not self.keepdims and self.axis is not None:
            grad = np.expand_dims(grad, self.axis)
        return np.broadcast_to(grad, self.shape)


class Mean(Sum):
    """Mean over axes, accumulated in float64; NaN over nothing."""

    def forward(self, a: Array) -> Array:
        total = self._total(a)
        self.share = total.size / a.size if a.size else math.nan
        return np.asarray(total * self.share, a.dtype)

    def backward(self, grad: Array) -> Gradients:
        return super().backward(grad * grad.dtype.type(self.share))


class Max(Op):
    """Maximum over axes; tied maxima share the gradient equally."""

    def __init__(self, axis: Axes, keepdims: bool) -> None:
        self.axis, self.keepdims = axis, keepdims

    def forward(self, a: Array) -> Array:
        out = a.max(axis=self.axis, keepdims=True)
        self.largest = a == out
        return np.asarray(out if self.keepdims else np.squeeze(out, self.axis))

    def backward(self, grad: Array) -> Gradients:
        if not self.keepdims and self.axis is not None:
            grad = np.expand_dims(grad, self.axis)
        count = self.largest.sum(axis=self.axis, keepdims=True)
        return np.asarray(self.largest * (grad / count))


# -- functions of one element ----------------------------------------------------------------


class Abs(Op):
    """|a|."""

    def forward(self, a: Array) -> Array:
        self.sign: Array = np.sign(a)
        return np.abs(a)

    def backward(self, grad: Array) -> Gradients:
        return grad * self.sign


class Exp(Op):
    """exp(a)."""

    def forward(self, a: Array) -> Array:
        self.out: Array = np.exp(a)
        return self.out

    def backward(self, grad: Array) -> Gradients:
        return grad * self.out


class Log(Op):
    """log(a)."""

    def forward(self, a: Array) -> Array:
        self.a = a
        return np.asarray(np.log(a))

    def backward(self, grad: Array) -> Gradients:
        return grad / self.a


class Sqrt(Op):
    """sqrt(a)."""

    def forward(self, a: Array) -> Array:
        self.out: Array = np.sqrt(a)
        return self.out

    def backward(self, grad: Array) -> Gradients:
        return grad / (2 * self.out)


class Tanh(Op):
    """tanh(a)."""

    def forward(self, a: Array) -> Array:
        self.out: Array = np.tanh(a)
        return self.out

    def backward(self, grad: Array) -> Gradients:
        return grad * (1 - self.out * self.out)


def logistic(a: NDArray[Any]) -> Array:
    """Return 1 / (1 + exp(-a)) without overflow: the argument of exp is never above 0."""
    small = np.exp(-np.abs(a))
    return np.asarray(np.where(a >= 0, 1, small) / (1 + small))


class Sigmoid(Op):
    """1 / (1 + exp(-a))."""

    def forward(self, a: Array) -> Array:
        self.out = logistic(a)
        return self.out

    def backward(self, grad: Array) -> Gradients:
        return grad * (self.out * (1 - self.out))


@threaded
def erf(x: Array, out: Array) -> None:
    """Compute the error function of a flat array."""
    threads = limit_threads(8 * x.size)  # as slow as 8 other operations
    for i in prange(x.size):
        out[i] = math.erf(x[i])
    set_threads(threads)


class Erf(Op):
    """The error function."""

    def forward(self, a: Array) -> Array:
        self.a = a
        out = np.empty(a.shape, a.dtype)
        erf(plain(a).reshape(-1), out.reshape(-1))
        return out

    def backward(self, grad: Array) -> Gradients:
        slope = 2 / math.sqrt(math.pi) * np.exp(-self.a * self.a)
        return grad * slope


class Maximum(Op):
    """Elementwise maximum; at a tie each input gets half of the gradient."""

    def forward(self, a: Array, b: Array) -> Array:
        self.share = np.where(a == b, 0.5, a > b).astype(np.result_type(a, b))
        return np.asarray(np.maximum(a, b))

    def backward(self, grad: Array) -> Gradients:
        return grad * self.share, grad * (1 - self.share)


class Where(Op):
    """a where a condition holds, else b."""

    def __init__(self, condition: NDArray[np.bool_]) -> None:
        self.condition = condition

    def forward(self, a: Array, b: Array) -> Array:
        return np.where(self.condition, a, b)

    def backward(self, grad: Array) -> Gradients:
        zero = grad.dtype.type(0)
        return np.where(self.condition, grad, zero), np.where(self.condition, zero, grad)


class Clip(Op):
    """a limited to [low, high]."""

    def __init__(self, low: float | None, high: float | None) -> None:
        for limit in (low, high):
            if limit is not None and np.ndim(limit):
                raise TypeError(
                    f"clip: a limit has shape {np.shape(limit)}; expected numbers. For arrays "
                    f"write x.maximum(low).minimum(high)."
                )
        if low is not None and high is not None and low > high:
            raise ValueError(f"clip to [{low}, {high}]: low must not be above high.")
        self.low, self.high = number(low), number(high)

    def forward(self, a: Array) -> Array:
        out = np.asarray(np.clip(a, self.low, self.high))
        self.inside: NDArray[np.bool_] = out == a
        return out

    def backward(self, grad: Array) -> Gradients:
        return grad * self.inside
