"""``minidiff compare``: each network is measured as it was trained."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minidiff as md
from minidiff.cli import compare as comparison
from minidiff.cli.commands import Trained
from minidiff.cli.compare import compare
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
    heads, *rows = compare(whole.model, gated.model, gated.shape, test, scale, gated.scale)
    assert heads == (
        "",
        "weights",
        "bytes",
        "MACs",
        "error",
        "off by",
        "1 at once",
        "1,000 at once",
    )
    assert [row[0] for row in rows] == ["dense", "gated", "compact", "compact, onnxruntime"]
    small = md.compact(gated.model, gated.shape)
    weights = sum(parameter.size for parameter in small.parameters() if parameter.ndim > 1)
    assert [row[1] for row in rows] == [430_500, gated.records[-1]["weights"], weights, weights]
    assert rows[2][2] == 4 * sum(parameter.size for parameter in small.parameters())
    errors = [error_rate(whole.model, test, **scale), error_rate(gated.model, test, **gated.scale)]
    assert [row[4] for row in rows] == [
        f"{error:.2f} %" for error in (*errors, errors[1], errors[1])
    ]
    assert all(float(row[5]) < 1e-3 for row in rows[1:])  # logits differ by rounding
    assert [row[6:] for row in rows] == 4 * [("1000.000 ms", "300000.000 ms")]  # images, see above


def test_the_command_compares_with_a_dense_run_or_none(
    trained: Path, dense: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(comparison, "compare", lambda *a: given.append(a) or [("", "weights")])
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
