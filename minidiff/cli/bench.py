"""``minidiff bench``: how fast this machine is, and how much of that the engine uses.

Times on a busy machine wander, ratios wander less. So calls that are compared run in turns, in
bursts, and their medians are compared. NumPy's matrix product runs in a process of its own, without
the variables that tune OpenBLAS. ``docs/bench/bench.py`` builds on this file: there other
frameworks do the same work in the same turns.
"""

import os
import statistics
import tempfile
import textwrap
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np

from minidiff.data.datasets import Dataset, Split
from minidiff.engine import ops
from minidiff.engine.arrays import Array, empty
from minidiff.engine.compiled import inner, prange, threaded
from minidiff.engine.kernels import ROWS, TILE
from minidiff.engine.module import Sequential
from minidiff.engine.op import Op
from minidiff.engine.tensor import Tensor, apply
from minidiff.engine.vectors import U, registers, tile
from minidiff.io.export import export
from minidiff.io.extras import extra
from minidiff.predict.predictor import Predictor
from minidiff.pruning.compact import compact
from minidiff.pruning.gated import Gated
from minidiff.training.config import Config
from minidiff.training.runs import versions
from minidiff.training.trainer import Trainer

from .worker import Worker, burst

__all__ = ["in_turns", "run", "table"]

Call = Callable[[], Any]
Key = TypeVar("Key")

SHAPE, BATCH = (1, 28, 28), 128
MATRIX = 1024  # rows and columns of NumPy's matrix product
# In each round a call first waits until the threads of the call before have fallen asleep (those of
# OpenBLAS take 0.1 s). Then it warms up until each of its own threads has found a core.
ROUNDS, REST, WARM_UP, BURST = 6, 0.2, 0.03, 15  # REST and WARM_UP in seconds
LAYERS = {  # shapes of the input without the batch, and of the weight
    "conv1": ((1, 28, 28), (20, 1, 5, 5)),
    "conv2": ((20, 12, 12), (50, 20, 5, 5)),
    "dense1": ((800,), (500, 800)),
}
DENSE, PRUNED = "20-50-800-500", "8-10-112-68"
ARCHITECTURES = (DENSE, "16-40-550-350", "13-30-350-220", "10-20-220-140", PRUNED, "4-5-40-20")
# A network like that of a run that has left 1/206 of the weights: the outputs and inputs of each
# layer that have weights, and the share of weights left between them.
SINGLE = "single weights"
LEFT = {
    "conv1": (15, 1, 0.5),
    "conv2": (22, 15, 0.089),
    "dense1": (86, 352, 0.0286),
    "dense2": (10, 86, 0.35),
}
POSITIONS = 16  # of a filter, where the network flattens
PREDICTED = (1, 128, 1000)  # images at once
MATMUL_WORKER = Path(__file__).with_name("matmul_worker.py")


def in_turns(calls: Mapping[Key, Call], rounds: int) -> dict[Key, float]:
    """Time calls in turns, a burst each; return the median seconds of each.

    A call may return a list: the seconds of a burst that it has timed itself.
    """
    times: dict[Key, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            time.sleep(REST)
            own = call()
            taken = own if isinstance(own, list) else burst(call, WARM_UP, BURST)
            if turn > 0:  # the first turn compiles
                times[name] += taken
    return {name: statistics.median(values) for name, values in times.items()}


def _draw(*shape: int) -> Array:
    out = empty(shape, np.float32)  # aligned, like activations in training
    np.random.default_rng(0).standard_normal(out=out, dtype=np.float32)
    return out


def kernel_calls() -> dict[str, tuple[float, Call]]:
    """Return (floating-point operations, call) of each kernel and of the machine's yardsticks."""
    a, b, product = (_draw(MATRIX, MATRIX) for _ in range(3))
    rounds, sums = 20_000, np.zeros((16, TILE), np.float32)
    flops = 2.0 * rounds * ROWS * sums.size
    found: dict[str, tuple[float, Call]] = {
        "matmul": (2.0 * MATRIX**3, partial(np.matmul, a, b, out=product)),
        "peak": (flops, partial(_multiply_add, rounds, sums)),
    }
    for layer, (shape, weight_shape) in LAYERS.items():
        x, weight, bias = _draw(*shape, BATCH), _draw(*weight_shape), _draw(weight_shape[0])
        op: Op = ops.Conv2d() if len(shape) > 1 else ops.Linear()
        grad = _draw(*apply(op, Tensor(x, requires_grad=True), weight, bias).shape)
        flops = 2.0 * weight[0].size * grad.size
        found[f"{layer} forward"] = flops, partial(op.forward, x, weight, bias)
        if layer != "conv1":  # images need no gradient
            found[f"{layer} input gradient"] = flops, partial(_backward, op, grad, "input")
        found[f"{layer} weight gradient"] = flops, partial(_backward, op, grad, "weight")
    return found


def _backward(op: Op, grad: Array, needed: str) -> None:
    op.needs = needed == "input", needed == "weight", False
    op.backward(grad)


@inner
def _multiply_add_row(rounds: int, out: Array) -> None:
    """Do nothing but multiply-adds in registers: ``x = x * a + b``."""
    sums = tile(registers(out), (ROWS, TILE))
    a, b, rows, columns = out[0], out[1], U(ROWS), U(TILE)
    for s in range(columns):
        for i in range(rows):
            sums[i, s] = out[s]
    for _ in range(rounds):
        for s in range(columns):
            for i in range(rows):
                sums[i, s] = sums[i, s] * a + b
    for s in range(columns):
        for i in range(rows):
            out[s] += sums[i, s]


@threaded
def _multiply_add(rounds: int, out: Array) -> None:
    """Do ``rounds`` times ROWS * TILE multiply-adds for each row of out, (rows, TILE)."""
    for task in prange(len(out)):
        _multiply_add_row(rounds, out[task])


def noise(count: int) -> Dataset:
    """Return images like MNIST's, of noise: speed does not depend on what they show."""
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (count, 1, 28, 28), np.uint8), rng.integers(0, 10, count))
    return Dataset("mnist", "noise", split, split, split)


def training_step(architecture: str, batch: int = BATCH) -> tuple[Trainer, Call]:
    """Return a trainer whose gates leave ``architecture`` open, and a call that trains a step."""
    sparsity = "unstructured" if architecture == SINGLE else "structured"
    settings: dict[str, Any] = {"gate_start": 0.0, "gate_stop": 1.0, "gate_lr": 1e-6}
    trainer = Trainer(Config(sparsity=sparsity, **settings), noise(256))
    if architecture == SINGLE:
        _close_weights(trainer)
    else:
        _close_rows(trainer, architecture)
    images, labels = _draw(*SHAPE, batch), np.arange(batch) % 10

    def step() -> None:
        trainer.step = trainer.steps // 2  # where gates learn
        trainer.train_step(images, labels)

    return trainer, step


def _close_weights(trainer: Trainer) -> None:
    rng = np.random.default_rng(0)
    gated = {name: m for name, m in trainer.model.children() if isinstance(m, Gated)}
    for name, gate in trainer.gates.items():
        (mask,) = gated[name.removesuffix(".weights.0")].weights
        outputs, inputs, share = LEFT[name.removesuffix(".weights.0")]
        left = np.zeros(mask.groups.labels.shape, np.bool_)
        left[:outputs, :inputs] = rng.random(left[:outputs, :inputs].shape) < share
        gate.phi.data[~left.ravel()] = -gate.width


def _close_rows(trainer: Trainer, architecture: str) -> None:
    sizes = [int(size) for size in architecture.split("-")]
    # The inputs of the first dense layer are spread over all filters, 16 positions each. Otherwise
    # the last filters would have no reader.
    reach = [*sizes[:2], POSITIONS * sizes[1], sizes[3]]
    for gate, left, among in zip(trainer.gates.values(), sizes, reach, strict=True):
        closed = np.ones(len(gate.phi.data), np.bool_)
        closed[np.arange(left) * among // left] = False
        gate.phi.data[closed] = -gate.width


def run(
    threads: int, say: Callable[[str], None], peers: Mapping[str, Mapping[str, Call]] = {}
) -> dict[str, Any]:
    """Measure everything; return it as plain values.

    Parameters
    ----------
    threads
        Of kernels and of NumPy's matrix product.
    say
        Called with a line before the measurements.
    peers
        Calls that do the same work in other frameworks: by the names under "milliseconds", then by
        labels of your choice. They run right after ours.

    Returns
    -------
    dict
        "machine" describes the machine. "milliseconds", "gflops" and "macs" (of one sample) have a
        number for each kernel, step or prediction, by its name. "bytes" has the size of each
        network's ``.safetensors`` file.
        "peers": the milliseconds of other frameworks, by name and label.
    """
    extra("threadpoolctl")  # the worker needs it, too
    numba.set_num_threads(threads)
    kernel = kernel_calls()
    networks = (*ARCHITECTURES, SINGLE)
    steps = {f"step {sizes}": training_step(sizes) for sizes in networks}
    calls = {name: call for name, (_, call) in (kernel | steps).items()}
    calls["step 1-1-1-1, batch 1"] = training_step("1-1-1-1", batch=1)[1]
    for sizes in (DENSE, PRUNED, SINGLE):
        calls |= prediction_calls(sizes)
    with (
        Worker(MATMUL_WORKER, WARM_UP, BURST, threads=threads, size=MATRIX) as matmul,
        extra("threadpoolctl").threadpool_limits(threads, "blas"),
    ):
        calls["matmul"] = matmul.calls["matmul", ""]  # as users have it, not as this process does
        turns: dict[tuple[str, str], Call] = {}
        for name, call in calls.items():
            turns[name, ""] = call
            turns |= {(name, label): theirs for label, theirs in peers.get(name, {}).items()}
        say(f"{len(turns)} measurements in turns, {ROUNDS} rounds")
        times = in_turns(turns, ROUNDS)
    ours = {name: seconds for (name, label), seconds in times.items() if not label}
    theirs: dict[str, dict[str, float]] = {}
    for (name, label), seconds in times.items():
        if label:
            theirs.setdefault(name, {})[label] = 1e3 * seconds
    counts = {name: [c.macs[0] for c in trainer.counts()] for name, (trainer, _) in steps.items()}
    # Forward, input gradient and weight gradient; the images need no gradient.
    flops = {name: 2.0 * BATCH * (3 * sum(macs) - macs[0]) for name, macs in counts.items()}
    flops |= {name: operations for name, (operations, _) in kernel.items()}
    return {
        "machine": {
            **versions(),
            "cores": os.cpu_count(),
            "threads": threads,
            "matmul": matmul.description,
        },
        "milliseconds": {name: 1e3 * seconds for name, seconds in ours.items()},
        "gflops": {name: operations / ours[name] / 1e9 for name, operations in flops.items()},
        "macs": {name: sum(macs) for name, macs in counts.items()},
        "bytes": {sizes: _file_size(sizes) for sizes in (DENSE, PRUNED, SINGLE)},
        "peers": theirs,
    }


def _file_size(architecture: str) -> int:
    """Return the bytes of the file that an exported network takes."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "network.safetensors"
        export(path, small_network(architecture), SHAPE)
        return path.stat().st_size


def prediction_calls(architecture: str) -> dict[str, Call]:
    """Return calls that predict with the compact network."""
    predictor = Predictor(small_network(architecture), SHAPE)
    return {
        f"predict {images}, {architecture}": partial(predictor, _draw(images, *SHAPE))
        for images in PREDICTED
    }


def small_network(architecture: str) -> Sequential:
    """Return the compact network of an architecture, with weights as they are initialised."""
    return compact(training_step(architecture)[0].model, SHAPE)


def table(results: Mapping[str, Any]) -> str:
    """Format the results of :func:`run`, without peers."""
    machine, ms = results["machine"], results["milliseconds"]
    rates, macs = results["gflops"], results["macs"]
    peak, matmul = rates["peak"], rates["matmul"]
    lines = [textwrap.fill(", ".join(f"{name} {value}" for name, value in machine.items()), 80)]
    lines += [f"float32, batch {BATCH}, medians", ""]
    lines.append(f"{'kernel':<28}{'ms':>9}{'GFLOP/s':>10}{'of peak':>9}{'x matmul':>10}")
    for name, rate in rates.items():
        if name in macs:
            continue
        ratios = f"{rate / peak:>9.0%}{rate / matmul:>9.2f}x"
        lines.append(f"{name:<28}{ms[name]:>9.3f}{rate:>10.0f}{ratios}")
    lines += ["", f"{'training step':<28}{'ms':>9}{'of dense':>10}{'of peak':>9}{'MACs':>12}"]
    for name, count in macs.items():
        share = ms[name] / ms[f"step {DENSE}"]
        ratios = f"{share:>10.2f}{rates[name] / peak:>9.0%}"
        lines.append(f"{name:<28}{ms[name]:>9.3f}{ratios}{count:>12,}")
    lines += ["", f"{'overhead and prediction':<28}{'ms':>9}"]
    lines += [f"{name:<28}{ms[name]:>9.3f}" for name in ms if name not in rates]
    lines += ["", f"{'file of a compact network':<28}{'bytes':>9}"]
    lines += [f"{name:<28}{size:>9,}" for name, size in results["bytes"].items()]
    return "\n".join(lines)
