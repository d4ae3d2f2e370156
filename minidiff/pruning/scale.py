"""Multiplication by gate values, which leaves out whatever a closed gate multiplies.

:class:`Scale` multiplies rows, or all elements. :class:`ScaleElements` multiplies the elements of a
weight of which few are left, and touches no other. Both are exact because of the promise of
:class:`~minidiff.pruning.transform.GateTransform`: the derivative of a closed gate is 0, so the
gradient of its value has no effect, and ``backward`` returns 0.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidiff.engine import arrays, sparse
from minidiff.engine.arrays import Array, Elements, Indices, filled, matrix, plain, row_list
from minidiff.engine.compiled import limit_threads, prange, set_threads, threaded
from minidiff.engine.op import Gradients, Op
from minidiff.engine.tensor import Tensor, apply

from .transform import GateTransform


@threaded
def scale_rows(x: Array, factors: Array, rows: Indices, out: Array) -> None:
    """Compute ``out[i] = factors[i] * x[i]`` for the rows listed; arrays are (rows, columns)."""
    threads = limit_threads(rows.size * x.shape[1])
    for task in prange(rows.size):
        i = rows[task]
        for s in range(x.shape[1]):
            out[i, s] = factors[i] * x[i, s]
    set_threads(threads)


@threaded
def grad_scale_rows(
    grad: Array,
    x: Array,
    factors: Array,
    rows: Indices,
    written: Indices,
    out: Array,
    totals: Array,
) -> None:
    """Compute both gradients of :func:`scale_rows` in one pass.

    ``out`` is the gradient of x: the rows in ``written`` are written, with zeros outside ``rows``.
    ``totals`` is the gradient of factors: only the elements in ``rows`` are written.
    """
    listed = np.zeros(len(x), np.bool_)
    listed[rows] = True
    threads = limit_threads(written.size * x.shape[1])
    for task in prange(written.size):
        i = written[task]
        if listed[i]:
            total = np.float64(0)
            for s in range(x.shape[1]):
                out[i, s] = factors[i] * grad[i, s]
                total += grad[i, s] * x[i, s]
            totals[i] = total
        else:
            out[i] = 0
    set_threads(threads)


class Scale(Op):
    """Multiply each row, or each element, of x by the gate value of its group.

    A fully open gate has a derivative of 0 too. So if every row has a closed or a fully open gate,
    ``forward`` returns x.
    """

    skips_dead_rows = True

    def __init__(
        self,
        fully_open: NDArray[np.bool_],
        labels: Indices | None,
        closed_for_good: bool,
        shares_inputs: bool,
    ) -> None:
        self.fully_open, self.labels, self.closed_for_good = fully_open, labels, closed_for_good
        self.shares_inputs = shares_inputs

    def forward(self, x: Array, z: Array) -> Array:
        (live_x, live_z), self.count = self.live_in, len(z)
        if self.labels is not None:
            z, live_z, self.fully_open = z[self.labels], None, self.fully_open[self.labels]
        self.by_row = z.ndim == 1 and len(z) == len(x)
        self.z = z = z if self.by_row or self.labels is not None else z.reshape(x.shape)
        if live_z is None or not self.by_row:
            is_open = (z != 0).any(axis=tuple(range(1, z.ndim)))
            live_z = np.broadcast_to(is_open, len(x)).nonzero()[0]
        if self.closed_for_good:
            self.grad_live = live_z, None
        rows = live_z if live_x is None else np.intersect1d(live_z, live_x, assume_unique=True)
        if not self.by_row:
            self.live = rows if len(rows) < len(x) else None
            self.x = filled(x, live_x)
            return _closed_to_zero(self.x, z, z)
        self.live, self.x = rows, plain(x)
        self.passes = bool(self.fully_open[rows].all())
        if self.passes:
            return self.x
        out = arrays.empty(x.shape, x.dtype)
        scale_rows(matrix(self.x), z, rows, matrix(out))
        return out

    def backward(self, grad: Array) -> Gradients:
        return self._rows_backward(grad) if self.by_row else self._elements_backward(grad)

    def _rows_backward(self, grad: Array) -> Gradients:
        rows, grad_z = row_list(self.live, len(self.x)), np.zeros(len(self.z), grad.dtype)
        # Closed rows of x need a gradient of zeros, unless they can never open again.
        written = rows if self.closed_for_good else row_list(self.live_in[0], len(self.x))
        grad_x = grad
        if not (self.passes and len(written) == len(rows)):
            grad_x = arrays.empty(self.x.shape, grad.dtype)
            grad_scale_rows(
                matrix(plain(grad)), matrix(self.x), self.z, rows, written, matrix(grad_x), grad_z
            )
        return grad_x, self._by_group(grad_z)

    def _elements_backward(self, grad: Array) -> Gradients:
        grad = filled(grad, self.live)
        grad_x = _closed_to_zero(grad, self.z, self.z)
        if not self.needs[1]:
            return grad_x, None
        return grad_x, self._by_group(_closed_to_zero(grad, self.x, self.z))

    def _by_group(self, grad: Array) -> Array:
        """Sum the gradient of each row or element over the groups, in float64."""
        if self.labels is None:
            return grad.ravel()
        alike = tuple(i for i, size in enumerate(self.labels.shape) if size == 1 != grad.shape[i])
        totals = grad.sum(axis=alike, keepdims=True, dtype=np.float64)
        sums: Any = np.bincount(self.labels.ravel(), totals.ravel(), self.count)
        return np.asarray(sums)


def _closed_to_zero(a: Array, b: Array, z: Array) -> Array:
    """Return a * b, but 0 where z is 0, whatever is multiplied there."""
    with np.errstate(invalid="ignore", over="ignore"):
        product = a * b
        finite = np.isfinite(product.sum())
    return product if finite else np.where(z == 0, product.dtype.type(0), product)


class ScaleElements(Op):
    """Multiply the elements at ``places`` by the gate values of their groups; the others are dead.

    ``places`` are positions in the flat array, increasing, and ``groups`` has a gate for each.
    """

    skips_dead_rows = True
    sparse_input = 0

    def __init__(self, places: Indices, groups: Indices, closed_for_good: bool) -> None:
        self.places, self.groups, self.closed_for_good = places, groups, closed_for_good

    def forward(self, x: Array, z: Array) -> Array:
        self.shape, self.count = x.shape, len(z)
        self.x, self.z = np.take(x, self.places), z[self.groups]
        self.live = Elements(self.places)
        if self.closed_for_good:
            self.grad_live = self.live, None
        out = arrays.empty(x.shape, x.dtype)
        out.reshape(-1)[self.places] = self.x * self.z
        return out

    def backward(self, grad: Array) -> Gradients:
        new = arrays.empty if self.closed_for_good else arrays.zeros
        part, grad_x = np.take(grad, self.places), new(self.shape, grad.dtype)
        grad_x.reshape(-1)[self.places] = part * self.z
        if not self.needs[1]:
            return grad_x, None
        if self.groups is self.places:  # each gate has one element
            grad_z = np.zeros(self.count, grad.dtype)
            grad_z[self.places] = part * self.x
            return grad_x, grad_z
        sums: Any = np.bincount(self.groups, part * self.x, self.count)
        return grad_x, np.asarray(sums, grad.dtype)


def scale(
    x: Tensor,
    z: Tensor,
    labels: Indices | None = None,
    *,
    closed_for_good: bool = False,
    is_weight: bool = False,
) -> Tensor:
    """Multiply x by gate values z.

    ``labels`` has the group of each row of x (one axis), or of each element (as many axes as x).
    None means one group for each row, or for each element, in order. ``closed_for_good`` promises
    that closed gates never open again, so that an optimiser may leave what they close of x alone;
    it is for parameters. ``is_weight`` is for results that only a layer sees: the result may have
    dead elements, and if all gates are fully open, it may share memory with x.
    """
    if is_weight:
        found = _few_open(x, z, labels)
        if found:
            return apply(ScaleElements(*found, closed_for_good), x, z)
    transform = z.node.op if z.node else None
    # Any other z is a constant, which has no gradient to lose.
    fully_open = transform.fully_open() if isinstance(transform, GateTransform) else z.raw == 1
    return apply(Scale(fully_open, labels, closed_for_good, is_weight), x, z)


def _few_open(x: Tensor, z: Tensor, labels: Indices | None) -> tuple[Indices, Indices] | None:
    """Return the places and the groups of open elements; None if they are many, or whole rows."""
    by_row = labels is None and z.shape == x.shape[:1] and x.size > len(x)
    flat = None if labels is None else np.broadcast_to(labels, x.shape).reshape(-1)
    columns = x.size // max(1, len(x))
    if isinstance(x.live, Elements):
        places = x.live.places
        groups = places // columns if by_row else places if flat is None else flat[places]
        is_open = z.raw[groups] != 0
        return places[is_open], groups[is_open]
    if by_row or x.ndim < 2 or (labels is not None and labels.size == len(labels)):
        return None
    if flat is not None:
        places = (z.raw != 0)[flat].nonzero()[0]
    else:
        places = z.raw.nonzero()[0] if z.live is None else row_list(z.live, len(z))
    if x.live is not None:
        is_live = np.zeros(len(x), np.bool_)
        is_live[x.live] = True
        places = places[is_live[places // columns]]
    if not sparse.pays(places.size, x.size):
        return None
    return places, places if flat is None else flat[places]
