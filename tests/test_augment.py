"""Augmentation: affine distortion against what it must equal in simple cases."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import ArrayLike

from minidiff.data.augment import Affine
from minidiff.data.datasets import Pixels
from tests.strategies import seeds

shapes = hnp.array_shapes(min_dims=4, max_dims=4, max_side=7)
pixels: st.SearchStrategy[Pixels] = hnp.arrays(np.uint8, shapes) | hnp.arrays(
    np.float32, shapes, elements=st.floats(0, 1, width=32)
)


def distorted(
    images: Pixels,
    *,
    shifts: ArrayLike = (0.0, 0.0),
    rotation: float = 0.0,
    factor: float = 1.0,
) -> Pixels:
    """Distort all images by given amounts: pixels down and right, degrees, a factor."""

    class Chosen:
        def uniform(self, low: float, high: float, size: tuple[int, int]) -> Any:
            down, right = np.broadcast_to(shifts, (len(images), 2)).T / 16
            others = [np.full(len(images), v) for v in (rotation / 90, (factor - 1) / 0.5)]
            return np.stack([down, right, *others])

    return Affine(shift=16.0, rotation=90.0, scale=0.5)(images, Chosen())


@given(pixels, st.data())
def test_shifts_by_whole_pixels_are_exact(images, draw):
    count, _, height, width = images.shape
    shifts = draw.draw(hnp.arrays(np.int64, (count, 2), elements=st.integers(-9, 9)))
    result = distorted(images, shifts=shifts)
    assert result.dtype == np.float32
    for image, shift, found in zip(images, shifts, result, strict=True):
        padded = np.pad(image, ((0, 0), (9, 9), (9, 9)))
        rolled = np.roll(padded, shift, axis=(1, 2))
        np.testing.assert_array_equal(found, rolled[:, 9 : 9 + height, 9 : 9 + width])


def test_a_shift_by_half_a_pixel_averages_neighbours():
    images = np.array([[[[10, 30, 50]]]], dtype=np.uint8)
    np.testing.assert_array_equal(distorted(images, shifts=(0.0, 0.5)), [[[[5, 20, 40]]]])


@pytest.mark.parametrize("side", [4, 5])
def test_a_quarter_turn_is_counter_clockwise(side):
    images = np.random.default_rng(0).random((1, 2, side, side)).astype(np.float32)
    found = distorted(images, rotation=90.0)
    np.testing.assert_allclose(found, np.rot90(images, axes=(2, 3)), atol=1e-6)


def test_a_factor_enlarges_about_the_centre():
    images = np.zeros((1, 1, 9, 9), dtype=np.uint8)
    images[..., 3:6, 3:6] = 255
    found = distorted(images, factor=1.5)
    assert found.sum() == pytest.approx(1.5**2 * images.sum(), rel=0.1)
    np.testing.assert_array_equal(found, found[..., ::-1, ::-1])
    assert (found[..., 3:6, 3:6] == 255).all()


def test_amounts_are_uniform_up_to_the_largest():
    # A round spot to the right of the centre tells how far, and by what angle, it has moved.
    y, x = np.mgrid[-20:21, -20:21]
    spot = np.exp(-((x - 12) ** 2 + y**2) / 8).astype(np.float32)
    images = np.broadcast_to(spot, (1000, 1, 41, 41))

    def centres(affine: Affine) -> np.ndarray:
        found = affine(images, np.random.default_rng(0))[:, 0]
        mass = found.sum(axis=(1, 2))
        return np.stack([(found * axis).sum(axis=(1, 2)) / mass for axis in (y, x)])

    down, right = centres(Affine(3.0, 0.0, 0.0))
    up, across = centres(Affine(0.0, 40.0, 0.3)) * [[-1], [1]]
    amounts = [
        down / 3,
        (right - 12) / 3,
        np.degrees(np.arctan2(up, across)) / 40,
        (np.hypot(up, across) / 12 - 1) / 0.3,
    ]
    for amount in amounts:
        assert amount.min() == pytest.approx(-1, abs=0.02)
        assert amount.max() == pytest.approx(1, abs=0.02)
        assert amount.mean() == pytest.approx(0, abs=0.06)
        assert amount.std() == pytest.approx(1 / 3**0.5, rel=0.05)
    assert abs(np.corrcoef(amounts) - np.eye(4)).max() < 0.1  # each is drawn for itself


@given(pixels, seeds, st.floats(0, 20), st.floats(0, 360), st.floats(0, 0.99))
def test_results_depend_on_the_generator_alone_and_keep_the_range(
    images, seed, shift, rotation, scale
):
    affine = Affine(shift, rotation, scale)
    before = images.copy()
    result = affine(images, np.random.default_rng(seed))
    assert result.shape == images.shape
    assert result.min() >= 0
    assert result.max() <= images.max()
    np.testing.assert_array_equal(result, affine(images, np.random.default_rng(seed)))
    strided = np.ascontiguousarray(images[..., ::-1])[..., ::-1]
    np.testing.assert_array_equal(result, affine(strided, np.random.default_rng(seed)))
    np.testing.assert_array_equal(images, before)


def test_amounts_do_not_change_later_draws():
    images = np.zeros((3, 1, 4, 4), dtype=np.uint8)
    one, two = np.random.default_rng(0), np.random.default_rng(0)
    Affine()(images, one)
    Affine(0.0, 0.0, 0.0)(images, two)
    assert one.random() == two.random()


@pytest.mark.parametrize("name", ["shift", "rotation", "scale"])
@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf])
def test_affine_rejects_amounts_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; expected 0 or more, and below"):
        Affine(**{name: value})


def test_affine_rejects_a_scale_of_one_and_images_without_channels():
    with pytest.raises(ValueError, match=r"scale is 1\.0; .* below 1"):
        Affine(scale=1.0)
    with pytest.raises(ValueError, match=r"\(2, 3, 3\); expected \(B, C, H, W\)"):
        Affine()(np.zeros((2, 3, 3), np.uint8), np.random.default_rng(0))
