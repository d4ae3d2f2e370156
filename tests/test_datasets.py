"""Datasets: what a split promises, and which data load_dataset makes its splits of."""

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from minidiff.data import datasets
from minidiff.data.datasets import DIGITS_TRAINING_IMAGES, Dataset, Split, load_dataset
from minidiff.data.mnist import DataError, MissingDataError


def split(count: int = 4, dtype: Any = np.uint8, **changes: Any) -> Split:
    arrays = {"images": np.ones((count, 1, 3, 2), dtype), "labels": np.arange(count)}
    return Split(**(arrays | changes))


def grey(value: float) -> NDArray[np.float32]:
    images = np.zeros((4, 1, 3, 2), np.float32)
    images[2, 0, 1, 1] = value
    return images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": np.zeros((4, 3, 2), np.uint8)},
            r"shape \(4, 3, 2\) .* expected \(N, C, H, W\)",
        ),
        ({"images": np.zeros((4, 1, 0, 2), np.uint8)}, "at least one image and one pixel"),
        ({"count": 0}, "at least one image and one pixel"),
        ({"labels": np.zeros((4, 1), np.int64)}, r"labels \(4, 1\); expected .* \(N,\)"),
        ({"labels": np.zeros(5, np.int64)}, r"labels \(5,\); expected .* \(N,\)"),
        ({"labels": np.zeros(4, np.int32)}, "labels int32; expected .* int64"),
        ({"labels": np.array([0, 1, -2, -1])}, "labels go down to -2; expected 0 or more"),
        ({"images": np.zeros((4, 1, 3, 2))}, r"float64 .* expected uint8 \(0..255\) or float32"),
        ({"images": grey(np.nan)}, r"go from nan to nan; expected 0\.\.1"),
        ({"images": grey(-np.inf)}, "go from -inf to 0.0"),
        ({"images": grey(1.5)}, "go from 0.0 to 1.5"),
    ],
)
def test_split_rejects_and_says_what_it_expected(changes: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        split(**changes)


def test_dataset_rejects_splits_that_do_not_fit():
    with pytest.raises(DataError, match="test labels go up to 3; expected at most 2 for 3 classes"):
        Dataset("n", "s", split(3), split(2), split(4), classes=3)
    with pytest.raises(DataError, match=r"validation images are \(1, 3, 2\) float32; .* uint8"):
        Dataset("n", "s", split(), split(dtype=np.float32), split())
    small = split(images=np.ones((4, 1, 2, 2), np.uint8))
    with pytest.raises(DataError, match=r"test images are \(1, 2, 2\) uint8; .* \(1, 3, 2\)"):
        Dataset("n", "s", split(), None, small)


@given(hnp.arrays(np.uint8, (3, 1, 4, 5)))
def test_mean_and_std_are_of_training_pixels_from_0_to_1(images: NDArray[np.uint8]):
    as_float = (images / 255).astype(np.float32)
    for own in (images, as_float):
        train = Split(own, np.arange(3))
        other = Split(np.zeros_like(own), np.arange(3))
        dataset = Dataset("n", "s", train, other, other)
        assert dataset.mean == pytest.approx((images / 255).mean(), abs=1e-7)
        assert dataset.std == pytest.approx((images / 255).std(), abs=1e-6)


# ---------------------------------------------------------------------------------------- MNIST


@pytest.fixture
def arrays(monkeypatch: pytest.MonkeyPatch) -> list[NDArray[np.uint8]]:
    """Return four small arrays that load_dataset finds in place of MNIST's."""
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(256, size=shape, dtype=np.uint8)
        for shape in ((40, 28, 28), (40,), (10, 28, 28), (10,))
    ]
    arrays[1] %= 10
    arrays[3] %= 10
    monkeypatch.setattr(datasets, "load_mnist", lambda *, offline: (arrays, "a test"))
    return arrays


@pytest.fixture
def no_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*, offline: bool) -> Any:
        raise MissingDataError("MNIST is missing.")

    monkeypatch.setattr(datasets, "load_mnist", fail)


@pytest.mark.parametrize("name", ["auto", "mnist"])
def test_validation_is_the_end_of_the_training_images(name: str, arrays: list[Any]):
    images, labels, test_images, test_labels = arrays
    found = load_dataset(name, validation=7)
    assert (found.name, found.source) == ("mnist", "MNIST, from a test.")
    assert found.validation is not None
    np.testing.assert_array_equal(found.train.images, images[:33, None])
    np.testing.assert_array_equal(found.train.labels, labels[:33])
    np.testing.assert_array_equal(found.validation.images, images[33:, None])
    np.testing.assert_array_equal(found.validation.labels, labels[33:])
    np.testing.assert_array_equal(found.test.images, test_images[:, None])
    np.testing.assert_array_equal(found.test.labels, test_labels)

    everything = load_dataset(name, validation=0)
    assert everything.validation is None
    np.testing.assert_array_equal(everything.train.images, images[:, None])


@pytest.mark.usefixtures("no_mnist")
def test_auto_falls_back_to_digits_and_says_so():
    pytest.importorskip("sklearn")
    found = load_dataset()
    assert found.name == "digits"
    assert found.source.endswith("They stand in for MNIST. MNIST is missing.")
    with pytest.raises(MissingDataError, match="MNIST is missing"):
        load_dataset("mnist")


# --------------------------------------------------------------------------------------- digits


def test_digits_are_those_of_scikit_learn_enlarged():
    sklearn = pytest.importorskip("sklearn.datasets")
    found = load_dataset("digits")
    splits = (found.train, found.validation, found.test)
    assert [len(part) for part in splits] == [DIGITS_TRAINING_IMAGES, 300, 300]
    images = np.concatenate([part.images for part in splits])
    labels = np.concatenate([part.labels for part in splits])
    assert images.dtype == np.uint8
    assert images.shape == (1797, 1, 28, 28)
    assert not images[:, :, :4].any()  # a margin of 4, as in MNIST
    assert not images[..., 24:].any()
    assert len(np.unique(images.reshape(1797, -1), axis=0)) == 1797  # so splits are disjoint

    # Each image is that of its label: bilinear enlargement keeps the means of quarters.
    bunch = sklearn.load_digits()
    order = np.random.default_rng(1797).permutation(1797)
    np.testing.assert_array_equal(labels, bunch.target[order])
    quarters = images[:, 0, 4:24, 4:24].reshape(1797, 2, 10, 2, 10).mean(axis=(2, 4))
    original = bunch.images[order].reshape(1797, 2, 4, 2, 4).mean(axis=(2, 4)) * (255 / 16)
    assert np.corrcoef(quarters.ravel(), original.ravel())[0, 1] > 0.99
    assert abs(quarters - original).mean() < 0.2 * abs(quarters - original.mT).mean()
    assert quarters.mean() == pytest.approx(original.mean(), rel=0.05)


def test_digits_without_validation_train_on_it_too():
    pytest.importorskip("sklearn")
    some, everything = load_dataset("digits", validation=100), load_dataset("digits", validation=0)
    assert everything.validation is None
    assert some.validation is not None
    images = np.concatenate([some.train.images, some.validation.images])
    np.testing.assert_array_equal(everything.train.images, images)
    np.testing.assert_array_equal(everything.test.images, some.test.images)


# -------------------------------------------------------------------------------------- refusals


def test_scikit_learn_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"scikit-learn could .* pip install -e '.\[train\]'"):
        load_dataset("digits")


def test_an_unknown_dataset_is_an_error():
    with pytest.raises(ValueError, match="'cifar' is unknown; expected one of auto, mnist, digits"):
        load_dataset("cifar")


@pytest.mark.parametrize("validation", [-1, 60_000, 2.5, "5"])
def test_an_impossible_validation_set_is_an_error(validation: Any):
    with pytest.raises(ValueError, match=r"expected 0\.\.59999"):
        load_dataset("digits", validation=validation)
