"""Export: other software computes the same, and the documents' own code is what is run."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import minidiff as md
from minidiff import nn
from minidiff.io.export import ExportError
from tests.networks import narrow, networks, outputs

onnx = pytest.importorskip("onnx", reason="export to ONNX needs onnx")
runtime = pytest.importorskip("onnxruntime", reason="exported files are run by onnxruntime")

DOCUMENT = Path(__file__).parents[1] / "docs" / "howto" / "resume-and-export.md"
in_one_directory = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def documented_reader():
    """Return the reader of .npz files that the documents print."""
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    code, space = next(block for block in blocks if "def predict" in block), {}
    exec(code, space)
    assert len(code[code.index("def ") :].splitlines()) <= 32  # "a reader of 30 lines"
    return space["predict"]


def run_onnx(path, images):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0]


@pytest.mark.filterwarnings("ignore:nothing is left")
@given(networks())
@in_one_directory
def test_any_network_gives_the_same_everywhere(tmp_path, network):
    model, shape = narrow(network.model), network.shape
    rng = np.random.default_rng(network.seed)
    images = rng.random((3, *shape), dtype=np.float32)
    scaling = {"mean": rng.uniform(-1, 1), "std": rng.uniform(0.2, 2)}
    normalised = ((images - scaling["mean"]) / scaling["std"]).astype(np.float32)
    expected = np.moveaxis(outputs(model, np.moveaxis(normalised, 0, -1)), -1, 0)
    close = {"rtol": 1e-4, "atol": 1e-4 * max(1, abs(expected).max())}
    for ending, run in (("onnx", run_onnx), ("npz", documented_reader())):
        md.export(tmp_path / f"model.{ending}", model, shape, **scaling)
        np.testing.assert_allclose(run(tmp_path / f"model.{ending}", images), expected, **close)
    path = tmp_path / "model.safetensors"
    small = md.export(path, model, shape, **scaling)
    predictors = [md.Predictor(m, shape, **scaling) for m in (small, md.load(path))]
    np.testing.assert_allclose(predictors[0](images), expected, **close)
    np.testing.assert_array_equal(predictors[1](images), predictors[0](images))


def pruned():
    model = md.LeNet5(rng=np.random.default_rng(0), initial=0.2)
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
    with np.load(tmp_path / "m.npz", allow_pickle=False) as arrays:
        assert all(array.dtype != object for array in arrays.values())


@pytest.mark.mnist
def test_onnxruntime_answers_as_the_gated_network_on_all_of_mnist(tmp_path, mnist):
    model, images = pruned(), mnist.test.images.astype(np.float32) / 255
    md.export(tmp_path / "m.onnx", model, (1, 28, 28), mean=mnist.mean, std=mnist.std)
    logits = run_onnx(tmp_path / "m.onnx", images)
    normalised = np.moveaxis((images - mnist.mean) / mnist.std, 0, -1).astype(np.float32)
    np.testing.assert_allclose(logits.T, outputs(model, normalised), rtol=0, atol=1e-4)
    assert len(logits) == 10_000


def test_wrong_arguments_are_told_and_leave_no_file(tmp_path):
    model, shape = nn.Sequential(nn.Linear(3, 2, rng=np.random.default_rng(0))), (3,)
    with pytest.raises(TypeError, match=r"expected export\(path, model, shape\)"):
        md.export(model, tmp_path / "m.npz", shape)
    with pytest.raises(ExportError, match=r"'.pt'; expected one of .onnx, .npz, .safetensors"):
        md.export(tmp_path / "m.pt", model, shape)
    with pytest.raises(ExportError, match="std above 0"):
        md.export(tmp_path / "m.npz", model, shape, std=0)
    with pytest.raises(ValueError, match="does not fit an input of shape"):
        md.export(tmp_path / "m.npz", model, (4,))
    wide = nn.Linear(3, 2, rng=np.random.default_rng(0), dtype=np.float64)
    with pytest.raises(ExportError, match="not all float32"):
        md.export(tmp_path / "m.npz", wide, shape)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"onnx could not .*pip install -e '.\[onnx\]'"):
        md.export(tmp_path / "m.onnx", pruned(), (1, 28, 28))


class Rounded(nn.Module):
    """A layer with a setting that NumPy can only keep as an object."""

    channelwise = homogeneous = True
    settings = ("digits",)

    def __init__(self, digits=None):
        self.digits = digits

    def forward(self, x):
        return x


def test_npz_files_hold_no_objects(tmp_path):
    """NumPy would pickle them, and readers refuse to load that."""
    model = nn.Sequential(nn.Linear(3, 2, rng=np.random.default_rng(0)), Rounded())
    with pytest.raises(ExportError, match="digits"):
        md.export(tmp_path / "m.npz", model, (3,))
    assert list(tmp_path.iterdir()) == []
