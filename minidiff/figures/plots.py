"""Figures of a training run: what it cost, what it left, and what its gates and filters look like.

Every function takes plain data and returns a Matplotlib Figure, made without pyplot and without a
trace in the settings of the caller; :func:`save` and :func:`plot_run` write them. A record is a
mapping that describes the network after an epoch:

``epoch``
    Its number.
``loss``, ``train_error``, ``validation_error`` (None without a validation set)
    The loss on the training data without the penalty; errors in %.
``expected_weights``, ``weights``, ``dense_weights``
    The surrogate of L0, what it stands for, and how many weights the network has without gates.
``macs``, ``dense_macs``
    Multiply-adds a sample, left and without gates.
``open``, ``groups``
    For each gate, by name: its open groups, and all its groups. Empty for a dense network.
``frozen``
    Whether the gates had stopped moving by the end of the epoch.

An error or a count of 0 has no place on a log axis: it is drawn at the foot, with its true number,
as is the endless saving of a network with nothing left at the top.
"""

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from minidiff.engine._types import Array
from minidiff.io.files import write_whole

# Matplotlib is imported where it is used, to keep importing minidiff quick.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

__all__ = [
    "architecture_over_time",
    "error_and_loss",
    "expected_and_actual",
    "first_filters",
    "gate_histogram",
    "overview",
    "plot_run",
    "save",
]

Records: TypeAlias = Sequence[Mapping[str, Any]]
Labels: TypeAlias = list[tuple[float, str, str]]  # height in units of the data, text, colour
P = ParamSpec("P")
R = TypeVar("R")

# Okabe and Ito's colours, which the colour-blind tell apart too. Yellow and orange are left out:
# text in them is hard to read on white.
BLUE, VERMILION, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, SKY)
INK, MUTED, FAINT, SHADE = "#1F2328", "#6A737D", "#E4E7EB", "#F3F4F6"

STYLE: Any = {  # how Matplotlib types the keys depends on its version
    "axes.axisbelow": True,
    "axes.edgecolor": "#AFB8C1",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.constrained_layout.h_pad": 0.11,  # inches
    "figure.constrained_layout.w_pad": 0.11,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # comes with Matplotlib, so figures are the same everywhere
    "font.size": 10,
    "grid.color": FAINT,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "savefig.facecolor": "white",  # so that it can be read on a dark page
    "svg.hashsalt": "minidiff",  # identifiers in SVG are random without it
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
}


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context():
        # Without this a user's own matplotlibrc would show through.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def _styled(function: Callable[P, R]) -> Callable[P, R]:
    @wraps(function)
    def styled(*args: P.args, **kwargs: P.kwargs) -> R:
        with _style():
            return function(*args, **kwargs)

    return styled


# ----------------------------------------------------------------------------------------- figures


@_styled
def error_and_loss(records: Records) -> "Figure":
    """Draw training and validation error beside the training loss, over epochs, on log axes.

    Parameters
    ----------
    records
        One or more; their keys are listed at the top.

    Raises
    ------
    ValueError
        If there are no records.

    Examples
    --------
    >>> record = {"epoch": 1, "loss": 0.2, "train_error": 5.0, "validation_error": None}
    >>> figure = error_and_loss([record | {"frozen": False}])
    >>> [axes.get_title(loc="left") for axes in figure.axes]
    ['Classification error', 'Training loss, without the penalty']
    """
    check_records(records)
    figure = _figure(9.5, 3.4)
    left, right = figure.subplots(1, 2)
    _draw_error(left, records)
    _draw_loss(right, records)
    return figure


@_styled
def expected_and_actual(records: Records) -> "Figure":
    """Draw the expected count of weights, which training sees, beside the actual one.

    Parameters
    ----------
    records
        As of :func:`error_and_loss`.

    Raises
    ------
    ValueError
        If there are no records.

    Examples
    --------
    >>> record = {"epoch": 1, "expected_weights": 70, "weights": 75, "dense_weights": 90}
    >>> figure = expected_and_actual([record | {"frozen": False}])
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['70 expected', '75 actual', '90 dense']
    """
    check_records(records)
    figure = _figure(7, 3.6)
    axes = figure.subplots()
    dense = records[-1]["dense_weights"]
    expected, actual = _series(records, "expected_weights"), _series(records, "weights")
    low, high = _log_axis(axes, np.concatenate([expected, actual, [dense]]), "{:,.10g}")
    axes.axhline(dense, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
    labels = [(float(dense), f"{dense:,} dense", MUTED)]
    for name, values, colour in (("expected", expected, VERMILION), ("actual", actual, BLUE)):
        shown = np.clip(values, low, high)
        _draw_line(axes, records, shown, colour)
        labels.append((shown[-1], f"{values[-1]:,.0f} {name}", colour))
    _finish_epochs(axes, records, labels)
    axes.set_title("Weights left: expected by the surrogate, and actual")
    return figure


@_styled
def architecture_over_time(records: Records) -> "Figure":
    """Draw the share of open groups of each gate over epochs, with the final numbers.

    Parameters
    ----------
    records
        As of :func:`error_and_loss`.

    Raises
    ------
    ValueError
        If there are no records, or the network has no gates.

    Examples
    --------
    >>> record = {"epoch": 1, "open": {"conv1": 8}, "groups": {"conv1": 20}, "frozen": False}
    >>> architecture_over_time([record]).axes[0].texts[0].get_text().splitlines()
    ['8 of 20', 'conv1']
    """
    check_records(records)
    if not records[-1]["open"]:
        raise ValueError("the records name no gates; expected one or more in 'open' and 'groups'.")
    figure = _figure(7, max(3.6, 0.8 + 0.4 * len(records[-1]["open"])))
    _draw_architecture(figure.subplots(), records)
    return figure


@_styled
def gate_histogram(gates: Mapping[str, Array], limits: tuple[float, float]) -> "Figure":
    """Draw how phi is spread in each gate, over the zones closed, in transition and fully open.

    Parameters
    ----------
    gates
        The name of each gate and its phi, shape (groups,).
    limits
        Up to which phi gates are closed, and from which on fully open (``Gate.limits``).

    Raises
    ------
    ValueError
        If there are no gates, a phi is empty or not finite, or ``limits`` do not rise.

    Examples
    --------
    >>> phi = np.array([-1.0, 0.2, 1.5, 1.6])
    >>> figure = gate_histogram({"conv1.outputs": phi}, (-0.5, 0.5))
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['1 closed', '1 partly', '2 fully open']
    """
    if not gates:
        raise ValueError("gates is empty; expected the phi of one gate or more.")
    for name, phi in gates.items():
        if phi.size == 0 or not np.isfinite(phi).all():
            raise ValueError(f"phi of gate {name!r} is empty or not finite; it cannot be drawn.")
    if not -math.inf < limits[0] < limits[1] < math.inf:
        raise ValueError(f"limits are {limits}; expected two finite numbers that rise.")

    columns = min(len(gates), 4)
    rows = -(-len(gates) // columns)
    figure = _figure(max(3.0 * columns, 4.5), 2.9 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flat
    values = np.concatenate([phi.ravel() for phi in gates.values()]).astype(np.float64)
    edges = _zone_edges(values, limits)
    for (name, phi), axes in zip(gates.items(), panels, strict=False):
        _draw_zones(axes, phi.astype(np.float64), edges)
        axes.set_title(spaced(name), pad=20)
        axes.set_xlabel("φ")
        axes.xaxis.set_tick_params(labelbottom=True)
    for axes in panels:  # the places of the grid that are left over
        axes.set_axis_off()
    figure.axes[0].set_ylabel("groups")
    return figure


@_styled
def first_filters(filters: Array, kept: NDArray[np.bool_]) -> "Figure":
    """Draw the filters of the first convolution, kept ones first, dropped ones crossed out.

    Parameters
    ----------
    filters
        Shape (O, C, KH, KW); the mean over the C channels is drawn.
    kept
        Which filters are kept, shape (O,).

    Raises
    ------
    ValueError
        If the shapes do not fit, or a weight is not finite.

    Examples
    --------
    >>> figure = first_filters(np.ones((3, 1, 5, 5)), np.array([True, False, True]))
    >>> figure.axes[0].get_title(loc="left")
    'First convolution: 2 of 3 filters kept'
    """
    check_filters(filters, kept)
    columns = min(len(filters), max(10, math.ceil(math.sqrt(3 * len(filters)))))
    rows = -(-len(filters) // columns)
    height, width = 0.8 * np.array(filters.shape[2:]) / max(filters.shape[2:])
    figure = _figure(max(4.5, width * columns + 1.2), height * rows + 0.7)
    axes = figure.subplots()
    colours = _draw_filters(axes, filters, kept, columns)
    axes.set_title(f"First convolution: {int(kept.sum())} of {len(kept)} filters kept")

    # An inset is as high as the grid; 0.2 and 0.16 are inches.
    bar = axes.inset_axes((1 + 0.2 / (width * columns), 0, 0.16 / (width * columns), 1))
    figure.colorbar(colours, cax=bar, label="weight").outline.set_visible(False)
    return figure


@_styled
def overview(records: Records, filters: Array, kept: NDArray[np.bool_]) -> "Figure":
    """Draw a run in one wide picture: error, savings, architecture and filters.

    A dense network has the loss in place of savings and architecture.

    Parameters
    ----------
    records
        As of :func:`error_and_loss`.
    filters, kept
        As of :func:`first_filters`.

    Raises
    ------
    ValueError
        As of these.

    Examples
    --------
    >>> record = {"epoch": 1, "loss": 0.2, "train_error": 5.0, "validation_error": 4.5}
    >>> record |= {"open": {}, "frozen": False}
    >>> overview([record], np.ones((3, 1, 5, 5)), np.ones(3, np.bool_)).get_suptitle()
    '4.50 % validation error'
    """
    check_records(records)
    check_filters(filters, kept)
    gated = bool(records[-1]["open"])
    draw = [_draw_error, _draw_savings, _draw_architecture] if gated else [_draw_error, _draw_loss]
    figure = _figure(11.5, 3.7)
    *panels, last = figure.subplots(1, len(draw) + 1, width_ratios=[1] * len(draw) + [1.05])
    for axes, function in zip(panels, draw, strict=True):
        function(axes, records)
    _draw_filters(last, filters, kept, math.isqrt(len(filters)))
    last.set_title(f"{int(kept.sum())} of {len(kept)} filters")
    figure.suptitle(_headline(records[-1]), x=0.01, ha="left", fontsize=13.5, fontweight="bold")
    return figure


# ----------------------------------------------------------------------------------------- writing


def save(figure: "Figure", directory: str | Path, name: str) -> list[Path]:
    """Write ``name``.png, at 150 dots an inch, and ``name``.svg; return their paths.

    Each file appears whole or not at all, and the same figure gives the same bytes.

    Parameters
    ----------
    figure
        Any of Matplotlib's.
    directory
        Is made if need be.
    name
        Without an ending.

    Raises
    ------
    OSError
        If a file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> figure = first_filters(np.ones((3, 1, 5, 5)), np.ones(3, np.bool_))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     [path.name for path in save(figure, directory, "filters")]
    ['filters.png', 'filters.svg']
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, metadata in (("png", None), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        with _style():
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
        path = directory / f"{name}.{kind}"
        write_whole(path, buffer.getbuffer())
        paths.append(path)
    return paths


def plot_run(
    directory: str | Path,
    records: Records,
    gates: Mapping[str, Array],
    limits: tuple[float, float],
    filters: Array,
    kept: NDArray[np.bool_],
) -> list[Path]:
    """Write every figure of a run into ``directory``; return the paths.

    The figures of gates are left out for a network without.

    Parameters
    ----------
    directory
        As of :func:`save`.
    records, filters, kept
        As of :func:`overview`.
    gates, limits
        As of :func:`gate_histogram`; no gates for a dense network.

    Raises
    ------
    ValueError, OSError
        As of these.

    Examples
    --------
    >>> import tempfile
    >>> record = {"epoch": 1, "loss": 0.2, "train_error": 5.0, "validation_error": 4.5}
    >>> records, filters = [record | {"open": {}, "frozen": False}], np.ones((3, 1, 5, 5))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     paths = plot_run(directory, records, {}, (0, 1), filters, np.ones(3, np.bool_))
    >>> [path.name for path in paths if path.suffix == ".svg"]
    ['overview.svg', 'error_and_loss.svg', 'first_filters.svg']
    """
    figures = {
        "overview": overview(records, filters, kept),
        "error_and_loss": error_and_loss(records),
        "first_filters": first_filters(filters, kept),
    }
    if gates:
        figures |= {
            "expected_and_actual": expected_and_actual(records),
            "architecture_over_time": architecture_over_time(records),
            "gate_histogram": gate_histogram(gates, limits),
        }
    return [path for name, figure in figures.items() for path in save(figure, directory, name)]


# ------------------------------------------------------------------------------------------ panels


def _draw_error(axes: "Axes", records: Records) -> None:
    lines = [("train", _series(records, "train_error"), MUTED)]
    if records[-1]["validation_error"] is not None:
        lines.append(("validation", _series(records, "validation_error"), BLUE))
    low, high = _log_axis(axes, np.concatenate([values for _, values, _ in lines]), "{:g} %")
    labels = []
    for name, values, colour in lines:
        shown = np.clip(values, low, high)
        _draw_line(axes, records, shown, colour)
        labels.append((shown[-1], f"{values[-1]:.2f} %\n{name}", colour))
    _finish_epochs(axes, records, labels)
    axes.set_title("Classification error")


def _draw_loss(axes: "Axes", records: Records) -> None:
    values = _series(records, "loss")
    shown = np.clip(values, *_log_axis(axes, values, "{:g}"))
    _draw_line(axes, records, shown, MUTED)
    _finish_epochs(axes, records, [(shown[-1], f"{values[-1]:.2g}", MUTED)])
    axes.set_title("Training loss, without the penalty")


def _draw_savings(axes: "Axes", records: Records) -> None:
    savings = []
    for name, noun, colour in (("weights", "weights", BLUE), ("macs", "MACs", VERMILION)):
        ratios = np.array([_times(r[f"dense_{name}"], r[name]) for r in records])
        savings.append((ratios, f"{_times_text(ratios[-1])}\nfewer {noun}", colour))
    low, high = _log_axis(
        axes, np.concatenate([[1.0], *(ratios for ratios, *_ in savings)]), "{:g}×"
    )
    labels = []
    for ratios, text, colour in savings:
        shown = np.clip(ratios, low, high)
        _draw_line(axes, records, shown, colour)
        labels.append((shown[-1], text, colour))
    _finish_epochs(axes, records, labels)
    axes.set_title("Savings")


def _draw_architecture(axes: "Axes", records: Records) -> None:
    labels = []
    axes.set_ylim(0, 105)
    for i, (name, groups) in enumerate(records[-1]["groups"].items()):
        colour = COLOURS[i % len(COLOURS)]
        share = np.array([100 * record["open"][name] / groups for record in records])
        _draw_line(axes, records, share, colour)
        left = records[-1]["open"][name]
        labels.append((share[-1], f"{left} of {groups}\n{spaced(name)}", colour))
    axes.set_yticks([0, 25, 50, 75, 100], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    _finish_epochs(axes, records, labels)
    axes.set_title("Open gates")


def _draw_zones(axes: "Axes", phi: Array, edges: list[Array]) -> None:
    """Draw a histogram of phi, shape (groups,), in three zones with the given edges of bins."""
    from matplotlib.ticker import MaxNLocator

    closed, opened = phi <= edges[0][-1], phi >= edges[2][0]
    zones = (
        ("closed", closed, MUTED, SHADE),
        ("partly", ~closed & ~opened, VERMILION, "#FCEDE3"),
        ("fully open", opened, BLUE, "#E8F2F9"),
    )
    axes.set_xlim(edges[0][0], edges[2][-1])
    for (_, inside, colour, shade), bins in zip(zones, edges, strict=True):
        axes.axvspan(bins[0], bins[-1], color=shade, zorder=0, linewidth=0)
        counts, _ = np.histogram(phi[inside], bins)
        axes.bar(bins[:-1], counts, np.diff(bins), align="edge", color=colour, linewidth=0)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    texts = zip(zones, (0.0, 0.5, 1.0), ("left", "center", "right"), strict=True)
    for (name, inside, colour, _), place, side in texts:
        text = f"{int(inside.sum())} {name}"
        axes.text(place, 1.02, text, transform=axes.transAxes, ha=side, fontsize=8.5, color=colour)


# ------------------------------------------------------------------------------------------- parts


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_line(axes: "Axes", records: Records, values: Array, colour: str) -> None:
    """Draw values over epochs, with a dot on the last."""
    epochs = [record["epoch"] for record in records]
    axes.plot(epochs, values, color=colour, clip_on=False)
    axes.plot(epochs[-1:], values[-1:], "o", color=colour, markersize=5, clip_on=False)


def _finish_epochs(axes: "Axes", records: Records, labels: Labels) -> None:
    """Set up the axis of epochs, shade those with frozen gates, and label the ends of lines."""
    from matplotlib.ticker import MaxNLocator

    first, last = records[0]["epoch"], records[-1]["epoch"]
    if first == last:
        first, last = first - 0.5, last + 0.5
    axes.set_xlim(first, last)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    points = axes.transData.transform([(last, value) for value, *_ in labels])
    # A loss that is not a number has no height, but a label all the same.
    heights = np.nan_to_num(axes.transAxes.inverted().transform(points)[:, 1])
    _label_ends(axes, heights, labels)

    frozen = [record["epoch"] for record in records if record["frozen"]]
    # Gates that stop only with the last epoch leave nothing to shade.
    if frozen and frozen[0] < records[-1]["epoch"] and records[-1]["open"]:
        axes.axvspan(frozen[0], last, color=SHADE, zorder=0, linewidth=0)
        # Out of the way of where the lines end.
        place = max((0.87, 0.5, 0.12), key=lambda place: np.abs(heights - place).min())
        axes.text(
            last - 0.02 * (last - first),
            place,
            "gates\nfrozen",
            transform=axes.get_xaxis_transform(),
            ha="right",
            va="center",
            fontsize=8,
            color=MUTED,
        )


def _label_ends(axes: "Axes", heights: Array, labels: Labels) -> None:
    """Write labels right of the axes, at heights in units of the axes, or near where they overlap.

    They move as little as can be (least squares), and stay within the axes.
    """
    size, count = 9, len(labels)
    lines = max(text.count("\n") for _, text, _ in labels) + 1
    gap = (1.2 * lines + 0.4) * size / 72 * axes.figure.dpi / axes.bbox.height
    order = np.lexsort((-np.arange(count), heights))  # of equals the first comes on top
    # Less the gaps below them, heights need only not decrease.
    moved = _isotonic(heights[order] - gap * np.arange(count))
    moved = np.clip(moved, 0, max(0, 1 - gap * (count - 1))) + gap * np.arange(count)
    for height, index in zip(moved, order, strict=True):
        _, text, colour = labels[index]
        axes.annotate(
            text,
            (1, height),
            xycoords="axes fraction",
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=size,
            fontweight="bold",
            linespacing=1.1,
            color=colour,
        )


def _isotonic(values: Array) -> Array:
    """Return the numbers that do not decrease and are nearest to the values, shape (n,)."""
    n = len(values)
    return np.array(
        [
            max(min(values[j : k + 1].mean() for k in range(i, n)) for j in range(i + 1))
            for i in range(n)
        ]
    )


def _log_axis(axes: "Axes", values: Array, form: str) -> tuple[float, float]:
    """Make the axis of y logarithmic, from 1-2-5 step to step around the values.

    Returns its limits, between which there is room at the foot for 0, at the top for infinity.
    """
    from matplotlib.ticker import NullLocator

    positive = values[np.isfinite(values) & (values > 0)]
    smallest, largest = (positive.min(), positive.max()) if positive.size else (1.0, 1.0)
    powers = range(math.floor(math.log10(smallest)) - 1, math.ceil(math.log10(largest)) + 2)
    steps = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
    low = max(step for step in steps if step <= smallest)
    high = min(step for step in steps if step >= largest)
    flat, zero, endless = low == high, (values <= 0).any(), np.isposinf(values).any()
    if flat or zero:
        low = steps[steps.index(low) - 1]
    if flat or endless:
        high = steps[steps.index(high) + 1]
    ticks = [step for step in steps if low <= step <= high]
    if len(ticks) > 6:
        ticks = [tick for tick in ticks if f"{tick:e}".startswith("1")]
    names = {tick: form.format(tick) for tick in ticks}
    if zero:
        names[low] = form.format(0)
    if endless:
        names[high] = form.format(math.inf).replace("inf", "∞")
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.set_yticks(list(names), list(names.values()))
    axes.yaxis.set_minor_locator(NullLocator())
    return low, high


def _zone_edges(values: Array, limits: tuple[float, float]) -> list[Array]:
    """Return the edges of bins for the zones closed, between and open.

    No bin reaches over a border of zones; all are about as wide, but those in a narrow transition.
    """
    closed, opened = limits
    width = opened - closed
    low, high = min(values.min(), closed - width / 2), max(values.max(), opened + width / 2)
    step = (high - low) / 40
    inner = max(1, round(width / step))
    step = max(step, width / inner)
    below, above = (math.floor(side / step) + 1 for side in (closed - low, high - opened))
    return [
        closed - step * np.arange(below, -1, -1),
        np.linspace(closed, opened, inner + 1),
        opened + step * np.arange(above + 1),
    ]


def _draw_filters(
    axes: "Axes", filters: Array, kept: NDArray[np.bool_], columns: int
) -> "ScalarMappable":
    """Draw filters in a grid; return their colours."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    images = filters.mean(axis=1)
    scale = float(np.abs(images).max()) or 1.0
    colours, greys = (
        ScalarMappable(Normalize(-scale, scale), LinearSegmentedColormap.from_list("", shades))
        for shades in ((BLUE, "white", VERMILION), ("#9AA2AB", "#F6F7F8", "#9AA2AB"))
    )
    height, width = images.shape[1:]
    # The gap between filters is a fifth of their size.
    for place, index in enumerate(np.argsort(~kept, kind="stable")):
        top, left = place // columns * 1.2 * height, place % columns * 1.2 * width
        x, y = left + np.arange(width + 1), top + np.arange(height + 1)
        image = (colours if kept[index] else greys).to_rgba(images[index])
        axes.pcolormesh(x, y, image, rasterized=height * width > 100)  # lest files be huge
        ring = ([x[0], x[-1], x[-1], x[0], x[0]], [y[0], y[0], y[-1], y[-1], y[0]])
        axes.plot(*ring, color="#AFB8C1" if kept[index] else FAINT, linewidth=0.8)
        if not kept[index]:
            axes.plot(x[[0, -1]], y[[0, -1]], color=MUTED, linewidth=0.8)
            axes.plot(x[[0, -1]], y[[-1, 0]], color=MUTED, linewidth=0.8)
    axes.set_aspect("equal", anchor="NW")
    axes.invert_yaxis()
    axes.set_axis_off()
    return colours


def _series(records: Records, key: str) -> Array:
    return np.array([record[key] for record in records], np.float64)


def _headline(record: Mapping[str, Any]) -> str:
    parts = []
    if record["open"]:
        weights, macs = (
            _times_text(_times(record[f"dense_{name}"], record[name]))
            for name in ("weights", "macs")
        )
        parts = [f"{weights} fewer weights", f"{macs} fewer MACs"]
        if len(record["open"]) <= 5:  # more do not fit
            parts.insert(0, f"{record['dense_architecture']} → {record['architecture']}")
    error = record["validation_error"]
    if error is not None:
        parts.append(f"{error:.2f} % validation error")
    return "  ·  ".join(parts)


def _times(dense: int, left: int) -> float:
    return dense / left if left else math.inf


def _times_text(ratio: float) -> str:
    if math.isinf(ratio):
        return "∞×"
    return f"{ratio:.1f}×" if ratio < 10 else f"{ratio:,.0f}×"


def spaced(name: str) -> str:
    return name.replace(".", " ")


def check_records(records: Records) -> None:
    if not records:
        raise ValueError("records is empty; expected the record of one epoch or more.")


def check_filters(filters: Array, kept: NDArray[np.bool_]) -> None:
    if filters.ndim != 4 or 0 in filters.shape or kept.shape != filters.shape[:1]:
        raise ValueError(
            f"filters have shape {filters.shape} and kept {kept.shape}; expected (O, C, KH, KW), "
            f"none of them 0, and (O,)."
        )
    if not np.isfinite(filters).all():
        raise ValueError("filters hold numbers that are not finite; they cannot be drawn.")
