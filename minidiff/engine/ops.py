"""Operations of neural networks, batch last: one class an op, forward beside backward.

Activations are (C, H, W, N) or (D, N): channels or features first, the samples of the batch last.
``active`` of the inputs (see :class:`~minidiff.engine.tensor.Tensor`) decides what is computed:
a slice that is a constant zero is left out of every sum, forward and backward.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import kernels
from ._types import Array, Indices
from .tensor import Op, Tensor, TensorLike

Pair: TypeAlias = int | tuple[int, int]

__all__ = [
    "avg_pool2d",
    "clip",
    "conv2d",
    "cross_entropy",
    "dropout",
    "erf",
    "exp",
    "flatten",
    "linear",
    "log",
    "max_pool2d",
    "maximum",
    "relu",
    "sigmoid",
    "softmax",
    "sqrt",
    "tanh",
]


def pair(value: Pair, name: str, least: int = 1) -> tuple[int, int]:
    """Return (vertical, horizontal) for an int or a pair; ValueError if below ``least``."""
    both = value if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2 or any(not isinstance(v, int | np.integer) or v < least for v in both):
        raise ValueError(f"{name} is {value!r}; expected an integer >= {least}, or a pair of them.")
    return int(both[0]), int(both[1])


def _listed(active: Indices | None, count: int) -> Indices:
    return np.arange(count) if active is None else active


def _rows(shape: tuple[int, ...], active: Indices | None, dtype: Any) -> Array:
    """Memory for a result: zeros only where some slices will not be computed."""
    return np.empty(shape, dtype) if active is None else np.zeros(shape, dtype)


# -- convolution and dense layer -------------------------------------------------------------


class Conv2d(Op):
    """Cross-correlation."""

    def __init__(self, stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0)) -> None:
        self.stride, self.padding = stride, padding

    def forward(self, x: Array, weight: Array, bias: Array) -> Array:
        x_active, weight_active, bias_active = (t.active for t in self.inputs)
        # A bias alone keeps an output alive, so both must say that it is a constant zero.
        self.out_active = weight_active if bias_active is weight_active else None
        samples = x.shape[3]
        (above, beside), kernel = self.padding, weight.shape[2:]
        if above or beside:
            x = np.pad(x, ((0, 0), (above, above), (beside, beside), (0, 0)))
        self.x, self.weight = np.ascontiguousarray(x), np.ascontiguousarray(weight)
        channels, height, width, _ = x.shape
        self.window = kernels.window(height, width, samples, kernel, self.stride)

        self.ins = _listed(x_active, channels)
        self.outs = _listed(self.out_active, weight.shape[0])
        size = kernel[0] * kernel[1]
        self.taps = (self.ins[:, None] * size + np.arange(size)).ravel()
        plane = height * width * samples
        self.offsets = (self.ins[:, None] * plane + self.window.shifts).ravel()

        out = _rows((weight.shape[0], *self.window.out_shape, samples), self.out_active, x.dtype)
        kernels.forward(
            self.x.reshape(-1),
            self.weight.reshape(len(weight), -1),
            bias,
            self.taps,
            self.offsets,
            self.outs,
            self.window.starts,
            self.window.run,
            out.reshape(len(out), -1),
        )
        return out

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        grad = np.ascontiguousarray(grad)
        rows = grad.reshape(len(grad), -1)
        weight = self.weight.reshape(len(grad), -1)
        grad_x = grad_weight = grad_bias = None
        if self.needs[0]:
            channels, height, width, samples = self.x.shape
            padded = _rows(self.x.shape, self.inputs[0].active, grad.dtype)
            kernels.grad_input(
                rows,
                weight,
                self.ins,
                self.outs,
                weight.shape[1] // channels,
                samples,
                self.window.strips,
                self.window.contributions,
                padded.reshape(channels, -1),
            )
            above, beside = self.padding
            grad_x = padded[:, above : height - above, beside : width - beside]
        if self.needs[1]:
            grad_weight = np.zeros_like(self.weight)
            kernels.grad_weight(
                self.x.reshape(-1),
                rows,
                self.taps,
                self.offsets,
                self.outs,
                self.window.starts,
                self.window.run,
                grad_weight.reshape(weight.shape),
            )
        if self.needs[2]:
            grad_bias = np.zeros(len(grad), grad.dtype)
            kernels.sum_rows(rows, self.outs, grad_bias)
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
        If the shapes do not fit.

    Examples
    --------
    >>> x, weight = np.ones((1, 3, 3, 2), np.float32), np.ones((4, 1, 2, 2), np.float32)
    >>> conv2d(x, weight).shape
    (4, 2, 2, 2)
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
    op = Conv2d(strides, pads)
    out = op(x, weight, bias)
    out.active = op.out_active
    return out


class Linear(Op):
    """weight @ x + bias[:, None].

    All three products are sums of :func:`minidiff.engine.kernels.forward` with a single run. The
    gradients are computed with features last, as runs are longer that way: ``grad @ x.T`` and
    ``grad.T @ weight``.
    """

    def forward(self, x: Array, weight: Array, bias: Array) -> Array:
        x_active, weight_active, bias_active = (t.active for t in self.inputs)
        self.out_active = weight_active if bias_active is weight_active else None
        self.x, self.weight = np.ascontiguousarray(x), np.ascontiguousarray(weight)
        self.ins = _listed(x_active, len(x))
        self.outs = _listed(self.out_active, len(weight))
        out = _rows((len(weight), x.shape[1]), self.out_active, x.dtype)
        _multiply(self.weight, self.ins, self.x, self.ins, bias, self.outs, out)
        return out

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        grad = np.ascontiguousarray(grad)
        grad_x = grad_weight = grad_bias = None
        outputs, samples = grad.shape
        batch = np.arange(samples)
        all_ins, all_outs = len(self.ins) == len(self.x), len(self.outs) == outputs
        if self.needs[0]:
            weight = self.weight if all_ins else self.weight[:, self.ins]
            out = np.empty((samples, len(self.ins)), grad.dtype)
            zeros = np.zeros(samples, grad.dtype)
            transposed = np.ascontiguousarray(grad.T)
            _multiply(transposed, self.outs, weight, self.outs, zeros, batch, out)
            grad_x = _rows(self.x.shape, None if all_ins else self.ins, grad.dtype)
            grad_x[slice(None) if all_ins else self.ins] = out.T
        if self.needs[1]:
            x = np.ascontiguousarray((self.x if all_ins else self.x[self.ins]).T)
            out = np.empty((outputs, len(self.ins)), grad.dtype)
            zeros = np.zeros(outputs, grad.dtype)
            _multiply(grad, batch, x, batch, zeros, self.outs, out)
            grad_weight = out
            if not (all_ins and all_outs):
                grad_weight = np.zeros(self.weight.shape, grad.dtype)
                grad_weight[np.ix_(self.outs, self.ins)] = out[self.outs]
        if self.needs[2]:
            grad_bias = np.zeros(outputs, grad.dtype)
            kernels.sum_rows(grad, self.outs, grad_bias)
        return grad_x, grad_weight, grad_bias


ORIGIN = np.zeros(1, np.int64)


def _multiply(
    a: Array, columns: Indices, b: Array, rows: Indices, bias: Array, outs: Indices, out: Array
) -> None:
    """Compute ``out[o] = bias[o] + sum_i a[o, columns[i]] * b[rows[i]]`` for the outs listed."""
    run = b.shape[1]
    kernels.forward(b.reshape(-1), a, bias, columns, rows * run, outs, ORIGIN, run, out)


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
        If the shapes do not fit.

    Examples
    --------
    >>> linear(np.ones((3, 2), np.float32), np.ones((4, 3), np.float32)).shape
    (4, 2)
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
    op = Linear()
    out = op(x, weight, bias)
    out.active = op.out_active
    return out


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


# -- functions of one element ----------------------------------------------------------------


def exp(x: TensorLike) -> Tensor:
    """Exponential."""
    return _tensor(x).exp()


def log(x: TensorLike) -> Tensor:
    """Natural logarithm."""
    return _tensor(x).log()


def sqrt(x: TensorLike) -> Tensor:
    """Square root."""
    return _tensor(x).sqrt()


def tanh(x: TensorLike) -> Tensor:
    """Hyperbolic tangent."""
    return _tensor(x).tanh()


def sigmoid(x: TensorLike) -> Tensor:
    """Logistic function 1 / (1 + exp(-x))."""
    return _tensor(x).sigmoid()


def erf(x: TensorLike) -> Tensor:
    """Error function."""
    return _tensor(x).erf()


def maximum(x: TensorLike, y: TensorLike) -> Tensor:
    """Larger of two, element by element; where equal, each gets half the gradient."""
    return _tensor(x).maximum(y)


def clip(x: TensorLike, low: float | None, high: float | None) -> Tensor:
    """Limit to [low, high]; no gradient flows where the value is outside."""
    return _tensor(x).clip(low, high)


# -- activations -----------------------------------------------------------------------------


class ReLU(Op):
    """max(x, 0)."""

    def forward(self, x: Array) -> Array:
        self.out = np.maximum(x, 0)
        return self.out

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        return (grad * (self.out > 0),)


def relu(x: TensorLike) -> Tensor:
    """Rectified linear unit, max(x, 0), of any shape; the derivative at 0 is 0."""
    x = _tensor(x)
    out = ReLU()(x)
    out.active = x.active
    return out


class Dropout(Op):
    """x times a mask that is 0 or 1 / (1 - p)."""

    def __init__(self, p: float, rng: np.random.Generator) -> None:
        self.p, self.rng = p, rng

    def forward(self, x: Array) -> Array:
        keep = self.rng.random(x.shape, dtype=np.float32) >= self.p
        self.mask = keep * x.dtype.type(1 / (1 - self.p))
        return np.asarray(x * self.mask)

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        return (grad * self.mask,)


def dropout(x: TensorLike, p: float, rng: np.random.Generator) -> Tensor:
    """Set each element to zero with probability ``p``, and scale the others by 1 / (1 - p).

    Raises ValueError if ``p`` is not in [0, 1).
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
    """The largest of each window; of equals, the first."""

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int]) -> None:
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Array) -> Array:
        channels, height, width, self.samples = self.shape = x.shape
        win = kernels.window(height, width, 1, self.kernel, self.stride)
        self.channels = _listed(self.inputs[0].active, channels)
        rows, columns = win.out_shape
        first = np.arange(rows)[:, None] * (self.stride[0] * width)
        self.first = (first + np.arange(columns) * self.stride[1]).ravel()
        self.shifts = win.shifts
        out = _rows((channels, rows, columns, self.samples), self.inputs[0].active, x.dtype)
        self.winner = np.empty(out.shape, np.uint8).reshape(channels, -1)
        kernels.max_pool(
            np.ascontiguousarray(x).reshape(channels, -1),
            self.channels,
            self.first,
            self.shifts,
            self.samples,
            out.reshape(channels, -1),
            self.winner,
        )
        return out

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        out = np.zeros(self.shape, grad.dtype)
        kernels.grad_max_pool(
            np.ascontiguousarray(grad).reshape(len(out), -1),
            self.winner,
            self.channels,
            self.first,
            self.shifts,
            self.samples,
            out.reshape(len(out), -1),
        )
        return (out,)


class AvgPool2d(Op):
    """The mean of each window."""

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int]) -> None:
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        (tall, wide), (down, right) = self.kernel, self.stride
        rows = (x.shape[1] - tall) // down + 1
        columns = (x.shape[2] - wide) // right + 1
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


def max_pool2d(x: TensorLike, kernel: Pair, *, stride: Pair | None = None) -> Tensor:
    """Take the largest value of each window of each channel.

    Parameters
    ----------
    x
        Shape (C, H, W, N).
    kernel
        Height and width of the window, an int or a pair; at most 256 places.
    stride
        An int or a pair; the window's own size if None. Places at the far edges that fill no
        whole window are left out.

    Returns
    -------
    Tensor of shape (C, (H - KH) // stride + 1, likewise for W, N)

    Raises
    ------
    ValueError
        If the window does not fit.
    """
    x, window, strides = _pool_arguments("max_pool2d", x, kernel, stride)
    if window[0] * window[1] > 256:
        raise ValueError(f"max_pool2d: kernel {window} has over 256 places.")
    out = MaxPool2d(window, strides)(x)
    out.active = x.active
    return out


def avg_pool2d(x: TensorLike, kernel: Pair, *, stride: Pair | None = None) -> Tensor:
    """Average each window of each channel; parameters as of :func:`max_pool2d`."""
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


def flatten(x: TensorLike) -> Tensor:
    """Turn (C, H, W, N) into (C*H*W, N); free, as the batch is last."""
    x = _tensor(x)
    if x.ndim < 2:
        raise ValueError(f"flatten: x has shape {x.shape}; expected at least (D, N).")
    places = int(np.prod(x.shape[1:-1]))
    out = x.reshape(x.shape[0] * places, x.shape[-1])
    if x.active is not None:
        out.active = (x.active[:, None] * places + np.arange(places)).ravel()
    return out


# -- loss ------------------------------------------------------------------------------------


class CrossEntropy(Op):
    """Mean over the batch of -log softmax(logits)[label]."""

    def __init__(self, labels: NDArray[np.int64]) -> None:
        self.labels = labels

    def forward(self, logits: Array) -> Array:
        # Subtracting the largest logit changes nothing but keeps exp from overflowing.
        shifted = logits - logits.max(axis=0)
        self.softmax = np.exp(shifted)
        total = self.softmax.sum(axis=0)
        self.softmax /= total
        picked = shifted[self.labels, np.arange(len(self.labels))]
        return np.asarray((np.log(total) - picked).mean(dtype=logits.dtype))

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        out = self.softmax.copy()
        out[self.labels, np.arange(len(self.labels))] -= 1
        out *= grad / len(self.labels)
        return (out,)


def cross_entropy(logits: TensorLike, labels: NDArray[Any]) -> Tensor:
    """Mean softmax cross-entropy, in nats, computed without overflow.

    Parameters
    ----------
    logits
        Shape (classes, N).
    labels
        Integers in 0..classes-1, shape (N,).

    Returns
    -------
    Tensor of shape ()

    Raises
    ------
    ValueError
        If the shapes do not fit, the batch is empty, or a label is out of range.

    Examples
    --------
    >>> round(cross_entropy(np.zeros((10, 4), np.float32), np.arange(4)).item(), 4)
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
    return CrossEntropy(labels)(logits)


def softmax(logits: TensorLike) -> Tensor:
    """Probabilities over the classes of each sample; logits have shape (classes, N)."""
    logits = _tensor(logits)
    powers = (logits - np.asarray(logits.data.max(axis=0))).exp()
    return powers / powers.sum(axis=0)
