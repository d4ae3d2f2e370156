"""Export: other software computes the same, and the documents' own code is what is run."""

import re
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import minidiff as md
from minidiff import nn
from minidiff.data.batches import batches
from minidiff.data.datasets import load_dataset
from minidiff.data.mnist import MissingDataError
from minidiff.io.export import ExportError
from minidiff.training.config import Config
from minidiff.training.trainer import Trainer
from tests.strategies import Network, networks
from tests.test_predictor import narrow

onnx = pytest.importorskip("onnx", reason="export to ONNX needs onnx")
runtime = pytest.importorskip("onnxruntime", reason="exported files are run by onnxruntime")

DOCUMENT = Path(__file__).parents[1] / "docs" / "howto" / "resume-and-export.md"
in_one_directory = settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


def documented_reader() -> Any:
    space: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    code = next(block for block in blocks if "def predict" in block)
    exec(code, space)
    assert len(code[code.index("def ") :].splitlines()) <= 32  # "a reader of 30 lines"
    return space["predict"]


def run_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images})
    return np.asarray(logits)


@pytest.mark.filterwarnings("ignore:nothing is left")
@given(networks())
@in_one_directory
def test_any_network_gives_the_same_everywhere(tmp_path: Path, network: Network) -> None:
    model = narrow(network)
    rng = np.random.default_rng(network.seed)
    images = rng.random((3, *network.shape), dtype=np.float32)
    settings = {"mean": rng.uniform(-1, 1), "std": rng.uniform(0.2, 2)}
    expected = md.Predictor(model, network.shape, **settings)(images)
    tolerance = {"rtol": 1e-4, "atol": 1e-4 * max(1, abs(expected).max())}
    for ending, run in (("onnx", run_onnx), ("npz", documented_reader())):
        path = tmp_path / f"model.{ending}"
        md.export(path, model, network.shape, **settings)
        np.testing.assert_allclose(run(path, images), expected, **tolerance)
    path = tmp_path / "model.safetensors"
    md.export(path, model, network.shape, **settings)
    loaded = md.Predictor(md.load(path), network.shape, **settings)
    np.testing.assert_array_equal(loaded(images), expected)


def pruned() -> md.LeNet5:
    model = md.LeNet5(rng=np.random.default_rng(0), initial=0.2)
    for layer, role in (("conv1", "outputs"), ("conv2", "outputs"), ("dense1", "inputs")):
        getattr(dict(model.children())[layer], role).phi.data[::2] = -1
    return model


def test_a_gated_network_is_exported_compact(tmp_path: Path) -> None:
    model = pruned()
    small = md.export(tmp_path / "m.onnx", model, (1, 28, 28))
    assert not any(isinstance(module, md.Gate) for module in small.modules())
    bytes_of_weights = sum(4 * parameter.size for parameter in small.parameters())
    for ending in ("onnx", "npz", "safetensors"):
        path = tmp_path / f"m.{ending}"
        md.export(path, model, (1, 28, 28))
        assert path.stat().st_size < bytes_of_weights + 8000
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [
        *("N", 1, 28, 28)
    ]


@pytest.mark.mnist
def test_onnxruntime_answers_as_the_gated_network_on_all_of_mnist(tmp_path: Path) -> None:
    try:
        data = load_dataset("mnist", offline=True)
    except MissingDataError as error:
        pytest.skip(str(error))
    trainer = Trainer(Config(epochs=1, lr=0.02, gate_start=0.2, gate_lr=0.1), data)
    for images, labels in islice(
        batches(data.train, 128, mean=data.mean, std=data.std, rng=np.random.default_rng(0)), 150
    ):
        trainer.train_step(images, labels)
    model = trainer.model.eval()
    path = tmp_path / "m.onnx"
    small = md.export(path, model, (1, 28, 28), mean=data.mean, std=data.std)
    assert sum(p.size for p in small.parameters()) < 300_000  # gates have closed
    logits = run_onnx(path, data.test.images.astype(np.float32) / 255)
    gated = []
    with md.no_grad():
        for images, _ in batches(data.test, 1000, mean=data.mean, std=data.std):
            gated.append(model(images).data.T)
    expected = np.concatenate(gated)
    assert len(expected) == 10_000
    assert abs(logits - expected).max() < 1e-4
    np.testing.assert_array_equal(logits.argmax(axis=1), expected.argmax(axis=1))
    assert (expected.argmax(axis=1) == data.test.labels).mean() > 0.9


@pytest.mark.parametrize("ending", ["onnx", "npz", "safetensors"])
def test_a_file_is_replaced_whole(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / f"m.{ending}"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        md.export(path, pruned(), (1, 28, 28))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_bad_arguments_are_errors(tmp_path: Path) -> None:
    model = md.LeNet5(rng=np.random.default_rng(0))
    with pytest.raises(ExportError, match=r"'.pt'; expected one of .onnx, .npz, .safetensors"):
        md.export(tmp_path / "m.pt", model, (1, 28, 28))
    with pytest.raises(ExportError, match="std above 0"):
        md.export(tmp_path / "m.npz", model, (1, 28, 28), std=0)
    wide = nn.Linear(3, 2, rng=np.random.default_rng(0), dtype=np.float64)
    with pytest.raises(ExportError, match="float32"):
        md.export(tmp_path / "m.npz", wide, (3,))
    with pytest.raises(FileNotFoundError):
        md.export(tmp_path / "no" / "m.npz", model, (1, 28, 28))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"onnx could not .*pip install -e '.\[onnx\]'"):
        md.export(tmp_path / "m.onnx", pruned(), (1, 28, 28))


def test_arguments_of_export_the_other_way_round_are_told(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3, rng=np.random.default_rng(0)))
    with pytest.raises(TypeError, match=r"expected export\(path, model, shape\)"):
        md.export(model, tmp_path / "model.npz", (4,))  # type: ignore[arg-type]  # wrong on purpose
