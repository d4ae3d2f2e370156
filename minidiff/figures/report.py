"""One page about a training run: an HTML file that holds all it shows and asks for nothing else.

:func:`report_page` takes plain data and returns the page. Text keeps its size at any width: a chart
is an SVG without a viewBox, whose text and grid are placed in percent, and only its lines are in a
second SVG that is stretched. What a mapping says of a run is as in
:mod:`~minidiff.figures.plots`; values that may be missing are left out of the page.
"""

import base64
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidiff.figures.plots import (
    BLUE,
    GREEN,
    PURPLE,
    SKY,
    VERMILION,
    Records,
    check_filters,
    check_records,
    spaced,
)

__all__ = ["Mistake", "report_page"]

MOST_MISTAKES = 100  # in the page
FIRST_MISTAKES = 24  # not folded away
MOST_CELLS = 4096  # of a map; a gate with more groups has none
ANSWERS = 3  # of a mistake
SMALLEST = 1e-99  # that is told from 0 on a log axis


@dataclass(frozen=True, eq=False)
class Mistake:
    """A test image that the network got wrong.

    Attributes
    ----------
    index : int
        Its place in the test set.
    image : ndarray of uint8, shape (H, W)
    label : int
        Its true class.
    probabilities : ndarray of float, shape (classes,)
        What the network thought; they sum to 1.

    Examples
    --------
    >>> image = np.zeros((28, 28), np.uint8)
    >>> mistake = Mistake(3, image, 1, np.array([0.25, 0.125, 0.625]))
    >>> mistake.answer, mistake.confidence
    (2, 0.625)
    """

    index: int
    image: NDArray[np.uint8]
    label: int
    probabilities: NDArray[Any]

    @property
    def answer(self) -> int:
        """The class that the network found most probable."""
        return int(self.probabilities.argmax())

    @property
    def confidence(self) -> float:
        """The probability of the answer."""
        return float(self.probabilities.max())


def report_page(
    *,
    title: str,
    source: str,
    config: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any],
    gates: Mapping[str, NDArray[np.bool_]],
    used: Mapping[str, NDArray[np.bool_]],
    filters: NDArray[Any],
    mistakes: Sequence[Mistake],
) -> str:
    """Return an HTML page about a run; the same run gives the same page.

    Parameters
    ----------
    title
        What the page is called, such as the name of the run directory.
    source
        A sentence on where the data came from.
    config
        All settings of the run.
    records
        The record of each epoch, see :mod:`~minidiff.figures.plots`.
    result
        What is left in the end, as in ``result.json``.
    gates
        Which groups of each gate are open, shape (groups,), by name, such as "conv1.outputs".
        Empty for a dense network.
    used
        Which inputs and outputs of layers are of use, by such names, as of
        :func:`~minidiff.pruning.penalty.in_use`.
    filters
        Weights of the first convolution, shape (O, C, KH, KW); the mean over C is shown.
    mistakes
        All test images that the network got wrong, in any order.

    Raises
    ------
    ValueError
        If there are no records, the filters do not fit the gate on them or are not finite, or the
        label of a mistake is not among its classes.

    Examples
    --------
    >>> record = {"epoch": 1, "loss": 0.2, "train_error": 5.0, "validation_error": None}
    >>> record |= {"open": {}, "groups": {}, "frozen": False}
    >>> record |= dict.fromkeys(["weights", "dense_weights", "macs", "dense_macs"], 9)
    >>> page = report_page(
    ...     title="a run", source="Noise.", config={}, records=[record], result={},
    ...     gates={}, used={}, filters=np.ones((1, 1, 3, 3)), mistakes=[],
    ... )
    >>> page.splitlines()[0], "A dense run" in page
    ('<!DOCTYPE html>', True)
    """
    check_records(records)
    layers = result.get("layers") or []
    first = f"{layers[0]['name']}.outputs" if layers else ""
    kept = used.get(first, np.ones(len(filters), np.bool_))
    check_filters(filters, kept)
    for mistake in mistakes:
        if not 0 <= mistake.label < len(mistake.probabilities):
            raise ValueError(
                f"the label of test image {mistake.index} is {mistake.label}; expected 0 to "
                f"{len(mistake.probabilities) - 1}, since there are that many probabilities."
            )
    gated = bool(records[-1]["open"])
    tables = _layers(layers, gated) + _summary(result, gated)
    sections = {
        "What is left" if gated else "The network": f'<div class="tables">{tables}</div>',
        "Training": _curves(records),
        "Open gates": _open_gates(records) + _maps(gates, used, layers),
        "Weights of the first layer": _filters(filters, kept),
        "What it gets wrong": _mistakes(mistakes),
        "Settings": _settings(config, source),
    }
    body = "".join(
        f"<section><h2>{name}</h2>{content}</section>\n"
        for name, content in sections.items()
        if content
    )
    # The policy forbids what the page does not need anyway: any request to anywhere.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)} · minidiff</title>
<style>{STYLE}</style>
</head>
<body>
<header>{_headline(title, source, config, records, result)}</header>
<main>
{body}</main>
</body>
</html>
"""


# ---------------------------------------------------------------------------------------- sections


def _headline(
    title: str,
    source: str,
    config: Mapping[str, Any],
    records: Records,
    result: Mapping[str, Any],
) -> str:
    last = records[-1]
    gated = bool(last["open"])
    tiles = []
    if result.get("test_error") is not None:
        validation = last["validation_error"]
        detail = "last epoch" if validation is None else f"{validation:.2f} % on validation images"
        tiles.append((f"{result['test_error']:.2f} %", "test error", detail))
    for noun, key in (("weights", "weights"), ("MACs", "macs")):
        left, dense = last[key], last[f"dense_{key}"]
        if not gated:
            tiles.append((f"{left:,}", noun, "all of a dense network"))
        elif left:
            detail = f"{left:,} of {dense:,}"
            tiles.append((f"{dense / left:,.1f}×", f"fewer {noun}", detail))
        else:
            tiles.append(("0", f"{noun} left", f"of {dense:,}"))
    if gated:
        tiles.append((last["architecture"], "architecture", f"of {last['dense_architecture']}"))
    about = ["A pruning run" if gated else "A dense run", str(config.get("dataset") or "")]
    about.append(f"{len(records)} epoch{'s' if len(records) > 1 else ''}")
    if result.get("seconds") is not None:
        about.append(f"{result['seconds']:,.0f} s of training")
    note = "" if last["weights"] else "Nothing is left of the network: try a smaller --lambda."
    cells = "".join(
        f"<div><dt>{label}</dt><dd>{escape(value)}</dd><dd>{escape(detail)}</dd></div>"
        for value, label, detail in tiles
    )
    return (
        f'<p class="about">{escape(" · ".join(filter(None, about)))}</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{escape(source)} <b>{note}</b></p><dl class="tiles">{cells}</dl>'
    )


def _layers(layers: Sequence[Mapping[str, Any]], gated: bool) -> str:
    rows = []
    for layer in layers:
        form = "{:,} <small>of {:,}</small>" if gated else "{:,}"
        cells = [form.format(*layer[key]) for key in ("inputs", "outputs", "weights", "macs")]
        share = 100 * layer["weights"][0] / layer["weights"][1]
        bar = f'{_percent(share)}<i class="bar" style="background-size:{share:.1f}% 100%"></i>'
        rows.append([escape(layer["name"]), *cells, *([bar] if gated else [])])
    header = ("layer", "inputs", "outputs", "weights", "MACs", *(["kept"] if gated else []))
    return _table("Layers", header, rows) if rows else ""


def _summary(result: Mapping[str, Any], gated: bool) -> str:
    rows = []
    for label, before, after, form, better in (
        ("weights", "dense_weights", "weights", "{:,}", "fewer"),
        ("MACs a sample", "dense_macs", "macs", "{:,}", "fewer"),
        ("bytes", "dense_bytes", "bytes", "{:,}", "fewer"),
        ("training step", "first_step_ms", "step_ms", "{:.1f} ms", "faster"),
        ("peak memory", "", "peak_megabytes", "{:,.0f} MB", ""),
    ):
        dense, left = result.get(before), result.get(after)
        if left is not None:
            was = "" if dense is None else form.format(dense)
            ratio = f"{dense / left:,.1f}× {better}" if dense and left else ""
            cells = [was, form.format(left), ratio]
            rows.append([label, *(cells if gated else cells[1:2])])
    header = ("", "dense", "pruned", "") if gated else ("", "dense")
    return _table("The whole network", header, rows) if rows else ""


def _curves(records: Records) -> str:
    def values(key: str) -> list[float]:
        return [record[key] for record in records]

    def saved(key: str) -> list[float]:
        return [100 * (1 - record[key] / record[f"dense_{key}"]) for record in records]

    errors = [("training", "m", values("train_error"))]
    if records[-1]["validation_error"] is not None:
        errors.insert(0, ("validation", "s0", values("validation_error")))
    losses = [("without the penalty", "s0", values("loss"))]
    charts = [
        _chart("Error", records, errors, unit=" %"),
        _chart("Training loss", records, losses),
    ]
    if records[-1]["open"]:
        weights = [
            ("actual", "s0", values("weights")),
            ("expected by the surrogate", "s1 dashed", values("expected_weights")),
            ("dense", "m dashed", values("dense_weights")),
        ]
        savings = [("MACs", "s1", saved("macs")), ("weights", "s0", saved("weights"))]
        charts += [
            _chart("Weights left", records, weights),
            _chart("Saved, share of the dense network", records, savings, unit=" %", share=True),
        ]
    return f'<div class="charts">{"".join(charts)}</div>'


def _open_gates(records: Records) -> str:
    series, last = [], records[-1]
    for i, (name, groups) in enumerate(last["groups"].items()):
        shares = [100 * record["open"][name] / groups for record in records]
        text = f"{spaced(name)}, {last['open'][name]:,} of {groups:,}:"
        series.append((text, f"s{i % 5}", shares))
    title = "Architecture: share of groups left"
    return _chart(title, records, series, unit=" %", share=True) if series else ""


def _maps(
    gates: Mapping[str, NDArray[np.bool_]],
    used: Mapping[str, NDArray[np.bool_]],
    layers: Sequence[Mapping[str, Any]],
) -> str:
    """Draw each gate as a map of its groups, for inputs behind a Flatten in blocks of channels."""
    channels = {f"{b['name']}.inputs": a["outputs"][1] for a, b in pairwise(layers)}
    maps = []
    for name, is_open in gates.items():
        count, places = len(is_open), 1
        if name in channels and count % channels[name] == 0:
            places = count // channels[name]
        height = math.isqrt(places) if math.isqrt(places) ** 2 == places else 1
        width, gap = places // height, int(places > 1)
        columns = max(1, math.ceil(math.sqrt(2 * count * height / width / places)))
        block, cell = np.divmod(np.arange(count), places)
        x = block % columns * (width + gap) + cell % width
        y = block // columns * (height + gap) + cell // width
        kept = used.get(name, is_open)
        kinds = {"kept": kept, "idle": is_open & ~kept, "closed": ~is_open}
        note = f"{int(kept.sum()):,} of {count:,} kept"
        if kinds["idle"].any():
            note += f", {int(kinds['idle'].sum()):,} of no use"
        cells = "".join(
            f'<path class="{kind}" d="'
            + "".join(f"M{i} {j}h.8v.8h-.8z" for i, j in zip(x[which], y[which], strict=True))
            + '"/>'
            for kind, which in kinds.items()
            if which.any()
        )
        box = f"0 0 {x.max(initial=0) + 0.8:g} {y.max(initial=0) + 0.8:g}"
        heading = escape(spaced(name))
        drawing = f'<svg viewBox="{box}" role="img" aria-label="Map of {heading}">{cells}</svg>'
        maps.append(
            f"<figure><figcaption><h3>{heading}</h3><p>{note}</p></figcaption>"
            f"{drawing if count <= MOST_CELLS else ''}</figure>"
        )
    text = (
        "A square is a group: kept, open but of no use (pale), or dropped (grey). The inputs of a "
        "dense layer behind a convolution are in blocks, one for each channel."
    )
    return f'<p class="lead">{text}</p><div class="maps">{"".join(maps)}</div>' if maps else ""


def _filters(filters: NDArray[Any], kept: NDArray[np.bool_]) -> str:
    images = np.asarray(filters, np.float64).mean(axis=1)
    scale = float(np.abs(images).max()) or 1.0
    # The colour tells the sign and opacity the size, so 0 is paper, be it light or dark.
    pixels = np.empty((*images.shape, 4), np.uint8)
    pixels[..., :3] = np.where(images[..., None] < 0, _rgb(BLUE), _rgb(VERMILION))
    pixels[..., 3] = np.rint(255 * np.abs(images) / scale)
    groups = []
    for name, chosen in (("kept", np.flatnonzero(kept)), ("dropped", np.flatnonzero(~kept))):
        items = "".join(
            f'<li><span><img src="{_png(pixels[i])}" alt="filter {i}, {name}"></span>{i}</li>'
            for i in chosen
        )
        if items:
            heading = f"<h3>{len(chosen)} {name}</h3>"
            groups.append(f'<div class="filters {name}">{heading}<ul>{items}</ul></div>')
    key = f'<p class="key">−{scale:.2g}<i></i>+{scale:.2g}</p>'
    return "".join(groups) + key


def _mistakes(mistakes: Sequence[Mistake]) -> str:
    if not mistakes:
        return '<p class="lead">Nothing: every test image is classified correctly.</p>'
    worst = sorted(mistakes, key=lambda mistake: (-mistake.confidence, mistake.index))
    shown, count = worst[:MOST_MISTAKES], len(worst)
    text = f"{count:,} test image{'s' if count > 1 else ''} in all"
    text += f", of which these are the {len(shown)} worst" if count > len(shown) else ""
    text += ", by confidence in the wrong answer." if count > 1 else "."
    pairs = Counter((mistake.label, mistake.answer) for mistake in worst).most_common(3)
    if pairs[0][1] > 1:
        often = ", ".join(f"{label} for {answer} ({n:,}×)" for (label, answer), n in pairs if n > 1)
        text += f" Most often taken: {often}."
    cards = [_card(mistake) for mistake in shown]
    page = f'<p class="lead">{text}</p><div class="cards">{"".join(cards[:FIRST_MISTAKES])}</div>'
    if len(cards) > FIRST_MISTAKES:
        page += (
            f"<details><summary>The next {len(cards) - FIRST_MISTAKES}</summary>"
            f'<div class="cards">{"".join(cards[FIRST_MISTAKES:])}</div></details>'
        )
    return page


def _card(mistake: Mistake) -> str:
    top = [int(i) for i in np.argsort(-mistake.probabilities, kind="stable")[:ANSWERS]]
    if mistake.label not in top:
        top[-1] = mistake.label
    rows = []
    for i in top:
        kind = {mistake.label: "right", mistake.answer: "wrong"}.get(i, "")
        share = 100 * float(mistake.probabilities[i])
        bar = f'<span><i class="{kind}" style="width:{share:.1f}%"></i></span>'
        rows.append(f"<li><b>{i}</b>{bar}{_percent(share)}</li>")
    alt = f"test image {mistake.index}, a {mistake.label}"
    return (
        f'<figure><img src="{_png(mistake.image)}" alt="{alt}"><figcaption>'
        f"<p><b>{mistake.label}</b> taken for <b>{mistake.answer}</b>"
        f"<small>#{mistake.index}</small></p><ol>{''.join(rows)}</ol></figcaption></figure>"
    )


def _settings(config: Mapping[str, Any], source: str) -> str:
    from minidiff._version import __version__

    items = ""
    for name, value in config.items():
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        items += f"<div><dt>{escape(str(name))}</dt><dd>{escape(text)}</dd></div>"
    note = f"Data: {source} This page was written by minidiff {__version__}."
    return f'<dl class="settings">{items}</dl><p class="lead">{escape(note)}</p>'


# ------------------------------------------------------------------------------------------- parts


def _chart(
    title: str,
    records: Records,
    series: Sequence[tuple[str, str, Sequence[float]]],
    *,
    unit: str = "",
    share: bool = False,
) -> str:
    """Draw series (name, class, values) over epochs: shares from 0 to 100, all else on a log axis.

    Values that are not finite are left out.
    """
    epochs = [record["epoch"] for record in records]
    first, last = epochs[0], epochs[-1]
    down, ticks = _share_axis() if share else _log_axis(v for *_, vs in series for v in vs)

    def across(epoch: float) -> float:
        return 100 * (epoch - first) / (last - first) if last > first else 50.0

    marks = []
    frozen = [record["epoch"] for record in records if record.get("frozen")]
    # Gates that stop only with the last epoch leave nothing to mark.
    if frozen and frozen[0] < last and records[-1]["open"]:
        x = across(frozen[0])
        marks.append(f'<rect x="{x:.2f}%" width="{100 - x:.2f}%" height="100%"/>')
        marks.append(f'<text x="{x:.2f}%" y="-6">gates frozen</text>')
    for value, name in ticks.items():
        y = f"{down(value):.2f}%"
        marks.append(f'<line x2="100%" y1="{y}" y2="{y}"/>')
        marks.append(f'<text class="y" x="-8" y="{y}" dy=".35em">{name}{unit}</text>')
    marks += [
        f'<text class="x" x="{across(epoch):.2f}%" y="100%" dy="1.5em">'
        f"{'epoch ' if epoch == first else ''}{epoch}</text>"
        for epoch in _epoch_ticks(first, last)
    ]
    curves, legend, said = [], [], []
    for name, kind, values in series:
        points = [
            f"{across(epoch):.2f},{down(value):.2f}"
            for epoch, value in zip(epochs, values, strict=True)
            if math.isfinite(value)
        ]
        before, after = (f"{_short(value)}{unit}" for value in (values[0], values[-1]))
        legend.append(f'<li class="{kind}">{escape(name)} <b>{after}</b></li>')
        said.append(f"{name} from {before} to {after}")
        if points:
            # A line of no length with round ends is a dot that is not stretched.
            curves.append(f'<path class="{kind}" d="M{" ".join(points)}"/>')
            curves.append(f'<path class="{kind} dot" d="M{points[-1]}h0"/>')
    label = escape(f"{title}, epochs {first} to {last}: {'; '.join(said)}.")
    return (
        f'<figure class="chart"><figcaption><h3>{escape(title)}</h3><ul>{"".join(legend)}</ul>'
        f'</figcaption><svg class="plot" role="img" aria-label="{label}">{"".join(marks)}'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{"".join(curves)}</svg></svg>'
        f"</figure>"
    )


def _share_axis() -> tuple[Callable[[float], float], dict[float, str]]:
    """Return how far down, in %, a share in % is, and the ticks with their labels."""
    return lambda value: 100.0 - value, {
        step: f"{step:g}" for step in (0.0, 25.0, 50.0, 75.0, 100.0)
    }


def _log_axis(values: Iterable[float]) -> tuple[Callable[[float], float], dict[float, str]]:
    """Return how far down, in %, a value is, and the ticks with their labels; 0 is at the foot."""
    finite = [value for value in values if math.isfinite(value)]
    positive = [value for value in finite if value > SMALLEST] or [1.0]
    powers = range(
        math.floor(math.log10(min(positive))) - 1, math.ceil(math.log10(max(positive))) + 2
    )
    steps = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
    low = max(i for i, step in enumerate(steps) if step <= min(positive))
    high = min(i for i, step in enumerate(steps) if step >= max(positive))
    zero = min(finite, default=1.0) <= SMALLEST
    if zero or low == high:
        low -= 1
    steps = steps[low : max(high, low + 2) + 1]
    ticks = steps if len(steps) <= 6 else [s for s in steps if f"{s:e}".startswith("1")]
    labels = {step: _short(step) for step in ticks}
    if zero:
        labels[steps[0]] = "0"
    ratio = math.log(steps[-1] / steps[0])
    return lambda value: 100 - 100 * math.log(max(value, steps[0]) / steps[0]) / ratio, labels


def _epoch_ticks(first: int, last: int) -> list[int]:
    """Return the first epoch and some four round ones after it."""
    least = max(1.0, (last - first) / 4)
    power = 10.0 ** math.floor(math.log10(least))
    step = next(s for d in (1, 2, 2.5, 3, 5, 10) if (s := d * power) >= least and s == int(s))
    return [first, *(e for e in range(0, last + 1, int(step)) if e - first > step / 2)]


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table; cells are HTML, the first of a row is its heading."""
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    # What is too wide for a phone scrolls by itself, by keyboard too.
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{title}"><table>'
        f"<caption>{title}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _percent(share: float) -> str:
    if 0 < share < 0.05:
        return "&lt;0.1 %"
    return "&gt;99.9 %" if 99.95 <= share < 100 else f"{share:.1f} %"


def _short(value: float) -> str:
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{2 if abs(value) < 1 else 3}g}"


def _rgb(colour: str) -> list[int]:
    return list(bytes.fromhex(colour[1:]))


def _png(pixels: NDArray[np.uint8]) -> str:
    """Return an image, shape (H, W) for grey or (H, W, 4), as the URI that holds it."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


# Colours are those of the other figures; sky stands in for blue on dark paper.
STYLE = Template("""
:root{color-scheme:light dark;--paper:#fff;--panel:#f5f6f8;--ink:#1f2328;--muted:#59626c;
--line:#dfe3e8;--s0:$blue;--s1:$vermilion;--s2:$green;--s3:$purple;--s4:$sky}
@media(prefers-color-scheme:dark){:root{--paper:#121519;--panel:#1b2026;--ink:#e6e9ed;
--muted:#9aa5b1;--line:#2c333b;--s0:$sky;--s4:$blue}}
*{box-sizing:border-box;margin:0;padding:0}
body{max-width:70rem;margin:0 auto;padding:2.5rem 1rem 4rem;background:var(--paper);
color:var(--ink);font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
h1{font-size:clamp(1.9rem,6vw,2.8rem);line-height:1.15;letter-spacing:-.02em}
h2{font-size:1.4rem;line-height:1.25;letter-spacing:-.01em;margin-bottom:1.25rem}
h3{font-size:1rem;line-height:1.4}
section{margin-top:3.5rem}
small,.about,.lead,dt,caption,thead th,summary{color:var(--muted);font-weight:400}
.lead{max-width:44rem}.lead b{color:var(--ink)}
ul,ol{list-style:none}svg,img{display:block}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:.75rem;margin-top:2rem}
.tiles div{display:flex;flex-direction:column;padding:1.1rem 1.25rem;background:var(--panel);
border-radius:.75rem}
.tiles dt{order:1}.tiles dd{font-size:1.8rem;font-weight:650;line-height:1.2;letter-spacing:-.02em}
.tiles dd+dd{order:2;font-size:.85rem;font-weight:400;letter-spacing:0;color:var(--muted)}
.tables{display:grid;gap:2rem 4rem;
grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}
.table{overflow-x:auto}td small{display:block}
table{width:100%;border-collapse:collapse;overflow-wrap:normal}
caption{text-align:left;padding-bottom:.25rem}
th,td{padding:.5rem 0 .5rem .75rem;text-align:right;vertical-align:top;white-space:nowrap;
border-top:1px solid var(--line)}
th:first-child{text-align:left;padding-left:0}thead th{border:0;font-size:.85rem}
tbody th{font-weight:600}
.bar{display:block;height:.25rem;margin-top:.3rem;border-radius:1rem;
background:linear-gradient(var(--s0) 0 0) no-repeat var(--line)}
.charts{display:grid;gap:2.5rem 4rem;
grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}
.chart+.lead{margin-top:2.5rem}
.maps{display:grid;gap:2rem;margin-top:1.5rem;
grid-template-columns:repeat(auto-fit,minmax(min(100%,13rem),1fr))}
.maps p{margin-bottom:.6rem;font-size:.85rem;color:var(--muted)}
figcaption ul{display:flex;flex-wrap:wrap;gap:0 1rem;font-size:.85rem;color:var(--muted)}
figcaption li::before{content:"";display:inline-block;width:1rem;margin-right:.4rem;
border-top:3px solid var(--c);vertical-align:middle}
figcaption .dashed::before{border-top-style:dashed}figcaption li b{color:var(--ink)}
.plot{width:calc(100% - 3.75rem);height:13rem;margin:1.75rem .5rem 1.75rem 3.25rem;
overflow:visible;font-size:.75rem;border-bottom:1px solid var(--line)}
.plot svg{overflow:visible}.plot rect{fill:var(--panel)}.plot line{stroke:var(--line)}
.plot text{fill:var(--muted)}.plot .x{text-anchor:middle}.plot .y{text-anchor:end}
.plot path{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round;stroke-linecap:round;
vector-effect:non-scaling-stroke}
.plot .dashed{stroke-dasharray:5 5}.plot .dot{stroke-width:8}
.s0{--c:var(--s0)}.s1{--c:var(--s1)}.s2{--c:var(--s2)}.s3{--c:var(--s3)}.s4{--c:var(--s4)}
.m{--c:var(--muted)}
.maps svg{width:100%}.maps .kept,.maps .idle{fill:var(--s0)}.maps .idle{opacity:.45}
.maps .closed{fill:var(--line)}
.filters ul{display:flex;flex-wrap:wrap;gap:.75rem;margin:.6rem 0 1.5rem}
.filters li{font-size:.75rem;color:var(--muted);text-align:center}
.filters span{display:block;position:relative;border:1px solid var(--line)}
.filters img{width:4rem}img{image-rendering:pixelated}
.dropped img{width:2.5rem;filter:grayscale(1);opacity:.6}
.dropped span::after{content:"";position:absolute;inset:0;background:linear-gradient(to top right,
#0000 48.5%,var(--muted) 48.5% 51.5%,#0000 51.5%)}
.key{display:flex;align-items:center;gap:.6rem;font-size:.85rem;color:var(--muted)}
.key i{width:8rem;height:.6rem;background:linear-gradient(to right,$blue,#0000,$vermilion)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,15rem),1fr));
gap:.75rem;margin-top:1.25rem}
.cards figure{display:flex;gap:1rem;padding:.9rem;background:var(--panel);border-radius:.75rem}
.cards img{width:5rem;height:5rem;object-fit:contain;filter:invert(1);mix-blend-mode:multiply}
.cards figcaption{flex:1;font-size:.85rem}.cards small{float:right}
.cards li{display:flex;align-items:center;gap:.5rem;font-size:.75rem;line-height:1.55}
.cards li span{flex:1}.cards i{display:block;height:.45rem;min-width:1px;border-radius:1rem;
background:var(--muted)}.cards .right{background:var(--s2)}.cards .wrong{background:var(--s1)}
.settings{display:grid;grid-template-columns:repeat(auto-fill,minmax(9rem,1fr));gap:.25rem 1.5rem;
font-size:.9rem;margin-bottom:1.5rem}
.settings div{display:flex;justify-content:space-between;gap:.5rem;padding:.3rem 0;
border-bottom:1px solid var(--line)}
details{margin-top:1.5rem}summary{cursor:pointer;padding:.4rem 0}
@media(prefers-color-scheme:dark){.cards img{filter:none;mix-blend-mode:screen}
.kept img,.key i{filter:brightness(1.3)}}
@media(max-width:58rem){.tiles{grid-template-columns:1fr 1fr}}
@media(max-width:44rem){.tiles dt+dd{font-size:1.5rem}.tiles div{padding:1rem}
.tiles div:first-child,.tiles div:nth-child(4){grid-column:1/-1}
th,td{padding-left:.3rem;font-size:.8rem}td small{font-size:.7rem}
.settings{font-size:.8rem}}
@media print{figure,tr{break-inside:avoid}}
""").substitute(blue=BLUE, vermilion=VERMILION, green=GREEN, purple=PURPLE, sky=SKY)
