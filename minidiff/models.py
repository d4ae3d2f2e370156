"""Networks of the literature, with gates or without."""

from collections.abc import Callable
from typing import Any

import numpy as np

from minidiff.engine import nn
from minidiff.engine.module import Module, Sequential
from minidiff.pruning.gated import gate
from minidiff.pruning.gates import Gate

__all__ = ["MODELS", "SPARSITIES", "LeNet5", "LeNet300"]

#: What may be gated in the networks here, see :class:`LeNet5`.
SPARSITIES = ("structured", "unstructured", "combined", "dense")


def _gating(sparsity: str, kind: type[Gate], settings: dict[str, Any]) -> Callable[..., Module]:
    """Return a function that gates a layer: the roles it names, or its weights one by one."""
    if sparsity not in SPARSITIES:
        raise ValueError(f"sparsity is {sparsity!r}; expected one of {', '.join(SPARSITIES)}.")

    def gated(layer: nn.Conv2d | nn.Linear, *roles: str) -> Module:
        if sparsity in ("dense", "unstructured"):
            roles = ()
        if sparsity in ("unstructured", "combined"):
            roles = (*roles, "weights")
        return gate(layer, *roles, kind=kind, **settings) if roles else layer

    return gated


def _dropout(share: float, rng: np.random.Generator) -> dict[str, Module]:
    return {"dropout": nn.Dropout(share, rng=rng)} if share else {}


class LeNet5(Sequential):
    """LeNet-5-Caffe for 28x28 images, 430,500 weights and 2,293,000 MACs.

    Convolution 5x5 with 20 filters, pool; convolution 5x5 with 50, pool; dense 500; dense 10 (LeCun
    et al. 1998, in the sizes of Caffe's example). ReLU after both convolutions and the first dense
    layer, as in the code of Louizos et al. (2018); Caffe's example has only the last of these.

    Parameters
    ----------
    rng
        Draws the initial weights, and the noise of stochastic gates.
    sparsity
        "structured": gates on the filters of both convolutions, on the 800 inputs of the first
        dense layer, and on its 500 outputs. "unstructured": a gate on each weight. "combined":
        both; then whole filters and units close first, and training is quicker. "dense": none.
    kind
        The class of the gates.
    dropout
        The share of pixels that are dropped in training, see :class:`~minidiff.nn.Dropout`.
    settings
        Of the gates, such as width, initial, noise, sigma.

    Raises
    ------
    ValueError
        If ``sparsity`` is none of these, or a setting is out of range.

    Examples
    --------
    >>> model = LeNet5(rng=np.random.default_rng(0))
    >>> model(np.zeros((1, 28, 28, 2), np.float32)).shape
    (10, 2)
    """

    input_shape = (1, 28, 28)

    def __init__(
        self,
        *,
        rng: np.random.Generator,
        sparsity: str = "structured",
        kind: type[Gate] = Gate,
        dropout: float = 0.0,
        **settings: Any,
    ) -> None:
        gated = _gating(sparsity, kind, {"rng": rng, **settings})
        super().__init__(
            **_dropout(dropout, rng),
            conv1=gated(nn.Conv2d(1, 20, 5, rng=rng), "outputs"),  # (20, 24, 24, N)
            pool1=nn.MaxPool2d(2, relu=True),  # (20, 12, 12, N)
            conv2=gated(nn.Conv2d(20, 50, 5, rng=rng), "outputs"),  # (50, 8, 8, N)
            pool2=nn.MaxPool2d(2, relu=True),  # (50, 4, 4, N)
            flatten=nn.Flatten(),  # (800, N)
            dense1=gated(nn.Linear(800, 500, rng=rng), "inputs", "outputs"),  # (500, N)
            relu=nn.ReLU(),
            dense2=gated(nn.Linear(500, 10, rng=rng)),  # (10, N)
        )


class LeNet300(Sequential):
    """LeNet-300-100 for 28x28 images: dense layers only, 266,200 weights (LeCun et al. 1998).

    Structured gates are on the 784 pixels and on the units of both hidden layers.

    Parameters
    ----------
    rng, sparsity, kind, dropout, settings
        As in :class:`LeNet5`.

    Raises
    ------
    ValueError
        As in :class:`LeNet5`.

    Examples
    --------
    >>> model = LeNet300(rng=np.random.default_rng(0))
    >>> model(np.zeros((1, 28, 28, 2), np.float32)).shape
    (10, 2)
    """

    input_shape = (1, 28, 28)

    def __init__(
        self,
        *,
        rng: np.random.Generator,
        sparsity: str = "structured",
        kind: type[Gate] = Gate,
        dropout: float = 0.0,
        **settings: Any,
    ) -> None:
        gated = _gating(sparsity, kind, {"rng": rng, **settings})
        super().__init__(
            **_dropout(dropout, rng),
            flatten=nn.Flatten(),  # (784, N)
            dense1=gated(nn.Linear(784, 300, rng=rng), "inputs", "outputs"),  # (300, N)
            relu1=nn.ReLU(),
            dense2=gated(nn.Linear(300, 100, rng=rng), "outputs"),  # (100, N)
            relu2=nn.ReLU(),
            dense3=gated(nn.Linear(100, 10, rng=rng)),  # (10, N)
        )


#: The networks here by name.
MODELS: dict[str, type[LeNet5] | type[LeNet300]] = {"lenet5": LeNet5, "lenet300": LeNet300}
