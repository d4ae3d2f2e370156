"""Vectors of LANES numbers, and tiles of them that stay in registers.

Kernels are loops over vectors. Each function here is one instruction of the processor, or a few.
LLVM could make vectors of plain loops too, but at times it takes another loop than the one meant.

A *tile* is memory on the stack. Once loops of constant length are unrolled, only constants index
the tile, so the compiler keeps it in registers. A NumPy array would stay in memory, because other
code may read it.
"""

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import carray, config, types  # type: ignore[attr-defined]  # not in its stubs
from numba.core.cgutils import alloca_once
from numba.extending import intrinsic

__all__ = [
    "LANES", "WIDE", "U", "add_product", "add_scaled", "copy", "fill", "registers", "take_larger",
    "tile",
]  # fmt: skip

#: Whether there are 32 registers of 16 numbers; otherwise 16 registers of 8.
WIDE = bool(llvm.get_host_cpu_features().get("avx512f", False))
LANES = 16 if WIDE else 8
MOST = 512  # numbers of a tile

# Indices are unsigned: Numba tests signed indices for negative values, which in the innermost
# loops would cost as much as the arithmetic.
U = np.uint64


def _registers(typingctx, like):
    """Return the address of memory on the stack for a tile with the dtype of ``like``."""

    def generate(context, builder, signature, arguments):
        return alloca_once(builder, context.get_value_type(like.dtype), size=MOST)

    return types.CPointer(like.dtype)(like), generate


def _fill(typingctx, target, at, value):
    """Set ``target[at : at + LANES] = value``."""

    def generate(context, builder, signature, arguments):
        array, index, number = arguments
        _store(context, builder, target, array, index, _spread(builder, number))

    return types.void(target, types.uint64, target.dtype), generate


def _copy(typingctx, target, at, source, start):
    """Set ``target[at : at + LANES] = source[start : start + LANES]``."""

    def generate(context, builder, signature, arguments):
        array, index, other, first = arguments
        values = _load(context, builder, source, other, first)
        _store(context, builder, target, array, index, values)

    return types.void(target, types.uint64, source, types.uint64), generate


def _add_scaled(typingctx, sums, at, x, start, factor):
    """Add ``factor * x[start : start + LANES]`` to ``sums[at : at + LANES]``."""

    def generate(context, builder, signature, arguments):
        array, index, other, first, number = arguments
        values = _load(context, builder, x, other, first)
        _add(context, builder, sums, array, index, values, _spread(builder, number))

    return types.void(sums, types.uint64, x, types.uint64, sums.dtype), generate


def _add_product(typingctx, sums, at, x, start, y, begin):
    """Add ``x[start : start + LANES] * y[begin : begin + LANES]`` to ``sums[at : at + LANES]``."""

    def generate(context, builder, signature, arguments):
        array, index, one, first, other, second = arguments
        a, b = _load(context, builder, x, one, first), _load(context, builder, y, other, second)
        _add(context, builder, sums, array, index, a, b)

    return types.void(sums, types.uint64, x, types.uint64, y, types.uint64), generate


def _take_larger(typingctx, target, at, source, start):
    """Set each number of ``target[at : at + LANES]`` to that of ``source``, if larger or NaN."""

    def generate(context, builder, signature, arguments):
        array, index, other, first = arguments
        old = _load(context, builder, target, array, index)
        new = _load(context, builder, source, other, first)
        is_nan = builder.fcmp_unordered("uno", new, new)
        taken = builder.or_(builder.fcmp_ordered(">", new, old), is_nan)
        _store(context, builder, target, array, index, builder.select(taken, new, old))

    return types.void(target, types.uint64, source, types.uint64), generate


def _add(context, builder, kind, array, index, a, b):
    # Multiplication and addition may become one instruction, where there is one.
    product = builder.fmul(a, b, flags=("contract",))
    total = builder.fadd(_load(context, builder, kind, array, index), product, flags=("contract",))
    _store(context, builder, kind, array, index, total)


def _address(context, builder, kind, array, index):
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def _load(context, builder, kind, array, index):
    vector = ir.VectorType(context.get_data_type(kind.dtype), LANES)
    address = builder.bitcast(_address(context, builder, kind, array, index), vector.as_pointer())
    return builder.load(address, align=kind.dtype.bitwidth // 8)


def _store(context, builder, kind, array, index, values):
    address = _address(context, builder, kind, array, index)
    address = builder.bitcast(address, values.type.as_pointer())
    builder.store(values, address, align=kind.dtype.bitwidth // 8)


def _spread(builder, number):
    """Return a vector of equal numbers."""
    vector = ir.VectorType(number.type, LANES)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.IntType(32)(0))
    places = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), places)


registers: Any = intrinsic(_registers)
tile: Any = carray
fill: Any = intrinsic(_fill)
copy: Any = intrinsic(_copy)
add_scaled: Any = intrinsic(_add_scaled)
add_product: Any = intrinsic(_add_product)
take_larger: Any = intrinsic(_take_larger)

if config.DISABLE_JIT:  # type: ignore[attr-defined]  # set on import
    end = U(LANES)
    registers = np.asarray

    def tile(like, shape):
        """Return an array with the dtype of ``like``."""
        return np.empty(shape, like.dtype)

    def fill(target, at, value):
        """Set a vector to equal numbers."""
        target[at : at + end] = value

    def copy(target, at, source, start):
        """Copy a vector."""
        target[at : at + end] = source[start : start + end]

    def add_scaled(sums, at, x, start, factor):
        """Add a multiple of a vector."""
        sums[at : at + end] += factor * x[start : start + end]

    def take_larger(target, at, source, start):
        """Take the numbers of another vector that are larger, or NaN."""
        old, new = target[at : at + end], source[start : start + end]
        target[at : at + end] = np.where((new > old) | np.isnan(new), new, old)

    def add_product(sums, at, x, start, y, begin):
        """Add the products of two vectors."""
        sums[at : at + end] += x[start : start + end] * y[begin : begin + end]
