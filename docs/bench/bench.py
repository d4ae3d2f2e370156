"""Measure minidiff beside PyTorch: what ``minidiff bench`` measures, epochs, memory, first use.

    python docs/bench/bench.py [--against torch] [--threads K] [--out DIR]

PyTorch runs in a process of its own (``torch_worker.py``), so that neither library changes the
threads of the other. It does its work in turns with ours. Nothing else should be running.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from minidiff.cli import bench
from minidiff.engine import compiled
from minidiff.figures import plots
from minidiff.io.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

new_figure, styled = plots.new_figure, plots.styled

WORKER = Path(__file__).with_name("torch_worker.py")
IMAGES = 55_000  # of an epoch

FIRST_STEP = """
import json, time
start = time.perf_counter()
import minidiff
imported = time.perf_counter()
from minidiff.cli import bench
bench.training_step(bench.DENSE)[1]()
print(json.dumps([imported - start, time.perf_counter() - imported]))
"""

EPOCH = """
import json, sys, time
from dataclasses import replace
import numba
from minidiff.cli import bench
from minidiff.training.runs import peak_megabytes
from minidiff.training.config import Config
from minidiff.training.trainer import Trainer
numba.set_num_threads(int(sys.argv[1]))
bench.training_step(bench.DENSE)[1]()  # compiles
trainer = Trainer(Config(sparsity="dense"), replace(bench.noise(int(sys.argv[2])), validation=None))
start = time.perf_counter()
trainer.train_epoch()
print(json.dumps({"seconds": time.perf_counter() - start, "megabytes": peak_megabytes()}))
"""


# -- other processes ------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """Return the environment as it was before minidiff set a variable for its own threads."""
    found = dict(os.environ)
    if compiled.SPIN_COUNT_SET_HERE:
        del found["GOMP_SPINCOUNT"]
    return found


def answer(*command: object, **variables: str) -> Any:
    """Run Python with some arguments in a new process; return the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        check=True,
        env=environment() | variables,
    )
    return json.loads(done.stdout)


class Torch:
    """PyTorch in a process of its own; ``calls`` do its work there and return their seconds."""

    def __init__(self, threads: int) -> None:
        options = [threads, bench.WARM_UP, bench.BURST]
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), *map(str, options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self.version, names = self._reply()
        self.calls = {name: partial(self._ask, name) for name in names}

    def _ask(self, name: str) -> Any:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # then there is no reply either
            self.process.stdin.write(json.dumps(name) + "\n")
            self.process.stdin.flush()
        return self._reply()

    def _reply(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.close()
            raise SystemExit(
                "The process with PyTorch ended; its error stands above. "
                "--against torch needs PyTorch beside minidiff: pip install torch."
            )
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def first_use() -> dict[str, float]:
    """Time import and first step in new processes: first nothing is cached, then everything."""
    with tempfile.TemporaryDirectory() as directory:
        _, cold = answer("-c", FIRST_STEP, NUMBA_CACHE_DIR=directory)
        imported, cached = answer("-c", FIRST_STEP, NUMBA_CACHE_DIR=directory)
    return {"import": imported, "first step, compiled": cold, "first step, cached": cached}


def measure(threads: int, against_torch: bool) -> dict[str, Any]:
    """Measure everything; return it as plain values, for JSON."""
    torch = Torch(threads) if against_torch else None
    results = bench.run(threads, print, torch.calls if torch else {})
    print("first use, and an epoch of dense training")
    results["first use, seconds"] = first_use()
    results["epoch"] = {"minidiff": answer("-c", EPOCH, threads, IMAGES)}
    if torch:
        torch.close()
        results["machine"]["torch"] = torch.version
        results["epoch"]["torch"] = answer(WORKER, threads, "epoch", IMAGES)
    return results


# -- what is shown --------------------------------------------------------------------------------


def beside(results: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Return the milliseconds of minidiff and of its peer, by name."""
    ms = results["milliseconds"]
    return {name: (ms[name], ms[f"peer {name}"]) for name in ms if f"peer {name}" in ms}


def table(results: Mapping[str, Any]) -> str:
    """Format what ``minidiff bench`` shows, then the rest."""
    lines = [bench.table(results), ""]
    pairs = beside(results)
    if pairs:
        lines.append(f"{'PyTorch':<28}{'ms':>9}{'x ours':>9}")
        for name, (ours, theirs) in pairs.items():
            lines.append(f"{name:<28}{theirs:>9.3f}{theirs / ours:>8.2f}x")
        lines.append("")
    for name, seconds in results["first use, seconds"].items():
        lines.append(f"{name:<28}{seconds:>9.2f} s")
    for name, epoch in results["epoch"].items():
        what = f"epoch, {IMAGES:,}, {name}"
        lines.append(f"{what:<28}{epoch['seconds']:>9.2f} s, {epoch['megabytes']:.0f} MB")
    return "\n".join(lines)


@styled
def bench_figure(results: Mapping[str, Any]) -> "Figure":
    """Draw kernels beside the machine's rates, and training steps beside their MACs."""
    figure = new_figure(11.5, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    draw_kernels(left, results)
    draw_steps(right, results)
    return figure


def draw_kernels(axes: "Axes", results: Mapping[str, Any]) -> None:
    """Draw the rate of each kernel as a bar, that of its peer as a dot."""
    rates, pairs = dict(results["gflops"]), beside(results)
    yardsticks = {name: rates.pop(name) for name in ("matmul", "peak")}
    heights = np.arange(len(rates))[::-1]
    axes.barh(heights, list(rates.values()), color=plots.BLUE, height=0.6, label="minidiff")
    dots = [
        (rate * pairs[name][0] / pairs[name][1], height)
        for height, (name, rate) in zip(heights, rates.items(), strict=True)
        if name in pairs
    ]
    if dots:
        axes.plot(*zip(*dots, strict=True), "o", color=plots.VERMILION, label="PyTorch")
        axes.legend(loc="lower right", frameon=True, framealpha=1, edgecolor="white")
    for name, rate in yardsticks.items():
        axes.axvline(rate, color=plots.INK, linewidth=1, linestyle="--")
        axes.annotate(
            name, (rate, 1), (0, 3), xycoords=axes.get_xaxis_transform(),
            textcoords="offset points", ha="center", color=plots.INK, fontsize=9,
        )  # fmt: skip
    axes.set_yticks(heights, list(rates))
    axes.set_xlim(0, 1.06 * max(*rates.values(), *yardsticks.values()))
    axes.grid(axis="x")
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("GFLOP/s")
    axes.set_title("Kernels", pad=18)


def draw_steps(axes: "Axes", results: Mapping[str, Any]) -> None:
    """Draw the time of a training step over its MACs, largest network first."""
    names, ms = list(results["macs"]), results["milliseconds"]
    macs = [results["macs"][name] / 1e6 for name in names]
    times = [ms[name] for name in names]
    peer = ms.get(f"peer {names[0]}")
    highest = 1.12 * max(*times, peer or 0)
    axes.plot(macs, times, "o-", color=plots.BLUE)
    if peer is not None:
        axes.plot(macs[0], peer, "o", color=plots.VERMILION)
        axes.annotate(
            "dense in PyTorch", (macs[0], peer), (-8, -3), textcoords="offset points",
            ha="right", color=plots.VERMILION,
        )  # fmt: skip
    free = highest  # labels from the top down, where there is room for one
    for name, x, y in zip(names, macs, times, strict=True):
        if y < free:
            axes.annotate(
                name.removeprefix("step "), (x, y), (7, -9), textcoords="offset points",
                fontsize=8, color=plots.MUTED,
            )  # fmt: skip
            free = y - 0.045 * highest
    axes.set_xlim(0, 1.36 * macs[0])
    axes.set_ylim(0, highest)
    axes.set_xlabel("million MACs a sample")
    axes.set_ylabel("ms a training step")
    axes.set_title(f"Training step, batch {bench.BATCH}", pad=18)


def main() -> None:
    """Measure; print a table, write ``bench.json`` and the figure."""
    parser = argparse.ArgumentParser(description="Measure the speed of minidiff and of its peers.")
    parser.add_argument("--against", choices=("torch",), help="do the same work in PyTorch, too")
    parser.add_argument("--threads", type=int, metavar="K", help="default: one for each core")
    parser.add_argument(
        "--out", type=Path, default=Path("runs", "bench"), metavar="DIR", help="default: runs/bench"
    )
    options = parser.parse_args()
    threads = options.threads or numba.get_num_threads()
    results = measure(threads, options.against == "torch")
    options.out.mkdir(parents=True, exist_ok=True)
    write_whole(options.out / "bench.json", (json.dumps(results, indent=2) + "\n").encode())
    plots.save(bench_figure(results), options.out, "bench")
    print(f"\n{table(results)}\n\nsaved in {options.out}")


if __name__ == "__main__":
    main()
