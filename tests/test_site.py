"""The documentation's site in a browser: every page, and the page to play with.

    sphinx-build docs docs/_build/html
    python -m pytest -m site tests/test_site.py

``MINIDIFF_SITE`` names the directory with the built site, and what is missing is a failure then.
``MINIDIFF_SCREENSHOTS`` names one that gets a picture of every page, at two widths, light and dark.
"""

import functools
import http.server
import itertools
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

import minidiff as md
from minidiff.data import photos
from minidiff.data.datasets import load_dataset
from minidiff.data.mnist import MissingDataError
from minidiff.io.checkpoint import Checkpoint

ROOT = Path(__file__).parents[1]
SITE = Path(os.environ.get("MINIDIFF_SITE", ROOT / "docs" / "_build" / "html")).resolve()
PLAY = ROOT / "docs" / "_static" / "play"
SCREENSHOTS = os.environ.get("MINIDIFF_SCREENSHOTS")
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
SCHEMES = ("light", "dark")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # as if there were no network
]

site = pytest.mark.site


def absent(what: str) -> None:
    """Skip a test, or fail where the site was asked for."""
    (pytest.fail if "MINIDIFF_SITE" in os.environ else pytest.skip)(what)


# -- the site, and a browser on it ---------------------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files as they are, without a line for each; a favicon that nobody links to is not missed."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/favicon.ico" and not (SITE / "favicon.ico").exists():
            self.send_response(204)
            self.end_headers()
            return
        super().do_GET()


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Say nothing of pages that were left before all had arrived."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    if not (SITE / "index.html").exists():
        absent(f"there is no built site in {SITE}")
    server = Server(("127.0.0.1", 0), functools.partial(Handler, directory=str(SITE)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="the site is tested with playwright")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        absent(f"none of {', '.join(BROWSERS)} is installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Faults:
    """What goes wrong while a page is open."""

    address: str
    found: list[str] = field(default_factory=list)

    def watch(self, page: Any) -> None:
        add = self.found.append
        page.on("console", lambda m: m.type == "error" and add(f"console: {m.text}"))
        page.on("pageerror", lambda error: add(f"error: {error}"))
        page.on("requestfailed", lambda r: add(f"failed: {r.url} ({r.failure})"))
        page.on("response", lambda r: r.status >= 400 and add(f"{r.status}: {r.url}"))
        page.on("request", lambda r: self._own(r.url) or add(f"another host: {r.url}"))

    def _own(self, url: str) -> bool:
        return url.startswith((self.address + "/", "data:", "blob:"))


@pytest.fixture(scope="module")
def contexts(browser: Any) -> Iterator[dict[tuple[str, str], Any]]:
    made = {
        (size, scheme): browser.new_context(
            viewport={"width": SIZES[size][0], "height": SIZES[size][1]},
            color_scheme=scheme,
            has_touch=size == "phone",
        )
        for size, scheme in itertools.product(SIZES, SCHEMES)
    }
    yield made
    for context in made.values():
        context.close()


# -- every page ----------------------------------------------------------------------------------

FAULTS = r"""
() => {
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const { textContent, parentElement } = texts.currentNode;
    if (/\\\(|\\\[|\$\$/.test(textContent) && !parentElement.closest("pre, code, script, style")) {
      found.push(`maths that is not set: ${textContent.trim().slice(0, 80)}`);
    }
  }
  for (const maths of document.querySelectorAll(".math")) {
    if (!maths.querySelector(".katex")) found.push(`maths that is not set: ${maths.textContent}`);
  }
  for (const error of document.querySelectorAll(".katex-error")) {
    found.push(`maths with an error: ${error.textContent}`);
  }
  for (const image of document.images) {
    const alt = (image.getAttribute("alt") ?? "").trim();
    // Without a text, docutils takes the address.
    if (alt === "" || alt === image.getAttribute("src") || /^\S+\.(png|svg|jpg)$/.test(alt)) {
      found.push(`image without a text: ${image.getAttribute("src").slice(0, 80)}`);
    }
    if (!image.complete || image.naturalWidth === 0) {
      found.push(`image that is not shown: ${image.getAttribute("src").slice(0, 80)}`);
    }
  }
  const { scrollWidth } = document.scrollingElement;
  if (scrollWidth > innerWidth) {
    const wide = [...document.querySelectorAll("article *")]
      .filter((element) => element.getBoundingClientRect().right > innerWidth + 1)
      .slice(0, 3)
      .map((element) => `${element.tagName.toLowerCase()}.${element.className}`);
    found.push(`the page is ${scrollWidth} wide, the window ${innerWidth}: ${wide.join(", ")}`);
  }
  return found;
}
"""

# How light the ground of the page is, 0..255.
GROUND = """
() => {
  const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).map(Number);
  return (r + g + b) / 3;
}
"""


@site
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_no_faults(
    name: str, size: str, scheme: str, address: str, contexts: dict[tuple[str, str], Any]
) -> None:
    faults = Faults(address)
    page = contexts[size, scheme].new_page()
    try:
        faults.watch(page)
        page.goto(f"{address}/{name}", wait_until="load")
        if page.locator("#play").count():
            page.wait_for_selector("#play.ready", timeout=120_000)
        # Images far down are loaded when they come near.
        page.evaluate("for (const image of document.images) image.loading = 'eager'")
        page.wait_for_function("[...document.images].every((image) => image.complete)")
        faults.found += page.evaluate(FAULTS)
        light = page.evaluate(GROUND)
        if (light > 128) != (scheme == "light"):
            faults.found.append(f"the ground is {light:.0f} of 255 in a {scheme} window")
        if SCREENSHOTS:
            picture = Path(SCREENSHOTS) / f"{name.removesuffix('.html')}-{size}-{scheme}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=picture, full_page=True)
    finally:
        page.close()
    assert not faults.found, "\n".join([name, *faults.found])


BAD = r"""<!doctype html><html><head><link rel="stylesheet" href="none.css"></head><body>
<script>console.error("an error"); undefinedFunction()</script>
<p>\(x\) and $$y$$</p><span class="math">z</span><span class="katex-error">w</span>
<img src="https://example.org/a.png" alt="from elsewhere"><img src="data:," alt="a.png">
<p><code>\(this is code\)</code></p><div style="width: 2000px">wide</div>
</body></html>"""


@site
def test_faults_are_found(address: str, contexts: dict[tuple[str, str], Any]) -> None:
    faults = Faults(address)
    page = contexts["phone", "light"].new_page()
    try:
        page.route("**/bad.html", lambda route: route.fulfill(body=BAD, content_type="text/html"))
        faults.watch(page)
        page.goto(f"{address}/bad.html")
        found = [*faults.found, *page.evaluate(FAULTS)]
    finally:
        page.close()
    for fault, times in {
        "console: an error": 1,
        "error: undefinedFunction": 1,
        "404: ": 1,
        "failed: ": 2,
        "another host: https://example.org/a.png": 1,
        "maths that is not set: ": 2,
        "maths with an error: w": 1,
        "image without a text: ": 1,
        "image that is not shown: ": 2,
        "the page is ": 1,
    }.items():
        assert sum(text.startswith(fault) for text in found) == times, (fault, found)


class Links(HTMLParser):
    """What a page links to and loads, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for key, value in attributes:
            if key == "id" or (key == "name" and tag == "a"):
                self.anchors.add(value or "")
            elif key in ("href", "src") and value:
                self.targets.add(value)


@functools.cache
def links(name: str) -> Links:
    return Links((SITE / name).read_text(encoding="utf-8"))


@site
@pytest.mark.parametrize("name", PAGES)
def test_links_within_the_site_lead_somewhere(name: str) -> None:
    broken = []
    for link in sorted(links(name).targets):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (SITE / name).parent / unquote(parts.path) if parts.path else SITE / name
        if target.is_dir():
            target /= "index.html"
        target = target.resolve()
        anchor = unquote(parts.fragment)
        if not target.is_relative_to(SITE) or not target.exists():
            broken.append(link)
        elif anchor and target.suffix == ".html":
            anchors = links(target.relative_to(SITE).as_posix()).anchors
            broken += [f"{link} (there is no such anchor)"] * (anchor not in anchors)
    assert not broken, "\n".join([name, *broken])


@site
@pytest.mark.parametrize("name", [name for name in PAGES if name != "play.html"])
def test_only_the_page_to_play_with_loads_its_code(name: str) -> None:
    assert not any("play/play." in target for target in links(name).targets)


# -- the page to play with -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((PLAY / "network.json").read_text(encoding="utf-8"))
    return read


@pytest.fixture(scope="module")
def predictor() -> md.Predictor:
    saved = Checkpoint.read(PLAY / "lenet5.safetensors")
    return md.Predictor(saved.model, **saved.info)


def test_what_the_page_says_of_the_network_is_so(network: dict[str, Any]) -> None:
    saved = Checkpoint.read(PLAY / "lenet5.safetensors")
    layers = {layer.name: layer for layer in md.count(saved.model, saved.info["shape"])}
    left = {name: len(which) for name, which in network["left"].items()}
    assert left == {
        "conv1": layers["conv1"].outputs[1],
        "conv2": layers["conv2"].outputs[1],
        "places": layers["dense1"].inputs[0],
        "dense1": layers["dense1"].outputs[1],
    }
    for name, which in network["left"].items():
        assert which == sorted(set(which))
        assert 0 <= which[0] <= which[-1] < network["of"][name]
    assert {place // 16 for place in network["left"]["places"]} == set(network["left"]["conv2"])
    assert network["weights"] == sum(layer.weights[0] for layer in layers.values())
    assert network["macs"] == sum(layer.macs[0] for layer in layers.values())
    dense = md.count(md.LeNet5(rng=np.random.default_rng(0), sparsity="dense"), (1, 28, 28))
    assert network["dense_weights"] == sum(layer.weights[1] for layer in dense)
    assert network["dense_macs"] == sum(layer.macs[1] for layer in dense)


@pytest.mark.mnist
def test_the_examples_are_the_first_of_the_test_set(
    network: dict[str, Any], predictor: md.Predictor
) -> None:
    from base64 import b64decode

    try:
        test = load_dataset("mnist", offline=True).test
    except MissingDataError as error:
        pytest.skip(str(error))
    answers = predictor(test.images).argmax(axis=1)
    wrong = np.flatnonzero(answers != test.labels)
    assert (len(test), len(wrong)) == (network["test_images"], network["test_errors"])
    first = [int(np.flatnonzero(test.labels == label)[0]) for label in range(10)]
    assert [example["index"] for example in network["examples"]] == [*first, int(wrong[0])]
    for example in network["examples"]:
        assert b64decode(example["pixels"]) == test.images[example["index"]].tobytes()
        assert example["label"] == test.labels[example["index"]]
        assert example["answer"] == answers[example["index"]]


@dataclass
class Play:
    """The page, open and ready."""

    page: Any
    predictor: md.Predictor

    def forget(self) -> None:
        """Wait until the page is at rest, so that what is said from now on is new."""
        self.page.wait_for_function("document.getElementById('play-time').textContent.trim()")
        self.page.evaluate("document.getElementById('play-live').textContent = ''")

    def said(self, beginning: str) -> str:
        """Wait for what the page says to those who listen."""
        self.page.wait_for_function(
            "(beginning) => document.getElementById('play-live').textContent.startsWith(beginning)",
            arg=beginning,
        )
        return str(self.page.inner_text("#play-live"))

    def shown(self) -> np.ndarray:
        """Return the pixels in the picture of what the network sees."""
        pixels = self.page.evaluate(
            """() => {
              const canvas = document.getElementById("play-seen");
              const { data } = canvas.getContext("2d").getImageData(0, 0, 28, 28);
              return Array.from({ length: 784 }, (_, i) => data[4 * i + 3]);
            }"""
        )
        return np.array(pixels, np.uint8).reshape(28, 28)

    def check(self) -> int:
        """Return the answer, which must be minidiff's for the very pixels that are shown."""
        said = self.said("It says")
        pixels = self.shown()
        (logits,) = self.predictor(pixels[None, None])
        last = self.page.evaluate("answers.at(-1)")
        np.testing.assert_array_equal(np.array(last["pixels"]).reshape(28, 28), pixels)
        np.testing.assert_allclose(last["logits"], logits, atol=1e-3)
        answer = int(logits.argmax())
        assert said.startswith(f"It says {answer},")
        assert self.page.inner_text("#play-digit") == str(answer)
        shares = np.exp(logits - logits.max())
        shares = 100 * shares / shares.sum()
        told = [float(text.split()[0]) for text in self.percents()]
        np.testing.assert_allclose(told, shares, atol=0.051)
        return answer

    def percents(self) -> list[str]:
        return [str(text) for text in self.page.locator(".play-percent").all_inner_texts()]

    def on_paper(self, *places: tuple[float, float]) -> list[tuple[float, float]]:
        """Return where in the window places of the paper are, which are given from 0 to 1."""
        paper = self.page.locator("#play-paper")
        paper.scroll_into_view_if_needed()
        box = paper.bounding_box()
        return [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]


def ready(page: Any, address: str) -> None:
    page.goto(f"{address}/play.html")
    page.evaluate(
        """() => {
          window.answers = [];
          const note = (event) => answers.push(event.detail);
          document.getElementById("play").addEventListener("play:answer", note);
        }"""
    )
    page.wait_for_selector("#play.ready", timeout=120_000)


@pytest.fixture
def play(
    request: pytest.FixtureRequest,
    address: str,
    contexts: dict[tuple[str, str], Any],
    predictor: md.Predictor,
) -> Iterator[Play]:
    if "play.html" not in PAGES:
        absent("the site has no play.html")
    faults = Faults(address)
    page = contexts[getattr(request, "param", ("desktop", "light"))].new_page()
    try:
        faults.watch(page)
        ready(page, address)
        play = Play(page, predictor)
        play.forget()
        yield play
    finally:
        page.close()
    assert not faults.found, "\n".join(faults.found)


ONE = [(0.55, 0.15), (0.53, 0.4), (0.5, 0.65), (0.48, 0.85)]


@site
def test_a_digit_is_drawn_with_the_mouse(play: Play) -> None:
    start, *rest = play.on_paper(*ONE)
    play.page.mouse.move(*start)
    play.page.mouse.down()
    for place in rest:
        play.page.mouse.move(*place, steps=8)
    play.page.mouse.up()
    play.page.mouse.move(*play.on_paper((0.9, 0.5))[0])  # which draws no more
    assert play.check() == 1


@site
@pytest.mark.parametrize("play", [("phone", "dark")], indirect=True)
def test_a_digit_is_drawn_with_a_finger(play: Play) -> None:
    places = play.on_paper(*ONE)
    top = play.page.evaluate("scrollY")
    touch = play.page.context.new_cdp_session(play.page)
    for kind, (x, y) in zip(
        ["touchStart", *["touchMove"] * (len(places) - 1)], places, strict=True
    ):
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert play.check() == 1
    assert play.page.evaluate("scrollY") == top


@site
def test_a_digit_is_drawn_by_keys(play: Play) -> None:
    play.page.keyboard.press("Tab")
    play.page.locator("#play-paper").focus()
    top, url = play.page.evaluate("scrollY"), play.page.url
    press = play.page.keyboard.press
    for _ in range(10):
        press("ArrowUp")
    assert not play.page.inner_text("#play-live")  # the pen is up, so nothing has changed
    press("Space")
    assert play.said("The pen is down")
    for _ in range(20):
        press("ArrowDown")
    press("Space")
    press("ArrowRight")
    assert play.check() == 1
    assert play.page.url == url  # arrows alone would turn to the next page
    assert play.page.evaluate("scrollY") == top
    press("Delete")
    play.said("The paper is blank.")
    assert not play.shown().any()


@site
def test_two_arrows_at_once_go_along_the_diagonal(play: Play) -> None:
    play.page.click("#play-clear")
    play.said("The paper is blank.")
    play.page.locator("#play-paper").focus()
    keyboard = play.page.keyboard
    keyboard.press("Space")
    keyboard.down("ArrowRight")
    for _ in range(12):
        keyboard.press("ArrowDown")
    keyboard.up("ArrowRight")
    play.check()
    rows, columns = np.nonzero(play.shown())
    assert np.corrcoef(rows, columns)[0, 1] > 0.8


@site
@pytest.mark.parametrize("play", [("desktop", "light"), ("phone", "light")], indirect=True)
def test_the_paper_is_cleared(play: Play) -> None:
    assert play.shown().any()  # an example, to begin with
    play.page.click("#play-clear")
    play.said("The paper is blank.")
    assert not play.shown().any()
    assert play.page.evaluate("answers.at(-1)") == {"pixels": None, "logits": None}
    assert play.page.inner_text("#play-digit") == "\u2013"
    assert not any(play.percents())
    assert play.page.is_visible("#play-hint")


@site
def test_a_stroke_replaces_an_example(play: Play) -> None:
    play.page.locator("#play-examples button").nth(0).click()
    assert play.check() == 0
    play.forget()
    play.page.mouse.move(*play.on_paper((0.5, 0.2))[0])
    play.page.mouse.down()
    play.page.mouse.move(*play.on_paper((0.5, 0.8))[0], steps=10)
    play.page.mouse.up()
    assert play.check() == 1


@site
def test_answers_to_the_examples_are_minidiffs(play: Play, network: dict[str, Any]) -> None:
    buttons = play.page.locator("#play-examples button")
    assert buttons.count() == len(network["examples"]) == 11
    for i, example in enumerate(network["examples"]):
        play.forget()
        buttons.nth(i).click()
        assert play.check() == example["answer"]


@site
def test_what_is_left_is_shown_in_its_place(play: Play, network: dict[str, Any]) -> None:
    for name in ("conv1", "conv2"):
        slots = play.page.locator(f"#play-{name} > span")
        assert slots.count() == network["of"][name]
        filled = slots.evaluate_all("(slots) => slots.map((slot) => slot.children.length)")
        assert np.flatnonzero(filled).tolist() == network["left"][name]
    assert play.page.locator("#play-units > span").count() == len(network["left"]["dense1"])
    levels = play.page.locator("#play-units > span").evaluate_all(
        "(units) => units.map((unit) => Number(unit.style.getPropertyValue('--level')))"
    )
    # The example that is shown first is the 7.
    saved = Checkpoint.read(PLAY / "lenet5.safetensors")
    x = (play.shown()[None, :, :, None] / np.float32(255) - saved.info["mean"]) / saved.info["std"]
    x = np.asarray(x, np.float32)
    for layer_name, layer in saved.model.children():
        x = layer(x).data
        if layer_name == "dense1":
            break
    expected = np.maximum(x[:, 0], 0)
    scale = expected.max() / max(levels)
    np.testing.assert_allclose(levels, np.minimum(expected / scale, 1), atol=1e-3)


# Whether the ink has the colour that the theme gives it.
FOLLOWS = """() => {
  const canvas = document.getElementById("play-paper");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let darkest = 0;
  for (let i = 0; i < data.length; i += 4) if (data[i + 3] > data[darkest + 3]) darkest = i;
  const wanted = getComputedStyle(canvas).color.match(/[0-9.]+/g).map(Number);
  return [0, 1, 2].every((i) => Math.abs(data[darkest + i] - wanted[i]) <= 2);
}"""
TEXT = "getComputedStyle(document.getElementById('play-paper')).color"


@site
def test_ink_follows_the_theme(play: Play) -> None:
    before = play.shown()
    assert play.page.evaluate(FOLLOWS)
    light = play.page.evaluate(TEXT)
    play.page.emulate_media(color_scheme="dark")  # the system's setting
    play.page.wait_for_function(FOLLOWS)
    assert play.page.evaluate(TEXT) != light
    play.page.locator(".theme-toggle").locator("visible=true").click()  # the page's own
    play.page.wait_for_function(f"{TEXT} === {light!r}")
    play.page.wait_for_function(FOLLOWS)
    np.testing.assert_array_equal(play.shown(), before)


def stroke(rng: np.random.Generator, width: float) -> np.ndarray:
    """Return a zigzag of ink, 0..1, somewhere on a small paper."""
    side = int(rng.integers(60, 140))
    ys, xs = np.indices((side, side))
    corners = rng.uniform(0.1 * side, 0.9 * side, (int(rng.integers(2, 6)), 2))
    distance = np.full((side, side), np.inf)
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        along = ((xs - x0) * (x1 - x0) + (ys - y0) * (y1 - y0)) / (
            (x1 - x0) ** 2 + (y1 - y0) ** 2 + 1e-9
        )
        along = along.clip(0, 1)
        away = np.hypot(xs - x0 - along * (x1 - x0), ys - y0 - along * (y1 - y0))
        distance = np.minimum(distance, away)
    ink: np.ndarray = (width / 2 - distance + 0.5).clip(0, 1)
    return np.rint(255 * ink) / 255  # as a canvas has it


@site
def test_drawings_are_prepared_as_images_are(play: Play) -> None:
    rng = np.random.default_rng(0)
    inks = [stroke(rng, width) for width in np.linspace(1.5, 14, 40)]
    inks.append(np.pad(np.ones((1, 1)), 20))  # a dot
    made = play.page.evaluate(
        """async (drawings) => {
          const { prepare } = await import(new URL("_static/play/prepare.js", document.baseURI));
          return drawings.map(({ width, height, values }) =>
            Array.from(prepare({ width, height, values: Float32Array.from(values) })));
        }""",
        [
            {"width": ink.shape[1], "height": ink.shape[0], "values": ink.ravel().tolist()}
            for ink in inks
        ],
    )
    thickened = 0
    for ink, pixels in zip(inks, made, strict=True):
        # What prepare_pixels does once it has found the ink, which here is known.
        rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
        cropped = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        expected = photos._fit(cropped, [])
        thickened += any("thickened" in note for note in expected.notes)
        difference = np.array(pixels).reshape(28, 28) - expected.pixels.astype(int)
        assert abs(difference).max() <= 1  # float32 here, float64 there
    assert 5 < thickened < 36


@site
def test_a_blank_drawing_has_no_pixels(play: Play) -> None:
    assert play.page.evaluate(
        """async () => {
          const { prepare } = await import(new URL("_static/play/prepare.js", document.baseURI));
          return prepare({ width: 2, height: 2, values: new Float32Array(4) }) === null;
        }"""
    )


@site
def test_the_page_says_that_loading_has_failed_and_tries_again(
    address: str, contexts: dict[tuple[str, str], Any]
) -> None:
    if "play.html" not in PAGES:
        absent("the site has no play.html")
    page = contexts["desktop", "light"].new_page()
    try:
        page.route("**/*.wasm", lambda route: route.abort())
        page.goto(f"{address}/play.html")
        page.wait_for_selector("text=The network could not be loaded")
        assert page.is_visible("#play-seen")
        page.unroute("**/*.wasm")
        page.click("text=Try again")
        page.wait_for_selector("#play.ready", timeout=120_000)
        assert page.is_hidden("#play-status")
    finally:
        page.close()


@site
def test_a_page_opened_as_a_file_says_what_to_do(browser: Any) -> None:
    if "play.html" not in PAGES:
        absent("the site has no play.html")
    page = browser.new_page()
    try:
        page.goto((SITE / "play.html").as_uri())
        page.wait_for_selector(".play-late", state="visible")
        assert re.search(r"python -m http\.server", page.inner_text("#play-status"))
    finally:
        page.close()
