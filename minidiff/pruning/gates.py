"""Gates: learned numbers that open and close groups of parameters or activations.

The gate of a group is ``z = g(phi)`` with a learned ``phi`` and the gate transform g. A stochastic
gate is ``z = g(phi + sigma * noise)`` while training. Once z is 0, phi gets no gradient from the
data (fact 3 of :mod:`~minidiff.pruning.transform`), and everything that the gate multiplies is
skipped.

A :class:`Gate` computes the values, and the ops of ``scale.py`` multiply by them. ``gated.py`` puts
gates on layers.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from minidiff.engine.arrays import Array, Indices, Shape
from minidiff.engine.functional import BATCH_LAST, float_dtype, generator
from minidiff.engine.module import Module, Parameter
from minidiff.engine.op import Gradients, Op
from minidiff.engine.tensor import Tensor, apply

from .noise import NOISES
from .scale import scale
from .transform import BinaryGate, GateTransform, OpenOnly, check_positive

__all__ = ["Gate"]

MANY = 4096  # gates, from which on it pays to list the open ones before their values are computed


class Gate(Module):
    """Approximate binary gates, one for each of ``count`` groups.

    As a layer it gates activations: it multiplies the channels or features of its input. Called
    without an input it returns its values; :class:`Gated` multiplies parameters by them. The idea
    is the paper's (Shulman 2020, arXiv:2012.03653); the formula, :func:`binary_gate`, is ours.

    A subclass may override ``transform``, ``limits`` and ``tail``, but not ``values``;
    ``docs/howto/add-a-gate.md`` writes one.

    Parameters
    ----------
    count
        The number of groups.
    width
        The transition width w of the gate transform, in units of phi.
    initial
        The initial phi; from width/2 on, the gates start fully open.
    noise
        None for deterministic gates; "normal" (standard deviation 1), "logistic" (scale 1) or
        "uniform" (in -1..1) for gates that are stochastic in training. Uniform noise cannot close a
        gate with phi above ``sigma - width / 2``, so the surrogate gives this gate no gradient.
    sigma
        The scale of the noise. For deterministic gates, the scale of the normal noise that
        :meth:`open_probability` assumes, so that the surrogate has a gradient.
    per_sample
        Whether stochastic gates draw noise for each sample of a batch. Only for gates on
        activations, because samples share parameters. Training then skips nothing.
    rng
        Generator that draws the noise; required for stochastic gates.
    dtype
        float32 or float64.

    Attributes
    ----------
    phi : Parameter of shape (count,)
    frozen : bool
        Whether gates no longer learn: training uses the values of evaluation, without noise, and
        phi gets no gradient. False at first; set it for the fine-tuning phase.

    Raises
    ------
    TypeError
        If ``dtype`` is not float32 or float64, or ``rng`` is not a numpy.random.Generator.
    ValueError
        If a setting is out of range. When called, if the input does not have ``count`` rows.

    Examples
    --------
    >>> gate = Gate(3)
    >>> gate.phi.data[:] = [-1.0, 0.0, 1.0]
    >>> gate().data, gate(np.ones((3, 2), np.float32)).data[:, 0]
    (array([0. , 0.5, 1. ], dtype=float32), array([0. , 0.5, 1. ], dtype=float32))
    """

    homogeneous = True
    settings: tuple[str, ...] | None = (
        *("count", "width", "initial", "noise", "sigma", "per_sample", "dtype", "frozen"),
    )

    def __init__(
        self,
        count: int,
        *,
        width: float = 1.0,
        initial: float = 1.5,
        noise: str | None = None,
        sigma: float = 1.0,
        per_sample: bool = False,
        rng: np.random.Generator | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        name = type(self).__name__
        if not isinstance(count, int | np.integer) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name}: count is {count!r}; expected an integer >= 1.")
        check_positive("width", width, float_dtype(dtype))
        check_positive("sigma", sigma, dtype)
        if not math.isfinite(initial):
            raise ValueError(f"{name}: initial is {initial}; expected a finite number.")
        if noise is not None and noise not in NOISES:
            raise ValueError(
                f"{name}: noise is {noise!r}; expected None, {', '.join(map(repr, NOISES))}."
            )
        if noise is not None and rng is None:
            raise ValueError(f"{name}: noise {noise!r} needs rng, a numpy.random.Generator.")
        if per_sample and noise is None:
            raise ValueError(f"{name}: per_sample is for stochastic gates; expected a noise.")
        self.width, self.noise, self.sigma = float(width), noise, float(sigma)
        self.rng = None if rng is None else generator(rng)
        self.initial, self.per_sample, self.frozen = float(initial), bool(per_sample), False
        self.phi = Parameter(np.full(count, initial, dtype))

    @property
    def count(self) -> int:
        """The number of groups."""
        return self.phi.size

    @property
    def dtype(self) -> str:
        """The name of the dtype."""
        return self.phi.dtype.name

    # -- values --------------------------------------------------------------------------------

    @property
    def stochastic(self) -> bool:
        """Whether values are random now, in training with noise and not frozen."""
        return self.noise is not None and self.training and not self.frozen

    @property
    def closes_for_good(self) -> bool:
        """Whether a closed gate stays closed.

        A closed gate without noise gets no gradient, neither from the data nor from the surrogate.
        A stochastic gate may open again in the next step.
        """
        return self.noise is None or self.frozen

    def learned_phi(self) -> Tensor:
        """Return phi, detached from the tape if the gates are frozen."""
        return self.phi.detach() if self.frozen else self.phi

    def transform(self) -> GateTransform:
        """Return a new op from phi (plus noise) to gate values, for the current mode."""
        return BinaryGate(self.width)

    def values(self, *, samples: int | None = None) -> Tensor:
        """Return the gate values, of shape (count,), or (count, samples) for each sample.

        Stochastic gates in training draw new noise at each call. Without noise all samples share
        the values, and the shape for samples is (count, 1).
        """
        phi = self.learned_phi()
        shape = (self.count,) if samples is None else (self.count, samples)
        if samples is not None:
            phi = phi.reshape(self.count, 1)
        if self.stochastic:
            assert self.noise is not None
            assert self.rng is not None
            noise = NOISES[self.noise].draw(self.rng, shape)
            phi = phi + self.sigma * noise.astype(self.phi.dtype)
        op = self.transform()
        if not isinstance(op, GateTransform):
            raise TypeError(
                f"transform() of {type(self).__name__} returned {op!r:.80}; expected a new "
                f"GateTransform."
            )
        if self.closes_for_good and self.count >= MANY and samples is None:
            return apply(OpenOnly(op, self.limits[0]), phi)
        z = apply(op, phi)
        if self.closes_for_good and op.live is not None:
            op.grad_live = (op.live,)  # in time: the tape reads it in backward
        return z

    # -- as a layer ----------------------------------------------------------------------------

    def __call__(self, x: Any = None) -> Tensor:
        """Return x times the gates; without x, return the gate values."""
        return self.values() if x is None else super().__call__(x)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the rows of x by the gates; skip closed rows unless noise is per sample."""
        if x.shape[:1] != (self.count,):
            raise ValueError(
                f"a Gate of {self.count} does not fit an input of shape {x.shape}; expected "
                f"({self.count}, ..., N). {BATCH_LAST}"
            )
        if self.per_sample and self.stochastic:
            if x.ndim < 2:
                raise ValueError(
                    f"a Gate with noise per sample was given an input of shape {x.shape}; expected "
                    f"({self.count}, ..., N), with the samples last."
                )
            z = self.values(samples=x.shape[-1])
            return x * z.reshape(self.count, *[1] * (x.ndim - 2), x.shape[-1])
        return scale(x, self.values())

    def output_shape(self, shape: Shape) -> Shape:
        if shape[:1] != (self.count,):
            raise ValueError(
                f"a Gate of {self.count} does not fit an input of shape {shape}, without the batch."
            )
        return shape

    def map_channels(self, channels: Any, shape: Shape) -> Any:
        return channels.gated(self, np.arange(self.count))

    # -- which gates are open ------------------------------------------------------------------

    @property
    def limits(self) -> tuple[float, float]:
        """The phi up to which gates are closed, and the larger phi from which they are fully open.

        Both are for evaluation.
        """
        return -self.width / 2, self.width / 2

    def evaluated(self) -> Array:
        """Return the gate values of evaluation, in any mode, of shape (count,).

        Raises ValueError if a value is not in [0, 1], because gates must fold into weights.
        """
        training, self.training = self.training, False
        try:
            z = self.transform().forward(self.phi.data)
        finally:
            self.training = training
        if ((z < 0) | (z > 1)).any():
            raise ValueError(
                f"{type(self).__name__}: values go from {z.min()} to {z.max()}; expected 0 to 1."
            )
        return z

    def is_open(self) -> NDArray[np.bool_]:
        """Return which groups are open in evaluation, of shape (count,)."""
        return np.asarray(self.evaluated() > 0)

    def set_open(self, is_open: NDArray[np.bool_]) -> None:
        """Fully open or close each group.

        Raises ValueError if ``is_open`` is not a boolean array of shape (count,), or if the
        ``limits`` of the class do not fit its ``transform``; then nothing changes.
        """
        given = np.asarray(is_open)
        if given.shape != (self.count,) or given.dtype != np.bool_:
            raise ValueError(
                f"is_open is {given.dtype} of shape {given.shape}; expected a bool for each of "
                f"{self.count} groups."
            )
        before, (closed, fully_open) = self.phi.data, self.limits
        margin = (fully_open - closed) / 2
        self.phi.data = np.where(given, fully_open + margin, closed - margin)
        if not np.array_equal(self.evaluated(), given):
            self.phi.data = before
            raise ValueError(
                f"{type(self).__name__}: gates are not closed below {closed:g} and fully open "
                f"above {fully_open:g}, as limits says; expected limits that fit transform()."
            )

    # -- how likely gates are open -------------------------------------------------------------

    def open_probability(self) -> Tensor:
        """Return the probability that each gate is open, shape (count,), differentiable in phi.

        For a stochastic gate in training, this is P(phi + sigma * noise > limits[0]). For a
        deterministic gate, this is a smooth stand-in with normal noise. The stand-in has a gradient
        where the gate is fully open, and is 0 once the gate has closed.
        """
        return apply(OpenProbability(self), self.learned_phi())

    def open_tail(self, phi: Array) -> tuple[Indices | None, Array, Array]:
        """Return :meth:`tail` of the gates that are not closed for good, and their numbers.

        The numbers are None if a closed gate may open again.
        """
        if self.noise is not None:
            return None, *self.tail(phi)
        places = (~(phi <= phi.dtype.type(self.limits[0]))).nonzero()[0]  # NaN is kept
        return places, *self.tail(phi[places])

    def tail(self, phi: Array) -> tuple[Array, Array]:
        """Return the values of :meth:`open_probability` and their derivative in phi."""
        number = phi.dtype.type
        closed, factor = number(self.limits[0]), number(1 / self.sigma)
        p, density = NOISES[self.noise or "normal"].tail((phi - closed) * factor)
        slope = density * factor
        if self.noise is None:
            is_closed = phi <= closed  # False for NaN, which is kept
            if is_closed.any():
                p[is_closed] = slope[is_closed] = 0
        return p, slope


class OpenProbability(Op):
    """P(phi + sigma * noise > limits[0]): the distribution function of the noise."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def forward(self, phi: Array) -> Array:
        p, self.slope = self.gate.tail(phi)
        if self.gate.noise is None:
            self.grad_live = ((p != 0).nonzero()[0],)
        return p

    def backward(self, grad: Array) -> Gradients:
        return grad * self.slope
