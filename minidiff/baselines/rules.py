"""Rules that look at weights: group lasso and magnitude pruning.

Gates are not learned here: a rule opens and closes them. So layers, skipping, counts and compaction
are those of learned gates.
"""

import math
from collections.abc import Callable

import numpy as np

from minidiff.engine.arrays import Array, Indices
from minidiff.engine.module import Module, Parameter
from minidiff.pruning.gated import Gated, fold_gates
from minidiff.pruning.gates import Gate

__all__ = ["GroupLasso", "MagnitudePruning"]


class WeightGroups:
    """The groups of one gate, and the weights in each."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.layouts: list[
            tuple[Parameter, Indices]
        ] = []  # weights, with the group of each element

    def _sums(self, values: Callable[[Parameter], Array]) -> Array:
        total: Array = np.zeros(self.gate.count)
        for parameter, labels in self.layouts:
            # First along the axes on which groups do not depend: for rows, that is all.
            axes = tuple(i for i, n in enumerate(labels.shape) if n == 1)
            sums = values(parameter).sum(axis=axes).ravel()
            total += np.bincount(labels.ravel(), sums, self.gate.count)
        return total

    def norms(self) -> Array:
        """Return the L2 norm of each group of weights, shape (count,); ArithmeticError if none."""
        norms = np.sqrt(self._sums(lambda parameter: parameter.data**2))
        if not np.isfinite(norms).all():
            raise ArithmeticError(
                "weights are not finite, so groups have no norms; lower the learning rate."
            )
        return norms

    def sizes(self) -> Array:
        """Return the number of weights in each group."""
        return self._sums(lambda parameter: np.ones(parameter.shape))

    def scale(self, factors: Array) -> None:
        """Multiply each group by a factor, in place."""
        for parameter, labels in self.layouts:
            parameter.data = parameter.data * factors.astype(parameter.dtype)[labels]


def weight_groups(model: Module) -> list[WeightGroups]:
    """List the groups of weights, not biases, that the gates of a model's layers define.

    Gates that are partly open are folded into weights, in place.
    """
    found: dict[Gate, WeightGroups] = {}
    for module in model.modules():
        if not isinstance(module, Gated):
            continue
        weight, layout = module.layouts()[0]
        for gate, labels in layout:
            if gate.noise is not None:
                raise ValueError(
                    f"the model has a stochastic {type(gate).__name__}, whose noise opens again "
                    f"what a rule has closed; expected deterministic gates, such as Gate(count)."
                )
            layouts = found.setdefault(gate, WeightGroups(gate)).layouts
            # A weight that is used in several places counts once.
            if not any(weight is w and np.array_equal(labels, known) for w, known in layouts):
                layouts.append((weight, labels))
    if not found:
        raise ValueError("the model has no Gated layer, so no groups of weights to prune.")
    values = [gate.evaluated() for gate in found]
    if any(((z > 0) & (z < 1)).any() for z in values):
        fold_gates(model)  # rules open gates fully, and outputs are to stay
    return list(found.values())


class GroupLasso:
    """Group lasso (Yuan & Lin 2006; for filters and units Wen et al. 2016, arXiv:1608.03665).

    The penalty is ``strength * sum_g sqrt(size_g) * |w_g|`` over the groups of weights that the
    model's gates define. Its proximal step, taken after each step of SGD, multiplies each group by
    ``max(0, 1 - lr * strength * sqrt(size_g) / |w_g|)``. Gates are binary, and not learned: a
    group that reaches 0 gets its gate closed for good. Groups that overlap, as those of a layer's
    inputs and outputs do, take their steps in turn.

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

    >>> from minidiff import nn
    >>> layer = Gated(nn.Linear(2, 2, rng=np.random.default_rng(0)), outputs=Gate(2))
    >>> layer.layer.weight.data[:] = [[0.03, 0.04], [3.0, 4.0]]
    >>> GroupLasso(layer).step(lr=0.1, strength=1.0)
    >>> layer.outputs().data, layer.layer.weight.data[1].round(2)
    (array([0., 1.], dtype=float32), array([2.92, 3.89], dtype=float32))
    """

    def __init__(self, model: Module) -> None:
        self.groups = [(part, np.sqrt(part.sizes())) for part in weight_groups(model)]

    def step(self, lr: float, strength: float) -> None:
        """Shrink every group; ``lr`` is that of the step of SGD before."""
        if not (0 <= lr < math.inf and 0 <= strength < math.inf):
            raise ValueError(
                f"lr is {lr} and strength {strength}; expected finite numbers, 0 or more."
            )
        for part, roots in self.groups:
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
    compared as they are, over all layers. Gates are binary, and not learned.

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
    >>> from minidiff import nn
    >>> layer = Gated(nn.Linear(2, 2, rng=np.random.default_rng(0)), outputs=Gate(2))
    >>> layer.layer.weight.data[:] = [[0.03, 0.04], [3.0, 4.0]]
    >>> MagnitudePruning(layer, keep=0.5).step(progress=1.0)
    >>> layer.outputs().data
    array([0., 1.], dtype=float32)
    """

    def __init__(self, model: Module, keep: float) -> None:
        if not 0 < keep <= 1:
            raise ValueError(f"keep is {keep}; expected a share above 0 and at most 1.")
        self.parts, self.keep = weight_groups(model), keep
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
