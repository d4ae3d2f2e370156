"""``minidiff bench`` and ``docs/bench``: they measure what they say, whatever the times are."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from minidiff.cli import bench
from minidiff.cli.parser import main


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ROUNDS": 1, "REST": 0.0, "WARM_UP": 0.0, "BURST": 1}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench, "ARCHITECTURES", (bench.DENSE, bench.PRUNED))


@pytest.fixture
def script(docs_script: Callable[[str], ModuleType]) -> Any:
    return docs_script("bench/bench.py")


def peer() -> list[float]:
    return [0.25]


@pytest.mark.usefixtures("quick")
def test_the_command_prints_a_table_and_writes_its_numbers(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "b"
    assert main(["bench", "--out", str(out), "--threads", "1", "--json"]) == 0
    results = json.loads((out / "bench.json").read_text())
    assert json.loads(capsys.readouterr().out) == results
    printed = bench.table(results)
    assert max(map(len, printed.splitlines())) <= 80
    assert results["macs"] == {"step 20-50-800-500": 2_293_000, "step 8-10-112-68": 213_096}
    assert len(results["gflops"]) == 10  # matmul, peak and eight kernels
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


@pytest.mark.usefixtures("quick")
def test_a_peer_is_compared_the_right_way_round(script: Any) -> None:
    names = ("conv1 forward", "step 20-50-800-500", "nothing of ours")
    results = bench.run(1, lambda line: None, dict.fromkeys(names, peer))
    ms = results["milliseconds"]
    assert [name for name in ms if "peer" in name] == [f"peer {name}" for name in names[:2]]
    order = list(ms)
    assert order.index("peer conv1 forward") == order.index("conv1 forward") + 1  # the next turn
    results["first use, seconds"] = {"import": 0.1}
    results["epoch"] = {"minidiff": {"seconds": 3.0, "megabytes": 5.0}}
    printed = script.table(results)
    step = ms["step 20-50-800-500"]
    assert f"{'step 20-50-800-500':<28}{250:>9.3f}{250 / step:>8.2f}x" in printed
    kernels, steps = script.bench_figure(results).axes
    (dots,) = (drawn for drawn in kernels.get_lines() if drawn.get_label() == "PyTorch")
    rate = results["gflops"]["conv1 forward"]
    assert list(dots.get_xdata()) == [pytest.approx(rate * ms["conv1 forward"] / 250)]
    assert list(steps.get_lines()[1].get_ydata()) == [250]


def test_a_peer_that_is_not_there_is_an_error_that_says_the_mend(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('none')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SystemExit, match="pip install torch"):
        script.Torch(1)


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
