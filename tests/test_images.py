"""Images: whatever a digit is drawn on, the network sees it as MNIST would have it."""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from minidiff.data import datasets as data
from minidiff.data.photos import ImageError, Prepared, prepare_digit, prepare_pixels

few = settings(max_examples=20)
digits = st.sampled_from("2479")


@cache
def drawn(name: str, side: int = 120, stroke: float = 0.11) -> NDArray[np.uint8]:
    """Draw a digit with a pen, dark on light, with a margin of a fifth on all sides."""
    lines = {
        "2": [(0.2, 0.25), (0.4, 0.05), (0.7, 0.1), (0.75, 0.35), (0.2, 0.95), (0.8, 0.95)],
        "4": [(0.65, 0.95), (0.65, 0.05), (0.2, 0.65), (0.85, 0.65)],
        "7": [(0.2, 0.1), (0.8, 0.05), (0.45, 0.95)],
        "9": [(0.7, 0.3), (0.45, 0.45), (0.3, 0.2), (0.55, 0.05), (0.7, 0.25), (0.6, 0.95)],
    }
    image = Image.new("L", (4 * side, 4 * side), 235)  # and then reduced, for smooth outlines
    points = [(4 * side * (0.2 + 0.6 * x), 4 * side * (0.2 + 0.6 * y)) for x, y in lines[name]]
    ImageDraw.Draw(image).line(points, fill=25, width=round(4 * side * 0.6 * stroke), joint="curve")
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))


def check(prepared: Prepared) -> None:
    """Hold a result to what is promised of every one."""
    pixels = prepared.pixels
    assert pixels.dtype == np.uint8
    assert pixels.shape == (28, 28)
    assert prepared.notes
    assert all(isinstance(note, str) and note for note in prepared.notes)
    rows, columns = np.nonzero(pixels)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert max(height, width) <= 20
    # Centred, unless the border of the image is in the way.
    for places, length in ((rows, height), (columns, width)):
        centre = np.average(places, weights=pixels[rows, columns])
        assert abs(centre - 14) <= 0.51 or places.min() == 0 or places.max() == 27, length


def distance(a: Prepared, b: Prepared) -> float:
    """Return by how much two results differ, as a share of the ink; the least over small shifts.

    Where a centre of mass is half-way between two pixels, any change of the picture may move it.
    """
    x, y = a.pixels.astype(float), b.pixels.astype(float)
    shifts = [np.roll(y, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return float(min(np.abs(x - z).sum() for z in shifts) / (x.sum() + y.sum()))


# ------------------------------------------------------------------------------------ properties


@pytest.mark.parametrize("name", "2479")
@pytest.mark.parametrize("side", [28, 40, 120, 700])
def test_what_is_promised_of_every_digit(name: str, side: int) -> None:
    prepared = prepare_pixels(drawn(name, side))
    check(prepared)
    assert prepared.pixels.max() > 200
    assert max(np.ptp(np.nonzero(prepared.pixels), axis=1)) >= 18
    assert prepared.notes[0] == "dark ink on light ground: inverted"
    assert distance(prepared, prepare_pixels(drawn(name))) < 0.15


@few
@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))
    | st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(0, 99)).map(
        lambda given: np.random.default_rng(given[2]).integers(0, 256, given[:2], np.uint8)
    )
)
def test_any_picture_gives_a_digit_or_an_error_that_says_why(grey: NDArray[np.uint8]) -> None:
    try:
        check(prepare_pixels(grey))
    except ImageError as error:
        assert "expected one digit" in str(error)  # noqa: PT017  # not every picture raises


@few
@given(digits, st.integers(40, 200))
def test_an_image_and_its_negative_give_the_same(name: str, side: int) -> None:
    image = drawn(name, side)
    found, negative = prepare_pixels(image), prepare_pixels(255 - image)
    np.testing.assert_array_equal(found.pixels, negative.pixels)
    assert found.notes[1:] == negative.notes[1:]
    assert negative.notes[0] == "light ink on dark ground"


@few
@given(digits, st.tuples(*[st.integers(0, 200)] * 4))
def test_the_place_on_the_page_does_not_matter(name: str, margins: tuple[int, ...]) -> None:
    top, bottom, left, right = margins
    page = np.pad(drawn(name), ((top, bottom), (left, right)), constant_values=235)
    assert distance(prepare_pixels(page), prepare_pixels(drawn(name))) < 0.1


@few
@given(digits, st.integers(40, 600))
def test_the_size_does_not_matter(name: str, side: int) -> None:
    assert distance(prepare_pixels(drawn(name, side)), prepare_pixels(drawn(name))) < 0.15


@few
@given(digits, st.floats(0.05, 1), st.floats(0, 1), st.booleans())
def test_contrast_and_brightness_do_not_matter(
    name: str, contrast: float, place: float, whole: bool
) -> None:
    faint = drawn(name) * contrast + place * 255 * (1 - contrast)
    faint = np.rint(faint).astype(np.uint8) if whole else faint
    assert distance(prepare_pixels(faint), prepare_pixels(drawn(name))) < 0.1


@few
@given(digits, st.floats(-0.35, 0.35), st.floats(-0.35, 0.35), st.integers(0, 99))
def test_a_slope_of_light_and_noise_do_not_matter(
    name: str, down: float, right: float, seed: int
) -> None:
    y, x = np.mgrid[-1:1:120j, -1:1:120j]
    photo = drawn(name) * (0.5 + down * y / 2 + right * x / 2)
    photo += np.random.default_rng(seed).normal(0, 4, photo.shape)
    assert distance(prepare_pixels(photo.clip(0, 255)), prepare_pixels(drawn(name))) < 0.15


@pytest.mark.parametrize("name", "2479")
def test_what_is_not_the_digit_is_left_out(name: str) -> None:
    expected = prepare_pixels(drawn(name))
    page = np.pad(drawn(name), 40, constant_values=235)
    page[120:, :] //= 2  # a shadow, with its edge across the digit
    page[30:33, 30:33] = 25  # a speck
    page[:, :6] = 60  # the table beside the page
    page[10:12] = 100  # a ruled line
    found = prepare_pixels(page)
    assert distance(found, expected) < 0.1
    assert "uneven light: divided by the ground" in found.notes
    assert not any("uneven" in note for note in expected.notes)


@pytest.mark.parametrize("name", "2479")
def test_thin_strokes_are_thickened(name: str) -> None:
    thin = prepare_pixels(drawn(name, 1000, 2 / 600))
    check(thin)
    assert any("thickened" in note for note in thin.notes)
    usual = prepare_pixels(drawn(name))
    assert not any("thickened" in note for note in usual.notes)
    assert distance(thin, usual) < 0.3
    assert 0.7 < thin.pixels.sum() / usual.pixels.sum() < 1.5


def test_the_size_in_the_notes_is_that_in_the_image() -> None:
    page = np.full((300, 200), 255, dtype=np.uint8)
    page[100:200, 90:110] = 0
    size = next(note for note in prepare_pixels(page).notes if note.startswith("cropped"))
    width, height = (int(part) for part in size.split(", ")[1].split()[0].split("x"))
    assert abs(width - 20) <= 3
    assert abs(height - 100) <= 3


# ----------------------------------------------------------------------------- MNIST as it is


@pytest.mark.parametrize("name", "2479")
def test_an_image_like_those_of_mnist_is_left_as_it_is(name: str, tmp_path: Path) -> None:
    first = prepare_pixels(drawn(name)).pixels
    for grey in (first, first.astype(np.float32), first.astype(np.int64)):
        again = prepare_pixels(grey)
        assert again.notes == ("like MNIST already: left as it is",)
        np.testing.assert_array_equal(again.pixels, first)
        assert again.pixels.dtype == np.uint8
    for mode in ("L", "RGB", "RGBA"):
        Image.fromarray(first).convert(mode).save(tmp_path / "as_it_is.png")
        np.testing.assert_array_equal(prepare_digit(tmp_path / "as_it_is.png").pixels, first)


def test_other_images_of_28x28_are_not() -> None:
    image = prepare_pixels(drawn("2")).pixels
    for other in (255 - image, image // 3, np.roll(image, 4, axis=1), image * 0.99):
        prepared = prepare_pixels(other)
        check(prepared)
        assert "like MNIST" not in prepared.notes[0]


@pytest.mark.mnist
def test_mnist_passes_bit_for_bit() -> None:
    directory = os.environ.get(data.DATA_VARIABLE)
    if not directory:
        pytest.skip("MINIDIFF_DATA_DIR is not set")
    if not all((Path(directory) / "mnist" / name).exists() for name in data.MNIST_HASHES):
        pytest.skip("MINIDIFF_DATA_DIR does not hold the MNIST files")
    images = data.load_dataset("mnist", offline=True).validation.images[:2000, 0]
    for image in images:
        np.testing.assert_array_equal(prepare_pixels(image).pixels, image)
    distances = []
    for image in images[:50]:  # and nearly the same after a way through a page
        page = np.pad(255 - image, 10, constant_values=255).repeat(4, axis=0).repeat(4, axis=1)
        distances.append(distance(prepare_pixels(page), Prepared(image, ())))
    assert np.mean(distances) < 0.1


# --------------------------------------------------------------------------------------- formats


def on_transparent(shade: int) -> Image.Image:
    image = Image.new("RGBA", (120, 120), (shade, shade, shade, 0))
    image.putalpha(Image.fromarray(255 - drawn("2")).point(lambda level: 255 * (level > 128)))
    return image


def in_16_bits(size: int = 120) -> Image.Image:
    return Image.fromarray(drawn("2", size).astype(np.uint16) * 257)


def animated() -> bytes:
    stream = io.BytesIO()
    frames = [Image.fromarray(drawn(name)) for name in "247"]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return stream.getvalue()


def lying(orientation: int = 6) -> bytes:
    """Return a JPEG as a camera held upright makes it: turned, with a note of how to turn it."""
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = Image.fromarray(np.rot90(drawn("2", 2400)))
    turned.save(stream, "JPEG", quality=90, exif=exif)
    return stream.getvalue()


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def grey() -> Image.Image:
    return Image.fromarray(drawn("2"))


@pytest.mark.parametrize(
    ("make", "mode"),
    [
        pytest.param(lambda: encoded(grey()), "L", id="L"),
        pytest.param(lambda: encoded(grey().convert("1")), "1", id="1"),
        pytest.param(lambda: encoded(grey().convert("LA")), "LA", id="LA"),
        pytest.param(lambda: encoded(grey().convert("RGB")), "RGB", id="RGB"),
        pytest.param(lambda: encoded(grey().convert("P")), "P", id="P"),
        pytest.param(lambda: encoded(on_transparent(0)), "RGBA", id="black on nothing"),
        pytest.param(lambda: encoded(on_transparent(255)), "RGBA", id="white on nothing"),
        pytest.param(lambda: encoded(in_16_bits()), "I;16", id="16 bits"),
        pytest.param(
            lambda: encoded(in_16_bits(1500)), "the longer side", id="16 bits, to be reduced"
        ),
        pytest.param(lambda: encoded(grey().convert("F"), "TIFF"), "F", id="F"),
        pytest.param(lambda: encoded(grey().convert("CMYK"), "JPEG"), "CMYK", id="CMYK"),
        pytest.param(lambda: encoded(grey(), "BMP"), "L", id="BMP"),
        pytest.param(lambda: encoded(grey(), "MPO"), "L", id="MPO"),
        pytest.param(animated, "", id="GIF"),
        pytest.param(
            lying, "2400x2400 pixels, L, reduced to 1024 along the longer side", id="EXIF"
        ),
    ],
)
def test_formats(make: Callable[[], bytes], mode: str, tmp_path: Path) -> None:
    path = tmp_path / "image"  # the content counts, not the name
    path.write_bytes(make())
    prepared = prepare_digit(path)
    check(prepared)
    assert distance(prepared, prepare_pixels(drawn("2"))) < 0.15
    assert "pixels" in prepared.notes[0]
    assert prepared.notes[0].endswith(mode)
    np.testing.assert_array_equal(prepare_digit(str(path)).pixels, prepared.pixels)


# ---------------------------------------------------------------------------------------- errors


def bomb(width: int, height: int) -> bytes:
    """Return a PNG that promises a great many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def constant(level: int) -> bytes:
    return encoded(Image.new("L", (50, 60), level))


@pytest.mark.parametrize(
    ("content", "message", "mend"),
    [
        (b"", "cannot be read as an image", "save it as PNG"),
        (b"7 is not an image", "cannot be read as an image", "save it as PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read", "as PNG"),
        (encoded(Image.new("RGB", (99, 99)))[:-40], "cannot be read as an image", "as PNG"),
        (encoded(Image.new("RGB", (99, 99)), "JPEG")[:-40], "cannot be read", "as PNG"),
        (bomb(0, 5), "cannot be read", "as PNG"),
        (
            bomb(12_000, 10_000),
            "cannot be read as an image (Decompression",
            "crop the image to the digit",
        ),
        (
            bomb(60_000, 60_000),
            "cannot be read as an image (Decompression",
            "crop the image to the digit",
        ),
        (constant(0), "no ink is found", "Use an image with more contrast"),
        (constant(255), "no ink is found", "Use an image with more contrast"),
        (constant(97), "no ink is found", "Use an image with more contrast"),
        (encoded(Image.new("RGBA", (9, 9), (0, 0, 0, 0))), "no ink is found", "more contrast"),
        (encoded(Image.new("L", (1, 1))), "no ink is found", "more contrast"),
    ],
)
def test_errors_name_the_path_what_is_wrong_and_the_mend(
    content: bytes, message: str, mend: str, tmp_path: Path
) -> None:
    path = tmp_path / "digit.png"
    path.write_bytes(content)
    with pytest.raises(ImageError) as error:
        prepare_digit(path)
    text = str(error.value)
    assert text.startswith(f"{path}: {message}")
    assert "expected" in text
    assert mend in text


def test_a_path_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="there is no such file; expected an image file"):
        prepare_digit(tmp_path / "none.png")
    with pytest.raises(ImageError, match="is a directory; expected an image file"):
        prepare_digit(tmp_path)


@few
@given(st.data())
def test_damaged_files_give_a_digit_or_an_image_error(
    tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject
) -> None:
    kind = draw.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP"]))
    content = bytearray(encoded(grey(), kind))
    for place in draw.draw(st.lists(st.integers(0, 400), min_size=1, max_size=5)):
        content[place % len(content)] ^= draw.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    try:
        check(prepare_digit(path))
    except ImageError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017  # some damage does not matter


@pytest.mark.parametrize(
    ("grey", "message"),
    [
        (np.zeros((3, 28, 28)), r"shape \(3, 28, 28\); expected \(H, W\)"),
        (np.zeros((0, 5)), r"shape \(0, 5\); expected \(H, W\), 1x1 or more"),
        (np.full((5, 5), np.nan), "not all within 0..255"),
        (np.full((5, 5), np.inf), "not all within 0..255"),
        (np.full((5, 5), -1), "not all within 0..255"),
        (np.full((5, 5), 256), "int64 and not all within 0..255"),
        (np.full((5, 5), 1j), "complex128"),
        (np.full((5, 5), True), "bool"),
    ],
)
def test_arrays_that_are_no_grey_levels(grey: NDArray[Any], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        prepare_pixels(grey)


def test_the_array_is_left_alone_and_warnings_are_as_they_were(tmp_path: Path) -> None:
    image = drawn("2").copy()
    image.setflags(write=False)
    prepare_pixels(image)
    Image.fromarray(image).save(tmp_path / "digit.png")
    before = list(warnings.filters)
    prepare_digit(tmp_path / "digit.png")
    assert warnings.filters == before
