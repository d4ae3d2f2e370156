"""Are the gradients right? Compare them with finite differences."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from .arrays import Array
from .tensor import Tensor

__all__ = ["gradcheck"]


def gradcheck(
    fn: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    *,
    eps: float = 1e-6,
    tolerance: float = 1e-5,
    directions: int = 4,
    rng: np.random.Generator | None = None,
) -> bool:
    """Check the gradient of ``fn`` against central differences, along random directions.

    The output is weighted by random numbers into one; its derivative along a random direction d of
    each input must match ``(f(x + eps * d) - f(x - eps * d)) / (2 * eps)``. A few directions say
    as much as all elements one by one: a gradient that is wrong by much more than the tolerance
    hardly ever passes. Each element is also checked by itself while an input has at most 64 of
    them. A derivative so small beside f that rounding hides it is not seen.

    Parameters
    ----------
    fn
        Takes the tensors, returns a tensor; must compute the same each time it is called.
    inputs
        float64 tensors; those with ``requires_grad`` are checked. Keep them off kinks.
    eps
        The step.
    tolerance
        The largest error allowed, relative to the sum of ``|gradient * d|`` over the elements. The
        rounding error of the differences is allowed as well: it is estimated from the size of f,
        and from differences with half the step.
    directions
        How many random directions to try for each input.
    rng
        Draws weights and directions; by default a generator with a fixed seed.

    Returns
    -------
    bool
        True; a mismatch raises.

    Raises
    ------
    TypeError
        If an input is not a float64 tensor (float32 is too coarse for finite differences).
    AssertionError
        If a gradient is wrong: which input, where, and both numbers.

    Examples
    --------
    >>> x = Tensor(np.array([0.5, 1.5]), requires_grad=True)
    >>> gradcheck(lambda x: x * x.exp(), [x])
    True
    """
    rng = np.random.default_rng(0) if rng is None else rng
    for i, tensor in enumerate(inputs):
        if not isinstance(tensor, Tensor) or tensor.dtype != np.float64:
            raise TypeError(
                f"input {i} is {getattr(tensor, 'dtype', type(tensor).__name__)}; expected a "
                f"float64 Tensor: finite differences are too coarse in float32."
            )
    leaves = [Tensor(t.data.copy(), requires_grad=t.requires_grad) for t in inputs]
    out = fn(*leaves)
    weights = rng.standard_normal(out.shape)
    out.backward(weights)

    epsilon = float(np.finfo(float).eps)
    rounding = epsilon * float(np.abs(weights).sum())  # of the gradient itself

    def value(changed: int, array: Array) -> tuple[float, float]:
        """Return the weighted sum of the outputs, and the sum of their sizes."""
        arrays = [Tensor(array if i == changed else t.data) for i, t in enumerate(inputs)]
        parts = fn(*arrays).data * weights
        return float(parts.sum()), float(np.abs(parts).sum())

    def difference(i: int, array: Array, step: Array, eps: float) -> tuple[float, float]:
        """Return the derivative along a step, and what rounding may add to it."""
        (above, size), (below, _) = value(i, array + eps * step), value(i, array - eps * step)
        return (above - below) / (2 * eps), 4 * epsilon * size / eps

    for i, leaf in enumerate(leaves):
        if not leaf.requires_grad or not leaf.size:
            continue
        grad = np.zeros(leaf.shape) if leaf.grad is None else leaf.grad
        probes = [
            ("a random direction", rng.standard_normal(leaf.shape)) for _ in range(directions)
        ]
        if leaf.size <= 64:
            units = np.eye(leaf.size).reshape(-1, *leaf.shape)
            places = np.ndindex(leaf.shape)
            probes += [(f"element {at}", unit) for at, unit in zip(places, units, strict=True)]
        for where, probe in probes:
            numeric, noise = difference(i, leaf.data, probe, eps)
            half, more_noise = difference(i, leaf.data, probe, eps / 2)
            with np.errstate(invalid="ignore", over="ignore"):
                analytic, size = float((grad * probe).sum()), float(np.abs(grad * probe).sum())
            allowed = tolerance * (abs(numeric) + size)
            # An error that grows with the step is twice the difference, and a little more where
            # terms of higher order are left when others cancel.
            allowed += noise + more_noise + 2.1 * abs(numeric - half) + rounding
            # Written so that NaN and infinity fail.
            if not abs(numeric - analytic) <= allowed < math.inf:
                raise AssertionError(
                    f"input {i}, along {where}: the gradient says {analytic:.8g}, finite "
                    f"differences say {numeric:.8g}."
                )
    return True
