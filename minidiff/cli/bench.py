"""``minidiff bench``: how fast this machine is, and how much of that the engine uses.

Times on a busy machine wander, ratios do less: whatever is compared runs in turns, in bursts, and
medians are compared. PyTorch, if asked for, runs in a process of its own (:mod:`torch_worker`), so
that neither library changes the threads of the other.
"""

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minidiff.data.datasets import Dataset, Split
from minidiff.engine import compiled, kernels, memory, ops
from minidiff.engine._types import Array
from minidiff.engine.predictor import Predictor
from minidiff.engine.tensor import Op, Tensor
from minidiff.io.extras import extra
from minidiff.pruning.compact import compact
from minidiff.training.config import Config
from minidiff.training.runs import peak_megabytes
from minidiff.training.trainer import Trainer

__all__ = ["Bench", "TorchProcess", "report"]

BATCH = 128
MATRIX = 1024  # of the matrix multiplication that is the measure
# In each of so many turns a function waits until the threads of the one before have fallen asleep
# (those of OpenBLAS take 0.1 s), runs until its own have found a core each, and is then called so
# often with the clock running.
ROUNDS, REST, WARM_UP, BURST = 6, 0.2, 0.03, 15  # the two in the middle in seconds
LAYERS = {  # shapes of input without the batch, and of weight
    "conv1": ((1, 28, 28), (20, 1, 5, 5)),
    "conv2": ((20, 12, 12), (50, 20, 5, 5)),
    "dense1": ((800,), (500, 800)),
}
ARCHITECTURES = (
    (20, 50, 800, 500),
    (16, 40, 550, 350),
    (13, 30, 350, 220),
    (10, 20, 220, 140),
    (8, 10, 112, 68),
    (6, 8, 70, 40),
    (4, 5, 40, 20),
)
DENSE, PRUNED = ARCHITECTURES[0], (8, 10, 112, 68)
WHATS = ("forward", "input gradient", "weight gradient")
LATENCY_BATCHES = (1, 128, 1000)

# What a new process does to take its first training step.
FIRST_STEP = """
import time
start = time.perf_counter()
import minidiff
imported = time.perf_counter()
from minidiff.cli import bench
bench.first_step()
print(imported - start, time.perf_counter() - imported)
"""

# An epoch of dense training in a process of its own, for its time and its memory.
EPOCH = """
import json, sys
import numba
from minidiff.cli import bench
numba.set_num_threads(int(sys.argv[2]))
print(json.dumps(bench.dense_epoch(int(sys.argv[1]))))
"""

Times = dict[str, float]  # medians, in seconds


def in_turns(functions: Mapping[str, Callable[[], Any]], rounds: int) -> Times:
    """Run each function in bursts, in turns; return the median time of each.

    A function may itself do a burst and return its times, as a list.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            time.sleep(REST)
            own = function()
            taken = own if isinstance(own, list) else burst(function)
            if turn > 0:  # the first compiles
                times[name] += taken
    return {name: statistics.median(values) for name, values in times.items()}


def burst(function: Callable[[], Any]) -> list[float]:
    """Call a function until it is warm, then with the clock running; return these times."""
    end = time.perf_counter() + WARM_UP
    while time.perf_counter() < end:
        function()
    times = []
    for _ in range(BURST):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return times


# -- what is timed ---------------------------------------------------------------------------


def _draw(shape: tuple[int, ...]) -> Array:
    out = memory.empty(shape, np.float32)
    np.random.default_rng(0).standard_normal(out=out, dtype=np.float32)
    return out


def _layer_calls(name: str) -> tuple[float, dict[str, Callable[[], Any]]]:
    """Return the floating-point operations of a layer, and calls for its three computations."""
    shape, weight_shape = LAYERS[name]
    x, weight, bias = _draw((*shape, BATCH)), _draw(weight_shape), _draw(weight_shape[:1])
    op: Op = ops.Conv2d() if len(shape) > 1 else ops.Linear()
    grad = _draw(op(Tensor(x, requires_grad=True), weight, bias).shape)

    def backward(*needs: bool) -> Callable[[], Any]:
        def call() -> None:
            op.needs = list(needs)
            op.backward(grad)

        return call

    forward, of_input, of_weight = WHATS
    calls: dict[str, Callable[[], Any]] = {
        forward: lambda: op.forward(x, weight, bias),
        of_input: backward(True, False, False),
        of_weight: backward(False, True, False),
    }
    if name == "conv1":  # images need no gradient
        del calls[of_input]
    return 2.0 * weight[0].size * grad.size, calls


def _matmul_call() -> Callable[[], Any]:
    a, b = _draw((MATRIX, MATRIX)), _draw((MATRIX, MATRIX))
    out = np.empty_like(a)
    return lambda: np.matmul(a, b, out=out)


def _peak_call(rounds: int = 20_000, rows: int = 16) -> tuple[float, Callable[[], Any]]:
    out = memory.zeros((rows, kernels.TILE), np.float32)
    return 2.0 * kernels.ROWS * rounds * out.size, lambda: kernels.multiply_add(rounds, out)


def random_data(count: int = 256) -> Dataset:
    """Return images like MNIST's, of noise: speed does not depend on what they show."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 1, 28, 28), np.uint8)
    split = Split(images, rng.integers(0, 10, count))
    return Dataset("mnist", "noise", split, split, split)


def _trainer(architecture: Sequence[int], batch: int = BATCH) -> tuple[Trainer, Callable[[], Any]]:
    """Return a trainer whose gates leave ``architecture`` open, and a call for one step."""
    trainer = Trainer(Config(gate_start=0.0, gate_stop=1.0, gate_lr=1e-6), random_data())
    for gate, left in zip(trainer.gates.values(), architecture, strict=True):
        gate.phi.data[left:] = -gate.width
    images, labels = _draw((1, 28, 28, batch)), np.arange(batch) % 10

    def step() -> None:
        trainer.step = trainer.steps // 2  # where gates learn, and nothing is close to its end
        trainer.train_step(images, labels)

    return trainer, step


def first_step() -> None:
    """Take one training step: what compiles all kernels of training."""
    _trainer(DENSE)[1]()


@dataclass
class KernelClock:
    """The time spent in compiled kernels, by name, in seconds."""

    seconds: dict[str, float]

    @classmethod
    @contextmanager
    def running(cls) -> "Iterator[KernelClock]":
        """Time every call of a kernel inside."""
        clock = cls({})
        found = {n: f for n, f in vars(kernels).items() if hasattr(f, "py_func")}
        for name, kernel in found.items():
            setattr(kernels, name, clock._timed(name, kernel))
        try:
            yield clock
        finally:
            for name, kernel in found.items():
                setattr(kernels, name, kernel)

    def _timed(self, name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            out = kernel(*arguments)
            self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - start
            return out

        return timed


def _shares(step: Callable[[], Any], steps: int = 50) -> tuple[float, dict[str, float]]:
    """Return the median seconds of a step outside of kernels, and the mean seconds in each."""
    for _ in range(5):
        step()
    outside: list[float] = []
    total: dict[str, float] = {}
    for _ in range(steps):
        with KernelClock.running() as clock:
            start = time.perf_counter()
            step()
            taken = time.perf_counter() - start
        outside.append(taken - sum(clock.seconds.values()))
        for name, seconds in clock.seconds.items():
            total[name] = total.get(name, 0) + seconds / steps
    return statistics.median(outside), total


# -- PyTorch, in a process of its own ------------------------------------------------------------


class TorchProcess:
    """PyTorch, doing the same work on request, inside a ``with`` block.

    Parameters
    ----------
    threads
        Of PyTorch.

    Raises
    ------
    ImportError
        If PyTorch cannot be imported, when the block begins.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def __enter__(self) -> "TorchProcess":
        environment = dict(os.environ)
        if compiled.SPIN_COUNT_SET_HERE:
            del environment["GOMP_SPINCOUNT"]
        self.process = subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).with_name("torch_worker.py")),
                *map(str, (self.threads, WARM_UP, BURST)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        try:
            self.version = self.ask("version")
        except BaseException:
            self.__exit__()
            raise
        return self

    def ask(self, what: str, *arguments: Any) -> Any:
        """Send a request, return the reply."""
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        with suppress(BrokenPipeError):  # then there is no reply either
            process.stdin.write(json.dumps([what, *arguments]) + "\n")
            process.stdin.flush()
        reply = process.stdout.readline()
        if not reply:
            said = process.stderr.read().strip().splitlines()
            raise ImportError(
                f"PyTorch could not do the same work ({said[-1] if said else 'it said nothing'}); "
                f"--against torch needs it beside minidiff: pip install torch."
            )
        return json.loads(reply)

    def __exit__(self, *exception: object) -> None:
        with suppress(BrokenPipeError):
            self.process.communicate()


# -- the whole -------------------------------------------------------------------------------


class Bench:
    """All measurements, as plain values in ``results``; :meth:`run` takes minutes.

    Parameters
    ----------
    threads
        Of kernels and of NumPy's matrix multiplication.
    torch
        Where to have the same work done, or None.
    say
        Called with a line before each part.

    Examples
    --------
    >>> Bench(1, None, print).results["batch"]
    128
    """

    def __init__(
        self, threads: int, torch: TorchProcess | None, say: Callable[[str], None]
    ) -> None:
        self.say, self.threads, self.torch = say, threads, torch
        self.results: dict[str, Any] = {
            "machine": {
                "processor": _processor(),
                "cores": os.cpu_count(),
                "threads": threads,
                "python": platform.python_version(),
                "numpy": np.__version__,
            },
            "batch": BATCH,
        }
        if self.torch:
            self.results["machine"]["torch"] = self.torch.version

    def run(self) -> dict[str, Any]:
        """Measure everything; return ``results``."""
        limits = extra("threadpoolctl").threadpool_limits(self.threads, "blas")
        with limits:
            self.say("first use: a new process, with an empty and with a full cache of kernels")
            self.results["first_use"] = first_use()
            self.say("kernels, in turns with a matrix multiplication")
            self._kernels()
            self.say("training steps")
            self._steps()
            self.say("prediction")
            self._latency()
            if self.torch:
                self.say("an epoch of dense training, and memory")
                self._epoch()
        return self.results

    def _torch_call(self, what: str, *arguments: Any) -> dict[str, Callable[[], Any]]:
        torch = self.torch
        return {f"torch {what}": lambda: torch.ask(what, *arguments)} if torch else {}

    def _kernels(self) -> None:
        flops: dict[str, float] = {"matmul": 2.0 * MATRIX**3}
        flops["peak"], peak = _peak_call()
        calls: dict[str, Callable[[], Any]] = {"matmul": _matmul_call(), "peak": peak}
        for layer in LAYERS:
            count, layer_calls = _layer_calls(layer)
            for what, call in layer_calls.items():
                name = f"{layer} {what}"
                calls[name], flops[name] = call, count
                calls |= self._torch_call(name)
        times = in_turns(calls, ROUNDS)
        rate = {name: flops[name] / times[name] / 1e9 for name in flops}
        self.results["matmul_gflops"], self.results["peak_gflops"] = rate["matmul"], rate["peak"]
        self.results["kernels"] = [
            {
                "name": name,
                "milliseconds": 1e3 * times[name],
                "gflops": rate[name],
                "of_matmul": rate[name] / rate["matmul"],
                "of_peak": rate[name] / rate["peak"],
                "times_torch": times[f"torch {name}"] / times[name] if self.torch else None,
            }
            for name in flops
            if name not in ("matmul", "peak")
        ]

    def _steps(self) -> None:
        trainers = {left: _trainer(left) for left in ARCHITECTURES}
        _, smallest_step = _trainer((1, 1, 1, 1), batch=1)
        calls = {_name(left): step for left, (_, step) in trainers.items()}
        calls["smallest"] = smallest_step
        times = in_turns(calls | self._torch_call("step"), ROUNDS)
        self.results["steps"] = []
        for left, (trainer, _) in trainers.items():
            seconds, macs = times[_name(left)], sum(c.macs[0] for c in trainer.counts())
            self.results["steps"].append(
                {
                    "architecture": _name(left),
                    "macs": macs,
                    "milliseconds": 1e3 * seconds,
                    "of_dense": seconds / times[_name(DENSE)],
                    # Forward and both gradients, as of a layer in the middle.
                    "picoseconds_per_mac": 1e12 * seconds / (3 * macs * BATCH),
                }
            )
        outside, inside = _shares(trainers[DENSE][1])
        # The image needs no gradient, so conv1 has two products, not three.
        layers = trainers[DENSE][0].counts()
        macs = BATCH * (3 * sum(c.macs[0] for c in layers) - layers[0].macs[0])
        self.results["dense_step"] = {
            "milliseconds": 1e3 * times[_name(DENSE)],
            "arithmetic_at_matmul_rate": 2e3 * macs / (1e9 * self.results["matmul_gflops"]),
            "kernels": {name: 1e3 * value for name, value in inside.items()},
            "outside_of_kernels": 1e3 * outside,
        }
        self.results["overhead"] = {
            "smallest_step_milliseconds": 1e3 * times["smallest"],
            "outside_of_kernels_milliseconds": 1e3 * _shares(smallest_step)[0],
        }
        if self.torch:
            self.results["dense_step"]["torch_milliseconds"] = 1e3 * times["torch step"]

    def _latency(self) -> None:
        self.results["latency"] = []
        predictors = {
            _name(left): Predictor(compact(_trainer(left)[0].model), (1, 28, 28))
            for left in (DENSE, PRUNED)
        }
        for batch in LATENCY_BATCHES:
            images = _draw((batch, 1, 28, 28))
            calls = {name: partial(predict, images) for name, predict in predictors.items()}
            times = in_turns(calls | self._torch_call("predict", batch), ROUNDS)
            self.results["latency"].append(
                {"batch": batch, **{name: 1e3 * seconds for name, seconds in times.items()}}
            )

    def _epoch(self) -> None:
        assert self.torch is not None
        count = 55_000
        ours = subprocess.run(
            [sys.executable, "-c", EPOCH, str(count), str(self.threads)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        seconds, peak = json.loads(ours.stdout)
        torch_seconds, torch_peak = self.torch.ask("epoch", count)
        self.results["epoch"] = {
            "images": count,
            "seconds": seconds,
            "torch_seconds": torch_seconds,
            "peak_megabytes": peak,
            "torch_peak_megabytes": torch_peak,
        }


def dense_epoch(count: int) -> tuple[float, float | None]:
    """Train dense LeNet5 for an epoch of ``count`` images; return seconds and peak megabytes."""
    data = replace(random_data(count), validation=None)  # as PyTorch has none to evaluate
    trainer = Trainer(Config(sparsity="dense"), data)
    first_step()
    start = time.perf_counter()
    trainer.train_epoch()
    return time.perf_counter() - start, peak_megabytes()


def first_use() -> dict[str, float]:
    """Time import and first training step in new processes: nothing cached, then all."""
    with tempfile.TemporaryDirectory() as directory:
        environment = os.environ | {"NUMBA_CACHE_DIR": directory}
        runs = [
            subprocess.run(
                [sys.executable, "-c", FIRST_STEP],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout.split()
            for _ in range(2)
        ]
    return {
        "import_seconds": float(runs[1][0]),
        "cold_seconds": float(runs[0][1]),
        "cached_seconds": float(runs[1][1]),
    }


def _name(architecture: Sequence[int]) -> str:
    return "-".join(map(str, architecture))


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


# -- the table -------------------------------------------------------------------------------


def report(results: Mapping[str, Any]) -> str:
    """Write the results as a table.

    Parameters
    ----------
    results
        Of :meth:`Bench.run`.
    """
    machine = results["machine"]
    torch = "torch" in machine
    lines = [
        f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores; "
        f"NumPy {machine['numpy']}{', PyTorch ' + machine['torch'] if torch else ''}",
        f"float32; medians; batch {results['batch']}",
        "",
        f"{'':<24}{'ms':>8}{'GFLOP/s':>10}{'x matmul':>10}{'of peak':>9}"
        + (f"{'x PyTorch':>11}" if torch else ""),
        f"{f'matmul {MATRIX}x{MATRIX}':<24}{'':>8}{results['matmul_gflops']:>10.0f}",
        f"{'multiply-add peak':<24}{'':>8}{results['peak_gflops']:>10.0f}",
    ]
    lines += [
        f"{row['name']:<24}{row['milliseconds']:>8.3f}{row['gflops']:>10.0f}"
        f"{row['of_matmul']:>9.2f}x{row['of_peak']:>8.0%}"
        + (f"{row['times_torch']:>10.1f}x" if torch else "")
        for row in results["kernels"]
    ]
    lines += ["", f"{'training step':<24}{'MACs':>10}{'ms':>8}{'of dense':>10}{'ps per MAC':>12}"]
    lines += [
        f"{row['architecture']:<24}{row['macs']:>10,}{row['milliseconds']:>8.2f}"
        f"{row['of_dense']:>10.2f}{row['picoseconds_per_mac']:>12.2f}"
        for row in results["steps"]
    ]
    dense, overhead = results["dense_step"], results["overhead"]
    if torch:
        ratio = dense["torch_milliseconds"] / dense["milliseconds"]
        lines.append(
            f"{'dense, in PyTorch':<24}{'':>10}{dense['torch_milliseconds']:>8.2f}"
            f"   {ratio:.2f}x ours, gates and surrogate included"
        )
    largest = sorted(dense["kernels"].items(), key=lambda item: -item[1])
    lines += [
        "",
        f"dense step: {dense['milliseconds']:.2f} ms; its arithmetic at the rate of matmul would "
        f"take {dense['arithmetic_at_matmul_rate']:.2f} ms",
        "  " + ", ".join(f"{name} {value:.2f}" for name, value in largest if value >= 0.05),
        f"  outside of kernels {dense['outside_of_kernels']:.2f}",
        f"overhead: {overhead['smallest_step_milliseconds']:.2f} ms for a step of 1-1-1-1 at batch "
        f"1, {overhead['outside_of_kernels_milliseconds']:.2f} ms of it outside of kernels",
    ]
    lines += ["", f"{'prediction, compact, ms':<24}" + "".join(f"{n:>12}" for n in LATENCY_BATCHES)]
    for name in (key for key in results["latency"][0] if key != "batch"):
        lines.append(
            f"{name.replace('torch predict', 'dense, in PyTorch'):<24}"
            + "".join(f"{row[name]:>12.3f}" for row in results["latency"])
        )
    first = results["first_use"]
    lines += [
        "",
        f"first use: import {first['import_seconds']:.2f} s; first step with kernels compiled "
        f"{first['cold_seconds']:.1f} s, from the cache {first['cached_seconds']:.2f} s",
    ]
    if "epoch" in results:
        epoch = results["epoch"]
        lines += [
            f"a dense epoch of {epoch['images']:,} images: {epoch['seconds']:.1f} s and at most "
            f"{epoch['peak_megabytes'] or math.nan:.0f} MB; PyTorch {epoch['torch_seconds']:.1f} s "
            f"and {epoch['torch_peak_megabytes'] or math.nan:.0f} MB",
        ]
    return "\n".join(lines)
