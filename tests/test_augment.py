"""Augmentation: affine distortion against what it must equal in simple cases."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minidiff.data.augment import Affine, transform
from minidiff.data.datasets import Pixels, Split, batches

fuzz = settings(deadline=None, max_examples=60)
seeds = st.integers(0, 2**32 - 1)
shapes = hnp.array_shapes(min_dims=4, max_dims=4, max_side=7)
pixels: st.SearchStrategy[Pixels] = st.one_of(
    hnp.arrays(np.uint8, shapes),
    hnp.arrays(np.float32, shapes, elements=st.floats(0, 1, width=32)),
)


def parameters(count: int, **changes: Any) -> dict[str, Any]:
    identity = {
        "shifts": np.zeros((count, 2)),
        "rotations": np.zeros(count),
        "factors": np.ones(count),
    }
    return identity | changes


@fuzz
@given(pixels, seeds)
def test_identity(images: Pixels, seed: int) -> None:
    result = Affine(0.0, 0.0, 0.0)(images, np.random.default_rng(seed))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, images)


def test_amounts_are_the_largest_to_either_side(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def recorded(images: Pixels, **amounts: Any) -> Pixels:
        given.update(amounts)
        return images

    monkeypatch.setattr("minidiff.data.augment.transform", recorded)
    Affine(2.0, 5.0, 0.1)(np.zeros((4000, 1, 1, 1), np.uint8), np.random.default_rng(0))
    down, right = given["shifts"].T
    for values, middle, most in (
        *((down, 0.0, 2.0), (right, 0.0, 2.0)),
        *((given["rotations"], 0.0, 5.0), (given["factors"], 1.0, 0.1)),
    ):
        away = (values - middle) / most
        assert abs(away).max() <= 1
        assert away.min() < -0.99
        assert away.max() > 0.99
        assert abs(away.mean()) < 0.05  # and even in between
        assert away.std() == pytest.approx(1 / 3**0.5, rel=0.05)
    drawn = np.stack([down, right, given["rotations"], given["factors"]])
    assert abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.1  # each by itself


@fuzz
@given(pixels, st.data())
def test_whole_pixel_shift(images: Pixels, draw: st.DataObject) -> None:
    count, _, height, width = images.shape
    shifts = draw.draw(hnp.arrays(np.int64, (count, 2), elements=st.integers(-9, 9)))
    result = transform(images, **parameters(count, shifts=shifts.astype(np.float64)))

    for image, (down, right), found in zip(images, shifts, result, strict=True):
        padded = np.pad(image, ((0, 0), (9, 9), (9, 9)))
        rolled = np.roll(padded, (down, right), axis=(1, 2))
        np.testing.assert_array_equal(found, rolled[:, 9 : 9 + height, 9 : 9 + width])


def test_half_pixel_shift_averages_neighbours() -> None:
    images = np.array([[[[10, 30, 50]]]], dtype=np.uint8)
    found = transform(images, **parameters(1, shifts=np.array([[0.0, 0.5]])))
    np.testing.assert_array_equal(found, [[[[5, 20, 40]]]])


@pytest.mark.parametrize("side", [4, 5])
def test_quarter_turn_is_counter_clockwise(side: int) -> None:
    images = np.random.default_rng(0).random((1, 2, side, side)).astype(np.float32)
    found = transform(images, **parameters(1, rotations=np.array([90.0])))
    np.testing.assert_allclose(found, np.rot90(images, axes=(2, 3)), atol=1e-6)


def test_factor_enlarges_about_the_centre() -> None:
    images = np.zeros((1, 1, 9, 9), dtype=np.uint8)
    images[..., 3:6, 3:6] = 255
    found = transform(images, **parameters(1, factors=np.array([2.0])))
    assert found.sum() == pytest.approx(4 * images.sum(), rel=0.1)
    np.testing.assert_array_equal(found, found[..., ::-1, ::-1])
    assert (found[..., 2:7, 2:7] == 255).all()


@fuzz
@given(pixels, seeds, st.floats(0, 20), st.floats(0, 360), st.floats(0, 0.99))
def test_values_in_range_and_deterministic(
    images: Pixels, seed: int, shift: float, rotation: float, scale: float
) -> None:
    affine = Affine(shift, rotation, scale)
    before = images.copy()
    result = affine(images, np.random.default_rng(seed))
    assert result.shape == images.shape
    assert result.min() >= 0
    assert result.max() <= images.max()
    np.testing.assert_array_equal(result, affine(images, np.random.default_rng(seed)))
    np.testing.assert_array_equal(images, before)


def test_each_image_is_drawn_for_itself() -> None:
    images = np.repeat(np.random.default_rng(0).random((1, 1, 8, 8)), 5, axis=0)
    result = Affine()(images.astype(np.float32), np.random.default_rng(1))
    assert len(np.unique(result.reshape(5, -1), axis=0)) == 5


def test_amounts_do_not_change_what_is_drawn_next() -> None:
    images = np.zeros((3, 1, 4, 4), dtype=np.uint8)
    one, two = np.random.default_rng(0), np.random.default_rng(0)
    Affine()(images, one)
    Affine(0.0, 0.0, 0.0)(images, two)
    assert one.random() == two.random()


def test_strided_images() -> None:
    images = np.random.default_rng(0).integers(256, size=(4, 1, 6, 6), dtype=np.uint8)
    view = images[::2, :, ::-1]
    one = Affine()(view, np.random.default_rng(0))
    np.testing.assert_array_equal(one, Affine()(view.copy(), np.random.default_rng(0)))


def test_in_batches() -> None:
    images = np.random.default_rng(0).integers(256, size=(10, 1, 6, 6), dtype=np.uint8)
    split = Split(images, np.arange(10))
    options: dict[str, Any] = {"mean": 0.5, "std": 0.25, "augment": Affine(0.0, 0.0, 0.0)}
    plain = batches(split, 4, mean=0.5, std=0.25, rng=np.random.default_rng(0))
    first, labels = next(batches(split, 4, rng=np.random.default_rng(0), **options))
    expected, expected_labels = next(plain)
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(labels, expected_labels)


@pytest.mark.parametrize("name", ["shift", "rotation", "scale"])
@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf])
def test_affine_rejects(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; expected a finite number of"):
        Affine(**{name: value})


def test_affine_rejects_scale_of_one() -> None:
    with pytest.raises(ValueError, match=r"scale is 1\.0; .* below 1"):
        Affine(scale=1.0)


@pytest.mark.parametrize(
    ("images", "changes", "message"),
    [
        (np.zeros((2, 3, 3), np.uint8), {}, r"\(2, 3, 3\) uint8; expected \(B, C, H, W\)"),
        (np.zeros((2, 1, 3, 3)), {}, "float64; expected"),
        (None, {"shifts": np.zeros((2, 3))}, r"shifts have shape \(2, 3\); expected \(2, 2\)"),
        (None, {"rotations": np.zeros(1)}, r"rotations have shape \(1,\); expected \(2,\)"),
        (None, {"factors": np.array([1.0, 0.0])}, "factors go down to 0.0"),
        (None, {"rotations": np.array([0.0, np.nan])}, "rotations hold a number which is not"),
    ],
)
def test_transform_rejects(images: Any, changes: dict[str, Any], message: str) -> None:
    if images is None:
        images = np.zeros((2, 1, 3, 3), np.uint8)
    with pytest.raises(ValueError, match=message):
        transform(images, **parameters(2, **changes))
