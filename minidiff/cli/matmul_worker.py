"""NumPy's matrix product, timed by :mod:`minidiff.cli.worker` as users have it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

Calls = dict[tuple[str, str], Callable[[], Any]]


def work(threads: int, size: int) -> tuple[str, Calls]:
    """Return the kernel that the BLAS library chose, and a product of two square matrices."""
    from threadpoolctl import ThreadpoolController  # of the extra "train"

    blas = ThreadpoolController().select(user_api="blas")
    blas.limit(limits=threads)
    a, b = np.random.default_rng(0).standard_normal((2, size, size), np.float32)
    chosen = ", ".join(
        f"{info['internal_api']} {info.get('architecture', '')} (threads: {info['num_threads']})"
        for info in blas.info()
    )
    return chosen, {("matmul", ""): partial(np.matmul, a, b, out=np.empty_like(a))}
