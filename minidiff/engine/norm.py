"""Batch normalisation, and how it folds into the layer before it."""

import copy
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from . import functional
from .arrays import Array, Shape, matrix
from .module import Module, Parameter
from .tensor import Tensor

__all__ = ["BatchNorm"]


class BatchNorm(Module):
    """Normalise each channel or feature over the batch, then scale and shift it.

    In training, with the mean and variance of the batch; these also move the running mean and
    variance, with which evaluation normalises (Ioffe & Szegedy 2015, arXiv:1502.03167). Behind a
    layer with weights, :func:`~minidiff.compact`, Predictor and export fold it into that layer.
    Gates belong behind it, where :func:`~minidiff.gate` puts them: a gate in front would be undone
    by the normalisation.

    Parameters
    ----------
    channels
        The number of channels or features.
    momentum
        The share of a batch in the running mean and variance.
    eps
        The number added to the variance.
    dtype
        float32 or float64.

    Raises
    ------
    ValueError
        If a setting is out of range. When called, if the input does not fit, or has one number a
        channel in training.

    Examples
    --------
    >>> norm = BatchNorm(2)
    >>> norm([[1.0, 3.0], [10.0, 30.0]]).data.round(2)
    array([[-1.,  1.],
           [-1.,  1.]], dtype=float32)
    >>> norm.mean.data
    array([0.2, 2. ], dtype=float32)
    """

    channelwise = True
    settings = ("channels", "momentum", "eps", "dtype")

    def __init__(
        self,
        channels: int,
        *,
        momentum: float = 0.1,
        eps: float = 1e-5,
        dtype: DTypeLike = np.float32,
    ) -> None:
        if not isinstance(channels, int | np.integer) or channels < 1:
            raise ValueError(f"BatchNorm: {channels!r} channels; expected an integer >= 1.")
        if not (0 <= momentum <= 1 and eps > 0):
            raise ValueError(
                f"BatchNorm: momentum is {momentum} and eps is {eps}; expected 0 to 1, and above 0."
            )
        self.channels, self.momentum, self.eps = int(channels), float(momentum), float(eps)
        dtype = functional.float_dtype(dtype)
        self.weight, self.bias = (
            Parameter(np.ones(channels, dtype)),
            Parameter(np.zeros(channels, dtype)),
        )
        self.mean, self.variance = (
            Parameter(np.zeros(channels, dtype)),
            Parameter(np.ones(channels, dtype)),
        )
        self.mean.requires_grad = self.variance.requires_grad = False

    @property
    def dtype(self) -> str:
        """The name of the dtype."""
        return self.weight.dtype.name

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[:1] != (self.channels,) or x.ndim < 2:
            raise ValueError(
                f"BatchNorm of {self.channels} does not fit an input of shape {x.shape}. "
                f"{functional.BATCH_LAST}"
            )
        if not self.training:
            ends = (-1, *[1] * (x.ndim - 1))
            factor = self.weight / (self.variance + self.eps).sqrt()
            return x * factor.reshape(ends) + (self.bias - self.mean * factor).reshape(ends)
        out, mean, variance = functional.batch_norm(x, self.weight, self.bias, eps=self.eps)
        count = x.size // self.channels
        share, dtype = self.momentum, self.mean.dtype
        unbiased = variance * (count / (count - 1))
        self.mean.data = np.asarray((1 - share) * self.mean.data + share * mean, dtype)
        self.variance.data = np.asarray((1 - share) * self.variance.data + share * unbiased, dtype)
        return out

    def folded(self, layer: Any, weight: Array, bias: Array) -> Any:
        """Return a copy of a layer that also normalises its output, as in evaluation.

        ``weight``, (O, ...), and ``bias`` are those of the layer, gates included.
        """
        factor = self.weight.data / np.sqrt(self.variance.data.astype(np.float64) + self.eps)
        shift = self.bias.data - self.mean.data * factor
        both = copy.copy(layer)
        scaled = (matrix(weight) * factor[:, None]).reshape(weight.shape)
        both.weight = Parameter(scaled.astype(weight.dtype))
        both.bias = Parameter((bias * factor + shift).astype(bias.dtype))
        return both

    def output_shape(self, shape: Shape) -> Shape:
        if shape[:1] != (self.channels,):
            raise ValueError(
                f"BatchNorm does not fit an input of shape {shape}; expected ({self.channels}, "
                f"...), without the batch."
            )
        return shape

    def map_channels(self, channels: Any, shape: Shape) -> Any:
        return channels  # each number stays in its position
