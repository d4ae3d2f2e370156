"""``minidiff bench`` and ``docs/bench``: they measure what they say, whatever the times are."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from minidiff.cli import bench
from minidiff.cli.parser import main
from minidiff.cli.worker import Worker

KINDS = ("step", *(f"predict {images}," for images in bench.PREDICTED))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ROUNDS": 1, "REST": 0.0, "WARM_UP": 0.0, "BURST": 1}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench, "ARCHITECTURES", (bench.DENSE, bench.PRUNED))


@pytest.fixture
def script(docs_script: Callable[[str], ModuleType]) -> Any:
    return docs_script("bench/bench.py")


WORK = """
import os
def fail():
    raise ValueError("no such layout\\nand more")
def work(numbers):
    print("a library that prints")
    calls = {("step", "NCHW"): lambda: print("again"), ("step", "NHWC"): fail}
    return [sum(numbers), sorted(os.environ)], calls
"""


def results(*, peers: bool = True) -> dict[str, Any]:
    """Return what ``measure`` would: minidiff takes 2 ms for everything, the peers 3 ms or more."""
    works = [f"{kind} {sizes}" for kind in KINDS for sizes in (bench.DENSE, bench.PRUNED)]
    steps = works[:2]
    ms = dict.fromkeys(["matmul", "peak", "conv1 forward", *works], 2.0)
    beside = {"torch (NCHW, eager)": 9.0, "torch (channels_last, eager)": 3.0, "jax (NHWC)": 5.0}
    return {
        "machine": {"processor": "z80", "matmul": "openblas Z80 (threads: 2)"},
        "milliseconds": ms,
        "gflops": {
            "matmul": 50.0,
            "peak": 200.0,
            "conv1 forward": 80.0,
            steps[0]: 60.0,
            steps[1]: 10.0,
        },
        "macs": {steps[0]: 2_293_000, steps[1]: 251_496},
        "bytes": {bench.DENSE: 1_700_000},
        "peers": {name: dict(beside) for name in ("conv1 forward", *works)} if peers else {},
        "left out": ["jax (NCHW) cannot do 'step': ValueError: none"],
        "first use, seconds": {"import": 0.1},
        "epoch": {"minidiff": {"seconds": 3.0, "megabytes": 5.0}},
    }


@pytest.mark.usefixtures("quick")
def test_the_command_prints_a_table_and_writes_its_numbers(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "b"
    assert main(["bench", "--out", str(out), "--threads", "1", "--json"]) == 0
    results = json.loads((out / "bench.json").read_text())
    assert json.loads(capsys.readouterr().out) == results
    printed = bench.table(results)
    assert max(map(len, printed.splitlines())) <= 80
    assert results["macs"] == {
        "step 20-50-800-500": 2_293_000,
        "step 8-10-112-68": 251_496,
        "step single weights": 148_177,
    }
    dense, single = results["bytes"][bench.DENSE], results["bytes"][bench.SINGLE]
    assert 1_722_000 < dense > 100 * single
    assert len(results["gflops"]) == 13  # matmul, peak, eight kernels and three steps
    assert results["peers"] == {}
    assert results["machine"]["threads"] == 1
    for name, milliseconds in results["milliseconds"].items():
        assert f"{name:<28}{milliseconds:>9.3f}" in printed


def test_the_table_is_printed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def remove(*_: object) -> dict[str, Any]:
        (tmp_path / "b").rmdir()  # while it is measured
        return {}

    monkeypatch.setattr(bench, "run", remove)
    monkeypatch.setattr(bench, "table", lambda results: "the table")
    assert main(["bench", "--out", str(tmp_path / "b")]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("the table\n")
    assert "bench.json cannot be written: No such file or directory" in err


def test_kernels_are_compared_with_the_peak_then_with_the_matrix_product() -> None:
    printed = bench.table(results())
    assert f"{'conv1 forward':<28}{2:>9.3f}{80:>10}{'40%':>9}{'1.60x':>10}" in printed
    assert f"{'step 20-50-800-500':<28}{2:>9.3f}{'1.00':>10}{'30%':>9}{'2,293,000':>12}" in printed
    assert "openblas Z80 (threads: 2)" in printed


def test_the_fastest_setting_of_a_peer_counts(script: Any) -> None:
    times = {"jax (NHWC)": 3.0, "torch (NCHW)": 2.0, "torch (channels_last)": 1.0}
    fastest = {"torch": ("torch (channels_last)", 1.0), "jax": ("jax (NHWC)", 3.0)}
    assert script.best(times) == fastest
    assert script.best({}) == {}


def test_ratios_to_peers_stand_beside_the_names_of_their_settings(script: Any) -> None:
    printed = script.table(results())
    assert f"{'':<28}{3:>9.3f}{'1.50x':>12} torch (channels_last, eager)\n" in printed
    assert f"{'':<28}{5:>9.3f}{'2.50x':>12} jax (NHWC)\n" in printed
    assert "torch (NCHW" not in printed
    assert "left out: jax (NCHW)" in printed
    assert "its peers" not in script.table(results(peers=False))


def test_the_figure_shows_shares_of_the_peak_and_the_best_of_every_peer(script: Any) -> None:
    kernels, *works = script.bench_figure(results()).axes
    assert [bar.get_width() for bar in kernels.patches] == [40]
    dots, matmul = kernels.get_lines()
    assert list(dots.get_xdata()) == [pytest.approx(40 * 2 / 3)]
    assert list(matmul.get_xdata()) == [25, 25]
    assert len(works) == 8
    for axes in works:
        assert [bar.get_width() for bar in axes.patches] == [2, 3, 5]
        assert [label.get_text() for label in axes.texts] == ["2 ms", "3 ms", "5 ms"]
        names = [label.get_text() for label in axes.get_yticklabels()]
        assert names == ["minidiff", "torch", "jax"]
    figure = script.bench_figure(results(peers=False))
    assert [len(axes.patches) for axes in figure.axes] == [1] * 9


def test_peers_are_named_in_a_list(script: Any) -> None:
    assert script.peer_names("torch, jax,torch") == ["torch", "jax"]
    with pytest.raises(
        argparse.ArgumentTypeError,
        match="unknown library 'numpy'; expected one of torch, tensorflow",
    ):
        script.peer_names("torch,numpy")


@pytest.mark.parametrize("peer", ["torch", "tensorflow", "jax", "onnxruntime"])
def test_an_error_says_how_to_install_a_missing_peer(
    peer: str, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    (tmp_path / f"{peer}.py").write_text("raise ImportError('there is none')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    mend = f"--against {peer} needs other packages: pip install .*{peer}"
    with pytest.raises(SystemExit, match=mend):
        script.start(peer, 1, {bench.DENSE: tmp_path / "x.onnx"})
    assert "there is none" in capfd.readouterr().err
    monkeypatch.setattr(script, "find_spec", lambda package: None)
    with pytest.raises(SystemExit, match=f"^{mend}"):
        script.measure(1, [peer])


def test_a_worker_runs_without_the_settings_of_other_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "some_worker.py"
    file.write_text(WORK)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "1")
    with Worker(file, 0.0, 3, numbers=[1, 2]) as worker:
        total, variables = worker.description
        assert total == 3
        assert "PATH" in variables
        assert not [name for name in variables if name.startswith("OPENBLAS")]
        assert worker.failed == {("step", "NHWC"): "ValueError: no such layout"}
        (call,) = worker.calls.values()
        assert len(call()) == len(call()) == 3
        worker.process.kill()
        with pytest.raises(ChildProcessError, match=r"some_worker\.py ended"):
            call()


def test_the_matrix_product_runs_on_the_kernel_that_users_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")  # slow, and no machine's own
    with Worker(bench.MATMUL_WORKER, 0.0, 1, threads=1, size=8) as worker:
        assert "Prescott" not in worker.description
        assert "(threads: 1)" in worker.description
        assert list(worker.calls) == [("matmul", "")]


def test_a_small_network_keeps_all_filters_of_its_architecture() -> None:
    shapes = [parameter.shape for parameter in bench.small_network(bench.PRUNED).parameters()]
    assert shapes[::2] == [(8, 1, 5, 5), (10, 8, 5, 5), (68, 112), (10, 68)]


def test_turns_give_the_median_of_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"REST": 0.0, "WARM_UP": 0.0, "BURST": 3}.items():
        monkeypatch.setattr(bench, name, value)
    times = bench.in_turns({"slow": lambda: time.sleep(0.002), "own": lambda: [1.0, 5.0, 2.0]}, 2)
    assert times["slow"] >= 0.002
    assert times["own"] == 2.0


def test_the_operations_of_a_kernel_are_those_of_its_layer() -> None:
    macs = {"conv1": 20 * 25 * 24 * 24, "conv2": 50 * 500 * 8 * 8, "dense1": 500 * 800}
    for name, (flops, call) in bench.kernel_calls().items():
        layer = name.split()[0]
        if layer in macs:
            assert flops == 2 * bench.BATCH * macs[layer]
            call()
