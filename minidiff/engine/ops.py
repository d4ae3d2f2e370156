"""Operations of neural networks, batch last: one class an op, forward beside backward.

Activations are (C, H, W, N) or (D, N): channels or features first, the samples of the batch last.
``active`` of the inputs (see :class:`~minidiff.engine.tensor.Tensor`) decides what is computed:
a slice that is a constant zero is left out of every sum, forward and backward.

Each function takes Tensors, or what :class:`~minidiff.engine.tensor.Tensor` takes, on its terms and
with its errors, and returns a Tensor.
"""

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import kernels, memory
from ._types import Array, Indices
from .tensor import Op, Tensor, TensorLike

Pair: TypeAlias = int | tuple[int, int]

__all__ = [
    "avg_pool2d",
    "conv2d",
    "cross_entropy",
    "dropout",
    "flatten",
    "linear",
    "max_pool2d",
    "relu",
    "select",
    "softmax",
]


def pair(value: Pair, name: str, least: int = 1) -> tuple[int, int]:
    """Return (vertical, horizontal) for an int or a pair; ValueError if below ``least``."""
    both = value if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2 or any(not isinstance(v, int | np.integer) or v < least for v in both):
        raise ValueError(f"{name} is {value!r}; expected an integer >= {least}, or a pair of them.")
    return int(both[0]), int(both[1])


def generator(rng: Any) -> np.random.Generator:
    """Return rng; TypeError for a seed, with which every layer would draw the same numbers."""
    if not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"rng is {rng!r}; expected a numpy.random.Generator, such as "
            f"numpy.random.default_rng(0), one for the whole network."
        )
    return rng


def _listed(active: Indices | None, count: int) -> Indices:
    return np.arange(count) if active is None else active


class Weighted(Op):
    """A layer's op of an input, a weight and a bias, whose slices along axis 0 are outputs.

    An output without weights is not computed: it is its bias, or, if that is a constant zero as
    well, it is one itself.
    """

    skips = True

    def _operands(self, x: Array) -> tuple[Array, Array]:
        """Note what is summed over and what is computed; return the weight and the bias to use."""
        inputs, weight, bias = self.inputs
        self.ins = _listed(inputs.active, len(x))
        self.outs = self.alive = _listed(weight.active, len(weight))
        if weight.active is bias.active:
            self.active = weight.active
            return weight.raw, bias.raw
        if weight.active is not None and bias.active is not None:
            self.active = self.alive = np.union1d(weight.active, bias.active)
        elif weight.active is not None:
            self.alive = np.arange(len(weight))
        return weight.raw, bias.whole()

    def _add_constant(self, out: Array, bias: Array) -> None:
        """Fill outputs that have nothing but a bias."""
        if self.alive is not self.outs:
            constant = np.setdiff1d(self.alive, self.outs, assume_unique=True)
            out[constant] = bias[constant].reshape(-1, *[1] * (out.ndim - 1))


# -- convolution and dense layer -------------------------------------------------------------


class Conv2d(Weighted):
    """Cross-correlation."""

    def __init__(self, stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0)) -> None:
        self.stride, self.padding = stride, padding

    def forward(self, x: Array, weight: Array, bias: Array) -> Array:
        weight, bias = self._operands(x)
        self.x, self.weight = memory.aligned(x), memory.plain(weight)
        self.seen, self.seeing = kernels.geometry(
            x.shape[1:3], weight.shape[2:], self.stride, self.padding
        )
        samples = x.shape[3]
        out = memory.empty((len(weight), *self.seen.shape, samples), x.dtype)
        kernels.correlate(
            memory.rows(self.x),
            self.weight.reshape(*weight.shape[:2], -1),
            False,
            bias,
            self.ins,
            self.outs,
            self.seen.runs,
            self.seen.parts,
            samples,
            memory.rows(out),
        )
        self._add_constant(out, bias)
        return out

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        grad, samples = memory.aligned(grad), grad.shape[3]
        weight = self.weight.reshape(*self.weight.shape[:2], -1)
        grad_x = grad_weight = grad_bias = None
        if self.needs[0]:
            grad_x = memory.empty(self.x.shape, grad.dtype)
            kernels.correlate(
                memory.rows(grad),
                weight,
                True,
                np.zeros(len(self.x), grad.dtype),
                self.outs,
                self.ins,
                self.seeing.runs,
                self.seeing.parts,
                samples,
                memory.rows(grad_x),
            )
        if self.needs[1]:
            grad_weight = memory.zeros(self.weight.shape, grad.dtype)
            kernels.grad_weight(
                memory.rows(self.x),
                memory.rows(grad),
                self.ins,
                self.outs,
                self.seen.runs,
                self.seen.parts,
                samples,
                grad_weight.reshape(weight.shape),
            )
        if self.needs[2]:
            grad_bias = np.zeros(len(grad), grad.dtype)
            kernels.sum_rows(memory.rows(grad), self.alive, grad_bias)
        return grad_x, grad_weight, grad_bias


def conv2d(
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
) -> Tensor:
    """Convolve images (cross-correlation, as everywhere in deep learning), batch last.

    Parameters
    ----------
    x
        Shape (C, H, W, N).
    weight
        Shape (O, C, KH, KW).
    bias
        Shape (O,), or None.
    stride, padding
        An int or a pair (vertical, horizontal); padding is with zeros, on both sides.

    Returns
    -------
    Tensor of shape (O, (H + 2*padding - KH) // stride + 1, likewise for W, N)

    Raises
    ------
    ValueError
        If the shapes do not fit, the dtypes differ, or ``stride`` or ``padding`` is out of range.

    Examples
    --------
    How many pixels of a 3x3 image each output sees:

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
            f"(C, H, W, N) and (O, C, KH, KW) with the same C."
        )
    if 0 in x.shape or 0 in weight.shape:
        raise ValueError(f"conv2d: x {x.shape} or weight {weight.shape} is empty.")
    for size, more, reach, axis in zip(
        x.shape[1:3], pads, weight.shape[2:], ("high", "wide"), strict=True
    ):
        if size + 2 * more < reach:
            raise ValueError(
                f"conv2d: a kernel {reach} {axis} does not fit on an input {size} {axis} with "
                f"padding {more}; x has shape {x.shape}, weight {weight.shape}."
            )
    bias = _bias(bias, weight)
    _same_dtype("conv2d", x=x, weight=weight, bias=bias)
    return Conv2d(strides, pads)(x, weight, bias)


class Linear(Weighted):
    """weight @ x + bias[:, None]: a single place that sees each feature, as a place of its own."""

    def forward(self, x: Array, weight: Array, bias: Array) -> Array:
        weight, bias = self._operands(x)
        self.x, self.weight = memory.aligned(x), memory.plain(weight)
        out = memory.empty((len(weight), x.shape[1]), x.dtype)
        if x.shape[1] < kernels.LANES and len(self.ins) == len(x):
            # Too few samples to fill a vector: the loop runs over features instead.
            rows, samples = np.ascontiguousarray(self.x.T), np.arange(x.shape[1])
            kernels.grad_weight(
                rows, self.weight, samples, self.outs, POINT.runs, POINT.parts, len(x),
                out[:, :, None],
            )  # fmt: skip
            out[self.outs] += bias[self.outs, None]
        else:
            _multiply(self.weight, False, bias, self.ins, self.outs, self.x, out)
        self._add_constant(out, bias)
        return out

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        grad, (features, samples) = memory.aligned(grad), self.x.shape
        grad_x = grad_weight = grad_bias = None
        if self.needs[0]:
            grad_x = memory.empty(self.x.shape, grad.dtype)
            zeros = np.zeros(features, grad.dtype)
            _multiply(self.weight, True, zeros, self.outs, self.ins, grad, grad_x)
        if self.needs[1]:
            # grad @ x.T: samples are what is summed over, and features the run.
            rows = memory.empty((samples, len(self.ins)), grad.dtype)
            kernels.transpose(self.x, self.ins, rows)
            product = memory.empty((len(grad), len(self.ins)), grad.dtype)
            zeros = np.zeros(len(grad), grad.dtype)
            _multiply(grad, False, zeros, np.arange(samples), self.outs, rows, product)
            grad_weight = product
            if len(self.ins) < features:
                grad_weight = memory.empty(self.weight.shape, grad.dtype)
                kernels.spread(product, self.outs, self.ins, grad_weight)
        if self.needs[2]:
            grad_bias = np.zeros(len(grad), grad.dtype)
            kernels.sum_rows(grad, self.alive, grad_bias)
        return grad_x, grad_weight, grad_bias


POINT, _ = kernels.geometry((1, 1), (1, 1), (1, 1))
ONLY = np.zeros(1, np.int64)  # the list of a single channel


def _multiply(
    a: Array, swapped: bool, bias: Array, columns: Indices, rows: Indices, b: Array, out: Array
) -> None:
    """Compute ``out = a @ b + bias``, or ``a.T @ b``, of some columns and rows of a (or of a.T).

    Columns are listed as parts of a single channel, as one loop over many parts is quicker than a
    loop over many channels of one part.
    """
    weight, stride = (a.reshape(1, -1, 1), a.shape[1]) if swapped else (a[:, None, :], 1)
    parts = np.empty((columns.size, 2), np.int64)
    parts[:, 0], parts[:, 1] = columns, columns * stride
    runs = np.array(((0, 1, 0), (1, 0, columns.size)))
    kernels.correlate(
        b.reshape(1, -1), weight, swapped, bias, ONLY, rows, runs, parts, b.shape[1], out
    )


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
        If the shapes do not fit, or the dtypes differ.

    Examples
    --------
    >>> linear(np.ones((3, 2)), np.array([[1.0, 2.0, 3.0]]), np.array([0.5])).data
    array([[6.5, 6.5]])
    """
    x, weight = _tensor(x), _tensor(weight)
    if x.ndim != 2 or weight.ndim != 2 or x.shape[0] != weight.shape[1]:
        raise ValueError(
            f"linear: x of shape {x.shape} and weight of shape {weight.shape} do not fit; "
            f"expected (D, N) and (O, D) with the same D."
        )
    if 0 in x.shape or 0 in weight.shape:
        raise ValueError(f"linear: x {x.shape} or weight {weight.shape} is empty.")
    bias = _bias(bias, weight)
    _same_dtype("linear", x=x, weight=weight, bias=bias)
    return Linear()(x, weight, bias)


def _tensor(value: TensorLike) -> Tensor:
    return value if isinstance(value, Tensor) else Tensor(value)


def _bias(bias: TensorLike | None, weight: Tensor) -> Tensor:
    if bias is None:
        zeros = Tensor(np.zeros(weight.shape[0], weight.dtype))
        zeros.active = weight.active
        return zeros
    bias = _tensor(bias)
    if bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias of shape {bias.shape} does not fit weight of shape {weight.shape}; expected "
            f"{weight.shape[:1]}."
        )
    return bias


def _same_dtype(name: str, **tensors: Tensor) -> None:
    if len({t.dtype for t in tensors.values()}) > 1:
        given = ", ".join(f"{key} {t.dtype}" for key, t in tensors.items())
        raise ValueError(f"{name}: dtypes differ ({given}); expected all float32 or all float64.")


# -- activations -----------------------------------------------------------------------------


class ReLU(Op):
    """max(x, 0)."""

    skips = True

    def forward(self, x: Array) -> Array:
        self.active, rows = self.inputs[0].active, memory.rows(memory.plain(x))
        self.rows = _listed(self.active, len(rows))
        self.out = memory.empty(x.shape, x.dtype)
        kernels.relu(rows, self.rows, memory.rows(self.out))
        return self.out

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        out = memory.empty(grad.shape, grad.dtype)
        kernels.grad_relu(
            memory.rows(memory.plain(grad)),
            memory.rows(self.out),
            self.rows,
            memory.rows(out),
        )
        return (out,)


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
    return ReLU()(_tensor(x))


class Dropout(Op):
    """x times a mask that is 0 or 1 / (1 - p)."""

    def __init__(self, p: float, rng: np.random.Generator) -> None:
        self.p, self.rng = p, generator(rng)

    def forward(self, x: Array) -> Array:
        keep = self.rng.random(x.shape, dtype=np.float32) >= self.p
        self.mask = keep * x.dtype.type(1 / (1 - self.p))
        return np.asarray(x * self.mask)

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        return (grad * self.mask,)


def dropout(x: TensorLike, p: float, rng: np.random.Generator) -> Tensor:
    """Set each element to zero with probability ``p``, and scale the others by 1 / (1 - p).

    So the expected value stays as it is, and evaluation needs no factor (Srivastava et al. 2014,
    JMLR 15, section 10).

    Parameters
    ----------
    x
        Any shape.
    p
        In [0, 1).
    rng
        Draws one number for each element; none if ``p`` is 0.

    Raises
    ------
    ValueError
        If ``p`` is out of range.

    Examples
    --------
    >>> out = dropout(np.ones(1000), 0.5, np.random.default_rng(0)).data
    >>> np.unique(out), bool(450 < (out == 0).sum() < 550)
    (array([0., 2.]), True)
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p is {p}; expected a probability in [0, 1).")
    x = _tensor(x)
    if p == 0:
        return x
    out = Dropout(p, rng)(x)
    out.active = x.active
    return out


# -- pooling ---------------------------------------------------------------------------------


class MaxPool2d(Op):
    """The largest of each window, or of it and 0; of equals, the first, and before all 0."""

    skips = True

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int], rectified: bool) -> None:
        self.kernel, self.stride, self.rectified = kernel, stride, rectified

    def forward(self, x: Array) -> Array:
        self.shape, self.active = x.shape, self.inputs[0].active
        self.channels = _listed(self.active, len(x))
        seen, self.seeing = kernels.geometry(x.shape[1:3], self.kernel, self.stride)
        out = memory.empty((len(x), *seen.shape, x.shape[3]), x.dtype)
        self.winner = memory.empty((len(x), out[0].size), np.uint8)
        kernels.max_pool(
            memory.rows(memory.plain(x)),
            self.channels,
            seen.runs,
            seen.parts,
            x.shape[3],
            self.rectified,
            memory.rows(out),
            self.winner,
        )
        return out

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        out = memory.empty(self.shape, grad.dtype)
        kernels.grad_max_pool(
            memory.rows(memory.plain(grad)),
            self.winner,
            self.channels,
            self.seeing.runs,
            self.seeing.parts,
            self.shape[3],
            memory.rows(out),
        )
        return (out,)


class AvgPool2d(Op):
    """The mean of each window."""

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int]) -> None:
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        (tall, wide), (down, right) = self.kernel, self.stride
        rows, columns = map(kernels.windows, x.shape[1:3], self.kernel, self.stride)
        self.places = [
            (
                slice(i, i + down * (rows - 1) + 1, down),
                slice(j, j + right * (columns - 1) + 1, right),
            )
            for i in range(tall)
            for j in range(wide)
        ]
        return np.asarray(sum(x[:, i, j] for i, j in self.places) / x.dtype.type(tall * wide))

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        out = np.zeros(self.shape, grad.dtype)
        share = grad / grad.dtype.type(len(self.places))
        for i, j in self.places:
            out[:, i, j] += share
        return (out,)


def max_pool2d(
    x: TensorLike, kernel: Pair, *, stride: Pair | None = None, relu: bool = False
) -> Tensor:
    """Take the largest value of each window of each channel.

    Parameters
    ----------
    x
        Shape (C, H, W, N).
    kernel
        Height and width of the window, an int or a pair; at most 256 places (255 with relu).
    stride
        An int or a pair; the window's own size if None. Places at the far edges that fill no
        whole window are left out.
    relu
        Rectify too: the same as :func:`relu` before or behind, in one pass over memory.

    Returns
    -------
    Tensor of shape (C, (H - KH) // stride + 1, likewise for W, N)

    Raises
    ------
    ValueError
        If the window does not fit or has too many places, or ``stride`` is out of range.

    Examples
    --------
    >>> max_pool2d(np.arange(16.0).reshape(1, 4, 4, 1), 2).data[0, :, :, 0]
    array([[ 5.,  7.],
           [13., 15.]])
    """
    x, window, strides = _pool_arguments("max_pool2d", x, kernel, stride)
    if window[0] * window[1] > 256 - relu:  # winners are kept in a byte
        raise ValueError(f"max_pool2d: kernel {window} has over {256 - relu} places.")
    return MaxPool2d(window, strides, relu)(x)


def avg_pool2d(x: TensorLike, kernel: Pair, *, stride: Pair | None = None) -> Tensor:
    """Average each window of each channel.

    Parameters
    ----------
    x, kernel, stride
        As of :func:`max_pool2d`; a window may have any number of places.

    Returns
    -------
    Tensor of the shape that :func:`max_pool2d` gives

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
    out = AvgPool2d(window, strides)(x)
    out.active = x.active
    return out


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


class Flatten(Op):
    """(C, H, W, N) to (C*H*W, N)."""

    skips = True

    def forward(self, x: Array) -> Array:
        self.shape, places = x.shape, math.prod(x.shape[1:-1])
        active = self.inputs[0].active
        if active is not None:
            self.active = (active[:, None] * places + np.arange(places)).ravel()
        return x.reshape(places * len(x), x.shape[-1])

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        return (grad.reshape(self.shape),)


def flatten(x: TensorLike) -> Tensor:
    """Turn (C, H, W, N) into (C*H*W, N); free, as the batch is last.

    Parameters
    ----------
    x
        At least two axes.

    Raises
    ------
    ValueError
        If there are fewer.

    Examples
    --------
    >>> flatten(np.zeros((50, 4, 4, 8))).shape
    (800, 8)
    """
    x = _tensor(x)
    if x.ndim < 2:
        raise ValueError(f"flatten: x has shape {x.shape}; expected at least (D, N).")
    return Flatten()(x)


class Select(Op):
    """Some slices along axis 0, in increasing order."""

    def __init__(self, indices: Indices) -> None:
        self.indices = indices

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        out = memory.empty((len(self.indices), *x.shape[1:]), x.dtype)
        # The mode spares a buffer; indices are in range.
        return np.take(x, self.indices, axis=0, out=out, mode="clip")

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        out = memory.zeros(self.shape, grad.dtype)
        out[self.indices] = grad
        return (out,)


def select(x: TensorLike, indices: NDArray[Any]) -> Tensor:
    """Keep some slices of x along axis 0.

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
        If ``indices`` are not such.

    Examples
    --------
    >>> select(np.array([[1.0], [2.0], [3.0]]), [0, 2]).data
    array([[1.],
           [3.]])
    """
    x, indices = _tensor(x), increasing(indices, "select")
    if x.ndim == 0 or indices[-1] >= len(x):
        raise ValueError(f"select: index {indices[-1]} is out of range for x of shape {x.shape}.")
    return Select(indices)(x)


def increasing(indices: Any, name: str) -> Indices:
    """Return ``indices`` as int64; ValueError unless there are some, 0 or more, that increase."""
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


# -- loss ------------------------------------------------------------------------------------


class CrossEntropy(Op):
    """Mean over the batch of -log softmax(logits)[label], and a share of that of all classes."""

    def __init__(self, labels: NDArray[np.int64], smoothing: float) -> None:
        self.labels, self.smoothing = labels.copy(), smoothing  # which a caller may use again

    def forward(self, logits: Array) -> Array:
        # Subtracting the largest logit changes nothing but keeps exp from overflowing.
        shifted = logits - logits.max(axis=0)
        self.softmax = np.exp(shifted)
        total = self.softmax.sum(axis=0)
        self.softmax /= total
        self.picked = self.labels, np.arange(len(self.labels))
        target = shifted[self.picked]
        if self.smoothing:
            number = logits.dtype.type
            target = number(1 - self.smoothing) * target
            target += number(self.smoothing) * shifted.mean(axis=0)
        losses = np.log(total) - target
        return np.asarray(losses.sum() * losses.dtype.type(1 / len(losses)))

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        share = grad / len(self.labels)
        out = self.softmax * share
        if self.smoothing:
            out -= share * grad.dtype.type(self.smoothing / len(out))
        out[self.picked] -= share * grad.dtype.type(1 - self.smoothing)
        return (out,)


def cross_entropy(
    logits: TensorLike, labels: NDArray[Any], *, label_smoothing: float = 0.0
) -> Tensor:
    """Mean softmax cross-entropy, in nats, computed without overflow.

    Parameters
    ----------
    logits
        Shape (classes, N).
    labels
        Integers in 0..classes-1, shape (N,).
    label_smoothing
        The share of the target that is spread over all classes alike, in [0, 1) (Szegedy et al.
        2016, arXiv:1512.00567, section 7).

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
    Ten classes that are equally likely, log 10:

    >>> round(cross_entropy(np.zeros((10, 4)), np.arange(4)).item(), 4)
    2.3026
    """
    logits, labels = _tensor(logits), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[1:]:
        raise ValueError(
            f"cross_entropy: logits of shape {logits.shape} and labels of shape {labels.shape} do "
            f"not fit; expected (classes, N) and (N,)."
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
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"cross_entropy: label_smoothing is {label_smoothing}; expected [0, 1).")
    return CrossEntropy(labels, float(label_smoothing))(logits)


def softmax(logits: TensorLike) -> Tensor:
    """Probabilities over the classes of each sample, computed without overflow.

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
