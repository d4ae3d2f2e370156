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

few_and_many = pytest.mark.parametrize("count", [2, FEW + 8])


def rng():
    return np.random.default_rng(0)


def random_images(count, shape=(1, 6, 6)):
    return rng().standard_normal((count, *shape), np.float32)


def logits(model, images):
    with md.no_grad():
        return np.moveaxis(model.eval()(np.moveaxis(images, 0, -1)).data, -1, 0)


def network():
    """For images of shape (1, 6, 6), with steps of every kind."""
    conv, dense = nn.Conv2d(1, 5, 3, padding=1, rng=rng()), nn.Linear(45, 10, rng=rng())
    return nn.Sequential(conv, nn.MaxPool2d(2, relu=True), nn.Flatten(), dense)


@given(
    stacks(), st.sampled_from([0, 1, 3, FEW, FEW + 1, 64, 130]), st.floats(-1, 1), st.floats(0.2, 2)
)
def test_any_network_predicts_the_same(stack, count, mean, std):
    model, shape = stack
    images = random_images(count, shape)
    predict = md.Predictor(model, shape, mean=mean, std=std)
    out = predict(images)
    assert predict.output_shape == model.output_shape(shape)
    assert (out.shape, out.dtype) == ((count, *predict.output_shape), np.float32)
    if count:
        expected = logits(model, ((images - mean) / std).astype(np.float32))
        scale = np.float32(max(1, abs(expected).max()))
        close(out / scale, expected / scale)


@few_and_many
def test_bytes_count_as_shares_of_255(count):
    images = rng().integers(0, 256, (count, 1, 6, 6), np.uint8)
    predict = md.Predictor(network(), (1, 6, 6), mean=0.13, std=0.31)
    close(predict(images), predict((images / 255).astype(np.float32)))
    close(predict(images), predict(images / 255))


def test_few_and_many_images_agree(monkeypatch):
    images = random_images(FEW + 8)
    predict = md.Predictor(network(), (1, 6, 6))
    many, few = predict(images), np.concatenate([predict(image[None]) for image in images])
    close(many, few)
    monkeypatch.setattr(predictor, "LIMIT", 0)  # a block of images would take too much memory
    equal(predict(images), few)


@few_and_many
def test_nan_stays_and_stays_in_its_image(count):
    images = np.zeros((count, 1, 6, 6), np.float32)
    images[0, 0, 2, 3] = np.nan
    predict = md.Predictor(network(), (1, 6, 6))
    assert np.isnan(predict(images)[0]).all()
    assert np.isfinite(predict(images)[1:]).all()
    assert np.isfinite(predict(np.zeros_like(images))).all()
    for pool in (nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(2, relu=True)):
        for place in np.ndindex(2, 2):
            images = np.arange(count * 4, dtype=np.float32).reshape(count, 1, 2, 2)
            images[0, 0][place] = np.nan
            out = md.Predictor(pool, (1, 2, 2))(images)
            equal(np.isnan(out.ravel()), np.arange(count) == 0)


def test_threads_and_neighbours_change_no_bit():
    images = random_images(150)
    predict = md.Predictor(network(), (1, 6, 6))
    expected = predict(images)
    equal(predict(images[70:]), expected[70:])
    for threads in {1, min(2, numba.config.NUMBA_NUM_THREADS)}:
        numba.set_num_threads(threads)
        equal(predict(images), expected)


@few_and_many
def test_later_training_changes_nothing(count):
    model, images = network(), random_images(count)
    predict = md.Predictor(model, (1, 6, 6))
    before = predict(images)
    for parameter in model.parameters():
        parameter.data[...] = 0
    equal(predict(images), before)


# -- layers that are not compiled ------------------------------------------------------------


class Shift(nn.Module):
    """A layer of one's own; it is random in training."""

    def __init__(self):
        self.weight, self.dropout = nn.Parameter([0.5]), nn.Dropout(0.5, rng=rng())

    def forward(self, x):
        return self.dropout(x) + self.weight


class Leaky(nn.ReLU):
    def forward(self, x):
        return x.maximum(0.1 * x)


@few_and_many
@pytest.mark.parametrize("other", [Shift, Leaky])
def test_other_layers_run_by_their_forward(other, count):
    gated = md.gate(nn.Conv2d(1, 3, 3, rng=rng()), "outputs")
    gated.outputs.phi.data[...] = [-1, 0.1, 1]
    dense = nn.Linear(48, 4, rng=rng())
    model = nn.Sequential(other(), gated, nn.ReLU(), other(), nn.Flatten(), other(), dense)
    images = random_images(count)
    predict = md.Predictor(model, (1, 6, 6), mean=0.1, std=0.5)
    close(predict(images), logits(model, ((images - 0.1) / 0.5).astype(np.float32)))


def test_layers_are_left_as_in_training_or_evaluation():
    layer = Shift()
    layer.dropout.eval()  # frozen, though the layer is in training
    md.Predictor(layer, (3,))(random_images(2, (3,)))
    assert (layer.training, layer.dropout.training) == (True, False)


# -- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(3, 2, rng=rng()), (4,)),
        (nn.Linear(3, 2, rng=rng()), (3, 1, 1)),
        (nn.Conv2d(3, 2, 1, rng=rng()), (3,)),
        (nn.Conv2d(1, 2, 5, rng=rng()), (1, 4, 9)),
        (nn.MaxPool2d(5), (1, 4, 9)),
        (nn.AvgPool2d(2), (8,)),
        (nn.Select([0], size=3), (2, 3, 3)),
    ],
)
def test_a_layer_that_does_not_fit_is_named(layer, shape):
    with pytest.raises(ValueError, match=f"end: {type(layer).__name__} does not fit"):
        md.Predictor(nn.Sequential(nn.ReLU(), end=layer), shape)


def test_weights_are_float32_and_std_is_above_0():
    with pytest.raises(TypeError, match="float64; a Predictor computes in float32"):
        md.Predictor(nn.Linear(3, 2, rng=rng(), dtype=np.float64), (3,))
    for mean, std in ((0, 0.0), (0, -1.0), (0, np.nan), (0, np.inf), (np.nan, 1)):
        with pytest.raises(ValueError, match=f"mean is {mean} and std {std}; .* std above 0"):
            md.Predictor(nn.ReLU(), (3,), mean=mean, std=std)


def test_images_have_the_shape_and_dtype_expected():
    predict = md.Predictor(nn.Linear(3, 2, rng=rng()), (3,))
    for dtype in (np.int64, np.complex64, np.bool_, object):
        with pytest.raises(TypeError, match="expected uint8, from 0 to 255, or floats"):
            predict(np.zeros((2, 3), dtype))
    for shape in ((3,), (2, 4), (2, 3, 1), ()):
        with pytest.raises(ValueError, match=r"expected \(N, 3\)"):
            predict(np.zeros(shape))
