"""Networks from ONNX files: outputs are those of the file, and what is not known is named."""

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minidiff as md
from minidiff import nn
from minidiff.engine.module import chain
from tests.networks import networks, rng
from tests.strategies import seeds

onnx = pytest.importorskip("onnx", reason="ONNX files are written by onnx")
runtime = pytest.importorskip("onnxruntime", reason="ONNX files are run by onnxruntime")
helper = onnx.helper
in_one_directory = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)


def run(path: Any, x: Any) -> Any:
    """Return what onnxruntime computes; inputs and outputs are batch last."""
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (i.name for i in session.get_inputs())
    return np.moveaxis(session.run(None, {name: np.moveaxis(x, -1, 0)})[0], 0, -1)


def write(path: Any, shape: tuple[Any, ...], *nodes: Any, **constants: Any) -> Any:
    """Write nodes (op, inputs, output, attributes); the input is x, the output y."""
    value = helper.make_tensor_value_info
    kind = onnx.TensorProto.FLOAT
    arrays = {k: np.asarray(v, None if np.asarray(v).dtype == int else np.float32)
              for k, v in constants.items()}  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node(op, inputs.split(), [output], name=f"{op}_{i}", **attributes)
            for i, (op, inputs, output, attributes) in enumerate(nodes)
        ],
        "made",
        [value("x", kind, ["N", *shape])],
        [value("y", kind, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(proto, path)
    return path


def assert_read(path: Any, x: Any, softmax: bool = False) -> nn.Sequential:
    expected, model = run(path, x), md.from_onnx(path)
    with md.no_grad():
        found = model.eval()(x).data
    if softmax:
        found = np.exp(found) / np.exp(found).sum(axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    return model.train()


def drawn(*shape: int, seed: int = 0) -> Any:
    return rng(seed).standard_normal(shape).astype(np.float32)


# -- files of minidiff -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:nothing is left")
@given(networks(any_kind=False), st.floats(-1, 1), seeds)
@in_one_directory
def test_any_exported_network_is_read(tmp_path, network, mean, seed):
    model = network.model.eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(np.float32)
    first = next(
        (m for _, m in chain(model) if isinstance(getattr(m, "layer", m), nn.Weighted)), None
    )
    if first is None:
        return
    padded = any(getattr(getattr(first, "layer", first), "padding", ()))
    path = tmp_path / "model.onnx"
    try:
        md.export(path, model, network.shape, mean=0.0 if padded else mean, std=1.5)
    except ValueError:
        return  # gates that cannot be folded
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_read(path, drawn(*network.shape, 5, seed=seed))


def test_a_network_that_was_read_is_gated_pruned_and_exported_again(tmp_path):
    dense = md.LeNet5(rng=rng(), sparsity="dense")
    md.export(tmp_path / "dense.onnx", dense, (1, 28, 28))
    model = md.from_onnx(tmp_path / "dense.onnx")
    assert model.names == ["conv1", "pool", "conv2", "pool2", "flatten", "dense1", "relu", "dense2"]
    assert model["pool"].relu
    gated = md.gate(model)
    for gate in md.gates_of(gated).values():
        gate.set_open(np.arange(gate.count) % 3 == 0)
    small = md.export(tmp_path / "small.onnx", gated, (1, 28, 28))
    again = assert_read(tmp_path / "small.onnx", drawn(1, 28, 28, 3))
    assert again["conv1"].weight.shape == small["conv1"].weight.shape == (7, 1, 5, 5)


# -- files of others ---------------------------------------------------------------------------


def test_a_product_and_a_sum_are_a_dense_layer(tmp_path):
    path = write(
        tmp_path / "m.onnx", (4,), ("MatMul", "x a", "h", {}), ("Add", "h b", "i", {}),
        ("Tanh", "i", "j", {}), ("Gemm", "j c d", "k", {"transB": 0}),
        ("Softmax", "k", "y", {"axis": 1}),
        a=drawn(4, 6), b=drawn(6), c=drawn(6, 3), d=drawn(3),
    )  # fmt: skip
    model = assert_read(path, drawn(4, 5), softmax=True)
    assert [type(layer) for layer in model] == [nn.Linear, nn.Tanh, nn.Linear]


def test_norms_go_into_the_layer_before_and_scales_of_the_input_into_the_first(tmp_path):
    numbers = [np.abs(drawn(3, seed=s)) + 0.1 for s in range(4)]
    path = write(
        tmp_path / "m.onnx", (2, 6, 6), ("Sub", "x mean", "g", {}), ("Div", "g std", "h", {}),
        ("Conv", "h w", "i", {"kernel_shape": [3, 2], "strides": [2, 1]}),
        ("BatchNormalization", "i n0 n1 n2 n3", "j", {"epsilon": 1e-3}), ("Relu", "j", "y", {}),
        mean=[[[0.3]], [[-0.2]]], std=[[[2.0]], [[0.5]]], w=drawn(3, 2, 3, 2),
        **{f"n{i}": number for i, number in enumerate(numbers)},
    )  # fmt: skip
    model = assert_read(path, drawn(2, 6, 6, 4))
    assert [type(layer) for layer in model] == [nn.Conv2d, nn.ReLU]


@pytest.mark.parametrize("op", ["Div", "Mul"])
def test_silu_and_gelu_are_found_in_their_parts(tmp_path, op):
    root = 2**0.5 if op == "Div" else 0.5**0.5
    path = write(
        tmp_path / "m.onnx", (2, 4, 4), ("Conv", "x w b", "a", {"pads": [1, 0, 1, 0]}),
        ("Sigmoid", "a", "s", {}), ("Mul", "a s", "c", {}), ("Relu", "c", "d", {}),
        ("MaxPool", "d", "e", {"kernel_shape": [2, 2]}),
        (op, "e root", "f", {}), ("Erf", "f", "g", {}), ("Add", "g one", "h", {}),
        ("Mul", "e h", "i", {}), ("Mul", "i half", "j", {}), ("Dropout", "j", "k", {}),
        ("GlobalAveragePool", "k", "l", {}), ("Reshape", "l flat", "m", {}),
        ("LeakyRelu", "m", "n", {"alpha": 0.1}), ("Sigmoid", "n", "y", {}),
        w=drawn(3, 2, 3, 1), b=drawn(3), root=root, one=1.0, half=0.5, flat=np.array([-1, 3]),
    )  # fmt: skip
    model = assert_read(path, drawn(2, 4, 4, 5))
    kinds = [
        nn.Conv2d,
        nn.SiLU,
        nn.MaxPool2d,
        nn.GELU,
        nn.GlobalAvgPool2d,
        nn.Flatten,
        nn.LeakyReLU,
    ]
    assert [type(layer) for layer in model] == [*kinds, nn.Sigmoid]
    assert model[6].slope == 0.1


CONV = {"w": np.ones((3, 2, 3, 3), np.float32)}


@pytest.mark.parametrize(
    ("nodes", "constants", "message"),
    [
        ([("LSTM", "x", "a", {}), ("LSTM", "a", "b", {}), ("Relu", "b", "c", {}),
          ("Softplus", "c", "y", {})], {}, r"no layer for LSTM \(2\), Softplus \(1\); known are "),
        ([("Conv", "x w", "y", {"group": 2})], {"w": np.ones((2, 1, 3, 3))}, "group 2; expected 1"),
        ([("Conv", "x w", "y", {"dilations": [2, 2]})], CONV, r"dilations \[2, 2\]; expected"),
        ([("Conv", "x w", "y", {"pads": [0, 0, 1, 1]})], CONV, "the same on both sides"),
        ([("Conv", "x w", "y", {"auto_pad": "SAME_UPPER"})], CONV, "auto_pad SAME_UPPER; expected"),
        ([("MaxPool", "x", "y", {"kernel_shape": [2, 2], "ceil_mode": 1})], {}, "ceil_mode 1"),
        ([("Relu", "x", "a", {}), ("Conv", "x w", "y", {})], CONV, "reads x; expected a, as in a"),
        ([("Relu", "x", "a", {}), ("Add", "a x", "y", {})], {}, "reads a, x; expected a"),
        ([("Relu", "x", "a", {}), ("Add", "a m", "y", {})], {"m": 1.0}, "does not follow a layer"),
        ([("Softmax", "x", "a", {}), ("Relu", "a", "y", {})], {}, "is not at the end"),
        ([("Sub", "x m", "a", {}), ("Relu", "a", "b", {}), ("Conv", "b w", "y", {})],
         {**CONV, "m": [1.0]}, "a ReLU stands between the normalisation of the input"),
        ([("Conv", "x w", "a", {}), ("Add", "a m", "y", {})],
         {"w": np.ones((4, 2, 3, 3)), "m": np.ones(4)}, r"constant of shape \(4,\); exp"),
        ([("Relu", "x", "a", {}), ("Gather", "a i", "y", {})], {"i": np.array([0])}, "axis 1"),
        ([("Relu", "x", "a", {}), ("Gather", "a i", "y", {"axis": 1})],
         {"i": np.array([1, 0])}, "increas"),
        ([("Flatten", "x", "a", {}), ("Reshape", "a i", "y", {})],
         {"i": np.array([-1, 36])}, r"shape \[-1, 36\], but an input has shape \(72,\)"),
        ([("Flatten", "x", "a", {}), ("Gemm", "a w b", "y", {})],
         {"w": np.ones((72, 3)), "b": np.ones(2)}, r"a bias of shape \(2,\)"),
        ([("Sub", "x w", "y", {})], {"w": [1.0]}, "normalised, but no layer with weights follows"),
        ([("Sub", "x m", "a", {}), ("Conv", "a w", "y", {"pads": [1, 1, 1, 1]})],
         {**CONV, "m": [1.0]}, "pads a normalised input"),
        ([("Conv", "x w", "y", {})], {"w": np.ones((3, 4, 3, 3))}, "Conv2d does not fit an input"),
        ([("Identity", "x", "y", {})], {}, "has no layers"),
        ([("Relu", "x", "y", {}), ("Relu", "y", "z", {})], {}, "output 'y' is not the result"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_named(tmp_path, nodes, constants, message):
    path = write(tmp_path / "m.onnx", (2, 6, 6), *nodes, **constants)
    with pytest.raises(ValueError, match=f"m.onnx: .*{message}"):
        md.from_onnx(path)


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"no ONNX at all")
    with pytest.raises(ValueError, match=r"m\.onnx is not an ONNX file"):
        md.from_onnx(path)
    with pytest.raises(FileNotFoundError):
        md.from_onnx(tmp_path / "none.onnx")
