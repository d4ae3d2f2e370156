"""A Sphinx extension for the page docs/play.md, on which the pruned network answers.

While the site is built it makes ``lenet5.onnx`` from the committed network, and copies the parts of
onnxruntime-web that run it in the browser. The page has all its numbers from here, by two means:

- the directive ``play`` puts the drawing surface and all around it in place, ``play.html``;
- the role ``play`` writes a fact about the network: ``{play}`weights``` is "12,312".

Only that page loads ``play.css`` and ``play.js``.
"""

import json
import shutil
from pathlib import Path
from string import Template
from typing import Any, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

DOCS = Path(__file__).parents[1]
SOURCE = DOCS / "_static" / "play"
RUNTIME = DOCS / "node_modules" / "onnxruntime-web" / "dist"
# Of the runtime's many builds the smallest one. It has the glue for its WebAssembly inside.
PARTS = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
PAGE = "play"
# What the page shows beside the logits, by the names that md.export gives to nodes.
SHOWN = {"conv1": "conv1_Conv", "conv2": "conv2_Conv", "dense1": "dense1_Gemm"}


def facts() -> dict[str, str]:
    """Return what the page says of the network, by name."""
    network = json.loads((SOURCE / "network.json").read_text(encoding="utf-8"))
    smoothing, wasm = network["label_smoothing"], (RUNTIME / PARTS[1]).stat().st_size
    counts = {name: len(indices) for name, indices in network["left"].items()}
    return {
        **{name: f"{count:,}" for name, count in counts.items()},
        **{f"{name}_of": f"{count:,}" for name, count in network["of"].items()},
        **{name: f"{network[name]:,}" for name in ("weights", "dense_weights")},
        "command": network["made by"][0].removesuffix(" --out RUN"),
        "conv2_places": str(16 * counts["conv2"]),
        "unread_places": str(16 * counts["conv2"] - counts["places"]),
        "fewer_macs": f"{network['dense_macs'] / network['macs']:.1f}",
        "fewer_weights": f"{network['dense_weights'] / network['weights']:.1f}",
        "test_error": f"{100 * network['test_errors'] / network['test_images']:.2f} %",
        "test_errors": f"{network['test_errors']:,}",
        "test_images": f"{network['test_images']:,}",
        "surest": f"{100 * (1 - smoothing + smoothing / 10):.0f} %",
        "smoothing": f"{smoothing:g}",
        "kilobytes": f"{(SOURCE / 'lenet5.safetensors').stat().st_size / 1e3:.0f} KB",
        "wasm": f"{wasm / 1e6:.0f} MB",
        "wasm_bytes": str(wasm),
    }


class Play(SphinxDirective):
    """What ``play.js`` brings to life."""

    has_content: ClassVar[bool] = False

    def run(self) -> list[nodes.Node]:
        """Return the skeleton of the page, with the numbers in it."""
        template = Path(__file__).with_suffix(".html")
        self.env.note_dependency(str(template))
        self.env.note_dependency(str(SOURCE / "network.json"))
        text = Template(template.read_text(encoding="utf-8")).substitute(facts())
        return [nodes.raw("", text, format="html")]


class Fact(SphinxRole):
    """A number about the network."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return it as text."""
        self.env.note_dependency(str(SOURCE / "network.json"))
        known = facts()
        if self.text in known:
            return [nodes.Text(known[self.text])], []
        message = self.inliner.reporter.error(
            f"play: there is no fact {self.text!r}; expected one of {', '.join(known)}.",
            line=self.lineno,
        )
        return [], [message]


def write_network(path: Path) -> None:
    """Write the network as ONNX, with what the page shows as further outputs.

    They are called conv1, conv2 and dense1, and are taken after ReLU.
    """
    import onnx

    import minidiff as md
    from minidiff.io.checkpoint import Checkpoint

    saved = Checkpoint.read(SOURCE / "lenet5.safetensors")
    md.export(path, saved.model, **saved.info)
    proto = onnx.load(path)
    helper, shape = onnx.helper, tuple(saved.info["shape"])
    for name, layer in saved.model.children():
        shape = layer.output_shape(shape)
        if name in SHOWN:
            proto.graph.node.append(helper.make_node("Relu", [SHOWN[name]], [name], name=name))
            proto.graph.output.append(
                helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", *shape])
            )
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def _add_assets(app: Sphinx, page: str, *_: Any) -> None:
    """Load style and code on the page, and on no other."""
    if page == PAGE:
        app.add_css_file("play/play.css")
        app.add_js_file("play/play.js", type="module")


def _bundle(app: Sphinx, exception: Exception | None) -> None:
    """Put the network and what runs it into the site."""
    if exception or app.builder.format != "html":
        return
    target = Path(app.outdir) / "_static" / "play"
    write_network(target / "lenet5.onnx")
    for part in PARTS:
        shutil.copyfile(RUNTIME / part, target / part)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register what Sphinx calls."""
    # Python files are pages of the site, but those beside this one are not.
    app.config.exclude_patterns.append("_ext")
    app.add_directive("play", Play)
    app.add_role("play", Fact())
    app.connect("html-page-context", _add_assets)
    app.connect("build-finished", _bundle)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
