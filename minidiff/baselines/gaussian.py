"""Gaussian stochastic gates, STG: Yamada et al. 2020, arXiv:1810.04247."""

import numpy as np
from numpy.typing import DTypeLike, NDArray

from minidiff.engine.arrays import Array
from minidiff.engine.op import Gradients
from minidiff.pruning.gates import Gate
from minidiff.pruning.transform import GateTransform

__all__ = ["GaussianGate"]


class ClippedGate(GateTransform):
    """clip(x, 0, 1)."""

    def compute(self, x: Array) -> Array:
        self.x = x
        return np.minimum(np.maximum(x, 0), 1)

    def fully_open(self) -> NDArray[np.bool_]:
        return np.asarray(self.x >= 1)

    def backward(self, grad: Array) -> Gradients:
        inside = (self.x > 0) & (self.x < 1)
        return np.where(inside, grad, 0)


class GaussianGate(Gate):
    """Gaussian stochastic gates, STG (Yamada et al. 2020, arXiv:1810.04247).

    With phi for mu, ``z = clip(phi + sigma * noise, 0, 1)`` with normal noise while training,
    without noise in evaluation; open with probability ``Phi(phi / sigma)``, whose sum is the
    penalty (equations 4 to 6).

    Parameters
    ----------
    count, per_sample, rng, dtype
        As in :class:`~minidiff.Gate`; ``rng`` is needed.
    initial, sigma
        As in :class:`~minidiff.Gate`; the paper's by default.

    Raises
    ------
    ValueError
        If a setting is out of range.

    Examples
    --------
    >>> GaussianGate(1, initial=0.25, rng=np.random.default_rng(0)).eval()().data
    array([0.25], dtype=float32)
    """

    settings = ("count", "initial", "sigma", "per_sample", "dtype", "frozen")

    def __init__(
        self,
        count: int,
        *,
        initial: float = 0.5,
        sigma: float = 0.5,
        per_sample: bool = False,
        rng: np.random.Generator | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(
            count,
            initial=initial,
            noise="normal",
            sigma=sigma,
            per_sample=per_sample,
            rng=rng,
            dtype=dtype,
        )

    def transform(self) -> GateTransform:
        """Return the clipped identity."""
        return ClippedGate()

    @property
    def limits(self) -> tuple[float, float]:
        """0 and 1, where it is clipped."""
        return 0.0, 1.0
