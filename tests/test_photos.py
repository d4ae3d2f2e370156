"""Photos: whatever a digit is drawn on, it becomes an image like those of MNIST."""

import io
import os
import struct
import time
import tracemalloc
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

from minidiff.data import photos
from minidiff.data.datasets import Dataset
from minidiff.data.photos import ImageError, Prepared, prepare_digit, prepare_pixels
from tests.strategies import seeds

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


@cache
def usual(name: str) -> Prepared:
    return prepare_pixels(drawn(name))


def check(prepared: Prepared) -> None:
    """Hold a result to what is promised of every one."""
    pixels = prepared.pixels
    assert pixels.dtype == np.uint8
    assert pixels.shape == (28, 28)
    assert all(isinstance(note, str) and note for note in prepared.notes)
    for positions in np.nonzero(pixels):
        assert np.ptp(positions) + 1 <= 20
        # Centred, unless the border of the image is in the way.
        centre = np.average(positions, weights=pixels[np.nonzero(pixels)])
        assert abs(centre - 14) <= 0.51 or positions.min() == 0 or positions.max() == 27


def distance(a: Prepared, b: Prepared) -> float:
    """Return by how much two results differ, as a share of the ink; the least over small shifts.

    Where a centre of mass is half-way between two pixels, any change of the picture may move it.
    """
    x, y = a.pixels.astype(float), b.pixels.astype(float)
    shifts = [np.roll(y, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return float(min(np.abs(x - z).sum() for z in shifts) / (x.sum() + y.sum()))


# ------------------------------------------------------------------- what may differ in a photo


@few
@given(digits, st.integers(28, 700))
def test_a_digit_of_any_size_fills_its_box(name, side):
    prepared = prepare_pixels(drawn(name, side))
    check(prepared)
    assert prepared.pixels.max() > 200
    assert max(np.ptp(np.nonzero(prepared.pixels), axis=1)) >= 18
    assert distance(prepared, usual(name)) < 0.15


@few
@given(digits, st.integers(40, 200))
def test_an_image_and_its_negative_give_the_same(name, side):
    found, negative = prepare_pixels(drawn(name, side)), prepare_pixels(255 - drawn(name, side))
    np.testing.assert_array_equal(found.pixels, negative.pixels)
    assert found.notes == ("dark ink on light ground: inverted", *negative.notes[1:])
    assert negative.notes[0] == "light ink on dark ground"


@few
@given(digits, st.tuples(*[st.integers(0, 200)] * 4))
def test_the_position_on_the_page_does_not_matter(name, margins):
    top, bottom, left, right = margins
    page = np.pad(drawn(name), ((top, bottom), (left, right)), constant_values=235)
    assert distance(prepare_pixels(page), usual(name)) < 0.1


@few
@given(digits, st.floats(0.05, 1), st.floats(0, 1), st.booleans())
def test_contrast_and_brightness_do_not_matter(name, contrast, brightness, whole):
    faint = drawn(name) * contrast + brightness * 255 * (1 - contrast)
    faint = np.rint(faint).astype(np.uint8) if whole else faint
    assert distance(prepare_pixels(faint), usual(name)) < 0.1


@few
@given(digits, st.floats(-0.35, 0.35), st.floats(-0.35, 0.35), seeds)
def test_a_slope_of_light_and_noise_do_not_matter(name, down, right, seed):
    y, x = np.mgrid[-1:1:120j, -1:1:120j]
    photo = drawn(name) * (0.5 + down * y / 2 + right * x / 2)
    photo += np.random.default_rng(seed).normal(0, 4, photo.shape)
    assert distance(prepare_pixels(photo.clip(0, 255)), usual(name)) < 0.15


@pytest.mark.parametrize("name", "2479")
def test_shadows_specks_and_edges_are_left_out(name):
    page = np.pad(drawn(name), 40, constant_values=235)
    page[120:, :] //= 2  # a shadow, with its edge across the digit
    page[30:33, 30:33] = 25  # a speck
    page[:, :6] = 60  # the table beside the page
    page[10:12] = 100  # a ruled line
    found = prepare_pixels(page)
    assert distance(found, usual(name)) < 0.1
    assert "uneven light: divided by the ground" in found.notes
    assert not any("uneven" in note for note in usual(name).notes)


@pytest.mark.parametrize("name", "2479")
def test_thin_strokes_are_thickened(name):
    thin = prepare_pixels(drawn(name, 1000, 2 / 600))
    check(thin)
    assert any("thickened" in note for note in thin.notes)
    assert not any("thickened" in note for note in usual(name).notes)
    assert distance(thin, usual(name)) < 0.3
    assert 0.7 < thin.pixels.sum() / usual(name).pixels.sum() < 1.5


def test_the_notes_give_the_size_in_the_image():
    page = np.full((300, 200), 255, dtype=np.uint8)
    page[100:200, 90:110] = 0
    size = next(note for note in prepare_pixels(page).notes if note.startswith("cropped"))
    width, height = (int(part) for part in size.split(", ")[1].split()[0].split("x"))
    assert abs(width - 20) <= 3
    assert abs(height - 100) <= 3


# ----------------------------------------------------------------------------- MNIST as it is


@pytest.mark.parametrize("name", "2479")
def test_an_image_like_those_of_mnist_is_left_as_it_is(name, tmp_path):
    first = usual(name).pixels
    for grey in (first, first.astype(np.float32), first.astype(np.int64)):
        again = prepare_pixels(grey)
        assert again.notes == ("like MNIST already: left as it is",)
        np.testing.assert_array_equal(again.pixels, first)
        assert again.pixels.dtype == np.uint8
    for mode in ("L", "RGB", "RGBA"):
        Image.fromarray(first).convert(mode).save(tmp_path / "as_it_is.png")
        np.testing.assert_array_equal(prepare_digit(tmp_path / "as_it_is.png").pixels, first)


def test_other_images_of_28x28_are_prepared():
    image = usual("2").pixels
    for other in (255 - image, image // 3, np.roll(image, 4, axis=1), image * 0.99):
        prepared = prepare_pixels(other)
        check(prepared)
        assert "like MNIST" not in prepared.notes[0]


@pytest.mark.mnist
def test_images_of_mnist_pass_bit_for_bit(mnist: Dataset):
    images = mnist.validation.images[:2000, 0]
    for image in images:
        np.testing.assert_array_equal(prepare_pixels(image).pixels, image)
    distances = []
    for image in images[:50]:  # and nearly so when cut out of a page
        page = np.pad(255 - image, 10, constant_values=255).repeat(4, axis=0).repeat(4, axis=1)
        distances.append(distance(prepare_pixels(page), Prepared(image, ())))
    assert np.mean(distances) < 0.1


# ---------------------------------------------------------------------------------------- files


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def grey(mode: str = "L") -> Image.Image:
    return Image.fromarray(drawn("2")).convert(mode)


def on_transparent(shade: int, side: int = 120) -> Image.Image:
    image = Image.new("RGBA", (side, side), (shade, shade, shade, 0))
    image.putalpha(Image.fromarray(255 - drawn("2", side)).point(lambda level: 255 * (level > 128)))
    return image


def in_16_bits(side: int, bits: int = 16) -> Image.Image:
    """Return light ink on black, the harder case for a few bits in a file of 16."""
    levels = (255 - drawn("2", side).astype(float)) / 255 * (2**bits - 1)
    return Image.fromarray(levels.round().astype(np.uint16))


def animated() -> bytes:
    frames = [Image.fromarray(drawn(name)) for name in "247"]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


TURNED = Image.Exif()  # a note of how to turn an image from a camera that was held upright
TURNED[0x0112] = 6


def turned(side: int = 120) -> Image.Image:
    return Image.fromarray(np.rot90(drawn("2", side)))


REDUCED = "reduced to 1024 along the longer side"


@pytest.mark.parametrize(
    ("make", "note"),
    [
        *(
            pytest.param(lambda mode=mode: encoded(grey(mode)), mode, id=mode)
            for mode in ("L", "1", "LA", "RGB", "P")
        ),
        pytest.param(lambda: encoded(on_transparent(0)), "RGBA", id="black ink"),
        pytest.param(lambda: encoded(on_transparent(255)), "RGBA", id="white ink"),
        pytest.param(lambda: encoded(in_16_bits(120)), "I;16", id="16 bits"),
        pytest.param(lambda: encoded(in_16_bits(1500)), REDUCED, id="16 bits, large"),
        *(
            pytest.param(
                lambda bits=bits: encoded(in_16_bits(120, bits)), "I;16", id=f"{bits} bits"
            )
            for bits in (1, 8, 10, 12, 15)
        ),
        pytest.param(lambda: encoded(on_transparent(0, 1500)), REDUCED, id="black ink, large"),
        pytest.param(lambda: encoded(on_transparent(255, 1500)), REDUCED, id="white ink, large"),
        pytest.param(lambda: encoded(grey("P").resize((2500, 2500))), REDUCED, id="P, large"),
        pytest.param(lambda: encoded(grey("F"), "TIFF"), "F", id="F"),
        pytest.param(lambda: encoded(grey("CMYK"), "JPEG"), "CMYK", id="CMYK"),
        pytest.param(lambda: encoded(grey(), "BMP"), "L", id="BMP"),
        pytest.param(lambda: encoded(grey(), "MPO"), "L", id="MPO"),
        pytest.param(animated, "", id="GIF"),
        *(
            pytest.param(lambda kind=kind: encoded(turned(), kind, exif=TURNED), "L", id=kind)
            for kind in ("PNG", "TIFF", "JPEG")
        ),
        pytest.param(
            lambda: encoded(turned(2400), "JPEG", quality=90, exif=TURNED),
            f"2400x2400 pixels, L, {REDUCED}",
            id="JPEG, large",
        ),
    ],
)
def test_files_of_any_format_and_mode_give_the_digit(
    make: Callable[[], bytes], note: str, tmp_path: Path
):
    path = tmp_path / "image"  # the content counts, not the name
    path.write_bytes(make())
    prepared = prepare_digit(str(path))
    check(prepared)
    assert distance(prepared, usual("2")) < 0.15
    assert "pixels" in prepared.notes[0]
    assert prepared.notes[0].endswith(note)


def test_arrays_and_warnings_are_left_as_they_were(tmp_path):
    image = drawn("2").copy()
    image.setflags(write=False)
    prepare_pixels(image)
    Image.fromarray(image).save(tmp_path / "digit.png")
    before = list(warnings.filters)
    prepare_digit(tmp_path / "digit.png")
    assert warnings.filters == before


# --------------------------------------------------------------------------------------- errors


def promising(width: int, height: int) -> bytes:
    """Return a small PNG that promises so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


UNREADABLE = ("cannot be read as an image", "crop the image to the digit and save it as PNG")
TOO_LARGE = ("cannot be read as an image (Decompression", UNREADABLE[1])
BLANK = ("no ink is found", "Use an image with more contrast")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", UNREADABLE),
        (b"7 is not an image", UNREADABLE),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", UNREADABLE),
        (encoded(Image.new("RGB", (99, 99)))[:-40], UNREADABLE),
        (encoded(Image.new("RGB", (99, 99)), "JPEG")[:-40], UNREADABLE),
        (promising(0, 5), UNREADABLE),
        (promising(12_500, 12_500), ("the image takes 156 MB of memory", "at most 150 MB. Reduce")),
        (promising(60_000, 60_000), TOO_LARGE),
        (encoded(Image.new("L", (50, 60), 97)), BLANK),
        (encoded(Image.new("RGBA", (9, 9), (0, 0, 0, 0))), BLANK),
        (encoded(Image.new("L", (1, 1))), BLANK),
    ],
)
def test_errors_name_the_path_the_problem_and_the_mend(content, expected, tmp_path):
    path = tmp_path / "digit.png"
    path.write_bytes(content)
    with pytest.raises(ImageError) as error:
        prepare_digit(path)
    problem, mend = expected
    assert str(error.value).startswith(f"{path}: {problem}")
    assert "expected" in str(error.value)
    assert mend in str(error.value)


def test_a_path_without_a_file_is_an_error(tmp_path):
    with pytest.raises(ImageError, match="there is no such file; expected an image file"):
        prepare_digit(tmp_path / "none.png")
    with pytest.raises(ImageError, match="it is a directory; expected a regular file"):
        prepare_digit(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs")
def test_fifos_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, kind in ((tmp_path / "fifo", "a FIFO"), (os.devnull, "a device")):
        with pytest.raises(ImageError, match=f"it is {kind}; expected a regular file"):
            prepare_digit(path)


def test_memory_is_bounded_by_the_digit_and_not_by_the_image(tmp_path, monkeypatch):
    """A large file is decoded once; it is converted in strips, and no array has its size."""
    path, converted, convert = tmp_path / "large.png", [], Image.Image.convert
    Image.fromarray(drawn("2")).resize((3000, 3000)).convert("LA").save(path)
    prepare_digit(path)  # imports everything

    def spy(self, *arguments):
        converted.append(self.width * self.height)
        return convert(self, *arguments)

    monkeypatch.setattr(Image.Image, "convert", spy)
    tracemalloc.start()  # which knows NumPy's arrays
    prepare_digit(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 80e6  # in float64 the image alone has 144 MB
    assert sum(converted) >= 3000**2
    assert max(converted) <= photos.STRIP


@pytest.mark.parametrize(
    ("image", "kind", "fits"),
    [
        (grey("L"), "PNG", True),
        (grey("RGB"), "PNG", False),
        (grey("RGB"), "WEBP", False),
        (Image.fromarray(drawn("2", 900)), "JPEG", True),  # which is decoded at a smaller size
        (Image.fromarray(drawn("2", 900)), "PNG", False),
    ],
)
def test_images_that_take_too_much_memory_are_refused(image, kind, fits, tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "MEMORY", 55_000)
    monkeypatch.setattr(photos, "LARGEST", 130)
    path = tmp_path / "image"
    path.write_bytes(encoded(image, kind))
    if fits:
        assert distance(prepare_digit(path), usual("2")) < 0.15
    else:
        with pytest.raises(ImageError, match=f"{path}: the image takes .* Reduce its size"):
            prepare_digit(path)


@pytest.mark.parametrize("shape", [(1, 1000), (1000, 1), (2, 1024), (1, 1)])
def test_narrow_images_take_no_time(shape):
    began = time.process_time()
    with pytest.raises(ImageError, match="no ink is found"):
        prepare_pixels(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    assert time.process_time() - began < 2  # some took minutes


@few
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP"]), st.data())
def test_damaged_files_give_a_digit_or_an_image_error(tmp_path_factory, kind, data):
    content = bytearray(encoded(grey(), kind))
    for position in data.draw(st.lists(st.integers(0, 400), min_size=1, max_size=5)):
        content[position % len(content)] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    try:
        check(prepare_digit(path))
    except ImageError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017  # some damage does not matter


@few
@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))
    | st.tuples(st.integers(1, 60), st.integers(1, 60), seeds).map(
        lambda drawn: np.random.default_rng(drawn[2]).integers(0, 256, drawn[:2], np.uint8)
    )
)
def test_any_array_gives_a_digit_or_an_error_that_says_why(grey):
    try:
        check(prepare_pixels(grey))
    except ImageError as error:
        assert "expected one digit" in str(error)  # noqa: PT017  # not every picture raises


@pytest.mark.parametrize(
    "grey",
    [
        *(np.zeros(shape) for shape in ((3, 28, 28), (0, 5))),
        *(np.full((5, 5), value) for value in (np.nan, np.inf, -1, 256, 1j, True)),
    ],
)
def test_arrays_that_are_no_grey_levels_are_errors(grey):
    with pytest.raises(ImageError, match=r"expected \(H, W\) .* from 0 \(black\) to 255") as error:
        prepare_pixels(grey)
    assert f"{grey.dtype} of shape {grey.shape}" in str(error.value)
