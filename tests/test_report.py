"""The page of a run: sound and self-contained HTML, whatever the run and its names."""

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from minidiff.figures import plots
from minidiff.figures.report import Mistake, report_page
from tests.records import DENSE, FILTERS, GROUPS, RUN, record

VOID = {"br", "img", "meta"}  # elements without an end
CONFIG = {"dataset": "mnist", "epochs": 5, "lr": 0.05, "noise": None}
SIZES = [("conv1", 1, 20), ("conv2", 20, 50), ("dense1", 800, 500), ("dense2", 500, 10)]


def result(share: float = 0.2) -> dict[str, Any]:
    """Return the result of a run that has kept a share of everything."""
    layers = []
    for name, inputs, outputs in SIZES:
        whole = {"inputs": inputs, "outputs": outputs, "weights": inputs * outputs, "macs": 10**6}
        layers.append({"name": name} | {key: [int(share * n), n] for key, n in whole.items()})
    whole = {"weights": 430_500, "macs": 2_293_000, "bytes": 1_724_320}
    sizes = {key: int(share * count) for key, count in whole.items()}
    sizes |= {f"dense_{key}": count for key, count in whole.items()}
    times = {"step_ms": 1.5, "first_step_ms": 7.5, "seconds": 51.2, "peak_megabytes": None}
    return {"test_error": 0.83, "layers": layers} | sizes | times


def mistake(index: int = 0, label: int = 4, answer: int = 9, confidence: float = 0.6) -> Mistake:
    probabilities = np.full(10, (1 - confidence) / 9, np.float32)
    probabilities[answer] = confidence
    return Mistake(index, np.full((28, 28), index % 256, np.uint8), label, probabilities)


def page(**changes: Any) -> str:
    gates = {name: np.arange(count) % 5 == 0 for name, count in GROUPS.items()}
    run: dict[str, Any] = {
        "title": "a run",
        "source": "Digits, from somewhere.",
        "config": CONFIG,
        "records": RUN,
        "result": result(),
        "gates": gates,
        "used": gates,
        "filters": FILTERS,
        "mistakes": [mistake(1), mistake(2, answer=7, confidence=0.9)],
    }
    return report_page(**run | changes)


ALL = {name: np.ones(count, bool) for name, count in GROUPS.items()}
NONE = {name: np.zeros(count, bool) for name, count in GROUPS.items()}
EMPTY = {"weights": 0, "macs": 0, "expected_weights": 0.0, "open": dict.fromkeys(GROUPS, 0)}
DENSE_RUN = {"records": DENSE, "result": result(share=1), "gates": {}, "used": ALL}
HOSTILE = "<script>alert(1)</script>\"'&amp;-->"
RUNS: dict[str, dict[str, Any]] = {
    "pruned": {},
    "dense": DENSE_RUN,
    "nothing left": {"records": [*RUN, record(6, **EMPTY)], "result": result(0), "used": NONE},
    "one epoch, no validation set": {"records": [record(1, validation_error=None)]},
    "no mistakes": {"mistakes": []},
    "a gate too large for a map": {"gates": {"dense1.weights": np.ones(400_000, bool)}},
    "hostile names": {
        "title": HOSTILE,
        "source": HOSTILE,
        "config": {HOSTILE: HOSTILE, "dataset": HOSTILE},
        "records": [record(1, open={HOSTILE: 1}, groups={HOSTILE: 3})],
        "gates": {HOSTILE: np.ones(3, bool)},
    },
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


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave figures, which take a second to draw, out of pages."""
    monkeypatch.setattr("minidiff.figures.report._svg", lambda figures: "")


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_any_run_has_a_sound_page_that_asks_for_nothing(run: dict[str, Any]) -> None:
    text = page(**run)
    read = Reader(text)
    assert not {"script", "link", "iframe", "object", "form", "a"} & {tag for tag, _ in read.tags}
    for tag, attributes in read.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("data:image/png;base64,", "#"))
        assert tag != "img" or attributes["alt"]
    assert not re.search(r"url\((?!#)|@import", text)
    policies = [a["content"] for tag, a in read.tags if a.get("http-equiv")]
    assert policies[0].startswith("default-src 'none'; img-src data:;")
    assert not re.search(r"\b(nan|inf)\b", read.text)


def test_hostile_names_stay_text() -> None:
    text = page(**RUNS["hostile names"])
    # Title and heading, dataset twice, source twice, the name and value of a setting, map, curve.
    assert Reader(text).text.count(HOSTILE) == 10


def test_figures_hold_text_in_the_colour_of_the_page() -> None:
    text = page()
    assert page() == text
    assert "currentColor" in text
    assert plots.INK.lower() not in text
    for said in ("1.00 % validation error", "Training loss", "4 of 20 kept", "4 of 20 filters"):
        assert said in Reader(text).text


@pytest.mark.usefixtures("without_figures")
def test_the_page_tells_what_was_gained() -> None:
    last = record(5, weights=11_280, macs=239_280, architecture="6-15-138-60")
    text = Reader(page(records=[record(1), last])).text
    assert "Nothing is left" not in text
    for said in (
        "A pruning run · mnist · 2 epochs · 51 s of training",
        "0.83 % test error 1.00 % validation error",
        "38.2× fewer weights 11,280 of 430,500",
        "9.6× fewer MACs",
        "6-15-138-60 architecture of 20-50-800-500",
        "conv2 4 of 20 10 of 50 200 of 1,000",
        "training step 7.5 ms 1.5 ms 5.0×",
    ):
        assert said in text


def test_a_dense_run_has_no_word_of_gates() -> None:
    text = Reader(page(**DENSE_RUN)).text
    assert "A dense run" in text
    assert "430,500 weights" in text
    for word in ("gate", "fewer", "saving", "pruned"):
        assert word not in text


@pytest.mark.usefixtures("without_figures")
def test_a_network_with_nothing_left_is_told_so() -> None:
    text = Reader(page(**RUNS["nothing left"])).text
    assert "Nothing is left of the network: train again, and prune less." in text
    assert "∞× fewer weights 0 of 430,500" in text


def test_nothing_is_called_smaller_or_faster_where_nothing_has_closed() -> None:
    whole = record(5, weights=430_500, macs=2_293_000, architecture="20-50-800-500")
    text = Reader(page(records=[record(1), whole])).text
    assert "Nothing is closed: the network is as large as before." in text
    assert "430,500 weights" in text
    assert not any(word in text for word in ("fewer", "saving", "pruned"))


@pytest.mark.usefixtures("without_figures")
def test_settings_source_and_version_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minidiff.figures.report.__version__", "1.2.3")
    text = Reader(page()).text
    assert "dataset mnist epochs 5 lr 0.05 noise None" in text
    assert "Digits, from somewhere. This page was written by minidiff 1.2.3." in text


@pytest.mark.usefixtures("without_figures")
def test_mistakes_come_by_confidence_and_no_more_than_fit() -> None:
    many = [mistake(i, label=i % 9, confidence=0.2 + i / 500) for i in range(267)]
    read = Reader(page(mistakes=many))
    often = "5 taken for 9 (30×), 4 taken for 9 (30×), 3 taken for 9 (30×)"
    assert f"Misclassified test images: 267. Most often: {often}." in read.text
    alts = [attributes["alt"] for tag, attributes in read.tags if tag == "img"]
    assert alts == [f"test image {i}, a {i % 9}" for i in range(266, 166, -1)]
    assert page(mistakes=many[::-1]) == page(mistakes=many)
    assert "Every test image is classified correctly." in page(mistakes=[])


@pytest.mark.usefixtures("without_figures")
def test_a_mistake_shows_the_best_answers_and_the_true_one() -> None:
    probabilities = np.array([0.5, 0.3, 0.15, 0.0499, 0.0001])
    wrong = Mistake(7, np.zeros((28, 28), np.uint8), 4, probabilities)
    text = Reader(page(mistakes=[wrong])).text
    assert "4 taken for 0 image 7 0 50.0 % 1 30.0 % 4 0.0 %" in text
