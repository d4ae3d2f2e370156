"""The figures of a run: files, numbers, extreme runs, and no trace in Matplotlib's settings."""

import itertools
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from minidiff.figures import plots
from tests.records import DENSE, FILTERS, GROUPS, KEPT, RUN, record
from tests.strategies import seeds

LIMITS = (-0.5, 0.5)
GATES = {name: np.linspace(-1, 1, count, dtype=np.float32) for name, count in GROUPS.items()}
DENSE_FIGURES = {"overview", "error_and_loss", "first_filters"}
GATE_FIGURES = {"expected_and_actual", "architecture_over_time", "gate_histogram"}


def texts(figure: Figure) -> str:
    """Return everything written in a figure, with line breaks as spaces."""
    figure.draw_without_rendering()
    return " | ".join(text.get_text().replace("\n", " ") for text in figure.findobj(Text))


def test_a_run_is_drawn_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    new = tmp_path / "new" / "place"
    paths = plots.plot_run(new, RUN, GATES, LIMITS, FILTERS, KEPT)
    assert {path.stem for path in paths} == DENSE_FIGURES | GATE_FIGURES
    assert sorted(paths) == sorted(new.iterdir())
    plots.plot_run(tmp_path, RUN, GATES, LIMITS, FILTERS, KEPT)
    for path in paths:
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name
        if path.suffix == ".png":
            assert imread(path).ndim == 3
        else:
            assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_a_dense_network_has_no_figures_of_gates(tmp_path: Path) -> None:
    paths = plots.plot_run(tmp_path, DENSE, {}, LIMITS, FILTERS, np.ones(20, bool))
    assert {path.stem for path in paths} == DENSE_FIGURES
    with pytest.raises(ValueError, match="no gates"):
        plots.curves(DENSE, "gates")


def test_a_users_settings_neither_show_nor_change(tmp_path: Path) -> None:
    expected = [path.read_bytes() for path in plots.save(plots.curves(RUN, "loss"), tmp_path, "x")]
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "savefig.dpi": 10}):
        before = dict(matplotlib.rcParams)
        found = plots.save(plots.curves(RUN, "loss"), tmp_path, "x")
        assert dict(matplotlib.rcParams) == before
    assert [path.read_bytes() for path in found] == expected


def test_pyplot_is_never_imported() -> None:
    program = """
import sys, numpy as np, minidiff.figures.plots as plots
plots.first_filters(np.ones((2, 1, 3, 3)), np.array([True, False])).draw_without_rendering()
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_final_numbers_are_written_in_the_figures() -> None:
    last = record(30, weights=10_500, architecture="8-10-112-68")
    last["open"] = dict(zip(GROUPS, (8, 10, 112, 68), strict=True))
    run = [record(1), last]
    overview = texts(plots.overview(run, FILTERS, KEPT))
    for said in (
        "20-50-800-500 → 8-10-112-68",
        "41.0× fewer weights",
        "30.0× fewer MACs",
        "0.17 % validation error",
        "0.27 % training error",
        "112 of 800 dense1 inputs",
        "7 of 20 filters",
    ):
        assert said in overview
    weights = texts(plots.curves(run, "weights"))
    for said in ("14,350 expected", "10,500 actual", "430,500 dense"):
        assert said in weights


def test_frozen_gates_are_noted_only_where_training_went_on() -> None:
    assert "gates frozen" in texts(plots.curves(RUN, "gates"))
    assert "gates frozen" not in texts(plots.curves([*RUN[:3], record(4)], "gates"))
    assert "gates frozen" not in texts(plots.curves(DENSE, "error"))


def test_zero_is_drawn_at_the_foot_of_a_log_axis() -> None:
    run = [record(1, train_error=3.0), record(2, train_error=0.0)]
    figure = plots.curves(run, "error")
    assert "0.00 % training error" in texts(figure)
    (axes,) = figure.axes
    foot = axes.get_ylim()[0]
    assert axes.get_lines()[0].get_ydata()[-1] == foot < 2.5
    assert axes.get_yticklabels()[0].get_text() == "0 %"


@settings(max_examples=10)
@given(
    errors=st.lists(st.sampled_from([0.0, 1e-3, 1.0, 50.0, 100.0]), min_size=1, max_size=4),
    loss=st.sampled_from([0.0, 1e-12, 2.3, 1e30]),
    left=st.sampled_from([0, 1]),
    validation=st.sampled_from([None, 0.0]),
)
def test_any_run_can_be_drawn(
    errors: list[float], loss: float, left: int, validation: float | None
) -> None:
    changes = {"loss": loss, "weights": left, "macs": left, "expected_weights": left / 3}
    changes |= {"open": dict.fromkeys(GROUPS, left), "validation_error": validation}
    run = [record(7 + i, train_error=error, **changes) for i, error in enumerate(errors)]
    texts(plots.curves(run, *plots.PANELS))
    plots.overview(run, FILTERS, np.zeros(20, bool))


@settings(max_examples=10)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    scale=st.sampled_from([0.0, 1e-6, 1e6]),
    seed=seeds,
)
def test_filters_of_any_size_can_be_drawn(
    shape: tuple[int, int, int, int], scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    kept = rng.random(shape[0]) < 0.5
    figure = plots.first_filters(scale * rng.normal(size=shape), kept)
    assert f"{kept.sum()} of {shape[0]} filters" in texts(figure)


@settings(max_examples=10)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 1e3]),
    width=st.sampled_from([1e-3, 1.0, 100.0]),
    seed=seeds,
)
def test_the_histogram_counts_every_group_once(
    counts: list[int], spread: float, width: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    gates = {f"g{i}": spread * rng.normal(size=count) for i, count in enumerate(counts)}
    figure = plots.gate_histogram(gates, (-width / 2, width / 2))
    figure.draw_without_rendering()
    for axes, count in zip(figure.axes, counts, strict=True):
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert sum(int(label.split()[0]) for label in labels) == count


def test_groups_on_the_limits_are_closed_and_fully_open() -> None:
    phi = np.array([-0.5, -0.5, -0.4, 0.0, 0.1, 0.5])
    written = texts(plots.gate_histogram({"a": phi}, LIMITS))
    for said in ("2 closed", "3 partly open", "1 fully open"):
        assert said in written


def test_maps_show_kept_unused_and_closed_groups_in_blocks() -> None:
    is_open = (np.arange(800) >= 32) & (np.arange(800) < 192)
    used = is_open & (np.arange(800) < 160)
    gates = {"dense1.inputs": is_open, "dense1.outputs": np.arange(500) < 7}
    figure = plots.gate_maps(gates, {"dense1.inputs": used}, {"dense1.inputs": 50})
    assert "dense1 inputs 128 of 800 kept, 32 unused | " in texts(figure)
    assert "dense1 outputs 7 of 500 kept | " in texts(figure)
    drawn = figure.axes[0].images[0].get_array().compressed()
    assert np.bincount(drawn.astype(int)).tolist() == [640, 32, 128]
    # Channel 2, of 4x4 positions, is the first that is kept.
    assert (figure.axes[0].images[0].get_array()[:4, 10:14] == 2).all()


@settings(max_examples=10)
@given(shares=st.lists(st.integers(0, 10), min_size=1, max_size=8))
def test_labels_at_the_ends_of_lines_do_not_overlap(shares: list[int]) -> None:
    groups = {f"layer{i}.outputs": 10 for i in range(len(shares))}
    run = [record(1, groups=groups, open=dict(zip(groups, shares, strict=True)))]
    figure = plots.curves(run, "gates")
    figure.draw_without_rendering()
    labels = [text for text in figure.axes[0].texts if "layer" in text.get_text()]
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)
    assert len(boxes) == len(shares)
    assert all(low.y1 <= high.y0 for low, high in itertools.pairwise(boxes))
