"""Labelled images in three splits: MNIST, or the small digits of scikit-learn in its place."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minidiff.data.mnist import DataError, MissingDataError, load_mnist
from minidiff.io.extras import extra

__all__ = ["Dataset", "Pixels", "Split", "load_dataset"]

#: Images: uint8 in 0..255, or float32 in 0..1.
Pixels: TypeAlias = NDArray[np.uint8] | NDArray[np.float32]

DATASETS = ("auto", "mnist", "digits")
MNIST_TRAINING_IMAGES = 60_000
DIGITS_TRAINING_IMAGES = 1_197  # of 1,797; 300 are for validation and 300 for testing


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images.

    Attributes
    ----------
    images : ndarray of shape (N, C, H, W)
        uint8 in 0..255, or float32 in 0..1.
    labels : ndarray of int64, shape (N,)
        The class of each image, counted from 0.

    Raises
    ------
    DataError
        If a shape, a dtype or a value is not as above, or there is no image.

    Examples
    --------
    >>> len(Split(np.zeros((3, 1, 28, 28), np.uint8), np.array([5, 0, 4])))
    3
    """

    images: Pixels
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 4 or labels.shape != images.shape[:1] or images.size == 0:
            raise DataError(
                f"images have shape {images.shape} and labels {labels.shape}; expected "
                f"(N, C, H, W) and (N,), with at least one image and one pixel."
            )
        if images.dtype not in (np.uint8, np.float32) or labels.dtype != np.int64:
            raise DataError(
                f"images are {images.dtype} and labels {labels.dtype}; expected uint8 (0..255) or "
                f"float32 (0..1), and int64. Convert them with astype."
            )
        # Written so that NaN, which compares false with everything, is found too.
        if images.dtype == np.float32 and not (images.min() >= 0 and images.max() <= 1):
            raise DataError(
                f"float32 images go from {images.min()} to {images.max()}; expected 0..1. "
                f"Divide images in 0..255 by 255."
            )
        if labels.min() < 0:
            raise DataError(f"labels go down to {labels.min()}; expected 0 or more.")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def white(self) -> float:
        """Value of a white pixel, 255 for uint8 and 1 for float32."""
        return 255.0 if self.images.dtype == np.uint8 else 1.0


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits: to train on, to choose by (validation), and to report on (test).

    Attributes
    ----------
    name : str
        "mnist" or "digits".
    source : str
        A sentence for the reader on where the data came from.
    train, validation, test : Split
        Images of one shape (C, H, W) and one dtype. ``validation`` is None if all are trained on.
    classes : int
        The number of classes; labels are 0..classes-1.

    Raises
    ------
    DataError
        If the splits differ in image shape or dtype, or a label is out of range.

    Examples
    --------
    >>> grey = Split(np.full((2, 1, 28, 28), 51, np.uint8), np.array([0, 1]))
    >>> data = Dataset("grey", "Two images of one grey.", grey, None, grey)
    >>> round(data.mean, 3), round(data.std, 3)
    (0.2, 0.0)
    """

    name: str
    source: str
    train: Split
    validation: Split | None
    test: Split
    classes: int = 10

    def __post_init__(self) -> None:
        first = self.train.images
        for name in ("train", "validation", "test"):
            split: Split | None = getattr(self, name)
            if split is None:
                continue
            images = split.images
            if images.shape[1:] != first.shape[1:] or images.dtype != first.dtype:
                raise DataError(
                    f"{name} images are {images.shape[1:]} {images.dtype}; expected "
                    f"{first.shape[1:]} {first.dtype}, as in train."
                )
            if split.labels.max() >= self.classes:
                raise DataError(
                    f"{name} labels go up to {split.labels.max()}; expected at most "
                    f"{self.classes - 1} for {self.classes} classes."
                )

    @cached_property
    def mean(self) -> float:
        """Mean of all training pixels, scaled to 0..1."""
        return float(self.train.images.reshape(-1).mean(dtype=np.float64)) / self.train.white

    @cached_property
    def std(self) -> float:
        """Standard deviation of all training pixels, scaled to 0..1."""
        # einsum casts block by block; images.std() would hold a float64 copy of the whole split.
        pixels = self.train.images.reshape(-1)
        square = float(np.einsum("i,i->", pixels, pixels, dtype=np.float64)) / pixels.size
        mean = float(pixels.mean(dtype=np.float64))
        return math.sqrt(max(0.0, square - mean * mean)) / self.train.white


def load_dataset(name: str = "auto", *, validation: int = 5000, offline: bool = False) -> Dataset:
    """Load a dataset of 28x28 grey images of handwritten digits, uint8 of shape (N, 1, 28, 28).

    MNIST is read from ``$MINIDIFF_DATA_DIR/mnist``, else from the user's cache directory, else it
    is downloaded into that cache, which needs ``minidiff[train]``. MINIDIFF_DATA_DIR is never
    written to.

    Parameters
    ----------
    name
        "mnist"; "digits", the 1,797 digits of scikit-learn enlarged from 8x8, always split into
        1,197 for training, 300 for validation and 300 for testing; or "auto", which is MNIST if
        it can be loaded and digits otherwise, as ``source`` then says.
    validation
        The size of MNIST's validation set, the last of the 60,000 training images. 0 is for
        a last training on all of them, once everything has been chosen. It has no effect on
        digits, except that 0 trains on their 300 validation images too.
    offline
        Never download.

    Raises
    ------
    ValueError
        If ``name`` is unknown or ``validation`` is not an integer in 0..59999.
    MissingDataError
        If "mnist" is asked for, is not on this machine and cannot be downloaded.
    DataError
        If a file of MNIST has a wrong SHA-256. Such a file is never passed over.
    ImportError
        If an optional package is needed and not installed.

    Examples
    --------
    >>> data = load_dataset("digits")
    >>> data.train.images.shape, len(data.validation), len(data.test)
    ((1197, 1, 28, 28), 300, 300)
    """
    if name not in DATASETS:
        raise ValueError(f"dataset {name!r} is unknown; expected one of {', '.join(DATASETS)}.")
    if validation not in range(MNIST_TRAINING_IMAGES):
        raise ValueError(f"validation is {validation!r}; expected 0..{MNIST_TRAINING_IMAGES - 1}.")
    if name == "digits":
        return _digits(validation)
    try:
        arrays, source = load_mnist(offline=offline)
    except MissingDataError as missing:
        if name == "mnist":
            raise
        return _digits(validation, f" They stand in for MNIST. {missing}")
    return _dataset("mnist", f"MNIST, from {source}.", arrays, validation)


def _dataset(name: str, source: str, arrays: list[NDArray[Any]], validation: int) -> Dataset:
    """Cut the validation set, the last images, off the training images."""
    images, labels, test_images, test_labels = arrays
    cut = len(images) - validation
    return Dataset(
        name,
        source,
        train=_split(images[:cut], labels[:cut]),
        validation=_split(images[cut:], labels[cut:]) if validation else None,
        test=_split(test_images, test_labels),
    )


def _split(images: NDArray[np.uint8], labels: NDArray[Any]) -> Split:
    return Split(images[:, None], labels.astype(np.int64))  # (N, H, W) to (N, 1, H, W)


def _digits(validation: int, note: str = "") -> Dataset:
    bunch = extra("sklearn.datasets", "scikit-learn").load_digits()

    # As in MNIST, the digit fills 20x20 pixels in the middle of 28x28. Bilinear enlargement is
    # separable: one 20x8 matrix of interpolation weights, applied to rows and to columns.
    centres = (np.arange(20) + 0.5) * (8 / 20) - 0.5
    weights = np.stack([np.interp(centres, np.arange(8), unit) for unit in np.eye(8)], axis=1)
    enlarged = weights @ bunch.images @ weights.T * (255 / 16)
    images = np.pad(np.rint(enlarged).astype(np.uint8), ((0, 0), (4, 4), (4, 4)))

    # The file runs writer by writer, so the splits are drawn, with a seed that defines them.
    order = np.random.default_rng(1797).permutation(len(images))
    images, labels = images[order], bunch.target[order]
    arrays = [images[:1497], labels[:1497], images[1497:], labels[1497:]]
    source = "The 1,797 handwritten 8x8 digits of scikit-learn, enlarged to 28x28."
    return _dataset("digits", source + note, arrays, 300 if validation else 0)
