"""Tensors, and the tape: the record of ops that ``backward`` walks in reverse.

A :class:`Tensor` holds a NumPy array. :func:`apply` applies an :class:`~minidiff.engine.op.Op` to
tensors and returns a new tensor. If an input requires a gradient, the result keeps a :class:`Node`:
the op and its inputs. Linked nodes form the tape.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextvars import ContextVar
from functools import wraps
from itertools import compress, count
from typing import Any, NamedTuple, TypeAlias, Union

import numpy as np

from . import op as ops
from .arrays import (
    Array,
    Elements,
    Indices,
    Live,
    Shape,
    filled,
    is_view,
    read_only,
    real,
    slices,
)
from .op import Axes, Op

__all__ = ["Tensor", "apply", "no_grad"]

TensorLike: TypeAlias = Union["Tensor", Array, float, int]

_FLOATS = {np.dtype(np.float32), np.dtype(np.float64)}
_clock = count(1)  # numbers the nodes in order of creation
# The blocks of no_grad() that were entered in this context; a block that has ended is empty.
_blocks: ContextVar[tuple[list[str], ...]] = ContextVar("blocks", default=())


class no_grad:  # noqa: N801 - used like a function
    """Compute without a tape: results require no gradient.

    A context manager, or a decorator of functions. Do not ``yield`` inside the block: until the
    generator goes on, its caller would compute without a tape too.

    Raises
    ------
    TypeError
        If a decorated function returns a generator or a coroutine, which would run after the block.
    RuntimeError
        If one object is entered again inside its own block.

    Examples
    --------
    >>> x = Tensor([1.0], requires_grad=True)
    >>> with no_grad():
    ...     y = 2 * x
    >>> y.requires_grad
    False
    """

    block: list[str] | None = None

    def __enter__(self) -> None:
        if self.block:
            raise RuntimeError("this no_grad() is in use; write no_grad() anew for each block.")
        self.block = ["open"]
        _blocks.set((*filter(None, _blocks.get()), self.block))

    def __exit__(self, *error: object) -> None:
        # Whatever other blocks have begun or ended since, and in whichever thread this one ends.
        assert self.block is not None
        self.block.clear()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate a function."""

        @wraps(function)
        def without_tape(*args: Any, **kwargs: Any) -> Any:
            with no_grad():
                result = function(*args, **kwargs)
            if isinstance(result, Iterator | Awaitable | AsyncIterator):
                if isinstance(result, Coroutine):
                    result.close()  # or Python would warn that nobody waits for it
                raise TypeError(
                    f"no_grad() decorates {getattr(function, '__name__', function)}, whose result, "
                    f"a {type(result).__name__}, would compute later, with a tape; expected a "
                    f"function that returns when all is computed. Write `with no_grad():` inside."
                )
            return result

        return without_tape


class Node(NamedTuple):
    """One application of an op, recorded on the tape."""

    op: Op
    inputs: "tuple[Tensor, ...]"
    versions: list[int]  # of the inputs, to detect a change before backward
    time: int  # larger than the time of every node that this node depends on


def apply(op: Op, *inputs: TensorLike) -> "Tensor":
    """Apply an op, and record it on the tape if an input requires a gradient.

    Parameters
    ----------
    op
        A new object, because the op stores the values that its ``backward`` needs.
    inputs
        Tensors, arrays, lists or numbers. All but tensors are converted to the common float dtype
        of the tensors and arrays, or to float32 if there is none.

    Raises
    ------
    RuntimeError
        If ``op`` was applied before.

    Examples
    --------
    >>> from minidiff.engine.op import Exp
    >>> apply(Exp(), [0.0]).data
    array([1.], dtype=float32)
    """
    if op.needs:
        raise RuntimeError(
            f"this {op.name} was applied before; make a new one for each application."
        )
    tensors = _as_tensors(inputs)
    op.needs = tuple([t.requires_grad for t in tensors])
    op.live_in = tuple([t.live for t in tensors])
    if op.skips_dead_rows:
        arrays = [t.raw for t in tensors]
        for i, live in enumerate(op.live_in):
            if isinstance(live, Elements) and i != op.sparse_input:
                arrays[i] = filled(arrays[i], live)
                op.live_in = (*op.live_in[:i], None, *op.live_in[i + 1 :])
    else:
        arrays = [read_only(filled(t.raw, t.live)) for t in tensors]
    if [a for a in arrays if a.dtype is not arrays[0].dtype]:
        # A single number does not make float32 float64.
        dtype = np.result_type(*[a.dtype for a in arrays if a.ndim] or arrays)
        arrays = [a if a.ndim else a.astype(dtype) for a in arrays]
    values = np.asarray(op.forward(*arrays))
    recorded = True in op.needs and not any(_blocks.get())
    # An output may share memory with nothing that can still change.
    changing = [t.raw for t in tensors if t.node is None or not recorded]
    if changing and not op.shares_inputs and is_view(values, changing):
        values = values.copy()
    out = Tensor(values)
    out.live = op.live
    if recorded:
        out.node = Node(op, tensors, [t.version for t in tensors], next(_clock))
        out.requires_grad = True
    return out


def _as_tensors(inputs: tuple[TensorLike, ...]) -> "tuple[Tensor, ...]":
    if False not in [isinstance(value, Tensor) for value in inputs]:
        return inputs  # type: ignore[return-value]  # the test does not narrow the type
    # Numbers and arrays of integers take the dtype of what they meet, so float32 stays float32.
    given = [v for v in inputs if isinstance(v, Tensor | np.ndarray) and v.dtype.kind == "f"]
    dtypes = [v.dtype for v in given if v.ndim] or [v.dtype for v in given]
    dtype = np.result_type(np.float32, *dtypes)
    return tuple(v if isinstance(v, Tensor) else Tensor(real(v, dtype)) for v in inputs)


class Tensor:
    """An array that can be differentiated.

    Parameters
    ----------
    array
        Real numbers. A float32 or float64 array is shared, not copied. All else becomes float32:
        lists, numbers, integers, booleans and float16.
    requires_grad
        Whether ``backward`` computes ``grad``.

    Attributes
    ----------
    data : ndarray
        The values. Read-only in a result on the tape, and in a tensor with ``live`` set.
    grad : ndarray or None
        The sum of all gradients from ``backward``, with the shape and dtype of ``data``.
    requires_grad : bool
    live : ndarray of int64, Elements, or None
        The live rows (slices along axis 0), the live elements of a weight with few left, or None
        for all. All else is multiplied by a closed gate, whose value and slope are 0. So it is
        zero, its gradient has no effect, and ops may skip it.

    Raises
    ------
    TypeError
        If the array does not hold real numbers of at most 64 bits, is masked, or is a Tensor.
    ValueError
        If float32 cannot hold a number, or would round integers in an array.

    Examples
    --------
    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    array([2., 4.], dtype=float32)
    """

    __slots__ = (
        "__weakref__", "grad_live", "live", "node",
        "raw", "raw_grad", "requires_grad", "version",
    )  # fmt: skip
    __array_priority__ = 1000  # so ndarray + Tensor calls Tensor.__radd__
    __hash__ = object.__hash__

    def __init__(self, array: Any, requires_grad: bool = False) -> None:
        if isinstance(array, Tensor):
            raise TypeError("array is a Tensor already; use it as it is, or pass its .data.")
        kept = type(array) is np.ndarray and array.dtype in _FLOATS
        self.raw: Array = array if kept else real(array)  # where dead, perhaps uninitialised
        self.live: Live = None
        self.requires_grad = requires_grad
        self.raw_grad: Array | None = None
        # What can ever get a gradient; the rest of raw_grad is uninitialised.
        self.grad_live: Live = None
        self.node: Node | None = None
        self.version = 0  # counts the changes that make recorded ops invalid

    @property
    def data(self) -> Array:
        """The values, an ndarray with zeros where the tensor is dead."""
        if self.node is None and self.live is None:
            return self.raw
        # Read-only, so neither taped values nor implied zeros can change.
        return read_only(filled(self.raw, self.live))

    @data.setter
    def data(self, values: Array) -> None:
        if self.node is not None:
            raise RuntimeError(
                f"the tape needs the data of this result of {self.node.op.name}; replace the data "
                f"of a leaf, or of .detach()."
            )
        new = real(values, self.dtype)
        if new.shape != self.shape:
            raise ValueError(f"new data has shape {new.shape}; expected {self.shape}.")
        # ``t.data -= step`` changes the array in place, so ops that stored the array are invalid.
        # Ops that skipped dead rows are invalid too: all rows are live now, and ``backward`` would
        # read the gradients that these ops have left uninitialised.
        if values is self.raw or self.live is not None:
            self.version += 1
        if not (isinstance(self.live, Elements) and np.array_equal(filled(new, self.live), new)):
            self.live = None
        self.raw = new

    @property
    def grad(self) -> Array | None:
        """The sum of all gradients from ``backward``, or None."""
        if self.raw_grad is not None and self.grad_live is not None:
            grad, live = slices(self.raw_grad, self.grad_live)
            dead = np.ones(len(grad), np.bool_)
            dead[live] = False
            grad[dead] = 0
        return self.raw_grad

    @grad.setter
    def grad(self, grad: Array | None) -> None:
        if grad is self.raw_grad:
            return
        new = None if grad is None else real(grad, self.dtype)
        if new is not None and new.shape != self.shape:
            raise ValueError(f"new grad has shape {new.shape}; expected {self.shape}.")
        self.raw_grad, self.grad_live = new, None  # all rows may hold a gradient

    def __array__(self, *args: Any, **kwargs: Any) -> Array:
        """Refuse, because NumPy would wrap the tensor in an array of objects."""
        raise TypeError(
            "a Tensor is not an array. NumPy functions take its .data; those with a gradient are "
            "methods, such as t.exp() and t.sum(), or in minidiff.functional."
        )

    __array_function__ = __array__

    @property
    def shape(self) -> Shape:
        """The shape of the array."""
        return self.raw.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.raw.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.raw.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self.raw.dtype

    def detach(self) -> "Tensor":
        """Return a tensor with the same values that is not on the tape.

        Both tensors share memory, unless rows are dead.
        """
        return Tensor(self.data)

    def item(self) -> float:
        """Return the only element as a Python number; ValueError if there are several."""
        return float(self.data.item())

    def backward(self, grad: Array | None = None) -> None:
        """Add the derivative of this tensor to ``.grad`` of every leaf it was computed from.

        A leaf requires a gradient and is not the result of an op. The tape stays, so a second call
        adds the same gradients again.

        Parameters
        ----------
        grad
            The gradient with respect to this tensor, with the same shape. If this tensor has one
            element, the default is 1.

        Raises
        ------
        RuntimeError
            If this tensor requires no gradient, or if an optimiser or ``t.data -= ...`` has changed
            an input of an op. Writes into elements, as in ``t.data[:] = 0``, are not detected.
        ValueError
            If ``grad`` has the wrong shape, or is missing and this tensor has not one element.
        """
        if not self.requires_grad:
            raise RuntimeError(
                "backward() on a tensor that requires no gradient: no tensor it was computed from "
                "has requires_grad=True, or it was computed under no_grad()."
            )
        if grad is None and self.size != 1:
            raise ValueError(
                f"backward() on shape {self.shape} needs the gradient with respect to it: reduce "
                f"to one number first, or pass backward(grad)."
            )
        grad = np.ones(self.shape, self.dtype) if grad is None else grad
        grad = real(grad, self.dtype)
        if grad.shape != self.shape:
            raise ValueError(f"grad has shape {grad.shape}; expected {self.shape}.")
        # Gradients wait here until every op that uses the tensor has added its part. Each gradient
        # comes with ``grad_live``: what can get a gradient now or later, as far as the ops of this
        # pass know. Outside ``grad_live``, and where the tensor is dead, a waiting gradient may be
        # uninitialised, so zeros are filled in before gradients are added.
        pending: dict[int, tuple[Array, Live]] = {}
        pending[id(self)] = grad, None
        # Leaves come last, so an error in an op leaves every .grad unchanged.
        for tensor in _latest_first(self):
            grad, grad_live = pending.pop(id(tensor))
            if tensor.node is None:
                tensor._add_grad(grad, grad_live)
                continue
            grad = filled(grad, grad_live)
            for parent, part, part_live in _input_gradients(tensor.node, grad, tensor.live):
                if id(parent) in pending:
                    part, part_live = _sum(*pending[id(parent)], part, part_live, parent.live)
                pending[id(parent)] = part, part_live

    def _add_grad(self, grad: Array, live: Live) -> None:
        if live is None:
            live = self.live
        elif self.live is not None and not isinstance(live, Elements):
            grad, live = filled(grad, live), self.live  # only where both are live is it written
        if self.grad is not None:
            grad, live = self.grad + filled(grad, live), _union(self.grad_live, live)
            self.raw_grad, self.grad_live = np.asarray(grad), live
            return
        # A copy: another leaf, or the caller, may hold the same array.
        self.raw_grad, self.grad_live = np.empty(grad.shape, grad.dtype), live
        if live is None or not grad.ndim:
            self.raw_grad[...] = grad
        else:
            source, at = slices(grad, live)
            slices(self.raw_grad, live)[0][at] = source[at]

    # -- operators ---------------------------------------------------------------------------

    def __add__(self, other: TensorLike) -> "Tensor":
        return apply(ops.Add(), self, other)

    def __radd__(self, other: TensorLike) -> "Tensor":
        return apply(ops.Add(), other, self)

    def __sub__(self, other: TensorLike) -> "Tensor":
        return apply(ops.Subtract(), self, other)

    def __rsub__(self, other: TensorLike) -> "Tensor":
        return apply(ops.Subtract(), other, self)

    def __mul__(self, other: TensorLike) -> "Tensor":
        return apply(ops.Multiply(), self, other)

    def __rmul__(self, other: TensorLike) -> "Tensor":
        return apply(ops.Multiply(), other, self)

    def __truediv__(self, other: TensorLike) -> "Tensor":
        return apply(ops.Divide(), self, other)

    def __rtruediv__(self, other: TensorLike) -> "Tensor":
        return apply(ops.Divide(), other, self)

    def __matmul__(self, other: TensorLike) -> "Tensor":
        return apply(ops.MatMul(), self, other)

    def __rmatmul__(self, other: TensorLike) -> "Tensor":
        return apply(ops.MatMul(), other, self)

    def __pow__(self, exponent: float) -> "Tensor":
        return apply(ops.Power(exponent), self)

    def __rpow__(self, base: float) -> "Tensor":
        return apply(ops.Exponential(base), self)

    def __neg__(self) -> "Tensor":
        return apply(ops.Negate(), self)

    def __abs__(self) -> "Tensor":
        return self.abs()

    # Comparisons have no gradient, so they return arrays of booleans.

    def __eq__(self, other: object) -> Any:
        return self.data == _data(other)

    def __ne__(self, other: object) -> Any:
        return self.data != _data(other)

    def __lt__(self, other: TensorLike) -> Any:
        return self.data < _data(other)

    def __le__(self, other: TensorLike) -> Any:
        return self.data <= _data(other)

    def __gt__(self, other: TensorLike) -> Any:
        return self.data > _data(other)

    def __ge__(self, other: TensorLike) -> Any:
        return self.data >= _data(other)

    def __getitem__(self, index: Any) -> "Tensor":
        return apply(ops.Index(index), self)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "the tape may need the values of a Tensor; build a new one, or write into .data of a "
            "leaf before it is used."
        )

    def __len__(self) -> int:
        return len(self.raw)

    def __iter__(self) -> "Iterator[Tensor]":
        return (self[i] for i in range(len(self)))  # TypeError if there is no axis

    def __float__(self) -> float:
        return self.item()

    def __bool__(self) -> bool:
        return bool(self.data)  # ValueError if there are several elements, as in NumPy

    def __format__(self, spec: str) -> str:
        return format(self.item() if spec else str(self), spec)

    def __repr__(self) -> str:
        suffix = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({np.array2string(self.data, separator=', ', prefix='Tensor(')}{suffix})"

    # -- methods as in NumPy -------------------------------------------------------------------

    def sum(self, axis: Axes = None, keepdims: bool = False) -> "Tensor":
        """Sum over ``axis`` (an int, a tuple, or None for all)."""
        return apply(ops.Sum(axis, keepdims), self)

    def mean(self, axis: Axes = None, keepdims: bool = False) -> "Tensor":
        """Average over ``axis`` (an int, a tuple, or None for all)."""
        return apply(ops.Mean(axis, keepdims), self)

    def max(self, axis: Axes = None, keepdims: bool = False) -> "Tensor":
        """Maximum over ``axis``; tied maxima share the gradient equally."""
        return apply(ops.Max(axis, keepdims), self)

    def min(self, axis: Axes = None, keepdims: bool = False) -> "Tensor":
        """Minimum over ``axis``; tied minima share the gradient equally."""
        return -(-self).max(axis, keepdims)

    def reshape(self, *shape: Any) -> "Tensor":
        """Return the same elements in another shape, given as integers or as a tuple."""
        return apply(ops.Reshape(shape), self)

    def transpose(self, *axes: Any) -> "Tensor":
        """Permute the axes, given one by one or in a tuple; without arguments, reverse them."""
        order = axes[0] if len(axes) == 1 and isinstance(axes[0], tuple | list) else axes
        return apply(ops.Transpose(tuple(order) or None), self)

    @property
    def T(self) -> "Tensor":  # noqa: N802 - as in NumPy
        """The tensor with its axes reversed."""
        return self.transpose()

    def abs(self) -> "Tensor":
        """Absolute value; the derivative at 0 is 0."""
        return apply(ops.Abs(), self)

    def exp(self) -> "Tensor":
        """Exponential."""
        return apply(ops.Exp(), self)

    def log(self) -> "Tensor":
        """Natural logarithm."""
        return apply(ops.Log(), self)

    def sqrt(self) -> "Tensor":
        """Square root."""
        return apply(ops.Sqrt(), self)

    def tanh(self) -> "Tensor":
        """Hyperbolic tangent."""
        return apply(ops.Tanh(), self)

    def sigmoid(self) -> "Tensor":
        """Logistic function 1 / (1 + exp(-x))."""
        return apply(ops.Sigmoid(), self)

    def erf(self) -> "Tensor":
        """Error function."""
        return apply(ops.Erf(), self)

    def maximum(self, other: TensorLike) -> "Tensor":
        """Elementwise maximum; at a tie each input gets half of the gradient."""
        return apply(ops.Maximum(), self, other)

    def minimum(self, other: TensorLike) -> "Tensor":
        """Elementwise minimum; at a tie each input gets half of the gradient."""
        return -(-self).maximum(-_as_tensors((self, other))[1])

    def clip(self, low: float | None, high: float | None) -> "Tensor":
        """Limit to [low, high]; the gradient is 0 where the value is outside."""
        return apply(ops.Clip(low, high), self)


def _data(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else value


def _latest_first(root: Tensor) -> list[Tensor]:
    """List ``root`` and all tensors it depends on that need a gradient, latest first.

    A tensor comes before the tensors it was computed from, so its gradient is complete when
    ``backward`` reaches it. A stack replaces recursion, so the depth of the tape is not limited.
    """
    found, seen, stack = [], {id(root)}, [root]
    while stack:
        tensor = stack.pop()
        found.append(tensor)
        node = tensor.node
        for parent in compress(node.inputs, node.op.needs) if node else ():
            if id(parent) not in seen:
                seen.add(id(parent))
                stack.append(parent)
    return sorted(found, key=lambda tensor: -tensor.node.time if tensor.node else 0)


def _input_gradients(node: Node, grad: Array, live: Live) -> Iterator[tuple[Tensor, Array, Live]]:
    """Yield each input that needs a gradient, its gradient, and what can ever get one."""
    op, inputs, versions, _ = node
    if [t.version for t in inputs] != versions:
        changed = next(t for t, v in zip(inputs, versions, strict=True) if t.version != v)
        raise RuntimeError(
            f"an input of {op.name} (shape {changed.shape}) was changed in place after it was "
            f"used, perhaps by an optimiser. Run the forward pass again before backward()."
        )
    parts = op.backward(grad if op.skips_dead_rows else read_only(filled(grad, live)))
    parts = parts if isinstance(parts, tuple) else (parts,)
    if len(parts) != len(inputs):
        raise TypeError(
            f"backward of {op.name} returned {len(parts)} gradients; expected {len(inputs)}, one "
            f"(or None) for each input."
        )
    for i, (parent, part) in enumerate(zip(inputs, parts, strict=True)):
        if not op.needs[i]:
            continue
        if part is None:
            raise TypeError(f"backward of {op.name} returned None for input {i}, which needs one.")
        part = np.asarray(part, parent.dtype)
        if part.shape != parent.shape:
            part = _unbroadcast(part, parent.shape, op)
        yield parent, part, op.grad_live[i] if op.grad_live else None


def _unbroadcast(grad: Array, shape: Shape, op: Op) -> Array:
    """Sum a gradient, in float64, over the axes along which its input was broadcast."""
    extra = grad.ndim - len(shape)
    axes = [i for i in range(grad.ndim) if i < extra or shape[i - extra] == 1 != grad.shape[i]]
    out = grad.sum(axis=tuple(axes), keepdims=True, dtype=np.float64)
    if extra < 0 or out.shape[extra:] != shape:
        raise ValueError(
            f"backward of {op.name} returned shape {grad.shape} for an input of shape {shape}."
        )
    return np.asarray(out.reshape(shape), grad.dtype)


def _sum(a: Array, a_live: Live, b: Array, b_live: Live, live: Live) -> tuple[Array, Live]:
    """Add two gradients of a tensor whose live rows or elements are ``live``."""
    if a_live is not None and b_live is not None and live is None:
        (x, at), (y, others) = slices(a, a_live), slices(b, b_live)
        if len(x) == len(y) and np.array_equal(at, others):  # the usual case for phi
            out = np.empty(a.shape, a.dtype)
            slices(out, a_live)[0][at] = x[at] + y[at]
            return out, a_live
    a, b = filled(filled(a, a_live), live), filled(filled(b, b_live), live)
    return np.asarray(a + b), _union(a_live, b_live)


def _union(a: Live, b: Live) -> Live:
    if isinstance(a, Elements) and isinstance(b, Elements):
        return Elements(_union_of(a.places, b.places))
    if a is None or b is None or isinstance(a, Elements) or isinstance(b, Elements):
        return None
    return _union_of(a, b)


def _union_of(a: Indices, b: Indices) -> Indices:
    if np.array_equal(a, b):
        return a
    # Marking is 100 times faster than np.union1d, which matters for gates on single weights.
    listed = np.zeros(max(a.max(initial=-1), b.max(initial=-1)) + 1, np.bool_)
    listed[a] = listed[b] = True
    return listed.nonzero()[0]
