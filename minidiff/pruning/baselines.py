"""Other ways to prune, to stand beside: two kinds of stochastic gates, group lasso, magnitude.

All of them end as gates that are open or closed, so that they share everything else: layers,
surrogate, skipping, counts, compaction.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike, NDArray

from minidiff.engine import nn
from minidiff.engine._types import Array
from minidiff.engine.nn import Module
from minidiff.engine.tensor import logistic

from .gates import Gate, Gated, binarize, normal_tail
from .groups import Groups
from .transform import GateTransform, check_positive

__all__ = ["GaussianGate", "GroupLasso", "HardConcrete", "MagnitudePruning"]


class StretchedSigmoid(GateTransform):
    """clip(sigmoid(x / temperature) * (zeta - gamma) + gamma, 0, 1)."""

    def __init__(self, temperature: float, gamma: float, zeta: float) -> None:
        self.temperature, self.gamma, self.zeta = temperature, gamma, zeta

    def compute(self, x: Array) -> Array:
        number = x.dtype.type
        self.s = logistic(x / number(self.temperature))
        self.stretched = self.s * number(self.zeta - self.gamma) + number(self.gamma)
        return np.minimum(np.maximum(self.stretched, 0), 1)

    @property
    def fully_open(self) -> NDArray[np.bool_]:
        """Where it is clipped from above."""
        return np.asarray(self.stretched >= 1)

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        inside = (self.stretched > 0) & (self.stretched < 1)
        slope = self.s * (1 - self.s) * ((self.zeta - self.gamma) / self.temperature)
        return (np.where(inside, grad * slope, 0).astype(grad.dtype),)


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
        As of :class:`Gate`; ``rng`` is needed.
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

    def set_open(self, is_open: NDArray[np.bool_]) -> None:
        """Open fully, or close, each group in evaluation."""
        super().set_open(is_open)
        low, high = self.limits
        self.phi.data = np.where(is_open, high + 1, low - 1)


class ClippedGate(GateTransform):
    """clip(x, 0, 1)."""

    def compute(self, x: Array) -> Array:
        self.x = x
        return np.minimum(np.maximum(x, 0), 1)

    @property
    def fully_open(self) -> NDArray[np.bool_]:
        """Where it is clipped from above."""
        return np.asarray(self.x >= 1)

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        inside = (self.x > 0) & (self.x < 1)
        return (np.where(inside, grad, 0).astype(grad.dtype),)


class GaussianGate(Gate):
    """Gaussian stochastic gates, STG (Yamada et al. 2020, arXiv:1810.04247).

    With phi for mu, ``z = clip(phi + sigma * noise, 0, 1)`` with normal noise while training,
    without noise in evaluation; open with probability ``Phi(phi / sigma)``, whose sum is the
    penalty (equations 4 to 6).

    Parameters
    ----------
    count, per_sample, rng, dtype
        As of :class:`Gate`; ``rng`` is needed.
    initial, sigma
        Likewise; the paper's by default.

    Raises
    ------
    ValueError
        If a setting is out of range.

    Examples
    --------
    >>> GaussianGate(1, initial=0.25, rng=np.random.default_rng(0)).eval()().data
    array([0.25], dtype=float32)
    """

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

    def tail(self, phi: Array) -> tuple[Array, Array]:
        """Return Phi(phi / sigma), and its derivative."""
        number = phi.dtype.type
        p, density = normal_tail(phi * number(1 / self.sigma))
        return p, density * number(1 / self.sigma)

    def set_open(self, is_open: NDArray[np.bool_]) -> None:
        """Open fully, or close, each group in evaluation."""
        super().set_open(is_open)
        self.phi.data = np.where(is_open, 1.0, -1.0)


# -- rules that look at weights ------------------------------------------------------------------


class _Part:
    """A gate, and all that it gates: arrays, and how their elements are grouped."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.arrays: list[tuple[nn.Parameter, Groups]] = []

    def add(self, parameter: nn.Parameter, groups: Groups) -> None:
        """Add a parameter, once though it may be used in several places."""
        if not any(
            parameter is known and np.array_equal(groups.labels, others.labels)
            for known, others in self.arrays
        ):
            self.arrays.append((parameter, groups))

    def _sums(self, values: Callable[[nn.Parameter], Array]) -> Array:
        total: Array = np.zeros(self.gate.count)
        for parameter, groups in self.arrays:
            # First along axes on which the groups do not depend: for slices, that is all.
            axes = tuple(i for i, n in enumerate(groups.labels.shape) if n == 1)
            found = values(parameter).sum(axis=axes).ravel()
            total += np.bincount(groups.labels.ravel(), found, self.gate.count)
        return total

    def norms(self) -> Array:
        """Return the L2 norm of each group of weights, shape (count,); ArithmeticError if none."""
        norms = np.sqrt(self._sums(lambda parameter: parameter.data**2))
        if not np.isfinite(norms).all():
            raise ArithmeticError("weights are not finite, so groups have no norms; lower the lr.")
        return norms

    def sizes(self) -> Array:
        """Return the number of weights in each group."""
        return self._sums(lambda parameter: np.ones(parameter.shape))

    def scale(self, factors: Array) -> None:
        """Multiply each group by a factor, in place."""
        for parameter, groups in self.arrays:
            parameter.data *= factors.astype(parameter.dtype)[groups.labels]


def _parts(model: Module) -> list[_Part]:
    """List the gates of a model's layers with the weights, not biases, that they gate.

    Partly open ones are made binary, in place.
    """
    parts: dict[int, _Part] = {}
    for module in model.modules():
        if not isinstance(module, Gated):
            continue
        weight = module.layer.weight
        found = [(mask.gate, mask.groups) for mask in module.weights]
        found += [
            (gate, Groups.along(weight.shape, axis))
            for axis, gate in enumerate((module.outputs, module.inputs))
            if gate is not None
        ]
        for gate, groups in found:
            if gate.noise is not None:
                raise ValueError(
                    f"the model has a stochastic {type(gate).__name__}, whose noise opens again "
                    f"what a rule has closed; expected deterministic gates, such as Gate(count)."
                )
            parts.setdefault(id(gate), _Part(gate)).add(weight, groups)
    if not parts:
        raise ValueError("the model has no Gated layer, so no groups of weights to prune.")
    values = [part.gate.evaluated() for part in parts.values()]
    if any(((z > 0) & (z < 1)).any() for z in values):
        binarize(model)  # as rules open gates fully, and what is computed shall stay
    return list(parts.values())


class GroupLasso:
    """Group lasso (Yuan & Lin 2006; for filters and units Wen et al. 2016, arXiv:1608.03665).

    The penalty is ``strength * sum_g sqrt(size_g) * |w_g|`` over the groups of weights that the
    model's gates define. Its proximal step, taken after each step of SGD, multiplies each group by
    ``max(0, 1 - lr * strength * sqrt(size_g) / |w_g|)``. Gates are not learned: they are
    binary (:func:`~minidiff.binarize`), and where a group has come to 0 its gate is closed for
    good. (Where groups overlap, as those of a layer's inputs and outputs do, their steps are taken
    in turn.)

    Parameters
    ----------
    model
        With :class:`Gated` layers.

    Raises
    ------
    ValueError
        If the model has no Gated layer, or a stochastic gate. When stepped, if ``lr`` or
        ``strength`` is no finite number, 0 or more.
    ArithmeticError
        When stepped, if weights are not finite.

    Examples
    --------
    Two units, with weights of norm 0.05 and 5; the step shrinks norms by 0.14:

    >>> layer = Gated(nn.Linear(2, 2, rng=np.random.default_rng(0)), outputs=Gate(2))
    >>> layer.layer.weight.data[:] = [[0.03, 0.04], [3.0, 4.0]]
    >>> GroupLasso(layer).step(lr=0.1, strength=1.0)
    >>> layer.outputs().data, layer.layer.weight.data[1].round(2)
    (array([0., 1.], dtype=float32), array([2.92, 3.89], dtype=float32))
    """

    def __init__(self, model: Module) -> None:
        self.parts = [(part, np.sqrt(part.sizes())) for part in _parts(model)]

    def step(self, lr: float, strength: float) -> None:
        """Shrink every group; ``lr`` is that of the step of SGD before."""
        if not (0 <= lr < math.inf and 0 <= strength < math.inf):
            raise ValueError(
                f"lr is {lr} and strength {strength}; expected finite numbers, 0 or more."
            )
        for part, roots in self.parts:
            norms = part.norms()
            shrunk = np.maximum(0, norms - lr * strength * roots)
            shrunk[~part.gate.is_open()] = 0  # though momentum moves its weights on
            part.scale(np.divide(shrunk, norms, out=np.zeros_like(norms), where=norms > 0))
            part.gate.set_open(shrunk > 0)


class MagnitudePruning:
    """Gradual magnitude pruning (Han et al. 2015, arXiv:1506.02626; Zhu & Gupta 2017, 1710.01878).

    The groups with the smallest weights are closed, a few more at a time: at a share t of the way
    ``keep + (1 - keep) (1 - t)^3`` of all groups are left, the weights train on in between, and
    after that they are fine-tuned. A group's size is its norm beside the mean norm of its gate's
    groups, so that layers whose weights are small by nature are not emptied; single weights are
    compared as they are, over all layers. Gates are not learned: they are binary
    (:func:`~minidiff.binarize`).

    Parameters
    ----------
    model
        With :class:`Gated` layers, whose gates define the groups.
    keep
        The share of groups that is left in the end, in (0, 1].

    Raises
    ------
    ValueError
        If the model has no Gated layer, or a stochastic gate, or ``keep`` is out of range.
    ArithmeticError
        When stepped, if weights are not finite.

    Examples
    --------
    >>> layer = Gated(nn.Linear(2, 2, rng=np.random.default_rng(0)), outputs=Gate(2))
    >>> layer.layer.weight.data[:] = [[0.03, 0.04], [3.0, 4.0]]
    >>> MagnitudePruning(layer, keep=0.5).step(progress=1.0)
    >>> layer.outputs().data
    array([0., 1.], dtype=float32)
    """

    def __init__(self, model: Module, keep: float) -> None:
        if not 0 < keep <= 1:
            raise ValueError(f"keep is {keep}; expected a share above 0 and at most 1.")
        self.parts, self.keep = _parts(model), keep
        self.single = all((part.sizes() == 1).all() for part in self.parts)

    def step(self, progress: float) -> None:
        """Close what is too much at a share ``progress`` of the way, in 0..1."""
        share = self.keep + (1 - self.keep) * (1 - min(max(progress, 0.0), 1.0)) ** 3
        opens = [part.gate.is_open() for part in self.parts]
        scores = []
        for part, is_open in zip(self.parts, opens, strict=True):
            norms = part.norms()
            if not self.single:
                norms = norms / max(norms.mean(), 1e-30)
            scores.append(np.where(is_open, norms, -1.0))  # what is closed stays so
        every = np.concatenate(scores)
        left = max(1, round(share * every.size))
        if left >= np.count_nonzero(every >= 0):
            return
        kept = np.zeros(every.size, np.bool_)
        kept[np.argpartition(-every, left - 1)[:left]] = True
        bounds = np.cumsum([part.gate.count for part in self.parts])[:-1]
        for part, is_open in zip(self.parts, np.split(kept, bounds), strict=True):
            part.gate.set_open(is_open)
