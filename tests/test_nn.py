"""The layers: each keeps what its class says of it. A new layer is one line in LAYERS."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidiff as md
from minidiff import Tensor, nn
from minidiff.engine.nn import he_normal
from minidiff.pruning.network import Channels, Product
from tests.checks import close
from tests.strategies import seeds, stacks


def rng():
    return np.random.default_rng(0)


#: Example layers, each with the shape of an input without the batch.
LAYERS = {
    "Conv2d": (lambda dtype: nn.Conv2d(3, 4, 3, rng=rng(), dtype=dtype), (3, 6, 5)),
    "Conv2d, padded": (
        lambda dtype: nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=1, rng=rng(), dtype=dtype),
        (2, 5, 4),
    ),
    "Linear": (lambda dtype: nn.Linear(6, 4, rng=rng(), dtype=dtype), (6,)),
    "ReLU": (lambda dtype: nn.ReLU(), (3, 4, 4)),
    "ReLU of features": (lambda dtype: nn.ReLU(), (5,)),
    "Dropout": (lambda dtype: nn.Dropout(0.5, rng=rng()), (3, 4, 4)),
    "MaxPool2d": (lambda dtype: nn.MaxPool2d(2), (3, 4, 5)),
    "MaxPool2d with relu": (lambda dtype: nn.MaxPool2d((2, 3), stride=1, relu=True), (3, 4, 5)),
    "AvgPool2d": (lambda dtype: nn.AvgPool2d((3, 2), stride=(1, 2)), (3, 4, 5)),
    "Flatten": (lambda dtype: nn.Flatten(), (3, 2, 2)),
    "Select": (lambda dtype: nn.Select([0, 2], size=3), (3, 4, 4)),
}
WEIGHTLESS = [
    name for name, (make, _) in LAYERS.items() if not isinstance(make(np.float32), nn.Weighted)
]


class Example:
    """A layer in evaluation, and random inputs off its kinks."""

    def __init__(self, name, dtype=np.float32):
        make, self.shape = LAYERS[name]
        self.layer, self.rng = make(dtype).eval(), rng()
        for parameter in self.layer.parameters():  # no bias is zero
            parameter.data[...] = self.rng.standard_normal(parameter.shape)
        count = 7 * int(np.prod(self.shape))
        values = self.rng.permutation(count) - count / 2 + 0.3
        self.x = (values.reshape(*self.shape, 7) / 20).astype(dtype)

    def output(self, x=None):
        return self.layer(self.x if x is None else x).data


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
    assert loaded(example.x).data.tobytes() == example.output().tobytes()


@pytest.mark.parametrize("count", [1, 40])
def test_a_predictor_equals_forward(example, count):
    x = np.resize(example.x, (*example.shape, count))
    predict = md.Predictor(example.layer, example.shape)
    close(np.moveaxis(predict(np.moveaxis(x, -1, 0)), 0, -1), example.output(x))


def test_the_onnx_file_equals_forward(example, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    count, *positions = example.layer.output_shape(example.shape)
    weights = nn.Conv2d(count, 2, 1, rng=rng()) if positions else nn.Linear(count, 2, rng=rng())
    model = nn.Sequential(example.layer, weights)  # some layer must have weights
    md.export(tmp_path / "model.onnx", model, example.shape)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (out,) = session.run(None, {"images": np.moveaxis(example.x, -1, 0)})
    close(np.moveaxis(out, 0, -1), model(example.x).data)


def sources(example):
    """Return which input channels each output channel depends on: (outputs, inputs) of bool."""
    before, found = example.output(), []
    for channel in range(len(example.x)):
        x = example.x.copy()
        x[channel] = 5 - x[channel]
        found.append((example.output(x) != before).reshape(len(before), -1).any(axis=1))
    return np.array(found).T


def test_a_channelwise_layer_maps_each_channel_by_itself(example):
    found = sources(example)
    assert np.array_equal(found, np.eye(*found.shape, dtype=bool)) == example.layer.channelwise


def test_a_homogeneous_layer_commutes_with_factors(example):
    scaled = [
        np.allclose(example.output(np.float32(z) * example.x), z * example.output(), atol=1e-5)
        for z in (0, 0.25, 3)
    ]
    assert all(scaled) == example.layer.homogeneous


@pytest.mark.parametrize("name", WEIGHTLESS)
def test_map_channels_says_where_channels_come_from(name):
    example = Example(name)
    channels = Channels.of(Product(example.shape[:1]))
    mapped = example.layer.map_channels(channels, example.shape)
    for source, found in zip(mapped.origin // mapped.positions, sources(example), strict=True):
        np.testing.assert_array_equal(found.nonzero()[0], [source])


# -- layers together -------------------------------------------------------------------------


@given(stacks(), st.integers(1, 3))
def test_output_shape_of_layers_in_a_row(stack, samples):
    model, shape = stack
    out = model(np.ones((*shape, samples), np.float32))
    assert out.shape == (*model.output_shape(shape), samples)


def test_a_network_has_the_right_gradients():
    conv = nn.Conv2d(2, 3, 2, rng=rng(), dtype=np.float64)
    dense = nn.Linear(12, 3, rng=rng(), dtype=np.float64)
    model = nn.Sequential(conv, nn.AvgPool2d(2, stride=1), nn.Flatten(), dense)
    x, labels = rng().standard_normal((2, 4, 4, 2)), np.array([0, 2])

    def loss(*values):
        conv.weight, conv.bias, dense.weight, dense.bias = values
        return md.functional.cross_entropy(model(x).tanh(), labels)

    md.gradcheck(loss, model.parameters())


# -- what single classes add -----------------------------------------------------------------


def test_dropout_acts_in_training_only():
    layer, x = nn.Dropout(0.5, rng=rng()), np.ones(1000, np.float32)
    first = layer(x).data
    assert 0 < np.count_nonzero(first) < 1000
    assert not np.array_equal(layer(x).data, first)
    np.testing.assert_array_equal(layer.eval()(x).data, x)
    assert np.count_nonzero(layer.train()(x).data) < 1000


def test_a_pool_with_relu_is_a_pool_and_a_relu():
    x = rng().standard_normal((2, 4, 4, 3))
    expected = md.functional.relu(nn.MaxPool2d(2)(x))
    np.testing.assert_array_equal(nn.MaxPool2d(2, relu=True)(x).data, expected.data)


@given(seeds, st.sampled_from([(400, 50), (100, 10, 5, 4), (20000, 1)]))
def test_initial_weights_have_variance_two_by_fan_in(seed, shape):
    weights = he_normal(shape, np.random.default_rng(seed), np.float64)
    variance = 2 / np.prod(shape[1:])
    # Six standard errors of the mean and of the variance of a normal sample.
    assert abs(weights.mean()) < 6 * np.sqrt(variance / weights.size)
    assert abs(weights.var() / variance - 1) < 6 * np.sqrt(2 / weights.size)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_new_layers_have_zero_biases_and_the_dtype_asked_for(dtype):
    def make(seed):
        generator = np.random.default_rng(seed)
        return [
            nn.Conv2d(2, 3, 2, rng=generator, dtype=dtype),
            nn.Linear(4, 3, rng=generator, dtype=dtype),
        ]

    for layer, same, other in zip(make(0), make(0), make(1), strict=True):
        assert layer.dtype == layer.weight.dtype == layer.bias.dtype == dtype
        np.testing.assert_array_equal(layer.bias.data, np.zeros(3))
        np.testing.assert_array_equal(layer.weight.data, same.weight.data)
        assert not np.array_equal(layer.weight.data, other.weight.data)


# -- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("Conv2d", (3, 2, 9)),
        ("Conv2d", (2, 9, 9)),
        ("Conv2d", (3, 9)),
        ("Linear", (4,)),
        ("Linear", (6, 1)),
        ("MaxPool2d", (1, 1, 5)),
        ("AvgPool2d", (9,)),
        ("Select", (4, 2)),
    ],
)
def test_a_shape_that_does_not_fit_is_an_error(name, shape):
    layer, samples = Example(name).layer, 2
    with pytest.raises(ValueError, match=f"{name} does not fit an input of shape .* expected"):
        layer.output_shape(shape)
    with pytest.raises(ValueError, match=r"not fit|expected \(C, H, W, N\)"):
        layer(np.ones((*shape, samples), np.float32))


@pytest.mark.parametrize("size", [0, -1, 1.5, "3", None])
@pytest.mark.parametrize(("place", "what"), [(0, "inputs"), (1, "outputs")])
def test_sizes_of_layers_are_integers(size, place, what):
    sizes = [3, 3]
    sizes[place] = size
    with pytest.raises(ValueError, match=rf"Conv2d: .* {what}; expected an integer >= 1"):
        nn.Conv2d(*sizes, 3, rng=rng())
    with pytest.raises(ValueError, match=rf"Linear: .* {what}; expected an integer >= 1"):
        nn.Linear(*sizes, rng=rng())


@pytest.mark.parametrize("name", ["kernel", "stride", "padding"])
@pytest.mark.parametrize("value", [-1, (1, -1), (1, 2, 3)])
def test_kernels_strides_and_paddings_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} is"):
        nn.Conv2d(1, 1, **{"kernel": 3, name: value}, rng=rng())
    for pool in (nn.MaxPool2d, nn.AvgPool2d) if name != "padding" else ():
        with pytest.raises(ValueError, match=f"{name} is"):
            pool(**{"kernel": 3, name: value})


@pytest.mark.parametrize(
    "make",
    [
        lambda rng: nn.Conv2d(1, 2, 3, rng=rng),
        lambda rng: nn.Linear(1, 2, rng=rng),
        lambda rng: nn.Dropout(0.5, rng=rng),
    ],
)
def test_a_seed_is_no_generator(make):
    with pytest.raises(TypeError, match=r"rng is 7; expected a numpy\.random\.Generator"):
        make(7)


@pytest.mark.parametrize("dtype", [int, bool, np.float16, np.longdouble, "complex64"])
def test_layers_are_float32_or_float64(dtype):
    for layer in (nn.Linear, nn.Conv2d):
        with pytest.raises(TypeError, match=r"dtype is \w+; expected float32 or float64"):
            layer(*[3, 2, 1][: 2 + (layer is nn.Conv2d)], rng=rng(), dtype=dtype)


@pytest.mark.parametrize("p", [-0.5, 1.0, np.nan])
def test_dropout_takes_a_probability(p):
    with pytest.raises(ValueError, match="Dropout: p is"):
        nn.Dropout(p, rng=rng())


def test_select_stays_below_its_size():
    with pytest.raises(ValueError, match="index 3 is not below the size, 3"):
        nn.Select([0, 3], size=3)
