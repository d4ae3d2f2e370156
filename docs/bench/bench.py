"""Measure minidiff beside its peers: what ``minidiff bench`` measures, epochs, memory, first use.

    python docs/bench/bench.py [--against PEER,PEER] [--threads K] [--out DIR]

The peers are torch, tensorflow, jax and onnxruntime. Each runs in a process of its own
(``torch_worker.py``, ...), so that no library changes the threads of another. It does the same work
in turns with minidiff, in several settings, such as memory layouts. Its fastest setting counts.
Nothing else should be running.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

import minidiff as md
from minidiff.cli import bench
from minidiff.cli.worker import Worker, environment
from minidiff.figures import plots
from minidiff.io.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

new_figure, styled = plots.new_figure, plots.styled

PEERS = {  # the packages that each needs
    "torch": ["torch"],
    "tensorflow": ["tensorflow"],
    "jax": ["jax"],
    "onnxruntime": ["onnx", "onnxruntime"],
}
COLOURS = dict(zip(("minidiff", *PEERS), plots.COLOURS, strict=True))
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


def answer(*command: object, **variables: str) -> Any:
    """Run Python with some arguments in a new process; return the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        check=True,
        env=environment() | variables,
    )
    return json.loads(done.stdout)


def worker_file(peer: str) -> Path:
    """Return the file with the work of a peer."""
    return Path(__file__).with_name(f"{peer}_worker.py")


def start(peer: str, threads: int, networks: Mapping[str, Path]) -> Worker:
    """Start the process of a peer and warm it up."""
    print(f"{peer} compiles and warms up", flush=True)
    try:
        return Worker(
            worker_file(peer),
            bench.WARM_UP,
            bench.BURST,
            threads=threads,
            batch=bench.BATCH,
            images=bench.PREDICTED,
            networks={sizes: str(path) for sizes, path in networks.items()},
        )
    except ChildProcessError as error:
        raise SystemExit(f"{error} {needs(peer)}") from None


def needs(peer: str) -> str:
    """Say how to install a peer."""
    return f"--against {peer} needs other packages: pip install {' '.join(PEERS[peer])}"


def first_use() -> dict[str, float]:
    """Time import and first step in new processes: first nothing is cached, then everything."""
    with tempfile.TemporaryDirectory() as directory:
        _, cold = answer("-c", FIRST_STEP, NUMBA_CACHE_DIR=directory)
        imported, cached = answer("-c", FIRST_STEP, NUMBA_CACHE_DIR=directory)
    return {"import": imported, "first step, compiled": cold, "first step, cached": cached}


def export(directory: str) -> dict[str, Path]:
    """Write the networks that predict as ONNX files; return the files by architecture."""
    files = {sizes: Path(directory, f"{sizes}.onnx") for sizes in (bench.DENSE, bench.PRUNED)}
    for sizes, file in files.items():
        md.export(file, bench.small_network(sizes), bench.SHAPE)
    return files


def measure(threads: int, peers: Sequence[str]) -> dict[str, Any]:
    """Measure everything; return it as plain values, for JSON."""
    for peer in peers:  # before minutes of compilation
        if not all(find_spec(package) for package in PEERS[peer]):
            raise SystemExit(needs(peer))
    with ExitStack() as stack:
        networks = dict.fromkeys((bench.DENSE, bench.PRUNED), Path())
        if "onnxruntime" in peers:
            networks = export(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = {p: stack.enter_context(start(p, threads, networks)) for p in peers}
        calls: dict[str, dict[str, bench.Call]] = {}
        left_out = []
        for peer, worker in workers.items():
            for (name, setting), call in worker.calls.items():
                calls.setdefault(name, {})[f"{peer} ({setting})"] = call
            for (name, setting), error in worker.failed.items():
                left_out.append(f"{peer} ({setting}) cannot do {name!r}: {error}")
        print("".join(f"left out: {line}\n" for line in left_out), end="")
        results = bench.run(threads, print, calls)
    results["machine"] |= {peer: worker.description for peer, worker in workers.items()}
    results["left out"] = left_out
    print("first use, and an epoch of dense training")
    results["first use, seconds"] = first_use()
    results["epoch"] = {"minidiff": answer("-c", EPOCH, threads, IMAGES)}
    step = f"step {bench.DENSE}"
    if fastest := best(results["peers"].get(step, {})).get("torch"):
        label, _ = fastest
        setting = label.removeprefix("torch (").removesuffix(")")
        options = (threads, setting, IMAGES, bench.BATCH, bench.DENSE)
        results["epoch"][label] = answer(worker_file("torch"), *options)
    return results


# -- what is shown --------------------------------------------------------------------------------


def best(times: Mapping[str, float]) -> dict[str, tuple[str, float]]:
    """Return the label and the time of the fastest setting of each peer."""
    found: dict[str, tuple[str, float]] = {}
    for label, ms in sorted(times.items(), key=lambda item: item[1]):
        found.setdefault(label.split(" (")[0], (label, ms))
    return {peer: found[peer] for peer in PEERS if peer in found}


def table(results: Mapping[str, Any]) -> str:
    """Format what ``minidiff bench`` shows, then the rest."""
    lines = [bench.table(results), ""]
    if results["peers"]:
        lines.append(f"{'minidiff, then its peers':<28}{'ms':>9}  speed, x the peer's best setting")
    for name, times in results["peers"].items():
        ours = results["milliseconds"][name]
        lines.append(f"{name:<28}{ours:>9.3f}")
        for label, theirs in best(times).values():
            lines.append(f"{'':<28}{theirs:>9.3f}{theirs / ours:>11.2f}x {label}")
    lines += [f"left out: {line}" for line in results["left out"]]
    lines.append("")
    for name, seconds in results["first use, seconds"].items():
        lines.append(f"{name:<28}{seconds:>9.2f} s")
    for name, epoch in results["epoch"].items():
        lines.append(f"epoch of {IMAGES:,} images, {name}")
        lines.append(f"{'':<28}{epoch['seconds']:>9.2f} s, {epoch['megabytes']:.0f} MB")
    return "\n".join(lines)


@styled
def bench_figure(results: Mapping[str, Any]) -> "Figure":
    """Draw kernels beside the machine's peak, and each work beside the best of every peer."""
    figure = new_figure(11.5, 6)
    kinds = ["step", *(f"predict {images}," for images in bench.PREDICTED)]
    works = [[f"{kind} {sizes}" for sizes in (bench.DENSE, bench.PRUNED)] for kind in kinds]
    panels = figure.subplot_mosaic([["kernels", *row] for row in works], width_ratios=[1.6, 1, 1])
    draw_kernels(panels.pop("kernels"), results)
    for name, axes in panels.items():
        draw_work(axes, results, name)
    return figure


def draw_kernels(axes: "Axes", results: Mapping[str, Any]) -> None:
    """Draw the share of the peak: of each kernel as a bar, of the best PyTorch as a dot."""
    rates = {name: rate for name, rate in results["gflops"].items() if name not in results["macs"]}
    peak, matmul = rates.pop("peak"), rates.pop("matmul")
    shares = [100 * rate / peak for rate in rates.values()]
    heights = np.arange(len(rates))[::-1]
    axes.barh(heights, shares, color=COLOURS["minidiff"], height=0.6, label="minidiff")
    dots = []
    for name, share, height in zip(rates, shares, heights, strict=True):
        if fastest := best(results["peers"].get(name, {})).get("torch"):
            dots.append((share * results["milliseconds"][name] / fastest[1], height))
    if dots:
        label = "torch, best setting"
        axes.plot(*zip(*dots, strict=True), "o", color=COLOURS["torch"], label=label)
        axes.legend(
            loc="upper left", bbox_to_anchor=(0, -0.1), ncols=2, frameon=False, reverse=True
        )
    axes.axvline(100 * matmul / peak, color=plots.INK, linewidth=1, linestyle="--")
    axes.annotate(
        "NumPy's matmul", (100 * matmul / peak, 1), (0, 3), xycoords=axes.get_xaxis_transform(),
        textcoords="offset points", ha="center", color=plots.INK, fontsize=9,
    )  # fmt: skip
    axes.set_yticks(heights, list(rates))
    axes.set_xlim(0, max(100, *shares))
    axes.grid(axis="x")
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("% of the multiply-add peak")
    axes.set_title("Kernels", pad=18)


def draw_work(axes: "Axes", results: Mapping[str, Any], name: str) -> None:
    """Draw the time of a step or a prediction, and those of the best setting of every peer."""
    fastest = best(results["peers"].get(name, {}))
    times = {"minidiff": results["milliseconds"][name]}
    times |= {peer: ms for peer, (_, ms) in fastest.items()}
    heights = np.arange(len(times))[::-1]
    values = list(times.values())
    bars = axes.barh(heights, values, color=[COLOURS[peer] for peer in times], height=0.75)
    axes.bar_label(bars, [f"{ms:.3g} ms" for ms in values], padding=3, fontsize=9)
    axes.set_yticks(heights, list(times), fontsize=9)
    axes.set_xticks([])
    axes.set_xlim(0, 1.4 * max(values))
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False)
    axes.set_title(name.capitalize(), fontsize=10)


# -- the command ----------------------------------------------------------------------------------


def peer_names(text: str) -> list[str]:
    """Read a list of peers, separated by commas."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in PEERS:
            raise argparse.ArgumentTypeError(
                f"unknown library {name!r}; expected one of {', '.join(PEERS)}"
            )
    return list(dict.fromkeys(names))


def main() -> None:
    """Measure; print a table, write ``bench.json`` and the figure."""
    parser = argparse.ArgumentParser(description="Measure the speed of minidiff and of its peers.")
    parser.add_argument(
        "--against", type=peer_names, default=[], metavar="PEER,PEER",
        help=f"do the same work in other libraries, too: {', '.join(PEERS)}",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="K", help="default: one for each core")
    parser.add_argument(
        "--out", type=Path, default=Path("runs", "bench"), metavar="DIR", help="default: runs/bench"
    )
    options = parser.parse_args()
    results = measure(options.threads or numba.get_num_threads(), options.against)
    options.out.mkdir(parents=True, exist_ok=True)
    write_whole(options.out / "bench.json", (json.dumps(results, indent=2) + "\n").encode())
    plots.save(bench_figure(results), options.out, "bench")
    print(f"\n{table(results)}\n\nsaved in {options.out}")


if __name__ == "__main__":
    main()
