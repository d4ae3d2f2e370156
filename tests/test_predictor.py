"""Prediction: the numbers of ``forward``, for one image and for many."""

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidiff as md
from minidiff import nn
from minidiff.predict import predictor
from minidiff.predict.predictor import FEW
from tests.checks import close, equal
from tests.strategies import stacks


def rng():
    return np.random.default_rng(0)


def logits(model, images):
    """Return what the network computes, which takes the batch last."""
    with md.no_grad():
        return np.moveaxis(model.eval()(np.moveaxis(images, 0, -1)).data, -1, 0)


@given(
    stacks(),
    st.sampled_from([0, 1, 3, FEW, FEW + 1, 64, 130]),
    st.sampled_from([np.uint8, np.float32, np.float64]),
    *(st.floats(-1, 1), st.floats(0.2, 2)),
    st.booleans(),
)
def test_any_network_predicts_the_same(stack, count, dtype, mean, std, has_nan):
    model, shape = stack
    images = (rng().random((count, *shape)) * (255 if dtype == np.uint8 else 1)).astype(dtype)
    if has_nan and count and dtype != np.uint8:
        images.flat[images.size // 3] = np.nan  # stays, and stays in its image
    numbers = images / (255 if dtype == np.uint8 else 1)
    predict = md.Predictor(model, shape, mean=mean, std=std)
    out = predict(images)
    assert predict.output_shape == model.output_shape(shape)
    assert (out.shape, out.dtype) == ((count, *predict.output_shape), np.float32)
    if count:
        expected = logits(model, ((numbers - mean) / std).astype(np.float32))
        scale = np.float32(np.nanmax([1, *abs(expected).ravel()]))
        close(out / scale, expected / scale)
    for parameter in model.parameters():
        parameter.data[...] = 0
    equal(predict(images), out)  # later training changes nothing


@given(stacks(), st.sampled_from([1, FEW + 1, 130]), st.floats(0, 0.5))
def test_networks_of_few_weights_predict_the_same(stack, count, density):
    model, shape = stack
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= rng().random(parameter.shape) < density
            parameter.fix_zeros()
    images = rng().random((count, *shape)).astype(np.float32)
    expected = logits(model, images)
    scale = np.float32(max(1, abs(expected).max()))
    close(md.Predictor(model, shape)(images) / scale, expected / scale)


@pytest.mark.parametrize("count", [2, FEW + 2])
def test_the_mean_is_subtracted_in_the_precision_of_the_images(count):
    predict = md.Predictor(nn.Sequential(nn.Flatten()), (2,), mean=1.7e9, std=100)
    images = np.tile(1.7e9 + np.array([10.0, 50.0]), (count, 1))
    for dtype in (np.float64, ">f8", np.longdouble):
        np.testing.assert_allclose(predict(images.astype(dtype)), [[0.1, 0.5]] * count, rtol=1e-6)
    near = np.nextafter(np.float32(1), np.float32(2))
    predict = md.Predictor(nn.Sequential(nn.Flatten()), (2,), mean=1, std=1e-6)
    np.testing.assert_allclose(
        predict(np.full((count, 2), near)), np.full((count, 2), 2.0**-23 * 1e6), rtol=1e-6
    )


def test_large_networks_take_one_image_at_a_time(monkeypatch):
    model, images = nn.Linear(3, 2, rng=rng()), rng().random((FEW + 1, 3))
    predict = md.Predictor(model, (3,))
    alone = np.concatenate([predict(image[None]) for image in images])
    monkeypatch.setattr(predictor, "LIMIT", 0)
    equal(predict(images), alone)


def test_threads_and_neighbours_change_no_bit():
    conv, dense = nn.Conv2d(1, 5, 3, padding=1, rng=rng()), nn.Linear(45, 10, rng=rng())
    model = nn.Sequential(conv, nn.MaxPool2d(2, relu=True), nn.Flatten(), dense)
    images, predict = rng().random((150, 1, 6, 6)), md.Predictor(model, (1, 6, 6))
    expected = predict(images)
    equal(predict(images[70:]), expected[70:])
    for threads in {1, min(2, numba.config.NUMBA_NUM_THREADS)}:
        numba.set_num_threads(threads)
        equal(predict(images), expected)


class Shift(nn.Module):
    """A layer of one's own; it is random in training."""

    def __init__(self):
        self.weight, self.dropout = nn.Parameter([0.5]), nn.Dropout(0.5, rng=rng())

    def forward(self, x):
        return self.dropout(x) + self.weight


class Leaky(nn.ReLU):
    def forward(self, x):
        return x.maximum(0.1 * x)


@pytest.mark.parametrize("count", [2, FEW + 8])
@pytest.mark.parametrize("other", [Shift, Leaky])
def test_other_layers_run_by_their_forward(other, count):
    gated = md.gate(nn.Conv2d(1, 3, 3, rng=rng()), "outputs")
    gated.outputs.phi.data[...] = [-1, 0.1, 1]
    dense = nn.Linear(48, 4, rng=rng())
    model = nn.Sequential(other(), gated, nn.ReLU(), other(), nn.Flatten(), other(), dense)
    images = rng().standard_normal((count, 1, 6, 6))
    predict = md.Predictor(model, (1, 6, 6), mean=0.1, std=0.5)
    close(predict(images), logits(model, ((images - 0.1) / 0.5).astype(np.float32)))


def test_layers_are_left_as_in_training_or_evaluation():
    layer = Shift()
    layer.dropout.eval()  # frozen, though the layer is in training
    md.Predictor(layer, (3,))(np.ones((2, 3)))
    assert (layer.training, layer.dropout.training) == (True, False)


@pytest.mark.parametrize(
    ("layer", "settings", "words"),
    [
        (nn.Conv2d(3, 2, 1, rng=rng()), {}, "end: Conv2d does not fit an input of shape"),
        (nn.Select([0], size=2), {}, "end: Select does not fit"),
        (nn.Linear(3, 2, rng=rng(), dtype=np.float64), {}, "float64; .* computes in float32"),
        *((nn.ReLU(), {"std": std}, f"std is {std}; .* std") for std in (0.0, -1.0, np.inf, 1e-50)),
        *((nn.ReLU(), {name: np.nan}, f"{name}.* nan") for name in ("mean", "std")),
    ],
)
def test_networks_that_cannot_be_compiled_are_refused(layer, settings, words):
    with pytest.raises((TypeError, ValueError), match=words):
        md.Predictor(nn.Sequential(end=layer), (3,), **settings)


def test_images_have_the_shape_and_dtype_expected():
    predict = md.Predictor(nn.Linear(3, 2, rng=rng()), (3,))
    for dtype in (np.int64, np.complex64, np.bool_, object):
        with pytest.raises(TypeError, match="expected uint8, from 0 to 255, or floats"):
            predict(np.zeros((2, 3), dtype))
    for shape in ((3,), (2, 4), (2, 3, 1), ()):
        with pytest.raises(ValueError, match=r"expected \(N, 3\)"):
            predict(np.zeros(shape))
