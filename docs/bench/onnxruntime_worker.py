"""The predictions of ``bench.py`` in onnxruntime; ``minidiff/cli/worker.py`` runs this file.

It imports nothing of minidiff. The networks come as ONNX files, which ``bench.py`` writes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnxruntime

Calls = dict[tuple[str, str], Callable[[], Any]]


def work(
    threads: int, batch: int, images: list[int], networks: dict[str, str]
) -> tuple[str, Calls]:
    """Return the version of onnxruntime, and every call."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    calls: Calls = {}
    for sizes, file in networks.items():
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        for count in images:
            x = np.random.default_rng(0).standard_normal((count, 1, 28, 28), np.float32)
            call = partial(session.run, ["logits"], {"images": x})
            calls[f"predict {count}, {sizes}", "NCHW"] = call
    return onnxruntime.__version__, calls
