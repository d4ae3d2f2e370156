"""Gates: learned numbers that open and close groups of parameters or activations.

A gate of a group is ``z = g(phi)`` with a learned ``phi`` and the gate transform g, or, for
stochastic gates while training, ``z = g(phi + sigma * noise)``. Once z is 0, phi gets no gradient
from the data (fact 3 of :mod:`~minidiff.pruning.transform`), and everything it gates is skipped.

Three classes: a :class:`Gate` has the values, a :class:`Mask` lays them out over the groups of an
array, and :class:`Gated` is a layer whose parameters are multiplied by them. In one line,
:func:`gate_filters`, :func:`gate_units`, :func:`gate_inputs`, :func:`gate_weights` and
:func:`gate_blocks` gate a layer.

The paper's idea (Shulman 2020, arXiv:2012.03653); the formulas are ours.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from minidiff.engine import kernels, memory
from minidiff.engine._types import Array, Indices
from minidiff.engine.nn import Conv2d, Linear, Module, Parameter, Shape
from minidiff.engine.ops import generator
from minidiff.engine.tensor import Op, Tensor, float_dtype, logistic, with_zeros

from .groups import Groups
from .transform import BinaryGate, GateTransform, check_positive

__all__ = [
    "NOISES",
    "Gate",
    "Gated",
    "Mask",
    "binarize",
    "gate_blocks",
    "gate_filters",
    "gate_inputs",
    "gate_units",
    "gate_weights",
]

#: What the noise of a stochastic gate may be.
NOISES = ("normal", "logistic", "uniform")


class Gate(Module):
    """Approximate binary gates, one for each of ``count`` groups.

    As a layer it gates activations: it multiplies the channels or features of its input. Called
    without an input it returns its values; :class:`Gated` multiplies parameters by them. The
    paper's idea (Shulman 2020, arXiv:2012.03653); the formula is that of :func:`binary_gate`, ours.

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
        "uniform" (in -1..1) for stochastic ones. They are stochastic only while training. Gates
        that uniform noise cannot close, as phi is above ``sigma - width / 2``, never learn.
    sigma
        Scale of the noise; for deterministic gates, of the stand-in for it in
        :meth:`open_probability`, which keeps the surrogate's gradient alive.
    per_sample
        Whether stochastic gates draw noise for each sample of a batch, not once for all. Only for
        gates on activations, as samples share their parameters; nothing is skipped in training.
    rng
        Draws the noise; stochastic gates need it.
    dtype
        float32 or float64.

    Attributes
    ----------
    phi : Parameter of shape (count,)
    frozen : bool
        Whether training, too, takes the values of evaluation, without noise, as when the network
        settles in the end; phi gets no gradient then, nor from a surrogate. False at first; set it.

    Raises
    ------
    TypeError
        If ``dtype`` is another.
    ValueError
        If a setting is out of range. When called, if the input has not ``count`` slices.

    Examples
    --------
    >>> gate = Gate(3)
    >>> gate.phi.data[:] = [-1.0, 0.0, 1.0]
    >>> gate().data, gate(np.ones((3, 2), np.float32)).data[:, 0]
    (array([0. , 0.5, 1. ], dtype=float32), array([0. , 0.5, 1. ], dtype=float32))
    """

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
        if not isinstance(count, int | np.integer) or isinstance(count, bool) or count < 1:
            raise ValueError(f"Gate: count is {count!r}; expected an integer >= 1.")
        check_positive("width", width, float_dtype(dtype))
        check_positive("sigma", sigma, dtype)
        if not math.isfinite(initial):
            raise ValueError(f"initial is {initial}; expected a finite number.")
        if noise is not None and noise not in NOISES:
            raise ValueError(f"noise is {noise!r}; expected None, {', '.join(map(repr, NOISES))}.")
        if noise is not None and rng is None:
            raise ValueError(
                f"{type(self).__name__} with noise {noise!r} needs rng, a numpy.random.Generator."
            )
        if per_sample and noise is None:
            raise ValueError("per_sample is for stochastic gates; expected a noise with it.")
        self.width, self.noise, self.sigma = float(width), noise, float(sigma)
        self.rng = None if rng is None else generator(rng)
        self.per_sample, self.frozen = bool(per_sample), False
        self.phi = Parameter(np.full(count, initial, dtype))

    @property
    def count(self) -> int:
        """The number of groups."""
        return self.phi.size

    @property
    def learned(self) -> Tensor:
        """The phi that values are computed from; once frozen, it passes no gradient on."""
        return self.phi.detach() if self.frozen else self.phi

    @property
    def stochastic(self) -> bool:
        """Whether values are random now, that is with noise, in training, and not frozen."""
        return self.noise is not None and self.training and not self.frozen

    def __call__(self, x: Any = None) -> Tensor:
        """Return x gated, or the gates' values; ``active`` lists what is not closed.

        Stochastic gates in training draw new noise at each call.
        """
        return self.values() if x is None else super().__call__(x)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the slices of x along axis 0 by the gates; those closed are not computed."""
        if x.shape[:1] != (self.count,):
            raise ValueError(
                f"gates of shape ({self.count},) do not fit slices of x of shape {x.shape}."
            )
        if self.per_sample and self.stochastic:
            z = self.values(samples=x.shape[-1])
            return x * z.reshape(self.count, *[1] * (x.ndim - 2), x.shape[-1])
        return scale_slices(x, self.values())

    def values(self, *, samples: int | None = None) -> Tensor:
        """Return the gates' values, shape (count,), or of each sample, (count, samples).

        Where nothing is random they are alike for all samples, (count, 1).
        """
        phi = self.learned
        shape = (self.count,) if samples is None else (self.count, samples)
        if samples is not None:
            phi = phi.reshape(self.count, 1)
        if self.stochastic:
            phi = phi + self.sigma * self._draw(shape)
        op = self.transform()
        z = op(phi)
        if self.closes_for_good and op.active is not None:
            op.reached = (op.active,)
        return z

    @property
    def closes_for_good(self) -> bool:
        """Whether a gate that has closed stays so, as what it does not see cannot move it.

        The data has no gradient for it, and the surrogate, which counts it as closed, has none
        either. A stochastic gate may be open again in the next step.
        """
        return self.noise is None or self.frozen

    def transform(self) -> GateTransform:
        """Return the op from phi, with noise, to gate values, as now in training or evaluation."""
        return BinaryGate(self.width)

    @property
    def limits(self) -> tuple[float, float]:
        """Up to which phi a gate is closed in evaluation, and from which on it is fully open."""
        return -self.width / 2, self.width / 2

    def _draw(self, shape: tuple[int, ...]) -> Array:
        assert self.rng is not None
        noise: NDArray[Any]
        if self.noise == "normal":
            noise = self.rng.standard_normal(shape)
        elif self.noise == "logistic":
            noise = self.rng.logistic(size=shape)
        else:
            noise = self.rng.uniform(-1, 1, shape)
        return noise.astype(self.phi.dtype)

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape, whose first axis must be gated."""
        if shape[:1] != (self.count,):
            raise ValueError(
                f"Gate does not fit an input of shape {shape}; expected ({self.count}, ...), "
                f"without the batch."
            )
        return shape

    def evaluated(self) -> Array:
        """Return the gates' values as in evaluation, whatever the mode, shape (count,)."""
        training, self.training = self.training, False
        try:
            return self.transform().forward(self.phi.data)
        finally:
            self.training = training

    def is_open(self) -> NDArray[np.bool_]:
        """Return which groups are open in evaluation, shape (count,)."""
        return np.asarray(self.evaluated() > 0)

    def set_open(self, is_open: NDArray[np.bool_]) -> None:
        """Open fully, or close, each group; a decision from outside, in place of learning.

        Raises ValueError if ``is_open`` is not boolean, of shape (count,).
        """
        given = np.asarray(is_open)
        if given.shape != (self.count,) or given.dtype != np.bool_:
            raise ValueError(
                f"is_open is {given.dtype} of shape {given.shape}; expected a bool for each of "
                f"{self.count} groups."
            )
        self.phi.data = np.where(is_open, self.width, -self.width)

    def open_probability(self) -> Tensor:
        """Return P(phi + sigma * noise > -width/2), shape (count,), differentiable in phi.

        That is the probability that a stochastic gate is open in a training step. For
        deterministic gates it is a smooth stand-in, with normal noise, whose gradient does not die
        where the gate is fully open, as that of the gate itself does. Once one has closed it is 0.
        """
        return OpenProbability(self)(self.learned)

    def tail(self, phi: Array) -> tuple[Array, Array]:
        """Return the open probability as of :meth:`open_probability`, and its derivative."""
        number = phi.dtype.type
        if self.noise is None:
            p, density = np.zeros_like(phi), np.zeros_like(phi)
            is_open = (~(phi <= number(-self.width / 2))).nonzero()[0]  # NaN is kept
            t = (phi[is_open] + number(self.width / 2)) * number(1 / self.sigma)
            p[is_open], slope = normal_tail(t)
            density[is_open] = slope * number(1 / self.sigma)
            return p, density
        t = (phi + number(self.width / 2)) * number(1 / self.sigma)
        if self.noise == "logistic":
            p = logistic(t)
            density = p * (1 - p)
        elif self.noise == "uniform":
            p = np.clip(number(0.5) * t + number(0.5), 0, 1)
            density = np.where(abs(t) <= 1, number(0.5), number(0))
        else:
            p, density = normal_tail(t)
        return p, density * number(1 / self.sigma)


def normal_tail(t: Array) -> tuple[Array, Array]:
    """Return P(noise > -t) for a standard normal variable, and its derivative."""
    number = t.dtype.type
    t = t * number(1 / math.sqrt(2))
    p = np.empty(t.shape, t.dtype)
    kernels.erf(t, p)
    return number(0.5) * p + number(0.5), np.exp(-t * t) * number(1 / math.sqrt(2 * math.pi))


class OpenProbability(Op):
    """P(phi + sigma * noise > -width/2): the distribution function of the noise."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def forward(self, phi: Array) -> Array:
        p, self.density = self.gate.tail(phi)
        if self.gate.noise is None:
            self.reached = ((p != 0).nonzero()[0],)
        return p

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        return (grad * self.density,)


# -- gate values meet what they gate -----------------------------------------------------------


class ScaleSlices(Op):
    """x times the gate values z, slice by slice along axis 0; closed slices are left out.

    Leaving them out is exact only because z comes from a gate transform, whose derivative
    vanishes with it: the derivative with respect to a z of 0 is given as 0, whatever it is. So it
    does where a gate is fully open, and if all that are not closed are, nothing is computed.
    """

    skips = True

    def __init__(self, active: Indices, fully_open: bool, reached: Indices | None) -> None:
        self.active: Indices = active
        self.fully_open = fully_open
        self.reached = () if reached is None else (reached, None)

    def forward(self, x: Array, z: Array) -> Array:
        self.x, self.z = memory.plain(x), z
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
        grad = memory.plain(grad)
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
    fully_open = isinstance(gate, GateTransform) and bool(gate.fully_open[active].all())
    return ScaleSlices(active, fully_open, z.active if closed_for_good else None)(x, z)


class Spread(GateTransform):
    """The gate value of each group at the places of an array that belong to it."""

    def __init__(self, labels: Indices) -> None:
        self.labels = labels

    def forward(self, z: Array) -> Array:
        self.count, out = len(z), z[self.labels]
        if out.ndim == 1:  # of slices along axis 0
            self.active = (out != 0).nonzero()[0]
        return out

    @property
    def fully_open(self) -> NDArray[np.bool_]:
        """Where the group is fully open."""
        gate = self.inputs[0].creator
        assert isinstance(gate, GateTransform)
        return gate.fully_open[self.labels.ravel()]

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        whole = np.bincount(self.labels.ravel(), grad.ravel(), self.count)
        return (whole.astype(grad.dtype),)


class ScaleElements(Op):
    """An array times the gate value of the group that each element belongs to.

    Slices along axis 0 in which all is closed are constant zeros.
    """

    skips = True

    def __init__(self, groups: Groups) -> None:
        self.groups = groups

    def forward(self, x: Array, z: Array) -> Array:
        self.x, self.count = self.inputs[0].whole(), len(z)
        self.z = z.reshape(x.shape) if self._by_element() else z[self.groups.labels]
        rows, known = self.open_slices(0), self.inputs[0].active
        if known is not None:
            rows = np.intersect1d(rows, known, assume_unique=True)
        if len(rows) < len(x):
            self.active = rows
        return np.asarray(self.x * self.z)

    def open_slices(self, axis: int) -> Indices:
        """Return the slices along an axis in which not all is closed."""
        others = tuple(i for i in range(self.z.ndim) if i != axis)
        is_open = np.broadcast_to((self.z != 0).any(axis=others), self.x.shape[axis])
        return is_open.nonzero()[0]

    def _by_element(self) -> bool:
        return self.groups.are_elements_of(self.x.shape)

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        if self.active is not None:
            grad = with_zeros(grad, self.active)
        if not self.needs[1]:
            return grad * self.z, None
        grad_z = grad * self.x
        if self._by_element():
            return grad * self.z, grad_z.ravel()
        labels = np.broadcast_to(self.groups.labels, grad.shape)
        summed = np.bincount(labels.ravel(), grad_z.ravel(), self.count)
        return grad * self.z, summed.astype(grad.dtype)


def only(x: Tensor, rows: Indices) -> Tensor:
    """Return x, of whose slices along axis 0 these alone will be read."""
    if len(rows) == len(x):
        return x
    is_read = Tensor(np.zeros(len(x), x.dtype))
    is_read.data[rows] = 1
    is_read.active = rows
    return scale_slices(x, is_read)


class Mask(Module):
    """A gate laid out over an array: each element is multiplied by the gate of its group.

    As a layer it gates activations. In :class:`Gated` it gates a layer's weight or bias. Several
    masks may share a gate, each with a partition of its own.

    Parameters
    ----------
    gate
        A gate for each group.
    groups
        Of the array, without the batch: of shape (C, H, W) for activations of a convolution.

    Raises
    ------
    TypeError
        If one of these is something else.
    ValueError
        If there is not one gate for each group. When called, if the groups do not fit the input.

    Examples
    --------
    >>> rows = Mask(Gate(2, initial=-1.0), Groups.along((1, 2, 3), 1))  # of an image
    >>> rows(np.ones((1, 2, 3, 8), np.float32)).data.any()
    np.False_
    """

    def __init__(self, gate: Gate, groups: Groups) -> None:
        if not isinstance(gate, Gate) or not isinstance(groups, Groups):
            raise TypeError(
                f"Mask: given a {type(gate).__name__} and a {type(groups).__name__}; expected a "
                f"Gate and Groups (Groups(labels) makes them of an array)."
            )
        if gate.count != groups.count:
            raise ValueError(
                f"Mask: the gate has {gate.count} groups, but there are {groups.count} groups."
            )
        self.gate, self.groups = gate, groups

    def forward(self, x: Tensor) -> Tensor:
        """Gate activations (..., N); channels or features that are closed are not computed."""
        self.output_shape(x.shape[:-1])
        if self.gate.per_sample and self.gate.stochastic:
            return x * self.gate.values(samples=x.shape[-1])[self.groups.labels]
        slices = self.groups.slices
        if slices is not None:
            return scale_slices(x, Spread(np.broadcast_to(slices, len(x)))(self.gate.values()))
        labels = self.groups.labels
        return x * Spread(labels)(self.gate.values()).reshape(*labels.shape, 1)

    def apply(self, parameter: Tensor) -> Tensor:
        """Gate the elements of a parameter."""
        return ScaleElements(self.groups)(parameter, self.gate.values())

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape, which the groups must fit."""
        if not self.groups.cover(shape):
            raise ValueError(
                f"Mask of groups of shape {self.groups.labels.shape} does not fit an input of "
                f"shape {shape}, without the batch."
            )
        return shape


Masks = Mask | Sequence[Mask]


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
    weights, biases
        A :class:`Mask`, or several, on the elements of the weight, and of the bias.

    Raises
    ------
    TypeError
        If one of these is something else.
    ValueError
        If a gate's count or a mask's groups do not fit the layer, or a gate draws noise per sample.

    Examples
    --------
    >>> layer = Gated(Linear(4, 3, rng=np.random.default_rng(0)), outputs=Gate(3))
    >>> layer.outputs.set_open(np.array([True, False, True]))
    >>> layer(np.ones((4, 1), np.float32)).data.ravel() != 0
    array([ True, False,  True])
    """

    def __init__(
        self,
        layer: Conv2d | Linear,
        *,
        outputs: Gate | None = None,
        inputs: Gate | None = None,
        weights: Masks = (),
        biases: Masks = (),
    ) -> None:
        if not isinstance(layer, Conv2d | Linear):
            raise TypeError(f"Gated: layer is {layer!r}; expected a Conv2d or Linear.")
        shape = layer.weight.shape
        for name, gate, count in (("outputs", outputs, shape[0]), ("inputs", inputs, shape[1])):
            if gate is not None and not isinstance(gate, Gate):
                raise TypeError(f"Gated: {name} is a {type(gate).__name__}; expected a Gate.")
            if gate is not None and gate.count != count:
                raise ValueError(
                    f"Gated: the {name} gate has {gate.count} groups, but the layer {count} "
                    f"{name} (weight of shape {shape})."
                )
        self.layer, self.inputs, self.outputs = layer, inputs, outputs
        self.weights, self.biases = _masks("weights", weights), _masks("biases", biases)
        for name, masks, size in (
            ("weight", self.weights, shape),
            ("bias", self.biases, shape[:1]),
        ):
            for mask in masks:
                if not mask.groups.cover(size):
                    raise ValueError(
                        f"Gated: groups of shape {mask.groups.labels.shape} do not fit the {name} "
                        f"of shape {size}; expected as many axes, each as long or of length 1."
                    )
        if any(gate.per_sample for _, gate in self.gates()):
            raise ValueError(
                "Gated: a gate draws noise per sample, but samples share their parameters; "
                "expected per_sample=False, or the gate as a layer."
            )

    def gates(self) -> Iterator[tuple[str, Gate]]:
        """Yield (role, gate) for the gates there are."""
        for role in ("inputs", "outputs"):
            gate = getattr(self, role)
            if gate is not None:
                yield role, gate
        for role in ("weights", "biases"):
            for mask in getattr(self, role):
                yield role, mask.gate

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer with gated parameters."""
        weight: Tensor = self.layer.weight
        bias: Tensor = self.layer.bias
        for mask in self.weights:
            scaled = ScaleElements(mask.groups)
            weight = scaled(weight, mask.gate.values())
            if x.shape[:1] == weight.shape[1:2]:  # else the layer says what does not fit
                x = only(x, scaled.open_slices(1))
        for mask in self.biases:
            bias = mask.apply(bias)
        if self.outputs is not None:
            z = self.outputs.values()
            final = self.outputs.closes_for_good
            weight = scale_slices(weight, z, closed_for_good=final)
            bias = scale_slices(bias, z, closed_for_good=final)
        if self.inputs is not None:
            x = self.inputs(x)
        return self.layer.apply(x, weight, bias)

    def factors(self) -> list[tuple[Parameter, list[tuple[Gate, Indices]]]]:
        """List weight and bias, each with its gates and the group of each of its elements."""
        weight = [(mask.gate, mask.groups.labels) for mask in self.weights]
        bias = [(mask.gate, mask.groups.labels) for mask in self.biases]
        ends = [1] * (self.layer.weight.ndim - 1)
        if self.outputs is not None:
            every = np.arange(self.outputs.count)
            weight.append((self.outputs, every.reshape(-1, *ends)))
            bias.append((self.outputs, every))
        if self.inputs is not None:
            every = np.arange(self.inputs.count)
            weight.append((self.inputs, every.reshape(-1, *ends[1:])))
        return [(self.layer.weight, weight), (self.layer.bias, bias)]

    def output_shape(self, shape: Shape) -> Shape:
        """Return the layer's output shape."""
        return self.layer.output_shape(shape)


def _masks(name: str, given: Masks) -> tuple[Mask, ...]:
    masks = tuple(given) if isinstance(given, list | tuple) else (given,)
    for mask in masks:
        if not isinstance(mask, Mask):
            raise TypeError(
                f"Gated: {name} has a {type(mask).__name__}; expected Mask(gate, groups)."
            )
    return masks


def binarize(model: Module) -> None:
    """Make the gates of layers exactly binary, in place, and keep what is computed in evaluation.

    What a partly open gate multiplies its weights and biases by goes into them, and the gate is
    open then; outputs stay, up to rounding. As long as it was z, a step of size lr moved what is
    multiplied only by z^2 lr, and weight decay shrank it all the same; so what is left settles
    better when gates are binary. Gates that stand as layers, on activations, are left as they are,
    as are those that layers share with them.

    Parameters
    ----------
    model
        With :class:`Gated` layers. Gates take the values of evaluation.

    Raises
    ------
    ValueError
        If a weight or bias is used in two places that do not gate it alike, as it can take up only
        one of them.

    Examples
    --------
    >>> layer = gate_units(Linear(4, 2, rng=np.random.default_rng(0)), initial=0.0)
    >>> binarize(layer)
    >>> layer.outputs().data
    array([1., 1.], dtype=float32)
    """
    uses: list[tuple[Parameter, list[tuple[Gate, Indices]]]] = []
    alone: set[Gate] = set()
    stack = [model]
    while stack:
        module = stack.pop()
        if isinstance(module, Gated):
            uses += module.factors()
        elif isinstance(module, Gate | Mask):
            alone.add(module.gate if isinstance(module, Mask) else module)
        else:
            uses += [(value, []) for _, value in module.members() if isinstance(value, Parameter)]
            stack.extend(child for _, child in module.children())
    gates = {gate for _, factors in uses for gate, _ in factors if gate not in alone}
    values = {gate: gate.evaluated() for gate in gates}
    once: dict[int, list[tuple[Gate, Indices]]] = {}  # as one parameter may be in several places
    for parameter, factors in uses:
        known = once.setdefault(id(parameter), factors)
        if len(known) != len(factors) or any(
            gate is not other or not np.array_equal(labels, places)
            for (gate, labels), (other, places) in zip(known, factors, strict=True)
        ):
            raise ValueError(
                f"binarize: a parameter of shape {parameter.shape} is used in two places that do "
                f"not gate it alike, so it cannot take up what both multiply it by; expected the "
                f"same gates, or a parameter for each."
            )
    for parameter in {id(parameter): parameter for parameter, _ in uses}.values():
        for gate, labels in once[id(parameter)]:
            if gate in values:
                parameter.data = parameter.data * values[gate][labels]
    for gate, z in values.items():
        gate.set_open(z > 0)


# -- a layer is gated in one line --------------------------------------------------------------


def gate_filters(layer: Conv2d | Gated, *, gate: type[Gate] = Gate, **settings: Any) -> Gated:
    """Gate the filters of a convolution, each with its bias: what is closed saves work.

    Parameters
    ----------
    layer
        The layer, or one that is Gated already, which gets one gate more.
    gate
        The class of the gate.
    settings
        Of the gate: width, initial, noise, sigma, rng and so on.

    Raises
    ------
    TypeError
        If the layer is of another class.
    ValueError
        If it has such a gate already, or a setting is out of range.

    Examples
    --------
    >>> layer = gate_filters(Conv2d(1, 20, 5, rng=np.random.default_rng(0)))
    >>> layer.outputs.count
    20
    """
    inner = _inner(layer, (Conv2d,), "gate_filters")
    return _more(layer, "outputs", _new(gate, len(inner.weight), **settings))


def gate_units(layer: Linear | Gated, *, gate: type[Gate] = Gate, **settings: Any) -> Gated:
    """Gate the units of a dense layer, each with its bias.

    Parameters
    ----------
    layer, gate, settings
        As of :func:`gate_filters`.

    Raises
    ------
    TypeError, ValueError
        As of :func:`gate_filters`.

    Examples
    --------
    >>> gate_units(Linear(4, 3, rng=np.random.default_rng(0)), initial=0.0).outputs().data
    array([0.5, 0.5, 0.5], dtype=float32)
    """
    inner = _inner(layer, (Linear,), "gate_units")
    return _more(layer, "outputs", _new(gate, len(inner.weight), **settings))


def gate_inputs(
    layer: Conv2d | Linear | Gated, *, gate: type[Gate] = Gate, **settings: Any
) -> Gated:
    """Gate the input channels or features of a layer.

    It saves work in this layer, and in the one before where a whole channel is closed.

    Parameters
    ----------
    layer, gate, settings
        As of :func:`gate_filters`.

    Raises
    ------
    TypeError, ValueError
        As of :func:`gate_filters`.

    Examples
    --------
    >>> layer = gate_inputs(gate_units(Linear(4, 3, rng=np.random.default_rng(0))))
    >>> {role: gate.count for role, gate in layer.gates()}
    {'inputs': 4, 'outputs': 3}
    """
    inner = _inner(layer, (Conv2d, Linear), "gate_inputs")
    return _more(layer, "inputs", _new(gate, inner.weight.shape[1], **settings))


def gate_weights(
    layer: Conv2d | Linear | Gated,
    *,
    groups: Groups | None = None,
    gate: type[Gate] = Gate,
    **settings: Any,
) -> Gated:
    """Gate groups of a layer's weights, by default each weight by itself (unstructured).

    It saves storage, and work only where whole filters, units or inputs lose all their weights.

    Parameters
    ----------
    layer, gate, settings
        As of :func:`gate_filters`; a layer may get several such gates, which multiply.
    groups
        Of the elements of the weight.

    Raises
    ------
    TypeError, ValueError
        As of :func:`gate_filters`, and if the groups do not fit the weight.

    Examples
    --------
    >>> layer = Conv2d(2, 3, 3, rng=np.random.default_rng(0))
    >>> kernels = Groups.along(layer.weight.shape, (0, 1))  # 3x3 weights a group
    >>> gate_weights(layer, groups=kernels).weights[0].gate.count
    6
    """
    inner = _inner(layer, (Conv2d, Linear), "gate_weights")
    groups = Groups.elements(inner.weight.shape) if groups is None else groups
    if not isinstance(groups, Groups):
        raise TypeError(
            f"groups is a {type(groups).__name__}; expected Groups (Groups(labels) makes them of "
            f"an array)."
        )
    return _more(layer, "weights", Mask(_new(gate, groups.count, **settings), groups))


def gate_blocks(
    layer: Conv2d | Linear | Gated,
    block: tuple[int, ...] = (4, 4),
    *,
    gate: type[Gate] = Gate,
    **settings: Any,
) -> Gated:
    """Gate blocks of so many outputs by so many inputs, see :meth:`Groups.blocks`.

    Parameters
    ----------
    layer, gate, settings
        As of :func:`gate_weights`.
    block
        Its sizes along the first axes of the weight.

    Raises
    ------
    TypeError, ValueError
        As of :func:`gate_weights`.

    Examples
    --------
    >>> layer = gate_blocks(Linear(8, 10, rng=np.random.default_rng(0)), (4, 4))
    >>> layer.weights[0].gate.count  # 3 by 2 blocks
    6
    """
    inner = _inner(layer, (Conv2d, Linear), "gate_blocks")
    groups = Groups.blocks(inner.weight.shape, block)
    return gate_weights(layer, groups=groups, gate=gate, **settings)


def _new(gate: type[Gate], count: int, **settings: Any) -> Gate:
    if not (isinstance(gate, type) and issubclass(gate, Gate)):
        raise TypeError(
            f"gate is {gate!r:.80}; expected a class, such as Gate. A gate that is there already, "
            f"to be shared, is set by Gated(layer, outputs=gate), or inputs=gate."
        )
    return gate(count, **settings)


def _inner(layer: Module, kinds: tuple[type[Module], ...], caller: str) -> Conv2d | Linear:
    inner = layer.layer if isinstance(layer, Gated) else layer
    if type(inner) not in kinds:
        expected = " or a ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{caller}: the layer is a {type(inner).__name__}; expected a {expected}.")
    assert isinstance(inner, Conv2d | Linear)
    return inner


def _more(layer: Conv2d | Linear | Gated, role: str, one: Gate | Mask) -> Gated:
    """Return the layer with one gate more; a Gated one is left as it was."""
    if not isinstance(layer, Gated):
        return Gated(layer, **{role: one})  # type: ignore[arg-type]  # each role gets its own kind
    parts: dict[str, Any] = {
        name: getattr(layer, name) for name in ("outputs", "inputs", "weights", "biases")
    }
    if role == "weights":
        parts[role] = (*parts[role], one)
    elif parts[role] is None:
        parts[role] = one
    else:
        raise ValueError(f"the layer has a gate on its {role} already; expected none.")
    return Gated(layer.layer, **parts)
