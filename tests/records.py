"""Records of a made-up pruning run, for the tests of figures and of the report."""

from typing import Any

import numpy as np

GROUPS = {"conv1.outputs": 20, "conv2.outputs": 50, "dense1.inputs": 800, "dense1.outputs": 500}
FILTERS = np.random.default_rng(0).normal(size=(20, 1, 5, 5)).astype(np.float32)
KEPT = np.arange(20) % 3 == 0


def record(epoch: int = 1, **changes: Any) -> dict[str, Any]:
    """Return the record of an epoch: the network shrinks, and gates freeze in epoch 4."""
    left = {name: max(1, count // epoch) for name, count in GROUPS.items()}
    return {
        "epoch": epoch,
        "loss": 0.3 / epoch,
        "train_error": 8.0 / epoch,
        "validation_error": 5.0 / epoch,
        "expected_weights": 430_500 / epoch,
        "weights": 430_500 // epoch**2,
        "dense_weights": 430_500,
        "macs": 2_293_000 // epoch,
        "dense_macs": 2_293_000,
        "architecture": "-".join(map(str, left.values())),
        "dense_architecture": "20-50-800-500",
        "open": left,
        "groups": GROUPS,
        "frozen": epoch > 3,
    } | changes


RUN = [record(epoch) for epoch in range(1, 6)]
WHOLE = {"weights": 430_500, "macs": 2_293_000, "open": {}, "groups": {}}
DENSE = [record(epoch, **WHOLE) for epoch in range(1, 6)]
