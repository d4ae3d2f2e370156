"""``minidiff bench``: that it measures what it says; how fast anything is, no test asks."""

import json
import time
from typing import Any

import numpy as np
import pytest

from minidiff.engine import kernels, ops
from minidiff.experiments import bench
from minidiff.experiments.cli import main


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
