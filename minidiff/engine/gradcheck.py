"""Are the gradients right? Compare them with finite differences."""

from collections.abc import Callable, Sequence

import numpy as np

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

    The output is weighted by random numbers into one; its derivative along a random direction of
    each input must match ``(f(x + eps * d) - f(x - eps * d)) / (2 * eps)``. A few directions say
    as much as all elements one by one: a gradient that is wrong by much more than the tolerance
    hardly ever passes, and one that is wrong by less is not seen. Each element is also checked by
    itself while an input has at most 64 of them.

    Parameters
    ----------
    fn
        Takes the tensors, returns a tensor; must compute the same each time it is called.
    inputs
        float64 tensors; those with ``requires_grad`` are checked. Keep them off kinks.
    eps, tolerance
        The step, and the largest error allowed, relative to ``1 + |derivative|``.
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

    def value(changed: int, array: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> float:
        arrays = [Tensor(array if i == changed else t.data) for i, t in enumerate(inputs)]
        return float((fn(*arrays).data * weights).sum())

    for i, leaf in enumerate(leaves):
        if not leaf.requires_grad:
            continue
        grad = np.zeros(leaf.shape) if leaf.grad is None else leaf.grad
        if grad.shape != leaf.shape:
            raise AssertionError(f"input {i}: gradient of shape {grad.shape}, not {leaf.shape}.")
        probes = [
            ("a random direction", rng.standard_normal(leaf.shape)) for _ in range(directions)
        ]
        if leaf.size <= 64:
            units = np.eye(leaf.size).reshape(-1, *leaf.shape)
            places = np.ndindex(leaf.shape)
            probes += [(f"element {at}", unit) for at, unit in zip(places, units, strict=True)]
        for where, probe in probes:
            step = eps * probe
            numeric = (value(i, leaf.data + step) - value(i, leaf.data - step)) / (2 * eps)
            analytic = float((grad * probe).sum())
            # Written so that NaN fails.
            if not abs(numeric - analytic) <= tolerance * (1 + abs(numeric)):
                raise AssertionError(
                    f"input {i}, along {where}: the gradient says {analytic:.8g}, finite "
                    f"differences say {numeric:.8g}."
                )
    return True
