"""How loops are compiled: decorators around Numba's, for kernels and for what they call."""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

import llvmlite.binding as llvm
from numba import config, njit
from numba.core.codegen import get_host_cpu_features

__all__ = ["inner", "serial", "threaded"]

# Threads that wait for others do so in a busy loop, but soon fall asleep: to wait for long would
# make a step ten times slower wherever a machine has other work too. GNU's OpenMP reads this when
# the first parallel kernel starts, and so do processes that this one starts.
SPIN_COUNT_SET_HERE = "GOMP_SPINCOUNT" not in os.environ
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# On many of Intel's processors LLVM takes but half the width of registers of 512 bits, for fear of
# a lower clock. Register tiles are made for all of it, and would not fit in: kernels took twice as
# long. It is a setting of all that Numba compiles in the process.
settings: Any = config
if settings.CPU_FEATURES is None and llvm.get_host_cpu_features().get("avx512f", False):
    host = get_host_cpu_features()  # type: ignore[no-untyped-call]  # Numba has no types
    settings.CPU_FEATURES = f"{host},-prefer-256-bit"

# Sums may be reordered; NaN and infinity keep their meaning (unlike under full fastmath).
FASTMATH = {"reassoc", "contract", "arcp", "nsz"}

# Only what says prange runs in parallel: to start threads for a short vector costs more than it.
PRANGE = {
    **dict.fromkeys(("comprehension", "reduction", "inplace_binop", "setitem"), False),
    **dict.fromkeys(("numpy", "stencil", "fusion"), False),
    "prange": True,
}

Function: TypeAlias = Callable[..., Any]


def _compiled(**options: Any) -> Callable[[Function], Function]:
    """Return a decorator: its functions compile when first called, and are kept on disk."""

    def decorate(function: Function) -> Function:
        if settings.DISABLE_JIT:  # NUMBA_DISABLE_JIT=1: everything runs, slowly, in Python
            return function
        kernel: Any = njit(fastmath=FASTMATH, error_model="numpy", **options)(function)
        with suppress(RuntimeError):  # if there is nowhere to write, each process compiles anew
            kernel.enable_caching()
        return kernel  # type: ignore[no-any-return]  # it is called like the function

    return decorate


serial = _compiled(nogil=True)
threaded = _compiled(parallel=PRANGE)
# Of functions that only kernels call, no second copy is compiled for Python to call.
inner = _compiled(no_cpython_wrapper=True, no_cfunc_wrapper=True)
