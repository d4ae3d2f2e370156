"""Export: other software computes the same, and the documents' own code is what is run."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import minidiff as md
from minidiff import Gate, nn
from minidiff.io.checkpoint import Checkpoint
from minidiff.io.export import ExportError
from tests.networks import conv, dense, narrow, networks, outputs, rng

onnx = pytest.importorskip("onnx", reason="export to ONNX needs onnx")
runtime = pytest.importorskip("onnxruntime", reason="exported files are run by onnxruntime")

DOCUMENT = Path(__file__).parents[1] / "docs" / "howto" / "resume-and-export.md"
in_one_directory = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def documented_reader():
    """Return the reader of .npz files that the documents print."""
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    code, space = next(block for block in blocks if "def predict" in block), {}
    assert len(code[code.index("def ") :].splitlines()) <= 32  # "a reader of 30 lines"
    exec(code, space)
    return space["predict"]


def run_onnx(path, images):
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0]


@pytest.mark.filterwarnings("ignore:nothing is left")
@given(networks())
@in_one_directory
def test_any_network_gives_the_same_everywhere(tmp_path, network):
    model, shape, random = narrow(network.model), network.shape, rng(network.seed)
    images, mean, std = random.random((3, *shape), np.float32), *random.uniform(0.2, 1, 2)
    normalised = np.moveaxis((images - mean) / std, 0, -1).astype(np.float32)
    expected = np.moveaxis(outputs(model, normalised), -1, 0)
    readers = {
        "onnx": run_onnx,
        "npz": documented_reader(),
        "safetensors": lambda path, images: md.Predictor(md.load(path), shape, mean=mean, std=std)(
            images
        ),
    }
    for ending, read in readers.items():
        path = tmp_path / f"model.{ending}"
        md.export(path, model, shape, mean=mean, std=std)
        scale = max(1, abs(expected).max())
        np.testing.assert_allclose(read(path, images), expected, rtol=1e-4, atol=1e-4 * scale)


def pruned():
    model = md.LeNet5(rng=rng(), initial=0.2)
    for name in ("conv1.outputs", "conv2.outputs", "dense1.inputs"):
        md.gates_of(model)[name].phi.data[::2] = -1
    return model


def test_a_gated_network_is_exported_compact(tmp_path):
    for ending in ("onnx", "npz", "safetensors"):
        path = tmp_path / f"m.{ending}"
        small = md.export(path, pruned(), (1, 28, 28))
        size = sum(parameter.data.nbytes for parameter in small.parameters())
        assert path.stat().st_size < size + 8000 < 500_000
    (images,) = onnx.load(tmp_path / "m.onnx").graph.input
    sizes = [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim]
    assert (images.name, sizes) == ("images", ["N", 1, 28, 28])


@pytest.mark.parametrize(
    ("first", "shape"),
    [
        (dense(6, 4), (6,)),
        (md.gate(dense(6, 4), "inputs", "outputs"), (6,)),
        (nn.Sequential(nn.Select([0, 2], size=6), dense(2, 4)), (6,)),
        (nn.Sequential(nn.Dropout(0.5, rng=rng()), dense(6, 4)), (6,)),
        (nn.Sequential(Gate(6), dense(6, 4)), (6,)),
        (nn.Sequential(nn.Flatten(), dense(18, 4)), (2, 3, 3)),
        (nn.Sequential(conv(2, 4, 3), nn.Flatten()), (2, 3, 3)),
        (nn.Sequential(nn.ReLU(), conv(2, 4, 3), nn.Flatten()), (2, 3, 3)),
        (nn.Sequential(nn.MaxPool2d(3), nn.Flatten(), dense(2, 4)), (2, 3, 3)),
    ],
)
def test_an_exported_network_is_exported_again_with_any_first_layer(tmp_path, first, shape):
    model, images = narrow(nn.Sequential(first)), rng().random((5, *shape), np.float32)
    md.export(tmp_path / "a.safetensors", model, shape, mean=0.2, std=0.5)
    saved = Checkpoint.read(tmp_path / "a.safetensors")
    assert saved.info == {"shape": list(shape), "mean": 0.2, "std": 0.5}
    md.export(tmp_path / "b.onnx", saved.model, **saved.info)
    md.export(tmp_path / "b.npz", saved.model, **saved.info)
    expected = md.Predictor(model, shape, mean=0.2, std=0.5)(images)
    found = run_onnx(tmp_path / "b.onnx", images)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(documented_reader()(tmp_path / "b.npz", images), expected, atol=1e-5)


@pytest.mark.mnist
def test_onnxruntime_answers_alike_on_all_of_mnist(tmp_path, mnist):
    model, images = pruned(), mnist.test.images.astype(np.float32) / 255
    md.export(tmp_path / "m.onnx", model, (1, 28, 28), mean=mnist.mean, std=mnist.std)
    logits = run_onnx(tmp_path / "m.onnx", images)
    normalised = np.moveaxis((images - mnist.mean) / mnist.std, 0, -1).astype(np.float32)
    np.testing.assert_allclose(logits.T, outputs(model, normalised), rtol=0, atol=1e-4)
    assert len(logits) == 10_000


class Rounded(nn.Module):
    """A layer with a setting that NumPy can only keep as an object."""

    channelwise = homogeneous = True
    settings = ("digits",)
    digits = None

    def forward(self, x):
        return x


FLOATS, DOUBLES = narrow(dense(3, 2)), dense(3, 2)


@pytest.mark.parametrize(
    ("name", "model", "options", "message"),
    [
        ("m.pt", FLOATS, {}, r"'.pt'; expected one of .onnx, .npz, .safetensors"),
        *(("m.npz", FLOATS, {"std": std}, "std from 1e-35") for std in (0, 1e-50, np.inf)),
        ("m.npz", FLOATS, {"mean": np.nan}, "mean is nan"),
        ("m.npz", DOUBLES, {}, "not all float32"),
        ("m.npz", nn.Sequential(FLOATS, Rounded()), {}, "digits"),  # NumPy would pickle it
    ],
)
def test_what_cannot_be_exported_is_told(tmp_path, name, model, options, message):
    with pytest.raises(ExportError, match=message):
        md.export(tmp_path / name, model, (3,), **options)
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_and_missing_packages_are_told(tmp_path, monkeypatch):
    with pytest.raises(TypeError, match=r"expected export\(path, model, shape\)"):
        md.export(FLOATS, tmp_path / "m.npz", (3,))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"onnx could not .*pip install -e '.\[onnx\]'"):
        md.export(tmp_path / "m.onnx", FLOATS, (3,))


class Twice(nn.Dropout):
    """A Dropout that does more."""

    channelwise = homogeneous = True

    def forward(self, x):
        return 2 * super().forward(x)


def test_npz_names_layers_that_only_derive_from_dropout(tmp_path):
    model = nn.Sequential(FLOATS, nn.Dropout(0.5, rng=rng()), Twice(0.5, rng=rng()))
    md.export(tmp_path / "m.npz", model, (3,))
    with np.load(tmp_path / "m.npz") as arrays:
        assert arrays["layers"].tolist() == ["Linear", "Twice"]
