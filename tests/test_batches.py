"""Batches: each image once, normalised, with the batch as the last axis."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from minidiff.data.augment import Affine
from minidiff.data.batches import batches
from minidiff.data.datasets import Pixels, Split
from tests.strategies import seeds


def random_split(count: int, dtype: Any = np.uint8) -> Split:
    """Return images that all differ, with labels that number them."""
    images = np.random.default_rng(count).integers(256, size=(count, 2, 3, 4))
    scale = 1 if dtype == np.uint8 else 255
    return Split((images / scale).astype(dtype), np.arange(count))


def normalised(split: Split, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    pixels = split.images[labels].astype(np.float64) / split.white
    return (pixels.transpose(1, 2, 3, 0) - 0.2) / 0.3


@given(
    st.integers(1, 40),
    st.integers(1, 50),
    st.none() | seeds,
    st.sampled_from([np.uint8, np.float32]),
)
def test_batches_hold_each_image_once_normalised(count, size, seed, dtype):
    split = random_split(count, dtype)
    rng = None if seed is None else np.random.default_rng(seed)
    found = list(batches(split, size, mean=0.2, std=0.3, rng=rng))

    order = np.concatenate([labels for _, labels in found])
    expected = np.arange(count) if rng is None else np.sort(order)
    np.testing.assert_array_equal(expected, np.arange(count))
    if rng is None:
        np.testing.assert_array_equal(order, expected)
    assert [len(labels) for _, labels in found[:-1]] == [size] * (len(found) - 1)
    for images, labels in found:
        assert images.dtype == np.float32
        assert images.flags.c_contiguous
        assert labels.dtype == np.int64
        np.testing.assert_allclose(images, normalised(split, labels), rtol=1e-6, atol=1e-6)


@given(seeds)
def test_the_same_generator_gives_the_same_batches(seed):
    def run() -> list[NDArray[np.float32]]:
        rng = np.random.default_rng(seed)
        options: dict[str, Any] = {"mean": 0.1, "std": 0.5, "rng": rng, "augment": Affine()}
        return [x for _ in range(2) for x, _ in batches(random_split(50), 16, **options)]

    one, two = run(), run()
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(one[0], one[4])  # the second pass is another permutation


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_writing_to_a_batch_leaves_the_split_alone(dtype):
    split = random_split(6, dtype)
    before = split.images.copy()
    for size in (1, 6):
        for images, labels in batches(split, size, mean=0.0, std=1.0):
            images += 1
            labels += 1
    np.testing.assert_array_equal(split.images, before)
    np.testing.assert_array_equal(split.labels, np.arange(6))


@pytest.mark.parametrize("result", [np.uint8, np.float32])
def test_augmented_images_are_in_the_range_of_the_split(result):
    split = random_split(10)

    def invert(images: Pixels, rng: np.random.Generator) -> Pixels:
        assert images.dtype == np.uint8
        assert images.shape[1:] == (2, 3, 4)
        return (255 - images).astype(result)

    inverted = Split(255 - split.images, split.labels)
    rng = np.random.default_rng(0)
    for images, labels in batches(split, 4, mean=0.2, std=0.3, rng=rng, augment=invert):
        np.testing.assert_allclose(images, normalised(inverted, labels), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "size is 0; expected at least 1"),
        ({"size": -3}, "size is -3"),
        ({"mean": np.nan}, "mean is nan.* expected finite"),
        ({"std": 0.0}, r"std is 0\.0; expected .* above 0"),
        ({"std": -1.0}, r"std is -1\.0"),
        ({"std": np.inf}, "std is inf"),
        ({"rng": 0}, "rng is 0; expected a numpy.random.Generator"),
        ({"augment": Affine()}, "rng is None; expected a numpy.random.Generator"),
    ],
)
def test_batches_reject_and_say_what_they_expected(changes, message):
    options = {"size": 4, "mean": 0.0, "std": 1.0} | changes
    with pytest.raises((ValueError, TypeError), match=message):
        next(batches(random_split(10), **options))
