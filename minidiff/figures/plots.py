"""Figures of a run: how training went, what is left, and what gates and filters look like.

Functions take plain data and return a Matplotlib ``Figure``; :func:`save` writes a figure to files.
A record is a mapping that describes the network after one epoch, as a line of ``metrics.jsonl``:

``epoch``
    The number of the epoch, from 1 on.
``loss``, ``train_error``, ``validation_error``
    The loss on the training data without the penalty; errors in %. The validation error is None
    without a validation set.
``expected_weights``, ``weights``, ``dense_weights``
    Weights left: expected by the surrogate, and actual; and all weights of the dense network.
``macs``, ``dense_macs``
    Multiply-adds for one sample: of what is left, and of the dense network.
``open``, ``groups``
    For each gate, by name: how many groups are open, and how many there are. Empty without gates.
``frozen``
    Whether the gates had stopped moving by the end of the epoch.
``architecture``, ``dense_architecture``
    Sizes of layers, such as "6-15-138-60": what is left, and those of the dense network.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from minidiff.io.files import write_whole

__all__ = ["curves", "first_filters", "gate_histogram", "gate_maps", "overview", "plot_run", "save"]

Records: TypeAlias = Sequence[Mapping[str, Any]]
Line: TypeAlias = tuple[NDArray[Any], str, str]  # values over epochs, label, colour
Lines: TypeAlias = Sequence[Line]
Bools: TypeAlias = NDArray[np.bool_]

# ------------------------------------------------------------------------------------------- style

# Okabe and Ito's colours, which colour-blind readers can tell apart. Their yellow and orange are
# left out, since text in them is hard to read on white.
BLUE, VERMILION, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, SKY)
INK, MUTED = "#1F2328", "#6A737D"
FAINT, SHADE = "#80808040", "#80808018"  # translucent, for paper of any colour

STYLE: Any = {  # the type of the keys depends on the version of Matplotlib
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.constrained_layout.h_pad": 0.1,  # inches
    "figure.constrained_layout.w_pad": 0.1,
    "grid.color": FAINT,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "svg.hashsalt": "minidiff",  # without a salt, identifiers in SVG are random
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
}

# Decorates functions that draw or save figures. They neither see nor change the caller's settings.
styled = matplotlib.style.context(STYLE, after_reset=True)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches. Without pyplot, it is freed like any object."""
    return Figure(figsize=(width, height), layout="constrained")


@styled
def save(figure: Figure, directory: str | Path, name: str) -> list[Path]:
    """Write ``name``.png, at 150 dots an inch, and ``name``.svg; return their paths.

    Each file appears whole or not at all. The same figure gives the same bytes.

    Parameters
    ----------
    figure
        Any figure of Matplotlib.
    directory
        Where the files go. It is made if it does not exist.
    name
        The name of both files, without an ending.

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
    for ending, metadata in (("png", {}), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=ending, dpi=150, metadata=metadata)
        path = directory / f"{name}.{ending}"
        write_whole(path, buffer.getvalue())
        paths.append(path)
    return paths


# ----------------------------------------------------------------------------------------- figures


@styled
def curves(records: Records, *names: str) -> Figure:
    """Draw numbers of a run over its epochs, one panel for each name, side by side.

    An error or a count of 0 is drawn at the foot of its log axis.

    Parameters
    ----------
    records
        The record of each epoch; the module's page lists the keys.
    names
        One or more of "error", "loss", "weights" (expected and actual), "savings" (of weights and
        of MACs) and "gates" (the share of open groups of each gate).

    Raises
    ------
    ValueError
        If "gates" are asked for and the network has none.

    Examples
    --------
    >>> record = {"epoch": 1, "expected_weights": 70, "weights": 75, "dense_weights": 90}
    >>> figure = curves([record | {"open": {}, "frozen": False}], "weights")
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['70 expected', '75 actual', '90 dense']
    """
    if "gates" in names and not records[-1]["open"]:
        raise ValueError("the network has no gates, so panel 'gates' cannot be drawn.")
    # Each gate has a label of two lines beside its curve.
    height = max(3.3, 0.5 + 0.4 * len(records[-1]["open"]))
    figure = new_figure(5 * len(names), height)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False).flat, names, strict=True):
        _draw_panel(axes, records, name)
    return figure


@styled
def gate_histogram(gates: Mapping[str, NDArray[Any]], limits: tuple[float, float]) -> Figure:
    """Draw how phi is spread in each gate: closed, partly open and fully open groups.

    Parameters
    ----------
    gates
        The phi of each gate, shape (groups,), by the name of the gate.
    limits
        A group is closed up to the first phi, and fully open from the second on (``Gate.limits``).

    Examples
    --------
    >>> phi = np.array([-1.0, 0.2, 1.5, 1.6])
    >>> figure = gate_histogram({"conv1.outputs": phi}, (-0.5, 0.5))
    >>> sorted(text.get_text() for text in figure.axes[0].get_legend().get_texts())
    ['1 closed', '1 partly open', '2 fully open']
    """
    figure, panels = _grid(len(gates), 7)
    colours = (MUTED, VERMILION, BLUE)
    low, high = limits
    values = np.concatenate([*gates.values(), limits])
    bins = np.linspace(values.min(), values.max(), 41).tolist()
    for (name, phi), axes in zip(gates.items(), panels, strict=True):
        closed, opened = phi <= low, phi >= high
        zones = {"closed": closed, "partly open": ~closed & ~opened, "fully open": opened}
        axes.axvspan(low, high, color=SHADE, zorder=0, linewidth=0)
        parts = [phi[inside] for inside in zones.values()]
        labels = [f"{inside.sum():,} {zone}" for zone, inside in zones.items()]
        # A bin that reaches over a limit has a bar of two colours.
        axes.hist(parts, bins, stacked=True, histtype="stepfilled", color=colours, label=labels)
        axes.legend(fontsize=8, frameon=False)
        axes.locator_params(nbins=5)
        axes.locator_params("y", integer=True)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_title(spaced(name))
        axes.set_xlabel("φ of a group")
    return figure


@styled
def gate_maps(
    gates: Mapping[str, Bools], used: Mapping[str, Bools], channels: Mapping[str, int]
) -> Figure:
    """Draw each gate as a map with one square for each group: kept, open but unused, or closed.

    Parameters
    ----------
    gates
        Which groups of each gate are open, shape (groups,), by the name of the gate.
    used
        Which inputs and outputs the network uses, by such names. An open gate is unused if
        another gate closes all that it leads to, or all that leads to it.
    channels
        For inputs that were flattened: the number of channels, by the name of the gate. Square
        channels are drawn as blocks.

    Examples
    --------
    >>> is_open = np.array([True, True, False])
    >>> used = np.array([True, False, False])
    >>> figure = gate_maps({"dense1.inputs": is_open}, {"dense1.inputs": used}, {})
    >>> figure.axes[0].get_title(loc="left").splitlines()
    ['dense1 inputs', '1 of 3 kept, 1 unused']
    """
    figure, panels = _grid(len(gates), 5)
    colours = ListedColormap([FAINT, BLUE + "66", BLUE])  # closed, unused, kept
    for (name, is_open), axes in zip(gates.items(), panels, strict=True):
        kept = used.get(name, is_open)
        states = is_open.astype(int) + kept
        count = len(states)
        side = math.isqrt(count // channels.get(name, count))
        if side > 1 and count % side**2 == 0:
            blocks = states.reshape(-1, side, side)
        else:
            blocks = np.broadcast_to(states.reshape(-1, 1, 1), (count, 4, 4))
        columns = math.ceil(math.sqrt(1.5 * len(blocks)))
        axes.imshow(_mosaic(blocks, columns), colours, vmin=0, vmax=2, interpolation="none")
        axes.set_axis_off()
        unused = f", {(states == 1).sum():,} unused" if (states == 1).any() else ""
        axes.set_title(f"{spaced(name)}\n{kept.sum():,} of {count:,} kept{unused}", size=9)
    figure.supxlabel("blue: kept · pale: open, but unused · grey: closed", size=8, color=MUTED)
    return figure


@styled
def first_filters(filters: NDArray[Any], kept: Bools) -> Figure:
    """Draw the filters of the first layer, kept ones first, dropped ones as grey tiles.

    Parameters
    ----------
    filters
        Weights, shape (O, C, KH, KW). The mean over the C channels is drawn.
    kept
        Which filters are kept, shape (O,).

    Examples
    --------
    >>> figure = first_filters(np.ones((3, 1, 5, 5)), np.array([True, False, True]))
    >>> figure.axes[0].get_title(loc="left")
    '2 of 3 filters'
    """
    columns = max(8, math.ceil(math.sqrt(3 * len(filters))))
    rows = math.ceil(len(filters) / columns)
    width = max(4.2, 0.3 * columns)  # inches
    figure = new_figure(width + 0.8, width * rows / columns + 0.5)
    axes = figure.subplots()
    _draw_filters(axes, filters, kept, columns)
    bar = axes.inset_axes((1.02, 0, 0.02, 1))
    figure.colorbar(axes.images[0], cax=bar, label="weight").outline.set_visible(False)
    return figure


@styled
def overview(records: Records, filters: NDArray[Any], kept: Bools) -> Figure:
    """Draw a run in one wide figure: error, savings, open gates and filters.

    A dense network has the loss in place of savings and gates.

    Parameters
    ----------
    records
        As in :func:`curves`.
    filters, kept
        As in :func:`first_filters`.

    Examples
    --------
    >>> record = {"epoch": 1, "loss": 0.2, "train_error": 5.0, "validation_error": 4.5}
    >>> record |= {"open": {}, "frozen": False}
    >>> overview([record], np.ones((3, 1, 5, 5)), np.ones(3, np.bool_)).get_suptitle()
    '4.50 % validation error'
    """
    last = records[-1]
    names = ["error", "savings", "gates"] if last["open"] else ["error", "loss"]
    figure = new_figure(12.5, 3.7)
    *panels, right = figure.subplots(1, len(names) + 1)
    for axes, name in zip(panels, names, strict=True):
        _draw_panel(axes, records, name)
    _draw_filters(right, filters, kept, math.isqrt(len(filters)))

    parts = []
    if last["open"]:
        for noun, key in (("weights", "weights"), ("MACs", "macs")):
            parts.append(saving(last[f"dense_{key}"], last[key], noun))
        if len(last["open"]) <= 5:  # the sizes of more layers do not fit
            parts.insert(0, f"{last['dense_architecture']} → {last['architecture']}")
    if last["validation_error"] is not None:
        parts.append(f"{last['validation_error']:.2f} % validation error")
    figure.suptitle("  ·  ".join(parts), x=0.01, ha="left", size=13, weight="bold")
    return figure


def plot_run(
    directory: str | Path,
    records: Records,
    gates: Mapping[str, NDArray[Any]],
    limits: tuple[float, float],
    filters: NDArray[Any],
    kept: Bools,
) -> list[Path]:
    """Write the figures of a run into a directory; return the paths of the files.

    Parameters
    ----------
    directory
        As in :func:`save`.
    records, filters, kept
        As in :func:`overview`.
    gates, limits
        As in :func:`gate_histogram`. Without gates, the figures of gates are left out.

    Raises
    ------
    OSError
        If a file cannot be written.

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
        "error_and_loss": curves(records, "error", "loss"),
        "first_filters": first_filters(filters, kept),
    }
    if gates:
        figures |= {
            "expected_and_actual": curves(records, "weights"),
            "architecture_over_time": curves(records, "gates"),
            "gate_histogram": gate_histogram(gates, limits),
        }
    return [path for name, figure in figures.items() for path in save(figure, directory, name)]


# ------------------------------------------------------------------------------------------ panels


def _draw_panel(axes: Axes, records: Records, name: str) -> None:
    title, unit, lines_of = PANELS[name]
    lines = lines_of(records)
    if name == "gates":
        axes.set_ylim(0, 105)
        axes.yaxis.set_major_formatter("{x:g} %")
    else:
        _log_axis(axes, lines, unit)
    _draw_lines(axes, records, lines)
    axes.set_title(title)


def _errors(records: Records) -> Lines:
    lines = [_line(records, "train_error", "{:.2f} %\ntraining error", MUTED)]
    if records[-1]["validation_error"] is not None:
        lines.append(_line(records, "validation_error", "{:.2f} %\nvalidation error", BLUE))
    return lines


def _loss(records: Records) -> Lines:
    return [_line(records, "loss", "{:.2g}", MUTED)]


def _weights(records: Records) -> Lines:
    return [
        _line(records, "expected_weights", "{:,.0f} expected", VERMILION),
        _line(records, "weights", "{:,.0f} actual", BLUE),
        _line(records, "dense_weights", "{:,.0f} dense", MUTED),
    ]


def _line(records: Records, key: str, label: str, colour: str) -> Line:
    values = np.array([record[key] for record in records], np.float64)
    return values, label.format(values[-1]), colour


def _savings(records: Records) -> Lines:
    lines = []
    for noun, key, colour in (("weights", "weights", BLUE), ("MACs", "macs", VERMILION)):
        dense = np.array([record[f"dense_{key}"] for record in records])
        left = np.array([record[key] for record in records])
        label = saving(dense[-1], left[-1], noun).replace(" ", "\n", 1)
        # A network with nothing left is drawn as one with a single weight.
        lines.append((dense / np.maximum(left, 1), label, colour))
    return lines


def _open_gates(records: Records) -> Lines:
    lines = []
    for i, (name, groups) in enumerate(records[-1]["groups"].items()):
        values = np.array([100 * record["open"][name] / groups for record in records])
        label = f"{records[-1]['open'][name]:,} of {groups:,}\n{spaced(name)}"
        lines.append((values, label, COLOURS[i % len(COLOURS)]))
    return lines


# By name: the title, the unit of the axis, and a function from records to lines.
PANELS: dict[str, tuple[str, str, Callable[[Records], Lines]]] = {
    "error": ("Error", " %", _errors),
    "loss": ("Training loss, without the penalty", "", _loss),
    "weights": ("Weights left", "", _weights),
    "savings": ("Savings", "×", _savings),
    "gates": ("Open gates", " %", _open_gates),
}


def _draw_filters(axes: Axes, filters: NDArray[Any], kept: Bools, columns: int) -> None:
    images = filters.mean(axis=1)
    scale = float(np.abs(images).max()) or 1.0
    images = np.where(kept[:, None, None], images, -2 * scale)  # below the scale: a grey tile
    # The colour is the sign of a weight and the opacity is its size, on paper of any colour.
    stops = [(0, BLUE), (0.5, BLUE + "00"), (0.5, VERMILION + "00"), (1, VERMILION)]
    colours = LinearSegmentedColormap.from_list("weights", stops).with_extremes(under=FAINT)
    mosaic = _mosaic(images[np.argsort(~kept, kind="stable")], columns)
    axes.imshow(mosaic, colours, vmin=-scale, vmax=scale, interpolation="none")
    axes.set_anchor("NW")
    axes.set_axis_off()
    axes.set_title(f"{kept.sum()} of {len(kept)} filters")


# ------------------------------------------------------------------------------------------- parts


def _grid(count: int, width: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with a number of panels, in rows of two; the width is in inches."""
    rows = math.ceil(count / 2)
    figure = new_figure(width, 0.4 * width * rows)
    return figure, [figure.add_subplot(rows, 2, place) for place in range(1, count + 1)]


def _mosaic(images: NDArray[Any], columns: int) -> NDArray[Any]:
    """Lay images, shape (N, H, W), out in a grid. A pixel between them is NaN, which is empty."""
    count, height, width = images.shape
    rows = math.ceil(count / columns)
    grid = np.full((rows * columns, height + 1, width + 1), np.nan)
    grid[:count, :height, :width] = images
    grid = grid.reshape(rows, columns, height + 1, width + 1).swapaxes(1, 2)
    return grid.reshape(rows * (height + 1), columns * (width + 1))


def _log_axis(axes: Axes, lines: Lines, unit: str) -> None:
    """Make the axis of y logarithmic, with ticks as close as there is room for."""
    values = np.concatenate([values for values, *_ in lines])
    values = np.where(values < 1e-9, 0, values)
    positive = values[values > 0] if values.any() else np.ones(1)
    smallest = positive.min() if values.all() else positive.min() / 2  # room for 0 at the foot
    for digits in (range(1, 10), (1, 2, 5), (1,)):
        steps = [float(f"{digit}e{power}") for power in range(-10, 40) for digit in digits]
        low = max(step for step in steps if step <= smallest)
        high = min(step for step in steps if step > positive.max())
        ticks = [step for step in steps if low <= step <= high]
        if len(ticks) <= 8:
            break
    names = {tick: f"{tick:,.10g}{unit}" for tick in ticks}
    if not values.all():
        names[low] = f"0{unit}"
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.set_yticks(list(names), list(names.values()))
    axes.minorticks_off()


def _draw_lines(axes: Axes, records: Records, lines: Lines) -> None:
    """Draw lines over epochs with labels at their ends; shade the epochs with frozen gates."""
    epochs = [record["epoch"] for record in records]
    axes.set_xlim(0, epochs[-1])
    axes.set_xlabel("epoch")
    axes.locator_params(axis="x", nbins=5, integer=True)
    foot, _ = axes.get_ylim()
    ends = []
    for values, _, colour in lines:
        shown = np.maximum(values, foot)
        axes.plot(epochs, shown, color=colour, marker="o", markevery=[-1], clip_on=False)
        ends.append((epochs[-1], shown[-1]))
    heights = (axes.transScale + axes.transLimits).transform(ends)[:, 1]
    _label_ends(axes, heights, lines)

    frozen = [record["epoch"] for record in records if record["frozen"] and record["open"]]
    if frozen and frozen[0] < epochs[-1]:
        axes.axvspan(frozen[0], epochs[-1], color=SHADE, zorder=0, linewidth=0)
        # Written at the height that is farthest from the ends of lines.
        y = max((0.87, 0.5, 0.12), key=lambda y: np.abs(heights - y).min())
        axes.text(
            0.98, y, "gates\nfrozen", transform=axes.transAxes, ha="right", va="center", size=8,
            color=MUTED,
        )  # fmt: skip


def _label_ends(axes: Axes, heights: NDArray[Any], lines: Lines) -> None:
    """Write labels right of the axes at heights from 0 to 1, moved apart where they overlap."""
    size, count = 9, len(lines)
    text_lines = 1 + max(label.count("\n") for _, label, _ in lines)
    gap = (1.2 * text_lines + 0.4) * size / 72 * axes.figure.dpi / axes.bbox.height
    gaps = gap * np.arange(count)
    order = np.lexsort((-np.arange(count), heights))  # of equal heights, the first comes on top
    # Heights less the gaps below them must not fall: raise some, lower others, and take the mean.
    free = heights[order] - gaps
    raised = np.maximum.accumulate(free)
    lowered = np.minimum.accumulate(free[::-1])[::-1]
    moved = np.clip((raised + lowered) / 2, 0, max(0, 1 - gaps[-1])) + gaps
    for height, index in zip(moved, order, strict=True):
        _, label, colour = lines[index]
        axes.annotate(
            label, (1, height), (8, 0), xycoords="axes fraction", textcoords="offset points",
            va="center", size=size, weight="bold", linespacing=1.1, color=colour,
        )  # fmt: skip


def times(dense: float, left: float) -> str:
    """Return how many times less is left than a dense network has, as text."""
    return f"{dense / left:,.1f}×" if left else "∞×"


def saving(dense: float, left: float, noun: str) -> str:
    """Return what is saved as text: "36.0× fewer weights", or "all weights"."""
    return f"{times(dense, left)} fewer {noun}" if left < dense else f"all {noun}"


def spaced(name: str) -> str:
    """Return the name of a gate as words."""
    return name.replace(".", " ")
