"""Optimisers: SGD and Adam over parameter groups, the cosine schedule, weight averaging."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Elements, Indices, matrix, plain, row_list
from .compiled import inner, limit_threads, prange, set_threads, threaded
from .module import fitting
from .tensor import Tensor

__all__ = ["SGD", "Adam", "Average", "Optimizer", "ParameterGroup", "cosine"]


@dataclass
class ParameterGroup:
    """Parameters that share a learning rate and a weight decay.

    Attributes
    ----------
    parameters : list of Tensor
    lr : float
        The learning rate; a schedule may set it before each step.
    weight_decay : float
        The factor d of the penalty ``d/2 * |w|^2``. Its gradient ``d * w`` is added in each step.
    state : list of dict
        The arrays that the optimiser stores for each parameter, by name; empty before the first
        step.

    Raises
    ------
    TypeError
        If a parameter is not a tensor.
    ValueError
        If ``lr`` or ``weight_decay`` is not a finite number >= 0, or a tensor is the result of an
        op.

    Examples
    --------
    >>> weight, bias = (Tensor(np.ones(n), requires_grad=True) for n in ((2, 3), 2))
    >>> decayed = ParameterGroup([weight], lr=0.1, weight_decay=5e-4)
    >>> optimizer = SGD([decayed, ParameterGroup([bias], lr=0.1)])
    >>> [group.weight_decay for group in optimizer.groups]
    [0.0005, 0.0]
    """

    parameters: Sequence[Tensor]
    lr: float
    weight_decay: float = 0.0
    state: list[dict[str, Array]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check("lr", self.lr)
        _check("weight_decay", self.weight_decay)
        self.parameters = list(self.parameters)
        for parameter in self.parameters:
            if not isinstance(parameter, Tensor):
                raise TypeError(
                    f"parameters: one is a {type(parameter).__name__}; expected tensors, such as "
                    f"list(model.parameters())."
                )
            if parameter.node is not None:
                raise ValueError(
                    f"parameters: a tensor of shape {parameter.shape} is the result of an op, so "
                    f"a step would have no effect; expected leaf tensors."
                )
        self.reset()

    def reset(self) -> None:
        """Drop the state, for example after gates are folded into the weights."""
        self.state = [{} for _ in self.parameters]


def _check(name: str, value: float, below: float = math.inf) -> None:
    if not 0 <= value < below:
        limit = "" if below == math.inf else f" and below {below:g}"
        raise ValueError(f"{name} is {value}; expected a finite number, 0 or more{limit}.")


class Optimizer:
    """The base class of SGD and Adam: parameter groups, ``step``, ``zero_grad`` and the state.

    A subclass defines ``_initial`` and ``_update``.

    Parameters
    ----------
    parameters
        Tensors, or :class:`ParameterGroup` objects with their own settings.
    lr, weight_decay
        The settings of tensors without a group.

    Attributes
    ----------
    groups : list of ParameterGroup

    Raises
    ------
    TypeError
        If ``parameters`` is not a list of only tensors or only ParameterGroups.
    ValueError
        If there are no parameters, a parameter is given twice, or a setting is out of range.

    Examples
    --------
    >>> w = Tensor([1.0], requires_grad=True)
    >>> optimizer = SGD([w], lr=0.25, momentum=0.9)
    >>> (w * w).sum().backward()
    >>> optimizer.step()
    >>> optimizer.state_dict()
    {'0.0.velocity': array([2.], dtype=float32)}
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[ParameterGroup],
        lr: float,
        weight_decay: float,
    ) -> None:
        if isinstance(parameters, Tensor):
            raise TypeError("parameters: one tensor; expected a list, [tensor].")
        items = list(parameters)
        if not items:
            raise ValueError("the optimiser was given no parameters.")
        groups = [item for item in items if isinstance(item, ParameterGroup)]
        tensors = [item for item in items if isinstance(item, Tensor)]
        if (groups and tensors) or len(groups) + len(tensors) < len(items):
            raise TypeError("parameters: expected tensors only, or ParameterGroups only.")
        self.groups = groups or [ParameterGroup(tensors, lr, weight_decay)]
        seen = [id(parameter) for group in self.groups for parameter in group.parameters]
        if len(set(seen)) < len(seen):
            raise ValueError("a parameter is given twice; it would take two steps in one.")
        for group in self.groups:  # another optimiser may have used the group
            group.reset()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("lr", "weight_decay"):
            raise AttributeError(
                f"{name} belongs to each group: for group in optimizer.groups: group.{name} = ..."
            )
        super().__setattr__(name, value)

    def zero_grad(self) -> None:
        """Set the gradient of every parameter to None."""
        for group in self.groups:
            for parameter in group.parameters:
                parameter.grad = None

    def step(self) -> None:
        """Update every parameter that has a gradient, in place.

        A row whose gate is closed for good can never get a gradient, and does not change. Raises
        ValueError if a parameter is read-only; then no parameter changes. Warns if none has a
        gradient.
        """
        moving = [
            (parameter, parameter.raw_grad, state, group)
            for group in self.groups
            for parameter, state in zip(group.parameters, group.state, strict=True)
            if parameter.raw_grad is not None
        ]
        if not moving:
            warnings.warn(
                f"no parameter of this {type(self).__name__} has a gradient, so the step changes "
                f"nothing. Call backward() before step(); after compact(), make an optimiser of "
                f"the new network's parameters; and frozen gates need no steps.",
                stacklevel=2,
            )
        for parameter, _, _, _ in moving:
            if not parameter.raw.flags.writeable:
                raise ValueError(
                    f"a parameter of shape {parameter.shape} is read-only, so no step can change "
                    f"it; set its .data to a copy first."
                )
        for parameter, grad, state, group in moving:
            weight = parameter.raw
            if not state:
                state.update(self._initial(weight))
            flat = np.ascontiguousarray(weight)  # a copy if it was set from a transposed array
            live, table = parameter.grad_live, matrix(flat)
            if isinstance(live, Elements):  # rows of one element
                live, table = live.places, flat.reshape(-1, 1)
            rows = row_list(live, len(table))
            self._update(table, plain(grad).reshape(table.shape), rows, state, group)
            if flat is not weight:
                weight[...] = flat
            parameter.version += 1

    def state_dict(self) -> dict[str, Array]:
        """Return a copy of the arrays that the optimiser stores, without settings.

        For example, "0.3.velocity" is the velocity of parameter 3 in group 0.
        """
        return {
            f"{i}.{j}.{key}": array.copy()
            for i, group in enumerate(self.groups)
            for j, state in enumerate(group.state)
            for key, array in state.items()
        }

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore a :meth:`state_dict`. Parameters absent from ``state`` restart with empty state.

        Raises ValueError if a name or shape does not match. The error lists every mismatch, and
        nothing changes.
        """
        begun = {name.rpartition(".")[0] for name in state}
        expected = {
            f"{i}.{j}.{key}": array
            for i, group in enumerate(self.groups)
            for j, parameter in enumerate(group.parameters)
            if f"{i}.{j}" in begun
            for key, array in self._initial(parameter.raw).items()
        }
        arrays = fitting(state, expected, self)
        for group in self.groups:
            group.reset()
        for name, array in arrays.items():
            i, j, key = name.split(".")
            self.groups[int(i)].state[int(j)][key] = array

    def _initial(self, weight: Array) -> dict[str, Array]:
        """Return the state of a parameter before its first step."""
        raise NotImplementedError

    def _update(
        self,
        weight: Array,
        grad: Array,
        rows: Indices,
        state: dict[str, Array],
        group: ParameterGroup,
    ) -> None:
        """Update the listed rows of a weight, in place; weight and grad are (rows, columns)."""
        raise NotImplementedError


@inner
def _flushed(x: Any) -> Any:
    """Return x, or 0 for a subnormal number.

    Without a gradient, state decays until it is subnormal, and rounding keeps it there. Subnormal
    arithmetic is 30 times slower, and the values are too small to matter.
    """
    number = type(x)
    return number(0) if abs(x) < np.finfo(number).tiny else x  # NaN is kept


@threaded
def _sgd(w: Array, grad: Array, velocity: Array, rows: Indices, settings: tuple[Any, ...]) -> None:
    """Take one step of SGD on the rows listed, in place; arrays are (rows, columns)."""
    number = w.dtype.type  # Python floats would promote the arithmetic to float64
    rate, momentum, decay, nesterov = settings
    lr, m, d = number(rate), number(momentum), number(decay)
    threads = limit_threads(rows.size * w.shape[1])
    for task in prange(rows.size):
        i = rows[task]
        for j in range(w.shape[1]):
            g = grad[i, j] + d * w[i, j]
            velocity[i, j] = _flushed(m * velocity[i, j] + g)
            w[i, j] -= lr * (g + m * velocity[i, j] if nesterov else velocity[i, j])
    set_threads(threads)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    With g = gradient + weight_decay * w: ``v = momentum * v + g``, then ``w -= lr * v``, or with
    Nesterov's look-ahead ``w -= lr * (g + momentum * v)`` (Sutskever et al. 2013).

    Parameters
    ----------
    parameters
        Tensors, or :class:`ParameterGroup` objects with their own settings.
    lr, weight_decay
        The settings of tensors without a group.
    momentum
        The momentum, in [0, 1).
    nesterov
        Whether to use Nesterov's look-ahead, which needs momentum above 0.

    Raises
    ------
    TypeError, ValueError
        As in :class:`Optimizer`. ValueError also if ``nesterov`` is set and momentum is 0.

    Examples
    --------
    >>> w = Tensor([1.0], requires_grad=True)
    >>> (w * w).sum().backward()
    >>> SGD([w], lr=0.25).step()
    >>> w.data
    array([0.5], dtype=float32)
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[ParameterGroup],
        lr: float = 0.01,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        _check("momentum", momentum, below=1)
        if nesterov and momentum == 0:
            raise ValueError("nesterov needs momentum above 0.")
        self.momentum, self.nesterov = float(momentum), bool(nesterov)

    def _initial(self, weight: Array) -> dict[str, Array]:
        return {"velocity": np.zeros(weight.shape, weight.dtype)}

    def _update(
        self,
        weight: Array,
        grad: Array,
        rows: Indices,
        state: dict[str, Array],
        group: ParameterGroup,
    ) -> None:
        settings = float(group.lr), self.momentum, float(group.weight_decay), self.nesterov
        _sgd(weight, grad, state["velocity"].reshape(weight.shape), rows, settings)


@inner
def _length(a: Any, b: Any) -> Any:
    """Return sqrt(a * a + b * b) without overflow or underflow."""
    a, b = abs(a), abs(b)
    large, small = max(a, b), min(a, b)
    if large == 0 or large == math.inf:
        return large
    ratio = small / large
    return large * np.sqrt(ratio * ratio + type(a)(1))


@threaded
def _adam(
    w: Array, grad: Array, mean: Array, root: Array, rows: Indices, settings: tuple[Any, ...]
) -> None:
    """Take one step of Adam on the rows listed, in place; arrays are (rows, columns).

    ``root`` is the root of the mean square: squares would leave the range of float32.
    """
    number = w.dtype.type
    lr, beta1, beta2, scale1, scale2, eps, decay = settings
    first, second = number(beta1), number(math.sqrt(beta2))
    rest1, rest2 = number(1 - beta1), number(math.sqrt(1 - beta2))
    rate, unbias, e, d = number(lr * scale1), number(math.sqrt(scale2)), number(eps), number(decay)
    threads = limit_threads(rows.size * w.shape[1])
    for task in prange(rows.size):
        i = rows[task]
        for j in range(w.shape[1]):
            g = grad[i, j] + d * w[i, j]
            mean[i, j] = _flushed(first * mean[i, j] + rest1 * g)
            root[i, j] = _flushed(_length(second * root[i, j], rest2 * g))
            w[i, j] -= rate * (mean[i, j] / (unbias * root[i, j] + e))
    set_threads(threads)


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1).

    Parameters
    ----------
    parameters, lr, weight_decay
        As in :class:`SGD`; the decay is added to the gradient.
    betas
        The decay rates of the two moments, in [0, 1).
    eps
        The number added to the root in the denominator.

    Raises
    ------
    TypeError, ValueError
        As in :class:`Optimizer`.

    Examples
    --------
    The first step moves each element by ``lr``, however steep the slope:

    >>> w = Tensor([1.0, 1.0], requires_grad=True)
    >>> (w * np.float32([1, 100])).sum().backward()
    >>> Adam([w], lr=0.1).step()
    >>> w.data.round(4)
    array([0.9, 0.9], dtype=float32)
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[ParameterGroup],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        for beta in betas:
            _check("beta", beta, below=1)
        least = float(np.finfo(np.float32).tiny)  # eps = 0 would give 0 / 0 for a gradient of 0
        if not least <= eps < math.inf:
            raise ValueError(f"eps is {eps}; expected a finite number, at least {least:.2g}.")
        self.betas, self.eps = (float(betas[0]), float(betas[1])), float(eps)

    def _initial(self, weight: Array) -> dict[str, Array]:
        moments = {name: np.zeros(weight.shape, weight.dtype) for name in ("mean", "root")}
        return {**moments, "steps": np.zeros(1)}

    def _update(
        self,
        weight: Array,
        grad: Array,
        rows: Indices,
        state: dict[str, Array],
        group: ParameterGroup,
    ) -> None:
        state["steps"] += 1
        steps, (beta1, beta2) = float(state["steps"][0]), self.betas
        # Division by 1 - beta^steps removes the bias of the moments.
        unbias = 1 / (1 - beta1**steps), 1 / (1 - beta2**steps)
        settings = float(group.lr), beta1, beta2, *unbias, self.eps, float(group.weight_decay)
        mean, root = (state[name].reshape(weight.shape) for name in ("mean", "root"))
        _adam(weight, grad, mean, root, rows, settings)


class Average:
    """The mean of parameters over the steps of an optimiser.

    At a constant learning rate SGD wanders around a minimum. The mean of the steps is nearer to the
    minimum than a single step, in a flatter part of the loss (stochastic weight averaging, SWA:
    Izmailov et al. 2018, arXiv:1803.05407).

    Parameters
    ----------
    parameters
        The tensors to average.

    Examples
    --------
    >>> w = Tensor([0.0])
    >>> average = Average([w])
    >>> for value in (1.0, 2.0, 6.0):
    ...     w.data[:] = value  # an optimiser's step
    ...     average.update()
    >>> average.apply()
    >>> w.data
    array([3.], dtype=float32)
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = list(parameters)
        self.count = 0
        # Sums over thousands of steps would lose digits in float32.
        self.sums: list[Array] = [np.zeros(p.shape) for p in self.parameters]

    def update(self) -> None:
        """Add the current values of the parameters to the mean."""
        self.count += 1
        for total, parameter in zip(self.sums, self.parameters, strict=True):
            total += parameter.data

    def apply(self) -> None:
        """Set the parameters to their mean; ValueError if there was no update."""
        if self.count == 0:
            raise ValueError("the average is of no steps; call update() after each step first.")
        for total, parameter in zip(self.sums, self.parameters, strict=True):
            parameter.data = np.asarray(total / self.count, parameter.dtype)

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the count and of each sum, named by the number of its parameter."""
        sums = {str(i): total.copy() for i, total in enumerate(self.sums)}
        return {"count": np.array([float(self.count)]), **sums}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore a :meth:`state_dict`; ValueError if it does not fit the parameters."""
        arrays = fitting(state, self.state_dict(), self)
        self.count = int(arrays["count"][0])
        self.sums = [arrays[str(i)] for i in range(len(self.sums))]


def cosine(step: int, steps: int, *, warmup: int = 0) -> float:
    """Return the factor of the learning rate at ``step``: up linearly, then down along a cosine.

    The factor is 1 at the end of the warm-up, and 0 after the last step if there are steps after
    the warm-up (Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5, without restarts).

    Parameters
    ----------
    step
        The number of the step, counted from 0.
    steps
        The number of steps.
    warmup
        The number of steps in the linear warm-up.

    Raises
    ------
    ValueError
        If ``warmup`` is not in 0..steps.

    Examples
    --------
    >>> [round(cosine(step, 4), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if not 0 <= warmup <= steps:
        raise ValueError(f"warmup is {warmup}; expected 0..{steps}, the number of steps.")
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup)))
