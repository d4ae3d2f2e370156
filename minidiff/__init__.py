"""minidiff: automatic differentiation in NumPy and Numba, and networks that prune themselves.

The engine (:mod:`minidiff.engine`) differentiates, :mod:`minidiff.pruning` gates, counts and
compacts, and :mod:`minidiff.training` trains LeNet5 on MNIST, from Python or the command line.
"""

import sys as _sys

from .cli.process import begin as _begin

_begin()  # before all else, which takes a second to import: Ctrl-C may come then

from ._version import __version__ as __version__
from .baselines.gaussian import GaussianGate
from .baselines.hard_concrete import HardConcrete
from .baselines.rules import GroupLasso, MagnitudePruning
from .engine import functional, nn, optim
from .engine.gradcheck import gradcheck
from .engine.op import Op
from .engine.tensor import Tensor, apply, no_grad
from .io.checkpoint import load, save
from .io.export import export
from .io.onnx_reader import from_onnx
from .models import LeNet5
from .predict.predictor import Predictor
from .pruning.compact import compact
from .pruning.count import LayerCount, architecture, count
from .pruning.gated import Gated, Mask, fold_gates, gate
from .pruning.gates import Gate
from .pruning.groups import Groups
from .pruning.network import gates_of, split_parameters
from .pruning.surrogate import Surrogate
from .pruning.target import Target
from .pruning.transform import binary_gate

# So that `from minidiff.optim import SGD` works, too; `os` does it for `os.path`.
_sys.modules |= {f"minidiff.{m.__name__.rpartition('.')[2]}": m for m in (functional, nn, optim)}

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
    "Op",
    "Predictor",
    "Surrogate",
    "Target",
    "Tensor",
    "apply",
    "architecture",
    "binary_gate",
    "compact",
    "count",
    "export",
    "fold_gates",
    "from_onnx",
    "functional",
    "gate",
    "gates_of",
    "gradcheck",
    "load",
    "nn",
    "no_grad",
    "optim",
    "save",
    "split_parameters",
]
