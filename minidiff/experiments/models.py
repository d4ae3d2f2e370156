"""Networks of the literature, with gates or without."""

from typing import Any

import numpy as np

from minidiff.engine import nn
from minidiff.engine.nn import Module, Sequential
from minidiff.pruning.gates import Gate, Gated

__all__ = ["LeNet5"]


class LeNet5(Sequential):
    """LeNet-5-Caffe for 28x28 images, 430,500 weights and 2,293,000 MACs.

    Convolution 5x5 with 20 filters, pool; convolution 5x5 with 50, pool; dense 500; dense 10; ReLU
    after both convolutions and the first dense layer (LeCun et al. 1998, as in the Caffe
    example). Gated, it has gates on the filters of both convolutions, on the 800 inputs of the
    first dense layer, and on its 500 outputs.

    Parameters
    ----------
    rng
        Draws the initial weights, and the noise of stochastic gates.
    gated
        Whether it has gates.
    gate
        Settings of :class:`~minidiff.pruning.gates.Gate`: width, initial, noise, sigma.

    Examples
    --------
    >>> model = LeNet5(rng=np.random.default_rng(0))
    >>> model(np.zeros((1, 28, 28, 2), np.float32)).shape
    (10, 2)
    """

    input_shape = (1, 28, 28)

    def __init__(self, *, rng: np.random.Generator, gated: bool = True, **gate: Any) -> None:
        def layer(inner: nn.Conv2d | nn.Linear, *roles: str) -> Module:
            if not gated:
                return inner
            outputs, inputs = inner.weight.shape[:2]
            return Gated(
                inner,
                inputs=Gate(inputs, rng=rng, **gate) if "inputs" in roles else None,
                outputs=Gate(outputs, rng=rng, **gate) if "outputs" in roles else None,
            )

        super().__init__(
            conv1=layer(nn.Conv2d(1, 20, 5, rng=rng), "outputs"),  # (20, 24, 24, N)
            pool1=nn.MaxPool2d(2, relu=True),  # (20, 12, 12, N)
            conv2=layer(nn.Conv2d(20, 50, 5, rng=rng), "outputs"),  # (50, 8, 8, N)
            pool2=nn.MaxPool2d(2, relu=True),  # (50, 4, 4, N)
            flatten=nn.Flatten(),  # (800, N)
            dense1=layer(nn.Linear(800, 500, rng=rng), "inputs", "outputs"),  # (500, N)
            relu=nn.ReLU(),
            dense2=nn.Linear(500, 10, rng=rng),  # (10, N)
        )
