"""``minidiff bench``: that it measures what it says; how fast anything is, no test asks."""

import json
import time
from typing import Any

import numpy as np
import pytest

from minidiff.cli import bench
from minidiff.cli.parser import main
from minidiff.engine import kernels, ops
from minidiff.figures.plots import bench_figure


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ROUNDS": 1, "REST": 0.0, "WARM_UP": 0.0, "BURST": 1}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench, "ARCHITECTURES", (bench.DENSE, bench.PRUNED))
    first = {"import_seconds": 0.1, "cold_seconds": 9.0, "cached_seconds": 0.3}
    monkeypatch.setattr(bench, "first_use", lambda: first)  # it compiles everything anew


@pytest.mark.usefixtures("quick")
def test_the_command_prints_a_table_and_leaves_json_and_a_plot(tmp_path: Any, capsys: Any) -> None:
    out = tmp_path / "b"
    assert main(["bench", "--out", str(out), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    results = json.loads((out / "bench.json").read_text())
    names = [row["name"] for row in results["kernels"]]
    assert names == [
        "conv1 forward",
        "conv1 weight gradient",
        *(f"{layer} {what}" for layer in ("conv2", "dense1") for what in bench.WHATS),
    ]
    for name in [*names, "20-50-800-500", "8-10-112-68", "multiply-add peak", "overhead"]:
        assert name in printed
    assert "PyTorch" not in printed
    assert (out / "bench.png").stat().st_size > 10_000
    assert results["machine"]["threads"] == 1
    dense, pruned = results["steps"]
    assert (dense["macs"], pruned["macs"]) == (2_293_000, 213_096)
    shares = results["dense_step"]
    assert sum(shares["kernels"].values()) > 0 < shares["outside_of_kernels"]
    assert [row["batch"] for row in results["latency"]] == list(bench.LATENCY_BATCHES)


class StandIn:
    """What PyTorch's process would answer."""

    version = "9.9"

    def ask(self, what: str, *arguments: Any) -> list[float]:
        return [0.25]


@pytest.mark.usefixtures("quick")
def test_pytorch_is_compared_the_right_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = {"images": 9, "seconds": 3.0, "torch_seconds": 4.0}
    epoch |= {"peak_megabytes": 5.0, "torch_peak_megabytes": 6.0}
    monkeypatch.setattr(bench.Bench, "_epoch", lambda self: self.results.update(epoch=epoch))
    torch: Any = StandIn()
    results = bench.Bench(1, torch, say=lambda text: None).run()
    for row in results["kernels"]:  # how many times faster than PyTorch
        assert row["times_torch"] == pytest.approx(250 / row["milliseconds"])
        assert row["times_torch"] > 1
    dense = results["dense_step"]
    assert dense["torch_milliseconds"] == 250
    printed = bench.report(results)
    assert "PyTorch 9.9" in printed
    assert f"250.00   {250 / dense['milliseconds']:.2f}x ours" in printed
    assert "3.0 s and at most 5 MB; PyTorch 4.0 s and 6 MB" in printed
    (dots,) = (
        line for line in bench_figure(results).axes[0].get_lines() if line.get_label() == "PyTorch"
    )
    expected = [row["gflops"] * row["milliseconds"] / 250 for row in results["kernels"]]
    np.testing.assert_allclose(dots.get_xdata(), expected)


@pytest.mark.usefixtures("quick")
def test_pytorch_that_is_not_there_is_an_error_that_says_what_to_do(
    tmp_path: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "torch.py").write_text("raise ImportError('none')")
    assert main(["bench", "--out", str(tmp_path / "b"), "--against", "torch"]) == 1
    assert "pip install torch" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_every_call_of_a_kernel_is_counted_and_nothing_stays_behind() -> None:
    before = dict(vars(kernels))
    with bench.KernelClock.running() as clock:
        ops.relu(np.ones((3, 4), np.float32))
    assert set(clock.seconds) == {"relu"}
    assert clock.seconds["relu"] > 0
    assert dict(vars(kernels)) == before


def test_turns_give_the_median_of_what_each_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"REST": 0.0, "WARM_UP": 0.0, "BURST": 3}.items():
        monkeypatch.setattr(bench, name, value)
    times = bench.in_turns({"slow": lambda: time.sleep(0.002), "own": lambda: [1.0, 5.0, 2.0]}, 2)
    assert times["slow"] >= 0.002
    assert times["own"] == 2.0


@pytest.mark.parametrize("layer", bench.LAYERS)
def test_the_operations_of_a_layer_are_counted_right(layer: str) -> None:
    flops, calls = bench._layer_calls(layer)
    expected = {"conv1": 20 * 25 * 24 * 24, "conv2": 50 * 500 * 8 * 8, "dense1": 500 * 800}
    assert flops == 2 * bench.BATCH * expected[layer]
    for call in calls.values():
        call()
