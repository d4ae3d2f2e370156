"""The layers: each keeps what its class says of it. A new layer is one line in LAYERS."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidiff as md
from minidiff import Tensor, nn
from minidiff.engine.nn import he_normal
from minidiff.pruning.network import Channels, Product
from tests.checks import close, equal
from tests.strategies import seeds


def rng():
    return np.random.default_rng(0)


#: Example layers, each with the shape of an input without the batch.
LAYERS = {
    "Conv2d": (lambda **more: nn.Conv2d(3, 4, 3, **more), (3, 6, 5)),
    "padded": (lambda **more: nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=1, **more), (2, 5, 4)),
    "Linear": (lambda **more: nn.Linear(6, 4, **more), (6,)),
    "ReLU": (lambda **_: nn.ReLU(), (3, 4, 4)),
    "ReLU of features": (lambda **_: nn.ReLU(), (5,)),
    "Sigmoid": (lambda **_: nn.Sigmoid(), (3, 4, 4)),
    "Tanh": (lambda **_: nn.Tanh(), (5,)),
    "SiLU": (lambda **_: nn.SiLU(), (3, 4, 4)),
    "GELU": (lambda **_: nn.GELU(), (5,)),
    "LeakyReLU": (lambda **_: nn.LeakyReLU(0.2), (3, 4, 4)),
    "GlobalAvgPool2d": (lambda **_: nn.GlobalAvgPool2d(), (3, 4, 5)),
    "BatchNorm": (lambda dtype, **_: nn.BatchNorm(3, dtype=dtype), (3, 4, 4)),
    "Dropout": (lambda rng, **_: nn.Dropout(0.5, rng=rng), (3, 4, 4)),
    "MaxPool2d": (lambda **_: nn.MaxPool2d(2), (3, 4, 5)),
    "MaxPool2d with relu": (lambda **_: nn.MaxPool2d((2, 3), stride=1, relu=True), (3, 4, 5)),
    "AvgPool2d": (lambda **_: nn.AvgPool2d((3, 2), stride=(1, 2)), (3, 4, 5)),
    "Flatten": (lambda **_: nn.Flatten(), (3, 2, 2)),
    "Select": (lambda **_: nn.Select([0, 2], size=3), (3, 4, 4)),
}


class Example:
    """A layer in evaluation, and inputs off its kinks, in random order."""

    def __init__(self, name, dtype=np.float32):
        make, self.shape = LAYERS[name]
        self.layer, order = make(rng=rng(), dtype=dtype).eval(), rng()
        for parameter in self.layer.parameters():  # no bias is zero
            parameter.data[...] = order.standard_normal(parameter.shape)
        if isinstance(self.layer, nn.BatchNorm):
            self.layer.variance.data = abs(self.layer.variance.data) + 0.1
        count = 7 * int(np.prod(self.shape))
        values = order.permutation(count) - count / 2 + 0.3
        self.x = (values.reshape(*self.shape, 7) / 20).astype(dtype)

    def output(self, x=None):
        return self.layer(self.x if x is None else x).data

    def sources(self):
        """Return which inputs each output channel depends on: (outputs, inputs) of bool."""
        before, found = self.output(), []
        for channel in range(len(self.x)):
            x = self.x.copy()
            x[channel] = 5 - x[channel]
            found.append((self.output(x) != before).reshape(len(before), -1).any(axis=1))
        return np.array(found).T


@pytest.fixture(params=LAYERS)
def example(request):
    return Example(request.param)


def test_every_layer_class_has_an_example():
    classes = {getattr(nn, name) for name in nn.__all__}
    classes -= {nn.Module, nn.Parameter, nn.Sequential, nn.Weighted}
    assert {type(Example(name).layer) for name in LAYERS} == classes


def test_output_shape_is_that_of_the_output(example):
    assert example.output().shape == (*example.layer.output_shape(example.shape), 7)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_input_and_parameters(name):
    example = Example(name, np.float64)
    parameters = dict(example.layer.named_parameters())

    def function(x, *values):
        for key, value in zip(parameters, values, strict=True):
            setattr(example.layer, key, value)
        return example.layer(x)

    x = Tensor(example.x[..., :2], requires_grad=True)
    assert md.gradcheck(function, [x, *parameters.values()], directions=2)


def test_a_saved_layer_loads_with_the_same_outputs(example, tmp_path):
    md.save(tmp_path / "layer.safetensors", example.layer)
    loaded = md.load(tmp_path / "layer.safetensors").eval()
    assert type(loaded) is type(example.layer)
    equal(loaded(example.x).data, example.output())


@pytest.mark.parametrize("count", [1, 40])
def test_a_predictor_equals_forward(example, count):
    x = np.resize(example.x, (*example.shape, count))
    predict = md.Predictor(example.layer, example.shape)
    close(np.moveaxis(predict(np.moveaxis(x, -1, 0)), 0, -1), example.output(x))


def test_the_onnx_file_equals_forward(example, tmp_path):
    if isinstance(example.layer, nn.BatchNorm):
        pytest.skip("it is exported as a part of the layer before it")
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    count, *positions = example.layer.output_shape(example.shape)
    weights = nn.Conv2d(count, 2, 1, rng=rng()) if positions else nn.Linear(count, 2, rng=rng())
    model = nn.Sequential(example.layer, weights)  # some layer must have weights
    md.export(tmp_path / "model.onnx", model, example.shape)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (out,) = session.run(None, {"images": np.moveaxis(example.x, -1, 0)})
    close(np.moveaxis(out, 0, -1), model(example.x).data)


def test_channelwise_layers_map_each_channel_by_itself(example):
    found = example.sources()
    assert np.array_equal(found, np.eye(*found.shape, dtype=bool)) == example.layer.channelwise


def test_homogeneous_layers_commute_with_factors(example):
    results = [(example.output(np.float32(z) * example.x), z) for z in (0, 0.25, 3)]
    commutes = [np.allclose(out, z * example.output(), atol=1e-5) for out, z in results]
    assert all(commutes) == example.layer.homogeneous


@pytest.mark.parametrize("name", [n for n in LAYERS if not hasattr(Example(n).layer, "weight")])
def test_map_channels_says_where_channels_come_from(name):
    example = Example(name)
    channels = Channels.of(Product(example.shape[:1]))
    mapped = example.layer.map_channels(channels, example.shape)
    for source, found in zip(mapped.origin // mapped.positions, example.sources(), strict=True):
        equal(found.nonzero()[0], [source])


def test_dropout_acts_in_training_only():
    layer, x = nn.Dropout(0.5, rng=rng()), np.ones(1000, np.float32)
    first = layer(x).data
    assert 0 < np.count_nonzero(first) < 1000
    assert not np.array_equal(layer(x).data, first)
    equal(layer.eval()(x).data, x)


@given(seeds, st.sampled_from([(400, 50), (100, 10, 5, 4), (20000, 1)]))
def test_initial_weights_have_variance_two_by_fan_in(seed, shape):
    weights = he_normal(shape, np.random.default_rng(seed), np.float64)
    variance = 2 / np.prod(shape[1:])
    # Six standard errors of the mean and of the variance of a normal sample.
    assert abs(weights.mean()) < 6 * np.sqrt(variance / weights.size)
    assert abs(weights.var() / variance - 1) < 6 * np.sqrt(2 / weights.size)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("make", [nn.Linear, lambda *a, **more: nn.Conv2d(*a, 2, **more)])
def test_new_layers_depend_on_the_generator_alone(make, dtype):
    one, same, other = (make(2, 3, rng=np.random.default_rng(i), dtype=dtype) for i in (0, 0, 1))
    assert one.dtype == one.weight.dtype == one.bias.dtype == dtype
    equal(one.bias.data, np.zeros(3))
    equal(one.weight.data, same.weight.data)
    assert not np.array_equal(one.weight.data, other.weight.data)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *(("Conv2d", shape) for shape in ((3, 2, 9), (2, 9, 9), (3, 9))),
        *(("Linear", shape) for shape in ((4,), (6, 1))),
        ("MaxPool2d", (1, 1, 5)),
        ("AvgPool2d", (9,)),
        ("Select", (4, 2)),
    ],
)
def test_a_shape_that_does_not_fit_is_an_error(name, shape):
    layer = Example(name).layer
    with pytest.raises(ValueError, match=f"{name} does not fit an input of shape .* expected"):
        layer.output_shape(shape)
    with pytest.raises(ValueError, match=r"not fit|expected \(C, H, W, N\)"):
        layer(np.ones((*shape, 2), np.float32))


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        *((nn.Linear, [size, 3], "Linear: .* inputs; expected an int") for size in (0, 1.5, "3")),
        *((nn.Conv2d, [3, size, 3], "Conv2d: .* outputs; expected") for size in (0, -1, None)),
        *((nn.Conv2d, [1, 1, kernel], "kernel is") for kernel in (0, (1, 2, 3))),
        *((nn.Conv2d, [1, 1, 3, {name: -1}], f"{name} is -1") for name in ("stride", "padding")),
        (nn.MaxPool2d, [0], "kernel is 0"),
        (nn.AvgPool2d, [3, {"stride": (1, 0)}], r"stride is \(1, 0\)"),
        (nn.Linear, [1, 2, {"rng": 7}], r"rng is 7; expected a numpy\.random\.Generator"),
        (nn.Conv2d, [1, 2, 3, {"rng": 7}], r"rng is 7; expected a numpy\.random\.Generator"),
        (nn.Dropout, [0.5, {"rng": 7}], r"rng is 7; expected a numpy\.random\.Generator"),
        *((nn.Dropout, [p], "Dropout: p is") for p in (-0.5, 1.0, np.nan)),
        *((nn.Linear, [3, 2, {"dtype": dtype}], "dtype is") for dtype in (int, "float16", complex)),
        (nn.Conv2d, [1, 2, 3, {"dtype": bool}], "dtype is bool; expected float32 or float64"),
        (nn.Select, [[0, 3], {"size": 3}], "index 3 is not below the size, 3"),
        (nn.Select, [[1, 0], {"size": 3}], "do not increase"),
    ],
)
def test_settings_are_refused_by_name(make, settings, message):
    named = {"rng": rng()} if make in (nn.Linear, nn.Conv2d, nn.Dropout) else {}
    if isinstance(settings[-1], dict):
        *settings, more = settings
        named |= more
    with pytest.raises((TypeError, ValueError), match=message):
        make(*settings, **named)
