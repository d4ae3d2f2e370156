"""``minidiff compare``: each network is measured as it was trained."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minidiff as md
from minidiff.cli import compare as comparison
from minidiff.cli.commands import Trained, table
from minidiff.cli.compare import compare, rows
from minidiff.cli.parser import main
from minidiff.data.datasets import load_dataset
from minidiff.training.trainer import error_rate

pytest.importorskip("onnxruntime", reason="it is compared with")


@pytest.fixture(autouse=True)
def _untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call each network once, without waiting."""

    def once(calls: dict[str, Any], rounds: int) -> dict[str, float]:
        return {name: float(len(call())) for name, call in calls.items()}

    monkeypatch.setattr(comparison, "in_turns", once)


def test_every_network_has_a_row_with_its_own_figures(trained: Path, dense: Path) -> None:
    gated, whole, test = Trained(trained), Trained(dense), load_dataset("digits").test
    scale = {"mean": -3.0, "std": 0.1}
    found = compare(whole.model, gated.model, gated.shape, test, scale, gated.scale)
    assert list(found) == ["dense", "gated", "compact", "onnxruntime"]
    small = md.compact(gated.model, gated.shape)
    weights = sum(parameter.size for parameter in small.parameters() if parameter.ndim > 1)
    left = [figures["weights"] for figures in found.values()]
    assert left == [430_500, gated.records[-1]["weights"], weights, weights]
    assert found["compact"]["bytes"] == 4 * sum(p.size for p in small.parameters())
    errors = [error_rate(whole.model, test, **scale), error_rate(gated.model, test, **gated.scale)]
    expected = [*errors, errors[1], errors[1]]
    assert [figures["test_error"] for figures in found.values()] == pytest.approx(expected)
    for name, figures in found.items():
        assert name == "dense" or figures["off_by"] < 1e-3  # logits differ by rounding
        assert (figures["ms_for_1"], figures["ms_for_1000"]) == (1000, 300_000)  # images, see above
    text = table(rows(found))
    assert max(map(len, text.splitlines())) <= 80
    assert text.split("test error, %")[1].split()[:2] == [f"{error:.2f}" for error in errors]


def test_onnxruntime_is_left_out_where_it_is_not_installed(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["compare", str(trained), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["dense", "gated", "compact"]


def test_the_command_compares_with_a_dense_run_or_none(
    trained: Path, dense: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = []
    found = {"dense": {"weights": 3}}
    monkeypatch.setattr(comparison, "compare", lambda *a: given.append(a) or found)
    assert main(["compare", str(trained), "--dense", str(dense)]) == 0
    assert main(["compare", str(trained)]) == 0
    assert re.search("weights", capsys.readouterr().out)
    (first, _, _, _, scale, _), (untrained, *_) = given
    assert scale == Trained(dense).scale
    weight = "conv1.weight"
    expected = Trained(dense).model.state_dict()[weight]
    np.testing.assert_array_equal(first.state_dict()[weight], expected)
    assert not np.array_equal(untrained.state_dict()[weight], expected)


def test_a_run_with_gates_is_no_dense_run(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(trained), "--dense", str(trained)]) == 1
    assert "is not a dense run of lenet5 on digits" in capsys.readouterr().err
