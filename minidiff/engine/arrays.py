"""Arrays for kernels: their types, aligned memory, and the live rows that hold their values.

The *rows* of an array are its slices along axis 0: channels, features, filters or units.
"""

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.floating[Any]]
Indices: TypeAlias = NDArray[np.int64]
Shape: TypeAlias = tuple[int, ...]


class Elements(NamedTuple):
    """The elements of an array that are live; all others are zero."""

    places: Indices  # in the flat array, increasing


#: What of an array is live: rows, listed in increasing order, or single elements; None for all.
Live: TypeAlias = Indices | Elements | None

ALIGNMENT = 64  # bytes: a vector that crosses this boundary costs two loads
SMALL = 1 << 16  # bytes, below which alignment does not pay


def empty(shape: Shape, dtype: Any) -> NDArray[Any]:
    """Return an uninitialised array, aligned unless it is small."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < SMALL:
        return np.empty(shape, dtype)
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    start = -_address(buffer) % ALIGNMENT
    out: NDArray[Any] = buffer[start : start + size].view(dtype).reshape(shape)
    return out


def zeros(shape: Shape, dtype: Any) -> NDArray[Any]:
    """Return an array of zeros, aligned unless it is small."""
    out = empty(shape, dtype)
    out.fill(0)
    return out


def real(values: Any, dtype: Any = None) -> Array:
    """Return real numbers in ``dtype``; share an array that has this dtype already.

    Without a dtype, arrays of float64 keep it and all else becomes float32. Floats are rounded to
    the dtype. TypeError for anything but real numbers of at most 64 bits. ValueError for a number
    beyond the range of the dtype, or if an array holds integers that the dtype would round.
    """
    if type(values) is np.ndarray and values.dtype == dtype:
        return values
    given = np.asarray(values)
    if given.dtype.kind not in "biuf" or given.dtype.itemsize > 8:
        raise TypeError(
            f"array is of {given.dtype}; expected real numbers of at most 64 bits, such as float32."
        )
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError("array is masked; expected an array without a mask, as .filled(0) gives.")
    if dtype is None:
        typed = isinstance(values, np.ndarray | np.generic)
        is_double = typed and given.dtype.kind == "f" and given.dtype.itemsize == 8
        dtype = np.float64 if is_double else np.float32
    with np.errstate(over="ignore", invalid="ignore"):
        out: Array = given.astype(dtype, copy=False)
        if out is given:
            return out
        # A single number is rounded, as 0.1 is.
        rounded = given.dtype.kind in "iu" and given.ndim and out.astype(given.dtype) != given
    if np.any(rounded) or (np.isinf(out) & np.isfinite(given)).any():
        raise ValueError(
            f"array is of {given.dtype}, up to {np.abs(given).max():.8g}, which {out.dtype} cannot "
            f"hold; expected smaller numbers, or an array of float64."
        )
    return out


def check_scale(mean: float, std: float) -> None:
    """Raise ValueError unless float32 can compute ``(x - mean) / std``, and in 0..255 too."""
    if not (abs(mean) <= 1e35 and 1e-35 <= std <= 1e35):
        raise ValueError(
            f"mean is {mean} and std is {std}; expected numbers that float32 can divide by: std "
            f"from 1e-35 to 1e35, and mean up to that."
        )


def plain(x: Array) -> Array:
    """Return ``x`` if it is contiguous and writeable, else a copy.

    Numba would compile every kernel a second time for read-only arrays.
    """
    return x if x.flags.c_contiguous and x.flags.writeable else np.array(x, order="C")


def aligned(x: Array) -> Array:
    """Return ``x`` if it is plain and, unless small, aligned; else a copy."""
    if plain(x) is x and (x.nbytes < SMALL or _address(x) % ALIGNMENT == 0):
        return x
    out = empty(x.shape, x.dtype)
    out[...] = x
    return out


def matrix(x: NDArray[Any]) -> NDArray[Any]:
    """View an array as a matrix with the same rows, and a scalar as a 1x1 matrix."""
    return x.reshape(len(x), math.prod(x.shape[1:])) if x.ndim else x.reshape(1, 1)


def row_list(live: Live, count: int) -> Indices:
    """Return ``live``, which lists rows, or all ``count`` rows if ``live`` is None."""
    assert not isinstance(live, Elements)
    return np.arange(count) if live is None else live


def slices(x: NDArray[Any], live: Indices | Elements) -> tuple[NDArray[Any], Indices]:
    """Return a view of a contiguous array whose rows ``live`` lists, and their numbers."""
    return (x.reshape(-1), live.places) if isinstance(live, Elements) else (x, live)


def filled(x: Array, live: Live) -> Array:
    """Return ``x`` with zeros where it is dead: a copy if anything is dead, else ``x`` itself."""
    if live is None:
        return x
    source, at = slices(x, live)
    if len(at) == len(source):
        return x
    out = np.zeros(x.shape, x.dtype)
    slices(out, live)[0][at] = source[at]
    return out


def read_only(x: Array) -> Array:
    """Return a view that cannot be written to."""
    view = x.view()
    view.flags.writeable = False
    return view


def is_view(x: Array, others: list[Array]) -> bool:
    """Return whether x shares memory with one of the others, or is one of them."""
    owner = x if x.base is None else x.base
    return bool([y for y in others if owner is y or owner is y.base])


def _address(x: NDArray[Any]) -> int:
    address: int = x.__array_interface__["data"][0]
    return address
