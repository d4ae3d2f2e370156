"""Random affine distortion of images, for training on more views than the data holds."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidiff.data.datasets import Pixels
from minidiff.engine.compiled import plain

__all__ = ["Affine", "transform"]


@dataclass(frozen=True)
class Affine:
    """Shift, turn and resize each image of a batch by amounts drawn uniformly.

    Attributes
    ----------
    shift : float
        Largest shift along each of the two axes, in pixels.
    rotation : float
        Largest turn about the centre to either side, in degrees.
    scale : float
        Sizes change by a factor within 1 - scale .. 1 + scale; below 1.

    Raises
    ------
    ValueError
        If a value is negative, not finite, or too large.

    Examples
    --------
    >>> images, rng = np.ones((2, 1, 28, 28), np.uint8), np.random.default_rng(0)
    >>> Affine(shift=3.0)(images, rng).shape
    (2, 1, 28, 28)
    """

    shift: float = 2.0
    rotation: float = 5.0
    scale: float = 0.10

    def __post_init__(self) -> None:
        for name, value, unit in (
            ("shift", self.shift, "pixels, 0 or more"),
            ("rotation", self.rotation, "degrees, 0 or more"),
            ("scale", self.scale, "0 or more and below 1"),
        ):
            if not (math.isfinite(value) and value >= 0) or (name == "scale" and value >= 1):
                raise ValueError(f"{name} is {value}; expected a finite number of {unit}.")

    def __call__(self, images: Pixels, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return distorted copies of ``images``.

        Parameters
        ----------
        images
            Shape (B, C, H, W), uint8 or float32.
        rng
            Always gives 4 B numbers, whatever the amounts, so that they do not change what is
            drawn after them.

        Returns
        -------
        ndarray of float32, shape (B, C, H, W)
            In the range of ``images`` (0..255 for uint8), widened to 0 where that is outside it.
        """
        draws = rng.uniform(-1.0, 1.0, size=(4, len(images)))
        return transform(
            images,
            shifts=self.shift * draws[:2].T,
            rotations=self.rotation * draws[2],
            factors=1.0 + self.scale * draws[3],
        )


def transform(
    images: Pixels,
    *,
    shifts: NDArray[np.float64],
    rotations: NDArray[np.float64],
    factors: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Resize and turn each image about its centre, then shift it, with bilinear resampling.

    What lies beyond the edge of an image counts as 0. Shifts by whole pixels are exact.

    Parameters
    ----------
    images
        Shape (B, C, H, W), uint8 or float32.
    shifts
        Shape (B, 2): pixels down and to the right.
    rotations
        Shape (B,): degrees, counter-clockwise.
    factors
        Shape (B,): positive; above 1 enlarges.

    Returns
    -------
    ndarray of float32, shape (B, C, H, W)

    Raises
    ------
    ValueError
        If a shape or dtype is not as above, or a number is not finite or a factor not positive.

    Examples
    --------
    >>> image, right = np.float32([[[[1, 2], [3, 4]]]]), np.array([[0, 1]])
    >>> transform(image, shifts=right, rotations=np.zeros(1), factors=np.ones(1))[0, 0]
    array([[0., 1.],
           [0., 3.]], dtype=float32)
    """
    if images.ndim != 4 or images.dtype not in (np.uint8, np.float32):
        raise ValueError(
            f"images are {images.shape} {images.dtype}; expected (B, C, H, W) uint8 or float32."
        )
    count = len(images)
    for name, values, shape in (
        ("shifts", shifts, (count, 2)),
        ("rotations", rotations, (count,)),
        ("factors", factors, (count,)),
    ):
        if values.shape != shape:
            raise ValueError(
                f"{name} have shape {values.shape}; expected {shape} for {count} images."
            )
        if not np.isfinite(values).all():
            raise ValueError(f"{name} hold a number which is not finite.")
    if not (factors > 0).all():
        raise ValueError(f"factors go down to {factors.min()}; expected positive numbers.")

    angles = np.deg2rad(rotations)
    inverses = np.column_stack((np.cos(angles) / factors, np.sin(angles) / factors, shifts))
    pixels: NDArray[Any] = np.ascontiguousarray(images)
    result = np.empty(images.shape, dtype=np.float32)
    _resample(pixels, inverses.astype(np.float64), result)
    return result


# One thread: a batch takes under a millisecond, and the result cannot depend on their number.
@plain
def _resample(images: Pixels, inverses: NDArray[np.float64], result: NDArray[np.float32]) -> None:
    count, channels, height, width = images.shape
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    for n in range(count):
        cos, sin, shift_y, shift_x = inverses[n]
        for y in range(height):
            for x in range(width):
                # Where the pixel comes from: undo the shift, then the turn (rows count down).
                from_y, from_x = y - middle_y - shift_y, x - middle_x - shift_x
                source_y = middle_y + cos * from_y + sin * from_x
                source_x = middle_x + cos * from_x - sin * from_y
                top, left = math.floor(source_y), math.floor(source_x)
                down, right = source_y - top, source_x - left
                for c in range(channels):
                    value = 0.0
                    for i, weight_y in ((top, 1 - down), (top + 1, down)):
                        for j, weight_x in ((left, 1 - right), (left + 1, right)):
                            if 0 <= i < height and 0 <= j < width:
                                value += weight_y * weight_x * images[n, c, i, j]
                    result[n, c, y, x] = value
