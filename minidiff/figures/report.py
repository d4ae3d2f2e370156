"""The page of a run: one HTML file that holds all it shows and loads nothing from anywhere."""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from minidiff._version import __version__
from minidiff.figures import plots
from minidiff.figures.plots import Bools, Records

__all__ = ["Mistake", "report_page"]

STYLE = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
MOST_MISTAKES = 100  # that are shown
MOST_GROUPS = 4096  # of a gate that has a map


@dataclass(frozen=True, eq=False)
class Mistake:
    """A misclassified test image.

    Attributes
    ----------
    index : int
        Its place in the test set.
    image : ndarray of uint8, shape (H, W)
        Grey values, light on dark.
    label : int
        Its true class.
    probabilities : ndarray of float, shape (classes,)
        The network's probability of each class; they sum to 1.

    Examples
    --------
    >>> image = np.zeros((28, 28), np.uint8)
    >>> mistake = Mistake(3, image, 1, np.array([0.25, 0.125, 0.625]))
    >>> mistake.answer
    2
    """

    index: int
    image: NDArray[np.uint8]
    label: int
    probabilities: NDArray[Any]

    @property
    def answer(self) -> int:
        """The class with the highest probability."""
        return int(self.probabilities.argmax())


def report_page(
    *,
    title: str,
    source: str,
    config: Mapping[str, Any],
    records: Records,
    result: Mapping[str, Any],
    gates: Mapping[str, Bools],
    used: Mapping[str, Bools],
    filters: NDArray[Any],
    mistakes: Sequence[Mistake],
) -> str:
    """Return an HTML page about a run; the same run gives the same page.

    Parameters
    ----------
    title
        The heading of the page, such as the name of the run directory.
    source
        A sentence about where the data came from.
    config
        All settings of the run.
    records
        The record of each epoch, as :mod:`~minidiff.figures.plots` describes it.
    result
        The content of ``result.json``.
    gates
        Which groups of each gate are open, shape (groups,), by name, such as "conv1.outputs".
        Empty for a dense network.
    used
        Which inputs and outputs of each layer the network uses, by such names, as
        :func:`~minidiff.pruning.count.in_use` returns them.
    filters
        Weights of the first layer, shape (O, C, KH, KW); the mean over C is shown.
    mistakes
        All misclassified test images, in any order.

    Examples
    --------
    >>> record = {"epoch": 1, "loss": 0.2, "train_error": 5.0, "validation_error": None}
    >>> record |= {"open": {}, "groups": {}, "frozen": False}
    >>> sizes = dict.fromkeys(["weights", "dense_weights", "macs", "dense_macs"], 9)
    >>> result = sizes | {"bytes": 40, "dense_bytes": 40, "step_ms": 1.5, "first_step_ms": 1.5}
    >>> result |= {"test_error": 4.0, "seconds": 60.0, "peak_megabytes": None}
    >>> layer = {"inputs": [1, 1], "outputs": [1, 1], "weights": [9, 9], "macs": [9, 9]}
    >>> result["layers"] = [{"name": "conv1"} | layer]
    >>> page = report_page(
    ...     title="a run", source="Noise.", config={"dataset": "noise"},
    ...     records=[record | sizes], result=result, gates={},
    ...     used={"conv1.outputs": np.ones(1, bool)}, filters=np.ones((1, 1, 3, 3)), mistakes=[],
    ... )
    >>> page.splitlines()[0], "A dense run" in page
    ('<!DOCTYPE html>', True)
    """
    last, layers = records[-1], result["layers"]
    gated = bool(last["open"])
    names = ["error", "loss", *(("weights", "savings", "gates") if gated else ())]
    training = [plots.curves(records, name) for name in names]
    left = [plots.first_filters(filters, used[f"{layers[0]['name']}.outputs"])]
    mapped = {name: is_open for name, is_open in gates.items() if len(is_open) <= MOST_GROUPS}
    if mapped:
        channels = {f"{b['name']}.inputs": a["outputs"][1] for a, b in pairwise(layers)}
        left.insert(0, plots.gate_maps(mapped, used, channels))

    epochs = "1 epoch" if len(records) == 1 else f"{len(records)} epochs"
    about = ["A pruning run" if gated else "A dense run", config["dataset"], epochs]
    about.append(f"{result['seconds']:,.0f} s of training")
    if result["peak_megabytes"] is not None:
        about.append(f"{result['peak_megabytes']:,.0f} MB of memory at most")
    pruned = gated and last["weights"] < last["dense_weights"]
    notes = {0: "Nothing is left of the network: train again, and prune less."}
    if gated:
        notes[last["dense_weights"]] = "Nothing is closed: the network is as large as before."
    # The policy forbids every request, and the page needs none.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} · minidiff</title>
<style>{STYLE}</style>
</head>
<body>
<small>{escape(" · ".join(about))}</small>
<h1>{escape(title)}</h1>
<p>{escape(source)} <b>{notes.get(last["weights"], "")}</b></p>
<div class="tiles">{_tiles(last, result, pruned)}</div>
<h2>{"What is left" if gated else "The network"}</h2>
<div class="grid">{_layers(layers, pruned)}{_network(result, pruned)}{_svg(left)}</div>
<h2>Training</h2>
<div class="grid">{_svg(training)}</div>
<h2>Settings</h2>
<dl>{_settings(config)}</dl>
<h2>Mistakes</h2>
{_mistakes(mistakes)}
<small>{escape(source)} This page was written by minidiff {__version__}.</small>
</body>
</html>
"""


# ---------------------------------------------------------------------------------------- sections


def _tiles(last: Mapping[str, Any], result: Mapping[str, Any], pruned: bool) -> str:
    validation = last["validation_error"]
    detail = "" if validation is None else f"{validation:.2f} % validation error"
    tiles = [(f"{result['test_error']:.2f} %", "test error", detail)]
    for noun, key in (("weights", "weights"), ("MACs", "macs")):
        left, dense = last[key], last[f"dense_{key}"]
        if pruned:
            tiles.append((plots.times(dense, left), f"fewer {noun}", f"{left:,} of {dense:,}"))
        else:
            tiles.append((f"{left:,}", noun, "of a dense network"))
    if pruned:
        tiles.append((last["architecture"], "architecture", f"of {last['dense_architecture']}"))
    return "".join(
        f"<div><b>{escape(value)}</b>{label}<small>{escape(detail)}</small></div>"
        for value, label, detail in tiles
    )


def _layers(layers: Sequence[Mapping[str, Any]], pruned: bool) -> str:
    rows = []
    for layer in layers:
        row = [escape(layer["name"])]
        for key in ("inputs", "outputs", "weights", "macs"):
            left, dense = layer[key]
            row.append(f"{left:,}<small>of {dense:,}</small>" if pruned else f"{left:,}")
        rows.append(row)
    return _table("Layers", ["layer", "inputs", "outputs", "weights", "MACs"], rows)


def _network(result: Mapping[str, Any], pruned: bool) -> str:
    rows = []
    for label, dense_key, key, form in (
        ("weights", "dense_weights", "weights", "{:,}"),
        ("MACs a sample", "dense_macs", "macs", "{:,}"),
        ("bytes", "dense_bytes", "bytes", "{:,}"),
        ("training step", "first_step_ms", "step_ms", "{:.1f} ms"),
    ):
        dense, left = result[dense_key], result[key]
        texts = [form.format(dense), form.format(left), plots.times(dense, left)]
        rows.append([label, *(texts if pruned else texts[1:2])])
    header = ["", "dense", "pruned", "saving"] if pruned else ["", "dense"]
    return _table("The whole network", header, rows)


def _mistakes(mistakes: Sequence[Mistake]) -> str:
    if not mistakes:
        return "<p>Every test image is classified correctly.</p>"
    worst = sorted(mistakes, key=lambda mistake: (-mistake.probabilities.max(), mistake.index))
    pairs = Counter((mistake.label, mistake.answer) for mistake in worst).most_common(3)
    often = ", ".join(f"{label} taken for {answer} ({n}×)" for (label, answer), n in pairs)
    cards = [_card(mistake) for mistake in worst[:MOST_MISTAKES]]
    text = (
        f"Misclassified test images: {len(worst):,}. Most often: {often}. The most confident wrong "
        f"answers come first; at most {MOST_MISTAKES} images are shown."
    )
    return f'<p>{text}</p><div class="cards">{"".join(cards)}</div>'


def _card(mistake: Mistake) -> str:
    best = np.argsort(-mistake.probabilities, kind="stable")[:3].tolist()
    if mistake.label not in best:
        best[-1] = mistake.label
    answers = "".join(
        f'<li style="--share:{100 * mistake.probabilities[i]:.1f}%">{i}'
        f"<span>{100 * mistake.probabilities[i]:.1f} %</span></li>"
        for i in best
    )
    return (
        f'<figure><img src="{_png(mistake.image)}" '
        f'alt="test image {mistake.index}, a {mistake.label}"><figcaption>'
        f"<b>{mistake.label}</b> taken for <b>{mistake.answer}</b>"
        f"<small>image {mistake.index}</small><ol>{answers}</ol></figcaption></figure>"
    )


def _settings(config: Mapping[str, Any]) -> str:
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in config.items()
    )


# ------------------------------------------------------------------------------------------- parts


def _table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table of cells that are HTML; the first cell of a row is its heading."""
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    return f"<table><caption>{caption}</caption><tr>{head}</tr>{body}</table>"


@plots.styled
def _svg(figures: Sequence[Figure]) -> str:
    """Return figures as SVG that takes the font and the colour of text from the page."""
    drawn = ""
    for figure in figures:
        file = io.StringIO()
        with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        _, tag, rest = file.getvalue().partition("<svg")  # before it are lines for files
        drawn += f"<figure>{tag}{rest}</figure>".replace(plots.INK.lower(), "currentColor")
    return drawn


def _png(image: NDArray[np.uint8]) -> str:
    """Return an image as a URI that holds it."""
    from PIL import Image  # comes with Matplotlib

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
