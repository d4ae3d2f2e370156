"""The tape: tensors that remember how they were computed, and ``backward`` that walks it back.

A :class:`Tensor` holds a NumPy array. An :class:`Op` computes one array from others
(``forward``) and knows how a gradient travels back through it (``backward``). When an op is
applied to a tensor that requires a gradient, its result keeps the op, and the op keeps its inputs:
that chain is the tape.

The ops behind Python's operators, and those that change or reduce shapes, live here too, since
``a + b`` must find them; ops of neural networks are in :mod:`minidiff.engine.ops`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy, deepcopy
from itertools import compress, count
from typing import Any, SupportsIndex, TypeAlias, Union

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import kernels
from ._types import Array, Indices

__all__ = ["Op", "Tensor", "no_grad"]

TensorLike: TypeAlias = Union["Tensor", Array, float, int]
Axes: TypeAlias = int | tuple[int, ...] | None

_FLOATS = {np.dtype(np.float32), np.dtype(np.float64)}
_applied = count(1)  # the order in which ops that are on a tape were applied
_recording: ContextVar[bool] = ContextVar("recording", default=True)


@contextmanager
def no_grad() -> Iterator[None]:
    """Compute without recording: inside, results require no gradient and keep no tape.

    Examples
    --------
    >>> x = Tensor([1.0], requires_grad=True)
    >>> with no_grad():
    ...     y = 2 * x
    >>> y.requires_grad
    False
    """
    token = _recording.set(False)
    try:
        yield
    finally:
        _recording.reset(token)


class Op:
    """One differentiable operation: a subclass has its settings, ``forward`` and ``backward``.

    ``forward`` takes the input arrays and returns the output array; what ``backward`` will need it
    keeps on ``self``. ``backward`` takes the gradient with respect to the output and returns one
    with respect to each input, or None where ``self.needs[i]`` says that nobody asks for it.
    Broadcasting need not be undone: the tape sums each gradient to the shape of its input.

    An op that ``skips`` looks at ``active`` of its inputs and sets its own, for its output: of
    slices not listed it reads nothing, and it may leave anything in them, in arrays and in
    gradients. All other ops are given zeros there.

    An op may know that only some slices of an input will ever get a gradient, now and later. It
    then lists them in ``reached``, one entry an input, with None for all slices.

    Examples
    --------
    >>> class Cube(Op):
    ...     def forward(self, x):
    ...         self.x = x
    ...         return x**3
    ...     def backward(self, grad):
    ...         return (3 * self.x**2 * grad,)
    >>> x = Tensor([2.0], requires_grad=True)
    >>> Cube()(x).backward()
    >>> x.grad
    array([12.], dtype=float32)
    """

    skips = False
    active: Indices | None = None
    reached: "tuple[Indices | None, ...]" = ()
    inputs: "tuple[Tensor, ...]" = ()
    needs: list[bool]
    versions: list[int]

    def forward(self, *arrays: Any) -> Array:
        """Compute the output array."""
        raise NotImplementedError

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        """Compute the gradients with respect to the inputs."""
        raise NotImplementedError

    def __call__(self, *inputs: TensorLike) -> "Tensor":
        """Apply the op, and record it if an input requires a gradient."""
        if self.inputs:  # it is on the tape, and stays there with what backward will need
            again = copy(self)
            again.inputs = ()
            return again(*inputs)
        self.inputs = tensors = _as_tensors(inputs)
        self.needs = [t.requires_grad for t in tensors]
        out = Tensor(self.forward(*[t.raw if self.skips else t.whole() for t in tensors]))
        if self.active is not None:
            out.active, out._hollow = self.active, self.skips
        if True in self.needs and _recording.get():
            self.versions = [t.version for t in tensors]
            out.requires_grad, out.creator, out.order = True, self, next(_applied)
        else:
            self.inputs = ()
        return out


def _as_tensors(inputs: tuple[TensorLike, ...]) -> "tuple[Tensor, ...]":
    if False not in [isinstance(value, Tensor) for value in inputs]:
        return inputs  # type: ignore[return-value]  # the test does not narrow the type
    # Plain numbers take the dtype of the tensor they meet, so float32 stays float32.
    dtypes = [v.dtype for v in inputs if isinstance(v, Tensor | np.ndarray)]
    floats = [d for d in dtypes if d.kind == "f"]
    dtype = np.result_type(*floats) if floats else np.dtype(np.float32)
    return tuple(v if isinstance(v, Tensor) else Tensor(_real(v).astype(dtype)) for v in inputs)


def float_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return the dtype, which must be float32 or float64; else TypeError."""
    if np.dtype(dtype) not in _FLOATS:
        raise TypeError(f"dtype is {np.dtype(dtype)}; expected float32 or float64.")
    return np.dtype(dtype)


def _real(array: Any) -> NDArray[Any]:
    values = np.asarray(array)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"array is of {values.dtype}; expected real numbers.")
    return values


class Tensor:
    """An array that can be differentiated.

    Parameters
    ----------
    array
        float32 and float64 arrays are taken as they are, not copied; anything else (lists,
        integers, booleans) becomes float32.
    requires_grad
        Whether ``backward`` shall leave a gradient here.

    Attributes
    ----------
    data : ndarray
        The values. Read-only in a result that is on the tape.
    grad : ndarray or None
        What ``backward`` has added up so far, of the same shape and dtype. An optimiser moves no
        slice that is closed for good (:attr:`reached`), unless another array is put here.
    requires_grad : bool
    active : ndarray of int64, or None
        If not None: all slices along axis 0 but these are constant zeros, and no gradient is owed
        to them, so an op may leave them out.

    Raises
    ------
    TypeError
        If the array is not of real numbers.

    Examples
    --------
    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    array([2., 4.], dtype=float32)
    """

    __slots__ = (
        "__weakref__",
        "_data",
        "_hollow",
        "_reached",
        "active",
        "creator",
        "grad",
        "order",
        "requires_grad",
        "version",
    )
    __array_ufunc__ = None  # ndarray + Tensor is left to Tensor

    def __init__(self, array: Any, requires_grad: bool = False) -> None:
        if isinstance(array, Tensor):
            raise TypeError("array is a Tensor already; use it as it is, or pass its .data.")
        values = _real(array)
        if values.dtype not in _FLOATS or not isinstance(array, np.ndarray | np.generic):
            values = values.astype(np.float32)
        self._data: Array = values
        self.grad: Array | None = None
        self._reached: tuple[Array | None, Indices | None] = (None, None)  # which grad it is about
        self.requires_grad = requires_grad
        self.active: Indices | None = None
        self._hollow = False  # whether slices that are not active hold anything instead of zeros
        self.creator: Op | None = None
        self.order = 0  # behind all that it was computed from
        self.version = 0

    @property
    def data(self) -> Array:
        """The values, an ndarray."""
        if self.creator is None and self.active is None:
            return self._data
        # What is on the tape must not change before backward reads it, nor what is said to be
        # zero become something else; NumPy sees to it.
        view = self.whole().view()
        view.flags.writeable = False
        return view

    @data.setter
    def data(self, values: Array) -> None:
        if self.creator is not None:
            raise RuntimeError(
                f"this tensor is the result of {type(self.creator).__name__}; its data cannot be "
                f"replaced while the tape needs it. Use .detach() for a tensor of its own."
            )
        if np.shape(values) != self.shape:
            raise ValueError(
                f"new data has shape {np.shape(values)}; expected {self.shape}, as before."
            )
        if values is self._data:  # ``t.data -= step`` has changed it in place
            self.version += 1
        self._data = np.asarray(values, self.dtype)
        self.active, self._hollow = None, False

    def __array__(self, *args: Any, **kwargs: Any) -> Array:
        """Refuse: NumPy would put the tensor itself, one object, into an array."""
        raise TypeError("a Tensor is not an array; NumPy functions take its .data.")

    @property
    def raw(self) -> Array:
        """The values, for ops: slices that are not active may hold anything."""
        return self._data

    def whole(self) -> Array:
        """Return the values, for ops: slices that are not active hold zeros."""
        if self._hollow:
            self._data, self._hollow = with_zeros(self._data, self.active), False
        return self._data

    @property
    def reached(self) -> Indices | None:
        """Slices outside of which ``grad`` is zero and will always be; None for none such."""
        grad, reached = self._reached
        return reached if grad is self.grad else None  # not, if a user has put another in its place

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self._data.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self._data.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._data.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self._data.dtype

    def detach(self) -> "Tensor":
        """Return a tensor of the same values, sharing memory, that is not on the tape."""
        return Tensor(self.data)

    def item(self) -> float:
        """Return the only element as a Python number; ValueError if there are several."""
        return float(self.data.item())

    def backward(self, grad: Array | None = None) -> None:
        """Add the derivative of this tensor to ``.grad`` of every leaf it was computed from.

        That is every leaf which required a gradient when it was used.

        Gradients of results on the way are dropped as soon as they have been used. The tape stays:
        a second call adds the same once more.

        Parameters
        ----------
        grad
            The gradient with respect to this tensor, of its shape; 1 for a tensor of one element.

        Raises
        ------
        RuntimeError
            If this tensor requires no gradient, or an input of an op has changed since: by an
            optimiser, or ``t.data -= ...``. To write into elements, ``t.data[:] = 0``, goes unseen.
        ValueError
            If ``grad`` has the wrong shape, or is left out where it cannot be.
        """
        if not self.requires_grad:
            raise RuntimeError(
                "backward() on a tensor that does not require a gradient: nothing it was computed "
                "from has requires_grad=True, or it was computed under no_grad()."
            )
        if grad is None:
            if self.size != 1:
                raise ValueError(
                    f"backward() on shape {self.shape} needs the gradient with respect to it: "
                    f"reduce to one number first, or pass backward(grad)."
                )
            grad = np.ones(self.shape, self.dtype)
        elif np.shape(grad) != self.shape:
            raise ValueError(f"grad has shape {np.shape(grad)}; expected {self.shape}.")

        grads = {id(self): np.asarray(grad, self.dtype)}
        shared = {id(self)}  # whose gradient is an array that others may hold too
        reached: dict[int, Indices | None] = {}
        for tensor in _backward_order(self):
            grad, op = grads.pop(id(tensor)), tensor.creator
            if tensor.active is not None and not (op and op.skips):
                grad = with_zeros(grad, tensor.active)
            if op is None:
                rows = reached.get(id(tensor))
                if tensor.grad is not None:
                    rows = _union(tensor.reached, rows)
                    tensor.grad = np.asarray(tensor.grad + grad)
                else:
                    own = grad.flags.writeable and id(tensor) not in shared
                    tensor.grad = grad if own else grad.copy()
                tensor._reached = tensor.grad, rows
                continue
            _check_versions(op)
            owners: dict[int, list[int]] = {}  # of memory, and to whom parts of it go
            for i, (parent, part) in enumerate(zip(op.inputs, _parts(op, grad), strict=True)):
                if part is None or not op.needs[i]:
                    continue
                part = np.asarray(part, parent._data.dtype)
                if part.shape != parent._data.shape:
                    part = _unbroadcast(part, parent._data.shape, op)
                key, rows = id(parent), op.reached[i] if op.reached else None
                if key not in grads:
                    owners.setdefault(id(_owner(part)), []).append(key)
                else:
                    shared.discard(key)
                    if parent.active is not None:  # what is anything must not be added
                        grads[key] = with_zeros(grads[key], parent.active)
                        part = with_zeros(part, parent.active)
                    part = np.asarray(grads[key] + part)
                    rows = _union(reached[key], rows)
                grads[key], reached[key] = part, rows
            for owner, keys in owners.items():
                if len(keys) > 1 or (owner == id(_owner(grad)) and id(tensor) in shared):
                    shared.update(keys)

    # -- operators ---------------------------------------------------------------------------

    def __add__(self, other: TensorLike) -> "Tensor":
        return Add()(self, other)

    def __radd__(self, other: TensorLike) -> "Tensor":
        return Add()(other, self)

    def __sub__(self, other: TensorLike) -> "Tensor":
        return Subtract()(self, other)

    def __rsub__(self, other: TensorLike) -> "Tensor":
        return Subtract()(other, self)

    def __mul__(self, other: TensorLike) -> "Tensor":
        return Multiply()(self, other)

    def __rmul__(self, other: TensorLike) -> "Tensor":
        return Multiply()(other, self)

    def __truediv__(self, other: TensorLike) -> "Tensor":
        return Divide()(self, other)

    def __rtruediv__(self, other: TensorLike) -> "Tensor":
        return Divide()(other, self)

    def __matmul__(self, other: TensorLike) -> "Tensor":
        return MatMul()(self, other)

    def __rmatmul__(self, other: TensorLike) -> "Tensor":
        return MatMul()(other, self)

    def __pow__(self, exponent: float) -> "Tensor":
        return Power(exponent)(self)

    def __neg__(self) -> "Tensor":
        return Negate()(self)

    def __getitem__(self, index: Any) -> "Tensor":
        return Index(index)(self)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "a Tensor cannot be changed in place, as the tape may need its values. Build a new "
            "one, or write into .data of a leaf before it is used."
        )

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> "Iterator[Tensor]":
        return (self[i] for i in range(len(self)))  # TypeError if there is no axis

    def __float__(self) -> float:
        return self.item()

    def __bool__(self) -> bool:
        return bool(self.data)  # ValueError if there are several, as in NumPy

    def __repr__(self) -> str:
        suffix = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({np.array2string(self.data, separator=', ', prefix='Tensor(')}{suffix})"

    def sum(self, axis: Axes = None, keepdims: bool = False) -> "Tensor":
        """Sum over ``axis`` (an int, a tuple, or None for all)."""
        return Sum(axis, keepdims)(self)

    def mean(self, axis: Axes = None, keepdims: bool = False) -> "Tensor":
        """Average over ``axis`` (an int, a tuple, or None for all)."""
        total = Sum(axis, keepdims)(self)
        return total * (total.size / self.size if self.size else math.nan)

    def max(self, axis: Axes = None, keepdims: bool = False) -> "Tensor":
        """Largest over ``axis``; equal largest elements share the gradient."""
        return Max(axis, keepdims)(self)

    def reshape(self, *shape: SupportsIndex) -> "Tensor":
        """Return the same elements in another shape."""
        return Reshape(shape)(self)

    def transpose(self, *axes: int) -> "Tensor":
        """Permute the axes; without arguments, reverse them."""
        return Transpose(axes or None)(self)

    @property
    def T(self) -> "Tensor":  # noqa: N802 - as in NumPy
        """The tensor with its axes reversed."""
        return self.transpose()

    def exp(self) -> "Tensor":
        """Exponential."""
        return Exp()(self)

    def log(self) -> "Tensor":
        """Natural logarithm."""
        return Log()(self)

    def sqrt(self) -> "Tensor":
        """Square root."""
        return Sqrt()(self)

    def tanh(self) -> "Tensor":
        """Hyperbolic tangent."""
        return Tanh()(self)

    def sigmoid(self) -> "Tensor":
        """Logistic function 1 / (1 + exp(-x))."""
        return Sigmoid()(self)

    def erf(self) -> "Tensor":
        """Error function."""
        return Erf()(self)

    def maximum(self, other: TensorLike) -> "Tensor":
        """Larger of two, element by element; where equal, each gets half the gradient."""
        return Maximum()(self, other)

    def clip(self, low: float | None, high: float | None) -> "Tensor":
        """Limit to [low, high]; no gradient flows where the value is outside."""
        return Clip(low, high)(self)


def _backward_order(root: Tensor) -> list[Tensor]:
    """List what ``root`` depends on, latest first. Iterative: depth is free."""
    found, seen, stack = [], {id(root)}, [root]
    while stack:
        tensor = stack.pop()
        found.append(tensor)
        for parent in _parents(tensor):
            if id(parent) not in seen:
                seen.add(id(parent))
                stack.append(parent)
    return sorted(found, key=lambda tensor: -tensor.order)


def _owner(array: Array) -> Any:
    """Return what owns the memory of an array, which is another array if it is a view."""
    return array if array.base is None else array.base


def _union(a: Indices | None, b: Indices | None) -> Indices | None:
    if a is None or b is None:
        return None
    listed = np.zeros(max(a.max(initial=-1), b.max(initial=-1)) + 1, np.bool_)
    listed[a] = listed[b] = True
    return listed.nonzero()[0]


def with_zeros(array: Array, active: Indices | None) -> Array:
    """Return a copy with zeros in all slices that are not active."""
    out = np.zeros_like(array)
    out[active] = array[active]
    return out


def _parents(tensor: Tensor) -> Iterator[Tensor]:
    op = tensor.creator
    # What required a gradient when the op was applied, whatever has been set since.
    return iter(()) if op is None else compress(op.inputs, op.needs)


def _check_versions(op: Op) -> None:
    if [tensor.version for tensor in op.inputs] == op.versions:
        return
    changed = next(
        t for t, version in zip(op.inputs, op.versions, strict=True) if t.version != version
    )
    raise RuntimeError(
        f"an input of {type(op).__name__} (shape {changed.shape}) was changed in place after it "
        f"was used, for instance by an optimiser's step: its old values are gone. Run the forward "
        f"pass again before backward()."
    )


def _parts(op: Op, grad: Array) -> tuple[Array | None, ...]:
    """Return the gradients of an op's inputs."""
    parts = op.backward(grad)
    if not isinstance(parts, tuple) or len(parts) != len(op.inputs):
        given = f"a tuple of {len(parts)}" if isinstance(parts, tuple) else type(parts).__name__
        raise TypeError(
            f"backward of {type(op).__name__} returned {given}; expected a tuple of "
            f"{len(op.inputs)}, one gradient (or None) for each input."
        )
    return parts


def _unbroadcast(grad: Array, shape: tuple[int, ...], op: Op) -> Array:
    """Sum a gradient over the axes along which its input was broadcast."""
    part = np.asarray(grad.sum(axis=tuple(range(grad.ndim - len(shape)))))
    if part.ndim == len(shape):
        stretched = tuple(i for i, n in enumerate(shape) if n == 1 and part.shape[i] != 1)
        part = np.asarray(part.sum(axis=stretched, keepdims=True)) if stretched else part
    if part.shape != shape:
        raise ValueError(
            f"backward of {type(op).__name__} returned a gradient of shape {grad.shape} for an "
            f"input of shape {shape}."
        )
    return part


def _plain(number: Any) -> Any:
    """Turn a NumPy number into one of Python, which does not widen float32."""
    return number.item() if isinstance(number, np.generic) else number


# -- arithmetic ------------------------------------------------------------------------------


class Add(Op):
    """a + b."""

    def forward(self, a: Array, b: Array) -> Array:
        return np.asarray(a + b)

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        return grad, grad


class Subtract(Op):
    """a - b."""

    def forward(self, a: Array, b: Array) -> Array:
        return np.asarray(a - b)

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        return grad, -grad if self.needs[1] else None


class Multiply(Op):
    """a * b."""

    def forward(self, a: Array, b: Array) -> Array:
        self.a, self.b = a, b
        return np.asarray(a * b)

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        return (
            grad * self.b if self.needs[0] else None,
            grad * self.a if self.needs[1] else None,
        )


class Divide(Op):
    """a / b."""

    def forward(self, a: Array, b: Array) -> Array:
        self.b, self.out = b, np.asarray(a / b)
        return self.out

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        part = grad / self.b
        return part, -part * self.out if self.needs[1] else None


class Negate(Op):
    """-a."""

    def forward(self, a: Array) -> Array:
        return np.asarray(-a)

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        return (-grad,)


class Power(Op):
    """a ** exponent, for a fixed exponent."""

    def __init__(self, exponent: float) -> None:
        if not isinstance(exponent, int | float | np.number):
            raise TypeError(
                f"the exponent is a {type(exponent).__name__}; expected a number. For another, "
                f"there is (exponent * x.log()).exp()."
            )
        self.exponent = _plain(exponent)

    def forward(self, a: Array) -> Array:
        self.a = a
        return np.asarray(a**self.exponent)

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        if self.exponent == 0:  # 0 * a ** -1 would be NaN at 0
            return (np.zeros_like(grad),)
        return (grad * (self.exponent * self.a ** (self.exponent - 1)),)


class MatMul(Op):
    """a @ b, with NumPy's rules for vectors and for stacks of matrices."""

    def forward(self, a: Array, b: Array) -> Array:
        self.a, self.b = a, b
        return np.asarray(a @ b)

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        # As matrices: a vector on the left is a row, one on the right a column.
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

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        return (grad.reshape(self.old),)


class Transpose(Op):
    """Axes permuted."""

    def __init__(self, axes: tuple[int, ...] | None) -> None:
        self.axes = axes

    def forward(self, a: Array) -> Array:
        return a.transpose(self.axes)

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        if self.axes is None:
            return (grad.T,)
        return (grad.transpose(np.argsort([axis % grad.ndim for axis in self.axes])),)


class Index(Op):
    """a[index], for any index NumPy takes."""

    def __init__(self, index: Any) -> None:
        parts = index if isinstance(index, tuple) else (index,)
        self.basic = all(
            part is None or part is Ellipsis or isinstance(part, slice)
            or (isinstance(part, int | np.integer) and not isinstance(part, bool))
            for part in parts
        )  # fmt: skip
        self.index = (
            index if self.basic else deepcopy(index)
        )  # arrays, which their owner may change

    def forward(self, a: Array) -> Array:
        self.shape = a.shape
        return np.asarray(a[self.index])

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        out = np.zeros(self.shape, grad.dtype)
        if self.basic:
            out[self.index] = grad
        else:
            np.add.at(out, self.index, grad)  # an element picked twice receives both
        return (out,)


# -- reductions ------------------------------------------------------------------------------


class Sum(Op):
    """Sum over axes."""

    def __init__(self, axis: Axes, keepdims: bool) -> None:
        self.axis, self.keepdims = axis, keepdims

    def forward(self, a: Array) -> Array:
        self.shape = a.shape
        return np.asarray(a.sum(axis=self.axis, keepdims=self.keepdims))

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        if not self.keepdims and self.axis is not None:
            grad = np.expand_dims(grad, self.axis)
        return (np.broadcast_to(grad, self.shape),)


class Max(Op):
    """Largest over axes; equals share the gradient."""

    def __init__(self, axis: Axes, keepdims: bool) -> None:
        self.axis, self.keepdims = axis, keepdims

    def forward(self, a: Array) -> Array:
        out = a.max(axis=self.axis, keepdims=True)
        self.largest = a == out
        return np.asarray(out if self.keepdims else np.squeeze(out, self.axis))

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        if not self.keepdims and self.axis is not None:
            grad = np.expand_dims(grad, self.axis)
        count = self.largest.sum(axis=self.axis, keepdims=True, dtype=grad.dtype)
        return (self.largest * (grad / count),)


# -- functions of one element ----------------------------------------------------------------


class Exp(Op):
    """exp(a)."""

    def forward(self, a: Array) -> Array:
        self.out = np.asarray(np.exp(a))
        return self.out

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        return (grad * self.out,)


class Log(Op):
    """log(a)."""

    def forward(self, a: Array) -> Array:
        self.a = a
        return np.asarray(np.log(a))

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        return (grad / self.a,)


class Sqrt(Op):
    """sqrt(a)."""

    def forward(self, a: Array) -> Array:
        self.out = np.asarray(np.sqrt(a))
        return self.out

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        return (grad / (2 * self.out),)


class Tanh(Op):
    """tanh(a)."""

    def forward(self, a: Array) -> Array:
        self.out = np.asarray(np.tanh(a))
        return self.out

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        return (grad * (1 - self.out * self.out),)


def logistic(a: NDArray[Any]) -> Array:
    """Return 1 / (1 + exp(-a)); exp of what is never positive cannot overflow."""
    small = np.exp(-np.abs(a))
    return np.asarray(np.where(a >= 0, 1, small) / (1 + small))


class Sigmoid(Op):
    """1 / (1 + exp(-a))."""

    def forward(self, a: Array) -> Array:
        self.out = logistic(a)
        return self.out

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        return (grad * (self.out * (1 - self.out)),)


class Erf(Op):
    """The error function; its derivative is 2 / sqrt(pi) * exp(-a^2)."""

    def forward(self, a: Array) -> Array:
        self.a = a
        out = np.empty(a.shape, a.dtype)
        kernels.erf(np.ascontiguousarray(a).reshape(-1), out.reshape(-1))
        return out

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        return (grad * (2 / np.pi**0.5 * np.exp(-self.a * self.a)).astype(grad.dtype),)


class Maximum(Op):
    """The larger of two; where equal, each gets half the gradient."""

    def forward(self, a: Array, b: Array) -> Array:
        self.share = np.where(a == b, 0.5, a > b).astype(np.result_type(a, b))
        return np.asarray(np.maximum(a, b))

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        return grad * self.share, grad * (1 - self.share)


class Clip(Op):
    """a limited to [low, high]."""

    def __init__(self, low: float | None, high: float | None) -> None:
        if low is not None and high is not None and low > high:
            raise ValueError(f"clip to [{low}, {high}]: low must not be above high.")
        self.low, self.high = _plain(low), _plain(high)

    def forward(self, a: Array) -> Array:
        out = np.asarray(np.clip(a, self.low, self.high))
        self.inside: NDArray[np.bool_] = out == a
        return out

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        return (grad * self.inside,)
