"""The L0 surrogate: the expected cost of the weights that gates leave.

A weight is left only if the gates of its output, of its input and of itself are all open. So the
number of weights left in a layer, *coupled* with its neighbours, is

    K * sum_i open_in[i] * sum_o open_out[o]

with K kernel positions (1 for a dense layer). The surrogate replaces ``open`` by the probability
that the gate is open. If all gates are stochastic and independent, and each acts in one place, the
surrogate is the expected number of weights. A deterministic gate uses the probability of a
stochastic gate, which has a gradient where the gate is fully open. Once a deterministic gate has
closed, its probability is 0.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from minidiff.engine.arrays import Array, Shape
from minidiff.engine.module import Module
from minidiff.engine.op import Gradients, Op
from minidiff.engine.tensor import Tensor, apply

from .gates import Gate
from .network import Stage, Values, gates_of, walk

__all__ = ["COSTS", "Surrogate"]

#: The cost of a weight, given the number of output positions that use the weight. Most weights are
#: in dense layers, most MACs (multiply-adds) in convolutions. None: the cost counts groups.
COSTS: dict[str, Callable[[int], float] | None] = {
    "weights": lambda positions: 1.0,
    "macs": lambda positions: float(positions),
    "balanced": lambda positions: float(positions) ** (1 / 3),
    "groups": None,
}


class Surrogate:
    """The L0 surrogate of a model: the expected cost of the weights that its gates leave.

    A layer with K kernel positions has ``K * sum(p_in) * sum(p_out)`` expected weights, where p_in
    and p_out are the probabilities that the gates of inputs and outputs are open. With gates on
    single weights, or one gate at both ends, the sum is taken weight by weight. The formula is
    ours; the paper (Shulman 2020, arXiv:2012.03653) mentions a surrogate of the L0 loss. The
    constructor walks through the network once, so each call is fast.

    Parameters
    ----------
    model
        Layers in Sequentials, with gates.
    shape
        Shape of one input without the batch: (C, H, W) or (D,).
    cost
        The cost of a weight: 1 for "weights", its multiply-adds per sample for "macs" (those with
        padding included), and the cube root of these for "balanced". For "groups", every group of
        every gate costs 1.

    Raises
    ------
    ValueError
        If ``cost`` is unknown, a layer does not fit its input, or closing a gate does not lower
        the cost.
    TypeError
        If a module does not define how it maps channels.

    Examples
    --------
    Each of twelve weights is left with the probability that normal noise is above -2:

    >>> from minidiff import nn
    >>> from minidiff.pruning.gated import Gated
    >>> gate = Gate(3, initial=1.5, width=1.0, sigma=1.0)
    >>> linear = Gated(nn.Linear(4, 3, rng=np.random.default_rng(0)), outputs=gate)
    >>> round(Surrogate(linear, (4,))().item(), 3)
    11.727
    """

    def __init__(self, model: Module, shape: Shape, *, cost: str = "weights") -> None:
        if cost not in COSTS:
            raise ValueError(f"cost is {cost!r}; expected one of {', '.join(COSTS)}.")
        cost_of_weight = COSTS[cost]
        stages = walk(model, shape).stages
        # A gate that several layers share is listed once.
        self.gates = list(dict.fromkeys(gate for stage in stages for gate in stage.gates()))
        for name, gate in gates_of(model).items():
            if gate not in self.gates and cost_of_weight is not None:
                raise ValueError(
                    f"closing the gate {name!r} saves nothing that cost {cost!r} counts, so "
                    f"nothing would close it; cost='groups' counts the groups of gates themselves."
                )
            if gate not in self.gates:
                self.gates.append(gate)
        uses = Counter(gate for stage in stages for gate in stage.gates())
        self.linear: dict[Gate, Any] = {}  # the cost of each group that costs by itself
        self.costs: list[tuple[Stage, float]] = []  # the cost of one weight of each other stage
        if cost_of_weight is None:
            self.linear = dict.fromkeys(self.gates, 1.0)
            return
        for stage in stages:
            outs, ins, weights = stage.products
            each = cost_of_weight(stage.positions)
            alone = [f.gate for f in weights.factors if uses[f.gate] == 1 and f.first is None]
            if len(weights.factors) == len(alone) == 1 and not (outs.factors or ins.factors):
                self.linear[alone[0]] = each * weights.factors[0].sizes(weights.shape)
            else:
                self.costs.append((stage, each))

    def __call__(self) -> Tensor:
        """Return the expected cost, a Tensor of shape (), differentiable in phi if not frozen."""
        op = ExpectedCost(self.gates, self.linear, self.costs)
        return apply(op, *[gate.learned_phi() for gate in self.gates])


class ExpectedCost(Op):
    """The expected cost as a function of phi; ``forward`` computes the derivative too."""

    def __init__(
        self, gates: list[Gate], linear: dict[Gate, Any], costs: list[tuple[Stage, float]]
    ) -> None:
        self.gates, self.linear, self.costs = gates, linear, costs

    def forward(self, *phis: Array) -> Array:
        total, p, grads = 0.0, {}, {}
        self.slopes: list[Array] = []
        self.grads: list[Any] = []  # by the probabilities that gates are open
        places = []
        for gate, phi in zip(self.gates, phis, strict=True):
            listed, probability, slope = gate.open_tail(phi)
            places.append(listed)
            self.slopes.append(slope)
            if gate in self.linear:
                each = self.linear[gate]
                each = each if listed is None or np.ndim(each) == 0 else each[listed]
                total += float((each * probability).sum(dtype=np.float64))
                grads[gate] = each
            else:
                p[gate] = _everywhere(probability, listed, gate.count)
                grads[gate] = np.zeros(gate.count)
        for stage, cost in self.costs:
            total += cost * _expected_weights(stage, p, cost, grads)
        for gate, listed in zip(self.gates, places, strict=True):
            part = grads[gate]
            self.grads.append(part if listed is None or gate in self.linear else part[listed])
        self.grad_live = tuple(places)
        return np.asarray(total, np.result_type(np.float32, *phis))

    def backward(self, grad: Array) -> Gradients:
        parts = (
            np.asarray(float(grad) * part * slope, grad.dtype)
            for part, slope in zip(self.grads, self.slopes, strict=True)
        )
        listed = zip(self.gates, parts, self.grad_live, strict=True)
        return tuple(_everywhere(part, places, gate.count) for gate, part, places in listed)


def _everywhere(values: Array, places: Any, count: int) -> Array:
    """Return values with zeros between them."""
    if places is None or len(places) == count:
        return values
    out = np.zeros(count, values.dtype)
    out[places] = values
    return out


def _expected_weights(stage: Stage, p: Values, grad: float, grads: dict[Gate, Array]) -> float:
    """Return the expected number of weights left, given the probabilities that gates are open.

    Add ``grad`` times the derivative to ``grads``.
    """
    outs, ins, weights = stage.products
    if not weights.factors:
        total_out, total_in, size = outs.total(p), ins.total(p), stage.kernel_size
        ins.backward(grad * size * total_out, p, grads)
        outs.backward(grad * size * total_in, p, grads)
        return size * total_out * total_in
    if not (outs.factors or ins.factors):
        weights.backward(grad, p, grads)
        return weights.total(p)
    p_out, p_in = outs.values(p)[:, None], ins.values(p)
    left = weights.values(p).sum(axis=2)  # (O, I)
    # No matrix products: the order of their sums changes with the number of threads.
    by_output = (left * p_in).sum(axis=1)
    ins.backward(grad * (p_out * left).sum(axis=0), p, grads)
    outs.backward(grad * by_output, p, grads)
    weights.backward(grad * p_out[:, :, None] * p_in[:, None], p, grads)
    return float((p_out[:, 0] * by_output).sum())
