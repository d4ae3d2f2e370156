"""minidiff: automatic differentiation in NumPy and Numba, and networks that prune themselves.

The engine (:mod:`minidiff.engine`) differentiates, :mod:`minidiff.pruning` gates, counts and
compacts, and :mod:`minidiff.training` trains LeNet5 on MNIST, from Python or the command line.
"""

import sys as _sys

from ._version import __version__ as __version__
from .engine import nn, ops, optim
from .engine.gradcheck import gradcheck
from .engine.predictor import Predictor
from .engine.tensor import Tensor, no_grad
from .io.checkpoint import load, save
from .io.export import export
from .models import LeNet5
from .pruning.baselines import GaussianGate, GroupLasso, HardConcrete, MagnitudePruning
from .pruning.compact import compact
from .pruning.gates import (
    Gate,
    Gated,
    Mask,
    binarize,
    gate_blocks,
    gate_filters,
    gate_inputs,
    gate_units,
    gate_weights,
)
from .pruning.groups import Groups
from .pruning.penalty import (
    LayerCount,
    Surrogate,
    architecture,
    count,
    expected_cost,
    gates_of,
    split_parameters,
)
from .pruning.transform import binary_gate

# So that `from minidiff.optim import SGD` works, too; `os` does it for `os.path`.
_sys.modules |= {"minidiff.nn": nn, "minidiff.ops": ops, "minidiff.optim": optim}

__all__ = [
    "Gate",
    "Gated",
    "GaussianGate",
    "GroupLasso",
    "Groups",
    "HardConcrete",
    "LayerCount",
    "LeNet5",
    "MagnitudePruning",
    "Mask",
    "Predictor",
    "Surrogate",
    "Tensor",
    "architecture",
    "binarize",
    "binary_gate",
    "compact",
    "count",
    "expected_cost",
    "export",
    "gate_blocks",
    "gate_filters",
    "gate_inputs",
    "gate_units",
    "gate_weights",
    "gates_of",
    "gradcheck",
    "load",
    "nn",
    "no_grad",
    "ops",
    "optim",
    "save",
    "split_parameters",
]
