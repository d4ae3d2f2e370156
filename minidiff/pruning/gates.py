"""Gates: learned numbers that open and close groups of parameters or activations.

A gate of a group is ``z = g(phi)`` with a learned ``phi`` and the gate transform g, or, for
stochastic gates while training, ``z = g(phi + sigma * noise)``. Once z is 0, phi gets no gradient
from the data (fact 3 of :mod:`~minidiff.pruning.transform`), and everything it gates is skipped.

The paper's idea (Shulman 2020, arXiv:2012.03653); the formulas are ours.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidiff.engine import kernels, memory
from minidiff.engine._types import Array, Indices
from minidiff.engine.nn import Conv2d, Linear, Module, Parameter, Shape
from minidiff.engine.tensor import Op, Tensor

from .groups import Groups
from .transform import BinaryGate, binary_gate, check_positive

__all__ = ["NOISES", "Gate", "Gated"]

NOISES = ("normal", "logistic", "uniform")


class Gate(Module):
    """Approximate binary gates, one for each of ``count`` groups.

    As a layer it gates activations: it multiplies the channels or features of its input. Called
    without an input it returns its values; :class:`Gated` multiplies parameters by them.

    Parameters
    ----------
    count
        The number of groups.
    width
        Transition width w of the gate transform.
    initial
        What phi starts at; above width/2 the gates start fully open.
    noise
        None for deterministic gates; "normal" (standard deviation 1), "logistic" (scale 1) or
        "uniform" (in -1..1) for stochastic ones. They are stochastic only while training.
    sigma
        Scale of the noise; for deterministic gates, of the stand-in for it in
        :meth:`open_probability`, which keeps the surrogate's gradient alive.
    rng
        Draws the noise; stochastic gates need it.
    dtype
        float32 or float64.

    Attributes
    ----------
    phi : Parameter of shape (count,)

    Raises
    ------
    ValueError
        If a setting is out of range.

    Examples
    --------
    >>> gate = Gate(3, initial=0.0)
    >>> gate().data
    array([0.5, 0.5, 0.5], dtype=float32)
    """

    def __init__(
        self,
        count: int,
        *,
        width: float = 1.0,
        initial: float = 1.5,
        noise: str | None = None,
        sigma: float = 1.0,
        rng: np.random.Generator | None = None,
        dtype: type[np.floating] = np.float32,
    ) -> None:
        if not isinstance(count, int | np.integer) or count < 1:
            raise ValueError(f"Gate: count is {count!r}; expected an integer >= 1.")
        check_positive("width", width)
        check_positive("sigma", sigma)
        if not math.isfinite(initial):
            raise ValueError(f"initial is {initial}; expected a finite number.")
        if noise is not None and noise not in NOISES:
            raise ValueError(f"noise is {noise!r}; expected None, {', '.join(map(repr, NOISES))}.")
        if noise is not None and rng is None:
            raise ValueError(f"noise {noise!r} needs rng, a numpy.random.Generator.")
        self.width, self.noise, self.sigma, self.rng = float(width), noise, float(sigma), rng
        self.phi = Parameter(np.full(count, initial, dtype))
        binary_gate(self.phi, width)  # refuses a width that the dtype cannot hold

    @property
    def count(self) -> int:
        """The number of groups."""
        return self.phi.size

    def __call__(self, x: Any = None) -> Tensor:
        """Return x gated, or the gates' values; ``active`` lists what is not closed.

        Stochastic gates in training draw new noise at each call.
        """
        return self.values() if x is None else super().__call__(x)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the slices of x along axis 0 by the gates; those closed are not computed."""
        return scale_slices(x, self.values())

    def values(self) -> Tensor:
        """Return the gates' values, shape (count,)."""
        phi: Tensor = self.phi
        if self.training and self.noise is not None:
            phi = phi + self.sigma * self._draw()
        return BinaryGate(self.width)(phi)

    def _draw(self) -> Array:
        assert self.rng is not None
        if self.noise == "normal":
            noise = self.rng.standard_normal(self.count)
        elif self.noise == "logistic":
            noise = self.rng.logistic(size=self.count)
        else:
            noise = self.rng.uniform(-1, 1, self.count)
        return noise.astype(self.phi.dtype)

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape, whose first axis must be gated."""
        if shape[:1] != (self.count,):
            raise ValueError(
                f"Gate does not fit an input of shape {shape}; expected ({self.count}, ...), "
                f"without the batch."
            )
        return shape

    def is_open(self) -> NDArray[np.bool_]:
        """Return which groups are open in evaluation, shape (count,)."""
        return np.asarray(binary_gate(self.phi.data, self.width) > 0)

    def open_probability(self) -> Tensor:
        """Return P(phi + sigma * noise > -width/2), shape (count,), differentiable in phi.

        That is the probability that a stochastic gate is open in a training step. For
        deterministic gates it is a smooth stand-in (with normal noise) whose gradient never
        dies, as that of the gate itself does.
        """
        return OpenProbability(self)(self.phi)

    def tail(self, phi: Array) -> tuple[Array, Array]:
        """Return the open probability as of :meth:`open_probability`, and its derivative."""
        number = phi.dtype.type
        t = (phi + number(self.width / 2)) * number(1 / self.sigma)
        if self.noise == "logistic":
            p = 0.5 * np.tanh(0.5 * t) + 0.5  # which does not overflow
            density = p * (1 - p)
        elif self.noise == "uniform":
            p, density = np.clip(0.5 * t + 0.5, 0, 1), np.where(abs(t) <= 1, number(0.5), number(0))
        else:
            t *= number(1 / math.sqrt(2))
            p = np.empty(t.shape, t.dtype)
            kernels.erf(t, p)
            p, density = 0.5 * p + 0.5, np.exp(-t * t) * number(1 / math.sqrt(2 * math.pi))
        return p, density * number(1 / self.sigma)


class OpenProbability(Op):
    """P(phi + sigma * noise > -width/2): the distribution function of the noise."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def forward(self, phi: Array) -> Array:
        p, self.density = self.gate.tail(phi)
        return p

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        return (grad * self.density,)


class ScaleSlices(Op):
    """x times the gate values z, slice by slice along axis 0; closed slices are left out.

    Leaving them out is exact only because z comes from the gate transform, whose derivative
    vanishes with it: the derivative with respect to a z of 0 is given as 0, whatever it is. So it
    does where a gate is fully open, and if all that are not closed are, nothing is computed.
    """

    skips = True

    def __init__(self, active: Indices, fully_open: bool, closed_for_good: bool) -> None:
        self.active: Indices = active
        self.fully_open = fully_open
        self.live = (active, None) if closed_for_good else ()

    def forward(self, x: Array, z: Array) -> Array:
        self.x, self.z = np.ascontiguousarray(x), z
        if self.fully_open:
            return self.x
        out = memory.empty(x.shape, x.dtype)
        kernels.scale_rows(memory.rows(self.x), z, self.active, memory.rows(out))
        return out

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        grad_z = np.zeros(len(self.z), grad.dtype)
        owed = self.inputs[0].active  # closed slices that are active in x are owed a zero
        if self.fully_open and len(self.active) == len(self.x if owed is None else owed):
            return grad, grad_z
        grad_x = memory.empty(self.x.shape, grad.dtype)
        grad = np.ascontiguousarray(grad)
        kernels.grad_scale_rows(
            memory.rows(grad), memory.rows(self.x), self.z, self.active, memory.rows(grad_x), grad_z
        )
        return grad_x, grad_z


def scale_slices(x: Tensor, z: Tensor, *, closed_for_good: bool = False) -> Tensor:
    """Multiply slices of x along axis 0 by gate values z; slices closed already stay closed.

    ``closed_for_good`` says that gates that are closed will never open again.
    """
    if z.active is None or x.shape[:1] != z.shape:
        raise ValueError(f"gates of shape {z.shape} do not fit slices of x of shape {x.shape}.")
    active, gate = z.active, z.creator
    if x.active is not None:
        active = np.intersect1d(x.active, active, assume_unique=True)
    # A result that is not on the tape gets memory of its own: nobody would notice that x changes.
    fully_open = isinstance(gate, BinaryGate) and bool((gate.t[active] == 1).all())
    return ScaleSlices(active, fully_open, closed_for_good)(x, z)


def _broadcasts(small: Shape, large: Shape) -> bool:
    tail = large[len(large) - len(small) :]
    return len(small) <= len(large) and all(n in (1, m) for n, m in zip(small, tail, strict=True))


class Gated(Module):
    """A layer whose weight and bias are multiplied by gates, and computed only where open.

    Parameters
    ----------
    layer
        A Conv2d or Linear.
    outputs
        A gate for each filter or unit: multiplies slice o of the weight, and bias o.
    inputs
        A gate for each input channel or feature: multiplies column i of the weight, which is
        the same as multiplying input i.
    weights, groups
        A gate for each group of the weight's elements; ``groups`` broadcast to its shape.

    Raises
    ------
    ValueError
        If a gate's count does not fit the layer.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> layer = Gated(Linear(4, 3, rng=rng), outputs=Gate(3))
    >>> layer(np.ones((4, 2), np.float32)).shape
    (3, 2)
    """

    def __init__(
        self,
        layer: Conv2d | Linear,
        *,
        outputs: Gate | None = None,
        inputs: Gate | None = None,
        weights: Gate | None = None,
        groups: Groups | None = None,
    ) -> None:
        shape = layer.weight.shape
        for name, gate, count in (("outputs", outputs, shape[0]), ("inputs", inputs, shape[1])):
            if gate is not None and gate.count != count:
                raise ValueError(
                    f"Gated: the {name} gate has {gate.count} groups, but the layer {count} "
                    f"{name} (weight of shape {shape})."
                )
        if (weights is None) != (groups is None):
            raise ValueError("Gated: weights and groups go together; one of them is missing.")
        if weights is not None and groups is not None:
            if weights.count != groups.count:
                raise ValueError(
                    f"Gated: the weights gate has {weights.count} groups, but there are "
                    f"{groups.count} groups."
                )
            if not _broadcasts(groups.labels.shape, shape):
                raise ValueError(
                    f"Gated: groups of shape {groups.labels.shape} do not broadcast to the weight "
                    f"of shape {shape}."
                )
        self.layer = layer
        self.inputs, self.outputs, self.weights, self.groups = inputs, outputs, weights, groups

    def gates(self) -> Iterator[tuple[str, Gate]]:
        """Yield (role, gate) for the gates there are."""
        for role in ("inputs", "outputs", "weights"):
            gate = getattr(self, role)
            if gate is not None:
                yield role, gate

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer with gated parameters."""
        weight: Tensor = self.layer.weight
        bias: Tensor = self.layer.bias
        if self.weights is not None and self.groups is not None:
            weight = weight * self.weights.values()[self.groups.labels]
        if self.outputs is not None:
            z = self.outputs.values()
            # A deterministic gate that is closed stays so: all that still moves phi is the
            # surrogate, and it moves it down. (Should weight decay of phi open it again, its
            # weights go on from where they were.)
            final = self.outputs.noise is None
            weight = scale_slices(weight, z, closed_for_good=final)
            bias = scale_slices(bias, z, closed_for_good=final)
        if self.inputs is not None:
            x = self.inputs(x)
        return self.layer.apply(x, weight, bias)

    def output_shape(self, shape: Shape) -> Shape:
        """Return the layer's output shape."""
        return self.layer.output_shape(shape)
