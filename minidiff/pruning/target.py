"""A size in place of lambda: the factor of the penalty is found while the network trains.

A constraint on the number of weights, or of MACs, has a Lagrange multiplier, which rises while the
network is too large and falls while it is too small (as in Gallego-Posada et al. 2022,
arXiv:2208.04425). Ours differs in two ways. The gates of this library do not reopen, so the size
follows a schedule that falls to the target, and no step may go far below it. And the last gates to
close are chosen by how open they are: so the network ends at the target, not about there.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidiff.engine.arrays import Array, Shape
from minidiff.engine.module import Module, fitting
from minidiff.engine.tensor import Tensor, no_grad

from .count import count
from .gates import Gate
from .network import Bools, gates_of
from .surrogate import Surrogate

__all__ = ["Target", "parse_size"]

MEASUREMENTS = 200  # of the size, in all steps
START = 1.0  # the penalty of the dense network at first, in the unit of the loss
# A multiplier is a level times this power of the ratio between the size and that of the schedule.
# At each measurement the level changes by another power of the ratio, but at most by this factor.
POWER, RATE, FASTEST = 2, 0.05, 1.03
SCHEDULE = 0.9  # the share of the steps after which the schedule is at the target
NEAR, TRIES = 0.97, 200  # how near to the target a size should end, and how many groups to try


def parse_size(size: int | float | str, dense: int) -> int:
    """Return a number of weights or MACs, given as a number or as in "40x", 40 times fewer.

    Parameters
    ----------
    size
        The number, or how many times fewer.
    dense
        The number in the dense network.

    Raises
    ------
    ValueError
        If the size is neither, or not from 1 to ``dense``.

    Examples
    --------
    >>> parse_size("40x", 430_500), parse_size(12_000, 430_500)
    (10762, 12000)
    """
    text = str(size)
    try:
        number = dense / float(text[:-1]) if text.endswith("x") else float(text)
        fits = 1 <= number <= dense
    except (ValueError, ZeroDivisionError):
        fits = False
    if not fits:
        raise ValueError(
            f"the target is {size!r}; expected a number from 1 to {dense}, or how many times "
            f"fewer, such as '40x'."
        )
    return int(number)


class Target:
    """A penalty whose strength leads a network to a size.

    Add :meth:`penalty` to the loss of each step, and call :meth:`step` after the optimisers'. After
    ``steps`` of them the network has at most as many weights, or MACs, as asked for, and hardly
    fewer. Where gates have not closed in time, the least open ones are closed in the last step.

    Parameters
    ----------
    model, shape
        As in :class:`Surrogate`.
    steps
        The number of steps in which gates close.
    weights, macs
        The size: a number, or how many times fewer than dense, such as "40x". One or both.
    cost
        What a weight costs, as in :class:`Surrogate`. With both sizes, weights and MACs have
        penalties of their own instead.

    Raises
    ------
    ValueError, TypeError
        As in :class:`Surrogate`. ValueError also if no size is given, a size is out of range,
        ``steps`` is less than 1, or the model has no gates.

    Examples
    --------
    >>> from minidiff import nn, optim
    >>> from minidiff.pruning.gated import gate
    >>> model = gate(nn.Linear(20, 10, rng=np.random.default_rng(0)), "inputs", initial=0.5)
    >>> target, adam = Target(model, (20,), steps=100, weights="4x"), optim.Adam(
    ...     [model.inputs.phi], lr=0.02)
    >>> while not target.reached:
    ...     target.penalty().backward()
    ...     adam.step(); adam.zero_grad(); target.step()
    >>> target.sizes()
    {'weights': 50}
    """

    def __init__(
        self,
        model: Module,
        shape: Shape,
        *,
        steps: int,
        weights: int | float | str | None = None,
        macs: int | float | str | None = None,
        cost: str = "balanced",
    ) -> None:
        if weights is None and macs is None:
            raise ValueError("a Target needs weights, macs or both, such as weights='40x'.")
        if steps < 1:
            raise ValueError(f"steps is {steps}; expected 1 or more.")
        self.model, self.shape, self.steps = model, shape, steps
        self.gates = list(gates_of(model).values())
        if not self.gates:
            raise ValueError("the model has no gates, so its size cannot change; see md.gate.")
        given = {"weights": weights, "macs": macs}
        asked = {what: size for what, size in given.items() if size is not None}
        dense = _sizes(model, shape, 1)
        self.dense = {what: dense[what] for what in asked}
        self.goals = {what: parse_size(size, self.dense[what]) for what, size in asked.items()}
        self.expected = {what: Surrogate(model, shape, cost=what) for what in asked}
        self.costs = dict(self.expected)
        if len(asked) == 1:
            self.costs = dict.fromkeys(asked, Surrogate(model, shape, cost=cost))
        with no_grad():
            self.units = {what: surrogate().item() for what, surrogate in self.costs.items()}
        self.done, self.reached = 0, False
        self.levels, self.multipliers = (dict.fromkeys(asked, START) for _ in range(2))
        self.closed_at_end = 0  # gates that the last step had to close
        self._open = self._open_gates()

    # -- training --------------------------------------------------------------------------------

    def penalty(self) -> Tensor:
        """Return the term to add to the loss: 0 once the target is reached."""
        total = Tensor(0.0)
        for what, surrogate in self.costs.items() if not self.reached else ():
            total = total + (self.multipliers[what] / self.units[what]) * surrogate()
        return total

    def step(self) -> None:
        """Measure the network, after a step of the optimisers, and adapt the penalty."""
        self.done += 1
        every = max(1, self.steps // MEASUREMENTS)
        if self.reached or (self.done % every and self.done < self.steps):
            return
        sizes = self.sizes()
        if self.done >= self.steps or self._fits(sizes):
            self._finish()
            return
        self._open = self._open_gates()
        share = min(1.0, self.done / (SCHEDULE * self.steps))
        for what, dense in self.dense.items():
            # Gates take long to close. The expected size falls on their way, so at first it counts.
            with no_grad():
                expected = min(sizes[what], self.expected[what]().item())
            size = expected ** (1 - share) * sizes[what] ** share
            scheduled = dense * (self.goals[what] / dense) ** share
            ratio = size / scheduled
            self.levels[what] *= min(max(ratio**RATE, 1 / FASTEST), FASTEST)
            self.multipliers[what] = self.levels[what] * ratio**POWER

    def sizes(self) -> dict[str, int]:
        """Return how many weights or MACs are left, of those that have a target."""
        left = _sizes(self.model, self.shape, 0)
        return {what: left[what] for what in self.dense}

    # -- the end ---------------------------------------------------------------------------------

    def _open_gates(self) -> list[Bools]:
        return [gate.is_open() for gate in self.gates]

    def _finish(self) -> None:
        """Close the least open gates, so many that the target is reached, and no more.

        Gates that have closed since the last measurement may open again.
        """
        self.reached = True
        still_open = sum(int(is_open.sum()) for is_open in self._open_gates())
        candidates = _Candidates(self.gates, self._open)
        low, high = 0, len(candidates)  # how many to close at least
        while low < high:
            middle = (low + high) // 2
            candidates.close(range(middle))
            low, high = (low, middle) if self._fits(self.sizes()) else (middle + 1, high)
        candidates.close(range(low))
        if not self._is_near() and low:
            # The last of them is large. Look for a smaller one that will do in its place.
            for one in range(low, min(len(candidates), low + TRIES)):
                candidates.close([*range(low - 1), one])
                if self._is_near():
                    break
            else:
                candidates.close(range(low))
        left = sum(int(is_open.sum()) for is_open in self._open_gates())
        self.closed_at_end = max(0, still_open - left)

    def _fits(self, sizes: dict[str, int]) -> bool:
        return all(sizes[what] <= self.goals[what] for what in sizes)

    def _is_near(self) -> bool:
        """Return whether the target is reached, and a size is hardly below its own."""
        sizes = self.sizes()
        return self._fits(sizes) and any(sizes[w] >= NEAR * self.goals[w] for w in sizes)

    # -- checkpoints -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Array]:
        """Return the multipliers, how many steps are done, and which gates were open."""
        progress = [float(self.done), float(self.reached), float(self.closed_at_end)]
        gates = {str(i): is_open.astype(np.float32) for i, is_open in enumerate(self._open)}
        factors = [[*values.values()] for values in (self.levels, self.multipliers, self.units)]
        return {"factors": np.array(factors), "progress": np.array(progress), **gates}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore a :meth:`state_dict`; ValueError if it does not fit the gates."""
        arrays = fitting(state, self.state_dict(), self)
        self.levels, self.multipliers, self.units = (
            dict(zip(self.dense, map(float, factors), strict=True)) for factors in arrays["factors"]
        )
        done, reached, closed = arrays["progress"]
        self.done, self.reached, self.closed_at_end = int(done), bool(reached), int(closed)
        self._open = [arrays[str(i)] > 0 for i in range(len(self.gates))]


def _sizes(model: Module, shape: Shape, dense: int) -> dict[str, int]:
    """Return the weights and MACs left, or if ``dense`` is 1, those of the dense network."""
    counts = count(model, shape)
    return {
        "weights": sum(layer.weights[dense] for layer in counts),
        "macs": sum(layer.macs[dense] for layer in counts),
    }


class _Candidates:
    """The groups that may close, from the least open one on."""

    def __init__(self, gates: list[Gate], was_open: list[Bools]) -> None:
        self.gates, self.phis = gates, []
        openness, self.places = [], []
        for i, (gate, is_candidate) in enumerate(zip(gates, was_open, strict=True)):
            closed, fully_open = gate.limits
            phi, places = gate.phi.data, is_candidate.nonzero()[0]
            least = phi.dtype.type(closed + 1e-3 * (fully_open - closed))  # of an open gate
            self.phis.append(np.where(is_candidate, np.maximum(phi, least), phi))
            openness.append((phi[places] - closed) / (fully_open - closed))
            self.places += [(i, int(place)) for place in places]
        order = np.concatenate(openness).argsort(kind="stable")
        self.places = [self.places[i] for i in order]

    def __len__(self) -> int:
        return len(self.places)

    def close(self, numbers: Iterable[int]) -> None:
        """Close these candidates, and open the others."""
        phis = [phi.copy() for phi in self.phis]
        for number in numbers:
            gate, place = self.places[number]
            phis[gate][place] = min(phis[gate][place], self.gates[gate].limits[0])
        for owner, phi in zip(self.gates, phis, strict=True):
            owner.phi.data = phi
