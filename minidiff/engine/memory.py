"""Memory for results: aligned, and used again.

A training step makes the same large arrays as the one before. To give their memory back to the
operating system and to ask for it again costs more than to compute some of them.
"""

import math
import sys
import threading
from collections import defaultdict, deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._types import Array

__all__ = ["aligned", "empty", "plain", "rows", "zeros"]

ALIGNMENT = 64  # bytes: a vector that crosses this boundary costs two loads
SMALL = 1 << 16  # bytes, below which all of this matters little
LIMIT = 1 << 27  # unused bytes that are kept at most when more is needed

_lock = threading.Lock()
_buffers: defaultdict[int, deque[NDArray[np.uint8]]] = defaultdict(deque)


def empty(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Make an array that holds anything, as ``np.empty`` does.

    Unless it is small, it is aligned, and its memory is that of an array of the same size which
    nothing refers to any more, if there is one.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < SMALL:
        return np.empty(shape, dtype)
    with _lock:
        buffers = _buffers[size]
        for _ in range(len(buffers)):
            buffer, references = _take(buffers)
            buffers.append(buffer)
            if references == ALONE:
                return _view(buffer, shape, dtype, size)
        _give_back()
        buffer = np.empty(size + ALIGNMENT, np.uint8)
        _buffers[size].append(buffer)
        return _view(buffer, shape, dtype, size)


def _give_back() -> None:
    """Let go of all that is unused, if that is more than LIMIT."""
    unused = 0
    for size, buffers in _buffers.items():
        for _ in range(len(buffers)):
            buffer, references = _take(buffers)
            buffers.append(buffer)
            unused += size * (references == ALONE)
    for buffers in _buffers.values() if unused > LIMIT else ():
        for _ in range(len(buffers)):
            buffer, references = _take(buffers)
            if references != ALONE:
                buffers.append(buffer)


def _take(buffers: deque[NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], int]:
    """Take the first buffer out, and count what refers to it: every view of it does."""
    buffer = buffers.popleft()
    return buffer, sys.getrefcount(buffer)


ALONE = _take(deque([np.empty(0, np.uint8)]))[1]  # 2 or 1, by the version of Python


def _view(buffer: NDArray[np.uint8], shape: tuple[int, ...], dtype: Any, size: int) -> NDArray[Any]:
    first = -_address(buffer) % ALIGNMENT
    out: NDArray[Any] = buffer[first : first + size].view(dtype).reshape(shape)
    return out


def zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Make an array of zeros, as ``np.zeros`` does, in memory as of :func:`empty`."""
    out = empty(shape, dtype)
    out.fill(0)
    return out


def plain(x: Array) -> Array:
    """Return ``x`` itself if it is contiguous and writeable; else a copy, which kernels can take.

    (For read-only arrays each kernel would be compiled once more.)
    """
    return x if _is_plain(x) else np.array(x, order="C")


def aligned(x: Array) -> Array:
    """Return ``x`` itself if it is as of :func:`plain` and, unless small, aligned; else a copy."""
    if _is_plain(x) and (x.nbytes < SMALL or _address(x) % ALIGNMENT == 0):
        return x
    out = empty(x.shape, x.dtype)
    out[...] = x
    return out


def _is_plain(x: Array) -> bool:
    return x.flags.c_contiguous and x.flags.writeable


def rows(x: Array) -> Array:
    """See the slices along axis 0 as the rows of a matrix; a number as a matrix of one."""
    return x.reshape(len(x), math.prod(x.shape[1:])) if x.ndim else x.reshape(1, 1)


def _address(x: NDArray[Any]) -> int:
    address: int = x.__array_interface__["data"][0]
    return address
