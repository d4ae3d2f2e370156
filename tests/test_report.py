"""The page of a run: sound and self-contained HTML, whatever the run and its names."""

import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from minidiff.figures import report
from minidiff.figures.report import Mistake, report_page

GROUPS = {"conv1.outputs": 20, "conv2.outputs": 50, "dense1.inputs": 800, "dense1.outputs": 500}
VOID = {"br", "img", "meta"}  # elements without an end
RNG = np.random.default_rng(0)
FILTERS = RNG.normal(size=(20, 1, 5, 5)).astype(np.float32)
CONFIG = {"dataset": "mnist", "epochs": 5, "lr": 0.05, "noise": None, "gated": True}


def record(epoch: int, **changes: Any) -> dict[str, Any]:
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
        "architecture": "-".join(str(count // epoch) for count in GROUPS.values()),
        "dense_architecture": "20-50-800-500",
        "open": {name: count // epoch for name, count in GROUPS.items()},
        "groups": GROUPS,
        "frozen": epoch > 3,
    } | changes


def layer(name: str, inputs: int, outputs: int, share: float = 0.2) -> dict[str, Any]:
    whole = {"inputs": inputs, "outputs": outputs, "weights": inputs * outputs, "macs": 10**6}
    return {"name": name} | {key: [int(share * n), n] for key, n in whole.items()}


def result(share: float = 0.2) -> dict[str, Any]:
    layers = [("conv1", 1, 20), ("conv2", 20, 50), ("dense1", 800, 500), ("dense2", 500, 10)]
    return {
        "test_error": 0.83,
        "weights": int(share * 430_500),
        "dense_weights": 430_500,
        "step_ms": 1.5,
        "first_step_ms": 7.5,
        "peak_megabytes": None,
        "seconds": 51.2,
        "layers": [layer(*sizes, share=share) for sizes in layers],
    }


def mistake(index: int = 0, label: int = 4, answer: int = 9, confidence: float = 0.6) -> Mistake:
    probabilities = np.full(10, (1 - confidence) / 9, np.float32)
    probabilities[answer] = confidence
    image = np.full((28, 28), index % 256, np.uint8)
    return Mistake(index, image, label, probabilities)


def page(**changes: Any) -> str:
    run: dict[str, Any] = {
        "title": "a run",
        "source": "Digits, from somewhere.",
        "config": CONFIG,
        "records": [record(epoch) for epoch in range(1, 6)],
        "result": result(),
        "gates": {name: np.arange(count) % 5 == 0 for name, count in GROUPS.items()},
        "used": {},
        "filters": FILTERS,
        "mistakes": [mistake(1), mistake(2, answer=7, confidence=0.9)],
    }
    return report_page(**run | changes)


def dense(epochs: int = 2) -> dict[str, Any]:
    return {
        "records": [record(e, open={}, groups={}, weights=430_500) for e in range(1, epochs + 1)],
        "result": result(share=1),
        "gates": {},
    }


def nothing_left() -> dict[str, Any]:
    zeros = {"weights": 0, "macs": 0, "expected_weights": 0.0, "open": dict.fromkeys(GROUPS, 0)}
    return {
        "records": [record(1), record(2, **zeros), record(3, **zeros)],
        "result": result(share=0),
        # Open gates that feed nobody are no use either.
        "gates": {name: np.arange(count) < 3 for name, count in GROUPS.items()},
        "used": {name: np.zeros(count, bool) for name, count in GROUPS.items()},
        "mistakes": [mistake(i, label=i % 9) for i in range(300)],
    }


RUNS: dict[str, dict[str, Any]] = {
    "pruned": {},
    "dense": dense(),
    "nothing left": nothing_left(),
    "no mistakes": {"mistakes": []},
    "one epoch": {"records": [record(1)]},
    "one dense epoch": dense(1),
    "no errors at all": {"records": [record(1, train_error=0.0, validation_error=0.0, loss=0.0)]},
    "no number": {"records": [record(1, loss=float("nan")), record(2, loss=float("inf"))]},
    "little known": {"result": {}, "config": {}, "gates": {}},
    "nothing known": {"result": dict.fromkeys(result()), "config": {"dataset": None}},
    "zero filters": {"filters": 0 * FILTERS},
    "odd gates": {"gates": {"other": np.ones(5000, bool), "dense1.inputs": np.ones(801, bool)}},
}


class Reader(HTMLParser):
    """Reads a page, and holds that its tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} is given twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> ends nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def having(self, tag: str, name: str = "") -> list[dict[str, str | None]]:
        """The attributes of the elements of a kind, and of a class if one is named."""
        return [a for t, a in self.tags if t == tag and (not name or a.get("class") == name)]


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_any_run_has_a_sound_page_that_asks_for_nothing(run):
    text = page(**run)
    read = Reader(text)
    assert "//" not in re.sub(r"data:image/png;base64,[\w+/=]*", "", text)
    assert not {"script", "link", "iframe", "object", "form", "a", "use"} & {
        t for t, _ in read.tags
    }
    assert "url(" not in text
    assert "@import" not in text
    assert all(image["src"].startswith("data:image/png;") for image in read.having("img"))
    assert all(image["alt"] for image in read.having("img"))
    policies = [meta for meta in read.having("meta") if "http-equiv" in meta]
    assert policies[0]["content"].startswith("default-src 'none'; img-src data:;")
    assert len(read.having("h1")) == 1
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch("h[1-6]", tag)]
    assert all(b <= a + 1 for a, b in pairwise(levels))
    for svg in read.having("svg"):
        # What is read out; the stretched lines are inside of a chart that is.
        assert svg.get("aria-label") or svg.get("preserveaspectratio") == "none"
    drawn = " ".join(str(value) for _, attrs in read.tags for value in attrs.values())
    assert not re.search(r"\b(nan|NaN|inf|None)\b", f"{drawn} {read.text}")


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_the_same_run_gives_the_same_page(run):
    assert page(**run) == page(**run)


def test_hostile_names_stay_text():
    hostile = "<script>alert(1)</script>\"'&amp;"
    text = page(
        title=hostile,
        source=hostile,
        config={hostile: hostile, "dataset": hostile, "list": [hostile]},
        gates={hostile: np.ones(3, bool)},
        records=[record(1, open={hostile: 1}, groups={hostile: 3})],
        result=result() | {"layers": [layer(hostile, 1, 20)]},
    )
    read = Reader(text)
    assert "<script" not in text
    # Title and heading, source twice, a setting's name and value, dataset twice, chart, map, layer.
    assert read.text.count(hostile) == 11
    assert {name for _, attrs in read.tags for name in attrs} <= {
        "alt", "aria-label", "charset", "class", "content", "d", "dy", "height", "http-equiv",
        "lang", "name", "preserveaspectratio", "role", "scope", "src", "style", "tabindex",
        "viewbox", "width", "x", "x2", "y", "y1", "y2",
    }  # fmt: skip


def test_the_headline_tells_what_was_gained():
    last = record(
        5,
        weights=11_280,
        macs=239_280,
        open=dict(zip(GROUPS, (6, 15, 138, 60), strict=True)),
        architecture="6-15-138-60",
    )
    text = Reader(page(records=[record(1), last])).text
    for said in (
        "0.83 %", "38.2×", "fewer weights", "11,280 of 430,500", "9.6×", "fewer MACs",
        "6-15-138-60", "of 20-50-800-500", "A pruning run · mnist · 2 epochs · 51 s of training",
        "5.0× faster", "conv1 outputs, 6 of 20: 30 %",
    ):  # fmt: skip
        assert said in text


def test_a_dense_run_has_no_word_of_gates():
    text = Reader(page(**dense())).text
    assert "A dense run" in text
    assert "430,500 weights" in re.sub(r"(weights) (430,500)", r"\2 \1", text)
    for word in ("gate", "fewer", "Saved", "kept 100", "pruned"):
        assert word not in text.replace("gated", "")


def test_a_network_with_nothing_left_is_told_so():
    read = Reader(page(**nothing_left()))
    assert "Nothing is left of the network: try a smaller --lambda." in read.text
    assert "20 dropped" in read.text
    assert read.having("path", "kept") == []
    assert "Nothing is left" not in page()


def test_settings_source_and_version_are_all_there(monkeypatch):
    monkeypatch.setattr("minidiff._version.__version__", "1.2.3")
    config = {f"setting{i}": value for i, value in enumerate((1, 0.5, "text", None, True))}
    text = Reader(page(config=config)).text
    assert "setting0 1 setting1 0.5 setting2 text setting3 null setting4 true" in " ".join(
        text.split()
    )
    assert "Data: Digits, from somewhere. This page was written by minidiff 1.2.3." in text


def test_mistakes_come_by_confidence_and_no_more_than_fit():
    many = [mistake(i, label=i % 9, confidence=0.2 + i / 500) for i in range(267)]
    read = Reader(page(mistakes=many))
    assert "267 test images in all, of which these are the 100 worst, by confidence" in read.text
    alts = [a["alt"] for a in read.having("img") if a["alt"].startswith("test image")]
    assert alts == [f"test image {i}, a {i % 9}" for i in range(266, 166, -1)]
    assert "The next 76" in read.text
    assert page(mistakes=many[::-1]) == page(mistakes=many)
    one = Reader(page(mistakes=many[:1])).text
    assert "1 test image in all." in one
    assert "Most often" not in one
    assert "every test image is classified correctly" in page(mistakes=[])


def test_a_mistake_shows_the_best_answers_and_always_the_true_one():
    probabilities = np.array([0.5, 0.3, 0.15, 0.0499, 0.0001])
    read = Reader(page(mistakes=[Mistake(7, np.zeros((28, 28), np.uint8), 4, probabilities)] * 2))
    assert "4 taken for 0 #7 0 50.0 % 1 30.0 % 4 <0.1 %" in read.text
    assert "Most often taken: 4 for 0 (2×)." in read.text
    assert Counter(bar["class"] for bar in read.having("i") if "class" in bar)["right"] == 2
    sure = np.array([0.99999, 0.00001])
    assert (
        ">99.9 %" in Reader(page(mistakes=[mistake(), Mistake(1, mistake().image, 1, sure)])).text
    )


def test_maps_tell_kept_groups_from_those_of_no_use():
    gates = {
        "conv1.outputs": np.arange(20) < 4,
        "conv2.outputs": np.arange(50) < 10,
        # Of the first ten channels, two have no input left; 32 inputs are of closed channels.
        "dense1.inputs": (np.arange(800) >= 32) & (np.arange(800) < 192),
        "dense1.outputs": np.arange(500) < 7,
    }
    used = gates | {
        "conv2.outputs": (np.arange(50) >= 2) & (np.arange(50) < 10),
        "dense1.inputs": (np.arange(800) >= 32) & (np.arange(800) < 160),
    }
    read = Reader(page(gates=gates, used=used))
    for said in (
        "4 of 20 kept",
        "8 of 50 kept, 2 of no use",
        "128 of 800 kept, 32 of no use",
        "7 of 500 kept",
    ):
        assert said in read.text
    kept = [path["d"].count("M") for path in read.having("path", "kept")]
    idle = [path["d"].count("M") for path in read.having("path", "idle")]
    closed = [path["d"].count("M") for path in read.having("path", "closed")]
    assert (kept, idle, closed) == ([4, 8, 128, 7], [2, 32], [16, 40, 640, 493])
    boxes = [svg["viewbox"] for svg in read.having("svg") if "of dense1 inputs" in str(svg)]
    assert boxes == ["0 0 48.8 23.8"]  # ten by five blocks of 4x4, a cell apart
    assert "4 kept" in read.text
    assert "16 dropped" in read.text


def test_frozen_gates_are_marked_only_where_training_went_on():
    assert page().count(">gates frozen<") == 5
    assert "gates frozen" not in page(records=[record(1), record(2), record(3, frozen=True)])
    assert "gates frozen" not in page(**dense(5))


@pytest.mark.parametrize(
    "values",
    [[0.0], [1.0, 1.0], [1e-12, 1e30], [0.0, 3.0, 7.0], [430_500.0, 11_280.0], [5e-324], []],
)
def test_a_log_axis_holds_all_values_and_has_ticks(values):
    down, ticks = report._log_axis(values)
    assert all(-1e-9 <= down(value) <= 100 + 1e-9 for value in [*values, *ticks])
    assert len(ticks) >= 2
    if 0 in values:
        assert down(0) == 100
        assert ticks[min(ticks)] == "0"


@pytest.mark.parametrize(
    ("first", "last", "ticks"),
    [
        (1, 1, [1]),
        (1, 2, [1, 2]),
        (1, 5, [1, 2, 3, 4, 5]),
        (1, 40, [1, 10, 20, 30, 40]),
        (1, 100, [1, 25, 50, 75, 100]),
        (1, 120, [1, 30, 60, 90, 120]),
        (31, 40, [31, 34, 37, 40]),
    ],
)
def test_ticks_of_epochs_are_round(first, last, ticks):
    found = report._epoch_ticks(first, last)
    assert found[0] == first
    assert set(found) <= set(range(first, last + 1))
    assert len(found) <= 6
    if first == 1:
        assert found == ticks


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="records is empty"):
        page(records=[])
    with pytest.raises(ValueError, match=r"\(20, 1, 5, 5\) and kept \(3,\)"):
        page(used={"conv1.outputs": np.ones(3, bool)})
    with pytest.raises(ValueError, match="not finite"):
        page(filters=FILTERS * np.float32("nan"))
    with pytest.raises(ValueError, match="label of test image 3 is 10; expected 0 to 9"):
        page(mistakes=[mistake(3, label=10)])
