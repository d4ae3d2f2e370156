"""Functions of tensors: each checks its arguments and applies an op.

Those of neural networks are batch last. Their activations are (C, H, W, N) or (D, N): channels or
features first, the samples of the batch last. Each function takes Tensors, arrays, lists or
numbers, and returns a Tensor.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import op, ops
from .arrays import Array, Elements, Indices
from .tensor import Tensor, TensorLike, apply

Pair: TypeAlias = int | tuple[int, int]

__all__ = [
    "avg_pool2d",
    "batch_norm",
    "concatenate",
    "conv2d",
    "cross_entropy",
    "dropout",
    "flatten",
    "linear",
    "max_pool2d",
    "relu",
    "select",
    "softmax",
    "stack",
    "where",
]


BATCH_LAST = "The batch is the last axis; np.moveaxis(x, 0, -1) moves it there."


def pair(value: Pair, name: str, least: int = 1) -> tuple[int, int]:
    """Return (vertical, horizontal) for an int or a pair; ValueError if below ``least``."""
    both = value if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2 or any(not isinstance(v, int | np.integer) or v < least for v in both):
        raise ValueError(f"{name} is {value!r}; expected an integer >= {least}, or a pair of them.")
    return int(both[0]), int(both[1])


def probability(value: Any, name: str) -> float:
    """Return a number in [0, 1); ValueError for anything else."""
    if not isinstance(value, int | float | np.number) or not 0 <= value < 1:
        raise ValueError(f"{name} is {value!r:.40}; expected a number in [0, 1).")
    return float(value)


def float_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return the dtype, which must be float32 or float64; else TypeError."""
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise TypeError(f"dtype is {np.dtype(dtype)}; expected float32 or float64.")
    return np.dtype(dtype)


def generator(rng: Any) -> np.random.Generator:
    """Return rng; TypeError for a seed, because every layer would draw the same numbers."""
    if not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"rng is {rng!r}; expected a numpy.random.Generator, such as "
            f"numpy.random.default_rng(0), one for the whole network."
        )
    return rng


def conv2d(
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
) -> Tensor:
    """Convolve images, batch last: cross-correlation, as is usual in deep learning.

    Parameters
    ----------
    x
        Shape (C, H, W, N).
    weight
        Shape (O, C, KH, KW).
    bias
        Shape (O,), or None.
    stride, padding
        An int or a pair (vertical, horizontal); zero padding on both sides.

    Returns
    -------
    Tensor of shape (O, H', W', N)
        H' is (H + 2*padding - KH) // stride + 1, and W' likewise.

    Raises
    ------
    ValueError
        If shapes do not fit or are empty, dtypes differ, or ``stride`` or ``padding`` is out of
        range.

    Examples
    --------
    Each output is the number of pixels of a 3x3 image that it reads:

    >>> conv2d(np.ones((1, 3, 3, 1)), np.ones((1, 1, 3, 3)), padding=1).data[0, :, :, 0]
    array([[4., 6., 4.],
           [6., 9., 6.],
           [4., 6., 4.]])
    """
    x, weight = _tensor(x), _tensor(weight)
    strides, pads = pair(stride, "stride"), pair(padding, "padding", least=0)
    if x.ndim != 4 or weight.ndim != 4 or x.shape[0] != weight.shape[1]:
        raise ValueError(
            f"conv2d: x of shape {x.shape} and weight of shape {weight.shape} do not fit; expected "
            f"(C, H, W, N) and (O, C, KH, KW) with the same C. {BATCH_LAST}"
        )
    bias = _checked("conv2d", x, weight, bias)
    for size, more, kernel, axis in zip(
        x.shape[1:3], pads, weight.shape[2:], ("high", "wide"), strict=True
    ):
        if size + 2 * more < kernel:
            raise ValueError(
                f"conv2d: a kernel {kernel} {axis} does not fit on an input {size} {axis} with "
                f"padding {more}; x has shape {x.shape}, weight {weight.shape}."
            )
    return apply(ops.Conv2d(strides, pads), x, weight, bias)


def linear(x: TensorLike, weight: TensorLike, bias: TensorLike | None = None) -> Tensor:
    """Compute ``weight @ x + bias[:, None]``, batch last.

    Parameters
    ----------
    x
        Shape (D, N).
    weight
        Shape (O, D).
    bias
        Shape (O,), or None.

    Returns
    -------
    Tensor of shape (O, N)

    Raises
    ------
    ValueError
        If shapes do not fit or are empty, or dtypes differ.

    Examples
    --------
    >>> linear(np.ones((3, 2)), np.array([[1.0, 2.0, 3.0]]), np.array([0.5])).data
    array([[6.5, 6.5]])
    """
    x, weight = _tensor(x), _tensor(weight)
    if x.ndim != 2 or weight.ndim != 2 or x.shape[0] != weight.shape[1]:
        raise ValueError(
            f"linear: x of shape {x.shape} and weight of shape {weight.shape} do not fit; "
            f"expected (D, N) and (O, D) with the same D. {BATCH_LAST}"
        )
    return apply(ops.Linear(), x, weight, _checked("linear", x, weight, bias))


def _tensor(value: TensorLike) -> Tensor:
    return value if isinstance(value, Tensor) else Tensor(value)


def _checked(name: str, x: Tensor, weight: Tensor, bias: TensorLike | None) -> Tensor:
    """Return the bias, or zeros for None; ValueError if operands are empty or do not fit."""
    if 0 in x.shape or 0 in weight.shape:
        raise ValueError(f"{name}: x {x.shape} or weight {weight.shape} is empty.")
    if bias is None:
        bias = Tensor(np.zeros(len(weight), weight.dtype))
        bias.live = np.arange(0) if isinstance(weight.live, Elements) else weight.live
    bias = _tensor(bias)
    if bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{name}: bias of shape {bias.shape} does not fit weight of shape {weight.shape}; "
            f"expected {weight.shape[:1]}."
        )
    dtypes = x.dtype, weight.dtype, bias.dtype
    if len(set(dtypes)) > 1:
        raise ValueError(
            f"{name}: dtypes of x, weight and bias are {', '.join(map(str, dtypes))}; expected all "
            f"float32 or all float64."
        )
    return bias


def batch_norm(
    x: TensorLike, weight: TensorLike, bias: TensorLike, *, eps: float = 1e-5
) -> tuple[Tensor, Array, Array]:
    """Normalise each channel over the batch, then scale and shift it.

    Parameters
    ----------
    x
        Shape (C, ..., N), with more than one number a channel.
    weight, bias
        Shape (C,).
    eps
        The number added to the variance.

    Returns
    -------
    Tensor of the shape of x, and the mean and the variance of each channel, float64 of shape (C,)

    Raises
    ------
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> out, mean, variance = batch_norm([[1.0, 3.0]], [2.0], [0.0])
    >>> out.data.round(2), mean, variance
    (array([[-2.,  2.]], dtype=float32), array([2.]), array([1.]))
    """
    norm = ops.BatchNorm(eps)
    x, weight, bias = (t if isinstance(t, Tensor) else Tensor(t) for t in (x, weight, bias))
    if not x.ndim or x.size <= len(x) or not weight.shape == bias.shape == x.shape[:1]:
        raise ValueError(
            f"batch_norm: x has shape {x.shape}, weight {weight.shape} and bias {bias.shape}; "
            f"expected (C, ..., N) with more than one number a channel, (C,) and (C,)."
        )
    return apply(norm, x, weight, bias), norm.mean, norm.variance


def relu(x: TensorLike) -> Tensor:
    """Rectified linear unit, max(x, 0); the derivative at 0 is 0.

    Parameters
    ----------
    x
        Any shape.

    Examples
    --------
    >>> x = Tensor([-1.0, 0.0, 2.0], requires_grad=True)
    >>> relu(x).sum().backward()
    >>> x.grad
    array([0., 0., 1.], dtype=float32)
    """
    return apply(ops.ReLU(), x)


def dropout(x: TensorLike, p: float, rng: np.random.Generator) -> Tensor:
    """Set each element to zero with probability ``p``, and scale the others by 1 / (1 - p).

    The scaling keeps the expected value, so evaluation needs no factor (Srivastava et al. 2014,
    JMLR 15, section 10).

    Parameters
    ----------
    x
        Any shape.
    p
        A probability in [0, 1).
    rng
        Generator that draws one number for each element, or none if ``p`` is 0.

    Raises
    ------
    TypeError
        If ``rng`` is not a numpy.random.Generator.
    ValueError
        If ``p`` is out of range.

    Examples
    --------
    >>> out = dropout(np.ones(1000), 0.5, np.random.default_rng(0)).data
    >>> np.unique(out), bool(450 < (out == 0).sum() < 550)
    (array([0., 2.]), True)
    """
    return (
        _tensor(x)
        if probability(p, "dropout: p") == 0
        else apply(ops.Dropout(p, generator(rng)), x)
    )


def max_pool2d(
    x: TensorLike, kernel: Pair, *, stride: Pair | None = None, relu: bool = False
) -> Tensor:
    """Return the maximum of each window of each channel.

    Parameters
    ----------
    x
        Shape (C, H, W, N).
    kernel
        Height and width of the window, an int or a pair; at most 256 positions (255 with relu).
    stride
        An int or a pair; None means the size of the window. Windows that do not fit at the far
        edges are left out.
    relu
        Whether to apply :func:`relu` too, in the same pass over memory.

    Returns
    -------
    Tensor of shape (C, H', W', N)
        H' is (H - KH) // stride + 1, and W' likewise.

    Raises
    ------
    ValueError
        If the window does not fit or is too large, or ``stride`` is out of range.

    Examples
    --------
    >>> max_pool2d(np.arange(16.0).reshape(1, 4, 4, 1), 2).data[0, :, :, 0]
    array([[ 5.,  7.],
           [13., 15.]])
    """
    x, window, strides = _pool_arguments("max_pool2d", x, kernel, stride)
    if window[0] * window[1] > 256 - relu:  # one byte stores the position of the maximum
        raise ValueError(f"max_pool2d: kernel {window} has over {256 - relu} positions.")
    return apply(ops.MaxPool2d(window, strides, relu), x)


def avg_pool2d(x: TensorLike, kernel: Pair, *, stride: Pair | None = None) -> Tensor:
    """Return the mean of each window of each channel.

    Parameters
    ----------
    x
        Shape (C, H, W, N).
    kernel, stride
        As in :func:`max_pool2d`; a window may have any size.

    Returns
    -------
    Tensor of shape (C, H', W', N)
        As in :func:`max_pool2d`.

    Raises
    ------
    ValueError
        If the window does not fit, or ``stride`` is out of range.

    Examples
    --------
    >>> avg_pool2d(np.arange(16.0).reshape(1, 4, 4, 1), 2).data[0, :, :, 0]
    array([[ 2.5,  4.5],
           [10.5, 12.5]])
    """
    x, window, strides = _pool_arguments("avg_pool2d", x, kernel, stride)
    return apply(ops.AvgPool2d(window, strides), x)


def _pool_arguments(
    name: str, x: TensorLike, kernel: Pair, stride: Pair | None
) -> tuple[Tensor, tuple[int, int], tuple[int, int]]:
    x, window = _tensor(x), pair(kernel, "kernel")
    strides = window if stride is None else pair(stride, "stride")
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"{name}: x has shape {x.shape}; expected (C, H, W, N), not empty.")
    if x.shape[1] < window[0] or x.shape[2] < window[1]:
        raise ValueError(f"{name}: a window {window} does not fit on x of shape {x.shape}.")
    return x, window, strides


def flatten(x: TensorLike) -> Tensor:
    """Reshape (C, H, W, N) to (C*H*W, N), without a copy because the batch is last.

    Parameters
    ----------
    x
        Shape (..., N), with at least two axes.

    Raises
    ------
    ValueError
        If x has fewer than two axes.

    Examples
    --------
    >>> flatten(np.zeros((50, 4, 4, 8))).shape
    (800, 8)
    """
    x = _tensor(x)
    if x.ndim < 2:
        raise ValueError(f"flatten: x has shape {x.shape}; expected at least (D, N).")
    return apply(ops.Flatten(), x)


def select(x: TensorLike, indices: NDArray[Any]) -> Tensor:
    """Keep some rows of x.

    Parameters
    ----------
    x
        Shape (C, ...).
    indices
        Integers in 0..C-1, one or more, in increasing order.

    Returns
    -------
    Tensor of shape (len(indices), ...)

    Raises
    ------
    ValueError
        If the indices are not integers, are empty, do not increase, or are out of range.

    Examples
    --------
    >>> select(np.array([[1.0], [2.0], [3.0]]), [0, 2]).data
    array([[1.],
           [3.]])
    """
    x, indices = _tensor(x), increasing(indices, "select")
    if x.ndim == 0 or indices[-1] >= len(x):
        raise ValueError(f"select: index {indices[-1]} is out of range for x of shape {x.shape}.")
    return apply(ops.Select(indices), x)


def increasing(indices: Any, name: str) -> Indices:
    """Return the indices as int64; ValueError unless they are integers >= 0 that increase."""
    given = np.asarray(indices)
    if given.ndim != 1 or not given.size or given.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: indices are {given.dtype} of shape {given.shape}; expected a list of "
            f"integers, not empty."
        )
    listed = given.astype(np.int64)
    if listed[0] < 0 or (np.diff(listed) <= 0).any():
        raise ValueError(f"{name}: indices {listed} do not increase from 0 or above.")
    return listed


def cross_entropy(
    logits: TensorLike, labels: NDArray[Any], *, label_smoothing: float = 0.0
) -> Tensor:
    """Return the mean softmax cross-entropy, in nats, without overflow.

    Parameters
    ----------
    logits
        Shape (classes, N).
    labels
        Integers in 0..classes-1, shape (N,).
    label_smoothing
        The fraction of the target that is spread evenly over all classes, in [0, 1) (Szegedy et
        al. 2016, arXiv:1512.00567, section 7).

    Returns
    -------
    Tensor of shape ()

    Raises
    ------
    ValueError
        If the shapes do not fit, the batch is empty, labels are not integers, or a label or the
        smoothing is out of range.

    Examples
    --------
    For ten equally likely classes the loss is log 10:

    >>> round(cross_entropy(np.zeros((10, 4)), np.arange(4)).item(), 4)
    2.3026
    """
    logits, labels = _tensor(logits), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[1:]:
        raise ValueError(
            f"cross_entropy: logits of shape {logits.shape} and labels of shape {labels.shape} do "
            f"not fit; expected (classes, N) and (N,). {BATCH_LAST}"
        )
    if labels.size == 0:
        raise ValueError(f"cross_entropy: the batch is empty (logits of shape {logits.shape}).")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"cross_entropy: labels are {labels.dtype}; expected integers.")
    classes = logits.shape[0]
    if labels.min() < 0 or labels.max() >= classes:
        at = int(np.flatnonzero((labels < 0) | (labels >= classes))[0])
        raise ValueError(
            f"cross_entropy: labels[{at}] is {labels[at]}; expected 0..{classes - 1} for "
            f"{classes} classes."
        )
    smoothing = probability(label_smoothing, "cross_entropy: label_smoothing")
    return apply(ops.CrossEntropy(labels, smoothing), logits)


def softmax(logits: TensorLike) -> Tensor:
    """Return the probabilities of the classes for each sample, without overflow.

    Parameters
    ----------
    logits
        Shape (classes, N).

    Examples
    --------
    >>> softmax(np.log([[1.0], [3.0]])).data.round(3)
    array([[0.25],
           [0.75]])
    """
    logits = _tensor(logits)
    powers = (logits - np.asarray(logits.data.max(axis=0))).exp()
    return powers / powers.sum(axis=0)


# -- as in NumPy -----------------------------------------------------------------------------


def concatenate(tensors: Sequence[TensorLike], axis: int = 0) -> Tensor:
    """Join tensors along an axis.

    Parameters
    ----------
    tensors
        One or more, of the same shape but along ``axis``.
    axis
        From either end.

    Raises
    ------
    ValueError
        If there are no tensors, or their shapes or ``axis`` do not fit.

    Examples
    --------
    >>> concatenate([[1.0], [2.0, 3.0]]).data
    array([1., 2., 3.], dtype=float32)
    """
    return apply(op.Concatenate(axis), *tensors)


def stack(tensors: Sequence[TensorLike], axis: int = 0) -> Tensor:
    """Join tensors of one shape along a new axis.

    Parameters
    ----------
    tensors
        One or more.
    axis
        The place of the new axis in the result, from either end.

    Raises
    ------
    ValueError
        If there are no tensors, or their shapes or ``axis`` do not fit.

    Examples
    --------
    >>> stack([[1.0, 2.0], [3.0, 4.0]], axis=1).data
    array([[1., 3.],
           [2., 4.]], dtype=float32)
    """
    wide = [_tensor(t) for t in tensors]
    shapes = [np.expand_dims(np.empty(t.shape), axis).shape for t in wide]
    return concatenate([t.reshape(shape) for t, shape in zip(wide, shapes, strict=True)], axis)


def where(condition: NDArray[Any], a: TensorLike, b: TensorLike) -> Tensor:
    """Return ``a`` where a condition holds, else ``b``.

    Parameters
    ----------
    condition
        An array of booleans, such as ``x > 0``.
    a, b
        Of shapes that broadcast with the condition.

    Raises
    ------
    TypeError
        If the condition is not an array of booleans.

    Examples
    --------
    >>> x = Tensor([-1.0, 4.0])
    >>> where(x > 0, x, 0.5 * x).data
    array([-0.5,  4. ], dtype=float32)
    """
    is_a = np.array(condition)  # a copy, because the caller may change it
    if is_a.dtype != np.bool_:
        raise TypeError(f"where: the condition is of {is_a.dtype}; expected booleans.")
    return apply(op.Where(is_a), a, b)
