/**
 * The page to play with: a digit is drawn, and the pruned LeNet5 answers, all in this browser.
 *
 * - Paper is what is drawn on, by mouse, finger, pen or keys.
 * - prepare.js makes the drawing into what the network expects.
 * - Network fetches onnxruntime and the network, and runs it.
 * - View shows what the network sees, does and says.
 *
 * Elements are those of docs/_ext/play.html, each with an id that begins with "play-". Each answer
 * is also an event "play:answer" of the element "play", with the pixels and logits in its detail,
 * which is how the tests of the site listen.
 */

import { prepare, SIDE } from "./prepare.js";

/** @param {string} name @returns {HTMLElement} */
const element = (name) => document.getElementById(`play-${name}`);
const root = document.getElementById("play");

/** Where this file is, and all that it loads. */
const HERE = new URL("./", import.meta.url);
/** Layers whose activations are shown; they are outputs of the network, and keys of network.json. */
const CONVOLUTIONS = ["conv1", "conv2"];
const HIDDEN = "dense1";
/** Opacity is activation to this power, below 1 so that weak ones are seen as well. */
const GAMMA = 0.7;
/** Milliseconds without a change after which an answer is announced and timed. */
const SETTLED = 400;

/* -- colours ----------------------------------------------------------------------------------- */

/**
 * Give what is painted on a canvas the colour of its text, and keep its transparency.
 *
 * So all that is painted is a matter of transparency, and a change of theme is a change of colour.
 *
 * @param {HTMLCanvasElement} canvas
 */
function recolour(canvas) {
  const context = canvas.getContext("2d");
  context.globalCompositeOperation = "source-in";
  context.fillStyle = getComputedStyle(canvas).color;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.globalCompositeOperation = "source-over";
}

/**
 * Paint a picture in the colour of the canvas's text.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {(index: number) => number} opacity Of each pixel, 0 to 255, row by row.
 */
function paint(canvas, opacity) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const image = context.createImageData(canvas.width, canvas.height);
  for (let i = 0; i < canvas.width * canvas.height; i++) image.data[4 * i + 3] = opacity(i);
  context.putImageData(image, 0, 0);
  recolour(canvas);
}

/** Call back when the page changes between light and dark. */
function whenThemeChanges(callback) {
  const attributes = { attributes: true, attributeFilter: ["data-theme"] };
  new MutationObserver(callback).observe(document.body, attributes);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", callback);
}

/* -- the paper --------------------------------------------------------------------------------- */

/** What is drawn on. It calls `changed` after each change. */
class Paper {
  static PEN = 40; // of 560 pixels: in a digit that fills the paper, strokes as wide as in MNIST
  static STEP = 20; // of the keyboard's pen, one pixel of the 28

  constructor(changed) {
    this.changed = changed;
    this.canvas = element("paper");
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.context.lineCap = this.context.lineJoin = "round";
    this.context.lineWidth = Paper.PEN;
    /** Pixels of an example that is shown; it makes way for the first stroke. */
    this.example = null;
    /** Where the stroke that is being drawn by mouse or finger has come to. */
    this.last = null;
    /** The pen of the keyboard: where it is, and whether it is down. */
    this.pen = { x: this.canvas.width / 2, y: this.canvas.height / 2, down: false };
    this.held = new Set();
    this.listen();
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      if (!event.isPrimary || event.button !== 0) return;
      event.preventDefault(); // no selection of text
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      this.hidePen();
      this.last = this.place(event);
      this.line(this.last, this.last);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (this.last === null || !event.isPrimary) return;
      // A browser may gather several moves into one event.
      const moves = event.getCoalescedEvents?.() ?? [];
      for (const move of moves.length ? moves : [event]) {
        const place = this.place(move);
        this.line(this.last, place);
        this.last = place;
      }
    });
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, (event) => {
        if (event.isPrimary) this.last = null;
      });
    }
    canvas.addEventListener("keydown", (event) => this.keydown(event));
    canvas.addEventListener("keyup", (event) => this.held.delete(event.key));
    canvas.addEventListener("focus", () => canvas.matches(":focus-visible") && this.showPen());
    canvas.addEventListener("blur", () => {
      this.held.clear();
      this.pen.down = false;
      this.hidePen();
    });
  }

  /** Return where on the canvas a pointer is. */
  place({ clientX, clientY }) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.canvas.width / box.width;
    return { x: (clientX - box.left) * scale, y: (clientY - box.top) * scale };
  }

  line(from, to) {
    if (this.example !== null) this.wipe();
    this.context.strokeStyle = getComputedStyle(this.canvas).color;
    this.context.beginPath();
    this.context.moveTo(from.x, from.y);
    this.context.lineTo(to.x, to.y);
    this.context.stroke();
    this.changed();
  }

  keydown(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key.startsWith("Arrow")) this.held.add(event.key);
    else if (event.key === " ") this.putDown(!this.pen.down);
    else if (event.key === "Escape") this.putDown(false);
    else if (event.key === "Delete" || event.key === "Backspace") this.clear();
    else return;
    // The page would scroll, or turn to the next one.
    event.preventDefault();
    event.stopPropagation();
    if (event.key.startsWith("Arrow")) this.move();
    this.showPen();
  }

  putDown(down) {
    if (this.pen.down !== down) announce(down ? "The pen is down." : "The pen is up.");
    this.pen.down = down;
    if (down) this.line(this.pen, this.pen);
  }

  /** Move the keyboard's pen by a step; two arrows at a time go along the diagonal. */
  move() {
    const along = (less, more) => (this.held.has(more) ? 1 : 0) - (this.held.has(less) ? 1 : 0);
    const within = (at) => Math.min(Math.max(at, Paper.PEN / 2), this.canvas.width - Paper.PEN / 2);
    const from = { ...this.pen };
    this.pen.x = within(this.pen.x + Paper.STEP * along("ArrowLeft", "ArrowRight"));
    this.pen.y = within(this.pen.y + Paper.STEP * along("ArrowUp", "ArrowDown"));
    if (this.pen.down) this.line(from, this.pen);
  }

  showPen() {
    const pen = element("pen");
    pen.style.left = `${(100 * this.pen.x) / this.canvas.width}%`;
    pen.style.top = `${(100 * this.pen.y) / this.canvas.height}%`;
    pen.classList.toggle("down", this.pen.down);
    pen.classList.add("shown");
  }

  hidePen() {
    element("pen").classList.remove("shown");
  }

  /** Make the paper blank, without a word to anybody. */
  wipe() {
    this.example = null;
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  clear() {
    this.wipe();
    this.changed();
  }

  /**
   * Show an image of MNIST. The network gets its very pixels, not those of the enlarged picture.
   *
   * @param {Uint8Array} pixels
   */
  show(pixels) {
    this.wipe();
    const small = new OffscreenCanvas(SIDE, SIDE);
    const context = small.getContext("2d");
    const image = context.createImageData(SIDE, SIDE);
    pixels.forEach((value, i) => (image.data[4 * i + 3] = value));
    context.putImageData(image, 0, 0);
    this.context.drawImage(small, 0, 0, this.canvas.width, this.canvas.height);
    recolour(this.canvas);
    this.example = pixels;
    this.changed();
  }

  /** Return what the network is to see, 784 pixels; null if the paper is blank. */
  pixels() {
    if (this.example !== null) return this.example;
    const { width, height } = this.canvas;
    const { data } = this.context.getImageData(0, 0, width, height);
    const values = new Float32Array(width * height);
    for (let i = 0; i < values.length; i++) values[i] = data[4 * i + 3] / 255;
    return prepare({ width, height, values });
  }
}

/* -- the network ------------------------------------------------------------------------------- */

/** Fetch a file, and tell how much of it has arrived. */
async function download(name, progress = () => {}) {
  const response = await fetch(new URL(name, HERE));
  if (!response.ok) throw new Error(`${name}: the server answers ${response.status}`);
  const reader = response.body.getReader();
  const parts = [];
  let bytes = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    bytes += part.value.length;
    progress(bytes);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/** The network, in onnxruntime's WebAssembly, on one thread. */
class Network {
  /** Load it; `progress` is told how many bytes of the WebAssembly have arrived. */
  static async load(progress) {
    const [ort, wasm, model] = await Promise.all([
      import(new URL("ort.wasm.bundle.min.mjs", HERE).href),
      download("ort-wasm-simd-threaded.wasm", progress),
      download("lenet5.onnx"),
    ]);
    // More threads would need memory that is shared, which browsers allow to few pages.
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmBinary = wasm.buffer;
    const options = { executionProviders: ["wasm"] };
    return new Network(ort, await ort.InferenceSession.create(model, options));
  }

  constructor(ort, session) {
    this.ort = ort;
    this.session = session;
    /** The last run: the next one waits for it. */
    this.before = Promise.resolve();
  }

  /**
   * Ask about one image.
   *
   * @param {Uint8Array} pixels
   * @returns {Promise<Object<string, Float32Array>>} By name: "logits", and the layers' activations.
   */
  run(pixels) {
    const image = new this.ort.Tensor("float32", Float32Array.from(pixels, (p) => p / 255), [
      1,
      1,
      SIDE,
      SIDE,
    ]);
    const answer = this.before.then(() => this.session.run({ images: image }));
    this.before = answer.catch(() => {});
    return answer.then((outputs) =>
      Object.fromEntries(Object.entries(outputs).map(([name, { data }]) => [name, data])),
    );
  }

  /** Return how many milliseconds an answer takes, the mean of `times`. */
  async time(pixels, times = 20) {
    const start = performance.now();
    for (let i = 0; i < times; i++) await this.run(pixels);
    return (performance.now() - start) / times;
  }
}

/** Turn logits into probabilities. */
function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

/* -- what is shown ----------------------------------------------------------------------------- */

const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** Say something to those who listen to the page. */
function announce(text) {
  element("live").textContent = text;
}

/** Make an element; `settings` are its properties. */
function make(tag, settings = {}, ...children) {
  const made = Object.assign(document.createElement(tag), settings);
  made.append(...children);
  return made;
}

/** All that shows what the network does. */
class View {
  /** @param {object} network What network.json says of the network. */
  constructor(network) {
    this.network = network;
    this.seen = element("seen");
    /** Canvases of the filters that are left, by layer. */
    this.maps = {};
    /** What counts as fully on, by layer; see `calibrate`. */
    this.largest = {};
    this.addClasses();
    CONVOLUTIONS.forEach((name, i) => this.addFilters(name, [24, 8][i]));
    this.addUnits();
    whenThemeChanges(() => this.canvases().forEach(recolour));
  }

  canvases() {
    return document.querySelectorAll("#play canvas");
  }

  addClasses() {
    this.rows = Array.from({ length: 10 }, (_, digit) =>
      make(
        "li",
        {},
        make("span", { className: "play-class", textContent: digit }),
        make("span", { className: "play-bar" }),
        make("span", { className: "play-percent" }),
      ),
    );
    element("classes").replaceChildren(...this.rows);
  }

  /** Add a slot for each filter of the dense network; those that are left have a canvas. */
  addFilters(name, side) {
    const { left, of } = this.network;
    const grid = element(name);
    this.maps[name] = [];
    for (let filter = 0; filter < of[name]; filter++) {
      const alive = left[name].includes(filter);
      const slot = make("span", { title: `filter ${filter}${alive ? "" : ": pruned"}` });
      if (alive) {
        const canvas = make("canvas", { width: side, height: side });
        this.maps[name].push(canvas);
        slot.append(canvas);
      }
      grid.append(slot);
    }
    grid.setAttribute("role", "img");
    grid.setAttribute(
      "aria-label",
      `Activations of the filters that are left: ${left[name].join(", ")} of ${of[name]}`,
    );
  }

  addUnits() {
    const { left, of } = this.network;
    this.units = left[HIDDEN].map((unit) => make("span", { title: `unit ${unit}` }));
    element("units").replaceChildren(...this.units);
    element("units").setAttribute("role", "img");
    element("units").setAttribute(
      "aria-label",
      `Activations of the ${left[HIDDEN].length} hidden units that are left of ${of[HIDDEN]}`,
    );
    this.ticks = left[HIDDEN].map((unit) => {
      const tick = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const place = { x: unit, y: 0, width: 1, height: 1 };
      Object.entries(place).forEach(([key, value]) => tick.setAttribute(key, value));
      return tick;
    });
    element("strip").replaceChildren(...this.ticks);
  }

  /** Take the largest activations in these answers for fully on, so that pictures compare. */
  calibrate(answers) {
    for (const name of [...CONVOLUTIONS, HIDDEN]) {
      this.largest[name] = Math.max(...answers.map((answer) => Math.max(...answer[name])));
    }
  }

  showSeen(pixels) {
    paint(this.seen, (i) => pixels?.[i] ?? 0);
    element("hint").hidden = pixels !== null;
  }

  /** Show an answer of the network; null for none. */
  showAnswer(answer) {
    const shares = answer && softmax(answer.logits);
    const best = shares ? shares.indexOf(Math.max(...shares)) : -1;
    element("digit").textContent = shares ? best : "\u2013";
    element("share").textContent = shares ? percent(shares[best]) : "";
    this.rows.forEach((row, digit) => {
      row.classList.toggle("best", digit === best);
      row.style.setProperty("--share", shares?.[digit] ?? 0);
      row.lastChild.textContent = shares ? percent(shares[digit]) : "";
    });
    for (const name of CONVOLUTIONS) this.showMaps(name, answer?.[name]);
    this.units.forEach((unit, i) => {
      const level = answer ? Math.min(1, answer[HIDDEN][i] / this.largest[HIDDEN]) : 0;
      unit.style.setProperty("--level", level.toFixed(3));
      this.ticks[i].style.setProperty("--level", level.toFixed(3));
    });
    return best;
  }

  showMaps(name, activations) {
    const { left } = this.network;
    this.maps[name].forEach((canvas, i) => {
      const side = canvas.width;
      // A window of the last pool of which the next layer does not read the result is left blank.
      const read = (place) => {
        if (name !== "conv2") return true;
        const [x, y] = [(place % side) >> 1, Math.floor(place / side) >> 1];
        return left.places.includes(16 * left.conv2[i] + 4 * y + x);
      };
      paint(canvas, (place) => {
        if (!read(place)) return 0;
        const value = activations ? activations[i * side * side + place] : 0;
        return 24 + 231 * Math.min(1, value / this.largest[name]) ** GAMMA;
      });
    });
  }
}

/* -- the page ---------------------------------------------------------------------------------- */

/** Show how loading goes, or why it has failed. */
function showStatus(...content) {
  element("status").replaceChildren(...content);
  element("status").hidden = content.length === 0;
}

class Page {
  constructor(info) {
    this.network = null;
    this.view = new View(info);
    this.paper = new Paper(() => this.update());
    this.busy = this.again = false;
    this.examples = info.examples.map((example) => ({
      ...example,
      pixels: Uint8Array.from(atob(example.pixels), (letter) => letter.charCodeAt(0)),
    }));
    element("clear").addEventListener("click", () => this.paper.clear());
    this.addExamples();
    this.paper.show(this.examples[7].pixels);
  }

  addExamples() {
    for (const { index, label, answer, pixels } of this.examples) {
      const name = `Example: a ${label}${answer === label ? "" : `, which it takes for a ${answer}`}`;
      const canvas = make("canvas", { width: SIDE, height: SIDE });
      const button = make("button", { type: "button", title: `${name} (test image ${index})` }, canvas);
      button.setAttribute("aria-label", name);
      button.addEventListener("click", () => this.paper.show(pixels));
      element("examples").append(button);
      paint(canvas, (i) => pixels[i]);
    }
  }

  async load() {
    const bytes = Number(root.dataset.wasmBytes);
    const bar = make("progress", { max: bytes, value: 0 });
    bar.setAttribute("aria-label", "Loading");
    showStatus(`Loading what runs the network, ${Math.round(bytes / 1e6)} MB, once \u2026 `, bar);
    try {
      const network = await Network.load((arrived) => (bar.value = arrived));
      const answers = [];
      for (const { pixels } of this.examples) answers.push(await network.run(pixels));
      this.view.calibrate(answers);
      this.network = network;
      showStatus();
      root.classList.add("ready");
      await this.update();
    } catch (error) {
      showFailure(error, () => this.load());
    }
  }

  /** Answer what is on the paper now. Changes while it is at work are answered after it. */
  async update() {
    this.again = true;
    if (this.busy) return;
    this.busy = true;
    try {
      while (this.again) {
        // Once for each picture of the screen, however many strokes came in between.
        await new Promise(requestAnimationFrame);
        this.again = false;
        await this.answer();
      }
    } finally {
      this.busy = false;
    }
    clearTimeout(this.settling);
    this.settling = setTimeout(() => this.settle(), SETTLED);
  }

  async answer() {
    const pixels = this.paper.pixels();
    this.view.showSeen(pixels);
    const answer = pixels && this.network ? await this.network.run(pixels) : null;
    this.last = { pixels, best: this.view.showAnswer(answer) };
    if (answer === null && !(pixels === null && this.network)) return;
    const detail = { pixels: pixels && [...pixels], logits: answer && [...answer.logits] };
    root.dispatchEvent(new CustomEvent("play:answer", { detail }));
  }

  /** When nothing has changed for a while: say the answer, and how long it takes. */
  async settle() {
    const { pixels, best } = this.last;
    if (this.network === null) return;
    if (pixels === null) {
      announce("The paper is blank.");
      return;
    }
    announce(`It says ${best}, with ${element("share").textContent}.`);
    const milliseconds = await this.network.time(pixels);
    element("time").textContent = `${milliseconds.toFixed(2)} ms for an answer, on one thread`;
  }
}

function showFailure(error, retry) {
  const button = make("button", { type: "button", textContent: "Try again" });
  button.addEventListener("click", retry);
  showStatus(
    make("b", { textContent: "The network could not be loaded" }),
    ` (${error.message}). Without it the page shows what is drawn, but no answer. `,
    button,
  );
}

async function start() {
  try {
    const info = JSON.parse(new TextDecoder().decode(await download("network.json")));
    await new Page(info).load();
  } catch (error) {
    showFailure(error, start);
  }
}

start();
