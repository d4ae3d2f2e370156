"""Prediction: the same numbers as the network's, for one image and for many."""

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import minidiff as md
from minidiff import nn
from minidiff.engine.nn import Module
from tests.strategies import Network, networks, seeds


def logits(model: Module, images: NDArray[np.floating]) -> NDArray[np.floating]:
    with md.no_grad():
        return np.moveaxis(
            model.eval()(np.ascontiguousarray(np.moveaxis(images, 0, -1))).data, -1, 0
        )


def narrow(network: Network) -> nn.Sequential:
    """The network compacted, in float32."""
    small = md.compact(network.model)
    for parameter in small.parameters():
        parameter._data = parameter.data.astype(np.float32)
    return small


def close(ours: NDArray[np.floating], theirs: NDArray[np.floating]) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * max(1, abs(theirs).max()))


@pytest.mark.filterwarnings("ignore:nothing is left")
@given(networks(), st.sampled_from([0, 1, 3, 12, 13, 64, 130]))
@settings(max_examples=200)
def test_any_network_predicts_the_same(network: Network, count: int) -> None:
    model = narrow(network)
    rng = np.random.default_rng(network.seed)
    images = rng.standard_normal((count, *network.shape), dtype=np.float32)
    mean, std = rng.uniform(-1, 1), rng.uniform(0.2, 2)
    predict = md.Predictor(model, network.shape, mean=mean, std=std)
    if count:
        close(predict(images), logits(model, ((images - mean) / std).astype(np.float32)))
    else:
        one = predict(np.zeros((1, *network.shape), np.float32))
        assert predict(images).shape == (0, *one.shape[1:])


@st.composite
def wide(draw: st.DrawFn) -> tuple[nn.Sequential, tuple[int, ...]]:
    """Layers whose channels and places fill vectors and tiles, or nearly, or more than once."""
    rng = np.random.default_rng(draw(seeds))
    sizes = st.sampled_from([1, 7, 8, 9, 15, 16, 17, 31, 33])
    a, b, c = draw(sizes), draw(sizes), draw(sizes)
    columns = draw(st.integers(6, 24))
    kernel = draw(st.integers(1, 3))
    layers = [
        nn.Conv2d(a, b, kernel, stride=draw(st.integers(1, 2)), padding=1, rng=rng),
        nn.MaxPool2d(2, stride=1) if draw(st.booleans()) else nn.AvgPool2d(2),
    ]
    shape = (a, 5, columns)
    sequence = nn.Sequential(*layers)
    places = sequence.output_shape(shape)
    if draw(st.booleans()):
        sequence = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(b, c, 1, rng=rng))
    else:
        features = int(np.prod(places))
        sequence = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, c, rng=rng), nn.ReLU())
    return sequence, shape


@given(wide(), seeds, st.sampled_from([3, 20]))
def test_layers_of_many_channels_predict_the_same(
    case: tuple[nn.Sequential, tuple[int, ...]], seed: int, count: int
) -> None:
    model, shape = case
    images = np.random.default_rng(seed).standard_normal((count, *shape), dtype=np.float32)
    close(md.Predictor(model, shape)(images), logits(model, images))


@pytest.mark.parametrize("count", [1, 20])
def test_bytes_count_as_shares_of_255(count: int) -> None:
    model = md.LeNet5(rng=np.random.default_rng(0), sparsity="dense")
    images = np.random.default_rng(1).integers(0, 256, (count, 1, 28, 28), np.uint8)
    predict = md.Predictor(model, (1, 28, 28), mean=0.13, std=0.31)
    close(predict(images), predict((images / 255).astype(np.float32)))
    close(predict(images), predict(images / 255))


def test_few_and_many_images_agree() -> None:
    model = md.compact(md.LeNet5(rng=np.random.default_rng(0), initial=0.2))
    images = np.random.default_rng(1).random((40, 1, 28, 28), dtype=np.float32)
    predict = md.Predictor(model, (1, 28, 28))
    one_by_one = np.concatenate([predict(images[i : i + 1]) for i in range(40)])
    close(predict(images), one_by_one)


@pytest.mark.parametrize("count", [2, 20])
def test_what_is_not_a_number_stays_so_and_stays_there(count: int) -> None:
    model = md.LeNet5(rng=np.random.default_rng(0), sparsity="dense")
    images = np.zeros((count, 1, 28, 28), np.float32)
    images[0, 0, 14, 14] = np.nan
    predict = md.Predictor(model, (1, 28, 28))
    assert np.isnan(predict(images)[0]).all()
    assert np.isfinite(predict(images)[1:]).all()
    assert np.isfinite(predict(np.zeros_like(images))).all()


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(2, relu=True)])
def test_what_is_not_a_number_stays_so_in_pools(
    count: int, place: tuple[int, int], pool: Module
) -> None:
    images = np.arange(count * 4, dtype=np.float32).reshape(count, 1, 2, 2)
    images[0, 0][place] = np.nan
    out = md.Predictor(nn.Sequential(pool), (1, 2, 2))(images)
    np.testing.assert_array_equal(np.isnan(out.ravel()), np.arange(count) == 0)


def test_threads_and_neighbours_change_no_bit() -> None:
    model = md.compact(md.LeNet5(rng=np.random.default_rng(0), initial=0.2))
    images = np.random.default_rng(1).random((150, 1, 28, 28), dtype=np.float32)
    predict = md.Predictor(model, (1, 28, 28))
    expected = predict(images)
    np.testing.assert_array_equal(predict(images[70:]), expected[70:])
    for threads in {1, min(2, numba.config.NUMBA_NUM_THREADS)}:
        numba.set_num_threads(threads)
        np.testing.assert_array_equal(predict(images), expected)


def test_later_training_and_dropout_change_nothing() -> None:
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(4, 3, rng=rng), nn.Dropout(0.5, rng=rng))
    predict = md.Predictor(model, (4,))
    x = rng.standard_normal((20, 4), dtype=np.float32)
    before = predict(x), predict(x[:1])
    model.layers[0].weight.data[...] = 0
    np.testing.assert_array_equal(predict(x), before[0])
    np.testing.assert_array_equal(predict(x[:1]), before[1])
    assert model.training


@pytest.mark.parametrize(
    ("layers", "shape", "message"),
    [
        ([nn.Linear(3, 2, rng=np.random.default_rng(0))], (4,), "Linear does not fit"),
        ([nn.Linear(3, 2, rng=np.random.default_rng(0))], (3, 1, 1), "Linear does not fit"),
        ([nn.Conv2d(3, 2, 1, rng=np.random.default_rng(0))], (3,), "Conv2d does not fit"),
        ([nn.Conv2d(1, 2, 5, rng=np.random.default_rng(0))], (1, 4, 9), "does not fit"),
        ([nn.MaxPool2d(5)], (1, 4, 9), "does not fit"),
        ([nn.MaxPool2d(2)], (8,), "MaxPool2d does not fit"),
        ([nn.Select([0], size=3)], (2, 3, 3), "Select does not fit"),
    ],
)
def test_a_layer_that_does_not_fit_is_an_error(
    layers: list[Module], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        md.Predictor(nn.Sequential(*layers), shape)


def test_bad_arguments_are_errors_that_say_what_to_do() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(TypeError, match=r"is a Gated; .* take minidiff.compact"):
        md.Predictor(md.LeNet5(rng=rng), (1, 28, 28))
    with pytest.raises(TypeError, match="float64; a Predictor computes in float32"):
        md.Predictor(nn.Linear(3, 2, rng=rng, dtype=np.float64), (3,))
    for std in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="std above 0"):
            md.Predictor(nn.Linear(3, 2, rng=rng), (3,), std=std)

    class Leaky(nn.ReLU):
        def forward(self, x: md.Tensor) -> md.Tensor:
            return x * 0.5

    with pytest.raises(TypeError, match="1 is a Leaky"):
        md.Predictor(nn.Sequential(nn.Linear(3, 2, rng=rng), Leaky()), (3,))
    predict = md.Predictor(nn.Linear(3, 2, rng=rng), (3,))
    for dtype in (np.int64, np.complex64, np.bool_, object):
        with pytest.raises(TypeError, match="expected uint8, from 0 to 255, or floats"):
            predict(np.zeros((2, 3), dtype))
    for shape in ((3,), (2, 4), (2, 3, 1), ()):
        with pytest.raises(ValueError, match=r"expected \(N, 3\)"):
            predict(np.zeros(shape))
