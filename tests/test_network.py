"""One walk through a network: which gates it meets, and what a layer says for itself."""

import numpy as np
import pytest

import minidiff as md
from minidiff import Gate, Gated, Groups, Mask, nn
from tests.networks import Sigmoid, dense, results, rng, train


def test_gates_have_names_each_once_and_split_off_from_weights():
    gate, units, mask = Gate(4), Gate(4), Mask(Gate(2), Groups.by([0, 0, 1, 1]))
    rows = Mask(units, Groups.along((4, 4), 0))
    layer = Gated(dense(4, 4), inputs=gate, outputs=units, weights=rows)
    block = nn.Sequential(gate=gate)
    model = nn.Sequential(block=block, dense=md.gate(layer, "weights"), mask=mask)
    gates = md.gates_of(model)
    assert list(gates) == ["block.gate", "dense.outputs", "dense.weights.1", "mask"]
    assert gates["dense.outputs"] is units
    weights, phis = md.split_parameters(model)
    assert [w.shape for w in weights] == [(4, 4), (4,)]
    assert [id(phi) for phi in phis] == [id(gate.phi) for gate in gates.values()]


class Strange(nn.Module):
    """A layer that says nothing of itself."""

    def forward(self, x):
        return x


class Residual(nn.Sequential):
    """A Sequential that is none any more."""

    def forward(self, x):
        return x + super().forward(x)


@pytest.mark.parametrize("run", [md.count, md.Surrogate, md.compact])
def test_layers_that_say_nothing_or_do_not_fit_are_named(run):
    for odd in (Strange(), Residual(dense(2, 2))):
        model = nn.Sequential(body=nn.Sequential(dense=dense(2, 2), odd=odd))
        message = f"body.odd: {type(odd).__name__} does not say what becomes of channels"
        with pytest.raises(TypeError, match=message):
            run(model, (2,))
    with pytest.raises(TypeError, match="the model: Strange does not say"):
        run(Strange(), (2,))
    for unfit in (Gate(3), nn.Select([0, 1], size=3), md.gate(dense(3, 2)), nn.MaxPool2d(2)):
        with pytest.raises(ValueError, match=r"1: .* does not fit an input of shape \(2,\)"):
            run(nn.Sequential(dense(2, 2), unfit), (2,))


# -- layers of one's own -----------------------------------------------------------------------


class LeakyReLU(nn.Module):
    """x where it is positive, and slope * x elsewhere."""

    channelwise = homogeneous = True
    settings = ("slope",)

    def __init__(self, slope):
        self.slope = slope

    def forward(self, x):
        return x.maximum(self.slope * x)

    def onnx(self, graph):
        graph.add("LeakyRelu", alpha=self.slope)


class Pointwise(nn.Weighted):
    """A convolution with a kernel of one position, as a product of matrices."""

    settings = ("inputs", "outputs")

    def __init__(self, inputs, outputs, *, rng):
        super().__init__((outputs, inputs), rng, np.float32)

    inputs = property(lambda self: self.weight.shape[1])  # fewer after compaction
    outputs = property(lambda self: self.weight.shape[0])

    def apply(self, x, weight, bias):
        out = md.functional.linear(x.reshape(len(x), -1), weight, bias)
        return out.reshape(len(weight), *x.shape[1:])

    def output_shape(self, shape):
        return (self.outputs, *shape[1:])

    def compile(self, program):
        program.conv(self.weight.data[:, :, None, None], self.bias.data, (1, 1))

    def onnx(self, graph):
        graph.add("Conv", {"weight": self.weight.data[:, :, None, None], "bias": self.bias.data})


def test_layers_of_ones_own_are_at_home_everywhere(tmp_path):
    shape, x = (2, 5, 5), rng().standard_normal((2, 5, 5, 64), dtype=np.float32)
    model = nn.Sequential(
        conv=md.gate(nn.Conv2d(2, 6, 3, rng=rng()), initial=0.3),
        leaky=LeakyReLU(0.1),
        point=md.gate(Pointwise(6, 4, rng=rng()), initial=0.3),
        pool=nn.AvgPool2d(3),
        flatten=nn.Flatten(),
        out=nn.Linear(4, 2, rng=rng()),
    )
    losses = train(model, x, (x[0].mean((0, 1)) > 0).astype(int), penalty=1e-3)
    assert losses[-1] < 0.6 * losses[0]

    for name, closed in (("conv", [1, 4]), ("point", [2])):  # whatever training has closed
        model[name].outputs.phi.data[:] = 0.3
        model[name].outputs.phi.data[closed] = -1
    small, expected = md.compact(model, shape), results(model, model, x)["output"]
    assert [layer.weights for layer in md.count(model, shape)] == [(72, 108), (12, 24), (6, 8)]
    assert [p.size for p in small.parameters()] == [72, 4, 12, 3, 6, 2]
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(small(x).data, expected, **close)

    md.save(tmp_path / "model.safetensors", model)
    loaded = md.load(tmp_path / "model.safetensors")
    assert loaded["leaky"].slope == 0.1
    np.testing.assert_array_equal(loaded(x).data, expected)
    images = np.ascontiguousarray(x.transpose(3, 0, 1, 2))
    md.export(tmp_path / "small.safetensors", model, shape)
    for again in (small, md.load(tmp_path / "small.safetensors")):
        np.testing.assert_allclose(md.Predictor(again, shape)(images).T, expected, **close)

    runtime = pytest.importorskip("onnxruntime")
    md.export(tmp_path / "model.onnx", model, shape)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    np.testing.assert_allclose(session.run(None, {"images": images})[0].T, expected, **close)


def test_a_layer_without_a_method_for_a_format_is_named_there(tmp_path):
    pytest.importorskip("onnx")
    model = nn.Sequential(nn.Linear(2, 2, rng=rng()), Sigmoid())
    with pytest.raises(TypeError, match="Sigmoid has no method onnx"):
        md.export(tmp_path / "model.onnx", model, (2,))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [30, None, "30", (), (0,), (3, -1), (3.0,), ((3,),), np.ones(1)])
def test_a_shape_is_that_of_one_input(shape):
    model = nn.Sequential(nn.Linear(3, 2, rng=np.random.default_rng(0)))
    for function in (md.Surrogate, md.count, md.compact, md.Predictor):
        with pytest.raises(
            ValueError, match=r"shape is .*; expected the shape of one input, .*\(3"
        ):
            function(model, shape)
    for known in ([3], (np.int64(3),)):
        assert md.count(model, known)[0].weights == (6, 6)
