"""Hard concrete gates: Louizos, Welling & Kingma 2018, arXiv:1712.01312."""

import math

import numpy as np
from numpy.typing import DTypeLike, NDArray

from minidiff.engine.arrays import Array
from minidiff.engine.op import Gradients, logistic
from minidiff.pruning.gates import Gate
from minidiff.pruning.transform import GateTransform, check_positive

__all__ = ["HardConcrete"]


class StretchedSigmoid(GateTransform):
    """clip(sigmoid(x / temperature) * (zeta - gamma) + gamma, 0, 1)."""

    def __init__(self, temperature: float, gamma: float, zeta: float) -> None:
        self.temperature, self.gamma, self.zeta = temperature, gamma, zeta

    def compute(self, x: Array) -> Array:
        number = x.dtype.type
        self.s = logistic(x / number(self.temperature))
        self.stretched = self.s * number(self.zeta - self.gamma) + number(self.gamma)
        return np.minimum(np.maximum(self.stretched, 0), 1)

    def fully_open(self) -> NDArray[np.bool_]:
        return np.asarray(self.stretched >= 1)

    def backward(self, grad: Array) -> Gradients:
        inside = (self.stretched > 0) & (self.stretched < 1)
        slope = self.s * (1 - self.s) * ((self.zeta - self.gamma) / self.temperature)
        return np.where(inside, grad * slope, 0)


class HardConcrete(Gate):
    """Hard concrete gates (Louizos, Welling & Kingma 2018, arXiv:1712.01312).

    With phi for log alpha and u uniform in (0, 1), while training

        s = sigmoid((log u - log(1 - u) + phi) / beta),  z = clip(s (zeta - gamma) + gamma, 0, 1)

    (equations 10 and 11; log u - log(1 - u) is logistic noise), open with probability
    ``sigmoid(phi - beta log(-gamma / zeta))`` (12); in evaluation
    ``z = clip(sigmoid(phi) (zeta - gamma) + gamma, 0, 1)`` (13).

    Parameters
    ----------
    count, initial, per_sample, rng, dtype
        As in :class:`~minidiff.Gate`; ``rng`` is needed.
    beta, gamma, zeta
        Temperature and stretch; the paper's by default.

    Raises
    ------
    ValueError
        If a setting is out of range.

    Examples
    --------
    >>> gate = HardConcrete(2, initial=0.0, rng=np.random.default_rng(0)).eval()
    >>> gate().data
    array([0.5, 0.5], dtype=float32)
    """

    settings = ("count", "initial", "beta", "gamma", "zeta", "per_sample", "dtype", "frozen")

    def __init__(
        self,
        count: int,
        *,
        initial: float = 2.5,
        beta: float = 2 / 3,
        gamma: float = -0.1,
        zeta: float = 1.1,
        per_sample: bool = False,
        rng: np.random.Generator | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(
            count,
            initial=initial,
            noise="logistic",
            per_sample=per_sample,
            rng=rng,
            dtype=dtype,
        )
        check_positive("beta", beta, dtype)
        if not -math.inf < gamma < 0 or not 1 < zeta < math.inf:
            raise ValueError(f"gamma is {gamma} and zeta {zeta}; expected below 0 and above 1.")
        self.beta, self.gamma, self.zeta = float(beta), float(gamma), float(zeta)

    def transform(self) -> GateTransform:
        """Return the stretched sigmoid; in evaluation its temperature is 1."""
        return StretchedSigmoid(self.beta if self.stochastic else 1.0, self.gamma, self.zeta)

    @property
    def limits(self) -> tuple[float, float]:
        """Where the stretched sigmoid is clipped."""
        low, high = ((end - self.gamma) / (self.zeta - self.gamma) for end in (0, 1))
        return math.log(low / (1 - low)), math.log(high / (1 - high))

    def tail(self, phi: Array) -> tuple[Array, Array]:
        """Return the probability that a gate is not 0 in training, and its derivative."""
        number = phi.dtype.type
        t = phi - number(self.beta * math.log(-self.gamma / self.zeta))
        p = logistic(t)
        return p, p * (1 - p)
