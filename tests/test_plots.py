"""The figures of a run: files, determinism, extreme runs, and no trace in Matplotlib's settings."""

import itertools
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from minidiff.figures import plots

GROUPS = {"conv1.outputs": 20, "conv2.outputs": 50, "dense1.inputs": 800, "dense1.outputs": 500}
LIMITS = (-0.5, 0.5)
GATE_FIGURES = {"expected_and_actual", "architecture_over_time", "gate_histogram"}
FIGURES = {"overview", "error_and_loss", "first_filters"} | GATE_FIGURES
RNG = np.random.default_rng(0)
GATES = {name: RNG.normal(size=count).astype(np.float32) for name, count in GROUPS.items()}
FILTERS = RNG.normal(size=(20, 1, 5, 5)).astype(np.float32)
KEPT = np.arange(20) % 3 == 0


def record(epoch: int = 1, **changes: Any) -> dict[str, Any]:
    left = {name: max(1, count // epoch) for name, count in GROUPS.items()}
    return {
        "epoch": epoch,
        "loss": 0.3 / epoch,
        "train_error": 8.0 / epoch,
        "validation_error": 5.0 / epoch,
        "expected_weights": 430_500 / epoch,
        "weights": 430_500 // epoch**2,
        "dense_weights": 430_500,
        "macs": 2_293_000 // epoch,
        "dense_macs": 2_293_000,
        "architecture": "-".join(map(str, left.values())),
        "dense_architecture": "20-50-800-500",
        "open": left,
        "groups": GROUPS,
        "seconds": 9.5,
        "frozen": epoch > 3,
    } | changes


RUN = [record(epoch) for epoch in range(1, 6)]
DENSE = [
    record(epoch, open={}, groups={}, weights=430_500, macs=2_293_000) for epoch in range(1, 4)
]


def texts(figure: Figure) -> str:
    """Everything written in a figure, with its line breaks made spaces."""
    found = figure.findobj(Text)
    return " | ".join(text.get_text().replace("\n", " ") for text in found)


def draw(figure: Figure) -> None:
    figure.canvas.draw()


def test_a_run_is_written_as_png_and_svg_and_nothing_else(tmp_path: Path) -> None:
    paths = plots.plot_run(tmp_path / "new" / "place", RUN, GATES, LIMITS, FILTERS, KEPT)
    assert {path.stem for path in paths} == FIGURES
    assert sorted(paths) == sorted((tmp_path / "new" / "place").iterdir())
    for path in paths:
        if path.suffix == ".png":
            assert imread(path).ndim == 3
        else:
            assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    for path in plots.plot_run(tmp_path / "a", RUN, GATES, LIMITS, FILTERS, KEPT):
        again = tmp_path / "b" / path.name
        if not again.exists():
            plots.plot_run(tmp_path / "b", RUN, GATES, LIMITS, FILTERS, KEPT)
        assert path.read_bytes() == again.read_bytes(), path.name


def test_a_users_settings_neither_show_nor_change(tmp_path: Path) -> None:
    expected = [p.read_bytes() for p in plots.save(plots.error_and_loss(RUN), tmp_path, "plain")]
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "savefig.dpi": 10}):
        before = dict(matplotlib.rcParams)
        found = plots.save(plots.error_and_loss(RUN), tmp_path, "plain")
        assert dict(matplotlib.rcParams) == before
    assert [path.read_bytes() for path in found] == expected


def test_pyplot_is_never_imported_nor_matplotlib_before_a_figure_is_made() -> None:
    program = """
import sys
import minidiff.figures.plots as plots
assert "matplotlib" not in sys.modules
import numpy as np
plots.first_filters(np.ones((2, 1, 3, 3)), np.array([True, False]))
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.png").write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.save(plots.first_filters(FILTERS, KEPT), tmp_path, "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    assert (tmp_path / "x.png").read_text() == "old"


def test_a_dense_network_has_no_figures_of_gates(tmp_path: Path) -> None:
    paths = plots.plot_run(tmp_path, DENSE, {}, LIMITS, FILTERS, np.ones(20, bool))
    assert {path.stem for path in paths} == FIGURES - GATE_FIGURES
    with pytest.raises(ValueError, match="no gates"):
        plots.architecture_over_time(DENSE)
    with pytest.raises(ValueError, match="gates is empty"):
        plots.gate_histogram({}, LIMITS)


def test_the_final_numbers_are_written_in_the_figures() -> None:
    last = record(
        30,
        open=dict(zip(GROUPS, (8, 10, 112, 68), strict=True)),
        architecture="8-10-112-68",
        weights=10_500,
    )
    run = [record(1), last]
    overview = texts(plots.overview(run, FILTERS, KEPT))
    for text in ("20-50-800-500 → 8-10-112-68", "41× fewer weights", "30× fewer MACs"):
        assert text in overview
    assert "0.17 % validation" in overview
    assert "7 of 20 filters" in overview
    assert "112 of 800 dense1 inputs" in texts(plots.architecture_over_time(run))
    counts = texts(plots.expected_and_actual(run))
    for text in ("10,500 actual", "14,350 expected", "430,500 dense"):
        assert text in counts


def test_frozen_gates_are_noted_only_where_training_went_on() -> None:
    assert "gates frozen" in texts(plots.architecture_over_time(RUN))
    until_the_end = [record(1), record(2), record(3, frozen=True)]
    assert "gates frozen" not in texts(plots.architecture_over_time(until_the_end))


def test_gates_on_the_borders_of_the_transition_count_as_closed_and_fully_open() -> None:
    figure = plots.gate_histogram({"a": np.array([-0.5, -0.5, -0.4, 0.0, 0.1, 0.5])}, LIMITS)
    assert "2 closed | 3 partly | 1 fully open" in texts(figure)
    heights = [bar.get_height() for bar in figure.axes[0].containers[0]]
    assert sum(heights) == 2


@settings(max_examples=10)
@given(
    errors=st.lists(st.sampled_from([0.0, 1e-3, 1.0, 50.0, 100.0]), min_size=1, max_size=4),
    loss=st.sampled_from([0.0, 1e-12, 2.3, 1e30, float("nan"), float("inf")]),
    left=st.sampled_from([0, 1]),
)
def test_any_run_can_be_drawn(errors: list[float], loss: float, left: int) -> None:
    run = [
        record(
            epoch,
            train_error=error,
            validation_error=0.0,
            loss=loss,
            expected_weights=float(left),
            weights=left,
            macs=left,
            open=dict.fromkeys(GROUPS, left),
            frozen=left == 0,
        )
        for epoch, error in enumerate(errors, start=7)
    ]
    draw(plots.overview(run, FILTERS, np.zeros(20, bool)))
    draw(plots.error_and_loss(run))
    draw(plots.expected_and_actual(run))


@settings(max_examples=10)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    scale=st.sampled_from([0.0, 1e-6, 1e6]),
    seed=st.integers(0, 99),
)
def test_filters_of_any_size_can_be_drawn(
    shape: tuple[int, int, int, int], scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    kept = rng.random(shape[0]) < 0.5
    figure = plots.first_filters(scale * rng.normal(size=shape), kept)
    draw(figure)
    assert f"{kept.sum()} of {shape[0]} filters kept" in texts(figure)


@settings(max_examples=10)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 1e3]),
    width=st.sampled_from([1e-3, 1.0, 100.0]),
    middle=st.sampled_from([0.0, 0.5, -30.0]),
    seed=st.integers(0, 99),
)
def test_every_gate_is_in_one_bar_of_its_histogram(
    counts: list[int], spread: float, width: float, middle: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    gates = {f"g{i}": spread * rng.normal(size=count) for i, count in enumerate(counts)}
    figure = plots.gate_histogram(gates, (middle - width / 2, middle + width / 2))
    draw(figure)
    for axes, count in zip(figure.axes, counts, strict=False):
        assert sum(bar.get_height() for zone in axes.containers for bar in zone) == count


@settings(max_examples=10)
@given(shares=st.lists(st.integers(0, 10), min_size=1, max_size=5))
def test_labels_at_the_ends_of_lines_do_not_overlap(shares: list[int]) -> None:
    groups = {f"layer{i}.outputs": 10 for i in range(len(shares))}
    run = [record(1, groups=groups, open=dict(zip(groups, shares, strict=True)))]
    figure = plots.architecture_over_time(run)
    draw(figure)
    boxes = [t.get_window_extent() for t in figure.axes[0].texts if "layer" in t.get_text()]
    boxes.sort(key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 for low, high in itertools.pairwise(boxes))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="records is empty"):
        plots.overview([], FILTERS, KEPT)
    with pytest.raises(ValueError, match=r"\(20, 1, 5, 5\) and kept \(3,\)"):
        plots.first_filters(FILTERS, np.ones(3, bool))
    with pytest.raises(ValueError, match="not finite"):
        plots.first_filters(FILTERS * np.float32("nan"), KEPT)
    with pytest.raises(ValueError, match="'a' is empty or not finite"):
        plots.gate_histogram({"a": np.array([np.nan])}, LIMITS)
    for limits in ((0.5, 0.5), (0.5, -0.5), (-np.inf, 0.5), (0.0, np.nan)):
        with pytest.raises(ValueError, match="limits are "):
            plots.gate_histogram(GATES, limits)
