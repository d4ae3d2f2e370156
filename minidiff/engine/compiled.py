"""How loops are compiled: decorators around Numba's, for kernels and for what they call."""

import ctypes
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from hashlib import sha256
from typing import Any, TypeAlias

import llvmlite.binding as llvm

try:
    from numba import config, get_num_threads, njit, prange, set_num_threads, types
except ValueError as error:  # Numba reads its variables when it is imported
    message = f"Numba does not start: {error} Check NUMBA_NUM_THREADS, or unset it."
    raise ImportError(message) from error
from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache
from numba.core.codegen import get_host_cpu_features
from numba.core.serialize import dumps, loads

__all__ = ["inner", "limit_threads", "prange", "serial", "set_threads", "threaded"]

# -- settings of the whole process; docs/howto/environment.md lists them -------------------------

# Threads that wait for others do so in a busy loop, but soon fall asleep: to wait for long would
# make a step ten times slower wherever a machine has other work too. GNU's OpenMP reads this when
# the first parallel kernel starts, and so do processes that this one starts.
SPIN_COUNT_SET_HERE = not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
if SPIN_COUNT_SET_HERE:
    os.environ["GOMP_SPINCOUNT"] = "10000"

# On many of Intel's processors LLVM takes but half the width of registers of 512 bits, for fear of
# a lower clock. Register tiles are made for all of it, and would not fit in: kernels took twice as
# long. It is a setting of all that Numba compiles in the process.
settings: Any = config
chosen = settings.CPU_FEATURES is not None or settings.CPU_NAME is not None
if not chosen and llvm.get_host_cpu_features().get("avx512f", False):
    host = get_host_cpu_features()  # type: ignore[no-untyped-call]  # Numba has no types
    settings.CPU_FEATURES = f"{host},-prefer-256-bit"

# Each training step allocates the same large arrays. By default glibc returns their memory to the
# operating system and requests it again, which costs more than computing some of the arrays. With
# these limits glibc keeps the memory.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
if not any("MALLOC_" in name or "glibc.malloc" in value for name, value in os.environ.items()):
    with suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 1 << 25)
        mallopt(M_TRIM_THRESHOLD, 1 << 28)

# -- decorators ----------------------------------------------------------------------------------

# Sums may be reordered; NaN and infinity keep their meaning (unlike under full fastmath).
FASTMATH = {"reassoc", "contract", "arcp", "nsz"}

# Only what says prange runs in parallel: to start threads for a short vector costs more than it.
PRANGE = {
    **dict.fromkeys(("comprehension", "reduction", "inplace_binop", "setitem"), False),
    **dict.fromkeys(("numpy", "stencil", "fusion"), False),
    "prange": True,
}

Function: TypeAlias = Callable[..., Any]


class _Checked(CompileResultCacheImpl):
    """What Numba keeps of a function, with a checksum: damaged code would crash the process."""

    if not os.path.isabs(os.getenv("XDG_CACHE_HOME", os.path.expanduser("~"))):
        # Without a home directory, Numba would make a directory named "~" where it runs.
        _locator_classes = [
            locator
            for locator in CompileResultCacheImpl._locator_classes
            if "UserWide" not in locator.__name__
        ]

    def get_filename_base(self, name: str, flags: str) -> str:
        base = super().get_filename_base(name, flags)  # type: ignore[no-untyped-call]  # Numba has no types
        return f"{base}-checked"  # apart from files without a checksum

    def reduce(self, result: Any) -> tuple[bytes, bytes]:
        content = dumps(super().reduce(result))  # type: ignore[no-untyped-call]  # Numba has no types
        return sha256(content).digest(), content

    def rebuild(self, context: Any, kept: tuple[bytes, bytes]) -> Any:
        digest, content = kept
        if sha256(content).digest() != digest:
            raise ValueError("a file is damaged")
        return super().rebuild(context, loads(content))  # type: ignore[no-untyped-call]  # Numba has no types


class _Disk(FunctionCache):
    _impl_class = _Checked


class _Cache(NullCache):
    """Numba's cache on disk. Where it cannot be read or written, functions compile anew."""

    warned = False

    def __init__(self, function: Function) -> None:
        self.function = function

    @cached_property
    def disk(self) -> Any:  # an error if there is nowhere to write
        return _Disk(self.function)  # type: ignore[no-untyped-call]  # Numba has no types

    def load_overload(self, signature: Any, context: Any) -> Any:
        get_num_threads()  # loads Numba's pool of threads, which kernels are linked with
        try:
            return self.disk.load_overload(signature, context)
        except Exception as error:  # damaged files raise anything
            self.warn(error)
            with suppress(Exception):
                self.disk.flush()  # so that the function is kept again
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        try:
            self.disk.save_overload(signature, result)
        except Exception as error:
            self.warn(error)

    def warn(self, error: Exception) -> None:
        if not _Cache.warned:
            _Cache.warned = True
            warnings.warn(
                f"Numba's cache of compiled kernels fails ({type(error).__name__}: {error}), so "
                f"they compile anew. If that goes on, set NUMBA_CACHE_DIR to another directory.",
                stacklevel=2,
            )


def _compiled(**options: Any) -> Callable[[Function], Function]:
    """Return a decorator: its functions compile when first called, and are kept on disk."""

    def decorate(function: Function) -> Function:
        if settings.DISABLE_JIT:  # NUMBA_DISABLE_JIT=1: everything runs, slowly, in Python
            return function
        kernel: Any = njit(error_model="numpy", **{"fastmath": FASTMATH, **options})(function)
        kernel._cache = _Cache(function)
        return kernel  # type: ignore[no-any-return]  # it is called like the function

    return decorate


serial = _compiled(nogil=True)
threaded = _compiled(parallel=PRANGE)
# Of functions that only kernels call, no second copy is compiled for Python to call.
# They add in the order in which they are written: otherwise LLVM may make vectors of the terms of a
# sum, in place of the sums of a register tile, which would then not fit in registers.
inner = _compiled(no_cpython_wrapper=True, no_cfunc_wrapper=True, fastmath=FASTMATH - {"reassoc"})

# Functions of Numba's pool of threads, by their names: a kernel that calls Numba's own functions of
# these names cannot be kept on disk.
get_threads: Any = get_num_threads
set_threads: Any = set_num_threads
if not settings.DISABLE_JIT:
    get_threads = types.ExternalFunction("get_num_threads", types.int32())
    set_threads = types.ExternalFunction("set_num_threads", types.void(types.int32))

SMALL = 1 << 14  # numbers, which one thread computes while it would wake the others


@inner
def limit_threads(numbers: Any) -> Any:
    """Leave the computation of a few numbers to one thread; return how many threads there were.

    A kernel calls this first, and ``set_threads`` with the result last.
    """
    threads = get_threads()
    if numbers < SMALL:
        set_threads(1)
    return threads
