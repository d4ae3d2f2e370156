"""Batches of normalised images, with the batch as the last axis, as networks take them."""

import math
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from minidiff.data.datasets import Pixels, Split
from minidiff.engine.functional import generator

__all__ = ["Augment", "batches"]

#: A function of images and a generator, such as an :class:`~minidiff.data.augment.Affine`.
Augment: TypeAlias = Callable[[Pixels, np.random.Generator], Pixels]


def batches(
    split: Split,
    size: int,
    *,
    mean: float,
    std: float,
    rng: np.random.Generator | None = None,
    augment: Augment | None = None,
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Run once over a split in batches of normalised images, batch last.

    Parameters
    ----------
    split
        The N images to run over.
    size
        Images in a batch, B; the last batch holds the remaining ones.
    mean, std
        Of pixels scaled to 0..1; each pixel becomes (pixel - mean) / std.
    rng
        Draws one permutation of the split; None keeps its order.
    augment
        Called with the images of each batch, shape (B, C, H, W) in the dtype of the split, and
        ``rng``. It returns images in the same range of values.

    Yields
    ------
    images : ndarray of float32, shape (C, H, W, B)
        C-contiguous, and a new array for each batch.
    labels : ndarray of int64, shape (B,)

    Raises
    ------
    TypeError
        If ``rng`` is not a generator, or is None although ``augment`` is given.
    ValueError
        If ``size`` is below 1, ``mean`` is not finite, or ``std`` not positive and finite.

    Examples
    --------
    >>> split = Split(np.zeros((5, 1, 28, 28), np.uint8), np.arange(5))
    >>> [images.shape for images, labels in batches(split, 2, mean=0.13, std=0.31)]
    [(1, 28, 28, 2), (1, 28, 28, 2), (1, 28, 28, 1)]
    """
    if size < 1:
        raise ValueError(f"size is {size}; expected at least 1 image in a batch.")
    if not (math.isfinite(mean) and 0 < std < math.inf):
        raise ValueError(f"mean is {mean}, std is {std}; expected finite numbers, std above 0.")
    order = np.arange(len(split)) if rng is None else generator(rng).permutation(len(split))
    # An augmented image keeps the range of the split, whatever its dtype, hence one scale.
    shift, factor = split.white * mean, 1 / (split.white * std)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        images = split.images[chosen]
        if augment is not None:
            images = augment(images, generator(rng))
        # Transposed while still uint8, which takes a quarter of the memory of float32.
        batch_last = np.ascontiguousarray(np.moveaxis(images, 0, -1))  # (C, H, W, B)
        batch = np.subtract(batch_last, shift, dtype=np.float32)
        batch *= factor
        yield batch, split.labels[chosen]
