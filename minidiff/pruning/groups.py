"""Groups: a partition of an array's elements, one gate for each group."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from minidiff.engine.arrays import Indices, Shape

__all__ = ["Groups"]


@dataclass(frozen=True, eq=False)
class Groups:
    """A partition of the elements of an array.

    Attributes
    ----------
    labels : ndarray of int64
        The group of each element, 0..count-1, with as many axes as the array. An axis of length 1
        broadcasts. No group is empty.

    Raises
    ------
    ValueError
        If the labels are empty, not integers, or not all the numbers from 0 to the largest.

    Examples
    --------
    >>> filters = Groups.along((20, 1, 5, 5), 0)  # a group for each filter
    >>> filters.count, filters.labels.shape
    (20, (20, 1, 1, 1))
    """

    labels: Indices

    def __post_init__(self) -> None:
        given = np.asarray(self.labels)
        if given.size == 0 or given.dtype.kind not in "iu":
            raise ValueError(
                f"labels are {given.dtype} of shape {given.shape}; expected integers, not empty."
            )
        labels = given.astype(np.int64)
        present = np.unique(labels)
        if present[0] != 0 or present[-1] != len(present) - 1:
            raise ValueError(
                f"labels run from {present[0]} to {present[-1]} with {len(present)} different "
                f"ones; expected every number from 0 on. np.unique(labels, return_inverse=True) "
                f"renumbers them."
            )
        object.__setattr__(self, "labels", labels)

    @cached_property
    def count(self) -> int:
        """The number of groups."""
        return int(self.labels.max()) + 1

    @cached_property
    def in_order(self) -> bool:
        """Whether the groups are the elements of ``labels``, in order."""
        return np.array_equal(self.labels.ravel(), np.arange(self.labels.size))

    @cached_property
    def rows(self) -> Indices | None:
        """The group of each row (slice along axis 0); None if a row has several groups.

        The length is 1 if one group covers all rows. Rows are channels, features or filters, so
        closing a row saves work.
        """
        rows = self.labels.reshape(len(self.labels), -1)
        return np.asarray(rows[:, 0]) if (rows == rows[:, :1]).all() else None

    def labels_in(self, shape: Shape) -> Indices | None:
        """Return the labels; None if the groups of an array of ``shape`` are rows or elements."""
        sizes = self.labels.shape
        ordered = self.in_order and (sizes == shape or sizes == (shape[0], *[1] * (len(shape) - 1)))
        return None if ordered else self.labels

    def fits(self, shape: Shape) -> bool:
        """Return whether the labels broadcast to ``shape``, with the same number of axes."""
        sizes = self.labels.shape
        return len(sizes) == len(shape) and all(
            n in (1, m) for n, m in zip(sizes, shape, strict=True)
        )

    @classmethod
    def along(cls, shape: Iterable[int], axes: int | Iterable[int]) -> "Groups":
        """Group elements by position along ``axes``, and share a group along all other axes.

        Raises ValueError if ``axes`` is empty or an axis is not in 0..len(shape)-1.

        >>> Groups.along((2, 3), 1).labels
        array([[0, 1, 2]])
        """
        shape = tuple(shape)
        axes = (axes,) if isinstance(axes, int | np.integer) else tuple(axes)
        kept = [n if i in axes else 1 for i, n in enumerate(shape)]
        if not axes or any(not 0 <= a < len(shape) for a in axes):
            raise ValueError(f"axes {axes} do not fit an array of shape {shape}.")
        return cls(np.arange(math.prod(kept)).reshape(kept))

    @classmethod
    def elements(cls, shape: Iterable[int]) -> "Groups":
        """Give each element a group of its own (unstructured sparsity)."""
        shape = tuple(shape)
        return cls.along(shape, range(len(shape)))

    @classmethod
    def blocks(cls, shape: Iterable[int], block: Iterable[int]) -> "Groups":
        """Cut an array into blocks along its first axes; blocks at the far ends may be smaller.

        Elements that differ only along axes without a block size share a group: blocks (4, 4) of a
        convolution's weight (O, I, KH, KW) hold whole kernels. Raises ValueError unless ``block``
        has integers >= 1, at most one for each axis.

        >>> Groups.blocks((2, 5), (2, 2)).labels
        array([[0, 0, 1, 1, 2],
               [0, 0, 1, 1, 2]])
        """
        shape, given = tuple(shape), block
        block = tuple(given) if isinstance(given, Iterable) else ()
        if not 0 < len(block) <= len(shape) or any(
            not isinstance(size, int | np.integer) or size < 1 for size in block
        ):
            raise ValueError(
                f"block {given} does not fit an array of shape {shape}; expected 1 to "
                f"{len(shape)} integers >= 1."
            )
        labels = np.zeros((1,) * len(shape), np.int64)
        for axis, size in enumerate(block):
            number = np.arange(shape[axis]) // size
            labels = labels * (number[-1] + 1) + number.reshape(-1, *[1] * (len(shape) - axis - 1))
        return cls(labels)

    @classmethod
    def by(cls, labels: ArrayLike) -> "Groups":
        """Group by labels of any kind, numbered in sorted order.

        >>> Groups.by([["a", "b"], ["b", "c"]]).labels
        array([[0, 1],
               [1, 2]])
        """
        array = np.asarray(labels)
        return cls(np.unique(array, return_inverse=True)[1].reshape(array.shape))
